//! Batched UDP datagrams: recvmmsg(2) and sendmmsg(2), with control messages. The engines and the
//! generator share it. It holds the `unsafe` of those calls, and the control message layout that
//! io_uring uses too.

use std::io;
use std::mem;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd};

use crate::wire::MAX_PAYLOAD;

/// The most datagrams that one call receives.
pub(crate) const BATCH: usize = 64;

/// The most messages that one call sends (UIO_MAXIOV).
pub(crate) const MAX_MESSAGES: usize = 1024;

/// The contents of a control message, or the value of a socket option.
///
/// # Safety
/// Every bit pattern is a valid value, and no field is a pointer.
pub(crate) unsafe trait Plain: Copy {
    const ZERO: Self;
}

// SAFETY: integers.
unsafe impl Plain for libc::timespec {
    const ZERO: Self = Self { tv_sec: 0, tv_nsec: 0 };
}

// SAFETY: bytes and an integer.
unsafe impl Plain for libc::in6_pktinfo {
    const ZERO: Self = Self { ipi6_addr: libc::in6_addr { s6_addr: [0; 16] }, ipi6_ifindex: 0 };
}

// SAFETY: an integer.
unsafe impl Plain for u16 {
    const ZERO: Self = 0;
}

// SAFETY: integers and bytes.
unsafe impl Plain for libc::sockaddr_in6 {
    const ZERO: Self = NOBODY;
}

// SAFETY: integers, and contents for which every bit pattern is valid.
unsafe impl<T: Plain> Plain for Control<T> {
    const ZERO: Self = Self::NONE;
}

/// Reads a value from the start of `bytes`, at any alignment; `None` if there are too few bytes.
pub(crate) fn read<T: Plain>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, and every bit pattern is a valid value.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A control message as in cmsg(3): a header, then the contents at the header's alignment.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control<T> {
    header: libc::cmsghdr,
    value: T,
}

impl<T: Plain> Control<T> {
    const NONE: Self =
        Self { header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 }, value: T::ZERO };

    fn new(level: i32, kind: i32, value: T) -> Self {
        let length = size_of::<libc::cmsghdr>() + size_of::<T>();
        Self {
            header: libc::cmsghdr { cmsg_len: length as _, cmsg_level: level, cmsg_type: kind },
            value,
        }
    }

    /// The contents, if the message has this level and kind.
    pub fn value(&self, level: i32, kind: i32) -> Option<T> {
        ((self.header.cmsg_level, self.header.cmsg_type) == (level, kind)).then_some(self.value)
    }
}

const NOBODY: libc::sockaddr_in6 = libc::sockaddr_in6 {
    sin6_family: libc::AF_INET6 as u16,
    sin6_port: 0,
    sin6_flowinfo: 0,
    sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
    sin6_scope_id: 0,
};

/// A socket address on the link with index `scope`.
pub(crate) fn peer(address: Ipv6Addr, port: u16, scope: u32) -> libc::sockaddr_in6 {
    let sin6_addr = libc::in6_addr { s6_addr: address.octets() };
    libc::sockaddr_in6 { sin6_port: port.to_be(), sin6_addr, sin6_scope_id: scope, ..NOBODY }
}

/// The address and port of a socket address.
pub(crate) fn source(peer: &libc::sockaddr_in6) -> (Ipv6Addr, u16) {
    (Ipv6Addr::from(peer.sin6_addr.s6_addr), u16::from_be(peer.sin6_port))
}

/// Received datagrams, each with one control message. All fields of a datagram have the same index.
pub(crate) struct Incoming<T> {
    data: Box<[[u8; MAX_PAYLOAD]; BATCH]>,
    lengths: [usize; BATCH],
    peers: [libc::sockaddr_in6; BATCH],
    controls: [Control<T>; BATCH],
}

impl<T: Plain> Incoming<T> {
    pub fn new() -> Self {
        Self {
            data: Box::new([[0; MAX_PAYLOAD]; BATCH]),
            lengths: [0; BATCH],
            peers: [NOBODY; BATCH],
            controls: [Control::NONE; BATCH],
        }
    }

