//! The generator: one thread that sends what is due, takes what has come, and never waits for the server. How datagrams leave
//! and arrive is a [`Transport`]'s business.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::ledger::{Aim, Ledger};
use super::rings::RingTransport;
use super::schedule::Schedule;
use super::socket::SocketTransport;
use crate::address::Targets;
use crate::address::mt6d::Timetable;
use crate::bind::unix_time;
use crate::machine::Environment;
use crate::netlink::{self, AttachMode, Link};
use crate::report::LoadResult;
use crate::settings::{Changed, Keeper};
use crate::xdp::CopyMode;

/// The ways to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    /// AF_XDP rings: the server is the limit for longer
    Afxdp,
    /// A UDP socket, and the kernel's own timestamps of what arrives
    Socket,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Afxdp => "afxdp",
            Self::Socket => "socket",
        })
    }
}

/// What to ask, of whom.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// How to ask.
    pub client: Client,
    /// Name of the interface, in the namespace of the calling thread.
    pub interface: String,
    /// The server's addresses.
    pub targets: Targets,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to expect to each request, at least 1.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Preferred busy polling, for so many microseconds: the client's own calls do its interface's receive work. Rings only.
    pub busy_poll: Option<u32>,
    /// Microseconds between two batches that the kernel takes from the interface; `None` to leave that as it is.
    pub coalesce: Option<u32>,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Requests per second, positive.
    pub rate: f64,
    /// How many requests.
    pub requests: u64,
}

/// How datagrams leave and arrive.
pub(super) trait Transport {
    /// Sends what is due of the requests from number `sent` on, those before number `due`, as far as there is room, and returns
    /// the next number.
    fn send(&mut self, ledger: &Ledger, sent: u64, due: u64) -> Result<u64>;

    /// Enters what has arrived and returns whether there was anything.
    fn receive(&mut self, ledger: &mut Ledger, clock: &Clock, sent: u64) -> Result<bool>;

    /// At the end of a run, how many requests the kernel was given and still holds.
    fn unsent(&mut self) -> u64 {
        0
    }
}

/// Datagrams sent, or taken, before the other side has its turn.
pub(super) const BATCH: usize = 64;

/// The generator looks for replies this often. Whoever delivers a reply writes to the ring that is looked at: looking all
/// the time would take the cache line away from it with each look, and slow down the server that is measured (by 2 to 5 %
/// on a veth pair). A time is too long by at most this, and never too short.
const LOOK: Duration = Duration::from_micros(1);

/// A request that leaves later than this after it was due is counted as late.
const LATE: Duration = Duration::from_millis(1);

/// A run is over when all replies are there, or none has come for this long. A request that takes longer is lost.
const QUIET: Duration = Duration::from_millis(500);

/// How long the kernel may take to find the server's Ethernet address: three solicitations a second apart (RFC 4861
/// section 10, MAX_MULTICAST_SOLICIT and RETRANS_TIMER), and a bit.
const RESOLVE: Duration = Duration::from_secs(4);

/// The time of a run: nanoseconds since its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    start: Instant,
    /// The same moment by the clock that the kernel's timestamps are of, in nanoseconds.
    realtime: i128,
}

impl Clock {
    fn start() -> Result<Self> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME).context("no clock")?;
        Ok(Self { start: Instant::now(), realtime: nanoseconds(now.tv_sec(), now.tv_nsec()) })
    }

    /// Now.
    #[inline]
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The start, in nanoseconds since 1970.
    fn unix_start(&self) -> u64 {
        u64::try_from(self.realtime).unwrap_or(0)
    }

    /// When the kernel's clock showed that; 0 for what was before the start.
    #[inline]
    pub fn at(&self, seconds: i64, nanos: i64) -> u64 {
        u64::try_from(nanoseconds(seconds, nanos) - self.realtime).unwrap_or(0)
    }
}

