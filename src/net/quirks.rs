//! ADAPTER QUIRKS: what callers must know about certain drivers and kinds of devices, in one table.
//!
//! ```text
//!   facts of a link ─► of(facts) ─► has(act)?    what to do
//!                                 └► find(act)   how to explain it to people
//! ```
//!
//! No other file compares driver names; a test enforces that. A second test checks docs/hardware.md
//! against both tables.

use std::fmt;
use std::time::Duration;

use crate::events::{Interface, Virtio};
use crate::net::netlink::Link;

/// How long to wait for a lost link. Some drivers reset it when an XDP program is attached or
/// detached: igb needs about 2 s, a card on a long cable more. The wait applies to every card.
pub const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

/// Frames that zero-copy needs besides those for the rx ring: as many as the card's own receive
/// ring holds, which is `card_ring` if the driver reports it. The driver then finds frames in the
/// fill ring even while the rx ring is full. A driver that finds none may hand out the same frame
/// twice. igb does, up to Linux 7.3 at least: it leaves an old packet's length in the descriptor
/// after the last one it could fill (igb_alloc_rx_buffers_zc).
#[must_use]
pub fn spare_frames(card_ring: Option<u32>) -> u32 {
    card_ring.unwrap_or(UNKNOWN_RING)
}

/// Descriptors assumed for a card's receive ring if the driver does not report them: the most that
/// any card has.
const UNKNOWN_RING: u32 = 8192;

/// What to do about a quirk, or what a caller may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Attach natively up to an MTU of `takes`, and never above `limit`. MTUs in between are
    /// untested, and the driver's sources give no single number.
    LimitMtu {
        /// Largest MTU that the driver certainly accepts.
        takes: u32,
        /// Largest MTU that it may accept.
        limit: u32,
    },
    /// Query its peer: the MTU, queues and offloads there are the ones that count.
    AskPeer,
    /// Read its feature bits in /sys: they say what the host permits.
    ReadFeatures,
    /// Attach generically, whatever the driver offers.
    AttachGeneric,
    /// Expect no native XDP, and say why.
    ExpectNoNative,
    /// Expect no zero-copy, and say why.
    ExpectNoZeroCopy,
    /// Ignore the driver's zero-copy flag: the bind will be refused.
    DoubtZeroCopy,
    /// Say that zero-copy may be refused: the deciding fact is not visible.
    LeaveZeroCopyOpen,
    /// Leave large receive offload on: the driver turns it off itself.
    LeaveLro,
    /// Serve all queues of its ports: the program runs there.
    LookBelow,
    /// Reflect even though the driver does not report that it can transmit frames from XDP.
    ReflectAllTheSame,
    /// Do not serve addresses that the kernel does not own.
    RefuseHidden,
    /// Expect packets with unfinished checksums.
    ExpectUnfinished,
    /// Turn off tx checksum offload at its peer.
    FinishAtPeer,
    /// Say that receive work runs in the sender's context.
    BlameSender,
    /// Say that it is memory, so a reported speed means nothing.
    CallMemory,
    /// As for the device above: leave addresses to its ports.
    LeavePorts,
    /// As for the device above: let AnyIP serve on its ports.
    AllowAnyip,
}

/// What a quirk applies to.
#[derive(Debug, Clone, Copy)]
enum Who {
    /// Drivers, by their ethtool names.
    Driver(&'static [&'static str]),
    /// Kinds of devices, by the kernel's names (IFLA_INFO_KIND).
    Kind(&'static [&'static str]),
}

/// A row of the table.
struct Quirk {
    who: Who,
    /// An extra condition.
    when: Option<fn(&Facts) -> bool>,
    act: Act,
    /// Its name in the findings of `probe`.
    name: &'static str,
    /// For people: what the device does. `{if}` stands for the interface, `{kind}` for its kind,
    /// `{queues}` for the number of its receive queues, `{card}` for advice to use another card.
    why: &'static str,
    /// For people: what to do.
    cure: Option<&'static str>,
    /// The source: a kernel file, a specification, or an observation.
    #[cfg_attr(not(test), expect(dead_code, reason = "for those who read and change the table"))]
    source: &'static str,
}

