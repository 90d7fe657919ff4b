//! Sockets, as well as they go: one pinned worker a processor, each with a socket of its own
//! (SO_REUSEPORT), takes what has come by one recvmmsg and hands over all replies by one sendmmsg.
//!
//! ```text
//!   recvmmsg ─► Handler ─► socket-batch   ten messages to each request ─► sendmmsg
//!                      └─► socket-gso     one large one ─► sendmmsg, and the kernel
//!                                         cuts it into ten (UDP_SEGMENT)
//! ```
//!
//! Ten equal replies to one peer are what UDP_SEGMENT is made for: they go through the stack as
//! one. It is the best that a plain socket server can do at this work, and the one that others are
//! to be compared with.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use super::statistics::{Shown, Tally};
use super::udp::{self, SocketCounters};
use super::{CounterSet, Engine, EngineConfig, Modes, pin};
use crate::host::sandbox::{Role, Sandbox};
use crate::net::datagrams::{BATCH, Incoming, MAX_MESSAGES, Message, Outgoing};
use crate::policy::Handler;

pub(super) struct Batch {
    workers: Vec<Worker>,
    handler: Handler,
    replies: usize,
    interface: u32,
    /// Whether equal replies go as one that the kernel cuts.
    segments: bool,
    modes: Modes,
    sandbox: Sandbox,
}

struct Worker {
    socket: Arc<OwnedFd>,
    /// The processor that it is pinned to.
    core: Option<usize>,
    shown: Arc<Shown>,
}

impl Batch {
    pub fn open(config: &EngineConfig, segments: bool) -> Result<Self> {
        let sockets = udp::open_shared(config, config.cores.len())?;
        let cores = config.cores.iter().copied().map(Some);
        Ok(Self::of(config, sockets.into_iter().zip(cores), segments))
    }

    /// One worker on whatever processor, on a socket that no other shares, behind an engine that
    /// looks at frames.
    pub fn alone(config: &EngineConfig) -> Result<Self> {
        let socket = Arc::new(udp::open(config, false)?);
        let batch = Self::of(config, [(socket, None)], false);
        Ok(Self { handler: config.handler.clone().behind(), ..batch })
    }

    fn of(
        config: &EngineConfig,
        sockets: impl IntoIterator<Item = (Arc<OwnedFd>, Option<usize>)>,
        segments: bool,
    ) -> Self {
        let worker = |(socket, core)| Worker { socket, core, shown: Arc::default() };
        let workers: Vec<_> = sockets.into_iter().map(worker).collect();
        let modes = Modes {
            cores: config.cores.clone(),
            receive_buffer: workers.first().and_then(|worker| udp::receive_buffer(&worker.socket)),
            ..Modes::default()
        };
        Self {
            workers,
            handler: config.handler.clone(),
            replies: config.replies.into(),
            interface: config.link.index,
            segments,
            modes,
            sandbox: config.sandbox,
        }
    }

    /// What it counts.
    pub fn socket_counters(&self) -> SocketCounters {
        let workers = self.workers.iter();
        let (sockets, shown) =
            workers.map(|worker| (worker.socket.clone(), worker.shown.clone())).unzip();
        SocketCounters { sockets, shown }
    }

    /// Receives and answers until `stop` is set.
    fn work(&self, worker: &Worker, stop: &AtomicBool) -> Result<()> {
        if let Some(core) = worker.core {
            pin(core);
        }
        let mut incoming = Incoming::<libc::in6_pktinfo>::new();
        let mut outgoing = Outgoing::default();
        let mut tally = Tally::default();
        let mut last = false;
        while !last {
            // What waits when it is to stop came before that: it is taken, once.
            last = stop.load(Ordering::Relaxed);
            // Waits for the first, and takes what else there is.
            let wait = if last { libc::MSG_DONTWAIT } else { libc::MSG_WAITFORONE };
            let count = match incoming.receive(&*worker.socket, wait) {
                Ok(count) => count,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                    worker.shown.beat();
                    continue;
                }
                Err(error) => return Err(error).context("cannot receive"),
            };
            // Its size is known only now; to allocate it costs nothing beside the two system calls.
            tally.received += count.min(BATCH) as u64;
            let mut messages =
                Vec::with_capacity(count * if self.segments { 1 } else { self.replies });
            for index in 0..count.min(BATCH) {
                self.answer(&incoming, index, &mut messages, &mut tally);
            }
            self.send(worker, &messages, &mut outgoing, &mut tally)?;
            worker.shown.store(&tally);
        }
        Ok(())
    }

    /// Adds the replies to the request at `index`, if it is to have any.
    fn answer<'a>(
        &self,
        incoming: &'a Incoming<libc::in6_pktinfo>,
        index: usize,
        messages: &mut Vec<Message<'a>>,
        tally: &mut Tally,
    ) {
        let asked = incoming.control(index, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
        let Some(libc::in6_pktinfo { ipi6_addr, .. }) = asked else {
            tally.invalid += 1;
            return;
        };
        let (source, port) = incoming.source(index);
        if let Err(refusal) = self.handler.decide(source, port, ipi6_addr.s6_addr.into()) {
            tally.refused[refusal as usize] += 1;
            return;
        }
        tally.answered += 1;
        let payload = incoming.payload(index);
        let most = if self.segments { udp::segments(payload.len()) } else { 1 };
        let from = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: self.interface as _ };
        let mut left = self.replies;
        while left > 0 {
            let copies = left.min(most);
            messages.push(Message {
                payload,
                peer: *incoming.peer(index),
                source: Some(from),
                copies,
            });
            left -= copies;
        }
    }

    fn send(
        &self,
        worker: &Worker,
        messages: &[Message],
        outgoing: &mut Outgoing,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut rest = messages;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(MAX_MESSAGES)];
            let (sent, went) = match outgoing.send(&*worker.socket, some, 0) {
                Ok(sent) => (sent.min(some.len()), true),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) if self.segments && error.raw_os_error() == Some(libc::EIO) => {
                    return Err(error).context(udp::CUTS_NONE);
                }
                // That one does not go; those behind it may.
                Err(_) => (1, false),
            };
            let (done, left) = rest.split_at(sent.max(1));
            let replies: usize = done.iter().map(|message| message.copies).sum();
            *(if went { &mut tally.replies } else { &mut tally.unsent }) += replies as u64;
            rest = left;
        }
        Ok(())
    }
}

impl Engine for Batch {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        Ok(Box::new(self.socket_counters()))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        udp::run(&self.workers, (self.sandbox, Role::Socket), stop, |worker| {
            self.work(worker, stop)
        })
    }
}
