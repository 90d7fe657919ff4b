//! Moving addresses: how many clients each server carries.

use anyhow::Result;
use maud::{Markup, html};

use super::super::rotation;
use super::charts::Charts;
use super::doubts::{Doubts, Figure};
use super::summed::readies;
use super::text::{modes, named, setting, thousands, time, whole};
use crate::events::words::or_dash;
use crate::events::{Carried, Event, RotationOutcome, RotationTrial};

const TITLE: &str = "Moving addresses: how many clients";

/// The section; empty if there are no results.
///
/// # Errors
/// If a chart cannot be drawn.
pub fn section(events: &[Event], doubts: &Doubts, charts: &mut Charts) -> Result<Markup> {
    let panels = rotation::panels(events);
    if rotation::trials(events).next().is_none() {
        return Ok(doubts.alone(TITLE, Figure::Rotation));
    }
    let drawn = charts.small(("rotation", 1), &panels, time)?;
    let servers: Vec<_> = readies(events).collect();
    Ok(html! {
        section {
            h2 { (TITLE) }
            p {
                "Each time step exchanges all addresses of all clients while the server answers \
                requests. Times are those to the first reply, inside and outside the exchange."
            }
            (setting(&servers))
            ul { @for of in carried(events) { li { (in_words(of)) } } }
            (drawn)
            (table(events))
            (doubts.at(Figure::Rotation))
        }
    })
}

/// The result of each server.
pub fn carried(events: &[Event]) -> impl Iterator<Item = &Carried> {
    events.iter().filter_map(|event| match event {
        Event::Carried(carried) => Some(carried),
        _ => None,
    })
}

fn in_words(of: &Carried) -> Markup {
    html! {
        (format!("{}, {}, a step of {} s: ", of.engine, of.bind, of.rotate))
        @match of.clients {
            Some(clients) => { strong { (thousands(clients)) } " clients are carried; " }
            None => { "no number of clients was carried; " }
        }
        (of.cause) "."
    }
}

fn table(events: &[Event]) -> Markup {
    html! {
        div.table tabindex="0" role="region" aria-label="Moving addresses" {
            table {
                thead { tr {
                    th { "engine, bound by" } th.number { "clients" }
                    th.number { "work in a step" } th.number { "processor" } th.number { "late" }
                    th.number { "lost" } th.number { "mean inside, µs" }
                    th.number { "p99 inside" } th.number { "mean outside" }
                    th.number { "p99 outside" } th { "carried" }
                } }
                tbody { @for trial in rotation::sorted(events) { (row(trial)) } }
            }
        }
    }
}

fn row(trial: &RotationTrial) -> Markup {
    let mode = match &trial.outcome {
        RotationOutcome::Measured { ready, .. } => modes(ready),
        RotationOutcome::Failed { .. } => String::new(),
    };
    let name = format!("{}, {}", trial.cell.engine, trial.cell.bind);
    let late = |of: f64| if of > 0.0 { time(of * 1e6) } else { "–".to_owned() };
    html! {
        tr {
            th scope="row" { (named(&name, &mode)) }
            td.number { (thousands(trial.cell.clients)) }
            @if let Some(of) = rotation::figures(trial) {
                td.number { (time(of.seconds * 1e9)) }
                td.number { (time(of.cpu_seconds * 1e9)) }
                td.number { (late(of.late_ms)) }
                td.number { (thousands(of.lost)) " of " (thousands(of.sent)) }
                @for time in of.times() { td.number { (or_dash(time, whole)) } }
            } @else if let RotationOutcome::Failed { why } = &trial.outcome {
                td colspan="8" { (why) }
            } @else {
                td colspan="8" { "no step's work was done in time" }
            }
            td { @if rotation::limit(trial).is_none() { "yes" } @else { "no" } }
        }
    }
}