/// Largest MTU at which a packet for a program without fragments fits a 4 KiB page, after
/// XDP_PACKET_HEADROOM (256), struct skb_shared_info (320) and the Ethernet header (14). A driver
/// with one page for each packet cannot accept more.
const PAGE_MTU: u32 = 4096 - 256 - 320 - 14;

/// Every driver with native XDP accepts a program at this MTU.
pub const ETHERNET_MTU: u32 = 1500;

/// For a driver without its own row.
const ANY_MTU: Act = Act::LimitMtu { takes: ETHERNET_MTU, limit: PAGE_MTU };

const QUIRKS: &[Quirk] = &[
    Quirk {
        who: Who::Driver(&["veth", "virtio_net"]),
        when: None,
        act: Act::LimitMtu { takes: PAGE_MTU, limit: PAGE_MTU },
        name: "mtu",
        why: "it accepts a program without fragments only while a packet fits a page",
        cure: None,
        source: "veth_xdp_set (drivers/net/veth.c), virtnet_xdp_set (drivers/net/virtio_net.c)",
    },
    Quirk {
        who: Who::Driver(&["igc"]),
        when: None,
        act: Act::LimitMtu { takes: ETHERNET_MTU, limit: ETHERNET_MTU },
        name: "mtu",
        why: "it rejects a program with jumbo frames",
        cure: None,
        source: "igc_xdp_set_prog (drivers/net/ethernet/intel/igc/igc_xdp.c)",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::AskPeer,
        name: "peer",
        why: "its peer, whose MTU counts: seeing it needs CAP_NET_ADMIN",
        cure: None,
        source: "veth_xdp_set (drivers/net/veth.c)",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::ExpectNoNative,
        name: "driver",
        why: "it has {queues} receive queues in use, but its peer has more transmit queues: native \
              XDP needs a receive queue for each",
        cure: Some("ethtool -L: as many rx queues here as tx queues there"),
        source: "veth_set_xdp_features (drivers/net/veth.c)",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::ExpectNoZeroCopy,
        name: "driver",
        why: "a veth has no card that could write into frames",
        cure: None,
        source: "drivers/net/veth.c: no XDP_SETUP_XSK_POOL; seen with Linux 6.18",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::ReflectAllTheSame,
        name: "ndo-xmit",
        why: "a veth transmits an XDP program's frames only while its peer polls ('ethtool -K PEER \
              gro on' there)",
        cure: None,
        source: "veth_xdp_xmit (drivers/net/veth.c)",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::BlameSender,
        name: "napi",
        why: "in the sender's context",
        cure: None,
        source: "veth_forward_skb (drivers/net/veth.c): netif_rx on the sender's processor",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::CallMemory,
        name: "memory",
        why: "a veth pair is memory",
        cure: None,
        source: "veth_get_link_ksettings (drivers/net/veth.c) states 10,000 Mbit/s",
    },
    Quirk {
        who: Who::Driver(&["veth"]),
        when: None,
        act: Act::FinishAtPeer,
        name: "checksums",
        why: "on the peer, if it is on: its packets arrive with unfinished checksums, and get no \
              answer",
        cure: None,
        source: "CHECKSUM_PARTIAL (include/linux/skbuff.h); seen with Linux 6.18",
    },
    Quirk {
        who: Who::Driver(&["veth", "bridge", "tun"]),
        when: None,
        act: Act::ExpectUnfinished,
        name: "checksums",
        why: "its packets never reach a card, so nobody finishes a checksum that was left to one",
        cure: Some("ethtool -K {if} tx off"),
        source: "CHECKSUM_PARTIAL (include/linux/skbuff.h); seen with Linux 6.18",
    },
    Quirk {
        who: Who::Driver(&["e1000e"]),
        when: None,
        act: Act::ExpectNoNative,
        name: "driver",
        why: "e1000e, the driver of the I217 and its relatives, has no native XDP in any kernel",
        cure: Some("{card}"),
        source: "drivers/net/ethernet/intel/e1000e/netdev.c: no ndo_bpf; seen with Linux 7.3.4",
    },
    Quirk {
        who: Who::Driver(&[""]),
        when: None,
        act: Act::ExpectNoNative,
        name: "driver",
        why: "{if} is not a card, and no driver could run a program on it",
        cure: None,
        source: "drivers/net/loopback.c; seen with Linux 6.18",
    },
    Quirk {
        who: Who::Driver(&["vmxnet3"]),
        when: None,
        act: Act::LeaveLro,
        name: "lro",
        why: "it turns off large receive offload when a program is attached",
        cure: None,
        source: "vmxnet3_xdp_set (drivers/net/vmxnet3/vmxnet3_xdp.c); seen with Linux 7.3.4",
    },
    Quirk {
        who: Who::Driver(&["virtio_net"]),
        when: None,
        act: Act::ReadFeatures,
        name: "features",
        why: "its feature bits say what the host permits",
        cure: None,
        source: "Virtual I/O Device 1.2, sections 5.1.3 and 6",
    },
    Quirk {
        who: Who::Driver(&["virtio_net"]),
        when: Some(|facts| {
            facts.virtio.is_some_and(|has| has.guest_offloads && !has.ctrl_guest_offloads)
        }),
        act: Act::AttachGeneric,
        name: "guest-offloads",
        why: "the host merges packets or leaves out checksums, and the guest may not turn that off",
        cure: Some("start the guest with ctrl_guest_offloads=on for this device"),
        source: "virtnet_xdp_set (drivers/net/virtio_net.c)",
    },
    Quirk {
        who: Who::Driver(&["virtio_net"]),
        when: Some(|facts| facts.virtio.is_some_and(|has| !has.access_platform)),
        act: Act::DoubtZeroCopy,
        name: "access-platform",
        why: "virtio_net offers zero-copy, but this device does not use DMA addresses (no \
              VIRTIO_F_ACCESS_PLATFORM), and refuses the bind",
        cure: Some("start the guest with disable-legacy=on,iommu_platform=on for this device"),
        source: "virtnet_xsk_pool_enable (drivers/net/virtio_net.c): EINVAL; seen with Linux 7.3.4",
    },
    Quirk {
        who: Who::Driver(&["virtio_net"]),
        when: Some(|facts| facts.virtio.is_none()),
        act: Act::LeaveZeroCopyOpen,
        name: "access-platform",
        why: "cannot see if this device uses DMA addresses: /sys shows another namespace",
        cure: Some("run as root"),
        source: "virtnet_xsk_pool_enable, and what /sys/class/net/IF/device/features does not show",
    },
    Quirk {
        who: Who::Driver(&["ipvlan"]),
        when: None,
        act: Act::RefuseHidden,
        name: "ipvlan",
        why: "{if} is an ipvlan, which receives only packets for the kernel's addresses, and \
              live-map hides its addresses from the kernel",
        cure: Some("use a macvlan"),
        source: "ipvlan_addr_lookup (drivers/net/ipvlan/ipvlan_core.c)",
    },
    Quirk {
        who: Who::Kind(&["bond", "team"]),
        when: None,
        act: Act::LookBelow,
        name: "ports",
        why: "{if} is a {kind}: it runs a native program on its ports, whose packets its rings \
              reject",
        cure: None,
        source: "xsk_rcv_check (net/xdp/xsk.c) compares the devices; a bond seen with Linux 7.3.4",
    },
    Quirk {
        who: Who::Kind(&["bond", "team"]),
        when: None,
        act: Act::AllowAnyip,
        name: "ports",
        why: "packets of its ports still go through the routing table, which is all AnyIP needs",
        cure: None,
        source: "bond_handle_frame (drivers/net/bonding/bond_main.c); a bridge routes by itself",
    },
    Quirk {
        who: Who::Kind(&["vrf"]),
        when: None,
        act: Act::LeavePorts,
        name: "ports",
        why: "it leaves packets to its ports",
        cure: None,
        source: "vrf_l3_rcv (drivers/net/vrf.c)",
    },
];

