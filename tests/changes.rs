//! Others change the interface while a server runs: the server adapts and says so, or ends with one
//! line that names the change.

use std::collections::HashSet;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common;
use crate::common::server::{PATIENCE, Server};
use crate::common::{TestLab, addresses, fails_with, have_client_poll, ip, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use sixhop::address::Pool;
use sixhop::lab::Side;

const PORT: u16 = 3540;
const PREFIX: &str = "2001:db8:1::/64";
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0xaa, 2];

pub fn trials() -> Vec<Trial> {
    vec![
        trial("another_ethernet_address_is_taken_over", another_ethernet_address),
        trial("addresses_that_are_removed_are_live_again", addresses_removed),
        trial("addresses_that_move_are_live_again", moving_addresses_removed),
        trial("addresses_come_back_with_ipv6", ipv6_off_and_on),
        trial("a_local_route_that_is_removed_is_there_again", local_route_removed),
        trial("another_name_is_taken_over_and_all_is_taken_back", another_name),
        trial("packets_are_delivered_under_another_name", delivered_under_another_name),
        trial("an_interface_in_another_namespace_has_gone", another_namespace),
        trial("another_mtu_is_taken_over_or_ends_the_server", another_mtu),
        trial("a_bridge_ends_the_server_or_is_said", bridged),
        trial("neighbour_discovery_that_is_off_is_said", arp_off),
    ]
}

fn pool(count: u64) -> Result<Pool> {
    Ok(Pool::new(PREFIX.parse()?, count, 1)?)
}

fn start(lab: &TestLab, flags: &str) -> Result<Server> {
    Server::start(lab, &format!("--replies 1 {flags}")).with_context(|| flags.to_owned())
}

fn in_server(lab: &TestLab, arguments: &str) -> Result<()> {
    ip(&format!("-n {} {arguments}", lab.namespace(Side::Server)))
}

fn sysctl(lab: &TestLab, setting: &str) -> Result<()> {
    ip(&format!("netns exec {} sysctl -qw {setting}", lab.namespace(Side::Server)))
}

/// Waits for a notice that contains `words`.
fn says(server: &mut Server, words: &str) -> Result<()> {
    server
        .wait_for(|event| {
            event["event"] == "notice"
                && event["text"].as_str().is_some_and(|text| text.contains(words))
        })
        .with_context(|| format!("no notice says: {words}"))
}

/// Waits until the server ends by itself, with status 1 and a line that contains `words`.
fn ends_with(mut server: Server, words: &str) -> Result<()> {
    fails_with(server.wait_for(|_| false), words)?;
    let status = server.child.wait()?;
    ensure!(status.code() == Some(1), "the server ended with {status}");
    Ok(())
}

/// Sends requests to `address` until it answers.
fn is_answered(lab: &TestLab, address: Ipv6Addr) -> Result<()> {
    ensure!(answers(lab, address, PATIENCE)?, "{address} does not answer");
    Ok(())
}

fn answers(lab: &TestLab, address: Ipv6Addr, limit: Duration) -> Result<bool> {
    lab.run_in(Side::Client, || {
        let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let give_up = Instant::now() + limit;
        while Instant::now() < give_up {
            let _ = socket.send_to(
                b"a request of a test that waits..",
                SocketAddrV6::new(address, PORT, 0, 0),
            );
            if socket.recv_from(&mut [0; 100]).is_ok() {
                return Ok(true);
            }
        }
        Ok(false)
    })
}

/// Flushes the client's neighbour table.
fn forget(lab: &TestLab) -> Result<()> {
    ip(&format!("-n {} neigh flush dev client0", lab.namespace(Side::Client)))
}

/// Waits until `wanted` are all on the server's interface, or none of them is.
fn wait_for_addresses(lab: &TestLab, wanted: &HashSet<Ipv6Addr>, there: bool) -> Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        let now = addresses(lab)?;
        if if there { now.is_superset(wanted) } else { now.is_disjoint(wanted) } {
            return Ok(());
        }
        ensure!(Instant::now() < give_up, "{wanted:?} there: {}, in vain", !there);
        thread::sleep(Duration::from_millis(5));
    }
}

