//! The socket behind an engine that looks at frames: it answers by the same rules what has more
//! before its UDP header than an IPv6 header, which the kernel takes apart: extension headers and
//! fragments. So no client sees a difference between engines.
//!
//! ```text
//!   XDP program, or tap ─┬─ UDP directly over IPv6 ──► the engine
//!                        └─ anything else ──► kernel ──► UDP socket ─► Handler ─► the same replies
//! ```
//!
//! One thread that sleeps unless such a request comes. It also keeps the port from other programs,
//! and the kernel from telling clients that nobody listens there.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use anyhow::{Result, anyhow, ensure};

use super::batch::Batch;
use super::udp::SocketCounters;
use super::{Engine, EngineConfig, Follower, LinkAddress, packet};
use crate::service::Service;

/// The socket, and what answers from it.
pub(super) struct Behind<S>(Batch<S>);

struct BesideTaps {
    sockets: Vec<Arc<OwnedFd>>,
    room: u32,
    own: LinkAddress,
}

impl Follower for BesideTaps {
    fn set_address(&self, mac: [u8; 6]) {
        self.own.set(mac);
    }

    fn set_mtu(&self, mtu: u32) -> Result<()> {
        ensure!(
            mtu <= self.room,
            "its buffers hold packets of {} bytes, and longer ones would be cut off",
            self.room
        );
        self.sockets.iter().try_for_each(|socket| packet::leave_to_taps(socket, mtu))
    }
}

impl<S: Service> Behind<S> {
    /// Behind an XDP program, which passes what is for it.
    pub fn program(config: &EngineConfig, service: &S) -> Result<Self> {
        Batch::alone(config, service).map(Self)
    }

    /// Beside taps, which get a copy of what the socket gets: it takes only what they do not.
    pub fn taps(config: &EngineConfig, service: &S) -> Result<Self> {
        let batch = Batch::alone(config, service)?;
        for socket in &batch.socket_counters().sockets {
            packet::leave_to_taps(socket, config.link.mtu)?;
        }
        Ok(Self(batch))
    }

    /// What it counts.
    pub fn counters(&self) -> SocketCounters {
        self.0.socket_counters()
    }

    /// A way to tell the socket of another MTU, where it is beside taps whose buffers hold packets
    /// of `room` bytes, and these of another Ethernet address than `own`.
    pub fn follower(&self, room: u32, own: LinkAddress) -> Box<dyn Follower> {
        Box::new(BesideTaps { sockets: self.counters().sockets, room, own })
    }

    /// Answers on a thread of its own until `stop` is set, while the engine does its `work`.
    pub fn beside(self, stop: &AtomicBool, work: impl FnOnce() -> Result<()>) -> Result<()> {
        thread::scope(|scope| {
            let answering = scope.spawn(|| Box::new(self.0).run(stop));
            let worked = work();
            let answered =
                answering.join().map_err(|_| anyhow!("the thread of the socket behind panicked"));
            worked.and(answered?)
        })
    }
}
