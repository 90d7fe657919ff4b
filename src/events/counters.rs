//! What the kernel counts for a queue, and how full its rings are.

use serde::{Deserialize, Serialize};

/// Numbers that the kernel keeps for a socket (XDP_STATISTICS), since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCounters {
    /// Dropped for other reasons than the next two.
    pub rx_dropped: u64,
    /// Dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// How often the kernel found the fill ring empty.
    pub fill_ring_empty: u64,
    /// Bad descriptors in the fill ring.
    pub rx_invalid: u64,
    /// Bad descriptors in the tx ring.
    pub tx_invalid: u64,
}

/// How full the rings of a queue are, in descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingLevels {
    /// Frames that the kernel may receive into.
    pub fill: u32,
    /// Packets that nobody has looked at yet.
    pub rx: u32,
    /// Packets that the kernel has not taken yet.
    pub tx: u32,
    /// Frames that were sent and not taken back yet.
    pub completion: u32,
}
