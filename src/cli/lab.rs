//! `sixhop lab`: a network on one machine. Parses flags and calls [`crate::lab`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use serde::Serialize;

use super::{make, stop_on_signal};
use crate::lab::vm::{self, Accelerator, Card, VmConfig};
use crate::lab::{DEFAULT_NAME, InterfaceStatus, Lab, Raised, Side, State, Status};

/// Make a network on this machine: two namespaces joined by a veth pair
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the lab; labs with different names are independent
    #[arg(long, global = true, default_value = DEFAULT_NAME)]
    name: String,

    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make the lab; an existing one that matches stays as it is
    #[command(after_help = "Example:\n  sudo sixhop lab up --queues 2")]
    Up {
        /// Queues in each direction, at both ends
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
    /// Show which parts of the lab exist
    #[command(after_help = "Example:\n  sudo sixhop lab status --json")]
    Status {
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a command in one side; its exit status becomes this one's
    #[command(after_help = "Example:\n  sudo sixhop lab exec client -- ping -c 1 2001:db8:1::2")]
    Exec {
        /// Side to run it in
        side: Side,
        /// The command and its arguments
        #[arg(last = true, required = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// Run a command in a virtual machine with two network cards, which form the lab there; its
    /// exit status becomes this one's
    #[command(after_help = "Example: zero-copy on an emulated Intel card, beside other engines
  sixhop lab vm --nic igb -- sixhop compare --lab sixhop --addresses 1000

In the guest, the lab 'sixhop' is up, with cards instead of a veth pair. The
command runs as root, with this machine's files and in this directory. If this
machine lacks QEMU or a kernel, they are fetched from Debian's packages into
~/.cache/sixhop, and nothing else here changes. QEMU translates instructions:
compare engines only within one guest, never with other machines.")]
    Vm(Vm),
    /// Process 1 in the guest of 'lab vm'
    #[command(hide = true)]
    Guest,
}

/// A guest and its command.
#[derive(Debug, clap::Args)]
struct Vm {
    /// The two network cards, joined back to back
    #[arg(long, default_value = "igb")]
    nic: Card,
    /// Queues that each card uses; virtio has one here [default: 1, where the driver can choose]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8))]
    queues: Option<u32>,
    /// The kernel: a directory like /lib/modules/6.18.0 with a vmlinuz, or a Debian release, which
    /// is fetched [default: this machine's if it is 6.14 or newer, otherwise Debian's]
    #[arg(long, value_name = "RELEASE|DIR")]
    kernel: Option<String>,
    /// How to execute the guest's instructions
    #[arg(long, value_name = "WAY", default_value = "tcg")]
    accelerator: Accelerator,
    /// The guest's processors
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=255))]
    processors: u32,
    /// The guest's memory
    #[arg(long, value_name = "MIB", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(256..))]
    memory: u32,
    /// Directory that the guest may write to, created if missing; it can only read the rest of this
    /// machine
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Kill the guest if it takes longer
    #[arg(long, value_name = "SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// The JSON that `--json` prints.
#[derive(Serialize)]
struct LabEvent<'a> {
    event: &'static str,
    /// What `up` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<Raised>,
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
        let event = LabEvent { event: "lab", outcome, removed, status };
        println!("{}", serde_json::to_string(&event)?);
    } else {
        print!("{}", text(status, outcome, removed));
    }
    Ok(ExitCode::SUCCESS)
}

fn run_guest(args: Vm) -> Result<ExitCode> {
    let out = args.out.map(|out| {
        make(&out)?;
        out.canonicalize().with_context(|| format!("cannot open {}", out.display()))
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

/// The same as text.
fn text(status: &Status, outcome: Option<Raised>, removed: Option<bool>) -> String {
    let what = match (outcome, removed, status.state) {
        (Some(Raised::Made), ..) => "made",
        (Some(Raised::Replaced), ..) => "replaced",
        (Some(Raised::AlreadyUp), ..) => "already up",
        (_, Some(true), _) => "removed",
        (_, Some(false), _) => "already down",
        (_, _, State::Up) => "up",
        (_, _, State::Partial) => {
            "incomplete: 'sixhop lab up' completes it, 'sixhop lab down' removes it"
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
