//! `sixhop probe`: reports what `serve` would get on an interface, and why not more.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};

use super::{align, print_json};
use crate::events::Event;
use crate::net::denied::CAPABILITIES;
use crate::net::netlink;
use crate::net::quirks::{self, Act};
use crate::probe::{Probe, Tried};
use crate::xdp::capability::{Host, Interface, NTUPLE, OFFLOADS};

/// Report what serve would get on an interface, and why not more
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sixhop probe
  sudo sixhop probe eth0
  sudo sixhop probe eth0 --try

It needs no privilege, and reports what it cannot see without one. It disturbs
nothing unless --try is given. With --try, it attaches the program and binds
all queues as serve does, then releases them at once. No packet is steered,
but some drivers reset their link, which is then down for some seconds.")]
pub struct Args {
    /// Interface to probe [default: a short table of all]
    #[arg(value_name = "IFACE")]
    interface: Option<String>,
    /// Attach and bind for a moment, and compare the result with the expectation
    #[arg(long = "try", requires = "interface")]
    try_out: bool,
    /// Print one line of JSON for each interface
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When there is no such interface, or its link does not come back.
pub fn run(args: Args) -> Result<ExitCode> {
    let is_long = args.interface.is_some();
    let links = match args.interface {
        Some(name) => vec![netlink::link(&name)?],
        None => netlink::links()?,
    };
    let mut probes: Vec<_> = links.iter().map(Probe::of).collect();
    if args.try_out {
        probes.iter_mut().try_for_each(Probe::try_out)?;
    }
    if args.json {
        probes.into_iter().try_for_each(|probe| print_json(&Event::Probe(Box::new(probe))))?;
    } else if is_long {
        probes.iter().for_each(|probe| println!("{}", long(probe)));
    } else {
        println!("{}", short(&probes));
    }
    Ok(ExitCode::SUCCESS)
}

fn short(probes: &[Probe]) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(80);
    table.set_header([
        "interface",
        "driver",
        "state",
        "queues",
        "driver's XDP features",
        "serve gets",
    ]);
    for probe in probes {
        let Interface { nic, queues_possible, .. } = &probe.interface;
        table.add_row([
            nic.interface.clone(),
            or_none(&nic.driver),
            state(&probe.interface).to_owned(),
            format!("{} of {queues_possible}", nic.queues),
            xdp(&probe.interface),
            expected(probe),
        ]);
    }
    align(&mut table, usize::MAX);
    // Do not wrap columns that fit.
    for column in table.column_iter_mut().take(4) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    trimmed(&table)
}

fn long(probe: &Probe) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(80);
    table.add_rows(facts(probe).into_iter().map(<[String; 2]>::from));
    table.add_row(["", ""]);
    table.add_rows(what_follows(probe).into_iter().map(<[String; 2]>::from));
    align(&mut table, usize::MAX);
    if let Some(names) = table.column_mut(0) {
        names.set_constraint(ColumnConstraint::ContentWidth);
    }
    trimmed(&table)
}

/// A row: its label and its text.
type Row = (String, String);

fn row(name: &str, text: String) -> Row {
    (name.to_owned(), text)
}

/// The facts, without the verdict.
fn facts(Probe { interface, host, .. }: &Probe) -> Vec<Row> {
    let nic = &interface.nic;
    let program = interface.program.map(|program| format!("id {}, {}", program.id, program.mode));
    let mut rows = vec![
        row("interface", nic.interface.clone()),
        row("driver", driver(interface)),
        row("link", link(interface)),
        row("queues", format!("{} in use, {} possible", nic.queues, interface.queues_possible)),
        row("RSS", spreading(interface)),
        row("XDP", xdp_detail(interface)),
        row("program", program.unwrap_or_else(|| "none".to_owned())),
        row("card's rings", rings(interface)),
        row("offloads", offloads(interface)),
        row("kernel", kernel(host)),
        row("huge pages", hugepages(host)),
        row("lockable", locked_memory(host)),
        row("capabilities", missing(host)),
    ];
    if !interface.sys_seen {
        let why = if interface.sys_mounted {
            "/sys shows another namespace"
        } else {
            "/sys is not mounted"
        };
        let what = "the card's identity, its NUMA node and virtio features";
        rows.push(row("not seen", format!("{why}: {what}")));
    }
    let unasked = quirks::of(interface).find(Act::AskPeer);
    if let Some(quirk) = unasked.filter(|_| interface.peer.is_none()) {
        rows.push(row("not seen", quirk.why));
    }
    rows
}

