//! Watches the interface while a server runs: compares it, and reports changes.
//!
//! ```text
//!   every 100 ms ─► the link, by its index ─► changes ─┬─ the engine adapts, or cannot:
//!                                                      │  the server ends
//!   announced ────► addresses that went ──────────────►└─ addresses are made live again
//! ```
//!
//! Everything that an answer depends on is compared, so a server never continues in a mode that its
//! `ready` line no longer describes.

use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, ensure};

use crate::engine::Follower;
use crate::live::Method;
use crate::net::ethtool;
use crate::net::netlink::{AddressLosses, Connection, Link};

/// How long somebody who removes many addresses has to finish: addresses added meanwhile would be
/// removed too.
const REMOVING: Duration = Duration::from_secs(1);

/// Checks the interface: nothing tells an idle worker that it is gone, or what others did to it.
pub(crate) struct Watcher {
    socket: Connection,
    losses: AddressLosses,
    /// The kernel's ID of the XDP program, if the engine has one.
    program: Option<u32>,
    before: Link,
    bind: Method,
    addresses: u64,
    follower: Option<Box<dyn Follower>>,
    /// How many queues were in use at the start, if the engine serves them one by one.
    queues: Option<u32>,
    /// Since when addresses may be missing.
    missing: Option<Instant>,
}

/// The result of a check.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Sentences for people.
    pub notices: Vec<String>,
    /// The interface's new name.
    pub renamed: Option<String>,
    /// Why the server cannot continue.
    pub end: Option<Error>,
    /// Whether to check that all addresses are live.
    pub renew: bool,
}

/// A difference between two checks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// The interface no longer exists in this namespace.
    Gone,
    /// Our XDP program is no longer attached.
    Detached,
    Renamed {
        from: String,
    },
    Address {
        from: [u8; 6],
    },
    Mtu {
        from: u32,
    },
    /// It was put under another interface, or taken out.
    Master,
    Down,
    Up,
    /// Between the two checks it was down, or had no carrier.
    Flapped,
    /// Whether IPv6 is enabled on it.
    Ipv6,
    /// Whether it uses neighbour discovery.
    Arp,
}

/// The changes from `before` to `now`. `program` is the ID of the XDP program that should be
/// attached.
fn changes(before: &Link, now: Option<&Link>, program: Option<u32>) -> Vec<Change> {
    let Some(now) = now else { return vec![Change::Gone] };
    let detached = program.is_some() && now.xdp.map(|xdp| xdp.id) != program;
    let flapped = now.up && before.up && now.carrier_losses != before.carrier_losses;
    [
        // First, because the sentences about the others use the new name.
        (now.name != before.name, Change::Renamed { from: before.name.clone() }),
        (detached, Change::Detached),
        (now.master != before.master, Change::Master),
        (now.mac != before.mac, Change::Address { from: before.mac }),
        (now.mtu != before.mtu, Change::Mtu { from: before.mtu }),
        (before.up && !now.up, Change::Down),
        (now.up && !before.up, Change::Up),
        (flapped, Change::Flapped),
        (now.ipv6 != before.ipv6, Change::Ipv6),
        (now.arp != before.arp, Change::Arp),
    ]
    .into_iter()
    .filter_map(|(is_so, change)| is_so.then_some(change))
    .collect()
}

impl Watcher {
    /// For the interface that `link` describes, in the namespace of the calling thread, with the
    /// XDP program of that ID.
    pub fn new(link: Link, program: Option<u32>, bind: Method, addresses: u64) -> Result<Self> {
        Ok(Self {
            socket: Connection::open()?,
            losses: AddressLosses::watch(link.index)?,
            program,
            before: link,
            bind,
            addresses,
            follower: None,
            queues: None,
            missing: None,
        })
    }

    /// Reports changes to `follower`.
    pub fn with_follower(self, follower: Option<Box<dyn Follower>>) -> Self {
        Self { follower, ..self }
    }

    /// Also watches the number of queues in use.
    pub fn with_queues(self, queues: Option<u32>) -> Self {
        Self { queues, ..self }
    }

    /// Whether the interface no longer exists.
    pub fn has_gone(&mut self) -> bool {
        self.socket.link_at(self.before.index).is_ok_and(|link| link.is_none())
    }

