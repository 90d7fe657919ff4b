//! Neighbour discovery through the kernel's neighbour table.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use nix::errno::Errno;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::socket::Connection;

/// The Ethernet address of `neighbour` behind the interface with that index. If the kernel does not
/// know it, this makes the kernel solicit it; no datagram needs to be sent.
///
/// # Errors
/// When nobody answers, after about 3 s (the kernel's three solicitations) or `timeout`, whichever
/// is first.
pub fn resolve(interface: u32, neighbour: Ipv6Addr, timeout: Duration) -> Result<[u8; 6]> {
    Connection::open()?.resolve(interface, neighbour, timeout)
}

/// The Ethernet address of the first of `neighbours` to answer, found as in [`resolve`]; `None` if
/// none answers within `timeout`.
///
/// # Errors
/// When the kernel cannot solicit them, or not all at once.
pub fn resolve_any(
    interface: u32,
    neighbours: &[Ipv6Addr],
    timeout: Duration,
) -> Result<Option<[u8; 6]>> {
    Connection::open()?.resolve_any(interface, neighbours, timeout)
}

/// Sets the neighbour's Ethernet address permanently, so that the kernel never solicits it
/// (NUD_PERMANENT). Without `mac`, deletes the entry.
///
/// # Errors
/// Without CAP_NET_ADMIN, and when there is no such interface.
pub fn set_neighbour(interface: u32, neighbour: Ipv6Addr, mac: Option<[u8; 6]>) -> Result<()> {
    let mut entry = entry_of(interface, neighbour);
    let (message, flags) = match mac {
        Some(mac) => {
            entry.header.state = NeighbourState::Permanent;
            entry.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            (RouteNetlinkMessage::NewNeighbour(entry), NLM_F_CREATE | NLM_F_REPLACE)
        }
        None => (RouteNetlinkMessage::DelNeighbour(entry), 0),
    };
    let told = Connection::open()?.tell_one(message, flags);
    told.map_err(|refusal| {
        refusal.explain(format_args!("set neighbour {neighbour} of interface {interface}"))
    })
}

impl Connection {
    pub fn resolve(
        &mut self,
        interface: u32,
        neighbour: Ipv6Addr,
        timeout: Duration,
    ) -> Result<[u8; 6]> {
        if let Some(mac) = self.fixed(interface, neighbour) {
            return Ok(mac);
        }
        self.tell_one(look_for(interface, neighbour), NLM_F_CREATE | NLM_F_REPLACE).map_err(
            |refusal| match refusal.code {
                Errno::ENOBUFS => anyhow!(
                    "cannot resolve {neighbour}: the kernel's neighbour table is full; \
                     raise net.ipv6.neigh.default.gc_thresh3"
                ),
                _ => refusal.explain(format_args!("resolve {neighbour} on interface {interface}")),
            },
        )?;
        if let Some(mac) = self.wait_for_answer(interface, neighbour, timeout)? {
            return Ok(mac);
        }
        let link = self.links()?.into_iter().find(|link| link.index == interface);
        let name = link.map_or_else(|| format!("interface {interface}"), |link| link.name);
        bail!("nobody answers for {neighbour} on {name}: is the server up?")
    }

    /// The neighbour's permanent address, if somebody set one. [`look_for`] must not touch such an
    /// entry: the kernel would mark it as unanswered.
    fn fixed(&mut self, interface: u32, neighbour: Ipv6Addr) -> Option<[u8; 6]> {
        let query = RouteNetlinkMessage::GetNeighbour(entry_of(interface, neighbour));
        self.ask(query, 0).ok()?.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(entry)
                if entry.header.state == NeighbourState::Permanent =>
            {
                verdict(entry).flatten()
            }
            _ => None,
        })
    }

    /// Waits until the kernel knows the neighbour's address or has given up.
    fn wait_for_answer(
        &mut self,
        interface: u32,
        neighbour: Ipv6Addr,
        timeout: Duration,
    ) -> Result<Option<[u8; 6]>> {
        let query = RouteNetlinkMessage::GetNeighbour(entry_of(interface, neighbour));
        let known = |socket: &mut Self| match socket.ask(query.clone(), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewNeighbour(entry) => verdict(&entry),
                _ => None,
            })),
            // Resolution failed, and the kernel has since removed the entry.
            Err(refusal) if refusal.code == Errno::ENOENT => Ok(Some(None)),
            Err(refusal) => Err(refusal.explain(format_args!("look up neighbour {neighbour}"))),
        };
        let destination = NeighbourAttribute::Destination(NeighbourAddress::Inet6(neighbour));
        let found = self.watch(MulticastGroup::Neigh, timeout, known, |event| match event {
            RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry) => {
                entry.header.ifindex == interface && entry.attributes.contains(&destination)
            }
            _ => false,
        })?;
        Ok(found.flatten())
    }

    pub fn resolve_any(
        &mut self,
        interface: u32,
        neighbours: &[Ipv6Addr],
        timeout: Duration,
    ) -> Result<Option<[u8; 6]>> {
        const LOOK: Duration = Duration::from_millis(10);
        let asked = neighbours
            .iter()
            .map(|neighbour| (look_for(interface, *neighbour), NLM_F_CREATE | NLM_F_REPLACE));
        let refused =
            self.tell(asked).map(|refused| refused.into_iter().next().map(|(_, why)| why));
        if let Some(refusal) = refused.unwrap_or_else(Some) {
            return Err(
                refusal.explain(format_args!("resolve neighbours on interface {interface}"))
            );
        }
        let give_up = Instant::now() + timeout;
        loop {
            for neighbour in neighbours {
                let query = RouteNetlinkMessage::GetNeighbour(entry_of(interface, *neighbour));
                let answers = self.ask(query, 0);
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
}

/// A neighbour table entry without an Ethernet address.
fn entry_of(interface: u32, neighbour: Ipv6Addr) -> NeighbourMessage {
    let mut entry = NeighbourMessage::default();
    entry.header.family = AddressFamily::Inet6;
    entry.header.ifindex = interface;
    entry.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet6(neighbour)));
    entry
}

/// Makes the kernel solicit the neighbour as if it had a packet to send, unless it knows the
/// address. This also retries after a failure.
fn look_for(interface: u32, neighbour: Ipv6Addr) -> RouteNetlinkMessage {
    let mut entry = entry_of(interface, neighbour);
    entry.header.flags = NeighbourFlags::Use;
    RouteNetlinkMessage::NewNeighbour(entry)
}

/// The result in a neighbour table entry: an address, none (`Some(None)`), or nothing yet.
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
