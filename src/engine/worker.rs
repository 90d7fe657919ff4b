//! One queue's work: received frames become replies. It takes rings and a doorbell, not a socket,
//! so that tests, benches and production run the same loop.
//!
//! ```text
//!   turn:  completion ─► fill      frames whose last reply has gone
//!          (held) ─────► tx        a reply that found no room last time, before anything new
//!          rx ─► handler ─► service ─► tx   one frame, as many descriptors as replies
//!              │      └──► fill    refused, and counted by reason
//!              └► advertiser ─► tx  a solicitation, where the kernel does not answer them: one
//!                                   descriptor
//!          publish, wake the kernel where it asks
//! ```

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::time::{Duration, Instant};

use super::advertiser::{Advertiser, LinkAddress};
use super::outbox;
use super::reply::{self, Reply};
use super::statistics::Tally;
use crate::policy::Handler;
use crate::service::{Echo, Outbox, Peer, Service, Unsent};
use crate::wire::{ADVERTISEMENT, MAX_PAYLOAD, OVERHEAD, Refusal};
use crate::xdp::{Doorbell, Frame, Packet, Rings};

/// Requests taken in one turn. Enough to spread the cost of a turn (four counters, two flags, one
/// system call), few enough that the first reply of a batch does not wait long for its last: 64
/// requests of ten replies are about 4 µs of work (bench/worker.rs).
pub(super) const BATCH: usize = 64;

/// What a packet that is to be sent answers.
#[derive(Debug, Clone, Copy)]
enum InFlight {
    /// A request, by so many replies.
    Request(NonZero<u8>),
    Solicitation,
}

/// What a descriptor is that is no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Other {
    Advertisement,
    Unasked,
}

/// The state of a worker between turns.
#[derive(Debug)]
pub struct Worker<S = Echo> {
    handler: Handler,
    service: S,
    /// Bytes of a frame that a reply may have, whatever its request had.
    room: u32,
    /// Answers solicitations; none where that is the kernel's business.
    advertiser: Option<Advertiser>,
    /// What the tx ring had no room for. While there is something, nothing is received: the rings
    /// are the queue.
    held: Option<(Packet, InFlight)>,
    /// Which of all descriptors sent, counted from 0, are no replies, and what they are: those that
    /// the rings may still hold.
    others: VecDeque<(u64, Other)>,
    /// Frames kept for what the service sends without being asked, those that are not on their
    /// way. They are never received into, so replies and these take nothing from each other.
    kept: Vec<Frame>,
    /// All of those frames, by their places in the UMEM.
    reserve: Vec<u64>,
    /// The interface's Ethernet address, which those frames come from.
    own: LinkAddress,
    /// How long the service can wait for its next turn.
    wait: Duration,
    tally: Tally,
}

/// No rings of a socket hold more descriptors on their way out.
const MOST_UNSENT: u64 = 1 << 16;

impl<S: Service> Worker<S> {
    /// A worker that answers what `service` does.
    pub fn new(handler: Handler, service: S) -> Self {
        Self {
            handler,
            service,
            room: (OVERHEAD + MAX_PAYLOAD) as u32,
            advertiser: None,
            held: None,
            others: VecDeque::new(),
            kept: Vec::new(),
            reserve: Vec::new(),
            own: LinkAddress::from([0; 6]),
            wait: Duration::ZERO,
            tally: Tally::default(),
        }
    }

    /// The same, with neighbour discovery answered as well.
    #[must_use]
    pub fn with_advertiser(self, advertiser: Advertiser) -> Self {
        Self { advertiser: Some(advertiser), ..self }
    }

    /// The same, on a link where answers may have `payload` bytes.
    #[must_use]
    pub fn with_room(self, payload: usize) -> Self {
        Self { room: (OVERHEAD + payload.min(MAX_PAYLOAD)) as u32, ..self }
    }

