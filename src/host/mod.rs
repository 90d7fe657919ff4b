//! THIS MACHINE: its hardware, the processors that its cards interrupt, and what its processors
//! did, read from /proc, /sys and drivers. Also the limits on a server's threads ([`sandbox`]), and
//! settings that a server changes and restores (`settings`). Reading changes
//! nothing but the reading thread's view of /sys.

#[cfg(feature = "lab")]
pub mod identity;
mod interrupts;
mod ipv6;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod sandbox;
pub mod secret;
pub(crate) mod settings;
pub mod time;

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::net::ethtool;
use crate::net::netlink::Link;
use crate::net::quirks::{self, Act};

pub(crate) use crate::net::file;
#[doc(hidden)]
pub use interrupts::Nearness;
pub(crate) use ipv6::has_ipv6;

#[doc(hidden)]
pub use crate::events::{Environment, Napi, Nic};

impl Nic {
    /// Where the kernel does the receive work of this interface, in words.
    #[must_use]
    pub fn receive_work(&self) -> String {
        // --coalesce and --busy-poll set both (settings.rs).
        if let (Some(1..), Some(time @ 1..)) =
            (self.napi.defer_hard_irqs, self.napi.gro_flush_timeout_ns)
        {
            return format!("every {} µs, or when a socket polls", time / 1000);
        }
        let by_sender = quirks::of_driver(&self.driver).find(Act::BlameSender);
        match (self.napi.threaded, by_sender) {
            (Some(true), _) => "in a kernel thread".to_owned(),
            (Some(false), Some(quirk)) => quirk.why,
            (Some(false), None) => "in softirqs".to_owned(),
            (None, _) => "in an unknown place".to_owned(),
        }
    }
}

impl Environment {
    /// The environment of this process and of the calling thread, which uses `link` in its
    /// namespace.
    #[must_use]
    pub fn of(link: &Link) -> Self {
        let cores = allowed();
        let governed = cores.first().copied();
        let seen = with_own_sys(|| (nic(link), governed.and_then(governor)));
        let (nic, governor) = seen.unwrap_or_default();
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            sixhop: env!("CARGO_PKG_VERSION").to_owned(),
            revision: env!("SIXHOP_REVISION").to_owned(),
            guest: guest(),
            command: command(),
            kernel: file("/proc/sys/kernel/osrelease").unwrap_or_default(),
            cpu: processor(&info),
            // All processors of the machine: the thread or the process may be pinned to fewer.
            processors: info.lines().filter(|line| line.starts_with("processor")).count(),
            cores,
            governor,
            nic,
        }
    }
}

/// The directory of `link` in /sys; `None` if /sys is not mounted or shows another namespace.
pub(crate) fn directory(link: &Link) -> Option<PathBuf> {
    shows(link).then(|| Path::new("/sys/class/net").join(&link.name))
}

fn command() -> Vec<String> {
    let mut words: Vec<_> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(program) = words.first_mut() {
        // Results are published, and the program's directory is private.
        *program = program.rsplit('/').next().unwrap_or_default().to_owned();
    }
    words
}

/// The processors that the calling thread may use.
pub(crate) fn allowed() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

/// Call this in [`with_own_sys`].
pub(crate) fn nic(link: &Link) -> Nic {
    let name = &link.name;
    let card = ethtool::card(name).unwrap_or_default();
    let directory = directory(link);
    let setting = |path: &str| file(directory.as_ref()?.join(path));
    let id = |path: &str| setting(path).map(|id| id.trim_start_matches("0x").to_owned());
    Nic {
        interface: name.clone(),
        driver: card.driver,
        device: id("device/vendor")
            .zip(id("device/device"))
            .map(|(vendor, device)| format!("{vendor}:{device}")),
        bus: card.bus,
        firmware: card.firmware,
        speed_mbps: ethtool::speed(name),
        mtu: link.mtu,
        queues: ethtool::queues(name).unwrap_or(0),
        rings: ethtool::card_rings(name),
        offloads: ethtool::offloads(name)
            .unwrap_or_default()
            .into_iter()
            .filter_map(|offload| offload.on.then_some(offload.name))
            .collect(),
        napi: Napi {
            threaded: setting("threaded").map(|value| value != "0"),
            gro_flush_timeout_ns: setting("gro_flush_timeout").and_then(|value| value.parse().ok()),
            defer_hard_irqs: setting("napi_defer_hard_irqs").and_then(|value| value.parse().ok()),
        },
    }
}

fn governor(core: usize) -> Option<String> {
    file(format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor"))
}

/// The processor's name; empty if the kernel does not report it.
fn processor(info: &str) -> String {
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(String::new(), |(_, name)| name.trim().to_owned())
}

/// A kernel parameter of the lab's guests, by which every process in a guest can tell where it
/// runs.
pub(crate) const GUEST: &str = "sixhop.guest=";

/// The guest's name in results, such as `QEMU-10.0.2-tcg-igb`; `None` outside a guest.
#[doc(hidden)]
#[must_use]
pub fn guest() -> Option<String> {
    let line = fs::read_to_string("/proc/cmdline").ok()?;
    line.split_ascii_whitespace().find_map(|word| Some(word.strip_prefix(GUEST)?.to_owned()))
}

/// Runs `f` on a separate thread whose /sys shows the interfaces of the calling thread's network
/// namespace. If that cannot be mounted, /sys may show another namespace, so `f` must check with
/// [`shows`]. `None` if `f` panics.
pub(crate) fn with_own_sys<T: Send>(f: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let _ = mount_own_sys();
            f()
        });
        inside.join().ok()
    })
}

