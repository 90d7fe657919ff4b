//! `sixhop resolver`: names for the addresses of identities.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::{Usage, note, print_json, stop_on_signal};
use crate::events::{Event, Resolving};
use crate::gate::resolver::{Names, Resolver};
use crate::host::identity;

/// Names that are shown to people.
const SHOWN: usize = 8;

/// Answer DNS for the names of identities, so that any program uses them
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sixhop resolver --name home=clients/client-000042.toml
  dig @::1 -p 53535 home.sixhop AAAA

Names have AAAA records that live until the step ends. All else is refused, on
which a program asks its next server. It answers over UDP and TCP.

For systemd-resolved, in /etc/systemd/resolved.conf.d/sixhop.conf, and then
systemctl restart systemd-resolved:
  [Resolve]
  DNS=[::1]:53535
  Domains=~sixhop

/etc/resolv.conf knows no ports. With sudo and --listen '[::1]:53', its first
server is this one:
  nameserver ::1")]
pub struct Args {
    /// Files that sixhop enrol wrote, each named as its file: client-000042.sixhop
    #[arg(value_name = "IDENTITY", required_unless_present = "names")]
    identities: Vec<PathBuf>,
    /// An identity and its name under the domain; may be repeated
    #[arg(long = "name", value_name = "NAME=IDENTITY", value_parser = named)]
    names: Vec<(String, PathBuf)>,
    /// The domain of all names
    #[arg(long, default_value = "sixhop")]
    domain: String,
    /// Where to answer. Who can ask there learns the addresses: keep it to this machine
    #[arg(long, value_name = "ADDR:PORT",
          default_value_t = SocketAddr::from((Ipv6Addr::LOCALHOST, 53535)))]
    listen: SocketAddr,
    /// Print one JSON line once it answers
    #[arg(long)]
    json: bool,
}

/// Parses `NAME=IDENTITY`.
fn named(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok((name.to_owned(), path.into()))
        }
        _ => Err("write NAME=IDENTITY, such as home=client-000042.toml".into()),
    }
}

/// The name of a file without its directory and extension.
fn stem(path: &Path) -> Result<String, Usage> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let unnamed = || Usage(format!("{} has no name: use --name", path.display()));
    stem.map(str::to_owned).ok_or_else(unnamed)
}

/// Runs the subcommand.
///
/// # Errors
/// When a file is no identity, or others may read it; when it cannot listen.
pub fn run(args: Args) -> Result<ExitCode> {
    let stop = stop_on_signal()?;
    let mut files = args.names;
    for path in args.identities {
        files.push((stem(&path)?, path));
    }
    let (mut names, mut known) = (Names::none(), Vec::new());
    for (name, path) in files {
        let name = format!("{name}.{}", args.domain.trim_matches('.'));
        let identity = identity::read(&path)?;
        names.add(&name, identity).map_err(|error| Usage(format!("{error}: use --name")))?;
        known.push(name);
    }
    let resolver = Resolver::open(names, args.listen)
        .context("another program may have it: use another --listen")?;
    let listen = resolver.address()?;
    if !listen.ip().is_loopback() {
        note(format_args!("who can ask on {listen} learns the addresses of these identities"));
    }
    if args.json {
        print_json(&Event::Resolving(Resolving { listen, names: known }))?;
    } else {
        let more = if known.len() > SHOWN { ", …" } else { "" };
        let shown = known[..known.len().min(SHOWN)].join(", ");
        println!("answering on {listen} for {} names: {shown}{more}", known.len());
    }
    resolver.run(&stop)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_or_the_files() {
        assert_eq!(named("home=a/b.toml"), Ok(("home".into(), "a/b.toml".into())));
        for wrong in ["home", "=x", "home="] {
            assert!(named(wrong).unwrap_err().contains("NAME=IDENTITY"), "{wrong}");
        }
        assert_eq!(stem(Path::new("a/client-000042.toml")).unwrap(), "client-000042");
        assert!(stem(Path::new("/")).is_err());
    }
}
