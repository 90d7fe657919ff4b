//! Engines side by side: each on the same lab, with the same addresses and the same load, and what
//! rate it sustains.
//!
//! ```text
//!   namespace sixhop-compare-client          namespace sixhop-compare-server
//!   generator (this process, core B) ═ veth ═ sixhop serve --engine E (a process, core A)
//! ```
//!
//! or in a lab that is there, such as that of a guest with its cards. All have their first search,
//! then all their second, and so on: a machine that others share is faster at one time than at
//! another, and no engine is to have the good one to itself.

use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::only_one;
use super::peer::{Peer, PeerProcess};
use super::search::{Trial, highest};
use super::server::{Host, Order, ServerProcess};
use crate::address::Pool;
use crate::engine::EngineKind;
use crate::events::{Cell, Contestant, EngineResult, LoadResult, Ready, rate as words};
use crate::host::{Environment, Ticks};
use crate::lab::{Lab, Side};
use crate::live::Method;
use crate::load::{Client, Generator, LoadConfig, Run};
use crate::server::ServerConfig;

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
    /// Microseconds between two batches that the kernel takes from either interface, for whatever
    /// contestant; `None` to leave that as it is.
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

/// Searches for each engine's rate so many times, with a server that is started for each.
const RUNS: usize = 3;

/// The first rate tried: low, since what is found does not depend on it; the search goes down from
/// it where it must.
const START: f64 = 4000.0;

/// No rate above this is tried: one core does not generate it.
const CEILING: f64 = 2_000_000.0;

/// A rate is sustained when this share of the requests has all its replies, …
const COMPLETE: f64 = 0.999;

/// … the mean time to the first reply is at most [`CompareConfig::mean`], and the generator sent at
/// least this share of the rate: a generator that is late proves nothing about a server.
const ON_TIME: f64 = 0.99;

/// Binding takes its time: the paper needed 216 s for 55,000 addresses.
const START_LIMIT: Duration = Duration::from_secs(600);

/// Compares the engines. `show` is told how far it is, `found` each result as it comes.
///
/// # Errors
/// Without root, when another comparison is running, when an engine cannot start, or when `stop` is
/// set. The lab is taken down in any case.
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
    show: &mut (impl FnMut(Progress) + Send),
) -> Result<Vec<EngineResult>> {
    let host = Host::lab(lab)?;
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
                    show(Progress {
                        done,
                        steps,
                        doing: format!("{who}, run {run} of {RUNS}: {doing}"),
                    })
                };
                show(format!("binding {addresses} addresses"));
                let last = searched.last();
                searched.push(search((lab, &host), config, (who, &pool), last, stop, &mut show)?);
                done += 1;
            }
        }
        for (who, searched) in contestants.iter().zip(all) {
            results.push(result(config, who, searched).context("there was no run")?);
        }
    }
    Ok(results)
}

/// The processors of the server and of the client.
fn cores() -> Result<[usize; 2]> {
    let cores: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    match (cores.first(), cores.last()) {
        (Some(&server), Some(&client)) => Ok([server, client]),
        _ => bail!("cannot find out which processors there are"),
    }
}

