//! What both transports share: their configuration, the path to the server, the clock of a run, and
//! the trait that the generator drives.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, setsockopt, socket, sockopt,
};

use super::ledger::Ledger;
use crate::address::Targets;
use crate::address::mt6d::Timetable;
use crate::events::LoadClient;
use crate::host;
use crate::host::time::{self, Moment, System, Time, unix_time};
use crate::net::netlink::{self, Link};
use crate::net::quirks::CARRIER_TIMEOUT;

/// What to send, where, and how.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Rings or a socket.
    pub client: LoadClient,
    /// Name of the interface, in the calling thread's namespace.
    pub interface: String,
    /// The server's addresses.
    pub targets: Targets,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to expect to each request, at least 1.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Preferred busy polling for this many microseconds: the client's own calls do its interface's
    /// receive work. Rings only.
    pub busy_poll: Option<u32>,
    /// Microseconds between two batches that the kernel takes from the interface; `None` leaves the
    /// setting alone.
    pub coalesce: Option<u32>,
}

/// How datagrams leave and arrive.
pub(super) trait Transport {
    /// Sends the requests `sent..due`, as far as there is room, and returns the next number.
    fn send(&mut self, ledger: &Ledger, sent: u64, due: u64) -> Result<u64>;

    /// Records what has arrived, and returns whether anything had.
    fn receive(&mut self, ledger: &mut Ledger, clock: &mut RunClock, sent: u64) -> Result<bool>;

    /// At the end of a run: how many requests the kernel accepted but still holds.
    fn unsent(&mut self) -> u64 {
        0
    }
}

/// How many datagrams to send or receive before the other direction gets its turn.
pub(super) const BATCH: usize = 64;

/// How long the kernel may need to resolve the server's Ethernet address: three solicitations one
/// second apart (RFC 4861 section 10, MAX_MULTICAST_SOLICIT and RETRANS_TIMER), plus a margin.
const RESOLVE: Duration = Duration::from_secs(4);

/// The clock of a run: nanoseconds since its start, by CLOCK_MONOTONIC. The kernel's receive
/// timestamps are wall-clock times, which [`at`](Self::at) converts.
pub(super) struct RunClock {
    start: Instant,
    began: Moment,
    /// The latest reading of both clocks.
    last: Moment,
    /// The first jump of the wall clock against the other, beyond slewing; in nanoseconds.
    parted: Option<i64>,
}

/// Nanoseconds by which the clocks may drift apart between two readings, however close. A smaller
/// jump makes no time wrong by more than this.
const PARTED: u64 = 100_000;

/// Plus this share of the time between them: adjtimex(2) slews no faster.
const SLEWED: f64 = 0.0005;

/// Nanoseconds by which the wall clock jumped between two readings, beyond slewing and the time
/// that reading took; `None` if it did not.
fn parting(now: &Moment, before: &Moment) -> Option<i64> {
    let drift = now.wall.wrapping_sub(before.wall) as i64;
    let drift = drift.wrapping_sub(now.awake.wrapping_sub(before.awake) as i64);
    let slewed = (now.awake.saturating_sub(before.awake) as f64 * SLEWED) as u64;
    (drift.unsigned_abs() > PARTED + slewed + now.slack + before.slack).then_some(drift)
}

impl RunClock {
    pub fn start() -> Self {
        let began = System.now();
        Self { start: Instant::now(), began, last: began, parted: None }
    }

    #[inline]
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// The start, in nanoseconds since 1970.
    pub fn unix_start(&self) -> u64 {
        self.began.wall
    }

    /// Reads both clocks, for [`at`](Self::at).
    pub fn look(&mut self) {
        self.see(System.now());
    }

    fn see(&mut self, now: Moment) {
        if let Some(parted) = parting(&now, &self.last) {
            self.parted.get_or_insert(parted);
        }
        self.last = now;
    }

    /// Converts a wall-clock time to nanoseconds since the start, by the latest
    /// [`look`](Self::look), which must be recent. Times before the start become 0.
    #[inline]
    pub fn at(&self, seconds: i64, nanos: i64) -> u64 {
        let wall = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let ago = i128::from(self.last.wall) - wall;
        let awake = i128::from(self.last.awake) - i128::from(self.began.awake);
        u64::try_from(awake - ago).unwrap_or(0)
    }

    /// Fails if the wall clock was set during the run: the timestamps are then wrong.
    pub fn verify(&mut self) -> Result<()> {
        self.look();
        let Some(parted) = self.parted else { return Ok(()) };
        // The clock that schedules requests stops during suspend.
        let suspended = self.last.suspended_since(&self.began);
        if suspended >= Duration::from_millis(1) {
            bail!(
                "this machine was suspended for {:.3} s while requests were sent: the measurement \
                 is worthless; repeat the run",
                suspended.as_secs_f64()
            );
        }
        bail!(
            "{} while requests were sent: the measurement is worthless; repeat the run while \
             nothing sets the clock",
            time::set(parted)
        );
    }
}

