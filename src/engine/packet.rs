//! Packet sockets (packet(7)), as the engines raw and packet-ring have them: which frames come to
//! them, how several share these, and how replies are handed over.
//!
//! ```text
//!   link ─► tap (filter: UDP to the service port) ─► worker ─► sender ─► link
//!      └──► the kernel's IPv6 ─► a UDP socket that keeps the port and drops what came to the tap
//!                                (behind)
//! ```
//!
//! A packet socket is a tap: the kernel's own stack gets each request as well. Without a socket on
//! the port it would tell the client that the port is unreachable, so there is one; it also shows
//! that no other server has the port, and answers what does not come to the tap.
//!
//! `unsafe` are the system calls.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::CounterSet;
use super::statistics::Shown;
use super::udp::{self, DOZE, SocketCounters};
use crate::events::Counters;
use crate::net::netlink::Link;
use crate::net::{denied, option};
use crate::wire::{OVERHEAD, join};

/// Bytes of the Ethernet header, which an interface's MTU does not count (IEEE 802.3).
const ETHERNET: usize = 14;

/// Where the UDP header starts in a frame, and where the checksum is in it (RFC 768).
const UDP: usize = OVERHEAD - 8;
const CHECKSUM: usize = 6;

/// Bytes of a virtio_net_hdr (linux/virtio_net.h), which says how a frame is to be cut.
const VNET: usize = 10;

/// What stands before the payload of a frame that is handed over.
pub(super) const HEAD: usize = VNET + OVERHEAD;

/// Bytes of memory that frames may take which are on their way out: as many as the largest ring of
/// packet-ring holds, with what the kernel adds to each.
const SEND_BUFFER: usize = 16 << 20;

/// Bytes of the largest frame on the link.
pub(super) fn largest_frame(link: &Link) -> usize {
    link.mtu as usize + ETHERNET
}

/// Has a UDP socket on the service port take only what does not come to taps.
pub(super) fn leave_to_taps(socket: &OwnedFd, mtu: u32) -> Result<()> {
    option::set_filter(socket, &all_but_requests(mtu)).context("no filter for a UDP socket")
}

/// A packet socket that requests come to, and nothing else.
pub(super) struct Tap {
    pub socket: OwnedFd,
    dropped: AtomicU64,
}

impl Tap {
    /// One to which nothing comes before [`listen`].
    pub fn open() -> Result<Arc<Self>> {
        let socket = packet_socket()?;
        option::set_filter(&socket, &NOTHING).context("no filter for a packet socket")?;
        udp::set_receive_buffer(&socket)?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::milliseconds(DOZE.as_millis() as i64),
        )?;
        Ok(Arc::new(Self { socket, dropped: AtomicU64::new(0) }))
    }

    /// Requests that the kernel dropped for want of room, since it was opened.
    fn dropped(&self) -> u64 {
        let [_, dropped] = option::get(&self.socket, option::PACKET_STATISTICS).unwrap_or_default();
        self.dropped.fetch_add(dropped.into(), Ordering::Relaxed) + u64::from(dropped)
    }
}

/// Has requests to `port` come to `taps`, each to one of them: which one, addresses and ports
/// decide.
pub(super) fn listen(taps: &[Arc<Tap>], link: &Link, port: u16) -> Result<()> {
    for tap in taps {
        // Of one protocol alone: what the interface sends does not come to such a socket.
        bind(&tap.socket, link, libc::ETH_P_IPV6 as u16)?;
    }
    if taps.len() > 1 {
        // The first asks for a number that no other group has; the others join what it got.
        let mut group = (libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_UNIQUEID) << 16;
        for tap in taps {
            option::set(&tap.socket, option::PACKET_FANOUT, &group)
                .context("packet sockets cannot share the requests")?;
            group = option::get(&tap.socket, option::PACKET_FANOUT)?;
        }
    }
    // Not before: sockets that do not share yet would get a request each.
    for tap in taps {
        option::set_filter(&tap.socket, &requests(port))
            .context("no filter for a packet socket")?;
    }
    Ok(())
}

