//! An io_uring with a socket on it: buffers that the kernel receives into and that replies are sent
//! from. It knows nothing of which requests are answered. The `unsafe` of the engine is here.
//!
//! ```text
//!        ┌────────── give (buffer ring, IORING_REGISTER_PBUF_RING) ◄───────────┐
//!        ▼                                                                     │ the last one
//!   kernel: recvmsg, multishot ──completion──► Received ─reply──► kernel: sendmsg, completion
//!        ▲                                        │
//!        └────────────────put_back────────────────┘
//!
//!   kept ──send_to──► kernel: sendmsg, completion ──► kept       what answers no request
//! ```
//!
//! A buffer is in one place at a time. So no more completions can wait than there are buffers, and
//! a few of operations that have none: the completion queue is twice as large, and does not
//! overflow. If it did, the kernel would keep what has no room (all that have multishot receive
//! have IORING_FEAT_NODROP) and hand it over at the next call, like anything else.

use std::io;
use std::mem::{self, ManuallyDrop, offset_of};
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, RecvMsgOut, SubmitArgs, Timespec};
use io_uring::{Builder, IoUring, cqueue, opcode, squeue};

use crate::engine::EngineError;
use crate::engine::udp::{self, DOZE, MAX_SEGMENTS};
use crate::net::datagrams::{self, Control, Controls};
use crate::net::denied;
use crate::net::memory::Memory;
use crate::service::Unsent;
use crate::wire::MAX_PAYLOAD;

/// Operations that one call submits at most: no more requests are decided over before the reply to
/// the first leaves.
const SUBMISSIONS: u32 = 64;

/// The buffers' group: a ring may have several, and this has one.
const GROUP: u16 = 0;

/// Where the parts of a datagram lie in a buffer: behind a struct io_uring_recvmsg_out
/// (linux/io_uring.h: four u32).
const PEER: usize = 16;
const CONTROL: usize = PEER + size_of::<libc::sockaddr_in6>();
const PAYLOAD: usize = CONTROL + size_of::<Control<libc::in6_pktinfo>>();
const LENGTH: usize = PAYLOAD + MAX_PAYLOAD;

/// What an operation is, to be recognised by when it completes: a reply by its buffer, and others
/// by what no buffer is called.
const RECEIVE: u64 = u64::MAX;
const CANCEL: u64 = u64::MAX - 1;

/// How often a dropped [`DatagramRing`] looks whether all has completed, [`DOZE`] apart, before it
/// gives up its memory.
const PATIENCE: u32 = 20;

/// Why a request is refused: its buffer is not one of this ring.
const ELSEWHERE: &str = "the request came by another ring: answer it there";

/// A buffer, and what the kernel is told of the replies that are sent from it. Nobody writes it but
/// who has it at the time.
#[repr(C, align(64))]
struct Buffer {
    header: libc::msghdr,
    controls: Controls,
    /// Replies that go as one, now.
    copies: usize,
    /// Replies to go after those.
    left: usize,
    /// As many times the payload as one message may have.
    vectors: [libc::iovec; MAX_SEGMENTS],
    data: [u8; LENGTH],
}

/// A datagram that came. Its buffer is lost to the ring when it is dropped.
#[must_use]
pub(super) struct Received {
    /// The ring that the buffer is of.
    ring: u64,
    buffer: u16,
    length: usize,
    /// Whom it came from.
    pub source: Ipv6Addr,
    /// From which port.
    pub source_port: u16,
    /// To whom, and on which interface.
    pub asked: libc::in6_pktinfo,
}

/// What happened.
pub(super) enum Completion {
    /// A datagram came.
    Request(Received),
    /// So many replies have left, or have not.
    Sent(usize, io::Result<()>),
    /// What answers no request has left, or has not.
    Unasked(io::Result<()>),
    /// The kernel handed over what makes no sense.
    Invalid,
}

