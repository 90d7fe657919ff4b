//! The memory that packets lie in, and the tokens that say who owns which frame of it.
//!
//! ```text
//!   Frame ──fill──► (kernel) ──receive──► Packet ──transmit──► (kernel, n times) ──n-th completion──► Frame
//! ```
//!
//! A token is not `Copy` and not `Clone`: what was handed over cannot be used again, and what was not handed over still
//! has an owner. [`Rings`](super::Rings) is the only place that makes tokens after the first ones, and it counts them.

use std::io;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use super::memory::{HugepageRequest, Memory};

/// A frame that user space owns and that holds nothing of worth.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost to the rings"]
pub struct Frame {
    /// Of its first byte, as an offset into the UMEM: a multiple of the frame size.
    pub(super) address: u64,
}

/// A frame that user space owns, with a packet in it.
#[derive(Debug)]
#[must_use = "a packet that is dropped is a frame lost to the rings"]
pub struct Packet {
    /// Of the packet's first byte, as an offset into the UMEM.
    pub(super) address: u64,
    /// In bytes, from the Ethernet header on.
    pub(super) length: u32,
}

impl Packet {
    /// The packet's length in bytes, from its Ethernet header on.
    #[allow(clippy::len_without_is_empty)] // the kernel delivers none that is
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// Cuts the packet to `length` bytes; a longer one than it was is not to be had.
    #[inline]
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(u32::try_from(length).unwrap_or(u32::MAX));
    }
}

/// Frames of one size in one piece of memory.
#[derive(Debug)]
pub struct Umem {
    pub(super) memory: Arc<Memory>,
    frame_size: u32,
    frames: u32,
}

impl Umem {
    /// `frames` frames of `frame_size` bytes (2048 or 4096: what the kernel takes as aligned chunks), and the tokens of
    /// all of them. The memory is touched here, so it is of the NUMA node whose processor the calling thread is on.
    ///
    /// # Errors
    /// When there is not that much memory, or not that many huge pages.
    pub fn new(frames: u32, frame_size: u32, pages: HugepageRequest) -> io::Result<(Self, Vec<Frame>)> {
        let memory = Memory::anonymous_on(pages, frames as usize * frame_size as usize)?;
        let tokens = (0..frames).map(|frame| Frame { address: u64::from(frame) * u64::from(frame_size) });
        Ok((Self { memory: Arc::new(memory), frame_size, frames }, tokens.collect()))
    }

    /// How many frames there are.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// In bytes, a power of two.
    pub fn frame_size(&self) -> u32 {
        self.frame_size
    }

    /// Length in bytes of all frames together.
    pub(super) fn length(&self) -> u64 {
        u64::from(self.frames) * u64::from(self.frame_size)
    }

    /// Whether the frames lie on huge pages.
    pub fn hugepages(&self) -> bool {
        self.memory.hugepages()
    }

    /// The number of the frame that `address` lies in, or `None` when it lies in none.
    #[inline]
    pub(super) fn frame_of(&self, address: u64) -> Option<usize> {
        (address < self.length()).then_some((address >> self.frame_size.trailing_zeros()) as usize)
    }

    /// Makes the token of a packet that the kernel says is at `address`; `None` when that is not within one frame.
    #[inline]
    pub(super) fn packet(&self, address: u64, length: u32) -> Option<Packet> {
        let within =
            (address & u64::from(self.frame_size - 1)) + u64::from(length) <= u64::from(self.frame_size);
        (within && address < self.length()).then_some(Packet { address, length })
    }

    /// Turns an owned frame into an owned packet of the whole frame, to be written and then truncated.
    #[inline]
    pub fn blank(&self, frame: Frame) -> Packet {
        Packet { address: frame.address, length: self.frame_size }
    }

    /// Has the packet end `length` bytes after its beginning, as far as its frame reaches, and returns whether it does. What lies
    /// between its old end and a later one is left from others.
    pub fn resize(&self, packet: &mut Packet, length: u32) -> bool {
        match self.packet(packet.address, length) {
            Some(resized) => {
                packet.length = resized.length;
                true
            }
            None => false,
        }
    }

    /// Gives up a packet for its frame.
    #[inline]
    pub fn recycle(&self, packet: Packet) -> Frame {
        Frame { address: packet.address & !u64::from(self.frame_size - 1) }
    }

    /// The packet's bytes. Those of a token of some other UMEM that lie beyond this one are none.
    #[inline]
    pub fn bytes_mut(&mut self, packet: &mut Packet) -> &mut [u8] {
        let length = packet.length as usize;
        let start = self.memory.at::<u8>(packet.address as usize, length);
        let (start, length) = start.map_or((NonNull::dangling(), 0), |start| (start, length));
        // SAFETY: `length` bytes from `start` are mapped, as `at` checked, or there are none. The token says that
        // neither the kernel nor another holder touches this frame, and both borrows last as long as the slice.
        unsafe { slice::from_raw_parts_mut(start.as_ptr(), length) }
    }
}
