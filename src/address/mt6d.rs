//! Moving target IPv6 defence: both ends compute the same address on their own, and a new one in
//! each time step.
//!
//! ```text
//!   identifier = the first 64 bits of SHA-256( seed identifier ‖ key ‖ time step )
//!                                              8 bytes          any   8 bytes
//!   with numbers in network byte order
//! ```
//!
//! The definition follows the paper (Morrell, Ransbottom, Marchany, Tront, 2014, section II) and
//! MT6D itself (Dunlop, Groat, Urbanski, Marchany, Tront, 2011). Neither says how wide the numbers
//! are. All 64 bits come from the hash unchanged. One identifier in 2^39 is reserved (RFC 5453) and
//! is used anyway.
//!
//! Three addresses of each client are live at a time, so clocks may differ by one step:
//!
//! ```text
//!   time ──────┬─────────┬─────────┬─────────┬─────────┬──────►
//!     step     │   k-2   │   k-1   │    k    │   k+1   │
//!     live in k    –         live      live      live     –
//! ```

use std::fmt;
use std::net::Ipv6Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use super::{Prefix, PrefixError, Secret, fill};

/// Number of steps whose addresses are live at a time: the current one and its two neighbours.
pub const WINDOW: u64 = 3;

/// The steps whose addresses are live during `step`.
#[must_use]
pub fn window(step: u64) -> RangeInclusive<u64> {
    step.saturating_sub(1)..=step.saturating_add(1)
}

/// The interface identifier in `step` of the host with this seed identifier and key.
#[inline]
#[must_use]
pub fn identifier(seed: u64, key: &[u8], step: u64) -> u64 {
    let hash = Sha256::new()
        .chain_update(seed.to_be_bytes())
        .chain_update(key)
        .chain_update(step.to_be_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(0, |bits| u64::from_be_bytes(*bits)) // the first 8 of 32 bytes
}

/// A subnet whose addresses move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet(Prefix);

impl Subnet {
    /// The subnet `prefix`, which must be a /64: MT6D identifiers fill the other 64 bits.
    ///
    /// # Errors
    /// If the prefix is not a /64.
    pub fn new(prefix: Prefix) -> Result<Self, PrefixError> {
        if prefix.length() == 64 { Ok(Self(prefix)) } else { Err(PrefixError::NotSubnet(prefix)) }
    }

    /// Its prefix.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        self.0
    }

    /// The address with the [`identifier`] for these arguments.
    #[inline]
    #[must_use]
    pub fn address(&self, seed: u64, key: &[u8], step: u64) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.network().to_bits() | u128::from(identifier(seed, key, step)))
    }
}

/// Converts times to steps. Times are nanoseconds since 1970 (UTC) by this machine's clock, whether
/// it is right or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    period: u64,
    offset: i64,
}

impl Clock {
    /// A clock with steps of `period`.
    ///
    /// # Errors
    /// If `period` is less than a second or more than 366 days.
    pub fn new(period: Duration) -> Result<Self, ClockError> {
        const YEAR: Duration = Duration::from_secs(366 * 86_400);
        if !(Duration::from_secs(1)..=YEAR).contains(&period) {
            return Err(ClockError(period));
        }
        Ok(Self { period: period.as_nanos() as u64, offset: 0 })
    }

    /// The same on a machine whose clock is `nanoseconds` ahead of the right time; negative if
    /// behind.
    #[must_use]
    pub fn ahead(self, nanoseconds: i64) -> Self {
        Self { offset: nanoseconds, ..self }
    }

    /// Length of a step.
    #[must_use]
    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.period)
    }

    /// The step at `time`.
    #[inline]
    #[must_use]
    pub fn step(&self, time: u64) -> u64 {
        time.saturating_add_signed(self.offset) / self.period
    }

    /// The time at which `step` begins.
    #[must_use]
    pub fn start(&self, step: u64) -> u64 {
        step.saturating_mul(self.period).saturating_add_signed(self.offset.saturating_neg())
    }
}

/// The length of a time step is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a time step of {0:?}: use one second to one year")]
pub struct ClockError(Duration);

/// What a client's addresses follow from: a seed identifier and a key, 40 secret bytes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Seed {
    identifier: u64,
    key: [u8; 32],
}

impl Seed {
    /// Bytes of a seed.
    pub(super) const LENGTH: usize = 40;

    /// The seed identifier in network byte order, then the key.
    pub(super) fn from_bytes(bytes: &[u8; Self::LENGTH]) -> Self {
        let mut seed = Self::default();
        if let Some((identifier, key)) = bytes.split_first_chunk() {
            seed.identifier = u64::from_be_bytes(*identifier);
            seed.key.copy_from_slice(key);
        }
        seed
    }

