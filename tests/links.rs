//! Links other than a plain Ethernet cable: tunnels without an Ethernet header, the loopback
//! interface, and a switch that snoops MLD. VRFs are in tests/vm.rs, since not every kernel has
//! them.

use std::fs::File;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, Output};
use std::thread;
use std::time::{Duration, Instant};

use crate::common;
use crate::common::server::{PATIENCE, PREFIX, Server, sixhop};
use crate::common::{TestLab, ip, trial};
use anyhow::{Context, Result, bail, ensure};
use etherparse::PacketBuilder;
use libtest_mimic::Trial;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;
use sixhop::net::{ethtool, netlink};

const ADDRESSES: u64 = 5;

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("engines_that_see_frames_refuse_a_tun", tun_is_refused),
        trial("a_tun_is_no_place_for_live_map", live_map_on_a_tun),
        trial("a_tunnel_between_addresses_is_refused_as_well", tunnel_is_refused),
        trial("probe_says_the_same_of_a_tun", probe_of_a_tun),
        trial("load_by_rings_refuses_a_tun", load_on_a_tun),
        trial("loopback_is_served_as_before", loopback),
        trial("a_switch_that_snoops_is_named_where_nobody_asks", snooping_is_named),
        trial("a_multicast_router_is_passed_solicitations", snooping_is_answered),
        trial("only_live_map_is_a_multicast_router", router_for_nothing),
    ];
    for engine in ["socket", "socket-batch", "socket-gso", "uring"] {
        trials.push(trial(&format!("a_tun_is_served_by_{engine}"), move || tun_is_served(engine)));
    }
    trials
}

/// The server's address with this number.
fn address(number: u64) -> Result<Ipv6Addr> {
    Ok(Pool::new(PREFIX.parse()?, ADDRESSES, 1)?.address(number))
}

/// The program's end of a TUN interface on the server's side.
struct Tun(OwnedFd, String);

impl Tun {
    const NAME: &'static str = "tun0";

    fn up(lab: &TestLab) -> Result<Self> {
        const TUNSETIFF: libc::c_ulong = 0x4004_54ca; // linux/if_tun.h
        let tun = lab.run_in(Side::Server, || {
            let file =
                File::options().read(true).write(true).open("/dev/net/tun").context("no TUN")?;
            let mut request = [0u8; 40]; // struct ifreq
            request[..Self::NAME.len()].copy_from_slice(Self::NAME.as_bytes());
            request[16..18]
                .copy_from_slice(&((libc::IFF_TUN | libc::IFF_NO_PI) as u16).to_ne_bytes());
            // SAFETY: the request is a struct ifreq, valid for reads and writes.
            let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
            ensure!(made == 0, std::io::Error::last_os_error());
            Ok(Self(file.into(), lab.namespace(Side::Server)))
        })?;
        let namespace = lab.namespace(Side::Server);
        // server0 would claim the prefix too.
        ip(&format!("-n {namespace} address flush dev server0"))?;
        ip(&format!("-n {namespace} link set {} up", Self::NAME))?;
        ip(&format!(
            "-n {namespace} address add {}/64 dev {} nodad",
            Side::Server.address(),
            Self::NAME
        ))?;
        Ok(tun)
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        ensure!(nix::unistd::write(&self.0, packet)? == packet.len());
        Ok(())
    }

    /// Waits for a UDP packet and returns its source.
    fn reply(&self) -> Result<Ipv6Addr> {
        let give_up = Instant::now() + PATIENCE;
        let mut packet = [0; 2048];
        while Instant::now() < give_up {
            let limit = PollTimeout::try_from(Duration::from_millis(100))?;
            if poll(
                &mut [PollFd::new(std::os::fd::AsFd::as_fd(&self.0), PollFlags::POLLIN)],
                limit,
            )? == 0
            {
                continue;
            }
            let length = nix::unistd::read(&self.0, &mut packet)?;
            if length > 40 && packet[6] == 17 {
                return Ok(<[u8; 16]>::try_from(&packet[8..24])?.into());
            }
        }
        bail!("no reply arrived on the TUN")
    }
}

impl Drop for Tun {
    /// The kernel removes the interface when its descriptor closes, but possibly after the lab is
    /// down.
    fn drop(&mut self) {
        let _ = ip(&format!("-n {} link delete {}", self.1, Self::NAME));
    }
}

