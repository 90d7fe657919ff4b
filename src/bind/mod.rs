//! MAKING ADDRESSES LIVE: what `address` chooses, an interface answers for.
//!
//! Touches the addresses of one interface, and only those that it put there itself. All or nothing: a [`Binder`] that
//! fails or is told to stop takes back what it did, and a [`Bound`] takes its addresses back when it goes. A run that is
//! killed cannot do so; the next one on that interface recognises what it left by its mark
//! ([`crate::netlink::OUR_ADDRESS_PROTOCOL`]) and removes it.

mod netlink;

use std::net::Ipv6Addr;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::netlink::Link;

/// A way to make addresses live on one interface, in the namespace in which it was made.
pub trait Binder {
    /// Makes all `addresses` live, besides those that are already.
    ///
    /// # Errors
    /// When one cannot be, is there already, or `stop` was set meanwhile. None of them is live then.
    fn bind(&mut self, addresses: &[Ipv6Addr], stop: &AtomicBool) -> Result<()>;

    /// Takes `addresses` back. Those that are gone already are no error.
    ///
    /// # Errors
    /// When the kernel refuses. It took back what it could.
    fn unbind(&mut self, addresses: &[Ipv6Addr]) -> Result<()>;
}

/// The ways there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Addresses of the kernel, one netlink message each, and each acknowledged before the next
    Netlink,
    /// The same, with many messages to a system call
    NetlinkBatch,
    /// The same while the link is down: the kernel joins no multicast groups until it is set up
    NetlinkDown,
    /// Leave the addresses to others
    None,
}

/// The binder for `method` on the interface `link`, which is in the namespace of the calling thread. What a killed run
/// left on it is removed first.
///
/// # Errors
/// When another process binds addresses of that interface, or the leftovers cannot be removed.
pub fn binder(method: Method, link: &Link) -> Result<Box<dyn Binder + Send>> {
    use netlink::Netlink;
    Ok(match method {
        Method::Netlink => Box::new(Netlink::new(link, 1)?),
        Method::NetlinkBatch => Box::new(Netlink::new(link, netlink::BATCH)?),
        Method::NetlinkDown => Box::new(Netlink::new(link, netlink::BATCH)?.while_down()?),
        Method::None => Box::new(Nothing),
    })
}

/// Addresses that are live until this goes.
pub struct Bound {
    binder: Box<dyn Binder + Send>,
    addresses: Vec<Ipv6Addr>,
}

/// Makes `addresses` live on the interface `link`, which is in the namespace of the calling thread.
///
/// # Errors
/// Those of [`binder`] and [`Binder::bind`]. None of the addresses is live then.
pub fn bind(method: Method, link: &Link, addresses: Vec<Ipv6Addr>, stop: &AtomicBool) -> Result<Bound> {
    let mut binder = binder(method, link)?;
    binder.bind(&addresses, stop)?;
    Ok(Bound { binder, addresses })
}

impl Bound {
    /// The addresses, as they were given.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv6Addr] {
        &self.addresses
    }

    /// Takes the addresses back. Dropping does the same, but cannot say that it failed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(mut self) -> Result<()> {
        let addresses = std::mem::take(&mut self.addresses);
        self.binder.unbind(&addresses)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // A destructor has nobody to tell; who wants to know calls `release`.
        let _ = self.binder.unbind(&self.addresses);
    }
}

/// For addresses that are live by other means.
struct Nothing;

impl Binder for Nothing {
    fn bind(&mut self, _: &[Ipv6Addr], _: &AtomicBool) -> Result<()> {
        Ok(())
    }

    fn unbind(&mut self, _: &[Ipv6Addr]) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn methods_have_one_name_in_flags_and_results() {
        for method in Method::value_variants() {
            let flag = method.to_possible_value().unwrap();
            assert_eq!(serde_json::to_value(method).unwrap(), flag.get_name());
        }
    }

    #[test]
    fn none_leaves_addresses_to_others() {
        let loopback = crate::netlink::link("lo").unwrap();
        let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x77);
        let bound = bind(Method::None, &loopback, vec![address], &AtomicBool::new(true)).unwrap();
        assert_eq!(bound.addresses(), [address]);
        bound.release().unwrap();
    }
}
