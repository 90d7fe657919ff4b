//! The steering program, run by the kernel on single packets (BPF_PROG_TEST_RUN): the verdict for
//! each kind of packet, and the replies that it writes itself.

use std::net::Ipv6Addr;
use std::path::Path;

use crate::common::packet::leave_checksum_unfinished;
use crate::common::{TestLab, trial};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sixhop::address::mt6d::Subnet;
use sixhop::address::{Pool, Prefix, Sources};
use sixhop::lab::Side;
use sixhop::net::memory::HugepageRequest;
use sixhop::net::netlink::{self, AttachMode};
use sixhop::policy::Handler;
use sixhop::wire::{MAX_PAYLOAD, OVERHEAD, Refusal};
use sixhop::xdp::{
    CopyRequest, LiveAddresses, MovingAddresses, Program, ProgramConfig, Reflect, Screen, Socket,
    SocketConfig, Verdict, VerdictSource,
};

/// Actions of linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

const PORT: u16 = 3540;
/// The Ethernet address of the interface.
const STATION: [u8; 6] = [4; 6];
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
const LIVE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10);
const NOT_LIVE: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x11);
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x10);

pub fn trials() -> Vec<Trial> {
    vec![
        trial("every_kind_of_packet_has_its_verdict", every_kind_of_packet_has_its_verdict),
        trial("no_truncation_is_steered", no_truncation_is_steered),
        trial("a_socket_on_the_queue_gets_the_packet", a_socket_on_the_queue_gets_the_packet),
        trial(
            "many_addresses_are_all_live_and_cease_to_be",
            many_addresses_are_all_live_and_cease_to_be,
        ),
        trial("an_address_is_live_in_the_window_of_its_step", an_address_is_live_in_its_window),
        trial("each_of_many_prefixes_counts", each_of_many_prefixes_counts),
        trial("every_moving_address_is_found", every_moving_address_is_found),
        trial("where_hidden_nobody_else_is_heard", where_hidden_nobody_else_is_heard),
        trial("only_what_a_socket_answers_goes_behind", only_what_a_socket_answers_goes_behind),
        trial("a_source_has_its_limit", a_source_has_its_limit),
        trial("without_a_port_no_request_is_steered", without_a_port_no_request_is_steered),
        trial("a_program_that_answers_refuses_by_the_same_rules", refuses_by_the_same_rules),
        trial("a_program_that_answers_does_what_the_handler_does", does_what_the_handler_does),
        trial("where_hidden_solicitations_are_still_steered", solicitations_are_still_steered),
        trial(
            "programs_do_with_the_corpus_of_the_fuzzers_what_the_handler_does",
            corpus_of_the_fuzzers,
        ),
    ]
}

const CONFIG: ProgramConfig = ProgramConfig {
    port: PORT,
    addresses: 10,
    queues: 1,
    hidden: false,
    moving: None,
    reflect: None,
    screen: Some(Screen { station: STATION, allow_list: true, limit: None }),
};

/// Sources that may ask.
const ALLOWED: [&str; 2] = ["2001:db8:1::/64", "fe80::/64"];

fn allowed() -> Sources {
    Sources::new(ALLOWED.map(|text| Sources::parse(text).expect("a prefix")))
}

/// A program with one live address.
fn program(config: &ProgramConfig) -> Result<(Program, LiveAddresses)> {
    let mut program = Program::load(config)?;
    program.add_prefix("2001:db8:1::/64".parse()?)?;
    allowed().prefixes().iter().try_for_each(|prefix| program.allow(*prefix))?;
    let mut live = program.live_addresses()?;
    live.add(&[LIVE]).map_err(|(_, error)| error)?;
    Ok((program, live))
}

/// A program whose addresses move.
fn moving(hidden: bool, clients: u64) -> Result<(Program, LiveAddresses)> {
    let subnet = Subnet::new("2001:db8:1::/64".parse()?)?;
    let moving = Some(MovingAddresses { subnet, clients });
    let mut program = Program::load(&ProgramConfig { hidden, moving, addresses: 0, ..CONFIG })?;
    program.add_prefix(subnet.prefix())?;
    allowed().prefixes().iter().try_for_each(|prefix| program.allow(*prefix))?;
    let live = program.live_addresses()?;
    Ok((program, live))
}

