//! Faults of the machine, while the server is under load. Afterwards the server serves again or has
//! ended with one clear line, and it leaves nothing behind.
//!
//! | test | what happens |
//! |---|---|
//! | `a_link_*`, `an_interface_*` | the interface is set down and up, or deleted |
//! | `a_client_that_stops_reading_*` | the client's rings fill up and stay full |
//! | `a_server_that_stands_still_*`, `a_message_queue_*` | full rings and queues: losses counted |
//! | `a_second_server_*`, `an_xdp_program_*` | another program wants the interface |
//! | `descriptors_*`, `a_full_disk_*` | the machine runs out of them |
//! | `killed_*` | SIGKILL at random moments, SIXHOP_KILLS times (default 8) |

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::server::{PATIENCE, PREFIX, SIXHOP, Server, sixhop};
use crate::common::{
    TestLab, addresses, fails_with, have_client_poll, ip, link, trial, wait_for_no_program,
};
use anyhow::{Context, Result, anyhow, ensure};
use libtest_mimic::Trial;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;
use sixhop::net::netlink;
use sixhop::xdp::Attachment;

const PORT: u16 = 3540;
const ADDRESSES: u64 = 50;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a_link_that_was_down_is_served_again", link_down_and_up),
        trial("an_interface_that_is_deleted_ends_the_server", interface_deleted),
        trial("a_client_that_stops_reading_keeps_nobody_else_waiting", client_stops_reading),
        trial("a_server_that_stands_still_counts_what_it_missed", server_stands_still),
        trial("a_message_queue_that_is_full_loses_nothing_silently", message_queue_full),
        trial("a_second_server_is_refused_and_the_first_goes_on", second_server),
        trial("an_xdp_program_that_is_taken_off_ends_the_server", program_taken_off),
        trial("descriptors_that_run_out_are_one_clear_line", descriptors_run_out),
        trial("descriptors_that_run_out_later_disturb_nobody", descriptors_run_out_later),
        trial("a_full_disk_leaves_no_half_result", disk_full),
        trial("killed_at_any_moment_it_leaves_nothing", killed),
    ]
}

fn pool() -> Result<Pool> {
    Ok(Pool::new(PREFIX.parse()?, ADDRESSES, 1)?)
}

/// Sends a few thousand requests per second from a kernel socket of the client and counts replies.
struct Load {
    stop: Arc<AtomicBool>,
    replies: Arc<AtomicU64>,
    thread: Option<JoinHandle<Result<()>>>,
    _polling: Option<Attachment>,
}

