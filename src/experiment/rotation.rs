//! For how many clients all addresses can move in one time step while requests are answered, for
//! each way of making them live.
//!
//! ```text
//!   step k   |▒▒▒▒▒▒▒▒▒▒▒▒ addresses are exchanged ▒▒▒▒▒▒▒▒▒▒▒▒|   at rest   |
//!   load    ─┤  inside: over the boundary, and the exchange  ├───┤ outside ├─┤
//! ```
//!
//! Numbers of clients are tried upwards until a step's work is not done by its end, or requests are
//! lost, and then between.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::journal::{Found, Journal};
use super::profile::RotationProfile;
use super::search::bisect;
use super::server::{Host, Order, ServerProcess, Timing};
use super::summary::rotation::{limit, summarize};
use super::{only_one, pin_to_last};
use crate::address::Secret;
use crate::address::mt6d::{Clock, Subnet, Timetable};
use crate::events::{Cell, Event, Plan, RotationCell, RotationOutcome, RotationTrial};
use crate::host::Environment;
use crate::host::time::{self, Moment, System, Time, unix_time};
use crate::lab::{Lab, Side};
use crate::live::{Interrupted, Rotated};
use crate::load::{Client, Generator, LoadConfig, Run};
use crate::net::netlink;

/// How far the experiment is.
#[derive(Debug, Clone)]
pub struct RotationProgress {
    /// Servers whose limit was found.
    pub done: u64,
    /// All of them.
    pub all: u64,
    /// What is being done.
    pub doing: String,
}

/// UDP port of the service.
const PORT: u16 = 3540;

/// Shares of a step between which requests are sent while nothing is exchanged: after the last
/// share of any method ([`crate::live::Rotation`] spreads its work over 0.8 of a step at most), and
/// before the next boundary.
const OUTSIDE: (f64, f64) = (0.83, 0.94);

/// The same while addresses are exchanged, from before the boundary that the step begins with.
const INSIDE: (f64, f64) = (-0.03, 0.78);

/// Requests before anything is counted.
const WARM_UP: u64 = 2000;

/// Runs the experiment, with `file` for its results, and returns them. `show` is told how far it
/// is, `found` everything that goes into the file.
///
/// # Errors
/// Without root, when another such experiment is running, when `stop` is set, or the file cannot be
/// written. A server that cannot be had is no error but a result.
pub fn rotation(
    profile: &RotationProfile,
    file: Option<&Path>,
    stop: &AtomicBool,
    show: &mut (dyn FnMut(RotationProgress) + Send),
    found: &mut Found<'_>,
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
    found: &'a mut Found<'a>,
) -> Result<Journal<'a>> {
    let secret = tempfile::Builder::new()
        .prefix("sixhop-secret-")
        .permissions(fs::Permissions::from_mode(0o600))
        .tempfile()
        .context("no file for a secret")?;
    fs::write(secret.path(), MASTER).context("no file for a secret")?;
    let fresh = || {
        lab.down()?;
        lab.up(1)
    };
    fresh()?;
    let environment = lab.run_in(Side::Client, || {
        pin_to_last();
        Ok(Environment::of(&netlink::link(Side::Client.interface())?))
    })?;
    let mut journal = Journal::open(file, Plan::Rotation(profile.clone()), environment, found)?;
    let bench = Bench { lab, host: Host::lab(lab)?, profile, secret: secret.path(), stop };
    let series = profile.servers();
    for (done, (engine, bind, numbers)) in series.iter().enumerate() {
        // Costs that grow with the square of the number are met from below.
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
                fresh()?;
                Ok(Event::Rotated(Box::new(bench.trial(cell)?)))
            })?;
            let Event::Rotated(trial) = event else { return Ok(vec![]) };
            Ok(vec![limit(trial).is_none()])
        })?;
    }
    Ok(journal)
}

/// What the addresses of the lab follow from: a secret of no value.
const MASTER: &[u8] = b"sixhop experiment rotation";

struct Bench<'a> {
    lab: &'a Lab,
    host: Host,
    profile: &'a RotationProfile,
    secret: &'a Path,
    stop: &'a AtomicBool,
}

