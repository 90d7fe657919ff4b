//! The generator: one thread that sends what is due, takes what has come, and never waits for the
//! server. How datagrams leave and arrive is a [`Transport`]'s business.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use super::ledger::{Aim, Ledger};
use super::rings::RingTransport;
use super::schedule::Schedule;
use super::socket::SocketTransport;
use super::transport::{Clock, LoadConfig, Transport, Way, steps_around};
use crate::address::Targets;
use crate::address::mt6d::Timetable;
use crate::events::{Client, LoadResult};
use crate::host::Environment;
use crate::host::settings::{Changed, Keeper};
use crate::host::time::unix_time;
use crate::net::netlink::{AttachMode, Link};
use crate::xdp::CopyMode;

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Requests per second, positive.
    pub rate: f64,
    /// How many requests.
    pub requests: u64,
}

/// The generator looks for replies this often. Whoever delivers a reply writes to the ring that is
/// looked at: looking all the time would take the cache line away from it with each look, and slow
/// down the server that is measured (by 2 to 5 % on a veth pair). A time is too long by at most
/// this, and never too short.
const LOOK: Duration = Duration::from_micros(1);

/// A request that leaves later than this after it was due is counted as late.
const LATE: Duration = Duration::from_millis(1);

/// A run is over when all replies are there, or none has come for this long. A request that takes
/// longer is lost.
const QUIET: Duration = Duration::from_millis(500);

/// Sends requests and takes replies. May be run any number of times.
pub struct Generator {
    transport: AnyTransport,
    config: LoadConfig,
    link: Link,
    /// Put back when this goes, after the sockets.
    _settings: Vec<Changed>,
}

enum AnyTransport {
    Rings(Box<RingTransport>),
    Socket(Box<SocketTransport>),
}

impl Generator {
    /// Finds the server and opens what is needed to ask it.
    ///
    /// # Errors
    /// When the server is not there, the flags make no sense, or the kernel does not give what is
    /// needed.
    pub fn open(config: LoadConfig) -> Result<Self> {
        let way = Way::find(&config)?;
        let link = way.link.clone();
        let transport = match config.client {
            Client::Afxdp => AnyTransport::Rings(Box::new(RingTransport::open(way, &config)?)),
            Client::Socket if config.busy_poll.is_some() => {
                bail!("busy polling is for AF_XDP sockets: use the client afxdp")
            }
            Client::Socket => AnyTransport::Socket(Box::new(SocketTransport::open(way, &config)?)),
        };
        let mut settings = Vec::new();
        if config.busy_poll.is_some() || config.coalesce.is_some() {
            let keeper = Keeper::open()?;
            for words in keeper.put_right()? {
                tracing::warn!("{words}");
            }
            settings = match config.coalesce {
                Some(time) => keeper.have_coalesced(&link, time)?,
                None => keeper.have_polled(&link)?,
            };
        }
        Ok(Self { transport, config, link, _settings: settings })
    }

    /// How the client's program is attached, and how packets get into its rings: `Zero` only when
    /// all queues are. `None` where it has neither.
    pub fn modes(&self) -> Option<(AttachMode, CopyMode)> {
        match &self.transport {
            AnyTransport::Rings(rings) => Some(rings.modes()),
            AnyTransport::Socket(_) => None,
        }
    }

    /// This machine, and the interface: what the calling thread, which is to run, has.
    pub fn environment(&self) -> Environment {
        Environment::of(&self.link)
    }

    /// Sends the requests of `run` and takes their replies. `show` is called now and then with the
    /// number sent, and once with all of them when the last was sent.
    ///
    /// Sending stops early when `stop` is set, or at twice the time planned and a second: the
    /// result says how many were sent.
    ///
    /// # Errors
    /// When the interface goes away.
    pub fn run(
        &mut self,
        run: Run,
        stop: &AtomicBool,
        show: impl FnMut(u64),
    ) -> Result<LoadResult> {
        let mut clock = Clock::start();
        let aim = match &self.config.targets {
            Targets::Pool(pool) => Aim::Pool(pool.clone()),
            Targets::Moving(timetable) => Aim::Moving(timetable.clone(), clock.unix_start()),
        };
        let (ledger, sent) = self.drive(aim, &mut clock, run, stop, show)?;
        // Rings have no timestamps: there only steps go by the time of day.
        if self.config.client == Client::Socket || matches!(self.config.targets, Targets::Moving(_))
        {
            clock.verify()?;
        }
        let outcome = ledger.close();
        let clock_steps = match self.config.targets.clone() {
            // Some are always lost where a server is asked too much.
            Targets::Moving(timetable)
                if sent.sent > 0 && outcome.answered < sent.sent - sent.sent / 10 =>
            {
                self.compare_clocks(&timetable, stop)?
            }
            _ => None,
        };
        let (attach, copy) = self.modes().unzip();
        let (rings, busy_poll) = match &self.transport {
            AnyTransport::Rings(rings) => (rings.sizes(), rings.busy_poll()),
            AnyTransport::Socket(_) => (None, None),
        };
        // The interval after the last request belongs to it: then a generator in time achieves what
        // was offered.
        let seconds = sent.last as f64 / 1e9 + 1.0 / run.rate;
        Ok(LoadResult {
            client: self.config.client,
            sent: sent.sent,
            unsent: sent.unsent.min(sent.sent),
            outcome,
            late: sent.late,
            clock_steps,
            offered_rate: run.rate,
            achieved_rate: if sent.sent == 0 { 0.0 } else { sent.sent as f64 / seconds },
            attach,
            copy,
            rings,
            busy_poll,
            environment: None,
        })
    }

