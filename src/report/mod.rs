//! Presents results to people: tables, charts and the page, made from the lines of
//! [`events`](crate::events).
//!
//! Pure: numbers and names in, text out.

pub mod bind;
pub mod chart;
pub mod page;
pub mod response;
pub mod rotation;
