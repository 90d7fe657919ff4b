//! Sockets, as well as they go: one pinned worker a processor, each with a socket of its own (SO_REUSEPORT), takes what has come by
//! one recvmmsg and hands over all replies by one sendmmsg.
//!
//! ```text
//!   recvmmsg ─► Handler ─► socket-batch   ten messages to each request  ─► sendmmsg
//!                      └─► socket-gso     one large one, which the kernel cuts into ten (UDP_SEGMENT) ─► sendmmsg
//! ```
//!
//! Ten equal replies to one peer are what UDP_SEGMENT is made for: they go through the stack as one. It is the best that a plain
//! socket server can do at this work, and the one that others are to be compared with.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::handler::Handler;
use super::statistics::{Shown, Tally};
use super::udp::{self, SocketCounters};
use super::{CounterSet, Engine, EngineConfig, Modes, pin};
use crate::datagrams::{BATCH, Incoming, MAX_MESSAGES, Message, Outgoing};

/// Datagrams that the kernel cuts a large one into at most (UDP_MAX_SEGMENTS of Linux before 6.7).
const MAX_SEGMENTS: usize = 64;

/// Bytes that they carry together at most: the largest datagram.
const MAX_BYTES: usize = u16::MAX as usize - 8 - 40;

/// How many datagrams that carry `length` bytes each the kernel cuts a large one into at most, at least 1.
pub(super) fn most_segments(length: usize) -> usize {
    // An empty datagram cannot be cut into empty ones.
    MAX_BYTES.checked_div(length).map_or(1, |fit| fit.clamp(1, MAX_SEGMENTS))
}

pub(super) struct Batch {
    workers: Vec<Worker>,
    handler: Handler,
    replies: usize,
    interface: u32,
    /// Whether equal replies go as one that the kernel cuts.
    segments: bool,
    modes: Modes,
}

struct Worker {
    socket: Arc<OwnedFd>,
    core: usize,
    shown: Arc<Shown>,
}

impl Batch {
    pub fn open(config: &EngineConfig, segments: bool) -> Result<Self> {
        // Sockets that share a port share it with those of any other server of this user: that there is none shows this one.
        drop(udp::open(config, false)?);
        let open = |&core: &usize| {
            let socket = Arc::new(udp::open(config, true)?);
            Ok(Worker { socket, core, shown: Arc::default() })
        };
        let workers: Vec<_> = config.cores.iter().map(open).collect::<Result<_>>()?;
        let modes = Modes {
            cores: config.cores.clone(),
            receive_buffer: workers.first().and_then(|worker| udp::receive_buffer(&worker.socket)),
            ..Modes::default()
        };
        Ok(Self {
            workers,
            handler: config.handler.clone(),
            replies: config.replies.into(),
            interface: config.link.index,
            segments,
            modes,
        })
    }

    /// Receives and answers until `stop` is set.
    fn work(&self, worker: &Worker, stop: &AtomicBool) -> Result<()> {
        pin(worker.core);
        let mut incoming = Incoming::<libc::in6_pktinfo>::new();
        let mut outgoing = Outgoing::default();
        let mut tally = Tally::default();
        while !stop.load(Ordering::Relaxed) {
            // Waits for the first, and takes what else there is.
            let count = match incoming.receive(&*worker.socket, libc::MSG_WAITFORONE) {
                Ok(count) => count,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => continue,
                Err(error) => return Err(error).context("cannot receive"),
            };
            // Its size is known only now; to allocate it costs nothing beside the two system calls.
            let mut messages = Vec::with_capacity(count * if self.segments { 1 } else { self.replies });
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
        let Some(libc::in6_pktinfo { ipi6_addr, .. }) = asked else { return };
        let (source, port) = incoming.source(index);
        if let Err(refusal) = self.handler.decide(source, port, ipi6_addr.s6_addr.into()) {
            tally.refused[refusal as usize] += 1;
            return;
        }
        tally.answered += 1;
        let payload = incoming.payload(index);
        let most = if self.segments { most_segments(payload.len()) } else { 1 };
        let from = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: self.interface as _ };
        let mut left = self.replies;
        while left > 0 {
            let copies = left.min(most);
            messages.push(Message { payload, peer: *incoming.peer(index), source: Some(from), copies });
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
                    return Err(error).context(
                        "this kernel cuts no datagrams on an interface that computes no checksums: switch its tx checksum offload \
                         on, use Linux 6.11 or newer, or use --engine socket-batch",
                    );
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
        let workers = self.workers.iter();
        let (sockets, shown) = workers.map(|worker| (worker.socket.clone(), worker.shown.clone())).unzip();
        Ok(Box::new(SocketCounters { sockets, shown }))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        thread::scope(|scope| {
            let start = |worker| {
                let engine = &self;
                let work =
                    move || engine.work(worker, stop).inspect_err(|_| stop.store(true, Ordering::Relaxed));
                scope.spawn(work)
            };
            let threads: Vec<_> = self.workers.iter().map(start).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a worker panicked"))?)
        })
    }
}
