//! The memory-mapped rings of packet sockets (Documentation/networking/packet_mmap.rst): who may
//! touch what, and when.
//!
//! ```text
//!   RX_RING, TPACKET_V2   units are frames   header | ... | packet
//!                         handed over one by one, at once
//!   RX_RING, TPACKET_V3   units are blocks   header | header, packet | header, packet | ...
//!                         handed over when one is full, or after [`RETIRE`]
//!   TX_RING, both         units are frames   header | what to send
//!
//!   rx   kernel's ──status USER──► ours ──status KERNEL──► kernel's
//!   tx   ours ──status SEND_REQUEST──► kernel's ──status AVAILABLE──► ours
//! ```
//!
//! A status is read by an acquire load before what it guards is touched, and written by a release
//! store after: that pairing is all the synchronisation there is. A unit that is ours is a value
//! ([`Handed`], [`TxUnit`]) that borrows the ring, and what is in it borrows the value: nothing of
//! it is left in our hands when it is given back.
//!
//! A ring does not know whether the kernel is on the other side: the tests have it over plain
//! memory. What the other side says that makes no sense is counted. `unsafe` are the views into the
//! memory.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{tpacket_block_desc, tpacket_hdr_v1, tpacket2_hdr, tpacket3_hdr};

use crate::net::memory::Memory;
use crate::net::option::{self, SocketOption};

pub use crate::events::TPacket;

/// Milliseconds after which a block that is not full is handed over: the shortest time that can be
/// named.
const RETIRE: u32 = 1;

/// Bytes of each ring. With frames of 2 KiB it holds 4,096: as many as the rings of afxdp.
const RING: usize = 8 << 20;

/// Bytes of a block, of which the kernel makes a ring: as many requests as come within some
/// hundreds of microseconds at 100,000 requests/s.
const BLOCK: usize = 32 << 10;

/// Bytes that the kernel takes of a frame of the rx ring before the packet, with room to align it,
/// in either version.
const RX_OVERHEAD: usize = libc::TPACKET3_HDRLEN + 32;

/// What is where in a unit, and in the header of a packet. Such a header is a multiple of 16 bytes
/// long (TPACKET_ALIGNMENT).
struct HeaderLayout {
    /// The status of a unit of the rx ring.
    unit_status: usize,
    /// In the header of a packet: its status, length, captured length, and the word in which its
    /// offset comes first.
    status: usize,
    length: usize,
    captured: usize,
    offset: usize,
    /// Bytes of that header.
    header: usize,
}

impl TPacket {
    const fn layout(self) -> &'static HeaderLayout {
        match self {
            Self::V2 => &HeaderLayout {
                unit_status: offset_of!(tpacket2_hdr, tp_status),
                status: offset_of!(tpacket2_hdr, tp_status),
                length: offset_of!(tpacket2_hdr, tp_len),
                captured: offset_of!(tpacket2_hdr, tp_snaplen),
                offset: offset_of!(tpacket2_hdr, tp_mac),
                header: size_of::<tpacket2_hdr>(),
            },
            Self::V3 => &HeaderLayout {
                unit_status: BLOCK_HEADER + offset_of!(tpacket_hdr_v1, block_status),
                status: offset_of!(tpacket3_hdr, tp_status),
                length: offset_of!(tpacket3_hdr, tp_len),
                captured: offset_of!(tpacket3_hdr, tp_snaplen),
                offset: offset_of!(tpacket3_hdr, tp_mac),
                header: size_of::<tpacket3_hdr>(),
            },
        }
    }
}

/// In a block: its header, and in that how many packets it holds and where the first is; in the
/// header of a packet of it, how far away the next one is.
const BLOCK_HEADER: usize = offset_of!(tpacket_block_desc, hdr);
const PACKETS: usize = BLOCK_HEADER + offset_of!(tpacket_hdr_v1, num_pkts);
const FIRST: usize = BLOCK_HEADER + offset_of!(tpacket_hdr_v1, offset_to_first_pkt);
const NEXT: usize = offset_of!(tpacket3_hdr, tp_next_offset);

/// A ring as a range of memory, of units one after the other.
struct MappedRing {
    memory: Arc<Memory>,
    version: TPacket,
    /// Bytes of a unit.
    unit: usize,
    units: usize,
    /// The unit that is next.
    next: usize,
    /// What the kernel said that makes no sense.
    invalid: u64,
}

