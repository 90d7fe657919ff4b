//! The stamp that the load generator writes into each request, which matches a reply to its
//! request.
//!
//! ```text
//! payload:  0 ── run id ── 8 ── sequence number ── 16 ── filling, a function of both ── end
//! ```
//!
//! Both numbers are big-endian. The filling detects a damaged payload without a copy of what was
//! sent.

use std::net::Ipv6Addr;

use etherparse::{IpNumber, PacketBuilder};

use super::reply::HOP_LIMIT;
use super::request::{IP, IP_PAYLOAD, MAX_PAYLOAD, OVERHEAD, UDP_HEADER, checksum};

/// Smallest payload that holds a stamp, in bytes.
pub const MIN_PAYLOAD: usize = 16;

/// Identifies one request of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Random for each run, so that late replies to an earlier run are not counted.
    pub run: u64,
    /// 0 for the first request of the run.
    pub sequence: u64,
}

impl Stamp {
    /// Fills `payload`. A payload shorter than [`MIN_PAYLOAD`] is left unchanged.
    #[inline]
    pub fn write(self, payload: &mut [u8]) {
        let Some((head, filling)) = payload.split_first_chunk_mut::<MIN_PAYLOAD>() else {
            return;
        };
        head[..8].copy_from_slice(&self.run.to_be_bytes());
        head[8..].copy_from_slice(&self.sequence.to_be_bytes());
        for (word, chunk) in self.filling().zip(filling.chunks_mut(8)) {
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Reads the stamp of `payload`; `None` if it is too short.
    #[inline]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (run, rest) = payload.split_first_chunk()?;
        let (sequence, _) = rest.split_first_chunk()?;
        Some(Self { run: u64::from_be_bytes(*run), sequence: u64::from_be_bytes(*sequence) })
    }

    /// Whether the filling of `payload` matches this stamp.
    #[inline]
    pub fn is_intact(self, payload: &[u8]) -> bool {
        let filling = payload.get(MIN_PAYLOAD..).unwrap_or_default();
        self.filling().zip(filling.chunks(8)).all(|(word, chunk)| &word[..chunk.len()] == chunk)
    }

    /// Endless eight-byte words. Each word differs from the one before, and between requests.
    fn filling(self) -> impl Iterator<Item = [u8; 8]> {
        // The golden ratio's fraction: successive sequence numbers give words that differ in about
        // half of their bits.
        let mut word = (self.run ^ self.sequence).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        std::iter::repeat_with(move || {
            word = word.rotate_left(7) ^ self.run;
            word.to_be_bytes()
        })
    }
}

/// Both ends of a request, without the destination address, which changes with each request.
#[derive(Debug, Clone, Copy)]
pub struct Endpoints {
    /// Ethernet address to send from.
    pub source_mac: [u8; 6],
    /// Ethernet address of the server, or of the next router.
    pub destination_mac: [u8; 6],
    /// IPv6 address to send from; replies come here.
    pub source: Ipv6Addr,
    /// UDP port to send from; replies come here.
    pub source_port: u16,
    /// UDP port of the service.
    pub service_port: u16,
}

/// A request frame with its constant parts filled in.
#[derive(Debug, Clone)]
pub struct Template {
    frame: Vec<u8>,
    udp_length: u16,
}

impl Template {
    /// A template for requests between `ends` with `payload` bytes of payload.
    ///
    /// # Errors
    /// If `payload` is less than [`MIN_PAYLOAD`] or more than [`MAX_PAYLOAD`].
    pub fn new(ends: &Endpoints, payload: usize) -> Result<Self, String> {
        if !(MIN_PAYLOAD..=MAX_PAYLOAD).contains(&payload) {
            return Err(format!("payload of {payload} bytes: use {MIN_PAYLOAD} to {MAX_PAYLOAD}"));
        }
        let mut frame = Vec::with_capacity(OVERHEAD + payload);
        PacketBuilder::ethernet2(ends.source_mac, ends.destination_mac)
            .ipv6(ends.source.octets(), [0; 16], HOP_LIMIT)
            .udp(ends.source_port, ends.service_port)
            .write(&mut frame, &vec![0; payload])
            .map_err(|error| error.to_string())?;
        Ok(Self { udp_length: (UDP_HEADER + payload) as u16, frame })
    }

    /// Length of a request frame in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// Writes the request for `destination` with `stamp` to the start of `frame`. Returns its
    /// length, or `None` if `frame` is too short.
    #[inline]
    pub fn write(&self, frame: &mut [u8], destination: Ipv6Addr, stamp: Stamp) -> Option<usize> {
        const DESTINATION: usize = IP + 24;
        const CHECKSUM: usize = IP_PAYLOAD + 6;
        let frame = frame.get_mut(..self.frame.len())?;
        frame.copy_from_slice(&self.frame);
        frame[DESTINATION..IP_PAYLOAD].copy_from_slice(&destination.octets());
        stamp.write(&mut frame[OVERHEAD..]);
        frame[CHECKSUM..OVERHEAD].fill(0);
        // 0 would mean "no checksum", so a sum of 0 is sent as all ones (RFC 768).
        let sum = match checksum(
            &frame[IP + 8..IP_PAYLOAD],
            IpNumber::UDP,
            self.udp_length,
            &frame[IP_PAYLOAD..],
        ) {
            0 => u16::MAX,
            sum => sum,
        };
        frame[CHECKSUM..OVERHEAD].copy_from_slice(&sum.to_ne_bytes());
        Some(frame.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::{CLIENT, SERVER};
    use super::super::validate;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_written_request_is_a_right_one_and_carries_its_stamp(
            payload in MIN_PAYLOAD..=MAX_PAYLOAD, run: u64, sequence: u64, destination: u128,
        ) {
            let ends = Endpoints {
                source_mac: [2; 6],
                destination_mac: [4; 6],
                source: CLIENT,
                source_port: 50_000,
                service_port: 3540,
            };
            let destination = Ipv6Addr::from_bits(destination);
            let stamp = Stamp { run, sequence };
            let mut bytes = [0xee; 2048];
            let template = Template::new(&ends, payload).unwrap();
            let length = template.write(&mut bytes, destination, stamp).unwrap();
            prop_assert_eq!(length, OVERHEAD + payload);
            let request = validate(&mut bytes[..length], 3540).unwrap();
            prop_assert_eq!(request.destination(), destination);
            prop_assert_eq!(Stamp::read(request.payload()), Some(stamp));
            prop_assert!(stamp.is_intact(request.payload()));
        }

        #[test]
        fn damage_to_the_payload_is_seen(
            run: u64, sequence: u64, byte in 0usize..32, flip in 1u8..,
        ) {
            let stamp = Stamp { run, sequence };
            let mut payload = [0; 32];
            stamp.write(&mut payload);
            payload[byte] ^= flip;
            prop_assert!(Stamp::read(&payload) != Some(stamp) || !stamp.is_intact(&payload));
        }
    }

    #[test]
    fn a_payload_that_no_stamp_or_no_frame_holds_is_refused() {
        let ends = Endpoints {
            source_mac: [2; 6],
            destination_mac: [4; 6],
            source: CLIENT,
            source_port: 1,
            service_port: 2,
        };
        assert!(Template::new(&ends, MIN_PAYLOAD - 1).is_err());
        assert!(Template::new(&ends, MAX_PAYLOAD + 1).is_err());
        let template = Template::new(&ends, MIN_PAYLOAD).unwrap();
        assert_eq!(template.write(&mut [0; 77], SERVER, Stamp { run: 1, sequence: 1 }), None);
        assert_eq!(Stamp::read(&[0; 15]), None);
    }
}
