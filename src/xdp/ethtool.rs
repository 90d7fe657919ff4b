//! The few questions and settings of a card that only the ethtool ioctl knows (linux/ethtool.h).

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Commands of linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

#[repr(C)]
#[derive(Default)]
struct Value {
    command: u32,
    data: u32,
}

#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// How many receive queues of `interface` are in use: what an AF_XDP socket can be bound to. 1 where the driver has no
/// notion of them.
///
/// # Errors
/// When there is no such interface.
pub fn queues(interface: &str) -> Result<u32> {
    let mut channels = Channels { command: ETHTOOL_GCHANNELS, ..Default::default() };
    match ioctl(interface, &mut channels) {
        // The numbers in use, not the possible ones. A combined channel has a queue of each kind.
        Ok(()) => Ok((channels.combined + channels.rx).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(anyhow!("cannot ask {interface} for its queues: {error}")),
    }
}

/// Name of the driver of `interface`; empty where it has none.
///
/// # Errors
/// When there is no such interface.
pub fn driver(interface: &str) -> Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    match ioctl(interface, &mut info) {
        Ok(()) => {
            let name = info.driver.split(|&byte| byte == 0).next().unwrap_or_default();
            Ok(String::from_utf8_lossy(name).into_owned())
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(String::new()),
        Err(error) => Err(anyhow!("cannot ask {interface} for its driver: {error}")),
    }
}

/// Has the kernel compute the checksums of what `interface` sends (`on` false), or leave them to the card. A veth leaves
/// them to nobody: its peer would see packets whose checksum is not there yet.
///
/// # Errors
/// When the interface does not have that setting.
pub fn set_tx_checksum(interface: &str, on: bool) -> Result<()> {
    let mut value = Value { command: ETHTOOL_STXCSUM, data: on.into() };
    ioctl(interface, &mut value)
        .map_err(|error| anyhow!("cannot set the tx checksum offload of {interface}: {error}"))
}

/// `T` is the structure of linux/ethtool.h that its first field, the command, names.
fn ioctl<T>(interface: &str, argument: &mut T) -> io::Result<()> {
    // SAFETY: plain integers and a pointer, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut *argument).cast();
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request names an interface and points to `argument`, which the kernel reads and writes as the
    // structure that its command names.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_one_queue_and_what_does_not_exist_is_an_error() {
        assert_eq!(queues("lo").unwrap(), 1);
        assert!(queues("no-such-if").is_err());
        assert!(driver("a-name-that-is-much-too-long").is_err());
    }
}
