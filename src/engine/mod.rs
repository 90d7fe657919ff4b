//! ANSWERING: requests come in, replies go out. Several engines do it in different ways by the same
//! rules.
//!
//! ```text
//!   afxdp          rings ─► worker ─► rings                                       one worker a queue
//!   reflect        XDP program ─► interface                                       no worker: the kernel runs it
//!   socket         listener thread ─► POSIX message queue ─► worker, sendmsg × n  the paper's server
//!   socket-batch   recvmmsg ─► worker ─► sendmmsg of all replies                  one worker a processor
//!   socket-gso     recvmmsg ─► worker ─► sendmmsg, equal replies as one (GSO)     one worker a processor
//!   uring          multishot recvmsg ─► worker ─► sendmsg, on one io_uring        one worker a processor
//!   raw            recvmmsg of frames ─► worker ─► sendmmsg, equal replies as one  one worker a processor
//!   packet-ring    mapped ring ─► worker ─► mapped ring, equal replies as one      one worker a processor
//!                                 └ Handler decides for all, and a Service answers; and bpf/sources.h and reflect.h by the same rules
//! ```
//!
//! Behind those that look at frames themselves is a UDP socket for what they do not take apart
//! (behind).
//!
//! An engine opens what it needs, says what the kernel granted, and answers until it is told to
//! stop. It makes no address live: that is the business of `bind`, which [`Server`] does first.

mod advertiser;
mod afxdp;
mod batch;
mod behind;
mod checks;
mod handler;
mod master;
mod multicast_router;
mod packet;
mod packet_ring;
mod raw;
mod reply;
mod server;
mod silence;
mod socket;
mod spread;
mod statistics;
mod supervise;
mod symptoms;
mod tpacket;
mod udp;
mod uring;
mod watch;
mod worker;

use std::fmt;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::address::Targets;
use crate::bind::Method;
use crate::machine::sandbox::Sandbox;
use crate::netlink::{AttachMode, Link};
use crate::report::Counters;
use crate::service::Service;
use crate::xdp::{
    AttachRequest, BusyPoll, CopyMode, CopyRequest, Fallback, HugepageRequest, LiveAddresses,
    RingSizes,
};

pub use advertiser::{Advertiser, LinkAddress};
pub use afxdp::{FRAMES, frame_size, frames, largest_request};
pub use handler::{Handler, Ours};
pub(crate) use master::takes_packets;
pub use server::{Occasion, Server, ServerConfig, Totals};
pub use statistics::{Shown, Tally};
pub use tpacket::TPacket;
pub use worker::Worker;

/// The engines there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// AF_XDP rings: no socket buffers, no system call per packet
    Afxdp,
    /// The XDP program answers by itself: nothing comes to user space
    Reflect,
    /// The paper's server: a UDP socket, a message queue, and ten calls of sendmsg
    Socket,
    /// Sockets with many datagrams to a system call, a worker for each processor
    SocketBatch,
    /// The same, with all replies to a request as one datagram that the kernel cuts: the best of
    /// the socket servers
    SocketGso,
    /// io_uring: requests come without being asked for one by one, replies leave as with socket-gso
    Uring,
    /// Packet sockets: whole frames, with headers of our own, past the kernel's UDP and IPv6
    Raw,
    /// The same through memory that is shared with the kernel (PACKET_RX_RING, PACKET_TX_RING): no
    /// copy out of it per request
    PacketRing,
}

impl EngineKind {
    /// Whether it has an XDP program on the interface, which steers requests by their addresses,
    /// queue by queue.
    #[must_use]
    pub fn steers(self) -> bool {
        matches!(self, Self::Afxdp | Self::Reflect)
    }

    /// Whether it looks at frames itself, which are to begin with an Ethernet header.
    #[must_use]
    pub fn sees_frames(self) -> bool {
        self.steers() || matches!(self, Self::Raw | Self::PacketRing)
    }

    /// Whether it can answer on addresses that are made live by `method`: live-map takes a steering
    /// program.
    #[must_use]
    pub fn can(self, method: Method) -> bool {
        method != Method::LiveMap || self.steers()
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Afxdp => "afxdp",
            Self::Reflect => "reflect",
            Self::Socket => "socket",
            Self::SocketBatch => "socket-batch",
            Self::SocketGso => "socket-gso",
            Self::Uring => "uring",
            Self::Raw => "raw",
            Self::PacketRing => "packet-ring",
        })
    }
}

