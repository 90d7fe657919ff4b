//! The UDP socket transport, for hosts without XDP and as a check on the rings. It sends many
//! datagrams per system call, and uses the kernel's receive timestamps, so waiting in the socket
//! buffer does not count as response time.
//!
//! The kernel needs a neighbour entry for each on-link address. Its table holds 1,024 (gc_thresh3):
//! more addresses need a larger table, or a route through the server.

use std::net::UdpSocket;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::ledger::Ledger;
use super::transport::{LoadConfig, RunClock, ServerPath, Transport};
use crate::net::datagrams::{self, BATCH, Incoming, Message, Outgoing};
use crate::wire::MAX_PAYLOAD;

/// Bytes of replies that may wait for the generator: four times the socket server's buffer for
/// requests, since ten replies come back to each.
const RECEIVE_BUFFER: usize = 16 << 20;

pub(super) struct SocketTransport {
    socket: UdpSocket,
    scope: u32,
    port: u16,
    payload: usize,
    payloads: Box<[[u8; MAX_PAYLOAD]; BATCH]>,
    outgoing: Outgoing,
    incoming: Incoming<libc::timespec>,
}

impl SocketTransport {
    /// Enables receive timestamps and a large receive buffer.
    pub fn open(way: ServerPath, config: &LoadConfig) -> Result<Self> {
        let socket = way.socket;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)
            .context("cannot enable receive timestamps")?;
        // Exceeding net.core.rmem_max takes CAP_NET_ADMIN; without it the kernel clamps the size.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)?;
        }
        let (scope, port, payload) = (way.link.index, config.port, config.payload);
        let payloads = Box::new([[0; MAX_PAYLOAD]; BATCH]);
        let (outgoing, incoming) = (Outgoing::default(), Incoming::new());
        Ok(Self { socket, scope, port, payload, payloads, outgoing, incoming })
    }
}

impl Transport for SocketTransport {
    fn send(&mut self, ledger: &Ledger, sent: u64, due: u64) -> Result<u64> {
        let count = due.saturating_sub(sent).min(BATCH as u64) as usize;
        if count == 0 {
            return Ok(sent);
        }
        for (sequence, payload) in (sent..).zip(self.payloads.iter_mut().take(count)) {
            ledger.stamp(sequence).write(&mut payload[..self.payload]);
        }
        let messages: [Message; BATCH] = std::array::from_fn(|index| Message {
            payload: &self.payloads[index][..self.payload],
            peer: datagrams::peer(ledger.destination(sent + index as u64), self.port, self.scope),
            source: None,
            copies: 1,
        });
        match self.outgoing.send(&self.socket, &messages[..count], libc::MSG_DONTWAIT) {
            Ok(taken) => Ok(sent + taken as u64),
            // No room now: the caller sends these later, and then they may be late.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::ENOBUFS | libc::EINTR)
                ) =>
            {
                Ok(sent)
            }
            Err(error) => Err(error).context("cannot send requests"),
        }
    }

    fn receive(&mut self, ledger: &mut Ledger, clock: &mut RunClock, sent: u64) -> Result<bool> {
        let count = match self.incoming.receive(&self.socket, libc::MSG_DONTWAIT) {
            Ok(count) => count,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => {
                return Ok(false);
            }
            Err(error) => return Err(error).context("cannot receive replies"),
        };
        let now = clock.now();
        clock.look();
        for index in 0..count {
            let (source, port) = self.incoming.source(index);
            let stamp = self.incoming.control(index, libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS);
            let time = stamp.map_or(now, |stamp| clock.at(stamp.tv_sec, stamp.tv_nsec));
            if port == self.port {
                ledger.reply(source, self.incoming.payload(index), time, sent);
            } else {
                ledger.damaged();
            }
        }
        Ok(count > 0)
    }
}
