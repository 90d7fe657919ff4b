//! The steering program, which may also answer requests: loads it, configures it, attaches it by a
//! link that ends with the process, and reads its counters.

use std::fs;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use super::error::ModeError;
use super::fallback::Fallback;
use super::kernel::{self, TcHook, attach_tc};
use super::variables::{SharedWord, Station};
use crate::address::mt6d::{Subnet, window};
use crate::address::{Prefix, timed};
use crate::host;
use crate::net::denied;
use crate::net::memory::Memory;
use crate::net::netlink::{self, AttachMode, Link};
use crate::net::quirks::{self, Act};
use crate::wire::Refusal;

pub use crate::events::AttachRequest;

mod skeleton {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks)]
    #![allow(clippy::multiple_unsafe_ops_per_block)]
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}

/// Flags of linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// The burst that a quiet source may send: as many requests as in a second divided by this.
const BURSTS: u64 = 10;

/// How many sources have their requests counted if there is a limit. Beyond that, the kernel evicts
/// those that asked longest ago.
const BUDGETS: u32 = 1 << 16;

/// Where a kernel built with CONFIG_DEBUG_INFO_BTF describes its types.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What the program did with a packet. Each has a counter, in the order of `enum verdict` in
/// bpf/headers.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Verdict {
    /// A request, answered by the program itself.
    Reflected,
    /// A request that the program dropped without an answer; [`VerdictSource::refusals`] has the
    /// reasons.
    Refused,
    /// A request, into the ring of the queue that it arrived on.
    Steered,
    /// A Neighbour Solicitation for a live address, also into the ring; only if hidden.
    Solicited,
    /// To the kernel: not UDP directly over IPv6 over Ethernet.
    PassedOther,
    /// To the kernel: another port.
    PassedPort,
    /// To the kernel: our port, but outside every bound prefix; if hidden, any port.
    PassedPrefix,
    /// To the kernel: our port, within a bound prefix, but not a live address.
    PassedNotLive,
    /// To the kernel, for the socket behind: a request behind extension headers, or a fragment of
    /// one.
    PassedBehind,
    /// To the kernel: within a bound prefix, but for one of the kernel's own addresses; only if
    /// hidden.
    PassedKernel,
    /// Within a bound prefix, and nothing that a live address answers; only if hidden.
    DroppedHidden,
    /// Bypassed the XDP program, for example on a queue without one, and dropped by the backstop;
    /// only if hidden. A packet that the XDP program had passed counts twice.
    DroppedBackstop,
    /// Ours, but without a socket on this queue: to the kernel, or dropped if hidden.
    NoRing,
}

impl Verdict {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 13] = [
        Self::Reflected,
        Self::Refused,
        Self::Steered,
        Self::Solicited,
        Self::PassedOther,
        Self::PassedPort,
        Self::PassedPrefix,
        Self::PassedNotLive,
        Self::PassedBehind,
        Self::PassedKernel,
        Self::DroppedHidden,
        Self::DroppedBackstop,
        Self::NoRing,
    ];

    /// What it means for the packet, under a program that is `hidden` or not.
    #[must_use]
    pub fn fate(self, hidden: bool) -> Fate {
        match self {
            Self::Reflected | Self::Refused | Self::Steered | Self::Solicited => Fate::Taken,
            Self::DroppedHidden | Self::DroppedBackstop => Fate::Dropped,
            Self::NoRing if hidden => Fate::Dropped,
            Self::NoRing
            | Self::PassedOther
            | Self::PassedPort
            | Self::PassedPrefix
            | Self::PassedNotLive
            | Self::PassedBehind
            | Self::PassedKernel => Fate::Passed,
        }
    }

    /// Its name in the statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reflected => "reflected",
            Self::Refused => "refused",
            Self::Steered => "steered",
            Self::Solicited => "solicited",
            Self::PassedOther => "passed_other",
            Self::PassedPort => "passed_port",
            Self::PassedPrefix => "passed_prefix",
            Self::PassedNotLive => "passed_not_live",
            Self::PassedBehind => "passed_behind",
            Self::PassedKernel => "passed_kernel",
            Self::DroppedHidden => "dropped_hidden",
            Self::DroppedBackstop => "dropped_backstop",
            Self::NoRing => "no_ring",
        }
    }
}

/// What a verdict means for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The service received it: other counters say what became of it.
    Taken,
    /// It was for the service and was dropped; the verdict's name is the reason.
    Dropped,
    /// It was for the kernel.
    Passed,
}

