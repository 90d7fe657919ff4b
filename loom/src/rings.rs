//! Tests of the rings.

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::sync::Notify;
use loom::sync::atomic::fence;
use loom::thread;

use crate::every_order;
use crate::ring::{Consumer, Producer, RingLayout, pair};
use crate::shared::{AtomicU32, FLAGS, Memory, Ordering};

const NEED_WAKEUP: u32 = libc::XDP_RING_NEED_WAKEUP;

/// Puts `entry` in once there is space.
fn push(producer: &mut Producer<u64>, entry: u64) {
    while producer.push(entry).is_err() {
        producer.publish();
        thread::yield_now();
    }
}

/// Takes the next entry once there is one.
fn pop(consumer: &mut Consumer<u64>) -> u64 {
    loop {
        match consumer.pop() {
            Some(entry) => return entry,
            None => {
                consumer.release();
                thread::yield_now();
            }
        }
    }
}

/// A ring of `size` hands over `count` entries, published and released `batch` at a time: each
/// once, in order, and intact. Its counters wrap on the way.
pub fn hand_over(size: u32, count: u64, batch: u64) {
    every_order(move || {
        let (mut producer, mut consumer) = pair::<u64>(size, u32::MAX).unwrap();
        let kernel = thread::spawn(move || {
            for entry in 1..=count {
                push(&mut producer, entry);
                if entry % batch == 0 {
                    producer.publish();
                }
            }
            producer.publish();
        });
        for entry in 1..=count {
            assert_eq!(pop(&mut consumer), entry);
            if entry % batch == 0 {
                consumer.release();
            }
        }
        assert_eq!(consumer.pop(), None);
        kernel.join().unwrap();
    });
}

struct Frames(Vec<UnsafeCell<u64>>);

// SAFETY: loom checks each access.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

/// A frame goes to the kernel through one ring and comes back through another. The kernel reads
/// what was written before, and nobody writes the frame until it is back. Each frame is in one
/// place.
pub fn send_and_complete(frames: usize, sent: usize) {
    every_order(move || {
        let memory = Arc::new(Frames((0..frames).map(|_| UnsafeCell::new(0)).collect()));
        let (mut tx, mut kernel_tx) = pair::<u64>(2, u32::MAX).unwrap();
        let (mut kernel_completion, mut completion) = pair::<u64>(2, u32::MAX).unwrap();
        let kernel = thread::spawn({
            let memory = memory.clone();
            move || {
                for number in 0..sent as u64 {
                    let frame = pop(&mut kernel_tx);
                    // SAFETY: loom has just checked that nobody writes it.
                    let bytes = memory.0[frame as usize].with(|bytes| unsafe { *bytes });
                    assert_eq!(bytes, number, "as it was when it was sent");
                    kernel_tx.release();
                    push(&mut kernel_completion, frame);
                    kernel_completion.publish();
                }
            }
        });
        let mut free: Vec<u64> = (0..frames as u64).collect();
        for number in 0..sent as u64 {
            let frame = free.pop().unwrap_or_else(|| pop(&mut completion));
            // SAFETY: loom has just checked that access is exclusive.
            memory.0[frame as usize].with_mut(|bytes| unsafe { *bytes = number });
            push(&mut tx, frame);
            tx.publish();
            completion.release();
        }
        while free.len() < frames {
            free.push(pop(&mut completion));
        }
        free.sort_unstable();
        assert!(free.iter().copied().eq(0..frames as u64), "each is back, once: {free:?}");
        kernel.join().unwrap();
    });
}

/// A kernel that sleeps on an empty ring is woken if the sender keeps checking. A driver sets the
/// flag, checks the ring once more, and sleeps. With `looks`, the sender checks only that many
/// times.
pub fn wake(looks: Option<usize>) {
    every_order(move || {
        let layout = RingLayout { producer: 0, consumer: 64, flags: FLAGS, entries: 192 };
        let memory = Arc::new(Memory::anonymous(192 + 2 * 8).unwrap());
        let mut tx = Producer::<u64>::new(&memory, &layout, 2).unwrap();
        let mut kernel_tx = Consumer::<u64>::new(&memory, &layout, 2).unwrap();
        let bell = Arc::new(Notify::new());
        let kernel = thread::spawn({
            let bell = bell.clone();
            let memory = memory.clone();
            move || {
                let flags = memory.at::<AtomicU32>(FLAGS, 1).unwrap();
                // SAFETY: within `memory`, which this thread keeps.
                let flags = unsafe { flags.as_ref() };
                flags.store(NEED_WAKEUP, Ordering::Relaxed);
                fence(Ordering::SeqCst);
                if kernel_tx.pop().is_none() {
                    bell.wait();
                    while kernel_tx.pop() != Some(7) {
                        bell.wait(); // woken without need
                    }
                }
                kernel_tx.release();
            }
        });
        tx.push(7).unwrap();
        tx.publish();
        let mut left = looks.unwrap_or(usize::MAX);
        while left > 0 && tx.pending() > 0 {
            if tx.needs_wakeup() {
                bell.notify();
                break;
            }
            left -= 1;
            thread::yield_now();
        }
        kernel.join().unwrap();
    });
}
