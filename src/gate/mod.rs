//! THIS MACHINE'S OWN SERVICES ON MOVING ADDRESSES: a tc program hands packets for a live address
//! to the listener of a service, and everybody else meets silence.
//!
//! ```text
//!   NIC ─► gate_in ─► mark ─► the kernel's own stack ─► a service that listens on this machine
//!   NIC ◄─ gate_out ◄──────── the kernel's own stack ◄─ its reply
//! ```
//!
//! Nothing is proxied or translated for TCP. The kernel takes what the program marked
//! ([`netlink::Delivery`](crate::net::netlink::Delivery)), and nothing else under the prefix.

mod program;

pub use program::{
    Arrival, Arrivals, GateAttachment, GateConfig, GateProgram, Outcome, OutcomeSource, Protocol,
    Service, Side, TestRun,
};
