//! Why a server does not start, or ends: for programs that use the library.

use std::error::Error;
use std::{fmt, io};

use nix::errno::Errno;

use crate::address::Prefix;
use crate::engine::EngineKind;
use crate::live::{Interrupted, Method};
use crate::xdp::LiveAddresses;
pub use crate::xdp::stacked::CannotSend;

/// Why a server does not start, or ends. Nothing is left behind unless the variant says so.
///
/// Each variant holds a [`Cause`]. It prints what failed and why, and in many cases it
/// [holds](Cause::downcast_ref) an enum to match on:
///
/// | variant | its cause may be |
/// |---|---|
/// | `Config` | [`ConfigError`] |
/// | `Interface` | [`InterfaceError`] |
/// | `Engine`, `Denied` | [`EngineError`](crate::engine::EngineError), \
///   [`ModeError`](crate::engine::ModeError) |
/// | `Interface`, `Engine`, `Binding` | [`NotConfined`](crate::host::sandbox::NotConfined) |
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration contradicts itself or the machine. [`Cause::downcast_ref`] returns the
    /// [`ConfigError`].
    #[error(transparent)]
    Config(Cause),
    /// The interface does not exist, is down, or cannot be served. If it can never be served with
    /// this configuration, [`Cause::downcast_ref`] returns the [`InterfaceError`].
    #[error(transparent)]
    Interface(Cause),
    /// A privilege is missing, or a security module denies a call.
    #[error(transparent)]
    Denied(Cause),
    /// Addresses could not be made live, moved, or taken back. Those that could not be taken back
    /// stay.
    #[error(transparent)]
    Binding(Cause),
    /// The engine could not be opened, or cannot continue.
    #[error(transparent)]
    Engine(Cause),
    /// The interface, its XDP program or its addresses changed while the server ran, so that it
    /// cannot continue.
    #[error(transparent)]
    Changed(Cause),
    /// A setting of the interface that the server changed is still changed.
    #[error(transparent)]
    Setting(Cause),
    /// The caller stopped the bind.
    #[error(transparent)]
    Interrupted(Cause),
}

/// What happened, with its error sources.
pub struct Cause(anyhow::Error);

impl Cause {
    /// The `E` that this is, or that it adds context to.
    #[must_use]
    pub fn downcast_ref<E: Error + Send + Sync + 'static>(&self) -> Option<&E> {
        self.0.downcast_ref().or_else(|| match self.0.downcast_ref()? {
            At::Binding(cause) | At::Opening(cause) => cause.downcast_ref(),
        })
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// How a configuration contradicts itself or the machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ConfigError {
    #[error("live-map needs an engine that has an XDP program, which {0} has not")]
    NeedsProgram(EngineKind),
    #[error("busy polling is for AF_XDP sockets")]
    BusyPoll,
    #[error("the XDP program keeps the limit of requests, and this engine has none")]
    Limit,
    #[error("{address} is an address of {interface} already")]
    Taken { address: std::net::Ipv6Addr, interface: String },
    #[error("reflect answers on whatever queue a request arrives")]
    QueuesOfReflect,
    #[error(
        "{interface} has {count} queue(s) in use, 0 to {}; queue {queue} is none of them",
        count.saturating_sub(1)
    )]
    NoQueue { interface: String, count: u32, queue: u32 },
    #[error("queue {0} is named twice")]
    QueueTwice(u32),
    #[error("processor {core} is not one of those that this process may use: {allowed:?}")]
    NoCore { core: usize, allowed: Vec<usize> },
    #[error(
        "a multicast router is announced for live-map alone: the kernel reports the groups of its \
         own addresses"
    )]
    MulticastRouter,
    #[error(
        "{0} addresses are too many: the kernel holds at most {most} in the XDP program's hash; \
         use fewer",
        most = LiveAddresses::MOST
    )]
    TooMany(u64),
    #[error("{0}")]
    NoMemory(String),
    #[error(
        "{prefix} takes what this machine has a route for, {route} through {through}: {bind} would \
         keep every packet for it that comes to {interface}; use a prefix that nothing else is in"
    )]
    Routed { prefix: Prefix, route: Prefix, through: String, bind: Method, interface: String },
}

/// Why an interface cannot be served as requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say it")]
pub enum InterfaceError {
    #[error("{0}")]
    NoIpv6(String),
    #[error("{0} is down: set it up with 'ip link set {0} up'")]
    Down(String),
    #[error(
        "{port} is a port of the {kind} {above}, which takes what neighbours ask of {port}: \
         addresses that {bind} makes live there are never found; {} {above}",
        if *serves { "serve on" } else { "bind to" }
    )]
    IsPort { port: String, above: String, kind: String, bind: Method, serves: bool },
    #[error(
        "{interface} carries no Ethernet frames (link type {link_type}, a tunnel's), and {engine} \
         takes no others"
    )]
    NoEthernet { interface: String, link_type: u16, engine: EngineKind },
    /// A quirk of the driver makes hidden addresses unreachable.
    #[error("{0}")]
    Unreachable(String),
    #[error(
        "{0} is in a VRF, where the kernel cannot be told to take only what comes from it, as \
         live-map needs for requests in fragments: take it out with 'ip link set {0} nomaster'"
    )]
    InVrf(String),
    #[error(transparent)]
    CannotSend(#[from] CannotSend),
    #[error("{0}")]
    Occupied(String),
}

