//! The modes of `serve`: what it asks the kernel for, what it reports it got, and that it restores
//! settings. Each test has a lab of its own (see `common`).

use std::io::Read;
use std::process::{Command, Stdio};

use crate::common::server::{PREFIX, SIXHOP, Server, sixhop};
use crate::common::{TestLab, fails_with, ip, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sixhop::lab::Side;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("each_step_down_is_said", each_step_down_is_said),
        trial("a_forced_mode_that_cannot_be_had_is_an_error", forced_modes_are_had_or_are_errors),
        trial("busy_polling_answers_and_its_settings_are_put_back", busy_polling_answers),
        trial("a_client_polls_and_puts_its_settings_back", a_client_polls),
        trial("either_end_has_its_packets_gathered_and_puts_that_back", coalescing),
        trial("settings_of_a_killed_server_are_put_right_by_the_next", settings_of_a_killed_server),
        trial("settings_that_somebody_else_has_changed_are_left", settings_of_somebody_else),
        trial("frames_of_both_sizes_work_on_either_kind_of_pages", frames_of_both_sizes),
        trial("queues_that_are_not_served_are_spoken_of", queues_that_are_not_served),
    ]
}

/// Busy polling and coalescing each set both.
const SETTINGS: [&str; 2] = ["napi_defer_hard_irqs", "gro_flush_timeout"];

/// Runs `command` in sh on the server's side and returns its output.
fn shell(lab: &TestLab, command: &str) -> Result<String> {
    on(lab, "server", command)
}

fn on(lab: &TestLab, side: &str, command: &str) -> Result<String> {
    let output = Command::new(SIXHOP)
        .args(["lab", "--name", lab.name(), "exec", side, "--", "sh", "-c", command])
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn settings(lab: &TestLab) -> Result<[String; 2]> {
    let [defer, flush] =
        SETTINGS.map(|name| shell(lab, &format!("cat /sys/class/net/server0/{name}")));
    Ok([defer?, flush?])
}

/// Sends requests to 20 addresses, ten replies each. The rate is low enough that a veth's ring of
/// 256 packets does not overflow while a busy machine keeps the server waiting for a second or two.
fn ask(lab: &TestLab, rate: u64, requests: u64, payload: usize) -> Result<()> {
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 20 --json --rate {rate} --requests \
         {requests} --payload {payload}"
    );
    let output = sixhop(lab, Side::Client, &flags).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == requests && result["replies"] == 10 * requests, "{result}");
    Ok(())
}

