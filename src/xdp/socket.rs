//! An AF_XDP socket: registers the UMEM, maps the rings, fills the fill ring, and only then binds
//! to a queue.
//!
//! It uses the kernel's interface directly (Documentation/networking/af_xdp.rst). xsk-rs exposes
//! the fill ring only after the bind, so drivers that start to receive at the bind find it empty.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::ModeError;
use super::fallback::Fallback;
use super::ring::{Consumer, Entry, Producer, RingLayout};
use super::rings::{Doorbell, Rings};
use super::umem::Umem;
use crate::events::Interface;
use crate::net::memory::{HugepageRequest, Memory, NoHugePages};
use crate::net::netlink::{self, AttachMode};
use crate::net::quirks::{self, Act};
use crate::net::{denied, ethtool, option};

pub use crate::events::{BusyPoll, CopyMode, CopyRequest, KernelCounters, RingSizes};

/// How to open a socket.
#[derive(Debug, Clone)]
pub struct SocketConfig<'a> {
    /// Name of the interface, for messages.
    pub interface: &'a str,
    /// Its index.
    pub index: u32,
    /// The queue to bind to.
    pub queue: u32,
    /// The copy mode to request.
    pub copy: CopyRequest,
    /// How the steering program is attached.
    pub attach: AttachMode,
    /// Frames in the UMEM, a power of two. The rx ring has the same size, so it never overflows.
    /// Zero-copy adds [`spare_frames`].
    pub frames: u32,
    /// The most frames being sent or in the caller's hands at a time.
    pub elsewhere: u32,
    /// Bytes in a frame, 2048 or 4096.
    pub frame_size: u32,
    /// Whether to put the UMEM on huge pages.
    pub hugepages: HugepageRequest,
    /// Preferred busy polling, for this many microseconds.
    pub busy_poll: Option<u32>,
    /// Descriptors in the tx and completion rings, a power of two.
    pub send_ring: u32,
    /// How many frames go into the fill ring besides the spare ones. The caller gets the others.
    pub fill: u32,
}

impl SocketConfig<'_> {
    /// Spare frames for zero-copy.
    fn spare(&self) -> u32 {
        spare_frames(ethtool::card_rings(self.interface).map(|(rx, _)| rx), self.elsewhere)
    }

    /// The sizes of its rings.
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

/// A bound socket. Its rings are a separate value, so that one thread can use them while another
/// reads statistics.
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

/// Spare frames that a socket needs in zero-copy besides those for its rx ring: the driver's
/// reserve, and as many as are `elsewhere`.
#[must_use]
pub fn spare_frames(card_ring: Option<u32>, elsewhere: u32) -> u32 {
    quirks::spare_frames(card_ring) + elsewhere
}

/// How long to retry a bind while the kernel tears down the queue's previous socket. It does so
/// after the close, asynchronously (RCU grace periods, tens of milliseconds each).
const BUSY_LIMIT: Duration = Duration::from_secs(2);

impl Socket {
    /// Opens a socket, fills its fill ring and binds it. Returns it with its rings and the frames
    /// that are not in the fill ring.
    ///
    /// # Errors
    /// When the kernel refuses, with what to do about it.
    pub fn open(config: &SocketConfig) -> Result<(Self, Rings, Vec<super::Frame>)> {
        // The kernel's own automatic choice would also try zero-copy first, but without reporting
        // why it was refused.
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
            // A driver might grant it anyway, but the generic hook steers packets that were already
            // copied into a socket buffer.
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
        // Lets one system call send everything in the ring; the default is 32 packets (option since
        // Linux 6.17; older kernels always stop at 32).
        let _ = option::set(&fd, option::XDP_MAX_TX_SKB_BUDGET, &config.send_ring);

        let options = option::get(&fd, option::XDP_OPTIONS).context("cannot read the copy mode")?;
        let zero = options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        let mode = if zero { CopyMode::Zero } else { CopyMode::Copy };
        Ok((Self { fd, mode, fallback: None, sizes, busy_poll }, rings, frames.collect()))
    }

