//! What is looked at before a server changes anything: that the interface has IPv6, that there is
//! room for so many addresses, and that taking the prefix takes nothing from others. And the
//! largest request that its rings will hold.

use anyhow::{Result, bail, ensure};

use super::ServerConfig;
use crate::address::{Prefix, Targets, timed};
use crate::engine::{EngineKind, Modes};
use crate::host;
use crate::live::Method;
use crate::net::ethtool;
use crate::net::netlink::{self, Link, TableRoute};
use crate::xdp::LiveAddresses;

/// Looks at all of it. `kind` is the engine that there will be.
pub(super) fn before(link: &Link, config: &ServerConfig, kind: Option<EngineKind>) -> Result<()> {
    let hidden = config.bind == Method::LiveMap;
    ensure!(
        !config.multicast_router || hidden,
        "--multicast-router is for --bind live-map: the kernel reports the groups of its own \
         addresses"
    );
    fits(link, kind, hidden)?;
    ensure!(
        !(hidden && config.engine.is_some() && netlink::vrf(link.index)?.is_some()),
        "{} is in a VRF, where the kernel cannot be had to take only what comes from it, as \
         live-map needs for requests in \
         fragments: use --bind netlink, or take it out with 'ip link set {0} nomaster'",
        link.name
    );
    host::has_ipv6(link)?;
    has_room(&config.targets, config.bind, kind)?;
    if matches!(config.bind, Method::LiveMap | Method::Anyip) && !config.take_prefix {
        takes_nothing(link, config.targets.prefix(), config.bind)?;
    }
    Ok(())
}

/// Refuses a link on which the engine would receive nothing, or the binding reach nobody.
fn fits(link: &Link, engine: Option<EngineKind>, hidden: bool) -> Result<()> {
    let Some(engine) = engine.filter(|engine| engine.sees_frames()) else { return Ok(()) };
    ensure!(
        link.is_ethernet(),
        "{} carries no Ethernet frames (link type {}, a tunnel's), and {engine} takes no others: \
         use --engine socket-gso, or another of \
         the socket engines, with --bind netlink",
        link.name,
        link.link_type
    );
    ensure!(
        !hidden || ethtool::driver(&link.name)? != "ipvlan",
        "{} is an ipvlan, which gets only what is for the kernel's addresses, and those of \
         live-map are none: use --bind netlink, or a \
         macvlan",
        link.name
    );
    Ok(())
}

/// Whether the kernel's maps and this machine's memory hold so many addresses.
fn has_room(targets: &Targets, bind: Method, kind: Option<EngineKind>) -> Result<()> {
    let count = targets.count();
    let steers = kind.is_some_and(EngineKind::steers);
    if matches!(targets, Targets::Pool(_)) && steers {
        ensure!(
            count <= LiveAddresses::MOST,
            "{count} addresses are too many: the kernel holds at most {} in the XDP program's \
             hash; use fewer",
            LiveAddresses::MOST
        );
    }
    let bytes = match targets {
        Targets::Pool(_) => {
            // Unless they are hidden, a list is made for the program as well.
            let lists = if steers && bind != Method::LiveMap { 2 } else { 1 };
            let map = if steers { LiveAddresses::memory(count) } else { 0 };
            let address = size_of::<std::net::Ipv6Addr>() as u64;
            count.saturating_mul(lists * address).saturating_add(map)
        }
        Targets::Moving(timetable) => timed::Layout::new(timetable.clients()).bytes(),
    };
    host::has_memory(bytes, format_args!("{count} addresses"))
}

/// Whether all that the prefix takes from this machine is what comes to `link`, and nothing that it
/// has routes for elsewhere.
fn takes_nothing(link: &Link, prefix: Prefix, method: Method) -> Result<()> {
    let routes = netlink::routes(link.index)?;
    let own: Vec<_> = std::iter::once(link.index).chain(link.master).collect();
    let Some(route) = in_the_way(&own, prefix, &routes) else { return Ok(()) };
    let through = netlink::links()?.into_iter().find(|other| Some(other.index) == route.interface);
    let through = through.map_or_else(|| "several interfaces".to_owned(), |other| other.name);
    bail!(
        "--prefix {prefix} takes what this machine has a route for, {} through {through}: {method} \
         would keep every packet for it that comes to {}; use a prefix that nothing else is in, or \
         --take-prefix where that is meant",
        route.prefix,
        link.name
    )
}

/// A route, other than to the link itself, of which the interfaces `own` are, by which packets to
/// some address under `prefix` go.
fn in_the_way<'a>(own: &[u32], prefix: Prefix, routes: &'a [TableRoute]) -> Option<&'a TableRoute> {
    let is_own = |route: &&TableRoute| {
        route.on_link && route.interface.is_some_and(|index| own.contains(&index))
    };
    let others = || routes.iter().filter(|route| route.prefix.length() > 0 && !is_own(route));
    let under = others().find(|route| prefix.covers(&route.prefix));
    // Where the prefix is part of the subnet of another interface. The route that is longer counts.
    let own_length = routes.iter().filter(is_own).filter(|route| route.prefix.covers(&prefix));
    let own_length = own_length.map(|route| route.prefix.length()).max().unwrap_or(0);
    under.or_else(|| {
        others().find(|route| {
            route.on_link && route.prefix.covers(&prefix) && route.prefix.length() >= own_length
        })
    })
}

