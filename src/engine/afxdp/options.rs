//! What may be asked of the engines that have an XDP program.

use crate::net::memory::HugepageRequest;
use crate::xdp::{AttachRequest, CopyRequest};

/// Options of afxdp and reflect. What is left to auto takes the best that can be had, and the modes
/// say what it did not get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::Args), group(skip))]
#[cfg_attr(feature = "cli", command(next_help_heading = "AF_XDP"))]
pub struct Options {
    /// Requests of one source that are answered in a second, a tenth of them at once; takes an
    /// engine that has an XDP program [default: any number]
    #[cfg_attr(feature = "cli", arg(long, value_name = "N", help_heading = "Who may ask",
        value_parser = clap::value_parser!(u32).range(1..)))]
    pub limit: Option<u32>,
    /// Where the XDP program runs: in the driver (native), or in the kernel's generic hook
    #[cfg_attr(feature = "cli", arg(long, value_name = "MODE", default_value = "auto"))]
    pub attach: AttachRequest,
    /// Whether packets are copied between the driver's buffers and the rings
    #[cfg_attr(feature = "cli", arg(long, value_name = "MODE", default_value = "auto"))]
    pub copy: CopyRequest,
    /// Queues to serve, as in 0,1 [default: all in use]
    #[cfg_attr(feature = "cli", arg(long, value_name = "LIST", value_delimiter = ','))]
    pub queues: Vec<u32>,
    /// Workers poll the card themselves, and sleep when nothing has come for so many microseconds
    #[cfg_attr(feature = "cli", arg(long, value_name = "USECS",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000)))]
    pub busy_poll: Option<u32>,
    /// Bytes in a frame, 2048 or 4096 [default: what a packet fits into]
    #[cfg_attr(feature = "cli", arg(long, value_name = "BYTES", value_parser = frame_size))]
    pub frame_size: Option<u32>,
    /// Whether the frames lie on huge pages
    #[cfg_attr(feature = "cli", arg(long, value_name = "WHEN", default_value = "auto"))]
    pub hugepages: HugepageRequest,
}

/// The sizes that the kernel takes: a power of two, from 2 KiB to a page.
#[cfg(feature = "cli")]
fn frame_size(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(size @ (2048 | 4096)) => Ok(size),
        _ => Err("2048 or 4096".to_owned()),
    }
}
