//! Hostile packets. docs/packets.md states each kind's fate, and these tests check it. Every engine
//! gets the same frames. For socket engines the kernel's own stack decides, so they are the
//! reference for the others.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::packet::{PacketSocket, leave_checksum_unfinished, udp_frame};
use crate::common::server::{PREFIX, Server, about, engines, sixhop};
use crate::common::{TestLab, have_client_poll, link, trial};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sixhop::address::{Pool, Sources};
use sixhop::engine::EngineKind;
use sixhop::lab::Side;
use sixhop::wire::MAX_PAYLOAD;
use sixhop::xdp::{Program, ProgramConfig, Reflect, Screen};

const DOCUMENT: &str = include_str!("../docs/packets.md");

const PORT: u16 = 3540;
const ADDRESSES: u64 = 20;
const STRANGER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 1);

pub fn trials() -> Vec<Trial> {
    let differential = engines().map(|engine| {
        let name = format!("{engine}_does_with_each_packet_what_is_written").replace('-', "_");
        trial(&name, move || does_what_is_written(engine, "--bind netlink-down"))
    });
    let hidden = engines().filter(|engine| about(engine).steers).map(|engine| {
        let name = format!("{engine}_does_with_each_packet_what_is_written_in_live_map");
        trial(&name, move || does_what_is_written(engine, "--bind live-map"))
    });
    let others = vec![
        trial("the_program_does_with_each_packet_what_is_written", program_does_what_is_written),
        trial("two_servers_do_not_answer_each_other", two_servers_do_not_answer_each_other),
        trial("who_may_not_ask_is_not_answered", who_may_not_ask_is_not_answered),
        trial("the_counters_add_up_to_the_packet", the_counters_add_up),
        trial("a_flood_takes_no_answer_from_others", a_flood_takes_no_answer),
    ];
    differential.chain(hidden).chain(others).collect()
}

/// The addresses of both ends of the link.
struct Ends {
    client_mac: [u8; 6],
    server_mac: [u8; 6],
    pool: Pool,
    not_live: Ipv6Addr,
}

