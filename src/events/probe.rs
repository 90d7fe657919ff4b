//! What a probe of an interface found, and what follows.

use serde::{Deserialize, Serialize};

use super::machine::Nic;
use super::modes::{AttachMode, AttachedProgram, CopyMode};

/// What was found out about an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// What it can do, and how it is set.
    #[serde(flatten)]
    pub interface: Interface,
    /// What this process may do, and on what kernel.
    pub host: Host,
    /// What follows.
    pub verdict: Verdict,
    /// What came of trying; `None` where it was not.
    pub tried: Option<Tried>,
}

/// What came of trying what `serve` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// How the program was attached, as the kernel says.
    pub attach: Option<AttachMode>,
    /// How packets get into and out of the rings, as the kernel says.
    pub copy: Option<CopyMode>,
    /// The queues that a socket was bound to.
    pub queues: Vec<u32>,
    /// Whether their memory lay on huge pages.
    pub hugepages: Option<bool>,
    /// Why it was refused.
    pub error: Option<String>,
    /// Whether the verdict had said so; `None` where that had left something open.
    pub agrees: Option<bool>,
}

/// What an interface can do, and how it is set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// What results say of it as well.
    #[serde(flatten)]
    pub nic: Nic,
    /// What its frames begin with, an ARPHRD of linux/if_arp.h: 1 for Ethernet.
    #[serde(default = "ethernet")]
    pub link_type: u16,
    /// Whether it is set up.
    pub up: bool,
    /// Whether something is at the other end of the cable.
    pub carrier: bool,
    /// As many queues as there can be in use.
    pub queues_possible: u32,
    /// Whether their number is set for both directions at once.
    pub queues_combined: bool,
    /// As many descriptors as the card's receive and transmit rings can have.
    pub rings_possible: Option<(u32, u32)>,
    /// Entries of the table that spreads packets over the queues (RSS); `None` where the card does
    /// not.
    pub rss_entries: Option<u32>,
    /// Rules that send packets to a queue; `None` where the card takes none.
    pub flow_rules: Option<u32>,
    /// The offloads that matter here and n-tuple filters, as far as they can be switched.
    pub offloads_changeable: Vec<String>,
    /// What its driver says it can do; `None` where the kernel cannot be asked that (before 6.3).
    pub xdp: Option<XdpFeatures>,
    /// The XDP program on it.
    pub program: Option<AttachedProgram>,
    /// The NUMA node that the card is at; `None` where there is but one, or it is not seen.
    pub numa_node: Option<u32>,
    /// The other end of a veth; `None` where it is none, or it is not seen.
    pub peer: Option<Peer>,
    /// What kind of device the kernel made it as; `None` of a card.
    pub kind: Option<String>,
    /// Transmit queues in use, and as many as there can be.
    pub transmit_queues: (u32, u32),
    /// What it is a port of: a bridge, a bond, a VRF.
    pub master: Option<Master>,
    /// What the host lets a virtio device do; `None` where it is none, or it is not seen.
    pub virtio: Option<Virtio>,
    /// Why the kernel has no IPv6 on it; `None` where it does.
    #[serde(default)]
    pub no_ipv6: Option<String>,
    /// Whether /sys is mounted at all.
    #[serde(default = "yes")]
    pub sys_mounted: bool,
    /// Whether /sys shows it: without CAP_SYS_ADMIN, and in a namespace of its own, it may not.
    pub sys_seen: bool,
}

/// The other end of a veth.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, in its own namespace.
    pub name: String,
    /// Its largest packet without the Ethernet header, in bytes.
    pub mtu: u32,
}

/// What an interface is a port of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    /// Its name.
    pub name: String,
    /// What kind of device it is.
    pub kind: Option<String>,
}

/// Feature bits that a virtio network device and its driver agreed on (Virtual I/O Device 1.2,
/// sections 5.1.3 and 6).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Virtio {
    /// VIRTIO_F_ACCESS_PLATFORM: the device takes DMA addresses, and not those of the guest's
    /// memory.
    pub access_platform: bool,
    /// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: the guest may switch off that the host merges packets and
    /// leaves out checksums.
    pub ctrl_guest_offloads: bool,
    /// Whether the host does any of that.
    pub guest_offloads: bool,
}

/// What this process may do, and on what kernel.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// The kernel's release.
    pub kernel: String,
    /// Whether it has AF_XDP sockets; `None` where this process may not have one.
    pub af_xdp: Option<bool>,
    /// Why it may not have one, although it has CAP_NET_RAW.
    #[serde(default)]
    pub af_xdp_refused: Option<String>,
    /// Why the kernel does not take the XDP program, which was tried; `None` where it does, or a
    /// capability is missing.
    #[serde(default)]
    pub program_refused: Option<String>,
    /// Memory in huge pages.
    pub hugepages: Hugepages,
    /// How many bytes this process may have locked; `None` where that is without limit.
    pub locked_memory: Option<u64>,
    /// The capabilities that it has, of those that matter here.
    pub capabilities: Vec<String>,
    /// Whether those are capabilities over the machine, and not only in a user namespace of a
    /// container.
    pub initial_user_namespace: bool,
    /// Processors that it may use.
    pub processors: usize,
}

/// Huge pages of the default size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hugepages {
    /// Bytes in one.
    pub size: u64,
    /// How many the kernel keeps (vm.nr_hugepages).
    pub total: u64,
    /// How many of them are free.
    pub free: u64,
}

/// What results that do not say it go by.
fn yes() -> bool {
    true
}

/// What results of before it was asked are of.
fn ethernet() -> u16 {
    1
}

/// What a driver says it can do, by the kernel's names. One that is newer than these is `bit-N`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpFeatures {
    /// What becomes of a packet: `basic` is native XDP at all.
    pub features: Vec<String>,
    /// In how many frames a packet may lie with zero-copy.
    pub zero_copy_segments: Option<u32>,
    /// What a program can ask of a packet.
    pub rx_metadata: Vec<String>,
    /// What an AF_XDP socket can ask for when it sends.
    pub xsk: Vec<String>,
}

/// What `serve` would get on an interface.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// How its program would be attached; `None` where that cannot be said.
    pub attach: Option<AttachMode>,
    /// How packets would get into and out of its rings; `None` where that cannot be said.
    pub copy: Option<CopyMode>,
    /// What keeps it from starting at all. The modes above are for when these are out of the way.
    pub obstacles: Vec<Finding>,
    /// Why it does not get native XDP and zero-copy, or why that cannot be said.
    pub why_not_more: Vec<Finding>,
    /// Flags for `serve` that insist on what it would get, so that anything less is an error.
    pub flags: Vec<String>,
    /// What else to do before.
    pub advice: Vec<Advice>,
}

/// A reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// One word for programs.
    pub name: String,
    /// A sentence for people.
    pub why: String,
    /// What to do about it, where something helps.
    pub cure: Option<String>,
}

/// A command that makes things better.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// The command.
    pub command: String,
    /// What it is good for.
    pub why: String,
}
