//! IPv6 settings of one interface (/proc/sys/net/ipv6/conf) that are changed for a moment.

use std::fs;

use anyhow::{Context, Result};

use crate::host::settings::{self, Changed, Keeper};
use crate::net::netlink::{self, Link};

/// A setting that is read before anything that needs it begins.
pub(super) struct Ipv6Setting {
    keeper: Keeper,
    link: Link,
    setting: settings::Setting,
}

impl Ipv6Setting {
    /// The setting `name` of `interface`.
    pub fn of(interface: &str, name: &str) -> Result<Self> {
        let link = netlink::link(interface)?;
        let setting = settings::Setting::ipv6(interface, name);
        setting.read(&link)?;
        Ok(Self { keeper: Keeper::open()?, link, setting })
    }

    /// The value of `name` for all interfaces, which sometimes overrides an interface's own
    /// setting.
    pub fn for_all(name: &str) -> Result<i32> {
        let path = format!("/proc/sys/net/ipv6/conf/all/{name}");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        text.trim().parse().with_context(|| format!("{path} holds no number"))
    }

    /// Sets the interface down until the result is put back. This setting is at `value` only while
    /// the link goes down.
    pub fn link_down(&self, value: &str) -> Result<Changed> {
        self.during(value, || {
            self.keeper.change(&self.link, settings::Setting::Link, settings::DOWN)
        })
    }

    /// Runs `with` with the setting at `value`, and puts it back.
    pub fn during<T>(&self, value: &str, with: impl FnOnce() -> Result<T>) -> Result<T> {
        let changed = self.keeper.change(&self.link, self.setting.clone(), value)?;
        let result = with();
        // If somebody else changes the setting in this short time, their value stays, and they need
        // no message.
        let back = changed.put_back();
        if result.is_ok() { back.and(result) } else { result }
    }
}
