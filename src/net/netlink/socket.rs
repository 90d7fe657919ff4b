//! The socket: sends queries and changes, receives answers and refusals.

use std::fmt;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{MulticastGroup, sys};

use crate::net::denied;

/// Why the kernel refused a request: its error number, and its explanation if it sent one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}", code.desc(), words.as_ref().map(|words| format!(" ({words})")).unwrap_or_default())]
pub(crate) struct KernelError {
    pub code: Errno,
    pub words: Option<String>,
}

impl KernelError {
    /// One line that says what failed, why and, if possible, what to do.
    pub fn explain(self, what: impl fmt::Display) -> anyhow::Error {
        match self.code {
            Errno::EPERM => {
                anyhow!(
                    "cannot {what}: {}",
                    denied::explain("it", &["CAP_NET_ADMIN"], "such calls")
                )
            }
            Errno::ENODEV => anyhow!("cannot {what}: no such interface here"),
            _ => anyhow!("cannot {what}: {self}"),
        }
    }
}

impl From<Errno> for KernelError {
    fn from(code: Errno) -> Self {
        Self { code, words: None }
    }
}

impl From<std::io::Error> for KernelError {
    fn from(error: std::io::Error) -> Self {
        Errno::try_from(error).unwrap_or(Errno::EIO).into()
    }
}

pub(super) type RouteMessage = NetlinkMessage<RouteNetlinkMessage>;

/// A routing netlink socket, in the namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(super) socket: sys::Socket,
    sequence: u32,
    datagram: Vec<u8>,
    /// Whether announcements arrived between the answers to a query: they may be newer than the
    /// answers.
    heard: bool,
}

/// Twice the kernel's limit of 32 KiB for answers.
const DATAGRAM: usize = 64 * 1024;

/// How often to repeat a query for a list that changed while the kernel sent it. If a list changes
/// faster than this, something in use must be stopped first.
const ATTEMPTS: usize = 10;

impl Connection {
    pub fn open() -> Result<Self> {
        let open = || {
            let mut socket = sys::Socket::new(sys::protocols::NETLINK_ROUTE)?;
            socket.bind_auto()?;
            // Connected to the kernel, the socket receives from nobody else.
            socket.connect(&sys::SocketAddr::new(0, 0))?;
            // Refusals with text, but without a copy of the request.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            // Lets dumps be limited to one interface.
            socket.set_netlink_get_strict_chk(true)?;
            std::io::Result::Ok(socket)
        };
        Ok(Self {
            socket: open().context("cannot open a netlink socket")?,
            sequence: 0,
            datagram: Vec::with_capacity(DATAGRAM),
            heard: false,
        })
    }

    /// Sends all messages in one datagram, each with its own flags. Returns the position of each
    /// refused message, and why. A refusal does not stop the kernel from processing the rest.
    ///
    /// Only the last message asks for an acknowledgement. The kernel always reports refusals, in
    /// the order of the messages, so the last answer means that all are done. Successes send no
    /// answers and cannot overrun the receive buffer.
    pub fn tell(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<Vec<(usize, KernelError)>, KernelError> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut messages = messages.into_iter().peekable();
        while let Some((message, flags)) = messages.next() {
            let acknowledge = if messages.peek().is_none() { NLM_F_ACK } else { 0 };
            self.compose(message, NLM_F_REQUEST | acknowledge | flags, &mut bytes);
        }
        if bytes.is_empty() {
            return Ok(Vec::new());
        }
        self.socket.send(&bytes, 0)?;
        let mut refused = Vec::new();
        loop {
            for (header, payload) in self.receive()?.into_iter().map(RouteMessage::into_parts) {
                let NetlinkPayload::Error(answer) = payload else {
                    continue;
                };
                let position = header.sequence_number.wrapping_sub(first) as usize;
                if answer.code.is_some() {
                    refused.push((position, read_refusal(answer.raw_code(), &answer.header)));
                }
                if header.sequence_number == self.sequence {
                    return Ok(refused);
                }
            }
        }
    }

    /// [`Connection::tell`] for a single message.
    pub(super) fn tell_one(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), KernelError> {
        match self.tell([(message, flags)])?.pop() {
            None => Ok(()),
            Some((_, refusal)) => Err(refusal),
        }
    }