/// The configuration of a program.
#[derive(Debug, Clone, Copy)]
pub struct ProgramConfig {
    /// UDP port of the service; 0, which is not a valid port, steers no UDP at all.
    pub port: u16,
    /// The most static addresses.
    pub addresses: u32,
    /// How many queues may get a socket, from 0 on.
    pub queues: u32,
    /// Whether the kernel must not see the bound prefixes, except its own addresses there. If so,
    /// Neighbour Solicitations for live addresses are steered too, and packets that nobody answers
    /// are dropped.
    pub hidden: bool,
    /// Moving addresses, instead of static ones. The program itself then refuses requests from a
    /// live address, since nothing else knows which are live.
    pub moving: Option<MovingAddresses>,
    /// How the program answers requests itself; `None` to steer them.
    pub reflect: Option<Reflect>,
    /// Which sources may ask, and how often; `None` to check no source, as a load generator does.
    pub screen: Option<Screen>,
}

/// Addresses that move.
#[derive(Debug, Clone, Copy)]
pub struct MovingAddresses {
    /// Their subnet.
    pub subnet: Subnet,
    /// Their number in each step.
    pub clients: u64,
}

impl MovingAddresses {
    /// The layout of the map `timed_addresses` for them.
    pub(crate) fn layout(&self) -> timed::TableLayout {
        timed::TableLayout::new(self.clients)
    }

    /// The upper half of all of them, in memory order.
    pub(crate) fn network(&self) -> u64 {
        let [network, _] = timed::halves(self.subnet.prefix().network());
        network
    }

    /// The entries that the map needs.
    pub(crate) fn buckets(&self) -> Result<u32> {
        u32::try_from(self.layout().buckets())
            .context("the program in the kernel has no room for so many clients")
    }

    /// How many of them are live in that step.
    pub(crate) fn census(&self, timed_addresses: &MapHandle, step: u64) -> Result<u64> {
        let timed = TimedMap::map(self.layout(), timed_addresses)?;
        Ok(window(step).map(|step| timed.layout.count(timed.words(), step)).sum())
    }
}

/// How the program checks sources.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Ethernet address of the interface: packets to another address are not for us.
    pub station: [u8; 6],
    /// Whether only sources that [`Program::allow`] added may ask.
    pub allow_list: bool,
    /// Requests for each source and second, at least 1; `None` for no limit.
    pub limit: Option<u32>,
}

/// How the program answers requests.
#[derive(Debug, Clone, Copy)]
pub struct Reflect {
    /// Replies to each request, at least 1.
    pub replies: u16,
    /// Index of the interface that sends them, in the namespace of the calling thread.
    pub interface: u32,
}

/// A loaded program with its maps, not attached yet.
#[derive(Debug)]
pub struct Program {
    program: OwnedFd,
    bound_prefixes: MapHandle,
    live_addresses: MapHandle,
    staged: Option<MapHandle>,
    moving: Option<MovingAddresses>,
    timed_addresses: MapHandle,
    variables: Variables,
    change_live: OwnedFd,
    kernel_addresses: MapHandle,
    allowed_sources: MapHandle,
    xsks: MapHandle,
    /// The program `count_frames`, if it is needed and the kernel has BTF.
    count_frames: Option<OwnedFd>,
    /// The program `backstop`, if hidden.
    backstop: Option<OwnedFd>,
    verdicts: MapHandle,
    refusals: MapHandle,
    frames: MapHandle,
}

/// The live addresses. Any thread may change them while the program runs. Static ones are in a
/// hash. Moving ones are entered for a step, and are live during that step, the one before and the
/// one after.
#[derive(Debug)]
pub struct LiveAddresses {
    map: MapHandle,
    /// None where all addresses move.
    staying: Option<Staying>,
    moving: Option<(MovingAddresses, TimedMap)>,
    current_step: SharedWord,
}

/// How addresses that stay are changed.
#[derive(Debug)]
struct Staying {
    /// The program `change_live`.
    change: OwnedFd,
    /// The map `staged`.
    staged: Memory,
}

/// The program's variables, mapped.
#[derive(Debug)]
struct Variables(Arc<Memory>);

/// The program's variables: the section `.bss` of bpf/steer.bpf.c.
#[derive(Debug)]
#[repr(C)]
struct Bss {
    bound: Prefixes,
    current_step: AtomicU64,
    station: AtomicU64,
    allowed: Prefixes,
}

const _: () = {
    type Compiled = skeleton::types::bss;
    assert!(size_of::<Bss>() == size_of::<Compiled>());
    assert!(offset_of!(Bss, bound) == offset_of!(Compiled, bound));
    assert!(offset_of!(Bss, current_step) == offset_of!(Compiled, current_step));
    assert!(offset_of!(Bss, station) == offset_of!(Compiled, station));
    assert!(offset_of!(Bss, allowed) == offset_of!(Compiled, allowed));
};

/// `struct prefixes` of bpf/maps.h.
#[derive(Debug)]
#[repr(C)]
struct Prefixes {
    count: AtomicU64,
    few: [Few; FEW],
}

