//! What many runs come to: the summaries that `experiment` prints, and `report` shows.

pub mod bind;
pub mod response;
pub mod rotation;
