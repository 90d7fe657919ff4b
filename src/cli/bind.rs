//! `sixhop bind`: makes addresses live, holds them, takes them back, and reports the cost.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{PoolFlags, Usage, binding, print_json, running, stop_at_end_of_input, stop_on_signal};
use crate::events::{BindResult, Event, or_dash};
use crate::experiment::bound;
use crate::host::sandbox::Sandbox;
use crate::live::Method;
use crate::server::ServerConfig;

/// Make addresses live, hold them, and measure the cost
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop lab exec server -- sixhop bind --interface server0 \\
      --prefix 2001:db8:1::/64 --addresses 1000000 --method live-map

Holds the addresses until standard input ends (Ctrl-D, or at once with
'< /dev/null') or SIGINT or SIGTERM arrives, and then unbinds them. Bound by
live-map, they answer neighbour discovery and nothing else; bound by another
method, they answer whatever the kernel answers.")]
pub struct Args {
    /// Interface to bind the addresses on
    #[arg(long, value_name = "IF")]
    interface: String,
    #[command(flatten)]
    addresses: PoolFlags,
    /// How to bind the addresses
    #[arg(long)]
    method: Method,
    /// Let live-map or anyip take the whole prefix, even where this machine has routes of other
    /// interfaces under it
    #[arg(long)]
    take_prefix: bool,
    /// Print JSON lines: live, bound
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// If the addresses cannot be bound, or not all of them unbound.
pub fn run(args: Args) -> Result<ExitCode> {
    let pool = args.addresses.pool().map_err(|error| Usage(error.to_string()))?;
    let config = ServerConfig {
        take_prefix: args.take_prefix,
        ..ServerConfig::hold(args.interface, pool, args.method)
    };
    let stop = stop_on_signal()?;
    let (server, guard) = binding(&config, &stop)?;
    let ready = server.ready().clone();
    if args.json {
        print_json(&Event::Live(ready.clone()))?;
    } else {
        println!("live: {} addresses of {}, by {}", ready.addresses, ready.interface, ready.bind);
    }
    // Watch the input only now: a bind without any input is still measured to its end.
    stop_at_end_of_input(stop.clone(), Sandbox::default());
    let totals = running((server, guard), &stop, |_| {})?;
    let result = bound(&ready, &totals);
    if args.json {
        print_json(&Event::Bound(Box::new(result)))?;
    } else {
        println!("{}", describe(&result));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(result: &BindResult) -> String {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(80);
    table.set_header(["", "per address", "total", "phases"]);
    let all = |nanoseconds: f64| nanoseconds * result.addresses as f64 / 1e9;
    let phases = |phases: &crate::live::Phases| {
        phases
            .0
            .iter()
            .map(|phase| format!("{} {}", phase.name, seconds(phase.seconds)))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (name, nanoseconds, parts) in [
        ("generate", Some(result.generate_ns), String::new()),
        ("bind", result.bind_ns, phases(&result.bind_phases)),
        ("unbind", result.unbind_ns, phases(&result.unbind_phases)),
    ] {
        table.add_row([
            name.to_owned(),
            or_dash(nanoseconds, |one| seconds(one / 1e9)),
            or_dash(nanoseconds, |one| seconds(all(one))),
            parts,
        ]);
    }
    for column in table.column_iter_mut().skip(1).take(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.to_string();
    if result.open_seconds > 0.0 {
        text += &format!(
            "\n{} once beforehand: attaching the program, making its hash, arming its rings",
            seconds(result.open_seconds)
        );
    }
    if let Some(bytes) = result.bytes_per_address {
        text += &format!(
            "\n{bytes:.0} bytes of memory per address: the kernel's, and this process's list"
        );
    }
    text
}

/// A duration in a fitting unit.
pub(super) fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.1} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::{Phase, Phases};

    #[test]
    fn the_table_fits_a_terminal() {
        let phases = Phases(
            ["check", "down", "add", "up", "settle"]
                .map(|name| Phase { name: name.to_owned(), seconds: 123.456 })
                .to_vec(),
        );
        let result = BindResult {
            method: Method::NetlinkDown,
            addresses: 1_000_000,
            generate_ns: 999.9,
            bind_ns: Some(123_456_789.0),
            unbind_ns: Some(123_456_789.0),
            seconds: 1.0,
            open_seconds: 1.0,
            bytes_per_address: Some(105.0),
            bind_phases: phases.clone(),
            unbind_phases: phases,
            environment: Default::default(),
        };
        let text = describe(&result);
        assert!(text.lines().all(|line| line.trim_end().chars().count() <= 80), "{text}");
        assert!(text.contains("123.46 s, down") && text.contains("settle"), "{text}");
    }
}
