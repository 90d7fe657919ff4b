//! Reasons to doubt figures, by figure and kind: counted, and folded beneath the figure.

use maud::{Markup, html};

use super::super::response::{cells, held, series_name, trials};
use super::summed::{Summed, readies};
use super::text::{addresses, counted, driver, once, thousands};
use crate::events::{Cell, Event, Limit, Plan, Ready, Spread, Trial};
use crate::host::Environment;
use crate::net::netlink::AttachMode;
use crate::xdp::{CopyMode, CopyRequest};

/// Report runs that differ by more than this share of their median.
const VARIES: f64 = 0.2;

/// The figure that a doubt concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    Bind,
    Response,
    Rotation,
    Compare,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Bind => "Figure 1",
            Self::Response => "Figure 2",
            Self::Rotation => "Moving addresses",
            Self::Compare => "Compared in one run",
        }
    }
}

/// The kinds of doubt, in the order of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Unfinished,
    Generator,
    Lacking,
    Late,
    Wrong,
    Mode,
    Short,
    Spread,
    Source,
    Governor,
}

impl Kind {
    const ALL: [Self; 10] = [
        Self::Unfinished,
        Self::Generator,
        Self::Lacking,
        Self::Late,
        Self::Wrong,
        Self::Mode,
        Self::Short,
        Self::Spread,
        Self::Source,
        Self::Governor,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Unfinished => "not finished",
            Self::Generator => "generator too slow",
            Self::Lacking => "missing replies",
            Self::Late => "requests sent late",
            Self::Wrong => "wrong replies",
            Self::Mode => "another mode than asked for",
            Self::Short => "runs shorter than the paper's",
            Self::Spread => "runs that vary",
            Self::Source => "source not exactly known",
            Self::Governor => "processor frequency not fixed",
        }
    }
}

/// A doubt.
#[derive(Debug, Clone, PartialEq)]
pub struct Doubt {
    pub figure: Figure,
    pub kind: Kind,
    /// The server, if it concerns only one.
    pub cell: Option<Cell>,
    pub words: String,
}

/// All of them.
pub struct Doubts {
    pub all: Vec<Doubt>,
}

impl Doubts {
    pub fn of(summed: &Summed) -> Self {
        let mut all = Vec::new();
        unfinished(summed, &mut all);
        runs(summed, &mut all);
        spreads(summed, &mut all);
        machines(summed, &mut all);
        for (figure, events) in [
            (Figure::Response, &summed.data.response),
            (Figure::Rotation, &summed.data.rotation),
            (Figure::Compare, &summed.data.compare),
        ] {
            let found = readies(events).flat_map(not_as_asked);
            all.extend(found.map(|words| Doubt { figure, kind: Kind::Mode, cell: None, words }));
        }
        Self { all: once(all) }
    }

    /// A summary for the top of the page: how many doubts, of which kinds, at which figures.
    pub fn overview(&self) -> Markup {
        let kinds: Vec<_> = Kind::ALL.into_iter().filter(|kind| self.count(*kind) > 0).collect();
        let figures = |kind: Kind| {
            let of_kind = self.all.iter().filter(|doubt| doubt.kind == kind);
            let names = once(of_kind.map(|doubt| doubt.figure.name()));
            names.join(", ")
        };
        html! {
            @if !self.all.is_empty() {
                details.doubts {
                    summary {
                        "Before you quote a figure: "
                        (counted(self.all.len() as u64, "doubt", "s")) " of "
                        (counted(kinds.len() as u64, "kind", "s"))
                    }
                    ul { @for kind in kinds { li {
                        (kind.name()) ": " (self.count(kind)) ", at " (figures(kind))
                    } } }
                    p { "Each figure lists its doubts in full." }
                }
            }
        }
    }

    fn count(&self, kind: Kind) -> usize {
        self.all.iter().filter(|doubt| doubt.kind == kind).count()
    }

    /// The doubts of a figure; folded, unless it is unfinished.
    pub fn at(&self, figure: Figure) -> Markup {
        let here: Vec<_> = self.all.iter().filter(|doubt| doubt.figure == figure).collect();
        let of = |kind: Kind| here.iter().filter(move |doubt| doubt.kind == kind);
        let kinds = Kind::ALL.into_iter().map(|kind| (kind, of(kind).count()));
        let kinds: Vec<_> = kinds.filter(|(_, count)| *count > 0).collect();
        let counts: Vec<_> =
            kinds.iter().map(|(kind, count)| format!("{} ({count})", kind.name())).collect();
        html! {
            @if !here.is_empty() {
                details.doubts open[of(Kind::Unfinished).count() > 0] {
                    summary {
                        (counted(here.len() as u64, "doubt", "s")) ": " (counts.join(", "))
                    }
                    @for (kind, _) in &kinds {
                        h3 { (kind.name()) }
                        ul { @for doubt in of(*kind) { li { (doubt.words) } } }
                    }
                }
            }
        }
    }

