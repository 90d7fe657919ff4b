//! The XDP program answers by itself, and nothing comes to user space. It stands on what
//! [`afxdp`](super::afxdp) has: the same program, its attachment and its counters; rings only where
//! neighbour discovery has to be answered.

use anyhow::Result;

use super::afxdp::AfXdp;
use super::{About, Engine, EngineConfig, EngineError, EngineKind};
use crate::host::sandbox::Role;
use crate::service::Service;

impl EngineKind {
    /// The XDP program answers by itself.
    pub const REFLECT: Self = Self::named("reflect");
}

pub(super) const ABOUT: About = About {
    steers: true,
    sees_frames: true,
    any_service: false,
    shares_frames: true,
    capabilities: &["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"],
    roles: &[Role::Ring],
    ..About::new(
        EngineKind::REFLECT,
        "The XDP program answers by itself: nothing comes to user space",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    if service.as_echo().is_none() {
        return Err(EngineError::OnlyEchoes(EngineKind::REFLECT).into());
    }
    Ok(Box::new(AfXdp::open(config, service, true)?))
}
