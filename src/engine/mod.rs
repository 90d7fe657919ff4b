//! ANSWERING: requests come in, replies go out. Several engines do it in different ways by the same
//! rules.
//!
//! ```text
//!   one worker a queue
//!     afxdp         rings ─► worker ─► rings
//!   no worker: the kernel runs it
//!     reflect       XDP program ─► interface
//!   the paper's server
//!     socket        listener thread ─► POSIX message queue ─► worker, sendmsg × n
//!   one worker a processor
//!     socket-batch  recvmmsg ─► worker ─► sendmmsg of all replies
//!     socket-gso    recvmmsg ─► worker ─► sendmmsg, equal replies as one (GSO)
//!     uring         multishot recvmsg ─► worker ─► sendmsg, on one io_uring
//!     raw           recvmmsg of frames ─► worker ─► sendmmsg, equal replies as one
//!     packet-ring   mapped ring ─► worker ─► mapped ring, equal replies as one
//!                                  └ Handler decides for all, a Service answers;
//!                                    bpf/sources.h and reflect.h by the same rules
//! ```
//!
//! Behind those that look at frames themselves is a UDP socket for what they do not take apart
//! (behind).
//!
//! An engine opens what it needs, says what the kernel granted, and answers until it is told to
//! stop. It makes no address live: that is the business of `live`, which the
//! [server](crate::server) does first.

mod advertiser;
mod behind;
mod error;
mod multicast_router;
mod outbox;
mod packet;
mod registry;
mod reply;
mod statistics;
pub(crate) mod supervise;
mod tpacket;
mod udp;
mod worker;

use std::sync::atomic::AtomicBool;

use anyhow::Result;

use crate::address::Targets;
use crate::events::Counters;
use crate::host::sandbox::Sandbox;
use crate::live::Method;
use crate::net::netlink::Link;
use crate::policy::Handler;
use crate::service::Service;
use crate::xdp::LiveAddresses;

#[doc(hidden)]
pub use advertiser::{Advertiser, LinkAddress};
pub use afxdp::Options as XdpOptions;
pub(crate) use afxdp::REDIRECT_FAILED;
#[doc(hidden)]
pub use afxdp::{FRAMES, frame_size, frames, largest_request};
pub use error::EngineError;
pub use packet_ring::Options as PacketRingOptions;
pub use registry::{About, all};
#[doc(hidden)]
pub use statistics::{Shown, Tally};
pub use tpacket::TPacket;
#[doc(hidden)]
pub use worker::Worker;

#[doc(inline)]
pub use crate::events::{AttachRequest, CopyRequest, EngineKind, HugepageRequest, Modes};
#[doc(inline)]
pub use crate::xdp::ModeError;

// Each has a file or folder of its own. `make test` formats these files by name: rustfmt does not
// look into macros for modules.
registry::engines! {
    afxdp,
    reflect,
    socket,
    batch,
    gso,
    uring,
    raw,
    packet_ring,
    #[cfg(test)] skeleton,
}

/// What an engine is to do, and with what.
#[doc(hidden)]
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The interface, in the namespace of the calling thread.
    pub link: Link,
    /// The addresses.
    pub targets: Targets,
    /// The answering rules.
    pub handler: Handler,
    /// Replies to each request, at least 1: how often an echo comes back, and the fewest of any
    /// other service.
    pub replies: u16,
    /// What is asked of the engines, each of which takes its own.
    pub options: Options,
    /// The queues to serve, all of them in use.
    pub queues: Vec<u32>,
    /// The processors to pin to, at least one; workers beyond their number share them in turn.
    pub cores: Vec<usize>,
    /// What its threads enter before they answer.
    pub sandbox: Sandbox,
    /// Whether switches are to be told that a multicast router is here; only with
    /// [`Method::LiveMap`].
    pub multicast_router: bool,
    /// How the addresses are made live. A steering program has to be told of those that move; with
    /// [`Method::LiveMap`] they are no addresses of the kernel: none is live until it is put into
    /// [`live_addresses`](Engine::live_addresses), and the engine answers neighbour discovery; only
    /// engines that have an XDP program can.
    pub bind: Method,
}

/// The options of all engines, each declared in its own file with its flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::Args), group(skip))]
pub struct Options {
    /// Of packet-ring.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub packet_ring: PacketRingOptions,
    /// Of those that have an XDP program: afxdp and reflect.
    #[cfg_attr(feature = "cli", command(flatten))]
    pub xdp: XdpOptions,
}

/// Something that answers requests, ready to run.
#[doc(hidden)]
pub trait Engine: Send {
    /// What the kernel granted.
    fn modes(&self) -> &Modes;

    /// Lines for people about what it does without.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// A way to read its counters while it runs.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    fn counters(&self) -> Result<Box<dyn CounterSet>>;

    /// Its hash of live addresses, to be had once; `None` where nobody else changes what is in it.
    fn live_addresses(&mut self) -> Option<LiveAddresses> {
        None
    }

    /// A way to tell it of changes of the interface while it runs; `None` where it keeps nothing of
    /// it.
    fn follower(&self) -> Option<Box<dyn Follower>> {
        None
    }

    /// Answers until `stop` is set. Counters are final when this returns.
    ///
    /// # Errors
    /// When it cannot go on: the interface is gone, say.
    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()>;
}

/// Takes over, while an engine runs, what has changed of its interface.
#[doc(hidden)]
pub trait Follower: Send {
    /// The interface has another Ethernet address.
    fn set_address(&self, _mac: [u8; 6]) {}

    /// The interface has another MTU.
    ///
    /// # Errors
    /// Why the engine cannot go on with it.
    fn set_mtu(&self, mtu: u32) -> Result<()>;
}

/// An engine's counters, readable from any thread.
#[doc(hidden)]
pub trait CounterSet: Send {
    /// What was counted since the engine was opened.
    fn read(&self) -> Counters;

    /// A number of each worker that changes at least once in two seconds while it is alive.
    fn beats(&self) -> Vec<u64>;
}

/// Pins the calling thread to processor `core`. Not being allowed to is no reason to stop: `cores`
/// was checked before.
fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}
