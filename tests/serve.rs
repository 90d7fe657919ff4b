//! `serve`, `load` and `compare`, run as a user would, on a lab per test (see `common`).
//!
//! | test | what crosses the network |
//! |---|---|
//! | `*_answers_everything` | the generator's requests, to a server of each engine |
//! | `a_plain_socket_*` | requests from a kernel socket, and the replies to it |
//! | `packet_sockets_*` | a frame, and every frame that the server's end sends back |
//! | `ping_and_neighbour_discovery_*` | ICMPv6 between the kernels |
//! | `a_request_from_the_service_port_*` | a request that must get no reply |
//! | `after_sigkill_*`, `bad_input_*` | nothing; the tests check leftovers and messages |

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use crate::common;
use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, PREFIX, SIXHOP, Server, engines, sixhop};
use crate::common::{TestLab, fails_with, have_client_poll, ip, trial, wait_for_no_program};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;
use sixhop::net::netlink;

/// Engines that tap the link: the kernel's own stack gets the same requests.
const TAPS: [&str; 3] = ["raw", "packet-ring", "packet-ring --tpacket v3"];

pub fn trials() -> Vec<Trial> {
    vec![
        trial("afxdp_answers_everything", || answers_everything("afxdp", 2_000, 10_000)),
        trial("afxdp_answers_everything_of_a_million_addresses", a_million_addresses),
        trial(
            "every_engine_answers_under_a_prefix_that_is_routed",
            every_engine_answers_under_a_routed_prefix,
        ),
        trial("both_clients_ask_every_engine", both_clients_ask_every_engine),
        trial("afxdp_answers_everything_in_generic_mode", afxdp_answers_in_generic_mode),
        trial("reflect_answers_everything", || answers_everything("reflect", 1_000, 2_000)),
        trial("reflect_answers_everything_in_generic_mode", reflect_answers_in_generic_mode),
        trial(
            "reflect_answers_where_addresses_are_no_addresses_of_the_kernel",
            reflect_answers_in_live_map,
        ),
        trial("reflect_counts_what_the_driver_did_not_take", reflect_counts_what_was_not_taken),
        trial("socket_answers_everything", || answers_everything("socket", 1_000, 2_000)),
        trial("socket_batch_answers_everything", || {
            answers_everything("socket-batch", 1_000, 2_000)
        }),
        trial("socket_gso_answers_everything", || answers_everything("socket-gso", 1_000, 2_000)),
        trial("uring_answers_everything", || answers_everything("uring", 1_000, 2_000)),
        trial("raw_answers_everything", || answers_everything("raw", 1_000, 2_000)),
        trial("packet_ring_answers_everything", || {
            answers_everything("packet-ring", 2_000, 10_000)
        }),
        trial("packet_ring_answers_everything_in_blocks", || {
            answers_everything("packet-ring --tpacket v3", 2_000, 10_000)
        }),
        trial("workers_share_a_port_and_the_sum_is_right", workers_share_a_port),
        trial("as_many_replies_as_can_be_asked_for_are_cut", as_many_replies_as_can_be),
        trial("afxdp_answers_one_at_a_time", || answers_everything("afxdp", 10, 8)),
        trial("socket_answers_one_at_a_time", || answers_everything("socket", 10, 8)),
        trial("socket_gso_answers_one_at_a_time", || answers_everything("socket-gso", 10, 8)),
        trial("raw_answers_one_at_a_time", || answers_everything("raw", 10, 8)),
        trial("packet_ring_answers_one_at_a_time", || answers_everything("packet-ring", 10, 8)),
        trial("packet_ring_answers_one_at_a_time_in_blocks", || {
            answers_everything("packet-ring --tpacket v3", 10, 8)
        }),
        trial("packet_sockets_say_what_they_got", packet_sockets_say_what_they_got),
        trial(
            "packet_sockets_reply_and_the_kernel_is_silent",
            packet_sockets_reply_and_the_kernel_is_silent,
        ),
        trial("packet_sockets_end_with_the_link", packet_sockets_end_with_the_link),
        trial("uring_answers_one_at_a_time", || answers_everything("uring", 10, 8)),
        trial("uring_answers_a_flood_or_the_socket_counts_it", uring_answers_a_flood),
        trial("a_port_that_is_taken_is_not_shared", taken_port_is_not_shared),
        trial("two_queues_are_both_served", || two_queues_are_both_served("afxdp")),
        trial("two_queues_are_both_served_by_reflect", || two_queues_are_both_served("reflect")),
        trial(
            "a_plain_socket_gets_the_same_from_every_engine",
            a_plain_socket_gets_the_same_from_every_engine,
        ),
        trial(
            "ping_and_neighbour_discovery_work_on_bound_addresses",
            ping_and_neighbour_discovery_work,
        ),
        trial(
            "a_request_from_the_service_port_is_not_answered",
            a_request_from_the_service_port_is_not_answered,
        ),
        trial("what_is_not_ours_reaches_the_kernel", what_is_not_ours_reaches_the_kernel),
        trial("after_sigkill_no_program_is_left_and_the_next_server_starts", || {
            after_sigkill("afxdp")
        }),
        trial("after_sigkill_nobody_reflects_and_the_next_server_starts", || {
            after_sigkill("reflect")
        }),
        trial("a_second_program_is_refused", a_second_program_is_refused),
        trial("bad_input_gets_one_clear_line", bad_input_gets_one_clear_line),
        trial("compare_finds_figures_for_each_engine", compare_finds_figures),
    ]
}

