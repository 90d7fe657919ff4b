//! Summaries of the runs of each binding method.

use crate::events::{BindCell, BindOutcome, BindResult, BindSummary, Event, Method, Spread};

/// Summarises the runs of each method and number of addresses, in order of first appearance. Leaves
/// out those without a figure.
#[must_use]
pub fn summarize(events: &[Event]) -> Vec<BindSummary> {
    let cells: Vec<&BindCell> = events
        .iter()
        .filter_map(|event| match event {
            Event::Cell(cell) => Some(cell),
            _ => None,
        })
        .collect();
    let mut keys: Vec<(Method, u64)> = Vec::new();
    for cell in &cells {
        if !keys.contains(&(cell.method, cell.addresses)) {
            keys.push((cell.method, cell.addresses));
        }
    }
    let results = |key: (Method, u64)| -> Vec<&BindResult> {
        let of_key = cells.iter().filter(|cell| (cell.method, cell.addresses) == key);
        of_key
            .filter_map(|cell| match &cell.outcome {
                BindOutcome::Bound(result) => Some(&**result),
                _ => None,
            })
            .collect()
    };
    let spread = |key, figure: fn(&BindResult) -> Option<f64>| {
        Spread::of(results(key).into_iter().filter_map(figure))
    };
    let summary = |key: (Method, u64)| {
        let bind_ns = spread(key, |result| result.bind_ns)?;
        let netlink = spread((Method::Netlink, key.1), |result| result.bind_ns);
        let bytes = results(key).into_iter().map(|result| result.bytes_per_address);
        Some(BindSummary {
            method: key.0,
            addresses: key.1,
            runs: results(key).len(),
            generate_ns: spread(key, |result| Some(result.generate_ns))?,
            bind_ns,
            unbind_ns: spread(key, |result| result.unbind_ns)?,
            seconds: spread(key, |result| Some(result.seconds))?,
            bytes_per_address: bytes
                .collect::<Option<Vec<_>>>()
                .and_then(|bytes| Some(Spread::of(bytes)?.median)),
            faster_than_netlink: netlink.map(|netlink| netlink.median / bind_ns.median),
        })
    };
    keys.into_iter().filter_map(summary).collect()
}
