//! Packet sockets by plain system calls: whole frames come by recvmmsg, become replies in place,
//! and go by sendmmsg, past the kernel's UDP and IPv6.
//!
//! ```text
//!   recvmmsg ─► Handler, Service, in place
//!      ├─► ten replies as one frame: headers, then the same payload ten times ─► sendmmsg
//!      └─► where the kernel cuts none: ten frames ─► sendmmsg
//! ```
//!
//! `unsafe` are the system calls.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use super::behind::Behind;
use super::outbox::{self, FrameOutbox, FrameSender};
use super::packet::{self, Bundle, PacketCounters, Tap};
use super::reply;
use super::statistics::{Shown, Tally};
use super::{
    About, CounterSet, Engine, EngineConfig, EngineKind, Follower, LinkAddress, Modes, pin, udp,
};
use crate::host::sandbox::{Role, Sandbox};
use crate::net::datagrams::{BATCH, MAX_MESSAGES};
use crate::policy::Handler;
use crate::service::Service;
use crate::wire::{MAX_PAYLOAD, OVERHEAD};

impl EngineKind {
    /// Packet sockets.
    pub const RAW: Self = Self::named("raw");
}

pub(super) const ABOUT: About = About {
    sees_frames: true,
    segments: true,
    capabilities: &["CAP_NET_ADMIN", "CAP_NET_RAW"],
    roles: &[Role::Packet],
    ..About::new(
        EngineKind::RAW,
        "Packet sockets: whole frames, with headers of our own, past the kernel's UDP and IPv6",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(Raw::open(config, service)?))
}

pub(super) struct Raw<S> {
    workers: Vec<RawWorker<S>>,
    modes: Modes,
    sandbox: Sandbox,
    behind: Behind<S>,
    /// The MTU that the buffers were made for.
    mtu: u32,
    own: LinkAddress,
}

struct RawWorker<S> {
    service: S,
    tap: Arc<Tap>,
    sender: OwnedFd,
    /// Whether the kernel cuts.
    cuts: bool,
    handler: Handler,
    interface: String,
    /// The interface's Ethernet address.
    own: LinkAddress,
    frame_size: usize,
    /// Bytes of a frame that its service sends without being asked.
    room: usize,
    core: usize,
    shown: Arc<Shown>,
}

impl<S: Service> Raw<S> {
    pub fn open(config: &EngineConfig, service: &S) -> Result<Self> {
        let EngineConfig { link, handler, .. } = config;
        let behind = Behind::taps(config, service)?;
        let own = LinkAddress::from(link.mac);
        let open = |&core: &usize| {
            let (sender, cuts) = packet::sender(link)?;
            Ok(RawWorker {
                service: service.clone(),
                tap: Tap::open()?,
                sender,
                cuts,
                handler: handler.clone(),
                interface: link.name.clone(),
                own: own.clone(),
                frame_size: packet::largest_frame(link),
                room: OVERHEAD + reply::room(link),
                core,
                shown: Arc::default(),
            })
        };
        let workers: Vec<_> = config.cores.iter().map(open).collect::<Result<_>>()?;
        let taps: Vec<_> = workers.iter().map(|worker| worker.tap.clone()).collect();
        packet::listen(&taps, link, handler.port())?;
        let modes = Modes {
            cores: config.cores.clone(),
            receive_buffer: taps.first().and_then(|tap| udp::receive_buffer(&tap.socket)),
            segmentation: Some(workers.iter().all(|worker| worker.cuts)),
            ..Modes::default()
        };
        Ok(Self { workers, modes, sandbox: config.sandbox, behind, mtu: link.mtu, own })
    }
}