    /// The copy mode that the kernel reports (XDP_OPTIONS).
    pub fn mode(&self) -> CopyMode {
        self.mode
    }

    /// The fallback that led to this mode.
    pub fn fallback(&self) -> Option<&Fallback> {
        self.fallback.as_ref()
    }

    /// Its busy polling, if on.
    pub fn busy_poll(&self) -> Option<BusyPoll> {
        self.busy_poll
    }

    /// The sizes of its rings.
    pub fn rings(&self) -> RingSizes {
        self.sizes
    }

    /// A handle to read the kernel's counters from another thread.
    pub fn counters(&self) -> CounterSource {
        CounterSource(self.fd.clone())
    }
}

/// Reads a socket's counters.
#[derive(Debug, Clone)]
pub struct CounterSource(Arc<OwnedFd>);

impl CounterSource {
    /// The current counters; zeros if the kernel does not report them.
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
        // SAFETY: an empty message, so the kernel reads no memory of ours.
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
        // SAFETY: an empty buffer, so the kernel writes no memory of ours.
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

/// Ignores errors of a wake-up that are not failures: try again (EAGAIN, EBUSY), interrupted
/// (EINTR), out of buffers for now (ENOBUFS), or the link is down for now (ENETDOWN).
fn unless_busy(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENETDOWN | libc::EINTR) => Ok(()),
        _ => Err(error),
    }
}

/// Size of a fill ring that always has space for each of `frames` frames. The kernel publishes
/// packets before it releases their fill ring entries (`__xskq_cons_release`). A frame can thus be
/// back in user space while its old entry still counts, so each frame may have two.
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

