//! Runs `sixhop` as a user would, on one side of a lab.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::engine::{self, About, EngineKind, Options, TPacket};
use sixhop::events::Counters;
use sixhop::lab::{Lab, Side};
use sixhop::live::Method;
use sixhop::server::{self as library, ServerConfig};
use sixhop::service::Service;

pub const SIXHOP: &str = env!("CARGO_BIN_EXE_sixhop");
pub const PREFIX: &str = "2001:db8:1::/64";

/// The engines of the registry, each in all of its ways: a name, and flags where there are any.
pub fn engines() -> impl Iterator<Item = &'static str> {
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let of = |about: &'static About| {
            let words =
                |(option, value): &(&str, &str)| format!("{} --{option} {value}", about.kind);
            let ways = about.ways.iter().map(words);
            std::iter::once(about.kind.to_string()).chain(ways)
        };
        engine::all().flat_map(of).collect()
    });
    ALL.iter().map(String::as_str)
}

/// What the engine says of itself that these words name, of [`engines`].
pub fn about(engine: &str) -> &'static About {
    let name = engine.split(' ').next().unwrap_or_default();
    let kind: EngineKind = name.parse().expect("one of the registry");
    kind.about().expect("one of the registry")
}

/// A test fails if what it waits for takes longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `sixhop` with these space-separated arguments, on one side of the lab.
pub fn sixhop(lab: &Lab, side: Side, arguments: &str) -> Command {
    let mut command = Command::new(SIXHOP);
    command.args(["lab", "--name", lab.name(), "exec", &side.to_string(), "--", SIXHOP]);
    command.args(arguments.split_whitespace()).stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A server of the library, not started yet, that is to run `engine`, one of [`engines`], for the
/// addresses of `pool`.
pub fn library(engine: &str, pool: Pool, bind: Method) -> Result<ServerConfig> {
    let (engine, layout) = engine.split_once(" --tpacket ").unwrap_or((engine, "v2"));
    let mut options = Options::default();
    options.packet_ring.tpacket =
        TPacket::from_str(layout, false).map_err(|error| anyhow!(error))?;
    let hold = ServerConfig::hold(Side::Server.interface().to_owned(), pool, bind);
    Ok(ServerConfig { engine: Some(engine.parse()?), options, ..hold })
}

/// Has a server of the library answer by `service` while `ask` asks. Returns what was asked for,
/// and what the server counted.
pub fn serve<T>(
    lab: &Lab,
    config: &ServerConfig,
    service: &(impl Service + Sync),
    ask: impl FnOnce() -> Result<T>,
) -> Result<(T, Counters)> {
    let (stop, started) = (AtomicBool::new(false), mpsc::channel());
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            lab.run_in(Side::Server, || {
                let server = library::Server::start_with(config, service, &mut |_| true)?;
                started.0.send(())?;
                Ok(server.run(&stop, |_| {}, &mut |_| {})?)
            })
        });
        let told = started.1.recv_timeout(PATIENCE).map_err(anyhow::Error::from);
        let asked = told.and_then(|()| ask());
        stop.store(true, Ordering::Relaxed);
        let totals = server.join().map_err(|_| anyhow!("the server panicked"))?;
        let asked = asked.map_err(|error| match &totals {
            Ok(totals) => error.context(format!("{:?}", totals.stats.counters)),
            Err(why) => anyhow!("{error}: {why:#}"),
        })?;
        Ok((asked, totals?.stats.counters))
    })
}

/// Received packets that no other counter of the statistics accounts for.
pub fn unaccounted(stats: &Value) -> i64 {
    let count = |value: &Value| value.as_i64().unwrap_or_default();
    let dropped: i64 =
        stats["dropped"].as_object().into_iter().flatten().map(|(_, value)| count(value)).sum();
    count(&stats["received"])
        - count(&stats["answered"])
        - count(&stats["advertised"])
        - count(&stats["waiting"])
        - dropped
}

/// A running server, killed when dropped.
pub struct Server {
    pub child: Child,
    output: BufReader<ChildStdout>,
    pub ready: Value,
}

impl Server {
    pub fn start(lab: &Lab, flags: &str) -> Result<Self> {
        Self::start_with(lab, &format!("--prefix {PREFIX} {flags}"))
    }

    /// Serves another prefix, which `flags` name.
    pub fn start_with(lab: &Lab, flags: &str) -> Result<Self> {
        Self::start_on(lab, "server0", flags)
    }

    /// The same on another interface.
    pub fn start_on(lab: &Lab, interface: &str, flags: &str) -> Result<Self> {
        Self::start_in(lab, Side::Server, interface, flags)
    }

    /// The same on either side.
    pub fn start_in(lab: &Lab, side: Side, interface: &str, flags: &str) -> Result<Self> {
        let flags = format!("serve --interface {interface} --json {flags}");
        Self::of(sixhop(lab, side, &flags))
    }

    /// A server that `command` starts.
    pub fn of(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut server = Self { child, output, ready: Value::Null };
        server.ready = server.event()?;
        ensure!(server.ready["event"] == "ready", "{}", server.ready);
        Ok(server)
    }

    /// The next event.
    pub fn event(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let mut words = String::new();
            self.child.stderr.take().context("asked twice")?.read_to_string(&mut words)?;
            bail!("the server ended: {words}");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Waits for statistics that satisfy `expected`.
    pub fn wait_for(&mut self, mut expected: impl FnMut(&Value) -> bool) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let stats = self.event()?;
            if expected(&stats) {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "waited in vain, at last for {stats}");
        }
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Kills the guard, then the server. The guard would clean up at once (tests/faults.rs); this
    /// way the next server has to.
    pub fn kill_with_guard(&mut self) -> Result<()> {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        ensure!(!children.is_empty(), "no guard");
        for child in children.split_whitespace() {
            kill(Pid::from_raw(child.parse()?), Signal::SIGKILL)?;
        }
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// Interrupts the server and returns its totals.
    pub fn stop(mut self) -> Result<Value> {
        self.signal(Signal::SIGINT)?;
        loop {
            let event = self.event()?;
            if event["event"] == "stopped" {
                ensure!(self.child.wait()?.success(), "the server failed");
                ensure!(unaccounted(&event) == 0, "it does not add up: {event}");
                ensure!(event["frames_lost"] == 0 && event["invalid"] == 0, "{event}");
                return Ok(event);
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
