//! A server, whole: what it needs is checked, its addresses made live, its engine opened, and in the end all of it is
//! taken back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::handler::Handler;
use super::{Engine, EngineConfig, EngineKind, RingRequest, TPacket, spread};
use crate::address::Pool;
use crate::bind::{self, Bound, Method, Phases, Place, Step, Told};
use crate::machine::{self, Environment, Nearness};
use crate::netlink::{self, Link};
use crate::report::{Ready, Stats};
use crate::settings::{Changed, Keeper, Setting};
use crate::xdp::{AttachRequest, CopyRequest, ethtool};

/// What to serve.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name of the interface, in the namespace of the calling thread.
    pub interface: String,
    /// The addresses.
    pub pool: Pool,
    /// How to make them live.
    pub bind: Method,
    /// How to answer; `None` to answer no requests, and only hold the addresses.
    pub engine: Option<EngineKind>,
    /// Where the XDP program is to run.
    pub attach: AttachRequest,
    /// Which copy mode to ask for.
    pub copy: CopyRequest,
    /// What AF_XDP rings are to be like.
    pub rings: RingRequest,
    /// Queues to serve; empty for all that are in use.
    pub queues: Vec<u32>,
    /// Processors to pin to; empty for as many as there are workers.
    pub cores: Vec<usize>,
    /// How the rings of packet-ring are to be laid out.
    pub tpacket: TPacket,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request, at least 1.
    pub replies: u16,
}

/// Ready to answer.
pub struct Server {
    // Dropped in this order: the engine stops answering before its addresses go.
    engine: Option<Box<dyn Engine>>,
    settings: Vec<Changed>,
    bound: Bound,
    ready: Ready,
    watcher: Watcher,
}

/// Looks at the interface: nothing tells an idle worker that it has gone, or what others have done to it.
struct Watcher {
    index: u32,
    socket: netlink::Socket,
    /// The kernel's number of the XDP program, where the engine has one.
    program: Option<u32>,
    was_up: bool,
}

/// What there is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sight {
    AsBefore,
    /// There is no such interface any more.
    Gone,
    /// Our XDP program is no longer on it.
    Detached,
    /// It was down, and is up again.
    UpAgain,
}

impl Watcher {
    fn look(&mut self) -> Sight {
        let Ok(links) = self.socket.links() else { return Sight::AsBefore };
        let Some(link) = links.into_iter().find(|link| link.index == self.index) else { return Sight::Gone };
        let was_up = std::mem::replace(&mut self.was_up, link.up);
        if self.program.is_some() && link.xdp.map(|xdp| xdp.id) != self.program {
            Sight::Detached
        } else if link.up && !was_up {
            Sight::UpAgain
        } else {
            Sight::AsBefore
        }
    }
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

/// What leaves the card's receive work to sockets that poll: interrupts stay off until the card was polled twice in vain and
/// 200 µs have gone by, so that they come back by themselves when the worker sleeps. The values of the kernel's own description
/// of preferred busy polling (Documentation/networking/napi.rst and the change that made it, Linux 5.11).
const BUSY_POLL_SETTINGS: [(&str, &str); 2] =
    [("napi_defer_hard_irqs", "2"), ("gro_flush_timeout", "200000")];

/// Statistics are shown this often.
const PERIOD: Duration = Duration::from_secs(1);

/// The interface is looked at this often: a question to the kernel, of some 20 µs.
const LOOK: Duration = Duration::from_millis(100);

impl ServerConfig {
    /// Only to make the addresses of `pool` live on `interface`, and to answer for them what makes them so.
    #[must_use]
    pub fn hold(interface: String, pool: Pool, bind: Method) -> Self {
        Self {
            interface,
            pool,
            bind,
            engine: None,
            attach: AttachRequest::Auto,
            copy: CopyRequest::Auto,
            rings: RingRequest::default(),
            queues: Vec::new(),
            cores: Vec::new(),
            tpacket: TPacket::default(),
            port: 0,
            replies: 1,
        }
    }

