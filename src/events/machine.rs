//! What a figure was measured on.

use serde::{Deserialize, Serialize};

/// What is needed to doubt a figure: on what, and by what, it was measured. `None` and empty stand
/// for what the machine does not say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of sixhop.
    pub sixhop: String,
    /// Git revision of its source; ends in `-dirty` where the source was changed since.
    pub revision: String,
    /// The virtual machine of [`lab::vm`](crate::lab::vm) that it was measured in, as in
    /// `QEMU-10.0.2-tcg-igb`. With tcg, instructions are translated: such figures are good for
    /// ratios within one guest, and for nothing else.
    #[serde(default)]
    pub guest: Option<String>,
    /// The command line, with the program's name in the place of its path.
    pub command: Vec<String>,
    /// The kernel's release.
    pub kernel: String,
    /// The processor's name.
    pub cpu: String,
    /// How many processors there are.
    pub processors: usize,
    /// Those that the thread may use which did the work; for a server, its
    /// [`Modes`](crate::engine::Modes) say more.
    pub cores: Vec<usize>,
    /// Who sets the frequency of the first of those, and how.
    pub governor: Option<String>,
    /// The network interface.
    pub nic: Nic,
}

/// A network interface, as it was set when it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    /// Its name.
    pub interface: String,
    /// Its driver.
    pub driver: String,
    /// PCI identity of the card, vendor and device, as in `8086:153a`.
    pub device: Option<String>,
    /// Where it is plugged in.
    pub bus: String,
    /// Version of its firmware.
    pub firmware: String,
    /// Speed of the link in Mbit/s, as the driver states it. A veth states 10,000, and has none.
    pub speed_mbps: Option<u32>,
    /// Largest packet without the Ethernet header, in bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub queues: u32,
    /// Descriptors in the card's own receive and transmit rings.
    pub rings: Option<(u32, u32)>,
    /// The offloads that are switched on, by the kernel's names.
    pub offloads: Vec<String>,
    /// Where and when the kernel takes what has come.
    pub napi: Napi,
}

/// The NAPI arrangement of an interface (Documentation/networking/napi.rst).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Napi {
    /// Whether a kernel thread does it, rather than a softirq on the processor that took the
    /// interrupt. With a veth pair that is the sender's.
    pub threaded: Option<bool>,
    /// Nanoseconds that it waits for more.
    pub gro_flush_timeout_ns: Option<u64>,
    /// How often it polls in vain before it arms the interrupt again.
    pub defer_hard_irqs: Option<u32>,
}
