//! Routes, and the delivery of what is for addresses that the kernel has not.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::OUR_PROTOCOL;
use super::link::{Link, Vrf};
use super::socket::{Connection, KernelError};
use crate::address::Prefix;

/// The way to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface to send from.
    pub interface: u32,
    /// The router to hand packets to; none where the destination is on the link itself.
    pub gateway: Option<Ipv6Addr>,
    /// The source address that the kernel would choose.
    pub source: Ipv6Addr,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRoute {
    /// What it leads to.
    pub prefix: Prefix,
    /// Index of the interface to send from; `None` where there is more than one.
    pub interface: Option<u32>,
    /// Whether its hosts are on the link itself, without a router between.
    pub on_link: bool,
}

/// The routes for unicast that packets from the interface with that index meet: the main table's,
/// or those of its VRF.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn routes(index: u32) -> Result<Vec<TableRoute>> {
    Connection::open()?.routes(index)
}

/// Has the kernel take packets from one interface for addresses under a prefix for its own, without
/// having them: a rule for those from there that have a mark, and a table of its own with a `local`
/// route. What the machine itself sends there still goes to the neighbours, and no Neighbour
/// Solicitation is answered for it.
///
/// Only the tc program behind the XDP program sets the mark (bpf/backstop.h), on what is for a live
/// address. Where that has gone, or a packet has got around it, the prefix is none of the kernel's.
///
/// The route lives for some seconds and is renewed: after a process that was killed the kernel
/// forgets it, and a rule without a route does nothing. Dropping this takes both back.
#[derive(Debug)]
pub struct Delivery {
    socket: Connection,
    /// Hears of each change of the interface.
    announced: Connection,
    interface: String,
    index: u32,
    prefix: Prefix,
    table: u32,
    renew: Instant,
}

impl Delivery {
    /// The mark and which of a packet's bits are looked at for it: MARK and MARK_MASK of
    /// bpf/backstop.h.
    const MARK: (u32, u32) = (0x6668_0000, 0xffff_0000);

    /// How long the route lives, in seconds, and how often it is renewed.
    const LIFETIME: u32 = 10;
    const PERIOD: Duration = Duration::from_secs(2);

    fn new(link: &Link, prefix: Prefix) -> Result<Self> {
        let announced = Connection::open()?;
        let group = MulticastGroup::Link as u32;
        announced.socket.add_membership(group).context("cannot listen to the kernel")?;
        Ok(Self {
            socket: Connection::open()?,
            announced,
            interface: link.name.clone(),
            index: link.index,
            prefix,
            // A number that nobody else will have thought of, and another for each interface.
            table: u32::from(OUR_PROTOCOL) << 24 | link.index,
            renew: Instant::now(),
        })
    }

    /// Removes what a process that was killed has left of it.
    ///
    /// # Errors
    /// When there is no socket.
    pub fn clear(link: &Link, prefix: Prefix) -> Result<()> {
        drop(Self::new(link, prefix)?);
        Ok(())
    }

    /// Begins it. What an earlier run left is removed.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, and when the kernel has no policy routing
    /// (CONFIG_IPV6_MULTIPLE_TABLES).
    pub fn begin(link: &Link, prefix: Prefix) -> Result<Self> {
        let mut delivery = Self::new(link, prefix)?;
        delivery.end();
        delivery.renew()?;
        delivery.add_rule().map_err(|refusal| match refusal.code {
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => {
                anyhow!(
                    "this kernel has no policy routing (CONFIG_IPV6_MULTIPLE_TABLES), which \
                     live-map needs"
                )
            }
            _ => refusal.explain(format_args!("have packets from {} delivered", link.name)),
        })?;
        Ok(delivery)
    }

