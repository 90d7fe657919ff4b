//! Why no reply arrived, as far as the client can tell.

use std::fs;

use crate::events::{LoadClient, LoadResult};
use crate::host::Environment;
use crate::net::quirks::{self, Act};

/// What to do about replies whose checksum was left to an interface that never finished it.
pub const UNFINISHED: &str = "replies came with unfinished checksums: the server's kernel left \
    them to its interface; run 'ethtool -K IF tx off' for the server's interface, or use --client \
    socket";

/// The kernel's counts of answers that never reached a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// ICMPv6 destination-unreachable errors received.
    unreachable: u64,
    /// UDP datagrams with a wrong checksum.
    damaged: u64,
}

impl Heard {
    /// The counts so far, in the calling thread's network namespace.
    #[must_use]
    pub fn now() -> Self {
        fs::read_to_string("/proc/thread-self/net/snmp6")
            .map_or(Self::default(), |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let number = |name: &str| {
            let words = text.lines().map(str::split_ascii_whitespace);
            let mut line = words.filter_map(|mut words| (words.next()? == name).then_some(words));
            line.next().and_then(|mut words| words.next()?.parse().ok()).unwrap_or(0)
        };
        Self { unreachable: number("Icmp6InDestUnreachs"), damaged: number("Udp6InCsumErrors") }
    }

    /// The increase since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            unreachable: self.unreachable.saturating_sub(before.unreachable),
            damaged: self.damaged.saturating_sub(before.damaged),
        }
    }
}

/// Why no request of `result` was answered; `None` without a clue. `here` describes the client's
/// machine; `port` is the service's.
#[must_use]
pub fn cause(result: &LoadResult, here: &Environment, heard: Heard, port: u16) -> Option<String> {
    let outcome = &result.outcome;
    if outcome.unfinished > 0 {
        return Some(format!("{} {UNFINISHED}", outcome.unfinished));
    }
    if outcome.corrupt > 0 {
        return Some(format!(
            "{} replies came, all of them damaged: check whether another program answers on port \
             {port}",
            outcome.corrupt
        ));
    }
    if outcome.wrong_source > 0 {
        return Some(format!(
            "{} replies came, all from another address than the one asked: the server must answer \
             from the address that a request was sent to",
            outcome.wrong_source
        ));
    }
    if heard.unreachable > 0 {
        return Some(format!(
            "{} ICMPv6 errors said that a destination is unreachable: check that the server serves \
             port {port} and that no firewall rejects requests",
            heard.unreachable
        ));
    }
    if result.client == LoadClient::Socket && heard.damaged > 0 {
        return Some(format!(
            "{} replies came with a wrong checksum, and the kernel dropped them",
            heard.damaged
        ));
    }
    let nic = &here.nic;
    let leaves =
        |offload: &String| offload == "tx-checksum-ip-generic" || offload == "tx-checksum-ipv6";
    let in_memory = quirks::of_driver(&nic.driver).has(Act::ExpectUnfinished);
    let may_leave = in_memory && nic.offloads.iter().any(leaves);
    (result.client == LoadClient::Socket && may_leave).then(|| {
        format!(
            "{0} ({1}) leaves checksums unfinished, which only socket engines accept: run 'ethtool \
             -K {0} tx off' or use --client afxdp; otherwise {2}",
            nic.interface,
            nic.driver,
            look(port)
        )
    })
}

/// The advice when there is no clue.
#[must_use]
pub fn nothing_came(port: u16) -> String {
    format!("nothing came back: {}", look(port))
}

fn look(port: u16) -> String {
    format!(
        "check that the server is up, that it serves port {port} and these addresses (--prefix, \
         --addresses, --seed), that its --allow includes this machine, that no firewall is in the \
         way, and what its statistics say was dropped"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Outcome;

    #[test]
    fn what_gives_the_cause_away_is_named() {
        let nothing = LoadResult {
            client: LoadClient::Afxdp,
            sent: 10,
            unsent: 0,
            outcome: Outcome::default(),
            late: 0,
            clock_steps: None,
            offered_rate: 1.0,
            achieved_rate: 1.0,
            attach: None,
            copy: None,
            rings: None,
            busy_poll: None,
            environment: None,
        };
        let with = |change: fn(&mut Outcome)| {
            let mut result = nothing.clone();
            change(&mut result.outcome);
            result
        };
        let mut veth = Environment::default();
        (veth.nic.driver, veth.nic.interface) = ("veth".to_owned(), "eth7".to_owned());
        veth.nic.offloads = vec!["tx-checksum-ip-generic".to_owned()];
        let socket = LoadResult { client: LoadClient::Socket, ..nothing.clone() };
        let (silent, none) = (Heard::default(), Environment::default());
        let unfinished = with(|outcome| (outcome.corrupt, outcome.unfinished) = (9, 9));
        let unreachable = Heard { unreachable: 2, damaged: 5 };
        let damaged = Heard { damaged: 5, ..silent };
        for (result, here, heard, words) in [
            (&unfinished, &veth, silent, "9 replies came with unfinished checksums"),
            (
                &with(|outcome| outcome.corrupt = 3),
                &veth,
                silent,
                "3 replies came, all of them damaged",
            ),
            (&with(|outcome| outcome.wrong_source = 4), &veth, silent, "from another address"),
            (&socket, &veth, unreachable, "unreachable: check that the server serves port 3540"),
            (&socket, &none, damaged, "5 replies came with a wrong checksum"),
            (&socket, &veth, silent, "ethtool -K eth7 tx off"),
        ] {
            let said = cause(result, here, heard, 3540).unwrap_or_default();
            assert!(said.contains(words), "'{said}' and not '{words}'");
        }
        // Rings write complete checksums, and never see the datagrams that the kernel drops.
        assert_eq!(cause(&nothing, &veth, damaged, 3540), None);
        assert_eq!(cause(&socket, &none, silent, 3540), None);
        assert!(nothing_came(3540).contains("port 3540"));
    }

    #[test]
    fn the_kernels_counts_are_read_by_their_names() {
        let text = "Icmp6InDestUnreachs             \t3\nUdp6InErrors \t9\nUdp6InCsumErrors \t2\n";
        let now = Heard::parse(text);
        assert_eq!(now, Heard { unreachable: 3, damaged: 2 });
        assert_eq!(
            now.since(Heard { unreachable: 1, damaged: 2 }),
            Heard { unreachable: 2, damaged: 0 }
        );
        assert_eq!(Heard::parse(""), Heard::default());
    }
}
