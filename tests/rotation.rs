//! Moving addresses: `serve` and `load` with `--schedule mt6d`. Each test has a lab of its own (see
//! `common`).
//!
//! Where a test is not about the moment of rotation, a step lasts an hour. Then no result depends
//! on speed, and five steps of clock error are five hours.

use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common;
use crate::common::packet::PacketSocket;
use crate::common::server::{PREFIX, Server, engines, sixhop};
use crate::common::{TestLab, have_client_poll, link, trial, wait_for_no_program};
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use serde_json::Value;
use sixhop::address::mt6d::{Clock, Subnet, Timetable};
use sixhop::lab::Side;
use sixhop::live::{BindContext, Method, Rotation, unix_time};
use sixhop::net::netlink;
use sixhop::wire::{Endpoints, Stamp, Template};
use sixhop::xdp::{MovingAddresses, Program, ProgramConfig};
use tempfile::TempDir;

const HOUR: u64 = 3600;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("clients_half_a_step_ahead_and_behind_lose_nothing", half_a_step),
        trial("every_engine_follows_addresses_of_the_kernel", every_engine_follows),
        trial("reflect_follows_as_well", || rotates("reflect", "live-map", 1000, 0.0)),
        trial("of_each_client_three_addresses_are_live", three_are_live),
        trial("a_server_that_is_started_again_goes_on", started_again),
        trial("a_wrong_clock_is_told_how_wrong_it_is", wrong_clock),
        trial("outside_the_window_nobody_answers", || outside_the_window("afxdp")),
        trial("outside_the_window_of_reflect_nobody_answers", || outside_the_window("reflect")),
        trial("a_million_probes_get_no_answer", a_million_probes),
        trial("a_step_that_is_too_short_is_told_with_what_it_is_enough_for", too_short),
        trial("bad_input_gets_one_clear_line", bad_input),
    ]
}

/// A secret in a file of its own.
struct SecretFile {
    _directory: TempDir,
    path: PathBuf,
}

impl SecretFile {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("secret");
        let mut file =
            std::fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&path)?;
        std::io::copy(
            &mut std::io::Read::take(std::fs::File::open("/dev/urandom")?, 32),
            &mut file,
        )?;
        Ok(Self { _directory: directory, path })
    }

    fn flags(&self, clients: u32, seconds: u64) -> String {
        format!(
            "--schedule mt6d --clients {clients} --rotate {seconds}s --secret {}",
            self.path.display()
        )
    }

    /// Computed independently of server and client.
    fn timetable(&self, clients: u32, seconds: u64) -> Result<Timetable> {
        let clock = Clock::new(Duration::from_secs(seconds))?;
        let secret = sixhop::host::secret::read(&self.path)?;
        Ok(Timetable::new(Subnet::new(PREFIX.parse()?)?, clock, &secret, clients, 1))
    }
}

fn load(lab: &TestLab, flags: &str) -> Result<Output> {
    let flags = format!("load --interface client0 --prefix {PREFIX} --json {flags}");
    Ok(sixhop(lab, Side::Client, &flags).output()?)
}

/// Runs a load and checks that no request was lost.
fn all_answered(lab: &TestLab, flags: &str, requests: u64) -> Result<()> {
    let output = load(lab, flags)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout)?;
    for (field, expected) in
        [("sent", requests), ("complete", requests), ("replies", 10 * requests)]
    {
        ensure!(result[field] == expected, "{field} is not {expected}: {result}");
    }
    for nothing in ["duplicates", "wrong_source", "corrupt"] {
        ensure!(result[nothing] == 0, "{nothing}: {result}");
    }
    ensure!(result.get("clock_steps").is_none(), "{result}");
    Ok(())
}

/// Serves and loads through some steps of one second, with the client's clock off by `offset`
/// seconds.
fn rotates(engine: &str, bind: &str, clients: u32, offset: f64) -> Result<()> {
    const RATE: u64 = 1000;
    const REQUESTS: u64 = 1500; // over one boundary at least
    let lab = TestLab::up()?;
    let secret = SecretFile::new()?;
    let flags = secret.flags(clients, 1);
    let mut server = Server::start(&lab, &format!("{flags} --bind {bind} --engine {engine}"))?;
    let ready = server.ready.clone();
    ensure!(
        ready["schedule"] == "mt6d" && ready["clients"] == clients && ready["rotate"] == 1.0,
        "{ready}"
    );
    let live = 3 * u64::from(clients);
    ensure!(ready["addresses"] == live, "{ready}");
    let asked = format!("{flags} --rate {RATE} --requests {REQUESTS} --clock-offset {offset}");
    all_answered(&lab, &asked, REQUESTS)?;
    wait_for_no_program(&lab, Side::Client)?;
    // Rotation events come by the step after next at the latest.
    let first = ready["step"].as_u64().context("a step")?;
    server.wait_for(|event| {
        event["event"] == "rotation"
            && event["step"].as_u64() > Some(first)
            && event["live"] == live
    })?;
    let totals = server.stop()?;
    ensure!(totals["answered"] == REQUESTS && totals["replies"] == 10 * REQUESTS, "{totals}");
    ensure!(totals["refused"] == serde_json::json!({}), "{totals}");
    let left = common::addresses(&lab)?;
    ensure!(left.len() == 1, "addresses remain: {left:?}");
    Ok(())
}

