//! The `sixhop` program: parses the command line, runs one subcommand, prints its result.

use std::process::ExitCode;

use anstream::eprintln;
use clap::Parser;
use clap::builder::styling::{AnsiColor, Style};
use sixhop::cli::{Cli, Usage};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version are no errors, and are printed as they are.
        Err(error) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            // Its first paragraph, as one line.
            let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
            let problem = lines.collect::<Vec<_>>().join(" ");
            let problem = problem.strip_prefix("error: ").unwrap_or(&problem);
            return fail(problem, "see sixhop --help", 2);
        }
    };
    let json = cli.log.is_json();
    let done = cli.log.start().map_err(anyhow::Error::from).and_then(|()| cli.command.run());
    done.unwrap_or_else(|error| match error.downcast_ref::<Usage>() {
        Some(usage) => fail(&usage.to_string(), "", 2),
        None if json => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
        None => fail(&format!("{error:#}"), "", 1),
    })
}

/// One line on standard error, with a colour where that is a terminal and NO_COLOR is not set:
/// anstream sees to both.
fn fail(problem: &str, hint: &str, status: u8) -> ExitCode {
    const RED: Style = AnsiColor::Red.on_default().bold();
    let hint = if hint.is_empty() { String::new() } else { format!(" ({hint})") };
    eprintln!("{RED}sixhop:{RED:#} {problem}{hint}");
    ExitCode::from(status)
}
