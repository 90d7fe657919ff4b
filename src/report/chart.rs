//! Line charts on two logarithmic axes, as SVG, drawn by plotters.

use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::events::Spread;

/// Line colours. The first six are distinguishable with colour blindness (Okabe and Ito 2008,
/// without yellow and black, which vanish on a light or a dark background).
pub const PALETTE: [RGBColor; 11] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
    RGBColor(150, 110, 70),
    RGBColor(110, 80, 190),
    RGBColor(170, 30, 60),
    RGBColor(90, 160, 40),
];

pub(super) const INK: RGBColor = BLACK;
pub(super) const PAPER: RGBColor = WHITE;
const FINE_GRID: RGBColor = RGBColor(240, 240, 240);
const GRID: RGBColor = RGBColor(215, 215, 215);

/// Colours that a page may redefine, and the names of their CSS variables.
const VARIABLES: [(RGBColor, &str); 4] =
    [(INK, "--ink"), (PAPER, "--paper"), (FINE_GRID, "--fine-grid"), (GRID, "--grid")];

/// A chart.
#[derive(Debug, Clone, Default)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// Reference areas from other sources: x range, y range, label.
    pub bands: Vec<([f64; 4], String)>,
    /// Reference points from other sources.
    pub marks: Vec<(f64, f64)>,
    /// Legend of `marks`.
    pub marks_name: String,
}

/// An axis.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Formats a value that is a power of ten.
    pub words: fn(f64) -> String,
}

impl Default for Axis {
    fn default() -> Self {
        Self { name: "", words: short }
    }
}

/// A line and its points.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Index into [`PALETTE`].
    pub colour: usize,
    /// Width in pixels. Where lines overlap, the lower one is wider.
    pub width: u32,
    /// Whether its points are marked.
    pub dots: bool,
    /// Its points. A spread is drawn with a whisker from minimum to maximum.
    pub points: Vec<(f64, Spread)>,
    /// Points to mark with ▲: the value may be higher.
    pub at_least: Vec<(f64, f64)>,
}

impl Line {
    /// A line with dots.
    #[must_use]
    pub fn new(name: String, colour: usize, points: Vec<(f64, Spread)>) -> Self {
        Self { name, colour, width: 2, dots: true, points, at_least: Vec::new() }
    }
}

/// Size of a panel in pixels, without its legend. Narrow enough to stay readable on a phone.
const SIZE: (u32, u32) = (460, 340);
/// Height of a legend line in pixels.
const LEGEND: u32 = 18;
/// Width in pixels of a character of 12 pixels, roughly.
const CHARACTER: usize = 7;

