//! How many clients can have all their addresses move in one step while the server answers
//! requests, for each method.
//!
//! ```text
//!   step k   |▒▒▒▒▒▒▒▒▒▒▒▒ addresses are exchanged ▒▒▒▒▒▒▒▒▒▒▒▒|   at rest   |
//!   load    ─┤  inside: over the boundary, and the exchange  ├───┤ outside ├─┤
//! ```
//!
//! The search tries growing numbers of clients until a step's work is not done by its end, or
//! requests are lost; then it bisects.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::journal::{Journal, OnResult};
use super::profile::RotationProfile;
use super::search::bisect;
use super::server::{LaunchConfig, ServerHost, ServerProcess, Timing, is_sound};
use super::summary::rotation::{limit, summarize};
use super::{PORT, WARM_UP, fresh, only_one, pin_to_last};
use crate::address::mt6d::{Clock, Subnet, Timetable};
use crate::address::{Secret, Targets};
use crate::events::{Cell, Event, LoadResult, Plan, RotationCell, RotationOutcome, RotationTrial};
use crate::host::Environment;
use crate::host::time::{self, Moment, System, Time, unix_time};
use crate::lab::{Lab, Side};
use crate::live::{Interrupted, Rotated};
use crate::load::{Generator, LoadClient, LoadConfig, Run};
use crate::net::netlink;

/// The progress of the experiment.
#[derive(Debug, Clone)]
pub struct RotationProgress {
    /// Servers whose limit is known.
    pub done: u64,
    /// All servers.
    pub all: u64,
    /// The current activity.
    pub doing: String,
}

/// The part of a step in which no address is exchanged, as shares of it: after the last exchange of
/// any method ([`crate::live::Rotation`] spreads its work over at most 0.8 of a step), and before
/// the next boundary.
const OUTSIDE: (f64, f64) = (0.83, 0.94);

/// The part in which addresses are exchanged, from shortly before the step's first boundary.
const INSIDE: (f64, f64) = (-0.03, 0.78);

/// Runs the experiment with `file` for its results, and returns them. Calls `show` with the
/// progress, and `found` with every result that goes into the file.
///
/// # Errors
/// Without root; if another such experiment is running, `stop` is set, or the file cannot be
/// written. A server that does not start is a result, not an error.
pub fn rotation(
    profile: &RotationProfile,
    file: Option<&Path>,
    stop: &AtomicBool,
    show: &mut (dyn FnMut(RotationProgress) + Send),
    found: &mut OnResult<'_>,
) -> Result<Vec<Event>> {
    let _only = only_one("sixhop-rotation")?;
    let lab = Lab::named("sixhop-rotation")?;
    let measured = on_lab(&lab, profile, file, stop, show, found);
    let down = lab.down();
    let mut journal = measured?;
    down?;
    for summary in summarize(profile, journal.events()) {
        journal.add(Event::Carried(summary))?;
    }
    Ok(journal.events().to_vec())
}

fn on_lab<'a>(
    lab: &Lab,
    profile: &RotationProfile,
    file: Option<&Path>,
    stop: &AtomicBool,
    show: &mut (dyn FnMut(RotationProgress) + Send),
    found: &'a mut OnResult<'a>,
) -> Result<Journal<'a>> {
    let secret = tempfile::Builder::new()
        .prefix("sixhop-secret-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile()
        .context("cannot make a temporary file for the secret")?;
    fs::write(secret.path(), MASTER).context("cannot write the temporary file for the secret")?;
    fresh(lab)?;
    let environment = lab.run_in(Side::Client, || {
        pin_to_last();
        Ok(Environment::of(&netlink::link(Side::Client.interface())?))
    })?;
    let mut journal = Journal::open(file, Plan::Rotation(profile.clone()), environment, found)?;
    let trials = Trials { lab, host: ServerHost::lab(lab)?, profile, secret: secret.path(), stop };
    let series = profile.servers();
    for (done, (engine, bind, numbers)) in series.iter().enumerate() {
        // Start at the low end: with costs that grow quadratically, a trial far too high is
        // expensive.
        bisect(numbers.len(), &[Some(1)], |index| {
            let cell = RotationCell { engine: *engine, bind: *bind, clients: numbers[index] };
            show(RotationProgress {
                done: done as u64,
                all: series.len() as u64,
                doing: format!("{engine}, {bind}: {} clients", cell.clients),
            });
            let is_it =
                |event: &Event| matches!(event, Event::Rotated(trial) if trial.cell == cell);
            let event = journal.next(is_it, || {
                fresh(lab)?;
                Ok(Event::Rotated(Box::new(trials.trial(cell)?)))
            })?;
            let Event::Rotated(trial) = event else { return Ok(vec![]) };
            Ok(vec![limit(trial).is_none()])
        })?;
    }
    Ok(journal)
}

/// The secret of the lab's addresses. It protects nothing.
const MASTER: &[u8] = b"sixhop experiment rotation";

/// Runs trials, each with a server of its own.
struct Trials<'a> {
    lab: &'a Lab,
    host: ServerHost,
    profile: &'a RotationProfile,
    secret: &'a Path,
    stop: &'a AtomicBool,
}

