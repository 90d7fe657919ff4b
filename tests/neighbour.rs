//! What a stock kernel learns about addresses with `serve --bind live-map`, both live ones and
//! others. A capture has every frame that reaches the client's end of the lab.

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, PREFIX, Server};
use crate::common::{TestLab, fails_with, have_client_poll, ip, link, resolve, trial};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use sixhop::address::Pool;
use sixhop::lab::Side;
use sixhop::net::netlink;
use sixhop::xdp::Attachment;

/// Live addresses. The tests try [`DRAWN`] of them.
const LIVE: u64 = 100_000;
const DRAWN: u64 = 1000;

const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("live_addresses_answer_and_all_others_are_silent", || {
            live_answer_and_others_are_silent("afxdp")
        }),
        trial("live_addresses_of_reflect_answer_and_all_others_are_silent", || {
            live_answer_and_others_are_silent("reflect")
        }),
        trial("a_neighbour_that_wants_a_live_address_finds_it_taken", a_live_address_is_taken),
        trial("the_kernel_keeps_its_own_addresses", || the_kernel_keeps_its_own_addresses("afxdp")),
        trial("the_kernel_keeps_its_own_addresses_beside_reflect", || {
            the_kernel_keeps_its_own_addresses("reflect")
        }),
    ]
}

/// The first [`LIVE`] addresses are live, later ones are not.
fn pool() -> Result<Pool> {
    Ok(Pool::new(PREFIX.parse()?, LIVE + DRAWN, 1)?)
}

/// Numbers of live addresses, far apart.
fn drawn() -> impl Iterator<Item = u64> {
    // A prime that does not divide LIVE, so no number repeats.
    (0..DRAWN).map(|number| number * 7919 % LIVE)
}

fn start(lab: &TestLab, engine: &str) -> Result<(Server, Attachment)> {
    let polling = have_client_poll(lab)?;
    let server =
        Server::start(lab, &format!("--addresses {LIVE} --bind live-map --engine {engine}"))?;
    ensure!(
        server.ready["bind"] == "live-map" && server.ready["engine"] == engine,
        "{}",
        server.ready
    );
    Ok((server, polling))
}

/// Makes the client's kernel give up on resolving an address after about 30 ms instead of 3 s.
fn hasten(lab: &TestLab) -> Result<()> {
    lab.run_in(Side::Client, || {
        Ok(std::fs::write("/proc/sys/net/ipv6/neigh/client0/retrans_time_ms", "10")?)
    })
}

/// Flushes the client's neighbour table. The kernel's limit is 1,024 entries over all namespaces.
fn forget(lab: &TestLab) -> Result<()> {
    ip(&format!("-n {} neigh flush dev client0", lab.namespace(Side::Client)))
}

/// Sends a request from a socket of the client, whose kernel has to resolve `address`, and waits
/// for the ten replies.
fn ask(socket: &UdpSocket, address: Ipv6Addr) -> Result<()> {
    let question = address.octets();
    socket.send_to(&question, SocketAddrV6::new(address, 3540, 0, 0))?;
    let mut buffer = [0; 100];
    for _ in 0..10 {
        let (length, from) =
            socket.recv_from(&mut buffer).with_context(|| format!("{address} does not answer"))?;
        ensure!(
            buffer[..length] == question && from.ip() == address,
            "{address}: a reply from {from}"
        );
    }
    Ok(())
}

