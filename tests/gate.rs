//! The gate's programs: which outcome each kind of packet has (BPF_PROG_TEST_RUN), and what comes
//! of them on a veth pair, with services that listen on loopback alone. Then `sixhop gate` itself.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, SIXHOP, Server, sixhop};
use crate::common::{TestLab, ip, link, trial};
use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use serde_json::Value;
use sixhop::address::mt6d::Subnet;
use sixhop::gate::{
    Arrival, Arrivals, GateAttachment, GateProgram, GateProgramConfig, GateService, GateSide,
    GateVerdict, Protocol, TestRun,
};
use sixhop::lab::Side;
use sixhop::net::netlink::{self, Delivery, Opener};
use sixhop::wire::{ADVERTISEMENT, solicitation};
use sixhop::xdp::{LiveAddresses, MovingAddresses};

/// Actions of linux/pkt_cls.h, and the one to hand a packet on (TCX_NEXT).
const HAND_ON: i32 = -1;
const DROP: i32 = 2;
const REDIRECT: i32 = 7;

const PREFIX: &str = "2001:db8:1::/64";
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const SERVER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
const LIVE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0x1234, 0x5678, 0x9abc, 0xdef0);
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0x4321, 0x5678, 0x9abc, 0xdef1);
const ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);
const ASKED: u16 = 443;
/// A TCP service that nobody listens for.
const DESERTED: u16 = 444;
/// When the address is live; it has expired two steps later.
const STEP: u64 = 100;
const EXPIRED: u64 = STEP + 2;
/// Within this, a packet that was going to come has come: only silence waits for so long.
const SILENCE: Duration = Duration::from_millis(300);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("every_kind_of_packet_has_its_outcome", every_kind_of_packet_has_its_outcome),
        trial("solicitations_are_answered_as_wire_does", solicitations_are_answered_as_wire_does),
        trial("a_connection_lives_on_at_an_expired_address", a_connection_lives_on),
        trial("a_flow_lives_on_and_answers_from_where_it_was_asked", || a_flow_lives_on("on")),
        trial("a_flow_is_right_without_checksum_offload", || a_flow_lives_on("off")),
        trial("all_else_is_silent", all_else_is_silent),
        trial("two_services_on_one_port_are_refused", two_services_on_one_port_are_refused),
        trial("the_command_serves_listeners_on_loopback", command_serves),
        trial("a_killed_gate_leaves_nothing_and_its_connections_go_on_later", killed),
        trial("what_cannot_be_opened_is_said_in_one_line", refused),
    ]
}

fn service(protocol: Protocol, port: u16, listener: SocketAddr) -> Result<GateService> {
    let SocketAddr::V6(listener) = listener else { bail!("{listener} is not IPv6") };
    Ok(GateService { protocol, port, listener })
}

fn config(services: Vec<GateService>) -> Result<GateProgramConfig> {
    let subnet = Subnet::new(PREFIX.parse()?)?;
    Ok(GateProgramConfig {
        addresses: MovingAddresses { subnet, clients: 16 },
        services,
        flows: 64,
        idle: Duration::from_secs(60),
        kept: Duration::from_secs(60),
        revoked: 16,
    })
}

/// A gate with one live address, to TCP and UDP sockets on loopback of the calling thread's
/// namespace.
struct Gate {
    program: GateProgram,
    live: LiveAddresses,
    listener: TcpListener,
    socket: UdpSocket,
}

impl Gate {
    fn load() -> Result<Self> {
        let listener = TcpListener::bind("[::1]:0")?;
        let socket = UdpSocket::bind("[::1]:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let program = GateProgram::load(&config(vec![
            service(Protocol::Tcp, ASKED, listener.local_addr()?)?,
            service(Protocol::Udp, ASKED, socket.local_addr()?)?,
            service(Protocol::Tcp, DESERTED, "[::1]:1".parse()?)?,
        ])?)?;
        program.set_kernel_addresses(&[SERVER])?;
        let mut live = program.live_addresses()?;
        live.enter(&[LIVE], STEP)?;
        live.set_step(STEP);
        ensure!(program.census()? == 1, "{} addresses are live", program.census()?);
        Ok(Self { program, live, listener, socket })
    }

    /// Runs a program on `packet` and returns what it did and the one outcome that was counted, if
    /// any.
    fn run(&self, side: GateSide, packet: &[u8]) -> Result<(TestRun, Option<GateVerdict>)> {
        let source = self.program.outcomes()?;
        let before = source.read()?;
        let run = self.program.test_run(side, packet)?;
        let mut counted = Vec::new();
        for (outcome, (now, before)) in
            GateVerdict::ALL.into_iter().zip(source.read()?.into_iter().zip(before))
        {
            counted.extend((before..now).map(|_| outcome));
        }
        ensure!(counted.len() <= 1, "one packet counted as {counted:?}");
        Ok((run, counted.pop()))
    }
}

