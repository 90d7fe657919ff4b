//! Figure 2: the rate that each server sustained.

use anyhow::Result;
use maud::{Markup, html};

use super::super::response::{self, cells, is_at_least, limit_name, series_name};
use super::charts::Charts;
use super::doubts::{Doubts, Figure};
use super::summed::Summed;
use super::text::{from_to, modes_of, named, requests, setting, thousands};
use crate::events::{Cell, Event};
use crate::experiment::{Approach, ResponseProfile};

const TITLE: &str = "Figure 2: the rate that n addresses sustain";

/// The section; empty if there are no results.
///
/// # Errors
/// If a chart cannot be drawn.
pub fn section(summed: &Summed, doubts: &Doubts, charts: &mut Charts) -> Result<Markup> {
    let Some(profile) = summed.profile.filter(|_| !summed.thresholds.is_empty()) else {
        return Ok(doubts.alone(TITLE, Figure::Response));
    };
    // Number 1 is the chart of all engines, at the top of the page.
    let each = charts.small(("figure-2", 2), &response::each(&summed.thresholds), requests)?;
    Ok(html! {
        section {
            h2 { (TITLE) }
            (method(profile))
            (setting(&summed.response_servers()))
            (each)
            (table(summed, profile, doubts))
            (doubts.at(Figure::Response))
        }
    })
}

fn method(profile: &ResponseProfile) -> Markup {
    let way = match profile.way {
        Approach::Grid => {
            "every rate was measured, and the highest that held counts, even if a lower one failed"
        }
        Approach::Bisect => {
            "halving found the highest; where a rate holds in one run and fails in the next, it \
             ends at the lowest such rate"
        }
    };
    let length = match profile.seconds {
        Some(seconds) => {
            format!("{} requests, {seconds} s at most", thousands(profile.requests))
        }
        None => format!("{} requests", thousands(profile.requests)),
    };
    let runs = format!(
        "Each of {} passes went through rates from {} to {}/s, each {:.0} % above the one before: \
         {way}. A run has {length}. Each request carries {} bytes, goes to a random address and \
         gets {} replies. ",
        profile.runs,
        thousands(profile.rates.from),
        thousands(profile.rates.to),
        100.0 * (profile.rates.step - 1.0),
        profile.payload,
        profile.replies,
    );
    html! {
        p {
            "A rate is sustained when the mean time from when a request was due to its first \
            reply is at most the threshold, at least 90 % of the requests were answered, and the \
            generator sent 99 % of the rate. "
            (runs)
            "The paper states 150,000/s for up to 10,000 addresses, no mean under 1 ms at any \
            rate past 30,000, and at most 2,000/s with 55,000, at 5 ms. Lines connect medians; \
            whiskers reach from the lowest pass to the highest. ▲ means that the server may \
            sustain more: the generator or the highest rate ended the search."
        }
    }
}

fn table(summed: &Summed, profile: &ResponseProfile, doubts: &Doubts) -> Markup {
    let thresholds = &profile.thresholds_ms;
    let servers = summed.response_servers();
    let (mut made, mut grid) = (0, 0);
    for cell in cells(summed.response) {
        if let Some(summary) = summed.thresholds.iter().find(|summary| summary.cell == cell) {
            made += summary.trials;
            grid += summary.grid_trials;
        }
    }
    let all = format!(
        "{} of the full grid's {} runs were made.",
        thousands(made as u64),
        thousands(grid as u64)
    );
    html! {
        p.note {
            "Requests/s sustained: the median, and the lowest pass to the highest. " (all)
        }
        div.table tabindex="0" role="region" aria-label="Rates sustained" {
            table {
                thead { tr {
                    th { "engine, bound by" } th.number { "addresses" }
                    @for threshold in thresholds { th.number { "≤ " (threshold) " ms" } }
                } }
                tbody {
                    @for cell in cells(summed.response) { tr {
                        th scope="row" {
                            (named(&series_name(cell), &modes_of(&servers, cell)))
                            (doubts.mark(cell))
                        }
                        td.number { (thousands(cell.addresses)) }
                        @for threshold in thresholds {
                            td.number { (rate_cell(summed, cell, *threshold)) }
                        }
                    } }
                    @for event in summed.response {
                        @if let Event::Failed(failed) = event { tr {
                            th scope="row" { (series_name(failed.cell)) }
                            td.number { (thousands(failed.cell.addresses)) }
                            td colspan=(thresholds.len()) { (failed.why) }
                        } }
                    }
                }
            }
        }
    }
}

fn rate_cell(summed: &Summed, cell: Cell, threshold: f64) -> Markup {
    let Some(summary) = summed.rate(cell, threshold) else { return html! {} };
    let Some(rate) = summary.rate else {
        return html! { span title="not even at the lowest rate" { "–" } };
    };
    let held = summary.runs.iter().filter(|run| run.rate.is_some()).count();
    html! {
        @if is_at_least(summary.limit) { "≥ " }
        (requests(rate.median))
        small {
            (from_to(rate, requests)) " · " (limit_name(summary.limit))
            @if held < summary.runs.len() {
                " · " (held) " of " (summary.runs.len()) " passes"
            }
        }
    }
}
