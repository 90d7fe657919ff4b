//! A successful attach or bind does not prove that packets arrive and leave. Each server here
//! answers, refuses to start and says why, or reports that nothing leaves.
//!
//! | test | what the kernel granted |
//! |---|---|
//! | `a_queue_without_a_way_out_*` | a ring on a queue that cannot send |
//! | `a_port_of_a_bridge_*` | addresses on a link whose packets go to the bridge |
//! | `replies_that_no_driver_takes_*` | a program that answers, on a link that takes no frames |
//!
//! Bonds are in tests/vm.rs, since not every kernel has them.

use std::process::Command;

use crate::common::server::{PREFIX, Server, sixhop};
use crate::common::{TestLab, fails_with, ip, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sixhop::lab::Side;

const REQUESTS: u64 = 60;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("a_queue_without_a_way_out_is_refused", queue_without_a_way_out),
        trial("a_queue_without_a_way_out_may_be_left_out", queue_left_out),
        trial("a_port_of_a_bridge_serves_by_live_map_alone", bridge_port),
        trial("a_bridge_serves_itself", bridge),
        trial("replies_that_no_driver_takes_are_unsent", nothing_leaves),
    ]
}

/// Sends requests from a plain socket of the client.
fn load(lab: &TestLab, interface: &str, flags: &str) -> Result<Value> {
    let load = format!(
        "load --client socket --interface {interface} --rate 200 --requests {REQUESTS} --json \
         {flags}"
    );
    let output = sixhop(lab, Side::Client, &load).output()?;
    // `load` exits with status 1 if nothing was answered; here that is a result.
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

/// A second veth pair, whose server's end has more receive than transmit queues. Removed on drop.
struct Odd(String);

impl Odd {
    const PREFIX: &str = "2001:db8:9::/64";

    fn add(lab: &TestLab) -> Result<Self> {
        let [server, client] = [Side::Server, Side::Client].map(|side| lab.namespace(side));
        ip(&format!(
            "-n {server} link add odd0 numrxqueues 2 numtxqueues 1 type veth \
             peer name odd1 netns {client} numrxqueues 1 numtxqueues 2"
        ))?;
        let odd = Self(server);
        for (namespace, end, address) in [(&odd.0, "odd0", 2), (&client, "odd1", 1)] {
            ip(&format!("-n {namespace} address add 2001:db8:9::{address}/64 dev {end} nodad"))?;
            let command = ["netns", "exec", namespace, "ethtool", "-K", end, "tx", "off"];
            ensure!(Command::new("ip").args(command).output()?.status.success(), "ethtool failed");
        }
        for (namespace, end) in [(&odd.0, "odd0"), (&client, "odd1")] {
            ip(&format!("-n {namespace} link set {end} up"))?;
        }
        Ok(odd)
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        let _ = ip(&format!("-n {} link delete odd0", self.0));
    }
}

fn queue_without_a_way_out() -> Result<()> {
    let lab = TestLab::up()?;
    let _odd = Odd::add(&lab)?;
    // `reflect` with `live-map` opens rings as well, to answer neighbour discovery.
    for flags in ["--bind netlink", "--bind netlink --queues 1", "--bind live-map --engine reflect"]
    {
        let flags = format!("--prefix {} --addresses 20 {flags}", Odd::PREFIX);
        let started = Server::start_on(&lab, "odd0", &flags);
        fails_with(started, "replies of queue 1 of odd0 would not leave")?;
    }
    // `probe` predicts what `serve` does.
    let output = sixhop(&lab, Side::Server, "probe odd0 --try --json").output()?;
    let probe: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(probe["verdict"]["obstacles"][0]["name"] == "tx-queues", "{probe}");
    ensure!(probe["tried"]["agrees"] == true, "{probe}");
    // `reflect` and sockets do not need a transmit queue for each receive queue.
    for flags in ["--engine reflect --attach generic", "--engine socket-gso"] {
        let flags = format!("--prefix {} --addresses 20 --bind netlink {flags}", Odd::PREFIX);
        let server = Server::start_on(&lab, "odd0", &flags)?;
        let result = load(&lab, "odd1", &format!("--prefix {} --addresses 20", Odd::PREFIX))?;
        ensure!(result["complete"] == REQUESTS, "{result}");
        server.stop()?;
    }
    Ok(())
}

fn queue_left_out() -> Result<()> {
    let lab = TestLab::up()?;
    let _odd = Odd::add(&lab)?;
    let flags = format!("--prefix {} --addresses 20 --bind netlink --queues 0", Odd::PREFIX);
    let server = Server::start_on(&lab, "odd0", &flags)?;
    ensure!(server.ready["notes"].to_string().contains("counted as no_ring"), "{}", server.ready);
    let result = load(&lab, "odd1", &format!("--prefix {} --addresses 20", Odd::PREFIX))?;
    let totals = server.stop()?;
    // Requests on queue 1 go to the socket behind the program, and the kernel sends its replies. No
    // request counts twice.
    ensure!(totals["received"] == totals["answered"], "{totals}");
    let by_others = totals["received"].as_u64().unwrap_or(0)
        - totals["steering"]["steered"].as_u64().unwrap_or(0);
    ensure!(by_others > 0 && totals["steering"]["no_ring"] == by_others, "{totals}");
    ensure!(totals["answered"] == result["complete"], "{totals}, {result}");
    ensure!(totals["queues"][0]["answered"] == totals["steering"]["steered"], "{totals}");
    Ok(())
}

/// Makes the server's end the only port of a bridge.
fn with_bridge(lab: &TestLab) -> Result<()> {
    let server = lab.namespace(Side::Server);
    ip(&format!("-n {server} link add br0 type bridge mcast_snooping 0"))?;
    ip(&format!("-n {server} link set server0 master br0"))?;
    ip(&format!("-n {server} address add 2001:db8:1::2/64 dev br0 nodad"))?;
    ip(&format!("-n {server} link set br0 up"))
}

fn without_bridge(lab: &TestLab) -> Result<()> {
    ip(&format!("-n {} link delete br0", lab.namespace(Side::Server)))
}

fn bridge_port() -> Result<()> {
    let lab = TestLab::up()?;
    with_bridge(&lab)?;
    let served = (|| {
        let allow = format!("--addresses 20 --allow {PREFIX}");
        for flags in
            ["--bind netlink", "--bind netlink --engine raw", "--bind anyip", "--bind ioctl"]
        {
            let started = Server::start(&lab, &format!("{allow} {flags}"));
            fails_with(started, "serve on br0, or use --bind live-map")?;
        }
        let hold =
            format!("bind --interface server0 --prefix {PREFIX} --addresses 5 --method netlink");
        let output = sixhop(&lab, Side::Server, &hold).output()?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && words.contains("bind to br0"), "{words}");
        let output = sixhop(&lab, Side::Server, "probe server0 --try --json").output()?;
        let probe: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(probe["verdict"]["flags"].to_string().contains("live-map"), "{probe}");
        ensure!(probe["tried"]["agrees"] == true, "{probe}");

        let server = Server::start(&lab, &format!("{allow} --bind live-map"))?;
        ensure!(server.ready["notes"].to_string().contains("is a port of br0"), "{}", server.ready);
        let result = load(&lab, "client0", &format!("--prefix {PREFIX} --addresses 20"))?;
        ensure!(result["complete"] == REQUESTS, "{result}");
        server.stop().map(drop)
    })();
    without_bridge(&lab)?;
    served
}