/// A prefix, in memory order.
#[derive(Debug)]
#[repr(C)]
struct Few {
    network: [AtomicU64; 2],
    mask: [AtomicU64; 2],
}

/// How many prefixes the program compares one by one.
const FEW: usize = 4;

impl Variables {
    fn map(map: &MapHandle) -> Result<Self> {
        let memory = Memory::of_file(map.as_fd(), size_of::<Bss>(), 0);
        Ok(Self(Arc::new(memory.context("cannot map the variables of the XDP program")?)))
    }

    fn get(&self) -> Result<&Bss> {
        let place = self.0.at(0, 1).context("the XDP program lost its variables")?;
        // SAFETY: within the mapping, as `at` checked, which lives as long as `self`; every field
        // is atomic.
        Ok(unsafe { place.as_ref() })
    }

    fn station(&self) -> Station {
        Station::new(SharedWord::new(&self.0, offset_of!(Bss, station)))
    }

    fn current_step(&self) -> SharedWord {
        SharedWord::new(&self.0, offset_of!(Bss, current_step))
    }
}

impl Prefixes {
    /// Adds a prefix: to this array while there is space, and then to `trie`.
    fn add(&self, prefix: Prefix, trie: &MapHandle) -> libbpf_rs::Result<()> {
        let count = self.count.load(Ordering::Relaxed);
        match self.few.get(count as usize) {
            Some(Few { network, mask }) => {
                let bits = !u128::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
                for (half, word) in network.iter().zip(timed::halves(prefix.network())) {
                    half.store(word, Ordering::Relaxed);
                }
                for (half, word) in mask.iter().zip(timed::halves(bits.into())) {
                    half.store(word, Ordering::Relaxed);
                }
            }
            None => trie.update(&prefix_key(prefix), &[0; 4], MapFlags::ANY)?,
        }
        // This makes it visible to the program.
        self.count.store(count + 1, Ordering::Release);
        Ok(())
    }
}

/// The program's table of moving addresses, mapped.
#[derive(Debug)]
struct TimedMap {
    layout: timed::TableLayout,
    /// The map `timed_addresses`.
    addresses: Memory,
}

impl TimedMap {
    fn map(layout: timed::TableLayout, addresses: &MapHandle) -> Result<Self> {
        let addresses = Memory::of_file(addresses.as_fd(), layout.words() * size_of::<u64>(), 0);
        Ok(Self { layout, addresses: addresses.context("cannot map the moving addresses")? })
    }

    fn words(&self) -> &[AtomicU64] {
        let count = self.layout.words();
        // SAFETY: within the mapping, as `at` checked, which lives as long as `self`; all accesses
        // are to whole words.
        self.addresses
            .at(0, count)
            .map_or(&[], |place| unsafe { slice::from_raw_parts(place.as_ptr(), count) })
    }
}

/// `struct change` of bpf/headers.h.
#[derive(Default)]
#[repr(C)]
struct AddressChange {
    count: u32,
    remove: u32,
    error: u32,
}

/// Reads the program's counters, from any thread.
#[derive(Debug)]
pub struct VerdictSource {
    verdicts: MapHandle,
    refusals: MapHandle,
    frames: MapHandle,
}

/// The program on an interface. The kernel detaches it when this is dropped or the process ends,
/// however it ends.
#[derive(Debug)]
pub struct Attachment {
    _link: OwnedFd,
    /// The link of `count_frames`.
    frames: Option<OwnedFd>,
    /// The link of `backstop`, or why there is none.
    backstop: Option<Result<OwnedFd, String>>,
    mode: AttachMode,
    fallback: Option<Fallback>,
}

