//! Packet sockets through memory that is shared with the kernel: requests are read, and become
//! replies, where the kernel put them, and one system call sends what a batch of them gave.
//!
//! ```text
//!   RX_RING ─► Handler, Service, in place ─► TX_RING: equal replies as one frame ─► send
//!      ─► cut into ten
//!                                       └─► where the kernel cuts none: ten frames ─► send
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, getsockopt, send, sockopt};

use super::behind::Behind;
use super::outbox::{self, FrameOutbox, FrameSender};
use super::packet::{self, Bundle, HEAD, PacketCounters, Tap};
use super::reply;
use super::statistics::{Shown, Tally};
use super::tpacket::{RxRing, TPacket, TxRing};
use super::udp;
use super::{
    About, CounterSet, Engine, EngineConfig, EngineKind, Follower, LinkAddress, Modes, pin,
};
use crate::host::sandbox::{Role, Sandbox};
use crate::policy::Handler;
use crate::service::Service;
use crate::wire::{MAX_PAYLOAD, OVERHEAD};

/// Requests that are answered before the kernel is asked to send: the first reply of a batch is not
/// to wait long for its last.
const BATCH: usize = 64;

/// Bytes of payload that a slot of the tx ring has room for where the kernel cuts: ten replies as
/// long as an Ethernet frame allows.
const SLOT: usize = 10 * MAX_PAYLOAD;

/// A worker that found nothing to do looks again for this long before it sleeps, as one of afxdp
/// does.
const PATIENCE: Duration = Duration::from_micros(50);

/// A sleeping worker looks up this often while replies wait: nothing announces that there is room
/// for them again.
const NAP: Duration = Duration::from_millis(1);

impl EngineKind {
    /// Memory-mapped packet sockets.
    pub const PACKET_RING: Self = Self::named("packet-ring");
}

pub(super) const ABOUT: About = About {
    sees_frames: true,
    shares_frames: true,
    segments: true,
    capabilities: &["CAP_NET_ADMIN", "CAP_NET_RAW"],
    roles: &[Role::Packet],
    ways: &[("tpacket", "v3")],
    ..About::new(
        EngineKind::PACKET_RING,
        "The same through memory that is shared with the kernel (PACKET_RX_RING, PACKET_TX_RING): \
         no copy out of it per request",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(PacketRing::open(config, service)?))
}

/// Options of packet-ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::Args), group(skip))]
#[cfg_attr(feature = "cli", command(next_help_heading = "Engine"))]
pub struct Options {
    /// Layout of the rings of packet-ring
    #[cfg_attr(feature = "cli", arg(long, value_name = "VERSION", default_value = "v2"))]
    pub tpacket: TPacket,
}

pub(super) struct PacketRing<S> {
    workers: Vec<PacketRingWorker<S>>,
    modes: Modes,
    sandbox: Sandbox,
    behind: Behind<S>,
    /// The MTU that the buffers were made for.
    mtu: u32,
    own: LinkAddress,
}

struct PacketRingWorker<S> {
    service: S,
    /// Where a request lies while a service that may change it answers: behind one in the ring
    /// there is no room.
    scratch: Box<[u8]>,
    /// Where what nobody asked for is put together.
    frame: Box<[u8]>,
    /// The interface's Ethernet address.
    own: LinkAddress,
    /// How long the service can wait for its next turn.
    wait: Duration,
    tap: Arc<Tap>,
    rx: RxRing,
    sender: Sender,
    handler: Handler,
    interface: String,
    core: usize,
    tally: Tally,
    shown: Arc<Shown>,
}

struct Sender {
    socket: OwnedFd,
    tx: TxRing,
    /// Whether the kernel cuts.
    cuts: bool,
}