    /// Which engine is needed, and whether it has to make the addresses live.
    fn engine(&self) -> Result<(Option<EngineKind>, bool)> {
        match (self.bind, self.engine) {
            (Method::LiveMap, engine) => {
                let engine = engine.unwrap_or(EngineKind::Afxdp);
                ensure!(
                    engine.can(self.bind),
                    "--bind live-map needs an engine that has an XDP program, which {engine} has not: use afxdp or reflect"
                );
                Ok((Some(engine), true))
            }
            (_, engine) => Ok((engine, false)),
        }
    }
}

impl Server {
    /// Does everything that is needed before the first request can be answered. `step` is told how many addresses are bound,
    /// and ends a bind that takes long.
    ///
    /// # Errors
    /// What is missing and what to do about it. Nothing is left behind.
    pub fn start(config: &ServerConfig, step: &mut Step) -> Result<Self> {
        let link = netlink::link(&config.interface)?;
        let keeper = Keeper::open()?;
        let found = keeper.put_right()?;
        let put_right = found.join("; ");
        // It may have been left down.
        let link = if found.is_empty() { link } else { netlink::link(&config.interface)? };
        let started = Self::start_on(link, config, &keeper, found, step);
        // That it did not start is no reason not to say what it did.
        if put_right.is_empty() { started } else { started.context(put_right) }
    }

    fn start_on(
        mut link: Link,
        config: &ServerConfig,
        keeper: &Keeper,
        mut notes: Vec<String>,
        step: &mut Step,
    ) -> Result<Self> {
        let (kind, hidden) = config.engine()?;
        ensure!(
            config.rings.busy_poll.is_none() || kind == Some(EngineKind::Afxdp),
            "--busy-poll is for AF_XDP sockets: use --engine afxdp"
        );
        let queues = queues(config, kind)?;
        let cores = cores(config, &link, &queues)?;
        let served = queues.clone();
        if kind.is_some_and(EngineKind::steers) && link.xdp.is_some() {
            // Before thousands of addresses are bound for nothing; `attach` looks again.
            bail!(crate::xdp::occupied(&link));
        }
        let own: Vec<_> =
            netlink::addresses(link.index)?.into_iter().filter(|a| !a.ours).map(|a| a.ip).collect();
        if let Some(taken) = own.iter().find(|address| config.pool.contains(**address)) {
            bail!("{taken} is an address of {} already: use another --seed or --prefix", link.name);
        }

        let started = Instant::now();
        let addresses = config.pool.to_vec(1);
        let generate_seconds = started.elapsed().as_secs_f64();

        let engine_config = |link: &Link| EngineConfig {
            handler: Handler::new(
                if config.engine.is_some() { config.port } else { 0 },
                config.pool.clone(),
                own,
            ),
            replies: config.replies,
            attach: config.attach,
            copy: config.copy,
            rings: config.rings,
            queues,
            cores,
            tpacket: config.tpacket,
            link: link.clone(),
            bind: config.bind,
        };
        let mut open_seconds = 0.0;
        let open = |kind: Option<EngineKind>, link: &Link| {
            let started = Instant::now();
            ensure!(
                link.up,
                "{0} is down: set it up with 'ip link set {0} up', or use --bind netlink-down",
                link.name
            );
            let engine = kind.map(|kind| super::open(kind, &engine_config(link))).transpose();
            open_seconds = if kind.is_some() { started.elapsed().as_secs_f64() } else { 0.0 };
            engine
        };
        let bind = |link: &Link, live_addresses| {
            let place = Place { link, prefix: config.pool.prefix(), live_addresses };
            bind::bind(config.bind, place, addresses, step)
        };
        // Addresses that the engine makes live come after it, all others before: nothing is steered that is not live.
        let (engine, bound) = if hidden {
            let mut engine = open(kind, &link)?;
            let live = engine.as_mut().and_then(|engine| engine.live_addresses());
            let bound = bind(&link, live)?;
            (engine, bound)
        } else {
            let bound = bind(&link, None)?;
            link = netlink::link(&config.interface)?;
            (open(kind, &link)?, bound)
        };
        // After the engine, which may have had the driver set up its queues anew.
        let mut settings = Vec::new();
        if config.rings.busy_poll.is_some() {
            for (name, value) in BUSY_POLL_SETTINGS {
                let setting = Setting::sysfs(&link, name);
                let changed = keeper.change(&link, setting, value);
                settings.push(changed.context("busy polling cannot have what it needs")?);
            }
        }
        let count = ethtool::queues(&link.name)?;
        let (spread, words) = spread::onto(keeper, &link, config.port, &served, count);
        settings.extend(spread);
        notes.extend(words);
        let ready = Ready {
            engine: config.engine,
            driver: ethtool::driver(&link.name)?,
            interface: link.name.clone(),
            port: config.port,
            replies: config.replies,
            addresses: config.pool.count(),
            bind: config.bind,
            generate_seconds,
            open_seconds,
            bind_seconds: bound.phases().seconds(),
            bind_phases: bound.phases().clone(),
            kernel_memory: bound.kernel_memory(),
            list_memory: size_of_val(bound.addresses()) as u64,
            attach_asked: config.attach,
            copy_asked: config.copy,
            environment: Environment::of(&link),
            notes,
            modes: engine.as_ref().map(|engine| engine.modes().clone()).unwrap_or_default(),
        };
        let mut socket = netlink::Socket::open()?;
        let xdp = if kind.is_some_and(EngineKind::steers) { socket.link(&link.name)?.xdp } else { None };
        let watcher = Watcher { index: link.index, socket, program: xdp.map(|xdp| xdp.id), was_up: true };
        Ok(Self { engine, settings, bound, ready, watcher })
    }

