//! What a probe finds out about an interface, and what to expect from it.

use serde::{Deserialize, Serialize};

use super::machine::Nic;
use super::modes::{AttachMode, AttachedProgram, CopyMode};

/// The result of probing an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// The interface's capabilities and settings.
    #[serde(flatten)]
    pub interface: Interface,
    /// The kernel, and what it permits this process.
    pub host: Host,
    /// What to expect of `serve`.
    pub verdict: Expectation,
    /// The result of trying; `None` if not tried.
    pub tried: Option<Tried>,
}

/// The result of trying what `serve` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// The attach mode that the kernel reports.
    pub attach: Option<AttachMode>,
    /// The copy mode that the kernel reports.
    pub copy: Option<CopyMode>,
    /// The queues that sockets were bound to.
    pub queues: Vec<u32>,
    /// Whether the UMEMs lie on huge pages.
    pub hugepages: Option<bool>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether the verdict predicted it; `None` if the verdict left something open.
    pub agrees: Option<bool>,
}

/// An interface's capabilities and settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// The part that results also record.
    #[serde(flatten)]
    pub nic: Nic,
    /// Link type, an ARPHRD constant of linux/if_arp.h: 1 for Ethernet.
    #[serde(default = "ethernet")]
    pub link_type: u16,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// The most queues that it can use.
    pub queues_possible: u32,
    /// Whether queues are set for both directions at once ("combined").
    pub queues_combined: bool,
    /// The most descriptors that the card's receive and transmit rings can have.
    pub rings_possible: Option<(u32, u32)>,
    /// Entries of the RSS indirection table; `None` if the card has no RSS.
    pub rss_entries: Option<u32>,
    /// The most flow rules; `None` if the card takes none.
    pub flow_rules: Option<u32>,
    /// Which of the relevant offloads and n-tuple filters can be switched.
    pub offloads_changeable: Vec<String>,
    /// XDP features that the driver reports; `None` if the kernel has no such query (before 6.3).
    pub xdp: Option<XdpFeatures>,
    /// The XDP program that is attached to it.
    pub program: Option<AttachedProgram>,
    /// The card's NUMA node; `None` if the machine has only one, or it is not visible.
    pub numa_node: Option<u32>,
    /// The peer of a veth; `None` if it is not a veth, or the peer is not visible.
    pub peer: Option<VethPeer>,
    /// The device kind that the kernel created it as; `None` for a card.
    pub kind: Option<String>,
    /// Transmit queues in use, and the most that it can use.
    pub transmit_queues: (u32, u32),
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<Master>,
    /// What the host permits a virtio device; `None` if it is not virtio, or this is not visible.
    pub virtio: Option<Virtio>,
    /// Why the kernel has no IPv6 on it; `None` if it has.
    #[serde(default)]
    pub no_ipv6: Option<String>,
    /// Whether /sys is mounted.
    #[serde(default = "yes")]
    pub sys_mounted: bool,
    /// Whether /sys shows it. In a separate namespace without CAP_SYS_ADMIN it may not.
    pub sys_seen: bool,
}

/// The peer of a veth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VethPeer {
    /// Its name in its own namespace.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
}

/// The device that an interface is a port of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// Its device kind.
    pub kind: Option<String>,
}

/// Feature bits that a virtio network device and its driver agreed on (Virtual I/O Device 1.2,
/// sections 5.1.3 and 6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtio {
    /// VIRTIO_F_ACCESS_PLATFORM: the device uses DMA addresses rather than guest physical
    /// addresses.
    pub access_platform: bool,
    /// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: the guest may disable the host's packet merging and
    /// partial checksums.
    pub ctrl_guest_offloads: bool,
    /// Whether the host does either of these.
    pub guest_offloads: bool,
}

/// The kernel, and what it permits this process.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel release.
    pub kernel: String,
    /// Whether the kernel has AF_XDP sockets; `None` if this process may not open one.
    pub af_xdp: Option<bool>,
    /// Why this process may not open one although it has CAP_NET_RAW.
    #[serde(default)]
    pub af_xdp_refused: Option<String>,
    /// Why the kernel rejected the XDP program when it was tried; `None` if it loaded, or a
    /// capability was missing.
    #[serde(default)]
    pub program_refused: Option<String>,
    /// The huge page pool.
    pub hugepages: Hugepages,
    /// Most bytes that this process may lock; `None` if unlimited.
    pub locked_memory: Option<u64>,
    /// Which of the relevant capabilities it has.
    pub capabilities: Vec<String>,
    /// Whether the capabilities hold in the initial user namespace, not just in a container's.
    pub initial_user_namespace: bool,
    /// Number of processors that it may use.
    pub processors: usize,
}

/// The huge page pool of the default size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hugepages {
    /// Bytes in one page.
    pub size: u64,
    /// Pages in the pool (vm.nr_hugepages).
    pub total: u64,
    /// Free pages.
    pub free: u64,
}

/// Default for results that lack the field.
fn yes() -> bool {
    true
}

/// Default for results from before the link type was recorded.
fn ethernet() -> u16 {
    1
}

/// The driver's XDP features, by the kernel's names; `bit-N` for unknown newer ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpFeatures {
    /// Actions on a packet; `basic` is native XDP.
    pub features: Vec<String>,
    /// The most frames that one packet may span with zero-copy.
    pub zero_copy_segments: Option<u32>,
    /// Metadata that a program can read about a packet.
    pub rx_metadata: Vec<String>,
    /// Offloads that an AF_XDP socket can request for sending.
    pub xsk: Vec<String>,
}

/// What `serve` would get on an interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// Expected attach mode; `None` if unknown.
    pub attach: Option<AttachMode>,
    /// Expected copy mode; `None` if unknown.
    pub copy: Option<CopyMode>,
    /// What would stop it from starting. The modes above assume that these are fixed.
    pub obstacles: Vec<Finding>,
    /// Why it would not get native XDP and zero-copy, or why that is unknown.
    pub why_not_more: Vec<Finding>,
    /// `serve` flags that insist on the expected modes, so that anything less is an error.
    pub flags: Vec<String>,
    /// Commands to run first.
    pub advice: Vec<Advice>,
}

/// One reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// An identifier for programs.
    pub name: String,
    /// A sentence for people.
    pub why: String,
    /// The remedy, if there is one.
    pub cure: Option<String>,
}

/// A command that improves the outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// The command.
    pub command: String,
    /// Why it helps.
    pub why: String,
}
