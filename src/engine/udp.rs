//! The UDP socket that every socket engine answers from, and what those share that have several.

use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn6, bind, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::statistics::{Shown, Tally};
use super::{CounterSet, EngineConfig, EngineError, Modes, supervise};
use crate::events::Counters;
use crate::host::sandbox::{Role, Sandbox};
use crate::live::Method;
use crate::wire::MAX_PAYLOAD;

/// Bytes of memory that requests may take which wait for the engine. The default
/// (net.core.rmem_default, 212,992) holds a few hundred small ones: a moment without the processor
/// would lose requests that the server has the time to answer.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Whoever waits for a request looks up this often whether to stop.
pub(super) const DOZE: Duration = Duration::from_millis(100);

/// A socket on the service port of every address of the interface, which says of each request which
/// address it was sent to. `shared`: further ones may be opened, and the kernel spreads the
/// requests over them.
pub(super) fn open(config: &EngineConfig, shared: bool) -> Result<OwnedFd> {
    let port = config.handler.port();
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket =
        socket(AddressFamily::Inet6, SockType::Datagram, flags, None).context("no UDP socket")?;
    setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &shared)?;
    if matches!(config.bind, Method::Anyip | Method::LiveMap | Method::None) {
        // The source of a reply may be no address that the kernel has, only one that it receives
        // for.
        set_freebind(&socket).context("no replies from addresses that the kernel has not")?;
    }
    setsockopt(&socket, sockopt::BindToDevice, &config.link.name.clone().into())
        .with_context(|| format!("cannot bind a socket to {}", config.link.name))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(DOZE.as_millis() as i64))?;
    set_receive_buffer(&socket)?;
    let any = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    bind(socket.as_raw_fd(), &any).map_err(|error| match error {
        Errno::EADDRINUSE => EngineError::PortTaken(port).into(),
        other => anyhow!("cannot bind UDP port {port}: {other}"),
    })?;
    Ok(socket)
}

/// Gives requests that wait for the engine [`RECEIVE_BUFFER`].
pub(super) fn set_receive_buffer(socket: &OwnedFd) -> nix::Result<()> {
    // Beyond net.core.rmem_max needs CAP_NET_ADMIN; without it, as much as is allowed.
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
    }
    Ok(())
}

/// A socket for each of `count` workers, over which the kernel spreads the requests.
pub(super) fn open_shared(config: &EngineConfig, count: usize) -> Result<Vec<Arc<OwnedFd>>> {
    // Sockets that share a port share it with those of any other server of this user: that there is
    // none shows this one.
    drop(open(config, false)?);
    (0..count).map(|_| open(config, true).map(Arc::new)).collect()
}

/// Bytes of the longest request that a socket engine answers whole.
pub(super) fn longest(_: &Modes) -> Option<(u32, &'static str)> {
    Some((MAX_PAYLOAD as u32, "of larger ones the replies hold only so many bytes"))
}

/// Datagrams that the kernel cuts a large one into at most (UDP_MAX_SEGMENTS of Linux before 6.7).
pub(super) const MAX_SEGMENTS: usize = 64;

/// Bytes that they carry together at most: the largest datagram.
const MAX_BYTES: usize = u16::MAX as usize - 8 - 40;

/// How many datagrams that carry `length` bytes may go as one that the kernel cuts.
pub(super) fn segments(length: usize) -> usize {
    // An empty datagram cannot be cut into empty ones.
    MAX_BYTES.checked_div(length).map_or(1, |fit| fit.clamp(1, MAX_SEGMENTS))
}

/// Has each of `workers` work on a thread of its own, in its role, until `stop` is set: by the
/// first that fails, too.
pub(super) fn run<W: Send>(
    workers: impl IntoIterator<Item = W>,
    (sandbox, role): (Sandbox, Role),
    stop: &AtomicBool,
    work: impl Fn(W) -> Result<()> + Sync,
) -> Result<()> {
    let work = |worker| {
        sandbox.enter(role)?;
        work(worker)
    };
    let work = &work;
    thread::scope(|scope| {
        let start = |worker| supervise::start(scope, stop, move || work(worker));
        let threads: Vec<_> = workers.into_iter().map(start).collect();
        supervise::wait_for(threads)
    })
}

/// Bytes of memory that requests may take which wait, as the kernel reports it.
pub(super) fn receive_buffer(socket: &OwnedFd) -> Option<usize> {
    getsockopt(socket, sockopt::RcvBuf).ok()
}

/// The counts of an engine on such sockets.
pub(super) struct SocketCounters {
    /// Its sockets.
    pub sockets: Vec<Arc<OwnedFd>>,
    /// Where its threads show theirs.
    pub shown: Vec<Arc<Shown>>,
}

impl SocketCounters {
    /// What its threads did.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.shown.iter().for_each(|shown| tally.add(&shown.load()));
        tally
    }

    /// Datagrams that the kernel did not put into its sockets; `None` where it does not say.
    pub fn dropped(&self) -> Option<u64> {
        self.sockets.iter().map(|socket| dropped(socket).ok()).sum()
    }

    /// A number of each thread that changes while it is alive.
    pub fn beats(&self) -> Vec<u64> {
        self.shown.iter().map(|shown| shown.beats()).collect()
    }
}

impl CounterSet for SocketCounters {
    fn read(&self) -> Counters {
        self.tally().counters().with_socket_dropped(self.dropped())
    }

    fn beats(&self) -> Vec<u64> {
        self.beats()
    }
}

/// Allows any source address (IPV6_FREEBIND, which nix does not know).
fn set_freebind(socket: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: `on` is valid for reads of its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_IPV6,
            libc::IPV6_FREEBIND,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams that the kernel dropped for want of room in the socket's buffer.
fn dropped(socket: &OwnedFd) -> io::Result<u64> {
    const SK_MEMINFO_DROPS: usize = 8; // index into the array, linux/sock_diag.h
    let mut info = [0u32; SK_MEMINFO_DROPS + 1];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: `info` is valid for writes of the length that the kernel is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(info[SK_MEMINFO_DROPS].into()) } else { Err(io::Error::last_os_error()) }
}
