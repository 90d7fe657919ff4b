//! The paper's server, as it describes it: a listener thread takes datagrams from a UDP socket and
//! puts them into a POSIX message queue; one worker takes them out and calls sendmsg ten times,
//! with the address that was asked as the source.
//!
//! Morrell, Ransbottom, Marchany, Tront, "Scaling IPv6 Address Bindings in Support of a Moving
//! Target Defense", section IV.

use std::ffi::CString;
use std::io::{IoSlice, IoSliceMut};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open, mq_receive, mq_unlink};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg,
};
use nix::sys::stat::Mode;
use nix::sys::time::TimeSpec;

use super::outbox::{self, UdpOutbox};
use super::reply::{self, Reply};
use super::statistics::{Shown, Tally};
use super::udp::{self, DOZE, SocketCounters};
use super::{About, CounterSet, Engine, EngineConfig, EngineKind, Modes, pin, supervise};
use crate::host::sandbox::{Role, Sandbox};
use crate::net::denied;
use crate::policy::Handler;
use crate::service::Service;
use crate::wire::MAX_PAYLOAD;

/// Messages that the queue is asked to hold. The system's default of 10 (fs.mqueue.msg_max) loses
/// requests at once; root may have more.
const QUEUE_DEPTH: i64 = 1024;

/// A message: whom to answer, from where, and with what. All in the order of the fields.
const SOURCE: usize = 0;
const SOURCE_PORT: usize = 16;
const DESTINATION: usize = 18;
const PAYLOAD: usize = 34;
const MESSAGE: usize = PAYLOAD + MAX_PAYLOAD;

/// Messages to the worker, which waits for one without an end: to show that it is alive, and to
/// end. A request makes longer ones.
const TICK: [u8; 0] = [];
const END: [u8; 1] = [0];

impl EngineKind {
    /// The paper's server.
    pub const SOCKET: Self = Self::named("socket");
}

pub(super) const ABOUT: About = About {
    roles: &[Role::Socket],
    longest: udp::longest,
    ..About::new(
        EngineKind::SOCKET,
        "The paper's server: a UDP socket, a message queue, and ten calls of sendmsg",
    )
};

pub(super) fn open<S: Service>(config: &EngineConfig, service: &S) -> Result<Box<dyn Engine>> {
    Ok(Box::new(SocketServer::open(config, service)?))
}

pub(super) struct SocketServer<S> {
    service: S,
    ends: SocketAndQueue,
}

/// Socket and queue, and what both threads go by.
struct SocketAndQueue {
    socket: Arc<OwnedFd>,
    interface: u32,
    queue: MqdT,
    handler: Handler,
    /// Bytes of payload that a reply may have.
    room: usize,
    modes: Modes,
    sandbox: Sandbox,
    listener: Arc<Shown>,
    worker: Arc<Shown>,
}

impl<S: Service> SocketServer<S> {
    pub fn open(config: &EngineConfig, service: &S) -> Result<Self> {
        let socket = udp::open(config, false)?;
        let receive_buffer = udp::receive_buffer(&socket);
        let (queue, depth) = open_queue()?;
        let first = config.cores[0];
        let second = config.cores.get(1).copied().unwrap_or(first);
        let ends = SocketAndQueue {
            socket: Arc::new(socket),
            interface: config.link.index,
            queue,
            handler: config.handler.clone(),
            room: reply::room(&config.link),
            modes: Modes {
                cores: if first == second { vec![first] } else { vec![first, second] },
                queue_depth: Some(depth),
                receive_buffer,
                ..Modes::default()
            },
            sandbox: config.sandbox,
            listener: Arc::default(),
            worker: Arc::default(),
        };
        Ok(Self { service: service.clone(), ends })
    }
}

