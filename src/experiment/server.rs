//! A server in a process of its own, here or on another machine. It is started by the command line,
//! reports by JSON lines, and stops when its standard input closes.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::address::Prefix;
use crate::events::{Cell, Counters, Event, Ready, Stats};
use crate::lab::{Lab, PREFIX_LENGTH, Side};
use crate::live::{Interrupted, Rotated};

/// A running `sixhop serve`. It stops when this is dropped, or when this process ends.
pub struct ServerProcess {
    process: Process,
    ready: Ready,
}

struct Process {
    child: Child,
    /// The server stops when this closes.
    input: Option<ChildStdin>,
    events: Receiver<Event>,
}

/// How often to check the stop flag while a server gets ready.
const LOOK: Duration = Duration::from_millis(50);

/// The error of a server that was not ready in time.
#[derive(Debug, thiserror::Error)]
#[error("the server was not ready within {seconds} s")]
pub struct TooLong {
    seconds: f64,
}

/// How long a stopping server may be silent: unbinding many addresses takes time.
const STOP: Duration = Duration::from_secs(600);

/// Where a server runs, and with which program, interface and prefix.
#[derive(Debug, Clone)]
pub struct ServerHost {
    /// The words before the command that run it there: `ssh root@host`, `ip netns exec NAME`.
    pub via: Vec<OsString>,
    /// The sixhop program on that host.
    pub program: OsString,
    /// The interface on that host.
    pub interface: String,
    /// The prefix of the addresses.
    pub prefix: Prefix,
}

/// How to run a server.
#[derive(Debug, Clone)]
pub struct LaunchConfig {
    /// Engine, method, number of addresses.
    pub cell: Cell,
    /// The seed that selects the addresses, if they do not move.
    pub seed: u64,
    /// How the addresses move, if they do. Replaces the cell's number of addresses and the seed.
    pub moving: Option<Timing>,
    /// Replies to each request.
    pub replies: u8,
    /// Further flags of `serve`, such as modes and cores.
    pub flags: Vec<OsString>,
}

/// How a server's addresses move.
#[derive(Debug, Clone)]
pub struct Timing {
    /// How many clients have addresses.
    pub clients: u64,
    /// Length of a step, in seconds.
    pub rotate: f64,
    /// The file with the secret, on the server's machine.
    pub secret: PathBuf,
}

impl ServerHost {
    /// The server's side of a lab.
    ///
    /// # Errors
    /// If this program's own file cannot be found.
    pub fn lab(lab: &Lab) -> Result<Self> {
        let program =
            OsString::from(std::env::current_exe().context("cannot find this program's own file")?);
        let enter = ["lab", "--name", lab.name(), "exec", "server", "--"].map(OsString::from);
        let network = Side::Server.address().to_bits() >> PREFIX_LENGTH << PREFIX_LENGTH;
        Ok(Self {
            via: [vec![program.clone()], enter.to_vec()].concat(),
            program,
            interface: Side::Server.interface().to_owned(),
            prefix: Prefix::new(Ipv6Addr::from_bits(network), PREFIX_LENGTH)?,
        })
    }

    /// The command line that runs the server.
    fn command(&self, order: &LaunchConfig) -> Vec<OsString> {
        let Cell { engine, bind, addresses } = order.cell;
        let serve = format!(
            "serve --engine {engine} --interface {} --prefix {} --bind {bind} --replies {} \
             --stop-on-eof --json",
            self.interface, self.prefix, order.replies,
        );
        let words = |text: String| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let which = match &order.moving {
            None => words(format!("--addresses {addresses} --seed {}", order.seed)),
            Some(Timing { clients, rotate, secret }) => {
                let mut which = words(format!(
                    "--schedule mt6d --clients {clients} --rotate {:.0}ms --secret",
                    rotate * 1000.0
                ));
                which.push(secret.clone().into());
                which
            }
        };
        [self.via.clone(), vec![self.program.clone()], words(serve), which, order.flags.clone()]
            .concat()
    }
}

impl ServerProcess {
    /// Starts the server and waits for `patience` at most until it is ready.
    ///
    /// # Errors
    /// If it ends first, with its words on standard error; if it takes too long, or `stop` is set.
    pub fn start(
        host: &ServerHost,
        order: &LaunchConfig,
        patience: Duration,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let command = host.command(order);
        let (program, arguments) = command.split_first().context("no command")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.to_string_lossy()))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("cannot read the server's output")?;
        let (sender, events) = mpsc::channel();
        // The thread ends with the server's output, or when the receiver is gone.
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if Event::parse(&line).is_ok_and(|event| sender.send(event).is_err()) {
                    break;
                }
            }
        });
        let give_up = Instant::now() + patience;
        // On an error, dropping it closes the server's input and waits for its end.
        let mut process = Process { child, input, events };
        loop {
            match process.events.recv_timeout(LOOK) {
                Ok(Event::Ready(ready)) => return Ok(Self { process, ready }),
                Ok(_) => bail!("the server's first event was not 'ready'"),
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(!stop.load(Ordering::Relaxed), Interrupted);
                    ensure!(Instant::now() < give_up, TooLong { seconds: patience.as_secs_f64() });
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!(process.last_words("the server did not get ready"))
                }
            }
        }
    }

    /// The server's `ready` event.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The rotations since the last call: one value for each step, and another for each late one.
    pub fn rotated(&self) -> Vec<Rotated> {
        let news = self.process.events.try_iter();
        news.filter_map(
            |event| if let Event::Rotation(rotated) = event { Some(rotated) } else { None },
        )
        .collect()
    }

    /// The resident memory of the child process, in bytes. `None` if it cannot be read.
    pub fn memory(&self) -> Option<u64> {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.process.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
    }

    /// Stops the server and returns its totals.
    ///
    /// # Errors
    /// If it ended before, or failed.
    pub fn stop(self) -> Result<Stats> {
        let mut process = self.process;
        process.input = None;
        let totals = loop {
            match process.events.recv_timeout(STOP) {
                Ok(Event::Stopped(totals)) => break totals,
                Ok(_) => {}
                Err(_) => bail!(process.last_words("the server ended without its totals")),
            }
        };
        let status = process.child.wait().context("cannot wait for the server")?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(totals)
    }

    /// Stops the server; an error about its counters calls it `name`.
    ///
    /// # Errors
    /// As [`stop`](Self::stop), and if its counters discredit its figures.
    pub fn stop_sound(self, name: &dyn Display) -> Result<()> {
        is_sound(name, &self.stop()?.counters)
    }
}

/// Rejects the figures of a server that lost frames or read descriptors that it never wrote.
///
/// # Errors
/// If it did either.
pub fn is_sound(name: &dyn Display, counters: &Counters) -> Result<()> {
    let (lost, invalid) = (counters.frames_lost, counters.invalid);
    ensure!(
        lost + invalid == 0,
        "{name} lost {lost} frames and read {invalid} invalid descriptors: do not trust its \
         figures, and report this as a bug"
    );
    Ok(())
}

impl Process {
    /// The last words of a server that has ended, from its standard error.
    fn last_words(&mut self, otherwise: &str) -> String {
        self.input = None;
        let mut words = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            let _ = stderr.read_to_string(&mut words);
        }
        let words = words.trim().trim_start_matches("sixhop: ").replace('\n', "; ");
        if words.is_empty() { otherwise.to_owned() } else { words }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.input = None;
        // It stops by itself now; waiting for it prevents a zombie.
        let _ = self.child.wait();
    }
}
