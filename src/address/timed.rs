//! TIMED: a lock-free table of one subnet's addresses, each entered for one step. One thread writes
//! it while any number read it: the steering program (bpf/timed.h), and the engines without that
//! program.
//!
//! ```text
//!   part s mod 4, for step s ──► bucket, by a hash of the identifier
//!                                 ──► while it is full, the next one, up to 16
//!
//!   bucket, 64 bytes:   word 0                     words 1 to 7
//!                       step << 8 | count          interface identifiers, in memory order
//! ```
//!
//! Nothing is ever removed. A bucket's entries for another step count as nothing and are
//! overwritten: entering an address costs one cache miss, and expiry costs none. Three steps are
//! live, and the fourth part is for the step that is entered ahead.
//!
//! If the owner of an identifier matters, a second array next to the table holds the client's
//! number at the same index. The steering program never sees it.

use std::net::Ipv6Addr;

use super::shared::{AtomicU32, AtomicU64, Ordering, fence};

/// Number of consecutive steps that have a part.
pub const PARTS: u64 = 4;

/// 64-bit words of a bucket: one cache line.
const WORDS: usize = 8;

/// Identifiers in a bucket.
const SLOTS: usize = WORDS - 1;

/// Buckets searched for an identifier. With two identifiers expected in each, the maximum, 16
/// neighbours reach the 112 that fill them once in 10^27 times.
const REACH: u64 = 16;

/// 2^64 divided by the golden ratio: also spreads identifiers that are not random (Knuth, volume 3,
/// section 6.4).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The client that an address belongs to, and its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    /// The client's number, from 0.
    pub number: u64,
    /// The step of the address.
    pub step: u64,
}

/// The layout of the table: 2^`bits` buckets in each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableLayout {
    bits: u32,
}

impl TableLayout {
    /// A table for `clients` addresses in each step, on average one or two in each bucket.
    #[must_use]
    pub fn new(clients: u64) -> Self {
        let buckets = (clients / 2).max(REACH);
        Self { bits: u64::BITS - (buckets - 1).leading_zeros() }
    }

    /// The binary logarithm of a part's number of buckets.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// Buckets of all parts.
    #[must_use]
    pub fn buckets(self) -> u64 {
        PARTS << self.bits
    }

