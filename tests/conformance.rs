//! Sends the same whole frames to a server of every engine and compares the replies with those that
//! `wire` makes.
//!
//! Engines that answer through the kernel's stack differ in two fields only: hop limit and flow
//! label. The comparison masks both.
//!
//! Servers of the library, in this process, run a service that changes length and payload. A UDP
//! socket asks them, so the kernel checks the lengths and checksums of their replies.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};

use crate::common::packet::{PacketSocket, udp_frame};
use crate::common::server::{self, PATIENCE, PREFIX, Server, about, engines};
use crate::common::{TestLab, have_client_poll, ip, link, trial};
use anyhow::{Result, anyhow, bail, ensure};
use libtest_mimic::Trial;
use sixhop::address::Pool;
use sixhop::engine::{EngineError, EngineKind};
use sixhop::lab::Side;
use sixhop::live::Method;
use sixhop::policy::Handler;
use sixhop::server::{self as library, ServerConfig};
use sixhop::service::{Answer, Datagram, Service};
use sixhop::wire::{MAX_PAYLOAD, Refusal};

const ADDRESSES: u64 = 20;
const PORT: u16 = 3540;
const REPLIES: usize = 10;

pub fn trials() -> Vec<Trial> {
    let all = engines().map(|engine| {
        let name = format!("{engine}_conforms").replace('-', "_");
        trial(&name, move || conforms(engine, "--bind netlink-down"))
    });
    // Engines with an XDP program also run with live-map and in generic mode.
    let steering = engines().filter(|engine| about(engine).steers);
    let ways = steering.flat_map(|engine| {
        [("live_map", "--bind live-map"), ("generic", "--bind netlink-down --attach generic")].map(
            |(way, flags)| {
                trial(&format!("{engine}_conforms_in_{way}"), move || conforms(engine, flags))
            },
        )
    });
    // The XDP program can only echo.
    let services = engines().filter(|engine| about(engine).any_service).flat_map(|engine| {
        [("longer", Longer::by(1)), ("longest", Longer::by(usize::MAX)), ("half", Longer::by(0))]
            .map(|(way, service)| {
                let name = format!("{engine}_answers_{way}").replace([' ', '-'], "_");
                trial(&name, move || answers_otherwise(engine, service))
            })
    });
    let refused = trial("reflect_runs_no_other_service", reflect_runs_no_other);
    all.chain(ways).chain(services).chain([refused]).collect()
}

/// Reverses the payload, then appends `by` bytes, or as many as fit. If `by` is 0, it answers with
/// half of the reversed payload. The request's first byte says how many replies to send.
#[derive(Clone, Copy)]
struct Longer {
    by: usize,
}

impl Longer {
    fn by(by: usize) -> Self {
        Self { by }
    }

    /// Replaces the first `length` bytes of `buffer` with the answer and returns its length.
    fn change(self, buffer: &mut [u8], length: usize) -> usize {
        buffer[..length].reverse();
        let end = length.saturating_add(self.by).min(buffer.len());
        buffer[length..end].fill(0xaa);
        if self.by == 0 { length / 2 } else { end }
    }
}

impl Service for Longer {
    fn answer(&mut self, datagram: &mut Datagram) -> Answer {
        let (length, copies) = (datagram.payload().len(), datagram.payload().first().copied());
        let length = self.change(datagram.buffer(), length);
        Answer::changed(length).times(copies.unwrap_or(1))
    }
}

/// Configures a server of the library with `engine` and 20 addresses.
fn config(engine: &str) -> Result<(ServerConfig, Pool)> {
    let pool = Pool::new(PREFIX.parse()?, ADDRESSES, 1)?;
    let config = server::library(engine, pool.clone(), Method::NetlinkDown)?;
    Ok((ServerConfig { port: PORT, cores: vec![0], ..config }, pool))
}

