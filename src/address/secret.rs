//! The secret that server and clients share, and the derivation of each client's seed identifier
//! and key.
//!
//! ```text
//!   HKDF-SHA-256 (RFC 5869)   salt  "sixhop mt6d 1"
//!                             info  "client" ‖ number of the client, 8 bytes in network byte order
//!   40 bytes                  seed identifier, 8 bytes in network byte order ‖ key, 32 bytes
//! ```
//!
//! The salt separates domains: the same secret gives other keys in another program, or in another
//! version of this scheme.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::mt6d::Identity;

const SALT: &[u8] = b"sixhop mt6d 1";
const CLIENT: &[u8] = b"client";

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

    /// The identity of client number `client`.
    pub(super) fn identity(&self, client: u64) -> Identity {
        let mut bytes = [0; 40];
        let number = client.to_be_bytes();
        // HKDF fails only beyond 255 hash lengths; this is 40 bytes.
        let expanded = Hkdf::<Sha256>::new(Some(SALT), &self.0)
            .expand_multi_info(&[CLIENT, &number], &mut bytes);
        debug_assert!(expanded.is_ok());
        let mut identity = Identity::default();
        if let Some((seed, key)) = bytes.split_first_chunk() {
            identity.seed = u64::from_be_bytes(*seed);
            identity.key.copy_from_slice(key);
        }
        bytes.zeroize();
        identity
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
    fn identities_are_those_of_an_independent_computation() {
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
                .collect()
        };
        let mut count = 0;
        for line in VECTORS.lines() {
            let [secret, client, seed, key] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line}")
            };
            let identity = Secret::new(bytes(secret)).unwrap().identity(client.parse().unwrap());
            assert_eq!(identity.seed, u64::from_str_radix(seed, 16).unwrap(), "{line}");
            assert_eq!(identity.key[..], bytes(key), "{line}");
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