    /// What it really got.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Answers until `stop` is set, shows statistics once a second, takes the addresses back, which `told` is told of, and returns
    /// the totals.
    ///
    /// # Errors
    /// When the engine cannot go on, the interface has gone, or its XDP program has, or an address cannot be made live again
    /// after the link was down, or cannot be taken back. Everything else was taken back then.
    pub fn run(mut self, stop: &AtomicBool, mut show: impl FnMut(&Stats), told: &mut Told) -> Result<Totals> {
        let counters = self.engine.as_ref().map(|engine| engine.counters()).transpose()?;
        let started = Instant::now();
        let stats = || Stats {
            seconds: started.elapsed().as_secs_f64(),
            counters: counters.as_ref().map(|counters| counters.read()).unwrap_or_default(),
        };
        let name = self.ready.interface.clone();
        let mut seen = Ok(());
        let result = thread::scope(|scope| {
            let engine = self.engine.map(|engine| scope.spawn(|| engine.run(stop)));
            let mut next = started + PERIOD;
            let mut look = started + LOOK;
            // A signal sets `stop` and cannot wake this thread: it looks often enough not to keep anybody waiting.
            while !stop.load(Ordering::Relaxed) && !engine.as_ref().is_some_and(|engine| engine.is_finished())
            {
                thread::sleep(Duration::from_millis(20));
                if Instant::now() >= next {
                    next += PERIOD;
                    show(&stats());
                }
                if Instant::now() >= look {
                    look = Instant::now() + LOOK;
                    seen = match self.watcher.look() {
                        Sight::AsBefore => continue,
                        Sight::Gone => Err(anyhow!(
                            "{name} has gone, and its {} addresses with it",
                            self.ready.addresses
                        )),
                        Sight::Detached => Err(anyhow!(
                            "somebody has taken the XDP program off {name}: requests would not come any more"
                        )),
                        Sight::UpAgain => {
                            self.bound.renew(&mut |_| !stop.load(Ordering::Relaxed)).map(drop).with_context(
                                || format!("{name} was set down, and its addresses went with that"),
                            )
                        }
                    };
                    stop.fetch_or(seen.is_err(), Ordering::Relaxed);
                }
            }
            engine.map_or(Ok(()), |engine| engine.join().map_err(|_| anyhow!("the engine panicked"))?)
        });
        let stats = stats();
        let put_back: Vec<_> = self.settings.into_iter().map(Changed::put_back).collect();
        let released = self.bound.release(told).context("some addresses stay");
        // What an engine says of an interface that has gone is less than what was seen.
        seen?;
        result?;
        let unbind = released?;
        let put_back: Result<Vec<_>> = put_back.into_iter().collect();
        let notes = put_back.context("a setting stays changed")?.into_iter().flatten().collect();
        Ok(Totals { stats, unbind, notes })
    }
}

/// The queues to serve, each of which exists.
fn queues(config: &ServerConfig, engine: Option<EngineKind>) -> Result<Vec<u32>> {
    let count = ethtool::queues(&config.interface)?;
    if !engine.is_some_and(EngineKind::steers) {
        return Ok(vec![]); // the kernel spreads a socket's work
    }
    if config.queues.is_empty() {
        return Ok((0..count).collect());
    }
    ensure!(
        engine != Some(EngineKind::Reflect),
        "reflect answers on whatever queue a request arrives: leave out --queues"
    );
    for (index, queue) in config.queues.iter().enumerate() {
        ensure!(
            *queue < count,
            "{} has {count} queue(s) in use, 0 to {}; queue {queue} is none of them",
            config.interface,
            count - 1
        );
        ensure!(!config.queues[..index].contains(queue), "queue {queue} is named twice");
    }
    Ok(config.queues.clone())
}

/// The processors to pin to, each of which this process may use: near the interrupts of `queues`, where there are any.
fn cores(config: &ServerConfig, link: &Link, queues: &[u32]) -> Result<Vec<usize>> {
    let allowed = machine::allowed();
    if config.cores.is_empty() {
        // Without queues of its own an engine has one worker.
        let workers = if queues.is_empty() { &[0] } else { queues };
        let cores = Nearness::of(link).choose(workers, &allowed);
        return Ok(if cores.is_empty() { vec![0] } else { cores });
    }
    for core in &config.cores {
        ensure!(
            allowed.contains(core),
            "processor {core} is not one of those that this process may use: {allowed:?}"
        );
    }
    Ok(config.cores.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CounterSet, Modes};
    use crate::report::Counters;
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
                let worker = super::super::supervise::start(scope, stop, || panic!("as a test wants it"));
                super::super::supervise::wait_for([worker])
            })
        }
    }

    struct Nothing;

    impl CounterSet for Nothing {
        fn read(&self) -> Counters {
            Counters::default()
        }
    }

    #[test]
    fn a_worker_that_panics_ends_the_server_with_an_error_and_all_is_taken_back() {
        let loopback = netlink::link("lo").unwrap();
        let place = Place { link: &loopback, prefix: "2001:db8::/64".parse().unwrap(), live_addresses: None };
        let bound = bind::bind(Method::None, place, vec![], &mut |_| true).unwrap();
        let ready = json!({
            "engine": "afxdp", "interface": "lo", "driver": "", "port": 3540, "replies": 10, "addresses": 0, "bind": "none",
            "generate_seconds": 0.0, "open_seconds": 0.0, "bind_seconds": 0.0, "bind_phases": [], "list_memory": 0,
            "queues": [], "cores": [],
        });
        let server = Server {
            engine: Some(Box::new(Broken(Modes::default()))),
            settings: vec![],
            bound,
            ready: serde_json::from_value(ready).unwrap(),
            watcher: Watcher {
                index: loopback.index,
                socket: netlink::Socket::open().unwrap(),
                program: None,
                was_up: true,
            },
        };
        let stop = AtomicBool::new(false);
        let error = server.run(&stop, |_| {}, &mut |_| {}).unwrap_err();
        assert_eq!(error.to_string(), "a worker panicked");
        assert!(stop.load(Ordering::Relaxed));
    }
}
