//! Has switches that snoop MLD pass on all multicast: nobody reports the solicited-node groups of
//! addresses that the kernel does not have, and a report for each would cost what live-map avoids.
//! To be known as a multicast router costs a packet in 20 s.

use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket::{MsgFlags, send};

use super::{EngineError, packet};
use crate::net::netlink::{self, Link};
use crate::wire::{self, ADVERTISEMENT_INTERVAL, INITIAL_COUNT, INITIAL_INTERVAL};

/// How often it looks whether to stop.
const DOZE: Duration = Duration::from_millis(100);

/// After an advertisement that could not be sent, as while the link is down, the next is tried so
/// much later.
const AGAIN: Duration = Duration::from_secs(1);

/// Sends advertisements by RFC 4286, and takes them back.
pub(super) struct MulticastRouter {
    socket: OwnedFd,
    advertisement: Vec<u8>,
    termination: Vec<u8>,
}

impl MulticastRouter {
    /// On `link`, from its link-local address.
    pub fn on(link: &Link) -> Result<Self> {
        let addresses = netlink::addresses(link.index)?;
        let source = link_local(addresses.iter().map(|address| address.ip))
            .ok_or_else(|| EngineError::NoLinkLocal(link.name.clone()))?;
        Ok(Self {
            socket: packet::plain_sender(link)?,
            advertisement: wire::router_advertisement(link.mac, source),
            termination: wire::router_termination(link.mac, source),
        })
    }

    /// Advertises until `stop` is set. That a packet does not go is no reason to end: the link may
    /// be down for a while.
    pub fn keep(self, stop: &AtomicBool) {
        let mut next = Instant::now();
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                let is_sent = self.send(&self.advertisement);
                sent += u32::from(is_sent);
                next = Instant::now() + if is_sent { pause(sent) } else { AGAIN };
            }
            thread::sleep(DOZE);
        }
        self.send(&self.termination);
    }

    fn send(&self, frame: &[u8]) -> bool {
        send(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT).is_ok()
    }
}

/// How long to wait after so many advertisements.
fn pause(sent: u32) -> Duration {
    let seconds = if sent < INITIAL_COUNT { INITIAL_INTERVAL } else { ADVERTISEMENT_INTERVAL };
    Duration::from_secs(seconds.into())
}

fn link_local(addresses: impl IntoIterator<Item = Ipv6Addr>) -> Option<Ipv6Addr> {
    addresses.into_iter().find(Ipv6Addr::is_unicast_link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_come_soon_and_the_rest_in_time() {
        let pauses: Vec<_> = (1..=4).map(|sent| pause(sent).as_secs()).collect();
        assert_eq!(pauses, [2, 2, 20, 20]);
    }

    #[test]
    fn it_speaks_from_the_link_alone() {
        let [global, local] = ["2001:db8::1", "fe80::1"].map(|ip| ip.parse::<Ipv6Addr>().unwrap());
        assert_eq!(link_local([global, local]), Some(local));
        assert_eq!(link_local([global]), None);
    }
}
