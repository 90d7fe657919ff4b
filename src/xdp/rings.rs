//! The four rings of one queue and the frames that go round in them.
//!
//! ```text
//!              ┌──────────── fill ◄───────────┬──────────────────────────┐
//!              ▼                              │ Frame                    │ Frame, after its last
//!   NIC ──► (kernel) ──► rx ── Packet ──► the worker ── Packet × n ──► tx │ completion
//!                                                                      ▼  │
//!                                               (kernel) ──► completion ──┘
//! ```
//!
//! All accounting of frames is here: a frame is in the kernel's hands for receiving (fill and rx),
//! in the kernel's hands for sending (tx and completion), or it is a token in the caller's hands.
//! The three always add up to the UMEM.

use std::io;
use std::time::Duration;

use libc::xdp_desc;

use super::ring::{Consumer, Level, Producer};
use super::umem::{Frame, Packet, Umem};

pub use crate::events::RingLevels;

/// Ways to get the kernel to look at the rings. A socket's are system calls; a test's are its own
/// model of the kernel.
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

/// Sees how full the rings of a queue are, from any thread: it reads their counters, which costs
/// their ends nothing but a cache line now and then.
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
    umem: Umem,
    fill: Producer<u64>,
    rx: Consumer<xdp_desc>,
    tx: Producer<xdp_desc>,
    completion: Consumer<u64>,
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

    /// The bytes of a packet of these rings; none of a packet of others.
    #[inline]
    pub fn bytes_mut(&mut self, packet: &mut Packet) -> &mut [u8] {
        self.umem.bytes_mut(packet)
    }

    /// Gives the kernel a frame to receive into, or back to the caller when the fill ring is full
    /// (which a ring twice as large as the UMEM never is), and when the frame is of another UMEM.
    #[inline]
    pub fn fill(&mut self, frame: Frame) -> Result<(), Frame> {
        let offset = self.umem.frame_offset(&frame);
        if offset.is_some_and(|offset| self.give(offset)) { Ok(()) } else { Err(frame) }
    }

    /// Gives the frame of a packet that is done with to the kernel to receive into, or the packet
    /// back, as [`fill`](Self::fill) does.
    #[inline]
    pub fn discard(&mut self, packet: Packet) -> Result<(), Packet> {
        let offset =
            self.umem.packet_offset(&packet).map(|(offset, _)| self.umem.frame_start(offset));
        if offset.is_some_and(|offset| self.give(offset)) { Ok(()) } else { Err(packet) }
    }

    /// Puts the frame at `offset` into the fill ring, and returns whether there was room.
    #[inline]
    fn give(&mut self, offset: u64) -> bool {
        // Not `receiving += u32::from(has_room)`: rustc 1.95 and 1.97 (LLVM 22) lose that addition
        // at opt-level 2 and 3. bench/worker.rs holds it.
        match self.fill.push(offset) {
            Ok(()) => {
                self.receiving += 1;
                true
            }
            Err(_) => false,
        }
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

    /// Sends `packet` `copies` times (at least once), or gives it back when the tx ring has no room
    /// for all of them, and when it is of another UMEM.
    /// Its frame comes back from [`complete`](Self::complete) after the last.
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
            // There is room for all, so none is refused.
            let _ = self.tx.push(xdp_desc { addr, len, options: 0 });
        }
        Ok(())
    }

    /// The next frame whose last completion has come, if any.
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

#[cfg(test)]
mod tests {
    use super::super::model::{self, Model};
    use super::*;
    use proptest::prelude::*;

    /// Rings whose frames are all in `frames`, and what they look like while none has moved.
    fn rings(frame_size: u32) -> (Rings, Vec<Frame>, Model, Census) {
        let (rings, frames, model) = model::rings(4, frame_size, 16, 0).unwrap();
        let census = rings.census();
        (rings, frames, model, census)
    }

    #[test]
    fn a_token_of_another_umem_is_refused_everywhere_and_given_back() {
        // Also one of larger or smaller frames, whose bounds are not these.
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
            // Whereas none was lost to those that they are of.
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
        // The memory of one of these lies where that of the old one was.
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

    /// What is done with one of the tokens in hand, at one of two rings: its own or not.
    #[derive(Debug, Clone)]
    enum Step {
        Fill,
        Blank,
        Recycle,
        Discard,
        Transmit(u16),
        Resize(u32),
        Write,
        /// The kernel's turn, and then ours.
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
        /// Packets arrive and leave; what is ours then.
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

        /// Does `step` with `token`; what is left of it in hand, and whether it was done.
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
        /// Whatever is done with the tokens of two UMEMs at the rings of both: nothing is ever done
        /// with one at rings that it is not of, no ring sends bytes of the other, and each frame is
        /// in one place.
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
