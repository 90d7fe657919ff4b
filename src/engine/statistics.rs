//! What an engine counts while it runs, readable from another thread without disturbing it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

use crate::events::Counters;
use crate::wire::Refusal;

/// One worker's counts. The worker has a copy of its own and shows it to others now and then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets that came to the worker, whatever became of them.
    pub received: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Replies to those: `--replies` for each.
    pub replies: u64,
    /// Solicitations that were answered.
    pub advertised: u64,
    /// Datagrams that a service sent without being asked.
    pub unasked: u64,
    /// Packets that were not answered, by [`Refusal`].
    pub refused: [u64; Refusal::ALL.len()],
    /// Replies that the kernel did not take.
    pub unsent: u64,
    /// Frames that are in no ring and in nobody's hands. Anything but 0 is a bug.
    pub frames_lost: u64,
    /// Descriptors from the kernel that made no sense. Anything but 0 is a bug, here or there.
    pub invalid: u64,
}

impl Tally {
    fn fields(&self) -> impl Iterator<Item = u64> + '_ {
        let Self {
            received,
            answered,
            replies,
            advertised,
            unasked,
            unsent,
            frames_lost,
            invalid,
            refused: _,
        } = *self;
        [received, answered, replies, advertised, unasked, unsent, frames_lost, invalid]
            .into_iter()
            .chain(self.refused)
    }

    /// Datagrams and advertisements that were handed over.
    pub(super) fn sent(&self) -> u64 {
        self.replies + self.advertised + self.unasked
    }

    /// Adds another worker's counts.
    pub fn add(&mut self, other: &Self) {
        self.received += other.received;
        self.answered += other.answered;
        self.replies += other.replies;
        self.advertised += other.advertised;
        self.unasked += other.unasked;
        self.unsent += other.unsent;
        self.frames_lost += other.frames_lost;
        self.invalid += other.invalid;
        for (sum, count) in self.refused.iter_mut().zip(other.refused) {
            *sum += count;
        }
    }

    /// As counters of a server, where all that came to it came to the worker. Who knows of what did
    /// not adds it.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let mut counters = Counters {
            received: self.received,
            answered: self.answered,
            replies: self.replies,
            advertised: self.advertised,
            unasked: self.unasked,
            unsent: self.unsent,
            refused: self.refused_by_name(),
            frames_lost: self.frames_lost,
            invalid: self.invalid,
            ..Counters::default()
        };
        counters.dropped = counters.refused.clone();
        counters.drop("invalid", self.invalid);
        counters
    }

    /// Packets not answered by the name of the reason, those that occurred.
    pub fn refused_by_name(&self) -> BTreeMap<String, u64> {
        let named = Refusal::ALL.iter().zip(self.refused).filter(|(_, count)| *count > 0);
        named.map(|(refusal, count)| (refusal.name().to_owned(), count)).collect()
    }
}

/// A place where one worker shows its tally, and that it is alive, on cache lines of its own.
#[derive(Debug, Default)]
pub struct Shown {
    tally: CachePadded<[AtomicU64; 8 + Refusal::ALL.len()]>,
    beats: CachePadded<AtomicU64>,
    closed: AtomicBool,
}

impl Shown {
    /// Shows `tally`. Only its worker calls this.
    #[inline]
    pub fn store(&self, tally: &Tally) {
        for (place, value) in self.tally.iter().zip(tally.fields()) {
            place.store(value, Ordering::Relaxed);
        }
        self.beat();
    }

    /// Shows the last tally. Only its worker calls this, and shows nothing afterwards.
    pub fn close(&self, tally: &Tally) {
        self.store(tally);
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the tally is the last.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Shows that its worker is alive, also where there is nothing to do. Only its worker calls
    /// this.
    #[inline]
    pub fn beat(&self) {
        // There is no other writer.
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// A number that changes while the worker is alive.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    /// What was shown last. Numbers of one request may be there in part.
    pub fn load(&self) -> Tally {
        let mut values = self.tally.iter().map(|place| place.load(Ordering::Relaxed));
        let mut next = || values.next().unwrap_or_default();
        Tally {
            received: next(),
            answered: next(),
            replies: next(),
            advertised: next(),
            unasked: next(),
            unsent: next(),
            frames_lost: next(),
            invalid: next(),
            refused: std::array::from_fn(|_| next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_read_and_adds_up() {
        let tally = Tally {
            received: 6,
            answered: 1,
            replies: 10,
            advertised: 5,
            unasked: 7,
            refused: std::array::from_fn(|index| 100 + index as u64),
            unsent: 2,
            frames_lost: 3,
            invalid: 4,
        };
        let shown = Shown::default();
        shown.store(&tally);
        assert_eq!(shown.load(), tally);
        assert_eq!(shown.beats(), 1);
        shown.beat();
        assert_eq!(shown.beats(), 2);
        let counters = tally.counters();
        assert_eq!(counters.dropped.values().sum::<u64>(), tally.refused.iter().sum::<u64>() + 4);
        assert_eq!(counters.received, 6);
        let mut sum = tally.clone();
        sum.add(&tally);
        assert!(sum.fields().zip(tally.fields()).all(|(double, single)| double == 2 * single));
        assert_eq!(tally.refused_by_name()["bad_checksum"], 100 + Refusal::BadChecksum as u64);
    }
}
