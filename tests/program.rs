//! The steering program, run by the kernel on single packets (BPF_PROG_TEST_RUN): which verdict each kind gets.

mod common;

use std::net::Ipv6Addr;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use common::{TestLab, trial};
use etherparse::PacketBuilder;
use sixhop::lab::Side;
use sixhop::netlink::{self, AttachMode};
use sixhop::xdp::{
    CopyRequest, HugepageRequest, LiveAddresses, Program, ProgramConfig, Socket, SocketConfig, Verdict,
};

/// Actions of linux/bpf.h.
const XDP_DROP: u32 = 1;
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
        trial("many_addresses_are_all_live_and_cease_to_be", many_addresses_are_all_live_and_cease_to_be),
        trial("where_hidden_nobody_else_is_heard", where_hidden_nobody_else_is_heard),
        trial("without_a_port_no_request_is_steered", without_a_port_no_request_is_steered),
    ])
}

const CONFIG: ProgramConfig = ProgramConfig { port: PORT, addresses: 10, queues: 1, hidden: false };

/// A program with one live address.
fn program(config: &ProgramConfig) -> Result<(Program, LiveAddresses)> {
    let mut program = Program::load(config)?;
    program.add_prefix("2001:db8:1::/64".parse()?)?;
    let mut live = program.live_addresses()?;
    live.add(&[LIVE]).map_err(|(_, error)| error)?;
    Ok((program, live))
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
    let (program, _live) = program(&CONFIG)?;
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
        ("a request, but no socket on the queue", right.clone(), Verdict::NoRing),
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
    let (program, _live) = program(&CONFIG)?;
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
            attach: AttachMode::Native,
            frames: 64,
            frame_size: 2048,
            hugepages: HugepageRequest::Auto,
            busy_poll: None,
            send_ring: 64,
            fill: 48,
        })?;
        ensure!(rest.len() == 16 && rings.census().receiving == 48, "{:?}", rings.census());
        let (plain, _live) = program(&CONFIG)?;
        plain.add_socket(0, &socket)?;
        ensure!(verdict(&plain, &udp(LIVE, PORT)?)? == (XDP_REDIRECT, Verdict::Steered));
        ensure!(verdict(&plain, &udp(NOT_LIVE, PORT)?)? == (XDP_PASS, Verdict::PassedNotLive));
        ensure!(verdict(&plain, &solicitation(group(LIVE), LIVE)?)? == (XDP_PASS, Verdict::PassedOther));
        let (hidden, _live) = program(&ProgramConfig { hidden: true, ..CONFIG })?;
        hidden.add_socket(0, &socket)?;
        ensure!(verdict(&hidden, &udp(LIVE, PORT)?)? == (XDP_REDIRECT, Verdict::Steered));
        for to in [LIVE, group(LIVE)] {
            ensure!(verdict(&hidden, &solicitation(to, LIVE)?)? == (XDP_REDIRECT, Verdict::Solicited));
        }
        Ok(())
    })
}

fn many_addresses_are_all_live_and_cease_to_be() -> Result<()> {
    const COUNT: u128 = 10_000; // more than one batch, and no multiple of it
    let (program, mut live) = program(&ProgramConfig { addresses: 1 + COUNT as u32, ..CONFIG })?;
    let addresses: Vec<_> =
        (0..COUNT).map(|host| Ipv6Addr::from_bits(LIVE.to_bits() + 0x100 + host)).collect();
    live.add(&addresses).map_err(|(_, error)| error)?;
    for address in addresses.iter().step_by(97).chain(addresses.last()) {
        ensure!(live.contains(*address)?, "{address} is not live");
        ensure!(verdict(&program, &udp(*address, PORT)?)?.1 == Verdict::NoRing, "{address} is not live");
    }
    ensure!(live.kernel_memory().is_some_and(|bytes| (COUNT as u64..200 * COUNT as u64).contains(&bytes)));

    let Err((done, full)) = live.add(&[NOT_LIVE]) else { panic!("one more than the program was loaded for") };
    ensure!(done == 0 && full.to_string().contains("no room"), "{full}");
    // Where it stops is known, and what was live before stays so.
    live.remove(&addresses[5000..])?;
    let Err((done, twice)) = live.add(&[&addresses[7000..], &addresses[4999..]].concat()) else {
        panic!("{} is there twice", addresses[4999])
    };
    ensure!(
        done == 3000 && twice.to_string() == format!("{} is live already", addresses[4999]),
        "{done}: {twice}"
    );
    ensure!(
        live.contains(addresses[4999])?
            && live.contains(addresses[9999])?
            && !live.contains(addresses[5000])?
    );
    // Those that are not there are passed over.
    live.remove(&addresses)?;
    for address in addresses.iter().step_by(97).chain(addresses.last()) {
        ensure!(verdict(&program, &udp(*address, PORT)?)? == (XDP_PASS, Verdict::PassedNotLive));
    }
    ensure!(live.contains(LIVE)?);
    Ok(())
}