fn bridge() -> Result<()> {
    let lab = TestLab::up()?;
    with_bridge(&lab)?;
    let served = (|| {
        for flags in ["--engine afxdp", "--engine raw"] {
            let flags = format!("--prefix {PREFIX} --addresses 20 --bind netlink {flags}");
            let server = Server::start_on(&lab, "br0", &flags)?;
            let result = load(&lab, "client0", &format!("--prefix {PREFIX} --addresses 20"))?;
            ensure!(result["complete"] == REQUESTS, "{result}");
            server.stop()?;
        }
        Ok(())
    })();
    without_bridge(&lab)?;
    served
}

/// The client has plain sockets: its end of the veth does not poll, so it accepts no frames from
/// XDP.
fn nothing_leaves() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server = Server::start(&lab, "--addresses 20 --bind netlink --engine reflect")?;
    ensure!(server.ready["attach"] == "native", "{}", server.ready);
    let result = load(&lab, "client0", &format!("--prefix {PREFIX} --addresses 20"))?;
    ensure!(result["answered"] == 0, "the client's end polls: {result}");
    server.wait_for(|event| {
        event["event"] == "notice"
            && event["text"].as_str().is_some_and(|text| text.contains("gro on"))
    })?;
    let totals = server.stop()?;
    let answered = totals["answered"].as_u64().context("a count")?;
    ensure!(answered == REQUESTS && totals["replies"] == 0, "{totals}");
    ensure!(totals["unsent"] == 10 * answered, "{totals}");
    Ok(())
}
