//! Errors that must name their cause, because the kernel's own error would mislead. Each test has a
//! lab of its own (see `common`).
//!
//! | test | what is tried |
//! |---|---|
//! | `what_denies_a_call_*` | a seccomp filter denies bpf(2) and others; root of a user namespace |
//! | `without_sys_*` | /sys covered by another mount, and unmounted |
//! | `a_large_mtu_*` | an MTU too large for native XDP, and the largest request at it |
//! | `without_ipv6_*` | `disable_ipv6`, a kernel without IPv6, and an MTU too small for it |
//! | `other_names_*` | `ip link property add … altname` |
//! | `too_many_*` | more addresses than the program's hash or this machine's memory can hold |
//! | `a_prefix_*` | ::/0, and prefixes in which the machine has other routes |

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use crate::common::server::{PATIENCE, PREFIX, SIXHOP, Server, sixhop};
use crate::common::{TestLab, ip, trial};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::libc;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;
use sixhop::address::Pool;
use sixhop::lab::Side;

/// As first argument, makes this program run a command without a system call instead of the tests.
/// The system call's number and the command follow.
const WITHOUT: &str = "--without";

/// Runs instead of the tests if a test of this file started this process.
pub fn child() {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.get(1).map(String::as_str) == Some(WITHOUT) {
        without(arguments[2].parse().unwrap(), &arguments[3..]);
    }
}

pub fn trials() -> Vec<Trial> {
    vec![
        trial("what_denies_a_call_to_root_is_named", what_denies_a_call),
        trial("what_denies_a_call_in_a_user_namespace_is_named", in_a_user_namespace),
        trial("without_sys_that_is_said", without_sys),
        trial("a_large_mtu_is_named_and_so_is_the_largest_request", a_large_mtu),
        trial("without_ipv6_nothing_starts", without_ipv6),
        trial("other_names_of_an_interface_are_known", other_names),
        trial("too_many_addresses_are_refused_with_how_many_fit", too_many),
        trial("a_prefix_beyond_global_unicast_is_refused", a_prefix_beyond_unicast),
        trial("a_prefix_with_routes_of_others_takes_consent", a_prefix_with_routes),
    ]
}

/// Runs a command under a filter that denies one system call, as container runtimes do.
fn without(call: i64, command: &[String]) -> ! {
    let rules = BTreeMap::from([(call, vec![])]);
    let deny = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, deny, architecture).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    panic!("{}", Command::new(&command[0]).args(&command[1..]).exec());
}

/// Runs `program` with its arguments, which runs `sixhop` with `arguments`, on the server's side.
fn wrapped(lab: &TestLab, program: &[&str], arguments: &str) -> Command {
    let mut command = Command::new(SIXHOP);
    command.args(["lab", "--name", lab.name(), "exec", "server", "--"]);
    command.args(program).arg(SIXHOP).args(arguments.split_whitespace());
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

fn serve(flags: &str) -> String {
    format!("serve --interface server0 --json --prefix {PREFIX} --addresses 20 {flags}")
}

/// The one line on standard error of a command that has to fail.
fn refused(output: Output) -> Result<String> {
    let words = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{words}");
    ensure!(words.lines().count() == 1, "{words}");
    Ok(words)
}

fn has(words: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(words.contains(part), "'{part}' is missing: {words}");
    }
    Ok(())
}

