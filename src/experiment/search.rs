//! The search for the highest rate that still holds: doubled until it fails, then halved in between. No I/O: what a trial
//! is, is the caller's business.

use anyhow::Result;

/// The search ends when the lowest rate that failed is within this factor of the highest that held: 2 %.
pub const RESOLUTION: f64 = 1.02;

/// How a trial ended.
pub enum Trial<T> {
    /// The rate held; what was measured.
    Held(T),
    /// It did not.
    Failed,
}

/// The highest rate that held, with what was measured there. `None` when even the smallest one that is worth trying, a
/// thousandth of `start`, failed.
///
/// A rate that fails is tried once more before it counts as failed: other work on the machine can spoil one trial, and a
/// server that cannot hold a rate fails both. No rate above `ceiling` is tried.
///
/// # Errors
/// Those of `trial`, which is called with a rate per second.
pub fn highest<T>(
    start: f64,
    growth: f64,
    ceiling: f64,
    mut trial: impl FnMut(f64) -> Result<Trial<T>>,
) -> Result<Option<(f64, T)>> {
    let mut attempt = |rate| match trial(rate)? {
        Trial::Failed => trial(rate),
        held => Ok(held),
    };
    let mut best = None;
    let mut failed: Option<f64> = None;
    let mut rate = start.min(ceiling);
    loop {
        match attempt(rate)? {
            Trial::Held(measured) => best = Some((rate, measured)),
            Trial::Failed => failed = Some(rate),
        }
        let held = best.as_ref().map(|(rate, _)| *rate);
        rate = match (held, failed) {
            (Some(held), None) if held >= ceiling => return Ok(best),
            (Some(held), None) => (held * growth).min(ceiling),
            (Some(held), Some(failed)) if failed / held <= RESOLUTION => return Ok(best),
            (Some(held), Some(failed)) => (held * failed).sqrt(),
            (None, Some(failed)) if failed <= start / 1000.0 => return Ok(None),
            (None, Some(failed)) => failed / growth,
            (None, None) => return Ok(None), // no trial ends so
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_limit_is_found_from_any_start(limit in 1.0f64..1e6, start in 10.0f64..1e5, growth in 1.1f64..3.0) {
            prop_assume!(start / 1000.0 < limit);
            let mut trials = 0;
            let found = highest(start, growth, 2e6, |rate| {
                trials += 1;
                Ok(if rate <= limit { Trial::Held(()) } else { Trial::Failed })
            });
            let (rate, ()) = found.unwrap().unwrap();
            prop_assert!(rate <= limit && rate * RESOLUTION * 1.000_001 >= limit, "{rate} for {limit}");
            prop_assert!(trials < 400);
        }
    }

    #[test]
    fn one_spoilt_trial_does_not_matter_and_the_ceiling_is_kept() {
        let mut spoilt = false;
        let found = highest(10.0, 2.0, 1000.0, |rate| {
            assert!(rate <= 1000.0);
            if rate > 100.0 && !spoilt {
                spoilt = true;
                return Ok(Trial::Failed);
            }
            Ok(Trial::Held(rate))
        });
        assert_eq!(found.unwrap(), Some((1000.0, 1000.0)));
        assert!(highest(10.0, 2.0, 1000.0, |_| Ok(Trial::<()>::Failed)).unwrap().is_none());
    }
}
