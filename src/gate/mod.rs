//! THIS MACHINE'S OWN SERVICES on moving addresses, and the client's side of them. A tc program
//! hands packets for a live address to the listener of a service, and everybody else meets silence.
//!
//! ```text
//!   NIC ─► gate_in ─► mark ─► the kernel's own stack ─► a service that listens on this machine
//!   NIC ◄─ gate_out ◄──────── the kernel's own stack ◄─ its reply
//! ```
//!
//! Nothing is proxied or translated for TCP. The kernel accepts what the program marked
//! ([`netlink::Delivery`](crate::net::netlink::Delivery)), and nothing else under the prefix.

mod config;
mod listeners;
mod opened;
mod program;
#[cfg(feature = "cli")]
pub mod resolver;
mod running;

pub use config::{GateConfig, GateError, ServiceFault};
pub use opened::Gate;
pub use program::{
    Arrival, Arrivals, GateAttachment, GateProgram, GateProgramConfig, GateService, GateSide,
    GateVerdict, GateVerdictSource, Protocol, TestRun,
};
pub use running::GateNews;
