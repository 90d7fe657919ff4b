//! The rings that user space and the kernel share: single producer, single consumer, a power of two
//! of entries.
//!
//! ```text
//!   fill        user   ──frames to receive into──► kernel
//!   rx          kernel ──frames received─────────► user
//!   tx          user   ──frames to send──────────► kernel
//!   completion  kernel ──frames that were sent───► user
//!
//!   producer ─┐ counts entries put in; only grows, wraps at 2^32
//!   consumer ─┘ counts entries taken out
//!   entry of count c is at c & (size - 1); full when they differ by size
//! ```
//!
//! The layout is the kernel's (Documentation/networking/af_xdp.rst). Each side owns its own counter
//! and publishes it with a release store after it accessed the entries. It reads the other's
//! counter with an acquire load before it accesses them. There is no other synchronisation.
//!
//! A ring does not know whether the kernel is on the other side. [`pair`] builds one over plain
//! memory with both ends in user space, so tests and benches run the production code. loom/ runs
//! this file through all orders of two threads.

use std::ptr::NonNull;
use std::sync::Arc;

use super::shared::{AtomicU32, Memory, Ordering, Slot};

/// Where a ring is in its memory: byte offsets of its counters, flags and first entry, as in
/// XDP_MMAP_OFFSETS.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingLayout {
    pub producer: usize,
    pub consumer: usize,
    pub flags: usize,
    pub entries: usize,
}

/// An entry of a ring. The other side writes it, so every bit pattern must be valid.
///
/// # Safety
/// Implementors are plain data without padding, and valid for every bit pattern.
pub(super) unsafe trait Entry: Copy + 'static {}

// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: a u64 and two u32, without padding.
unsafe impl Entry for libc::xdp_desc {}

/// The shared memory of a ring, seen from one end.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<Slot<T>>,
    mask: u32,
    /// Keeps the memory behind the pointers mapped.
    _memory: Arc<Memory>,
}

// SAFETY: the pointers lead into `_memory`, which moves along. The counters are atomic, and ensure
// that only one end accesses an entry at a time.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// A ring of `size` entries, a power of two, over `memory`; `None` if the layout does not fit.
    fn new(memory: &Arc<Memory>, layout: &RingLayout, size: u32) -> Option<Self> {
        if !size.is_power_of_two() {
            return None;
        }
        Some(Self {
            producer: memory.at(layout.producer, 1)?,
            consumer: memory.at(layout.consumer, 1)?,
            flags: memory.at(layout.flags, 1)?,
            entries: memory.at(layout.entries, size as usize)?,
            mask: size - 1,
            _memory: memory.clone(),
        })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: points to a counter within `_memory`, checked by `new`; atomics may be shared
        // with the kernel.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn flags(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.flags.as_ref() }
    }

    #[inline]
    fn entry(&self, count: u32) -> &Slot<T> {
        // SAFETY: masked, so within the `size` entries that `new` checked against `_memory`.
        let place = unsafe { self.entries.add((count & self.mask) as usize) };
        // SAFETY: as above; a slot may be shared with the kernel.
        unsafe { place.as_ref() }
    }
}

/// The fill level of a ring, readable while both ends use it.
#[derive(Debug)]
pub(super) struct Level {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    size: u32,
    /// Keeps the memory behind the pointers mapped.
    _memory: Arc<Memory>,
}

// SAFETY: as for `Ring`; it only reads the counters.
unsafe impl Send for Level {}

impl Level {
    /// Entries put in and not taken out, as published by each end.
    pub fn read(&self) -> u32 {
        // SAFETY: points to a counter within `_memory`, checked by `Ring::new`; atomics may be
        // shared with the kernel.
        let consumer = unsafe { self.consumer.as_ref() }.load(Ordering::Relaxed);
        // SAFETY: as above.
        let producer = unsafe { self.producer.as_ref() }.load(Ordering::Relaxed);
        // The counters are read one after the other, so the difference may exceed the size.
        producer.wrapping_sub(consumer).min(self.size)
    }

