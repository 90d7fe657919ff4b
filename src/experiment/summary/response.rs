//! Which rate each server sustained under each threshold.

use std::collections::HashMap;

use crate::events::{
    Cell, Event, Limit, ResponseProfile, Spread, Sustained, ThresholdSummary, Trial,
};

/// A run fails if the server answers a smaller share of the requests, as in the paper.
pub const ANSWERED: f64 = 0.9;

/// A run fails if the generator sends a smaller share of the rate in time: it proves nothing about
/// the server.
pub const ON_TIME: f64 = 0.99;

/// Why the rate of `trial` was not sustained with a mean of at most `threshold_ms`; `None` if it
/// was.
#[must_use]
pub fn held(trial: &Trial, threshold_ms: f64) -> Option<Limit> {
    let load = &trial.load;
    if load.achieved_rate < ON_TIME * load.offered_rate {
        Some(Limit::Generator)
    } else if (load.outcome.answered as f64) < ANSWERED * load.sent as f64 {
        Some(Limit::Lost)
    } else {
        match &load.outcome.first {
            None => Some(Limit::Lost),
            Some(times) => (times.mean_us > threshold_ms * 1000.0).then_some(Limit::Slow),
        }
    }
}

/// The trials among `events`, in their order.
pub fn trials(events: &[Event]) -> impl Iterator<Item = &Trial> {
    events.iter().filter_map(|event| match event {
        Event::Trial(trial) => Some(trial),
        _ => None,
    })
}

/// The measured servers, in the order of their first run.
#[must_use]
pub fn cells(events: &[Event]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for trial in trials(events) {
        if !cells.contains(&trial.cell) {
            cells.push(trial.cell);
        }
    }
    cells
}

/// Summarises the runs of each server for each threshold of `profile`.
#[must_use]
pub fn summarize(profile: &ResponseProfile, events: &[Event]) -> Vec<ThresholdSummary> {
    let grid_trials = profile.rates.all().len() * profile.runs as usize;
    let mut summaries = Vec::new();
    for cell in cells(events) {
        let of_cell: Vec<_> = trials(events).filter(|trial| trial.cell == cell).collect();
        for &threshold_ms in &profile.thresholds_ms {
            let mut runs = Vec::new();
            for run in 1..=profile.runs {
                let of_run: Vec<_> =
                    of_cell.iter().copied().filter(|trial| trial.run == run).collect();
                if !of_run.is_empty() {
                    runs.push(sustained(&of_run, threshold_ms));
                }
            }
            let rates = runs.iter().filter_map(|run| run.rate).map(|rate| rate as f64);
            summaries.push(ThresholdSummary {
                cell,
                threshold_ms,
                rate: Spread::of(rates),
                limit: most_frequent(runs.iter().map(|run| run.limit)),
                runs,
                trials: of_cell.len(),
                grid_trials,
            });
        }
    }
    summaries
}

/// The highest rate of one pass that held, and why the next one did not.
fn sustained(of_run: &[&Trial], threshold_ms: f64) -> Sustained {
    let rate = of_run
        .iter()
        .filter(|trial| held(trial, threshold_ms).is_none())
        .map(|trial| trial.rate)
        .max();
    let above = of_run.iter().filter(|trial| rate.is_none_or(|rate| trial.rate > rate));
    let next = above.min_by_key(|trial| trial.rate);
    Sustained {
        rate,
        limit: next.and_then(|trial| held(trial, threshold_ms)).unwrap_or(Limit::Highest),
    }
}

/// The most frequent limit; on a tie, the one that occurs first.
fn most_frequent(limits: impl Iterator<Item = Limit> + Clone) -> Limit {
    let mut counts: HashMap<Limit, usize> = HashMap::new();
    for limit in limits.clone() {
        *counts.entry(limit).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    limits.into_iter().find(|limit| counts.get(limit) == Some(&most)).unwrap_or(Limit::Highest)
}
