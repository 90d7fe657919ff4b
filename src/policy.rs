//! The answering rules: whether a request is answered. All engines use them, so a comparison of
//! engines compares only their transport.

use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::address::{Client, Pool, Prefix, Sources};
use crate::live::LiveSet;
use crate::wire::{self, Refusal};

/// The live addresses, as the handler knows them.
#[derive(Debug, Clone)]
pub enum Ours {
    /// A pool, whose addresses stay.
    Pool(Pool),
    /// Moving addresses, with the set of those live now.
    Set(Arc<LiveSet>),
    /// Moving addresses behind a steering program. The program passes only packets and
    /// solicitations for live addresses, and never a packet from one.
    Steered {
        /// The prefix of all addresses.
        prefix: Prefix,
        /// The live addresses if the kernel owns them too: the program then passes packets for
        /// others to the kernel.
        passed: Option<Arc<LiveSet>>,
    },
}

impl From<Pool> for Ours {
    fn from(pool: Pool) -> Self {
        Self::Pool(pool)
    }
}

/// Applies the answering rules of one service.
#[derive(Debug, Clone)]
pub struct Handler {
    port: u16,
    ours: Ours,
    /// Other addresses of the interface. They are ours, but the service does not answer on them.
    interface: Vec<Ipv6Addr>,
    /// The allowed sources.
    sources: Sources,
    /// Whose each address is, if addresses move and the service asks for that.
    moving: Option<Arc<LiveSet>>,
}

impl Handler {
    /// A handler for the service on UDP `port` at the live addresses `ours`. `interface` holds the
    /// machine's other addresses. All sources are allowed.
    pub fn new(port: u16, ours: impl Into<Ours>, interface: Vec<Ipv6Addr>) -> Self {
        Self { port, ours: ours.into(), interface, sources: Sources::all(), moving: None }
    }

