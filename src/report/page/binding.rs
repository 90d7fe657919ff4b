//! Figure 1: what it costs to make addresses live.

use anyhow::Result;
use maud::{Markup, html};

use super::super::bind;
use super::charts::Charts;
use super::doubts::{Doubts, Figure};
use super::summed::Summed;
use super::text::{from_to, in_guest, link, once, thousands, time, whole};
use crate::events::words::or_dash;
use crate::events::{BindCell, BindOutcome, BindSummary, Event, Spread};

const TITLE: &str = "Figure 1: the cost of an address";

/// The section; empty if there are no results.
///
/// # Errors
/// If a chart cannot be drawn.
pub fn section(summed: &Summed, doubts: &Doubts, charts: &mut Charts) -> Result<Markup> {
    if summed.bind.is_empty() {
        return Ok(doubts.alone(TITLE, Figure::Bind));
    }
    let drawn = charts.small(("figure-1", 1), &bind::panels(&summed.bind), time)?;
    Ok(html! {
        section {
            h2 { (TITLE) }
            p {
                "Mean time per address to bind and unbind n addresses as fast as possible, on a \
                fresh interface for each run. Lines connect the medians; whiskers reach from the \
                fastest run to the slowest."
            }
            p.note.setting { (place(&summed.data.bind)) }
            (drawn)
            (table(&summed.bind, &summed.data.bind))
            (doubts.at(Figure::Bind))
        }
    })
}

/// The interfaces and guests that the runs used.
pub fn place(events: &[Event]) -> String {
    let environments: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Cell(BindCell { outcome: BindOutcome::Bound(result), .. }) => {
                Some(&result.environment)
            }
            _ => None,
        })
        .collect();
    let links = once(environments.iter().map(|environment| link(&environment.nic.driver)));
    let guests = environments.iter().filter_map(|environment| environment.guest.as_deref());
    let guests = once(guests).into_iter().map(|guest| format!(" {}", in_guest(guest)));
    format!("Bound on {}.{}", links.join(" and "), guests.collect::<String>())
}

fn table(summaries: &[BindSummary], events: &[Event]) -> Markup {
    let spread = |of: Spread| html! { (time(of.median)) small { (from_to(of, time)) } };
    html! {
        p.note {
            "Mean time per address: the median of the runs, and the fastest to the slowest."
        }
        div.table tabindex="0" role="region" aria-label="Binding" {
            table {
                thead { tr {
                    th { "method" } th.number { "addresses" } th.number { "compute" }
                    th.number { "bind" } th.number { "unbind" } th.number { "bytes each" }
                    th.number { "bind speed, × netlink" }
                } }
                tbody {
                    @for summary in summaries { tr {
                        th scope="row" { (summary.method) }
                        td.number { (thousands(summary.addresses)) }
                        td.number { (time(summary.generate_ns.median)) }
                        td.number { (spread(summary.bind_ns)) }
                        td.number { (spread(summary.unbind_ns)) }
                        td.number { (or_dash(summary.bytes_per_address, whole)) }
                        td.number {
                            (or_dash(summary.faster_than_netlink, |ratio| format!("{ratio:.2}")))
                        }
                    } }
                    @for (cell, why) in unmeasured(events) { tr {
                        th scope="row" { (cell.method) }
                        td.number { (thousands(cell.addresses)) }
                        td colspan="5" { (why) }
                    } }
                }
            }
        }
    }
}

/// Cells without a figure, and why.
fn unmeasured(events: &[Event]) -> Vec<(&BindCell, String)> {
    let first_runs = events.iter().filter_map(|event| match event {
        Event::Cell(cell) if cell.run == 1 => Some(cell),
        _ => None,
    });
    let without_figure = first_runs.filter_map(|cell| match &cell.outcome {
        BindOutcome::Bound(_) => None,
        BindOutcome::Stopped { bound, budget } => {
            Some((cell, format!("stopped after {budget} s, with {} bound", thousands(*bound))))
        }
        BindOutcome::Skipped { why } => Some((cell, format!("not tried: {why}"))),
        BindOutcome::Failed { why } => Some((cell, why.clone())),
    });
    without_figure.collect()
}
