//! What experiments measure.

use serde::{Deserialize, Serialize};

use super::modes::{EngineKind, Method};

/// What `experiment bind` measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindSeries {
    /// The methods.
    pub methods: Vec<Method>,
    /// The numbers of addresses.
    pub addresses: Vec<u64>,
}

/// What `experiment response` measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseProfile {
    /// How it goes through the rates.
    pub way: Approach,
    /// The rates.
    pub rates: Rates,
    /// Requests of one run, at least 1.
    pub requests: u64,
    /// Seconds that one run sends at most, positive: at low rates it has fewer requests then.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Passes through the rates, at least 1.
    pub runs: u32,
    /// The mean response times that are asked for, in milliseconds, each larger than the one
    /// before.
    pub thresholds_ms: Vec<f64>,
    /// Replies to each request, 1 to 255.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Seconds that a server may need until it is ready, positive.
    pub budget: f64,
    /// Which servers.
    pub series: Vec<ResponseSeries>,
}

/// The ways through the rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approach {
    /// Every rate.
    Grid,
    /// Halving: those rates that are needed to know the highest one for each threshold.
    Bisect,
}

/// Rates from the lowest to the highest, each by the same factor larger than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// The lowest, in requests per second, at least 1.
    pub from: u64,
    /// The highest.
    pub to: u64,
    /// The factor, above 1: what a result is uncertain by.
    pub step: f64,
}

/// Engines, and the numbers of addresses at which each of them is measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseSeries {
    /// The engines.
    pub engines: Vec<EngineKind>,
    /// How the addresses are made live.
    pub bind: Method,
    /// The numbers of addresses.
    pub addresses: Vec<u64>,
}

/// What `experiment rotation` measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationProfile {
    /// Seconds of a time step, at least 1.
    pub rotate: f64,
    /// Time steps that are measured of each server, at least 1.
    pub steps: u32,
    /// Requests per second meanwhile.
    pub rate: u64,
    /// Replies to each request, 1 to 255.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Seconds that a server may need until it is ready, positive.
    pub budget: f64,
    /// Which servers.
    pub series: Vec<RotationSeries>,
}

/// Ways of binding, and the numbers of clients among which the largest is looked for that each of
/// them carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationSeries {
    /// The engine.
    pub engine: EngineKind,
    /// How addresses are made live.
    pub methods: Vec<Method>,
    /// The numbers.
    pub clients: Rates,
}
