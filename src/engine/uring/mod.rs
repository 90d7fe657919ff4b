//! Sockets by io_uring: one receive stands and brings each request in a buffer of its own
//! (multishot, provided buffers), and replies are sent from that same buffer. A turn of a worker is
//! one system call, which submits the replies to what came in the turn before.
//!
//! ```text
//!   recvmsg, multishot ─► completions ─► Handler, Service
//!      ─► sendmsg of equal replies as one (UDP_SEGMENT) ─► completions ─► buffer is free
//!                         Service, unasked ─► sendmsg ─► completions ─► its own buffer is free
//! ```
//!
//! One ring, one socket (SO_REUSEPORT) and one pinned thread for each processor.

mod ring;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::outbox;
use super::reply::{self, Reply};
use super::statistics::{Shown, Tally};
use super::udp::{self, DOZE, SocketCounters};
use super::{About, CounterSet, Engine, EngineConfig, EngineError, EngineKind, Modes, pin};
use crate::host::sandbox::{Role, Sandbox};
use crate::net::datagrams;
use crate::policy::Handler;
use crate::service::{Outbox, Peer, Service, Unsent};
use ring::{Completion, DatagramRing, Received};

/// Buffers of a worker, a power of two. The kernel hands over 32 requests at once
/// (MULTISHOT_MAX_RETRY): this is room for those whose replies wait for the card, and little enough
/// to stay in a processor's cache. More requests wait in the socket.
const BUFFERS: u16 = 256;

/// Buffers besides, for what a service sends without being asked. Requests and replies never use
/// them, and these never use those of replies.
const KEPT: u16 = 64;

impl EngineKind {
    /// io_uring.
    pub const URING: Self = Self::named("uring");
}

pub(super) const ABOUT: About = About {
    shares_frames: true,
    roles: &[Role::Uring],
    longest: udp::longest,
    ..About::new(
        EngineKind::URING,
        "io_uring: requests come without being asked for one by one, replies leave as with \
         socket-gso",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(Uring::open(config, service)?))
}

pub(super) struct Uring<S> {
    workers: Vec<UringWorker<S>>,
    rules: Rules,
    modes: Modes,
    sandbox: Sandbox,
}

/// What all workers go by.
struct Rules {
    handler: Handler,
    interface: u32,
    /// Bytes of payload that a reply may have.
    room: usize,
}

struct UringWorker<S> {
    service: S,
    ring: DatagramRing,
    socket: Arc<OwnedFd>,
    core: usize,
    shown: Arc<Shown>,
}

impl<S: Service> Uring<S> {
    pub fn open(config: &EngineConfig, service: &S) -> Result<Self> {
        let sockets = udp::open_shared(config, config.cores.len())?;
        let worker = |(socket, &core): (Arc<OwnedFd>, &usize)| {
            let kept = if S::UNASKED { KEPT } else { 0 };
            let ring = DatagramRing::open(socket.clone(), BUFFERS, kept)?;
            Ok(UringWorker { service: service.clone(), ring, socket, core, shown: Arc::default() })
        };
        let workers: Vec<_> =
            sockets.into_iter().zip(&config.cores).map(worker).collect::<Result<_>>()?;
        let modes = Modes {
            cores: config.cores.clone(),
            receive_buffer: workers.first().and_then(|worker| udp::receive_buffer(&worker.socket)),
            ..Modes::default()
        };
        let rules = Rules {
            handler: config.handler.clone(),
            interface: config.link.index,
            room: reply::room(&config.link),
        };
        Ok(Self { workers, rules, modes, sandbox: config.sandbox })
    }
}

