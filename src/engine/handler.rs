//! The answering rules: whether a request is answered. Every engine asks here, so that a comparison compares the
//! transport and nothing else.

use std::net::Ipv6Addr;

use crate::address::{Pool, Sources};
use crate::wire::{self, Refusal};

/// Decides over requests to one service.
#[derive(Debug, Clone)]
pub struct Handler {
    port: u16,
    pool: Pool,
    /// Addresses of the interface that are not in the pool: ours too, but the service does not answer on them.
    interface: Vec<Ipv6Addr>,
    /// Who may ask.
    sources: Sources,
}

impl Handler {
    /// For the service on UDP `port` of the addresses in `pool`; `interface` are the machine's other addresses. Everybody may ask.
    pub fn new(port: u16, pool: Pool, interface: Vec<Ipv6Addr>) -> Self {
        Self { port, pool, interface, sources: Sources::all() }
    }

    /// The same for those alone who are among `sources`.
    #[must_use]
    pub fn only_for(self, sources: Sources) -> Self {
        Self { sources, ..self }
    }

    /// Who may ask.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The addresses that the service answers on.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The UDP port of the service.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The machine's other addresses.
    pub fn interface(&self) -> &[Ipv6Addr] {
        &self.interface
    }

    /// Whether anything from `source`, `source_port` is answered, as far as it can be told without knowing our own addresses: what
    /// the XDP program decides first (bpf/sources.h), in the same order.
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
    pub fn decide(&self, source: Ipv6Addr, source_port: u16, destination: Ipv6Addr) -> Result<(), Refusal> {
        self.screen(source, source_port)?;
        if self.pool.contains(source) || self.interface.contains(&source) {
            Err(Refusal::SourceOwn)
        } else if destination.is_multicast() {
            Err(Refusal::DestinationMulticast)
        } else if !self.pool.contains(destination) {
            Err(Refusal::DestinationNotOurs)
        } else {
            Ok(())
        }
    }

    /// Turns the request in `frame` into its reply, in place, and returns the reply's length in bytes.
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
