//! What this machine is, and what its processors did.

use std::fs;

use anyhow::{Context, Result};

/// The kernel's release, as `uname -r` prints it.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The processor's name; empty where the kernel does not tell it.
pub fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or(String::new(), |(_, name)| name.trim().to_owned())
}

/// What some processors have done since the machine was started, in ticks (10 ms as a rule).
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticks {
    busy: u64,
    all: u64,
}

impl Ticks {
    /// The counts of `cores` now, added up.
    ///
    /// # Errors
    /// When /proc is not mounted.
    pub fn of(cores: &[usize]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        Ok(Self::parse(&stat, cores))
    }

    fn parse(stat: &str, cores: &[usize]) -> Self {
        let mut sum = Self::default();
        for line in stat.lines() {
            let mut fields = line.split_ascii_whitespace();
            let core = fields.next().and_then(|name| name.strip_prefix("cpu")?.parse().ok());
            if !core.is_some_and(|core| cores.contains(&core)) {
                continue;
            }
            // proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time is within user time. Stolen
            // time was neither ours nor idle: it is left out of both.
            let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).collect();
            let at = |index: usize| ticks.get(index).copied().unwrap_or(0);
            let busy = at(0) + at(1) + at(2) + at(5) + at(6);
            sum.busy += busy;
            sum.all += busy + at(3) + at(4);
        }
        sum
    }

    /// Share of the time since `before` that was busy, 0 to 1.
    pub fn busy_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all);
        if all == 0 { 0.0 } else { self.busy.saturating_sub(before.busy) as f64 / all as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_processors_count_and_stolen_time_does_not() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 10 0 20 60 10 0 0 500 0 0\ncpu1 5 0 0 95 0 0 0 0 0 0\nintr 1 2\n";
        let zero = Ticks::default();
        assert_eq!(Ticks::parse(stat, &[0]).busy_since(zero), 0.3);
        assert_eq!(Ticks::parse(stat, &[0, 1]).busy_since(zero), 0.175);
        assert_eq!(Ticks::parse(stat, &[7]).busy_since(zero), 0.0);
    }
}