fn answers_otherwise(engine: &str, service: Longer) -> Result<()> {
    let lab = TestLab::up()?;
    let (config, pool) = config(engine)?;
    let ((requests, silent, replies), counters) = server::serve(&lab, &config, &service, || {
        lab.run_in(Side::Client, || ask_for_other_answers(&pool, service))
    })?;
    let refused = counters.refused.get(Refusal::NoAnswer.name()).copied().unwrap_or(0);
    ensure!((counters.answered, refused) == (requests, silent), "{counters:?}");
    ensure!(counters.replies == replies && counters.unsent == 0, "{counters:?}");
    Ok(())
}

/// Sends requests and checks each reply. Returns how many requests were answered, how many were
/// not, and how many replies came.
fn ask_for_other_answers(pool: &Pool, service: Longer) -> Result<(u64, u64, u64)> {
    let socket = UdpSocket::bind((Side::Client.address(), 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut got = [0; 2 * MAX_PAYLOAD];
    let (mut requests, mut silent, mut replies) = (0, 0, 0);
    for (index, size) in
        (0..).zip([0, 1, 2, 3, 17, 32, 33, 1000, 1001, MAX_PAYLOAD - 1, MAX_PAYLOAD])
    {
        for copies in [0, 1, 10] {
            let mut payload: Vec<_> = (0..size).map(|byte| (byte * 251 + size) as u8).collect();
            payload.iter_mut().take(1).for_each(|first| *first = copies);
            let mut answer = payload.clone();
            answer.resize(MAX_PAYLOAD, 0);
            let length = service.change(&mut answer, size);
            let destination = pool.address(index % ADDRESSES);
            socket.send_to(&payload, (destination, PORT))?;
            let copies = if size == 0 { 1 } else { u64::from(copies) };
            for _ in 0..copies {
                let (count, from) = socket.recv_from(&mut got)?;
                ensure!(from == SocketAddr::from((destination, PORT)), "from {from}");
                ensure!(got[..count] == answer[..length], "{size} bytes: {:x?}", &got[..count]);
            }
            *(if copies == 0 { &mut silent } else { &mut requests }) += 1;
            replies += copies;
        }
    }
    Ok((requests, silent, replies))
}

fn reflect_runs_no_other() -> Result<()> {
    let lab = TestLab::up()?;
    let (config, _) = config("reflect")?;
    let started = lab.run_in(Side::Server, || {
        Ok(library::Server::start_with(&config, &Longer::by(1), &mut |_| true).map(drop))
    })?;
    let Err(error) = started else { bail!("reflect started with another service") };
    let said = format!("{error:#}");
    ensure!(said.contains("reflect only sends requests back"), "{said}");
    let library::ServerError::Engine(cause) = &error else { bail!("{error:?}") };
    let why = cause.downcast_ref();
    ensure!(why == Some(&EngineError::OnlyEchoes(EngineKind::REFLECT)), "{error:?}");
    Ok(())
}

/// The addresses of both ends of the link.
struct Ends {
    client_mac: [u8; 6],
    server_mac: [u8; 6],
    pool: Pool,
    /// The pool's first address that is not live.
    not_live: Ipv6Addr,
}

impl Ends {
    fn request(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        ports: (u16, u16),
        payload: &[u8],
    ) -> Vec<u8> {
        let macs = [self.client_mac, self.server_mac];
        let mut frame = udp_frame(macs, source, destination, ports, payload);
        frame[15..18].copy_from_slice(&[0x0a, 0xbc, 0xde]); // a flow label
        frame
    }

    /// Requests that must be answered, from these addresses of the client.
    fn right(&self, clients: &[Ipv6Addr]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (index, size) in
            [0, 1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 511, 1000, 1451, MAX_PAYLOAD]
                .into_iter()
                .enumerate()
        {
            let payload: Vec<_> = (0..size).map(|byte| (byte * 251 + size) as u8).collect();
            let (client, destination) =
                (clients[index % clients.len()], self.pool.address(index as u64));
            frames.push(self.request(client, destination, (40_000 + index as u16, PORT), &payload));
        }
        let plain = |port| self.request(clients[0], self.pool.address(3), (port, PORT), &[7; 32]);
        frames.extend([1, 53, PORT - 1, PORT + 1, u16::MAX].map(plain));
        // A checksum of zero, which is sent as all ones.
        let mut zero = self.request(clients[0], self.pool.address(4), (50_000, PORT), &[0; 32]);
        let [high, low] = [zero[60], zero[61]];
        zero[62..64].copy_from_slice(&[high, low]);
        zero[60..62].fill(0xff);
        frames.push(zero);
        // Padding of a short frame, and bytes between the end of the datagram and that of the
        // packet.
        let mut padded = self.request(clients[0], self.pool.address(5), (50_001, PORT), &[1; 3]);
        padded.resize(90, 0xee);
        frames.push(padded.clone());
        padded[19] += 9;
        frames.push(padded);
        frames
    }

    /// Requests that must not be answered, with the reason that an engine counts if it sees whole
    /// frames. Other engines never see some of them.
    fn wrong(&self, client: Ipv6Addr) -> Result<Vec<(Refusal, Vec<u8>)>> {
        let (live, own) = (self.pool.address(7), Side::Server.address());
        let right = self.request(client, live, (50_000, PORT), &[7; 32]);
        let damaged = |change: fn(&mut Vec<u8>)| {
            let mut frame = right.clone();
            change(&mut frame);
            frame
        };
        let from = |source| self.request(source, live, (50_000, PORT), &[7; 32]);
        let port = |port| self.request(client, live, (port, PORT), &[7; 32]);
        Ok(vec![
            (Refusal::NotUdp, damaged(|frame| frame[14] = 0x40)),
            (Refusal::NotUdp, damaged(|frame| frame[20] = 59)), // no next header
            (Refusal::BadLength, damaged(|frame| frame.truncate(93))),
            (Refusal::BadLength, damaged(|frame| frame[19] += 1)),
            (Refusal::BadLength, damaged(|frame| frame[19] = 7)),
            (Refusal::BadLength, damaged(|frame| frame[59] += 1)),
            (Refusal::BadLength, damaged(|frame| frame[59] = 7)),
            (Refusal::NoChecksum, damaged(|frame| frame[60..62].fill(0))),
            (Refusal::BadChecksum, damaged(|frame| frame[60] ^= 0x80)),
            (Refusal::BadChecksum, damaged(|frame| frame[93] ^= 1)),
            (Refusal::BadChecksum, damaged(|frame| frame[37] ^= 1)), // of the source
            (Refusal::BadChecksum, damaged(|frame| frame[55] ^= 1)), // of its port
            (Refusal::OtherPort, self.request(client, live, (50_000, PORT + 1), &[7; 32])),
            (Refusal::SourceMulticast, from("ff02::1".parse()?)),
            (Refusal::SourceUnspecified, from(Ipv6Addr::UNSPECIFIED)),
            (Refusal::SourceLoopback, from(Ipv6Addr::LOCALHOST)),
            (Refusal::SourceOwn, from(live)),
            (Refusal::SourceOwn, from(self.pool.address(8))),
            (Refusal::SourceOwn, from(own)),
            (Refusal::SourceServicePort, port(PORT)),
            (Refusal::SourcePortZero, port(0)),
            (
                Refusal::DestinationNotOurs,
                self.request(client, self.not_live, (50_000, PORT), &[7; 32]),
            ),
            (Refusal::DestinationNotOurs, self.request(client, own, (50_000, PORT), &[7; 32])),
        ])
    }
}

/// Whether the service sent this frame.
fn is_reply(frame: &[u8]) -> bool {
    frame.len() >= 62
        && frame[12..14] == [0x86, 0xdd]
        && frame[20] == 17
        && frame[54..56] == PORT.to_be_bytes()
}

/// Masks the fields in which engines may differ.
fn masked(mut frame: Vec<u8>) -> Vec<u8> {
    frame[15] &= 0xf0;
    frame[16..18].fill(0);
    frame[21] = 0;
    frame
}

fn conforms(engine: &str, flags: &str) -> Result<()> {
    let lab = TestLab::up()?;
    let _polling = have_client_poll(&lab)?;
    let clients = [Side::Client.address(), "2001:db8:1::a".parse()?, "2001:db8:1::b".parse()?];
    for client in &clients[1..] {
        ip(&format!(
            "-n {} address add {client}/64 dev client0 nodad",
            lab.namespace(Side::Client)
        ))?;
    }
    let ends = Ends {
        client_mac: link(&lab, Side::Client)?.mac,
        server_mac: link(&lab, Side::Server)?.mac,
        pool: Pool::new(PREFIX.parse()?, ADDRESSES, 1)?,
        not_live: Pool::new(PREFIX.parse()?, ADDRESSES + 1, 1)?.address(ADDRESSES),
    };
    let handler = Handler::new(PORT, ends.pool.clone(), vec![Side::Server.address()]);
    let right = ends.right(&clients);
    let wrong = ends.wrong(clients[0])?;
    for (refusal, frame) in &wrong {
        ensure!(
            handler.answer(&mut frame.clone()) == Err(*refusal),
            "not {}: {frame:x?}",
            refusal.name()
        );
    }

    // One core, so one worker, which takes requests in the order of the link.
    let flags =
        format!("--addresses {ADDRESSES} --engine {engine} --replies {REPLIES} --cores 0 {flags}");
    let server = Server::start(&lab, &flags)?;
    let capture = PacketSocket::at(&lab, Side::Client)?;
    let mut wrong_ones = wrong.iter();
    let mut expected = Vec::new();
    let mut replies = Vec::new();
    for (index, request) in right.iter().enumerate() {
        // Send a share of the wrong requests before each right one; the last right one comes after
        // all.
        let share = wrong_ones.len().div_ceil(right.len() - index);
        wrong_ones.by_ref().take(share).try_for_each(|(_, frame)| capture.send(frame))?;
        capture.send(request)?;
        let mut reply = request.clone();
        let length = handler.answer(&mut reply).map_err(|refusal| anyhow!("{}", refusal.name()))?;
        reply.truncate(length);
        expected.extend(vec![masked(reply); REPLIES]);
        while replies.len() < expected.len() {
            replies
                .extend(capture.receive()?.into_iter().filter(|frame| is_reply(frame)).map(masked));
        }
    }
    let totals = server.stop()?;
    replies.extend(capture.drain()?.into_iter().filter(|frame| is_reply(frame)).map(masked));
    expected.sort();
    replies.sort();
    let differs = expected.iter().zip(&replies).find(|(expected, reply)| expected != reply);
    ensure!(differs.is_none(), "expected reply, and the one that came: {differs:x?}");
    ensure!(replies.len() == expected.len(), "{} replies, not {}", replies.len(), expected.len());
    ensure!(totals["answered"] == right.len() && totals["replies"] == expected.len(), "{totals}");

    // Engines that see whole frames must also count each refusal under its own reason.
    if about(engine).steers {
        let steered = wrong.iter().filter(|(refusal, frame)| {
            frame[20] == 17 && ![Refusal::OtherPort, Refusal::DestinationNotOurs].contains(refusal)
        });
        // The socket behind the program gets the request to an address of the kernel.
        let mut refused = BTreeMap::from([(Refusal::DestinationNotOurs.name(), 1)]);
        for (refusal, _) in steered {
            *refused.entry(refusal.name()).or_insert(0) += 1;
        }
        ensure!(
            totals["refused"] == serde_json::json!(refused),
            "{refused:?} should have been refused: {totals}"
        );
    }
    Ok(())
}
