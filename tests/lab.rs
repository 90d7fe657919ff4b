//! The lab and rtnetlink against a real kernel, in namespaces of their own. Needs root and `ip`.

use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::common::{TestLab, fails_with, ip, link, resolve, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sched::{CloneFlags, setns};
use sixhop::lab::{Lab, Raised, Side, State};
use sixhop::net::netlink;

pub fn trials() -> Vec<Trial> {
    vec![
        trial("up_twice_changes_nothing", up_twice_changes_nothing),
        trial("two_ups_at_once_make_one_lab", two_ups_at_once_make_one_lab),
        trial("down_leaves_nothing", down_leaves_nothing),
        trial("half_made_lab_is_replaced", half_made_lab_is_replaced),
        trial("foreign_interface_is_refused_and_stays", foreign_interface_is_refused_and_stays),
        trial("exec_becomes_the_command", exec_becomes_the_command),
        trial("queues_are_as_asked", queues_are_as_asked),
        trial("server_is_found", server_is_found),
        trial("nobody_is_an_error", nobody_is_an_error),
        trial("a_permanent_neighbour_is_believed_and_stays", permanent_neighbour_stays),
        trial("route_names_interface_and_source", route_names_interface_and_source),
        trial("carrier_is_waited_for", carrier_is_waited_for),
    ]
}

// The lab.

fn up_twice_changes_nothing() -> Result<()> {
    let lab = TestLab::new()?;
    ensure!(lab.up(1)? == Raised::Made);
    ensure!(lab.status()?.state == State::Up);
    let before = link(&lab, Side::Server)?;
    ensure!(lab.up(1)? == Raised::AlreadyUp);
    ensure!(link(&lab, Side::Server)? == before);
    Ok(())
}

fn two_ups_at_once_make_one_lab() -> Result<()> {
    let lab = TestLab::new()?;
    let outcomes: Result<Vec<_>> = std::thread::scope(|scope| {
        let ups = [(); 4].map(|()| scope.spawn(|| lab.up(1)));
        ups.into_iter().map(|up| up.join().expect("up does not panic")).collect()
    });
    let outcomes = outcomes?;
    let made = outcomes.iter().filter(|&&outcome| outcome == Raised::Made).count();
    let already = outcomes.iter().filter(|&&outcome| outcome == Raised::AlreadyUp).count();
    ensure!((made, already) == (1, 3), "{outcomes:?}");
    Ok(())
}

fn down_leaves_nothing() -> Result<()> {
    let lab = TestLab::up()?;
    let paths = [Side::Server, Side::Client].map(|side| namespace_path(&lab, side));
    let lock = PathBuf::from(format!("/run/sixhop-lab-{}.lock", lab.name()));
    // An open file keeps the namespace alive, as a process inside would. It must not keep the veth.
    let inside = fs::File::open(&paths[0])?;
    ensure!(lab.down()?);
    for path in paths.iter().chain([&lock]) {
        ensure!(!path.exists(), "{} still exists", path.display());
    }
    let links = std::thread::scope(|scope| {
        let look = || {
            setns(inside.as_fd(), CloneFlags::CLONE_NEWNET)?;
            netlink::links()
        };
        scope.spawn(look).join().expect("looking does not panic")
    })?;
    let names: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    ensure!(!names.contains(&"server0"), "{names:?}");
    ensure!(!lab.down()?, "a second down found something to remove");
    ensure!(lab.status()?.state == State::Down);
    Ok(())
}

fn half_made_lab_is_replaced() -> Result<()> {
    let lab = TestLab::new()?;
    let [server, client] = [Side::Server, Side::Client].map(|side| lab.namespace(side));
    let replaced = |what: &str| -> Result<()> {
        ensure!(lab.status()?.state != State::Up, "{what} counts as up");
        ensure!(lab.up(1)? == Raised::Replaced, "{what} was not replaced");
        ensure!(lab.status()?.state == State::Up, "{what} was not repaired");
        Ok(())
    };
    ip(&format!("netns add {server}"))?;
    replaced("an empty namespace")?;
    ip(&format!("-n {server} link delete server0"))?;
    replaced("a lab without its pair")?;
    ip(&format!("-n {client} link set client0 down"))?;
    replaced("a lab whose client is down")?;
    ip(&format!("-n {server} address delete 2001:db8:1::2/64 dev server0"))?;
    replaced("a lab without the server's address")?;
    ip(&format!("netns delete {client}"))?;
    replaced("a lab without one namespace")?;
    lab.down()?;
    fs::write(namespace_path(&lab, Side::Client), "")?;
    ensure!(lab.up(1)? == Raised::Replaced);
    ensure!(lab.up(2)? == Raised::Replaced, "a lab with another number of queues was not replaced");
    Ok(())
}

fn foreign_interface_is_refused_and_stays() -> Result<()> {
    let lab = TestLab::new()?;
    let namespace = lab.namespace(Side::Server);
    // An interface with the name of the lab's, but without its alias.
    ip(&format!("netns add {namespace}"))?;
    ip(&format!("-n {namespace} link add server0 type veth peer name other0"))?;
    let (up, down) = (lab.up(1), lab.down());
    let stays = ip(&format!("-n {namespace} link show server0"));
    ip(&format!("netns delete {namespace}"))?;
    stays?;
    fails_with(up, "which sixhop did not make")?;
    fails_with(down, "which sixhop did not make")
}

fn exec_becomes_the_command() -> Result<()> {
    let lab = TestLab::up()?;
    let output = exec(&lab, Side::Client, "ls /sys/class/net; exit 7")?;
    ensure!(output.status.code() == Some(7), "{output:?}");
    let stdout = String::from_utf8(output.stdout)?;
    ensure!(stdout.split_whitespace().eq(["client0", "lo"]), "the command saw {stdout:?}");
    let killed = exec(&lab, Side::Client, "kill -TERM $$")?;
    ensure!(killed.status.code().is_none(), "a signal became {:?}", killed.status);
    lab.down()?;
    let output = exec(&lab, Side::Client, "true")?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    ensure!(String::from_utf8_lossy(&output.stderr).contains("is not up: run 'sudo sixhop lab up"));
    Ok(())
}

fn queues_are_as_asked() -> Result<()> {
    let lab = TestLab::new()?;
    lab.up(3)?;
    for side in [Side::Server, Side::Client] {
        let link = link(&lab, side)?;
        ensure!((link.rx_queues, link.tx_queues) == (3, 3), "{link:?}");
        // Counts the queues in use.
        let count = format!("ls -d /sys/class/net/{}/queues/?x-*", side.interface());
        let queues = String::from_utf8(exec(&lab, side, &count)?.stdout)?;
        ensure!(queues.lines().count() == 6, "{queues}");
    }
    ensure!(lab.up(0).is_err() && lab.up(5000).is_err());
    ensure!(lab.up(3)? == Raised::AlreadyUp);
    Ok(())
}

// rtnetlink.

fn server_is_found() -> Result<()> {
    let lab = TestLab::up()?;
    let mac = resolve(&lab, Side::Server.address())?;
    ensure!(mac == link(&lab, Side::Server)?.mac);
    // The second time, the kernel has the answer cached.
    ensure!(mac == resolve(&lab, Side::Server.address())?);
    Ok(())
}

fn nobody_is_an_error() -> Result<()> {
    let lab = TestLab::up()?;
    let nobody: Ipv6Addr = "2001:db8:1::bad".parse()?;
    let wanted = "nobody answers for 2001:db8:1::bad on client0: is the server up?";
    fails_with(resolve(&lab, nobody), wanted)?;
    // The kernel caches the failure. That must not be the answer once the address exists.
    let server = link(&lab, Side::Server)?;
    ip(&format!("-n {} address add {nobody}/128 dev server0 nodad", lab.namespace(Side::Server)))?;
    ensure!(resolve(&lab, nobody)? == server.mac);
    let client = link(&lab, Side::Client)?.index;
    let start = Instant::now();
    let impatient = lab.run_in(Side::Client, || {
        netlink::resolve(client, "2001:db8:1::bad2".parse()?, Duration::from_millis(100))
    });
    fails_with(impatient, "nobody answers")?;
    ensure!(start.elapsed() < Duration::from_secs(2), "resolve did not give up in time");
    Ok(())
}

fn permanent_neighbour_stays() -> Result<()> {
    let lab = TestLab::up()?;
    let (nobody, mac): (Ipv6Addr, _) = ("2001:db8:1::bad".parse()?, [2, 0, 0, 0, 0, 7]);
    let client = lab.namespace(Side::Client);
    ip(&format!(
        "-n {client} neighbour add {nobody} lladdr 02:00:00:00:00:07 dev client0 nud permanent"
    ))?;
    for _ in 0..2 {
        ensure!(resolve(&lab, nobody)? == mac);
    }
    Ok(())
}

fn route_names_interface_and_source() -> Result<()> {
    let lab = TestLab::up()?;
    let client = link(&lab, Side::Client)?.index;
    let [route, beyond] = lab.run_in(Side::Client, || {
        Ok([Side::Server.address(), "2001:db8:2::1".parse()?].map(netlink::route))
    })?;
    let route = route?;
    ensure!(
        (route.interface, route.gateway, route.source) == (client, None, Side::Client.address())
    );
    fails_with(beyond, "no route to 2001:db8:2::1")?;
    ip(&format!("-n {} route add 2001:db8:2::/64 via 2001:db8:1::2", lab.namespace(Side::Client)))?;
    let route = lab.run_in(Side::Client, || netlink::route("2001:db8:2::1".parse()?))?;
    ensure!(route.gateway == Some(Side::Server.address()));
    Ok(())
}

fn carrier_is_waited_for() -> Result<()> {
    let lab = TestLab::up()?;
    let [server, client] = [link(&lab, Side::Server)?, link(&lab, Side::Client)?];
    lab.run_in(Side::Server, || netlink::set_up(server.index, false))?;
    let wait =
        |timeout| lab.run_in(Side::Client, move || netlink::wait_for_carrier("client0", timeout));
    fails_with(wait(Duration::from_millis(50)), "client0 has no carrier after 50ms")?;
    ensure!(!link(&lab, Side::Client)?.carrier && client.carrier);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| wait(Duration::from_secs(10)));
        lab.run_in(Side::Server, || netlink::set_up(server.index, true))?;
        waiting.join().expect("waiting does not panic")
    })
}

// Helpers.

/// Runs `script` with `sixhop lab exec`.
fn exec(lab: &Lab, side: Side, script: &str) -> Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_sixhop"))
        .args(["lab", "--name", lab.name(), "exec", &side.to_string(), "--", "sh", "-c", script])
        .output()
        .context("cannot run sixhop")
}

fn namespace_path(lab: &Lab, side: Side) -> PathBuf {
    PathBuf::from("/run/netns").join(lab.namespace(side))
}