/// An AF_XDP socket that is not bound.
pub(super) fn unbound() -> io::Result<OwnedFd> {
    // SAFETY: creates a descriptor and touches no memory.
    let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Explains why no socket could be opened.
fn no_socket(error: io::Error) -> anyhow::Error {
    let cure = match error.raw_os_error() {
        Some(libc::EAFNOSUPPORT) => "this kernel is built without CONFIG_XDP_SOCKETS".to_owned(),
        Some(libc::EPERM) => denied::explain("it", &["CAP_NET_RAW"], "socket(AF_XDP)"),
        _ => "socket(AF_XDP) failed".to_owned(),
    };
    anyhow::Error::new(error).context(format!("cannot open an AF_XDP socket: {cure}"))
}

/// Explains why there is no memory for frames.
fn no_frames(error: io::Error) -> anyhow::Error {
    let error = match error.downcast::<NoHugePages>() {
        Ok(error) => ModeError::NoHugePages(error.to_string()).into(),
        Err(error) => anyhow::Error::new(error),
    };
    error.context("no memory for the UMEM")
}

/// Explains why the kernel rejected a UMEM of `length` bytes.
fn no_umem(error: io::Error, length: u64, mode: CopyMode) -> OpenError {
    let kib = length >> 10;
    match (error.raw_os_error(), mode) {
        // Zero-copy needs spare frames: copy mode may still fit.
        (Some(libc::ENOBUFS), CopyMode::Zero) => OpenError::Bind(io::Error::other(format!(
            "its frames need {kib} KiB, but less may be locked (ulimit -l {kib}, for each queue)"
        ))),
        (Some(libc::ENOBUFS), CopyMode::Copy) => anyhow!(
            "the frames need {kib} KiB, but less may be locked: use ulimit -l {kib} (for each \
             queue), or CAP_IPC_LOCK"
        )
        .into(),
        _ => anyhow::Error::new(error).context("the kernel rejects the UMEM").into(),
    }
}

/// Makes the kernel create the rings, and maps them.
fn map_rings(fd: &OwnedFd, umem: Umem, sizes: RingSizes) -> Result<Rings> {
    for (ring, size) in [
        (option::XDP_UMEM_FILL_RING, sizes.fill),
        (option::XDP_UMEM_COMPLETION_RING, sizes.completion),
        (option::XDP_RX_RING, sizes.rx),
        (option::XDP_TX_RING, sizes.tx),
    ] {
        option::set(fd, ring, &size)
            .with_context(|| format!("the kernel refuses a ring of {size} descriptors"))?;
    }
    let offsets =
        option::get(fd, option::XDP_MMAP_OFFSETS).context("cannot read the ring offsets")?;
    let fill = producer(fd, &offsets.fr, libc::XDP_UMEM_PGOFF_FILL_RING as i64, sizes.fill)?;
    let place = libc::XDP_UMEM_PGOFF_COMPLETION_RING as i64;
    let completion = consumer(fd, &offsets.cr, place, sizes.completion)?;
    let rx = consumer(fd, &offsets.rx, libc::XDP_PGOFF_RX_RING, sizes.rx)?;
    let tx = producer(fd, &offsets.tx, libc::XDP_PGOFF_TX_RING, sizes.tx)?;
    Ok(Rings::new(umem, fill, rx, tx, completion))
}

/// The most packets that one call takes from the card: as many as its driver takes in one poll
/// (NAPI_POLL_WEIGHT). The kernel's default for busy polling is 8.
const BUSY_POLL_BUDGET: u32 = 64;

/// Turns on busy polling for `fd`, and reads back the settings.
fn busy_poll(fd: &OwnedFd, microseconds: u32) -> Result<BusyPoll> {
    for (option, value) in [
        (option::SO_PREFER_BUSY_POLL, 1),
        (option::SO_BUSY_POLL, microseconds),
        (option::SO_BUSY_POLL_BUDGET, BUSY_POLL_BUDGET),
    ] {
        option::set(fd, option, &value).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => {
                anyhow!("busy polling needs Linux 5.11 or newer with CONFIG_NET_RX_BUSY_POLL")
            }
            Some(libc::EPERM) => {
                anyhow!(denied::explain(
                    "busy polling",
                    &["CAP_NET_ADMIN"],
                    "setsockopt(SO_BUSY_POLL)"
                ))
            }
            _ => anyhow!("cannot set busy polling to {microseconds} µs: {error}"),
        })?;
    }
    let cannot = "cannot read the busy polling settings";
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

/// Whether to try copy mode after zero-copy was refused with `error`.
fn may_copy(error: &io::Error) -> bool {
    !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EPERM | libc::ENODEV | libc::ENETDOWN))
}

/// Why there is no zero-copy. Drivers without it return EOPNOTSUPP. Those that offer it but cannot
/// grant it return EINVAL.
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

/// Explains why a bind was refused.
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
        Some(libc::ENODEV) => format!("{interface} disappeared"),
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
    Producer::new(&memory, &layout, size).context("the kernel returned an invalid ring layout")
}

fn consumer<T: Entry>(
    fd: &OwnedFd,
    offsets: &libc::xdp_ring_offset,
    page: i64,
    size: u32,
) -> Result<Consumer<T>> {
    let (memory, layout) = map_ring::<T>(fd, offsets, page, size)?;
    Consumer::new(&memory, &layout, size).context("the kernel returned an invalid ring layout")
}

fn map_ring<T: Entry>(
    fd: &OwnedFd,
    offsets: &libc::xdp_ring_offset,
    page: i64,
    size: u32,
) -> Result<(Arc<Memory>, RingLayout)> {
    let layout = RingLayout {
        producer: offsets.producer as usize,
        consumer: offsets.consumer as usize,
        flags: offsets.flags as usize,
        entries: offsets.desc as usize,
    };
    let length = layout.entries + size as usize * size_of::<T>();
    let memory = Memory::of_file(fd.as_fd(), length, page).context("cannot map a ring")?;
    Ok((Arc::new(memory), layout))
}
