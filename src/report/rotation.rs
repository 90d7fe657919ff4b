//! How many clients can have moving addresses: the trials of `experiment rotation` judged, summed
//! up, as a table for other programs, and as charts.

use std::cmp::Reverse;

use anyhow::{Context, Result, anyhow};

use super::chart::{Axis, Line, Panel, microseconds, nanoseconds, short};
use super::results::{
    Carried, Event, LoadResult, Percentiles, RotationCell, RotationLimit, RotationOutcome,
    RotationTrial, Spread,
};
use crate::bind::Method;
use crate::engine::EngineKind;
use crate::experiment::RotationProfile;

use super::response::ON_TIME;

/// A larger share of requests without all their replies is a loss.
const LOST: f64 = 0.001;

/// What a trial comes to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Seconds of work in a step, without the pauses between: the most that a step took.
    pub seconds: f64,
    /// Seconds of processor time in that step.
    pub cpu_seconds: f64,
    /// The latest that a step's work was done after its end, in milliseconds.
    pub late_ms: f64,
    /// Requests that were sent in all.
    pub sent: u64,
    /// Those that did not get all their replies.
    pub lost: u64,
    /// Mean and 99th percentile of the time to the first reply while addresses were exchanged, in
    /// microseconds: medians of the steps in which something was answered; `None` where that is
    /// none.
    pub inside_us: Option<[f64; 2]>,
    /// The same while none was.
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

/// What `trial` comes to; `None` where nothing was measured.
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

/// Why the clients of `trial` were not carried; `None` where they were.
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

/// The largest number of clients that each server of `profile` carried, and why no larger one.
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

/// Why `next` was not carried, in words. `carried` is the largest that was.
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
        return format!("{clients}: no step was done in the time of it");
    };
    match limit(next) {
        Some(RotationLimit::Late) => {
            // Of what was done of it.
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
            format!("{clients}: the generator was kept from its processor")
        }
        _ => String::new(),
    }
}

/// Every trial as CSV, with a line of names first.
///
/// # Errors
/// When there is no memory for it.
pub fn csv(events: &[Event]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "engine",
        "bind",
        "clients",
        "live_addresses",
        "carried",
        "seconds",
        "cpu_seconds",
        "late_ms",
        "sent",
        "lost",
        "inside_mean_us",
        "inside_p99_us",
        "outside_mean_us",
        "outside_p99_us",
    ])?;
    for trial in sorted(events) {
        let RotationCell { engine, bind, clients } = trial.cell;
        let mut record = vec![engine.to_string(), bind.to_string(), clients.to_string()];
        record.extend([(3 * clients).to_string(), limit(trial).is_none().to_string()]);
        match figures(trial) {
            Some(of) => {
                record.extend(
                    [of.seconds, of.cpu_seconds, of.late_ms].map(|figure| figure.to_string()),
                );
                record.extend([of.sent, of.lost].map(|figure| figure.to_string()));
                let times =
                    of.times().map(|time| time.map_or(String::new(), |time| time.to_string()));
                record.extend(times);
            }
            None => record.resize(14, String::new()),
        }
        writer.write_record(record)?;
    }
    String::from_utf8(writer.into_inner().map_err(|error| anyhow!("{error}"))?)
        .context("CSV is text")
}

/// The trials by server, in the order of the first of each, and number of clients.
#[must_use]
pub fn sorted(events: &[Event]) -> Vec<&RotationTrial> {
    let mut all: Vec<_> = trials(events).collect();
    let servers = servers(events);
    all.sort_by_key(|trial| {
        let server = (trial.cell.engine, trial.cell.bind);
        (
            servers.iter().position(|other| *other == server),
            trial.cell.clients,
            Reverse(limit(trial).is_none()),
        )
    });
    all
}

