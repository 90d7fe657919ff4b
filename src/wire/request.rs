//! Validates a received frame once, so that nothing about it can fail later.
//!
//! etherparse parses and sums. This file adds the checks that etherparse leaves to its caller:
//! consistent lengths, the next header and the checksum.

use std::net::Ipv6Addr;

use etherparse::checksum::u64_16bit_word as sum;
use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber, Ipv6HeaderSlice, UdpHeaderSlice};

/// Bytes before the payload: Ethernet 14 (IEEE 802.3), IPv6 40 (RFC 8200), UDP 8 (RFC 768).
pub const OVERHEAD: usize = IP_PAYLOAD + UDP_HEADER;

/// Largest payload of an unfragmented datagram at the largest supported MTU, 1500 bytes.
pub const MAX_PAYLOAD: usize = 1500 - 40 - UDP_HEADER;

/// Offset of the IPv6 header in the frame.
pub(super) const IP: usize = 14;
/// Offset of the IPv6 payload, here the UDP header, in the frame.
pub(super) const IP_PAYLOAD: usize = IP + 40;
pub(super) const UDP_HEADER: usize = 8;

/// Why a packet gets no answer. Each has a counter in the statistics.
///
/// [`validate`] finds the first five and [`UnfinishedChecksum`](Self::UnfinishedChecksum); for
/// sockets, the kernel does. [`Handler`](crate::policy::Handler) applies the answering rules for
/// every engine; an XDP program, if attached, applies them first. Three more concern solicitations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Refusal {
    /// Not UDP directly over IPv6 over Ethernet. Engines that answer solicitations accept ICMPv6
    /// too.
    NotUdp,
    /// A length field contradicts another one or the frame.
    BadLength,
    /// The checksum is 0, which RFC 8200 section 8.1 forbids over IPv6.
    NoChecksum,
    /// The checksum is wrong.
    BadChecksum,
    /// The destination port is not the service port.
    OtherPort,
    /// The source is a multicast address.
    SourceMulticast,
    /// The source is `::`.
    SourceUnspecified,
    /// The source is `::1`, which is never valid from a network (RFC 4291 section 2.5.3).
    SourceLoopback,
    /// The source is one of our own addresses.
    SourceOwn,
    /// The source port is the service port: two servers would answer each other endlessly.
    SourceServicePort,
    /// The source port is 0, which cannot receive a reply.
    SourcePortZero,
    /// The service does not answer on the destination address.
    DestinationNotOurs,
    /// A solicitation from beyond the link: its hop limit is below 255.
    BadHopLimit,
    /// ICMPv6, but not a valid Neighbour Solicitation (RFC 4861).
    BadSolicitation,
    /// More solicitations in this second than the limit allows.
    TooManySolicitations,
    /// The source is not in the allowed prefixes.
    SourceNotAllowed,
    /// The source exceeds its request rate limit. Only the XDP program checks this.
    SourceOverLimit,
    /// The destination is a multicast address.
    DestinationMulticast,
    /// The source is an IPv4-mapped address such as `::ffff:127.0.0.1`, which the kernel also
    /// rejects from a network.
    SourceMapped,
    /// The checksum covers only the pseudo-header: the sender's kernel left the rest to its card,
    /// which did not finish it.
    UnfinishedChecksum,
    /// The [`Service`](crate::service::Service) gave no answer, or one that is longer than its
    /// buffer.
    NoAnswer,
}

impl Refusal {
    /// All refusals, in the order of their counters.
    pub const ALL: [Self; 21] = [
        Self::NotUdp,
        Self::BadLength,
        Self::NoChecksum,
        Self::BadChecksum,
        Self::OtherPort,
        Self::SourceMulticast,
        Self::SourceUnspecified,
        Self::SourceLoopback,
        Self::SourceOwn,
        Self::SourceServicePort,
        Self::SourcePortZero,
        Self::DestinationNotOurs,
        Self::BadHopLimit,
        Self::BadSolicitation,
        Self::TooManySolicitations,
        Self::SourceNotAllowed,
        Self::SourceOverLimit,
        Self::DestinationMulticast,
        Self::SourceMapped,
        Self::UnfinishedChecksum,
        Self::NoAnswer,
    ];

    /// The counter's name in the statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotUdp => "not_udp",
            Self::BadLength => "bad_length",
            Self::NoChecksum => "no_checksum",
            Self::BadChecksum => "bad_checksum",
            Self::OtherPort => "other_port",
            Self::SourceMulticast => "source_multicast",
            Self::SourceUnspecified => "source_unspecified",
            Self::SourceLoopback => "source_loopback",
            Self::SourceOwn => "source_own",
            Self::SourceServicePort => "source_service_port",
            Self::SourcePortZero => "source_port_zero",
            Self::DestinationNotOurs => "destination_not_ours",
            Self::BadHopLimit => "bad_hop_limit",
            Self::BadSolicitation => "bad_solicitation",
            Self::TooManySolicitations => "too_many_solicitations",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::SourceOverLimit => "source_over_limit",
            Self::DestinationMulticast => "destination_multicast",
            Self::SourceMapped => "source_mapped",
            Self::UnfinishedChecksum => "unfinished_checksum",
            Self::NoAnswer => "no_answer",
        }
    }
}

