//! One page of everything that was measured: figures, tables, what to doubt, and where it was
//! measured. It needs no network and no script, and fits a telephone, the dark and paper.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::bind;
use super::chart::{Panel, for_page, svg};
use super::response::{self, cells, is_at_least, limit_name, series_name, trials};
use super::rotation;
use crate::engine::EngineKind;
use crate::events::words::{self, or_dash};
use crate::events::{
    BindOutcome, BindSummary, Cell, EngineResult, Event, Experiment, Limit, Plan, Ready,
    RotationOutcome, Spread, ThresholdSummary, Trial,
};
use crate::experiment::{Approach, ResponseProfile};
use crate::host::Environment;
use crate::net::netlink::AttachMode;
use crate::xdp::{CopyMode, CopyRequest};

/// Runs that differ by more than this share of their median are named.
const VARIES: f64 = 0.2;

/// What a directory of results holds, each in the order of its file; empty where there is no such
/// file.
#[derive(Debug, Default)]
pub struct Data {
    /// bind.jsonl.
    pub bind: Vec<Event>,
    /// response.jsonl.
    pub response: Vec<Event>,
    /// rotation.jsonl.
    pub rotation: Vec<Event>,
    /// compare.jsonl.
    pub compare: Vec<Event>,
}

/// A page, and the charts on it as files of their own.
pub struct Page {
    /// The page.
    pub html: String,
    /// Name and contents of each chart.
    pub charts: Vec<(String, String)>,
}

/// The page of `data`.
///
/// # Errors
/// When a chart cannot be drawn.
pub fn page(data: &Data) -> Result<Page> {
    let summed = Summed::of(data);
    let mut charts = Vec::new();
    let mut figures = |name: &str, panels: &[Panel]| -> Result<Markup> {
        let mut drawn = Vec::new();
        for (index, panel) in panels.iter().enumerate() {
            let picture = svg(std::slice::from_ref(panel), 1)?;
            drawn.push((panel.title.clone(), for_page(&picture)));
            charts.push((format!("{name}-{}.svg", index + 1), picture));
        }
        Ok(html! {
            div.charts {
                @for (title, picture) in &drawn {
                    figure role="img" aria-label=(title) { (PreEscaped(picture)) }
                }
            }
        })
    };
    let figure_2 = match summed.thresholds.as_slice() {
        [] => None,
        summaries => Some(figures("figure-2", &response::panels(summaries))?),
    };
    let latencies = summed.latencies();
    let lowest: Vec<_> = latencies.iter().filter(|row| row.is_lowest).collect();
    let latency_chart = match lowest.first() {
        None => html! {},
        Some(first) => {
            let title = format!("Time to the first reply at {}/s", thousands(first.rate));
            let named: Vec<_> = lowest.iter().map(|row| (row.name(), row.times.clone())).collect();
            figures("latency", &[response::latency_panel(title, &named)])?
        }
    };
    let figure_1 = match summed.bind.as_slice() {
        [] => None,
        summaries => Some(figures("figure-1", &bind::panels(summaries))?),
    };
    let moving = match rotation::panels(&data.rotation) {
        panels if panels.is_empty() => None,
        panels => Some(figures("rotation", &panels)?),
    };
    let warnings = summed.warnings(data);
    let html = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { "Sixhop: what was measured" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "Sixhop: what was measured" }
                    p.lead { (summed.lead()) }
                }
                main {
                    @if !warnings.is_empty() {
                        section.warnings {
                            h2 { "Before you quote a figure" }
                            ul { @for warning in &warnings { li { (warning) } } }
                        }
                    }
                    @if let Some(charts) = &figure_2 {
                        section {
                            h2 { "Figure 2: the rate that n addresses sustain" }
                            (summed.method_2())
                            (charts)
                            (summed.threshold_table())
                        }
                        (summed.comparison())
                    }
                    @if let Some(compare) = compare_table(&data.compare) { (compare) }
                    @if !latencies.is_empty() {
                        section {
                            h2 { "How long a reply takes" }
                            p { "Time from when a request was due to its first reply, all runs at \
                                that rate together." }
                            (latency_chart)
                            (latency_table(&latencies))
                        }
                    }
                    @if let Some(charts) = &figure_1 {
                        section {
                            h2 { "Figure 1: what an address costs" }
                            p {
                                "Mean time for each of n addresses, bound and unbound as quickly \
                                 as it goes, on an interface that is \
                                 fresh for each run. Lines go through medians; whiskers go from \
                                 the quickest run to the slowest."
                            }
                            (charts)
                            (bind_table(&summed.bind, &data.bind))
                        }
                    }
                    @if let Some(charts) = &moving {
                        section {
                            h2 { "Addresses that move: for how many clients" }
                            p {
                                "All addresses of all clients are exchanged in each time step \
                                 while requests are answered. Times are those \
                                 to the first reply, inside the exchange and outside it."
                            }
                            (charts)
                            (rotation_table(&data.rotation))
                        }
                    }
                    (environment(data))
                }
                footer {
                    p {
                        "The paper is Morrell, Ransbottom, Marchany and Tront, “Scaling IPv6 \
                         Address Bindings in Support of a Moving \
                         Target Defense”, 2014, measured on an i7-4770 with an Intel I217-LM. Its \
                         curves are only in pictures: what is \
                         marked here is what its text states. Every run is in the .jsonl files \
                         beside this page, with its histogram."
                    }
                }
            }
        }
    };
    Ok(Page { html: html.into_string(), charts })
}