impl Rules {
    /// Receives and answers until `stop` is set. The ring ends on the thread that has used it.
    fn work<S: Service>(&self, worker: UringWorker<S>, stop: &AtomicBool) -> Result<()> {
        let UringWorker { mut service, mut ring, core, shown, .. } = worker;
        pin(core);
        ring.enable()?;
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) {
            let wait = self.speak(&mut service, &mut ring, &mut tally);
            self.turn(&mut service, &mut ring, wait, &mut tally)?;
            shown.store(&tally);
        }
        ring.close()?;
        while ring.is_busy() {
            // What was received is answered. A reply that the card does not take for so long is not
            // waited for.
            if !self.turn(&mut service, &mut ring, DOZE, &mut tally)? {
                ring.cancel_all()?;
            }
        }
        tally.frames_lost += u64::from(ring.out());
        shown.store(&tally);
        Ok(())
    }

    /// The turn of a service that sends without being asked. Returns how long to wait for the next.
    fn speak<S: Service>(
        &self,
        service: &mut S,
        ring: &mut DatagramRing,
        tally: &mut Tally,
    ) -> Duration {
        if !S::UNASKED {
            return DOZE;
        }
        outbox::nap(service.turn(&mut RingOutbox { rules: self, ring, tally }))
    }

    /// Waits for something to happen, and does what is to be done about it; `false` when nothing
    /// has for `limit`.
    fn turn<S: Service>(
        &self,
        service: &mut S,
        ring: &mut DatagramRing,
        limit: Duration,
        tally: &mut Tally,
    ) -> Result<bool> {
        let happened = ring.wait(limit)?;
        // More may come meanwhile, without an end: a turn has one.
        for _ in 0..BUFFERS {
            let Some(event) = ring.next()? else { break };
            match event {
                Completion::Request(request) => {
                    tally.received += 1;
                    self.answer(service, request, ring, tally)?;
                }
                Completion::Sent(replies, Ok(())) => tally.replies += replies as u64,
                Completion::Sent(_, Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Err(error).context(EngineError::CutsNone);
                }
                Completion::Sent(replies, Err(_)) => tally.unsent += replies as u64,
                Completion::Unasked(Ok(())) => tally.unasked += 1,
                Completion::Unasked(Err(_)) => tally.unsent += 1,
                Completion::Invalid => tally.invalid += 1,
            }
        }
        Ok(happened)
    }

    fn answer<S: Service>(
        &self,
        service: &mut S,
        mut request: Received,
        ring: &mut DatagramRing,
        tally: &mut Tally,
    ) -> Result<()> {
        let libc::in6_pktinfo { ipi6_addr, .. } = request.asked;
        let (source, asked) = ((request.source, request.source_port), ipi6_addr.s6_addr.into());
        let reply = self.handler.decide(source.0, source.1, asked).and_then(|()| {
            let (buffer, length) = ring.payload_mut(&mut request);
            let room = self.room.max(length).min(buffer.len());
            let buffer = &mut buffer[..room];
            reply::to_payload(&self.handler, service, source, asked, buffer, length)
        });
        match reply {
            Ok(Reply { length, copies }) => {
                tally.answered += 1;
                let from = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: self.interface as _ };
                ring.reply(request, from, length, copies.get().into())
            }
            Err(refusal) => {
                tally.refused[refusal as usize] += 1;
                ring.put_back(request)
            }
        }
    }
}

/// What a service sends by: operations of the worker's ring, which the next turn submits.
struct RingOutbox<'a> {
    rules: &'a Rules,
    ring: &'a mut DatagramRing,
    tally: &'a mut Tally,
}

impl Outbox for RingOutbox<'_> {
    fn send(&mut self, peer: &Peer, write: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Unsent> {
        let Rules { handler, interface, room } = self.rules;
        outbox::by_socket(handler, peer)?;
        let (address, port) = peer.source;
        let from = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: peer.asked.octets() },
            ipi6_ifindex: *interface as _,
        };
        let ends = (datagrams::peer(address, port, *interface), from);
        let sent = self.ring.send_to(ends, *room, write);
        self.tally.unsent += u64::from(sent == Err(Unsent::Refused));
        sent
    }
}

impl<S: Service> Engine for Uring<S> {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        let workers = self.workers.iter();
        let (sockets, shown) =
            workers.map(|worker| (worker.socket.clone(), worker.shown.clone())).unzip();
        Ok(Box::new(SocketCounters { sockets, shown }))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self { workers, rules, sandbox, .. } = *self;
        udp::run(workers, (sandbox, Role::Uring), stop, |worker| rules.work(worker, stop))
    }
}