fn servers(events: &[Event]) -> Vec<(EngineKind, Method)> {
    let mut servers = Vec::new();
    for trial in trials(events) {
        let server = (trial.cell.engine, trial.cell.bind);
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    servers
}

/// The charts: how long a step's work takes, and the response time while it goes on and while it
/// does not, against the number of clients.
#[must_use]
pub fn panels(events: &[Event]) -> Vec<Panel> {
    let line = |(index, server): (usize, &(EngineKind, Method)),
                name: &str,
                figure: fn(&Figures) -> Option<f64>| {
        let of_server = sorted(events)
            .into_iter()
            .filter(|trial| (trial.cell.engine, trial.cell.bind) == *server);
        let points = of_server.filter_map(|trial| {
            let value = figure(&figures(trial)?)?;
            let spread = Spread { min: value, median: value, max: value };
            (value > 0.0).then_some((trial.cell.clients as f64, spread))
        });
        Line::new(format!("{}, {}{name}", server.0, server.1), index, points.collect())
    };
    let servers = servers(events);
    let x = Axis { name: "clients", words: short };
    let work =
        servers.iter().enumerate().map(|server| line(server, "", |of| Some(of.seconds * 1e9)));
    let times = servers.iter().enumerate().flat_map(|(index, server)| {
        let inside = line((2 * index, server), ", inside", |of| of.times()[1]);
        let outside = line((2 * index + 1, server), ", outside", |of| of.times()[3]);
        [inside, outside]
    });
    let panel = |title: &str, y: Axis, lines: Vec<Line>| Panel {
        title: title.to_owned(),
        x,
        y,
        lines: lines.into_iter().filter(|line| !line.points.is_empty()).collect(),
        ..Panel::default()
    };
    let panels = [
        panel("Work in a time step", Axis { name: "time", words: nanoseconds }, work.collect()),
        panel(
            "99 % are answered within",
            Axis { name: "time", words: microseconds },
            times.collect(),
        ),
    ];
    panels.into_iter().filter(|panel| !panel.lines.is_empty()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::bind::Rotated;
    use crate::experiment::{Profile, Rates, RotationSeries};
    use crate::load::{Client, Outcome};
    use crate::report::chart::svg;

    fn load(complete: u64, mean_us: f64) -> LoadResult {
        let first = Some(Percentiles { mean_us, p99_us: 3.0 * mean_us, ..Percentiles::default() });
        LoadResult {
            client: Client::Afxdp,
            sent: 10_000,
            unsent: 0,
            outcome: Outcome { answered: complete, complete, first, ..Outcome::default() },
            late: 0,
            clock_steps: None,
            offered_rate: 1000.0,
            achieved_rate: 1000.0,
            attach: None,
            copy: None,
            rings: None,
            busy_poll: None,
            environment: None,
        }
    }

    fn profile() -> RotationProfile {
        RotationProfile {
            series: vec![RotationSeries {
                engine: EngineKind::Afxdp,
                methods: vec![Method::NetlinkBatch],
                clients: Rates { from: 1000, to: 8000, step: 2.0 },
            }],
            ..Profile::load("quick").unwrap().rotation.unwrap()
        }
    }

    /// A step took `seconds`, and ended `late_ms` after its time; `lost` of 20,000 requests were
    /// lost.
    pub fn trial(clients: u64, seconds: f64, late_ms: f64, lost: u64) -> Event {
        let cell = RotationCell { engine: EngineKind::Afxdp, bind: Method::NetlinkBatch, clients };
        let rotated = Rotated {
            step: 7,
            seconds,
            cpu_seconds: seconds / 2.0,
            late_ms,
            rotated: clients,
            live: 3 * clients,
            clients_carried: None,
        };
        let ready = serde_json::from_value(serde_json::json!({
            "engine": "afxdp", "interface": "server0", "driver": "veth", "port": 3540,
            "replies": 10, "addresses": 3 * clients, "bind": "netlink-batch",
            "generate_seconds": 0.0, "open_seconds": 0.0, "bind_seconds": 0.0, "bind_phases": [],
            "kernel_memory": null, "list_memory": 0, "attach_asked": "auto", "copy_asked": "auto",
            "environment": crate::machine::Environment::default(), "queues": [0], "cores": [0],
        }));
        let outcome = RotationOutcome::Measured {
            steps: vec![rotated],
            inside: vec![load(10_000 - lost, 20.0)],
            outside: vec![load(10_000, 10.0)],
            memory: None,
            ready: Box::new(ready.unwrap()),
        };
        Event::Rotated(Box::new(RotationTrial { cell, outcome }))
    }

    #[test]
    fn the_largest_that_is_carried_is_found_and_why_no_larger_one() {
        let events =
            [trial(1000, 0.2, 0.0, 0), trial(4000, 3.0, 700.0, 0), trial(2000, 0.8, 0.0, 0)];
        let [carried] = &summarize(&profile(), &events)[..] else { panic!("one server") };
        assert_eq!((carried.clients, carried.limit), (Some(2000), RotationLimit::Late));
        assert_eq!(
            carried.cause,
            "4000: a step's work is not done in its 2 s, at 750 µs for each client's exchange (400 \
             µs with 2000): the kernel's time for an address grows with the number on the interface"
        );
        // Of 20,000 requests 20 may be lost.
        let lossy = [trial(1000, 0.2, 0.0, 20), trial(2000, 0.2, 0.0, 21)];
        let carried = &summarize(&profile(), &lossy)[0];
        assert_eq!((carried.clients, carried.limit), (Some(1000), RotationLimit::Lost));
        assert!(carried.cause.contains("21 of 20000"), "{}", carried.cause);
        let all = &summarize(&profile(), &events[..1])[0];
        assert_eq!((all.clients, all.limit), (Some(1000), RotationLimit::Highest));
        let cell =
            RotationCell { engine: EngineKind::Afxdp, bind: Method::NetlinkBatch, clients: 1000 };
        let none = [Event::Rotated(Box::new(RotationTrial::failed(cell, "no memory".to_owned())))];
        let carried = &summarize(&profile(), &none)[0];
        assert_eq!((carried.clients, carried.limit), (None, RotationLimit::Unready));
        assert_eq!(carried.cause, "1000: no memory");
    }

    #[test]
    fn a_step_without_an_answer_has_no_times_and_pulls_no_median_down() {
        let Event::Rotated(mut trial) = trial(1000, 0.2, 0.0, 0) else { panic!("a trial") };
        let RotationOutcome::Measured { inside, outside, .. } = &mut trial.outcome else {
            panic!("measured")
        };
        inside.push(LoadResult { outcome: Outcome::default(), ..load(0, 0.0) });
        *outside = vec![LoadResult { outcome: Outcome::default(), ..load(0, 0.0) }];
        let of = figures(&trial).unwrap();
        assert_eq!(of.times(), [Some(20.0), Some(60.0), None, None]);
        assert_eq!((of.sent, of.lost), (30_000, 20_000));
        let text = csv(&[Event::Rotated(trial)]).unwrap();
        assert!(text.ends_with(",30000,20000,20,60,,\n"), "{text}");
    }

    #[test]
    fn figures_stand_under_their_names() {
        let events = [trial(2000, 0.8, 1.5, 3), trial(1000, 0.2, 0.0, 0)];
        let text = csv(&events).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "afxdp,netlink-batch,1000,3000,true,0.2,0.1,0,20000,0,20,60,10,30");
        assert_eq!(lines[2], "afxdp,netlink-batch,2000,6000,false,0.8,0.4,1.5,20000,3,20,60,10,30");
        let panels = panels(&events);
        assert_eq!(panels[0].lines[0].points[1].1.median, 0.8e9);
        assert_eq!(panels[1].lines.len(), 2);
        assert!(svg(&panels, 2).unwrap().contains("netlink-batch, inside"));
        assert!(super::panels(&[]).is_empty());
    }
}
