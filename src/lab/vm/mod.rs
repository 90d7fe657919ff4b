//! A lab with real drivers: a virtual machine with two network cards, joined back to back, each in
//! a namespace of its own.
//!
//! ```text
//!   host      sixhop lab vm ──► QEMU ── console, stdout, stderr, how it ended ◄──┐
//!   guest     init (guest.rs) ─► the machine's root, read-only, under an overlay ─► CMD
//!             namespace sixhop-client                  namespace sixhop-server
//!             client0  card ═══════ QEMU's hub ═══════ card  server0
//! ```
//!
//! The guest sees the files of its host, and can change only those of one directory. Its real
//! drivers decide what a card grants. Its speed says nothing about a real card, since QEMU
//! translates the guest's instructions. Figures are marked accordingly
//! ([`Environment::guest`](crate::host::Environment)), and only their ratios within one guest are
//! meaningful.

mod guest;
mod parts;

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::host::GUEST;

pub use guest::be_init;
pub use parts::{Kernel, Qemu};

/// The cards that a guest can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Card {
    /// Intel 82576; its driver also serves the I210 and I350, and has zero-copy since Linux 6.14
    Igb,
    /// virtio-net as zero-copy needs it: with IOMMU platform, without legacy
    Virtio,
    /// virtio-net without IOMMU platform, which advertises zero-copy but refuses it
    VirtioPlain,
    /// Intel 82574L, which has the I217's driver: no native XDP
    E1000e,
    /// VMware's card: native XDP without zero-copy
    Vmxnet3,
}

impl Card {
    /// The name of its kernel driver.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::Igb => "igb",
            Self::Virtio | Self::VirtioPlain => "virtio_net",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
        }
    }

    /// Its QEMU device, with options.
    fn device(self) -> &'static str {
        match self {
            Self::Igb => "igb",
            Self::Virtio => "virtio-net-pci,disable-legacy=on,iommu_platform=on",
            Self::VirtioPlain => "virtio-net-pci,disable-legacy=on",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Igb => "igb",
            Self::Virtio => "virtio",
            Self::VirtioPlain => "virtio-plain",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
        })
    }
}

/// How the guest's instructions are executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// QEMU translates instructions: works everywhere
    #[default]
    Tcg,
    /// The processor runs them itself, through /dev/kvm
    Kvm,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        })
    }
}

/// A guest and its work.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Its two cards.
    pub nic: Card,
    /// Its kernel; see [`Kernel::find`].
    pub kernel: Option<String>,
    /// How its instructions are executed.
    pub accelerator: Accelerator,
    /// Its number of processors.
    pub processors: u32,
    /// Queues that each of its cards uses; `None` for one, where the driver can choose.
    pub queues: Option<u32>,
    /// Its memory in MiB.
    pub memory: u32,
    /// The command to run, as if on this machine, in the working directory of this process.
    pub command: Vec<OsString>,
    /// An existing directory that the guest may write to.
    pub out: Option<PathBuf>,
    /// How long it may run before it is killed.
    pub limit: Duration,
}

/// The guest's instructions, in a file of its initramfs.
#[derive(Debug, Serialize, Deserialize)]
struct Instructions {
    command: Vec<String>,
    directory: PathBuf,
    variables: Vec<(String, String)>,
    out: Option<PathBuf>,
    queues: Option<u32>,
    /// Files of the initramfs, in the order to load them.
    modules: Vec<PathBuf>,
}

/// A message from the guest, one line each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum GuestMessage {
    /// The command has started.
    Started,
    /// The command ended with this exit status.
    Status(i32),
    /// Why the command could not run.
    Error(String),
}

/// Where the guest finds its order.
const ORDER: &str = "/order.json";

/// The names of its virtio serial ports.
const PORTS: [&str; 3] = ["sixhop.control", "sixhop.stdout", "sixhop.stderr"];

