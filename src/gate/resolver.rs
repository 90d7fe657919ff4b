//! A NAME SERVER for a client's own programs: each of its names has the address that an identity
//! has now, for as long as the step lasts.
//!
//! ```text
//!   query for              response
//!   a name of ours, AAAA   the address, TTL to the end of the step, at least 1 s
//!   a name of ours, else   NOERROR without records
//!   any other name         REFUSED, on which a stub resolver asks its next server
//! ```
//!
//! Responses fit 512 bytes, so TCP is only for those who insist. Messages are read and written by
//! `domain`, of NLnet Labs, in the version that takes Rust 1.85.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use domain::base::iana::{Class, Opcode, OptRcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, PushError};
use domain::base::opt::{Opt, OptRecord};
use domain::base::wire::ParseError;
use domain::base::{Message, MessageBuilder, Name, StaticCompressor, ToName, Ttl};
use domain::rdata::Aaaa;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};

use crate::address::Identity;
use crate::host::time::unix_time;

/// The longest message that passes every link of IPv6 (MTU 1,280) in one packet.
const LONGEST: u16 = 1_232;

/// The longest query over TCP. Real ones are a tenth of it.
const LONGEST_QUERY: usize = 4_096;

/// Connections at a time, beyond which new ones are closed.
const CONNECTIONS: usize = 32;

/// A connection that says nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(5);

/// How often the stop flag is looked at.
const LOOK: u16 = 100; // ms

type Target = StaticCompressor<Vec<u8>>;

/// The names and their identities.
pub struct Names(HashMap<Name<Vec<u8>>, Identity>);

impl Names {
    /// No names.
    #[must_use]
    pub fn none() -> Self {
        Self(HashMap::new())
    }

    /// Adds `name`, of which upper and lower case are the same.
    ///
    /// # Errors
    /// If it cannot be a name, or is there already.
    pub fn add(&mut self, name: &str, identity: Identity) -> Result<()> {
        let parsed = name.parse::<Name<Vec<u8>>>();
        let parsed = parsed.map_err(|error| anyhow!("'{name}' cannot be a name: {error}"))?;
        ensure!(!self.0.contains_key(&parsed), "two identities are named {name}");
        self.0.insert(parsed, identity);
        Ok(())
    }

    /// The response to a message at `now`, in nanoseconds since 1970. `None` where it is a response
    /// itself, or too short to be told from one.
    #[must_use]
    pub fn respond(&self, query: &[u8], now: u64) -> Option<Vec<u8>> {
        let message = Message::from_slice(query).ok()?;
        if message.header().qr() {
            return None;
        }
        let edns = match opt(message) {
            Ok(edns) => edns.map(|edns| edns.version()),
            Err(_) => return Some(finish(empty(message, Rcode::FORMERR))),
        };
        let mut response = match message.sole_question() {
            _ if message.header().opcode() != Opcode::QUERY => empty(message, Rcode::NOTIMP),
            _ if edns > Some(0) => empty(message, Rcode::NOERROR), // BADVERS, by OPT
            Err(_) => empty(message, Rcode::FORMERR),
            Ok(question) => {
                let name: Name<Vec<u8>> = question.qname().to_name();
                let ours = matches!(question.qclass(), Class::IN | Class::ANY);
                match self.0.get(&name).filter(|_| ours) {
                    Some(identity) => answer(message, &name, question.qtype(), identity, now)
                        .unwrap_or_else(|_| empty(message, Rcode::SERVFAIL)),
                    None => empty(message, Rcode::REFUSED),
                }
            }
        };
        if let Some(version) = edns {
            let added = response.opt(|opt| {
                opt.set_udp_payload_size(LONGEST);
                if version > 0 {
                    opt.set_rcode(OptRcode::BADVERS);
                }
                Ok(())
            });
            debug_assert!(added.is_ok(), "a vector grows");
        }
        Some(finish(response))
    }
}