/// The program compares the first few prefixes one by one, and looks up the others elsewhere.
fn each_of_many_prefixes_counts() -> Result<()> {
    const PREFIXES: [&str; 7] = [
        "2001:db8:1::/64",
        "2001:db8:2::/47",
        "2001:db8:14::/128",
        "2001:db8:15:8000::/49",
        "2001:db8:6::/65",
        "2001:db8:7::/48",
        "2001:db8:8::8/125",
    ];
    // The prefix's last address, and the one after it.
    let edge = |prefix: Prefix| {
        let last =
            prefix.network().to_bits() | u128::MAX.checked_shr(prefix.length().into()).unwrap_or(0);
        (Ipv6Addr::from_bits(last), Ipv6Addr::from_bits(last + 1))
    };
    for count in 1..=PREFIXES.len() {
        let mut program = Program::load(&CONFIG)?;
        let mut live = program.live_addresses()?;
        for prefix in PREFIXES.into_iter().take(count) {
            program.add_prefix(prefix.parse()?)?;
            program.allow(Sources::parse(prefix)?)?;
        }
        for (index, prefix) in PREFIXES.into_iter().enumerate() {
            let prefix: Prefix = prefix.parse()?;
            let (last, behind) = edge(prefix);
            let _ = live.add(&[last, behind]);
            for (address, within) in [(prefix.network(), true), (last, true), (behind, false)] {
                let within = within && index < count;
                let from = |source: Ipv6Addr, to| {
                    let mut packet = udp(to, PORT)?;
                    packet[22..38].copy_from_slice(&source.octets());
                    verdict(&program, &packet)
                };
                let allowed = from(address, edge(PREFIXES[0].parse()?).0)?.1 != Verdict::Refused;
                let bound = from(Ipv6Addr::from_bits(prefix.network().to_bits() ^ 1), address)?.1;
                ensure!(allowed == within, "{count}: {address} may ask: {allowed}");
                ensure!(
                    (bound != Verdict::PassedPrefix) == within,
                    "{count}: {address} is bound: {bound:?}"
                );
            }
        }
    }
    Ok(())
}

fn udp(to: Ipv6Addr, port: u16) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6(CLIENT.octets(), to.octets(), 64)
        .udp(50_000, port)
        .write(&mut packet, &[7; 32])?;
    Ok(packet)
}

