//! WHAT THE KERNEL'S ROUTING SOCKET IS ASKED AND TOLD: links, addresses, routes and neighbours.
//!
//! Everything here is synchronous and acts in the network namespace of the calling thread. The
//! kernel answers a request before the send returns, so there is nothing to wait for and no runtime
//! to hide: one plain socket sends messages and reads the answers. It belongs to the namespace in
//! which it was opened, whatever thread uses it later.
//!
//! Reading needs no privilege, changing needs CAP_NET_ADMIN. Nothing is sent to the network from
//! here, but the kernel sends a Neighbour Solicitation when [`resolve`] asks it to.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE,
    NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoPortData, InfoVeth, InfoVrf, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys;

use crate::address::Prefix;
use crate::net::denied;

pub use crate::events::{AttachMode, AttachedProgram};

/// What says that an address or a route is ours: the IFA_PROTO or rtm_protocol that [`crate::live`]
/// gives each one, so that a later run knows the leftovers of one that was killed (`ip -details
/// address`, from 6.4, and `ip -6 route show table local proto 102` show it). Kernels before 5.18
/// ignore that of an address.
pub const OUR_PROTOCOL: u8 = 0x66;

/// A Linux interface as the kernel described it when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in its namespace.
    pub index: u32,
    /// Its name, such as `server0`.
    pub name: String,
    /// Its Ethernet address; all zero where it has none.
    pub mac: [u8; 6],
    /// What its frames begin with: an ARPHRD of linux/if_arp.h, such as [`ARPHRD_ETHER`].
    pub link_type: u16,
    /// Largest packet without the Ethernet header, in bytes.
    pub mtu: u32,
    /// Transmit queues that it was made with. Not all need to be in use.
    pub tx_queues: u32,
    /// Receive queues that it was made with. Not all need to be in use.
    pub rx_queues: u32,
    /// Whether it is set up (IFF_UP).
    pub up: bool,
    /// Whether something is at the other end of the cable (IFF_LOWER_UP).
    pub carrier: bool,
    /// How often its carrier has gone since it was made, as when it is set down
    /// (IFLA_CARRIER_DOWN_COUNT).
    pub carrier_losses: u32,
    /// Whether it is told to receive all multicast (IFF_ALLMULTI), rather than asked for it by
    /// sockets.
    pub all_multicast: bool,
    /// Whether neighbours are discovered on it (no IFF_NOARP).
    pub arp: bool,
    /// Whether the kernel does IPv6 on it: not with `disable_ipv6` set, nor with an MTU below 1280.
    pub ipv6: bool,
    /// Text that its maker gave it.
    pub alias: Option<String>,
    /// The XDP program on it.
    pub xdp: Option<AttachedProgram>,
    /// What kind of device the kernel made it as, such as `veth` or `bond` (IFLA_INFO_KIND); `None`
    /// of a card.
    pub kind: Option<String>,
    /// Index of the bridge, bond or VRF that it is a port of (IFLA_MASTER).
    pub master: Option<u32>,
}

/// Ethernet, and what looks like it: veth, bridge, macvlan, tap.
pub const ARPHRD_ETHER: u16 = 1;
/// The loopback interface, whose frames have an Ethernet header of zeros.
pub const ARPHRD_LOOPBACK: u16 = 772;
/// No link-layer header at all: tun, WireGuard.
pub const ARPHRD_NONE: u16 = 65534;

impl Link {
    /// Whether its frames begin with an Ethernet header. Those of tunnels begin with the IP header.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        is_ethernet(self.link_type)
    }
}

/// Whether frames of that link type begin with an Ethernet header.
#[must_use]
pub fn is_ethernet(link_type: u16) -> bool {
    matches!(link_type, ARPHRD_ETHER | ARPHRD_LOOPBACK)
}

/// What an interface that is in a VRF (virtual routing and forwarding) shares with the others in
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vrf {
    /// Index of the VRF's own interface.
    pub index: u32,
    /// Its routing table, which also has the local routes of its interfaces' addresses.
    pub table: u32,
}

/// The VRF that the interface with that index is in; `None` where it is in none.
///
/// # Errors
/// When there is no such interface.
pub fn vrf(index: u32) -> Result<Option<Vrf>> {
    Socket::open()?.vrf(index)
}

/// An IPv6 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: Ipv6Addr,
    /// Length of its prefix, in bits.
    pub prefix_length: u8,
    /// Whether it carries [`OUR_PROTOCOL`].
    pub ours: bool,
    /// Whether it is not live yet, as long as somebody might have it (IFA_F_TENTATIVE).
    pub tentative: bool,
}

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
    Socket::open()?.routes(index)
}

/// The interface that has that name, or was given it besides.
///
/// # Errors
/// When there is none here; the message lists those that there are.
pub fn link(name: &str) -> Result<Link> {
    Socket::open()?.link(name)
}

/// The interface with that index, whatever its name is by now; `None` where there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn link_at(index: u32) -> Result<Option<Link>> {
    Socket::open()?.link_at(index)
}

/// The present name of the interface with that index; `last` where there is none.
pub(crate) fn name_of(index: u32, last: &str) -> String {
    link_at(index).ok().flatten().map_or_else(|| last.to_owned(), |link| link.name)
}

