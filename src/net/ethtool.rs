//! Card queries and settings for which this project uses the ethtool ioctl (linux/ethtool.h).

use std::collections::HashSet;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use serde::{Deserialize, Serialize};

use super::memory::Memory;
use crate::net::denied;

/// A command of linux/ethtool.h, with the structure that the kernel reads and writes for it. Only
/// the constants below exist.
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
/// Its layout matches linux/ethtool.h for each [`Command`] that takes it. It consists of integers,
/// so zero and every other bit pattern are valid. `place` points to all of it. If it
/// [`fits`](Self::fits), the kernel touches no byte beyond it, or faults there.
unsafe trait CommandData: Sized {
    /// Where it begins: the field for the command number.
    fn place(&mut self) -> *mut u32 {
        (&raw mut *self).cast()
    }

    /// Whether its entry counts stay within the space for entries.
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

/// String sets: the driver's counters (ETH_SS_STATS) and the offloads (ETH_SS_FEATURES).
const STATISTICS: u32 = 1;
const FEATURES: u32 = 4;

/// The flow type UDP over IPv6.
const UDP_V6_FLOW: u32 = 0x06;

/// A flag in the data from ETHTOOL_GRXCLSRLCNT: the driver chooses rule locations itself.
const RX_CLS_LOC_SPECIAL: u32 = 1 << 31;

/// Offset of the destination port in `struct ethtool_tcpip6_spec`, in bytes.
const DESTINATION_PORT: usize = 34;

/// The most rule locations examined: more than any driver in Linux 6.18 offers.
const MAX_RULES: usize = 16_384;

/// The most entries of an RSS indirection table: more than any driver in Linux 6.18 has.
const MAX_INDIRECTION: u32 = 65_536;

/// More offloads than any kernel knows (Linux 6.18 has 65), in blocks of 32.
const MAX_FEATURES: usize = 256;

/// More counters than a card with 64 queues has.
const MAX_NAMES: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct Value {
    command: u32,
    data: u32,
}

// SAFETY: two integers.
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

// SAFETY: a fixed number of integers.
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

// SAFETY: a fixed number of integers and bytes.
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

// SAFETY: a fixed number of integers.
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

// SAFETY: a fixed number of integers.
unsafe impl CommandData for RingParameters {}

#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    mask: u64,
    count: u32,
}

// SAFETY: integers; the kernel writes one count for each bit of the mask.
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

// SAFETY: integers and bytes; commands take it only inside `Guarded`.
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

/// A structure that older kernels fill with all current entries of the driver, even if the caller
/// asked for fewer. If entries were added after they were counted, the write hits the guard page
/// behind the structure and the call fails.
struct Guarded<T> {
    memory: Memory,
    kind: PhantomData<T>,
}

impl<T: CommandData> Guarded<T> {
    /// A structure of zeros.
    fn zeroed() -> io::Result<Self> {
        Ok(Self { memory: Memory::guarded(size_of::<T>())?, kind: PhantomData })
    }

    fn get(&self) -> io::Result<&T> {
        let place = self.memory.at::<T>(0, 1).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: within the memory, as `at` checked. The memory is initialised, nothing else
        // points to it, and every bit pattern is valid.
        Ok(unsafe { place.as_ref() })
    }

    fn get_mut(&mut self) -> io::Result<&mut T> {
        let mut place = self.memory.at::<T>(0, 1).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: as in `get`, and `self` is borrowed mutably.
        Ok(unsafe { place.as_mut() })
    }
}

// SAFETY: the memory begins with a `T` and ends with a guard page, where the kernel faults.
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

// SAFETY: integers; the kernel writes at most as many blocks as the structure says it has.
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

/// `struct ethtool_sfeatures`: for each block, which offloads to set, and which of those to turn
/// on.
#[repr(C)]
struct Wishes {
    command: u32,
    blocks: u32,
    data: [[u32; 2]; MAX_FEATURES / 32],
}

// SAFETY: integers; the kernel reads as many blocks as the structure says.
unsafe impl CommandData for Wishes {
    fn fits(&self) -> bool {
        self.blocks as usize <= self.data.len()
    }
}

/// Queue counts. A combined channel has a queue of each kind, and counts as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueCounts {
    /// Receive queues in use.
    pub in_use: u32,
    /// The most receive queues that can be in use.
    pub possible: u32,
    /// Whether one number sets both kinds (`ethtool -L IF combined N`).
    pub combined: bool,
    /// Transmit queues in use.
    pub sending: u32,
    /// The most transmit queues that can be in use.
    pub sending_possible: u32,
}