/// What follows from the runs.
struct Summed<'a> {
    profile: Option<&'a ResponseProfile>,
    response: &'a [Event],
    finished: bool,
    thresholds: Vec<ThresholdSummary>,
    bind: Vec<BindSummary>,
    starts: Vec<&'a Experiment>,
}

/// Times at one rate, of all runs.
struct Latency {
    cell: Cell,
    rate: u64,
    is_lowest: bool,
    times: hdrhistogram::Histogram<u64>,
    mean_us: f64,
}

impl Latency {
    fn name(&self) -> String {
        format!("{}, {}", series_name(self.cell), thousands(self.cell.addresses))
    }
}

impl<'a> Summed<'a> {
    fn of(data: &'a Data) -> Self {
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
        // Of what is not finished, the last pass says nothing yet.
        let mut response = data.response.as_slice();
        if !finished {
            let pass = |event: &Event| match event {
                Event::Trial(trial) => Some((trial.cell, trial.run)),
                _ => None,
            };
            if let Some(last) = response.iter().rev().find_map(pass) {
                let first = response.iter().position(|event| pass(event) == Some(last));
                response = &response[..first.unwrap_or(0)];
            }
        }
        let thresholds =
            profile.map_or(Vec::new(), |profile| response::summarize(profile, response));
        Self { profile, response, finished, thresholds, bind: bind::summarize(&data.bind), starts }
    }

    /// What was measured when, on which machine.
    fn lead(&self) -> String {
        let mut text: Vec<String> = Vec::new();
        let mut machines: Vec<String> = Vec::new();
        for start in &self.starts {
            let Environment { kernel, cpu, nic, .. } = &start.environment;
            let machine = format!("Linux {kernel}, {cpu}, {}", driver(&nic.driver));
            let date = start.started.split('T').next().unwrap_or_default();
            let figure = match start.plan {
                Plan::Bind(_) => "Figure 1",
                Plan::Response(_) => "Figure 2",
                Plan::Rotation(_) => "Moving addresses",
            };
            text.push(format!("{figure}: {date}"));
            if !machines.contains(&machine) {
                machines.push(machine);
            }
        }
        text.extend(machines);
        text.join(" · ")
    }

    /// The rate of a server under a threshold.
    fn rate(&self, cell: Cell, threshold: f64) -> Option<&ThresholdSummary> {
        self.thresholds
            .iter()
            .find(|summary| summary.cell == cell && summary.threshold_ms == threshold)
    }

    fn method_2(&self) -> Markup {
        let Some(profile) = self.profile else { return html! {} };
        let way = match profile.way {
            Approach::Grid => {
                "every rate was measured, and the highest that held counts, though a lower one \
                 failed"
            }
            Approach::Bisect => {
                "halving found the highest; where rates hold in one run and fail in the next, it \
                 ends at the lowest of them"
            }
        };
        let length = match profile.seconds {
            Some(seconds) => {
                format!("{} requests, or {seconds} s of them", thousands(profile.requests))
            }
            None => format!("{} requests", thousands(profile.requests)),
        };
        html! {
            p {
                "A rate is sustained when the mean time from when a request was due to its first \
                 reply is at most the threshold, at \
                 least 90 % of the requests were answered, and the generator sent 99 % of the \
                 rate. "
                (format!(
                    "Each of {} passes went through rates from {} to {}/s, each {:.0} % above the \
                     one before: {way}. A run has {length}; each \
                     of {} bytes to an address drawn at random, with {} replies. ",
                    profile.runs,
                    thousands(profile.rates.from),
                    thousands(profile.rates.to),
                    100.0 * (profile.rates.step - 1.0),
                    profile.payload,
                    profile.replies,
                ))
                "The paper states 150,000/s for up to 10,000 addresses, no mean under 1 ms at any \
                 rate past 30,000, and at most 2,000/s \
                 with 55,000, at 5 ms. Lines go through medians; whiskers go from the lowest pass \
                 to the highest. ▲ stands where the server may be able to do \
                 more: the generator, or the highest rate, ended the search."
            }
        }
    }

    fn threshold_table(&self) -> Markup {
        let Some(profile) = self.profile else { return html! {} };
        let thresholds = &profile.thresholds_ms;
        let (mut made, mut grid) = (0, 0);
        for cell in cells(self.response) {
            if let Some(summary) = self.thresholds.iter().find(|summary| summary.cell == cell) {
                made += summary.trials;
                grid += summary.grid_trials;
            }
        }
        html! {
                    p.note {
                                "Requests/s sustained: median, and from the lowest pass to the \
                                 highest. "
                                (format!("{} runs, of {} that the full grid \
                                    has.", thousands(made as u64), thousands(grid as u64)))
                            }
        div.table tabindex="0" role="region" aria-label="Rates sustained" {
                        table {
                            thead { tr {
                                th { "engine, bound by" } th.number { "addresses" }
                                @for threshold in thresholds { th.number { "≤ " (threshold) " \
                                    ms" } }
                            } }
                            tbody {
                                @for cell in cells(self.response) { tr {
                                    th scope="row" { (series_name(cell)) }
                                    td.number { (thousands(cell.addresses)) }
                                    @for threshold in thresholds { td.number { (self.rate_cell(cell, *threshold)) } }
                                } }
                                @for event in self.response { @if let Event::Failed(failed) = event { tr {
                                    th scope="row" { (series_name(failed.cell)) }
                                    td.number { (thousands(failed.cell.addresses)) }
                                    td colspan=(thresholds.len()) { (failed.why) }
                                } } }
                            }
                        }
                    }
                }
    }

