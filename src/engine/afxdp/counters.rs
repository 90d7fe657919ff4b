//! COUNTING: what the program, the kernel and the workers counted, as one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::AfXdp;
use crate::engine::CounterSet;
use crate::engine::behind::Behind;
use crate::engine::statistics::{Shown, Tally};
use crate::engine::udp::SocketCounters;
use crate::events::{Counters, QueueCounters};
use crate::service::Service;
use crate::xdp::{
    CounterSource, Fate, KernelCounters, LevelSource, RingLevels, Verdict, VerdictSource,
};

pub(super) struct AfXdpCounters {
    verdicts: VerdictSource,
    hidden: bool,
    reflected: u16,
    counts_frames: bool,
    behind: Option<SocketCounters>,
    queues: Vec<QueueSource>,
    lost: Mutex<Lost>,
}

/// What is known of a queue.
struct QueueSource {
    queue: u32,
    /// By its worker.
    shown: Arc<Shown>,
    /// By the kernel.
    kernel: CounterSource,
    levels: LevelSource,
    /// Replies that the kernel had taken when last looked at: a count that others see never falls.
    sent: AtomicU64,
}

impl QueueSource {
    /// What its worker did. While it works, replies that the tx ring still holds are not sent.
    fn tally(&self, levels: &RingLevels, tally: Tally) -> Tally {
        if self.shown.is_closed() {
            return tally;
        }
        let taken = tally.replies.saturating_sub(levels.tx.into());
        let replies = self.sent.fetch_max(taken, Ordering::Relaxed).max(taken);
        Tally { replies, ..tally }
    }

    /// Packets that reached its socket, also those that it had no room for.
    fn arrived(&self) -> u64 {
        let (kernel, ring) = (self.kernel.read(), self.levels.arrived());
        let seen = self.shown.load();
        // The ring's counter has 32 bits, and the worker is never 2^31 packets behind it.
        let seen = seen.received + seen.invalid;
        let ahead = ring.wrapping_sub(seen as u32) as i32;
        seen.saturating_add_signed(ahead.into()) + kernel.rx_dropped + kernel.rx_ring_full
    }
}

impl AfXdpCounters {
    pub fn of<S: Service>(engine: &AfXdp<S>) -> Result<Self> {
        Ok(Self {
            verdicts: engine.program.verdicts()?,
            hidden: engine.hidden.is_some(),
            reflected: engine.reflected,
            counts_frames: engine.attachment.counts_frames(),
            behind: engine.behind.as_ref().map(Behind::counters),
            queues: engine
                .queues
                .iter()
                .map(|queue| QueueSource {
                    queue: queue.number,
                    shown: queue.shown.clone(),
                    kernel: queue.socket.counters(),
                    levels: queue.rings.levels(),
                    sent: AtomicU64::new(0),
                })
                .collect(),
            lost: Mutex::default(),
        })
    }

    /// Packets that the program redirected into rings and that none took: the kernel counts them
    /// nowhere.
    fn lost(&self) -> u64 {
        // Before what arrived is counted: a packet between the two is not lost.
        let verdicts = self.verdicts.read().unwrap_or_default();
        let steered = verdicts[Verdict::Steered as usize] + verdicts[Verdict::Solicited as usize];
        let arrived = self.queues.iter().map(QueueSource::arrived).sum();
        let is_over = self.queues.iter().all(|queue| queue.shown.is_closed());
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if is_over {
            lost.at_the_end(steered, arrived)
        } else {
            lost.look(Instant::now(), steered, arrived, self.queues.len() as u64)
        }
    }

    /// What the program did that answered so many requests, and refused others. Where the kernel
    /// does not say which of the replies the driver took, they count as sent: they were handed to
    /// it.
    fn reflected(&self, answered: u64) -> Tally {
        let all = answered * u64::from(self.reflected);
        let replies = if self.counts_frames {
            let [sent, _refused] = self.verdicts.frames().unwrap_or_default();
            sent.min(all)
        } else {
            all
        };
        // Also those that never came as far as the driver: the kernel leaves out a device that
        // takes no frames from programs.
        let unsent = all - replies;
        let refused = self.verdicts.refusals().unwrap_or_default();
        Tally { answered, replies, unsent, refused, ..Tally::default() }
    }
}

