//! RUNNING: a thread a queue, and those that keep what the queues need.

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::AfXdp;
use crate::address::Prefix;
use crate::engine::multicast_router::MulticastRouter;
use crate::engine::statistics::Shown;
use crate::engine::worker::Worker;
use crate::engine::{pin, supervise};
use crate::host::sandbox::{Role, Sandbox};
use crate::live::Delivering;
use crate::net::netlink::KernelAddresses;
use crate::service::Service;
use crate::xdp::{AllMulticast, Attachment, Doorbell, Program, Rings, Socket};

/// A worker that found nothing to do looks again for this long before it sleeps. On the machine of
/// the README a request that finds it asleep is answered after some 130 µs, one that finds it awake
/// after 4; looking costs only what nobody else wants.
const PATIENCE: Duration = Duration::from_micros(50);

/// A sleeping worker looks up this often whether it is to stop.
const DOZE: Duration = Duration::from_millis(100);

/// The same while replies are on their way: nothing announces a completion.
const NAP: Duration = Duration::from_millis(1);

/// A worker that is to stop waits so long for its last replies to leave.
const DRAIN: Duration = Duration::from_millis(100);

/// What there is besides where the addresses are not the kernel's.
pub(super) struct Hidden {
    /// The kernel's own, which the program leaves to it where they lie under `prefix`.
    pub kernel: KernelAddresses,
    pub prefix: Prefix,
    /// The interface's own elsewhere, which a program that answers wants to know as well.
    pub elsewhere: Vec<Ipv6Addr>,
    pub _multicast: AllMulticast,
}

pub(super) struct ServedQueue<S> {
    pub number: u32,
    pub core: usize,
    pub worker: Worker<S>,
    pub rings: Rings,
    pub socket: Socket,
    pub shown: Arc<Shown>,
}

impl<S: Service> AfXdp<S> {
    /// Has each queue answered until `stop` is set, and the program told what it needs.
    pub(super) fn work(
        (attachment, delivering): (Attachment, Option<Delivering>),
        program: &Program,
        queues: Vec<ServedQueue<S>>,
        (hidden, router): (Option<Hidden>, Option<MulticastRouter>),
        sandbox: Sandbox,
        stop: &AtomicBool,
    ) -> Result<()> {
        thread::scope(|scope| {
            let keeper = hidden.map(|hidden| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Addresses)?;
                    hidden.keep(program, stop)
                })
            });
            let announcer = router.map(|router| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Packet)?;
                    router.keep(stop);
                    Ok(())
                })
            });
            let start = |queue: ServedQueue<S>| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Ring)?;
                    queue.run(stop).context("the interface or its socket is gone")
                })
            };
            let workers: Vec<_> = queues.into_iter().map(start).collect();
            if workers.is_empty() {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(DOZE);
                }
            }
            let worked = supervise::wait_for(workers);
            let kept = supervise::wait_for(keeper.into_iter().chain(announcer));
            drop(delivering);
            drop(attachment);
            worked.and(kept)
        })
    }
}

impl Hidden {
    /// Keeps the program told which addresses are the kernel's, until `stop` is set: they come and
    /// go, those of autoconfiguration by themselves.
    fn keep(mut self, program: &Program, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            if self.kernel.changed(DOZE)? {
                self.tell(program)?;
            }
        }
        Ok(())
    }

    pub fn tell(&mut self, program: &Program) -> Result<()> {
        let mut addresses = self.kernel.read()?;
        addresses.retain(|address| self.prefix.contains(*address));
        addresses.extend(&self.elsewhere);
        program.set_kernel_addresses(&addresses)
    }
}

impl<S: Service> ServedQueue<S> {
    fn run(mut self, stop: &AtomicBool) -> io::Result<()> {
        pin(self.core);
        let polling = self.socket.busy_poll();
        let patience = polling
            .map_or(PATIENCE, |poll| PATIENCE.max(Duration::from_micros(poll.microseconds.into())));
        let mut idle_since = None;
        while !stop.load(Ordering::Relaxed) {
            if self.worker.turn(&mut self.rings, &mut self.socket)? {
                idle_since = None;
                self.shown.store(self.worker.tally());
                continue;
            }
            if polling.is_some() {
                // Does the card's receive work, and its completions: no interrupt will.
                self.socket.wake_receiver()?;
            }
            let since = *idle_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= patience {
                self.shown.beat();
                let limit = if self.rings.census().sending > 0 { NAP } else { DOZE };
                // A poll counts milliseconds, and one of none would not sleep.
                self.socket.sleep(limit.min(self.worker.wait().max(NAP)))?;
                idle_since = None;
            }
        }
        let give_up = Instant::now() + DRAIN;
        // Whatever it says of the interface now: what has not left is counted.
        while matches!(self.worker.drain(&mut self.rings, &mut self.socket), Ok(false))
            && Instant::now() < give_up
        {
            let _ = self.socket.sleep(NAP);
        }
        self.shown.close(&self.worker.close(&self.rings));
        Ok(())
    }
}
