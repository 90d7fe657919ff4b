//! Raw frames on the link: sends frames unchanged, and captures everything that arrives from the
//! other end.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt,
};
use sixhop::lab::Side;

use super::server::PATIENCE;
use super::{TestLab, link};

/// An Ethernet frame with a datagram from the first of `macs` to the second, hop limit 33.
pub fn udp_frame(
    macs: [[u8; 6]; 2],
    source: Ipv6Addr,
    destination: Ipv6Addr,
    ports: (u16, u16),
    payload: &[u8],
) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs[0], macs[1])
        .ipv6(source.octets(), destination.octets(), 33)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .expect("a vector grows");
    frame
}

/// A packet socket (packet(7)) on one interface, in the namespace that created it.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Captures everything from now on, with a 64 MiB receive buffer.
    pub fn on(index: u32) -> Result<Self> {
        Self::bound(index, libc::ETH_P_ALL as u16)
    }

    /// The same at one end of `lab`.
    pub fn at(lab: &TestLab, side: Side) -> Result<Self> {
        let index = link(lab, side)?.index;
        lab.run_in(side, || Self::on(index))
    }

    /// Only sends; captures nothing.
    pub fn on_deaf(index: u32) -> Result<Self> {
        Self::bound(index, 0)
    }

    fn bound(index: u32, protocol: u16) -> Result<Self> {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )?;
        setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
        set_option(&socket, libc::PACKET_IGNORE_OUTGOING, &1i32)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol.to_be(),
            sll_ifindex: index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is valid for reads of its length.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        ensure!(bound == 0, io::Error::last_os_error());
        Ok(Self(socket))
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            match send(self.0.as_raw_fd(), frame, MsgFlags::empty()) {
                // The veth's ring stays full until the other end gets a processor; the frame was
                // dropped.
                Err(Errno::ENOBUFS) if Instant::now() < give_up => {
                    thread::sleep(Duration::from_millis(1));
                }
                sent => return sent.map(drop).context("cannot send a frame"),
            }
        }
    }

    /// Waits for the next frame, then takes everything that has arrived. Fails if nothing arrives
    /// or the capture missed a frame.
    pub fn receive(&self) -> Result<Vec<Vec<u8>>> {
        let patience = PollTimeout::try_from(PATIENCE)?;
        let ready = poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], patience)?;
        ensure!(ready == 1, "no frame came");
        self.drain()
    }

    /// Everything that arrived since the last call. Fails if the capture missed a frame.
    pub fn drain(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            frames.push(buffer[..length].to_vec());
        }
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: `statistics` is valid for writes of `length` bytes.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        ensure!(
            result == 0 && statistics.tp_drops == 0,
            "the capture missed {} frames",
            statistics.tp_drops
        );
        Ok(frames)
    }
}

fn set_option<T>(socket: &OwnedFd, option: i32, value: &T) -> Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for reads of its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const *value).cast(),
            length,
        )
    };
    ensure!(result == 0, io::Error::last_os_error());
    Ok(())
}

/// Leaves in `frame`, UDP directly over IPv6, the checksum that a kernel leaves for the card to
/// finish: the sum over the pseudo-header (RFC 8200 section 8.1).
pub fn leave_checksum_unfinished(frame: &mut [u8]) {
    let words = frame[22..54].chunks(2).chain([&frame[58..60]]);
    let mut sum = words.map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>() + 17;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[60..62].copy_from_slice(&(sum as u16).to_be_bytes());
}
