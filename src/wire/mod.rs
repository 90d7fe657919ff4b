//! BYTES: what a request looks like, when it may be answered as far as its bytes tell, and how it becomes a reply.
//!
//! Pure: no I/O, no clock, no allocation. It builds and is tested anywhere.

mod reply;
mod request;
mod stamp;

pub use reply::HOP_LIMIT;
pub use request::{MAX_PAYLOAD, OVERHEAD, Refusal, Request, validate};
pub use stamp::{Endpoints, MIN_PAYLOAD, Stamp, Template};