    fn rate_cell(&self, cell: Cell, threshold: f64) -> Markup {
        let Some(summary) = self.rate(cell, threshold) else { return html! {} };
        let Some(Spread { min, median, max }) = summary.rate else {
            return html! { span title="not even at the lowest rate" { "–" } };
        };
        let held = summary.runs.iter().filter(|run| run.rate.is_some()).count();
        html! {
            @if is_at_least(summary.limit) { "≥ " }
            (requests(median))
            small {
                (requests(min)) "–" (requests(max))
                " · " (limit_name(summary.limit))
                @if held < summary.runs.len() { " · " (held) " of " (summary.runs.len()) " passes" }
            }
        }
    }

    /// Each engine beside the socket server, on the same addresses bound in the same way; where the
    /// socket server cannot have them so, bound in its own.
    fn comparison(&self) -> Markup {
        let Some(&threshold) = self.profile.and_then(|profile| profile.thresholds_ms.first())
        else {
            return html! {};
        };
        let all = cells(self.response);
        let socket = |cell: Cell| {
            let of_number = |other: &&Cell| {
                other.engine == EngineKind::Socket && other.addresses == cell.addresses
            };
            let same = all.iter().filter(of_number).find(|other| other.bind == cell.bind);
            same.or_else(|| all.iter().find(of_number)).copied()
        };
        let median = |cell: Cell| self.rate(cell, threshold)?.rate.map(|rate| rate.median);
        let rows: Vec<_> = all
            .iter()
            .filter(|cell| cell.engine != EngineKind::Socket)
            .filter_map(|&cell| {
                let socket = socket(cell)?;
                Some((cell, socket, median(cell)?, median(socket)?))
            })
            .collect();
        if rows.is_empty() {
            return html! {};
        }
        html! {
                    section {
                        h2 { "Beside the socket server" }
                        p.note { "Requests/s sustained with a mean of at most " (threshold) " ms: medians, and their ratio." }
        div.table tabindex="0" role="region" aria-label="Comparison" {
                            table {
                                thead { tr {
                                    th { "engine, bound by" } th.number { "addresses" } th.number { "requests/s" }
                                    th { "beside" } th.number { "requests/s" } th.number { "ratio" }
                                } }
                                tbody { @for (cell, other, rate, socket) in &rows { tr {
                                    th scope="row" { (series_name(*cell)) }
                                    td.number { (thousands(cell.addresses)) }
                                    td.number { (requests(*rate)) }
                                    td { (series_name(*other)) }
                                    td.number { (requests(*socket)) }
                                    td.number { strong { (format!("{:.2}", rate / socket)) } }
                                } } }
                            }
                        }
                    }
                }
    }

    /// Of each server, at the lowest rate, which all have in common, and at the highest that holds
    /// under the first threshold.
    fn latencies(&self) -> Vec<Latency> {
        let Some((profile, &threshold)) =
            self.profile.and_then(|profile| Some((profile, profile.thresholds_ms.first()?)))
        else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        let cells = cells(self.response);
        let at = |cell: Cell, rate: u64, is_lowest: bool| {
            let of_rate = || {
                trials(self.response).filter(move |trial| trial.cell == cell && trial.rate == rate)
            };
            let answered: u64 = of_rate().map(|trial| trial.load.outcome.answered).sum();
            let sum: f64 = of_rate()
                .filter_map(|trial| {
                    Some((trial.load.outcome.first.as_ref()?, trial.load.outcome.answered))
                })
                .map(|(times, answered)| times.mean_us * answered as f64)
                .sum();
            let times = response::merged(of_rate())?;
            Some(Latency { cell, rate, is_lowest, times, mean_us: sum / answered as f64 })
        };
        rows.extend(cells.iter().filter_map(|&cell| at(cell, profile.rates.from, true)));
        rows.extend(cells.iter().filter_map(|&cell| {
            let rates: Vec<_> =
                self.rate(cell, threshold)?.runs.iter().filter_map(|run| run.rate).collect();
            // A rate that was measured: the median of an even number of passes need not be one.
            at(cell, *rates.iter().min()?, false)
        }));
        rows
    }