/// Starts `who` on the addresses of `pool`, searches for its rate, and ends it. `last` is what an
/// earlier search found.
fn search(
    (lab, host): (&Lab, &Host),
    config: &CompareConfig,
    (who, pool): (&Contestant, &Pool),
    last: Option<&Searched>,
    stop: &AtomicBool,
    show: &mut (impl FnMut(String) + Send),
) -> Result<Searched> {
    let [server_core, client_core] = cores()?;
    let mut running = match who {
        Contestant::Engine(engine) => {
            let mut flags =
                ["--cores", &server_core.to_string(), "--port", &config.port.to_string()]
                    .map(OsString::from)
                    .to_vec();
            if let Some(time) = config.coalesce {
                flags.extend(["--coalesce".into(), time.to_string().into()]);
            }
            let order = Order {
                cell: Cell { engine: *engine, bind: config.bind, addresses: pool.count() },
                seed: config.seed,
                moving: None,
                replies: config.replies,
                flags,
            };
            Running::Engine(Box::new(ServerProcess::start(host, &order, START_LIMIT, stop)?))
        }
        Contestant::Peer(name) => {
            let peer =
                config.peers.iter().find(|peer| peer.name == *name).context("no such peer")?;
            let held = ServerConfig {
                coalesce: config.coalesce,
                ..ServerConfig::hold(Side::Server.interface().to_owned(), pool.clone(), config.bind)
            };
            let cores = [server_core, client_core];
            let process = PeerProcess::start(lab, peer, &held, pool, config.port, cores, stop)?;
            Running::Peer(Box::new(process), peer)
        }
    };
    let server = running.ready()?.clone();
    // An engine without a worker has the kernel do the work where its interface interrupts: on the
    // server's processor.
    let cores =
        if server.modes.cores.is_empty() { vec![server_core] } else { server.modes.cores.clone() };
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
        let mut bench =
            Bench { generator, cores: &cores, trial: config.trial, mean: config.mean, stop };
        let (run, half) = bench.measure(last.map(|last| last.run.load.offered_rate), show)?;
        Ok((run, half, bench.generator.environment()))
    });
    let stopped = running.stop(who);
    let (run, half, environment) = measured?;
    stopped?;
    Ok(Searched { run, half, server, environment })
}

/// What was found of `who`; `None` where nothing was.
fn result(
    config: &CompareConfig,
    who: &Contestant,
    searched: Vec<Searched>,
) -> Option<EngineResult> {
    let at = median(&searched)?;
    let (At { load, cpu }, half, ready) = (&at.run, &at.half, &at.server);
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
            "{who} lost {lost} frames and met {invalid} descriptors that make no sense: its \
             figures are not to be trusted"
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
    /// Share of the server's processors that was busy, where it is known.
    cpu: Option<f64>,
}

/// What one search found.
struct Searched {
    /// At the highest rate that held.
    run: At,
    /// At half of it.
    half: At,
    server: Ready,
    environment: Environment,
}

/// The one whose rate is in the middle.
fn median(all: &[Searched]) -> Option<&Searched> {
    let mut all: Vec<_> = all.iter().collect();
    all.sort_by(|a, b| a.run.load.offered_rate.total_cmp(&b.run.load.offered_rate));
    all.get(all.len() / 2).copied()
}

impl Bench<'_> {
    /// What it sustains, from what it sustained before, where that is known; and then half of that.
    fn measure(&mut self, before: Option<f64>, show: &mut impl FnMut(String)) -> Result<(At, At)> {
        // Caches, branch predictors and the neighbour table before anything is counted.
        self.load(START)?;
        let (start, growth) = before.map_or((START, 2.0), |rate| (rate * 0.9, 1.2));
        let found = highest(start, growth, CEILING, |rate| {
            show(format!("trying {} requests/s", words(rate)));
            let at = self.load(rate)?;
            Ok(if holds(&at.load, self.mean) { Trial::Held(at) } else { Trial::Failed })
        })?;
        let (rate, run) = found.context("the server sustains no rate at all")?;
        show(format!("half of what it sustains, {} requests/s", words(rate / 2.0)));
        let half = self.load(rate / 2.0)?;
        Ok((run, half))
    }

    fn load(&mut self, rate: f64) -> Result<At> {
        let run = Run { rate, requests: (rate * self.trial).ceil() as u64 };
        let before = Ticks::of(self.cores)?;
        let mut after = before;
        let load = self.generator.run(run, self.stop, |sent| {
            // Up to the last request, not through the wait for what is lost; and not while there is
            // something to send.
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
        && load.outcome.first.as_ref().is_some_and(|times| times.mean_us <= mean)
        && load.achieved_rate >= ON_TIME * load.offered_rate
}
