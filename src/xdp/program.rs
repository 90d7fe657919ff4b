//! The steering program, which may answer as well: loaded, told what is ours, attached by a link
//! that goes when the process goes, and read out.

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

/// A source that has been quiet may ask for as much at once as in a second divided by this.
const BURSTS: u64 = 10;

/// Sources whose requests are counted where there is a limit. Of more the kernel forgets those that
/// asked longest ago.
const BUDGETS: u32 = 1 << 16;

/// Where a kernel that was built with CONFIG_DEBUG_INFO_BTF describes its structures.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What the program did with a packet. One counter each, in the order of `enum verdict` in
/// bpf/headers.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Verdict {
    /// A request, answered by the program itself.
    Reflected,
    /// A request that is not answered, dropped by the program; [`VerdictSource::refusals`] say why.
    Refused,
    /// A request, into the ring of the queue that it arrived on.
    Steered,
    /// A Neighbour Solicitation for a live address, into the ring as well; only where hidden.
    Solicited,
    /// To the kernel: not UDP directly over IPv6 over Ethernet.
    PassedOther,
    /// To the kernel: another port.
    PassedPort,
    /// To the kernel: our port, but under no bound prefix; where hidden, whatever port.
    PassedPrefix,
    /// To the kernel: our port, under a bound prefix, but no live address.
    PassedNotLive,
    /// To the kernel, for the socket behind the program: a request behind extension headers, or
    /// part of one.
    PassedBehind,
    /// To the kernel: under a bound prefix, but to an address of the kernel's own; only where
    /// hidden.
    PassedKernel,
    /// Under a bound prefix, and nothing that a live address answers; only where hidden.
    DroppedHidden,
    /// Got around the XDP program, as on a queue that has none, and was dropped by the tc program
    /// behind it; only where hidden. What the XDP program passed before counts twice.
    DroppedBackstop,
    /// Ours, but no socket sits on this queue: to the kernel, or dropped where hidden.
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

    /// What it means for the packet, by a program that is `hidden` or not.
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

    /// The name under which it is counted in the statistics.
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
    /// It was for the service, which has it: other counters say what became of it.
    Taken,
    /// It was for the service, which does not get it, for a reason of the verdict's name.
    Dropped,
    /// It was for the kernel.
    Passed,
}

/// What a program is loaded for.
#[derive(Debug, Clone, Copy)]
pub struct ProgramConfig {
    /// UDP port of the service; 0, which is no port, steers no UDP at all.
    pub port: u16,
    /// Most addresses that stay.
    pub addresses: u32,
    /// How many queues may get a socket, from 0 on.
    pub queues: u32,
    /// Whether the kernel is to have no part in the bound prefixes, but for its own addresses
    /// there: Neighbour Solicitations for live addresses are steered as well, and what nobody
    /// answers is dropped.
    pub hidden: bool,
    /// Those that move, instead of any that stay. The program itself refuses requests that come
    /// from a live one then, since nobody else knows.
    pub moving: Option<MovingAddresses>,
    /// Where the program is to answer requests itself; otherwise it steers them.
    pub reflect: Option<Reflect>,
    /// Which sources may ask, and how often; `None` to look at no source at all, as for a load
    /// generator.
    pub screen: Option<Screen>,
}

/// Addresses that move.
#[derive(Debug, Clone, Copy)]
pub struct MovingAddresses {
    /// Where they are.
    pub subnet: Subnet,
    /// How many there are in each time step.
    pub clients: u64,
}

impl MovingAddresses {
    fn layout(&self) -> timed::Layout {
        timed::Layout::new(self.clients)
    }

    /// The first half of all of them, as it lies in memory.
    fn network(&self) -> u64 {
        let [network, _] = timed::halves(self.subnet.prefix().network());
        network
    }
}

/// How the program looks at who asks.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Ethernet address of the interface: what is sent to another is not for us.
    pub station: [u8; 6],
    /// Whether only those may ask that [`Program::allow`] names.
    pub allow_list: bool,
    /// Requests of one source in a second, at least 1; `None` for any number.
    pub limit: Option<u32>,
}

/// How the program answers requests.
#[derive(Debug, Clone, Copy)]
pub struct Reflect {
    /// Replies to each, at least 1.
    pub replies: u16,
    /// Index of the interface that they leave by, in the namespace of the calling thread.
    pub interface: u32,
}

