//! Whether IPv6 is enabled on an interface. Without it the kernel adds no address there, receives
//! no packet, and explains little.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::is_mounted;
use crate::net::netlink::Link;

/// The smallest MTU for IPv6 (IPV6_MIN_MTU, RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// Checks that the interface has IPv6, in the namespace of the calling thread.
///
/// # Errors
/// Why IPv6 is off, and the command that enables it.
pub(crate) fn has_ipv6(link: &Link) -> Result<()> {
    let settings = Path::new("/proc/sys/net/ipv6");
    let setting = settings.join("conf").join(&link.name).join("disable_ipv6");
    let found = match fs::read_to_string(setting) {
        Ok(value) => ProcEntry::Setting(value.trim() != "0"),
        // Another call will report this error.
        Err(error) if error.kind() != ErrorKind::NotFound => return Ok(()),
        Err(_) if !is_mounted("/proc") => ProcEntry::NoProc,
        Err(_) if !settings.join("conf").exists() => ProcEntry::NoSettings,
        Err(_) => ProcEntry::NotOnThis,
    };
    explain(link, found).map_or(Ok(()), |why| Err(anyhow!(why)))
}

/// What /proc shows about the interface.
#[derive(Debug, Clone, Copy)]
enum ProcEntry {
    /// The value of `disable_ipv6`.
    Setting(bool),
    NoProc,
    NoSettings,
    /// Settings exist, but not for this interface.
    NotOnThis,
}

fn explain(link: &Link, found: ProcEntry) -> Option<String> {
    let name = &link.name;
    match found {
        ProcEntry::Setting(false) => None,
        ProcEntry::Setting(true) => {
            // sysctl would take dots in an interface name for path separators.
            let name = format!("net.ipv6.conf.{name}.disable_ipv6");
            let path = if link.name.contains('.') {
                format!("net/ipv6/conf/{}/disable_ipv6", link.name)
            } else {
                name.clone()
            };
            Some(format!(
                "IPv6 is disabled on {} ({name} is 1): enable it with 'sysctl -w {path}=0'",
                link.name
            ))
        }
        ProcEntry::NoProc => Some(
            "/proc is not mounted, so network settings are not available: mount -t proc proc /proc"
                .to_owned(),
        ),
        ProcEntry::NoSettings => Some(
            "this kernel has no IPv6 (no /proc/sys/net/ipv6): start it without ipv6.disable=1, or \
             load the module ipv6"
                .to_owned(),
        ),
        ProcEntry::NotOnThis if link.mtu < LEAST_MTU => Some(format!(
            "{name} has no IPv6, because its MTU is {} and IPv6 needs {LEAST_MTU}: ip link set dev \
             {name} mtu 1500",
            link.mtu
        )),
        ProcEntry::NotOnThis => Some(format!(
            "the kernel has no IPv6 on {name} (no /proc/sys/net/ipv6/conf/{name}): is \
                it part of a bond or bridge?"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_cure() {
        let loopback = crate::net::netlink::link("lo").unwrap();
        assert!(has_ipv6(&loopback).is_ok());
        let said = |name: &str, mtu, found| {
            explain(&Link { name: name.to_owned(), mtu, ..loopback.clone() }, found)
                .unwrap_or_default()
        };
        assert_eq!(said("eth1", 1500, ProcEntry::Setting(false)), "");
        assert!(
            said("eth1", 1500, ProcEntry::Setting(true))
                .contains("'sysctl -w net.ipv6.conf.eth1.disable_ipv6=0'")
        );
        assert!(
            said("eth1.7", 1500, ProcEntry::Setting(true))
                .contains("'sysctl -w net/ipv6/conf/eth1.7/disable_ipv6=0'")
        );
        assert!(said("eth1", 1500, ProcEntry::NoSettings).contains("ipv6.disable=1"));
        assert!(said("eth1", 1279, ProcEntry::NotOnThis).contains("ip link set dev eth1 mtu 1500"));
        assert!(said("eth1", 1500, ProcEntry::NoProc).contains("mount -t proc"));
    }
}
