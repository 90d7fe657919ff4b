//! LIVE ADDRESSES: makes an interface answer for the addresses that `address` chooses.
//!
//! ```text
//!   the kernel's own addresses, O(n) each
//!     netlink  ─ messages, one by one, in batches, or in batches while the link is down
//!     ioctl ──── a call per address
//!     command ── a process per address: ip, ifconfig
//!   every address at once
//!     anyip ──── a local route for the whole prefix
//!   neither: O(1) each
//!     live_map ─ entries in the steering program's maps; the engine answers neighbour discovery
//! ```
//!
//! A [`Rotation`] keeps moving addresses live, through any of these except anyip: a few at a time,
//! spread over the step.
//!
//! This code changes the addresses of one interface, the steering program's maps, and one route,
//! and only undoes its own changes. It works all or nothing: a [`Binder`] that fails or is stopped
//! undoes its work, and a [`Bound`] takes its addresses back on drop. For a killed run, its guard
//! ([`crate::server::guard`]) does so at once. Without a guard, the next run on that interface
//! recognises leftovers by their mark ([`crate::net::netlink::OUR_PROTOCOL`]) and removes them.
//! Only `ioctl`, `command` and `ifconfig` cannot leave a mark: the guard knows their addresses.

mod anyip;
mod command;
mod delivering;
mod ioctl;
mod kernel;
mod live_map;
mod live_set;
#[cfg(test)]
mod model;
mod netlink;
mod rotation;
mod setting;

use std::io;
use std::net::Ipv6Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::address::{Pool, Prefix};
use crate::host::sandbox::Role;
#[doc(hidden)]
pub use crate::host::time::unix_time;
use crate::net::netlink::Link;
use crate::xdp::LiveAddresses;
use kernel::KernelBinder;

pub(crate) use delivering::Delivering;
#[doc(hidden)]
pub use live_set::LiveSet;
pub use rotation::Rotated;
#[doc(hidden)]
pub use rotation::Rotation;

pub use crate::events::{Method, Phase, Phases};

/// Called between the steps of a bind with the number of addresses bound so far; returns whether to
/// continue.
pub type Progress<'a> = dyn FnMut(usize) -> bool + 'a;

/// Called between the steps of an unbind with the number of addresses gone so far.
pub type Told<'a> = dyn FnMut(usize) + 'a;

/// A method to make addresses live on one interface, in the namespace where the binder was created.
#[doc(hidden)]
pub trait Binder: Send {
    /// Makes all `addresses` live, in addition to those that already are, and returns how long each
    /// phase took.
    ///
    /// # Errors
    /// When an address cannot be made live, already exists, or `step` returned false (with
    /// [`Interrupted`] in the chain). None of them is live then, and the error says how many were.
    fn bind(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<Phases>;

    /// Takes `addresses` back and returns how long each phase took. Ignores those already gone.
    ///
    /// # Errors
    /// When the kernel refuses. It has taken back what it could.
    fn unbind(&mut self, addresses: &[Ipv6Addr], told: &mut Told) -> Result<Phases>;

    /// Removes the `expired` steps' addresses, then adds the `fresh` ones'. Ignores addresses that
    /// are already there or already gone: two clients may have the same one.
    ///
    /// # Errors
    /// When the kernel refuses, or such addresses cannot move. Some may then have gone or been
    /// added.
    fn exchange(&mut self, expired: &[Timed], fresh: &[Timed]) -> Result<()>;

    /// How many steps ahead of the live window addresses may be added without being live.
    /// [`set_step`](Self::set_step) then determines which are live. With 0, an address is live as
    /// soon as it is added.
    fn ahead(&self) -> u64 {
        0
    }

    /// Switches to `step`: addresses in the window around it are live.
    fn set_step(&mut self, step: u64) {
        let _ = step;
    }

    /// Clients whose addresses are exchanged in one go. Small, so that others need not wait long
    /// for the processor.
    fn stride(&self) -> usize {
        1
    }

    /// Those of the bound `addresses` that are no longer on the interface: the kernel removes its
    /// own when the link is set down, and others may remove them too.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn lost(&mut self, _addresses: &[Ipv6Addr]) -> Result<Vec<Ipv6Addr>> {
        Ok(Vec::new())
    }

    /// Whether all addresses seem to be live, judged by `one` of them. This is a single query to
    /// the kernel, for methods where nothing announces a loss.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    fn seems_live(&mut self, _one: Ipv6Addr) -> Result<bool> {
        Ok(true)
    }

    /// Makes [`lost`](Self::lost) addresses live again.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind). Some of them may be live then.
    fn restore(&mut self, lost: &[Ipv6Addr], step: &mut Progress) -> Result<()> {
        self.bind(lost, step).map(drop)
    }

    /// Bytes of kernel memory that the addresses take, if known.
    fn kernel_memory(&self) -> Option<u64> {
        None
    }
}

