//! A complete server: it echoes every request to 100 addresses under a prefix.
//!
//! ```text
//! cargo build --release --example echo
//! sudo target/release/examples/echo eth1 2001:db8:1::/64
//! ```
//!
//! Needs root. Serves UDP port 3540 until Ctrl-C, for sources on the interface's link.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use sixhop::address::Pool;
use sixhop::engine::EngineKind;
use sixhop::live::Method;
use sixhop::server::{Server, ServerConfig};
use sixhop::service::{Answer, Datagram, Service};

#[derive(Clone)]
struct Once;

impl Service for Once {
    fn answer(&mut self, _datagram: &mut Datagram) -> Answer {
        Answer::same()
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: echo INTERFACE PREFIX";
    let interface = arguments.next().context(usage)?;
    let prefix = arguments.next().context(usage)?.parse()?;
    let addresses = Pool::new(prefix, 100, 1)?;
    let config = ServerConfig {
        engine: Some(EngineKind::AFXDP),
        port: 3540,
        ..ServerConfig::hold(interface, addresses, Method::Netlink)
    };
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, stop.clone())?;
    let server = Server::start_with(&config, &Once, &mut |_| true)?;
    println!("{} answers", server.ready().interface);
    let totals = server.run(&stop, |_| {}, &mut |_| {})?;
    println!(
        "{} requests, {} replies",
        totals.stats.counters.answered, totals.stats.counters.replies
    );
    Ok(())
}