fn probe(output: Output) -> Result<Value> {
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// The named obstacle that keeps `serve` from starting. The probe must have tried it and agree.
fn obstacle(probe: &Value, name: &str) -> Result<String> {
    let obstacles = probe["verdict"]["obstacles"].as_array().context("obstacles")?;
    let found = obstacles.iter().find(|obstacle| obstacle["name"] == name);
    let why = found.and_then(|found| found["why"].as_str()).with_context(|| format!("{probe}"))?;
    ensure!(probe["tried"]["agrees"] == true && probe["tried"]["attach"].is_null(), "{probe}");
    Ok(why.to_owned())
}

fn what_denies_a_call() -> Result<()> {
    let lab = TestLab::up()?;
    let this = std::env::current_exe()?;
    let this = this.to_str().context("a path")?;
    let denied = |call: i64, arguments: &str| {
        Ok::<_, anyhow::Error>(
            wrapped(&lab, &[this, WITHOUT, &call.to_string()], arguments).output()?,
        )
    };
    for (call, flags, parts) in [
        (libc::SYS_bpf, "", ["loading the XDP program is denied", "CAP_BPF"]),
        (libc::SYS_bpf, "--engine reflect", ["loading the XDP program is denied", "bpf(2)"]),
        (libc::SYS_io_uring_setup, "--engine uring", ["io_uring is forbidden", "socket-gso"]),
        (libc::SYS_mq_open, "--engine socket", ["no POSIX message queue", "mq_open(2)"]),
    ] {
        let words = refused(denied(call, &serve(flags))?)?;
        has(&words, &parts)?;
        has(&words, &["seccomp filter", "Seccomp: 2"])?;
        ensure!(!words.contains("run as root"), "{words}");
    }
    let probe = probe(denied(libc::SYS_bpf, "probe server0 --try --json")?)?;
    has(&obstacle(&probe, "program")?, &["seccomp filter"])?;
    let table = denied(libc::SYS_bpf, "probe server0")?;
    has(&String::from_utf8(table.stdout)?, &["not now: program", "seccomp"])
}

fn in_a_user_namespace() -> Result<()> {
    let lab = TestLab::up()?;
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let rootless = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script];
    let flags = format!(
        "serve --interface lo --prefix {PREFIX} --addresses 20 --engine afxdp --attach generic"
    );
    let words = refused(wrapped(&lab, &rootless, &flags).output()?)?;
    has(&words, &["loading the XDP program is denied", "user namespace"])?;
    ensure!(!words.contains("run as root"), "{words}");
    Ok(())
}

fn without_sys() -> Result<()> {
    let lab = TestLab::up()?;
    for script in [
        "mount -t tmpfs none /sys && exec \"$0\" \"$@\"",
        "for each in 1 2 3 4 5; do umount -R -l /sys 2>/dev/null; done; exec \"$0\" \"$@\"",
    ] {
        let program = ["unshare", "--mount", "sh", "-c", script];
        for flags in ["", "--engine reflect", "--bind live-map"] {
            let words = refused(wrapped(&lab, &program, &serve(flags)).output()?)?;
            has(&words, &["/sys is not mounted: mount -t sysfs sysfs /sys"])?;
            ensure!(!words.contains("CONFIG_BPF_SYSCALL"), "{words}");
        }
        let output = wrapped(&lab, &program, "probe server0 --try --json").output()?;
        has(&obstacle(&probe(output)?, "program")?, &["/sys is not mounted"])?;
        let output = wrapped(&lab, &program, "probe server0").output()?;
        has(&String::from_utf8(output.stdout)?, &["/sys is not mounted"])?;
        // Engines that need no XDP program work without /sys.
        Server::of({
            let mut command = wrapped(&lab, &program, &serve("--engine socket-gso"));
            command.stdout(Stdio::piped());
            command
        })?
        .stop()?;
    }
    Ok(())
}

fn a_large_mtu() -> Result<()> {
    let lab = TestLab::up()?;
    for side in [Side::Server, Side::Client] {
        ip(&format!("-n {} link set {} mtu 9000", lab.namespace(side), side.interface()))?;
    }
    let words = refused(sixhop(&lab, Side::Server, &serve("--attach native")).output()?)?;
    has(&words, &["MTU of 9000", "ip link set dev client0 mtu 1500", "--attach generic"])?;
    ensure!(!words.contains("out of range"), "{words}");

    let mut server = Server::start(&lab, "--addresses 20 --replies 1")?;
    ensure!(server.ready["attach"] == "generic", "{}", server.ready);
    has(&server.ready["fallbacks"][0]["why"].to_string(), &["MTU of 9000"])?;
    has(&server.ready["notes"].to_string(), &["up to 3778 bytes", "mtu 3826"])?;
    // Requests of the announced size get replies; larger ones do not.
    let address = Pool::new(PREFIX.parse()?, 20, 1)?.address(0);
    let client = lab.run_in(Side::Client, || {
        let client = UdpSocket::bind("[::]:0")?;
        client.connect((address, 3540))?;
        client.set_read_timeout(Some(PATIENCE))?;
        Ok(client)
    })?;
    let mut reply = [0; 9000];
    client.send(&[7; 3778])?;
    ensure!(client.recv(&mut reply)? == 3778, "the reply has another length");
    client.send(&[7; 3779])?;
    server.wait_for(|stats| stats["dropped"]["rx_dropped"] == 1)?;
    server.stop()?;

    let server = Server::start(&lab, "--addresses 20 --engine socket-gso")?;
    has(&server.ready["notes"].to_string(), &["up to 1452 bytes"])?;
    server.stop()?;
    let probe = probe(sixhop(&lab, Side::Server, "probe server0 --json").output()?)?;
    has(
        &probe["verdict"]["advice"].to_string(),
        &["ip link set dev server0 mtu 3826", "more than 3778 bytes"],
    )
}

