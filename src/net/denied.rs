//! WHY THE KERNEL REFUSED: explains EPERM and EACCES from what the calling thread may do.
//!
//! The kernel returns the same error for a missing capability, a seccomp filter, a security module
//! and a user namespace. Blaming a capability that the thread has would mislead the reader.

use std::cell::Cell;
use std::fmt::Write;
use std::fs;

use anyhow::anyhow;
use nix::errno::Errno;

use super::file;

/// The capabilities that matter here, their numbers (linux/capability.h), and what needs them.
pub const CAPABILITIES: [(&str, u32, &str); 6] = [
    ("CAP_NET_ADMIN", 12, "serve and load attach their program, bind adds addresses"),
    ("CAP_NET_RAW", 13, "serve and load open AF_XDP sockets"),
    ("CAP_BPF", 39, "serve and load load their program"),
    ("CAP_PERFMON", 38, "serve and load load their program"),
    ("CAP_SYS_ADMIN", 21, "lab creates and enters namespaces"),
    ("CAP_IPC_LOCK", 14, "serve and load exceed the locked-memory limit"),
];

thread_local! {
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Called by a thread when it enters its sandbox: opening a file there would kill the process.
pub(crate) fn confine() {
    CONFINED.set(true);
}

/// What could make the kernel refuse a call of this thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Standing {
    /// The effective capabilities, as bits; `None` if unknown.
    effective: Option<u64>,
    /// Whether the thread has a seccomp filter.
    filtered: bool,
    /// Whether the capabilities hold only in a user namespace.
    in_user_namespace: bool,
    /// The kernel's lockdown mode, if lockdown is on.
    lockdown: Option<String>,
    /// The security modules that can refuse a call despite all capabilities.
    modules: Vec<String>,
    /// The value of kernel.io_uring_disabled.
    io_uring_disabled: Option<String>,
}

/// Security modules that check only capabilities, or only limits that a thread set itself.
const HARMLESS: [&str; 6] = ["lockdown", "capability", "landlock", "yama", "ima", "evm"];

/// Explains why the kernel refused `doing`, and what to do about it. `doing` requires the
/// capabilities in `needs`; `call` names the system call.
pub(crate) fn explain(doing: &str, needs: &[&str], call: &str) -> String {
    Standing::of_this_thread().explain(doing, needs, call)
}

/// Explains why io_uring is not available.
pub(crate) fn explain_io_uring() -> String {
    Standing::of_this_thread().explain_io_uring()
}

/// Explains why a packet socket could not be opened.
pub(crate) fn no_packet_socket(error: Errno) -> anyhow::Error {
    match error {
        Errno::EPERM | Errno::EACCES => {
            anyhow!(
                "cannot open a packet socket: {}",
                explain("it", &["CAP_NET_RAW"], "socket(AF_PACKET)")
            )
        }
        Errno::EAFNOSUPPORT => {
            anyhow!("cannot open a packet socket: this kernel is built without CONFIG_PACKET")
        }
        _ => anyhow!("cannot open a packet socket: {}", error.desc()),
    }
}

impl Standing {
    fn of_this_thread() -> Self {
        // A sandboxed thread cannot open files, and has dropped capabilities, so the facts would
        // mislead.
        if CONFINED.get() {
            return Self::default();
        }
        let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let user_ids = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let lockdown = file("/sys/kernel/security/lockdown").unwrap_or_default();
        let modules = file("/sys/kernel/security/lsm").unwrap_or_default();
        Self {
            lockdown: mode(&lockdown).filter(|mode| *mode != "none").map(str::to_owned),
            modules: modules
                .split(',')
                .filter(|name| !name.is_empty() && !HARMLESS.contains(name))
                .map(str::to_owned)
                .collect(),
            io_uring_disabled: file("/proc/sys/kernel/io_uring_disabled"),
            ..Self::parse(&status, &user_ids)
        }
    }

    /// From /proc/self/status and /proc/self/uid_map.
    fn parse(status: &str, user_ids: &str) -> Self {
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Self {
            effective: field("CapEff:").and_then(|bits| u64::from_str_radix(bits, 16).ok()),
            filtered: field("Seccomp:") == Some("2"),
            // Outside any user namespace, the whole range of IDs maps to itself.
            in_user_namespace: !user_ids.is_empty()
                && !user_ids.split_ascii_whitespace().eq(["0", "0", "4294967295"]),
            ..Self::default()
        }
    }

    /// Whether `effective` has that capability. CAP_BPF and CAP_PERFMON were split off
    /// CAP_SYS_ADMIN, which still includes them.
    fn has(effective: u64, capability: &str) -> bool {
        let held = |name: &str| {
            let number =
                CAPABILITIES.iter().find(|(known, ..)| *known == name).map(|(_, number, _)| number);
            number.is_some_and(|number| effective & 1 << number != 0)
        };
        held(capability) || matches!(capability, "CAP_BPF" | "CAP_PERFMON") && held("CAP_SYS_ADMIN")
    }