/// Whether this machine can spare `bytes` of memory for `what`. If unknown, the caller may try.
#[cfg(any(feature = "cli", test))]
pub(crate) fn has_memory(bytes: u64, what: impl Display) -> Result<()> {
    lacks_memory(bytes, memory_to_spare(), what).map_or(Ok(()), |why| Err(anyhow::anyhow!(why)))
}

/// The error if `spare` bytes are too few for `what`, which needs `bytes`.
pub(crate) fn lacks_memory(bytes: u64, spare: Option<u64>, what: impl Display) -> Option<String> {
    const MIB: u64 = 1 << 20;
    let spare = spare.filter(|spare| bytes > *spare)?;
    Some(format!(
        "{what} need {} MiB of memory, but this machine can spare only {} MiB: use fewer",
        bytes.div_ceil(MIB),
        spare / MIB
    ))
}

/// Bytes of memory that this machine can spare; `None` if unknown.
pub(crate) fn memory_to_spare() -> Option<u64> {
    spare_memory(&fs::read_to_string("/proc/meminfo").unwrap_or_default())
}

/// Bytes available without killing another program, from /proc/meminfo.
fn spare_memory(info: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    Some((field("MemAvailable:")? + field("SwapFree:").unwrap_or(0)) << 10)
}

/// Whether a file system is mounted at `path`, a directory such as /sys or /proc: an empty one
/// means no.
pub(crate) fn is_mounted(path: &str) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether /sys shows this `link`, not a namesake in another namespace.
pub(crate) fn shows(link: &Link) -> bool {
    let directory = Path::new("/sys/class/net").join(&link.name);
    let mac = link.mac.map(|byte| format!("{byte:02x}")).join(":");
    file(directory.join("ifindex")).is_some_and(|index| index == link.index.to_string())
        // An interface without an Ethernet address has an empty file.
        && file(directory.join("address"))
            .is_some_and(|address| address == mac || address.is_empty())
}

/// Mounts a /sys that shows the interfaces of the calling thread's network namespace, for that
/// thread and the processes that it starts.
pub(crate) fn mount_own_sys() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // Slave mounts receive unmounts, so a namespace removed outside does not stay alive here.
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>)
}

/// Time used on some processors since boot, in ticks (usually 10 ms).
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// The current counts of `cores`, added up.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn of(cores: &[usize]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self::parse(&stat, cores))
    }

    fn parse(stat: &str, cores: &[usize]) -> Self {
        let mut sum = Self::default();
        for line in stat.lines() {
            let mut fields = line.split_ascii_whitespace();
            let core = fields.next().and_then(|name| name.strip_prefix("cpu")?.parse().ok());
            if !core.is_some_and(|core| cores.contains(&core)) {
                continue;
            }
            // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal. User time
            // includes guest time. Stolen time was neither used here nor idle, so it is left out.
            let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
            let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
            let busy = at(0) + at(1) + at(2) + at(5) + at(6);
            sum.busy += busy;
            sum.all += busy + at(3) + at(4);
        }
        sum
    }

    /// The busy share of the time since `before`, 0 to 1; `None` if no time has passed.
    pub fn busy_since(self, before: Self) -> Option<f64> {
        let all = self.all.saturating_sub(before.all);
        (all > 0).then(|| self.busy.saturating_sub(before.busy) as f64 / all as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_says_what_it_is_of() {
        let loopback = crate::net::netlink::link("lo").unwrap();
        let environment = Environment::of(&loopback);
        assert_eq!(environment.nic.interface, "lo");
        assert!(!environment.kernel.is_empty() && !environment.cores.is_empty());
        assert!(environment.processors >= environment.cores.len());
        let pinned = thread::spawn(move || {
            let last = core_affinity::get_core_ids().unwrap().pop().unwrap();
            core_affinity::set_for_current(last);
            (Environment::of(&loopback), last.id)
        });
        let (pinned, last) = pinned.join().unwrap();
        assert_eq!((pinned.processors, pinned.cores), (environment.processors, vec![last]));
        assert_eq!(environment.command.len(), std::env::args_os().count());
        assert_eq!(processor("flags\t: x\nmodel name\t: A B\nmodel name\t: C\n"), "A B");
        let text = serde_json::to_string(&environment).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&text).unwrap(), environment);
    }

    #[test]
    fn memory_to_spare_is_what_is_available_and_what_can_be_swapped() {
        let info =
            "MemTotal: 9 kB\nMemAvailable:    2048 kB\nSwapTotal: 4 kB\nSwapFree:   1024 kB\n";
        assert_eq!((spare_memory(info), spare_memory("")), (Some(3 << 20), None));
        assert!(has_memory(1, "one").is_ok());
        let error = has_memory(1 << 60, "2 addresses").unwrap_err().to_string();
        assert!(
            error.starts_with(
                "2 addresses need 1099511627776 MiB of memory, but this machine can spare "
            ),
            "{error}"
        );
    }

    #[test]
    fn only_the_named_processors_count_and_stolen_time_does_not() {
        let stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 10 0 20 60 10 0 0 500 0 0\ncpu1 5 0 0 95 0 0 0 \
                    0 0 0\nintr 1 2\n";
        let zero = Ticks::default();
        assert_eq!(Ticks::parse(stat, &[0]).busy_since(zero), Some(0.3));
        assert_eq!(Ticks::parse(stat, &[0, 1]).busy_since(zero), Some(0.175));
        assert_eq!(Ticks::parse(stat, &[7]).busy_since(zero), None);
    }
}