fn notes(server: &Server) -> Vec<&str> {
    server.ready["notes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Interrupts the server and returns its standard error.
fn last_words(mut server: Server) -> Result<String> {
    let mut stderr = server.child.stderr.take().context("asked twice")?;
    server.stop()?;
    let mut words = String::new();
    stderr.read_to_string(&mut words)?;
    Ok(words)
}

fn each_step_down_is_said() -> Result<()> {
    let lab = TestLab::up()?;
    let copy =
        |why: &str| serde_json::json!({"what": "copy", "from": "zero", "to": "copy", "why": why});
    // A veth lacks zero-copy; loopback lacks native XDP too. A mode that was asked for is no
    // fallback.
    let server = Server::start(&lab, "--addresses 20")?;
    let steps = server.ready["fallbacks"].as_array().cloned().unwrap_or_default();
    ensure!(
        steps.len() == 1 && steps[0]["why"].as_str().is_some_and(|why| why.contains("server0"))
    );
    let words = last_words(server)?;
    ensure!(
        words.lines().count() == 1 && words.contains("falls back from zero to copy"),
        "{words}"
    );
    let generic = copy("generic XDP has no zero-copy");
    let server = Server::start(&lab, "--addresses 20 --attach generic")?;
    ensure!(server.ready["fallbacks"] == serde_json::json!([generic]), "{}", server.ready);
    server.stop()?;
    let server = Server::start(&lab, "--addresses 20 --attach generic --copy copy")?;
    ensure!(server.ready["fallbacks"] == serde_json::json!([]), "{}", server.ready);
    ensure!(last_words(server)?.is_empty());
    let server = Server::start_on(&lab, "lo", &format!("--prefix {PREFIX} --addresses 20"))?;
    let why = "the driver of lo has no native XDP";
    let attach =
        serde_json::json!({"what": "attach", "from": "native", "to": "generic", "why": why});
    ensure!(server.ready["fallbacks"] == serde_json::json!([attach, generic]), "{}", server.ready);
    ensure!(
        server.ready["attach"] == "generic" && server.ready["copy"] == "copy",
        "{}",
        server.ready
    );
    let words = last_words(server)?;
    let steps = words.lines().filter(|line| line.contains("falls back from")).count();
    ensure!(steps == 2 && words.contains("falls back from native to generic"), "{words}");
    Ok(())
}

fn forced_modes_are_had_or_are_errors() -> Result<()> {
    let lab = TestLab::up()?;
    for (flags, words) in [
        ("--copy zero", "no zero-copy on queue 0: the driver of server0 refuses zero-copy"),
        ("--copy zero --attach generic", "generic XDP has no zero-copy"),
        ("--engine socket --busy-poll 50", "use --engine afxdp"),
    ] {
        fails_with(Server::start(&lab, &format!("--addresses 20 {flags}")), words)?;
    }
    let native =
        Server::start_on(&lab, "lo", &format!("--prefix {PREFIX} --addresses 20 --attach native"));
    fails_with(native, "the driver of lo has no native XDP: use --attach generic")?;
    Ok(())
}

fn busy_polling_answers() -> Result<()> {
    let lab = TestLab::up()?;
    let before = settings(&lab)?;
    ensure!(before == ["0", "0"], "{before:?}");
    for (attach, time) in [("native", 1), ("native", 1000), ("generic", 100)] {
        let server =
            Server::start(&lab, &format!("--addresses 20 --busy-poll {time} --attach {attach}"))?;
        let granted = serde_json::json!({"microseconds": time, "preferred": true, "budget": 64});
        ensure!(server.ready["busy_poll"] == granted, "{}", server.ready);
        ensure!(
            server.ready["environment"]["nic"]["napi"]["defer_hard_irqs"] == 2,
            "{}",
            server.ready
        );
        ensure!(settings(&lab)? == ["2", "200000"]);
        // First while it polls, then one request at a time, each waking it from sleep.
        ask(&lab, 100, 150, 32)?;
        ask(&lab, 8, 4, 1452)?;
        server.stop()?;
        ensure!(settings(&lab)? == before, "{attach}: {:?}", settings(&lab)?);
    }
    Ok(())
}

/// The same on the client's side.
fn a_client_polls() -> Result<()> {
    let lab = TestLab::up()?;
    let settings = || -> Result<[String; 2]> {
        let [defer, flush] =
            SETTINGS.map(|name| on(&lab, "client", &format!("cat /sys/class/net/client0/{name}")));
        Ok([defer?, flush?])
    };
    let before = settings()?;
    let server = Server::start(&lab, "--addresses 20")?;
    let flags = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 20 --rate 100 --requests 150 \
         --json --busy-poll 20"
    );
    let output = sixhop(&lab, Side::Client, &flags).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == 150, "{result}");
    ensure!(
        result["busy_poll"]
            == serde_json::json!({"microseconds": 20, "preferred": true, "budget": 64})
    );
    ensure!(result["environment"]["nic"]["napi"]["defer_hard_irqs"] == 2, "{result}");
    ensure!(settings()? == before, "{:?}", settings()?);
    let output = sixhop(&lab, Side::Client, &format!("{flags} --client socket")).output()?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && words.contains("use the client afxdp"), "{words}");
    server.stop()?;
    Ok(())
}

fn coalescing() -> Result<()> {
    let lab = TestLab::up()?;
    for (flags, set) in [
        ("--coalesce 50", ["2", "50000"]),
        ("--coalesce 70 --engine socket", ["2", "70000"]),
        ("--coalesce 30 --busy-poll 20", ["2", "30000"]),
    ] {
        let server = Server::start(&lab, &format!("--addresses 20 {flags}"))?;
        ensure!(settings(&lab)? == set, "{flags}: {:?}", settings(&lab)?);
        let napi = &server.ready["environment"]["nic"]["napi"];
        ensure!(napi["gro_flush_timeout_ns"].as_u64() == Some(set[1].parse()?), "{napi}");
        for client in ["afxdp", "socket"] {
            let ask = format!(
                "load --interface client0 --prefix {PREFIX} --addresses 20 --rate 100 --requests \
                 150 --json --coalesce 40 --client {client}"
            );
            let output = sixhop(&lab, Side::Client, &ask).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let result: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(result["complete"] == 150, "{flags}, {client}: {result}");
            ensure!(
                result["environment"]["nic"]["napi"]["gro_flush_timeout_ns"] == 40_000,
                "{result}"
            );
            let after = SETTINGS
                .map(|name| on(&lab, "client", &format!("cat /sys/class/net/client0/{name}")));
            ensure!(
                after.iter().all(|value| value.as_ref().is_ok_and(|value| value == "0")),
                "{after:?}"
            );
        }
        server.stop()?;
        ensure!(settings(&lab)? == ["0", "0"], "{flags}: {:?}", settings(&lab)?);
    }
    Ok(())
}

