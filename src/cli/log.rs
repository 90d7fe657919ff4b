//! What a program says besides its results: lines on standard error, by level, for people or as
//! JSON.

use std::fmt;
use std::io;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{OPERATIONS, Usage};

/// How much is said on standard error, and how
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = OPERATIONS)]
pub struct Args {
    /// Least important level that is shown, error to trace, or directives as in
    /// warn,sixhop::host::metrics=debug [default: SIXHOP_LOG, RUST_LOG, or warn]
    #[arg(long, value_name = "LEVEL", global = true)]
    log: Option<String>,
    /// How lines look
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    log_format: Format,
}

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object a line, with its time
    Json,
}

impl Args {
    /// Whether lines are JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.log_format == Format::Json
    }

    /// Has it be so from now on.
    ///
    /// # Errors
    /// When the level is none.
    pub fn start(&self) -> Result<(), Usage> {
        let (flag, level) = match &self.log {
            Some(level) => ("--log", level.clone()),
            None => ["SIXHOP_LOG", "RUST_LOG"]
                .into_iter()
                .find_map(|name| {
                    Some((name, std::env::var(name).ok().filter(|level| !level.is_empty())?))
                })
                .unwrap_or(("--log", "warn".to_owned())),
        };
        let filter = EnvFilter::try_new(&level).map_err(|_| {
            Usage(format!("{flag} is '{level}', and should be error, warn, info, debug or trace"))
        })?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        // Nobody may listen any more: a guard lives longer than its server.
        let logs = logs.log_internal_errors(false);
        // Somebody has set one already: a test.
        let _ = match self.log_format {
            Format::Text => logs.with_ansi(false).event_format(Lines).try_init(),
            Format::Json => logs.json().flatten_event(true).try_init(),
        };
        Ok(())
    }
}

/// As this program has always spoken: its name and a sentence. What is neither warning nor error
/// says what it is.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match *event.metadata().level() {
            Level::ERROR | Level::WARN => write!(writer, "sixhop: ")?,
            level => write!(writer, "sixhop: {}: ", level.as_str().to_ascii_lowercase())?,
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