impl Load {
    /// Sets static neighbours, so nothing waits for neighbour discovery. `polls`: makes the
    /// client's end poll (see [`have_client_poll`]), if no other XDP program does.
    fn start(lab: &TestLab, polls: bool) -> Result<Self> {
        let polling = polls.then(|| have_client_poll(lab)).transpose()?;
        let mac = link(lab, Side::Server)?.mac;
        let pool = pool()?;
        let socket = lab.run_in(Side::Client, || {
            let client = netlink::link(Side::Client.interface())?;
            for address in pool.iter() {
                netlink::set_neighbour(client.index, address, Some(mac))?;
            }
            let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        })?;
        let (stop, replies) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let thread = thread::spawn({
            let (stop, replies) = (stop.clone(), replies.clone());
            move || {
                let mut buffer = [0; 100];
                for address in (0..).map(|index| pool.address(index % ADDRESSES)) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // The link may be down.
                    let _ = socket.send_to(&[7; 32], SocketAddrV6::new(address, PORT, 0, 0));
                    thread::sleep(Duration::from_micros(300));
                    while socket.recv_from(&mut buffer).is_ok() {
                        replies.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            }
        });
        Ok(Self { stop, replies, thread: Some(thread), _polling: polling })
    }

    /// Waits for the next reply, and returns how long that took.
    fn wait_for_replies(&self) -> Result<Duration> {
        let started = Instant::now();
        let before = self.replies.load(Ordering::Relaxed);
        while self.replies.load(Ordering::Relaxed) < before + 100 {
            ensure!(started.elapsed() < PATIENCE, "no reply came");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(started.elapsed())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}

fn start(lab: &TestLab, flags: &str) -> Result<Server> {
    Server::start(lab, &format!("--addresses {ADDRESSES} {flags}"))
}

/// Waits until the server ends by itself, with status 1 and one line that contains `words`.
fn ends_with(mut server: Server, words: &str) -> Result<()> {
    fails_with(server.wait_for(|_| false), words)?;
    let status = server.child.wait()?;
    ensure!(status.code() == Some(1), "the server ended with {status}");
    Ok(())
}

/// Waits until no trace of a server is left in the lab, and returns how long that took.
fn nothing_is_left(lab: &TestLab) -> Result<Duration> {
    let started = Instant::now();
    let pool = pool()?;
    loop {
        let own: Vec<_> =
            addresses(lab)?.into_iter().filter(|address| pool.contains(*address)).collect();
        let routes = routes(lab)?;
        let server = link(lab, Side::Server)?;
        let notes = notes(lab)?;
        if own.is_empty()
            && routes.is_empty()
            && server.xdp.is_none()
            && server.up
            && notes.is_empty()
        {
            return Ok(started.elapsed());
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "left: {} addresses, routes {routes:?}, {server:?}, notes {notes:?}",
            own.len()
        );
        thread::sleep(Duration::from_millis(2));
    }
}

/// The routes that carry our mark.
fn routes(lab: &TestLab) -> Result<String> {
    let show = format!("-n {} -6 route show table local proto 102", lab.namespace(Side::Server));
    Ok(String::from_utf8(Command::new("ip").args(show.split(' ')).output()?.stdout)?)
}

/// Notes of settings in the server's namespace that are not restored yet.
fn notes(lab: &TestLab) -> Result<Vec<PathBuf>> {
    let cookie = lab.run_in(Side::Server, || Ok(sixhop::net::option::namespace_cookie()?))?;
    let Ok(entries) = fs::read_dir("/run/sixhop") else { return Ok(Vec::new()) };
    let prefix = format!("{cookie}-");
    let ours = |path: &PathBuf| {
        path.file_name().and_then(OsStr::to_str).is_some_and(|name| name.starts_with(&prefix))
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(ours).collect())
}

fn link_down_and_up() -> Result<()> {
    for flags in [
        "--engine afxdp --bind live-map",
        "--engine afxdp --bind netlink",
        "--engine reflect --bind netlink-batch",
        "--engine socket-gso --bind netlink",
        "--engine uring --bind ioctl",
    ] {
        let lab = TestLab::up()?;
        let server = start(&lab, flags)?;
        let load = Load::start(&lab, true)?;
        load.wait_for_replies()?;
        let namespace = lab.namespace(Side::Server);
        // With no pause, the link is up again before the server looks.
        for pause in [300, 0] {
            ip(&format!("-n {namespace} link set server0 down"))?;
            thread::sleep(Duration::from_millis(pause));
            ip(&format!("-n {namespace} link set server0 up"))?;
            let up = Instant::now();
            // Whoever sets the link up restores what is not the server's: the interface's own
            // address, which leads to its neighbours.
            ip(&format!("-n {namespace} address add 2001:db8:1::2/64 dev server0 nodad"))?;
            if !flags.contains("live-map") {
                let bound: HashSet<_> = pool()?.iter().collect();
                while !addresses(&lab)?.is_superset(&bound) {
                    ensure!(up.elapsed() < PATIENCE, "{flags}: the addresses did not come back");
                    thread::sleep(Duration::from_millis(1));
                }
            }
            let bound = up.elapsed();
            load.wait_for_replies().with_context(|| flags.to_owned())?;
            println!(
                "{flags}: addresses are back after {bound:.2?}, replies after {:.2?}",
                up.elapsed()
            );
            // It takes a second on an idle machine.
            ensure!(
                bound < Duration::from_secs(5),
                "{flags}: the addresses came back after {bound:?}"
            );
        }
        drop(load);
        server.stop()?;
        nothing_is_left(&lab).with_context(|| flags.to_owned())?;
    }
    Ok(())
}

fn interface_deleted() -> Result<()> {
    for flags in [
        "--engine afxdp --bind netlink",
        "--engine reflect --bind live-map",
        "--engine socket-gso",
        "--engine socket",
        "--engine packet-ring",
    ] {
        let lab = TestLab::up()?;
        let server = start(&lab, flags)?;
        let load = Load::start(&lab, true)?;
        load.wait_for_replies()?;
        ip(&format!("-n {} link delete server0", lab.namespace(Side::Server)))?;
        ends_with(server, "gone").with_context(|| flags.to_owned())?;
        ensure!(
            notes(&lab)?.is_empty() && routes(&lab)?.is_empty(),
            "{flags}: the server left notes or routes"
        );
    }
    Ok(())
}

fn client_stops_reading() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server = start(&lab, "--bind netlink")?;
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses {ADDRESSES} --rate 10000 \
         --requests 10000000 --json"
    );
    let mut client =
        sixhop(&lab, Side::Client, &flags).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let stopped = server
        .wait_for(|stats| stats["answered"].as_u64() > Some(1000))
        .and_then(|()| Ok(kill(Pid::from_raw(client.id() as i32), Signal::SIGSTOP)?));
    // The stopped client's program steers the replies to its own requests into full rings. It must
    // pass replies to other sockets.
    let goes_on = stopped.and_then(|()| {
        let load = Load::start(&lab, false)?;
        load.wait_for_replies()
    });
    let _ = client.kill();
    client.wait()?;
    goes_on?;
    server.stop()?;
    nothing_is_left(&lab)?;
    Ok(())
}

/// Sends `requests` requests without a pause.
fn flood(lab: &TestLab, requests: u64) -> Result<()> {
    let mac = link(lab, Side::Server)?.mac;
    let pool = pool()?;
    lab.run_in(Side::Client, || {
        let client = netlink::link(Side::Client.interface())?;
        pool.iter()
            .try_for_each(|address| netlink::set_neighbour(client.index, address, Some(mac)))?;
        let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
        for address in (0..requests).map(|index| pool.address(index % ADDRESSES)) {
            socket.send_to(&[7; 32], SocketAddrV6::new(address, PORT, 0, 0))?;
        }
        Ok(())
    })
}

/// While stopped, the server reaps no completions, returns no frames and empties no ring; then it
/// has to catch up.
fn server_stands_still() -> Result<()> {
    const REQUESTS: u64 = 20_000;
    let lab = TestLab::up()?;
    let mut server = start(&lab, "--bind netlink")?;
    let load = Load::start(&lab, true)?;
    load.wait_for_replies()?;
    server.signal(Signal::SIGSTOP)?;
    flood(&lab, REQUESTS)?;
    server.signal(Signal::SIGCONT)?;
    load.wait_for_replies()?;
    drop(load);
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    server.wait_for(|stats| {
        let missed = number(&stats["xdp"]["rx_dropped"]) + number(&stats["xdp"]["rx_ring_full"]);
        let steered = number(&stats["steering"]["steered"]);
        missed > 0 && number(&stats["answered"]) + missed == steered
    })?;
    server.stop()?;
    nothing_is_left(&lab)?;
    Ok(())
}

/// The paper's server sends ten datagrams for each request, so its message queue fills up, and then
/// its socket.
fn message_queue_full() -> Result<()> {
    const REQUESTS: u64 = 40_000;
    let lab = TestLab::up()?;
    let mut server = start(&lab, "--engine socket")?;
    ensure!(server.ready["queue_depth"].as_i64() < Some(REQUESTS as i64), "{}", server.ready);
    server.signal(Signal::SIGSTOP)?;
    flood(&lab, REQUESTS)?;
    server.signal(Signal::SIGCONT)?;
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    server.wait_for(|stats| {
        let (answered, dropped) = (number(&stats["answered"]), number(&stats["socket_dropped"]));
        dropped > 0 && answered + dropped == REQUESTS
    })?;
    let load = Load::start(&lab, false)?;
    load.wait_for_replies()?;
    drop(load);
    server.stop()?;
    nothing_is_left(&lab)?;
    Ok(())
}

fn second_server() -> Result<()> {
    let lab = TestLab::up()?;
    for (bind, second, words) in [
        ("--bind netlink", "--bind none", "another XDP program"),
        (
            "--bind netlink",
            "--engine socket-gso --seed 2 --bind netlink",
            "another sixhop binds addresses",
        ),
    ] {
        let first = start(&lab, bind)?;
        let load = Load::start(&lab, false)?;
        load.wait_for_replies()?;
        let before = addresses(&lab)?;
        let flags =
            format!("serve --interface server0 --prefix {PREFIX} --addresses {ADDRESSES} {second}");
        let output = sixhop(&lab, Side::Server, &flags).output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(1) && said.contains(words),
            "{}: {said}",
            output.status
        );
        ensure!(addresses(&lab)? == before, "the second server changed the first one's addresses");
        load.wait_for_replies()?;
        drop(load);
        first.stop()?;
        nothing_is_left(&lab)?;
    }
    Ok(())
}

