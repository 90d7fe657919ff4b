//! The binders against a real kernel, each test in a lab of its own (see `common`). Needs root,
//! `ip` and `ifconfig`.
//!
//! | test | what it checks |
//! |---|---|
//! | `METHOD_binds_and_unbinds` | addresses answer, and unbinding restores everything |
//! | `METHOD_stopped_anywhere_leaves_nothing` | a bind of 50,000, stopped after various counts |
//! | `METHOD_outlives_its_interface` | the interface is deleted half-way |
//! | `METHOD_is_interrupted_by_a_signal` | `sixhop bind` and SIGINT |
//! | `*_binds_nothing`, `no_buffers_*` | what the binder or the kernel refuses |
//! | `leftovers_*`, `second_binder_*` | a run that was killed, and two runs at the same time |
//! | `anyip_*` | a client with a route to the prefix |
//! | `bind_*`, `experiment_*` | what the command line prints and writes |

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{TestLab, addresses, fails_with, ip, link, resolve, trial};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill, raise};
use nix::unistd::Pid;
use serde_json::Value;
use sixhop::lab::{Lab, Side, State};
use sixhop::live::{self, BindContext, Bound, Method, Progress};
use sixhop::net::netlink;
use sixhop::xdp::{Program, ProgramConfig, Verdict};

const SIXHOP: &str = env!("CARGO_BIN_EXE_sixhop");

/// The methods that make addresses of the kernel.
const KERNEL: [Method; 6] = [
    Method::Netlink,
    Method::NetlinkBatch,
    Method::NetlinkDown,
    Method::Ioctl,
    Method::Command,
    Method::Ifconfig,
];

/// Runs instead of the tests if a test of this file started this process.
pub fn child() {
    if let Ok(lab) = std::env::var(DIE_BOUND) {
        die_bound(&lab).expect("SIGKILL should have ended this process");
    }
}

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("duplicate_binds_nothing", duplicate_binds_nothing),
        trial("address_in_use_binds_nothing", address_in_use_binds_nothing),
        trial("impossible_address_binds_nothing", impossible_address_binds_nothing),
        trial("live_map_that_fails_leaves_nothing", live_map_that_fails_leaves_nothing),
        trial("no_buffers_half_way_leaves_nothing", no_buffers_half_way_leaves_nothing),
        trial("leftovers_are_replaced", leftovers_are_replaced),
        trial("second_binder_is_refused", second_binder_is_refused),
        trial("link_that_was_down_is_set_up", link_that_was_down_is_set_up),
        trial("addresses_are_live_at_once_where_duplicates_are_looked_for", live_at_once),
        trial("anyip_answers_where_a_route_leads", anyip_answers_where_a_route_leads),
        trial("anyip_spares_the_neighbours", anyip_spares_the_neighbours),
        trial("bind_prints_what_it_took", bind_prints_what_it_took),
        trial("bind_ends_with_its_interface", bind_ends_with_its_interface),
        trial("experiment_measures_and_keeps_what_it_found", experiment),
    ];
    for method in KERNEL {
        let mut add = |name: &str, test: fn(Method) -> Result<()>| {
            trials.push(trial(&format!("{method}_{name}").replace('-', "_"), move || test(method)));
        };
        add("binds_and_unbinds", binds_and_unbinds);
        add("stopped_anywhere_leaves_nothing", stopped_anywhere_leaves_nothing);
        add("outlives_its_interface", outlives_its_interface);
        add("is_interrupted_by_a_signal", is_interrupted_by_a_signal);
    }
    trials.push(trial("live_map_is_interrupted_by_a_signal", || {
        is_interrupted_by_a_signal(Method::LiveMap)
    }));
    trials
}

/// Binds on the server's side of the lab.
fn bind(
    lab: &Lab,
    method: Method,
    wanted: &[Ipv6Addr],
    step: &mut (impl FnMut(usize) -> bool + Send),
) -> Result<Bound> {
    let link = link(lab, Side::Server)?;
    let place =
        BindContext { link: &link, prefix: "2001:db8:1::/64".parse()?, live_addresses: None };
    lab.run_in(Side::Server, move || {
        live::bind(method, place, wanted.to_vec(), step as &mut Progress)
    })
}

