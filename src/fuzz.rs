//! The bodies of the fuzz targets, and the properties that must hold for any input. The targets
//! (fuzz/fuzz_targets) call one function each. The tests here call them with the corpus
//! (fuzz/corpus) and with mutations of it.
//!
//! ```text
//!   request   a frame ─► Handler::answer, checked against what the kernel would deliver
//!                     ─► Worker over rings in memory
//!   ndp       a frame ─► solicitation ─► advertisement, parsed again
//!   worker    a program of arrivals, turns and completions ─► Worker over rings in memory
//!   results   lines ─► events ─► the same lines; and a page of them
//!   profile   TOML ─► a profile, and its cells and rates
//! ```
//!
//! Each panics if a property fails.

use std::cell::RefCell;
use std::net::Ipv6Addr;
use std::time::Instant;

use etherparse::{EtherType, Ethernet2Slice, Icmpv6Slice, IpNumber, Ipv6Slice, UdpSlice};

use crate::address::Pool;
use crate::engine::{Advertiser, Worker};
use crate::events::Event;
use crate::experiment::Profile;
use crate::policy::Handler;
use crate::report::page::{Data, page};
use crate::report::{bind, response};
use crate::service::Echo;
use crate::wire::{ADVERTISEMENT, HOP_LIMIT, solicitation};
use crate::xdp::model::{self, Model};
use crate::xdp::{Doorbell, Rings};

/// The service of the XDP program's tests, which run the same corpus (tests/program.rs).
pub const PORT: u16 = 3540;
const PREFIX: &str = "2001:db8:1::/64";
const ADDRESSES: u64 = 10;
const OWN: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2)];
const LINK_ADDRESS: [u8; 6] = [4; 6];

/// Offsets in a frame of UDP or ICMPv6 over IPv6 over Ethernet.
const IP: usize = 14;
const TRANSPORT: usize = IP + 40;

/// Replies to each request. Fewer than in production, since each one is checked.
const REPLIES: u16 = 3;
const FRAMES: u32 = 8;

/// The answering rules of the service.
#[must_use]
pub fn handler() -> Handler {
    Handler::new(PORT, pool(), OWN.to_vec())
}

fn pool() -> Pool {
    let prefix = PREFIX.parse().expect("a prefix");
    Pool::new(prefix, ADDRESSES, 1).expect("the prefix holds them")
}

/// Passes the frame as it is, and with its checksum corrected, since mutations seldom have a
/// correct one.
pub fn request(bytes: &[u8]) {
    thread_local! {
        static QUEUE: RefCell<FuzzedWorker> = RefCell::new(FuzzedWorker::new(FRAMES, 32));
    }
    QUEUE.with_borrow_mut(|queue| {
        for frame in [bytes.to_vec(), repaired(bytes)] {
            let answer = answer(&queue.handler, &frame);
            queue.pass(&frame, answer.as_deref());
        }
    });
}

/// What `handler` answers to `frame`. Panics if it answers what the kernel would not deliver.
fn answer(handler: &Handler, frame: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = frame.to_vec();
    let answered = handler.answer(&mut bytes);
    let delivered = delivered(frame);
    let Ok(length) = answered else {
        assert_eq!(bytes, frame, "a refused frame was changed");
        if let Some(request) = delivered.filter(|request| request.is_plain) {
            let decision = handler.decide(request.source, request.source_port, request.destination);
            let is_ours = request.port == PORT && decision.is_ok();
            assert!(!is_ours, "{answered:?}, but the kernel would have delivered it: {frame:02x?}");
        }
        return None;
    };
    let request = delivered.unwrap_or_else(|| {
        panic!("answered, but the kernel would not have delivered it: {frame:02x?}")
    });
    assert_eq!(request.port, PORT);
    assert!(handler.is_live(request.destination), "an answer from {}", request.destination);
    bytes.truncate(length);
    let reply = self::delivered(&bytes).expect("a reply that the client's kernel delivers");
    assert_eq!((reply.source, reply.destination), (request.destination, request.source));
    assert_eq!((reply.source_port, reply.port), (request.port, request.source_port));
    assert_eq!(
        (bytes[..6].to_vec(), bytes[6..12].to_vec()),
        (frame[6..12].to_vec(), frame[..6].to_vec())
    );
    assert_eq!(bytes[IP + 7], HOP_LIMIT);
    assert_eq!(bytes[TRANSPORT + 8..], frame[TRANSPORT + 8..length], "another payload");
    Some(bytes)
}

