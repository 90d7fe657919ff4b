//! The few questions and settings of a card that only the ethtool ioctl knows (linux/ethtool.h).

use std::collections::HashSet;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use crate::net::denied;

/// A command of linux/ethtool.h, and the structure that the kernel reads and writes for it. There
/// are only those below.
struct Command<T> {
    number: u32,
    structure: PhantomData<fn() -> T>,
}

impl<T: CommandData> Command<T> {
    const fn new(number: u32) -> Self {
        Self { number, structure: PhantomData }
    }
}

/// A structure that commands take.
///
/// # Safety
/// It is laid out as linux/ethtool.h has that of each [`Command`] of it, and is integers, so that
/// zeros and any bytes are a value. `place` points to all of it. Where it [`fits`](Self::fits), the
/// kernel touches no byte beyond it, or faults there.
unsafe trait CommandData: Sized {
    /// Where it begins, with the word for the command.
    fn place(&mut self) -> *mut u32 {
        (&raw mut *self).cast()
    }

    /// Whether its numbers of entries are not larger than its room for them.
    fn fits(&self) -> bool {
        true
    }
}

const ETHTOOL_GSET: Command<LinkSettings> = Command::new(0x01);
const ETHTOOL_GDRVINFO: Command<DriverInfo> = Command::new(0x03);
const ETHTOOL_GRINGPARAM: Command<RingParameters> = Command::new(0x10);
const ETHTOOL_SRINGPARAM: Command<RingParameters> = Command::new(0x11);
const ETHTOOL_STXCSUM: Command<Value> = Command::new(0x17);
const ETHTOOL_GSTRINGS: Command<Guarded<Strings>> = Command::new(0x1b);
const ETHTOOL_GSTATS: Command<Guarded<Statistics>> = Command::new(0x1d);
const ETHTOOL_GRXCLSRLCNT: Command<Classification<1>> = Command::new(0x2e);
const ETHTOOL_GRXCLSRULE: Command<Classification<1>> = Command::new(0x2f);
const ETHTOOL_GRXCLSRLALL: Command<Classification<MAX_RULES>> = Command::new(0x30);
const ETHTOOL_SRXCLSRLDEL: Command<Classification<1>> = Command::new(0x31);
const ETHTOOL_SRXCLSRLINS: Command<Classification<1>> = Command::new(0x32);
const ETHTOOL_GSSET_INFO: Command<SetInfo> = Command::new(0x37);
const ETHTOOL_GRXFHINDIR: Command<Indirection> = Command::new(0x38);
const ETHTOOL_SRXFHINDIR: Command<Indirection> = Command::new(0x39);
const ETHTOOL_GFEATURES: Command<Features> = Command::new(0x3a);
const ETHTOOL_SFEATURES: Command<Wishes> = Command::new(0x3b);
const ETHTOOL_GCHANNELS: Command<Channels> = Command::new(0x3c);
const ETHTOOL_SCHANNELS: Command<Channels> = Command::new(0x3d);

/// The sets of names of a driver's counters (ETH_SS_STATS), and of offloads (ETH_SS_FEATURES).
const STATISTICS: u32 = 1;
const FEATURES: u32 = 4;

/// The kind of flow that is UDP over IPv6.
const UDP_V6_FLOW: u32 = 0x06;

/// Of the data that ETHTOOL_GRXCLSRLCNT returns: the driver chooses the places of rules itself.
const RX_CLS_LOC_SPECIAL: u32 = 1 << 31;

/// Where `struct ethtool_tcpip6_spec` has the destination port, in bytes.
const DESTINATION_PORT: usize = 34;

/// Places for rules that are looked at: more than any driver in Linux 6.18 offers.
const MAX_RULES: usize = 16_384;

/// Places in a table of queues: more than any driver in Linux 6.18 has.
const MAX_INDIRECTION: u32 = 65_536;

/// More offloads than any kernel knows: 65 in Linux 6.18. 32 to a block.
const MAX_FEATURES: usize = 256;

/// More counters than a card with 64 queues has.
const MAX_NAMES: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct Value {
    command: u32,
    data: u32,
}

// SAFETY: two integers, of a fixed number.
unsafe impl CommandData for Value {}

#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

