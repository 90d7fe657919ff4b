//! With `live-map`, an address that is not live stays silent on every path into the kernel: through
//! any change of the interface, after the server ends, and after it is killed together with its
//! guard.
//!
//! | test | what happens |
//! |---|---|
//! | `whatever_is_done_*` | every change, in random order; `SIXHOP_SEED` repeats a run |
//! | `queues_that_have_no_program_*` | a veth gains or loses queues |
//! | `killed_with_its_guard_*` | rule and route stay, and nothing renews them |
//! | `an_ethernet_address_that_changes_*` | to the XDP program, requests are for another station |
//! | `a_solicitation_behind_*` | the kernel should answer for others (proxy_ndp) |
//! | `other_tc_programs_*`, `without_room_at_tc_*` | other programs are at tc too |

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::Read;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::common;
use crate::common::packet::PacketSocket;
use crate::common::server::{PATIENCE, PREFIX, Server};
use crate::common::{TestLab, ip, link, trial};
use anyhow::{Context, Result, ensure};
use etherparse::{Ethernet2Header, PacketBuilder, PacketBuilderStep};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use sixhop::address::Pool;
use sixhop::lab::Side;
use sixhop::net::netlink;

const PORT: u16 = 3540;
const ADDRESSES: u64 = 10;
const QUEUES: u32 = 4;

/// Probes in the test that does everything.
const PROBES: usize = 1000;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("whatever_is_done_to_the_interface_who_is_not_live_is_silent", whatever_is_done),
        trial("queues_that_have_no_program_end_the_server_and_nobody_answers", queues_change),
        trial("killed_with_its_guard_nobody_answers", killed_with_its_guard),
        trial("an_ethernet_address_that_changes_makes_nobody_answer", ethernet_address_changes),
        trial(
            "a_solicitation_behind_options_is_not_answered_by_the_kernel",
            solicitation_behind_options,
        ),
        trial("other_tc_programs_keep_working", other_tc_programs),
        trial("without_room_at_tc_fragments_meet_silence_and_it_says_so", without_room_at_tc),
    ]
}

/// A lab, a capture of every frame that leaves server0, and the addresses that may appear in it.
struct Watched {
    lab: TestLab,
    capture: PacketSocket,
    client: [u8; 6],
    server: [u8; 6],
    pool: Pool,
    seen: HashSet<Ipv6Addr>,
    /// A new one for each probe.
    port: u16,
}

impl Watched {
    /// Up to four queues, one of them in use.
    fn new() -> Result<Self> {
        let lab = TestLab::new()?;
        lab.up(QUEUES)?;
        for side in [Side::Client, Side::Server] {
            ethtool(&lab.namespace(side), &format!("-L {} rx 1 tx 1", side.interface()))?;
        }
        let client = link(&lab, Side::Client)?;
        let pool = Pool::new(PREFIX.parse()?, ADDRESSES, 1)?;
        let seen = pool.iter().chain([Side::Client.address(), Side::Server.address()]).collect();
        Ok(Self {
            capture: lab.run_in(Side::Client, || PacketSocket::on(client.index))?,
            client: client.mac,
            server: link(&lab, Side::Server)?.mac,
            pool,
            seen,
            port: 10_000,
            lab,
        })
    }

    /// A frame from the client to this Ethernet address.
    fn frame(
        &self,
        to: [u8; 6],
        write: impl FnOnce(PacketBuilderStep<Ethernet2Header>, &mut Vec<u8>),
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        write(PacketBuilder::ethernet2(self.client, to), &mut frame);
        frame
    }

    fn udp(&self, to: Ipv6Addr, port: u16) -> Vec<u8> {
        let client = Side::Client.address().octets();
        self.frame(self.server, |ether, frame| {
            let udp = ether.ipv6(client, to.octets(), 64).udp(self.port, port);
            udp.write(frame, &[7; 32]).expect("a vector grows");
        })
    }

    fn ping(&self, to: Ipv6Addr) -> Vec<u8> {
        let client = Side::Client.address().octets();
        self.frame(self.server, |ether, frame| {
            let ping = ether.ipv6(client, to.octets(), 64).icmpv6_echo_request(self.port, 1);
            ping.write(frame, &[7; 32]).expect("a vector grows");
        })
    }

