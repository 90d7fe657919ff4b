//! The AF_XDP generator: one thread that sends what is due, takes what has come, and never waits for the server.
//!
//! It uses the same steering program as the server, with its own address and port, so that replies come into its ring.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::{SocketAddrV6, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ledger::Ledger;
use super::schedule::Schedule;
use crate::address::{Pool, Prefix};
use crate::netlink::{self, AttachMode};
use crate::report::LoadResult;
use crate::wire::{self, Endpoints, Template};
use crate::xdp::{
    AttachRequest, Attachment, CopyMode, CopyRequest, Doorbell, Frame, Program, ProgramConfig, Rings, Socket,
    SocketConfig, ethtool,
};

/// What to ask, of whom.
#[derive(Debug, Clone)]
pub struct LoadConfig {
    /// Name of the interface, in the namespace of the calling thread.
    pub interface: String,
    /// The server's addresses.
    pub pool: Pool,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to expect to each request, at least 1.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Requests per second, positive.
    pub rate: f64,
    /// How many requests.
    pub requests: u64,
}

/// Frames of each queue. Ten replies to each request come back; these hold what comes while the generator is kept from its
/// processor for 7 ms at a million replies/s. More would cost more on every packet: they are used in turn, and each that
/// is not in a cache or a TLB is a miss.
const FRAMES: u32 = 8192;

/// Of these, as many are for sending, from the first queue.
const SEND_FRAMES: u32 = 1024;

/// Requests sent, and packets taken, before the other side has its turn.
const BATCH: usize = 64;

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

/// Sends requests and takes replies. May be run any number of times.
pub struct Generator {
    // Dropped in this order: nothing is steered any more, then the sockets go, then the port is free.
    attachment: Attachment,
    queues: Vec<(Rings, Socket)>,
    _port: UdpSocket,
    /// Frames for sending that are not on their way.
    free: Vec<Frame>,
    template: Template,
    config: LoadConfig,
    source_port: u16,
}

impl Generator {
    /// Finds the server through the kernel's routes and neighbours, and opens a socket on each queue.
    ///
    /// # Errors
    /// When the server is not there, the flags make no sense, or the kernel does not give what is needed.
    pub fn open(config: LoadConfig) -> Result<Self> {
        let link = netlink::link(&config.interface)?;
        ensure!(link.up, "{0} is down: set it up with 'ip link set {0} up'", link.name);
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;
        let target = config.pool.address(0);
        let route = netlink::route(target)?;
        ensure!(
            route.interface == link.index,
            "the route to {target} does not lead through {}: use the interface that it does lead through",
            link.name
        );
        if config.pool.contains(route.source) {
            bail!(
                "{} is this machine's own address and one of those asked: use another --seed",
                route.source
            );
        }
        let server = netlink::resolve(link.index, route.gateway.unwrap_or(target), RESOLVE)?;

        // The kernel keeps the port for us, and gives it to nobody else.
        let port =
            UdpSocket::bind(SocketAddrV6::new(route.source, 0, 0, link.index)).context("no UDP port")?;
        let source_port = port.local_addr().context("no UDP port")?.port();
        ensure!(source_port != config.port, "the kernel chose the service port as ours: try again");
        let ends = Endpoints {
            source_mac: link.mac,
            destination_mac: server,
            source: route.source,
            source_port,
            service_port: config.port,
        };
        let template = Template::new(&ends, config.payload).map_err(anyhow::Error::msg)?;

        let count = ethtool::queues(&link.name)?;
        let mut program =
            Program::load(&ProgramConfig { port: source_port, addresses: 1, queues: count, hidden: false })?;
        program.add_prefix(Prefix::new(route.source, 128)?)?;
        program.live_addresses()?.add(&[route.source]).map_err(|(_, error)| error)?;
        let attachment = program.attach(&link, AttachRequest::Auto)?;
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;
        let mut queues = Vec::new();
        let mut free = Vec::new();
        for queue in 0..count {
            let sending = if queue == 0 { SEND_FRAMES } else { 0 };
            let (socket, rings, frames) = Socket::open(&SocketConfig {
                interface: &link.name,
                index: link.index,
                queue,
                copy: CopyRequest::Auto,
                frames: FRAMES,
                frame_size: if link.mtu <= 1500 { 2048 } else { 4096 },
                send_ring: SEND_FRAMES,
                fill: FRAMES - sending,
            })?;
            free.extend(frames);
            program.add_socket(queue, &socket)?;
            queues.push((rings, socket));
        }
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;
        Ok(Self { attachment, queues, _port: port, free, template, config, source_port })
    }

