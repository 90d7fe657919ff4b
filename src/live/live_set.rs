//! Which addresses are live at the moment, and whose, for engines that have no steering program to
//! tell them, and for services that want to know.

use std::fmt;
use std::iter::repeat_with;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Timed;
use crate::address::Client;
use crate::address::mt6d::{Subnet, Timetable, window};
use crate::address::timed::{TableLayout, halves};

/// Addresses that move, each entered for a time step, of which those of the window around the
/// current step are live.
pub struct LiveSet {
    subnet: Subnet,
    step: AtomicU64,
    layout: TableLayout,
    words: Vec<AtomicU64>,
    /// As many, or none where nobody wants to know whose each address is.
    numbers: Vec<AtomicU32>,
}

impl LiveSet {
    /// One for the addresses of `timetable`, with none of them.
    #[must_use]
    pub fn new(timetable: &Timetable) -> Self {
        let layout = TableLayout::new(timetable.clients());
        let words = repeat_with(AtomicU64::default).take(layout.words()).collect();
        let (subnet, step) = (timetable.subnet(), AtomicU64::default());
        Self { subnet, step, layout, words, numbers: Vec::new() }
    }

    /// The same, which also knows [whose](Self::client) each address is: that takes half as much
    /// memory again.
    #[must_use]
    pub fn with_clients(self) -> Self {
        let numbers = repeat_with(AtomicU32::default).take(self.layout.words()).collect();
        Self { numbers, ..self }
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

    /// Whose `address` is, if it is live, in the time that a hash takes. Only where it is
    /// [`with_clients`](Self::with_clients).
    #[inline]
    #[must_use]
    pub fn client(&self, address: Ipv6Addr) -> Option<Client> {
        let [_, identifier] = halves(address);
        if !self.subnet.prefix().contains(address) {
            return None;
        }
        window(self.step.load(Ordering::Acquire)).find_map(|step| {
            let number = self.layout.client(&self.words, &self.numbers, step, identifier)?;
            Some(Client { number: number.into(), step })
        })
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> u64 {
        (size_of_val(&self.words[..]) + size_of_val(&self.numbers[..])) as u64
    }

    /// Has it be `step`.
    pub(super) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Release);
    }

    /// Enters them; returns whether there was room.
    pub(super) fn enter(&self, fresh: &[Timed]) -> bool {
        let Self { layout, words, numbers, .. } = self;
        fresh.iter().all(|Timed { step, first, addresses }| {
            addresses.iter().zip(*first..).all(|(address, client)| {
                let [_, identifier] = halves(*address);
                if numbers.is_empty() {
                    return layout.enter(words, *step, identifier);
                }
                // A timetable has fewer than 2^32 clients.
                layout.enter_of(words, numbers, *step, (identifier, client as u32))
            })
        })
    }
}

impl fmt::Debug for LiveSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSet").field("step", &self.step).finish_non_exhaustive()
    }
}
