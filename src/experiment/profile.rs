//! Profiles: TOML files that say what an experiment measures. Two are built in.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;

use crate::engine::EngineKind;
use crate::events::Cell;
use crate::live::Method;
use crate::wire::{MAX_PAYLOAD, MIN_PAYLOAD};

pub use crate::events::{
    Approach, BindProfile, BindSeries, Rates, ResponseProfile, ResponseSeries, RotationProfile,
    RotationSeries,
};

/// The built-in profiles, by name.
const BUILT_IN: [(&str, &str); 2] = [
    ("quick", include_str!("../../bench/profiles/quick.toml")),
    ("paper", include_str!("../../bench/profiles/paper.toml")),
];

/// A profile: a table for each experiment.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `experiment bind`.
    pub bind: Option<BindProfile>,
    /// `experiment response`.
    pub response: Option<ResponseProfile>,
    /// `experiment rotation`.
    pub rotation: Option<RotationProfile>,
}

/// The highest rate that a profile may ask for: beyond what one core can generate.
const MAX_RATE: u64 = 10_000_000;

/// The most requests in a run: the ledger needs one byte for each.
const MAX_REQUESTS: u64 = 1_000_000_000;

impl Profile {
    /// Loads the built-in profile called `name`, or else the file at that path.
    ///
    /// # Errors
    /// If neither exists, or a value is invalid. The error is one line with the file, the key, and
    /// what is allowed.
    pub fn load(name: &str) -> Result<Self> {
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => Self::parse(text).with_context(|| format!("profile {name}")),
            None => {
                let text = fs::read_to_string(Path::new(name)).with_context(|| {
                    format!(
                        "no profile '{name}': use quick, paper, or the path of a TOML file like \
                        bench/profiles/quick.toml"
                    )
                })?;
                Self::parse(&text).with_context(|| name.to_owned())
            }
        }
    }

    /// The table for `experiment bind`.
    ///
    /// # Errors
    /// If the profile lacks it.
    pub fn bind(self, name: &str) -> Result<BindProfile> {
        self.bind.with_context(|| {
            format!("{name}: it has no table [bind], which 'experiment bind' needs")
        })
    }

    /// The table for `experiment rotation`.
    ///
    /// # Errors
    /// If the profile lacks it.
    pub fn rotation(self, name: &str) -> Result<RotationProfile> {
        self.rotation.with_context(|| {
            format!("{name}: it has no table [rotation], which 'experiment rotation' needs")
        })
    }

    /// The table for `experiment response`.
    ///
    /// # Errors
    /// If the profile lacks it.
    pub fn response(self, name: &str) -> Result<ResponseProfile> {
        self.response.with_context(|| {
            format!("{name}: it has no table [response], which 'experiment response' needs")
        })
    }

    /// Parses a profile from TOML.
    ///
    /// # Errors
    /// If it is invalid: one line with the key and what is allowed.
    pub fn parse(text: &str) -> Result<Self> {
        let at = |error: &toml::de::Error| {
            error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count())
        };
        // The TOML parser's messages may span several lines; ours is one.
        let words = |error: &toml::de::Error| error.message().replace('\n', ", ");
        let document = toml::Deserializer::parse(text)
            .map_err(|error| anyhow!("line {}: {}", at(&error), words(&error)))?;
        let profile: Self = serde_path_to_error::deserialize(document).map_err(|error| {
            let (path, error) = (error.path().to_string(), error.into_inner());
            let key = if path == "." { String::new() } else { format!("{path}: ") };
            anyhow!("line {}: {key}{}", at(&error), words(&error))
        })?;
        ensure!(
            profile.bind.is_some() || profile.response.is_some() || profile.rotation.is_some(),
            "it has none of the tables [bind], [response] and [rotation], so there is nothing to \
             measure"
        );
        profile.bind.iter().try_for_each(BindProfile::check)?;
        profile.response.iter().try_for_each(ResponseProfile::check)?;
        profile.rotation.iter().try_for_each(RotationProfile::check)?;
        Ok(profile)
    }
}

/// Checks a duration in seconds.
fn check_seconds(key: &str, seconds: f64) -> Result<()> {
    ensure!(
        seconds > 0.0 && seconds <= 1e6,
        "{key} is {seconds}: allowed are seconds above 0, up to 1000000"
    );
    Ok(())
}

fn check_runs(key: &str, runs: u32) -> Result<()> {
    ensure!((1..=1000).contains(&runs), "{key} is {runs}: allowed are 1 to 1000");
    Ok(())
}

fn check_addresses<'a>(key: &str, mut addresses: impl Iterator<Item = &'a u64>) -> Result<()> {
    ensure!(addresses.all(|&count| count > 0), "{key} has a 0: allowed are numbers from 1");
    Ok(())
}

