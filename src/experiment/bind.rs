//! Figure 1: the cost of computing, binding and unbinding n addresses, by each method.
//!
//! Every run gets a fresh interface: earlier addresses slow the kernel down even after they are
//! gone. Runs of the methods alternate, so that other work on the machine disturbs them all alike.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;

use super::journal::{Journal, OnResult};
use super::only_one;
use super::profile::BindProfile;
use super::summary::bind::summarize;
use crate::address::Pool;
use crate::events::{BindCell, BindOutcome, BindResult, Event, Plan, Ready};
use crate::host::Environment;
use crate::lab::{Lab, Side};
use crate::live::{Interrupted, Method, Phases};
use crate::net::netlink;
use crate::server::{Server, ServerConfig, Totals};

/// A prefix that contains none of the lab's own addresses, so that it can have a local route.
const PREFIX: &str = "2001:db8:6::/64";

/// The progress of the experiment.
#[derive(Debug, Clone, Copy)]
pub struct BindProgress {
    /// The method of the next run.
    pub method: Method,
    /// Its number of addresses.
    pub addresses: u64,
    /// Its number, from 1.
    pub run: u32,
    /// Runs finished so far.
    pub done: usize,
    /// All runs.
    pub all: usize,
    /// An upper bound for the remaining time, in seconds. A method counts with its budget until a
    /// run has shown its cost.
    pub at_most: f64,
}

/// Runs the experiment with `file` for its results, and returns them. Calls `show` before each run,
/// and `found` with every result that goes into the file.
///
/// # Errors
/// Without root; if another such experiment is running, `stop` is set, or `found` fails. Takes the
/// lab down in every case. A method that does not work here is a result, not an error.
pub fn bind<'a>(
    profile: &BindProfile,
    file: Option<&Path>,
    stop: &AtomicBool,
    mut show: impl FnMut(BindProgress),
    found: &'a mut OnResult<'a>,
) -> Result<Vec<Event>> {
    let _only = only_one("sixhop-bind-experiment")?;
    let cells = profile.cells();
    let lab = Lab::named("sixhop-bind")?;
    let environment = environment(&lab);
    lab.down()?;
    let mut journal = Journal::open(file, Plan::Bind(profile.clone()), environment?, found)?;
    let mut estimate = Estimate::new(profile.budget);
    let runs = profile.runs;
    for (position, &(method, addresses)) in cells.iter().enumerate() {
        for run in 1..=runs {
            show(BindProgress {
                method,
                addresses,
                run,
                done: position * runs as usize + run as usize - 1,
                all: cells.len() * runs as usize,
                at_most: estimate.of_rest(&cells[position..], runs - run + 1, runs),
            });
            let started = Instant::now();
            let replayed = journal.is_replaying();
            let is_it = |event: &Event| {
                matches!(event, Event::Cell(cell)
                    if (cell.method, cell.addresses, cell.run) == (method, addresses, run))
            };
            let event = journal.next(is_it, || {
                let outcome = match estimate.given_up.get(&method) {
                    Some(why) => BindOutcome::Skipped { why: why.clone() },
                    None => once(&lab, method, addresses, profile.budget, stop)?,
                };
                Ok(Event::Cell(BindCell { method, addresses, run, outcome }))
            })?;
            let Event::Cell(BindCell { outcome, .. }) = event else { continue };
            let took = (!replayed).then(|| started.elapsed().as_secs_f64());
            estimate.learn((method, addresses), outcome, took);
        }
    }
    for summary in summarize(journal.events()) {
        journal.add(Event::Summary(summary))?;
    }
    Ok(journal.events().to_vec())
}

/// This machine, and an interface like that of each run.
fn environment(lab: &Lab) -> Result<Environment> {
    lab.down()?;
    lab.up(1)?;
    lab.run_in(Side::Server, || {
        super::pin_to_first();
        Ok(Environment::of(&netlink::link(Side::Server.interface())?))
    })
}

/// One run, on a fresh interface.
fn once(
    lab: &Lab,
    method: Method,
    addresses: u64,
    budget: f64,
    stop: &AtomicBool,
) -> Result<BindOutcome> {
    lab.down()?;
    lab.up(1)?;
    let pool = Pool::new(PREFIX.parse()?, addresses, 1)?;
    let config = ServerConfig::hold(Side::Server.interface().to_owned(), pool, method);
    let (mut bound, mut over) = (0, false);
    let result = lab.run_in(Side::Server, || {
        super::pin_to_first();
        let mut started = None;
        let server = Server::start(&config, &mut |count| {
            bound = count as u64;
            over = started.get_or_insert_with(Instant::now).elapsed().as_secs_f64() > budget;
            if over {
                // Delete the whole interface, which is faster than removing the addresses one by
                // one.
                let _ = lab.down();
            }
            !over && !stop.load(Ordering::Relaxed)
        })?;
        let ready = server.ready().clone();
        let totals = server.run(&AtomicBool::new(true), |_| {}, &mut |_| {})?;
        Ok(self::bound(&ready, &totals))
    });
    lab.down()?;
    if stop.load(Ordering::Relaxed) {
        return Err(Interrupted.into());
    }
    Ok(match result {
        Ok(result) => BindOutcome::Bound(Box::new(result)),
        Err(_) if over => BindOutcome::Stopped { bound, budget },
        Err(why) => BindOutcome::Failed { why: format!("{why:#}") },
    })
}

