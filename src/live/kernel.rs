//! Addresses of the kernel, one after the other: what the paper measures, and how far it can be
//! improved.
//!
//! The ways differ in how they tell the kernel about an address. This file has what they share: it
//! rejects in advance what would fail half-way, undoes what does fail half-way, and restores
//! settings that it changed meanwhile.
//!
//! All of them get slower with every address, because the kernel does: docs/binding.md.
//!
//! Three small traits hide the kernel: [`Channel`], [`Routing`] and [`HeldSetting`]. Tests replace
//! it with a model that refuses, loses and delays what they choose (src/live/model.rs).

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::setting::Ipv6Setting;
use super::{Binder, Interrupted, Phases, Progress, Timed, Told, failed};
use crate::host::settings::Changed;
use crate::net::netlink::{Address, Connection, KernelError, Link};

/// How to tell the kernel about addresses.
pub(super) trait Channel: Send {
    /// How many addresses one call of [`add`](Self::add) takes.
    fn batch(&self) -> usize {
        1
    }

    /// Adds the addresses of one batch.
    fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), NotAdded>;

    /// Removes any number of addresses. Ignores those already gone, alone or with their interface.
    fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()>;
}

/// Not all addresses of a batch were added.
pub(super) struct NotAdded {
    /// Why the first one failed.
    pub why: Error,
    /// How many were added, as far as is known.
    pub added: usize,
    /// Those that somebody else had added before: they stay.
    pub others: Vec<Ipv6Addr>,
}

/// The routing netlink calls that binders need.
pub(super) trait Routing: Send {
    fn tell(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, KernelError)>, KernelError>;
    fn addresses(&mut self, index: u32) -> Result<Vec<Address>>;
    fn link_at(&mut self, index: u32) -> Result<Option<Link>>;
    fn set_up(&mut self, index: u32, up: bool) -> Result<()>;
    fn wait_for_carrier_of(&mut self, index: u32, name: &str, timeout: Duration) -> Result<()>;
    fn wait_for_local(
        &mut self,
        index: u32,
        addresses: &[Ipv6Addr],
        timeout: Duration,
    ) -> Result<()>;
}

impl Routing for Connection {
    fn tell(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, KernelError)>, KernelError> {
        self.tell(messages)
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<Address>> {
        self.addresses(index)
    }

    fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        self.link_at(index)
    }

    fn set_up(&mut self, index: u32, up: bool) -> Result<()> {
        self.set_up(index, up)
    }

    fn wait_for_carrier_of(&mut self, index: u32, name: &str, timeout: Duration) -> Result<()> {
        self.wait_for_carrier_of(index, name, timeout)
    }

    fn wait_for_local(
        &mut self,
        index: u32,
        addresses: &[Ipv6Addr],
        timeout: Duration,
    ) -> Result<()> {
        self.wait_for_local(index, addresses, timeout)
    }
}

/// A setting of the interface that is changed for a moment.
pub(super) trait HeldSetting: Send {
    /// What sets the link up again.
    type Down;
    fn link_down(&self, value: &str) -> Result<Self::Down>;
    fn put_back(down: Self::Down) -> Result<()>;
    fn during<T>(&self, value: &str, with: impl FnOnce() -> Result<T>) -> Result<T>;
}

impl HeldSetting for Ipv6Setting {
    type Down = Changed;

    fn link_down(&self, value: &str) -> Result<Changed> {
        self.link_down(value)
    }

    fn put_back(down: Changed) -> Result<()> {
        down.put_back().map(drop)
    }

    fn during<T>(&self, value: &str, with: impl FnOnce() -> Result<T>) -> Result<T> {
        self.during(value, with)
    }
}

/// What must hold while addresses are added.
pub(super) enum Meanwhile<H> {
    Nothing,
    /// The link is down: `keep_addr_on_down`.
    Down(H),
    /// Duplicate Address Detection is off: `accept_dad`.
    NoDetection(H),
}