// SAFETY: integers, of a fixed number.
unsafe impl CommandData for Channels {}

#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    rest: [u8; 64],
}

// SAFETY: integers, and bytes, of a fixed number.
unsafe impl CommandData for DriverInfo {}

#[repr(C)]
#[derive(Default)]
struct LinkSettings {
    command: u32,
    modes: [u32; 2],
    speed: u16,
    details: [u8; 6],
    coalescing: [u32; 2],
    speed_high: u16,
    rest: [u16; 7],
}

// SAFETY: integers, of a fixed number.
unsafe impl CommandData for LinkSettings {}

#[repr(C)]
#[derive(Default)]
struct RingParameters {
    command: u32,
    max: [u32; 4],
    rx: u32,
    rx_mini: u32,
    rx_jumbo: u32,
    tx: u32,
}

// SAFETY: integers, of a fixed number.
unsafe impl CommandData for RingParameters {}

#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

// SAFETY: integers; the kernel writes a count for each bit of the mask.
unsafe impl CommandData for SetInfo {
    fn fits(&self) -> bool {
        self.mask.count_ones() <= 1
    }
}

#[repr(C)]
struct Strings {
    command: u32,
    set: u32,
    count: u32,
    data: [[u8; 32]; MAX_NAMES],
}

// SAFETY: integers and bytes; no command takes it but within `Guarded`.
unsafe impl CommandData for Strings {
    fn fits(&self) -> bool {
        self.count as usize <= MAX_NAMES
    }
}

#[repr(C)]
struct Statistics {
    command: u32,
    count: u32,
    data: [u64; MAX_NAMES],
}

// SAFETY: as for `Strings`.
unsafe impl CommandData for Statistics {
    fn fits(&self) -> bool {
        self.count as usize <= MAX_NAMES
    }
}

/// A structure that older kernels fill with as many entries as the driver has by then, whatever it
/// is told: if more have come since they were counted, the call fails at a page behind it that
/// nobody may touch.
struct Guarded<T> {
    memory: Memory,
    kind: PhantomData<T>,
}

impl<T: CommandData> Guarded<T> {
    /// One of zeros.
    fn zeroed() -> io::Result<Self> {
        Ok(Self { memory: Memory::guarded(size_of::<T>())?, kind: PhantomData })
    }

    fn get(&self) -> io::Result<&T> {
        let place = self.memory.at::<T>(0, 1).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: within the memory, as `at` checked, which nothing else points to and which is
        // initialised; any bytes are a value.
        Ok(unsafe { place.as_ref() })
    }

    fn get_mut(&mut self) -> io::Result<&mut T> {
        let mut place = self.memory.at::<T>(0, 1).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: as for `get`, and `self` is borrowed alone.
        Ok(unsafe { place.as_mut() })
    }
}

// SAFETY: the memory begins with a `T`, and behind its last page is one that the kernel faults at.
unsafe impl<T: CommandData> CommandData for Guarded<T> {
    fn place(&mut self) -> *mut u32 {
        self.memory.start().as_ptr().cast()
    }

    fn fits(&self) -> bool {
        self.get().is_ok_and(T::fits)
    }
}

#[repr(C)]
struct Features {
    command: u32,
    blocks: u32,
    data: [FeatureBlock; MAX_FEATURES / 32],
}

// SAFETY: integers; the kernel writes no more blocks than it is told there is room for.
unsafe impl CommandData for Features {
    fn fits(&self) -> bool {
        self.blocks as usize <= self.data.len()
    }
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct FeatureBlock {
    available: u32,
    requested: u32,
    active: u32,
    never_changed: u32,
}

/// `struct ethtool_sfeatures`: of each block, which offloads are meant, and which of them are to be
/// on.
#[repr(C)]
struct Wishes {
    command: u32,
    blocks: u32,
    data: [[u32; 2]; MAX_FEATURES / 32],
}

// SAFETY: integers; the kernel reads as many blocks as it is told.
unsafe impl CommandData for Wishes {
    fn fits(&self) -> bool {
        self.blocks as usize <= self.data.len()
    }
}

/// How many queues there are. A combined channel has a queue of each kind, and counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueCounts {
    /// Receive queues in use.
    pub in_use: u32,
    /// As many as there can be in use.
    pub possible: u32,
    /// Whether the number is set for both kinds at once (`ethtool -L IF combined N`).
    pub combined: bool,
    /// Transmit queues in use.
    pub sending: u32,
    /// As many as there can be in use.
    pub sending_possible: u32,
}

