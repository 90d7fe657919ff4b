//! Figure 1: what it takes to compute, bind and unbind n addresses, by each method.
//!
//! Every run has a fresh interface: what was bound on it before makes the kernel slower, also after
//! it is gone. Runs of the methods alternate, so that what else the machine does disturbs all of
//! them alike.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::Result;

use super::journal::{Found, Journal};
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

/// A prefix that none of the lab's own addresses lies under, so that a local route may be had for
/// it.
const PREFIX: &str = "2001:db8:6::/64";

/// How far an experiment is.
#[derive(Debug, Clone, Copy)]
pub struct BindProgress {
    /// What is measured next.
    pub method: Method,
    /// At how many addresses.
    pub addresses: u64,
    /// Which run of it, from 1 on.
    pub run: u32,
    /// Runs done, of all.
    pub done: usize,
    /// All runs.
    pub all: usize,
    /// The most that the rest can take, in seconds: as long as a method's cost is not known its
    /// budget, and then what follows from that.
    pub at_most: f64,
}

/// Runs the experiment, with `file` for its results, and returns them. `show` is told what comes
/// next, `found` everything that goes into the file.
///
/// # Errors
/// Without root, when another such experiment is running, when `stop` is set, or `found` fails. The
/// lab is taken down in any case. That a method does not work here is no error but an outcome.
pub fn bind<'a>(
    profile: &BindProfile,
    file: Option<&Path>,
    stop: &AtomicBool,
    mut show: impl FnMut(BindProgress),
    found: &'a mut Found<'a>,
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

/// The machine, and an interface as each run has one.
fn environment(lab: &Lab) -> Result<Environment> {
    lab.down()?;
    lab.up(1)?;
    lab.run_in(Side::Server, || {
        super::pin_to_first();
        Ok(Environment::of(&netlink::link(Side::Server.interface())?))
    })
}

/// One run, on an interface of its own.
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
                // The whole interface goes: the addresses need not be taken off it one by one.
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

/// What a server's addresses took, from what it said when they were live and when they were taken
/// back.
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

/// How long runs take.
struct Estimate {
    /// Seconds that one may bind.
    budget: f64,
    /// Of each method, the largest number of addresses so far, and the seconds that it took.
    spent: HashMap<Method, (u64, f64)>,
    /// Seconds that a run takes besides: the lab made and taken down, the program loaded.
    overhead: f64,
    /// Methods that need not be tried with more addresses, and why.
    given_up: HashMap<Method, String>,
}

impl Estimate {
    fn new(budget: f64) -> Self {
        Self { budget, spent: HashMap::new(), overhead: 0.5, given_up: HashMap::new() }
    }

    /// Learns from a run of the cell; `took` is what all of it took, in seconds, where it was not
    /// read from a file.
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

    /// Seconds that the rest takes at most: `left` runs of the first of `cells`, and `runs` of each
    /// other.
    fn of_rest(&self, cells: &[(Method, u64)], left: u32, runs: u32) -> f64 {
        let tried =
            cells.iter().enumerate().filter(|(_, (method, _))| !self.given_up.contains_key(method));
        tried
            .map(|(place, cell)| f64::from(if place == 0 { left } else { runs }) * self.of(*cell))
            .sum()
    }

    /// Seconds that a run of the cell takes at most.
    fn of(&self, (method, addresses): (Method, u64)) -> f64 {
        // Binding at its budget, and as much again for taking back, which costs less.
        let most = 2.0 * self.budget;
        let expected = self.spent.get(&method).map_or(most, |&(before, seconds)| {
            let growth = addresses as f64 / before as f64;
            match method {
                Method::LiveMap => seconds * growth,
                Method::Anyip => seconds,
                // the kernel's cost grows with every address
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