/// Why a server cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    Config(Box<ConfigError>),
    Interface(InterfaceError),
}

impl From<ConfigError> for Refused {
    fn from(error: ConfigError) -> Self {
        Self::Config(error.into())
    }
}

impl From<InterfaceError> for Refused {
    fn from(error: InterfaceError) -> Self {
        Self::Interface(error)
    }
}

impl From<Refused> for anyhow::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Config(error) => (*error).into(),
            Refused::Interface(error) => error.into(),
        }
    }
}

/// The part of a start that failed. [`ServerError::of_start`] reads it; messages do not show it.
#[derive(Debug, thiserror::Error)]
pub(super) enum At {
    #[error(transparent)]
    Binding(Cause),
    #[error(transparent)]
    Opening(Cause),
}

impl At {
    pub(super) fn binding(error: anyhow::Error) -> Self {
        Self::Binding(Cause(error))
    }

    pub(super) fn opening(error: anyhow::Error) -> Self {
        Self::Opening(Cause(error))
    }
}

impl ServerError {
    /// What happened, in any variant.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        match self {
            Self::Config(cause)
            | Self::Interface(cause)
            | Self::Denied(cause)
            | Self::Binding(cause)
            | Self::Engine(cause)
            | Self::Changed(cause)
            | Self::Setting(cause)
            | Self::Interrupted(cause) => cause,
        }
    }

    /// Classifies what prevented a server from starting.
    pub(super) fn of_start(error: anyhow::Error) -> Self {
        let cause = Cause(error);
        let error = &cause.0;
        let at = error.downcast_ref::<At>();
        let has = |found: fn(&(dyn Error + 'static)) -> bool| error.chain().any(found);
        let kind = if error.is::<ConfigError>() {
            Self::Config
        } else if cause.downcast_ref::<Interrupted>().is_some() {
            Self::Interrupted
        } else if has(denies) {
            Self::Denied
        } else {
            match at {
                Some(At::Binding(_)) => Self::Binding,
                Some(At::Opening(_)) => Self::Engine,
                None => Self::Interface,
            }
        };
        kind(cause)
    }

    pub(super) fn binding(error: anyhow::Error) -> Self {
        Self::Binding(Cause(error))
    }

    pub(super) fn engine(error: anyhow::Error) -> Self {
        Self::Engine(Cause(error))
    }

    pub(super) fn changed(error: anyhow::Error) -> Self {
        Self::Changed(Cause(error))
    }

    pub(super) fn setting(error: anyhow::Error) -> Self {
        Self::Setting(Cause(error))
    }
}

/// Whether the kernel denied permission.
fn denies(error: &(dyn Error + 'static)) -> bool {
    let denied = |errno: i32| errno == libc::EPERM || errno == libc::EACCES;
    if let Some(error) = error.downcast_ref::<Errno>() {
        return denied(*error as i32);
    }
    if let Some(error) = error.downcast_ref::<crate::net::netlink::KernelError>() {
        return denied(error.code as i32);
    }
    error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error).is_some_and(denied)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn an_error_of_a_start_has_its_cause_and_loses_none_of_its_words() {
        let of = ServerError::of_start;
        let taken = ConfigError::QueueTwice(1);
        let error = of(Err::<(), _>(taken.clone()).context("put right").unwrap_err());
        let ServerError::Config(cause) = &error else { panic!("{error:?}") };
        assert_eq!(cause.downcast_ref(), Some(&taken));
        assert_eq!(format!("{:#}", anyhow!(error)), "put right: queue 1 is named twice");

        let errno = || anyhow::Error::new(Errno::EBUSY).context("cannot attach");
        let error = of(At::opening(errno()).into());
        assert!(matches!(error, ServerError::Engine(_)), "{error:?}");
        assert_eq!(
            format!("{:#}", anyhow!(error)),
            "cannot attach: EBUSY: Device or resource busy"
        );
        assert!(matches!(of(At::binding(errno()).into()), ServerError::Binding(_)));
        assert!(matches!(of(errno()), ServerError::Interface(_)));
        let vrf = InterfaceError::InVrf("eth1".to_owned());
        let error = of(anyhow::Error::from(Refused::from(vrf.clone())).context("put right"));
        let ServerError::Interface(cause) = &error else { panic!("{error:?}") };
        assert_eq!(cause.downcast_ref(), Some(&vrf));
        let denied = anyhow::Error::new(Errno::EPERM).context("cannot bind");
        assert!(matches!(of(At::binding(denied).into()), ServerError::Denied(_)));
        for error in [anyhow!(Interrupted), anyhow!(Interrupted).context("3 of 10")] {
            let error = of(At::binding(error).into());
            assert!(matches!(error, ServerError::Interrupted(_)), "{error:?}");
        }
    }
}
