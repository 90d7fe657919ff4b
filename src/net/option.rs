//! Socket options that libc names and nix does not wrap, each with the type of its value.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{SOL_PACKET, SOL_SOCKET, SOL_XDP};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::net::datagrams::Plain;

/// A socket option with a value of type `T`. Only the constants below exist, so no caller can pass
/// a value of the wrong type. If the kernel took one for a structure with pointers, it would write
/// through them.
pub(crate) struct SocketOption<T> {
    level: i32,
    name: i32,
    value: PhantomData<fn() -> T>,
}

impl<T: Plain> SocketOption<T> {
    /// Not for options whose value contains pointers: those have their own functions.
    const fn new(level: i32, name: i32) -> Self {
        Self { level, name, value: PhantomData }
    }
}

pub(crate) const XDP_UMEM_FILL_RING: SocketOption<u32> =
    SocketOption::new(SOL_XDP, libc::XDP_UMEM_FILL_RING);
pub(crate) const XDP_UMEM_COMPLETION_RING: SocketOption<u32> =
    SocketOption::new(SOL_XDP, libc::XDP_UMEM_COMPLETION_RING);
pub(crate) const XDP_RX_RING: SocketOption<u32> = SocketOption::new(SOL_XDP, libc::XDP_RX_RING);
pub(crate) const XDP_TX_RING: SocketOption<u32> = SocketOption::new(SOL_XDP, libc::XDP_TX_RING);
pub(crate) const XDP_MMAP_OFFSETS: SocketOption<libc::xdp_mmap_offsets> =
    SocketOption::new(SOL_XDP, libc::XDP_MMAP_OFFSETS);
pub(crate) const XDP_OPTIONS: SocketOption<libc::xdp_options> =
    SocketOption::new(SOL_XDP, libc::XDP_OPTIONS);
pub(crate) const XDP_STATISTICS: SocketOption<libc::xdp_statistics> =
    SocketOption::new(SOL_XDP, libc::XDP_STATISTICS);
/// In linux/if_xdp.h since Linux 6.17, and not yet in the libc crate.
pub(crate) const XDP_MAX_TX_SKB_BUDGET: SocketOption<u32> = SocketOption::new(SOL_XDP, 9);

pub(crate) const SO_PREFER_BUSY_POLL: SocketOption<u32> =
    SocketOption::new(SOL_SOCKET, libc::SO_PREFER_BUSY_POLL);
pub(crate) const SO_BUSY_POLL: SocketOption<u32> =
    SocketOption::new(SOL_SOCKET, libc::SO_BUSY_POLL);
pub(crate) const SO_BUSY_POLL_BUDGET: SocketOption<u32> =
    SocketOption::new(SOL_SOCKET, libc::SO_BUSY_POLL_BUDGET);
const SO_NETNS_COOKIE: SocketOption<u64> = SocketOption::new(SOL_SOCKET, libc::SO_NETNS_COOKIE);

pub(crate) const PACKET_FANOUT: SocketOption<u32> =
    SocketOption::new(SOL_PACKET, libc::PACKET_FANOUT);
pub(crate) const PACKET_VNET_HDR_SZ: SocketOption<i32> =
    SocketOption::new(SOL_PACKET, libc::PACKET_VNET_HDR_SZ);
pub(crate) const PACKET_VERSION: SocketOption<i32> =
    SocketOption::new(SOL_PACKET, libc::PACKET_VERSION);
pub(crate) const PACKET_LOSS: SocketOption<i32> = SocketOption::new(SOL_PACKET, libc::PACKET_LOSS);
pub(crate) const PACKET_RX_RING: SocketOption<libc::tpacket_req3> =
    SocketOption::new(SOL_PACKET, libc::PACKET_RX_RING);
pub(crate) const PACKET_TX_RING: SocketOption<libc::tpacket_req3> =
    SocketOption::new(SOL_PACKET, libc::PACKET_TX_RING);