/// Since which Linux release a driver has each feature; `None` means no release so far.
struct Driver {
    name: &'static str,
    /// Whether its cards can be bought, unlike a guest's virtual device.
    is_card: bool,
    #[cfg_attr(not(test), expect(dead_code, reason = "holds docs/hardware.md"))]
    native: Option<&'static str>,
    zero_copy: Option<&'static str>,
}

const fn driver(
    name: &'static str,
    is_card: bool,
    native: Option<&'static str>,
    zero_copy: Option<&'static str>,
) -> Driver {
    Driver { name, is_card, native, zero_copy }
}

/// The releases match docs/hardware.md, which says which ones were tested.
const DRIVERS: &[Driver] = &[
    driver("e1000e", true, None, None),
    driver("igb", true, Some("5.10"), Some("6.14")),
    driver("igc", true, Some("5.13"), Some("5.14")),
    driver("ixgbe", true, Some("4.12"), Some("4.20")),
    driver("i40e", true, Some("4.13"), Some("4.20")),
    driver("ice", true, Some("5.5"), Some("5.5")),
    driver("mlx5_core", true, Some("4.9"), Some("5.3")),
    driver("virtio_net", false, Some("4.10"), Some("6.13")),
    driver("vmxnet3", false, Some("6.6"), None),
    driver("veth", false, Some("4.19"), None),
];

