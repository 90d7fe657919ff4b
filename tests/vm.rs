//! Emulated cards: what their drivers grant, and that it works. Each test boots a guest with `lab
//! vm` and runs this program again inside it, which does the checking.
//!
//! ```text
//!   this test ──► sixhop lab vm --nic N ──► guest: this program, 'in-guest N'
//!                                             ──► serve, load, probe on its two cards
//! ```
//!
//! | test | what it checks |
//! |---|---|
//! | `igb_*`, `virtio_*` | zero-copy, native copy and generic, by the kernel's report and calls |
//! | `a_clock_*` | setting a guest's clock, with what follows it and what must not |
//! | `e1000e_*`, `vmxnet3_*`, `virtio_plain_*` | their limits: other modes are refused, and why |
//!
//! virtio_plain also tests a bond of one card, where the granted mode is of no use, and a VRF. igb
//! tests two queues with two workers. Without QEMU or a kernel, all are reported as ignored, with
//! the reason.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use common::server::{PREFIX, SIXHOP, Server, sixhop};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_gettime, clock_settime};
use serde_json::Value;
use sixhop::lab::vm::{Kernel, Qemu};
use sixhop::lab::{DEFAULT_NAME, Lab, Side};
use sixhop::net::{ethtool, netlink};

/// Seconds after which a guest counts as hung.
const LIMIT: &str = "600";

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, what, nic] = &arguments[..] {
        if what == "in-guest" {
            let checked = if nic == "bond" { bond() } else { in_guest(nic) };
            return match checked {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("{error:#}");
                    ExitCode::FAILURE
                }
            };
        }
    }
    let cannot = cannot();
    let test = |name: &str, nic: &'static str, queues: Option<u32>| match (&cannot, common::root())
    {
        (None, true) => common::trial(name, move || boot(nic, queues)),
        (Some(why), true) => {
            common::rootless(name, || Ok(())).with_ignored_flag(true).with_kind(why)
        }
        (_, false) => common::trial(name, || Ok(())), // which says why not
    };
    // One guest at a time: each has as many processors as this machine.
    common::main(
        Vec::new(),
        vec![
            test("igb_has_every_mode_and_two_queues", "igb", Some(2)),
            test("a_clock_that_is_set_stops_nothing_and_spoils_no_figure", CLOCK, None),
            test("virtio_has_every_mode", "virtio", None),
            test("virtio_plain_advertises_zero_copy_and_has_none", "virtio-plain", None),
            test("e1000e_is_generic", "e1000e", None),
            test("vmxnet3_copies", "vmxnet3", None),
            match (&cannot, common::root()) {
                (None, true) => common::trial(BOND, || boot_for("virtio-plain", None, "bond")),
                (Some(why), true) => {
                    common::rootless(BOND, || Ok(())).with_ignored_flag(true).with_kind(why)
                }
                (_, false) => common::trial(BOND, || Ok(())),
            },
        ],
    )
}

/// Why no guest can boot here.
fn cannot() -> Option<String> {
    let mut show = |what: &str| eprintln!("{what}");
    let found = common::root().then(|| Kernel::find(None, &mut show).and(Qemu::find(&mut show)));
    let why = format!("{:#}", found?.err()?);
    eprintln!("no guest can be booted: {why}");
    Some(why)
}

const BOND: &str = "a_bond_serves_by_the_generic_hook";

fn boot(nic: &str, queues: Option<u32>) -> Result<()> {
    boot_for(nic, queues, nic)
}