/// Runs `packet` and returns the action and the only verdict counted.
fn verdict(program: &Program, packet: &[u8]) -> Result<(u32, Verdict)> {
    let source = program.verdicts()?;
    let before = source.read()?;
    let (action, after) = program.test_run(packet)?;
    ensure!(after == packet, "the program changed the packet");
    let counted: Vec<_> =
        source.read()?.iter().zip(before).map(|(now, before)| now - before).collect();
    ensure!(
        counted.iter().sum::<u64>() == 1,
        "one packet got several verdicts or none: {counted:?}"
    );
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
        ("a fragment", changed(|packet| packet[20] = 44), Verdict::PassedBehind),
        ("an unknown next header", changed(|packet| packet[20] = 59), Verdict::PassedOther),
        ("another station's", changed(|packet| packet[5] = 7), Verdict::PassedOther),
        ("for many", changed(|packet| packet[..6].fill(0xff)), Verdict::PassedBehind),
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
    // The kernel runs no program on less than an Ethernet header.
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
            elsewhere: 0,
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
        ensure!(
            verdict(&plain, &solicitation(group(LIVE), LIVE)?)? == (XDP_PASS, Verdict::PassedOther)
        );
        let (hidden, _live) = program(&ProgramConfig { hidden: true, ..CONFIG })?;
        hidden.add_socket(0, &socket)?;
        ensure!(verdict(&hidden, &udp(LIVE, PORT)?)? == (XDP_REDIRECT, Verdict::Steered));
        for to in [LIVE, group(LIVE)] {
            ensure!(
                verdict(&hidden, &solicitation(to, LIVE)?)? == (XDP_REDIRECT, Verdict::Solicited)
            );
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
        ensure!(
            verdict(&program, &udp(*address, PORT)?)?.1 == Verdict::NoRing,
            "{address} is not live"
        );
    }
    ensure!(
        live.kernel_memory()
            .is_some_and(|bytes| (COUNT as u64..200 * COUNT as u64).contains(&bytes))
    );

    let Err((done, full)) = live.add(&[NOT_LIVE]) else {
        panic!("the program accepted one address too many")
    };
    ensure!(done == 0 && full.to_string().contains("no space"), "{full}");
    // `done` says where it stopped; addresses that were live before stay live.
    live.remove(&addresses[5000..])?;
    let Err((done, twice)) = live.add(&[&addresses[7000..], &addresses[4999..]].concat()) else {
        panic!("{} was added twice", addresses[4999])
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
    // Addresses that are not live are skipped.
    live.remove(&addresses)?;
    for address in addresses.iter().step_by(97).chain(addresses.last()) {
        ensure!(verdict(&program, &udp(*address, PORT)?)? == (XDP_PASS, Verdict::PassedNotLive));
    }
    ensure!(live.contains(LIVE)?);
    Ok(())
}

/// An address is live only in the steps of its window: for requests, for solicitations, and as a
/// source that must not ask.
fn an_address_is_live_in_its_window() -> Result<()> {
    const STEP: u64 = (1 << 32) + 1;
    for hidden in [false, true] {
        let (program, mut live) = moving(hidden, 1000)?;
        let of =
            |step: u64| Ipv6Addr::from_bits(LIVE.to_bits() + 0x1000 + u128::from(step + 10 - STEP));
        let (action, silent) = if hidden {
            (XDP_DROP, Verdict::DroppedHidden)
        } else {
            (XDP_PASS, Verdict::PassedNotLive)
        };
        for now in STEP - 8..STEP + 8 {
            // Entered as a server does: one step before they become live.
            for step in now - 1..=now + 2 {
                live.enter(&[of(step)], step)?;
            }
            live.set_step(now);
            for step in STEP - 10..STEP + 10 {
                let expected = if step.abs_diff(now) <= 1 {
                    (action, Verdict::NoRing)
                } else {
                    (action, silent)
                };
                let found = verdict(&program, &udp(of(step), PORT)?)?;
                ensure!(found == expected, "a request to step {step} in {now}: {found:?}");
                // The source is one of our own live addresses, or was one before.
                let mut packet = udp(of(now), PORT)?;
                packet[22..38].copy_from_slice(&of(step).octets());
                let expected =
                    if step.abs_diff(now) <= 1 { Verdict::Refused } else { Verdict::NoRing };
                let found = verdict(&program, &packet)?.1;
                ensure!(found == expected, "a request from step {step} in {now}: {found:?}");
                // The same behind an extension header, as destination and as source.
                let expected = if step.abs_diff(now) <= 1 {
                    (XDP_PASS, Verdict::PassedBehind)
                } else {
                    (action, silent)
                };
                let found = verdict(&program, &behind(of(step), PORT, &[(0, &OPTIONS)])?)?;
                ensure!(
                    found == expected,
                    "a request behind options to step {step} in {now}: {found:?}"
                );
                let mut packet = behind(of(now), PORT, &[(0, &OPTIONS)])?;
                packet[22..38].copy_from_slice(&of(step).octets());
                let expected =
                    if step.abs_diff(now) <= 1 { Verdict::Refused } else { Verdict::PassedBehind };
                let found = verdict(&program, &packet)?.1;
                ensure!(
                    found == expected,
                    "a request behind options from step {step} in {now}: {found:?}"
                );
                if hidden {
                    let expected = if step.abs_diff(now) <= 1 {
                        Verdict::NoRing
                    } else {
                        Verdict::DroppedHidden
                    };
                    let found = verdict(&program, &solicitation(group(of(step)), of(step))?)?;
                    ensure!(
                        found == (XDP_DROP, expected),
                        "a solicitation for step {step} in {now}: {found:?}"
                    );
                }
            }
            ensure!(program.census()? == 3, "{:?}", program.census()?);
        }
    }
    Ok(())
}

/// The program finds the addresses that user space wrote to their shared memory, and no others.
fn every_moving_address_is_found() -> Result<()> {
    const CLIENTS: u64 = 20_000;
    let (program, mut live) = moving(false, CLIENTS)?;
    let of = |step: u64| -> Vec<_> {
        (0..CLIENTS)
            .map(|client| {
                Ipv6Addr::from_bits(LIVE.to_bits() + u128::from(step << 40 | client << 16))
            })
            .collect()
    };
    for step in 1..=9 {
        live.enter(&of(step), step)?;
    }
    live.set_step(7);
    ensure!(program.census()? == 3 * CLIENTS, "{}", program.census()?);
    for step in 1..=9 {
        let expected =
            if (6..=8).contains(&step) { Verdict::NoRing } else { Verdict::PassedNotLive };
        for address in of(step).iter().step_by(7) {
            let found = verdict(&program, &udp(*address, PORT)?)?.1;
            ensure!(found == expected, "{address} of step {step}: {found:?}");
        }
    }
    // Full buckets work too: more addresses than there is room for.
    let (mut program, mut live) = moving(false, 1)?;
    let many: Vec<_> = of(7).into_iter().take(200).collect();
    live.set_step(7);
    ensure!(live.enter(&many, 7).is_err_and(|error| error.to_string().contains("no space")));
    let full = many.iter().take(112);
    for (address, expected) in
        full.zip([Verdict::NoRing; 112]).chain([(&many[112], Verdict::PassedNotLive)])
    {
        ensure!(verdict(&program, &udp(*address, PORT)?)?.1 == expected, "{address}");
    }
    // Others of their subnet's are nobody's, and neither are theirs in another.
    ensure!(live.enter(&[STRANGER], 7).is_err_and(|error| error.to_string().contains("not under")));
    program.add_prefix("2001:db8::/32".parse()?)?;
    let elsewhere = Ipv6Addr::from_bits(many[0].to_bits() ^ 1 << 64);
    ensure!(verdict(&program, &udp(elsewhere, PORT)?)?.1 == Verdict::PassedNotLive);
    Ok(())
}

/// The solicited-node multicast group of `address` (RFC 4291 section 2.7.1).
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
        ("a fragment", next_header(44), (XDP_PASS, Verdict::PassedBehind)),
        ("who has a live address", solicitation(group(LIVE), LIVE)?, no_ring),
        ("is the live address still there", solicitation(LIVE, LIVE)?, no_ring),
        ("who has an address that is not live", solicitation(group(NOT_LIVE), NOT_LIVE)?, hidden),
        ("is an address still there that never was", solicitation(NOT_LIVE, NOT_LIVE)?, hidden),
        ("who has the kernel's address", solicitation(group(KERNEL), KERNEL)?, kernel),
        ("is the kernel's address still there", solicitation(KERNEL, KERNEL)?, kernel),
        ("who has a stranger's address", solicitation(group(STRANGER), STRANGER)?, prefix),
        (
            "a live address asked for at another live address's place",
            solicitation(KERNEL, LIVE)?,
            kernel,
        ),
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

/// A packet with these extension headers before its UDP header, each with its protocol number.
fn behind(to: Ipv6Addr, port: u16, headers: &[(u8, &[u8])]) -> Result<Vec<u8>> {
    let plain = udp(to, port)?;
    let mut packet = plain[..54].to_vec();
    packet[20] = headers.first().map_or(17, |(number, _)| *number);
    for (index, (_, header)) in headers.iter().enumerate() {
        packet.push(headers.get(index + 1).map_or(17, |(number, _)| *number));
        packet.extend(&header[1..]);
    }
    packet.extend(&plain[54..]);
    let length = (packet.len() - 54) as u16;
    packet[18..20].copy_from_slice(&length.to_be_bytes());
    Ok(packet)
}

const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];
const LONG_OPTIONS: [u8; 16] = [0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ROUTED: [u8; 8] = [0, 0, 2, 0, 0, 0, 0, 0];
const NOT_ROUTED_YET: [u8; 8] = [0, 0, 2, 1, 0, 0, 0, 0];
const FIRST: [u8; 8] = [0, 0, 0, 1, 0, 0, 0, 9];
const LATER: [u8; 8] = [0, 0, 0, 8, 0, 0, 0, 9];
const WHOLE: [u8; 8] = [0, 0, 0, 0, 0, 0, 0, 9];

fn only_what_a_socket_answers_goes_behind() -> Result<()> {
    const KERNEL: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
    let ours: [&[(u8, &[u8])]; 9] = [
        &[(0, &OPTIONS)],
        &[(0, &LONG_OPTIONS), (60, &OPTIONS)],
        &[(43, &ROUTED)],
        &[(60, &LONG_OPTIONS)],
        &[(44, &FIRST)],
        &[(44, &LATER)],
        &[(44, &WHOLE)],
        &[(0, &OPTIONS), (60, &OPTIONS), (43, &ROUTED), (44, &FIRST), (60, &LONG_OPTIONS)],
        &[
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
        ],
    ];
    let not_ours: [&[(u8, &[u8])]; 4] = [
        &[(60, &OPTIONS), (0, &OPTIONS)],
        &[(43, &NOT_ROUTED_YET)],
        &[(60, &OPTIONS), (51, &OPTIONS)],
        &[
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
            (60, &OPTIONS),
        ],
    ];
    for hidden in [false, true] {
        let (program, _live) = program(&ProgramConfig { hidden, ..CONFIG })?;
        program.set_kernel_addresses(&[KERNEL])?;
        let silent = if hidden {
            (XDP_DROP, Verdict::DroppedHidden)
        } else {
            (XDP_PASS, Verdict::PassedOther)
        };
        let not_live = if hidden { silent } else { (XDP_PASS, Verdict::PassedNotLive) };
        let stranger = (XDP_DROP, Verdict::Refused);
        let tcp = |mut packet: Vec<u8>, at: usize| {
            packet[at] = 6;
            packet
        };
        let check = |packet: &[u8], expected| {
            let found = verdict(&program, packet)?;
            ensure!(found == expected, "hidden {hidden}: {found:?}, not {expected:?}: {packet:x?}");
            anyhow::Ok(())
        };
        for headers in ours {
            check(&behind(LIVE, PORT, headers)?, (XDP_PASS, Verdict::PassedBehind))?;
            check(&behind(NOT_LIVE, PORT, headers)?, not_live)?;
            check(&behind(STRANGER, PORT, headers)?, (XDP_PASS, Verdict::PassedPrefix))?;
            let kernel =
                (XDP_PASS, if hidden { Verdict::PassedKernel } else { Verdict::PassedNotLive });
            check(&behind(KERNEL, PORT, headers)?, kernel)?;
            let mut from_stranger = behind(LIVE, PORT, headers)?;
            from_stranger[22..38].copy_from_slice(&STRANGER.octets());
            let may_be_other = !hidden && *headers == [(44, &LATER[..])];
            check(
                &from_stranger,
                if may_be_other { (XDP_PASS, Verdict::PassedBehind) } else { stranger },
            )?;
            if *headers != [(44, &LATER[..])] {
                check(&behind(LIVE, PORT + 1, headers)?, silent)?;
            }
        }
        for headers in not_ours {
            check(&behind(LIVE, PORT, headers)?, silent)?;
        }
        // Behind extension headers, TCP and pings get no answer.
        check(&tcp(behind(LIVE, PORT, &[(0, &OPTIONS)])?, 54), silent)?;
        check(&tcp(behind(LIVE, PORT, &[(44, &WHOLE)])?, 54), silent)?;
        check(&tcp(behind(LIVE, PORT, &[(0, &OPTIONS), (60, &OPTIONS)])?, 62), silent)?;
        // A packet cut short gets none either, wherever it ends.
        let whole = behind(LIVE, PORT, &[(0, &OPTIONS), (44, &FIRST)])?;
        (54..whole.len() - 32).try_for_each(|length| check(&whole[..length], silent))?;
        // A priority tag does not matter. A VLAN tag belongs to another interface.
        for (tags, expected) in [
            (&[(0x8100u16, 0xa000u16)][..], (XDP_PASS, Verdict::PassedBehind)),
            (&[(0x88a8, 0), (0x8100, 0)], (XDP_PASS, Verdict::PassedBehind)),
            (&[(0x8100, 5)], (XDP_PASS, Verdict::PassedOther)),
            (&[(0x88a8, 5), (0x8100, 6)], (XDP_PASS, Verdict::PassedOther)),
            (&[(0x8100, 0), (0x8100, 6)], (XDP_PASS, Verdict::PassedOther)),
            (&[(0x8100, 0), (0x8100, 0), (0x8100, 0), (0x8100, 0)], silent),
        ] {
            check(&tag(&udp(LIVE, PORT)?, tags), expected)?;
            check(&tag(&behind(LIVE, PORT, &[(44, &FIRST)])?, tags), expected)?;
        }
        check(&tag(&udp(LIVE, PORT + 1)?, &[(0x8100, 0)]), silent)?;
    }
    Ok(())
}

/// Inserts VLAN tags, each with its EtherType and control information.
fn tag(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (kind, control) in tags {
        tagged.extend(kind.to_be_bytes());
        tagged.extend(control.to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// A source over its limit gets no reply; other sources do.
fn a_source_has_its_limit() -> Result<()> {
    let screen = Screen { station: STATION, allow_list: false, limit: Some(50) };
    let (program, _live) = program(&ProgramConfig { screen: Some(screen), ..CONFIG })?;
    let ask = |packet: &[u8], times: usize| -> Result<usize> {
        let before = program.verdicts()?.refusals()?[Refusal::SourceOverLimit as usize];
        for _ in 0..times {
            program.test_run(packet)?;
        }
        Ok((program.verdicts()?.refusals()?[Refusal::SourceOverLimit as usize] - before) as usize)
    };
    let plain = udp(LIVE, PORT)?;
    let mut other = plain.clone();
    other[37] ^= 0x80;
    let started = std::time::Instant::now();
    // The burst is a tenth of a second's worth, then one request in 20 ms, in any form.
    let refused = ask(&plain, 100)? + ask(&behind(LIVE, PORT, &[(0, &OPTIONS)])?, 100)?;
    let most = 5 + started.elapsed().as_millis() as usize / 20 + 1;
    ensure!(
        (200 - most..=195).contains(&refused),
        "{refused} of 200 were refused, {most} may have been answered"
    );
    ensure!(ask(&other, 5)? == 0, "another source was limited too");
    // Requests to addresses that are not live do not count towards the limit.
    other[36] ^= 0x80;
    let to_nobody = [&other[..53], &[0x11], &other[54..]].concat();
    ensure!(ask(&to_nobody, 100)? == 0 && ask(&other, 5)? == 0);
    Ok(())
}

fn without_a_port_no_request_is_steered() -> Result<()> {
    for hidden in [false, true] {
        let (program, _live) = program(&ProgramConfig { port: 0, hidden, ..CONFIG })?;
        let expected = if hidden {
            (XDP_DROP, Verdict::DroppedHidden)
        } else {
            (XDP_PASS, Verdict::PassedPort)
        };
        for port in [0, PORT] {
            ensure!(verdict(&program, &udp(LIVE, port)?)? == expected);
        }
    }
    Ok(())
}

/// A program that answers by itself, and the handler that defines what it should do.
struct Reflection {
    program: Program,
    _live: LiveAddresses,
    counters: VerdictSource,
    pool: Pool,
    handler: Handler,
}

/// What the program does with a packet.
#[derive(Debug, PartialEq)]
enum Fate {
    Passed,
    Refused(Refusal),
    /// The length of the reply.
    Answered(usize),
}

impl Reflection {
    const OWN: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
    /// Outside the prefix.
    const OWN_ELSEWHERE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    fn load() -> Result<Self> {
        let pool = Pool::new("2001:db8:1::/64".parse()?, 10, 1)?;
        let own = vec![Self::OWN, Self::OWN_ELSEWHERE];
        // A test run sends nothing, so the interface does not matter.
        let reflect = Some(Reflect { replies: 10, interface: 1 });
        let mut program = Program::load(&ProgramConfig { reflect, ..CONFIG })?;
        program.add_prefix(pool.prefix())?;
        allowed().prefixes().iter().try_for_each(|prefix| program.allow(*prefix))?;
        program.set_kernel_addresses(&own)?;
        let mut live = program.live_addresses()?;
        live.add(&pool.to_vec(1)).map_err(|(_, error)| error)?;
        let counters = program.verdicts()?;
        let handler = Handler::new(PORT, pool.clone(), own).only_for(allowed());
        Ok(Self { program, _live: live, counters, pool, handler })
    }

    /// The expected fate; writes the reply to `packet`. The steering rules are simple, and the
    /// handler decides the rest.
    fn expected(&self, packet: &mut [u8]) -> Fate {
        let is_steered = packet.len() >= OVERHEAD
            && packet[12..14] == [0x86, 0xdd]
            && packet[20] == 17
            && packet[56..58] == PORT.to_be_bytes();
        if !is_steered {
            return Fate::Passed;
        }
        let address = |at| {
            packet[at..].first_chunk::<16>().map_or(Ipv6Addr::UNSPECIFIED, |bytes| (*bytes).into())
        };
        let (source, destination) = (address(22), address(38));
        let port = u16::from_be_bytes([packet[54], packet[55]]);
        let is_live = self.pool.contains(destination);
        if packet[..6] != STATION || (packet[58..60] == [0, 0] && !destination.is_multicast()) {
            // The kernel gets it, except from a source that may not ask: then it must not cost the
            // kernel work.
            let is_ours = (packet[..6] == STATION || packet[0] & 1 == 1) && packet[14] >> 4 == 6;
            let is_stranger = is_ours && is_live && !self.handler.sources().contains(source);
            return if is_stranger {
                Fate::Refused(Refusal::SourceNotAllowed)
            } else {
                Fate::Passed
            };
        }
        if destination.is_multicast() {
            return Fate::Refused(Refusal::DestinationMulticast);
        }
        if destination.segments()[..4] != CLIENT.segments()[..4] {
            return Fate::Passed;
        }
        if let Err(refusal) = self.handler.screen(source, port) {
            return Fate::Refused(refusal);
        }
        if !is_live {
            return Fate::Passed;
        }
        self.handler.answer(packet).map_or_else(Fate::Refused, Fate::Answered)
    }

    /// Runs the program on `packet` and checks what it does. Returns the fate.
    fn check(&self, packet: &[u8]) -> Result<Fate> {
        let mut wanted = packet.to_vec();
        let fate = self.expected(&mut wanted);
        let (refusals, verdicts) = (self.counters.refusals()?, self.counters.read()?);
        let (action, after) = self.program.test_run(packet)?;
        let refused: Vec<_> = Refusal::ALL
            .into_iter()
            .zip(self.counters.refusals()?.iter().zip(refusals))
            .flat_map(|(refusal, (now, before))| vec![refusal; (now - before) as usize])
            .collect();
        let counted: Vec<_> = Verdict::ALL
            .into_iter()
            .zip(self.counters.read()?.iter().zip(verdicts))
            .flat_map(|(verdict, (now, before))| vec![verdict; (now - before) as usize])
            .collect();
        let agrees = match fate {
            Fate::Passed => {
                action == XDP_PASS
                    && counted != [Verdict::Refused]
                    && counted != [Verdict::Reflected]
            }
            Fate::Refused(refusal) => {
                action == XDP_DROP && counted == [Verdict::Refused] && refused == [refusal]
            }
            Fate::Answered(length) => {
                wanted.truncate(length);
                action == XDP_REDIRECT && counted == [Verdict::Reflected]
            }
        };
        let refused_right = matches!(fate, Fate::Refused(_)) || refused.is_empty();
        ensure!(
            agrees && counted.len() == 1 && refused_right && after == wanted,
            "{fate:?}, but action {action}, {counted:?}, {refused:?}\nof   {packet:x?}\nmade \
             {after:x?}\nnot  {wanted:x?}"
        );
        Ok(fate)
    }
}

/// A request to generate: its addresses, ports and payload.
#[derive(Debug, Clone)]
struct Question {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    ports: (u16, u16),
    payload: Vec<u8>,
    padding: usize,
}

impl Question {
    fn right(to: Ipv6Addr) -> Self {
        Self {
            source: CLIENT,
            destination: to,
            ports: (50_000, PORT),
            payload: vec![7; 33],
            padding: 0,
        }
    }

    fn packet(&self) -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv6(self.source.octets(), self.destination.octets(), 33)
            .udp(self.ports.0, self.ports.1)
            .write(&mut packet, &self.payload)
            .expect("a vector grows");
        packet[15] = 0x5a; // some of traffic class and flow label
        packet.resize(packet.len() + self.padding, 0xee);
        packet
    }
}

/// Recomputes the checksum, if the lengths make sense.
fn repair(packet: &mut [u8]) {
    let Some(length) = packet.get(58..60).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    else {
        return;
    };
    packet[60..62].fill(0);
    let Some(datagram) = packet.get(54..54 + usize::from(length)) else {
        return;
    };
    let words = packet[22..54].chunks(2).chain(datagram.chunks(2));
    let sum = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0)))
        .sum::<u64>();
    let sum = sum + u64::from(length) + 17;
    let folded = (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
    let checksum = if folded == 0xffff { 0xffff } else { !folded as u16 };
    packet[60..62].copy_from_slice(&checksum.to_be_bytes());
}

fn refuses_by_the_same_rules() -> Result<()> {
    let reflection = Reflection::load()?;
    let live = reflection.pool.address(3);
    let right = Question::right(live);
    let damaged = |change: fn(&mut Vec<u8>)| {
        let mut packet = right.packet();
        change(&mut packet);
        packet
    };
    let from = |source| Question { source, ..right.clone() }.packet();
    let port = |port| Question { ports: (port, PORT), ..right.clone() }.packet();
    let cases = [
        (right.packet(), Fate::Answered(95)),
        (Question { padding: 9, ..right.clone() }.packet(), Fate::Answered(95)),
        (Question { payload: vec![], padding: 4, ..right.clone() }.packet(), Fate::Answered(62)),
        (damaged(|p| p[..6].fill(0x33)), Fate::Passed),
        (damaged(|p| p[5] = 5), Fate::Passed),
        (Question::right(NOT_LIVE).packet(), Fate::Passed),
        (
            Question::right("ff02::1".parse()?).packet(),
            Fate::Refused(Refusal::DestinationMulticast),
        ),
        (Question { ports: (50_000, 53), ..right.clone() }.packet(), Fate::Passed),
        (damaged(|p| p[14] = 0x40), Fate::Refused(Refusal::NotUdp)),
        (damaged(|p| p.truncate(94)), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p.truncate(62)), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[19] += 1), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[19] = 7), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[18..20].fill(0)), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[59] += 1), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[59] = 7), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[58..60].fill(0xff)), Fate::Refused(Refusal::BadLength)),
        (damaged(|p| p[60..62].fill(0)), Fate::Refused(Refusal::NoChecksum)),
        (damaged(|p| p[61] ^= 1), Fate::Refused(Refusal::BadChecksum)),
        (damaged(|p| p[94] ^= 1), Fate::Refused(Refusal::BadChecksum)),
        (damaged(|p| leave_checksum_unfinished(p)), Fate::Refused(Refusal::UnfinishedChecksum)),
        (
            damaged(|p| {
                leave_checksum_unfinished(p);
                p[60] ^= 1;
            }),
            Fate::Refused(Refusal::BadChecksum),
        ),
        (from("ff02::1".parse()?), Fate::Refused(Refusal::SourceMulticast)),
        (from(Ipv6Addr::UNSPECIFIED), Fate::Refused(Refusal::SourceUnspecified)),
        (from(Ipv6Addr::LOCALHOST), Fate::Refused(Refusal::SourceLoopback)),
        (from("::ffff:192.0.2.1".parse()?), Fate::Refused(Refusal::SourceMapped)),
        (from(reflection.pool.address(4)), Fate::Refused(Refusal::SourceOwn)),
        (from(live), Fate::Refused(Refusal::SourceOwn)),
        (from(Reflection::OWN), Fate::Refused(Refusal::SourceOwn)),
        (from(Reflection::OWN_ELSEWHERE), Fate::Refused(Refusal::SourceOwn)),
        (from("2001:db8:2::1".parse()?), Fate::Refused(Refusal::SourceNotAllowed)),
        (from("fe80:0:0:1::1".parse()?), Fate::Refused(Refusal::SourceNotAllowed)),
        (from("::2".parse()?), Fate::Refused(Refusal::SourceNotAllowed)),
        (from("fe80::1".parse()?), Fate::Answered(95)),
        (port(PORT), Fate::Refused(Refusal::SourceServicePort)),
        (port(0), Fate::Refused(Refusal::SourcePortZero)),
    ];
    for (packet, expected) in cases {
        let fate = reflection.check(&packet)?;
        ensure!(fate == expected, "{fate:?}, not {expected:?}: {packet:x?}");
    }
    for length in 0..=MAX_PAYLOAD {
        let payload: Vec<_> = (0..length).map(|byte| (byte * 7919) as u8).collect();
        let fate = reflection.check(&Question { payload, ..right.clone() }.packet())?;
        ensure!(fate == Fate::Answered(OVERHEAD + length), "{length} bytes: {fate:?}");
    }
    // The kernel runs no program on less than an Ethernet header.
    let whole = right.packet();
    (14..whole.len()).try_for_each(|length| reflection.check(&whole[..length]).map(drop))
}

