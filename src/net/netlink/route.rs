//! Routes, and delivery of packets for addresses that the kernel does not own.

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

/// The route to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface to send from.
    pub interface: u32,
    /// The router to send packets to; `None` if the destination is on-link.
    pub gateway: Option<Ipv6Addr>,
    /// The source address that the kernel would choose.
    pub source: Ipv6Addr,
}

/// A route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRoute {
    /// Its destination.
    pub prefix: Prefix,
    /// Index of its outgoing interface; `None` if it has several.
    pub interface: Option<u32>,
    /// Whether its hosts are on-link, with no router in between.
    pub on_link: bool,
}

/// The unicast routes for packets out of the interface with that index: those of the main table, or
/// of its VRF.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn routes(index: u32) -> Result<Vec<TableRoute>> {
    Connection::open()?.routes(index)
}

/// Makes the kernel accept packets from one interface for a prefix that it does not own. A rule
/// matches packets from that interface with the mark, and looks them up in a separate table with a
/// `local` route. The machine's own packets to the prefix still go to the neighbours, and the
/// kernel answers no Neighbour Solicitation for it.
///
/// Only a tc program sets the mark, on packets for live addresses: see [`Opener`]. Without that
/// program, and for packets that bypass it, the kernel does not accept the prefix.
///
/// The route expires after some seconds and is renewed, so the kernel forgets it after this process
/// is killed. A rule without a route does nothing. Dropping this value removes both.
#[derive(Debug)]
pub struct Delivery {
    socket: Connection,
    /// Receives announcements of changes of the interface.
    announced: Connection,
    interface: String,
    index: u32,
    prefix: Prefix,
    opener: Opener,
    table: u32,
    renew: Instant,
}

/// Which program sets the mark. A prefix opens only to packets with its own program's mark, so an
/// interface can have one of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opener {
    /// The one behind the XDP program: MARK of bpf/backstop.h.
    Backstop,
    /// The gate's: GATE_MARK of bpf/gate.h.
    Gate,
}

impl Opener {
    /// The bits of a packet's mark that hold ours: MARK_MASK of bpf/tc.h.
    pub const MASK: u32 = 0xffff_0000;

    /// The mark.
    #[must_use]
    pub fn mark(self) -> u32 {
        match self {
            Self::Backstop => 0x6668_0000,
            Self::Gate => 0x6669_0000,
        }
    }

    /// A table number that nobody else is likely to use, different for each interface.
    fn table(self, interface: u32) -> u32 {
        let kind = match self {
            Self::Backstop => 0,
            Self::Gate => 1 << 23,
        };
        u32::from(OUR_PROTOCOL) << 24 | kind | interface
    }
}

impl Delivery {
    /// The lifetime of the route, in seconds, and the period of its renewal.
    const LIFETIME: u32 = 10;
    const PERIOD: Duration = Duration::from_secs(2);

    fn new(link: &Link, prefix: Prefix, opener: Opener) -> Result<Self> {
        let announced = Connection::open()?;
        let group = MulticastGroup::Link as u32;
        announced.socket.add_membership(group).context("cannot listen for kernel announcements")?;
        Ok(Self {
            socket: Connection::open()?,
            announced,
            interface: link.name.clone(),
            index: link.index,
            prefix,
            opener,
            table: opener.table(link.index),
            renew: Instant::now(),
        })
    }

    /// Removes what a killed process left.
    ///
    /// # Errors
    /// When no socket can be opened.
    pub fn clear(link: &Link, prefix: Prefix, opener: Opener) -> Result<()> {
        drop(Self::new(link, prefix, opener)?);
        Ok(())
    }

    /// Starts delivery, after removing what an earlier run left.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN, and when the kernel has no policy routing
    /// (CONFIG_IPV6_MULTIPLE_TABLES).
    pub fn begin(link: &Link, prefix: Prefix, opener: Opener) -> Result<Self> {
        let mut delivery = Self::new(link, prefix, opener)?;
        delivery.end();
        delivery.renew()?;
        delivery.add_rule().map_err(|refusal| match refusal.code {
            Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => {
                anyhow!(
                    "this kernel has no policy routing (CONFIG_IPV6_MULTIPLE_TABLES), which {} \
                     needs",
                    match opener {
                        Opener::Backstop => "live-map",
                        Opener::Gate => "a gate",
                    }
                )
            }
            _ => refusal
                .explain(format_args!("add the delivery rule for packets from {}", link.name)),
        })?;
        Ok(delivery)
    }

