//! WHICH addresses: a prefix, and the pool of addresses that server and client derive from the same flags.
//!
//! Pure: no I/O, no clock, no state. It builds and is tested anywhere.

mod pool;
mod prefix;

pub use pool::{Pool, PoolError};
pub use prefix::{Prefix, PrefixError};
