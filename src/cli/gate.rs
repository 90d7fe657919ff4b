//! `sixhop gate`: this machine's own services, on addresses that move.

use std::collections::BTreeMap;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;

use super::serve::{self, Manager};
use super::{
    OPERATIONS, TargetFlags, Usage, note, print_json, print_line, stop_at_end_of_input,
    stop_on_signal,
};
use crate::address::Targets;
use crate::events::{Event, GateEvent, GateReady, GateStats, Notice, Rotated, ServiceFound};
use crate::gate::{Gate, GateConfig, GateNews, GateService};
use crate::host::sandbox::Sandbox;
use crate::live::Method;
use crate::server::guard::Guard;

/// Let clients reach this machine's own services at addresses that move
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: sshd, which listens on [::1] alone, for a thousand clients:
  (umask 077; head -c 32 /dev/urandom > secret)
  sudo sixhop gate --interface eth1 --prefix 2001:db8:1::/64 --schedule mt6d \\
      --clients 1000 --rotate 10s --secret secret --to '22=[::1]:22'
  sixhop enrol --secret secret --prefix 2001:db8:1::/64 --rotate 10s \\
      --clients 0-999 --out clients
  ssh $(sixhop where clients/client-000042.toml --json | jq -r .address)

The service needs no change and no restart. A client connects to its address of
now, and the connection lives on when the address has expired. Everybody else
meets silence: no reset, no ICMPv6 error, from live addresses on other ports
neither. docs/gate.md says what is hidden and what is not.")]
pub struct Args {
    #[command(flatten)]
    addresses: GateAddresses,
    #[command(flatten)]
    services: GateServices,
    #[command(flatten)]
    operations: GateOperations,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Addresses")]
struct GateAddresses {
    /// Interface that clients come to
    #[arg(long, value_name = "IF")]
    interface: String,
    #[command(flatten)]
    which: TargetFlags,
    /// Take all of the prefix, also where this machine has routes of other interfaces under it
    #[arg(long)]
    take_prefix: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Services")]
struct GateServices {
    /// A service: the port that clients ask, and the IPv6 address and port where it listens. By
    /// default TCP, the same port, bound to any address. May be repeated
    #[arg(long = "to", value_name = "PORT[/tcp|/udp][=ADDR:PORT]", required = true)]
    to: Vec<GateService>,
    /// How long an unused UDP flow may go on at an address that has expired
    #[arg(long, value_name = "TIME", default_value = "3m",
          value_parser = humantime::parse_duration)]
    idle: Duration,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = OPERATIONS)]
struct GateOperations {
    /// Close when standard input closes, so that the gate ends with the program that started it
    #[arg(long)]
    stop_on_eof: bool,
    /// Keep all capabilities and make any system call, for debuggers and profilers
    #[arg(long)]
    no_sandbox: bool,
    /// Print JSON lines: ready, stats once a second, rotation once in each time step, stopped
    #[arg(long)]
    json: bool,
}

