//! Compares engines by the rate that each sustains, in the same lab, with the same addresses and
//! load.
//!
//! ```text
//!   namespace sixhop-compare-client          namespace sixhop-compare-server
//!   generator (this process, core B) ═ veth ═ sixhop serve --engine E (a process, core A)
//! ```
//!
//! An existing lab works too, such as a guest's with its cards. All contestants run their first
//! search, then all their second, and so on: the speed of a shared machine varies over time, and no
//! engine should have a fast phase to itself.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::only_one;
use super::peer::{PeerProcess, PeerProgram};
use super::search::{Attempt, highest};
use super::server::{LaunchConfig, ServerHost, ServerProcess};
use crate::address::Pool;
use crate::engine::EngineKind;
use crate::events::{Cell, Contestant, EngineResult, LoadResult, Ready, rate as words};
use crate::host::{Environment, Ticks};
use crate::lab::{Lab, Side};
use crate::live::Method;
use crate::load::{Generator, LoadClient, LoadConfig, Run};
use crate::server::ServerConfig;

/// What to compare, under which load.
#[derive(Debug, Clone)]
pub struct CompareConfig {
    /// The engines, in the order of the table.
    pub engines: Vec<EngineKind>,
    /// Other programs, listed after the engines.
    pub peers: Vec<PeerProgram>,
    /// The numbers of addresses: all contestants run with the first, then all with the next.
    pub addresses: Vec<u64>,
    /// How to bind them.
    pub bind: Method,
    /// The seed that selects them.
    pub seed: u64,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Length of a trial, in seconds.
    pub trial: f64,
    /// The mean time to the first reply up to which a rate is sustained, in microseconds.
    pub mean: f64,
    /// For how many microseconds the client busy-polls its interface, if at all.
    pub client_busy_poll: Option<u32>,
    /// Microseconds between two batches that the kernel takes from either interface, for every
    /// contestant; `None` leaves the setting alone.
    pub coalesce: Option<u32>,
    /// An existing lab, used as it is. `None` makes one for this comparison.
    pub lab: Option<Lab>,
}

/// The progress of a comparison.
pub struct CompareProgress {
    /// Steps finished so far.
    pub done: u64,
    /// All steps.
    pub steps: u64,
    /// The current activity.
    pub doing: String,
}

/// How many searches each contestant runs, each with a fresh server.
const RUNS: usize = 3;

/// The first rate tried. Low, since the result does not depend on it; the search also goes below
/// it.
const START: f64 = 4000.0;

/// The highest rate tried: beyond what one core can generate.
const CEILING: f64 = 2_000_000.0;

/// The share of requests that must have all their replies for a rate to be sustained. [`ON_TIME`]
/// and [`CompareConfig::mean`] are the other conditions.
const COMPLETE: f64 = 0.999;

/// The share of the rate that the generator must send in time: a late generator proves nothing
/// about a server.
const ON_TIME: f64 = 0.99;

/// How long a server may take to get ready: the paper needed 216 s to bind 55,000 addresses.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Compares the engines, and calls `show` with the progress.
///
/// # Errors
/// Without root; if another comparison is running, an engine cannot start, or `stop` is set. Takes
/// down the lab that it made, in every case.
pub fn compare(
    config: &CompareConfig,
    stop: &AtomicBool,
    mut show: impl FnMut(CompareProgress) + Send,
) -> Result<Vec<EngineResult>> {
    let _only = only_one("sixhop-compare")?;
    let mut results = match &config.lab {
        Some(lab) => on_lab(lab, config, stop, &mut show)?,
        None => {
            let lab = Lab::named("sixhop-compare")?;
            lab.down()?; // left by a killed run
            lab.up(1)?;
            let result = on_lab(&lab, config, stop, &mut show);
            let down = lab.down();
            let results = result?;
            down?;
            results
        }
    };
    for index in 0..results.len() {
        let addresses = results[index].addresses;
        let socket = results.iter().find(|r| {
            r.engine == Contestant::Engine(EngineKind::SOCKET) && r.addresses == addresses
        });
        results[index].ratio_to_socket =
            socket.map(|socket| results[index].sustained_rps / socket.sustained_rps);
    }
    Ok(results)
}

