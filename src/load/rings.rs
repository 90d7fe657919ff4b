//! The AF_XDP transport: one socket with its rings on each queue. Requests leave on the first
//! queue; replies arrive on all.
//!
//! It loads the server's steering program with its own address and port, which steers the replies
//! into its rings.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};

use super::ledger::Ledger;
use super::transport::{BATCH, LoadConfig, RunClock, ServerPath, Transport};
use crate::address::Prefix;
use crate::net::memory::HugepageRequest;
use crate::net::netlink::{self, AttachMode};
use crate::net::quirks::CARRIER_TIMEOUT;
use crate::wire::{self, Endpoints, Refusal, Template};
use crate::xdp::{
    AttachRequest, Attachment, BusyPoll, CopyMode, CopyRequest, Doorbell, Frame, Program,
    ProgramConfig, RingSizes, Rings, Socket, SocketConfig, stacked,
};

/// Frames per queue. With ten replies to a request, these absorb 7 ms of replies at a million a
/// second while the generator is off its processor. More would slow every packet: the frames are
/// used in turn, so a larger set misses the caches and the TLB more often.
const FRAMES: u32 = 8192;

/// How many of the first queue's frames are for sending.
const SEND_FRAMES: u32 = 1024;

/// How long a run waits for its last requests to leave.
const DRAIN: Duration = Duration::from_millis(100);

pub(super) struct RingTransport {
    // Drop order matters: stop steering, then close the sockets, then release the port.
    attachment: Attachment,
    queues: Vec<LoadQueue>,
    _port: UdpSocket,
    template: Template,
    source_port: u16,
    service_port: u16,
}

/// One queue of the interface.
struct LoadQueue {
    rings: Rings,
    socket: Socket,
    /// Frames for sending that are not in flight.
    free: Vec<Frame>,
}

impl RingTransport {
    /// Attaches the program and opens a socket on each queue.
    pub fn open(way: ServerPath, config: &LoadConfig) -> Result<Self> {
        let ServerPath { link, source, server, socket: port, source_port } = way;
        let ends = Endpoints {
            source_mac: link.mac,
            destination_mac: server,
            source,
            source_port,
            service_port: config.port,
        };
        let template = Template::new(&ends, config.payload).map_err(Error::msg)?;

        let count = stacked::queues(&link)?;
        let mut program = Program::load(&ProgramConfig {
            port: source_port,
            addresses: 1,
            queues: count,
            hidden: false,
            moving: None,
            reflect: None,
            screen: None,
        })?;
        program.add_prefix(Prefix::new(source, 128)?)?;
        program.live_addresses()?.add(&[source]).map_err(|(_, error)| error)?;
        let attachment = program.attach(&link, AttachRequest::Auto)?;
        netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;
        let mut queues = Vec::new();
        for queue in 0..count {
            let sending = if queue == 0 { SEND_FRAMES } else { 0 };
            let (socket, rings, free) = Socket::open(&SocketConfig {
                interface: &link.name,
                index: link.index,
                queue,
                copy: CopyRequest::Auto,
                attach: attachment.mode(),
                frames: FRAMES,
                elsewhere: sending + BATCH as u32,
                frame_size: if link.mtu <= 1500 { 2048 } else { 4096 },
                hugepages: HugepageRequest::Auto,
                busy_poll: config.busy_poll,
                send_ring: SEND_FRAMES,
                fill: FRAMES - sending,
            })?;
            program.add_socket(queue, &socket)?;
            queues.push(LoadQueue { rings, socket, free });
        }
        netlink::wait_for_carrier(&link.name, CARRIER_TIMEOUT)?;
        let service_port = config.port;
        Ok(Self { attachment, queues, _port: port, template, source_port, service_port })
    }

    /// The attach mode and the copy mode; `Zero` only if every queue is zero-copy.
    pub fn modes(&self) -> (AttachMode, CopyMode) {
        let zero = self.queues.iter().all(|queue| queue.socket.mode() == CopyMode::Zero);
        (self.attachment.mode(), if zero { CopyMode::Zero } else { CopyMode::Copy })
    }

    /// How the sockets busy-poll, if they do.
    pub fn busy_poll(&self) -> Option<BusyPoll> {
        self.queues.first().and_then(|queue| queue.socket.busy_poll())
    }

    /// The ring sizes of each queue.
    pub fn sizes(&self) -> Option<RingSizes> {
        self.queues.first().map(|queue| queue.socket.rings())
    }
}

impl Transport for RingTransport {
    #[inline]
    fn send(&mut self, ledger: &Ledger, mut sent: u64, due: u64) -> Result<u64> {
        let Some(LoadQueue { rings, socket, free }) = self.queues.first_mut() else {
            return Ok(sent);
        };
        while let Some(frame) = rings.complete() {
            free.push(frame);
        }
        for _ in 0..BATCH {
            if sent >= due {
                break;
            }
            // Every frame in `free` belongs to these rings, so neither call refuses one.
            let Some(Ok(mut packet)) = free.pop().map(|frame| rings.umem().blank(frame)) else {
                break;
            };
            let bytes = rings.bytes_mut(&mut packet);
            let length = self.template.write(bytes, ledger.destination(sent), ledger.stamp(sent));
            packet.truncate(length.unwrap_or(0));
            match rings.transmit(packet, 1) {
                Ok(()) => sent += 1,
                Err(packet) => {
                    free.extend(rings.umem().recycle(packet));
                    break;
                }
            }
        }
        rings.publish();
        if rings.sender_sleeps() {
            socket.wake_sender().context("the interface is gone")?;
        }
        Ok(sent)
    }

    fn unsent(&mut self) -> u64 {
        let Some(LoadQueue { rings, socket, free }) = self.queues.first_mut() else { return 0 };
        let give_up = Instant::now() + DRAIN;
        loop {
            while let Some(frame) = rings.complete() {
                free.push(frame);
            }
            rings.publish();
            if rings.census().sending == 0 || Instant::now() >= give_up {
                return rings.unsent();
            }
            // Failing to wake it is no error here: a sending run reports it.
            if rings.sender_sleeps() && socket.wake_sender().is_err() {
                return rings.unsent();
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[inline]
    fn receive(&mut self, ledger: &mut Ledger, clock: &mut RunClock, sent: u64) -> Result<bool> {
        let mut any = false;
        for LoadQueue { rings, socket, .. } in &mut self.queues {
            let mut now = None;
            for _ in 0..BATCH {
                let Some(mut packet) = rings.receive() else { break };
                // One clock reading per batch: the packets have all arrived already, and reading
                // the clock costs as much as handling a reply.
                let now = *now.get_or_insert_with(|| clock.now());
                match wire::validate(rings.bytes_mut(&mut packet), self.source_port) {
                    Ok(reply) if reply.source_port() == self.service_port => {
                        ledger.reply(reply.source(), reply.payload(), now, sent);
                    }
                    Err(Refusal::UnfinishedChecksum) => ledger.unfinished(),
                    _ => ledger.damaged(),
                }
                // Cannot fail: the fill ring has twice as many entries as the UMEM has frames.
                let _ = rings.discard(packet);
                any = true;
            }
            rings.publish();
            // When busy polling, only these calls do the interface's receive work.
            if rings.receiver_sleeps() || now.is_none() && socket.busy_poll().is_some() {
                socket.wake_receiver().context("the interface is gone")?;
            }
        }
        Ok(any)
    }
}