/// Binds addresses to one interface.
pub(super) struct KernelBinder<W, R = Connection, H = Ipv6Setting> {
    way: W,
    socket: R,
    index: u32,
    name: String,
    meanwhile: Meanwhile<H>,
    /// Number of addresses on the interface because of this binder.
    bound: usize,
}

/// For fewer addresses than this, the link stays up in any case: they cost less than setting it
/// down and up, which takes a millisecond or two on a veth pair (the phases `down` and `up` of
/// docs/results/bind.jsonl).
pub(super) const DOWN_PAYS: usize = 250;

/// Setting up a link with many addresses takes the kernel long, and a card needs a second or two
/// for its carrier.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// Without Duplicate Address Detection, the kernel's worker has little to do for each address; this
/// limit is for very many.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often to check whether the kernel still has restored addresses, while it does not yet accept
/// packets for them.
const RESTORED: Duration = Duration::from_millis(100);

/// Clients whose addresses are exchanged in one go. Each takes the kernel a millisecond if there
/// are some thousand.
const EXCHANGED: usize = 8;

/// Addresses removed between progress reports: about 10 ms.
const TELL: usize = 64;

impl<W: Channel> KernelBinder<W> {
    pub fn new(link: &Link, way: W) -> Result<Self> {
        Ok(Self::over(Connection::open()?, link.index, &link.name, way, Meanwhile::Nothing))
    }

    /// Keeps the link down while addresses are added, and sets it up afterwards. To remove all at
    /// once, sets it down for a moment, for which the way must give them a finite lifetime. The
    /// interface keeps its other addresses with infinite lifetime, but loses routes that were added
    /// through it. The kernel adds the routes of its prefixes again.
    pub fn while_down(mut self) -> Result<Self> {
        ensure!(
            Ipv6Setting::for_all("keep_addr_on_down")? >= 0,
            "{} would lose its own addresses: set net.ipv6.conf.all.keep_addr_on_down to 0",
            self.name
        );
        self.meanwhile = Meanwhile::Down(Ipv6Setting::of(&self.name, "keep_addr_on_down")?);
        Ok(self)
    }

    /// For a way that cannot request an address to be live at once: turns off Duplicate Address
    /// Detection, so that all are.
    pub fn without_detection(mut self) -> Result<Self> {
        ensure!(
            Ipv6Setting::for_all("accept_dad")? <= 0,
            "each address would wait for its Duplicate Address Detection: set \
             net.ipv6.conf.all.accept_dad to 0, or use netlink"
        );
        self.meanwhile = Meanwhile::NoDetection(Ipv6Setting::of(&self.name, "accept_dad")?);
        Ok(self)
    }
}

impl<W: Channel, R: Routing, H: HeldSetting> KernelBinder<W, R, H> {
    pub(super) fn over(socket: R, index: u32, name: &str, way: W, meanwhile: Meanwhile<H>) -> Self {
        Self { way, socket, index, name: name.to_owned(), meanwhile, bound: 0 }
    }

    /// The addresses on the interface, whoever bound them.
    fn present(&mut self) -> Result<HashSet<Ipv6Addr>> {
        let present = self.socket.addresses(self.index)?;
        Ok(present.into_iter().map(|address| address.ip).collect())
    }

    /// Rejects in advance what would fail half-way. After this, each of `addresses` on the
    /// interface is there because of this binder.
    fn check(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let present = self.present()?;
        let mut wanted = HashSet::with_capacity(addresses.len());
        for address in addresses {
            let name = &self.name;
            ensure!(
                !present.contains(address),
                "{address} is on {name} already: nothing was bound"
            );
            ensure!(
                wanted.insert(address),
                "{address} is to be bound to {name} twice: nothing was bound"
            );
        }
        Ok(())
    }

