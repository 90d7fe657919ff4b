//! Measurements are right and survive: the generator against stubs with known delays, experiments
//! that are killed and resumed, and the report page. They measure, so they run one at a time.
//!
//! ```text
//!   sixhop load, one side of a lab ═══ veth ═══ a stub: a UDP socket that answers late,
//!                                               and notes how late
//! ```
//!
//! | test | what it shows |
//! |---|---|
//! | `uneven_delays_*` | mean and percentiles match the stub's delays |
//! | `a_freeze_*` | every request due during the freeze counts with its whole wait |
//! | `a_killed_experiment_*` | its file equals that of one that was not killed |
//! | `an_experiment_finds_*` | which address counts rotate in time, and why no more |
//! | `a_server_by_way_of_*` | the server's side starts through a command such as ssh |
//! | the others | what the command line prints and writes |

use std::collections::BinaryHeap;
use std::fs;
use std::io::IoSliceMut;
use std::net::{SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::common::server::{PATIENCE, PREFIX, SIXHOP, sixhop};
use crate::common::{TestLab, ip, link, trial};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;

/// Other tests would falsify these. Some compare times and rates with known ones; the experiments
/// use labs with a fixed name.
pub fn alone() -> Vec<Trial> {
    vec![
        trial("uneven_delays_are_measured_by_rings", || uneven_delays("afxdp")),
        trial("uneven_delays_are_measured_by_sockets", || uneven_delays("socket")),
        trial("a_freeze_counts_for_all_that_were_due_by_rings", || freeze("afxdp")),
        trial("a_freeze_counts_for_all_that_were_due_by_sockets", || freeze("socket")),
        trial("a_killed_experiment_goes_on_to_the_same_file", killed_response),
        trial("a_killed_bind_experiment_goes_on_to_the_same_file", killed_bind),
        trial("a_server_by_way_of_another_command_is_measured", server_by_way_of),
        trial("an_experiment_finds_for_how_many_clients_addresses_move", rotation),
        trial("an_interrupted_experiment_says_how_to_go_on", interrupted),
        trial("a_page_has_what_was_measured_and_needs_no_network", page),
    ]
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial("what_makes_no_sense_gets_one_line", what_makes_no_sense),
        trial("colours_are_for_terminals_alone", colours),
        trial("completions_and_manual_know_every_subcommand", completions_and_manual),
    ]
}

// Stubs with known delays.

/// A server independent of Sixhop: it sends one reply to each request, `delay` after it arrived. It
/// records the actual delay, in milliseconds: from the kernel's arrival timestamp to after the
/// send.
struct Stub<'a> {
    delay: &'a (dyn Fn(usize) -> Duration + Sync),
    /// Sleeps for this duration before this request.
    freeze: Option<(usize, Duration)>,
}

/// What a stub measured of itself.
struct Made {
    delays_ms: Vec<f64>,
    frozen: Duration,
}

