//! IDENTITY: what one client needs to compute its own addresses, and nothing of anybody else's.
//!
//! ```text
//!   secret ── HKDF, "client" ‖ number ──► seed ──┬──► address of each step
//!        │                       prefix, step ───┘
//!        └─── HKDF, "tunnel" ‖ number ──► key of its tunnel
//! ```
//!
//! The server has the secret, from which it derives all clients' seeds. A client has its identity.
//! Whoever steals one has this client's addresses: secret.rs says why no other's.
//! The server knows it by its number.
//!
//! Here is the form that serde reads and writes; files are those of `host::identity`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::{Zeroize, Zeroizing};

use super::mt6d::{Clock, ClockError, Seed, Subnet, Timetable};
use super::{Prefix, PrefixError, Secret};

/// Version of the form. It grows when a field is added, goes or changes its meaning: a program that
/// does not know all of an identity must not ask by it.
pub const VERSION: u32 = 1;

/// One client's identity. Its secret bytes are overwritten on drop, and never shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Form")]
pub struct Identity {
    client: u32,
    subnet: Subnet,
    clock: Clock,
    seed: Zeroizing<Seed>,
    tunnel_key: Zeroizing<[u8; 32]>,
    services: Services,
}

/// Names of services, and their ports.
pub type Services = BTreeMap<String, u16>;

/// Why something is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Written by another version of Sixhop.
    #[error(
        "it is of version {0}, and this sixhop reads version {VERSION}: use the sixhop that \
         enrolled it, or enrol the client again"
    )]
    Version(u32),
    /// Its prefix is none, or no /64.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// Its step is too short or too long.
    #[error(transparent)]
    Clock(#[from] ClockError),
    /// Its step would not be the server's after a round trip through the form.
    #[error("a time step of {0:?}: an identity has steps of whole milliseconds")]
    Milliseconds(Duration),
    /// Not the name of a service.
    #[error("'{0}' is no name for a service: use 1 to 63 lower-case letters, digits and hyphens")]
    Name(String),
    /// Nothing listens on port 0.
    #[error("service {0} has port 0: use 1 to 65535")]
    Port(String),
}

impl Identity {
    /// The identity of client number `client`.
    ///
    /// # Errors
    /// If the step is not of whole milliseconds, or a service has no proper name or port.
    pub fn new(
        subnet: Subnet,
        clock: Clock,
        secret: &Secret,
        client: u32,
        services: Services,
    ) -> Result<Self, IdentityError> {
        check_services(&services)?;
        let period = clock.period();
        if period.subsec_nanos() % 1_000_000 != 0 {
            return Err(IdentityError::Milliseconds(period));
        }
        let number = u64::from(client);
        Ok(Self {
            client,
            subnet,
            // By the right time: how wrong a machine's clock is concerns that machine alone.
            clock: Clock::new(period)?,
            seed: Zeroizing::new(secret.seed(number)),
            tunnel_key: secret.tunnel_key(number),
            services,
        })
    }

    /// Number of the client, by which the server knows it.
    #[must_use]
    pub fn client(&self) -> u32 {
        self.client
    }

    /// The subnet of its addresses.
    #[must_use]
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The clock that gives the step.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Its address in `step`: the one that the server's [`Timetable`] has for this client.
    #[must_use]
    pub fn address(&self, step: u64) -> Ipv6Addr {
        self.seed.address(self.subnet, step)
    }

    /// The key for its tunnel.
    #[must_use]
    pub fn tunnel_key(&self) -> &[u8; 32] {
        &self.tunnel_key
    }

    /// The services that the server offers to it.
    #[must_use]
    pub fn services(&self) -> &Services {
        &self.services
    }

    /// The timetable of this client alone, which has number 0 there, by a clock that is `ahead`
    /// nanoseconds fast.
    #[must_use]
    pub fn timetable(&self, ahead: i64) -> Timetable {
        Timetable::of_one(self.subnet, self.clock.ahead(ahead), &self.seed)
    }
}

fn check_services(services: &Services) -> Result<(), IdentityError> {
    let of_a_name = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    for (name, port) in services {
        if !(1..=63).contains(&name.len()) || !name.bytes().all(of_a_name) {
            return Err(IdentityError::Name(name.clone()));
        }
        if *port == 0 {
            return Err(IdentityError::Port(name.clone()));
        }
    }
    Ok(())
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, subnet, clock, services, .. } = self;
        f.debug_struct("Identity")
            .field("client", client)
            .field("subnet", subnet)
            .field("clock", clock)
            .field("services", services)
            .finish_non_exhaustive()
    }
}

