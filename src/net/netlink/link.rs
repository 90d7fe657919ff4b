//! Interfaces.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, InfoKind, InfoPortData, InfoVeth, InfoVrf, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};

use super::socket::{Connection, KernelError};
use crate::events::{AttachMode, AttachedProgram};

/// A Linux interface, as the kernel described it at the time of the query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number, unique in its namespace.
    pub index: u32,
    /// Its name, such as `server0`.
    pub name: String,
    /// Its Ethernet address; all zero if it has none.
    pub mac: [u8; 6],
    /// Its link type, an ARPHRD of linux/if_arp.h such as [`ARPHRD_ETHER`].
    pub link_type: u16,
    /// Largest packet without the Ethernet header, in bytes.
    pub mtu: u32,
    /// Transmit queues that it was created with. Not all need to be in use.
    pub tx_queues: u32,
    /// Receive queues that it was created with. Not all need to be in use.
    pub rx_queues: u32,
    /// Whether it is up (IFF_UP).
    pub up: bool,
    /// Whether it has a carrier (IFF_LOWER_UP).
    pub carrier: bool,
    /// How often it has lost its carrier, including by being set down (IFLA_CARRIER_DOWN_COUNT).
    pub carrier_losses: u32,
    /// Whether IFF_ALLMULTI is set on it. All-multicast mode that sockets requested does not count.
    pub all_multicast: bool,
    /// Whether it uses neighbour discovery (no IFF_NOARP).
    pub arp: bool,
    /// Whether IPv6 is enabled on it: not with `disable_ipv6` set, nor with an MTU below 1280.
    pub ipv6: bool,
    /// Its alias, a text set by its creator.
    pub alias: Option<String>,
    /// The XDP program attached to it.
    pub xdp: Option<AttachedProgram>,
    /// The kind of virtual device, such as `veth` or `bond` (IFLA_INFO_KIND); `None` for a card.
    pub kind: Option<String>,
    /// Index of the bridge, bond or VRF that it is a port of (IFLA_MASTER).
    pub master: Option<u32>,
}

/// Ethernet, and virtual Ethernet: veth, bridge, macvlan, tap.
pub const ARPHRD_ETHER: u16 = 1;

/// The loopback interface, whose frames have an Ethernet header of zeros.
pub const ARPHRD_LOOPBACK: u16 = 772;

/// No link-layer header at all: tun, WireGuard.
pub const ARPHRD_NONE: u16 = 65534;

impl Link {
    /// Whether its packets begin with an Ethernet header. Those of tunnels begin with the IP
    /// header.
    #[must_use]
    pub fn is_ethernet(&self) -> bool {
        is_ethernet(self.link_type)
    }
}

/// Whether packets of that link type begin with an Ethernet header.
#[must_use]
pub fn is_ethernet(link_type: u16) -> bool {
    matches!(link_type, ARPHRD_ETHER | ARPHRD_LOOPBACK)
}

/// The VRF (virtual routing and forwarding) of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vrf {
    /// Index of the VRF's own interface.
    pub index: u32,
    /// Its routing table, which also holds the local routes of its interfaces' addresses.
    pub table: u32,
}

/// The VRF of the interface with that index; `None` if it is in none.
///
/// # Errors
/// When there is no such interface.
pub fn vrf(index: u32) -> Result<Option<Vrf>> {
    Connection::open()?.vrf(index)
}

/// The interface with that name or alternative name.
///
/// # Errors
/// When there is none; the message lists the existing ones.
pub fn link(name: &str) -> Result<Link> {
    Connection::open()?.link(name)
}

/// The interface with that index, whatever its current name; `None` if there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn link_at(index: u32) -> Result<Option<Link>> {
    Connection::open()?.link_at(index)
}

/// The current name of the interface with that index; `last` if there is none.
pub(crate) fn name_of(index: u32, last: &str) -> String {
    link_at(index).ok().flatten().map_or_else(|| last.to_owned(), |link| link.name)
}

/// All interfaces of the namespace, in the order of their indices.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn links() -> Result<Vec<Link>> {
    Connection::open()?.links()
}

/// The interface that the one with that index is paired with or stacked on, in any namespace: for a
/// veth, its peer. `None` if there is none, or if it may not be seen: looking into another
/// namespace needs CAP_NET_ADMIN.
#[must_use]
pub fn peer(index: u32) -> Option<Link> {
    Connection::open().ok()?.peer(index)
}

