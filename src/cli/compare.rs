//! `sixhop compare`: engines side by side, in a lab of their own.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{Table, presets};
use indicatif::HumanDuration;

use super::{Usage, align, make, print_json, progress, stop_on_signal, write};
use crate::engine::EngineKind;
use crate::events::{EngineResult, Event, or_dash, rate};
use crate::experiment::{CompareConfig, PeerProgram, compare};
use crate::lab::Lab;
use crate::live::Method;
use crate::wire::{MAX_PAYLOAD, MIN_PAYLOAD};

/// Compare engines under the same load, in a lab on this machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop compare --addresses 2000 --out results

A rate is sustained when 99.9 % of the requests have all their replies, the
mean time to the first reply is at most --mean, and the generator sends at
least 99 % of the rate. A rate that fails is tried once more. Each engine
searches three times for its highest such rate, to 2 %: first all engines run
their first search, then all their second, and so on. The table shows the
median search and its measurements; JSON has every run.")]
pub struct Args {
    /// Engines, such as socket,afxdp
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "socket,socket-gso,afxdp",
        value_parser = super::engines()
    )]
    engines: Vec<EngineKind>,
    /// Another program to compare with; repeatable. In its command, {interface}, {address}, {port},
    /// {core} and {client-core} are replaced. It must answer from the address that was asked
    #[arg(long = "peer", value_name = "NAME=CMD", value_parser = peer)]
    peers: Vec<PeerProgram>,
    /// Number of addresses, or several numbers, such as 1,1000000
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "2000",
        value_parser = clap::value_parser!(u64).range(1..))]
    addresses: Vec<u64>,
    /// How to bind the addresses
    #[arg(long, value_name = "METHOD", default_value = "netlink-down")]
    bind: Method,
    /// Which addresses of the prefix: another seed selects others
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// UDP port of the service
    #[arg(long, default_value_t = 3540, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Replies to each request
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..))]
    replies: u8,
    /// Bytes of payload in a request
    #[arg(long, value_name = "BYTES", default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(MIN_PAYLOAD as u64..=MAX_PAYLOAD as u64))]
    payload: u64,
    /// How long to try each rate, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = trial)]
    trial: f64,
    /// Mean time to the first reply up to which a rate is sustained, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 1.0, value_parser = mean)]
    mean: f64,
    /// Busy-poll for this long, so that the client does its interface's receive work itself.
    /// Otherwise, on a veth pair, the server's core does that too, for all engines alike
    #[arg(long, value_name = "USECS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    client_busy_poll: Option<u32>,
    /// Have the kernel take packets from both interfaces in batches, this far apart, for all
    /// engines and peers alike. Otherwise a veth pair handles each packet in the sender's time, as
    /// no card does
    #[arg(long, value_name = "USECS", value_parser = super::serve::coalesce())]
    coalesce: Option<u32>,
    /// An existing lab, used as it is, such as 'sixhop' in the guest of 'lab vm' [default: make
    /// one]
    #[arg(long, value_name = "NAME")]
    lab: Option<String>,
    /// Directory for the results: compare.jsonl, with a line for each engine
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print a JSON line for each engine instead of a table
    #[arg(long)]
    json: bool,
}

/// Parses a trial's length in seconds. In one second, a queue that grows by 0.1 % of the requests
/// exceeds a millisecond.
fn trial(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("a trial takes 0.01 to 600 seconds".into()),
    }
}

/// Parses a peer: its name and command.
fn peer(text: &str) -> Result<PeerProgram, String> {
    let (name, command) = text.split_once('=').ok_or("a peer is NAME=CMD")?;
    let command = shlex::split(command).filter(|command| !command.is_empty());
    let command = command.ok_or("a peer needs a command, with its quotation marks closed")?;
    Ok(PeerProgram { name: name.to_owned(), command })
}

/// Parses a mean in milliseconds.
fn mean(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(limit) if (0.001..=10_000.0).contains(&limit) => Ok(limit),
        _ => Err("a mean is 0.001 to 10000 milliseconds".into()),
    }
}

/// Rejects a list with repetitions; `what` names an entry for the message.
fn no_repeats<T: PartialEq>(list: &[T], what: impl Fn(&T) -> String) -> Result<()> {
    match list.iter().enumerate().find(|(index, one)| list[..*index].contains(one)) {
        Some((_, one)) => Err(Usage(format!("{} named twice", what(one))).into()),
        None => Ok(()),
    }
}