/// A datagram as a socket would receive it.
struct Delivered {
    source: Ipv6Addr,
    destination: Ipv6Addr,
    source_port: u16,
    port: u16,
    /// Whether it has no extension headers and a UDP length, so that every engine must accept it.
    is_plain: bool,
}

/// What the kernel would deliver of a frame sent to this machine's Ethernet address (ip6_rcv_core
/// and udpv6_rcv of Linux). Uses etherparse's own slow parser, and a separate checksum routine.
fn delivered(frame: &[u8]) -> Option<Delivered> {
    let ether = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    if ether.ether_type() != EtherType::IPV6 {
        return None;
    }
    let ip = Ipv6Slice::from_slice(ether.payload_slice()).ok()?;
    let header = ip.header();
    let (source, destination) = (header.source_addr(), header.destination_addr());
    let is_foreign =
        source.is_multicast() || source.is_loopback() || source.to_ipv4_mapped().is_some();
    let payload = ip.payload();
    if header.payload_length() == 0
        || is_foreign
        || payload.fragmented
        || payload.ip_number != IpNumber::UDP
    {
        return None;
    }
    // As in the kernel, etherparse reads UDP length 0 as the whole rest of the packet.
    let udp = UdpSlice::from_slice(payload.payload).ok()?;
    let length = if udp.length() == 0 { payload.payload.len() } else { udp.length().into() };
    let sum = sum(frame, IpNumber::UDP, payload.payload.get(..length)?);
    (udp.checksum() != 0 && sum == 0xffff).then(|| Delivered {
        source,
        destination,
        source_port: udp.source_port(),
        port: udp.destination_port(),
        is_plain: ip.extensions().is_empty() && udp.length() != 0,
    })
}

/// The one's-complement sum of the pseudo-header of `frame`, whose headers must be whole, and
/// `message`, word by word. 0xffff if `message` carries a correct checksum (RFC 8200 section 8.1).
fn sum(frame: &[u8], protocol: IpNumber, message: &[u8]) -> u16 {
    let words = frame[IP + 8..TRANSPORT].chunks(2).chain(message.chunks(2));
    let word = |word: &[u8]| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0));
    let mut sum = words.map(word).sum::<u64>() + message.len() as u64 + u64::from(protocol.0);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// `frame` with a correct checksum, if its lengths are consistent.
