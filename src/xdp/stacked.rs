//! Devices stacked on others: their driver may accept a ring that no packet ever reaches.

use anyhow::Result;

use crate::net::ethtool;
use crate::net::netlink::{self, Link};
use crate::net::quirks::{self, Act};

/// Whether the driver of this kind of device runs an XDP program on the devices below it. Packets
/// arrive there, and rings of the device itself reject them (`xsk_rcv_check` in net/xdp/xsk.c
/// compares the devices).
#[must_use]
pub fn runs_below(kind: Option<&str>) -> bool {
    quirks::of_kind(kind).has(Act::LookBelow)
}

/// Number of receive queues on which packets of `link` may arrive. Packets of a bond keep the queue
/// number of the port below.
///
/// # Errors
/// When there is no such interface.
pub fn queues(link: &Link) -> Result<u32> {
    let own = ethtool::queues(&link.name)?;
    if !runs_below(link.kind.as_deref()) {
        return Ok(own);
    }
    let ports = netlink::links()?.into_iter().filter(|port| port.master == Some(link.index));
    let below = ports.filter_map(|port| ethtool::queues(&port.name).ok()).max().unwrap_or(own);
    Ok(below.clamp(own, link.rx_queues.max(own)))
}

/// Why replies of some queues would stay in their rings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}: {cure}")]
pub struct CannotSend {
    /// Which queue it is, and why.
    pub why: String,
    /// The command that changes the queues.
    pub cure: String,
    /// Where queues cannot be added: those below this one can send.
    pub only_below: Option<u32>,
}

/// Why queues in `served` could not send, and what to do about it. An AF_XDP socket sends on the
/// queue that it is bound to; without such a transmit queue, replies stay in the ring. Do not call
/// it for a device that [runs below](runs_below), which has as many queues each way.
#[must_use]
pub fn cannot_send(
    interface: &str,
    counts: ethtool::QueueCounts,
    served: &[u32],
) -> Option<CannotSend> {
    let queue = served.iter().find(|queue| **queue >= counts.sending)?;
    let wanted = served.iter().max().map_or(1, |queue| queue + 1);
    let why = format!(
        "replies of queue {queue} of {interface} would not leave: it has {} receive queues, but \
         {} transmit queues",
        counts.in_use, counts.sending
    );
    // A transmit queue for each, where there can be so many.
    let (cure, only_below) = if counts.sending_possible >= wanted {
        (format!("ethtool -L {interface} tx {wanted}"), None)
    } else {
        (format!("ethtool -L {interface} rx {}", counts.sending), Some(counts.sending))
    };
    Some(CannotSend { why, cure, only_below })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_on_others_runs_a_program_below() {
        for (kind, below) in [
            (Some("bond"), true),
            (Some("team"), true),
            (Some("veth"), false),
            (Some("bridge"), false), // has no native XDP
            (None, false),
        ] {
            assert_eq!(runs_below(kind), below, "{kind:?}");
        }
    }

    #[test]
    fn a_queue_that_cannot_send_is_named_with_the_cure() {
        let counts = |in_use, sending, sending_possible| ethtool::QueueCounts {
            in_use,
            possible: in_use,
            combined: false,
            sending,
            sending_possible,
        };
        let said =
            |counts, served: &[u32]| cannot_send("if0", counts, served).map(|why| why.to_string());
        assert_eq!(said(counts(2, 2, 2), &[0, 1]), None);
        assert_eq!(said(counts(2, 1, 1), &[0]), None);
        let text = said(counts(2, 1, 2), &[0, 1]).unwrap();
        assert!(text.contains("queue 1 of if0") && text.ends_with("ethtool -L if0 tx 2"), "{text}");
        let text = said(counts(4, 2, 2), &[0, 3]).unwrap();
        assert!(text.contains("queue 3 of if0") && text.contains("ethtool -L if0 rx 2"), "{text}");
    }
}