/// As `bpftool link detach` does: the server keeps its link, but the interface loses the program.
fn program_taken_off() -> Result<()> {
    for flags in ["--engine afxdp --bind netlink", "--engine reflect --bind live-map"] {
        let lab = TestLab::up()?;
        let server = start(&lab, flags)?;
        let load = Load::start(&lab, true)?;
        load.wait_for_replies()?;
        let program = link(&lab, Side::Server)?.xdp.context("no program")?.id;
        // A BPF link holds the program, so ip cannot remove it.
        let off = ip(&format!("-n {} link set dev server0 xdp off", lab.namespace(Side::Server)));
        ensure!(off.is_err(), "{flags}: ip took the program off");
        load.wait_for_replies()?;
        detach(program)?;
        ends_with(server, "taken the XDP program off server0").with_context(|| flags.to_owned())?;
        drop(load);
        nothing_is_left(&lab)?;
    }
    Ok(())
}

/// Detaches the BPF link of the XDP program with this id.
fn detach(program: u32) -> Result<()> {
    let found = libbpf_rs::query::LinkInfoIter::default().find(|link| link.prog_id == program);
    let id = found.context("no BPF link has the program")?.id;
    // SAFETY: makes a descriptor and touches no memory.
    let fd = unsafe { libbpf_sys::bpf_link_get_fd_by_id(id) };
    ensure!(fd >= 0, "cannot open the BPF link: {fd}");
    // SAFETY: the descriptor is new and has no other owner.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: touches no memory.
    let detached = unsafe { libbpf_sys::bpf_link_detach(fd.as_raw_fd()) };
    ensure!(detached == 0, "cannot detach: {detached}");
    Ok(())
}