    /// Entries ever put in, modulo 2^32, from the counter's initial value.
    pub fn put(&self) -> u32 {
        // SAFETY: points to a counter within `_memory`, checked by `Ring::new`; atomics may be
        // shared with the kernel.
        unsafe { self.producer.as_ref() }.load(Ordering::Relaxed)
    }
}

impl<T: Entry> Ring<T> {
    fn level(&self) -> Level {
        Level {
            producer: self.producer,
            consumer: self.consumer,
            size: self.mask + 1,
            _memory: self._memory.clone(),
        }
    }
}

/// The end that puts entries in.
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// How many were put in, published or not.
    next: u32,
    /// How many the other end may see.
    published: u32,
    /// How many the other end had taken at the last check: checking costs a shared cache line.
    taken: u32,
}

impl<T: Entry> Producer<T> {
    pub fn new(memory: &Arc<Memory>, layout: &RingLayout, size: u32) -> Option<Self> {
        let ring = Ring::new(memory, layout, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let taken = ring.consumer().load(Ordering::Acquire);
        Some(Self { ring, next, published: next, taken })
    }

    /// A reader of the ring's fill level.
    pub fn level(&self) -> Level {
        self.ring.level()
    }

    /// Free entries. Checks the other end's counter only if fewer than `wanted` are known to be
    /// free.
    #[inline]
    pub fn room(&mut self, wanted: u32) -> u32 {
        let size = self.ring.mask + 1;
        let room = size.wrapping_sub(self.next.wrapping_sub(self.taken));
        if room >= wanted {
            return room;
        }
        self.taken = self.ring.consumer().load(Ordering::Acquire);
        size.wrapping_sub(self.next.wrapping_sub(self.taken))
    }

    /// Puts `entry` in, or returns it if the ring is full. The other end sees it after
    /// [`publish`](Self::publish).
    #[inline]
    pub fn push(&mut self, entry: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(entry);
        }
        // SAFETY: within the ring, and not published, so the other end does not access it.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Lets the other end see all entries put in.
    #[inline]
    pub fn publish(&mut self) {
        // Only if needed: the store takes the cache line from the other end.
        if self.published != self.next {
            self.published = self.next;
            self.ring.producer().store(self.next, Ordering::Release);
        }
    }

    /// How many entries the other end has not taken yet.
    #[inline]
    pub fn pending(&mut self) -> u32 {
        self.taken = self.ring.consumer().load(Ordering::Acquire);
        self.next.wrapping_sub(self.taken)
    }

    /// Whether the kernel wants a wake-up before it looks at this ring again (XDP_USE_NEED_WAKEUP).
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// The end that takes entries out.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// How many were taken out, released or not.
    next: u32,
    /// How many entries the other end may reuse.
    released: u32,
    /// How many the other end had put in at the last check.
    put: u32,
}

impl<T: Entry> Consumer<T> {
    pub fn new(memory: &Arc<Memory>, layout: &RingLayout, size: u32) -> Option<Self> {
        let ring = Ring::new(memory, layout, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        let put = ring.producer().load(Ordering::Acquire);
        Some(Self { ring, next, released: next, put })
    }

    /// A reader of the ring's fill level.
    pub fn level(&self) -> Level {
        self.ring.level()
    }

    /// Takes the oldest entry. The other end may reuse it after [`release`](Self::release).
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.next == self.put {
            self.put = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.put {
                return None;
            }
        }
        // SAFETY: within the ring, and published by the other end, which does not access it until
        // it is released.
        let entry = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Takes the oldest entry known from the last check, without checking again.
    #[inline]
    pub fn pop_known(&mut self) -> Option<T> {
        if self.next == self.put { None } else { self.pop() }
    }

    /// Lets the other end reuse all entries taken.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.next {
            self.released = self.next;
            self.ring.consumer().store(self.next, Ordering::Release);
        }
    }
}