/// What an engine is to do, and with what.
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
    /// Where the XDP program is to run.
    pub attach: AttachRequest,
    /// Which copy mode to ask for.
    pub copy: CopyRequest,
    /// What its rings are to be like.
    pub rings: RingRequest,
    /// The queues to serve, all of them in use.
    pub queues: Vec<u32>,
    /// The processors to pin to, at least one; workers beyond their number share them in turn.
    pub cores: Vec<usize>,
    /// Requests of one source that are answered in a second; `None` for any number. Only engines
    /// that have an XDP program can.
    pub limit: Option<u32>,
    /// How the rings of packet-ring are laid out.
    pub tpacket: TPacket,
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

/// What is asked of AF_XDP rings besides their modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RingRequest {
    /// Bytes in a frame, 2048 or 4096; `None` for the smaller one that a packet fits into.
    pub frame_size: Option<u32>,
    /// Whether the frames are to lie on huge pages.
    pub hugepages: HugepageRequest,
    /// Preferred busy polling: for how long a worker that finds nothing to do does the card's
    /// receive work itself before it sleeps, in microseconds. `None` to leave that work to
    /// interrupts.
    pub busy_poll: Option<u32>,
}

/// What the kernel granted an engine: what it reports, not what was asked for. `None` where the
/// engine has no such thing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Modes {
    /// How its XDP program is attached.
    pub attach: Option<AttachMode>,
    /// How packets get into and out of its rings: `Zero` only when every queue's do.
    pub copy: Option<CopyMode>,
    /// The steps down that automatic choices took to these two.
    #[serde(default)]
    pub fallbacks: Vec<Fallback>,
    /// How its sockets poll the card, where they do.
    #[serde(default)]
    pub busy_poll: Option<BusyPoll>,
    /// Queues that it serves.
    pub queues: Vec<u32>,
    /// Processors that it is pinned to.
    pub cores: Vec<usize>,
    /// Whether its UMEM lies on huge pages.
    pub hugepages: Option<bool>,
    /// How large the rings of each queue are.
    #[serde(default)]
    pub rings: Option<RingSizes>,
    /// Messages that its queue holds.
    pub queue_depth: Option<i64>,
    /// Bytes of memory that requests may take which wait in its socket, as the kernel reports it
    /// (twice what was asked for).
    #[serde(default)]
    pub receive_buffer: Option<usize>,
    /// Whether the kernel cuts equal replies out of one large frame; otherwise each goes as a frame
    /// of its own.
    #[serde(default)]
    pub segmentation: Option<bool>,
    /// How its memory-mapped packet rings are laid out.
    #[serde(default)]
    pub tpacket: Option<TPacket>,
}

/// Something that answers requests, ready to run.
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
pub trait CounterSet: Send {
    /// What was counted since the engine was opened.
    fn read(&self) -> Counters;

    /// A number of each worker that changes at least once in two seconds while it is alive.
    fn beats(&self) -> Vec<u64>;
}

/// Opens the engine `kind`, whose workers answer by clones of `service`.
///
/// # Errors
/// When the kernel does not give it what it needs, with what to do about it; and when it is to
/// reflect, and the service is no echo.
pub fn open<S: Service>(
    kind: EngineKind,
    config: &EngineConfig,
    service: &S,
) -> Result<Box<dyn Engine>> {
    Ok(match kind {
        EngineKind::Afxdp => Box::new(afxdp::AfXdp::open(config, service, false)?),
        EngineKind::Reflect => Box::new(afxdp::AfXdp::open(config, service, true)?),
        EngineKind::Socket => Box::new(socket::SocketServer::open(config, service)?),
        EngineKind::SocketBatch => Box::new(batch::Batch::open(config, service, false)?),
        EngineKind::SocketGso => Box::new(batch::Batch::open(config, service, true)?),
        EngineKind::Uring => Box::new(uring::Uring::open(config, service)?),
        EngineKind::Raw => Box::new(raw::Raw::open(config, service)?),
        EngineKind::PacketRing => Box::new(packet_ring::PacketRing::open(config, service)?),
    })
}

/// Pins the calling thread to processor `core`. Not being allowed to is no reason to stop: `cores`
/// was checked before.
fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}
