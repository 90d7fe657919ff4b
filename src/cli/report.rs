//! `sixhop report`: one page with all results of a directory.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use super::write;
use crate::events::Event;
use crate::report::page::{Data, page};
use crate::report::{bind, response, rotation};

/// Make a page of results: figures, tables, and doubts
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop experiment response --out results
  sudo sixhop experiment bind --out results
  sudo sixhop report results

Reads whichever of bind.jsonl, response.jsonl, rotation.jsonl and compare.jsonl
exist in DIR. Writes report.html, which needs no network, each chart as an SVG
file, and the tables as CSV.")]
pub struct Args {
    /// Directory with the results
    dir: PathBuf,
}

/// Runs the subcommand.
///
/// # Errors
/// If there are no results, a line cannot be parsed, or the page cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let directory = &args.dir;
    let data = Data {
        bind: read(&directory.join("bind.jsonl"))?,
        response: read(&directory.join("response.jsonl"))?,
        rotation: read(&directory.join("rotation.jsonl"))?,
        compare: read(&directory.join("compare.jsonl"))?,
    };
    if [&data.bind, &data.response, &data.rotation, &data.compare]
        .iter()
        .all(|events| events.is_empty())
    {
        bail!(
            "{} has no results: make some with 'sixhop experiment response --out {0}'",
            directory.display()
        );
    }
    let page = page(&data)?;
    if !data.bind.is_empty() {
        write(directory, "bind.csv", &bind::csv(&bind::summarize(&data.bind))?)?;
    }
    if !data.response.is_empty() {
        write(directory, "response-runs.csv", &response::trials_csv(&data.response)?)?;
    }
    if !data.rotation.is_empty() {
        write(directory, "rotation.csv", &rotation::csv(&data.rotation)?)?;
    }
    for (name, picture) in &page.charts {
        write(directory, name, picture)?;
    }
    write(directory, "report.html", &page.html)?;
    println!("{}", directory.join("report.html").display());
    Ok(ExitCode::SUCCESS)
}

/// The events of a file; none if it does not exist.
fn read(path: &Path) -> Result<Vec<Event>> {
    let name = path.display();
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.with_context(|| format!("cannot read {name}"))?,
    };
    // A killed run may have left half a line.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines = whole.lines().enumerate();
    lines
        .map(|(number, line)| {
            Event::parse(line).with_context(|| format!("{name}, line {}", number + 1))
        })
        .collect()
}
