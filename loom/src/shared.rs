//! Replaces src/xdp/shared.rs and `shared` of src/address/mod.rs with loom's types.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::ptr::NonNull;

use loom::cell::UnsafeCell;
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// The slot of an entry. loom fails the test if both ends access it without an order between them.
pub(crate) struct Slot<T>(UnsafeCell<T>);

impl<T: Copy> Slot<T> {
    /// # Safety
    /// None: loom checks what callers in the package must promise.
    pub unsafe fn write(&self, entry: T) {
        // SAFETY: loom has just checked that access is exclusive.
        self.0.with_mut(|place| unsafe { place.write(entry) });
    }

    /// # Safety
    /// As for [`write`](Self::write).
    pub unsafe fn read(&self) -> T {
        // SAFETY: loom has just checked that nobody writes it.
        self.0.with(|place| unsafe { place.read() })
    }
}

/// The memory of one ring in the layout of `pair` in src/xdp/ring.rs. Each part is a separate
/// object that loom tracks.
#[derive(Debug)]
pub(crate) struct Memory(BTreeMap<usize, Box<dyn Any>>);

// SAFETY: as for the package's own type; loom checks each access.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// Offsets of a ring's parts.
pub(crate) const FLAGS: usize = 128;
const COUNTERS: [usize; 3] = [0, 64, FLAGS];
const ENTRIES: usize = 192;

impl Memory {
    /// Memory for a ring of `u64`.
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