fn socket(lab: &TestLab) -> Result<UdpSocket> {
    lab.run_in(Side::Client, || {
        let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}

fn group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// A solicitation for `target`. It has the client's link-layer address unless its source is
/// unspecified.
fn solicitation(
    macs: ([u8; 6], [u8; 6]),
    from: Ipv6Addr,
    to: Ipv6Addr,
    target: Ipv6Addr,
) -> Result<Vec<u8>> {
    let mut body = target.octets().to_vec();
    if !from.is_unspecified() {
        body.extend([1, 1]);
        body.extend(macs.0);
    }
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv6(from.octets(), to.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut frame, &body)?;
    Ok(frame)
}

/// Packets of a scanner that looks for a host at `address`, and for any host at all.
fn probes(macs: ([u8; 6], [u8; 6]), address: Ipv6Addr) -> Result<Vec<Vec<u8>>> {
    let client = Side::Client.address();
    let ip =
        || PacketBuilder::ethernet2(macs.0, macs.1).ipv6(client.octets(), address.octets(), 64);
    let mut ping = Vec::new();
    ip().icmpv6_echo_request(1, 1).write(&mut ping, &[7; 32])?;
    let mut probes = vec![ping];
    for port in [22, 3540] {
        let mut tcp = Vec::new();
        ip().tcp(50_000, port, 1, 1000).syn().write(&mut tcp, &[])?;
        probes.push(tcp);
    }
    let udp = |port| {
        let mut udp = Vec::new();
        ip().udp(50_000, port).write(&mut udp, &[7; 32])?;
        anyhow::Ok(udp)
    };
    probes.push(udp(53)?);
    // A ping, a TCP SYN and a datagram to another port: behind extension headers, as a first
    // fragment, and as an only fragment.
    for packet in [probes[0].clone(), probes[1].clone(), udp(53)?] {
        for (number, extension) in [FIRST_FRAGMENT, ONLY_FRAGMENT, HOP_BY_HOP, DESTINATION_OPTIONS]
        {
            probes.push(behind(&packet, number, extension));
        }
    }
    // The first fragment of a request. The others never come.
    probes.push(behind(&udp(3540)?, FIRST_FRAGMENT.0, FIRST_FRAGMENT.1));
    Ok(probes)
}

/// Extension headers with their protocol numbers.
const FIRST_FRAGMENT: (u8, [u8; 8]) = (44, [0, 0, 0, 1, 0, 0, 0, 9]);
const LAST_FRAGMENT: (u8, [u8; 8]) = (44, [0, 0, 0, 16, 0, 0, 0, 7]);
const ONLY_FRAGMENT: (u8, [u8; 8]) = (44, [0, 0, 0, 0, 0, 0, 0, 9]);
const HOP_BY_HOP: (u8, [u8; 8]) = (0, [0, 0, 1, 4, 0, 0, 0, 0]);
const DESTINATION_OPTIONS: (u8, [u8; 8]) = (60, [0, 0, 1, 4, 0, 0, 0, 0]);

/// Inserts an extension header after the packet's IPv6 header.
fn behind(packet: &[u8], number: u8, mut header: [u8; 8]) -> Vec<u8> {
    header[0] = packet[20];
    let mut longer = [&packet[..54], &header, &packet[54..]].concat();
    longer[20] = number;
    longer[19] += 8;
    longer
}

/// A request in forms that no ring takes. A live address answers each; another stays silent.
fn requests_behind(macs: ([u8; 6], [u8; 6]), address: Ipv6Addr) -> Result<Vec<Vec<u8>>> {
    let mut plain = Vec::new();
    PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv6(Side::Client.address().octets(), address.octets(), 64)
        .udp(50_000, 3540)
        .write(&mut plain, &[7; 32])?;
    let mut first = behind(&plain, FIRST_FRAGMENT.0, [0, 0, 0, 1, 0, 0, 0, 7]);
    first.truncate(54 + 8 + 16);
    first[19] = 8 + 16;
    let mut last = behind(&plain, LAST_FRAGMENT.0, LAST_FRAGMENT.1);
    last.drain(54 + 8..54 + 8 + 16);
    last[19] -= 16;
    Ok(vec![
        behind(&plain, HOP_BY_HOP.0, HOP_BY_HOP.1),
        behind(&plain, DESTINATION_OPTIONS.0, DESTINATION_OPTIONS.1),
        first,
        last,
    ])
}

/// The requests among [`requests_behind`]'s four packets: two of these are fragments of one.
const BEHIND: u64 = 3;

fn live_answer_and_others_are_silent(engine: &str) -> Result<()> {
    let lab = TestLab::up()?;
    let (server, _polling) = start(&lab, engine)?;
    hasten(&lab)?;
    let pool = pool()?;
    let live: Vec<_> = drawn().map(|number| pool.address(number)).collect();
    let silent: Vec<_> = (0..DRAWN).map(|number| pool.address(LIVE + number)).collect();
    let [own, client] = [Side::Server, Side::Client].map(|side| link(&lab, side));
    let (own, client) = (own?, client?);
    let capture = lab.run_in(Side::Client, || PacketSocket::on(client.index))?;
    let socket = socket(&lab)?;

    // The client's kernel resolves each live address and gets its replies.
    for addresses in live.chunks(100) {
        forget(&lab)?;
        addresses.iter().try_for_each(|address| ask(&socket, *address))?;
        ensure!(resolve(&lab, addresses[0])? == own.mac);
    }
    // It cannot resolve any other address.
    thread::scope(|scope| {
        let workers: Vec<_> = silent
            .chunks(125)
            .map(|addresses| {
                let lab = &lab;
                scope.spawn(move || {
                    addresses.iter().try_for_each(|address| {
                        fails_with(resolve(lab, *address), &format!("nobody answers for {address}"))
                    })
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("resolve does not panic"))
    })?;
    // Packets sent straight to the server's Ethernet address get no answer either.
    let macs = (client.mac, own.mac);
    for address in &silent {
        capture.send(&solicitation(macs, Side::Client.address(), group(*address), *address)?)?;
        capture.send(&solicitation(macs, Side::Client.address(), *address, *address)?)?;
        capture.send(&solicitation(macs, Ipv6Addr::UNSPECIFIED, group(*address), *address)?)?;
        let mut request = Vec::new();
        PacketBuilder::ethernet2(macs.0, macs.1)
            .ipv6(Side::Client.address().octets(), address.octets(), 64)
            .udp(50_000, 3540)
            .write(&mut request, &[7; 32])?;
        capture.send(&request)?;
        requests_behind(macs, *address)?.iter().try_for_each(|request| capture.send(request))?;
        probes(macs, *address)?.iter().try_for_each(|probe| capture.send(probe))?;
    }
    // A live address answers requests and nothing else.
    let mut heard = Vec::new();
    for addresses in live.chunks(100) {
        for address in addresses {
            probes(macs, *address)?.iter().try_for_each(|probe| capture.send(probe))?;
            requests_behind(macs, *address)?
                .iter()
                .try_for_each(|request| capture.send(request))?;
        }
        // Send no more at once than the socket behind the program can hold. Replies to these
        // requests go to port 50,000.
        let wanted = 10 * BEHIND as usize * addresses.len();
        let mut answered = 0;
        while answered < wanted {
            let frames = capture.receive()?;
            answered += frames
                .iter()
                .filter(|frame| frame[20] == 17 && frame[56..58] == [0xc3, 0x50])
                .count();
            heard.extend(frames);
        }
        ensure!(answered == wanted, "{answered} replies to {wanted}");
    }
    // The link keeps order: once this reply arrives, everything before it has arrived.
    forget(&lab)?;
    ask(&socket, live[0])?;

    let mut advertised = HashSet::new();
    let mut replies = 0;
    let live_set: HashSet<_> = live.iter().copied().collect();
    heard.extend(capture.drain()?);
    for frame in heard {
        let ip = etherparse::Ipv6HeaderSlice::from_slice(&frame[14..])
            .with_context(|| format!("{frame:x?}"))?;
        let (source, payload) = (ip.source_addr(), &frame[54..]);
        match (ip.next_header().0, payload) {
            (17, [0x0d, 0xd4, ..]) if live_set.contains(&source) => replies += 1,
            (58, [136, ..]) if live_set.contains(&source) => {
                ensure!(payload[8..24] == source.octets(), "{frame:x?}");
                advertised.insert(source);
            }
            // The server's kernel solicits the client, and advertises its own address.
            (58, [135 | 136, ..])
                if source == Side::Server.address() || source.is_unicast_link_local() =>
            {
                ensure!(payload[0] == 135 || payload[8..24] == source.octets(), "{frame:x?}");
            }
            // The kernel joins groups of its own (MLDv2, RFC 3810).
            (0, _) if source.is_unicast_link_local() && ip.destination_addr() == MLD_ROUTERS => {}
            _ => anyhow::bail!("unexpected frame: {frame:x?}"),
        }
    }
    ensure!(
        advertised == live_set,
        "{} of {DRAWN} live addresses were advertised",
        advertised.len()
    );
    let behind = BEHIND * DRAWN;
    ensure!(replies == 10 * (DRAWN + 1 + behind), "{replies} replies");
    let totals = server.stop()?;
    ensure!(
        totals["answered"] == DRAWN + 1 + behind && totals["answered_behind"] == behind,
        "the socket behind should have answered {behind}: {totals}"
    );
    ensure!(totals["refused"] == serde_json::json!({}), "{totals}");
    Ok(())
}

/// The client's kernel runs Duplicate Address Detection. It must find a live address taken, and one
/// that is not live free.
fn a_live_address_is_taken() -> Result<()> {
    let lab = TestLab::up()?;
    let (server, _polling) = start(&lab, "afxdp")?;
    let pool = pool()?;
    let namespace = lab.namespace(Side::Client);
    lab.run_in(Side::Client, || {
        Ok(std::fs::write("/proc/sys/net/ipv6/conf/client0/accept_dad", "1")?)
    })?;
    let shown = |flag: &str| {
        let show = format!("-n {namespace} -6 address show dev client0 {flag}");
        anyhow::Ok(String::from_utf8(
            Command::new("ip").args(show.split_whitespace()).output()?.stdout,
        )?)
    };
    let (taken, free) = (pool.address(77), pool.address(LIVE + 77));
    ip(&format!("-n {namespace} address add {taken}/128 dev client0"))?;
    ip(&format!("-n {namespace} address add {free}/128 dev client0"))?;
    let give_up = Instant::now() + PATIENCE;
    while !shown("dadfailed")?.contains(&taken.to_string())
        || shown("tentative")?.contains(&free.to_string())
    {
        ensure!(Instant::now() < give_up, "{}", shown("")?);
        // The kernel takes a second and announces no failure.
        thread::sleep(std::time::Duration::from_millis(20));
    }
    ensure!(!shown("dadfailed")?.contains(&free.to_string()), "{}", shown("")?);
    let totals = server.stop()?;
    ensure!(totals["advertised"].as_u64() >= Some(1), "{totals}");
    Ok(())
}

fn the_kernel_keeps_its_own_addresses(engine: &str) -> Result<()> {
    let lab = TestLab::up()?;
    hasten(&lab)?;
    let (mut server, _polling) = start(&lab, engine)?;
    let mac = link(&lab, Side::Server)?.mac;
    // The kernel answers for the address that the interface already had.
    ensure!(resolve(&lab, Side::Server.address())? == mac);
    // An address added later answers too, until it is removed.
    let later: Ipv6Addr = "2001:db8:1::1ace".parse()?;
    fails_with(resolve(&lab, later), "nobody answers")?;
    let namespace = lab.namespace(Side::Server);
    let until = |answers: bool| {
        let give_up = Instant::now() + PATIENCE;
        while resolve(&lab, later).is_ok() != answers {
            ensure!(Instant::now() < give_up, "the XDP program does not know of the change");
            forget(&lab)?;
        }
        Ok(())
    };
    ip(&format!("-n {namespace} address add {later}/128 dev server0 nodad"))?;
    until(true)?;
    let bound =
        lab.run_in(Side::Server, || Ok(UdpSocket::bind(SocketAddrV6::new(later, 53, 0, 0))?))?;
    bound.set_read_timeout(Some(PATIENCE))?;
    socket(&lab)?.send_to(b"for the kernel", SocketAddrV6::new(later, 53, 0, 0))?;
    let mut buffer = [0; 20];
    ensure!(bound.recv(&mut buffer)? == 14);
    ip(&format!("-n {namespace} address del {later}/128 dev server0"))?;
    forget(&lab)?;
    until(false)?;
    server.wait_for(|stats| stats["steering"]["passed_kernel"].as_u64() >= Some(1))?;
    server.stop()?;
    ensure!(lab.run_in(Side::Server, || netlink::link("server0"))?.xdp.is_none());
    Ok(())
}
