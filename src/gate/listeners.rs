//! Whether a socket of this namespace serves a service, by /proc/net/tcp6 and udp6.

use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6};

use super::{GateService, Protocol};

/// The state TCP_LISTEN of net/tcp_states.h, and that of an unconnected UDP socket (TCP_CLOSE).
const LISTENING: &str = "0A";
const UNCONNECTED: &str = "07";

/// Which of the services have a socket, in their order. All have one where the kernel does not say.
pub(super) fn listening(services: &[GateService]) -> Vec<bool> {
    let table = |name| fs::read_to_string(format!("/proc/thread-self/net/{name}")).ok();
    let (tcp, udp) = (table("tcp6"), table("udp6"));
    let listens = |service: &GateService| {
        let (table, state) = match service.protocol {
            Protocol::Tcp => (&tcp, LISTENING),
            Protocol::Udp => (&udp, UNCONNECTED),
        };
        table.as_ref().is_none_or(|table| has(table, state, service.listener))
    };
    services.iter().map(listens).collect()
}

/// Whether a table lists a socket in that state which gets what is sent to `listener`.
fn has(table: &str, state: &str, listener: SocketAddrV6) -> bool {
    table.lines().skip(1).any(|line| {
        let mut words = line.split_whitespace().skip(1);
        let (local, is_state) = (words.next().and_then(parse), words.nth(1) == Some(state));
        local.is_some_and(|(address, port)| {
            let is_there = address == *listener.ip() || address.is_unspecified();
            is_state && is_there && port == listener.port()
        })
    })
}

/// Parses an address and port as in /proc/net/tcp6: four words in the machine's byte order, and the
/// port (net/ipv6/tcp_ipv6.c).
fn parse(text: &str) -> Option<(Ipv6Addr, u16)> {
    let (address, port) = text.split_once(':')?;
    let mut octets = [0; 16];
    for (index, word) in octets.chunks_exact_mut(4).enumerate() {
        let digits = address.get(8 * index..8 * index + 8)?;
        word.copy_from_slice(&u32::from_str_radix(digits, 16).ok()?.to_ne_bytes());
    }
    Some((octets.into(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener, UdpSocket};

    #[test]
    fn sockets_of_this_machine_are_found_and_none_else() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let any = UdpSocket::bind("[::]:0").unwrap();
        let service = |protocol, place: SocketAddr| {
            let SocketAddr::V6(listener) = place else { panic!("{place}") };
            GateService { protocol, port: 1, listener }
        };
        let (tcp, udp) = (listener.local_addr().unwrap(), any.local_addr().unwrap());
        let loopback = SocketAddr::from((Ipv6Addr::LOCALHOST, udp.port()));
        let services = |tcp| {
            [
                service(Protocol::Tcp, tcp),
                service(Protocol::Udp, udp),
                service(Protocol::Udp, loopback),
            ]
        };
        assert_eq!(listening(&services(tcp)), [true; 3]);
        // Bound to loopback alone: not to be found by any other address.
        let elsewhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, tcp.port()));
        assert_eq!(listening(&services(elsewhere)), [false, true, true]);
        drop(listener);
        assert!(!listening(&services(tcp))[0]);
    }
}