/// A loaded program with its maps, attached to nothing yet.
#[derive(Debug)]
pub struct Program {
    program: OwnedFd,
    bound_prefixes: MapHandle,
    live_addresses: MapHandle,
    staged: Option<MapHandle>,
    moving: Option<MovingAddresses>,
    timed_addresses: MapHandle,
    variables: Arc<Variables>,
    change_live: OwnedFd,
    kernel_addresses: MapHandle,
    allowed_sources: MapHandle,
    xsks: MapHandle,
    /// The program `count_frames`, where it is needed and the kernel takes it.
    count_frames: Option<OwnedFd>,
    /// The program `backstop`, where hidden.
    backstop: Option<OwnedFd>,
    verdicts: MapHandle,
    refusals: MapHandle,
    frames: MapHandle,
}

/// The addresses that are live, to be changed from any thread while the program runs: those that
/// stay, in a hash, or those that move, each entered for a time step and live while it is that
/// step, the one before or the one after.
#[derive(Debug)]
pub struct LiveAddresses {
    map: MapHandle,
    /// The program `change_live`.
    change: OwnedFd,
    /// The map `staged`.
    staged: Memory,
    moving: Option<(MovingAddresses, Timed)>,
    variables: Arc<Variables>,
}

/// The Ethernet address by which a program knows what is sent to its interface.
#[derive(Debug, Clone)]
pub struct Station(Arc<Variables>);

impl Station {
    /// Has it be `mac`, from now on.
    pub fn set(&self, [a, b, c, d, e, f]: [u8; 6]) {
        if let Ok(variables) = self.0.get() {
            variables
                .station
                .store(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]), Ordering::Release);
        }
    }
}

/// The program's variables, mapped.
#[derive(Debug)]
struct Variables(Memory);

/// What they are: the section `.bss` of bpf/steer.bpf.c.
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

/// A prefix, as its addresses lie in memory.
#[derive(Debug)]
#[repr(C)]
struct Few {
    network: [AtomicU64; 2],
    mask: [AtomicU64; 2],
}

/// Prefixes that are compared one by one.
const FEW: usize = 4;

impl Variables {
    fn map(map: &MapHandle) -> Result<Self> {
        let memory = Memory::of_file(map.as_fd(), size_of::<Bss>(), 0);
        Ok(Self(memory.context("cannot map the variables of the XDP program")?))
    }

    fn get(&self) -> Result<&Bss> {
        let place = self.0.at(0, 1).context("the XDP program lost its variables")?;
        // SAFETY: within the mapping, as `at` checked, which lives as long as `self`; all of it are
        // atomic words.
        Ok(unsafe { place.as_ref() })
    }
}

impl Prefixes {
    /// Adds one, here while there is room, and to `trie` after that.
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
        // The program finds it from now on.
        self.count.store(count + 1, Ordering::Release);
        Ok(())
    }
}

/// What the program knows of addresses that move, mapped.
#[derive(Debug)]
struct Timed {
    layout: timed::Layout,
    /// The map `timed_addresses`.
    addresses: Memory,
}

impl Timed {
    fn map(layout: timed::Layout, addresses: &MapHandle) -> Result<Self> {
        let addresses = Memory::of_file(addresses.as_fd(), layout.words() * size_of::<u64>(), 0);
        Ok(Self { layout, addresses: addresses.context("cannot map the addresses that move")? })
    }

    fn words(&self) -> &[AtomicU64] {
        let count = self.layout.words();
        // SAFETY: within the mapping, as `at` checked, which lives as long as `self`; only ever
        // read or written in whole words.
        self.addresses
            .at(0, count)
            .map_or(&[], |place| unsafe { slice::from_raw_parts(place.as_ptr(), count) })
    }
}

/// `struct change` of bpf/headers.h.
#[derive(Default)]
#[repr(C)]
struct Change {
    count: u32,
    remove: u32,
    error: u32,
}

/// Reads the counters of the program, from any thread.
#[derive(Debug)]
pub struct VerdictSource {
    verdicts: MapHandle,
    refusals: MapHandle,
    frames: MapHandle,
}