    fn explain(&self, doing: &str, needs: &[&str], call: &str) -> String {
        let all = listed(needs);
        let effective = match (self.effective, needs) {
            (Some(effective), _) => effective,
            (None, []) => 0,
            (None, _) => {
                return format!("{doing} needs {all}: run as root, or as sixhop probe says");
            }
        };
        let missing: Vec<_> =
            needs.iter().copied().filter(|name| !Self::has(effective, name)).collect();
        if !missing.is_empty() {
            let lacks = if missing.len() == needs.len() { String::new() } else { listed(&missing) };
            let lacks =
                if lacks.is_empty() { lacks } else { format!(", and this process lacks {lacks}") };
            return format!("{doing} needs {all}{lacks}: run as root, or as sixhop probe says");
        }
        let mut words = match needs {
            [] => format!("{doing} is denied: "),
            _ => format!("{doing} is denied, although this process has {all}: "),
        };
        let mut suspects = Vec::new();
        if self.in_user_namespace {
            suspects.push(
                "it has them only in its user namespace (/proc/self/uid_map), as in a rootless \
                 container: run it outside"
                    .to_owned(),
            );
        }
        if self.filtered {
            suspects.push(format!(
                "a seccomp filter is on it (Seccomp: 2 in /proc/self/status), and the default one \
                 of container runtimes denies \
                 {call}: allow that, as with docker run --security-opt seccomp=FILE"
            ));
        }
        if let Some(mode) = self.lockdown.as_ref().filter(|_| call == BPF) {
            suspects.push(format!(
                "the kernel is in lockdown, mode {mode} (/sys/kernel/security/lockdown)"
            ));
        }
        if suspects.is_empty() {
            let modules = match &self.modules[..] {
                [] => "a security module or a policy of this machine".to_owned(),
                modules => format!(
                    "the security module {} (/sys/kernel/security/lsm)",
                    modules.join(" or ")
                ),
            };
            suspects.push(format!(
                "{modules} forbids {call}; dmesg or the audit log may say which rule"
            ));
        }
        let _ = write!(words, "{}", suspects.join("; or "));
        words
    }

    fn explain_io_uring(&self) -> String {
        match self.io_uring_disabled.as_deref() {
            Some(disabled @ ("1" | "2")) => format!(
                "io_uring is forbidden here, kernel.io_uring_disabled is {disabled}: allow it with \
                 'sysctl kernel.io_uring_disabled=0'"
            ),
            Some(_) if self.filtered => {
                "io_uring is forbidden by a seccomp filter on this process (Seccomp: 2 in \
                 /proc/self/status), as containers have: allow it there"
                    .to_owned()
            }
            _ => "io_uring is forbidden here: allow it with 'sysctl \
                  kernel.io_uring_disabled=0', or in the container's seccomp profile"
                .to_owned(),
        }
    }
}

/// The system call that loads and attaches programs, as [`explain`] expects it.
pub(crate) const BPF: &str = "bpf(2)";

/// The current mode: the one in brackets.
fn mode(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(mode, _)| mode)
}

fn listed(names: &[&str]) -> String {
    match names {
        [] => "no capability".to_owned(),
        [one] => (*one).to_owned(),
        [others @ .., last] => format!("{} and {last}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "0 0 4294967295\n";
    const LOAD: [&str; 3] = ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN"];

    fn said(status: &str, user_ids: &str) -> String {
        Standing::parse(status, user_ids).explain("loading it", &LOAD, BPF)
    }

    #[test]
    fn a_capability_is_named_only_where_it_is_missing() {
        // CAP_BPF and CAP_NET_ADMIN
        let few = said("CapEff:\t0000008000001000\nSeccomp:\t2\n", ROOT);
        assert_eq!(
            few,
            "loading it needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and this process lacks \
             CAP_PERFMON: run as root, or as sixhop \
             probe says"
        );
        assert!(
            said("CapEff:\t0\n", ROOT)
                .contains("needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN: run as root")
        );
        // CAP_SYS_ADMIN includes two of them.
        let admin = said("CapEff:\t0000000000201000\nSeccomp:\t0\n", ROOT);
        assert!(
            admin.contains("is denied, although this process has") && !admin.contains("seccomp"),
            "{admin}"
        );
        // Without /proc the capabilities are unknown.
        assert!(said("", "").contains("run as root"));
    }

    #[test]
    fn what_else_denies_is_named() {
        let all = "CapEff:\t000001ffffffffff\nSeccomp:\t";
        let filtered = said(&format!("{all}2\n"), ROOT);
        assert!(
            filtered.contains("seccomp filter") && !filtered.contains("user namespace"),
            "{filtered}"
        );
        let rootless = said(&format!("{all}0\n"), "0 100000 65536\n");
        assert!(rootless.contains("user namespace") && !rootless.contains("seccomp"), "{rootless}");
        let both = said(&format!("{all}2\n"), "0 100000 65536\n");
        assert!(
            both.contains("user namespace") && both.contains("; or a seccomp filter"),
            "{both}"
        );
        let standing = Standing::parse(&format!("{all}0\n"), ROOT);
        let locked = Standing { lockdown: Some("confidentiality".to_owned()), ..standing.clone() };
        assert!(locked.explain("it", &LOAD, BPF).contains("lockdown, mode confidentiality"));
        assert!(!locked.explain("it", &["CAP_NET_RAW"], "bind(2)").contains("lockdown"));
        let modules = Standing { modules: vec!["selinux".to_owned()], ..standing };
        assert!(modules.explain("it", &LOAD, BPF).contains("the security module selinux"));
        assert_eq!((mode("none [integrity] confidentiality"), mode("")), (Some("integrity"), None));
    }

    #[test]
    fn io_uring_is_switched_off_or_filtered() {
        let with = |disabled: Option<&str>, filtered| {
            let disabled = disabled.map(str::to_owned);
            Standing { io_uring_disabled: disabled, filtered, ..Standing::default() }
                .explain_io_uring()
        };
        assert!(with(Some("2"), true).contains("kernel.io_uring_disabled is 2"));
        assert!(with(Some("0"), true).contains("by a seccomp filter"));
        let unknown = with(Some("0"), false);
        assert!(unknown.contains("io_uring_disabled") && unknown.contains("seccomp"), "{unknown}");
    }
}