/// Both ends of a ring of `size` entries (a power of two) over plain memory, with counters starting
/// at `start`.
pub(super) fn pair<T: Entry>(size: u32, start: u32) -> Option<(Producer<T>, Consumer<T>)> {
    // one cache line each, as in the kernel, to avoid false sharing
    const LINE: usize = 64;
    let layout = RingLayout { producer: 0, consumer: LINE, flags: 2 * LINE, entries: 3 * LINE };
    let memory = Arc::new(Memory::anonymous(layout.entries + size as usize * size_of::<T>()).ok()?);
    let ring = Ring::<T>::new(&memory, &layout, size)?;
    ring.producer().store(start, Ordering::Relaxed);
    ring.consumer().store(start, Ordering::Relaxed);
    // As in copy mode, nothing moves without a wake-up.
    ring.flags().store(libc::XDP_RING_NEED_WAKEUP, Ordering::Relaxed);
    Some((Producer::new(&memory, &layout, size)?, Consumer::new(&memory, &layout, size)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64),
        Publish,
        Pop,
        Release,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => any::<u64>().prop_map(Step::Push),
            1 => Just(Step::Publish),
            3 => Just(Step::Pop),
            1 => Just(Step::Release),
        ]
    }

    proptest! {
        /// Compares a ring with a queue of visible entries and counts of hidden ones, from any
        /// starting counter, so that it wraps.
        #[test]
        fn a_ring_is_a_bounded_queue(
            start in prop_oneof![any::<u32>(), (u32::MAX - 20)..=u32::MAX],
            order in 0u32..5,
            steps in proptest::collection::vec(step(), 0..400),
        ) {
            let size = 1 << order;
            let (mut producer, mut consumer) = pair::<u64>(size, start).unwrap();
            let (mut hidden, mut visible, mut unreleased) = (VecDeque::new(), VecDeque::new(), 0);
            for step in steps {
                let held = (hidden.len() + visible.len() + unreleased) as u32;
                prop_assert_eq!(producer.room(size), size - held);
                match step {
                    Step::Push(value) => {
                        prop_assert_eq!(producer.push(value).is_ok(), held < size);
                        if held < size {
                            hidden.push_back(value);
                        }
                    }
                    Step::Publish => {
                        producer.publish();
                        visible.append(&mut hidden);
                    }
                    Step::Pop => {
                        let expected = visible.pop_front();
                        unreleased += usize::from(expected.is_some());
                        prop_assert_eq!(consumer.pop(), expected);
                    }
                    Step::Release => {
                        consumer.release();
                        unreleased = 0;
                    }
                }
            }
        }
    }

    #[test]
    fn two_threads_hand_over_everything_in_order() {
        const COUNT: u64 = if cfg!(miri) { 500 } else { 200_000 };
        let (mut producer, mut consumer) = pair::<u64>(64, u32::MAX - 7).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for value in 0..COUNT {
                    while producer.push(value).is_err() {
                        std::thread::yield_now();
                    }
                    producer.publish();
                }
            });
            for expected in 0..COUNT {
                let value = loop {
                    match consumer.pop() {
                        Some(value) => break value,
                        None => std::thread::yield_now(),
                    }
                };
                consumer.release();
                assert_eq!(value, expected);
            }
        });
    }

    #[test]
    fn a_layout_that_does_not_fit_is_refused() {
        assert!(pair::<u64>(3, 0).is_none(), "not a power of two");
        let memory = Arc::new(Memory::anonymous(4096).unwrap());
        let length = 4096;
        let layout = RingLayout { producer: 0, consumer: 64, flags: 128, entries: length - 8 };
        assert!(Producer::<u64>::new(&memory, &layout, 1).is_some());
        assert!(Producer::<u64>::new(&memory, &layout, 2).is_none());
        assert!(
            Producer::<u64>::new(&memory, &RingLayout { entries: length, ..layout }, 1).is_none()
        );
        assert!(
            Producer::<u64>::new(&memory, &RingLayout { flags: 3, ..layout }, 1).is_none(),
            "not aligned"
        );
    }
}