    /// Asks once on the addresses that the first client has in the steps around this clock's, and
    /// returns how many steps that is ahead of the server's, if anything is answered and the two
    /// differ.
    fn compare_clocks(
        &mut self,
        timetable: &Arc<Timetable>,
        stop: &AtomicBool,
    ) -> Result<Option<i64>> {
        // per second: slow enough for any server, and all are asked within a short step
        const RATE: f64 = 200.0;
        let steps = steps_around(timetable);
        let own = timetable.clock().step(unix_time());
        let requests = steps.clone().count() as u64;
        let aim = Aim::Steps(timetable.clone(), *steps.start());
        let run = Run { rate: RATE, requests };
        let (ledger, _) = self.drive(aim, &mut Clock::start(), run, stop, |_| {})?;
        let mut answered = (0..requests).filter(|sequence| ledger.is_answered(*sequence));
        let Some(first) = answered.next() else { return Ok(None) };
        let last = answered.next_back().unwrap_or(first);
        // The server's step is in the middle of those that it answers in.
        let servers = steps.start() + (first + last) / 2;
        Ok(Some(own as i64 - servers as i64).filter(|steps| *steps != 0))
    }

    /// One run.
    fn drive(
        &mut self,
        aim: Aim,
        clock: &mut Clock,
        run: Run,
        stop: &AtomicBool,
        show: impl FnMut(u64),
    ) -> Result<(Ledger, Sent)> {
        match &mut self.transport {
            AnyTransport::Rings(rings) => {
                drive(&mut **rings, &self.config, aim, clock, run, stop, show)
            }
            AnyTransport::Socket(socket) => {
                drive(&mut **socket, &self.config, aim, clock, run, stop, show)
            }
        }
    }
}

/// What left.
struct Sent {
    sent: u64,
    /// Of those, as many have not.
    unsent: u64,
    late: u64,
    /// When the last did, in nanoseconds after the start.
    last: u64,
}

/// One run, by whatever transport.
fn drive(
    transport: &mut impl Transport,
    config: &LoadConfig,
    aim: Aim,
    clock: &mut Clock,
    run: Run,
    stop: &AtomicBool,
    mut show: impl FnMut(u64),
) -> Result<(Ledger, Sent)> {
    const SHOW: u64 = 100_000_000; // ns: smooth to the eye
    let Run { rate, requests } = run;
    let schedule = Schedule::new(rate, requests);
    // drawn by the standard library from the system's randomness
    let id = RandomState::new().build_hasher().finish();
    let mut ledger = Ledger::new(id, aim, schedule, requests, config.replies, config.payload);
    let give_up = (2 * schedule.duration() + Duration::from_secs(1)).as_nanos() as u64;
    let (mut sent, mut late, mut last_sent, mut last_reply, mut shown) = (0, 0, 0, 0, 0);
    let mut look = 0;
    loop {
        let now = clock.now();
        let sending = sent < requests && now < give_up && !stop.load(Ordering::Relaxed);
        let before = sent;
        // Also when nothing is due: the kernel may have left some of the last ones in the ring.
        sent = transport.send(&ledger, sent, if sending { schedule.due_by(now) } else { sent })?;
        if sent > before {
            last_sent = now;
            let overdue =
                now.checked_sub(LATE.as_nanos() as u64).map_or(0, |then| schedule.due_by(then));
            late += overdue.min(sent).saturating_sub(before);
        }
        if sending && (now >= shown + SHOW || sent == requests) {
            shown = now;
            show(sent);
        }
        if now >= look {
            look = now + LOOK.as_nanos() as u64;
            if transport.receive(&mut ledger, clock, sent)? {
                last_reply = now;
            }
        }
        if !sending
            && (ledger.complete() == sent
                || now > last_reply.max(last_sent) + QUIET.as_nanos() as u64)
        {
            break;
        }
    }
    let unsent = transport.unsent();
    Ok((ledger, Sent { sent, unsent, late, last: last_sent }))
}