/// The cost of a server's addresses, from its `ready` event and its totals.
#[must_use]
pub fn bound(ready: &Ready, totals: &Totals) -> BindResult {
    let count = ready.addresses as f64;
    let each = |seconds: f64| seconds * 1e9 / count;
    let of = |phases: &Phases| (!phases.0.is_empty()).then_some(each(phases.seconds()));
    let unbind_seconds = totals.unbind.seconds();
    BindResult {
        method: ready.bind,
        addresses: ready.addresses,
        generate_ns: each(ready.generate_seconds),
        bind_ns: of(&ready.bind_phases).and(Some(each(ready.bind_seconds))),
        unbind_ns: of(&totals.unbind),
        seconds: ready.generate_seconds + ready.bind_seconds + unbind_seconds,
        open_seconds: ready.open_seconds,
        bytes_per_address: ready
            .kernel_memory
            .map(|kernel| (kernel + ready.list_memory) as f64 / count),
        bind_phases: ready.bind_phases.clone(),
        unbind_phases: totals.unbind.clone(),
        environment: ready.environment.clone(),
    }
}

/// Predicts how long runs take.
struct Estimate {
    /// Seconds that binding may take in one run.
    budget: f64,
    /// For each method: the latest number of addresses that it bound, and the seconds that took.
    spent: HashMap<Method, (u64, f64)>,
    /// The rest of a run, in seconds: making and removing the lab, loading the program.
    overhead: f64,
    /// Methods that cannot bind more addresses, and why.
    given_up: HashMap<Method, String>,
}

impl Estimate {
    fn new(budget: f64) -> Self {
        Self { budget, spent: HashMap::new(), overhead: 0.5, given_up: HashMap::new() }
    }

    /// Learns from a run of the cell. `took` is the whole run in seconds, or `None` if the result
    /// came from a file.
    fn learn(
        &mut self,
        (method, addresses): (Method, u64),
        outcome: &BindOutcome,
        took: Option<f64>,
    ) {
        match outcome {
            BindOutcome::Bound(result) => {
                self.spent.insert(method, (addresses, result.seconds));
                self.overhead = took.map_or(0.5, |took| took - result.seconds);
            }
            BindOutcome::Stopped { bound, .. } => {
                let why =
                    format!("of {addresses} addresses it bound {bound} within {} s", self.budget);
                self.given_up.insert(method, why);
            }
            BindOutcome::Failed { why } => {
                self.given_up.insert(method, why.clone());
            }
            BindOutcome::Skipped { .. } => {}
        }
    }

    /// An upper bound in seconds: `left` runs of the first of `cells`, and `runs` of each other.
    fn of_rest(&self, cells: &[(Method, u64)], left: u32, runs: u32) -> f64 {
        let tried =
            cells.iter().enumerate().filter(|(_, (method, _))| !self.given_up.contains_key(method));
        tried
            .map(|(place, cell)| f64::from(if place == 0 { left } else { runs }) * self.of(*cell))
            .sum()
    }

    /// An upper bound for one run of the cell, in seconds.
    fn of(&self, (method, addresses): (Method, u64)) -> f64 {
        // The budget for binding, and the same again for unbinding, which costs less.
        let most = 2.0 * self.budget;
        let expected = self.spent.get(&method).map_or(most, |&(before, seconds)| {
            let growth = addresses as f64 / before as f64;
            match method {
                Method::LiveMap => seconds * growth,
                Method::Anyip => seconds,
                // The kernel's cost per address grows with the number on the interface.
                _ => seconds * growth.max(1.0).powi(2),
            }
        });
        expected.min(most) + self.overhead
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_follows_what_was_measured_and_never_exceeds_the_budget() {
        let mut estimate = Estimate { overhead: 0.0, ..Estimate::new(10.0) };
        assert_eq!(estimate.of((Method::Netlink, 1)), 20.0);
        let result = BindResult {
            method: Method::Netlink,
            addresses: 1000,
            generate_ns: 0.0,
            bind_ns: None,
            unbind_ns: None,
            seconds: 0.25,
            open_seconds: 0.0,
            bytes_per_address: None,
            bind_phases: Phases::default(),
            unbind_phases: Phases::default(),
            environment: Environment::default(),
        };
        let bound = BindOutcome::Bound(Box::new(result));
        for method in [Method::Netlink, Method::LiveMap, Method::Anyip] {
            estimate.learn((method, 1000), &bound, Some(0.5));
        }
        assert_eq!(estimate.of((Method::Netlink, 2000)), 1.25);
        assert_eq!(estimate.of((Method::LiveMap, 2000)), 0.75);
        assert_eq!(estimate.of((Method::Anyip, 2000)), 0.5);
        assert_eq!(estimate.of((Method::Netlink, 1_000_000)), 20.25);
        let cells = [(Method::Anyip, 2000), (Method::LiveMap, 2000)];
        assert_eq!(estimate.of_rest(&cells, 1, 3), 0.5 + 3.0 * 0.75);
        let stopped = BindOutcome::Stopped { bound: 7, budget: 10.0 };
        estimate.learn((Method::LiveMap, 2000), &stopped, Some(11.0));
        assert_eq!(estimate.of_rest(&cells, 1, 3), 0.5);
    }
}
