//! The live addresses and their clients, for engines without a steering program, and for services
//! that want to know.

use std::fmt;
use std::iter::repeat_with;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::Timed;
use crate::address::Client;
use crate::address::mt6d::{Subnet, Timetable, window};
use crate::address::timed::{TableLayout, halves};

/// Moving addresses, each entered for a step. Those in the window around the current step are live.
pub struct LiveSet {
    subnet: Subnet,
    step: AtomicU64,
    layout: TableLayout,
    words: Vec<AtomicU64>,
    /// Equal in length to `words`, or empty if nobody needs the clients.
    numbers: Vec<AtomicU32>,
}

impl LiveSet {
    /// An empty set for the addresses of `timetable`.
    #[must_use]
    pub fn new(timetable: &Timetable) -> Self {
        let layout = TableLayout::new(timetable.clients());
        let words = repeat_with(AtomicU64::default).take(layout.words()).collect();
        let (subnet, step) = (timetable.subnet(), AtomicU64::default());
        Self { subnet, step, layout, words, numbers: Vec::new() }
    }

    /// The same, with the [client](Self::client) of each address: this takes half as much memory
    /// again.
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

    /// The client of `address`, if it is live, at the cost of a hash lookup. Only with
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

    /// Switches to `step`.
    pub(super) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Release);
    }

    /// Enters the addresses; returns whether there was space.
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
