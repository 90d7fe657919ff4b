//! ASKING AND TELLING THE KERNEL about interfaces, addresses and sockets: netlink, ethtool, socket
//! options, datagrams in batches, namespaces, why it refuses, and what adapters do of their own.
//!
//! Nothing here knows of a server. A question changes nothing; what a call changes stays changed
//! until somebody takes it back.

pub(crate) mod datagrams;
pub mod denied;
pub mod ethtool;
pub mod memory;
#[cfg(feature = "lab")]
pub(crate) mod namespace;
pub mod netdev;
pub mod netlink;
pub mod option;
pub mod quirks;

use std::fs;
use std::path::Path;

/// A file of one value; `None` where it is not there, or not to be read.
pub(crate) fn file(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
