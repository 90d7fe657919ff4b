//! SERVER: starts and runs a whole server, in three steps.
//!
//! ```text
//!   found ─► plan      facts of the machine, and what follows from them: no changes yet
//!            opened    addresses, engine, settings, sandbox, in the order of the plan
//!            running   answers, watches the interface, and takes everything back
//! ```

mod checks;
mod error;
mod found;
#[doc(hidden)]
#[cfg(feature = "cli")]
pub mod guard;
mod master;
mod opened;
mod plan;
mod running;
mod silence;
mod spread;
mod symptoms;
pub(crate) mod watch;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

use crate::address::{Sources, Targets};
use crate::engine::{self, EngineKind};
use crate::host::sandbox::Sandbox;
use crate::host::settings::Keeper;
use crate::live::{Method, Progress, Told};
use crate::net::netlink::{self, Link};
use crate::service::{Echo, Service};

#[doc(inline)]
pub use crate::events::{
    AttachMode, BusyPoll, CopyMode, Counters, Environment, Fallback, KernelCounters, Modes, Moves,
    Moving, Napi, Nic, Phase, Phases, QueueCounters, Ready, RingLevels, RingSizes, Rotated, Stats,
};
pub use error::{CannotSend, Cause, ConfigError, InterfaceError, ServerError};
use found::Found;
#[cfg(feature = "lab")]
pub(crate) use master::takes_packets;
use opened::{Opened, Opening};
use plan::ServerPlan;
pub use symptoms::Symptom;

/// What to serve.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name of the interface, in the namespace of the calling thread.
    pub interface: String,
    /// The addresses.
    pub targets: Targets,
    /// How to make them live.
    pub bind: Method,
    /// How to answer; `None` to hold the addresses without answering requests.
    pub engine: Option<EngineKind>,
    /// Options for the engines, each of which uses its own.
    pub options: engine::Options,
    /// Processors to pin to; empty to choose one for each worker.
    pub cores: Vec<usize>,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request, within 1 and 255, for the service of [`Server::start`].
    pub replies: u16,
    /// Who may ask; `None` for sources on the interface's own link.
    pub allow: Option<Sources>,
    /// Microseconds between two batches that the kernel receives from the interface; `None` to
    /// leave this as it is.
    pub coalesce: Option<u32>,
    /// Whether live-map and anyip may take a prefix to which this machine has other routes.
    pub take_prefix: bool,
    /// Whether to tell switches that snoop MLD that a multicast router is here, so that they
    /// forward all multicast.
    pub multicast_router: bool,
    /// Whether its threads drop privileges that they no longer need once it is ready. This is
    /// permanent: the thread that calls [`Server::start`] cannot be used for anything else
    /// afterwards.
    pub sandbox: Sandbox,
}

/// A server that is ready to answer.
pub struct Server {
    opened: Opened,
    ready: Ready,
}