/// The first Linux release in which `driver` has zero-copy, if `kernel` is older.
#[must_use]
pub fn zero_copy_later(driver: &str, kernel: &str) -> Option<&'static str> {
    let known = DRIVERS.iter().find(|known| known.name == driver)?;
    known.zero_copy.filter(|since| release(kernel) < release(since))
}

/// The first two numbers of a kernel release.
fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    (next(), next())
}

/// Advice for a card without native XDP or zero-copy.
#[must_use]
pub fn better_cards() -> String {
    let better = DRIVERS.iter().filter(|known| known.is_card && known.zero_copy.is_some());
    let names: Vec<_> = better.map(|known| known.name).collect();
    match names.split_last() {
        Some((last, [])) => format!("use a card with the {last} driver"),
        Some((last, others)) => {
            format!("use a card with the {} or {last} driver", others.join(", "))
        }
        None => "use another card".to_owned(),
    }
}

/// The facts that select rows. Unknown facts are empty.
#[derive(Debug, Clone, Copy, Default)]
pub struct Facts<'a> {
    /// Name of the interface, for messages.
    pub interface: &'a str,
    /// Its driver, as ethtool names it.
    pub driver: &'a str,
    /// Version of the card's firmware.
    pub firmware: &'a str,
    /// The kind of virtual device, if it is one.
    pub kind: Option<&'a str>,
    /// Receive queues in use.
    pub queues: u32,
    /// What the host permits a virtio device.
    pub virtio: Option<Virtio>,
}

impl<'a> From<&'a Interface> for Facts<'a> {
    fn from(interface: &'a Interface) -> Self {
        Self {
            interface: &interface.nic.interface,
            driver: &interface.nic.driver,
            firmware: &interface.nic.firmware,
            kind: interface.kind.as_deref(),
            queues: interface.nic.queues,
            virtio: interface.virtio,
        }
    }
}

/// Netlink knows the kind of device, but not its driver.
impl<'a> From<&'a Link> for Facts<'a> {
    fn from(link: &'a Link) -> Self {
        Self { interface: &link.name, kind: link.kind.as_deref(), ..Self::default() }
    }
}

/// The quirks of a device.
#[derive(Debug, Clone, Copy)]
pub struct Quirks<'a>(Facts<'a>);

/// The quirks of the device with those facts.
pub fn of<'a>(facts: impl Into<Facts<'a>>) -> Quirks<'a> {
    Quirks(facts.into())
}

/// The quirks of a driver, with nothing else known.
#[must_use]
pub fn of_driver(driver: &str) -> Quirks<'_> {
    Quirks(Facts { driver, ..Facts::default() })
}

/// The quirks of a kind of device.
#[must_use]
pub fn of_kind(kind: Option<&str>) -> Quirks<'_> {
    Quirks(Facts { kind, ..Facts::default() })
}

/// A quirk in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its name in the findings of `probe`.
    pub name: &'static str,
    /// What the device does.
    pub why: String,
    /// What to do about it.
    pub cure: Option<String>,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.why)?;
        self.cure.iter().try_for_each(|cure| write!(f, ": {cure}"))
    }
}

