//! A datagram that answers no request: headers and checksum around a payload.

use std::net::Ipv6Addr;

use etherparse::IpNumber;

use super::reply::HOP_LIMIT;
use super::request::{IP, IP_PAYLOAD, OVERHEAD, UDP_HEADER, checksum};

/// Both ends of a datagram that this machine sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Ethernet addresses: the receiver's, then ours, as they lie in a frame.
    pub macs: [[u8; 6]; 2],
    /// Where it comes from.
    pub source: (Ipv6Addr, u16),
    /// Where it goes.
    pub destination: (Ipv6Addr, u16),
}

/// Makes of the `length` bytes behind the room for the headers a whole frame between `ends`, and
/// returns the frame's length; `None` when `frame` holds no so many.
pub fn emit(ends: &Ends, frame: &mut [u8], length: usize) -> Option<usize> {
    let udp_length = u16::try_from(length.checked_add(UDP_HEADER)?).ok()?;
    let end = IP_PAYLOAD + usize::from(udp_length);
    let frame = frame.get_mut(..end)?;
    frame.get(..OVERHEAD)?;
    frame[..12].copy_from_slice(ends.macs.as_flattened());
    frame[12..IP].copy_from_slice(&[0x86, 0xdd]);
    frame[IP..IP + 4].copy_from_slice(&[0x60, 0, 0, 0]); // version 6, no class, no flow label
    frame[IP + 4..IP + 6].copy_from_slice(&udp_length.to_be_bytes());
    frame[IP + 6..IP + 8].copy_from_slice(&[IpNumber::UDP.0, HOP_LIMIT]);
    frame[IP + 8..IP + 24].copy_from_slice(&ends.source.0.octets());
    frame[IP + 24..IP_PAYLOAD].copy_from_slice(&ends.destination.0.octets());
    let (headers, datagram) = frame.split_at_mut(IP_PAYLOAD);
    datagram[..2].copy_from_slice(&ends.source.1.to_be_bytes());
    datagram[2..4].copy_from_slice(&ends.destination.1.to_be_bytes());
    datagram[4..6].copy_from_slice(&udp_length.to_be_bytes());
    datagram[6..UDP_HEADER].fill(0);
    let sum = match checksum(&headers[IP + 8..], IpNumber::UDP, udp_length, datagram) {
        0 => u16::MAX, // 0 would say that there is none (RFC 768)
        sum => sum,
    };
    datagram[6..UDP_HEADER].copy_from_slice(&sum.to_ne_bytes());
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{CLIENT, SERVER};
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    proptest! {
        /// As etherparse's own builder has it, byte for byte, whatever lay there before.
        #[test]
        fn it_is_the_frame_that_another_builder_makes(
            payload in proptest::collection::vec(any::<u8>(), 0..1452),
            macs: [[u8; 6]; 2],
            ports: (u16, u16),
            left: u8,
        ) {
            let mut expected = Vec::new();
            PacketBuilder::ethernet2(macs[1], macs[0])
                .ipv6(SERVER.octets(), CLIENT.octets(), HOP_LIMIT)
                .udp(ports.0, ports.1)
                .write(&mut expected, &payload)
                .unwrap();
            let mut frame = vec![left; 2048];
            frame[OVERHEAD..][..payload.len()].copy_from_slice(&payload);
            let ends = Ends { macs, source: (SERVER, ports.0), destination: (CLIENT, ports.1) };
            let length = emit(&ends, &mut frame, payload.len()).unwrap();
            prop_assert_eq!(&frame[..length], &expected[..]);
            prop_assert_eq!(emit(&ends, &mut frame[..length - 1], payload.len()), None);
        }
    }
}
