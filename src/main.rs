//! The `sixhop` program: parses the command line, runs one subcommand, prints its result.

use std::process::ExitCode;

use clap::Parser;
use sixhop::cli::{Usage, bind, compare, experiment, lab, load, serve};

/// Answers IPv6 requests on very many addresses from AF_XDP rings, and measures what that is worth
#[derive(Parser)]
#[command(
    version,
    about,
    after_help = "Example: a whole comparison on this machine, in a lab of its own:
  sudo sixhop compare --addresses 2000

Exit status: 0 success, 1 failure, 2 bad usage."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Serve(serve::Args),
    Load(load::Args),
    Bind(bind::Args),
    Compare(compare::Args),
    Experiment(experiment::Args),
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no errors, and are printed as they are.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            let problem = text.lines().next().unwrap_or_default();
            let problem = problem.strip_prefix("error: ").unwrap_or(problem);
            return fail(problem, "see sixhop --help", 2);
        }
    };
    let result = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Load(args) => load::run(args),
        Command::Bind(args) => bind::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Experiment(args) => experiment::run(args),
        Command::Lab(args) => lab::run(args),
    };
    result.unwrap_or_else(|error| match error.downcast_ref::<Usage>() {
        Some(usage) => fail(&usage.to_string(), "", 2),
        None => fail(&format!("{error:#}"), "", 1),
    })
}

/// One line on standard error.
fn fail(problem: &str, hint: &str, status: u8) -> ExitCode {
    let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
    eprintln!("sixhop: {problem}{hint}");
    ExitCode::from(status)
}
