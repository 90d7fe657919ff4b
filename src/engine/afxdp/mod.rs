//! The engines that have an XDP program. afxdp: for each queue a socket, its rings, and a pinned
//! worker that owns both. reflect: the program answers by itself, and there are queues only where
//! neighbour discovery has to be answered.

mod counters;
mod open;
mod options;
mod run;

use std::sync::atomic::AtomicBool;

use anyhow::{Result, ensure};

use crate::engine::behind::Behind;
use crate::engine::multicast_router::MulticastRouter;
use crate::engine::worker::BATCH;
use crate::engine::{
    About, CounterSet, Engine, EngineConfig, EngineError, EngineKind, Follower, LinkAddress, Modes,
};
use crate::host::sandbox::{Role, Sandbox};
use crate::live::Delivering;
use crate::net::ethtool;
use crate::net::netdev::xdp_features;
use crate::net::netlink::Link;
use crate::net::quirks::{self, Act};
use crate::service::Service;
use crate::wire::OVERHEAD;
use crate::xdp::{Attachment, CopyMode, LiveAddresses, Program, Station, spare_frames};

use counters::AfXdpCounters;
use run::{Hidden, ServedQueue};

pub(crate) use counters::REDIRECT_FAILED;
pub use options::Options;

/// Frames of each queue. They are the queue of requests that wait while the worker is kept from its
/// processor: at 100,000 requests/s they hold 40 ms of them, which is more than a scheduler takes
/// away at a time.
pub const FRAMES: u32 = 4096;

/// Descriptors of the tx and completion rings. As many as frames: 409 requests of ten replies in
/// flight, and the kernel's budget of one system call.
const SEND_RING: u32 = 4096;

/// Frames of each queue that are kept for what a service sends without being asked.
const KEPT: u32 = 64;

/// Bytes that the kernel takes of each frame before the packet (XDP_PACKET_HEADROOM), Ethernet
/// header and VLAN tags.
const FRAME_OVERHEAD: u32 = 256 + 14 + 8;

/// Frames of a queue, for so many replies to each request, where the card's own receive ring is as
/// large as `card_ring`.
pub fn frames(copy: CopyMode, card_ring: Option<u32>, replies: u16) -> u32 {
    FRAMES + if copy == CopyMode::Zero { spare_frames(card_ring, elsewhere(replies)) } else { 0 }
}

/// Frames of a queue that are on their way out, or in the worker's hands, at most.
fn elsewhere(replies: u16) -> u32 {
    SEND_RING / u32::from(replies.max(1)) + BATCH as u32
}

/// Bytes of a frame that holds packets of `mtu` bytes, as far as any does: there are none larger
/// than 4,096.
pub fn frame_size(mtu: u32) -> u32 {
    if mtu.saturating_add(FRAME_OVERHEAD) <= 2048 { 2048 } else { 4096 }
}

/// Bytes of the largest request that fits into such a frame, behind XDP_PACKET_HEADROOM.
pub fn largest_request(frame_size: u32) -> u32 {
    frame_size.saturating_sub(256 + OVERHEAD as u32)
}

impl EngineKind {
    /// AF_XDP rings.
    pub const AFXDP: Self = Self::named("afxdp");
}

pub(super) const ABOUT: About = About {
    steers: true,
    sees_frames: true,
    has_rings: true,
    shares_frames: true,
    capabilities: &["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"],
    roles: &[Role::Ring],
    longest,
    ..About::new(EngineKind::AFXDP, "AF_XDP rings: no socket buffers, no system call per packet")
};

fn longest(modes: &Modes) -> Option<(u32, &'static str)> {
    let why = "larger ones do not fit into a frame of the rings and are dropped (xdp.rx_dropped)";
    modes.rings.map(|rings| (largest_request(rings.frame_size), why))
}

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(AfXdp::open(config, service, false)?))
}

pub(super) struct AfXdp<S> {
    // Fields are dropped in this order: first the kernel gets nothing for live addresses, then
    // nothing is steered any more, then the sockets go.
    delivering: Option<Delivering>,
    hidden: Option<Hidden>,
    /// Where switches are to be told that there is one.
    router: Option<MulticastRouter>,
    attachment: Attachment,
    program: Program,
    queues: Vec<ServedQueue<S>>,
    /// For who makes addresses live or moves them.
    live: Option<LiveAddresses>,
    /// Where there is a service.
    behind: Option<Behind<S>>,
    /// Replies to each request that the program itself sends; 0 where it sends none.
    reflected: u16,
    /// What its advertisements name.
    link_address: LinkAddress,
    /// Bytes of its frames, into which packets of a new MTU have to fit. `None` where its rings
    /// take only solicitations.
    frame_bytes: Option<u32>,
    modes: Modes,
    sandbox: Sandbox,
}

/// What of the interface program and workers keep.
struct Followed {
    station: Station,
    link_address: LinkAddress,
    frame_bytes: Option<u32>,
}

impl Follower for Followed {
    fn set_address(&self, mac: [u8; 6]) {
        self.station.set(mac);
        self.link_address.set(mac);
    }

    fn set_mtu(&self, mtu: u32) -> Result<()> {
        let Some(bytes) = self.frame_bytes else { return Ok(()) };
        ensure!(
            frame_size(mtu) <= bytes,
            "packets may be larger than its frames of {bytes} bytes, and would be dropped"
        );
        Ok(())
    }
}

/// Refuses a card that takes no frames from a program: the kernel would drop every reply, and say
/// nothing. A veth takes them once its other end polls, by an XDP program there or GRO, which may
/// come later than this server.
fn can_send_redirected(link: &Link) -> Result<()> {
    let features = xdp_features(link.index).ok().flatten();
    let can = features.is_none_or(|features| features.has("ndo-xmit"));
    if can || quirks::of_driver(&ethtool::driver(&link.name)?).has(Act::ReflectAllTheSame) {
        return Ok(());
    }
    Err(EngineError::SendsNoFrames(link.name.clone()).into())
}

/// Bytes in a frame, as they are asked for or as packets need.
fn chosen_frame_size(config: &EngineConfig) -> Result<u32> {
    let Link { name, mtu, .. } = &config.link;
    let needed = frame_size(*mtu);
    let size = config.options.xdp.frame_size.unwrap_or(needed);
    if size >= needed {
        return Ok(size);
    }
    let (interface, mtu) = (name.clone(), *mtu);
    let largest_mtu = size.saturating_sub(FRAME_OVERHEAD);
    Err(EngineError::FrameTooSmall { size, interface, mtu, needed, largest_mtu }.into())
}

impl<S: Service> Engine for AfXdp<S> {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn notes(&self) -> Vec<String> {
        let lacks = self.attachment.lacks_backstop().filter(|_| self.behind.is_some());
        lacks.map(str::to_owned).into_iter().collect()
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        Ok(Box::new(AfXdpCounters::of(self)?))
    }

    fn live_addresses(&mut self) -> Option<LiveAddresses> {
        self.live.take()
    }

    fn follower(&self) -> Option<Box<dyn Follower>> {
        let (station, link_address) = (self.program.station(), self.link_address.clone());
        Some(Box::new(Followed { station, link_address, frame_bytes: self.frame_bytes }))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self {
            attachment, program, queues, hidden, delivering, router, behind, sandbox, ..
        } = *self;
        let work = || {
            Self::work((attachment, delivering), &program, queues, (hidden, router), sandbox, stop)
        };
        match behind {
            Some(behind) => behind.beside(stop, work),
            None => work(),
        }
    }
}
