//! All-multicast reception on an interface, while it is needed.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::net::denied;
use crate::net::netlink::Link;
use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// A card delivers only multicast groups that it was told about, and the kernel does not tell it
/// about solicited-node groups of addresses that the kernel does not own. While this value lives,
/// the card delivers all multicast. The kernel undoes this when the process ends, however it ends.
#[derive(Debug)]
pub struct AllMulticast(#[allow(dead_code)] Option<OwnedFd>); // only held

impl AllMulticast {
    /// Turns on all-multicast reception of the interface, in the namespace of the calling thread.
    /// Requests it even if it is already on (`ip link set allmulticast on`), because somebody may
    /// turn it off. Only if the request is impossible, being on is enough.
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
            anyhow!(
                "{why}; or run 'ip link set {} allmulticast on', which needs no socket",
                link.name
            )
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
            Err(io::Error::last_os_error()).context("cannot turn on all-multicast reception")
        }
    }
}