impl Bench<'_> {
    fn trial(&self, cell: RotationCell) -> Result<RotationTrial> {
        let profile = self.profile;
        let order = Order {
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
        ensure!(
            counters.frames_lost + counters.invalid == 0,
            "{} lost {} frames and met {} descriptors that make no sense: its figures are not to \
             be trusted",
            cell.engine,
            counters.frames_lost,
            counters.invalid
        );
        Ok(trial)
    }

    fn measure(&self, cell: RotationCell, server: &mut ServerProcess) -> Result<RotationTrial> {
        let profile = self.profile;
        let clock = Clock::new(Duration::from_secs_f64(profile.rotate))?;
        let clients = u32::try_from(cell.clients).context("too many clients")?;
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        let secret = Secret::new(MASTER.to_vec())?;
        let subnet = Subnet::new(self.host.prefix)?;
        let timetable = Arc::new(Timetable::new(subnet, clock, &secret, clients, threads));
        pin_to_last();
        let mut generator = Generator::open(LoadConfig {
            client: Client::Afxdp,
            interface: Side::Client.interface().to_owned(),
            targets: crate::address::Targets::Moving(timetable),
            port: PORT,
            replies: profile.replies,
            payload: profile.payload,
            busy_poll: None,
            coalesce: None,
        })?;
        let mut load = |requests: u64| {
            let measured =
                generator.run(Run { rate: profile.rate as f64, requests }, self.stop, |_| {})?;
            ensure!(!self.stop.load(Ordering::Relaxed), Interrupted);
            Ok(measured)
        };
        load(WARM_UP)?;
        // Steps are those of the time of day: where that is set, what was to be inside of one is
        // not.
        let began = System.now();
        let (period, mut rotated) = (profile.rotate * 1e9, server.rotated());
        let place = |step: u64, share: f64| {
            clock.start(step).saturating_add_signed((period * share) as i64)
        };
        // The first step that has not begun, with time to get there.
        let first = clock.step(unix_time() + (period * 0.05) as u64) + 1;
        let (mut inside, mut outside) = (Vec::new(), Vec::new());
        for step in first..first + u64::from(profile.steps) {
            for ((from, to), results) in [(INSIDE, &mut inside), (OUTSIDE, &mut outside)] {
                self.sleep_until(place(step, from), &began)?;
                let left = place(step, to).saturating_sub(unix_time()) as f64 / 1e9;
                results.push(load((profile.rate as f64 * left).max(1.0) as u64)?);
            }
        }
        let last = first + u64::from(profile.steps) - 1;
        // What is not done by then is late, and that is told at the boundary.
        let give_up = Instant::now() + Duration::from_secs_f64(profile.rotate) + SLACK;
        while !rotated.iter().any(|rotated: &Rotated| rotated.step >= last)
            && Instant::now() < give_up
        {
            ensure!(!self.stop.load(Ordering::Relaxed), Interrupted);
            thread::sleep(LOOK);
            rotated.extend(server.rotated());
        }
        was_not_set(&began)?;
        rotated.retain(|rotated| (first..=last).contains(&rotated.step));
        let ready = server.ready().clone();
        Ok(RotationTrial {
            cell,
            outcome: RotationOutcome::Measured {
                steps: rotated,
                inside,
                outside,
                memory: server.memory(),
                ready: Box::new(ready),
            },
        })
    }

    /// Waits until `time`, in nanoseconds since 1970, unless the clock is set: then that may be
    /// never.
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

/// Refuses what was measured since `began` where the clock was set meanwhile.
fn was_not_set(began: &Moment) -> Result<()> {
    let Some(jump) = System.now().jump_since(began) else { return Ok(()) };
    bail!(
        "{} during a trial, which is worthless: the same command goes on from the trials before it",
        time::set(jump)
    )
}

/// Whether to go on is asked this often.
const LOOK: Duration = Duration::from_millis(20);

/// What a message of the server may take.
const SLACK: Duration = Duration::from_millis(500);