    /// Size of the table, in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.buckets() * (WORDS * size_of::<u64>()) as u64
    }

    /// Size of the table, in 64-bit words.
    #[must_use]
    pub fn words(self) -> usize {
        self.buckets() as usize * WORDS
    }

    /// The buckets that may hold `identifier` in `step`, and where each begins, in the order in
    /// which they fill up.
    fn places(
        self,
        words: &[AtomicU64],
        step: u64,
        identifier: u64,
    ) -> impl Iterator<Item = (usize, &[AtomicU64; WORDS])> {
        let first = identifier.wrapping_mul(GOLDEN) >> (u64::BITS - self.bits);
        let part = (step % PARTS) << self.bits;
        let mask = (1 << self.bits) - 1;
        (0..REACH).filter_map(move |further| {
            let start = (part + ((first + further) & mask)) as usize * WORDS;
            Some((start, words.get(start..start + WORDS)?.try_into().ok()?))
        })
    }

    /// Enters `identifier` for `step` unless it is already there. Only one thread may do so at a
    /// time. Returns whether there was space.
    #[inline]
    pub fn enter(self, words: &[AtomicU64], step: u64, identifier: u64) -> bool {
        self.enter_with(words, step, identifier, |_| ())
    }

    /// The same, for client `number`. `numbers` must be as long as `words`, and nothing else may
    /// write it.
    pub fn enter_of(
        self,
        words: &[AtomicU64],
        numbers: &[AtomicU32],
        step: u64,
        (identifier, number): (u64, u32),
    ) -> bool {
        self.enter_with(words, step, identifier, |place| {
            if let Some(own) = numbers.get(place) {
                own.store(number, Ordering::Relaxed); // published by the head, like the identifier
            }
        })
    }

    /// Calls `beside` with the index of the identifier before writing it.
    #[inline]
    fn enter_with(
        self,
        words: &[AtomicU64],
        step: u64,
        identifier: u64,
        beside: impl FnOnce(usize),
    ) -> bool {
        for (start, [head, slots @ ..]) in self.places(words, step, identifier) {
            let before = head.load(Ordering::Relaxed);
            let count = number(before, step);
            if slots.iter().take(count).any(|slot| slot.load(Ordering::Relaxed) == identifier) {
                return true;
            }
            if let Some(slot) = slots.get(count) {
                if before >> 8 != step {
                    // A reader that still searches for an earlier step must not take this
                    // identifier, or its number, for one of that step. Readers check the head
                    // again, and this fence pairs with theirs.
                    head.store(step << 8, Ordering::Relaxed);
                    fence(Ordering::Release);
                }
                beside(start + 1 + count);
                slot.store(identifier, Ordering::Relaxed);
                head.store(step << 8 | (count + 1) as u64, Ordering::Release);
                return true;
            }
        }
        false
    }

    /// Whether `identifier` is entered for `step`.
    #[inline]
    #[must_use]
    pub fn contains(self, words: &[AtomicU64], step: u64, identifier: u64) -> bool {
        for (_, [head, slots @ ..]) in self.places(words, step, identifier) {
            let count = number(head.load(Ordering::Acquire), step);
            if slots.iter().take(count).any(|slot| slot.load(Ordering::Relaxed) == identifier) {
                // The bucket may have gone to another step during the search.
                fence(Ordering::Acquire);
                return head.load(Ordering::Relaxed) >> 8 == step;
            }
            if count < SLOTS {
                break;
            }
        }
        false
    }

    /// The number of the client for whom [`enter_of`](Self::enter_of) entered `identifier` for
    /// `step`.
    #[inline]
    #[must_use]
    pub fn client(
        self,
        words: &[AtomicU64],
        numbers: &[AtomicU32],
        step: u64,
        identifier: u64,
    ) -> Option<u32> {
        for (start, [head, slots @ ..]) in self.places(words, step, identifier) {
            let count = number(head.load(Ordering::Acquire), step);
            let mut held = slots.iter().take(count);
            if let Some(slot) = held.position(|slot| slot.load(Ordering::Relaxed) == identifier) {
                let client = numbers.get(start + 1 + slot)?.load(Ordering::Relaxed);
                // Meanwhile the writer may have begun to overwrite the bucket for a step four
                // later, so the number may be another's. If so, the check below sees the new head.
                fence(Ordering::Acquire);
                return (head.load(Ordering::Relaxed) >> 8 == step).then_some(client);
            }
            if count < SLOTS {
                break;
            }
        }
        None
    }

    /// Counts the identifiers entered for `step` by examining all buckets of its part.
    #[must_use]
    pub fn count(self, words: &[AtomicU64], step: u64) -> u64 {
        let length = WORDS << self.bits;
        let start = (step % PARTS) as usize * length;
        let heads = words.iter().skip(start).take(length).step_by(WORDS);
        heads.map(|head| number(head.load(Ordering::Acquire), step) as u64).sum()
    }
}

/// How many identifiers a bucket with this head has for `step`.
fn number(head: u64, step: u64) -> usize {
    if head >> 8 == step { (head & 0xff) as usize } else { 0 }
}

