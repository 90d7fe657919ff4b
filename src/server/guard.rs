//! WHAT A SERVER THAT IS KILLED CANNOT TAKE BACK: a process beside it does, which waits for nothing
//! else.
//!
//! ```text
//!   server ── pipe ──► guard     binding … done     the guard ends, and has nothing to do
//!   killed ──┴ closed ─► guard   takes back: addresses and routes by their mark, unmarked ones by
//!                                the pool, settings by their notes; then it ends
//! ```
//!
//! The kernel itself drops what hangs on descriptors: the XDP program, its maps, sockets, rings.
//! Addresses and settings hang on nothing. The guard is this program again, as its hidden
//! subcommand `guard`, in the network namespace in which the server was started. It holds the end
//! of a pipe whose other end only the server has, so it learns of the server's end however that
//! comes. It ignores the signals by which people end servers. Is it killed as well, the next server
//! on the interface does its work, as far as there are marks ([`crate::live`]).

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
use crate::net::netlink;
use crate::server::ServerConfig;

/// The program that runs now, also where its file has been replaced since.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// A process that is being killed has closed its descriptors within this; it is long for one that
/// has gigabytes to give back.
const DYING: Duration = Duration::from_secs(10);

/// What the server says, a byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Word {
    /// From here on addresses of the pool are on the interface because of this server, marked or
    /// not.
    Binding = b'b',
    /// Everything was taken back.
    Done = b'd',
    /// The server lives, and could not take everything back.
    Failed = b'f',
}

/// The server's end: whoever drops it has failed.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
    has_bound: bool,
}

impl Guard {
    /// Starts one, before anything is changed that it is to take back.
    ///
    /// # Errors
    /// When there is no such interface, or no process more.
    pub fn start(config: &ServerConfig) -> Result<Self> {
        let index = netlink::link(&config.interface)?.index;
        let mut arguments = vec![
            ("--server", getpid().to_string()),
            ("--index", index.to_string()),
            ("--method", config.bind.to_string()),
            ("--prefix", config.targets.prefix().to_string()),
        ];
        // Where addresses move it does not get to know the secret, and finds them by their mark.
        if let Targets::Pool(pool) = &config.targets {
            arguments.push(("--addresses", pool.count().to_string()));
            arguments.push(("--seed", pool.seed().to_string()));
        }
        let mut child = Command::new(THIS_PROGRAM)
            .arg0("sixhop")
            .arg("guard")
            .args(arguments.iter().flat_map(|(flag, value)| [*flag, value.as_str()]))
            .current_dir("/") // it is in nobody's way
            .process_group(0) // Ctrl-C is for the server
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start the process that takes back what a killed server leaves")?;
        let pipe = child.stdin.take();
        // Processes that the server starts, `ip` or `ifconfig`, have its end as well: it is closed
        // when the last of them has ended, and adds no address any more.
        if let Some(pipe) = &pipe {
            fcntl(pipe, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot share a pipe")?;
        }
        Ok(Self { child, pipe, has_bound: false })
    }

    /// Says that addresses are going to be bound. Only the first time counts.
    pub fn binding(&mut self) {
        if !self.has_bound {
            self.has_bound = true;
            self.say(Word::Binding);
        }
    }

    /// Says that there is nothing to take back, and waits until it has ended.
    pub fn dismiss(mut self) {
        self.say(Word::Done);
    }

    fn say(&mut self, word: Word) {
        if let Some(pipe) = &mut self.pipe {
            // Without a guard the next server does its work.
            let _ = pipe.write_all(&[word as u8]);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.say(Word::Failed); // not heard by one that was told before that all is done
        drop(self.pipe.take());
        let _ = self.child.wait();
    }
}

/// What a guard watches over.
#[derive(Debug)]
pub struct Watch {
    /// The process.
    pub server: i32,
    /// Index of its interface.
    pub index: u32,
    /// How it makes its addresses live.
    pub method: Method,
    /// Prefix that the addresses lie under.
    pub prefix: Prefix,
    /// The addresses, where they stay.
    pub pool: Option<Pool>,
}

impl Watch {
    /// The guard's whole life: waits until `pipe` ends, and takes back what the server left. Says
    /// in one line each what that was.
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
            // An error is the end as well: there is nobody at the other end.
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

    /// Waits until the server has closed all that it had: the pipe is not the last of it. Then the
    /// guard is somebody else's child.
    fn wait_for_the_end(&self) {
        let server = Pid::from_raw(self.server);
        let give_up = Instant::now() + DYING;
        while getppid() == server && Instant::now() < give_up {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn take_back(&self, has_bound: bool) -> Result<Vec<String>> {
        // With the interface all has gone.
        let Some(link) = netlink::links()?.into_iter().find(|link| link.index == self.index) else {
            return Ok(Vec::new());
        };
        let is_unmarked = has_bound && self.method.is_of_the_kernel();
        let unmarked = self.pool.as_ref().filter(|_| is_unmarked);
        let mut words = Vec::new();
        // Whose program is there already has one of its own.
        if self.method == Method::LiveMap && link.xdp.is_none() {
            netlink::Delivery::clear(&link, self.prefix, netlink::Opener::Backstop)?;
        }
        let gone = live::take_back(&link, unmarked)?;
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
