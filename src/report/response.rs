//! Figure 2 from its runs: the rate that each server sustained under each threshold, as a CSV table
//! and as charts that also show the paper's figures.

use anyhow::{Context, Result, anyhow};
use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;

use super::chart::{Axis, Line, Panel, microseconds, short};
use crate::events::{Cell, Event, Limit, Percentiles, Spread, ThresholdSummary, Trial};

pub use crate::experiment::summary::response::{ANSWERED, ON_TIME, cells, held, summarize, trials};

/// The summaries as CSV with a header line. Rates are in requests per second.
///
/// # Errors
/// If the CSV cannot be written.
pub fn csv(summaries: &[ThresholdSummary]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "engine",
        "bind",
        "addresses",
        "threshold_ms",
        "rate_min",
        "rate_median",
        "rate_max",
        "runs",
        "runs_that_held",
        "limit",
        "trials",
        "grid_trials",
    ])?;
    for summary in summaries {
        let rate = |figure: fn(Spread) -> f64| {
            summary.rate.map_or(String::new(), |spread| figure(spread).to_string())
        };
        writer.write_record([
            summary.cell.engine.to_string(),
            summary.cell.bind.to_string(),
            summary.cell.addresses.to_string(),
            summary.threshold_ms.to_string(),
            rate(|spread| spread.min),
            rate(|spread| spread.median),
            rate(|spread| spread.max),
            summary.runs.len().to_string(),
            summary.runs.iter().filter(|run| run.rate.is_some()).count().to_string(),
            limit_name(summary.limit).to_owned(),
            summary.trials.to_string(),
            summary.grid_trials.to_string(),
        ])?;
    }
    into_text(writer)
}

/// Every run as CSV with a header line, for use by other programs.
///
/// # Errors
/// If the CSV cannot be written.
pub fn trials_csv(events: &[Event]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "engine",
        "bind",
        "addresses",
        "run",
        "rate",
        "sent",
        "answered",
        "complete",
        "achieved_rate",
        "late",
        "server_cpu",
        "mean_us",
        "p50_us",
        "p90_us",
        "p99_us",
        "p999_us",
        "max_us",
    ])?;
    for Trial { cell, run, rate, server_cpu, load } in trials(events) {
        let mut record =
            vec![cell.engine.to_string(), cell.bind.to_string(), cell.addresses.to_string()];
        record.extend([run.to_string(), rate.to_string(), load.sent.to_string()]);
        record.extend([load.outcome.answered.to_string(), load.outcome.complete.to_string()]);
        record.extend([load.achieved_rate.to_string(), load.late.to_string()]);
        record.push(server_cpu.map_or(String::new(), |share| share.to_string()));
        match &load.outcome.first {
            Some(Percentiles { mean_us, p50_us, p90_us, p99_us, p999_us, max_us, .. }) => {
                record
                    .extend([mean_us, p50_us, p90_us, p99_us, p999_us, max_us].map(f64::to_string));
            }
            None => record.extend([const { String::new() }; 6]),
        }
        writer.write_record(record)?;
    }
    into_text(writer)
}

fn into_text(writer: csv::Writer<Vec<u8>>) -> Result<String> {
    String::from_utf8(writer.into_inner().map_err(|error| anyhow!("{error}"))?)
        .context("CSV is text")
}

/// The limit's name in the schema.
#[must_use]
pub fn limit_name(limit: Limit) -> &'static str {
    match limit {
        Limit::Slow => "slow",
        Limit::Lost => "lost",
        Limit::Generator => "generator",
        Limit::Highest => "highest",
    }
}

/// Whether the server may sustain more than the rate found.
#[must_use]
pub fn is_at_least(limit: Limit) -> bool {
    matches!(limit, Limit::Generator | Limit::Highest)
}

/// Figure 2 as the paper's text states it (the curves exist only as pictures): number of addresses,
/// requests per second. 150,000 were sustained up to 10,000 addresses, and at most 2,000 with
/// 55,000, at a mean of 5 ms.
const PAPER: [(f64, f64); 3] = [(1.0, 150e3), (10e3, 150e3), (55e3, 2e3)];

/// The name of a series of cells: engine and method.
#[must_use]
pub fn series_name(cell: Cell) -> String {
    format!("{}, {}", cell.engine, cell.bind)
}

