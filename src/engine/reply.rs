//! What every engine but reflect does with a request: the handler decides, the service answers, and
//! the reply lies where the request was.

use std::net::Ipv6Addr;
use std::num::NonZero;

use super::Handler;
use crate::net::netlink::Link;
use crate::service::{Answer, Client, Datagram, Service};
use crate::wire::{self, MAX_PAYLOAD, OVERHEAD, Refusal};

/// A reply, in place of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    /// In bytes: of the whole frame, or of its payload where the kernel makes the rest.
    pub length: usize,
    /// How often it goes.
    pub copies: NonZero<u8>,
}

/// Turns the frame in the first `length` bytes of `buffer` into its reply. Where the service does
/// not change the payload, that is the frame itself, with nothing summed again.
///
/// # Errors
/// Why there is none.
#[inline]
pub(super) fn to_frame<S: Service>(
    handler: &Handler,
    service: &mut S,
    buffer: &mut [u8],
    length: usize,
) -> Result<Reply, Refusal> {
    let mut request = wire::validate_within(buffer, length, handler.port())?;
    let (source, asked) = ((request.source(), request.source_port()), request.destination());
    handler.decide(source.0, source.1, asked)?;
    let client = client::<S>(handler, asked)?;
    let mac = S::UNASKED.then(|| request.mac());
    let (payload, length) = request.payload_mut();
    let datagram = Datagram::new(source, asked, payload, length).of(client);
    match datagram.framed_by(mac).answered_by(service) {
        Answer::Same { copies } => Ok(Reply { length: request.into_reply(), copies }),
        Answer::Changed { length, copies } => {
            let length = request.into_changed_reply(length).ok_or(Refusal::NoAnswer)?;
            Ok(Reply { length, copies })
        }
        Answer::Nothing => Err(Refusal::NoAnswer),
    }
}

/// Whose address was `asked`, for a service that wants to know.
///
/// # Errors
/// When it has moved meanwhile.
#[inline]
fn client<S: Service>(handler: &Handler, asked: Ipv6Addr) -> Result<Option<Client>, Refusal> {
    if S::CLIENTS { handler.client(asked) } else { Ok(None) }
}

/// The reply to a datagram that was decided on, whose payload is the first `length` bytes of
/// `buffer`: the kernel makes the headers.
///
/// # Errors
/// Why there is none.
pub(super) fn to_payload<S: Service>(
    handler: &Handler,
    service: &mut S,
    source: (Ipv6Addr, u16),
    asked: Ipv6Addr,
    buffer: &mut [u8],
    length: usize,
) -> Result<Reply, Refusal> {
    let client = client::<S>(handler, asked)?;
    match Datagram::new(source, asked, buffer, length).of(client).answered_by(service) {
        Answer::Same { copies } => Ok(Reply { length, copies }),
        Answer::Changed { length, copies } => Ok(Reply { length, copies }),
        Answer::Nothing => Err(Refusal::NoAnswer),
    }
}

/// Bytes of payload that a reply on `link` may have, whatever its request had: the most that need
/// no fragments, and that every engine has room for.
pub(super) fn room(link: &Link) -> usize {
    (link.mtu as usize).saturating_sub(OVERHEAD - ETHERNET).min(MAX_PAYLOAD)
}

/// Bytes of the Ethernet header, which an MTU does not count (IEEE 802.3).
const ETHERNET: usize = 14;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::service::Echo;
    use crate::wire::{Endpoints, Stamp, Template, validate};

    #[test]
    fn an_echo_is_what_the_handler_makes_of_a_request() {
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap();
        let ends = Endpoints {
            source_mac: [2; 6],
            destination_mac: [4; 6],
            source: "2001:db8:1::1".parse().unwrap(),
            source_port: 50_000,
            service_port: 3540,
        };
        let mut frame = vec![0; 100];
        let stamp = Stamp { run: 1, sequence: 2 };
        let template = Template::new(&ends, 32).unwrap();
        let length = template.write(&mut frame, pool.address(3), stamp).unwrap();
        let handler = Handler::new(3540, pool, vec![]);
        let mut expected = frame.clone();
        let expected_length = handler.answer(&mut expected[..length]).unwrap();
        let reply = to_frame(&handler, &mut Echo::new(10), &mut frame, length).unwrap();
        assert_eq!(reply, Reply { length: expected_length, copies: NonZero::new(10).unwrap() });
        assert_eq!(frame, expected);
        assert!(validate(&mut frame[..length], 50_000).is_ok());
    }
}