    fn solicitation(&self, station: [u8; 6], to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
        let client = Side::Client.address().octets();
        let mut body = target.octets().to_vec();
        body.extend([1, 1]);
        body.extend(self.client);
        self.frame(station, |ether, frame| {
            let icmp = ether.ipv6(client, to.octets(), 255).icmpv6_raw(135, 0, [0; 4]);
            icmp.write(frame, &body).expect("a vector grows");
        })
    }

    /// One probe of each kind, for one address.
    fn probes(&mut self, address: Ipv6Addr) -> Vec<Vec<u8>> {
        self.port = if self.port < 60_000 { self.port + 1 } else { 10_000 };
        let request = self.udp(address, PORT);
        let ping = self.ping(address);
        let [.., a, b, c] = address.octets();
        let group =
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
        let syn = self.frame(self.server, |ether, frame| {
            let client = Side::Client.address().octets();
            let tcp = ether.ipv6(client, address.octets(), 64).tcp(self.port, 22, 1, 1000).syn();
            tcp.write(frame, &[]).expect("a vector grows");
        });
        let [high, low] = self.port.to_be_bytes();
        let first = [0, 0, 0, 1, 0, 0, high, low];
        let whole = [0, 0, 0, 0, 0, 0, high, low];
        vec![
            syn,
            self.udp(address, 53),
            self.solicitation([0x33, 0x33, 0xff, a, b, c], group, address),
            self.solicitation(self.server, address, address),
            behind(&request, 44, &whole),
            behind(&ping, 44, &whole),
            behind(&ping, 44, &first),
            behind(&request, 0, PADDING),
            behind(&ping, 60, PADDING),
            tag(&ping, 0),
            tag(&tag(&request, 0), 0),
            ping,
            request,
        ]
    }

    /// Sends `count` probes of addresses that are not live. Frames that cannot be sent count too,
    /// since the link may be down.
    fn probe(&mut self, count: usize, state: &mut u64) -> Result<usize> {
        let mut sent = 0;
        while sent < count {
            let address = Ipv6Addr::from_bits(
                Side::Client.address().to_bits() & !u128::from(u64::MAX)
                    | u128::from(random(state)),
            );
            if self.seen.contains(&address) {
                continue;
            }
            for frame in self.probes(address).into_iter().take(count - sent) {
                // The link may be down.
                let _ = self.capture.send(&frame);
                sent += 1;
            }
        }
        self.is_silent()?;
        Ok(sent)
    }

    /// Checks that no captured frame contains an address of the prefix other than those in `seen`.
    fn is_silent(&self) -> Result<()> {
        let prefix = &Side::Client.address().octets()[..8];
        for frame in self.capture.drain()? {
            for place in frame.windows(16).filter(|place| place.starts_with(prefix)) {
                let address = Ipv6Addr::from(<[u8; 16]>::try_from(place)?);
                ensure!(
                    self.seen.contains(&address),
                    "{address} is not live, and appears in a frame: {frame:x?}"
                );
            }
        }
        Ok(())
    }

    /// The same for a second, so late answers arrive too.
    fn stays_silent(&self) -> Result<()> {
        let give_up = Instant::now() + Duration::from_secs(1);
        while Instant::now() < give_up {
            self.is_silent()?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until `address` answers a packet from `make`, which is called for each attempt.
    fn is_answered(&mut self, address: Ipv6Addr, make: impl Fn(&Self) -> Vec<u8>) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            self.port += 1;
            self.capture.send(&make(self))?;
            thread::sleep(Duration::from_millis(5));
            if self
                .capture
                .drain()?
                .iter()
                .any(|frame| frame.get(22..38) == Some(&address.octets()))
            {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "{address} does not answer");
        }
    }

    fn server(&self, flags: &str) -> Result<Server> {
        Server::start(
            &self.lab,
            &format!("--addresses {ADDRESSES} --bind live-map --cores 0 {flags}"),
        )
    }

    fn live(&self) -> Ipv6Addr {
        self.pool.address(7)
    }
}

/// Options of padding only.
const PADDING: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];