fn go_on(_: usize) -> bool {
    true
}

fn binds_and_unbinds(method: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let server = link(&lab, Side::Server)?;
    let (before, wanted) = (addresses(&lab)?, spread(300));
    let bound = bind(&lab, method, &wanted, &mut go_on)?;
    ensure!(bound.addresses() == wanted);
    ensure!(
        bound.phases().seconds() > 0.0 && bound.phases().0.iter().any(|phase| phase.name == "add")
    );
    let now = addresses(&lab)?;
    ensure!(wanted.iter().all(|address| now.contains(address)));
    ensure!(now.len() == before.len() + wanted.len());
    ensure!(before.contains(&Side::Server.address()) && now.contains(&Side::Server.address()));
    for address in [wanted[0], wanted[150], wanted[299], Side::Server.address()] {
        ensure!(resolve(&lab, address)? == server.mac);
    }
    bound.release(&mut |_| {})?;
    ensure!(addresses(&lab)? == before);
    // Dropping unbinds too, even on a thread outside the namespace.
    drop(bind(&lab, Method::NetlinkDown, &wanted, &mut go_on)?);
    ensure!(addresses(&lab)? == before);
    ensure!(lab.status()?.state == State::Up);
    for (setting, expected) in [("keep_addr_on_down", "0"), ("accept_dad", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/server0/{setting}");
        let value = lab.run_in(Side::Server, || Ok(std::fs::read_to_string(path)?))?;
        ensure!(value.trim() == expected, "{setting} was not restored: {value}");
    }
    Ok(())
}

fn stopped_anywhere_leaves_nothing(method: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let before = addresses(&lab)?;
    let wanted = spread(50_000);
    for limit in [0, 1, 130, 200] {
        let mut last = 0;
        let stopped = bind(&lab, method, &wanted, &mut |bound| {
            last = bound;
            bound < limit
        });
        fails_with(
            stopped.map(drop),
            &format!("{last} of 50000 addresses were bound, and are taken back: interrupted"),
        )?;
        ensure!(
            (limit..limit + 128).contains(&last),
            "stop requested at {limit}, stopped at {last}"
        );
        ensure!(addresses(&lab)? == before, "{method} left addresses behind");
        ensure!(lab.status()?.state == State::Up, "{method} left the lab incomplete");
    }
    Ok(())
}

fn outlives_its_interface(method: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let wanted = spread(50_000);
    let (index, mut gone) = (link(&lab, Side::Server)?.index, 0);
    let delete = format!("-n {} link delete server0", lab.namespace(Side::Server));
    let failed = bind(&lab, method, &wanted, &mut |bound| {
        if bound >= 20 && gone == 0 {
            ip(&delete).expect("cannot delete server0");
            gone = bound;
        }
        true
    });
    fails_with(
        failed.map(drop),
        &format!("{gone} of 50000 addresses were bound, and are taken back: cannot add"),
    )?;
    let left = lab.run_in(Side::Server, netlink::links)?;
    ensure!(left.iter().all(|link| link.index != index));
    Ok(())
}

/// `sixhop bind` on the server's side of the lab.
fn command(lab: &Lab, flags: &str) -> Command {
    let mut command = Command::new(SIXHOP);
    command.args([
        "lab",
        "--name",
        lab.name(),
        "exec",
        "server",
        "--",
        SIXHOP,
        "bind",
        "--interface",
        "server0",
    ]);
    command.args(flags.split_whitespace());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn is_interrupted_by_a_signal(method: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let before = addresses(&lab)?;
    // The hash is fast: it takes 5,000,000 to be interrupted in time. For the kernel, 50,000 are
    // always enough.
    let count = if method == Method::LiveMap { 5_000_000 } else { 50_000 };
    let flags = format!("--prefix 2001:db8:1::/64 --addresses {count} --method {method}");
    let child = command(&lab, &flags).spawn()?;
    let begun = || {
        let link = link(&lab, Side::Server)?;
        // Addresses of the kernel, or the XDP program.
        anyhow::Ok(addresses(&lab)?.len() > before.len() + 20 || link.xdp.is_some())
    };
    let give_up = Instant::now() + Duration::from_secs(60);
    while !begun()? {
        ensure!(Instant::now() < give_up, "no address was bound");
    }
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{words}");
    ensure!(words.lines().count() == 1 && words.contains("taken back: interrupted"), "{words}");
    ensure!(addresses(&lab)? == before, "{method} left addresses behind");
    ensure!(link(&lab, Side::Server)?.xdp.is_none() && lab.status()?.state == State::Up);
    Ok(())
}

fn bind_prints_what_it_took() -> Result<()> {
    fn line(child: &mut Child, output: &mut impl BufRead) -> Result<Value> {
        let mut line = String::new();
        if output.read_line(&mut line)? == 0 {
            let mut words = String::new();
            std::io::Read::read_to_string(&mut child.stderr.take().context("a pipe")?, &mut words)?;
            anyhow::bail!("{words}");
        }
        Ok(serde_json::from_str(&line)?)
    }
    for (method, count, memory) in [("netlink-down", 500, false), ("live-map", 1_000_000, true)] {
        let lab = TestLab::up()?;
        let before = addresses(&lab)?;
        let flags =
            format!("--prefix 2001:db8:1::/64 --addresses {count} --method {method} --json");
        let mut child = command(&lab, &flags).spawn()?;
        let mut output = BufReader::new(child.stdout.take().context("a pipe")?);
        let live = line(&mut child, &mut output)?;
        ensure!(
            live["event"] == "live" && live["addresses"] == count && live["engine"].is_null(),
            "{live}"
        );
        // Input does not end it; only end of file does.
        let pool = sixhop::address::Pool::new("2001:db8:1::/64".parse()?, count, 1)?;
        child.stdin.as_mut().context("a pipe")?.write_all(b"still there\n")?;
        let resident = resident(child.id())?;
        let mac = link(&lab, Side::Server)?.mac;
        for index in [0, count / 2, count - 1] {
            ensure!(resolve(&lab, pool.address(index))? == mac);
        }
        drop(child.stdin.take());
        let bound = line(&mut child, &mut output)?;
        ensure!(child.wait()?.success() && bound["event"] == "bound", "{bound}");
        ensure!(bound["method"] == method && bound["addresses"] == count, "{bound}");
        for time in ["generate_ns", "bind_ns", "unbind_ns", "seconds"] {
            ensure!(bound[time].as_f64().is_some_and(|time| time > 0.0), "{time}: {bound}");
        }
        ensure!(bound["bytes_per_address"].is_null() != memory, "{bound}");
        if memory {
            // The process's whole memory, and what the kernel uses for the hash.
            let kernel = live["kernel_memory"].as_u64().context("no kernel memory")?;
            let each = (kernel + resident) as f64 / count as f64;
            ensure!(
                each <= 160.0 && bound["bytes_per_address"].as_f64() <= Some(each),
                "{each} bytes: {bound}"
            );
        }
        ensure!(addresses(&lab)? == before && link(&lab, Side::Server)?.xdp.is_none());
    }
    Ok(())
}

fn bind_ends_with_its_interface() -> Result<()> {
    for method in ["netlink", "live-map"] {
        let lab = TestLab::up()?;
        let flags = format!("--prefix 2001:db8:1::/64 --addresses 20 --method {method} --json");
        let mut child = command(&lab, &flags).spawn()?;
        let mut live = String::new();
        BufReader::new(child.stdout.as_mut().context("a pipe")?).read_line(&mut live)?;
        ip(&format!("-n {} link delete server0", lab.namespace(Side::Server)))?;
        // The input stays open: `bind` ends because the interface is gone.
        let input = child.stdin.take();
        let output = child.wait_with_output()?;
        drop(input);
        let words = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1), "{method}: {words}");
        ensure!(
            words.contains("server0 has gone, and its 20 addresses with it"),
            "{method}: {words}"
        );
    }
    Ok(())
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// A test's own directory, deleted on drop.
struct Directory(std::path::PathBuf);

impl Directory {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sixhop-test-bind-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn lines(&self, file: &str) -> Result<Vec<String>> {
        Ok(std::fs::read_to_string(self.0.join(file))?.lines().map(str::to_owned).collect())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One test does it all in sequence: only one experiment can run on a machine.
fn experiment() -> Result<()> {
    let directory = Directory::new()?;
    let profile = directory.0.join("profile.toml");
    let run = |text: &str, flags: &[&str]| {
        std::fs::write(&profile, text)?;
        let mut command = Command::new(SIXHOP);
        command
            .args(["experiment", "bind", "--json", "--profile"])
            .arg(&profile)
            .arg("--out")
            .arg(&directory.0);
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        anyhow::Ok(command.spawn()?)
    };
    let events = |text: &[u8]| -> Result<Vec<Value>> {
        Ok(String::from_utf8(text.to_vec())?
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()?)
    };

    // Every method, and a number of addresses that netlink cannot bind within its budget.
    let text = "[bind]\nruns = 2\nbudget = 0.5\n\
        [[bind.series]]\nmethods = ['netlink', 'netlink-batch', 'netlink-down', 'ioctl', \
        'command', 'ifconfig', 'anyip', 'live-map']\naddresses = [1, 20]\n\
        [[bind.series]]\nmethods = ['netlink', 'live-map']\naddresses = [20000, 30000]\n";
    let output = run(text, &[])?.wait_with_output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = events(&output.stdout)?;
    let of = |event: &str| printed.iter().filter(|line| line["event"] == event).collect::<Vec<_>>();
    let cells = of("cell");
    ensure!(cells.len() == 2 * (8 * 2 + 2 * 2), "{} cells", cells.len());
    for cell in &cells {
        let (addresses, outcome) = (&cell["addresses"], &cell["outcome"]);
        if addresses == 1 || addresses == 20 || cell["method"] == "live-map" {
            let bound = &outcome["bound"];
            ensure!(
                bound["addresses"] == *addresses && bound["method"] == cell["method"],
                "{cell}"
            );
            ensure!(
                ["bind_ns", "unbind_ns"].iter().all(|time| bound[*time].as_f64() > Some(0.0)),
                "{cell}"
            );
        } else if addresses == 20_000 && cell["run"] == 1 {
            // An unfinished bind yields no figure.
            ensure!(
                outcome["stopped"]["bound"]
                    .as_u64()
                    .is_some_and(|bound| (1..20_000).contains(&bound)),
                "{cell}"
            );
        } else {
            ensure!(
                outcome["skipped"]["why"].as_str().is_some_and(|why| why.contains("within 0.5 s")),
                "{cell}"
            );
        }
    }
    let summaries = of("summary");
    ensure!(summaries.len() == 8 * 2 + 2 && printed.len() == 1 + cells.len() + summaries.len());
    ensure!(
        printed[0]["event"] == "experiment" && printed[0]["plan"]["bind"]["runs"] == 2,
        "{}",
        printed[0]
    );
    for summary in &summaries {
        let spread = &summary["bind_ns"];
        ensure!(
            spread["min"].as_f64() <= spread["median"].as_f64() && summary["runs"] == 2,
            "{summary}"
        );
        ensure!(
            summary["faster_than_netlink"].is_null() == (summary["addresses"].as_u64() > Some(20)),
            "{summary}"
        );
    }
    // The files hold the same results.
    let kept: Vec<Value> = directory
        .lines("bind.jsonl")?
        .iter()
        .map(|line| serde_json::from_str(line))
        .collect::<Result<_, _>>()?;
    ensure!(kept == printed, "bind.jsonl differs from what was printed");
    ensure!(directory.lines("bind.csv")?.len() == 1 + summaries.len());
    ensure!(directory.lines("bind.svg")?.concat().contains("live-map"));

    // Interrupted, it keeps its results so far and leaves no namespace behind.
    std::fs::remove_file(directory.0.join("bind.jsonl"))?;
    let text = "[bind]\nruns = 1000\nbudget = 5\n[[bind.series]]\nmethods = \
                ['live-map']\naddresses = [1000]\n";
    let mut child = run(text, &["--methods", "live-map"])?;
    let mut lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
    let first = [lines.next().context("no line")??, lines.next().context("no run")??];
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT)?;
    let output = child.wait_with_output()?;
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && words.contains("interrupted"), "{words}");
    let kept = directory.lines("bind.jsonl")?;
    ensure!(kept.starts_with(&first), "{kept:?}");
    ensure!(
        Lab::named("sixhop-bind")?.status()?.state == State::Down,
        "the lab was not taken down"
    );

    for (text, flags, why) in [
        ("[bind]\nruns = 1\n", &[][..], "budget"),
        (text, &["--methods", "ioctl"][..], "does not measure ioctl"),
    ] {
        let output = run(text, flags)?.wait_with_output()?;
        let words = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(2) && words.contains(why) && words.lines().count() == 1,
            "{words}"
        );
    }
    Ok(())
}

