//! Response times at the lowest rate, common to all servers, and at the highest of each.

use anyhow::Result;
use hdrhistogram::Histogram;
use maud::{Markup, html};

use super::super::response::{self, cells, series_name, trials};
use super::charts::Charts;
use super::summed::Summed;
use super::text::{modes_of, named, setting, thousands, time};
use crate::events::{Cell, Ready};

/// The times of all runs at one rate.
struct Latency {
    cell: Cell,
    rate: u64,
    is_lowest: bool,
    times: Histogram<u64>,
    mean_us: f64,
}

impl Latency {
    fn name(&self) -> String {
        format!("{}, {}", series_name(self.cell), thousands(self.cell.addresses))
    }
}

/// The section; empty if there are no times.
///
/// # Errors
/// If the chart cannot be drawn.
pub fn section(summed: &Summed, charts: &mut Charts) -> Result<Markup> {
    let rows = latencies(summed);
    let lowest: Vec<_> = rows.iter().filter(|row| row.is_lowest).collect();
    let chart = match lowest.first() {
        None => html! {},
        Some(first) => {
            let title = format!("Time to the first reply at {}/s", thousands(first.rate));
            let named: Vec<_> = lowest.iter().map(|row| (row.name(), row.times.clone())).collect();
            let panel = response::latency_panel(title, &named);
            charts.small(("latency", 1), &[panel], |us| time(us * 1000.0))?
        }
    };
    if rows.is_empty() {
        return Ok(html! {});
    }
    let servers = summed.response_servers();
    Ok(html! {
        section {
            h2 { "Response times" }
            p {
                "Time from when a request was due to its first reply, over all runs at that rate. \
                From the runs of Figure 2; see the doubts there."
            }
            (setting(&servers))
            (chart)
            (table(&rows, &servers))
        }
    })
}

/// Each server at the lowest rate, which all have in common, and at the highest that holds under
/// the first threshold.
fn latencies(summed: &Summed) -> Vec<Latency> {
    let (Some(profile), Some(threshold)) = (summed.profile, summed.first_threshold()) else {
        return Vec::new();
    };
    let cells = cells(summed.response);
    let lowest = cells.iter().filter_map(|&cell| at(summed, cell, profile.rates.from, true));
    let highest = cells.iter().filter_map(|&cell| {
        let runs = &summed.rate(cell, threshold)?.runs;
        // Not the median of the passes, which may lie between two measured rates.
        at(summed, cell, runs.iter().filter_map(|run| run.rate).min()?, false)
    });
    lowest.chain(highest).collect()
}

fn at(summed: &Summed, cell: Cell, rate: u64, is_lowest: bool) -> Option<Latency> {
    let of_rate =
        || trials(summed.response).filter(move |trial| trial.cell == cell && trial.rate == rate);
    let answered: u64 = of_rate().map(|trial| trial.load.outcome.answered).sum();
    let sum: f64 = of_rate()
        .filter_map(|trial| Some((trial.load.outcome.first.as_ref()?, trial.load.outcome.answered)))
        .map(|(times, answered)| times.mean_us * answered as f64)
        .sum();
    let times = response::merged(of_rate())?;
    Some(Latency { cell, rate, is_lowest, times, mean_us: sum / answered as f64 })
}

fn table(rows: &[Latency], servers: &[&Ready]) -> Markup {
    let us = |nanoseconds: u64| format!("{:.1}", nanoseconds as f64 / 1000.0);
    html! {
        p.note {
            "Time to the first reply in µs: at the lowest rate, which all have in common, and at \
            the highest rate under the first threshold, in the pass where that was lowest."
        }
        div.table tabindex="0" role="region" aria-label="Latency" {
            table {
                thead { tr {
                    th { "engine, bound by, addresses" } th.number { "requests/s" }
                    th.number { "mean" } th.number { "p50" } th.number { "p90" }
                    th.number { "p99" } th.number { "p99.9" } th.number { "max" }
                    th.number { "requests" }
                } }
                tbody { @for row in rows { tr {
                    th scope="row" { (named(&row.name(), &modes_of(servers, row.cell))) }
                    td.number { (thousands(row.rate)) }
                    td.number { (format!("{:.1}", row.mean_us)) }
                    @for quantile in [0.5, 0.9, 0.99, 0.999] {
                        td.number { (us(row.times.value_at_quantile(quantile))) }
                    }
                    td.number { (us(row.times.max())) }
                    td.number { (thousands(row.times.len())) }
                } } }
            }
        }
    }
}
