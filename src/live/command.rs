//! One process for each address: what a script does, and what the paper measured first.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use nix::sched::{CloneFlags, setns};

use super::kernel::{Channel, NotAdded};
use crate::net::netlink::{self, Link};

/// The network namespace of the calling thread.
const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// How often an interface may be renamed while a program runs.
const RENAMES: usize = 4;

/// What the programs print, in lower case, for an address that already exists.
const TAKEN: [&str; 2] = ["file exists", "already assigned"];

/// Runs a program once for each address.
pub(super) struct AddressCommand {
    program: &'static str,
    /// The interface's index: its name may change.
    index: u32,
    interface: String,
    /// The interface's namespace, where the processes must be started.
    namespace: File,
    /// Its arguments for adding and removing ADDRESS/128 on INTERFACE.
    add: &'static [&'static str],
    remove: &'static [&'static str],
    /// What it prints, in lower case, if the address is already gone.
    gone: &'static [&'static str],
}

impl AddressCommand {
    /// ip(8) of iproute2, with the flags of the netlink methods: live at once, and no prefix route.
    pub fn ip(link: &Link) -> Result<Self> {
        installed("ip", "iproute2")?;
        Ok(Self {
            program: "ip",
            index: link.index,
            interface: link.name.clone(),
            namespace: File::open(NAMESPACE).context("cannot open the network namespace")?,
            add: &["-6", "address", "add", "ADDRESS", "dev", "INTERFACE", "nodad", "noprefixroute"],
            remove: &["-6", "address", "del", "ADDRESS", "dev", "INTERFACE"],
            gone: &["cannot assign requested address", "address not found"],
        })
    }

    /// ifconfig(8) of net-tools, which has no such flags.
    pub fn ifconfig(link: &Link) -> Result<Self> {
        installed("ifconfig", "net-tools")?;
        Ok(Self {
            program: "ifconfig",
            index: link.index,
            interface: link.name.clone(),
            namespace: File::open(NAMESPACE).context("cannot open the network namespace")?,
            add: &["INTERFACE", "inet6", "add", "ADDRESS"],
            remove: &["INTERFACE", "inet6", "del", "ADDRESS"],
            gone: &["cannot assign requested address"],
        })
    }

    /// The interface's current name.
    fn name(&self) -> String {
        netlink::name_of(self.index, &self.interface)
    }

    /// Calls `work` in the interface's namespace, on another thread if this one is elsewhere.
    fn there<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        if fs::metadata(NAMESPACE)?.ino() == self.namespace.metadata()?.ino() {
            return Ok(work());
        }
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET)
                    .context("cannot enter the network namespace")?;
                Ok(work())
            });
            there.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs it for the interface under its current name, and returns whether the interface exists.
    /// Call it in the interface's namespace.
    fn run(&self, arguments: &[&str], address: Ipv6Addr) -> Result<bool> {
        let name = || Ok::<_, Error>(netlink::link_at(self.index)?.map(|link| link.name));
        let mut called = name()?;
        for _ in 0..RENAMES {
            let Some(interface) = called else { return Ok(false) };
            let done = self.run_for(&interface, arguments, address);
            called = name()?;
            if done.is_ok() || called.as_deref() == Some(&*interface) {
                return done.map(|()| true);
            }
        }
        bail!("interface {} is renamed again and again", self.index)
    }

    fn run_for(&self, interface: &str, arguments: &[&str], address: Ipv6Addr) -> Result<()> {
        let prefix = format!("{address}/128");
        let arguments = arguments.iter().map(|&argument| match argument {
            "ADDRESS" => prefix.as_str(),
            "INTERFACE" => interface,
            word => word,
        });
        let output = Command::new(self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run {}", self.program))?;
        // ifconfig does not always report errors by its status.
        if output.status.success() && output.stderr.is_empty() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words = words.lines().map(str::trim).collect::<Vec<_>>().join("; ");
        bail!("{} says: {words}", self.program)
    }
}

fn installed(program: &str, package: &str) -> Result<()> {
    match Command::new(program).arg("-V").stdin(Stdio::null()).output() {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(anyhow!("{program} not found: install the package '{package}'"))
        }
        Err(error) => Err(error).with_context(|| format!("cannot run {program}")),
    }
}

impl Channel for AddressCommand {
    fn add(&mut self, addresses: &[Ipv6Addr]) -> Result<(), NotAdded> {
        let not_added = |why: Error, added, address: Option<Ipv6Addr>| {
            let taken = format!("{why:#}").to_lowercase();
            let is_taken = TAKEN.iter().any(|words| taken.contains(words));
            NotAdded { why, added, others: address.filter(|_| is_taken).into_iter().collect() }
        };
        let add = || {
            for (added, &address) in addresses.iter().enumerate() {
                let what = || format!("cannot add {address} to {}", self.name());
                let done = self.run(self.add, address).and_then(|is_there| {
                    ensure!(is_there, "there is no such interface here");
                    Ok(())
                });
                done.with_context(what).map_err(|why| not_added(why, added, Some(address)))?;
            }
            Ok(())
        };
        self.there(add).map_err(|why| not_added(why, 0, None))?
    }

    fn remove(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        let remove = || {
            let mut done = Ok(());
            for &address in addresses {
                if let Err(error) = self.run(self.remove, address) {
                    let words = error.to_string().to_lowercase();
                    if !self.gone.iter().any(|gone| words.contains(gone)) {
                        let error =
                            error.context(format!("cannot remove {address} from {}", self.name()));
                        done = done.and(Err(error));
                    }
                }
            }
            done
        };
        self.there(remove)?
    }
}