fn load(lab: &TestLab, addresses: u64, rate: u64, requests: u64) -> Result<Value> {
    let flags = format!("{} --rate {rate} --requests {requests}", load_flags(addresses));
    let output = sixhop(lab, Side::Client, &flags).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn load_flags(addresses: u64) -> String {
    format!("load --interface client0 --prefix {PREFIX} --addresses {addresses} --json")
}

fn pool(addresses: u64) -> Result<Pool> {
    Ok(Pool::new(PREFIX.parse()?, addresses, 1)?)
}

/// The number of pool addresses on the server's interface.
fn bound(lab: &TestLab, addresses: u64) -> Result<usize> {
    let pool = pool(addresses)?;
    lab.run_in(Side::Server, || {
        let link = netlink::link("server0")?;
        Ok(netlink::addresses(link.index)?
            .iter()
            .filter(|address| pool.contains(address.ip))
            .count())
    })
}

fn check_load(result: &Value, requests: u64) -> Result<()> {
    for (field, expected) in [
        ("sent", requests),
        ("answered", requests),
        ("complete", requests),
        ("replies", 10 * requests),
        ("duplicates", 0),
        ("wrong_source", 0),
        ("corrupt", 0),
    ] {
        ensure!(result[field] == expected, "{field} is not {expected}: {result}");
    }
    for times in ["first", "last"] {
        let time = |name: &str| result[times][name].as_f64().unwrap_or_default();
        ensure!(time("p50_us") > 0.0 && time("p50_us") <= time("p99_us"), "{result}");
        ensure!(time("p99_us") <= time("max_us") && time("mean_us") <= time("max_us"), "{result}");
    }
    Ok(())
}

fn answers_everything(engine: &str, rate: u64, requests: u64) -> Result<()> {
    let lab = TestLab::up()?;
    let server =
        Server::start(&lab, &format!("--addresses 200 --engine {engine} --bind netlink-down"))?;
    let (attach, copy, verdict) = match engine {
        "afxdp" => (Value::from("native"), Value::from("copy"), Some("steered")),
        "reflect" => (Value::from("native"), Value::Null, Some("reflected")),
        _ => Default::default(),
    };
    ensure!(server.ready["attach"] == attach && server.ready["copy"] == copy, "{}", server.ready);
    ensure!(server.ready["addresses"] == 200 && bound(&lab, 200)? == 200);
    check_load(&load(&lab, 200, rate, requests)?, requests)?;
    let totals = server.stop()?;
    ensure!(totals["answered"] == requests && totals["replies"] == 10 * requests, "{totals}");
    if let Some(verdict) = verdict {
        ensure!(totals["steering"][verdict] == requests && totals["unsent"] == 0, "{totals}");
    }
    ensure!(bound(&lab, 200)? == 0, "addresses remain");
    let link = lab.run_in(Side::Server, || netlink::link("server0"))?;
    ensure!(link.xdp.is_none(), "a program is still attached");
    Ok(())
}

fn a_million_addresses() -> Result<()> {
    const ADDRESSES: u64 = 1_000_000;
    let lab = TestLab::up()?;
    let server = Server::start(&lab, &format!("--addresses {ADDRESSES} --bind live-map"))?;
    check_load(&load(&lab, ADDRESSES, 2000, 10_000)?, 10_000)?;
    let totals = server.stop()?;
    ensure!(totals["answered"] == 10_000 && totals["steering"]["steered"] == 10_000, "{totals}");
    ensure!(totals["advertised"].as_u64() >= Some(1), "{totals}");
    Ok(())
}

fn workers_share_a_port() -> Result<()> {
    for engine in ["socket-batch", "socket-gso", "uring"].into_iter().chain(TAPS) {
        let lab = TestLab::up()?;
        let server =
            Server::start(&lab, &format!("--addresses 50 --engine {engine} --cores 0,0,0"))?;
        ensure!(server.ready["cores"] == serde_json::json!([0, 0, 0]), "{}", server.ready);
        check_load(&load(&lab, 50, 1000, 1000)?, 1000)?;
        let totals = server.stop()?;
        ensure!(totals["answered"] == 1000 && totals["replies"] == 10_000, "{totals}");
    }
    Ok(())
}

/// More replies, and larger, than one datagram can be segmented into.
fn as_many_replies_as_can_be() -> Result<()> {
    for engine in ["socket-gso", "uring"].into_iter().chain(TAPS) {
        let lab = TestLab::up()?;
        let server =
            Server::start(&lab, &format!("--addresses 5 --replies 255 --engine {engine}"))?;
        for payload in [16, 1452] {
            let flags = format!(
                "{} --rate 20 --requests 10 --replies 255 --payload {payload}",
                load_flags(5)
            );
            let output = sixhop(&lab, Side::Client, &flags).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let result: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(
                result["complete"] == 10 && result["replies"] == 2550 && result["duplicates"] == 0,
                "{engine}: {result}"
            );
        }
        server.stop()?;
    }
    Ok(())
}

/// Sends many more requests at once than the engine has buffers or its socket holds: first to a
/// stopped server, then to a running one.
fn uring_answers_a_flood() -> Result<()> {
    const REQUESTS: u64 = 30_000;
    let lab = TestLab::up()?;
    let address = pool(10)?.address(3);
    let mut server = Server::start(&lab, "--addresses 10 --engine uring")?;
    let mut asked = 0;
    for stands in [true, false] {
        if stands {
            server.signal(Signal::SIGSTOP)?;
        }
        lab.run_in(Side::Client, || {
            let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
            // Resolve the address first: the kernel queues few packets during neighbour discovery.
            let mac = netlink::resolve(netlink::link("client0")?.index, address, PATIENCE)?;
            ensure!(mac == lab.run_in(Side::Server, || Ok(netlink::link("server0")?.mac))?);
            for _ in 0..REQUESTS {
                socket.send_to(&[7; 32], SocketAddrV6::new(address, 3540, 0, 0))?;
            }
            Ok(())
        })?;
        asked += REQUESTS;
        if stands {
            server.signal(Signal::SIGCONT)?;
        }
        server.wait_for(|stats| {
            let count = |name: &str| stats[name].as_u64().unwrap_or_default();
            count("answered") + count("socket_dropped") == asked
                && count("replies") == 10 * count("answered")
        })?;
        ask(&lab, address, b"and one more")?;
        asked += 1;
    }
    let totals = server.stop()?;
    ensure!(totals["socket_dropped"].as_u64() > Some(0), "{totals}");
    Ok(())
}

fn taken_port_is_not_shared() -> Result<()> {
    let lab = TestLab::up()?;
    let first = Server::start(&lab, "--addresses 10 --engine socket-batch")?;
    for engine in ["socket", "socket-batch", "socket-gso", "uring"].into_iter().chain(TAPS) {
        let flags = format!(
            "serve --interface server0 --prefix {PREFIX} --addresses 10 --bind none --engine \
             {engine}"
        );
        let (status, words) = failure(sixhop(&lab, Side::Server, &flags).output()?)?;
        ensure!(
            status == 1 && words.contains("UDP port 3540 is taken by another program"),
            "{words}"
        );
    }
    check_load(&load(&lab, 10, 1000, 100)?, 100)?;
    first.stop()?;
    Ok(())
}

fn both_clients_ask_every_engine() -> Result<()> {
    let lab = TestLab::up()?;
    for engine in engines() {
        let server =
            Server::start(&lab, &format!("--addresses 100 --bind netlink-down --engine {engine}"))?;
        for (client, attach) in [("afxdp", Value::from("native")), ("socket", Value::Null)] {
            let polling = (client == "socket").then(|| have_client_poll(&lab)).transpose()?;
            let flags =
                format!("{} --rate 3000 --requests 1500 --client {client}", load_flags(100));
            let output = sixhop(&lab, Side::Client, &flags).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            drop(polling);
            wait_for_no_program(&lab, Side::Client)?;
            let result = serde_json::from_slice(&output.stdout)?;
            check_load(&result, 1500)?;
            ensure!(result["client"] == client && result["attach"] == attach, "{result}");
        }
        let totals = server.stop()?;
        ensure!(totals["answered"] == 3000 && totals["replies"] == 30_000, "{totals}");
    }
    Ok(())
}

fn every_engine_answers_under_a_routed_prefix() -> Result<()> {
    for engine in engines() {
        let lab = TestLab::up()?;
        ip(&format!(
            "-n {} route add 2001:db8:2::/64 via 2001:db8:1::2",
            lab.namespace(Side::Client)
        ))?;
        let flags =
            format!("--prefix 2001:db8:2::/64 --addresses 1000000 --bind anyip --engine {engine}");
        let server = Server::start_with(&lab, &flags)?;
        let flags = format!("{} --rate 1000 --requests 500", load_flags(1_000_000));
        let output =
            sixhop(&lab, Side::Client, &flags.replace(PREFIX, "2001:db8:2::/64")).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let totals = server.stop()?;
        check_load(&serde_json::from_slice(&output.stdout)?, 500)
            .with_context(|| format!("{engine}: {totals}"))?;
    }
    Ok(())
}

fn afxdp_answers_in_generic_mode() -> Result<()> {
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 20 --attach generic --copy copy")?;
    ensure!(
        server.ready["attach"] == "generic" && server.ready["copy"] == "copy",
        "{}",
        server.ready
    );
    check_load(&load(&lab, 20, 1000, 1000)?, 1000)?;
    server.stop()?;
    Ok(())
}

fn reflect_answers_in_generic_mode() -> Result<()> {
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 20 --engine reflect --attach generic")?;
    ensure!(
        server.ready["attach"] == "generic" && server.ready["copy"].is_null(),
        "{}",
        server.ready
    );
    check_load(&load(&lab, 20, 1000, 1000)?, 1000)?;
    let totals = server.stop()?;
    ensure!(totals["answered"] == 1000 && totals["replies"] == 10_000, "{totals}");
    Ok(())
}

/// The XDP program answers requests, and a worker answers solicitations.
fn reflect_answers_in_live_map() -> Result<()> {
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 5000 --engine reflect --bind live-map")?;
    ensure!(
        server.ready["engine"] == "reflect" && server.ready["bind"] == "live-map",
        "{}",
        server.ready
    );
    check_load(&load(&lab, 5000, 1000, 2000)?, 2000)?;
    let totals = server.stop()?;
    ensure!(totals["answered"] == 2000 && totals["steering"]["reflected"] == 2000, "{totals}");
    ensure!(
        totals["advertised"].as_u64() >= Some(1) && totals["steering"]["steered"] == 0,
        "{totals}"
    );
    ensure!(
        lab.run_in(Side::Server, || netlink::link("server0"))?.xdp.is_none(),
        "a program is still attached"
    );
    Ok(())
}

/// A veth queues 256 redirected frames; these are more at a time.
fn reflect_counts_what_was_not_taken() -> Result<()> {
    const REQUESTS: u64 = 50;
    let lab = TestLab::up()?;
    let _polling = have_client_poll(&lab)?;
    let mut server = Server::start(&lab, "--addresses 5 --engine reflect --replies 255")?;
    let [own, client] = [Side::Server, Side::Client].map(|side| common::link(&lab, side));
    let (own, client) = (own?, client?);
    let capture = lab.run_in(Side::Client, || PacketSocket::on(client.index))?;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(client.mac, own.mac)
        .ipv6(Side::Client.address().octets(), pool(5)?.address(0).octets(), 64)
        .udp(50_000, 3540)
        .write(&mut frame, &[7; 32])?;
    for _ in 0..REQUESTS {
        capture.send(&frame)?;
    }
    server.wait_for(|stats| stats["answered"] == REQUESTS)?;
    let totals = server.stop()?;
    let number = |field: &str| totals[field].as_u64().unwrap_or_default();
    ensure!(number("replies") + number("unsent") == 255 * REQUESTS, "{totals}");
    // Every reply that the veth accepted arrives.
    let mut replies = 0;
    while replies < number("replies") {
        replies += capture
            .receive()?
            .iter()
            .filter(|frame| frame[54..56] == 3540u16.to_be_bytes())
            .count() as u64;
    }
    ensure!(replies == number("replies"), "{replies} came: {totals}");
    Ok(())
}

fn two_queues_are_both_served(engine: &str) -> Result<()> {
    let lab = TestLab::new()?;
    lab.up(2)?;
    let server = Server::start(&lab, &format!("--addresses 50 --engine {engine}"))?;
    ensure!(server.ready["queues"] == serde_json::json!([0, 1]), "{}", server.ready);
    check_load(&load(&lab, 50, 1000, 1000)?, 1000)?;
    let totals = server.stop()?;
    ensure!(totals["answered"] == 1000, "{totals}");
    Ok(())
}

fn packet_sockets_say_what_they_got() -> Result<()> {
    let lab = TestLab::up()?;
    for (engine, layout) in TAPS.into_iter().zip([Value::Null, "v2".into(), "v3".into()]) {
        let server = Server::start(&lab, &format!("--addresses 5 --engine {engine}"))?;
        let modes = &server.ready;
        ensure!(modes["tpacket"] == layout && modes["segmentation"].is_boolean(), "{modes}");
        server.stop()?;
    }
    Ok(())
}

/// Sends a datagram to the service, then one to a closed port. The capture has the kernel's ICMPv6
/// error about the second only.
fn packet_sockets_reply_and_the_kernel_is_silent() -> Result<()> {
    const UNREACHABLE: u8 = 1; // RFC 4443
    let lab = TestLab::up()?;
    let to = pool(5)?.address(2);
    for engine in TAPS {
        let server = Server::start(&lab, &format!("--addresses 5 --engine {engine}"))?;
        let server_mac = common::link(&lab, Side::Server)?.mac;
        let client = common::link(&lab, Side::Client)?;
        let capture = lab.run_in(Side::Client, || PacketSocket::on(client.index))?;
        let datagram = |from: ([u8; 6], Ipv6Addr, u16), to: ([u8; 6], Ipv6Addr, u16), hops| {
            let mut frame = Vec::new();
            let build =
                PacketBuilder::ethernet2(from.0, to.0).ipv6(from.1.octets(), to.1.octets(), hops);
            build.udp(from.2, to.2).write(&mut frame, b"what you said").map(|()| frame)
        };
        let asking = (client.mac, Side::Client.address(), 50_000);
        let expected = datagram((server_mac, to, 3540), asking, 64)?;
        let mut broken = datagram(asking, (server_mac, to, 3540), 9)?;
        broken[70] ^= 1;
        capture.send(&broken)?;
        capture.send(&datagram(asking, (server_mac, to, 3540), 9)?)?;
        capture.send(&datagram(asking, (server_mac, to, 3541), 9)?)?;
        let give_up = Instant::now() + PATIENCE;
        let (mut replies, mut errors) = (0, Vec::new());
        while replies < 10 || errors.is_empty() {
            ensure!(
                Instant::now() < give_up,
                "{engine}: {replies} replies, {} errors",
                errors.len()
            );
            for frame in capture.drain()? {
                match (frame[20], frame.get(54)) {
                    (17, _) => {
                        ensure!(frame == expected, "{engine}: {frame:x?} instead of {expected:x?}");
                        replies += 1;
                    }
                    (58, Some(&UNREACHABLE)) => errors.push(frame),
                    _ => {}
                }
            }
        }
        let totals = server.stop()?;
        ensure!(
            totals["answered"] == 1 && totals["refused"]["bad_checksum"] == 1,
            "{engine}: {totals}"
        );
        // The datagram that caused the error follows the ICMPv6 header.
        let about = errors[0].get(62 + 42..62 + 44);
        ensure!(
            replies == 10 && errors.len() == 1 && about == Some(&3541u16.to_be_bytes()),
            "{engine}: {errors:x?}"
        );
    }
    Ok(())
}

fn packet_sockets_end_with_the_link() -> Result<()> {
    for engine in TAPS {
        let lab = TestLab::up()?;
        let mut server = Server::start(&lab, &format!("--addresses 5 --engine {engine}"))?;
        ip(&format!("-n {} link set server0 down", lab.namespace(Side::Server)))?;
        fails_with(server.wait_for(|_| false), "server0 is down, or has gone")?;
    }
    Ok(())
}

/// Sends a request to `to` from a kernel socket, and returns the ten replies with their sources.
fn ask(
    lab: &TestLab,
    to: Ipv6Addr,
    payload: &[u8],
) -> Result<Vec<(Vec<u8>, std::net::SocketAddr)>> {
    lab.run_in(Side::Client, || {
        let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send_to(payload, SocketAddrV6::new(to, 3540, 0, 0))?;
        let mut buffer = [0; 2000];
        (0..10)
            .map(|_| {
                let (length, from) = socket.recv_from(&mut buffer).context("no reply")?;
                Ok((buffer[..length].to_vec(), from))
            })
            .collect()
    })
}

fn a_plain_socket_gets_the_same_from_every_engine() -> Result<()> {
    let lab = TestLab::up()?;
    let _polling = have_client_poll(&lab)?;
    let pool = pool(30)?;
    for engine in engines() {
        let server = Server::start(&lab, &format!("--addresses 30 --engine {engine}"))?;
        for (index, size) in [(0, 0), (3, 1), (17, 32), (29, 1452)] {
            let address = pool.address(index);
            let payload: Vec<u8> = (0..size).map(|byte: u32| byte as u8).collect();
            let replies =
                ask(&lab, address, &payload).with_context(|| format!("{engine}, {size} bytes"))?;
            for (reply, from) in replies {
                ensure!(reply == payload, "{engine}: {size} bytes came back as {}", reply.len());
                ensure!(
                    from.ip() == address && from.port() == 3540,
                    "{engine}: a reply from {from}"
                );
            }
        }
        server.stop()?;
    }
    Ok(())
}

fn ping_and_neighbour_discovery_work() -> Result<()> {
    const ECHO_REQUEST: u8 = 128; // RFC 4443
    const ECHO_REPLY: u8 = 129;
    let lab = TestLab::up()?;
    let server = Server::start(&lab, "--addresses 300 --bind netlink-down")?;
    let pool = pool(300)?;
    lab.run_in(Side::Client, || {
        let server_mac = lab.run_in(Side::Server, || Ok(netlink::link("server0")?.mac))?;
        let link = netlink::link("client0")?;
        let flags = SockFlag::SOCK_CLOEXEC;
        let ping = socket(AddressFamily::Inet6, SockType::Raw, flags, SockProtocol::IcmpV6)?;
        setsockopt(
            &ping,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(PATIENCE.as_millis() as i64),
        )?;
        for address in pool.iter() {
            let mac = netlink::resolve(link.index, address, PATIENCE)?;
            ensure!(mac == server_mac, "{address} resolves to {mac:x?}");
            let to = SockaddrIn6::from(SocketAddrV6::new(address, 0, 0, 0));
            sendto(ping.as_raw_fd(), &[ECHO_REQUEST, 0, 0, 0, 1, 2, 3, 4], &to, MsgFlags::empty())?;
            loop {
                let mut reply = [0; 100];
                let (length, from) = recvfrom::<SockaddrIn6>(ping.as_raw_fd(), &mut reply)?;
                if reply[0] == ECHO_REPLY && from.is_some_and(|from| from.ip() == address) {
                    ensure!(reply[4..length] == [1, 2, 3, 4]);
                    break;
                }
            }
        }
        Ok(())
    })?;
    server.stop()?;
    Ok(())
}

fn a_request_from_the_service_port_is_not_answered() -> Result<()> {
    let address = pool(10)?.address(4);
    for engine in engines() {
        let lab = TestLab::up()?;
        let _polling = have_client_poll(&lab)?;
        let mut server = Server::start(&lab, &format!("--addresses 10 --engine {engine}"))?;
        let silent = lab.run_in(Side::Client, || {
            let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 3540, 0, 0))?;
            socket.set_nonblocking(true)?;
            for _ in 0..5 {
                socket.send_to(b"to another server", SocketAddrV6::new(address, 3540, 0, 0))?;
            }
            Ok(socket)
        })?;
        ask(&lab, address, b"a right one")?;
        // Packets of two sockets may overtake each other. Only the server can tell that it has
        // handled these five.
        server.wait_for(|stats| stats["refused"]["source_service_port"] == 5)?;
        let error = silent
            .recv_from(&mut [0; 100])
            .err()
            .context("the server answered a request from the service port")?;
        ensure!(error.kind() == std::io::ErrorKind::WouldBlock, "{error}");
        let totals = server.stop()?;
        ensure!(
            totals["refused"]["source_service_port"] == 5 && totals["answered"] == 1,
            "{totals}"
        );
    }
    Ok(())
}