    fn add_rule(&mut self) -> Result<(), KernelError> {
        let (mark, mask) = Self::MARK;
        let mut rule = self.rule();
        rule.attributes.extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
        self.socket.tell_one(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Renews what it has whenever the interface changes, and the route where it is time to, for at
    /// most `limit`.
    ///
    /// # Errors
    /// As [`renew`](Self::renew).
    pub fn keep(&mut self, limit: Duration) -> Result<()> {
        let index = self.index;
        let concerns = |event: &RouteNetlinkMessage| match event {
            RouteNetlinkMessage::NewLink(link) => link.header.index == index,
            _ => false,
        };
        let changed = self
            .announced
            .wait_for(concerns, Instant::now() + limit)
            .map_err(|refusal| refusal.explain("listen to the kernel"))?;
        if changed {
            self.follow()?;
            // The kernel drops the route when the link goes down, or IPv6 on it.
            self.renew = Instant::now();
        }
        self.renew()
    }

    /// Has the rule name the interface as it is called now.
    fn follow(&mut self) -> Result<()> {
        let Some(link) = self.socket.link_at(self.index)? else { return Ok(()) };
        if link.name == self.interface {
            return Ok(());
        }
        let old = RouteNetlinkMessage::DelRule(self.rule());
        self.interface = link.name;
        let added = self.add_rule();
        let _ = self.socket.tell_one(old, 0);
        added.map_err(|refusal| {
            refusal.explain(format_args!("have packets from {} delivered", self.interface))
        })
    }

    /// Renews the route where it is time to. To be called at least once a second.
    ///
    /// # Errors
    /// When the kernel refuses: while the link is down, say.
    pub fn renew(&mut self) -> Result<()> {
        let now = Instant::now();
        if now < self.renew {
            return Ok(());
        }
        self.renew = now + Self::PERIOD;
        let route = RouteNetlinkMessage::NewRoute(self.route());
        self.socket.tell_one(route, NLM_F_CREATE | NLM_F_REPLACE).map_err(|refusal| {
            refusal.explain(format_args!("have packets for {} delivered", self.prefix))
        })
    }

    fn route(&self) -> RouteMessage {
        let mut route = local_route(Some(self.prefix), Some(1));
        route.header.table = 0;
        route.attributes.extend([
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(self.index),
            RouteAttribute::Expires(Self::LIFETIME),
        ]);
        route
    }

    /// The rule for whatever mark: older versions made one that looked at none.
    fn rule(&self) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet6;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Iifname(self.interface.clone()),
            RuleAttribute::Table(self.table),
            RuleAttribute::Priority(OUR_PROTOCOL.into()),
            RuleAttribute::Protocol(RouteProtocol::from(OUR_PROTOCOL)),
        ];
        rule
    }

    /// Removes both, where they are.
    fn end(&mut self) {
        // Whoever has them gone already is welcome, and a destructor has nobody to tell of the
        // rest.
        let rule = RouteNetlinkMessage::DelRule(self.rule());
        while self.socket.tell_one(rule.clone(), 0).is_ok() {}
        let route = RouteNetlinkMessage::DelRoute(self.route());
        let _ = self.socket.tell_one(route, 0);
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.end();
    }
}

/// The prefixes whose hosts are on the link of the interface with that index, without a router
/// between: those of its addresses, and those of its routes that name no router. A default route is
/// none.
///
/// # Errors
/// When there is no such interface.
pub fn on_link_prefixes(index: u32) -> Result<Vec<Prefix>> {
    let mut socket = Connection::open()?;
    let addresses = socket.addresses(index)?.into_iter();
    let of_addresses = addresses
        .filter(|address| address.prefix_length < 128)
        .map(|address| Prefix::around(address.ip, address.prefix_length));
    let routes = socket.on_link_routes(index)?;
    Ok(of_addresses.chain(routes).filter(|prefix| prefix.length() > 0).collect())
}

/// How the kernel would send to `to`.
///
/// # Errors
/// When there is no route, or no address to send from.
pub fn route(to: Ipv6Addr) -> Result<Route> {
    Connection::open()?.route(to, None)
}

/// The same in a VRF, where there is one.
///
/// # Errors
/// As [`route`].
pub fn route_in(vrf: Option<Vrf>, to: Ipv6Addr) -> Result<Route> {
    Connection::open()?.route(to, vrf)
}