fn on_lab(
    lab: &Lab,
    config: &CompareConfig,
    stop: &AtomicBool,
    show: &mut (impl FnMut(CompareProgress) + Send),
) -> Result<Vec<EngineResult>> {
    let host = ServerHost::lab(lab)?;
    let engines = config.engines.iter().map(|engine| Contestant::Engine(*engine));
    let contestants: Vec<_> = engines
        .chain(config.peers.iter().map(|peer| Contestant::Peer(peer.name.clone())))
        .collect();
    let steps = (config.addresses.len() * contestants.len() * RUNS) as u64;
    let mut done = 0;
    let mut results = Vec::new();
    for &addresses in &config.addresses {
        let pool = Pool::new(host.prefix, addresses, config.seed)?;
        let mut all: Vec<Vec<Searched>> = contestants.iter().map(|_| Vec::new()).collect();
        for run in 1..=RUNS {
            for (who, searched) in contestants.iter().zip(&mut all) {
                let mut show = |doing| {
                    show(CompareProgress {
                        done,
                        steps,
                        doing: format!("{who}, run {run} of {RUNS}: {doing}"),
                    })
                };
                show(format!("binding {addresses} addresses"));
                let search = Search { lab, host: &host, config, who, pool: &pool, stop };
                searched.push(search.run(searched.last(), &mut show)?);
                done += 1;
            }
        }
        for (who, searched) in contestants.iter().zip(all) {
            results.push(result(config, who, searched).context("no search ran")?);
        }
    }
    Ok(results)
}

/// The processors of the server and the client.
fn cores() -> Result<[usize; 2]> {
    let cores: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    match (cores.first(), cores.last()) {
        (Some(&server), Some(&client)) => Ok([server, client]),
        _ => bail!("cannot list the processors that this process may use"),
    }
}

/// One search for a contestant's rate.
struct Search<'a> {
    lab: &'a Lab,
    host: &'a ServerHost,
    config: &'a CompareConfig,
    who: &'a Contestant,
    pool: &'a Pool,
    stop: &'a AtomicBool,
}

impl<'a> Search<'a> {
    /// Starts the contestant, searches for its rate, and stops it. `last` is the result of an
    /// earlier search.
    fn run(
        &self,
        last: Option<&Searched>,
        show: &mut (impl FnMut(String) + Send),
    ) -> Result<Searched> {
        let [server_core, client_core] = cores()?;
        let mut running = self.start(server_core, client_core)?;
        let server = running.ready()?.clone();
        // An engine without a worker runs in the kernel, on the processor that its interface
        // interrupts: the server's.
        let cores = match server.modes.cores.as_slice() {
            [] => vec![server_core],
            cores => cores.to_vec(),
        };
        let measured = self.lab.run_in(Side::Client, || {
            core_affinity::set_for_current(core_affinity::CoreId { id: client_core });
            let mut generator = self.generator()?;
            if let Contender::Peer(process, peer) = &mut running {
                process.wait(peer, &mut generator, self.stop)?;
            }
            let (trial, mean) = (self.config.trial, self.config.mean);
            let mut trials =
                ServerTrials { generator, cores: &cores, trial, mean, stop: self.stop };
            let (run, half) = trials.search(last.map(|last| last.run.load.offered_rate), show)?;
            Ok((run, half, trials.generator.environment()))
        });
        let stopped = running.stop(self.who);
        let (run, half, environment) = measured?;
        stopped?;
        Ok(Searched { run, half, server, environment })
    }

    fn start(&self, server_core: usize, client_core: usize) -> Result<Contender<'a>> {
        let Self { lab, host, config, pool, stop, .. } = *self;
        match self.who {
            Contestant::Engine(engine) => {
                let (cores, port) = (server_core.to_string(), config.port.to_string());
                let mut flags = ["--cores", &cores, "--port", &port].map(OsString::from).to_vec();
                if let Some(time) = config.coalesce {
                    flags.extend(["--coalesce".into(), time.to_string().into()]);
                }
                let order = LaunchConfig {
                    cell: Cell { engine: *engine, bind: config.bind, addresses: pool.count() },
                    seed: config.seed,
                    moving: None,
                    replies: config.replies,
                    flags,
                };
                let process = ServerProcess::start(host, &order, START_LIMIT, stop)?;
                Ok(Contender::Engine(Box::new(process)))
            }
            Contestant::Peer(name) => {
                let peer = config.peers.iter().find(|peer| peer.name == *name);
                let peer = peer.context("no such peer")?;
                let interface = Side::Server.interface().to_owned();
                let held = ServerConfig {
                    coalesce: config.coalesce,
                    ..ServerConfig::hold(interface, pool.clone(), config.bind)
                };
                let cores = [server_core, client_core];
                let process = PeerProcess::start(lab, peer, &held, pool, config.port, cores, stop)?;
                Ok(Contender::Peer(Box::new(process), peer))
            }
        }
    }

    fn generator(&self) -> Result<Generator> {
        Generator::open(LoadConfig {
            client: LoadClient::Afxdp,
            interface: Side::Client.interface().to_owned(),
            targets: self.pool.clone().into(),
            port: self.config.port,
            replies: self.config.replies,
            payload: self.config.payload,
            busy_poll: self.config.client_busy_poll,
            coalesce: self.config.coalesce,
        })
    }
}