fn what_is_not_ours_reaches_the_kernel() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server = Server::start(&lab, "--addresses 10")?;
    let live = pool(10)?.address(0);
    let own = Side::Server.address(); // under the prefix, on the interface, but not in the pool
    for (to, port) in [(live, 3541), (own, 53)] {
        let socket = lab.run_in(Side::Server, || {
            let socket = UdpSocket::bind(SocketAddrV6::new(to, port, 0, 0))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(socket)
        })?;
        lab.run_in(Side::Client, || {
            let client = UdpSocket::bind("[::]:0")?;
            client.send_to(b"for the kernel", SocketAddrV6::new(to, port, 0, 0))?;
            Ok(())
        })?;
        let mut buffer = [0; 100];
        let length =
            socket.recv(&mut buffer).with_context(|| format!("nothing came to [{to}]:{port}"))?;
        ensure!(&buffer[..length] == b"for the kernel");
    }
    // The server has the service port on every address of the interface: the socket behind the
    // program is bound to it.
    lab.run_in(Side::Client, || {
        UdpSocket::bind("[::]:0")?
            .send_to(b"not a live one", SocketAddrV6::new(own, 3540, 0, 0))?;
        Ok(())
    })?;
    server.wait_for(|stats| stats["refused"]["destination_not_ours"] == 1)?;
    let totals = server.stop()?;
    ensure!(
        totals["steering"]["passed_port"] == 2 && totals["steering"]["passed_not_live"] == 1,
        "{totals}"
    );
    ensure!(totals["answered"] == 0 && totals["refused_behind"] == 1, "{totals}");
    Ok(())
}

