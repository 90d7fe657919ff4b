//! Addresses of the kernel's own, one after the other: what the paper measures, and what can be
//! made of it.
//!
//! The ways differ in how the kernel is told of an address. What they share is here: nothing is
//! done that would fail half-way if that can be known, what fails half-way is undone, and what has
//! to be set meanwhile is put back.
//!
//! All of them get slower with every address, because the kernel does: docs/binding.md.
//!
//! The kernel itself stands behind three small traits: [`Channel`], [`Routing`] and
//! [`HeldSetting`]. So tests put one in its place that refuses, loses and delays what they choose (src/live/model.rs).

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::setting::Ipv6Setting;
use super::{Binder, Interrupted, Phases, Progress, Timed, Told, failed};
use crate::host::settings::Changed;
use crate::net::netlink::{Address, Connection, KernelError, Link};

/// How the kernel is told.
pub(super) trait Channel: Send {
    /// How many addresses one call of [`add`](Self::add) takes.
    fn batch(&self) -> usize {
        1
    }

    /// Adds the addresses of one batch.
    fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), NotAdded>;

    /// Removes addresses, however many. Those that are gone already, alone or with their interface,
    /// are no error.
    fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()>;
}

/// Not all addresses of a batch were added.
pub(super) struct NotAdded {
    /// Why the first was not.
    pub why: Error,
    /// How many were, as far as it is known.
    pub added: usize,
    /// Those that somebody else had added first: they stay.
    pub others: Vec<Ipv6Addr>,
}

/// What binders ask the kernel, and tell it: a routing socket.
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

/// A setting of the interface that is held at another value for a moment.
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

/// What is arranged while addresses are added.
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
    /// Addresses that are on the interface because of this binder.
    bound: usize,
}

/// For fewer addresses than this the link stays up in any case: they cost less than setting it down
/// and up, which takes a millisecond or two on a veth pair (the phases `down` and `up` of
/// docs/results/bind.jsonl).
pub(super) const DOWN_PAYS: usize = 250;

/// Setting a link up takes the kernel long when it has many addresses, and a card needs a second or
/// two for its carrier.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// The kernel's worker has little to do for each address without Duplicate Address Detection; this
/// is for very many.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often to look, while the kernel does not receive for addresses that were made live again,
/// whether it has them still.
const RESTORED: Duration = Duration::from_millis(100);

/// Clients whose addresses are exchanged in one go: each takes the kernel a millisecond where there
/// are some thousand.
const EXCHANGED: usize = 8;

/// Addresses removed before that is told: a hundredth of a second or so.
const TELL: usize = 64;

impl<W: Channel> KernelBinder<W> {
    pub fn new(link: &Link, way: W) -> Result<Self> {
        Ok(Self::over(Connection::open()?, link.index, &link.name, way, Meanwhile::Nothing))
    }

    /// With the link down while addresses are added, and up afterwards; and down for a moment to
    /// have all of them gone at once, for which the way has to give them a finite lifetime. The
    /// interface keeps its other addresses, if they are without end, but loses the routes that were
    /// added through it; the kernel makes those of its prefixes again.
    pub fn while_down(mut self) -> Result<Self> {
        ensure!(
            Ipv6Setting::for_all("keep_addr_on_down")? >= 0,
            "{} would lose its own addresses: set net.ipv6.conf.all.keep_addr_on_down to 0",
            self.name
        );
        self.meanwhile = Meanwhile::Down(Ipv6Setting::of(&self.name, "keep_addr_on_down")?);
        Ok(self)
    }

    /// For a way that cannot say that an address is live at once: without Duplicate Address
    /// Detection all of them are.
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

    /// Refuses, before anything is done, what would fail half-way. From here on, each of
    /// `addresses` that is on the interface is there because of this binder.
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
                // Of this batch, whatever may have been added: an answer can be lost.
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

    /// Waits until the kernel receives for all of them; on a link that is down it does for none.
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

    /// Removes those of `addresses` that are still there: with the interface, all of them are gone.
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
        // All go with the link, so that is only for all.
        if addresses.len() >= DOWN_PAYS && addresses.len() == self.bound {
            // Only the quicker way: what it leaves is removed one by one.
            let _ = self.flush(&mut phases);
        }
        phases.time("remove", || self.remove(addresses, told))?;
        self.bound = self.bound.saturating_sub(addresses.len());
        Ok(phases)
    }

    /// The link stays up whatever the way: what is sent meanwhile would be lost.
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
        // Setting the link down would take those that are left.
        if all && lost.len() >= DOWN_PAYS && matches!(self.meanwhile, Meanwhile::Down(_)) {
            return self.bind(lost, step).map(drop);
        }
        for (done, some) in lost.chunks(TELL).enumerate() {
            ensure!(step(done * TELL), Interrupted);
            self.exchange(&[], &[Timed { step: 0, first: 0, addresses: some.to_vec() }])?;
        }
        // They may go again before the kernel receives for them: whoever watches hears of that too.
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
                    // Where all of them are there, one was there before.
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

    /// Has all addresses of finite lifetime gone with the link, where that is this binder's way and
    /// the link is up.
    fn flush(&mut self, phases: &mut Phases) -> Result<()> {
        let Meanwhile::Down(keep_addresses) = &self.meanwhile else { return Ok(()) };
        if !self.socket.link_at(self.index)?.is_some_and(|link| link.up) {
            return Ok(());
        }
        let down = phases.time("down", || keep_addresses.link_down("1"))?;
        phases.time("up", || H::put_back(down))
    }

    /// [`KernelBinder::add`] while the link is down, whatever it was before, then up.
    fn add_while_down(
        &mut self,
        keep_addresses: &H,
        addresses: &[Ipv6Addr],
        step: &mut Progress,
        phases: &mut Phases,
    ) -> Result<()> {
        let was_up = self.socket.link_at(self.index)?.is_some_and(|link| link.up);
        // The setting is looked at when the link goes down, and only then. That it is down is
        // noted: a killed run's is set up.
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
            down.map_or(Ok(()), H::put_back)?; // it is as before
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