    /// The same, with frames of `rings`, in no ring, for what its service sends without being
    /// asked, from the Ethernet address `own`.
    #[must_use]
    pub fn with_kept(self, frames: Vec<Frame>, rings: &Rings, own: LinkAddress) -> Self {
        let reserve = frames.iter().filter_map(|frame| rings.umem().frame_offset(frame)).collect();
        Self { kept: frames, reserve, own, ..self }
    }

    /// How long it may sleep, if nothing comes: its service may want a turn.
    #[inline]
    pub fn wait(&self) -> Duration {
        if S::UNASKED { self.wait } else { Duration::MAX }
    }

    /// What it has done so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Does what there is to do and returns whether there was anything. It serves one queue: while
    /// it holds a packet of other rings than these, it receives nothing from these.
    ///
    /// # Errors
    /// When the kernel does not want to be woken: the interface is gone, or the socket.
    #[inline]
    pub fn turn(&mut self, rings: &mut Rings, doorbell: &mut impl Doorbell) -> io::Result<bool> {
        let mut busy = self.take_back(rings);
        for _ in 0..BATCH {
            if self.held.is_some() {
                break;
            }
            let Some(mut packet) = rings.receive() else { break };
            busy = true;
            self.tally.received += 1;
            match self.answer(rings, &mut packet) {
                Ok(Reply { copies, .. }) => {
                    self.tally.answered += 1;
                    self.send(rings, packet, InFlight::Request(copies));
                }
                Err(Refusal::NotUdp) => self.advertise(rings, packet),
                Err(refusal) => self.refuse(rings, packet, refusal),
            }
        }
        if S::UNASKED && self.held.is_none() {
            busy |= self.speak(rings);
        }
        rings.publish();
        if rings.sender_sleeps() {
            doorbell.wake_sender()?;
        }
        if rings.receiver_sleeps() {
            doorbell.wake_receiver()?;
        }
        Ok(busy)
    }

    /// Makes the reply of the request in `packet`.
    #[inline]
    fn answer(&mut self, rings: &mut Rings, packet: &mut Packet) -> Result<Reply, Refusal> {
        if S::UNCHANGED {
            let frame = rings.bytes_mut(packet);
            let length = frame.len();
            let reply = reply::to_frame(&self.handler, &mut self.service, frame, length)?;
            packet.truncate(reply.length);
            return Ok(reply);
        }
        let length = packet.len();
        // Where its frame has no such room, there is only as much as the request takes.
        let _ = rings.umem().resize(packet, self.room.max(length as u32));
        let buffer = rings.bytes_mut(packet);
        let reply = reply::to_frame(&self.handler, &mut self.service, buffer, length);
        // What is no request may be a solicitation, and is to be as it came.
        packet.truncate(reply.map_or(length, |reply| reply.length));
        reply
    }

    /// Takes back the frames that were sent, and sends what found no room. Returns whether there
    /// was anything.
    #[inline]
    fn take_back(&mut self, rings: &mut Rings) -> bool {
        let mut busy = false;
        while let Some(frame) = rings.complete() {
            self.take(rings, frame);
            busy = true;
        }
        if self.held.is_some() {
            busy |= self.send_held(rings);
        }
        busy
    }

    /// Gives a frame that was sent to where it belongs.
    #[inline]
    fn take(&mut self, rings: &mut Rings, frame: Frame) {
        if S::UNASKED {
            let place = rings.umem().frame_offset(&frame);
            if place.is_some_and(|place| self.reserve.contains(&place)) {
                return self.kept.push(frame);
            }
        }
        self.reuse(rings.fill(frame));
    }

    /// The service's turn to send without being asked. Returns whether it did.
    fn speak(&mut self, rings: &mut Rings) -> bool {
        let before = self.tally.unasked;
        let Self { handler, service, room, kept, own, others, tally, .. } = self;
        let room = *room;
        self.wait = service.turn(&mut Kept { handler, own, room, kept, others, tally, rings });
        self.tally.unasked > before
    }

    /// Sends what found no room, if there is room now, and returns whether there was.
    #[cold]
    fn send_held(&mut self, rings: &mut Rings) -> bool {
        self.held.take().is_some_and(|(packet, answer)| self.send(rings, packet, answer))
    }

