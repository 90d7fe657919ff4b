//! WHAT EACH THREAD OF A SERVER MAY DO once it answers: capabilities and system calls, by its role.
//!
//! ```text
//!   start     every capability that the mode takes, every system call
//!      │  rings armed, addresses live, program attached
//!      ▼
//!   main ─ CAP_NET_ADMIN where there is something to take back
//!     │    reads counters, takes back at the end
//!     ├─ engine ─ none: starts workers, waits for them
//!     │    └─ worker: ring, socket, uring, packet ─ none: the system calls of its loop, no others
//!     ├─ binding ─ CAP_NET_ADMIN: changes addresses while others answer
//!     └─ metrics, input ─ none
//! ```
//!
//! Capabilities are a thread's own in Linux, and a thread never has more than the one that started
//! it: one that has to keep some is started by the main thread, not by the engine's. Filters add up
//! the same way, so what a role may call its ancestors may call as well. No thread gains privileges
//! by starting a program (no_new_privs).
//!
//! A call that is not on the list is not made: the thread says on standard error which one it was,
//! and the process ends with status 1. What is left behind then is what SIGKILL leaves, and the
//! next start puts it right.
//!
//! To add a role: a variant, its name, its calls, and the capabilities that it keeps.
//!
//! `unsafe` is the handler of the signal that a refused call becomes.

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
    /// The same where addresses are taken back by other programs (ip, ifconfig), which run under
    /// its filter.
    Commander,
    /// Starts an engine's workers and waits for them.
    Engine,
    /// A worker on the rings of AF_XDP.
    Ring,
    /// A worker, or the paper's listener, on a UDP socket.
    Socket,
    /// A worker on an io_uring.
    Uring,
    /// A worker on packet sockets.
    Packet,
    /// Keeps the steering program told of the kernel's own addresses.
    Addresses,
    /// Makes addresses live and takes them back while others answer: bpf(2) and netlink.
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

/// What the standard library and the allocator need on any thread, to pin it, to say why it panics,
/// and to end it.
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

/// To wait for descriptors.
#[cfg(target_arch = "x86_64")]
const POLL: &[Call] = calls![SYS_poll, SYS_ppoll];
#[cfg(not(target_arch = "x86_64"))]
const POLL: &[Call] = calls![SYS_ppoll];

/// What no thread but the main one may do, and what is refused rather than the end of the process:
/// glibc's allocator looks into /proc/sys/vm/overcommit_memory when it first gives memory back, and
/// into /sys for the number of processors, and does without.
#[cfg(target_arch = "x86_64")]
const OPEN: &[Call] = calls![SYS_open, SYS_openat];
#[cfg(not(target_arch = "x86_64"))]
const OPEN: &[Call] = calls![SYS_openat];

/// To start a thread, and for that to enter its own role.
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
/// bpf(2) on maps and programs that are loaded, and netlink.
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

/// To take back: the guard when it has ended, notes under /run/sixhop, settings in /proc/sys and
/// /sys, requests to drivers, words to the service manager.
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

/// To start other programs, and what ip(8) and ifconfig(8) do themselves.
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

