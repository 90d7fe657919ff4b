//! Process 1 of the guest: mounts its file systems, makes a lab of its cards, runs the command, and
//! powers the machine off.
//!
//! Process 1 must never exit. On an error it reports to the host, and then powers the machine off.

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

use super::{GuestMessage, Instructions, MACS, ORDER, PORTS};
use crate::lab::{DEFAULT_NAME, Lab};
use crate::net::ethtool;

/// How long the cards may take to appear. Drivers normally need far less.
const CARD_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs as process 1 of a guest.
///
/// # Errors
/// If it is not process 1. Otherwise it does not return.
pub fn be_init() -> Result<Infallible> {
    ensure!(
        getpid().as_raw() == 1,
        "'sixhop lab guest' runs only as process 1 of a guest: use 'sixhop lab vm'"
    );
    let order = prepare();
    let ended = order
        .and_then(|order| work(&order))
        .unwrap_or_else(|error| GuestMessage::Error(format!("{error:#}")));
    if let Err(error) = say(&ended) {
        eprintln!("{ended:?}, and the host cannot be told: {error:#}"); // the console
    }
    sync();
    reboot(RebootMode::RB_POWER_OFF).context("cannot power the machine off")
}

/// Mounts the guest's file systems and makes the host's its root, under an overlay.
fn prepare() -> Result<Instructions> {
    for (kind, place) in
        [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/upper")]
    {
        put(kind, place, None)?;
    }
    let order: Instructions = serde_json::from_slice(&fs::read(ORDER)?)?;
    for module in &order.modules {
        let module = Path::new("/").join(module);
        let file =
            File::open(&module).with_context(|| format!("cannot open {}", module.display()))?;
        finit_module(file, c"", ModuleInitFlags::empty())
            .with_context(|| format!("the kernel rejects the module {}", module.display()))?;
    }
    // Cache everything: no host file that the guest reads changes while it runs.
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

/// Makes the lab and runs the command.
fn work(order: &Instructions) -> Result<GuestMessage> {
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
        let card = links.iter().find(|link| link.mac == mac).context("a card is gone")?;
        match order.queues {
            Some(queues) => ethtool::set_queues(&card.name, queues)?,
            // One, so that both sides have one worker. A card without a choice keeps its queues.
            None => ethtool::set_queues(&card.name, 1).unwrap_or_default(),
        }
        // Larger rings absorb a flood that smaller ones would drop.
        ethtool::enlarge_card_rings(&card.name)?;
        interrupt_on(&card.name, core)?;
        // QEMU (10.0) mistakes an igb's segmentation offload for fragmentation and sends the
        // datagram whole. Let the kernel segment it instead.
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
    say(&GuestMessage::Started)?;
    loop {
        // Process 1 also inherits orphaned processes, so other children may end first.
        match wait()? {
            WaitStatus::Exited(pid, status) if pid.as_raw() == child.id() as i32 => {
                return Ok(GuestMessage::Status(status));
            }
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() == child.id() as i32 => {
                return Err(anyhow!("{program} was ended by {signal}"));
            }
            _ => {}
        }
    }
}

/// Directs a card's interrupts to one processor, alike for every engine: the first does the
/// server's work, the last the client's.
fn interrupt_on(interface: &str, core: usize) -> Result<()> {
    let device = Path::new("/sys/class/net").join(interface).join("device");
    // A virtio device's interrupts belong to its PCI function, the parent device.
    let places = [device.join("msi_irqs"), device.join("../msi_irqs")];
    for interrupt in places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten()
    {
        let affinity = Path::new("/proc/irq").join(interrupt.file_name()).join("smp_affinity_list");
        // Vectors that the driver has not requested have no such file.
        if affinity.exists() {
            fs::write(&affinity, core.to_string())
                .with_context(|| format!("cannot write {}", affinity.display()))?;
        }
    }
    Ok(())
}

/// Mounts a file system that has no source device.
fn put(kind: &str, place: &str, options: Option<&str>) -> Result<()> {
    mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
        .with_context(|| format!("cannot mount {kind} at {place}"))
}

/// Mounts a directory of the host.
fn share(tag: &str, place: &Path, how: &str) -> Result<()> {
    // The largest message that QEMU accepts saves round trips.
    let options = format!("trans=virtio,version=9p2000.L,msize=512000,{how}");
    mount(Some(tag), place, Some("9p"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot mount the host's {tag} at {}", place.display()))
}

/// Sends a message to the host.
fn say(what: &GuestMessage) -> Result<()> {
    let line = serde_json::to_string(what)? + "\n";
    Ok(port(PORTS[0])?.write_all(line.as_bytes())?)
}

/// Opens a virtio serial port to the host.
fn port(name: &str) -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports")
        .context("cannot list the ports to the host")?
        .flatten()
    {
        if fs::read_to_string(entry.path().join("name")).is_ok_and(|found| found.trim() == name) {
            let device = Path::new("/dev").join(entry.file_name());
            return File::options()
                .write(true)
                .open(&device)
                .with_context(|| format!("cannot open {}", device.display()));
        }
    }
    Err(anyhow!("no port {name} to the host"))
}
