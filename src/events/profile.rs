//! The profiles of experiments.

use serde::{Deserialize, Serialize};

use super::modes::{EngineKind, Method};

/// The profile of `experiment bind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindProfile {
    /// Runs of each cell, at least 1.
    pub runs: u32,
    /// Most seconds that one run may bind; positive.
    pub budget: f64,
    /// Methods with their numbers of addresses.
    pub series: Vec<BindSeries>,
}

/// Methods, and the numbers of addresses to measure each of them at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindSeries {
    /// The methods.
    pub methods: Vec<Method>,
    /// The numbers of addresses.
    pub addresses: Vec<u64>,
}

/// The profile of `experiment response`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseProfile {
    /// How to go through the rates.
    pub way: Approach,
    /// The rates.
    pub rates: Rates,
    /// Requests in one run, at least 1.
    pub requests: u64,
    /// Most seconds that one run sends; positive. At low rates this cuts the number of requests.
    #[serde(default)]
    pub seconds: Option<f64>,
    /// Passes through the rates, at least 1.
    pub runs: u32,
    /// Thresholds of the mean response time in milliseconds, ascending.
    pub thresholds_ms: Vec<f64>,
    /// Replies to each request, 1 to 255.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Most seconds until a server must be ready; positive.
    pub budget: f64,
    /// The servers to measure.
    pub series: Vec<ResponseSeries>,
}

/// How an experiment goes through its rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approach {
    /// Measures every rate.
    Grid,
    /// Halves its way to the highest rate for each threshold.
    Bisect,
}

/// Rates from the lowest to the highest, with a constant factor between them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// The lowest rate in requests per second, at least 1.
    pub from: u64,
    /// The highest rate in requests per second.
    pub to: u64,
    /// The factor, above 1. A result is uncertain by this much.
    pub step: f64,
}

/// Engines, and the numbers of addresses to measure each of them at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResponseSeries {
    /// The engines.
    pub engines: Vec<EngineKind>,
    /// How the addresses are bound.
    pub bind: Method,
    /// The numbers of addresses.
    pub addresses: Vec<u64>,
}

/// The profile of `experiment rotation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationProfile {
    /// Length of a time step in seconds, at least 1.
    pub rotate: f64,
    /// Time steps to measure on each server, at least 1.
    pub steps: u32,
    /// Requests per second during the rotations.
    pub rate: u64,
    /// Replies to each request, 1 to 255.
    pub replies: u8,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// Most seconds until a server must be ready; positive.
    pub budget: f64,
    /// The servers to measure.
    pub series: Vec<RotationSeries>,
}

/// Methods, and the numbers of clients in which to look for the largest that each carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationSeries {
    /// The engine.
    pub engine: EngineKind,
    /// How addresses are bound.
    pub methods: Vec<Method>,
    /// The numbers of clients.
    pub clients: Rates,
}
