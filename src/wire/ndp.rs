//! Neighbour Discovery (RFC 4861), as far as an address needs it that no kernel has: the check of a
//! Neighbour Solicitation, and the Neighbour Advertisement that answers it.
//!
//! ```text
//!  0     6     12   14          22       38      54   55   56  58       62       78
//!  ├─dst─┼─src─┼type┼ver/len/hop┼─source─┼─dest.─┼type┼code┼sum┼reserved┼─target─┼─options
//!                86dd         255                 135    0
//! ```

use std::net::Ipv6Addr;

use etherparse::{EtherType, Ethernet2HeaderSlice, IpNumber, Ipv6HeaderSlice};

use super::request::{IP, IP_PAYLOAD, Refusal, checksum};

/// Bytes of an advertisement with its one option, from the Ethernet header on.
pub const ADVERTISEMENT: usize = OPTIONS + OPTION_UNIT;

const TARGET: usize = IP_PAYLOAD + 8;
const OPTIONS: usize = TARGET + 16;
/// Options are this long, or a multiple of it (section 4.6).
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

/// What no router forwards a packet with (section 7.1.1): it comes from the link itself.
const ON_LINK: u8 = 255;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The Ethernet address of that (RFC 2464 section 7).
const ALL_NODES_LINK: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Somebody wants to know who has an address. Only [`solicitation`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Solicitation {
    source: Ipv6Addr,
    target: Ipv6Addr,
    /// Where the answer is to go: what the source gave as its address or else sent from.
    link_address: [u8; 6],
}

/// Takes `frame`, from its Ethernet header on, as a Neighbour Solicitation, by the rules of RFC
/// 4861 section 7.1.1.
///
/// # Errors
/// What is wrong with it: [`Refusal::NotUdp`] when it is something else altogether.
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
            _ => {} // what it does not know it ignores
        }
        options = rest;
    }
    if !options.is_empty() || link_address.is_some_and(|address| address[0] & 1 == 1) {
        return Err(Refusal::BadSolicitation); // half an option, or a group as the sender's address
    }
    if source.is_multicast() {
        return Err(Refusal::SourceMulticast);
    }
    if source.is_loopback() {
        return Err(Refusal::SourceLoopback);
    }
    // Duplicate Address Detection: it asks the whole group, and has no address to be answered at.
    let group = solicited_node(target);
    if source.is_unspecified() && (destination != group || link_address.is_some()) {
        return Err(Refusal::BadSolicitation);
    }
    if destination != group && destination != target {
        return Err(Refusal::BadSolicitation);
    }
    Ok(Solicitation { source, target, link_address: link_address.unwrap_or(ether.source()) })
}

/// The group that an address's solicitations go to (RFC 4291 section 2.7.1).
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    const GROUP: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(GROUP | address.to_bits() & 0xff_ffff)
}

impl Solicitation {
    /// Who asks; `::` in Duplicate Address Detection.
    #[must_use]
    pub fn source(&self) -> Ipv6Addr {
        self.source
    }

    /// The address that is asked for.
    #[must_use]
    pub fn target(&self) -> Ipv6Addr {
        self.target
    }

    /// Writes the answer that the target is at `link_address` (section 7.2.4) into the beginning of
    /// `frame`, and returns its length. `None` when `frame` is shorter than [`ADVERTISEMENT`].
    pub fn advertise(&self, link_address: [u8; 6], frame: &mut [u8]) -> Option<usize> {
        const LENGTH: u16 = (ADVERTISEMENT - IP_PAYLOAD) as u16;
        let frame = frame.first_chunk_mut::<ADVERTISEMENT>()?;
        // Who has no address yet cannot be told apart from the others.
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
        put(&[ADVERTISEMENT_TYPE, 0, 0, 0, flags, 0, 0, 0]); // its checksum is zero so far
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

    /// A solicitation built by etherparse: an independent opinion on what the bytes should be.
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

    /// What an advertisement says: Ethernet and IPv6 destination, flags, target and link-layer
    /// address.
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
        // To the group, as long as the address is not known, and to the address itself, to see
        // whether it is still there.
        assert_eq!(answer(&build(SOURCE, group(), 255, TARGET_ADDRESS, &OPTION)), right);
        assert_eq!(answer(&build(SOURCE, TARGET_ADDRESS, 255, TARGET_ADDRESS, &[])), right);
        // The option goes before the Ethernet header, and what follows it is ignored.
        let other = [1, 1, 2, 9, 9, 9, 9, 9, 14, 1, 1, 2, 3, 4, 5, 6];
        let (link, ..) = answer(&build(SOURCE, group(), 255, TARGET_ADDRESS, &other));
        assert_eq!(link, [2, 9, 9, 9, 9, 9]);
        // Duplicate Address Detection.
        let detection = answer(&build(Ipv6Addr::UNSPECIFIED, group(), 255, TARGET_ADDRESS, &[]));
        assert_eq!(detection, (ALL_NODES_LINK, ALL_NODES, OVERRIDE, TARGET_ADDRESS, OURS));
        // With the padding of an Ethernet frame.
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
        assert_eq!(changed(IP_PAYLOAD + 1, 1), Refusal::BadChecksum); // code, and with it the sum
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