/// Refuses names of engines that this program does not have.
fn check_engines(key: &str, engines: impl Iterator<Item = EngineKind>) -> Result<()> {
    for engine in engines {
        engine.name().parse::<EngineKind>().with_context(|| key.to_owned())?;
    }
    Ok(())
}

impl BindProfile {
    fn check(&self) -> Result<()> {
        check_runs("bind.runs", self.runs)?;
        check_seconds("bind.budget", self.budget)?;
        check_addresses(
            "bind.series.addresses",
            self.series.iter().flat_map(|series| &series.addresses),
        )?;
        ensure!(
            self.series
                .iter()
                .flat_map(|series| &series.methods)
                .all(|&method| method != Method::None),
            "bind.series.methods has 'none', which binds nothing: allowed are the other methods of \
             --bind"
        );
        ensure!(
            !self.cells().is_empty(),
            "bind.series is empty: it needs methods and addresses, at least one of each"
        );
        Ok(())
    }

    /// Drops every method but these.
    #[must_use]
    pub fn only(mut self, methods: &[Method]) -> Self {
        for series in &mut self.series {
            series.methods.retain(|method| methods.contains(method));
        }
        self
    }

    /// The cells: each method and number of addresses once, smallest number first, then in the
    /// order of the series.
    #[must_use]
    pub fn cells(&self) -> Vec<(Method, u64)> {
        let mut cells = Vec::new();
        for series in &self.series {
            for &addresses in &series.addresses {
                for &method in &series.methods {
                    if !cells.contains(&(method, addresses)) {
                        cells.push((method, addresses));
                    }
                }
            }
        }
        cells.sort_by_key(|&(_, addresses)| addresses); // stable
        cells
    }
}

impl Rates {
    /// Every rate, lowest first.
    #[must_use]
    pub fn all(&self) -> Vec<u64> {
        let exact = (0..).map(|power| self.from as f64 * self.step.powi(power));
        let mut rates: Vec<_> = exact
            .map(|rate| rate.round() as u64)
            .take_while(|&rate| rate < self.to)
            .chain([self.to])
            .collect();
        rates.dedup();
        rates
    }
}

impl Rates {
    fn check(self, key: &str, most: u64, what: &str) -> Result<()> {
        let Self { from, to, step } = self;
        ensure!((1..=most).contains(&from), "{key}.from is {from}: allowed are 1 to {most} {what}");
        ensure!(
            (from..=most).contains(&to),
            "{key}.to is {to}: allowed are {from} ({key}.from) to {most} {what}"
        );
        ensure!(
            (1.001..=1000.0).contains(&step),
            "{key}.step is {step}: allowed are 1.001 to 1000, the factor between neighbours"
        );
        Ok(())
    }
}

fn check_payload(key: &str, payload: usize) -> Result<()> {
    ensure!(
        (MIN_PAYLOAD..=MAX_PAYLOAD).contains(&payload),
        "{key} is {payload}: allowed are {MIN_PAYLOAD} to {MAX_PAYLOAD} bytes"
    );
    Ok(())
}

impl RotationProfile {
    fn check(&self) -> Result<()> {
        ensure!(
            (1.0..=86_400.0).contains(&self.rotate),
            "rotation.rotate is {}: allowed are 1 to 86400 seconds",
            self.rotate
        );
        ensure!(
            (1..=1000).contains(&self.steps),
            "rotation.steps is {}: allowed are 1 to 1000",
            self.steps
        );
        ensure!(
            (1..=MAX_RATE).contains(&self.rate),
            "rotation.rate is {}: allowed are 1 to {MAX_RATE} requests/s",
            self.rate
        );
        ensure!(
            self.rate as f64 * self.rotate <= MAX_REQUESTS as f64,
            "rotation.rate is {}: allowed are at most {MAX_REQUESTS} requests in a step",
            self.rate
        );
        ensure!(self.replies > 0, "rotation.replies is 0: allowed are 1 to 255");
        check_payload("rotation.payload", self.payload)?;
        check_seconds("rotation.budget", self.budget)?;
        check_engines("rotation.series.engine", self.series.iter().map(|series| series.engine))?;
        for RotationSeries { engine, methods, clients } in &self.series {
            clients.check("rotation.series.clients", u64::from(u32::MAX) / 4, "clients")?;
            for method in methods {
                ensure!(
                    method.moves() && engine.can(*method),
                    "rotation.series.methods has '{method}', which cannot move addresses for \
                     engine '{engine}': allowed are live-map for afxdp and reflect, and netlink, \
                     netlink-batch, netlink-down, ioctl, command and ifconfig"
                );
            }
        }
        ensure!(
            !self.servers().is_empty(),
            "rotation.series is empty: it needs at least one method"
        );
        Ok(())
    }