fn half_a_step() -> Result<()> {
    rotates("afxdp", "live-map", 1000, 0.5)?;
    rotates("afxdp", "live-map", 1000, -0.5)
}

fn every_engine_follows() -> Result<()> {
    for (index, engine) in engines().enumerate() {
        let (bind, offset) = [("netlink-batch", 0.4), ("netlink", -0.5)][index % 2];
        rotates(engine, bind, 50, offset).with_context(|| format!("{engine}, {bind}"))?;
    }
    Ok(())
}

/// Counts live addresses in the XDP program's own memory while it rotates.
fn three_are_live() -> Result<()> {
    const CLIENTS: u32 = 2000;
    const STEPS: u64 = 3;
    let lab = TestLab::up()?;
    let timetable = Arc::new(SecretFile::new()?.timetable(CLIENTS, 1)?);
    let mut program = Program::load(&ProgramConfig {
        port: 3540,
        addresses: 0,
        queues: 1,
        hidden: true,
        moving: Some(MovingAddresses { subnet: timetable.subnet(), clients: timetable.clients() }),
        reflect: None,
        screen: None,
    })?;
    program.add_prefix(PREFIX.parse()?)?;
    let live_addresses = Some(program.live_addresses()?);
    let mut rotation = lab.run_in(Side::Server, || {
        let link = netlink::link("server0")?;
        let place = BindContext { link: &link, prefix: PREFIX.parse()?, live_addresses };
        Rotation::start(Method::LiveMap, place, timetable, None, &mut |_| true)
    })?;
    let clients = u64::from(CLIENTS);
    ensure!(program.census()? == 3 * clients, "{} of {CLIENTS} clients", program.census()?);
    let stop = AtomicBool::new(false);
    let (mut looks, mut whole) = (0, 0);
    let mut steps = Vec::new();
    thread::scope(|scope| {
        let rotating = scope.spawn(|| {
            let show = |rotated| {
                steps.push(rotated);
                stop.store(steps.len() as u64 == STEPS, Ordering::Relaxed);
            };
            rotation.run(&stop, show, |_| {})
        });
        while !rotating.is_finished() {
            let live = program.census()?;
            ensure!(live <= 3 * clients, "{live} live");
            looks += 1;
            whole += u64::from(live == 3 * clients);
        }
        rotating.join().expect("the rotation does not panic")
    })?;
    // A count may be lower only if the step changes during it.
    ensure!(looks > 10 && whole * 10 > looks * 9, "{whole} of {looks}");
    ensure!(steps.windows(2).all(|two| two[1].step == two[0].step + 1), "{steps:?}");
    ensure!(steps.iter().all(|step| step.live == 3 * u64::from(CLIENTS)), "{steps:?}");
    Ok(())
}

/// The secret is all that stays between two servers.
fn started_again() -> Result<()> {
    let lab = TestLab::up()?;
    let secret = SecretFile::new()?;
    let flags = secret.flags(10_000, HOUR);
    let mut steps = Vec::new();
    for _ in 0..2 {
        let server = Server::start(&lab, &format!("{flags} --bind live-map"))?;
        steps.push(server.ready["step"].clone());
        all_answered(&lab, &format!("{flags} --rate 2000 --requests 2000"), 2000)?;
        wait_for_no_program(&lab, Side::Client)?;
        let totals = server.stop()?;
        ensure!(totals["answered"] == 2000, "{totals}");
    }
    // Equal unless the hour turned between the two starts.
    ensure!(steps[0] == steps[1] || unix_time() / 1_000_000_000 % HOUR < 60, "{steps:?}");
    let entries = std::fs::read_dir(secret.path.parent().context("a directory")?)?.count();
    ensure!(entries == 1, "{entries} files beside the secret");
    Ok(())
}