/// Sets the interface with that index up or down. Going down, it loses its routes and, unless
/// `keep_addr_on_down` is set, its IPv6 addresses.
///
/// # Errors
/// When there is no such interface, or without CAP_NET_ADMIN.
pub fn set_up(index: u32, up: bool) -> Result<()> {
    Connection::open()?.set_up(index, up)
}

/// Waits for the kernel to announce that the interface is up and has a carrier.
///
/// # Errors
/// When there is no such interface, or it has no carrier after `timeout`.
pub fn wait_for_carrier(name: &str, timeout: Duration) -> Result<()> {
    Connection::open()?.wait_for_carrier(name, timeout)
}

/// An alternative name of an interface (linux/if_link.h).
const IFLA_ALT_IFNAME: u16 = 53;

impl Connection {
    pub fn link(&mut self, name: &str) -> Result<Link> {
        let by = |attribute| {
            let mut query = LinkMessage::default();
            query.attributes.push(attribute);
            RouteNetlinkMessage::GetLink(query)
        };
        let mut asked = Err(KernelError::from(Errno::ENODEV));
        if name.len() < nix::libc::IFNAMSIZ {
            asked = self.ask(by(LinkAttribute::IfName(name.to_owned())), 0);
        }
        if matches!(&asked, Err(refusal) if refusal.code == Errno::ENODEV) {
            // Alternative names (ip link property add … altname) may have up to 127 characters.
            let alternative = DefaultNla::new(IFLA_ALT_IFNAME, [name.as_bytes(), b"\0"].concat());
            asked = self.ask(by(LinkAttribute::Other(alternative)), 0);
        }
        match asked {
            Ok(answers) => answers
                .into_iter()
                .find_map(new_link)
                .with_context(|| format!("the kernel did not describe {name}")),
            // EINVAL and ERANGE: an invalid name, or a kernel before 5.5, which has no alternative
            // names.
            Err(refusal)
                if matches!(refusal.code, Errno::ENODEV | Errno::EINVAL | Errno::ERANGE) =>
            {
                let names: Vec<_> = self.links()?.into_iter().map(|link| link.name).collect();
                bail!("no interface '{name}' here, only {}", names.join(", "))
            }
            Err(refusal) => Err(refusal.explain(format_args!("find {name}"))),
        }
    }

    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        match self.ask(RouteNetlinkMessage::GetLink(query), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(new_link)),
            Err(refusal) if refusal.code == Errno::ENODEV => Ok(None),
            Err(refusal) => Err(refusal.explain(format_args!("find interface {index}"))),
        }
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let query = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self
            .ask(query, NLM_F_DUMP)
            .map_err(|refusal| refusal.explain("list the interfaces"))?;
        Ok(answers.into_iter().filter_map(new_link).collect())
    }

    pub(super) fn peer(&mut self, index: u32) -> Option<Link> {
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

    /// The same for the interface with that index, even if it is renamed meanwhile; `name` is for
    /// the error.
    pub fn wait_for_carrier_of(&mut self, index: u32, name: &str, timeout: Duration) -> Result<()> {
        let has_carrier = |socket: &mut Self| {
            let link = socket.link_at(index)?.with_context(|| format!("{name} disappeared"))?;
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

    /// The VRF of the interface with that index; `None` if it is in none.
    pub fn vrf(&mut self, index: u32) -> Result<Option<Vrf>> {
        let mut query = LinkMessage::default();
        query.header.index = index;
        let answers = self
            .ask(RouteNetlinkMessage::GetLink(query), 0)
            .map_err(|refusal| refusal.explain(format_args!("query interface {index}")))?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => vrf_of(&link.attributes),
            _ => None,
        }))
    }

    /// Creates a veth pair with `queues` queues each way: `near` here and `far` in `far_namespace`,
    /// both with `alias`.
    ///
    /// One datagram carries all of it. The kernel processes it to the end even if the sender is
    /// killed, so no pair exists without its alias.
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
        // The kernel ignores an alias when it creates a link.
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

    /// Moves an interface that is down into another namespace, and gives it a new name and an
    /// alias.
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

    /// Deletes an interface, unless it is already gone. Deleting one end of a veth pair deletes
    /// both.
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
}

/// Reads the VRF from the attributes of an interface.
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

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use rtnetlink::packet_route::route::RouteAttribute;

    use super::super::route::{in_table, local_route, route_query};
    use super::*;

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
            assert!(error.starts_with(&format!("no interface '{name}' here, only lo")), "{error}");
        }
    }

    #[test]
    fn loopback_has_no_peer() {
        assert_eq!(peer(link("lo").unwrap().index), None);
        assert_eq!(peer(i32::MAX as u32), None);
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
}