    /// Receives no more, and gets out what is on its way. Returns whether all of it has left.
    ///
    /// # Errors
    /// As [`turn`](Self::turn).
    pub fn drain(&mut self, rings: &mut Rings, doorbell: &mut impl Doorbell) -> io::Result<bool> {
        self.take_back(rings);
        rings.publish();
        if rings.sender_sleeps() {
            doorbell.wake_sender()?;
        }
        self.take_back(rings);
        rings.publish();
        Ok(self.held.is_none() && rings.census().sending == 0)
    }

    /// What it has done, at the end: replies that the kernel still holds have not left.
    pub fn close(&self, rings: &Rings) -> Tally {
        let mut tally = self.tally.clone();
        tally.frames_lost += u64::from(self.missing(rings));
        tally.invalid = rings.invalid();
        let unsent = rings.unsent();
        // The tx ring is in order: what has not left is what was put in last.
        let first = tally.sent().saturating_sub(unsent);
        let others = |kind| {
            let held =
                self.others.iter().filter(|(place, other)| *place >= first && *other == kind);
            held.count() as u64
        };
        let (advertised, unasked) = (others(Other::Advertisement), others(Other::Unasked));
        let unsent = unsent.saturating_sub(advertised + unasked).min(tally.replies);
        tally.replies -= unsent;
        tally.unasked -= unasked.min(tally.unasked);
        tally.unsent += unsent + unasked;
        if let Some((_, InFlight::Request(copies))) = self.held {
            tally.unsent += u64::from(copies.get());
        }
        tally
    }

    /// Answers what is no request: a solicitation, or nothing that is answered.
    #[cold]
    fn advertise(&mut self, rings: &mut Rings, mut packet: Packet) {
        let Some(advertiser) = &mut self.advertiser else {
            return self.refuse(rings, packet, Refusal::NotUdp);
        };
        let solicitation =
            match advertiser.decide(rings.bytes_mut(&mut packet), &self.handler, Instant::now()) {
                Ok(solicitation) => solicitation,
                Err(refusal) => return self.refuse(rings, packet, refusal),
            };
        // The question may be shorter than its answer, but the frame is not.
        let _ = rings.umem().resize(&mut packet, ADVERTISEMENT as u32);
        match advertiser.answer(&solicitation, rings.bytes_mut(&mut packet)) {
            Some(length) => {
                packet.truncate(length);
                self.send(rings, packet, InFlight::Solicitation);
            }
            None => self.refuse(rings, packet, Refusal::BadLength),
        }
    }

    #[inline]
    fn refuse(&mut self, rings: &mut Rings, packet: Packet, refusal: Refusal) {
        self.tally.refused[refusal as usize] += 1;
        self.reuse(rings.discard(packet));
    }

    /// Sends `packet`, as often as it is to be, or holds it when there is no room, and returns
    /// whether it was sent. Inlined, since it is then known what kind of answer it is.
    #[inline(always)]
    fn send(&mut self, rings: &mut Rings, packet: Packet, answer: InFlight) -> bool {
        let copies = match answer {
            InFlight::Request(copies) => u16::from(copies.get()),
            InFlight::Solicitation => 1,
        };
        match (rings.transmit(packet, copies), answer) {
            (Ok(()), InFlight::Request(_)) => self.tally.replies += u64::from(copies),
            (Ok(()), InFlight::Solicitation) => self.advertised(),
            (Err(packet), _) => {
                self.held = Some((packet, answer));
                return false;
            }
        }
        true
    }

    #[cold]
    fn advertised(&mut self) {
        note(&mut self.others, self.tally.sent(), Other::Advertisement);
        self.tally.advertised += 1;
    }

    /// A fill ring twice as large as the UMEM takes every frame; if one is ever refused, that is
    /// seen in the statistics.
    #[inline]
    fn reuse<T>(&mut self, filled: Result<(), T>) {
        if filled.is_err() {
            self.tally.frames_lost += 1;
        }
    }