impl<S: Service> RawWorker<S> {
    /// Receives and answers until `stop` is set.
    fn work(mut self, stop: &AtomicBool) -> Result<()> {
        pin(self.core);
        let mut frames = Frames::new(self.frame_size);
        let mut outgoing = OutgoingFrames::default();
        let mut tally = Tally::default();
        let mut frame = vec![0; self.room];
        while !stop.load(Ordering::Relaxed) {
            if S::UNASKED && !self.speak(&mut frame, &mut outgoing, &mut tally)? {
                continue;
            }
            let count = match frames.receive(&self.tap.socket) {
                Ok(count) => count,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                    self.shown.beat();
                    continue;
                }
                Err(error) => return Err(packet::fatal(error, &self.interface)),
            };
            frames.answer(count, &self.handler, &mut self.service, &mut tally);
            // Its size is known only now; to allocate it costs nothing beside the two system calls.
            let most = if self.cuts { count } else { frames.copies.iter().take(count).sum() };
            let mut bundles = Vec::with_capacity(most);
            for (reply, copies) in frames.replies(count) {
                bundles.extend(packet::bundles(reply, copies, self.cuts, usize::MAX));
            }
            self.send(&bundles, &mut outgoing, &mut tally)?;
            self.shown.store(&tally);
        }
        Ok(())
    }

    /// Lets the service send unasked, from `frame`. Then waits for requests until it wants its next
    /// turn, and returns whether there are any.
    fn speak(
        &mut self,
        frame: &mut [u8],
        outgoing: &mut OutgoingFrames,
        tally: &mut Tally,
    ) -> Result<bool> {
        let Self { service, sender, cuts, handler, own, .. } = self;
        let sender = PlainSender { socket: sender, cuts: *cuts, outgoing };
        let wait = service.turn(&mut FrameOutbox { handler, own, frame, tally, sender });
        self.shown.store(tally);
        outbox::readable(&self.tap.socket, wait)
    }

    fn send(
        &self,
        bundles: &[Bundle],
        outgoing: &mut OutgoingFrames,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut rest = bundles;
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(MAX_MESSAGES)];
            let (count, went) = match outgoing.send(&self.sender, some) {
                Ok(sent) => (sent.clamp(1, some.len()), true),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ENETDOWN | libc::ENXIO) => {
                        return Err(packet::fatal(error, &self.interface));
                    }
                    // The link takes nothing: those behind it would each wait as long.
                    Some(libc::EAGAIN) => (rest.len(), false),
                    // That one does not go; those behind it may.
                    _ => (1, false),
                },
            };
            let (done, left) = rest.split_at(count);
            let replies: usize = done.iter().map(|bundle| bundle.copies).sum();
            *(if went { &mut tally.replies } else { &mut tally.unsent }) += replies as u64;
            rest = left;
        }
        Ok(())
    }
}

/// Hands over one frame by one system call.
struct PlainSender<'a> {
    socket: &'a OwnedFd,
    cuts: bool,
    outgoing: &'a mut OutgoingFrames,
}

impl FrameSender for PlainSender<'_> {
    /// It may wait for room, as a reply does.
    fn has_room(&mut self) -> bool {
        true
    }

    fn hand_over(&mut self, frame: &[u8]) -> bool {
        let bundles: Vec<_> = packet::bundles(frame, 1, self.cuts, usize::MAX).collect();
        loop {
            match self.outgoing.send(self.socket, &bundles) {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                // Where the link is gone, the tap says so as well, and that ends the work.
                sent => return sent.is_ok_and(|count| count == 1),
            }
        }
    }
}

impl<S: Service> Engine for Raw<S> {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        let workers = self.workers.iter();
        let (taps, shown) =
            workers.map(|worker| (worker.tap.clone(), worker.shown.clone())).unzip();
        Ok(Box::new(PacketCounters { taps, shown, behind: self.behind.counters() }))
    }

    fn follower(&self) -> Option<Box<dyn Follower>> {
        Some(self.behind.follower(self.mtu, self.own.clone()))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self { workers, behind, sandbox, .. } = *self;
        let work = || udp::run(workers, (sandbox, Role::Packet), stop, |worker| worker.work(stop));
        behind.beside(stop, work)
    }
}

/// Frames that came, and then the replies in their place.
struct Frames {
    data: Box<[u8]>,
    /// Bytes of each. What is longer was cut off, and no longer holds what its headers say.
    size: usize,
    lengths: [usize; BATCH],
    /// How often each goes; 0 for none.
    copies: [usize; BATCH],
}

impl Frames {
    fn new(size: usize) -> Self {
        Self { data: vec![0; BATCH * size].into(), size, lengths: [0; BATCH], copies: [0; BATCH] }
    }