fn serve(lab: &TestLab, interface: &str, flags: &str) -> Result<Output> {
    let flags =
        format!("serve --interface {interface} --prefix {PREFIX} --addresses {ADDRESSES} {flags}");
    Ok(sixhop(lab, Side::Server, &flags).output()?)
}

/// Checks that the command ended at once, with status 1 and one line that contains `words`.
fn refused(output: &Output, words: &[&str]) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{}: {said}", output.status);
    ensure!(said.trim_end().lines().count() == 1, "{said}");
    ensure!(words.iter().all(|word| said.contains(word)), "{said}");
    Ok(())
}

fn addresses(lab: &TestLab, interface: &str) -> Result<usize> {
    lab.run_in(Side::Server, || Ok(netlink::addresses(netlink::link(interface)?.index)?.len()))
}

fn tun_is_refused() -> Result<()> {
    let lab = TestLab::up()?;
    let _tun = Tun::up(&lab)?;
    let before = addresses(&lab, Tun::NAME)?;
    for engine in ["afxdp", "reflect", "raw", "packet-ring"] {
        let output = serve(&lab, Tun::NAME, &format!("--engine {engine}"))?;
        refused(&output, &["tun0 carries no Ethernet frames", engine, "--engine socket-gso"])?;
        ensure!(addresses(&lab, Tun::NAME)? == before);
    }
    Ok(())
}

fn live_map_on_a_tun() -> Result<()> {
    let lab = TestLab::up()?;
    let _tun = Tun::up(&lab)?;
    refused(
        &serve(&lab, Tun::NAME, "--bind live-map")?,
        &["no Ethernet frames", "--bind netlink"],
    )?;
    let bind = format!("bind --interface tun0 --prefix {PREFIX} --addresses 5 --method live-map");
    refused(
        &sixhop(&lab, Side::Server, &bind).output()?,
        &["no Ethernet frames", "--bind netlink"],
    )?;
    let rules =
        Command::new("ip").args(["-n", &lab.namespace(Side::Server), "-6", "rule"]).output()?;
    ensure!(!String::from_utf8_lossy(&rules.stdout).contains("tun0"));
    Ok(())
}

/// An ip6tnl has an IPv6 address in place of an Ethernet address.
fn tunnel_is_refused() -> Result<()> {
    let lab = TestLab::up()?;
    let namespace = lab.namespace(Side::Server);
    let add = format!(
        "-n {namespace} link add tun6 type ip6tnl local 2001:db8:1::2 remote 2001:db8:1::1"
    );
    if ip(&add).is_err() {
        return Ok(()); // a kernel without such tunnels
    }
    ip(&format!("-n {namespace} link set tun6 up"))?;
    let output = serve(&lab, "tun6", "--engine packet-ring --allow ::/0")?;
    refused(&output, &["tun6 carries no Ethernet frames", "769"])
}

fn tun_is_served(engine: &str) -> Result<()> {
    let lab = TestLab::up()?;
    let tun = Tun::up(&lab)?;
    let server = Server::start_on(
        &lab,
        Tun::NAME,
        &format!("--prefix {PREFIX} --addresses {ADDRESSES} --engine {engine}"),
    )?;
    let asked = address(2)?;
    let mut request = Vec::new();
    PacketBuilder::ipv6(Side::Client.address().octets(), asked.octets(), 64)
        .udp(50_000, 3540)
        .write(&mut request, &[7; 32])?;
    tun.send(&request)?;
    for _ in 0..10 {
        ensure!(tun.reply()? == asked);
    }
    let totals = server.stop()?;
    ensure!(totals["answered"] == 1 && totals["replies"] == 10, "{totals}");
    Ok(())
}

fn probe_of_a_tun() -> Result<()> {
    let lab = TestLab::up()?;
    let _tun = Tun::up(&lab)?;
    let output = sixhop(&lab, Side::Server, "probe tun0 --try --json").output()?;
    let probe: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(probe["link_type"] == 65534, "{probe}");
    ensure!(probe["verdict"]["obstacles"][0]["name"] == "no-ethernet", "{probe}");
    ensure!(probe["tried"]["agrees"] == true, "{probe}");
    Ok(())
}

