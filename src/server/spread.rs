//! Directs requests to the served queues, if not all are served and the card can do so.

use anyhow::Result;

use crate::host::settings::{Changed, Keeper, RULE_SET, Setting};
use crate::net::ethtool::{self, FlowRule};
use crate::net::netlink::Link;

/// Makes requests to UDP port `port` arrive on the queues `served`, out of `count` in use, until
/// the result is dropped. Returns one line about what was done, or why nothing was. In the latter
/// case a `hidden` program loses such requests.
///
/// A flow rule for the port is better than a new RSS table for everything, because other traffic
/// stays where it was. But a rule names one queue, and few cards match UDP over IPv6.
pub(super) fn onto(
    keeper: &Keeper,
    link: &Link,
    port: u16,
    served: &[u32],
    count: u32,
    hidden: bool,
) -> (Option<Changed>, Option<String>) {
    if served.is_empty() || served.len() as u32 >= count {
        return (None, None);
    }
    let name = &link.name;
    let mut refusals = Vec::new();
    if let [queue] = *served {
        match rule(keeper, link, port, queue) {
            Ok(changed) => {
                let words = format!(
                    "a flow rule of {name} puts requests to UDP port {port} on queue {queue}"
                );
                return (Some(changed), Some(words));
            }
            Err(error) => refusals.push(format!("no flow rule ({error:#})")),
        }
    }
    match spread(keeper, link, served) {
        Ok(changed) => {
            let words = format!("RSS of {name} puts all packets on the queues {served:?}");
            (Some(changed), Some(words))
        }
        Err(error) => {
            refusals.push(format!("no RSS ({error:#})"));
            let fate = if hidden { "are dropped" } else { "go to the socket behind the program" };
            let words = format!(
                "requests that arrive on other queues of {name} than {served:?} {fate}, and are \
                 counted as no_ring: its \
                 driver has {}",
                refusals.join(" and ")
            );
            (None, Some(words))
        }
    }
}

fn rule(keeper: &Keeper, link: &Link, port: u16, queue: u32) -> Result<Changed> {
    let location = ethtool::free_rule(&link.name)?;
    keeper.change(link, Setting::Rule(FlowRule { location, port, queue }), RULE_SET)
}

fn spread(keeper: &Keeper, link: &Link, served: &[u32]) -> Result<Changed> {
    let length = ethtool::indirection(&link.name)?.len();
    let table: Vec<_> = served.iter().cycle().take(length).map(u32::to_string).collect();
    keeper.change(link, Setting::Indirection, &table.join(","))
}