/// A kind of packet: its name in docs/packets.md, and its frames.
type Case = (&'static str, Vec<Vec<u8>>);

impl Ends {
    fn new(client_mac: [u8; 6], server_mac: [u8; 6]) -> Result<Self> {
        Ok(Self {
            client_mac,
            server_mac,
            pool: Pool::new(PREFIX.parse()?, ADDRESSES, 1)?,
            not_live: Pool::new(PREFIX.parse()?, ADDRESSES + 1, 1)?.address(ADDRESSES),
        })
    }

    fn of(lab: &TestLab) -> Result<Self> {
        Self::new(link(lab, Side::Client)?.mac, link(lab, Side::Server)?.mac)
    }

    fn udp(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Vec<u8> {
        let macs = [self.client_mac, self.server_mac];
        udp_frame(macs, source, destination, ports, payload)
    }

    /// A valid request from `port`, which identifies its reply.
    fn right(&self, port: u16) -> Vec<u8> {
        self.udp(Side::Client.address(), self.pool.address(7), (port, PORT), &[7; 32])
    }

    /// All kinds in docs/packets.md, each with a source port of its own, from 10,000 on.
    fn cases(&self) -> Vec<Case> {
        let (client, live) = (Side::Client.address(), self.pool.address(7));
        let mut cases: Vec<Case> = Vec::new();
        let mut add = |name, make: &dyn Fn(u16) -> Vec<Vec<u8>>| {
            let port = 10_000 + cases.len() as u16;
            cases.push((name, make(port)));
        };
        let changed = |port, change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = self.right(port);
            change(&mut frame);
            vec![frame]
        };
        let payload = |port, payload: &[u8]| vec![self.udp(client, live, (port, PORT), payload)];
        let from = |port, source| vec![self.udp(source, live, (port, PORT), &[7; 32])];
        let to = |port, destination| vec![self.udp(client, destination, (port, PORT), &[7; 32])];

        add("a request of 32 bytes", &|port| vec![self.right(port)]);
        add("an empty payload", &|port| payload(port, &[]));
        add("as large as the MTU", &|port| payload(port, &[9; MAX_PAYLOAD]));
        add("a checksum of 0, sent as ffff", &|port| {
            let mut frame = self.udp(client, live, (port, PORT), &[0; 32]);
            let sum = [frame[60], frame[61]];
            frame[62..64].copy_from_slice(&sum);
            frame[60..62].fill(0xff);
            vec![frame]
        });
        add("padding after the packet", &|port| changed(port, &|frame| frame.resize(150, 0xee)));
        add("bytes between the end of the datagram and that of the packet", &|port| {
            changed(port, &|frame| {
                frame.resize(frame.len() + 9, 0xee);
                frame[19] += 9;
            })
        });
        add("hop limit 0", &|port| changed(port, &|frame| frame[21] = 0));
        let cut = |port, lengths: std::ops::Range<usize>| -> Vec<_> {
            lengths.map(|length| self.right(port)[..length].to_vec()).collect()
        };
        add("cut off in the Ethernet or IPv6 header, at each byte", &|port| cut(port, 14..54));
        add("cut off in the UDP header, at each byte", &|port| cut(port, 54..62));
        add("cut off in the payload, at each byte", &|port| cut(port, 62..94));
        add("IPv6 version 4", &|port| changed(port, &|frame| frame[14] = 0x40));
        add("IPv6 payload length beyond the frame", &|port| changed(port, &|frame| frame[19] += 1));
        add("IPv6 payload length 0", &|port| changed(port, &|frame| frame[19] = 0));
        add("IPv6 payload length too small for a UDP header", &|port| {
            changed(port, &|frame| frame[19] = 7)
        });
        add("UDP length beyond the packet", &|port| changed(port, &|frame| frame[59] += 1));
        add("UDP length from 1 to 7", &|port| {
            (1..8).flat_map(|length| changed(port, &|frame| frame[59] = length)).collect()
        });
        // The pseudo-header contains the length too.
        add("UDP length 0, the checksum as for the whole packet", &|port| {
            changed(port, &|frame| {
                frame[59] = 0;
                sum_again(frame, 40);
            })
        });
        add("UDP length 0, the checksum as for length 0", &|port| {
            changed(port, &|frame| {
                frame[59] = 0;
                sum_again(frame, 0);
            })
        });
        add("checksum 0", &|port| changed(port, &|frame| frame[60..62].fill(0)));
        add("wrong checksum", &|port| changed(port, &|frame| frame[61] ^= 1));
        add("an unfinished checksum, that of the pseudo-header alone", &|port| {
            changed(port, &|frame| leave_checksum_unfinished(frame))
        });
        add("one bit of the payload flipped", &|port| changed(port, &|frame| frame[93] ^= 0x80));

        let behind = |port, headers: &[(u8, &[u8])]| vec![behind(&self.right(port), headers)];
        add("hop-by-hop options", &|port| behind(port, &[(0, PADDING)]));
        add("destination options", &|port| behind(port, &[(60, PADDING)]));
        add("a routing header without segments left", &|port| {
            behind(port, &[(43, &[0, 0, 0, 0, 0, 0, 0, 0])])
        });
        add("a routing header with a segment left", &|port| {
            let mut header = vec![0, 2, 0, 1, 0, 0, 0, 0];
            header.extend(live.octets());
            behind(port, &[(43, &header)])
        });
        add("an unknown option to skip", &|port| {
            behind(port, &[(60, &[0, 0, 0x1e, 4, 1, 2, 3, 4])])
        });
        add("an unknown option that must not be skipped", &|port| {
            behind(port, &[(60, &[0, 0, 0x5e, 4, 1, 2, 3, 4])])
        });
        add("four extension headers", &|port| {
            behind(port, &[(0, PADDING), (60, PADDING), (43, &[0; 8]), (60, PADDING)])
        });
        add("eight extension headers", &|port| behind(port, &[(60, PADDING); 8]));
        add("hop-by-hop options that are not first", &|port| {
            behind(port, &[(60, PADDING), (0, PADDING)])
        });
        add("an extension header longer than the packet", &|port| {
            behind(port, &[(60, &[0, 20, 1, 4, 0, 0, 0, 0])])
        });
        add("no next header", &|port| changed(port, &|frame| frame[20] = 59));

        let whole = |port| self.right(port);
        add("a fragment that is the whole packet", &|port| {
            fragments(&whole(port), port, std::slice::from_ref(&(0..40)))
        });
        add("two fragments", &|port| fragments(&whole(port), port, &[0..24, 24..40]));
        add("two fragments, the last first", &|port| {
            fragments(&whole(port), port, &[24..40, 0..24])
        });
        add("two fragments behind destination options", &|port| {
            let packets = fragments(&whole(port), port, &[0..24, 24..40]);
            packets.iter().map(|packet| self::behind(packet, &[(60, PADDING)])).collect()
        });
        add("two fragments of a packet larger than the MTU", &|port| {
            fragments(&payload(port, &[8; 2000])[0], port, &[0..1008, 1008..2008])
        });
        add("a first fragment alone", &|port| {
            fragments(&whole(port), port, &[0..24, 24..40])[..1].to_vec()
        });
        add("a first fragment without its UDP header", &|port| {
            let mut packets = fragments(&behind(port, &[(60, PADDING)])[0], port, &[0..8, 8..48]);
            packets.truncate(1);
            packets
        });
        add("a last fragment alone", &|port| {
            fragments(&whole(port), port, &[0..24, 24..40])[1..].to_vec()
        });
        add("fragments that overlap", &|port| fragments(&whole(port), port, &[0..24, 16..40]));
        add("the jumbo payload option", &|port| {
            let mut packets = behind(port, &[(0, &[0, 0, 0xc2, 4, 0, 0, 0, 48])]);
            packets[0][18..20].fill(0);
            packets
        });

        let tagged = |port, tags: &[(u16, u16)]| vec![tag(&self.right(port), tags)];
        add("a tag of VLAN 5", &|port| tagged(port, &[(0x8100, 5)]));
        add("tags of VLANs 5 and 6 (QinQ)", &|port| tagged(port, &[(0x88a8, 5), (0x8100, 6)]));
        add("a tag of VLAN 0 (a priority tag)", &|port| tagged(port, &[(0x8100, 0xa000)]));
        add("a tag of VLAN 0 before a tag of VLAN 5", &|port| {
            tagged(port, &[(0x8100, 0), (0x8100, 5)])
        });
        add("a request in a broadcast frame", &|port| {
            changed(port, &|frame| frame[..6].fill(0xff))
        });
        add("a request in a frame for another station", &|port| {
            changed(port, &|frame| frame[5] ^= 1)
        });

        add("to another port", &|port| vec![self.udp(client, live, (port, PORT + 1), &[7; 32])]);
        add("to an address under the prefix that is not live", &|port| to(port, self.not_live));
        add("to an address of the server outside the service", &|port| {
            to(port, Side::Server.address())
        });
        add("to a multicast address", &|port| to(port, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)));
        add("from the service port", &|_| vec![self.right(PORT)]);
        add("from port 0", &|_| vec![self.right(0)]);
        add("from a multicast address", &|port| {
            from(port, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1))
        });
        add("from `::`", &|port| from(port, Ipv6Addr::UNSPECIFIED));
        add("from `::1`", &|port| from(port, Ipv6Addr::LOCALHOST));
        add("from `::ffff:192.0.2.1`, a mapped IPv4 address", &|port| {
            from(port, Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201))
        });
        add("from a live address", &|port| from(port, self.pool.address(8)));
        add("from an address of the server", &|port| from(port, Side::Server.address()));
        add("from an address that may not ask", &|port| from(port, STRANGER));
        add("from an address that may not ask, behind hop-by-hop options", &|port| {
            vec![self::behind(&from(port, STRANGER)[0], &[(0, PADDING)])]
        });
        cases
    }
}

