//! What the kernel says about a driver's XDP features: the generic netlink family "netdev"
//! (linux/netdev.h), since Linux 6.3. It only reads, and needs no privilege.

use std::io;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NlasIterator};
use rtnetlink::sys;

pub use crate::events::XdpFeatures;

/// The controller family, which looks up the others by name (linux/genetlink.h).
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

/// The query for an interface, and the attributes of its answer (linux/netdev.h).
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const NETDEV_A_DEV_XSK_FEATURES: u16 = 6;

/// Names of the bits, lowest first, as in Documentation/netlink/specs/netdev.yaml.
const FEATURES: [&str; 7] =
    ["basic", "redirect", "ndo-xmit", "xsk-zerocopy", "hw-offload", "rx-sg", "ndo-xmit-sg"];
const RX_METADATA: [&str; 3] = ["timestamp", "hash", "vlan-tag"];
const XSK: [&str; 3] = ["tx-timestamp", "tx-checksum", "tx-launch-time-fifo"];

impl XdpFeatures {
    /// Whether the driver has `feature`.
    #[must_use]
    pub fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|name| name == feature)
    }
}

/// The XDP features of the interface with that index, in the calling thread's namespace. `None` if
/// the kernel does not have the netdev family.
///
/// # Errors
/// When there is no such interface, or no generic netlink.
pub fn xdp_features(index: u32) -> io::Result<Option<XdpFeatures>> {
    let mut socket = sys::Socket::new(sys::protocols::NETLINK_GENERIC)?;
    socket.bind_auto()?;
    // Connected to the kernel, the socket receives from nobody else.
    socket.connect(&sys::SocketAddr::new(0, 0))?;
    let query = request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let family = match ask(&socket, &query) {
        Err(Errno::ENOENT) => return Ok(None),
        answer => find(&answer?, CTRL_ATTR_FAMILY_ID)
            .and_then(|id| Some(u16::from_ne_bytes(*id.first_chunk()?))),
    };
    let family = family.ok_or(Errno::EBADMSG)?;
    let query = request(family, NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes());
    let answer = ask(&socket, &query)?;
    let named = |attribute, names: &[&str]| {
        let bits = find(&answer, attribute)
            .and_then(|bits| Some(u64::from_ne_bytes(*bits.first_chunk()?)));
        bits_by_name(bits.unwrap_or(0), names)
    };
    Ok(Some(XdpFeatures {
        features: named(NETDEV_A_DEV_XDP_FEATURES, &FEATURES),
        zero_copy_segments: find(&answer, NETDEV_A_DEV_XDP_ZC_MAX_SEGS)
            .and_then(|segments| Some(u32::from_ne_bytes(*segments.first_chunk()?))),
        rx_metadata: named(NETDEV_A_DEV_XDP_RX_METADATA_FEATURES, &RX_METADATA),
        xsk: named(NETDEV_A_DEV_XSK_FEATURES, &XSK),
    }))
}

fn bits_by_name(bits: u64, names: &[&str]) -> Vec<String> {
    let set = (0..u64::BITS as usize).filter(|bit| bits & 1 << bit != 0);
    set.map(|bit| names.get(bit).map_or_else(|| format!("bit-{bit}"), |name| (*name).to_owned()))
        .collect()
}

/// A message to `family` with one attribute: struct nlmsghdr, struct genlmsghdr and struct nlattr,
/// in host byte order.
fn request(family: u16, command: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 16 + 4;
    let attribute_length = 4 + value.len();
    let length = HEADERS + attribute_length.next_multiple_of(4);
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(NLM_F_REQUEST.to_ne_bytes());
    // sequence and port: only one request is pending at a time, and the kernel knows the port
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]); // version 1
    message.extend((attribute_length as u16).to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value);
    message.resize(length, 0);
    message
}

/// Sends a request and returns the attributes of its answer.
fn ask(socket: &sys::Socket, request: &[u8]) -> Result<Vec<u8>, Errno> {
    let errno = |error| Errno::try_from(error).unwrap_or(Errno::EIO);
    socket.send(request, 0).map_err(errno)?;
    let (datagram, _sender) = socket.recv_from_full().map_err(errno)?;
    let message = NetlinkBuffer::new_checked(&datagram).map_err(|_| Errno::EBADMSG)?;
    let payload = message.payload();
    if message.message_type() == NLMSG_ERROR {
        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
        return Err(Errno::from_raw(code.wrapping_neg()));
    }
    payload.get(4..).map(<[u8]>::to_vec).ok_or(Errno::EBADMSG) // after struct genlmsghdr
}

/// The value of an attribute.
fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let mut all = NlasIterator::new(attributes).map_while(Result::ok);
    let attribute = all.find(|attribute| attribute.kind() == kind)?;
    let end = attribute.length().into();
    attribute.into_inner().get(4..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_for_loopback_and_not_for_what_does_not_exist() {
        let loopback = crate::net::netlink::link("lo").unwrap();
        // Loopback has no native XDP on any kernel.
        let features = xdp_features(loopback.index).unwrap();
        assert!(features.is_none_or(|features| !features.has("basic")));
        assert!(!matches!(xdp_features(i32::MAX as u32), Ok(Some(_))));
    }

    #[test]
    fn bits_have_the_names_of_the_kernel() {
        assert_eq!(bits_by_name(0x2b, &FEATURES), ["basic", "redirect", "xsk-zerocopy", "rx-sg"]);
        assert_eq!(bits_by_name(1 << 63 | 4, &XSK), ["tx-launch-time-fifo", "bit-63"]);
        assert!(bits_by_name(0, &FEATURES).is_empty());
    }
}
