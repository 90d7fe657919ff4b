//! A figure without data is null, not 0, and messages name a known cause.
//!
//! | test | what happens |
//! |---|---|
//! | `a_sender_with_offload_*`, `replies_with_*` | a veth end leaves checksums unfinished |
//! | `nothing_answered_*`, `a_port_*` | no request is answered |
//! | `addresses_*` | there is nothing to bind |
//! | `a_lag_*` | addresses move, but have not moved yet |
//! | `old_results_*` | results of earlier versions are still read |

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::common::server::{PREFIX, Server, sixhop};
use crate::common::{TestLab, trial, wait_for_no_program};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sixhop::events::Event;
use sixhop::lab::Side;
use sixhop::net::ethtool;

pub fn trials() -> Vec<Trial> {
    vec![
        trial(
            "a_sender_with_offload_is_told_from_damage_and_how_to_mend_it",
            offload_at_the_client,
        ),
        trial("replies_with_unfinished_checksums_are_named_by_the_client", offload_at_the_server),
        trial("nothing_answered_is_no_figure_and_a_failure", nothing_answered),
        trial("addresses_that_nobody_binds_take_no_time", nothing_bound),
        trial("a_port_that_nobody_serves_is_named", nobody_serves),
        trial("a_lag_before_the_first_change_is_none", no_change_yet),
        trial("old_results_are_read", old_results),
    ]
}

const ADDRESSES: u64 = 5;
const REQUESTS: u64 = 20;

/// Switches tx checksum offload of one end. If on, as by default on a veth, checksums stay
/// unfinished; if off, the kernel computes them.
fn offload(lab: &TestLab, side: Side, on: bool) -> Result<()> {
    lab.run_in(side, || ethtool::set_tx_checksum(side.interface(), on))
}

fn start(lab: &TestLab, flags: &str) -> Result<Server> {
    Server::start(lab, &format!("--addresses {ADDRESSES} {flags}"))
}

fn load(lab: &TestLab, flags: &str) -> Result<Output> {
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses {ADDRESSES} --rate 200 --requests \
         {REQUESTS} {flags}"
    );
    let output = sixhop(lab, Side::Client, &flags).output()?;
    wait_for_no_program(lab, Side::Client)?;
    Ok(output)
}

/// The output of a client that got no reply: its result, and the one line that says why.
fn unanswered(output: &Output) -> Result<(Value, String)> {
    let said = String::from_utf8(output.stderr.clone())?;
    let lines: Vec<_> = said.lines().filter(|line| !line.contains("falls back from")).collect();
    ensure!(output.status.code() == Some(1) && lines.len() == 1, "{}: {said}", output.status);
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["sent"] == REQUESTS && result["answered"] == 0, "{result}");
    for times in ["first", "last"] {
        for figure in ["mean_us", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"] {
            let none = result[times].get(figure).is_some_and(Value::is_null);
            ensure!(none, "{times}.{figure} of no reply is {}", result[times][figure]);
        }
    }
    Ok((result, lines[0].to_owned()))
}

fn all_answered(output: &Output) -> Result<()> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        result["complete"] == REQUESTS && result["first"]["p99_us"].as_f64() > Some(0.0),
        "{result}"
    );
    Ok(())
}

/// The first statistics that count unfinished checksums, and the server's next event.
fn notice(server: &mut Server) -> Result<(Value, String)> {
    let mut stats = Value::Null;
    server.wait_for(|event| {
        stats = event.clone();
        event["refused"]["unfinished_checksum"].as_u64() > Some(0)
    })?;
    let next = server.event()?;
    ensure!(next["event"] == "notice", "no notice after {stats}, but {next}");
    Ok((stats, next["text"].as_str().unwrap_or_default().to_owned()))
}

