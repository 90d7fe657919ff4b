//! Multicast Router Discovery (RFC 4286), the part that an MLD-snooping switch needs. A router
//! advertisement to the all-snoopers group makes the switch forward all multicast to that port.
//!
//! ```text
//!  0     6     12   14          22       38      54             62   63       64
//!  ├─dst─┼─src─┼type┼ver/len/hop┼─source─┼─dest.─┼─router alert─┼type┼interval┼─sum …
//!                86dd           1                 58 0 5 2 0 0 1 0
//! ```

use std::net::Ipv6Addr;

use etherparse::{EtherType, IpNumber};

use super::request::{IP, IP_PAYLOAD, checksum};

/// Seconds between advertisements (DefaultAdvertisementInterval, section 4.1.1). A snooper forgets
/// the router after three intervals without one.
pub const ADVERTISEMENT_INTERVAL: u8 = 20;

/// Seconds between the initial advertisements (section 4.1.4).
pub const INITIAL_INTERVAL: u8 = 2;
/// Number of initial advertisements (section 4.1.5).
pub const INITIAL_COUNT: u32 = 3;

/// ICMPv6 types (sections 3 and 5).
const ADVERTISEMENT_TYPE: u8 = 151;
const TERMINATION_TYPE: u8 = 153;

const ALL_SNOOPERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x6a);
/// Ethernet address of the all-snoopers group (RFC 2464 section 7).
const ALL_SNOOPERS_LINK: [u8; 6] = [0x33, 0x33, 0, 0, 0, 0x6a];

/// Hop-by-hop options: next header ICMPv6, the MLD router alert (RFC 2711), two bytes of padding.
const ROUTER_ALERT: [u8; 8] = [IpNumber::IPV6_ICMP.0, 0, 5, 2, 0, 0, 1, 0];

const MESSAGE: usize = IP_PAYLOAD + ROUTER_ALERT.len();

/// The frame that announces a multicast router. Zero query fields say that it sends no MLD queries.
#[must_use]
pub fn router_advertisement(link_address: [u8; 6], source: Ipv6Addr) -> Vec<u8> {
    let no_queries = [0, 0, 0, 0]; // query interval, robustness variable
    frame(link_address, source, [ADVERTISEMENT_TYPE, ADVERTISEMENT_INTERVAL], &no_queries)
}

/// The frame that withdraws the announcement.
#[must_use]
pub fn router_termination(link_address: [u8; 6], source: Ipv6Addr) -> Vec<u8> {
    frame(link_address, source, [TERMINATION_TYPE, 0], &[])
}

/// `begin` is type and code; the checksum follows it, then `rest`.
fn frame(link_address: [u8; 6], source: Ipv6Addr, begin: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let message = (begin.len() + 2 + rest.len()) as u16;
    let length = ROUTER_ALERT.len() as u16 + message;
    let mut frame = [
        &ALL_SNOOPERS_LINK[..],
        &link_address,
        &EtherType::IPV6.0.to_be_bytes(),
        &[0x60, 0, 0, 0], // version 6
        &length.to_be_bytes(),
        &[IpNumber::IPV6_HEADER_HOP_BY_HOP.0, 1], // and the hop limit, 1
        &source.octets(),
        &ALL_SNOOPERS.octets(),
        &ROUTER_ALERT,
        &begin,
        &[0, 0], // checksum, filled in below
        rest,
    ]
    .concat();
    let sum = checksum(&frame[IP + 8..IP_PAYLOAD], IpNumber::IPV6_ICMP, message, &frame[MESSAGE..]);
    frame[MESSAGE + 2..MESSAGE + 4].copy_from_slice(&sum.to_ne_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const SOURCE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    /// Parses `frame` with etherparse, an independent implementation. Returns type, code and the
    /// bytes after the checksum.
    fn read(frame: &[u8]) -> (u8, u8, Vec<u8>) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = &packet.net else { panic!("{packet:?}") };
        let header = ip.header();
        assert_eq!((header.hop_limit(), header.source_addr()), (1, SOURCE));
        assert_eq!(header.destination_addr(), "ff02::6a".parse::<Ipv6Addr>().unwrap());
        assert_eq!(frame[..12], [0x33, 0x33, 0, 0, 0, 0x6a, 2, 0, 0, 0, 0, 2]);
        // Router alert with the MLD value.
        assert_eq!(ip.extensions().slice(), [58, 0, 5, 2, 0, 0, 1, 0]);
        let Some(TransportSlice::Icmpv6(message)) = &packet.transport else { panic!("{packet:?}") };
        assert!(message.is_checksum_valid(header.source(), header.destination()));
        let bytes = message.slice();
        (bytes[0], bytes[1], bytes[4..].to_vec())
    }

    #[test]
    fn a_router_is_advertised_and_taken_back() {
        assert_eq!(read(&router_advertisement(OURS, SOURCE)), (151, 20, vec![0; 4]));
        // The message is four bytes long (RFC 4286 section 5.1). etherparse expects at least eight.
        let frame = router_termination(OURS, SOURCE);
        assert_eq!((frame.len(), &frame[MESSAGE..MESSAGE + 2]), (MESSAGE + 4, &[153, 0][..]));
        let addresses = &frame[IP + 8..IP_PAYLOAD];
        assert_eq!(checksum(addresses, IpNumber::IPV6_ICMP, 4, &frame[MESSAGE..]), 0);
    }
}
