//! An IPv6 prefix, written as `2001:db8:1::/64`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// A unicast IPv6 prefix whose bits beyond `length` are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    network: u128,
    length: u8,
}

/// Why a text is not a prefix for live addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not of the form ADDRESS/LENGTH.
    #[error("'{0}' is not an IPv6 prefix: write ADDRESS/LENGTH, as in 2001:db8:1::/64")]
    Form(String),
    /// A length outside 0 to 128.
    #[error("'{0}' is not a prefix length: IPv6 allows 0 to 128")]
    Length(String),
    /// Bits beyond the length are set, so the intent is unclear.
    #[error("{0}/{1} has bits set beyond its length: did you mean {2}?")]
    HostBits(Ipv6Addr, u8, Prefix),
    /// A server cannot send from such an address.
    #[error("{0} is not made of global unicast addresses: {1}")]
    NotUnicast(Prefix, &'static str),
    /// Not the length of a subnet with 64-bit interface identifiers.
    #[error("{0} does not leave exactly 64 bits for interface identifiers: use a /64")]
    NotSubnet(Prefix),
}

impl Prefix {
    /// The prefix of `length` bits (0 to 128) at `address`.
    ///
    /// # Errors
    /// If bits beyond `length` are set, `length` exceeds 128, or the prefix is not within 2000::/3
    /// or fc00::/7.
    pub fn new(address: Ipv6Addr, length: u8) -> Result<Self, PrefixError> {
        if length > 128 {
            return Err(PrefixError::Length(length.to_string()));
        }
        let prefix = Self { network: address.to_bits() & mask(length), length };
        if prefix.network != address.to_bits() {
            return Err(PrefixError::HostBits(address, length, prefix));
        }
        if address.is_multicast() {
            return Err(PrefixError::NotUnicast(prefix, "ff00::/8 is multicast"));
        }
        if address.is_unicast_link_local() {
            return Err(PrefixError::NotUnicast(
                prefix,
                "fe80::/10 is link-local, and needs a scope",
            ));
        }
        if address == Ipv6Addr::LOCALHOST {
            return Err(PrefixError::NotUnicast(prefix, "::1 is loopback"));
        }
        // Everything outside these two is multicast, link-local, the kernel's own, or not assigned
        // yet (RFC 4291 section 2.4).
        let global = Self::around(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
        let local = Self::around(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7);
        if !global.covers(&prefix) && !local.covers(&prefix) {
            let why = "it is not within 2000::/3 (global) or fc00::/7 (unique local)";
            return Err(PrefixError::NotUnicast(prefix, why));
        }
        Ok(prefix)
    }

    /// The prefix of `length` bits (at most 128) around `address`, without the checks of
    /// [`Self::new`]. Use it for prefixes of other hosts, not for addresses to bind.
    #[must_use]
    pub fn around(address: Ipv6Addr, length: u8) -> Self {
        let length = length.min(128);
        Self { network: address.to_bits() & mask(length), length }
    }

    /// The address whose host bits are all zero: the subnet-router anycast address (RFC 4291
    /// section 2.6.1).
    pub fn network(&self) -> Ipv6Addr {
        self.network.into()
    }

    /// Length in bits, 0 to 128.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether this prefix contains all of `other`.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && self.contains(other.network())
    }

    /// Whether this prefix contains `address`.
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        address.to_bits() & mask(self.length) == self.network
    }
}

/// A mask of the `length` upper bits.
fn mask(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let form = || PrefixError::Form(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv6Addr = address.parse().map_err(|_| form())?;
        let length = length.parse().map_err(|_| PrefixError::Length(length.to_owned()))?;
        Self::new(address, length)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn error(text: &str) -> String {
        text.parse::<Prefix>().unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_a_prefix_is_named() {
        assert!(error("192.0.2.0/24").contains("not an IPv6 prefix"));
        assert!(error("2001:db8::").contains("ADDRESS/LENGTH"));
        assert!(error("2001:db8::/129").contains("0 to 128"));
        assert!(error("2001:db8::/x").contains("0 to 128"));
        assert!(error("2001:db8::5/64").contains("did you mean 2001:db8::/64"));
        assert!(error("ff02::/16").contains("multicast"));
        assert!(error("fe80::/64").contains("link-local"));
        assert!(error("::1/128").contains("loopback"));
    }

    #[test]
    fn what_reaches_beyond_global_unicast_is_no_prefix_for_addresses() {
        for text in [
            "::/0",
            "::/1",
            "8000::/1",
            "::/128",
            "::ffff:0:0/96",
            "4000::/3",
            "64:ff9b::/96",
            "fc00::/6",
            "f800::/5",
        ] {
            assert!(error(text).contains("not within 2000::/3"), "{text}: {}", error(text));
        }
        for text in ["fec0::/10", "ff00::/8", "fe80::/10"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        for text in ["2000::/3", "2001:db8::/32", "fd00:1::/64", "fc00::/7", "3fff::/20"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn text_and_value_agree(bits: u128, length in 0u8..=128) {
            let network = Ipv6Addr::from_bits(bits & mask(length));
            if let Ok(prefix) = Prefix::new(network, length) {
                prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
                let inside = prefix.network | bits & !mask(length);
                prop_assert!(prefix.contains(Ipv6Addr::from_bits(inside)));
                if length > 0 {
                    let outside = prefix.network ^ (1 << (128 - u32::from(length)));
                    prop_assert!(!prefix.contains(Ipv6Addr::from_bits(outside)));
                }
            }
        }
    }
}