impl Args {
    fn config(self) -> Result<GateConfig> {
        let Targets::Moving(timetable) = self.addresses.which.targets(0)? else {
            let words = "a gate's addresses move: use --schedule, --clients and --secret, or \
                         --identity";
            return Err(Usage(words.to_owned()).into());
        };
        Ok(GateConfig {
            interface: self.addresses.interface,
            timetable,
            services: self.services.to,
            idle: self.services.idle,
            take_prefix: self.addresses.take_prefix,
            sandbox: Sandbox::new(!self.operations.no_sandbox),
        })
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When the gate cannot be opened or kept open.
pub fn run(args: Args) -> Result<ExitCode> {
    let GateOperations { stop_on_eof, json, .. } = args.operations;
    let config = args.config()?;
    let stop = stop_on_signal()?;
    if stop_on_eof {
        stop_at_end_of_input(stop.clone(), config.sandbox);
    }
    let mut manager = Manager::default();
    if config.sandbox.is_on() {
        // The usual words come with a backtrace where one is asked for, and that reads files.
        panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
    let guard = Guard::of_gate(&config.interface, config.timetable.subnet().prefix())?;
    let gate = Gate::open(&config, &mut |_| !stop.load(Ordering::Relaxed))?;
    let ready = gate.ready().clone();
    ready.notes.iter().for_each(note);
    manager.ready(&describe(&ready), ready.sandbox);
    let printer = Printer { json };
    printer.show(&GateEvent::Ready(Box::new(ready)))?;
    let totals = gate.run(&stop, |news| match news {
        // The reader of a line may be gone.
        GateNews::Stats(stats) => drop(printer.show(&GateEvent::Stats(stats.clone()))),
        GateNews::Rotation(rotated) => printer.rotation(rotated),
        GateNews::Arrival(arrival, service) => {
            tracing::info!(client = %arrival.client, asked = %arrival.asked, %service, "arrived");
        }
        GateNews::Notice(text) => printer.notice(text),
        GateNews::Alive => manager.alive(),
        GateNews::Stopping => manager.stopping(),
    })?;
    guard.dismiss();
    tracing::info!(received = totals.received, "stopped");
    printer.show(&GateEvent::Stopped(totals))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints what happens while the gate is open.
struct Printer {
    json: bool,
}

impl Printer {
    fn show(&self, event: &GateEvent) -> Result<()> {
        if self.json {
            return print_line(&event.to_line()?);
        }
        println!("{}", words(event));
        Ok(())
    }

    fn rotation(&self, rotated: &Rotated) {
        if self.json {
            let _ = print_json(&Event::Rotation(*rotated));
        } else {
            println!("{}", serve::rotation(rotated));
        }
        if let Some(words) = serve::late(rotated, Method::LiveMap) {
            note(words);
        }
    }

    fn notice(&self, text: String) {
        note(&text);
        if self.json {
            let _ = print_json(&Event::Notice(Notice { text }));
        }
    }
}

fn words(event: &GateEvent) -> String {
    match event {
        GateEvent::Ready(ready) => format!("ready: {}", describe(ready)),
        GateEvent::Stats(stats) => format!("{:7.0} s  {}", stats.seconds, summary(stats)),
        GateEvent::Stopped(stats) => format!("stopped: {}", summary(stats)),
    }
}

fn describe(ready: &GateReady) -> String {
    let GateReady { interface, prefix, addresses, moving, .. } = ready;
    let services = ready.services.iter().map(|service| {
        let ServiceFound { name, listener, .. } = service;
        format!("{name} at {listener}")
    });
    let services: Vec<_> = services.collect();
    let sandbox = if ready.sandbox { "" } else { "; no sandbox" };
    format!(
        "a gate on {interface} to {}, on {addresses} addresses of {prefix}, which move by {} every \
         {} s, for {} clients; it is step {}{sandbox}",
        services.join(", "),
        moving.schedule,
        moving.rotate,
        moving.clients,
        moving.step
    )
}

/// What has occurred, and only that.
fn summary(stats: &GateStats) -> String {
    let sum = |counts: &BTreeMap<String, u64>| counts.values().sum::<u64>();
    let mut parts = vec![format!("received {}, passed {}", stats.received, sum(&stats.passed))];
    let came = stats.services.iter().filter(|service| service.arrived > 0);
    parts.extend(came.map(|service| format!("{} came to {}", service.arrived, service.name)));
    if stats.advertised > 0 {
        parts.push(format!("advertised {}", stats.advertised));
    }
    let named = |(outcome, count): (&String, &u64)| format!("{outcome} {count}");
    if !stats.dropped.is_empty() {
        let reasons: Vec<_> = stats.dropped.iter().map(named).collect();
        parts.push(format!("dropped {} ({})", sum(&stats.dropped), reasons.join(", ")));
    }
    parts.extend(stats.sent.iter().map(named));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::ServiceCount;

    #[test]
    fn a_line_says_what_has_occurred() {
        let count = |name: &str, count| BTreeMap::from([(name.to_owned(), count)]);
        let stats = GateStats {
            seconds: 3.0,
            received: 10,
            passed: count("tcp_flow", 7),
            advertised: 1,
            dropped: count("not_live", 2),
            services: vec![ServiceCount { name: "22/tcp".to_owned(), arrived: 4 }],
            ..GateStats::default()
        };
        let line = words(&GateEvent::Stats(stats));
        let expected = "received 10, passed 7, 4 came to 22/tcp, advertised 1, dropped 2 \
                        (not_live 2)";
        assert_eq!(line, format!("      3 s  {expected}"));
        let nothing = words(&GateEvent::Stopped(GateStats::default()));
        assert_eq!(nothing, "stopped: received 0, passed 0");
    }
}