    /// The notice after addresses were made live again.
    ///
    /// # Errors
    /// When that failed although the kernel accepts addresses, and nobody asked to stop.
    pub fn restored(
        &mut self,
        renewed: Result<usize>,
        stop: &AtomicBool,
    ) -> Result<Option<String>> {
        let link = self.socket.link_at(self.before.index).ok().flatten();
        match renewed {
            Ok(count) => {
                // Making them live may have set it down and up.
                if let Some(link) = link {
                    (self.before.up, self.before.carrier_losses) = (link.up, link.carrier_losses);
                }
                let (all, name) = (self.addresses, &self.before.name);
                let words = format!(
                    "{count} of the {all} addresses of {name} had gone, and are live again"
                );
                Ok((count > 0).then_some(words))
            }
            Err(_) if stop.load(Ordering::Relaxed) => Ok(None),
            // IPv6 was disabled or the interface disappeared meanwhile. The next check reports
            // that, and missing addresses are added when it is back.
            Err(_) if link.is_none_or(|link| !link.ipv6 || !link.up) => {
                self.missing = Some(Instant::now());
                Ok(None)
            }
            Err(why) => Err(why.context(format!(
                "addresses of {} have gone, and cannot be made live again",
                self.before.name
            ))),
        }
    }

    /// Compares the interface with its last state. `is_ours` says whether an address is live
    /// because of this server.
    pub fn look(&mut self, is_ours: impl Fn(Ipv6Addr) -> bool) -> Seen {
        let mut seen = Seen::default();
        let Ok(link) = self.socket.link_at(self.before.index) else { return seen };
        let changes = changes(&self.before, link.as_ref(), self.program);
        if let Some(link) = link {
            self.before = link;
        }
        for change in changes {
            match self.take_over(&change, &mut seen) {
                Ok(words) => seen.notices.extend(words),
                Err(error) => {
                    seen.end = Some(error);
                    return seen;
                }
            }
        }
        seen.end = self.queues_changed();
        let heard = self.losses.heard(is_ours);
        if heard {
            self.missing.get_or_insert_with(Instant::now);
        }
        let is_over = self.missing.is_some_and(|since| !heard || since.elapsed() >= REMOVING);
        // While the interface accepts no addresses they count as missing, and are added later.
        if self.before.up && self.before.ipv6 && (is_over || seen.renew) {
            self.missing = None;
            seen.renew = true;
        } else if std::mem::take(&mut seen.renew) {
            self.missing = Some(Instant::now());
        }
        seen
    }

    /// Why a changed number of queues ends the server. A driver need not give a new queue the XDP
    /// program (veth does not), and it has no socket.
    fn queues_changed(&self) -> Option<Error> {
        let name = &self.before.name;
        let (before, now) = (self.queues?, ethtool::queues(name).ok()?);
        let words = || {
            anyhow!(
                "{name} had {before} queue(s) in use, and has {now} now: start the server again to \
                 serve them"
            )
        };
        (before != now).then(words)
    }

    /// Handles a change, and returns the sentence about it.
    fn take_over(&mut self, change: &Change, seen: &mut Seen) -> Result<Option<String>> {
        let name = &self.before.name;
        Ok(Some(match change {
            Change::Gone => {
                return Err(anyhow!(
                    "{name} has gone, and its {} addresses with it: it was deleted, or moved to \
                     another network namespace",
                    self.addresses
                ));
            }
            Change::Detached => {
                return Err(anyhow!(
                    "somebody has taken the XDP program off {name}: requests would not come any \
                     more"
                ));
            }
            Change::Renamed { from } => {
                seen.renamed = Some(name.clone());
                format!("{from} is now called {name}")
            }
            Change::Address { from } => self.follow_address(*from),
            Change::Mtu { from } => self.follow_mtu(*from)?,
            Change::Master => self.follow_master()?,
            Change::Down => format!("{name} is down: nobody is answered until it is up"),
            Change::Up => {
                seen.renew = true;
                format!("{name} is up again")
            }
            // The notice comes once the lost addresses are back.
            Change::Flapped => {
                seen.renew = true;
                return Ok(None);
            }
            Change::Ipv6 => {
                seen.renew |= self.before.ipv6;
                self.follow_ipv6()
            }
            Change::Arp => self.follow_arp(),
        }))
    }

    fn follow_address(&self, from: [u8; 6]) -> String {
        let Link { name, mac, .. } = &self.before;
        if let Some(follower) = &self.follower {
            follower.set_address(*mac);
        }
        format!("the Ethernet address of {name} was {}, and is {} now", shown(from), shown(*mac))
    }

    fn follow_mtu(&self, from: u32) -> Result<String> {
        let Link { name, mtu, .. } = &self.before;
        let words = format!("the MTU of {name} was {from}, and is {mtu} now");
        let followed = self.follower.as_ref().map_or(Ok(()), |follower| follower.set_mtu(*mtu));
        followed.map_err(|why| anyhow!("{words}: {why:#}; start the server again"))?;
        Ok(words)
    }

