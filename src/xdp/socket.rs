//! An AF_XDP socket: the UMEM registered, the rings mapped, the fill ring filled, and only then
//! bound to a queue.
//!
//! Written on the kernel's interface itself (Documentation/networking/af_xdp.rst): xsk-rs hands out
//! the fill ring only after the bind, and drivers that start receiving at the bind find it empty.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::ModeError;
use super::fallback::Fallback;
use super::ring::{Consumer, Entry, Layout, Producer};
use super::rings::{Doorbell, Rings};
use super::umem::Umem;
use crate::events::Interface;
use crate::net::memory::{HugepageRequest, Memory, NoHugePages};
use crate::net::netlink::{self, AttachMode};
use crate::net::quirks::{self, Act};
use crate::net::{denied, ethtool, option};

pub use crate::events::{BusyPoll, CopyMode, CopyRequest, KernelCounters, RingSizes};

/// What to open.
#[derive(Debug, Clone)]
pub struct SocketConfig<'a> {
    /// Name of the interface, for messages.
    pub interface: &'a str,
    /// Its index.
    pub index: u32,
    /// The queue whose packets are wanted.
    pub queue: u32,
    /// Which copy mode to ask for.
    pub copy: CopyRequest,
    /// How the program that steers to it is attached.
    pub attach: AttachMode,
    /// Frames in the UMEM, a power of two. The rx ring is as large, so that it never overflows. In
    /// zero-copy there are [`spare_frames`] besides.
    pub frames: u32,
    /// Frames that are on their way out or in the caller's hands at a time, at most.
    pub elsewhere: u32,
    /// Bytes in a frame, 2048 or 4096.
    pub frame_size: u32,
    /// Whether the UMEM is to lie on huge pages.
    pub hugepages: HugepageRequest,
    /// Preferred busy polling, for so many microseconds.
    pub busy_poll: Option<u32>,
    /// Descriptors in the tx and completion rings, a power of two.
    pub send_ring: u32,
    /// How many of the frames go into the fill ring, besides the spare ones; the others are the
    /// caller's.
    pub fill: u32,
}

impl SocketConfig<'_> {
    /// Frames that zero-copy needs besides.
    fn spare(&self) -> u32 {
        spare_frames(ethtool::card_rings(self.interface).map(|(rx, _)| rx), self.elsewhere)
    }

    /// What its rings are made as.
    fn rings(&self, mode: CopyMode) -> RingSizes {
        let frames = self.frames + if mode == CopyMode::Zero { self.spare() } else { 0 };
        RingSizes {
            frames,
            frame_size: self.frame_size,
            fill: fill_ring(frames),
            rx: self.frames,
            tx: self.send_ring,
            completion: self.send_ring,
        }
    }
}

/// A bound socket. Its rings are a value apart, so that one thread can work on them while another
/// asks for statistics.
#[derive(Debug)]
pub struct Socket {
    fd: Arc<OwnedFd>,
    mode: CopyMode,
    fallback: Option<Fallback>,
    sizes: RingSizes,
    busy_poll: Option<BusyPoll>,
}

impl KernelCounters {
    /// Adds another socket's counters.
    pub fn add(&mut self, other: &Self) {
        self.rx_dropped += other.rx_dropped;
        self.rx_ring_full += other.rx_ring_full;
        self.fill_ring_empty += other.fill_ring_empty;
        self.rx_invalid += other.rx_invalid;
        self.tx_invalid += other.tx_invalid;
    }
}

/// Frames that a socket needs in zero-copy besides those for its rx ring: those that the driver is
/// to find whatever happens, and as many as are `elsewhere`.
#[must_use]
pub fn spare_frames(card_ring: Option<u32>, elsewhere: u32) -> u32 {
    quirks::spare_frames(card_ring) + elsewhere
}

/// Bind retries for this long while the kernel still tears down the last socket of the queue, which
/// it does after the close, on its own time (RCU grace periods, tens of milliseconds each).
const BUSY_LIMIT: Duration = Duration::from_secs(2);

impl Socket {
    /// Opens a socket, fills its fill ring and binds it. Returns it with its rings and the frames
    /// that are not in the fill ring.
    ///
    /// # Errors
    /// When the kernel refuses, with what to do about it.
    pub fn open(config: &SocketConfig) -> Result<(Self, Rings, Vec<super::Frame>)> {
        // Left to itself the kernel would try zero-copy first as well, and keep the reason why it
        // is not to be had.
        let best = if config.copy == CopyRequest::Copy { CopyMode::Copy } else { CopyMode::Zero };
        let why = match Self::open_as(config, best) {
            Err(OpenError::Bind(error)) if config.copy == CopyRequest::Auto && may_copy(&error) => {
                no_zero_copy(config, &error)
            }
            opened => return opened.map_err(|error| error.explain(config, best)),
        };
        let copying = Self::open_as(config, CopyMode::Copy);
        let (mut socket, rings, frames) =
            copying.map_err(|error| error.explain(config, CopyMode::Copy))?;
        socket.fallback = Some(Fallback::new("copy", CopyMode::Zero, CopyMode::Copy, why));
        Ok((socket, rings, frames))
    }