/// The series: cells that differ only in their number of addresses, each represented by its first.
fn series(summaries: &[ThresholdSummary]) -> Vec<Cell> {
    let mut series: Vec<Cell> = Vec::new();
    for ThresholdSummary { cell, .. } in summaries {
        if !series.iter().any(|other| (other.engine, other.bind) == (cell.engine, cell.bind)) {
            series.push(*cell);
        }
    }
    series
}

/// The charts: all engines under the first threshold if there are several, then those of [`each`].
#[must_use]
pub fn panels(summaries: &[ThresholdSummary]) -> Vec<Panel> {
    let all = (series(summaries).len() > 1).then(|| all_engines(summaries)).flatten();
    all.into_iter().chain(each(summaries)).collect()
}

/// The chart of all engines under the first threshold.
#[must_use]
pub fn all_engines(summaries: &[ThresholdSummary]) -> Option<Panel> {
    let first = summaries.first()?.threshold_ms;
    let series = series(summaries);
    let lines = series.iter().enumerate();
    let line = |(index, &of): (usize, &Cell)| line(summaries, (of, first), series_name(of), index);
    let title = format!("All engines: mean response under {first} ms");
    Some(panel(title, lines.map(line).collect()))
}

/// A chart per engine and method, with a line per threshold.
#[must_use]
pub fn each(summaries: &[ThresholdSummary]) -> Vec<Panel> {
    let mut thresholds: Vec<f64> = Vec::new();
    for summary in summaries {
        if !thresholds.contains(&summary.threshold_ms) {
            thresholds.push(summary.threshold_ms);
        }
    }
    let panels = series(summaries).into_iter().map(|of| {
        let lines = thresholds.iter().enumerate().map(|(index, &threshold)| {
            // Past a server's limit, a rate exceeds all thresholds almost at once, so the lines
            // overlap. Widths tell them apart.
            let width = 2 + 3 * index as u32 / 2;
            let name = format!("under {threshold} ms");
            Line { width, ..line(summaries, (of, threshold), name, index) }
        });
        panel(series_name(of), lines.collect())
    });
    panels.collect()
}

/// The line of an engine and method under a threshold.
fn line(
    summaries: &[ThresholdSummary],
    (of, threshold): (Cell, f64),
    name: String,
    colour: usize,
) -> Line {
    let mut line = Line::new(name, colour, Vec::new());
    for summary in summaries {
        let is_of = (summary.cell.engine, summary.cell.bind) == (of.engine, of.bind);
        if let (true, Some(rate)) = (is_of && summary.threshold_ms == threshold, summary.rate) {
            let x = summary.cell.addresses as f64;
            line.points.push((x, rate));
            if is_at_least(summary.limit) {
                line.at_least.push((x, rate.median));
            }
        }
    }
    line
}

fn panel(title: String, lines: Vec<Line>) -> Panel {
    Panel {
        title,
        x: Axis { name: "addresses", words: short },
        y: Axis { name: "requests/s sustained", words: short },
        lines,
        bands: Vec::new(),
        marks: PAPER.to_vec(),
        marks_name: "stated in the paper, 2014".to_owned(),
    }
}

/// Merges the histograms of the times to the first reply. `None` if there are none, or a run did
/// not record its own.
#[must_use]
pub fn merged<'a>(trials: impl Iterator<Item = &'a Trial>) -> Option<Histogram<u64>> {
    let mut all: Option<Histogram<u64>> = None;
    // A run without a reply has no times.
    for times in trials.filter_map(|trial| trial.load.outcome.first.as_ref()) {
        let bytes = BASE64_STANDARD.decode(&times.histogram).ok()?;
        let one: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).ok()?;
        match &mut all {
            None => all = Some(one),
            Some(all) => all.add(&one).ok()?,
        }
    }
    all.filter(|all| !all.is_empty())
}

/// The chart of times to the first reply by percentile, with a line for each of `named`.
#[must_use]
pub fn latency_panel(title: String, named: &[(String, Histogram<u64>)]) -> Panel {
    let line = |(index, (name, histogram)): (usize, &(String, Histogram<u64>))| {
        let mut points = Vec::new();
        // Steps of a tenth of a decade, as far as the number of requests resolves.
        let mut slower = 1.0f64;
        while slower <= histogram.len() as f64 {
            let value = histogram.value_at_quantile(1.0 - 1.0 / slower) as f64 / 1000.0;
            points.push((slower, Spread { min: value, median: value, max: value }));
            slower *= 10f64.powf(0.1);
        }
        Line { dots: false, ..Line::new(name.clone(), index, points) }
    };
    Panel {
        title,
        x: Axis { name: "percentile of the requests", words: share },
        y: Axis { name: "time to the first reply", words: microseconds },
        lines: named.iter().enumerate().map(line).collect(),
        ..Panel::default()
    }
}

