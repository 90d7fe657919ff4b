//! What runs leave behind for people and programs: one schema for every JSON line that a command prints, and what is made of
//! such lines.
//!
//! Pure: numbers and their names come in, text goes out.

pub mod bind;
mod results;

pub use results::{
    BindCell, BindOutcome, BindResult, BindSummary, Counters, EngineResult, Event, LoadResult, Percentiles,
    Ready, Spread, Stats,
};
