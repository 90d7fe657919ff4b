//! A server, whole, in three steps.
//!
//! ```text
//!   found ─► plan      what the machine has, and what follows from it: nothing has changed yet
//!            opened    addresses, engine, settings, sandbox, in the order of the plan
//!            running   answers, looks after the interface, and takes everything back
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
mod watch;

use std::net::SocketAddr;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};

use crate::address::{Sources, Targets};
use crate::engine::{self, EngineKind};
use crate::host::sandbox::Sandbox;
use crate::host::settings::Keeper;
use crate::live::{Method, Step, Told};
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
use plan::Plan;
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
    /// How to answer; `None` to answer no requests, and only hold the addresses.
    pub engine: Option<EngineKind>,
    /// What is asked of the engines, each of which takes its own.
    pub options: engine::Options,
    /// Processors to pin to; empty for as many as there are workers.
    pub cores: Vec<usize>,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request, within 1 and 255, of the service that [`Server::start`] starts.
    pub replies: u16,
    /// Who may ask; `None` for those on the interface's own link.
    pub allow: Option<Sources>,
    /// Microseconds between two batches that the kernel takes from the interface; `None` to leave
    /// that as it is.
    pub coalesce: Option<u32>,
    /// Whether live-map and anyip may take a prefix under which this machine has other routes.
    pub take_prefix: bool,
    /// Whether switches that snoop MLD are to be told that a multicast router is here, so that they
    /// pass on all multicast.
    pub multicast_router: bool,
    /// Whether its threads give up what they do not need once it is ready. That is for good: the
    /// thread that calls [`Server::start`] is good for nothing else afterwards.
    pub sandbox: Sandbox,
}

/// Ready to answer.
pub struct Server {
    opened: Opened,
    ready: Ready,
}

/// What is told of a server that runs.
#[derive(Debug)]
pub enum Occasion<'a> {
    /// Once a second, what it has done.
    Stats(&'a Stats),
    /// Once in each time step, where the addresses move, how that went.
    Rotation(&'a Rotated),
    /// The interface is called otherwise now.
    Renamed(String),
    /// Something has changed, or goes wrong, and the server goes on: a sentence for people, and
    /// what that shows, if it is a known symptom.
    Notice {
        /// The sentence.
        text: String,
        /// The symptom.
        symptom: Option<Symptom>,
    },
    /// Each of its workers has shown since the last time that it is alive. Looked for some times a
    /// second.
    Alive,
    /// It answers no more, and takes its addresses back.
    Stopping,
}

/// What a server leaves behind: numbers.
#[derive(Debug, Clone)]
pub struct Totals {
    /// What it did.
    pub stats: Stats,
    /// What taking the addresses back took.
    pub unbind: Phases,
    /// Lines for people: settings that were not put back, because somebody else has changed them.
    pub notes: Vec<String>,
}

impl ServerConfig {
    /// Only to make addresses live on `interface`, those of a [`Pool`](crate::address::Pool) or of
    /// a [`Timetable`](crate::address::mt6d::Timetable), and to answer for them what makes them so.
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

impl Server {
    /// As [`start_with`](Self::start_with), where the service is an echo: each request comes back
    /// [`replies`](ServerConfig::replies) times.
    ///
    /// # Errors
    /// As there.
    pub fn start(config: &ServerConfig, step: &mut Step) -> Result<Self, ServerError> {
        Self::start_with(config, &Echo::new(config.replies), step)
    }

    /// Does everything that is needed before the first request can be answered, which clones of
    /// `service` do, one a worker. `step` is told how many addresses are bound, and ends a bind
    /// that takes long.
    ///
    /// # Errors
    /// What is missing and what to do about it. Nothing is left behind.
    pub fn start_with<S: Service>(
        config: &ServerConfig,
        service: &S,
        step: &mut Step,
    ) -> Result<Self, ServerError> {
        Self::start_here(config, service, step).map_err(ServerError::of_start)
    }

    fn start_here<S: Service>(config: &ServerConfig, service: &S, step: &mut Step) -> Result<Self> {
        let link = netlink::link(&config.interface)?;
        let keeper = Keeper::open()?;
        let notes = keeper.put_right()?;
        let put_right = notes.join("; ");
        // It may have been left down.
        let link = if notes.is_empty() { link } else { netlink::link(&config.interface)? };
        let started = Self::start_on(link, config, service, (&keeper, notes), step);
        // That it did not start is no reason not to say what it did.
        if put_right.is_empty() { started } else { started.context(put_right) }
    }

    fn start_on<S: Service>(
        link: Link,
        config: &ServerConfig,
        service: &S,
        (keeper, notes): (&Keeper, Vec<String>),
        step: &mut Step,
    ) -> Result<Self> {
        let found = Found::of(link.clone(), config)?;
        let plan = Plan::new(config, &found)?;
        // Of another service it is not known how often it replies: once at least.
        let replies = service.as_echo().map_or(1, |echo| echo.replies.get().into());
        let opening = Opening { config, plan, keeper, service, replies };
        let (opened, ready) = opening.open(link, notes, step)?;
        Ok(Self { opened, ready })
    }

    /// What it really got.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Says in `ready` where its metrics are to be had.
    pub fn with_metrics(&mut self, place: SocketAddr) {
        self.ready.metrics = Some(place);
    }

    /// Answers until `stop` is set, has `tell` told what there is to tell meanwhile, takes the
    /// addresses back, which `told` is told of, and returns the totals.
    ///
    /// # Errors
    /// When the engine cannot go on, the interface has gone or changed so that it cannot, its XDP
    /// program has gone, or an address cannot be made live again after it was lost, or cannot be
    /// taken back. Everything else was taken back then.
    pub fn run(
        self,
        stop: &AtomicBool,
        tell: impl FnMut(Occasion),
        told: &mut Told,
    ) -> Result<Totals, ServerError> {
        running::run(self.opened, &self.ready, stop, tell, told)
    }
}
