//! What runs leave behind for people and programs: one schema for every JSON line that a command
//! prints, and what is made of such lines.
//!
//! Pure: numbers and their names come in, text goes out.

#[cfg(feature = "lab")]
pub mod bind;
#[cfg(feature = "lab")]
pub mod chart;
#[cfg(feature = "lab")]
pub mod page;
#[cfg(feature = "lab")]
pub mod response;
mod results;
#[cfg(feature = "lab")]
pub mod rotation;
mod words;

#[cfg(feature = "lab")]
pub(crate) use results::times;
pub use results::{
    BindCell, BindOutcome, BindResult, BindSummary, Carried, Cell, Counters, Event, Failed, Limit,
    Moves, Moving, Notice, QueueCounters, Ready, RotationCell, RotationLimit, SCHEMA, Spread,
    Stats, Sustained, ThresholdSummary,
};
#[cfg(feature = "lab")]
pub use results::{
    Contestant, EngineResult, Experiment, LoadResult, Percentiles, Plan, RotationOutcome,
    RotationTrial, Trial,
};
pub use words::{or_dash, rate};
