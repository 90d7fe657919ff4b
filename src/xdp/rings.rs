//! The four rings of one queue and the frames that go round in them.
//!
//! ```text
//!              ┌──────────── fill ◄───────────┬───────────────────────────┐
//!              ▼                              │ Frame                     │ Frame, after its last completion
//!   NIC ──► (kernel) ──► rx ── Packet ──► the worker ── Packet × n ──► tx ──► (kernel) ──► completion
//! ```
//!
//! All accounting of frames is here: a frame is in the kernel's hands for receiving (fill and rx), in the kernel's hands
//! for sending (tx and completion), or it is a token in the caller's hands. The three always add up to the UMEM.

use std::io;
use std::time::Duration;

use libc::xdp_desc;
use serde::{Deserialize, Serialize};

use super::ring::{Consumer, Level, Producer};
use super::umem::{Frame, Packet, Umem};

/// Ways to get the kernel to look at the rings. A socket's are system calls; a test's are its own model of the kernel.
pub trait Doorbell {
    /// Makes the kernel send what is in the tx ring; in copy mode it sends only here.
    ///
    /// # Errors
    /// When the interface is gone or the socket broken. That the kernel is busy is none.
    fn wake_sender(&mut self) -> io::Result<()>;

    /// Makes the kernel look at the fill ring again after it ran dry.
    ///
    /// # Errors
    /// As [`wake_sender`](Self::wake_sender).
    fn wake_receiver(&mut self) -> io::Result<()>;

    /// Sleeps until a packet has arrived or `limit` is over.
    ///
    /// # Errors
    /// As [`wake_sender`](Self::wake_sender).
    fn sleep(&mut self, limit: Duration) -> io::Result<()>;
}

/// Where the frames of a UMEM are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// All there are.
    pub total: u32,
    /// In the fill and rx rings, or being written by the kernel.
    pub receiving: u32,
    /// In the tx and completion rings, or being read by the kernel.
    pub sending: u32,
}

impl Census {
    /// Tokens that somebody must hold: what is in no ring.
    pub fn in_hand(&self) -> u32 {
        self.total.saturating_sub(self.receiving + self.sending)
    }
}

/// How full the rings of a queue are, in descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingLevels {
    /// Frames that the kernel may receive into.
    pub fill: u32,
    /// Packets that nobody has looked at yet.
    pub rx: u32,
    /// Packets that the kernel has not taken yet.
    pub tx: u32,
    /// Frames that were sent and not taken back yet.
    pub completion: u32,
}

/// Sees how full the rings of a queue are, from any thread: it reads their counters, which costs their ends nothing but a cache
/// line now and then.
#[derive(Debug)]
pub struct LevelSource {
    fill: Level,
    rx: Level,
    tx: Level,
    completion: Level,
}

impl LevelSource {
    /// How full they are now.
    pub fn read(&self) -> RingLevels {
        RingLevels {
            fill: self.fill.read(),
            rx: self.rx.read(),
            tx: self.tx.read(),
            completion: self.completion.read(),
        }
    }

    /// Packets that the kernel ever put into the rx ring of a socket, modulo 2^32.
    pub fn arrived(&self) -> u32 {
        self.rx.put()
    }
}

/// One queue's rings, seen from user space.
#[derive(Debug)]
pub struct Rings {
    pub(super) umem: Umem,
    pub(super) fill: Producer<u64>,
    pub(super) rx: Consumer<xdp_desc>,
    pub(super) tx: Producer<xdp_desc>,
    pub(super) completion: Consumer<u64>,
    /// Completions that are still to come, for each frame.
    outstanding: Box<[u16]>,
    receiving: u32,
    sending: u32,
    /// Descriptors from the kernel that made no sense, each a frame that is not used again.
    invalid: u64,
}

impl Rings {
    pub(super) fn new(
        umem: Umem,
        fill: Producer<u64>,
        rx: Consumer<xdp_desc>,
        tx: Producer<xdp_desc>,
        completion: Consumer<u64>,
    ) -> Self {
        let outstanding = vec![0; umem.frames() as usize].into();
        Self { umem, fill, rx, tx, completion, outstanding, receiving: 0, sending: 0, invalid: 0 }
    }

    /// The memory of the packets.
    pub fn umem(&self) -> &Umem {
        &self.umem
    }

