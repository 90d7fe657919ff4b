//! Asking by a UDP socket, for hosts without XDP and as a check on the rings: many datagrams to a system call, and the kernel's
//! own timestamp of each that arrives, so that a reply is not charged for waiting in the socket.
//!
//! The kernel needs a neighbour for each address that is on the link. Its table holds 1,024 (gc_thresh3): more addresses need a
//! larger table, or a route by way of the server.

use std::io;
use std::mem;
use std::net::{Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::generator::{BATCH, Clock, LoadConfig, Transport, Way};
use super::ledger::Ledger;
use crate::wire::MAX_PAYLOAD;

/// Bytes of memory that replies may take which wait for the generator: four times what the socket server has for requests, since
/// ten replies come back to each.
const RECEIVE_BUFFER: usize = 16 << 20;

/// Datagrams that one system call sends or receives. The fields of each are at the same index.
struct Batch {
    data: Box<[[u8; MAX_PAYLOAD]; BATCH]>,
    lengths: [usize; BATCH],
    peers: [libc::sockaddr_in6; BATCH],
    controls: [Control; BATCH],
}

/// The one control message that is asked for, laid out as cmsg(3) has it: a header and, aligned as it is, a timestamp.
#[derive(Clone, Copy)]
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    stamp: libc::timespec,
}

const NO_CONTROL: Control = Control {
    header: libc::cmsghdr { cmsg_len: 0, cmsg_level: 0, cmsg_type: 0 },
    stamp: libc::timespec { tv_sec: 0, tv_nsec: 0 },
};

impl Batch {
    fn new() -> Self {
        let nobody = libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as u16,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: [0; 16] },
            sin6_scope_id: 0,
        };
        Self {
            data: Box::new([[0; MAX_PAYLOAD]; BATCH]),
            lengths: [0; BATCH],
            peers: [nobody; BATCH],
            controls: [NO_CONTROL; BATCH],
        }
    }

    /// Calls `with` with the kernel's view of the first `count` datagrams, those of `lengths` bytes.
    fn with_headers<T>(&mut self, count: usize, with: impl FnOnce(&mut [libc::mmsghdr]) -> T) -> T {
        // SAFETY: integers and pointers, for which zeros are a value.
        let mut vectors: [libc::iovec; BATCH] = unsafe { mem::zeroed() };
        // SAFETY: as above.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        for (index, header) in headers.iter_mut().enumerate() {
            vectors[index].iov_base = self.data[index].as_mut_ptr().cast();
            vectors[index].iov_len = self.lengths[index];
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut self.peers[index]).cast();
            header.msg_namelen = size_of::<libc::sockaddr_in6>() as u32;
            header.msg_iov = &raw mut vectors[index];
            header.msg_iovlen = 1;
        }
        with(&mut headers[..count.min(BATCH)])
    }

    /// Sends the first `count` and returns how many the kernel took.
    fn send(&mut self, socket: &UdpSocket, count: usize) -> io::Result<usize> {
        let sent = self.with_headers(count, |headers| {
            let count = headers.len() as u32;
            // SAFETY: the headers, and all that they point to, are valid for reads until the call returns.
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) }
        });
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    /// Receives what there is and returns how many datagrams that were.
    fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.lengths = [MAX_PAYLOAD; BATCH];
        self.controls = [NO_CONTROL; BATCH];
        let controls = (&raw mut self.controls).cast::<Control>();
        let mut lengths = [0; BATCH];
        let received = self.with_headers(BATCH, |headers| {
            for (index, header) in headers.iter_mut().enumerate() {
                header.msg_hdr.msg_control = controls.wrapping_add(index).cast();
                header.msg_hdr.msg_controllen = size_of::<Control>() as _;
            }
            let count = headers.len() as u32;
            let none = std::ptr::null_mut();
            // SAFETY: the headers, and all that they point to, are valid for reads and writes until the call returns.
            let received = unsafe {
                libc::recvmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT, none)
            };
            for (length, header) in lengths.iter_mut().zip(headers.iter()) {
                *length = header.msg_len as usize;
            }
            received
        });
        self.lengths = lengths;
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// The address and port that datagram `index` came from.
    fn peer(&self, index: usize) -> (Ipv6Addr, u16) {
        let peer = &self.peers[index];
        (Ipv6Addr::from(peer.sin6_addr.s6_addr), u16::from_be(peer.sin6_port))
    }

    /// When datagram `index` arrived, in seconds and nanoseconds; `None` where the kernel does not say.
    fn arrived(&self, index: usize) -> Option<(i64, i64)> {
        let Control { header, stamp } = &self.controls[index];
        let is_stamp = (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS);
        is_stamp.then_some((stamp.tv_sec, stamp.tv_nsec))
    }
}