    /// What makes a figure doubtful.
    fn warnings(&self, data: &Data) -> Vec<String> {
        let mut warnings = Vec::new();
        if !data.response.is_empty() && !self.finished {
            warnings.push(
                "Figure 2 is not finished: run the same command again, and it goes on.".to_owned(),
            );
        }
        if !data.bind.is_empty()
            && !data.bind.iter().any(|event| matches!(event, Event::Summary(_)))
        {
            warnings.push(
                "Figure 1 is not finished: run the same command again, and it goes on.".to_owned(),
            );
        }
        if !data.rotation.is_empty()
            && !data.rotation.iter().any(|event| matches!(event, Event::Carried(_)))
        {
            warnings.push(
                "The rotation is not finished: run the same command again, and it goes on."
                    .to_owned(),
            );
        }
        self.warn_of_runs(&mut warnings);
        self.warn_of_spread(&mut warnings);
        let environments = || self.starts.iter().map(|start| &start.environment);
        if environments().any(|environment| environment.revision.ends_with("-dirty")) {
            warnings.push(
                "The source of sixhop was changed when this was measured: others cannot repeat it exactly."
                    .to_owned(),
            );
        } else if environments().any(|environment| environment.revision.is_empty()) {
            warnings.push("No git revision is known of the sixhop that measured this.".to_owned());
        }
        let governors = environments().filter_map(|environment| environment.governor.as_ref());
        for governor in governors.filter(|name| *name != "performance").take(1) {
            warnings
                .push(format!("The processor's frequency was left to the governor '{governor}'."));
        }
        let mut copied: Vec<String> = Vec::new();
        for ready in readies(data) {
            let Some(engine) = ready.engine else { continue };
            let nic = driver(&ready.driver);
            if let Some(CopyMode::Copy) =
                ready.modes.copy.filter(|_| ready.copy_asked != CopyRequest::Copy)
            {
                copied.push(format!(
                    "{engine} ran in copy mode, though {} was asked for: zero-copy was not to be had on {nic}. These are no \
                     zero-copy figures.",
                    ready.copy_asked
                ));
            }
            if let Some(attach) = ready.modes.attach.filter(|mode| *mode == AttachMode::Generic) {
                copied.push(format!(
                    "{engine} ran its XDP program in {attach} mode, after a socket buffer was made; {} was asked for.",
                    ready.attach_asked
                ));
            }
        }
        copied.dedup();
        warnings.extend(copied);
        warnings.dedup();
        warnings
    }

    fn warn_of_runs(&self, warnings: &mut Vec<String>) {
        let Some(profile) = self.profile else { return };
        let highest = profile.thresholds_ms.last().copied().unwrap_or(0.0);
        for cell in cells(self.response) {
            let name = format!("{}, {}", series_name(cell), addresses(cell.addresses));
            let of_cell = || trials(self.response).filter(|trial| trial.cell == cell);
            let late =
                of_cell().filter(|trial| response::held(trial, highest) == Some(Limit::Generator));
            if let Some(rate) = late.map(|trial| trial.rate).min() {
                warnings.push(format!(
                    "{name}: the generator was late from {}/s on: there it says nothing of the server.",
                    thousands(rate)
                ));
            }
            let held = || of_cell().filter(|trial| response::held(trial, highest).is_none());
            let share = |part: u64, trial: &Trial| part as f64 / trial.load.sent.max(1) as f64;
            let worst = |part: fn(&Trial) -> u64| {
                held()
                    .map(|trial| (share(part(trial), trial), trial.rate))
                    .max_by(|a, b| a.0.total_cmp(&b.0))
            };
            if let Some((lost, rate)) = worst(|trial| trial.load.sent - trial.load.outcome.complete)
                .filter(|lost| lost.0 > 0.001)
            {
                warnings.push(format!(
                    "{name}: up to {:.1} % of the requests lacked a reply in runs that count as sustained, at {}/s.",
                    100.0 * lost,
                    thousands(rate)
                ));
            }
            if let Some((late, rate)) = worst(|trial| trial.load.late).filter(|late| late.0 > 0.01)
            {
                warnings.push(format!(
                    "{name}: up to {:.1} % of the requests were sent more than 1 ms late in runs that count as sustained, at {}/s; their \
                     times have that in them.",
                    100.0 * late,
                    thousands(rate)
                ));
            }
            let wrong = of_cell().map(|trial| {
                let outcome = &trial.load.outcome;
                outcome.duplicates + outcome.wrong_source + outcome.corrupt
            });
            let wrong: u64 = wrong.sum();
            if wrong > 0 {
                warnings.push(format!(
                    "{name}: {wrong} replies were damaged, doubled, or from a wrong address."
                ));
            }
        }
        let cut = trials(self.response).any(|trial| trial.load.sent < profile.requests);
        if let (Some(seconds), true) = (profile.seconds, cut) {
            warnings.push(format!(
                "Runs sent for {seconds} s at most, and have fewer requests than the {} of the paper: what a server is asked too much \
                 piles up for so long only, and under the larger thresholds a longer run may sustain less.",
                thousands(250_000)
            ));
        }
    }

    fn warn_of_spread(&self, warnings: &mut Vec<String>) {
        let varies =
            |Spread { min, median, max }: Spread| (median > 0.0).then(|| (max - min) / median);
        let list = |what: &str, all: usize, mut names: Vec<(f64, String)>| {
            names.sort_by(|a, b| b.0.total_cmp(&a.0));
            let worst = names.first()?;
            Some(format!(
                "{what}: {} of {all} figures vary by more than {:.0} % from run to run, most of all {} ({:.0} %).",
                names.len(),
                100.0 * VARIES,
                worst.1,
                100.0 * worst.0
            ))
        };
        let rates = self.thresholds.iter().filter_map(|summary| {
            let share = varies(summary.rate?)?;
            let name = format!(
                "{}, {}, {} ms",
                series_name(summary.cell),
                addresses(summary.cell.addresses),
                summary.threshold_ms
            );
            (share > VARIES).then_some((share, name))
        });
        warnings.extend(list("Figure 2", self.thresholds.len(), rates.collect()));
        let times = self.bind.iter().flat_map(|summary| {
            [("to bind", summary.bind_ns), ("to unbind", summary.unbind_ns)].map(
                |(what, spread)| {
                    let name =
                        format!("{}, {}, {what}", summary.method, addresses(summary.addresses));
                    (varies(spread), name)
                },
            )
        });
        let times =
            times.filter_map(|(share, name)| Some((share.filter(|share| *share > VARIES)?, name)));
        warnings.extend(list("Figure 1", 2 * self.bind.len(), times.collect()));
    }
}

