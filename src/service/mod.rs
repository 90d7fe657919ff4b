//! SERVICES: a [`Service`] turns a datagram into an answer. Policy has already decided whether the
//! datagram may be answered, and the engine handles packets.
//!
//! ```text
//!   engine ─► Handler: may it be answered? ─► Service: what is the answer? ─► engine
//!                                              payload in place, space behind it
//! ```
//!
//! docs/services.md shows how to write one; examples/echo.rs is a whole server.

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

/// Answers datagrams. Each worker has its own clone and calls it from one thread.
pub trait Service: Clone + Send + 'static {
    /// Whether no answer ever changes the payload. Engines then skip the work of providing space
    /// behind it.
    const UNCHANGED: bool = false;

    /// Whether it uses the [client](Datagram::client) of each datagram, with moving addresses. This
    /// costs memory for each live address, and one cache miss a datagram.
    const CLIENTS: bool = false;

    /// Whether it sends without being asked. If so, the worker calls [`turn`](Self::turn).
    const UNASKED: bool = false;

    /// Lets an [`UNASKED`](Self::UNASKED) service send without being asked, in each turn of its
    /// worker. Returns how long it can wait for the next turn. That may come earlier if there is
    /// other work, and comes after 100 ms at the latest. On an idle worker the wait is accurate to
    /// 1 ms.
    fn turn(&mut self, outbox: &mut impl Outbox) -> Duration {
        let _ = outbox;
        Duration::MAX
    }

    /// Answers one datagram that policy accepted. It runs between two packets: while it waits, all
    /// requests of this worker wait.
    fn answer(&mut self, datagram: &mut Datagram) -> Answer;

    /// The service as an echo, if it is one. The engine `reflect` accepts no other service: it runs
    /// an echo in the kernel.
    fn as_echo(&self) -> Option<Echo> {
        None
    }
}

/// A service's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// No answer. Counted as `no_answer`.
    Nothing,
    /// The payload as it arrived, for which no checksum is computed.
    Same {
        /// How many times to send it.
        copies: NonZero<u8>,
    },
    /// The current contents of the buffer.
    Changed {
        /// How many bytes of it. More than the buffer holds means no answer.
        length: usize,
        /// How many times to send it.
        copies: NonZero<u8>,
    },
}

impl Answer {
    /// The payload as it arrived, once.
    #[must_use]
    pub const fn same() -> Self {
        Self::Same { copies: NonZero::<u8>::MIN }
    }

    /// The first `length` bytes of the buffer's current contents, once.
    #[must_use]
    pub const fn changed(length: usize) -> Self {
        Self::Changed { length, copies: NonZero::<u8>::MIN }
    }

    /// The same answer, sent `copies` times.
    #[must_use]
    pub const fn times(self, copies: u8) -> Self {
        match (self, NonZero::new(copies)) {
            (Self::Nothing, _) | (_, None) => Self::Nothing,
            (Self::Same { .. }, Some(copies)) => Self::Same { copies },
            (Self::Changed { length, .. }, Some(copies)) => Self::Changed { length, copies },
        }
    }
}

/// A datagram to be answered.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// The address of the sender.
    pub source: Ipv6Addr,
    /// The sender's port, to which the answer goes.
    pub source_port: u16,
    /// The live address that was asked, and that the answer comes from.
    pub asked: Ipv6Addr,
    buffer: &'a mut [u8],
    length: usize,
    touched: bool,
    client: Option<Client>,
    mac: Option<[u8; 6]>,
}

impl<'a> Datagram<'a> {
    /// A datagram whose payload is the first `length` bytes of `buffer`, or all of it if it is
    /// shorter. The rest is space for the answer.
    #[inline]
    pub fn new(
        (source, source_port): (Ipv6Addr, u16),
        asked: Ipv6Addr,
        buffer: &'a mut [u8],
        length: usize,
    ) -> Self {
        let length = length.min(buffer.len());
        Self { source, source_port, asked, buffer, length, touched: false, client: None, mac: None }
    }

    /// The same, sent to an address of `client`.
    #[doc(hidden)]
    #[inline]
    #[must_use]
    pub fn of(self, client: Option<Client>) -> Self {
        Self { client, ..self }
    }

    /// The same, in a frame from this Ethernet address.
    #[doc(hidden)]
    #[inline]
    #[must_use]
    pub fn framed_by(self, mac: Option<[u8; 6]>) -> Self {
        Self { mac, ..self }
    }

    /// The sender, as a destination for a later [`send`](Outbox::send).
    #[must_use]
    pub fn peer(&self) -> Peer {
        let Self { source, source_port, asked, mac, .. } = *self;
        Peer { source: (source, source_port), asked, mac }
    }

    /// The client whose address was asked, and the step that the address belongs to: the current
    /// one, the one before, or the next. `None` with static addresses, and for a service without
    /// [`CLIENTS`](Service::CLIENTS).
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

    /// The payload and the space behind it, to write the answer into. The space suffices for any
    /// answer that fits a packet of the link, up to [`MAX_PAYLOAD`]
    /// bytes. Bytes behind the payload are stale data of other packets.
    #[inline]
    pub fn buffer(&mut self) -> &mut [u8] {
        self.touched = true;
        self.buffer
    }

    /// Copies `bytes` into the buffer, and answers with them; with nothing where they do not fit.
    #[inline]
    pub fn reply(&mut self, bytes: &[u8]) -> Answer {
        let Some(place) = self.buffer().get_mut(..bytes.len()) else { return Answer::Nothing };
        place.copy_from_slice(bytes);
        Answer::changed(bytes.len())
    }

    /// The answer of `service`. If the service may have written to the payload, `Same` becomes
    /// `Changed`, because the checksum would be wrong.
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

    /// Answers with this, after writing into the buffer or not.
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
    fn a_reply_is_copied_where_it_fits() {
        let mut buffer = [7; 100];
        let ends = (Ipv6Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        let mut datagram = Datagram::new((ends.0, 50_000), ends.1, &mut buffer, 32);
        assert_eq!(datagram.reply(&[1; 100]), Answer::changed(100));
        assert_eq!(datagram.reply(&[2; 101]), Answer::Nothing);
        assert_eq!(datagram.reply(&[3; 5]), Answer::changed(5));
        assert_eq!(datagram.reply(&[]), Answer::changed(0));
        assert_eq!(buffer, *[[3; 5].as_slice(), &[1; 95]].concat());
    }

    #[test]
    fn an_answer_that_the_buffer_does_not_hold_is_none() {
        assert_eq!(answer(&mut Fixed(Answer::changed(100), true)), Answer::changed(100));
        assert_eq!(answer(&mut Fixed(Answer::changed(101), true)), Answer::Nothing);
        assert_eq!(answer(&mut Fixed(Answer::changed(usize::MAX), false)), Answer::Nothing);
    }
}