impl Connection {
    pub(super) fn route(&mut self, to: Ipv6Addr, vrf: Option<Vrf>) -> Result<Route> {
        let answers = self.ask(route_query(to, vrf), 0).map_err(|refusal| match refusal.code {
            Errno::ENETUNREACH | Errno::EHOSTUNREACH => {
                anyhow!(
                    "no route to {to}: give an interface an address in its prefix, or add a route"
                )
            }
            _ => refusal.explain(format_args!("find a route to {to}")),
        })?;
        let (mut interface, mut gateway, mut source) = (None, None, None);
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(route) = answer else {
                continue;
            };
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(index) => interface = Some(index),
                    RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(ip),
                    RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => source = Some(ip),
                    _ => {}
                }
            }
        }
        Ok(Route {
            interface: interface
                .with_context(|| format!("the route to {to} names no interface"))?,
            gateway,
            source: source.with_context(|| format!("no address to send to {to} from: add one"))?,
        })
    }

    /// Waits until the kernel receives for each of `addresses` of the interface with that index. It
    /// acknowledges an address before that: the local route is added by a worker of its own, after
    /// Duplicate Address Detection where there is one (addrconf_dad_work).
    ///
    /// # Errors
    /// When that takes longer than `timeout`.
    pub fn wait_for_local(
        &mut self,
        index: u32,
        addresses: &[Ipv6Addr],
        timeout: Duration,
    ) -> Result<()> {
        let give_up = Instant::now() + timeout;
        let vrf = self.vrf(index)?;
        for address in addresses {
            while !self.is_local(*address, vrf)? {
                ensure!(
                    Instant::now() < give_up,
                    "the kernel does not receive for {address} after {timeout:?}"
                );
                std::thread::sleep(Duration::from_millis(1)); // nothing announces it
            }
        }
        Ok(())
    }

    /// Whether packets to `address` are for this machine, in that VRF where there is one.
    pub fn is_local(&mut self, address: Ipv6Addr, vrf: Option<Vrf>) -> Result<bool> {
        let answers = self.ask(route_query(address, vrf), 0);
        Ok(answers.is_ok_and(|answers| {
            answers.iter().any(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => route.header.kind == RouteType::Local,
                _ => false,
            })
        }))
    }

    /// Has the kernel take all addresses under `prefix` for its own: a route of type `local`, with
    /// our mark, to the loopback interface with that index, or in a VRF to that one's own. Its
    /// metric is `mark`, which tells it from those of others.
    pub fn add_local_route(
        &mut self,
        prefix: Prefix,
        loopback: u32,
        vrf: Option<Vrf>,
        mark: u32,
    ) -> Result<()> {
        let mut message = in_table(local_route(Some(prefix), Some(mark)), vrf);
        message.attributes.push(RouteAttribute::Oif(vrf.map_or(loopback, |vrf| vrf.index)));
        self.tell_one(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL).map_err(
            |refusal| match refusal.code {
                Errno::EEXIST => {
                    anyhow!("there is a local route for {prefix} already: nothing was bound")
                }
                _ => refusal.explain(format_args!("add a local route for {prefix}")),
            },
        )
    }

    /// Removes what [`Connection::add_local_route`] made, unless it is gone already.
    pub fn remove_local_route(
        &mut self,
        prefix: Prefix,
        vrf: Option<Vrf>,
        mark: u32,
    ) -> Result<()> {
        let message = in_table(local_route(Some(prefix), Some(mark)), vrf);
        match self.tell_one(RouteNetlinkMessage::DelRoute(message), 0) {
            Err(refusal) if refusal.code != Errno::ESRCH => {
                Err(refusal.explain(format_args!("remove the local route for {prefix}")))
            }
            _ => Ok(()),
        }
    }

    /// The prefixes of the local routes with our protocol and this `mark`, in that VRF where there
    /// is one.
    pub fn our_local_routes(&mut self, vrf: Option<Vrf>, mark: u32) -> Result<Vec<Prefix>> {
        let query = RouteNetlinkMessage::GetRoute(in_table(local_route(None, None), vrf));
        let answers = match self.ask(query, NLM_F_DUMP) {
            // no such table yet
            Err(refusal) if refusal.code == Errno::ENOENT => return Ok(Vec::new()),
            answers => answers.map_err(|refusal| refusal.explain("list the local routes"))?,
        };
        let prefix = |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
            let ours = route.header.protocol == RouteProtocol::from(OUR_PROTOCOL)
                && route.attributes.contains(&RouteAttribute::Priority(mark));
            let destination = route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
                _ => None,
            });
            ours.then_some(Prefix::around(destination?, route.header.destination_prefix_length))
        };
        Ok(answers.into_iter().filter_map(prefix).collect())
    }

    /// Destinations of the routes out of the interface with that index to which no router leads: of
    /// the main table, or of the VRF's that it is in.
    pub(super) fn on_link_routes(&mut self, index: u32) -> Result<Vec<Prefix>> {
        let here = self
            .routes(index)?
            .into_iter()
            .filter(|route| route.interface == Some(index) && route.on_link);
        Ok(here.map(|route| route.prefix).collect())
    }

    /// The routes for unicast that packets from the interface with that index meet: the main
    /// table's, or those of its VRF.
    pub fn routes(&mut self, index: u32) -> Result<Vec<TableRoute>> {
        const RT_TABLE_MAIN: u8 = 254; // linux/rtnetlink.h
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet6;
        query.header.table = RT_TABLE_MAIN;
        let vrf = self.vrf(index)?;
        let table = vrf.map_or(RT_TABLE_MAIN.into(), |vrf| vrf.table);
        let query = in_table(query, vrf);
        let answers = match self.ask(RouteNetlinkMessage::GetRoute(query), NLM_F_DUMP) {
            // no such table yet
            Err(refusal) if refusal.code == Errno::ENOENT => return Ok(Vec::new()),
            answers => answers.map_err(|refusal| refusal.explain("list the routes"))?,
        };
        let prefix = |answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
            let (mut here, mut direct, mut destination) = (None, true, Ipv6Addr::UNSPECIFIED);
            let mut of_table = u32::from(route.header.table);
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Oif(interface) => here = Some(interface),
                    RouteAttribute::Gateway(_)
                    | RouteAttribute::Via(_)
                    | RouteAttribute::MultiPath(_) => {
                        direct = false;
                    }
                    RouteAttribute::Destination(RouteAddress::Inet6(address)) => {
                        destination = address
                    }
                    RouteAttribute::Table(number) => of_table = number,
                    _ => {}
                }
            }
            let is_unicast = of_table == table
                && route.header.kind == RouteType::Unicast
                && !destination.is_multicast();
            is_unicast.then(|| TableRoute {
                prefix: Prefix::around(destination, route.header.destination_prefix_length),
                interface: here,
                on_link: direct,
            })
        };
        Ok(answers.into_iter().filter_map(prefix).collect())
    }
}