/// A gate on the server's interface of a lab.
struct Raised {
    lab: TestLab,
    gate: Gate,
    arrivals: Arrivals,
    _attached: GateAttachment,
    _delivery: Delivery,
}

impl Raised {
    fn up() -> Result<Self> {
        let lab = TestLab::up()?;
        let (gate, attached, delivery) = lab.run_in(Side::Server, || {
            ip("link set lo up")?;
            let link = netlink::link(Side::Server.interface())?;
            let gate = Gate::load()?;
            let delivery = Delivery::begin(&link, PREFIX.parse()?, Opener::Gate)?;
            let attached = gate.program.attach(&link)?;
            Ok((gate, attached, delivery))
        })?;
        let arrivals = gate.program.arrivals()?;
        Ok(Self { lab, gate, arrivals, _attached: attached, _delivery: delivery })
    }

    fn in_client<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.lab.run_in(Side::Client, f)
    }

    fn expire(&mut self) {
        self.gate.live.set_step(EXPIRED);
    }

    /// Waits until so many packets had this outcome.
    fn wait_for(&self, outcome: GateVerdict, count: u64) -> Result<()> {
        let source = self.gate.program.outcomes()?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            let found = source.read()?[outcome as usize];
            if found >= count {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "{} stays at {found}, below {count}", outcome.name());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the next arrival, which is the only one.
    fn arrival(&self) -> Result<Arrival> {
        let arrivals = self.arrivals.read(PATIENCE)?;
        ensure!(arrivals.len() == 1, "{arrivals:?}");
        Ok(arrivals[0])
    }
}

fn ethernet(source: Ipv6Addr, to: Ipv6Addr) -> PacketBuilderStep<IpHeaders> {
    PacketBuilder::ethernet2([2; 6], [0; 6]).ipv6(source.octets(), to.octets(), 64)
}

/// A TCP segment with the flags that `set` sets.
fn tcp(
    to: Ipv6Addr,
    port: u16,
    set: impl Fn(PacketBuilderStep<TcpHeader>) -> PacketBuilderStep<TcpHeader>,
) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    set(ethernet(CLIENT, to).tcp(50_000, port, 1, 1000)).write(&mut packet, &[])?;
    Ok(packet)
}

fn udp(to: Ipv6Addr, port: u16) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ethernet(CLIENT, to).udp(50_000, port).write(&mut packet, &[7; 32])?;
    Ok(packet)
}

fn icmp(to: Ipv6Addr, kind: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    ethernet(CLIENT, to).icmpv6_raw(kind, 0, [0; 4]).write(&mut packet, body)?;
    Ok(packet)
}

/// `packet` with an extension header of these 8 bytes between IPv6 and what follows. Its `next` is
/// filled in.
fn with_extension(packet: &[u8], kind: u8, mut extension: [u8; 8]) -> Vec<u8> {
    extension[0] = packet[20];
    let mut packet = [&packet[..54], &extension, &packet[54..]].concat();
    packet[20] = kind;
    packet[19] += 8;
    packet
}

fn ask(target: Ipv6Addr, source: Ipv6Addr, options: &[u8]) -> Result<Vec<u8>> {
    let low = target.to_bits() & 0xff_ffff;
    let group = Ipv6Addr::from_bits(0xff02_0000_0000_0000_0000_0001_ff00_0000 | low);
    let [.., a, b, c] = target.octets();
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2; 6], [0x33, 0x33, 0xff, a, b, c])
        .ipv6(source.octets(), group.octets(), 255)
        .icmpv6_raw(135, 0, [0; 4])
        .write(&mut packet, &[&target.octets()[..], options].concat())?;
    Ok(packet)
}

fn every_kind_of_packet_has_its_outcome() -> Result<()> {
    let lab = TestLab::up()?;
    lab.run_in(Side::Server, || {
        ip("link set lo up")?;
        let gate = Gate::load()?;
        judge_each(&gate)
    })
}

