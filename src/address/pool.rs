//! A pool of distinct pseudo-random addresses under a prefix, computed from a seed instead of
//! stored.
//!
//! Address i is the image of i under a keyed permutation of the host bits. A permutation has no
//! collisions, so the pool needs no table: it computes an address from its index, and the index
//! from the address, in a few nanoseconds, whatever its size. Server and client have the same pool
//! if they use the same prefix, count and seed.

use std::net::Ipv6Addr;
use std::ops::RangeInclusive;

use super::Prefix;

/// `count` distinct addresses under `prefix`, none with a reserved interface identifier.
#[derive(Debug, Clone)]
pub struct Pool {
    prefix: Prefix,
    count: u64,
    seed: u64,
    permutation: Permutation,
}

/// Why a pool cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The prefix holds fewer addresses than asked for.
    #[error(
        "{prefix} holds {capacity} usable addresses, not {count}: use a shorter prefix or fewer \
         addresses"
    )]
    TooMany {
        /// The prefix that is too small.
        prefix: Prefix,
        /// Its number of addresses, without reserved interface identifiers.
        capacity: u64,
        /// The number asked for.
        count: u64,
    },
    /// A server with no address answers nothing.
    #[error("0 addresses: ask for at least 1")]
    Empty,
}

impl Pool {
    /// The pool of `count` addresses that `seed` selects under `prefix`.
    ///
    /// # Errors
    /// If `count` is 0, or more than the prefix holds without its reserved identifiers.
    pub fn new(prefix: Prefix, count: u64, seed: u64) -> Result<Self, PoolError> {
        // Under a prefix shorter than /64, the bits between it and the 64-bit identifier stay zero.
        let bits = u32::from(128 - prefix.length()).min(64);
        let capacity = capacity(bits);
        if count == 0 {
            return Err(PoolError::Empty);
        }
        if count > capacity {
            return Err(PoolError::TooMany { prefix, capacity, count });
        }
        Ok(Self { prefix, count, seed, permutation: Permutation::new(bits, seed) })
    }

    /// Number of addresses in the pool; at least 1.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The prefix that contains all of them.
    pub fn prefix(&self) -> Prefix {
        self.prefix
    }

    /// The seed that selects the addresses.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Address number `index`; distinct for each index below [`count`](Self::count).
    #[inline]
    pub fn address(&self, index: u64) -> Ipv6Addr {
        // Cycle walking: map a reserved image again until it is usable. Restricted to usable
        // identifiers, this is still a permutation. At /64 it needs a second step once in 2^40
        // addresses.
        let mut host = self.permutation.forward(skip_reserved(index, self.permutation.bits));
        while is_reserved(host, self.permutation.bits) {
            host = self.permutation.forward(host);
        }
        Ipv6Addr::from_bits(self.prefix.network().to_bits() | u128::from(host))
    }

    /// The index of `address`, or `None` if it is not in the pool.
    #[inline]
    pub fn index_of(&self, address: Ipv6Addr) -> Option<u64> {
        let host = address.to_bits() ^ self.prefix.network().to_bits();
        let host = u64::try_from(host).ok()?;
        let bits = self.permutation.bits;
        if host & !low(bits) != 0 || is_reserved(host, bits) {
            return None;
        }
        let mut host = self.permutation.backward(host);
        while is_reserved(host, bits) {
            host = self.permutation.backward(host);
        }
        Some(unskip_reserved(host, bits)).filter(|&index| index < self.count)
    }

    /// Whether `address` is in the pool.
    #[inline]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        self.index_of(address).is_some()
    }

    /// All addresses in index order, computed on `threads` threads.
    #[must_use]
    pub fn to_vec(&self, threads: usize) -> Vec<Ipv6Addr> {
        let mut addresses =
            vec![Ipv6Addr::UNSPECIFIED; usize::try_from(self.count).unwrap_or(usize::MAX)];
        super::fill(&mut addresses, threads, |index| self.address(index));
        addresses
    }

    /// All addresses in index order.
    pub fn iter(&self) -> impl Iterator<Item = Ipv6Addr> + '_ {
        (0..self.count).map(|index| self.address(index))
    }
}

/// Interface identifiers that must not be assigned, ascending. See [`reserved`].
type Reserved = &'static [RangeInclusive<u64>];