/// `sixhop` with a limit on descriptors, on the server's side.
fn limited(lab: &TestLab, descriptors: u32, flags: &str) -> Command {
    let mut command = Command::new(SIXHOP);
    let script = format!("ulimit -n {descriptors} && exec {SIXHOP} {flags}");
    command.args(["lab", "--name", lab.name(), "exec", "server", "--", "sh", "-c", &script]);
    command
}

fn descriptors_run_out() -> Result<()> {
    let lab = TestLab::up()?;
    let mut refused = 0;
    for descriptors in (5..64).step_by(4) {
        let flags = format!(
            "serve --interface server0 --prefix {PREFIX} --addresses {ADDRESSES} --bind netlink \
             --stop-on-eof --json"
        );
        let mut command = limited(&lab, descriptors, &flags);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().context("a pipe")?).read_line(&mut first)?;
        // End of input stops a `bind` that has started.
        let output = child.wait_with_output()?;
        let said = String::from_utf8(output.stderr)?;
        nothing_is_left(&lab).with_context(|| format!("with {descriptors} descriptors"))?;
        match output.status.code() {
            Some(0) => break,
            Some(1) => refused += 1,
            _ => return Err(anyhow!("with {descriptors} descriptors: {}, {said}", output.status)),
        }
        let last = said.lines().last().unwrap_or_default();
        ensure!(
            last.contains("oo many open files") && !said.contains("panicked"),
            "with {descriptors} descriptors: {said}"
        );
    }
    ensure!(
        (1..14).contains(&refused),
        "{refused} of the limits were refused: too few or too many to prove anything"
    );
    Ok(())
}

fn descriptors_run_out_later() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server = start(&lab, "--bind netlink-down")?;
    let load = Load::start(&lab, true)?;
    let pid = server.child.id();
    let limited =
        Command::new("prlimit").args(["--pid", &pid.to_string(), "--nofile=3:3"]).status()?;
    ensure!(limited.success(), "prlimit: {limited}");
    for _ in 0..20 {
        load.wait_for_replies()?;
    }
    drop(load);
    // Restoring a setting may need one descriptor more than the server may have. Then it says so,
    // and its guard restores the setting.
    server.signal(Signal::SIGINT)?;
    let status = server.child.wait()?;
    ensure!(matches!(status.code(), Some(0 | 1)), "the server ended with {status}");
    nothing_is_left(&lab)?;
    Ok(())
}

/// Runs `with` on a file system of `bytes` bytes that only its thread sees. It goes away with the
/// thread.
fn with_small_disk<T: Send>(bytes: u64, with: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let directory = tempfile::tempdir()?;
            unshare(CloneFlags::CLONE_NEWNS)?;
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )?;
            let size = format!("size={bytes}");
            mount(
                Some("tmpfs"),
                directory.path(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some(size.as_str()),
            )?;
            let result = with(directory.path());
            nix::mount::umount(directory.path())?;
            result
        });
        inside.join().map_err(|_| anyhow!("the thread with a small disk panicked"))?
    })
}