fn offload_at_the_client() -> Result<()> {
    for flags in [
        "--engine afxdp --bind netlink",
        "--engine afxdp --bind live-map",
        "--engine afxdp --attach generic",
        "--engine reflect",
        "--engine raw",
        "--engine packet-ring",
        "--engine packet-ring --tpacket v3",
    ] {
        let lab = TestLab::up()?;
        offload(&lab, Side::Client, true)?;
        let mut server = start(&lab, &format!("{flags} --replies 1"))?;
        let asked = load(&lab, "--replies 1 --client socket --json")?;
        let (_, said) = unanswered(&asked).with_context(|| flags.to_owned())?;
        ensure!(said.contains("ethtool -K client0 tx off"), "{flags}: {said}");
        let (_, said) = notice(&mut server).with_context(|| flags.to_owned())?;
        ensure!(
            said.contains("ethtool -K IF tx off") && said.contains("--engine socket"),
            "{flags}: {said}"
        );
        // Rings always write whole checksums, whatever the interface offloads.
        all_answered(&load(&lab, "--replies 1 --json")?).with_context(|| flags.to_owned())?;
        // The advice works.
        offload(&lab, Side::Client, false)?;
        if !flags.contains("reflect") {
            all_answered(&load(&lab, "--replies 1 --client socket --json")?)
                .with_context(|| flags.to_owned())?;
        }
        let totals = server.stop()?;
        ensure!(
            totals["refused"]["unfinished_checksum"] == REQUESTS
                && totals["refused"]["bad_checksum"].is_null(),
            "{flags}: {totals}"
        );
    }
    // So does the other advice.
    for engine in ["socket", "socket-batch", "socket-gso", "uring"] {
        let lab = TestLab::up()?;
        offload(&lab, Side::Client, true)?;
        let server = start(&lab, &format!("--engine {engine} --replies 1"))?;
        all_answered(&load(&lab, "--replies 1 --client socket --json")?)
            .with_context(|| engine.to_owned())?;
        server.stop()?;
    }
    Ok(())
}

fn offload_at_the_server() -> Result<()> {
    let lab = TestLab::up()?;
    offload(&lab, Side::Server, true)?;
    let server = start(&lab, "--engine socket --replies 1")?;
    let (result, said) = unanswered(&load(&lab, "--replies 1 --json")?)?;
    ensure!(result["unfinished"] == REQUESTS && result["corrupt"] == REQUESTS, "{result}");
    ensure!(said.contains("unfinished checksums") && said.contains("ethtool -K"), "{said}");
    let people = load(&lab, "--replies 1")?;
    let text = String::from_utf8(people.stdout)?;
    ensure!(text.contains("20 corrupt, 20 of them with unfinished checksums"), "{text}");
    // Both pieces of advice work.
    all_answered(&load(&lab, "--replies 1 --client socket --json")?)?;
    offload(&lab, Side::Server, false)?;
    all_answered(&load(&lab, "--replies 1 --json")?)?;
    server.stop()?;
    Ok(())
}

fn nothing_answered() -> Result<()> {
    let lab = TestLab::up()?;
    let server = start(&lab, "--allow 2001:db8:9::/64")?;
    for client in ["afxdp", "socket"] {
        let (_, said) = unanswered(&load(&lab, &format!("--client {client} --json"))?)?;
        ensure!(
            said.contains("none of 20 requests was answered") && said.contains("--allow"),
            "{said}"
        );
        let people = String::from_utf8(load(&lab, &format!("--client {client}"))?.stdout)?;
        let row = |name: &str| {
            people.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
        };
        for row in [row("first reply"), row("last reply")] {
            ensure!(row.matches('–').count() == 6 && !row.contains('0'), "{people}");
        }
    }
    // 0.5 requests per second must not be rounded to none.
    let flags =
        "load --interface client0 --prefix 2001:db8:1::/64 --addresses 5 --rate 0.5 --requests 1";
    let people = String::from_utf8(sixhop(&lab, Side::Client, flags).output()?.stdout)?;
    ensure!(people.contains("offered 0.5/s, achieved 0.5/s"), "{people}");
    let totals = server.stop()?;
    ensure!(totals["refused"]["source_not_allowed"] == 4 * REQUESTS + 1, "{totals}");
    Ok(())
}