fn duplicate_binds_nothing() -> Result<()> {
    let mut wanted = spread(300);
    wanted.push(wanted[7]);
    binds_nothing(&wanted, "twice: nothing was bound")
}

fn address_in_use_binds_nothing() -> Result<()> {
    let mut wanted = spread(300);
    wanted.push(Side::Server.address());
    binds_nothing(&wanted, "2001:db8:1::2 is on server0 already")
}

fn impossible_address_binds_nothing() -> Result<()> {
    let mut wanted = spread(300);
    // A multicast address. Only the kernel refuses it, half-way through the list.
    wanted.insert(200, "ff02::1234".parse()?);
    binds_nothing(&wanted, "ff02::1234")
}

/// Checks that every method refuses to bind `wanted`, that the error contains `why`, and that the
/// server's addresses are unchanged.
fn binds_nothing(wanted: &[Ipv6Addr], why: &str) -> Result<()> {
    let lab = &TestLab::up()?;
    let before = addresses(lab)?;
    for method in KERNEL {
        let failed = bind(lab, method, wanted, &mut go_on).map(drop);
        fails_with(failed, why).with_context(|| method.to_string())?;
        ensure!(addresses(lab)? == before, "{method} left addresses behind");
        ensure!(lab.status()?.state == State::Up, "{method} left the lab incomplete");
    }
    Ok(())
}