fn settings_of_a_killed_server() -> Result<()> {
    let lab = TestLab::up()?;
    shell(&lab, "echo 1 > /sys/class/net/server0/napi_defer_hard_irqs")?;
    let mut server = Server::start(&lab, "--addresses 20 --busy-poll 50")?;
    server.kill_with_guard()?;
    ensure!(settings(&lab)? == ["2", "200000"], "something restored them already");
    // Any server in the namespace restores settings, even one that cannot start.
    let flags = "--addresses 20 --engine socket --busy-poll 50";
    let words =
        "napi_defer_hard_irqs of server0 was left at 2 by a sixhop that was killed; it is 1 again";
    fails_with(Server::start(&lab, flags), words)?;
    ensure!(settings(&lab)? == ["1", "0"], "{:?}", settings(&lab)?);
    let server = Server::start(&lab, "--addresses 20")?;
    ensure!(notes(&server).is_empty(), "{:?}", notes(&server));
    server.stop()?;
    // The same with a server that starts.
    let mut server = Server::start(&lab, "--addresses 20 --busy-poll 50")?;
    server.kill_with_guard()?;
    let server = Server::start(&lab, "--addresses 20")?;
    ensure!(notes(&server).len() == 2 && notes(&server).contains(&words), "{:?}", notes(&server));
    ensure!(settings(&lab)? == ["1", "0"], "{:?}", settings(&lab)?);
    ask(&lab, 100, 20, 32)?;
    ensure!(last_words(server)?.contains(words));
    Ok(())
}

fn settings_of_somebody_else() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server = Server::start(&lab, "--addresses 20 --busy-poll 50")?;
    server.kill_with_guard()?;
    shell(&lab, "echo 7 > /sys/class/net/server0/napi_defer_hard_irqs")?;
    let server = Server::start(&lab, "--addresses 20 --busy-poll 50")?;
    let said = notes(&server);
    ensure!(said.iter().any(|words| words.contains("to 7 by somebody else since")), "{said:?}");
    ensure!(
        said.iter().any(|words| words.contains("gro_flush_timeout of server0 was left")),
        "{said:?}"
    );
    // Now somebody changes it while the server runs.
    shell(&lab, "echo 9 > /sys/class/net/server0/napi_defer_hard_irqs")?;
    let words = last_words(server)?;
    ensure!(words.contains("set to 2 by this server, and to 9 by somebody else"), "{words}");
    ensure!(settings(&lab)? == ["9", "0"], "{:?}", settings(&lab)?);
    Ok(())
}

fn frames_of_both_sizes() -> Result<()> {
    let lab = TestLab::up()?;
    for (flags, size) in
        [("", 2048), ("--frame-size 2048 --hugepages no", 2048), ("--frame-size 4096", 4096)]
    {
        let server = Server::start(&lab, &format!("--addresses 20 {flags}"))?;
        ensure!(server.ready["rings"]["frame_size"] == size, "{}", server.ready);
        if flags.contains("no") {
            ensure!(server.ready["hugepages"] == false, "{}", server.ready);
        }
        ask(&lab, 100, 50, 32)?;
        ask(&lab, 100, 50, 1452)?;
        server.stop()?;
    }
    for side in [Side::Server, Side::Client] {
        ip(&format!("-n {} link set dev {} mtu 3000", lab.namespace(side), side.interface()))?;
    }
    let small = Server::start(&lab, "--addresses 20 --frame-size 2048");
    fails_with(
        small,
        "a frame of 2048 bytes is too small for packets of server0, whose MTU is 3000",
    )?;
    let server = Server::start(&lab, "--addresses 20")?;
    ensure!(server.ready["rings"]["frame_size"] == 4096, "{}", server.ready);
    ask(&lab, 100, 50, 32)?;
    server.stop()?;
    // Huge pages are granted if the machine has some free. Otherwise the server refuses to start.
    match Server::start(&lab, "--addresses 20 --hugepages yes") {
        Ok(server) => {
            ensure!(server.ready["hugepages"] == true, "{}", server.ready);
            server.stop()?;
        }
        refused => fails_with(refused, "vm.nr_hugepages")?,
    }
    Ok(())
}

fn queues_that_are_not_served() -> Result<()> {
    let lab = TestLab::new()?;
    lab.up(2)?;
    let server = Server::start(&lab, "--addresses 20 --queues 1")?;
    ensure!(server.ready["queues"] == serde_json::json!([1]), "{}", server.ready);
    // A veth supports neither flow rules nor an RSS table.
    let said = notes(&server);
    ensure!(said.len() == 1 && said[0].contains("counted as no_ring"), "{said:?}");
    ensure!(said[0].contains("no flow rule") && said[0].contains("no RSS"), "{said:?}");
    server.stop()?;
    let server = Server::start(&lab, "--addresses 20 --queues 1,0")?;
    ensure!(
        notes(&server).is_empty() && server.ready["queues"] == serde_json::json!([1, 0]),
        "{}",
        server.ready
    );
    ask(&lab, 100, 50, 32)?;
    server.stop()?;
    Ok(())
}
