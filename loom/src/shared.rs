//! What src/xdp/shared.rs and `shared` of src/address/mod.rs are to the package, in loom's types.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ptr::NonNull;

use loom::cell::UnsafeCell;
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Where an entry lies. loom fails the test if both ends touch it and no order says which is first.
pub(crate) struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    /// # Safety
    /// None: loom checks what the package's own promises.
    pub unsafe fn write(&self, entry: T) {
        // SAFETY: loom has just checked that nobody else has it.
        self.0.with_mut(|place| unsafe { place.write(entry) });
    }

    /// # Safety
    /// As for [`write`](Self::write).
    pub unsafe fn read(&self) -> T {
        // SAFETY: loom has just checked that nobody writes it.
        self.0.with(|place| unsafe { place.read() })
    }
}

/// The memory of one ring, as `pair` of src/xdp/ring.rs lays it out: each part an object that loom
/// knows.
#[derive(Debug)]
pub(crate) struct Memory(BTreeMap<usize, Box<dyn Any>>);

// SAFETY: as of the package's own; loom checks each access.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Where the parts of a ring are.
pub(crate) const FLAGS: usize = 128;
const COUNTERS: [usize; 3] = [0, 64, FLAGS];
const ENTRIES: usize = 192;

impl Memory {
    /// For a ring of `u64`.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        let slots = (length - ENTRIES) / size_of::<u64>();
        let slots: Vec<_> = (0..slots).map(|_| Slot(UnsafeCell::new(0_u64))).collect();
        let counter = |offset| (offset, Box::new(vec![AtomicU32::new(0)]) as Box<dyn Any>);
        let mut parts = BTreeMap::from(COUNTERS.map(counter));
        parts.insert(ENTRIES, Box::new(slots));
        Ok(Self(parts))
    }

    pub fn at<T: 'static>(&self, offset: usize, count: usize) -> Option<NonNull<T>> {
        let part = self.0.get(&offset)?.downcast_ref::<Vec<T>>()?;
        (count <= part.len()).then(|| NonNull::from(part.as_slice()).cast())
    }
}