    /// The reverse of [`from_bytes`](Self::from_bytes).
    pub(super) fn to_bytes(&self) -> Zeroizing<[u8; Self::LENGTH]> {
        let mut bytes = Zeroizing::new([0; Self::LENGTH]);
        bytes[..8].copy_from_slice(&self.identifier.to_be_bytes());
        bytes[8..].copy_from_slice(&self.key);
        bytes
    }

    /// The address in `step` of who has this seed.
    #[inline]
    pub(super) fn address(&self, subnet: Subnet, step: u64) -> Ipv6Addr {
        subnet.address(self.identifier, &self.key, step)
    }
}

impl Zeroize for Seed {
    fn zeroize(&mut self) {
        self.identifier.zeroize();
        self.key.zeroize();
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(not shown)")
    }
}

/// The address of each client in each time step. Server and client agree if they use the same
/// subnet, time step and secret.
pub struct Timetable {
    subnet: Subnet,
    clock: Clock,
    /// 40 bytes per client, overwritten on drop.
    seeds: Zeroizing<Vec<Seed>>,
}

impl Timetable {
    /// The timetable of `clients` clients, derived on `threads` threads. It does not keep the
    /// secret.
    #[must_use]
    pub fn new(
        subnet: Subnet,
        clock: Clock,
        secret: &Secret,
        clients: u32,
        threads: usize,
    ) -> Self {
        // Allocated once: growing would leave a copy of the keys in freed memory.
        let mut seeds = Zeroizing::new(vec![Seed::default(); clients as usize]);
        fill(&mut seeds, threads, |client| secret.seed(client));
        Self { subnet, clock, seeds }
    }

    /// The timetable of the one client who has `seed`, as client 0.
    pub(super) fn of_one(subnet: Subnet, clock: Clock, seed: &Seed) -> Self {
        Self { subnet, clock, seeds: Zeroizing::new(vec![seed.clone()]) }
    }

    /// The subnet of all addresses.
    #[must_use]
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The clock that gives the step.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Number of clients.
    #[must_use]
    pub fn clients(&self) -> u64 {
        self.seeds.len() as u64
    }

    /// Memory in bytes that a timetable for `clients` clients takes.
    #[must_use]
    pub fn memory_for(clients: u32) -> u64 {
        u64::from(clients) * size_of::<Seed>() as u64
    }

    /// Memory in bytes that this timetable takes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        size_of_val(&self.seeds[..]) as u64
    }

    /// The address in `step` of `client`, which must be below [`clients`](Self::clients).
    #[inline]
    #[must_use]
    pub fn address(&self, client: u64, step: u64) -> Ipv6Addr {
        self.seeds[client as usize].address(self.subnet, step)
    }
}

