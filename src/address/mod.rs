//! WHICH addresses: prefixes, the pool that server and client derive from the same flags, the
//! moving addresses of MT6D, which follow from a key and the time, a client's identity, and the
//! allowed sources.
//!
//! Pure: no I/O, no clock, no state. It builds and runs its tests on any platform.

pub mod identity;
pub mod mt6d;
mod pool;
mod prefix;
mod secret;
mod sources;
#[doc(hidden)]
pub mod timed;

/// What [`timed`] shares between threads: loom has its own (loom/src/shared.rs).
mod shared {
    pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

use std::fmt;
use std::sync::Arc;
use std::thread;

use serde::{Deserialize, Serialize};

pub use identity::{Identity, IdentityError};
pub use pool::{Pool, PoolError};
pub use prefix::{Prefix, PrefixError};
pub use secret::{Secret, SecretError};
pub use sources::Sources;
#[doc(inline)]
pub use timed::Client;

/// The rules by which addresses move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Each client has its own address on the server, and a new one in each time step
    Mt6d,
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mt6d => f.pad("mt6d"),
        }
    }
}

/// The addresses of a service.
#[derive(Debug, Clone)]
pub enum Targets {
    /// Fixed addresses.
    Pool(Pool),
    /// Addresses that move with a schedule.
    Moving(Arc<mt6d::Timetable>),
}

impl Targets {
    /// The prefix that contains all of them.
    #[must_use]
    pub fn prefix(&self) -> Prefix {
        match self {
            Self::Pool(pool) => pool.prefix(),
            Self::Moving(timetable) => timetable.subnet().prefix(),
        }
    }

    /// The number of addresses that are live at a time.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Pool(pool) => pool.count(),
            Self::Moving(timetable) => mt6d::WINDOW * timetable.clients(),
        }
    }
}

impl From<Pool> for Targets {
    fn from(pool: Pool) -> Self {
        Self::Pool(pool)
    }
}

impl From<mt6d::Timetable> for Targets {
    fn from(timetable: mt6d::Timetable) -> Self {
        Self::Moving(Arc::new(timetable))
    }
}

/// Fills `places` with `value(0)`, `value(1)`, …, in equal parts on `threads` threads.
#[doc(hidden)]
pub fn fill<T: Send>(places: &mut [T], threads: usize, value: impl Fn(u64) -> T + Sync) {
    let part = |start: usize, places: &mut [T]| {
        for (index, place) in (start as u64..).zip(places) {
            *place = value(index);
        }
    };
    let size = places.len().div_ceil(threads.max(1)).max(1);
    let mut parts = places.chunks_mut(size).enumerate();
    // The caller fills the first part, so a single part starts no thread.
    let first = parts.next();
    thread::scope(|scope| {
        for (number, places) in parts {
            scope.spawn(move || part(number * size, places));
        }
        if let Some((_, places)) = first {
            part(0, places);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    proptest! {
        #[test]
        fn threads_share_the_work_and_leave_nothing_out(
            count in 0usize..300, threads in 0usize..9,
        ) {
            let mut addresses = vec![Ipv6Addr::LOCALHOST; count];
            fill(&mut addresses, threads, |index| Ipv6Addr::from_bits(index.into()));
            let mut places = addresses.iter().enumerate();
            prop_assert!(places.all(|(index, place)| place.to_bits() == index as u128));
        }
    }
}
