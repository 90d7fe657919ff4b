//! What a gate is opened for, and what is wrong with it before anything changes.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use super::{GateService, Protocol};
use crate::address::Targets;
use crate::address::mt6d::Timetable;
use crate::host::sandbox::Sandbox;
use crate::live::Method;
use crate::server::ServerConfig;

/// A gate to open.
#[derive(Debug, Clone)]
pub struct GateConfig {
    /// Name of the interface, in the namespace of the calling thread.
    pub interface: String,
    /// The addresses.
    pub timetable: Arc<Timetable>,
    /// What is reached there.
    pub services: Vec<GateService>,
    /// How long an unused UDP flow may go on at an address that has expired.
    pub idle: Duration,
    /// Whether the gate may take a prefix to which this machine has other routes.
    pub take_prefix: bool,
    /// Whether its threads drop privileges that they no longer need, as in [`ServerConfig`].
    pub sandbox: Sandbox,
}

/// Why a gate cannot be opened as requested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the messages say it")]
pub enum GateError {
    #[error("{0} is down: set it up with 'ip link set {0} up'")]
    Down(String),
    #[error(
        "{port} is a port of {above}, which takes its packets before a service gets them: open \
         the gate on {above}"
    )]
    IsPort { port: String, above: String },
    #[error(
        "{interface} is in the VRF {above}, whose routes a gate does not reach: take it out ('ip \
         link set {interface} nomaster')"
    )]
    InVrf { interface: String, above: String },
    #[error("two services have port {port}/{protocol}: give one of them another")]
    Twice { port: u16, protocol: Protocol },
    #[error(
        "{0} is no address of this machine, so no service can listen there: name one that it has, \
         such as ::1 (which lo has while it is up)"
    )]
    Foreign(Ipv6Addr),
}

/// What is wrong with the words that name a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ServiceFault {
    #[error("write PORT[/tcp|/udp][=ADDR:PORT], such as 22=[::1]:22 or 51820/udp")]
    Form,
    #[error(
        "{0} is IPv4, and clients come by IPv6: have the service listen on an IPv6 address as \
         well, such as ::1"
    )]
    IsIpv4(SocketAddr),
    #[error("{0} is no address on which a service can listen")]
    NoListener(SocketAddrV6),
}

impl FromStr for GateService {
    type Err = ServiceFault;

    /// Parses `PORT[/tcp|/udp][=ADDR:PORT]`. Without a listener, a socket bound to any address
    /// serves the same port.
    fn from_str(text: &str) -> Result<Self, ServiceFault> {
        let (asked, listener) = match text.split_once('=') {
            Some((asked, listener)) => (asked, Some(listener)),
            None => (text, None),
        };
        let (port, protocol) = match asked.split_once('/') {
            None => (asked, Protocol::Tcp),
            Some((port, "tcp")) => (port, Protocol::Tcp),
            Some((port, "udp")) => (port, Protocol::Udp),
            Some(_) => return Err(ServiceFault::Form),
        };
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(ServiceFault::Form)?;
        let any = SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0);
        let listener = match listener.map(SocketAddr::from_str) {
            None => any,
            Some(Ok(SocketAddr::V6(listener))) => listener,
            Some(Ok(ipv4)) => return Err(ServiceFault::IsIpv4(ipv4)),
            Some(Err(_)) => return Err(ServiceFault::Form),
        };
        if listener.port() == 0 || listener.ip().is_multicast() {
            return Err(ServiceFault::NoListener(listener));
        }
        Ok(Self { protocol, port, listener })
    }
}

impl fmt::Display for GateService {
    /// As clients ask for it: `22/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

impl GateConfig {
    /// A server that would hide the same addresses.
    pub(super) fn as_server(&self) -> ServerConfig {
        let targets = Targets::Moving(self.timetable.clone());
        let hold = ServerConfig::hold(self.interface.clone(), targets, Method::LiveMap);
        ServerConfig { take_prefix: self.take_prefix, ..hold }
    }

    /// Checks the services. `own` are this machine's addresses.
    pub(super) fn check_services(&self, own: &[Ipv6Addr]) -> Result<(), GateError> {
        for (index, GateService { protocol, port, listener }) in self.services.iter().enumerate() {
            let (port, protocol) = (*port, *protocol);
            let is_same = |other: &GateService| (other.port, other.protocol) == (port, protocol);
            if self.services[..index].iter().any(is_same) {
                return Err(GateError::Twice { port, protocol });
            }
            let address = *listener.ip();
            if !address.is_unspecified() && !own.contains(&address) {
                return Err(GateError::Foreign(address));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Secret;
    use crate::address::mt6d::{Clock, Subnet};

    #[test]
    fn a_service_is_read_as_it_is_written() {
        let read = |text: &str| {
            let GateService { protocol, port, listener } = text.parse()?;
            Ok::<_, ServiceFault>(format!("{port} {protocol} {listener}"))
        };
        for (text, expected) in [
            ("22/tcp=[::1]:2222", "22 tcp [::1]:2222"),
            ("443=[::1]:8443", "443 tcp [::1]:8443"),
            ("51820/udp", "51820 udp [::]:51820"),
            ("53/udp=[2001:db8::1]:5300", "53 udp [2001:db8::1]:5300"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "0", "65536", "x=[::1]:1", "22/sctp", "22=", "22=::1", "22=[::1]"] {
            assert_eq!(read(text), Err(ServiceFault::Form), "{text}");
        }
        let ipv4 = read("22=127.0.0.1:22").unwrap_err().to_string();
        assert!(ipv4.starts_with("127.0.0.1:22 is IPv4"), "{ipv4}");
        for text in ["22=[::1]:0", "22=[ff02::1]:22"] {
            assert!(matches!(read(text), Err(ServiceFault::NoListener(_))), "{text}");
        }
    }

    #[test]
    fn services_that_contradict_each_other_or_the_machine_have_their_errors() {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let clock = Clock::new(Duration::from_secs(10)).unwrap();
        let secret = Secret::new(vec![7; 32]).unwrap();
        let check = |services: &[&str]| {
            let config = GateConfig {
                interface: "server0".to_owned(),
                timetable: Arc::new(Timetable::new(subnet, clock, &secret, 1, 1)),
                services: services.iter().map(|text| text.parse().unwrap()).collect(),
                idle: Duration::from_secs(1),
                take_prefix: false,
                sandbox: Sandbox::default(),
            };
            config.check_services(&[Ipv6Addr::LOCALHOST])
        };
        assert_eq!(check(&["53=[::1]:53", "53/udp=[::1]:53", "54"]), Ok(()));
        let twice = GateError::Twice { port: 53, protocol: Protocol::Tcp };
        assert_eq!(check(&["53=[::1]:53", "53/tcp=[::1]:54"]), Err(twice));
        let foreign = GateError::Foreign("2001:db8::9".parse().unwrap());
        assert_eq!(check(&["53=[2001:db8::9]:53"]), Err(foreign));
    }
}
