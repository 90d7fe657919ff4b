//! What a long-running server reports about itself. Each test has a lab of its own (see `common`).
//!
//! | test | the reader |
//! |---|---|
//! | `metrics_*` | a scraper: a plain socket in the server's namespace |
//! | `counts_add_up_*` | a reader of statistics, after frames with known verdicts |
//! | `a_service_manager_*` | a Unix socket, as systemd's |
//! | `logs_*` | standard error |

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use crate::common;
use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, PREFIX, Server, sixhop, unaccounted};
use crate::common::{TestLab, have_client_poll, trial};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("metrics_are_those_of_the_statistics", metrics_are_those_of_the_statistics),
        trial(
            "metrics_are_served_whatever_a_scraper_does",
            metrics_are_served_whatever_a_scraper_does,
        ),
        trial("counts_add_up_to_the_packet", counts_add_up),
        trial("a_service_manager_is_told", a_service_manager_is_told),
        trial("logs_have_levels_and_are_json_where_asked", logs_have_levels),
    ]
}

fn connect(lab: &TestLab, place: &str) -> Result<TcpStream> {
    let place: SocketAddr = place.parse()?;
    let stream = lab.run_in(Side::Server, || Ok(TcpStream::connect(place)?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends `request` and returns the answer's head, with status line and headers, and its body.
fn request(lab: &TestLab, place: &str, request: &str) -> Result<(String, String)> {
    let mut stream = connect(lab, place)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// Reads metrics as a scraper does: values by name and labels. Checks the format (version 0.0.4):
/// HELP and TYPE come before a metric's samples, its lines are contiguous, and no sample repeats.
fn scrape(lab: &TestLab, place: &str) -> Result<BTreeMap<String, f64>> {
    let (head, body) = request(lab, place, "GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")?;
    ensure!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    ensure!(head.contains("Content-Type: text/plain; version=0.0.4"), "{head}");
    ensure!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
    ensure!(body.ends_with('\n'), "{body}");
    let mut samples = BTreeMap::new();
    let mut described: BTreeMap<&str, (bool, &str)> = BTreeMap::new();
    let mut current = "";
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').context("no help")?;
            ensure!(!help.is_empty() && described.insert(name, (true, "")).is_none(), "{line}");
            current = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("no type")?;
            ensure!(name == current && ["counter", "gauge"].contains(&kind), "{line}");
            ensure!((kind == "counter") == name.ends_with("_total"), "{line}");
            described.get_mut(name).context("no help")?.1 = kind;
        } else {
            let (sample, value) = line.rsplit_once(' ').context("no value")?;
            let name = sample.split('{').next().unwrap_or_default();
            ensure!(
                name == current && described.get(name).is_some_and(|(_, kind)| !kind.is_empty()),
                "{line}"
            );
            ensure!(
                samples.insert(sample.to_owned(), value.parse()?).is_none(),
                "{line} appears twice"
            );
        }
    }
    Ok(samples)
}

fn load(lab: &TestLab, requests: u64) -> Result<()> {
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 20 --json --rate 500 --requests \
         {requests}"
    );
    let output = sixhop(lab, Side::Client, &flags).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == requests, "{result}");
    Ok(())
}

