//! The command line, one file per subcommand: parses flags, calls the library, prints results. It
//! has no logic of its own.

mod advice;
pub mod bind;
pub mod compare;
pub mod enrol;
pub mod experiment;
pub mod gate;
pub mod guard;
pub mod lab;
pub mod load;
pub mod log;
pub mod manual;
pub mod probe;
pub mod report;
pub mod resolver;
pub mod serve;
pub mod r#where;

use std::fmt::Display;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use comfy_table::{CellAlignment, Table};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::address::mt6d::{Clock, Subnet, Timetable};
use crate::address::{Pool, PoolError, Prefix, Schedule, Targets};
use crate::engine::{self, About, EngineKind};
use crate::events::Event;
use crate::host;
use crate::host::sandbox::{Role, Sandbox};
use crate::live::Method;
use crate::server::guard::Guard;
use crate::server::{Occasion, Server, ServerConfig, Totals};
use advice::with_flags;

/// The help heading of flags for operators. The logging flags are under it in every subcommand.
const OPERATIONS: &str = "Operations";

/// Answer IPv6 requests on millions of addresses from AF_XDP rings, and measure the gain
#[derive(clap::Parser)]
#[command(
    name = "sixhop",
    version,
    about,
    max_term_width = 80,
    after_help = "Example: a whole comparison on this machine, in a lab of its own:
  sudo sixhop compare --addresses 2000

Exit status: 0 success, 1 failure, 2 bad usage. Colours and progress bars appear
only on a terminal, and colours only while NO_COLOR is unset."
)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Subcommand,
    /// Logging.
    #[command(flatten)]
    pub log: log::Args,
}

/// The subcommands.
#[derive(clap::Subcommand)]
#[expect(missing_docs, reason = "each type has its own doc, which --help shows")]
pub enum Subcommand {
    Probe(probe::Args),
    Serve(serve::Args),
    Gate(gate::Args),
    Load(load::Args),
    Bind(bind::Args),
    Enrol(enrol::Args),
    Where(r#where::Args),
    Resolver(resolver::Args),
    Compare(compare::Args),
    Experiment(experiment::Args),
    Report(report::Args),
    Lab(lab::Args),
    Completions(manual::Completions),
    Man(manual::Man),
    #[command(hide = true)]
    Guard(guard::Args),
}

impl Subcommand {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the subcommand; [`Usage`] if flags contradict each other.
    pub fn run(self) -> Result<ExitCode> {
        let done = match self {
            Self::Probe(args) => probe::run(args),
            Self::Serve(args) => serve::run(args),
            Self::Gate(args) => gate::run(args),
            Self::Load(args) => load::run(args),
            Self::Bind(args) => bind::run(args),
            Self::Enrol(args) => enrol::run(args),
            Self::Where(args) => r#where::run(&args),
            Self::Resolver(args) => resolver::run(args),
            Self::Compare(args) => compare::run(args),
            Self::Experiment(args) => experiment::run(args),
            Self::Report(args) => report::run(&args),
            Self::Lab(args) => lab::run(args),
            Self::Completions(args) => manual::completions(&args),
            Self::Man(args) => manual::man(&args),
            Self::Guard(args) => guard::run(&args),
        };
        done.map_err(with_flags)
    }
}

/// The engines of the registry, as values of a flag, each with its own help.
fn engines() -> impl TypedValueParser<Value = EngineKind> {
    let value = |about: &'static About| PossibleValue::new(about.kind.name()).help(about.help);
    PossibleValuesParser::new(engine::all().map(value)).try_map(|name| name.parse::<EngineKind>())
}

/// A fixed set of addresses. Server and client derive the same set from the same flags.
#[derive(Debug, Clone, clap::Args)]
pub struct PoolFlags {
    /// Prefix of the addresses
    #[arg(long)]
    pub prefix: Prefix,
    /// Number of addresses
    #[arg(long)]
    pub addresses: u64,
    /// Which addresses of the prefix: another seed selects others
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl PoolFlags {
    fn pool(&self) -> Result<Pool, PoolError> {
        Pool::new(self.prefix, self.addresses, self.seed)
    }
}

/// Addresses that stay or move. Server and client derive the same ones from the same flags; or from
/// the same secret and the time; or from one client's identity and the time.
#[derive(Debug, Clone, clap::Args)]
pub struct TargetFlags {
    /// Prefix of the addresses
    #[arg(long, required_unless_present = "identity")]
    pub prefix: Option<Prefix>,
    /// Number of addresses, if they stay
    #[arg(long, required_unless_present_any = ["schedule", "identity"],
          conflicts_with = "schedule")]
    pub addresses: Option<u64>,
    /// Which addresses of the prefix, if they stay: another seed selects others
    #[arg(long, default_value_t = 1, conflicts_with = "schedule")]
    pub seed: u64,
    /// Move the addresses, by this schedule
    #[arg(long, value_name = "NAME", requires = "clients", requires = "secret")]
    pub schedule: Option<Schedule>,
    /// Number of clients; each has three live addresses on the server at a time
    #[arg(long, value_name = "N", requires = "schedule",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: Option<u32>,
    /// Length of a step, after which each client has another address: 1s or more
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "schedule",
        value_parser = humantime::parse_duration)]
    pub rotate: Duration,
    /// File with the secret that server and clients share: at least 16 bytes, readable only by its
    /// owner
    #[arg(long, value_name = "FILE", requires = "schedule")]
    pub secret: Option<PathBuf>,
    /// Move the addresses of one client alone: its identity (sixhop enrol), in place of all flags
    /// above
    #[arg(long, value_name = "FILE",
          conflicts_with_all = ["prefix", "addresses", "seed", "schedule"])]
    pub identity: Option<PathBuf>,
}