/// An offload, as `ethtool -k` has it in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offload {
    /// The kernel's name for it.
    pub name: String,
    /// Whether it is switched on.
    pub on: bool,
    /// Whether `ethtool -K` can switch it.
    pub changeable: bool,
}

/// `struct ethtool_rx_flow_spec`.
#[repr(C)]
struct FlowSpec {
    kind: u32,
    value: [u8; 52],
    value_extension: [u8; 20],
    mask: [u8; 52],
    mask_extension: [u8; 20],
    queue: u64,
    location: u32,
}

/// `struct ethtool_rxnfc`, with room for `N` places. The kernel takes it with at least one.
#[repr(C)]
struct Classification<const N: usize> {
    command: u32,
    kind: u32,
    data: u64,
    rule: FlowSpec,
    count: u32,
    locations: [u32; N],
}

// SAFETY: integers, and bytes; the kernel writes no more places than it is told there is room for.
unsafe impl<const N: usize> CommandData for Classification<N> {
    fn fits(&self) -> bool {
        self.count as usize <= N
    }
}

/// `struct ethtool_rxfh_indir`: the command, how many queues follow, and those.
struct Indirection(Vec<u32>);

impl Indirection {
    fn new(table: &[u32]) -> Self {
        Self([&[0, table.len() as u32], table].concat())
    }
}

// SAFETY: integers; the kernel reads or writes no more queues than it is told there is room for.
unsafe impl CommandData for Indirection {
    fn place(&mut self) -> *mut u32 {
        self.0.as_mut_ptr()
    }

    fn fits(&self) -> bool {
        self.0.get(1).is_some_and(|&count| count as usize <= self.0.len() - 2)
    }
}

impl<const N: usize> Classification<N> {
    fn new(location: u32) -> Self {
        let rule = FlowSpec {
            kind: 0,
            value: [0; 52],
            value_extension: [0; 20],
            mask: [0; 52],
            mask_extension: [0; 20],
            queue: 0,
            location,
        };
        Self { command: 0, kind: 0, data: 0, rule, count: 0, locations: [0; N] }
    }
}

/// A rule by which a card puts the packets to one UDP port, over IPv6, on one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRule {
    /// Its place among the card's rules.
    pub location: u32,
    /// The port.
    pub port: u16,
    /// The queue.
    pub queue: u32,
}

/// What a card says of itself; empty where it does not.
#[derive(Debug, Clone, Default)]
pub struct CardInfo {
    /// Name of its driver.
    pub driver: String,
    /// Version of its firmware.
    pub firmware: String,
    /// Where it is plugged in.
    pub bus: String,
}

/// How many receive queues of `interface` are in use: what an AF_XDP socket can be bound to. 1
/// where the driver has no notion of them.
///
/// # Errors
/// When there is no such interface.
pub fn queues(interface: &str) -> Result<u32> {
    Ok(queue_counts(interface)?.in_use)
}

