//! The AF_XDP engine: for each queue a socket, its rings, and a pinned worker that owns both.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::statistics::{Shown, Tally};
use super::worker::Worker;
use super::{CounterSet, Engine, EngineConfig, Modes, pin};
use crate::netlink;
use crate::report::Counters;
use crate::xdp::{
    Attachment, CopyMode, CounterSource, Doorbell, KernelCounters, Program, Rings, Socket, SocketConfig,
    Verdict, VerdictSource,
};

/// Frames of each queue. They are the queue of requests that wait while the worker is kept from its processor: at
/// 100,000 requests/s they hold 40 ms of them, which is more than a scheduler takes away at a time.
const FRAMES: u32 = 4096;

/// Descriptors of the tx and completion rings. As many as frames: 409 requests of ten replies in flight, and the
/// kernel's budget of one system call.
const SEND_RING: u32 = 4096;

/// A worker that found nothing to do looks again for this long before it sleeps. On the machine of the README a request that
/// finds it asleep is answered after some 130 µs, one that finds it awake after 4; looking costs only what nobody else wants.
const PATIENCE: Duration = Duration::from_micros(50);

/// A sleeping worker looks up this often whether it is to stop.
const DOZE: Duration = Duration::from_millis(100);

/// The same while replies are on their way: nothing announces a completion.
const NAP: Duration = Duration::from_millis(1);

/// Bytes that the kernel takes of each frame before the packet (XDP_PACKET_HEADROOM), Ethernet header and VLAN tags.
const FRAME_OVERHEAD: u32 = 256 + 14 + 8;

pub(super) struct AfXdp {
    // Fields are dropped in this order: first nothing is steered any more, then the sockets go.
    _attachment: Attachment,
    program: Program,
    queues: Vec<Queue>,
    modes: Modes,
}

struct Queue {
    core: usize,
    worker: Worker,
    rings: Rings,
    socket: Socket,
    shown: Arc<Shown>,
}

impl AfXdp {
    pub fn open(config: &EngineConfig) -> Result<Self> {
        let EngineConfig { link, handler, .. } = config;
        let pool = handler.pool();
        let highest = config.queues.iter().max().copied().unwrap_or(0);
        let capacity =
            u32::try_from(pool.count()).context("the steering program holds at most 2^32 addresses")?;
        let program = Program::load(handler.port(), capacity, highest + 1)?;
        program.add_prefix(pool.prefix())?;
        program.add_live(&pool.iter().collect::<Vec<_>>())?;
        // Attached before the sockets are bound: some drivers grant zero-copy only then.
        let attachment = program.attach(link, config.attach)?;
        // Some drivers reset the link when a program comes.
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;

        let mut queues = Vec::new();
        let mut mode = CopyMode::Zero;
        for (index, &queue) in config.queues.iter().enumerate() {
            let (socket, rings, _none) = Socket::open(&SocketConfig {
                interface: &link.name,
                index: link.index,
                queue,
                copy: config.copy,
                frames: FRAMES,
                frame_size: if link.mtu + FRAME_OVERHEAD <= 2048 { 2048 } else { 4096 },
                send_ring: SEND_RING,
                fill: FRAMES,
            })?;
            if socket.mode() == CopyMode::Copy {
                mode = CopyMode::Copy;
            }
            queues.push(Queue {
                core: config.cores[index % config.cores.len()],
                worker: Worker::new(handler.clone(), config.replies),
                rings,
                socket,
                shown: Arc::default(),
            });
        }
        netlink::wait_for_carrier(&link.name, Duration::from_secs(10))?;
        for (queue, number) in queues.iter().zip(&config.queues) {
            program.add_socket(*number, &queue.socket)?;
        }
        let modes = Modes {
            attach: Some(attachment.mode()),
            copy: Some(mode),
            queues: config.queues.clone(),
            cores: queues.iter().map(|queue| queue.core).collect(),
            hugepages: Some(queues.iter().all(|queue| queue.rings.umem().hugepages())),
            queue_depth: None,
        };
        Ok(Self { _attachment: attachment, program, queues, modes })
    }
}

impl Engine for AfXdp {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        Ok(Box::new(AfXdpCounters {
            verdicts: self.program.verdicts()?,
            queues: self.queues.iter().map(|queue| (queue.shown.clone(), queue.socket.counters())).collect(),
        }))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self { _attachment: attachment, program: _program, queues, .. } = *self;
        thread::scope(|scope| {
            let workers: Vec<_> = queues
                .into_iter()
                .map(|queue| {
                    scope.spawn(move || queue.run(stop).inspect_err(|_| stop.store(true, Ordering::Relaxed)))
                })
                .collect();
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            drop(attachment);
            for result in results {
                result
                    .map_err(|_| anyhow!("a worker panicked"))?
                    .context("the interface or its socket is gone")?;
            }
            Ok(())
        })
    }
}

impl Queue {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        pin(self.core);
        let mut idle_since = None;
        while !stop.load(Ordering::Relaxed) {
            if self.worker.turn(&mut self.rings, &mut self.socket)? {
                idle_since = None;
                self.shown.store(self.worker.tally());
                continue;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= PATIENCE {
                let limit = if self.rings.census().sending > 0 { NAP } else { DOZE };
                self.socket.sleep(limit)?;
                idle_since = None;
            }
        }
        let mut tally = self.worker.tally().clone();
        tally.frames_lost += u64::from(self.worker.missing(&self.rings));
        tally.invalid = self.rings.invalid();
        self.shown.store(&tally);
        Ok(())
    }
}

struct AfXdpCounters {
    verdicts: VerdictSource,
    queues: Vec<(Arc<Shown>, CounterSource)>,
}

impl CounterSet for AfXdpCounters {
    fn read(&self) -> Counters {
        let mut tally = Tally::default();
        let mut xdp = KernelCounters::default();
        for (shown, kernel) in &self.queues {
            tally.add(&shown.load());
            xdp.add(&kernel.read());
        }
        let verdicts = self.verdicts.read().unwrap_or_default();
        Counters {
            answered: tally.answered,
            replies: tally.replies,
            unsent: tally.unsent,
            refused: tally.refused_by_name(),
            frames_lost: tally.frames_lost,
            invalid: tally.invalid,
            steering: Verdict::ALL
                .iter()
                .zip(verdicts)
                .map(|(v, count)| (v.name().to_owned(), count))
                .collect(),
            xdp: Some(xdp),
            socket_dropped: None,
        }
    }
}
