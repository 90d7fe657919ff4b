//! Another program as the server, for comparison. Sixhop makes the addresses live, starts the
//! program on the server's side of a lab, and stops it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::server::ServerHost;
use crate::address::Pool;
use crate::events::Ready;
use crate::lab::{Lab, Side};
use crate::live::Interrupted;
use crate::load::{Generator, Run};
use crate::net::netlink;
use crate::server::{Server, ServerConfig};

/// A program that answers requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerProgram {
    /// Its name in results.
    pub name: String,
    /// The command. It may contain `{interface}`, `{address}` (the first one), `{port}`, `{core}`
    /// (the server's) and `{client-core}`.
    pub command: Vec<String>,
}

/// A running peer and the addresses that it answers on.
pub(super) struct PeerProcess<'a> {
    child: Child,
    addresses: Option<Server>,
    lab: &'a Lab,
    target: std::net::Ipv6Addr,
}

/// How long a peer may take until it answers.
const START: Duration = Duration::from_secs(60);

/// How long a peer may take to end after SIGINT; then it is killed.
const STOP: Duration = Duration::from_secs(10);

/// The requests that wait for a peer to answer: slow enough that none is still in flight when the
/// measurement begins.
const FIRST: Run = Run { rate: 100.0, requests: 10 };

impl<'a> PeerProcess<'a> {
    /// Makes the addresses of `pool` live as `held` says, and starts the peer. Does not wait for an
    /// answer: [`wait`](Self::wait) does.
    pub fn start(
        lab: &'a Lab,
        peer: &PeerProgram,
        held: &ServerConfig,
        pool: &Pool,
        port: u16,
        [core, client_core]: [usize; 2],
        stop: &AtomicBool,
    ) -> Result<Self> {
        let interface = Side::Server.interface();
        let target = pool.address(0);
        let addresses = lab.run_in(Side::Server, || {
            Ok(Server::start(held, &mut |_| !stop.load(Ordering::Relaxed))?)
        })?;
        let mac = lab.run_in(Side::Server, || Ok(netlink::link(interface)?.mac))?;
        // A peer may take every packet from the kernel, which then cannot answer solicitations.
        neighbour(lab, target, Some(mac))?;
        let values = [
            ("{interface}", interface.to_owned()),
            ("{address}", target.to_string()),
            ("{port}", port.to_string()),
            ("{core}", core.to_string()),
            ("{client-core}", client_core.to_string()),
        ];
        let fill = |word: &String| {
            let filled =
                values.iter().fold(word.clone(), |word, (name, value)| word.replace(name, value));
            OsString::from(filled)
        };
        let host = ServerHost::lab(lab)?;
        let (program, enter) = host.via.split_first().context("no command that enters the lab")?;
        let child = Command::new(program)
            .args(enter)
            .args(peer.command.iter().map(fill))
            // A group of its own, so that Drop can end the peer's children too.
            .process_group(0)
            .stdin(Stdio::piped()) // kept open: some programs exit at its end
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot run {}", peer.name))?;
        Ok(Self { child, addresses: Some(addresses), lab, target })
    }

    /// The event of the process that holds the addresses: how it bound them.
    pub fn ready(&self) -> Option<&Ready> {
        self.addresses.as_ref().map(Server::ready)
    }

    /// Waits until the peer answers `generator`.
    pub fn wait(
        &mut self,
        peer: &PeerProgram,
        generator: &mut Generator,
        stop: &AtomicBool,
    ) -> Result<()> {
        let give_up = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for a peer")? {
                anyhow::bail!(
                    "{} ended at once, with {status}: try '{}' by hand",
                    peer.name,
                    peer.command.join(" ")
                );
            }
            let outcome = generator.run(FIRST, stop, |_| {})?.outcome;
            ensure!(!stop.load(Ordering::Relaxed), Interrupted);
            if outcome.complete == FIRST.requests {
                return Ok(());
            }
            ensure!(
                Instant::now() < give_up,
                "{} answered nothing within {} s",
                peer.name,
                START.as_secs()
            );
        }
    }
}

impl Drop for PeerProcess<'_> {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let group = Pid::from_raw(self.child.id() as i32);
        let _ = killpg(group, Signal::SIGINT);
        let give_up = Instant::now() + STOP;
        while self.child.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() >= give_up {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = killpg(group, Signal::SIGKILL);
        let _ = neighbour(self.lab, self.target, None);
        if let Some(addresses) = self.addresses.take() {
            let _ = addresses.run(&AtomicBool::new(true), |_| {}, &mut |_| {});
        }
    }
}

/// Adds a neighbour entry for `target` on the client, or removes it.
fn neighbour(lab: &Lab, target: std::net::Ipv6Addr, mac: Option<[u8; 6]>) -> Result<()> {
    lab.run_in(Side::Client, || {
        let client = netlink::link(Side::Client.interface())?;
        netlink::set_neighbour(client.index, target, mac)
    })
}
