//! The choices there are, by the names that flags and results have for them, and what the kernel
//! granted of them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An engine, by its name. Those that this program has declare theirs; a result may name others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineKind {
    /// The name, and zeros behind it.
    name: [u8; EngineKind::LONGEST],
}

impl EngineKind {
    /// Bytes of the longest name.
    const LONGEST: usize = 24;

    /// The engine of that name.
    ///
    /// # Panics
    /// When the name has none or more than 24 of the characters a to z, 0 to 9 and hyphen, or
    /// others: while this program is compiled, if it is a constant.
    #[must_use]
    pub const fn named(name: &str) -> Self {
        match Self::read(name) {
            Some(kind) => kind,
            None => panic!("an engine's name has 1 to 24 of a to z, 0 to 9 and hyphen"),
        }
    }

    const fn read(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.is_empty() || text.len() > Self::LONGEST {
            return None;
        }
        let mut name = [0; Self::LONGEST];
        let mut index = 0;
        while index < text.len() {
            if !matches!(text[index], b'a'..=b'z' | b'0'..=b'9' | b'-') {
                return None;
            }
            name[index] = text[index];
            index += 1;
        }
        Some(Self { name })
    }

    /// Its name, as flags and results have it.
    #[must_use]
    pub fn name(&self) -> &str {
        let length = self.name.iter().position(|byte| *byte == 0).unwrap_or(Self::LONGEST);
        std::str::from_utf8(&self.name[..length]).unwrap_or_default()
    }
}

impl fmt::Debug for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for EngineKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for EngineKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Self::read(&name).ok_or_else(|| de::Error::custom(format!("'{name}' names no engine")))
    }
}

/// The ways there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Addresses of the kernel, one netlink message each, and each acknowledged before the next
    Netlink,
    /// The same, with many messages to a system call
    NetlinkBatch,
    /// The same while the link is down: the kernel joins no multicast groups until it is set up
    NetlinkDown,
    /// Addresses of the kernel, one ioctl each
    Ioctl,
    /// Addresses of the kernel, one process of ip(8) each
    Command,
    /// Addresses of the kernel, one process of ifconfig(8) each
    Ifconfig,
    /// A local route for the whole prefix: every address of it is live, and neighbours need a route
    /// to it
    Anyip,
    /// Entries of the steering program's maps: the engine answers neighbour discovery, and the
    /// kernel has no part in it
    LiveMap,
    /// Leave the addresses to others
    None,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Netlink => "netlink",
            Self::NetlinkBatch => "netlink-batch",
            Self::NetlinkDown => "netlink-down",
            Self::Ioctl => "ioctl",
            Self::Command => "command",
            Self::Ifconfig => "ifconfig",
            Self::Anyip => "anyip",
            Self::LiveMap => "live-map",
            Self::None => "none",
        })
    }
}

/// An XDP program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedProgram {
    /// Where it runs.
    pub mode: AttachMode,
    /// The kernel's number for it (`bpftool prog show id N`).
    pub id: u32,
}

/// Where an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver, before there is an skb.
    Native,
    /// In the kernel's general receive path, on an skb: works everywhere, slower.
    Generic,
    /// On the card.
    Offload,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        })
    }
}

/// Where the program is to run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AttachRequest {
    /// In the driver where it can, otherwise generic.
    #[default]
    Auto,
    /// In the driver or an error.
    Native,
    /// In the kernel's generic hook, which every driver has, after a socket buffer was made.
    Generic,
}

impl fmt::Display for AttachRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// How packets get from the card into the UMEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMode {
    /// The card writes into the UMEM.
    Zero,
    /// The kernel copies between its own buffers and the UMEM.
    Copy,
}

impl fmt::Display for CopyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Zero => "zero",
            Self::Copy => "copy",
        })
    }
}

/// Which copy mode to ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum CopyRequest {
    /// Zero-copy where the driver grants it, otherwise copy.
    #[default]
    Auto,
    /// Zero-copy or an error.
    Zero,
    /// Copy, even where zero-copy could be had.
    Copy,
}