fn disk_full() -> Result<()> {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/results/quick/bind.jsonl");
    let measured = fs::read(&results)?;
    let room = (measured.len() as u64).next_multiple_of(4096) + 5 * 4096;
    with_small_disk(room, |directory| {
        let run = |arguments: &[&str]| {
            Command::new(SIXHOP).args(arguments).arg(directory).stdin(Stdio::null()).output()
        };
        let full = |output: &std::process::Output| {
            let said = String::from_utf8_lossy(&output.stderr);
            let clear = said.lines().count() == 1 && said.contains("No space left on device");
            ensure!(output.status.code() == Some(1) && clear, "{}: {said}", output.status);
            Ok(())
        };
        // The page and its charts do not fit. Files that exist are complete.
        fs::write(directory.join("bind.jsonl"), &measured)?;
        full(&run(&["report"])?)?;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let text = fs::read_to_string(&path)?;
            let is_whole = match path.extension().and_then(OsStr::to_str) {
                Some("svg") => text.trim_end().ends_with("</svg>"),
                Some("csv") => text.ends_with('\n') && text.lines().count() > 5,
                Some("jsonl") => text.as_bytes() == measured,
                _ => false,
            };
            ensure!(is_whole, "{} is not whole: {} bytes", path.display(), text.len());
        }
        // An experiment has no room even for its first line. None of the partial line counts as a
        // result.
        fs::remove_file(directory.join("bind.jsonl"))?;
        let mut filling = fs::File::create(directory.join("filling"))?;
        while filling.write(&[0; 4096]).is_ok_and(|written| written > 0) {}
        let profile = "[bind]\nruns = 1\nbudget = 5\n[[bind.series]]\nmethods = \
            ['live-map']\naddresses = [10]\n";
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), profile)?;
        let profile = file.path().to_string_lossy();
        full(&run(&["experiment", "bind", "--profile", &profile, "--out"])?)?;
        let mut left = String::new();
        if let Ok(mut file) = fs::File::open(directory.join("bind.jsonl")) {
            file.read_to_string(&mut left)?;
        }
        ensure!(!left.contains('\n'), "a partial line counts as a result: {left}");
        Ok(())
    })
}

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn killed() -> Result<()> {
    let kills: u64 = std::env::var("SIXHOP_KILLS").map_or(Ok(8), |kills| kills.parse())?;
    let lab = TestLab::up()?;
    let load = Load::start(&lab, true)?;
    let mut state = 7;
    let (mut slowest, mut when_ready) = (Duration::ZERO, 0);
    for turn in 0..kills {
        let flags = [
            "--engine afxdp --bind netlink",
            "--engine afxdp --bind live-map",
            "--engine reflect --bind netlink-batch --addresses 1000",
            "--engine socket-gso --bind ioctl",
            "--engine packet-ring --bind netlink-down --addresses 1000",
            "--engine uring --bind command",
            "--engine afxdp --bind netlink-down --addresses 1000 --busy-poll 50",
            "--engine socket --bind netlink-down --addresses 1000",
        ][turn as usize % 8];
        let addresses = if flags.contains("--addresses") { "" } else { "--addresses 50" };
        let flags = format!(
            "serve --interface server0 --prefix {PREFIX} --port {PORT} {addresses} {flags}"
        );
        let mut child = sixhop(&lab, Side::Server, &flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        // Kill two of three once they are ready, the third while it starts.
        let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
        let mut said = String::new();
        if turn % 3 > 0 {
            output.read_line(&mut said)?;
        }
        thread::sleep(Duration::from_millis(random(&mut state) % 400));
        let program = link(&lab, Side::Server)?.xdp.map(|xdp| xdp.id);
        child.kill()?;
        output.read_to_string(&mut said)?;
        child.wait()?;
        when_ready += u32::from(said.contains("ready"));
        let took = nothing_is_left(&lab)
            .with_context(|| format!("killed with {flags}, after it printed {said:?}"))?;
        slowest = slowest.max(took);
        let is_loaded =
            || libbpf_rs::query::ProgInfoIter::default().any(|info| Some(info.id) == program);
        let give_up = Instant::now() + PATIENCE;
        while program.is_some() && is_loaded() {
            ensure!(Instant::now() < give_up, "the program stays loaded, and so do its maps");
            thread::sleep(Duration::from_millis(2));
        }
    }
    println!(
        "{kills} killed, {when_ready} of them ready; nothing was left after {slowest:.2?} at most"
    );
    // After all these kills, the interface still serves.
    wait_for_no_program(&lab, Side::Server)?;
    ip(&format!(
        "-n {} address replace 2001:db8:1::2/64 dev server0 nodad",
        lab.namespace(Side::Server)
    ))?;
    let server = start(&lab, "--bind netlink")?;
    load.wait_for_replies()?;
    server.stop()?;
    Ok(())
}