fn repaired(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    let number = |frame: &[u8], at: usize| {
        frame.get(at..at + 2).map(|bytes| usize::from(u16::from_be_bytes([bytes[0], bytes[1]])))
    };
    let (protocol, place) = match frame.get(IP + 6) {
        Some(17) => (IpNumber::UDP, TRANSPORT + 6),
        Some(58) => (IpNumber::IPV6_ICMP, TRANSPORT + 2),
        _ => return frame,
    };
    let length = number(&frame, if protocol == IpNumber::UDP { TRANSPORT + 4 } else { IP + 4 });
    let Some(end) = length.map(|length| TRANSPORT + length).filter(|end| *end <= frame.len())
    else {
        return frame;
    };
    if place + 2 > end {
        return frame;
    }
    frame[place..place + 2].fill(0);
    let checksum = match !sum(&frame, protocol, &frame[TRANSPORT..end]) {
        0 => 0xffff,
        sum => sum,
    };
    frame[place..place + 2].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// A worker and its rings, with a model of the kernel.
struct FuzzedWorker {
    handler: Handler,
    worker: Worker,
    rings: Rings,
    model: Model,
    /// Packets that arrived.
    arrived: u64,
}

impl FuzzedWorker {
    fn new(frames: u32, ring: u32) -> Self {
        let handler = handler();
        let (mut rings, tokens, model) =
            model::rings(frames, 2048, ring, 0).expect("enough memory");
        for token in tokens {
            rings.fill(token).expect("the fill ring holds them all");
        }
        rings.publish();
        let worker = Worker::new(handler.clone(), Echo::new(REPLIES))
            .with_advertiser(Advertiser::new(LINK_ADDRESS));
        Self { handler, worker, rings, model, arrived: 0 }
    }

    fn turn(&mut self) {
        self.worker.turn(&mut self.rings, &mut self.model).expect("a model always works");
        self.check();
    }

    fn deliver(&mut self, frame: &[u8]) -> bool {
        let arrives = self.model.deliver(frame);
        self.arrived += u64::from(arrives);
        arrives
    }

    /// Checks that no frame is lost and that no invalid descriptor came.
    fn check(&self) {
        let tally = self.worker.tally();
        assert_eq!(self.worker.missing(&self.rings), 0, "{:?}", self.rings.census());
        assert_eq!((tally.frames_lost, self.rings.invalid()), (0, 0));
    }

    /// Checks that everything that arrived was answered or refused, and that all frames are ready
    /// to receive again.
    fn check_all(&self) {
        self.check();
        let tally = self.worker.tally();
        let refused = tally.refused.iter().sum::<u64>();
        assert_eq!(tally.answered + tally.advertised + refused, self.arrived, "{tally:?}");
        assert_eq!(tally.replies, tally.answered * u64::from(REPLIES));
        let census = self.rings.census();
        assert_eq!(census.receiving, census.total, "{census:?}");
    }

    /// Delivers `frame` and checks that `answer` leaves as often as it should, and nothing else.
    fn pass(&mut self, frame: &[u8], answer: Option<&[u8]>) {
        if !self.deliver(frame) {
            return; // longer than a frame of the rings
        }
        self.turn();
        let mut sent = 0;
        while let Some(packet) = self.model.take_sent() {
            match answer {
                Some(answer) => assert_eq!(packet, answer, "another reply"),
                None => {
                    assert!(solicitation(frame).is_ok(), "sent for {frame:02x?}: {packet:02x?}")
                }
            }
            sent += 1;
        }
        match answer {
            Some(_) => assert_eq!(sent, REPLIES),
            None => assert!(sent <= 1, "{sent} answers to a solicitation"),
        }
        self.turn();
        self.check_all();
    }
}

/// Passes the frame as it is, and with its checksum corrected.
pub fn ndp(bytes: &[u8]) {
    let handler = handler();
    for frame in [bytes.to_vec(), repaired(bytes)] {
        let decided = Advertiser::new(LINK_ADDRESS).decide(&frame, &handler, Instant::now());
        let Ok(asked) = solicitation(&frame) else {
            assert!(decided.is_err());
            continue;
        };
        assert_eq!(decided.is_ok(), handler.is_live(asked.target()));
        assert!(
            is_solicitation(&frame, asked.source(), asked.target()),
            "taken for one: {frame:02x?}"
        );
        for length in 0..ADVERTISEMENT {
            assert_eq!(asked.advertise(LINK_ADDRESS, &mut vec![0; length]), None);
        }
        let mut answer = vec![0xee; ADVERTISEMENT + 1];
        assert_eq!(asked.advertise(LINK_ADDRESS, &mut answer), Some(ADVERTISEMENT));
        assert_eq!(answer.pop(), Some(0xee));
        let ip = Ipv6Slice::from_slice(&answer[IP..]).expect("IPv6");
        assert_eq!(ip.header().source_addr(), asked.target());
        assert!(
            asked.source().is_unspecified() || ip.header().destination_addr() == asked.source()
        );
        let message = Icmpv6Slice::from_slice(&answer[TRANSPORT..]).expect("ICMPv6");
        assert!(message.is_checksum_valid(ip.header().source(), ip.header().destination()));
        assert_eq!((message.type_u8(), answer[IP + 7]), (136, 255));
    }
}

/// The rules of RFC 4861 section 7.1.1 that an answer depends on, by etherparse's parser.
fn is_solicitation(frame: &[u8], source: Ipv6Addr, target: Ipv6Addr) -> bool {
    let Ok(ip) = Ipv6Slice::from_slice(&frame[IP..]) else { return false };
    let header = ip.header();
    let Ok(message) = Icmpv6Slice::from_slice(ip.payload().payload) else { return false };
    let body = message.slice();
    ip.payload().ip_number == IpNumber::IPV6_ICMP
        && header.hop_limit() == 255
        && message.is_checksum_valid(header.source(), header.destination())
        && (message.type_u8(), message.code_u8()) == (135, 0)
        && header.source_addr() == source
        && !source.is_multicast()
        && body.get(8..24) == Some(&target.octets()[..])
        && !target.is_multicast()
}

/// Runs a program: a byte for the size of the memory, then steps of a byte and its operands. After
/// every step the books must balance. At the end everything must be dealt with, and all frames must
/// be back.
pub fn worker(bytes: &[u8]) {
    let Some((size, mut program)) = bytes.split_first() else { return };
    let mut queue = FuzzedWorker::new(1 << (size % 6), 16 << (size / 6 % 3));
    while let Some((&step, mut rest)) = program.split_first() {
        let argument = usize::from(step >> 2);
        match step & 3 {
            // A frame from the program's bytes arrives, as it is or with a corrected checksum.
            0 => {
                let (frame, after) = rest.split_at(rest.len().min(2 * argument));
                queue.deliver(&if argument & 1 == 0 { repaired(frame) } else { frame.to_vec() });
                rest = after;
            }
            // A valid request arrives.
            1 => {
                queue.deliver(&right_request(argument));
            }
            2 => {
                queue.model.budget = argument;
                queue.turn();
            }
            _ => {
                let sent = (0..argument).map_while(|_| queue.model.take_sent()).count();
                assert!(sent <= argument);
            }
        }
        queue.check();
        program = rest;
    }
    queue.model.budget = usize::MAX;
    // Enough turns to send the rest through the smallest rings.
    for _ in 0..200 {
        queue.turn();
        while queue.model.take_sent().is_some() {}
        let _ = queue.model.wake_sender();
    }
    queue.check_all();
}

/// A request with `payload` bytes of payload.
fn right_request(payload: usize) -> Vec<u8> {
    frame(CLIENT, pool().address(payload as u64 % ADDRESSES), (50_000, PORT), &vec![7; payload])
}

const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);