/// The program on an interface. The kernel takes it off when this is dropped or the process ends,
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
        // libbpf would print to stderr, in many lines, what the error below says in one.
        static QUIET: Once = Once::new();
        QUIET.call_once(|| {
            libbpf_rs::set_print(None);
        });
        has_descriptors()?;
        let mut storage = MaybeUninit::uninit();
        let mut open =
            skeleton::SteerSkelBuilder::default().open(&mut storage).map_err(explain_load)?;
        configure(&mut open, config)?;
        // It needs to know the kernel's structures; without, the frames are not counted.
        let counts_frames = config.reflect.is_some() && Path::new(KERNEL_TYPES).exists();
        open.progs.count_frames.set_autoload(counts_frames);
        open.progs.backstop.set_autoload(config.hidden);
        let loaded = open.load().map_err(explain_load)?;
        if let Some(reflect) = &config.reflect {
            add_ways_out(&loaded.maps.ways_out, reflect)?;
        }
        // Handles of our own, so that the skeleton and what it borrows can go.
        let keep = |fd: BorrowedFd| fd.try_clone_to_owned().context("cannot keep the program");
        let variables = Arc::new(Variables::map(&MapHandle::try_from(&loaded.maps.bss)?)?);
        if let Some(Screen { station, .. }) = config.screen {
            Station(variables.clone()).set(station);
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

    /// Has packets to live addresses under `prefix` steered from now on.
    ///
    /// # Errors
    /// When there are 1,028 prefixes already.
    pub fn add_prefix(&mut self, prefix: Prefix) -> Result<()> {
        let added = self.variables.get()?.bound.add(prefix, &self.bound_prefixes);
        added.with_context(|| format!("cannot add {prefix} to the steering program"))
    }

    /// A way to have it know its interface by another Ethernet address while it runs, from any
    /// thread.
    #[must_use]
    pub fn station(&self) -> Station {
        Station(self.variables.clone())
    }

    /// Lets sources under `prefix` ask, where there is a list of those that may.
    ///
    /// # Errors
    /// When there are 1,028 prefixes already.
    pub fn allow(&mut self, prefix: Prefix) -> Result<()> {
        let added = self.variables.get()?.allowed.add(prefix, &self.allowed_sources);
        added.with_context(|| {
            format!("cannot let {prefix} ask: the steering program has room for 1028 prefixes")
        })
    }

    /// The addresses whose packets are steered, provided that they lie under a prefix that was
    /// added. To be had once: two that change them would stage them in the same place.
    ///
    /// # Errors
    /// When it was had before, or the process is out of file descriptors.
    pub fn live_addresses(&mut self) -> Result<LiveAddresses> {
        let staged = self.staged.take().context("the live addresses are taken")?;
        let length = LiveAddresses::BATCH * size_of::<[u8; 16]>();
        let map = if self.moving.is_some() { &self.timed_addresses } else { &self.live_addresses };
        Ok(LiveAddresses {
            map: MapHandle::try_from(map)?,
            change: self.change_live.try_clone()?,
            staged: Memory::of_file(staged.as_fd(), length, 0)
                .context("cannot map the staged addresses")?,
            moving: self
                .moving
                .map(|moving| Ok::<_, anyhow::Error>((moving, self.timed(moving)?)))
                .transpose()?,
            variables: self.variables.clone(),
        })
    }

    fn timed(&self, moving: MovingAddresses) -> Result<Timed> {
        Timed::map(moving.layout(), &self.timed_addresses)
    }

    /// How many addresses that move are live: all are looked at. Others may enter some meanwhile.
    ///
    /// # Errors
    /// When there are none, or the process is out of file descriptors.
    pub fn census(&self) -> Result<u64> {
        let timed = self.timed(self.moving.context("the addresses stay")?)?;
        let now = self.variables.get()?.current_step.load(Ordering::Acquire);
        Ok(window(now).map(|step| timed.layout.count(timed.words(), step)).sum())
    }

    /// Takes exactly these addresses for the kernel's own from now on: a hidden program leaves
    /// packets to them to the kernel, and one that answers does not answer them.
    ///
    /// # Errors
    /// When there are more than 1,024 of them.
    pub fn set_kernel_addresses(&self, addresses: &[Ipv6Addr]) -> Result<()> {
        let map = &self.kernel_addresses;
        // New ones first: an address that stays is never missing.
        for address in addresses {
            map.update(&address.octets(), &[0; 4], MapFlags::ANY).with_context(|| {
                format!("cannot leave {address} to the kernel: it has more than 1024 addresses")
            })?;
        }
        for gone in
            map.keys().filter(|key| !addresses.iter().any(|address| address.octets() == key[..]))
        {
            map.delete(&gone)?;
        }
        Ok(())
    }

    /// Has the packets of `queue` go to `socket`.
    ///
    /// # Errors
    /// When the program was loaded for fewer queues.
    pub fn add_socket(&self, queue: u32, socket: impl AsFd) -> Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        self.xsks.update(&queue.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY).with_context(
            || format!("cannot register the socket of queue {queue} with the steering program"),
        )
    }

    /// A way to read the counters from another thread.
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

    /// Attaches the program to `link`, in the best mode that `request` allows, where nothing is
    /// attached yet.
    ///
    /// # Errors
    /// When another program is attached, which is left alone, or the mode cannot be had.
    pub fn attach(&self, link: &Link, request: AttachRequest) -> Result<Attachment> {
        let mut attachment = self.attach_as(link, request)?;
        attachment.backstop = self.backstop.as_ref().map(|program| {
            create_tc_link(program, link.index).map_err(|error| explain_backstop(link, &error))
        });
        // Generic redirects go another way, which does not pass there.
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
                // Then the generic hook would be refused as well.
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
        create_link(&self.program, interface, libbpf_sys::BPF_XDP, flags)
    }

    /// Has the frames counted which the driver takes, if there is a program for that.
    fn trace_frames(&self) -> Result<Option<OwnedFd>> {
        let Some(program) = &self.count_frames else { return Ok(None) };
        // SAFETY: no name is given, because the program says itself where it belongs.
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

    /// Runs the program on `packet` without any interface (BPF_PROG_TEST_RUN) and returns its XDP
    /// action and the packet afterwards. The packet counts as one of queue 0.
    ///
    /// # Errors
    /// When the kernel does not take the packet: it wants at least an Ethernet header.
    pub fn test_run(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        let (action, after, _duration) = self.test_runs(packet, 1)?;
        Ok((action, after))
    }

    /// The same `repeat` times, the packet as it was left by the run before, with the mean duration
    /// of one as well.
    ///
    /// # Errors
    /// When the kernel does not take the packet.
    pub fn test_runs(&self, packet: &[u8], repeat: u32) -> Result<(u32, Vec<u8>, Duration)> {
        let mut after = vec![0; packet.len() + 256];
        let mut run = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: packet.as_ptr().cast(),
            data_size_in: packet.len() as u32,
            data_out: after.as_mut_ptr().cast(),
            data_size_out: after.len() as u32,
            repeat: repeat as i32,
            ..Default::default()
        };
        // SAFETY: both buffers are valid for the sizes given with them.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.program.as_raw_fd(), &raw mut run) };
        if result < 0 {
            return Err(
                anyhow!(io::Error::from_raw_os_error(-result)).context("BPF_PROG_TEST_RUN failed")
            );
        }
        after.truncate(run.data_size_out as usize);
        Ok((run.retval, after, Duration::from_nanos(run.duration.into())))
    }
}

