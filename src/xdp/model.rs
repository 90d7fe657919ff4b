//! A model of the kernel in user space: rings over plain memory with both ends accessible, for
//! tests and benches.
//!
//! It follows the kernel's rules: it receives only into frames of the fill ring, sends in the order
//! of the tx ring, and completes each descriptor once. As in copy mode, it does not look at the tx
//! ring until woken.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use libc::xdp_desc;

use super::ring::{Consumer, Producer, pair};
use super::rings::{Doorbell, Rings};
use super::socket::fill_ring;
use super::umem::{Frame, Umem};
use crate::net::memory::{HugepageRequest, Memory};

/// Headroom that the kernel leaves before a packet (XDP_PACKET_HEADROOM in linux/bpf.h).
const HEADROOM: u64 = 256;

/// The kernel's ends of one queue's rings.
#[derive(Debug)]
pub struct Model {
    memory: Arc<Memory>,
    frame_size: u32,
    fill: Consumer<u64>,
    rx: Producer<xdp_desc>,
    tx: Consumer<xdp_desc>,
    completion: Producer<u64>,
    /// Sent and not yet completed, oldest first.
    sent: std::collections::VecDeque<(u64, Vec<u8>)>,
    /// How many descriptors one wake-up sends.
    pub budget: usize,
    /// Whether sent packets are kept for [`take_sent`](Self::take_sent), or completed at once and
    /// forgotten.
    pub keep: bool,
}

/// Rings of `size` entries each (a power of two) for `frames` frames, with all counters starting at
/// `start`; the frames' tokens; and the kernel's ends. `None` if there is too little memory.
pub fn rings(
    frames: u32,
    frame_size: u32,
    size: u32,
    start: u32,
) -> Option<(Rings, Vec<Frame>, Model)> {
    let (umem, tokens) = Umem::new(frames, frame_size, HugepageRequest::Auto).ok()?;
    let memory = umem.memory.clone();
    let (fill, kernel_fill) = pair(fill_ring(frames), start)?;
    let (kernel_rx, rx) = pair(size, start)?;
    let (tx, kernel_tx) = pair(size, start)?;
    let (kernel_completion, completion) = pair(size, start)?;
    let model = Model {
        memory,
        frame_size,
        fill: kernel_fill,
        rx: kernel_rx,
        tx: kernel_tx,
        completion: kernel_completion,
        sent: Default::default(),
        budget: usize::MAX,
        keep: true,
    };
    Some((Rings::new(umem, fill, rx, tx, completion), tokens, model))
}

impl Model {
    /// A packet arrives. Returns whether there was a frame and space in the rx ring; otherwise the
    /// packet is dropped, as in the kernel.
    pub fn deliver(&mut self, bytes: &[u8]) -> bool {
        if self.rx.room(1) == 0 || bytes.len() as u64 + HEADROOM > self.frame_size.into() {
            return false;
        }
        // Like the kernel, it releases fill ring entries only after using all it knew of. Until
        // then user space still sees used entries.
        let frame = self.fill.pop_known().or_else(|| {
            self.fill.release();
            self.fill.pop()
        });
        let Some(frame) = frame else { return false };
        let address = (frame & !u64::from(self.frame_size - 1)) + HEADROOM;
        let Some(place) = self.memory.at::<u8>(address as usize, bytes.len()) else {
            return false;
        };
        // SAFETY: within the memory, as `at` checked; the fill ring gave the frame to the kernel.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        // Has space.
        let _ = self.rx.push(xdp_desc { addr: address, len: bytes.len() as u32, options: 0 });
        self.rx.publish();
        true
    }

    /// Completes the oldest sent packet and returns its bytes as of when it was sent. `None` if
    /// there is none, or if the completion ring is full.
    pub fn take_sent(&mut self) -> Option<Vec<u8>> {
        if self.completion.room(1) == 0 {
            return None;
        }
        let (address, bytes) = self.sent.pop_front()?;
        self.complete(address);
        Some(bytes)
    }

    fn complete(&mut self, address: u64) {
        let _ = self.completion.push(address); // callers checked for space
        self.completion.publish();
    }

    fn bytes(&self, descriptor: &xdp_desc) -> Vec<u8> {
        let length = descriptor.len as usize;
        match self.memory.at::<u8>(descriptor.addr as usize, length) {
            // SAFETY: within the memory, as `at` checked; the tx ring gave the frame to the kernel.
            Some(place) => unsafe { std::slice::from_raw_parts(place.as_ptr(), length) }.to_vec(),
            None => Vec::new(),
        }
    }
}

impl Doorbell for Model {
    fn wake_sender(&mut self) -> io::Result<()> {
        for _ in 0..self.budget {
            if !self.keep && self.completion.room(1) == 0 {
                break;
            }
            let Some(descriptor) = self.tx.pop() else { break };
            if self.keep {
                self.sent.push_back((descriptor.addr, self.bytes(&descriptor)));
            } else {
                self.complete(descriptor.addr);
            }
        }
        self.tx.release();
        Ok(())
    }

    fn wake_receiver(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sleep(&mut self, _limit: Duration) -> io::Result<()> {
        Ok(())
    }
}
