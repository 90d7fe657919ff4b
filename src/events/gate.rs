//! What `gate` prints besides `rotation` and `notice` lines. Its events have the names of `serve`'s
//! and fields of their own: `services` is in each of them, and in none of `serve`'s.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{Environment, JsonLine, Moves, Moving, SCHEMA};

/// One line of JSON output of a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum GateEvent {
    /// Every address is live, and its services can be reached there.
    Ready(Box<GateReady>),
    /// Once per second.
    Stats(GateStats),
    /// The totals at exit.
    Stopped(GateStats),
}

impl GateEvent {
    /// The event as a JSON line, with its newline.
    ///
    /// # Errors
    /// If the event cannot be serialised.
    pub fn to_line(&self) -> Result<String> {
        let mut line = serde_json::to_string(&JsonLine { event: self.clone(), schema: SCHEMA })?;
        line.push('\n');
        Ok(line)
    }
}

/// What a gate got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateReady {
    /// The interface.
    pub interface: String,
    /// Its driver; empty if it names none.
    pub driver: String,
    /// The prefix of the addresses.
    pub prefix: String,
    /// Number of live addresses.
    pub addresses: u64,
    /// How they move.
    #[serde(flatten)]
    pub moving: Moving,
    /// What is reached there, in the order of the flags.
    pub services: Vec<ServiceFound>,
    /// Seconds from the start until the gate was open, without computing the clients' seeds.
    pub open_seconds: f64,
    /// Of those, the seconds to make the addresses live.
    pub bind_seconds: f64,
    /// Bytes of kernel memory that the addresses take, if known.
    pub kernel_memory: Option<u64>,
    /// The gate's machine.
    pub environment: Environment,
    /// Lines for people.
    pub notes: Vec<String>,
    /// Whether its threads have dropped the capabilities and system calls that they do not need.
    pub sandbox: bool,
}

/// A service of a gate at its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceFound {
    /// The port that clients ask, and the protocol: `22/tcp`.
    pub name: String,
    /// Where it should listen. The address `::` stands for a socket that is bound to any.
    pub listener: String,
    /// Whether a socket listens there.
    pub listens: bool,
}

/// What a gate has done since it opened. [`received`](Self::received) is the sum of
/// [`passed`](Self::passed), [`advertised`](Self::advertised) and [`dropped`](Self::dropped).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GateStats {
    /// Seconds since `ready`.
    pub seconds: f64,
    /// How its addresses have moved.
    pub moves: Moves,
    /// Packets to hidden addresses, and solicitations for them.
    pub received: u64,
    /// Packets that the kernel got, by outcome. Outcomes with a count of 0 are left out, here and
    /// below.
    pub passed: BTreeMap<String, u64>,
    /// Neighbour Solicitations that the program answered.
    pub advertised: u64,
    /// Packets dropped without a word, by outcome.
    pub dropped: BTreeMap<String, u64>,
    /// Packets of this machine that the gate changed or kept back, by outcome.
    pub sent: BTreeMap<String, u64>,
    /// Who came to each service: connections whose handshake was complete, and UDP flows.
    pub services: Vec<ServiceCount>,
    /// Arrivals that the log lacks, because they came too fast.
    pub arrivals_lost: u64,
}

/// Who came to a service of a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCount {
    /// As in [`ServiceFound::name`].
    pub name: String,
    /// Connections, or UDP flows.
    pub arrived: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let services = vec![ServiceCount { name: "22/tcp".to_owned(), arrived: 3 }];
        let stats = GateStats { seconds: 1.5, received: 7, services, ..GateStats::default() };
        let event = GateEvent::Stopped(stats);
        let line = event.to_line().unwrap();
        assert!(line.starts_with(r#"{"event":"stopped","#) && line.ends_with(",\"schema\":1}\n"));
        assert_eq!(serde_json::from_str::<GateEvent>(&line).unwrap(), event);
    }
}