impl fmt::Display for CopyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Zero => "zero",
            Self::Copy => "copy",
        })
    }
}

/// How large the rings of a socket are, in descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    /// Frames in the UMEM.
    pub frames: u32,
    /// Bytes in a frame.
    pub frame_size: u32,
    /// The fill ring.
    pub fill: u32,
    /// The rx ring.
    pub rx: u32,
    /// The tx ring.
    pub tx: u32,
    /// The completion ring.
    pub completion: u32,
}

/// Busy polling of a socket, as the kernel says that it is set (Documentation/networking/napi.rst):
/// whoever waits for packets does the card's receive work itself, instead of an interrupt that
/// takes the processor from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyPoll {
    /// For how long, in microseconds (SO_BUSY_POLL).
    pub microseconds: u32,
    /// Whether the card's interrupts stay off meanwhile (SO_PREFER_BUSY_POLL).
    pub preferred: bool,
    /// Packets that one call takes from the card at most (SO_BUSY_POLL_BUDGET, which the kernel
    /// does not show: what was set).
    pub budget: u32,
}

/// One step down that was taken because the step above was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The choice, by the name of its flag: `attach` or `copy`.
    pub what: String,
    /// What was tried.
    pub from: String,
    /// What was taken instead.
    pub to: String,
    /// Why the first was refused.
    pub why: String,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, from, to, why } = self;
        write!(f, "--{what} auto falls back from {from} to {to}: {why}")
    }
}

/// Whether packets are to lie on huge pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum HugepageRequest {
    /// Where enough of them are free.
    #[default]
    Auto,
    /// On huge pages or an error.
    Yes,
    /// On pages of the usual size.
    No,
}

impl fmt::Display for HugepageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Yes => "yes",
            Self::No => "no",
        })
    }
}

/// How memory-mapped packet rings are laid out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum TPacket {
    /// TPACKET_V2: each packet is handed over at once
    #[default]
    V2,
    /// TPACKET_V3: packets are handed over in blocks, when one is full or after a millisecond
    V3,
}

impl fmt::Display for TPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V2 => "TPACKET_V2",
            Self::V3 => "TPACKET_V3",
        })
    }
}

/// What the kernel granted an engine: what it reports, not what was asked for. `None` where the
/// engine has no such thing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Modes {
    /// How its XDP program is attached.
    pub attach: Option<AttachMode>,
    /// How packets get into and out of its rings: `Zero` only when every queue's do.
    pub copy: Option<CopyMode>,
    /// The steps down that automatic choices took to these two.
    #[serde(default)]
    pub fallbacks: Vec<Fallback>,
    /// How its sockets poll the card, where they do.
    #[serde(default)]
    pub busy_poll: Option<BusyPoll>,
    /// Queues that it serves.
    pub queues: Vec<u32>,
    /// Processors that it is pinned to.
    pub cores: Vec<usize>,
    /// Whether its UMEM lies on huge pages.
    pub hugepages: Option<bool>,
    /// How large the rings of each queue are.
    #[serde(default)]
    pub rings: Option<RingSizes>,
    /// Messages that its queue holds.
    pub queue_depth: Option<i64>,
    /// Bytes of memory that requests may take which wait in its socket, as the kernel reports it
    /// (twice what was asked for).
    #[serde(default)]
    pub receive_buffer: Option<usize>,
    /// Whether the kernel cuts equal replies out of one large frame; otherwise each goes as a frame
    /// of its own.
    #[serde(default)]
    pub segmentation: Option<bool>,
    /// How its memory-mapped packet rings are laid out.
    #[serde(default)]
    pub tpacket: Option<TPacket>,
}

/// The ways to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LoadClient {
    /// AF_XDP rings: the server is the limit for longer
    Afxdp,
    /// A UDP socket, and the kernel's own timestamps of what arrives
    Socket,
}

impl fmt::Display for LoadClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Afxdp => "afxdp",
            Self::Socket => "socket",
        })
    }
}
