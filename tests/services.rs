//! What a service is told and may do, on every engine that runs one: servers of the library, in
//! this process.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, PREFIX, about, engines, library, serve};
use crate::common::{TestLab, ip, link, trial};
use crate::privilege::threads;
use anyhow::{Context, Result, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use sixhop::address::mt6d::{Clock, Subnet, Timetable};
use sixhop::address::{Pool, Secret, Targets};
use sixhop::engine::EngineKind;
use sixhop::host::sandbox::Sandbox;
use sixhop::lab::{Lab, Side};
use sixhop::live::{Method, unix_time};
use sixhop::server::ServerConfig;
use sixhop::service::{Answer, Client, Datagram, Outbox, Peer, Service, Unsent};

const PORT: u16 = 3540;
const CLIENTS: u32 = 60;
const HOUR: Duration = Duration::from_secs(3600);

pub fn trials() -> Vec<Trial> {
    let told = ways().map(|(engine, bind)| {
        let name = format!("{engine}_{bind}_tells_which_client_asks").replace([' ', '-'], "_");
        trial(&name, move || tells_which_client_asks(engine, bind))
    });
    let still = trial("where_addresses_stay_there_are_no_clients", no_clients);
    let unasked = ways().flat_map(|(engine, bind)| {
        let named = |what: &str, test: fn(&'static str, Method) -> Result<()>| {
            let name = format!("{engine}_{bind}_{what}").replace([' ', '-'], "_");
            trial(&name, move || test(engine, bind))
        };
        [
            named("sends_without_being_asked", sends),
            named("sends_without_being_asked_in_the_sandbox", sends_in_the_sandbox),
            named("is_silent_once_the_address_has_moved", is_silent),
            named("is_silent_once_it_has_stopped", is_silent_at_the_end),
        ]
        .into_iter()
        .chain(about(engine).sees_frames.then(|| named("sends_by_the_socket_behind", sends_behind)))
        .chain(about(engine).sees_frames.then(|| named("sends_from_another_mac", changes_address)))
    });
    told.chain([still]).chain(unasked).collect()
}

/// The word by which this program is started as a server in the sandbox, for engine, way and lab:
/// the sandbox is for good.
const CONFINED: &str = "--speak-confined";

/// What this program does where a test of this file has started it.
pub fn child() {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, CONFINED, engine, bind, lab] =
        &*arguments.iter().map(String::as_str).collect::<Vec<_>>()
    else {
        return;
    };
    let (engine, bind) = ways()
        .find(|(other, way)| other == engine && way.to_string() == *bind)
        .expect("an engine and a way");
    confined(engine, bind, lab).unwrap();
    std::process::exit(0);
}

/// Each engine that runs services, with the ways to make addresses live that differ for it.
fn ways() -> impl Iterator<Item = (&'static str, Method)> {
    let any = engines().filter(|engine| about(engine).any_service);
    any.map(|engine| (engine, Method::NetlinkBatch)).chain([("afxdp", Method::LiveMap)])
}

fn timetable(period: Duration) -> Result<Arc<Timetable>> {
    let (subnet, clock) = (Subnet::new(PREFIX.parse()?)?, Clock::new(period)?);
    let secret = Secret::new((0..32).collect())?;
    Ok(Arc::new(Timetable::new(subnet, clock, &secret, CLIENTS, 1)))
}

/// A server of the library that is to run `engine` for `targets`.
fn config(engine: &str, bind: Method, targets: impl Into<Targets>) -> Result<ServerConfig> {
    let pool = Pool::new(PREFIX.parse()?, 1, 1)?;
    let config = library(engine, pool, bind)?;
    Ok(ServerConfig { targets: targets.into(), port: PORT, cores: vec![0], ..config })
}