/// Draws the panels as one picture with `columns` columns.
///
/// # Errors
/// If a panel has nothing to draw.
pub fn svg(panels: &[Panel], columns: usize) -> Result<String> {
    let columns = columns.clamp(1, panels.len().max(1));
    let rows = panels.len().div_ceil(columns);
    let legend = panels.iter().map(|panel| legend(panel).len()).max().unwrap_or(0) as u32 * LEGEND;
    let (width, height) = (SIZE.0, SIZE.1 + legend);
    let mut svg = String::new();
    {
        let size = (width * columns as u32, height * rows as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER)?;
        for (area, panel) in area.split_evenly((rows, columns)).iter().zip(panels) {
            draw(area, panel, legend)?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Prepares an SVG of [`svg`] for a page with a dark mode. Each colour becomes the variable
/// `--line-N`, `--ink`, `--paper`, `--grid` or `--fine-grid`, with its own value as the fallback.
#[must_use]
pub fn for_page(svg: &str) -> String {
    let lines =
        PALETTE.iter().enumerate().map(|(index, colour)| (*colour, format!("--line-{index}")));
    let others = VARIABLES.iter().map(|(colour, name)| (*colour, (*name).to_owned()));
    lines.chain(others).fold(svg.to_owned(), |svg, (RGBColor(r, g, b), name)| {
        let hex = format!("#{r:02X}{g:02X}{b:02X}");
        svg.replace(&format!("\"{hex}\""), &format!("\"var({name}, {hex})\""))
    })
}

/// A picture, or a part of one.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The legend in lines of entries: offset from the left, name, and the line; `None` for the marks.
fn legend(panel: &Panel) -> Vec<Vec<(i32, &str, Option<&Line>)>> {
    let names = panel.lines.iter().map(|line| (line.name.as_str(), Some(line)));
    let marks = (!panel.marks.is_empty()).then_some((panel.marks_name.as_str(), None));
    let mut rows: Vec<Vec<_>> = Vec::new();
    let mut x = i32::MAX;
    for (name, line) in names.chain(marks) {
        let width = (CHARACTER * name.chars().count()) as i32 + 36;
        if x.saturating_add(width) > SIZE.0 as i32 {
            rows.push(Vec::new());
            x = 24;
        }
        if let Some(row) = rows.last_mut() {
            row.push((x, name, line));
        }
        x += width;
    }
    rows
}

fn draw(area: &Area, panel: &Panel, legend_height: u32) -> Result<()> {
    let (legend_area, area) = area.split_vertically(legend_height);
    draw_legend(&legend_area, panel)?;
    // Room for the right half of the last axis label.
    plot(&area, panel, 24)?;
    Ok(())
}

fn draw_legend(area: &Area, panel: &Panel) -> Result<()> {
    let text = ("sans-serif", 12).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    for (row, names) in legend(panel).into_iter().enumerate() {
        let y = (LEGEND as usize * row) as i32 + LEGEND as i32 / 2 + 3;
        for (x, name, line) in names {
            match line {
                Some(line) => {
                    let colour = PALETTE[line.colour % PALETTE.len()];
                    let path = [(x, y), (x + 18, y)];
                    area.draw(&PathElement::new(path, colour.stroke_width(line.width)))?;
                }
                None => area.draw(&Cross::new((x + 9, y), 5, INK.stroke_width(2)))?,
            }
            area.draw(&Text::new(name.to_owned(), (x + 23, y), text.clone()))?;
        }
    }
    Ok(())
}

/// Pixel where a line or the marks end; `None` if there are no points.
pub(super) type End = Option<(i32, i32)>;

/// Draws the panel without its legend, leaving `right` pixels to the right of the axes. Returns the
/// end of each line in the panel's order, then that of the marks.
pub(super) fn plot(area: &Area, panel: &Panel, right: u32) -> Result<Vec<End>> {
    let spreads = panel.lines.iter().flat_map(|line| &line.points);
    let ends = spreads.flat_map(|(x, Spread { min, max, .. })| [(*x, *min), (*x, *max)]);
    let points: Vec<_> = ends.chain(panel.marks.iter().copied()).collect();
    let (x0, x1) = range(points.iter().map(|point| point.0)).context("there is nothing to draw")?;
    let (y0, y1) = range(points.iter().map(|point| point.1)).context("there is nothing to draw")?;
    let mut builder = ChartBuilder::on(area);
    builder.margin(8).margin_right(right).x_label_area_size(40).y_label_area_size(58);
    if !panel.title.is_empty() {
        builder.caption(&panel.title, ("sans-serif", 15));
    }
    let mut chart = builder.build_cartesian_2d((x0..x1).log_scale(), (y0..y1).log_scale())?;
    let (x_words, y_words) = (panel.x.words, panel.y.words);
    chart
        .configure_mesh()
        .light_line_style(FINE_GRID)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc(panel.x.name)
        .y_desc(panel.y.name)
        .x_label_formatter(&|value| x_words(*value))
        .y_label_formatter(&|value| y_words(*value))
        .label_style(("sans-serif", 12))
        .axis_desc_style(("sans-serif", 12))
        .draw()?;
    for ([left, right, low, high], words) in &panel.bands {
        let corners = [(left.max(x0), low.max(y0)), (right.min(x1), high.min(y1))];
        draw_band(&mut chart, corners, words)?;
    }
    chart
        .draw_series(panel.marks.iter().map(|&point| Cross::new(point, 5, INK.stroke_width(2))))?;
    // Widest first, so that narrower lines lie on top.
    let mut lines: Vec<_> = panel.lines.iter().collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.width));
    for line in lines {
        draw_line(&mut chart, line)?;
    }
    let lasts = panel.lines.iter().map(|line| {
        let (x, spread) = visible(line).max_by(|a, b| a.0.total_cmp(&b.0))?;
        Some((*x, spread.median))
    });
    let lasts: Vec<_> = lasts.chain([panel.marks.last().copied()]).collect();
    let pixels = |point| chart.plotting_area().map_coordinate(&point);
    Ok(lasts.into_iter().map(|point| point.map(pixels)).collect())
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

/// The positive points of a line, which are the ones that a logarithmic axis can show.
fn visible(line: &Line) -> impl Iterator<Item = &(f64, Spread)> + Clone {
    line.points.iter().filter(|(x, spread)| *x > 0.0 && spread.min > 0.0)
}

fn draw_band(chart: &mut Chart, corners: [(f64, f64); 2], words: &str) -> Result<()> {
    let [(x0, y0), (x1, y1)] = corners;
    chart.draw_series([Rectangle::new(corners, INK.mix(0.12).filled())])?;
    let small =
        ("sans-serif", 11).into_font().color(&INK.mix(0.7)).pos(Pos::new(HPos::Left, VPos::Center));
    let place = (x0 * (x1 / x0).powf(0.03), (y0 * y1).sqrt());
    chart.draw_series([Text::new(words.to_owned(), place, small)])?;
    Ok(())
}

fn draw_line(chart: &mut Chart, line: &Line) -> Result<()> {
    let colour = PALETTE[line.colour % PALETTE.len()];
    let path = visible(line).map(|(x, spread)| (*x, spread.median));
    chart.draw_series(LineSeries::new(path.clone(), colour.stroke_width(line.width)))?;
    if line.dots {
        let dot = |point| Circle::new(point, line.width / 2 + 2, colour.filled());
        chart.draw_series(path.map(dot))?;
    }
    let whiskers = visible(line).map(|(x, Spread { min, max, .. })| [(*x, *min), (*x, *max)]);
    chart.draw_series(whiskers.map(|ends| PathElement::new(ends, colour.stroke_width(1))))?;
    chart.draw_series(line.at_least.iter().map(|&(x, y)| {
        EmptyElement::at((x, y)) + TriangleMarker::new((0, -7), 5, colour.filled())
    }))?;
    Ok(())
}

/// The axis range for `values`, with room at the ends. It spans two powers of ten at least, since
/// only these have labels. `None` if no value is positive.
fn range(values: impl Iterator<Item = f64> + Clone) -> Option<(f64, f64)> {
    let positive = values.filter(|value| *value > 0.0);
    let (low, high) = (positive.clone().reduce(f64::min)? * 0.7, positive.reduce(f64::max)? * 1.4);
    let (first, last) = (low.log10().ceil(), high.log10().floor());
    Some(if last > first {
        (low, high)
    } else {
        (10f64.powf(first - 1.0), 10f64.powf(first + 1.0))
    })
}

/// Formats a number that is a power of ten.
#[must_use]
pub fn short(count: f64) -> String {
    match count {
        c if c >= 1e6 => format!("{} M", c / 1e6),
        c if c >= 1e3 => format!("{} k", c / 1e3),
        c => format!("{c}"),
    }
}

/// Formats a time in nanoseconds that is a power of ten.
#[must_use]
pub fn nanoseconds(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n >= 1e9 => format!("{} s", n / 1e9),
        n if n >= 1e6 => format!("{} ms", n / 1e6),
        n if n >= 1e3 => format!("{} µs", n / 1e3),
        n => format!("{n} ns"),
    }
}

/// Formats a time in microseconds that is a power of ten.
#[must_use]
pub fn microseconds(microseconds: f64) -> String {
    nanoseconds((microseconds * 1e3).round())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel() -> Panel {
        let at = |value: f64| Spread { min: value / 2.0, median: value, max: value * 2.0 };
        Panel {
            title: "What it shows".to_owned(),
            lines: vec![
                Line::new("one".to_owned(), 0, vec![(1.0, at(10.0)), (1e6, at(1000.0))]),
                Line::new(
                    "a name that is so long that the next one needs a line of its own".to_owned(),
                    1,
                    vec![],
                ),
            ],
            marks: vec![(100.0, 100.0)],
            marks_name: "stated".to_owned(),
            ..Panel::default()
        }
    }

    #[test]
    fn a_chart_names_what_it_shows_and_wraps_its_legend() {
        let picture = svg(&[panel(), panel()], 2).unwrap();
        for words in ["What it shows", "one", "stated", "100 k"] {
            assert!(picture.contains(words), "{words}");
        }
        assert_eq!(legend(&panel()).len(), 3);
        assert!(picture.contains(&format!("width=\"{}\"", 2 * SIZE.0)));
        let nothing = Panel { lines: vec![], marks: vec![], ..panel() };
        assert!(svg(&[nothing], 1).unwrap_err().to_string().contains("nothing to draw"));
    }

    #[test]
    fn in_a_page_every_colour_is_a_variable() {
        let page = for_page(&svg(&[panel()], 1).unwrap());
        assert!(
            page.contains("\"var(--line-0, #D55E00)\"")
                && page.contains("\"var(--paper, #FFFFFF)\"")
        );
        let left = page.match_indices("\"#").count();
        assert_eq!(left, 0, "{left} colours are not variables");
    }

    #[test]
    fn an_axis_has_room_and_two_labels() {
        for (values, expected) in [
            (vec![1.0, 1e6], (0.7, 1.4e6)),
            (vec![2000.0, 150e3], (1400.0, 210e3)),
            (vec![20e3, 30e3], (10e3, 1e6)),
            (vec![0.0, 100.0], (10.0, 1000.0)),
        ] {
            let (low, high) = range(values.iter().copied()).unwrap();
            assert!(
                (low / expected.0 - 1.0).abs() < 1e-9 && (high / expected.1 - 1.0).abs() < 1e-9,
                "{low} {high}"
            );
            assert!(values.iter().all(|&value| value == 0.0 || (low..high).contains(&value)));
        }
        assert_eq!(range([0.0].into_iter()), None);
    }

    #[test]
    fn people_read_numbers_and_times() {
        assert_eq!([1.0, 10.0, 1e3, 1e5, 1e6].map(short), ["1", "10", "1 k", "100 k", "1 M"]);
        assert_eq!([1.0, 1e3, 1e7, 1e9].map(nanoseconds), ["1 ns", "1 µs", "10 ms", "1 s"]);
        assert_eq!([0.1, 10.0, 1e6].map(microseconds), ["100 ns", "10 µs", "1 s"]);
    }
}
