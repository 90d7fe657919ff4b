//! WHAT IS ANSWERED: a [`Service`] makes of one datagram its answer. Whether the datagram may be
//! answered at all was decided before, and how packets travel is the engine's business.
//!
//! ```text
//!   engine ─► Handler: may it be answered? ─► Service: what is the answer? ─► engine
//!                                              payload in place, room behind it
//! ```
//!
//! docs/services.md shows how to write one, examples/echo.rs a whole server.

mod echo;
mod outbox;

use std::net::Ipv6Addr;
use std::num::NonZero;
use std::time::Duration;

pub use crate::address::Client;
#[doc(inline)]
pub use crate::wire::MAX_PAYLOAD;
pub use echo::Echo;
pub use outbox::{Outbox, Peer, Unsent};

/// Answers datagrams. Each worker has a clone of its own and calls it from one thread.
pub trait Service: Clone + Send + 'static {
    /// Whether no answer ever changes the payload. Engines then lend no room behind it, and save
    /// the work of that.
    const UNCHANGED: bool = false;

    /// Whether it wants to know which [client](Datagram::client) asks, where addresses move. That
    /// takes memory for each address that is live, and a cache miss a datagram.
    const CLIENTS: bool = false;

    /// Whether it sends without being asked: its [turn](Self::turn) comes then.
    const UNASKED: bool = false;

    /// A chance to send without being asked, in each turn of its worker, for services that are
    /// [`UNASKED`](Self::UNASKED). Returns how long it can wait for the next one: it comes earlier
    /// where there is something to do, and after a tenth of a second at the latest; while nothing
    /// else is to be done, to a millisecond.
    fn turn(&mut self, outbox: &mut impl Outbox) -> Duration {
        let _ = outbox;
        Duration::MAX
    }

    /// Answers one datagram that may be answered. It runs between two packets: what it waits for,
    /// all requests of this worker wait for.
    fn answer(&mut self, datagram: &mut Datagram) -> Answer;

    /// The same service as an echo, where it is one. The engine `reflect` takes no other: the
    /// kernel runs that one by itself.
    fn as_echo(&self) -> Option<Echo> {
        None
    }
}

/// What a service answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Nothing. It is counted as `no_answer`.
    Nothing,
    /// The payload as it came: no checksum is computed.
    Same {
        /// How often it is sent.
        copies: NonZero<u8>,
    },
    /// What is now in the buffer.
    Changed {
        /// How many bytes of it. More than the buffer holds are no answer.
        length: usize,
        /// How often it is sent.
        copies: NonZero<u8>,
    },
}

impl Answer {
    /// The payload as it came, once.
    #[must_use]
    pub const fn same() -> Self {
        Self::Same { copies: NonZero::<u8>::MIN }
    }

    /// The first `length` bytes of what is now in the buffer, once.
    #[must_use]
    pub const fn changed(length: usize) -> Self {
        Self::Changed { length, copies: NonZero::<u8>::MIN }
    }

    /// The same answer, sent so often.
    #[must_use]
    pub const fn times(self, copies: u8) -> Self {
        match (self, NonZero::new(copies)) {
            (Self::Nothing, _) | (_, None) => Self::Nothing,
            (Self::Same { .. }, Some(copies)) => Self::Same { copies },
            (Self::Changed { length, .. }, Some(copies)) => Self::Changed { length, copies },
        }
    }
}

/// A datagram that is to be answered.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Who asks.
    pub source: Ipv6Addr,
    /// The port that the answer goes to.
    pub source_port: u16,
    /// Which live address was asked: the answer comes from there.
    pub asked: Ipv6Addr,
    buffer: &'a mut [u8],
    length: usize,
    touched: bool,
    client: Option<Client>,
    macs: Option<[[u8; 6]; 2]>,
}

