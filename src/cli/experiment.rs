//! `sixhop experiment`: measures the paper's figures on this machine.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use indicatif::{HumanDuration, ProgressBar};

use super::bind::seconds;
use super::{Usage, align, make, print_json, progress, stop_on_signal, write};
use crate::address::Prefix;
use crate::events::{
    BindCell, BindOutcome, BindSummary, Carried, Event, Failed, RotationOutcome, ThresholdSummary,
    or_dash, rate,
};
use crate::experiment::{
    self, BindProgress, Profile, ResponseConfig, RotationProfile, ServerHost, Testbed,
};
use crate::live::{Interrupted, Method};
use crate::load::LoadClient;
use crate::report;
use crate::report::chart::svg;
use crate::report::response::{is_at_least, series_name};
use crate::xdp::{AttachRequest, CopyRequest};

/// Measure a figure of the paper
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    figure: ExperimentCommand,
}

#[derive(Debug, clap::Subcommand)]
enum ExperimentCommand {
    Bind(Bind),
    Response(Response),
    Rotation(RotationFlags),
}

/// Figure 1: the cost of computing, binding and unbinding n addresses
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop experiment bind --profile quick --out results

Runs in a lab on this machine, each run on a fresh interface. A run that takes
longer than the profile's budget is stopped, and that method is not tried with
more addresses. DIR gets bind.jsonl (every run, then the summaries), bind.csv
and bind.svg. Run the same command again to continue an interrupted experiment.")]
struct Bind {
    #[command(flatten)]
    common: Common,
    /// Only these of the profile's methods, such as netlink,live-map
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    methods: Vec<Method>,
}

/// Figure 2: the request rate that n addresses sustain within each mean response time
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop experiment response --profile quick --out results
  sudo sixhop report results

Between two machines, started on the client:
  sudo sixhop experiment response --profile paper --out results \\
      --server-via 'ssh root@server' --server-interface eth1 \\
      --interface eth1 --prefix 2001:db8:5::/64

A rate is sustained when the mean time to the first reply is at most the
threshold, at least 90 % of the requests are answered, and the generator sends
at least 99 % of the rate. DIR gets response.jsonl (every run, then the
summaries), response.csv, response-runs.csv and response.svg. Run the same
command again to continue an interrupted experiment.")]
struct Response {
    #[command(flatten)]
    common: Common,
    /// How to send requests
    #[arg(long, default_value = "afxdp")]
    client: LoadClient,
    /// Where the server's XDP program runs: in the driver (native), or in the kernel behind it
    /// (generic)
    #[arg(long, value_name = "MODE", default_value = "auto")]
    attach: AttachRequest,
    /// Whether the kernel copies packets between the server's driver and the rings
    #[arg(long, value_name = "MODE", default_value = "auto")]
    copy: CopyRequest,
    /// The server's queues, such as 0,1 [default: all in use]
    #[arg(long, value_name = "LIST")]
    queues: Option<String>,
    /// The server's processors, such as 0,1 [default: one for each worker]
    #[arg(long, value_name = "LIST")]
    cores: Option<String>,
    /// Words before the server's command that run it on another machine, such as 'ssh root@server'
    /// [default: a lab on this machine]
    #[arg(long, value_name = "WORDS", requires_all = ["server_interface", "interface", "prefix"])]
    server_via: Option<String>,
    /// The sixhop program on the server's machine
    #[arg(long, value_name = "PROGRAM", default_value = "sixhop", requires = "server_via")]
    server_program: OsString,
    /// Interface to answer on, on the server's machine
    #[arg(long, value_name = "IF", requires = "server_via")]
    server_interface: Option<String>,
    /// Interface to send requests from, on this machine
    #[arg(long, value_name = "IF", requires = "server_via")]
    interface: Option<String>,
    /// Prefix of the addresses
    #[arg(long, requires = "server_via")]
    prefix: Option<Prefix>,
}

/// How many clients can have all their addresses move in one step while the server answers
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop experiment rotation --profile quick --out results