    /// The section of a figure with doubts but no results yet.
    pub fn alone(&self, title: &str, figure: Figure) -> Markup {
        html! {
            @if self.all.iter().any(|doubt| doubt.figure == figure) {
                section { h2 { (title) } (self.at(figure)) }
            }
        }
    }

    /// The number of doubts about a server of Figure 2.
    pub fn mark(&self, cell: Cell) -> Markup {
        let count = self.all.iter().filter(|doubt| doubt.cell == Some(cell)).count();
        html! {
            @if count > 0 { small.mark { (counted(count as u64, "doubt", "s")) " below" } }
        }
    }
}

fn unfinished(summed: &Summed, all: &mut Vec<Doubt>) {
    let data = summed.data;
    let bound = data.bind.iter().any(|event| matches!(event, Event::Summary(_)));
    let carried = data.rotation.iter().any(|event| matches!(event, Event::Carried(_)));
    for (figure, name, events, finished) in [
        (Figure::Response, "Figure 2", &data.response, summed.finished),
        (Figure::Bind, "Figure 1", &data.bind, bound),
        (Figure::Rotation, "The rotation", &data.rotation, carried),
    ] {
        if !events.is_empty() && !finished {
            let words = format!("{name} is not finished: run the same command again to continue.");
            all.push(Doubt { figure, kind: Kind::Unfinished, cell: None, words });
        }
    }
}

fn runs(summed: &Summed, all: &mut Vec<Doubt>) {
    let Some(profile) = summed.profile else { return };
    let highest = profile.thresholds_ms.last().copied().unwrap_or(0.0);
    for cell in cells(summed.response) {
        let of_cell: Vec<_> = trials(summed.response).filter(|trial| trial.cell == cell).collect();
        for (kind, what) in of_server(&of_cell, highest) {
            let name = format!("{}, {}", series_name(cell), addresses(cell.addresses));
            let words = format!("{name}: {what}");
            all.push(Doubt { figure: Figure::Response, kind, cell: Some(cell), words });
        }
    }
    let cut = trials(summed.response).any(|trial| trial.load.sent < profile.requests);
    if let (Some(seconds), true) = (profile.seconds, cut) {
        let words = format!(
            "Runs sent for at most {seconds} s, and have fewer requests than the {} of the paper. \
             Above a server's limit the queue grows only that long, so under the larger thresholds \
             a longer run may sustain less.",
            thousands(250_000)
        );
        all.push(Doubt { figure: Figure::Response, kind: Kind::Short, cell: None, words });
    }
}

/// The doubts about the runs of one server.
fn of_server(runs: &[&Trial], highest: f64) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    let late = runs.iter().filter(|trial| held(trial, highest) == Some(Limit::Generator));
    if let Some(rate) = late.map(|trial| trial.rate).min() {
        let words = format!(
            "the generator was late from {}/s on: these runs say nothing about the server.",
            thousands(rate)
        );
        found.push((Kind::Generator, words));
    }
    let share = |part: u64, trial: &Trial| part as f64 / trial.load.sent.max(1) as f64;
    let worst = |part: fn(&Trial) -> u64, more_than: f64| {
        runs.iter()
            .filter(|trial| held(trial, highest).is_none())
            .map(|trial| (share(part(trial), trial), trial.rate))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .filter(|worst| worst.0 > more_than)
    };
    if let Some((lost, rate)) =
        worst(|trial| trial.load.sent.saturating_sub(trial.load.outcome.complete), 0.001)
    {
        let words = format!(
            "up to {:.1} % of the requests lacked a reply in runs that count as sustained, at \
             {}/s.",
            100.0 * lost,
            thousands(rate)
        );
        found.push((Kind::Lacking, words));
    }
    if let Some((late, rate)) = worst(|trial| trial.load.late, 0.01) {
        let words = format!(
            "up to {:.1} % of the requests were sent more than 1 ms late in runs that count as \
             sustained, at {}/s; their times include that delay.",
            100.0 * late,
            thousands(rate)
        );
        found.push((Kind::Late, words));
    }
    let wrong = runs.iter().map(|trial| {
        let outcome = &trial.load.outcome;
        outcome.duplicates + outcome.wrong_source + outcome.corrupt
    });
    let wrong: u64 = wrong.sum();
    if wrong > 0 {
        let words = format!("{wrong} replies were damaged, duplicated, or from a wrong address.");
        found.push((Kind::Wrong, words));
    }
    found
}

