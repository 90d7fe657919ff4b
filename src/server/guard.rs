//! GUARD: a process beside a server that takes back what a killed server leaves.
//!
//! ```text
//!   server ── pipe ──► guard     binding … done     the guard exits, with nothing to do
//!   killed ──┴ closed ─► guard   takes back: addresses and routes by their mark, unmarked ones by
//!                                the pool, settings by their notes; then it exits
//! ```
//!
//! The kernel itself removes what belongs to file descriptors: the XDP program, its maps, sockets,
//! rings. Addresses and settings belong to none. The guard is this program again, run as its hidden
//! subcommand `guard` in the server's network namespace. It holds the read end of a pipe to which
//! only the server can write, so it notices the server's end however that comes. It ignores the
//! signals by which people stop servers. If the guard is killed too, the next server on the
//! interface cleans up what carries the mark ([`crate::live`]).

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid, getppid};

use crate::address::{Pool, Prefix, Targets};
use crate::host::settings::Keeper;
use crate::live::{self, Method};
use crate::net::netlink::{self, Delivery, Opener};
use crate::server::ServerConfig;

/// The running program, even if its file was replaced since.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A process being killed closes its descriptors within this time. It takes long if it has
/// gigabytes to release.
const DYING: Duration = Duration::from_secs(10);

/// The server's messages, one byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Word {
    /// From here on, addresses of the pool may be on the interface because of this server, marked
    /// or not.
    Binding = b'b',
    /// Everything was taken back.
    Done = b'd',
    /// The server is alive, but could not take everything back.
    Failed = b'f',
}

/// The server's end. Dropping it reports a failure.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
    has_bound: bool,
}

impl Guard {
    /// Starts a guard. Call it before any change that the guard must take back.
    ///
    /// # Errors
    /// When there is no such interface, or no process can be started.
    pub fn start(config: &ServerConfig) -> Result<Self> {
        let mut more = Vec::new();
        // With moving addresses it does not learn the secret, and finds the addresses by their
        // mark.
        if let Targets::Pool(pool) = &config.targets {
            more.push(format!("--addresses={}", pool.count()));
            more.push(format!("--seed={}", pool.seed()));
        }
        Self::spawn(&config.interface, config.targets.prefix(), config.bind, more)
    }

    /// Starts the guard of a gate.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn of_gate(interface: &str, prefix: Prefix) -> Result<Self> {
        Self::spawn(interface, prefix, Method::LiveMap, vec!["--gate".to_owned()])
    }

    fn spawn(interface: &str, prefix: Prefix, method: Method, more: Vec<String>) -> Result<Self> {
        let index = netlink::link(interface)?.index;
        let arguments = [
            format!("--server={}", getpid()),
            format!("--index={index}"),
            format!("--method={method}"),
            format!("--prefix={prefix}"),
        ];
        let mut child = Command::new(THIS_PROGRAM)
            .arg0("sixhop")
            .arg("guard")
            .args(arguments)
            .args(more)
            .current_dir("/") // keeps no directory busy
            .process_group(0) // Ctrl-C is for the server
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the process that takes back what a killed server leaves")?;
        let pipe = child.stdin.take();
        // Processes that the server starts, `ip` or `ifconfig`, inherit its end. So it closes when
        // the last of them has exited, and no more addresses are added.
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot share a pipe")?;
        }
        Ok(Self { child, pipe, has_bound: false })
    }

    /// Announces that addresses will be bound. Only the first call counts.
    pub fn binding(&mut self) {
        if !self.has_bound {
            self.has_bound = true;
            self.say(Word::Binding);
        }
    }

    /// Reports that there is nothing to take back, and waits for the guard to exit.
    pub fn dismiss(mut self) {
        self.say(Word::Done);
    }

    fn say(&mut self, word: Word) {
        if let Some(pipe) = &mut self.pipe {
            // Without a guard, the next server cleans up.
            let _ = pipe.write_all(&[word as u8]);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.say(Word::Failed); // ignored by a guard that was told that all is done
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// What a guard watches over.
#[derive(Debug)]
pub struct Watch {
    /// The server's process ID.
    pub server: i32,
    /// Index of its interface.
    pub index: u32,
    /// How it makes its addresses live.
    pub method: Method,
    /// The prefix of the addresses.
    pub prefix: Prefix,
    /// The addresses, if they are static.
    pub pool: Option<Pool>,
    /// Whether the server is a gate.
    pub gate: bool,
}

impl Watch {
    /// The guard's whole life: waits until `pipe` ends, and takes back what the server left.
    /// Returns one line for each thing taken back.
    ///
    /// # Errors
    /// When something stays.
    pub fn run(&self, mut pipe: impl Read) -> Result<Vec<String>> {
        let mut signals = SigSet::empty();
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .for_each(|signal| signals.add(signal));
        signals.thread_block().context("cannot block signals")?;
        let mut has_bound = false;
        loop {
            let mut word = [0];
            // An error also means that the other end is gone.
            if !pipe.read(&mut word).is_ok_and(|length| length > 0) {
                self.wait_for_the_end();
                break;
            }
            match word[0] {
                word if word == Word::Binding as u8 => has_bound = true,
                word if word == Word::Done as u8 => return Ok(Vec::new()),
                _ => break,
            }
        }
        self.take_back(has_bound)
    }

    /// Waits until the server has closed everything: the pipe is not the last descriptor. Once the
    /// server is gone, the guard has another parent.
    fn wait_for_the_end(&self) {
        let server = Pid::from_raw(self.server);
        let give_up = Instant::now() + DYING;
        while getppid() == server && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn take_back(&self, has_bound: bool) -> Result<Vec<String>> {
        // If the interface is gone, so is everything on it.
        let Some(link) = netlink::links()?.into_iter().find(|link| link.index == self.index) else {
            return Ok(Vec::new());
        };
        let is_unmarked = has_bound && self.method.is_of_the_kernel();
        let unmarked = self.pool.as_ref().filter(|_| is_unmarked);
        let mut words = Vec::new();
        // If another server's program is attached, that server has its own delivery rule.
        if self.method == Method::LiveMap && link.xdp.is_none() && !self.gate {
            Delivery::clear(&link, self.prefix, Opener::Backstop)?;
        }
        let clear = || {
            if self.gate { Delivery::clear(&link, self.prefix, Opener::Gate) } else { Ok(()) }
        };
        let gone = live::take_back(&link, unmarked, clear)?;
        if gone > 0 {
            words.push(format!(
                "{gone} addresses of {} were left by a sixhop that was killed; they are gone",
                link.name
            ));
        }
        words.extend(Keeper::open()?.put_right()?);
        Ok(words)
    }
}
