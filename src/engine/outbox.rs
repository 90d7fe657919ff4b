//! Sending without being asked, from a UDP socket; workers on rings have frames for it (worker).

use std::io::IoSlice;
use std::net::SocketAddrV6;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn6, sendmsg};

use super::statistics::Tally;
use super::udp::DOZE;
use crate::policy::Handler;
use crate::service::{Outbox, Peer, Unsent};

/// The shortest wait for a descriptor: poll(2) counts milliseconds.
const SHORTEST: Duration = Duration::from_millis(1);

/// Waits until there is something to read from `fd`, or until a service wants its next turn, in
/// `wait`; returns whether there is.
pub(super) fn readable(fd: impl AsFd, wait: Duration) -> Result<bool> {
    let limit = PollTimeout::try_from(wait.clamp(SHORTEST, DOZE)).unwrap_or(PollTimeout::ZERO);
    match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], limit) {
        Ok(count) => Ok(count > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error).context("cannot wait for requests"),
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
        if peer.macs.is_some() {
            return Err(Unsent::OtherWorker);
        }
        if !self.handler.may_speak_from(peer.asked) {
            return Err(Unsent::NotLive);
        }
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
