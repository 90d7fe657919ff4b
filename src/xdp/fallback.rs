//! What an automatic choice says of itself when it did not get the best there is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One step down that was taken because the step above was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// The choice, by the name of its flag: `attach` or `copy`.
    pub what: String,
    /// What was tried.
    pub from: String,
    /// What was taken instead.
    pub to: String,
    /// Why the first was refused.
    pub why: String,
}

impl Fallback {
    pub(super) fn new(
        what: &str,
        from: impl fmt::Display,
        to: impl fmt::Display,
        why: String,
    ) -> Self {
        Self { what: what.to_owned(), from: from.to_string(), to: to.to_string(), why }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, from, to, why } = self;
        write!(f, "--{what} auto falls back from {from} to {to}: {why}")
    }
}
