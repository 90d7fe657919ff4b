//! Checks that a plan makes before a server changes anything: the interface has IPv6, the addresses
//! fit into memory, and taking the prefix takes nothing from others. Also the largest request that
//! its rings hold.

use super::ServerConfig;
use super::error::{ConfigError, InterfaceError, Refused};
use super::found::Found;
use crate::address::{Prefix, Targets, timed};
use crate::engine::{EngineKind, Modes};
use crate::host;
use crate::live::Method;
use crate::net::netlink::{Link, TableRoute};
use crate::net::quirks::{self, Act, Facts};
use crate::xdp::LiveAddresses;

/// Makes all checks. `kind` is the planned engine.
pub(super) fn before(
    config: &ServerConfig,
    found: &Found,
    kind: Option<EngineKind>,
) -> Result<(), Refused> {
    let hidden = config.bind == Method::LiveMap;
    let name = || found.link.name.clone();
    if config.multicast_router && !hidden {
        return Err(ConfigError::MulticastRouter.into());
    }
    fits(found, kind, hidden)?;
    if found.in_vrf && hidden && config.engine.is_some() {
        return Err(InterfaceError::InVrf(name()).into());
    }
    if let Some(why) = &found.no_ipv6 {
        return Err(InterfaceError::NoIpv6(why.clone()).into());
    }
    has_room(&config.targets, config.bind, kind, found.spare_memory)?;
    if takes_prefix(config) {
        takes_nothing(found, config.targets.prefix(), config.bind)?;
    }
    Ok(())
}

/// Whether to check that others have no part of the prefix: the kernel or the program takes every
/// packet for it, and the user did not confirm that.
pub(super) fn takes_prefix(config: &ServerConfig) -> bool {
    matches!(config.bind, Method::LiveMap | Method::Anyip) && !config.take_prefix
}

/// Refuses a link on which the engine would receive nothing, or nobody would find the addresses.
fn fits(found: &Found, engine: Option<EngineKind>, hidden: bool) -> Result<(), InterfaceError> {
    let Some(engine) = engine.filter(|engine| engine.sees_frames()) else { return Ok(()) };
    let link = &found.link;
    if !link.is_ethernet() {
        let (interface, link_type) = (link.name.clone(), link.link_type);
        return Err(InterfaceError::NoEthernet { interface, link_type, engine });
    }
    let quirks = quirks::of(Facts { driver: &found.driver, ..link.into() });
    if let Some(quirk) = quirks.find(Act::RefuseHidden).filter(|_| hidden) {
        return Err(InterfaceError::Unreachable(quirk.to_string()));
    }
    Ok(())
}

/// Checks that the kernel's maps and `spare` bytes of memory hold all addresses.
fn has_room(
    targets: &Targets,
    bind: Method,
    kind: Option<EngineKind>,
    spare: Option<u64>,
) -> Result<(), ConfigError> {
    let count = targets.count();
    let steers = kind.is_some_and(EngineKind::steers);
    if matches!(targets, Targets::Pool(_)) && steers && count > LiveAddresses::MOST {
        return Err(ConfigError::TooMany(count));
    }
    let bytes = match targets {
        Targets::Pool(_) => {
            // Unless the addresses are hidden, the process also keeps a list of them for the
            // program.
            let lists = if steers && bind != Method::LiveMap { 2 } else { 1 };
            let map = if steers { LiveAddresses::memory(count) } else { 0 };
            let address = size_of::<std::net::Ipv6Addr>() as u64;
            count.saturating_mul(lists * address).saturating_add(map)
        }
        Targets::Moving(timetable) => timed::TableLayout::new(timetable.clients()).bytes(),
    };
    let lacks = host::lacks_memory(bytes, spare, format_args!("{count} addresses"));
    lacks.map_or(Ok(()), |why| Err(ConfigError::NoMemory(why)))
}

/// Checks that the prefix takes only packets of this link, and no destination that the machine
/// routes elsewhere.
fn takes_nothing(found: &Found, prefix: Prefix, bind: Method) -> Result<(), ConfigError> {
    let link = &found.link;
    let own: Vec<_> = std::iter::once(link.index).chain(link.master).collect();
    let Some(route) = in_the_way(&own, prefix, &found.routes) else { return Ok(()) };
    let through = found.links.iter().find(|other| Some(other.index) == route.interface);
    let through =
        through.map_or_else(|| "several interfaces".to_owned(), |other| other.name.clone());
    let (route, interface) = (route.prefix, link.name.clone());
    Err(ConfigError::Routed { prefix, route, through, bind, interface })
}

/// The first route that packets to some address under `prefix` take, other than the on-link routes
/// of the interfaces `own`.
fn in_the_way<'a>(own: &[u32], prefix: Prefix, routes: &'a [TableRoute]) -> Option<&'a TableRoute> {
    let is_own = |route: &&TableRoute| {
        route.on_link && route.interface.is_some_and(|index| own.contains(&index))
    };
    let others = || routes.iter().filter(|route| route.prefix.length() > 0 && !is_own(route));
    let under = others().find(|route| prefix.covers(&route.prefix));
    // The prefix may be part of another interface's subnet. The longer route wins.
    let own_length = routes.iter().filter(is_own).filter(|route| route.prefix.covers(&prefix));
    let own_length = own_length.map(|route| route.prefix.length()).max().unwrap_or(0);
    under.or_else(|| {
        others().find(|route| {
            route.on_link && route.prefix.covers(&prefix) && route.prefix.length() >= own_length
        })
    })
}

/// Bytes of the IPv6 and UDP headers.
const HEADERS: u32 = 40 + 8;

/// A notice if the interface can receive requests that are too large for the engine.
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
    use crate::net::netlink;
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
            ("2001:db8:1::/64", None), // its own link's
            ("2001:db8:1::/96", None),
            ("2001:db8:9::/64", None),    // only the default route matches
            ("2001:db8:9000::/64", None), // a router's, which does not get it if the machine does
            ("2001:db8::/32", Some("2001:db8:5::/64")),
            ("2001:db8:5::/64", Some("2001:db8:5::/64")),
            ("2001:db8:5::/96", Some("2001:db8:5::/64")), // a part of the other subnet
            ("2001:db8:6::/48", Some("2001:db8:6::/48")), // forwarded by a router on the same link
        ] {
            assert_eq!(found(own, &machine).as_deref(), expected, "{own}");
        }
        // Two interfaces in one subnet: each packet takes the longer route.
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
            let spare = Some(1 << 30);
            has_room(&pool(count), bind, kind, spare).map_err(|error| error.to_string())
        };
        assert_eq!(said(1000, Method::LiveMap, Some(EngineKind::AFXDP)), Ok(()));
        let many = said(400_000_000, Method::LiveMap, Some(EngineKind::AFXDP)).unwrap_err();
        assert!(many.contains("at most 134217728"), "{many}");
        let list = said(1 << 60, Method::Netlink, Some(EngineKind::SOCKET)).unwrap_err();
        assert!(list.contains("MiB of memory"), "{list}");
        let unknown = has_room(&pool(1 << 60), Method::Netlink, Some(EngineKind::SOCKET), None);
        assert_eq!(unknown, Ok(()), "where the machine does not say, it may try");
    }
}
