//! `sixhop enrol`: writes the identities of clients.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{Usage, print_json, progress, stop_on_signal};
use crate::address::identity::Services;
use crate::address::mt6d::{Clock, Subnet};
use crate::address::{Identity, IdentityError, Prefix};
use crate::events::{Enrolled, Event};
use crate::host::{identity, secret};

/// Write a file for each client, by which it knows its addresses
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  (umask 077; head -c 32 /dev/urandom > secret)
  sixhop enrol --secret secret --clients 0-99 --prefix 2001:db8:1::/64 \\
      --rotate 10s --service ssh=22 --service https=443 --out clients
  sixhop where clients/client-000042.toml

Prefix, step and secret are those of serve, which serves clients 0 to N-1 with
--clients N. Each file is for one client: whoever steals it finds that client's
addresses, and no other's. Take each to its client by a safe way, such as scp,
and delete it here. It can be written again from the secret, which is in none.")]
pub struct Args {
    /// File with the server's secret: at least 16 bytes, readable only by its owner
    #[arg(long, value_name = "FILE")]
    secret: PathBuf,
    /// Numbers of the clients, from 0: one, or the first and the last
    #[arg(long, value_name = "A-B", value_parser = numbers)]
    clients: (u32, u32),
    /// Prefix of the addresses
    #[arg(long)]
    prefix: Prefix,
    /// Length of a step, after which each client has another address: 1s or more
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    rotate: Duration,
    /// Directory for client-000042.toml and so on, made if there is none
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// A service that the server offers, such as ssh=22; may be repeated
    #[arg(long = "service", value_name = "NAME=PORT", value_parser = service)]
    services: Vec<(String, u16)>,
    /// Replace files that exist
    #[arg(long)]
    force: bool,
    /// Print one JSON line
    #[arg(long)]
    json: bool,
}

/// Parses `A` or `A-B`.
fn numbers(text: &str) -> Result<(u32, u32), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse(), last.parse()) {
        (Ok(first), Ok(last)) if first <= last && last < u32::MAX => Ok((first, last)),
        _ => Err("write a client's number, such as 42, or a first and a last, such as 0-99".into()),
    }
}

/// Parses `NAME=PORT`.
fn service(text: &str) -> Result<(String, u16), String> {
    let (name, port) = text.split_once('=').unwrap_or_default();
    match port.parse() {
        Ok(port) => Ok((name.to_owned(), port)),
        Err(_) => Err("write NAME=PORT, such as ssh=22".into()),
    }
}

/// The services of the flags, each named once.
fn services(flags: &[(String, u16)]) -> Result<Services, Usage> {
    let mut services = Services::new();
    for (name, port) in flags {
        if services.insert(name.clone(), *port).is_some() {
            return Err(Usage(format!("--service {name} is given twice")));
        }
    }
    Ok(services)
}

/// Runs the subcommand.
///
/// # Errors
/// When the secret is none, or others may read it; when a file exists or cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    let usage = |error: IdentityError| Usage(error.to_string());
    let subnet = Subnet::new(args.prefix).map_err(|error| usage(error.into()))?;
    let clock = Clock::new(args.rotate).map_err(|error| usage(error.into()))?;
    let services = services(&args.services)?;
    let secret = secret::read(&args.secret)?;
    let stop = stop_on_signal()?;
    let of = |client| Identity::new(subnet, clock, &secret, client, services.clone());
    let (first, last) = args.clients;
    of(first).map_err(usage)?;
    let out = &args.out;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(out)
        .with_context(|| format!("cannot make {}", out.display()))?;
    let count = u64::from(last - first) + 1;
    let bar = progress(count, "enrolling {bar:20} {human_pos}/{human_len} clients, {eta} left");
    for client in first..=last {
        let written = u64::from(client - first);
        if stop.load(Ordering::Relaxed) {
            bail!(
                "interrupted: {written} of {count} files are written, the next is client {client}"
            );
        }
        let path = out.join(format!("client-{client:06}.toml"));
        let done = identity::write(&path, &of(client)?, args.force).with_context(|| {
            format!("{written} of {count} files are written: client {client} cannot be enrolled")
        });
        match done {
            Err(error) if path.exists() => bail!("{error:#}: --force replaces it"),
            done => done?,
        }
        if written % 1024 == 0 {
            bar.set_position(written);
        }
    }
    bar.finish_and_clear();
    if args.json {
        let directory = out.display().to_string();
        print_json(&Event::Enrolled(Enrolled { first, last, directory }))?;
    } else {
        let files = if count == 1 { "file" } else { "files" };
        println!("{count} {files} in {}, for clients {first} to {last}", out.display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_one_or_a_range() {
        assert_eq!(numbers("7"), Ok((7, 7)));
        assert_eq!(numbers("0-999999"), Ok((0, 999_999)));
        for wrong in ["", "-", "-1", "5-", "7-3", "x", "1-2-3", "4294967295", "1,2"] {
            assert!(numbers(wrong).unwrap_err().contains("such as 0-99"), "{wrong}");
        }
    }

    #[test]
    fn a_service_has_a_name_and_a_port() {
        assert_eq!(service("ssh=22"), Ok(("ssh".into(), 22)));
        for wrong in ["ssh", "ssh=", "ssh=x", "ssh=70000", "22"] {
            assert!(service(wrong).unwrap_err().contains("ssh=22"), "{wrong}");
        }
        let twice = [("ssh".to_owned(), 22), ("ssh".to_owned(), 2222)];
        assert!(services(&twice).unwrap_err().to_string().contains("ssh is given twice"));
    }
}
