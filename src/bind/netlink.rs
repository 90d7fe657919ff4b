//! Addresses of the kernel's own, by RTM_NEWADDR: what the paper measures, and what can be made of it.
//!
//! One code for three methods. They differ in how many messages go to the kernel in one system call, and in whether the
//! link is up meanwhile. All of them get slower with every address, because the kernel does: it walks lists of all
//! addresses, and on a link that is up joins every multicast group again for each.
//!
//! Touches the addresses of one interface and, for [`Netlink::while_down`], whether it is up and its `keep_addr_on_down`.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv6Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, ensure};
use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressProtocol};

use super::Binder;
use crate::netlink::{self, Link, OUR_ADDRESS_PROTOCOL, Refusal, Socket};

/// Messages to a system call. The time goes into the kernel's work for each address, so a larger batch saves nothing more;
/// but `stop` is only looked at between batches, and at 10,000 addresses this many take a third of a second. They also
/// fit (60 bytes each, and at worst as many refusals of under 1 KiB) into the smallest socket buffers in use, 208 KiB.
pub(super) const BATCH: usize = 128;

/// Without Duplicate Address Detection an address is live at once. Without a route for its prefix it costs a tenth less:
/// the prefix of a /128 is the address itself, which has a route anyway.
const FLAGS: AddressFlags = AddressFlags::Nodad.union(AddressFlags::Noprefixroute);

/// Setting a link up takes the kernel long when it has many addresses, and a card needs a second or two for its carrier.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds addresses to one interface.
pub(super) struct Netlink {
    socket: Socket,
    index: u32,
    name: String,
    batch: usize,
    /// The interface's `keep_addr_on_down`, if it is to be down meanwhile.
    keep_addr_on_down: Option<File>,
    /// The name by which another process would see that this interface is taken. In the namespace, and without a file:
    /// the kernel takes it back however this process ends.
    _claim: UnixDatagram,
}

impl Netlink {
    /// A binder that sends `batch` messages at a time. Removes what a killed run left on the interface.
    pub fn new(link: &Link, batch: usize) -> Result<Self> {
        let mut binder = Self {
            _claim: claim(link)?,
            socket: Socket::open()?,
            index: link.index,
            name: link.name.clone(),
            batch,
            keep_addr_on_down: None,
        };
        let addresses = binder.socket.addresses(link.index)?.into_iter();
        let leftovers: Vec<_> = addresses.filter(|address| address.ours).map(|address| address.ip).collect();
        binder
            .unbind(&leftovers)
            .with_context(|| format!("cannot remove what an earlier run left on {}", link.name))?;
        Ok(binder)
    }

    /// The same, with the link down during [`Binder::bind`], and up afterwards. The interface keeps its other addresses,
    /// but loses the routes that were added through it; the kernel makes those of its prefixes again.
    pub fn while_down(mut self) -> Result<Self> {
        let all = "/proc/sys/net/ipv6/conf/all/keep_addr_on_down";
        let never = fs::read_to_string(all).with_context(|| format!("cannot read {all}"))?;
        // It would go before the interface's own setting.
        ensure!(
            !never.starts_with('-'),
            "{} would lose its own addresses: set net.ipv6.conf.all.keep_addr_on_down to 0",
            self.name
        );
        let path = format!("/proc/sys/net/ipv6/conf/{}/keep_addr_on_down", self.name);
        let setting = File::options().read(true).write(true).open(&path);
        self.keep_addr_on_down = Some(setting.with_context(|| format!("cannot open {path}"))?);
        Ok(self)
    }

    /// Refuses, before anything is done, what would fail half-way. From here on, each of `addresses` that is on the
    /// interface is there because of this binder.
    fn check(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let present = self.socket.addresses(self.index)?;
        let present: HashSet<_> = present.into_iter().map(|address| address.ip).collect();
        let mut wanted = HashSet::with_capacity(addresses.len());
        for address in addresses {
            let name = &self.name;
            ensure!(!present.contains(address), "{address} is on {name} already: nothing was bound");
            ensure!(wanted.insert(address), "{address} is to be bound to {name} twice: nothing was bound");
        }
        Ok(())
    }