/// Options of padding only.
const PADDING: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];

/// Inserts extension headers, each with its protocol number, after the packet's IPv6 header.
fn behind(packet: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut longer = packet[..54].to_vec();
    let next = |index| headers.get(index).map_or(packet[20], |(number, _)| *number);
    longer[20] = next(0);
    for (index, (_, header)) in headers.iter().enumerate() {
        longer.push(next(index + 1));
        longer.extend(&header[1..]);
    }
    longer.extend(&packet[54..]);
    let length = (longer.len() - 54) as u16;
    longer[18..20].copy_from_slice(&length.to_be_bytes());
    longer
}

/// Splits the packet's payload into these parts as fragments. The part that reaches the end is the
/// last fragment.
fn fragments(packet: &[u8], number: u16, parts: &[std::ops::Range<usize>]) -> Vec<Vec<u8>> {
    let carried = &packet[54..];
    let fragment = |part: &std::ops::Range<usize>| {
        let more = part.end < carried.len();
        let place = (part.start as u16 | u16::from(more)).to_be_bytes();
        let [high, low] = number.to_be_bytes();
        let mut short = packet[..54].to_vec();
        short.extend(&carried[part.clone()]);
        behind(&short, &[(44, &[0, 0, place[0], place[1], 0, 0, high, low])])
    };
    parts.iter().map(fragment).collect()
}

