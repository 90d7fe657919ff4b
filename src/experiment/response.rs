//! Figure 2: the request rate that each engine sustains with n addresses while the mean response
//! time stays under a threshold.
//!
//! ```text
//!   this process: generator, rates ═══ lab, or the network ═══ sixhop serve, a process here or on
//!                                                              another machine
//! ```
//!
//! Servers with the same number of addresses run one after the other, so that other work on the
//! machine disturbs the compared engines alike. In the lab, each one gets fresh interfaces.

use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::journal::{Journal, OnResult};
use super::profile::{Approach, ResponseProfile};
use super::search::bisect;
use super::server::{LaunchConfig, ServerHost, ServerProcess};
use super::summary::response::{held, summarize};
use super::{PORT, WARM_UP, fresh, only_one, pin_to_last};
use crate::address::Pool;
use crate::events::{Cell, Event, Failed, Plan, Ready, Trial};
use crate::host::{Environment, Ticks};
use crate::lab::{Lab, Side};
use crate::live::Interrupted;
use crate::load::{Generator, LoadClient, LoadConfig, Run};
use crate::net::netlink;

/// Where the experiment runs.
#[derive(Debug, Clone)]
pub enum Testbed {
    /// A lab of its own on this machine: the server on the first processor, the client on the last.
    Lab,
    /// The server on `host`, the client here.
    Elsewhere {
        /// The server's side.
        host: ServerHost,
        /// The client's interface.
        interface: String,
    },
}

/// How to run the experiment.
#[derive(Debug, Clone)]
pub struct ResponseConfig {
    /// What to measure.
    pub profile: ResponseProfile,
    /// Where to run the server and the client.
    pub testbed: Testbed,
    /// How the client sends: by rings or a socket.
    pub client: LoadClient,
    /// Further flags of `serve`, for every server.
    pub flags: Vec<OsString>,
}

/// The progress of the experiment.
#[derive(Debug, Clone)]
pub struct ResponseProgress {
    /// Passes finished so far.
    pub done: u64,
    /// All passes: for each server, the profile's number of runs.
    pub all: u64,
    /// The current activity.
    pub doing: String,
    /// The estimated remaining time.
    pub left: Duration,
}

/// The seed of the addresses.
const SEED: u64 = 1;

/// Runs the experiment with `file` for its results, and returns them. Calls `show` with the
/// progress, and `found` with every result that goes into the file.
///
/// # Errors
/// Without root; if another such experiment is running, `stop` is set, or the file cannot be
/// written. A server that does not start is a result, not an error.
pub fn response(
    config: &ResponseConfig,
    file: Option<&Path>,
    stop: &AtomicBool,
    show: &mut (dyn FnMut(ResponseProgress) + Send),
    found: &mut OnResult<'_>,
) -> Result<Vec<Event>> {
    let _only = only_one("sixhop-response")?;
    let plan = Plan::Response(config.profile.clone());
    let mut progress = Passes::new(&config.profile, show);
    match &config.testbed {
        Testbed::Lab => {
            let lab = Lab::named("sixhop-response")?;
            let measured = on_lab(&lab, config, plan, file, stop, &mut progress, found);
            let down = lab.down();
            let journal = measured?;
            down?;
            finish(journal, &config.profile)
        }
        Testbed::Elsewhere { host, interface } => {
            let environment = pinned(|| Ok(Environment::of(&netlink::link(interface)?)))?;
            let mut journal = Journal::open(file, plan, environment, found)?;
            for cell in config.profile.cells() {
                let runs = CellRuns { config, host, interface, cell, here: false, stop };
                thread::scope(|scope| {
                    let worker = scope.spawn(|| runs.measure(&mut journal, &mut progress));
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })?;
            }
            finish(journal, &config.profile)
        }
    }
}

/// Runs `work` on a thread pinned like the generator's.
fn pinned<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            pin_to_last();
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn on_lab<'a>(
    lab: &Lab,
    config: &ResponseConfig,
    plan: Plan,
    file: Option<&Path>,
    stop: &AtomicBool,
    progress: &mut Passes,
    found: &'a mut OnResult<'a>,
) -> Result<Journal<'a>> {
    let host = ServerHost::lab(lab)?;
    let interface = Side::Client.interface();
    fresh(lab)?;
    let environment = lab.run_in(Side::Client, || {
        pin_to_last();
        Ok(Environment::of(&netlink::link(interface)?))
    })?;
    let mut journal = Journal::open(file, plan, environment, found)?;
    for cell in config.profile.cells() {
        fresh(lab)?;
        lab.run_in(Side::Client, || {
            let runs = CellRuns { config, host: &host, interface, cell, here: true, stop };
            runs.measure(&mut journal, progress)
        })?;
    }
    Ok(journal)
}

