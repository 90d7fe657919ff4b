//! The steering program, run by the kernel on single packets (BPF_PROG_TEST_RUN): which verdict each kind gets.

mod common;

use std::net::Ipv6Addr;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use common::{TestLab, trial};
use etherparse::PacketBuilder;
use sixhop::lab::Side;
use sixhop::netlink;
use sixhop::xdp::{CopyRequest, Program, Socket, SocketConfig, Verdict};

/// Actions of linux/bpf.h.
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

const PORT: u16 = 3540;
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const LIVE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const NOT_LIVE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);

fn main() -> ExitCode {
    common::main(vec![
        trial("every_kind_of_packet_has_its_verdict", every_kind_of_packet_has_its_verdict),
        trial("no_truncation_is_steered", no_truncation_is_steered),
        trial("a_socket_on_the_queue_gets_the_packet", a_socket_on_the_queue_gets_the_packet),
        trial("many_addresses_are_all_live", many_addresses_are_all_live),
    ])
}

fn program(capacity: u32) -> Result<Program> {
    let program = Program::load(PORT, capacity, 1)?;
    program.add_prefix("2001:db8:1::/64".parse()?)?;
    Ok(program)
}

fn udp(to: Ipv6Addr, port: u16) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(CLIENT.octets(), to.octets(), 64)
        .udp(50_000, port)
        .write(&mut packet, &[7; 32])?;
    Ok(packet)
}

/// Runs `packet` and returns the action and the one verdict that was counted.
fn verdict(program: &Program, packet: &[u8]) -> Result<(u32, Verdict)> {
    let source = program.verdicts()?;
    let before = source.read()?;
    let (action, after) = program.test_run(packet)?;
    ensure!(after == packet, "the program changed the packet");
    let counted: Vec<_> = source.read()?.iter().zip(before).map(|(now, before)| now - before).collect();
    ensure!(counted.iter().sum::<u64>() == 1, "one packet counted as {counted:?}");
    let index = counted.iter().position(|count| *count == 1).unwrap_or_default();
    Ok((action, Verdict::ALL[index]))
}

fn every_kind_of_packet_has_its_verdict() -> Result<()> {
    let program = program(10)?;
    program.add_live(&[LIVE])?;
    let right = udp(LIVE, PORT)?;
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut packet = right.clone();
        change(&mut packet);
        packet
    };
    let mut tcp = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(CLIENT.octets(), LIVE.octets(), 64)
        .tcp(50_000, PORT, 1, 1000)
        .write(&mut tcp, &[])?;
    let mut ipv4 = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
        .udp(50_000, PORT)
        .write(&mut ipv4, &[7; 32])?;
    let mut vlan = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .single_vlan(5.try_into()?)
        .ipv6(CLIENT.octets(), LIVE.octets(), 64)
        .udp(50_000, PORT)
        .write(&mut vlan, &[7; 32])?;
    let cases = [
        ("a request, but no socket on the queue", right.clone(), Verdict::PassedNoRing),
        ("another port", udp(LIVE, PORT + 1)?, Verdict::PassedPort),
        ("another prefix", udp(STRANGER, PORT)?, Verdict::PassedPrefix),
        ("an address that is not live", udp(NOT_LIVE, PORT)?, Verdict::PassedNotLive),
        ("TCP", tcp, Verdict::PassedOther),
        ("IPv4", ipv4, Verdict::PassedOther),
        ("a VLAN tag", vlan, Verdict::PassedOther),
        ("ICMPv6", changed(|packet| packet[20] = 58), Verdict::PassedOther),
        ("a fragment", changed(|packet| packet[20] = 44), Verdict::PassedOther),
        ("hop-by-hop options", changed(|packet| packet[20] = 0), Verdict::PassedOther),
        ("ARP", changed(|packet| packet[12..14].copy_from_slice(&[8, 6])), Verdict::PassedOther),
    ];
    for (name, packet, expected) in cases {
        ensure!(verdict(&program, &packet)? == (XDP_PASS, expected), "{name}: not {expected:?}");
    }
    Ok(())
}

fn no_truncation_is_steered() -> Result<()> {
    let program = program(10)?;
    program.add_live(&[LIVE])?;
    let right = udp(LIVE, PORT)?;
    // From an Ethernet header on, which is the least that the kernel runs a program for.
    for length in 14..62 {
        let found = verdict(&program, &right[..length])?;
        ensure!(found == (XDP_PASS, Verdict::PassedOther), "cut to {length} bytes: {found:?}");
    }
    Ok(())
}

fn a_socket_on_the_queue_gets_the_packet() -> Result<()> {
    let lab = TestLab::up()?;
    lab.run_in(Side::Server, || {
        let link = netlink::link(Side::Server.interface())?;
        let (socket, rings, rest) = Socket::open(&SocketConfig {
            interface: &link.name,
            index: link.index,
            queue: 0,
            copy: CopyRequest::Auto,
            frames: 64,
            frame_size: 2048,
            send_ring: 64,
            fill: 48,
        })?;
        ensure!(rest.len() == 16 && rings.census().receiving == 48, "{:?}", rings.census());
        let program = program(10)?;
        program.add_live(&[LIVE])?;
        program.add_socket(0, &socket)?;
        ensure!(verdict(&program, &udp(LIVE, PORT)?)? == (XDP_REDIRECT, Verdict::Steered));
        ensure!(verdict(&program, &udp(NOT_LIVE, PORT)?)? == (XDP_PASS, Verdict::PassedNotLive));
        Ok(())
    })
}

fn many_addresses_are_all_live() -> Result<()> {
    const COUNT: u128 = 100_000; // more than one batch
    let program = program(COUNT as u32)?;
    let addresses: Vec<_> =
        (0..COUNT).map(|host| Ipv6Addr::from_bits(LIVE.to_bits() + 0x100 + host)).collect();
    program.add_live(&addresses)?;
    for address in addresses.iter().step_by(997).chain(addresses.last()) {
        ensure!(
            verdict(&program, &udp(*address, PORT)?)?.1 == Verdict::PassedNoRing,
            "{address} is not live"
        );
    }
    ensure!(program.add_live(&[NOT_LIVE]).is_err(), "one more than the program was loaded for");
    Ok(())
}