fn spreads(summed: &Summed, all: &mut Vec<Doubt>) {
    let varies = |Spread { min, median, max }: Spread| (median > 0.0).then(|| (max - min) / median);
    let rates = summed.thresholds.iter().filter_map(|summary| {
        let count = addresses(summary.cell.addresses);
        let name = format!("{}, {count}, {} ms", series_name(summary.cell), summary.threshold_ms);
        Some((varies(summary.rate?)?, name))
    });
    let times = summed.bind.iter().flat_map(|summary| {
        let figures = [("to bind", summary.bind_ns), ("to unbind", summary.unbind_ns)];
        let named = figures.map(|(what, spread)| {
            let name = format!("{}, {}, {what}", summary.method, addresses(summary.addresses));
            Some((varies(spread)?, name))
        });
        named.into_iter().flatten()
    });
    all.extend(differing(Figure::Response, summed.thresholds.len(), rates.collect()));
    all.extend(differing(Figure::Bind, 2 * summed.bind.len(), times.collect()));
    let compared = summed.compare.iter().filter_map(|result| {
        let name = format!("{}, {}", result.engine, result.bind);
        Some((varies(Spread::of(result.runs.iter().copied())?)?, name))
    });
    all.extend(differing(Figure::Compare, summed.compare.len(), compared.collect()));
}

fn differing(figure: Figure, all: usize, mut shares: Vec<(f64, String)>) -> Option<Doubt> {
    shares.retain(|(share, _)| *share > VARIES);
    shares.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (share, name) = shares.first()?;
    let words = format!(
        "{}: {} of {all} figures vary by more than {:.0} % from run to run, most of all {name} \
         ({:.0} %).",
        figure.name(),
        shares.len(),
        100.0 * VARIES,
        100.0 * share
    );
    Some(Doubt { figure, kind: Kind::Spread, cell: None, words })
}

fn machines(summed: &Summed, all: &mut Vec<Doubt>) {
    let started = summed.starts.iter().map(|start| {
        let figure = match start.plan {
            Plan::Bind(_) => Figure::Bind,
            Plan::Response(_) => Figure::Response,
            Plan::Rotation(_) => Figure::Rotation,
        };
        (figure, &start.environment)
    });
    let compared = summed.compare.iter().map(|result| (Figure::Compare, &result.environment));
    for (figure, environment) in started.chain(compared) {
        let found = of_machine(environment).into_iter();
        all.extend(found.map(|(kind, words)| Doubt { figure, kind, cell: None, words }));
    }
}

fn of_machine(environment: &Environment) -> Vec<(Kind, String)> {
    let mut found = Vec::new();
    if environment.revision.ends_with("-dirty") {
        let words = "This sixhop was built with uncommitted changes: others cannot reproduce the \
                     result exactly.";
        found.push((Kind::Source, words.to_owned()));
    } else if environment.revision.is_empty() {
        let words = "The git revision of the sixhop that measured this is unknown.";
        found.push((Kind::Source, words.to_owned()));
    }
    if let Some(governor) = environment.governor.as_ref().filter(|name| *name != "performance") {
        let words = format!("The processor's frequency was not fixed: governor '{governor}'.");
        found.push((Kind::Governor, words));
    }
    found
}

/// The modes of a server that differ from what was asked for.
fn not_as_asked(ready: &Ready) -> Vec<String> {
    let Some(engine) = ready.engine else { return Vec::new() };
    let mut found = Vec::new();
    if ready.modes.copy == Some(CopyMode::Copy) && ready.copy_asked != CopyRequest::Copy {
        found.push(format!(
            "{engine} ran in copy mode, though {} was asked for: zero-copy was not available on \
             {}. These are not zero-copy figures.",
            ready.copy_asked,
            driver(&ready.driver)
        ));
    }
    if let Some(attach) = ready.modes.attach.filter(|mode| *mode == AttachMode::Generic) {
        found.push(format!(
            "{engine} ran its XDP program in {attach} mode, on socket buffers; {} was asked for.",
            ready.attach_asked
        ));
    }
    found
}