fn metrics_are_those_of_the_statistics() -> Result<()> {
    let lab = TestLab::up()?;
    for (engine, requests) in
        [("afxdp --bind live-map", 300), ("reflect", 200), ("socket-gso", 100)]
    {
        let mut server =
            Server::start(&lab, &format!("--addresses 20 --metrics 0 --engine {engine}"))?;
        let place = server.ready["metrics"].as_str().context("no metrics")?.to_owned();
        ensure!(place.starts_with("[::1]:"), "{place}");
        let before = scrape(&lab, &place)?;
        ensure!(
            before["sixhop_answered_requests_total"] == 0.0 && before["sixhop_addresses"] == 20.0
        );
        load(&lab, requests)?;
        // From then on, only the time in the statistics changes.
        let stats = loop {
            let stats = server.event()?;
            if stats["answered"] == requests && stats["replies"] == 10 * requests {
                break stats;
            }
        };
        let found = scrape(&lab, &place)?;
        let number = |value: &Value| value.as_f64().context("no number");
        for (name, field) in [
            ("sixhop_received_packets_total", "received"),
            ("sixhop_answered_requests_total", "answered"),
            ("sixhop_sent_replies_total", "replies"),
            ("sixhop_unsent_replies_total", "unsent"),
            ("sixhop_advertisements_total", "advertised"),
            ("sixhop_waiting_packets", "waiting"),
            ("sixhop_lost_frames_total", "frames_lost"),
            ("sixhop_invalid_descriptors_total", "invalid"),
        ] {
            // Engines leave out fields that do not apply to them.
            let has = match field {
                "advertised" => engine.contains("live-map"),
                "frames_lost" | "invalid" => engine != "socket-gso",
                _ => true,
            };
            ensure!(found.contains_key(name) == has, "{engine}: {name} in {found:?}");
            let Some(shown) = found.get(name).copied() else { continue };
            ensure!(shown == number(&stats[field])?, "{engine}: {name} is {shown}: {stats}");
        }
        for (name, label, field) in [
            ("sixhop_dropped_packets_total", "reason", "dropped"),
            ("sixhop_steering_packets_total", "verdict", "steering"),
        ] {
            for (key, value) in stats[field].as_object().context("no object")? {
                let sample = format!("{name}{{{label}=\"{key}\"}}");
                let shown =
                    *found.get(&sample).with_context(|| format!("{engine}: no {sample}"))?;
                // The kernel's own packets keep coming.
                let passes = key.starts_with("passed");
                ensure!(
                    shown == number(value)? || passes,
                    "{engine}: {sample} is {shown}: {stats}"
                );
            }
        }
        if engine == "afxdp" {
            ensure!(
                found["sixhop_queue_answered_requests_total{queue=\"0\"}"] == requests as f64,
                "{found:?}"
            );
            ensure!(found["sixhop_ring_entries{queue=\"0\",ring=\"fill\"}"] == 4096.0, "{found:?}");
            for ring in ["rx", "tx", "completion"] {
                let level = found[&format!("sixhop_ring_entries{{queue=\"0\",ring=\"{ring}\"}}")];
                let room = found[&format!("sixhop_ring_capacity_entries{{ring=\"{ring}\"}}")];
                ensure!(level == 0.0 && room == 4096.0, "{ring} holds {level} of {room}");
            }
            for name in [
                "rx_dropped_packets",
                "rx_ring_full_packets",
                "fill_ring_empty",
                "tx_invalid_descriptors",
            ] {
                let sample = format!("sixhop_xdp_{name}_total{{queue=\"0\"}}");
                ensure!(found.get(&sample) == Some(&0.0), "{sample}: {found:?}");
            }
            ensure!(
                !found.keys().any(|name| name.contains("rotation")),
                "rotation metrics without a schedule"
            );
        }
        server.stop()?;
    }
    Ok(())
}

fn metrics_are_served_whatever_a_scraper_does() -> Result<()> {
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 5 --metrics [::1]:0 --engine socket-batch")?;
    let place = server.ready["metrics"].as_str().context("no metrics")?.to_owned();
    // Two clients stay silent, one never stops sending, one leaves before its answer, one never
    // reads.
    let silent: Vec<_> = (0..2).map(|_| connect(&lab, &place)).collect::<Result<_>>()?;
    let mut endless = connect(&lab, &place)?;
    let _ = endless.write_all(&[b'a'; 100_000]);
    let mut gone = connect(&lab, &place)?;
    gone.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    gone.shutdown(Shutdown::Both)?;
    drop(gone);
    let mut deaf = connect(&lab, &place)?;
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let start = Instant::now();
    scrape(&lab, &place)?;
    // The two silent clients cost 2 s each, the others nothing.
    ensure!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    drop((silent, endless, deaf));
    for (words, status) in [
        ("GET / HTTP/1.0\r\n\r\n", "200"),
        ("GET /other HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
        ("\r\n\r\n", "405"),
        ("GET /metrics?name[]=x HTTP/1.1\r\n\r\n", "200"),
    ] {
        let (head, body) = request(&lab, &place, words)?;
        ensure!(
            head.starts_with(&format!("HTTP/1.1 {status} ")) && !body.is_empty(),
            "{words}: {head}"
        );
    }
    let (head, body) = request(&lab, &place, "HEAD /metrics HTTP/1.1\r\n\r\n")?;
    ensure!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head} {body}");
    server.stop()?;
    // If the address for metrics is unavailable, the server does not start.
    let flags = format!(
        "serve --interface server0 --prefix {PREFIX} --addresses 5 --metrics [2001:db8:77::1]:1"
    );
    let output = sixhop(&lab, Side::Server, &flags).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && words.contains("no metrics at [2001:db8:77::1]:1"),
        "{words}"
    );
    Ok(())
}

