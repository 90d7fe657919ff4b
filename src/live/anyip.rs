//! AnyIP: a route of type `local` for a whole prefix, through which the kernel accepts packets for
//! every address in it.
//!
//! It costs the same for any number of addresses. But the kernel answers Neighbour Solicitations
//! only for addresses that an interface has, so neighbours need a route to the prefix. And every
//! address in it answers ping and port scans, live or not.

use std::net::Ipv6Addr;

use anyhow::{Context, Result, bail, ensure};

use super::{Binder, Interrupted, Phases, Progress, Timed, Told};
use crate::address::Prefix;
use crate::net::netlink::{Connection, Link, Vrf};

/// Adds one route.
pub(super) struct AnyIp {
    socket: Connection,
    prefix: Prefix,
    /// Index of the loopback interface, through which such a route leads.
    loopback: u32,
    /// The VRF whose table holds the route, if the interface is in one.
    vrf: Option<Vrf>,
    /// Index of the interface that packets come from. The kernel does not check it; it identifies
    /// leftovers.
    index: u32,
}

impl AnyIp {
    /// For addresses under `prefix`.
    pub fn new(link: &Link, prefix: Prefix) -> Result<Self> {
        let mut socket = Connection::open()?;
        // A route for a subnet of this machine would hide all its neighbours.
        let own = socket.addresses(link.index)?;
        if let Some(own) = own.iter().find(|own| own.prefix_length < 128 && prefix.contains(own.ip))
        {
            bail!(
                "{prefix} holds {}/{} of {}, whose neighbours would be cut off: for anyip use a \
                 prefix of its own, and \
                 give the neighbours a route to it",
                own.ip,
                own.prefix_length,
                link.name
            );
        }
        let loopback = socket.link("lo").context("anyip needs the loopback interface")?.index;
        let vrf = socket.vrf(link.index)?;
        Ok(Self { socket, prefix, loopback, vrf, index: link.index })
    }
}

/// Removes the routes that were added for `link`.
pub(super) fn remove_leftovers(link: &Link) -> Result<()> {
    let mut socket = Connection::open()?;
    let vrf = socket.vrf(link.index)?;
    for prefix in socket.our_local_routes(vrf, link.index)? {
        socket
            .remove_local_route(prefix, vrf, link.index)
            .with_context(|| format!("cannot remove what an earlier run left on {}", link.name))?;
    }
    Ok(())
}

impl Binder for AnyIp {
    fn bind(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<Phases> {
        let mut phases = Phases::default();
        let outside = phases
            .time("check", || addresses.iter().find(|address| !self.prefix.contains(**address)));
        if let Some(outside) = outside {
            bail!("{outside} is not under {}: nothing was bound", self.prefix);
        }
        ensure!(step(0), Interrupted);
        phases.time("route", || {
            self.socket.add_local_route(self.prefix, self.loopback, self.vrf, self.index)
        })?;
        step(addresses.len());
        Ok(phases)
    }

    fn unbind(&mut self, addresses: &[Ipv6Addr], told: &mut Told) -> Result<Phases> {
        let mut phases = Phases::default();
        phases
            .time("route", || self.socket.remove_local_route(self.prefix, self.vrf, self.index))?;
        told(addresses.len());
        Ok(phases)
    }

    fn lost(&mut self, addresses: &[Ipv6Addr]) -> Result<Vec<Ipv6Addr>> {
        let is_there = self.socket.our_local_routes(self.vrf, self.index)?.contains(&self.prefix);
        Ok(if is_there { Vec::new() } else { addresses.to_vec() })
    }

    fn seems_live(&mut self, one: Ipv6Addr) -> Result<bool> {
        self.socket.is_local(one, self.vrf)
    }

    fn exchange(&mut self, _: &[Timed], _: &[Timed]) -> Result<()> {
        bail!("every address of {} is live: none can move", self.prefix)
    }
}