/// All interfaces of the namespace, in the order of their indices.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn links() -> Result<Vec<Link>> {
    Socket::open()?.links()
}

/// The interface that the one with that index is paired with or lies on, in whatever namespace: of
/// a veth, its other end. `None` where there is none, or it may not be seen: another namespace
/// takes CAP_NET_ADMIN.
#[must_use]
pub fn peer(index: u32) -> Option<Link> {
    Socket::open().ok()?.peer(index)
}

/// Sets the interface with that index up or down. Down, it loses its routes and, unless
/// `keep_addr_on_down` is set, its IPv6 addresses.
///
/// # Errors
/// When there is no such interface, or without CAP_NET_ADMIN.
pub fn set_up(index: u32, up: bool) -> Result<()> {
    Socket::open()?.set_up(index, up)
}

/// Waits until the interface is up and has a carrier, woken by the kernel's own announcement of it.
///
/// # Errors
/// When there is no such interface, or it has no carrier after `timeout`.
pub fn wait_for_carrier(name: &str, timeout: Duration) -> Result<()> {
    Socket::open()?.wait_for_carrier(name, timeout)
}

/// The IPv6 addresses of the interface with that index.
///
/// # Errors
/// When there is no such interface.
pub fn addresses(index: u32) -> Result<Vec<Address>> {
    Socket::open()?.addresses(index)
}

/// The kernel's IPv6 addresses, on whatever interface of the namespace, but for those that
/// [`crate::live`] made; and each change of them.
#[derive(Debug)]
pub struct KernelAddresses {
    announced: Socket,
    /// Another socket: answers do not mix with announcements.
    asked: Socket,
}

impl KernelAddresses {
    /// Listens from now on.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn watch() -> Result<Self> {
        let announced = Socket::open()?;
        let group = MulticastGroup::Ipv6Ifaddr as u32;
        announced.socket.add_membership(group).context("cannot listen to the kernel")?;
        Ok(Self { announced, asked: Socket::open()? })
    }

    /// What there is now.
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

    /// Waits for a change, for at most `limit`, and returns whether there was one.
    ///
    /// # Errors
    /// When the kernel cannot be listened to.
    pub fn changed(&mut self, limit: Duration) -> Result<bool> {
        let any = |_: &RouteNetlinkMessage| true; // nothing else is announced to this socket
        self.announced
            .wait_for(any, Instant::now() + limit)
            .map_err(|refusal| refusal.explain("listen to the kernel"))
    }
}

/// Hears which IPv6 addresses an interface loses.
#[derive(Debug)]
pub(crate) struct AddressLosses {
    announced: Socket,
    index: u32,
}

impl AddressLosses {
    /// Listens from now on, to what is announced of the interface with that index.
    pub fn watch(index: u32) -> Result<Self> {
        let announced = Socket::open()?;
        let group = MulticastGroup::Ipv6Ifaddr as u32;
        announced.socket.add_membership(group).context("cannot listen to the kernel")?;
        Ok(Self { announced, index })
    }