    /// Receives up to [`BATCH`] datagrams and returns their number.
    pub fn receive(&mut self, socket: &impl AsFd, flags: i32) -> io::Result<usize> {
        // SAFETY: integers and pointers, for which zero is valid.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for (index, header) in headers.iter_mut().enumerate() {
            vectors[index].iov_base = self.data[index].as_mut_ptr().cast();
            vectors[index].iov_len = MAX_PAYLOAD;
            self.controls[index] = Control::NONE;
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut self.peers[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut vectors[index];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_controllen = size_of::<Control<T>>() as _;
        }
        let socket = socket.as_fd().as_raw_fd();
        let none = std::ptr::null_mut();
        // SAFETY: the headers and everything they point to stay valid for reads and writes until
        // the call returns.
        let received =
            unsafe { libc::recvmmsg(socket, headers.as_mut_ptr(), BATCH as u32, flags as _, none) };
        for (length, header) in self.lengths.iter_mut().zip(&headers) {
            *length = header.msg_len as usize;
        }
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The payload of datagram `index`.
    pub fn payload(&self, index: usize) -> &[u8] {
        &self.data[index][..self.lengths[index].min(MAX_PAYLOAD)]
    }

    /// The whole buffer of datagram `index`, and the length of its payload.
    pub fn payload_mut(&mut self, index: usize) -> (&mut [u8], usize) {
        (&mut self.data[index], self.lengths[index].min(MAX_PAYLOAD))
    }

    /// Sets the payload length of datagram `index`, for a reply written into its buffer.
    pub fn set_length(&mut self, index: usize, length: usize) {
        self.lengths[index] = length;
    }

    /// The sender of datagram `index`, as a socket address to reply to.
    pub fn peer(&self, index: usize) -> &libc::sockaddr_in6 {
        &self.peers[index]
    }

    /// The sender's address and port.
    pub fn source(&self, index: usize) -> (Ipv6Addr, u16) {
        source(&self.peers[index])
    }

    /// The control message of datagram `index`, if it has this level and kind.
    pub fn control(&self, index: usize, level: i32, kind: i32) -> Option<T> {
        self.controls[index].value(level, kind)
    }
}

/// One datagram to send, or several with the same payload.
#[derive(Clone, Copy)]
pub(crate) struct Message<'a> {
    /// The payload of each datagram.
    pub payload: &'a [u8],
    /// The destination.
    pub peer: libc::sockaddr_in6,
    /// The source address; the kernel chooses if there is none.
    pub source: Option<libc::in6_pktinfo>,
    /// Number of datagrams, at least 1. Several go out as one large datagram that the kernel or the
    /// card splits (UDP_SEGMENT).
    pub copies: usize,
}

/// The control messages of one [`Message`]: its source address and its segment size.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Controls {
    source: Control<libc::in6_pktinfo>,
    segment: Control<u16>,
}

impl Controls {
    /// For datagrams of `length` bytes each, from `source`.
    pub fn new(source: libc::in6_pktinfo, length: usize) -> Self {
        Self {
            source: Control::new(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, source),
            segment: Control::new(libc::SOL_UDP, libc::UDP_SEGMENT, length as u16),
        }
    }

    /// How many of these bytes to pass for `copies` datagrams: a single one needs no segment size.
    pub fn length(copies: usize) -> usize {
        if copies == 1 { size_of::<Control<libc::in6_pktinfo>>() } else { size_of::<Self>() }
    }
}

/// Buffers for sendmmsg(2), reused so that a warm one never allocates.
#[derive(Default)]
pub(crate) struct Outgoing {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    peers: Vec<libc::sockaddr_in6>,
    controls: Vec<Controls>,
}

// SAFETY: each `send` rewrites the pointers, and nothing else uses them.
unsafe impl Send for Outgoing {}