fn nanoseconds(seconds: i64, nanos: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// The way to the server, and a port of ours that nobody else has.
pub(super) struct Way {
    pub link: Link,
    pub source: Ipv6Addr,
    /// Ethernet address of the server, or of the router to it.
    pub server: [u8; 6],
    /// The kernel keeps the port for us, and gives it to nobody else.
    pub socket: UdpSocket,
    pub source_port: u16,
}

impl Way {
    /// Finds the server through the kernel's routes and neighbours.
    fn find(config: &LoadConfig) -> Result<Self> {
        let link = netlink::link(&config.interface)?;
        ensure!(link.up, "{0} is down: set it up with 'ip link set {0} up'", link.name);
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;
        let target = match &config.targets {
            Targets::Pool(pool) => pool.address(0),
            Targets::Moving(timetable) => timetable.address(0, timetable.clock().step(unix_time())),
        };
        let route = netlink::route(target)?;
        ensure!(
            route.interface == link.index,
            "the route to {target} does not lead through {}: use the interface that it does lead through",
            link.name
        );
        if matches!(&config.targets, Targets::Pool(pool) if pool.contains(route.source)) {
            bail!(
                "{} is this machine's own address and one of those asked: use another --seed",
                route.source
            );
        }
        let server = match (netlink::resolve(link.index, route.gateway.unwrap_or(target), RESOLVE), config) {
            (Err(why), LoadConfig { targets: Targets::Moving(timetable), .. }) if route.gateway.is_none() => {
                // Somebody answers for an address of another step, if only the clocks are uneven.
                let addresses: Vec<_> =
                    steps_around(timetable).map(|step| timetable.address(0, step)).collect();
                let found = netlink::resolve_any(link.index, &addresses, RESOLVE)?;
                found.with_context(|| format!("{why}; {}", nobody(timetable)))?
            }
            (resolved, _) => resolved?,
        };
        let socket =
            UdpSocket::bind(SocketAddrV6::new(route.source, 0, 0, link.index)).context("no UDP port")?;
        let source_port = socket.local_addr().context("no UDP port")?.port();
        ensure!(source_port != config.port, "the kernel chose the service port as ours: try again");
        Ok(Self { link, source: route.source, server, socket, source_port })
    }
}

/// How many steps before this clock's and after it are tried where the server does not answer.
const STEPS_TRIED: u64 = 32;

/// Those, and this clock's own.
fn steps_around(timetable: &Timetable) -> RangeInclusive<u64> {
    let step = timetable.clock().step(unix_time());
    step.saturating_sub(STEPS_TRIED)..=step + STEPS_TRIED
}

/// What it means that none of them is answered.
fn nobody(timetable: &Timetable) -> String {
    let around = STEPS_TRIED as u32 * timetable.clock().period();
    format!(
        "nor does anybody where this clock is up to {STEPS_TRIED} steps ({around:?}) wrong: the server may be down, or its --secret, \
         --rotate or --prefix another"
    )
}

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
    /// When the server is not there, the flags make no sense, or the kernel does not give what is needed.
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

    /// How the client's program is attached, and how packets get into its rings: `Zero` only when all queues are. `None` where
    /// it has neither.
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

    /// Sends the requests of `run` and takes their replies. `show` is called now and then with the number sent,
    /// and once with all of them when the last was sent.
    ///
    /// Sending stops early when `stop` is set, or at twice the time planned and a second: the result says how many were sent.
    ///
    /// # Errors
    /// When the interface goes away.
    pub fn run(&mut self, run: Run, stop: &AtomicBool, show: impl FnMut(u64)) -> Result<LoadResult> {
        let clock = Clock::start()?;
        let aim = match &self.config.targets {
            Targets::Pool(pool) => Aim::Pool(pool.clone()),
            Targets::Moving(timetable) => Aim::Moving(timetable.clone(), clock.unix_start()),
        };
        let (ledger, sent) = self.drive(aim, &clock, run, stop, show)?;
        let outcome = ledger.close();
        let clock_steps = match self.config.targets.clone() {
            // Some are always lost where a server is asked too much.
            Targets::Moving(timetable) if sent.sent > 0 && outcome.answered < sent.sent - sent.sent / 10 => {
                self.compare_clocks(&timetable, stop)?
            }
            _ => None,
        };
        let (attach, copy) = self.modes().unzip();
        let (rings, busy_poll) = match &self.transport {
            AnyTransport::Rings(rings) => (rings.sizes(), rings.busy_poll()),
            AnyTransport::Socket(_) => (None, None),
        };
        // The interval after the last request belongs to it: then a generator in time achieves what was offered.
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

    /// Asks once on the addresses that the first client has in the steps around this clock's, and returns how many steps that is
    /// ahead of the server's, if anything is answered and the two differ.
    fn compare_clocks(&mut self, timetable: &Arc<Timetable>, stop: &AtomicBool) -> Result<Option<i64>> {
        const RATE: f64 = 200.0; // per second: slow enough for any server, and all are asked within a short step
        let steps = steps_around(timetable);
        let own = timetable.clock().step(unix_time());
        let requests = steps.clone().count() as u64;
        let aim = Aim::Steps(timetable.clone(), *steps.start());
        let run = Run { rate: RATE, requests };
        let (ledger, _) = self.drive(aim, &Clock::start()?, run, stop, |_| {})?;
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
        clock: &Clock,
        run: Run,
        stop: &AtomicBool,
        show: impl FnMut(u64),
    ) -> Result<(Ledger, Sent)> {
        match &mut self.transport {
            AnyTransport::Rings(rings) => drive(&mut **rings, &self.config, aim, clock, run, stop, show),
            AnyTransport::Socket(socket) => drive(&mut **socket, &self.config, aim, clock, run, stop, show),
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
    clock: &Clock,
    run: Run,
    stop: &AtomicBool,
    mut show: impl FnMut(u64),
) -> Result<(Ledger, Sent)> {
    const SHOW: u64 = 100_000_000; // ns: smooth to the eye
    let Run { rate, requests } = run;
    let schedule = Schedule::new(rate, requests);
    let id = RandomState::new().build_hasher().finish(); // drawn by the standard library from the system's randomness
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
            let overdue = now.checked_sub(LATE.as_nanos() as u64).map_or(0, |then| schedule.due_by(then));
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
            && (ledger.complete() == sent || now > last_reply.max(last_sent) + QUIET.as_nanos() as u64)
        {
            break;
        }
    }
    let unsent = transport.unsent();
    Ok((ledger, Sent { sent, unsent, late, last: last_sent }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_clock_and_ours_show_the_same_time() {
        let clock = Clock::start().unwrap();
        let kernel = clock_gettime(ClockId::CLOCK_REALTIME).unwrap();
        let (at, now) = (clock.at(kernel.tv_sec(), kernel.tv_nsec()), clock.now());
        assert!(at <= now + 1_000_000, "{at} ns is after {now} ns"); // but for a clock that was set meanwhile
        assert_eq!(clock.at(kernel.tv_sec() - 100, 0), 0);
    }
}
