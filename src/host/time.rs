//! CLOCKS: the time of day, which somebody may set while a program runs, and clocks that nobody
//! sets.
//!
//! | clock | runs | tells |
//! |---|---|---|
//! | wall: `CLOCK_REALTIME` | as somebody, or NTP, sets it | the current step |
//! | steady: `CLOCK_BOOTTIME` | always, even in suspend | durations; checks the wall clock |
//! | awake: `CLOCK_MONOTONIC` | always, except in suspend | whether the machine was suspended |
//!
//! A jump is a change of the wall clock relative to the steady one between two readings. NTP
//! slewing does not count.

use std::thread;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// All clocks, read together.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Nanoseconds since 1970, by this machine's clock; 0 before that.
    pub wall: u64,
    /// Nanoseconds since boot.
    pub steady: u64,
    /// The same, without time spent in suspend.
    pub awake: u64,
    /// Nanoseconds between the first and the last of these readings.
    pub slack: u64,
}

/// Nanoseconds by which the wall clock may drift from the steady one without a jump. chrony slews
/// by up to 8.3 % (`maxslewrate`), which is 8.3 ms in the tenth of a second between two checks.
const SLEWED: u64 = 10_000_000;

/// Also tolerated: this share of the time between two readings, which matters if it is long. It is
/// twice the kernel's own limit (adjtimex(2)).
const SLEW: f64 = 0.001;

impl Moment {
    /// Time since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Duration {
        Duration::from_nanos(self.steady.saturating_sub(before.steady))
    }

    /// How much of that time the machine was suspended.
    #[must_use]
    pub fn suspended_since(&self, before: &Self) -> Duration {
        let awake = self.awake.saturating_sub(before.awake);
        self.since(before).saturating_sub(Duration::from_nanos(awake))
    }

    /// Nanoseconds by which the wall clock advanced more than the steady one since `before`;
    /// negative if it was set back.
    #[must_use]
    pub fn drift_since(&self, before: &Self) -> i64 {
        let wall = self.wall.wrapping_sub(before.wall) as i64;
        wall.wrapping_sub(self.steady.wrapping_sub(before.steady) as i64)
    }

    /// The same, if it exceeds slewing: somebody set the wall clock.
    #[must_use]
    pub fn jump_since(&self, before: &Self) -> Option<i64> {
        let drift = self.drift_since(before);
        let slewed = (self.since(before).as_nanos() as f64 * SLEW) as u64;
        let tolerated = SLEWED + slewed + self.slack + before.slack;
        (drift.unsigned_abs() > tolerated).then_some(drift)
    }
}

/// The clocks that timed code uses.
#[doc(hidden)]
pub trait Time: Send {
    /// Reads them.
    fn now(&self) -> Moment;

    /// Sleeps for `time`.
    fn sleep(&self, time: Duration);
}

/// The clocks of this machine.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Time for System {
    fn now(&self) -> Moment {
        const TIGHT: u64 = 50_000; // ns; longer means the thread lost its processor
        const LOOKS: usize = 4;
        let mut best = read();
        for _ in 1..LOOKS {
            if best.slack <= TIGHT {
                break;
            }
            let again = read();
            // If equal, prefer the later reading: time has moved on.
            if again.slack <= best.slack {
                best = again;
            }
        }
        best
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }
}

fn read() -> Moment {
    let steady = nanoseconds(ClockId::CLOCK_BOOTTIME);
    let (wall, awake) = (unix_time(), nanoseconds(ClockId::CLOCK_MONOTONIC));
    Moment {
        wall,
        steady,
        awake,
        slack: nanoseconds(ClockId::CLOCK_BOOTTIME).saturating_sub(steady),
    }
}

/// Every Linux has these clocks, so reading them cannot fail.
fn nanoseconds(clock: ClockId) -> u64 {
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec() as u64)
    })
}

/// Nanoseconds since 1970, by this machine's clock; 0 before that.
#[must_use]
pub fn unix_time() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

/// A jump in words.
#[doc(hidden)]
#[must_use]
pub fn set(jump: i64) -> String {
    let seconds = jump.unsigned_abs() as f64 / 1e9;
    format!(
        "this machine's clock was set {} by {seconds:.3} s",
        if jump < 0 { "back" } else { "ahead" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_told_from_what_is_slewed_and_from_sleep() {
        let start = Moment {
            wall: 1_700_000_000_000_000_000,
            steady: 5_000_000_000,
            awake: 4_000_000_000,
            slack: 0,
        };
        let later = |wall: i64, steady: u64, awake: u64| Moment {
            wall: start.wall.saturating_add_signed(wall),
            steady: start.steady + steady,
            awake: start.awake + awake,
            slack: 200,
        };
        const TENTH: u64 = 100_000_000;
        // As fast as chrony slews, in both directions.
        for slewed in [-8_300_000, 0, 8_300_000] {
            assert_eq!(later(TENTH as i64 + slewed, TENTH, TENTH).jump_since(&start), None);
        }
        for jump in [-120_000_000_000, -11_000_000, 11_000_000, 3_600_000_000_000] {
            let now = later(TENTH as i64 + jump, TENTH, TENTH);
            assert_eq!((now.jump_since(&start), now.drift_since(&start)), (Some(jump), jump));
            assert_eq!(now.since(&start), Duration::from_millis(100));
        }
        // Suspended for an hour: wall and steady clock advance, the awake one does not.
        const HOUR: u64 = 3_600_000_000_000;
        let now = later((HOUR + TENTH) as i64, HOUR + TENTH, TENTH);
        assert_eq!(
            (now.jump_since(&start), now.suspended_since(&start)),
            (None, Duration::from_secs(3600))
        );
        // Back to 1970.
        let now = Moment { wall: 0, ..start };
        assert_eq!(now.jump_since(&start), Some(-1_700_000_000_000_000_000));
        assert_eq!(set(-120_000_400_000), "this machine's clock was set back by 120.000 s");
        assert_eq!(set(3_000_000_000), "this machine's clock was set ahead by 3.000 s");
    }

    #[test]
    fn this_machines_clocks_go_on_together() {
        let before = System.now();
        System.sleep(Duration::from_millis(5));
        let now = System.now();
        assert!(now.since(&before) >= Duration::from_millis(5), "{before:?}, {now:?}");
        assert_eq!(now.jump_since(&before), None, "{before:?}, {now:?}");
        assert!(now.wall > 1_700_000_000_000_000_000);
    }
}