fn does_what_the_handler_does() -> Result<()> {
    /// Packets to try.
    const CASES: u32 = 20_000;
    /// The longest packet that fits into the page that a test run gets from the kernel.
    const LONGEST: usize = 3000;
    let reflection = Reflection::load()?;
    let pool = reflection.pool.clone();
    let live = (0..pool.count()).prop_map({
        let pool = pool.clone();
        move |index| pool.address(index)
    });
    let anybody = any::<u128>().prop_map(Ipv6Addr::from_bits);
    let special = [
        "::",
        "::1",
        "::2",
        "1::",
        "::ffff:192.0.2.1",
        "ff02::1",
        "fe80::2",
        "fe80::3",
        "2001:db8:1::2",
        "2001:db8:1::3",
        "2001:db8:2::1",
    ]
    .map(|text| text.parse::<Ipv6Addr>().expect("an address"));
    let source = prop_oneof![
        6 => Just(CLIENT),
        1 => live.clone(),
        1 => any::<u64>().prop_map(|host| {
            Ipv6Addr::from_bits(CLIENT.to_bits() >> 64 << 64 | u128::from(host))
        }),
        2 => proptest::sample::select(special.to_vec()),
        1 => anybody,
    ];
    let destination = prop_oneof![20 => live, 1 => Just(NOT_LIVE), 1 => Just(STRANGER)];
    let source_port = prop_oneof![8 => any::<u16>(), 1 => Just(PORT), 1 => Just(0)];
    let destination_port = prop_oneof![20 => Just(PORT), 1 => any::<u16>()];
    let payload = prop_oneof![
        4 => proptest::collection::vec(any::<u8>(), 0..80),
        1 => proptest::collection::vec(prop_oneof![Just(0), Just(0xff)], 0..80),
        2 => proptest::collection::vec(any::<u8>(), 0..LONGEST - 200),
    ];
    let padding = prop_oneof![2 => Just(0), 1 => 0usize..60];
    let question = (source, destination, (source_port, destination_port), payload, padding)
        .prop_map(|(source, destination, ports, payload, padding)| Question {
            source,
            destination,
            ports,
            payload,
            padding,
        });
    // Bytes to flip, more often in headers than in payloads. Lengths change slightly.
    let flips = proptest::collection::vec((prop_oneof![0..OVERHEAD, 0..LONGEST], 1u8..), 0..3);
    let lengths = prop_oneof![3 => Just((0, 0)), 1 => (-40i16..40, -40i16..40)];
    let cut = prop_oneof![5 => Just(LONGEST), 1 => 14..LONGEST];
    let case = (question, flips, lengths, cut, any::<bool>()).prop_map(
        |(question, flips, (ip, udp), cut, repaired)| {
            let mut packet = question.packet();
            for (place, change) in [(18, ip), (58, udp)] {
                let length = u16::from_be_bytes([packet[place], packet[place + 1]]);
                packet[place..place + 2]
                    .copy_from_slice(&length.wrapping_add_signed(change).to_be_bytes());
            }
            for (place, mask) in flips {
                if let Some(byte) = packet.get_mut(place) {
                    *byte ^= mask;
                }
            }
            if repaired {
                repair(&mut packet);
            }
            packet.truncate(cut);
            packet
        },
    );
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    let answered = std::cell::Cell::new(0);
    TestRunner::new(config).run(&case, |packet| {
        // Another test covers VLAN tags and extension headers.
        if packet[12..14] != [0x86, 0xdd]
            || packet.get(20).is_some_and(|next| [0, 43, 44, 60].contains(next))
        {
            return Ok(());
        }
        let fate =
            reflection.check(&packet).map_err(|error| TestCaseError::fail(error.to_string()))?;
        answered.set(answered.get() + u32::from(matches!(fate, Fate::Answered(_))));
        Ok(())
    })?;
    let answered = answered.get();
    ensure!(
        (CASES / 5..CASES * 4 / 5).contains(&answered),
        "{answered} of {CASES} got a reply: too few or too many to prove anything"
    );
    Ok(())
}

