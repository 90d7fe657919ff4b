//! Log lines on standard error, by level, as text or JSON.

use std::fmt;
use std::io;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::{OPERATIONS, Usage};

/// How much to log on standard error, and how
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = OPERATIONS)]
pub struct Args {
    /// Least important level to show, error to trace, or directives such as
    /// warn,sixhop::host::metrics=debug [default: SIXHOP_LOG, RUST_LOG, or warn]
    #[arg(long, value_name = "LEVEL", global = true)]
    log: Option<String>,
    /// Format of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    log_format: Format,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Text for people
    Text,
    /// One JSON object per line, with a timestamp
    Json,
}

impl Args {
    /// Whether log lines are JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.log_format == Format::Json
    }

    /// Starts logging.
    ///
    /// # Errors
    /// If the level is invalid.
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
            Usage(format!("{flag} is '{level}': use error, warn, info, debug or trace"))
        })?;
        let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
        // Standard error may be closed: a guard outlives its server.
        let logs = logs.log_internal_errors(false);
        // Fails if a test has already installed a subscriber.
        let _ = match self.log_format {
            Format::Text => logs.with_ansi(false).event_format(Lines).try_init(),
            Format::Json => logs.json().flatten_event(true).try_init(),
        };
        Ok(())
    }
}

/// The text format: the program's name and a sentence, with the level unless it is warning or
/// error.
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