impl Quirks<'_> {
    /// Whether `act` applies.
    #[must_use]
    pub fn has(&self, act: Act) -> bool {
        self.rows().any(|row| row.act == act)
    }

    /// A quirk with `act` in words, if one applies.
    #[must_use]
    pub fn find(&self, act: Act) -> Option<Said> {
        let row = self.rows().find(|row| row.act == act)?;
        let fill = |text: &str| {
            text.replace("{if}", self.0.interface)
                .replace("{card}", &better_cards())
                .replace("{kind}", self.0.kind.unwrap_or("device"))
                .replace("{queues}", &self.0.queues.to_string())
        };
        Some(Said { name: row.name, why: fill(row.why), cure: row.cure.map(fill) })
    }

    /// The largest MTU at which the driver certainly accepts a program, and the largest at which it
    /// may. MTUs in between are unknown.
    #[must_use]
    pub fn mtu_limits(&self) -> (u32, u32) {
        let limit = |act| match act {
            Act::LimitMtu { takes, limit } => Some((takes, limit)),
            _ => None,
        };
        let mut acts = self.rows().map(|row| row.act).chain([ANY_MTU]);
        acts.find_map(limit).unwrap_or((ETHERNET_MTU, ETHERNET_MTU))
    }

    fn rows(&self) -> impl Iterator<Item = &'static Quirk> {
        let facts = &self.0;
        QUIRKS.iter().filter(move |row| {
            let is_its = match row.who {
                Who::Driver(names) => names.contains(&facts.driver),
                Who::Kind(kinds) => facts.kind.is_some_and(|kind| kinds.contains(&kind)),
            };
            is_its && row.when.is_none_or(|holds| holds(facts))
        })
    }
}

