//! Moving target IPv6 defence: an address that its two ends compute apart, and that is another one in each time step.
//!
//! ```text
//!   identifier = the first 64 bits of SHA-256( seed identifier ‖ key ‖ time step )
//!                                              8 bytes          any   8 bytes       numbers in network byte order
//! ```
//!
//! The definition is that of the paper (Morrell, Ransbottom, Marchany, Tront, 2014, section II) and of MT6D itself (Dunlop,
//! Groat, Urbanski, Marchany, Tront, 2011); neither says how wide the numbers are. All 64 bits are as the hash gives them:
//! one identifier in 2^39 is a reserved one (RFC 5453), and is used all the same.

use std::net::Ipv6Addr;

use sha2::{Digest, Sha256};

use super::{Prefix, PrefixError};

/// The interface identifier in time step `step` of the host with this seed identifier and this key.
#[inline]
#[must_use]
pub fn identifier(seed: u64, key: &[u8], step: u64) -> u64 {
    let hash =
        Sha256::new().chain_update(seed.to_be_bytes()).chain_update(key).chain_update(step.to_be_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    hash.first_chunk().map_or(0, |bits| u64::from_be_bytes(*bits)) // 32 bytes have a first 8
}

/// A subnet whose addresses move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet(Prefix);

impl Subnet {
    /// The subnet `prefix`, whose length is 64 bits: MT6D identifiers take the other 64.
    ///
    /// # Errors
    /// When the prefix has another length.
    pub fn new(prefix: Prefix) -> Result<Self, PrefixError> {
        if prefix.length() == 64 { Ok(Self(prefix)) } else { Err(PrefixError::NotSubnet(prefix)) }
    }

    /// The address with the [`identifier`] of the same arguments.
    #[inline]
    #[must_use]
    pub fn address(&self, seed: u64, key: &[u8], step: u64) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.0.network().to_bits() | u128::from(identifier(seed, key, step)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