fn load_on_a_tun() -> Result<()> {
    let lab = TestLab::up()?;
    let tun = Tun::up(&lab)?;
    let load =
        format!("load --interface tun0 --prefix {PREFIX} --addresses 5 --rate 100 --requests 3");
    let output = sixhop(&lab, Side::Server, &load).output()?;
    refused(&output, &["tun0 carries no Ethernet frames", "--client socket"])?;
    // A socket can ask, though the link has no neighbours.
    let output = sixhop(&lab, Side::Server, &format!("{load} --client socket --json")).output()?;
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["sent"] == 3, "{result}");
    ensure!(tun.reply()? == Side::Server.address());
    Ok(())
}

/// Frames on loopback have an Ethernet header of zeros and an unfinished checksum. Engines that see
/// frames receive the request, and refuse it for the checksum.
fn loopback() -> Result<()> {
    const PREFIX: &str = "2001:db8:7::/64";
    let lab = TestLab::up()?;
    ip(&format!("-n {} link set lo up", lab.namespace(Side::Server)))?;
    for engine in ["afxdp", "reflect", "raw", "packet-ring"] {
        let flags =
            format!("--prefix {PREFIX} --addresses {ADDRESSES} --engine {engine} --allow ::/0");
        let mut server = Server::start_on(&lab, "lo", &flags)?;
        let asked = Pool::new(PREFIX.parse()?, ADDRESSES, 1)?.address(1);
        let socket = lab.run_in(Side::Server, || {
            Ok(UdpSocket::bind(SocketAddrV6::new(Side::Server.address(), 0, 0, 0))?)
        })?;
        socket.send_to(&[7; 32], SocketAddrV6::new(asked, 3540, 0, 0))?;
        server.wait_for(|stats| stats["received"] == 1).context(engine)?;
        let totals = server.stop()?;
        ensure!(totals["refused"]["unfinished_checksum"] == 1, "{engine}: {totals}");
    }
    Ok(())
}

/// A switch between the two sides: a bridge in the client's namespace, with client0 at one port and
/// server0 at the other.
struct Snooping {
    lab: TestLab,
}

impl Snooping {
    /// The ports of the bridge.
    const PORTS: [(Side, &str); 2] = [(Side::Server, "to-server"), (Side::Client, "to-client")];

    /// The bridge snoops MLD and queries for groups, as a switch does if it is the querier.
    fn up() -> Result<Self> {
        let snooping = Self { lab: TestLab::up()? };
        let client = snooping.switch();
        ip(&format!("-n {client} link delete client0"))?;
        ip(&format!("-n {client} link add br0 type bridge mcast_snooping 1 mcast_mld_version 2"))?;
        // In hundredths of a second.
        for setting in
            ["query_response_interval 10", "startup_query_interval 100", "query_interval 100"]
        {
            ip(&format!("-n {client} link set br0 type bridge mcast_{setting}"))?;
        }
        ip(&format!("-n {client} link set br0 up"))?;
        for (side, port) in Self::PORTS {
            let (namespace, name) = (snooping.lab.namespace(side), side.interface());
            ip(&format!(
                "-n {client} link add {port} type veth peer name {name} netns {namespace}"
            ))?;
            ip(&format!("-n {client} link set {port} master br0 up"))?;
            ip(&format!("-n {namespace} link set {name} up"))?;
            ip(&format!("-n {namespace} address add {}/64 dev {name} nodad", side.address()))?;
        }
        // Requests need full checksums, as if they came over a cable.
        snooping
            .lab
            .run_in(Side::Client, || ethtool::switch_off("client0", "tx-checksum-ip-generic"))?;
        ip(&format!("-n {client} link set br0 type bridge mcast_querier 1"))?;
        Ok(snooping)
    }

    fn switch(&self) -> String {
        self.lab.namespace(Side::Client)
    }

    /// Waits until the bridge forwards only to groups that have been reported, which starts once
    /// its own query could have been answered.
    fn wait_until_it_snoops(&self) -> Result<()> {
        let probe: Ipv6Addr = "2001:db8:1::dead:beef".parse()?;
        let seen = self.lab.run_in(Side::Server, || {
            common::packet::PacketSocket::on(netlink::link("server0")?.index)
        })?;
        let give_up = Instant::now() + PATIENCE;
        loop {
            // Until then the bridge floods unknown groups.
            seen.drain()?;
            let _ = self.ask(probe);
            thread::sleep(Duration::from_millis(200));
            let came = seen.drain()?.iter().any(|frame| frame.get(62..78) == Some(&probe.octets()));
            if !came {
                return Ok(());
            }
            ensure!(Instant::now() < give_up, "the switch still floods every group");
        }
    }

