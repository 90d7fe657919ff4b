//! Derives what `serve` would get from the facts, why not more, and what to do about it. Pure.

use crate::engine::{FRAMES, frame_size, frames, largest_request};
use crate::net::ethtool::QueueCounts;
use crate::net::netlink::{self, AttachMode};
use crate::net::quirks::{self, Act, ETHERNET_MTU, Said};
use crate::server::takes_packets;
use crate::xdp::capability::{Host, Interface, LRO, Master, VLAN};
use crate::xdp::{CopyMode, stacked};

pub use crate::events::{Advice, Expectation, Finding};

impl Finding {
    fn new(name: &str, why: String, cure: impl Into<Option<String>>) -> Self {
        Self { name: name.to_owned(), why, cure: cure.into() }
    }
}

impl Expectation {
    /// Derives the verdict from the facts.
    #[must_use]
    pub fn on(interface: &Interface, host: &Host) -> Self {
        let (attach, mut why_not_more) = attach(interface, host);
        let (copy, reason) = copy(interface, host, attach);
        why_not_more.extend(reason);
        Self {
            attach,
            copy,
            obstacles: obstacles(interface, host),
            why_not_more,
            flags: flags(interface, attach, copy),
            advice: advice(interface, host),
        }
    }
}

impl From<Said> for Finding {
    fn from(quirk: Said) -> Self {
        Self::new(quirk.name, quirk.why, quirk.cure)
    }
}

fn attach(interface: &Interface, host: &Host) -> (Option<AttachMode>, Vec<Finding>) {
    let name = &interface.nic.interface;
    let quirks = quirks::of(interface);
    let Some(xdp) = &interface.xdp else {
        let why = format!(
            "Linux {} does not report the XDP features of drivers: 6.3 and newer do",
            host.kernel
        );
        return (None, vec![Finding::new("kernel", why, format!("sixhop probe {name} --try"))]);
    };
    if let Some(quirk) = quirks.find(Act::LookBelow) {
        return (Some(AttachMode::Generic), vec![quirk.into()]);
    }
    if !xdp.has("basic") {
        return (Some(AttachMode::Generic), vec![no_native(interface, host)]);
    }
    let (mut attach, reason) = at_this_mtu(interface);
    let mut reasons: Vec<_> = reason.into_iter().collect();
    if interface.is_on(LRO) && !quirks.has(Act::LeaveLro) {
        attach = Some(AttachMode::Generic);
        let why = "large receive offload merges packets before XDP could see them".to_owned();
        reasons.push(Finding::new("lro", why, format!("ethtool -K {name} lro off")));
    }
    if let Some(quirk) = quirks.find(Act::AttachGeneric) {
        attach = Some(AttachMode::Generic);
        reasons.push(quirk.into());
    }
    (attach, reasons)
}

/// The attach mode at the relevant MTU, and why it is not native.
fn at_this_mtu(interface: &Interface) -> (Option<AttachMode>, Option<Finding>) {
    let (whose, device, mtu) = match &interface.peer {
        Some(peer) => (format!("its peer {}", peer.name), &peer.name, peer.mtu),
        None => {
            let name = &interface.nic.interface;
            (name.clone(), name, interface.nic.mtu)
        }
    };
    let (takes, limit) = quirks::of(interface).mtu_limits();
    if mtu <= takes {
        return (Some(AttachMode::Native), None);
    }
    let why = if mtu > limit {
        format!("the MTU of {whose} is {mtu}, and native XDP here accepts at most {limit}")
    } else {
        let driver = &interface.nic.driver;
        format!(
            "the MTU of {whose} is {mtu}, and it is unknown if {driver} accepts native XDP then"
        )
    };
    let cure = format!("ip link set dev {device} mtu {ETHERNET_MTU}");
    let attach = (mtu > limit).then_some(AttachMode::Generic);
    (attach, Some(Finding::new("mtu", why, cure)))
}

