//! Experiments: servers started, loads put on them, figures found. What they find goes to `report`.
//!
//! An experiment starts servers as processes of their own, by the command line that anybody else
//! would use, and asks them with the generator of `load` from this process.

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
pub use compare::{CompareConfig, Progress, compare};
pub use peer::Peer;
pub use profile::{
    Approach, BindProfile, BindSeries, Profile, Rates, ResponseProfile, ResponseSeries,
    RotationProfile, RotationSeries,
};
pub use response::{Place, ResponseConfig, ResponseProgress, response};
pub use rotation::{RotationProgress, rotation};
pub use server::Host;

/// UDP port of the service.
const PORT: u16 = 3540;

/// Requests that warm caches, branch predictors and the neighbour table before anything is counted.
const WARM_UP: u64 = 2000;

/// Makes the interfaces of `lab` anew.
fn fresh(lab: &Lab) -> Result<()> {
    lab.down()?;
    lab.up(1)?;
    Ok(())
}

/// Holds a name that only one process can have, and that is free again when it ends, however it
/// ends.
fn only_one(name: &str) -> Result<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(name).context("no abstract socket names")?;
    UnixDatagram::bind_addr(&name).map_err(|_| {
        anyhow!("another such experiment is running on this machine: wait for it, or stop it")
    })
}

/// Pins the calling thread to the first processor that it may use.
fn pin_to_first() {
    if let Some(first) = core_affinity::get_core_ids().and_then(|cores| cores.first().copied()) {
        core_affinity::set_for_current(first);
    }
}

/// Pins the calling thread to the last processor that it may use.
fn pin_to_last() {
    if let Some(last) = core_affinity::get_core_ids().and_then(|cores| cores.last().copied()) {
        core_affinity::set_for_current(last);
    }
}
