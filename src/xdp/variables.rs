//! Variables that a program in the kernel reads while user space writes them, through a mapping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::net::memory::Memory;

/// One 64-bit variable of a program.
#[derive(Debug, Clone)]
pub(crate) struct SharedWord {
    variables: Arc<Memory>,
    offset: usize,
}

impl SharedWord {
    /// The variable at that offset of a program's mapped variables.
    pub fn new(variables: &Arc<Memory>, offset: usize) -> Self {
        Self { variables: variables.clone(), offset }
    }

    /// The program sees `value` from now on.
    pub fn store(&self, value: u64) {
        if let Some(word) = self.get() {
            word.store(value, Ordering::Release);
        }
    }

    pub fn load(&self) -> u64 {
        self.get().map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn get(&self) -> Option<&AtomicU64> {
        let place = self.variables.at::<AtomicU64>(self.offset, 1)?;
        // SAFETY: within the mapping, as `at` checked, which lives as long as `self`; only ever
        // read or written as a whole word.
        Some(unsafe { place.as_ref() })
    }
}

/// The Ethernet address by which a program recognises packets for its interface.
#[derive(Debug, Clone)]
pub struct Station(SharedWord);

impl Station {
    pub(crate) fn new(word: SharedWord) -> Self {
        Self(word)
    }

    /// Changes it to `mac`.
    pub fn set(&self, [a, b, c, d, e, f]: [u8; 6]) {
        self.0.store(u64::from_ne_bytes([a, b, c, d, e, f, 0, 0]));
    }
}