/// An identity as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    client: u32,
    prefix: String,
    /// Milliseconds: a fraction of seconds would not come back exactly.
    rotate_ms: u64,
    seed: Hex<{ Seed::LENGTH }>,
    tunnel_key: Hex<32>,
    #[serde(default)]
    services: Services,
}

impl TryFrom<Form> for Identity {
    type Error = IdentityError;

    fn try_from(form: Form) -> Result<Self, IdentityError> {
        if form.version != VERSION {
            return Err(IdentityError::Version(form.version));
        }
        check_services(&form.services)?;
        Ok(Self {
            client: form.client,
            subnet: Subnet::new(form.prefix.parse::<Prefix>()?)?,
            clock: Clock::new(Duration::from_millis(form.rotate_ms))?,
            seed: Zeroizing::new(Seed::from_bytes(&form.seed.0)),
            tunnel_key: form.tunnel_key.0,
            services: form.services,
        })
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = Form {
            version: VERSION,
            client: self.client,
            prefix: self.subnet.prefix().to_string(),
            rotate_ms: self.clock.period().as_millis() as u64, // of a year at most
            seed: Hex(self.seed.to_bytes()),
            tunnel_key: Hex(self.tunnel_key.clone()),
            services: self.services.clone(),
        };
        form.serialize(serializer)
    }
}

