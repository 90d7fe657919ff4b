//! Tests of the timed table.

use loom::sync::Arc;
use loom::thread;

use crate::every_order;
use crate::shared::{AtomicU64, Ordering};
use crate::timed::{PARTS, TableLayout};

/// The smallest possible table, and the current step.
struct Table {
    layout: TableLayout,
    words: Vec<AtomicU64>,
    step: AtomicU64,
}

impl Table {
    fn new(step: u64) -> Self {
        let layout = TableLayout::new(0);
        let words = (0..layout.words()).map(|_| AtomicU64::new(0)).collect();
        Self { layout, words, step: AtomicU64::new(step) }
    }

    fn enter(&self, step: u64, identifier: u64) {
        assert!(self.layout.enter(&self.words, step, identifier), "no space");
    }

    /// Whether all entries are in one bucket.
    fn is_one_bucket(&self) -> bool {
        let heads = self.words.iter().step_by(8).map(|head| head.load(Ordering::Relaxed));
        heads.filter(|head| *head != 0).count() == 1
    }

    fn contains(&self, step: u64, identifier: u64) -> bool {
        self.layout.contains(&self.words, step, identifier)
    }

    /// The same decision as in the steering program and `LiveSet`.
    fn is_live(&self, identifier: u64) -> bool {
        let step = self.step.load(Ordering::Acquire);
        (step - 1..=step + 1).any(|step| self.contains(step, identifier))
    }
}

/// Identifiers in the same bucket.
const ONE: u64 = 1;
const OTHER: u64 = 22;

const STEP: u64 = 1000;

/// The writer enters an identifier while another thread searches for it, first for the step that
/// had the bucket before.
pub fn no_identifier_for_a_step_it_was_not_entered_for() {
    every_order(move || {
        let table = Arc::new(Table::new(STEP));
        table.enter(STEP, ONE);
        let writer = thread::spawn({
            let table = table.clone();
            move || table.enter(STEP + PARTS, OTHER)
        });
        assert!(!table.contains(STEP, OTHER), "entered for another step");
        assert!(!table.contains(STEP + PARTS, ONE), "of a step that has gone");
        writer.join().unwrap();
        assert!(table.contains(STEP + PARTS, OTHER) && !table.contains(STEP, ONE));
    });
}

/// While the bucket fills, its entries are still found.
pub fn what_is_entered_stays() {
    every_order(move || {
        let table = Arc::new(Table::new(STEP));
        table.enter(STEP, ONE);
        let writer = thread::spawn({
            let table = table.clone();
            move || table.enter(STEP, OTHER)
        });
        let found = table.contains(STEP, OTHER);
        assert!(table.contains(STEP, ONE));
        assert!(!found || table.contains(STEP, OTHER), "found once, found again");
        writer.join().unwrap();
        assert!(table.is_one_bucket());
    });
}

/// The step advances, and addresses beyond the window are entered. None of them is live, however
/// slow a reader of the old window is.
pub fn none_is_live_ahead_of_its_step() {
    every_order(move || {
        let table = Arc::new(Table::new(STEP));
        table.enter(STEP - 1, ONE);
        table.enter(STEP, ONE);
        let writer = thread::spawn({
            let table = table.clone();
            move || {
                table.step.store(STEP + 1, Ordering::Release);
                table.enter(STEP + 3, OTHER);
            }
        });
        assert!(!table.is_live(OTHER), "two steps early");
        assert!(table.is_live(ONE), "in both windows");
        writer.join().unwrap();
    });
}