impl MappedRing {
    /// One that `socket` gets by the option `kind`, of frames of at least `frame` bytes, which are
    /// handed over in blocks or one by one. A socket could have one of each kind, mapped one after
    /// the other: here it has one.
    fn map(
        socket: &OwnedFd,
        kind: SocketOption<libc::tpacket_req3>,
        version: TPacket,
        frame: usize,
        in_blocks: bool,
    ) -> io::Result<Self> {
        // Powers of two, so that a block holds frames without a rest, and a page either.
        let frame = frame.max(2048).next_power_of_two();
        let block = frame.max(BLOCK);
        let blocks = (RING / block).max(2);
        let request = libc::tpacket_req3 {
            tp_block_size: block as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: frame as u32,
            tp_frame_nr: (blocks * (block / frame)) as u32,
            // Without a meaning, and not looked at or to be 0, but for blocks.
            tp_retire_blk_tov: if in_blocks { RETIRE } else { 0 },
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        let number: libc::c_int = match version {
            TPacket::V2 => 1, // tpacket_versions, linux/if_packet.h
            TPacket::V3 => 2,
        };
        option::set(socket, option::PACKET_VERSION, &number)?;
        option::set(socket, kind, &request)?;
        let memory = Memory::of_file(socket.as_fd(), blocks * block, 0)?;
        let unit = if in_blocks { block } else { frame };
        Ok(Self::over(Arc::new(memory), version, unit, blocks * block / unit))
    }

    fn over(memory: Arc<Memory>, version: TPacket, unit: usize, units: usize) -> Self {
        Self { memory, version, unit, units, next: 0, invalid: 0 }
    }

    /// The word at byte `at`; `None` when it does not lie in the ring.
    fn word(&self, at: usize) -> Option<&AtomicU32> {
        let word = self.memory.at::<AtomicU32>(at, 1)?;
        // SAFETY: within the memory, which lives as long as the ring; atomics may be shared with
        // the kernel.
        Some(unsafe { word.as_ref() })
    }

    /// What is in that word, as it is now.
    fn read(&self, at: usize) -> Option<usize> {
        Some(self.word(at)?.load(Ordering::Relaxed) as usize)
    }

    /// The bytes from `at` on; `None` when they do not lie in the ring.
    ///
    /// # Safety
    /// They are ours by their unit's status, and for as long as the slice lives nothing else looks
    /// at them.
    unsafe fn bytes(&mut self, at: usize, length: usize) -> Option<&mut [u8]> {
        let start = self.memory.at::<u8>(at, length)?;
        // SAFETY: within the memory, which lives as long as the ring; for the rest the caller
        // answers.
        Some(unsafe { slice::from_raw_parts_mut(start.as_ptr(), length) })
    }

    /// Where the next unit starts.
    fn place(&self) -> usize {
        self.next * self.unit
    }

    fn advance(&mut self) {
        self.next = (self.next + 1) % self.units;
    }
}

/// A ring that packets come in.
pub(super) struct RxRing {
    ring: MappedRing,
    /// Bytes of the longest packet that is shown whole.
    largest: usize,
}

impl RxRing {
    /// The rx ring of `socket`, for packets of at most `largest` bytes: what is longer is shown cut
    /// off.
    pub fn map(socket: &OwnedFd, version: TPacket, largest: usize) -> io::Result<Self> {
        let ring = MappedRing::map(
            socket,
            option::PACKET_RX_RING,
            version,
            largest + RX_OVERHEAD,
            version == TPacket::V3,
        )?;
        Ok(Self { ring, largest })
    }

    /// What the kernel has handed over, if it has.
    pub fn next(&mut self) -> Option<Handed<'_>> {
        let unit = self.ring.place();
        let status =
            self.ring.word(unit + self.ring.version.layout().unit_status)?.load(Ordering::Acquire);
        if status == libc::TP_STATUS_KERNEL {
            return None;
        }
        let (packet, left) = match self.ring.version {
            _ if status & libc::TP_STATUS_USER == 0 => {
                self.ring.invalid += 1;
                (unit, 0)
            }
            TPacket::V2 => (unit, 1),
            TPacket::V3 => (
                unit.saturating_add(self.ring.read(unit + FIRST)?),
                self.ring.read(unit + PACKETS)?,
            ),
        };
        Some(Handed { rx: self, unit, packet, left })
    }