/// Tests the hash alone, without an engine: test runs of the program show what it holds.
fn live_map_that_fails_leaves_nothing() -> Result<()> {
    const COUNT: u64 = 100_000;
    let lab = TestLab::up()?;
    let server = link(&lab, Side::Server)?;
    let wanted = spread(COUNT);
    let with = |address| [&wanted[..], &[address]].concat();
    let cases: [(Vec<Ipv6Addr>, usize, &str); 4] = [
        (
            wanted.clone(),
            65_536,
            "65536 of 100000 addresses were bound, and are taken back: interrupted",
        ),
        (with(wanted[7]), usize::MAX, "100000 of 100001 addresses were bound, and are taken back"),
        (with(Side::Server.address()), usize::MAX, "2001:db8:1::2 is on server0 already"),
        (with("2001:db8:1::77".parse()?), usize::MAX, "no space"),
    ];
    for (addresses, limit, why) in cases {
        let room = if why == "no space" { COUNT } else { COUNT + 1 } as u32;
        let config = ProgramConfig {
            port: 3540,
            addresses: room,
            queues: 1,
            hidden: true,
            moving: None,
            reflect: None,
            screen: None,
        };
        let mut program = Program::load(&config)?;
        program.add_prefix("2001:db8:1::/64".parse()?)?;
        let place = BindContext {
            link: &server,
            prefix: "2001:db8:1::/64".parse()?,
            live_addresses: Some(program.live_addresses()?),
        };
        let failed = lab.run_in(Side::Server, || {
            live::bind(Method::LiveMap, place, addresses.clone(), &mut |bound| bound < limit)
        });
        fails_with(failed.map(drop), why)?;
        for address in [wanted[0], wanted[7], wanted[65_535], wanted[99_999]] {
            let mut request = Vec::new();
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6(Side::Client.address().octets(), address.octets(), 64)
                .udp(50_000, 3540)
                .write(&mut request, &[7; 32])?;
            program.test_run(&request)?;
        }
        let counted = program.verdicts()?.read()?;
        let hidden = counted[Verdict::DroppedHidden as usize];
        ensure!(hidden == 4, "{why}: some are live: {counted:?}");
    }
    Ok(())
}

