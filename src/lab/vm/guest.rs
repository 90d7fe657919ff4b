//! INSIDE THE GUEST: the first process, which makes a machine of it, a lab of its cards, runs the
//! command and ends the machine.
//!
//! It is process 1 and must not end by itself: whatever goes wrong is said to the host, and then
//! the machine is switched off.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{chroot, getpid, sync};

use super::{MACS, ORDER, Order, PORTS, Said};
use crate::lab::{DEFAULT_NAME, Lab};
use crate::net::ethtool;

/// A driver has found its card long before.
const CARD_TIMEOUT: Duration = Duration::from_secs(20);

/// What process 1 of a guest does.
///
/// # Errors
/// Where it is not process 1. Otherwise it does not return.
pub fn be_init() -> Result<Infallible> {
    ensure!(
        getpid().as_raw() == 1,
        "this is what 'sixhop lab vm' runs in its guest, and of no use outside of it"
    );
    let order = prepare();
    let ended = order
        .and_then(|order| work(&order))
        .unwrap_or_else(|error| Said::Error(format!("{error:#}")));
    if let Err(error) = say(&ended) {
        eprintln!("{ended:?}, and nobody to tell it: {error:#}"); // the console
    }
    sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot switch the machine off")
}

/// Makes the machine's files those of the guest.
fn prepare() -> Result<Order> {
    for (kind, place) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/upper")]
    {
        put(kind, place, None)?;
    }
    let order: Order = serde_json::from_slice(&fs::read(ORDER)?)?;
    for module in &order.modules {
        let module = Path::new("/").join(module);
        let file = File::open(&module).with_context(|| format!("no {}", module.display()))?;
        finit_module(file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("the kernel does not take {}", module.display()))?;
    }
    // Nothing of the host changes while the guest runs, as far as it cares: it may remember all
    // that it read.
    share("root", Path::new("/host"), "cache=loose,ro")?;
    fs::create_dir("/upper/files")?;
    fs::create_dir("/upper/work")?;
    put("overlay", "/root", Some("lowerdir=/host,upperdir=/upper/files,workdir=/upper/work"))?;
    for (kind, place) in [
        ("devtmpfs", "/root/dev"),
        ("proc", "/root/proc"),
        ("sysfs", "/root/sys"),
        ("tmpfs", "/root/run"),
        ("mqueue", "/root/dev/mqueue"),
        ("tmpfs", "/root/dev/shm"),
        ("tracefs", "/root/sys/kernel/tracing"),
    ] {
        fs::create_dir_all(place).ok();
        put(kind, place, None)?;
    }
    if let Some(out) = &order.out {
        let place = Path::new("/root").join(out.strip_prefix("/").unwrap_or(out));
        fs::create_dir_all(&place)?;
        share("out", &place, "cache=none")?;
    }
    std::env::set_current_dir("/root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .context("cannot move the root")?;
    chroot(".").context("cannot change the root")?;
    Ok(order)
}

/// Makes the lab, and runs the command.
fn work(order: &Order) -> Result<Said> {
    let [server, client] = MACS;
    let give_up = Instant::now() + CARD_TIMEOUT;
    let there = |mac| {
        Ok::<_, anyhow::Error>(crate::net::netlink::links()?.iter().any(|link| link.mac == mac))
    };
    while !(there(server)? && there(client)?) {
        ensure!(Instant::now() < give_up, "the kernel has no driver for the cards");
        thread::sleep(Duration::from_millis(10));
    }
    let links = crate::net::netlink::links()?;
    let last = thread::available_parallelism()?.get() - 1;
    for (mac, core) in [(server, 0), (client, last)] {
        let card = links.iter().find(|link| link.mac == mac).context("a card has gone")?;
        match order.queues {
            Some(queues) => ethtool::set_queues(&card.name, queues)?,
            // One, so that both sides have one worker; a card that cannot choose keeps those that
            // it has.
            None => ethtool::set_queues(&card.name, 1).unwrap_or_default(),
        }
        // A flood waits in them instead of being dropped.
        ethtool::enlarge_card_rings(&card.name)?;
        interrupt_on(&card.name, core)?;
        // QEMU (10.0) takes a datagram that an igb is to cut for one to be fragmented, and sends it
        // whole: the kernel cuts it.
        ethtool::switch_off(&card.name, "tx-udp-segmentation")?;
    }
    Lab::named(DEFAULT_NAME)?.adopt(server, client)?;
    let (program, arguments) = order.command.split_first().context("no command")?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(&order.directory)
        .env_clear()
        .envs(order.variables.iter().cloned());
    command.stdin(File::open("/dev/null")?).stdout(port(PORTS[1])?).stderr(port(PORTS[2])?);
    let child = command.spawn().with_context(|| format!("cannot run {program}"))?;
    say(&Said::Started)?;
    loop {
        // Processes that lost their parent are this one's children too.
        match wait()? {
            WaitStatus::Exited(pid, status) if pid.as_raw() == child.id() as i32 => {
                return Ok(Said::Status(status));
            }
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == child.id() as i32 => {
                return Err(anyhow!("{program} was ended by {signal}"));
            }
            _ => {}
        }
    }
}

/// Has a card interrupt one processor: the first does the server's work, the last the client's, for
/// every engine alike.
fn interrupt_on(interface: &str, core: usize) -> Result<()> {
    let device = Path::new("/sys/class/net").join(interface).join("device");
    // Those of a virtio device are its PCI function's.
    let places = [device.join("msi_irqs"), device.join("../msi_irqs")];
    for interrupt in places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten()
    {
        let affinity = Path::new("/proc/irq").join(interrupt.file_name()).join("smp_affinity_list");
        // Vectors that the driver has not asked for have no such file.
        if affinity.exists() {
            fs::write(&affinity, core.to_string())
                .with_context(|| format!("cannot write {}", affinity.display()))?;
        }
    }
    Ok(())
}

/// Mounts what has no source.
fn put(kind: &str, place: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} at {place}"))
}

/// Mounts a directory of the host's.
fn share(tag: &str, place: &Path, how: &str) -> Result<()> {
    // The largest message that QEMU takes saves round trips.
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,{how}");
    mount(Some(tag), place, Some("9p"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot mount the host's {tag} at {}", place.display()))
}

/// Tells the host.
fn say(what: &Said) -> Result<()> {
    let line = serde_json::to_string(what)? + "\n";
    Ok(port(PORTS[0])?.write_all(line.as_bytes())?)
}

/// A way out to the host.
fn port(name: &str) -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("no ports to the host")?.flatten()
    {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
            let device = Path::new("/dev").join(entry.file_name());
            return File::options()
                .write(true)
                .open(&device)
                .with_context(|| format!("no {}", device.display()));
        }
    }
    Err(anyhow!("no port {name} to the host"))
}
