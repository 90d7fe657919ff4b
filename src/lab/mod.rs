//! A network on one machine: two network namespaces for the server and its client, joined by a veth
//! pair.
//!
//! ```text
//!   namespace NAME-client                    namespace NAME-server
//!   client0  2001:db8:1::1/64  ═══ veth ═══  server0  2001:db8:1::2/64
//! ```
//!
//! `ip netns` shows both namespaces, and `ip netns exec` enters them. The pair is created inside
//! them, so the rest of the machine never sees it. Labs with different names are independent.
//!
//! The lab changes nothing that it did not make. Its interfaces carry an alias, and it refuses a
//! namespace of its name that holds any other interface. It needs root, and a kernel with veth,
//! network namespaces and IPv6.

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
use crate::net::netlink::{self, Address, AttachedProgram, Connection, Link};

/// The default name of a lab.
pub const DEFAULT_NAME: &str = "sixhop";

/// Length of the prefix that both sides share, in bits.
pub const PREFIX_LENGTH: u8 = 64;

/// The interface alias by which later runs recognise their own interfaces.
const ALIAS: &str = "sixhop lab";

/// How long to wait for the carrier. A veth pair has one as soon as both ends are up; the rest
/// allows for a busy machine.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// The interfaces besides lo that these drivers create in every new namespace.
const FALLBACK_TUNNELS: [&str; 9] =
    ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];

/// Settings for every interface of a namespace. They suppress unsolicited packets, and Duplicate
/// Address Detection, so that addresses are live at once.
const QUIET: [(&str, &str); 5] = [
    ("disable_ipv6", "0"),
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("router_solicitations", "0"),
];

/// One end of the lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The end that answers requests.
    Server,
    /// The end that sends requests.
    Client,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Server, Self::Client];

    /// The name of its interface.
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
pub enum Raised {
    /// Nothing: the lab was already up as wanted.
    AlreadyUp,
    /// It made a new lab.
    Made,
    /// It replaced an incomplete lab, or one with another number of queues.
    Replaced,
}

/// Whether a lab exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Completely, and ready for traffic.
    Up,
    /// In part. `up` completes it, `down` removes it.
    Partial,
    /// Not at all.
    Down,
}

/// The parts of a lab that exist.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// Whether all of it exists.
    pub state: State,
    /// The server's side; `None` without its namespace.
    pub server: Option<SideStatus>,
    /// The client's side; `None` without its namespace.
    pub client: Option<SideStatus>,
}

/// One side of a lab.
#[derive(Debug, Clone, Serialize)]
pub struct SideStatus {
    /// Name of its namespace, as `ip netns` shows it.
    pub namespace: String,
    /// Its end of the veth pair.
    pub interface: Option<InterfaceStatus>,
}

/// One end of the veth pair.
#[derive(Debug, Clone, Serialize)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its Ethernet address, in hexadecimal with colons.
    pub mac: String,
    /// Largest packet without its Ethernet header, in bytes.
    pub mtu: u32,
    /// Queues in each direction.
    pub queues: u32,
    /// Whether it is up and its peer is too.
    pub carrier: bool,
    /// How many IPv6 addresses it has, including its lab and link-local addresses.
    pub addresses: usize,
    /// The XDP program attached to it.
    pub xdp: Option<AttachedProgram>,
}

/// A lab, whether or not it is up.
#[derive(Debug, Clone)]
pub struct Lab {
    name: String,
}

impl Lab {
    /// The lab called `name`, by default [`DEFAULT_NAME`].
    ///
    /// # Errors
    /// Unless the name is 1 to 32 characters of a–z, 0–9 and '-'.
    pub fn named(name: &str) -> Result<Self> {
        let is_plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
        ensure!(
            (1..=32).contains(&name.len()) && name.bytes().all(is_plain),
            "'{name}' cannot name a lab: use 1 to 32 of a-z, 0-9 and '-'"
        );
        Ok(Self { name: name.to_owned() })
    }

    /// The lab's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of a side's namespace.
    #[must_use]
    pub fn namespace(&self, side: Side) -> String {
        format!("{}-{side}", self.name)
    }

    /// Makes the lab, with `queues` queues in each direction at both ends. Keeps an existing lab
    /// that matches, and replaces any other. On failure, nothing of the lab remains.
    ///
    /// # Errors
    /// Without root, or if a foreign interface is in one of its namespaces.
    pub fn up(&self, queues: u32) -> Result<Raised> {
        need_root("up")?;
        // The kernel's limit.
        ensure!((1..=4096).contains(&queues), "a veth can have 1 to 4096 queues, not {queues}");
        let _lock = self.lock()?;
        let found = self.find_own()?;
        if found.iter().all(|side| side.is_whole() && side.queues() == Some(queues)) {
            return Ok(Raised::AlreadyUp);
        }
        let outcome = if self.remove(found)? { Raised::Replaced } else { Raised::Made };
        let made = self.make(queues);
        if made.is_err() {
            // Report why it could not be made, not why it could not be removed.
            let _ = self.find_own().and_then(|found| self.remove(found));
        }
        made.map(|()| outcome)
    }

