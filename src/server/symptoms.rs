//! Faults elsewhere that a server's counters reveal: one sentence for each, given once.

use crate::engine::REDIRECT_FAILED;
use crate::events::Counters;
use crate::net::quirks::{self, Act};
use crate::wire::Refusal;

/// Remembers what was already said.
#[derive(Debug, Default)]
pub(super) struct Symptoms {
    said: Vec<Symptom>,
    stuck: Stuck,
}

/// A fault elsewhere that a running server can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Symptom {
    /// Senders leave checksums to an interface that fills none in.
    UnfinishedChecksums,
    /// The rings take nothing of what the XDP program redirects into them.
    NoRingTakes,
    /// The driver sends no replies of the XDP program.
    NothingLeaves,
    /// The kernel takes no replies out of the tx ring of a queue.
    Stuck,
    /// No neighbour asks for a live address, and a switch may keep back who does.
    NobodyAsks,
}

/// All of them, each with its test: the message, if the counters show it.
type Rule = (Symptom, fn(&Counters) -> Option<String>);
const RULES: [Rule; 3] = [
    (Symptom::UnfinishedChecksums, unfinished_checksums),
    (Symptom::NoRingTakes, no_ring_takes),
    (Symptom::NothingLeaves, nothing_leaves),
];

fn unfinished_checksums(counters: &Counters) -> Option<String> {
    counters.refused.contains_key(Refusal::UnfinishedChecksum.name()).then(|| {
        "requests come with unfinished checksums and are not answered (their sender leaves \
         checksums to its \
         interface, and a veth or tap fills none in): run 'ethtool -K IF tx off' for the sender's \
         interface, in its \
         namespace, container or guest"
            .to_owned()
    })
}

fn no_ring_takes(counters: &Counters) -> Option<String> {
    let count = counters.dropped.get(REDIRECT_FAILED)?;
    Some(format!(
        "the rings did not take {count} packets that the XDP program redirected into them \
         ({REDIRECT_FAILED}): the program may run on another device than the one that is served"
    ))
}

/// For an XDP program that answers by itself.
fn nothing_leaves(counters: &Counters) -> Option<String> {
    let reflected = *counters.steering.get("reflected")?;
    // Some may be on their way.
    (reflected >= 10 && counters.replies == 0).then(|| {
        format!(
            "none of the replies to {reflected} requests left: the driver takes no frames from an \
             XDP program; {}",
            quirks::hint(Act::ReflectAllTheSame)
        )
    })
}

impl Symptoms {
    /// What `counters` show that was not said before.
    pub fn look(&mut self, counters: &Counters) -> Vec<(String, Symptom)> {
        let stuck = self.stuck.look(counters).into_iter();
        let mut news: Vec<_> = stuck.map(|words| (words, Symptom::Stuck)).collect();
        for (symptom, shows) in RULES {
            if self.said.contains(&symptom) {
                continue;
            }
            if let Some(words) = shows(counters) {
                self.said.push(symptom);
                news.push((words, symptom));
            }
        }
        news
    }
}

/// Queues whose replies stay in the tx ring although the kernel was woken.
#[derive(Debug, Default)]
struct Stuck {
    /// For each queue that had replies waiting at the last check: how many it had sent.
    before: Vec<(u32, u64)>,
    said: Vec<u32>,
}

impl Stuck {
    /// Call this once a second. A queue is stuck if it had replies waiting and sent none in
    /// between.
    fn look(&mut self, counters: &Counters) -> Vec<String> {
        let waiting = counters.queues.iter().filter(|queue| queue.levels.tx > 0);
        let now: Vec<_> = waiting.map(|queue| (queue.queue, queue.replies)).collect();
        let stuck = now.iter().filter(|queue| self.before.contains(queue)).map(|(queue, _)| *queue);
        let stuck: Vec<_> = stuck.filter(|queue| !self.said.contains(queue)).collect();
        self.before = now;
        self.said.extend(&stuck);
        let words = |queue: &u32| {
            format!(
                "replies of queue {queue} do not leave: the kernel takes none out of its tx ring \
                 ('ethtool -l' shows the transmit queues, 'ip link' whether the link is up)"
            )
        };
        stuck.iter().map(words).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::QueueCounters;
    use crate::xdp::{KernelCounters, RingLevels};

    fn counters(queues: &[(u64, u32)]) -> Counters {
        let queue = |(number, (replies, tx)): (usize, &(u64, u32))| QueueCounters {
            queue: number as u32,
            answered: 0,
            replies: *replies,
            levels: RingLevels { tx: *tx, ..RingLevels::default() },
            xdp: KernelCounters::default(),
        };
        Counters { queues: queues.iter().enumerate().map(queue).collect(), ..Counters::default() }
    }

    #[test]
    fn unfinished_checksums_are_said_once_and_damaged_ones_are_none() {
        let mut symptoms = Symptoms::default();
        let mut counters = Counters::default();
        counters.refused.insert(Refusal::BadChecksum.name().to_owned(), 3);
        assert!(symptoms.look(&counters).is_empty());
        counters.refused.insert(Refusal::UnfinishedChecksum.name().to_owned(), 1);
        let [(said, symptom)] = &symptoms.look(&counters)[..] else { panic!("nothing is said") };
        assert!(said.contains("ethtool -K"), "{said}");
        assert_eq!(*symptom, Symptom::UnfinishedChecksums);
        counters.refused.insert(Refusal::UnfinishedChecksum.name().to_owned(), 9);
        assert!(symptoms.look(&counters).is_empty());
    }

    #[test]
    fn a_ring_that_does_not_drain_is_named_once() {
        let mut symptoms = Symptoms::default();
        let mut look = |queues: &[_]| symptoms.look(&counters(queues));
        assert!(look(&[(0, 0), (0, 10)]).is_empty(), "it may be about to leave");
        let news = look(&[(10, 5), (0, 10)]);
        assert!(
            news.len() == 1 && news[0].0.starts_with("replies of queue 1 do not leave"),
            "{news:?}"
        );
        assert!(look(&[(20, 5), (0, 30)]).is_empty(), "it is said already, and queue 0 sends");
        assert!(look(&[(20, 0), (0, 30)]).is_empty(), "queue 0 has sent all");
        assert_eq!(look(&[(20, 4), (0, 30)]).len(), 0);
        assert_eq!(look(&[(20, 4), (0, 30)]).len(), 1, "queue 0 has stopped");
    }

    #[test]
    fn packets_that_no_ring_takes_and_replies_that_never_leave_are_said_once() {
        let mut symptoms = Symptoms::default();
        let mut seen = Counters::default();
        assert!(symptoms.look(&seen).is_empty());
        seen.drop(REDIRECT_FAILED, 4);
        let news = symptoms.look(&seen);
        assert!(news.len() == 1 && news[0].1 == Symptom::NoRingTakes, "{news:?}");
        assert!(symptoms.look(&seen).is_empty());
        seen.steering.insert("reflected".to_owned(), 10);
        seen.replies = 1;
        assert!(symptoms.look(&seen).is_empty());
        seen.replies = 0;
        let news = symptoms.look(&seen);
        assert!(news.len() == 1 && news[0].0.contains("gro on"), "{news:?}");
    }
}
