//! A server, whole: what it needs is checked, its addresses made live, its engine opened, and in
//! the end all of it is taken back.

mod checks;
mod error;
#[cfg(feature = "cli")]
pub mod guard;
mod master;
mod silence;
mod spread;
mod symptoms;
mod watch;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::address::{Pool, Prefix, Schedule, Sources, Targets};
use crate::engine::{self, CounterSet, Engine, EngineConfig, EngineKind, supervise};
use crate::events::{Counters, Moves, Moving, Ready, Stats};
use crate::host::sandbox::{Role, Sandbox};
use crate::host::settings::{Changed, Keeper};
use crate::host::{self, Environment, Nearness};
use crate::live::{self, Bound, LiveSet, Method, Phases, Place, Rotated, Rotation, Step, Told};
use crate::net::ethtool;
use crate::net::netlink::{self, Link};
use crate::policy::{Handler, Ours};
use crate::service::{Echo, Service};
use crate::xdp::stacked;

use error::At;
pub use error::{Cause, ConfigError, ServerError};
#[cfg(feature = "lab")]
pub(crate) use master::takes_packets;
use silence::Silence;
use symptoms::Symptoms;
use watch::Watcher;

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
    // Dropped in this order: the engine stops answering before its addresses go.
    engine: Option<Box<dyn Engine>>,
    counters: Option<Box<dyn CounterSet>>,
    sandbox: Sandbox,
    settings: Vec<Changed>,
    bound: Held,
    ready: Ready,
    watcher: Watcher,
    /// What all addresses lie under.
    prefix: Prefix,
    silence: Silence,
}

/// Addresses that are live until this goes.
enum Held {
    Still(Bound),
    Moving(Box<Rotation>),
}

impl Held {
    fn phases(&self) -> &Phases {
        match self {
            Self::Still(bound) => bound.phases(),
            Self::Moving(rotation) => rotation.phases(),
        }
    }

    fn kernel_memory(&self) -> Option<u64> {
        match self {
            Self::Still(bound) => bound.kernel_memory(),
            Self::Moving(rotation) => rotation.kernel_memory(),
        }
    }