/// `struct prefix_key`: length in the host's order, address in the network's.
fn prefix_key(prefix: Prefix) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&u32::from(prefix.length()).to_ne_bytes());
    key[4..].copy_from_slice(&prefix.network().octets());
    key
}

/// Finds out whether there are descriptors for what libbpf opens, for good or for a moment: where
/// there are none, it says that the kernel does not take the program.
fn has_descriptors() -> Result<()> {
    const ENOUGH: usize = 48;
    let some: io::Result<Vec<_>> = (0..ENOUGH).map(|_| fs::File::open("/dev/null")).collect();
    some.map(drop)
        .context("too few file descriptors for an XDP program: raise the limit (ulimit -n)")
}

impl LiveAddresses {
    /// Most addresses that stay: a hash has a power of two of buckets, 16 bytes each, of less than
    /// 4 GiB (htab_map_alloc in kernel/bpf/hashtab.c).
    pub const MOST: u64 = 1 << 27;

    /// Bytes of kernel memory that a hash for so many takes: an element each, of 72 bytes, and the
    /// buckets.
    #[must_use]
    pub fn memory(addresses: u64) -> u64 {
        const ELEMENT: u64 = 72;
        const BUCKET: u64 = 16;
        let buckets = addresses.checked_next_power_of_two().unwrap_or(u64::MAX);
        addresses.saturating_mul(ELEMENT).saturating_add(buckets.saturating_mul(BUCKET))
    }

    /// Addresses that go to the kernel in one call (STAGED in bpf/headers.h).
    pub const BATCH: usize = 1024;