impl<S: Service> PacketRing<S> {
    pub fn open(config: &EngineConfig, service: &S) -> Result<Self> {
        let EngineConfig { link, handler, .. } = config;
        let version = &config.options.packet_ring.tpacket;
        let behind = Behind::taps(config, service)?;
        let own = LinkAddress::from(link.mac);
        let largest = packet::largest_frame(link);
        let open = |&core: &usize| {
            let tap = Tap::open()?;
            let rx = RxRing::map(&tap.socket, *version, largest)
                .with_context(|| format!("no receive ring of {version}"))?;
            let (socket, cuts) = packet::sender(link)?;
            // Before a frame stands what says how it is to be cut.
            let room = HEAD + if cuts { largest.max(SLOT) } else { largest };
            let tx = TxRing::map(&socket, *version, room)
                .with_context(|| format!("no send ring of {version}"))?;
            Ok(PacketRingWorker {
                service: service.clone(),
                scratch: vec![0; if S::UNCHANGED { 0 } else { largest }].into(),
                frame: vec![0; if S::UNASKED { OVERHEAD + reply::room(link) } else { 0 }].into(),
                own: own.clone(),
                wait: Duration::MAX,
                tap,
                rx,
                sender: Sender { socket, tx, cuts },
                handler: handler.clone(),
                interface: link.name.clone(),
                core,
                tally: Tally::default(),
                shown: Arc::default(),
            })
        };
        let workers: Vec<_> = config.cores.iter().map(open).collect::<Result<_>>()?;
        let taps: Vec<_> = workers.iter().map(|worker| worker.tap.clone()).collect();
        packet::listen(&taps, link, handler.port())?;
        let modes = Modes {
            cores: config.cores.clone(),
            segmentation: Some(workers.iter().all(|worker| worker.sender.cuts)),
            tpacket: Some(*version),
            ..Modes::default()
        };
        Ok(Self { workers, modes, sandbox: config.sandbox, behind, mtu: link.mtu, own })
    }
}

impl<S: Service> Engine for PacketRing<S> {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        let workers = self.workers.iter();
        let (taps, shown) =
            workers.map(|worker| (worker.tap.clone(), worker.shown.clone())).unzip();
        Ok(Box::new(PacketCounters { taps, shown, behind: self.behind.counters() }))
    }

    fn follower(&self) -> Option<Box<dyn Follower>> {
        Some(self.behind.follower(self.mtu, self.own.clone()))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self { workers, behind, sandbox, .. } = *self;
        let work = |mut worker: PacketRingWorker<S>| {
            let interface = worker.interface.clone();
            worker.work(stop).map_err(|error| packet::fatal(error, &interface))
        };
        behind.beside(stop, || udp::run(workers, (sandbox, Role::Packet), stop, work))
    }
}

impl<S: Service> PacketRingWorker<S> {
    /// Receives and answers until `stop` is set.
    fn work(&mut self, stop: &AtomicBool) -> io::Result<()> {
        pin(self.core);
        let mut idle_since = None;
        while !stop.load(Ordering::Relaxed) {
            if self.turn()? {
                self.tally.invalid = self.rx.invalid() + self.sender.tx.invalid();
                self.shown.store(&self.tally);
                idle_since = None;
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= PATIENCE {
                self.shown.beat();
                self.sleep()?;
                idle_since = None;
            }
        }
        if self.sender.tx.is_waiting() {
            self.sender.kick(MsgFlags::empty())?;
        }
        Ok(())
    }

    /// Answers what has come, and returns whether there was anything.
    fn turn(&mut self) -> io::Result<bool> {
        let Self { rx, sender, handler, service, scratch, tally, .. } = self;
        let mut taken = 0;
        while taken < BATCH {
            let Some(mut handed) = rx.next() else { break };
            while let Some(frame) = handed.packet() {
                tally.received += 1;
                let length = frame.len();
                let buffer = if S::UNCHANGED { frame } else { with_room(frame, scratch) };
                match reply::to_frame(handler, service, buffer, length) {
                    Ok(reply) => {
                        tally.answered += 1;
                        let copies = reply.copies.get().into();
                        sender.send(&buffer[..reply.length], copies, tally)?;
                    }
                    Err(refusal) => tally.refused[refusal as usize] += 1,
                }
                taken += 1;
                // A block may hold many of them.
                if taken % BATCH == 0 {
                    sender.kick(MsgFlags::MSG_DONTWAIT)?;
                }
            }
        }
        let spoke = S::UNASKED && self.speak();
        if self.sender.tx.is_waiting() {
            self.sender.kick(MsgFlags::MSG_DONTWAIT)?;
        }
        Ok(taken > 0 || spoke)
    }

    /// The service's turn to send without being asked. Returns whether it did.
    fn speak(&mut self) -> bool {
        let Self { service, sender, handler, own, frame, tally, .. } = self;
        let before = tally.unasked;
        let sender = Turn { sender, left: BATCH };
        self.wait = service.turn(&mut FrameOutbox { handler, own, frame, tally, sender });
        self.tally.unasked > before
    }

    /// Waits for requests.
    fn sleep(&self) -> io::Result<()> {
        let limit = if self.sender.tx.is_waiting() { NAP } else { outbox::nap(self.wait) };
        let mut tap = [PollFd::new(self.tap.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut tap, PollTimeout::try_from(limit).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        if tap[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR)) {
            let error = getsockopt(&self.tap.socket, sockopt::SocketError)?;
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
        }
        Ok(())
    }
}

/// `frame`, copied to where there is room behind it; itself where there is none.
fn with_room<'a>(frame: &'a mut [u8], scratch: &'a mut [u8]) -> &'a mut [u8] {
    let Some(place) = scratch.get_mut(..frame.len()) else { return frame };
    place.copy_from_slice(frame);
    let room = (OVERHEAD + MAX_PAYLOAD).max(frame.len()).min(scratch.len());
    &mut scratch[..room]
}

/// What one turn of a service may put into the ring. It never waits for room: the worker asks the
/// kernel to send after the turn.
struct Turn<'a> {
    sender: &'a mut Sender,
    /// So many, that replies find room behind them.
    left: usize,
}

impl FrameSender for Turn<'_> {
    fn has_room(&mut self) -> bool {
        self.left > 0 && self.sender.tx.slot().is_some()
    }