fn judge_each(gate: &Gate) -> Result<()> {
    use GateVerdict::*;
    let syn = tcp(LIVE, ASKED, |tcp| tcp.syn())?;
    let right = udp(LIVE, ASKED)?;
    let quote = [&[0; 4][..], &tcp(LIVE, ASKED, |tcp| tcp.ack(1))?[14..]].concat();
    let pad = [0, 0, 1, 4, 0, 0, 0, 0];
    let dropped = [
        // BPF_PROG_TEST_RUN is no ingress, where alone the kernel assigns sockets.
        ("a connection request", syn.clone(), Unassigned),
        ("a datagram", right.clone(), Unassigned),
        ("one behind destination options", with_extension(&right, 60, pad), Unassigned),
        ("one behind hop-by-hop options", with_extension(&right, 0, pad), Unassigned),
        ("one behind a used routing header", with_extension(&right, 43, [0; 8]), Unassigned),
        ("a routing header", with_extension(&right, 43, [0, 0, 0, 1, 0, 0, 0, 0]), UnknownHeader),
        ("a fragment", with_extension(&right, 44, [0, 0, 0, 1, 0, 0, 0, 9]), Fragmented),
        ("an atomic fragment", with_extension(&syn, 44, [0; 8]), Fragmented),
        ("another protocol", with_extension(&right, 132, pad), UnknownHeader),
        ("TCP to an address that is not live", tcp(OTHER, ASKED, |tcp| tcp.syn())?, NotLive),
        ("UDP to an address that is not live", udp(OTHER, ASKED)?, NotLive),
        ("TCP to another port", tcp(LIVE, 22, |tcp| tcp.syn())?, NoService),
        ("UDP to another port", udp(LIVE, 22)?, NoService),
        ("UDP to a port of TCP", udp(LIVE, DESERTED)?, NoService),
        ("nobody listens", tcp(LIVE, DESERTED, |tcp| tcp.syn())?, NoListener),
        ("ACK", tcp(LIVE, ASKED, |tcp| tcp.ack(1))?, NoConnection),
        ("SYN and ACK", tcp(LIVE, ASKED, |tcp| tcp.syn().ack(1))?, NoConnection),
        ("SYN and FIN", tcp(LIVE, ASKED, |tcp| tcp.syn().fin())?, NoConnection),
        ("SYN and RST", tcp(LIVE, ASKED, |tcp| tcp.syn().rst())?, NoConnection),
        ("RST", tcp(LIVE, ASKED, |tcp| tcp.rst())?, NoConnection),
        ("nothing", tcp(LIVE, ASKED, |tcp| tcp)?, NoConnection),
        ("an echo request", icmp(LIVE, 128, &[7; 32])?, IcmpOther),
        ("an error about nothing", icmp(LIVE, 2, &quote)?, ErrorStray),
        ("an error without all headers", icmp(LIVE, 1, &[0; 8])?, Truncated),
        ("a solicitation for another", ask(OTHER, CLIENT, &[])?, NotSolicited),
    ];
    for (name, packet, expected) in dropped {
        let (run, outcome) = gate.run(GateSide::In, &packet)?;
        ensure!(
            run.action == DROP && run.mark == 0 && outcome == Some(expected),
            "{name}: {} as {outcome:?}, not {expected:?}",
            run.action
        );
    }
    let mut group = right.clone();
    group[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    ensure!(gate.run(GateSide::In, &group)?.1 == Some(GroupFrame), "a group's frame");
    for length in 54..62 {
        let (run, outcome) = gate.run(GateSide::In, &right[..length])?;
        ensure!((run.action, outcome) == (DROP, Some(Truncated)), "{length} bytes: {outcome:?}");
    }
    for packet in untouched(&right)? {
        let (run, outcome) = gate.run(GateSide::In, &packet)?;
        let same = run == TestRun { action: HAND_ON, packet: packet.clone(), mark: 0 };
        ensure!(same && outcome.is_none(), "{packet:02x?}: {run:?}, {outcome:?}");
    }
    gate.program.set_revoked(&[LIVE])?;
    for packet in [syn, right, ask(LIVE, CLIENT, &[])?] {
        ensure!(gate.run(GateSide::In, &packet)?.1 == Some(Revoked), "not revoked: {packet:02x?}");
    }
    gate.program.set_revoked(&[])?;
    ensure!(gate.run(GateSide::In, &ask(LIVE, CLIENT, &[])?)?.1 == Some(Advertised), "for good");
    Ok(())
}

/// What is not the gate's.
fn untouched(right: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut ipv4 = Vec::new();
    PacketBuilder::ethernet2([2; 6], [0; 6])
        .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
        .udp(50_000, ASKED)
        .write(&mut ipv4, &[7; 32])?;
    let mut station = right.to_vec();
    station[5] = 9;
    Ok(vec![
        udp(SERVER, ASKED)?,
        tcp(SERVER, 22, |tcp| tcp.syn())?,
        icmp(SERVER, 128, &[7; 32])?,
        ask(SERVER, CLIENT, &[])?,
        udp(ELSEWHERE, ASKED)?,
        ask(ELSEWHERE, CLIENT, &[])?,
        with_extension(&udp(SERVER, ASKED)?, 44, [0, 0, 0, 1, 0, 0, 0, 9]),
        ipv4,
        station,
    ])
}

/// Each solicitation that src/wire/ndp.rs answers has the same bytes for an answer, and each that
/// it rejects has none.
fn solicitations_are_answered_as_wire_does() -> Result<()> {
    const STATION: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let gate = Gate::load()?;
    gate.program.station().set(STATION);
    let option = [1, 1, 2, 0, 0, 0, 0, 1];
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    let detection = ask(LIVE, Ipv6Addr::UNSPECIFIED, &[])?;
    let right = ask(LIVE, CLIENT, &option)?;
    let mut cases = vec![
        detection,
        ask(LIVE, CLIENT, &[])?,
        ask(LIVE, CLIENT, &[option, nonce].concat())?,
        ask(LIVE, CLIENT, &[nonce, option, [1, 1, 2, 9, 9, 9, 9, 9]].concat())?,
        ask(LIVE, Ipv6Addr::UNSPECIFIED, &option)?,
        ask(LIVE, Ipv6Addr::LOCALHOST, &option)?,
        ask(LIVE, "ff02::1".parse()?, &option)?,
        ask(LIVE, CLIENT, &[1, 1, 3, 0, 0, 0, 0, 1])?,
        ask(LIVE, CLIENT, &[1, 0, 2, 0, 0, 0, 0, 1])?,
        ask(LIVE, CLIENT, &[1, 2, 2, 0, 0, 0, 0, 1])?,
        ask(LIVE, CLIENT, &[1, 1, 2])?,
        [&right[..], &[0; 7]].concat(),
    ];
    // Each byte of one in turn, of which the checksum no longer holds, but for the Ethernet source.
    for at in (6..12).chain(14..right.len()) {
        let mut packet = right.clone();
        packet[at] ^= 1;
        cases.push(packet);
    }
    let mut answered = 0;
    for packet in cases {
        let (run, outcome) = gate.run(GateSide::In, &packet)?;
        let mut expected = [0; ADVERTISEMENT];
        let wire = solicitation(&packet).ok().filter(|asked| asked.target() == LIVE);
        match wire.and_then(|asked| asked.advertise(STATION, &mut expected)) {
            Some(length) => {
                answered += 1;
                ensure!(
                    (run.action, outcome) == (REDIRECT, Some(GateVerdict::Advertised)),
                    "{packet:02x?}: {outcome:?}"
                );
                ensure!(run.packet == expected[..length], "{:02x?}", run.packet);
            }
            None => ensure!(run.action != REDIRECT, "answered: {packet:02x?}"),
        }
    }
    ensure!(answered >= 11, "only {answered} were answered");
    Ok(())
}

/// Both directions, once.
fn exchange(a: &mut TcpStream, b: &mut TcpStream) -> Result<()> {
    for _ in 0..2 {
        let mut bytes = [0; 4];
        a.write_all(b"ping")?;
        b.read_exact(&mut bytes)?;
        ensure!(&bytes == b"ping", "{bytes:?}");
        b.write_all(b"pong")?;
        a.read_exact(&mut bytes)?;
        ensure!(&bytes == b"pong", "{bytes:?}");
    }
    Ok(())
}

fn a_connection_lives_on() -> Result<()> {
    let mut raised = Raised::up()?;
    let asked = SocketAddrV6::new(LIVE, ASKED, 0, 0);
    let mut ours = raised.in_client(|| Ok(TcpStream::connect_timeout(&asked.into(), PATIENCE)?))?;
    let (mut theirs, peer) = raised.gate.listener.accept()?;
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    ensure!(theirs.local_addr()? == asked.into(), "accepted at {}", theirs.local_addr()?);
    let SocketAddr::V6(client) = peer else { bail!("{peer}") };
    ensure!(raised.arrival()? == Arrival { client, asked, service: 0 }, "another arrival");
    ensure!(raised.gate.program.outcomes()?.arrived()? == [1, 0, 0], "counted elsewhere");
    exchange(&mut ours, &mut theirs)?;

    raised.expire();
    exchange(&mut ours, &mut theirs)?;
    let heard = raised.in_client(|| {
        let capture = PacketSocket::on(netlink::link(Side::Client.interface())?.index)?;
        let refused = TcpStream::connect_timeout(&asked.into(), SILENCE).map(drop);
        let kind = refused.expect_err("a connection to an expired address").kind();
        ensure!(kind == ErrorKind::TimedOut, "{kind}");
        capture.drain()
    })?;
    let answers = heard.iter().filter(|frame| {
        // TCP to another port than the connection's, or an ICMPv6 error.
        frame[12..14] == [0x86, 0xdd]
            && (frame[20] == 6 && frame[56..58] != client.port().to_be_bytes()
                || frame[20] == 58 && frame[54] <= 4)
    });
    ensure!(answers.count() == 0, "an expired address answered: {heard:02x?}");
    raised.wait_for(GateVerdict::NotLive, 1)?;
    exchange(&mut ours, &mut theirs)?;

    raised.gate.program.set_revoked(&[LIVE])?;
    ours.write_all(b"ping")?;
    raised.wait_for(GateVerdict::Revoked, 1)
}

/// With the server's checksums left to its card (`on`), or computed by the kernel (`off`), which
/// the client then verifies.
fn a_flow_lives_on(offload: &str) -> Result<()> {
    let mut raised = Raised::up()?;
    let namespace = raised.lab.namespace(Side::Server);
    ip(&format!("netns exec {namespace} ethtool -K server0 tx {offload}"))?;
    let connect = || {
        let socket = UdpSocket::bind("[::]:0")?;
        // It takes datagrams from there only.
        socket.connect((LIVE, ASKED))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    };
    let ours = raised.in_client(connect)?;
    let theirs = raised.gate.socket.try_clone()?;
    let mut buffer = [0; 2000];
    let mut exchange = |lengths: &[usize]| -> Result<()> {
        ours.send(b"ping")?;
        let (_, peer) = theirs.recv_from(&mut buffer)?;
        let segment = if lengths.len() > 1 { lengths[0] as i32 } else { 0 };
        setsockopt(&theirs, UdpGsoSegment, &segment)?;
        theirs.send_to(&vec![7; lengths.iter().sum()], peer)?;
        for length in lengths {
            let got = ours.recv(&mut buffer).context("no reply from the address asked")?;
            ensure!(got == *length, "{got} bytes instead of {length}");
        }
        Ok(())
    };
    exchange(&[4])?;
    // Several datagrams in one packet, which the kernel cuts on the way out.
    exchange(&[1000, 1000, 1000, 7])?;
    exchange(&[4])?;
    ensure!(raised.arrival()?.asked == SocketAddrV6::new(LIVE, ASKED, 0, 0), "another arrival");
    raised.expire();
    exchange(&[4])?;
    raised.wait_for(GateVerdict::UdpFlow, 3)?;
    raised.wait_for(GateVerdict::ReplyRenamed, 4)?;

    let late = raised.in_client(connect)?;
    late.send(b"ping")?;
    raised.wait_for(GateVerdict::NotLive, 1)?;
    raised.gate.program.set_idle(Duration::ZERO);
    ours.send(b"ping")?;
    raised.wait_for(GateVerdict::NotLive, 2)?;
    theirs.set_nonblocking(true)?;
    let came = theirs.recv_from(&mut [0; 10]).map(drop);
    ensure!(came.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "a datagram came");
    Ok(())
}

/// Of all these, only the last has an answer. It also says that the others are done with: a veth
/// keeps the order.
fn all_else_is_silent() -> Result<()> {
    let raised = Raised::up()?;
    let station = link(&raised.lab, Side::Server)?.mac;
    let client = link(&raised.lab, Side::Client)?.mac.map(|byte| format!("{byte:02x}")).join(":");
    // So that no answer waits for a neighbour.
    raised.lab.run_in(Side::Server, || {
        ip(&format!("neigh replace {CLIENT} lladdr {client} dev server0 nud permanent"))
    })?;
    let right = udp(LIVE, ASKED)?;
    // An option that the kernel must report where it does not know it (RFC 8200 section 4.2).
    let unknown = with_extension(&right, 60, [0, 0, 0x9e, 4, 0, 0, 0, 0]);
    let mut frames = vec![
        unknown,
        tcp(LIVE, 22, |tcp| tcp.syn())?,
        tcp(LIVE, DESERTED, |tcp| tcp.syn())?,
        tcp(LIVE, ASKED, |tcp| tcp.ack(1))?,
        tcp(OTHER, ASKED, |tcp| tcp.syn())?,
        udp(LIVE, 22)?,
        udp(OTHER, ASKED)?,
        icmp(LIVE, 128, &[7; 32])?,
        icmp(OTHER, 128, &[7; 32])?,
        with_extension(&right, 132, [0; 8]),
        with_extension(&right, 43, [0, 0, 0, 1, 0, 0, 0, 0]),
        with_extension(&right, 44, [0, 0, 0, 1, 0, 0, 0, 9]),
    ];
    for frame in &mut frames {
        frame[..6].copy_from_slice(&station);
    }
    frames.push(ask(OTHER, CLIENT, &[])?);
    frames.push(ask(LIVE, CLIENT, &[])?);
    let is_answer = |frame: &Vec<u8>| {
        let source: [u8; 16] = frame[22..38].try_into().unwrap_or_default();
        frame[12..14] == [0x86, 0xdd]
            && ([LIVE, OTHER].contains(&source.into())
                || frame[20] == 6
                || frame[20] == 58 && (frame[54] <= 4 || frame[54] == 129))
    };
    let answers = raised.in_client(|| {
        let capture = PacketSocket::on(netlink::link(Side::Client.interface())?.index)?;
        for frame in &frames {
            capture.send(frame)?;
        }
        loop {
            let heard: Vec<_> = capture.receive()?.into_iter().filter(is_answer).collect();
            if !heard.is_empty() {
                return Ok(heard);
            }
        }
    })?;
    ensure!(answers.len() == 1 && answers[0][54] == 136, "{answers:02x?}");
    // The kernel would have answered one.
    raised.wait_for(GateVerdict::KernelSilenced, 1)
}

fn two_services_on_one_port_are_refused() -> Result<()> {
    let twice = service(Protocol::Tcp, ASKED, "[::1]:1".parse()?)?;
    crate::common::fails_with(
        GateProgram::load(&config(vec![twice, twice])?),
        "two services have port 443/tcp",
    )
}

/// A secret, and the identity of client 0 of it, whose address changes every second.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Result<Self> {
        let desk = Self(tempfile::tempdir()?);
        fs::write(desk.path("secret"), "not a secret, since it is here")?;
        fs::set_permissions(desk.path("secret"), Permissions::from_mode(0o600))?;
        let mut enrol = Command::new(SIXHOP);
        enrol.args(["enrol", "--prefix", PREFIX, "--rotate", "1s", "--clients", "0"]);
        enrol.args(["--secret", &desk.path("secret"), "--out", &desk.path("clients")]);
        ensure!(enrol.output()?.status.success(), "enrol failed");
        Ok(desk)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The client's address of now, and its step.
    fn now(&self) -> Result<(Ipv6Addr, u64)> {
        let identity = self.path("clients/client-000000.toml");
        let output = Command::new(SIXHOP).args(["where", &identity, "--json"]).output()?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        let address = found["address"].as_str().context("an address")?.parse()?;
        Ok((address, found["step"].as_u64().context("a step")?))
    }

    fn flags(&self, services: &str) -> String {
        let secret = self.path("secret");
        format!(
            "gate --interface server0 --prefix {PREFIX} --schedule mt6d --clients 4 --rotate 1s \
             --secret {secret} --json {services}"
        )
    }
}