/// Why there is no native XDP, and what to do about it.
fn no_native(interface: &Interface, host: &Host) -> Finding {
    if let Some(quirk) = quirks::of(interface).find(Act::ExpectNoNative) {
        return quirk.into();
    }
    let driver = &interface.nic.driver;
    let why = format!("{driver} has no native XDP in Linux {}", host.kernel);
    let cure = format!("use a newer kernel whose {driver} has it, or {}", quirks::better_cards());
    Finding::new("driver", why, cure)
}

/// The copy mode under this attach mode.
fn copy(
    interface: &Interface,
    host: &Host,
    attach: Option<AttachMode>,
) -> (Option<CopyMode>, Option<Finding>) {
    let (Some(_), Some(attach)) = (&interface.xdp, attach) else {
        return (None, None); // `attach` has given the reason
    };
    match (attach, zero_copy(interface, host)) {
        (AttachMode::Generic, (Some(false), _)) => {
            let why = "the generic hook gets a copy of the packet";
            (Some(CopyMode::Copy), Some(Finding::new("generic", why.to_owned(), None)))
        }
        (AttachMode::Generic, _) => {
            let why = format!(
                "the generic hook gets a copy of the packet; {} may grant zero-copy anyway, but in \
                 name only",
                interface.nic.driver
            );
            (None, Some(Finding::new("generic", why, "ask for --copy copy".to_owned())))
        }
        (_, (granted, reason)) => {
            (granted.map(|granted| if granted { CopyMode::Zero } else { CopyMode::Copy }), reason)
        }
    }
}

/// Whether the driver grants zero-copy, and why not. `None` if unknown, and why.
fn zero_copy(interface: &Interface, host: &Host) -> (Option<bool>, Option<Finding>) {
    let quirks = quirks::of(interface);
    // The kernel requires both (NETDEV_XDP_ACT_XSK).
    let offered =
        interface.xdp.as_ref().is_some_and(|xdp| xdp.has("xsk-zerocopy") && xdp.has("redirect"));
    if !offered {
        let quirk = quirks.find(Act::ExpectNoZeroCopy).map(Finding::from);
        return (Some(false), Some(quirk.unwrap_or_else(|| no_zero_copy(interface, host))));
    }
    if let Some(quirk) = quirks.find(Act::DoubtZeroCopy) {
        return (Some(false), Some(quirk.into()));
    }
    if let Some(quirk) = quirks.find(Act::LeaveZeroCopyOpen) {
        return (None, Some(quirk.into()));
    }
    let too_little = too_little_memory(interface, host, CopyMode::Zero);
    (Some(too_little.is_none()), too_little)
}

/// Explains that the driver has no zero-copy, or not yet.
fn no_zero_copy(interface: &Interface, host: &Host) -> Finding {
    let (driver, kernel) = (&interface.nic.driver, &host.kernel);
    let (why, cure) = match quirks::zero_copy_later(driver, kernel) {
        Some(since) => (
            format!("{driver} has zero-copy from Linux {since} on, but this is {kernel}"),
            format!("Linux {since} or newer"),
        ),
        None => (format!("{driver} has no zero-copy in Linux {kernel}"), quirks::better_cards()),
    };
    Finding::new("driver", why, cure)
}

/// The capabilities that `serve` cannot start without (tested on Linux 6.18).
const NEEDED: [&str; 4] = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"];

/// What prevents `serve` from starting.
fn obstacles(interface: &Interface, host: &Host) -> Vec<Finding> {
    let no_ipv6 = interface.no_ipv6.iter().map(|why| Finding::new("ipv6", why.clone(), None));
    no_ethernet(interface)
        .into_iter()
        .chain(not_allowed(host))
        .chain(no_ipv6)
        .chain(too_little_memory(interface, host, CopyMode::Copy))
        .chain(cannot_send(interface))
        .chain(occupied(interface))
        .chain(not_up(interface))
        .collect()
}

fn no_ethernet(interface: &Interface) -> Option<Finding> {
    if netlink::is_ethernet(interface.link_type) {
        return None;
    }
    let why = format!(
        "{} carries no Ethernet frames (link type {}, a tunnel's), and engines with an XDP program \
         or packet sockets take no others",
        interface.nic.interface, interface.link_type
    );
    let cure =
        "serve with --engine socket-gso, or another of the socket engines, and --bind netlink";
    Some(Finding::new("no-ethernet", why, cure.to_owned()))
}