impl Outgoing {
    /// Sends at most the first [`MAX_MESSAGES`] of `messages` and returns how many the kernel
    /// accepted.
    pub fn send(
        &mut self,
        socket: &impl AsFd,
        messages: &[Message],
        flags: i32,
    ) -> io::Result<usize> {
        let messages = &messages[..messages.len().min(MAX_MESSAGES)];
        self.headers.clear();
        self.vectors.clear();
        self.peers.clear();
        self.controls.clear();
        for message in messages {
            let base = message.payload.as_ptr().cast_mut().cast();
            let vector = libc::iovec { iov_base: base, iov_len: message.payload.len() };
            self.vectors.extend(std::iter::repeat_n(vector, message.copies));
            self.peers.push(message.peer);
            let source = message.source.unwrap_or(libc::in6_pktinfo::ZERO);
            self.controls.push(Controls::new(source, message.payload.len()));
        }
        // The vectors no longer grow, so the headers may point into them.
        let mut first = 0;
        for (index, message) in messages.iter().enumerate() {
            // SAFETY: integers and pointers, for which zero is valid.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = (&raw mut self.peers[index]).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_hdr.msg_iov = self.vectors[first..].as_mut_ptr();
            header.msg_hdr.msg_iovlen = message.copies as _;
            let length = message.source.map_or(0, |_| Controls::length(message.copies));
            if length > 0 {
                header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
                header.msg_hdr.msg_controllen = length as _;
            }
            self.headers.push(header);
            first += message.copies;
        }
        let (socket, count) = (socket.as_fd().as_raw_fd(), self.headers.len() as u32);
        // SAFETY: the headers and everything they point to stay valid for reads until the call
        // returns.
        let sent = unsafe { libc::sendmmsg(socket, self.headers.as_mut_ptr(), count, flags as _) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{setsockopt, sockopt};
    use std::net::{SocketAddrV6, UdpSocket};

    fn socket() -> (UdpSocket, u16) {
        let socket = UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, port)
    }

    #[test]
    fn a_batch_leaves_and_arrives_with_its_senders_and_times() {
        let ((from, from_port), (to, to_port)) = (socket(), socket());
        setsockopt(&to, sockopt::ReceiveTimestampns, &true).unwrap();
        let payloads: Vec<Vec<u8>> = (0..10).map(|index| vec![index; usize::from(index)]).collect();
        let messages: Vec<_> = payloads
            .iter()
            .map(|payload| Message {
                payload,
                peer: peer(Ipv6Addr::LOCALHOST, to_port, 0),
                source: None,
                copies: 1,
            })
            .collect();
        assert_eq!(Outgoing::default().send(&from, &messages, 0).unwrap(), 10);
        // Loopback delivers before the call returns.
        let mut incoming = Incoming::<libc::timespec>::new();
        assert_eq!(incoming.receive(&to, libc::MSG_DONTWAIT).unwrap(), 10);
        for (index, payload) in payloads.iter().enumerate() {
            assert_eq!(incoming.source(index), (Ipv6Addr::LOCALHOST, from_port));
            assert_eq!(incoming.payload(index), payload);
            let stamp = incoming.control(index, libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS).unwrap();
            assert!(stamp.tv_sec > 1_700_000_000);
            assert!(incoming.control(index, libc::SOL_SOCKET, libc::SCM_RIGHTS).is_none());
        }
        let none = incoming.receive(&to, libc::MSG_DONTWAIT).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn copies_arrive_one_by_one_from_the_address_that_was_named() {
        let ((from, _), (to, to_port)) = (socket(), socket());
        setsockopt(&to, sockopt::Ipv6RecvPacketInfo, &true).unwrap();
        let source = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: Ipv6Addr::LOCALHOST.octets() },
            ipi6_ifindex: 0,
        };
        let to_it = peer(Ipv6Addr::LOCALHOST, to_port, 0);
        let message =
            |payload, copies| Message { payload, peer: to_it, source: Some(source), copies };
        let messages = [message(b"ten times", 10), message(b"", 1), message(b"twice", 2)];
        assert_eq!(Outgoing::default().send(&from, &messages, 0).unwrap(), 3);
        let mut incoming = Incoming::<libc::in6_pktinfo>::new();
        assert_eq!(incoming.receive(&to, libc::MSG_DONTWAIT).unwrap(), 13);
        let payloads: Vec<_> = (0..13).map(|index| incoming.payload(index)).collect();
        assert!(payloads[..10].iter().all(|payload| payload == b"ten times"));
        assert_eq!(payloads[10..], [b"".as_slice(), b"twice", b"twice"]);
        let asked = incoming.control(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO).unwrap();
        assert_eq!(asked.ipi6_addr.s6_addr, Ipv6Addr::LOCALHOST.octets());
    }
}