/// Inserts an extension header, with its protocol number, after the packet's IPv6 header.
fn behind(packet: &[u8], number: u8, header: &[u8]) -> Vec<u8> {
    let mut longer = packet[..54].to_vec();
    longer[20] = number;
    longer.push(packet[20]);
    longer.extend(&header[1..]);
    longer.extend(&packet[54..]);
    let length = (longer.len() - 54) as u16;
    longer[18..20].copy_from_slice(&length.to_be_bytes());
    longer
}

/// Inserts a tag for that VLAN.
fn tag(frame: &[u8], vlan: u16) -> Vec<u8> {
    let tag = [0x8100, vlan].map(u16::to_be_bytes).concat();
    frame[..12].iter().copied().chain(tag).chain(frame[12..].iter().copied()).collect()
}

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (*state ^ *state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

fn ethtool(namespace: &str, arguments: &str) -> Result<()> {
    ip(&format!("netns exec {namespace} ethtool {arguments}"))
}

/// Waits until the server ends by itself, with status 1 and one line, and returns the line.
fn end_of(mut server: Server) -> Result<String> {
    let give_up = Instant::now() + PATIENCE;
    while server.child.try_wait()?.is_none() {
        ensure!(Instant::now() < give_up, "the server did not end");
        thread::sleep(Duration::from_millis(5));
    }
    let mut words = String::new();
    server.child.stderr.take().context("asked twice")?.read_to_string(&mut words)?;
    let status = server.child.wait()?;
    let last = words.lines().last().unwrap_or_default().to_owned();
    ensure!(
        status.code() == Some(1) && last.starts_with("sixhop: "),
        "the server ended with {status}: {words}"
    );
    Ok(last)
}

/// A change of the interface. Doing it again undoes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Name,
    Addresses,
    Ethernet,
    Queues,
    Mtu,
    Namespace,
    Down,
    Gro,
    Offloads,
    Master,
    Ipv6,
}

const CHANGES: [Change; 11] = [
    Change::Name,
    Change::Addresses,
    Change::Ethernet,
    Change::Queues,
    Change::Mtu,
    Change::Namespace,
    Change::Down,
    Change::Gro,
    Change::Offloads,
    Change::Master,
    Change::Ipv6,
];

/// The interface and the changes in force.
struct Interface {
    home: String,
    /// The lab whose client's side is the other namespace.
    abroad: TestLab,
    original: [u8; 6],
    /// The changes in force.
    done: BTreeSet<Change>,
}

impl Interface {
    fn namespace(&self) -> String {
        let is_home = !self.done.contains(&Change::Namespace);
        if is_home { self.home.clone() } else { self.abroad.namespace(Side::Client) }
    }