    fn add_rule(&mut self) -> Result<(), KernelError> {
        let mut rule = self.rule();
        rule.attributes.extend([
            RuleAttribute::FwMark(self.opener.mark()),
            RuleAttribute::FwMask(Opener::MASK),
        ]);
        self.socket.tell_one(RouteNetlinkMessage::NewRule(rule), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Waits up to `limit` for a change of the interface, and then renews the rule and the route as
    /// needed.
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
            .map_err(|refusal| refusal.explain("listen for kernel announcements"))?;
        if changed {
            self.follow()?;
            // The kernel drops the route when the link goes down or IPv6 is disabled on it.
            self.renew = Instant::now();
        }
        self.renew()
    }

    /// Replaces the rule after the interface was renamed.
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
            refusal
                .explain(format_args!("add the delivery rule for packets from {}", self.interface))
        })
    }

    /// Renews the route when due. Call it at least once a second.
    ///
    /// # Errors
    /// When the kernel refuses, for example while the link is down.
    pub fn renew(&mut self) -> Result<()> {
        let now = Instant::now();
        if now < self.renew {
            return Ok(());
        }
        self.renew = now + Self::PERIOD;
        let route = RouteNetlinkMessage::NewRoute(self.route());
        self.socket.tell_one(route, NLM_F_CREATE | NLM_F_REPLACE).map_err(|refusal| {
            refusal.explain(format_args!("add the delivery route for {}", self.prefix))
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

    /// The rule without a mark, to delete any: older versions added one without it.
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

    /// Removes the rule and the route, if they exist.
    fn end(&mut self) {
        // Already gone is fine, and a destructor cannot report other errors.
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

/// The on-link prefixes of the interface with that index: those of its addresses, and those of its
/// routes without a router. A default route does not count.
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
/// When there is no route, or no source address.
pub fn route(to: Ipv6Addr) -> Result<Route> {
    Connection::open()?.route(to, None)
}

/// The same in a VRF, if there is one.
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
            source: source.with_context(|| format!("no source address for {to}: add one"))?,
        })
    }

    /// Waits until the kernel accepts packets for each of `addresses` of the interface with that
    /// index. The kernel acknowledges an address earlier: a kernel worker adds the local route
    /// after Duplicate Address Detection, if there is one (addrconf_dad_work).
    ///
    /// # Errors
    /// When this takes longer than `timeout`.
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
                    "the kernel does not accept packets for {address} after {timeout:?}"
                );
                std::thread::sleep(Duration::from_millis(1)); // nothing announces it
            }
        }
        Ok(())
    }

    /// Whether packets to `address` are for this machine, in that VRF if there is one.
    pub fn is_local(&mut self, address: Ipv6Addr, vrf: Option<Vrf>) -> Result<bool> {
        let answers = self.ask(route_query(address, vrf), 0);
        Ok(answers.is_ok_and(|answers| {
            answers.iter().any(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) => route.header.kind == RouteType::Local,
                _ => false,
            })
        }))
    }

    /// Makes the kernel accept packets for all addresses under `prefix`: adds a route of type
    /// `local`, with our protocol, through the loopback interface with that index, or in a VRF
    /// through the VRF's own interface. Its metric is `mark`, which distinguishes it from other
    /// routes.
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
                    anyhow!("a local route for {prefix} already exists: nothing was bound")
                }
                _ => refusal.explain(format_args!("add a local route for {prefix}")),
            },
        )
    }

    /// Removes the route that [`Connection::add_local_route`] added, unless it is already gone.
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

    /// The prefixes of the local routes with our protocol and this `mark`, in that VRF if there is
    /// one.
    pub fn our_local_routes(&mut self, vrf: Option<Vrf>, mark: u32) -> Result<Vec<Prefix>> {
        let query = RouteNetlinkMessage::GetRoute(in_table(local_route(None, None), vrf));
        let answers = match self.ask(query, NLM_F_DUMP) {
            // No such table yet.
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

    /// Destinations of the on-link routes out of the interface with that index, in the main table
    /// or its VRF's.
    pub(super) fn on_link_routes(&mut self, index: u32) -> Result<Vec<Prefix>> {
        let here = self
            .routes(index)?
            .into_iter()
            .filter(|route| route.interface == Some(index) && route.on_link);
        Ok(here.map(|route| route.prefix).collect())
    }

    /// The unicast routes for packets out of the interface with that index: those of the main
    /// table, or of its VRF.
    pub fn routes(&mut self, index: u32) -> Result<Vec<TableRoute>> {
        const RT_TABLE_MAIN: u8 = 254; // linux/rtnetlink.h
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet6;
        query.header.table = RT_TABLE_MAIN;
        let vrf = self.vrf(index)?;
        let table = vrf.map_or(RT_TABLE_MAIN.into(), |vrf| vrf.table);
        let query = in_table(query, vrf);
        let answers = match self.ask(RouteNetlinkMessage::GetRoute(query), NLM_F_DUMP) {
            // No such table yet.
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

/// A query for the route to one destination. With the VRF's own interface as output, the kernel
/// uses that VRF's table.
pub(super) fn route_query(to: Ipv6Addr, vrf: Option<Vrf>) -> RouteNetlinkMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet6;
    query.header.destination_prefix_length = 128;
    query.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(to)));
    query.attributes.extend(vrf.map(|vrf| RouteAttribute::Oif(vrf.index)));
    RouteNetlinkMessage::GetRoute(query)
}

/// The body of a message about local routes with our protocol: for `prefix` or all, with `metric`
/// or any.
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

/// The same in the table of a VRF, if there is one.
pub(super) fn in_table(mut message: RouteMessage, vrf: Option<Vrf>) -> RouteMessage {
    if let Some(vrf) = vrf {
        message.header.table = 0; // the attribute holds larger table numbers
        message.attributes.push(RouteAttribute::Table(vrf.table));
    }
    message
}
