//! What an experiment measures: a TOML file, of which two are built in.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::bind::Method;

/// The profiles that are built in, by name.
const BUILT_IN: [(&str, &str); 2] = [
    ("quick", include_str!("../../bench/profiles/quick.toml")),
    ("paper", include_str!("../../bench/profiles/paper.toml")),
];

/// A profile: a table for each experiment.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `experiment bind`.
    pub bind: BindProfile,
}

/// What `experiment bind` measures.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindProfile {
    /// Runs of each cell, at least 1.
    pub runs: u32,
    /// Seconds that one run may bind, positive.
    pub budget: f64,
    /// What is measured at what size.
    pub series: Vec<BindSeries>,
}

/// Methods, and the numbers of addresses at which each of them is measured.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindSeries {
    /// The methods.
    pub methods: Vec<Method>,
    /// The numbers of addresses.
    pub addresses: Vec<u64>,
}

impl Profile {
    /// The profile of that name, or the one in the file of that name.
    ///
    /// # Errors
    /// When there is neither, or it makes no sense, with the line that does not.
    pub fn load(name: &str) -> Result<Self> {
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => Self::parse(text),
            None => {
                let text = fs::read_to_string(Path::new(name)).with_context(|| {
                    format!("no profile '{name}': there are quick and paper, and files in TOML like bench/profiles/quick.toml")
                })?;
                Self::parse(&text).with_context(|| format!("profile {name}"))
            }
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let profile: Self = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            anyhow::anyhow!("line {line}: {}", error.message())
        })?;
        let bind = &profile.bind;
        ensure!(bind.runs > 0, "bind.runs is 0: a cell has at least 1");
        ensure!(bind.budget > 0.0, "bind.budget is {}: it is a time in seconds", bind.budget);
        let addresses = bind.series.iter().flat_map(|series| &series.addresses);
        ensure!(
            addresses.clone().all(|&count| count > 0),
            "bind.series.addresses has a 0: there is at least 1"
        );
        let methods = bind.series.iter().flat_map(|series| &series.methods);
        ensure!(
            methods.clone().all(|&method| method != Method::None),
            "bind.series.methods has 'none', which binds nothing"
        );
        ensure!(
            methods.count() > 0 && addresses.count() > 0,
            "bind.series is empty: there is nothing to measure"
        );
        Ok(profile)
    }
}

impl BindProfile {
    /// The cells: each method and number once, smallest number first, and at one number in the order of the series.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_ones_are_right() {
        let paper = Profile::load("paper").unwrap().bind;
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
            cells.contains(&(Method::LiveMap, 10_000_000)) && !cells.contains(&(Method::Netlink, 1_000_000))
        );
        assert!(Profile::load("quick").unwrap().bind.cells().contains(&(Method::LiveMap, 1_000_000)));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |text: &str| format!("{:#}", Profile::parse(text).unwrap_err());
        let series = "[[bind.series]]\nmethods = [\"netlink\"]\naddresses = [1]\n";
        assert!(error(&format!("[bind]\nruns = 0\nbudget = 1\n{series}")).contains("bind.runs"));
        assert!(error(&format!("[bind]\nruns = 1\nbudget = -1\n{series}")).contains("bind.budget"));
        assert!(error("[bind]\nruns = 1\nbudget = 1\nseries = []\n").contains("nothing to measure"));
        let zero = series.replace("[1]", "[1, 0]");
        assert!(error(&format!("[bind]\nruns = 1\nbudget = 1\n{zero}")).contains("has a 0"));
        let unknown = series.replace("netlink", "telepathy");
        let said = error(&format!("[bind]\nruns = 1\nbudget = 1\n{unknown}"));
        assert!(said.contains("line 5") && said.contains("telepathy"), "{said}");
        assert!(error(&format!("[bind]\nruns = 1\nbudgets = 1\n{series}")).contains("budgets"));
        assert!(
            format!("{:#}", Profile::load("nowhere.toml").unwrap_err()).contains("there are quick and paper")
        );
    }

    #[test]
    fn a_cell_that_two_series_have_is_measured_once() {
        let series =
            |addresses: &[u64]| BindSeries { methods: vec![Method::Ioctl], addresses: addresses.to_vec() };
        let profile = BindProfile { runs: 1, budget: 1.0, series: vec![series(&[5, 1]), series(&[1, 3])] };
        assert_eq!(profile.cells(), [1, 3, 5].map(|addresses| (Method::Ioctl, addresses)));
    }
}
