//! The load generator: sends requests at a steady rate, whatever the server does, and accounts for
//! every reply.
//!
//! The generator is an open loop: request k is due k/rate seconds after the start, and its response
//! time counts from then, not from when it left. A generator that waited for the server, or forgave
//! its own delays, would hide the server's worst moments ("coordinated omission").
//!
//! ```text
//!                              ┌─ rings:  Template, tx ··· rx, validate ──┐
//!   SendSchedule: due now ─► Transport                                    ├─► Ledger
//!                              └─ socket: sendmmsg ··· recvmmsg ──────────┘
//!   Ledger: whose reply, how late, intact?
//! ```

mod generator;
mod ledger;
mod rings;
mod schedule;
mod socket;
mod transport;
mod unanswered;

pub use crate::events::LoadClient;
pub use generator::{Generator, Run};
pub use ledger::{Aim, Ledger, Outcome};
pub use schedule::SendSchedule;
pub use transport::LoadConfig;
pub use unanswered::{Heard, UNFINISHED, cause, nothing_came};