/// A frame that holds one whole, intact UDP datagram to the expected port. Only [`validate`] makes
/// one, so every offset below is within the frame.
#[derive(Debug)]
pub struct Request<'frame> {
    /// The frame, and any spare room behind it.
    pub(super) frame: &'frame mut [u8],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    source_port: u16,
    /// Length of UDP header and payload in bytes, from the UDP header; at least 8, and within the
    /// frame.
    pub(super) udp_length: u16,
}

/// Validates `frame`, Ethernet header included, as a request to UDP port `port`.
///
/// Bytes behind the datagram are ignored, as the kernel does: Ethernet padding, and bytes between
/// the UDP length and the IPv6 payload length.
///
/// # Errors
/// The first check that the frame fails.
#[inline]
pub fn validate(frame: &mut [u8], port: u16) -> Result<Request<'_>, Refusal> {
    let length = frame.len();
    validate_within(frame, length, port)
}

/// Like [`validate`], for a frame in the first `length` bytes of `buffer`. The rest is room for a
/// longer reply.
///
/// # Errors
/// The first check that the frame fails.
#[inline]
pub fn validate_within(
    buffer: &mut [u8],
    length: usize,
    port: u16,
) -> Result<Request<'_>, Refusal> {
    let frame = buffer.get(..length).ok_or(Refusal::BadLength)?;
    let ether = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Refusal::NotUdp)?;
    if ether.ether_type() != EtherType::IPV6 {
        return Err(Refusal::NotUdp);
    }
    let ip = Ipv6HeaderSlice::from_slice(&frame[IP..]).map_err(|_| Refusal::NotUdp)?;
    if ip.next_header() != IpNumber::UDP {
        return Err(Refusal::NotUdp);
    }
    // A jumbogram (RFC 2675) has payload length 0. That is too short for a UDP header, so it fails
    // below.
    let ip_payload =
        frame[IP_PAYLOAD..].get(..ip.payload_length().into()).ok_or(Refusal::BadLength)?;
    let udp = UdpHeaderSlice::from_slice(ip_payload).map_err(|_| Refusal::BadLength)?;
    let udp_length = udp.length();
    let datagram = ip_payload.get(..udp_length.into()).ok_or(Refusal::BadLength)?;
    if datagram.len() < UDP_HEADER {
        return Err(Refusal::BadLength);
    }
    if udp.destination_port() != port {
        return Err(Refusal::OtherPort);
    }
    if udp.checksum() == 0 {
        return Err(Refusal::NoChecksum);
    }
    let addresses = &ip.slice()[8..40];
    if checksum(addresses, IpNumber::UDP, udp_length, datagram) != 0 {
        return Err(wrong_checksum(addresses, udp_length, datagram));
    }
    let (source, destination) = (ip.source_addr(), ip.destination_addr());
    let source_port = udp.source_port();
    Ok(Request { frame: buffer, source, destination, source_port, udp_length })
}

/// Tells an unfinished checksum from a wrong one. With CHECKSUM_PARTIAL, Linux stores only the
/// pseudo-header sum and leaves the rest to the card. A veth or tap passes that on unchanged.
#[cold]
fn wrong_checksum(addresses: &[u8], length: u16, datagram: &[u8]) -> Refusal {
    let unfinished = !checksum(addresses, IpNumber::UDP, length, &[]);
    if datagram.get(6..UDP_HEADER) == Some(&unfinished.to_ne_bytes()) {
        Refusal::UnfinishedChecksum
    } else {
        Refusal::BadChecksum
    }
}

/// The Internet checksum of pseudo-header and UDP or ICMPv6 message (RFC 8200 section 8.1). Returns
/// 0 if the message carries a correct checksum. If its checksum field is zero, returns the value to
/// store there, in memory byte order. `addresses` holds source and destination, 32 bytes.
#[inline]
pub(super) fn checksum(
    addresses: &[u8],
    next_header: IpNumber,
    length: u16,
    message: &[u8],
) -> u16 {
    let pseudo = sum::add_slice(0, addresses);
    let pseudo = sum::add_2bytes(pseudo, length.to_be_bytes());
    let pseudo = sum::add_2bytes(pseudo, [0, next_header.0]);
    sum::ones_complement(sum::add_slice(pseudo, message))
}

