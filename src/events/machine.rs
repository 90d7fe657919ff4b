//! The machine that a figure was measured on.

use serde::{Deserialize, Serialize};

/// What you need to judge a figure: the machine and the program that measured it. `None` and empty
/// mean that the machine does not say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of Sixhop.
    pub sixhop: String,
    /// Git revision of its source; ends in `-dirty` if the source had uncommitted changes.
    pub revision: String,
    /// The guest of [`lab::vm`](crate::lab::vm) that measured it, such as `QEMU-10.0.2-tcg-igb`.
    /// With tcg, QEMU translates instructions: only ratios within one guest mean anything.
    #[serde(default)]
    pub guest: Option<String>,
    /// The command line, with the program's name instead of its path.
    pub command: Vec<String>,
    /// The kernel release.
    pub kernel: String,
    /// The processor model.
    pub cpu: String,
    /// Number of processors.
    pub processors: usize,
    /// Processors that the working thread may use. For a server, its
    /// [`Modes`](crate::engine::Modes) say more.
    pub cores: Vec<usize>,
    /// The frequency governor of the first of these processors.
    pub governor: Option<String>,
    /// The network interface.
    pub nic: Nic,
}

/// The settings of a network interface during a measurement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    /// Its name.
    pub interface: String,
    /// Its driver.
    pub driver: String,
    /// PCI vendor and device ID of the card, such as `8086:153a`.
    pub device: Option<String>,
    /// Its bus address.
    pub bus: String,
    /// Its firmware version.
    pub firmware: String,
    /// Link speed in Mbit/s, as the driver states it. A veth states 10,000 but has no link.
    pub speed_mbps: Option<u32>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Receive queues in use.
    pub queues: u32,
    /// Descriptors in the card's own receive and transmit rings.
    pub rings: Option<(u32, u32)>,
    /// The enabled offloads, by the kernel's names.
    pub offloads: Vec<String>,
    /// Where and when the kernel does its receive work.
    pub napi: Napi,
}

/// NAPI settings of an interface (Documentation/networking/napi.rst).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Napi {
    /// Whether a kernel thread polls, rather than a softirq on the processor that took the
    /// interrupt. With a veth pair, that softirq runs on the sender's processor.
    pub threaded: Option<bool>,
    /// Nanoseconds that the NAPI timer waits for more packets before it polls again.
    pub gro_flush_timeout_ns: Option<u64>,
    /// Number of empty polls before NAPI arms the interrupt again.
    pub defer_hard_irqs: Option<u32>,
}
