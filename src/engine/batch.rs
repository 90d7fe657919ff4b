//! Sockets, as well as they go: one pinned worker a processor, each with a socket of its own
//! (SO_REUSEPORT), takes what has come by one recvmmsg and hands over all replies by one sendmmsg.
//!
//! ```text
//!   recvmmsg ─► Handler, Service
//!      ├─► socket-batch   ten messages to each request ─► sendmmsg
//!      └─► socket-gso     one large one ─► sendmmsg, and the kernel
//!                         cuts it into ten (UDP_SEGMENT)
//! ```
//!
//! Ten equal replies to one peer are what UDP_SEGMENT is made for: they go through the stack as
//! one. It is the best that a plain socket server can do at this work, and the one that others are
//! to be compared with.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use super::outbox::{self, UdpOutbox};
use super::reply::{self, Reply};
use super::statistics::{Shown, Tally};
use super::udp::{self, SocketCounters};
use super::{About, CounterSet, Engine, EngineConfig, EngineError, EngineKind, Modes, pin};
use crate::host::sandbox::{Role, Sandbox};
use crate::net::datagrams::{BATCH, Incoming, MAX_MESSAGES, Message, Outgoing};
use crate::policy::Handler;
use crate::service::Service;
use crate::wire::{MAX_PAYLOAD, Refusal};

impl EngineKind {
    /// Many datagrams to a system call.
    pub const SOCKET_BATCH: Self = Self::named("socket-batch");
}

pub(super) const ABOUT: About = About {
    roles: &[Role::Socket],
    longest: udp::longest,
    ..About::new(
        EngineKind::SOCKET_BATCH,
        "Sockets with many datagrams to a system call, a worker for each processor",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(Batch::open(config, service, false)?))
}

pub(super) struct Batch<S> {
    workers: Vec<BatchWorker<S>>,
    rules: BatchRules,
    modes: Modes,
    sandbox: Sandbox,
}

/// What all workers go by.
struct BatchRules {
    handler: Handler,
    interface: u32,
    /// Bytes of payload that a reply may have.
    room: usize,
    /// Whether equal replies go as one that the kernel cuts.
    segments: bool,
}

struct BatchWorker<S> {
    service: S,
    socket: Arc<OwnedFd>,
    /// The processor that it is pinned to.
    core: Option<usize>,
    shown: Arc<Shown>,
}

impl<S: Service> Batch<S> {
    pub fn open(config: &EngineConfig, service: &S, segments: bool) -> Result<Self> {
        let sockets = udp::open_shared(config, config.cores.len())?;
        let cores = config.cores.iter().copied().map(Some);
        Ok(Self::of(config, service, sockets.into_iter().zip(cores), segments))
    }

    /// One worker on whatever processor, on a socket that no other shares, behind an engine that
    /// looks at frames.
    pub fn alone(config: &EngineConfig, service: &S) -> Result<Self> {
        let socket = Arc::new(udp::open(config, false)?);
        let mut batch = Self::of(config, service, [(socket, None)], false);
        batch.rules.handler = config.handler.clone().behind();
        Ok(batch)
    }

