//! `sixhop guard`: what a server starts beside itself ([`crate::server::guard`]), and no command
//! for people.

use std::io;
use std::process::ExitCode;

use anyhow::Result;

use super::Usage;
use crate::address::{Pool, Prefix};
use crate::live::Method;
use crate::server::guard::Watch;

/// Take back what a server leaves when it is killed. Servers start one themselves
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Process number of the server
    #[arg(long)]
    server: i32,
    /// Index of its interface
    #[arg(long)]
    index: u32,
    /// How it makes its addresses live
    #[arg(long)]
    method: Method,
    /// Prefix that the addresses lie under
    #[arg(long)]
    prefix: Prefix,
    /// How many addresses, where they stay
    #[arg(long)]
    addresses: Option<u64>,
    /// Which ones of all that the prefix holds
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs the subcommand: until standard input ends.
///
/// # Errors
/// When something stays.
pub fn run(args: &Args) -> Result<ExitCode> {
    let prefix = args.prefix;
    let pool = args.addresses.map(|count| Pool::new(prefix, count, args.seed)).transpose();
    let pool = pool.map_err(|error| Usage(error.to_string()))?;
    let watch = Watch { server: args.server, index: args.index, method: args.method, prefix, pool };
    watch.run(io::stdin().lock())?.iter().for_each(super::note);
    Ok(ExitCode::SUCCESS)
}