impl Program {
    /// Loads the program.
    ///
    /// # Errors
    /// When the kernel refuses it, with what to do about it.
    pub fn load(config: &ProgramConfig) -> Result<Self> {
        prepare_to_load()?;
        let mut storage = MaybeUninit::uninit();
        let mut open =
            skeleton::SteerSkelBuilder::default().open(&mut storage).map_err(explain_load)?;
        configure(&mut open, config)?;
        // It needs the kernel's types; without them, frames are not counted.
        let counts_frames = config.reflect.is_some() && Path::new(KERNEL_TYPES).exists();
        open.progs.count_frames.set_autoload(counts_frames);
        open.progs.backstop.set_autoload(config.hidden);
        let loaded = open.load().map_err(explain_load)?;
        if let Some(reflect) = &config.reflect {
            add_ways_out(&loaded.maps.ways_out, reflect)?;
        }
        // Duplicated handles outlive the skeleton and its borrows.
        let keep = |fd: BorrowedFd| fd.try_clone_to_owned().context("cannot keep the program");
        let variables = Variables::map(&MapHandle::try_from(&loaded.maps.bss)?)?;
        if let Some(Screen { station, .. }) = config.screen {
            variables.station().set(station);
        }
        Ok(Self {
            program: keep(loaded.progs.steer.as_fd())?,
            change_live: keep(loaded.progs.change_live.as_fd())?,
            bound_prefixes: MapHandle::try_from(&loaded.maps.bound_prefixes)?,
            live_addresses: MapHandle::try_from(&loaded.maps.live_addresses)?,
            staged: Some(MapHandle::try_from(&loaded.maps.staged)?),
            moving: config.moving,
            timed_addresses: MapHandle::try_from(&loaded.maps.timed_addresses)?,
            variables,
            kernel_addresses: MapHandle::try_from(&loaded.maps.kernel_addresses)?,
            allowed_sources: MapHandle::try_from(&loaded.maps.allowed_sources)?,
            xsks: MapHandle::try_from(&loaded.maps.xsks)?,
            backstop: config.hidden.then(|| keep(loaded.progs.backstop.as_fd())).transpose()?,
            count_frames: counts_frames
                .then(|| keep(loaded.progs.count_frames.as_fd()))
                .transpose()?,
            verdicts: MapHandle::try_from(&loaded.maps.verdicts)?,
            refusals: MapHandle::try_from(&loaded.maps.refusals)?,
            frames: MapHandle::try_from(&loaded.maps.frames)?,
        })
    }

    /// Steers packets to live addresses under `prefix` from now on.
    ///
    /// # Errors
    /// When there are already 1,028 prefixes.
    pub fn add_prefix(&mut self, prefix: Prefix) -> Result<()> {
        let added = self.variables.get()?.bound.add(prefix, &self.bound_prefixes);
        added.with_context(|| format!("cannot add {prefix} to the steering program"))
    }

    /// A handle to change the interface's Ethernet address in the running program, from any thread.
    #[must_use]
    pub fn station(&self) -> Station {
        self.variables.station()
    }

    /// Allows sources under `prefix` to ask, if there is an allow list.
    ///
    /// # Errors
    /// When there are already 1,028 prefixes.
    pub fn allow(&mut self, prefix: Prefix) -> Result<()> {
        let added = self.variables.get()?.allowed.add(prefix, &self.allowed_sources);
        added.with_context(|| {
            format!("cannot allow {prefix}: the steering program holds at most 1028 prefixes")
        })
    }

    /// The addresses whose packets are steered, if they are under an added prefix. Available only
    /// once: two users would stage their changes in the same memory.
    ///
    /// # Errors
    /// When it was taken before, or the process is out of file descriptors.
    pub fn live_addresses(&mut self) -> Result<LiveAddresses> {
        let staged = self.staged.take().context("the live addresses are already in use")?;
        let current_step = self.variables.current_step();
        if let Some(moving) = self.moving {
            return LiveAddresses::moving(moving, &self.timed_addresses, current_step);
        }
        let length = LiveAddresses::BATCH * size_of::<[u8; 16]>();
        let staged = Memory::of_file(staged.as_fd(), length, 0)
            .context("cannot map the staged addresses")?;
        Ok(LiveAddresses {
            map: MapHandle::try_from(&self.live_addresses)?,
            staying: Some(Staying { change: self.change_live.try_clone()?, staged }),
            moving: None,
            current_step,
        })
    }

    /// Counts the live moving addresses by examining all. Another thread may enter some meanwhile.
    ///
    /// # Errors
    /// When the addresses are static, or the process is out of file descriptors.
    pub fn census(&self) -> Result<u64> {
        let moving = self.moving.context("the addresses are static")?;
        let step = self.variables.get()?.current_step.load(Ordering::Acquire);
        moving.census(&self.timed_addresses, step)
    }

    /// Replaces the list of the kernel's own addresses. A hidden program leaves packets for them to
    /// the kernel, and a reflecting one does not answer them.
    ///
    /// # Errors
    /// When there are more than 1,024 of them.
    pub fn set_kernel_addresses(&self, addresses: &[Ipv6Addr]) -> Result<()> {
        let map = &self.kernel_addresses;
        // New ones first, so that an address on both lists is never missing.
        for address in addresses {
            map.update(&address.octets(), &[0; 4], MapFlags::ANY).with_context(|| {
                format!("cannot leave {address} to the kernel, which has more than 1024 addresses")
            })?;
        }
        for gone in
            map.keys().filter(|key| !addresses.iter().any(|address| address.octets() == key[..]))
        {
            map.delete(&gone)?;
        }
        Ok(())
    }