impl Stub<'_> {
    /// Answers at the only address of the pool until `stop`.
    fn answer(&self, lab: &TestLab, stop: &AtomicBool, ready: &AtomicBool) -> Result<Made> {
        let address = Pool::new(PREFIX.parse()?, 1, 1)?.address(0);
        ip(&format!(
            "-n {} address add {address}/128 dev server0 nodad",
            lab.namespace(Side::Server)
        ))?;
        lab.run_in(Side::Server, || {
            let socket = UdpSocket::bind(SocketAddrV6::new(address, 3540, 0, 0))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::RcvBufForce, &(8 << 20))?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            ready.store(true, Ordering::Release);
            let mut made = Made { delays_ms: Vec::new(), frozen: Duration::ZERO };
            // Ordered by time, the earliest first. The number is an index into `asked`.
            let mut due = BinaryHeap::new();
            let mut asked: Vec<(Duration, SocketAddr, Vec<u8>)> = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                while let Some((arrived, peer, payload)) = receive(&socket)? {
                    if let Some((_, length)) =
                        self.freeze.filter(|(before, _)| *before == asked.len())
                    {
                        let start = Instant::now();
                        thread::sleep(length);
                        made.frozen = start.elapsed();
                    }
                    let at = arrived + (self.delay)(asked.len());
                    due.push(std::cmp::Reverse((at, asked.len())));
                    asked.push((arrived, peer, payload));
                    if self.freeze.is_some() {
                        break; // answered before the next is looked at
                    }
                }
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                while due.peek().is_some_and(|next| next.0.0 <= now) {
                    let Some(std::cmp::Reverse((_, index))) = due.pop() else { break };
                    let (arrived, peer, payload) = &asked[index];
                    socket.send_to(payload, peer)?;
                    let sent = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                    made.delays_ms.push((sent.saturating_sub(*arrived)).as_secs_f64() * 1e3);
                }
                // Sleep until the next reply is due or a request arrives, to leave the processors
                // to the client.
                let limit = Duration::from_millis(10);
                let wait = due.peek().map_or(limit, |next| next.0.0.saturating_sub(now).min(limit));
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None)?;
            }
            Ok(made)
        })
    }

    /// Runs a load against the stub and returns both sides' figures. If the client was late itself
    /// because the machine was busy, the run proves nothing and is repeated.
    fn measure(&self, client: &str, rate: u64, requests: u64) -> Result<(Value, Made)> {
        let mut late = Vec::new();
        for _ in 0..8 {
            let (result, made) = self.measure_once(client, rate, requests)?;
            match result["late"].as_u64() {
                Some(few) if few <= requests / 100 => return Ok((result, made)),
                many => late.push(many),
            }
        }
        bail!(
            "this machine is too busy to measure anything: late requests of {requests} in each \
             run: {late:?}"
        )
    }

    fn measure_once(&self, client: &str, rate: u64, requests: u64) -> Result<(Value, Made)> {
        let lab = TestLab::up()?;
        let (stop, ready) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            let stub = scope.spawn(|| self.answer(&lab, &stop, &ready));
            while !ready.load(Ordering::Acquire) && !stub.is_finished() {
                thread::yield_now();
            }
            let flags = format!(
                "load --interface client0 --prefix {PREFIX} --addresses 1 --client {client} --rate \
                 {rate} --requests {requests} \
                 --replies 1 --json"
            );
            let output = sixhop(&lab, Side::Client, &flags).output();
            stop.store(true, Ordering::Relaxed);
            let made = stub.join().expect("the stub does not panic")?;
            let output = output?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let result: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(result["complete"] == requests, "{result}");
            Ok((result, made))
        })
    }
}

/// The next datagram and its arrival time.
fn receive(socket: &UdpSocket) -> Result<Option<(Duration, SocketAddr, Vec<u8>)>> {
    let mut payload = [0; 2000];
    let mut control = nix::cmsg_space!(libc::timespec);
    let mut slices = [IoSliceMut::new(&mut payload)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let received =
        match recvmsg::<SockaddrIn6>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            received => received?,
        };
    let arrived = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmTimestampns(time) => Some(time),
        _ => None,
    });
    let arrived = arrived.context("no timestamp")?;
    let peer = received.address.context("no sender")?;
    let (length, peer) =
        (received.bytes, SocketAddrV6::new(peer.ip(), peer.port(), 0, peer.scope_id()));
    Ok(Some((Duration::from(arrived), peer.into(), payload[..length].to_vec())))
}

fn is_near(what: &str, found: f64, expected: f64, share: f64) -> Result<()> {
    ensure!(
        (found / expected - 1.0).abs() <= share,
        "{what} is {found}, not {expected} to within {share}"
    );
    Ok(())
}