/// Requests and replies by a socket.
pub(super) struct SocketTransport {
    socket: UdpSocket,
    scope: u32,
    port: u16,
    payload: usize,
    outgoing: Batch,
    incoming: Batch,
}

impl SocketTransport {
    /// Has the kernel stamp what arrives, and keep much of it.
    pub fn open(way: Way, config: &LoadConfig) -> Result<Self> {
        let socket = way.socket;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("the kernel gives no timestamps")?;
        // Beyond net.core.rmem_max needs CAP_NET_ADMIN; without it, as much as is allowed.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        let (scope, port, payload) = (way.link.index, config.port, config.payload);
        Ok(Self { socket, scope, port, payload, outgoing: Batch::new(), incoming: Batch::new() })
    }
}

impl Transport for SocketTransport {
    fn send(&mut self, ledger: &Ledger, sent: u64, due: u64) -> Result<u64> {
        let count = due.saturating_sub(sent).min(BATCH as u64) as usize;
        if count == 0 {
            return Ok(sent);
        }
        for (index, sequence) in (sent..).take(count).enumerate() {
            ledger.stamp(sequence).write(&mut self.outgoing.data[index][..self.payload]);
            self.outgoing.lengths[index] = self.payload;
            let peer = &mut self.outgoing.peers[index];
            peer.sin6_addr.s6_addr = ledger.destination(sequence).octets();
            peer.sin6_port = self.port.to_be();
            peer.sin6_scope_id = self.scope;
        }
        match self.outgoing.send(&self.socket, count) {
            Ok(taken) => Ok(sent + taken as u64),
            // No room at the moment: they are sent when there is, and are late then.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR)) =>
            {
                Ok(sent)
            }
            Err(error) => Err(error).context("cannot send"),
        }
    }

    fn receive(&mut self, ledger: &mut Ledger, clock: &Clock, sent: u64) -> Result<bool> {
        let count = match self.incoming.receive(&self.socket) {
            Ok(count) => count,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                return Ok(false);
            }
            Err(error) => return Err(error).context("cannot receive"),
        };
        let now = clock.now();
        for index in 0..count {
            let (source, port) = self.incoming.peer(index);
            let time = self.incoming.arrived(index).map_or(now, |(seconds, nanos)| clock.at(seconds, nanos));
            if port == self.port {
                let payload = &self.incoming.data[index][..self.incoming.lengths[index].min(MAX_PAYLOAD)];
                ledger.reply(source, payload, time, sent);
            } else {
                ledger.damaged();
            }
        }
        Ok(count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddrV6;

    #[test]
    fn a_batch_leaves_and_arrives_with_its_senders_and_times() {
        let socket = || UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::LOCALHOST, 0, 0, 0)).unwrap();
        let (from, to) = (socket(), socket());
        let port = |socket: &UdpSocket| socket.local_addr().unwrap().port();
        setsockopt(&to, sockopt::ReceiveTimestampns, &true).unwrap();
        let mut outgoing = Batch::new();
        for index in 0..10 {
            outgoing.data[index][..index].fill(index as u8);
            outgoing.lengths[index] = index;
            outgoing.peers[index].sin6_addr.s6_addr = Ipv6Addr::LOCALHOST.octets();
            outgoing.peers[index].sin6_port = port(&to).to_be();
        }
        assert_eq!(outgoing.send(&from, 10).unwrap(), 10);
        // Loopback delivers before the call returns.
        let mut incoming = Batch::new();
        assert_eq!(incoming.receive(&to).unwrap(), 10);
        for index in 0..10 {
            assert_eq!(incoming.peer(index), (Ipv6Addr::LOCALHOST, port(&from)));
            assert_eq!(incoming.data[index][..incoming.lengths[index]], vec![index as u8; index]);
            assert!(incoming.arrived(index).is_some_and(|(seconds, _)| seconds > 1_700_000_000));
        }
        let none = incoming.receive(&to).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }
}