impl Request<'_> {
    /// The client's address.
    pub fn source(&self) -> Ipv6Addr {
        self.source
    }

    /// The address of ours that the client asked.
    pub fn destination(&self) -> Ipv6Addr {
        self.destination
    }

    /// The port to reply to.
    pub fn source_port(&self) -> u16 {
        self.source_port
    }

    /// The source's Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.frame.get(6..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
    }

    /// The datagram's payload.
    pub fn payload(&self) -> &[u8] {
        &self.frame[OVERHEAD..IP_PAYLOAD + usize::from(self.udp_length)]
    }

    /// The payload with the spare room behind it, and the payload's length in bytes.
    #[inline]
    pub fn payload_mut(&mut self) -> (&mut [u8], usize) {
        let length = usize::from(self.udp_length) - UDP_HEADER;
        (self.frame.get_mut(OVERHEAD..).unwrap_or_default(), length)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    pub const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    pub const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 9);

    /// A valid request built by etherparse, as an independent check of the layout.
    pub fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv6(CLIENT.octets(), SERVER.octets(), 33)
            .udp(50_000, 3540)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }

    fn refusal(frame: &mut [u8]) -> Refusal {
        validate(frame, 3540).unwrap_err()
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        let whole = frame(&[7; 32]);
        for length in 0..whole.len() {
            let expected = if length < IP_PAYLOAD { Refusal::NotUdp } else { Refusal::BadLength };
            assert_eq!(refusal(&mut whole[..length].to_vec()), expected, "cut to {length}");
        }
        let damaged = |change: fn(&mut Vec<u8>)| {
            let mut frame = whole.clone();
            change(&mut frame);
            refusal(&mut frame)
        };
        assert_eq!(damaged(|f| f[13] = 0), Refusal::NotUdp); // EtherType
        assert_eq!(damaged(|f| f[IP] = 0x40), Refusal::NotUdp); // version 4
        assert_eq!(damaged(|f| f[IP + 6] = 44), Refusal::NotUdp); // fragment header
        assert_eq!(damaged(|f| f[IP + 5] += 1), Refusal::BadLength); // longer than the frame
        assert_eq!(damaged(|f| f[IP + 5] = 7), Refusal::BadLength); // shorter than a UDP header
        // longer than the IPv6 payload
        assert_eq!(damaged(|f| f[IP_PAYLOAD + 5] += 1), Refusal::BadLength);
        assert_eq!(damaged(|f| f[IP_PAYLOAD + 5] = 7), Refusal::BadLength);
        assert_eq!(damaged(|f| f[IP_PAYLOAD + 3] += 1), Refusal::OtherPort);
        assert_eq!(damaged(|f| f[IP_PAYLOAD + 6..IP_PAYLOAD + 8].fill(0)), Refusal::NoChecksum);
        assert_eq!(damaged(|f| f[OVERHEAD] ^= 1), Refusal::BadChecksum);
        assert_eq!(damaged(|f| f[IP + 8] ^= 1), Refusal::BadChecksum); // source address
    }

    /// The pseudo-header sum (addresses, length, next header), added word by word (RFC 1071).
    pub fn unfinished(frame: &[u8]) -> [u8; 2] {
        let words =
            frame[IP + 8..IP_PAYLOAD].chunks(2).chain([&frame[IP_PAYLOAD + 4..IP_PAYLOAD + 6]]);
        let mut sum =
            words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>() + 17;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (sum as u16).to_be_bytes()
    }

    #[test]
    fn a_checksum_that_no_card_finished_is_told_from_damage() {
        for payload in [&[7; 32][..], &[7; 33], &[]] {
            let mut bytes = frame(payload);
            let sum = unfinished(&bytes);
            bytes[IP_PAYLOAD + 6..OVERHEAD].copy_from_slice(&sum);
            assert_eq!(refusal(&mut bytes), Refusal::UnfinishedChecksum, "{} bytes", payload.len());
            // Its complement, or a single flipped bit, is damage.
            bytes[IP_PAYLOAD + 6..OVERHEAD].copy_from_slice(&sum.map(|byte| !byte));
            assert_eq!(refusal(&mut bytes), Refusal::BadChecksum);
            bytes[IP_PAYLOAD + 6..OVERHEAD].copy_from_slice(&[sum[0], sum[1] ^ 1]);
            assert_eq!(refusal(&mut bytes), Refusal::BadChecksum);
        }
    }

    #[test]
    fn counters_are_in_the_order_of_the_list() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index, "{}", refusal.name());
        }
    }

    proptest! {
        #[test]
        fn right_requests_are_taken_whatever_pads_them(
            payload in proptest::collection::vec(any::<u8>(), 0..MAX_PAYLOAD),
            padding in proptest::collection::vec(any::<u8>(), 0..46),
        ) {
            let mut bytes = frame(&payload);
            bytes.extend(padding);
            let request = validate(&mut bytes, 3540).unwrap();
            prop_assert_eq!(request.payload(), &payload[..]);
            prop_assert_eq!((request.source(), request.destination()), (CLIENT, SERVER));
            prop_assert_eq!(request.source_port(), 50_000);
        }

        #[test]
        fn nothing_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = validate(&mut bytes, 3540);
        }

        #[test]
        fn no_single_flipped_bit_of_what_the_checksum_covers_gets_through(
            bit in 0usize..(94 - IP - 8) * 8,
        ) {
            let mut bytes = frame(&[0x5a; 32]);
            let (byte, mask) = (IP + 8 + bit / 8, 1 << (bit % 8));
            bytes[byte] ^= mask;
            prop_assert!(validate(&mut bytes, 3540).is_err());
        }
    }
}
