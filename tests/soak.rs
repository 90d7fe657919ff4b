//! A soak: a server of each kind in turn, under load and a series of disturbances. It lasts
//! SIXHOP_SOAK_SECONDS, 8 by default, so that the test suite shows that it works; `make soak` runs
//! an hour. It ends with a table. It fails if requests are lost for no counted reason, or if memory
//! or descriptors keep growing.
//!
//! ```text
//!   for each engine:
//!     server ──► (quiet · hostile · still · flap) again and again ──► kill, start again, quiet
//!        └ memory and descriptors: after the first round, in the middle, at the end
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, PREFIX, sixhop};
use crate::common::{TestLab, addresses, ip, link, trial};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;
use tempfile::NamedTempFile;

const ADDRESSES: u64 = 200;

/// Requests per second: low enough that two processors can serve both ends and the disturbances.
const RATE: u64 = 2000;

/// The servers' flags. A short soak runs the first only.
const SERVERS: [&str; 7] = [
    "--engine afxdp --bind live-map",
    "--engine socket-gso --bind netlink-batch",
    "--engine reflect --bind netlink-batch",
    "--engine uring --bind netlink-batch",
    "--engine afxdp --bind live-map --schedule mt6d",
    "--engine afxdp --bind netlink-batch",
    "--engine socket --bind netlink-batch",
];

/// A disturbance during the load. `excuse` is a reason for losses that no counter shows.
struct Phase {
    name: &'static str,
    excuse: Option<&'static str>,
    inject: fn(&Soak, &Serving, &AtomicBool) -> Result<()>,
}

const PHASES: [Phase; 4] = [
    Phase { name: "quiet", excuse: None, inject: |_, _, _| Ok(()) },
    Phase { name: "hostile", excuse: None, inject: hostile },
    Phase { name: "still", excuse: None, inject: still },
    Phase { name: "flap", excuse: Some("the link was down"), inject: flap },
];

pub fn trials() -> Vec<Trial> {
    vec![trial("nothing_is_lost_without_a_reason_and_nothing_grows", soak)]
}

struct Soak {
    lab: TestLab,
    /// The file with the secret for moving addresses.
    secret: NamedTempFile,
    /// The length of a phase.
    seconds: u64,
    hostile: AtomicU64,
}

/// A server and its latest event.
struct Serving {
    child: Child,
    /// The flags that define its addresses.
    which: String,
    last: Arc<Mutex<(u64, Value)>>,
}