    /// Adds all addresses; if that fails or is stopped, none.
    fn add(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<()> {
        let mut bound = 0;
        for batch in addresses.chunks(self.way.batch()) {
            if !step(bound) {
                let undone = self.remove(&addresses[..bound], &mut |_| {});
                return Err(failed(Interrupted.into(), bound, addresses.len(), undone));
            }
            if let Err(NotAdded { why, added, others }) = self.way.add(batch) {
                // All of this batch, since some may have been added: an answer can be lost.
                let mut ours = addresses[..bound + batch.len()].to_vec();
                ours.retain(|address| !others.contains(address));
                let undone = self.remove(&ours, &mut |_| {});
                return Err(failed(why, bound + added, addresses.len(), undone));
            }
            bound += batch.len();
        }
        step(bound);
        Ok(())
    }

    /// Waits until the kernel accepts packets for all of them. It accepts none on a link that is
    /// down.
    fn settle(&mut self, addresses: &[Ipv6Addr], phases: &mut Phases) -> Result<()> {
        if !self.socket.link_at(self.index)?.is_some_and(|link| link.up) {
            return Ok(());
        }
        let live = phases
            .time("settle", || self.socket.wait_for_local(self.index, addresses, SETTLE_TIMEOUT));
        live.map_err(|why| {
            let undone = self.remove(addresses, &mut |_| {});
            failed(why, addresses.len(), addresses.len(), undone)
        })
    }

    /// Removes those of `addresses` that are still there. If the interface is gone, all of them
    /// are.
    fn remove(&mut self, addresses: &[Ipv6Addr], told: &mut Told) -> Result<()> {
        if self.socket.link_at(self.index)?.is_none() {
            return Ok(());
        }
        let present = self.present()?;
        let left: Vec<_> =
            addresses.iter().copied().filter(|address| present.contains(address)).collect();
        let mut gone = addresses.len() - left.len();
        let mut done = Ok(());
        for some in left.chunks(self.way.batch().max(TELL)) {
            done = done.and(self.way.remove(some));
            gone += some.len();
            told(gone);
        }
        done
    }
}

impl<W: Channel, R: Routing, H: HeldSetting> Binder for KernelBinder<W, R, H> {
    fn bind(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<Phases> {
        let mut phases = Phases::default();
        phases.time("check", || self.check(addresses))?;
        match std::mem::replace(&mut self.meanwhile, Meanwhile::Nothing) {
            Meanwhile::Down(setting) if addresses.len() >= DOWN_PAYS => {
                let bound = self.add_while_down(&setting, addresses, step, &mut phases);
                self.meanwhile = Meanwhile::Down(setting);
                bound?;
                self.settle(addresses, &mut phases)?;
            }
            Meanwhile::NoDetection(setting) => {
                let bound = setting.during("0", || {
                    phases.time("add", || self.add(addresses, step))?;
                    self.settle(addresses, &mut phases)
                });
                self.meanwhile = Meanwhile::NoDetection(setting);
                bound?;
            }
            other => {
                self.meanwhile = other;
                phases.time("add", || self.add(addresses, step))?;
                self.settle(addresses, &mut phases)?;
            }
        }
        self.bound += addresses.len();
        Ok(phases)
    }

    fn unbind(&mut self, addresses: &[Ipv6Addr], told: &mut Told) -> Result<Phases> {
        let mut phases = Phases::default();
        // Setting the link down removes all, so only do it for all.
        if addresses.len() >= DOWN_PAYS && addresses.len() == self.bound {
            // Only a shortcut: what it leaves is removed one by one.
            let _ = self.flush(&mut phases);
        }
        phases.time("remove", || self.remove(addresses, told))?;
        self.bound = self.bound.saturating_sub(addresses.len());
        Ok(phases)
    }

    /// The link stays up in any case, because packets sent meanwhile would be lost.
    fn exchange(&mut self, expired: &[Timed], fresh: &[Timed]) -> Result<()> {
        for Timed { addresses, .. } in expired {
            self.way.remove(addresses)?;
            self.bound = self.bound.saturating_sub(addresses.len());
        }
        match std::mem::replace(&mut self.meanwhile, Meanwhile::Nothing) {
            Meanwhile::NoDetection(setting) => {
                let added = setting.during("0", || self.add_fresh(fresh));
                self.meanwhile = Meanwhile::NoDetection(setting);
                added
            }
            other => {
                self.meanwhile = other;
                self.add_fresh(fresh)
            }
        }
    }

    fn stride(&self) -> usize {
        EXCHANGED
    }

    fn lost(&mut self, addresses: &[Ipv6Addr]) -> Result<Vec<Ipv6Addr>> {
        let present = self.present()?;
        Ok(addresses.iter().copied().filter(|address| !present.contains(address)).collect())
    }

    fn restore(&mut self, lost: &[Ipv6Addr], step: &mut Progress) -> Result<()> {
        let all = lost.len() == self.bound;
        self.bound = self.bound.saturating_sub(lost.len());
        // Setting the link down would also remove the others.
        if all && lost.len() >= DOWN_PAYS && matches!(self.meanwhile, Meanwhile::Down(_)) {
            return self.bind(lost, step).map(drop);
        }
        for (done, some) in lost.chunks(TELL).enumerate() {
            ensure!(step(done * TELL), Interrupted);
            self.exchange(&[], &[Timed { step: 0, first: 0, addresses: some.to_vec() }])?;
        }
        // They may go again before the kernel accepts packets for them; the watcher will notice
        // that too.
        let give_up = Instant::now() + SETTLE_TIMEOUT;
        while let Err(why) = self.socket.wait_for_local(self.index, lost, RESTORED) {
            if !self.lost(lost)?.is_empty() {
                break;
            }
            ensure!(Instant::now() < give_up, why);
        }
        Ok(())
    }
}

impl<W: Channel, R: Routing, H: HeldSetting> KernelBinder<W, R, H> {
    fn add_fresh(&mut self, fresh: &[Timed]) -> Result<()> {
        for Timed { addresses, .. } in fresh {
            for batch in addresses.chunks(self.way.batch()) {
                if let Err(NotAdded { why, .. }) = self.way.add(batch) {
                    // If all of them are there, one existed before.
                    let present = self.present()?;
                    if !batch.iter().all(|address| present.contains(address)) {
                        return Err(why);
                    }
                }
            }
            self.bound += addresses.len();
        }
        Ok(())
    }