/// Why `act` may apply, when the device is unknown.
#[must_use]
pub fn hint(act: Act) -> &'static str {
    QUIRKS.iter().find(|row| row.act == act).map_or("", |row| row.why)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::rooms::code_of;

    /// The lab creates devices and chooses emulated cards, so names there are not comparisons.
    const MAKERS: [&str; 2] = ["src/lab", "src/cli/lab.rs"];

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    /// All names in both tables.
    fn names() -> BTreeSet<&'static str> {
        let of_quirks = QUIRKS.iter().flat_map(|row| match row.who {
            Who::Driver(names) | Who::Kind(names) => names,
        });
        let all = of_quirks.copied().chain(DRIVERS.iter().map(|driver| driver.name));
        all.filter(|name| !name.is_empty()).collect()
    }

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let path = entry.strip_prefix(root()).unwrap();
            if MAKERS.iter().any(|maker| path.starts_with(maker)) {
                continue;
            }
            if entry.is_dir() {
                sources(&entry, found);
            } else if path != Path::new(file!()) {
                found.push(entry);
            }
        }
    }

    /// The names that `source` has as whole strings, as in a comparison.
    fn named<'a>(source: &str, names: &BTreeSet<&'a str>) -> Vec<&'a str> {
        let code = code_of(source);
        let is_there = |name: &&&str| code.contains(&format!("\"{name}\""));
        names.iter().filter(is_there).copied().collect()
    }

    #[test]
    fn no_other_file_goes_by_a_name() {
        let names = names();
        let mut files = Vec::new();
        sources(&root().join("src"), &mut files);
        assert!(files.len() > 50, "{files:?}");
        for file in files {
            let found = named(&fs::read_to_string(&file).unwrap(), &names);
            assert!(found.is_empty(), "{} names {found:?}: ask quirks.rs", file.display());
        }
    }

    #[test]
    fn a_name_in_code_is_found_and_one_in_words_is_not() {
        let names = names();
        let found = |source| named(source, &names);
        assert_eq!(found("if driver == \"igb\" {}"), ["igb"]);
        assert_eq!(found("const A: [&str; 2] = [\n\"bond\", \"team\"];"), ["bond", "team"]);
        assert!(found("// \"igb\"\nlet words = \"an igb does\";").is_empty());
        assert!(found("\n#[cfg(test)]\nmod tests {\n\"igb\"\n}").is_empty());
    }

    #[test]
    fn the_page_has_every_name_and_every_release() {
        let page = fs::read_to_string(root().join("docs/hardware.md")).unwrap();
        let rows: Vec<Vec<_>> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').map(str::trim).collect())
            .collect();
        for known in DRIVERS {
            let name = format!("`{}`", known.name);
            let row = rows.iter().find(|row| row[1] == name).expect(&name);
            // More text may follow a release.
            for (cell, since) in [(row[3], known.native), (row[4], known.zero_copy)] {
                let word = cell.split_whitespace().next();
                assert_eq!(word, Some(since.unwrap_or("no")), "{name}: {row:?}");
            }
        }
        let section = page.split("\n## Quirks\n").nth(1).expect("a section");
        let section = section.split("\n## ").next().unwrap();
        for row in QUIRKS {
            let (Who::Driver(names) | Who::Kind(names)) = row.who;
            for name in names.iter().map(|name| if name.is_empty() { "lo" } else { name }) {
                let line = format!("- `{name}`");
                assert!(section.contains(&line), "docs/hardware.md has no line '{line}'");
            }
        }
    }

    #[test]
    fn each_row_says_whose_what_and_from_where() {
        for row in QUIRKS {
            assert!(!row.why.is_empty() && row.source.len() > 7, "{}", row.why);
            let said = row.why.chars().chain(row.cure.unwrap_or_default().chars());
            assert_eq!(said.filter(|c| *c == '{').count(), placeholders(row), "{}", row.why);
        }
        // A row after an unconditional one for the same device and act would never match.
        for (place, row) in QUIRKS.iter().enumerate() {
            let (Who::Driver(names) | Who::Kind(names)) = row.who;
            let hidden = QUIRKS[..place].iter().any(|above| {
                let (Who::Driver(others) | Who::Kind(others)) = above.who;
                above.act == row.act && above.when.is_none() && names == others
            });
            assert!(!hidden, "{names:?} has {:?} twice", row.act);
        }
    }

    fn placeholders(row: &Quirk) -> usize {
        let text = format!("{}{}", row.why, row.cure.unwrap_or_default());
        ["{if}", "{kind}", "{queues}", "{card}"]
            .map(|known| text.matches(known).count())
            .iter()
            .sum()
    }

    #[test]
    fn facts_decide_which_rows_hold() {
        let virtio = |virtio| of(Facts { driver: "virtio_net", virtio, ..Facts::default() });
        let unseen = virtio(None);
        assert!(unseen.has(Act::LeaveZeroCopyOpen) && !unseen.has(Act::DoubtZeroCopy));
        let legacy = virtio(Some(Virtio::default()));
        assert!(legacy.has(Act::DoubtZeroCopy) && !legacy.has(Act::LeaveZeroCopyOpen));
        let whole = virtio(Some(Virtio { access_platform: true, ..Virtio::default() }));
        assert!(!whole.has(Act::DoubtZeroCopy) && !whole.has(Act::AttachGeneric));

        let bond = Facts { interface: "bond0", kind: Some("bond"), ..Facts::default() };
        let said = of(bond).find(Act::LookBelow).unwrap().why;
        assert!(said.starts_with("bond0 is a bond: it runs a native program"), "{said}");
        // Names of drivers and of kinds are separate: the driver of a bond is "bonding".
        assert!(
            !of_driver("bond").has(Act::LookBelow) && !of_kind(Some("igb")).has(Act::LookBelow)
        );

        let lo = of(Facts { interface: "lo", ..Facts::default() });
        assert!(lo.find(Act::ExpectNoNative).unwrap().to_string().starts_with("lo is not a card"));
        let old = of_driver("e1000e").find(Act::ExpectNoNative).unwrap().to_string();
        let cards =
            "any kernel: use a card with the igb, igc, ixgbe, i40e, ice or mlx5_core driver";
        assert!(old.ends_with(cards), "{old}");
        assert_eq!(of_driver("igc").mtu_limits(), (1500, 1500));
        assert_eq!(of_driver("igb").mtu_limits(), (1500, 3506));
        assert_eq!(of_driver("veth").mtu_limits(), (3506, 3506));
    }

    #[test]
    fn only_an_older_kernel_lacks_what_came_later() {
        assert_eq!(zero_copy_later("igb", "6.12.95+deb13-amd64"), Some("6.14"));
        assert_eq!(zero_copy_later("igb", "6.9"), Some("6.14"));
        assert_eq!(zero_copy_later("igb", "6.14.0-rc1"), None);
        assert_eq!(zero_copy_later("igb", "7.0"), None);
        assert_eq!(zero_copy_later("veth", "6.18"), None);
        assert_eq!(zero_copy_later("r8169", "6.18"), None);
    }
}
