//! Reads what an interface, its card, this process and its kernel can do, without disturbing any of
//! them: it attaches, binds and sets nothing. [`crate::probe`] draws the conclusions.

use std::fs;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit};

use super::program::{Program, ProgramConfig};
use super::socket;
use crate::host::{self, Nic};
use crate::net::denied::CAPABILITIES;
use crate::net::netdev::{self};
use crate::net::netlink::{self, Link};
use crate::net::quirks::{self, Act};
use crate::net::{denied, ethtool};

pub use crate::events::{Host, Hugepages, Interface, Master, VethPeer, Virtio};

/// The offload that merges packets in the driver, before XDP sees them.
pub const LRO: &str = "rx-lro";
/// The offload that removes the VLAN tag of a packet before XDP sees it.
pub const VLAN: &str = "rx-vlan-hw-parse";
/// The switch for flow rules.
pub const NTUPLE: &str = "rx-ntuple-filter";
/// The offloads that matter to this project.
pub const OFFLOADS: [&str; 8] = [
    VLAN,
    "rx-gro",
    "rx-gro-hw",
    LRO,
    "rx-checksum",
    "tx-checksum-ip-generic",
    "tx-checksum-ipv6",
    "rx-udp-gro-forwarding",
];

impl Interface {
    /// Queries the kernel about `link`, in the namespace of the calling thread.
    #[must_use]
    pub fn of(link: &Link) -> Self {
        let name = &link.name;
        let queues = ethtool::queue_counts(name).ok();
        let offloads = ethtool::offloads(name).unwrap_or_default();
        let matters = |offload: &ethtool::Offload| {
            offload.name == NTUPLE || OFFLOADS.contains(&offload.name.as_str())
        };
        let changeable =
            offloads.into_iter().filter(|offload| matters(offload) && offload.changeable);
        let seen = host::with_own_sys(|| {
            let directory = host::directory(link);
            let file = |path: &str| host::file(directory.as_ref()?.join(path));
            SysView {
                nic: host::nic(link),
                sys: directory.is_some(),
                numa_node: file("device/numa_node"),
                virtio: file("device/features"),
            }
        });
        let seen = seen.unwrap_or_default();
        let quirks = quirks::of_driver(&seen.nic.driver);
        let is_virtio = quirks.has(Act::ReadFeatures);
        let peer = if quirks.has(Act::AskPeer) { netlink::peer(link.index) } else { None };
        let master = link.master.and_then(|index| {
            let above = netlink::links().ok()?.into_iter().find(|above| above.index == index)?;
            Some(Master { name: above.name, kind: above.kind })
        });
        Self {
            link_type: link.link_type,
            kind: link.kind.clone(),
            transmit_queues: queues
                .map_or((0, 0), |queues| (queues.sending, queues.sending_possible)),
            master,
            up: link.up,
            carrier: link.carrier,
            queues_possible: queues.map_or(0, |queues| queues.possible),
            queues_combined: queues.is_some_and(|queues| queues.combined),
            rings_possible: ethtool::largest_card_rings(name),
            rss_entries: ethtool::rss_entries(name),
            flow_rules: ethtool::flow_rules(name),
            offloads_changeable: changeable.map(|offload| offload.name).collect(),
            xdp: netdev::xdp_features(link.index).ok().flatten(),
            program: link.xdp,
            numa_node: seen.numa_node.and_then(|node| node.parse().ok()), // -1: only one node
            peer: peer.map(|peer| VethPeer { name: peer.name, mtu: peer.mtu }),
            virtio: seen.virtio.filter(|_| is_virtio).map(|bits| Virtio::parse(&bits)),
            no_ipv6: host::has_ipv6(link).err().map(|error| error.to_string()),
            sys_mounted: host::is_mounted("/sys"),
            sys_seen: seen.sys,
            nic: seen.nic,
        }
    }

    /// Whether that offload is on.
    #[must_use]
    pub fn is_on(&self, offload: &str) -> bool {
        self.nic.offloads.iter().any(|name| name == offload)
    }

    /// Whether `ethtool -K` can change that offload.
    #[must_use]
    pub fn is_changeable(&self, offload: &str) -> bool {
        self.offloads_changeable.iter().any(|name| name == offload)
    }
}

/// What /sys shows.
#[derive(Default)]
struct SysView {
    nic: Nic,
    sys: bool,
    numa_node: Option<String>,
    virtio: Option<String>,
}

impl Virtio {
    /// Parses the feature bits in /sys: zeros and ones, the lowest bit first.
    fn parse(bits: &str) -> Self {
        let has = |bit: usize| bits.as_bytes().get(bit) == Some(&b'1');
        Self {
            access_platform: has(33),
            ctrl_guest_offloads: has(2),
            // GUEST_CSUM, _TSO4, _TSO6, _ECN, _UFO, _USO4, _USO6
            guest_offloads: [1, 7, 8, 9, 10, 54, 55].into_iter().any(has),
        }
    }
}