fn another_ethernet_address() -> Result<()> {
    for flags in [
        "--engine afxdp --bind live-map",
        "--engine reflect --bind live-map",
        "--engine afxdp --bind netlink",
        "--engine reflect --bind netlink",
        "--engine raw",
        "--engine packet-ring",
    ] {
        let lab = TestLab::up()?;
        let _polls = have_client_poll(&lab)?;
        let mut server = start(&lab, &format!("--addresses 5 {flags}"))?;
        let pool = pool(5)?;
        is_answered(&lab, pool.address(0))?;
        in_server(&lab, "link set server0 address 02:00:00:00:aa:02")?;
        says(&mut server, "and is 02:00:00:00:aa:02 now")?;
        forget(&lab)?;
        let found = common::resolve(&lab, pool.address(1))?;
        ensure!(found == OTHER_MAC, "{flags}: advertised {found:02x?}");
        for address in pool.iter() {
            is_answered(&lab, address).with_context(|| flags.to_owned())?;
        }
        let totals = server.stop()?;
        // The engine answered, not the socket behind it.
        ensure!(totals["answered_behind"].as_u64().unwrap_or(0) == 0, "{flags}: {totals}");
    }
    Ok(())
}

fn addresses_removed() -> Result<()> {
    for (bind, count) in [
        ("netlink", 20),
        ("netlink-batch", 20),
        ("netlink-down", 300),
        ("ioctl", 20),
        ("command", 5),
        ("ifconfig", 5),
    ] {
        let lab = TestLab::up()?;
        let mut server = start(&lab, &format!("--addresses {count} --bind {bind}"))?;
        let pool = pool(count)?;
        let all: HashSet<_> = pool.iter().collect();
        in_server(&lab, "-6 address flush dev server0 scope global")?;
        says(&mut server, &format!("{count} of the {count} addresses of server0 had gone"))
            .with_context(|| bind.to_owned())?;
        wait_for_addresses(&lab, &all, true)?;
        in_server(&lab, "address add 2001:db8:1::2/64 dev server0 nodad")?;
        is_answered(&lab, pool.address(3))?;
        in_server(&lab, &format!("-6 address del {}/128 dev server0", pool.address(3)))?;
        says(&mut server, &format!("1 of the {count} addresses of server0 had gone"))
            .with_context(|| bind.to_owned())?;
        wait_for_addresses(&lab, &all, true)?;
        is_answered(&lab, pool.address(3))?;
        server.stop()?;
        wait_for_addresses(&lab, &all, false)?;
    }
    Ok(())
}

/// The server's own removals at each step do not count as a loss.
fn moving_addresses_removed() -> Result<()> {
    for flags in ["--engine afxdp --bind netlink-batch", "--engine socket-gso --bind netlink"] {
        let lab = TestLab::up()?;
        let secret = std::env::temp_dir().join(format!(
            "sixhop-changes-{}-{}",
            std::process::id(),
            lab.name()
        ));
        std::fs::write(&secret, [7; 32])?;
        std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        let moving =
            format!("--schedule mt6d --clients 10 --rotate 2s --secret {}", secret.display());
        let server = start(&lab, &format!("{moving} {flags}"));
        std::fs::remove_file(&secret)?;
        let mut server = server?;
        let mut steps = 0;
        server.wait_for(|event| {
            assert!(event["event"] != "notice", "{event}");
            steps += u64::from(event["event"] == "rotation");
            steps == 3
        })?;
        in_server(&lab, "-6 address flush dev server0 scope global")?;
        says(&mut server, "had gone, and are live again").with_context(|| flags.to_owned())?;
        ensure!(addresses(&lab)?.len() >= 20, "{:?}", addresses(&lab)?);
        sysctl(&lab, "net.ipv6.conf.server0.disable_ipv6=1")?;
        says(&mut server, "does no IPv6 on server0")?;
        // Longer than a step, so addresses were due to move.
        thread::sleep(Duration::from_secs(3));
        sysctl(&lab, "net.ipv6.conf.server0.disable_ipv6=0")?;
        says(&mut server, "does IPv6 on server0 again")?;
        says(&mut server, "had gone, and are live again").with_context(|| flags.to_owned())?;
        server.stop()?;
        wait_for_addresses(&lab, &HashSet::new(), true)?;
    }
    Ok(())
}

fn ipv6_off_and_on() -> Result<()> {
    for (off, on) in [
        ("net.ipv6.conf.server0.disable_ipv6=1", "net.ipv6.conf.server0.disable_ipv6=0"),
        ("net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6=0"),
        ("mtu 1000", "mtu 1500"),
    ] {
        for flags in
            ["--bind netlink", "--engine socket-gso --bind netlink-batch", "--bind live-map"]
        {
            let lab = TestLab::up()?;
            let set = |what: &str| match what.strip_prefix("mtu") {
                Some(_) => in_server(&lab, &format!("link set server0 {what}")),
                None => sysctl(&lab, what),
            };
            let mut server = start(&lab, &format!("--addresses 20 {flags}"))?;
            let what = || format!("{off}, {flags}");
            set(off)?;
            says(&mut server, "the kernel does no IPv6 on server0").with_context(what)?;
            set(on)?;
            says(&mut server, "the kernel does IPv6 on server0 again").with_context(what)?;
            if !flags.contains("live-map") {
                says(&mut server, "20 of the 20 addresses of server0 had gone")
                    .with_context(what)?;
                wait_for_addresses(&lab, &pool(20)?.iter().collect(), true)?;
            }
            in_server(&lab, "address add 2001:db8:1::2/64 dev server0 nodad")?;
            is_answered(&lab, pool(20)?.address(7)).with_context(what)?;
            server.stop()?;
        }
    }
    Ok(())
}