impl SocketAndQueue {
    /// Receives, asks the handler, and queues what is to be answered.
    fn listen(&self, stop: &AtomicBool) -> Result<()> {
        let mut tally = Tally::default();
        let mut message = [0; MESSAGE];
        let mut control = nix::cmsg_space!(libc::in6_pktinfo);
        while !stop.load(Ordering::Relaxed) {
            let mut payload = [IoSliceMut::new(&mut message[PAYLOAD..])];
            let fd = self.socket.as_raw_fd();
            let received = match recvmsg::<SockaddrIn6>(
                fd,
                &mut payload,
                Some(&mut control),
                MsgFlags::empty(),
            ) {
                Ok(received) => received,
                Err(Errno::EAGAIN | Errno::EINTR) => {
                    self.listener.beat();
                    // Where the queue is full, the worker has enough to wake up for.
                    self.try_put(&TICK)?;
                    continue;
                }
                Err(error) => return Err(error).context("cannot receive"),
            };
            tally.received += 1;
            let (Some(peer), length) = (received.address, received.bytes) else {
                tally.invalid += 1;
                continue;
            };
            let destination = received.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    Some(Ipv6Addr::from(info.ipi6_addr.s6_addr))
                }
                _ => None,
            });
            let Some(destination) = destination else {
                tally.invalid += 1;
                continue;
            };
            match self.handler.decide(peer.ip(), peer.port(), destination) {
                Ok(()) => {
                    message[SOURCE..SOURCE_PORT].copy_from_slice(&peer.ip().octets());
                    message[SOURCE_PORT..DESTINATION].copy_from_slice(&peer.port().to_be_bytes());
                    message[DESTINATION..PAYLOAD].copy_from_slice(&destination.octets());
                    // Waits while the queue is full: then the socket's buffer is the queue, and the
                    // kernel counts.
                    self.put(&message[..PAYLOAD + length], stop)?;
                }
                Err(refusal) => tally.refused[refusal as usize] += 1,
            }
            self.listener.store(&tally);
        }
        Ok(())
    }

    fn put(&self, message: &[u8], stop: &AtomicBool) -> Result<()> {
        // The worker takes the messages until the listener has ended, so the queue stays full only
        // where that has failed.
        while !self.try_put(message)? {
            self.wait_for_room()?;
            if stop.load(Ordering::Relaxed) {
                self.try_put(message)?;
                break;
            }
        }
        Ok(())
    }

    /// Puts a message into the queue, and returns whether there was room.
    fn try_put(&self, message: &[u8]) -> Result<bool> {
        loop {
            // The deadline is one by the time of day, which may be set: one that is always over
            // waits for nothing.
            match mq_timedsend(&self.queue, message, &TimeSpec::new(0, 0)) {
                Ok(()) => return Ok(true),
                Err(Errno::ETIMEDOUT) => return Ok(false),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot put a message into the queue"),
            }
        }
    }

    /// Waits until there is room in the queue, or for a moment.
    fn wait_for_room(&self) -> Result<()> {
        // A queue is a file, and this waits by a clock that nobody sets.
        let mut queue = [PollFd::new(self.queue.as_fd(), PollFlags::POLLOUT)];
        let moment = PollTimeout::try_from(DOZE).unwrap_or(PollTimeout::ZERO);
        match poll(&mut queue, moment) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for room in the queue"),
        }
    }

    /// Takes messages and answers, until [`END`] comes, which is behind all of them.
    fn work<S: Service>(&self, mut service: S) -> Result<()> {
        let mut tally = Tally::default();
        let mut message = [0; MESSAGE];
        let mut own = [0; MAX_PAYLOAD];
        let mut priority = 0;
        loop {
            if S::UNASKED {
                let buffer = &mut own[..self.room];
                let (handler, socket, interface) = (&self.handler, &*self.socket, self.interface);
                let tally = &mut tally;
                let wait =
                    service.turn(&mut UdpOutbox { handler, socket, interface, buffer, tally });
                self.worker.store(tally);
                if !outbox::readable(&self.queue, wait)? {
                    continue;
                }
            }
            let length = match mq_receive(&self.queue, &mut message, &mut priority) {
                Ok(length) if length == TICK.len() => {
                    self.worker.beat();
                    continue;
                }
                Ok(length) if length == END.len() => return Ok(()),
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error).context("cannot take a message from the queue"),
            };
            self.reply(&mut service, &mut message, length, &mut tally);
            self.worker.store(&tally);
        }
    }

    /// Answers the request in the first `length` bytes of `message`.
    fn reply<S: Service>(
        &self,
        service: &mut S,
        message: &mut [u8; MESSAGE],
        length: usize,
        tally: &mut Tally,
    ) {
        let (header, buffer) = message.split_at_mut(PAYLOAD);
        let (Some(address), Some(port), Some(from), Some(length)) = (
            header[SOURCE..].first_chunk::<16>(),
            header[SOURCE_PORT..].first_chunk::<2>(),
            header[DESTINATION..].first_chunk::<16>(),
            length.checked_sub(PAYLOAD),
        ) else {
            tally.invalid += 1; // nobody else has the queue, so there is no such message
            return;
        };
        let source = (Ipv6Addr::from(*address), u16::from_be_bytes(*port));
        let room = self.room.max(length).min(buffer.len());
        let asked = Ipv6Addr::from(*from);
        let buffer = &mut buffer[..room];
        let reply = reply::to_payload(&self.handler, service, source, asked, buffer, length);
        let Reply { length, copies } = match reply {
            Ok(reply) => reply,
            Err(refusal) => {
                tally.refused[refusal as usize] += 1;
                return;
            }
        };
        let peer = std::net::SocketAddrV6::new(source.0, source.1, 0, self.interface);
        let peer = SockaddrIn6::from(peer);
        let source = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr { s6_addr: *from },
            ipi6_ifindex: self.interface,
        };
        let control = [ControlMessage::Ipv6PacketInfo(&source)];
        let data = [IoSlice::new(&buffer[..length])];
        tally.answered += 1;
        for _ in 0..copies.get() {
            match sendmsg(self.socket.as_raw_fd(), &data, &control, MsgFlags::empty(), Some(&peer))
            {
                Ok(_) => tally.replies += 1,
                Err(_) => tally.unsent += 1,
            }
        }
    }
}