    /// Steers the packets of `queue` to `socket`.
    ///
    /// # Errors
    /// When the program was loaded for fewer queues.
    pub fn add_socket(&self, queue: u32, socket: impl AsFd) -> Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        self.xsks.update(&queue.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).with_context(
            || format!("cannot register the socket of queue {queue} with the steering program"),
        )
    }

    /// A handle to read the counters from another thread.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn verdicts(&self) -> Result<VerdictSource> {
        Ok(VerdictSource {
            verdicts: MapHandle::try_from(&self.verdicts)?,
            refusals: MapHandle::try_from(&self.refusals)?,
            frames: MapHandle::try_from(&self.frames)?,
        })
    }

    /// Attaches the program to `link`, in the best mode that `request` allows, unless another
    /// program is attached.
    ///
    /// # Errors
    /// When another program is attached, which is left alone, or the mode is not available.
    pub fn attach(&self, link: &Link, request: AttachRequest) -> Result<Attachment> {
        let mut attachment = self.attach_as(link, request)?;
        attachment.backstop = self.backstop.as_ref().map(|program| {
            attach_tc(program, link.index, TcHook::Ingress)
                .map_err(|error| explain_backstop(link, &error))
        });
        // Generic redirects take another path, without this tracepoint.
        if attachment.mode == AttachMode::Native {
            attachment.frames = self.trace_frames()?;
        }
        Ok(attachment)
    }

    fn attach_as(&self, link: &Link, request: AttachRequest) -> Result<Attachment> {
        if link.xdp.is_some() {
            return Err(occupied(link));
        }
        let below = quirks::of(link).find(Act::LookBelow);
        let (flags, fallback) = match (request, below) {
            (AttachRequest::Native, Some(quirk)) => {
                return Err(ModeError::NoNative(quirk.why).into());
            }
            (AttachRequest::Auto, Some(quirk)) => {
                let step =
                    Fallback::new("attach", AttachMode::Native, AttachMode::Generic, quirk.why);
                (XDP_FLAGS_SKB_MODE, Some(step))
            }
            (AttachRequest::Native, None) => (XDP_FLAGS_DRV_MODE, None),
            (AttachRequest::Generic, _) => (XDP_FLAGS_SKB_MODE, None),
            (AttachRequest::Auto, None) => match self.create_link(link.index, XDP_FLAGS_DRV_MODE) {
                Ok(fd) => return Attachment::new(fd, link, None),
                // The generic hook would be refused too.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EBUSY | libc::EEXIST | libc::EPERM)
                    ) =>
                {
                    return Err(explain_attach(link, &error));
                }
                Err(error) => {
                    let why = explain_attach(link, &error).to_string();
                    let step =
                        Fallback::new("attach", AttachMode::Native, AttachMode::Generic, why);
                    (XDP_FLAGS_SKB_MODE, Some(step))
                }
            },
        };
        match self.create_link(link.index, flags) {
            Ok(fd) => Attachment::new(fd, link, fallback),
            Err(error) if request == AttachRequest::Native => {
                let why = explain_attach(link, &error);
                Err(match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP | libc::ERANGE) => {
                        ModeError::NoNative(why.to_string()).into()
                    }
                    _ => why,
                })
            }
            Err(error) => Err(explain_attach(link, &error)),
        }
    }

    fn create_link(&self, interface: u32, flags: u32) -> io::Result<OwnedFd> {
        kernel::create_link(&self.program, interface, libbpf_sys::BPF_XDP, flags)
    }

    /// Counts the frames that the driver accepts, if there is a program for that.
    fn trace_frames(&self) -> Result<Option<OwnedFd>> {
        let Some(program) = &self.count_frames else { return Ok(None) };
        // SAFETY: the name may be null, because the program itself names its tracepoint.
        let fd =
            unsafe { libbpf_sys::bpf_raw_tracepoint_open(std::ptr::null(), program.as_raw_fd()) };
        if fd < 0 {
            let error = io::Error::from_raw_os_error(-fd);
            return Err(error)
                .context("cannot count what the driver sends (the tracepoint xdp_devmap_xmit)");
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Runs the program on `packet` without an interface (BPF_PROG_TEST_RUN), and returns its XDP
    /// action and the packet afterwards. The packet counts as one of queue 0.
    ///
    /// # Errors
    /// When the kernel rejects the packet: it needs at least an Ethernet header.
    pub fn test_run(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        let (action, after, _duration) = self.test_runs(packet, 1)?;
        Ok((action, after))
    }

    /// The same `repeat` times, each run on the packet as the last one left it. Also returns the
    /// mean duration of a run.
    ///
    /// # Errors
    /// When the kernel rejects the packet.
    pub fn test_runs(&self, packet: &[u8], repeat: u32) -> Result<(u32, Vec<u8>, Duration)> {
        let run = kernel::run(&self.program, packet, repeat, None)?;
        Ok((run.action, run.packet, run.duration))
    }
}

/// `struct prefix_key`: length in host order, address in network order.
fn prefix_key(prefix: Prefix) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(prefix.length()).to_ne_bytes());
    key[4..].copy_from_slice(&prefix.network().octets());
    key
}