    /// Makes these addresses live.
    ///
    /// # Errors
    /// At the first that is live already, or when there is no room for more: with how many of
    /// `addresses` are live because of this call.
    pub fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), (usize, anyhow::Error)> {
        let mut done = 0;
        while done < addresses.len() {
            let change = Change::default();
            let (count, error) =
                self.change(&addresses[done..], change).map_err(|error| (done, error))?;
            done += count;
            if let Some(error) = error {
                return Err((done, explain_add(addresses[done], &error)));
            }
        }
        Ok(())
    }

    /// Enters these addresses, which move, for time step `step`: they are live from the step before
    /// it to the one after it. Those of the step four steps before are forgotten.
    ///
    /// # Errors
    /// When one is of another subnet, or there is no room for more.
    pub fn enter(&mut self, addresses: &[Ipv6Addr], step: u64) -> Result<()> {
        let (moving, timed) = self.moving.as_ref().context("the addresses of this program stay")?;
        let (network, words) = (moving.network(), timed.words());
        for address in addresses {
            let [half, identifier] = timed::halves(*address);
            ensure!(half == network, "{address} is not under {}", moving.subnet.prefix());
            ensure!(timed.layout.enter(words, step, identifier), "{}", NO_ROOM);
        }
        Ok(())
    }

    /// Has it be `step`, from now on and for all at once.
    pub fn set_step(&mut self, step: u64) {
        if let Ok(variables) = self.variables.get() {
            variables.current_step.store(step, Ordering::Release);
        }
    }

    /// Takes these addresses out. Those that are not live are no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let mut done = 0;
        while done < addresses.len() {
            let change = Change { remove: 1, ..Change::default() };
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

    /// Enters the first of `addresses`, or takes them out, as `change` says but for their number.
    /// Returns how many, and if that are fewer than [`BATCH`](Self::BATCH), why it stopped.
    fn change(
        &mut self,
        addresses: &[Ipv6Addr],
        mut change: Change,
    ) -> Result<(usize, Option<io::Error>)> {
        let addresses = &addresses[..addresses.len().min(Self::BATCH)];
        for (index, address) in addresses.iter().enumerate() {
            let place = self.staged.at::<[u8; 16]>(16 * index, 1);
            let place = place.context("the map of staged addresses is too small")?;
            // SAFETY: within the mapping, as `at` checked; `&mut self` and the kernel, in its turn
            // below, are its only users.
            unsafe { place.write(address.octets()) };
        }
        change.count = addresses.len() as u32;
        let mut run = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            // What a program of this kind makes of its context is written back to where it came
            // from.
            ctx_in: (&raw mut change).cast(),
            ctx_size_in: size_of::<Change>() as u32,
            ..Default::default()
        };
        // SAFETY: `change` is valid for reads and writes of the size given with it, which is what
        // the program takes.
        let result =
            unsafe { libbpf_sys::bpf_prog_test_run_opts(self.change.as_raw_fd(), &raw mut run) };
        if result < 0 {
            return Err(anyhow!(io::Error::from_raw_os_error(-result))
                .context("cannot change the live addresses"));
        }
        let error = (change.error != 0).then(|| io::Error::from_raw_os_error(change.error as i32));
        Ok((run.retval as usize, error))
    }

    /// Whether `address` is one of those that stay.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn contains(&self, address: Ipv6Addr) -> Result<bool> {
        Ok(self.map.lookup(&address.octets(), MapFlags::ANY)?.is_some())
    }

    /// Bytes of kernel memory that the addresses take, full or not, as the kernel reports them.
    /// `None` where it does not.
    #[must_use]
    pub fn kernel_memory(&self) -> Option<u64> {
        self.map.query_fdinfo().ok()?.memlock
    }
}

/// Why an address is not entered.
const NO_ROOM: &str = "the steering program has no room for so many live addresses";

/// Says what a refused entry means.
fn explain_add(address: Ipv6Addr, error: &io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::EEXIST) => anyhow!("{address} is live already"),
        Some(libc::E2BIG | libc::ENOMEM) => anyhow!(NO_ROOM),
        _ => anyhow!("cannot make {address} live in the steering program: {error}"),
    }
}

fn cannot_remove(address: Ipv6Addr) -> String {
    format!("cannot take {address} out of the steering program")
}

impl VerdictSource {
    /// Packets by verdict since the program was loaded, added up over all processors.
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