fn solicitations_are_still_steered() -> Result<()> {
    let reflect = Some(Reflect { replies: 1, interface: 1 });
    let (program, _live) = program(&ProgramConfig { hidden: true, reflect, ..CONFIG })?;
    ensure!(verdict(&program, &solicitation(group(LIVE), LIVE)?)? == (XDP_DROP, Verdict::NoRing));
    ensure!(
        verdict(&program, &solicitation(group(NOT_LIVE), NOT_LIVE)?)?
            == (XDP_DROP, Verdict::DroppedHidden)
    );
    ensure!(verdict(&program, &udp(NOT_LIVE, PORT)?)? == (XDP_DROP, Verdict::DroppedHidden));
    let (action, _reply) = program.test_run(&udp(LIVE, PORT)?)?;
    ensure!(
        action == XDP_REDIRECT && program.verdicts()?.read()?[Verdict::Reflected as usize] == 1
    );
    Ok(())
}

/// Whether a program that only steers refuses for this reason.
fn is_screened(refusal: Refusal) -> bool {
    matches!(
        refusal,
        Refusal::SourceServicePort
            | Refusal::SourcePortZero
            | Refusal::SourceMulticast
            | Refusal::SourceUnspecified
            | Refusal::SourceLoopback
            | Refusal::SourceMapped
            | Refusal::SourceNotAllowed
            | Refusal::DestinationMulticast
    )
}