fn what_follows(probe: &Probe) -> Vec<Row> {
    let Probe { interface, verdict, tried, .. } = probe;
    let mut rows = vec![row("serve gets", expected(probe))];
    let obstacles = verdict.obstacles.iter().map(|finding| ("obstacle", finding));
    let reasons = verdict.why_not_more.iter().map(|finding| ("limit", finding));
    for (name, finding) in obstacles.chain(reasons) {
        rows.push(row(name, finding.why.clone()));
        rows.extend(finding.cure.iter().map(|cure| row("  cure", cure.clone())));
    }
    rows.extend(tried.iter().map(|tried| row("tried", truth(tried))));
    if !verdict.flags.is_empty() {
        let serve = format!("sixhop serve --interface {}", interface.nic.interface);
        rows.push(row("flags", format!("{serve}\n{}", verdict.flags.join(" "))));
    }
    let advice = verdict.advice.iter();
    rows.extend(advice.map(|it| row("recommended", format!("{}\n{}", it.command, it.why))));
    rows
}

/// Removes the spaces that pad the last column.
fn trimmed(table: &Table) -> String {
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".to_owned() } else { text.to_owned() }
}

fn listed(names: &[String]) -> String {
    or_none(&names.join(" "))
}

fn state(interface: &Interface) -> &'static str {
    match (interface.up, interface.carrier) {
        (false, _) => "down",
        (true, false) => "no carrier",
        (true, true) => "up",
    }
}

fn driver(interface: &Interface) -> String {
    let nic = &interface.nic;
    let mut text = or_none(&nic.driver);
    for (name, value) in [("firmware", &nic.firmware), ("at", &nic.bus)] {
        if !value.is_empty() {
            text += &format!(", {name} {value}");
        }
    }
    if let Some(device) = &nic.device {
        text += &format!(", PCI {device}");
    }
    if let Some(node) = interface.numa_node {
        text += &format!(", NUMA node {node}");
    }
    if let Some(virtio) = interface.virtio {
        text += if virtio.access_platform {
            ", uses DMA addresses"
        } else {
            ", does not use DMA addresses"
        };
    }
    text
}

fn link(interface: &Interface) -> String {
    let speed = interface
        .nic
        .speed_mbps
        .map_or("unknown speed".to_owned(), |mbps| format!("{mbps} Mbit/s"));
    let mut text = format!("{}, {speed}, MTU {}", state(interface), interface.nic.mtu);
    if let Some(peer) = &interface.peer {
        text += &format!("; its peer {}, MTU {}", peer.name, peer.mtu);
    }
    text
}

fn spreading(interface: &Interface) -> String {
    let rss = match interface.rss_entries {
        Some(entries) => format!("table of {entries} entries"),
        None => "none that can be set".to_owned(),
    };
    let rules =
        match (interface.is_on(NTUPLE), interface.is_changeable(NTUPLE), interface.flow_rules) {
            (true, _, count) => format!("flow rules on, {} set", count.unwrap_or(0)),
            (false, true, _) => {
                format!("flow rules off (ethtool -K {} ntuple on)", interface.nic.interface)
            }
            (false, false, Some(count)) => format!("flow rules, {count} set"),
            (false, false, None) => "no flow rules".to_owned(),
        };
    format!("{rss}; {rules}")
}