fn start(lab: &TestLab, desk: &Desk, services: &str) -> Result<Server> {
    Server::of(sixhop(lab, Side::Server, &desk.flags(services)))
}

/// Interrupts a gate and returns its totals, which add up.
fn stop(mut gate: Server) -> Result<Value> {
    gate.signal(Signal::SIGINT)?;
    loop {
        let event = gate.event()?;
        if event["event"] == "stopped" {
            ensure!(gate.child.wait()?.success(), "the gate failed");
            let sum = |place: &str| -> u64 {
                event[place].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64()).sum()
            };
            let advertised = event["advertised"].as_u64().unwrap_or_default();
            let all = sum("passed") + sum("dropped") + advertised;
            ensure!(event["received"] == all, "it does not add up: {event}");
            return Ok(event);
        }
    }
}

/// A connection from the client's side, with both of its ends.
fn connect(lab: &TestLab, to: SocketAddrV6, listener: &TcpListener) -> Result<[TcpStream; 2]> {
    let ours =
        lab.run_in(Side::Client, || Ok(TcpStream::connect_timeout(&to.into(), PATIENCE)?))?;
    let (theirs, _) = listener.accept()?;
    ensure!(theirs.local_addr()? == to.into(), "accepted at {}", theirs.local_addr()?);
    for stream in [&ours, &theirs] {
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    Ok([ours, theirs])
}

fn command_serves() -> Result<()> {
    let (lab, desk) = (TestLab::up()?, Desk::new()?);
    let (listener, socket) = lab.run_in(Side::Server, || {
        ip("link set lo up")?;
        Ok((TcpListener::bind("[::1]:0")?, UdpSocket::bind("[::1]:0")?))
    })?;
    let (tcp, udp) = (listener.local_addr()?, socket.local_addr()?);
    let services = format!("--to 443={tcp} --to 53/udp={udp} --to 444=[::1]:1");
    let mut gate = start(&lab, &desk, &services)?;
    let found = gate.ready["services"].as_array().context("services")?;
    let listens: Vec<_> = found.iter().map(|service| service["listens"] == true).collect();
    ensure!(listens == [true, true, false], "{}", gate.ready);
    let notes = gate.ready["notes"].to_string();
    ensure!(notes.contains("nothing listens on [::1]:1 for 444/tcp"), "{notes}");
    ensure!(gate.ready["sandbox"] == true && gate.ready["addresses"] == 12, "{}", gate.ready);

    let (address, step) = desk.now()?;
    let asked = SocketAddrV6::new(address, 443, 0, 0);
    let [mut ours, mut theirs] = connect(&lab, asked, &listener)?;
    exchange(&mut ours, &mut theirs)?;
    ask_over_udp(&lab, &desk, &socket)?;
    let deserted = SocketAddrV6::new(desk.now()?.0, 444, 0, 0);
    lab.run_in(Side::Client, || fails_to_connect(deserted))?;

    gate.wait_for(|event| event["event"] == "rotation" && event["step"].as_u64() > Some(step + 2))?;
    exchange(&mut ours, &mut theirs)?;
    lab.run_in(Side::Client, || fails_to_connect(asked))?;
    gate.wait_for(|event| event["dropped"]["not_live"].as_u64() >= Some(1))?;
    exchange(&mut ours, &mut theirs)?;
    let totals = stop(gate)?;
    ensure!(totals["passed"]["tcp_opened"] == 1 && totals["passed"]["udp_begun"] == 1, "{totals}");
    ensure!(totals["dropped"]["no_listener"].as_u64() >= Some(1), "{totals}");
    let arrived: Vec<_> = totals["services"].as_array().into_iter().flatten().collect();
    ensure!(arrived.iter().map(|one| one["arrived"].as_u64()).eq([1, 1, 0].map(Some)), "{totals}");
    leaves_nothing(&lab)
}

/// One question to the client's address of now, and its answer.
fn ask_over_udp(lab: &TestLab, desk: &Desk, socket: &UdpSocket) -> Result<()> {
    let (address, _) = desk.now()?;
    let ours = lab.run_in(Side::Client, || {
        let ours = UdpSocket::bind("[::]:0")?;
        ours.connect((address, 53))?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.send(b"ping")?;
        Ok(ours)
    })?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (_, peer) = socket.recv_from(&mut [0; 10])?;
    socket.send_to(b"pong", peer)?;
    ensure!(ours.recv(&mut [0; 10])? == 4, "another answer");
    Ok(())
}

/// Fails if a connection comes about, or if the address answers in any way.
fn fails_to_connect(to: SocketAddrV6) -> Result<()> {
    let refused = TcpStream::connect_timeout(&to.into(), SILENCE).map(drop);
    let kind = refused.err().context("it connected")?.kind();
    ensure!(kind == ErrorKind::TimedOut, "{kind}");
    Ok(())
}

/// The rules and routes of the server's side that are a gate's.
fn left(lab: &TestLab) -> Result<String> {
    lab.run_in(Side::Server, || {
        let mut all = String::new();
        for what in [&["rule"][..], &["route", "show", "table", "all"]] {
            let output = Command::new("ip").arg("-6").args(what).output()?;
            all += &String::from_utf8(output.stdout)?;
        }
        let ours = |line: &&str| line.contains("0x66690000") || line.contains("proto 102");
        Ok(all.lines().filter(ours).collect::<Vec<_>>().join("\n"))
    })
}

/// Waits until no rule, no route and no tc program is left.
fn leaves_nothing(lab: &TestLab) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let programs = lab.run_in(Side::Server, || {
            let output = Command::new("bpftool").args(["net", "show"]).output();
            Ok(output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()))
        })?;
        // Where bpftool is missing, silence is what shows that the programs are gone.
        let attached = programs.is_ok_and(|words| words.contains("gate_in"));
        let left = left(lab)?;
        if left.is_empty() && !attached {
            return Ok(());
        }
        ensure!(Instant::now() < give_up, "it stays: {left}, program: {attached}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn killed() -> Result<()> {
    let (lab, desk) = (TestLab::up()?, Desk::new()?);
    let listener = lab.run_in(Side::Server, || {
        ip("link set lo up")?;
        Ok(TcpListener::bind("[::1]:0")?)
    })?;
    let services = format!("--to 443={}", listener.local_addr()?);
    let mut gate = start(&lab, &desk, &services)?;
    ensure!(!left(&lab)?.is_empty(), "neither a rule nor a route, or they have another mark");
    let asked = SocketAddrV6::new(desk.now()?.0, 443, 0, 0);
    let [mut ours, mut theirs] = connect(&lab, asked, &listener)?;
    exchange(&mut ours, &mut theirs)?;

    gate.signal(Signal::SIGKILL)?;
    gate.child.wait()?;
    leaves_nothing(&lab)?;
    let now = SocketAddrV6::new(desk.now()?.0, 443, 0, 0);
    let port = ours.local_addr()?.port();
    lab.run_in(Side::Client, || {
        let capture = PacketSocket::on(netlink::link(Side::Client.interface())?.index)?;
        capture.send(&ask(*now.ip(), CLIENT, &[])?)?;
        fails_to_connect(now)?;
        let from = now.ip().octets();
        let heard = capture.drain()?;
        // The connection that exists may send again what was not acknowledged.
        let is_answer = |frame: &Vec<u8>| {
            frame.get(22..38) == Some(&from[..])
                && (frame[20] != 6 || frame.get(56..58) != Some(&port.to_be_bytes()[..]))
        };
        ensure!(!heard.iter().any(is_answer), "answered: {heard:02x?}");
        Ok(())
    })?;

    // Less than the send buffer holds: nobody acknowledges it yet.
    ours.write_all(&[7; 10_000])?;
    let gate = start(&lab, &desk, &services)?;
    let mut bytes = vec![0; 10_000];
    theirs.read_exact(&mut bytes).context("the transfer does not go on")?;
    ensure!(bytes.iter().all(|byte| *byte == 7), "other bytes");
    exchange(&mut ours, &mut theirs)?;
    let totals = stop(gate)?;
    ensure!(totals["passed"]["tcp_flow"].as_u64() > Some(0), "{totals}");
    leaves_nothing(&lab)
}