    /// Frames that are in no ring and not held: lost, and a bug. For the end of a run and for
    /// tests.
    pub fn missing(&self, rings: &Rings) -> u32 {
        let holds = self.held.as_ref().is_some_and(|(packet, _)| rings.umem().owns(packet));
        rings.census().in_hand() - u32::from(holds) - self.kept.len() as u32
    }
}

/// Notes that descriptor `place` is no reply.
fn note(others: &mut VecDeque<(u64, Other)>, place: u64, other: Other) {
    while others.front().is_some_and(|(first, _)| first + MOST_UNSENT < place) {
        others.pop_front();
    }
    others.push_back((place, other));
}

/// The frames kept for what a service sends without being asked, and the ring that they go into.
struct Kept<'a> {
    handler: &'a Handler,
    /// The interface's Ethernet address.
    own: &'a LinkAddress,
    /// Bytes that a frame may have.
    room: u32,
    kept: &'a mut Vec<Frame>,
    others: &'a mut VecDeque<(u64, Other)>,
    tally: &'a mut Tally,
    rings: &'a mut Rings,
}

impl Outbox for Kept<'_> {
    fn send(&mut self, peer: &Peer, write: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Unsent> {
        let ends = outbox::ends(self.handler, peer, self.own)?;
        let frame = self.kept.pop().ok_or(Unsent::Busy)?;
        let mut packet = match self.rings.umem().blank(frame) {
            Ok(packet) => packet,
            Err(frame) => {
                self.kept.push(frame); // of other rings, which does not happen
                return Err(Unsent::Busy);
            }
        };
        let bytes = self.rings.bytes_mut(&mut packet);
        let room = bytes.len().min(self.room as usize);
        let sent = match outbox::compose(&ends, &mut bytes[..room], write) {
            Err(why) => Err((packet, why)),
            Ok(length) => {
                packet.truncate(length);
                self.rings.transmit(packet, 1).map_err(|packet| (packet, Unsent::Busy))
            }
        };
        if let Err((packet, why)) = sent {
            self.kept.extend(self.rings.umem().recycle(packet));
            return Err(why);
        }
        note(self.others, self.tally.sent(), Other::Unasked);
        self.tally.unasked += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::service::{Answer, Datagram};
    use crate::wire::{Endpoints, Stamp, Template, solicitation, solicitation_frame, validate};
    use crate::xdp::model::{self, Model};
    use proptest::prelude::*;
    use std::collections::VecDeque;

    const CLIENT: &str = "2001:db8:1::1";
    const PORT: u16 = 3540;
    const OURS: [u8; 6] = [4; 6];

    fn pool() -> Pool {
        Pool::new("2001:db8:1::/64".parse().unwrap(), 100, 1).unwrap()
    }

    fn handler() -> Handler {
        Handler::new(PORT, pool(), vec![])
    }

    fn request(sequence: u64, payload: usize) -> Vec<u8> {
        let ends = Endpoints {
            source_mac: [2; 6],
            destination_mac: [4; 6],
            source: CLIENT.parse().unwrap(),
            source_port: 50_000,
            service_port: PORT,
        };
        let destination = pool().address(sequence % 100);
        let mut frame = vec![0; 1600];
        let stamp = Stamp { run: 7, sequence };
        let length =
            Template::new(&ends, payload).unwrap().write(&mut frame, destination, stamp).unwrap();
        frame.truncate(length);
        frame
    }

    /// Says as much as it can to whoever has asked, without being asked.
    #[derive(Clone, Default)]
    struct Chatty {
        peer: Option<Peer>,
        said: u64,
    }

    impl Service for Chatty {
        const UNASKED: bool = true;

        fn answer(&mut self, datagram: &mut Datagram) -> Answer {
            self.peer = Some(datagram.peer());
            Answer::same()
        }

        fn turn(&mut self, outbox: &mut impl Outbox) -> Duration {
            let Some(peer) = self.peer else { return Duration::MAX };
            let write = |buffer: &mut [u8]| {
                buffer[..5].copy_from_slice(b"hello");
                5
            };
            while outbox.send(&peer, write).is_ok() {
                self.said += 1;
            }
            assert_eq!(outbox.send(&peer, |_| 5), Err(Unsent::Busy));
            let moved = Peer { asked: "2001:db8:1::77".parse().unwrap(), ..peer };
            assert_eq!(outbox.send(&moved, |_| panic!("it writes")), Err(Unsent::NotLive));
            let elsewhere = Peer { mac: None, ..peer };
            let sent = outbox.send(&elsewhere, |_| panic!("it writes"));
            assert_eq!(sent, Err(Unsent::OtherWorker));
            Duration::ZERO
        }
    }

    #[test]
    fn what_nobody_asked_for_takes_no_frame_from_replies() {
        const KEPT: usize = 2;
        let (mut rings, mut tokens, mut model) = model::rings(8, 2048, 16, 0).unwrap();
        let kept = tokens.split_off(8 - KEPT);
        for token in tokens {
            rings.fill(token).unwrap();
        }
        rings.publish();
        let own = LinkAddress::from([6; 6]);
        let worker = Worker::new(handler(), Chatty::default());
        let mut worker = worker.with_kept(kept, &rings, own.clone());
        let (mut arrived, mut replies, mut hellos, mut changed) = (0, 0, 0, 0);
        for turn in 0..220 {
            if turn == 100 {
                own.set([8; 6]); // the interface gets another Ethernet address
            }
            if turn < 200 {
                arrived += u64::from(model.deliver(&request(turn, 32)));
            } else {
                worker.service.peer = None; // all that is left leaves
            }
            // The kernel sends nothing in half of the turns, so that both pile up.
            model.budget = if turn % 4 < 2 { 0 } else { 5 };
            worker.turn(&mut rings, &mut model).unwrap();
            assert_eq!(worker.missing(&rings), 0);
            assert!(worker.kept.len() <= KEPT);
            while let Some(mut sent) = model.take_sent() {
                let frame = validate(&mut sent, 50_000).unwrap();
                assert_eq!(frame.source_port(), PORT);
                if frame.payload() == b"hello" {
                    hellos += 1;
                    assert!([[6; 6], [8; 6]].contains(&frame.mac()));
                    changed += u32::from(frame.mac() == [8; 6]);
                } else {
                    replies += 1;
                    assert_eq!(frame.mac(), OURS); // the address that was asked
                }
            }
        }
        let tally = worker.close(&rings);
        assert_eq!((tally.answered, tally.frames_lost), (arrived, 0));
        assert_eq!((tally.replies, tally.unasked), (replies, hellos));
        assert_eq!((arrived, worker.service.said, tally.unsent), (replies, hellos, 0));
        assert!(arrived > 50 && hellos > 50, "{arrived} and {hellos}");
        assert!(changed > 25, "{changed}");
    }

    /// What happens to the worker from outside.
    #[derive(Debug, Clone)]
    enum Event {
        /// A right request arrives.
        Request(usize),
        /// A request arrives with one byte changed.
        Damaged(usize, usize, u8),
        /// Somebody asks for an address, live or not.
        Solicitation(u64),
        /// Something else arrives.
        Noise(Vec<u8>),
        /// The card sends some of what it was given, and completes it.
        Sent(usize),
        /// The worker takes a turn while the kernel sends at most so many descriptors a wake-up.
        Turn(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (16usize..1400).prop_map(Event::Request),
            1 => (16usize..200, 0usize..262, 1u8..)
                .prop_map(|(size, at, flip)| Event::Damaged(size, at, flip)),
            1 => (0u64..200).prop_map(Event::Solicitation),
            1 => proptest::collection::vec(any::<u8>(), 14..1500).prop_map(Event::Noise),
            4 => (0usize..60).prop_map(Event::Sent),
            4 => (0usize..40).prop_map(Event::Turn),
        ]
    }

    /// The model: which replies are owed, in order, and how many requests should have been refused.
    struct Expected {
        owed: VecDeque<Vec<u8>>,
        arrived: u64,
        advertised: u64,
    }

    impl Expected {
        fn take(&mut self, model: &mut Model) -> bool {
            let Some(sent) = model.take_sent() else {
                return false;
            };
            let owed = self.owed.pop_front().expect("a reply that nobody asked for");
            assert_eq!(sent, owed, "a reply differs from its request's answer, or is out of order");
            true
        }
    }

    proptest! {
        /// Whatever arrives and however little the rings hold: every request that arrived is
        /// answered by exactly its replies, and every solicitation for a live address once, in
        /// order and intact when they leave; everything else is counted, and no frame is lost on
        /// any step.
        #[test]
        fn every_request_is_answered_and_no_frame_is_lost(
            events in proptest::collection::vec(event(), 1..120),
            frames in prop::sample::select(vec![1u32, 2, 8, 32]),
            ring in prop::sample::select(vec![16u32, 32, 128]),
            replies in 1u16..=12,
            start in prop_oneof![any::<u32>(), (u32::MAX - 50)..=u32::MAX],
        ) {
            let (mut rings, tokens, mut model) = model::rings(frames, 2048, ring, start).unwrap();
            for token in tokens {
                rings.fill(token).unwrap();
            }
            rings.publish();
            let handler = handler();
            let worker = Worker::new(handler.clone(), Echo::new(replies));
            let mut worker = worker.with_advertiser(Advertiser::new(OURS));
            let mut expected = Expected { owed: VecDeque::new(), arrived: 0, advertised: 0 };
            let mut sequence = 0;
            // Then quiet: enough turns for all that is owed to leave, a few descriptors at a time.
            let quiet = std::iter::repeat_n([Event::Turn(7), Event::Sent(60)], 400).flatten();
            for event in events.into_iter().chain(quiet) {
                let arriving = match event {
                    Event::Request(size) => Some(request(sequence, size)),
                    Event::Damaged(size, at, flip) => {
                        let mut frame = request(sequence, size);
                        let at = at % frame.len();
                        frame[at] ^= flip;
                        Some(frame)
                    }
                    Event::Solicitation(index) => {
                        // The first hundred are live.
                        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 200, 1).unwrap();
                        Some(solicitation_frame(pool.address(index)))
                    }
                    Event::Noise(bytes) => Some(bytes),
                    Event::Sent(count) => {
                        for _ in 0..count {
                            if !expected.take(&mut model) {
                                break;
                            }
                        }
                        None
                    }
                    Event::Turn(budget) => {
                        model.budget = budget;
                        worker.turn(&mut rings, &mut model).unwrap();
                        None
                    }
                };
                if let Some(frame) = arriving {
                    sequence += 1;
                    if model.deliver(&frame) {
                        expected.arrived += 1;
                        let mut reply = frame;
                        if let Ok(length) = handler.answer(&mut reply) {
                            reply.truncate(length);
                            expected.owed.extend(std::iter::repeat_n(reply, replies.into()));
                        } else if let Some(asked) = solicitation(&reply)
                            .ok()
                            .filter(|asked| handler.is_live(asked.target()))
                        {
                            let mut answer = vec![0; ADVERTISEMENT];
                            asked.advertise(OURS, &mut answer).unwrap();
                            expected.owed.push_back(answer);
                            expected.advertised += 1;
                        }
                    }
                }
                prop_assert_eq!(worker.missing(&rings), 0, "{:?}", rings.census());
            }
            let tally = worker.tally();
            let owed = expected.owed.len();
            prop_assert!(owed == 0, "{} replies are still owed", owed);
            let refused = tally.refused.iter().sum::<u64>();
            prop_assert_eq!(tally.answered + tally.advertised + refused, expected.arrived);
            prop_assert_eq!(tally.received, expected.arrived);
            prop_assert_eq!(tally.advertised, expected.advertised);
            prop_assert_eq!(tally.replies, tally.answered * u64::from(replies));
            prop_assert_eq!(tally.frames_lost, 0);
            prop_assert_eq!(rings.invalid(), 0);
            let receiving = rings.census().receiving;
            prop_assert_eq!(receiving, frames, "all frames are back where requests arrive");
        }
    }

    /// Answers by so many bytes of its own, or not at all.
    #[derive(Clone)]
    struct Fixed(usize, u8);

    impl Service for Fixed {
        fn answer(&mut self, datagram: &mut Datagram) -> Answer {
            let Some(place) = datagram.buffer().get_mut(..self.0) else { return Answer::Nothing };
            place.fill(9);
            Answer::changed(self.0).times(self.1)
        }
    }

    proptest! {
        #[test]
        fn an_answer_of_any_length_leaves_with_a_right_checksum(
            sizes in proptest::collection::vec(16usize..1400, 1..8),
            length in 0usize..1500,
            copies in 0u8..=12,
            room in prop::sample::select(vec![0, 100, MAX_PAYLOAD]),
        ) {
            let (mut rings, tokens, mut model) = model::rings(8, 2048, 128, 0).unwrap();
            for token in tokens {
                rings.fill(token).unwrap();
            }
            rings.publish();
            let mut worker = Worker::new(handler(), Fixed(length, copies))
                .with_room(room)
                .with_advertiser(Advertiser::new(OURS));
            for (sequence, size) in (0..).zip(sizes) {
                prop_assert!(model.deliver(&request(sequence, size)));
                worker.turn(&mut rings, &mut model).unwrap();
                // Room may be lent, or what the request takes.
                let copies = if length <= room.max(size) { copies } else { 0 };
                for _ in 0..copies {
                    let mut reply = model.take_sent().expect("as many as the service says");
                    let reply = validate(&mut reply, 50_000).unwrap();
                    prop_assert_eq!(reply.payload(), vec![9; length]);
                }
                prop_assert!(model.take_sent().is_none());
                // What is no request is read as it came, whatever room was lent.
                prop_assert!(model.deliver(&solicitation_frame(pool().address(1))));
                worker.turn(&mut rings, &mut model).unwrap();
                prop_assert_eq!(model.take_sent().map(|answer| answer.len()), Some(ADVERTISEMENT));
                worker.turn(&mut rings, &mut model).unwrap();
                prop_assert_eq!((worker.missing(&rings), rings.census().receiving), (0, 8));
            }
            let tally = worker.tally();
            let silent = tally.refused[Refusal::NoAnswer as usize];
            prop_assert_eq!(tally.answered + silent + tally.advertised, tally.received);
            prop_assert_eq!(tally.replies, tally.answered * u64::from(copies));
        }
    }

    #[test]
    fn a_single_request_is_answered_in_the_turn_that_sees_it() {
        let (mut rings, tokens, mut model) = model::rings(4, 2048, 16, 0).unwrap();
        for token in tokens {
            rings.fill(token).unwrap();
        }
        rings.publish();
        let mut worker = Worker::new(handler(), Echo::new(10));
        assert!(!worker.turn(&mut rings, &mut model).unwrap());
        assert!(model.deliver(&request(0, 32)));
        assert!(worker.turn(&mut rings, &mut model).unwrap());
        for _ in 0..10 {
            let mut reply = model.take_sent().expect("ten replies");
            let reply = validate(&mut reply, 50_000).unwrap();
            assert_eq!(reply.destination(), CLIENT.parse::<std::net::Ipv6Addr>().unwrap());
            assert_eq!(Stamp::read(reply.payload()), Some(Stamp { run: 7, sequence: 0 }));
        }
        assert!(model.take_sent().is_none());
    }

    #[test]
    fn what_is_held_for_other_rings_waits_for_them() {
        let queue = || {
            let (mut rings, tokens, mut model) = model::rings(4, 2048, 16, 0).unwrap();
            for token in tokens {
                rings.fill(token).unwrap();
            }
            rings.publish();
            assert!(model.deliver(&request(0, 32)));
            (rings, model)
        };
        let ((mut rings, mut model), (mut others, mut other_model)) = (queue(), queue());
        assert!(model.deliver(&request(1, 32)));
        let mut worker = Worker::new(handler(), Echo::new(10));
        worker.turn(&mut rings, &mut model).unwrap(); // ten replies fit, twenty do not
        let before = others.census();
        worker.turn(&mut others, &mut other_model).unwrap();
        assert_eq!(others.census(), before);
        assert!(other_model.take_sent().is_none());
        assert_eq!((worker.missing(&others), worker.missing(&rings)), (0, 0));
        for _ in 0..10 {
            model.take_sent().unwrap();
        }
        worker.turn(&mut rings, &mut model).unwrap();
        for _ in 0..10 {
            let mut reply = model.take_sent().unwrap();
            let reply = validate(&mut reply, 50_000).unwrap();
            assert_eq!(Stamp::read(reply.payload()), Some(Stamp { run: 7, sequence: 1 }));
        }
        worker.turn(&mut others, &mut other_model).unwrap();
        assert!(other_model.take_sent().is_some());
        assert_eq!((worker.missing(&others), worker.missing(&rings)), (0, 0));
    }

    #[test]
    fn replies_that_the_kernel_holds_at_the_end_are_not_sent() {
        let (mut rings, tokens, mut model) = model::rings(8, 2048, 64, 0).unwrap();
        for token in tokens {
            rings.fill(token).unwrap();
        }
        rings.publish();
        let mut worker =
            Worker::new(handler(), Echo::new(10)).with_advertiser(Advertiser::new(OURS));
        assert!(model.deliver(&request(0, 32)));
        worker.turn(&mut rings, &mut model).unwrap();
        while model.take_sent().is_some() {}
        assert!(worker.drain(&mut rings, &mut model).unwrap(), "all of that has left");
        assert_eq!((worker.close(&rings).replies, worker.close(&rings).unsent), (10, 0));

        // From here on nothing leaves: the replies to three requests, an advertisement, and those
        // to three more.
        model.budget = 0;
        for sequence in 1..=3 {
            assert!(model.deliver(&request(sequence, 32)));
        }
        let asked = solicitation_frame(pool().address(1));
        assert!(model.deliver(&asked));
        for sequence in 4..=6 {
            assert!(model.deliver(&request(sequence, 32)));
        }
        worker.turn(&mut rings, &mut model).unwrap();
        assert!(!worker.drain(&mut rings, &mut model).unwrap());
        assert_eq!(rings.levels().read().tx, 61);
        let tally = worker.close(&rings);
        assert_eq!((tally.answered, tally.advertised), (7, 1));
        assert_eq!((tally.replies, tally.unsent), (10, 60));
        assert_eq!(tally.frames_lost, 0);

        // The kernel takes 35 of the 61 after all.
        model.budget = 35;
        worker.drain(&mut rings, &mut model).unwrap();
        while model.take_sent().is_some() {}
        model.budget = 0;
        worker.drain(&mut rings, &mut model).unwrap();
        let tally = worker.close(&rings);
        assert_eq!((tally.replies, tally.unsent), (10 + 34, 26));

        // Another is held: there is no room for its replies.
        for sequence in 7..=20 {
            model.deliver(&request(sequence, 32));
        }
        worker.turn(&mut rings, &mut model).unwrap();
        let tally = worker.close(&rings);
        assert_eq!(tally.replies + tally.unsent, 10 * tally.answered);
        assert_eq!(tally.replies, 44);
    }

    #[test]
    fn what_is_refused_is_counted_by_its_reason() {
        let (mut rings, tokens, mut model) = model::rings(4, 2048, 16, 0).unwrap();
        for token in tokens {
            rings.fill(token).unwrap();
        }
        rings.publish();
        let mut worker = Worker::new(handler(), Echo::new(10));
        let mut damaged = request(0, 32);
        damaged[90] ^= 1;
        assert!(model.deliver(&damaged));
        worker.turn(&mut rings, &mut model).unwrap();
        assert_eq!(worker.tally().refused[Refusal::BadChecksum as usize], 1);
        assert_eq!(rings.census().receiving, 4);
        assert!(model.take_sent().is_none());
    }
}
