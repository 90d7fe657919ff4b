//! Figure 1 from its runs: summed up, as a table for other programs, and as a chart beside what the paper states.

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::{BindCell, BindOutcome, BindResult, BindSummary, Spread};
use crate::bind::Method;

/// Sums up the runs of each method and number of addresses, in the order of the first of each. Those without a figure are left
/// out.
#[must_use]
pub fn summarize(cells: &[BindCell]) -> Vec<BindSummary> {
    let mut keys: Vec<(Method, u64)> = Vec::new();
    for cell in cells {
        if !keys.contains(&(cell.method, cell.addresses)) {
            keys.push((cell.method, cell.addresses));
        }
    }
    let results = |key: (Method, u64)| -> Vec<&BindResult> {
        let of_key = cells.iter().filter(|cell| (cell.method, cell.addresses) == key);
        of_key
            .filter_map(|cell| match &cell.outcome {
                BindOutcome::Bound(result) => Some(result),
                _ => None,
            })
            .collect()
    };
    let spread = |key, figure: fn(&BindResult) -> f64| Spread::of(results(key).into_iter().map(figure));
    let summary = |key: (Method, u64)| {
        let bind_ns = spread(key, |result| result.bind_ns)?;
        let netlink = spread((Method::Netlink, key.1), |result| result.bind_ns);
        let bytes = results(key).into_iter().map(|result| result.bytes_per_address);
        Some(BindSummary {
            method: key.0,
            addresses: key.1,
            runs: results(key).len(),
            generate_ns: spread(key, |result| result.generate_ns)?,
            bind_ns,
            unbind_ns: spread(key, |result| result.unbind_ns)?,
            seconds: spread(key, |result| result.seconds)?,
            bytes_per_address: bytes
                .collect::<Option<Vec<_>>>()
                .and_then(|bytes| Some(Spread::of(bytes)?.median)),
            faster_than_netlink: netlink.map(|netlink| netlink.median / bind_ns.median),
        })
    };
    keys.into_iter().filter_map(summary).collect()
}

/// The summaries as CSV, with a line of names first. Times are in nanoseconds an address but for the total.
///
/// # Errors
/// When there is no memory for it.
pub fn csv(summaries: &[BindSummary]) -> Result<String> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut names = vec!["method".to_owned(), "addresses".to_owned(), "runs".to_owned()];
    for figure in ["generate_ns", "bind_ns", "unbind_ns", "seconds"] {
        names.extend(["min", "median", "max"].map(|which| format!("{figure}_{which}")));
    }
    names.extend(["bytes_per_address", "faster_than_netlink"].map(str::to_owned));
    writer.write_record(names)?;
    for summary in summaries {
        let mut record =
            vec![summary.method.to_string(), summary.addresses.to_string(), summary.runs.to_string()];
        for Spread { min, median, max } in
            [summary.generate_ns, summary.bind_ns, summary.unbind_ns, summary.seconds]
        {
            record.extend([min, median, max].map(|value| value.to_string()));
        }
        let optional = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        record.extend([optional(summary.bytes_per_address), optional(summary.faster_than_netlink)]);
        writer.write_record(record)?;
    }
    String::from_utf8(writer.into_inner().map_err(|error| anyhow!("{error}"))?).context("CSV is text")
}

/// What the paper states of its Figure 1 (the curves themselves are only in pictures): addresses, and nanoseconds for each to
/// bind. 55,000 took 216 s in total.
const PAPER_BIND: [(f64, f64); 6] =
    [(1.0, 176e3), (50e3, 3.9e6), (55e3, 216e9 / 55e3), (60e3, 11e6), (65e3, 50e6), (70e3, 101e6)];

/// The same to unbind: "at worst about 5 ms".
const PAPER_UNBIND: [(f64, f64); 1] = [(70e3, 5e6)];

/// Colours that are told apart also by people who see fewer (Okabe and Ito 2008), one for each method.
const COLOURS: [(Method, RGBColor); 8] = [
    (Method::Netlink, RGBColor(0, 114, 178)),
    (Method::NetlinkBatch, RGBColor(86, 180, 233)),
    (Method::NetlinkDown, RGBColor(0, 158, 115)),
    (Method::Ioctl, RGBColor(204, 121, 167)),
    (Method::Command, RGBColor(213, 94, 0)),
    (Method::Ifconfig, RGBColor(230, 159, 0)),
    (Method::Anyip, RGBColor(120, 120, 120)),
    (Method::LiveMap, RGBColor(0, 0, 0)),
];