fn local_route_removed() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server =
        Server::start_with(&lab, "--prefix 2001:db8:7::/64 --addresses 20 --bind anyip")?;
    in_server(&lab, "-6 route del local 2001:db8:7::/64 dev lo table local")?;
    says(&mut server, "20 of the 20 addresses of server0 had gone")?;
    let show = format!("-n {} -6 route show table local proto 102", lab.namespace(Side::Server));
    let routes =
        || Ok::<_, anyhow::Error>(Command::new("ip").args(show.split(' ')).output()?.stdout);
    ensure!(!routes()?.is_empty(), "the route did not come back");
    server.stop()?;
    ensure!(routes()?.is_empty(), "the route is still there");
    Ok(())
}

fn another_name() -> Result<()> {
    for (bind, count) in [
        ("netlink", 5),
        ("netlink-down", 300),
        ("ioctl", 5),
        ("command", 5),
        ("ifconfig", 5),
        ("live-map", 5),
    ] {
        let lab = TestLab::up()?;
        let mut server = start(&lab, &format!("--addresses {count} --bind {bind}"))?;
        let pool = pool(count)?;
        let all: HashSet<_> = pool.iter().collect();
        in_server(&lab, "link set server0 name lan0")?;
        says(&mut server, "server0 is now called lan0")?;
        if bind != "live-map" {
            in_server(&lab, &format!("-6 address del {}/128 dev lan0", pool.address(3)))?;
            says(&mut server, &format!("1 of the {count} addresses of lan0 had gone"))
                .with_context(|| bind.to_owned())?;
        }
        is_answered(&lab, pool.address(3)).with_context(|| bind.to_owned())?;
        server.stop()?;
        in_server(&lab, "link set lan0 name server0")?;
        let left: Vec<_> = addresses(&lab)?.intersection(&all).copied().collect();
        ensure!(left.is_empty(), "{bind}: left {left:?}");
        ensure!(common::link(&lab, Side::Server)?.up, "{bind}: the interface was left down");
    }
    // Settings are restored.
    let lab = TestLab::up()?;
    let mut server = start(&lab, "--addresses 5 --coalesce 50")?;
    in_server(&lab, "link set server0 name lan0")?;
    says(&mut server, "server0 is now called lan0")?;
    server.stop()?;
    let show = "cat /sys/class/net/lan0/gro_flush_timeout";
    let namespace = lab.namespace(Side::Server);
    let shown =
        Command::new("ip").args(["netns", "exec", &namespace]).args(show.split(' ')).output()?;
    in_server(&lab, "link set lan0 name server0")?;
    ensure!(shown.stdout == b"0\n", "{shown:?}");
    Ok(())
}