impl Serving {
    fn start(soak: &Soak, flags: &str) -> Result<Self> {
        let which = if flags.contains("--schedule") {
            format!(
                "--schedule mt6d --clients {ADDRESSES} --rotate 1s --secret {}",
                soak.secret.path().display()
            )
        } else {
            format!("--addresses {ADDRESSES}")
        };
        let flags = flags.replace("--schedule mt6d", "");
        let flags = format!("serve --interface server0 --prefix {PREFIX} {which} {flags} --json");
        let mut child = sixhop(&soak.lab, Side::Server, &flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        let last = Arc::new(Mutex::new((0, Value::Null)));
        thread::spawn({
            let last = last.clone();
            move || {
                for line in output.lines().map_while(Result::ok) {
                    let value: Value = serde_json::from_str(&line).unwrap_or_default();
                    if value["event"] == "rotation" {
                        continue;
                    }
                    if let Ok(mut last) = last.lock() {
                        *last = (last.0 + 1, value);
                    }
                }
            }
        });
        let serving = Self { child, which, last };
        serving.after(0)?;
        Ok(serving)
    }

    fn number(&self) -> u64 {
        self.last.lock().map_or(0, |last| last.0)
    }

    /// Waits for an event after the one with this number.
    fn after(&self, number: u64) -> Result<Value> {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if let Some(said) = self.last.lock().ok().filter(|last| last.0 > number) {
                return Ok(said.1.clone());
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the server prints no more events")
    }

    /// The statistics from two events later, which count everything sent before this call.
    fn stats(&self) -> Result<Value> {
        self.after(self.number() + 1)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Memory in KiB, and descriptors.
    fn held(&self) -> Result<(u64, usize)> {
        let process = format!("/proc/{}", self.child.id());
        let status = fs::read_to_string(format!("{process}/status"))?;
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        Ok((memory.context("no VmRSS")?.parse()?, fs::read_dir(format!("{process}/fd"))?.count()))
    }

    fn stop(mut self) -> Result<()> {
        self.signal(Signal::SIGINT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Requests that the server counts as unanswered, by reason.
fn dropped(stats: &Value) -> BTreeMap<&'static str, u64> {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    BTreeMap::from([
        ("the socket's buffer was full", number(&stats["socket_dropped"])),
        ("no frame for it", number(&stats["xdp"]["rx_dropped"])),
        ("the ring was full", number(&stats["xdp"]["rx_ring_full"])),
        ("no ring", number(&stats["steering"]["no_ring"])),
        ("replies that the kernel did not take", number(&stats["unsent"])),
    ])
}

/// The outcome of all rounds of a phase.
#[derive(Default)]
struct Line {
    rounds: u64,
    sent: u64,
    complete: u64,
    reasons: BTreeMap<&'static str, u64>,
}

impl Soak {
    fn load(&self, which: &str, requests: u64) -> Result<Value> {
        let flags = format!(
            "load --interface client0 --prefix {PREFIX} {which} --rate {RATE} --requests \
             {requests} --json"
        );
        let output = sixhop(&self.lab, Side::Client, &flags).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Sends requests for the length of a phase while `inject` disturbs the server, and adds the
    /// outcome to `line`.
    fn run(&self, phase: &Phase, serving: &Serving, line: &mut Line) -> Result<()> {
        let before = dropped(&serving.after(serving.number())?);
        let ended = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let injector = scope.spawn(|| (phase.inject)(self, serving, &ended));
            let result = self.load(&serving.which, RATE * self.seconds);
            ended.store(true, Ordering::Relaxed);
            match injector.join() {
                Ok(injected) => injected.and(result),
                Err(_) => bail!("the injector panicked"),
            }
        })?;
        let after = dropped(&serving.stats()?);
        let number = |field: &str| result[field].as_u64().unwrap_or_default();
        for nothing in ["duplicates", "wrong_source", "corrupt"] {
            ensure!(number(nothing) == 0, "{}: {nothing}: {result}", phase.name);
        }
        let lost = number("sent") - number("complete");
        let mut counted = 0;
        for (reason, count) in &after {
            let count = count - before.get(reason).unwrap_or(&0);
            if count > 0 {
                *line.reasons.entry(reason).or_default() += count;
                counted += count;
            }
        }
        let unexplained = lost.saturating_sub(counted);
        if let (1.., Some(excuse)) = (unexplained, phase.excuse) {
            *line.reasons.entry(excuse).or_default() += unexplained;
        } else {
            ensure!(
                unexplained == 0,
                "{}: {unexplained} of {lost} lost for no reason: {result}",
                phase.name
            );
        }
        line.rounds += 1;
        line.sent += number("sent");
        line.complete += number("complete");
        Ok(())
    }
}

/// Sends hostile frames of every kind, at the rate of the requests.
fn hostile(soak: &Soak, _: &Serving, ended: &AtomicBool) -> Result<()> {
    let [server, client] = [Side::Server, Side::Client].map(|side| link(&soak.lab, side));
    let (server, client) = (server?, client?);
    let pool = Pool::new(PREFIX.parse()?, ADDRESSES, 1)?;
    let socket = soak.lab.run_in(Side::Client, || PacketSocket::on(client.index))?;
    let mut state = 1u64;
    for address in (0..).map(|index| pool.address(index % ADDRESSES)) {
        if ended.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2(client.mac, server.mac)
            .ipv6(Side::Client.address().octets(), address.octets(), 64)
            .udp(50_000, 3540)
            .write(&mut frame, &[7; 32])?;
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (kind, byte) = (state >> 60, (state >> 40) as u8);
        // Each kind makes the frame one that must get no reply.
        match kind {
            0 | 1 => frame.truncate(14 + usize::from(byte) % 80),
            2 | 3 => frame[60] ^= byte | 1, // the checksum
            4 => frame[18..20].copy_from_slice(&[byte, 0xff]),
            5 => frame[58..60].copy_from_slice(&[byte | 1, 0xff]),
            6 => frame[60..62].fill(0),
            7 => frame[20] = 6,
            8 => frame[22] = 0xff, // from a group
            9 => frame[54..56].copy_from_slice(&3540u16.to_be_bytes()),
            10 => frame[14] = 0x40 | byte >> 4,
            11 => frame[56] ^= 0x80, // another port
            _ => frame[70] ^= byte | 1,
        }
        // A full queue on the way may drop it.
        soak.hostile.fetch_add(u64::from(socket.send(&frame).is_ok()), Ordering::Relaxed);
        socket.drain().ok();
        thread::sleep(Duration::from_micros(1_000_000 / RATE));
    }
    Ok(())
}

/// Stops the server for a moment; its rings and sockets queue the requests.
fn still(soak: &Soak, serving: &Serving, ended: &AtomicBool) -> Result<()> {
    wait_for_traffic(soak, ended)?;
    serving.signal(Signal::SIGSTOP)?;
    wait(20, ended);
    serving.signal(Signal::SIGCONT)
}

/// Sets the link down and up again, and restores the interface's own address.
fn flap(soak: &Soak, _: &Serving, ended: &AtomicBool) -> Result<()> {
    wait_for_traffic(soak, ended)?;
    let namespace = soak.lab.namespace(Side::Server);
    ip(&format!("-n {namespace} link set server0 down"))?;
    wait(50, &AtomicBool::new(false));
    ip(&format!("-n {namespace} link set server0 up"))?;
    ip(&format!("-n {namespace} address replace 2001:db8:1::2/64 dev server0 nodad"))?;
    // Wait until it serves as before, ahead of the next round.
    wait(2500, &AtomicBool::new(false));
    Ok(())
}

/// Waits for a few hundred requests to arrive.
fn wait_for_traffic(soak: &Soak, ended: &AtomicBool) -> Result<()> {
    soak.lab.run_in(Side::Server, || {
        let packets = || -> Result<u64> {
            let text = fs::read_to_string("/proc/thread-self/net/dev")?;
            let line = text.lines().find_map(|line| line.trim().strip_prefix("server0:"));
            Ok(line
                .and_then(|line| line.split_whitespace().nth(1))
                .context("no server0")?
                .parse()?)
        };
        let before = packets()?;
        while packets()? < before + 300 && !ended.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    })
}

fn wait(milliseconds: u64, ended: &AtomicBool) {
    let until = Instant::now() + Duration::from_millis(milliseconds);
    while Instant::now() < until && !ended.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
    }
}

/// Kills the server under load, checks that nothing of it remains, and starts the next.
fn kill_and_start(soak: &Soak, mut serving: Serving, flags: &str) -> Result<Serving> {
    let which = serving.which.clone();
    thread::scope(|scope| {
        let load = scope.spawn(|| soak.load(&which, RATE));
        thread::sleep(Duration::from_millis(300));
        let killed = serving.child.kill();
        let ended = serving.child.wait();
        let _ = load.join(); // what it lost is what the kill cost
        killed.and(ended)
    })?;
    let pool = Pool::new(PREFIX.parse()?, ADDRESSES, 1)?;
    let give_up = Instant::now() + PATIENCE;
    while addresses(&soak.lab)?.iter().any(|address| pool.contains(*address))
        || link(&soak.lab, Side::Server)?.xdp.is_some()
    {
        ensure!(
            Instant::now() < give_up,
            "{flags}: the killed server left addresses or its XDP program"
        );
        thread::sleep(Duration::from_millis(10));
    }
    Serving::start(soak, flags)
}

fn soak() -> Result<()> {
    let total: u64 =
        std::env::var("SIXHOP_SOAK_SECONDS").map_or(Ok(8), |seconds| seconds.parse())?;
    let servers = if total < 60 { &SERVERS[..1] } else { &SERVERS[..] };
    let share = Duration::from_secs(total) / servers.len() as u32;
    let mut secret = NamedTempFile::new()?; // readable by nobody else
    std::io::copy(&mut std::io::Read::take(fs::File::open("/dev/urandom")?, 32), &mut secret)?;
    let soak = Soak {
        lab: TestLab::up()?,
        secret,
        seconds: (total / 60).clamp(1, 5),
        hostile: AtomicU64::new(0),
    };
    let started = Instant::now();
    let mut lines: Vec<Line> = PHASES.iter().map(|_| Line::default()).collect();
    let mut held = Vec::new();
    let mut restarts = 0;
    for flags in servers {
        let begun = Instant::now();
        let serving = Serving::start(&soak, flags).with_context(|| (*flags).to_owned())?;
        let mut seen = Vec::new();
        // At least one round, and more until its share of the time is used.
        while seen.is_empty() || begun.elapsed() < share {
            for (phase, line) in PHASES.iter().zip(&mut lines) {
                soak.run(phase, &serving, line).with_context(|| (*flags).to_owned())?;
            }
            seen.push(serving.held()?);
        }
        let (start, middle, end) = (seen[0], seen[seen.len() / 2], seen[seen.len() - 1]);
        held.push((*flags, start, middle, end));
        let serving = kill_and_start(&soak, serving, flags)?;
        restarts += 1;
        soak.run(&PHASES[0], &serving, &mut lines[0])
            .with_context(|| format!("{flags}, started again"))?;
        serving.stop()?;
    }
    println!("\n{:.0} s, {RATE} requests/s", started.elapsed().as_secs_f64());
    println!(
        "{:10} {:>7} {:>10} {:>10} {:>6}  reasons",
        "phase", "rounds", "requests", "answered", "lost"
    );
    for (phase, line) in PHASES.iter().zip(&lines) {
        let reasons: Vec<_> =
            line.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let lost = line.sent - line.complete;
        println!(
            "{:10} {:>7} {:>10} {:>10} {lost:>6}  {}",
            phase.name,
            line.rounds,
            line.sent,
            line.complete,
            reasons.join(", ")
        );
    }
    println!(
        "servers killed and started again: {restarts}; hostile frames: {}",
        soak.hostile.into_inner()
    );
    println!("{:48} {:>12} {:>12} {:>12}  KiB, descriptors", "server", "start", "middle", "end");
    for (flags, start, middle, end) in &held {
        let show = |(memory, descriptors): &(u64, usize)| format!("{memory}, {descriptors}");
        println!("{flags:48} {:>12} {:>12} {:>12}", show(start), show(middle), show(end));
    }
    for (flags, start, _, end) in held {
        // Pages touched for the first time may add up to a mebibyte, once.
        ensure!(end.1 <= start.1, "{flags}: descriptors grew from {} to {}", start.1, end.1);
        ensure!(end.0 <= start.0 + 1024, "{flags}: memory grew from {} to {} KiB", start.0, end.0);
    }
    Ok(())
}
