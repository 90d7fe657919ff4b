//! `sixhop guard`: the process that a server starts beside itself ([`crate::server::guard`]). Not a
//! command for people.

use std::io;
use std::process::ExitCode;

use anyhow::Result;

use super::Usage;
use crate::address::{Pool, Prefix};
use crate::live::Method;
use crate::server::guard::Watch;

/// Clean up after a killed server. Servers start this themselves
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Process ID of the server
    #[arg(long)]
    server: i32,
    /// Index of the server's interface
    #[arg(long)]
    index: u32,
    /// How the server binds its addresses
    #[arg(long)]
    method: Method,
    /// Prefix of the addresses
    #[arg(long)]
    prefix: Prefix,
    /// Number of addresses, if they stay
    #[arg(long)]
    addresses: Option<u64>,
    /// Which addresses of the prefix
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The server is a gate
    #[arg(long)]
    gate: bool,
}

/// Runs the subcommand until standard input ends.
///
/// # Errors
/// If it cannot remove everything that the server left.
pub fn run(args: &Args) -> Result<ExitCode> {
    let prefix = args.prefix;
    let pool = args.addresses.map(|count| Pool::new(prefix, count, args.seed)).transpose();
    let pool = pool.map_err(|error| Usage(error.to_string()))?;
    let Args { server, index, method, gate, .. } = *args;
    let watch = Watch { server, index, method, prefix, pool, gate };
    watch.run(io::stdin().lock())?.iter().for_each(super::note);
    Ok(ExitCode::SUCCESS)
}