/// tpacket_stats: packets, drops. Reading resets both to 0.
pub(crate) const PACKET_STATISTICS: SocketOption<[u32; 2]> =
    SocketOption::new(SOL_PACKET, libc::PACKET_STATISTICS);

// SAFETY: an integer.
unsafe impl Plain for u32 {
    const ZERO: Self = 0;
}

// SAFETY: an integer.
unsafe impl Plain for i32 {
    const ZERO: Self = 0;
}

// SAFETY: an integer.
unsafe impl Plain for u64 {
    const ZERO: Self = 0;
}

// SAFETY: integers.
unsafe impl Plain for [u32; 2] {
    const ZERO: Self = [0; 2];
}

const NOWHERE: libc::xdp_ring_offset =
    libc::xdp_ring_offset { producer: 0, consumer: 0, desc: 0, flags: 0 };

// SAFETY: integers.
unsafe impl Plain for libc::xdp_mmap_offsets {
    const ZERO: Self = Self { rx: NOWHERE, tx: NOWHERE, fr: NOWHERE, cr: NOWHERE };
}

// SAFETY: an integer.
unsafe impl Plain for libc::xdp_options {
    const ZERO: Self = Self { flags: 0 };
}

// SAFETY: integers.
unsafe impl Plain for libc::xdp_statistics {
    const ZERO: Self = Self {
        rx_dropped: 0,
        rx_invalid_descs: 0,
        tx_invalid_descs: 0,
        rx_ring_full: 0,
        rx_fill_ring_empty_descs: 0,
        tx_ring_empty_descs: 0,
    };
}

// SAFETY: integers.
unsafe impl Plain for libc::tpacket_req3 {
    const ZERO: Self = Self {
        tp_block_size: 0,
        tp_block_nr: 0,
        tp_frame_size: 0,
        tp_frame_nr: 0,
        tp_retire_blk_tov: 0,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
}

/// Sets an option.
pub(crate) fn set<T: Plain>(fd: &OwnedFd, option: SocketOption<T>, value: &T) -> io::Result<()> {
    // SAFETY: a plain value contains no pointers.
    unsafe { set_any(fd, option.level, option.name, value) }
}

/// Reads an option. If an older kernel has a shorter structure, the rest stays zero.
pub(crate) fn get<T: Plain>(fd: &OwnedFd, option: SocketOption<T>) -> io::Result<T> {
    let mut value = T::ZERO;
    let mut length = size_of::<T>() as libc::socklen_t;
    let place = (&raw mut value).cast();
    // SAFETY: `value` is valid for writes of the size given to the kernel, and every bit pattern is
    // a valid value.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), option.level, option.name, place, &raw mut length)
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Attaches a socket filter: the socket receives only the packets that it accepts.
pub(crate) fn set_filter(fd: &OwnedFd, filter: &[libc::sock_filter]) -> io::Result<()> {
    let length =
        filter.len().try_into().map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` points to as many instructions as it says, and the kernel copies them.
    unsafe { set_any(fd, SOL_SOCKET, libc::SO_ATTACH_FILTER, &program) }
}

/// Sets an option by level and name.
///
/// # Safety
/// If the kernel takes part of the value for a pointer, it must be valid for whatever the kernel
/// reads and writes there, for as long as the kernel uses it.
pub(crate) unsafe fn set_any<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for reads of its size; the caller vouches for any pointers in it.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The cookie of the calling thread's network namespace (SO_NETNS_COOKIE, Linux 5.14), unique until
/// the next boot. An inode number would not do: the kernel soon reuses that of a removed namespace.
///
/// # Errors
/// On an older kernel.
pub fn namespace_cookie() -> io::Result<u64> {
    let any = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    get(&any, SO_NETNS_COOKIE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_number() {
        assert_eq!(namespace_cookie().unwrap(), namespace_cookie().unwrap());
    }
}
