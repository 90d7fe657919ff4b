//! How many clients can have moving addresses: the trials of `experiment rotation` as a summary, a
//! CSV table and charts.

use std::cmp::Reverse;

use anyhow::{Context, Result, anyhow};

use super::chart::{Axis, Line, Panel, microseconds, nanoseconds, short};
use crate::engine::EngineKind;
use crate::events::{Event, RotationCell, RotationTrial, Spread};
use crate::live::Method;

pub use crate::experiment::summary::rotation::{Figures, figures, limit, summarize, trials};

/// Every trial as CSV with a header line.
///
/// # Errors
/// If the CSV cannot be written.
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

/// The trials, sorted by server (in order of first appearance), then by number of clients.
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

/// The charts, against the number of clients: the work of a step, and the response time during and
/// between exchanges.
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
        panel("Work per time step", Axis { name: "time", words: nanoseconds }, work.collect()),
        panel(
            "Time to the first reply, 99th percentile",
            Axis { name: "time", words: microseconds },
            times.collect(),
        ),
    ];
    panels.into_iter().filter(|panel| !panel.lines.is_empty()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::events::{LoadResult, Percentiles, RotationLimit, RotationOutcome, RotationProfile};
    use crate::experiment::{Profile, Rates, RotationSeries};
    use crate::live::Rotated;
    use crate::load::{LoadClient, Outcome};
    use crate::report::chart::svg;

    fn load(complete: u64, mean_us: f64) -> LoadResult {
        let first = Some(Percentiles { mean_us, p99_us: 3.0 * mean_us, ..Percentiles::default() });
        LoadResult {
            client: LoadClient::Afxdp,
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
                engine: EngineKind::AFXDP,
                methods: vec![Method::NetlinkBatch],
                clients: Rates { from: 1000, to: 8000, step: 2.0 },
            }],
            ..Profile::load("quick").unwrap().rotation.unwrap()
        }
    }

    /// A trial whose step took `seconds` and ended `late_ms` late. It lost `lost` of 20,000
    /// requests.
    pub fn trial(clients: u64, seconds: f64, late_ms: f64, lost: u64) -> Event {
        let cell = RotationCell { engine: EngineKind::AFXDP, bind: Method::NetlinkBatch, clients };
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
            "environment": crate::host::Environment::default(), "queues": [0], "cores": [0],
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
        // The limit is 20 lost requests of 20,000.
        let lossy = [trial(1000, 0.2, 0.0, 20), trial(2000, 0.2, 0.0, 21)];
        let carried = &summarize(&profile(), &lossy)[0];
        assert_eq!((carried.clients, carried.limit), (Some(1000), RotationLimit::Lost));
        assert!(carried.cause.contains("21 of 20000"), "{}", carried.cause);
        let all = &summarize(&profile(), &events[..1])[0];
        assert_eq!((all.clients, all.limit), (Some(1000), RotationLimit::Highest));
        let cell =
            RotationCell { engine: EngineKind::AFXDP, bind: Method::NetlinkBatch, clients: 1000 };
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