/// The reserved identifiers at fixed values among host parts of `bits` bits, ascending.
///
/// With 64 bits this is the IANA registry of RFC 5453: subnet-router anycast (RFC 4291), IANA's own
/// Ethernet block (RFC 4291, RFC 6543) and reserved subnet anycast (RFC 2526, which gives EUI-64
/// identifiers another range than others). With fewer bits, both kinds of anycast are reserved. A
/// subnet of less than 8 bits has no room for the 128 addresses of RFC 2526; such subnets serve
/// point-to-point links (RFC 6164).
fn reserved(bits: u32) -> Reserved {
    const ANYCAST_64: Reserved = &[
        0..=0,
        0x0200_5eff_fe00_0000..=0x0200_5eff_feff_ffff,
        0xfdff_ffff_ffff_ff80..=0xfdff_ffff_ffff_ffff,
    ];
    const ROUTER: Reserved = &[0..=0];
    match bits {
        64 => ANYCAST_64,
        0 => &[], // a /128 is one address, not a subnet
        _ => ROUTER,
    }
}

/// First identifier of the RFC 2526 block in a host part of `bits` bits, where it ends the range.
fn anycast_top(bits: u32) -> Option<u64> {
    (8..64).contains(&bits).then(|| low(bits) - 127)
}

#[inline]
fn is_reserved(host: u64, bits: u32) -> bool {
    reserved(bits).iter().any(|range| range.contains(&host))
        || anycast_top(bits).is_some_and(|top| host >= top)
}

/// Number of usable identifiers of `bits` bits. 2^64 minus the reserved ones fits into 64 bits.
fn capacity(bits: u32) -> u64 {
    let fixed: u64 = reserved(bits).iter().map(|range| range.end() - range.start() + 1).sum();
    let top = if anycast_top(bits).is_some() { 128 } else { 0 };
    low(bits).wrapping_add(1).wrapping_sub(fixed).wrapping_sub(top)
}

/// Usable identifier number `index`, in ascending order.
#[inline]
fn skip_reserved(index: u64, bits: u32) -> u64 {
    reserved(bits).iter().fold(index, |host, range| {
        if host >= *range.start() { host + (range.end() - range.start() + 1) } else { host }
    })
}

/// Inverse of [`skip_reserved`] for a usable identifier.
#[inline]
fn unskip_reserved(host: u64, bits: u32) -> u64 {
    let below = |range: &&RangeInclusive<u64>| *range.end() < host;
    host - reserved(bits)
        .iter()
        .filter(below)
        .map(|range| range.end() - range.start() + 1)
        .sum::<u64>()
}

/// A mask of the `bits` lower bits.
#[inline]
fn low(bits: u32) -> u64 {
    u64::MAX.checked_shr(64 - bits).unwrap_or(0)
}

/// A keyed bijection on `bits`-bit numbers: three rounds of xor-shift and odd multiplication, each
/// invertible modulo 2^bits. It scatters, but it is not a cipher: anyone who knows the method can
/// invert it.
#[derive(Debug, Clone)]
struct Permutation {
    bits: u32,
    /// At least half of `bits`, so that one xor-shift is its own inverse.
    shift: u32,
    rounds: [Round; 3],
}

#[derive(Debug, Clone, Copy)]
struct Round {
    add: u64,
    multiply: u64,
    /// Of `multiply`, modulo 2^64.
    inverse: u64,
}

impl Permutation {
    fn new(bits: u32, seed: u64) -> Self {
        let mut state = seed;
        let rounds = [(); 3].map(|()| {
            let add = splitmix64(&mut state);
            let multiply = splitmix64(&mut state) | 1;
            Round { add, multiply, inverse: inverse(multiply) }
        });
        Self { bits, shift: bits.div_ceil(2).max(1), rounds }
    }

    #[inline]
    fn forward(&self, mut x: u64) -> u64 {
        for round in &self.rounds {
            x = x.wrapping_add(round.add).wrapping_mul(round.multiply) & low(self.bits);
            x ^= x >> self.shift;
        }
        x
    }

    #[inline]
    fn backward(&self, mut x: u64) -> u64 {
        for round in self.rounds.iter().rev() {
            x ^= x >> self.shift;
            x = x.wrapping_mul(round.inverse).wrapping_sub(round.add) & low(self.bits);
        }
        x
    }
}