/// Silences libbpf, which prints many lines to standard error where an error here says the same in
/// one. Then checks that libbpf can open enough descriptors. If it cannot, it wrongly reports that
/// the kernel rejects the program.
pub(crate) fn prepare_to_load() -> Result<()> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        libbpf_rs::set_print(None);
    });
    const ENOUGH: usize = 48;
    let some: io::Result<Vec<_>> = (0..ENOUGH).map(|_| fs::File::open("/dev/null")).collect();
    some.map(drop)
        .context("too few file descriptors for a BPF program: raise the limit (ulimit -n)")
}

impl LiveAddresses {
    /// The moving addresses in a program's map `timed_addresses`, with its word `current_step`.
    pub(crate) fn moving(
        moving: MovingAddresses,
        timed_addresses: &MapHandle,
        current_step: SharedWord,
    ) -> Result<Self> {
        Ok(Self {
            map: MapHandle::try_from(timed_addresses)?,
            staying: None,
            moving: Some((moving, TimedMap::map(moving.layout(), timed_addresses)?)),
            current_step,
        })
    }

    /// The most static addresses: a hash has a power of two of buckets, 16 bytes each, and less
    /// than 4 GiB of them (htab_map_alloc in kernel/bpf/hashtab.c).
    pub const MOST: u64 = 1 << 27;

    /// Kernel memory in bytes for a hash of this size: 72 bytes for each element, and the buckets.
    #[must_use]
    pub fn memory(addresses: u64) -> u64 {
        const ELEMENT: u64 = 72;
        const BUCKET: u64 = 16;
        let buckets = addresses.checked_next_power_of_two().unwrap_or(u64::MAX);
        addresses.saturating_mul(ELEMENT).saturating_add(buckets.saturating_mul(BUCKET))
    }

    /// The most addresses in one call to the kernel (STAGED in bpf/headers.h).
    pub const BATCH: usize = 1024;

    /// Makes these addresses live.
    ///
    /// # Errors
    /// At the first address that is already live, or that does not fit. The error includes how many
    /// of `addresses` this call made live.
    pub fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), (usize, anyhow::Error)> {
        let mut done = 0;
        while done < addresses.len() {
            let change = AddressChange::default();
            let (count, error) =
                self.change(&addresses[done..], change).map_err(|error| (done, error))?;
            done += count;
            if let Some(error) = error {
                return Err((done, explain_add(addresses[done], &error)));
            }
        }
        Ok(())
    }

    /// Enters these moving addresses for step `step`: they are live from the step before it to the
    /// one after it. This discards the addresses of four steps earlier.
    ///
    /// # Errors
    /// When one is of another subnet, or does not fit.
    pub fn enter(&mut self, addresses: &[Ipv6Addr], step: u64) -> Result<()> {
        let (moving, timed) =
            self.moving.as_ref().context("the addresses of this program are static")?;
        let (network, words) = (moving.network(), timed.words());
        for address in addresses {
            let [half, identifier] = timed::halves(*address);
            ensure!(half == network, "{address} is not under {}", moving.subnet.prefix());
            ensure!(timed.layout.enter(words, step, identifier), "{}", NO_ROOM);
        }
        Ok(())
    }

    /// Switches to `step`, for all addresses at once.
    pub fn set_step(&mut self, step: u64) {
        self.current_step.store(step);
    }

    /// Removes these addresses. Ignores those that are not live.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let mut done = 0;
        while done < addresses.len() {
            let change = AddressChange { remove: 1, ..AddressChange::default() };
            let (count, error) = self.change(&addresses[done..], change)?;
            done += count;
            match error.map(|error| (error.raw_os_error(), error)) {
                None => {}
                Some((Some(libc::ENOENT), _)) => done += 1,
                Some((_, error)) => {
                    return Err(error).with_context(|| cannot_remove(addresses[done]));
                }
            }
        }
        Ok(())
    }

    /// Adds or removes the first of `addresses`, at most [`BATCH`](Self::BATCH), as `change` says
    /// apart from its count. Returns how many, and why it stopped if it stopped early.
    fn change(
        &mut self,
        addresses: &[Ipv6Addr],
        mut change: AddressChange,
    ) -> Result<(usize, Option<io::Error>)> {
        let addresses = &addresses[..addresses.len().min(Self::BATCH)];
        let Staying { change: program, staged } =
            self.staying.as_ref().context("the addresses of this program move")?;
        for (index, address) in addresses.iter().enumerate() {
            let place = staged.at::<[u8; 16]>(16 * index, 1);
            let place = place.context("the map of staged addresses is too small")?;
            // SAFETY: within the mapping, as `at` checked. Only `&mut self` uses it, and the kernel
            // during the call below.
            unsafe { place.write(address.octets()) };
        }
        change.count = addresses.len() as u32;
        let mut run = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            // The kernel copies the context back here after the program changed it.
            ctx_in: (&raw mut change).cast(),
            ctx_size_in: size_of::<AddressChange>() as u32,
            ..Default::default()
        };
        // SAFETY: `change` is valid for reads and writes of the size given with it, which is the
        // program's context size.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut run) };
        if result < 0 {
            return Err(anyhow!(io::Error::from_raw_os_error(-result))
                .context("cannot change the live addresses"));
        }
        let error = (change.error != 0).then(|| io::Error::from_raw_os_error(change.error as i32));
        Ok((run.retval as usize, error))
    }

    /// Whether `address` is a live static address.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn contains(&self, address: Ipv6Addr) -> Result<bool> {
        Ok(self.map.lookup(&address.octets(), MapFlags::ANY)?.is_some())
    }

    /// Kernel memory of the addresses in bytes, full or not, as the kernel reports it. `None` if it
    /// does not.
    #[must_use]
    pub fn kernel_memory(&self) -> Option<u64> {
        self.map.query_fdinfo().ok()?.memlock
    }
}