/// Frames of each kind.
const GOOD: u64 = 40;
const FROM_SERVICE_PORT: u64 = 7;
const BAD_CHECKSUM: u64 = 5;
const OTHER_PORT: u64 = 3;

fn counts_add_up() -> Result<()> {
    for engine in [
        "afxdp",
        "afxdp --bind live-map",
        "reflect",
        "socket",
        "socket-gso",
        "uring",
        "raw",
        "packet-ring",
    ] {
        let lab = TestLab::up()?;
        let _polling = have_client_poll(&lab)?;
        let mut server = Server::start(&lab, &format!("--addresses 5 --engine {engine}"))?;
        let (own, client) = (common::link(&lab, Side::Server)?, common::link(&lab, Side::Client)?);
        let socket = lab.run_in(Side::Client, || PacketSocket::on(client.index))?;
        let to = Pool::new(PREFIX.parse()?, 5, 1)?.address(3);
        let frame = |source_port: u16, port: u16| {
            let mut frame = Vec::new();
            let build = PacketBuilder::ethernet2(client.mac, own.mac)
                .ipv6(Side::Client.address().octets(), to.octets(), 64)
                .udp(source_port, port);
            build.write(&mut frame, b"to be counted").map(|()| frame)
        };
        let mut broken = frame(50_000, 3540)?;
        broken[70] ^= 1;
        for (count, frame) in [
            (GOOD, frame(50_000, 3540)?),
            (FROM_SERVICE_PORT, frame(3540, 3540)?),
            (BAD_CHECKSUM, broken),
            (OTHER_PORT, frame(50_000, 3541)?),
        ] {
            for _ in 0..count {
                socket.send(&frame)?;
            }
        }
        // The kernel drops a wrong checksum before a UDP socket sees it.
        let checks =
            engine.starts_with("afxdp") || ["reflect", "raw", "packet-ring"].contains(&engine);
        let bad = if checks { BAD_CHECKSUM } else { 0 };
        let expected = GOOD + FROM_SERVICE_PORT + bad;
        server
            .wait_for(|stats| {
                let hidden = stats["dropped"]["dropped_hidden"].as_u64().unwrap_or_default();
                let solicited = stats["steering"]["solicited"].as_u64().unwrap_or_default();
                stats["received"].as_u64() >= Some(expected + hidden + solicited)
                    && unaccounted(stats) == 0
            })
            .with_context(|| engine.to_owned())?;
        let totals = server.stop()?;
        ensure!(totals["answered"] == GOOD && totals["replies"] == 10 * GOOD, "{engine}: {totals}");
        let dropped = totals["dropped"].as_object().context("no object")?;
        let reason = |name: &str| dropped.get(name).and_then(Value::as_u64).unwrap_or_default();
        ensure!(reason("source_service_port") == FROM_SERVICE_PORT, "{engine}: {totals}");
        ensure!(reason("bad_checksum") == bad, "{engine}: {totals}");
        // With `live-map`, packets to another port are dropped. Solicitations between the kernels
        // may count too.
        let hidden = engine.contains("live-map");
        ensure!(!hidden || reason("dropped_hidden") >= OTHER_PORT, "{engine}: {totals}");
        let others =
            reason("dropped_hidden") + totals["steering"]["solicited"].as_u64().unwrap_or_default();
        ensure!(totals["received"] == expected + others, "{engine}: {totals}");
        ensure!(hidden || others == 0, "{engine}: {totals}");
        ensure!(totals["waiting"] == 0 && unaccounted(&totals) == 0, "{engine}: {totals}");
    }
    Ok(())
}