    fn name(&self) -> &'static str {
        if self.done.contains(&Change::Name) { "other0" } else { "server0" }
    }

    /// Makes the change or undoes it. If the interface is up afterwards, it has its address.
    fn toggle(&mut self, change: Change, watched: &mut Watched) -> Result<()> {
        let does = !self.done.contains(&change);
        let (namespace, name) = (self.namespace(), self.name());
        let ip = |words: &str| ip(&format!("-n {namespace} {words}"));
        let on = |does: bool| if does { "off" } else { "on" };
        match change {
            Change::Name => {
                ip(&format!("link set {name} name {}", if does { "other0" } else { "server0" }))?
            }
            Change::Addresses if does => {
                ip(&format!("address flush dev {name}"))?;
                // IPv6 may be disabled.
                let _ = ip(&format!("address add 2001:db8:1::77/64 dev {name} nodad"));
            }
            Change::Addresses => ip(&format!("address flush dev {name}"))?,
            Change::Ethernet => {
                let mac = if does { [2, 0, 0, 0, 0, 0x77] } else { self.original };
                let words = mac.map(|byte| format!("{byte:02x}")).join(":");
                ip(&format!("link set {name} address {words}"))?;
                watched.server = mac;
            }
            Change::Queues => {
                let client = watched.lab.namespace(Side::Client);
                let mut changes = [
                    (
                        namespace.clone(),
                        format!("-L {name} rx {0} tx {0}", if does { QUEUES } else { 1 }),
                    ),
                    (client, format!("-L client0 rx {0} tx {0}", if does { QUEUES } else { 1 })),
                ];
                // While one end has an XDP program, the other may not send on more queues than it
                // receives on.
                if !does {
                    changes.reverse();
                }
                changes.iter().try_for_each(|(namespace, words)| ethtool(namespace, words))?;
            }
            Change::Mtu => ip(&format!("link set {name} mtu {}", if does { 1300 } else { 1500 }))?,
            Change::Namespace => {
                let to = if does { self.abroad.namespace(Side::Client) } else { self.home.clone() };
                ip(&format!("link set {name} netns {to}"))?;
            }
            Change::Down => ip(&format!("link set {name} {}", if does { "down" } else { "up" }))?,
            Change::Gro => ethtool(&namespace, &format!("-K {name} gro {}", on(!does)))?,
            Change::Offloads => ethtool(
                &namespace,
                &format!("-K {name} tx {0} rxvlan {0} txvlan {0} gso {0} tso {0}", on(does)),
            )?,
            Change::Master if does => {
                ip("link add br0 type bridge")?;
                ip("link set br0 up")?;
                ip(&format!("link set {name} master br0"))?;
            }
            Change::Master => {
                // A move to another namespace has already taken the interface off the bridge.
                let _ = ip(&format!("link set {name} nomaster"));
                for namespace in [&self.home, &self.abroad.namespace(Side::Client)] {
                    let _ = common::ip(&format!("-n {namespace} link delete br0"));
                }
            }
            Change::Ipv6 => {
                let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
                let write = || Ok(fs::write(&path, if does { "1" } else { "0" })?);
                if self.done.contains(&Change::Namespace) {
                    self.abroad.run_in(Side::Client, write)?;
                } else {
                    watched.lab.run_in(Side::Server, write)?;
                }
            }
        }
        if does {
            self.done.insert(change)
        } else {
            self.done.remove(&change)
        };
        let (namespace, name) = (self.namespace(), self.name());
        if !self.done.contains(&Change::Down) {
            common::ip(&format!("-n {namespace} link set {name} up"))?;
        }
        if !self.done.contains(&Change::Addresses) {
            // IPv6 may be disabled.
            let _ = common::ip(&format!(
                "-n {namespace} address replace 2001:db8:1::2/64 dev {name} nodad"
            ));
        }
        Ok(())
    }
}

impl Drop for Interface {
    /// The lab removes only the interfaces that it made, under their names.
    fn drop(&mut self) {
        let _ = ip(&format!("-n {} link delete {}", self.namespace(), self.name()));
        for namespace in [&self.home, &self.abroad.namespace(Side::Client)] {
            let _ = ip(&format!("-n {namespace} link delete br0"));
        }
    }
}

/// Sends requests to live addresses from the client's kernel until dropped.
struct Load(Option<std::sync::mpsc::Sender<()>>, Option<thread::JoinHandle<()>>);

impl Load {
    fn start(watched: &Watched) -> Result<Self> {
        let (pool, mac) = (watched.pool.clone(), watched.server);
        let socket = watched.lab.run_in(Side::Client, || {
            let client = netlink::link(Side::Client.interface())?;
            pool.iter()
                .try_for_each(|address| netlink::set_neighbour(client.index, address, Some(mac)))?;
            Ok(UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?)
        })?;
        let (stop, stopped) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            for address in (0..).map(|index| pool.address(index % ADDRESSES)) {
                let wait = stopped.recv_timeout(Duration::from_millis(1));
                if wait != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
                // The link may be down.
                let _ = socket.send_to(&[7; 32], SocketAddrV6::new(address, PORT, 0, 0));
            }
        });
        Ok(Self(Some(stop), Some(thread)))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        drop(self.0.take());
        self.1.take().map(thread::JoinHandle::join);
    }
}

fn whatever_is_done() -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = std::env::var("SIXHOP_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(now);
    println!("SIXHOP_SEED={seed}");
    does_everything(seed).with_context(|| format!("SIXHOP_SEED={seed}"))
}

