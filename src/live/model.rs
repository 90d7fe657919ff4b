//! A model of the kernel with one interface, in memory: it refuses, loses and delays what a test
//! chooses. The binders' logic runs against it without root. tests/bind.rs shows on network
//! namespaces that the real kernel behaves the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use proptest::prelude::*;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use super::ioctl::{Calls, Ioctl, SIOCSIFADDR};
use super::kernel::{DOWN_PAYS, HeldSetting, KernelBinder, Meanwhile, Routing};
use super::netlink::Messages;
use super::{Binder, Interrupted, Timed};
use crate::net::netlink::{Address, KernelError, Link};

const INDEX: u32 = 7;
const NAME: &str = "model0";

/// What happens when the kernel is told to add its n-th address.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Refused(Errno),
    /// Somebody else adds the same address first.
    Taken,
    /// The kernel processes the whole datagram, and then has no buffer for its answer.
    Unanswered,
    /// The kernel never accepts packets for it.
    NeverLocal,
    /// The interface disappears.
    Unplugged,
}

#[derive(Debug, Default)]
struct KernelState {
    gone: bool,
    up: bool,
    /// The addresses, and whether each goes when the link is set down.
    addresses: BTreeMap<Ipv6Addr, bool>,
    /// How many more times the kernel says that it does not accept packets for all.
    delay: u32,
    never_local: BTreeSet<Ipv6Addr>,
    /// How many addresses it was told to add.
    added: usize,
    faults: BTreeMap<usize, Fault>,
    /// Addresses that it refuses to remove.
    kept: BTreeSet<Ipv6Addr>,
    detection: bool,
    set_down: u32,
}

#[derive(Debug, Clone, Default)]
struct KernelModel(Arc<Mutex<KernelState>>);

impl KernelModel {
    fn with(others: &BTreeSet<Ipv6Addr>, faults: BTreeMap<usize, Fault>) -> Self {
        let addresses = others.iter().map(|address| (*address, false)).collect();
        let state =
            KernelState { up: true, detection: true, addresses, faults, ..KernelState::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, KernelState> {
        self.0.lock().unwrap()
    }

    fn has(&self) -> BTreeSet<Ipv6Addr> {
        self.state().addresses.keys().copied().collect()
    }
}

impl KernelState {
    /// Adds an address; the second result is whether the answer is lost.
    fn add(&mut self, address: Ipv6Addr, finite: bool) -> (Result<(), Errno>, bool) {
        let fault = self.faults.get(&self.added).copied();
        self.added += 1;
        let mut unanswered = false;
        match fault {
            Some(Fault::Refused(code)) => return (Err(code), false),
            Some(Fault::Taken) => drop(self.addresses.entry(address).or_insert(false)),
            Some(Fault::NeverLocal) => drop(self.never_local.insert(address)),
            Some(Fault::Unplugged) => {
                self.gone = true;
                self.addresses.clear();
            }
            Some(Fault::Unanswered) => unanswered = true,
            None => {}
        }
        if self.gone {
            return (Err(Errno::ENODEV), unanswered);
        }
        if self.addresses.contains_key(&address) {
            return (Err(Errno::EEXIST), unanswered);
        }
        self.addresses.insert(address, finite);
        (Ok(()), unanswered)
    }

    fn remove(&mut self, address: Ipv6Addr) -> Result<(), Errno> {
        if self.gone {
            Err(Errno::ENODEV)
        } else if self.kept.contains(&address) {
            Err(Errno::ENOMEM)
        } else {
            self.addresses.remove(&address).map(drop).ok_or(Errno::EADDRNOTAVAIL)
        }
    }
}

fn address_of(message: &AddressMessage) -> Ipv6Addr {
    assert_eq!((message.header.index, message.header.prefix_len), (INDEX, 128));
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V6(address)) => Some(*address),
        _ => None,
    });
    local.expect("an address")
}

