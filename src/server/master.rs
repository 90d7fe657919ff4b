//! Ports of a bridge or bond. The kernel passes their packets to the device above, including
//! solicitations for addresses of the port. Only a program on the port sees them first.

use super::error::InterfaceError;
use crate::live::Method;
use crate::net::netlink::Link;
use crate::net::quirks::{self, Act};

/// Refuses to make addresses live on `link`, a port of `above`, if nobody would ever find them.
/// Otherwise returns a note about what such a server does not see.
///
/// # Errors
/// When `bind` is useless there, with what to do about it.
pub(super) fn may_serve(
    link: &Link,
    above: Option<&Link>,
    bind: Method,
    serves: bool,
) -> Result<Option<String>, InterfaceError> {
    let Some(above) = above else { return Ok(None) };
    let kind = above.kind.as_deref();
    if takes_packets(kind) && !works(kind, bind) {
        let (port, kind) = (link.name.clone(), kind.unwrap_or("device above it").to_owned());
        return Err(InterfaceError::IsPort { port, above: above.name.clone(), kind, bind, serves });
    }
    // Its program sees only this port's packets, whichever method makes the addresses live.
    Ok(takes_packets(kind).then(|| {
        format!(
            "{} is a port of {}: requests that come by other ports of it are not answered",
            link.name, above.name
        )
    }))
}

/// Whether a device of that kind takes over the packets of its ports. A VRF does not.
pub fn takes_packets(kind: Option<&str>) -> bool {
    !quirks::of_kind(kind).has(Act::LeavePorts)
}

/// Whether addresses that `bind` makes live on a port can be reached. A bridge takes over the IPv6
/// routes of its ports. A bond's packets still go through the routing table, which is all AnyIP
/// needs.
fn works(kind: Option<&str>, bind: Method) -> bool {
    match bind {
        Method::LiveMap | Method::None => true,
        Method::Anyip => quirks::of_kind(kind).has(Act::AllowAnyip),
        Method::Netlink
        | Method::NetlinkBatch
        | Method::NetlinkDown
        | Method::Ioctl
        | Method::Command
        | Method::Ifconfig => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_no_addresses_of_the_kernels() {
        let bridge = Some("bridge");
        assert!(works(bridge, Method::LiveMap) && works(bridge, Method::None));
        assert!(!works(bridge, Method::Anyip) && works(Some("bond"), Method::Anyip));
        for bind in [Method::Netlink, Method::NetlinkDown, Method::Ioctl, Method::Command] {
            assert!(!works(bridge, bind) && !works(Some("bond"), bind) && !works(None, bind));
        }
        assert!(takes_packets(bridge) && takes_packets(None) && !takes_packets(Some("vrf")));
    }
}