/// Requests that XDP passes to the socket behind the program: those behind an extension header.
fn delivered_under_another_name() -> Result<()> {
    let lab = TestLab::up()?;
    let mut server = start(&lab, "--addresses 5 --bind live-map")?;
    in_server(&lab, "link set server0 name lan0")?;
    says(&mut server, "server0 is now called lan0")?;
    let big = [7; 3000];
    let address = pool(5)?.address(2);
    let fragments = || {
        lab.run_in(Side::Client, || {
            let socket = UdpSocket::bind(SocketAddrV6::new(Side::Client.address(), 0, 0, 0))?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            let give_up = Instant::now() + PATIENCE;
            while Instant::now() < give_up {
                let _ = socket.send_to(&big, SocketAddrV6::new(address, PORT, 0, 0));
                if socket.recv_from(&mut [0; 4000]).is_ok() {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    };
    ensure!(fragments()?, "fragments get no answer");
    let rules = Command::new("ip")
        .args(["-n", &lab.namespace(Side::Server), "-6", "rule", "show"])
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())?;
    ensure!(rules.contains("iif lan0") && !rules.contains("server0"), "{rules}");
    server.stop()?;
    in_server(&lab, "link set lan0 name server0")
}

fn another_namespace() -> Result<()> {
    for flags in [
        "--bind netlink",
        "--bind command",
        "--bind live-map",
        "--bind live-map --engine reflect",
        "--engine raw",
        "--coalesce 50",
    ] {
        let lab = TestLab::up()?;
        let other = format!("{}-other", lab.namespace(Side::Server));
        ip(&format!("netns add {other}"))?;
        let gone = || {
            let server = start(&lab, &format!("--addresses 5 {flags}"))?;
            in_server(&lab, &format!("link set server0 netns {other}"))?;
            ends_with(server, "server0 has gone, and its 5 addresses with it")?;
            let show = format!("netns exec {other} cat /sys/class/net/server0/gro_flush_timeout");
            let shown = Command::new("ip").args(show.split(' ')).output()?;
            ensure!(shown.stdout == b"0\n", "{shown:?}");
            let show = format!("-n {other} -6 address show dev server0 scope global");
            let shown = Command::new("ip").args(show.split(' ')).output()?;
            ensure!(shown.stdout.is_empty(), "{shown:?}");
            ip(&format!("-n {other} link set server0 netns {}", lab.namespace(Side::Server)))
        };
        let done = gone().with_context(|| flags.to_owned());
        ip(&format!("netns delete {other}"))?;
        done?;
    }
    Ok(())
}

fn another_mtu() -> Result<()> {
    for (flags, mtu, ends) in [
        ("--engine afxdp", 3000, Some("packets may be larger than its frames of 2048 bytes")),
        ("--engine raw", 9000, Some("its buffers hold packets of 1500 bytes")),
        ("--engine packet-ring", 9000, Some("its buffers hold packets of 1500 bytes")),
        ("--engine afxdp --frame-size 4096", 3000, None),
        ("--engine afxdp", 1280, None),
        ("--engine raw", 1280, None),
        ("--engine reflect", 1280, None),
        ("--engine socket-gso", 9000, None),
    ] {
        let lab = TestLab::up()?;
        // A veth accepts no large MTU while its other end has an XDP program.
        let _polls = flags.contains("reflect").then(|| have_client_poll(&lab)).transpose()?;
        let mut server = start(&lab, &format!("--addresses 5 {flags}"))?;
        in_server(&lab, &format!("link set server0 mtu {mtu}"))?;
        let words = format!("the MTU of server0 was 1500, and is {mtu} now");
        if let Some(why) = ends {
            ends_with(server, &format!("{words}: {why}")).with_context(|| flags.to_owned())?;
            continue;
        }
        says(&mut server, &words).with_context(|| flags.to_owned())?;
        is_answered(&lab, pool(5)?.address(1)).with_context(|| flags.to_owned())?;
        server.stop()?;
    }
    Ok(())
}

fn bridged() -> Result<()> {
    for (flags, ends) in [
        ("--bind netlink", true),
        ("--engine socket-gso", true),
        ("--engine raw", true),
        ("--bind live-map", false),
        ("--bind live-map --engine reflect", false),
    ] {
        let lab = TestLab::up()?;
        let _polls = have_client_poll(&lab)?;
        let mut server = start(&lab, &format!("--addresses 5 {flags}"))?;
        in_server(&lab, "link add br0 type bridge")?;
        in_server(&lab, "link set br0 up")?;
        let put_under = || {
            in_server(&lab, "link set server0 master br0")?;
            if ends {
                return ends_with(server, "server0 was put under br0")
                    .with_context(|| flags.to_owned());
            }
            says(&mut server, "server0 was put under br0")?;
            is_answered(&lab, pool(5)?.address(1)).with_context(|| flags.to_owned())?;
            let silent = "2001:db8:1::dead".parse()?;
            ensure!(!answers(&lab, silent, Duration::from_secs(1))?, "{flags}: {silent} answers");
            in_server(&lab, "link set server0 nomaster")?;
            says(&mut server, "server0 is under no other interface any more")?;
            is_answered(&lab, pool(5)?.address(2)).with_context(|| flags.to_owned())?;
            server.stop().map(drop)
        };
        let done = put_under();
        in_server(&lab, "link delete br0")?;
        done?;
    }
    Ok(())
}

fn arp_off() -> Result<()> {
    for (flags, words) in [
        ("--bind netlink", "its 5 addresses are not to be found"),
        ("--bind live-map", "fragments and requests behind"),
    ] {
        let lab = TestLab::up()?;
        let _polls = have_client_poll(&lab)?;
        let mut server = start(&lab, &format!("--addresses 5 {flags}"))?;
        in_server(&lab, "link set server0 arp off")?;
        says(&mut server, &format!("('arp off'): {words}"))?;
        if flags.contains("live-map") {
            is_answered(&lab, pool(5)?.address(1)).with_context(|| flags.to_owned())?;
        }
        in_server(&lab, "link set server0 arp on")?;
        says(&mut server, "neighbours are discovered on server0 again")?;
        is_answered(&lab, pool(5)?.address(2)).with_context(|| flags.to_owned())?;
        server.stop()?;
    }
    Ok(())
}