fn wrong_clock() -> Result<()> {
    let lab = TestLab::up()?;
    let secret = SecretFile::new()?;
    let flags = secret.flags(100, HOUR);
    let server = Server::start(&lab, &format!("{flags} --bind live-map"))?;
    let asked = format!("{flags} --rate 1000 --requests 200");
    for steps in [1, -1] {
        all_answered(&lab, &format!("{asked} --clock-offset {}", steps * HOUR as i64), 200)?;
        wait_for_no_program(&lab, Side::Client)?;
    }
    for (steps, words) in
        [(5, "5 steps (18000s) ahead of"), (-2, "2 steps (7200s) behind"), (32, "32 steps")]
    {
        let output = load(&lab, &format!("{asked} --clock-offset {}", steps * HOUR as i64))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let result: Value = serde_json::from_slice(&output.stdout)?;
        // 32 steps is the limit of the search, where the client finds the edge of the server's
        // window.
        let told = result["clock_steps"].as_i64().unwrap_or_default();
        ensure!(told == steps || steps == 32 && told.abs_diff(32) <= 1, "{steps}: {result}");
        ensure!(result["sent"] == 200 && result["answered"] == 0, "{result}");
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(
            steps == 32 || said.contains(words) && said.contains("tolerates one step"),
            "{said}"
        );
        wait_for_no_program(&lab, Side::Client)?;
    }
    // Further off, or with another secret, no step gets a reply, and the client says so.
    let other = SecretFile::new()?;
    for flags in [
        format!("{asked} --clock-offset {}", 40 * HOUR),
        format!("{} --rate 1000 --requests 200", other.flags(100, HOUR)),
    ] {
        let output = load(&lab, &flags)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(said.contains("within 32 steps") && said.contains("its --secret"), "{said}");
    }
    server.stop()?;
    Ok(())
}

fn group(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// Builds what a client sends between two Ethernet addresses, its own and the server's.
struct Sender {
    macs: ([u8; 6], [u8; 6]),
    /// Takes the replies. Without it, the client's kernel would answer them with ICMPv6 errors.
    _socket: UdpSocket,
    template: Template,
}

impl Sender {
    fn new(lab: &TestLab) -> Result<Self> {
        let macs = (link(lab, Side::Client)?.mac, link(lab, Side::Server)?.mac);
        let ends = Endpoints {
            source_mac: macs.0,
            destination_mac: macs.1,
            source: Side::Client.address(),
            source_port: 50_000,
            service_port: 3540,
        };
        let socket = lab.run_in(Side::Client, || {
            Ok(UdpSocket::bind(SocketAddrV6::new(ends.source, 50_000, 0, 0))?)
        })?;
        Ok(Self {
            macs,
            _socket: socket,
            template: Template::new(&ends, 32).map_err(anyhow::Error::msg)?,
        })
    }

    fn request<'a>(&self, frame: &'a mut [u8; 200], to: Ipv6Addr) -> &'a [u8] {
        let length = self.template.write(frame, to, Stamp { run: 1, sequence: 1 }).unwrap_or(0);
        &frame[..length]
    }

    fn solicitation(&self, target: Ipv6Addr) -> Result<Vec<u8>> {
        let mut body = target.octets().to_vec();
        body.extend([1, 1]);
        body.extend(self.macs.0);
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.macs.0, self.macs.1)
            .ipv6(Side::Client.address().octets(), group(target).octets(), 255)
            .icmpv6_raw(135, 0, [0; 4])
            .write(&mut frame, &body)?;
        Ok(frame)
    }
}

/// The source of an arrived frame, and whether it is a reply (or else an advertisement). `None` for
/// traffic of the server's kernel from its own addresses.
fn speaker(frame: &[u8]) -> Result<Option<(Ipv6Addr, bool)>> {
    let ip = etherparse::Ipv6HeaderSlice::from_slice(&frame[14..])
        .with_context(|| format!("{frame:x?}"))?;
    let source = ip.source_addr();
    if source == Side::Server.address() || source.is_unicast_link_local() {
        return Ok(None);
    }
    match (ip.next_header().0, &frame[54..]) {
        (17, [0x0d, 0xd4, ..]) => Ok(Some((source, true))),
        (58, [136, ..]) => Ok(Some((source, false))),
        _ => anyhow::bail!("unexpected frame: {frame:x?}"),
    }
}

