//! `sixhop serve`: answers requests until it is told to stop.

use std::process::ExitCode;

use anyhow::Result;

use super::{Addresses, Usage, binding, note, print_json, running, stop_at_end_of_input, stop_on_signal};
use crate::bind::Method;
use crate::engine::{EngineKind, RingRequest, ServerConfig, TPacket};
use crate::report::{Event, Ready, Stats};
use crate::xdp::{AttachRequest, CopyRequest, HugepageRequest};

/// Answer requests on many addresses
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  sudo sixhop lab up
  sudo sixhop lab exec server -- sixhop serve --interface server0 \\
      --prefix 2001:db8:1::/64 --addresses 1000

Every address answers requests to the UDP port and, through the kernel,
neighbour discovery and ping. With --bind live-map they are no addresses of
the kernel: they answer requests and neighbour discovery and nothing else,
and it costs the same to bind one whatever their number. With --bind anyip
neighbours need a route to the prefix. SIGINT or SIGTERM stops the server,
and takes the addresses back.")]
pub struct Args {
    /// Interface to answer on
    #[arg(long, value_name = "IF")]
    interface: String,
    #[command(flatten)]
    addresses: Addresses,
    /// How the addresses are made live
    #[arg(long, value_name = "METHOD", default_value = "netlink")]
    bind: Method,
    /// How requests are answered
    #[arg(long, default_value = "afxdp")]
    engine: EngineKind,
    /// Processors to pin the workers to, as in 0,1 [default: one for each worker, near the interrupt of its queue]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Layout of the rings of packet-ring
    #[arg(long, value_name = "VERSION", default_value = "v2")]
    tpacket: TPacket,
    /// UDP port of the service
    #[arg(long, default_value_t = 3540, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Replies to each request
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=255))]
    replies: u16,
    /// Stop when standard input closes, so that the server ends with the program that started it
    #[arg(long)]
    stop_on_eof: bool,
    /// Print JSON lines: ready, stats once a second, stopped
    #[arg(long)]
    json: bool,
    // The last: those behind it would be under its heading.
    #[command(flatten)]
    rings: Rings,
}

/// The ways out of a card. What is left to auto takes the best that can be had, and says what it did not get
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "AF_XDP")]
struct Rings {
    /// Where the XDP program runs: in the driver (native), or in the kernel's generic hook
    #[arg(long, value_name = "MODE", default_value = "auto")]
    attach: AttachRequest,
    /// Whether packets are copied between the driver's buffers and the rings
    #[arg(long, value_name = "MODE", default_value = "auto")]
    copy: CopyRequest,
    /// Queues to serve, as in 0,1 [default: all in use]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    queues: Vec<u32>,
    /// Workers poll the card themselves, and sleep when nothing has come for so many microseconds
    #[arg(long, value_name = "USECS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    busy_poll: Option<u32>,
    /// Bytes in a frame, 2048 or 4096 [default: what a packet fits into]
    #[arg(long, value_name = "BYTES", value_parser = frame_size)]
    frame_size: Option<u32>,
    /// Whether the frames lie on huge pages
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    hugepages: HugepageRequest,
}

/// The sizes that the kernel takes: a power of two, from 2 KiB to a page.
fn frame_size(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(size @ (2048 | 4096)) => Ok(size),
        _ => Err("2048 or 4096".to_owned()),
    }
}

