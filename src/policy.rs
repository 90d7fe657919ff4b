//! The answering rules: whether a request is answered. Every engine asks here, so that a comparison
//! compares the transport and nothing else.

use std::net::Ipv6Addr;
use std::sync::Arc;

use crate::address::{Client, Pool, Prefix, Sources};
use crate::live::LiveSet;
use crate::wire::{self, Refusal};

/// What the handler knows of the live addresses.
#[derive(Debug, Clone)]
pub enum Ours {
    /// They are those of a pool, and stay.
    Pool(Pool),
    /// They move, and this says where they are at the moment.
    Set(Arc<LiveSet>),
    /// They move, and a steering program has decided: it gives to its engine only what goes to live
    /// addresses, or asks for them, and nothing that comes from one.
    Steered {
        /// All of them lie under it.
        prefix: Prefix,
        /// Where they are, if the kernel has them too: it then gets what goes to others as well.
        passed: Option<Arc<LiveSet>>,
    },
}

impl From<Pool> for Ours {
    fn from(pool: Pool) -> Self {
        Self::Pool(pool)
    }
}

/// Decides over requests to one service.
#[derive(Debug, Clone)]
pub struct Handler {
    port: u16,
    ours: Ours,
    /// Addresses of the interface that are not among those: ours too, but the service does not
    /// answer on them.
    interface: Vec<Ipv6Addr>,
    /// Who may ask.
    sources: Sources,
    /// Where the addresses move and a service wants to know whose each is.
    moving: Option<Arc<LiveSet>>,
}

impl Handler {
    /// For the service on UDP `port` of the live addresses `ours`; `interface` are the machine's
    /// other addresses. Everybody may ask.
    pub fn new(port: u16, ours: impl Into<Ours>, interface: Vec<Ipv6Addr>) -> Self {
        Self { port, ours: ours.into(), interface, sources: Sources::all(), moving: None }
    }

    /// The same for those alone who are among `sources`.
    #[must_use]
    pub fn only_for(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    /// The same where `moving` says whose each address is, for services that want to know.
    #[must_use]
    pub fn knowing(self, moving: Option<Arc<LiveSet>>) -> Self {
        Self { moving, ..self }
    }

    /// The same for what a steering program passes, which is not always for a live address.
    #[must_use]
    pub fn behind(self) -> Self {
        match self.ours {
            Ours::Steered { passed: Some(set), .. } => Self { ours: Ours::Set(set), ..self },
            _ => self,
        }
    }

    /// Who may ask.
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

    /// Whether a request from `source` comes from ourselves.
    #[inline]
    fn is_own(&self, source: Ipv6Addr) -> bool {
        let live = match &self.ours {
            Ours::Pool(pool) => pool.contains(source),
            Ours::Set(set) => set.contains(source),
            Ours::Steered { .. } => false, // such requests do not come here
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

    /// Whether anything from `source`, `source_port` is answered, as far as it can be told without
    /// knowing our own addresses: what the XDP program decides first (bpf/sources.h), in the same
    /// order.
    ///
    /// # Errors
    /// Why it is not.
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

    /// Whether an intact request from `source`, `source_port` to `destination` is answered.
    ///
    /// # Errors
    /// Why it is not.
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

    /// Turns the request in `frame` into its reply, in place, and returns the reply's length in
    /// bytes.
    ///
    /// # Errors
    /// Why it is not answered; `frame` is as it was.
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