/// Addresses in the window answer requests and solicitations. Those of earlier and later steps
/// answer neither.
fn outside_the_window(engine: &str) -> Result<()> {
    const CLIENTS: u32 = 100;
    let lab = TestLab::up()?;
    let secret = SecretFile::new()?;
    let timetable = secret.timetable(CLIENTS, HOUR)?;
    let _polling = have_client_poll(&lab)?;
    let server = Server::start(
        &lab,
        &format!("{} --bind live-map --engine {engine}", secret.flags(CLIENTS, HOUR)),
    )?;
    let now = server.ready["step"].as_u64().context("a step")?;
    let sender = Sender::new(&lab)?;
    let capture = PacketSocket::at(&lab, Side::Client)?;
    let mut frame = [0; 200];
    let window = || (0..u64::from(CLIENTS)).flat_map(|client| [-1i64, 0, 1].map(|by| (client, by)));
    let outside =
        || (0..u64::from(CLIENTS)).flat_map(|client| [-3i64, -2, 2, 3].map(|by| (client, by)));
    let address =
        |(client, by): (u64, i64)| timetable.address(client, now.saturating_add_signed(by));
    let mut answers = std::collections::HashMap::new();
    for to in outside().map(address) {
        capture.send(sender.request(&mut frame, to))?;
        capture.send(&sender.solicitation(to)?)?;
    }
    // One address at a time: a veth holds 256 frames, and each request gets ten replies.
    for to in window().map(address) {
        capture.send(sender.request(&mut frame, to))?;
        capture.send(&sender.solicitation(to)?)?;
        while answers.get(&to) != Some(&11) {
            let spoke = capture
                .receive()?
                .iter()
                .filter_map(|frame| speaker(frame).transpose())
                .collect::<Result<Vec<_>>>()?;
            spoke.into_iter().for_each(|(source, _)| *answers.entry(source).or_insert(0) += 1);
        }
    }
    // A request from one of our own live addresses to another.
    let mut own = sender.request(&mut frame, address((0, 0))).to_vec();
    let (source, other) = (address((1, 1)).octets(), Side::Client.address().octets());
    own[22..38].copy_from_slice(&source);
    // Keep the checksum valid: take from the payload's last word what the source's words gained.
    let sum = |bytes: &[u8]| {
        bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum::<u32>()
    };
    let fold = |mut sum: u32| {
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum
    };
    let end = own.len();
    let last = sum(&own[end - 2..]);
    let balanced = fold(last + fold(sum(&other)) + (0xffff - fold(sum(&source)))) as u16;
    own[end - 2..].copy_from_slice(&balanced.to_be_bytes());
    capture.send(&own)?;

    let count = 3 * CLIENTS;
    for live in window().map(address) {
        ensure!(answers.remove(&live) == Some(11), "{live} did not answer");
    }
    ensure!(answers.is_empty(), "other addresses answered: {answers:?}");
    let totals = server.stop()?;
    ensure!(totals["answered"] == count && totals["advertised"] == count, "{totals}");
    ensure!(totals["refused"] == serde_json::json!({ "source_own": 1 }), "{totals}");
    ensure!(totals["steering"]["dropped_hidden"] == 8 * CLIENTS, "{totals}");
    Ok(())
}

/// Probes of a scanner that knows the prefix, the port and the server's Ethernet address, while
/// addresses move.
fn a_million_probes() -> Result<()> {
    const PROBES: u64 = 1_000_000;
    let lab = TestLab::up()?;
    let secret = SecretFile::new()?;
    let _polling = have_client_poll(&lab)?;
    let mut server = Server::start(&lab, &format!("{} --bind live-map", secret.flags(1000, 1)))?;
    let timetable = secret.timetable(1000, 1)?;
    let sender = Sender::new(&lab)?;
    let capture = PacketSocket::at(&lab, Side::Client)?;
    let mut frame = [0; 200];
    let mut host = 0x0123_4567_89ab_cdef_u64;
    let mut probe = |count: u64| {
        for number in 0..count {
            // xorshift64*, whose period covers every number except 0.
            host ^= host >> 12;
            host ^= host << 25;
            host ^= host >> 27;
            let drawn = host.wrapping_mul(0x2545_f491_4f6c_dd1d);
            let to = Ipv6Addr::from_bits(0x2001_0db8_0001_0000 << 64 | u128::from(drawn));
            if number % 100 == 0 {
                capture.send(&sender.solicitation(to)?)?;
            } else {
                capture.send(sender.request(&mut frame, to))?;
            }
        }
        anyhow::Ok(())
    };
    // A full veth drops frames. Send until enough have arrived.
    let arrived = |event: &Value| event["steering"]["dropped_hidden"].as_u64().unwrap_or_default();
    let (mut sent, mut come) = (0, 0);
    while come < PROBES {
        let more = if sent == 0 { PROBES } else { PROBES / 10 };
        probe(more)?;
        sent += more;
        ensure!(sent < 3 * PROBES, "{come} of {sent} probes arrived");
        let before = come;
        server.wait_for(|event| {
            come = arrived(event).max(come);
            event["event"] == "stats" && (come >= PROBES || come > before)
        })?;
    }
    // The link keeps order: once this reply arrives, answers to earlier probes would have arrived.
    let now = timetable.clock().step(unix_time());
    let live = timetable.address(7, now);
    capture.send(sender.request(&mut frame, live))?;
    let mut replies = 0;
    while replies < 10 {
        for frame in capture.receive()? {
            if let Some(speaker) = speaker(&frame)? {
                ensure!(speaker == (live, true), "{speaker:?} answered a probe");
                replies += 1;
            }
        }
    }
    let totals = server.stop()?;
    ensure!(
        totals["answered"] == 1 && totals["advertised"] == 0 && totals["replies"] == 10,
        "{totals}"
    );
    Ok(())
}