/// What the servers said of themselves.
fn readies(data: &Data) -> impl Iterator<Item = &Ready> {
    data.response.iter().chain(&data.rotation).chain(&data.compare).filter_map(
        |event| match event {
            Event::Ready(ready) => Some(ready),
            Event::Rotated(trial) => match &trial.outcome {
                RotationOutcome::Measured { ready, .. } => Some(&**ready),
                RotationOutcome::Failed { .. } => None,
            },
            Event::Engine(result) => Some(&result.server),
            _ => None,
        },
    )
}

fn latency_table(rows: &[Latency]) -> Markup {
    let us = |nanoseconds: u64| format!("{:.1}", nanoseconds as f64 / 1000.0);
    html! {
            p.note {
                        "Time to the first reply in µs: at the lowest rate, which all have in common, and at the lowest of those that the passes \
                         found to be the highest under the first threshold."
                    }
    div.table tabindex="0" role="region" aria-label="Latency" {
                table {
                    thead { tr {
                        th { "engine, bound by, addresses" } th.number { "requests/s" } th.number { "mean" }
                        th.number { "p50" } th.number { "p90" } th.number { "p99" } th.number { "p99.9" } th.number { "max" }
                        th.number { "requests" }
                    } }
                    tbody { @for row in rows { tr {
                        th scope="row" { (row.name()) }
                        td.number { (thousands(row.rate)) }
                        td.number { (format!("{:.1}", row.mean_us)) }
                        @for quantile in [0.5, 0.9, 0.99, 0.999] { td.number { (us(row.times.value_at_quantile(quantile))) } }
                        td.number { (us(row.times.max())) }
                        td.number { (thousands(row.times.len())) }
                    } } }
                }
            }
        }
}

fn compare_table(events: &[Event]) -> Option<Markup> {
    let results: Vec<&EngineResult> = events
        .iter()
        .filter_map(|event| match event {
            Event::Engine(result) => Some(&**result),
            _ => None,
        })
        .collect();
    let first = results.first()?;
    Some(html! {
            section {
                h2 { "Compared in one run" }
                p.note {
                            (format!(
                                "The most that is sustained with 99.9 % of the requests complete and a mean of {} ms: median of {} searches. Times \
                                 in µs to the first reply, at that rate and at half of it. {} replies of {} bytes. Linux {}, {}; receive work {}.",
                                first.mean_limit_us / 1000.0, first.runs.len(), first.replies, first.payload, first.environment.kernel,
                                first.environment.cpu,
                                first.environment.nic.receive_work(),
                            ))
                            @if let Some(guest) = &first.environment.guest {
                                (format!(" In a virtual machine, {guest}: only the ratios mean anything."))
                            }
                        }
    div.table tabindex="0" role="region" aria-label="Comparison in one run" {
                    table {
                        thead { tr {
                            th { "engine" } th { "XDP, copy" } th.number { "addresses" } th.number { "requests/s" } th.number { "mean" }
                            th.number { "p99" } th.number { "server CPU" } th.number { "mean at half" } th.number { "ratio to socket" }
                        } }
                        tbody { @for result in &results { tr {
                            th scope="row" { (format!("{}, {}", result.engine, result.bind)) }
                            td { (modes(&result.server)) }
                            td.number { (thousands(result.addresses)) }
                            td.number {
                                (requests(result.sustained_rps))
                                @if let Some(Spread { min, max, .. }) = Spread::of(result.runs.iter().copied()) {
                                    small { (requests(min)) "–" (requests(max)) }
                                }
                            }
                            td.number { (or_dash(result.mean_us, whole)) }
                            td.number { (or_dash(result.p99_us, whole)) }
                            td.number { (or_dash(result.server_cpu, |share| format!("{:.0} %", 100.0 * share))) }
                            td.number { (or_dash(result.half_mean_us, whole)) }
                            td.number { strong { (or_dash(result.ratio_to_socket, |ratio| format!("{ratio:.2}"))) } }
                        } } }
                    }
                }
            }
        })
}

fn bind_table(summaries: &[BindSummary], events: &[Event]) -> Markup {
    let spread = |Spread { min, median, max }: Spread| {
        html! { (time(median)) small { (time(min)) "–" (time(max)) } }
    };
    let unmeasured: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Cell(cell) if cell.run == 1 => match &cell.outcome {
                BindOutcome::Bound(_) => None,
                BindOutcome::Stopped { bound, budget } => Some((
                    cell,
                    format!("stopped after {budget} s, with {} bound", thousands(*bound)),
                )),
                BindOutcome::Skipped { why } => Some((cell, format!("not tried: {why}"))),
                BindOutcome::Failed { why } => Some((cell, why.clone())),
            },
            _ => None,
        })
        .collect();
    html! {
            p.note { "Mean time for each address: median of the runs, and from the quickest to the slowest." }
    div.table tabindex="0" role="region" aria-label="Binding" {
                table {
                    thead { tr {
                        th { "method" } th.number { "addresses" } th.number { "to compute" } th.number { "to bind" }
                        th.number { "to unbind" } th.number { "bytes each" } th.number { "binds × as fast as netlink" }
                    } }
                    tbody {
                        @for summary in summaries { tr {
                            th scope="row" { (summary.method) }
                            td.number { (thousands(summary.addresses)) }
                            td.number { (time(summary.generate_ns.median)) }
                            td.number { (spread(summary.bind_ns)) }
                            td.number { (spread(summary.unbind_ns)) }
                            td.number { (or_dash(summary.bytes_per_address, whole)) }
                            td.number { (or_dash(summary.faster_than_netlink, |ratio| format!("{ratio:.2}"))) }
                        } }
                        @for (cell, why) in &unmeasured { tr {
                            th scope="row" { (cell.method) }
                            td.number { (thousands(cell.addresses)) }
                            td colspan="5" { (why) }
                        } }
                    }
                }
            }
        }
}