fn after_sigkill(engine: &str) -> Result<()> {
    let lab = TestLab::up()?;
    let mut server =
        Server::start(&lab, &format!("--addresses 100 --bind netlink-down --engine {engine}"))?;
    check_load(&load(&lab, 100, 1000, 100)?, 100)?;
    server.signal(Signal::SIGKILL)?;
    server.child.wait()?;
    wait_for_no_program(&lab, Side::Server)?;
    let server =
        Server::start(&lab, &format!("--addresses 50 --bind netlink-down --engine {engine}"))?;
    ensure!(bound(&lab, 100)? == 50, "the addresses of the killed server were not recognised");
    check_load(&load(&lab, 50, 1000, 100)?, 100)?;
    server.stop()?;
    ensure!(bound(&lab, 100)? == 0);
    Ok(())
}

/// Returns the status and the only line on standard error of a command that has to fail.
fn failure(output: Output) -> Result<(i32, String)> {
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.stdout.is_empty(), "a failure printed a result");
    ensure!(words.trim_end().lines().count() == 1, "not one line: {words}");
    Ok((output.status.code().context("ended by a signal")?, words))
}

fn a_second_program_is_refused() -> Result<()> {
    let lab = TestLab::up()?;
    let first = Server::start(&lab, "--addresses 10")?;
    let flags = format!("serve --interface server0 --prefix {PREFIX} --addresses 10 --bind none");
    let (status, words) = failure(sixhop(&lab, Side::Server, &flags).output()?)?;
    ensure!(
        status == 1 && words.contains("another XDP program") && words.contains("xdp off"),
        "{words}"
    );
    check_load(&load(&lab, 10, 1000, 100)?, 100)?; // the first one goes on
    first.stop()?;
    Ok(())
}