/// That of the time to compute an address, which no method changes.
const COMPUTE: RGBColor = RGBColor(150, 110, 70);

/// What the paper states of that, at every number of addresses: nanoseconds.
const PAPER_COMPUTE: (f64, f64) = (16.0, 48.0);

const SIZE: (u32, u32) = (1200, 580);
const LEGEND: u32 = 56;

/// The chart: time for each address against their number, both logarithmic; on the left to bind, on the right to unbind.
///
/// # Errors
/// When there is nothing to draw.
pub fn chart(summaries: &[BindSummary]) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let (legend, panels) = area.split_vertically(LEGEND);
        draw_legend(&legend, summaries)?;
        let panels = panels.split_evenly((1, 2));
        draw_panel(&panels[0], "to bind", summaries, &PAPER_BIND, |summary| summary.bind_ns, true)?;
        draw_panel(&panels[1], "to unbind", summaries, &PAPER_UNBIND, |summary| summary.unbind_ns, false)?;
        area.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn drawn(summaries: &[BindSummary]) -> impl Iterator<Item = (Method, RGBColor)> + '_ {
    COLOURS.into_iter().filter(|(method, _)| summaries.iter().any(|summary| summary.method == *method))
}

fn draw_legend(area: &Area, summaries: &[BindSummary]) -> Result<()> {
    const Y: i32 = 28;
    let text = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Center));
    let mut x = 40;
    let name = |words: &str, x: &mut i32| {
        let drawn = area.draw(&Text::new(words.to_owned(), (*x + 24, Y), text.clone()));
        *x += 40 + 7 * words.len() as i32; // a character is some 7 pixels wide
        drawn
    };
    for (method, colour) in drawn(summaries) {
        area.draw(&PathElement::new([(x, Y), (x + 18, Y)], colour.stroke_width(2)))?;
        area.draw(&Circle::new((x + 9, Y), 3, colour.filled()))?;
        name(&method.to_string(), &mut x)?;
    }
    area.draw(&PathElement::new([(x, Y), (x + 18, Y)], COMPUTE.stroke_width(2)))?;
    name("to compute it", &mut x)?;
    area.draw(&Cross::new((x + 9, Y), 5, BLACK.stroke_width(2)))?;
    name("stated in the paper, 2014", &mut x)?;
    Ok(())
}

fn draw_panel(
    area: &Area,
    title: &str,
    summaries: &[BindSummary],
    paper: &[(f64, f64)],
    figure: fn(&BindSummary) -> Spread,
    with_compute: bool,
) -> Result<()> {
    let measured = summaries.iter().flat_map(|summary| {
        let Spread { min, max, .. } = figure(summary);
        [(summary.addresses as f64, min), (summary.addresses as f64, max)]
    });
    let computed = |summary: &BindSummary| (summary.addresses as f64, summary.generate_ns.median);
    let compute = summaries.iter().map(computed).filter(|_| with_compute);
    let points: Vec<_> = measured.chain(paper.iter().copied()).chain(compute).collect();
    let decade = |value: f64, round: fn(f64) -> f64| 10f64.powf(round(value.log10()));
    let range = |values: Vec<f64>| {
        let low = values.iter().copied().reduce(f64::min).filter(|low| *low > 0.0)?;
        let high = values.iter().copied().reduce(f64::max)?;
        // Whole decades, with room for the points at the ends.
        Some((decade(low * 0.9, f64::floor), decade(high * 1.1, f64::ceil)))
    };
    let axes = range(points.iter().map(|point| point.0).collect())
        .zip(range(points.iter().map(|point| point.1).collect()));
    let ((left, right), (low, high)) = axes.context("there is no figure to draw")?;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(28) // half of the last label
        .x_label_area_size(48)
        .y_label_area_size(64)
        .caption(format!("Time for each address {title}"), ("sans-serif", 17))
        .build_cartesian_2d((left.max(0.5)..right).log_scale(), (low..high).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(215, 215, 215))
        .x_desc("addresses")
        .x_label_formatter(&|count| people(*count))
        .y_label_formatter(&|nanoseconds| time(*nanoseconds))
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 14))
        .draw()?;
    if with_compute {
        let (from, to) = PAPER_COMPUTE;
        let last = paper.last().map_or(right, |point| point.0);
        chart.draw_series([Rectangle::new([(left.max(1.0), from), (last, to)], BLACK.mix(0.12).filled())])?;
        let small =
            ("sans-serif", 11).into_font().color(&BLACK.mix(0.7)).pos(Pos::new(HPos::Left, VPos::Center));
        let middle = (from * to).sqrt();
        chart.draw_series([Text::new("the paper, to compute one", (left.max(1.0) * 1.2, middle), small)])?;
        let mut computed: Vec<_> = summaries.iter().map(computed).collect();
        computed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        computed.dedup_by_key(|point| point.0); // the quickest of them: the others were disturbed more
        chart.draw_series(LineSeries::new(computed, COMPUTE.stroke_width(2)))?;
    }
    for (method, colour) in drawn(summaries) {
        let of_method: Vec<_> = summaries.iter().filter(|summary| summary.method == method).collect();
        let line = of_method.iter().map(|summary| (summary.addresses as f64, figure(summary).median));
        chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?;
        chart.draw_series(line.map(|point| Circle::new(point, 3, colour.filled())))?;
        // From the quickest run to the slowest.
        chart.draw_series(of_method.iter().map(|summary| {
            let (x, Spread { min, max, .. }) = (summary.addresses as f64, figure(summary));
            PathElement::new([(x, min), (x, max)], colour.stroke_width(1))
        }))?;
    }
    chart.draw_series(paper.iter().map(|&point| Cross::new(point, 5, BLACK.stroke_width(2))))?;
    Ok(())
}

