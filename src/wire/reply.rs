//! Turns a request into its reply in place.
//!
//! ```text
//!  0     6     12   14          22            38            54    56    58    60    62
//!  ├─dst─┼─src─┼type┼ver/len/hop┼── source ───┼─destination─┼─sp──┼─dp──┼─len─┼─sum─┼─payload
//!     └swap─┘                64      └─ swapped ─┘             └swap─┘
//! ```
//!
//! The UDP checksum is a one's-complement sum of 16-bit words. Swapping the addresses and ports
//! does not change the sum, and the hop limit is not part of it. So the reply keeps the request's
//! checksum.

use etherparse::IpNumber;

use super::request::{IP, IP_PAYLOAD, OVERHEAD, Request, UDP_HEADER, checksum};

/// Hop limit of a reply: Linux's default (`IPV6_DEFAULT_HOPLIMIT`), which is IANA's recommended
/// default.
pub const HOP_LIMIT: u8 = 64;

const MAC: usize = 6;
const ADDRESS: usize = 16;
const PORT: usize = 2;

const PAYLOAD_LENGTH: usize = IP + 4;
const HOP_LIMIT_AT: usize = IP + 7;
const SOURCE: usize = IP + 8;
const UDP_LENGTH: usize = IP_PAYLOAD + 4;
const UDP_CHECKSUM: usize = IP_PAYLOAD + 6;

impl Request<'_> {
    /// Rewrites the frame into the reply. Returns its length in bytes; padding of the request is
    /// dropped.
    #[inline]
    pub fn into_reply(self) -> usize {
        // Always true: a `Request` is at least as long as its headers.
        if let Some(headers) = self.frame.first_chunk_mut::<OVERHEAD>() {
            turn_round(headers);
        }
        IP_PAYLOAD + usize::from(self.udp_length)
    }
}

/// Turns the headers of a request into those of its reply.
#[inline(always)]
fn turn_round(headers: &mut [u8; OVERHEAD]) {
    swap::<MAC>(&mut headers[0..2 * MAC]);
    // Sets the IPv6 payload length to the UDP length: the reply carries no bytes behind its
    // datagram.
    headers.copy_within(UDP_LENGTH..UDP_LENGTH + 2, PAYLOAD_LENGTH);
    headers[HOP_LIMIT_AT] = HOP_LIMIT;
    swap::<ADDRESS>(&mut headers[SOURCE..SOURCE + 2 * ADDRESS]);
    swap::<PORT>(&mut headers[IP_PAYLOAD..IP_PAYLOAD + 2 * PORT]);
}

impl Request<'_> {
    /// Rewrites the frame into a reply whose payload is the first `length` bytes of the payload
    /// buffer. Updates lengths and checksum, and returns the frame's length in bytes. Returns
    /// `None` and leaves the frame unchanged if `length` does not fit.
    pub fn into_changed_reply(self, length: usize) -> Option<usize> {
        let udp_length = u16::try_from(length.checked_add(UDP_HEADER)?).ok()?;
        let end = IP_PAYLOAD + usize::from(udp_length);
        let reply = self.frame.get_mut(..end)?;
        let headers = reply.first_chunk_mut::<OVERHEAD>()?;
        headers[UDP_LENGTH..UDP_LENGTH + 2].copy_from_slice(&udp_length.to_be_bytes());
        // Lengths and addresses first: the checksum covers them.
        turn_round(headers);
        reply[UDP_CHECKSUM..UDP_CHECKSUM + 2].fill(0);
        let (headers, datagram) = reply.split_at_mut(IP_PAYLOAD);
        let sum = match checksum(&headers[SOURCE..], IpNumber::UDP, udp_length, datagram) {
            0 => u16::MAX, // 0 would mean "no checksum" (RFC 768)
            sum => sum,
        };
        datagram[UDP_CHECKSUM - IP_PAYLOAD..][..2].copy_from_slice(&sum.to_ne_bytes());
        Some(end)
    }
}

