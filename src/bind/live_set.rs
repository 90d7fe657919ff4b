//! Which addresses are live at the moment, for engines that have no steering program to tell them.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::Timed;
use crate::address::mt6d::window;

/// Addresses, each entered for a time step, of which those of the window around the current step are live. Of one that is entered
/// for two steps the newer counts.
#[derive(Default)]
pub struct LiveSet {
    step: AtomicU64,
    entered: RwLock<HashMap<Ipv6Addr, u64>>,
}

impl LiveSet {
    /// Whether `address` is live.
    #[inline]
    #[must_use]
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let entered = self.entered.read().unwrap_or_else(PoisonError::into_inner);
        entered.get(&address).is_some_and(|step| window(self.step.load(Ordering::Acquire)).contains(step))
    }

    /// Has it be `step`.
    pub(super) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Release);
    }

    /// Takes those out that are entered for the step that they expire with.
    pub(super) fn expire(&self, expired: &[Timed]) {
        let mut entered = self.entered.write().unwrap_or_else(PoisonError::into_inner);
        for Timed { step, addresses } in expired {
            for address in addresses {
                if entered.get(address) == Some(step) {
                    entered.remove(address);
                }
            }
        }
    }

    /// Enters them.
    pub(super) fn enter(&self, fresh: &[Timed]) {
        let mut entered = self.entered.write().unwrap_or_else(PoisonError::into_inner);
        for Timed { step, addresses } in fresh {
            for address in addresses {
                let newest = entered.entry(*address).or_insert(*step);
                *newest = (*newest).max(*step);
            }
        }
    }
}

impl fmt::Debug for LiveSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSet").field("step", &self.step).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_window_are_live_and_no_others() {
        let set = LiveSet::default();
        let of = |step: u64| Timed { step, addresses: vec![Ipv6Addr::from_bits(step.into())] };
        let live = || (0..20).filter(|step| set.contains(of(*step).addresses[0])).collect::<Vec<_>>();
        set.enter(&[of(8), of(9), of(10), of(11), of(12)]);
        set.set_step(10);
        assert_eq!(live(), [9, 10, 11]);
        set.set_step(11);
        assert_eq!(live(), [10, 11, 12]);
        // The same address in two steps: the newer has it, whichever goes and comes first.
        let again = Timed { step: 13, ..of(10) };
        set.enter(std::slice::from_ref(&again));
        set.enter(&[of(10)]);
        set.expire(&[of(10)]);
        set.set_step(12);
        assert_eq!(live(), [10, 11, 12]);
        set.expire(&[again]);
        assert_eq!(live(), [11, 12]);
    }
}
