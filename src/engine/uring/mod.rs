//! Sockets by io_uring: one receive stands and brings each request in a buffer of its own
//! (multishot, provided buffers), and replies are sent from that same buffer. A turn of a worker is
//! one system call, which submits the replies to what came in the turn before.
//!
//! ```text
//!   recvmsg, multishot ─► completions ─► Handler ─► sendmsg of equal replies as one (UDP_SEGMENT)
//!      ─► completions ─► buffer is free
//! ```
//!
//! One ring, one socket (SO_REUSEPORT) and one pinned thread for each processor.

mod ring;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use super::statistics::{Shown, Tally};
use super::udp::{self, SocketCounters};
use super::{CounterSet, Engine, EngineConfig, Modes, pin};
use crate::host::sandbox::{Role, Sandbox};
use crate::policy::Handler;
use ring::{Event, Request, Ring};

/// Buffers of a worker, a power of two. The kernel hands over 32 requests at once
/// (MULTISHOT_MAX_RETRY): this is room for those whose replies wait for the card, and little enough
/// to stay in a processor's cache. More requests wait in the socket.
const BUFFERS: u16 = 256;

pub(super) struct Uring {
    workers: Vec<Worker>,
    service: Service,
    modes: Modes,
    sandbox: Sandbox,
}

/// What all workers answer by.
struct Service {
    handler: Handler,
    replies: usize,
    interface: u32,
}

struct Worker {
    ring: Ring,
    socket: Arc<OwnedFd>,
    core: usize,
    shown: Arc<Shown>,
}

impl Uring {
    pub fn open(config: &EngineConfig) -> Result<Self> {
        let sockets = udp::open_shared(config, config.cores.len())?;
        let worker = |(socket, &core): (Arc<OwnedFd>, &usize)| {
            let ring = Ring::open(socket.clone(), BUFFERS)?;
            Ok(Worker { ring, socket, core, shown: Arc::default() })
        };
        let workers: Vec<_> =
            sockets.into_iter().zip(&config.cores).map(worker).collect::<Result<_>>()?;
        let modes = Modes {
            cores: config.cores.clone(),
            receive_buffer: workers.first().and_then(|worker| udp::receive_buffer(&worker.socket)),
            ..Modes::default()
        };
        let service = Service {
            handler: config.handler.clone(),
            replies: config.replies.into(),
            interface: config.link.index,
        };
        Ok(Self { workers, service, modes, sandbox: config.sandbox })
    }
}

impl Service {
    /// Receives and answers until `stop` is set. The ring ends on the thread that has used it.
    fn work(&self, worker: Worker, stop: &AtomicBool) -> Result<()> {
        let Worker { mut ring, core, shown, .. } = worker;
        pin(core);
        ring.enable()?;
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) {
            self.turn(&mut ring, &mut tally)?;
            shown.store(&tally);
        }
        ring.close()?;
        while ring.is_busy() {
            // What was received is answered. A reply that the card does not take for so long is not
            // waited for.
            if !self.turn(&mut ring, &mut tally)? {
                ring.cancel_all()?;
            }
        }
        tally.frames_lost += u64::from(ring.out());
        shown.store(&tally);
        Ok(())
    }

    /// Waits for something to happen, and does what is to be done about it; `false` when nothing
    /// has for a while.
    fn turn(&self, ring: &mut Ring, tally: &mut Tally) -> Result<bool> {
        let happened = ring.wait()?;
        // More may come meanwhile, without an end: a turn has one.
        for _ in 0..BUFFERS {
            let Some(event) = ring.next()? else { break };
            match event {
                Event::Request(request) => {
                    tally.received += 1;
                    self.answer(request, ring, tally)?;
                }
                Event::Sent(replies, Ok(())) => tally.replies += replies as u64,
                Event::Sent(_, Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Err(error).context(udp::CUTS_NONE);
                }
                Event::Sent(replies, Err(_)) => tally.unsent += replies as u64,
                Event::Invalid => tally.invalid += 1,
            }
        }
        Ok(happened)
    }

    fn answer(&self, request: Request, ring: &mut Ring, tally: &mut Tally) -> Result<()> {
        let libc::in6_pktinfo { ipi6_addr, .. } = request.asked;
        match self.handler.decide(request.source, request.source_port, ipi6_addr.s6_addr.into()) {
            Ok(()) => {
                tally.answered += 1;
                let from = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: self.interface as _ };
                ring.reply(request, from, self.replies)
            }
            Err(refusal) => {
                tally.refused[refusal as usize] += 1;
                ring.put_back(request)
            }
        }
    }
}

impl Engine for Uring {
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
        let Self { workers, service, sandbox, .. } = *self;
        udp::run(workers, (sandbox, Role::Uring), stop, |worker| service.work(worker, stop))
    }
}