fn rotation_table(events: &[Event]) -> Markup {
    let carried = events.iter().filter_map(|event| match event {
        Event::Carried(carried) => Some(carried),
        _ => None,
    });
    html! {
        div.table tabindex="0" role="region" aria-label="Moving addresses" {
            table {
                thead { tr {
                    th { "engine, bound by" } th.number { "clients" } th.number { "work in a step" } th.number { "processor" }
                    th.number { "late" } th.number { "lost" } th.number { "mean inside, µs" } th.number { "p99 inside" }
                    th.number { "mean outside" } th.number { "p99 outside" } th { "carried" }
                } }
                tbody {
                    @for trial in rotation::sorted(events) { tr {
                        th scope="row" { (format!("{}, {}", trial.cell.engine, trial.cell.bind)) }
                        td.number { (thousands(trial.cell.clients)) }
                        @if let Some(of) = rotation::figures(trial) {
                            td.number { (time(of.seconds * 1e9)) }
                            td.number { (time(of.cpu_seconds * 1e9)) }
                            td.number { (if of.late_ms > 0.0 { time(of.late_ms * 1e6) } else { "–".to_owned() }) }
                            td.number { (format!("{} of {}", thousands(of.lost), thousands(of.sent))) }
                            @for time in of.times() { td.number { (or_dash(time, whole)) } }
                        } @else if let RotationOutcome::Failed { why } = &trial.outcome {
                            td colspan="8" { (why) }
                        } @else {
                            td colspan="8" { "no step was done in the time of it" }
                        }
                        td { (if rotation::limit(trial).is_none() { "yes" } else { "no" }) }
                    } }
                }
            }
        }
        ul { @for of in carried { li {
            (format!("{}, {}, a step of {} s: ", of.engine, of.bind, of.rotate))
            @match of.clients {
                Some(clients) => { strong { (thousands(clients)) } " clients are carried; " }
                None => { "no number of clients was carried; " }
            }
            (of.cause) "."
        } } }
    }
}

/// Where and by what it was measured.
fn environment(data: &Data) -> Markup {
    let mut machines: Vec<(String, &Environment)> = Vec::new();
    for (what, events) in [("Figure 2, the client", &data.response), ("Figure 1", &data.bind)] {
        if let Some(Event::Experiment(start)) = events.first() {
            machines.push((format!("{what}, begun {}", start.started), &start.environment));
        }
    }
    for event in &data.compare {
        if let (Event::Engine(result), true) =
            (event, !machines.iter().any(|(what, _)| what.starts_with("Comp")))
        {
            machines.push(("Comparison, the client".to_owned(), &result.environment));
        }
    }
    let mut servers: Vec<&Ready> = Vec::new();
    for ready in readies(data) {
        let same = |other: &&Ready| {
            let nic = |ready: &Ready| ready.environment.nic.clone();
            (other.engine, other.bind) == (ready.engine, ready.bind)
                && other.modes == ready.modes
                && nic(other) == nic(ready)
        };
        if !servers.iter().any(same) {
            servers.push(ready);
        }
    }
    let clients: Vec<String> = trials(&data.response)
        .map(|trial| {
            let load = &trial.load;
            let rings =
                load.rings.map_or(String::new(), |rings| format!("; {}", ring_words(rings)));
            match (load.attach, load.copy) {
                (Some(attach), Some(copy)) => {
                    format!("{}, XDP {attach}, {copy} mode{rings}", load.client)
                }
                _ => load.client.to_string(),
            }
        })
        .fold(Vec::new(), |mut all, one| {
            if !all.contains(&one) {
                all.push(one);
            }
            all
        });
    html! {
        section {
            h2 { "Where it was measured" }
            @for (what, environment) in machines { h3 { (what) } (machine(environment)) }
            @if !clients.is_empty() {
                h3 { "How it was asked" }
                ul { @for client in clients { li { (client) } } }
            }
            @for ready in servers {
                h3 { "Server: " (ready.engine.map_or(String::new(), |engine| engine.to_string())) ", " (ready.bind) }
                dl {
                    (pair("mode", &modes(ready)))
                    (pair("asked for", &format!("attach {}, copy {}", ready.attach_asked, ready.copy_asked)))
                    (pair("queues, processors", &format!("{:?}, \
                        {:?}", ready.modes.queues, ready.modes.cores)))
                    @if let Some(rings) = ready.modes.rings { (pair("rings", &ring_words(rings))) }
                    @if let Some(depth) = ready.modes.queue_depth { (pair("message \
                        queue", &depth.to_string())) }
                    @if let Some(bytes) = ready.modes.receive_buffer { (pair("receive buffer", &format!("{} bytes", thousands(bytes as u64)))) }
                }
                (machine(&ready.environment))
            }
        }
    }
}

