//! A NETWORK ON ONE MACHINE: two network namespaces, joined by a veth pair, for the server and its
//! client.
//!
//! ```text
//!   namespace NAME-client                    namespace NAME-server
//!   client0  2001:db8:1::1/64  ═══ veth ═══  server0  2001:db8:1::2/64
//! ```
//!
//! Both can be seen with `ip netns` and entered with `ip netns exec`. The pair is made inside them,
//! so the rest of the machine never sees it. Several labs of different names do not know of each
//! other.
//!
//! The lab changes nothing that it did not make: its interfaces carry an alias, and where anything
//! else is in a namespace of its name, it refuses. It needs root, and a kernel with veth, network
//! namespaces and IPv6.

pub mod vm;

use std::convert::Infallible;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;

use crate::host;
use crate::net::ethtool;
use crate::net::namespace::Namespace;
use crate::net::netlink::{self, Address, AttachedProgram, Link, Socket};

/// The name of a lab where none is given.
pub const DEFAULT_NAME: &str = "sixhop";

/// Length of the prefix that both sides are in, in bits.
pub const PREFIX_LENGTH: u8 = 64;

/// By this a later run knows an interface that an earlier one made.
const ALIAS: &str = "sixhop lab";

/// A veth pair has its carrier as soon as both ends are up. This is for a machine that has other
/// things to do.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// What a kernel with these drivers puts into every new namespace, besides lo.
const FALLBACK_TUNNELS: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

/// Settings for all interfaces of a namespace, so that there is no packet that nobody asked for,
/// and no waiting: without Duplicate Address Detection an address is live at once.
const QUIET: [(&str, &str); 5] = [
    ("disable_ipv6", "0"),
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("router_solicitations", "0"),
];

/// One of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where requests are answered.
    Server,
    /// Where requests come from.
    Client,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Server, Self::Client];

    /// Name of its interface.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::Server => "server0",
            Self::Client => "client0",
        }
    }

    /// Its own address, in a prefix of [`PREFIX_LENGTH`].
    #[must_use]
    pub fn address(self) -> Ipv6Addr {
        match self {
            Self::Server => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2),
            Self::Client => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Server => "server",
            Self::Client => "client",
        })
    }
}

/// What [`Lab::up`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing: the lab was there as wanted.
    AlreadyUp,
    /// There was none.
    Made,
    /// There was something half-made, or with another number of queues.
    Replaced,
}

/// How much there is of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it, ready for traffic.
    Up,
    /// Some of it. `up` makes it whole, `down` removes it.
    Partial,
    /// Nothing.
    Down,
}

/// What there is of a lab.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Name of the lab.
    pub name: String,
    /// How much there is of it.
    pub state: State,
    /// The server's side; none without its namespace.
    pub server: Option<SideStatus>,
    /// The client's side; none without its namespace.
    pub client: Option<SideStatus>,
}

/// One side of a lab.
#[derive(Debug, Clone, Serialize)]
pub struct SideStatus {
    /// Its namespace, as `ip netns` shows it.
    pub namespace: String,
    /// Its end of the veth pair.
    pub interface: Option<InterfaceStatus>,
}

/// One end of the veth pair.
#[derive(Debug, Clone, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, as people write it.
    pub mac: String,
    /// Largest packet without the Ethernet header, in bytes.
    pub mtu: u32,
    /// Queues each way.
    pub queues: u32,
    /// Whether it is up and has its other end.
    pub carrier: bool,
    /// How many IPv6 addresses it has, its own and its link-local one included.
    pub addresses: usize,
    /// The XDP program on it.
    pub xdp: Option<AttachedProgram>,
}

/// A lab, whether there is one at the moment or not.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
}

