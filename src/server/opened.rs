//! Carries out a plan up to the moment when the server is ready: addresses and engine in their
//! order, settings, the watcher, and last the sandbox.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use super::error::{At, InterfaceError};
use super::plan::{Decides, Order, ReceiveWork, ServerPlan};
use super::silence::Silence;
use super::watch::Watcher;
use super::{ServerConfig, checks, spread};
use crate::address::{Prefix, Schedule, Targets};
use crate::engine::{self, CounterSet, Engine, EngineConfig};
use crate::events::{Moving, Ready};
use crate::host::Environment;
use crate::host::sandbox::Sandbox;
use crate::host::settings::{Changed, Keeper};
use crate::live::{self, BindContext, Bound, LiveSet, Phases, Progress, Rotation, Told};
use crate::net::ethtool;
use crate::net::netlink::{self, Link};
use crate::policy::{Handler, Ours};
use crate::service::Service;
use crate::xdp::{LiveAddresses, stacked};

/// A server that is ready to answer.
pub(super) struct Opened {
    // Dropped in this order: the engine stops answering before its addresses go.
    pub engine: Option<Box<dyn Engine>>,
    pub counters: Option<Box<dyn CounterSet>>,
    pub sandbox: Sandbox,
    pub settings: Vec<Changed>,
    pub bound: Held,
    pub watcher: Watcher,
    /// The prefix of all addresses.
    pub prefix: Prefix,
    pub silence: Silence,
}

/// Addresses that are live until this is dropped.
pub(super) enum Held {
    Still { bound: Bound, generate_seconds: f64 },
    Moving(Box<Rotation>),
}

impl Held {
    fn phases(&self) -> &Phases {
        match self {
            Self::Still { bound, .. } => bound.phases(),
            Self::Moving(rotation) => rotation.phases(),
        }
    }

    /// How long it took to compute them in advance; moving ones are computed when needed.
    fn generate_seconds(&self) -> f64 {
        match self {
            Self::Still { generate_seconds, .. } => *generate_seconds,
            Self::Moving(_) => 0.0,
        }
    }

    fn kernel_memory(&self) -> Option<u64> {
        match self {
            Self::Still { bound, .. } => bound.kernel_memory(),
            Self::Moving(rotation) => rotation.kernel_memory(),
        }
    }

    /// Bytes of this process's own list of them.
    fn list_memory(&self) -> u64 {
        match self {
            Self::Still { bound, .. } => size_of_val(bound.addresses()) as u64,
            Self::Moving(rotation) => rotation.memory(),
        }
    }

    fn moving(&self) -> Option<Moving> {
        let Self::Moving(rotation) = self else { return None };
        Some(Moving {
            schedule: Schedule::Mt6d,
            clients: rotation.timetable().clients(),
            rotate: rotation.timetable().clock().period().as_secs_f64(),
            step: rotation.step(),
        })
    }

    pub fn release(self, told: &mut Told) -> Result<Phases> {
        match self {
            Self::Still { bound, .. } => bound.release(told),
            Self::Moving(rotation) => rotation.release(told),
        }
    }
}

/// An engine and the addresses that it answers on.
struct Answering {
    // Dropped in this order, as above.
    engine: Option<Box<dyn Engine>>,
    open_seconds: f64,
    bound: Held,
    /// The interface that the engine was opened for.
    link: Link,
}

/// The inputs of opening a server.
pub(super) struct Opening<'a, S> {
    pub config: &'a ServerConfig,
    pub plan: ServerPlan,
    pub keeper: &'a Keeper,
    pub service: &'a S,
    /// The minimum number of replies to each request.
    pub replies: u16,
}