/// A packet socket that only sends, and whether the kernel cuts what it sends: each frame is to
/// begin with a virtio_net_hdr then.
///
/// Nothing says whether it does (VIRTIO_NET_HDR_GSO_UDP_L4, Linux 6.2), and to try would put a
/// packet on the link. PACKET_VNET_HDR_SZ came after (6.5): a kernel that knows it cuts, and does
/// so itself for an interface that cannot.
pub(super) fn sender(link: &Link) -> Result<(OwnedFd, bool)> {
    let socket = packet_socket()?;
    let cuts = option::set(&socket, option::PACKET_VNET_HDR_SZ, &(VNET as libc::c_int)).is_ok();
    if setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER)?;
    }
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::milliseconds(DOZE.as_millis() as i64))?;
    // Protocol 0: nothing comes to it. PACKET_QDISC_BYPASS is no choice: it drops what the kernel
    // has to cut itself.
    bind(&socket, link, 0)?;
    Ok((socket, cuts))
}

/// A packet socket that only sends, frames as they are.
pub(super) fn plain_sender(link: &Link) -> Result<OwnedFd> {
    let socket = packet_socket()?;
    bind(&socket, link, 0)?;
    Ok(socket)
}

/// Equal replies that go as one frame, which the kernel cuts where they are more than one.
pub(super) struct Bundle<'a> {
    head: [u8; HEAD],
    /// Where the head starts: without a virtio_net_hdr where the kernel wants none.
    start: usize,
    /// What each carries.
    pub payload: &'a [u8],
    /// How many they are.
    pub copies: usize,
}

impl Bundle<'_> {
    /// What comes before the payload.
    pub fn head(&self) -> &[u8] {
        &self.head[self.start..]
    }
}

/// `count` times `reply`, in frames of at most `room` bytes. `cuts`: as [`sender`] says.
pub(super) fn bundles(
    reply: &[u8],
    count: usize,
    cuts: bool,
    room: usize,
) -> impl Iterator<Item = Bundle<'_>> {
    let (headers, payload) = reply.split_first_chunk::<OVERHEAD>().unwrap_or((&[0; OVERHEAD], &[]));
    let most = match (cuts, room.saturating_sub(HEAD).checked_div(payload.len())) {
        (true, Some(fit)) => udp::segments(payload.len()).min(fit).max(1),
        _ => 1,
    };
    let mut left = count;
    std::iter::from_fn(move || {
        let copies = left.min(most);
        left -= copies;
        (copies > 0).then(|| Bundle {
            head: head(headers, payload.len(), copies),
            start: if cuts { 0 } else { VNET },
            payload,
            copies,
        })
    })
}

/// A virtio_net_hdr and the headers of `copies` replies in one.
fn head(headers: &[u8; OVERHEAD], payload: usize, copies: usize) -> [u8; HEAD] {
    const NEEDS_CSUM: u8 = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
    const GSO_UDP_L4: u8 = 5; // VIRTIO_NET_HDR_GSO_UDP_L4
    let mut headers = *headers;
    let mut head = [0; HEAD];
    // All zero, it says that there is nothing to cut and nothing to sum.
    if copies > 1 && join(&mut headers, copies) {
        head[..2].copy_from_slice(&[NEEDS_CSUM, GSO_UDP_L4]);
        // Length of the headers, of a piece's payload, and where the checksum is.
        let numbers =
            [OVERHEAD, payload, UDP, CHECKSUM].map(|number| (number as u16).to_ne_bytes());
        head[2..VNET].copy_from_slice(numbers.as_flattened());
    }
    head[VNET..].copy_from_slice(&headers);
    head
}

/// What to tell of an error that ends the work: the interface is down, or gone.
pub(super) fn fatal(error: io::Error, interface: &str) -> anyhow::Error {
    match error.raw_os_error() {
        Some(libc::ENETDOWN | libc::ENXIO) => anyhow!(
            "{interface} is down, or has gone, and its addresses with it: set it up with 'ip link \
             set {interface} up' and start again"
        ),
        _ => anyhow!("a packet socket on {interface} fails: {error}"),
    }
}

/// The counts of an engine on packet sockets.
pub(super) struct PacketCounters {
    /// What its requests come to.
    pub taps: Vec<Arc<Tap>>,
    /// Where its threads show theirs.
    pub shown: Vec<Arc<Shown>>,
    /// Those of the socket behind.
    pub behind: SocketCounters,
}