/// Runs the subcommand.
///
/// # Errors
/// When the server cannot start, cannot go on, or leaves something behind.
pub fn run(args: Args) -> Result<ExitCode> {
    let config = ServerConfig {
        interface: args.interface,
        pool: args.addresses.pool().map_err(|error| Usage(error.to_string()))?,
        bind: args.bind,
        engine: Some(args.engine),
        attach: args.rings.attach,
        copy: args.rings.copy,
        queues: args.rings.queues,
        rings: RingRequest {
            frame_size: args.rings.frame_size,
            hugepages: args.rings.hugepages,
            busy_poll: args.rings.busy_poll,
        },
        cores: args.cores,
        tpacket: args.tpacket,
        port: args.port,
        replies: args.replies,
    };
    let stop = stop_on_signal()?;
    if args.stop_on_eof {
        stop_at_end_of_input(stop.clone());
    }
    let (server, guard) = binding(&config, &stop)?;
    server.ready().modes.fallbacks.iter().for_each(note);
    let json = args.json;
    if json {
        print_json(&Event::Ready(server.ready().clone()))?;
    } else {
        println!("{}", describe(server.ready()));
    }
    let mut previous = Stats::default();
    let totals = running((server, guard), &stop, |stats| {
        if json {
            // A reader that has gone away will not be told why.
            let _ = print_json(&Event::Stats(stats.clone()));
        } else {
            println!("{}", line(stats, &previous));
        }
        previous = stats.clone();
    })?;
    if json {
        print_json(&Event::Stopped(totals.stats))?;
    } else {
        println!("stopped: {}", summary(&totals.stats));
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(ready: &Ready) -> String {
    let mut text = format!(
        "ready: {} answers on {} addresses of {} ({}), UDP port {}, {} replies each; bound by {} in {:.2} s",
        ready.engine.map_or("nobody".to_owned(), |engine| engine.to_string()),
        ready.addresses,
        ready.interface,
        if ready.driver.is_empty() { "no driver name" } else { &ready.driver },
        ready.port,
        ready.replies,
        ready.bind,
        ready.bind_seconds,
    );
    if let Some(attach) = ready.modes.attach {
        text += &format!("; XDP {attach}");
        if let Some(copy) = ready.modes.copy {
            let hugepages = if ready.modes.hugepages == Some(true) { "huge pages" } else { "no huge pages" };
            text += &format!(", {copy} mode, {hugepages}");
        }
        text += &format!(", queues {:?}", ready.modes.queues);
    }
    if let Some(poll) = ready.modes.busy_poll {
        let preferred = if poll.preferred { "preferred " } else { "" };
        text += &format!(
            ", {preferred}busy polling for {} us, {} packets a call",
            poll.microseconds, poll.budget
        );
    }
    if let Some(depth) = ready.modes.queue_depth {
        text += &format!("; message queue of {depth}");
    }
    if let Some(version) = ready.modes.tpacket {
        text += &format!("; {version}");
    }
    match ready.modes.segmentation {
        Some(true) => text += "; the kernel cuts the replies out of one frame",
        Some(false) => text += "; a frame for each reply",
        None => {}
    }
    text + &format!(", cores {:?}", ready.modes.cores)
}

fn line(stats: &Stats, previous: &Stats) -> String {
    let seconds = (stats.seconds - previous.seconds).max(f64::EPSILON);
    let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
    let (now, before) = (&stats.counters, &previous.counters);
    format!(
        "{:7.0} s  {:10.0} requests/s  {:10.0} replies/s  {}",
        stats.seconds,
        rate(now.answered, before.answered),
        rate(now.replies, before.replies),
        summary(stats),
    )
}

/// What has occurred, and only that.
fn summary(stats: &Stats) -> String {
    let counters = &stats.counters;
    let mut parts = vec![format!("answered {}", counters.answered)];
    let named = counters.refused.iter().map(|(name, count)| (format!("refused {name}"), *count));
    let steering = counters.steering.iter().map(|(name, count)| (name.clone(), *count));
    let others = [
        ("advertised".to_owned(), counters.advertised),
        ("unsent".to_owned(), counters.unsent),
        ("frames lost".to_owned(), counters.frames_lost),
        ("descriptors that make no sense".to_owned(), counters.invalid),
        ("dropped by the socket".to_owned(), counters.socket_dropped.unwrap_or(0)),
        ("rx ring full".to_owned(), counters.xdp.map_or(0, |xdp| xdp.rx_ring_full)),
        ("rx dropped".to_owned(), counters.xdp.map_or(0, |xdp| xdp.rx_dropped)),
        ("fill ring empty".to_owned(), counters.xdp.map_or(0, |xdp| xdp.fill_ring_empty)),
        (
            "descriptors that the kernel refused".to_owned(),
            counters.xdp.map_or(0, |xdp| xdp.rx_invalid + xdp.tx_invalid),
        ),
    ];
    let occurred = named.chain(steering).chain(others).filter(|(_, count)| *count > 0);
    parts.extend(occurred.map(|(name, count)| format!("{name} {count}")));
    parts.join(", ")
}
