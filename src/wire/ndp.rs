//! Neighbour Discovery (RFC 4861) for addresses that the kernel does not own: validates a Neighbour
//! Solicitation and writes the Neighbour Advertisement that answers it.
//!
//! ```text
//!  0     6     12   14          22       38      54   55   56  58       62       78
//!  ├─dst─┼─src─┼type┼ver/len/hop┼─source─┼─dest.─┼type┼code┼sum┼reserved┼─target─┼─options
//!                86dd         255                 135    0
//! ```

use std::net::Ipv6Addr;

use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber, Ipv6HeaderSlice};

use super::request::{IP, IP_PAYLOAD, Refusal, checksum};

/// Length in bytes of an advertisement with its one option, Ethernet header included.
pub const ADVERTISEMENT: usize = OPTIONS + OPTION_UNIT;

const TARGET: usize = IP_PAYLOAD + 8;
const OPTIONS: usize = TARGET + 16;
/// Option lengths are multiples of this many bytes (section 4.6).
const OPTION_UNIT: usize = 8;

/// ICMPv6 types (sections 4.3, 4.4).
const SOLICITATION_TYPE: u8 = 135;
const ADVERTISEMENT_TYPE: u8 = 136;

/// Option types (section 4.6.1).
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// Flags of an advertisement (section 4.4).
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// A router decrements the hop limit, so 255 proves that the packet comes from this link (section
/// 7.1.1).
const ON_LINK: u8 = 255;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Ethernet address of the all-nodes group (RFC 2464 section 7).
const ALL_NODES_LINK: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// A valid solicitation. Only [`solicitation`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    source: Ipv6Addr,
    target: Ipv6Addr,
    /// Where to send the answer: the source link-layer address option, or else the Ethernet source.
    link_address: [u8; 6],
}

/// Parses `frame`, Ethernet header included, as a Neighbour Solicitation and validates it as RFC
/// 4861 section 7.1.1 demands.
///
/// # Errors
/// The rule that it breaks: [`Refusal::NotUdp`] if it is not ICMPv6 at all.
pub fn solicitation(frame: &[u8]) -> Result<Solicitation, Refusal> {
    let ether = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| Refusal::NotUdp)?;
    if ether.ether_type() != EtherType::IPV6 {
        return Err(Refusal::NotUdp);
    }
    let ip = Ipv6HeaderSlice::from_slice(&frame[IP..]).map_err(|_| Refusal::NotUdp)?;
    if ip.next_header() != IpNumber::IPV6_ICMP {
        return Err(Refusal::NotUdp);
    }
    let message =
        frame[IP_PAYLOAD..].get(..ip.payload_length().into()).ok_or(Refusal::BadLength)?;
    let Some((header, mut options)) = message.split_first_chunk::<{ OPTIONS - IP_PAYLOAD }>()
    else {
        return Err(Refusal::BadLength);
    };
    if ip.hop_limit() != ON_LINK {
        return Err(Refusal::BadHopLimit);
    }
    if checksum(&ip.slice()[8..40], IpNumber::IPV6_ICMP, ip.payload_length(), message) != 0 {
        return Err(Refusal::BadChecksum);
    }
    let target: [u8; 16] = std::array::from_fn(|index| header[TARGET - IP_PAYLOAD + index]);
    let (source, destination, target) =
        (ip.source_addr(), ip.destination_addr(), Ipv6Addr::from(target));
    if header[..2] != [SOLICITATION_TYPE, 0] || target.is_multicast() {
        return Err(Refusal::BadSolicitation);
    }
    let mut link_address = None;
    while let [kind, units, ..] = *options {
        let length = usize::from(units) * OPTION_UNIT;
        let (option, rest) = options.split_at_checked(length).ok_or(Refusal::BadSolicitation)?;
        match (kind, option) {
            (_, []) => return Err(Refusal::BadSolicitation),
            (SOURCE_LINK_ADDRESS, [_, _, address @ ..]) => {
                let address = <[u8; 6]>::try_from(address).map_err(|_| Refusal::BadSolicitation)?;
                link_address = link_address.or(Some(address));
            }
            _ => {} // ignore unknown options (section 4.6)
        }
        options = rest;
    }
    if !options.is_empty() || link_address.is_some_and(|address| address[0] & 1 == 1) {
        return Err(Refusal::BadSolicitation); // partial option, or group address
    }
    if source.is_multicast() {
        return Err(Refusal::SourceMulticast);
    }
    if source.is_loopback() {
        return Err(Refusal::SourceLoopback);
    }
    // Duplicate Address Detection goes to the group, and the sender has no address to give.
    let group = solicited_node(target);
    if source.is_unspecified() && (destination != group || link_address.is_some()) {
        return Err(Refusal::BadSolicitation);
    }
    if destination != group && destination != target {
        return Err(Refusal::BadSolicitation);
    }
    Ok(Solicitation { source, target, link_address: link_address.unwrap_or(ether.source()) })
}