fn nothing_bound() -> Result<()> {
    let lab = TestLab::up()?;
    for (method, is_bound) in [("none", false), ("netlink", true)] {
        let flags =
            format!("bind --interface server0 --prefix {PREFIX} --addresses 5 --method {method}");
        let output = sixhop(&lab, Side::Server, &format!("{flags} --json")).output()?;
        let last =
            String::from_utf8(output.stdout)?.lines().last().context("no output")?.to_owned();
        let result: Value = serde_json::from_str(&last)?;
        for figure in ["bind_ns", "unbind_ns"] {
            let time = result.get(figure).context("no field")?;
            ensure!(
                time.is_null() != is_bound && time.is_number() == is_bound,
                "{method}: {result}"
            );
        }
        ensure!(result["generate_ns"].as_f64() > Some(0.0), "{result}");
        let people = String::from_utf8(sixhop(&lab, Side::Server, &flags).output()?.stdout)?;
        ensure!(people.contains('–') != is_bound && !people.contains("-0.0"), "{people}");
    }
    Ok(())
}

fn nobody_serves() -> Result<()> {
    let lab = TestLab::up()?;
    let server = start(&lab, "--engine socket")?;
    for client in ["afxdp", "socket"] {
        let (_, said) = unanswered(&load(&lab, &format!("--port 9999 --client {client} --json"))?)?;
        ensure!(said.contains("ICMPv6 errors said") && said.contains("9999"), "{client}: {said}");
    }
    server.stop()?;
    Ok(())
}

fn no_change_yet() -> Result<()> {
    let lab = TestLab::up()?;
    let mut secret = tempfile::NamedTempFile::new()?;
    secret.write_all(&[7; 32])?;
    let path = secret.path().display();
    let mut server = Server::start(
        &lab,
        &format!(
            "--schedule mt6d --clients 2 --rotate 24h --bind live-map --secret {path} --metrics 0"
        ),
    )?;
    let mut stats = Value::Null;
    server.wait_for(|event| {
        stats = event.clone();
        event["event"] == "stats"
    })?;
    ensure!(stats["rotation_lag_seconds"].is_null(), "a lag before any change: {stats}");
    server.stop()?;
    Ok(())
}

/// The result files in the repository.
fn kept(under: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(under)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(kept(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "jsonl") {
            files.push(path);
        }
    }
    Ok(files)
}

fn old_results() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut lines = 0;
    let files =
        kept(&here.join("bench/results"))?.into_iter().chain(kept(&here.join("docs/results"))?);
    for file in files {
        for line in fs::read_to_string(&file)?.lines() {
            // Other programs' results have files of the same name.
            if serde_json::from_str::<Value>(line)?["event"].is_null() {
                continue;
            }
            let event =
                Event::parse(line).with_context(|| format!("{}: {line}", file.display()))?;
            ensure!(Event::parse(&event.to_line()?)? == event, "{}: {line}", file.display());
            lines += 1;
        }
    }
    ensure!(lines > 1000, "{lines} lines");
    // A run without replies, as earlier versions wrote it.
    let times = r#"{"mean_us":0.0,"p50_us":0.0,"p90_us":0.0,"p99_us":0.0,"p999_us":0.0,
        "max_us":0.0,"histogram":""}"#;
    let old = format!(
        r#"{{"event":"trial","engine":"afxdp","bind":"netlink","addresses":10,"run":1,"rate":1000,
        "server_cpu":0.25,"load":{{"client":"afxdp","sent":1000,"answered":0,"complete":0,
        "replies":0,"duplicates":0,"wrong_source":0,"corrupt":0,"stragglers":0,"first":{times},
        "last":{times},"late":0,"offered_rate":1000.0,"achieved_rate":1000.0,"attach":null,
        "copy":null}},"schema":1}}"#
    );
    let new: Value = serde_json::from_str(&Event::parse(&old.replace('\n', " "))?.to_line()?)?;
    ensure!(new["load"]["first"]["p99_us"].is_null() && new["load"]["sent"] == 1000, "{new}");
    ensure!(new["load"]["last"]["mean_us"].is_null() && new["server_cpu"] == 0.25, "{new}");
    Ok(())
}