    fn open_as(
        config: &SocketConfig,
        mode: CopyMode,
    ) -> Result<(Self, Rings, Vec<super::Frame>), OpenError> {
        if mode == CopyMode::Zero && config.attach == AttachMode::Generic {
            // A driver might grant it all the same. But what its generic hook steers was copied
            // into a socket buffer before.
            return Err(OpenError::Bind(io::Error::other("generic XDP has no zero-copy")));
        }
        let give_up = Instant::now() + BUSY_LIMIT;
        loop {
            match Self::try_open(config, mode) {
                Err(OpenError::Bind(error))
                    if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < give_up =>
                {
                    thread::sleep(Duration::from_millis(10));
                }
                opened => return opened,
            }
        }
    }

    fn try_open(
        config: &SocketConfig,
        mode: CopyMode,
    ) -> Result<(Self, Rings, Vec<super::Frame>), OpenError> {
        let fd = Arc::new(unbound().map_err(no_socket)?);
        let sizes = config.rings(mode);
        let (umem, frames) =
            Umem::new(sizes.frames, config.frame_size, config.hugepages).map_err(no_frames)?;
        umem.register(&fd).map_err(|error| no_umem(error, umem.length(), mode))?;
        let mut rings = map_rings(&fd, umem, sizes)?;
        let mut frames = frames.into_iter();
        for frame in frames.by_ref().take((config.fill + sizes.frames - config.frames) as usize) {
            rings.fill(frame).map_err(|_| anyhow!("the fill ring is smaller than the UMEM"))?;
        }
        rings.publish();

        let busy_poll = config.busy_poll.map(|time| busy_poll(&fd, time)).transpose()?;
        bind(&fd, config, mode).map_err(OpenError::Bind)?;
        // One system call may send all that the ring holds: the default lets it send 32 packets
        // (Linux 6.17; older kernels do not know the option and keep to 32).
        let _ = option::set(&fd, option::XDP_MAX_TX_SKB_BUDGET, &config.send_ring);

        let options =
            option::get(&fd, option::XDP_OPTIONS).context("cannot ask for the copy mode")?;
        let zero = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        let mode = if zero { CopyMode::Zero } else { CopyMode::Copy };
        Ok((Self { fd, mode, fallback: None, sizes, busy_poll }, rings, frames.collect()))
    }

    /// The copy mode that the kernel says it uses (XDP_OPTIONS).
    pub fn mode(&self) -> CopyMode {
        self.mode
    }

    /// The step down that was taken to it.
    pub fn fallback(&self) -> Option<&Fallback> {
        self.fallback.as_ref()
    }

    /// How it polls, if it does.
    pub fn busy_poll(&self) -> Option<BusyPoll> {
        self.busy_poll
    }

    /// How large its rings are.
    pub fn rings(&self) -> RingSizes {
        self.sizes
    }

    /// A way to ask for the kernel's counters from another thread.
    pub fn counters(&self) -> CounterSource {
        CounterSource(self.fd.clone())
    }
}

/// Asks for a socket's counters.
#[derive(Debug, Clone)]
pub struct CounterSource(Arc<OwnedFd>);