/// How many receive queues `interface` has; one where the driver has no notion of them.
///
/// # Errors
/// When there is no such interface.
pub fn queue_counts(interface: &str) -> Result<QueueCounts> {
    let mut channels = Channels::default();
    match ioctl(interface, ETHTOOL_GCHANNELS, &mut channels) {
        Ok(()) => {
            let [max_rx, max_tx, _other, max_combined] = channels.max;
            let in_use = (channels.combined + channels.rx).max(1);
            // A driver that has both kinds of channel has them in place of each other.
            let possible = max_combined.max(max_rx).max(in_use);
            // A driver that tells of none to send has as many as it needs.
            let sending = match channels.combined + channels.tx {
                0 => in_use,
                some => some,
            };
            let sending_possible = max_combined.max(max_tx).max(sending);
            Ok(QueueCounts {
                in_use,
                possible,
                combined: max_combined > 0,
                sending,
                sending_possible,
            })
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(QueueCounts {
            in_use: 1,
            possible: 1,
            combined: false,
            sending: 1,
            sending_possible: 1,
        }),
        Err(error) => Err(anyhow!("cannot ask {interface} for its queues: {error}")),
    }
}

/// Has `interface` use `count` queues each way, which some drivers change by a reset of the link.
///
/// # Errors
/// When it cannot.
pub fn set_queues(interface: &str, count: u32) -> Result<()> {
    if queues(interface)? == count {
        return Ok(());
    }
    let cannot = |error| anyhow!("{interface} does not use {count} queue(s): {error}");
    let mut channels = Channels::default();
    ioctl(interface, ETHTOOL_GCHANNELS, &mut channels).map_err(cannot)?;
    if channels.combined > 0 {
        channels.combined = count;
    } else {
        (channels.rx, channels.tx) = (count, count);
    }
    ioctl(interface, ETHTOOL_SCHANNELS, &mut channels).map_err(cannot)
}

/// What the card behind `interface` says of itself.
///
/// # Errors
/// When there is no such interface.
pub fn card(interface: &str) -> Result<CardInfo> {
    let mut info = DriverInfo {
        command: 0,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        rest: [0; 64],
    };
    match ioctl(interface, ETHTOOL_GDRVINFO, &mut info) {
        Ok(()) => Ok(CardInfo {
            driver: text(&info.driver),
            firmware: text(&info.firmware),
            bus: text(&info.bus),
        }),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(CardInfo::default()),
        Err(error) => Err(anyhow!("cannot ask {interface} for its driver: {error}")),
    }
}

/// Name of the driver of `interface`; empty where it has none.
///
/// # Errors
/// When there is no such interface.
pub fn driver(interface: &str) -> Result<String> {
    Ok(card(interface)?.driver)
}

/// Speed of the link in Mbit/s, as the driver states it; `None` where it states none.
pub fn speed(interface: &str) -> Option<u32> {
    let mut settings = LinkSettings::default();
    ioctl(interface, ETHTOOL_GSET, &mut settings).ok()?;
    let speed = u32::from(settings.speed_high) << 16 | u32::from(settings.speed);
    (speed != 0 && speed != u32::MAX).then_some(speed) // SPEED_UNKNOWN is -1
}

/// Descriptors in the card's own receive and transmit rings; `None` where the driver has none, or
/// does not say.
pub fn card_rings(interface: &str) -> Option<(u32, u32)> {
    ring_parameters(interface).map(|rings| (rings.rx, rings.tx))
}

/// As many descriptors as the card's own receive and transmit rings can have.
pub fn largest_card_rings(interface: &str) -> Option<(u32, u32)> {
    ring_parameters(interface).map(|rings| (rings.max[0], rings.max[3]))
}

/// Makes the card's own receive and transmit rings as large as the driver lets them be.
///
/// # Errors
/// When it cannot.
pub fn enlarge_card_rings(interface: &str) -> Result<()> {
    let cannot = |error| anyhow!("cannot set the rings of {interface}: {error}");
    let mut rings = RingParameters::default();
    ioctl(interface, ETHTOOL_GRINGPARAM, &mut rings).map_err(cannot)?;
    let largest = (rings.max[0], rings.max[3]);
    if (rings.rx, rings.tx) == largest {
        return Ok(());
    }
    (rings.rx, rings.tx) = largest;
    ioctl(interface, ETHTOOL_SRINGPARAM, &mut rings).map_err(cannot)
}

fn ring_parameters(interface: &str) -> Option<RingParameters> {
    let mut rings = RingParameters::default();
    ioctl(interface, ETHTOOL_GRINGPARAM, &mut rings).ok()?;
    Some(rings)
}

/// Entries of the table by which the card spreads packets over its queues (RSS); `None` where it
/// does not.
pub fn rss_entries(interface: &str) -> Option<u32> {
    Some(indirection(interface).ok()?.len() as u32)
}

/// How many rules the card has that send packets to a queue (`ethtool -n`); `None` where it takes
/// none.
pub fn flow_rules(interface: &str) -> Option<u32> {
    let mut rules = Classification::new(0);
    ioctl(interface, ETHTOOL_GRXCLSRLCNT, &mut rules).ok()?;
    Some(rules.count)
}

/// The offloads that the kernel knows, in its order.
///
/// # Errors
/// When the kernel does not say.
pub fn offloads(interface: &str) -> Result<Vec<Offload>> {
    let cannot = |error| anyhow!("cannot ask {interface} for its offloads: {error}");
    let names = names(interface, FEATURES).map_err(cannot)?;
    ensure!(names.len() <= MAX_FEATURES, "{interface} has {} offloads, too many", names.len());
    let mut features = Features {
        command: 0,
        blocks: (MAX_FEATURES / 32) as u32,
        data: [FeatureBlock::default(); MAX_FEATURES / 32],
    };
    ioctl(interface, ETHTOOL_GFEATURES, &mut features).map_err(cannot)?;
    let offload = |(index, name): (usize, String)| {
        let FeatureBlock { available, active, never_changed, .. } = features.data[index / 32];
        let bit = 1 << (index % 32);
        Offload { name, on: active & bit != 0, changeable: available & !never_changed & bit != 0 }
    };
    // A bit that is in no use has no name.
    Ok(names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()).map(offload).collect())
}

