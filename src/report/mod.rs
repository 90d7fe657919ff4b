//! What runs leave behind for people and programs: one schema for every JSON line that a command prints.
//!
//! Pure: it holds numbers and their names, and computes nothing.

mod results;

pub use results::{BindResult, Counters, EngineResult, Event, LoadResult, Percentiles, Ready, Stats};
