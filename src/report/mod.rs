//! What runs leave behind for people and programs: one schema for every JSON line that a command
//! prints, and what is made of such lines.
//!
//! Pure: numbers and their names come in, text goes out.

pub mod bind;
pub mod chart;
pub mod page;
pub mod response;
mod results;
pub mod rotation;
mod words;

pub(crate) use results::times;
pub use results::{
    BindCell, BindOutcome, BindResult, BindSummary, Carried, Cell, Contestant, Counters,
    EngineResult, Event, Experiment, Failed, Limit, LoadResult, Moves, Moving, Notice, Percentiles,
    Plan, QueueCounters, Ready, RotationCell, RotationLimit, RotationOutcome, RotationTrial,
    SCHEMA, Spread, Stats, Sustained, ThresholdSummary, Trial,
};
pub use words::{or_dash, rate};
