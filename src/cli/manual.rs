//! `sixhop completions` and `sixhop man`, generated from the command line's own definitions.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, make};

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sixhop completions bash | sudo tee /usr/share/bash-completion/completions/sixhop")]
pub struct Completions {
    /// Shell to print completions for
    shell: Shell,
}

/// Print the manual page, or write one for each subcommand
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sixhop man | man -l -
  sudo sixhop man --out /usr/local/share/man/man1")]
pub struct Man {
    /// Directory for sixhop.1 and a page for each subcommand [default: print sixhop.1]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Prints the completions.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &Completions) -> Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sixhop", &mut text);
    print(&text)
}

/// Prints the manual page, or writes all of them.
///
/// # Errors
/// If standard output or the directory cannot be written.
pub fn man(args: &Man) -> Result<ExitCode> {
    match &args.out {
        Some(directory) => {
            make(directory)?;
            clap_mangen::generate_to(Cli::command(), directory)
                .with_context(|| format!("cannot write into {}", directory.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut text)?;
            print(&text)
        }
    }
}

fn print(text: &[u8]) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    out.write_all(text).and_then(|()| out.flush()).context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}
