//! Experiments: servers started, loads put on them, figures found. What they find goes to `report`.
//!
//! An experiment starts servers as processes of their own, by the command line that anybody else would use, and asks them
//! with the generator of `load` from this process.

mod bind;
mod compare;
mod machine;
mod search;
mod server;

pub use bind::bound;
pub use compare::{CompareConfig, Progress, compare};
