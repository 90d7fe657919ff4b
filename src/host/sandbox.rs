//! SANDBOX: the capabilities and system calls that each thread of a server keeps once it answers,
//! by its role.
//!
//! ```text
//!   start     every capability that the mode needs, every system call
//!      │  rings armed, addresses live, program attached
//!      ▼
//!   main ─ CAP_NET_ADMIN if there is something to take back
//!     │    reads counters, takes back at the end
//!     ├─ engine ─ none: starts workers, waits for them
//!     │    └─ worker: ring, socket, uring, packet ─ none: only the system calls of its loop
//!     ├─ binding ─ CAP_NET_ADMIN: changes addresses while others answer
//!     └─ metrics, input ─ none
//! ```
//!
//! In Linux each thread has its own capabilities, and never more than the thread that started it.
//! So the main thread, not the engine's, starts threads that must keep some. Filters add up
//! likewise: the ancestors of a role may make all its calls. No thread gains privileges by
//! executing a program (no_new_privs).
//!
//! A call outside the list is not executed: the thread names the call on standard error, and the
//! process exits with status 1. It leaves behind what SIGKILL would, and the next start cleans up.
//!
//! To add a role, add a variant, its name, its calls, and the capabilities that it keeps.
//!
//! The `unsafe` code is the handler for SIGSYS, the signal that a forbidden call raises.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::utsname::uname;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::net::denied;

/// What a thread is for.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The main thread: reads counters, prints, and takes back addresses and settings at the end.
    Main,
    /// The main thread if other programs (ip, ifconfig) take back addresses: they run under its
    /// filter.
    Commander,
    /// Starts an engine's workers and waits for them.
    Engine,
    /// A worker on AF_XDP rings.
    Ring,
    /// A worker, or the paper's listener, on a UDP socket.
    Socket,
    /// A worker on an io_uring.
    Uring,
    /// A worker on packet sockets.
    Packet,
    /// Tells the steering program about changes of the kernel's own addresses.
    Addresses,
    /// Binds and unbinds addresses while others answer: bpf(2) and netlink.
    Binding,
    /// Answers a scraper.
    Metrics,
    /// Waits for the end of standard input.
    Input,
}

