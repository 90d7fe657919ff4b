//! The master secret, and what each client has of it: the seed of its addresses, and a key for its
//! tunnel.
//!
//! ```text
//!   HKDF-SHA-256 (RFC 5869)   salt  "sixhop mt6d 1"
//!     info  "client" ‖ number of the client   40 bytes: seed identifier, 8 ‖ key, 32
//!     info  "tunnel" ‖ number of the client   32 bytes: tunnel key
//!   with numbers of 8 bytes in network byte order
//! ```
//!
//! The salt separates domains: the same secret gives other keys in another program, or in another
//! version of this scheme. The labels have one length, so no two infos are equal. Nobody gets from
//! one output to the secret or to another output without inverting HMAC-SHA-256.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::mt6d::Seed;

const SALT: &[u8] = b"sixhop mt6d 1";
const CLIENT: &[u8; 6] = b"client";
const TUNNEL: &[u8; 6] = b"tunnel";

/// Shortest secret in bytes: 128 bits if all of them are random.
pub const MIN_SECRET: usize = 16;

/// A master secret, overwritten on drop.
pub struct Secret(Zeroizing<Vec<u8>>);

/// Too few bytes for a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a secret of {0} bytes can be guessed: use at least {MIN_SECRET} (head -c 32 \
     /dev/urandom)"
)]
pub struct SecretError(usize);

impl Secret {
    /// Takes any bytes.
    ///
    /// # Errors
    /// If there are fewer than 16.
    pub fn new(bytes: Vec<u8>) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(bytes);
        if bytes.len() < MIN_SECRET { Err(SecretError(bytes.len())) } else { Ok(Self(bytes)) }
    }

    /// What the addresses of client number `client` follow from.
    pub(super) fn seed(&self, client: u64) -> Seed {
        Seed::from_bytes(&self.expand(CLIENT, client))
    }

    /// The key for the tunnel of client number `client`.
    pub(super) fn tunnel_key(&self, client: u64) -> Zeroizing<[u8; 32]> {
        self.expand(TUNNEL, client)
    }

    fn expand<const N: usize>(&self, label: &[u8; 6], client: u64) -> Zeroizing<[u8; N]> {
        let mut bytes = Zeroizing::new([0; N]);
        // HKDF fails only beyond 255 hash lengths; this is at most 40 bytes.
        let expanded = Hkdf::<Sha256>::new(Some(SALT), &self.0)
            .expand_multi_info(&[label, &client.to_be_bytes()], &mut *bytes);
        debug_assert!(expanded.is_ok());
        bytes
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by tests/data/secret.py with Python's hmac and hashlib.
    const VECTORS: &str = include_str!("../../tests/data/secret.txt");

    #[test]
    fn seeds_and_keys_are_those_of_an_independent_computation() {
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        let mut count = 0;
        for line in VECTORS.lines() {
            let [secret, client, seed, key, tunnel] = line.split(' ').collect::<Vec<_>>()[..]
            else {
                panic!("{line}")
            };
            let secret = Secret::new(bytes(secret)).unwrap();
            let client = client.parse().unwrap();
            let of_addresses = bytes(&format!("{seed}{key}"));
            assert_eq!(secret.seed(client).to_bytes()[..], of_addresses, "{line}");
            assert_eq!(secret.tunnel_key(client)[..], bytes(tunnel), "{line}");
            count += 1;
        }
        assert_eq!(count, 20);
    }

    #[test]
    fn a_secret_is_long_enough_and_not_shown() {
        assert!(Secret::new(vec![7; 15]).unwrap_err().to_string().contains("15 bytes"));
        assert_eq!(format!("{:?}", Secret::new(vec![7; 16]).unwrap()), "Secret(not shown)");
    }
}