/// Runs the subcommand.
///
/// # Errors
/// If the lab or an engine cannot start, or the results cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    no_repeats(&args.engines, |engine| format!("engine {engine} is"))?;
    let names: Vec<_> = args.peers.iter().map(|peer| peer.name.as_str()).collect();
    no_repeats(&names, |name| format!("peer {name} is"))?;
    no_repeats(&args.addresses, |addresses| format!("{addresses} addresses are"))?;
    if let Some(directory) = &args.out {
        make(directory)?;
    }
    let (out, json) = (args.out.clone(), args.json);
    let results = compare_with_progress(&args.into_config()?)?;
    let events: Vec<_> =
        results.iter().map(|result| Event::Engine(Box::new(result.clone()))).collect();
    if let Some(directory) = &out {
        let lines: String = events.iter().map(Event::to_line).collect::<Result<_>>()?;
        write(directory, "compare.jsonl", &lines)?;
    }
    if json {
        events.iter().try_for_each(print_json)?;
    } else {
        println!("{}", describe(&results));
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn into_config(self) -> Result<CompareConfig> {
        let lab = self.lab.map(|name| Lab::named(&name)).transpose();
        Ok(CompareConfig {
            engines: self.engines,
            peers: self.peers,
            addresses: self.addresses,
            bind: self.bind,
            seed: self.seed,
            port: self.port,
            replies: self.replies,
            payload: self.payload as usize,
            trial: self.trial,
            mean: self.mean * 1000.0,
            client_busy_poll: self.client_busy_poll,
            coalesce: self.coalesce,
            lab: lab.map_err(|error| Usage(error.to_string()))?,
        })
    }
}

/// Compares, with a progress bar; without a terminal, with one line per step.
fn compare_with_progress(config: &CompareConfig) -> Result<Vec<EngineResult>> {
    let stop = stop_on_signal()?;
    let bar = progress(0, "{bar:20} {wide_msg}");
    // A search takes about ten trials. This guess holds until one has been measured.
    let (began, guess) = (Instant::now(), Duration::from_secs_f64(12.0 * config.trial + 2.0));
    let mut last = String::new();
    let results = compare(config, &stop, |step| {
        bar.set_length(step.steps);
        bar.set_position(step.done);
        let step_name = step.doing.split(':').next().unwrap_or_default().to_owned();
        if !std::io::stderr().is_terminal() && step_name != last {
            eprintln!("{step_name}");
            last = step_name;
        }
        let each = u32::try_from(step.done).ok().filter(|done| *done > 0);
        let each = each.map_or(guess, |done| began.elapsed() / done);
        let left = each.saturating_mul(u32::try_from(step.steps - step.done).unwrap_or(u32::MAX));
        bar.set_message(format!("about {} left: {}", HumanDuration(left), step.doing));
    });
    bar.finish_and_clear();
    results
}

/// A column of the table: its heading, and its value for a result.
type Column<'a> = (&'a str, &'a dyn Fn(&EngineResult) -> String);