    /// Whether an address that `is_ours` has gone since the last call, or may have: there were more
    /// announcements than the kernel keeps. Waits for nothing.
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
    socket: Socket,
    /// Hears of each change of the interface.
    announced: Socket,
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
        let announced = Socket::open()?;
        let group = MulticastGroup::Link as u32;
        announced.socket.add_membership(group).context("cannot listen to the kernel")?;
        Ok(Self {
            socket: Socket::open()?,
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

    fn add_rule(&mut self) -> Result<(), Refusal> {
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
    let mut socket = Socket::open()?;
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
    Socket::open()?.route(to, None)
}

/// The same in a VRF, where there is one.
///
/// # Errors
/// As [`route`].
pub fn route_in(vrf: Option<Vrf>, to: Ipv6Addr) -> Result<Route> {
    Socket::open()?.route(to, vrf)
}

/// The Ethernet address of `neighbour`, behind the interface with that index. Where the kernel does
/// not know it, it is told to find it out; no datagram has to be sent for that.
///
/// # Errors
/// When nobody answers, after about 3 s (the kernel's three solicitations) or `timeout`, whichever
/// is first.
pub fn resolve(interface: u32, neighbour: Ipv6Addr, timeout: Duration) -> Result<[u8; 6]> {
    Socket::open()?.resolve(interface, neighbour, timeout)
}

/// The Ethernet address of the first of `neighbours` that answers, as [`resolve`]; `None` where
/// none does within `timeout`.
///
/// # Errors
/// When the kernel cannot ask for them, or not for all at once.
pub fn resolve_any(
    interface: u32,
    neighbours: &[Ipv6Addr],
    timeout: Duration,
) -> Result<Option<[u8; 6]>> {
    Socket::open()?.resolve_any(interface, neighbours, timeout)
}

/// Has the kernel take `mac` for the neighbour's, and ask nobody (NUD_PERMANENT); without one,
/// forget the entry.
///
/// # Errors
/// Without CAP_NET_ADMIN, and when there is no such interface.
pub fn set_neighbour(interface: u32, neighbour: Ipv6Addr, mac: Option<[u8; 6]>) -> Result<()> {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Inet6;
    entry.header.ifindex = interface;
    entry.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(neighbour)));
    let (message, flags) = match mac {
        Some(mac) => {
            entry.header.state = NeighbourState::Permanent;
            entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            (RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
        }
        None => (RouteNetlinkMessage::DelNeighbour(entry), 0),
    };
    let told = Socket::open()?.tell_one(message, flags);
    told.map_err(|refusal| {
        refusal.explain(format_args!("set neighbour {neighbour} of interface {interface}"))
    })
}

/// Why the kernel refused a request: its error number and, where it gave one, its own explanation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", code.desc(), words.as_ref().map(|words| format!(" ({words})")).unwrap_or_default())]
pub(crate) struct Refusal {
    pub code: Errno,
    pub words: Option<String>,
}

impl Refusal {
    /// One line that says what could not be done, why, and where it helps, what to do.
    pub fn explain(self, what: impl fmt::Display) -> anyhow::Error {
        match self.code {
            Errno::EPERM => {
                anyhow!(
                    "cannot {what}: {}",
                    denied::explain("it", &["CAP_NET_ADMIN"], "such calls")
                )
            }
            Errno::ENODEV => anyhow!("cannot {what}: there is no such interface here"),
            _ => anyhow!("cannot {what}: {self}"),
        }
    }
}

impl From<Errno> for Refusal {
    fn from(code: Errno) -> Self {
        Self { code, words: None }
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Errno::try_from(error).unwrap_or(Errno::EIO).into()
    }
}

type Message = NetlinkMessage<RouteNetlinkMessage>;

/// A routing socket, in the namespace in which it was opened.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: sys::Socket,
    sequence: u32,
    datagram: Vec<u8>,
    /// Whether announcements came between the answers to a question: they may be newer than those.
    heard: bool,
}

/// The kernel composes answers of at most 32 KiB.
const DATAGRAM: usize = 64 * 1024;

/// Of linux/if_link.h: another name of an interface.
const IFLA_ALT_IFNAME: u16 = 53;

/// How often to ask for a list that changes while the kernel tells it. One that changes faster than
/// this is in use by something that should be stopped first.
const ATTEMPTS: usize = 10;

impl Socket {
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = sys::Socket::new(sys::protocols::NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // Connected to the kernel, it hears nobody else.
            socket.connect(&sys::SocketAddr::new(0, 0))?;
            // Refusals in words, but without the request that was refused.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Dumps of one interface only, where one is named.
            socket.set_netlink_get_strict_chk(true)?;
            std::io::Result::Ok(socket)
        };
        Ok(Self {
            socket: open().context("cannot open a routing socket")?,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
            heard: false,
        })
    }