/// What a server needs besides before it answers: for the unit file, whose filter holds from the
/// start. Without mount and unshare it sees /sys as it is, which in the namespace of the machine is
/// right.
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
    /// All there are.
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

    /// In one word.
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

    /// The capabilities that it keeps, where it has them.
    fn capabilities(self) -> CapsHashSet {
        let mut kept = CapsHashSet::new();
        if matches!(self, Self::Main | Self::Commander | Self::Binding) {
            kept.insert(Capability::CAP_NET_ADMIN);
        }
        // Before Linux 5.19 a process that is not to load programs may not read the maps of one
        // either.
        let reads_maps =
            matches!(self, Self::Main | Self::Commander | Self::Binding | Self::Addresses);
        let is_old = || {
            // Not from /proc: whoever enters may open nothing already.
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

/// What the threads that an engine starts may call.
fn workers() -> Vec<Call> {
    [POLL, RING, SOCKET, URING, PACKET, BINDING].concat()
}

/// What any thread may call, and `besides`.
fn everything(besides: &[&[Call]]) -> Vec<Call> {
    let all: &[&[Call]] = &[RUNTIME, SPAWN, &workers(), METRICS, INPUT, TAKE_BACK, TAKE_BACK_OLD];
    unique(&[all, besides].concat())
}

fn unique(parts: &[&[Call]]) -> Vec<Call> {
    parts.concat().into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

/// All system calls that a server makes from its start to its end, by name in order, with their
/// numbers: the unit file's filter.
#[doc(hidden)]
#[must_use]
pub fn unit_calls() -> Vec<(&'static str, libc::c_long)> {
    let calls = everything(&[COMMANDS, COMMANDS_OLD, START]);
    calls
        .into_iter()
        .map(|(name, number)| (name.strip_prefix("SYS_").unwrap_or(name), number))
        .collect()
}

/// The capabilities that a server needs at its start, whatever its engine: the unit file's.
#[doc(hidden)]
pub const UNIT_CAPABILITIES: [&str; 4] = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"];

/// The kinds of sockets that a server opens, but for AF_PACKET of the engines that have packet
/// sockets: the unit file's.
#[doc(hidden)]
pub const UNIT_FAMILIES: [&str; 5] = ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_XDP"];

/// As 6.1.0-rc3 is (6, 1).
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
    /// One that holds, or does nothing.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on }
    }

    /// Whether it holds.
    #[must_use]
    pub fn is_on(self) -> bool {
        self.on
    }

    /// Takes from the calling thread, for good, what `role` does not need.
    ///
    /// # Errors
    /// When the kernel does not do it.
    #[doc(hidden)]
    pub fn enter(self, role: Role) -> Result<()> {
        self.enter_keeping(role, &role.capabilities())
    }

    /// The same for a main thread, `takes_back` whether there is something that takes CAP_NET_ADMIN
    /// at the end. Its memory is in no core dump from now on.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    #[doc(hidden)]
    pub fn enter_main(self, role: Role, takes_back: bool) -> Result<()> {
        if !self.on {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot rule out core dumps")?;
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

/// Leaves the calling thread `kept`, of what it has.
fn restrict(role: Role, kept: &CapsHashSet) -> Result<()> {
    let cannot = "cannot drop capabilities";
    let permitted = caps::read(None, CapSet::Permitted).context(cannot)?;
    let kept: CapsHashSet = permitted.intersection(kept).copied().collect();
    caps::clear(None, CapSet::Ambient).context(cannot)?;
    // What other programs are started with, where this is not root.
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

/// Refuses [`OPEN`]: of two filters the stricter answer counts.
fn opens_nothing() -> Result<BpfProgram> {
    let rules: BTreeMap<_, _> = OPEN.iter().map(|(_, number)| (*number, vec![])).collect();
    let architecture = std::env::consts::ARCH.try_into().map_err(|error| anyhow!("{error}"))?;
    let refuse = SeccompAction::Errno(libc::EACCES as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture)?;
    Ok(filter.try_into()?)
}

fn filter(role: Role) -> Result<BpfProgram> {
    // Started programs map their libraries.
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

/// Memory without PROT_EXEC, the third argument of mmap and of mprotect.
fn never_executable() -> Result<SeccompRule> {
    let execute = SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64);
    Ok(SeccompRule::new(vec![SeccompCondition::new(2, SeccompCmpArgLen::Dword, execute, 0)?])?)
}

/// Has a refused call end the process with one line that names it.
fn explain_violations() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut done = Ok(());
    ONCE.call_once(|| {
        let action =
            SigAction::new(SigHandler::SigAction(refused), SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler only makes system calls that are safe in one (signal-safety(7)), and
        // does not return.
        done = unsafe { sigaction(Signal::SIGSYS, &action) }
            .map(drop)
            .context("no handler for SIGSYS");
    });
    done
}

/// siginfo_t of SIGSYS (sigaction(2)), as far as it is needed: libc does not show its fields.
#[repr(C)]
struct Violation {
    _signal: libc::c_int,
    _errno: libc::c_int,
    _code: libc::c_int,
    _address: *const libc::c_void,
    call: libc::c_int,
}

extern "C" fn refused(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a siginfo_t, which is larger than this, and of SIGSYS it is laid out
    // so.
    let call = unsafe { (*info.cast::<Violation>()).call };
    let role = ROLE.get().map_or("a", Role::name);
    let mut text = [0; 256];
    let room = text.len();
    let mut rest = &mut text[..];
    // Into memory of its own: an allocator may be what was interrupted.
    let _ = writeln!(
        rest,
        "sixhop: the sandbox ends this process: its {role} thread made system call {call}, which \
         is not on its list; a server without the sandbox may make it"
    );
    let length = room - rest.len();
    // SAFETY: the text is valid for reads of its length.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), length) };
    // SAFETY: ends the process.
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