    /// What the kernel said that makes no sense.
    pub fn invalid(&self) -> u64 {
        self.ring.invalid
    }
}

/// A unit of the rx ring that is ours, and goes back to the kernel when it is dropped.
pub(super) struct Handed<'ring> {
    rx: &'ring mut RxRing,
    /// Where it starts.
    unit: usize,
    /// Where the header of the next packet in it starts.
    packet: usize,
    /// How many packets are left.
    left: usize,
}

impl Handed<'_> {
    /// The next packet in it, to read and to write.
    pub fn packet(&mut self) -> Option<&mut [u8]> {
        self.left = self.left.checked_sub(1)?;
        let Some((start, length)) = self.find() else {
            self.rx.ring.invalid += 1;
            self.left = 0; // where the others are is not known either
            return None;
        };
        // SAFETY: within the unit, which is ours; the slice borrows `self`, so it is gone when
        // another is made or all goes back.
        unsafe { self.rx.ring.bytes(start, length) }
    }

    /// Where the packet of the next header lies, and goes on to the header after it; `None` when
    /// that is not within the unit.
    fn find(&mut self) -> Option<(usize, usize)> {
        let ring = &self.rx.ring;
        let layout = ring.version.layout();
        let (header, end) = (self.packet, self.unit + ring.unit);
        // Not beyond the unit, where the next one may be the kernel's.
        if header < self.unit || header.checked_add(layout.header)? > end {
            return None;
        }
        let captured = ring.read(header + layout.captured)?;
        let [low, high, ..] = (ring.read(header + layout.offset)? as u32).to_ne_bytes();
        let offset = usize::from(u16::from_ne_bytes([low, high]));
        let start = header + offset;
        if offset < layout.header || start.checked_add(captured)? > end {
            return None;
        }
        if self.left > 0 {
            self.packet = header.checked_add(ring.read(header + NEXT)?)?;
        }
        Some((start, captured.min(self.rx.largest)))
    }
}

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        let ring = &mut self.rx.ring;
        if let Some(status) = ring.word(self.unit + ring.version.layout().unit_status) {
            status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
        }
        ring.advance();
    }
}

/// A ring that packets go out by.
pub(super) struct TxRing(MappedRing);

impl TxRing {
    /// The tx ring of `socket`, for at least `room` bytes a packet.
    pub fn map(socket: &OwnedFd, version: TPacket, room: usize) -> io::Result<Self> {
        // What cannot be sent is skipped. Otherwise the kernel would wait at it for something else
        // in its place.
        option::set(socket, option::PACKET_LOSS, &1)?;
        let ring = MappedRing::map(
            socket,
            option::PACKET_TX_RING,
            version,
            room + version.layout().header,
            false,
        )?;
        Ok(Self(ring))
    }

    /// One over plain memory, of which nobody takes anything.
    #[cfg(test)]
    pub fn without_kernel(version: TPacket, unit: usize, units: usize) -> io::Result<Self> {
        let memory = Arc::new(Memory::anonymous(units * unit)?);
        Ok(Self(MappedRing::over(memory, version, unit, units)))
    }

    /// Room for one packet, unless all of it is the kernel's.
    pub fn slot(&mut self) -> Option<TxUnit<'_>> {
        let ring = &mut self.0;
        let status =
            ring.word(ring.place() + ring.version.layout().status)?.load(Ordering::Acquire);
        if status & (libc::TP_STATUS_SEND_REQUEST | libc::TP_STATUS_SENDING) != 0 {
            return None;
        }
        if status != libc::TP_STATUS_AVAILABLE {
            ring.invalid += 1;
        }
        Some(TxUnit(ring))
    }

    /// Bytes that a slot has room for.
    pub fn room(&self) -> usize {
        self.0.unit - self.0.version.layout().header
    }

    /// Whether the kernel has not begun with what was put in last, so not with all.
    pub fn is_waiting(&self) -> bool {
        let ring = &self.0;
        let last = (ring.next + ring.units - 1) % ring.units * ring.unit;
        let status = ring.word(last + ring.version.layout().status);
        status.is_some_and(|status| {
            status.load(Ordering::Relaxed) & libc::TP_STATUS_SEND_REQUEST != 0
        })
    }

    /// What the kernel said that makes no sense.
    pub fn invalid(&self) -> u64 {
        self.0.invalid
    }
}

