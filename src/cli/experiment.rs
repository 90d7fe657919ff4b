//! `sixhop experiment`: the paper's figures, measured here.

use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};
use indicatif::HumanDuration;

use super::bind::seconds;
use super::{Usage, print_json, progress, stop_on_signal};
use crate::bind::Method;
use crate::experiment::{self, BindProgress, Profile};
use crate::report::bind::{chart, csv, summarize};
use crate::report::{BindCell, BindOutcome, BindSummary, Event};

/// Measure a figure of the paper, in a lab on this machine
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    figure: Figure,
}

#[derive(Debug, clap::Subcommand)]
enum Figure {
    Bind(Bind),
}

/// Figure 1: what it takes to compute, bind and unbind n addresses
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop experiment bind --profile quick --out results

Each run has a fresh interface. A run that takes longer than the profile's
budget is stopped, and larger numbers are not tried by that method. DIR gets
bind.jsonl (every run, then the summaries), bind.csv and bind.svg.")]
struct Bind {
    /// What to measure: quick (under a minute), paper (hours), or a TOML file
    #[arg(long, value_name = "NAME|FILE", default_value = "quick")]
    profile: String,
    /// Only these of the profile's methods, as in netlink,live-map
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    methods: Vec<Method>,
    /// Directory for the results
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print a JSON line for each run, and the summaries, instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// When the lab cannot be had, the profile makes no sense, or the results cannot be written.
pub fn run(args: Args) -> Result<ExitCode> {
    let Figure::Bind(bind) = args.figure;
    run_bind(&bind)
}

fn run_bind(args: &Bind) -> Result<ExitCode> {
    let profile = Profile::load(&args.profile).map_err(|error| Usage(format!("{error:#}")))?.bind;
    if let Some(method) =
        args.methods.iter().find(|method| !profile.cells().iter().any(|cell| cell.0 == **method))
    {
        return Err(Usage(format!("profile {} does not measure {method}", args.profile)).into());
    }
    let mut file = args.out.as_deref().map(Results::open).transpose()?;
    let stop = stop_on_signal()?;
    let bar = progress(0, "{bar:20} {elapsed} {msg}");
    let mut announced = String::new();
    let mut cells = Vec::new();
    let show = |BindProgress { method, addresses, run, done, all, at_most }: BindProgress| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
        let left = HumanDuration(std::time::Duration::from_secs_f64(at_most));
        bar.set_message(format!("{method}, {addresses} addresses, run {run}; at most {left} left"));
        // Without a terminal one line for each number of addresses, so that a log shows where it is.
        let line = format!("{addresses} addresses; at most {left} left");
        if !std::io::stderr().is_terminal() && !announced.starts_with(&format!("{addresses} ")) {
            eprintln!("{line}");
            announced = line;
        }
    };
    let measured = experiment::bind(&profile, &args.methods, &stop, show, |cell| {
        let event = Event::Cell(cell.clone());
        cells.push(cell.clone());
        if args.json {
            print_json(&event)?;
        }
        file.as_mut().map_or(Ok(()), |file| file.append(&event))
    });
    bar.finish_and_clear();
    let summaries = summarize(&cells);
    // What there is is kept, also when it was interrupted.
    if let Some(file) = file {
        file.finish(&summaries)?;
    }
    measured?;
    if args.json {
        summaries.into_iter().try_for_each(|summary| print_json(&Event::Summary(summary)))?;
    } else {
        println!("{}", describe(&summaries, &cells));
    }
    Ok(ExitCode::SUCCESS)
}

/// The directory of the results, and the file that grows with each run.
struct Results<'a> {
    directory: &'a Path,
    lines: BufWriter<File>,
}

impl<'a> Results<'a> {
    fn open(directory: &'a Path) -> Result<Self> {
        // Now rather than after an hour of measuring.
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join("bind.jsonl");
        let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { directory, lines: BufWriter::new(file) })
    }

    fn append(&mut self, event: &Event) -> Result<()> {
        let line = serde_json::to_string(event)? + "\n";
        let written = self.lines.write_all(line.as_bytes()).and_then(|()| self.lines.flush());
        written.with_context(|| format!("cannot write {}", self.directory.join("bind.jsonl").display()))
    }

    fn finish(mut self, summaries: &[BindSummary]) -> Result<()> {
        for summary in summaries {
            self.append(&Event::Summary(summary.clone()))?;
        }
        let mut files = vec![("bind.csv", csv(summaries)?)];
        if !summaries.is_empty() {
            files.push(("bind.svg", chart(summaries)?));
        }
        for (name, text) in files {
            let path = self.directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn describe(summaries: &[BindSummary], cells: &[BindCell]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["method", "addresses", "generate", "bind", "unbind", "all three", "to netlink"]);
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
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.to_string();
    text += "\ngenerate, bind, unbind: mean time for each address, median of the runs; each run on a fresh veth\n\
             to netlink: how many times as fast it binds as netlink does";
    for cell in
        cells.iter().filter(|cell| cell.run == 1 || !matches!(cell.outcome, BindOutcome::Skipped { .. }))
    {
        let BindCell { method, addresses, .. } = cell;
        text += &match &cell.outcome {
            BindOutcome::Bound(_) => continue,
            BindOutcome::Stopped { bound, budget } => {
                format!("\n{method}, {addresses} addresses: stopped after {budget} s, with {bound} bound")
            }
            BindOutcome::Skipped { .. } => format!("\n{method}, {addresses} addresses: not tried"),
            BindOutcome::Failed { why } => format!("\n{method}, {addresses} addresses: failed: {why}"),
        };
    }
    if let Some(result) = cells.iter().find_map(|cell| match &cell.outcome {
        BindOutcome::Bound(result) => Some(result),
        _ => None,
    }) {
        text += &format!("\nLinux {}, {}", result.kernel, result.cpu);
    }
    text
}