/// The group that solicitations for `address` go to (RFC 4291 section 2.7.1).
fn group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

fn icmpv6(to: Ipv6Addr, kind: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(CLIENT.octets(), to.octets(), 255)
        .icmpv6_raw(kind, 0, [0; 4])
        .write(&mut packet, body)?;
    Ok(packet)
}

fn solicitation(to: Ipv6Addr, target: Ipv6Addr) -> Result<Vec<u8>> {
    icmpv6(to, 135, &target.octets())
}

fn where_hidden_nobody_else_is_heard() -> Result<()> {
    const KERNEL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let (program, _live) = program(&ProgramConfig { hidden: true, ..CONFIG })?;
    program.set_kernel_addresses(&[NOT_LIVE])?;
    program.set_kernel_addresses(&[KERNEL, STRANGER])?; // replaces what was set before
    let next_header = |number: u8| {
        let mut packet = udp(LIVE, PORT).expect("a packet");
        packet[20] = number;
        packet
    };
    let hidden = (XDP_DROP, Verdict::DroppedHidden);
    let prefix = (XDP_PASS, Verdict::PassedPrefix);
    let kernel = (XDP_PASS, Verdict::PassedKernel);
    let no_ring = (XDP_DROP, Verdict::NoRing); // ours, but there is no socket
    let cases = [
        ("a request", udp(LIVE, PORT)?, no_ring),
        ("a request to an address that is not live", udp(NOT_LIVE, PORT)?, hidden),
        ("another port", udp(LIVE, PORT + 1)?, hidden),
        ("another port of an address that is not live", udp(NOT_LIVE, PORT + 1)?, hidden),
        ("a request to the kernel's address", udp(KERNEL, PORT)?, kernel),
        ("another port of it", udp(KERNEL, 53)?, kernel),
        ("another prefix", udp(STRANGER, PORT)?, prefix),
        ("a ping", icmpv6(LIVE, 128, &[0; 16])?, hidden),
        ("a ping to the kernel's address", icmpv6(KERNEL, 128, &[0; 16])?, kernel),
        ("TCP", next_header(6), hidden),
        ("a fragment", next_header(44), hidden),
        ("hop-by-hop options", next_header(0), hidden),
        ("who has a live address", solicitation(group(LIVE), LIVE)?, no_ring),
        ("is the live address still there", solicitation(LIVE, LIVE)?, no_ring),
        ("who has an address that is not live", solicitation(group(NOT_LIVE), NOT_LIVE)?, hidden),
        ("is an address still there that never was", solicitation(NOT_LIVE, NOT_LIVE)?, hidden),
        ("who has the kernel's address", solicitation(group(KERNEL), KERNEL)?, kernel),
        ("is the kernel's address still there", solicitation(KERNEL, KERNEL)?, kernel),
        ("who has a stranger's address", solicitation(group(STRANGER), STRANGER)?, prefix),
        ("a live address asked for at another live address's place", solicitation(KERNEL, LIVE)?, kernel),
        ("an advertisement to all", icmpv6(ALL_NODES, 136, &LIVE.octets())?, prefix),
        ("half a solicitation", solicitation(group(LIVE), LIVE)?[..77].to_vec(), prefix),
        ("half a solicitation, to the address", solicitation(LIVE, LIVE)?[..77].to_vec(), hidden),
        ("an IPv6 header alone", udp(LIVE, PORT)?[..54].to_vec(), hidden),
        ("less than that", udp(LIVE, PORT)?[..53].to_vec(), (XDP_PASS, Verdict::PassedOther)),
    ];
    for (name, packet, expected) in cases {
        let found = verdict(&program, &packet)?;
        ensure!(found == expected, "{name}: {found:?}, not {expected:?}");
    }
    Ok(())
}

fn without_a_port_no_request_is_steered() -> Result<()> {
    for hidden in [false, true] {
        let (program, _live) = program(&ProgramConfig { port: 0, hidden, ..CONFIG })?;
        let expected =
            if hidden { (XDP_DROP, Verdict::DroppedHidden) } else { (XDP_PASS, Verdict::PassedPort) };
        for port in [0, PORT] {
            ensure!(verdict(&program, &udp(LIVE, port)?)? == expected);
        }
    }
    Ok(())
}