impl TargetFlags {
    /// The addresses, as seen by a clock that is `ahead` nanoseconds fast.
    fn targets(&self, ahead: i64) -> Result<Targets> {
        let usage = |error: &dyn Display| Usage(error.to_string());
        if let Some(path) = &self.identity {
            return Ok(host::identity::read(path)?.timetable(ahead).into());
        }
        let prefix = self.prefix.ok_or_else(|| Usage("--prefix is missing".into()))?;
        match (self.schedule, self.addresses, self.clients, &self.secret) {
            (None, Some(addresses), ..) => {
                Ok(Pool::new(prefix, addresses, self.seed).map_err(|error| usage(&error))?.into())
            }
            (Some(Schedule::Mt6d), _, Some(clients), Some(secret)) => {
                let subnet = Subnet::new(prefix).map_err(|error| usage(&error))?;
                let clock = Clock::new(self.rotate).map_err(|error| usage(&error))?.ahead(ahead);
                let secret = crate::host::secret::read(secret)?;
                host::has_memory(
                    Timetable::memory_for(clients),
                    format_args!("{clients} clients"),
                )?;
                let threads = thread::available_parallelism().map_or(1, |count| count.get());
                Ok(Targets::Moving(Arc::new(Timetable::new(
                    subnet, clock, &secret, clients, threads,
                ))))
            }
            _ => Err(Usage("--schedule needs --clients and --secret".into()).into()),
        }
    }
}

/// A flag that contradicts others. The exit status is 2, as for a flag that is invalid alone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// A flag that SIGINT and SIGTERM set. Repeated signals do no more: cleaning up always completes.
fn stop_on_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, stop.clone()).context("cannot handle signals")?;
    }
    Ok(stop)
}

/// Sets `stop` when standard input ends.
fn stop_at_end_of_input(stop: Arc<AtomicBool>, sandbox: Sandbox) {
    // Never joined: the thread waits for input as long as the process lives.
    thread::spawn(move || {
        if let Err(error) = sandbox.enter(Role::Input) {
            note(format_args!("{:#}", with_flags(error)));
        }
        let mut rest = [0; 256];
        while io::stdin().read(&mut rest).is_ok_and(|length| length > 0) {}
        stop.store(true, Ordering::Relaxed);
    });
}