fn machine(environment: &Environment) -> Markup {
    let Environment {
        sixhop,
        revision,
        guest,
        command,
        kernel,
        cpu,
        processors,
        cores,
        governor,
        nic,
    } = environment;
    let unknown = || "not stated".to_owned();
    let nanoseconds = nic.napi.gro_flush_timeout_ns.map_or_else(unknown, |value| value.to_string());
    let defer = nic.napi.defer_hard_irqs.map_or_else(unknown, |value| value.to_string());
    html! {
        dl {
            (pair("sixhop", &format!("{sixhop}, revision \
                {}", if revision.is_empty() { "unknown" } else { revision })))
            @if let Some(guest) = guest {
                (pair("virtual machine", &format!("{guest}: good for ratios within it, and for \
                    nothing else")))
            }
            (pair("kernel", kernel))
            (pair("processor", &format!("{cpu}, {processors} of them; used here: {cores:?}")))
            (pair("governor", &governor.clone().unwrap_or_else(unknown)))
            (pair("interface", &format!(
                "{}, {}, {}{}mtu {}, {} queue(s)",
                nic.interface,
                driver(&nic.driver),
                nic.device.as_ref().map_or(String::new(), |device| format!("PCI {device}, ")),
                if nic.firmware.is_empty() { String::new() } else { format!("firmware {}, ", nic.firmware) },
                nic.mtu,
                nic.queues
            )))
            (pair("link speed", &match (nic.speed_mbps, nic.driver.as_str()) {
                (Some(_), "veth") => "none: a veth pair is memory".to_owned(),
                (Some(speed), _) => format!("{} Mbit/s", thousands(speed.into())),
                (None, _) => unknown(),
            }))
            (pair("card's rings", &nic.rings.map_or_else(unknown, |(rx, tx)| format!("rx {rx}, tx {tx}"))))
            (pair("receive work (NAPI)", &format!(
                "{}; gro_flush_timeout {nanoseconds}, napi_defer_hard_irqs {defer}", nic.receive_work()
            )))
            (pair("offloads that are on", &nic.offloads.join(", ")))
            dt { "command" } dd { code { (command.join(" ")) } }
        }
    }
}

fn pair(name: &str, value: &str) -> Markup {
    html! { dt { (name) } dd { (value) } }
}

fn ring_words(rings: crate::xdp::RingSizes) -> String {
    format!(
        "rx {}, tx {}, fill {}, completion {}; {} frames of {} bytes",
        rings.rx, rings.tx, rings.fill, rings.completion, rings.frames, rings.frame_size
    )
}

fn modes(ready: &Ready) -> String {
    match (ready.modes.attach, ready.modes.copy) {
        (Some(attach), Some(copy)) => format!("XDP {attach}, {copy} mode"),
        (Some(attach), None) => format!("XDP {attach}, no rings"),
        _ => "no XDP".to_owned(),
    }
}

fn driver(name: &str) -> &str {
    if name.is_empty() { "no driver name" } else { name }
}

fn addresses(count: u64) -> String {
    format!("{} address{}", thousands(count), if count == 1 { "" } else { "es" })
}

/// With a thin space every three digits.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 && digits.len() > 4 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Requests a second.
fn requests(rate: f64) -> String {
    if rate < 100.0 { words::rate(rate) } else { thousands(rate as u64) }
}

/// Microseconds.
fn whole(time: f64) -> String {
    format!("{time:.0}")
}

/// A time in nanoseconds with three digits and its unit.
fn time(nanoseconds: f64) -> String {
    let (value, unit) = match nanoseconds {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "µs"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$}\u{202f}{unit}")
}

