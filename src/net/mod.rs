//! THE KERNEL'S NETWORK INTERFACES: netlink, ethtool, socket options, batched datagrams and
//! namespaces; why the kernel refuses a call; and adapter quirks.
//!
//! Nothing here knows about the server. Queries change nothing. Changes stay until the caller
//! undoes them.

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

/// Reads a file that holds one value; `None` if it is missing or unreadable.
pub(crate) fn file(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}
