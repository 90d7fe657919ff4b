//! Addresses of interfaces, and the kernel's announcements about them.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NetlinkPayload};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::OUR_PROTOCOL;
use super::socket::Connection;

/// An IPv6 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv6Addr,
    /// Length of its prefix, in bits.
    pub prefix_length: u8,
    /// Whether it carries [`OUR_PROTOCOL`].
    pub ours: bool,
    /// Whether Duplicate Address Detection is still running for it (IFA_F_TENTATIVE): it is not
    /// live yet.
    pub tentative: bool,
}

/// The IPv6 addresses of the interface with that index.
///
/// # Errors
/// When there is no such interface.
pub fn addresses(index: u32) -> Result<Vec<Address>> {
    Connection::open()?.addresses(index)
}

/// The kernel's IPv6 addresses on every interface of the namespace, except those that
/// [`crate::live`] added; and announcements of changes.
#[derive(Debug)]
pub struct KernelAddresses {
    announced: Connection,
    /// A separate socket, so that answers do not mix with announcements.
    asked: Connection,
}

impl KernelAddresses {
    /// Starts listening.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn watch() -> Result<Self> {
        let announced = Connection::open()?;
        let group = MulticastGroup::Ipv6Ifaddr as u32;
        announced.socket.add_membership(group).context("cannot listen for kernel announcements")?;
        Ok(Self { announced, asked: Connection::open()? })
    }

    /// Lists the current addresses.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn read(&mut self) -> Result<Vec<Ipv6Addr>> {
        let addresses = self.asked.addresses(0)?;
        Ok(addresses
            .into_iter()
            .filter(|address| !address.ours)
            .map(|address| address.ip)
            .collect())
    }

    /// Waits up to `limit` for a change, and returns whether there was one.
    ///
    /// # Errors
    /// When the kernel cannot be listened to.
    pub fn changed(&mut self, limit: Duration) -> Result<bool> {
        let any = |_: &RouteNetlinkMessage| true; // this socket receives no other announcements
        self.announced
            .wait_for(any, Instant::now() + limit)
            .map_err(|refusal| refusal.explain("listen for kernel announcements"))
    }
}

/// Watches for IPv6 addresses that an interface loses.
#[derive(Debug)]
pub(crate) struct AddressLosses {
    announced: Connection,
    index: u32,
}

impl AddressLosses {
    /// Starts listening for announcements about the interface with that index.
    pub fn watch(index: u32) -> Result<Self> {
        let announced = Connection::open()?;
        let group = MulticastGroup::Ipv6Ifaddr as u32;
        announced.socket.add_membership(group).context("cannot listen for kernel announcements")?;
        Ok(Self { announced, index })
    }

    /// Whether an address for which `is_ours` holds went away since the last call. Also true if the
    /// kernel dropped announcements, as one may have gone unseen. Does not wait.
    pub fn heard(&mut self, is_ours: impl Fn(Ipv6Addr) -> bool) -> bool {
        let mut heard = false;
        while let Ok(true) = self.announced.wait(Instant::now()) {
            match self.announced.receive() {
                Ok(events) => {
                    heard |= events.into_iter().any(|event| match event.payload {
                        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(message)) => {
                            message.header.index == self.index
                                && new_address(&message).is_some_and(|address| is_ours(address.ip))
                        }
                        _ => false,
                    });
                }
                Err(refusal) => {
                    heard = true;
                    if refusal.code != Errno::ENOBUFS {
                        break;
                    }
                }
            }
        }
        heard
    }
}

impl Connection {
    /// The IPv6 addresses of the interface with that index, or of all interfaces if it is 0.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>> {
        let mut query = AddressMessage::default();
        query.header.family = AddressFamily::Inet6;
        query.header.index = index;
        let answers =
            self.ask(RouteNetlinkMessage::GetAddress(query), NLM_F_DUMP).map_err(|refusal| {
                refusal.explain(format_args!("list the addresses of interface {index}"))
            })?;
        let here = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message)
                if index == 0 || message.header.index == index =>
            {
                new_address(&message)
            }
            _ => None,
        });
        Ok(here.collect())
    }

    /// Adds `ip` to the interface with that index, without Duplicate Address Detection, so that it
    /// is live at once.
    #[cfg_attr(not(feature = "lab"), allow(dead_code))]
    pub fn add_address(&mut self, index: u32, ip: Ipv6Addr, prefix_length: u8) -> Result<()> {
        let mut message = address_message(index, ip, prefix_length);
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.tell_one(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|refusal| refusal.explain(format_args!("add {ip}/{prefix_length}")))
    }
}

/// The body of a message that adds or removes `ip`.
pub(crate) fn address_message(index: u32, ip: Ipv6Addr, prefix_length: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet6;
    message.header.index = index;
    message.header.prefix_len = prefix_length;
    message.header.scope = AddressScope::Universe;
    message.attributes.push(AddressAttribute::Local(IpAddr::V6(ip)));
    message
}

fn new_address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut ours = false;
    let mut tentative = false;
    for attribute in &message.attributes {
        match attribute {
            // If both attributes exist, this one is the peer's address.
            AddressAttribute::Address(IpAddr::V6(address)) => ip = ip.or(Some(*address)),
            AddressAttribute::Local(IpAddr::V6(address)) => ip = Some(*address),
            AddressAttribute::Protocol(AddressProtocol::Other(OUR_PROTOCOL)) => ours = true,
            AddressAttribute::Flags(flags) => tentative = flags.contains(AddressFlags::Tentative),
            _ => {}
        }
    }
    Some(Address { ip: ip?, prefix_length: message.header.prefix_len, ours, tentative })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_no_interface_are_an_error() {
        let error = addresses(i32::MAX as u32).unwrap_err().to_string();
        assert!(error.ends_with("no such interface here"), "{error}");
    }
}