/// Rewrites the headers of a reply for UDP generic segmentation offload: one datagram that carries
/// the payload `copies` times and is cut into as many replies. The lengths cover the whole. The
/// checksum field holds the pseudo-header sum, from which each segment's checksum is computed.
///
/// Returns false and leaves the headers unchanged if the datagram would be too long.
pub fn join(headers: &mut [u8; OVERHEAD], copies: usize) -> bool {
    let length = usize::from(u16::from_be_bytes([headers[UDP_LENGTH], headers[UDP_LENGTH + 1]]));
    let payload = length.saturating_sub(UDP_HEADER);
    let Some(length) =
        payload.checked_mul(copies).and_then(|sum| u16::try_from(sum + UDP_HEADER).ok())
    else {
        return false;
    };
    headers[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    headers[UDP_LENGTH..UDP_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    let sum = !checksum(&headers[SOURCE..IP_PAYLOAD], IpNumber::UDP, length, &[]);
    headers[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&sum.to_ne_bytes());
    true
}

/// Swaps the two halves of `pair`, each of `N` bytes.
#[inline(always)]
fn swap<const N: usize>(pair: &mut [u8]) {
    let (a, b) = pair.split_at_mut(N);
    a.swap_with_slice(b);
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{CLIENT, SERVER, frame};
    use super::super::{validate, validate_within};
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_reply_is_what_a_fresh_build_would_be(
            payload in proptest::collection::vec(any::<u8>(), 0..1400),
            padding in 0usize..46,
        ) {
            let mut bytes = frame(&payload);
            bytes.extend(std::iter::repeat_n(0xee, padding));
            let length = validate(&mut bytes, 3540).unwrap().into_reply();
            let mut expected = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
                .ipv6(SERVER.octets(), CLIENT.octets(), HOP_LIMIT)
                .udp(3540, 50_000)
                .write(&mut expected, &payload)
                .unwrap();
            prop_assert_eq!(&bytes[..length], &expected[..]);
        }
    }

    proptest! {
        #[test]
        fn a_changed_reply_is_what_a_fresh_build_would_be(
            payload in proptest::collection::vec(any::<u8>(), 0..1400),
            padding in 0usize..46,
            answer in proptest::collection::vec(any::<u8>(), 0..1452),
            room in 0usize..1500,
        ) {
            let mut bytes = frame(&payload);
            bytes.extend(std::iter::repeat_n(0xee, padding));
            let length = bytes.len();
            bytes.resize(length + room, 0xdd);
            let before = bytes.clone();
            let mut request = validate_within(&mut bytes, length, 3540).unwrap();
            let (buffer, old) = request.payload_mut();
            prop_assert_eq!(old, payload.len());
            let Some(place) = buffer.get_mut(..answer.len()) else {
                prop_assert_eq!(request.into_changed_reply(answer.len()), None);
                prop_assert_eq!(bytes, before);
                return Ok(());
            };
            place.copy_from_slice(&answer);
            let length = request.into_changed_reply(answer.len()).unwrap();
            let mut expected = Vec::new();
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1])
                .ipv6(SERVER.octets(), CLIENT.octets(), HOP_LIMIT)
                .udp(3540, 50_000)
                .write(&mut expected, &answer)
                .unwrap();
            prop_assert_eq!(&bytes[..length], &expected[..]);
            prop_assert!(validate(&mut bytes[..length], 50_000).is_ok());
        }
    }

    #[test]
    fn a_sum_of_zero_is_sent_as_all_ones() {
        let mut bytes = frame(&[0; 2]);
        // The checksum of a reply with a zero payload. As the payload, it makes the sum zero.
        let length = bytes.len();
        let reply = validate_within(&mut bytes, length, 3540).unwrap().into_changed_reply(2);
        let sum = [bytes[UDP_CHECKSUM], bytes[UDP_CHECKSUM + 1]];
        let mut again = frame(&[0; 2]);
        let mut request = validate_within(&mut again, length, 3540).unwrap();
        request.payload_mut().0[..2].copy_from_slice(&sum);
        assert_eq!(request.into_changed_reply(2), reply);
        assert_eq!(again[UDP_CHECKSUM..UDP_CHECKSUM + 2], [0xff, 0xff]);
        assert!(validate(&mut again, 50_000).is_ok());
    }

    #[test]
    fn no_length_is_too_large_to_be_refused() {
        for length in [33, 65_528, usize::MAX - 8, usize::MAX] {
            let mut bytes = frame(&[1; 32]);
            assert_eq!(validate(&mut bytes, 3540).unwrap().into_changed_reply(length), None);
            assert_eq!(bytes, frame(&[1; 32]));
        }
    }

    proptest! {
        #[test]
        fn joined_replies_are_a_datagram_whose_checksum_is_still_to_be_computed(
            payload in proptest::collection::vec(any::<u8>(), 1..1400),
            copies in 2usize..46,
        ) {
            let mut bytes = frame(&payload);
            let mut headers = *bytes.first_chunk::<OVERHEAD>().unwrap();
            prop_assert!(join(&mut headers, copies));
            let mut whole = [&headers[..], &payload.repeat(copies)].concat();
            // As a card does: sum from the UDP header on, including the checksum field.
            let sum = !checksum(&[0; 32], IpNumber(0), 0, &whole[IP_PAYLOAD..]);
            whole[UDP_CHECKSUM..UDP_CHECKSUM + 2].copy_from_slice(&(!sum).to_ne_bytes());
            prop_assert!(validate(&mut whole, 3540).is_ok());
            prop_assert!(validate(&mut bytes, 3540).is_ok());
        }
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_not_joined() {
        let bytes = frame(&[1; 1452]);
        let headers = *bytes.first_chunk::<OVERHEAD>().unwrap();
        let mut joined = headers;
        assert!(!join(&mut joined, 46) && joined == headers);
        assert!(!join(&mut joined, usize::MAX) && joined == headers);
        assert!(join(&mut joined, 45) && joined != headers);
    }

    #[test]
    fn bytes_between_datagram_and_ip_payload_are_not_sent_back() {
        let mut bytes = frame(&[1; 32]);
        bytes.extend([0; 10]);
        bytes[IP + 5] += 10;
        let length = validate(&mut bytes, 3540).unwrap().into_reply();
        assert_eq!(length, 94);
        assert!(validate(&mut bytes[..length], 50_000).is_ok());
    }
}