    /// Makes a lab of two joined cards, identified by their Ethernet addresses. Each card moves
    /// into a namespace of its own and gets a lab interface's name; its settings stay.
    ///
    /// # Errors
    /// If a lab of that name exists, or a card does not.
    pub fn adopt(&self, server: [u8; 6], client: [u8; 6]) -> Result<()> {
        need_root("vm")?;
        let _lock = self.lock()?;
        let sides = [(Side::Server, server), (Side::Client, client)];
        let mut made = Vec::new();
        for (side, mac) in sides {
            let namespace = Namespace::create(&self.namespace(side))?;
            namespace.run(quieten)?;
            let mut socket = Connection::open()?;
            let card = socket.links()?.into_iter().find(|link| link.mac == mac);
            let card = card.with_context(|| format!("cannot find the {side}'s card"))?;
            socket.move_link(card.index, side.interface(), namespace.as_fd(), ALIAS)?;
            namespace.run(|| set_up(side))?;
            made.push((side, namespace));
        }
        for (side, namespace) in made {
            namespace.run(|| netlink::wait_for_carrier(side.interface(), CARRIER_TIMEOUT))?;
        }
        Ok(())
    }

    /// Removes the lab, or its remains. Returns whether there were any. Processes inside keep
    /// running, without its interfaces.
    ///
    /// # Errors
    /// Without root, or if a foreign interface is in one of its namespaces.
    pub fn down(&self) -> Result<bool> {
        need_root("down")?;
        let _lock = self.lock()?;
        let found = self.find_own()?;
        self.remove(found)
    }

    /// Which parts of the lab exist.
    ///
    /// # Errors
    /// Without root, which entering a namespace takes.
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

    /// Moves the calling thread into one side for the rest of its life. Threads that it starts
    /// later follow it; others stay where they are.
    ///
    /// # Errors
    /// If the lab is not up, or without root.
    pub fn enter(&self, side: Side) -> Result<()> {
        self.open(side)?.enter()
    }

    /// Runs `f` on a new thread in one side, and returns its result.
    ///
    /// # Errors
    /// If the lab is not up, or without root; otherwise those of `f`.
    pub fn run_in<T: Send>(&self, side: Side, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.open(side)?.run(f)
    }

    /// Replaces this process by `command`, running in one side, so signals and exit status are the
    /// command's own. As with `ip netns exec`, /sys shows that side's interfaces.
    ///
    /// # Errors
    /// If the lab is not up, without root, or if the command does not exist. Otherwise this does
    /// not return.
    pub fn exec(&self, side: Side, command: &[OsString]) -> Result<Infallible> {
        need_root("exec")?;
        let (program, arguments) = command.split_first().context("no command to run: name one")?;
        self.enter(side)?;
        // If this fails, /sys/class/net lists the interfaces outside. Most commands do not look
        // there.
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
        server.run(|| Connection::open()?.add_veth(near, far, client.as_fd(), queues, ALIAS))?;
        let sides = [(&server, Side::Server), (&client, Side::Client)];
        for (namespace, side) in sides {
            namespace.run(|| configure(side))?;
        }
        for (namespace, side) in sides {
            namespace.run(|| netlink::wait_for_carrier(side.interface(), CARRIER_TIMEOUT))?;
        }
        Ok(())
    }

    /// Removes what was found. Returns whether there was anything.
    fn remove(&self, found: [SideParts; 2]) -> Result<bool> {
        // Delete the pair first: a namespace with its interfaces lives on while a process is in it.
        // Deleting one end deletes the other.
        for SideParts { namespace, link, .. } in &found {
            if let (Some(namespace), Some(link)) = (namespace, link) {
                namespace.run(|| Connection::open()?.delete_link(link.index))?;
            }
        }
        drop(found);
        let mut any = false;
        for side in Side::BOTH {
            any |= Namespace::remove(&self.namespace(side))?;
        }
        Ok(any)
    }

    fn find(&self, side: Side) -> Result<SideParts> {
        let mut found = SideParts {
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
            let mut socket = Connection::open()?;
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

    /// Both sides, unless one of them holds a foreign interface.
    fn find_own(&self) -> Result<[SideParts; 2]> {
        let found = [self.find(Side::Server)?, self.find(Side::Client)?];
        for SideParts { side, foreign, .. } in &found {
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

/// The parts that exist of one side.
struct SideParts {
    side: Side,
    namespace: Option<Namespace>,
    /// Its end of the veth pair.
    link: Option<Link>,
    /// The addresses on that end.
    addresses: Vec<Address>,
    /// Names of foreign interfaces in the namespace.
    foreign: Vec<String>,
}

impl SideParts {
    fn is_whole(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.up && link.carrier)
            && self.foreign.is_empty()
            && self.addresses.iter().any(|address| {
                address.ip == self.side.address() && address.prefix_length == PREFIX_LENGTH
            })
    }

    /// Queues in each direction.
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

/// Serialises changes to one lab between processes. Its file is removed on drop.
struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    fn acquire(path: PathBuf) -> Result<Self> {
        loop {
            let file = File::options().write(true).create(true).truncate(false).open(&path)?;
            let file = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
            // The previous holder removed the file, and another process may have made a new one
            // since.
            let inode = file.metadata()?.ino();
            if fs::metadata(&path).is_ok_and(|metadata| metadata.ino() == inode) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Remove it while still holding the lock.
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

/// Applies [`QUIET`] to the calling thread's namespace, before it has interfaces.
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

/// Adds the address of `side` to its interface, in the calling thread's namespace, and sets the
/// interface up.
fn configure(side: Side) -> Result<()> {
    // A veth never finishes checksums. Packets from it must look as on a wire, since the server
    // verifies checksums.
    ethtool::set_tx_checksum(side.interface(), false)?;
    set_up(side)
}

fn set_up(side: Side) -> Result<()> {
    let mut socket = Connection::open()?;
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
