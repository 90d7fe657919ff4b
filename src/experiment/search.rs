//! The search for the highest rate that holds: raise it until it fails, then bisect. No I/O: the
//! caller runs the trials.

use std::collections::BTreeMap;

use anyhow::Result;

/// The search ends when the lowest failed rate is within this factor of the highest that held: 2 %.
pub const RESOLUTION: f64 = 1.02;

/// How a trial ended.
pub enum Attempt<T> {
    /// The rate held, with these measurements.
    Held(T),
    /// The rate did not hold.
    Failed,
}

/// The highest rate that held, with its measurements. `None` if every rate failed, down to a
/// thousandth of `start`.
///
/// A rate counts as failed only if it fails twice: other work on the machine can spoil one trial,
/// but a server that cannot hold a rate fails both. Never tries a rate above `ceiling`.
///
/// # Errors
/// Those of `trial`, which receives a rate per second.
pub fn highest<T>(
    start: f64,
    growth: f64,
    ceiling: f64,
    mut trial: impl FnMut(f64) -> Result<Attempt<T>>,
) -> Result<Option<(f64, T)>> {
    let mut attempt = |rate| match trial(rate)? {
        Attempt::Failed => trial(rate),
        held => Ok(held),
    };
    let mut best = None;
    let mut failed: Option<f64> = None;
    let mut rate = start.min(ceiling);
    loop {
        match attempt(rate)? {
            Attempt::Held(measured) => best = Some((rate, measured)),
            Attempt::Failed => failed = Some(rate),
        }
        let held = best.as_ref().map(|(rate, _)| *rate);
        rate = match (held, failed) {
            (Some(held), None) if held >= ceiling => return Ok(best),
            (Some(held), None) => (held * growth).min(ceiling),
            (Some(held), Some(failed)) if failed / held <= RESOLUTION => return Ok(best),
            (Some(held), Some(failed)) => (held * failed).sqrt(),
            (None, Some(failed)) if failed <= start / 1000.0 => return Ok(None),
            (None, Some(failed)) => failed / growth,
            (None, None) => return Ok(None), // unreachable: a trial sets one of them
        };
    }
}

/// Finds the highest of `count` rates that holds for each threshold, in as few trials as it can.
///
/// A trial receives the index of a rate and returns, for each threshold, whether it held. The
/// lowest rate is always tried, and no rate twice: a failure below a rate that held counts as a
/// disturbance. `guesses` has one entry per threshold: where to begin, such as the result of an
/// earlier search.
///
/// # Errors
/// Those of `trial`.
pub fn bisect(
    count: usize,
    guesses: &[Option<usize>],
    mut trial: impl FnMut(usize) -> Result<Vec<bool>>,
) -> Result<Vec<Option<usize>>> {
    let mut tried: BTreeMap<usize, Vec<bool>> = BTreeMap::new();
    tried.insert(0, trial(0)?);
    let mut found = Vec::new();
    for (threshold, guess) in guesses.iter().enumerate() {
        // Without a guess, bisect from the start.
        let mut stride = if guess.is_some() { 1 } else { count.div_ceil(2) };
        loop {
            let held =
                tried.iter().rev().find(|(_, held)| held[threshold]).map(|(index, _)| *index);
            let failed =
                tried.range(held.map_or(0, |held| held + 1)..).next().map(|(index, _)| *index);
            let next = match (held, failed) {
                (None, _) => break, // even the lowest failed
                (Some(held), Some(failed)) if failed == held + 1 => break,
                (Some(held), None) if held + 1 >= count => break,
                (Some(0), _)
                    if guess.is_some_and(|guess| guess > 0 && !tried.contains_key(&guess)) =>
                {
                    guess.unwrap_or(1)
                }
                (Some(held), failed) => {
                    // Go up by a stride that doubles, but never past the middle of the remaining
                    // range.
                    let end = failed.unwrap_or(count);
                    let step = stride.min((end - held).div_ceil(2)).max(1);
                    stride *= 2;
                    held + step
                }
            };
            tried.insert(next, trial(next)?);
        }
        found.push(tried.iter().rev().find(|(_, held)| held[threshold]).map(|(index, _)| *index));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_limit_is_found_from_any_start(
            limit in 1.0f64..1e6, start in 10.0f64..1e5, growth in 1.1f64..3.0,
        ) {
            prop_assume!(start / 1000.0 < limit);
            let mut trials = 0;
            let found = highest(start, growth, 2e6, |rate| {
                trials += 1;
                Ok(if rate <= limit { Attempt::Held(()) } else { Attempt::Failed })
            });
            let (rate, ()) = found.unwrap().unwrap();
            prop_assert!(rate <= limit && rate * RESOLUTION * 1.000_001 >= limit, "{rate} for \
                {limit}");
            prop_assert!(trials < 400);
        }
    }

    proptest! {
        #[test]
        fn every_threshold_is_found_with_few_trials(
            count in 1usize..200,
            limits in proptest::collection::vec(0usize..220, 1..5),
            guess in proptest::option::of(0usize..200),
        ) {
            let mut limits = limits;
            limits.sort_unstable();
            let guesses = vec![guess.filter(|guess| *guess < count); limits.len()];
            let mut trials = Vec::new();
            let found = bisect(count, &guesses, |index| {
                prop_assert_index(index, count);
                trials.push(index);
                Ok(limits.iter().map(|&limit| index < limit).collect()) // rates 0 to limit - 1 hold
            }).unwrap();
            let last = |&limit: &usize| limit.min(count).checked_sub(1);
            let expected: Vec<_> = limits.iter().map(last).collect();
            prop_assert_eq!(found, expected);
            let all = trials.len();
            trials.sort_unstable();
            trials.dedup();
            prop_assert_eq!(trials.len(), all, "a rate was tried twice");
            // The lowest rate, one for each guess, and per threshold a stride up and a bisection
            // back: at most twice a binary search.
            let logarithm = count.next_power_of_two().trailing_zeros() as usize;
            prop_assert!(all <= 1 + limits.len() * (2 * logarithm + 2), "{} trials for {} \
                rates", all, count);
        }
    }

    fn prop_assert_index(index: usize, count: usize) {
        assert!(index < count, "rate {index} of {count}");
    }

    #[test]
    fn a_good_guess_costs_two_trials_and_a_spoilt_one_is_overruled() {
        let mut trials = 0;
        let found = bisect(100, &[Some(60)], |index| {
            trials += 1;
            Ok(vec![index <= 60])
        });
        assert_eq!((found.unwrap(), trials), (vec![Some(60)], 3)); // including the lowest
        // A rate that holds at 80 holds at 60, whatever that trial said.
        let found = bisect(100, &[Some(60), Some(80)], |index| {
            Ok(vec![index <= 80 && index != 60, index <= 80])
        });
        assert_eq!(found.unwrap()[1], Some(80));
    }

    #[test]
    fn one_spoilt_trial_does_not_matter_and_the_ceiling_is_kept() {
        let mut spoilt = false;
        let found = highest(10.0, 2.0, 1000.0, |rate| {
            assert!(rate <= 1000.0);
            if rate > 100.0 && !spoilt {
                spoilt = true;
                return Ok(Attempt::Failed);
            }
            Ok(Attempt::Held(rate))
        });
        assert_eq!(found.unwrap(), Some((1000.0, 1000.0)));
        assert!(highest(10.0, 2.0, 1000.0, |_| Ok(Attempt::<()>::Failed)).unwrap().is_none());
    }
}