/// What this kernel lacks, or this process may not do.
fn not_allowed(host: &Host) -> Vec<Finding> {
    let mut findings = Vec::new();
    if host.af_xdp == Some(false) {
        let why = format!("Linux {} was built without AF_XDP sockets", host.kernel);
        let cure = "a kernel with CONFIG_XDP_SOCKETS".to_owned();
        findings.push(Finding::new("af-xdp", why, cure));
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|name| !host.has(name)).collect();
    if !missing.is_empty() {
        let why = format!("this process lacks {}", missing.join(", "));
        // setcap replaces all file capabilities: a command with only the missing ones would remove
        // the others.
        let all = NEEDED.map(str::to_ascii_lowercase).join(",");
        let cure = format!("run as root, or setcap {all}=ep \"$(command -v sixhop)\"");
        findings.push(Finding::new("capabilities", why, cure));
    }
    if !host.initial_user_namespace {
        let why = "this process is in a user namespace, whose root cannot load programs".to_owned();
        findings.push(Finding::new("user-namespace", why, "run on the machine itself".to_owned()));
    }
    // Inside a user namespace, the finding above is the reason.
    let refused = host.program_refused.iter().filter(|_| host.initial_user_namespace);
    findings.extend(refused.map(|why| Finding::new("program", why.clone(), None)));
    let refused =
        host.af_xdp_refused.iter().map(|why| format!("cannot open AF_XDP sockets: {why}"));
    findings.extend(refused.map(|why| Finding::new("af-xdp", why, None)));
    findings
}

fn occupied(interface: &Interface) -> Option<Finding> {
    let name = &interface.nic.interface;
    let program = interface.program?;
    let why =
        format!("another XDP program ({}, id {}) is attached to {name}", program.mode, program.id);
    let cure = format!("stop the program that attached it, or ip link set dev {name} xdp off");
    Some(Finding::new("occupied", why, cure))
}

fn not_up(interface: &Interface) -> Option<Finding> {
    let name = &interface.nic.interface;
    match (interface.up, interface.carrier) {
        (true, true) => None,
        (true, false) => {
            let cure = "connect the cable, or set its peer up".to_owned();
            Some(Finding::new("no-carrier", format!("{name} has no carrier"), cure))
        }
        (false, _) => {
            let cure = format!("ip link set {name} up");
            Some(Finding::new("down", format!("{name} is down"), cure))
        }
    }
}

/// Explains that replies on a queue would get stuck in its ring.
fn cannot_send(interface: &Interface) -> Option<Finding> {
    let (sending, sending_possible) = interface.transmit_queues;
    // 0: unknown.
    if sending == 0 || stacked::runs_below(interface.kind.as_deref()) {
        return None;
    }
    let in_use = interface.nic.queues;
    let counts = QueueCounts {
        in_use,
        possible: interface.queues_possible,
        combined: interface.queues_combined,
        sending,
        sending_possible,
    };
    let served: Vec<_> = (0..in_use).collect();
    let found = stacked::cannot_send(&interface.nic.interface, counts, &served)?;
    let others = found.only_below.map(fewer_queues).unwrap_or_default();
    Some(Finding::new("tx-queues", found.why, found.cure + &others))
}

/// How a server does without queues that cannot send: those from `first` on.
pub(crate) fn fewer_queues(first: u32) -> String {
    format!(
        ", or --queues with those below {first} where requests come on no others, or --engine \
         socket-gso"
    )
}

/// Bytes of the frames of all queues in that mode, with ten replies to each request.
fn memory(interface: &Interface, copy: CopyMode) -> u64 {
    let frames = frames(copy, interface.nic.rings.map(|(rx, _)| rx), 10);
    u64::from(interface.nic.queues) * u64::from(frames) * u64::from(frame_size(interface.nic.mtu))
}