fn does_everything(seed: u64) -> Result<()> {
    let mut state = seed;
    let mut watched = Watched::new()?;
    watched.seen.insert("2001:db8:1::77".parse()?);
    let mut interface = Interface {
        home: watched.lab.namespace(Side::Server),
        abroad: TestLab::up()?,
        original: watched.server,
        done: BTreeSet::new(),
    };
    // Each change twice: the second undoes the first.
    let mut steps: Vec<_> = CHANGES.into_iter().cycle().take(2 * CHANGES.len()).collect();
    for index in (1..steps.len()).rev() {
        steps.swap(index, random(&mut state) as usize % (index + 1));
    }
    // Change the queues once on an untouched interface, where a stray answer would most likely be
    // heard.
    if let Some(queues) = steps.iter().position(|change| *change == Change::Queues) {
        steps.swap(0, queues);
    }
    let each = PROBES.div_ceil(2 * steps.len());
    let mut server = Some(watched.server("")?);
    let _load = Load::start(&watched)?;
    let (mut probes, mut ends) = (0, 0);
    for (number, change) in steps.into_iter().enumerate() {
        let mut turn = || {
            // Change the queues alone: under another name, say, no answer would be heard anyway.
            if change == Change::Queues && !interface.done.contains(&change) {
                for change in interface.done.clone() {
                    interface.toggle(change, &mut watched)?;
                }
            }
            interface.toggle(change, &mut watched)?;
            probes += watched.probe(each, &mut state)?;
            // The server looks at the interface twice in this time.
            let give_up = Instant::now() + Duration::from_millis(250);
            let mut has_ended = false;
            while !has_ended && Instant::now() < give_up {
                thread::sleep(Duration::from_millis(10));
                let ended = server.as_mut().map(|server| server.child.try_wait()).transpose()?;
                has_ended = ended.flatten().is_some();
            }
            probes += watched.probe(each, &mut state)?;
            if !has_ended {
                return Ok(());
            }
            ends += 1;
            let words = end_of(server.take().context("no server")?)?;
            println!("{number}: {change:?}: {words}");
            // Now only the kernel gets the probes.
            probes += watched.probe(each, &mut state)?;
            for change in interface.done.clone() {
                interface.toggle(change, &mut watched)?;
            }
            server = Some(watched.server("")?);
            Ok::<_, anyhow::Error>(())
        };
        turn().with_context(|| {
            format!("step {number}, {change:?}, of what was done {:?}", interface.done)
        })?;
    }
    watched.stays_silent()?;
    println!("{probes} probes, {ends} servers ended");
    ensure!(probes >= PROBES, "only {probes} probes");
    for change in interface.done.clone() {
        interface.toggle(change, &mut watched)?;
    }
    if let Some(mut server) = server {
        // On a busy machine the server may notice the last change only now, and end by itself.
        if server.child.try_wait()?.is_none() {
            server.signal(Signal::SIGTERM)?;
        }
        let status = server.child.wait()?;
        ensure!(matches!(status.code(), Some(0 | 1)), "the server ended with {status}");
    }
    Ok(())
}

fn queues_change() -> Result<()> {
    // The kernel refuses fewer queues than have AF_XDP sockets.
    for (flags, before, after) in [
        ("--engine afxdp", 1, 4),
        ("--engine reflect", 1, 2),
        ("--engine afxdp --queues 0", 2, 3),
        ("--engine afxdp --queues 1,0", 4, 2),
    ] {
        let mut watched = Watched::new()?;
        let (mut state, server) = (1, watched.lab.namespace(Side::Server));
        let change = |count| ethtool(&server, &format!("-L server0 rx {count} tx {count}"));
        change(before)?;
        let running = watched.server(flags)?;
        change(after)?;
        // Have packets arrive on the new queues.
        let words = format!("-L client0 rx {QUEUES} tx {after}");
        ethtool(&watched.lab.namespace(Side::Client), &words)?;
        watched.probe(200, &mut state)?;
        let words = end_of(running)?;
        ensure!(
            words.contains(&format!("had {before} queue(s) in use, and has {after} now")),
            "{flags}: {words}"
        );
        watched.probe(200, &mut state)?;
        watched.stays_silent().with_context(|| flags.to_owned())?;
        let running = watched.server("")?;
        let served = running.ready["queues"].as_array().map(Vec::len);
        ensure!(served == Some(after), "{flags}: {}", running.ready);
        running.stop()?;
    }
    Ok(())
}

