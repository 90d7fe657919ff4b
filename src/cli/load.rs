//! `sixhop load`: sends requests at a steady rate and reports the replies.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ArgAction;
use comfy_table::{Table, presets};

use super::{OPERATIONS, TargetFlags, align, note, print_json, progress, stop_on_signal};
use crate::address::Targets;
use crate::events::{Event, LoadResult, Percentiles, or_dash, rate};
use crate::load::{
    Generator, Heard, LoadClient, LoadConfig, Outcome, Run, UNFINISHED, cause, nothing_came,
};
use crate::net::netlink::AttachMode;
use crate::wire::{MAX_PAYLOAD, MIN_PAYLOAD};
use crate::xdp::{BusyPoll, CopyMode};

/// Send requests at a steady rate and measure the replies
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:
  sudo sixhop lab exec client -- sixhop load --interface client0 \\
      --prefix 2001:db8:1::/64 --addresses 1000 --rate 20000 --requests 200000

Times count from when a request was due, not from when it was sent. If the
generator falls behind, 'achieved' is lower than 'offered'; 'late' counts
requests sent more than 1 ms after they were due. The socket client uses the
kernel's receive timestamps. Unless the prefix is routed, it needs a neighbour
entry for each address (net.ipv6.neigh.default.gc_thresh3).

Lost requests are a result, not an error. If no request was answered, the exit
status is 1 and standard error says what to check. Times without a measurement
are '–', and null in JSON.

If the addresses move, each request goes to its client's address at the time
when it is due. The server tolerates a clock that is off by one step; if it is
off by more, 'clock_steps' says by how many:
  sudo sixhop lab exec client -- sixhop load --interface client0 \\
      --prefix 2001:db8:1::/64 --schedule mt6d --clients 1000000 --rotate 10s \\
      --secret secret --rate 20000 --requests 200000

With the identity of one client, all requests go to that client's address.
Other requests would need the secret, which is the server's:
  sudo sixhop lab exec client -- sixhop load --interface client0 \\
      --identity clients/client-000042.toml --rate 1000 --requests 10000"
)]
pub struct Args {
    #[command(flatten)]
    addresses: LoadAddresses,
    #[command(flatten)]
    requests: Requests,
    #[command(flatten)]
    client: How,
    #[command(flatten)]
    operations: LoadOperations,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Addresses")]
struct LoadAddresses {
    /// Interface to send requests from
    #[arg(long, value_name = "IF")]
    interface: String,
    #[command(flatten)]
    which: TargetFlags,
    /// Send as if this machine's clock were this many seconds ahead, such as 0.5, or behind, such
    /// as -5
    #[arg(long, value_name = "SECONDS", default_value = "0", allow_negative_numbers = true,
          value_parser = offset)]
    clock_offset: i64,
    /// UDP port of the service
    #[arg(long, default_value_t = 3540, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Requests")]
struct Requests {
    /// Requests per second
    #[arg(long, value_parser = rate_flag)]
    rate: f64,
    /// Number of requests
    #[arg(long = "requests", value_name = "REQUESTS",
        value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    count: u64,
    /// Bytes of payload in a request
    #[arg(long, value_name = "BYTES", default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(MIN_PAYLOAD as u64..=MAX_PAYLOAD as u64))]
    payload: u64,
    /// Replies to expect to each request
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(1..))]
    replies: u8,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Client")]
struct How {
    /// How to send requests
    #[arg(long = "client", value_name = "CLIENT", default_value = "afxdp")]
    kind: LoadClient,
    /// Busy-poll for this long, so that the client does its interface's receive work itself. On a
    /// veth pair it otherwise falls to the sender: the server does it for the replies
    #[arg(long, value_name = "USECS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    busy_poll: Option<u32>,
    /// Have the kernel take packets from the interface in batches, this far apart (software
    /// interrupt coalescing; restored afterwards)
    #[arg(long, value_name = "USECS", value_parser = super::serve::coalesce())]
    coalesce: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = OPERATIONS)]
struct LoadOperations {
    /// Print one JSON line
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(short, long, action = ArgAction::Help)]
    help: Option<bool>,
}

/// Parses a rate in requests per second.
pub(super) fn rate_flag(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.001..=1e9).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number of requests per second, 0.001 to 1000000000".into()),
    }
}

/// Parses an offset in seconds, and returns nanoseconds.
fn offset(text: &str) -> Result<i64, String> {
    const YEAR: f64 = 366.0 * 86_400.0;
    match text.parse() {
        Ok(seconds) if (-YEAR..=YEAR).contains(&seconds) => Ok((seconds * 1e9) as i64),
        _ => Err("an offset is a number of seconds, at most a year".into()),
    }
}

