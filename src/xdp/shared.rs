//! The types that both ends of a ring access. loom has replacements (loom/src/shared.rs) with which
//! it sees every access.

use std::cell::UnsafeCell;
pub(super) use std::sync::atomic::{AtomicU32, Ordering};

pub(super) use crate::net::memory::Memory;

/// The slot of an entry: one end writes it, then the other reads it.
#[repr(transparent)]
pub(super) struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    /// # Safety
    /// The other end must not access it at the same time.
    #[inline]
    pub unsafe fn write(&self, entry: T) {
        // SAFETY: the caller has exclusive access.
        unsafe { self.0.get().write(entry) }
    }

    /// # Safety
    /// The other end must not write it at the same time, and must have written a valid value.
    #[inline]
    pub unsafe fn read(&self) -> T {
        // SAFETY: the caller excludes writers.
        unsafe { self.0.get().read() }
    }
}