/// Inserts VLAN tags, each with its EtherType and control information.
fn tag(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags
        .iter()
        .flat_map(|(kind, control)| [kind.to_be_bytes(), control.to_be_bytes()].concat());
    frame[..12].iter().copied().chain(tags).chain(frame[12..].iter().copied()).collect()
}

/// Recomputes the checksum as for a datagram of `length` bytes.
fn sum_again(frame: &mut [u8], length: u64) {
    frame[60..62].fill(0);
    let words = frame[22..].chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word[1]));
    let sum = words.sum::<u64>() + length + 17;
    let folded = (0..4).fold(sum, |sum, _| (sum & 0xffff) + (sum >> 16));
    frame[60..62].copy_from_slice(&(!(folded as u16)).to_be_bytes());
}

/// The table in docs/packets.md: what the program does, what it does with live-map, and whether
/// there is a reply.
fn written() -> Result<BTreeMap<&'static str, [&'static str; 3]>> {
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    let mut table = BTreeMap::new();
    // Skip the column headings.
    for row in rows.skip(1) {
        let cells: Vec<_> = row.split(" | ").collect();
        let &[name, plain, hidden, answer] = &cells[..] else { bail!("not four columns: {row}") };
        ensure!(
            table.insert(name, [plain, hidden, answer]).is_none(),
            "{name} is in docs/packets.md twice"
        );
    }
    Ok(table)
}

