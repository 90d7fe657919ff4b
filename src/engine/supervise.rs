//! Threads of which none goes on without the others: one that fails, or panics, stops them all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};

use anyhow::{Result, anyhow};

/// A thread of an engine.
pub(crate) type Thread<'scope> = ScopedJoinHandle<'scope, Result<()>>;

/// Starts a thread that does `work`. `stop` is set when that fails or panics.
pub(crate) fn start<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    stop: &'scope AtomicBool,
    work: impl FnOnce() -> Result<()> + Send + 'scope,
) -> Thread<'scope> {
    scope.spawn(move || {
        let alarm = Alarm(stop);
        work()?;
        std::mem::forget(alarm);
        Ok(())
    })
}

/// Waits for all of `threads`, and returns the first error among them.
pub(crate) fn wait_for<'a>(threads: impl IntoIterator<Item = Thread<'a>>) -> Result<()> {
    let results: Vec<_> = threads.into_iter().map(ScopedJoinHandle::join).collect();
    // Why one panicked stands on standard error already.
    results.into_iter().try_for_each(|result| result.map_err(|_| anyhow!("a worker panicked"))?)
}

/// Sets what it has when it is dropped.
struct Alarm<'a>(&'a AtomicBool);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;
    use std::time::Duration;

    /// One that works until it is stopped, between two of which the second ends by `end`.
    fn with(end: fn() -> Result<()>) -> Result<()> {
        let stop = AtomicBool::new(false);
        let work = || {
            while !stop.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        };
        thread::scope(|scope| {
            let threads =
                [start(scope, &stop, work), start(scope, &stop, end), start(scope, &stop, work)];
            wait_for(threads)
        })
    }

    #[test]
    fn one_that_panics_stops_the_others() {
        let error = with(|| panic!("as a test wants it")).unwrap_err();
        assert_eq!(error.to_string(), "a worker panicked");
    }

    #[test]
    fn one_that_fails_stops_the_others_and_says_why() {
        assert_eq!(with(|| Err(anyhow!("no card"))).unwrap_err().to_string(), "no card");
    }
}