/// Runs the subcommand.
///
/// # Errors
/// If the server cannot be found, the generator cannot run, or no request was answered. Lost
/// requests are a result, not an error.
pub fn run(args: Args) -> Result<ExitCode> {
    let stop = stop_on_signal()?;
    let targets = args.addresses.which.targets(args.addresses.clock_offset)?;
    let period = match &targets {
        Targets::Moving(timetable) => Some(timetable.clock().period()),
        Targets::Pool(_) => None,
    };
    let mut generator = Generator::open(LoadConfig {
        client: args.client.kind,
        interface: args.addresses.interface,
        targets,
        port: args.addresses.port,
        replies: args.requests.replies,
        payload: args.requests.payload as usize,
        busy_poll: args.client.busy_poll,
        coalesce: args.client.coalesce,
    })?;
    let bar = progress(
        args.requests.count,
        "sending {bar:40} {human_pos}/{human_len} requests, {eta} left",
    );
    let run = Run { rate: args.requests.rate, requests: args.requests.count };
    let before = Heard::now();
    let mut result = generator.run(run, &stop, |sent| bar.set_position(sent))?;
    let heard = Heard::now().since(before);
    let here = generator.environment();
    let cause = cause(&result, &here, heard, args.addresses.port);
    result.environment = Some(Box::new(here));
    bar.finish_and_clear();
    let (clock_steps, sent) = (result.clock_steps, result.sent);
    let (answered, unfinished) = (result.outcome.answered, result.outcome.unfinished);
    if result.unsent > 0 {
        note(format_args!(
            "{} of {sent} requests have not left: the kernel has not taken them from the tx ring \
             of queue 0",
            result.unsent
        ));
    }
    if args.operations.json {
        print_json(&Event::Result(result))?;
    } else {
        println!("{}", describe(&result));
    }
    let uneven = clock_steps.zip(period).map(|(steps, period)| uneven(steps, period));
    if answered == 0 && sent > 0 {
        let why = uneven.or(cause).unwrap_or_else(|| match period {
            Some(_) => no_step_answers(args.addresses.which.identity.is_some()).to_owned(),
            None => nothing_came(args.addresses.port),
        });
        bail!("none of {sent} requests was answered: {why}");
    }
    uneven.into_iter().for_each(note);
    if unfinished > 0 {
        note(format!("{unfinished} {UNFINISHED}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The likely causes when the addresses of no step answer.
fn no_step_answers(has_identity: bool) -> &'static str {
    if has_identity {
        "no address of another step answers either: the server may be down, or may serve fewer \
         clients, or its secret, step or prefix may differ from the identity's"
    } else {
        "no address of another step answers either: the server may be down, or its --secret, \
         --rotate or --prefix may differ"
    }
}

/// The message about a clock that is `steps` ahead.
fn uneven(steps: i64, step: Duration) -> String {
    let count = steps.unsigned_abs();
    format!(
        "this clock is {count} step{} ({:?}) {} the server's: set it (the server tolerates one \
         step)",
        if count == 1 { "" } else { "s" },
        step * u32::try_from(count).unwrap_or(u32::MAX),
        if steps > 0 { "ahead of" } else { "behind" },
    )
}

/// Describes a client and its modes.
pub(super) fn client(
    client: LoadClient,
    attach: Option<AttachMode>,
    copy: Option<CopyMode>,
    busy_poll: Option<BusyPoll>,
) -> String {
    let polling = busy_poll
        .map_or(String::new(), |poll| format!(", busy polling for {} µs", poll.microseconds));
    match (attach, copy) {
        (Some(attach), Some(copy)) => format!("{client}, XDP {attach}, {copy} mode{polling}"),
        _ => client.to_string(),
    }
}

fn describe(result: &LoadResult) -> String {
    let mut text = format!(
        "sent {} requests: {} answered, {} complete\n\
         {} replies: {} duplicates, {} from a wrong source, {}\n\
         offered {}/s, achieved {}/s, {} late\n\
         client: {}\n",
        result.sent,
        result.outcome.answered,
        result.outcome.complete,
        result.outcome.replies,
        result.outcome.duplicates,
        result.outcome.wrong_source,
        corrupt(&result.outcome),
        rate(result.offered_rate),
        rate(result.achieved_rate),
        result.late,
        client(result.client, result.attach, result.copy, result.busy_poll),
    );
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["µs to the", "mean", "p50", "p90", "p99", "p99.9", "max"]);
    for (name, times) in
        [("first reply", &result.outcome.first), ("last reply", &result.outcome.last)]
    {
        let figures: [fn(&Percentiles) -> f64; 6] = [
            |times| times.mean_us,
            |times| times.p50_us,
            |times| times.p90_us,
            |times| times.p99_us,
            |times| times.p999_us,
            |times| times.max_us,
        ];
        let figures = figures.map(|figure| or_dash(times.as_ref().map(figure), microseconds));
        table.add_row(std::iter::once(name.to_owned()).chain(figures));
    }
    align(&mut table, 1);
    text += &table.to_string();
    text
}

/// The count of corrupt replies, and of those with unfinished checksums.
fn corrupt(outcome: &Outcome) -> String {
    match outcome.unfinished {
        0 => format!("{} corrupt", outcome.corrupt),
        unfinished => {
            format!("{} corrupt, {unfinished} of them with unfinished checksums", outcome.corrupt)
        }
    }
}

/// A time in microseconds, with a decimal only below 100 ms.
fn microseconds(time: f64) -> String {
    if time < 100_000.0 { format!("{time:.1}") } else { format!("{time:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_a_terminal() {
        let slow = 9_999_999.0;
        let times = Some(Percentiles {
            mean_us: 12_345.6,
            p50_us: slow,
            p90_us: slow,
            p99_us: slow,
            p999_us: slow,
            max_us: slow,
            histogram: String::new(),
        });
        let result = LoadResult {
            client: LoadClient::Afxdp,
            sent: 1_000_000_000,
            unsent: 0,
            outcome: Outcome { first: times.clone(), last: times, ..Outcome::default() },
            late: 1_000_000_000,
            clock_steps: None,
            offered_rate: 1_000_000.0,
            achieved_rate: 1_000_000.0,
            attach: Some(AttachMode::Native),
            copy: Some(CopyMode::Copy),
            rings: None,
            busy_poll: None,
            environment: None,
        };
        let text = describe(&result);
        assert!(text.lines().skip(2).all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("12345.6") && text.contains("9999999"), "{text}");

        let slow = LoadResult {
            offered_rate: 0.5,
            achieved_rate: 0.025,
            outcome: Outcome::default(),
            ..result
        };
        let text = describe(&slow);
        assert!(text.contains("offered 0.5/s, achieved 0.025/s"), "{text}");
        let row = text.lines().find(|line| line.starts_with("first reply")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>().join(" "), "first reply – – – – – –");
    }
}