    /// Allows only `sources`.
    #[must_use]
    pub fn only_for(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    /// Tells services which client each address belongs to, by `moving`.
    #[must_use]
    pub fn knowing(self, moving: Option<Arc<LiveSet>>) -> Self {
        Self { moving, ..self }
    }

    /// The handler for packets that a steering program passes to the kernel, which are not all for
    /// live addresses.
    #[must_use]
    pub fn behind(self) -> Self {
        match self.ours {
            Ours::Steered { passed: Some(set), .. } => Self { ours: Ours::Set(set), ..self },
            _ => self,
        }
    }

    /// The allowed sources.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Whether the service answers on `address`.
    #[inline]
    pub fn is_live(&self, address: Ipv6Addr) -> bool {
        match &self.ours {
            Ours::Pool(pool) => pool.contains(address),
            Ours::Set(set) => set.contains(address),
            Ours::Steered { prefix, .. } => {
                prefix.contains(address) && !self.interface.contains(&address)
            }
        }
    }

    /// Whether `source` is one of our own addresses.
    #[inline]
    fn is_own(&self, source: Ipv6Addr) -> bool {
        let live = match &self.ours {
            Ours::Pool(pool) => pool.contains(source),
            Ours::Set(set) => set.contains(source),
            Ours::Steered { .. } => false, // the program drops such requests
        };
        live || self.interface.contains(&source)
    }

    /// Whose `address` is; nobody's where the addresses stay.
    ///
    /// # Errors
    /// When it has moved since the request was let through: it is as silent as any other.
    #[inline]
    pub fn client(&self, address: Ipv6Addr) -> Result<Option<Client>, Refusal> {
        match &self.moving {
            Some(set) => set.client(address).map(Some).ok_or(Refusal::DestinationNotOurs),
            None => Ok(None),
        }
    }

    /// Whether anything may be sent from `address` without being asked. A steering program looks
    /// at requests alone, so where the addresses move, only their set knows.
    pub fn may_speak_from(&self, address: Ipv6Addr) -> bool {
        match &self.moving {
            Some(set) => set.contains(address),
            None => !matches!(self.ours, Ours::Steered { .. }) && self.is_live(address),
        }
    }

    /// The UDP port of the service.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The machine's other addresses.
    pub fn interface(&self) -> &[Ipv6Addr] {
        &self.interface
    }

    /// Applies the rules that need no knowledge of our own addresses. The XDP program applies them
    /// first, in the same order (bpf/sources.h).
    ///
    /// # Errors
    /// The rule that the source breaks.
    #[inline]
    pub fn screen(&self, source: Ipv6Addr, source_port: u16) -> Result<(), Refusal> {
        if source_port == self.port {
            Err(Refusal::SourceServicePort)
        } else if source_port == 0 {
            Err(Refusal::SourcePortZero)
        } else if source.is_multicast() {
            Err(Refusal::SourceMulticast)
        } else if source.is_unspecified() {
            Err(Refusal::SourceUnspecified)
        } else if source.is_loopback() {
            Err(Refusal::SourceLoopback)
        } else if source.to_ipv4_mapped().is_some() {
            Err(Refusal::SourceMapped)
        } else if !self.sources.contains(source) {
            Err(Refusal::SourceNotAllowed)
        } else {
            Ok(())
        }
    }

    /// Whether to answer an intact request from `source`, `source_port` to `destination`.
    ///
    /// # Errors
    /// The rule that it breaks.
    #[inline]
    pub fn decide(
        &self,
        source: Ipv6Addr,
        source_port: u16,
        destination: Ipv6Addr,
    ) -> Result<(), Refusal> {
        self.screen(source, source_port)?;
        if self.is_own(source) {
            Err(Refusal::SourceOwn)
        } else if destination.is_multicast() {
            Err(Refusal::DestinationMulticast)
        } else if !self.is_live(destination) {
            Err(Refusal::DestinationNotOurs)
        } else {
            Ok(())
        }
    }

    /// Turns the request in `frame` into its reply in place. Returns the reply's length in bytes.
    ///
    /// # Errors
    /// Why it is not answered; `frame` is unchanged.
    #[inline]
    pub fn answer(&self, frame: &mut [u8]) -> Result<usize, Refusal> {
        let request = wire::validate(frame, self.port)?;
        self.decide(request.source(), request.source_port(), request.destination())?;
        Ok(request.into_reply())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Prefix;

    #[test]
    fn each_rule_has_its_name() {
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap();
        let (ours, other) = (pool.address(3), pool.address(4));
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let own = address("2001:db8:1::2");
        let client = address("2001:db8:1::1");
        let sources = ["2001:db8:1::/64", "::/120", "ff00::/8"].map(|text| {
            let (network, length) = text.split_once('/').unwrap();
            Prefix::around(network.parse().unwrap(), length.parse().unwrap())
        });
        let handler = Handler::new(3540, pool, vec![own]).only_for(Sources::new(sources));
        assert_eq!(handler.decide(client, 50_000, ours), Ok(()));
        let refused = [
            (client, 3540, ours, Refusal::SourceServicePort),
            (client, 0, ours, Refusal::SourcePortZero),
            (address("ff02::1"), 50_000, ours, Refusal::SourceMulticast),
            (address("::"), 50_000, ours, Refusal::SourceUnspecified),
            (address("::1"), 50_000, ours, Refusal::SourceLoopback),
            (address("::ffff:192.0.2.1"), 50_000, ours, Refusal::SourceMapped),
            (other, 50_000, ours, Refusal::SourceOwn),
            (own, 50_000, ours, Refusal::SourceOwn),
            (address("2001:db8:2::1"), 50_000, ours, Refusal::SourceNotAllowed),
            (address("fe80::1"), 50_000, ours, Refusal::SourceNotAllowed),
            (client, 50_000, address("ff02::1"), Refusal::DestinationMulticast),
            (client, 50_000, own, Refusal::DestinationNotOurs),
            (client, 50_000, address("2001:db8:2::1"), Refusal::DestinationNotOurs),
        ];
        for (source, port, destination, refusal) in refused {
            assert_eq!(handler.decide(source, port, destination), Err(refusal));
        }
    }
}
