//! Engines side by side: each on the same lab, with the same addresses and the same load, and what rate it sustains.
//!
//! ```text
//!   namespace sixhop-compare-client          namespace sixhop-compare-server
//!   generator (this process, core B) ═ veth ═ sixhop serve --engine E (a process, core A)
//! ```
//!
//! or in a lab that is there, such as that of a guest with its cards.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::only_one;
use super::peer::{Peer, PeerProcess};
use super::search::{Trial, highest};
use super::server::{Host, Order, ServerProcess};
use crate::address::Pool;
use crate::bind::Method;
use crate::engine::{EngineKind, ServerConfig};
use crate::lab::{Lab, Side};
use crate::load::{Client, Generator, LoadConfig, Run};
use crate::machine::Ticks;
use crate::report::{Cell, Contestant, EngineResult, LoadResult, Ready};

/// What to compare, on what work.
#[derive(Debug, Clone)]
pub struct CompareConfig {
    /// The engines, in the order of the table.
    pub engines: Vec<EngineKind>,
    /// Other programs, after them.
    pub peers: Vec<Peer>,
    /// How many addresses: all engines with the first number, then all with the next.
    pub addresses: Vec<u64>,
    /// How they are made live.
    pub bind: Method,
    /// Which ones.
    pub seed: u64,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// How long one trial sends, in seconds.
    pub trial: f64,
    /// A rate is sustained when the mean time to the first reply is at most this, in microseconds.
    pub mean: f64,
    /// For how many microseconds the client polls its interface, where it is to do so itself.
    pub client_busy_poll: Option<u32>,
    /// Microseconds between two batches that the kernel takes from either interface, for whatever contestant; `None` to leave that as it is.
    pub coalesce: Option<u32>,
    /// A lab that is up, to be used as it is; otherwise one of its own is made.
    pub lab: Option<Lab>,
}

/// How far a comparison is.
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// All steps.
    pub steps: u64,
    /// What is being done.
    pub doing: String,
}

/// Searches for each engine's rate so many times.
const RUNS: u64 = 3;

/// The first rate tried: low, since what is found does not depend on it; the search goes down from it where it must.
const START: f64 = 4000.0;

/// No rate above this is tried: one core does not generate it.
const CEILING: f64 = 2_000_000.0;

/// A rate is sustained when this share of the requests has all its replies, …
const COMPLETE: f64 = 0.999;

/// … the mean time to the first reply is at most [`CompareConfig::mean`], and the generator sent at least this share of the rate: a generator that is late proves nothing about a server.
const ON_TIME: f64 = 0.99;

