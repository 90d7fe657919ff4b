//! The least that an engine is: it answers nothing. Only tests have it. It shows that an engine
//! takes one file and one line of the registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;

use super::statistics::Shown;
use super::udp::DOZE;
use super::{About, CounterSet, Engine, EngineConfig, EngineKind, Modes, supervise};
use crate::events::Counters;
use crate::host::sandbox::{Role, Sandbox};
use crate::service::Service;

pub(super) const ABOUT: About = About {
    roles: &[Role::Socket],
    ..About::new(EngineKind::named("skeleton"), "Answers nothing")
};

pub(super) fn open<S: Service>(config: &EngineConfig, _: &S) -> Result<Box<dyn Engine>> {
    let modes = Modes { cores: config.cores.clone(), ..Modes::default() };
    Ok(Box::new(Skeleton { modes, sandbox: config.sandbox, shown: Arc::default() }))
}

struct Skeleton {
    modes: Modes,
    sandbox: Sandbox,
    shown: Arc<Shown>,
}

impl Engine for Skeleton {
    fn modes(&self) -> &Modes {
        &self.modes
    }

    fn counters(&self) -> Result<Box<dyn CounterSet>> {
        Ok(Box::new(SkeletonCounters(self.shown.clone())))
    }

    fn run(self: Box<Self>, stop: &AtomicBool) -> Result<()> {
        thread::scope(|scope| {
            let worker = supervise::start(scope, stop, || {
                self.sandbox.enter(Role::Socket)?;
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(DOZE);
                    self.shown.beat();
                }
                Ok(())
            });
            supervise::wait_for([worker])
        })
    }
}

struct SkeletonCounters(Arc<Shown>);

impl CounterSet for SkeletonCounters {
    fn read(&self) -> Counters {
        self.0.load().counters()
    }

    fn beats(&self) -> Vec<u64> {
        vec![self.0.beats()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;
    use std::net::{Ipv6Addr, UdpSocket};
    use std::sync::mpsc;

    use anyhow::ensure;
    use nix::sched::{CloneFlags, unshare};
    use nix::unistd::geteuid;

    use crate::address::Pool;
    use crate::live::Method;
    use crate::net::netlink;
    use crate::server::{Server, ServerConfig};

    const PORT: u16 = 3540;

    #[cfg(feature = "cli")]
    #[test]
    fn help_lists_it_with_its_line() {
        use clap::CommandFactory;
        let mut command = crate::cli::Cli::command();
        for name in ["serve", "compare"] {
            let subcommand = command.find_subcommand_mut(name).unwrap();
            let help = subcommand.render_long_help().to_string();
            assert!(help.contains("- skeleton:"), "{help}");
            assert!(help.contains(ABOUT.help), "{help}");
        }
    }

    #[test]
    fn a_server_runs_with_it_in_the_sandbox_answers_nothing_and_stops() {
        if !geteuid().is_root() {
            eprintln!("left out: it makes a network namespace, which takes root");
            return;
        }
        // On a thread of its own: namespace and sandbox are for good.
        thread::spawn(|| serve().unwrap()).join().unwrap();
    }

    fn serve() -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let loopback = netlink::link("lo")?.index;
        netlink::set_up(loopback, true)?;
        let pool = Pool::new("2001:db8::/64".parse()?, 3, 1)?;
        let address = pool.address(1);
        let config = ServerConfig {
            engine: Some(ABOUT.kind),
            port: PORT,
            sandbox: Sandbox::new(true),
            ..ServerConfig::hold("lo".to_owned(), pool, Method::Netlink)
        };
        let (stop, (started, has_started)) = (AtomicBool::new(false), mpsc::channel());
        let (asked, totals) = thread::scope(|scope| {
            // It comes before the sandbox, and is not in it.
            let stop = &stop;
            let asker = scope.spawn(move || {
                let asked = has_started.recv().map_err(Into::into).and_then(|()| ask(address));
                stop.store(true, Ordering::Relaxed);
                asked
            });
            let serve = || {
                let server = Server::start(&config, &mut |_| true)?;
                assert_eq!(server.ready().engine, Some(ABOUT.kind));
                assert!(server.ready().sandbox);
                started.send(())?;
                anyhow::Ok(server.run(stop, |_| {}, &mut |_| {})?)
            };
            let totals = serve();
            drop(started);
            (asker.join().unwrap(), totals)
        });
        let totals = totals?;
        asked?;
        assert_eq!(totals.stats.counters.answered, 0);
        let left = netlink::addresses(loopback)?;
        assert!(left.iter().all(|left| left.ip == Ipv6Addr::LOCALHOST), "{left:?}");
        Ok(())
    }

    /// The kernel has the address, and says that nobody listens.
    fn ask(address: Ipv6Addr) -> Result<()> {
        let socket = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))?;
        socket.connect((address, PORT))?;
        socket.send(&[7; 32])?;
        let answer = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
        ensure!(answer == Err(ErrorKind::ConnectionRefused), "{answer:?}");
        Ok(())
    }
}