/// A socket of the client.
fn client(lab: &Lab) -> Result<UdpSocket> {
    lab.run_in(Side::Client, || {
        let socket = UdpSocket::bind((Side::Client.address(), 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(socket)
    })
}

/// Answers with who asks: number and step, or nothing where nobody knows.
#[derive(Clone)]
struct Whose;

impl Service for Whose {
    const CLIENTS: bool = true;

    fn answer(&mut self, datagram: &mut Datagram) -> Answer {
        let Some(Client { number, step }) = datagram.client() else {
            return Answer::changed(0);
        };
        datagram.reply([number, step].map(u64::to_be_bytes).as_flattened())
    }
}

/// Asks `address` for what [`Whose`] says.
fn whose(socket: &UdpSocket, address: Ipv6Addr) -> Result<Vec<u8>> {
    socket.send_to(b"who am I?", (address, PORT))?;
    answer(socket, address)
}

fn answer(socket: &UdpSocket, address: Ipv6Addr) -> Result<Vec<u8>> {
    let mut got = [0; 100];
    let (length, from) = socket.recv_from(&mut got).context("no answer")?;
    ensure!(from == SocketAddr::from((address, PORT)), "from {from}, not {address}");
    Ok(got[..length].to_vec())
}

fn tells_which_client_asks(engine: &'static str, bind: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let timetable = timetable(HOUR)?;
    let config = config(engine, bind, Targets::Moving(timetable.clone()))?;
    let now = || timetable.clock().step(unix_time());
    let (asked, counters) = serve(&lab, &config, &Whose, || {
        let socket = client(&lab)?;
        let step = now();
        let mut asked = 0;
        // Those that are live no more, and not yet, come first: they would be answered first.
        for other in [step - 2, step + 2] {
            socket.send_to(b"?", (timetable.address(3, other), PORT))?;
        }
        for number in (0..CLIENTS.into()).step_by(7) {
            for step in step - 1..=step + 1 {
                let told = whose(&socket, timetable.address(number, step));
                if now() != step && told.is_err() {
                    continue; // the hour has turned meanwhile
                }
                let expected = [number, step].map(u64::to_be_bytes);
                ensure!(told? == expected.as_flattened(), "{number} in {step}");
                asked += 1;
            }
        }
        let kind = config.engine.context("an engine")?;
        if kind.sees_frames() {
            ask_behind(&lab, &socket, timetable.address(8, step), b"who am I?")?;
            let expected = [8, step].map(u64::to_be_bytes);
            let told = answer(&socket, timetable.address(8, step))?;
            ensure!(told == expected.as_flattened(), "by the socket behind: {told:x?}");
            asked += 1;
        }
        Ok(asked)
    })?;
    ensure!(counters.answered == asked && counters.replies == asked, "{counters:?}");
    ensure!(counters.answered_behind == u64::from(is_seen(&config)), "{counters:?}");
    Ok(())
}

fn is_seen(config: &ServerConfig) -> bool {
    config.engine.is_some_and(EngineKind::sees_frames)
}

/// Sends a request with a Destination Options header, which the kernel takes apart, from where
/// `socket` is.
fn ask_behind(lab: &Lab, socket: &UdpSocket, address: Ipv6Addr, payload: &[u8]) -> Result<()> {
    const PADDING: [u8; 8] = [17, 0, 1, 4, 0, 0, 0, 0]; // UDP comes next; PadN
    let (own, server) = (link(lab, Side::Client)?, link(lab, Side::Server)?);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(own.mac, server.mac)
        .ipv6(Side::Client.address().octets(), address.octets(), 64)
        .udp(socket.local_addr()?.port(), PORT)
        .write(&mut frame, payload)?;
    frame.splice(54..54, PADDING);
    frame[19] += 8;
    frame[20] = 60;
    lab.run_in(Side::Client, || PacketSocket::on(own.index)?.send(&frame))
}

fn no_clients() -> Result<()> {
    let lab = TestLab::up()?;
    let pool = Pool::new(PREFIX.parse()?, 1, 1)?;
    let config = config("afxdp", Method::LiveMap, pool.clone())?;
    let (told, _) = serve(&lab, &config, &Whose, || whose(&client(&lab)?, pool.address(0)))?;
    ensure!(told.is_empty(), "{told:x?}");
    Ok(())
}

/// Sends to whoever asked, without being asked, as many datagrams as the request's first byte says;
/// with 0, until it must not.
#[derive(Clone, Default)]
struct Subscribe {
    peer: Option<(Peer, u8, u8)>,
    /// Not before then: turns come more often than they are wanted.
    due: Option<Instant>,
    told: Arc<Told>,
}

/// Between two of them.
const PACE: Duration = Duration::from_millis(2);

/// What became of what it sent.
#[derive(Default)]
struct Told {
    sent: AtomicU64,
    /// How often the address was live no more.
    silent: AtomicU64,
    /// When it was so for the first time, in nanoseconds since 1970.
    since: AtomicU64,
}

impl Service for Subscribe {
    const UNASKED: bool = true;

    fn answer(&mut self, datagram: &mut Datagram) -> Answer {
        let wanted = datagram.payload().first().copied().unwrap_or(0);
        self.peer = Some((datagram.peer(), 0, wanted));
        Answer::same()
    }

    fn turn(&mut self, outbox: &mut impl Outbox) -> Duration {
        let Some((peer, next, wanted)) = &mut self.peer else { return Duration::MAX };
        if *wanted > 0 && next == wanted {
            return Duration::MAX;
        }
        let now = Instant::now();
        if let Some(due) = self.due.filter(|due| *due > now) {
            return due - now;
        }
        self.due = Some(now + PACE);
        let sent = outbox.send(peer, |buffer| {
            buffer[..2].copy_from_slice(&[0xee, *next]);
            2
        });
        match sent {
            Ok(()) => {
                *next = next.wrapping_add(1);
                self.told.sent.fetch_add(1, Ordering::Relaxed);
            }
            Err(Unsent::NotLive) => {
                if self.told.silent.load(Ordering::Relaxed) == 0 {
                    self.told.since.store(unix_time(), Ordering::Relaxed);
                }
                self.told.silent.fetch_add(1, Ordering::Release);
            }
            Err(_) => {}
        }
        PACE
    }
}

/// Asks for `count` datagrams.
fn subscribe(socket: &UdpSocket, address: Ipv6Addr, count: u8) -> Result<()> {
    socket.send_to(&[count], (address, PORT))?;
    ensure!(answer(socket, address)? == [count]);
    Ok(())
}

/// How many are sent to who asks for some.
const COUNT: u8 = 200;

/// Waits for as many, in order.
fn all_come(socket: &UdpSocket, address: Ipv6Addr) -> Result<()> {
    for next in 0..COUNT {
        let got = answer(socket, address)?;
        ensure!(got == [0xee, next], "{got:x?}, not {next}");
    }
    Ok(())
}

fn sends(engine: &'static str, bind: Method) -> Result<()> {
    sends_on(&*TestLab::up()?, engine, bind, false)
}

fn sends_on(lab: &Lab, engine: &str, bind: Method, is_confined: bool) -> Result<()> {
    let timetable = timetable(HOUR)?;
    let config = config(engine, bind, Targets::Moving(timetable.clone()))?;
    let config = ServerConfig { sandbox: Sandbox::new(is_confined), ..config };
    let (threads, counters) = serve(lab, &config, &Subscribe::default(), || {
        let socket = client(lab)?;
        let address = timetable.address(5, timetable.clock().step(unix_time()));
        subscribe(&socket, address, COUNT)?;
        all_come(&socket, address)?;
        threads(std::process::id())
    })?;
    // Main, engine, and worker.
    let filtered = threads.values().filter(|fields| fields["Seccomp"] == "2").count();
    ensure!(!is_confined || filtered >= 3, "{filtered} threads are confined");
    ensure!((counters.answered, counters.replies) == (1, 1), "{counters:?}");
    ensure!((counters.unasked, counters.unsent) == (COUNT.into(), 0), "{counters:?}");
    ensure!(counters.frames_lost == 0 && counters.invalid == 0, "{counters:?}");
    Ok(())
}

fn sends_in_the_sandbox(engine: &'static str, bind: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let mut child = Command::new(std::env::current_exe()?);
    let output = child.args([CONFINED, engine, &bind.to_string(), lab.name()]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn confined(engine: &str, bind: Method, lab: &str) -> Result<()> {
    sends_on(&Lab::named(lab)?, engine, bind, true)
}

fn sends_behind(engine: &'static str, bind: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let timetable = timetable(HOUR)?;
    let config = config(engine, bind, Targets::Moving(timetable.clone()))?;
    let ((), counters) = serve(&lab, &config, &Subscribe::default(), || {
        let socket = client(&lab)?;
        let address = timetable.address(5, timetable.clock().step(unix_time()));
        // One peer is the worker's, and the next that of the thread behind it.
        socket.send_to(&[1], (address, PORT))?;
        for expected in [&[1][..], &[0xee, 0]] {
            ensure!(answer(&socket, address)? == expected);
        }
        ask_behind(&lab, &socket, address, &[COUNT])?;
        ensure!(answer(&socket, address)? == [COUNT]);
        all_come(&socket, address)
    })?;
    ensure!((counters.answered, counters.answered_behind) == (2, 1), "{counters:?}");
    ensure!((counters.unasked, counters.unsent) == (1 + u64::from(COUNT), 0), "{counters:?}");
    Ok(())
}

fn is_silent_at_the_end(engine: &'static str, bind: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let timetable = timetable(HOUR)?;
    let config = config(engine, bind, Targets::Moving(timetable.clone()))?;
    let service = Subscribe::default();
    let ((socket, address, mut got), counters) = serve(&lab, &config, &service, || {
        let socket = client(&lab)?;
        let address = timetable.address(5, timetable.clock().step(unix_time()));
        subscribe(&socket, address, 0)?;
        for _ in 0..10 {
            answer(&socket, address)?;
        }
        Ok((socket, address, 10))
    })?;
    ensure!(Arc::strong_count(&service.told) == 1, "a clone of the service is left");
    // What the server's kernel sends now comes behind all that the server has sent.
    let end = (Side::Client.address(), socket.local_addr()?.port());
    lab.run_in(Side::Server, || {
        let last = UdpSocket::bind((Side::Server.address(), 0))?;
        Ok(last.send_to(b"the end", end)?)
    })?;
    while answer(&socket, address).is_ok() {
        got += 1;
    }
    let sent = service.told.sent.load(Ordering::Relaxed);
    ensure!((counters.unasked, counters.unsent) == (sent, 0), "{sent}: {counters:?}");
    ensure!(got == sent, "{got} came, and {sent} were sent");
    socket.set_nonblocking(true)?;
    ensure!(answer(&socket, address).is_err(), "more comes after the end");
    Ok(())
}

fn changes_address(engine: &'static str, bind: Method) -> Result<()> {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0xaa, 2];
    let lab = TestLab::up()?;
    let timetable = timetable(HOUR)?;
    let config = config(engine, bind, Targets::Moving(timetable.clone()))?;
    let own = link(&lab, Side::Client)?;
    let before = link(&lab, Side::Server)?.mac;
    serve(&lab, &config, &Subscribe::default(), || {
        let socket = client(&lab)?;
        let capture = lab.run_in(Side::Client, || PacketSocket::on(own.index))?;
        subscribe(&socket, timetable.address(5, timetable.clock().step(unix_time())), 0)?;
        // Of the frames of two bytes that nobody asked for.
        let comes_from = |mac: [u8; 6]| -> Result<()> {
            let give_up = Instant::now() + PATIENCE;
            let is_from = |frame: &Vec<u8>| frame.get(62) == Some(&0xee) && frame[6..12] == mac;
            while !capture.receive()?.iter().any(is_from) {
                ensure!(Instant::now() < give_up, "no frame from {mac:02x?}");
            }
            Ok(())
        };
        comes_from(before)?;
        let server = lab.namespace(Side::Server);
        ip(&format!("-n {server} link set server0 address 02:00:00:00:aa:02"))?;
        comes_from(OTHER)
    })?;
    Ok(())
}

fn is_silent(engine: &'static str, bind: Method) -> Result<()> {
    let lab = TestLab::up()?;
    let timetable = timetable(Duration::from_secs(1))?;
    let config = config(engine, bind, Targets::Moving(timetable.clone()))?;
    let service = Subscribe::default();
    let told = service.told.clone();
    let (got, counters) = serve(&lab, &config, &service, || {
        let socket = client(&lab)?;
        let step = timetable.clock().step(unix_time());
        let address = timetable.address(5, step);
        subscribe(&socket, address, 0)?;
        // It goes on trying, and nothing comes of it.
        let give_up = Instant::now() + PATIENCE;
        socket.set_read_timeout(Some(Duration::from_millis(10)))?;
        let mut got = 0;
        while told.silent.load(Ordering::Acquire) < 100 {
            ensure!(Instant::now() < give_up, "it speaks without an end");
            got += u64::from(answer(&socket, address).is_ok());
        }
        let since = timetable.clock().step(told.since.load(Ordering::Relaxed));
        ensure!(since >= step + 2, "silent in {since}, and asked in {step}");
        while answer(&socket, address).is_ok() {
            got += 1;
        }
        Ok(got)
    })?;
    let sent = told.sent.load(Ordering::Relaxed);
    ensure!(sent > 0 && counters.unasked == sent, "{sent}: {counters:?}");
    ensure!(got == sent, "{got} came, and {sent} were sent");
    Ok(())
}