impl Routing for KernelModel {
    fn tell(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, KernelError)>, KernelError> {
        let mut state = self.state();
        let mut refused = Vec::new();
        let mut unanswered = false;
        for (position, (message, flags)) in messages.into_iter().enumerate() {
            let done = match message {
                RouteNetlinkMessage::NewAddress(message) => {
                    assert_eq!(flags, NLM_F_CREATE | NLM_F_EXCL);
                    let is_finite = |attribute: &AddressAttribute| {
                        matches!(attribute, AddressAttribute::CacheInfo(_))
                    };
                    let finite = message.attributes.iter().any(is_finite);
                    let (done, lost) = state.add(address_of(&message), finite);
                    unanswered |= lost;
                    done
                }
                RouteNetlinkMessage::DelAddress(message) => state.remove(address_of(&message)),
                other => panic!("{other:?}"),
            };
            refused.extend(done.err().map(|code| (position, KernelError::from(code))));
        }
        if unanswered { Err(Errno::ENOBUFS.into()) } else { Ok(refused) }
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<Address>> {
        assert_eq!(index, INDEX);
        let state = self.state();
        ensure!(!state.gone, "there is no such interface here");
        let all = state.addresses.keys();
        let all = all.map(|&ip| Address { ip, prefix_length: 128, ours: false, tentative: false });
        Ok(all.collect())
    }

    fn link_at(&mut self, index: u32) -> Result<Option<Link>> {
        assert_eq!(index, INDEX);
        let state = self.state();
        Ok((!state.gone).then(|| Link { up: state.up, ..link() }))
    }

    fn set_up(&mut self, _: u32, up: bool) -> Result<()> {
        self.state().up = up;
        Ok(())
    }

    fn wait_for_carrier_of(&mut self, _: u32, _: &str, _: Duration) -> Result<()> {
        ensure!(self.state().up, "no carrier");
        Ok(())
    }

    fn wait_for_local(&mut self, _: u32, addresses: &[Ipv6Addr], _: Duration) -> Result<()> {
        let mut state = self.state();
        if state.delay > 0 {
            state.delay -= 1;
            bail!("not yet");
        }
        let never = |address| !state.addresses.contains_key(address);
        let never = |address| never(address) || state.never_local.contains(address);
        ensure!(!addresses.iter().any(never), "the kernel does not receive for it");
        Ok(())
    }
}

impl Calls for KernelModel {
    fn call(&self, request: libc::Ioctl, address: Ipv6Addr) -> Result<(), Errno> {
        let mut state = self.state();
        if request != SIOCSIFADDR {
            return state.remove(address);
        }
        assert!(!state.detection, "it would not be live at once");
        match state.add(address, false) {
            (Ok(()), true) => Err(Errno::ENOBUFS),
            (done, _) => done,
        }
    }
}

/// The setting behind [`Meanwhile`].
struct Switch(KernelModel);

impl HeldSetting for Switch {
    type Down = KernelModel;

    fn link_down(&self, value: &str) -> Result<KernelModel> {
        assert_eq!(value, "1", "the interface would lose its own");
        let mut state = self.0.state();
        state.up = false;
        state.set_down += 1;
        state.addresses.retain(|_, finite| !*finite);
        Ok(self.0.clone())
    }

    fn put_back(down: KernelModel) -> Result<()> {
        down.state().up = true;
        Ok(())
    }

    fn during<T>(&self, value: &str, with: impl FnOnce() -> Result<T>) -> Result<T> {
        assert_eq!(value, "0");
        self.0.state().detection = false;
        let result = with();
        self.0.state().detection = true;
        result
    }
}

fn link() -> Link {
    Link { index: INDEX, name: NAME.to_owned(), ..crate::net::netlink::link("lo").unwrap() }
}

/// The ways under test: all except those that start programs.
const WAYS: [&str; 4] = ["one by one", "batches", "while down", "ioctl"];

fn binder(way: &str, model: &KernelModel) -> Box<dyn Binder> {
    let messages = |batch| Messages::over(model.clone(), INDEX, NAME, batch);
    let switch = Switch(model.clone());
    match way {
        "one by one" => kernel(model, messages(1), Meanwhile::Nothing),
        "batches" => kernel(model, messages(8), Meanwhile::Nothing),
        "while down" => kernel(model, messages(128).of_finite_lifetime(), Meanwhile::Down(switch)),
        "ioctl" => {
            let ioctl = Ioctl::over(model.clone(), INDEX, NAME);
            kernel(model, ioctl, Meanwhile::NoDetection(switch))
        }
        other => panic!("{other}"),
    }
}

fn kernel(
    model: &KernelModel,
    way: impl super::kernel::Channel + 'static,
    meanwhile: Meanwhile<Switch>,
) -> Box<dyn Binder> {
    Box::new(KernelBinder::over(model.clone(), INDEX, NAME, way, meanwhile))
}

fn address(number: usize) -> Ipv6Addr {
    Ipv6Addr::from_bits(0x2001_0db8 << 96 | number as u128)
}

fn addresses(numbers: impl IntoIterator<Item = usize>) -> Vec<Ipv6Addr> {
    numbers.into_iter().map(address).collect()
}

/// How many addresses to bind: few, or enough to set the link down.
fn count() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..40, DOWN_PAYS - 1..DOWN_PAYS + 140]
}