    pub fn link(&mut self, name: &str) -> Result<Link> {
        let by = |attribute| {
            let mut query = LinkMessage::default();
            query.attributes.push(attribute);
            RouteNetlinkMessage::GetLink(query)
        };
        let mut asked = Err(Refusal::from(Errno::ENODEV));
        if name.len() < nix::libc::IFNAMSIZ {
            asked = self.ask(by(LinkAttribute::IfName(name.to_owned())), 0);
        }
        if matches!(&asked, Err(refusal) if refusal.code == Errno::ENODEV) {
            // Names that were given to it besides (ip link property add … altname) may be as long
            // as 127 characters.
            let alternative = DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), b"\0"].concat());
            asked = self.ask(by(LinkAttribute::Other(alternative)), 0);
        }
        match asked {
            Ok(answers) => answers
                .into_iter()
                .find_map(new_link)
                .with_context(|| format!("the kernel did not describe {name}")),
            // The latter two: a name that is no name, or a kernel before 5.5, which knows no
            // others.
            Err(refusal)
                if matches!(refusal.code, Errno::ENODEV | Errno::EINVAL | Errno::ERANGE) =>
            {
                let names: Vec<_> = self.links()?.into_iter().map(|link| link.name).collect();
                bail!("no interface '{name}' here: there are {}", names.join(", "))
            }
            Err(refusal) => Err(refusal.explain(format_args!("look for {name}"))),
        }
    }

    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        match self.ask(RouteNetlinkMessage::GetLink(query), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(new_link)),
            Err(refusal) if refusal.code == Errno::ENODEV => Ok(None),
            Err(refusal) => Err(refusal.explain(format_args!("look for interface {index}"))),
        }
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let query = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self
            .ask(query, NLM_F_DUMP)
            .map_err(|refusal| refusal.explain("list the interfaces"))?;
        Ok(answers.into_iter().filter_map(new_link).collect())
    }

    fn peer(&mut self, index: u32) -> Option<Link> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        let answers = self.ask(RouteNetlinkMessage::GetLink(query), 0).ok()?;
        let mut query = LinkMessage::default();
        for answer in answers {
            let RouteNetlinkMessage::NewLink(link) = answer else { continue };
            for attribute in link.attributes {
                match attribute {
                    LinkAttribute::Link(index) => query.header.index = index,
                    LinkAttribute::LinkNetNsId(id) => {
                        query.attributes.push(LinkAttribute::IfNetnsId(id))
                    }
                    _ => {}
                }
            }
        }
        if query.header.index == 0 {
            return None;
        }
        self.ask(RouteNetlinkMessage::GetLink(query), 0).ok()?.into_iter().find_map(new_link)
    }

    pub fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        let mut change = LinkMessage::default();
        change.header.index = index;
        change.header.change_mask = LinkFlags::Up;
        change.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        let way = if up { "up" } else { "down" };
        self.tell_one(RouteNetlinkMessage::SetLink(change), 0)
            .map_err(|refusal| refusal.explain(format_args!("set interface {index} {way}")))
    }

    pub fn wait_for_carrier(&mut self, name: &str, timeout: Duration) -> Result<()> {
        let index = self.link(name)?.index;
        self.wait_for_carrier_of(index, name, timeout)
    }

    /// The same of the interface with that index, whatever it is called meanwhile; `name` is for
    /// the error.
    pub fn wait_for_carrier_of(&mut self, index: u32, name: &str, timeout: Duration) -> Result<()> {
        let has_carrier = |socket: &mut Self| {
            let link = socket.link_at(index)?.with_context(|| format!("{name} has gone"))?;
            anyhow::Ok((link.up && link.carrier).then_some(()))
        };
        self.watch(MulticastGroup::Link, timeout, has_carrier, |event| match event {
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
                link.header.index == index
            }
            _ => false,
        })?
        .with_context(|| format!("{name} has no carrier after {timeout:?}: is its other end up?"))
    }

    /// The IPv6 addresses of the interface with that index; of all, where it is 0.
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

    /// The VRF that the interface with that index is in; `None` where it is in none.
    pub fn vrf(&mut self, index: u32) -> Result<Option<Vrf>> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        let answers = self
            .ask(RouteNetlinkMessage::GetLink(query), 0)
            .map_err(|refusal| refusal.explain(format_args!("look at interface {index}")))?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => vrf_of(&link.attributes),
            _ => None,
        }))
    }

    fn route(&mut self, to: Ipv6Addr, vrf: Option<Vrf>) -> Result<Route> {
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

    pub fn resolve(
        &mut self,
        interface: u32,
        neighbour: Ipv6Addr,
        timeout: Duration,
    ) -> Result<[u8; 6]> {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Inet6;
        entry.header.ifindex = interface;
        let destination = NeighbourAttribute::Destination(NeighbourAddress::Inet6(neighbour));
        entry.attributes.push(destination.clone());
        let query = RouteNetlinkMessage::GetNeighbour(entry.clone());
        // Somebody's own entry stays as it is: what follows would take it for one that nobody
        // answered for.
        if let Ok(answers) = self.ask(query.clone(), 0) {
            let fixed = answers.iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(entry)
                    if entry.header.state == NeighbourState::Permanent =>
                {
                    verdict(entry).flatten()
                }
                _ => None,
            });
            if let Some(mac) = fixed {
                return Ok(mac);
            }
        }
        // As if a packet had to go there: the kernel asks for it unless it knows already, also
        // after a failure.
        entry.header.flags = NeighbourFlags::Use;
        self.tell_one(RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
            .map_err(|refusal| match refusal.code {
                Errno::ENOBUFS => anyhow!(
                    "cannot look for {neighbour}: the kernel's neighbour table is full; \
                     raise net.ipv6.neigh.default.gc_thresh3"
                ),
                _ => refusal.explain(format_args!("look for {neighbour} on interface {interface}")),
            })?;

        let known = |socket: &mut Self| match socket.ask(query.clone(), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(entry) => verdict(&entry),
                _ => None,
            })),
            // It failed, and the entry has been swept away since.
            Err(refusal) if refusal.code == Errno::ENOENT => Ok(Some(None)),
            Err(refusal) => Err(refusal.explain(format_args!("look up neighbour {neighbour}"))),
        };
        let found = self.watch(MulticastGroup::Neigh, timeout, known, |event| match event {
            RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
                entry.header.ifindex == interface && entry.attributes.contains(&destination)
            }
            _ => false,
        })?;
        match found.flatten() {
            Some(mac) => Ok(mac),
            None => {
                let link = self.links()?.into_iter().find(|link| link.index == interface);
                let name = link.map_or_else(|| format!("interface {interface}"), |link| link.name);
                bail!("nobody answers for {neighbour} on {name}: is the server up?")
            }
        }
    }

    pub fn resolve_any(
        &mut self,
        interface: u32,
        neighbours: &[Ipv6Addr],
        timeout: Duration,
    ) -> Result<Option<[u8; 6]>> {
        const LOOK: Duration = Duration::from_millis(10);
        let entry = |neighbour: &Ipv6Addr| {
            let mut entry = NeighbourMessage::default();
            entry.header.family = AddressFamily::Inet6;
            entry.header.ifindex = interface;
            entry
                .attributes
                .push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(*neighbour)));
            entry
        };
        let asked = neighbours.iter().map(|neighbour| {
            let mut entry = entry(neighbour);
            entry.header.flags = NeighbourFlags::Use;
            (RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
        });
        let refused =
            self.tell(asked).map(|refused| refused.into_iter().next().map(|(_, why)| why));
        if let Some(refusal) = refused.unwrap_or_else(Some) {
            return Err(
                refusal.explain(format_args!("look for neighbours on interface {interface}"))
            );
        }
        let give_up = Instant::now() + timeout;
        loop {
            for neighbour in neighbours {
                let answers = self.ask(RouteNetlinkMessage::GetNeighbour(entry(neighbour)), 0);
                let found = answers.unwrap_or_default().iter().find_map(|answer| match answer {
                    RouteNetlinkMessage::NewNeighbour(entry) => verdict(entry).flatten(),
                    _ => None,
                });
                if found.is_some() {
                    return Ok(found);
                }
            }
            if Instant::now() > give_up {
                return Ok(None);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Adds `ip` to the interface with that index, without Duplicate Address Detection: it is live
    /// at once.
    #[cfg_attr(not(feature = "lab"), allow(dead_code))]
    pub fn add_address(&mut self, index: u32, ip: Ipv6Addr, prefix_length: u8) -> Result<()> {
        let mut message = address_message(index, ip, prefix_length);
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        self.tell_one(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(|refusal| refusal.explain(format_args!("add {ip}/{prefix_length}")))
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

    /// Removes what [`Socket::add_local_route`] made, unless it is gone already.
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
    fn on_link_routes(&mut self, index: u32) -> Result<Vec<Prefix>> {
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

    /// Makes a veth pair with `queues` queues each way: `near` here and `far` in `far_namespace`,
    /// both with `alias`.
    ///
    /// All of it is one datagram, which the kernel works through before anything can kill the
    /// sender: there is no pair without its alias.
    #[cfg_attr(not(feature = "lab"), allow(dead_code))]
    pub fn add_veth(
        &mut self,
        near: &str,
        far: &str,
        far_namespace: BorrowedFd<'_>,
        queues: u32,
        alias: &str,
    ) -> Result<()> {
        let end = |name: &str| {
            let mut end = LinkMessage::default();
            end.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::NumTxQueues(queues),
                LinkAttribute::NumRxQueues(queues),
            ];
            end
        };
        let mut pair = end(near);
        pair.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(far)))),
        ]));
        // The kernel takes no alias when it makes a link.
        let named = |name: &str| {
            let mut change = LinkMessage::default();
            change.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::IfAlias(alias.to_owned()),
            ];
            change
        };
        let near_change = named(near);
        let mut far_change = named(far);
        far_change.attributes.push(LinkAttribute::NetNsFd(far_namespace.as_raw_fd()));
        let refused = self.tell([
            (RouteNetlinkMessage::NewLink(pair), NLM_F_CREATE | NLM_F_EXCL),
            (RouteNetlinkMessage::SetLink(near_change), 0),
            (RouteNetlinkMessage::SetLink(far_change), 0),
        ]);
        match refused.map(|refused| refused.into_iter().next()) {
            Ok(None) => Ok(()),
            Ok(Some((position, refusal))) => {
                let is_made = position > 0;
                if let (true, Ok(link)) = (is_made, self.link(near)) {
                    self.delete_link(link.index)?;
                }
                Err(refusal.explain(format_args!("make the veth pair {near}/{far}")))
            }
            Err(refusal) => Err(refusal.explain(format_args!("make the veth pair {near}/{far}"))),
        }
    }

    /// Moves an interface, which is down, into another namespace, with another name and the alias
    /// `alias`.
    ///
    /// # Errors
    /// When it cannot be moved: it is up, gone, or the name is taken there.
    #[cfg_attr(not(feature = "lab"), allow(dead_code))]
    pub fn move_link(
        &mut self,
        index: u32,
        name: &str,
        namespace: BorrowedFd<'_>,
        alias: &str,
    ) -> Result<()> {
        let mut change = LinkMessage::default();
        change.header.index = index;
        change.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::IfAlias(alias.to_owned()),
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
        ];
        self.tell_one(RouteNetlinkMessage::SetLink(change), 0).map_err(|refusal| {
            refusal.explain(format_args!("move interface {index} and name it {name}"))
        })
    }

    /// Removes an interface, unless it is gone already. Of a veth pair, both ends go.
    #[cfg_attr(not(feature = "lab"), allow(dead_code))]
    pub fn delete_link(&mut self, index: u32) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.tell_one(RouteNetlinkMessage::DelLink(message), 0) {
            Err(refusal) if refusal.code != Errno::ENODEV => {
                Err(refusal.explain(format_args!("remove interface {index}")))
            }
            _ => Ok(()),
        }
    }

    /// Sends all messages, each with its own flags, in one datagram, and returns those that were
    /// refused: the position of each, and why. The kernel works through the rest all the same.
    ///
    /// Only the last is acknowledged when it succeeds. Refusals are always reported, in the order
    /// of the messages, so the last answer says that all are done, and however many succeed cannot
    /// overrun the receive buffer.
    pub fn tell(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, Refusal)>, Refusal> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut messages = messages.into_iter().peekable();
        while let Some((message, flags)) = messages.next() {
            let acknowledge = if messages.peek().is_none() { NLM_F_ACK } else { 0 };
            self.compose(message, NLM_F_REQUEST | acknowledge | flags, &mut bytes);
        }
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        self.socket.send(&bytes, 0)?;
        let mut refused = Vec::new();
        loop {
            for (header, payload) in self.receive()?.into_iter().map(Message::into_parts) {
                let NetlinkPayload::Error(answer) = payload else {
                    continue;
                };
                let position = header.sequence_number.wrapping_sub(first) as usize;
                if answer.code.is_some() {
                    refused.push((position, read_refusal(answer.raw_code(), &answer.header)));
                }
                if header.sequence_number == self.sequence {
                    return Ok(refused);
                }
            }
        }
    }

    /// [`Socket::tell`] for a single message.
    fn tell_one(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Refusal> {
        match self.tell([(message, flags)])?.pop() {
            None => Ok(()),
            Some((_, refusal)) => Err(refusal),
        }
    }

    /// Sends a question (with NLM_F_DUMP: for a whole list) and returns the answers.
    fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        for _ in 0..ATTEMPTS {
            match self.ask_once(question.clone(), flags) {
                Ok(None) => {}
                // Announcements filled the buffer and the answer found no room.
                Err(refusal) if refusal.code == Errno::ENOBUFS => {}
                Ok(Some(answers)) => return Ok(answers),
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// The answers, or nothing if the list changed while the kernel told it.
    fn ask_once(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, Refusal> {
        self.discard()?;
        let mut bytes = Vec::new();
        self.compose(question, NLM_F_REQUEST | NLM_F_ACK | flags, &mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        let mut consistent = true;
        loop {
            for (header, payload) in self.receive()?.into_iter().map(Message::into_parts) {
                if header.sequence_number != self.sequence {
                    self.heard = true;
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(end) if end.code.is_some() => {
                        return Err(read_refusal(end.raw_code(), &end.header));
                    }
                    NetlinkPayload::Done(end) if end.code < 0 => {
                        return Err(Errno::from_raw(-end.code).into());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return Ok(consistent.then_some(answers));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Takes out and forgets what has come: announcements older than the question to come. While
    /// they fill the buffer an answer finds no room, and the kernel says so (ENOBUFS) only once
    /// until the buffer has been empty.
    fn discard(&mut self) -> Result<(), Refusal> {
        loop {
            self.datagram.clear();
            match self.socket.recv(&mut self.datagram, nix::libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) => match Errno::try_from(error) {
                    Ok(Errno::EAGAIN) => return Ok(()),
                    Ok(Errno::EINTR | Errno::ENOBUFS) => {}
                    error => return Err(error.unwrap_or(Errno::EIO).into()),
                },
            }
        }
    }

    /// Calls `check` until it finds what it looks for: at once, then after each announcement in
    /// `group` that `concerns` it; none when `timeout` is over. The socket listens before it first
    /// checks, so nothing is missed.
    fn watch<T>(
        &mut self,
        group: MulticastGroup,
        timeout: Duration,
        mut check: impl FnMut(&mut Self) -> Result<Option<T>>,
        concerns: impl Fn(&RouteNetlinkMessage) -> bool,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        let group = group as u32;
        self.socket.add_membership(group).context("cannot listen to the kernel")?;
        let found = loop {
            match check(self) {
                Ok(None) => {}
                found => break found,
            }
            match self.wait_for(&concerns, deadline) {
                Ok(true) => {}
                Ok(false) => break Ok(None),
                Err(refusal) => break Err(refusal.explain("listen to the kernel")),
            }
        };
        self.socket.drop_membership(group).context("cannot stop listening to the kernel")?;
        found
    }

    /// Whether an announcement that `concerns` the caller came before `deadline`.
    fn wait_for(
        &mut self,
        concerns: impl Fn(&RouteNetlinkMessage) -> bool,
        deadline: Instant,
    ) -> Result<bool, Refusal> {
        if std::mem::take(&mut self.heard) {
            return Ok(true);
        }
        while self.wait(deadline)? {
            let is_concerned = match self.receive() {
                Ok(events) => events.iter().any(|event| match &event.payload {
                    NetlinkPayload::InnerMessage(event) => concerns(event),
                    _ => false,
                }),
                // More announcements than the buffer holds: it may have been among them.
                Err(refusal) if refusal.code == Errno::ENOBUFS => true,
                Err(refusal) => return Err(refusal),
            };
            if is_concerned {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether there is something to receive before `deadline`.
    fn wait(&self, deadline: Instant) -> Result<bool, Refusal> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to spin through the last millisecond.
            let left =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], left) {
                Err(Errno::EINTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    /// Appends one request to a datagram.
    fn compose(&mut self, message: RouteNetlinkMessage, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Message::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    /// The messages of the next datagram. Waits for it.
    fn receive(&mut self) -> Result<Vec<Message>, Refusal> {
        self.datagram.clear();
        let length = loop {
            match self.socket.recv(&mut self.datagram, nix::libc::MSG_TRUNC) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                length => break length?,
            }
        };
        if length > self.datagram.len() {
            return Err(Errno::EMSGSIZE.into());
        }
        let mut messages = Vec::new();
        let mut rest = self.datagram.as_slice();
        while !rest.is_empty() {
            let message = Message::deserialize(rest).map_err(|error| Refusal {
                code: Errno::EBADMSG,
                words: Some(error.to_string()),
            })?;
            // The header was checked, so this is not zero.
            let length = message.header.length.next_multiple_of(4) as usize;
            rest = rest.get(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
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

/// Asks for the way to one destination. A VRF's own interface as the way out has the kernel look
/// into its table.
fn route_query(to: Ipv6Addr, vrf: Option<Vrf>) -> RouteNetlinkMessage {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet6;
    query.header.destination_prefix_length = 128;
    query.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(to)));
    query.attributes.extend(vrf.map(|vrf| RouteAttribute::Oif(vrf.index)));
    RouteNetlinkMessage::GetRoute(query)
}

/// The body of a message about local routes with our mark: that for `prefix`, or all; with that
/// metric, or any.
fn local_route(prefix: Option<Prefix>, metric: Option<u32>) -> RouteMessage {
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
fn in_table(mut message: RouteMessage, vrf: Option<Vrf>) -> RouteMessage {
    if let Some(vrf) = vrf {
        message.header.table = 0; // the attribute holds it, which has room for larger numbers
        message.attributes.push(RouteAttribute::Table(vrf.table));
    }
    message
}

/// What the attributes of an interface say of the VRF that it is in.
fn vrf_of(attributes: &[LinkAttribute]) -> Option<Vrf> {
    let index = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    })?;
    let infos = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::VrfPort(data)) => {
            data.iter().find_map(|data| match data {
                InfoVrf::TableId(table) => Some(Vrf { index, table: *table }),
                _ => None,
            })
        }
        _ => None,
    })
}

/// A refusal from its negative error number and what follows the number in the answer: the header
/// of the request, then attributes, one of which may be a text.
fn read_refusal(code: i32, rest: &[u8]) -> Refusal {
    const REQUEST_HEADER: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let words = NlasIterator::new(rest.get(REQUEST_HEADER..).unwrap_or_default())
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned()
        });
    Refusal { code: Errno::from_raw(code.wrapping_neg()), words }
}

fn new_link(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else {
        return None;
    };
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        link_type: message.header.link_layer_type.into(),
        mtu: 0,
        tx_queues: 1,
        rx_queues: 1,
        up: message.header.flags.contains(LinkFlags::Up),
        carrier: message.header.flags.contains(LinkFlags::LowerUp),
        carrier_losses: 0,
        all_multicast: message.header.flags.contains(LinkFlags::Allmulti),
        arp: !message.header.flags.contains(LinkFlags::Noarp),
        ipv6: false,
        alias: None,
        xdp: None,
        kind: None,
        master: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = bytes.try_into().unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::CarrierDownCount(count) => link.carrier_losses = count,
            LinkAttribute::NumTxQueues(queues) => link.tx_queues = queues,
            LinkAttribute::NumRxQueues(queues) => link.rx_queues = queues,
            LinkAttribute::AfSpecUnspec(families) => link.ipv6 = does_ipv6(&families),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Xdp(attributes) => link.xdp = attached_program(&attributes),
            LinkAttribute::LinkInfo(infos) => link.kind = kind(&infos),
            LinkAttribute::Controller(index) => {
                link.master = Some(index).filter(|index| *index != 0)
            }
            _ => {}
        }
    }
    Some(link)
}

fn does_ipv6(families: &[AfSpecUnspec]) -> bool {
    families.iter().any(|family| match family {
        AfSpecUnspec::Inet6(facts) => facts.iter().any(
            |fact| matches!(fact, AfSpecInet6::DevConf(settings) if settings.disable_ipv6 == 0),
        ),
        _ => false,
    })
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn attached_program(attributes: &[LinkXdp]) -> Option<AttachedProgram> {
    attributes.iter().find_map(|attribute| {
        let (mode, id) = match *attribute {
            LinkXdp::DrvProgId(id) => (AttachMode::Native, id),
            LinkXdp::SkbProgId(id) => (AttachMode::Generic, id),
            LinkXdp::HwProgId(id) => (AttachMode::Offload, id),
            _ => return None,
        };
        Some(AttachedProgram { mode, id })
    })
}

fn new_address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut ours = false;
    let mut tentative = false;
    for attribute in &message.attributes {
        match attribute {
            // Where both are there, this one is the peer's.
            AddressAttribute::Address(IpAddr::V6(address)) => ip = ip.or(Some(*address)),
            AddressAttribute::Local(IpAddr::V6(address)) => ip = Some(*address),
            AddressAttribute::Protocol(AddressProtocol::Other(OUR_PROTOCOL)) => ours = true,
            AddressAttribute::Flags(flags) => tentative = flags.contains(AddressFlags::Tentative),
            _ => {}
        }
    }
    Some(Address { ip: ip?, prefix_length: message.header.prefix_len, ours, tentative })
}

/// What an entry of the neighbour table says: an address, that there is none (`Some(None)`), or
/// nothing yet.
fn verdict(entry: &NeighbourMessage) -> Option<Option<[u8; 6]>> {
    match entry.header.state {
        NeighbourState::Failed => Some(None),
        NeighbourState::Incomplete | NeighbourState::None => None,
        _ => entry.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::LinkLayerAddress(mac) => Some(mac.as_slice().try_into().ok()),
            _ => None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // None of these changes anything, nor needs root.

    #[test]
    fn loopback_is_found_by_name_and_in_the_list() {
        let loopback = link("lo").unwrap();
        assert_eq!((loopback.name.as_str(), loopback.mac), ("lo", [0; 6]));
        assert_eq!((loopback.link_type, loopback.is_ethernet()), (ARPHRD_LOOPBACK, true));
        assert_eq!(vrf(loopback.index).unwrap(), None);
        assert!(links().unwrap().contains(&loopback));
    }

    #[test]
    fn loopback_is_found_by_its_index_and_no_interface_is_none() {
        let loopback = link("lo").unwrap();
        assert_eq!(link_at(loopback.index).unwrap(), Some(loopback));
        assert_eq!(link_at(i32::MAX as u32).unwrap(), None);
        assert_eq!(name_of(i32::MAX as u32, "gone0"), "gone0");
    }

    #[test]
    fn unknown_interface_is_told_with_those_there_are() {
        for name in ["eth-none", "", "a name that is much too long for one"] {
            let error = link(name).unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("no interface '{name}' here: there are lo")),
                "{error}"
            );
        }
    }

    #[test]
    fn loopback_has_no_peer() {
        assert_eq!(peer(link("lo").unwrap().index), None);
        assert_eq!(peer(i32::MAX as u32), None);
    }

    #[test]
    fn addresses_of_no_interface_are_an_error() {
        let error = addresses(i32::MAX as u32).unwrap_err().to_string();
        assert!(error.ends_with("there is no such interface here"), "{error}");
    }

    #[test]
    fn a_vrf_is_known_by_its_port_and_its_table_is_asked() {
        let port = |table| LinkInfo::PortData(InfoPortData::VrfPort(vec![InfoVrf::TableId(table)]));
        let in_vrf =
            |table| vec![LinkAttribute::Controller(7), LinkAttribute::LinkInfo(vec![port(table)])];
        let far = vrf_of(&in_vrf(1000));
        assert_eq!(far, Some(Vrf { index: 7, table: 1000 }));
        // A bridge has ports too.
        let bridged =
            LinkAttribute::LinkInfo(vec![LinkInfo::PortData(InfoPortData::BridgePort(vec![]))]);
        assert_eq!(vrf_of(&[LinkAttribute::Controller(7), bridged]), None);
        assert_eq!(vrf_of(&[LinkAttribute::LinkInfo(vec![port(10)])]), None);

        let message = in_table(local_route(None, Some(3)), far);
        assert_eq!(message.header.table, 0);
        assert!(message.attributes.contains(&RouteAttribute::Table(1000)));
        assert_eq!(in_table(local_route(None, None), None).header.table, 255);
        let asks = |vrf| match route_query(Ipv6Addr::LOCALHOST, vrf) {
            RouteNetlinkMessage::GetRoute(query) => {
                query.attributes.contains(&RouteAttribute::Oif(7))
            }
            _ => false,
        };
        assert!(asks(far) && !asks(None));
    }

    #[test]
    fn every_refusal_of_a_batch_has_its_position() {
        let change = || {
            let mut change = LinkMessage::default();
            change.header.index = i32::MAX as u32;
            (RouteNetlinkMessage::SetLink(change), 0)
        };
        let mut socket = Socket::open().unwrap();
        for count in [0, 1, 2, 200] {
            let refused = socket.tell(std::iter::repeat_with(change).take(count)).unwrap();
            assert!(refused.iter().map(|(position, _)| *position).eq(0..count));
            // The former as root, the latter otherwise.
            assert!(
                refused.iter().all(|(_, why)| matches!(why.code, Errno::ENODEV | Errno::EPERM))
            );
        }
        assert_eq!(socket.link("lo").unwrap().name, "lo", "an answer was left over");
    }

    #[test]
    fn refusal_has_the_words_of_the_kernel() {
        let mut rest = vec![0; 16];
        rest.extend([8, 0, 1, 0]);
        rest.extend(b"no!\0");
        let refusal = read_refusal(-(Errno::EINVAL as i32), &rest);
        assert_eq!(refusal.to_string(), "Invalid argument (no!)");
        // Whatever is cut off, it is still a refusal.
        for length in 0..rest.len() {
            assert_eq!(read_refusal(-(Errno::EINVAL as i32), &rest[..length]).code, Errno::EINVAL);
        }
        assert_eq!(read_refusal(i32::MIN, &[]).code, Errno::UnknownErrno);
    }

    #[test]
    fn neighbour_counts_when_it_has_an_address() {
        let entry = |state, mac: Option<&[u8]>| {
            let mut entry = NeighbourMessage::default();
            entry.header.state = state;
            entry
                .attributes
                .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
            verdict(&entry)
        };
        let mac = [2, 0, 0, 0, 0, 7];
        assert_eq!(entry(NeighbourState::Incomplete, None), None);
        assert_eq!(entry(NeighbourState::Failed, Some(&mac)), Some(None));
        for state in [NeighbourState::Reachable, NeighbourState::Stale, NeighbourState::Permanent] {
            assert_eq!(entry(state, Some(&mac)), Some(Some(mac)));
        }
        assert_eq!(entry(NeighbourState::Reachable, Some(&mac[..4])), Some(None));
    }
}
