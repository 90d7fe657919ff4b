//! The memory of packets, and the tokens that own its frames.
//!
//! ```text
//!   Frame ──fill──► (kernel) ──receive──► Packet ──transmit──► (kernel, n times)
//!     ▲                                                                 │
//!     └────────────────────────n-th completion──────────────────────────┘
//! ```
//!
//! A token is neither `Copy` nor `Clone`: once handed over it cannot be used again, and until then
//! it has an owner. After the first tokens, only [`Rings`](super::Rings) makes new ones, and it
//! counts them.
//!
//! A token also identifies its UMEM. Each UMEM has a range of addresses that no other ever had, and
//! a token holds an address in that range:
//!
//! ```text
//!   addresses   0 ──────[ base │ UMEM 1 │ ]──[ base │ UMEM 2 │ ]── ... 2^64
//!   the kernel, and the mapping, count from `base`
//! ```
//!
//! So the check that an address is within the memory also rejects the tokens of another UMEM, even
//! of one that is gone. Every function here that takes a token makes this check.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::net::memory::{HugepageRequest, Memory};
use crate::net::option;

/// A frame that user space owns, without useful contents.
///
/// Other modules can neither forge one nor use the same frame twice:
///
/// ```compile_fail,E0451
/// let forged = sixhop::xdp::Frame { address: 0 };
/// ```
///
/// ```compile_fail,E0382
/// fn twice(rings: &mut sixhop::xdp::Rings, frame: sixhop::xdp::Frame) {
///     let _ = rings.fill(frame);
///     let _ = rings.fill(frame);
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a frame that is dropped is lost to the rings"]
pub struct Frame {
    /// The address of its first byte, in the range of its UMEM.
    address: u64,
}

/// A frame that user space owns, with a packet inside it.
///
/// ```compile_fail,E0308
/// fn copied(packet: &sixhop::xdp::Packet) -> sixhop::xdp::Packet {
///     packet.clone()
/// }
/// ```
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a packet that is dropped is a frame lost to the rings"]
pub struct Packet {
    /// The address of the packet's first byte, in the range of its UMEM.
    address: u64,
    /// In bytes, from the Ethernet header on.
    length: u32,
}

impl Packet {
    /// The packet's length in bytes, from its Ethernet header on.
    #[allow(clippy::len_without_is_empty)] // the kernel delivers no empty packet
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Shortens the packet to `length` bytes; never makes it longer.
    #[inline]
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

/// Frames of one size in one piece of memory.
#[derive(Debug)]
pub struct Umem {
    pub(super) memory: Arc<Memory>,
    /// The first address of its range, a multiple of the frame size.
    base: u64,
    /// A power of two.
    frame_size: u32,
    frames: u32,
    /// Total size of all frames, in bytes.
    length: u64,
}

/// The first unclaimed address. Not 0, so that an offset taken for an address is rejected.
static UNCLAIMED: AtomicU64 = AtomicU64::new(1 << 32);

/// Claims `length` addresses from `unclaimed`, starting at a multiple of `alignment`. The claim is
/// permanent, because a token may outlive its UMEM. `None` if too few are left, after 2^40 UMEMs of
/// 16 MiB.
fn claim(unclaimed: &AtomicU64, length: u64, alignment: u64) -> Option<u64> {
    let first = |next: u64| next.checked_next_multiple_of(alignment);
    let taken = unclaimed.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
        first(next).and_then(|first| first.checked_add(length))
    });
    first(taken.ok()?)
}

