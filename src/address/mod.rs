//! WHICH addresses: a prefix; the pool of addresses that server and client derive from the same flags; the moving ones of MT6D,
//! which follow from a key and the time; and the prefixes of those who may ask.
//!
//! Pure: no I/O, no clock, no state. It builds and is tested anywhere.

pub mod mt6d;
mod pool;
mod prefix;
mod sources;

use std::net::Ipv6Addr;
use std::thread;

pub use pool::{Pool, PoolError};
pub use prefix::{Prefix, PrefixError};
pub use sources::Sources;

/// Fills `addresses` with `address(0)`, `address(1)`, …, in equal parts on `threads` threads at once.
pub fn fill(addresses: &mut [Ipv6Addr], threads: usize, address: impl Fn(u64) -> Ipv6Addr + Sync) {
    let part = |start: usize, places: &mut [Ipv6Addr]| {
        for (index, place) in (start as u64..).zip(places) {
            *place = address(index);
        }
    };
    let size = addresses.len().div_ceil(threads.max(1)).max(1);
    let mut parts = addresses.chunks_mut(size).enumerate();
    // The first part is the caller's: one thread, or little to do, costs no thread.
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

    proptest! {
        #[test]
        fn threads_share_the_work_and_leave_nothing_out(count in 0usize..300, threads in 0usize..9) {
            let mut addresses = vec![Ipv6Addr::LOCALHOST; count];
            fill(&mut addresses, threads, |index| Ipv6Addr::from_bits(index.into()));
            prop_assert!(addresses.iter().enumerate().all(|(index, place)| place.to_bits() == index as u128));
        }
    }
}