fn uneven_delays(client: &str) -> Result<()> {
    // 55 % take 50 ms, 33 % 150 ms, 12 % 400 ms. The mean is 125 ms, which hardly any request
    // takes.
    let delay = |index: usize| {
        Duration::from_millis(match index * 37 % 100 {
            0..55 => 50,
            55..88 => 150,
            _ => 400,
        })
    };
    let (result, made) = Stub { delay: &delay, freeze: None }.measure(client, 500, 1000)?;
    let mut delays = made.delays_ms;
    ensure!(delays.len() == 1000, "the stub answered {} of 1000", delays.len());
    delays.sort_by(f64::total_cmp);
    let first = &result["first"];
    let measured = |name: &str| first[name].as_f64().context("a time").map(|time| time / 1000.0);
    let mean = delays.iter().sum::<f64>() / 1000.0;
    ensure!((120.0..200.0).contains(&mean), "the stub's mean delay is {mean} ms, not near 125");
    is_near("the mean", measured("mean_us")?, mean, 0.05)?;
    for (name, place) in [("p50_us", 500), ("p90_us", 900), ("p99_us", 990), ("max_us", 1000)] {
        is_near(name, measured(name)?, delays[place - 1], 0.05)?;
    }
    // One reply per request: the last is the first.
    is_near(
        "the mean to the last reply",
        result["last"]["mean_us"].as_f64().context("a time")? / 1e3,
        mean,
        0.05,
    )
}

fn freeze(client: &str) -> Result<()> {
    const RATE: u64 = 4000;
    const REQUESTS: u64 = 8000;
    let stub =
        Stub { delay: &|_| Duration::ZERO, freeze: Some((2000, Duration::from_millis(200))) };
    let (result, made) = stub.measure(client, RATE, REQUESTS)?;
    let frozen = made.frozen.as_secs_f64() * 1e6; // µs
    // Requests due during the freeze wait between all of it and nothing, evenly spread.
    let waited = RATE as f64 * frozen / 1e6;
    let mean = waited * frozen / 2.0 / REQUESTS as f64;
    let time = |name: &str| result["first"][name].as_f64().context("a time");
    let without = time("p50_us")?;
    ensure!(
        without < mean / 10.0,
        "half of the requests took {without} µs, though they were not due in the freeze"
    );
    is_near("the mean", time("mean_us")?, mean + without, 0.15)?;
    // 1 in 1,000 of all requests is 1 in a few hundred of those that waited.
    is_near("p99.9", time("p999_us")?, frozen * (1.0 - REQUESTS as f64 / 1000.0 / waited), 0.05)?;
    is_near("p99", time("p99_us")?, frozen * (1.0 - REQUESTS as f64 / 100.0 / waited), 0.05)?;
    is_near("the longest", time("max_us")?, frozen, 0.05)
}

// Experiments.