/// Switches the offload of that name off, if `interface` has it.
///
/// # Errors
/// When it cannot be switched.
pub fn switch_off(interface: &str, offload: &str) -> Result<()> {
    let cannot = |error| anyhow!("cannot switch {offload} of {interface} off: {error}");
    let names = names(interface, FEATURES).map_err(cannot)?;
    let Some(index) = names.iter().position(|name| name == offload) else { return Ok(()) };
    // The kernel takes no block that it has not.
    let blocks = names.len().div_ceil(32).min(MAX_FEATURES / 32);
    let mut wishes =
        Wishes { command: 0, blocks: blocks as u32, data: [[0; 2]; MAX_FEATURES / 32] };
    wishes.data.get_mut(index / 32).context("an offload beyond all blocks")?[0] = 1 << (index % 32);
    ioctl(interface, ETHTOOL_SFEATURES, &mut wishes).map_err(cannot)
}

/// The driver's own counters by name, as `ethtool -S` has them; none where it has none.
///
/// # Errors
/// When there is no such interface.
pub fn statistics(interface: &str) -> Result<Vec<(String, u64)>> {
    let cannot = |error| anyhow!("cannot ask {interface} for its counters: {error}");
    let names = match names(interface, STATISTICS) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names.map_err(cannot)?,
    };
    let mut statistics = Guarded::<Statistics>::zeroed().map_err(cannot)?;
    statistics.get_mut().map_err(cannot)?.count = names.len() as u32;
    ioctl(interface, ETHTOOL_GSTATS, &mut statistics).map_err(cannot)?;
    let Statistics { count, data, .. } = statistics.get().map_err(cannot)?;
    // A counter beside another's name would be worse than none.
    ensure!(
        *count as usize == names.len(),
        "{interface} has got other counters meanwhile: try again"
    );
    Ok(names.into_iter().zip(data.iter().copied()).collect())
}

/// The names of a set.
fn names(interface: &str, set: u32) -> io::Result<Vec<String>> {
    let mut info = SetInfo { command: 0, reserved: 0, mask: 1 << set, count: 0 };
    ioctl(interface, ETHTOOL_GSSET_INFO, &mut info)?;
    if info.mask == 0 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)); // the driver has no such set
    }
    let mut names = Guarded::<Strings>::zeroed()?;
    (names.get_mut()?.set, names.get_mut()?.count) = (set, info.count);
    ioctl(interface, ETHTOOL_GSTRINGS, &mut names)?;
    let Strings { count, data, .. } = names.get()?;
    if *count != info.count {
        return Err(io::Error::other("it has got other names meanwhile: try again"));
    }
    Ok(data.iter().take(info.count as usize).map(|name| text(name)).collect())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// Has the kernel compute the checksums of what `interface` sends (`on` false), or leave them to
/// the card. A veth leaves them to nobody: its peer would see packets whose checksum is not there
/// yet.
///
/// # Errors
/// When the interface does not have that setting.
pub fn set_tx_checksum(interface: &str, on: bool) -> Result<()> {
    let mut value = Value { command: 0, data: on.into() };
    ioctl(interface, ETHTOOL_STXCSUM, &mut value)
        .map_err(|error| anyhow!("cannot set the tx checksum offload of {interface}: {error}"))
}

