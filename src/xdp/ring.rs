//! The rings that user space and the kernel share: single producer, single consumer, a power of two
//! of entries.
//!
//! ```text
//!   fill        user   ──frames to receive into──► kernel
//!   rx          kernel ──frames received─────────► user
//!   tx          user   ──frames to send──────────► kernel
//!   completion  kernel ──frames that were sent───► user
//!
//!   producer ─┐ counts what was put in, only up, wraps at 2^32
//!   consumer ─┘ counts what was taken out
//!   entry of count c is at c & (size - 1); full when they differ by size
//! ```
//!
//! The layout is the kernel's (Documentation/networking/af_xdp.rst). Each side owns its own
//! counter, publishes it with a release store after it has touched the entries, and reads the
//! other's with an acquire load before it does: that pairing is all the synchronisation there is.
//!
//! A ring does not know whether the kernel is on the other side: [`pair`] builds one over plain
//! memory with both ends in user space, which is how tests and benches run the very code that
//! production runs. loom/ runs this file through the orders that two threads may come in.

use std::ptr::NonNull;
use std::sync::Arc;

use super::shared::{AtomicU32, Memory, Ordering, Slot};

/// Where a ring lies in its memory: byte offsets of its counters, flags and first entry, as
/// XDP_MMAP_OFFSETS gives them.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingLayout {
    pub producer: usize,
    pub consumer: usize,
    pub flags: usize,
    pub entries: usize,
}

/// What a ring may carry: any bit pattern is a value, since the other side writes it.
///
/// # Safety
/// Implementors are plain data without padding that anything may be read from.
pub(super) unsafe trait Entry: Copy + 'static {}

// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: a u64 and two u32, without padding.
unsafe impl Entry for libc::xdp_desc {}

/// The shared part, seen from one end.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<Slot<T>>,
    mask: u32,
    /// Keeps what the pointers point to mapped.
    _memory: Arc<Memory>,
}

// SAFETY: the pointers lead into `_memory`, which goes along; the counters are atomic, and an entry
// is touched by one end at a time, which the counters arrange.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// A ring of `size` entries, a power of two, over `memory`; `None` when the layout does not fit
    /// into it.
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
        // SAFETY: masked, so within the `size` entries that `new` checked to lie in `_memory`.
        let place = unsafe { self.entries.add((count & self.mask) as usize) };
        // SAFETY: as above; a slot may be shared with the kernel.
        unsafe { place.as_ref() }
    }
}

/// How full a ring is, readable while its ends work on it.
#[derive(Debug)]
pub(super) struct Level {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    size: u32,
    /// Keeps what the pointers point to mapped.
    _memory: Arc<Memory>,
}

// SAFETY: as for `Ring`; there are only the counters, and they are only read.
unsafe impl Send for Level {}

impl Level {
    /// Entries that were put in and not taken out, as far as each end has said so.
    pub fn read(&self) -> u32 {
        // SAFETY: points to a counter within `_memory`, checked by `Ring::new`; atomics may be
        // shared with the kernel.
        let consumer = unsafe { self.consumer.as_ref() }.load(Ordering::Relaxed);
        // SAFETY: as above.
        let producer = unsafe { self.producer.as_ref() }.load(Ordering::Relaxed);
        // Read one after the other: what was put in between may be more than there is room for.
        producer.wrapping_sub(consumer).min(self.size)
    }

    /// Entries that were ever put in, modulo 2^32 and from wherever the counter began.
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
    /// How many the other end had taken when last looked at: looking costs a shared cache line.
    taken: u32,
}

impl<T: Entry> Producer<T> {
    pub fn new(memory: &Arc<Memory>, layout: &RingLayout, size: u32) -> Option<Self> {
        let ring = Ring::new(memory, layout, size)?;
        let next = ring.producer().load(Ordering::Relaxed);
        let taken = ring.consumer().load(Ordering::Acquire);
        Some(Self { ring, next, published: next, taken })
    }

    /// A way to see how full the ring is.
    pub fn level(&self) -> Level {
        self.ring.level()
    }

    /// How many entries have room, at least `wanted` unless the ring is fuller than that.
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

    /// Puts `entry` in; gives it back when the ring is full. The other end sees it after
    /// [`publish`](Self::publish).
    #[inline]
    pub fn push(&mut self, entry: T) -> Result<(), T> {
        if self.room(1) == 0 {
            return Err(entry);
        }
        // SAFETY: within the ring, and not published, so the other end does not look at it.
        unsafe { self.ring.entry(self.next).write(entry) };
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Lets the other end see all that was put in.
    #[inline]
    pub fn publish(&mut self) {
        // Not without need: the store would take the cache line from the other end.
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

    /// Whether the kernel asks to be woken before it looks at this ring again
    /// (XDP_USE_NEED_WAKEUP).
    #[inline]
    pub fn needs_wakeup(&self) -> bool {
        self.ring.flags().load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

/// The end that takes entries out.
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// How many were taken out, given back or not.
    next: u32,
    /// How many places the other end may use again.
    released: u32,
    /// How many the other end had put in when last looked at.
    put: u32,
}

impl<T: Entry> Consumer<T> {
    pub fn new(memory: &Arc<Memory>, layout: &RingLayout, size: u32) -> Option<Self> {
        let ring = Ring::new(memory, layout, size)?;
        let next = ring.consumer().load(Ordering::Relaxed);
        let put = ring.producer().load(Ordering::Acquire);
        Some(Self { ring, next, released: next, put })
    }

    /// A way to see how full the ring is.
    pub fn level(&self) -> Level {
        self.ring.level()
    }

    /// Takes the oldest entry. Its place is free for the other end after
    /// [`release`](Self::release).
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.next == self.put {
            self.put = self.ring.producer().load(Ordering::Acquire);
            if self.next == self.put {
                return None;
            }
        }
        // SAFETY: within the ring, and published by the other end, which does not touch it until it
        // is released.
        let entry = unsafe { self.ring.entry(self.next).read() };
        self.next = self.next.wrapping_add(1);
        Some(entry)
    }

    /// Takes the oldest entry of those that were there when last looked, without looking again.
    #[inline]
    pub fn pop_known(&mut self) -> Option<T> {
        if self.next == self.put { None } else { self.pop() }
    }

    /// Gives the places of all entries taken back to the other end.
    #[inline]
    pub fn release(&mut self) {
        if self.released != self.next {
            self.released = self.next;
            self.ring.consumer().store(self.next, Ordering::Release);
        }
    }
}

/// Both ends of a ring of `size` entries (a power of two) over plain memory, whose counters start
/// at `start`.
pub(super) fn pair<T: Entry>(size: u32, start: u32) -> Option<(Producer<T>, Consumer<T>)> {
    // one cache line each, as in the kernel, so that the ends do not disturb each other
    const LINE: usize = 64;
    let layout = RingLayout { producer: 0, consumer: LINE, flags: 2 * LINE, entries: 3 * LINE };
    let memory = Arc::new(Memory::anonymous(layout.entries + size as usize * size_of::<T>()).ok()?);
    let ring = Ring::<T>::new(&memory, &layout, size)?;
    ring.producer().store(start, Ordering::Relaxed);
    ring.consumer().store(start, Ordering::Relaxed);
    // In memory as in copy mode: nothing moves until it is asked to.
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
        /// Against a queue of what is visible and counts of what is not, from any starting counter,
        /// so that it wraps.
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