/// The kernel needs more than a second to move so many addresses.
fn too_short() -> Result<()> {
    const CLIENTS: u64 = 1500;
    let lab = TestLab::up()?;
    let flags = SecretFile::new()?;
    let mut server = Server::start(
        &lab,
        &format!("{} --bind netlink-batch --engine socket-gso", flags.flags(CLIENTS as u32, 1)),
    )?;
    server.wait_for(|event| {
        event["event"] == "rotation"
            && event["late_ms"].as_f64() > Some(0.0)
            && event["clients_carried"]
                .as_u64()
                .is_some_and(|carried| (1..CLIENTS).contains(&carried))
    })?;
    server
        .wait_for(|event| event["event"] == "stats" && event["moves"]["late"].as_u64() > Some(0))?;
    server.stop()?;
    let left = common::addresses(&lab)?;
    ensure!(left.len() == 1, "{} addresses remain", left.len());
    Ok(())
}

fn bad_input() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let lab = TestLab::up()?;
    let secret = SecretFile::new()?;
    let path = secret.path.display().to_string();
    let open = SecretFile::new()?;
    std::fs::set_permissions(&open.path, std::fs::Permissions::from_mode(0o640))?;
    let short = SecretFile::new()?;
    std::fs::write(&short.path, "guess me")?;
    let flags = format!("--prefix {PREFIX} {}", secret.flags(10, 10));
    let serve = format!("serve --interface server0 {flags}");
    let load = format!("load --interface client0 {flags} --rate 10 --requests 1");
    let with = |file: &SecretFile| file.path.display().to_string();
    let chmod = format!("chmod 600 {}", open.path.display());
    let cases = [
        (Side::Server, serve.replace(&path, &with(&open)), 1, chmod.as_str()),
        (Side::Client, load.replace(&path, &with(&open)), 1, chmod.as_str()),
        (Side::Server, serve.replace(&path, &with(&short)), 1, "8 bytes"),
        (Side::Server, serve.replace(&path, "/dev/urandom"), 1, "not a regular file"),
        (Side::Server, serve.replace(&path, "/nowhere/secret"), 1, "/nowhere/secret"),
        (Side::Server, serve.replace("--rotate 10s", "--rotate 999ms"), 2, "one second"),
        (Side::Server, serve.replace("/64", "/48"), 2, "/64"),
        (Side::Server, serve.replace("--clients 10", "--clients 0"), 2, "clients"),
        (Side::Server, serve.replace("--clients 10", ""), 2, "--clients"),
        (Side::Server, serve.replace("--schedule mt6d", ""), 2, "--schedule"),
        (Side::Server, format!("{serve} --addresses 10"), 2, "--addresses"),
        (Side::Server, format!("{serve} --seed 2"), 2, "--seed"),
        (Side::Server, format!("serve --interface server0 --prefix {PREFIX}"), 2, "--addresses"),
        (Side::Server, format!("{serve} --bind anyip"), 1, "live-map"),
        (Side::Server, format!("{serve} --bind none"), 1, "live-map"),
        (Side::Client, format!("{load} --clock-offset x"), 2, "seconds"),
        (Side::Client, load.clone(), 1, "the server may be down"),
    ];
    for (side, arguments, status, words) in cases {
        let output = sixhop(&lab, side, &arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(status) && said.contains(words),
            "{arguments}: {:?}, {said}",
            output.status
        );
        ensure!(said.lines().count() == 1 && output.stdout.is_empty(), "{arguments}: {said}");
    }
    ensure!(link(&lab, Side::Server)?.xdp.is_none());
    Ok(())
}
