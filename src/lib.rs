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
//! It needs root, or the four capabilities that docs/operations.md names. docs/services.md shows
//! how to answer with code of one's own, and examples/ has an echo and a name server.
//!
//! What a program needs:
//!
//! - [`server`]: a whole server, its configuration, what it got and counted, and why it ends
//! - [`address`]: which addresses, and when
//! - [`live`]: the [methods](live::Method) of making them live
//! - [`service`]: what is answered
//! - [`engine`]: the ways for packets, and their options
//! - [`host`]: the secret's file, the time, the sandbox, and metrics
//!
//! Functions fail with enums. [`ServerError`](server::ServerError) says which part failed, and its
//! [`Cause`](server::Cause) why. Messages name causes and no flags of `sixhop`, since a program on
//! the library has none.
//!
//! Features: `cli` is the command line, `lab` measures and reports, `metrics` serves Prometheus.
//! All are on by default; `default-features = false` leaves what a server needs.
//!
//! The crate exports more than these pages show: the program, the tests and the benchmarks of this
//! package use it. None of that is promised. It may change in any version, so do not build on it.
//! docs/architecture.md has the map of all rooms.

pub mod address;
#[doc(hidden)]
#[cfg(feature = "cli")]
pub mod cli;
pub mod engine;
#[doc(hidden)]
pub mod events;
#[doc(hidden)]
#[cfg(feature = "lab")]
pub mod experiment;
#[doc(hidden)]
#[cfg(all(feature = "lab", any(test, feature = "fuzzing")))]
pub mod fuzz;
pub mod gate;
pub mod host;
#[doc(hidden)]
#[cfg(feature = "lab")]
pub mod lab;
pub mod live;
#[doc(hidden)]
#[cfg(feature = "lab")]
pub mod load;
#[cfg(test)]
mod names;
#[doc(hidden)]
pub mod net;
#[doc(hidden)]
pub mod policy;
#[doc(hidden)]
#[cfg(feature = "lab")]
pub mod probe;
#[doc(hidden)]
#[cfg(feature = "lab")]
pub mod report;
#[cfg(test)]
mod rooms;
#[cfg(all(doctest, feature = "cli"))]
#[doc = include_str!("../docs/services.md")]
mod services {}
pub mod server;
pub mod service;
#[doc(hidden)]
pub mod wire;
#[doc(hidden)]
pub mod xdp;