/// Adds the summaries.
fn finish(mut journal: Journal, profile: &ResponseProfile) -> Result<Vec<Event>> {
    for summary in summarize(profile, journal.events()) {
        journal.add(Event::Threshold(summary))?;
    }
    Ok(journal.events().to_vec())
}

/// Measures one cell: a server, and the generator that loads it from a thread of its own.
struct CellRuns<'a> {
    config: &'a ResponseConfig,
    host: &'a ServerHost,
    interface: &'a str,
    cell: Cell,
    /// Whether the server runs on this machine.
    here: bool,
    stop: &'a AtomicBool,
}

/// A running server and its generator.
struct RunningPair {
    server: ServerProcess,
    generator: Generator,
}

impl CellRuns<'_> {
    fn measure(&self, journal: &mut Journal, progress: &mut Passes) -> Result<()> {
        let profile = &self.config.profile;
        let Some((ready, server)) = self.begin(journal, progress)? else {
            progress.skip(profile.runs.into());
            return Ok(());
        };
        let mut pair = server.map(|server| self.ask(server)).transpose()?;
        let count = profile.rates.all().len();
        let mut guesses = vec![None; profile.thresholds_ms.len()];
        for run in 1..=profile.runs {
            let replayed = journal.is_replaying();
            let mut trial = |index| self.held_at(index, run, &ready, &mut pair, journal, progress);
            match profile.way {
                Approach::Bisect => guesses = bisect(count, &guesses, trial)?,
                Approach::Grid => {
                    for index in 0..count {
                        trial(index)?;
                    }
                }
            }
            if replayed {
                progress.skip(1);
            } else {
                progress.pass();
            }
        }
        match pair {
            Some(RunningPair { server, generator }) => {
                drop(generator);
                server.stop_sound(&self.cell.engine)
            }
            None => Ok(()),
        }
    }

    /// The `ready` event of the cell's server, and the server itself unless an earlier run recorded
    /// the event. `None` if there is no server; the journal has the reason.
    fn begin(
        &self,
        journal: &mut Journal,
        progress: &mut Passes,
    ) -> Result<Option<(Ready, Option<ServerProcess>)>> {
        let failed = |why| Event::Failed(Failed { cell: self.cell, why });
        if let Some(why) = self.smaller_failed(journal.events()) {
            let failed = failed(why);
            journal.next(|event| *event == failed, || Ok(failed.clone()))?;
            return Ok(None);
        }
        progress.doing(format!("{}: binding", describe(self.cell)));
        let is_server = |event: &Event| match event {
            Event::Ready(ready) => {
                ready.engine == Some(self.cell.engine)
                    && (ready.bind, ready.addresses) == (self.cell.bind, self.cell.addresses)
            }
            Event::Failed(failed) => failed.cell == self.cell,
            _ => false,
        };
        let mut server = None;
        let event = journal.next(is_server, || match self.start() {
            Ok(started) => {
                let ready = Event::Ready(started.ready().clone());
                server = Some(started);
                Ok(ready)
            }
            Err(error) if error.is::<Interrupted>() => Err(error),
            Err(error) => Ok(failed(format!("{error:#}"))),
        })?;
        let Event::Ready(ready) = event else { return Ok(None) };
        Ok(Some((ready.clone(), server)))
    }

    /// For each threshold, whether the rate at `index` held in `run`. Starts `pair` if the journal
    /// lacks the trial and no server runs yet.
    fn held_at(
        &self,
        index: usize,
        run: u32,
        ready: &Ready,
        pair: &mut Option<RunningPair>,
        journal: &mut Journal,
        progress: &mut Passes,
    ) -> Result<Vec<bool>> {
        let profile = &self.config.profile;
        let rate = profile.rates.all()[index];
        let cell = describe(self.cell);
        progress.doing(format!("{cell}, run {run} of {}: {rate}/s", profile.runs));
        let is_it = |event: &Event| {
            matches!(event, Event::Trial(trial)
                if (trial.cell, trial.run, trial.rate) == (self.cell, run, rate))
        };
        let event = journal.next(is_it, || {
            let pair = match pair {
                Some(pair) => pair,
                None => pair.insert(self.again(ready)?),
            };
            self.trial(pair, run, rate)
        })?;
        let Event::Trial(trial) = event else { return Ok(vec![]) };
        let thresholds = profile.thresholds_ms.iter();
        Ok(thresholds.map(|&threshold| held(trial, threshold).is_none()).collect())
    }

    /// Starts a server like the one before the interruption.
    fn again(&self, ready: &Ready) -> Result<RunningPair> {
        let server = self.start()?;
        ensure!(
            server.ready().modes == ready.modes,
            "the server did not get the same modes as before the interruption: use another --out"
        );
        self.ask(server)
    }

    /// Why not to try this cell: its server already failed with fewer addresses.
    fn smaller_failed(&self, events: &[Event]) -> Option<String> {
        let of_addresses = |event: &Event| match event {
            Event::Failed(Failed { cell, why })
                if (cell.engine, cell.bind) == (self.cell.engine, self.cell.bind)
                    && cell.addresses < self.cell.addresses =>
            {
                Some((cell.addresses, why.clone()))
            }
            _ => None,
        };
        let (addresses, why) = events.iter().find_map(of_addresses)?;
        let already = why.starts_with("not tried");
        Some(if already { why } else { format!("not tried: with {addresses} addresses, {why}") })
    }

    fn start(&self) -> Result<ServerProcess> {
        let profile = &self.config.profile;
        let order = LaunchConfig {
            cell: self.cell,
            seed: SEED,
            moving: None,
            replies: profile.replies,
            flags: self.config.flags.clone(),
        };
        ServerProcess::start(self.host, &order, Duration::from_secs_f64(profile.budget), self.stop)
    }

    /// Opens a generator for `server` on this thread, and warms both up. Pins the thread only here:
    /// a server started from a pinned thread would inherit that.
    fn ask(&self, server: ServerProcess) -> Result<RunningPair> {
        pin_to_last();
        let profile = &self.config.profile;
        let mut generator = Generator::open(LoadConfig {
            client: self.config.client,
            interface: self.interface.to_owned(),
            targets: Pool::new(self.host.prefix, self.cell.addresses, SEED)?.into(),
            port: PORT,
            replies: profile.replies,
            payload: profile.payload,
            busy_poll: None,
            coalesce: None,
        })?;
        let rate = profile.rates.from;
        let requests = profile.requests_at(rate).min(WARM_UP);
        generator.run(Run { rate: rate as f64, requests }, self.stop, |_| {})?;
        Ok(RunningPair { server, generator })
    }

    fn trial(&self, pair: &mut RunningPair, run: u32, rate: u64) -> Result<Event> {
        let requests = self.config.profile.requests_at(rate);
        let cores = if self.here { pair.server.ready().modes.cores.as_slice() } else { &[] };
        let before = Ticks::of(cores)?;
        let mut after = before;
        let load = pair.generator.run(Run { rate: rate as f64, requests }, self.stop, |sent| {
            // Measure up to the last request, excluding the wait for lost replies. Read the ticks
            // only then: reading them earlier would delay sending.
            if let (true, Ok(ticks)) = (sent == requests, Ticks::of(cores)) {
                after = ticks;
            }
        })?;
        ensure!(!self.stop.load(Ordering::Relaxed), Interrupted);
        let server_cpu = self.here.then(|| after.busy_since(before)).flatten();
        Ok(Event::Trial(Trial { cell: self.cell, run, rate, server_cpu, load }))
    }
}

