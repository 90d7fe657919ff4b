//! The sockets of [`batch`](super::batch), but equal replies pass the kernel's stack as one large
//! datagram, which it then cuts (UDP_SEGMENT).

use anyhow::Result;

use super::batch::Batch;
use super::{About, Engine, EngineConfig, EngineKind, udp};
use crate::host::sandbox::Role;
use crate::service::Service;

impl EngineKind {
    /// The best of the socket servers.
    pub const SOCKET_GSO: Self = Self::named("socket-gso");
}

pub(super) const ABOUT: About = About {
    roles: &[Role::Socket],
    longest: udp::longest,
    ..About::new(
        EngineKind::SOCKET_GSO,
        "The same, with all replies to a request as one datagram that the kernel cuts: the best of \
         the socket servers",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(Batch::open(config, service, true)?))
}
