//! THE FLAGS THAT CURE: the library names what is wrong, and this file which flag puts it right.
//! What it returns goes behind the library's words.

use crate::engine::{EngineError, ModeError};
use crate::events::Ready;
use crate::host::metrics::NoMetrics;
use crate::host::sandbox::NotConfined;
use crate::probe::fewer_queues;
use crate::server::{ConfigError, InterfaceError, ServerError, Symptom};

/// Adds to an error the flags that cure it.
pub(super) fn with_flags(error: impl Into<anyhow::Error>) -> anyhow::Error {
    let error = error.into();
    match of_error(&error) {
        Some(cure) => anyhow::anyhow!("{error:#}{cure}"),
        None => error,
    }
}

fn of_error(error: &anyhow::Error) -> Option<String> {
    if let Some(cause) = cause(error) {
        return of_config(cause).map(str::to_owned);
    }
    if let Some(cause) = cause(error) {
        return of_interface(cause);
    }
    if let Some(cause) = cause(error) {
        return of_engine(cause);
    }
    let cure = if let Some(mode) = cause(error) {
        match mode {
            ModeError::NoHugePages(_) => ", or use --hugepages auto",
            ModeError::NoNative(_) => ": use --attach generic, or auto to take what there is",
            ModeError::NoZeroCopy { .. } => ": use --copy auto, which falls back to copy",
        }
    } else if cause::<NotConfined>(error).is_some() {
        "; --no-sandbox runs without the sandbox"
    } else if cause::<NoMetrics>(error).is_some() {
        "; use another address or port for --metrics"
    } else {
        return None;
    };
    Some(cure.to_owned())
}

/// The `E` that is, or that lies in, what happened.
fn cause<E: std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&E> {
    match error.downcast_ref::<ServerError>() {
        Some(error) => error.cause().downcast_ref(),
        None => error.downcast_ref(),
    }
}

fn of_config(error: &ConfigError) -> Option<&'static str> {
    Some(match error {
        ConfigError::NeedsProgram(_) => ": use --engine afxdp or reflect",
        ConfigError::BusyPoll => ": use --engine afxdp, or no --busy-poll",
        ConfigError::Limit => ": use --engine afxdp or reflect, or no --limit",
        ConfigError::Taken { .. } => ": use another --seed or --prefix",
        ConfigError::QueuesOfReflect => ": leave out --queues",
        ConfigError::MulticastRouter => ": use --bind live-map, or no --multicast-router",
        ConfigError::Routed { .. } => ", or --take-prefix where that is meant",
        ConfigError::NoQueue { .. }
        | ConfigError::QueueTwice(_)
        | ConfigError::NoCore { .. }
        | ConfigError::TooMany(_)
        | ConfigError::NoMemory(_) => return None,
    })
}

fn of_interface(error: &InterfaceError) -> Option<String> {
    let cure = match error {
        InterfaceError::Down(_) => ", or use --bind netlink-down",
        InterfaceError::IsPort { serves: true, .. } => ", or use --bind live-map",
        InterfaceError::NoEthernet { .. } => {
            ": use --engine socket-gso, or another of the socket engines, with --bind netlink"
        }
        InterfaceError::Unreachable(_) | InterfaceError::InVrf(_) => ", or use --bind netlink",
        InterfaceError::CannotSend(cause) => return cause.only_below.map(fewer_queues),
        InterfaceError::NoIpv6(_)
        | InterfaceError::IsPort { serves: false, .. }
        | InterfaceError::Occupied(_) => return None,
    };
    Some(cure.to_owned())
}

fn of_engine(error: &EngineError) -> Option<String> {
    let cure = match error {
        EngineError::OnlyEchoes(_) => ": use --engine afxdp",
        EngineError::PortTaken(_) => ", or use --port",
        EngineError::SendsNoFrames(_) => ": use --attach generic, or another --engine",
        EngineError::FrameTooSmall { needed, .. } => {
            return Some(format!(", or use --frame-size {needed}"));
        }
        EngineError::NoLinkLocal(_) => "; or leave out --multicast-router",
        EngineError::NoUring(_) => ": use --engine socket-gso",
        EngineError::UringForbidden(_) => ", or use --engine socket-gso",
        EngineError::CutsNone => "; or use --engine socket-batch",
        EngineError::NoMemoryForUring => ", or name fewer --cores",
        EngineError::Unknown(_) | EngineError::SendsNothingUnasked(_) => return None,
    };
    Some(cure.to_owned())
}

/// What puts right what a running server sees.
pub(super) fn of_symptom(symptom: Symptom) -> Option<&'static str> {
    Some(match symptom {
        Symptom::UnfinishedChecksums => ", or serve with --engine socket",
        Symptom::NoRingTakes => "; --attach generic runs it on that one",
        Symptom::NothingLeaves => ", or use --attach generic",
        Symptom::NobodyAsks => ", or use --multicast-router",
        Symptom::Stuck => return None,
    })
}

/// What a server that is ready may lack.
pub(super) fn of_ready(ready: &Ready) -> Option<&'static str> {
    let unasked = ready.engine.is_some() && ready.allowed.is_empty();
    unasked.then_some("--allow names the sources that are answered")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use anyhow::{Context, anyhow};
    use std::net::{Ipv6Addr, SocketAddr};

    #[test]
    fn a_flag_stands_behind_the_whole_chain_and_other_errors_stay_what_they_are() {
        let small = EngineError::FrameTooSmall {
            size: 2048,
            interface: "eth1".to_owned(),
            mtu: 3000,
            needed: 4096,
            largest_mtu: 1696,
        };
        let taken = std::io::Error::from_raw_os_error(libc::EADDRINUSE);
        let place = SocketAddr::from((Ipv6Addr::LOCALHOST, 9000));
        let others = "of at most 1696, or use --frame-size 4096";
        for (error, end) in [
            (anyhow!(ConfigError::BusyPoll), "sockets: use --engine afxdp, or no --busy-poll"),
            (anyhow!(InterfaceError::Down("eth1".to_owned())), "or use --bind netlink-down"),
            (anyhow!(small), others),
            (anyhow!(EngineError::OnlyEchoes(EngineKind::REFLECT)), ": use --engine afxdp"),
            (anyhow!(NoMetrics { place, source: taken }), "; use another address or port for"),
        ] {
            let words = format!("{:#}", with_flags(error.context("put right")));
            assert!(words.starts_with("put right: ") && words.contains(end), "{words}");
        }
        let usage = with_flags(super::super::Usage("no".to_owned()));
        assert!(usage.is::<super::super::Usage>());
        let plain = Err::<(), _>(anyhow!("gone")).context("no ring").unwrap_err();
        assert_eq!(format!("{:#}", with_flags(plain)), "no ring: gone");
    }
}