/// Explains that the frames need more locked memory than allowed, if so.
fn too_little_memory(interface: &Interface, host: &Host, copy: CopyMode) -> Option<Finding> {
    let memory = memory(interface, copy);
    let limit = host.locked_memory.filter(|limit| memory > *limit && !host.has("CAP_IPC_LOCK"))?;
    let why = format!(
        "the frames of {} queues need {} KiB in {copy} mode, but only {} KiB may be locked",
        interface.nic.queues,
        memory >> 10,
        limit >> 10
    );
    Some(Finding::new("locked-memory", why, format!("ulimit -l {}, or CAP_IPC_LOCK", memory >> 10)))
}

fn flags(interface: &Interface, attach: Option<AttachMode>, copy: Option<CopyMode>) -> Vec<String> {
    let mut flags = Vec::new();
    if let Some(attach) = attach {
        flags.extend(["--attach".to_owned(), attach.to_string()]);
        // With a generic program, zero-copy would exist in name only.
        let copy = copy.or((attach == AttachMode::Generic).then_some(CopyMode::Copy));
        flags.extend(copy.into_iter().flat_map(|copy| ["--copy".to_owned(), copy.to_string()]));
    }
    if port_of(interface).is_some() {
        flags.extend(["--bind".to_owned(), "live-map".to_owned()]);
    }
    // The default is all queues in use, which is shorter than a long list.
    if (2..=8).contains(&interface.nic.queues) {
        let queues: Vec<_> = (0..interface.nic.queues).map(|queue| queue.to_string()).collect();
        flags.extend(["--queues".to_owned(), queues.join(",")]);
    }
    flags
}

/// The master device that takes the interface's packets.
fn port_of(interface: &Interface) -> Option<&Master> {
    interface.master.as_ref().filter(|master| takes_packets(master.kind.as_deref()))
}

fn advice(interface: &Interface, host: &Host) -> Vec<Advice> {
    let advice = [
        serve_above(interface),
        finish_at_peer(interface),
        more_queues(interface, host),
        larger_rings(interface),
        smaller_mtu(interface),
        keep_tags(interface),
        more_hugepages(interface, host),
    ];
    advice.into_iter().flatten().collect()
}

fn serve_above(interface: &Interface) -> Option<Advice> {
    let why = format!(
        "{} is a port of it, and found there only by --bind live-map; it answers what comes by all",
        interface.nic.interface
    );
    let command = format!("sixhop serve --interface {}", port_of(interface)?.name);
    Some(Advice { command, why })
}

fn finish_at_peer(interface: &Interface) -> Option<Advice> {
    let quirk = quirks::of(interface).find(Act::FinishAtPeer)?;
    let peer = interface.peer.as_ref().map_or("PEER", |peer| &peer.name);
    Some(Advice { command: format!("ethtool -K {peer} tx off"), why: quirk.why })
}

fn more_queues(interface: &Interface, host: &Host) -> Option<Advice> {
    if quirks::of(interface).has(Act::AskPeer) {
        return None; // the queues are a matter of both ends
    }
    let queues = interface.nic.queues;
    let wanted = interface.queues_possible.min(u32::try_from(host.processors).unwrap_or(u32::MAX));
    let kind = if interface.queues_combined { "combined" } else { "rx" };
    (wanted != queues && wanted > 0).then(|| Advice {
        command: format!("ethtool -L {} {kind} {wanted}", interface.nic.interface),
        why: format!("one queue for each of {} processors: {queues} in use", host.processors),
    })
}

fn larger_rings(interface: &Interface) -> Option<Advice> {
    let ((rx, tx), (most_rx, most_tx)) = (interface.nic.rings?, interface.rings_possible?);
    // Larger rings cycle through more frames than a cache holds.
    let (wanted_rx, wanted_tx) = (most_rx.min(FRAMES / 2), most_tx.min(FRAMES / 2));
    (rx < wanted_rx || tx < wanted_tx).then(|| Advice {
        command: format!(
            "ethtool -G {} rx {} tx {}",
            interface.nic.interface,
            wanted_rx.max(rx),
            wanted_tx.max(tx)
        ),
        why: format!("space for bursts: {rx} and {tx} descriptors now"),
    })
}

