//! Sending without being asked: who may be sent to, whole frames, and what sends from a UDP socket
//! and from a packet socket. Workers on AF_XDP rings have frames kept for it (worker), and those on
//! an io_uring buffers (uring).

use std::io::IoSlice;
use std::net::SocketAddrV6;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn6, sendmsg};

use super::LinkAddress;
use super::statistics::Tally;
use super::udp::DOZE;
use crate::policy::Handler;
use crate::service::{Outbox, Peer, Unsent};
use crate::wire::{self, Ends, OVERHEAD};

/// The shortest wait for a descriptor: poll(2) counts milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

/// How long a worker with nothing to do sleeps whose service wants its next turn in `wait`.
pub(super) fn nap(wait: Duration) -> Duration {
    wait.clamp(SHORTEST, DOZE)
}

/// Waits until there is something to read from `fd`, or until a service wants its next turn, in
/// `wait`; returns whether there is.
pub(super) fn readable(fd: impl AsFd, wait: Duration) -> Result<bool> {
    let limit = PollTimeout::try_from(nap(wait)).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], limit) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("cannot wait for requests"),
    }
}

/// Whether a UDP socket may send to `peer`.
///
/// # Errors
/// Why not.
pub(super) fn by_socket(handler: &Handler, peer: &Peer) -> Result<(), Unsent> {
    match peer.mac {
        Some(_) => Err(Unsent::OtherWorker),
        None if !handler.may_speak_from(peer.asked) => Err(Unsent::NotLive),
        None => Ok(()),
    }
}

/// Between whom a frame to `peer` goes, from the Ethernet address that the interface has by now.
///
/// # Errors
/// Why none may go.
pub(super) fn ends(handler: &Handler, peer: &Peer, own: &LinkAddress) -> Result<Ends, Unsent> {
    let mac = peer.mac.ok_or(Unsent::OtherWorker)?;
    if !handler.may_speak_from(peer.asked) {
        return Err(Unsent::NotLive);
    }
    Ok(Ends {
        macs: [mac, own.get()],
        source: (peer.asked, handler.port()),
        destination: peer.source,
    })
}

/// Has `write` write a payload into `frame`, puts headers before it, and returns the frame's
/// length.
///
/// # Errors
/// When it does not fit.
pub(super) fn compose(
    ends: &Ends,
    frame: &mut [u8],
    write: impl FnOnce(&mut [u8]) -> usize,
) -> Result<usize, Unsent> {
    let length = frame.get_mut(OVERHEAD..).map(write).ok_or(Unsent::TooLong)?;
    wire::emit(ends, frame, length).ok_or(Unsent::TooLong)
}

/// What a worker hands whole frames over by.
pub(super) trait FrameSender {
    /// Whether there is room for one.
    fn has_room(&mut self) -> bool;

    /// Hands `frame` over, and returns whether the kernel took it.
    fn hand_over(&mut self, frame: &[u8]) -> bool;
}

/// What a service sends by, from a packet socket.
pub(super) struct FrameOutbox<'a, F> {
    pub handler: &'a Handler,
    /// The interface's Ethernet address.
    pub own: &'a LinkAddress,
    /// Room for one frame, as large as the link allows.
    pub frame: &'a mut [u8],
    pub tally: &'a mut Tally,
    pub sender: F,
}

impl<F: FrameSender> Outbox for FrameOutbox<'_, F> {
    fn send(&mut self, peer: &Peer, write: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Unsent> {
        let ends = ends(self.handler, peer, self.own)?;
        if !self.sender.has_room() {
            return Err(Unsent::Busy);
        }
        let length = compose(&ends, self.frame, write)?;
        if !self.sender.hand_over(&self.frame[..length]) {
            self.tally.unsent += 1;
            return Err(Unsent::Refused);
        }
        self.tally.unasked += 1;
        Ok(())
    }
}

/// What a service sends by, from the socket that requests come to.
pub(super) struct UdpOutbox<'a> {
    pub handler: &'a Handler,
    pub socket: &'a OwnedFd,
    /// Index of the interface.
    pub interface: u32,
    /// Room for one datagram, as large as the link allows.
    pub buffer: &'a mut [u8],
    pub tally: &'a mut Tally,
}

impl Outbox for UdpOutbox<'_> {
    fn send(&mut self, peer: &Peer, write: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Unsent> {
        by_socket(self.handler, peer)?;
        let length = write(self.buffer);
        let data = [IoSlice::new(self.buffer.get(..length).ok_or(Unsent::TooLong)?)];
        let (address, port) = peer.source;
        let to = SockaddrIn6::from(SocketAddrV6::new(address, port, 0, self.interface));
        let from = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: peer.asked.octets() },
            ipi6_ifindex: self.interface as _,
        };
        let control = [ControlMessage::Ipv6PacketInfo(&from)];
        // It may wait for room, as a reply does.
        match sendmsg(self.socket.as_raw_fd(), &data, &control, MsgFlags::empty(), Some(&to)) {
            Ok(_) => {
                self.tally.unasked += 1;
                Ok(())
            }
            Err(_) => {
                self.tally.unsent += 1;
                Err(Unsent::Refused)
            }
        }
    }
}