fn bad_input_gets_one_clear_line() -> Result<()> {
    let lab = TestLab::up()?;
    let serve = format!("serve --interface server0 --prefix {PREFIX} --addresses 10");
    let load =
        format!("load --interface client0 --prefix {PREFIX} --addresses 10 --rate 10 --requests 1");
    let cases = [
        (Side::Server, serve.replace("server0", "eth9"), 1, "no interface 'eth9'"),
        (Side::Server, serve.replace(PREFIX, "192.0.2.0/24"), 2, "not an IPv6 prefix"),
        (Side::Server, serve.replace("/64 --addresses 10", "/120 --addresses 500"), 2, "holds 127"),
        (Side::Server, format!("{serve} --queues 7"), 1, "queue 7"),
        (Side::Server, format!("{serve} --engine reflect --queues 0"), 1, "leave out --queues"),
        (Side::Server, format!("{serve} --cores 4000"), 1, "processor 4000"),
        (Side::Server, format!("{serve} --copy zero"), 1, "--copy auto"),
        (Side::Server, format!("{serve} --bind live-map --engine socket"), 1, "use --engine afxdp"),
        (Side::Server, format!("{serve} --bind anyip"), 1, "neighbours would be cut off"),
        (Side::Server, format!("{serve} --replies 0"), 2, "replies"),
        (Side::Server, format!("{serve} --no-such-flag"), 2, "--no-such-flag"),
        (Side::Client, load.clone(), 1, "is the server up"),
        (Side::Client, load.replace("--rate 10", "--rate 0"), 2, "rate"),
        (Side::Client, load.replace("2001:db8:1::/64", "2001:db8:77::/64"), 1, "route"),
        (Side::Client, format!("{load} --payload 5"), 2, "payload"),
    ];
    for (side, arguments, status, words) in cases {
        let (found, said) = failure(sixhop(&lab, side, &arguments).output()?)?;
        ensure!(found == status && said.contains(words), "{arguments}: exit {found}, {said}");
    }
    // Servers that had begun to start left nothing.
    ensure!(bound(&lab, 10)? == 0);
    ensure!(lab.run_in(Side::Server, || netlink::link("server0"))?.xdp.is_none());
    // Unprivileged, on an interface that every user sees. The file may be in a directory that other
    // users cannot enter.
    let program = std::env::temp_dir().join(format!("sixhop-test-{}", std::process::id()));
    std::fs::copy(SIXHOP, &program)?;
    let nobody = serve.replace("server0", "lo");
    let output =
        Command::new(&program).args(nobody.split_whitespace()).uid(65534).gid(65534).output();
    std::fs::remove_file(&program)?;
    let (found, said) = failure(output?)?;
    ensure!(found == 1 && said.contains("run as root"), "exit {found}, {said}");
    Ok(())
}