/// The Ethernet addresses of its cards, locally administered: the server's, then the client's.
const MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 2], [0x52, 0x54, 0, 0, 0, 1]];

/// Environment variables passed on to the command in the guest.
const VARIABLES: [&str; 6] = ["PATH", "HOME", "LANG", "NO_COLOR", "RUST_BACKTRACE", "TMPDIR"];

/// Modules that every guest loads, for its ports and the host's files.
const MODULES: [&str; 5] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"];

/// Boots a guest, runs the command in it, and returns its exit status. Calls `show` before each
/// slow step, and with `None` when the command starts. The guest ends with this process, and when
/// `stop` is set.
///
/// # Errors
/// If there is no kernel or QEMU, or the guest fails to boot, takes too long, or ends without
/// reporting a status.
pub fn run(
    config: &VmConfig,
    stop: &AtomicBool,
    show: &mut dyn FnMut(Option<&str>),
) -> Result<i32> {
    ensure!(!config.command.is_empty(), "no command to run: name one");
    let kernel = Kernel::find(config.kernel.as_deref(), &mut |what| show(Some(what)))?;
    let qemu = Qemu::find(&mut |what| show(Some(what)))?;
    show(Some(&format!("booting Linux {} with two {} cards", kernel.release, config.nic)));
    let work = tempfile::tempdir().context("cannot make a temporary directory")?;
    let initramfs = work.path().join("initramfs");
    write_initramfs(&initramfs, &kernel, config)?;
    let console = work.path().join("console");
    let listeners = PORTS
        .iter()
        .map(|port| {
            UnixListener::bind(work.path().join(port)).context("cannot make a socket for the guest")
        })
        .collect::<Result<Vec<_>>>()?;
    let label = format!("{GUEST}QEMU-{}-{}-{}", qemu.version, config.accelerator, config.nic);
    let mut command = qemu.command();
    arguments(&mut command, config, work.path());
    command.arg("-kernel").arg(&kernel.image).arg("-initrd").arg(&initramfs);
    command
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 rdinit=/init {label} -- lab guest"));
    let output = work.path().join("qemu");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&output)?);
    let child = command
        .spawn()
        .context("cannot start QEMU: install util-linux, whose setpriv starts it")?;
    let mut running = QemuProcess { child, limit: config.limit, stop, output: &output };
    let last = running.follow(&listeners, show)?;
    match last {
        Some(GuestMessage::Status(status)) => Ok(status),
        Some(GuestMessage::Error(why)) => bail!("in the guest: {why}"),
        Some(GuestMessage::Started) | None => bail!(last_words(&console, &output)),
    }
}

/// A running QEMU. Dropping it kills it.
struct QemuProcess<'a> {
    child: Child,
    limit: Duration,
    stop: &'a AtomicBool,
    /// The file with QEMU's own output.
    output: &'a Path,
}

