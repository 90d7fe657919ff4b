//! The report of an automatic choice that did not get the best mode.

use std::fmt;

pub use crate::events::Fallback;

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