/// A system call: its name in the libc crate, and its number.
type Call = (&'static str, libc::c_long);

macro_rules! calls {
    ($($call:ident),* $(,)?) => { &[$((stringify!($call), libc::$call)),*] };
}

/// What the standard library and the allocator need on any thread: to pin it, report a panic, and
/// end it.
const RUNTIME: &[Call] = calls![
    SYS_brk,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_close,
    SYS_exit,
    SYS_exit_group,
    SYS_fcntl,
    SYS_futex,
    SYS_getpid,
    SYS_getrandom,
    SYS_gettid,
    SYS_madvise,
    SYS_mmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_munmap,
    SYS_nanosleep,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_setaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    SYS_tgkill,
    SYS_write,
    SYS_writev,
];

/// To wait for file descriptors.
#[cfg(target_arch = "x86_64")]
const POLL: &[Call] = calls![SYS_poll, SYS_ppoll];
#[cfg(not(target_arch = "x86_64"))]
const POLL: &[Call] = calls![SYS_ppoll];

/// Calls that only the main thread may make. Elsewhere they fail instead of ending the process:
/// glibc's allocator opens /proc/sys/vm/overcommit_memory when it first returns memory, and /sys
/// for the number of processors, and copes without them.
#[cfg(target_arch = "x86_64")]
const OPEN: &[Call] = calls![SYS_open, SYS_openat];
#[cfg(not(target_arch = "x86_64"))]
const OPEN: &[Call] = calls![SYS_openat];

/// To start a thread, and for that thread to enter its own role.
const SPAWN: &[Call] =
    calls![SYS_capget, SYS_capset, SYS_clone, SYS_clone3, SYS_prctl, SYS_seccomp, SYS_uname];

const RING: &[Call] = calls![SYS_recvfrom, SYS_sendto];
const SOCKET: &[Call] = calls![
    SYS_mq_timedreceive,
    SYS_mq_timedsend,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_sendmsg,
];
const URING: &[Call] = calls![SYS_io_uring_enter, SYS_io_uring_register];
const PACKET: &[Call] = calls![SYS_getsockopt, SYS_recvmmsg, SYS_sendmmsg, SYS_sendto];
/// bpf(2) on loaded maps and programs, and netlink.
const BINDING: &[Call] = calls![
    SYS_bind,
    SYS_bpf,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_socket,
];
const METRICS: &[Call] =
    calls![SYS_accept4, SYS_recvfrom, SYS_sendto, SYS_setsockopt, SYS_shutdown];
const INPUT: &[Call] = calls![SYS_read];

/// To take things back: the guard's exit, notes under /run/sixhop, settings in /proc/sys and /sys,
/// driver ioctls, messages to the service manager.
const TAKE_BACK: &[Call] = calls![
    SYS_connect,
    SYS_flock,
    SYS_fstat,
    SYS_ftruncate,
    SYS_geteuid,
    SYS_getuid,
    SYS_ioctl,
    SYS_lseek,
    SYS_mkdirat,
    SYS_newfstatat,
    SYS_openat,
    SYS_pread64,
    SYS_prlimit64,
    SYS_pwrite64,
    SYS_read,
    SYS_readlinkat,
    SYS_statx,
    SYS_unlinkat,
    SYS_wait4,
    SYS_waitid,
];
#[cfg(target_arch = "x86_64")]
const TAKE_BACK_OLD: &[Call] = calls![SYS_mkdir, SYS_open, SYS_readlink, SYS_stat, SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const TAKE_BACK_OLD: &[Call] = &[];

/// To start other programs, and what ip(8) and ifconfig(8) themselves need.
const COMMANDS: &[Call] = calls![
    SYS_chdir,
    SYS_close_range,
    SYS_dup3,
    SYS_execve,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getcwd,
    SYS_getegid,
    SYS_getgid,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    SYS_pipe2,
    SYS_set_tid_address,
    SYS_setpgid,
    SYS_socketpair,
    SYS_sysinfo,
];
#[cfg(target_arch = "x86_64")]
const COMMANDS_OLD: &[Call] = calls![SYS_access, SYS_arch_prctl, SYS_dup2, SYS_vfork];
#[cfg(not(target_arch = "x86_64"))]
const COMMANDS_OLD: &[Call] = &[];

/// What a server also needs before it answers: for the unit file, whose filter holds from the
/// start. Without mount and unshare it sees the /sys that is mounted, which is correct in the
/// machine's own namespace.
const START: &[Call] = calls![
    SYS_getdents64,
    SYS_io_uring_setup,
    SYS_kill,
    SYS_listen,
    SYS_mq_getsetattr,
    SYS_mq_open,
    SYS_mq_unlink,
    SYS_setns,
    SYS_statfs,
    SYS_fstatfs,
    SYS_umask,
    SYS_getppid,
    SYS_eventfd2,
    SYS_memfd_create,
    SYS_epoll_create1,
    SYS_fadvise64,
];

impl Role {
    /// All roles.
    pub const ALL: [Self; 11] = [
        Self::Main,
        Self::Commander,
        Self::Engine,
        Self::Ring,
        Self::Socket,
        Self::Uring,
        Self::Packet,
        Self::Addresses,
        Self::Binding,
        Self::Metrics,
        Self::Input,
    ];

    /// Its name, one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Commander => "commander",
            Self::Engine => "engine",
            Self::Ring => "ring",
            Self::Socket => "socket",
            Self::Uring => "uring",
            Self::Packet => "packet",
            Self::Addresses => "addresses",
            Self::Binding => "binding",
            Self::Metrics => "metrics",
            Self::Input => "input",
        }
    }

    /// The capabilities that it keeps, if it has them.
    fn capabilities(self) -> CapsHashSet {
        let mut kept = CapsHashSet::new();
        if matches!(self, Self::Main | Self::Commander | Self::Binding) {
            kept.insert(Capability::CAP_NET_ADMIN);
        }
        // Before Linux 5.19, reading a program's maps needs the capability to load programs.
        let reads_maps =
            matches!(self, Self::Main | Self::Commander | Self::Binding | Self::Addresses);
        let is_old = || {
            // uname(2), because a thread that enters its role may already be unable to open /proc.
            let system = uname();
            system.is_ok_and(|system| version(&system.release().to_string_lossy()) < (5, 19))
        };
        if reads_maps && is_old() {
            kept.insert(Capability::CAP_BPF);
        }
        kept
    }

    /// The system calls that it may make.
    fn calls(self) -> Vec<Call> {
        let parts: &[&[Call]] = match self {
            Self::Main => return everything(&[]),
            Self::Commander => return everything(&[COMMANDS, COMMANDS_OLD]),
            Self::Engine => return unique(&[RUNTIME, OPEN, SPAWN, &workers()]),
            Self::Ring => &[RUNTIME, OPEN, POLL, RING],
            Self::Socket => &[RUNTIME, OPEN, POLL, SOCKET],
            Self::Uring => &[RUNTIME, OPEN, URING],
            Self::Packet => &[RUNTIME, OPEN, POLL, PACKET],
            Self::Addresses | Self::Binding => &[RUNTIME, OPEN, POLL, BINDING],
            Self::Metrics => &[RUNTIME, OPEN, POLL, METRICS],
            Self::Input => &[RUNTIME, OPEN, INPUT],
        };
        unique(parts)
    }
}