Runs in a lab on this machine, each server on fresh interfaces. A number of
clients is carried when every measured step finishes its work by its end and
at most 0.1 % of the requests are lost. The experiment searches the profile's
numbers for the largest. It measures response times while addresses are
exchanged (inside) and while none is (outside). DIR gets rotation.jsonl (every
server, then the summaries), rotation.csv and rotation.svg. Run the same
command again to continue an interrupted experiment.")]
struct RotationFlags {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// What to measure: quick (minutes), paper (hours to days), or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "quick")]
    profile: String,
    /// Directory for the results
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON lines, as in the result file, instead of a table
    #[arg(long)]
    json: bool,
}

impl Common {
    /// The path of a result file. Creates the directory.
    fn file(&self, name: &str) -> Result<Option<PathBuf>> {
        self.out
            .as_deref()
            .map(|directory| make(directory).map(|()| directory.join(name)))
            .transpose()
    }

    /// Adds to an error how to continue after an interruption.
    fn check(&self, events: Result<Vec<Event>>) -> Result<Vec<Event>> {
        events.map_err(|error| match &self.out {
            Some(_) if error.chain().any(|cause| cause.is::<Interrupted>()) => {
                error.context("the results so far are kept: run the same command to continue")
            }
            _ => error,
        })
    }

    /// Prints each result as JSON, with `--json`.
    fn found(&self) -> impl FnMut(&Event) -> Result<()> + Send + use<> {
        let json = self.json;
        move |event| if json { print_json(event) } else { Ok(()) }
    }
}

/// Runs the subcommand.
///
/// # Errors
/// If the lab or the server cannot start, the profile is invalid, or the results cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.figure {
        ExperimentCommand::Bind(bind) => run_bind(&bind)?,
        ExperimentCommand::Response(response) => run_response(&response)?,
        ExperimentCommand::Rotation(rotation) => run_rotation(&rotation)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn usage(error: impl std::fmt::Display) -> Usage {
    Usage(format!("{error:#}"))
}

/// Shows the progress: a bar on a terminal; otherwise a line whenever `step` changes, for logs.
struct Meter {
    bar: ProgressBar,
    step: String,
}

impl Meter {
    fn new() -> Self {
        Self { bar: progress(0, "{bar:20} {wide_msg}"), step: String::new() }
    }

    fn show(&mut self, done: u64, all: u64, step: String, detail: &str, left: &str) {
        self.bar.set_length(all);
        self.bar.set_position(done);
        self.bar.set_message(format!("{left} left: {step}{detail}"));
        if !std::io::stderr().is_terminal() && self.step != step {
            eprintln!("{step}; {left} left");
            self.step = step;
        }
    }
}

fn run_bind(args: &Bind) -> Result<()> {
    let name = &args.common.profile;
    let profile = Profile::load(name).and_then(|profile| profile.bind(name)).map_err(usage)?;
    let measured = profile.cells();
    if let Some(method) =
        args.methods.iter().find(|method| !measured.iter().any(|cell| cell.0 == **method))
    {
        return Err(Usage(format!("profile {name} does not measure {method}")).into());
    }
    let profile = if args.methods.is_empty() { profile } else { profile.only(&args.methods) };
    let file = args.common.file("bind.jsonl")?;
    let stop = stop_on_signal()?;
    let mut meter = Meter::new();
    let show = |BindProgress { method, addresses, run, done, all, at_most }: BindProgress| {
        let left = format!("at most {}", HumanDuration(Duration::from_secs_f64(at_most)));
        let step = format!("{addresses} addresses");
        meter.show(done as u64, all as u64, step, &format!(", {method}, run {run}"), &left);
    };
    let mut found = args.common.found();
    let events = experiment::bind(&profile, file.as_deref(), &stop, show, &mut found);
    meter.bar.finish_and_clear();
    let events = args.common.check(events)?;
    let summaries = report::bind::summarize(&events);
    if let Some(directory) = &args.common.out {
        write(directory, "bind.csv", &report::bind::csv(&summaries)?)?;
        write(directory, "bind.svg", &svg(&report::bind::panels(&summaries), 2)?)?;
    }
    if !args.common.json {
        println!("{}", describe_bind(&summaries, &events));
    }
    Ok(())
}