/// The ring of one worker. Only the thread that has called [`enable`](Self::enable) may use it from
/// then on.
pub(super) struct DatagramRing {
    /// No other ring of this process has had the number: a request may outlive its ring.
    number: u64,
    ring: IoUring,
    /// All that the kernel is told of, and the pointers below lead to: entries of the buffer ring,
    /// `receive`, buffers.
    memory: ManuallyDrop<Memory>,
    socket: Arc<OwnedFd>,
    entries: NonNull<BufRingEntry>,
    /// What the kernel is told of how to receive.
    receive: NonNull<libc::msghdr>,
    buffers: NonNull<Buffer>,
    /// Those that are received into.
    count: u16,
    /// Those behind them, which are never received into: for what answers no request.
    kept: u16,
    /// The ones of these that no operation has.
    free: Vec<u16>,
    /// Where the next buffer is put into the buffer ring; wraps.
    tail: u16,
    /// Buffers that are not in it.
    out: u16,
    /// Operations that have not completed.
    pending: u32,
    receiving: bool,
    /// No more is to be received.
    closing: bool,
}

// SAFETY: its pointers lead into its own memory, which goes along.
unsafe impl Send for DatagramRing {}

impl DatagramRing {
    /// With `count` buffers for requests, a power of two, and `kept` for what answers none. Nothing
    /// is received before the first [`wait`](Self::wait).
    pub fn open(socket: Arc<OwnedFd>, count: u16, kept: u16) -> Result<Self> {
        let ring = set_up(count + kept).map_err(explain)?;
        let header = usize::from(count) * size_of::<BufRingEntry>();
        let first = (header + size_of::<libc::msghdr>()).next_multiple_of(align_of::<Buffer>());
        let all = usize::from(count + kept);
        let memory = Memory::anonymous(first + all * size_of::<Buffer>()).map_err(explain)?;
        let places = (memory.at(0, count.into()), memory.at(header, 1), memory.at(first, all));
        let (Some(entries), Some(receive), Some(buffers)) = places else {
            return Err(anyhow!("no memory for {all} buffers"));
        };
        static RINGS: AtomicU64 = AtomicU64::new(0);
        let mut this = Self {
            number: RINGS.fetch_add(1, Ordering::Relaxed),
            ring,
            memory: ManuallyDrop::new(memory),
            socket,
            entries,
            receive,
            buffers,
            count,
            kept,
            free: (count..count + kept).collect(),
            tail: 0,
            out: count,
            pending: 0,
            receiving: false,
            closing: false,
        };
        // SAFETY: nobody else has this memory yet; it is zeroed, which is a value of it.
        let receive = unsafe { this.receive.as_mut() };
        receive.msg_namelen = (CONTROL - PEER) as u32;
        receive.msg_controllen = (PAYLOAD - CONTROL) as _;
        for buffer in 0..count {
            this.prepare(buffer);
            this.give(buffer);
        }
        (count..count + kept).for_each(|buffer| this.prepare(buffer));
        let address = this.entries.as_ptr() as u64;
        // SAFETY: as many entries lie there, from the start of a page on, until no operation uses
        // them (see `drop`).
        unsafe { this.ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0) }
            .map_err(explain)?;
        Ok(this)
    }

    /// Makes the calling thread the one that uses the ring.
    pub fn enable(&self) -> Result<()> {
        self.ring.submitter().register_enable_rings().context("cannot enable the io_uring")
    }

    /// Submits what is to be done, and waits until something has happened; `false` when nothing has
    /// for so long.
    pub fn wait(&mut self, limit: Duration) -> Result<bool> {
        // The kernel ends a receive when it has no buffer, for one, and it has none while they are
        // all out: requests wait in the socket then.
        if !self.receiving && !self.closing && self.out < self.count {
            let socket = Fd(self.socket.as_raw_fd());
            let entry = opcode::RecvMsgMulti::new(socket, self.receive.as_ptr(), GROUP);
            // SAFETY: header and buffers stay until the receive has completed (see `drop`).
            unsafe { self.push(&entry.build().user_data(RECEIVE)) }?;
            self.receiving = true;
        }
        let limit = Timespec::from(limit);
        let arguments = SubmitArgs::new().timespec(&limit);
        passed(self.ring.submitter().submit_with_args(1, &arguments))
    }

    /// What happened next; `None` when that was all.
    pub fn next(&mut self) -> Result<Option<Completion>> {
        loop {
            let Some(completion) = self.ring.completion().next() else { return Ok(None) };
            let (flags, result) = (completion.flags(), completion.result());
            let more = cqueue::more(flags);
            self.pending -= u32::from(!more);
            let event = match completion.user_data() {
                RECEIVE => {
                    self.receiving = more;
                    self.received(cqueue::buffer_select(flags), result)?
                }
                CANCEL => None,
                buffer => self.sent(buffer, result)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    fn received(&mut self, buffer: Option<u16>, result: i32) -> Result<Option<Completion>> {
        let length = match outcome(result) {
            Ok(length) => Some(length),
            // The receive has ended, and is begun anew where that makes sense.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOBUFS | libc::ECANCELED | libc::EAGAIN | libc::EINTR)
                ) =>
            {
                None
            }
            Err(error) => return Err(error).context("cannot receive"),
        };
        let Some(buffer) = buffer.filter(|buffer| *buffer < self.count) else {
            return Ok(length.map(|_| Completion::Invalid));
        };
        self.out += 1;
        let request = length.and_then(|length| self.request(buffer, length));
        if request.is_none() {
            self.give(buffer);
        }
        Ok(request.map(Completion::Request))
    }

    /// What came into `buffer`; `None` when the kernel does not say whom it was sent to.
    fn request(&self, buffer: u16, length: usize) -> Option<Received> {
        let place = self.place(buffer, offset_of!(Buffer, data));
        // SAFETY: the buffer came out of the ring, so that nobody writes it; it is as long, and
        // initialised from the start.
        let data = unsafe { slice::from_raw_parts(place.as_ptr(), length.min(LENGTH)) };
        // SAFETY: nobody writes it after `open`.
        let header = unsafe { self.receive.as_ref() };
        let parts = RecvMsgOut::parse(data, header).ok()?;
        let peer: libc::sockaddr_in6 = datagrams::read(parts.name_data())?;
        let control: Control<libc::in6_pktinfo> = datagrams::read(parts.control_data())?;
        let asked = control.value(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO)?;
        let (source, source_port) = datagrams::source(&peer);
        let length = parts.payload_data().len();
        Some(Received { ring: self.number, buffer, length, source, source_port, asked })
    }

    /// What `request` carries, with the room behind it, and how many bytes of it that are. Of one
    /// that came by another ring there is nothing.
    pub fn payload_mut(&mut self, request: &mut Received) -> (&mut [u8], usize) {
        if request.ring != self.number {
            return (&mut [], 0);
        }
        let place = self.place(request.buffer, offset_of!(Buffer, data) + PAYLOAD);
        // SAFETY: within the buffer, and initialised from the start. The request, which is of this
        // ring and lent for as long, says that neither the ring nor an operation has the buffer.
        let payload = unsafe { slice::from_raw_parts_mut(place.as_ptr(), MAX_PAYLOAD) };
        (payload, request.length.min(MAX_PAYLOAD))
    }

    /// Sends `length` bytes of what lies in the buffer of `request` to whom that came from,
    /// `replies` times, from the address `from`.
    pub fn reply(
        &mut self,
        request: Received,
        from: libc::in6_pktinfo,
        length: usize,
        replies: usize,
    ) -> Result<()> {
        ensure!(request.ring == self.number, ELSEWHERE);
        let length = length.min(MAX_PAYLOAD);
        // SAFETY: within the memory; the request, which is of this ring, says that neither the ring
        // nor an operation has it.
        let buffer = unsafe { self.buffer(request.buffer).as_mut() };
        buffer.controls = Controls::new(from, length);
        buffer.left = replies;
        let most = udp::segments(length).min(replies);
        buffer.vectors[..most].iter_mut().for_each(|vector| vector.iov_len = length);
        self.send(request.buffer)
    }

    /// Sends as many of the replies that are left as go at once. The others follow when those have
    /// left: so each buffer has one operation at most.
    fn send(&mut self, index: u16) -> Result<()> {
        // SAFETY: within the memory; no operation has it.
        let buffer = unsafe { self.buffer(index).as_mut() };
        buffer.copies = buffer.left.min(udp::segments(buffer.vectors[0].iov_len));
        buffer.left -= buffer.copies;
        buffer.header.msg_iovlen = buffer.copies as _;
        buffer.header.msg_controllen = Controls::length(buffer.copies) as _;
        let entry = opcode::SendMsg::new(Fd(self.socket.as_raw_fd()), &raw const buffer.header);
        // SAFETY: the buffer, to which all of its pointers lead, is nobody else's until this has
        // completed, and stays (see `drop`).
        unsafe { self.push(&entry.build().user_data(index.into())) }
    }

    /// Sends what `write` writes into the first `room` bytes of a payload, or fewer, to `peer` from
    /// the address `from`: it answers no request, and takes no buffer of one.
    ///
    /// # Errors
    /// Why it is not sent. Where the ring fails, the next [`wait`](Self::wait) says so as well.
    pub fn send_to(
        &mut self,
        (peer, from): (libc::sockaddr_in6, libc::in6_pktinfo),
        room: usize,
        write: impl FnOnce(&mut [u8]) -> usize,
    ) -> Result<(), Unsent> {
        let index = *self.free.last().ok_or(Unsent::Busy)?;
        // SAFETY: within the memory; no operation has it, since it is free.
        let buffer = unsafe { self.buffer(index).as_mut() };
        let room = room.min(MAX_PAYLOAD);
        let length = write(&mut buffer.data[PAYLOAD..PAYLOAD + room]);
        if length > room {
            return Err(Unsent::TooLong);
        }
        let name = buffer.data[PEER..CONTROL].as_mut_ptr().cast::<libc::sockaddr_in6>();
        // SAFETY: as many bytes of the buffer lie there, before the payload.
        unsafe { name.write_unaligned(peer) };
        buffer.controls = Controls::new(from, length);
        buffer.left = 1;
        buffer.vectors[0].iov_len = length;
        self.send(index).map_err(|_| Unsent::Refused)?;
        self.free.pop();
        Ok(())
    }

    fn sent(&mut self, buffer: u64, result: i32) -> Result<Option<Completion>> {
        let all = self.count + self.kept;
        let Some(index) = u16::try_from(buffer).ok().filter(|index| *index < all) else {
            return Ok(Some(Completion::Invalid));
        };
        if index >= self.count {
            self.free.push(index);
            return Ok(Some(Completion::Unasked(outcome(result).map(drop))));
        }
        // SAFETY: within the memory; its operation has just completed.
        let buffer = unsafe { self.buffer(index).as_mut() };
        let mut copies = buffer.copies;
        if result == -libc::ECANCELED {
            copies += mem::take(&mut buffer.left); // they would not leave either
        }
        if buffer.left > 0 {
            self.send(index)?;
        } else {
            self.give(index);
        }
        Ok(Some(Completion::Sent(copies, outcome(result).map(drop))))
    }

    /// Gives the buffer of a request that is not answered back to be received into.
    pub fn put_back(&mut self, request: Received) -> Result<()> {
        ensure!(request.ring == self.number, ELSEWHERE);
        self.give(request.buffer);
        Ok(())
    }

    /// Receives no more. What was received has yet to be taken and answered.
    pub fn close(&mut self) -> Result<()> {
        self.closing = true;
        if self.receiving { self.cancel(CancelBuilder::user_data(RECEIVE)) } else { Ok(()) }
    }

    /// Gives up what has not completed.
    pub fn cancel_all(&mut self) -> Result<()> {
        self.cancel(CancelBuilder::any())
    }

    fn cancel(&mut self, which: CancelBuilder) -> Result<()> {
        // SAFETY: it points to nothing.
        unsafe { self.push(&opcode::AsyncCancel2::new(which).build().user_data(CANCEL)) }
    }

    /// Whether something has not completed yet.
    pub fn is_busy(&self) -> bool {
        self.pending > 0
    }

    /// Buffers that are neither where the kernel takes them from nor free: with a request, or in an
    /// operation.
    pub fn out(&self) -> u16 {
        self.out + self.kept - self.free.len() as u16
    }

    /// Puts an operation into the submission queue; one that is full is submitted before.
    ///
    /// # Safety
    /// What the operation points to must be valid, and not be touched, until it has completed.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> Result<()> {
        // SAFETY: as the caller promises.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            passed(self.ring.submit())?;
        }
        self.pending += 1;
        Ok(())
    }

    fn buffer(&self, index: u16) -> NonNull<Buffer> {
        // SAFETY: one of those that lie there, of which there is at least one.
        unsafe { self.buffers.add(index.min(self.count + self.kept - 1).into()) }
    }

    /// The byte of a buffer at `offset`, which is one of its own.
    fn place(&self, index: u16, offset: usize) -> NonNull<u8> {
        // SAFETY: within the buffer: `offset` is that of a field, or of a part of one.
        unsafe { self.buffer(index).cast::<u8>().add(offset) }
    }

    /// Writes what is the same for all replies from a buffer.
    fn prepare(&mut self, index: u16) {
        let data = offset_of!(Buffer, data);
        let (peer, payload) = (self.place(index, data + PEER), self.place(index, data + PAYLOAD));
        let vectors = self.place(index, offset_of!(Buffer, vectors));
        let controls = self.place(index, offset_of!(Buffer, controls));
        // SAFETY: within the memory, and not given to anybody yet; zeroed, which is a value of it.
        let buffer = unsafe { self.buffer(index).as_mut() };
        buffer.header.msg_name = peer.as_ptr().cast();
        buffer.header.msg_namelen = (CONTROL - PEER) as u32;
        buffer.header.msg_iov = vectors.as_ptr().cast();
        buffer.header.msg_control = controls.as_ptr().cast();
        buffer.vectors.iter_mut().for_each(|vector| vector.iov_base = payload.as_ptr().cast());
    }

    /// Puts a buffer into the buffer ring.
    fn give(&mut self, buffer: u16) {
        let address = self.place(buffer, offset_of!(Buffer, data));
        // SAFETY: masked, so one of the `count` that lie there.
        let mut entry = unsafe { self.entries.add((self.tail & (self.count - 1)).into()) };
        // SAFETY: the kernel does not read it before the tail says so.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address.as_ptr() as u64);
        entry.set_len(LENGTH as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        self.out -= 1;
        // SAFETY: the first entry, in which the tail lies.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: aligned, within the memory, and written by nobody else.
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
    }

    /// Ends all that is pending.
    fn quiet(&mut self) -> Result<()> {
        if !self.is_busy() {
            return Ok(());
        }
        self.closing = true;
        self.cancel_all()?;
        for _ in 0..PATIENCE {
            self.wait(DOZE)?;
            while let Some(completion) = self.ring.completion().next() {
                self.pending -= u32::from(!cqueue::more(completion.flags()));
            }
            if !self.is_busy() {
                return Ok(());
            }
        }
        Err(anyhow!("operations do not end"))
    }
}

