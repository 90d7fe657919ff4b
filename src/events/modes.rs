//! The available choices, by their names in flags and results, and what the kernel granted.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// An engine, by its name. This program's engines declare their names; a result may contain others.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EngineKind {
    /// The name, padded with zeros.
    name: [u8; EngineKind::LONGEST],
}

impl EngineKind {
    /// Bytes of the longest name.
    const LONGEST: usize = 24;

    /// The engine of that name.
    ///
    /// # Panics
    /// When the name is empty, longer than 24 characters, or contains others than a to z, 0 to 9
    /// and hyphen. For a constant this is a compile error.
    #[must_use]
    pub const fn named(name: &str) -> Self {
        match Self::read(name) {
            Some(kind) => kind,
            None => {
                panic!("an engine's name has 1 to 24 characters from a to z, 0 to 9 and hyphen")
            }
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

    /// Its name in flags and results.
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
        Self::read(&name)
            .ok_or_else(|| de::Error::custom(format!("'{name}' is not a valid engine name")))
    }
}

/// The methods of binding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Addresses of the kernel, one netlink message each, acknowledged before the next
    Netlink,
    /// The same, with many messages in one system call
    NetlinkBatch,
    /// The same while the link is down: the kernel joins no multicast groups until it is up
    NetlinkDown,
    /// Addresses of the kernel, one ioctl each
    Ioctl,
    /// Addresses of the kernel, one ip(8) process each
    Command,
    /// Addresses of the kernel, one ifconfig(8) process each
    Ifconfig,
    /// A local route for the whole prefix: all its addresses are live, and neighbours need a route
    /// to it
    Anyip,
    /// Entries in the steering program's maps: the engine answers neighbour discovery, and the
    /// kernel does not see the addresses
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
    /// The kernel's ID for it (`bpftool prog show id N`).
    pub id: u32,
}

/// Where an XDP program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// In the driver, before there is a socket buffer.
    Native,
    /// In the kernel's generic receive path, on a socket buffer: works everywhere, but slower.
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

/// Where to attach the program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum AttachRequest {
    /// In the driver if possible, otherwise generic.
    #[default]
    Auto,
    /// In the driver, or fail.
    Native,
    /// In the kernel's generic hook, which works with every driver, after it made a socket buffer.
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

/// The copy mode to request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum CopyRequest {
    /// Zero-copy if the driver grants it, otherwise copy.
    #[default]
    Auto,
    /// Zero-copy, or fail.
    Zero,
    /// Copy, even if zero-copy is available.
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

/// The sizes of a socket's UMEM and rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSizes {
    /// Frames in the UMEM.
    pub frames: u32,
    /// Bytes in a frame.
    pub frame_size: u32,
    /// Descriptors in the fill ring.
    pub fill: u32,
    /// Descriptors in the rx ring.
    pub rx: u32,
    /// Descriptors in the tx ring.
    pub tx: u32,
    /// Descriptors in the completion ring.
    pub completion: u32,
}

/// Busy polling of a socket, as the kernel reports it (Documentation/networking/napi.rst). The
/// thread that waits for packets does the card's receive work itself, so no interrupt takes the
/// processor from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BusyPoll {
    /// For how long, in microseconds (SO_BUSY_POLL).
    pub microseconds: u32,
    /// Whether the card's interrupts stay off meanwhile (SO_PREFER_BUSY_POLL).
    pub preferred: bool,
    /// The most packets that one call takes from the card (SO_BUSY_POLL_BUDGET). The kernel does
    /// not report it, so this is the requested value.
    pub budget: u32,
}

/// A step to a lower mode, because a better one was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The choice, by the name of its flag: `attach` or `copy`.
    pub what: String,
    /// The mode that was tried.
    pub from: String,
    /// The mode used instead.
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

/// Whether to put packets on huge pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum HugepageRequest {
    /// If enough of them are free.
    #[default]
    Auto,
    /// On huge pages, or fail.
    Yes,
    /// On pages of the default size.
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

/// The layout of memory-mapped packet rings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum TPacket {
    /// TPACKET_V2: the kernel hands over each packet at once
    #[default]
    V2,
    /// TPACKET_V3: the kernel hands over packets in blocks, when one is full or after a millisecond
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

/// What the kernel granted an engine: what it reports, not what was requested. A field is `None` if
/// the engine has no such thing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Modes {
    /// How its XDP program is attached.
    pub attach: Option<AttachMode>,
    /// How packets get into and out of its rings: `Zero` only if every queue uses zero-copy.
    pub copy: Option<CopyMode>,
    /// The fallbacks of automatic choices that led to these two.
    #[serde(default)]
    pub fallbacks: Vec<Fallback>,
    /// Busy polling of its sockets, if on.
    #[serde(default)]
    pub busy_poll: Option<BusyPoll>,
    /// Queues that it serves.
    pub queues: Vec<u32>,
    /// Processors that it is pinned to.
    pub cores: Vec<usize>,
    /// Whether its UMEM is on huge pages.
    pub hugepages: Option<bool>,
    /// The sizes of the rings of each queue.
    #[serde(default)]
    pub rings: Option<RingSizes>,
    /// Messages that its queue holds.
    pub queue_depth: Option<i64>,
    /// Limit on the memory of waiting requests in its socket, in bytes, as the kernel reports it
    /// (twice what was requested).
    #[serde(default)]
    pub receive_buffer: Option<usize>,
    /// Whether the kernel splits one large datagram into equal replies. Otherwise each reply is
    /// sent as its own datagram.
    #[serde(default)]
    pub segmentation: Option<bool>,
    /// The layout of its memory-mapped packet rings.
    #[serde(default)]
    pub tpacket: Option<TPacket>,
}

/// The client's transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum LoadClient {
    /// AF_XDP rings: keep up with the server at higher rates
    Afxdp,
    /// A UDP socket, with the kernel's own receive timestamps
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