/// Other programs' addresses: at most a few, and none that is bound.
fn others() -> impl Strategy<Value = BTreeSet<Ipv6Addr>> {
    proptest::collection::btree_set((1000usize..1020).prop_map(address), 0..5)
}

fn fault() -> impl Strategy<Value = Fault> {
    use Fault::*;
    let codes = vec![Errno::ENOBUFS, Errno::ENOMEM, Errno::EPERM, Errno::EINTR, Errno::EEXIST];
    prop_oneof![
        prop::sample::select(codes).prop_map(Refused),
        Just(Taken),
        Just(Unanswered),
        Just(NeverLocal),
        Just(Unplugged),
    ]
}

fn way() -> impl Strategy<Value = &'static str> {
    prop::sample::select(WAYS.to_vec())
}

proptest! {
    #[test]
    fn after_bind_and_unbind_the_kernel_has_what_it_had(
        way in way(), count in count(), others in others(), pieces in 1usize..4,
    ) {
        let model = KernelModel::with(&others, BTreeMap::new());
        let mut binder = binder(way, &model);
        let wanted = addresses(0..count);
        let mut steps = Vec::new();
        binder.bind(&wanted, &mut |bound| { steps.push(bound); true }).unwrap();
        prop_assert!(steps.is_sorted() && steps.last() == Some(&count), "{steps:?}");
        let all: BTreeSet<_> = others.iter().chain(&wanted).copied().collect();
        prop_assert_eq!(model.has(), all);
        prop_assert!(binder.lost(&wanted).unwrap().is_empty());
        for piece in wanted.chunks(count.div_ceil(pieces)) {
            let mut told = Vec::new();
            binder.unbind(piece, &mut |gone| told.push(gone)).unwrap();
            let complete = told.last().is_none_or(|last| *last == piece.len());
            prop_assert!(told.is_sorted() && complete, "{told:?}");
        }
        prop_assert_eq!(model.has(), others);
        let state = model.state();
        prop_assert!(state.up && state.detection);
        prop_assert!(way == "while down" && count >= DOWN_PAYS || state.set_down == 0);
    }

    #[test]
    fn what_fails_half_way_leaves_nothing_and_takes_nothing_of_others(
        way in way(), count in count(), others in others(), fault in fault(),
        place in any::<prop::sample::Index>(),
    ) {
        let at = place.index(count);
        let model = KernelModel::with(&others, BTreeMap::from([(at, fault)]));
        let wanted = addresses(0..count);
        let bound = binder(way, &model).bind(&wanted, &mut |_| true);
        let error = format!("{:#}", bound.expect_err("it failed"));
        prop_assert!(error.contains("are taken back"), "{error}");
        let mut left = others.clone();
        match fault {
            Fault::Taken => drop(left.insert(wanted[at])),
            Fault::Unplugged => left.clear(),
            _ => {}
        }
        prop_assert_eq!(model.has(), left);
        let state = model.state();
        prop_assert!(state.up && state.detection, "it is as it was");
    }

    #[test]
    fn one_that_is_there_or_is_given_twice_has_nothing_bound(
        way in way(), count in count(), twice in any::<bool>(),
        place in any::<prop::sample::Index>(),
    ) {
        let mut wanted = addresses(0..count);
        let one = wanted[place.index(count)];
        let others = if twice { BTreeSet::new() } else { BTreeSet::from([one]) };
        wanted.extend(twice.then_some(one));
        let model = KernelModel::with(&others, BTreeMap::new());
        let bound = binder(way, &model).bind(&wanted, &mut |_| true);
        prop_assert!(bound.unwrap_err().to_string().contains("nothing was bound"));
        prop_assert_eq!(model.has(), others);
        prop_assert_eq!(model.state().added, 0);
    }

    #[test]
    fn a_bind_that_is_told_to_stop_adds_no_more_and_takes_back(
        way in way(), count in count(), others in others(), calls in 0usize..60,
    ) {
        let model = KernelModel::with(&others, BTreeMap::new());
        let mut left = calls;
        let mut last = 0;
        let mut step = |bound| {
            last = bound;
            left = left.saturating_sub(1);
            left > 0
        };
        match binder(way, &model).bind(&addresses(0..count), &mut step) {
            // It finished before it could be stopped.
            Ok(_) => prop_assert_eq!(model.has().len(), others.len() + count),
            Err(error) => {
                prop_assert!(error.chain().any(|cause| cause.is::<Interrupted>()));
                prop_assert_eq!(model.state().added, last);
                prop_assert_eq!(model.has(), others);
            }
        }
        prop_assert!(model.state().up && model.state().detection);
    }

    #[test]
    fn what_others_took_away_is_found_and_renewed(
        way in way(), count in count(), others in others(), delay in 0u32..3,
        taken in proptest::collection::vec(any::<prop::sample::Index>(), 1..20),
        all in any::<bool>(),
    ) {
        let model = KernelModel::with(&others, BTreeMap::new());
        let mut binder = binder(way, &model);
        let wanted = addresses(0..count);
        binder.bind(&wanted, &mut |_| true).unwrap();
        let taken: BTreeSet<_> = if all {
            wanted.iter().copied().collect()
        } else {
            taken.iter().map(|index| *index.get(&wanted)).collect()
        };
        model.state().addresses.retain(|address, _| !taken.contains(address));
        let lost = binder.lost(&wanted).unwrap();
        prop_assert_eq!(lost.iter().copied().collect::<BTreeSet<_>>(), taken);
        // A bind fails if the kernel does not accept packets for all in time.
        let binds_again = way == "while down" && lost.len() == count && count >= DOWN_PAYS;
        model.state().delay = if binds_again { 0 } else { delay };
        binder.restore(&lost, &mut |_| true).unwrap();
        prop_assert_eq!(model.has().len(), others.len() + count);
        prop_assert!(binder.lost(&wanted).unwrap().is_empty());
        binder.unbind(&wanted, &mut |_| {}).unwrap();
        prop_assert_eq!(model.has(), others);
    }

    /// Steps of a few clients. Two may have the same address, or one that is about to be removed.
    #[test]
    fn an_exchange_has_the_expired_gone_and_the_fresh_there(
        way in way(), others in others(),
        before in proptest::collection::btree_set(0usize..60, 1..40),
        expired in proptest::collection::btree_set(0usize..60, 0..40),
        fresh in proptest::collection::vec(0usize..90, 0..40),
    ) {
        let model = KernelModel::with(&others, BTreeMap::new());
        let mut binder = binder(way, &model);
        binder.bind(&addresses(before.iter().copied()), &mut |_| true).unwrap();
        let timed = |step, addresses: Vec<Ipv6Addr>| {
            let pieces = addresses.chunks(7);
            let piece = |some: &[Ipv6Addr]| Timed { step, first: 0, addresses: some.to_vec() };
            pieces.map(piece).collect::<Vec<_>>()
        };
        let gone = timed(1, addresses(expired.iter().copied()));
        binder.exchange(&gone, &timed(4, addresses(fresh.iter().copied()))).unwrap();
        let kept = before.difference(&expired).chain(&fresh).map(|number| address(*number));
        prop_assert_eq!(model.has(), others.iter().copied().chain(kept).collect());
        prop_assert!(model.state().detection && model.state().set_down == 0);
    }

    #[test]
    fn what_cannot_be_removed_keeps_no_other_address(
        way in way(), count in count(), others in others(),
        kept in proptest::collection::btree_set((0usize..30).prop_map(address), 1..4),
    ) {
        let model = KernelModel::with(&others, BTreeMap::new());
        let mut binder = binder(way, &model);
        let wanted = addresses(0..count);
        binder.bind(&wanted, &mut |_| true).unwrap();
        model.state().kept.clone_from(&kept);
        // With the link down, the kernel removes them by itself.
        let left: BTreeSet<_> = if way == "while down" && count >= DOWN_PAYS {
            BTreeSet::new()
        } else {
            wanted.iter().copied().filter(|address| kept.contains(address)).collect()
        };
        let unbound = binder.unbind(&wanted, &mut |_| {});
        prop_assert_eq!(unbound.is_err(), !left.is_empty());
        prop_assert_eq!(model.has(), others.union(&left).copied().collect());
    }
}
