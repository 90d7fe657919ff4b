//! The generator: one thread that sends what is due, takes what has come, and never waits for the
//! server. How datagrams leave and arrive is a [`Transport`]'s business.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};

use super::ledger::{Aim, Ledger};
use super::rings::RingTransport;
use super::schedule::Schedule;
use super::socket::SocketTransport;
use crate::address::Targets;
use crate::address::mt6d::Timetable;
use crate::events::LoadResult;
use crate::host::settings::{Changed, Keeper};
use crate::host::time::{self, Moment, System, Time, unix_time};
use crate::host::{self, Environment};
use crate::net::netlink::{self, AttachMode, Link};
use crate::xdp::CopyMode;

pub use crate::events::Client;

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
    /// Preferred busy polling, for so many microseconds: the client's own calls do its interface's
    /// receive work. Rings only.
    pub busy_poll: Option<u32>,
    /// Microseconds between two batches that the kernel takes from the interface; `None` to leave
    /// that as it is.
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
    /// Sends what is due of the requests from number `sent` on, those before number `due`, as far
    /// as there is room, and returns the next number.
    fn send(&mut self, ledger: &Ledger, sent: u64, due: u64) -> Result<u64>;

    /// Enters what has arrived and returns whether there was anything.
    fn receive(&mut self, ledger: &mut Ledger, clock: &mut Clock, sent: u64) -> Result<bool>;

    /// At the end of a run, how many requests the kernel was given and still holds.
    fn unsent(&mut self) -> u64 {
        0
    }
}

/// Datagrams sent, or taken, before the other side has its turn.
pub(super) const BATCH: usize = 64;

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

/// How long the kernel may take to find the server's Ethernet address: three solicitations a second
/// apart (RFC 4861 section 10, MAX_MULTICAST_SOLICIT and RETRANS_TIMER), and a bit.
const RESOLVE: Duration = Duration::from_secs(4);

/// The time of a run: nanoseconds since its start, by a clock that nobody sets and that is not
/// slewed for the time of day.
pub(super) struct Clock {
    start: Instant,
    began: Moment,
    /// What the time of day was last, when the other clock showed what.
    last: Moment,
    /// How far the two came apart, the first time, otherwise than by slewing.
    parted: Option<i64>,
}

/// The wall clock may come so much further apart from the other between two readings, whatever the
/// time between them: where it was set by less, no time is wrong by more.
const PARTED: u64 = 100_000;

/// And by this share of the time between them: adjtimex(2) slews by no more.
const SLEWED: f64 = 0.0005;

/// How far apart two readings of the clocks are, besides slewing and the time that reading took; in
/// nanoseconds.
fn parting(now: &Moment, before: &Moment) -> Option<i64> {
    let drift = now.wall.wrapping_sub(before.wall) as i64;
    let drift = drift.wrapping_sub(now.awake.wrapping_sub(before.awake) as i64);
    let slewed = (now.awake.saturating_sub(before.awake) as f64 * SLEWED) as u64;
    (drift.unsigned_abs() > PARTED + slewed + now.slack + before.slack).then_some(drift)
}

impl Clock {
    fn start() -> Self {
        let began = System.now();
        Self { start: Instant::now(), began, last: began, parted: None }
    }

    /// Now.
    #[inline]
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The start, in nanoseconds since 1970.
    fn unix_start(&self) -> u64 {
        self.began.wall
    }

    /// Looks how far the time of day is from the other clock, for [`at`](Self::at).
    pub fn look(&mut self) {
        self.see(System.now());
    }

    fn see(&mut self, now: Moment) {
        if let Some(parted) = parting(&now, &self.last) {
            self.parted.get_or_insert(parted);
        }
        self.last = now;
    }

    /// When the time of day was that, which was just before it was last looked at; 0 for what was
    /// before the start.
    #[inline]
    pub fn at(&self, seconds: i64, nanos: i64) -> u64 {
        let wall = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let ago = i128::from(self.last.wall) - wall;
        let awake = i128::from(self.last.awake) - i128::from(self.began.awake);
        u64::try_from(awake - ago).unwrap_or(0)
    }

