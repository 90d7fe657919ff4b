//! The gate's programs: which outcome each kind of packet has (BPF_PROG_TEST_RUN), and what comes
//! of them on a veth pair, with services that listen on loopback alone.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::packet::PacketSocket;
use crate::common::server::PATIENCE;
use crate::common::{TestLab, ip, link, trial};
use anyhow::{Context, Result, bail, ensure};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};
use libtest_mimic::Trial;
use sixhop::address::mt6d::Subnet;
use sixhop::gate::{
    Arrival, Arrivals, GateAttachment, GateConfig, GateProgram, Outcome, Protocol, Service, Side,
    TestRun,
};
use sixhop::lab::Side as Host;
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
        trial("a_flow_lives_on_and_answers_from_where_it_was_asked", a_flow_lives_on),
        trial("all_else_is_silent", all_else_is_silent),
        trial("two_services_on_one_port_are_refused", two_services_on_one_port_are_refused),
    ]
}

fn service(protocol: Protocol, port: u16, listener: SocketAddr) -> Result<Service> {
    let SocketAddr::V6(listener) = listener else { bail!("{listener} is not IPv6") };
    Ok(Service { protocol, port, listener })
}

fn config(services: Vec<Service>) -> Result<GateConfig> {
    let subnet = Subnet::new(PREFIX.parse()?)?;
    Ok(GateConfig {
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
    fn run(&self, side: Side, packet: &[u8]) -> Result<(TestRun, Option<Outcome>)> {
        let source = self.program.outcomes()?;
        let before = source.read()?;
        let run = self.program.test_run(side, packet)?;
        let mut counted = Vec::new();
        for (outcome, (now, before)) in
            Outcome::ALL.into_iter().zip(source.read()?.into_iter().zip(before))
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
        let (gate, attached, delivery) = lab.run_in(Host::Server, || {
            ip("link set lo up")?;
            let link = netlink::link(Host::Server.interface())?;
            let gate = Gate::load()?;
            let delivery = Delivery::begin(&link, PREFIX.parse()?, Opener::Gate)?;
            let attached = gate.program.attach(&link)?;
            Ok((gate, attached, delivery))
        })?;
        let arrivals = gate.program.arrivals()?;
        Ok(Self { lab, gate, arrivals, _attached: attached, _delivery: delivery })
    }

    fn in_client<T: Send>(&self, f: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.lab.run_in(Host::Client, f)
    }

    fn expire(&mut self) {
        self.gate.live.set_step(EXPIRED);
    }

    /// Waits until so many packets had this outcome.
    fn wait_for(&self, outcome: Outcome, count: u64) -> Result<()> {
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
    lab.run_in(Host::Server, || {
        ip("link set lo up")?;
        let gate = Gate::load()?;
        judge_each(&gate)
    })
}

fn judge_each(gate: &Gate) -> Result<()> {
    use Outcome::*;
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
        let (run, outcome) = gate.run(Side::In, &packet)?;
        ensure!(
            run.action == DROP && run.mark == 0 && outcome == Some(expected),
            "{name}: {} as {outcome:?}, not {expected:?}",
            run.action
        );
    }
    let mut group = right.clone();
    group[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    ensure!(gate.run(Side::In, &group)?.1 == Some(GroupFrame), "a group's frame");
    for length in 54..62 {
        let (run, outcome) = gate.run(Side::In, &right[..length])?;
        ensure!((run.action, outcome) == (DROP, Some(Truncated)), "{length} bytes: {outcome:?}");
    }
    for packet in untouched(&right)? {
        let (run, outcome) = gate.run(Side::In, &packet)?;
        let same = run == TestRun { action: HAND_ON, packet: packet.clone(), mark: 0 };
        ensure!(same && outcome.is_none(), "{packet:02x?}: {run:?}, {outcome:?}");
    }
    gate.program.set_revoked(&[LIVE])?;
    for packet in [syn, right, ask(LIVE, CLIENT, &[])?] {
        ensure!(gate.run(Side::In, &packet)?.1 == Some(Revoked), "not revoked: {packet:02x?}");
    }
    gate.program.set_revoked(&[])?;
    ensure!(gate.run(Side::In, &ask(LIVE, CLIENT, &[])?)?.1 == Some(Advertised), "for good");
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
        let (run, outcome) = gate.run(Side::In, &packet)?;
        let mut expected = [0; ADVERTISEMENT];
        let wire = solicitation(&packet).ok().filter(|asked| asked.target() == LIVE);
        match wire.and_then(|asked| asked.advertise(STATION, &mut expected)) {
            Some(length) => {
                answered += 1;
                ensure!(
                    (run.action, outcome) == (REDIRECT, Some(Outcome::Advertised)),
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
        let capture = PacketSocket::on(netlink::link(Host::Client.interface())?.index)?;
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
    raised.wait_for(Outcome::NotLive, 1)?;
    exchange(&mut ours, &mut theirs)?;

    raised.gate.program.set_revoked(&[LIVE])?;
    ours.write_all(b"ping")?;
    raised.wait_for(Outcome::Revoked, 1)
}

fn a_flow_lives_on() -> Result<()> {
    let mut raised = Raised::up()?;
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
        theirs.send_to(&vec![7; lengths.iter().sum()], peer)?;
        for length in lengths {
            let got = ours.recv(&mut buffer).context("no reply from the address asked")?;
            ensure!(got == *length, "{got} bytes instead of {length}");
        }
        Ok(())
    };
    exchange(&[4])?;
    ensure!(raised.arrival()?.asked == SocketAddrV6::new(LIVE, ASKED, 0, 0), "another arrival");
    raised.expire();
    exchange(&[4])?;
    raised.wait_for(Outcome::UdpFlow, 1)?;
    raised.wait_for(Outcome::ReplyRenamed, 2)?;

    let late = raised.in_client(connect)?;
    late.send(b"ping")?;
    raised.wait_for(Outcome::NotLive, 1)?;
    raised.gate.program.set_idle(Duration::ZERO);
    ours.send(b"ping")?;
    raised.wait_for(Outcome::NotLive, 2)?;
    theirs.set_nonblocking(true)?;
    let came = theirs.recv_from(&mut [0; 10]).map(drop);
    ensure!(came.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "a datagram came");
    Ok(())
}

/// Of all these, only the last has an answer. It also says that the others are done with: a veth
/// keeps the order.
fn all_else_is_silent() -> Result<()> {
    let raised = Raised::up()?;
    let station = link(&raised.lab, Host::Server)?.mac;
    let client = link(&raised.lab, Host::Client)?.mac.map(|byte| format!("{byte:02x}")).join(":");
    // So that no answer waits for a neighbour.
    raised.lab.run_in(Host::Server, || {
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
        let capture = PacketSocket::on(netlink::link(Host::Client.interface())?.index)?;
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
    raised.wait_for(Outcome::KernelSilenced, 1)
}

fn two_services_on_one_port_are_refused() -> Result<()> {
    let twice = service(Protocol::Tcp, ASKED, "[::1]:1".parse()?)?;
    crate::common::fails_with(
        GateProgram::load(&config(vec![twice, twice])?),
        "two services have port 443 of Tcp",
    )
}
