//! Socket options that libc names and nix does not wrap.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Sets `option` of `level`. `T` is the plain structure or number that it takes.
pub(super) fn set<T>(fd: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for reads of its size.
    let result =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const *value).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks for `option` of `level`. `T` is one of the kernel's plain structures or numbers, for which any bytes are a value.
pub(super) fn get<T>(fd: &OwnedFd, level: i32, option: i32) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is valid for writes of its size, which the kernel is told.
    let result = unsafe {
        libc::getsockopt(fd.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length)
    };
    // An older kernel may know a shorter structure: the rest stays zero.
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed, then written by the kernel: initialised, and any bytes will do.
    Ok(unsafe { value.assume_init() })
}

/// The number of the calling thread's network namespace, which no other gets until the machine is started again
/// (SO_NETNS_COOKIE, Linux 5.14). The inode of a namespace is used again soon after it has gone.
///
/// # Errors
/// On an older kernel.
pub fn namespace_cookie() -> io::Result<u64> {
    let any = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    get(&any, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_number() {
        assert_eq!(namespace_cookie().unwrap(), namespace_cookie().unwrap());
    }
}
