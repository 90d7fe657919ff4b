//! ASKING: requests at a steady rate, whatever the server does, and a ledger of what came back.
//!
//! The generator is an open loop: request k is due k/rate seconds after the start, and its time counts from then, not
//! from when it was sent. A generator that waited for the server, or that forgave its own delays, would hide the server's
//! worst moments ("coordinated omission").
//!
//! ```text
//!   Schedule: which is due ─► Template: its bytes ─► tx ··· rx ─► validate ─► Ledger: whose reply, how late, intact?
//! ```

mod afxdp;
mod ledger;
mod schedule;

pub use afxdp::{Generator, LoadConfig, Run};
pub use ledger::{Ledger, Outcome};
pub use schedule::Schedule;