/// The table by which RSS chooses a queue: the hash of a packet, modulo the table's length, is the
/// place where its queue stands.
///
/// # Errors
/// When the card has no such table: one queue only, say.
pub fn indirection(interface: &str) -> io::Result<Vec<u32>> {
    let mut header = Indirection::new(&[]);
    // asked for none, it says how long the table is
    ioctl(interface, ETHTOOL_GRXFHINDIR, &mut header)?;
    let length = header.0.get(1).copied().unwrap_or(0);
    if length == 0 || length > MAX_INDIRECTION {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let mut table = Indirection::new(&vec![0; length as usize]);
    ioctl(interface, ETHTOOL_GRXFHINDIR, &mut table)?;
    Ok(table.0.split_off(2))
}

/// Sets that table. Where it is the one that the kernel makes by itself, it is given back to the
/// kernel: a table of somebody's own would keep the card from having fewer queues later.
///
/// # Errors
/// When the card does not take it.
pub fn set_indirection(interface: &str, table: &[u32]) -> io::Result<()> {
    ioctl(interface, ETHTOOL_SRXFHINDIR, &mut Indirection::new(&[]))?;
    if indirection(interface)? == table {
        return Ok(());
    }
    ioctl(interface, ETHTOOL_SRXFHINDIR, &mut Indirection::new(table))
}

/// A place where the card has no rule, the last there is: those before it go first.
///
/// # Errors
/// When the card has no rules, no place for one, or none that can be chosen.
pub fn free_rule(interface: &str) -> Result<u32> {
    let mut known = Classification::new(0);
    ioctl(interface, ETHTOOL_GRXCLSRLCNT, &mut known)?;
    let mut all = Box::new(Classification::new(0));
    ensure!(
        known.data as u32 & RX_CLS_LOC_SPECIAL == 0 && known.count as usize <= MAX_RULES,
        "its driver chooses where a rule goes"
    );
    all.count = known.count;
    ioctl(interface, ETHTOOL_GRXCLSRLALL, all.as_mut())?;
    let taken: HashSet<_> = all.locations.iter().take(known.count as usize).collect();
    // What the card has room for, as the driver says with the list.
    let places = u32::try_from(all.data).unwrap_or(u32::MAX).min(MAX_RULES as u32);
    (0..places)
        .rev()
        .find(|place| !taken.contains(place))
        .context("it has no room for one more rule")
}

/// The rule at `location`; `None` where there is none. One of another kind is shown as a rule for
/// port 0, which is no port.
pub fn flow_rule(interface: &str, location: u32) -> Option<FlowRule> {
    let mut found = Classification::new(location);
    ioctl(interface, ETHTOOL_GRXCLSRULE, &mut found).ok()?;
    let rule = &found.rule;
    let port = u16::from_be_bytes([rule.value[DESTINATION_PORT], rule.value[DESTINATION_PORT + 1]]);
    let port = if rule.kind == UDP_V6_FLOW { port } else { 0 };
    Some(FlowRule { location, port, queue: u32::try_from(rule.queue).unwrap_or(u32::MAX) })
}

/// Gives the card a rule.
///
/// # Errors
/// When it does not take it.
pub fn insert_flow_rule(interface: &str, rule: &FlowRule) -> io::Result<()> {
    let mut insertion = Classification::new(rule.location);
    insertion.rule.kind = UDP_V6_FLOW;
    insertion.rule.value[DESTINATION_PORT..][..2].copy_from_slice(&rule.port.to_be_bytes());
    insertion.rule.mask[DESTINATION_PORT..][..2].copy_from_slice(&[0xff; 2]);
    insertion.rule.queue = rule.queue.into();
    ioctl(interface, ETHTOOL_SRXCLSRLINS, &mut insertion)
}

/// Takes the rule at `location` away.
///
/// # Errors
/// When there is none.
pub fn delete_flow_rule(interface: &str, location: u32) -> io::Result<()> {
    ioctl(interface, ETHTOOL_SRXCLSRLDEL, &mut Classification::new(location))
}

/// Has the kernel do `command` with `argument`, which says where to look and takes what it answers.
fn ioctl<T: CommandData>(interface: &str, command: Command<T>, argument: &mut T) -> io::Result<()> {
    if !argument.fits() {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let place = argument.place();
    // SAFETY: the first word of the structure, which is for it.
    unsafe { place.write(command.number) };
    // SAFETY: plain integers and a pointer, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = place.cast();
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request names an interface and points to `argument`: the structure of its
    // command, as `Command` says, which has room for all that the kernel writes, as `CommandData` and
    // `fits` say.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EPERM) => {
            let why = denied::explain("it", &["CAP_NET_ADMIN"], "ioctl(SIOCETHTOOL)");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
        }
        error => Err(error),
    }
}