/// Why an address could not be entered.
const NO_ROOM: &str = "the steering program has no space for that many live addresses";

/// Explains why an address was refused.
fn explain_add(address: Ipv6Addr, error: &io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EEXIST) => anyhow!("{address} is live already"),
        Some(libc::E2BIG | libc::ENOMEM) => anyhow!(NO_ROOM),
        _ => anyhow!("cannot make {address} live in the steering program: {error}"),
    }
}

fn cannot_remove(address: Ipv6Addr) -> String {
    format!("cannot remove {address} from the steering program")
}

impl VerdictSource {
    /// Packets by verdict since the program was loaded, summed over all processors.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<[u64; Verdict::ALL.len()]> {
        sums(&self.verdicts)
    }

    /// Requests that the program did not answer, by [`Refusal`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn refusals(&self) -> Result<[u64; Refusal::ALL.len()]> {
        sums(&self.refusals)
    }

    /// Replies of the program that the driver accepted, and those that it rejected; valid if
    /// [`counts_frames`](Attachment::counts_frames).
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn frames(&self) -> Result<[u64; 2]> {
        sums(&self.frames)
    }
}

/// The counters of a map, each summed over all processors.
pub(crate) fn sums<const N: usize>(map: &MapHandle) -> Result<[u64; N]> {
    let mut totals = [0; N];
    for (index, total) in totals.iter_mut().enumerate() {
        let key = (index as u32).to_ne_bytes();
        let counts = map.lookup_percpu(&key, MapFlags::ANY)?.unwrap_or_default();
        let counts =
            counts.iter().filter_map(|bytes| Some(u64::from_ne_bytes(*bytes.first_chunk()?)));
        *total = counts.sum();
    }
    Ok(totals)
}

impl Attachment {
    /// Reads the mode from the kernel, which may differ from the requested one.
    fn new(fd: OwnedFd, link: &Link, fallback: Option<Fallback>) -> Result<Self> {
        let attached = netlink::link(&link.name)?.xdp;
        let mode = attached.context("the program was attached, but disappeared")?.mode;
        Ok(Self { _link: fd, frames: None, backstop: None, mode, fallback })
    }

