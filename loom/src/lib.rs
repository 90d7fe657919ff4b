//! THE ORDERS THAT THREADS MAY COME IN, all of them: loom runs the rings (src/xdp/ring.rs) and the
//! timed table (src/address/timed.rs) through every interleaving of two threads, and through every
//! value that an atomic may show under the memory model of C11. So it finds a missing release where
//! the machine that runs the tests would forgive it.
//!
//! The files are the package's own, with loom's atomics and cells in place of the real ones. The
//! kernel's side of a ring is another thread.

#[allow(dead_code)]
#[path = "../../src/xdp/ring.rs"]
mod ring;
mod shared;
#[allow(dead_code)]
#[path = "../../src/address/timed.rs"]
mod timed;

pub mod rings;
pub mod table;

/// Runs `threads` in every order with at most three preemptions: what more would show, none of the
/// known faults of this kind needs (M. Musuvathi, S. Qadeer, PLDI 2007).
fn every_order(threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(threads);
}
