//! A port of a bridge or a bond: the kernel hands its packets on to the device above, also those
//! that ask for addresses of the port. Only a program on the port sees them before.

use super::error::InterfaceError;
use crate::live::Method;
use crate::net::netlink::Link;
use crate::net::quirks::{self, Act};

/// Refuses to make addresses live on `link`, a port of `above`, where nobody would ever find them;
/// where they can be found, says what such a server does not see.
///
/// # Errors
/// When `bind` is of no use there, with what to do about it.
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
    // Only its program sees what comes: whatever makes addresses live, other ports are not its own.
    Ok(takes_packets(kind).then(|| {
        format!(
            "{} is a port of {}: requests that come by other ports of it are not answered",
            link.name, above.name
        )
    }))
}

/// Whether a device of that kind takes the packets of its ports for its own. A VRF leaves them
/// theirs.
pub fn takes_packets(kind: Option<&str>) -> bool {
    !quirks::of_kind(kind).has(Act::LeavePorts)
}

/// Whether addresses that `bind` makes live on a port can be reached. A bridge takes the IPv6
/// routes of its ports; a bond's packets still go by the routing table, and AnyIP needs no more.
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