impl CounterSet for AfXdpCounters {
    fn read(&self) -> Counters {
        let mut tally = Tally::default();
        let mut xdp = KernelCounters::default();
        let mut queues = Vec::with_capacity(self.queues.len());
        let mut waiting = 0;
        let lost = self.lost();
        for source @ QueueSource { queue, shown, kernel, levels, .. } in &self.queues {
            let (own, kernel, levels) = (shown.load(), kernel.read(), levels.read());
            let own = source.tally(&levels, own);
            waiting += u64::from(levels.rx);
            queues.push(QueueCounters {
                queue: *queue,
                answered: own.answered,
                replies: own.replies,
                levels,
                xdp: kernel,
            });
            tally.add(&own);
            xdp.add(&kernel);
        }
        let verdicts = self.verdicts.read().unwrap_or_default();
        tally.add(&self.reflected(verdicts[Verdict::Reflected as usize]));
        let behind = self.behind.as_ref().map(SocketCounters::tally).unwrap_or_default();
        tally.add(&behind);
        let mut counters = tally.counters();
        // Not by what came to the workers: the program sees what the kernel then finds no room for.
        counters.received = behind.received;
        for (verdict, count) in Verdict::ALL.into_iter().zip(verdicts) {
            match verdict.fate(self.hidden) {
                Fate::Taken => counters.received += count,
                Fate::Dropped => {
                    counters.received += count;
                    counters.drop(verdict.name(), count);
                }
                Fate::Passed => {}
            }
            counters.steering.insert(verdict.name().to_owned(), count);
        }
        counters.drop("rx_ring_full", xdp.rx_ring_full);
        counters.drop("rx_dropped", xdp.rx_dropped);
        counters.drop(REDIRECT_FAILED, lost);
        counters.waiting = waiting;
        counters.xdp = (!self.queues.is_empty()).then_some(xdp);
        counters.queues = queues;
        counters.answered_behind = behind.answered;
        counters.refused_behind = behind.refused.iter().sum();
        match &self.behind {
            Some(behind) => counters.with_socket_dropped(behind.dropped()),
            None => counters,
        }
    }

    fn beats(&self) -> Vec<u64> {
        let behind = self.behind.iter().flat_map(|behind| behind.beats());
        self.queues.iter().map(|queue| queue.shown.beats()).chain(behind).collect()
    }
}

/// The reason for which packets are dropped that reach no ring.
pub(crate) const REDIRECT_FAILED: &str = "redirect_failed";

/// How many packets were redirected into rings and reached none. While more arrive some are always
/// between the program and a ring: so many as certainly are not.
#[derive(Debug, Default)]
struct Lost {
    /// When it was looked at, how many were redirected then, and how many of them had not arrived.
    before: Option<(Instant, u64, u64)>,
    certain: u64,
}

impl Lost {
    /// A packet has arrived after this long, or never will.
    const UNDER_WAY: Duration = Duration::from_millis(100);

    /// Packets that a queue has under way at most: a driver passes on what one poll of its ring
    /// gave it (NAPI_POLL_WEIGHT, 64), and some room.
    const OF_A_QUEUE: u64 = 256;

    /// `arrived` is to be counted after `steered`.
    fn look(&mut self, now: Instant, steered: u64, arrived: u64, queues: u64) -> u64 {
        let missing = steered.saturating_sub(arrived);
        if let Some((then, steered_before, missing_before)) = self.before {
            if now.duration_since(then) < Self::UNDER_WAY {
                return self.certain;
            }
            let idle = steered_before.saturating_sub(arrived);
            let busy = missing.min(missing_before).saturating_sub(Self::OF_A_QUEUE * queues);
            self.certain = self.certain.max(idle).max(busy);
        }
        self.before = Some((now, steered, missing));
        self.certain
    }

    /// When nothing is under way any more.
    fn at_the_end(&mut self, steered: u64, arrived: u64) -> u64 {
        self.certain = steered.saturating_sub(arrived);
        self.certain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_that_reach_no_ring_are_lost_and_those_under_way_are_not() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut none = Lost::default();
        // 64 are always under way.
        let seen =
            (0..10).map(|second| none.look(at(second), 1000 * second + 64, 1000 * second, 1));
        assert_eq!(seen.sum::<u64>(), 0);
        assert_eq!(none.at_the_end(9064, 9064), 0);

        let mut all = Lost::default();
        assert_eq!(all.look(at(0), 4, 0, 1), 0, "they may be under way");
        assert_eq!(all.look(at(0) + Duration::from_millis(1), 5, 0, 1), 0);
        assert_eq!(all.look(at(1), 7, 0, 1), 4);
        assert_eq!(all.look(at(2), 7, 0, 1), 7);
        assert_eq!(all.at_the_end(8, 0), 8);

        // Half of them: also while others arrive, and the count never falls.
        let mut half = Lost::default();
        let counts: Vec<_> =
            (0..5).map(|second| half.look(at(second), 2000 * second, 1000 * second, 2)).collect();
        assert_eq!(counts, [0, 0, 488, 1488, 2488]);
        assert_eq!(half.look(at(5), 8000, 8000, 2), 2488);
        assert_eq!(half.at_the_end(8000, 4000), 4000);
    }
}