/// The rules that carry our mark.
fn rules(lab: &TestLab) -> Result<String> {
    let show = format!("-n {} -6 rule show", lab.namespace(Side::Server));
    let shown = String::from_utf8(Command::new("ip").args(show.split(' ')).output()?.stdout)?;
    Ok(shown.lines().filter(|line| line.contains("proto 102")).collect())
}

fn killed_with_its_guard() -> Result<()> {
    let mut watched = Watched::new()?;
    let mut server = watched.server("")?;
    let live = watched.live();
    watched.is_answered(live, |watched| behind(&watched.udp(live, PORT), 0, PADDING))?;
    server.kill_with_guard()?;
    watched.seen.retain(|address| !watched.pool.contains(*address));
    // Ignore packets that were already on their way.
    common::wait_for_no_program(&watched.lab, Side::Server)?;
    watched.capture.drain()?;
    ensure!(!rules(&watched.lab)?.is_empty(), "the killed server left no rule: nothing to test");
    for address in watched.pool.clone().iter() {
        for frame in watched.probes(address) {
            watched.capture.send(&frame)?;
        }
    }
    watched.probe(200, &mut 1)?;
    watched.stays_silent()?;
    // The next server cleans up.
    watched.server("")?.stop()?;
    ensure!(rules(&watched.lab)?.is_empty(), "{}", rules(&watched.lab)?);
    Ok(())
}

/// The XDP program passes requests that seem to be for another station. Of moving addresses, the
/// socket behind the program knows only the prefix.
fn ethernet_address_changes() -> Result<()> {
    let mut watched = Watched::new()?;
    let secret = tempfile::NamedTempFile::new()?;
    fs::write(secret.path(), "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n")?;
    let flags = format!(
        "--schedule mt6d --clients 5 --rotate 10s --secret {} --bind live-map --cores 0",
        secret.path().display()
    );
    let mut server = Server::start(&watched.lab, &flags)?;
    // The test does not know the live addresses, but its random probes will not hit one.
    watched.seen = [Side::Client, Side::Server].map(Side::address).into();
    ip(&format!(
        "-n {} link set server0 address 02:00:00:00:00:77",
        watched.lab.namespace(Side::Server)
    ))?;
    watched.server = [2, 0, 0, 0, 0, 0x77];
    watched.probe(500, &mut 1)?;
    watched.stays_silent()?;
    match server.child.try_wait()? {
        None => drop(server.stop()?),
        Some(_) => drop(end_of(server)?),
    }
    Ok(())
}

fn solicitation_behind_options() -> Result<()> {
    let mut watched = Watched::new()?;
    let proxied: Ipv6Addr = "2001:db8:1::bad".parse()?;
    watched.lab.run_in(Side::Server, || {
        for setting in
            ["all/forwarding", "server0/forwarding", "all/proxy_ndp", "server0/proxy_ndp"]
        {
            fs::write(format!("/proc/sys/net/ipv6/conf/{setting}"), "1")?;
        }
        // By default the answer takes up to 0.8 s.
        fs::write("/proc/sys/net/ipv6/neigh/server0/proxy_delay", "0")?;
        Ok(())
    })?;
    // A forwarding kernel also has the Subnet-Router anycast address (RFC 4291 section 2.6.1).
    watched.seen.insert("2001:db8:1::".parse()?);
    let server = watched.lab.namespace(Side::Server);
    ip(&format!("-n {server} -6 neighbour add proxy {proxied} dev server0"))?;
    let group: Ipv6Addr = "ff02::1:ff00:bad".parse()?;
    let solicitation = behind(
        &watched.solicitation([0x33, 0x33, 0xff, 0, 0x0b, 0xad], group, proxied),
        60,
        PADDING,
    );
    // Without a server, the kernel answers for it.
    watched.seen.insert(proxied);
    watched.is_advertised(proxied, &solicitation)?;
    watched.seen.remove(&proxied);
    let running = watched.server("")?;
    watched.capture.drain()?;
    watched.capture.send(&solicitation)?;
    watched.probe(100, &mut 1)?;
    watched.stays_silent()?;
    let totals = running.stop()?;
    ensure!(totals["dropped"]["dropped_backstop"] == 1, "{totals}");
    Ok(())
}