/// Boots a guest that runs the check named `what`.
fn boot_for(nic: &str, queues: Option<u32>, what: &str) -> Result<()> {
    let this = std::env::current_exe()?;
    let output = Command::new(SIXHOP)
        .args(["lab", "vm", "--nic", if nic == CLOCK { "virtio" } else { nic }, "--limit", LIMIT])
        .args(queues.map(|queues| format!("--queues={queues}")))
        .arg("--")
        .arg(this)
        .args(["in-guest", what])
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A mode to ask for, and what the server should get.
struct Mode {
    flags: &'static str,
    attach: &'static str,
    copy: &'static str,
}

const ZERO: Mode = Mode { flags: "--copy zero", attach: "native", copy: "zero" };
const COPY: Mode = Mode { flags: "--copy copy", attach: "native", copy: "copy" };
const GENERIC: Mode = Mode { flags: "--attach generic", attach: "generic", copy: "copy" };
/// The modes without flags.
const AUTO_ZERO: Mode = Mode { flags: "", ..ZERO };
const AUTO_COPY: Mode = Mode { flags: "", ..COPY };
const AUTO_GENERIC: Mode = Mode { flags: "", ..GENERIC };

/// Not a card, but a check to run in a guest.
const CLOCK: &str = "clock";

/// Sets the guest's clock ahead by this many seconds, or back. Refuses on any other machine.
fn set_clock(seconds: i64) -> Result<()> {
    ensure!(sixhop::host::guest().is_some(), "refusing to set the clock outside a guest");
    let clock = ClockId::CLOCK_REALTIME;
    Ok(clock_settime(clock, clock_gettime(clock)? + TimeSpec::seconds(seconds))?)
}

fn clock_in_guest() -> Result<()> {
    let lab = Lab::named(DEFAULT_NAME)?;
    moving_addresses_follow(&lab).context("moving addresses")?;
    the_papers_server_ends(&lab).context("the paper's server")?;
    times_are_right_or_none(&lab).context("times")
}

/// The sandbox is on.
fn moving_addresses_follow(lab: &Lab) -> Result<()> {
    const CLIENTS: u64 = 200;
    let secret = "/run/secret";
    fs::write(secret, "a secret of no value, long enough")?;
    fs::set_permissions(secret, fs::Permissions::from_mode(0o600))?;
    let flags = format!("--schedule mt6d --clients {CLIENTS} --rotate 10s --secret {secret}");
    let mut server = Server::start(lab, &format!("{flags} --bind live-map"))?;
    let first = server.ready["step"].as_u64().context("a step")?;
    let mut step = first;
    server.wait_for(|event| {
        step = event["step"].as_u64().unwrap_or(first);
        event["event"] == "rotation" && step > first
    })?;
    for (seconds, words) in
        [(-120, "set back by 120."), (-10, "set back by 10."), (300, "set ahead by 300.")]
    {
        set_clock(seconds)?;
        server.wait_for(|event| {
            event["event"] == "notice"
                && event["text"].as_str().is_some_and(|text| text.contains(words))
        })?;
        let load = format!(
            "load --interface client0 --prefix {PREFIX} {flags} --rate 500 --requests {CLIENTS} \
             --json"
        );
        let output = sixhop(lab, Side::Client, &load).output()?;
        let result: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(result["complete"] == CLIENTS, "{seconds}: {result}");
    }
    server.stop()?;
    Ok(())
}

/// The `socket` engine answers and ends on request, however far the clock was set back.
fn the_papers_server_ends(lab: &Lab) -> Result<()> {
    let server = Server::start(lab, "--addresses 10 --bind netlink --engine socket")?;
    let load = || -> Result<()> {
        let load = format!(
            "load --interface client0 --prefix {PREFIX} --addresses 10 --rate 500 --requests 100 \
             --json"
        );
        let output = sixhop(lab, Side::Client, &load).output()?;
        let result: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        ensure!(result["complete"] == 100, "{result}");
        Ok(())
    };
    load()?;
    set_clock(-600)?;
    load()?;
    set_clock(-600)?;
    let asked = Instant::now();
    let totals = server.stop()?;
    ensure!(
        asked.elapsed() < Duration::from_secs(30),
        "the server ended after {:?}",
        asked.elapsed()
    );
    ensure!(totals["answered"] == 200, "{totals}");
    Ok(())
}

/// The kernel's timestamps use the clock that is set.
fn times_are_right_or_none(lab: &Lab) -> Result<()> {
    for seconds in [3, -3] {
        let mut server = Server::start(lab, "--addresses 10 --bind netlink --engine socket-gso")?;
        let load = format!(
            "load --interface client0 --prefix {PREFIX} --addresses 10 --client socket --rate 50 \
             --requests 200 --json"
        );
        let load = sixhop(lab, Side::Client, &load).stdout(Stdio::piped()).spawn()?;
        server.wait_for(|event| event["answered"].as_u64() >= Some(20))?;
        set_clock(seconds)?;
        let output = load.wait_with_output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && output.stdout.is_empty(),
            "{:?}, {words}",
            output.status
        );
        ensure!(words.lines().count() == 1 && words.contains("worthless"), "{words}");
        server.stop()?;
    }
    Ok(())
}