    /// The servers to test: engine, method, and the numbers of clients to try.
    #[must_use]
    pub fn servers(&self) -> Vec<(EngineKind, Method, Vec<u64>)> {
        let of_series = |series: &RotationSeries| {
            let RotationSeries { engine, methods, clients } = series.clone();
            methods.into_iter().map(move |method| (engine, method, clients.all()))
        };
        self.series.iter().flat_map(of_series).collect()
    }
}

impl ResponseProfile {
    fn check(&self) -> Result<()> {
        self.rates.check("response.rates", MAX_RATE, "requests/s")?;
        ensure!(
            (1..=MAX_REQUESTS).contains(&self.requests),
            "response.requests is {}: allowed are 1 to {MAX_REQUESTS}",
            self.requests
        );
        self.seconds.iter().try_for_each(|&seconds| check_seconds("response.seconds", seconds))?;
        check_runs("response.runs", self.runs)?;
        let thresholds = &self.thresholds_ms;
        ensure!(
            !thresholds.is_empty()
                && thresholds.iter().all(|&threshold| threshold > 0.0 && threshold.is_finite())
                && thresholds.is_sorted_by(|a, b| a < b),
            "response.thresholds_ms is {thresholds:?}: allowed are milliseconds above 0, at least \
             one, each larger than the one before"
        );
        ensure!(self.replies > 0, "response.replies is 0: allowed are 1 to 255");
        check_payload("response.payload", self.payload)?;
        check_seconds("response.budget", self.budget)?;
        let engines = self.series.iter().flat_map(|series| &series.engines).copied();
        check_engines("response.series.engines", engines)?;
        check_addresses(
            "response.series.addresses",
            self.series.iter().flat_map(|series| &series.addresses),
        )?;
        let unable = self.cells().into_iter().find(|cell| !cell.engine.can(cell.bind));
        if let Some(Cell { engine, bind, .. }) = unable {
            return Err(anyhow!(
                "response.series.bind is '{bind}', which engine '{engine}' cannot use: allowed are \
                 live-map for afxdp and reflect, and the other methods for every engine"
            ));
        }
        ensure!(
            !self.cells().is_empty(),
            "response.series is empty: it needs engines and addresses, at least one of each"
        );
        Ok(())
    }