impl Lab {
    /// The lab of that name, [`DEFAULT_NAME`] as a rule.
    ///
    /// # Errors
    /// When the name is not 1 to 32 of a–z, 0–9 and '-'.
    pub fn named(name: &str) -> Result<Self> {
        let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        ensure!(
            (1..=32).contains(&name.len()) && name.bytes().all(is_plain),
            "'{name}' cannot name a lab: use 1 to 32 of a-z, 0-9 and '-'"
        );
        Ok(Self { name: name.to_owned() })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of a side's namespace.
    #[must_use]
    pub fn namespace(&self, side: Side) -> String {
        format!("{}-{side}", self.name)
    }

    /// Makes the lab, with `queues` queues each way at both ends. One that is there as wanted is
    /// left as it is; anything less, or with other queues, is replaced. If it cannot be made,
    /// nothing of it is left.
    ///
    /// # Errors
    /// Without root, and when something that is not the lab's is in its place.
    pub fn up(&self, queues: u32) -> Result<Outcome> {
        need_root("up")?;
        // The kernel's limit.
        ensure!((1..=4096).contains(&queues), "a veth can have 1 to 4096 queues, not {queues}");
        let _lock = self.lock()?;
        let found = self.find_own()?;
        if found.iter().all(|side| side.is_whole() && side.queues() == Some(queues)) {
            return Ok(Outcome::AlreadyUp);
        }
        let outcome = if self.remove(found)? { Outcome::Replaced } else { Outcome::Made };
        let made = self.make(queues);
        if made.is_err() {
            // What matters is why it could not be made.
            let _ = self.find_own().and_then(|found| self.remove(found));
        }
        made.map(|()| outcome)
    }

    /// Makes a lab of two cards that are joined, known by their Ethernet addresses: each goes into
    /// a namespace of its own, with the name that a lab's interface has. Their settings stay as
    /// they are.
    ///
    /// # Errors
    /// When there is a lab of that name, or no such card.
    pub fn adopt(&self, server: [u8; 6], client: [u8; 6]) -> Result<()> {
        need_root("vm")?;
        let _lock = self.lock()?;
        let sides = [(Side::Server, server), (Side::Client, client)];
        let mut made = Vec::new();
        for (side, mac) in sides {
            let namespace = Namespace::create(&self.namespace(side))?;
            namespace.run(quieten)?;
            let mut socket = Socket::open()?;
            let card = socket.links()?.into_iter().find(|link| link.mac == mac);
            let card = card.with_context(|| format!("no card for the {side}"))?;
            socket.move_link(card.index, side.interface(), namespace.as_fd(), ALIAS)?;
            namespace.run(|| set_up(side))?;
            made.push((side, namespace));
        }
        for (side, namespace) in made {
            namespace.run(|| netlink::wait_for_carrier(side.interface(), CARRIER_TIMEOUT))?;
        }
        Ok(())
    }

    /// Removes the lab, or what there is of it. True if there was anything. Processes inside it
    /// keep running, without its interfaces.
    ///
    /// # Errors
    /// Without root, and when something that is not the lab's is in its place.
    pub fn down(&self) -> Result<bool> {
        need_root("down")?;
        let _lock = self.lock()?;
        let found = self.find_own()?;
        self.remove(found)
    }

    /// What there is of the lab.
    ///
    /// # Errors
    /// Without root: looking into a namespace means entering it.
    pub fn status(&self) -> Result<Status> {
        need_root("status")?;
        let [server, client] = [self.find(Side::Server)?, self.find(Side::Client)?];
        let state = if server.is_whole() && client.is_whole() {
            State::Up
        } else if server.namespace.is_none() && client.namespace.is_none() {
            State::Down
        } else {
            State::Partial
        };
        Ok(Status {
            name: self.name.clone(),
            state,
            server: server.status(self),
            client: client.status(self),
        })
    }

    /// Moves the calling thread into one side, for as long as it lives. Other threads stay where
    /// they are; those that it starts afterwards are with it.
    ///
    /// # Errors
    /// When the lab is not up, or without root.
    pub fn enter(&self, side: Side) -> Result<()> {
        self.open(side)?.enter()
    }

    /// Runs `f` in one side, on a thread of its own, and returns what it returns.
    ///
    /// # Errors
    /// When the lab is not up, or without root; otherwise those of `f`.
    pub fn run_in<T: Send>(&self, side: Side, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.open(side)?.run(f)
    }

    /// Becomes `command`, running in one side: its signals and its exit status are the command's
    /// own. As with `ip netns exec`, /sys shows that side's interfaces.
    ///
    /// # Errors
    /// When the lab is not up, without root, or when there is no such command. Otherwise it does
    /// not return.
    pub fn exec(&self, side: Side, command: &[OsString]) -> Result<Infallible> {
        need_root("exec")?;
        let (program, arguments) = command.split_first().context("no command to run: name one")?;
        self.enter(side)?;
        // Without it /sys/class/net would list the interfaces outside, but most commands do not
        // look there.
        let _ = host::mount_own_sys();
        let error = Command::new(program).args(arguments).exec();
        Err(anyhow!("cannot run {}: {error}", program.to_string_lossy()))
    }

    fn open(&self, side: Side) -> Result<Namespace> {
        Namespace::open(&self.namespace(side))?.with_context(|| {
            let name = match self.name.as_str() {
                DEFAULT_NAME => String::new(),
                name => format!(" --name {name}"),
            };
            format!("lab '{}' is not up: run 'sudo sixhop lab up{name}'", self.name)
        })
    }

    fn make(&self, queues: u32) -> Result<()> {
        let server = Namespace::create(&self.namespace(Side::Server))?;
        let client = Namespace::create(&self.namespace(Side::Client))?;
        server.run(quieten)?;
        client.run(quieten)?;
        let [near, far] = Side::BOTH.map(Side::interface);
        server.run(|| Socket::open()?.add_veth(near, far, client.as_fd(), queues, ALIAS))?;
        let sides = [(&server, Side::Server), (&client, Side::Client)];
        for (namespace, side) in sides {
            namespace.run(|| configure(side))?;
        }
        for (namespace, side) in sides {
            namespace.run(|| netlink::wait_for_carrier(side.interface(), CARRIER_TIMEOUT))?;
        }
        Ok(())
    }

    /// Removes what was found. True if there was anything.
    fn remove(&self, found: [Found; 2]) -> Result<bool> {
        // First the pair: a namespace, and with it what is inside, lives on while a process is in
        // it. With one end goes the other.
        for Found { namespace, link, .. } in &found {
            if let (Some(namespace), Some(link)) = (namespace, link) {
                namespace.run(|| Socket::open()?.delete_link(link.index))?;
            }
        }
        drop(found);
        let mut any = false;
        for side in Side::BOTH {
            any |= Namespace::remove(&self.namespace(side))?;
        }
        Ok(any)
    }

    fn find(&self, side: Side) -> Result<Found> {
        let mut found = Found {
            side,
            namespace: Namespace::open(&self.namespace(side))?,
            link: None,
            addresses: Vec::new(),
            foreign: Vec::new(),
        };
        let Some(namespace) = &found.namespace else {
            return Ok(found);
        };
        let (links, addresses) = namespace.run(|| {
            let mut socket = Socket::open()?;
            let links = socket.links()?;
            let own = links.iter().find(|link| is_own(link, side));
            let addresses = own.map(|link| socket.addresses(link.index)).transpose()?;
            Ok((links, addresses.unwrap_or_default()))
        })?;
        found.addresses = addresses;
        for link in links {
            if is_own(&link, side) {
                found.link = Some(link);
            } else if link.name != "lo" && !FALLBACK_TUNNELS.contains(&link.name.as_str()) {
                found.foreign.push(link.name);
            }
        }
        Ok(found)
    }

    /// Both sides, provided that there is nothing in them which is not the lab's.
    fn find_own(&self) -> Result<[Found; 2]> {
        let found = [self.find(Side::Server)?, self.find(Side::Client)?];
        for Found { side, foreign, .. } in &found {
            if let Some(name) = foreign.first() {
                let namespace = self.namespace(*side);
                bail!(
                    "namespace {namespace} holds interface '{name}', which sixhop did not make: \
                     choose another --name, or remove it with 'ip netns delete {namespace}'"
                );
            }
        }
        Ok(found)
    }

    /// Waits until no other process changes this lab.
    fn lock(&self) -> Result<Lock> {
        let path = PathBuf::from(format!("/run/sixhop-lab-{}.lock", self.name));
        Lock::acquire(path.clone()).with_context(|| format!("cannot lock {}", path.display()))
    }
}

/// What was found of one side.
struct Found {
    side: Side,
    namespace: Option<Namespace>,
    /// Its end of the pair.
    link: Option<Link>,
    /// The addresses of that.
    addresses: Vec<Address>,
    /// Names of interfaces that are not the lab's.
    foreign: Vec<String>,
}

impl Found {
    fn is_whole(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.up && link.carrier)
            && self.foreign.is_empty()
            && self.addresses.iter().any(|address| {
                address.ip == self.side.address() && address.prefix_length == PREFIX_LENGTH
            })
    }