    /// A way to see how full they are.
    pub fn levels(&self) -> LevelSource {
        LevelSource {
            fill: self.fill.level(),
            rx: self.rx.level(),
            tx: self.tx.level(),
            completion: self.completion.level(),
        }
    }

    /// The bytes of a packet of these rings.
    #[inline]
    pub fn bytes_mut(&mut self, packet: &mut Packet) -> &mut [u8] {
        self.umem.bytes_mut(packet)
    }

    /// Gives the kernel a frame to receive into, or back to the caller when the fill ring is full (which a ring twice as
    /// large as the UMEM never is).
    #[inline]
    pub fn fill(&mut self, frame: Frame) -> Result<(), Frame> {
        match self.fill.push(frame.address) {
            Ok(()) => {
                self.receiving += 1;
                Ok(())
            }
            Err(address) => Err(Frame { address }),
        }
    }

    /// Gives the frame of a packet that is done with to the kernel to receive into.
    #[inline]
    pub fn discard(&mut self, packet: Packet) -> Result<(), Frame> {
        let frame = self.umem.recycle(packet);
        self.fill(frame)
    }

    /// The next packet that arrived, if any.
    #[inline]
    pub fn receive(&mut self) -> Option<Packet> {
        loop {
            let descriptor = self.rx.pop()?;
            self.receiving = self.receiving.wrapping_sub(1);
            match self.umem.packet(descriptor.addr, descriptor.len) {
                Some(packet) => return Some(packet),
                None => self.invalid += 1,
            }
        }
    }

    /// Sends `packet` `copies` times (at least once), or gives it back when the tx ring has no room for all of them.
    /// Its frame comes back from [`complete`](Self::complete) after the last.
    #[inline]
    pub fn transmit(&mut self, packet: Packet, copies: u16) -> Result<(), Packet> {
        let copies = copies.max(1);
        if self.tx.room(copies.into()) < copies.into() {
            return Err(packet);
        }
        let Some(outstanding) =
            self.umem.frame_of(packet.address).and_then(|frame| self.outstanding.get_mut(frame))
        else {
            return Err(packet); // a token of another UMEM
        };
        *outstanding = copies;
        self.sending += 1;
        for _ in 0..copies {
            // There is room for all, so none is refused.
            let _ = self.tx.push(xdp_desc { addr: packet.address, len: packet.length, options: 0 });
        }
        Ok(())
    }

    /// The next frame whose last completion has come, if any.
    #[inline]
    pub fn complete(&mut self) -> Option<Frame> {
        loop {
            let address = self.completion.pop()?;
            let frame = self.umem.frame_of(address).and_then(|frame| self.outstanding.get_mut(frame));
            let Some(outstanding) = frame.filter(|outstanding| **outstanding > 0) else {
                self.invalid += 1;
                continue;
            };
            *outstanding -= 1;
            if *outstanding == 0 {
                self.sending -= 1;
                return Some(self.umem.recycle(Packet { address, length: 0 }));
            }
        }
    }

    /// Lets the kernel see all that was put in and taken out since the last call.
    #[inline]
    pub fn publish(&mut self) {
        self.completion.release();
        self.rx.release();
        self.fill.publish();
        self.tx.publish();
    }

    /// Whether the kernel has descriptors to send and waits to be woken for it.
    #[inline]
    pub fn sender_sleeps(&mut self) -> bool {
        self.tx.needs_wakeup() && self.tx.pending() > 0
    }

    /// Whether the kernel ran out of frames to receive into and waits to be woken.
    #[inline]
    pub fn receiver_sleeps(&self) -> bool {
        self.fill.needs_wakeup()
    }

    /// Descriptors that were given to the kernel to send and are not completed yet. Looks at every
    /// frame: for the end of a run.
    pub fn unsent(&self) -> u64 {
        self.outstanding.iter().map(|count| u64::from(*count)).sum()
    }

    /// Where the frames are.
    pub fn census(&self) -> Census {
        Census { total: self.umem.frames(), receiving: self.receiving, sending: self.sending }
    }

    /// Descriptors from the kernel that made no sense. Anything but 0 is a bug, here or there.
    pub fn invalid(&self) -> u64 {
        self.invalid
    }
}
