//! RTM_NEWADDR and RTM_DELADDR: what the paper measures. The methods differ in how many messages
//! one system call sends.

use std::net::Ipv6Addr;

use anyhow::{Context, Result};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressProtocol, CacheInfo,
};

use super::kernel::{Channel, NotAdded, Routing};
use crate::address::Pool;
use crate::net::netlink::{self, Connection, KernelError, Link, OUR_PROTOCOL};

/// Messages in one system call. The kernel's work for each address dominates, so a larger batch
/// saves nothing. But the stop flag is checked only between batches, and with 10,000 addresses one
/// batch takes a third of a second. A batch also fits into the smallest common socket buffers, 208
/// KiB: 60 bytes for each message, and at worst as many refusals of under 1 KiB.
pub(super) const BATCH: usize = 128;

/// Without Duplicate Address Detection an address is live at once. Without a prefix route it costs
/// a tenth less: the prefix of a /128 is the address itself, which has a route anyway.
const FLAGS: AddressFlags = AddressFlags::Nodad.union(AddressFlags::Noprefixroute);

/// Lifetime in seconds (68 years) of an address that must go when the link is set down: the kernel
/// keeps those with infinite lifetime.
const LIFETIME: u32 = i32::MAX as u32;

/// Sends messages, `batch` at a time.
pub(super) struct Messages<R = Connection> {
    socket: R,
    index: u32,
    name: String,
    batch: usize,
    lifetime: Option<CacheInfo>,
}

impl Messages {
    pub fn new(link: &Link, batch: usize) -> Result<Self> {
        Ok(Self::over(Connection::open()?, link.index, &link.name, batch))
    }
}

impl<R: Routing> Messages<R> {
    pub(super) fn over(socket: R, index: u32, name: &str, batch: usize) -> Self {
        Self { socket, index, name: name.to_owned(), batch, lifetime: None }
    }

    /// The interface's current name. Uses the open socket, because a thread that moves addresses
    /// cannot open one.
    fn name(&mut self) -> String {
        let link = self.socket.link_at(self.index).ok().flatten();
        link.map_or_else(|| self.name.clone(), |link| link.name)
    }

    /// The same for addresses that go when the link is set down, even if others stay.
    pub fn of_finite_lifetime(self) -> Self {
        let mut lifetime = CacheInfo::default();
        (lifetime.ifa_preferred, lifetime.ifa_valid) = (LIFETIME, LIFETIME);
        Self { lifetime: Some(lifetime), ..self }
    }
}

/// Removes the addresses with our mark and those of `unmarked`, and returns their number.
pub(super) fn remove_leftovers(link: &Link, unmarked: Option<&Pool>) -> Result<usize> {
    let mut messages = Messages::new(link, BATCH)?;
    let mut addresses = messages.socket.addresses(link.index)?;
    addresses
        .retain(|address| address.ours || unmarked.is_some_and(|pool| pool.contains(address.ip)));
    let leftovers: Vec<_> = addresses.iter().map(|address| address.ip).collect();
    messages
        .remove(&leftovers)
        .with_context(|| format!("cannot remove what an earlier run left on {}", link.name))?;
    Ok(leftovers.len())
}

impl<R: Routing> Channel for Messages<R> {
    fn batch(&self) -> usize {
        self.batch
    }

    fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), NotAdded> {
        let index = self.index;
        let messages = addresses.iter().map(|&address| {
            let mut message = netlink::address_message(index, address, 128);
            message.attributes.push(AddressAttribute::Flags(FLAGS));
            message
                .attributes
                .push(AddressAttribute::Protocol(AddressProtocol::from(OUR_PROTOCOL)));
            message.attributes.extend(self.lifetime.map(AddressAttribute::CacheInfo));
            (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
        });
        let (added, address, refusal, others) = match self.socket.tell(messages) {
            Ok(refused) => match refused.first() {
                None => return Ok(()),
                Some((position, refusal)) => {
                    let taken = refused.iter().filter(|(_, refusal)| refusal.code == Errno::EEXIST);
                    let others = taken.map(|(position, _)| addresses[*position]).collect();
                    let added = addresses.len() - refused.len();
                    (added, addresses[*position], refusal.clone(), others)
                }
            },
            Err(refusal) => (0, addresses[0], refusal, Vec::new()),
        };
        let why = refusal.explain(format!("add {address} to {}", self.name()));
        Err(NotAdded { why, added, others })
    }

    fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let mut done = Ok(());
        for batch in addresses.chunks(self.batch) {
            let index = self.index;
            let messages = batch.iter().map(|&address| {
                let message = netlink::address_message(index, address, 128);
                (RouteNetlinkMessage::DelAddress(message), 0)
            });
            let refused = self.socket.tell(messages);
            let mut cannot_remove = |address| format!("remove {address} from {}", self.name());
            let refused = match refused {
                Ok(refused) => refused,
                Err(refusal) => {
                    done = done.and(Err(refusal.explain(cannot_remove(batch[0]))));
                    continue;
                }
            };
            let is_gone = |refusal: &KernelError| {
                matches!(refusal.code, Errno::EADDRNOTAVAIL | Errno::ENODEV)
            };
            if let Some((position, refusal)) =
                refused.into_iter().find(|(_, refusal)| !is_gone(refusal))
            {
                done = done.and(Err(refusal.explain(cannot_remove(batch[position]))));
            }
        }
        done
    }
}
