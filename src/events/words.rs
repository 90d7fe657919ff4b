//! Formats figures for people.

/// Stands for a missing figure.
const NONE: &str = "–";

/// Formats `figure`, or returns a dash if there is none.
pub fn or_dash<T>(figure: Option<T>, words: impl FnOnce(T) -> String) -> String {
    figure.map_or_else(|| NONE.to_owned(), words)
}

/// A rate per second: no fraction from 100 on, three significant digits below.
#[must_use]
pub fn rate(rate: f64) -> String {
    if !rate.is_finite() {
        return NONE.to_owned();
    }
    if rate == 0.0 || rate.abs() >= 99.95 {
        return format!("{rate:.0}");
    }
    let digits = (2 - rate.abs().log10().floor() as i32).clamp(1, 9) as usize;
    let text = format!("{rate:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_rate_keeps_its_digits() {
        for (value, words) in [
            (0.0, "0"),
            (0.001, "0.001"),
            (0.5, "0.5"),
            (0.0333333, "0.0333"),
            (1.0, "1"),
            (2.345, "2.35"),
            (9.999, "10"),
            (10.0, "10"),
            (99.94, "99.9"),
            (99.97, "100"),
            (123.456, "123"),
            (1e9, "1000000000"),
            (f64::NAN, "–"),
            (f64::INFINITY, "–"),
        ] {
            assert_eq!(rate(value), words);
        }
        assert_eq!(or_dash(None::<f64>, rate), "–");
        assert_eq!(or_dash(Some(0.25), rate), "0.25");
    }
}