/// An offload, as `ethtool -k` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offload {
    /// The kernel's name for it.
    pub name: String,
    /// Whether it is on.
    pub on: bool,
    /// Whether `ethtool -K` can change it.
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

/// `struct ethtool_rxnfc`, with space for `N` locations. The kernel requires at least one.
#[repr(C)]
struct Classification<const N: usize> {
    command: u32,
    kind: u32,
    data: u64,
    rule: FlowSpec,
    count: u32,
    locations: [u32; N],
}

// SAFETY: integers and bytes; the kernel writes at most as many locations as the structure says it
// has.
unsafe impl<const N: usize> CommandData for Classification<N> {
    fn fits(&self) -> bool {
        self.count as usize <= N
    }
}

/// `struct ethtool_rxfh_indir`: the command, the number of entries, and the entries.
struct Indirection(Vec<u32>);

impl Indirection {
    fn new(table: &[u32]) -> Self {
        Self([&[0, table.len() as u32], table].concat())
    }
}

// SAFETY: integers; the kernel reads or writes at most as many entries as the structure says it
// has.
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

/// A rule that sends IPv6 packets for one UDP port to one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRule {
    /// Its location among the card's rules.
    pub location: u32,
    /// The port.
    pub port: u16,
    /// The queue.
    pub queue: u32,
}

/// What a card says about itself; unknown fields are empty.
#[derive(Debug, Clone, Default)]
pub struct CardInfo {
    /// Name of its driver.
    pub driver: String,
    /// Version of its firmware.
    pub firmware: String,
    /// Its bus address.
    pub bus: String,
}

/// Number of receive queues of `interface` in use, to which an AF_XDP socket can be bound; 1 if the
/// driver has no channels.
///
/// # Errors
/// When there is no such interface.
pub fn queues(interface: &str) -> Result<u32> {
    Ok(queue_counts(interface)?.in_use)
}

/// The queue counts of `interface`; 1 each if the driver has no channels.
///
/// # Errors
/// When there is no such interface.
pub fn queue_counts(interface: &str) -> Result<QueueCounts> {
    let mut channels = Channels::default();
    match ioctl(interface, ETHTOOL_GCHANNELS, &mut channels) {
        Ok(()) => {
            let [max_rx, max_tx, _other, max_combined] = channels.max;
            let in_use = (channels.combined + channels.rx).max(1);
            // A driver with both kinds of channels uses either combined or separate ones.
            let possible = max_combined.max(max_rx).max(in_use);
            // A driver that reports no transmit queues has as many as it needs.
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
        Err(error) => Err(anyhow!("cannot read the queue counts of {interface}: {error}")),
    }
}

/// Sets the number of queues of `interface` for each direction. Some drivers reset the link for
/// this.
///
/// # Errors
/// When the driver refuses.
pub fn set_queues(interface: &str, count: u32) -> Result<()> {
    if queues(interface)? == count {
        return Ok(());
    }
    let cannot = |error| anyhow!("cannot set {interface} to {count} queue(s): {error}");
    let mut channels = Channels::default();
    ioctl(interface, ETHTOOL_GCHANNELS, &mut channels).map_err(cannot)?;
    if channels.combined > 0 {
        channels.combined = count;
    } else {
        (channels.rx, channels.tx) = (count, count);
    }
    ioctl(interface, ETHTOOL_SCHANNELS, &mut channels).map_err(cannot)
}

/// What the card behind `interface` says about itself.
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
        Err(error) => Err(anyhow!("cannot read the driver of {interface}: {error}")),
    }
}

/// Name of the driver of `interface`; empty if it has none.
///
/// # Errors
/// When there is no such interface.
pub fn driver(interface: &str) -> Result<String> {
    Ok(card(interface)?.driver)
}

/// Speed of the link in Mbit/s, as the driver reports it; `None` if it reports none.
pub fn speed(interface: &str) -> Option<u32> {
    let mut settings = LinkSettings::default();
    ioctl(interface, ETHTOOL_GSET, &mut settings).ok()?;
    let speed = u32::from(settings.speed_high) << 16 | u32::from(settings.speed);
    (speed != 0 && speed != u32::MAX).then_some(speed) // SPEED_UNKNOWN is -1
}