impl<S: Service> Engine for SocketServer<S> {
    fn modes(&self) -> &Modes {
        &self.ends.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        let SocketAndQueue { socket, listener, worker, .. } = &self.ends;
        let shown = vec![listener.clone(), worker.clone()];
        Ok(Box::new(SocketCounters { sockets: vec![socket.clone()], shown }))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        let Self { service, ends } = *self;
        let ends = &ends;
        let cores = &ends.modes.cores;
        let (first, second) = (cores[0], *cores.last().unwrap_or(&cores[0]));
        thread::scope(|scope| {
            let worker = supervise::start(scope, stop, move || {
                pin(second);
                ends.sandbox.enter(Role::Socket)?;
                ends.work(service)
            });
            let listener = supervise::start(scope, stop, || {
                pin(first);
                ends.sandbox.enter(Role::Socket)?;
                ends.listen(stop)
            });
            let listened = supervise::wait_for([listener]);
            let end = || -> Result<()> {
                // A worker that has failed makes no room.
                while !worker.is_finished() && !ends.try_put(&END)? {
                    ends.wait_for_room()?;
                }
                Ok(())
            };
            let told = end();
            listened.and(supervise::wait_for([worker])).and(told)
        })
    }
}

/// Puts a message into the queue, before `deadline` (by `CLOCK_REALTIME`) or not at all. What nix
/// has waits for ever.
fn mq_timedsend(queue: &MqdT, message: &[u8], deadline: &TimeSpec) -> Result<(), Errno> {
    let (bytes, length) = (message.as_ptr().cast(), message.len());
    // SAFETY: the message is valid for reads of its length, and the deadline of its size, until the
    // call returns.
    let result =
        unsafe { libc::mq_timedsend(queue.as_raw_fd(), bytes, length, 0, deadline.as_ref()) };
    Errno::result(result).map(drop)
}

/// A POSIX message queue without a name left in the system, as deep as is allowed up to
/// [`QUEUE_DEPTH`].
fn open_queue() -> Result<(MqdT, i64)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = CString::new(format!("/sixhop-{}-{number}", std::process::id()))?;
    // A queue's bytes count against RLIMIT_MSGQUEUE, 800 KiB by default, of which the kernel keeps
    // some for itself.
    let bytes = 2 * (QUEUE_DEPTH as u64 * MESSAGE as u64);
    let _ = setrlimit(Resource::RLIMIT_MSGQUEUE, bytes, bytes);
    let mut depth = QUEUE_DEPTH;
    loop {
        let attributes = MqAttr::new(0, depth, MESSAGE as i64, 0);
        let flags = MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDWR | MQ_OFlag::O_CLOEXEC;
        match mq_open(name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR, Some(&attributes)) {
            Ok(queue) => {
                // Nobody else is to open it, and nothing is to be left behind.
                mq_unlink(name.as_c_str()).context("cannot unlink the message queue")?;
                return Ok((queue, depth));
            }
            Err(Errno::EINVAL | Errno::EMFILE) if depth > 1 => depth /= 2,
            Err(Errno::ENOSYS) => {
                return Err(anyhow!("this kernel is built without CONFIG_POSIX_MQUEUE"));
            }
            Err(Errno::EPERM | Errno::EACCES) => {
                return Err(anyhow!(
                    "no POSIX message queue: {}",
                    denied::explain("it", &[], "mq_open(2)")
                ));
            }
            Err(Errno::ENOSPC) => {
                return Err(anyhow!(
                    "no POSIX message queue: this machine has as many as it may (sysctl \
                     fs.mqueue.queues_max)"
                ));
            }
            Err(error) => return Err(anyhow!("no POSIX message queue: {error}")),
        }
    }
}
