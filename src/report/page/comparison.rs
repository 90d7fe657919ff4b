//! Engines compared with the paper's socket server, from Figure 2 and from `compare`.

use maud::{Markup, html};

use super::super::response::{cells, is_at_least, series_name};
use super::doubts::{Doubts, Figure};
use super::summed::Summed;
use super::text::{
    from_to, in_guest, link, modes, modes_of, named, requests, setting, thousands, whole,
};
use crate::engine::EngineKind;
use crate::events::words::or_dash;
use crate::events::{Cell, EngineResult, Spread, ThresholdSummary};

/// An engine and the socket server to compare it with.
pub struct Pair<'a> {
    pub cell: Cell,
    pub socket: Cell,
    pub rate: &'a ThresholdSummary,
    pub base: &'a ThresholdSummary,
}

impl Pair<'_> {
    /// The engine's rate divided by the socket server's; 0 if either has none.
    pub fn ratio(&self) -> f64 {
        let median = |summary: &ThresholdSummary| summary.rate.map(|rate| rate.median);
        match (median(self.rate), median(self.base)) {
            (Some(rate), Some(base)) => rate / base,
            _ => 0.0,
        }
    }

    /// The sign of the ratio if a search ended before a server's limit.
    pub fn bound(&self) -> &'static str {
        match (is_at_least(self.rate.limit), is_at_least(self.base.limit)) {
            (true, false) => "≥ ",
            (false, true) => "≤ ",
            _ => "",
        }
    }
}

/// Pairs each engine with the socket server at the same addresses and method, or, failing that,
/// with the socket server under its own method. Both have a rate that held.
pub fn pairs<'a>(summed: &'a Summed) -> Vec<Pair<'a>> {
    let Some(threshold) = summed.first_threshold() else { return Vec::new() };
    let all = cells(summed.response);
    let socket_for = |cell: Cell| {
        let of_number =
            |other: &&Cell| other.engine == EngineKind::SOCKET && other.addresses == cell.addresses;
        let same = all.iter().filter(of_number).find(|other| other.bind == cell.bind);
        same.or_else(|| all.iter().find(of_number)).copied()
    };
    let with_rate = |cell: Cell| summed.rate(cell, threshold).filter(|found| found.rate.is_some());
    all.iter()
        .filter(|cell| cell.engine != EngineKind::SOCKET)
        .filter_map(|&cell| {
            let socket = socket_for(cell)?;
            Some(Pair { cell, socket, rate: with_rate(cell)?, base: with_rate(socket)? })
        })
        .collect()
}

/// The comparisons that the data has.
pub fn section(summed: &Summed, doubts: &Doubts) -> Markup {
    html! { (beside(summed)) (in_one_run(&summed.compare, doubts)) }
}

/// The median rate, with `≥` if the server may sustain more.
fn rate(summary: &ThresholdSummary) -> String {
    let median = or_dash(summary.rate, |rate| requests(rate.median));
    format!("{}{median}", if is_at_least(summary.limit) { "≥ " } else { "" })
}

fn beside(summed: &Summed) -> Markup {
    let (pairs, servers) = (pairs(summed), summed.response_servers());
    let (Some(threshold), false) = (summed.first_threshold(), pairs.is_empty()) else {
        return html! {};
    };
    let name = |cell: Cell| named(&series_name(cell), &modes_of(&servers, cell));
    html! {
        section {
            h2 { "Compared with the socket server" }
            p.note {
                "Requests/s sustained with a mean of at most " (threshold) " ms: medians and \
                their ratio. From the runs of Figure 2; see the doubts there."
            }
            (setting(&servers))
            div.table tabindex="0" role="region" aria-label="Comparison" {
                table {
                    thead { tr {
                        th { "engine, bound by" } th.number { "addresses" }
                        th.number { "requests/s" }
                        th { "compared with" } th.number { "requests/s" } th.number { "ratio" }
                    } }
                    tbody { @for pair in &pairs { tr {
                        th scope="row" { (name(pair.cell)) }
                        td.number { (thousands(pair.cell.addresses)) }
                        td.number { (rate(pair.rate)) }
                        td { (name(pair.socket)) }
                        td.number { (rate(pair.base)) }
                        td.number { (pair.bound()) strong { (format!("{:.2}", pair.ratio())) } }
                    } } }
                }
            }
        }
    }
}

/// How `compare` measured.
pub fn method(first: &EngineResult) -> String {
    let environment = &first.environment;
    let mut words = format!(
        "The highest rate sustained with 99.9 % of the requests complete and a mean of {} ms: \
         median of {} searches. Times in µs to the first reply, at that rate and at half of it. {} \
         replies of {} bytes. Over {}. Linux {}, {}; receive work {}.",
        first.mean_limit_us / 1000.0,
        first.runs.len(),
        first.replies,
        first.payload,
        link(&first.server.driver),
        environment.kernel,
        environment.cpu,
        environment.nic.receive_work(),
    );
    if let Some(guest) = &environment.guest {
        words = format!("{words} {}", in_guest(guest));
    }
    words
}

fn in_one_run(results: &[&EngineResult], doubts: &Doubts) -> Markup {
    let Some(first) = results.first() else { return html! {} };
    html! {
        section {
            h2 { "Compared in one run" }
            p.note { (method(first)) }
            div.table tabindex="0" role="region" aria-label="Comparison in one run" {
                table {
                    thead { tr {
                        th { "engine" } th { "XDP, copy" } th.number { "addresses" }
                        th.number { "requests/s" } th.number { "mean" } th.number { "p99" }
                        th.number { "server CPU" } th.number { "mean at half" }
                        th.number { "ratio to socket" }
                    } }
                    tbody { @for result in results { (row(result)) } }
                }
            }
            (doubts.at(Figure::Compare))
        }
    }
}

fn row(result: &EngineResult) -> Markup {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    html! {
        tr {
            th scope="row" { (format!("{}, {}", result.engine, result.bind)) }
            td { (modes(&result.server)) }
            td.number { (thousands(result.addresses)) }
            td.number {
                (requests(result.sustained_rps))
                @if let Some(runs) = Spread::of(result.runs.iter().copied()) {
                    small { (from_to(runs, requests)) }
                }
            }
            td.number { (or_dash(result.mean_us, whole)) }
            td.number { (or_dash(result.p99_us, whole)) }
            td.number { (or_dash(result.server_cpu, percent)) }
            td.number { (or_dash(result.half_mean_us, whole)) }
            td.number {
                strong { (or_dash(result.ratio_to_socket, |ratio| format!("{ratio:.2}"))) }
            }
        }
    }
}
