//! SIOCSIFADDR and SIOCDIFADDR: the interface older than netlink, which ifconfig uses.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::kernel::{Channel, NotAdded};
use crate::net::netlink::{self, KernelError, Link};

/// linux/sockios.h.
pub(super) const SIOCSIFADDR: libc::Ioctl = 0x8916;
const SIOCDIFADDR: libc::Ioctl = 0x8936;

/// The ioctl calls.
pub(super) trait Calls: Send {
    fn call(&self, request: libc::Ioctl, address: Ipv6Addr) -> Result<(), Errno>;
}

/// The socket for the calls, and the interface.
pub(super) struct IoctlSocket {
    socket: OwnedFd,
    index: i32,
}

/// Makes one call for each address.
pub(super) struct Ioctl<C = IoctlSocket> {
    calls: C,
    index: u32,
    name: String,
}

impl Ioctl {
    pub fn new(link: &Link) -> Result<Self> {
        let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let socket = socket.context("no IPv6 socket")?;
        let calls = IoctlSocket { socket, index: i32::try_from(link.index)? };
        Ok(Self::over(calls, link.index, &link.name))
    }
}

impl<C> Ioctl<C> {
    pub(super) fn over(calls: C, index: u32, name: &str) -> Self {
        Self { calls, index, name: name.to_owned() }
    }

    /// The interface's current name.
    fn name(&self) -> String {
        netlink::name_of(self.index, &self.name)
    }
}

impl Calls for IoctlSocket {
    fn call(&self, request: libc::Ioctl, address: Ipv6Addr) -> Result<(), Errno> {
        let argument = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr { s6_addr: address.octets() },
            ifr6_prefixlen: 128,
            ifr6_ifindex: self.index,
        };
        // SAFETY: both requests only read a `struct in6_ifreq`, which `argument` is.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), request, &raw const argument) };
        if result < 0 { Err(Errno::last()) } else { Ok(()) }
    }
}

impl<C: Calls> Channel for Ioctl<C> {
    fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), NotAdded> {
        for (added, &address) in addresses.iter().enumerate() {
            self.calls.call(SIOCSIFADDR, address).map_err(|code| NotAdded {
                why: KernelError::from(code).explain(format!("add {address} to {}", self.name())),
                added,
                others: Vec::from_iter((code == Errno::EEXIST).then_some(address)),
            })?;
        }
        Ok(())
    }

    fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let mut done = Ok(());
        for &address in addresses {
            match self.calls.call(SIOCDIFADDR, address) {
                Ok(()) | Err(Errno::EADDRNOTAVAIL | Errno::ENODEV) => {}
                Err(code) => {
                    let error = io::Error::from(code);
                    done = done
                        .and(Err(anyhow!("cannot remove {address} from {}: {error}", self.name())));
                }
            }
        }
        done
    }
}