impl CounterSource {
    /// The counters now; zeros when the kernel does not say.
    pub fn read(&self) -> KernelCounters {
        let Ok(raw) = option::get(&self.0, option::XDP_STATISTICS) else {
            return KernelCounters::default();
        };
        KernelCounters {
            rx_dropped: raw.rx_dropped,
            rx_ring_full: raw.rx_ring_full,
            fill_ring_empty: raw.rx_fill_ring_empty_descs,
            rx_invalid: raw.rx_invalid_descs,
            tx_invalid: raw.tx_invalid_descs,
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Doorbell for Socket {
    fn wake_sender(&mut self) -> io::Result<()> {
        // SAFETY: an empty message: the kernel reads no memory of ours.
        let sent = unsafe {
            libc::sendto(
                self.fd.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        if sent >= 0 { Ok(()) } else { unless_busy(io::Error::last_os_error()) }
    }

    fn wake_receiver(&mut self) -> io::Result<()> {
        // SAFETY: an empty buffer: the kernel writes no memory of ours.
        let received = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
        if received >= 0 { Ok(()) } else { unless_busy(io::Error::last_os_error()) }
    }

    fn sleep(&mut self, limit: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What a wake-up may say without anything being wrong: try again (EAGAIN, EBUSY), out of buffers
/// for now (ENOBUFS), or the link is down for now (ENETDOWN).
fn unless_busy(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENETDOWN | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

/// Size of a fill ring that always takes every one of `frames` frames. The kernel takes entries out
/// well before it says so (`__xskq_cons_release` comes after the packets were published): a frame
/// can be back in user space while its old entry still counts, so each frame may have two.
pub(super) fn fill_ring(frames: u32) -> u32 {
    2 * frames.next_power_of_two()
}

enum OpenError {
    Bind(io::Error),
    Other(anyhow::Error),
}

impl OpenError {
    fn explain(self, config: &SocketConfig, mode: CopyMode) -> anyhow::Error {
        match self {
            Self::Bind(error) => explain(config, mode, &error),
            Self::Other(error) => error,
        }
    }
}

impl From<anyhow::Error> for OpenError {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// An AF_XDP socket that is bound to nothing.
pub(super) fn unbound() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor, touches no memory.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Says why there is no socket.
fn no_socket(error: io::Error) -> anyhow::Error {
    let cure = match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => "this kernel is built without CONFIG_XDP_SOCKETS".to_owned(),
        Some(libc::EPERM) => denied::explain("it", &["CAP_NET_RAW"], "socket(AF_XDP)"),
        _ => "socket(AF_XDP) failed".to_owned(),
    };
    anyhow::Error::new(error).context(format!("no AF_XDP socket: {cure}"))
}

/// Says why there is no memory for frames.
fn no_frames(error: io::Error) -> anyhow::Error {
    let error = match error.downcast::<NoHugePages>() {
        Ok(error) => ModeError::NoHugePages(error.to_string()).into(),
        Err(error) => anyhow::Error::new(error),
    };
    error.context("no memory for the UMEM")
}

/// Says why the kernel does not take a UMEM of `length` bytes.
fn no_umem(error: io::Error, length: u64, mode: CopyMode) -> OpenError {
    let kib = length >> 10;
    match (error.raw_os_error(), mode) {
        // Zero-copy takes spare frames: in copy mode there may be room.
        (Some(libc::ENOBUFS), CopyMode::Zero) => OpenError::Bind(io::Error::other(format!(
            "its frames take {kib} KiB, and fewer may be locked (ulimit -l {kib}, for each queue)"
        ))),
        (Some(libc::ENOBUFS), CopyMode::Copy) => anyhow!(
            "the frames take {kib} KiB, and fewer may be locked: ulimit -l {kib} (for each queue), \
             or CAP_IPC_LOCK"
        )
        .into(),
        _ => anyhow::Error::new(error).context("the kernel does not take the UMEM").into(),
    }
}

/// Has the kernel make the rings, and maps them.
fn map_rings(fd: &OwnedFd, umem: Umem, sizes: RingSizes) -> Result<Rings> {
    for (ring, size) in [
        (option::XDP_UMEM_FILL_RING, sizes.fill),
        (option::XDP_UMEM_COMPLETION_RING, sizes.completion),
        (option::XDP_RX_RING, sizes.rx),
        (option::XDP_TX_RING, sizes.tx),
    ] {
        option::set(fd, ring, &size)
            .with_context(|| format!("the kernel refuses a ring of {size}"))?;
    }
    let offsets =
        option::get(fd, option::XDP_MMAP_OFFSETS).context("cannot ask where the rings lie")?;
    let fill = producer(fd, &offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING as i64, sizes.fill)?;
    let place = libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64;
    let completion = consumer(fd, &offsets.cr, place, sizes.completion)?;
    let rx = consumer(fd, &offsets.rx, libc::XDP_PGOFF_RX_RING, sizes.rx)?;
    let tx = producer(fd, &offsets.tx, libc::XDP_PGOFF_TX_RING, sizes.tx)?;
    Ok(Rings::new(umem, fill, rx, tx, completion))
}

/// Packets that one call takes from the card at most: as many as its driver takes in one go
/// (NAPI_POLL_WEIGHT), where the kernel's default for busy polling is 8.
const BUSY_POLL_BUDGET: u32 = 64;

/// Has `fd` poll the card itself, and asks what came of it.
fn busy_poll(fd: &OwnedFd, microseconds: u32) -> Result<BusyPoll> {
    for (option, value) in [
        (option::SO_PREFER_BUSY_POLL, 1),
        (option::SO_BUSY_POLL, microseconds),
        (option::SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET),
    ] {
        option::set(fd, option, &value).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => {
                anyhow!(
                    "no busy polling: it takes Linux 5.11 or newer with CONFIG_NET_RX_BUSY_POLL"
                )
            }
            Some(libc::EPERM) => {
                anyhow!(denied::explain(
                    "busy polling",
                    &["CAP_NET_ADMIN"],
                    "setsockopt(SO_BUSY_POLL)"
                ))
            }
            _ => anyhow!("no busy polling for {microseconds} microseconds: {error}"),
        })?;
    }
    let cannot = "cannot ask how the socket polls";
    Ok(BusyPoll {
        microseconds: option::get(fd, option::SO_BUSY_POLL).context(cannot)?,
        preferred: option::get(fd, option::SO_PREFER_BUSY_POLL).context(cannot)? != 0,
        budget: BUSY_POLL_BUDGET,
    })
}

fn bind(fd: &OwnedFd, config: &SocketConfig, mode: CopyMode) -> io::Result<()> {
    let mode = match mode {
        CopyMode::Zero => libc::XDP_ZEROCOPY,
        CopyMode::Copy => libc::XDP_COPY,
    };
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_USE_NEED_WAKEUP | mode,
        sxdp_ifindex: config.index,
        sxdp_queue_id: config.queue,
        sxdp_shared_umem_fd: 0,
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is valid for reads of its length.
    let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether copy mode may be had where zero-copy was refused with `error`.
fn may_copy(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::ENODEV | libc::ENETDOWN))
}

/// Why there is no zero-copy. Drivers without it say EOPNOTSUPP, and those that offer it and have
/// it not, EINVAL.
fn no_zero_copy(config: &SocketConfig, error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else { return error.to_string() };
    let refused = format!("the driver of {} refuses zero-copy ({error})", config.interface);
    let link = netlink::link_at(config.index).ok().flatten().filter(|_| code == libc::EINVAL);
    let interface = link.as_ref().map(Interface::of).unwrap_or_default();
    match quirks::of(&interface).find(Act::DoubtZeroCopy) {
        Some(quirk) => format!("{refused}: {quirk}"),
        None => refused,
    }
}

/// Says what a refused bind means.
fn explain(config: &SocketConfig, mode: CopyMode, error: &io::Error) -> anyhow::Error {
    let SocketConfig { interface, queue, .. } = config;
    if mode == CopyMode::Zero && may_copy(error) {
        let why = no_zero_copy(config, error);
        return ModeError::NoZeroCopy { queue: *queue, why }.into();
    }
    let why = match error.raw_os_error() {
        Some(libc::EBUSY) => format!(
            "queue {queue} of {interface} is taken by another AF_XDP socket: stop it, or use \
             another queue"
        ),
        Some(libc::EINVAL) => {
            format!("the kernel refuses queue {queue} of {interface}: does it exist?")
        }
        Some(libc::EPERM) => {
            denied::explain("binding an AF_XDP socket", &["CAP_NET_RAW"], "bind(2)")
        }
        Some(libc::ENODEV) => format!("{interface} has gone"),
        Some(libc::ENETDOWN) => format!("{interface} is down: set it up first"),
        _ => format!("the kernel refuses queue {queue} of {interface}"),
    };
    anyhow!("{why} ({error})")
}

fn producer<T: Entry>(
    fd: &OwnedFd,
    offsets: &libc::xdp_ring_offset,
    page: i64,
    size: u32,
) -> Result<Producer<T>> {
    let (memory, layout) = map_ring::<T>(fd, offsets, page, size)?;
    Producer::new(&memory, &layout, size)
        .context("the kernel gave a ring layout that makes no sense")
}

fn consumer<T: Entry>(
    fd: &OwnedFd,
    offsets: &libc::xdp_ring_offset,
    page: i64,
    size: u32,
) -> Result<Consumer<T>> {
    let (memory, layout) = map_ring::<T>(fd, offsets, page, size)?;
    Consumer::new(&memory, &layout, size)
        .context("the kernel gave a ring layout that makes no sense")
}

fn map_ring<T: Entry>(
    fd: &OwnedFd,
    offsets: &libc::xdp_ring_offset,
    page: i64,
    size: u32,
) -> Result<(Arc<Memory>, Layout)> {
    let layout = Layout {
        producer: offsets.producer as usize,
        consumer: offsets.consumer as usize,
        flags: offsets.flags as usize,
        entries: offsets.desc as usize,
    };
    let length = layout.entries + size as usize * size_of::<T>();
    let memory = Memory::of_file(fd.as_fd(), length, page).context("cannot map a ring")?;
    Ok((Arc::new(memory), layout))
}