    fn hand_over(&mut self, frame: &[u8]) -> bool {
        self.left -= 1;
        let Sender { tx, cuts, .. } = &self.sender;
        let mut bundles = packet::bundles(frame, 1, *cuts, tx.room());
        bundles.all(|bundle| self.sender.put(&bundle))
    }
}

impl Sender {
    /// Puts the replies into the ring. When there is no room, it waits until the kernel is through
    /// with what is in it.
    fn send(&mut self, reply: &[u8], copies: usize, tally: &mut Tally) -> io::Result<()> {
        for bundle in packet::bundles(reply, copies, self.cuts, self.tx.room()) {
            let mut is_in = self.put(&bundle);
            if !is_in {
                self.kick(MsgFlags::empty())?;
                is_in = self.put(&bundle);
            }
            *(if is_in { &mut tally.replies } else { &mut tally.unsent }) += bundle.copies as u64;
        }
        Ok(())
    }

    fn put(&mut self, bundle: &Bundle) -> bool {
        let Some(mut slot) = self.tx.slot() else { return false };
        let room = slot.bytes();
        let all = room.len();
        let mut rest = room;
        let parts = std::iter::once(bundle.head())
            .chain(std::iter::repeat_n(bundle.payload, bundle.copies));
        for part in parts {
            if rest.write_all(part).is_err() {
                return false;
            }
        }
        let length = all - rest.len();
        slot.send(length);
        true
    }

    /// Asks the kernel to send what is in the ring. Without MSG_DONTWAIT, waits until it has, or
    /// for [`DOZE`](udp::DOZE).
    fn kick(&self, flags: MsgFlags) -> io::Result<()> {
        match send(self.socket.as_raw_fd(), &[], flags) {
            Err(error @ (Errno::ENETDOWN | Errno::ENXIO)) => Err(error.into()),
            // What it did not take stays in the ring, and is tried again.
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::service::{Outbox, Peer, Unsent};
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn a_turn_of_a_service_ends_where_the_ring_is_full_or_it_had_its_share() {
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap();
        let source = ("2001:db8:1::1".parse().unwrap(), 50_000);
        let peer = Peer { source, asked: pool.address(3), mac: Some([2; 6]) };
        let handler = Handler::new(3540, pool, vec![]);
        let (own, mut tally) = (LinkAddress::from([4; 6]), Tally::default());
        for (units, share, fit) in [(3, 64, 3), (8, 2, 2)] {
            for cuts in [false, true] {
                let socket = UnixDatagram::unbound().unwrap().into();
                let tx = TxRing::without_kernel(TPacket::V2, 2048, units).unwrap();
                let mut sender = Sender { socket, tx, cuts };
                let mut outbox = FrameOutbox {
                    handler: &handler,
                    own: &own,
                    frame: &mut [0; OVERHEAD + 100],
                    tally: &mut tally,
                    sender: Turn { sender: &mut sender, left: share },
                };
                for _ in 0..fit {
                    assert_eq!(outbox.send(&peer, |_| 100), Ok(()));
                }
                assert_eq!(outbox.send(&peer, |_| panic!("it writes")), Err(Unsent::Busy));
                assert!(sender.tx.is_waiting());
            }
        }
        assert_eq!((tally.unasked, tally.unsent), (10, 0));
    }
}
