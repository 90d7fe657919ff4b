//! The command line: one file a subcommand. Flags in, library calls out, results printed; no logic of its own.

pub mod bind;
pub mod compare;
pub mod experiment;
pub mod lab;
pub mod load;
pub mod serve;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::address::{Pool, PoolError, Prefix};
use crate::engine::{Server, ServerConfig};
use crate::report::Event;

/// Which addresses. Server and client derive the same ones from the same flags.
#[derive(Debug, Clone, clap::Args)]
pub struct Addresses {
    /// Prefix that the addresses lie under
    #[arg(long)]
    pub prefix: Prefix,
    /// How many addresses
    #[arg(long)]
    pub addresses: u64,
    /// Which ones of all that the prefix holds
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Addresses {
    fn pool(&self) -> Result<Pool, PoolError> {
        Pool::new(self.prefix, self.addresses, self.seed)
    }
}

/// A flag whose value makes no sense together with others: the exit status is 2, as for one that makes no sense alone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Set when SIGINT or SIGTERM comes, however often: what was taken is always given back.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("no signal handler")?;
    }
    Ok(stop)
}

/// Sets `stop` when standard input ends.
fn stop_at_end_of_input(stop: Arc<AtomicBool>) {
    // Never joined: it waits for input for as long as the process lives.
    thread::spawn(move || {
        let mut rest = [0; 256];
        while io::stdin().read(&mut rest).is_ok_and(|length| length > 0) {}
        stop.store(true, Ordering::Relaxed);
    });
}

/// Starts the server, with a bar while its addresses are bound.
fn binding(config: &ServerConfig, stop: &AtomicBool) -> Result<Server> {
    let bar = progress(config.pool.count(), "binding {bar:40} {human_pos}/{human_len} addresses, {elapsed}");
    let server = Server::start(config, &mut |bound| {
        bar.set_position(bound as u64);
        !stop.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    server
}

/// Prints `event` as one line on standard output, and at once.
fn print_json(event: &Event) -> Result<()> {
    let mut line = serde_json::to_string(event)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// A bar on standard error; none where that is not a terminal.
fn progress(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style)
}