    /// Sends a query (with NLM_F_DUMP: for a whole list) and returns the answers.
    pub(super) fn ask(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, KernelError> {
        for _ in 0..ATTEMPTS {
            match self.ask_once(question.clone(), flags) {
                Ok(None) => {}
                // Announcements filled the buffer and left no room for the answer.
                Err(refusal) if refusal.code == Errno::ENOBUFS => {}
                Ok(Some(answers)) => return Ok(answers),
                Err(refusal) => return Err(refusal),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// The answers, or `None` if the list changed while the kernel sent it.
    pub(super) fn ask_once(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Option<Vec<RouteNetlinkMessage>>, KernelError> {
        self.discard()?;
        let mut bytes = Vec::new();
        self.compose(question, NLM_F_REQUEST | NLM_F_ACK | flags, &mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        let mut consistent = true;
        loop {
            for (header, payload) in self.receive()?.into_iter().map(RouteMessage::into_parts) {
                if header.sequence_number != self.sequence {
                    self.heard = true;
                    continue;
                }
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(end) if end.code.is_some() => {
                        return Err(read_refusal(end.raw_code(), &end.header));
                    }
                    NetlinkPayload::Done(end) if end.code < 0 => {
                        return Err(Errno::from_raw(-end.code).into());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return Ok(consistent.then_some(answers));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Discards received announcements, which are older than the next query. While they fill the
    /// buffer there is no room for an answer, and the kernel reports that (ENOBUFS) only once until
    /// the buffer has been empty.
    pub(super) fn discard(&mut self) -> Result<(), KernelError> {
        loop {
            self.datagram.clear();
            match self.socket.recv(&mut self.datagram, nix::libc::MSG_DONTWAIT) {
                Ok(_) => {}
                Err(error) => match Errno::try_from(error) {
                    Ok(Errno::EAGAIN) => return Ok(()),
                    Ok(Errno::EINTR | Errno::ENOBUFS) => {}
                    error => return Err(error.unwrap_or(Errno::EIO).into()),
                },
            }
        }
    }

    /// Calls `check` until it returns a result: first at once, then after each announcement in
    /// `group` that `concerns` it. `None` after `timeout`. The socket listens before the first
    /// check, so no change is missed.
    pub(super) fn watch<T>(
        &mut self,
        group: MulticastGroup,
        timeout: Duration,
        mut check: impl FnMut(&mut Self) -> Result<Option<T>>,
        concerns: impl Fn(&RouteNetlinkMessage) -> bool,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        let group = group as u32;
        self.socket.add_membership(group).context("cannot listen for kernel announcements")?;
        let found = loop {
            match check(self) {
                Ok(None) => {}
                found => break found,
            }
            match self.wait_for(&concerns, deadline) {
                Ok(true) => {}
                Ok(false) => break Ok(None),
                Err(refusal) => break Err(refusal.explain("listen for kernel announcements")),
            }
        };
        self.socket
            .drop_membership(group)
            .context("cannot stop listening for kernel announcements")?;
        found
    }

    /// Whether an announcement that `concerns` the caller arrived before `deadline`.
    pub(super) fn wait_for(
        &mut self,
        concerns: impl Fn(&RouteNetlinkMessage) -> bool,
        deadline: Instant,
    ) -> Result<bool, KernelError> {
        if std::mem::take(&mut self.heard) {
            return Ok(true);
        }
        while self.wait(deadline)? {
            let is_concerned = match self.receive() {
                Ok(events) => events.iter().any(|event| match &event.payload {
                    NetlinkPayload::InnerMessage(event) => concerns(event),
                    _ => false,
                }),
                // The kernel dropped announcements, and this one may have been among them.
                Err(refusal) if refusal.code == Errno::ENOBUFS => true,
                Err(refusal) => return Err(refusal),
            };
            if is_concerned {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a message arrives before `deadline`.
    pub(super) fn wait(&self, deadline: Instant) -> Result<bool, KernelError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to spin through the last millisecond.
            let left =
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], left) {
                Err(Errno::EINTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    /// Appends one request to a datagram.
    pub(super) fn compose(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        bytes: &mut Vec<u8>,
    ) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = RouteMessage::from(message);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }

    /// Waits for the next datagram and returns its messages.
    pub(super) fn receive(&mut self) -> Result<Vec<RouteMessage>, KernelError> {
        self.datagram.clear();
        let length = loop {
            match self.socket.recv(&mut self.datagram, nix::libc::MSG_TRUNC) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                length => break length?,
            }
        };
        if length > self.datagram.len() {
            return Err(Errno::EMSGSIZE.into());
        }
        let mut messages = Vec::new();
        let mut rest = self.datagram.as_slice();
        while !rest.is_empty() {
            let message = RouteMessage::deserialize(rest).map_err(|error| KernelError {
                code: Errno::EBADMSG,
                words: Some(error.to_string()),
            })?;
            // Not zero: deserialize checked the header.
            let length = message.header.length.next_multiple_of(4) as usize;
            rest = rest.get(length..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

/// Builds a refusal from its negative error number and the rest of the answer: the header of the
/// request, then attributes, which may include a text.
fn read_refusal(code: i32, rest: &[u8]) -> KernelError {
    const REQUEST_HEADER: usize = 16;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let words = NlasIterator::new(rest.get(REQUEST_HEADER..).unwrap_or_default())
        .map_while(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| {
            String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned()
        });
    KernelError { code: Errno::from_raw(code.wrapping_neg()), words }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn every_refusal_of_a_batch_has_its_position() {
        let change = || {
            let mut change = LinkMessage::default();
            change.header.index = i32::MAX as u32;
            (RouteNetlinkMessage::SetLink(change), 0)
        };
        let mut socket = Connection::open().unwrap();
        for count in [0, 1, 2, 200] {
            let refused = socket.tell(std::iter::repeat_with(change).take(count)).unwrap();
            assert!(refused.iter().map(|(position, _)| *position).eq(0..count));
            // ENODEV as root, EPERM otherwise.
            assert!(
                refused.iter().all(|(_, why)| matches!(why.code, Errno::ENODEV | Errno::EPERM))
            );
        }
        assert_eq!(socket.link("lo").unwrap().name, "lo", "an answer was left over");
    }

    #[test]
    fn refusal_has_the_words_of_the_kernel() {
        let mut rest = vec![0; 16];
        rest.extend([8, 0, 1, 0]);
        rest.extend(b"no!\0");
        let refusal = read_refusal(-(Errno::EINVAL as i32), &rest);
        assert_eq!(refusal.to_string(), "Invalid argument (no!)");
        // A truncated answer is still a refusal.
        for length in 0..rest.len() {
            assert_eq!(read_refusal(-(Errno::EINVAL as i32), &rest[..length]).code, Errno::EINVAL);
        }
        assert_eq!(read_refusal(i32::MIN, &[]).code, Errno::UnknownErrno);
    }
}