    fn follow_master(&mut self) -> Result<String> {
        let (name, is_hidden) = (&self.before.name, self.is_hidden());
        let Some(index) = self.before.master else {
            return Ok(format!("{name} is under no other interface any more"));
        };
        let master = self.socket.link_at(index).ok().flatten();
        let master = master.map_or_else(|| format!("interface {index}"), |link| link.name);
        ensure!(
            is_hidden,
            "{name} was put under {master}, for which the kernel takes its packets now, so that \
             its addresses are not found: serve on {master}, or take it out ('ip link set {name} \
             nomaster')"
        );
        Ok(format!(
            "{name} was put under {master}: the XDP program goes on to answer, but fragments and \
             requests behind extension headers are {master}'s now, and get no answer"
        ))
    }

    fn follow_ipv6(&self) -> String {
        let name = &self.before.name;
        if self.before.ipv6 {
            return format!("the kernel does IPv6 on {name} again");
        }
        format!(
            "the kernel does no IPv6 on {name} (disable_ipv6 is set, or its MTU is below 1280): {} \
             until it does",
            self.silent()
        )
    }

    fn follow_arp(&self) -> String {
        let name = &self.before.name;
        if self.before.arp {
            return format!("neighbours are discovered on {name} again");
        }
        format!(
            "no neighbours are discovered on {name} any more ('arp off'): {} until 'ip link set \
             {name} arp on'",
            self.silent()
        )
    }

    /// Who gets no answer while the kernel cannot help on this interface.
    fn silent(&self) -> String {
        if self.is_hidden() {
            "fragments and requests behind extension headers get no answer".to_owned()
        } else {
            format!("its {} addresses are not to be found", self.addresses)
        }
    }

    /// Whether the addresses are hidden from the kernel.
    fn is_hidden(&self) -> bool {
        self.bind == Method::LiveMap
    }
}

/// In the usual notation.
fn shown(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::net::netlink::{AttachMode, AttachedProgram};

    /// A veth with an XDP program.
    pub(crate) fn server0() -> Link {
        Link {
            index: 2,
            name: "server0".to_owned(),
            mac: [2, 0, 0, 0, 0xaa, 1],
            mtu: 1500,
            tx_queues: 1,
            rx_queues: 1,
            up: true,
            carrier: true,
            carrier_losses: 1,
            all_multicast: false,
            master: None,
            kind: None,
            link_type: 1,
            arp: true,
            ipv6: true,
            alias: None,
            xdp: Some(AttachedProgram { mode: AttachMode::Native, id: 7 }),
        }
    }

    #[test]
    fn each_change_is_seen_and_nothing_else() {
        let after = |change: fn(&mut Link)| {
            let mut now = server0();
            change(&mut now);
            changes(&server0(), Some(&now), Some(7))
        };
        assert_eq!(after(|_| {}), []);
        assert_eq!(after(|now| now.alias = Some("uplink".to_owned())), []);
        assert_eq!(after(|now| now.all_multicast = true), []);
        assert_eq!(after(|now| now.carrier = false), []);
        let renamed = Change::Renamed { from: "server0".to_owned() };
        assert_eq!(after(|now| now.name = "lan0".to_owned()), std::slice::from_ref(&renamed));
        assert_eq!(after(|now| now.mac[5] = 2), [Change::Address { from: [2, 0, 0, 0, 0xaa, 1] }]);
        assert_eq!(after(|now| now.mtu = 9000), [Change::Mtu { from: 1500 }]);
        assert_eq!(after(|now| now.master = Some(9)), [Change::Master]);
        assert_eq!(after(|now| now.ipv6 = false), [Change::Ipv6]);
        assert_eq!(after(|now| now.arp = false), [Change::Arp]);
        assert_eq!(after(|now| now.xdp = None), [Change::Detached]);
        assert_eq!(after(|now| now.carrier_losses = 2), [Change::Flapped]);
        let down = |now: &mut Link| (now.up, now.carrier_losses) = (false, 2);
        assert_eq!(after(down), [Change::Down]);
        let both = |now: &mut Link| (now.name, now.mtu) = ("lan0".to_owned(), 1280);
        assert_eq!(after(both), [renamed, Change::Mtu { from: 1500 }]);
    }

    #[test]
    fn it_is_up_again_once_and_gone_alone() {
        let mut down = server0();
        (down.up, down.carrier_losses) = (false, 2);
        let mut up = server0();
        up.carrier_losses = 2;
        assert_eq!(changes(&down, Some(&up), Some(7)), [Change::Up]);
        assert_eq!(changes(&up, Some(&up), Some(7)), []);
        assert_eq!(changes(&up, None, Some(7)), [Change::Gone]);
        let other = Some(AttachedProgram { mode: AttachMode::Native, id: 8 });
        let replaced = Link { xdp: other, ..server0() };
        assert_eq!(changes(&server0(), Some(&replaced), Some(7)), [Change::Detached]);
        assert_eq!(changes(&server0(), Some(&replaced), None), [], "it is not ours");
    }
}
