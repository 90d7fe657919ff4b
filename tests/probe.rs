//! `probe`, run as a user would, on a lab per test (see `common`): its expectation must match what
//! `--try` gets. Tests of cards run in a guest, with the same `--try --json`.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::common::server::{SIXHOP, Server, sixhop};
use crate::common::{TestLab, ip, link, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sixhop::events::Event;
use sixhop::lab::Side;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("loopback_gets_generic_and_copy", loopback_gets_generic_and_copy),
        trial("veth_gets_native_and_copy", veth_gets_native_and_copy),
        trial("the_mtu_of_a_veths_other_end_counts", mtu_of_the_other_end_counts),
        trial("a_veth_wants_as_many_queues_as_its_other_end", as_many_queues_as_the_other_end),
        trial("another_program_is_seen_and_left_alone", another_program_is_left_alone),
        trial("an_interface_that_is_down_is_not_to_be_had", an_interface_that_is_down),
        trial("without_privileges_it_says_what_is_missing", without_privileges),
        trial("every_interface_has_a_line", every_interface_has_a_line),
        trial("bad_input_gets_one_clear_line", bad_input_gets_one_clear_line),
    ]
}

/// The only line of JSON.
fn event(output: Output) -> Result<Value> {
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && words.is_empty(), "{words}");
    let line = String::from_utf8(output.stdout)?;
    ensure!(matches!(Event::parse(&line)?, Event::Probe(_)), "{line}");
    Ok(serde_json::from_str(&line)?)
}

/// Tries `interface` on the server's side. Checks that it gives `attach` and `copy` as expected,
/// for the reasons in `why`.
fn expect(
    lab: &TestLab,
    interface: &str,
    attach: &str,
    copy: &str,
    reasons: &[&str],
) -> Result<Value> {
    let probe =
        event(sixhop(lab, Side::Server, &format!("probe {interface} --try --json")).output()?)?;
    ensure!(probe["interface"] == interface && probe["schema"] == 1, "{probe}");
    let (verdict, tried) = (&probe["verdict"], &probe["tried"]);
    ensure!(verdict["attach"] == attach && verdict["copy"] == copy, "{verdict}");
    ensure!(verdict["obstacles"] == json!([]), "{verdict}");
    ensure!(names(&verdict["why_not_more"]) == reasons, "{verdict}");
    ensure!(
        tried["attach"] == attach && tried["copy"] == copy && tried["error"].is_null(),
        "{tried}"
    );
    ensure!(tried["agrees"] == true, "{tried}");
    Ok(probe)
}

fn names(findings: &Value) -> Vec<&str> {
    let findings = findings.as_array().map(Vec::as_slice).unwrap_or_default();
    findings.iter().filter_map(|finding| finding["name"].as_str()).collect()
}

fn loopback_gets_generic_and_copy() -> Result<()> {
    let lab = TestLab::up()?;
    let probe = expect(&lab, "lo", "generic", "copy", &["driver", "generic"])?;
    ensure!(probe["xdp"]["features"] == json!([]), "{probe}");
    ensure!(
        probe["verdict"]["flags"] == json!(["--attach", "generic", "--copy", "copy"]),
        "{probe}"
    );
    Ok(())
}