/// Asks for the way to one destination. A VRF's own interface as the way out has the kernel look
/// into its table.
pub(super) fn route_query(to: Ipv6Addr, vrf: Option<Vrf>) -> RouteNetlinkMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet6;
    query.header.destination_prefix_length = 128;
    query.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(to)));
    query.attributes.extend(vrf.map(|vrf| RouteAttribute::Oif(vrf.index)));
    RouteNetlinkMessage::GetRoute(query)
}

/// The body of a message about local routes with our mark: that for `prefix`, or all; with that
/// metric, or any.
pub(super) fn local_route(prefix: Option<Prefix>, metric: Option<u32>) -> RouteMessage {
    const RT_TABLE_LOCAL: u8 = 255; // linux/rtnetlink.h
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet6;
    message.header.table = RT_TABLE_LOCAL;
    message.header.protocol = RouteProtocol::from(OUR_PROTOCOL);
    message.header.kind = RouteType::Local;
    if let Some(prefix) = prefix {
        message.header.destination_prefix_length = prefix.length();
        message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(prefix.network())));
    }
    message.attributes.extend(metric.map(RouteAttribute::Priority));
    message
}

/// The same in the table of a VRF, where there is one.
pub(super) fn in_table(mut message: RouteMessage, vrf: Option<Vrf>) -> RouteMessage {
    if let Some(vrf) = vrf {
        message.header.table = 0; // the attribute holds it, which has room for larger numbers
        message.attributes.push(RouteAttribute::Table(vrf.table));
    }
    message
}
