//! Reception of every multicast packet on the link, while it is asked for.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::net::denied;
use crate::net::netlink::Link;
use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A card delivers only the multicast that it was told to, and nobody tells it of the
/// solicited-node groups of addresses that the kernel does not have. While this lives it delivers
/// all; the kernel takes that back when the process ends, however it ends.
#[derive(Debug)]
pub struct AllMulticast(#[allow(dead_code)] Option<OwnedFd>); // held, not used

impl AllMulticast {
    /// Asks it of the interface, in the namespace of the calling thread. Of one that is told to
    /// receive all anyway (`ip link set allmulticast on`) it need not be asked, and only where it
    /// cannot be it is not: somebody may tell it otherwise.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, and when there is no such interface.
    pub fn on(link: &Link) -> Result<Self> {
        let index = link.index;
        // Protocol 0: the socket itself receives nothing.
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None);
        if socket.is_err() && link.all_multicast {
            return Ok(Self(None));
        }
        let socket = socket.map_err(|error| {
            let why = denied::no_packet_socket(error);
            anyhow!("{why}; 'ip link set {} allmulticast on' goes without", link.name)
        })?;
        let request = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_ALLMULTI as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        let length = size_of_val(&request) as libc::socklen_t;
        // SAFETY: the request is valid for reads of its length.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const request).cast(),
                length,
            )
        };
        if result == 0 {
            Ok(Self(Some(socket)))
        } else {
            Err(io::Error::last_os_error()).context("cannot have all multicast received")
        }
    }
}