    /// Refuses what was measured by the time of day if that was set meanwhile.
    fn verify(&mut self) -> Result<()> {
        self.look();
        let Some(parted) = self.parted else { return Ok(()) };
        // The clock that the requests are due by stands still meanwhile.
        let suspended = self.last.suspended_since(&self.began);
        if suspended >= Duration::from_millis(1) {
            bail!(
                "this machine was suspended for {:.3} s while requests were sent: what was \
                 measured is worthless; repeat the run",
                suspended.as_secs_f64()
            );
        }
        bail!(
            "{} while requests were sent: what was measured by it is worthless; repeat the run \
             while nothing sets the clock",
            time::set(parted)
        );
    }
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
        host::has_ipv6(&link)?;
        ensure!(link.up, "{0} is down: set it up with 'ip link set {0} up'", link.name);
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;
        let target = match &config.targets {
            Targets::Pool(pool) => pool.address(0),
            Targets::Moving(timetable) => timetable.address(0, timetable.clock().step(unix_time())),
        };
        ensure!(
            link.is_ethernet() || config.client == Client::Socket,
            "{} carries no Ethernet frames (link type {}, a tunnel's), and the client afxdp takes \
             no others: use --client socket",
            link.name,
            link.link_type
        );
        let vrf = netlink::vrf(link.index)?;
        let route = netlink::route_in(vrf, target)?;
        ensure!(
            route.interface == link.index,
            "the route to {target} does not lead through {}: use the interface that it does lead \
             through",
            link.name
        );
        if matches!(&config.targets, Targets::Pool(pool) if pool.contains(route.source)) {
            bail!(
                "{} is this machine's own address and one of those asked: use another --seed",
                route.source
            );
        }
        let neighbour = route.gateway.unwrap_or(target);
        // A tunnel has no neighbours to look for.
        let resolve = || match link.is_ethernet() {
            true => netlink::resolve(link.index, neighbour, RESOLVE),
            false => Ok([0; 6]),
        };
        let server = match (resolve(), config) {
            (Err(why), LoadConfig { targets: Targets::Moving(timetable), .. })
                if route.gateway.is_none() =>
            {
                // Somebody answers for an address of another step, if only the clocks are uneven.
                let addresses: Vec<_> =
                    steps_around(timetable).map(|step| timetable.address(0, step)).collect();
                let found = netlink::resolve_any(link.index, &addresses, RESOLVE)?;
                found.with_context(|| format!("{why}; {}", nobody(timetable)))?
            }
            (resolved, _) => resolved?,
        };
        let socket = port_of_ours(&link, route.source, vrf.is_some()).context("no UDP port")?;
        let source_port = socket.local_addr().context("no UDP port")?.port();
        ensure!(source_port != config.port, "the kernel chose the service port as ours: try again");
        Ok(Self { link, source: route.source, server, socket, source_port })
    }
}

/// A socket on a port that the kernel chooses. In a VRF it is bound to the interface: the address
/// is known there alone.
fn port_of_ours(link: &Link, source: Ipv6Addr, in_vrf: bool) -> Result<UdpSocket> {
    let address = SocketAddrV6::new(source, 0, 0, link.index);
    if !in_vrf {
        return Ok(UdpSocket::bind(address)?);
    }
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &link.name.clone().into())?;
    bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?;
    Ok(socket.into())
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
        "nor does anybody where this clock is up to {STEPS_TRIED} steps ({around:?}) wrong: the \
         server may be down, or its --secret, \
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
        const RATE: f64 = 200.0; // per second: slow enough for any server, and all are asked within a short step
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_clock_and_ours_show_the_same_time() {
        let mut clock = Clock::start();
        let kernel = System.now();
        clock.look();
        let (seconds, nanos) =
            ((kernel.wall / 1_000_000_000) as i64, (kernel.wall % 1_000_000_000) as i64);
        let (at, now) = (clock.at(seconds, nanos), clock.now());
        assert!(at <= now + 1_000_000, "{at} ns is after {now} ns"); // but for a clock that was set meanwhile
        assert_eq!(clock.at(seconds - 100, 0), 0);
        clock.verify().unwrap();
    }

    #[test]
    fn times_are_right_while_the_time_of_day_is_slewed_and_worthless_where_it_is_set() {
        const SECOND: u64 = 1_000_000_000;
        let began = Moment {
            wall: 1_700_000_000 * SECOND,
            steady: 7 * SECOND,
            awake: 5 * SECOND,
            slack: 100,
        };
        let start = || Clock { start: Instant::now(), began, last: began, parted: None };
        let later = |clock: &Clock, time: u64, off: i64| Moment {
            wall: (clock.last.wall + time).saturating_add_signed(off),
            steady: clock.last.steady + time,
            awake: clock.last.awake + time,
            slack: 100,
        };
        let mut clock = start();
        for look in 1..=1000 {
            // 500 ppm, for 10,000 s.
            let now = later(&clock, 10 * SECOND, 5_000_000);
            clock.see(now);
            // Arrived 1 ms before the look.
            let stamp = now.wall - 1_000_000;
            let at = clock.at((stamp / SECOND) as i64, (stamp % SECOND) as i64);
            assert_eq!(at, look * 10 * SECOND - 1_000_000);
        }
        assert_eq!(clock.parted, None);
        for off in [3_000_000_000, -3_000_000_000, 200_000, -200_000] {
            let mut clock = start();
            clock.see(later(&clock, SECOND / 10, off));
            assert_eq!(clock.parted, Some(off));
            // It stays so.
            clock.see(later(&clock, SECOND / 10, 0));
            assert_eq!(clock.parted, Some(off));
            let words = clock.verify().unwrap_err().to_string();
            assert!(words.contains("worthless"), "{words}");
        }
        // Who lost the processor between two readings knows nothing that precisely.
        let mut clock = start();
        clock.see(Moment { slack: 5_000_000, ..later(&clock, SECOND, 3_000_000) });
        assert_eq!(clock.parted, None);
    }
}