impl Drop for QemuProcess<'_> {
    fn drop(&mut self) {
        // Both fail if it has already ended, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl QemuProcess<'_> {
    /// Forwards the guest's output until QEMU ends, and returns the guest's last message.
    fn follow(
        &mut self,
        listeners: &[UnixListener],
        show: &mut dyn FnMut(Option<&str>),
    ) -> Result<Option<GuestMessage>> {
        thread::scope(|scope| {
            let mut ports = Vec::new();
            for listener in listeners {
                ports.push(self.accept(listener)?);
            }
            let [control, stdout, stderr] =
                ports.try_into().map_err(|_| anyhow::anyhow!("a port is missing"))?;
            let copies = [
                scope.spawn(move || copy(stdout, &mut io::stdout())),
                scope.spawn(move || copy(stderr, &mut io::stderr())),
            ];
            let (sender, said) = mpsc::channel();
            scope.spawn(move || {
                let lines = BufReader::new(control).lines().map_while(Result::ok);
                lines
                    .filter_map(|line| serde_json::from_str(&line).ok())
                    .try_for_each(|said| sender.send(said))
            });
            let mut last = None;
            let ended = self.wait(|| {
                for said in said.try_iter() {
                    show(None);
                    last = Some(said);
                }
            });
            for copy in copies {
                let _ = copy.join();
            }
            ended?;
            // A signal from the terminal also went to QEMU, so it may have ended first.
            ensure!(!self.stop.load(Ordering::Relaxed), "interrupted");
            Ok(said.iter().last().or(last))
        })
    }

    /// Waits until QEMU ends, and kills it after the limit or when `stop` is set. Calls `look`
    /// meanwhile.
    fn wait(&mut self, mut look: impl FnMut()) -> Result<()> {
        let give_up = Instant::now() + self.limit;
        loop {
            look();
            if self.child.try_wait().context("cannot wait for QEMU")?.is_some() {
                return Ok(());
            }
            let why = if self.stop.load(Ordering::Relaxed) {
                "interrupted".to_owned()
            } else if Instant::now() >= give_up {
                let limit = self.limit.as_secs();
                format!("the guest did not end within {limit} s: allow it more with --limit")
            } else {
                thread::sleep(Duration::from_millis(10));
                continue;
            };
            self.child.kill().context("cannot kill QEMU")?;
            self.child.wait().context("cannot wait for QEMU")?;
            bail!(why);
        }
    }

    /// Waits until QEMU has opened a port.
    fn accept(&mut self, listener: &UnixListener) -> Result<UnixStream> {
        listener.set_nonblocking(true)?;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("cannot accept QEMU's connection"),
            }
            if let Some(status) = self.child.try_wait()? {
                let words = fs::read_to_string(self.output).unwrap_or_default();
                bail!("QEMU ended with {status}: {}", words.trim().replace('\n', "; "));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Copies unbuffered, so that readers see lines as they are written.
fn copy(mut from: UnixStream, to: &mut dyn Write) {
    let mut buffer = [0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        // Ignore errors: the reader is gone.
        let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
    }
}

/// The error for a guest that ended without reporting how.
fn last_words(console: &Path, output: &Path) -> String {
    let lines = |path| {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        lines[lines.len().saturating_sub(4)..].join("; ")
    };
    format!(
        "the guest ended without reporting a status; QEMU said '{}', its console last said '{}'",
        lines(output),
        lines(console)
    )
}

/// Adds QEMU's arguments, except for the kernel.
fn arguments(qemu: &mut Command, config: &VmConfig, work: &Path) {
    let accelerator = match config.accelerator {
        Accelerator::Tcg => ["tcg,thread=multi", "max"],
        Accelerator::Kvm => ["kvm", "host"],
    };
    qemu.args(["-M", "q35", "-accel", accelerator[0], "-cpu", accelerator[1]]);
    qemu.args(["-smp", &config.processors.to_string(), "-m", &format!("{}M", config.memory)]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-serial").arg(option("file:", &work.join("console")));
    qemu.args(["-device", "virtio-serial-pci"]);
    for port in PORTS {
        qemu.arg("-chardev").arg(option(&format!("socket,id={port},path="), &work.join(port)));
        qemu.arg("-device").arg(format!("virtserialport,chardev={port},name={port}"));
    }
    qemu.args(["-fsdev", "local,id=root,path=/,readonly=on,security_model=none,multidevs=remap"]);
    qemu.args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"]);
    if let Some(out) = &config.out {
        qemu.arg("-fsdev").arg(option("local,id=out,security_model=none,path=", out));
        qemu.args(["-device", "virtio-9p-pci,fsdev=out,mount_tag=out"]);
    }
    for (index, mac) in MACS.iter().enumerate() {
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        // Other ways to join two cards (stream, socket) deadlock under flood when both ends are in
        // one QEMU. An igb needs a root port of its own.
        qemu.arg("-netdev").arg(format!("hubport,id=net{index},hubid=0"));
        qemu.arg("-device").arg(format!("pcie-root-port,id=port{index},chassis={}", index + 1));
        let card = config.nic.device();
        qemu.arg("-device")
            .arg(format!("{card},netdev=net{index},bus=port{index},mac={mac},romfile="));
    }
}

/// A QEMU option that ends with a path. QEMU expects commas in it doubled.
fn option(name: &str, path: &Path) -> String {
    format!("{name}{}", path.to_string_lossy().replace(',', ",,"))
}

/// The module for virtual routing and forwarding.
const VRF: &str = "vrf";

/// Writes the initramfs: this program as init, its libraries, the modules, and the order.
fn write_initramfs(path: &Path, kernel: &Kernel, config: &VmConfig) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut archive = Archive { out: BufWriter::new(file), made: Vec::new() };
    for directory in ["dev", "proc", "sys", "host", "upper", "root"] {
        archive.directory(Path::new(directory))?;
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    archive.file(Path::new("init"), &fs::read(&program)?)?;
    for library in libraries(&program)? {
        archive.file(library.strip_prefix("/").unwrap_or(&library), &fs::read(&library)?)?;
    }
    let mut modules: Vec<PathBuf> = Vec::new();
    for name in MODULES.iter().copied().chain([config.nic.driver(), "veth", VRF]) {
        let files = match kernel.modules(name) {
            Err(_) if name == VRF => vec![], // optional: not every kernel has it
            files => files?,
        };
        for file in files {
            let place = Path::new("modules").join(file.file_stem().unwrap_or_default());
            if !modules.contains(&place) {
                archive.file(&place, &parts::unpacked(&file)?)?;
                modules.push(place);
            }
        }
    }
    let text = |words: &OsString| {
        words
            .to_str()
            .map(str::to_owned)
            .with_context(|| format!("{} is not UTF-8", words.to_string_lossy()))
    };
    let variable = |name: &&str| Some(((*name).to_owned(), std::env::var(name).ok()?));
    let order = Instructions {
        command: config.command.iter().map(text).collect::<Result<_>>()?,
        directory: std::env::current_dir().context("cannot find the working directory")?,
        variables: VARIABLES.iter().filter_map(variable).collect(),
        out: config.out.clone(),
        queues: config.queues,
        modules,
    };
    archive.file(Path::new(ORDER.trim_start_matches('/')), &serde_json::to_vec(&order)?)?;
    let mut out = cpio::newc::trailer(archive.out)?;
    out.flush().with_context(|| format!("cannot write {}", path.display()))
}

/// The shared libraries of `program`, as ldd lists them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(words
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// A cpio archive in the format that the kernel unpacks
/// (Documentation/driver-api/early-userspace/buffer-format.rst).
struct Archive {
    out: BufWriter<File>,
    /// Directories already in the archive.
    made: Vec<PathBuf>,
}

impl Archive {
    fn file(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent() {
            self.directory(parent)?;
        }
        self.entry(path, libc::S_IFREG | 0o755, bytes)
    }

    /// Adds a directory and its parents.
    fn directory(&mut self, path: &Path) -> Result<()> {
        let mut ancestors: Vec<_> =
            path.ancestors().filter(|path| !path.as_os_str().is_empty()).collect();
        ancestors.reverse();
        for directory in ancestors {
            if !self.made.iter().any(|made| made == directory) {
                self.entry(directory, libc::S_IFDIR | 0o755, &[])?;
                self.made.push(directory.to_owned());
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        let inode = 0; // inode numbers only matter for hard links, and there are none here
        let header =
            cpio::newc::Builder::new(&path.to_string_lossy()).ino(inode).mode(mode).nlink(1);
        let length = u32::try_from(bytes.len())
            .context("a file of 4 GiB or more does not fit an initramfs")?;
        let mut writer = header.write(&mut self.out, length);
        writer.write_all(bytes)?;
        writer.finish()?;
        Ok(())
    }
}
