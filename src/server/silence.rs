//! A notice, given once by a server with live-map, that nobody asks for a live address and that a
//! switch may be why.

use std::fs;

use crate::events::Stats;
use crate::net::netlink::Link;

/// Seconds without any solicitation or request until the notice.
const PATIENCE: f64 = 30.0;

/// Watches for anything that concerns live addresses.
pub(super) struct Silence {
    interface: String,
    mac: [u8; 6],
    /// Whether the notice may still be given.
    watches: bool,
}

impl Silence {
    /// Watches `link`. `watches` is set if the kernel reports no multicast groups for the
    /// addresses, and nothing else brings solicitations.
    pub fn on(link: &Link, watches: bool) -> Self {
        Self { interface: link.name.clone(), mac: link.mac, watches }
    }

    /// The notice, if it is due.
    pub fn look(&mut self, stats: &Stats) -> Option<String> {
        self.look_with(stats, queries)
    }

    fn look_with(&mut self, stats: &Stats, queries: impl Fn(&str) -> u64) -> Option<String> {
        if !self.watches {
            return None;
        }
        if is_asked(stats) {
            self.watches = false;
            return None;
        }
        // Without a querier, a snooping switch forwards everything, or nobody at all could be
        // reached.
        if stats.seconds < PATIENCE || queries(&self.interface) == 0 {
            return None;
        }
        self.watches = false;
        let [a, b, c, d, e, f] = self.mac;
        Some(format!(
            "nobody has asked for a live address of {0} in {1:.0} s, and an MLD querier is on its \
             link: a switch between that snoops \
             MLD keeps solicitations back, since live-map reports no groups; have the switch take \
             {0}'s port for a router's, or give neighbours 'ip -6 neigh replace ADDRESS lladdr \
             {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} dev IF nud permanent'",
            self.interface, stats.seconds
        ))
    }
}

/// Whether a solicitation or a request has arrived.
fn is_asked(stats: &Stats) -> bool {
    let steering = &stats.counters.steering;
    let count = |verdict: &str| steering.get(verdict).copied().unwrap_or(0);
    ["solicited", "steered", "reflected", "refused"].into_iter().any(|verdict| count(verdict) > 0)
}

/// MLD queries that the interface received, by the kernel's count (net/ipv6/proc.c); 0 if unknown.
fn queries(interface: &str) -> u64 {
    let counts = fs::read_to_string(format!("/proc/thread-self/net/dev_snmp6/{interface}"));
    parse(&counts.unwrap_or_default())
}

fn parse(counts: &str) -> u64 {
    let lines = counts.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let found = lines.into_iter().find_map(|words| match words[..] {
        ["Icmp6InGroupMembQueries", count] => count.parse().ok(),
        _ => None,
    });
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Counters;

    fn after(seconds: f64, verdict: &str, count: u64) -> Stats {
        let mut counters = Counters::default();
        counters.steering.insert(verdict.to_owned(), count);
        Stats { seconds, counters, ..Stats::default() }
    }

    fn silence(watches: bool) -> Silence {
        Silence { interface: "server0".to_owned(), mac: [2, 0, 0, 0, 0, 0xfe], watches }
    }

    #[test]
    fn it_is_said_once_where_a_querier_is_and_nobody_asks() {
        let mut watch = silence(true);
        let mut look =
            |seconds, queries| watch.look_with(&after(seconds, "dropped_hidden", 9), |_| queries);
        assert_eq!(look(29.0, 1), None);
        assert_eq!(look(31.0, 0), None);
        let words = look(60.0, 1).unwrap();
        assert!(
            words.contains("server0 in 60 s") && words.contains("lladdr 02:00:00:00:00:fe"),
            "{words}"
        );
        assert_eq!(look(61.0, 2), None);
    }

    #[test]
    fn whoever_has_been_asked_says_nothing() {
        for verdict in ["solicited", "steered", "reflected", "refused"] {
            let mut watch = silence(true);
            assert_eq!(watch.look_with(&after(5.0, verdict, 1), |_| 1), None);
            assert_eq!(watch.look_with(&after(99.0, "steered", 0), |_| 1), None, "{verdict}");
        }
        assert_eq!(silence(false).look_with(&after(99.0, "steered", 0), |_| 1), None);
    }

    #[test]
    fn the_kernels_count_is_read() {
        let counts =
            "ifIndex\t2\nIcmp6InGroupMembQueries         \t3\nIcmp6InGroupMembResponses\t4\n";
        assert_eq!((parse(counts), parse("")), (3, 0));
    }
}