    /// Waits for the first, takes what else there is, and returns how many they are.
    fn receive(&mut self, socket: &OwnedFd) -> io::Result<usize> {
        // SAFETY: integers and pointers, for which zeros are a value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let places = self.data.chunks_exact_mut(self.size);
        for ((vector, header), place) in vectors.iter_mut().zip(&mut headers).zip(places) {
            *vector = libc::iovec { iov_base: place.as_mut_ptr().cast(), iov_len: place.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        let (socket, flags, none) = (socket.as_raw_fd(), libc::MSG_WAITFORONE, ptr::null_mut());
        // SAFETY: the headers, and all that they point to, are valid for reads and writes until the
        // call returns.
        let received =
            unsafe { libc::recvmmsg(socket, headers.as_mut_ptr(), BATCH as u32, flags as _, none) };
        for (length, header) in self.lengths.iter_mut().zip(&headers) {
            *length = self.size.min(header.msg_len as usize);
        }
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        Ok(received.min(BATCH))
    }

    /// Turns the first `count` into replies.
    fn answer<S: Service>(
        &mut self,
        count: usize,
        handler: &Handler,
        service: &mut S,
        tally: &mut Tally,
    ) {
        let places = self.data.chunks_exact_mut(self.size);
        let frames = places.zip(&mut self.lengths).zip(&mut self.copies);
        for ((frame, length), copies) in frames.take(count) {
            tally.received += 1;
            let room = (OVERHEAD + MAX_PAYLOAD).max(*length).min(frame.len());
            match reply::to_frame(handler, service, &mut frame[..room], *length) {
                Ok(reply) => {
                    tally.answered += 1;
                    *length = reply.length;
                    *copies = reply.copies.get().into();
                }
                Err(refusal) => {
                    tally.refused[refusal as usize] += 1;
                    *copies = 0;
                }
            }
        }
    }

    /// The replies among the first `count`, and how often each goes.
    fn replies(&self, count: usize) -> impl Iterator<Item = (&[u8], usize)> {
        let frames = self.data.chunks_exact(self.size).zip(self.lengths).zip(self.copies);
        let replies = frames.take(count).filter(|(_, copies)| *copies > 0);
        replies.map(|((frame, length), copies)| (&frame[..length], copies))
    }
}

/// Room for what the kernel is told; nothing is allocated once it is large enough.
#[derive(Default)]
struct OutgoingFrames {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
}

impl OutgoingFrames {
    /// Sends `bundles`, at most [`MAX_MESSAGES`], and returns how many the kernel took.
    fn send(&mut self, socket: &OwnedFd, bundles: &[Bundle]) -> io::Result<usize> {
        let vector = |bytes: &[u8]| libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        self.headers.clear();
        self.vectors.clear();
        for bundle in bundles {
            self.vectors.push(vector(bundle.head()));
            self.vectors.extend(std::iter::repeat_n(vector(bundle.payload), bundle.copies));
        }
        // All of it lies where it stays: now the headers may point to it.
        let mut vectors = self.vectors.as_mut_slice();
        for bundle in bundles {
            // SAFETY: integers and pointers, for which zeros are a value.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            let (own, rest) = vectors.split_at_mut(1 + bundle.copies);
            header.msg_hdr.msg_iov = own.as_mut_ptr();
            header.msg_hdr.msg_iovlen = own.len() as _;
            self.headers.push(header);
            vectors = rest;
        }
        let (socket, count) = (socket.as_raw_fd(), self.headers.len() as u32);
        // SAFETY: the headers, and all that they point to, are valid for reads until the call
        // returns.
        let sent = unsafe { libc::sendmmsg(socket, self.headers.as_mut_ptr(), count, 0) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::service::{Outbox, Peer, Unsent};
    use crate::wire;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn what_nobody_asked_for_is_a_whole_frame_or_counted() {
        const ROOM: usize = 100;
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap();
        let source = ("2001:db8:1::1".parse().unwrap(), 50_000);
        let peer = Peer { source, asked: pool.address(3), mac: Some([2; 6]) };
        let handler = Handler::new(3540, pool, vec![]);
        let (own, mut tally) = (LinkAddress::from([4; 6]), Tally::default());
        for cuts in [false, true] {
            let (sender, link) = UnixDatagram::pair().unwrap();
            let (socket, mut outgoing) = (OwnedFd::from(sender), OutgoingFrames::default());
            let mut frame = [0; OVERHEAD + ROOM];
            let mut outbox = FrameOutbox {
                handler: &handler,
                own: &own,
                frame: &mut frame,
                tally: &mut tally,
                sender: PlainSender { socket: &socket, cuts, outgoing: &mut outgoing },
            };
            let write = |buffer: &mut [u8]| {
                assert_eq!(buffer.len(), ROOM);
                buffer.fill(9);
                ROOM
            };
            assert_eq!(outbox.send(&peer, write), Ok(()));
            let mut came = [0; 200];
            let length = link.recv(&mut came).unwrap();
            let came = &mut came[if cuts { packet::HEAD - OVERHEAD } else { 0 }..length];
            assert_eq!(came[..12], [2, 2, 2, 2, 2, 2, 4, 4, 4, 4, 4, 4]);
            let datagram = wire::validate(came, 50_000).unwrap();
            assert_eq!((datagram.source(), datagram.source_port()), (peer.asked, 3540));
            assert_eq!(datagram.payload(), [9; ROOM]);

            assert_eq!(outbox.send(&peer, |_| ROOM + 1), Err(Unsent::TooLong));
            let moved = Peer { asked: "2001:db8:1::77".parse().unwrap(), ..peer };
            assert_eq!(outbox.send(&moved, |_| panic!("it writes")), Err(Unsent::NotLive));
            let behind = Peer { mac: None, ..peer };
            assert_eq!(outbox.send(&behind, |_| panic!("it writes")), Err(Unsent::OtherWorker));
            drop(link);
            assert_eq!(outbox.send(&peer, write), Err(Unsent::Refused));
        }
        assert_eq!((tally.unasked, tally.unsent), (2, 2));
    }
}
