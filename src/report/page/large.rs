//! The chart at the top of a page, for wide and narrow screens: lines labelled at their ends, or
//! bars.

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::super::chart::{Area, INK, PALETTE, PAPER, Panel, plot};
use crate::events::Spread;

/// The screen that a picture is for. A wide picture shrunk to a phone's width is unreadable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScreenWidth {
    /// From about 700 pixels on.
    Wide,
    /// A phone.
    Narrow,
}

impl ScreenWidth {
    fn width(self) -> u32 {
        match self {
            Self::Wide => 960,
            Self::Narrow => 400,
        }
    }
}

/// A bar of [`bars`].
#[derive(Debug, Clone)]
pub struct Bar {
    /// The name of the contender.
    pub name: String,
    /// Its mode.
    pub mode: String,
    /// The bar ends at the median; a whisker reaches from minimum to maximum.
    pub spread: Spread,
    /// The figure as text.
    pub figure: String,
    /// Whether it is the baseline of the comparison.
    pub is_baseline: bool,
}

/// Line spacing of a label in pixels.
const LEADING: i32 = 14;
/// Width of a character of 12 pixels in pixels, with some margin.
const CHARACTER: i32 = 7;

/// Draws the lines of `panel`, with each name to the right of the axes and a dotted line to it.
///
/// # Errors
/// If the panel has nothing to draw.
pub fn lines(panel: &Panel, screen: ScreenWidth) -> Result<String> {
    let longest = if screen == ScreenWidth::Wide { usize::MAX } else { 13 };
    let names = panel.lines.iter().map(|line| line.name.as_str()).chain([&*panel.marks_name]);
    let labels: Vec<Vec<String>> = names.map(|name| wrapped(name, longest)).collect();
    let characters = labels.iter().flatten().map(|line| line.chars().count()).max().unwrap_or(0);
    let right = 46 + CHARACTER * characters.min(60) as i32;
    let needed: i32 = labels.iter().map(|label| height(label)).sum();
    let size = (screen.width(), 440.max(needed as u32 + 80));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER)?;
        let ends = plot(&area, panel, right as u32)?;
        let x = size.0 as i32 - right + 34;
        let mut named: Vec<_> = ends
            .into_iter()
            .zip(&labels)
            .enumerate()
            .filter_map(|(index, (end, label))| Some((index, end?, label)))
            .collect();
        named.sort_by_key(|(_, end, _)| end.1);
        let wanted: Vec<_> = named.iter().map(|(_, end, label)| (end.1, height(label))).collect();
        let middles = spread_out(&wanted, size.1 as i32 - 50);
        for ((index, end, label), middle) in named.into_iter().zip(middles) {
            let colour =
                panel.lines.get(index).map_or(INK, |line| PALETTE[line.colour % PALETTE.len()]);
            name_end(&area, label, colour, (end, (x, middle)))?;
        }
        area.present()?;
    }
    Ok(svg)
}

/// Draws a label at `place`, and a dotted line to it from the `end` of its line.
fn name_end(
    area: &Area,
    label: &[String],
    colour: RGBColor,
    (end, place): ((i32, i32), (i32, i32)),
) -> Result<()> {
    let (from, elbow) = ((end.0 + 8, end.1), (place.0 - 14, place.1));
    // Dotted, so that it does not look like data.
    let dots = ((elbow.0 - from.0) / 8).max(1);
    let at = |dot: i32| {
        let part = |from: i32, to: i32| from + (to - from) * dot / dots;
        (part(from.0, elbow.0), part(from.1, elbow.1))
    };
    let dot = |dot| Circle::new(at(dot), 1, colour.filled());
    for circle in (0..=dots).map(dot) {
        area.draw(&circle)?;
    }
    let last = [elbow, (place.0 - 4, place.1)];
    area.draw(&PathElement::new(last, colour.stroke_width(2)))?;
    let top = place.1 - LEADING * (label.len() as i32 - 1) / 2;
    for (row, words) in (0..).zip(label) {
        let at = (place.0, top + LEADING * row);
        area.draw(&Text::new(words.clone(), at, text(12)))?;
    }
    Ok(())
}

fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&INK).pos(Pos::new(HPos::Left, VPos::Center))
}

fn height(label: &[String]) -> i32 {
    LEADING * label.len() as i32 + 3
}