fn describe(results: &[EngineResult]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let whole = |time: f64| format!("{time:.0}");
    // Each heading beside its value.
    let columns: [Column; 9] = [
        ("engine", &|result| result.engine.to_string()),
        ("XDP, copy", &|result| match (result.attach, result.copy) {
            (Some(attach), Some(copy)) => format!("{attach}, {copy}"),
            (Some(attach), None) => attach.to_string(),
            _ => "–".to_owned(),
        }),
        ("addresses", &|result| result.addresses.to_string()),
        ("requests/s", &|result| rate(result.sustained_rps)),
        ("mean", &|result| or_dash(result.mean_us, whole)),
        ("p99", &|result| or_dash(result.p99_us, whole)),
        ("CPU", &|result| or_dash(result.server_cpu, |share| format!("{:.0}%", share * 100.0))),
        ("mean ½", &|result| or_dash(result.half_mean_us, whole)),
        ("ratio", &|result| or_dash(result.ratio_to_socket, |ratio| format!("{ratio:.2}"))),
    ];
    table.set_header(columns.map(|(name, _)| name));
    for result in results {
        table.add_row(columns.map(|(_, figure)| figure(result)));
    }
    align(&mut table, 2);
    let mut text = table.to_string();
    if let Some(first) = results.first() {
        text += &format!(
            "\nbound by {}; {} replies of {} bytes to each request\n\
             requests/s: the highest sustained rate with a mean of at most {} ms,\n\
             median of {} searches; ratio: to socket\n\
             mean, p99 (µs to the first reply), CPU of the server's core: at that rate\n\
             mean ½: at half that rate\n\
             client: {}; {} receive work {}\n\
             Linux {}, {}",
            first.bind,
            first.replies,
            first.payload,
            first.mean_limit_us / 1000.0,
            first.runs.len(),
            super::load::client(
                first.client,
                first.client_attach,
                first.client_copy,
                first.client_busy_poll
            ),
            first.environment.nic.driver,
            first.environment.nic.receive_work(),
            first.environment.kernel,
            first.environment.cpu,
        );
        if let Some(guest) = &first.environment.guest {
            text += &format!("\nin a virtual machine, {guest}: only the ratios are meaningful");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Contestant;
    use crate::host::Environment;
    use crate::load::LoadClient;
    use crate::net::netlink::AttachMode;
    use crate::xdp::CopyMode;

    fn result(engine: EngineKind, addresses: u64) -> EngineResult {
        EngineResult {
            engine: Contestant::Engine(engine),
            attach: None,
            copy: None,
            addresses,
            bind: Method::NetlinkDown,
            replies: 10,
            payload: 32,
            mean_limit_us: 1000.0,
            sustained_rps: 11111.0,
            replies_pps: 222_222.0,
            mean_us: Some(333.0),
            p99_us: Some(4444.0),
            server_cpu: Some(0.55),
            half_rps: 5555.5,
            half_mean_us: Some(66.0),
            half_p99_us: None,
            half_server_cpu: None,
            ratio_to_socket: Some(7.77),
            runs: vec![11111.0; 3],
            client: LoadClient::Afxdp,
            client_attach: None,
            client_copy: None,
            client_busy_poll: None,
            sustained: Vec::new(),
            half: Vec::new(),
            server: serde_json::from_value(serde_json::json!({
                "engine": null, "interface": "", "driver": "", "port": 0, "replies": 0,
                "addresses": 0, "bind": "none", "generate_seconds": 0, "open_seconds": 0,
                "bind_seconds": 0, "bind_phases": [], "kernel_memory": null, "list_memory": 0,
                "queues": [], "cores": []
            }))
            .unwrap(),
            environment: Environment::default(),
        }
    }

    /// The value under `name` in the first result's row. Right-aligned, so both end in the same
    /// column.
    fn under(table: &str, name: &str) -> String {
        let lines: Vec<Vec<char>> = table.lines().map(|line| line.chars().collect()).collect();
        let header: String = lines[0].iter().collect();
        let end = header.split(name).next().unwrap().chars().count() + name.chars().count();
        let row: String = lines[1][..end].iter().collect();
        row.split(' ').next_back().unwrap().trim().to_owned()
    }

    #[test]
    fn every_figure_stands_under_its_name_and_fits_a_terminal() {
        let mut widest = result(EngineKind::SOCKET_BATCH, 1_000_000);
        (widest.attach, widest.copy) = (Some(AttachMode::Generic), Some(CopyMode::Copy));
        let table = describe(&[widest, result(EngineKind::AFXDP, 1)]);
        for (name, figure) in [
            ("addresses", "1000000"),
            ("requests/s", "11111"),
            ("mean", "333"),
            ("p99", "4444"),
            ("CPU", "55%"),
            ("mean ½", "66"),
            ("ratio", "7.77"),
        ] {
            assert_eq!(under(&table, name), figure, "{name}:\n{table}");
        }
        assert!(table.contains("bound by netlink-down"));
        let mut slow = result(EngineKind::AFXDP, 1);
        (slow.sustained_rps, slow.server_cpu, slow.half_mean_us) = (3.96, None, None);
        let table = describe(&[slow]);
        for (name, figure) in [("requests/s", "3.96"), ("CPU", "–"), ("mean ½", "–")] {
            assert_eq!(under(&table, name), figure, "{name}:\n{table}");
        }
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
    }
}
