//! Addresses that are live as entries in the steering program's hash, or in its table of moving
//! addresses. The kernel does not own them, and the cost of one does not grow with their number.
//!
//! The program steers requests to live addresses, and Neighbour Solicitations for them, into the
//! engine's rings, and the engine answers both. It drops everything else sent to the prefix.

use std::net::Ipv6Addr;

use anyhow::{Result, bail};

use super::{Binder, Interrupted, Phases, Progress, Timed, Told, failed};
use crate::net::netlink::{Connection, Link};
use crate::xdp::LiveAddresses;

/// Addresses between two checks whether to continue: some 10 ms.
const STRIDE: usize = 64 * LiveAddresses::BATCH;

/// Clients whose addresses are entered in one go: some 20 µs.
const EXCHANGED: usize = 64;

/// Writes the entries.
pub(super) struct LiveMap {
    live: LiveAddresses,
    socket: Connection,
    index: u32,
    name: String,
}

impl LiveMap {
    pub fn new(link: &Link, live: LiveAddresses) -> Result<Self> {
        Ok(Self { live, socket: Connection::open()?, index: link.index, name: link.name.clone() })
    }

    /// Adds all addresses; if that fails or is stopped, none.
    fn add(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<()> {
        let mut bound = 0;
        for stride in addresses.chunks(STRIDE) {
            let added =
                if step(bound) { self.live.add(stride) } else { Err((0, Interrupted.into())) };
            match added {
                Ok(()) => bound += stride.len(),
                Err((more, why)) => {
                    bound += more;
                    let undone = self.live.remove(&addresses[..bound]);
                    return Err(failed(why, bound, addresses.len(), undone));
                }
            }
        }
        step(bound);
        Ok(())
    }

    /// Checks after adding, because the hash quickly tells whether it contains any of the kernel's
    /// few addresses.
    fn check(&mut self, addresses: &[Ipv6Addr]) -> Result<()> {
        for address in self.socket.addresses(self.index)? {
            if self.live.contains(address.ip)? && addresses.contains(&address.ip) {
                bail!("{} is on {} already", address.ip, self.name);
            }
        }
        Ok(())
    }
}

impl Binder for LiveMap {
    fn bind(&mut self, addresses: &[Ipv6Addr], step: &mut Progress) -> Result<Phases> {
        let mut phases = Phases::default();
        phases.time("add", || self.add(addresses, step))?;
        if let Err(why) = phases.time("check", || self.check(addresses)) {
            let undone = self.live.remove(addresses);
            return Err(failed(why, addresses.len(), addresses.len(), undone));
        }
        Ok(phases)
    }

    fn unbind(&mut self, addresses: &[Ipv6Addr], told: &mut Told) -> Result<Phases> {
        let mut phases = Phases::default();
        let mut gone = 0;
        phases.time("remove", || {
            let mut done = Ok(());
            for stride in addresses.chunks(STRIDE) {
                done = done.and(self.live.remove(stride));
                gone += stride.len();
                told(gone);
            }
            done
        })?;
        Ok(phases)
    }

    /// Expired addresses need no removal.
    fn exchange(&mut self, _expired: &[Timed], fresh: &[Timed]) -> Result<()> {
        for Timed { step, addresses, .. } in fresh {
            self.live.enter(addresses, *step)?;
        }
        Ok(())
    }

    fn ahead(&self) -> u64 {
        1
    }

    fn set_step(&mut self, step: u64) {
        self.live.set_step(step);
    }

    fn stride(&self) -> usize {
        EXCHANGED
    }

    fn kernel_memory(&self) -> Option<u64> {
        self.live.kernel_memory()
    }
}
