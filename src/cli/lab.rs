//! `sixhop lab`: a network on one machine. Flags in, calls of [`crate::lab`] out.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

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

/// The same for people.
fn text(status: &Status, outcome: Option<Outcome>, removed: Option<bool>) -> String {
    let what = match (outcome, removed, status.state) {
        (Some(Outcome::Made), ..) => "made",
        (Some(Outcome::Replaced), ..) => "replaced",
        (Some(Outcome::AlreadyUp), ..) => "up already",
        (_, Some(true), _) => "removed",
        (_, Some(false), _) => "down already",
        (_, _, State::Up) => "up",
        (_, _, State::Partial) => "half-made: 'sixhop lab up' makes it whole, 'sixhop lab down' removes it",
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
    format!("{name} {mac}, mtu {mtu}, queues {queues}, {carrier}, IPv6 addresses {addresses}, {xdp}")
}