fn veth_gets_native_and_copy() -> Result<()> {
    for queues in [1, 2] {
        let lab = TestLab::new()?;
        lab.up(queues)?;
        let before = link(&lab, Side::Server)?;
        // The second attempt finds nothing left by the first.
        for _ in 0..2 {
            let probe = expect(&lab, "server0", "native", "copy", &["driver"])?;
            ensure!(probe["queues"] == queues && probe["queues_possible"] == queues, "{probe}");
            ensure!(probe["tried"]["queues"] == json!((0..queues).collect::<Vec<_>>()), "{probe}");
            ensure!(probe["peer"]["name"] == "client0" && probe["sys_seen"] == true, "{probe}");
            ensure!(
                probe["verdict"]["advice"][0]["command"] == "ethtool -K client0 tx off",
                "{probe}"
            );
            ensure!(link(&lab, Side::Server)? == before, "the attempt left something behind");
        }
        // `serve` accepts the recommended flags and gets the modes that they name.
        let flags = if queues == 1 { "" } else { " --queues 0,1" };
        let flags = format!("--attach native --copy copy{flags}");
        let probe = expect(&lab, "server0", "native", "copy", &["driver"])?;
        ensure!(
            probe["verdict"]["flags"] == json!(flags.split(' ').collect::<Vec<_>>()),
            "{probe}"
        );
        let server = Server::start(&lab, &format!("--addresses 1 {flags}"))?;
        ensure!(server.ready["attach"] == "native" && server.ready["copy"] == "copy");
        // Its rings take as much memory as the verdict predicted.
        let rings = &server.ready["rings"];
        ensure!(rings["frames"] == 4096 && rings["frame_size"] == 2048, "{rings}");
        server.stop()?;
    }
    Ok(())
}

fn mtu_of_the_other_end_counts() -> Result<()> {
    let lab = TestLab::up()?;
    let set = |side: Side, mtu: u32| {
        ip(&format!("-n {} link set {} mtu {mtu}", lab.namespace(side), side.interface()))
    };
    set(Side::Server, 9000)?;
    expect(&lab, "server0", "native", "copy", &["driver"])?;
    // The largest MTU that fits.
    set(Side::Client, 3506)?;
    expect(&lab, "server0", "native", "copy", &["driver"])?;
    set(Side::Client, 3507)?;
    let probe = expect(&lab, "server0", "generic", "copy", &["mtu", "generic"])?;
    let cure = &probe["verdict"]["why_not_more"][0]["cure"];
    ensure!(cure == "ip link set dev client0 mtu 1500", "{cure}");
    Ok(())
}

fn as_many_queues_as_the_other_end() -> Result<()> {
    let lab = TestLab::up()?;
    let namespace = lab.namespace(Side::Server);
    ip(&format!(
        "-n {namespace} link add few0 numrxqueues 1 numtxqueues 1 type veth peer name many0 \
         numrxqueues 2 numtxqueues 2"
    ))?;
    let check = || {
        ip(&format!("-n {namespace} link set few0 up"))?;
        ip(&format!("-n {namespace} link set many0 up"))?;
        let probe = expect(&lab, "few0", "generic", "copy", &["driver", "generic"])?;
        let why = &probe["verdict"]["why_not_more"][0]["why"];
        ensure!(why.as_str().is_some_and(|why| why.contains("1 receive queues in use")), "{why}");
        expect(&lab, "many0", "native", "copy", &["driver"])
    };
    let checked = check();
    // The lab does not take down interfaces that it did not make.
    ip(&format!("-n {namespace} link delete few0"))?;
    checked.map(|_| ())
}

fn another_program_is_left_alone() -> Result<()> {
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 10")?;
    let before = link(&lab, Side::Server)?.xdp.context("the server has no program")?;
    let probe = event(sixhop(&lab, Side::Server, "probe server0 --try --json").output()?)?;
    ensure!(probe["program"] == json!({"mode": "native", "id": before.id}), "{probe}");
    ensure!(names(&probe["verdict"]["obstacles"]) == ["occupied"], "{probe}");
    let tried = &probe["tried"];
    ensure!(
        tried["error"].as_str().is_some_and(|error| error.contains("another XDP program")),
        "{tried}"
    );
    ensure!(tried["agrees"] == true && tried["attach"].is_null(), "{tried}");
    ensure!(link(&lab, Side::Server)?.xdp == Some(before));
    server.stop()?;
    Ok(())
}