/// The path to the server, and a source port reserved for the client.
pub(super) struct ServerPath {
    pub link: Link,
    pub source: Ipv6Addr,
    /// Ethernet address of the server, or of the router on the way.
    pub server: [u8; 6],
    /// Reserves the port: the kernel gives it to nobody else.
    pub socket: UdpSocket,
    pub source_port: u16,
}

impl ServerPath {
    /// Finds the server through the kernel's routes and neighbours.
    pub fn find(config: &LoadConfig) -> Result<Self> {
        let link = netlink::link(&config.interface)?;
        host::has_ipv6(&link)?;
        ensure!(link.up, "{0} is down: set it up with 'ip link set {0} up'", link.name);
        netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;
        let target = match &config.targets {
            Targets::Pool(pool) => pool.address(0),
            Targets::Moving(timetable) => timetable.address(0, timetable.clock().step(unix_time())),
        };
        ensure!(
            link.is_ethernet() || config.client == LoadClient::Socket,
            "{} carries no Ethernet frames (link type {}, a tunnel's), and the client afxdp needs \
             them: use --client socket",
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
        // A tunnel has no neighbours to resolve.
        let resolve = || match link.is_ethernet() {
            true => netlink::resolve(link.index, neighbour, RESOLVE),
            false => Ok([0; 6]),
        };
        let server = match (resolve(), config) {
            (Err(why), LoadConfig { targets: Targets::Moving(timetable), .. })
                if route.gateway.is_none() =>
            {
                // If only the clocks differ, an address of another step answers.
                let addresses: Vec<_> =
                    steps_around(timetable).map(|step| timetable.address(0, step)).collect();
                let found = netlink::resolve_any(link.index, &addresses, RESOLVE)?;
                found.with_context(|| format!("{why}; {}", nobody(timetable)))?
            }
            (resolved, _) => resolved?,
        };
        let socket = port_of_ours(&link, route.source, vrf.is_some())
            .context("cannot open a UDP socket for the client's port")?;
        let source_port = socket.local_addr().context("cannot read the client's port")?.port();
        ensure!(
            source_port != config.port,
            "the kernel chose the service port for the client: try again"
        );
        Ok(Self { link, source: route.source, server, socket, source_port })
    }
}

/// A socket on a port of the kernel's choice. In a VRF it must be bound to the interface, since the
/// address exists only there.
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

/// How many steps to try before this clock's and after it when the server does not answer.
const STEPS_TRIED: u64 = 32;

/// This clock's step and the [`STEPS_TRIED`] around it.
pub(super) fn steps_around(timetable: &Timetable) -> RangeInclusive<u64> {
    let step = timetable.clock().step(unix_time());
    step.saturating_sub(STEPS_TRIED)..=step + STEPS_TRIED
}

/// The likely causes when no address of those steps answers.
fn nobody(timetable: &Timetable) -> String {
    let around = STEPS_TRIED as u32 * timetable.clock().period();
    format!(
        "nothing answers within {STEPS_TRIED} steps ({around:?}) of this clock either: the server \
         may be down, or its --secret, --rotate or --prefix may differ"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_clock_and_ours_show_the_same_time() {
        let mut clock = RunClock::start();
        let kernel = System.now();
        clock.look();
        let (seconds, nanos) =
            ((kernel.wall / 1_000_000_000) as i64, (kernel.wall % 1_000_000_000) as i64);
        let (at, now) = (clock.at(seconds, nanos), clock.now());
        // Holds unless something set the clock in between.
        assert!(at <= now + 1_000_000, "{at} ns is later than {now} ns");
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
        let start = || RunClock { start: Instant::now(), began, last: began, parted: None };
        let later = |clock: &RunClock, time: u64, off: i64| Moment {
            wall: (clock.last.wall + time).saturating_add_signed(off),
            steady: clock.last.steady + time,
            awake: clock.last.awake + time,
            slack: 100,
        };
        let mut clock = start();
        for look in 1..=1000 {
            // Slewed by 500 ppm, for 10,000 s.
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
            // The first jump is kept.
            clock.see(later(&clock, SECOND / 10, 0));
            assert_eq!(clock.parted, Some(off));
            let words = clock.verify().unwrap_err().to_string();
            assert!(words.contains("worthless"), "{words}");
        }
        // A preempted reading is imprecise: it proves no jump.
        let mut clock = start();
        clock.see(Moment { slack: 5_000_000, ..later(&clock, SECOND, 3_000_000) });
        assert_eq!(clock.parted, None);
    }
}