fn smaller_mtu(interface: &Interface) -> Option<Advice> {
    let served = largest_request(frame_size(interface.nic.mtu)) + 40 + 8;
    (interface.nic.mtu > served).then(|| Advice {
        command: format!("ip link set dev {} mtu {served}", interface.nic.interface),
        why: format!(
            "requests of more than {} bytes do not fit into a frame, and are dropped",
            served - 40 - 8
        ),
    })
}

fn keep_tags(interface: &Interface) -> Option<Advice> {
    let is_card = !interface.nic.bus.is_empty();
    (is_card && interface.is_on(VLAN) && interface.is_changeable(VLAN)).then(|| Advice {
        command: format!("ethtool -K {} rxvlan off", interface.nic.interface),
        why: "only if VLANs are in use: without its tag, a request seems to be from the untagged \
              link"
            .to_owned(),
    })
}

fn more_hugepages(interface: &Interface, host: &Host) -> Option<Advice> {
    let pages = host.hugepages;
    if pages.size == 0 {
        return None;
    }
    let queues = u64::from(interface.nic.queues);
    let zero = interface.xdp.as_ref().is_some_and(|xdp| xdp.has("xsk-zerocopy"));
    let copy = if zero { CopyMode::Zero } else { CopyMode::Copy };
    let needed = queues * (memory(interface, copy) / queues.max(1)).div_ceil(pages.size);
    (needed > pages.free).then(|| Advice {
        command: format!("sysctl vm.nr_hugepages={}", pages.total + needed - pages.free),
        why: format!("frames on huge pages: {needed} needed, {} free", pages.free),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Nic;
    use crate::net::denied::CAPABILITIES;
    use crate::net::netdev::XdpFeatures;
    use crate::net::netlink::AttachedProgram;
    use crate::xdp::capability::{Hugepages, VethPeer, Virtio};

    /// XDP features as real cards and guests report them.
    const NONE: &[&str] = &[];
    const VETH: &[&str] = &["basic", "redirect", "rx-sg"];
    const VMXNET3: &[&str] = &["basic", "redirect", "ndo-xmit"];
    const OLD_IGB: &[&str] = &["basic", "redirect"];
    const IGB: &[&str] = &["basic", "redirect", "xsk-zerocopy"];
    const VIRTIO: &[&str] = &["basic", "redirect", "xsk-zerocopy", "rx-sg"];

    fn interface(driver: &str, features: &[&str]) -> Interface {
        let features = features.iter().map(|name| (*name).to_owned()).collect();
        Interface {
            nic: Nic {
                interface: "if0".to_owned(),
                driver: driver.to_owned(),
                mtu: 1500,
                queues: 1,
                ..Nic::default()
            },
            link_type: netlink::ARPHRD_ETHER,
            up: true,
            carrier: true,
            queues_possible: 1,
            xdp: Some(XdpFeatures { features, ..XdpFeatures::default() }),
            ..Interface::default()
        }
    }

    fn root(kernel: &str) -> Host {
        Host {
            kernel: kernel.to_owned(),
            af_xdp: Some(true),
            locked_memory: Some(8 << 20),
            capabilities: CAPABILITIES.iter().map(|(name, ..)| (*name).to_owned()).collect(),
            initial_user_namespace: true,
            processors: 1,
            ..Host::default()
        }
    }

    fn virtio(access_platform: bool) -> Interface {
        let virtio = Virtio { access_platform, ctrl_guest_offloads: true, guest_offloads: true };
        Interface { virtio: Some(virtio), ..interface("virtio_net", VIRTIO) }
    }

    fn with_mtu(interface: Interface, mtu: u32) -> Interface {
        Interface { nic: Nic { mtu, ..interface.nic }, ..interface }
    }

    fn names(findings: &[Finding]) -> Vec<&str> {
        findings.iter().map(|finding| finding.name.as_str()).collect()
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn each_card_gets_what_it_gives() {
        use AttachMode::{Generic, Native};
        use CopyMode::{Copy, Zero};
        let lro = |driver, features| {
            let mut with = interface(driver, features);
            with.nic.offloads.push(LRO.to_owned());
            with
        };
        let peer = |mtu| Interface {
            peer: Some(VethPeer { name: "peer0".to_owned(), mtu }),
            ..interface("veth", VETH)
        };
        let unseen = Interface { virtio: None, ..virtio(true) };
        let bound = Virtio { guest_offloads: true, ..Virtio::default() };
        let bound = Interface { virtio: Some(bound), ..interface("virtio_net", VIRTIO) };
        let silent = Interface { xdp: None, ..interface("igb", NONE) };
        let cases: [(&str, Interface, &str, _, _, &[&str]); 22] = [
            (
                "lo",
                with_mtu(interface("", NONE), 65536),
                "6.18",
                Some(Generic),
                Some(Copy),
                &["driver", "generic"],
            ),
            ("veth", interface("veth", VETH), "6.18", Some(Native), Some(Copy), &["driver"]),
            (
                "veth, too few queues",
                interface("veth", NONE),
                "6.18",
                Some(Generic),
                Some(Copy),
                &["driver", "generic"],
            ),
            (
                "veth, large peer",
                peer(9000),
                "6.18",
                Some(Generic),
                Some(Copy),
                &["mtu", "generic"],
            ),
            (
                "veth, large itself",
                with_mtu(peer(3506), 9000),
                "6.18",
                Some(Native),
                Some(Copy),
                &["driver"],
            ),
            (
                "e1000e",
                interface("e1000e", NONE),
                "6.18",
                Some(Generic),
                Some(Copy),
                &["driver", "generic"],
            ),
            (
                "r8169",
                interface("r8169", NONE),
                "6.18",
                Some(Generic),
                Some(Copy),
                &["driver", "generic"],
            ),
            (
                "igb, old",
                interface("igb", OLD_IGB),
                "6.12.95",
                Some(Native),
                Some(Copy),
                &["driver"],
            ),
            ("igb", interface("igb", IGB), "6.16.3", Some(Native), Some(Zero), &[]),
            ("igb, silent kernel", silent, "6.1", None, None, &["kernel"]),
            (
                "igb, large MTU",
                with_mtu(interface("igb", IGB), 9000),
                "6.16",
                Some(Generic),
                None,
                &["mtu", "generic"],
            ),
            (
                "igb, larger MTU",
                with_mtu(interface("igb", IGB), 2000),
                "6.16",
                None,
                None,
                &["mtu"],
            ),
            (
                "igc, larger MTU",
                with_mtu(interface("igc", IGB), 1501),
                "6.16",
                Some(Generic),
                None,
                &["mtu", "generic"],
            ),
            ("ixgbe, LRO", lro("ixgbe", IGB), "6.16", Some(Generic), None, &["lro", "generic"]),
            (
                "vmxnet3, LRO",
                lro("vmxnet3", VMXNET3),
                "6.16",
                Some(Native),
                Some(Copy),
                &["driver"],
            ),
            (
                "vmxnet3",
                interface("vmxnet3", VMXNET3),
                "6.16",
                Some(Native),
                Some(Copy),
                &["driver"],
            ),
            ("virtio", virtio(true), "6.16", Some(Native), Some(Zero), &[]),
            (
                "virtio, legacy",
                virtio(false),
                "6.16",
                Some(Native),
                Some(Copy),
                &["access-platform"],
            ),
            (
                "virtio, old",
                interface("virtio_net", VETH),
                "6.12.95",
                Some(Native),
                Some(Copy),
                &["driver"],
            ),
            ("virtio, unseen", unseen, "6.16", Some(Native), None, &["access-platform"]),
            (
                "virtio, host's offloads",
                bound,
                "6.16",
                Some(Generic),
                Some(Copy),
                &["guest-offloads", "generic"],
            ),
            (
                "virtio, large MTU",
                with_mtu(virtio(true), 3507),
                "6.16",
                Some(Generic),
                None,
                &["mtu", "generic"],
            ),
        ];
        for (what, interface, kernel, attach, copy, reasons) in cases {
            let verdict = Expectation::on(&interface, &root(kernel));
            assert_eq!((verdict.attach, verdict.copy), (attach, copy), "{what}: {verdict:?}");
            assert_eq!(names(&verdict.why_not_more), reasons, "{what}: {verdict:?}");
            assert_eq!(verdict.obstacles, [], "{what}");
            let has_all = verdict.attach == Some(Native) && verdict.copy == Some(Zero);
            assert_eq!(verdict.why_not_more.is_empty(), has_all, "{what}");
        }
    }

    #[test]
    fn what_is_granted_and_of_no_use_is_known() {
        let bond = Interface { kind: Some("bond".to_owned()), ..interface("bonding", VMXNET3) };
        let verdict = Expectation::on(&bond, &root("6.18"));
        assert_eq!(
            (verdict.attach, verdict.copy),
            (Some(AttachMode::Generic), Some(CopyMode::Copy))
        );
        assert_eq!(names(&verdict.why_not_more), ["ports", "generic"]);

        let mut odd = Interface { transmit_queues: (1, 2), ..interface("veth", VETH) };
        odd.nic.queues = 2;
        let verdict = Expectation::on(&odd, &root("6.18"));
        assert_eq!(names(&verdict.obstacles), ["tx-queues"]);
        assert_eq!(verdict.obstacles[0].cure.as_deref(), Some("ethtool -L if0 tx 2"));
        odd.transmit_queues = (2, 2);
        assert_eq!(Expectation::on(&odd, &root("6.18")).obstacles, []);

        let port = |kind: &str| {
            let master = Master { name: "above0".to_owned(), kind: Some(kind.to_owned()) };
            Interface { master: Some(master), ..interface("igb", IGB) }
        };
        let verdict = Expectation::on(&port("bridge"), &root("6.18"));
        assert_eq!(verdict.flags.join(" "), "--attach native --copy zero --bind live-map");
        assert_eq!(verdict.advice[0].command, "sixhop serve --interface above0");
        assert_eq!(
            Expectation::on(&port("vrf"), &root("6.18")).flags.join(" "),
            "--attach native --copy zero"
        );
    }

    #[test]
    fn reasons_name_the_cure() {
        let said = |interface: Interface, kernel: &str| {
            let verdict = Expectation::on(&interface, &root(kernel));
            let words = verdict.why_not_more.iter();
            words
                .map(|f| format!("{}: {}\n", f.why, f.cure.as_deref().unwrap_or("none")))
                .collect::<String>()
        };
        let text = said(interface("igb", OLD_IGB), "6.12.95");
        assert!(
            text.contains("from Linux 6.14 on, but this is 6.12.95: Linux 6.14 or newer"),
            "{text}"
        );
        let text = said(interface("e1000e", NONE), "6.18");
        assert!(text.contains("I217") && text.contains("a card with the igb"), "{text}");
        let text = said(virtio(false), "6.18");
        assert!(text.contains("iommu_platform=on"), "{text}");
        let text = said(with_mtu(interface("igb", IGB), 9000), "6.18");
        assert!(
            text.contains("ip link set dev if0 mtu 1500") && text.contains("--copy copy"),
            "{text}"
        );
    }

    #[test]
    fn what_keeps_a_server_from_starting_is_named() {
        let igb = || {
            let mut igb = interface("igb", IGB);
            igb.nic.rings = Some((256, 256));
            igb
        };
        let obstacles = |interface: &Interface, host: &Host| {
            let verdict = Expectation::on(interface, host);
            // The modes apply once the obstacles are gone.
            assert_eq!(
                (verdict.attach, verdict.copy),
                (Some(AttachMode::Native), Some(CopyMode::Zero))
            );
            names(&verdict.obstacles).join(" ")
        };
        let host = root("6.18");
        assert_eq!(obstacles(&Interface { up: false, carrier: false, ..igb() }, &host), "down");
        assert_eq!(obstacles(&Interface { carrier: false, ..igb() }, &host), "no-carrier");
        assert_eq!(
            obstacles(&Interface { link_type: netlink::ARPHRD_NONE, ..igb() }, &host),
            "no-ethernet"
        );
        assert_eq!(
            obstacles(&Interface { link_type: netlink::ARPHRD_LOOPBACK, ..igb() }, &host),
            ""
        );
        let program = Some(AttachedProgram { mode: AttachMode::Native, id: 7 });
        assert_eq!(obstacles(&Interface { program, ..igb() }, &host), "occupied");
        assert_eq!(obstacles(&igb(), &Host { af_xdp: Some(false), ..host.clone() }), "af-xdp");
        let contained = Host { initial_user_namespace: false, ..host.clone() };
        assert_eq!(obstacles(&igb(), &contained), "user-namespace");

        let with = |capabilities: &[&str]| Host {
            capabilities: capabilities.iter().map(|name| (*name).to_owned()).collect(),
            locked_memory: Some(16 << 20),
            ..host.clone()
        };
        assert_eq!(
            obstacles(&igb(), &with(&["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"])),
            ""
        );
        assert_eq!(
            obstacles(&igb(), &with(&["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"])),
            ""
        );
        let few = Expectation::on(&igb(), &with(&["CAP_NET_ADMIN", "CAP_BPF"]));
        assert_eq!(few.obstacles[0].why, "this process lacks CAP_NET_RAW, CAP_PERFMON");

        // 4,096 frames of 2 KiB a queue, and 4,825 in zero-copy: two queues fit into 16 MiB in copy
        // mode, three do not fit at all.
        let mut more = igb();
        more.nic.queues = 2;
        let unlocked = with(&["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"]);
        let copies = Expectation::on(&more, &unlocked);
        assert_eq!((copies.copy, copies.obstacles), (Some(CopyMode::Copy), vec![]));
        assert_eq!(copies.why_not_more[0].name, "locked-memory");
        assert_eq!(Expectation::on(&more, &host).copy, Some(CopyMode::Zero));
        more.nic.queues = 3;
        assert_eq!(obstacles(&more, &host), "");
        assert_eq!(names(&Expectation::on(&more, &unlocked).obstacles), ["locked-memory"]);
        assert_eq!(obstacles(&more, &Host { locked_memory: None, ..unlocked }), "");
    }

    #[test]
    fn recommendations_are_commands() {
        let mut card = interface("igb", IGB);
        card.nic.bus = "0000:01:00.0".to_owned();
        card.nic.queues = 2;
        card.nic.rings = Some((256, 256));
        card.nic.offloads = vec![VLAN.to_owned()];
        card.queues_possible = 8;
        card.queues_combined = true;
        card.rings_possible = Some((4096, 4096));
        card.offloads_changeable = vec![VLAN.to_owned()];
        let host = Host {
            processors: 4,
            hugepages: Hugepages { size: 2 << 20, total: 3, free: 1 },
            ..root("6.18")
        };
        let verdict = Expectation::on(&card, &host);
        assert_eq!(verdict.flags.join(" "), "--attach native --copy zero --queues 0,1");
        let commands: Vec<_> =
            verdict.advice.iter().map(|advice| advice.command.as_str()).collect();
        assert_eq!(
            commands,
            [
                "ethtool -L if0 combined 4",
                "ethtool -G if0 rx 2048 tx 2048",
                "ethtool -K if0 rxvlan off",
                "sysctl vm.nr_hugepages=12", // 10 needed
            ]
        );
        let veth = Expectation::on(&interface("veth", VETH), &root("6.18"));
        assert_eq!(veth.flags.join(" "), "--attach native --copy copy");
        assert_eq!(veth.advice[0].command, "ethtool -K PEER tx off");
        // The flags omit what is unknown.
        let silent = Interface { xdp: None, ..interface("igb", NONE) };
        assert_eq!(Expectation::on(&silent, &root("6.1")).flags, [""; 0]);
        let generic = Expectation::on(&with_mtu(interface("igb", IGB), 9000), &root("6.16"));
        assert_eq!(generic.flags.join(" "), "--attach generic --copy copy");
    }
}