/// A test's own directory, deleted on drop.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self> {
        let path =
            std::env::temp_dir().join(format!("sixhop-measure-{}-{name}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn lines(&self, name: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.0.join(name))?;
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Three rates, two passes, four servers.
const RESPONSE: &str = "[response]
way = \"grid\"
rates = { from = 1000, to = 4000, step = 2 }
requests = 200
runs = 2
thresholds_ms = [1000, 2000]
replies = 10
payload = 32
budget = 60
[[response.series]]
engines = [\"socket\", \"afxdp\"]
bind = \"netlink-down\"
addresses = [1]
[[response.series]]
engines = [\"afxdp\"]
bind = \"live-map\"
addresses = [1, 50]
";

const BIND: &str = "[bind]
runs = 3
budget = 60
[[bind.series]]
methods = [\"netlink\", \"netlink-down\", \"live-map\"]
addresses = [1, 300]
";

/// The experiment with `profile`. Every directory uses the same name for its results, so command
/// lines are equal.
fn experiment(directory: &Directory, figure: &str, profile: &str) -> Result<Command> {
    experiment_into(directory, figure, profile, ".")
}

fn experiment_into(
    directory: &Directory,
    figure: &str,
    profile: &str,
    out: &str,
) -> Result<Command> {
    fs::write(directory.0.join("profile.toml"), profile)?;
    let mut command = Command::new(SIXHOP);
    command.current_dir(&directory.0);
    command.args(["experiment", figure, "--profile", "profile.toml", "--out", out]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

fn succeeds(output: Output) -> Result<String> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A document without what differs between runs: times, and fields that depend on them.
fn without_times(mut document: Value) -> Value {
    const TIMES: [&str; 24] = [
        "started",
        "first",
        "last",
        "achieved_rate",
        "late",
        "server_cpu",
        "generate_seconds",
        "open_seconds",
        "bind_seconds",
        "bind_phases",
        "unbind_phases",
        "generate_ns",
        "bind_ns",
        "unbind_ns",
        "seconds",
        "bytes_per_address",
        "kernel_memory",
        "faster_than_netlink",
        "cores",
        "answered",
        "complete",
        "replies",
        "stragglers",
        "revision",
    ];
    match &mut document {
        Value::Object(fields) => {
            fields.retain(|name, _| !TIMES.contains(&name.as_str()));
            for value in fields.values_mut() {
                *value = without_times(value.take());
            }
        }
        Value::Array(values) => {
            values.iter_mut().for_each(|value| *value = without_times(value.take()))
        }
        _ => {}
    }
    document
}

/// Kills the experiment at several lines of its file and resumes it each time. Returns that file
/// and one of an experiment that was not killed.
fn killed(figure: &str, profile: &str, kills: &[usize]) -> Result<[Vec<Value>; 2]> {
    let name = format!("{figure}.jsonl");
    let [killed, whole] =
        [Directory::new(&format!("{figure}-killed"))?, Directory::new(&format!("{figure}-whole"))?];
    for &lines in kills {
        let mut child = experiment(&killed, figure, profile)?.spawn()?;
        let file = killed.0.join(&name);
        let give_up = Instant::now() + PATIENCE;
        while fs::read_to_string(&file).unwrap_or_default().lines().count() < lines {
            ensure!(
                child.try_wait()?.is_none(),
                "the experiment ended before line {lines}: {}",
                succeeds(child.wait_with_output()?)?
            );
            ensure!(Instant::now() < give_up, "no line {lines}");
            thread::sleep(Duration::from_millis(1));
        }
        child.kill()?;
        child.wait()?;
    }
    let before = fs::read_to_string(killed.0.join(&name))?;
    succeeds(experiment(&killed, figure, profile)?.output()?)?;
    let after = fs::read_to_string(killed.0.join(&name))?;
    let whole_lines = before.rfind('\n').map_or("", |end| &before[..=end]);
    ensure!(after.starts_with(whole_lines), "earlier results were not kept");
    succeeds(experiment(&whole, figure, profile)?.output()?)?;
    // A further run changes nothing: all results exist.
    let printed = succeeds(experiment(&killed, figure, profile)?.output()?)?;
    ensure!(printed.contains("Linux"), "{printed}");
    ensure!(
        fs::read_to_string(killed.0.join(&name))? == after,
        "a finished experiment changed its file"
    );
    Ok([killed.lines(&name)?, whole.lines(&name)?])
}

fn same_but_for_times([killed, whole]: [Vec<Value>; 2], lines: usize) -> Result<()> {
    ensure!(whole.len() == lines, "{} lines, not {lines}", whole.len());
    ensure!(killed.len() == lines, "{} lines, not {lines}", killed.len());
    for (killed, whole) in killed.into_iter().zip(whole) {
        ensure!(killed["schema"] == 1, "{killed}");
        let (killed, whole) = (without_times(killed), without_times(whole));
        ensure!(killed == whole, "{killed}\nis not\n{whole}");
    }
    Ok(())
}

fn killed_response() -> Result<()> {
    // The plan; for each of four servers, one event and six runs; for each server, two thresholds.
    same_but_for_times(killed("response", RESPONSE, &[1, 6, 17, 24])?, 1 + 4 * (1 + 6) + 4 * 2)
}

fn killed_bind() -> Result<()> {
    same_but_for_times(killed("bind", BIND, &[1, 5, 12])?, 1 + 6 * 3 + 6)
}

/// With netlink-batch, the kernel cannot bind the larger number of clients in time. The hash can.
const ROTATION: &str = "
[rotation]
rotate = 1.0
steps = 1
rate = 1000
replies = 2
payload = 32
budget = 2.0
[[rotation.series]]
engine = 'afxdp'
methods = ['netlink-batch']
clients = { from = 20, to = 20000, step = 1000.0 }
[[rotation.series]]
engine = 'afxdp'
methods = ['live-map']
clients = { from = 20, to = 20000, step = 1000.0 }
";

fn rotation() -> Result<()> {
    let directory = Directory::new("rotation")?;
    // Kill it after the first server, then resume it.
    let mut child = experiment(&directory, "rotation", ROTATION)?.spawn()?;
    let give_up = Instant::now() + PATIENCE;
    while fs::read_to_string(directory.0.join("rotation.jsonl")).unwrap_or_default().lines().count()
        < 2
    {
        ensure!(child.try_wait()?.is_none() && Instant::now() < give_up, "no server");
        thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    let first = directory.lines("rotation.jsonl")?[1].clone();
    let printed = succeeds(experiment(&directory, "rotation", ROTATION)?.output()?)?;
    let lines = directory.lines("rotation.jsonl")?;
    ensure!(lines[1] == first, "earlier results were not kept");
    let measured: Vec<_> = lines.iter().filter(|line| line["event"] == "rotated").collect();
    ensure!(measured.len() == 4, "{printed}");
    for trial in measured.iter().filter(|trial| trial["outcome"] == "measured") {
        let clients = trial["clients"].as_u64();
        for step in trial["steps"].as_array().context("no steps")? {
            ensure!(
                step["late_ms"].as_f64() > Some(0.0) || step["rotated"].as_u64() == clients,
                "{step}"
            );
        }
        for times in ["inside", "outside"] {
            ensure!(trial[times][0]["answered"].as_u64() > Some(0), "{trial}");
        }
    }
    let carried: Vec<_> = lines.iter().filter(|line| line["event"] == "carried").collect();
    let [kernel, hash] = carried[..] else { bail!("{printed}") };
    ensure!(kernel["bind"] == "netlink-batch" && kernel["limit"] == "unready", "{kernel}");
    ensure!(kernel["cause"].as_str().is_some_and(|cause| cause.starts_with("20000: ")), "{kernel}");
    ensure!(
        hash["bind"] == "live-map" && hash["clients"].as_u64() >= kernel["clients"].as_u64(),
        "{hash}"
    );
    ensure!(
        printed.contains("clients are carried") && printed.contains("native, copy mode"),
        "{printed}"
    );
    let page = Command::new(SIXHOP).arg("report").arg(&directory.0).output()?;
    succeeds(page)?;
    let html = fs::read_to_string(directory.0.join("report.html"))?;
    ensure!(
        html.contains("Moving addresses") && html.contains("afxdp, live-map, inside"),
        "no such section"
    );
    for name in ["rotation.csv", "rotation.svg", "rotation-1.svg", "rotation-2.svg"] {
        ensure!(directory.0.join(name).exists(), "no {name}");
    }
    Ok(())
}

fn interrupted() -> Result<()> {
    let directory = Directory::new("interrupted")?;
    let long = RESPONSE.replace("requests = 200", "requests = 100000");
    let child = experiment(&directory, "response", &long)?.spawn()?;
    let give_up = Instant::now() + PATIENCE;
    while fs::read_to_string(directory.0.join("response.jsonl")).unwrap_or_default().lines().count()
        < 2
    {
        ensure!(Instant::now() < give_up, "no server");
        thread::sleep(Duration::from_millis(1));
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(child.id() as i32),
        nix::sys::signal::Signal::SIGINT,
    )?;
    let output = child.wait_with_output()?;
    let words = String::from_utf8(output.stderr)?;
    let last = words.lines().last().unwrap_or_default();
    ensure!(
        output.status.code() == Some(1) && last.contains("run the same command to continue"),
        "{words}"
    );
    // Results of another plan are refused.
    let other = experiment(&directory, "response", RESPONSE)?.output()?;
    let words = String::from_utf8(other.stderr)?;
    ensure!(
        other.status.code() == Some(1) && words.contains("belongs to another profile"),
        "{words}"
    );
    Ok(())
}

fn server_by_way_of() -> Result<()> {
    let lab = TestLab::up()?;
    let directory = Directory::new("via")?;
    let profile = directory.0.join("profile.toml");
    let bisect = RESPONSE.replace("\"grid\"", "\"bisect\"").replace("runs = 2", "runs = 1");
    fs::write(&profile, bisect)?;
    let via = format!("ip netns exec {}", lab.namespace(Side::Server));
    let output = sixhop(
        &lab,
        Side::Client,
        "experiment response --json --interface client0 --server-interface server0",
    )
    .args(["--prefix", PREFIX, "--server-program", SIXHOP, "--server-via", &via, "--profile"])
    .arg(&profile)
    .output()?;
    let printed = succeeds(output)?;
    let events: Vec<Value> = printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
    ensure!(
        of("experiment").len() == 1 && of("ready").len() == 4 && of("threshold").len() == 8,
        "{printed}"
    );
    for ready in of("ready") {
        ensure!(
            ready["interface"] == "server0" && ready["environment"]["nic"]["driver"] == "veth",
            "{ready}"
        );
    }
    for trial in of("trial") {
        ensure!(trial["load"]["complete"] == 200 && trial["server_cpu"].is_null(), "{trial}");
    }
    for threshold in of("threshold") {
        // All three rates hold. It tries at least the lowest and the highest.
        ensure!(
            threshold["rate"]["median"] == 4000.0 && threshold["limit"] == "highest",
            "{threshold}"
        );
        ensure!(
            threshold["grid_trials"] == 3 && threshold["trials"].as_u64() <= Some(3),
            "{threshold}"
        );
    }
    // The server ends when its input does.
    let give_up = Instant::now() + PATIENCE;
    while link(&lab, Side::Server)?.xdp.is_some() {
        ensure!(Instant::now() < give_up, "a server is still running");
        thread::sleep(Duration::from_millis(5));
    }
    // A server that cannot start is a result, with the server's own error.
    let output = sixhop(
        &lab,
        Side::Client,
        "experiment response --interface client0 --server-interface eth9",
    )
    .args(["--prefix", PREFIX, "--server-program", SIXHOP, "--server-via", &via, "--profile"])
    .arg(&profile)
    .output()?;
    let printed = succeeds(output)?;
    ensure!(printed.contains("no interface 'eth9'"), "{printed}");
    Ok(())
}

fn page() -> Result<()> {
    let directory = Directory::new("page")?;
    succeeds(experiment(&directory, "response", &format!("{RESPONSE}{BIND}"))?.output()?)?;
    succeeds(experiment(&directory, "bind", &format!("{RESPONSE}{BIND}"))?.output()?)?;
    let output = Command::new(SIXHOP)
        .args([
            "compare",
            "--addresses",
            "20",
            "--trial",
            "0.02",
            "--coalesce",
            "50",
            "--json",
            "--out",
        ])
        .arg(&directory.0)
        .stdin(Stdio::null())
        .output()?;
    succeeds(output)?;
    let report = |directory: &Path| Command::new(SIXHOP).arg("report").arg(directory).output();
    let printed = succeeds(report(&directory.0)?)?;
    ensure!(printed.trim_end() == directory.0.join("report.html").to_string_lossy(), "{printed}");
    let html = fs::read_to_string(directory.0.join("report.html"))?;
    for words in [
        "Figure 1",
        "Figure 2",
        "stated in the paper, 2014",
        "socket, netlink-down",
        "afxdp, live-map",
        "≤ 1000 ms",
        "p99.9",
        "Compared in one run",
        "copy mode, though auto was asked for: zero-copy was not available on veth",
        "in the sender&#39;s context",
        "every 50 µs",
        "prefers-color-scheme: dark",
        "@media print",
        "rx-checksum",
        "experiment response --profile profile.toml",
    ] {
        ensure!(
            html.contains(words) || html.contains(&words.replace("&#39;", "'")),
            "no '{words}' on the page"
        );
    }
    for reference in ["src=", "href=", "url(", "@import", "<script", "https:"] {
        ensure!(!html.contains(reference), "the page refers to others by '{reference}'");
    }
    for (name, start) in [
        ("figure-1-1.svg", "<svg"),
        ("figure-2-4.svg", "<svg"),
        ("latency-1.svg", "<svg"),
        ("response.svg", "<svg"),
        ("bind.svg", "<svg"),
        ("bind.csv", "method,addresses"),
        ("response.csv", "engine,bind,addresses,threshold_ms"),
        ("response-runs.csv", "engine,bind,addresses,run,rate"),
    ] {
        let text = fs::read_to_string(directory.0.join(name)).with_context(|| name.to_owned())?;
        ensure!(text.starts_with(start), "{name} begins with {}", &text[..20]);
    }
    // Each result records what is needed to doubt it.
    let lines = directory.lines("response.jsonl")?;
    let start = &lines[0]["environment"];
    for field in ["sixhop", "command", "kernel", "cpu", "cores"] {
        ensure!(!start[field].is_null() && start[field] != "", "no {field}: {start}");
    }
    ensure!(start["nic"]["napi"]["threaded"] == false && start["nic"]["mtu"] == 1500, "{start}");
    let comparison = directory.lines("compare.jsonl")?;
    for result in &comparison {
        ensure!(result["sustained"].as_array().map(Vec::len) == Some(3), "{result}");
        ensure!(
            result["environment"]["nic"]["interface"] == "client0"
                && result["server"]["interface"] == "server0"
        );
        for end in [result, &result["server"]] {
            ensure!(end["environment"]["nic"]["napi"]["gro_flush_timeout_ns"] == 50_000, "{end}");
        }
    }
    // A directory without results, and one whose lines are not results.
    let empty = Directory::new("empty")?;
    let words = String::from_utf8(report(&empty.0)?.stderr)?;
    ensure!(
        words.contains("has no results: make some with 'sixhop experiment response --out"),
        "{words}"
    );
    fs::write(empty.0.join("bind.jsonl"), "{\"event\":\"cell\"}\n")?;
    let words = String::from_utf8(report(&empty.0)?.stderr)?;
    ensure!(words.contains("bind.jsonl, line 1") && words.lines().count() == 1, "{words}");
    fs::write(empty.0.join("bind.jsonl"), "{\"event\":\"marvel\",\"schema\":99}\n")?;
    let words = String::from_utf8(report(&empty.0)?.stderr)?;
    ensure!(words.contains("schema 99 is newer than 1"), "{words}");
    Ok(())
}

// The command line.

fn what_makes_no_sense() -> Result<()> {
    let directory = Directory::new("wrong")?;
    let taken = directory.0.join("taken");
    fs::write(&taken, "")?;
    let taken = taken.to_string_lossy().into_owned();
    let profile = "profile.toml: ";
    for (figure, from, to, out, status, words) in [
        ("response", "way = ", "way: ", ".", 2, vec![profile, "line 2: ", "expected"]),
        (
            "response",
            "requests = ",
            "request = ",
            ".",
            2,
            vec![profile, "line 4: ", "unknown field `request`, expected one of `way`"],
        ),
        (
            "response",
            "from = 1000",
            "from = 0",
            ".",
            2,
            vec![profile, "response.rates.from is 0: allowed are 1 to 10000000"],
        ),
        (
            "response",
            "from = 1000",
            "from = -5",
            ".",
            2,
            vec![profile, "line 3: ", "response.rates", "-5"],
        ),
        (
            "response",
            "runs = 2",
            "runs = 0",
            ".",
            2,
            vec![profile, "response.runs is 0: allowed are 1 to 1000"],
        ),
        (
            "response",
            "[\"afxdp\"]",
            "[\"socket\"]",
            ".",
            2,
            vec![profile, "response.series.bind is 'live-map'", "allowed"],
        ),
        ("bind", "", "", ".", 2, vec![profile, "it has no table [bind]"]),
        ("response", "", "", &taken, 1, vec![&taken, "choose a writable directory for --out"]),
        (
            "response",
            "",
            "",
            "/proc/sixhop",
            1,
            vec!["/proc/sixhop", "choose a writable directory for --out"],
        ),
        ("response", "", "", "/proc", 1, vec!["/proc", "choose a writable directory for --out"]),
    ] {
        let text = RESPONSE.replacen(from, to, 1);
        let output = experiment_into(&directory, figure, &text, out)?.output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(status), "{figure} {to}: {:?}, {said}", output.status);
        ensure!(said.lines().count() == 1, "not one line: {said}");
        for words in words {
            ensure!(said.contains(words), "no '{words}' in: {said}");
        }
    }
    ensure!(!directory.0.join("response.jsonl").exists());
    let usage = |arguments: &[&str]| -> Result<String> {
        let output =
            Command::new(SIXHOP).args(["experiment", "response"]).args(arguments).output()?;
        ensure!(output.status.code() == Some(2), "{arguments:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    ensure!(usage(&["--profile", "nowhere.toml"])?.contains("use quick, paper, or the path"));
    ensure!(usage(&["--server-via", "ssh host"])?.contains("--server-interface"));
    let words = usage(&[
        "--server-via",
        "ssh 'host",
        "--server-interface",
        "a",
        "--interface",
        "b",
        "--prefix",
        PREFIX,
    ])?;
    ensure!(words.contains("--server-via has an unclosed quotation mark"), "{words}");
    Ok(())
}

fn colours() -> Result<()> {
    // script(1) provides a terminal.
    let on_terminal = |no_colour: bool| -> Result<String> {
        let mut command = Command::new("script");
        command
            .args(["-qec", &format!("{SIXHOP} lab --name UPPER status"), "/dev/null"])
            .env("TERM", "xterm");
        command.env_remove("NO_COLOR").stdin(Stdio::null());
        if no_colour {
            command.env("NO_COLOR", "1");
        }
        Ok(String::from_utf8(command.output()?.stdout)?)
    };
    let coloured = on_terminal(false)?;
    ensure!(coloured.contains("\u{1b}[31m") && coloured.contains("UPPER"), "{coloured:?}");
    let plain = on_terminal(true)?;
    ensure!(plain.starts_with("sixhop: ") && !plain.contains('\u{1b}'), "{plain:?}");
    let elsewhere = Command::new(SIXHOP)
        .args(["lab", "--name", "UPPER", "status"])
        .env_remove("NO_COLOR")
        .output()?;
    ensure!(!String::from_utf8(elsewhere.stderr)?.contains('\u{1b}'));
    Ok(())
}

fn completions_and_manual() -> Result<()> {
    let run = |arguments: &[&str]| {
        succeeds(Command::new(SIXHOP).args(arguments).env("NO_COLOR", "1").output()?)
    };
    let help = run(&["--help"])?;
    let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    // A continued description is indented more than a name.
    let names = listed
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let subcommands: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    ensure!(subcommands.contains(&"experiment") && subcommands.contains(&"man"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell])?;
        ensure!(
            subcommands.iter().all(|name| script.contains(name)),
            "{shell} does not know all of {subcommands:?}"
        );
    }
    let directory = Directory::new("man")?;
    run(&["man", "--out", &directory.0.to_string_lossy()])?;
    for name in subcommands.iter().filter(|name| **name != "help") {
        let page = fs::read_to_string(directory.0.join(format!("sixhop-{name}.1")))?;
        ensure!(page.contains(".SH SYNOPSIS"), "{name}: {page}");
        // Each command has help within 80 columns, without colour if there is no terminal.
        let help = run(&[name, "--help"])?;
        ensure!(!help.contains('\u{1b}') && help.contains("Usage:"), "{name}");
        for line in help.lines().filter(|line| !line.starts_with("Usage:")) {
            ensure!(line.chars().count() <= 80, "{name}: {line}");
        }
    }
    ensure!(run(&["man"])?.contains(".TH sixhop 1"));
    Ok(())
}