impl Drop for DatagramRing {
    /// To close the ring does not end its operations at once: the kernel would write into memory
    /// that is something else by then.
    fn drop(&mut self) {
        if self.quiet().is_ok() {
            // SAFETY: nothing is pending or will be submitted, so that the kernel writes and reads
            // none of it; the pages of the buffer ring are its own too (it has pinned them). Nobody
            // uses `memory` after this. Where operations do not end, it stays.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// A ring that serves `count` buffers. It is not enabled: its thread is known only later.
fn set_up(count: u16) -> io::Result<IoUring> {
    let with = |choose: fn(&mut Builder) -> &mut Builder| {
        let mut builder = IoUring::builder();
        builder
            .setup_single_issuer()
            .setup_r_disabled()
            .setup_cqsize(2 * u32::from(count).max(SUBMISSIONS));
        choose(&mut builder).build(SUBMISSIONS)
    };
    // Work that was put off is done when the worker asks what has happened (Linux 6.1), or at least
    // does not interrupt it.
    match with(Builder::setup_defer_taskrun) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            with(Builder::setup_coop_taskrun)
        }
        other => other,
    }
}

/// What the kernel says of an operation: a number, or what went wrong.
fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// Whether a call of io_uring_enter brought anything, which may be for want of time. Other failures
/// are no reason to stop either.
fn passed(entered: io::Result<usize>) -> Result<bool> {
    let Err(error) = entered else { return Ok(true) };
    match error.raw_os_error() {
        Some(libc::ETIME) => Ok(false),
        // A signal; no memory, or no room for completions, at the moment.
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(true),
        _ => Err(error).context("cannot go on with io_uring"),
    }
}

/// Why there is no ring, and what to do about it.
fn explain(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => EngineError::NoUring(
            "this kernel has no io_uring (CONFIG_IO_URING), or a container hides it",
        )
        .into(),
        Some(libc::EPERM | libc::EACCES) => {
            EngineError::UringForbidden(denied::explain_io_uring()).into()
        }
        // Of what is asked for, the newest is IORING_SETUP_SINGLE_ISSUER, which is as old as
        // multishot recvmsg.
        Some(libc::EINVAL) => EngineError::NoUring(
            "the io_uring of this kernel is too old, it takes Linux 6.0 or newer",
        )
        .into(),
        Some(libc::ENOMEM) => EngineError::NoMemoryForUring.into(),
        Some(libc::EMFILE | libc::ENFILE) => {
            anyhow!("no file descriptor left for an io_uring: raise the limit (ulimit -n)")
        }
        _ => anyhow!("no io_uring: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{setsockopt, sockopt};
    use std::net::{SocketAddrV6, UdpSocket};

    /// Buffers for what answers no request.
    const KEPT: u16 = 3;

    /// A ring of `count` buffers, a client that asks it, and where.
    fn ring(count: u16) -> (DatagramRing, UdpSocket, SocketAddrV6) {
        let socket = || UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0)).unwrap();
        let (server, client) = (socket(), socket());
        setsockopt(&server, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let to = SocketAddrV6::new(Ipv6Addr::LOCALHOST, server.local_addr().unwrap().port(), 0, 0);
        let ring = DatagramRing::open(Arc::new(server.into()), count, KEPT).unwrap();
        ring.enable().unwrap();
        (ring, client, to)
    }

    /// Waits until `number` requests have come, or more.
    fn requests(ring: &mut DatagramRing, number: usize) -> Vec<Received> {
        let mut requests = Vec::new();
        let mut in_vain = 0;
        while requests.len() < number {
            in_vain += u32::from(!ring.wait(DOZE).unwrap());
            assert!(in_vain < 100, "{} of {number} came", requests.len());
            while let Some(event) = ring.next().unwrap() {
                match event {
                    Completion::Request(request) => requests.push(request),
                    Completion::Sent(_, result) => result.unwrap(),
                    Completion::Unasked(_) => panic!("nothing was sent unasked"),
                    Completion::Invalid => panic!("the kernel said what makes no sense"),
                }
            }
        }
        requests
    }

    fn payloads(client: &UdpSocket, number: usize) -> Vec<Vec<u8>> {
        let mut buffer = [0; 2 * MAX_PAYLOAD];
        let mut receive = || {
            let length = client.recv(&mut buffer).unwrap();
            buffer[..length].to_vec()
        };
        (0..number).map(|_| receive()).collect()
    }

    #[test]
    fn what_came_goes_back_from_its_buffer_as_often_as_is_asked() {
        let (mut ring, client, to) = ring(4);
        let me = client.local_addr().unwrap();
        for (size, replies) in [(0, 3), (1, 1), (32, 200), (MAX_PAYLOAD, 50)] {
            let payload: Vec<u8> = (0..size).map(|byte| byte as u8).collect();
            client.send_to(&payload, to).unwrap();
            let request = requests(&mut ring, 1).pop().unwrap();
            assert_eq!((request.source, request.source_port), (Ipv6Addr::LOCALHOST, me.port()));
            assert_eq!(request.asked.ipi6_addr.s6_addr, Ipv6Addr::LOCALHOST.octets());
            let from = request.asked;
            let length = request.length;
            ring.reply(request, from, length, replies).unwrap();
            let came = payloads_of(&mut ring, &client, replies);
            assert!(came.iter().all(|reply| *reply == payload));
            assert_eq!(ring.out(), 0);
        }
    }

    #[test]
    fn what_lies_in_the_buffer_may_be_changed_to_another_length() {
        let (mut ring, client, to) = ring(2);
        for (size, length) in [(0, MAX_PAYLOAD), (MAX_PAYLOAD, 1), (32, 33), (32, 0)] {
            client.send_to(&vec![7; size], to).unwrap();
            let mut request = requests(&mut ring, 1).pop().unwrap();
            let (payload, came) = ring.payload_mut(&mut request);
            assert_eq!((payload.len(), came), (MAX_PAYLOAD, size));
            payload[..length].fill(9);
            let from = request.asked;
            ring.reply(request, from, length, 3).unwrap();
            assert!(payloads_of(&mut ring, &client, 3).iter().all(|one| *one == vec![9; length]));
        }
    }

    /// Has the ring send until so many replies have left, and returns them.
    fn payloads_of(ring: &mut DatagramRing, client: &UdpSocket, replies: usize) -> Vec<Vec<u8>> {
        let mut left = replies;
        while left > 0 {
            ring.wait(DOZE).unwrap();
            while let Some(event) = ring.next().unwrap() {
                let Completion::Sent(copies, Ok(())) = event else {
                    panic!("only replies were to leave")
                };
                left -= copies;
            }
        }
        payloads(client, replies)
    }

    #[test]
    fn without_a_buffer_requests_wait_in_the_socket() {
        let (mut ring, client, to) = ring(2);
        for number in 0..9 {
            client.send_to(&[number], to).unwrap();
        }
        let mut waiting = requests(&mut ring, 2);
        assert_eq!(ring.out(), 2);
        while ring.wait(DOZE).unwrap() {
            assert!(ring.next().unwrap().is_none(), "there is nothing to receive into");
        }
        assert!(!ring.receiving);
        let mut came = 0;
        loop {
            came += waiting.len();
            for request in waiting {
                let (from, length) = (request.asked, request.length);
                ring.reply(request, from, length, 1).unwrap();
            }
            if came == 9 {
                break;
            }
            waiting = requests(&mut ring, 1);
        }
        ring.wait(DOZE).unwrap();
        assert_eq!(payloads(&client, 9).concat(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn one_that_is_longer_than_any_that_a_link_carries_is_cut() {
        let (mut ring, client, to) = ring(2);
        client.send_to(&[7; MAX_PAYLOAD + 100], to).unwrap();
        let request = requests(&mut ring, 1).pop().unwrap();
        assert_eq!(request.length, MAX_PAYLOAD);
        let (from, length) = (request.asked, request.length);
        ring.reply(request, from, length, 1).unwrap();
        ring.wait(DOZE).unwrap();
        assert_eq!(payloads(&client, 1), [[7; MAX_PAYLOAD]]);
    }

    #[test]
    fn what_nobody_asked_for_has_buffers_of_its_own() {
        let (mut ring, client, to) = ring(2);
        client.send_to(b"asked", to).unwrap();
        let request = requests(&mut ring, 1).pop().unwrap();
        let ends = (datagrams::peer(request.source, request.source_port, 0), request.asked);
        let send = |ring: &mut DatagramRing, byte, length: usize, room| {
            ring.send_to(ends, room, |payload| {
                assert_eq!(payload.len(), room.min(MAX_PAYLOAD));
                payload[..length.min(room)].fill(byte);
                length
            })
        };
        assert_eq!(send(&mut ring, 0, 101, 100), Err(Unsent::TooLong));
        for round in 0..3 {
            for (byte, length) in [(1, 0), (2, 100), (3, MAX_PAYLOAD)] {
                send(&mut ring, byte, length, length).unwrap();
            }
            assert_eq!(ring.send_to(ends, 9, |_| panic!("it writes")), Err(Unsent::Busy));
            assert_eq!(ring.out(), 1 + KEPT);
            let mut left = KEPT;
            while left > 0 {
                ring.wait(DOZE).unwrap();
                while let Some(event) = ring.next().unwrap() {
                    let Completion::Unasked(Ok(())) = event else { panic!("in round {round}") };
                    left -= 1;
                }
            }
            let expected = [vec![], vec![2; 100], vec![3; MAX_PAYLOAD]];
            assert_eq!(payloads(&client, 3), expected);
        }
        // The request lies where it was, and nothing is missing when it is answered.
        let (from, length) = (request.asked, request.length);
        ring.reply(request, from, length, 1).unwrap();
        assert_eq!(payloads_of(&mut ring, &client, 1), [b"asked"]);
        assert_eq!(ring.out(), 0);
    }

    #[test]
    fn a_request_that_came_by_another_ring_is_refused() {
        let ((mut ring, _, _), (mut other, client, to)) = (ring(2), ring(2));
        for byte in [1, 2] {
            client.send_to(&[byte], to).unwrap();
        }
        let mut came = requests(&mut other, 2);
        let (first, second) = (came.remove(0), came.remove(0));
        let from = first.asked;
        assert_eq!(ring.reply(first, from, 32, 1).unwrap_err().to_string(), ELSEWHERE);
        assert_eq!(ring.put_back(second).unwrap_err().to_string(), ELSEWHERE);
        assert_eq!((ring.pending, ring.out()), (0, 0));
    }

    #[test]
    fn it_closes_with_nothing_pending() {
        let (mut ring, client, to) = ring(2);
        client.send_to(b"asked", to).unwrap();
        let request = requests(&mut ring, 1).pop().unwrap();
        ring.close().unwrap();
        while ring.is_busy() {
            ring.wait(DOZE).unwrap();
            assert!(ring.next().unwrap().is_none());
        }
        assert!(!ring.receiving && ring.out() == 1);
        ring.put_back(request).unwrap();
        assert_eq!(ring.out(), 0);
    }

    #[test]
    fn it_ends_in_the_midst_of_it() {
        let (mut ring, client, to) = ring(2);
        client.send_to(b"asked", to).unwrap();
        let request = requests(&mut ring, 1).pop().unwrap();
        let from = request.asked;
        ring.reply(request, from, 32, 255).unwrap();
        assert!(ring.is_busy());
        ring.quiet().unwrap();
        assert!(!ring.is_busy());
    }

    #[test]
    fn each_reason_why_there_is_no_ring_has_its_cure() {
        let said = |number| explain(io::Error::from_raw_os_error(number)).to_string();
        assert!(said(libc::EPERM).contains("io_uring_disabled"));
        assert!(said(libc::ENOSYS).contains("CONFIG_IO_URING"));
        assert!(said(libc::EINVAL).contains("Linux 6.0"));
        assert!(said(libc::ENOMEM).contains("ulimit -l"));
        assert!(said(libc::EMFILE).contains("ulimit -n"));
    }
}