/// The kernel refuses from the 200th address on, with ENOBUFS. A seccomp filter on the binding
/// thread simulates that, since memory cannot be made scarce for one test alone.
fn no_buffers_half_way_leaves_nothing() -> Result<()> {
    const SIOCSIFADDR: u32 = 0x8916;
    fn refuse_to_add() {
        let filter = |code: u32, k: u32, jt, jf| libc::sock_filter { code: code as u16, k, jt, jf };
        let (load, equal) = (
            libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
        );
        let result = libc::BPF_RET | libc::BPF_K;
        // struct seccomp_data: the number of the system call, then its 8-byte arguments from byte
        // 16 on.
        let mut program = [
            filter(load, 0, 0, 0),
            filter(equal, libc::SYS_ioctl as u32, 0, 3),
            filter(load, 24, 0, 0),
            filter(equal, SIOCSIFADDR, 0, 1),
            filter(result, libc::SECCOMP_RET_ERRNO | libc::ENOBUFS as u32, 0, 0),
            filter(result, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the program is valid for reads until the call returns. It restricts this thread
        // only.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program)
        };
        assert_eq!(result, 0, "cannot install the seccomp filter");
    }
    let lab = TestLab::up()?;
    let before = addresses(&lab)?;
    let failed = bind(&lab, Method::Ioctl, &spread(300), &mut |bound| {
        if bound == 200 {
            refuse_to_add();
        }
        true
    });
    fails_with(
        failed.map(drop),
        "200 of 300 addresses were bound, and are taken back: cannot add",
    )?;
    ensure!(addresses(&lab)? == before);
    Ok(())
}

fn leftovers_are_replaced() -> Result<()> {
    let lab = TestLab::up()?;
    let before = addresses(&lab)?;
    let killed = Command::new(std::env::current_exe()?).env(DIE_BOUND, lab.name()).output()?;
    ensure!(killed.status.signal() == Some(Signal::SIGKILL as i32), "{killed:?}");
    ensure!(addresses(&lab)?.len() == before.len() + 20, "the killed run left nothing");
    // The new pool has some of them, but not all.
    let wanted = spread(30).split_off(10);
    let bound = bind(&lab, Method::Ioctl, &wanted, &mut go_on)?;
    let now: HashSet<_> = addresses(&lab)?.difference(&before).copied().collect();
    ensure!(now == wanted.into_iter().collect(), "{now:?}");
    bound.release(&mut |_| {})?;
    Ok(())
}

/// Environment variable that names the lab in which [`die_bound`] binds.
const DIE_BOUND: &str = "SIXHOP_TEST_DIE_BOUND";

/// Binds 20 addresses, then kills itself.
fn die_bound(lab: &str) -> Result<()> {
    let lab = Lab::named(lab)?;
    let _bound = bind(&lab, Method::Netlink, &spread(20), &mut go_on)?;
    Ok(raise(Signal::SIGKILL)?)
}

fn second_binder_is_refused() -> Result<()> {
    let lab = TestLab::up()?;
    let server = link(&lab, Side::Server)?;
    let binder = |method| {
        let place =
            BindContext { link: &server, prefix: "2001:db8:1::/64".parse()?, live_addresses: None };
        lab.run_in(Side::Server, move || live::binder(method, place))
    };
    let first = binder(Method::Netlink)?;
    fails_with(binder(Method::Ioctl).map(drop), "another sixhop binds addresses to server0")?;
    drop(first);
    binder(Method::Ioctl).map(drop)
}

fn link_that_was_down_is_set_up() -> Result<()> {
    let lab = TestLab::up()?;
    let server = link(&lab, Side::Server)?;
    lab.run_in(Side::Server, || netlink::set_up(server.index, false))?;
    let wanted = spread(300);
    let bound = bind(&lab, Method::NetlinkDown, &wanted, &mut go_on)?;
    ensure!(link(&lab, Side::Server)?.carrier);
    ensure!(resolve(&lab, wanted[42])? == server.mac);
    bound.release(&mut |_| {})?;
    Ok(())
}

/// Duplicate Address Detection delays an address by a second or more unless it is exempt.
fn live_at_once() -> Result<()> {
    let lab = TestLab::up()?;
    for method in KERNEL {
        lab.run_in(Side::Server, || {
            Ok(std::fs::write("/proc/sys/net/ipv6/conf/server0/accept_dad", "1")?)
        })?;
        let bound = bind(&lab, method, &spread(5), &mut go_on)?;
        let tentative = format!(
            "netns exec {} ip -6 address show dev server0 tentative",
            lab.namespace(Side::Server)
        );
        let output = Command::new("ip").args(tentative.split(' ')).output()?;
        ensure!(
            output.status.success() && !String::from_utf8(output.stdout)?.contains("global"),
            "{method}"
        );
        let setting = lab.run_in(Side::Server, || {
            Ok(std::fs::read_to_string("/proc/sys/net/ipv6/conf/server0/accept_dad")?)
        })?;
        ensure!(setting == "1\n", "{method} did not restore accept_dad");
        bound.release(&mut |_| {})?;
    }
    Ok(())
}

/// A lab whose client has a route to 2001:db8:2::/64 through the server.
fn routed() -> Result<TestLab> {
    let lab = TestLab::up()?;
    ip(&format!("-n {} route add 2001:db8:2::/64 via 2001:db8:1::2", lab.namespace(Side::Client)))?;
    Ok(lab)
}

fn anyip_answers_where_a_route_leads() -> Result<()> {
    let lab = routed()?;
    let server = link(&lab, Side::Server)?;
    let prefix = "2001:db8:2::/64".parse()?;
    let wanted = ["2001:db8:2::7".parse()?, "2001:db8:2:0:1234::".parse::<Ipv6Addr>()?];
    let routes = || {
        let show =
            format!("-n {} -6 route show table local proto 102", lab.namespace(Side::Server));
        anyhow::Ok(String::from_utf8(Command::new("ip").args(show.split(' ')).output()?.stdout)?)
    };
    let bind = |wanted: Vec<Ipv6Addr>| {
        lab.run_in(Side::Server, || {
            let place = BindContext { link: &server, prefix, live_addresses: None };
            live::bind(Method::Anyip, place, wanted, &mut go_on)
        })
    };
    fails_with(
        bind(vec!["2001:db8:3::1".parse()?]).map(drop),
        "2001:db8:3::1 is not under 2001:db8:2::/64",
    )?;
    let bound = bind(wanted.to_vec())?;
    ensure!(routes()?.contains("local 2001:db8:2::/64 dev lo"), "{}", routes()?);
    let socket = lab.run_in(Side::Server, || {
        let socket = UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 3540, 0, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(socket)
    })?;
    for address in wanted {
        lab.run_in(Side::Client, || {
            Ok(UdpSocket::bind("[::]:0")?
                .send_to(b"hello", SocketAddrV6::new(address, 3540, 0, 0))?)
        })?;
        let mut buffer = [0; 10];
        ensure!(socket.recv(&mut buffer)? == 5);
    }
    bound.release(&mut |_| {})?;
    ensure!(routes()?.is_empty(), "{}", routes()?);
    // A killed run's route is recognised by its metric. Routes with another metric stay.
    let namespace = lab.namespace(Side::Server);
    for (prefix, metric) in
        [("2001:db8:2::/64", server.index), ("2001:db8:4::/64", server.index + 1)]
    {
        ip(&format!(
            "-n {namespace} -6 route add local {prefix} dev lo table local proto 102 metric \
             {metric}"
        ))?;
    }
    bind(wanted.to_vec())?.release(&mut |_| {})?;
    let left = routes()?;
    ensure!(left.lines().count() == 1 && left.contains("2001:db8:4::/64"), "{left}");
    Ok(())
}

fn anyip_spares_the_neighbours() -> Result<()> {
    let lab = TestLab::up()?;
    let failed = bind(&lab, Method::Anyip, &spread(1), &mut go_on);
    fails_with(failed.map(drop), "2001:db8:1::/64 holds 2001:db8:1::2/64 of server0")
}

/// `count` addresses under the lab's prefix, no two of which share a multicast group.
fn spread(count: u64) -> Vec<Ipv6Addr> {
    let network = u128::from("2001:db8:1::".parse::<Ipv6Addr>().expect("an address"));
    let address =
        |n: u64| Ipv6Addr::from(network | u128::from((n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (0..count).map(address).collect()
}
