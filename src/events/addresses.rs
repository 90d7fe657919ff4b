//! The time that binding and moving addresses took.

use serde::{Deserialize, Serialize};

/// The phases of a piece of work, in the order in which they ran.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Phases(pub Vec<Phase>);

/// One phase of a piece of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The phase's name.
    pub name: String,
    /// Seconds that it took.
    pub seconds: f64,
}

/// How one step's rotation went. Sent when its work is done, and at the end of each step until
/// then.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rotated {
    /// The step that the work belongs to.
    pub step: u64,
    /// Seconds of work, without the pauses between chunks.
    pub seconds: f64,
    /// Seconds of processor time that the rotation used in that step.
    pub cpu_seconds: f64,
    /// Milliseconds from the end of the step until the work was done, or until now if it is not.
    /// Measured by the monotonic clock.
    pub late_ms: f64,
    /// Number of clients whose addresses were exchanged. Fewer than all if the step ended first.
    pub rotated: u64,
    /// Number of addresses that are live now.
    pub live: u64,
    /// Only if it was late while it had the processor: the number of clients that a step is long
    /// enough for, extrapolated from this step's work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients_carried: Option<u64>,
}
