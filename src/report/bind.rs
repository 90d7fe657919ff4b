//! Figure 1 from its runs: a summary, a CSV table, and charts that also show the paper's figures.

use anyhow::{Context, Result, anyhow};

use super::chart::{Axis, Line, Panel, nanoseconds, short};
use crate::events::{BindSummary, Spread};
use crate::live::Method;

pub use crate::experiment::summary::bind::summarize;

/// The summaries as CSV with a header line. Times are in nanoseconds per address, except the total
/// in seconds.
///
/// # Errors
/// If the CSV cannot be written.
pub fn csv(summaries: &[BindSummary]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut names = vec!["method".to_owned(), "addresses".to_owned(), "runs".to_owned()];
    for figure in ["generate_ns", "bind_ns", "unbind_ns", "seconds"] {
        names.extend(["min", "median", "max"].map(|which| format!("{figure}_{which}")));
    }
    names.extend(["bytes_per_address", "faster_than_netlink"].map(str::to_owned));
    writer.write_record(names)?;
    for summary in summaries {
        let mut record = vec![
            summary.method.to_string(),
            summary.addresses.to_string(),
            summary.runs.to_string(),
        ];
        for Spread { min, median, max } in
            [summary.generate_ns, summary.bind_ns, summary.unbind_ns, summary.seconds]
        {
            record.extend([min, median, max].map(|value| value.to_string()));
        }
        let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        record.extend([optional(summary.bytes_per_address), optional(summary.faster_than_netlink)]);
        writer.write_record(record)?;
    }
    String::from_utf8(writer.into_inner().map_err(|error| anyhow!("{error}"))?)
        .context("CSV is text")
}

/// Binding in the paper's Figure 1, as its text states it (the curves exist only as pictures):
/// number of addresses, nanoseconds per address. 55,000 took 216 s in total.
const PAPER_BIND: [(f64, f64); 6] =
    [(1.0, 176e3), (50e3, 3.9e6), (55e3, 216e9 / 55e3), (60e3, 11e6), (65e3, 50e6), (70e3, 101e6)];

/// Unbinding: "at worst about 5 ms".
const PAPER_UNBIND: [(f64, f64); 1] = [(70e3, 5e6)];

/// Range of the time to compute an address in the paper, for any number of them, in nanoseconds.
const PAPER_COMPUTE: (f64, f64) = (16.0, 48.0);

/// The methods in the order of their colours.
const METHODS: [Method; 7] = [
    Method::LiveMap,
    Method::Netlink,
    Method::NetlinkDown,
    Method::Ioctl,
    Method::Command,
    Method::NetlinkBatch,
    Method::Anyip,
];

