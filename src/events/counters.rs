//! The kernel's counters for a queue, and the fill levels of its rings.

use serde::{Deserialize, Serialize};

/// The kernel's counters for a socket (XDP_STATISTICS) since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCounters {
    /// Packets dropped, other than for the next two reasons.
    pub rx_dropped: u64,
    /// Packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// How often the kernel found the fill ring empty.
    pub fill_ring_empty: u64,
    /// Invalid descriptors in the fill ring.
    pub rx_invalid: u64,
    /// Invalid descriptors in the tx ring.
    pub tx_invalid: u64,
}

/// Fill levels of a queue's rings, in descriptors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingLevels {
    /// Frames that the kernel may receive into.
    pub fill: u32,
    /// Received packets that the worker has not read yet.
    pub rx: u32,
    /// Packets that the kernel has not taken yet.
    pub tx: u32,
    /// Sent frames that the worker has not taken back yet.
    pub completion: u32,
}
