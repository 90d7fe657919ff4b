//! BYTES: parses and validates requests, and turns them into replies. Does the same for Neighbour
//! Solicitations, and builds the advertisements of a multicast router.
//!
//! Pure: no I/O, no clock, and no allocation for requests, replies and solicitations. It builds and
//! runs its tests on any platform.

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

/// A valid solicitation for `target` from 2001:db8:1::1, for tests in other rooms.
#[cfg(test)]
pub(crate) fn solicitation_frame(target: std::net::Ipv6Addr) -> Vec<u8> {
    let source = std::net::Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
    ndp::tests::build(source, target, 255, target, &[1, 1, 2, 0, 0, 0, 0, 1])
}
