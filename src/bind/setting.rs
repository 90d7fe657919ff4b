//! IPv6 settings of one interface (/proc/sys/net/ipv6/conf) that are changed for a moment.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

/// A setting, open before anything is begun that needs it.
pub(super) struct Setting {
    file: File,
    path: String,
}

impl Setting {
    /// The setting `name` of `interface`.
    pub fn of(interface: &str, name: &str) -> Result<Self> {
        let path = format!("/proc/sys/net/ipv6/conf/{interface}/{name}");
        let file = File::options().read(true).write(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("cannot open {path}"))?, path })
    }

    /// What `name` is set to for all interfaces, which for some goes before an interface's own setting.
    pub fn for_all(name: &str) -> Result<i32> {
        let path = format!("/proc/sys/net/ipv6/conf/all/{name}");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        text.trim().parse().with_context(|| format!("{path} holds no number"))
    }

    /// Does something with the setting at `value`, and puts it back.
    pub fn during<T>(&self, value: &str, with: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut before = [0; 16]; // a number and a newline
        let length =
            self.file.read_at(&mut before, 0).with_context(|| format!("cannot read {}", self.path))?;
        self.set(value.as_bytes())?;
        let result = with();
        let back = self.set(&before[..length]);
        // With the interface goes the file: then there is nothing to put back, and `result` says more.
        if result.is_ok() { back.and(result) } else { result }
    }

    fn set(&self, value: &[u8]) -> Result<()> {
        self.file.write_all_at(value, 0).with_context(|| format!("cannot set {}", self.path))
    }
}