fn run_response(args: &Response) -> Result<()> {
    let name = &args.common.profile;
    let profile = Profile::load(name).and_then(|profile| profile.response(name)).map_err(usage)?;
    let file = args.common.file("response.jsonl")?;
    let config = ResponseConfig {
        profile,
        testbed: args.testbed()?,
        client: args.client,
        flags: args.flags(),
    };
    let stop = stop_on_signal()?;
    let mut meter = Meter::new();
    let mut show = |progress: experiment::ResponseProgress| {
        let left = format!("about {}", HumanDuration(progress.left));
        let (step, detail) = progress.doing.split_once(": ").unwrap_or((&progress.doing, ""));
        meter.show(progress.done, progress.all, step.to_owned(), &format!(", {detail}"), &left);
    };
    let mut found = args.common.found();
    let events = experiment::response(&config, file.as_deref(), &stop, &mut show, &mut found);
    meter.bar.finish_and_clear();
    let events = args.common.check(events)?;
    let summaries: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Threshold(summary) => Some(summary.clone()),
            _ => None,
        })
        .collect();
    if let Some(directory) = &args.common.out {
        write_response(directory, &summaries, &events)?;
    }
    if !args.common.json {
        println!("{}", describe_response(&summaries, &events));
    }
    Ok(())
}

fn run_rotation(args: &RotationFlags) -> Result<()> {
    let name = &args.common.profile;
    let profile = Profile::load(name).and_then(|profile| profile.rotation(name)).map_err(usage)?;
    let file = args.common.file("rotation.jsonl")?;
    let stop = stop_on_signal()?;
    let mut meter = Meter::new();
    let mut show = |progress: experiment::RotationProgress| {
        let left = format!("{} of {} servers", progress.all - progress.done, progress.all);
        meter.show(progress.done, progress.all, progress.doing, "", &left);
    };
    let mut found = args.common.found();
    let events = experiment::rotation(&profile, file.as_deref(), &stop, &mut show, &mut found);
    meter.bar.finish_and_clear();
    let events = args.common.check(events)?;
    if let Some(directory) = &args.common.out {
        write(directory, "rotation.csv", &report::rotation::csv(&events)?)?;
        let panels = report::rotation::panels(&events);
        if !panels.is_empty() {
            write(directory, "rotation.svg", &svg(&panels, 2)?)?;
        }
    }
    if !args.common.json {
        println!("{}", describe_rotation(&profile, &events));
    }
    Ok(())
}

fn write_response(
    directory: &Path,
    summaries: &[ThresholdSummary],
    events: &[Event],
) -> Result<()> {
    write(directory, "response.csv", &report::response::csv(summaries)?)?;
    write(directory, "response-runs.csv", &report::response::trials_csv(events)?)?;
    if summaries.is_empty() {
        return Ok(());
    }
    write(directory, "response.svg", &svg(&report::response::panels(summaries), 2)?)
}

impl Response {
    fn testbed(&self) -> Result<Testbed> {
        let (Some(via), Some(interface), Some(there), Some(prefix)) =
            (&self.server_via, &self.interface, &self.server_interface, self.prefix)
        else {
            return Ok(Testbed::Lab);
        };
        let via = shlex::split(via).filter(|words| !words.is_empty());
        let via = via
            .context("--server-via has an unclosed quotation mark, or no words")
            .map_err(usage)?;
        let host = ServerHost {
            via: via.into_iter().map(OsString::from).collect(),
            program: self.server_program.clone(),
            interface: there.clone(),
            prefix,
        };
        Ok(Testbed::Elsewhere { host, interface: interface.clone() })
    }

    /// The flags that the server gets unchanged.
    fn flags(&self) -> Vec<OsString> {
        let mut flags = vec![format!("--attach={}", self.attach), format!("--copy={}", self.copy)];
        flags.extend(self.queues.iter().map(|queues| format!("--queues={queues}")));
        flags.extend(self.cores.iter().map(|cores| format!("--cores={cores}")));
        flags.into_iter().map(OsString::from).collect()
    }
}