impl<S: Service> Opening<'_, S> {
    /// Opens the server on `link`. `notes` say what was done before.
    ///
    /// # Errors
    /// What is missing and what to do about it. Nothing is left behind.
    pub fn open(
        self,
        link: Link,
        mut notes: Vec<String>,
        step: &mut Progress,
    ) -> Result<(Opened, Ready)> {
        let (config, plan) = (self.config, &self.plan);
        notes.extend(plan.notes.iter().cloned());
        let answering = self.answering(link, step)?;
        let link = &answering.link;
        // After the engine, because opening it may have made the driver rebuild its queues.
        let mut settings = self.settings(link)?;
        let modes = answering.engine.as_ref().map(|engine| engine.modes());
        notes.extend(modes.and_then(|modes| checks::too_large(link, plan.engine, modes)));
        let count = stacked::queues(link)?;
        let (spread, words) =
            spread::onto(self.keeper, link, config.port, &plan.queues, count, plan.hides());
        settings.extend(spread);
        notes.extend(words);
        notes.extend(answering.engine.iter().flat_map(|engine| engine.notes()));
        let ready = self.ready(&answering, notes)?;
        let counters = answering.engine.as_ref().map(|engine| engine.counters()).transpose()?;
        let watcher = self.watcher(&answering)?;
        let silence = Silence::on(link, plan.hears_solicitations);
        // From here on, nothing that needs a privilege is opened.
        let takes_back = config.bind.takes_back() || !settings.is_empty();
        config.sandbox.enter_main(plan.role, takes_back)?;
        let Answering { engine, bound, .. } = answering;
        let (sandbox, prefix) = (config.sandbox, config.targets.prefix());
        let opened =
            Opened { engine, counters, sandbox, settings, bound, watcher, prefix, silence };
        Ok((opened, ready))
    }

    /// Opens the engine and makes the addresses live, in the order of the plan.
    fn answering(&self, link: Link, step: &mut Progress) -> Result<Answering> {
        let set = self.live_set();
        let program = |engine: &mut Option<Box<dyn Engine>>| engine.as_mut()?.live_addresses();
        match self.plan.order {
            Order::EngineFirst => {
                let (mut engine, open_seconds) = self.engine(&link, set.clone())?;
                let bound = self.bind(&link, program(&mut engine), set, step)?;
                Ok(Answering { engine, open_seconds, bound, link })
            }
            Order::AddressesFirst => {
                let mut bound = self.bind(&link, None, set.clone(), step)?;
                // Binding may have set the link down and up.
                let link = netlink::link(&link.name)?;
                let (mut engine, open_seconds) = self.engine(&link, set)?;
                if let (Held::Moving(rotation), Some(live)) = (&mut bound, program(&mut engine)) {
                    rotation.steer(live)?;
                }
                Ok(Answering { engine, open_seconds, bound, link })
            }
        }
    }

    /// A table of the live addresses in this process, if the plan or the service needs one.
    fn live_set(&self) -> Option<Arc<LiveSet>> {
        let Targets::Moving(timetable) = &self.config.targets else { return None };
        let set = match self.plan.decides {
            _ if S::CLIENTS => LiveSet::new(timetable).with_clients(),
            Decides::Set | Decides::Program { and_set: true } => LiveSet::new(timetable),
            _ if S::UNASKED => LiveSet::new(timetable),
            _ => return None,
        };
        Some(Arc::new(set))
    }

    /// What the engine knows about live addresses.
    fn ours(&self, set: Option<Arc<LiveSet>>) -> Ours {
        let passed = match (&self.config.targets, self.plan.decides, set) {
            (Targets::Pool(pool), ..) => return Ours::Pool(pool.clone()),
            (Targets::Moving(_), Decides::Set, Some(set)) => return Ours::Set(set),
            (Targets::Moving(_), Decides::Program { and_set: true }, set) => set,
            (Targets::Moving(_), ..) => None,
        };
        Ours::Steered { prefix: self.config.targets.prefix(), passed }
    }

    /// The engine, if there is one, and how many seconds it took to open.
    fn engine(
        &self,
        link: &Link,
        set: Option<Arc<LiveSet>>,
    ) -> Result<(Option<Box<dyn Engine>>, f64)> {
        let started = Instant::now();
        if !link.up {
            return Err(InterfaceError::Down(link.name.clone()).into());
        }
        let Some(kind) = self.plan.engine else { return Ok((None, 0.0)) };
        let config = self.engine_config(link, set);
        let engine = engine::open(kind, &config, self.service).map_err(At::opening)?;
        Ok((Some(engine), started.elapsed().as_secs_f64()))
    }

    fn engine_config(&self, link: &Link, set: Option<Arc<LiveSet>>) -> EngineConfig {
        let (config, plan) = (self.config, &self.plan);
        let port = if plan.answers { config.port } else { 0 };
        let for_service = set.clone().filter(|_| S::CLIENTS || S::UNASKED);
        EngineConfig {
            handler: Handler::new(port, self.ours(set), plan.own.clone())
                .only_for(plan.sources.clone())
                .knowing(for_service),
            targets: config.targets.clone(),
            replies: self.replies,
            options: config.options.clone(),
            queues: plan.queues.clone(),
            cores: plan.cores.clone(),
            link: link.clone(),
            bind: config.bind,
            sandbox: config.sandbox,
            multicast_router: config.multicast_router,
        }
    }

    /// Makes the addresses live: through `live_addresses` of the program, or in the kernel.
    fn bind(
        &self,
        link: &Link,
        live_addresses: Option<LiveAddresses>,
        set: Option<Arc<LiveSet>>,
        step: &mut Progress,
    ) -> Result<Held> {
        let (method, targets) = (self.config.bind, &self.config.targets);
        let place = BindContext { link, prefix: targets.prefix(), live_addresses };
        Ok(match targets {
            Targets::Pool(pool) => {
                let started = Instant::now();
                let addresses = pool.to_vec(1);
                let generate_seconds = started.elapsed().as_secs_f64();
                let bound = live::bind(method, place, addresses, step).map_err(At::binding)?;
                Held::Still { bound, generate_seconds }
            }
            Targets::Moving(timetable) => {
                let rotation = Rotation::start(method, place, timetable.clone(), set, step);
                Held::Moving(Box::new(rotation.map_err(At::binding)?))
            }
        })
    }

    /// Changes how the kernel does the receive work of the interface.
    fn settings(&self, link: &Link) -> Result<Vec<Changed>> {
        match self.plan.receive_work {
            ReceiveWork::AsItDoes => Ok(Vec::new()),
            ReceiveWork::Polled => self.keeper.have_polled(link),
            ReceiveWork::Coalesced(time) => self.keeper.have_coalesced(link, time),
        }
    }

    fn watcher(&self, answering: &Answering) -> Result<Watcher> {
        let link = answering.link.clone();
        let now = netlink::link_at(link.index)?;
        let now = now.with_context(|| format!("{} has gone meanwhile", link.name))?;
        let program = now.xdp.filter(|_| self.plan.steers()).map(|xdp| xdp.id);
        // The link that the engine was opened for, with current values: opening it may have set the
        // link down for a while.
        let known = Link { up: true, carrier_losses: now.carrier_losses, ipv6: now.ipv6, ..link };
        let (bind, count) = (self.config.bind, self.config.targets.count());
        Ok(Watcher::new(known, program, bind, count)?
            .with_queues(self.plan.queues_in_use)
            .with_follower(answering.engine.as_ref().and_then(|engine| engine.follower())))
    }

    fn ready(&self, answering: &Answering, notes: Vec<String>) -> Result<Ready> {
        let (config, plan) = (self.config, &self.plan);
        let Answering { engine, open_seconds, bound, link } = answering;
        Ok(Ready {
            engine: config.engine,
            driver: ethtool::driver(&link.name)?,
            interface: link.name.clone(),
            port: config.port,
            replies: self.replies,
            addresses: config.targets.count(),
            moving: bound.moving(),
            bind: config.bind,
            generate_seconds: bound.generate_seconds(),
            open_seconds: *open_seconds,
            bind_seconds: bound.phases().seconds(),
            bind_phases: bound.phases().clone(),
            kernel_memory: bound.kernel_memory(),
            list_memory: bound.list_memory(),
            attach_asked: config.options.xdp.attach,
            copy_asked: config.options.xdp.copy,
            allowed: plan.sources.prefixes().iter().map(ToString::to_string).collect(),
            limit: config.options.xdp.limit,
            environment: Environment::of(link),
            notes,
            metrics: None,
            sandbox: config.sandbox.is_on(),
            modes: engine.as_ref().map(|engine| engine.modes().clone()).unwrap_or_default(),
        })
    }
}
