//! The steering program: loaded, told what is ours, attached by a link that goes when the process goes, and read out.

use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::address::Prefix;
use crate::netlink::{self, AttachMode, Link};

mod skeleton {
    #![allow(missing_docs, clippy::all, clippy::pedantic, clippy::undocumented_unsafe_blocks)]
    #![allow(clippy::multiple_unsafe_ops_per_block)]
    include!(concat!(env!("OUT_DIR"), "/steer.skel.rs"));
}

/// Flags of linux/if_link.h.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// Where the program is to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AttachRequest {
    /// In the driver where it can, otherwise generic.
    Auto,
    /// In the driver or an error.
    Native,
    /// In the kernel's generic hook, which every driver has, after a socket buffer was made.
    Generic,
}

/// What the program did with a packet. One counter each, in the order of `enum verdict` in bpf/headers.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Verdict {
    /// Into the ring of the queue that it arrived on.
    Steered,
    /// To the kernel: not UDP directly over IPv6 over Ethernet.
    PassedOther,
    /// To the kernel: another port.
    PassedPort,
    /// To the kernel: our port, but under no bound prefix.
    PassedPrefix,
    /// To the kernel: our port, under a bound prefix, but no live address.
    PassedNotLive,
    /// To the kernel: ours, but no socket sits on this queue.
    PassedNoRing,
}

impl Verdict {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::Steered,
        Self::PassedOther,
        Self::PassedPort,
        Self::PassedPrefix,
        Self::PassedNotLive,
        Self::PassedNoRing,
    ];

    /// The name under which it is counted in the statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Steered => "steered",
            Self::PassedOther => "passed_other",
            Self::PassedPort => "passed_port",
            Self::PassedPrefix => "passed_prefix",
            Self::PassedNotLive => "passed_not_live",
            Self::PassedNoRing => "passed_no_ring",
        }
    }
}

/// A loaded program with its maps, attached to nothing yet.
#[derive(Debug)]
pub struct Program {
    program: OwnedFd,
    bound_prefixes: MapHandle,
    live_addresses: MapHandle,
    xsks: MapHandle,
    verdicts: MapHandle,
}

/// Reads the verdict counters, from any thread.
#[derive(Debug)]
pub struct VerdictSource(MapHandle);

/// The program on an interface. The kernel takes it off when this is dropped or the process ends, however it ends.
#[derive(Debug)]
pub struct Attachment {
    _link: OwnedFd,
    mode: AttachMode,
}

impl Program {
    /// Loads the program for UDP port `port`, with room for `capacity` live addresses and `queues` queues.
    ///
    /// # Errors
    /// When the kernel refuses it, with what to do about it.
    pub fn load(port: u16, capacity: u32, queues: u32) -> Result<Self> {
        // libbpf would print to stderr, in many lines, what the error below says in one.
        static QUIET: Once = Once::new();
        QUIET.call_once(|| {
            libbpf_rs::set_print(None);
        });
        let mut storage = MaybeUninit::uninit();
        let mut open = skeleton::SteerSkelBuilder::default().open(&mut storage).map_err(explain_load)?;
        let constants = open.maps.rodata_data.as_deref_mut().context("the program lost its constants")?;
        constants.service_port = port.to_be();
        open.maps.live_addresses.set_max_entries(capacity.max(1)).map_err(explain_load)?;
        open.maps.xsks.set_max_entries(queues.max(1)).map_err(explain_load)?;
        let loaded = open.load().map_err(explain_load)?;
        let program = loaded.progs.steer.as_fd().try_clone_to_owned();
        // Handles of our own, so that the skeleton and what it borrows can go.
        Ok(Self {
            program: program.context("cannot keep the program")?,
            bound_prefixes: MapHandle::try_from(&loaded.maps.bound_prefixes)?,
            live_addresses: MapHandle::try_from(&loaded.maps.live_addresses)?,
            xsks: MapHandle::try_from(&loaded.maps.xsks)?,
            verdicts: MapHandle::try_from(&loaded.maps.verdicts)?,
        })
    }

    /// Has packets to live addresses under `prefix` steered from now on.
    ///
    /// # Errors
    /// When there are 1,024 prefixes already.
    pub fn add_prefix(&self, prefix: Prefix) -> Result<()> {
        let mut key = [0; 20]; // struct prefix_key: length in the host's order, address in the network's
        key[..4].copy_from_slice(&u32::from(prefix.length()).to_ne_bytes());
        key[4..].copy_from_slice(&prefix.network().octets());
        self.bound_prefixes
            .update(&key, &[0; 4], MapFlags::ANY)
            .with_context(|| format!("cannot add {prefix} to the steering program"))
    }

    /// Has packets to these addresses steered from now on, provided that they lie under a prefix that was added.
    ///
    /// # Errors
    /// When there is no room for them all: some may have been added.
    pub fn add_live(&self, addresses: &[Ipv6Addr]) -> Result<()> {
        // 1 MiB of keys a call: the kernel copies each batch through a buffer of its own, one element at a time.
        const BATCH: usize = 1 << 16;
        for batch in addresses.chunks(BATCH) {
            let keys: Vec<u8> = batch.iter().flat_map(Ipv6Addr::octets).collect();
            let values = vec![0; 4 * batch.len()];
            self.live_addresses
                .update_batch(&keys, &values, batch.len() as u32, MapFlags::ANY, MapFlags::ANY)
                .with_context(|| {
                    format!("cannot make {} addresses live in the steering program", addresses.len())
                })?;
        }
        Ok(())
    }