/// A number of addresses, at a power of ten.
fn people(count: f64) -> String {
    match count {
        c if c >= 1e6 => format!("{} M", c / 1e6),
        c if c >= 1e3 => format!("{} k", c / 1e3),
        c => format!("{c}"),
    }
}

/// A time in nanoseconds, at a power of ten.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n >= 1e9 => format!("{} s", n / 1e9),
        n if n >= 1e6 => format!("{} ms", n / 1e6),
        n if n >= 1e3 => format!("{} µs", n / 1e3),
        n => format!("{n} ns"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bind::Phases;

    fn cell(method: Method, addresses: u64, run: u32, bind_ns: f64) -> BindCell {
        let result = BindResult {
            method,
            addresses,
            generate_ns: 20.0,
            bind_ns,
            unbind_ns: bind_ns / 2.0,
            seconds: 1.5 * bind_ns * addresses as f64 / 1e9,
            open_seconds: 0.0,
            bytes_per_address: (method == Method::LiveMap).then_some(100.0),
            bind_phases: Phases::default(),
            unbind_phases: Phases::default(),
            interface: "server0".to_owned(),
            driver: "veth".to_owned(),
            kernel: String::new(),
            cpu: String::new(),
        };
        BindCell { method, addresses, run, outcome: BindOutcome::Bound(result) }
    }

    fn cells() -> Vec<BindCell> {
        let stopped = BindOutcome::Stopped { bound: 7, budget: 1.0 };
        vec![
            cell(Method::Netlink, 10, 1, 4000.0),
            cell(Method::Netlink, 10, 2, 2000.0),
            cell(Method::Netlink, 10, 3, 9000.0),
            cell(Method::LiveMap, 10, 1, 2.0),
            cell(Method::LiveMap, 1000, 1, 3.0),
            BindCell { method: Method::Netlink, addresses: 1000, run: 1, outcome: stopped },
        ]
    }

    #[test]
    fn runs_are_summed_up_and_what_has_no_figure_gets_none() {
        let summaries = summarize(&cells());
        let keys: Vec<_> =
            summaries.iter().map(|summary| (summary.method, summary.addresses, summary.runs)).collect();
        assert_eq!(keys, [(Method::Netlink, 10, 3), (Method::LiveMap, 10, 1), (Method::LiveMap, 1000, 1)]);
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
        let svg = chart(&summarize(&cells())).unwrap();
        for text in
            ["netlink", "live-map", "stated in the paper", "to bind", "to unbind", "addresses", "100 k"]
        {
            assert!(svg.contains(text), "{text}");
        }
        assert!(!svg.contains("ioctl"));
        assert!(chart(&[]).is_err() || chart(&[]).unwrap().contains("svg")); // the paper's points alone
    }
}