/// Addresses of some clients in one step.
#[doc(hidden)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timed {
    /// The step.
    pub step: u64,
    /// The first client; the others follow consecutively.
    pub first: u64,
    /// Their addresses in that step.
    pub addresses: Vec<Ipv6Addr>,
}

/// The error of a bind whose [`Progress`] returned false.
#[doc(hidden)]
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Phases {
    /// Runs and times the next phase.
    fn time<T>(&mut self, name: &str, part: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = part();
        self.0.push(Phase { name: name.to_owned(), seconds: start.elapsed().as_secs_f64() });
        result
    }

    /// The total of all phases, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        // The sum of no floats is -0.
        self.0.iter().fold(0.0, |sum, phase| sum + phase.seconds)
    }
}

impl Method {
    /// All of them, in the order of the command line's help.
    pub const ALL: [Self; 9] = [
        Self::Netlink,
        Self::NetlinkBatch,
        Self::NetlinkDown,
        Self::Ioctl,
        Self::Command,
        Self::Ifconfig,
        Self::Anyip,
        Self::LiveMap,
        Self::None,
    ];

    /// Whether its addresses can move.
    #[must_use]
    pub fn moves(self) -> bool {
        !matches!(self, Self::Anyip | Self::None)
    }

    /// The power of the number of addresses by which the time for all of them grows.
    #[must_use]
    pub fn power(self) -> i32 {
        if self == Self::LiveMap { 1 } else { 2 }
    }

    /// Whether it runs other programs to add and remove addresses.
    #[must_use]
    pub fn starts_programs(self) -> bool {
        matches!(self, Self::Command | Self::Ifconfig)
    }

    /// Whether it changes settings of the interface while it adds addresses.
    #[must_use]
    pub fn changes_settings(self) -> bool {
        !matches!(self, Self::Netlink | Self::NetlinkBatch | Self::LiveMap | Self::None)
    }

    /// The role of a thread that moves addresses.
    pub(crate) fn rotates_as(self) -> Role {
        if self.starts_programs() {
            Role::Commander
        } else if self.changes_settings() {
            Role::Main
        } else {
            Role::Binding
        }
    }

    /// Whether taking the addresses back needs a privilege (CAP_NET_ADMIN).
    #[must_use]
    pub fn takes_back(self) -> bool {
        !matches!(self, Self::LiveMap | Self::None)
    }

    /// Whether it adds addresses of the kernel, one by one.
    #[must_use]
    pub fn is_of_the_kernel(self) -> bool {
        match self {
            Self::Netlink
            | Self::NetlinkBatch
            | Self::NetlinkDown
            | Self::Ioctl
            | Self::Command
            | Self::Ifconfig => true,
            Self::Anyip | Self::LiveMap | Self::None => false,
        }
    }
}

/// Where to make addresses live.
#[doc(hidden)]
#[derive(Debug)]
pub struct BindContext<'a> {
    /// The interface, in the namespace of the calling thread.
    pub link: &'a Link,
    /// The prefix of all the addresses.
    pub prefix: Prefix,
    /// The maps of a hidden steering program on the interface; only [`Method::LiveMap`] needs them.
    pub live_addresses: Option<LiveAddresses>,
}

/// Creates the binder for `method` at `place`, after removing what a killed run left on the
/// interface.
///
/// # Errors
/// When another process binds addresses of that interface, the leftovers cannot be removed, or the
/// method lacks something it needs.
#[doc(hidden)]
pub fn binder(method: Method, place: BindContext) -> Result<Box<dyn Binder>> {
    if method == Method::None {
        return Ok(Box::new(OthersBind));
    }
    let link = place.link;
    let claim = claim(link)?;
    netlink::remove_leftovers(link, None)?;
    anyip::remove_leftovers(link)?;
    let inner: Box<dyn Binder> = match method {
        Method::Netlink => Box::new(KernelBinder::new(link, netlink::Messages::new(link, 1)?)?),
        Method::NetlinkBatch => {
            Box::new(KernelBinder::new(link, netlink::Messages::new(link, netlink::BATCH)?)?)
        }
        Method::NetlinkDown => {
            let messages = netlink::Messages::new(link, netlink::BATCH)?.of_finite_lifetime();
            Box::new(KernelBinder::new(link, messages)?.while_down()?)
        }
        Method::Ioctl => {
            Box::new(KernelBinder::new(link, ioctl::Ioctl::new(link)?)?.without_detection()?)
        }
        Method::Command => Box::new(KernelBinder::new(link, command::AddressCommand::ip(link)?)?),
        Method::Ifconfig => Box::new(
            KernelBinder::new(link, command::AddressCommand::ifconfig(link)?)?
                .without_detection()?,
        ),
        Method::Anyip => Box::new(anyip::AnyIp::new(link, place.prefix)?),
        Method::LiveMap => {
            let live =
                place.live_addresses.context("live-map needs a steering program to write to")?;
            Box::new(live_map::LiveMap::new(link, live)?)
        }
        Method::None => Box::new(OthersBind),
    };
    Ok(Box::new(Claimed { inner, _claim: claim }))
}

