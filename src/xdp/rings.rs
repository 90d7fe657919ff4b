//! The four rings of one queue and the frames that circulate in them.
//!
//! ```text
//!              ┌──────────── fill ◄───────────┬──────────────────────────┐
//!              ▼                              │ Frame                    │ Frame, after its last
//!   NIC ──► (kernel) ──► rx ── Packet ──► the worker ── Packet × n ──► tx │ completion
//!                                                                      ▼  │
//!                                               (kernel) ──► completion ──┘
//! ```
//!
//! This file does all accounting of frames. The kernel has a frame for receiving (fill and rx) or
//! for sending (tx and completion), or the caller has its token. The three always add up to the
//! UMEM.

use std::io;
use std::time::Duration;

use libc::xdp_desc;

use super::ring::{Consumer, Level, Producer};
use super::umem::{Frame, Packet, Umem};

pub use crate::events::RingLevels;

/// Makes the kernel look at the rings: a socket by system calls, a test through its model of the
/// kernel.
pub trait Doorbell {
    /// Makes the kernel send what is in the tx ring. In copy mode it sends only here.
    ///
    /// # Errors
    /// When the interface is gone or the socket is broken. A busy kernel is not an error.
    fn wake_sender(&mut self) -> io::Result<()>;

    /// Makes the kernel look at the fill ring again after it was empty.
    ///
    /// # Errors
    /// As [`wake_sender`](Self::wake_sender).
    fn wake_receiver(&mut self) -> io::Result<()>;

    /// Sleeps until a packet arrives, for at most `limit`.
    ///
    /// # Errors
    /// As [`wake_sender`](Self::wake_sender).
    fn sleep(&mut self, limit: Duration) -> io::Result<()>;
}

/// Where the frames of a UMEM are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Census {
    /// All frames.
    pub total: u32,
    /// In the fill and rx rings, or being written by the kernel.
    pub receiving: u32,
    /// In the tx and completion rings, or being read by the kernel.
    pub sending: u32,
}

impl Census {
    /// Frames whose tokens somebody must hold, because no ring has them.
    pub fn in_hand(&self) -> u32 {
        self.total.saturating_sub(self.receiving + self.sending)
    }
}

/// Reads the fill levels of a queue's rings, from any thread. This costs the workers at most an
/// occasional cache miss.
#[derive(Debug)]
pub struct LevelSource {
    fill: Level,
    rx: Level,
    tx: Level,
    completion: Level,
}

impl LevelSource {
    /// The current levels.
    pub fn read(&self) -> RingLevels {
        RingLevels {
            fill: self.fill.read(),
            rx: self.rx.read(),
            tx: self.tx.read(),
            completion: self.completion.read(),
        }
    }

    /// Packets that the kernel ever put into the rx ring, modulo 2^32.
    pub fn arrived(&self) -> u32 {
        self.rx.put()
    }
}

/// One queue's rings, seen from user space.
#[derive(Debug)]
pub struct Rings {
    umem: Umem,
    fill: Producer<u64>,
    rx: Consumer<xdp_desc>,
    tx: Producer<xdp_desc>,
    completion: Consumer<u64>,
    /// Completions still expected for each frame.
    outstanding: Box<[u16]>,
    receiving: u32,
    sending: u32,
    /// Invalid descriptors from the kernel. The frame of each is not used again.
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

    /// A reader of the fill levels.
    pub fn levels(&self) -> LevelSource {
        LevelSource {
            fill: self.fill.level(),
            rx: self.rx.level(),
            tx: self.tx.level(),
            completion: self.completion.level(),
        }
    }

    /// The bytes of a packet; empty for a packet of another UMEM.
    #[inline]
    pub fn bytes_mut(&mut self, packet: &mut Packet) -> &mut [u8] {
        self.umem.bytes_mut(packet)
    }

