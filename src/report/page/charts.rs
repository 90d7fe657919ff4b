//! Draws the charts of a page and keeps them as files.

use anyhow::Result;
use maud::{Markup, PreEscaped, html};

use super::super::chart::{Panel, for_page, svg};
use super::large::{self, Bar, ScreenWidth};
use super::text::{once, thousands};

/// Name and contents of each chart drawn.
#[derive(Default)]
pub struct Charts {
    pub files: Vec<(String, String)>,
}

impl Charts {
    /// Draws `panels` as files, numbered from `first`. A panel with points at only one x becomes
    /// text instead, with figures formatted by `words`.
    ///
    /// # Errors
    /// If one cannot be drawn.
    pub fn small(
        &mut self,
        (name, first): (&str, usize),
        panels: &[Panel],
        words: fn(f64) -> String,
    ) -> Result<Markup> {
        let (mut drawn, mut written) = (Vec::new(), Vec::new());
        for (number, panel) in (first..).zip(panels) {
            if is_point(panel) {
                written.push(panel);
                continue;
            }
            let picture = svg(std::slice::from_ref(panel), 1)?;
            drawn.push((panel.title.as_str(), for_page(&picture)));
            self.files.push((format!("{name}-{number}.svg"), picture));
        }
        Ok(html! {
            @if !drawn.is_empty() {
                div.charts { @for (title, picture) in drawn { (figure(title, &picture)) } }
            }
            @if !written.is_empty() {
                ul.points { @for panel in written { (in_words(panel, words)) } }
            }
        })
    }

    /// Draws lines as the chart at the top of the page.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn large_lines(&mut self, name: &str, panel: &Panel) -> Result<Markup> {
        self.files.push((name.to_owned(), large::lines(panel, ScreenWidth::Wide)?));
        let untitled = Panel { title: String::new(), ..panel.clone() };
        let draw = |screen| large::lines(&untitled, screen);
        Ok(large_figure(&panel.title, draw(ScreenWidth::Wide)?, draw(ScreenWidth::Narrow)?))
    }

    /// Draws bars as the chart at the top of the page.
    ///
    /// # Errors
    /// If it cannot be drawn.
    pub fn large_bars(&mut self, name: &str, title: &str, all: &[Bar]) -> Result<Markup> {
        self.files.push((name.to_owned(), large::bars(title, all, ScreenWidth::Wide)?));
        let draw = |screen| large::bars("", all, screen);
        Ok(large_figure(title, draw(ScreenWidth::Wide)?, draw(ScreenWidth::Narrow)?))
    }
}

fn large_figure(title: &str, wide: String, narrow: String) -> Markup {
    html! {
        figure.large {
            figcaption { (title) }
            div.wide role="img" aria-label=(title) { (PreEscaped(for_page(&wide))) }
            div.narrow role="img" aria-label=(title) { (PreEscaped(for_page(&narrow))) }
        }
    }
}

fn figure(title: &str, picture: &str) -> Markup {
    html! { figure role="img" aria-label=(title) { (PreEscaped(picture)) } }
}

fn is_point(panel: &Panel) -> bool {
    let points = panel.lines.iter().flat_map(|line| &line.points);
    once(points.map(|point| point.0)).len() < 2
}

fn in_words(panel: &Panel, words: fn(f64) -> String) -> Markup {
    let lines = panel.lines.iter().filter(|line| !line.points.is_empty());
    let figures: Vec<_> = lines
        .map(|line| {
            let figures = line.points.iter().map(|(x, spread)| {
                let is_least = line.at_least.iter().any(|(at, _)| at == x);
                format!("{}{}", if is_least { "≥ " } else { "" }, words(spread.median))
            });
            format!("{} {}", line.name, figures.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let at = panel.lines.iter().find_map(|line| line.points.first());
    html! {
        li {
            strong { (panel.title) } ", "
            @match at {
                Some((x, _)) => {
                    "at " (thousands(*x as u64)) " " (panel.x.name) " only, "
                    (panel.y.name) ": " (figures.join("; ")) "."
                }
                None => "no figure.",
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Spread;
    use crate::report::chart::{Axis, Line};

    #[test]
    fn a_chart_with_one_point_is_written() {
        let at = |x: f64| (x, Spread { min: 1.0, median: 2.0, max: 3.0 });
        let line = |points: Vec<(f64, Spread)>| Line {
            at_least: vec![(10.0, 2.0)],
            ..Line::new("under 1 ms".to_owned(), 0, points)
        };
        let panel = |points| Panel {
            title: "afxdp".to_owned(),
            x: Axis { name: "addresses", ..Axis::default() },
            y: Axis { name: "requests/s", ..Axis::default() },
            lines: vec![line(points)],
            marks: vec![(1.0, 1.0), (2.0, 2.0)],
            ..Panel::default()
        };
        let mut charts = Charts::default();
        let panels = [panel(vec![at(10.0)]), panel(vec![at(10.0), at(20.0)]), panel(vec![])];
        let words = |value: f64| format!("{value}/s");
        let html = charts.small(("figure-2", 2), &panels, words).unwrap().into_string();
        let names: Vec<_> = charts.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["figure-2-3.svg"]);
        let written = ", at 10 addresses only, requests/s: under 1 ms ≥ 2/s.";
        assert!(html.contains(written), "{html}");
        assert!(html.contains("<strong>afxdp</strong>, no figure."), "{html}");
    }
}