/// The answer to a question about `name`, which is `identity`'s.
fn answer(
    message: &Message<[u8]>,
    name: &Name<Vec<u8>>,
    rtype: Rtype,
    identity: &Identity,
    now: u64,
) -> Result<AdditionalBuilder<Target>, PushError> {
    let mut section = builder().start_answer(message, Rcode::NOERROR)?;
    // Without it, a stub resolver takes an answer without records for a referral.
    section.header_mut().set_aa(true);
    if matches!(rtype, Rtype::AAAA | Rtype::ANY) {
        let step = identity.clock().step(now);
        let left = Duration::from_nanos(identity.clock().start(step + 1).saturating_sub(now));
        let ttl = Ttl::from_secs(u32::try_from(left.as_secs()).unwrap_or(u32::MAX).max(1));
        section.push((name, Class::IN, ttl, Aaaa::new(identity.address(step))))?;
    }
    Ok(section.additional())
}

fn builder() -> MessageBuilder<Target> {
    let target = StaticCompressor::new(Vec::new());
    MessageBuilder::from_target(target).expect("a vector grows")
}

/// A response without records.
fn empty(message: &Message<[u8]>, rcode: Rcode) -> AdditionalBuilder<Target> {
    builder().start_error(message, rcode).additional()
}

fn finish(response: AdditionalBuilder<Target>) -> Vec<u8> {
    response.finish().into_target()
}

/// The OPT record of a query; an error where there are two.
fn opt(message: &Message<[u8]>) -> Result<Option<OptRecord<&[u8]>>, ParseError> {
    let mut records = message.additional()?.limit_to::<Opt<_>>();
    let first = records.next().transpose()?.map(OptRecord::from);
    match records.next() {
        Some(_) => Err(ParseError::form_error("two OPT records")),
        None => Ok(first),
    }
}

/// A name server whose sockets are open.
pub struct Resolver {
    names: Arc<Names>,
    udp: UdpSocket,
    tcp: TcpListener,
    connections: Arc<AtomicUsize>,
}

impl Resolver {
    /// Opens sockets at `listen`, for UDP and TCP.
    ///
    /// # Errors
    /// If something listens there already, or it is not for this process to do so.
    pub fn open(names: Names, listen: SocketAddr) -> Result<Self> {
        let cannot = |what| move || format!("cannot listen on {listen}, {what}");
        let udp = UdpSocket::bind(listen).with_context(cannot("UDP"))?;
        // Where the kernel has chosen the port, the same one.
        let tcp = udp.local_addr().and_then(TcpListener::bind).with_context(cannot("TCP"))?;
        udp.set_nonblocking(true).with_context(cannot("UDP"))?;
        tcp.set_nonblocking(true).with_context(cannot("TCP"))?;
        Ok(Self { names: Arc::new(names), udp, tcp, connections: Arc::default() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn address(&self) -> Result<SocketAddr> {
        self.udp.local_addr().context("cannot see where it listens")
    }

    /// Answers until `stop` is set.
    ///
    /// # Errors
    /// If the kernel refuses to wait.
    pub fn run(&self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let mut sockets =
                [self.udp.as_fd(), self.tcp.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut sockets, LOOK) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error).context("cannot wait for queries"),
            }
            self.answer_datagram();
            self.accept();
        }
        Ok(())
    }

    /// Answers one datagram, if there is one. Errors are of datagrams sent before, or of one who
    /// cannot be answered.
    fn answer_datagram(&self) {
        let mut query = [0; LONGEST_QUERY];
        let Ok((length, from)) = self.udp.recv_from(&mut query) else { return };
        if let Some(response) = self.names.respond(&query[..length], unix_time()) {
            let _ = self.udp.send_to(&response, from);
        }
    }

