//! How much memory of this process some piece of work takes.

use std::fs;

/// The growth of what is resident, over the parts that count.
#[derive(Debug)]
pub(super) struct Growth {
    total: i64,
    since: Option<i64>,
}

impl Growth {
    /// Counts from now on.
    pub fn start() -> Self {
        Self { total: 0, since: resident() }
    }

    /// Counts from now on again.
    pub fn resume(&mut self) {
        self.since = resident();
    }

    /// What comes does not count.
    pub fn pause(&mut self) {
        if let (Some(since), Some(now)) = (self.since.take(), resident()) {
            self.total += now - since;
        }
    }

    /// The growth in bytes; 0 where it was none.
    pub fn bytes(&self) -> u64 {
        u64::try_from(self.total).unwrap_or(0)
    }
}

/// Bytes of this process that are in memory, as proc_pid_statm(5) gives them in pages.
fn resident() -> Option<i64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: i64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * page)
}