/// Secret bytes, as hexadecimal digits where they are written.
struct Hex<const N: usize>(Zeroizing<[u8; N]>);

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Never grown, which would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(2 * N));
        for byte in self.0.iter() {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        serializer.serialize_str(&text)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits<const N: usize>;

        impl<const N: usize> Visitor<'_> for Digits<N> {
            type Value = Hex<N>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} hexadecimal digits", 2 * N)
            }

            // The error must not repeat the text: it may be most of a seed.
            fn visit_str<E: Error>(self, text: &str) -> Result<Hex<N>, E> {
                let mut bytes = Zeroizing::new([0; N]);
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let pairs = text.as_bytes().chunks(2);
                let whole = text.len() == 2 * N
                    && pairs.zip(bytes.iter_mut()).all(|(pair, byte)| {
                        let (high, low) = (digit(pair[0]), digit(pair[1]));
                        let value = high.zip(low).map(|(high, low)| (high << 4 | low) as u8);
                        value.inspect(|value| *byte = *value).is_some()
                    });
                let wrong = || E::custom(format_args!("not {} hexadecimal digits", 2 * N));
                whole.then_some(Hex(bytes)).ok_or_else(wrong)
            }

            fn visit_string<E: Error>(self, mut text: String) -> Result<Hex<N>, E> {
                let read = self.visit_str(&text);
                text.zeroize();
                read
            }
        }

        deserializer.deserialize_str(Digits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(secret: &[u8], client: u32, period: u64) -> Identity {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let clock = Clock::new(Duration::from_millis(period)).unwrap();
        let services = [("ssh", 22), ("https", 443)].map(|(name, port)| (name.to_owned(), port));
        let secret = Secret::new(secret.to_vec()).unwrap();
        Identity::new(subnet, clock, &secret, client, services.into()).unwrap()
    }

    fn text(identity: &Identity) -> String {
        toml::to_string(identity).unwrap()
    }

    fn secrets() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 16..100)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    proptest! {
        #[test]
        fn a_client_computes_the_address_that_the_server_has_for_it(
            secret in secrets(), clients in 1u32..40, which: prop::sample::Index,
            step in 0..u64::MAX, period in 1_000u64..100_000,
        ) {
            let client = which.index(clients as usize) as u32;
            let own = identity(&secret, client, period);
            let secret = Secret::new(secret).unwrap();
            let all = Timetable::new(own.subnet(), own.clock(), &secret, clients, 1);
            prop_assert_eq!(own.address(step), all.address(client.into(), step));
            let one = own.timetable(0);
            prop_assert_eq!((one.address(0, step), one.clients()), (own.address(step), 1));
            prop_assert_eq!(own.timetable(5).clock(), own.clock().ahead(5));
        }

        #[test]
        fn what_is_written_is_read_again(
            secret in secrets(), client: u32, period in 1_000u64..=31_622_400_000,
        ) {
            let own = identity(&secret, client, period);
            prop_assert_eq!(toml::from_str::<Identity>(&text(&own)).unwrap(), own);
        }

        /// A stolen identity gives one client away, and no other.
        #[test]
        fn nothing_of_the_secret_or_of_others_is_in_an_identity(
            secret in secrets(), stolen: u32, other: u32, step in 1..u64::MAX,
        ) {
            prop_assume!(stolen != other);
            let shown = text(&identity(&secret, stolen, 10_000));
            let others = identity(&secret, other, 10_000);
            // Any 8 bytes in a row would be found by chance once in 10^17 times.
            let parts = [&secret[..], &others.seed.to_bytes()[..], &others.tunnel_key[..]];
            for bytes in parts.iter().flat_map(|part| part.windows(8)) {
                prop_assert!(bytes.iter().all(|byte| *byte == 0) || !shown.contains(&hex(bytes)));
            }
            let stolen: Identity = toml::from_str(&shown).unwrap();
            let window = [step - 1, step, step + 1];
            let own = window.map(|step| stolen.address(step));
            prop_assert!(window.iter().all(|step| !own.contains(&others.address(*step))));
            prop_assert!(stolen.tunnel_key() != others.tunnel_key());
            prop_assert!(stolen.tunnel_key()[..] != stolen.seed.to_bytes()[8..]);
        }
    }

    /// By construction: each field is public, or an output of HKDF for this client alone.
    #[test]
    fn an_identity_is_made_of_nothing_but_its_own_outputs_of_hkdf() {
        let own = identity(&[7; 32], 42, 10_000);
        let secret = Secret::new(vec![7; 32]).unwrap();
        let Identity { client, subnet, clock, seed, tunnel_key, services } = &own;
        assert_eq!((*client, **seed == secret.seed(42)), (42, true));
        assert_eq!(*tunnel_key, secret.tunnel_key(42));
        assert_eq!(subnet.prefix().to_string(), "2001:db8:1::/64");
        assert_eq!(clock.period(), Duration::from_secs(10));
        let written: toml::Table = text(&own).parse().unwrap();
        let expected: toml::Table = format!(
            "version = 1\nclient = 42\nprefix = '2001:db8:1::/64'\nrotate_ms = 10000\n\
             seed = '{}'\ntunnel_key = '{}'\n[services]\nhttps = 443\nssh = 22",
            hex(&seed.to_bytes()[..]),
            hex(&tunnel_key[..])
        )
        .parse()
        .unwrap();
        assert_eq!((written, services.len()), (expected, 2));
    }

    #[test]
    fn who_looks_at_it_learns_no_key() {
        let own = identity(&[7; 32], 42, 10_000);
        let shown = format!("{own:?}");
        assert!(shown.contains("client: 42") && shown.contains("ssh"), "{shown}");
        assert!(!shown.contains("seed") && !shown.contains("key"), "{shown}");
    }

    #[test]
    fn what_is_no_identity_is_named() {
        let good = text(&identity(&[7; 32], 42, 10_000));
        let refused = |from: &str, to: &str| {
            let text = good.replace(from, to);
            assert_ne!(text, good);
            toml::from_str::<Identity>(&text).unwrap_err().message().to_owned()
        };
        let seed = good.lines().find(|line| line.starts_with("seed")).unwrap();
        for (from, to, wanted) in [
            ("version = 1", "version = 2", "version 2"),
            ("1::/64", "1::/80", "use a /64"),
            ("1::/64", "1::1/64", "did you mean"),
            ("= 10000", "= 999", "one second"),
            ("ssh = 22", "ssh = 0", "port 0"),
            ("ssh = 22", "ssh = 70000", "u16"),
            ("ssh = 22", "SSH = 22", "'SSH' is no name"),
            ("client = 42", "client = -1", "u32"),
            ("client = 42", "", "client"),
            ("client = 42", "client = 42\nclients = 43", "unknown field"),
            (seed, "seed = 'abc'", "not 80 hexadecimal digits"),
            (seed, &seed.replace(|digit: char| digit.is_ascii_digit(), "x"), "not 80 hex"),
            (seed, "seed = 5", "80 hexadecimal digits"),
        ] {
            let words = refused(from, to);
            assert!(words.contains(wanted) && !words.contains('\n'), "{to}: {words}");
        }
        let odd = Clock::new(Duration::from_micros(1_000_500)).unwrap();
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let secret = Secret::new(vec![7; 16]).unwrap();
        let error = Identity::new(subnet, odd, &secret, 0, Services::new()).unwrap_err();
        assert!(error.to_string().contains("whole milliseconds"), "{error}");
    }
}