impl fmt::Debug for Timetable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { subnet, clock, seeds } = self;
        f.debug_struct("Timetable")
            .field("subnet", subnet)
            .field("clock", clock)
            .field("clients", &seeds.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn timetable(clients: u32) -> Timetable {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let secret = Secret::new(b"not a secret, since it is here".to_vec()).unwrap();
        Timetable::new(subnet, Clock::new(Duration::from_secs(10)).unwrap(), &secret, clients, 3)
    }

    #[test]
    fn who_looks_at_it_learns_no_key() {
        let shown = format!("{:?}", timetable(1000));
        assert!(shown.len() < 200 && shown.contains("clients: 1000"), "{shown}");
        assert_eq!(format!("{:?}", timetable(1).seeds[0]), "Seed(not shown)");
    }

    proptest! {
        #[test]
        fn a_step_is_as_long_as_it_says(
            period in 1u64..100_000, time in 0..u64::MAX / 4, wrong: i32,
        ) {
            let clock = Clock::new(Duration::from_secs(period)).unwrap();
            let clock = clock.ahead(i64::from(wrong) * 1000);
            let time = time.max(1 << 50);
            let step = clock.step(time);
            prop_assert!(clock.start(step) <= time && time < clock.start(step + 1));
            prop_assert_eq!(clock.start(step + 1) - clock.start(step), period * 1_000_000_000);
        }
    }

    #[test]
    fn a_clock_that_is_wrong_is_in_another_step() {
        let clock = Clock::new(Duration::from_secs(10)).unwrap();
        let second = 1_000_000_000;
        let now = 1_000_005 * second as u64;
        assert_eq!(clock.step(now), 100_000);
        assert_eq!(clock.ahead(50 * second).step(now), 100_005);
        assert_eq!(clock.ahead(-50 * second).step(now), 99_995);
        assert_eq!(clock.ahead(5 * second).step(now), 100_001);
        assert_eq!(clock.ahead(-5 * second).step(now), 100_000);
        for none in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(1 << 40)] {
            assert!(Clock::new(none).unwrap_err().to_string().contains("one second"));
        }
    }

    /// Random numbers would exceed one of these bounds with a probability below 1 in a million.
    #[test]
    fn nothing_links_the_addresses() {
        const CLIENTS: u64 = 1000;
        const STEPS: u64 = 100;
        const COUNT: f64 = (CLIENTS * STEPS) as f64;
        // 6.5 standard deviations of a fair coin: 1 in 10^10. The test checks fewer than 10,000
        // coins.
        let fair = |ones: u64, of: f64| (ones as f64 - of / 2.0).abs() < 6.5 * (of / 4.0).sqrt();
        let timetable = timetable(CLIENTS as u32);
        let first = 178_000_000;
        let host = |client, step| timetable.address(client, step).to_bits() as u64;
        let prefix = 0x2001_0db8_0001_0000_u128;
        let (mut ones, mut changed, mut between) = ([0u64; 64], [0u64; 64], [0u64; 64]);
        let (mut pairs, mut carried) = (vec![0u64; 64 * 64], vec![0u64; 64 * 64]);
        let (mut ascending, mut buckets) = (0, vec![0u64; 1 << 10]);
        let mut all = std::collections::HashSet::new();
        for client in 0..CLIENTS {
            for step in first..first + STEPS {
                let address = timetable.address(client, step);
                assert_eq!(address.to_bits() >> 64, prefix);
                let (now, next) = (host(client, step), host(client, step + 1));
                let neighbour = host((client + 1) % CLIENTS, step);
                all.insert(now);
                ascending += u64::from(next > now);
                buckets[(now >> 54) as usize] += 1;
                for bit in 0..64 {
                    ones[bit] += now >> bit & 1;
                    changed[bit] += (now ^ next) >> bit & 1;
                    between[bit] += (now ^ neighbour) >> bit & 1;
                    // Each bit against each other bit of the same address and of the next.
                    let (own, later) =
                        (now ^ now.rotate_right(bit as u32), now ^ next.rotate_right(bit as u32));
                    for place in 0..64 {
                        pairs[64 * bit + place] += own >> place & 1;
                        carried[64 * bit + place] += later >> place & 1;
                    }
                }
            }
        }
        assert_eq!(all.len() as f64, COUNT, "an address came twice");
        for counts in [&ones[..], &changed, &between, &pairs[64..], &carried] {
            assert!(counts.iter().all(|count| fair(*count, COUNT)), "{counts:?}");
        }
        // 1,024 equal intervals: chi-square with 1,023 degrees of freedom is about normal, with
        // twice that variance.
        let expected = COUNT / buckets.len() as f64;
        let chi: f64 =
            buckets.iter().map(|count| (*count as f64 - expected).powi(2) / expected).sum();
        let freedom = buckets.len() as f64 - 1.0;
        assert!((chi - freedom).abs() < 6.5 * (2.0 * freedom).sqrt(), "{chi}");
        // Successive comparisons are not independent. Their variance is a third of a coin's, well
        // within the bound.
        assert!(fair(ascending, COUNT), "{ascending}");
    }

    /// Computed by tests/data/mt6d.py with Python's hashlib.
    const VECTORS: &str = include_str!("../../tests/data/mt6d.txt");

    #[test]
    fn identifiers_are_those_of_an_independent_computation() {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let mut count = 0;
        for line in VECTORS.lines() {
            let [seed, key, step, expected] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let seed = u64::from_str_radix(seed, 16).unwrap();
            let byte = |at| u8::from_str_radix(&key[at..at + 2], 16).unwrap();
            let key: Vec<u8> = (0..key.len() / 2 * 2).step_by(2).map(byte).collect();
            let step = step.parse().unwrap();
            let expected = u64::from_str_radix(expected, 16).unwrap();
            assert_eq!(identifier(seed, &key, step), expected, "{line}");
            let address = 0x2001_0db8_0001_0000_u128 << 64 | u128::from(expected);
            assert_eq!(subnet.address(seed, &key, step).to_bits(), address);
            count += 1;
        }
        assert_eq!(count, 80);
    }

    #[test]
    fn only_a_64_bit_prefix_is_a_subnet() {
        for other in ["2001:db8::/63", "2001:db8::/65", "2001:db8::/128"] {
            let error = Subnet::new(other.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains("/64"), "{error}");
        }
    }
}