/// Number of descriptors in the card's own receive and transmit rings; `None` if the driver has
/// none or does not report them.
pub fn card_rings(interface: &str) -> Option<(u32, u32)> {
    ring_parameters(interface).map(|rings| (rings.rx, rings.tx))
}

/// The most descriptors that the card's own receive and transmit rings can have.
pub fn largest_card_rings(interface: &str) -> Option<(u32, u32)> {
    ring_parameters(interface).map(|rings| (rings.max[0], rings.max[3]))
}

/// Sets the card's own receive and transmit rings to the driver's maximum.
///
/// # Errors
/// When the driver refuses.
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

/// Number of entries in the card's RSS indirection table; `None` if it has none.
pub fn rss_entries(interface: &str) -> Option<u32> {
    Some(indirection(interface).ok()?.len() as u32)
}

/// Number of the card's flow rules (`ethtool -n`); `None` if it does not support them.
pub fn flow_rules(interface: &str) -> Option<u32> {
    let mut rules = Classification::new(0);
    ioctl(interface, ETHTOOL_GRXCLSRLCNT, &mut rules).ok()?;
    Some(rules.count)
}

/// The offloads that the kernel knows, in its order.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn offloads(interface: &str) -> Result<Vec<Offload>> {
    let cannot = |error| anyhow!("cannot list the offloads of {interface}: {error}");
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
    // Unused bits have no name.
    Ok(names.into_iter().enumerate().filter(|(_, name)| !name.is_empty()).map(offload).collect())
}

/// Turns the named offload off, if `interface` has it.
///
/// # Errors
/// When it cannot be turned off.
pub fn switch_off(interface: &str, offload: &str) -> Result<()> {
    let cannot = |error| anyhow!("cannot turn off {offload} of {interface}: {error}");
    let names = names(interface, FEATURES).map_err(cannot)?;
    let Some(index) = names.iter().position(|name| name == offload) else { return Ok(()) };
    // The kernel rejects unknown feature blocks.
    let blocks = names.len().div_ceil(32).min(MAX_FEATURES / 32);
    let mut wishes =
        Wishes { command: 0, blocks: blocks as u32, data: [[0; 2]; MAX_FEATURES / 32] };
    wishes.data.get_mut(index / 32).context("the offload's index is too large")?[0] =
        1 << (index % 32);
    ioctl(interface, ETHTOOL_SFEATURES, &mut wishes).map_err(cannot)
}

/// The driver's own counters by name, as `ethtool -S` shows them; empty if it has none.
///
/// # Errors
/// When there is no such interface.
pub fn statistics(interface: &str) -> Result<Vec<(String, u64)>> {
    let cannot = |error| anyhow!("cannot read the counters of {interface}: {error}");
    let names = match names(interface, STATISTICS) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names.map_err(cannot)?,
    };
    let mut statistics = Guarded::<Statistics>::zeroed().map_err(cannot)?;
    statistics.get_mut().map_err(cannot)?.count = names.len() as u32;
    ioctl(interface, ETHTOOL_GSTATS, &mut statistics).map_err(cannot)?;
    let Statistics { count, data, .. } = statistics.get().map_err(cannot)?;
    // A counter under the wrong name would be worse than none.
    ensure!(
        *count as usize == names.len(),
        "the counters of {interface} changed during the query: try again"
    );
    Ok(names.into_iter().zip(data.iter().copied()).collect())
}

/// The names in a string set.
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
        return Err(io::Error::other("its names changed during the query: try again"));
    }
    Ok(data.iter().take(info.count as usize).map(|name| text(name)).collect())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// Leaves checksums of sent packets to the card (`on`), or has the kernel compute them. On a veth
/// nobody finishes a checksum left to the card: its peer would receive unfinished ones.
///
/// # Errors
/// When the interface does not have this setting.
pub fn set_tx_checksum(interface: &str, on: bool) -> Result<()> {
    let mut value = Value { command: 0, data: on.into() };
    ioctl(interface, ETHTOOL_STXCSUM, &mut value)
        .map_err(|error| anyhow!("cannot set the tx checksum offload of {interface}: {error}"))
}