/// The charts: time per address to bind and to unbind, against the number of addresses.
#[must_use]
pub fn panels(summaries: &[BindSummary]) -> Vec<Panel> {
    let x = Axis { name: "addresses", words: short };
    let y = Axis { name: "time per address", words: nanoseconds };
    let lines = |figure: fn(&BindSummary) -> Spread| {
        let methods = Method::ALL
            .iter()
            .filter(|method| summaries.iter().any(|summary| summary.method == **method));
        let line = |method: &Method| {
            let colour =
                METHODS.iter().position(|of_colour| of_colour == method).unwrap_or(METHODS.len());
            let of_method = summaries.iter().filter(|summary| summary.method == *method);
            let points = of_method.map(|summary| (summary.addresses as f64, figure(summary)));
            Line::new(method.to_string(), colour, points.collect())
        };
        methods.map(line).collect::<Vec<_>>()
    };
    // At each number, the fastest: the others were disturbed more.
    let mut computed: Vec<_> = summaries
        .iter()
        .map(|summary| (summary.addresses as f64, summary.generate_ns.median))
        .collect();
    computed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    computed.dedup_by_key(|point| point.0);
    let exactly = |value: f64| Spread { min: value, median: value, max: value };
    let computed = computed.into_iter().map(|(count, time)| (count, exactly(time))).collect();
    let mut binding = lines(|summary| summary.bind_ns);
    binding.push(Line { dots: false, ..Line::new("compute".to_owned(), 8, computed) });
    let (from, to) = PAPER_COMPUTE;
    let marks_name = "stated in the paper, 2014".to_owned();
    vec![
        Panel {
            title: "Time to bind, per address".to_owned(),
            x,
            y,
            lines: binding,
            bands: vec![([1.0, 70e3, from, to], "the paper's time to compute".to_owned())],
            marks: PAPER_BIND.to_vec(),
            marks_name: marks_name.clone(),
        },
        Panel {
            title: "Time to unbind, per address".to_owned(),
            x,
            y,
            lines: lines(|summary| summary.unbind_ns),
            bands: Vec::new(),
            marks: PAPER_UNBIND.to_vec(),
            marks_name,
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{BindCell, BindOutcome, BindResult, Event};
    use crate::host::Environment;
    use crate::live::Phases;
    use crate::report::chart::svg;

    fn cell(method: Method, addresses: u64, run: u32, bind_ns: f64) -> Event {
        let result = BindResult {
            method,
            addresses,
            generate_ns: 20.0,
            bind_ns: Some(bind_ns),
            unbind_ns: Some(bind_ns / 2.0),
            seconds: 1.5 * bind_ns * addresses as f64 / 1e9,
            open_seconds: 0.0,
            bytes_per_address: (method == Method::LiveMap).then_some(100.0),
            bind_phases: Phases::default(),
            unbind_phases: Phases::default(),
            environment: Environment::default(),
        };
        Event::Cell(BindCell {
            method,
            addresses,
            run,
            outcome: BindOutcome::Bound(Box::new(result)),
        })
    }

    fn cells() -> Vec<Event> {
        let stopped = BindOutcome::Stopped { bound: 7, budget: 1.0 };
        vec![
            cell(Method::Netlink, 10, 1, 4000.0),
            cell(Method::Netlink, 10, 2, 2000.0),
            cell(Method::Netlink, 10, 3, 9000.0),
            cell(Method::LiveMap, 10, 1, 2.0),
            cell(Method::LiveMap, 1000, 1, 3.0),
            Event::Cell(BindCell {
                method: Method::Netlink,
                addresses: 1000,
                run: 1,
                outcome: stopped,
            }),
        ]
    }

    #[test]
    fn runs_are_summed_up_and_what_has_no_figure_gets_none() {
        let summaries = summarize(&cells());
        let keys: Vec<_> = summaries
            .iter()
            .map(|summary| (summary.method, summary.addresses, summary.runs))
            .collect();
        assert_eq!(
            keys,
            [(Method::Netlink, 10, 3), (Method::LiveMap, 10, 1), (Method::LiveMap, 1000, 1)]
        );
        assert_eq!(summaries[0].bind_ns, Spread { min: 2000.0, median: 4000.0, max: 9000.0 });
        let ratios: Vec<_> = summaries.iter().map(|summary| summary.faster_than_netlink).collect();
        assert_eq!(ratios, [Some(1.0), Some(2000.0), None]);
        assert_eq!(summaries[1].bytes_per_address, Some(100.0));
        assert_eq!(summaries[0].bytes_per_address, None);
    }

    #[test]
    fn a_spread_has_a_middle() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&[4.0]), Some(Spread { min: 4.0, median: 4.0, max: 4.0 }));
        assert_eq!(spread(&[4.0, 1.0, 3.0, 9.0]), Some(Spread { min: 1.0, median: 3.5, max: 9.0 }));
    }

    #[test]
    fn csv_has_a_line_of_names_and_one_of_as_many_figures_for_each() {
        let text = csv(&summarize(&cells())).unwrap();
        let lines: Vec<Vec<_>> = text.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines.len(), 4);
        assert!(lines.iter().all(|line| line.len() == lines[0].len()));
        let median = lines[0].iter().position(|name| *name == "bind_ns_median").unwrap();
        assert_eq!(lines[1][median], "4000");
    }

    #[test]
    fn the_chart_names_what_it_shows() {
        let picture = svg(&panels(&summarize(&cells())), 2).unwrap();
        for text in [
            "netlink",
            "live-map",
            "stated in the paper",
            "to bind",
            "to unbind",
            "addresses",
            "10 k",
        ] {
            assert!(picture.contains(text), "{text}");
        }
        assert!(!picture.contains("ioctl"));
        assert!(svg(&panels(&[]), 2).is_ok()); // only the paper's points
    }
}