/// Binding takes its time: the paper needed 216 s for 55,000 addresses.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Compares the engines. `show` is told how far it is, `found` each result as it comes.
///
/// # Errors
/// Without root, when another comparison is running, when an engine cannot start, or when `stop` is set. The lab is taken
/// down in any case.
pub fn compare(
    config: &CompareConfig,
    stop: &AtomicBool,
    mut show: impl FnMut(Progress) + Send,
) -> Result<Vec<EngineResult>> {
    let _only = only_one("sixhop-compare")?;
    let mut results = match &config.lab {
        Some(lab) => on_lab(lab, config, stop, &mut show)?,
        None => {
            let lab = Lab::named("sixhop-compare")?;
            lab.down()?; // of a run that was killed
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
        let socket = results
            .iter()
            .find(|r| r.engine == Contestant::Engine(EngineKind::Socket) && r.addresses == addresses);
        results[index].ratio_to_socket =
            socket.map(|socket| results[index].sustained_rps / socket.sustained_rps);
    }
    Ok(results)
}

fn on_lab(
    lab: &Lab,
    config: &CompareConfig,
    stop: &AtomicBool,
    show: &mut (impl FnMut(Progress) + Send),
) -> Result<Vec<EngineResult>> {
    let host = Host::lab(lab)?;
    let cores: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let (Some(&server_core), Some(&client_core)) = (cores.first(), cores.last()) else {
        bail!("cannot find out which processors there are");
    };
    let engines = config.engines.iter().map(|engine| Contestant::Engine(*engine));
    let contestants: Vec<_> =
        engines.chain(config.peers.iter().map(|peer| Contestant::Peer(peer.name.clone()))).collect();
    let steps = (config.addresses.len() * contestants.len()) as u64 * (RUNS + 1);
    let cells = config.addresses.iter().flat_map(|addresses| contestants.iter().map(|who| (*addresses, who)));
    let mut results = Vec::new();
    for (addresses, who) in cells {
        let pool = Pool::new(host.prefix, addresses, config.seed)?;
        let before = results.len() as u64 * (RUNS + 1);
        show(Progress { done: before, steps, doing: format!("{who}: binding {addresses} addresses") });
        let mut running = match who {
            Contestant::Engine(engine) => {
                let mut flags = ["--cores", &server_core.to_string(), "--port", &config.port.to_string()]
                    .map(OsString::from)
                    .to_vec();
                if let Some(time) = config.coalesce {
                    flags.extend(["--coalesce".into(), time.to_string().into()]);
                }
                let order = Order {
                    cell: Cell { engine: *engine, bind: config.bind, addresses },
                    seed: config.seed,
                    moving: None,
                    replies: config.replies,
                    flags,
                };
                Running::Engine(Box::new(ServerProcess::start(&host, &order, START_LIMIT, stop)?))
            }
            Contestant::Peer(name) => {
                let peer = config.peers.iter().find(|peer| peer.name == *name).context("no such peer")?;
                let cores = [server_core, client_core];
                let held = ServerConfig {
                    coalesce: config.coalesce,
                    ..ServerConfig::hold(Side::Server.interface().to_owned(), pool.clone(), config.bind)
                };
                let process = PeerProcess::start(lab, peer, &held, &pool, config.port, cores, stop)?;
                Running::Peer(Box::new(process), peer)
            }
        };
        let ready = running.ready()?.clone();
        // An engine without a worker has the kernel do the work where its interface interrupts: on the server's processor.
        let cores = if ready.modes.cores.is_empty() { vec![server_core] } else { ready.modes.cores.clone() };
        let measured = lab.run_in(Side::Client, || {
            core_affinity::set_for_current(core_affinity::CoreId { id: client_core });
            let mut generator = Generator::open(LoadConfig {
                client: Client::Afxdp,
                interface: Side::Client.interface().to_owned(),
                targets: pool.clone().into(),
                port: config.port,
                replies: config.replies,
                payload: config.payload,
                busy_poll: config.client_busy_poll,
                coalesce: config.coalesce,
            })?;
            if let Running::Peer(process, peer) = &mut running {
                process.wait(peer, &mut generator, stop)?;
            }
            let mut bench = Bench { generator, cores: &cores, trial: config.trial, mean: config.mean, stop };
            let measured = bench.measure(|step, doing| {
                show(Progress { done: before + step, steps, doing: format!("{who}: {doing}") });
            })?;
            Ok((measured, bench.generator.environment()))
        });
        let stopped = running.stop(who);
        let (Measured { runs, halves }, environment) = measured?;
        stopped?;
        let at = median(&runs, |at| at.load.offered_rate).context("there was no run")?;
        let half = median(&halves, |at| at.load.outcome.first.mean_us).context("there was no run")?;
        results.push(EngineResult {
            engine: who.clone(),
            attach: ready.modes.attach,
            copy: ready.modes.copy,
            addresses: ready.addresses,
            bind: ready.bind,
            replies: config.replies.into(),
            payload: config.payload,
            mean_limit_us: config.mean,
            sustained_rps: at.load.offered_rate,
            replies_pps: at.load.outcome.replies as f64 * at.load.achieved_rate / at.load.sent as f64,
            mean_us: at.load.outcome.first.mean_us,
            p99_us: at.load.outcome.first.p99_us,
            server_cpu: at.cpu,
            half_rps: half.load.offered_rate,
            half_mean_us: half.load.outcome.first.mean_us,
            half_p99_us: half.load.outcome.first.p99_us,
            half_server_cpu: half.cpu,
            ratio_to_socket: None,
            runs: runs.iter().map(|at| at.load.offered_rate).collect(),
            client: at.load.client,
            client_attach: at.load.attach,
            client_copy: at.load.copy,
            client_busy_poll: at.load.busy_poll,
            sustained: runs.iter().map(|at| at.load.clone()).collect(),
            half: halves.iter().map(|at| at.load.clone()).collect(),
            server: ready,
            environment,
        });
    }
    Ok(results)
}

/// A server that is being measured.
enum Running<'a> {
    Engine(Box<ServerProcess>),
    Peer(Box<PeerProcess<'a>>, &'a Peer),
}