impl Umem {
    /// Allocates `frames` frames of `frame_size` bytes (2048 or 4096, which the kernel accepts as
    /// aligned chunks), and makes their tokens. This touches the memory, so it comes from the NUMA
    /// node of the calling thread's processor.
    ///
    /// # Errors
    /// When there is too little memory or there are too few huge pages, or the frame size is not a
    /// power of two.
    pub fn new(
        frames: u32,
        frame_size: u32,
        pages: HugepageRequest,
    ) -> io::Result<(Self, Vec<Frame>)> {
        let length = u64::from(frames) * u64::from(frame_size);
        if !frame_size.is_power_of_two() {
            let why = format!(
                "frames of {frame_size} bytes: the size must be a power of two, 2048 or 4096"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let bytes = usize::try_from(length).map_err(io::Error::other)?;
        let memory = Memory::anonymous_on(pages, bytes)?;
        // Claim the whole mapping, which may exceed the frames: `bytes_mut` checks against the
        // mapping.
        let base =
            claim(&UNCLAIMED, memory.length() as u64, frame_size.into()).ok_or_else(|| {
                io::Error::other("this process has created too many UMEMs: restart it")
            })?;
        let tokens = (0..frames)
            .map(|frame| Frame { address: base + u64::from(frame) * u64::from(frame_size) });
        Ok((Self { memory: Arc::new(memory), base, frame_size, frames, length }, tokens.collect()))
    }

    /// Registers the memory with the kernel for the socket `fd`. The kernel then uses only frames
    /// that the socket's rings give it.
    pub(super) fn register(&self, fd: &OwnedFd) -> io::Result<()> {
        let registration = libc::xdp_umem_reg {
            addr: self.memory.start().as_ptr() as u64,
            len: self.length,
            chunk_size: self.frame_size,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        // SAFETY: this many bytes are mapped there. The kernel touches a frame only while a ring
        // gives it to the kernel, and then nobody has its token. The kernel pinned the pages, so it
        // never touches what is mapped at the same address after this UMEM is gone.
        unsafe { option::set_any(fd, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration) }
    }

    /// Number of frames.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Size of a frame in bytes, a power of two.
    pub fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// Total size of all frames, in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether the frames are on huge pages.
    pub fn hugepages(&self) -> bool {
        self.memory.hugepages()
    }

    /// Whether `packet` belongs to this UMEM.
    #[inline]
    pub fn owns(&self, packet: &Packet) -> bool {
        self.offset(packet.address).is_some()
    }

    /// The offset of `address` in the frames; `None` if it belongs to another UMEM.
    #[inline]
    fn offset(&self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.base);
        (offset < self.length).then_some(offset)
    }

    /// The offset of `frame` for the kernel; `None` if it belongs to another UMEM.
    #[inline]
    pub fn frame_offset(&self, frame: &Frame) -> Option<u64> {
        self.offset(frame.address)
    }

    /// The offset of `packet` for the kernel, and its length; `None` if it belongs to another UMEM.
    #[inline]
    pub(super) fn packet_offset(&self, packet: &Packet) -> Option<(u64, u32)> {
        Some((self.offset(packet.address)?, packet.length))
    }

    /// The start of the frame that contains `offset`.
    #[inline]
    pub(super) fn frame_start(&self, offset: u64) -> u64 {
        offset & !u64::from(self.frame_size - 1)
    }

    /// The number of the frame that contains `offset`, or `None` if no frame does.
    #[inline]
    pub(super) fn frame_of(&self, offset: u64) -> Option<usize> {
        (offset < self.length).then_some((offset >> self.frame_size.trailing_zeros()) as usize)
    }

    /// Makes the token of a frame that the kernel returned, from an `offset` within it.
    #[inline]
    pub(super) fn frame(&self, offset: u64) -> Frame {
        Frame { address: self.base + self.frame_start(offset) }
    }

    /// Makes the token of a packet that the kernel reports at `offset`; `None` if it is not within
    /// one frame.
    #[inline]
    pub(super) fn packet(&self, offset: u64, length: u32) -> Option<Packet> {
        let place = offset & u64::from(self.frame_size - 1);
        let within = place + u64::from(length) <= u64::from(self.frame_size);
        (within && offset < self.length).then(|| Packet { address: self.base + offset, length })
    }

    /// Turns an owned frame into an owned packet that spans it, to be written and then truncated.
    /// Gives back a frame of another UMEM.
    #[inline]
    pub fn blank(&self, frame: Frame) -> Result<Packet, Frame> {
        match self.offset(frame.address) {
            Some(_) => Ok(Packet { address: frame.address, length: self.frame_size }),
            None => Err(frame),
        }
    }

    /// Sets the packet's length, if it fits its frame, and returns whether it does. Bytes past the
    /// old end hold stale data. A packet of another UMEM stays as it is.
    pub fn resize(&self, packet: &mut Packet, length: u32) -> bool {
        let resized = self.offset(packet.address).and_then(|offset| self.packet(offset, length));
        if let Some(resized) = &resized {
            packet.length = resized.length;
        }
        resized.is_some()
    }

    /// Turns a packet back into its frame. Gives back a packet of another UMEM.
    #[inline]
    pub fn recycle(&self, packet: Packet) -> Result<Frame, Packet> {
        self.offset(packet.address).map(|offset| self.frame(offset)).ok_or(packet)
    }

    /// The packet's bytes; empty for a packet of another UMEM.
    #[inline]
    pub fn bytes_mut(&mut self, packet: &mut Packet) -> &mut [u8] {
        let length = packet.length as usize;
        // The address of a foreign packet is outside the memory, because a UMEM claims as many
        // addresses as it maps.
        let offset = usize::try_from(packet.address.wrapping_sub(self.base)).ok();
        let start = offset.and_then(|offset| self.memory.at::<u8>(offset, length));
        let (start, length) = start.map_or((NonNull::dangling(), 0), |start| (start, length));
        // SAFETY: `length` bytes from `start` are mapped, as `at` checked, or `length` is 0. The
        // token belongs to this memory, so the kernel does not touch this frame. Only one UMEM
        // covers the memory, and `&mut self` exposes one packet at a time. Both borrows last as
        // long as the slice.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_addresses_never_overlap_and_end_when_there_are_no_more() {
        let unclaimed = AtomicU64::new(1);
        assert_eq!(claim(&unclaimed, 8192, 2048), Some(2048));
        assert_eq!(claim(&unclaimed, 10, 2048), Some(10240));
        assert_eq!(claim(&unclaimed, 4096, 4096), Some(12288));
        assert_eq!(claim(&unclaimed, 1, 1), Some(16384));
        let last = AtomicU64::new(u64::MAX - 4096);
        assert_eq!(claim(&last, 4096, 2048), None);
        assert_eq!(claim(&last, u64::MAX, 1), None);
        assert_eq!(claim(&last, 2047, 2048), Some(u64::MAX - 4095));
        assert_eq!(claim(&last, 1, 4096), None, "there is none at such a place");
    }

    #[test]
    fn frames_of_a_size_that_is_no_power_of_two_would_overlap_and_are_refused() {
        for size in [0, 3000, 2049, u32::MAX] {
            let error = Umem::new(4, size, HugepageRequest::No).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{size}: {error}");
        }
        assert!(Umem::new(0, 2048, HugepageRequest::No).is_err());
    }

    #[test]
    fn a_packet_of_the_kernel_lies_within_one_frame() {
        let (umem, _frames) = Umem::new(4, 2048, HugepageRequest::No).unwrap();
        let fits = |offset, length| umem.packet(offset, length).is_some();
        assert!(fits(0, 2048) && fits(256, 1792) && fits(8191, 1) && fits(8191, 0));
        assert!(!fits(1, 2048) && !fits(8192, 0) && !fits(u64::MAX, 1) && !fits(6144, u32::MAX));
    }
}