fn describe_bind(summaries: &[BindSummary], events: &[Event]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["method", "addresses", "generate", "bind", "unbind", "total", "speedup"]);
    for summary in summaries {
        table.add_row([
            summary.method.to_string(),
            summary.addresses.to_string(),
            seconds(summary.generate_ns.median / 1e9),
            seconds(summary.bind_ns.median / 1e9),
            seconds(summary.unbind_ns.median / 1e9),
            seconds(summary.seconds.median),
            summary.faster_than_netlink.map_or("–".to_owned(), |ratio| format!("{ratio:.2} ×")),
        ]);
    }
    align(&mut table, 1);
    let mut text = table.to_string();
    text += "\ngenerate, bind, unbind: mean time per address, median of the runs;\n\
             each run on a fresh veth\n\
             total: all three, for all addresses; speedup: of bind, over netlink";
    let cells = events.iter().filter_map(|event| match event {
        Event::Cell(cell) => Some(cell),
        _ => None,
    });
    for cell in
        cells.filter(|cell| cell.run == 1 || !matches!(cell.outcome, BindOutcome::Skipped { .. }))
    {
        let BindCell { method, addresses, .. } = cell;
        text += &match &cell.outcome {
            BindOutcome::Bound(_) => continue,
            BindOutcome::Stopped { bound, budget } => {
                format!(
                    "\n{method}, {addresses} addresses: stopped after {budget} s, with {bound} \
                     bound"
                )
            }
            BindOutcome::Skipped { .. } => format!("\n{method}, {addresses} addresses: not tried"),
            BindOutcome::Failed { why } => {
                format!("\n{method}, {addresses} addresses: failed: {why}")
            }
        };
    }
    text + &machine(events)
}

fn describe_response(summaries: &[ThresholdSummary], events: &[Event]) -> String {
    let mut thresholds: Vec<f64> = summaries.iter().map(|summary| summary.threshold_ms).collect();
    thresholds.sort_by(f64::total_cmp);
    thresholds.dedup();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let names = ["engine, bound by".to_owned(), "addresses".to_owned()];
    table.set_header(
        names.into_iter().chain(thresholds.iter().map(|threshold| format!("≤ {threshold} ms"))),
    );
    for cell in report::response::cells(events) {
        let figure = |threshold: &f64| {
            let summary = summaries
                .iter()
                .find(|summary| summary.cell == cell && summary.threshold_ms == *threshold);
            let Some(summary) = summary else { return String::new() };
            let at_least = if is_at_least(summary.limit) { "≥ " } else { "" };
            or_dash(summary.rate, |spread| format!("{at_least}{}", rate(spread.median)))
        };
        let names = [series_name(cell), cell.addresses.to_string()];
        table.add_row(names.into_iter().chain(thresholds.iter().map(figure)));
    }
    align(&mut table, 1);
    let mut text = table.to_string();
    text += "\nrequests/s sustained with that mean time to the first reply: median of the runs";
    text += "\n–: not even at the lowest rate; ≥: the generator or the profile set the limit";
    if let Some(summary) = summaries.first() {
        let (runs, trials) =
            (summary.runs.len(), summaries.iter().map(|one| (one.cell, one.trials)));
        let mut trials: Vec<_> = trials.collect();
        trials.dedup();
        let made: usize = trials.iter().map(|(_, trials)| trials).sum();
        let grid = summary.grid_trials * trials.len();
        text += &format!("\n{runs} passes; {made} runs, of {grid} in the full grid");
    }
    for event in events {
        if let Event::Failed(Failed { cell, why }) = event {
            text += &format!("\n{}, {} addresses: {why}", series_name(*cell), cell.addresses);
        }
    }
    text + &machine(events)
}