/// What a running server reports.
#[derive(Debug)]
pub enum Occasion<'a> {
    /// Statistics, once a second.
    Stats(&'a Stats),
    /// The result of each step, once a step, with moving addresses.
    Rotation(&'a Rotated),
    /// The interface's new name.
    Renamed(String),
    /// Something has changed or goes wrong, and the server goes on.
    Notice {
        /// A sentence for people.
        text: String,
        /// The symptom, if it is a known one.
        symptom: Option<Symptom>,
    },
    /// Every worker has shown since the last time that it is alive. Checked several times a second.
    Alive,
    /// The server no longer answers, and takes its addresses back.
    Stopping,
}

/// The numbers that a server ends with.
#[derive(Debug, Clone)]
pub struct Totals {
    /// Its statistics.
    pub stats: Stats,
    /// How long taking the addresses back took.
    pub unbind: Phases,
    /// Lines for people: settings that were not put back, because somebody else changed them.
    pub notes: Vec<String>,
}

impl ServerConfig {
    /// Only makes addresses live on `interface`, and answers neighbour discovery for them if the
    /// method requires that. They come from a [`Pool`](crate::address::Pool) or a
    /// [`Timetable`](crate::address::mt6d::Timetable).
    #[must_use]
    pub fn hold(interface: String, targets: impl Into<Targets>, bind: Method) -> Self {
        Self {
            interface,
            targets: targets.into(),
            bind,
            engine: None,
            options: engine::Options::default(),
            cores: Vec::new(),
            port: 0,
            replies: 1,
            allow: None,
            coalesce: None,
            take_prefix: false,
            multicast_router: false,
            sandbox: Sandbox::default(),
        }
    }
}

/// Checks for a program of another kind what a server with live-map checks of `config`: IPv6,
/// memory, and that nobody else has a part of the prefix. Returns the device that the interface is
/// a port of, if that takes over its packets or is a VRF.
pub(crate) fn may_hide(config: &ServerConfig) -> Result<Option<Link>, ServerError> {
    let check = || {
        let found = Found::of(netlink::link(&config.interface)?, config)?;
        checks::before(config, &found, None)?;
        let takes = |above: &&Link| found.in_vrf || master::takes_packets(above.kind.as_deref());
        Ok(found.above().filter(takes).cloned())
    };
    check().map_err(ServerError::of_start)
}

impl Server {
    /// Same as [`start_with`](Self::start_with), with an echo that sends each request back
    /// [`replies`](ServerConfig::replies) times.
    ///
    /// # Errors
    /// As there.
    pub fn start(config: &ServerConfig, step: &mut Progress) -> Result<Self, ServerError> {
        Self::start_with(config, &Echo::new(config.replies), step)
    }

    /// Does everything that is needed before the first request. Clones of `service` then answer,
    /// one for each worker. `step` is called with the number of addresses bound so far, and can
    /// stop a long bind.
    ///
    /// # Errors
    /// What is missing and what to do about it. Nothing is left behind.
    pub fn start_with<S: Service>(
        config: &ServerConfig,
        service: &S,
        step: &mut Progress,
    ) -> Result<Self, ServerError> {
        Self::start_here(config, service, step).map_err(ServerError::of_start)
    }

    fn start_here<S: Service>(
        config: &ServerConfig,
        service: &S,
        step: &mut Progress,
    ) -> Result<Self> {
        let link = netlink::link(&config.interface)?;
        let keeper = Keeper::open()?;
        let notes = keeper.put_right()?;
        let put_right = notes.join("; ");
        // A killed run may have left the link down.
        let link = if notes.is_empty() { link } else { netlink::link(&config.interface)? };
        let started = Self::start_on(link, config, service, (&keeper, notes), step);
        // If the start fails, the error still reports what was put right.
        if put_right.is_empty() { started } else { started.context(put_right) }
    }

    fn start_on<S: Service>(
        link: Link,
        config: &ServerConfig,
        service: &S,
        (keeper, notes): (&Keeper, Vec<String>),
        step: &mut Progress,
    ) -> Result<Self> {
        let found = Found::of(link.clone(), config)?;
        let plan = ServerPlan::new(config, &found)?;
        // For other services the number of replies is unknown, but at least one.
        let replies = service.as_echo().map_or(1, |echo| echo.replies.get().into());
        let opening = Opening { config, plan, keeper, service, replies };
        let (opened, ready) = opening.open(link, notes, step)?;
        Ok(Self { opened, ready })
    }

    /// What it actually got.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Adds the address of its metrics to `ready`.
    pub fn with_metrics(&mut self, place: SocketAddr) {
        self.ready.metrics = Some(place);
    }

    /// Answers until `stop` is set, and reports events to `tell`. Then takes the addresses back,
    /// with progress to `told`, and returns the totals.
    ///
    /// # Errors
    /// When the engine cannot continue, when the interface or its XDP program is gone or has
    /// changed too much, or when a lost address cannot be made live again or an address cannot be
    /// taken back. Everything else has been taken back then.
    pub fn run(
        self,
        stop: &AtomicBool,
        tell: impl FnMut(Occasion),
        told: &mut Told,
    ) -> Result<Totals, ServerError> {
        running::run(self.opened, &self.ready, stop, tell, told)
    }
}