    /// How the client's program is attached, and how packets get into its rings: `Zero` only when all queues are.
    pub fn modes(&self) -> (AttachMode, CopyMode) {
        let zero = self.queues.iter().all(|(_, socket)| socket.mode() == CopyMode::Zero);
        (self.attachment.mode(), if zero { CopyMode::Zero } else { CopyMode::Copy })
    }

    /// Sends the requests of `run` and takes their replies. `show` is called now and then with the number sent,
    /// and once with all of them when the last was sent.
    ///
    /// Sending stops early when `stop` is set, or at twice the time planned and a second: the result says how many were sent.
    ///
    /// # Errors
    /// When the interface goes away.
    pub fn run(&mut self, run: Run, stop: &AtomicBool, mut show: impl FnMut(u64)) -> Result<LoadResult> {
        const SHOW: u64 = 100_000_000; // ns: smooth to the eye
        let Run { rate, requests } = run;
        let schedule = Schedule::new(rate, requests);
        let id = RandomState::new().build_hasher().finish(); // drawn by the standard library from the system's randomness
        let pool = self.config.pool.clone();
        let mut ledger = Ledger::new(id, pool, schedule, requests, self.config.replies, self.config.payload);
        let give_up = (2 * schedule.duration() + Duration::from_secs(1)).as_nanos() as u64;
        let (mut sent, mut late, mut last_sent, mut last_reply, mut shown) = (0, 0, 0, 0, 0);
        let mut look = 0;
        let start = Instant::now();
        loop {
            let now = start.elapsed().as_nanos() as u64;
            let sending = sent < requests && now < give_up && !stop.load(Ordering::Relaxed);
            let before = sent;
            // Also when nothing is due: the kernel may have left some of the last ones in the ring.
            sent = self.send(&ledger, sent, if sending { schedule.due_by(now) } else { sent })?;
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
                if self.receive(&mut ledger, start, sent)? {
                    last_reply = now;
                }
            }
            if !sending {
                if ledger.complete() == sent {
                    break;
                }
                if now > last_reply.max(last_sent) + QUIET.as_nanos() as u64 {
                    break;
                }
            }
        }
        // The interval after the last request belongs to it: then a generator in time achieves what was offered.
        let seconds = last_sent as f64 / 1e9 + 1.0 / rate;
        let (attach, copy) = self.modes();
        Ok(LoadResult {
            sent,
            outcome: ledger.close(),
            late,
            offered_rate: rate,
            achieved_rate: if sent == 0 { 0.0 } else { sent as f64 / seconds },
            attach,
            copy,
        })
    }

    /// Sends what is due of the requests from number `sent` on, as far as there is room, and returns the next number.
    #[inline]
    fn send(&mut self, ledger: &Ledger, mut sent: u64, due: u64) -> Result<u64> {
        let Some((rings, socket)) = self.queues.first_mut() else {
            return Ok(sent);
        };
        while let Some(frame) = rings.complete() {
            self.free.push(frame);
        }
        for _ in 0..BATCH {
            if sent >= due {
                break;
            }
            let Some(frame) = self.free.pop() else { break };
            let mut packet = rings.umem().blank(frame);
            let bytes = rings.bytes_mut(&mut packet);
            let length = self.template.write(bytes, ledger.destination(sent), ledger.stamp(sent));
            packet.truncate(length.unwrap_or(0));
            match rings.transmit(packet, 1) {
                Ok(()) => sent += 1,
                Err(packet) => {
                    self.free.push(rings.umem().recycle(packet));
                    break;
                }
            }
        }
        rings.publish();
        if rings.sender_sleeps() {
            socket.wake_sender().context("the interface is gone")?;
        }
        Ok(sent)
    }

    /// Takes replies from all queues and returns whether there were any.
    #[inline]
    fn receive(&mut self, ledger: &mut Ledger, start: Instant, sent: u64) -> Result<bool> {
        let mut any = false;
        for (rings, socket) in &mut self.queues {
            let mut now = None;
            for _ in 0..BATCH {
                let Some(mut packet) = rings.receive() else { break };
                // One reading for the batch: what came is there already, and reading the clock costs as much as a reply.
                let now = *now.get_or_insert_with(|| start.elapsed().as_nanos() as u64);
                match wire::validate(rings.bytes_mut(&mut packet), self.source_port) {
                    Ok(reply) if reply.source_port() == self.config.port => {
                        ledger.reply(reply.source(), reply.payload(), now, sent);
                    }
                    _ => ledger.damaged(),
                }
                // The fill ring is twice as large as the UMEM: it takes every frame.
                let _ = rings.discard(packet);
                any = true;
            }
            rings.publish();
            if rings.receiver_sleeps() {
                socket.wake_receiver().context("the interface is gone")?;
            }
        }
        Ok(any)
    }
}
