//! Why an engine does not open.

use super::{EngineKind, all};

/// Why an engine does not open: what the machine or the configuration lacks. The
/// [cause](crate::server::Cause::downcast_ref) of a
/// [`ServerError::Engine`](crate::server::ServerError::Engine) or
/// [`Denied`](crate::server::ServerError::Denied) may hold one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// No engine has this name.
    #[error("there is no engine '{0}': allowed are {names}", names = names())]
    Unknown(String),
    /// The service sends unasked, and this engine does not.
    #[error("{0} sends nothing unasked, and this service does: use another engine")]
    SendsNothingUnasked(EngineKind),
    /// The kernel answers by itself, and only as an echo.
    #[error("{0} only sends requests back, as the kernel does it, and runs no other service")]
    OnlyEchoes(EngineKind),
    /// Another program has this UDP port.
    #[error("UDP port {0} is taken by another program: stop it")]
    PortTaken(u16),
    /// The driver of this interface drops what an XDP program sends.
    #[error("the driver of {0} sends no frames for an XDP program")]
    SendsNoFrames(String),
    /// A packet of the interface does not fit into a frame.
    #[error(
        "a frame of {size} bytes is too small for packets of {interface}, whose MTU is {mtu}; set \
         an MTU of at most {largest_mtu}"
    )]
    FrameTooSmall {
        /// Bytes of a frame, as they were asked for.
        size: u32,
        /// The interface.
        interface: String,
        /// Its MTU.
        mtu: u32,
        /// Bytes of a frame that its packets need.
        needed: u32,
        /// The largest MTU whose packets fit.
        largest_mtu: u32,
    },
    /// This interface has no link-local address.
    #[error(
        "{0} has no link-local address, from which a multicast router has to speak: 'ip link set \
         {0} addrgenmode eui64' makes one when it is set up"
    )]
    NoLinkLocal(String),
    /// The kernel does not cut a large datagram where the interface computes no checksums: what its
    /// EIO means.
    #[error(
        "this kernel cuts no datagrams on an interface that computes no checksums: switch its tx \
         checksum offload on, or use Linux 6.11 or newer"
    )]
    CutsNone,
    /// The kernel has no io_uring, or not all of it that is needed.
    #[error("{0}")]
    NoUring(&'static str),
    /// A policy of this machine or container forbids io_uring: which one, and how to allow it.
    #[error("{0}")]
    UringForbidden(String),
    /// The memory of an io_uring exceeds a limit.
    #[error(
        "no memory for an io_uring: raise the limit of locked memory (ulimit -l) or that of the \
         control group"
    )]
    NoMemoryForUring,
}

fn names() -> String {
    all().map(|about| about.kind.name()).collect::<Vec<_>>().join(", ")
}