fn an_interface_that_is_down() -> Result<()> {
    let lab = TestLab::up()?;
    ip(&format!("-n {} link set server0 down", lab.namespace(Side::Server)))?;
    let probe = event(sixhop(&lab, Side::Server, "probe server0 --try --json").output()?)?;
    let (verdict, tried) = (&probe["verdict"], &probe["tried"]);
    ensure!(names(&verdict["obstacles"]) == ["down"] && verdict["attach"] == "native", "{verdict}");
    ensure!(tried["error"].as_str().is_some_and(|error| error.contains("is down")), "{tried}");
    ensure!(tried["agrees"] == true, "{tried}");
    ensure!(!link(&lab, Side::Server)?.up, "the attempt set the link up");
    // The other end has no carrier now.
    let probe = event(sixhop(&lab, Side::Client, "probe client0 --json").output()?)?;
    ensure!(names(&probe["verdict"]["obstacles"]) == ["no-carrier"], "{probe}");
    ensure!(probe["tried"].is_null(), "{probe}");
    Ok(())
}

fn without_privileges() -> Result<()> {
    let lab = TestLab::up()?;
    // The file may be in a directory that other users cannot enter.
    let program = std::env::temp_dir().join(format!("sixhop-probe-test-{}", std::process::id()));
    std::fs::copy(SIXHOP, &program)?;
    let output = lab.run_in(Side::Server, || {
        let arguments = ["probe", "server0", "--try", "--json"];
        Ok(Command::new(&program).args(arguments).uid(65534).gid(65534).output()?)
    });
    std::fs::remove_file(&program)?;
    let probe = event(output?)?;
    let (verdict, host) = (&probe["verdict"], &probe["host"]);
    ensure!(host["capabilities"] == json!([]) && host["af_xdp"].is_null(), "{host}");
    ensure!(probe["sys_seen"] == false && probe["peer"].is_null(), "{probe}");
    // `probe` sees what needs no privileges.
    ensure!(verdict["attach"] == "native" && verdict["copy"] == "copy", "{verdict}");
    ensure!(names(&verdict["obstacles"]).contains(&"capabilities"), "{verdict}");
    let lacking = "this process lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_PERFMON";
    ensure!(verdict["obstacles"][0]["why"] == lacking, "{verdict}");
    let line = "run as root, or setcap cap_net_admin,cap_net_raw,cap_bpf,cap_perfmon=ep \
        \"$(command -v sixhop)\"";
    ensure!(verdict["obstacles"][0]["cure"] == line, "{verdict}");
    let tried = &probe["tried"];
    ensure!(tried["error"].as_str().is_some_and(|error| error.contains("run as root")), "{tried}");
    ensure!(tried["agrees"] == true, "{tried}");
    Ok(())
}

fn every_interface_has_a_line() -> Result<()> {
    let lab = TestLab::up()?;
    let output = sixhop(&lab, Side::Server, "probe --json").output()?;
    let text = String::from_utf8(output.stdout)?;
    let names: Vec<Value> =
        text.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?)).collect::<Result<_>>()?;
    ensure!(names.iter().any(|probe| probe["interface"] == "lo"), "{text}");
    ensure!(names.iter().any(|probe| probe["interface"] == "server0"), "{text}");
    for line in text.lines() {
        let Event::Probe(probe) = Event::parse(line)? else { anyhow::bail!("{line}") };
        ensure!(probe.tried.is_none() && !probe.host.kernel.is_empty());
        ensure!(Event::Probe(probe).to_line()?.trim_end() == line, "{line}");
    }
    for (arguments, words) in [
        ("probe", "native, copy"),
        ("probe server0 --try", "native, copy, as expected"),
        ("probe lo", "sixhop serve --interface lo"),
    ] {
        let output = sixhop(&lab, Side::Server, arguments).output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.success() && text.contains(words), "{text}");
        ensure!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
    Ok(())
}

fn bad_input_gets_one_clear_line() -> Result<()> {
    let lab = TestLab::up()?;
    for (arguments, status, words) in [
        ("probe eth9 --json", 1, "no interface 'eth9' here, only lo"),
        ("probe --try", 2, "<IFACE>"),
        ("probe lo server0", 2, "server0"),
    ] {
        let output = sixhop(&lab, Side::Server, arguments).output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(status) && output.stdout.is_empty(),
            "{arguments}: {said}"
        );
        ensure!(said.lines().count() == 1 && said.contains(words), "{arguments}: {said}");
    }
    Ok(())
}