/// linux/sockios.h.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_one_queue_and_what_does_not_exist_is_an_error() {
        assert_eq!(queues("lo").unwrap(), 1);
        let one = QueueCounts {
            in_use: 1,
            possible: 1,
            combined: false,
            sending: 1,
            sending_possible: 1,
        };
        assert_eq!(queue_counts("lo").unwrap(), one);
        assert!(queues("no-such-if").is_err());
        assert!(driver("a-name-that-is-much-too-long").is_err());
    }

    #[test]
    fn offloads_have_names_and_what_loopback_has_not_is_none() {
        let offloads = offloads("lo").unwrap();
        let is = |name: &str| {
            offloads.iter().find(|offload| offload.name == name).map(|o| (o.on, o.changeable))
        };
        assert_eq!(is("loopback"), Some((true, false)), "{offloads:?}");
        assert_eq!(is("rx-gro").map(|(_, changeable)| changeable), Some(true), "{offloads:?}");
        assert!(offloads.iter().all(|offload| !offload.name.is_empty()));
        assert!(super::offloads("no-such-if").is_err());
        assert_eq!(statistics("lo").unwrap(), []);
        assert_eq!((speed("lo"), card_rings("lo"), largest_card_rings("lo")), (None, None, None));
        assert_eq!((rss_entries("lo"), flow_rules("lo")), (None, None));
        assert_eq!(indirection("lo").unwrap_err().raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(free_rule("lo").is_err() && flow_rule("lo", 0).is_none());
    }

    #[test]
    fn what_has_less_room_than_it_says_does_not_get_to_the_kernel() {
        let is_refused =
            |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::E2BIG);
        let mut short = Indirection(vec![0, 3, 7, 7]);
        assert!(is_refused(ioctl("lo", ETHTOOL_GRXFHINDIR, &mut short)));
        assert!(is_refused(ioctl("lo", ETHTOOL_GRXFHINDIR, &mut Indirection(vec![0]))));
        assert!(is_refused(ioctl("lo", ETHTOOL_GRXFHINDIR, &mut Indirection(vec![]))));
        let mut rules = Classification::<1>::new(0);
        rules.count = 2;
        assert!(is_refused(ioctl("lo", ETHTOOL_GRXCLSRLCNT, &mut rules)));
        let mut sets = SetInfo { command: 0, reserved: 0, mask: 3, count: 0 };
        assert!(is_refused(ioctl("lo", ETHTOOL_GSSET_INFO, &mut sets)));
        let mut names = Guarded::<Strings>::zeroed().unwrap();
        names.get_mut().unwrap().count = MAX_NAMES as u32 + 1;
        assert!(is_refused(ioctl("lo", ETHTOOL_GSTRINGS, &mut names)));
        let data = [FeatureBlock::default(); MAX_FEATURES / 32];
        let mut features = Features { command: 0, blocks: data.len() as u32 + 1, data };
        assert!(is_refused(ioctl("lo", ETHTOOL_GFEATURES, &mut features)));
    }

    #[test]
    fn structures_are_as_large_as_the_kernels() {
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<LinkSettings>(), 44);
        assert_eq!(size_of::<RingParameters>(), 36);
        assert_eq!(size_of::<FlowSpec>(), 168);
        assert_eq!(size_of::<Classification<1>>(), 192);
        assert_eq!(std::mem::offset_of!(FlowSpec, mask), 76);
        assert_eq!(std::mem::offset_of!(FlowSpec, queue), 152);
        assert_eq!(std::mem::offset_of!(Classification<1>, rule), 16);
        assert_eq!(std::mem::offset_of!(Classification<1>, locations), 188);
    }
}
