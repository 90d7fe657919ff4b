//! What it took to make addresses live, and to move them.

use serde::{Deserialize, Serialize};

/// The parts of a piece of work, in the order in which they were done.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Phases(pub Vec<Phase>);

/// A part of a piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// What was done.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

/// How one step went: told when its work is done, and while it is not, whenever a step ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rotated {
    /// The step in which it was to be done.
    pub step: u64,
    /// Seconds of work, without the pauses between the chunks.
    pub seconds: f64,
    /// Seconds of processor time, all that the rotation took in that step.
    pub cpu_seconds: f64,
    /// Milliseconds after the end of the step until the work was done; if it is not done, until
    /// now. By a clock that nobody sets.
    pub late_ms: f64,
    /// Clients whose addresses were exchanged: all of them, unless the step ended before.
    pub rotated: u64,
    /// Addresses that are live now.
    pub live: u64,
    /// Where it was late, and had the processor: for how many clients a step is long enough, as the
    /// work of this one lets expect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients_carried: Option<u64>,
}
