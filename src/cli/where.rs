//! `sixhop where`: the address of an identity, and until when.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Result;

use super::print_json;
use crate::events::{Event, Where};
use crate::host::identity;
use crate::host::time::unix_time;

/// Print the address of an identity, and until when
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sixhop where clients/client-000042.toml
  ping $(sixhop where clients/client-000042.toml --json | jq -r .address)

It asks nobody: the address follows from the identity and this machine's clock.
The server takes the address of one step before and after as well.")]
pub struct Args {
    /// File that sixhop enrol wrote
    #[arg(value_name = "IDENTITY")]
    identity: PathBuf,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the file is no identity, or others may read it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let identity = identity::read(&args.identity)?;
    let now = unix_time();
    let step = identity.clock().step(now);
    let end = identity.clock().start(step + 1);
    let until = SystemTime::UNIX_EPOCH + Duration::from_nanos(end);
    let until = humantime::format_rfc3339(until).to_string();
    let address = identity.address(step);
    if args.json {
        print_json(&Event::Where(Where { address, step, until }))?;
    } else {
        let left = Duration::from_nanos(end - now).as_secs_f64();
        println!("{address}  step {step}, until {until} ({left:.1} s)");
    }
    Ok(ExitCode::SUCCESS)
}