impl Host {
    /// Queries the kernel about this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let user_ids = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _hard)| soft);
        let socket = socket::unbound();
        let mut host = Self {
            kernel: host::file("/proc/sys/kernel/osrelease").unwrap_or_default(),
            af_xdp: match &socket {
                Ok(_) => Some(true),
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => None,
                Err(_) => Some(false),
            },
            hugepages: Hugepages::parse(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
            locked_memory: (limit != libc::RLIM_INFINITY).then_some(limit),
            capabilities: capabilities(&status),
            // In the initial user namespace, the whole range of IDs maps to itself.
            initial_user_namespace: user_ids.split_ascii_whitespace().eq(["0", "0", "4294967295"]),
            processors: host::allowed().len(),
            ..Self::default()
        };
        if host.af_xdp.is_none() && host.has("CAP_NET_RAW") {
            host.af_xdp_refused =
                Some(denied::explain("opening one", &["CAP_NET_RAW"], "socket(AF_XDP)"));
        }
        if LOADS.into_iter().all(|capability| host.has(capability)) {
            host.program_refused = program_refused();
        }
        host
    }

    /// Whether this process may do what that capability allows.
    #[must_use]
    pub fn has(&self, capability: &str) -> bool {
        let held = |name: &str| self.capabilities.iter().any(|held| held == name);
        // Linux 5.8 split these off CAP_SYS_ADMIN, which still includes them.
        let is_part = matches!(capability, "CAP_BPF" | "CAP_PERFMON");
        held(capability) || is_part && held("CAP_SYS_ADMIN")
    }
}

/// The capabilities needed to load the program.
const LOADS: [&str; 3] = ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"];

/// Loads the program without attaching it, and unloads it; once in a process.
fn program_refused() -> Option<String> {
    static TRIED: OnceLock<Option<String>> = OnceLock::new();
    let config = ProgramConfig {
        port: 0,
        addresses: 1,
        queues: 1,
        hidden: false,
        moving: None,
        reflect: None,
        screen: None,
    };
    TRIED.get_or_init(|| Program::load(&config).err().map(|error| format!("{error:#}"))).clone()
}

/// The effective capabilities, from /proc/self/status.
fn capabilities(status: &str) -> Vec<String> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective =
        effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    let held = CAPABILITIES.iter().filter(|(_, number, _)| effective & 1 << number != 0);
    held.map(|(name, ..)| (*name).to_owned()).collect()
}

impl Hugepages {
    /// From /proc/meminfo.
    fn parse(text: &str) -> Self {
        let number = |field: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Self {
            size: number("Hugepagesize:") * 1024,
            total: number("HugePages_Total:"),
            free: number("HugePages_Free:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_this_process_are_found_out_about() {
        let interface = Interface::of(&crate::net::netlink::link("lo").unwrap());
        assert_eq!(
            (interface.nic.interface.as_str(), interface.nic.queues, interface.queues_possible),
            ("lo", 1, 1)
        );
        assert_eq!(
            (interface.rings_possible, interface.rss_entries, interface.virtio),
            (None, None, None)
        );
        assert!(
            interface.is_changeable("rx-gro") && !interface.is_changeable("tx-checksum-ip-generic")
        );
        let host = Host::of_this_process();
        assert!(!host.kernel.is_empty() && host.processors > 0);
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        let held = capabilities("Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t0000008000003000\n");
        assert_eq!(held, ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF"]);
        assert!(capabilities("").is_empty() && capabilities("CapEff:\tx\n").is_empty());
        let text = "MemTotal: 1 kB\nHugePages_Total:      16\nHugePages_Free:        \
                    9\nHugepagesize:       2048 kB\n";
        assert_eq!(Hugepages::parse(text), Hugepages { size: 2 << 20, total: 16, free: 9 });
        assert_eq!(Hugepages::parse(""), Hugepages::default());
    }

    #[test]
    fn virtio_bits_count_from_the_left() {
        let bits = |set: &[usize]| {
            (0..64).map(|bit| if set.contains(&bit) { '1' } else { '0' }).collect::<String>()
        };
        let virtio = |set: &[usize]| Virtio::parse(&bits(set));
        assert_eq!(virtio(&[0, 32]), Virtio::default());
        assert!(virtio(&[33]).access_platform && virtio(&[2]).ctrl_guest_offloads);
        assert!(virtio(&[8]).guest_offloads && virtio(&[55]).guest_offloads);
        assert_eq!(Virtio::parse(""), Virtio::default());
    }
}