fn in_guest(nic: &str) -> Result<()> {
    if nic == CLOCK {
        return clock_in_guest();
    }
    let lab = Lab::named(DEFAULT_NAME)?;
    ensure!(
        sixhop::host::guest().is_some_and(|label| label.ends_with(&format!("-{nic}"))),
        "this guest is of another card"
    );
    let (modes, refused) = match nic {
        "igb" | "virtio" => {
            (vec![ZERO, AUTO_ZERO, COPY, GENERIC], vec!["--attach generic --copy zero"])
        }
        "virtio-plain" | "vmxnet3" => (vec![AUTO_COPY, GENERIC], vec!["--copy zero"]),
        "e1000e" => (vec![AUTO_GENERIC], vec!["--attach native", "--copy zero"]),
        _ => bail!("no such card: {nic}"),
    };
    for flags in refused {
        let serve = format!(
            "serve --interface server0 --prefix {PREFIX} --addresses 10 --bind none {flags}"
        );
        let output = sixhop(&lab, Side::Server, &serve).stdout(Stdio::null()).output()?;
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(1) && words.contains("auto"),
            "{nic}, {flags}: {words}"
        );
    }
    probe_tells_the_truth(&lab, &modes[0])?;
    let probes = Probes::set()?;
    for mode in &modes {
        let flags = format!("--addresses 300 --bind netlink-down {}", mode.flags);
        serves(&lab, &flags, mode, &probes).with_context(|| format!("{nic}, '{flags}'"))?;
    }
    // A card delivers only the multicast groups that it has joined. Neighbour discovery must work
    // for addresses that the kernel does not own, too.
    let flags = format!("--addresses 20000 --bind live-map {}", modes[0].flags);
    serves(&lab, &flags, &modes[0], &probes).with_context(|| format!("{nic}, '{flags}'"))?;
    match nic {
        "igb" => one_queue_of_two(&lab),
        "virtio-plain" => in_a_vrf(&lab),
        _ => Ok(()),
    }
}

/// A VRF, which the host's kernel may lack: its table has the local routes, and sockets bound to it
/// get its packets. `live-map` is refused at once.
fn in_a_vrf(lab: &Lab) -> Result<()> {
    let namespace = lab.namespace(Side::Server);
    for command in [
        "link add red type vrf table 1000",
        "link set red up",
        "link set server0 master red",
        "address replace 2001:db8:1::2/64 dev server0 nodad",
    ] {
        common::ip(&format!("-n {namespace} {command}"))?;
    }
    common::ip(&format!(
        "-n {} -6 route add 2001:db8:9::/64 via 2001:db8:1::2",
        lab.namespace(Side::Client)
    ))?;
    let kinds = [
        (PREFIX, "--engine socket-gso"),
        (PREFIX, "--engine afxdp"),
        ("2001:db8:9::/64", "--engine socket-gso --bind anyip"),
    ];
    for (prefix, flags) in kinds {
        let server = Server::start_with(lab, &format!("--prefix {prefix} --addresses 20 {flags}"))?;
        let load = format!(
            "load --interface client0 --prefix {prefix} --addresses 20 --rate 100 --requests 50 \
             --client socket --json"
        );
        let output = sixhop(lab, Side::Client, &load).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        let result: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(result["complete"] == 50, "{flags}: {result}");
        server.stop()?;
    }
    let serve =
        format!("serve --interface server0 --prefix {PREFIX} --addresses 20 --bind live-map");
    let output = sixhop(lab, Side::Server, &serve).stdout(Stdio::null()).output()?;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && words.contains("server0 is in a VRF"), "{words}");
    common::ip(&format!("-n {namespace} link delete red"))
}

/// The bond driver accepts a native XDP program and runs it on the port, whose packets the bond's
/// rings do not accept.
fn bond() -> Result<()> {
    let lab = Lab::named(DEFAULT_NAME)?;
    let kernel = Kernel::find(None, &mut |_| {})?;
    for module in kernel.modules("bonding")? {
        // Unless told otherwise, the module makes a bond0.
        let options = module.to_string_lossy().contains("/bonding.").then_some("max_bonds=0");
        let inserted = Command::new("insmod").arg(&module).args(options).status()?;
        ensure!(inserted.success(), "the kernel refuses module {}", module.display());
    }
    let server = lab.namespace(Side::Server);
    let ip = |arguments: &str| common::ip(&format!("-n {server} {arguments}"));
    ip("link set server0 down")?;
    ip("link add bond0 type bond mode active-backup miimon 100")?;
    ip("link set server0 master bond0")?;
    ip("link set bond0 up")?;
    ip("address add 2001:db8:1::2/64 dev bond0 nodad")?;
    lab.run_in(Side::Server, || netlink::wait_for_carrier("bond0", Duration::from_secs(10)))?;

    let flags = format!("--prefix {PREFIX} --addresses 50");
    let native =
        Server::start_on(&lab, "bond0", &format!("{flags} --bind netlink --attach native"));
    common::fails_with(native, "bond0 is a bond: it runs a native program on its ports")?;
    for engine in ["--bind netlink", "--bind live-map", "--bind netlink --engine reflect"] {
        let server = Server::start_on(&lab, "bond0", &format!("{flags} {engine}"))?;
        let ready = server.ready.clone();
        ensure!(ready["attach"] == "generic", "{ready}");
        ensure!(ready["fallbacks"][0]["what"] == "attach", "{ready}");
        all_are_answered(&lab).context(engine)?;
        let totals = server.stop()?;
        ensure!(totals["answered"] == REQUESTS, "{engine}: {totals}");
    }
    let output = sixhop(&lab, Side::Server, "probe bond0 --try --json").output()?;
    let probe: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(probe["verdict"]["attach"] == "generic" && probe["tried"]["agrees"] == true, "{probe}");

    // On the port itself: the bond takes its solicitations.
    let refused = Server::start(&lab, "--addresses 50 --bind netlink");
    common::fails_with(refused, "serve on bond0, or use --bind live-map")?;
    let flags = format!("--addresses 50 --bind live-map --allow {PREFIX}");
    let server = Server::start(&lab, &flags)?;
    all_are_answered(&lab).context("the port of a bond")?;
    server.stop()?;
    Ok(())
}