fn without_ipv6() -> Result<()> {
    let lab = TestLab::up()?;
    let namespace = lab.namespace(Side::Server);
    let disable = |value: u8| {
        ip(&format!("netns exec {namespace} sysctl -qw net.ipv6.conf.server0.disable_ipv6={value}"))
    };
    disable(1)?;
    let cure = "sysctl -w net.ipv6.conf.server0.disable_ipv6=0";
    for bind in [
        "netlink",
        "netlink-batch",
        "netlink-down",
        "ioctl",
        "command",
        "ifconfig",
        "anyip",
        "live-map",
        "none",
    ] {
        let flags = format!(
            "serve --interface server0 --prefix 2001:db8:9::/64 --addresses 5 --bind {bind}"
        );
        has(
            &refused(sixhop(&lab, Side::Server, &flags).output()?)?,
            &["IPv6 is disabled on server0", cure],
        )
        .context(bind)?;
    }
    let load =
        format!("load --interface server0 --prefix {PREFIX} --addresses 5 --rate 10 --requests 10");
    has(&refused(sixhop(&lab, Side::Server, &load).output()?)?, &[cure])?;
    let probed = probe(sixhop(&lab, Side::Server, "probe server0 --try --json").output()?)?;
    has(&obstacle(&probed, "ipv6")?, &[cure])?;
    disable(0)?;

    let script = "mount -t tmpfs none /proc/sys/net/ipv6 && exec \"$0\" \"$@\"";
    let none =
        wrapped(&lab, &["unshare", "--mount", "sh", "-c", script], &serve("--engine socket"));
    has(&refused({ none }.output()?)?, &["this kernel has no IPv6", "ipv6.disable=1"])?;

    ip(&format!("-n {namespace} link set server0 mtu 1000"))?;
    let words = refused(sixhop(&lab, Side::Server, &serve("")).output()?)?;
    has(&words, &["its MTU is 1000", "ip link set dev server0 mtu 1500"])
}

fn other_names() -> Result<()> {
    let lab = TestLab::up()?;
    let names = ["short0", "a-name-that-is-much-longer-than-others"];
    for name in names {
        ip(&format!(
            "-n {} link property add dev server0 altname {name}",
            lab.namespace(Side::Server)
        ))?;
        ip(&format!(
            "-n {} link property add dev client0 altname {name}",
            lab.namespace(Side::Client)
        ))?;
        for engine in [
            "afxdp",
            "reflect --bind live-map",
            "socket --bind netlink-down",
            "raw --bind ifconfig",
        ] {
            let flags = format!("--prefix {PREFIX} --addresses 20 --engine {engine}");
            let server =
                Server::start_on(&lab, name, &flags).with_context(|| format!("{name} {engine}"))?;
            ensure!(server.ready["interface"] == "server0", "{}", server.ready);
            let load = format!(
                "load --interface {name} --prefix {PREFIX} --addresses 20 --json --rate 200 \
                 --requests 20"
            );
            let output = sixhop(&lab, Side::Client, &load).output()?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let result: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(result["complete"] == 20, "{result}");
            server.stop().with_context(|| format!("{name} {engine}"))?;
        }
        let bind = format!(
            "bind --interface {name} --prefix {PREFIX} --addresses 5 --method netlink --json"
        );
        let output = sixhop(&lab, Side::Server, &bind).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let probe = probe(sixhop(&lab, Side::Server, &format!("probe {name} --json")).output()?)?;
        ensure!(probe["interface"] == "server0", "{probe}");
    }
    let unknown = "probe a-name-that-nobody-has-given-to-anything --json";
    has(
        &refused(sixhop(&lab, Side::Server, unknown).output()?)?,
        &["no interface 'a-name-that", "only lo, server0"],
    )
}