/// The two halves of an address in memory order: the subnet's part, and the interface identifier.
#[inline]
#[must_use]
pub fn halves(address: Ipv6Addr) -> [u64; 2] {
    let bits = address.to_bits();
    [u64::from_be((bits >> 64) as u64), u64::from_be(bits as u64)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::mt6d;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn memory(layout: TableLayout) -> Vec<AtomicU64> {
        std::iter::repeat_with(AtomicU64::default).take(layout.words()).collect()
    }

    #[test]
    fn one_or_two_are_expected_in_a_bucket() {
        for (clients, bits) in [
            (0, 4),
            (1, 4),
            (32, 4),
            (33, 4),
            (34, 5),
            (1_000_000, 19),
            (1 << 20, 19),
            (1 << 32, 31),
        ] {
            assert_eq!(TableLayout::new(clients).bits(), bits, "{clients}");
        }
        assert_eq!(TableLayout::new(1_000_000).words() * 8, 128 << 20);
    }

    #[test]
    fn a_million_find_room_step_after_step() {
        let layout = TableLayout::new(1 << 20); // exactly two a bucket
        let words = memory(layout);
        let identifier = |step: u64, client: u64| mt6d::identifier(client, &[], step);
        for step in 1000..1006 {
            assert!((0..1 << 20).all(|client| layout.enter(
                &words,
                step,
                identifier(step, client)
            )));
            assert_eq!(layout.count(&words, step), 1 << 20);
        }
        for step in 1002..1006 {
            assert!((0..1 << 20).all(|client| layout.contains(
                &words,
                step,
                identifier(step, client)
            )));
            assert!((1 << 20..2 << 20).all(|client| !layout.contains(
                &words,
                step,
                identifier(step, client)
            )));
        }
        assert_eq!(layout.count(&words, 1006), 0);
    }

    fn numbers(layout: TableLayout) -> Vec<AtomicU32> {
        std::iter::repeat_with(AtomicU32::default).take(layout.words()).collect()
    }

    /// A reader never gets another identifier's number while all buckets are overwritten step after
    /// step.
    #[test]
    fn a_number_is_never_that_of_an_identifier_of_another_step() {
        const CLIENTS: u32 = 64;
        let layout = TableLayout::new(CLIENTS.into());
        let (words, numbers) = (memory(layout), numbers(layout));
        // The same few buckets again and again; the number follows from step and identifier.
        let number = |step: u64, identifier: u64| (step * 1000 + identifier) as u32;
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut found = 0u64;
                while !done.load(Ordering::Relaxed) || found == 0 {
                    for [head, ..] in words
                        .chunks_exact(WORDS)
                        .map(|bucket| <&[AtomicU64; WORDS]>::try_from(bucket).unwrap())
                    {
                        let step = head.load(Ordering::Relaxed) >> 8;
                        for identifier in 0..CLIENTS.into() {
                            let client = layout.client(&words, &numbers, step, identifier);
                            if let Some(client) = client {
                                assert_eq!(client, number(step, identifier));
                                found += 1;
                            }
                        }
                    }
                }
            });
            for step in 1..20_000 {
                for identifier in 0..CLIENTS.into() {
                    let one = (identifier, number(step, identifier));
                    assert!(layout.enter_of(&words, &numbers, step, one));
                }
            }
            done.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
    }

    #[test]
    fn the_halves_are_those_of_memory() {
        let address: Ipv6Addr = "2001:db8::1:203".parse().unwrap();
        let [network, identifier] = halves(address);
        assert_eq!([network.to_ne_bytes(), identifier.to_ne_bytes()].concat(), address.octets());
    }

    proptest! {
        /// Few identifiers, so that buckets overflow. Each keeps the number of its first entry for
        /// a step, and an identifier that was not entered has none.
        #[test]
        fn it_knows_whose_each_is(
            entered in proptest::collection::vec((0u64..9, 0u64..400, any::<u32>()), 1..2000),
        ) {
            let layout = TableLayout::new(0);
            let (words, numbers) = (memory(layout), numbers(layout));
            let mut maps: Vec<HashMap<u64, u32>> = vec![HashMap::new(); 9];
            let mut entered = entered;
            entered.sort_by_key(|(step, ..)| *step); // time advances
            for (step, identifier, number) in &entered {
                let map = &mut maps[*step as usize];
                let room = layout.enter_of(&words, &numbers, *step, (*identifier, *number));
                prop_assert_eq!(room, map.contains_key(identifier) || map.len() < 16 * SLOTS);
                if room {
                    map.entry(*identifier).or_insert(*number);
                }
            }
            let last = entered.last().unwrap().0;
            for step in last.saturating_sub(3)..=last {
                let map = &maps[step as usize];
                prop_assert_eq!(layout.count(&words, step), map.len() as u64);
                for identifier in 0..400 {
                    let client = layout.client(&words, &numbers, step, identifier);
                    prop_assert_eq!(client, map.get(&identifier).copied());
                    prop_assert_eq!(
                        layout.contains(&words, step, identifier),
                        map.contains_key(&identifier)
                    );
                }
            }
            // Leftovers of earlier steps are also correct.
            for step in 0..last.saturating_sub(3) {
                for identifier in 0..400 {
                    let client = layout.client(&words, &numbers, step, identifier);
                    let map = &maps[step as usize];
                    prop_assert!(client.is_none() || client == map.get(&identifier).copied());
                }
            }
        }

        /// Few identifiers, so that buckets overflow. Until 16 neighbours are full, the table
        /// equals a set.
        #[test]
        fn it_holds_what_was_entered_for_the_last_steps(
            entered in proptest::collection::vec((0u64..9, 0u64..400), 1..2000),
        ) {
            let layout = TableLayout::new(0);
            let words = memory(layout);
            let mut sets: Vec<HashSet<u64>> = vec![HashSet::new(); 9];
            let mut entered = entered;
            entered.sort_by_key(|(step, _)| *step); // time advances
            for (step, identifier) in &entered {
                let set = &mut sets[*step as usize];
                let room = layout.enter(&words, *step, *identifier);
                prop_assert_eq!(room, set.contains(identifier) || set.len() < 16 * SLOTS);
                if room {
                    set.insert(*identifier);
                }
            }
            let last = entered.last().unwrap().0;
            for step in last.saturating_sub(3)..=last {
                let set = &sets[step as usize];
                prop_assert_eq!(layout.count(&words, step), set.len() as u64);
                for identifier in 0..400 {
                    let found = layout.contains(&words, step, identifier);
                    prop_assert_eq!(found, set.contains(&identifier));
                }
            }
        }
    }
}
