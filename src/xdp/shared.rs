//! What the two ends of a ring touch, in the types of the language. loom has its own for each of
//! them (loom/src/shared.rs), by which it sees every access.

use std::cell::UnsafeCell;
pub(super) use std::sync::atomic::{AtomicU32, Ordering};

pub(super) use crate::net::memory::Memory;

/// Where an entry lies: one end writes it, then the other reads it.
#[repr(transparent)]
pub(super) struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    /// # Safety
    /// The other end does not touch it meanwhile.
    #[inline]
    pub unsafe fn write(&self, entry: T) {
        // SAFETY: nobody else has it, says the caller.
        unsafe { self.0.get().write(entry) }
    }

    /// # Safety
    /// The other end does not write it meanwhile, and what it wrote is a value.
    #[inline]
    pub unsafe fn read(&self) -> T {
        // SAFETY: nobody else has it, says the caller.
        unsafe { self.0.get().read() }
    }
}
