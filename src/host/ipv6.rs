//! Whether the kernel has IPv6 on an interface: without, it adds no address there, receives no
//! packet, and says little about it.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Result, anyhow};

use super::is_mounted;
use crate::net::netlink::Link;

/// The smallest MTU with which the kernel has IPv6 on an interface (IPV6_MIN_MTU, RFC 8200 section
/// 5).
const LEAST_MTU: u32 = 1280;

/// Finds out whether it does, in the namespace of the calling thread.
///
/// # Errors
/// What has IPv6 switched off there, and the command that switches it on.
pub(crate) fn has_ipv6(link: &Link) -> Result<()> {
    let settings = Path::new("/proc/sys/net/ipv6");
    let setting = settings.join("conf").join(&link.name).join("disable_ipv6");
    let found = match fs::read_to_string(setting) {
        Ok(value) => ProcEntry::Setting(value.trim() != "0"),
        // another call will say what is wrong
        Err(error) if error.kind() != ErrorKind::NotFound => return Ok(()),
        Err(_) if !is_mounted("/proc") => ProcEntry::NoProc,
        Err(_) if !settings.join("conf").exists() => ProcEntry::NoSettings,
        Err(_) => ProcEntry::NotOnThis,
    };
    explain(link, found).map_or(Ok(()), |why| Err(anyhow!(why)))
}

/// What /proc has of the interface.
#[derive(Debug, Clone, Copy)]
enum ProcEntry {
    /// Its `disable_ipv6`.
    Setting(bool),
    NoProc,
    NoSettings,
    /// The settings of other interfaces.
    NotOnThis,
}

fn explain(link: &Link, found: ProcEntry) -> Option<String> {
    let name = &link.name;
    match found {
        ProcEntry::Setting(false) => None,
        ProcEntry::Setting(true) => {
            // In a path with dots they would be taken for its separators.
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
            "/proc is not mounted, and takes settings of the network: mount -t proc proc \
                /proc"
                .to_owned(),
        ),
        ProcEntry::NoSettings => Some(
            "this kernel has no IPv6 (no /proc/sys/net/ipv6): start it without ipv6.disable=1, or \
             load the module ipv6"
                .to_owned(),
        ),
        ProcEntry::NotOnThis if link.mtu < LEAST_MTU => Some(format!(
            "{name} has no IPv6, which takes an MTU of {LEAST_MTU} and {name} has {}: ip link set \
             dev {name} mtu 1500",
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