/// Addresses that are live until this is dropped.
#[doc(hidden)]
pub struct Bound {
    binder: Box<dyn Binder>,
    addresses: Vec<Ipv6Addr>,
    phases: Phases,
}

/// Makes `addresses` live at `place`.
///
/// # Errors
/// Those of [`binder`] and [`Binder::bind`]. None of the addresses is live then.
#[doc(hidden)]
pub fn bind(
    method: Method,
    place: BindContext,
    addresses: Vec<Ipv6Addr>,
    step: &mut Progress,
) -> Result<Bound> {
    let mut binder = binder(method, place)?;
    let phases = binder.bind(&addresses, step)?;
    Ok(Bound { binder, addresses, phases })
}

impl Bound {
    /// The addresses, as given.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv6Addr] {
        &self.addresses
    }

    /// How long making them live took.
    #[must_use]
    pub fn phases(&self) -> &Phases {
        &self.phases
    }

    /// Bytes of kernel memory that they take, if known.
    #[must_use]
    pub fn kernel_memory(&self) -> Option<u64> {
        self.binder.kernel_memory()
    }

    /// Makes the addresses live again that the kernel or somebody else removed, and returns their
    /// number.
    ///
    /// # Errors
    /// Those of [`Binder::restore`].
    pub fn renew(&mut self, step: &mut Progress) -> Result<usize> {
        let lost = self.binder.lost(&self.addresses)?;
        if !lost.is_empty() {
            self.binder.restore(&lost, step)?;
        }
        Ok(lost.len())
    }

    /// Whether the addresses seem to be live, as in [`Binder::seems_live`].
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn seems_live(&mut self) -> Result<bool> {
        self.addresses.first().map_or(Ok(true), |one| self.binder.seems_live(*one))
    }

    /// Takes the addresses back, reports progress, and returns how long it took. Dropping does the
    /// same, but cannot report failure.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(mut self, told: &mut Told) -> Result<Phases> {
        let addresses = std::mem::take(&mut self.addresses);
        self.binder.unbind(&addresses, told)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // A destructor cannot report errors; `release` can.
        let _ = self.binder.unbind(&self.addresses, &mut |_| {});
    }
}

/// The error of a bind that ended after `bound` of `all` addresses because of `why`, with the
/// result of undoing it.
fn failed<T>(why: anyhow::Error, bound: usize, all: usize, undone: Result<T>) -> anyhow::Error {
    match undone {
        Ok(_) => why.context(format!("{bound} of {all} addresses were bound, and are taken back")),
        Err(error) => why.context(format!(
            "{bound} of {all} addresses were bound, and could not all be taken back ({error:#})"
        )),
    }
}

/// A binder, and the socket name that tells other processes that its interface is taken. The name
/// belongs to the namespace and is not a file, so the kernel frees it however this process ends.
struct Claimed {
    inner: Box<dyn Binder>,
    _claim: UnixDatagram,
}

/// Takes back what a killed process left on `link`, and returns the number of addresses. `unmarked`
/// are addresses that it may have left without a mark. A living process loses nothing. `clear`
/// takes back what else it left, and is called only if no living process has the interface.
///
/// # Errors
/// When the kernel refuses.
#[cfg_attr(not(feature = "cli"), allow(dead_code))]
pub(crate) fn take_back(
    link: &Link,
    unmarked: Option<&Pool>,
    clear: impl FnOnce() -> Result<()>,
) -> Result<usize> {
    // The next server waits for this name.
    let _at_work = UnixDatagram::bind_addr(&at_work(link)?);
    let Ok(_claim) = claim_within(link, || RELEASE) else { return Ok(0) };
    clear()?;
    let gone = netlink::remove_leftovers(link, unmarked)?;
    anyip::remove_leftovers(link)?;
    Ok(gone)
}

/// The socket name of a process that cleans up after a killed one on `link`.
fn at_work(link: &Link) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("sixhop-guard-{}", link.index))
}