impl Watched {
    /// Waits until somebody answers for `address`.
    fn is_advertised(&self, address: Ipv6Addr, solicitation: &[u8]) -> Result<()> {
        let give_up = Instant::now() + PATIENCE;
        loop {
            self.capture.send(solicitation)?;
            thread::sleep(Duration::from_millis(20));
            let frames = self.capture.drain()?;
            if frames
                .iter()
                .any(|frame| frame.get(62..78) == Some(&address.octets()[..]) && frame[54] == 136)
            {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "no advertisement for {address}");
        }
    }
}

/// Attaches a tc program that returns `action` at the ingress of the server's interface, until
/// dropped.
fn tc_program(lab: &TestLab, action: i32) -> Result<OwnedFd> {
    // r0 = action; exit
    let instructions: [u64; 2] = [0xb7 | (action as u32 as u64) << 32, 0x95];
    // SAFETY: name and licence end with NUL, and `instructions` holds as many as it says.
    let program = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
            c"other".as_ptr(),
            c"GPL".as_ptr(),
            instructions.as_ptr().cast(),
            instructions.len() as libbpf_sys::size_t,
            std::ptr::null_mut(),
        )
    };
    ensure!(program >= 0, "cannot load the tc program: {program}");
    // SAFETY: the descriptor is new and has no other owner.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    lab.run_in(Side::Server, || {
        let index = netlink::link(Side::Server.interface())?.index as i32;
        // SAFETY: a null pointer means no options.
        let fd = unsafe {
            libbpf_sys::bpf_link_create(
                program.as_raw_fd(),
                index,
                libbpf_sys::BPF_TCX_INGRESS,
                std::ptr::null(),
            )
        };
        ensure!(fd >= 0, "cannot attach the tc program: {fd}");
        // SAFETY: the descriptor is new and has no other owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    })
}

/// An earlier program that returns TC_ACT_OK ends the chain. A later one that drops still sees the
/// packets.
fn other_tc_programs() -> Result<()> {
    let mut watched = Watched::new()?;
    let live = watched.live();
    let earlier = tc_program(&watched.lab, 0)?;
    let running = watched.server("")?;
    let own = Side::Server.address();
    watched.is_answered(own, |watched| watched.ping(own))?;
    watched.is_answered(live, |watched| behind(&watched.udp(live, PORT), 0, PADDING))?;
    watched.probe(100, &mut 1)?;
    drop(earlier);
    let dropping = tc_program(&watched.lab, 2)?;
    watched.capture.drain()?;
    let ping = watched.ping(own);
    watched.capture.send(&ping)?;
    watched.is_answered(live, |watched| watched.udp(live, PORT))?;
    let heard = watched.capture.drain()?;
    ensure!(
        !heard.iter().any(|frame| frame.get(22..38) == Some(&own.octets())),
        "the other program did not see the packet"
    );
    drop(dropping);
    watched.is_answered(own, |watched| watched.ping(own))?;
    running.stop()?;
    Ok(())
}

/// The kernel allows 64 programs (BPF_MPROG_MAX). The server then behaves as on a kernel without
/// tcx.
fn without_room_at_tc() -> Result<()> {
    let mut watched = Watched::new()?;
    let live = watched.live();
    let others: Vec<_> = (0..64).map_while(|_| tc_program(&watched.lab, -1).ok()).collect();
    ensure!(others.len() > 60, "only {} fit", others.len());
    let running = watched.server("")?;
    let notes = running.ready["notes"].to_string();
    ensure!(notes.contains("behind extension headers or in fragments get no answer"), "{notes}");
    ensure!(rules(&watched.lab)?.is_empty(), "{}", rules(&watched.lab)?);
    watched.is_answered(live, |watched| watched.udp(live, PORT))?;
    watched.capture.drain()?;
    let odd = behind(&watched.udp(live, PORT), 0, PADDING);
    watched.capture.send(&odd)?;
    watched.probe(100, &mut 1)?;
    watched.stays_silent()?;
    let totals = running.stop()?;
    ensure!(totals["answered_behind"] == 0, "{totals}");
    drop(others);
    Ok(())
}