impl CounterSet for PacketCounters {
    fn read(&self) -> Counters {
        let behind = self.behind.tally();
        let mut tally = behind.clone();
        self.shown.iter().for_each(|shown| tally.add(&shown.load()));
        let mut counters = tally.counters();
        // A slot of a ring that made no sense brought no packet.
        counters.dropped.remove("invalid");
        counters.drop("invalid", behind.invalid);
        counters.answered_behind = behind.answered;
        counters.refused_behind = behind.refused.iter().sum();
        counters.with_socket_dropped(Some(self.taps.iter().map(|tap| tap.dropped()).sum()))
    }

    fn beats(&self) -> Vec<u64> {
        self.shown.iter().map(|shown| shown.beats()).chain(self.behind.beats()).collect()
    }
}

/// Bound to no interface, so that nothing comes before everything is set.
fn packet_socket() -> Result<OwnedFd> {
    socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)
        .map_err(denied::no_packet_socket)
}

fn bind(socket: &OwnedFd, link: &Link, protocol: u16) -> Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol.to_be(),
        sll_ifindex: link.index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of_val(&address) as libc::socklen_t;
    // SAFETY: the address is valid for reads of its length.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
            .with_context(|| format!("cannot bind a packet socket to {}", link.name))
    }
}

const fn instruction(code: u32, k: u32, jump_unless: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: jump_unless, k }
}

/// A filter that lets nothing through.
const NOTHING: [libc::sock_filter; 1] = [instruction(libc::BPF_RET, 0, 0)];

/// A filter that lets through UDP to `port` directly over IPv6 (of which the socket is) which is
/// for this machine: neither for another's Ethernet address nor for many, and of no VLAN. What is
/// too short to tell is not let through (bpf(4)), nor a UDP length of 0, that of a jumbogram, for
/// which the kernel takes the length of the packet.
fn requests(port: u16) -> [libc::sock_filter; 10] {
    const NEXT_HEADER: u32 = 14 + 6;
    const DESTINATION_PORT: u32 = UDP as u32 + 2;
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let byte = |at| instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at, 0);
    let half_word = |at| instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, at, 0);
    let unless = |how, value, jump| instruction(libc::BPF_JMP | how | libc::BPF_K, value, jump);
    [
        byte(PACKET_TYPE),
        unless(libc::BPF_JEQ, libc::PACKET_HOST.into(), 7),
        byte(NEXT_HEADER),
        unless(libc::BPF_JEQ, libc::IPPROTO_UDP as u32, 5),
        half_word(DESTINATION_PORT),
        unless(libc::BPF_JEQ, port.into(), 3),
        half_word(UDP as u32 + 4),
        unless(libc::BPF_JGT, 0, 1),
        instruction(libc::BPF_RET, u32::MAX, 0),
        NOTHING[0],
    ]
}

