//! The paper's service: it sends each request back, usually ten times.
//!
//! Morrell, Ransbottom, Marchany, Tront, "Scaling IPv6 Address Bindings in Support of a Moving
//! Target Defense", section IV.

use std::num::NonZero;

use super::{Answer, Datagram, Service};

/// Sends each request back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// How many times.
    pub replies: NonZero<u8>,
}

impl Echo {
    /// An echo that sends each request back `replies` times, clamped to 1 to 255.
    #[must_use]
    pub fn new(replies: u16) -> Self {
        let replies = u8::try_from(replies).unwrap_or(u8::MAX);
        Self { replies: NonZero::new(replies).unwrap_or(NonZero::<u8>::MIN) }
    }
}

impl Service for Echo {
    const UNCHANGED: bool = true;

    #[inline(always)]
    fn answer(&mut self, _: &mut Datagram) -> Answer {
        Answer::Same { copies: self.replies }
    }

    fn as_echo(&self) -> Option<Echo> {
        Some(*self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_replies_at_least_once_and_as_often_as_one_byte_counts() {
        for (asked, replies) in [(0, 1), (1, 1), (10, 10), (255, 255), (256, 255), (u16::MAX, 255)]
        {
            assert_eq!(Echo::new(asked).replies.get(), replies);
        }
    }
}