    /// Queues each way.
    fn queues(&self) -> Option<u32> {
        self.link.as_ref().map(|link| link.rx_queues)
    }

    fn status(&self, lab: &Lab) -> Option<SideStatus> {
        self.namespace.as_ref()?;
        Some(SideStatus {
            namespace: lab.namespace(self.side),
            interface: self.link.as_ref().map(|link| InterfaceStatus {
                name: link.name.clone(),
                mac: link.mac.map(|byte| format!("{byte:02x}")).join(":"),
                mtu: link.mtu,
                queues: link.rx_queues,
                carrier: link.up && link.carrier,
                addresses: self.addresses.len(),
                xdp: link.xdp,
            }),
        })
    }
}

/// Keeps two processes from changing one lab at a time. Its file goes with it.
struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    fn acquire(path: PathBuf) -> Result<Self> {
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // Whoever had it before has removed the file; another may have made it again since.
            let inode = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == inode) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While it is still locked.
        let _ = fs::remove_file(&self.path);
    }
}

fn need_root(command: &str) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: run 'sudo sixhop lab {command}'"
    );
    Ok(())
}

fn is_own(link: &Link, side: Side) -> bool {
    link.name == side.interface() && link.alias.as_deref() == Some(ALIAS)
}

/// Applies [`QUIET`] to the namespace of the calling thread, before it has interfaces.
fn quieten() -> Result<()> {
    for (setting, value) in QUIET {
        for interfaces in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{interfaces}/{setting}");
            fs::write(&path, value).map_err(|error| match error.kind() {
                ErrorKind::NotFound => {
                    anyhow!("there is no {path}: the lab needs a kernel with IPv6")
                }
                _ => anyhow!("cannot write {path}: {error}"),
            })?;
        }
    }
    Ok(())
}