fn describe_rotation(profile: &RotationProfile, events: &[Event]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "engine, bound by",
        "clients",
        "work",
        "late",
        "lost",
        "in",
        "p99",
        "out",
        "p99",
        "",
    ]);
    for trial in report::rotation::sorted(events) {
        let name = format!("{}, {}", trial.cell.engine, trial.cell.bind);
        let mut row = vec![name, trial.cell.clients.to_string()];
        match report::rotation::figures(trial) {
            Some(of) => {
                row.push(seconds(of.seconds));
                row.push(if of.late_ms > 0.0 {
                    seconds(of.late_ms / 1e3)
                } else {
                    "–".to_owned()
                });
                row.push(of.lost.to_string());
                row.extend(of.times().map(|time| or_dash(time, |time| format!("{time:.0}"))));
            }
            None => row.resize(9, "–".to_owned()),
        }
        row.push(if report::rotation::limit(trial).is_none() { "✓" } else { "✗" }.to_owned());
        table.add_row(row);
    }
    align(&mut table, 1);
    let mut text = table.to_string();
    text += &format!(
        "\n{} requests/s, {} replies each, a step of {} s, three live addresses per client\n\
         work: the busiest step's time, without pauses; late: how long after its end\n\
         in, out: mean and p99 in µs to the first reply while addresses are exchanged, and\n\
         while none is; ✓: carried",
        profile.rate, profile.replies, profile.rotate
    );
    for event in events {
        if let Event::Carried(Carried { engine, bind, clients, cause, .. }) = event {
            let most = clients.map_or("no number of clients was carried".to_owned(), |most| {
                format!("{most} clients are carried")
            });
            text += &format!("\n{engine}, {bind}: {most}; {cause}");
        }
    }
    text + &machine(events)
}

/// The machine and the modes of the measurement.
fn machine(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        if let Event::Experiment(start) = event {
            let environment = &start.environment;
            text += &format!("\nLinux {}, {}", environment.kernel, environment.cpu);
        }
    }
    let mut modes: Vec<String> = Vec::new();
    let readies = events.iter().filter_map(|event| match event {
        Event::Ready(ready) => Some(ready),
        Event::Rotated(trial) => match &trial.outcome {
            RotationOutcome::Measured { ready, .. } => Some(&**ready),
            RotationOutcome::Failed { .. } => None,
        },
        _ => None,
    });
    for ready in readies {
        let (engine, modes_of) =
            (ready.engine.map_or(String::new(), |engine| engine.to_string()), &ready.modes);
        let mode = match (modes_of.attach, modes_of.copy) {
            (Some(attach), Some(copy)) => format!("{engine}: XDP {attach}, {copy} mode"),
            (Some(attach), None) => format!("{engine}: XDP {attach}, no rings"),
            _ => format!("{engine}: no XDP"),
        };
        if !modes.contains(&mode) {
            modes.push(mode);
        }
    }
    for mode in modes {
        text += &format!("\n{mode}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use crate::events::{BindSummary, Cell, Limit, Spread, Sustained};

    #[test]
    fn tables_fit_a_terminal() {
        let spread = |median: f64| Spread { min: median, median, max: median };
        let summary = BindSummary {
            method: Method::NetlinkBatch,
            addresses: 10_000_000,
            runs: 5,
            generate_ns: spread(999.9),
            bind_ns: spread(999_999.9),
            unbind_ns: spread(999_999.9),
            seconds: spread(12_345.67),
            bytes_per_address: None,
            faster_than_netlink: Some(1_296_257.0),
        };
        let text = describe_bind(&[summary], &[]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");

        let cell =
            Cell { engine: EngineKind::SOCKET, bind: Method::NetlinkDown, addresses: 1_000_000 };
        let trial = report::response::tests::trial(cell.engine, cell.addresses, 1, 1_000_000, 10.0);
        let summaries = [1.0, 5.0, 50.0, 100.0].map(|threshold_ms| ThresholdSummary {
            cell,
            threshold_ms,
            runs: vec![Sustained { rate: Some(1_000_000), limit: Limit::Highest }],
            rate: Some(spread(1_000_000.0)),
            limit: Limit::Highest,
            trials: 10,
            grid_trials: 1000,
        });
        let text = describe_response(&summaries, &[trial]);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("≥ 1000000") && text.contains("10 runs, of 1000"), "{text}");

        let events = [report::rotation::tests::trial(1_000_000, 9999.0, 99_999.0, 9_999)];
        let profile = Profile::load("paper").unwrap().rotation.unwrap();
        let text = describe_rotation(&profile, &events);
        let table = text.lines().take_while(|line| !line.contains("requests/s"));
        assert!(table.into_iter().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("9999 ") && text.contains('✗'), "{text}");
    }
}