/// All cases with their table rows. Fails unless the code and the table have the same cases.
fn cases(ends: &Ends) -> Result<Vec<(Case, [&'static str; 3])>> {
    let mut table = written()?;
    let with_its_row = |case: Case| {
        let row = table
            .remove(case.0)
            .with_context(|| format!("'{}' is not in docs/packets.md", case.0))?;
        Ok((case, row))
    };
    let cases: Vec<_> = ends.cases().into_iter().map(with_its_row).collect::<Result<_>>()?;
    ensure!(table.is_empty(), "no test for: {:?}", table.keys());
    Ok(cases)
}

fn program_does_what_is_written() -> Result<()> {
    let ends = Ends::new([2; 6], [4; 6])?;
    for (hidden, column) in [(false, 0), (true, 1)] {
        let mut program = Program::load(&ProgramConfig {
            port: PORT,
            addresses: ADDRESSES as u32,
            queues: 1,
            hidden,
            moving: None,
            reflect: Some(Reflect { replies: 1, interface: 1 }),
            screen: Some(Screen { station: ends.server_mac, allow_list: true, limit: None }),
        })?;
        program.add_prefix(PREFIX.parse()?)?;
        program.allow(Sources::parse(PREFIX)?)?;
        program.set_kernel_addresses(&[Side::Server.address()])?;
        program.live_addresses()?.add(&ends.pool.to_vec(1)).map_err(|(_, error)| error)?;
        for ((name, frames), row) in cases(&ends)? {
            for frame in frames {
                let done = match program.test_run(&frame)?.0 {
                    1 => "dropped",
                    2 => "kernel",
                    4 => "answered",
                    other => bail!("{name}: action {other}"),
                };
                ensure!(
                    done == row[column],
                    "{name}, hidden {hidden}: {done}, not {}: {frame:x?}",
                    row[column]
                );
            }
        }
    }
    Ok(())
}

/// The client ports that got replies from the service.
fn answered(frames: &[Vec<u8>]) -> impl Iterator<Item = u16> {
    let replies = frames.iter().filter(|frame| {
        frame.len() >= 62
            && frame[12..14] == [0x86, 0xdd]
            && frame[20] == 17
            && frame[54..56] == PORT.to_be_bytes()
    });
    replies.map(|frame| u16::from_be_bytes([frame[56], frame[57]]))
}

/// Ports of two requests, one for the ring and one for the socket behind the program. The link and
/// each socket keep order, so their replies come after all others.
const SENTINELS: [u16; 2] = [9998, 9999];

fn sentinels(ends: &Ends) -> [Vec<u8>; 2] {
    [ends.right(SENTINELS[0]), behind(&ends.right(SENTINELS[1]), &[(0, PADDING)])]
}

/// Sends the frames, then the sentinels, and returns the client port of each reply.
fn exchange(capture: &PacketSocket, ends: &Ends, frames: &[Vec<u8>]) -> Result<Vec<u16>> {
    frames.iter().try_for_each(|frame| capture.send(frame))?;
    sentinels(ends).iter().try_for_each(|frame| capture.send(frame))?;
    let mut ports = Vec::new();
    while !SENTINELS.iter().all(|sentinel| ports.contains(sentinel)) {
        ports.extend(answered(&capture.receive()?));
    }
    Ok(ports)
}

fn does_what_is_written(engine: &str, flags: &str) -> Result<()> {
    let lab = TestLab::up()?;
    let _polling = have_client_poll(&lab)?;
    let ends = Ends::of(&lab)?;
    let flags = format!("--addresses {ADDRESSES} --engine {engine} --replies 1 --cores 0 {flags}");
    let server = Server::start(&lab, &flags)?;
    let capture = PacketSocket::at(&lab, Side::Client)?;
    // An exchange of sentinels first, so both kernels have resolved each other.
    exchange(&capture, &ends, &[])?;
    for (position, ((name, frames), row)) in cases(&ends)?.into_iter().enumerate() {
        let is_exception = row[2].strip_prefix("yes, but for ").is_some_and(|engines| {
            engines.split(" and ").any(|one| engine.starts_with(one) || flags.contains(one))
        });
        let expected = usize::from(row[2].starts_with("yes") && !is_exception);
        ensure!(row[2] == "no" || row[2].starts_with("yes"), "{name}: {}", row[2]);
        let ports = exchange(&capture, &ends, &frames)?;
        let port = 10_000 + position as u16;
        let count = ports.iter().filter(|found| **found == port).count();
        let others =
            ports.iter().filter(|found| **found != port && !SENTINELS.contains(found)).count();
        ensure!(
            count == expected && others == 0,
            "{name}: {count} replies, not {expected}; {others} to others"
        );
    }
    server.stop()?;
    Ok(())
}

/// A second server runs on the client's side, with addresses of its own. A forged request must not
/// make the two answer each other.
fn two_servers_do_not_answer_each_other() -> Result<()> {
    for engine in ["afxdp", "reflect", "socket-gso"] {
        let lab = TestLab::up()?;
        let ends = Ends::of(&lab)?;
        let flags = format!("--prefix {PREFIX} --addresses {ADDRESSES} --engine {engine}");
        let there = Server::start_in(&lab, Side::Server, "server0", &flags)?;
        let here = Server::start_in(&lab, Side::Client, "client0", &format!("{flags} --seed 2"))?;
        let others = Pool::new(PREFIX.parse()?, ADDRESSES, 2)?;
        let capture = PacketSocket::at(&lab, Side::Client)?;
        let mut forged = Vec::new();
        for number in 0..ADDRESSES {
            let (from, to) = (others.address(number), ends.pool.address(number));
            let plain = ends.udp(from, to, (PORT, PORT), &[7; 32]);
            forged.extend([behind(&plain, &[(0, PADDING)]), plain]);
        }
        forged.iter().try_for_each(|frame| capture.send(frame))?;
        // Sentinels for each path: once they are answered, everything before has been handled.
        let mut replies = exchange(&capture, &ends, &[])?;
        replies.extend(answered(&capture.drain()?));
        ensure!(
            replies.iter().all(|port| SENTINELS.contains(port)),
            "{engine}: a storm: {replies:?}"
        );
        let (here, there) = (here.stop()?, there.stop()?);
        ensure!(here["answered"] == 0 && there["answered"] == 2, "{engine}: {here} {there}");
        ensure!(there["refused"]["source_service_port"] == 2 * ADDRESSES, "{engine}: {there}");
    }
    Ok(())
}

fn who_may_not_ask_is_not_answered() -> Result<()> {
    let ways = engines().map(|engine| (engine, "")).chain([("afxdp", "--bind live-map")]);
    for (engine, more) in ways {
        let lab = TestLab::up()?;
        let _polling = have_client_poll(&lab)?;
        let ends = Ends::of(&lab)?;
        // The other tests have the default; here `--allow` names other prefixes.
        let allowed = format!("{}/128,2001:db8:7::/48", Side::Client.address());
        let flags = format!("--addresses {ADDRESSES} --engine {engine} --allow {allowed} {more}");
        let server = Server::start(&lab, &flags)?;
        ensure!(
            server.ready["allowed"] == serde_json::json!(allowed.split(',').collect::<Vec<_>>())
        );
        let capture = PacketSocket::at(&lab, Side::Client)?;
        let forged = |source| ends.udp(source, ends.pool.address(1), (50_000, PORT), &[7; 32]);
        let neighbour = "2001:db8:1::99".parse()?;
        let frames =
            [forged(STRANGER), forged(neighbour), behind(&forged(STRANGER), &[(60, PADDING)])];
        let mut ports = exchange(&capture, &ends, &frames)?;
        ports.extend(answered(&capture.drain()?));
        ensure!(ports.iter().all(|port| SENTINELS.contains(port)), "{engine}: {ports:?}");
        let totals = server.stop()?;
        ensure!(
            totals["refused"] == serde_json::json!({ "source_not_allowed": 3 }),
            "{engine}: {totals}"
        );
        ensure!(totals["answered"] == 2, "{engine}: {totals}");
    }
    Ok(())
}

fn count(stats: &Value, names: &[&str]) -> u64 {
    let value = names.iter().fold(stats, |value, name| &value[*name]);
    value.as_u64().unwrap_or_default()
}

fn sum(stats: &Value, name: &str) -> u64 {
    stats[name].as_object().map_or(0, |counts| counts.values().filter_map(Value::as_u64).sum())
}

fn the_counters_add_up() -> Result<()> {
    for (engine, bind) in [
        ("afxdp", "netlink"),
        ("reflect", "netlink"),
        ("afxdp", "live-map"),
        ("reflect", "live-map"),
    ] {
        let lab = TestLab::up()?;
        let _polling = have_client_poll(&lab)?;
        let ends = Ends::of(&lab)?;
        let flags = format!("--addresses {ADDRESSES} --engine {engine} --bind {bind} --replies 1");
        let mut server = Server::start(&lab, &flags)?;
        let capture = PacketSocket::at(&lab, Side::Client)?;
        exchange(&capture, &ends, &[])?;
        // Every packet that client0 sends arrives, including its kernel's own.
        let sent = || {
            lab.run_in(Side::Client, || {
                let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
                let line = text.lines().find_map(|line| line.trim().strip_prefix("client0:"));
                let field = line.and_then(|line| line.split_whitespace().nth(9));
                Ok(field.context("client0 has no counters")?.parse::<u64>()?)
            })
        };
        let mut difference = None;
        server.wait_for(|stats| {
            difference = sent().ok().map(|sent| sent as i64 - sum(stats, "steering") as i64);
            true
        })?;
        let frames: Vec<_> =
            cases(&ends)?.into_iter().flat_map(|((_, frames), _)| frames).collect();
        for _ in 0..5 {
            exchange(&capture, &ends, &frames)?;
        }
        let mut last = (0, 0);
        server
            .wait_for(|stats| {
                last = (sent().unwrap_or_default() as i64, sum(stats, "steering") as i64);
                difference == Some(last.0 - last.1) && last.1 > 5 * frames.len() as i64
            })
            .with_context(|| {
                format!("{engine}, {bind}: sent and counted {last:?}, {difference:?} before")
            })?;
        let totals = server.stop()?;
        let requests =
            ["reflected", "steered", "refused"].map(|name| count(&totals, &["steering", name]));
        let behind = count(&totals, &["answered_behind"]) + count(&totals, &["refused_behind"]);
        let done = count(&totals, &["answered"]) + sum(&totals, "refused");
        // Solicitations that go to the rings are not requests.
        ensure!(done == requests.iter().sum::<u64>() + behind, "{engine}, {bind}: {totals}");
    }
    Ok(())
}

/// A number that bench/hostile.sh can set through the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Sends valid requests at a steady rate, and five times as many invalid packets.
fn a_flood_takes_no_answer() -> Result<()> {
    let rate = setting("SIXHOP_FLOOD_RATE", 1000);
    let seconds = setting("SIXHOP_FLOOD_SECONDS", 2);
    let replies = setting("SIXHOP_FLOOD_REPLIES", 10);
    let engines = std::env::var("SIXHOP_FLOOD_ENGINES").unwrap_or("afxdp,reflect".into());
    for engine in engines.split(',') {
        let kind = engine.parse::<EngineKind>()?;
        let lab = TestLab::up()?;
        let ends = Ends::of(&lab)?;
        let server = Server::start(
            &lab,
            &format!(
                "--addresses {ADDRESSES} --engine {kind} --bind live-map --cores 0 --replies \
                 {replies}"
            ),
        )?;
        let index = link(&lab, Side::Client)?.index;
        // None of these gets a reply. Fragments and packets behind extension headers, which may get
        // one, are left out.
        let silent: HashSet<_> =
            written()?.into_iter().filter(|(_, row)| row[2] == "no").map(|row| row.0).collect();
        let frames: Vec<_> = ends
            .cases()
            .into_iter()
            .filter(|(name, _)| silent.contains(name))
            .flat_map(|(_, frames)| frames)
            .collect();
        let (done, flooded) = (AtomicBool::new(false), AtomicU64::new(0));
        let socket = lab.run_in(Side::Client, || PacketSocket::on_deaf(index))?;
        let result = thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let started = Instant::now();
                let mut sent = 0u64;
                while !done.load(Ordering::Relaxed) {
                    let due = (started.elapsed().as_secs_f64() * (5 * rate) as f64) as u64;
                    // A veth holds 256 frames: leave room for requests. Frames that do not fit are
                    // sent later.
                    let most = due.min(sent + 64);
                    while sent < most {
                        if socket.send(&frames[sent as usize % frames.len()]).is_err() {
                            break;
                        }
                        sent += 1;
                    }
                    flooded.store(sent, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(200));
                }
                anyhow::Ok(started.elapsed())
            });
            let flags = format!(
                "load --interface client0 --prefix {PREFIX} --addresses {ADDRESSES} --json --rate \
                 {rate} --replies {replies} --requests {}",
                rate * seconds
            );
            let output = sixhop(&lab, Side::Client, &flags).output();
            done.store(true, Ordering::Relaxed);
            let elapsed = flood.join().expect("the flood does not panic")?;
            let output = output?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            anyhow::Ok((serde_json::from_slice::<Value>(&output.stdout)?, elapsed))
        });
        let (result, elapsed) = result?;
        let totals = server.stop()?;
        let hostile = flooded.load(Ordering::Relaxed) as f64 / elapsed.as_secs_f64();
        let shown = ["sent", "answered", "complete", "replies", "late"]
            .map(|name| (name, count(&result, &[name])));
        let served = ["received", "answered", "replies", "unsent", "waiting"]
            .map(|name| (name, count(&totals, &[name])));
        eprintln!(
            "{engine}: {hostile:.0} hostile packets/s; load {shown:?}; server {served:?}, refused \
             {}",
            totals["refused"]
        );
        ensure!(hostile > 4.5 * rate as f64, "{engine}: only {hostile:.0} hostile packets/s");
        ensure!(count(&result, &["complete"]) == rate * seconds, "{engine}: {result} {totals}");
        ensure!(count(&totals, &["answered"]) == rate * seconds, "{engine}: {totals}");
    }
    Ok(())
}