/// The result for `who`; `None` without a search.
fn result(
    config: &CompareConfig,
    who: &Contestant,
    searched: Vec<Searched>,
) -> Option<EngineResult> {
    let at = median(&searched)?;
    let (TrialFigures { load, cpu }, half, ready) = (&at.run, &at.half, &at.server);
    let mean = |load: &LoadResult| load.outcome.first.as_ref().map(|times| times.mean_us);
    let p99 = |load: &LoadResult| load.outcome.first.as_ref().map(|times| times.p99_us);
    Some(EngineResult {
        engine: who.clone(),
        attach: ready.modes.attach,
        copy: ready.modes.copy,
        addresses: ready.addresses,
        bind: ready.bind,
        replies: config.replies.into(),
        payload: config.payload,
        mean_limit_us: config.mean,
        sustained_rps: load.offered_rate,
        replies_pps: load.outcome.replies as f64 * load.achieved_rate / load.sent as f64,
        mean_us: mean(load),
        p99_us: p99(load),
        server_cpu: *cpu,
        half_rps: half.load.offered_rate,
        half_mean_us: mean(&half.load),
        half_p99_us: p99(&half.load),
        half_server_cpu: half.cpu,
        ratio_to_socket: None,
        runs: searched.iter().map(|searched| searched.run.load.offered_rate).collect(),
        client: load.client,
        client_attach: load.attach,
        client_copy: load.copy,
        client_busy_poll: load.busy_poll,
        sustained: searched.iter().map(|searched| searched.run.load.clone()).collect(),
        half: searched.iter().map(|searched| searched.half.load.clone()).collect(),
        server: ready.clone(),
        environment: at.environment.clone(),
    })
}

/// A running contestant.
enum Contender<'a> {
    Engine(Box<ServerProcess>),
    Peer(Box<PeerProcess<'a>>, &'a PeerProgram),
}

impl Contender<'_> {
    fn ready(&self) -> Result<&Ready> {
        match self {
            Self::Engine(server) => Ok(server.ready()),
            Self::Peer(process, _) => process.ready().context("the peer's addresses are gone"),
        }
    }

    /// Stops it, and rejects its figures if its counters discredit them.
    fn stop(self, who: &Contestant) -> Result<()> {
        let Self::Engine(server) = self else { return Ok(()) };
        server.stop_sound(who)
    }
}

/// Runs trials against one server.
struct ServerTrials<'a> {
    generator: Generator,
    /// The server's processors.
    cores: &'a [usize],
    /// Length of a trial, in seconds.
    trial: f64,
    /// The highest mean that counts as sustained, in microseconds.
    mean: f64,
    stop: &'a AtomicBool,
}

/// The figures of one trial.
struct TrialFigures {
    load: LoadResult,
    /// The busy share of the server's processors, if known.
    cpu: Option<f64>,
}

/// The result of one search.
struct Searched {
    /// The trial at the highest rate that held.
    run: TrialFigures,
    /// The trial at half of that rate.
    half: TrialFigures,
    server: Ready,
    environment: Environment,
}

/// The search with the median rate.
fn median(all: &[Searched]) -> Option<&Searched> {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by(|a, b| a.run.load.offered_rate.total_cmp(&b.run.load.offered_rate));
    all.get(all.len() / 2).copied()
}

impl ServerTrials<'_> {
    /// Finds the sustained rate, starting near `before` if given, and then measures half of it.
    fn search(
        &mut self,
        before: Option<f64>,
        show: &mut impl FnMut(String),
    ) -> Result<(TrialFigures, TrialFigures)> {
        // Warm up caches, branch predictors and the neighbour table.
        self.load(START)?;
        let (start, growth) = before.map_or((START, 2.0), |rate| (rate * 0.9, 1.2));
        let found = highest(start, growth, CEILING, |rate| {
            show(format!("trying {} requests/s", words(rate)));
            let at = self.load(rate)?;
            Ok(if holds(&at.load, self.mean) { Attempt::Held(at) } else { Attempt::Failed })
        })?;
        let (rate, run) = found.context("the server sustains no rate at all")?;
        show(format!("half of what it sustains, {} requests/s", words(rate / 2.0)));
        let half = self.load(rate / 2.0)?;
        Ok((run, half))
    }

    fn load(&mut self, rate: f64) -> Result<TrialFigures> {
        let run = Run { rate, requests: (rate * self.trial).ceil() as u64 };
        let before = Ticks::of(self.cores)?;
        let mut after = before;
        let load = self.generator.run(run, self.stop, |sent| {
            // Measure up to the last request, excluding the wait for lost replies. Read the ticks
            // only then: reading them earlier would delay sending.
            if let (true, Ok(ticks)) = (sent == run.requests, Ticks::of(self.cores)) {
                after = ticks;
            }
        })?;
        ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
        Ok(TrialFigures { load, cpu: after.busy_since(before) })
    }
}

/// Whether the rate of `load` was sustained.
fn holds(load: &LoadResult, mean: f64) -> bool {
    load.outcome.complete as f64 >= COMPLETE * load.sent as f64
        && load.outcome.first.as_ref().is_some_and(|times| times.mean_us <= mean)
        && load.achieved_rate >= ON_TIME * load.offered_rate
}