/// The percentile beyond which one in `slower` requests lies.
fn share(slower: f64) -> String {
    let digits = (slower.log10().round() as usize).saturating_sub(2);
    format!("{:.digits$} %", 100.0 - 100.0 / slower)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use crate::events::{LoadResult, ResponseProfile, Sustained};
    use crate::experiment::Profile;
    use crate::live::Method;
    use crate::load::{LoadClient, Outcome};
    use crate::report::chart::svg;

    pub fn trial(engine: EngineKind, addresses: u64, run: u32, rate: u64, mean_us: f64) -> Event {
        let mut times =
            hdrhistogram::Histogram::<u64>::new_with_bounds(1, 3_600_000_000_000, 3).unwrap();
        times.record_n((mean_us * 1000.0) as u64, 1000).unwrap();
        let mut bytes = Vec::new();
        use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};
        V2DeflateSerializer::new().serialize(&times, &mut bytes).unwrap();
        let first = Percentiles {
            mean_us,
            histogram: BASE64_STANDARD.encode(bytes),
            ..Percentiles::default()
        };
        let load = LoadResult {
            clock_steps: None,
            client: LoadClient::Afxdp,
            sent: 1000,
            unsent: 0,
            outcome: Outcome {
                answered: 1000,
                complete: 1000,
                first: Some(first),
                ..Outcome::default()
            },
            late: 0,
            offered_rate: rate as f64,
            achieved_rate: rate as f64,
            attach: None,
            copy: None,
            rings: None,
            busy_poll: None,
            environment: None,
        };
        let bind = Method::NetlinkDown;
        Event::Trial(Trial {
            cell: Cell { engine, bind, addresses },
            run,
            rate,
            server_cpu: Some(0.5),
            load,
        })
    }

    fn with(event: Event, change: impl FnOnce(&mut LoadResult)) -> Event {
        let Event::Trial(mut trial) = event else { panic!("a trial") };
        change(&mut trial.load);
        Event::Trial(trial)
    }

    pub fn profile() -> ResponseProfile {
        let mut profile = Profile::load("quick").unwrap().response.unwrap();
        (profile.runs, profile.rates.step) = (3, 1.1);
        profile
    }

    /// Passes over 1,000 to 5,000 requests/s with the given mean times in ms. 0 stands for lost
    /// requests, -1 for a late generator.
    fn events(passes: &[[f64; 5]]) -> Vec<Event> {
        let mut events = Vec::new();
        for (run, means) in (1..).zip(passes) {
            for (rate, mean) in (1..).zip(means) {
                let event = trial(EngineKind::AFXDP, 10, run, 1000 * rate, mean.abs() * 1000.0);
                events.push(match *mean {
                    0.0 => with(event, |load| load.outcome.answered = 899),
                    -1.0 => with(event, |load| load.achieved_rate = load.offered_rate * 0.98),
                    _ => event,
                });
            }
        }
        events
    }

    #[test]
    fn the_highest_rate_that_held_is_found_with_the_reason_for_no_higher() {
        let summaries = summarize(
            &profile(),
            &events(&[[0.5, 0.9, 3.0, 20.0, 0.0], [0.5, 2.0, 4.0, 0.0, 0.0]]),
        );
        let found: Vec<_> = summaries
            .iter()
            .map(|summary| {
                (summary.threshold_ms, summary.runs.iter().map(|run| run.rate.unwrap()).collect())
            })
            .collect::<Vec<(f64, Vec<u64>)>>();
        let expected = [
            (1.0, vec![2000, 1000]),
            (5.0, vec![3000, 3000]),
            (50.0, vec![4000, 3000]),
            (100.0, vec![4000, 3000]),
        ];
        assert_eq!(found, expected);
        assert_eq!(summaries[0].rate, Some(Spread { min: 1000.0, median: 1500.0, max: 2000.0 }));
        assert_eq!(
            [0, 1, 2, 3].map(|index| summaries[index].limit),
            [Limit::Slow, Limit::Slow, Limit::Lost, Limit::Lost]
        );
        assert_eq!((summaries[0].trials, summaries[0].runs.len()), (10, 2));
        assert!(summaries[0].grid_trials > 100);
    }

    #[test]
    fn what_the_generator_or_the_grid_ended_is_at_least_that() {
        let summaries = summarize(&profile(), &events(&[[0.5, 0.6, 0.7, -1.0, -1.0]]));
        assert_eq!(summaries[0].runs, [Sustained { rate: Some(3000), limit: Limit::Generator }]);
        let summaries = summarize(&profile(), &events(&[[0.5; 5]]));
        assert_eq!(summaries[0].runs, [Sustained { rate: Some(5000), limit: Limit::Highest }]);
        assert!(is_at_least(summaries[0].limit));
        let summaries = summarize(&profile(), &events(&[[70.0; 5]]));
        assert_eq!((summaries[0].rate, summaries[0].limit), (None, Limit::Slow));
        assert_eq!(summaries[3].rate.map(|rate| rate.median), Some(5000.0));
        // A rate that failed does not hide a higher one that held.
        let summaries = summarize(&profile(), &events(&[[0.5, 9.0, 0.6, 9.0, 9.0]]));
        assert_eq!(summaries[0].runs[0].rate, Some(3000));
    }

    #[test]
    fn exactly_nine_tenths_and_the_very_threshold_hold() {
        let Event::Trial(mut trial) = trial(EngineKind::SOCKET, 1, 1, 1000, 5000.0) else {
            panic!("a trial")
        };
        trial.load.outcome.answered = 900;
        assert_eq!((held(&trial, 5.0), held(&trial, 4.999)), (None, Some(Limit::Slow)));
        trial.load.outcome.answered = 899;
        assert_eq!(held(&trial, 5.0), Some(Limit::Lost));
    }

    #[test]
    fn csv_has_a_line_of_names_and_one_of_as_many_figures_for_each() {
        let events = events(&[[0.5, 0.9, 3.0, 20.0, 0.0]]);
        for (text, lines) in
            [(csv(&summarize(&profile(), &events)).unwrap(), 5), (trials_csv(&events).unwrap(), 6)]
        {
            let rows: Vec<Vec<_>> = text.lines().map(|line| line.split(',').collect()).collect();
            assert_eq!(rows.len(), lines);
            assert!(rows.iter().all(|row| row.len() == rows[0].len()), "{text}");
        }
        // A run without a reply has no times, so its CSV fields are empty.
        let none = with(events[0].clone(), |load| load.outcome = Outcome::default());
        let text = trials_csv(std::slice::from_ref(&none)).unwrap();
        assert!(text.ends_with(",0.5,,,,,,\n"), "{text}");
        let Event::Trial(none) = none else { panic!("a trial") };
        assert_eq!(held(&none, 1e9), Some(Limit::Lost));
        assert_eq!(merged([&none].into_iter()), None);
        assert_eq!(merged(trials(&events[..1]).chain([&none])).map(|all| all.len()), Some(1000));
        let text = csv(&summarize(&profile(), &events)).unwrap();
        assert!(text.contains("afxdp,netlink-down,10,1,2000,2000,2000,1,1,slow,5,"), "{text}");
    }

    #[test]
    fn charts_have_a_panel_for_each_engine_and_one_for_all() {
        let mut two = events(&[[0.5, 0.9, 3.0, 20.0, 0.0]]);
        two.push(trial(EngineKind::SOCKET, 10, 1, 1000, 100.0));
        let panels = panels(&summarize(&profile(), &two));
        assert_eq!(panels.len(), 3);
        let picture = svg(&panels, 2).unwrap();
        for words in
            ["socket, netlink-down", "afxdp, netlink-down", "under 50 ms", "stated in the paper"]
        {
            assert!(picture.contains(words), "{words}");
        }
    }

    #[test]
    fn histograms_of_runs_are_added_up() {
        let both = [
            trial(EngineKind::SOCKET, 1, 1, 1000, 10.0),
            trial(EngineKind::SOCKET, 1, 2, 1000, 1000.0),
        ];
        let all = merged(trials(&both)).unwrap();
        assert_eq!(all.len(), 2000);
        assert!((all.value_at_quantile(0.4) as f64 / 10_000.0 - 1.0).abs() < 0.001);
        assert!((all.value_at_quantile(0.9) as f64 / 1_000_000.0 - 1.0).abs() < 0.001);
        assert!(merged(trials(&[])).is_none());
        let panel = latency_panel("times".to_owned(), &[("socket".to_owned(), all)]);
        assert!(svg(&[panel], 1).unwrap().contains("99 %"));
        assert_eq!(
            [1.0, 10.0, 100.0, 1e3, 1e4].map(share),
            ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]
        );
    }
}
