//! WHAT THE KERNEL'S ROUTING SOCKET IS ASKED AND TOLD: links, addresses, routes and neighbours.
//!
//! Everything here is synchronous and acts in the network namespace of the calling thread. The
//! kernel answers a request before the send returns, so there is nothing to wait for and no runtime
//! to hide: one plain socket sends messages and reads the answers. It belongs to the namespace in
//! which it was opened, whatever thread uses it later.
//!
//! Reading needs no privilege, changing needs CAP_NET_ADMIN. Nothing is sent to the network from
//! here, but the kernel sends a Neighbour Solicitation when [`resolve`] asks it to.

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
pub use route::{Delivery, Route, TableRoute, on_link_prefixes, route, route_in, routes};
pub(crate) use socket::{Connection, KernelError};

/// What says that an address or a route is ours: the IFA_PROTO or rtm_protocol that [`crate::live`]
/// gives each one, so that a later run knows the leftovers of one that was killed (`ip -details
/// address`, from 6.4, and `ip -6 route show table local proto 102` show it). Kernels before 5.18
/// ignore that of an address.
pub const OUR_PROTOCOL: u8 = 0x66;
