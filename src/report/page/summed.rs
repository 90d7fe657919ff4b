//! Summaries of the runs.

use super::super::{bind, response};
use super::Data;
use super::text::{driver, machine, once};
use crate::events::{
    BindSummary, Cell, EngineResult, Event, Experiment, Plan, Ready, RotationOutcome,
    ThresholdSummary,
};
use crate::experiment::ResponseProfile;

/// The data and its summaries.
pub struct Summed<'a> {
    pub data: &'a Data,
    pub profile: Option<&'a ResponseProfile>,
    /// The events; those of an unfinished experiment lack the last pass, which is incomplete.
    pub response: &'a [Event],
    pub finished: bool,
    pub thresholds: Vec<ThresholdSummary>,
    pub bind: Vec<BindSummary>,
    pub compare: Vec<&'a EngineResult>,
    pub starts: Vec<&'a Experiment>,
}

impl<'a> Summed<'a> {
    pub fn of(data: &'a Data) -> Self {
        let start = |events: &'a [Event]| match events.first() {
            Some(Event::Experiment(start)) => Some(&**start),
            _ => None,
        };
        let starts: Vec<_> = [start(&data.response), start(&data.bind), start(&data.rotation)]
            .into_iter()
            .flatten()
            .collect();
        let profile = starts.iter().find_map(|start| match &start.plan {
            Plan::Response(profile) => Some(profile),
            Plan::Bind(_) | Plan::Rotation(_) => None,
        });
        let finished = data.response.iter().any(|event| matches!(event, Event::Threshold(_)));
        let response = if finished { &data.response } else { without_last_pass(&data.response) };
        let compare = data.compare.iter().filter_map(|event| match event {
            Event::Engine(result) => Some(&**result),
            _ => None,
        });
        Self {
            data,
            profile,
            response,
            finished,
            thresholds: profile.map_or(Vec::new(), |of| response::summarize(of, response)),
            bind: bind::summarize(&data.bind),
            compare: compare.collect(),
            starts,
        }
    }

    /// When each figure was measured, and on which machine.
    pub fn lead(&self) -> String {
        let when = self.starts.iter().map(|start| {
            let date = start.started.split('T').next().unwrap_or_default();
            let figure = match start.plan {
                Plan::Bind(_) => "Figure 1",
                Plan::Response(_) => "Figure 2",
                Plan::Rotation(_) => "Moving addresses",
            };
            format!("{figure}: {date}")
        });
        let environments = self.starts.iter().map(|start| &start.environment);
        let compared = self.compare.iter().map(|result| &result.environment);
        let machines = once(environments.chain(compared).map(|environment| {
            format!("{}, {}", machine(environment), driver(&environment.nic.driver))
        }));
        when.chain(machines).collect::<Vec<_>>().join(" · ")
    }

    /// The threshold at which engines are compared.
    pub fn first_threshold(&self) -> Option<f64> {
        self.profile?.thresholds_ms.first().copied()
    }

    /// The rate of a server under a threshold.
    pub fn rate(&self, cell: Cell, threshold: f64) -> Option<&ThresholdSummary> {
        self.thresholds
            .iter()
            .find(|summary| summary.cell == cell && summary.threshold_ms == threshold)
    }

    /// The `ready` events of Figure 2's servers.
    pub fn response_servers(&self) -> Vec<&'a Ready> {
        readies(&self.data.response).collect()
    }
}

fn without_last_pass(response: &[Event]) -> &[Event] {
    let pass = |event: &Event| match event {
        Event::Trial(trial) => Some((trial.cell, trial.run)),
        _ => None,
    };
    let Some(last) = response.iter().rev().find_map(pass) else { return response };
    let first = response.iter().position(|event| pass(event) == Some(last));
    &response[..first.unwrap_or(0)]
}

/// The `ready` events of the servers in `events`.
pub fn readies(events: &[Event]) -> impl Iterator<Item = &Ready> {
    events.iter().filter_map(|event| match event {
        Event::Ready(ready) => Some(ready),
        Event::Rotated(trial) => match &trial.outcome {
            RotationOutcome::Measured { ready, .. } => Some(&**ready),
            RotationOutcome::Failed { .. } => None,
        },
        Event::Engine(result) => Some(&result.server),
        _ => None,
    })
}