/// The inverse of an odd number modulo 2^64, by Newton's iteration. An odd number is its own
/// inverse modulo 8, and each step doubles the number of correct bits.
fn inverse(odd: u64) -> u64 {
    (0..5).fold(odd, |x, _| x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x))))
}

/// The next SplitMix64 number (Steele, Lea, Flood 2014): good enough to derive constants from a
/// seed.
fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn pool(prefix: &str, count: u64, seed: u64) -> Result<Pool, PoolError> {
        Pool::new(prefix.parse().unwrap(), count, seed)
    }

    #[test]
    fn small_prefixes_are_used_up_exactly() {
        for (prefix, usable) in
            [("2001:db8::/120", 127), ("2001:db8::/116", 3967), ("2001:db8::/122", 63)]
        {
            let whole = pool(prefix, usable, 7).unwrap();
            let drawn: HashSet<_> = whole.iter().collect();
            assert_eq!(drawn.len() as u64, usable, "{prefix}");
            let error = pool(prefix, usable + 1, 7).unwrap_err();
            assert_eq!(
                error,
                PoolError::TooMany { prefix: whole.prefix(), capacity: usable, count: usable + 1 }
            );
        }
        assert_eq!(
            pool("2001:db8::/127", 1, 7).unwrap().address(0),
            "2001:db8::1".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(
            pool("2001:db8::5/128", 1, 7).unwrap().address(0),
            "2001:db8::5".parse::<Ipv6Addr>().unwrap()
        );
        assert_eq!(pool("2001:db8::/64", 0, 7).unwrap_err(), PoolError::Empty);
    }

    #[test]
    fn a_large_pool_is_distinct_and_scattered() {
        let pool = pool("2001:db8:1::/64", 100_000, 1).unwrap();
        let drawn: HashSet<_> = pool.iter().collect();
        assert_eq!(drawn.len(), 100_000);
        assert!(pool.to_vec(3).into_iter().eq(pool.iter()));
        // Each host bit is set in about half of the addresses. 1,107 is 7 standard deviations of a
        // fair coin.
        for bit in 0..64 {
            let set = drawn.iter().filter(|address| address.to_bits() >> bit & 1 == 1).count();
            assert!(set.abs_diff(50_000) < 1_107, "bit {bit} is set in {set} of 100,000");
        }
    }

    #[test]
    fn the_same_flags_give_the_same_addresses_for_ever() {
        // A contract, not an implementation detail: server and client may be different builds.
        let pool = pool("2001:db8:1::/64", 3, 1).unwrap();
        let addresses: Vec<_> = pool.iter().map(|address| address.to_string()).collect();
        assert_eq!(addresses, FIRST_THREE);
    }

    // Computed by an independent Python script.
    const FIRST_THREE: [&str; 3] = [
        "2001:db8:1:0:33ca:f6a4:4aa8:1bd6",
        "2001:db8:1:0:9761:4e92:c2a2:68a4",
        "2001:db8:1:0:96be:62b:29f1:817e",
    ];

    proptest! {
        #[test]
        fn index_and_address_are_inverse(length in 0u8..=128, seed: u64, index: u64) {
            let prefix = Prefix::around(Ipv6Addr::UNSPECIFIED, length);
            let bits = u32::from(128 - length).min(64);
            let pool = Pool::new(prefix, capacity(bits), seed).unwrap();
            let index = index % pool.count();
            let address = pool.address(index);
            prop_assert!(prefix.contains(address));
            prop_assert!(!is_reserved(address.to_bits() as u64, bits));
            prop_assert_eq!(pool.index_of(address), Some(index));
        }

        #[test]
        fn every_usable_address_of_a_full_pool_has_an_index(
            length in 100u8..=128, seed: u64, host: u64,
        ) {
            let prefix = Prefix::around(Ipv6Addr::UNSPECIFIED, length);
            let bits = u32::from(128 - length);
            let pool = Pool::new(prefix, capacity(bits), seed).unwrap();
            let address = Ipv6Addr::from_bits(u128::from(host & low(bits)));
            prop_assert_eq!(pool.contains(address), !is_reserved(host & low(bits), bits));
        }

        #[test]
        fn what_is_outside_is_not_in_the_pool(bits: u128, seed: u64) {
            let pool = pool("2001:db8:1::/64", 1000, seed).unwrap();
            let address = Ipv6Addr::from_bits(bits);
            prop_assert_eq!(pool.contains(address), pool.iter().any(|a| a == address));
        }
    }
}