/// The RSS indirection table: the packet's hash, modulo the table's length, is the index of its
/// queue.
///
/// # Errors
/// When the card has no such table, for example because it has only one queue.
pub fn indirection(interface: &str) -> io::Result<Vec<u32>> {
    let mut header = Indirection::new(&[]);
    // A query for 0 entries returns the table's length.
    ioctl(interface, ETHTOOL_GRXFHINDIR, &mut header)?;
    let length = header.0.get(1).copied().unwrap_or(0);
    if length == 0 || length > MAX_INDIRECTION {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let mut table = Indirection::new(&vec![0; length as usize]);
    ioctl(interface, ETHTOOL_GRXFHINDIR, &mut table)?;
    Ok(table.0.split_off(2))
}

/// Sets the RSS indirection table. If the kernel's default is the same, this restores the default:
/// with a custom table, the card could not use fewer queues later.
///
/// # Errors
/// When the card rejects it.
pub fn set_indirection(interface: &str, table: &[u32]) -> io::Result<()> {
    ioctl(interface, ETHTOOL_SRXFHINDIR, &mut Indirection::new(&[]))?;
    if indirection(interface)? == table {
        return Ok(());
    }
    ioctl(interface, ETHTOOL_SRXFHINDIR, &mut Indirection::new(table))
}

/// A free rule location, the last one, so that the rules before it match first.
///
/// # Errors
/// When the card supports no rules, has no free location, or chooses locations itself.
pub fn free_rule(interface: &str) -> Result<u32> {
    let mut known = Classification::new(0);
    ioctl(interface, ETHTOOL_GRXCLSRLCNT, &mut known)?;
    let mut all = Box::new(Classification::new(0));
    ensure!(
        known.data as u32 & RX_CLS_LOC_SPECIAL == 0 && known.count as usize <= MAX_RULES,
        "its driver chooses rule locations itself"
    );
    all.count = known.count;
    ioctl(interface, ETHTOOL_GRXCLSRLALL, all.as_mut())?;
    let taken: HashSet<_> = all.locations.iter().take(known.count as usize).collect();
    // The driver returns the number of locations along with the list.
    let places = u32::try_from(all.data).unwrap_or(u32::MAX).min(MAX_RULES as u32);
    (0..places).rev().find(|place| !taken.contains(place)).context("it has no free rule location")
}

/// The rule at `location`; `None` if there is none. A rule of another type appears as one for port
/// 0, which no packet has.
pub fn flow_rule(interface: &str, location: u32) -> Option<FlowRule> {
    let mut found = Classification::new(location);
    ioctl(interface, ETHTOOL_GRXCLSRULE, &mut found).ok()?;
    let rule = &found.rule;
    let port = u16::from_be_bytes([rule.value[DESTINATION_PORT], rule.value[DESTINATION_PORT + 1]]);
    let port = if rule.kind == UDP_V6_FLOW { port } else { 0 };
    Some(FlowRule { location, port, queue: u32::try_from(rule.queue).unwrap_or(u32::MAX) })
}

/// Adds a rule to the card.
///
/// # Errors
/// When the card rejects it.
pub fn insert_flow_rule(interface: &str, rule: &FlowRule) -> io::Result<()> {
    let mut insertion = Classification::new(rule.location);
    insertion.rule.kind = UDP_V6_FLOW;
    insertion.rule.value[DESTINATION_PORT..][..2].copy_from_slice(&rule.port.to_be_bytes());
    insertion.rule.mask[DESTINATION_PORT..][..2].copy_from_slice(&[0xff; 2]);
    insertion.rule.queue = rule.queue.into();
    ioctl(interface, ETHTOOL_SRXCLSRLINS, &mut insertion)
}

/// Deletes the rule at `location`.
///
/// # Errors
/// When there is none.
pub fn delete_flow_rule(interface: &str, location: u32) -> io::Result<()> {
    ioctl(interface, ETHTOOL_SRXCLSRLDEL, &mut Classification::new(location))
}

/// Runs `command` with `argument`, which holds the query and receives the answer.
fn ioctl<T: CommandData>(interface: &str, command: Command<T>, argument: &mut T) -> io::Result<()> {
    if !argument.fits() {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let place = argument.place();
    // SAFETY: the first word of the structure holds the command number.
    unsafe { place.write(command.number) };
    // SAFETY: plain integers and a pointer, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_data = place.cast();
    let socket = socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request names an interface and points to `argument`, the structure of its command
    // (see `Command`). It has space for everything the kernel writes (see `CommandData` and
    // `fits`).
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