fn too_many() -> Result<()> {
    let lab = TestLab::up()?;
    for (addresses, flags, parts) in [
        (400_000_000_u64, "--bind live-map", ["at most 134217728", "use fewer"]),
        (5_000_000_000, "--bind live-map --engine reflect", ["at most 134217728", "use fewer"]),
        (1 << 50, "--engine socket", ["MiB of memory", "use fewer"]),
        (1 << 62, "--engine raw --bind netlink-batch", ["MiB of memory", "use fewer"]),
    ] {
        let flags = format!(
            "serve --interface server0 --prefix {PREFIX} --addresses {addresses} {flags} --json"
        );
        has(&refused(sixhop(&lab, Side::Server, &flags).output()?)?, &parts)?;
    }
    // A list of clients too large for this machine's memory.
    let info = fs::read_to_string("/proc/meminfo")?;
    let total =
        info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"));
    if total.context("MemTotal")?.trim().parse::<u64>()? < 32 << 20 {
        let secret = std::env::temp_dir().join(format!("sixhop-causes-{}", std::process::id()));
        fs::write(&secret, [7; 32])?;
        Command::new("chmod").arg("600").arg(&secret).status()?;
        let flags = format!(
            "serve --interface server0 --prefix {PREFIX} --schedule mt6d --clients 4294967295 \
             --secret {} --json",
            secret.display()
        );
        let output = sixhop(&lab, Side::Server, &flags).output();
        fs::remove_file(&secret)?;
        has(&refused(output?)?, &["4294967295 clients need", "MiB of memory"])?;
    }
    Ok(())
}

fn a_prefix_beyond_unicast() -> Result<()> {
    let lab = TestLab::up()?;
    for prefix in ["::/0", "8000::/1", "::ffff:0:0/96", "fc00::/6"] {
        for bind in ["live-map", "netlink"] {
            let flags =
                format!("serve --interface server0 --prefix {prefix} --addresses 5 --bind {bind}");
            let output = sixhop(&lab, Side::Server, &flags).output()?;
            let words = String::from_utf8(output.stderr)?;
            ensure!(output.status.code() == Some(2) && words.lines().count() == 1, "{words}");
            has(&words, &["2000::/3", "fc00::/7"])?;
        }
    }
    // `--allow` accepts ::/0.
    Server::start(&lab, "--addresses 5 --allow ::/0")?.stop()?;
    Ok(())
}

fn a_prefix_with_routes() -> Result<()> {
    let lab = TestLab::up()?;
    let namespace = lab.namespace(Side::Server);
    ip(&format!("-n {namespace} link add other0 type veth peer name other1"))?;
    ip(&format!("-n {namespace} link set other0 up"))?;
    ip(&format!("-n {namespace} link set other1 up"))?;
    ip(&format!("-n {namespace} addr add 2001:db8:5::1/64 dev other0 nodad"))?;
    ip(&format!("-n {namespace} route add 2001:db8:7:7::/64 via 2001:db8:5::2"))?;
    let check = || {
        for (bind, prefix, route) in [
            ("live-map", "2001:db8::/32", "2001:db8:5::/64"),
            ("live-map", "2001:db8:7::/48", "2001:db8:7:7::/64"),
            ("live-map", "2001:db8:5::/96", "2001:db8:5::/64"),
            ("anyip", "2001:db8:4::/47", "2001:db8:5::/64"),
        ] {
            let flags =
                format!("serve --interface server0 --prefix {prefix} --addresses 5 --bind {bind}");
            let words = refused(sixhop(&lab, Side::Server, &flags).output()?)?;
            has(&words, &[route, "through other0", "--take-prefix"])?;
            let flags =
                format!("bind --interface server0 --prefix {prefix} --addresses 5 --method {bind}");
            has(
                &refused(sixhop(&lab, Side::Server, &flags).output()?)?,
                &[route, "--take-prefix"],
            )?;
            let flags = format!("--prefix {prefix} --addresses 5 --bind {bind} --take-prefix");
            Server::start_with(&lab, &flags)?.stop()?;
        }
        // Methods that add only their own addresses need no consent, and neither does a prefix with
        // no other routes in it.
        Server::start_with(&lab, "--prefix 2001:db8::/32 --addresses 5 --bind netlink")?.stop()?;
        Server::start_with(&lab, "--prefix 2001:db8:9::/48 --addresses 5 --bind live-map")?
            .stop()?;
        Server::start(&lab, "--addresses 5 --bind live-map")?.stop()?;
        Ok(())
    };
    let checked = check();
    // The lab does not take down interfaces that it did not make.
    ip(&format!("-n {namespace} link delete other0"))?;
    checked
}