/// Prevents other processes from binding addresses to `link` until the result is dropped. They
/// would take this one's addresses for leftovers.
fn claim(link: &Link) -> Result<UnixDatagram> {
    let (at_work, prober) = (at_work(link)?, UnixDatagram::unbound()?);
    claim_within(link, || if prober.connect_addr(&at_work).is_ok() { CLEARED } else { RELEASE })
}

/// The same, retried for as long as `patience` says while others have it.
fn claim_within(link: &Link, patience: impl Fn() -> Duration) -> Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(format!("sixhop-bind-{}", link.index))?;
    let started = Instant::now();
    loop {
        match UnixDatagram::bind_addr(&name) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                ensure!(
                    started.elapsed() < patience(),
                    "another sixhop binds addresses to {}: stop it first",
                    link.name
                );
                thread::sleep(Duration::from_millis(5));
            }
            claimed => return claimed.with_context(|| format!("cannot claim {}", link.name)),
        }
    }
}

/// How long a freed name may stay taken. While another thread starts a process, the child has a
/// copy of every descriptor until it executes its program.
const RELEASE: Duration = Duration::from_secs(1);

/// The time limit for taking back what a killed server left. With some 10,000 addresses, each one
/// costs the kernel a millisecond.
const CLEARED: Duration = Duration::from_secs(60);

impl Binder for Claimed {
    fn bind(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<Phases> {
        self.inner.bind(addresses, step)
    }

    fn unbind(&mut self, addresses: &[Ipv6Addr], told: &mut Told) -> Result<Phases> {
        self.inner.unbind(addresses, told)
    }

    fn exchange(&mut self, expired: &[Timed], fresh: &[Timed]) -> Result<()> {
        self.inner.exchange(expired, fresh)
    }

    fn ahead(&self) -> u64 {
        self.inner.ahead()
    }

    fn set_step(&mut self, step: u64) {
        self.inner.set_step(step);
    }

    fn stride(&self) -> usize {
        self.inner.stride()
    }

    fn lost(&mut self, addresses: &[Ipv6Addr]) -> Result<Vec<Ipv6Addr>> {
        self.inner.lost(addresses)
    }

    fn seems_live(&mut self, one: Ipv6Addr) -> Result<bool> {
        self.inner.seems_live(one)
    }

    fn restore(&mut self, lost: &[Ipv6Addr], step: &mut Progress) -> Result<()> {
        self.inner.restore(lost, step)
    }

    fn kernel_memory(&self) -> Option<u64> {
        self.inner.kernel_memory()
    }
}

/// For addresses that are live by other means.
struct OthersBind;

impl Binder for OthersBind {
    fn bind(&mut self, _: &[Ipv6Addr], _: &mut Progress) -> Result<Phases> {
        Ok(Phases::default())
    }

    fn unbind(&mut self, _: &[Ipv6Addr], _: &mut Told) -> Result<Phases> {
        Ok(Phases::default())
    }

    fn exchange(&mut self, _: &[Timed], _: &[Timed]) -> Result<()> {
        bail!("addresses that others make live do not move")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[cfg(feature = "cli")]
    #[test]
    fn methods_have_one_name_in_flags_results_and_words() {
        use clap::ValueEnum;

        assert_eq!(Method::value_variants(), Method::ALL);
        for method in Method::value_variants() {
            let flag = method.to_possible_value().unwrap();
            assert_eq!(serde_json::to_value(method).unwrap(), flag.get_name());
            assert_eq!(method.to_string(), flag.get_name());
        }
    }

    #[test]
    fn none_leaves_addresses_to_others() {
        let loopback = crate::net::netlink::link("lo").unwrap();
        let place = BindContext {
            link: &loopback,
            prefix: "2001:db8::/64".parse().unwrap(),
            live_addresses: None,
        };
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
        let bound = bind(Method::None, place, vec![address], &mut |_| false).unwrap();
        assert_eq!(bound.addresses(), [address]);
        bound.release(&mut |_| {}).unwrap();
    }

    #[test]
    fn a_failure_says_how_far_it_came_and_what_became_of_it() {
        let why = || anyhow::Error::new(Interrupted);
        let error = failed(why(), 3, 10, Ok(()));
        assert_eq!(
            format!("{error:#}"),
            "3 of 10 addresses were bound, and are taken back: interrupted"
        );
        assert!(error.chain().any(|cause| cause.is::<Interrupted>()));
        let error = format!("{:#}", failed(why(), 3, 10, Err::<(), _>(anyhow!("no room"))));
        assert!(error.contains("could not all be taken back (no room)"), "{error}");
    }
}