/// A filter for a UDP socket that lets through what [`requests`] does not: what is for many on the
/// link, what has more than an IPv6 header before its UDP header, and what has no length. What the
/// kernel has put together from fragments looks as if it had never been any. That it is too large
/// for the link gives it away; of smaller ones nothing can be known.
fn all_but_requests(mtu: u32) -> [libc::sock_filter; 10] {
    const IP: u32 = libc::SKF_NET_OFF as u32;
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let load = |size, at| instruction(libc::BPF_LD | size | libc::BPF_ABS, at, 0);
    let unless = |how, value, jump| instruction(libc::BPF_JMP | how | libc::BPF_K, value, jump);
    [
        load(libc::BPF_B, PACKET_TYPE),
        unless(libc::BPF_JEQ, libc::PACKET_HOST.into(), 6),
        load(libc::BPF_B, IP + 6), // next header
        unless(libc::BPF_JEQ, libc::IPPROTO_UDP as u32, 4),
        load(libc::BPF_H, IP + 44), // length of the datagram
        unless(libc::BPF_JGT, 0, 2),
        load(libc::BPF_H, IP + 4), // length of the payload
        unless(libc::BPF_JGT, mtu.saturating_sub(40), 1),
        instruction(libc::BPF_RET, u32::MAX, 0),
        NOTHING[0],
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Pool;
    use crate::policy::Handler;
    use crate::wire::{self, Refusal};
    use etherparse::PacketBuilder;
    use proptest::prelude::*;
    use std::io::ErrorKind;
    use std::net::Ipv6Addr;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn bundles_hold_as_many_as_fit_and_all_together() {
        let counts = |payload: usize, count, cuts, room| -> Vec<usize> {
            let reply = vec![7; OVERHEAD + payload];
            bundles(&reply, count, cuts, room).map(|bundle| bundle.copies).collect()
        };
        assert_eq!(counts(32, 10, true, usize::MAX), [10]);
        assert_eq!(counts(32, 3, false, usize::MAX), [1, 1, 1]);
        assert_eq!(counts(0, 3, true, usize::MAX), [1, 1, 1]);
        assert_eq!(counts(16, 255, true, usize::MAX), [64, 64, 64, 63]);
        assert_eq!(counts(1452, 100, true, usize::MAX), [45, 45, 10]);
        assert_eq!(counts(100, 10, true, HEAD + 450), [4, 4, 2]);
        assert_eq!(counts(1452, 2, true, 100), [1, 1]);
    }

    #[test]
    fn a_head_says_how_to_cut_where_there_is_something_to_cut() {
        let mut reply = [0; OVERHEAD + 32];
        reply[UDP + 5] = 40;
        let one: Vec<_> = bundles(&reply, 1, true, usize::MAX).map(|bundle| bundle.head).collect();
        assert!(one[0][..VNET] == [0; VNET] && one[0][VNET..] == reply[..OVERHEAD]);
        let ten: Vec<_> = bundles(&reply, 10, true, usize::MAX).map(|bundle| bundle.head).collect();
        let number = |at: usize| u16::from_ne_bytes([ten[0][at], ten[0][at + 1]]);
        assert_eq!([number(2), number(4), number(6), number(8)], [62, 32, 54, 6]);
        assert_eq!(ten[0][..2], [1, 5]);
        let plain: Vec<_> =
            bundles(&reply, 1, false, usize::MAX).map(|bundle| bundle.head().to_vec()).collect();
        assert_eq!(plain[0], reply[..OVERHEAD]);
    }

    const PORT: u16 = 3540;
    const MTU: u32 = 1500;

    /// The kernel running one of the filters, which takes no root on a pair of Unix sockets: what
    /// is sent is to the filter as a packet is, its network header included. Only the type of the
    /// packet is always PACKET_HOST: tests/packets.rs has frames for other stations.
    struct Filtered {
        sender: UnixDatagram,
        receiver: UnixDatagram,
    }

    impl Filtered {
        fn by(filter: &[libc::sock_filter]) -> Self {
            let (sender, receiver) = UnixDatagram::pair().unwrap();
            receiver.set_nonblocking(true).unwrap();
            let receiver = OwnedFd::from(receiver);
            option::set_filter(&receiver, filter).unwrap();
            Self { sender, receiver: receiver.into() }
        }

        /// Whether the filter lets `packet` through, which it does whole or not at all.
        fn passes(&self, packet: &[u8]) -> bool {
            self.sender.send(packet).unwrap();
            let mut buffer = [0; 4096];
            match self.receiver.recv(&mut buffer) {
                Ok(length) => {
                    assert_eq!(buffer[..length], *packet);
                    true
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// A right request, with `change` done to it.
    fn request(ports: (u16, u16), payload: &[u8], change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv6(client().octets(), pool().address(7).octets(), 64)
            .udp(ports.0, ports.1)
            .write(&mut frame, payload)
            .unwrap();
        change(&mut frame);
        frame
    }

    fn pool() -> Pool {
        Pool::new("2001:db8:1::/64".parse().unwrap(), 10, 1).unwrap()
    }

    fn client() -> Ipv6Addr {
        "2001:db8:1::1".parse().unwrap()
    }

    #[test]
    fn the_tap_takes_requests_and_the_socket_behind_the_rest() {
        let tap = Filtered::by(&requests(PORT));
        let behind = Filtered::by(&all_but_requests(MTU));
        let changed = |change: fn(&mut Vec<u8>)| request((50_000, PORT), &[7; 32], change);
        // What the kernel gives to no UDP socket on the port is nobody's.
        let cases = [
            ("a request", changed(|_| ()), true, false),
            ("without a payload", request((50_000, PORT), &[], |_| ()), true, false),
            ("as large as the MTU", request((1, PORT), &[9; 1452], |_| ()), true, false),
            ("larger than the MTU", request((1, PORT), &[9; 1453], |_| ()), true, true),
            ("padded", changed(|frame| frame.resize(150, 0)), true, false),
            ("a wrong checksum", changed(|frame| frame[61] ^= 1), true, false),
            ("length 0", changed(|frame| frame[58..60].fill(0)), false, true),
            ("length 7", changed(|frame| frame[58..60].copy_from_slice(&[0, 7])), true, false),
            ("options first", changed(|frame| frame[20] = 0), false, true),
            ("a fragment", changed(|frame| frame[20] = 44), false, true),
            ("TCP", changed(|frame| frame[20] = 6), false, true),
            ("to another port", request((50_000, PORT + 1), &[7; 32], |_| ()), false, false),
            ("from the port", request((PORT, PORT + 1), &[7; 32], |_| ()), false, false),
            ("cut in the UDP length", changed(|frame| frame.truncate(59)), false, false),
            ("cut in the checksum", changed(|frame| frame.truncate(61)), true, false),
            ("cut in the IPv6 header", changed(|frame| frame.truncate(20)), false, false),
            ("an Ethernet header alone", changed(|frame| frame.truncate(14)), false, false),
        ];
        for (name, frame, to_tap, to_socket) in cases {
            assert_eq!(tap.passes(&frame), to_tap, "{name}: the tap");
            assert_eq!(behind.passes(&frame[14..]), to_socket, "{name}: the socket behind");
        }
        let nothing = Filtered::by(&NOTHING);
        assert!(!nothing.passes(&changed(|_| ())) && !nothing.passes(&[]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever comes: the tap has all that is answered and no datagram of another port or
        /// protocol, and what is for the service comes to one of the two sockets, not to both.
        #[test]
        fn filters_agree_with_the_rules(
            ports in (any::<u16>(), prop_oneof![3 => Just(PORT), 1 => any::<u16>()]),
            payload in proptest::collection::vec(any::<u8>(), 0..64),
            bytes in proptest::collection::vec((14usize..70, any::<u8>()), 0..3),
            next in prop_oneof![3 => Just(None), 1 => any::<u8>().prop_map(Some)],
            length in prop_oneof![3 => Just(None), 1 => (0u16..90).prop_map(Some)],
            cut in prop_oneof![3 => Just(usize::MAX), 1 => 14usize..130],
        ) {
            let frame = request(ports, &payload, |frame| {
                for (at, byte) in &bytes {
                    if let Some(place) = frame.get_mut(*at) {
                        *place = *byte;
                    }
                }
                frame[20] = next.unwrap_or(frame[20]);
                if let Some(length) = length {
                    frame[58..60].copy_from_slice(&length.to_be_bytes());
                }
                frame.truncate(cut);
            });
            let to_tap = Filtered::by(&requests(PORT)).passes(&frame);
            let to_socket = Filtered::by(&all_but_requests(MTU)).passes(&frame[14..]);

            let handler = Handler::new(PORT, pool(), Vec::new());
            if handler.answer(&mut frame.clone()).is_ok() {
                prop_assert!(to_tap && !to_socket, "the worker answers it, the kernel does not");
            }
            let refusal = wire::validate(&mut frame.clone(), PORT).err();
            if to_tap {
                prop_assert_ne!(refusal, Some(Refusal::OtherPort));
                prop_assert_eq!(frame[20], 17);
            }
            // The kernel delivers none that is cut off before its checksum, nor to another port.
            let number = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
            let is_whole = frame.len() >= OVERHEAD && number(18) <= MTU as u16 - 40;
            if is_whole && (frame[20] != 17 || number(56) == PORT) {
                prop_assert!(to_tap != to_socket);
            }
        }
    }
}