/// A unit of the tx ring that is ours until it is sent, or dropped.
pub(super) struct TxUnit<'ring>(&'ring mut MappedRing);

impl TxUnit<'_> {
    /// Its room, with what was in it before.
    pub fn bytes(&mut self) -> &mut [u8] {
        let header = self.0.version.layout().header;
        let (start, length) = (self.0.place() + header, self.0.unit - header);
        // SAFETY: within the unit, which is ours; the slice borrows `self`, so it is gone when the
        // unit is sent.
        unsafe { self.0.bytes(start, length) }.unwrap_or_default()
    }

    /// Hands over its first `length` bytes, to be sent when the kernel is asked to.
    pub fn send(self, length: usize) {
        let ring = self.0;
        let layout = ring.version.layout();
        let header = ring.place();
        if let (Some(status), Some(place)) =
            (ring.word(header + layout.status), ring.word(header + layout.length))
        {
            place.store(length as u32, Ordering::Relaxed);
            status.store(libc::TP_STATUS_SEND_REQUEST, Ordering::Release);
        }
        ring.advance();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIT: usize = 4096;
    const UNITS: usize = 3;

    /// A ring over plain memory, and the kernel's end of it.
    fn ring(version: TPacket) -> (MappedRing, MappedRing) {
        let memory = Arc::new(Memory::anonymous(UNITS * UNIT).unwrap());
        let over = || MappedRing::over(memory.clone(), version, UNIT, UNITS);
        (over(), over())
    }

    fn rx(version: TPacket) -> (RxRing, MappedRing) {
        let (ring, kernel) = ring(version);
        (RxRing { ring, largest: 1514 }, kernel)
    }

    impl MappedRing {
        fn write(&self, at: usize, value: u32) {
            self.word(at).unwrap().store(value, Ordering::Release);
        }

        /// Writes a packet, and its header `offset` bytes before it.
        fn describe(&mut self, header: usize, offset: u16, captured: usize, fill: u8) {
            // SAFETY: nobody else looks at it in these tests.
            unsafe { self.bytes(header + usize::from(offset), captured) }.unwrap().fill(fill);
            let layout = self.version.layout();
            self.write(header + layout.captured, captured as u32);
            let [low, high] = offset.to_ne_bytes();
            self.write(header + layout.offset, u32::from_ne_bytes([low, high, 0xee, 0xee]));
        }

        fn unit_status(&self, unit: usize) -> u32 {
            self.word(unit * UNIT + self.version.layout().unit_status)
                .unwrap()
                .load(Ordering::Acquire)
        }

        fn hand_over(&self, unit: usize, status: u32) {
            self.write(unit * UNIT + self.version.layout().unit_status, status);
        }
    }

    #[test]
    fn frames_come_in_order_round_and_round_and_go_back() {
        let (mut rx, mut kernel) = rx(TPacket::V2);
        for turn in 0..10 {
            assert!(rx.next().is_none());
            let unit = turn % UNITS;
            kernel.describe(unit * UNIT, 66, 94 + turn, turn as u8);
            kernel.hand_over(unit, libc::TP_STATUS_USER | libc::TP_STATUS_CSUM_VALID);
            let mut handed = rx.next().unwrap();
            assert_eq!(handed.packet().unwrap(), vec![turn as u8; 94 + turn]);
            assert!(handed.packet().is_none());
            assert_ne!(kernel.unit_status(unit), libc::TP_STATUS_KERNEL);
            drop(handed);
            assert_eq!(kernel.unit_status(unit), libc::TP_STATUS_KERNEL);
        }
        assert_eq!(rx.invalid(), 0);
    }

    #[test]
    fn a_block_holds_packets_one_after_the_other() {
        let (mut rx, mut kernel) = rx(TPacket::V3);
        for turn in 0..7 {
            let unit = turn % UNITS * UNIT;
            for packet in 0..3 {
                let header = unit + 48 + packet * 256;
                kernel.describe(header, 80, 100 + packet, packet as u8);
                kernel.write(header + NEXT, if packet < 2 { 256 } else { 0 });
            }
            kernel.write(unit + FIRST, 48);
            kernel.write(unit + PACKETS, 3);
            kernel.hand_over(turn % UNITS, libc::TP_STATUS_USER | libc::TP_STATUS_BLK_TMO);
            let mut handed = rx.next().unwrap();
            for packet in 0..3 {
                assert_eq!(handed.packet().unwrap(), vec![packet as u8; 100 + packet]);
            }
            assert!(handed.packet().is_none());
            drop(handed);
            assert_eq!(kernel.unit_status(turn % UNITS), libc::TP_STATUS_KERNEL);
            assert!(rx.next().is_none());
        }
        assert_eq!(rx.invalid(), 0);
    }

    #[test]
    fn what_makes_no_sense_is_counted_and_goes_back() {
        for version in [TPacket::V2, TPacket::V3] {
            let (mut rx, mut kernel) = rx(version);
            // A status without a meaning; a packet beyond the end; one that lies in its own header.
            for (unit, status, offset, captured) in [
                (0, libc::TP_STATUS_COPY, 80, 94),
                (1, libc::TP_STATUS_USER, 80, UNIT as u32),
                (2, libc::TP_STATUS_USER, 8, 94),
            ] {
                let header = unit * UNIT + 48 * usize::from(version == TPacket::V3);
                kernel.describe(header, offset, 94, 1);
                kernel.write(header + version.layout().captured, captured);
                if version == TPacket::V3 {
                    kernel.write(unit * UNIT + FIRST, 48);
                    kernel.write(unit * UNIT + PACKETS, 2);
                }
                kernel.hand_over(unit, status);
                assert!(rx.next().unwrap().packet().is_none());
                assert_eq!(
                    (rx.invalid(), kernel.unit_status(unit)),
                    (unit as u64 + 1, libc::TP_STATUS_KERNEL)
                );
            }
        }
    }

    #[test]
    fn a_packet_longer_than_the_longest_is_cut_off() {
        let (mut rx, mut kernel) = rx(TPacket::V2);
        kernel.describe(0, 66, 2000, 9);
        kernel.hand_over(0, libc::TP_STATUS_USER);
        assert_eq!(rx.next().unwrap().packet().unwrap().len(), 1514);
    }

    #[test]
    fn a_slot_is_ours_until_it_is_sent_and_when_the_kernel_is_through() {
        for version in [TPacket::V2, TPacket::V3] {
            let (ring, kernel) = ring(version);
            let (mut tx, layout) = (TxRing(ring), version.layout());
            for length in [60, 1514, tx.room()] {
                let mut slot = tx.slot().unwrap();
                slot.bytes()[..length].fill(7);
                slot.send(length);
                assert!(tx.is_waiting());
            }
            assert!(tx.slot().is_none());
            assert_eq!(kernel.read(layout.length), Some(60));
            kernel.write(layout.status, libc::TP_STATUS_SENDING);
            assert!(tx.slot().is_none());
            kernel.write(layout.status, libc::TP_STATUS_AVAILABLE);
            // One that is not used stays ours.
            assert!(tx.slot().is_some());
            tx.slot().unwrap().send(1);
            assert_eq!((kernel.read(layout.length), tx.invalid()), (Some(1), 0));
            kernel.write(UNIT + layout.status, libc::TP_STATUS_WRONG_FORMAT);
            assert!(tx.slot().is_some());
            assert_eq!(tx.invalid(), 1);
            kernel.write(layout.status, libc::TP_STATUS_SENDING);
            assert!(!tx.is_waiting());
        }
    }

    proptest! {
        #[test]
        fn whatever_the_kernel_writes_packets_lie_in_their_unit(
            words in proptest::collection::vec(prop_oneof![0u32..200, any::<u32>()], 64),
            is_v3 in any::<bool>(),
        ) {
            let (mut rx, mut kernel) = rx(if is_v3 { TPacket::V3 } else { TPacket::V2 });
            kernel.next = 1;
            for (index, word) in words.iter().enumerate() {
                kernel.write(UNIT + 4 * index, *word);
            }
            kernel.hand_over(1, libc::TP_STATUS_USER);
            rx.ring.next = 1;
            let range = rx.ring.memory.at::<u8>(UNIT, UNIT).unwrap().as_ptr() as usize;
            let range = range..=range + UNIT;
            let mut handed = rx.next().unwrap();
            // A loop that the kernel would have to close: packets may overlap, but not more than it
            // says there are.
            for _ in 0..100 {
                let Some(packet) = handed.packet() else { break };
                let packet = packet.as_ptr_range();
                prop_assert!(range.contains(&(packet.start as usize)));
                prop_assert!(range.contains(&(packet.end as usize)));
            }
        }
    }
}
