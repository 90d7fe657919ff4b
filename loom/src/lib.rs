//! THREAD ORDERS: loom runs the rings (src/xdp/ring.rs) and the timed table (src/address/timed.rs)
//! through every interleaving of two threads. It tries every value that an atomic may have under
//! the C11 memory model, so it finds a missing release that this machine would forgive.
//!
//! The files are the package's own, with loom's atomics and cells in place of the real ones. A
//! second thread plays the kernel's side of a ring.

#[allow(dead_code)]
#[path = "../../src/xdp/ring.rs"]
mod ring;
mod shared;
#[allow(dead_code)]
#[path = "../../src/address/timed.rs"]
mod timed;

pub mod rings;
pub mod table;

/// Runs `threads` in every order with at most three preemptions. No known fault of this kind needs
/// more (M. Musuvathi, S. Qadeer, PLDI 2007).
fn every_order(threads: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(threads);
}