/// Starts the server and its guard, with a progress bar while addresses are bound.
fn binding(config: &ServerConfig, stop: &AtomicBool) -> Result<(Server, Guard)> {
    let mut guard = Guard::start(config)?;
    let all = config.targets.count();
    let bar = progress(all, "binding   {bar:20} {human_pos}/{human_len} addresses, {msg}");
    bar.set_message("opening");
    if !bar.is_hidden() {
        bar.enable_steady_tick(Duration::from_millis(100));
    }
    let began = Instant::now();
    let server = Server::start(config, &mut |bound| {
        guard.binding();
        let left = left(config.bind, began.elapsed(), bound as f64 / all as f64);
        bar.set_message(format!("{} left", HumanDuration(left)));
        bar.set_position(bound as u64);
        !stop.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let server = server?;
    server.ready().notes.iter().for_each(note);
    advice::of_ready(server.ready()).iter().for_each(note);
    Ok((server, guard))
}

/// Prints one line for people on standard error, about something they may not expect.
fn note(what: impl Display) {
    tracing::warn!("{what}");
}

/// Time to bind the remaining addresses, given that `share` of them took `elapsed`. The kernel's
/// time per address grows with their number, so the total grows with its square.
fn left(method: Method, elapsed: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(elapsed.as_secs_f64() * (share.powi(-method.power()) - 1.0))
        .unwrap_or(elapsed)
}

/// Runs the server, with a progress bar while addresses are unbound. If it fails, `guard` stays and
/// takes over.
fn running(
    (server, guard): (Server, Guard),
    stop: &AtomicBool,
    tell: impl FnMut(Occasion),
) -> Result<Totals> {
    let all = server.ready().addresses;
    let mut bar = None;
    let totals = server.run(stop, tell, &mut |gone| {
        let words = "unbinding {bar:20} {human_pos}/{human_len} addresses, {eta} left";
        bar.get_or_insert_with(|| progress(all, words)).set_position(gone as u64);
    });
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if totals.is_ok() {
        guard.dismiss();
    }
    Ok(totals.inspect(|totals| totals.notes.iter().for_each(note))?)
}

/// Prints `event` as one line on standard output and flushes it.
fn print_json(event: &Event) -> Result<()> {
    print_line(&event.to_line()?)
}

/// Prints a whole line and flushes it.
fn print_line(line: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// Makes `directory` for results. Called before the measurement, so that it fails early.
fn make(directory: &Path) -> Result<()> {
    let cannot =
        || format!("cannot make {}: choose a writable directory for --out", directory.display());
    fs::create_dir_all(directory).with_context(cannot)?;
    // Try it with a file, since permission bits do not tell everything.
    let probe = directory.join(".sixhop");
    fs::write(&probe, "").and_then(|()| fs::remove_file(&probe)).with_context(|| {
        format!("cannot write into {}: choose a writable directory for --out", directory.display())
    })
}

/// Writes a result atomically: the file gets its name only once complete.
fn write(directory: &Path, name: &str, text: &str) -> Result<()> {
    let (path, half) = (directory.join(name), directory.join(format!(".{name}.half")));
    let written = fs::write(&half, text).and_then(|()| fs::rename(&half, &path));
    written
        .inspect_err(|_| drop(fs::remove_file(&half)))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Aligns the first `names` columns left and the figures right, with minimal padding.
fn align(table: &mut Table, names: usize) {
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        column.set_cell_alignment(if index < names {
            CellAlignment::Left
        } else {
            CellAlignment::Right
        });
    }
}

/// A progress bar on standard error, coloured unless NO_COLOR is set. Hidden without a terminal.
fn progress(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    let template = template.replace("{bar:20}", "{bar:20.cyan/dim}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn flags_are_those_of_one_command_line() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_of_serve_and_load_are_in_groups_in_the_order_of_decisions() {
        let serve = ["Addresses", "Who may ask", "Engine", "AF_XDP", OPERATIONS];
        let load = ["Addresses", "Requests", "Client", OPERATIONS];
        for (name, groups) in [("serve", &serve[..]), ("load", &load[..])] {
            let mut command = Cli::command();
            command.build();
            let command = command.find_subcommand(name).unwrap();
            let mut met = Vec::new();
            for flag in command.get_arguments().filter(|flag| !flag.is_hide_set()) {
                let group = flag.get_help_heading();
                let group =
                    group.unwrap_or_else(|| panic!("{name}: {} is in no group", flag.get_id()));
                // Help shows a group where its first flag is.
                if !met.contains(&group) {
                    met.push(group);
                }
            }
            assert_eq!(met, groups, "{name}");
        }
    }

    #[test]
    fn the_rest_takes_what_the_method_lets_expect() {
        let second = Duration::from_secs(1);
        assert_eq!(left(Method::LiveMap, second, 0.5), second);
        assert_eq!(left(Method::Netlink, second, 0.5), 3 * second);
        assert_eq!(left(Method::Netlink, second, 1.0), Duration::ZERO);
        assert_eq!(left(Method::Netlink, second, 0.0), second); // unknown
    }
}