fn describe(Cell { engine, bind, addresses }: Cell) -> String {
    format!("{engine}, {bind}, {addresses} address{}", if addresses == 1 { "" } else { "es" })
}

/// Counts passes and estimates the remaining time.
struct Passes<'a> {
    show: &'a mut (dyn FnMut(ResponseProgress) + Send),
    done: u64,
    all: u64,
    /// The passes measured now rather than read from the file; `began` is their start.
    made: u64,
    began: Instant,
    /// The time of a pass, until one has been measured.
    guess: Duration,
}

impl<'a> Passes<'a> {
    fn new(profile: &ResponseProfile, show: &'a mut (dyn FnMut(ResponseProgress) + Send)) -> Self {
        let rates = profile.rates.all();
        let seconds = |rate: u64| profile.requests_at(rate) as f64 / rate as f64 + 0.2;
        let guess: f64 = match profile.way {
            Approach::Grid => rates.iter().copied().map(seconds).sum(),
            // A bisection tries about ten rates, around the middle.
            Approach::Bisect => 10.0 * rates.get(rates.len() / 2).copied().map_or(1.0, seconds),
        };
        let all = profile.cells().len() as u64 * u64::from(profile.runs);
        Self {
            show,
            done: 0,
            all,
            made: 0,
            began: Instant::now(),
            guess: Duration::from_secs_f64(guess),
        }
    }

    fn doing(&mut self, doing: String) {
        let each = match u32::try_from(self.made) {
            Ok(made) if made > 0 => self.began.elapsed() / made,
            _ => self.guess,
        };
        let left = each.saturating_mul(u32::try_from(self.all - self.done).unwrap_or(u32::MAX));
        (self.show)(ResponseProgress { done: self.done, all: self.all, doing, left });
    }

    fn pass(&mut self) {
        self.done += 1;
        self.made += 1;
    }

    fn skip(&mut self, passes: u64) {
        self.done += passes;
        if self.made == 0 {
            self.began = Instant::now();
        }
    }
}