const STYLE: &str = include_str!("page.css");

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Method;
    use crate::report::response::tests::{profile, trial};

    fn start() -> Event {
        let environment = Environment {
            revision: "0123".to_owned(),
            cpu: "a processor".to_owned(),
            ..Environment::default()
        };
        let plan = Plan::Response(profile());
        Event::Experiment(Box::new(Experiment {
            plan,
            started: "2026-01-02T03:04:05Z".to_owned(),
            environment,
        }))
    }

    /// Two engines, three passes through two rates; the first holds, the second does not.
    fn data() -> Data {
        let mut response = vec![start()];
        for engine in [EngineKind::Socket, EngineKind::Afxdp] {
            let factor = if engine == EngineKind::Afxdp { 4 } else { 1 };
            for run in 1..=3 {
                response.push(trial(engine, 10, run, 10_000 * factor, 100.0));
                response.push(trial(engine, 10, run, 20_000 * factor, 1e6));
            }
        }
        let thresholds = response::summarize(&profile(), &response);
        response.extend(thresholds.into_iter().map(Event::Threshold));
        Data { response, ..Data::default() }
    }

    fn warnings(data: &Data) -> String {
        Summed::of(data).warnings(data).join("\n")
    }

    /// The trial at that place of the file, changed.
    fn change(data: &mut Data, index: usize, change: impl FnOnce(&mut Trial)) {
        match &mut data.response[index] {
            Event::Trial(trial) => change(trial),
            _ => panic!("no trial"),
        }
    }

    #[test]
    fn figures_stand_where_their_names_are() {
        let html = page(&data()).unwrap().html;
        let row = |name: &str| {
            let row = html.split("<tr>").skip(1).find(|row| row.contains(name)).unwrap_or_default();
            row.split("</tr>").next().unwrap_or_default().to_owned()
        };
        assert!(row("socket, netlink-down").contains("10\u{202f}000"), "{}", row("socket"));
        let beside = html.split("Beside the socket server").nth(1).unwrap();
        let cells: Vec<_> =
            beside.split("<td").take(7).map(|cell| cell.split('>').nth(1).unwrap_or("")).collect();
        assert_eq!(
            cells[1..5].join(" "),
            "10</td 40\u{202f}000</td socket, netlink-down</td 10\u{202f}000</td"
        );
        assert!(beside.contains("<strong>4.00</strong>"));
        assert!(html.contains("a processor") && html.contains("2026-01-02"));
        // At 10,000/s all took 100 µs.
        let latency = html.split("How long a reply takes").nth(1).unwrap();
        assert!(latency.contains("100.0"), "{latency}");
    }

    #[test]
    fn what_makes_a_figure_doubtful_is_said() {
        let sound = warnings(&data());
        assert!(sound.contains("fewer requests than the") && sound.lines().count() == 1, "{sound}");

        let mut data = data();
        change(&mut data, 2, |trial| trial.load.achieved_rate = 19_000.0);
        change(&mut data, 3, |trial| trial.load.outcome.complete = 950);
        change(&mut data, 5, |trial| trial.load.late = 20);
        change(&mut data, 7, |trial| trial.load.outcome.corrupt = 3);
        change(&mut data, 9, |trial| trial.rate = 30_000);
        let said = warnings(&data);
        for words in [
            "socket, netlink-down, 10 addresses: the generator was late from 20\u{202f}000/s on",
            "socket, netlink-down, 10 addresses: up to 5.0 % of the requests lacked a reply",
            "socket, netlink-down, 10 addresses: up to 2.0 % of the requests were sent more than 1 \
             ms late",
            "afxdp, netlink-down, 10 addresses: 3 replies were damaged",
            "Figure 2: 4 of 8 figures vary by more than 20 % from run to run, most of all afxdp",
        ] {
            assert!(said.contains(words), "no '{words}' in:\n{said}");
        }

        data.response.retain(|event| !matches!(event, Event::Threshold(_)));
        assert!(warnings(&data).contains("Figure 2 is not finished"));
        if let Some(Event::Experiment(start)) = data.response.first_mut() {
            start.environment.revision = "0123-dirty".to_owned();
            start.environment.governor = Some("powersave".to_owned());
        }
        let said = warnings(&data);
        assert!(
            said.contains("was changed when") && said.contains("governor 'powersave'"),
            "{said}"
        );
    }

    #[test]
    fn a_mode_that_was_not_asked_for_is_said() {
        let ready = |attach: &str, copy: &str, attach_asked: &str, copy_asked: &str| {
            let mut ready = serde_json::json!({
                "event": "ready", "engine": "afxdp", "interface": "eth1", "driver": "e1000e", "port": 3540, "replies": 10,
                "addresses": 10, "bind": "netlink-down", "generate_seconds": 0, "open_seconds": 0, "bind_seconds": 0,
                "bind_phases": [], "kernel_memory": null, "list_memory": 0, "queues": [0], "cores": [0], "schema": 1
            });
            let modes = [
                ("attach", attach),
                ("copy", copy),
                ("attach_asked", attach_asked),
                ("copy_asked", copy_asked),
            ];
            for (name, mode) in modes {
                ready[name] = mode.into();
            }
            let mut data = data();
            data.response.insert(1, Event::parse(&ready.to_string()).unwrap());
            warnings(&data)
        };
        assert!(!ready("native", "zero", "auto", "auto").contains("mode"));
        assert!(!ready("native", "copy", "auto", "copy").contains("mode"));
        assert!(
            ready("native", "copy", "auto", "auto")
                .contains("copy mode, though auto was asked for: zero-copy was not")
        );
        assert!(ready("native", "copy", "auto", "zero").contains("though zero was asked for"));
        assert!(
            ready("generic", "copy", "native", "copy")
                .contains("generic mode, after a socket buffer was made; native was")
        );
    }

    #[test]
    fn of_an_unfinished_experiment_the_last_pass_does_not_count() {
        let mut data = data();
        // The last pass of the second engine was interrupted after its first rate.
        data.response.retain(|event| !matches!(event, Event::Threshold(_)));
        data.response.pop();
        let summed = Summed::of(&data);
        let runs: Vec<_> = summed.thresholds.iter().map(|summary| summary.runs.len()).collect();
        assert_eq!(runs, [3, 3, 3, 3, 2, 2, 2, 2]);
    }

    #[test]
    fn a_cell_that_could_not_be_had_is_in_the_table() {
        let mut data = data();
        let cell = Cell { engine: EngineKind::Socket, bind: Method::Netlink, addresses: 55_000 };
        let failed = crate::events::Failed { cell, why: "it was not ready".to_owned() };
        data.response.insert(1, Event::Failed(failed));
        assert!(page(&data).unwrap().html.contains("it was not ready"));
    }

    #[test]
    fn people_read_numbers_and_times() {
        assert_eq!(
            [0, 1234, 12_345, 1_000_000].map(thousands).join(" "),
            "0 1234 12\u{202f}345 1\u{202f}000\u{202f}000"
        );
        assert_eq!(time(1234.0), "1.23\u{202f}µs");
        assert_eq!([addresses(1), addresses(2)], ["1 address", "2 addresses"]);
    }
}