/// The calls of the threads that an engine starts.
fn workers() -> Vec<Call> {
    [POLL, RING, SOCKET, URING, PACKET, BINDING].concat()
}

/// The calls of all threads, and those in `besides`.
fn everything(besides: &[&[Call]]) -> Vec<Call> {
    let all: &[&[Call]] = &[RUNTIME, SPAWN, &workers(), METRICS, INPUT, TAKE_BACK, TAKE_BACK_OLD];
    unique(&[all, besides].concat())
}

fn unique(parts: &[&[Call]]) -> Vec<Call> {
    parts.concat().into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// All system calls of a server from start to end, by name in order, with their numbers: the unit
/// file's filter.
#[doc(hidden)]
#[must_use]
pub fn unit_calls() -> Vec<(&'static str, libc::c_long)> {
    let calls = everything(&[COMMANDS, COMMANDS_OLD, START]);
    calls
        .into_iter()
        .map(|(name, number)| (name.strip_prefix("SYS_").unwrap_or(name), number))
        .collect()
}

/// The capabilities that a server needs at its start with any engine, for the unit file.
#[doc(hidden)]
pub const UNIT_CAPABILITIES: [&str; 4] = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"];

/// The socket families that a server opens, for the unit file. Engines on packet sockets also need
/// AF_PACKET.
#[doc(hidden)]
pub const UNIT_FAMILIES: [&str; 5] = ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_XDP"];

/// For example, 6.1.0-rc3 is (6, 1).
fn version(release: &str) -> (u32, u32) {
    let mut numbers =
        release.split(|other: char| !other.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

thread_local! {
    static ROLE: Cell<Option<Role>> = const { Cell::new(None) };
}

/// A thread keeps more than it needs, since the kernel does not take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {0} thread cannot give up what it does not need")]
pub struct NotConfined(&'static str);

/// Whether threads enter their roles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sandbox {
    on: bool,
}

impl Sandbox {
    /// A sandbox that is on, or one that does nothing.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.on
    }

    /// Permanently takes from the calling thread what `role` does not need.
    ///
    /// # Errors
    /// When the kernel refuses.
    #[doc(hidden)]
    pub fn enter(self, role: Role) -> Result<()> {
        self.enter_keeping(role, &role.capabilities())
    }

    /// The same for a main thread. `takes_back` says whether it must take back something at the end
    /// that needs CAP_NET_ADMIN. Core dumps of this process are disabled from here on.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    #[doc(hidden)]
    pub fn enter_main(self, role: Role, takes_back: bool) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot disable core dumps")?;
        let mut kept = role.capabilities();
        if !takes_back {
            kept.remove(&Capability::CAP_NET_ADMIN);
        }
        self.enter_keeping(role, &kept)
    }

    fn enter_keeping(self, role: Role, kept: &CapsHashSet) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        let enter = || {
            restrict(role, kept)?;
            ROLE.set(Some(role));
            denied::confine();
            explain_violations()?;
            let cannot = "cannot install a seccomp filter";
            if !matches!(role, Role::Main | Role::Commander) {
                seccompiler::apply_filter(&opens_nothing()?).context(cannot)?;
            }
            seccompiler::apply_filter(&filter(role)?).context(cannot)
        };
        enter().context(NotConfined(role.name()))
    }
}

/// Drops all capabilities of the calling thread except those in `kept`.
fn restrict(role: Role, kept: &CapsHashSet) -> Result<()> {
    let cannot = "cannot drop capabilities";
    let permitted = caps::read(None, CapSet::Permitted).context(cannot)?;
    let kept: CapsHashSet = permitted.intersection(kept).copied().collect();
    caps::clear(None, CapSet::Ambient).context(cannot)?;
    // If this is not root, programs it starts get their capabilities from these sets.
    let inherited = if role == Role::Commander { kept.clone() } else { CapsHashSet::new() };
    for (set, capabilities) in
        [(CapSet::Effective, &kept), (CapSet::Permitted, &kept), (CapSet::Inheritable, &inherited)]
    {
        caps::set(None, set, capabilities).context(cannot)?;
    }
    inherited
        .iter()
        .try_for_each(|capability| caps::raise(None, CapSet::Ambient, *capability))
        .context(cannot)
}

