//! PROBE: what an interface would give `serve`. Facts from the kernel, a verdict derived from them,
//! and a trial on request.
//!
//! ```text
//!   xdp::capability (facts, nothing disturbed) ─► verdict (pure) ─┐
//!   server::Server, opened for a moment ──────────► tried ────────┴─► agree?
//! ```

mod verdict;

use anyhow::Result;

use crate::address::Pool;
use crate::engine::{EngineKind, Modes};
use crate::live::Method;
use crate::net::netlink::{self, Link};
use crate::net::quirks::CARRIER_TIMEOUT;
use crate::server::{Server, ServerConfig};
use crate::xdp::capability::{Host, Interface};

#[cfg(feature = "cli")]
pub(crate) use verdict::fewer_queues;
pub use verdict::{Advice, Expectation, Finding};

pub use crate::events::{Probe, Tried};

impl Probe {
    /// Probes `link`, in the namespace of the calling thread. Disturbs nothing.
    #[must_use]
    pub fn of(link: &Link) -> Self {
        let interface = Interface::of(link);
        let host = Host::of_this_process();
        let verdict = Expectation::on(&interface, &host);
        Self { interface, host, verdict, tried: None }
    }

    /// Attaches the program and binds all queues as `serve` does, then releases them at once.
    /// Steers no packet, but some drivers reset their link meanwhile.
    ///
    /// # Errors
    /// When the link does not come back. A refused attempt is a result, not an error.
    pub fn try_out(&mut self) -> Result<()> {
        let result = attempt(&self.interface.nic.interface);
        if self.interface.carrier {
            netlink::wait_for_carrier(&self.interface.nic.interface, CARRIER_TIMEOUT)?;
        }
        self.tried = Some(Tried::compared(result, &self.verdict));
        Ok(())
    }
}

fn attempt(interface: &str) -> Result<Modes> {
    // Any pool will do: none of its addresses becomes live, and without a port nothing is steered.
    let pool = Pool::new("2001:db8::/64".parse()?, 1, 1)?;
    let config = ServerConfig {
        engine: Some(EngineKind::AFXDP),
        ..ServerConfig::hold(interface.to_owned(), pool, Method::None)
    };
    Ok(Server::start(&config, &mut |_| true)?.ready().modes.clone())
}

impl Tried {
    fn compared(result: Result<Modes>, verdict: &Expectation) -> Self {
        let (modes, error) = match result {
            Ok(modes) => (modes, None),
            Err(error) => (Modes::default(), Some(format!("{error:#}"))),
        };
        let agrees = match &error {
            Some(_) => Some(!verdict.obstacles.is_empty()),
            None if !verdict.obstacles.is_empty() => Some(false),
            None if verdict.attach.is_none() || verdict.copy.is_none() => None,
            None => Some((modes.attach, modes.copy) == (verdict.attach, verdict.copy)),
        };
        let Modes { attach, copy, queues, hugepages, .. } = modes;
        Self { attach, copy, queues, hugepages, error, agrees }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{AttachMode, CopyMode};

    #[test]
    fn a_verdict_agrees_when_it_said_so() {
        let open = Expectation::default();
        let copy = Expectation {
            attach: Some(AttachMode::Native),
            copy: Some(CopyMode::Copy),
            ..open.clone()
        };
        let down = Finding { name: "down".to_owned(), why: String::new(), cure: None };
        let refused = Expectation { obstacles: vec![down], ..copy.clone() };
        let modes =
            |copy| Modes { attach: Some(AttachMode::Native), copy: Some(copy), ..Modes::default() };
        let agrees = |result, verdict| Tried::compared(result, verdict).agrees;
        assert_eq!(agrees(Ok(modes(CopyMode::Copy)), &copy), Some(true));
        assert_eq!(agrees(Ok(modes(CopyMode::Zero)), &copy), Some(false));
        assert_eq!(agrees(Ok(modes(CopyMode::Copy)), &open), None);
        assert_eq!(agrees(Ok(modes(CopyMode::Copy)), &refused), Some(false));
        assert_eq!(agrees(Err(anyhow::anyhow!("is down")), &refused), Some(true));
        assert_eq!(agrees(Err(anyhow::anyhow!("is down")), &copy), Some(false));
    }
}