fn frame(source: Ipv6Addr, destination: Ipv6Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2([2; 6], LINK_ADDRESS)
        .ipv6(source.octets(), destination.octets(), 33)
        .udp(ports.0, ports.1)
        .write(&mut frame, payload)
        .expect("writes to a vector do not fail");
    frame
}

/// Lines of a results file.
pub fn results(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let events: Vec<Event> = text.lines().filter_map(|line| Event::parse(line).ok()).collect();
    for event in &events {
        let line = event.to_line().expect("what was read can be written");
        let again = Event::parse(&line).expect("what was written can be read");
        assert_eq!(again.to_line().ok(), Some(line), "it changes as it is written and read");
    }
    let _ = bind::csv(&bind::summarize(&events));
    let _ = response::trials_csv(&events);
    // Any file may contain events of another.
    let data = Data {
        bind: events.clone(),
        response: events.clone(),
        compare: events.clone(),
        rotation: events,
    };
    if let Ok(page) = page(&data) {
        assert!(page.html.ends_with("</html>"), "incomplete page");
    }
}

/// A profile in TOML.
pub fn profile(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let profile = match Profile::parse(text) {
        Ok(profile) => profile,
        Err(error) => {
            let words = format!("{error:#}");
            assert!(!words.is_empty() && !words.contains('\n'), "not one line: {words}");
            return;
        }
    };
    if let Some(bind) = profile.bind {
        assert!(bind.runs > 0 && !bind.cells().is_empty());
    }
    if let Some(response) = profile.response {
        let rates = response.rates.all();
        assert!(
            rates.is_sorted_by(|a, b| a < b) && rates.last() == Some(&response.rates.to),
            "{rates:?}"
        );
        assert!(!response.cells().is_empty());
        assert!(
            rates.iter().all(|rate| (1..=response.requests).contains(&response.requests_at(*rate)))
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::{Path, PathBuf};

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 5] = [
        ("request", request),
        ("ndp", ndp),
        ("worker", worker),
        ("results", results),
        ("profile", profile),
    ];

    fn room(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    /// The corpus of `target`, sorted by name.
    fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
        let entries = fs::read_dir(room(target)).unwrap().map(|entry| entry.unwrap());
        let mut files: Vec<_> = entries
            .map(|entry| {
                (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_corpus_passes() {
        for (name, target) in TARGETS {
            let files = corpus(name);
            assert!(files.len() >= 5, "{name} has {} files", files.len());
            for (file, bytes) in files {
                // Names the file before a panic.
                println!("{name}/{file}");
                target(&bytes);
            }
        }
    }

    /// The generated part of the corpus. Files with other names came from a fuzzer.
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn made() -> Vec<(&'static str, &'static str, Vec<u8>)> {
        let pool = pool();
        let live = pool.address(3);
        let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
        let right = || frame(CLIENT, live, (50_000, PORT), &[7; 33]);
        let from = |source: &str| frame(address(source), live, (50_000, PORT), &[7; 16]);
        let to = |destination: &str| frame(CLIENT, address(destination), (50_000, PORT), &[7; 16]);
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut frame = right();
            change(&mut frame);
            frame
        };
        // Inserts an eight-byte header between the IPv6 and UDP headers.
        let behind = |kind: u8, header: [u8; 8]| {
            let mut frame = right();
            frame.splice(TRANSPORT..TRANSPORT, header);
            frame[IP + 6] = kind;
            frame[IP + 5] += 8;
            frame
        };
        let tagged = |tags: &[[u8; 4]]| {
            let mut frame = right();
            frame.splice(12..12, tags.concat());
            frame
        };
        let mut other = Vec::new();
        let mut request = |name, bytes| other.push(("request", name, bytes));
        request("valid", right());
        request("valid-empty-payload", frame(CLIENT, live, (50_000, PORT), &[]));
        request("valid-mtu-sized", frame(CLIENT, live, (50_000, PORT), &[7; 1452]));
        request("valid-padded", [right(), vec![0xee; 9]].concat());
        request("valid-longer-ip-payload", {
            let mut frame = [right(), vec![0xee; 9]].concat();
            frame[IP + 5] += 9;
            frame
        });
        request("valid-checksum-all-ones", {
            // The payload completes the sum to all ones.
            let mut frame = frame(CLIENT, live, (50_000, PORT), &[0, 0]);
            frame[TRANSPORT + 6..TRANSPORT + 8].fill(0);
            let lacks = !sum(&frame, IpNumber::UDP, &frame[TRANSPORT..]);
            frame[TRANSPORT + 8..].copy_from_slice(&lacks.to_be_bytes());
            frame[TRANSPORT + 6..TRANSPORT + 8].fill(0xff);
            frame
        });
        request("empty", vec![]);
        request("ethernet-cut", right()[..13].to_vec());
        request("ip-header-cut", right()[..TRANSPORT - 1].to_vec());
        request("udp-header-cut", right()[..TRANSPORT + 7].to_vec());
        request("payload-cut", changed(|f| f.truncate(TRANSPORT + 9)));
        request("not-ipv6", changed(|f| f[12..14].copy_from_slice(&[8, 0])));
        request("version-4", changed(|f| f[IP] = 0x45));
        request("ip-length-0", changed(|f| f[IP + 4..IP + 6].fill(0)));
        request("ip-length-below-udp-header", changed(|f| f[IP + 5] = 7));
        request("ip-length-beyond-frame", changed(|f| f[IP + 5] += 1));
        request("udp-length-0", changed(|f| f[TRANSPORT + 4..TRANSPORT + 6].fill(0)));
        request("udp-length-below-header", changed(|f| f[TRANSPORT + 5] = 7));
        request("udp-length-beyond-ip", changed(|f| f[TRANSPORT + 5] += 1));
        request("udp-length-short", changed(|f| f[TRANSPORT + 5] -= 1));
        request("udp-checksum-0", changed(|f| f[TRANSPORT + 6..TRANSPORT + 8].fill(0)));
        request("udp-checksum-wrong", changed(|f| f[TRANSPORT + 7] ^= 1));
        request(
            "udp-checksum-unfinished",
            changed(|f| {
                // Zeros add only their number.
                let pseudo = sum(f, IpNumber::UDP, &vec![0; f.len() - TRANSPORT]);
                f[TRANSPORT + 6..TRANSPORT + 8].copy_from_slice(&pseudo.to_be_bytes());
            }),
        );
        request("other-port", frame(CLIENT, live, (50_000, PORT + 1), &[7; 16]));
        request("source-port-0", frame(CLIENT, live, (0, PORT), &[7; 16]));
        request("source-port-of-the-service", frame(CLIENT, live, (PORT, PORT), &[7; 16]));
        for (name, source) in [
            ("source-multicast", "ff02::1"),
            ("source-unspecified", "::"),
            ("source-loopback", "::1"),
            ("source-ipv4-mapped", "::ffff:192.0.2.1"),
            ("source-own", "2001:db8:1::2"),
            ("source-link-local", "fe80::1"),
        ] {
            request(name, from(source));
        }
        request("source-live", frame(pool.address(4), live, (50_000, PORT), &[7; 16]));
        request("destination-not-live", to("2001:db8:1::77"));
        request("destination-elsewhere", to("2001:db8:2::77"));
        request("destination-multicast", to("ff02::1"));
        request("hop-by-hop-options", behind(0, [17, 0, 1, 4, 0, 0, 0, 0]));
        request("destination-options", behind(60, [17, 0, 1, 4, 0, 0, 0, 0]));
        request("routing-header", behind(43, [17, 0, 4, 0, 0, 0, 0, 0]));
        request("fragment-first", behind(44, [17, 0, 0, 1, 0, 0, 0, 9]));
        request("fragment-atomic", behind(44, [17, 0, 0, 0, 0, 0, 0, 9]));
        request("jumbo", {
            let mut frame = behind(0, [17, 0, 0xc2, 4, 0, 1, 0, 0]);
            frame[IP + 4..IP + 6].fill(0);
            frame
        });
        request("tcp", changed(|f| f[IP + 6] = 6));
        request("vlan", tagged(&[[0x81, 0, 0, 5]]));
        request("qinq", tagged(&[[0x88, 0xa8, 0, 5], [0x81, 0, 0, 6]]));

        let ask = |source: Ipv6Addr, to: Ipv6Addr, hops, target: Ipv6Addr, options: &[u8]| {
            let mut frame = Vec::new();
            etherparse::PacketBuilder::ethernet2([2; 6], LINK_ADDRESS)
                .ipv6(source.octets(), to.octets(), hops)
                .icmpv6_raw(135, 0, [0; 4])
                .write(&mut frame, &[&target.octets()[..], options].concat())
                .unwrap();
            frame
        };
        let group = Ipv6Addr::from_bits(
            0xff02_0000_0000_0000_0000_0001_ff00_0000 | live.to_bits() & 0xff_ffff,
        );
        let option = [1, 1, 2, 2, 2, 2, 2, 2];
        let mut ndp = |name, bytes| other.push(("ndp", name, bytes));
        ndp("to-the-group", ask(CLIENT, group, 255, live, &option));
        ndp("to-the-address", ask(CLIENT, live, 255, live, &[]));
        ndp("duplicate-detection", ask(Ipv6Addr::UNSPECIFIED, group, 255, live, &[]));
        ndp(
            "not-live",
            ask(CLIENT, address("ff02::1:ff00:77"), 255, address("2001:db8:1::77"), &option),
        );
        ndp("hop-limit-254", ask(CLIENT, group, 254, live, &option));
        ndp("option-of-length-0", ask(CLIENT, group, 255, live, &[1, 0, 2, 2, 2, 2, 2, 2]));
        ndp("option-beyond-the-end", ask(CLIENT, group, 255, live, &[1, 9, 2, 2, 2, 2, 2, 2]));
        ndp("option-cut", ask(CLIENT, group, 255, live, &[1, 1, 2]));
        ndp(
            "option-unknown",
            ask(CLIENT, group, 255, live, &[14, 1, 2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 2, 2]),
        );
        ndp("source-multicast", ask(address("ff02::1"), group, 255, live, &option));
        ndp("source-loopback", ask(Ipv6Addr::LOCALHOST, group, 255, live, &option));
        ndp("target-multicast", ask(CLIENT, group, 255, address("ff02::1"), &option));
        ndp("cut", ask(CLIENT, group, 255, live, &option)[..70].to_vec());

        let mut worker = |name, bytes| other.push(("worker", name, bytes));
        // Steps as `worker` reads them: arrivals (1), turns with a budget (2), completions (3).
        let step = |kind: u8, argument: u8| kind | argument << 2;
        worker("one-request", vec![3, step(1, 32), step(2, 40), step(3, 40)]);
        worker(
            "more-than-there-are-frames",
            [vec![1], vec![step(1, 5); 40], vec![step(2, 63), step(3, 63)]].concat(),
        );
        worker("no-room-to-send", [vec![5], [step(1, 9), step(2, 0)].repeat(30)].concat());
        worker("completions-held-back", [vec![5], [step(1, 9), step(2, 63)].repeat(30)].concat());
        worker("noise", vec![2, step(0, 9), 1, 2, 3, 4, 5, 6, 7, 8, 9, step(2, 9), step(3, 9)]);
        worker(
            "a-frame-between",
            [vec![4, step(0, 47)], right()[..94].to_vec(), vec![step(2, 9)]].concat(),
        );

        let mut results = |name, text: String| other.push(("results", name, text.into_bytes()));
        let file = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/results").join(name);
            fs::read_to_string(path).unwrap()
        };
        // Histograms are long, and nothing here reads them.
        let short = |text: String, lines: usize| -> String {
            let text: Vec<_> = text
                .lines()
                .take(lines)
                .map(|line| {
                    let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                    empty_histograms(&mut line);
                    line.to_string() + "\n"
                })
                .collect();
            text.concat()
        };
        results("bind", short(file("quick/bind.jsonl"), 30));
        results("response", short(file("quick/response.jsonl"), 20));
        results("compare", short(file("compare-peers/compare.jsonl"), 5));
        results("half-a-line", short(file("quick/bind.jsonl"), 2)[..400].to_owned());
        results("newer-schema", "{\"event\":\"stats\",\"schema\":99}\n".to_owned());
        results("another-event", "{\"event\":\"nothing\"}\n[]\n1\n\n".to_owned());

        let mut profile =
            |name, text: &str| other.push(("profile", name, text.as_bytes().to_vec()));
        profile("quick", include_str!("../bench/profiles/quick.toml"));
        profile("paper", include_str!("../bench/profiles/paper.toml"));
        profile("binding", include_str!("../bench/profiles/binding.toml"));
        profile("no-table", "");
        profile("unknown-key", "[bind]\nruns = 1\nbudget = 1\nseries = []\nnothing = 1\n");
        profile(
            "runs-0",
            "[bind]\nruns = 0\nbudget = 1.0\n[[bind.series]]\nmethods = ['netlink']\naddresses = \
             [1]\n",
        );
        profile(
            "budget-nan",
            "[bind]\nruns = 1\nbudget = nan\n[[bind.series]]\nmethods = ['netlink']\naddresses = \
             [1]\n",
        );
        profile("not-toml", "[bind\n");
        other
    }

    fn empty_histograms(value: &mut serde_json::Value) {
        match value {
            serde_json::Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| {
                if name == "histogram" {
                    *value = String::new().into();
                }
                empty_histograms(value);
            }),
            serde_json::Value::Array(values) => values.iter_mut().for_each(empty_histograms),
            _ => {}
        }
    }

    /// Compares the corpus with the generated one. SIXHOP_WRITE_CORPUS=1 writes it instead.
    #[test]
    fn the_corpus_is_what_is_made_here() {
        let writes = std::env::var_os("SIXHOP_WRITE_CORPUS").is_some();
        for (target, name, bytes) in made() {
            let path = room(target).join(name);
            if writes {
                fs::create_dir_all(room(target)).unwrap();
                fs::write(&path, &bytes).unwrap();
            }
            let kept =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                kept == bytes,
                "{} differs: run this with SIXHOP_WRITE_CORPUS=1",
                path.display()
            );
        }
    }

    /// splitmix64, so that every run has the same mutations.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let word = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ word >> 31
        }

        fn below(&mut self, limit: usize) -> usize {
            (self.next() % limit.max(1) as u64) as usize
        }
    }

    /// Changes one to three things in `frame`, more often in its headers than in its payload.
    fn mutate(frame: &mut Vec<u8>, random: &mut Random) {
        for _ in 0..=random.below(3) {
            let reach =
                if random.below(4) > 0 { frame.len().min(TRANSPORT + 8) } else { frame.len() };
            let at = random.below(reach);
            let word = random.next();
            match random.below(16) {
                0 if frame.len() > 2 => frame.truncate(at),
                1 => frame.extend_from_slice(&word.to_be_bytes()[..random.below(8)]),
                2 => {
                    frame.splice(at..at, word.to_be_bytes());
                }
                3 if frame.len() > at + 8 => drop(frame.drain(at..at + 8)),
                // A length that is slightly off.
                4..=7 => {
                    let at = [IP + 4, TRANSPORT + 4][random.below(2)];
                    if let Some([high, low]) = frame.get_mut(at..at + 2) {
                        let length = u16::from_be_bytes([*high, *low])
                            .wrapping_add_signed((word % 41) as i16 - 20);
                        [*high, *low] = length.to_be_bytes();
                    }
                }
                8..=11 => {
                    if let Some(byte) = frame.get_mut(at) {
                        *byte = word as u8;
                    }
                }
                _ => {
                    if let Some(byte) = frame.get_mut(at) {
                        *byte ^= 1 << (word % 8);
                    }
                }
            }
        }
    }

    /// Passes SIXHOP_FRAMES mutated frames through validation and reply, each as it is and with a
    /// corrected checksum.
    #[test]
    fn mutated_frames_lose_none_and_answer_nothing_wrong() {
        let count = std::env::var("SIXHOP_FRAMES").map_or(100_000, |count| count.parse().unwrap());
        let seeds: Vec<_> = ["request", "ndp"].iter().flat_map(|target| corpus(target)).collect();
        let right: Vec<_> =
            seeds.iter().filter(|(name, _)| name.starts_with("valid")).cloned().collect();
        let mut random = Random(1);
        let mut answered = 0u64;
        let mut queue = FuzzedWorker::new(FRAMES, 32);
        for _ in 0..count / 2 {
            // Half of the frames start from a valid one.
            let seeds = if random.below(2) == 0 { &right } else { &seeds };
            let mut bytes = seeds[random.below(seeds.len())].1.clone();
            mutate(&mut bytes, &mut random);
            for frame in [repaired(&bytes), bytes] {
                let answer = answer(&queue.handler, &frame);
                answered += u64::from(answer.is_some());
                queue.pass(&frame, answer.as_deref());
            }
        }
        let tally = queue.worker.tally();
        println!(
            "{count} frames: {answered} answered, {} advertised, by reason {:?}",
            tally.advertised,
            tally.refused_by_name()
        );
        assert!(
            (count / 20..count / 2).contains(&answered),
            "{answered} of {count}: the mutations test nothing"
        );
        assert!(tally.refused_by_name().len() > 10, "{tally:?}");
    }
}
