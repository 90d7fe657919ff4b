//! The answering rules: whether a request is answered. Every engine asks here, so that a comparison compares the
//! transport and nothing else.

use std::net::Ipv6Addr;

use crate::address::Pool;
use crate::wire::{self, Refusal};

/// Decides over requests to one service.
#[derive(Debug, Clone)]
pub struct Handler {
    port: u16,
    pool: Pool,
    /// Addresses of the interface that are not in the pool: ours too, but the service does not answer on them.
    interface: Vec<Ipv6Addr>,
}

impl Handler {
    /// For the service on UDP `port` of the addresses in `pool`; `interface` are the machine's other addresses.
    pub fn new(port: u16, pool: Pool, interface: Vec<Ipv6Addr>) -> Self {
        Self { port, pool, interface }
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

    /// Whether an intact request from `source`, `source_port` to `destination` is answered.
    ///
    /// # Errors
    /// Why it is not.
    #[inline]
    pub fn decide(&self, source: Ipv6Addr, source_port: u16, destination: Ipv6Addr) -> Result<(), Refusal> {
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
        } else if self.pool.contains(source) || self.interface.contains(&source) {
            Err(Refusal::SourceOwn)
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

    #[test]
    fn each_rule_has_its_name() {
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap();
        let (ours, other) = (pool.address(3), pool.address(4));
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let own = address("2001:db8:1::2");
        let client = address("2001:db8:1::1");
        let handler = Handler::new(3540, pool, vec![own]);
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
            (client, 50_000, own, Refusal::DestinationNotOurs),
            (client, 50_000, address("2001:db8:2::1"), Refusal::DestinationNotOurs),
        ];
        for (source, port, destination, refusal) in refused {
            assert_eq!(handler.decide(source, port, destination), Err(refusal));
        }
    }
}
