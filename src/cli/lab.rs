//! `sixhop lab`: a network on one machine. Flags in, calls of [`crate::lab`] out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{make, stop_on_signal};
use crate::lab::vm::{self, Accelerator, Nic, VmConfig};
use crate::lab::{DEFAULT_NAME, InterfaceStatus, Lab, Outcome, Side, State, Status};

/// Make a network on this machine: two namespaces joined by a veth pair
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which lab: labs of different names do not know of each other
    #[arg(long, global = true, default_value = DEFAULT_NAME)]
    name: String,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make the lab; one that is there already stays as it is
    #[command(after_help = "Example:\n  sudo sixhop lab up --queues 2")]
    Up {
        /// Queues each way, at both ends
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
        queues: u32,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Remove the lab
    #[command(after_help = "Example:\n  sudo sixhop lab down")]
    Down {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Say what there is of the lab
    #[command(after_help = "Example:\n  sudo sixhop lab status --json")]
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a command in one side; its exit status becomes this one's
    #[command(after_help = "Example:\n  sudo sixhop lab exec client -- ping -c 1 2001:db8:1::2")]
    Exec {
        /// Where to run it
        side: Side,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Run a command in a virtual machine with two network cards, which are the lab there; its exit
    /// status becomes this one's
    #[command(after_help = "Example: zero-copy on an emulated Intel card, beside the others
  sixhop lab vm --nic igb -- sixhop compare --lab sixhop --addresses 1000

In it the lab 'sixhop' is up, with cards in the place of the veth pair, and
the command runs as root, with this machine's files and in this directory.
QEMU and a kernel that this machine does not have are fetched into
~/.cache/sixhop from Debian's packages, and change nothing else here. QEMU
translates: compare engines within one guest, never with other machines.")]
    Vm(Vm),
    /// What the guest of 'lab vm' runs first
    #[command(hide = true)]
    Guest,
}

/// A guest and its command.
#[derive(Debug, clap::Args)]
struct Vm {
    /// Its two network cards, joined back to back
    #[arg(long, default_value = "igb")]
    nic: Nic,
    /// Queues that each card uses; virtio has one here [default: 1, where the driver can choose]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
    queues: Option<u32>,
    /// Its kernel: a directory like /lib/modules/6.18.0, with a vmlinuz, or a release of Debian's,
    /// which is fetched [default: this machine's, if it is 6.14 or newer, or else one of Debian's]
    #[arg(long, value_name = "RELEASE|DIR")]
    kernel: Option<String>,
    /// What executes it
    #[arg(long, value_name = "WAY", default_value = "tcg")]
    accelerator: Accelerator,
    /// Its processors
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    processors: u32,
    /// Its memory
    #[arg(long, value_name = "MIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// A directory that it may write to, and which is made; all else it sees of this machine it can
    /// only read
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// End it when it takes longer
    #[arg(long, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    /// What `up` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Outcome>,
    /// Whether `down` found anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    removed: Option<bool>,
    #[serde(flatten)]
    status: &'a Status,
}

/// Runs `sixhop lab`. `exec` does not return unless it fails.
///
/// # Errors
/// Those of [`crate::lab`].
pub fn run(args: Args) -> Result<ExitCode> {
    let lab = Lab::named(&args.name)?;
    let (json, outcome, removed) = match args.action {
        Action::Exec { side, command } => match lab.exec(side, &command)? {},
        Action::Vm(vm) => return run_guest(vm),
        Action::Guest => match vm::be_init()? {},
        Action::Up { queues, json } => (json, Some(lab.up(queues)?), None),
        Action::Down { json } => (json, None, Some(lab.down()?)),
        Action::Status { json } => (json, None, None),
    };
    let status = &lab.status()?;
    if json {
        let event = Event { event: "lab", outcome, removed, status };
        println!("{}", serde_json::to_string(&event)?);
    } else {
        print!("{}", text(status, outcome, removed));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_guest(args: Vm) -> Result<ExitCode> {
    let out = args.out.map(|out| {
        make(&out)?;
        out.canonicalize().with_context(|| format!("there is no {}", out.display()))
    });
    let config = VmConfig {
        nic: args.nic,
        kernel: args.kernel,
        accelerator: args.accelerator,
        queues: args.queues,
        processors: args.processors,
        memory: args.memory,
        command: args.command,
        out: out.transpose()?,
        limit: Duration::from_secs(args.limit),
    };
    let stop = stop_on_signal()?;
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    let status = vm::run(&config, &stop, &mut |what| match what {
        Some(what) => bar.set_message(what.to_owned()),
        None => bar.finish_and_clear(),
    });
    bar.finish_and_clear();
    Ok(ExitCode::from(u8::try_from(status?).unwrap_or(1)))
}

/// The same for people.
fn text(status: &Status, outcome: Option<Outcome>, removed: Option<bool>) -> String {
    let what = match (outcome, removed, status.state) {
        (Some(Outcome::Made), ..) => "made",
        (Some(Outcome::Replaced), ..) => "replaced",
        (Some(Outcome::AlreadyUp), ..) => "up already",
        (_, Some(true), _) => "removed",
        (_, Some(false), _) => "down already",
        (_, _, State::Up) => "up",
        (_, _, State::Partial) => {
            "half-made: 'sixhop lab up' makes it whole, 'sixhop lab down' removes it"
        }
        (_, _, State::Down) => "down",
    };
    let mut text = format!("lab {}: {what}\n", status.name);
    for side in [&status.server, &status.client].into_iter().flatten() {
        let interface = match &side.interface {
            Some(interface) => describe(interface),
            None => "no interface".to_owned(),
        };
        text += &format!("  {}: {interface}\n", side.namespace);
    }
    text
}

fn describe(interface: &InterfaceStatus) -> String {
    let InterfaceStatus { name, mac, mtu, queues, carrier, addresses, xdp } = interface;
    let carrier = if *carrier { "carrier" } else { "no carrier" };
    let xdp = match xdp {
        Some(program) => format!("XDP program {} ({})", program.id, program.mode),
        None => "no XDP program".to_owned(),
    };
    format!(
        "{name} {mac}, mtu {mtu}, queues {queues}, {carrier}, IPv6 addresses {addresses}, {xdp}"
    )
}
