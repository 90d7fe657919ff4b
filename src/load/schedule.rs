//! When each request is due: pure arithmetic on nanoseconds since the start.

use std::time::Duration;

/// A steady rate from time 0.
#[derive(Debug, Clone, Copy)]
pub struct SendSchedule {
    /// Requests per second, positive.
    rate: f64,
    requests: u64,
}

/// Nanoseconds in a second.
const SECOND: f64 = 1e9;

impl SendSchedule {
    /// `requests` requests at `rate` per second, which must be positive. Exact to the nanosecond
    /// for 100 days.
    pub fn new(rate: f64, requests: u64) -> Self {
        Self { rate, requests }
    }

    /// When request `sequence` (from 0) is due, in nanoseconds after the start.
    #[inline]
    pub fn due(&self, sequence: u64) -> u64 {
        (sequence as f64 * SECOND / self.rate) as u64
    }

    /// How many requests are due by `now`, in nanoseconds after the start.
    #[inline]
    pub fn due_by(&self, now: u64) -> u64 {
        let estimate = ((now as f64 * self.rate / SECOND) as u64 + 1).min(self.requests);
        // Rounding may make the estimate one too high.
        if estimate > 0 && self.due(estimate - 1) > now { estimate - 1 } else { estimate }
    }

    /// From the start to the end of the interval after the last request.
    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.due(self.requests))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_request_is_due_when_its_time_has_come(
            rate in 0.5f64..2e6, now in 0u64..100_000_000_000,
        ) {
            let schedule = SendSchedule::new(rate, u64::MAX);
            let due = schedule.due_by(now);
            prop_assert!(due >= 1);
            prop_assert!(schedule.due(due - 1) <= now);
            // The next one is not due yet, give or take one nanosecond of rounding.
            prop_assert!(schedule.due(due) + 1 >= now);
        }
    }

    #[test]
    fn it_ends() {
        let schedule = SendSchedule::new(1000.0, 5);
        assert_eq!(schedule.due(4), 4_000_000);
        assert_eq!(schedule.due_by(0), 1);
        assert_eq!(schedule.due_by(3_999_999), 4);
        assert_eq!(schedule.due_by(u64::MAX / 2), 5);
        assert_eq!(schedule.duration(), Duration::from_millis(5));
    }
}
