//! How many clients can have moving addresses: judges and summarises trials.

use super::response::ON_TIME;
use crate::events::{
    Carried, EngineKind, Event, LoadResult, Method, Percentiles, RotationCell, RotationLimit,
    RotationOutcome, RotationProfile, RotationTrial, Spread,
};

/// The largest share of requests without all their replies that a trial may have.
const LOST: f64 = 0.001;

/// The figures of one trial.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Seconds of work in the busiest step, without the pauses.
    pub seconds: f64,
    /// Seconds of processor time in that step.
    pub cpu_seconds: f64,
    /// How long after a step's end its work was done, at most; in milliseconds.
    pub late_ms: f64,
    /// Requests sent in all.
    pub sent: u64,
    /// Requests that did not get all their replies.
    pub lost: u64,
    /// Mean and 99th percentile of the time to the first reply while addresses were exchanged, in
    /// microseconds. Each is the median over the steps that had an answer; `None` if no step had
    /// one.
    pub inside_us: Option<[f64; 2]>,
    /// The same while no address was exchanged.
    pub outside_us: Option<[f64; 2]>,
}

impl Figures {
    /// Mean and 99th percentile inside, then outside.
    #[must_use]
    pub fn times(&self) -> [Option<f64>; 4] {
        let [inside, outside] = [self.inside_us, self.outside_us];
        [
            inside.map(|us| us[0]),
            inside.map(|us| us[1]),
            outside.map(|us| us[0]),
            outside.map(|us| us[1]),
        ]
    }
}

/// The trials among `events`, in their order.
pub fn trials(events: &[Event]) -> impl Iterator<Item = &RotationTrial> {
    events
        .iter()
        .filter_map(|event| if let Event::Rotated(trial) = event { Some(&**trial) } else { None })
}

/// The figures of `trial`; `None` if it measured nothing.
#[must_use]
pub fn figures(trial: &RotationTrial) -> Option<Figures> {
    let RotationOutcome::Measured { steps, inside, outside, .. } = &trial.outcome else {
        return None;
    };
    let most = steps.iter().max_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
    let middle = |results: &[LoadResult]| {
        let times = || results.iter().filter_map(|load| load.outcome.first.as_ref());
        let figure = |of: fn(&Percentiles) -> f64| Some(Spread::of(times().map(of))?.median);
        Some([figure(|times| times.mean_us)?, figure(|times| times.p99_us)?])
    };
    let all = || inside.iter().chain(outside);
    Some(Figures {
        seconds: most.seconds,
        cpu_seconds: most.cpu_seconds,
        late_ms: steps.iter().map(|step| step.late_ms).fold(0.0, f64::max),
        sent: all().map(|load| load.sent).sum(),
        lost: all().map(|load| load.sent - load.outcome.complete).sum(),
        inside_us: middle(inside),
        outside_us: middle(outside),
    })
}

/// Why the server did not carry the clients of `trial`; `None` if it did.
#[must_use]
pub fn limit(trial: &RotationTrial) -> Option<RotationLimit> {
    let RotationOutcome::Measured { steps, inside, outside, .. } = &trial.outcome else {
        return Some(RotationLimit::Unready);
    };
    let Some(figures) = figures(trial) else { return Some(RotationLimit::Late) };
    let in_time =
        steps.iter().all(|step| step.late_ms == 0.0 && step.rotated == trial.cell.clients);
    if !in_time {
        Some(RotationLimit::Late)
    } else if inside
        .iter()
        .chain(outside)
        .any(|load| load.achieved_rate < ON_TIME * load.offered_rate)
    {
        Some(RotationLimit::Generator)
    } else if figures.lost as f64 > LOST * figures.sent as f64 {
        Some(RotationLimit::Lost)
    } else {
        None
    }
}

/// The largest number of clients that each server of `profile` carried, and why it carried no more.
#[must_use]
pub fn summarize(profile: &RotationProfile, events: &[Event]) -> Vec<Carried> {
    let summary = |(engine, bind): (EngineKind, Method)| {
        let mut of_server: Vec<_> = trials(events)
            .filter(|trial| (trial.cell.engine, trial.cell.bind) == (engine, bind))
            .collect();
        of_server.sort_by_key(|trial| trial.cell.clients);
        let carried = of_server.iter().copied().rfind(|trial| limit(trial).is_none());
        let clients = carried.map(|trial| trial.cell.clients);
        let next = of_server
            .iter()
            .copied()
            .find(|trial| clients.is_none_or(|most| trial.cell.clients > most));
        Carried {
            engine,
            bind,
            rotate: profile.rotate,
            clients,
            limit: next.and_then(limit).unwrap_or(RotationLimit::Highest),
            cause: cause(profile, carried, next),
        }
    };
    profile.servers().into_iter().map(|(engine, bind, _)| summary((engine, bind))).collect()
}

/// Why the server did not carry the clients of `next`, in words. `carried` is the largest trial
/// that it did carry.
fn cause(
    profile: &RotationProfile,
    carried: Option<&RotationTrial>,
    next: Option<&RotationTrial>,
) -> String {
    let Some(next) = next else { return "more were not tried".to_owned() };
    let RotationCell { bind, clients, .. } = next.cell;
    if let RotationOutcome::Failed { why } = &next.outcome {
        return format!("{clients}: {why}");
    }
    let Some(figures) = figures(next) else {
        return format!("{clients}: the server finished no step in time");
    };
    match limit(next) {
        Some(RotationLimit::Late) => {
            // The time per exchange, of the part of each step that was done.
            let each = |trial: &RotationTrial| {
                let RotationOutcome::Measured { steps, .. } = &trial.outcome else { return None };
                let done = steps.iter().filter(|step| step.rotated > 0);
                Spread::of(done.map(|step| step.seconds / step.rotated as f64 * 1e6))
                    .map(|spread| spread.median)
            };
            let mut words =
                format!("{clients}: a step's work is not done in its {} s", profile.rotate);
            if let Some(now) = each(next) {
                words += &format!(", at {now:.0} µs for each client's exchange");
            }
            if let Some((carried, before)) = carried.and_then(|trial| Some((trial, each(trial)?))) {
                words += &format!(" ({before:.0} µs with {})", carried.cell.clients);
            }
            if bind.power() > 1 {
                words +=
                    ": the kernel's time for an address grows with the number on the interface";
            }
            words
        }
        Some(RotationLimit::Lost) => format!(
            "{clients}: {} of {} requests lost while the kernel or the engine was busy with \
             addresses",
            figures.lost, figures.sent
        ),
        Some(RotationLimit::Generator) => {
            format!("{clients}: the generator lost its processor and sent too late")
        }
        _ => String::new(),
    }
}