    /// Bytes of what this process keeps of them.
    fn list_memory(&self) -> u64 {
        match self {
            Self::Still(bound) => size_of_val(bound.addresses()) as u64,
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

    fn release(self, told: &mut Told) -> Result<Phases> {
        match self {
            Self::Still(bound) => bound.release(told),
            Self::Moving(rotation) => rotation.release(told),
        }
    }
}

/// The same while it serves.
enum Serving<'a> {
    Still(&'a mut Bound),
    /// Asks for those to be made live again that should be: a thread of its own moves them.
    Moving(Arc<AtomicBool>),
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
    /// Something has changed, or goes wrong, and the server goes on: a sentence for people.
    Notice(String),
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

/// Statistics are shown this often.
const PERIOD: Duration = Duration::from_secs(1);

/// The interface is looked at this often: a question to the kernel, of some 20 µs.
const LOOK: Duration = Duration::from_millis(100);

impl ServerConfig {
    /// Only to make the addresses of `pool` live on `interface`, and to answer for them what makes
    /// them so.
    #[must_use]
    pub fn hold(interface: String, pool: Pool, bind: Method) -> Self {
        Self {
            interface,
            targets: pool.into(),
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

    /// Which engine is needed, and whether it has to make the addresses live.
    fn engine(&self) -> Result<(Option<EngineKind>, bool)> {
        match (self.bind, self.engine) {
            (Method::LiveMap, engine) => {
                let engine = engine.unwrap_or(EngineKind::AFXDP);
                ensure!(engine.can(self.bind), ConfigError::NeedsProgram(engine));
                Ok((Some(engine), true))
            }
            (_, engine) => Ok((engine, false)),
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
        // Of another service it is not known how often it replies: once at least.
        let replies = service.as_echo().map_or(1, |echo| echo.replies.get().into());
        let config = &ServerConfig { replies, ..config.clone() };
        let link = netlink::link(&config.interface)?;
        let keeper = Keeper::open()?;
        let found = keeper.put_right()?;
        let put_right = found.join("; ");
        // It may have been left down.
        let link = if found.is_empty() { link } else { netlink::link(&config.interface)? };
        let started = Self::start_on(link, config, service, &keeper, found, step);
        // That it did not start is no reason not to say what it did.
        if put_right.is_empty() { started } else { started.context(put_right) }
    }

    fn start_on<S: Service>(
        mut link: Link,
        config: &ServerConfig,
        service: &S,
        keeper: &Keeper,
        mut notes: Vec<String>,
        step: &mut Step,
    ) -> Result<Self> {
        let (kind, hidden) = config.engine()?;
        ensure!(
            config.options.xdp.busy_poll.is_none() || kind.is_some_and(EngineKind::has_rings),
            ConfigError::BusyPoll
        );
        ensure!(
            config.options.xdp.limit.is_none() || kind.is_some_and(EngineKind::steers),
            ConfigError::Limit
        );
        let note = master::may_serve(&link, config.bind, config.engine.is_some() || hidden)?;
        notes.extend(note);
        checks::before(&link, config, kind)?;
        let sources = match &config.allow {
            Some(sources) => sources.clone(),
            // Before the addresses are bound: while that sets the link down, its routes are gone.
            None => Sources::new(netlink::on_link_prefixes(link.index)?),
        };
        if config.engine.is_some() && sources.prefixes().is_empty() {
            notes.push(format!(
                "{} has no on-link prefix: nobody is answered unless --allow names who",
                link.name
            ));
        }
        let allowed = sources.prefixes().iter().map(ToString::to_string).collect();
        let in_use = ethtool::queues(&link.name)?;
        let queues = queues(config, &link, kind)?;
        let cores = cores(config, &link, &queues)?;
        let served = queues.clone();
        if kind.is_some_and(EngineKind::steers) && link.xdp.is_some() {
            // Before thousands of addresses are bound for nothing; `attach` looks again.
            bail!(crate::xdp::occupied(&link));
        }
        let own: Vec<_> =
            netlink::addresses(link.index)?.into_iter().filter(|a| !a.ours).map(|a| a.ip).collect();
        if let Targets::Pool(pool) = &config.targets {
            if let Some(taken) = own.iter().find(|address| pool.contains(**address)) {
                let (address, interface) = (*taken, link.name.clone());
                bail!(ConfigError::Taken { address, interface });
            }
        }

        let started = Instant::now();
        let addresses = match &config.targets {
            Targets::Pool(pool) => pool.to_vec(1),
            Targets::Moving(_) => Vec::new(), // each computed when it is its turn
        };
        let generate_seconds = started.elapsed().as_secs_f64();
        let steers = kind.is_some_and(EngineKind::steers);
        // A hidden program alone knows what is live.
        let set = match &config.targets {
            Targets::Moving(timetable) if !hidden => Some(Arc::new(LiveSet::new(timetable))),
            _ => None,
        };
        let ours = match (&config.targets, &set) {
            (Targets::Pool(pool), _) => Ours::Pool(pool.clone()),
            (Targets::Moving(_), Some(set)) if !steers => Ours::Set(set.clone()),
            (Targets::Moving(_), passed) => {
                Ours::Steered { prefix: config.targets.prefix(), passed: passed.clone() }
            }
        };

        let engine_config = |link: &Link| EngineConfig {
            handler: Handler::new(if config.engine.is_some() { config.port } else { 0 }, ours, own)
                .only_for(sources),
            targets: config.targets.clone(),
            replies: config.replies,
            options: config.options.clone(),
            queues,
            cores,
            link: link.clone(),
            bind: config.bind,
            sandbox: config.sandbox,
            multicast_router: config.multicast_router,
        };
        let mut open_seconds = 0.0;
        let open = |kind: Option<EngineKind>, link: &Link| {
            let started = Instant::now();
            ensure!(
                link.up,
                "{0} is down: set it up with 'ip link set {0} up', or use --bind netlink-down",
                link.name
            );
            let engine =
                kind.map(|kind| engine::open(kind, &engine_config(link), service)).transpose();
            let engine = engine.map_err(At::opening);
            open_seconds = if kind.is_some() { started.elapsed().as_secs_f64() } else { 0.0 };
            Ok(engine?)
        };
        let bind = |link: &Link, live_addresses| {
            let place = Place { link, prefix: config.targets.prefix(), live_addresses };
            Ok::<_, anyhow::Error>(match &config.targets {
                Targets::Pool(_) => {
                    let bound = live::bind(config.bind, place, addresses, step);
                    Held::Still(bound.map_err(At::binding)?)
                }
                Targets::Moving(timetable) => {
                    let rotation =
                        Rotation::start(config.bind, place, timetable.clone(), set, step);
                    Held::Moving(Box::new(rotation.map_err(At::binding)?))
                }
            })
        };
        // Addresses that the engine makes live come after it, all others before: nothing is steered
        // that is not live.
        let (engine, bound) = if hidden {
            let mut engine = open(kind, &link)?;
            let live = engine.as_mut().and_then(|engine| engine.live_addresses());
            let bound = bind(&link, live)?;
            (engine, bound)
        } else {
            let mut bound = bind(&link, None)?;
            link = netlink::link(&link.name)?;
            let mut engine = open(kind, &link)?;
            let live = engine.as_mut().and_then(|engine| engine.live_addresses());
            if let (Held::Moving(rotation), Some(live)) = (&mut bound, live) {
                rotation.steer(live)?;
            }
            (engine, bound)
        };
        notes.extend(
            engine.as_ref().and_then(|engine| checks::too_large(&link, kind, engine.modes())),
        );
        // After the engine, which may have had the driver set up its queues anew.
        let mut settings = Vec::new();
        match (config.options.xdp.busy_poll, config.coalesce) {
            (_, Some(time)) => settings.extend(keeper.have_coalesced(&link, time)?),
            (Some(_), None) => settings.extend(keeper.have_polled(&link)?),
            (None, None) => {}
        }
        let count = stacked::queues(&link)?;
        let (spread, words) = spread::onto(keeper, &link, config.port, &served, count, hidden);
        settings.extend(spread);
        notes.extend(words);
        notes.extend(engine.iter().flat_map(|engine| engine.notes()));
        let ready = Ready {
            engine: config.engine,
            driver: ethtool::driver(&link.name)?,
            interface: link.name.clone(),
            port: config.port,
            replies: config.replies,
            addresses: config.targets.count(),
            moving: bound.moving(),
            bind: config.bind,
            generate_seconds,
            open_seconds,
            bind_seconds: bound.phases().seconds(),
            bind_phases: bound.phases().clone(),
            kernel_memory: bound.kernel_memory(),
            list_memory: bound.list_memory(),
            attach_asked: config.options.xdp.attach,
            copy_asked: config.options.xdp.copy,
            allowed,
            limit: config.options.xdp.limit,
            environment: Environment::of(&link),
            notes,
            metrics: None,
            sandbox: config.sandbox.is_on(),
            modes: engine.as_ref().map(|engine| engine.modes().clone()).unwrap_or_default(),
        };
        let counters = engine.as_ref().map(|engine| engine.counters()).transpose()?;
        let now = netlink::link_at(link.index)?;
        let now = now.with_context(|| format!("{} has gone meanwhile", link.name))?;
        let xdp = now.xdp.filter(|_| kind.is_some_and(EngineKind::steers));
        let silence =
            Silence::on(&link, hidden && config.engine.is_some() && !config.multicast_router);
        // What the engine was opened for, but as it is now: setting it up may have had the link
        // down.
        let known = Link { up: true, carrier_losses: now.carrier_losses, ipv6: now.ipv6, ..link };
        let watcher =
            Watcher::new(known, xdp.map(|xdp| xdp.id), config.bind, config.targets.count())?
                .with_queues(kind.is_some_and(EngineKind::steers).then_some(in_use))
                .with_follower(engine.as_ref().and_then(|engine| engine.follower()));
        // From here on nothing is opened that takes a privilege.
        let role = if config.bind.starts_programs() { Role::Commander } else { Role::Main };
        let takes_back = config.bind.takes_back() || !settings.is_empty();
        config.sandbox.enter_main(role, takes_back)?;
        let (sandbox, prefix) = (config.sandbox, config.targets.prefix());
        Ok(Self { engine, counters, sandbox, settings, bound, ready, watcher, prefix, silence })
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
        mut self,
        stop: &AtomicBool,
        mut tell: impl FnMut(Occasion),
        told: &mut Told,
    ) -> Result<Totals, ServerError> {
        let (counters, sandbox) = (self.counters, self.sandbox);
        let beats = || counters.as_ref().map(|counters| counters.beats()).unwrap_or_default();
        let started = Instant::now();
        let stats = |moves, lag| Stats {
            seconds: started.elapsed().as_secs_f64(),
            moves,
            counters: Counters {
                rotation_lag_seconds: lag,
                ..counters.as_ref().map(|counters| counters.read()).unwrap_or_default()
            },
        };
        let mut lag = None;
        let mut seen = Ok(());
        let (teller, rotated) = mpsc::channel();
        // For whichever thread has something to say.
        let (notices, noted) = mpsc::channel::<String>();
        let mut symptoms = Symptoms::default();
        let prefix = self.prefix;
        let mut moves =
            self.ready.moving.as_ref().map(|moving| Moves::none(moving.step, self.ready.addresses));
        let result = thread::scope(|scope| {
            let role = self.ready.bind.rotates_as();
            let (mut held, live, rotation) = match &mut self.bound {
                Held::Still(bound) => (Serving::Still(bound), None, None),
                Held::Moving(rotation) => {
                    let live = rotation.live();
                    let renew = rotation.renewal();
                    // Started by this thread, which may do what that has to do.
                    let thread = supervise::start(scope, stop, move || {
                        sandbox.enter(role)?;
                        // Who listens is there for as long as it runs.
                        let tell = |rotated| {
                            let _ = teller.send(rotated);
                        };
                        rotation.run(stop, tell, |words| {
                            let _ = notices.send(words);
                        })
                    });
                    (Serving::Moving(renew), live, Some(thread))
                }
            };
            // Addresses that move leave by themselves when they are live no more.
            let is_ours = |address| match &live {
                Some(live) => live.contains(address),
                None => prefix.contains(address),
            };
            let engine = self.engine.map(|engine| {
                supervise::start(scope, stop, move || {
                    sandbox.enter(Role::Engine)?;
                    engine.run(stop)
                })
            });
            let mut next = started + PERIOD;
            let mut look = started + LOOK;
            let mut before = beats();
            // A signal sets `stop` and cannot wake this thread: it looks often enough not to keep
            // anybody waiting.
            while !stop.load(Ordering::Relaxed)
                && !engine.as_ref().is_some_and(|engine| engine.is_finished())
            {
                thread::sleep(Duration::from_millis(20));
                let now = beats();
                if now.iter().zip(&before).all(|(now, before)| now != before) {
                    tell(Occasion::Alive);
                    before = now;
                }
                for rotated in rotated.try_iter() {
                    tell(Occasion::Rotation(&rotated));
                    if let Some(moves) = &mut moves {
                        moves.add(&rotated);
                    }
                    lag = Some(rotated.late_ms / 1000.0);
                }
                noted.try_iter().for_each(|words| tell(Occasion::Notice(words)));
                if Instant::now() >= next {
                    next += PERIOD;
                    let stats = stats(moves, lag);
                    tell(Occasion::Stats(&stats));
                    for words in
                        symptoms.look(&stats.counters).into_iter().chain(self.silence.look(&stats))
                    {
                        tell(Occasion::Notice(words));
                    }
                }
                if Instant::now() >= look {
                    look = Instant::now() + LOOK;
                    let found = self.watcher.look(is_ours);
                    // The engine has ended, and taken its program off itself.
                    if stop.load(Ordering::Relaxed) {
                        continue;
                    }
                    found.notices.into_iter().for_each(|words| tell(Occasion::Notice(words)));
                    if let Some(name) = found.renamed {
                        tell(Occasion::Renamed(name));
                    }
                    seen = match (found.end, &mut held) {
                        (Some(why), _) => Err(why),
                        (None, Serving::Moving(renew)) => {
                            renew.fetch_or(found.renew, Ordering::Relaxed);
                            Ok(())
                        }
                        (None, Serving::Still(bound)) => {
                            // Nothing announces the loss of what is no address of the kernel's.
                            if found.renew || !bound.seems_live().unwrap_or(true) {
                                let step = &mut |_| !stop.load(Ordering::Relaxed);
                                let renewed = bound.renew(step);
                                self.watcher.restored(renewed, stop).map(|words| {
                                    words
                                        .into_iter()
                                        .for_each(|words| tell(Occasion::Notice(words)));
                                })
                            } else {
                                Ok(())
                            }
                        }
                    };
                    stop.fetch_or(seen.is_err(), Ordering::Relaxed);
                }
            }
            let answered = engine.map_or(Ok(()), |engine| {
                engine.join().map_err(|_| anyhow!("the engine panicked"))?
            });
            let moved = supervise::wait_for(rotation);
            let moved = moved.context("the addresses cannot be moved");
            answered.map_err(ServerError::engine).and(moved.map_err(ServerError::binding))
        });
        // The engine may have been quicker, and have said less.
        if let (Ok(()), Err(_)) = (&seen, &result) {
            seen = self
                .watcher
                .look(|_| false)
                .end
                .filter(|_| self.watcher.has_gone())
                .map_or(Ok(()), Err);
        }
        tell(Occasion::Stopping);
        let stats = stats(moves, lag);
        for words in noted.try_iter().chain(symptoms.look(&stats.counters)) {
            tell(Occasion::Notice(words));
        }
        let put_back: Vec<_> = self.settings.into_iter().map(Changed::put_back).collect();
        let released = self.bound.release(told).context("some addresses stay");
        // What an engine says of an interface that has gone is less than what was seen.
        seen.map_err(ServerError::changed)?;
        result?;
        let unbind = released.map_err(ServerError::binding)?;
        let put_back: Result<Vec<_>> = put_back.into_iter().collect();
        let put_back = put_back.context("a setting stays changed").map_err(ServerError::setting)?;
        let notes = put_back.into_iter().flatten().collect();
        Ok(Totals { stats, unbind, notes })
    }
}

/// The queues to serve, each of which exists.
fn queues(config: &ServerConfig, link: &Link, engine: Option<EngineKind>) -> Result<Vec<u32>> {
    let served = existing(config, link, engine)?;
    let by_sockets = engine.is_some_and(EngineKind::has_rings) || config.bind == Method::LiveMap;
    stacked::can_send(link, if by_sockets { &served } else { &[] })?;
    Ok(served)
}

fn existing(config: &ServerConfig, link: &Link, engine: Option<EngineKind>) -> Result<Vec<u32>> {
    let count = stacked::queues(link)?;
    if !engine.is_some_and(EngineKind::steers) {
        return Ok(vec![]); // the kernel spreads a socket's work
    }
    if config.options.xdp.queues.is_empty() {
        return Ok((0..count).collect());
    }
    ensure!(engine.is_some_and(EngineKind::has_rings), ConfigError::QueuesOfReflect);
    for (index, queue) in config.options.xdp.queues.iter().enumerate() {
        let (interface, queue) = (link.name.clone(), *queue);
        ensure!(queue < count, ConfigError::NoQueue { interface, count, queue });
        ensure!(
            !config.options.xdp.queues[..index].contains(&queue),
            ConfigError::QueueTwice(queue)
        );
    }
    Ok(config.options.xdp.queues.clone())
}

/// The processors to pin to, each of which this process may use: near the interrupts of `queues`,
/// where there are any.
fn cores(config: &ServerConfig, link: &Link, queues: &[u32]) -> Result<Vec<usize>> {
    let allowed = host::allowed();
    if config.cores.is_empty() {
        // Without queues of its own an engine has one worker.
        let workers = if queues.is_empty() { &[0] } else { queues };
        let cores = Nearness::of(link).choose(workers, &allowed);
        return Ok(if cores.is_empty() { vec![0] } else { cores });
    }
    for core in &config.cores {
        if !allowed.contains(core) {
            bail!(ConfigError::NoCore { core: *core, allowed });
        }
    }
    Ok(config.cores.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Modes;
    use serde_json::json;

    /// One whose worker panics.
    struct Broken(Modes);

    impl Engine for Broken {
        fn modes(&self) -> &Modes {
            &self.0
        }

        fn counters(&self) -> Result<Box<dyn CounterSet>> {
            Ok(Box::new(Nothing))
        }

        fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
            thread::scope(|scope| {
                let worker = supervise::start(scope, stop, || panic!("as a test wants it"));
                supervise::wait_for([worker])
            })
        }
    }

    struct Nothing;

    impl CounterSet for Nothing {
        fn read(&self) -> Counters {
            Counters::default()
        }

        fn beats(&self) -> Vec<u64> {
            vec![]
        }
    }

    #[test]
    fn a_worker_that_panics_ends_the_server_with_an_error_and_all_is_taken_back() {
        let loopback = netlink::link("lo").unwrap();
        let place = Place {
            link: &loopback,
            prefix: "2001:db8::/64".parse().unwrap(),
            live_addresses: None,
        };
        let bound = live::bind(Method::None, place, vec![], &mut |_| true).unwrap();
        let ready = json!({
            "engine": "afxdp", "interface": "lo", "driver": "", "port": 3540, "replies": 10,
            "addresses": 0, "bind": "none", "generate_seconds": 0.0, "open_seconds": 0.0,
            "bind_seconds": 0.0, "bind_phases": [], "list_memory": 0, "queues": [], "cores": [],
        });
        let server = Server {
            engine: Some(Box::new(Broken(Modes::default()))),
            counters: Some(Box::new(Nothing)),
            sandbox: Sandbox::default(),
            settings: vec![],
            bound: Held::Still(bound),
            ready: serde_json::from_value(ready).unwrap(),
            watcher: Watcher::new(loopback.clone(), None, Method::None, 0).unwrap(),
            prefix: "2001:db8::/64".parse().unwrap(),
            silence: Silence::on(&loopback, false),
        };
        let stop = AtomicBool::new(false);
        let error = server.run(&stop, |_| {}, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "a worker panicked");
        assert!(stop.load(Ordering::Relaxed));
    }
}
