//! A server, whole: what it needs is checked, its addresses made live, its engine opened, and in the end all of it is
//! taken back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::handler::Handler;
use super::{CounterSet, Engine, EngineConfig, EngineKind};
use crate::address::Pool;
use crate::bind::{self, Bound, Method};
use crate::netlink;
use crate::report::{Ready, Stats};
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
    /// How to answer.
    pub engine: EngineKind,
    /// Where the XDP program is to run.
    pub attach: AttachRequest,
    /// Which copy mode to ask for.
    pub copy: CopyRequest,
    /// Queues to serve; empty for all that are in use.
    pub queues: Vec<u32>,
    /// Processors to pin to; empty for as many as there are workers.
    pub cores: Vec<usize>,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request.
    pub replies: u16,
}

/// Ready to answer.
pub struct Server {
    // Dropped in this order: the engine stops answering before its addresses go.
    engine: Box<dyn Engine>,
    bound: Bound,
    ready: Ready,
}

/// Statistics are shown this often.
const PERIOD: Duration = Duration::from_secs(1);

impl Server {
    /// Does everything that is needed before the first request can be answered. `stop` ends a bind that takes long.
    ///
    /// # Errors
    /// What is missing and what to do about it. Nothing is left behind.
    pub fn start(config: &ServerConfig, stop: &AtomicBool) -> Result<Self> {
        let mut link = netlink::link(&config.interface)?;
        let queues = queues(config)?;
        let cores = cores(config, queues.len())?;
        if config.engine == EngineKind::Afxdp && link.xdp.is_some() {
            // Before thousands of addresses are bound for nothing; `attach` looks again.
            bail!(crate::xdp::occupied(&link));
        }
        let own: Vec<_> =
            netlink::addresses(link.index)?.into_iter().filter(|a| !a.ours).map(|a| a.ip).collect();
        if let Some(taken) = own.iter().find(|address| config.pool.contains(**address)) {
            bail!("{taken} is an address of {} already: use another --seed or --prefix", link.name);
        }

        let started = Instant::now();
        let bound = bind::bind(config.bind, &link, config.pool.iter().collect(), stop)?;
        let bind_seconds = started.elapsed().as_secs_f64();
        link = netlink::link(&config.interface)?;
        ensure!(
            link.up,
            "{0} is down: set it up with 'ip link set {0} up', or use --bind netlink-down",
            link.name
        );

        let engine = super::open(
            config.engine,
            &EngineConfig {
                handler: Handler::new(config.port, config.pool.clone(), own),
                replies: config.replies,
                attach: config.attach,
                copy: config.copy,
                queues,
                cores,
                link: link.clone(),
            },
        )?;
        let ready = Ready {
            engine: config.engine,
            driver: ethtool::driver(&link.name)?,
            interface: link.name,
            port: config.port,
            replies: config.replies,
            addresses: config.pool.count(),
            bind: config.bind,
            bind_seconds,
            modes: engine.modes().clone(),
        };
        Ok(Self { engine, bound, ready })
    }

    /// What it really got.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Answers until `stop` is set, shows statistics once a second, takes the addresses back, and returns the totals.
    ///
    /// # Errors
    /// When the engine cannot go on or an address cannot be taken back. Everything else was taken back then.
    pub fn run(self, stop: &AtomicBool, mut show: impl FnMut(&Stats)) -> Result<Stats> {
        let counters = self.engine.counters()?;
        let started = Instant::now();
        let stats = |counters: &dyn CounterSet| Stats {
            seconds: started.elapsed().as_secs_f64(),
            counters: counters.read(),
        };
        let result = thread::scope(|scope| {
            let engine = scope.spawn(|| self.engine.run(stop));
            let mut next = started + PERIOD;
            // A signal sets `stop` and cannot wake this thread: it looks often enough not to keep anybody waiting.
            while !stop.load(Ordering::Relaxed) && !engine.is_finished() {
                thread::sleep(Duration::from_millis(20));
                if Instant::now() >= next {
                    next += PERIOD;
                    show(&stats(&*counters));
                }
            }
            engine.join().map_err(|_| anyhow!("the engine panicked"))?
        });
        let totals = stats(&*counters);
        let released = self.bound.release().context("some addresses stay");
        result.and(released).map(|()| totals)
    }
}

/// The queues to serve, each of which exists.
fn queues(config: &ServerConfig) -> Result<Vec<u32>> {
    let count = ethtool::queues(&config.interface)?;
    if config.engine != EngineKind::Afxdp {
        return Ok(vec![]); // the kernel spreads a socket's work
    }
    if config.queues.is_empty() {
        return Ok((0..count).collect());
    }
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

/// The processors to pin to, each of which this process may use.
fn cores(config: &ServerConfig, workers: usize) -> Result<Vec<usize>> {
    let allowed: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    if config.cores.is_empty() {
        let cores: Vec<_> = allowed.into_iter().take(workers.max(1)).collect();
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
