//! Sixhop answers IPv6 requests on very many, constantly changing addresses, without the kernel's
//! network stack in the way, and measures what that is worth.
//!
//! The map of the crate, by what travels through it:
//!
//! ```text
//! packet    NIC queue ─► bpf/steer ─► xdp ─► wire::validate ─► engine ─► wire (in place) ─► xdp ─► NIC
//! address   address (which) ─► bind (make it live: kernel | steering map) ─► live set, seen by bpf and by the kernel
//! number    load (open loop, ledger) ─► experiment (searches, runs) ─► report (one schema, charts)
//! ability   xdp::capability (what an interface can do) ─► probe (what a server would get on it, and why not more)
//! ```
//!
//! [`address`], [`wire`] and [`report`] are pure. `unsafe` is in [`xdp`], in `datagrams`, in the
//! ring of the engine `uring`, and in single system calls of [`engine`], [`bind`] and [`machine`].
//! [`cli`] turns flags into calls of the rest.

pub mod address;
pub mod bind;
pub mod cli;
mod datagrams;
pub mod engine;
pub mod experiment;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod guard;
pub mod lab;
pub mod load;
pub mod machine;
pub mod metrics;
pub mod netlink;
pub mod probe;
pub mod report;
pub mod secret;
pub mod service;
mod settings;
pub mod time;
pub mod wire;
pub mod xdp;