impl Running<'_> {
    fn ready(&self) -> Result<&Ready> {
        match self {
            Self::Engine(server) => Ok(server.ready()),
            Self::Peer(process, _) => process.ready().context("its addresses are gone"),
        }
    }

    /// Ends it, if there is nothing against its figures.
    fn stop(self, who: &Contestant) -> Result<()> {
        let Self::Engine(server) = self else { return Ok(()) };
        let counters = server.stop()?.counters;
        let (lost, invalid) = (counters.frames_lost, counters.invalid);
        ensure!(
            lost + invalid == 0,
            "{who} lost {lost} frames and met {invalid} descriptors that make no sense: its figures are not to be trusted"
        );
        Ok(())
    }
}

/// A generator with a server to ask.
struct Bench<'a> {
    generator: Generator,
    /// The server's processors.
    cores: &'a [usize],
    /// Seconds.
    trial: f64,
    /// Microseconds.
    mean: f64,
    stop: &'a AtomicBool,
}

/// A trial's figures.
struct At {
    load: LoadResult,
    /// Share of the server's processors that was busy.
    cpu: f64,
}

struct Measured {
    /// At the highest rate that held, of each run.
    runs: Vec<At>,
    /// At half of their median, in as many runs.
    halves: Vec<At>,
}

/// The one whose `figure` is in the middle.
fn median(runs: &[At], figure: impl Fn(&At) -> f64) -> Option<&At> {
    let mut runs: Vec<_> = runs.iter().collect();
    runs.sort_by(|a, b| figure(a).total_cmp(&figure(b)));
    runs.get(runs.len() / 2).copied()
}

impl Bench<'_> {
    fn measure(&mut self, mut show: impl FnMut(u64, String)) -> Result<Measured> {
        // Caches, branch predictors and the neighbour table before anything is counted.
        self.load(START)?;
        let mut runs: Vec<At> = Vec::new();
        for run in 0..RUNS {
            // Later runs start close to what the one before found.
            let (start, growth) = runs.last().map_or((START, 2.0), |at| (at.load.offered_rate * 0.9, 1.2));
            let found = highest(start, growth, CEILING, |rate| {
                show(run, format!("run {} of {RUNS}, trying {rate:.0} requests/s", run + 1));
                let at = self.load(rate)?;
                Ok(if holds(&at.load, self.mean) { Trial::Held(at) } else { Trial::Failed })
            })?;
            let (_, at) = found.context("the server sustains no rate at all")?;
            runs.push(at);
        }
        let mut rates: Vec<_> = runs.iter().map(|at| at.load.offered_rate).collect();
        rates.sort_by(f64::total_cmp);
        let half = rates[rates.len() / 2] / 2.0;
        show(RUNS, format!("half of what it sustains, {half:.0} requests/s"));
        let halves = (0..RUNS).map(|_| self.load(half)).collect::<Result<Vec<_>>>()?;
        Ok(Measured { runs, halves })
    }

    fn load(&mut self, rate: f64) -> Result<At> {
        let run = Run { rate, requests: (rate * self.trial).ceil() as u64 };
        let before = Ticks::of(self.cores)?;
        let mut after = before;
        let load = self.generator.run(run, self.stop, |sent| {
            // Up to the last request, not through the wait for what is lost; and not while there is something to send.
            if let (true, Ok(ticks)) = (sent == run.requests, Ticks::of(self.cores)) {
                after = ticks;
            }
        })?;
        ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
        Ok(At { load, cpu: after.busy_since(before) })
    }
}

/// Whether a rate was sustained.
fn holds(load: &LoadResult, mean: f64) -> bool {
    load.outcome.complete as f64 >= COMPLETE * load.sent as f64
        && load.outcome.first.mean_us <= mean
        && load.achieved_rate >= ON_TIME * load.offered_rate
}