/// Gives the interface of `side`, in the namespace of the calling thread, its address and sets it
/// up.
fn configure(side: Side) -> Result<()> {
    // A veth leaves checksums to nobody. What comes out of it must be as on a wire, for a server
    // that verifies them.
    ethtool::set_tx_checksum(side.interface(), false)?;
    set_up(side)
}

fn set_up(side: Side) -> Result<()> {
    let mut socket = Socket::open()?;
    let link = socket.link(side.interface())?;
    socket.add_address(link.index, side.address(), PREFIX_LENGTH)?;
    let loopback = socket.link("lo")?;
    socket.set_up(loopback.index, true)?;
    socket.set_up(link.index, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["sixhop", "t1-2", &"a".repeat(32)] {
            assert_eq!(Lab::named(name).unwrap().name(), name);
        }
        for name in ["", "../etc", "Lab", "a b", "ä", &"a".repeat(33)] {
            assert!(Lab::named(name).is_err(), "{name}");
        }
    }

    #[test]
    fn sides_are_in_one_prefix() {
        let [server, client] =
            Side::BOTH.map(|side| u128::from(side.address()) >> (128 - PREFIX_LENGTH));
        assert_eq!(server, client);
    }

    #[test]
    fn lock_is_exclusive_and_leaves_no_file() {
        let path = std::env::temp_dir().join(format!("sixhop-lock-{}", std::process::id()));
        let inside = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = Lock::acquire(path.clone()).unwrap();
                        assert!(!inside.swap(true, std::sync::atomic::Ordering::SeqCst));
                        std::thread::yield_now();
                        inside.store(false, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
