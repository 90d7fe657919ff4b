//! What people get to see of results: tables, charts and the page, made of the lines of
//! [`events`](crate::events).
//!
//! Pure: numbers and their names come in, text goes out.

pub mod bind;
pub mod chart;
pub mod page;
pub mod response;
pub mod rotation;