    /// Removes all addresses of finite lifetime by setting the link down, if this binder works that
    /// way and the link is up.
    fn flush(&mut self, phases: &mut Phases) -> Result<()> {
        let Meanwhile::Down(keep_addresses) = &self.meanwhile else { return Ok(()) };
        if !self.socket.link_at(self.index)?.is_some_and(|link| link.up) {
            return Ok(());
        }
        let down = phases.time("down", || keep_addresses.link_down("1"))?;
        phases.time("up", || H::put_back(down))
    }

    /// [`KernelBinder::add`] with the link down, whatever its state before, and then up.
    fn add_while_down(
        &mut self,
        keep_addresses: &H,
        addresses: &[Ipv6Addr],
        step: &mut Progress,
        phases: &mut Phases,
    ) -> Result<()> {
        let was_up = self.socket.link_at(self.index)?.is_some_and(|link| link.up);
        // The kernel reads the setting only when the link goes down. The down state is noted, so
        // that a killed run's link is set up again.
        let down = if was_up {
            Some(phases.time("down", || keep_addresses.link_down("1"))?)
        } else {
            None
        };
        let bound = phases.time("add", || self.add(addresses, step));
        if bound.is_err() && !was_up {
            return bound;
        }
        let up = phases.time("up", || {
            self.socket.set_up(self.index, true)?;
            down.map_or(Ok(()), H::put_back)?; // already as before
            self.socket.wait_for_carrier_of(self.index, &self.name, CARRIER_TIMEOUT)
        });
        match (bound, up) {
            (Ok(()), Err(why)) => {
                let undone = self.remove(addresses, &mut |_| {});
                Err(failed(why, addresses.len(), addresses.len(), undone))
            }
            (bound, _) => bound,
        }
    }
}