    /// Gives the kernel a frame to receive into. Returns the frame if it is of another UMEM, or if
    /// the fill ring is full, which never happens if the ring is twice as large as the UMEM.
    #[inline]
    pub fn fill(&mut self, frame: Frame) -> Result<(), Frame> {
        let offset = self.umem.frame_offset(&frame);
        if offset.is_some_and(|offset| self.give(offset)) { Ok(()) } else { Err(frame) }
    }

    /// Gives the kernel the frame of a finished packet to receive into. Returns the packet in the
    /// same cases as [`fill`](Self::fill).
    #[inline]
    pub fn discard(&mut self, packet: Packet) -> Result<(), Packet> {
        let offset =
            self.umem.packet_offset(&packet).map(|(offset, _)| self.umem.frame_start(offset));
        if offset.is_some_and(|offset| self.give(offset)) { Ok(()) } else { Err(packet) }
    }

    /// Puts the frame at `offset` into the fill ring, and returns whether there was space.
    #[inline]
    fn give(&mut self, offset: u64) -> bool {
        // Not `receiving += u32::from(has_room)`: rustc 1.95 and 1.97 (LLVM 22) lose that addition
        // at opt-level 2 and 3. bench/worker.rs guards this.
        match self.fill.push(offset) {
            Ok(()) => {
                self.receiving += 1;
                true
            }
            Err(_) => false,
        }
    }

    /// The next received packet, if any.
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

    /// Sends `packet` `copies` times (at least once). Returns it if the tx ring has no space for
    /// all copies, or if it is of another UMEM. [`complete`](Self::complete) returns its frame
    /// after the last copy.
    #[inline]
    pub fn transmit(&mut self, packet: Packet, copies: u16) -> Result<(), Packet> {
        let copies = copies.max(1);
        if self.tx.room(copies.into()) < copies.into() {
            return Err(packet);
        }
        let Some((addr, len)) = self.umem.packet_offset(&packet) else { return Err(packet) };
        let Some(outstanding) =
            self.umem.frame_of(addr).and_then(|frame| self.outstanding.get_mut(frame))
        else {
            return Err(packet);
        };
        *outstanding = copies;
        self.sending += 1;
        for _ in 0..copies {
            // There is space for all, so none is refused.
            let _ = self.tx.push(xdp_desc { addr, len, options: 0 });
        }
        Ok(())
    }

    /// The next frame with all its completions, if any.
    #[inline]
    pub fn complete(&mut self) -> Option<Frame> {
        loop {
            let offset = self.completion.pop()?;
            let frame =
                self.umem.frame_of(offset).and_then(|frame| self.outstanding.get_mut(frame));
            let Some(outstanding) = frame.filter(|outstanding| **outstanding > 0) else {
                self.invalid += 1;
                continue;
            };
            *outstanding -= 1;
            if *outstanding == 0 {
                self.sending -= 1;
                return Some(self.umem.frame(offset));
            }
        }
    }

    /// Lets the kernel see everything put in and taken out since the last call.
    #[inline]
    pub fn publish(&mut self) {
        self.completion.release();
        self.rx.release();
        self.fill.publish();
        self.tx.publish();
    }

    /// Whether the kernel has descriptors to send and waits for a wake-up.
    #[inline]
    pub fn sender_sleeps(&mut self) -> bool {
        self.tx.needs_wakeup() && self.tx.pending() > 0
    }

    /// Whether the kernel ran out of frames to receive into and waits for a wake-up.
    #[inline]
    pub fn receiver_sleeps(&self) -> bool {
        self.fill.needs_wakeup()
    }

    /// Descriptors given to the kernel to send and not yet completed. Examines every frame, so it
    /// is meant for the end of a run.
    pub fn unsent(&self) -> u64 {
        self.outstanding.iter().map(|count| u64::from(*count)).sum()
    }

    /// Where the frames are.
    pub fn census(&self) -> Census {
        Census { total: self.umem.frames(), receiving: self.receiving, sending: self.sending }
    }