fn xdp(interface: &Interface) -> String {
    match &interface.xdp {
        Some(xdp) => listed(&xdp.features),
        None => "not reported by this kernel".to_owned(),
    }
}

fn xdp_detail(interface: &Interface) -> String {
    let mut text = xdp(interface);
    if let Some(xdp) = &interface.xdp {
        if let Some(segments) = xdp.zero_copy_segments {
            text += &format!("; zero-copy with up to {segments} frames for a packet");
        }
        for (name, abilities) in [("rx metadata", &xdp.rx_metadata), ("AF_XDP", &xdp.xsk)] {
            if !abilities.is_empty() {
                text += &format!("; {name}: {}", listed(abilities));
            }
        }
    }
    text
}

fn rings(interface: &Interface) -> String {
    match (interface.nic.rings, interface.rings_possible) {
        (Some((rx, tx)), Some((most_rx, most_tx))) => {
            format!("rx {rx} of {most_rx}, tx {tx} of {most_tx} descriptors")
        }
        _ => "none".to_owned(),
    }
}

fn offloads(interface: &Interface) -> String {
    let switch = |name: &&str| {
        let position = if interface.is_on(name) { "on" } else { "off" };
        let fixed = if interface.is_changeable(name) { "" } else { " (fixed)" };
        format!("{name} {position}{fixed}")
    };
    OFFLOADS.iter().map(switch).collect::<Vec<_>>().join(", ")
}

fn kernel(host: &Host) -> String {
    let af_xdp = match host.af_xdp {
        Some(true) => "AF_XDP sockets",
        Some(false) => "no AF_XDP sockets",
        None if host.af_xdp_refused.is_some() => "AF_XDP sockets denied",
        None => "AF_XDP sockets unknown without CAP_NET_RAW",
    };
    format!("Linux {}, {af_xdp}, {} processors", host.kernel, host.processors)
}

fn hugepages(host: &Host) -> String {
    let pages = &host.hugepages;
    format!("{} free of {}, {} KiB each", pages.free, pages.total, pages.size >> 10)
}

fn locked_memory(host: &Host) -> String {
    match host.locked_memory {
        _ if host.has("CAP_IPC_LOCK") => "any memory (CAP_IPC_LOCK)".to_owned(),
        None => "any memory".to_owned(),
        Some(limit) => format!("{} KiB of memory", limit >> 10),
    }
}

fn missing(host: &Host) -> String {
    let missing = CAPABILITIES.iter().filter(|(name, ..)| !host.has(name));
    let lines: Vec<_> =
        missing.map(|(name, _, use_of)| format!("lacks {name} ({use_of})")).collect();
    if lines.is_empty() { "all present".to_owned() } else { lines.join("\n") }
}

fn expected(probe: &Probe) -> String {
    let verdict = &probe.verdict;
    let mut text = match (verdict.attach, verdict.copy) {
        (Some(attach), Some(copy)) => format!("{attach}, {copy}"),
        (Some(attach), None) => format!("{attach}, copy or zero"),
        (None, _) => "unknown".to_owned(),
    };
    let obstacles: Vec<_> = verdict.obstacles.iter().map(|finding| finding.name.as_str()).collect();
    if !obstacles.is_empty() {
        text += &format!("; not now: {}", obstacles.join(", "));
    }
    text
}

fn truth(tried: &Tried) -> String {
    let agrees = match tried.agrees {
        Some(true) => "as expected",
        Some(false) => "NOT as expected",
        None => "not predicted",
    };
    match (&tried.error, tried.attach, tried.copy) {
        (Some(error), ..) => format!("refused, {agrees}: {error}"),
        (None, Some(attach), Some(copy)) => {
            format!("{attach}, {copy}, {agrees}; queues {:?}", tried.queues)
        }
        (None, ..) => format!("started, but no mode reported; {agrees}"),
    }
}