/// Checks that all [`REQUESTS`] are answered, to 50 addresses that the client first has to resolve.
fn all_are_answered(lab: &Lab) -> Result<()> {
    let client = lab.namespace(Side::Client);
    common::ip(&format!("-n {client} neighbour flush dev client0"))?;
    let load = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 50 --rate 300 --requests \
         {REQUESTS} --json"
    );
    let output = sixhop(lab, Side::Client, &load).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == REQUESTS, "{result}");
    Ok(())
}

/// A card without flow rules for ports must put all packets on the served queue. The next server
/// restores what a killed one left.
fn one_queue_of_two(lab: &Lab) -> Result<()> {
    let spread = || lab.run_in(Side::Server, || Ok(ethtool::indirection("server0")?));
    let before = spread()?;
    ensure!(before.contains(&0) && before.contains(&1), "{before:?}");
    let mut server = Server::start(
        lab,
        "--addresses 50 --bind netlink-down --queues 1 --busy-poll 50 --copy zero",
    )?;
    ensure!(server.ready["queues"] == serde_json::json!([1]), "{}", server.ready);
    ensure!(spread()?.iter().all(|queue| *queue == 1), "{:?}", spread()?);
    let load = format!(
        "load --interface client0 --prefix {PREFIX} --addresses 50 --rate 100 --requests 100 --json"
    );
    let output = sixhop(lab, Side::Client, &load).output()?;
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == 100, "{result}");
    server.kill_with_guard()?;
    ensure!(spread()? != before, "something restored it already");
    let server = Server::start(lab, "--addresses 50 --bind netlink-down")?;
    let notes = server.ready["notes"].to_string();
    ensure!(notes.contains("napi_defer_hard_irqs") && notes.contains("killed"), "{}", server.ready);
    ensure!(spread()? == before, "{:?} was {before:?}", spread()?);
    server.stop()?;
    Ok(())
}

/// `probe`'s expectation, an attempt, and the card's known modes all agree.
fn probe_tells_the_truth(lab: &Lab, best: &Mode) -> Result<()> {
    let output = sixhop(lab, Side::Server, "probe server0 --try --json").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let probe: Value = serde_json::from_slice(&output.stdout)?;
    let (verdict, tried) = (&probe["verdict"], &probe["tried"]);
    ensure!(verdict["attach"] == best.attach && verdict["copy"] == best.copy, "{probe}");
    ensure!(
        tried["agrees"] == true && tried["attach"] == best.attach && tried["copy"] == best.copy,
        "{probe}"
    );
    Ok(())
}

const REQUESTS: u64 = 600;

