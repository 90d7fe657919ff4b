//! Sending without being asked: to whom, and by what.

use std::net::Ipv6Addr;

/// Who has asked, and at which of our addresses: all that is needed to send there again, by the
/// clone of the service that saw the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    pub(crate) source: (Ipv6Addr, u16),
    pub(crate) asked: Ipv6Addr,
    /// The Ethernet address that its request came from, where the engine makes whole frames. Ours
    /// may change meanwhile, so the engine adds that.
    pub(crate) mac: Option<[u8; 6]>,
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// The address that the peer asked is live no more: nothing ever comes from it again.
    #[error("the address is live no more")]
    NotLive,
    /// All frames or buffers kept for this are on their way, or the ring has no room: try again in
    /// the next turn.
    #[error("no frame or buffer is free")]
    Busy,
    /// It is longer than the buffer.
    #[error("longer than the buffer")]
    TooLong,
    /// The peer was seen by another worker, which reaches it another way.
    #[error("the peer is another worker's")]
    OtherWorker,
    /// The kernel did not take it.
    #[error("the kernel did not take it")]
    Refused,
}

/// What a service sends by in its [turn](super::Service::turn).
pub trait Outbox {
    /// Sends one datagram to `peer`, from the address that it asked. `write` writes the payload
    /// into a buffer and returns its length; it is not called where nothing could be sent. What the
    /// buffer holds before is left from other packets.
    ///
    /// # Errors
    /// Why it was not sent. Nothing is queued: the service has to try again.
    fn send(&mut self, peer: &Peer, write: impl FnOnce(&mut [u8]) -> usize) -> Result<(), Unsent>;
}