    /// The mode that the kernel reports.
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Whether there are counters of the program's own replies that the driver accepted.
    pub fn counts_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// Why a hidden program has no backstop, if so. The kernel must then not accept its prefixes.
    pub fn lacks_backstop(&self) -> Option<&str> {
        self.backstop.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// The fallback that led to this mode.
    pub fn fallback(&self) -> Option<&Fallback> {
        self.fallback.as_ref()
    }
}

/// Sets the constants of the program and the sizes of its maps.
fn configure(open: &mut skeleton::OpenSteerSkel, config: &ProgramConfig) -> Result<()> {
    let maps = &mut open.maps;
    let constants = maps.rodata_data.as_deref_mut().context("the program lost its constants")?;
    constants.service_port = config.port.to_be();
    constants.hidden = config.hidden;
    if let Some(moving) = &config.moving {
        let layout = moving.layout();
        constants.moving = true;
        constants.subnet = moving.network();
        constants.bits = layout.bits();
        maps.timed_addresses.set_max_entries(moving.buckets()?).map_err(explain_load)?;
    }
    if let Some(Reflect { replies, interface }) = config.reflect {
        constants.replies = replies.max(1);
        constants.interface = interface as i32;
        constants.network = fs::metadata("/proc/thread-self/ns/net")?.ino() as u32;
        maps.ways_out.set_max_entries(replies.max(1).into()).map_err(explain_load)?;
    }
    if let Some(Screen { allow_list, limit, .. }) = config.screen {
        constants.screened = true;
        constants.allow_list = allow_list;
        if let Some(limit) = limit {
            constants.interval = (SECOND / u64::from(limit.max(1))).max(1);
            constants.burst = (SECOND / BURSTS).max(constants.interval);
            maps.budgets.set_max_entries(BUDGETS).map_err(explain_load)?;
        }
    }
    maps.live_addresses.set_max_entries(config.addresses.max(1)).map_err(explain_load)?;
    maps.xsks.set_max_entries(config.queues.max(1)).map_err(explain_load)
}

/// Adds the interface to the redirect map once for each reply.
fn add_ways_out(ways_out: &impl MapCore, reflect: &Reflect) -> Result<()> {
    let interface = reflect.interface.to_ne_bytes();
    for way in 0..u32::from(reflect.replies.max(1)) {
        let added = ways_out.update(&way.to_ne_bytes(), &interface, MapFlags::ANY);
        added.context("cannot let the XDP program send on the interface")?;
    }
    Ok(())
}

/// Explains what a missing backstop means.
fn explain_backstop(link: &Link, error: &io::Error) -> String {
    format!(
        "{} rejects a tc program (tcx, since Linux 6.6: {error}), so requests behind extension \
         headers or in fragments get no answer",
        link.name
    )
}

/// Explains why attaching was refused.
fn explain_attach(link: &Link, error: &io::Error) -> anyhow::Error {
    let name = &link.name;
    match error.raw_os_error() {
        Some(libc::EBUSY | libc::EEXIST) => occupied(link),
        Some(libc::EOPNOTSUPP) => anyhow!("the driver of {name} has no native XDP"),
        Some(libc::EPERM) => {
            let needs = ["CAP_NET_ADMIN", "CAP_BPF"];
            anyhow!(denied::explain("attaching an XDP program", &needs, denied::BPF))
        }
        Some(libc::ERANGE) => anyhow!(mtu_too_large(link, netlink::peer(link.index).as_ref())),
        Some(libc::EINVAL) => anyhow!(
            "{name} rejects the XDP program ({error}): its MTU may be too large for XDP (ip link \
             set dev {name} mtu 1500), or it uses large receive offload (ethtool -K {name} lro \
             off)"
        ),
        _ => anyhow!("{name} rejects the XDP program: {error}"),
    }
}

/// The error for an interface with another program attached.
pub fn occupied(link: &Link) -> anyhow::Error {
    let name = &link.name;
    let which = link.xdp.map_or(String::new(), |program| format!(" (id {})", program.id));
    anyhow!(
        "another XDP program{which} is attached to {name}: stop the program that attached it, or \
         detach it with 'ip link set dev {name} xdp off'"
    )
}

/// Why the kernel's types are missing.
fn no_types(sys_is_mounted: bool) -> String {
    if sys_is_mounted {
        return format!(
            "loading the XDP program needs the kernel's types, but there is no {KERNEL_TYPES}: \
             use a kernel with CONFIG_DEBUG_INFO_BTF"
        );
    }
    format!(
        "loading the XDP program needs the kernel's types in {KERNEL_TYPES}, but /sys is not \
         mounted: mount -t sysfs sysfs /sys"
    )
}

/// The error of a driver that rejects a program because packets may exceed a page. A veth checks
/// what its `peer` may send.
fn mtu_too_large(link: &Link, peer: Option<&Link>) -> String {
    let name = &link.name;
    let (whose, mtu) = peer.map_or((name, link.mtu), |peer| (&peer.name, peer.mtu));
    let other = if peer.is_some() { format!("its other end {whose}") } else { "it".to_owned() };
    format!(
        "cannot attach to the driver of {name}: {other} has an MTU of {mtu}, for which the driver \
         wants a program that takes packets in fragments; lower it (ip link set dev {whose} mtu \
         1500)"
    )
}

fn explain_load(error: libbpf_rs::Error) -> anyhow::Error {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            let needs = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"];
            anyhow!(denied::explain("loading the XDP program", &needs, denied::BPF))
        }
        libbpf_rs::ErrorKind::OutOfMemory => anyhow!(
            "no memory for the maps of the XDP program: use fewer addresses, or allow the process \
             or its control group more memory"
        ),
        // libbpf needs the kernel's types even for a program that it does not load, and returns
        // ESRCH without them.
        _ if !Path::new(KERNEL_TYPES).exists() => anyhow!(no_types(host::is_mounted("/sys"))),
        _ => anyhow!(
            "the kernel rejects the XDP program ({error}): use Linux 5.14 or newer with \
             CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS"
        ),
    }
}