/// The solicited-node multicast address of `address` (RFC 4291 section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const GROUP: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(GROUP | address.to_bits() & 0xff_ffff)
}

impl Solicitation {
    /// The sender's address; `::` in Duplicate Address Detection.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        self.source
    }

    /// The address that the sender looks for.
    #[must_use]
    pub fn target(&self) -> Ipv6Addr {
        self.target
    }

    /// Writes the advertisement "the target is at `link_address`" (section 7.2.4) to the start of
    /// `frame`. Returns its length, or `None` if `frame` is shorter than [`ADVERTISEMENT`].
    pub fn advertise(&self, link_address: [u8; 6], frame: &mut [u8]) -> Option<usize> {
        const LENGTH: u16 = (ADVERTISEMENT - IP_PAYLOAD) as u16;
        let frame = frame.first_chunk_mut::<ADVERTISEMENT>()?;
        // In Duplicate Address Detection the sender has no address yet, so the answer goes to all
        // nodes.
        let (destination, destination_link, flags) = if self.source.is_unspecified() {
            (ALL_NODES, ALL_NODES_LINK, OVERRIDE)
        } else {
            (self.source, self.link_address, SOLICITED | OVERRIDE)
        };
        let mut rest = &mut frame[..];
        let mut put = |bytes: &[u8]| {
            let (place, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            place.copy_from_slice(bytes);
            rest = after;
        };
        put(&destination_link);
        put(&link_address);
        put(&EtherType::IPV6.0.to_be_bytes());
        put(&[0x60, 0, 0, 0]); // version 6
        put(&LENGTH.to_be_bytes());
        put(&[IpNumber::IPV6_ICMP.0, ON_LINK]);
        put(&self.target.octets());
        put(&destination.octets());
        put(&[ADVERTISEMENT_TYPE, 0, 0, 0, flags, 0, 0, 0]); // checksum filled in below
        put(&self.target.octets());
        put(&[TARGET_LINK_ADDRESS, 1]);
        put(&link_address);
        let sum =
            checksum(&frame[IP + 8..IP_PAYLOAD], IpNumber::IPV6_ICMP, LENGTH, &frame[IP_PAYLOAD..]);
        frame[IP_PAYLOAD + 2..IP_PAYLOAD + 4].copy_from_slice(&sum.to_ne_bytes());
        Some(ADVERTISEMENT)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use etherparse::icmpv6::{Icmpv6PayloadSlice, NdpOptionSlice};
    use etherparse::{Icmpv6Slice, PacketBuilder};
    use proptest::prelude::*;

    const ASKER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const TARGET_ADDRESS: Ipv6Addr =
        Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0x1234, 0x5678, 0x9abc, 0xdef0);
    const SOURCE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

    /// A solicitation built by etherparse, as an independent check of the layout.
    pub fn build(
        source: Ipv6Addr,
        destination: Ipv6Addr,
        hop_limit: u8,
        target: Ipv6Addr,
        options: &[u8],
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        let body = [&target.octets()[..], options].concat();
        PacketBuilder::ethernet2(ASKER, [0x33, 0x33, 0xff, 0xbc, 0xde, 0xf0])
            .ipv6(source.octets(), destination.octets(), hop_limit)
            .icmpv6_raw(SOLICITATION_TYPE, 0, [0; 4])
            .write(&mut frame, &body)
            .unwrap();
        frame
    }

    const OPTION: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 1];

    fn group() -> Ipv6Addr {
        "ff02::1:ffbc:def0".parse().unwrap()
    }

    /// The Ethernet and IPv6 destination, flags, target and link-layer address of an advertisement.
    fn read(frame: &[u8]) -> ([u8; 6], Ipv6Addr, u8, Ipv6Addr, [u8; 6]) {
        let ether = Ethernet2HeaderSlice::from_slice(frame).unwrap();
        let ip = Ipv6HeaderSlice::from_slice(&frame[IP..]).unwrap();
        assert_eq!(
            (ip.hop_limit(), usize::from(ip.payload_length())),
            (255, frame.len() - IP_PAYLOAD)
        );
        let message = Icmpv6Slice::from_slice(&frame[IP_PAYLOAD..]).unwrap();
        assert!(message.is_checksum_valid(ip.source(), ip.destination()));
        let Ok(Icmpv6PayloadSlice::NeighborAdvertisement(payload)) = message.payload_slice() else {
            panic!("{message:?}")
        };
        let option = payload.options_iterator().next().unwrap().unwrap();
        let NdpOptionSlice::TargetLinkLayerAddress(address) = option else { panic!("{option:?}") };
        let link_address = address.as_bytes()[2..].try_into().unwrap();
        assert_eq!(ip.source_addr(), payload.target_address());
        assert_eq!(ether.source(), link_address);
        (
            ether.destination(),
            ip.destination_addr(),
            message.bytes5to8()[0],
            payload.target_address(),
            link_address,
        )
    }

    fn answer(frame: &[u8]) -> ([u8; 6], Ipv6Addr, u8, Ipv6Addr, [u8; 6]) {
        let mut bytes = [0xee; ADVERTISEMENT];
        let length = solicitation(frame).unwrap().advertise(OURS, &mut bytes).unwrap();
        read(&bytes[..length])
    }

    #[test]
    fn each_kind_of_question_has_its_answer() {
        let right = (ASKER, SOURCE, SOLICITED | OVERRIDE, TARGET_ADDRESS, OURS);
        // To the group to resolve the address, and to the address itself to check that it is still
        // reachable.
        assert_eq!(answer(&build(SOURCE, group(), 255, TARGET_ADDRESS, &OPTION)), right);
        assert_eq!(answer(&build(SOURCE, TARGET_ADDRESS, 255, TARGET_ADDRESS, &[])), right);
        // The option takes precedence over the Ethernet source, and unknown options are ignored.
        let other = [1, 1, 2, 9, 9, 9, 9, 9, 14, 1, 1, 2, 3, 4, 5, 6];
        let (link, ..) = answer(&build(SOURCE, group(), 255, TARGET_ADDRESS, &other));
        assert_eq!(link, [2, 9, 9, 9, 9, 9]);
        // Duplicate Address Detection.
        let detection = answer(&build(Ipv6Addr::UNSPECIFIED, group(), 255, TARGET_ADDRESS, &[]));
        assert_eq!(detection, (ALL_NODES_LINK, ALL_NODES, OVERRIDE, TARGET_ADDRESS, OURS));
        // With Ethernet padding.
        let mut padded = build(SOURCE, group(), 255, TARGET_ADDRESS, &OPTION);
        padded.extend([0; 20]);
        assert_eq!(answer(&padded), right);
    }

    #[test]
    fn every_rule_is_kept() {
        let none = Ipv6Addr::UNSPECIFIED;
        let refusal = |frame: &[u8]| solicitation(frame).unwrap_err();
        let whole = build(SOURCE, group(), 255, TARGET_ADDRESS, &OPTION);
        for length in 0..whole.len() {
            let expected = if length < IP_PAYLOAD { Refusal::NotUdp } else { Refusal::BadLength };
            assert_eq!(refusal(&whole[..length]), expected, "cut to {length}");
        }
        let build = |source, destination, options: &[u8]| {
            build(source, destination, 255, TARGET_ADDRESS, options)
        };
        let bad = Refusal::BadSolicitation;
        let cases = [
            (
                super::tests::build(SOURCE, group(), 254, TARGET_ADDRESS, &OPTION),
                Refusal::BadHopLimit,
            ),
            (super::tests::build(SOURCE, group(), 255, ALL_NODES, &OPTION), bad),
            (build(SOURCE, group(), &[1, 0, 2, 0, 0, 0, 0, 1]), bad), // an option without length
            (build(SOURCE, group(), &[1, 2, 2, 0, 0, 0, 0, 1]), bad), // longer than the message
            (build(SOURCE, group(), &[1, 1, 2, 0, 0, 0, 0, 1, 9]), bad), // half an option
            (build(SOURCE, group(), &[1, 1, 3, 0, 0, 0, 0, 1]), bad), // a group as the sender
            (build(none, group(), &OPTION), bad),
            (build(none, TARGET_ADDRESS, &[]), bad),
            (build(none, ALL_NODES, &[]), bad),
            (build(SOURCE, ALL_NODES, &OPTION), bad),
            (build(SOURCE, SOURCE, &OPTION), bad),
            (build(ALL_NODES, group(), &OPTION), Refusal::SourceMulticast),
            (build(Ipv6Addr::LOCALHOST, group(), &OPTION), Refusal::SourceLoopback),
        ];
        for (index, (frame, expected)) in cases.into_iter().enumerate() {
            assert_eq!(refusal(&frame), expected, "case {index}");
        }
        let changed = |at: usize, byte: u8| {
            let mut frame = whole.clone();
            frame[at] = byte;
            refusal(&frame)
        };
        assert_eq!(changed(12, 8), Refusal::NotUdp); // EtherType
        assert_eq!(changed(IP + 6, 17), Refusal::NotUdp); // UDP
        assert_eq!(changed(IP_PAYLOAD + 1, 1), Refusal::BadChecksum); // code, checksum
        assert_eq!(changed(TARGET, 0), Refusal::BadChecksum);
        assert_eq!(
            solicitation(&whole).unwrap().advertise(OURS, &mut [0; ADVERTISEMENT - 1]),
            None
        );
    }

    #[test]
    fn another_type_or_code_is_no_solicitation() {
        for (kind, code) in [(ADVERTISEMENT_TYPE, 0), (SOLICITATION_TYPE, 1), (128, 0)] {
            let mut frame = Vec::new();
            PacketBuilder::ethernet2(ASKER, OURS)
                .ipv6(SOURCE.octets(), TARGET_ADDRESS.octets(), 255)
                .icmpv6_raw(kind, code, [0; 4])
                .write(&mut frame, &TARGET_ADDRESS.octets())
                .unwrap();
            assert_eq!(solicitation(&frame), Err(Refusal::BadSolicitation));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..40),
            cut in 0usize..120, at in 0usize..80, byte: u8,
        ) {
            let mut frame = build(SOURCE, group(), 255, TARGET_ADDRESS, &noise);
            frame.truncate(cut);
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
            if let Ok(solicitation) = solicitation(&frame) {
                let mut bytes = [0; ADVERTISEMENT];
                prop_assert_eq!(solicitation.advertise(OURS, &mut bytes), Some(ADVERTISEMENT));
                read(&bytes);
            }
        }
    }
}