/// Runs the fuzzers' seed corpus through the program that answers and the one that steers.
fn corpus_of_the_fuzzers() -> Result<()> {
    let reflection = Reflection::load()?;
    let mut steering = Program::load(&CONFIG)?;
    steering.add_prefix(reflection.pool.prefix())?;
    allowed().prefixes().iter().try_for_each(|prefix| steering.allow(*prefix))?;
    let mut live = steering.live_addresses()?;
    live.add(&reflection.pool.to_vec(1)).map_err(|(_, error)| error)?;
    let (mut frames, mut answered) = (0, 0);
    for target in ["request", "ndp"] {
        let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        for entry in std::fs::read_dir(room)? {
            let path = entry?.path();
            let frame = std::fs::read(&path)?;
            if frame.len() < 14 {
                continue; // the kernel runs no program for less than an Ethernet header
            }
            let fate = reflection.check(&frame).with_context(|| path.display().to_string())?;
            let (action, verdict) = verdict(&steering, &frame)?;
            // The queue has no socket. Packets that the worker would refuse are steered, as valid
            // requests are.
            let agrees = match fate {
                Fate::Passed => action == XDP_PASS && verdict != Verdict::NoRing,
                Fate::Refused(refusal) if is_screened(refusal) => {
                    (action, verdict) == (XDP_DROP, Verdict::Refused)
                }
                Fate::Refused(_) | Fate::Answered(_) => {
                    (action, verdict) == (XDP_PASS, Verdict::NoRing)
                }
            };
            ensure!(
                agrees,
                "{}: {fate:?}, but {verdict:?} from the steering program",
                path.display()
            );
            frames += 1;
            answered += u32::from(matches!(fate, Fate::Answered(_)));
        }
    }
    ensure!(
        frames > 50 && answered > 5,
        "{answered} of {frames} frames got a reply: too few to prove anything"
    );
    Ok(())
}