    /// Has the packets of `queue` go to `socket`.
    ///
    /// # Errors
    /// When the program was loaded for fewer queues.
    pub fn add_socket(&self, queue: u32, socket: impl AsFd) -> Result<()> {
        let fd = socket.as_fd().as_raw_fd();
        self.xsks
            .update(&queue.to_ne_bytes(), &fd.to_ne_bytes(), MapFlags::ANY)
            .with_context(|| format!("cannot register the socket of queue {queue} with the steering program"))
    }

    /// A way to read the counters from another thread.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn verdicts(&self) -> Result<VerdictSource> {
        Ok(VerdictSource(MapHandle::try_from(&self.verdicts)?))
    }

    /// Attaches the program to `link`, in the best mode that `request` allows, where nothing is attached yet.
    ///
    /// # Errors
    /// When another program is attached, which is left alone, or the mode cannot be had.
    pub fn attach(&self, link: &Link, request: AttachRequest) -> Result<Attachment> {
        if link.xdp.is_some() {
            return Err(occupied(link));
        }
        let modes: &[_] = match request {
            AttachRequest::Auto => &[XDP_FLAGS_DRV_MODE, XDP_FLAGS_SKB_MODE],
            AttachRequest::Native => &[XDP_FLAGS_DRV_MODE],
            AttachRequest::Generic => &[XDP_FLAGS_SKB_MODE],
        };
        let mut refusal = None;
        for flags in modes {
            match self.create_link(link.index, *flags) {
                Ok(fd) => {
                    // What the kernel made of it, not what was asked for.
                    let attached = netlink::link(&link.name)?.xdp;
                    let mode = attached.context("the program was attached, and is gone again")?.mode;
                    return Ok(Attachment { _link: fd, mode });
                }
                Err(error) => refusal = Some(error),
            }
        }
        let error = refusal.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        let name = &link.name;
        Err(match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => occupied(link),
            Some(libc::EOPNOTSUPP) if request == AttachRequest::Native => anyhow!(
                "the driver of {name} has no native XDP: use --attach generic, or auto to take what there is"
            ),
            Some(libc::EPERM) => {
                anyhow!("attaching an XDP program needs CAP_NET_ADMIN and CAP_BPF: run as root")
            }
            Some(libc::EINVAL) => anyhow!(
                "{name} takes no XDP program now ({error}): its MTU may be too large for XDP (ip link set dev {name} \
                 mtu 1500), or large receive offload on (ethtool -K {name} lro off)"
            ),
            _ => anyhow!("cannot attach the XDP program to {name}: {error}"),
        })
    }

    fn create_link(&self, interface: u32, flags: u32) -> io::Result<OwnedFd> {
        let options = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags,
            ..Default::default()
        };
        // SAFETY: `options` is valid, says its own size, and points nowhere.
        let fd = unsafe {
            libbpf_sys::bpf_link_create(
                self.program.as_raw_fd(),
                interface as i32,
                libbpf_sys::BPF_XDP,
                &raw const options,
            )
        };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Runs the program on `packet` without any interface (BPF_PROG_TEST_RUN) and returns its XDP action and the packet
    /// afterwards. The packet counts as one of queue 0.
    ///
    /// # Errors
    /// When the kernel does not take the packet: it wants at least an Ethernet header.
    pub fn test_run(&self, packet: &[u8]) -> Result<(u32, Vec<u8>)> {
        let mut after = vec![0; packet.len() + 256];
        let mut run = libbpf_sys::bpf_test_run_opts {
            sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
            data_in: packet.as_ptr().cast(),
            data_size_in: packet.len() as u32,
            data_out: after.as_mut_ptr().cast(),
            data_size_out: after.len() as u32,
            repeat: 1,
            ..Default::default()
        };
        // SAFETY: both buffers are valid for the sizes given with them.
        let result = unsafe { libbpf_sys::bpf_prog_test_run_opts(self.program.as_raw_fd(), &raw mut run) };
        if result < 0 {
            return Err(anyhow!(io::Error::from_raw_os_error(-result)).context("BPF_PROG_TEST_RUN failed"));
        }
        after.truncate(run.data_size_out as usize);
        Ok((run.retval, after))
    }
}

impl VerdictSource {
    /// Packets by verdict since the program was loaded, added up over all processors.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn read(&self) -> Result<[u64; Verdict::ALL.len()]> {
        let mut totals = [0; Verdict::ALL.len()];
        for (index, total) in totals.iter_mut().enumerate() {
            let key = (index as u32).to_ne_bytes();
            let counts = self.0.lookup_percpu(&key, MapFlags::ANY)?.unwrap_or_default();
            let counts = counts.iter().filter_map(|bytes| Some(u64::from_ne_bytes(*bytes.first_chunk()?)));
            *total = counts.sum();
        }
        Ok(totals)
    }
}

impl Attachment {
    /// The mode that the kernel reports.
    pub fn mode(&self) -> AttachMode {
        self.mode
    }
}

/// The error for an interface where another program is attached already.
pub fn occupied(link: &Link) -> anyhow::Error {
    let name = &link.name;
    let which = link.xdp.map_or(String::new(), |program| format!(" (id {})", program.id));
    anyhow!(
        "another XDP program{which} is attached to {name}, and is left alone: stop what put it there, or take it off \
         with 'ip link set dev {name} xdp off'"
    )
}

fn explain_load(error: libbpf_rs::Error) -> anyhow::Error {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            anyhow!("loading an XDP program needs CAP_BPF and CAP_NET_ADMIN: run as root")
        }
        libbpf_rs::ErrorKind::OutOfMemory => {
            anyhow!("no memory for the maps of the XDP program: fewer addresses?")
        }
        _ => anyhow!(
            "the kernel does not take the XDP program ({error}): Linux 5.11 or newer with CONFIG_BPF_SYSCALL and \
             CONFIG_XDP_SOCKETS is needed"
        ),
    }
}
