//! Sixhop answers IPv6 requests on very many, constantly changing addresses, without the kernel's
//! network stack in the way, and measures what that is worth.
//!
//! A whole server, on an interface whose addresses it makes live and takes back:
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//!
//! use sixhop::address::Pool;
//! use sixhop::bind::Method;
//! use sixhop::engine::{EngineKind, Occasion, Server, ServerConfig};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = Pool::new("2001:db8:1::/64".parse()?, 1_000, 1)?;
//!     let config = ServerConfig {
//!         engine: Some(EngineKind::Afxdp),
//!         port: 3540,
//!         ..ServerConfig::hold("eth1".to_owned(), pool, Method::LiveMap)
//!     };
//!     let server = Server::start(&config, &mut |_bound| true)?;
//!     println!("{} addresses are live; got {:?}", server.ready().addresses, server.ready().modes);
//!     let stop = AtomicBool::new(false); // set it from a signal handler
//!     let show = |occasion: Occasion| {
//!         if let Occasion::Stats(stats) = occasion {
//!             println!("{} requests answered", stats.counters.answered);
//!         }
//!     };
//!     server.run(&stop, show, &mut |_gone| ())?;
//!     Ok(())
//! }
//! ```
//!
//! It needs root, or the four capabilities that docs/operations.md names. Features: `cli` is the
//! command line, `lab` measures and reports, `metrics` serves Prometheus. All are on by default;
//! `default-features = false` leaves what a server needs.
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
//! `cli` turns flags into calls of the rest.

pub mod address;
pub mod bind;
#[cfg(feature = "cli")]
pub mod cli;
mod datagrams;
pub mod engine;
#[cfg(feature = "lab")]
pub mod experiment;
#[cfg(all(feature = "lab", any(test, feature = "fuzzing")))]
pub mod fuzz;
#[cfg(feature = "cli")]
pub mod guard;
#[cfg(feature = "lab")]
pub mod lab;
#[cfg(feature = "lab")]
pub mod load;
pub mod machine;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod netlink;
#[cfg(feature = "lab")]
pub mod probe;
pub mod report;
pub mod secret;
mod settings;
pub mod time;
pub mod wire;
pub mod xdp;
