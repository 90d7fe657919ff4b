//! Summaries of many runs, which `experiment` prints and `report` shows.

pub mod bind;
pub mod response;
pub mod rotation;
