//! Allowed sources: the prefixes of the clients that the service answers.

use std::fmt;
use std::net::Ipv6Addr;

use super::{Prefix, PrefixError};

/// A set of prefixes with fast lookup of an address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Sorted; none contains another.
    prefixes: Vec<Prefix>,
}

impl Sources {
    /// All addresses under any of `prefixes`.
    pub fn new(prefixes: impl IntoIterator<Item = Prefix>) -> Self {
        let mut prefixes: Vec<_> = prefixes.into_iter().collect();
        // A prefix sorts before all prefixes that it contains, and those before any other.
        prefixes.sort_by_key(|prefix| (prefix.network(), prefix.length()));
        let mut kept: Vec<Prefix> = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            if !kept.last().is_some_and(|last| last.contains(prefix.network())) {
                kept.push(prefix);
            }
        }
        Self { prefixes: kept }
    }

    /// Every source.
    #[must_use]
    pub fn all() -> Self {
        Self { prefixes: vec![Prefix::around(Ipv6Addr::UNSPECIFIED, 0)] }
    }

    /// Whether this allows every source.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.prefixes.first().is_some_and(|prefix| prefix.length() == 0)
    }

    /// Whether `source` is allowed.
    #[inline]
    #[must_use]
    pub fn contains(&self, source: Ipv6Addr) -> bool {
        // Prefixes are disjoint, so only the last one that starts at or before `source` can contain
        // it.
        let after = self.prefixes.partition_point(|prefix| prefix.network() <= source);
        after > 0 && self.prefixes[after - 1].contains(source)
    }

    /// The prefixes, sorted; none contains another.
    #[must_use]
    pub fn prefixes(&self) -> &[Prefix] {
        &self.prefixes
    }

    /// Parses a prefix of sources, such as `2001:db8::/32`. Unlike a prefix for live addresses, it
    /// may be any that is not multicast.
    ///
    /// # Errors
    /// Why the text is not a prefix of sources.
    pub fn parse(text: &str) -> Result<Prefix, PrefixError> {
        match text.parse() {
            Err(PrefixError::NotUnicast(prefix, _)) if !prefix.network().is_multicast() => {
                Ok(prefix)
            }
            parsed => parsed,
        }
    }
}

impl fmt::Display for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_all() {
            return f.write_str("everybody");
        }
        if self.prefixes.is_empty() {
            return f.write_str("nobody");
        }
        for (index, prefix) in self.prefixes.iter().enumerate() {
            write!(f, "{}{prefix}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sources(texts: &[&str]) -> Sources {
        Sources::new(texts.iter().map(|text| Sources::parse(text).unwrap()))
    }

    #[test]
    fn prefixes_under_others_go_and_the_rest_is_shown_in_order() {
        let some = sources(&["fe80::/64", "2001:db8:1::/64", "2001:db8:1::5/128", "2001:db8::/48"]);
        assert_eq!(some.to_string(), "2001:db8::/48, 2001:db8:1::/64, fe80::/64");
        assert_eq!(sources(&["2001:db8::/32", "::/0"]), Sources::all());
        assert_eq!(
            (Sources::all().to_string(), sources(&[]).to_string()),
            ("everybody".into(), "nobody".into())
        );
        assert!(Sources::all().is_all() && !some.is_all());
    }

    #[test]
    fn link_local_sources_can_be_named_and_groups_cannot() {
        assert_eq!(Sources::parse("fe80::/10").unwrap().length(), 10);
        assert!(Sources::parse("ff02::/16").unwrap_err().to_string().contains("multicast"));
        assert!(Sources::parse("2001:db8::5/64").unwrap_err().to_string().contains("did you mean"));
    }

    proptest! {
        #[test]
        fn an_address_is_in_it_when_it_is_under_one(
            // Few bits, so that prefixes often overlap.
            prefixes in proptest::collection::vec((0u128..64, 122u8..=128), 0..10),
            address in 0u128..64,
        ) {
            let around = |(bits, length): (u128, u8)| Prefix::around(bits.into(), length);
            let prefixes: Vec<_> = prefixes.into_iter().map(around).collect();
            let address = address.into();
            let expected = prefixes.iter().any(|prefix| prefix.contains(address));
            prop_assert_eq!(Sources::new(prefixes).contains(address), expected);
        }
    }
}