fn a_service_manager_is_told() -> Result<()> {
    let lab = TestLab::up()?;
    let path = std::env::temp_dir().join(format!("sixhop-notify-{}", std::process::id()));
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(PATIENCE))?;
    let hear = || -> Result<String> {
        let mut words = [0; 1000];
        let length = manager.recv(&mut words).context("no message to the service manager")?;
        Ok(String::from_utf8(words[..length].to_vec())?)
    };
    let wait_for = |wanted: &str| -> Result<String> {
        loop {
            let words = hear()?;
            if words.lines().any(|line| line == wanted) {
                return Ok(words);
            }
            ensure!(
                ["READY=1", "WATCHDOG=1", "STOPPING=1"].iter().any(|known| words.contains(known)),
                "{words}"
            );
        }
    };
    let told = || -> Result<()> {
        for engine in ["afxdp", "reflect", "socket", "socket-gso", "uring", "raw", "packet-ring"] {
            let flags = format!(
                "serve --interface server0 --json --prefix {PREFIX} --addresses 20 --engine \
                 {engine}"
            );
            let mut command = sixhop(&lab, Side::Server, &flags);
            command
                .env("NOTIFY_SOCKET", &path)
                .env("WATCHDOG_USEC", "400000")
                .env_remove("WATCHDOG_PID");
            let server = Server::of(command)?;
            let words = hear()?;
            let status = format!("STATUS={engine} answers on 20 addresses of server0");
            ensure!(words.lines().eq(["READY=1", &status]), "{engine}: {words}");
            // An idle worker still reports that it is alive.
            for _ in 0..3 {
                wait_for("WATCHDOG=1").with_context(|| engine.to_owned())?;
            }
            server.stop()?;
            let words = wait_for("STOPPING=1")?;
            ensure!(words.contains("STATUS="), "{words}");
        }
        Ok(())
    };
    let told = told();
    std::fs::remove_file(&path)?;
    told
}

fn logs_have_levels() -> Result<()> {
    let lab = TestLab::up()?;
    let run = |flags: &str, variable: Option<&str>| -> Result<Vec<String>> {
        let flags =
            format!("serve --interface server0 --json --prefix {PREFIX} --addresses 20 {flags}");
        let mut command = sixhop(&lab, Side::Server, &flags);
        command.env_remove("RUST_LOG").env_remove("SIXHOP_LOG");
        command.envs(variable.map(|level| ("SIXHOP_LOG", level)));
        // Every line of output must parse as an event, whatever the log level.
        let mut server = Server::of(command)?;
        let mut stderr = server.child.stderr.take().context("a pipe")?;
        server.stop()?;
        let mut words = String::new();
        stderr.read_to_string(&mut words)?;
        Ok(words.lines().map(str::to_owned).collect())
    };
    let said = run("", None)?;
    ensure!(
        said.len() == 1 && said[0].starts_with("sixhop: ") && said[0].contains("falls back"),
        "{said:?}"
    );
    let said = run("", Some("error"))?;
    ensure!(said.is_empty(), "{said:?}");
    for (flags, variable) in [("--log info", Some("error")), ("", Some("info"))] {
        let said = run(flags, variable)?;
        ensure!(
            said.iter().any(|line| line.starts_with("sixhop: info: ready: afxdp answers on 20")),
            "{said:?}"
        );
    }
    let said = run("--log debug --log-format json", None)?;
    for line in &said {
        let line: Value = serde_json::from_str(line).with_context(|| line.clone())?;
        ensure!(
            line["level"].is_string()
                && line["timestamp"].is_string()
                && line["message"].is_string(),
            "{line}"
        );
    }
    ensure!(
        said.iter().any(|line| line.contains("\"level\":\"WARN\"") && line.contains("falls back")),
        "{said:?}"
    );
    for arguments in ["probe lo --log loud=nothing", "--log-format xml probe lo"] {
        let output = sixhop(&lab, Side::Server, arguments).output()?;
        ensure!(
            output.status.code() == Some(2),
            "{arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // A failure is a line of JSON too.
    let output = sixhop(&lab, Side::Server, "probe eth9 --log-format json").output()?;
    let line: Value = serde_json::from_slice(&output.stderr)?;
    ensure!(
        line["level"] == "ERROR"
            && line["message"].as_str().is_some_and(|words| words.contains("eth9")),
        "{line}"
    );
    Ok(())
}