/// Bytes of IPv6 and UDP headers.
const HEADERS: u32 = 40 + 8;

/// What to say where the interface can receive a request that is too large for the engine.
pub(super) fn too_large(link: &Link, kind: Option<EngineKind>, modes: &Modes) -> Option<String> {
    let possible = link.mtu.saturating_sub(HEADERS);
    let (served, otherwise) = (kind?.about()?.longest)(modes)?;
    (served < possible).then(|| {
        format!(
            "the MTU of {0} is {1}, and requests of up to {served} bytes are served: {otherwise}; \
             ip link set dev {0} mtu {2} keeps them away",
            link.name,
            link.mtu,
            served + HEADERS
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::RingSizes;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn routes_of_others_under_a_prefix_are_in_the_way() {
        let route = |text: &str, interface: u32, on_link| TableRoute {
            prefix: if text == "default" {
                Prefix::around(std::net::Ipv6Addr::UNSPECIFIED, 0)
            } else {
                prefix(text)
            },
            interface: Some(interface),
            on_link,
        };
        let found = |own: &str, routes: &[TableRoute]| {
            in_the_way(&[2], prefix(own), routes).map(|route| route.prefix.to_string())
        };
        let machine = [
            route("default", 2, false),
            route("2001:db8:1::/64", 2, true),
            route("2001:db8:5::/64", 3, true),
            route("2001:db8:6::/48", 2, false),
            route("2001:db8:8000::/33", 3, false),
        ];
        for (own, expected) in [
            ("2001:db8:1::/64", None), // that of its own link
            ("2001:db8:1::/96", None),
            ("2001:db8:9::/64", None),    // only the default route has it
            ("2001:db8:9000::/64", None), // a router's, who does not get it if the machine does
            ("2001:db8::/32", Some("2001:db8:5::/64")),
            ("2001:db8:5::/64", Some("2001:db8:5::/64")),
            ("2001:db8:5::/96", Some("2001:db8:5::/64")), // a part of the other subnet
            ("2001:db8:6::/48", Some("2001:db8:6::/48")), // forwarded by a router on the same link
        ] {
            assert_eq!(found(own, &machine).as_deref(), expected, "{own}");
        }
        // Two interfaces in one subnet: each packet goes by the longer of the routes.
        let both = [route("2001:db8::/32", 3, true), route("2001:db8:1::/64", 2, true)];
        assert_eq!(found("2001:db8:1::/64", &both), None);
        assert_eq!(found("2001:db8:2::/64", &both).as_deref(), Some("2001:db8::/32"));
        let several = TableRoute { interface: None, ..route("2001:db8:5::/64", 0, false) };
        assert_eq!(found("2001:db8::/32", &[several]).as_deref(), Some("2001:db8:5::/64"));
    }

    #[test]
    fn requests_that_are_too_large_are_told_of_where_they_can_come() {
        let said = |mtu, kind, frame_size| {
            let link = Link { mtu, ..netlink::link("lo").unwrap() };
            let rings = RingSizes { frames: 1, frame_size, fill: 1, rx: 1, tx: 1, completion: 1 };
            too_large(&link, Some(kind), &Modes { rings: Some(rings), ..Modes::default() })
        };
        assert_eq!(said(3826, EngineKind::AFXDP, 4096), None);
        let words = said(3827, EngineKind::AFXDP, 4096).unwrap();
        assert!(words.contains("up to 3778 bytes") && words.contains("mtu 3826"), "{words}");
        assert_eq!(said(1500, EngineKind::SOCKET_GSO, 2048), None);
        assert!(said(9000, EngineKind::URING, 2048).unwrap().contains("up to 1452 bytes"));
        assert_eq!(said(9000, EngineKind::REFLECT, 4096), None);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_number_that_does() {
        let pool = |count| {
            Targets::from(crate::address::Pool::new(prefix("2001:db8::/64"), count, 1).unwrap())
        };
        let said = |count, bind, kind| {
            has_room(&pool(count), bind, kind).map_err(|error| error.to_string())
        };
        assert_eq!(said(1000, Method::LiveMap, Some(EngineKind::AFXDP)), Ok(()));
        let many = said(400_000_000, Method::LiveMap, Some(EngineKind::AFXDP)).unwrap_err();
        assert!(many.contains("at most 134217728"), "{many}");
        let list = said(1 << 60, Method::Netlink, Some(EngineKind::SOCKET)).unwrap_err();
        assert!(list.contains("MiB of memory"), "{list}");
    }
}