    /// Replies of the program that the driver took, and those that it did not; where
    /// [`counts_frames`](Attachment::counts_frames).
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn frames(&self) -> Result<[u64; 2]> {
        sums(&self.frames)
    }
}

/// The counters of a map, each added up over all processors.
fn sums<const N: usize>(map: &MapHandle) -> Result<[u64; N]> {
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
    /// In the mode that the kernel made of it, not the one that was asked for.
    fn new(fd: OwnedFd, link: &Link, fallback: Option<Fallback>) -> Result<Self> {
        let attached = netlink::link(&link.name)?.xdp;
        let mode = attached.context("the program was attached, and is gone again")?.mode;
        Ok(Self { _link: fd, frames: None, backstop: None, mode, fallback })
    }

    /// The mode that the kernel reports.
    pub fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Whether it is counted which of the program's own replies the driver takes.
    pub fn counts_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// What is wrong where a hidden program has no backstop: then the kernel may take nothing under
    /// its prefixes for its own.
    pub fn lacks_backstop(&self) -> Option<&str> {
        self.backstop.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// The step down that was taken to it.
    pub fn fallback(&self) -> Option<&Fallback> {
        self.fallback.as_ref()
    }
}

/// Has `program` run at the ingress of an interface, before what others have there, until the link
/// goes. From Linux 6.6 (tcx).
fn create_tc_link(program: &OwnedFd, interface: u32) -> io::Result<OwnedFd> {
    create_link(program, interface, libbpf_sys::BPF_TCX_INGRESS, libbpf_sys::BPF_F_BEFORE)
}

fn create_link(program: &OwnedFd, interface: u32, kind: u32, flags: u32) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
        flags,
        ..Default::default()
    };
    // SAFETY: `options` is valid, says its own size, and points nowhere.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), interface as i32, kind, &raw const options)
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
        let buckets = u32::try_from(layout.buckets())
            .context("the XDP program has no room for so many clients")?;
        maps.timed_addresses.set_max_entries(buckets).map_err(explain_load)?;
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

/// Gives the program a way out of the interface for each reply.
fn add_ways_out(ways_out: &impl MapCore, reflect: &Reflect) -> Result<()> {
    let interface = reflect.interface.to_ne_bytes();
    for way in 0..u32::from(reflect.replies.max(1)) {
        let added = ways_out.update(&way.to_ne_bytes(), &interface, MapFlags::ANY);
        added.context("cannot have the XDP program send out of the interface")?;
    }
    Ok(())
}

/// Says what the lack of a backstop means.
fn explain_backstop(link: &Link, error: &io::Error) -> String {
    format!(
        "{} takes no tc program (tcx, from Linux 6.6: {error}), so requests behind extension \
         headers or in fragments meet silence",
        link.name
    )
}

/// Says what a refused attachment means.
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
            "{name} takes no XDP program now ({error}): its MTU may be too large for XDP (ip link \
             set dev {name} mtu 1500), or large receive offload on (ethtool -K {name} lro off)"
        ),
        _ => anyhow!("{name} takes no XDP program: {error}"),
    }
}

/// The error for an interface where another program is attached already.
pub fn occupied(link: &Link) -> anyhow::Error {
    let name = &link.name;
    let which = link.xdp.map_or(String::new(), |program| format!(" (id {})", program.id));
    anyhow!(
        "another XDP program{which} is attached to {name}, and is left alone: stop what put it \
         there, or take it off with 'ip link set dev {name} xdp off'"
    )
}

/// Why the kernel's types are not found.
fn no_types(sys_is_mounted: bool) -> String {
    if sys_is_mounted {
        return format!(
            "loading the XDP program takes the kernel's types, and there is no {KERNEL_TYPES}: a \
             kernel with CONFIG_DEBUG_INFO_BTF is needed"
        );
    }
    format!(
        "loading the XDP program takes the kernel's types in {KERNEL_TYPES}, and /sys is not \
         mounted: mount -t sysfs sysfs /sys"
    )
}

/// Where the driver takes no program because packets may be larger than a page. A veth looks at
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
        // libbpf wants the kernel's types also for a program that is not loaded, and says ESRCH
        // where it finds none.
        _ if !Path::new(KERNEL_TYPES).exists() => anyhow!(no_types(host::is_mounted("/sys"))),
        _ => anyhow!(
            "the kernel does not take the XDP program ({error}): Linux 5.14 or newer with \
             CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS is needed"
        ),
    }
}