    /// Accepts one connection, if there is one, and has a thread answer on it.
    fn accept(&self) {
        let Ok((stream, _)) = self.tcp.accept() else { return };
        let (names, connections) = (self.names.clone(), self.connections.clone());
        if connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            connections.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        // Never joined: one who is idle does not keep the process.
        thread::spawn(move || {
            let _ = converse(&names, stream);
            connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Answers the queries of one connection, each with its length before it (RFC 7766).
fn converse(names: &Names, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    let mut query = [0; LONGEST_QUERY];
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        let query = query.get_mut(..length).ok_or(io::ErrorKind::InvalidData)?;
        stream.read_exact(query)?;
        let response = names.respond(query, unix_time()).ok_or(io::ErrorKind::InvalidData)?;
        let length = (response.len() as u16).to_be_bytes(); // at most 512
        stream.write_all(&[&length, &response[..]].concat())?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Secret;
    use crate::address::identity::Services;
    use crate::address::mt6d::{Clock, Subnet};
    use domain::base::Question;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn identity() -> Identity {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let clock = Clock::new(Duration::from_secs(10)).unwrap();
        let secret = Secret::new(vec![7; 16]).unwrap();
        Identity::new(subnet, clock, &secret, 4, Services::new()).unwrap()
    }

    fn names() -> Names {
        let mut names = Names::none();
        names.add("home.sixhop", identity()).unwrap();
        names
    }

    fn query(name: &str, rtype: Rtype, class: Class) -> Vec<u8> {
        let mut section = MessageBuilder::new_vec().question();
        let name = name.parse::<Name<Vec<u8>>>().unwrap();
        section.push(Question::new(name, rtype, class)).unwrap();
        section.finish()
    }

    /// Status, AA, and the TTL and address of each record.
    fn ask(query: &[u8], now: u64) -> (Rcode, bool, Vec<(u32, Aaaa)>) {
        let response = names().respond(query, now).unwrap();
        let message = Message::from_octets(response).unwrap();
        assert!(message.header().qr());
        let records = message.answer().unwrap().limit_to::<Aaaa>();
        let records = records.map(|record| record.unwrap());
        let records =
            records.map(|record| (record.ttl().as_secs(), record.data().clone())).collect();
        (message.header().rcode(), message.header().aa(), records)
    }

    #[test]
    fn a_name_has_its_address_until_the_step_ends() {
        let question = query("HOME.sixhop", Rtype::AAAA, Class::IN);
        let (own, start) = (identity(), 1_780_000_000 * SECOND);
        for (into, ttl) in [(0, 10), (1, 9), (5 * SECOND, 5), (9 * SECOND, 1), (10 * SECOND - 1, 1)]
        {
            let expected = (ttl, Aaaa::new(own.address(178_000_000)));
            assert_eq!(ask(&question, start + into), (Rcode::NOERROR, true, vec![expected]));
        }
        let (.., next) = ask(&question, start + 10 * SECOND);
        assert_eq!(next, [(10, Aaaa::new(own.address(178_000_001)))]);
    }

    #[test]
    fn other_types_have_nothing_and_other_names_are_refused() {
        let now = 1_780_000_000 * SECOND;
        for rtype in [Rtype::A, Rtype::HTTPS, Rtype::TXT, Rtype::SOA] {
            let found = ask(&query("home.sixhop", rtype, Class::IN), now);
            assert_eq!(found, (Rcode::NOERROR, true, vec![]), "{rtype}");
        }
        for name in ["sixhop", "away.sixhop", "x.home.sixhop", "home", "example.org", "."] {
            let found = ask(&query(name, Rtype::AAAA, Class::IN), now);
            assert_eq!(found, (Rcode::REFUSED, false, vec![]), "{name}");
        }
        let chaos = query("home.sixhop", Rtype::AAAA, Class::CH);
        assert_eq!(ask(&chaos, now), (Rcode::REFUSED, false, vec![]));
        let mut two = names();
        assert!(two.add("Home.SIXHOP", identity()).unwrap_err().to_string().contains("two"));
        assert!(two.add("a..b", identity()).unwrap_err().to_string().contains("cannot be"));
    }

    proptest! {
        /// Also those that begin as a real query does.
        #[test]
        fn whatever_comes_is_answered_within_512_bytes_or_not_at_all(
            noise in proptest::collection::vec(any::<u8>(), 0..300), cut: prop::sample::Index,
        ) {
            let real = query("home.sixhop", Rtype::AAAA, Class::IN);
            let mixed = [&real[..cut.index(real.len() + 1)], &noise].concat();
            for query in [noise, mixed] {
                if let Some(response) = names().respond(&query, 5) {
                    prop_assert!(response.len() <= 512 && response[..2] == query[..2]);
                    prop_assert!(response[2] & 0x80 != 0);
                }
            }
        }
    }
}