    /// Adds all addresses; if that fails or is stopped, none.
    fn add(&mut self, addresses: &[Ipv6Addr], stop: &AtomicBool) -> Result<()> {
        let mut bound = 0;
        for batch in addresses.chunks(self.batch) {
            let added = if stop.load(Ordering::Relaxed) {
                Err((0, anyhow!("interrupted")))
            } else {
                self.add_batch(batch)
            };
            match added {
                Ok(()) => bound += batch.len(),
                Err((more, why)) => {
                    // The whole batch: what was not added need not be removed, but may be.
                    let undone = self.unbind(&addresses[..bound + batch.len()]);
                    let count = format!("{} of {} addresses were bound", bound + more, addresses.len());
                    return Err(match undone {
                        Ok(()) => anyhow!("{why:#}; {count} and are taken back"),
                        Err(error) => anyhow!("{why:#}; {count} and could not all be taken back: {error:#}"),
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds the addresses of one batch. If not all could be added, says how many were, and why the first was not.
    fn add_batch(&mut self, batch: &[Ipv6Addr]) -> Result<(), (usize, Error)> {
        let index = self.index;
        let messages = batch.iter().map(|&address| {
            let mut message = netlink::address_message(index, address, 128);
            message.attributes.push(AddressAttribute::Flags(FLAGS));
            message.attributes.push(AddressAttribute::Protocol(AddressProtocol::from(OUR_ADDRESS_PROTOCOL)));
            (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
        });
        let cannot_add = |address| format!("add {address} to {}", self.name);
        match self.socket.tell(messages) {
            Ok(refused) => match refused.first() {
                None => Ok(()),
                Some((position, refusal)) => {
                    let why = refusal.clone().explain(cannot_add(batch[*position]));
                    Err((batch.len() - refused.len(), why))
                }
            },
            Err(refusal) => Err((0, refusal.explain(cannot_add(batch[0])))),
        }
    }

    /// [`Netlink::add`] while the link is down, whatever it was before, then up.
    fn add_while_down(&mut self, addresses: &[Ipv6Addr], stop: &AtomicBool) -> Result<()> {
        let was_up = self.socket.link(&self.name)?.up;
        if was_up {
            self.set_down()?;
        }
        let bound = self.add(addresses, stop);
        if bound.is_err() && !was_up {
            return bound;
        }
        let up = self
            .socket
            .set_up(self.index, true)
            .and_then(|()| self.socket.wait_for_carrier(&self.name, CARRIER_TIMEOUT));
        match (bound, up) {
            (Ok(()), Err(why)) => {
                self.unbind(addresses)?;
                Err(why.context("the addresses were bound and are taken back"))
            }
            (bound, _) => bound,
        }
    }

    /// Sets the link down without losing the addresses that it has.
    fn set_down(&mut self) -> Result<()> {
        let keep = |file: &File, value: &[u8]| {
            let what = || format!("cannot set keep_addr_on_down of {}", self.name);
            file.write_all_at(value, 0).with_context(what)
        };
        let Some(file) = &self.keep_addr_on_down else {
            return self.socket.set_up(self.index, false);
        };
        let mut before = [0; 16];
        let length = file.read_at(&mut before, 0).context("cannot read keep_addr_on_down")?;
        keep(file, b"1")?;
        // Looked at when the link goes down, and only then.
        let down = self.socket.set_up(self.index, false);
        keep(file, &before[..length])?;
        down
    }
}

impl Binder for Netlink {
    fn bind(&mut self, addresses: &[Ipv6Addr], stop: &AtomicBool) -> Result<()> {
        self.check(addresses)?;
        if self.keep_addr_on_down.is_some() {
            self.add_while_down(addresses, stop)
        } else {
            self.add(addresses, stop)
        }
    }

    fn unbind(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let mut done = Ok(());
        for batch in addresses.chunks(self.batch) {
            let index = self.index;
            let messages = batch.iter().map(|&address| {
                let message = netlink::address_message(index, address, 128);
                (RouteNetlinkMessage::DelAddress(message), 0)
            });
            let cannot_remove = |address| format!("remove {address} from {}", self.name);
            let refused = self.socket.tell(messages);
            let refused = refused.map_err(|refusal| refusal.explain(cannot_remove(batch[0])))?;
            // Gone already, alone or with its interface.
            let is_gone = |refusal: &Refusal| matches!(refusal.code, Errno::EADDRNOTAVAIL | Errno::ENODEV);
            if let Some((position, refusal)) = refused.into_iter().find(|(_, refusal)| !is_gone(refusal)) {
                done = done.and(Err(refusal.explain(cannot_remove(batch[position]))));
            }
        }
        done
    }
}

/// Keeps others from binding addresses to `link`, until what it returns is dropped. They would take this one's addresses
/// for leftovers.
fn claim(link: &Link) -> Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(format!("sixhop-bind-{}", link.index))?;
    UnixDatagram::bind_addr(&name).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => anyhow!("another sixhop binds addresses to {}: stop it first", link.name),
        _ => anyhow!("cannot claim {}: {error}", link.name),
    })
}
