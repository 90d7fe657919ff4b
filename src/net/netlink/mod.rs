//! ROUTING NETLINK: queries and changes of links, addresses, routes and neighbours.
//!
//! Everything here is synchronous and acts in the network namespace of the calling thread. The
//! kernel answers a request before the send returns, so there is nothing to wait for and no need
//! for an async runtime: one plain socket sends messages and reads the answers. A socket stays in
//! the namespace where it was opened, whichever thread uses it later.
//!
//! Reading needs no privilege; changing needs CAP_NET_ADMIN. This code sends nothing to the
//! network, but the kernel sends Neighbour Solicitations when [`resolve`] asks it to.

mod address;
mod link;
mod neighbour;
mod route;
mod socket;

pub use crate::events::{AttachMode, AttachedProgram};
pub use address::{Address, KernelAddresses, addresses};
pub(crate) use address::{AddressLosses, address_message};
pub(crate) use link::name_of;
pub use link::{
    ARPHRD_ETHER, ARPHRD_LOOPBACK, ARPHRD_NONE, Link, Vrf, is_ethernet, link, link_at, links, peer,
    set_up, vrf, wait_for_carrier,
};
pub use neighbour::{resolve, resolve_any, set_neighbour};
pub use route::{Delivery, Opener, Route, TableRoute, on_link_prefixes, route, route_in, routes};
pub(crate) use socket::{Connection, KernelError};

/// Marks an address or a route as ours: the IFA_PROTO or rtm_protocol that [`crate::live`] sets on
/// each one. It lets a later run recognise what a killed one left. `ip -details address` shows it
/// from 6.4 on, and so does `ip -6 route show table local proto 102`. Kernels before 5.18 ignore it
/// on addresses.
pub const OUR_PROTOCOL: u8 = 0x66;