fn compare_finds_figures() -> Result<()> {
    // Another program, which answers on addresses that `compare` binds.
    let peer = format!(
        "another={SIXHOP} serve --interface {{interface}} --prefix {PREFIX} --addresses 50 --bind \
         none --port {{port}} --cores {{core}} --engine socket-gso"
    );
    let output = Command::new(SIXHOP)
        .args(["compare", "--addresses", "50", "--trial", "0.02", "--json", "--peer", &peer])
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let results: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let engines: Vec<_> =
        results.iter().map(|result| result["engine"].as_str().unwrap_or_default()).collect();
    ensure!(engines == ["socket", "socket-gso", "afxdp", "another"], "{engines:?}");
    for result in &results {
        let number = |field: &str| result[field].as_f64().unwrap_or_default();
        ensure!(
            result["event"] == "engine" && result["addresses"] == 50 && result["replies"] == 10
        );
        ensure!(result["runs"].as_array().is_some_and(|runs| runs.len() == 3));
        ensure!(number("sustained_rps") > 0.0 && number("mean_us") <= 1000.0, "{result}");
        ensure!(
            (number("half_rps") * 2.0 / number("sustained_rps") - 1.0).abs() < 1e-9,
            "{result}"
        );
        ensure!(number("ratio_to_socket") > 0.0, "{result}");
    }
    ensure!(results[1]["attach"].is_null() && results[2]["attach"] == "native", "{text}");
    Ok(())
}
