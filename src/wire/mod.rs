//! BYTES: what a request looks like, when it may be answered as far as its bytes tell, and how it
//! becomes a reply; and the same of a Neighbour Solicitation, and the advertisement of a multicast
//! router.
//!
//! Pure: no I/O, no clock, no allocation. It builds and is tested anywhere.

mod mrd;
mod ndp;
mod reply;
mod request;
mod stamp;
mod unasked;

pub use mrd::{
    ADVERTISEMENT_INTERVAL, INITIAL_COUNT, INITIAL_INTERVAL, router_advertisement,
    router_termination,
};
pub use ndp::{ADVERTISEMENT, Solicitation, solicitation};
pub use reply::{HOP_LIMIT, join};
pub use request::{MAX_PAYLOAD, OVERHEAD, Refusal, Request, validate, validate_within};
pub use stamp::{Endpoints, MIN_PAYLOAD, Stamp, Template};
pub use unasked::{Ends, emit};

/// A right solicitation for `target`, from a neighbour at 2001:db8:1::1, for the tests of other
/// rooms.
#[cfg(test)]
pub(crate) fn solicitation_frame(target: std::net::Ipv6Addr) -> Vec<u8> {
    let source = std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    ndp::tests::build(source, target, 255, target, &[1, 1, 2, 0, 0, 0, 0, 1])
}
