//! What a plan must know about the machine: read once, before anything changes.

use std::net::Ipv6Addr;

use anyhow::Result;

use super::{ServerConfig, checks};
use crate::address::Prefix;
use crate::host::{self, Nearness};
use crate::net::ethtool::{self, QueueCounts};
use crate::net::netlink::{self, Connection, Link, TableRoute};
use crate::xdp::stacked;

/// An interface, and the machine around it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The interface.
    pub link: Link,
    /// All interfaces of its namespace.
    pub links: Vec<Link>,
    /// Its driver; empty if unknown.
    pub driver: String,
    /// Why it has no IPv6, and what to do about that.
    pub no_ipv6: Option<String>,
    /// Whether it is in a VRF.
    pub in_vrf: bool,
    /// Its own queues.
    pub queues: QueueCounts,
    /// Receive queues on which packets may arrive: more than its own if it is stacked on others.
    pub receiving: u32,
    /// The on-link prefixes; empty if the configuration says who may ask.
    pub on_link: Vec<Prefix>,
    /// Its addresses, except those that a server added.
    pub own: Vec<Ipv6Addr>,
    /// The routes that packets from it meet; only read if the server takes the prefix.
    pub routes: Vec<TableRoute>,
    /// Processors that this process may use.
    pub processors: Vec<usize>,
    /// The processors near the interface.
    pub nearness: Nearness,
    /// Bytes of memory that can be spared; `None` if unknown.
    pub spare_memory: Option<u64>,
}

impl Found {
    /// What `config` needs to know about `link`, in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the kernel cannot be asked, or the interface disappeared.
    pub fn of(link: Link, config: &ServerConfig) -> Result<Self> {
        let mut socket = Connection::open()?;
        let no_ipv6 = host::has_ipv6(&link).err().map(|why| why.to_string());
        // Without IPv6, queries about it would fail.
        let has_ipv6 = no_ipv6.is_none();
        // Now, because a bind that sets the link down removes its routes.
        let on_link = match config.allow {
            None if has_ipv6 => netlink::on_link_prefixes(link.index)?,
            _ => Vec::new(),
        };
        let takes_prefix = has_ipv6 && checks::takes_prefix(config);
        let routes = if takes_prefix { socket.routes(link.index)? } else { Vec::new() };
        let own = if has_ipv6 { socket.addresses(link.index)? } else { Vec::new() };
        Ok(Self {
            links: socket.links()?,
            driver: ethtool::driver(&link.name)?,
            no_ipv6,
            in_vrf: socket.vrf(link.index)?.is_some(),
            queues: ethtool::queue_counts(&link.name)?,
            receiving: stacked::queues(&link)?,
            on_link,
            own: own.into_iter().filter(|address| !address.ours).map(|a| a.ip).collect(),
            routes,
            processors: host::allowed(),
            nearness: Nearness::of(&link),
            spare_memory: host::memory_to_spare(),
            link,
        })
    }

    /// The bridge, bond or VRF that it is a port of.
    pub fn above(&self) -> Option<&Link> {
        self.links.iter().find(|above| Some(above.index) == self.link.master)
    }
}