fn serves(lab: &Lab, flags: &str, mode: &Mode, probes: &Probes) -> Result<()> {
    let addresses = flags.split(' ').nth(1).unwrap_or_default();
    let server = Server::start(lab, flags)?;
    let ready = server.ready.clone();
    ensure!(ready["attach"] == mode.attach && ready["copy"] == mode.copy, "{ready}");
    let before = (probes.read()?, packets(lab)?);
    let load = format!(
        "load --interface client0 --prefix {PREFIX} --addresses {addresses} --rate 300 --requests \
         {REQUESTS} --json"
    );
    let output = sixhop(lab, Side::Client, &load).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(result["complete"] == REQUESTS && result["replies"] == 10 * REQUESTS, "{result}");
    for nothing in ["duplicates", "wrong_source", "corrupt"] {
        ensure!(result[nothing] == 0, "{result}");
    }
    let after = (probes.read()?, packets(lab)?);
    let totals = server.stop()?;
    ensure!(totals["answered"] == REQUESTS && totals["replies"] == 10 * REQUESTS, "{totals}");
    let queues = totals["queues"].as_array().context("counters of each queue")?;
    let sum: u64 = queues.iter().filter_map(|queue| queue["answered"].as_u64()).sum();
    ensure!(
        sum == REQUESTS && Some(queues.len()) == ready["queues"].as_array().map(Vec::len),
        "{totals}"
    );
    // The other cards have one queue here, or an emulation that does not spread packets.
    let idle = ready["driver"] == "igb" && queues.iter().any(|queue| queue["answered"] == 0);
    ensure!(!idle, "one queue got no requests: {totals}");
    for nothing in ["rx_dropped", "rx_ring_full", "rx_invalid", "tx_invalid"] {
        ensure!(totals["xdp"][nothing] == 0, "{totals}");
    }
    // The cards' counters show at least the requests and replies; other packets count too.
    // virtio_net does not count packets sent by a zero-copy socket. igb loses its receive count
    // when such a socket closes, as the client's just did.
    let counted: Vec<_> =
        before.1.iter().zip(after.1).map(|(before, after)| after.saturating_sub(*before)).collect();
    let [received, sent, arrived, queues_received, queues_sent] = counted[..] else {
        bail!("{counted:?}")
    };
    ensure!(received >= REQUESTS && sent.max(arrived) >= 10 * REQUESTS, "{counted:?}");
    if ready["driver"] == "igb" {
        ensure!(queues_received >= REQUESTS && queues_sent >= 10 * REQUESTS, "{counted:?}");
    }
    // The client runs in the best mode. These functions never run in zero-copy; in copy mode both
    // do.
    let copies = mode.copy == "copy";
    let ran =
        after.0.iter().zip(&before.0).map(|(after, before)| after - before).collect::<Vec<_>>();
    ensure!(
        ran.iter().all(|ran| (*ran > 0) == copies),
        "{:?} ran {ran:?} times in mode {}",
        Probes::OF,
        mode.copy
    );
    Ok(())
}

/// Packet counts: the server's card received and sent, the client's card received (all by the
/// kernel), then the server's queues received and sent (by the driver, `ethtool -S`, or 0).
fn packets(lab: &Lab) -> Result<[u64; 5]> {
    let counts = |side: Side| {
        lab.run_in(side, || {
            let all = fs::read_to_string("/proc/thread-self/net/dev")?;
            let line = all
                .lines()
                .find_map(|line| line.trim().strip_prefix(side.interface())?.strip_prefix(':'));
            let counts: Vec<u64> = line
                .context("no counts")?
                .split_whitespace()
                .map(str::parse)
                .collect::<Result<_, _>>()?;
            Ok([counts[1], counts[9]])
        })
    };
    let own = lab.run_in(Side::Server, || ethtool::statistics("server0"))?;
    let of_queues = |way: &str| {
        let counters =
            own.iter().filter(|(name, _)| name.starts_with(way) && name.ends_with("_packets"));
        counters.map(|(_, count)| count).sum()
    };
    let ([received, sent], [arrived, _]) = (counts(Side::Server)?, counts(Side::Client)?);
    Ok([received, sent, arrived, of_queues("rx_queue_"), of_queues("tx_queue_")])
}

/// Counts calls of kernel functions (Documentation/trace/kprobetrace.rst).
struct Probes;

impl Probes {
    /// Only copy mode calls these: one sends packets as socket buffers, the other copies from
    /// socket buffers into the rx ring.
    const OF: [&'static str; 2] = ["__xsk_generic_xmit", "__xsk_rcv"];
    const TRACING: &'static str = "/sys/kernel/tracing";

    fn set() -> Result<Self> {
        let probes = Self::OF.map(|function| format!("p:sixhop/{function} {function}\n")).concat();
        fs::write(format!("{}/kprobe_events", Self::TRACING), probes)
            .context("no kernel probes")?;
        fs::write(format!("{}/events/sixhop/enable", Self::TRACING), "1")?;
        Ok(Self)
    }

    fn read(&self) -> Result<Vec<u64>> {
        let profile = fs::read_to_string(format!("{}/kprobe_profile", Self::TRACING))?;
        let hits = |function: &&str| {
            let mut lines = profile.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let line =
                lines.find(|words| words.first() == Some(function)).context("a probe is gone")?;
            Ok(line.get(1).context("no count")?.parse()?)
        };
        Self::OF.iter().map(hits).collect()
    }
}