    /// Sends a request from the client's kernel. Returns whether a reply came within half a second.
    fn ask(&self, address: Ipv6Addr) -> Result<bool> {
        ip(&format!("-n {} neigh flush dev client0", self.lab.namespace(Side::Client)))?;
        let socket = self.lab.run_in(Side::Client, || {
            Ok(UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?)
        })?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(&[7; 32], SocketAddrV6::new(address, 3540, 0, 0))?;
        Ok(socket.recv(&mut [0; 64]).is_ok())
    }

    /// The ports that the bridge considers multicast router ports.
    fn router_ports(&self) -> Result<String> {
        let switch = self.switch();
        let output = Command::new("bridge")
            .args(["-n", &switch, "-d", "mdb", "show", "dev", "br0"])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        Ok(text.lines().filter(|line| line.contains("router ports")).collect())
    }
}

impl Drop for Snooping {
    fn drop(&mut self) {
        for name in ["br0", "to-server", "to-client"] {
            let _ = ip(&format!("-n {} link delete {name}", self.switch()));
        }
    }
}

fn live_map(snooping: &Snooping, flags: &str) -> Result<Server> {
    Server::start(
        &snooping.lab,
        &format!("--addresses {ADDRESSES} --bind live-map --attach generic {flags}"),
    )
}

fn snooping_is_named() -> Result<()> {
    let snooping = Snooping::up()?;
    snooping.wait_until_it_snoops()?;
    let mut server = live_map(&snooping, "")?;
    ensure!(!snooping.ask(address(1)?)?, "the switch forwards solicitations");
    server.wait_for(|event| {
        let words = event["text"].as_str().unwrap_or_default();
        event["event"] == "notice" && words.contains("MLD") && words.contains("--multicast-router")
    })?;
    ensure!(!snooping.ask(address(1)?)?, "the switch forwards solicitations");
    // The server's advice works: a static neighbour needs no discovery.
    let mac = common::link(&snooping.lab, Side::Server)?.mac;
    snooping.lab.run_in(Side::Client, || {
        netlink::set_neighbour(netlink::link("client0")?.index, address(2)?, Some(mac))
    })?;
    ensure!(snooping.ask(address(2)?)?, "a static neighbour gets no reply");
    let totals = server.stop()?;
    ensure!(totals["answered"] == 1 && totals["advertised"] == 0, "{totals}");
    Ok(())
}

fn snooping_is_answered() -> Result<()> {
    let snooping = Snooping::up()?;
    snooping.wait_until_it_snoops()?;
    // Captures what other hosts on the link see.
    let client = common::link(&snooping.lab, Side::Client)?;
    let heard =
        snooping.lab.run_in(Side::Client, || common::packet::PacketSocket::on(client.index))?;
    let server = live_map(&snooping, "--multicast-router")?;
    let give_up = Instant::now() + PATIENCE;
    while !snooping.ask(address(1)?)? {
        ensure!(
            Instant::now() < give_up,
            "the server does not answer: {}",
            snooping.router_ports()?
        );
    }
    ensure!(snooping.router_ports()?.contains("to-server"), "{}", snooping.router_ports()?);
    let advertisements =
        heard.drain()?.into_iter().filter(|frame| frame.get(62) == Some(&151)).count();
    ensure!(advertisements == 0, "the switch forwards the router advertisement");
    // An address that is not live stays silent.
    ensure!(!snooping.ask("2001:db8:1::dead:beef".parse()?)?);
    let totals = server.stop()?;
    ensure!(
        totals["answered"].as_u64() >= Some(1) && totals["advertised"].as_u64() >= Some(1),
        "{totals}"
    );
    Ok(())
}

fn router_for_nothing() -> Result<()> {
    let lab = TestLab::up()?;
    refused(
        &serve(&lab, "server0", "--multicast-router")?,
        &["for live-map alone", "use --bind live-map, or no --multicast-router"],
    )
}
