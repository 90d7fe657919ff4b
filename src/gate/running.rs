//! Keeps a gate open until it is stopped, and reports what happens meanwhile. The kernel and the
//! programs do the work.
//!
//! ```text
//!   rotation ──► moves addresses                             a thread
//!   addresses ─► tells the programs the machine's own ones    a thread
//!   this one ──► every 20 ms: who came, what do the others report
//!                every 100 ms: has the interface changed
//!                every second: statistics
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Arrival, Arrivals, Gate, GateService, GateVerdict, GateVerdictSource};
use crate::engine::supervise;
use crate::events::{GateStats, Moves, Rotated, ServiceCount};
use crate::host::sandbox::Role;
use crate::server::watch::Watcher;

/// How long the main thread sleeps. A signal sets `stop` but cannot wake it.
const NAP: Duration = Duration::from_millis(20);

/// How often statistics are shown.
const PERIOD: Duration = Duration::from_secs(1);

/// How often the interface is checked.
const LOOK: Duration = Duration::from_millis(100);

/// What an open gate reports.
#[derive(Debug)]
pub enum GateNews<'a> {
    /// Statistics, once a second.
    Stats(&'a GateStats),
    /// The result of each step.
    Rotation(&'a Rotated),
    /// Somebody came to this service.
    Arrival(&'a Arrival, GateService),
    /// Something has changed or goes wrong, and the gate stays open.
    Notice(String),
    /// The main thread has gone round its loop. Reported several times a second.
    Alive,
    /// The gate closes.
    Stopping,
}

/// Reports of the thread that moves the addresses.
enum Moved {
    Step(Rotated),
    Words(String),
}

/// The main thread's state.
struct Keeping<'a, T> {
    stop: &'a AtomicBool,
    tell: T,
    started: Instant,
    verdicts: GateVerdictSource,
    arrivals: Arrivals,
    services: Vec<GateService>,
    moved: mpsc::Receiver<Moved>,
    moves: Moves,
    watcher: Watcher,
    next_stats: Instant,
    next_look: Instant,
}

impl Gate {
    /// Keeps the gate open until `stop` is set, and reports events to `tell`. Then closes it, and
    /// returns the totals.
    ///
    /// # Errors
    /// When the interface is gone or has changed too much, and when the addresses cannot be moved.
    pub fn run(self, stop: &AtomicBool, tell: impl FnMut(GateNews)) -> Result<GateStats> {
        let Self { attachment, delivering, mut rotation, program, own, watcher, .. } = self;
        let (sandbox, started) = (self.sandbox, Instant::now());
        let (teller, moved) = mpsc::channel();
        let mut keeping = Keeping {
            stop,
            tell,
            started,
            verdicts: program.outcomes()?,
            arrivals: self.arrivals,
            services: self.services,
            moved,
            moves: Moves::none(self.ready.moving.step, self.ready.addresses),
            watcher,
            next_stats: started + PERIOD,
            next_look: started + LOOK,
        };
        let (seen, kept) = thread::scope(|scope| {
            let keeper = supervise::start(scope, stop, || {
                sandbox.enter(Role::Addresses)?;
                own.keep(&program, stop)
            });
            let mover = supervise::start(scope, stop, move || {
                sandbox.enter(Role::Binding)?;
                // The main thread listens for as long as this runs.
                let show = |rotated| drop(teller.send(Moved::Step(rotated)));
                let say = |words| drop(teller.send(Moved::Words(words)));
                rotation.run(stop, show, say).context("the addresses cannot be moved")
            });
            let seen = keeping.until_stopped();
            (seen, supervise::wait_for([keeper, mover]))
        });
        (keeping.tell)(GateNews::Stopping);
        keeping.hear();
        let stats = keeping.stats();
        // Nothing is let in any more, then the kernel forgets the prefix.
        drop(attachment);
        drop(delivering);
        seen.and(kept)?;
        stats
    }
}

impl<T: FnMut(GateNews)> Keeping<'_, T> {
    fn until_stopped(&mut self) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            thread::sleep(NAP);
            (self.tell)(GateNews::Alive);
            let done = self.turn();
            if done.is_err() {
                self.stop.store(true, Ordering::Relaxed);
                return done;
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        self.hear();
        for arrival in self.arrivals.take()? {
            if let Some(service) = self.services.get(arrival.service) {
                (self.tell)(GateNews::Arrival(&arrival, *service));
            }
        }
        if Instant::now() >= self.next_stats {
            self.next_stats += PERIOD;
            let stats = self.stats()?;
            (self.tell)(GateNews::Stats(&stats));
        }
        if Instant::now() >= self.next_look {
            self.next_look = Instant::now() + LOOK;
            // The kernel has none of the addresses, so it loses none.
            let seen = self.watcher.look(|_| false);
            seen.notices.into_iter().for_each(|words| (self.tell)(GateNews::Notice(words)));
            seen.end.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    fn hear(&mut self) {
        for moved in self.moved.try_iter() {
            match moved {
                Moved::Step(rotated) => {
                    (self.tell)(GateNews::Rotation(&rotated));
                    self.moves.add(&rotated);
                }
                Moved::Words(words) => (self.tell)(GateNews::Notice(words)),
            }
        }
    }

    fn stats(&self) -> Result<GateStats> {
        let arrived = self.services.iter().zip(self.verdicts.arrived()?);
        let counted = |(service, arrived): (&GateService, u64)| ServiceCount {
            name: service.to_string(),
            arrived,
        };
        Ok(GateStats {
            seconds: self.started.elapsed().as_secs_f64(),
            moves: self.moves,
            services: arrived.map(counted).collect(),
            ..sorted(self.verdicts.read()?)
        })
    }
}

/// Each count in its place.
fn sorted(counts: [u64; GateVerdict::ALL.len()]) -> GateStats {
    use GateVerdict::*;
    let mut stats = GateStats::default();
    let put = |place: &mut BTreeMap<String, u64>, verdict: GateVerdict, count| {
        if count > 0 {
            place.insert(verdict.name().to_owned(), count);
        }
    };
    for (verdict, count) in GateVerdict::ALL.into_iter().zip(counts) {
        match verdict {
            TcpOpened | TcpCookie | TcpFlow | UdpBegun | UdpFlow | ErrorPassed => {
                put(&mut stats.passed, verdict, count);
            }
            Advertised => stats.advertised = count,
            NotLive | NoService | NoListener | NoConnection | NotSolicited | BadSolicitation
            | ErrorStray | IcmpOther | Fragmented | UnknownHeader | Truncated | GroupFrame
            | Revoked | Unassigned => put(&mut stats.dropped, verdict, count),
            ReplyRenamed | ReplyLate | ReplyFragmented | KernelSilenced => {
                put(&mut stats.sent, verdict, count);
            }
            ArrivalLost => {
                stats.arrivals_lost = count;
                continue;
            }
        }
        if !matches!(verdict, ReplyRenamed | ReplyLate | ReplyFragmented | KernelSilenced) {
            stats.received += count;
        }
    }
    stats
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_that_came_is_in_one_place() {
        let stats = sorted([1; GateVerdict::ALL.len()]);
        let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
        let (passed, dropped) = (sum(&stats.passed), sum(&stats.dropped));
        assert_eq!(stats.received, passed + stats.advertised + dropped);
        let rest = sum(&stats.sent) + stats.arrivals_lost;
        assert_eq!(stats.received + rest, GateVerdict::ALL.len() as u64);
        assert_eq!(sorted([0; GateVerdict::ALL.len()]), GateStats::default());
    }
}
