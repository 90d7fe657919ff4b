//! What a server's counters give away about a fault elsewhere: a sentence for each, said once.

use crate::report::Counters;
use crate::wire::Refusal;

/// Remembers what was said already.
#[derive(Debug, Default)]
pub(super) struct Symptoms {
    said: Vec<Symptom>,
}

/// A fault that counters can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symptom {
    UnfinishedChecksums,
}

/// All of them, each with the test for it: what to say, if the counters show it.
type Rule = (Symptom, fn(&Counters) -> Option<String>);
const RULES: [Rule; 1] = [(Symptom::UnfinishedChecksums, unfinished_checksums)];

fn unfinished_checksums(counters: &Counters) -> Option<String> {
    counters.refused.contains_key(Refusal::UnfinishedChecksum.name()).then(|| {
        "requests come with unfinished checksums and are not answered (their sender leaves checksums to its \
         interface, and a veth or tap fills none in): run 'ethtool -K IF tx off' for the sender's interface, in its \
         namespace, container or guest, or serve with --engine socket"
            .to_owned()
    })
}

impl Symptoms {
    /// What `counters` show that was not said before.
    pub fn look(&mut self, counters: &Counters) -> Vec<String> {
        let mut news = Vec::new();
        for (symptom, shows) in RULES {
            if self.said.contains(&symptom) {
                continue;
            }
            if let Some(words) = shows(counters) {
                self.said.push(symptom);
                news.push(words);
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_checksums_are_said_once_and_damaged_ones_are_none() {
        let mut symptoms = Symptoms::default();
        let mut counters = Counters::default();
        counters.refused.insert(Refusal::BadChecksum.name().to_owned(), 3);
        assert_eq!(symptoms.look(&counters), Vec::<String>::new());
        counters.refused.insert(Refusal::UnfinishedChecksum.name().to_owned(), 1);
        let [said] = &symptoms.look(&counters)[..] else { panic!("nothing is said") };
        assert!(said.contains("ethtool -K") && said.contains("--engine socket"), "{said}");
        counters.refused.insert(Refusal::UnfinishedChecksum.name().to_owned(), 9);
        assert!(symptoms.look(&counters).is_empty());
    }
}