impl Trials<'_> {
    fn trial(&self, cell: RotationCell) -> Result<RotationTrial> {
        let profile = self.profile;
        let order = LaunchConfig {
            cell: Cell { engine: cell.engine, bind: cell.bind, addresses: 3 * cell.clients },
            seed: 1,
            moving: Some(Timing {
                clients: cell.clients,
                rotate: profile.rotate,
                secret: self.secret.to_owned(),
            }),
            replies: profile.replies,
            flags: Vec::new(),
        };
        let patience = Duration::from_secs_f64(profile.budget);
        let mut server = match ServerProcess::start(&self.host, &order, patience, self.stop) {
            Ok(server) => server,
            Err(error) if error.is::<Interrupted>() => return Err(error),
            Err(error) => return Ok(RotationTrial::failed(cell, format!("{error:#}"))),
        };
        let measured = self.lab.run_in(Side::Client, || self.measure(cell, &mut server));
        let stopped = server.stop();
        let trial = measured?;
        let counters = match stopped {
            Ok(totals) => totals.counters,
            Err(error) => return Ok(RotationTrial::failed(cell, format!("{error:#}"))),
        };
        is_sound(&cell.engine, &counters)?;
        Ok(trial)
    }

    fn measure(&self, cell: RotationCell, server: &mut ServerProcess) -> Result<RotationTrial> {
        let clock = Clock::new(Duration::from_secs_f64(self.profile.rotate))?;
        pin_to_last();
        let mut generator = self.generator(cell, clock)?;
        self.load(&mut generator, WARM_UP)?;
        // The wall clock defines the steps: if it is set, load falls outside its part of a step.
        let began = System.now();
        let mut rotated = server.rotated();
        // The first step that begins late enough to prepare for it.
        let soon = unix_time() + (self.profile.rotate * 1e9 * 0.05) as u64;
        let first = clock.step(soon) + 1;
        let last = first + u64::from(self.profile.steps) - 1;
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for step in first..=last {
            for (share, results) in [(INSIDE, &mut inside), (OUTSIDE, &mut outside)] {
                results.push(self.load_within(&mut generator, clock.start(step), share, &began)?);
            }
        }
        self.wait_for_step(last, server, &mut rotated)?;
        was_not_set(&began)?;
        rotated.retain(|rotated| (first..=last).contains(&rotated.step));
        Ok(RotationTrial {
            cell,
            outcome: RotationOutcome::Measured {
                steps: rotated,
                inside,
                outside,
                memory: server.memory(),
                ready: Box::new(server.ready().clone()),
            },
        })
    }

    /// A generator that follows the moving addresses of the cell's clients.
    fn generator(&self, cell: RotationCell, clock: Clock) -> Result<Generator> {
        let clients = u32::try_from(cell.clients).context("too many clients")?;
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        let secret = Secret::new(MASTER.to_vec())?;
        let subnet = Subnet::new(self.host.prefix)?;
        let timetable = Timetable::new(subnet, clock, &secret, clients, threads);
        Generator::open(LoadConfig {
            client: LoadClient::Afxdp,
            interface: Side::Client.interface().to_owned(),
            targets: Targets::Moving(Arc::new(timetable)),
            port: PORT,
            replies: self.profile.replies,
            payload: self.profile.payload,
            busy_poll: None,
            coalesce: None,
        })
    }

    fn load(&self, generator: &mut Generator, requests: u64) -> Result<LoadResult> {
        let run = Run { rate: self.profile.rate as f64, requests };
        let measured = generator.run(run, self.stop, |_| {})?;
        ensure!(!self.stop.load(Ordering::Relaxed), Interrupted);
        Ok(measured)
    }

    /// Sends requests between two shares of the step that starts at `start`, in nanoseconds since
    /// 1970.
    fn load_within(
        &self,
        generator: &mut Generator,
        start: u64,
        (from, to): (f64, f64),
        began: &Moment,
    ) -> Result<LoadResult> {
        let period = self.profile.rotate * 1e9;
        let place = |share: f64| start.saturating_add_signed((period * share) as i64);
        self.sleep_until(place(from), began)?;
        let left = place(to).saturating_sub(unix_time()) as f64 / 1e9;
        self.load(generator, (self.profile.rate as f64 * left).max(1.0) as u64)
    }

    /// Waits for the server's report on step `last`. For a late step, that comes at the step's end.
    fn wait_for_step(
        &self,
        last: u64,
        server: &ServerProcess,
        rotated: &mut Vec<Rotated>,
    ) -> Result<()> {
        let give_up = Instant::now() + Duration::from_secs_f64(self.profile.rotate) + SLACK;
        while !rotated.iter().any(|rotated| rotated.step >= last) && Instant::now() < give_up {
            ensure!(!self.stop.load(Ordering::Relaxed), Interrupted);
            thread::sleep(LOOK);
            rotated.extend(server.rotated());
        }
        Ok(())
    }

    /// Waits until `time`, in nanoseconds since 1970. Fails if the clock is set meanwhile, since
    /// the wait might then never end.
    fn sleep_until(&self, time: u64, began: &Moment) -> Result<()> {
        loop {
            was_not_set(began)?;
            let left = Duration::from_nanos(time.saturating_sub(unix_time()));
            if left.is_zero() {
                return Ok(());
            }
            ensure!(!self.stop.load(Ordering::Relaxed), Interrupted);
            thread::sleep(left.min(LOOK));
        }
    }
}

/// Fails if the clock was set since `began`.
fn was_not_set(began: &Moment) -> Result<()> {
    let Some(jump) = System.now().jump_since(began) else { return Ok(()) };
    bail!(
        "{} during a trial, which is worthless now: rerun the same command, and it continues from \
         the trials before",
        time::set(jump)
    )
}

/// How often to check the stop flag.
const LOOK: Duration = Duration::from_millis(20);

/// How long an event from the server may take to arrive.
const SLACK: Duration = Duration::from_millis(500);
