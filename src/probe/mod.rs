//! WHAT AN INTERFACE WOULD GIVE `serve`: facts from the kernel, a verdict that follows from them,
//! and on demand the truth.
//!
//! ```text
//!   xdp::capability (facts, nothing disturbed) ─► verdict (pure) ─┐
//!   server::Server, opened for a moment ──────────► tried ────────┴─► agree?
//! ```

mod verdict;

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::address::Pool;
use crate::engine::{EngineKind, Modes};
use crate::live::Method;
use crate::net::netlink::{self, AttachMode, Link};
use crate::server::{Server, ServerConfig};
use crate::xdp::CopyMode;
use crate::xdp::capability::{Host, Interface};

pub use verdict::{Advice, Finding, Verdict};

/// What was found out about an interface.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// What it can do, and how it is set.
    #[serde(flatten)]
    pub interface: Interface,
    /// What this process may do, and on what kernel.
    pub host: Host,
    /// What follows.
    pub verdict: Verdict,
    /// What came of trying; `None` where it was not.
    pub tried: Option<Tried>,
}

/// What came of trying what `serve` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// How the program was attached, as the kernel says.
    pub attach: Option<AttachMode>,
    /// How packets get into and out of the rings, as the kernel says.
    pub copy: Option<CopyMode>,
    /// The queues that a socket was bound to.
    pub queues: Vec<u32>,
    /// Whether their memory lay on huge pages.
    pub hugepages: Option<bool>,
    /// Why it was refused.
    pub error: Option<String>,
    /// Whether the verdict had said so; `None` where that had left something open.
    pub agrees: Option<bool>,
}

impl Probe {
    /// Of `link`, in the namespace of the calling thread. Disturbs nothing.
    #[must_use]
    pub fn of(link: &Link) -> Self {
        let interface = Interface::of(link);
        let host = Host::of_this_process();
        let verdict = Verdict::on(&interface, &host);
        Self { interface, host, verdict, tried: None }
    }

    /// Attaches the program and binds all queues, as `serve` does, and lets go of them at once.
    /// Steers no packet, but some drivers reset their link meanwhile.
    ///
    /// # Errors
    /// When the link does not come back. That something was refused is none.
    pub fn try_out(&mut self) -> Result<()> {
        let result = attempt(&self.interface.nic.interface);
        if self.interface.carrier {
            netlink::wait_for_carrier(&self.interface.nic.interface, CARRIER_TIMEOUT)?;
        }
        self.tried = Some(Tried::compared(result, &self.verdict));
        Ok(())
    }
}

/// Some drivers reset their link when a program goes. An igb needs about 2 s, a card at the end of
/// a long cable more.
const CARRIER_TIMEOUT: Duration = Duration::from_secs(10);

fn attempt(interface: &str) -> Result<Modes> {
    // No address of it becomes live, and without a port nothing is steered: which pool does not
    // matter.
    let pool = Pool::new("2001:db8::/64".parse()?, 1, 1)?;
    let config = ServerConfig {
        engine: Some(EngineKind::Afxdp),
        ..ServerConfig::hold(interface.to_owned(), pool, Method::None)
    };
    Ok(Server::start(&config, &mut |_| true)?.ready().modes.clone())
}

impl Tried {
    fn compared(result: Result<Modes>, verdict: &Verdict) -> Self {
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

    #[test]
    fn a_verdict_agrees_when_it_said_so() {
        let open = Verdict::default();
        let copy = Verdict {
            attach: Some(AttachMode::Native),
            copy: Some(CopyMode::Copy),
            ..open.clone()
        };
        let down = Finding { name: "down".to_owned(), why: String::new(), cure: None };
        let refused = Verdict { obstacles: vec![down], ..copy.clone() };
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
