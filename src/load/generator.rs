//! The generator: one thread that sends what is due, collects replies, and never waits for the
//! server. A [`Transport`] moves the datagrams.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use super::ledger::{Aim, Ledger};
use super::rings::RingTransport;
use super::schedule::SendSchedule;
use super::socket::SocketTransport;
use super::transport::{LoadConfig, RunClock, ServerPath, Transport, steps_around};
use crate::address::Targets;
use crate::address::mt6d::Timetable;
use crate::events::{LoadClient, LoadResult};
use crate::host::Environment;
use crate::host::settings::{Changed, Keeper};
use crate::host::time::unix_time;
use crate::net::netlink::{AttachMode, Link};
use crate::xdp::CopyMode;

/// The rate and length of one run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Requests per second, positive.
    pub rate: f64,
    /// How many requests.
    pub requests: u64,
}

/// How often the generator polls for replies. Constant polling would keep stealing the ring's cache
/// line from the core that writes replies to it, and slow the measured server down by 2 to 5 % on a
/// veth pair. Measured times are too long by at most this, and never too short.
const LOOK: Duration = Duration::from_micros(1);

/// A request is late if it leaves more than this after it was due.
const LATE: Duration = Duration::from_millis(1);

/// A run ends when every reply has arrived, or none has for this long. Later replies count as lost.
const QUIET: Duration = Duration::from_millis(500);

/// Sends requests and collects replies, in any number of runs.
pub struct Generator {
    transport: AnyTransport,
    config: LoadConfig,
    link: Link,
    /// Restored on drop, after the sockets have closed.
    _settings: Vec<Changed>,
}

enum AnyTransport {
    Rings(Box<RingTransport>),
    Socket(Box<SocketTransport>),
}

impl Generator {
    /// Finds the server and opens the transport.
    ///
    /// # Errors
    /// If the server cannot be reached, the flags contradict each other, or the kernel refuses a
    /// socket, ring or setting.
    pub fn open(config: LoadConfig) -> Result<Self> {
        let way = ServerPath::find(&config)?;
        let link = way.link.clone();
        let transport = match config.client {
            LoadClient::Afxdp => AnyTransport::Rings(Box::new(RingTransport::open(way, &config)?)),
            LoadClient::Socket if config.busy_poll.is_some() => {
                bail!("busy polling is for AF_XDP sockets: use the client afxdp")
            }
            LoadClient::Socket => {
                AnyTransport::Socket(Box::new(SocketTransport::open(way, &config)?))
            }
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

    /// The attach mode of the client's program and the copy mode of its rings; `Zero` only if every
    /// queue is zero-copy. `None` for the socket client.
    pub fn modes(&self) -> Option<(AttachMode, CopyMode)> {
        match &self.transport {
            AnyTransport::Rings(rings) => Some(rings.modes()),
            AnyTransport::Socket(_) => None,
        }
    }

    /// Describes this machine and the interface, as seen from the calling thread. Call it on the
    /// thread that will run.
    pub fn environment(&self) -> Environment {
        Environment::of(&self.link)
    }

    /// Sends the requests of `run` and collects their replies. Calls `show` now and then with the
    /// number sent, and once more when the last has left.
    ///
    /// Stops sending early when `stop` is set, or one second after twice the planned time. The
    /// result says how many were sent.
    ///
    /// # Errors
    /// If the interface goes away.
    pub fn run(
        &mut self,
        run: Run,
        stop: &AtomicBool,
        show: impl FnMut(u64),
    ) -> Result<LoadResult> {
        let mut clock = RunClock::start();
        let aim = match &self.config.targets {
            Targets::Pool(pool) => Aim::Pool(pool.clone()),
            Targets::Moving(timetable) => Aim::Moving(timetable.clone(), clock.unix_start()),
        };
        let (ledger, sent) = self.drive(aim, &mut clock, run, stop, show)?;
        // The rings take no timestamps: only moving addresses make their result depend on the wall
        // clock.
        if self.config.client == LoadClient::Socket
            || matches!(self.config.targets, Targets::Moving(_))
        {
            clock.verify()?;
        }
        let outcome = ledger.close();
        let clock_steps = match self.config.targets.clone() {
            // An overloaded server loses requests even when the clocks agree.
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
        // Counts the interval after the last request too, so that a punctual generator achieves
        // exactly the offered rate.
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

    /// Asks once on each address of the first client in the steps around this clock's. Returns how
    /// many steps this clock is ahead of the server's, if anything answers and the two differ.
    fn compare_clocks(
        &mut self,
        timetable: &Arc<Timetable>,
        stop: &AtomicBool,
    ) -> Result<Option<i64>> {
        // Requests per second: slow enough for any server, fast enough to try every step within a
        // short one.
        const RATE: f64 = 200.0;
        let steps = steps_around(timetable);
        let own = timetable.clock().step(unix_time());
        let requests = steps.clone().count() as u64;
        let aim = Aim::Steps(timetable.clone(), *steps.start());
        let run = Run { rate: RATE, requests };
        let (ledger, _) = self.drive(aim, &mut RunClock::start(), run, stop, |_| {})?;
        let mut answered = (0..requests).filter(|sequence| ledger.is_answered(*sequence));
        let Some(first) = answered.next() else { return Ok(None) };
        let last = answered.next_back().unwrap_or(first);
        // The server answers on a window of steps; its own is in the middle.
        let servers = steps.start() + (first + last) / 2;
        Ok(Some(own as i64 - servers as i64).filter(|steps| *steps != 0))
    }

    fn drive(
        &mut self,
        aim: Aim,
        clock: &mut RunClock,
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

struct Sent {
    sent: u64,
    /// How many of these the kernel still held at the end.
    unsent: u64,
    late: u64,
    /// When the last one left, in nanoseconds after the start.
    last: u64,
}

/// One run, on either transport.
fn drive(
    transport: &mut impl Transport,
    config: &LoadConfig,
    aim: Aim,
    clock: &mut RunClock,
    run: Run,
    stop: &AtomicBool,
    mut show: impl FnMut(u64),
) -> Result<(Ledger, Sent)> {
    const SHOW: u64 = 100_000_000; // ns: looks smooth
    let Run { rate, requests } = run;
    let schedule = SendSchedule::new(rate, requests);
    // The standard library seeds this from the system's randomness.
    let id = RandomState::new().build_hasher().finish();
    let mut ledger = Ledger::new(id, aim, schedule, requests, config.replies, config.payload);
    let give_up = (2 * schedule.duration() + Duration::from_secs(1)).as_nanos() as u64;
    let (mut sent, mut late, mut last_sent, mut last_reply, mut shown) = (0, 0, 0, 0, 0);
    let mut look = 0;
    loop {
        let now = clock.now();
        let sending = sent < requests && now < give_up && !stop.load(Ordering::Relaxed);
        let before = sent;
        // Called even when nothing is due: the kernel may have left packets in the tx ring.
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
