//! Which addresses are live at the moment, for engines that have no steering program to tell them.

use std::fmt;
use std::iter::repeat_with;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Timed;
use crate::address::mt6d::{Subnet, Timetable, window};
use crate::address::timed::{Layout, halves};

/// Addresses that move, each entered for a time step, of which those of the window around the
/// current step are live.
pub struct LiveSet {
    subnet: Subnet,
    step: AtomicU64,
    layout: Layout,
    words: Vec<AtomicU64>,
}

impl LiveSet {
    /// One for the addresses of `timetable`, with none of them.
    #[must_use]
    pub fn new(timetable: &Timetable) -> Self {
        let layout = Layout::new(timetable.clients());
        let words = repeat_with(AtomicU64::default).take(layout.words()).collect();
        Self { subnet: timetable.subnet(), step: AtomicU64::default(), layout, words }
    }

    /// Whether `address` is live.
    #[inline]
    #[must_use]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let [_, identifier] = halves(address);
        self.subnet.prefix().contains(address)
            && window(self.step.load(Ordering::Acquire))
                .any(|step| self.layout.contains(&self.words, step, identifier))
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> u64 {
        size_of_val(&self.words[..]) as u64
    }

    /// Has it be `step`.
    pub(super) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Release);
    }

    /// Enters them; returns whether there was room.
    pub(super) fn enter(&self, fresh: &[Timed]) -> bool {
        fresh.iter().all(|Timed { step, addresses }| {
            addresses.iter().all(|address| {
                let [_, identifier] = halves(*address);
                self.layout.enter(&self.words, *step, identifier)
            })
        })
    }
}

impl fmt::Debug for LiveSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSet").field("step", &self.step).finish_non_exhaustive()
    }
}