    fn of(
        config: &EngineConfig,
        service: &S,
        sockets: impl IntoIterator<Item = (Arc<OwnedFd>, Option<usize>)>,
        segments: bool,
    ) -> Self {
        let worker = |(socket, core)| BatchWorker {
            service: service.clone(),
            socket,
            core,
            shown: Arc::default(),
        };
        let workers: Vec<_> = sockets.into_iter().map(worker).collect();
        let modes = Modes {
            cores: config.cores.clone(),
            receive_buffer: workers.first().and_then(|worker| udp::receive_buffer(&worker.socket)),
            ..Modes::default()
        };
        Self {
            workers,
            rules: BatchRules {
                handler: config.handler.clone(),
                interface: config.link.index,
                room: reply::room(&config.link),
                segments,
            },
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
}

impl BatchRules {
    /// Receives and answers until `stop` is set.
    fn work<S: Service>(&self, mut worker: BatchWorker<S>, stop: &AtomicBool) -> Result<()> {
        if let Some(core) = worker.core {
            pin(core);
        }
        let mut incoming = Incoming::<libc::in6_pktinfo>::new();
        let mut outgoing = Outgoing::default();
        let mut tally = Tally::default();
        let mut last = false;
        let mut own = [0; MAX_PAYLOAD];
        while !last {
            if S::UNASKED && !stop.load(Ordering::Relaxed) {
                let buffer = &mut own[..self.room];
                if !self.speak(&mut worker, buffer, &mut tally)? {
                    continue;
                }
            }
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
            let count = count.min(BATCH);
            tally.received += count as u64;
            let mut copies = [0; BATCH];
            for (index, copies) in copies.iter_mut().enumerate().take(count) {
                match self.answer(&mut worker.service, &mut incoming, index) {
                    Some(Ok(reply)) => {
                        tally.answered += 1;
                        *copies = reply.copies.get().into();
                    }
                    Some(Err(refusal)) => tally.refused[refusal as usize] += 1,
                    None => tally.invalid += 1,
                }
            }
            // Its size is known only now; to allocate it costs nothing beside the two system calls.
            let most = if self.segments { count } else { copies.iter().sum() };
            let mut messages = Vec::with_capacity(most);
            for (index, copies) in copies.into_iter().enumerate().take(count) {
                self.add(&incoming, index, copies, &mut messages);
            }
            self.send(&worker.socket, &messages, &mut outgoing, &mut tally)?;
            worker.shown.store(&tally);
        }
        Ok(())
    }

    /// The service's turn to send without being asked, from `buffer`. Waits for requests until it
    /// wants the next, and returns whether there are any.
    fn speak<S: Service>(
        &self,
        worker: &mut BatchWorker<S>,
        buffer: &mut [u8],
        tally: &mut Tally,
    ) -> Result<bool> {
        let (handler, socket, interface) = (&self.handler, &*worker.socket, self.interface);
        let mut outbox = UdpOutbox { handler, socket, interface, buffer, tally };
        let wait = worker.service.turn(&mut outbox);
        worker.shown.store(tally);
        outbox::readable(&*worker.socket, wait)
    }

    /// Makes the reply to the request at `index`, in its place; `None` when the kernel does not say
    /// whom it was sent to.
    fn answer<S: Service>(
        &self,
        service: &mut S,
        incoming: &mut Incoming<libc::in6_pktinfo>,
        index: usize,
    ) -> Option<Result<Reply, Refusal>> {
        let asked = incoming.control(index, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
        let (source, asked) = (incoming.source(index), asked.ipi6_addr.s6_addr.into());
        if let Err(refusal) = self.handler.decide(source.0, source.1, asked) {
            return Some(Err(refusal));
        }
        let (buffer, length) = incoming.payload_mut(index);
        let buffer = &mut buffer[..self.room.max(length)];
        let reply = reply::to_payload(&self.handler, service, source, asked, buffer, length);
        if let Ok(reply) = &reply {
            incoming.set_length(index, reply.length);
        }
        Some(reply)
    }

    /// Adds so many replies to the request at `index`.
    fn add<'a>(
        &self,
        incoming: &'a Incoming<libc::in6_pktinfo>,
        index: usize,
        copies: usize,
        messages: &mut Vec<Message<'a>>,
    ) {
        let asked = incoming.control(index, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO);
        let Some(libc::in6_pktinfo { ipi6_addr, .. }) = asked else { return };
        let payload = incoming.payload(index);
        let most = if self.segments { udp::segments(payload.len()) } else { 1 };
        let from = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: self.interface as _ };
        let mut left = copies;
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
        socket: &OwnedFd,
        messages: &[Message],
        outgoing: &mut Outgoing,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut rest = messages;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(MAX_MESSAGES)];
            let (sent, went) = match outgoing.send(socket, some, 0) {
                Ok(sent) => (sent.min(some.len()), true),
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
                Err(error) if self.segments && error.raw_os_error() == Some(libc::EIO) => {
                    return Err(error).context(EngineError::CutsNone);
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

impl<S: Service> Engine for Batch<S> {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        Ok(Box::new(self.socket_counters()))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self { workers, rules, sandbox, .. } = *self;
        udp::run(workers, (sandbox, Role::Socket), stop, |worker| rules.work(worker, stop))
    }
}
