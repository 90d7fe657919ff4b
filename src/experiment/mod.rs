//! Experiments: start servers, put load on them, and search for figures. `report` shows the
//! results.
//!
//! An experiment runs each server as a process of its own, through the public command line. The
//! generator of `load` runs in this process.

mod bind;
mod compare;
mod journal;
mod peer;
mod profile;
mod response;
mod rotation;
mod search;
mod server;
pub mod summary;

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, Result, anyhow};

use crate::lab::Lab;

pub use bind::{BindProgress, bind, bound};
pub use compare::{CompareConfig, CompareProgress, compare};
pub use peer::PeerProgram;
pub use profile::{
    Approach, BindProfile, BindSeries, Profile, Rates, ResponseProfile, ResponseSeries,
    RotationProfile, RotationSeries,
};
pub use response::{ResponseConfig, ResponseProgress, Testbed, response};
pub use rotation::{RotationProgress, rotation};
pub use server::ServerHost;

/// UDP port of the service.
const PORT: u16 = 3540;

/// How many requests warm up caches, branch predictors and the neighbour table before a
/// measurement.
const WARM_UP: u64 = 2000;

/// Removes the interfaces of `lab` and makes new ones.
fn fresh(lab: &Lab) -> Result<()> {
    lab.down()?;
    lab.up(1)?;
    Ok(())
}

/// Holds a name that only one process at a time can have. The kernel frees it when the process
/// ends, even if killed.
fn only_one(name: &str) -> Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(name).context("cannot name an abstract socket")?;
    UnixDatagram::bind_addr(&name).map_err(|_| {
        anyhow!("another such experiment is running on this machine: wait for it, or stop it")
    })
}

/// Pins the calling thread to the first processor of its affinity mask.
fn pin_to_first() {
    if let Some(first) = core_affinity::get_core_ids().and_then(|cores| cores.first().copied()) {
        core_affinity::set_for_current(first);
    }
}

/// Pins the calling thread to the last processor of its affinity mask.
fn pin_to_last() {
    if let Some(last) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        core_affinity::set_for_current(last);
    }
}