    /// Invalid descriptors from the kernel. Anything but 0 is a bug, here or there.
    pub fn invalid(&self) -> u64 {
        self.invalid
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{self, Model};
    use super::*;
    use proptest::prelude::*;

    /// Rings whose frames are all in `frames`, and their census at that point.
    fn rings(frame_size: u32) -> (Rings, Vec<Frame>, Model, Census) {
        let (rings, frames, model) = model::rings(4, frame_size, 16, 0).unwrap();
        let census = rings.census();
        (rings, frames, model, census)
    }

    #[test]
    fn a_token_of_another_umem_is_refused_everywhere_and_given_back() {
        // Also a UMEM with larger or smaller frames, whose bounds differ.
        for size in [1024, 2048, 4096] {
            let (mut own, _frames, mut model, census) = rings(2048);
            let (mut other, mut foreign, mut other_model, _) = rings(size);
            let count = other.umem().frames();
            for _ in 0..count {
                let frame = foreign.remove(0);
                let frame = own.fill(frame).expect_err("fill");
                let frame = own.umem().blank(frame).expect_err("blank");
                let mut packet = other.umem().blank(frame).unwrap();
                assert!(!own.umem().owns(&packet) && other.umem().owns(&packet));
                other.bytes_mut(&mut packet).fill(7);
                assert!(own.bytes_mut(&mut packet).is_empty());
                assert!(!own.umem().resize(&mut packet, 1));
                let packet = own.transmit(packet, 1).expect_err("transmit");
                let packet = own.discard(packet).expect_err("discard");
                let mut packet = own.umem().recycle(packet).expect_err("recycle");
                assert_eq!(other.bytes_mut(&mut packet), vec![7; size as usize], "it is as it was");
                other.discard(packet).unwrap();
            }
            own.publish();
            assert_eq!(own.census(), census);
            assert_eq!(own.levels().read(), RingLevels::default());
            assert!(!model.deliver(&[1; 60]), "there is a frame to receive into");
            model.wake_sender().unwrap();
            assert!(model.take_sent().is_none());
            // The rings that own the tokens have lost none.
            other.publish();
            assert_eq!(other.census().receiving, count);
            assert!(other_model.deliver(&[1; 60]));
        }
    }

    #[test]
    fn a_token_that_outlives_its_umem_is_of_no_later_one() {
        let (old, mut frames, _, _) = rings(2048);
        let packet = old.umem().blank(frames.pop().unwrap()).unwrap();
        let mut frame = frames.pop().unwrap();
        drop(old);
        // One of these gets memory at the old one's address.
        for _ in 0..10 {
            let (mut new, _frames, _, _) = rings(2048);
            assert!(!new.umem().owns(&packet));
            frame = new.fill(frame).expect_err("fill");
        }
    }

    #[derive(Debug)]
    enum Token {
        Frame(Frame),
        Packet(Packet),
    }

    /// An action with one of the tokens in hand, at its own rings or at the others.
    #[derive(Debug, Clone)]
    enum Step {
        Fill,
        Blank,
        Recycle,
        Discard,
        Transmit(u16),
        Resize(u32),
        Write,
        /// The kernel's turn, then ours.
        Exchange,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Fill),
            Just(Step::Blank),
            Just(Step::Recycle),
            Just(Step::Discard),
            (1u16..9).prop_map(Step::Transmit),
            (0u32..5000).prop_map(Step::Resize),
            Just(Step::Write),
            Just(Step::Exchange),
        ]
    }

    /// A set of rings, its kernel, and how many of its tokens are in hand.
    struct Side {
        rings: Rings,
        model: Model,
        in_hand: u32,
        mark: u8,
    }

    impl Side {
        /// Packets arrive and leave; returns the tokens that we then hold.
        fn exchange(&mut self) -> Vec<Token> {
            self.rings.publish();
            while self.model.deliver(&[self.mark; 60]) {}
            self.model.wake_sender().unwrap();
            while let Some(sent) = self.model.take_sent() {
                assert!(sent.iter().all(|byte| *byte == self.mark), "bytes of another UMEM");
            }
            let mut tokens = Vec::new();
            while let Some(packet) = self.rings.receive() {
                tokens.push(Token::Packet(packet));
            }
            while let Some(frame) = self.rings.complete() {
                tokens.push(Token::Frame(frame));
            }
            self.rings.publish();
            self.in_hand += tokens.len() as u32;
            tokens
        }

        /// Does `step` with `token`; returns the token still in hand, and whether the step
        /// succeeded.
        fn apply(&mut self, step: &Step, token: Token) -> (Option<Token>, bool) {
            let (left, done) = match (step, token) {
                (Step::Fill, Token::Frame(frame)) => match self.rings.fill(frame) {
                    Ok(()) => (None, true),
                    Err(frame) => (Some(Token::Frame(frame)), false),
                },
                (Step::Blank, Token::Frame(frame)) => match self.rings.umem().blank(frame) {
                    Ok(packet) => (Some(Token::Packet(packet)), true),
                    Err(frame) => (Some(Token::Frame(frame)), false),
                },
                (Step::Recycle, Token::Packet(packet)) => match self.rings.umem().recycle(packet) {
                    Ok(frame) => (Some(Token::Frame(frame)), true),
                    Err(packet) => (Some(Token::Packet(packet)), false),
                },
                (Step::Discard, Token::Packet(packet)) => match self.rings.discard(packet) {
                    Ok(()) => (None, true),
                    Err(packet) => (Some(Token::Packet(packet)), false),
                },
                (Step::Transmit(copies), Token::Packet(mut packet)) => {
                    self.rings.bytes_mut(&mut packet).fill(self.mark);
                    match self.rings.transmit(packet, *copies) {
                        Ok(()) => (None, true),
                        Err(packet) => (Some(Token::Packet(packet)), false),
                    }
                }
                (Step::Resize(length), Token::Packet(mut packet)) => {
                    let done = self.rings.umem().resize(&mut packet, *length);
                    (Some(Token::Packet(packet)), done)
                }
                (Step::Write, Token::Packet(mut packet)) => {
                    let bytes = self.rings.bytes_mut(&mut packet);
                    bytes.fill(self.mark);
                    let done = !bytes.is_empty();
                    (Some(Token::Packet(packet)), done)
                }
                (_, token) => (Some(token), false),
            };
            self.in_hand -= u32::from(left.is_none());
            (left, done)
        }
    }

    proptest! {
        /// Tries tokens of two UMEMs at the rings of both. No rings accept a foreign token, no ring
        /// sends bytes of the other UMEM, and each frame is in one place.
        #[test]
        fn tokens_of_two_umems_in_one_hand_are_told_apart(
            steps in proptest::collection::vec(
                (step(), any::<prop::sample::Index>(), any::<bool>()), 0..300,
            ),
            sizes in prop::sample::select(vec![(2048u32, 2048u32), (2048, 4096), (4096, 2048)]),
        ) {
            let mut hand = Vec::new();
            let mut sides = [(sizes.0, 1), (sizes.1, 2)].map(|(size, mark)| {
                let (rings, frames, model) = model::rings(8, size, 16, u32::MAX - 9).unwrap();
                hand.extend(frames.into_iter().map(|frame| (Token::Frame(frame), mark)));
                Side { rings, model, in_hand: 8, mark }
            });
            for (step, index, second) in steps {
                let side = &mut sides[usize::from(second)];
                if matches!(step, Step::Exchange) {
                    hand.extend(side.exchange().into_iter().map(|token| (token, side.mark)));
                } else if !hand.is_empty() {
                    let (token, mark) = hand.swap_remove(index.index(hand.len()));
                    let (left, done) = side.apply(&step, token);
                    prop_assert!(mark == side.mark || !done, "{step:?} with a token of another \
                        UMEM");
                    hand.extend(left.map(|token| (token, mark)));
                }
                for side in &sides {
                    prop_assert_eq!(side.rings.census().in_hand(), side.in_hand);
                    prop_assert_eq!(side.rings.invalid(), 0);
                }
                prop_assert_eq!(hand.len() as u32, sides[0].in_hand + sides[1].in_hand);
            }
        }
    }
}