fn refused() -> Result<()> {
    let (lab, desk) = (TestLab::up()?, Desk::new()?);
    lab.run_in(Side::Server, || ip("link set lo up"))?;
    let fails = |flags: &str, status: i32, expected: &str| -> Result<()> {
        let output = sixhop(&lab, Side::Server, flags).output()?;
        let words = String::from_utf8(output.stderr)?;
        let is_one_line = words.trim_end().lines().count() == 1;
        ensure!(output.status.code() == Some(status), "{flags}: {:?}: {words}", output.status);
        ensure!(is_one_line && words.contains(expected), "{flags}: {words}, not {expected}");
        Ok(())
    };
    fails(&desk.flags("--to 22=127.0.0.1:22"), 2, "127.0.0.1:22 is IPv4")?;
    fails(&desk.flags("--to 22/sctp"), 2, "write PORT[/tcp|/udp][=ADDR:PORT]")?;
    let foreign = "2001:db8::9 is no address of this machine";
    fails(&desk.flags("--to 22=[2001:db8::9]:22"), 1, foreign)?;
    let twice = "two services have port 22/tcp";
    fails(&desk.flags("--to 22=[::1]:22 --to 22/tcp=[::1]:23"), 1, twice)?;
    let long = desk.flags("--to 22").replace("/64", "/96");
    fails(&long, 2, "/64")?;
    let still = format!("gate --interface server0 --prefix {PREFIX} --addresses 9 --to 22");
    fails(&still, 2, "a gate's addresses move")?;
    let gate = start(&lab, &desk, "--to 22=[::1]:22")?;
    fails(&desk.flags("--to 23=[::1]:23"), 1, "another sixhop binds addresses to server0")?;
    // The first one is unharmed.
    ensure!(!left(&lab)?.is_empty(), "the second gate took back what is the first one's");
    stop(gate)?;
    leaves_nothing(&lab)
}