    /// The servers: each once, smallest number of addresses first, then in the order of the series.
    #[must_use]
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for series in &self.series {
            for &addresses in &series.addresses {
                for &engine in &series.engines {
                    let cell = Cell { engine, bind: series.bind, addresses };
                    if !cells.contains(&cell) {
                        cells.push(cell);
                    }
                }
            }
        }
        cells.sort_by_key(|cell| cell.addresses); // stable
        cells
    }

    /// How many requests a run at `rate` sends.
    #[must_use]
    pub fn requests_at(&self, rate: u64) -> u64 {
        let most = self.seconds.map_or(f64::INFINITY, |seconds| (rate as f64 * seconds).ceil());
        (self.requests as f64).min(most).max(1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_ones_are_right() {
        for file in ["binding", "figure2"] {
            Profile::load(&format!("{}/bench/profiles/{file}.toml", env!("CARGO_MANIFEST_DIR")))
                .unwrap();
        }
        let paper = Profile::load("paper").unwrap().bind.unwrap();
        assert_eq!(paper.runs, 5);
        let cells = paper.cells();
        assert!(cells.is_sorted_by_key(|&(_, addresses)| addresses));
        for addresses in std::iter::once(1).chain((5000..=70_000).step_by(5000)) {
            assert!(
                cells.contains(&(Method::Netlink, addresses))
                    && cells.contains(&(Method::LiveMap, addresses))
            );
        }
        assert!(
            cells.contains(&(Method::LiveMap, 10_000_000))
                && !cells.contains(&(Method::Netlink, 1_000_000))
        );
        assert!(
            Profile::load("quick")
                .unwrap()
                .bind
                .unwrap()
                .cells()
                .contains(&(Method::LiveMap, 1_000_000))
        );
    }

    /// The error for a built-in profile after replacing `from` by `to`.
    fn error(built_in: usize, from: &str, to: &str) -> String {
        let text = BUILT_IN[built_in].1;
        assert!(text.contains(from), "{from}");
        let error = format!("{:#}", Profile::parse(&text.replacen(from, to, 1)).unwrap_err());
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn what_makes_no_sense_is_named_with_what_is_allowed() {
        for (from, to, words) in [
            ("[bind]\nruns = 2", "[bind]\nruns = 0", "bind.runs is 0: allowed are 1 to"),
            (
                "[bind]\nruns = 2",
                "[bind]\nrnus = 2",
                "unknown field `rnus`, expected one of `runs`, `budget`",
            ),
            (
                "[bind]\nruns = 2",
                "[bind]\nruns = \"2\"",
                "bind.runs: invalid type: string \"2\", expected u32",
            ),
            ("[bind]\nruns = 2", "[bind]\nruns = ", "line 4: "),
            ("[bind]\nruns = 2", "[bind]", "missing field `runs`"),
            ("budget = 2.0", "budget = -1", "bind.budget is -1: allowed are seconds above 0"),
            ("addresses = [1,", "addresses = [0,", "bind.series.addresses has a 0"),
            (
                "\"netlink\"",
                "\"telepathy\"",
                "unknown variant `telepathy`, expected one of `netlink`",
            ),
            ("\"netlink\"", "\"none\"", "bind.series.methods has 'none'"),
            (
                "way = \"bisect\"",
                "way = \"guess\"",
                "response.way: unknown variant `guess`, expected `grid` or `bisect`",
            ),
            ("replies = 10", "replies = 0", "response.replies is 0: allowed are 1 to 255"),
            ("replies = 10", "replies = 256", "response.replies: invalid value: integer `256`"),
            ("payload = 32", "payload = 1", "response.payload is 1: allowed are"),
            (
                "thresholds_ms = [1, ",
                "thresholds_ms = [7, ",
                "response.thresholds_ms is [7.0, 5.0,",
            ),
            ("rotate = 2.0", "rotate = 0.5", "rotation.rotate is 0.5: allowed are 1 to"),
            ("rate = 10000", "rate = 0", "rotation.rate is 0: allowed are 1 to"),
            ("steps = 2", "steps = 0", "rotation.steps is 0"),
            (
                "from = 20, to",
                "from = 0, to",
                "rotation.series.clients.from is 0: allowed are 1 to",
            ),
            (
                "engine = \"afxdp\"\nmethods = [\"live-map\"]",
                "engine = \"socket\"\nmethods = [\"live-map\"]",
                "rotation.series.methods has 'live-map', which cannot move addresses for engine \
                 'socket'",
            ),
            (
                "methods = [\"netlink-batch\"]",
                "methods = [\"anyip\"]",
                "rotation.series.methods has 'anyip'",
            ),
            (
                "engines = [\"socket\"",
                "engines = [\"smoke\"",
                "response.series.engines: there is no engine 'smoke'",
            ),
        ] {
            let said = error(0, from, to);
            assert!(said.contains(words), "{to}: {said}");
        }
        let rates = |rates: &str| {
            let text = BUILT_IN[0].1;
            let line = text.lines().find(|line| line.starts_with("rates = ")).unwrap();
            error(0, line, &format!("rates = {rates}"))
        };
        assert!(
            rates("{ from = 0, to = 10, step = 2 }")
                .contains("response.rates.from is 0: allowed are 1 to")
        );
        assert!(
            rates("{ from = 9, to = 0, step = 2 }")
                .contains("response.rates.to is 0: allowed are 9")
        );
        assert!(
            rates("{ from = 1, to = 9, step = 1 }")
                .contains("response.rates.step is 1: allowed are")
        );
        assert!(
            Profile::parse("")
                .unwrap_err()
                .to_string()
                .contains("none of the tables [bind], [response] and [rotation]")
        );
        assert!(
            format!("{:#}", Profile::load("nowhere.toml").unwrap_err())
                .contains("use quick, paper, or the path")
        );
    }

    #[test]
    fn rates_go_from_the_lowest_to_the_highest() {
        let rates = Rates { from: 1000, to: 5000, step: 2.0 };
        assert_eq!(rates.all(), [1000, 2000, 4000, 5000]);
        assert_eq!(Rates { to: 1000, ..rates }.all(), [1000]);
        assert_eq!(Rates { from: 1, to: 4, step: 1.1 }.all(), [1, 2, 3, 4]); // no rate twice
        let paper = Profile::load("paper").unwrap().response.unwrap();
        let rates = paper.rates.all();
        assert!(
            rates.first() == Some(&1900) && rates.last().is_some_and(|&highest| highest > 150_000)
        );
        assert_eq!((paper.requests_at(1900), paper.requests_at(150_000)), (250_000, 250_000));
        assert_eq!(ResponseProfile { seconds: Some(0.5), ..paper }.requests_at(1900), 950);
    }

    #[test]
    fn a_cell_that_two_series_have_is_measured_once() {
        let series = |addresses: &[u64]| BindSeries {
            methods: vec![Method::Ioctl],
            addresses: addresses.to_vec(),
        };
        let profile =
            BindProfile { runs: 1, budget: 1.0, series: vec![series(&[5, 1]), series(&[1, 3])] };
        assert_eq!(profile.cells(), [1, 3, 5].map(|addresses| (Method::Ioctl, addresses)));
    }
}