/// Wraps `words` into lines of at most `longest` characters; longer words get a line of their own.
fn wrapped(words: &str, longest: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= longest => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Moves labels apart, from top to bottom, so that none overlap. `wanted` has the middle and height
/// of each. Returns the middles; all lie above `bottom` if there is room.
fn spread_out(wanted: &[(i32, i32)], bottom: i32) -> Vec<i32> {
    let mut next = 8;
    let mut middles = Vec::new();
    for (middle, height) in wanted {
        let middle = (*middle).max(next + height / 2);
        next = middle + height - height / 2;
        middles.push(middle);
    }
    let mut last = bottom;
    for (middle, (_, height)) in middles.iter_mut().zip(wanted).rev() {
        *middle = (*middle).min(last - height / 2);
        last = *middle - height / 2;
    }
    middles
}

/// Draws a bar per entry of `all`, from 0 on a linear scale, under `title` unless it is empty.
///
/// # Errors
/// If it cannot be drawn.
pub fn bars(title: &str, all: &[Bar], screen: ScreenWidth) -> Result<String> {
    let (name_width, row, top) = match screen {
        ScreenWidth::Wide => (230, 40, if title.is_empty() { 8 } else { 36 }),
        ScreenWidth::Narrow => (8, 58, 8),
    };
    let size = (screen.width(), top as u32 + row as u32 * all.len() as u32 + 8);
    let figure = all.iter().map(|bar| bar.figure.chars().count()).max().unwrap_or(0).min(30) as i32;
    let room = size.0 as i32 - name_width - 24 - CHARACTER * figure;
    let most = all.iter().map(|bar| bar.spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| name_width + (f64::from(room) * (value / most).clamp(0.0, 1.0)) as i32;
    let pale = INK.mix(0.7);
    let faint = text(11).color(&pale);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER)?;
        if !title.is_empty() {
            area.draw(&Text::new(title.to_owned(), (8, 18), text(15)))?;
        }
        for (index, bar) in (0..).zip(all) {
            let y = top + row * index;
            let (name, middle) = match screen {
                ScreenWidth::Wide => (y + 12, y + row / 2),
                ScreenWidth::Narrow => (y + 9, y + 42),
            };
            area.draw(&Text::new(bar.name.clone(), (8, name), text(13)))?;
            area.draw(&Text::new(bar.mode.clone(), (8, name + 15), faint.clone()))?;
            let colour = PALETTE[if bar.is_baseline { 6 } else { 1 }];
            let Spread { min, median, max } = bar.spread;
            let corners = [(name_width, middle - 9), (x(median), middle + 9)];
            area.draw(&Rectangle::new(corners, colour.filled()))?;
            let whisker = [(x(min), middle), (x(max), middle)];
            area.draw(&PathElement::new(whisker, INK.stroke_width(1)))?;
            let at = (x(max.max(median)) + 8, middle);
            area.draw(&Text::new(bar.figure.clone(), at, text(13)))?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::{Line, for_page};

    fn spread(median: f64) -> Spread {
        Spread { min: median / 2.0, median, max: median * 1.5 }
    }

    #[test]
    fn each_line_is_named_where_it_ends() {
        let line = |name: &str, colour| {
            Line::new(name.to_owned(), colour, vec![(1.0, spread(10.0)), (1e4, spread(1000.0))])
        };
        let panel = Panel {
            lines: vec![line("afxdp, netlink-down", 0), line("socket, netlink-down", 1)],
            marks: vec![(100.0, 100.0)],
            marks_name: "stated in the paper, 2014".to_owned(),
            ..Panel::default()
        };
        let wide = lines(&panel, ScreenWidth::Wide).unwrap();
        for words in ["afxdp, netlink-down", "socket, netlink-down", "stated in the paper, 2014"] {
            assert!(wide.contains(words), "{words}");
        }
        let narrow = lines(&panel, ScreenWidth::Narrow).unwrap();
        assert!(narrow.contains("netlink-down") && !narrow.contains("afxdp, netlink-down"));
        assert_eq!(for_page(&wide).matches("\"#").count(), 0);
        assert!(lines(&Panel::default(), ScreenWidth::Wide).is_err());
    }

    #[test]
    fn labels_do_not_overlap_and_stay_on_the_picture() {
        assert_eq!(spread_out(&[(100, 17), (100, 17), (103, 17)], 400), [100, 117, 134]);
        assert_eq!(spread_out(&[(390, 20), (395, 20)], 400), [370, 390]);
        assert_eq!(spread_out(&[(0, 20)], 400), [18]);
        assert_eq!(wrapped("stated in the paper, 2014", 13), ["stated in the", "paper, 2014"]);
    }

    #[test]
    fn bars_have_their_names_modes_and_figures() {
        let bar = |name: &str, rate: f64| Bar {
            name: name.to_owned(),
            mode: "XDP native, copy mode".to_owned(),
            spread: spread(rate),
            figure: format!("{rate}/s"),
            is_baseline: name == "socket",
        };
        for screen in [ScreenWidth::Wide, ScreenWidth::Narrow] {
            let picture =
                bars("rates", &[bar("socket", 100.0), bar("<script>", 0.0)], screen).unwrap();
            for words in ["socket", "XDP native, copy mode", "100/s", "0/s"] {
                assert!(picture.contains(words), "{words}");
            }
            assert!(!picture.contains("<script>"), "a name was not escaped");
        }
        assert!(bars("", &[], ScreenWidth::Wide).is_ok());
    }
}