/// Makes [`OPEN`] fail: of two filters, the stricter result counts.
fn opens_nothing() -> Result<BpfProgram> {
    let rules: BTreeMap<_, _> = OPEN.iter().map(|(_, number)| (*number, vec![])).collect();
    let architecture = std::env::consts::ARCH.try_into().map_err(|error| anyhow!("{error}"))?;
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?;
    Ok(filter.try_into()?)
}

fn filter(role: Role) -> Result<BpfProgram> {
    // The dynamic loader of a started program maps libraries as executable.
    let executes = role == Role::Commander;
    let rules: BTreeMap<_, _> = role
        .calls()
        .into_iter()
        .map(|(_, number)| {
            let maps = [libc::SYS_mmap, libc::SYS_mprotect].contains(&number);
            Ok((number, if maps && !executes { vec![never_executable()?] } else { vec![] }))
        })
        .collect::<Result<_>>()?;
    let architecture = std::env::consts::ARCH.try_into().map_err(|error| anyhow!("{error}"))?;
    let filter =
        SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, architecture)?;
    Ok(filter.try_into()?)
}

/// Allows only memory without PROT_EXEC, the third argument of mmap and mprotect.
fn never_executable() -> Result<SeccompRule> {
    let execute = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    Ok(SeccompRule::new(vec![SeccompCondition::new(2, SeccompCmpArgLen::Dword, execute, 0)?])?)
}

/// Makes a forbidden call end the process with one line that names it.
fn explain_violations() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut done = Ok(());
    ONCE.call_once(|| {
        let action =
            SigAction::new(SigHandler::SigAction(refused), SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler makes only async-signal-safe system calls (signal-safety(7)), and
        // does not return.
        done =
            unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop).context("cannot handle SIGSYS");
    });
    done
}

/// The start of siginfo_t for SIGSYS (sigaction(2)), whose fields libc does not expose.
#[repr(C)]
struct Violation {
    _signal: libc::c_int,
    _errno: libc::c_int,
    _code: libc::c_int,
    _address: *const libc::c_void,
    call: libc::c_int,
}

extern "C" fn refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, which is larger than this and has this layout for
    // SIGSYS.
    let call = unsafe { (*info.cast::<Violation>()).call };
    let role = ROLE.get().map_or("a", Role::name);
    let mut text = [0; 256];
    let room = text.len();
    let mut rest = &mut text[..];
    // Into a local buffer: the signal may have interrupted the allocator.
    let _ = writeln!(
        rest,
        "sixhop: the sandbox ends this process: its {role} thread made system call {call}, which \
         is not on its list; a server without the sandbox may make it"
    );
    let length = room - rest.len();
    // SAFETY: the text is valid for reads of its length.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), length) };
    // SAFETY: _exit ends the process and touches no memory.
    unsafe { libc::_exit(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_starts_a_thread_may_call_what_that_may_call() {
        let calls = |role: Role| role.calls().into_iter().collect::<BTreeSet<_>>();
        for role in Role::ALL {
            assert!(calls(Role::Commander).is_superset(&calls(role)), "{role:?}");
            if role != Role::Commander {
                assert!(calls(Role::Main).is_superset(&calls(role)), "{role:?}");
            }
        }
        for role in [Role::Ring, Role::Socket, Role::Uring, Role::Packet, Role::Addresses] {
            assert!(calls(Role::Engine).is_superset(&calls(role)), "{role:?}");
            assert!(calls(role).len() < calls(Role::Engine).len(), "{role:?}");
        }
        for forbidden in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_mount, libc::SYS_unshare] {
            assert!(!calls(Role::Main).iter().any(|(_, number)| *number == forbidden));
        }
    }

    #[test]
    fn workers_open_nothing_and_become_nothing() {
        for role in
            [Role::Ring, Role::Socket, Role::Uring, Role::Packet, Role::Metrics, Role::Input]
        {
            assert!(role.capabilities().is_empty(), "{role:?}");
            for forbidden in [
                libc::SYS_execve,
                libc::SYS_socket,
                libc::SYS_bpf,
                libc::SYS_capset,
                libc::SYS_clone,
            ] {
                assert!(!role.calls().iter().any(|(_, number)| *number == forbidden), "{role:?}");
            }
        }
        assert_eq!(
            Role::ALL.map(Role::name).into_iter().collect::<BTreeSet<_>>().len(),
            Role::ALL.len()
        );
    }

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.18.44-fc"), (6, 18));
        assert_eq!(version("5.9"), (5, 9));
        assert_eq!(version(""), (0, 0));
    }
}
