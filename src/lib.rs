//! Sixhop answers IPv6 requests on very many, constantly changing addresses, without the kernel's
//! network stack in the way, and measures what that is worth.
//!
//! A whole server, on an interface whose addresses it makes live and takes back:
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//!
//! use sixhop::address::Pool;
//! use sixhop::live::Method;
//! use sixhop::engine::EngineKind;
//! use sixhop::server::{Occasion, Server, ServerConfig};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = Pool::new("2001:db8:1::/64".parse()?, 1_000, 1)?;
//!     let config = ServerConfig {
//!         engine: Some(EngineKind::AFXDP),
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
//! packet    NIC queue ─► bpf/steer ─► xdp ─► wire::validate ─► policy ─► wire (in place)
//!              ─► xdp ─► NIC
//! address   address (which) ─► live (make it so: kernel | steering map)
//!              ─► live set, seen by bpf and by the kernel
//! number    load (open loop, ledger) ─► experiment (searches, runs) ─► events (one schema)
//!              ─► report
//! ability   xdp::capability (what an interface can do)
//!              ─► probe (what a server would get on it, and why not more)
//! ```
//!
//! [`address`], [`wire`], [`events`] and `report` are pure. `unsafe` is in [`xdp`], in [`net`], in
//! the ring of the engine `uring`, and in single system calls of [`engine`], [`live`] and [`host`].
//! `cli` turns flags into calls of the rest.
//!
//! The rooms stand in an order, and each uses only those before it: [`wire`], [`address`],
//! [`events`], [`net`], [`host`], [`xdp`], [`live`], [`policy`], [`engine`], [`server`], [`gate`],
//! `load`, `lab`, `probe`, `experiment`, `report`, `cli`. A test holds it.

pub mod address;
#[cfg(feature = "cli")]
pub mod cli;
pub mod engine;
pub mod events;
#[cfg(feature = "lab")]
pub mod experiment;
#[cfg(all(feature = "lab", any(test, feature = "fuzzing")))]
pub mod fuzz;
pub mod gate;
pub mod host;
#[cfg(feature = "lab")]
pub mod lab;
pub mod live;
#[cfg(feature = "lab")]
pub mod load;
pub mod net;
pub mod policy;
#[cfg(feature = "lab")]
pub mod probe;
#[cfg(feature = "lab")]
pub mod report;
#[cfg(test)]
mod rooms;
pub mod server;
pub mod service;
pub mod wire;
pub mod xdp;
