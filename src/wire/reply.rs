//! Turns a request into its reply, in the same bytes.
//!
//! ```text
//!  0        6        12    14                22               38               54    56    58    60    62
//!  ├─ dst ──┼─ src ──┼type─┼ ver/len/hop ────┼── source ──────┼── destination ─┼─sp──┼─dp──┼─len─┼─sum─┼ payload
//!     └── swapped ┘               64              └────── swapped ──┘             └ swapped ┘
//! ```
//!
//! The UDP checksum is a one's-complement sum of 16-bit words, which does not care about their order: swapping the
//! addresses and the ports leaves it right. It does not cover the hop limit. So nothing needs to be summed again.

use super::request::{IP, IP_PAYLOAD, OVERHEAD, Request};

/// Hop limit of a reply: what Linux gives its own packets (`IPV6_DEFAULT_HOPLIMIT`; IANA's recommended default).
pub const HOP_LIMIT: u8 = 64;

const MAC: usize = 6;
const ADDRESS: usize = 16;
const PORT: usize = 2;

const PAYLOAD_LENGTH: usize = IP + 4;
const HOP_LIMIT_AT: usize = IP + 7;
const SOURCE: usize = IP + 8;
const UDP_LENGTH: usize = IP_PAYLOAD + 4;

impl Request<'_> {
    /// Rewrites the frame into the reply and returns its length in bytes, without any padding the request had.
    #[inline]
    pub fn into_reply(self) -> usize {
        // A `Request` is at least as long as its headers: this never takes the other way.
        if let Some(headers) = self.frame.first_chunk_mut::<OVERHEAD>() {
            swap::<MAC>(&mut headers[0..2 * MAC]);
            // The IPv6 payload of the reply ends where the datagram does.
            headers.copy_within(UDP_LENGTH..UDP_LENGTH + 2, PAYLOAD_LENGTH);
            headers[HOP_LIMIT_AT] = HOP_LIMIT;
            swap::<ADDRESS>(&mut headers[SOURCE..SOURCE + 2 * ADDRESS]);
            swap::<PORT>(&mut headers[IP_PAYLOAD..IP_PAYLOAD + 2 * PORT]);
        }
        IP_PAYLOAD + usize::from(self.udp_length)
    }
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
    use super::super::validate;
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
