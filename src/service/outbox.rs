//! Sending without being asked.

use std::net::Ipv6Addr;

/// A sender, and the address of ours that it asked. The clone of the service that saw the request
/// can send there later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    pub(crate) source: (Ipv6Addr, u16),
    pub(crate) asked: Ipv6Addr,
    /// The Ethernet address of its request, if the engine builds whole frames. The engine adds
    /// ours, which may change meanwhile.
    pub(crate) mac: Option<[u8; 6]>,
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// The address that the peer asked is no longer live, and never will be again.
    #[error("the address is live no more")]
    NotLive,
    /// All frames or buffers reserved for this are being sent, or the ring is full: try again next
    /// turn.
    #[error("no frame or buffer is free")]
    Busy,
    /// The payload is longer than the buffer.
    #[error("longer than the buffer")]
    TooLong,
    /// Another worker saw the peer, and only that one can reach it.
    #[error("the peer is another worker's")]
    OtherWorker,
    /// The kernel rejected it.
    #[error("the kernel did not take it")]
    Refused,
}

/// What a service sends through in its [turn](super::Service::turn).
pub trait Outbox {
    /// Sends one datagram to `peer`, from the address that it asked. `write` writes the payload
    /// into a buffer and returns its length; it is not called if sending is impossible. The buffer
    /// holds stale data of other packets.
    ///
    /// # Errors
    /// Why it was not sent. Nothing is queued: the service must try again.
    fn send(&mut self, peer: &Peer, write: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Unsent>;
}