impl<'a> Datagram<'a> {
    /// A datagram whose payload is the first `length` bytes of `buffer`; all of it where that is
    /// shorter. The rest is room for the answer.
    #[inline]
    pub fn new(
        (source, source_port): (Ipv6Addr, u16),
        asked: Ipv6Addr,
        buffer: &'a mut [u8],
        length: usize,
    ) -> Self {
        let length = length.min(buffer.len());
        Self {
            source,
            source_port,
            asked,
            buffer,
            length,
            touched: false,
            client: None,
            macs: None,
        }
    }

    /// The same, sent to an address of `client`.
    #[doc(hidden)]
    #[inline]
    #[must_use]
    pub fn of(self, client: Option<Client>) -> Self {
        Self { client, ..self }
    }

    /// The same, in a frame between these Ethernet addresses: the source's, and ours.
    #[doc(hidden)]
    #[inline]
    #[must_use]
    pub fn between(self, macs: Option<[[u8; 6]; 2]>) -> Self {
        Self { macs, ..self }
    }

    /// Who asks, to [send](Outbox::send) there later.
    #[must_use]
    pub fn peer(&self) -> Peer {
        let Self { source, source_port, asked, macs, .. } = *self;
        Peer { source: (source, source_port), asked, macs }
    }

    /// Whose address was asked, and in which time step it is that client's: the one that it is, the
    /// one before, or the next. `None` where the addresses stay, and for a service that does not
    /// [want to know](Service::CLIENTS).
    #[inline]
    #[must_use]
    pub fn client(&self) -> Option<Client> {
        self.client
    }

    /// The payload.
    #[inline]
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.buffer[..self.length]
    }

    /// The payload and the room behind it, to write the answer into. It holds the payload and any
    /// answer that fits into a packet of the link, up to
    /// [`MAX_PAYLOAD`] bytes. What is behind the payload is left from
    /// other packets.
    #[inline]
    pub fn buffer(&mut self) -> &mut [u8] {
        self.touched = true;
        self.buffer
    }

    /// What `service` answers. A payload that may have been written is not called the same, since
    /// its checksum would be wrong.
    #[inline]
    pub(crate) fn answered_by<S: Service>(&mut self, service: &mut S) -> Answer {
        match service.answer(self) {
            Answer::Same { copies } if self.touched => {
                Answer::Changed { length: self.length, copies }
            }
            Answer::Changed { length, .. } if length > self.buffer.len() => Answer::Nothing,
            answer => answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Answers with one of these, after it has written into the buffer or not.
    #[derive(Clone)]
    struct Fixed(Answer, bool);

    impl Service for Fixed {
        fn answer(&mut self, datagram: &mut Datagram) -> Answer {
            if self.1 {
                datagram.buffer().fill(1);
            }
            self.0
        }
    }

    fn answer(service: &mut impl Service) -> Answer {
        let mut buffer = [7; 100];
        let ends = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        Datagram::new((ends.0, 50_000), ends.1, &mut buffer, 32).answered_by(service)
    }

    proptest! {
        #[test]
        fn no_copies_are_no_answer(length: usize, copies: u8) {
            for one in [Answer::same(), Answer::changed(length)] {
                match one.times(copies) {
                    Answer::Nothing => prop_assert_eq!(copies, 0),
                    Answer::Same { copies: some } | Answer::Changed { copies: some, .. } => {
                        prop_assert_eq!(some.get(), copies);
                    }
                }
            }
            prop_assert_eq!(Answer::Nothing.times(copies), Answer::Nothing);
        }
    }

    #[test]
    fn a_written_payload_is_not_the_same() {
        assert_eq!(answer(&mut Fixed(Answer::same(), false)), Answer::same());
        assert_eq!(answer(&mut Fixed(Answer::same(), true)), Answer::changed(32));
        assert_eq!(answer(&mut Fixed(Answer::Nothing, true)), Answer::Nothing);
    }

    #[test]
    fn an_answer_that_the_buffer_does_not_hold_is_none() {
        assert_eq!(answer(&mut Fixed(Answer::changed(100), true)), Answer::changed(100));
        assert_eq!(answer(&mut Fixed(Answer::changed(101), true)), Answer::Nothing);
        assert_eq!(answer(&mut Fixed(Answer::changed(usize::MAX), false)), Answer::Nothing);
    }
}
