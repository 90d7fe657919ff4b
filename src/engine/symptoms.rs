//! What a server's counters give away about a fault elsewhere: a sentence for each, said once.

use crate::report::Counters;

/// Remembers what was said already.
#[derive(Debug, Default)]
pub(super) struct Symptoms {
    said: Vec<Symptom>,
}

/// A fault that counters can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symptom {}

/// All of them, each with the test for it: what to say, if the counters show it.
type Rule = (Symptom, fn(&Counters) -> Option<String>);
const RULES: [Rule; 0] = [];

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
