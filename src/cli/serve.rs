//! `sixhop serve`: answers requests until it is told to stop.

use std::net::SocketAddr;
use std::panic;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::ArgAction;
use clap::builder::RangedI64ValueParser;
use sd_notify::NotifyState;

use super::{
    OPERATIONS, TargetFlags, advice, binding, note, print_json, running, stop_at_end_of_input,
    stop_on_signal,
};
use crate::address::{Prefix, Sources};
use crate::engine::{self, EngineKind};
use crate::events::{Event, Notice, Ready, Stats, or_dash, rate};
use crate::host::metrics::{self, Board, Listener};
use crate::host::sandbox::Sandbox;
use crate::live::{Method, Rotated};
use crate::server::{Occasion, ServerConfig};

/// Answer requests on many addresses
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Example:
  sudo sixhop lab up
  sudo sixhop lab exec server -- sixhop serve --interface server0 \\
      --prefix 2001:db8:1::/64 --addresses 1000

Every address answers requests to the UDP port and, through the kernel,
neighbour discovery and ping. With --bind live-map they are no addresses of
the kernel: they answer requests and neighbour discovery and nothing else,
and it costs the same to bind one whatever their number. With --bind anyip
neighbours need a route to the prefix. Once it is ready, its threads have
only the capabilities and system calls that they need, unless --no-sandbox
is given. SIGINT or SIGTERM stops the server,
and takes the addresses back.

Only those who may ask are answered: by default whoever is on the link of
the interface. Others are dropped by the XDP program, where the engine has
one, before they cost anything, and counted.

Addresses that move, by MT6D: each of a million clients has another one every
ten seconds, which only who has the secret can compute. Those of the steps
before and after are live too, so clocks may differ by a step:
  (umask 077; head -c 32 /dev/urandom > secret)
  sudo sixhop lab exec server -- sixhop serve --interface server0 \\
      --prefix 2001:db8:1::/64 --bind live-map --schedule mt6d \\
      --clients 1000000 --rotate 10s --secret secret"
)]
pub struct Args {
    #[command(flatten)]
    addresses: ServeAddresses,
    #[command(flatten)]
    askers: Askers,
    #[command(flatten)]
    engine: EngineFlags,
    #[command(flatten)]
    options: engine::Options,
    #[command(flatten)]
    operations: ServeOperations,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Addresses")]
struct ServeAddresses {
    /// Interface to answer on
    #[arg(long, value_name = "IF")]
    interface: String,
    #[command(flatten)]
    which: TargetFlags,
    /// How the addresses are made live
    #[arg(long, value_name = "METHOD", default_value = "netlink")]
    bind: Method,
    /// Have live-map or anyip take all of the prefix, also where this machine has routes of other
    /// interfaces under it
    #[arg(long)]
    take_prefix: bool,
    /// Tell switches that a multicast router is here (RFC 4286), every 20 s: those that snoop MLD
    /// then pass on the solicitations for addresses of live-map
    #[arg(long)]
    multicast_router: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Who may ask")]
struct Askers {
    /// UDP port of the service
    #[arg(long, default_value_t = 3540, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Prefixes whose sources are answered, as in 2001:db8::/32,fe80::/10; ::/0 for everybody
    /// [default: those on the interface's link]
    #[arg(long, value_name = "PREFIX", value_delimiter = ',', value_parser = Sources::parse)]
    allow: Vec<Prefix>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Engine")]
struct EngineFlags {
    /// How requests are answered
    #[arg(long = "engine", value_name = "ENGINE", default_value = "afxdp",
        value_parser = super::engines())]
    kind: EngineKind,
    /// Replies to each request
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=255))]
    replies: u16,
    /// Processors to pin the workers to, as in 0,1 [default: one for each worker, near the
    /// interrupt of its queue]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    cores: Vec<usize>,
    /// Have the kernel take what comes to the interface in batches, so many microseconds apart
    /// (software interrupt coalescing: napi_defer_hard_irqs and gro_flush_timeout, which are put
    /// back) [default: as the interface is]
    #[arg(long, value_name = "USECS", value_parser = coalesce())]
    coalesce: Option<u32>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = OPERATIONS)]
struct ServeOperations {
    /// Serve metrics for Prometheus over HTTP at this address and port, or port of [::1]: /metrics
    #[arg(long, value_name = "ADDR", value_parser = metrics::place)]
    metrics: Option<SocketAddr>,
    /// Stop when standard input closes, so that the server ends with the program that started it
    #[arg(long)]
    stop_on_eof: bool,
    /// Keep all capabilities and make any system call, for debuggers and profilers
    #[arg(long)]
    no_sandbox: bool,
    /// Print JSON lines: ready, stats once a second, rotation once in each time step, stopped
    #[arg(long)]
    json: bool,
    /// Print help
    #[arg(short, long, action = ArgAction::Help)]
    help: Option<bool>,
}

impl Args {
    fn config(self) -> Result<ServerConfig> {
        Ok(ServerConfig {
            interface: self.addresses.interface,
            targets: self.addresses.which.targets(0)?,
            bind: self.addresses.bind,
            engine: Some(self.engine.kind),
            options: self.options,
            cores: self.engine.cores,
            port: self.askers.port,
            replies: self.engine.replies,
            allow: (!self.askers.allow.is_empty()).then(|| Sources::new(self.askers.allow)),
            coalesce: self.engine.coalesce,
            take_prefix: self.addresses.take_prefix,
            multicast_router: self.addresses.multicast_router,
            sandbox: Sandbox::new(!self.operations.no_sandbox),
        })
    }
}

/// Microseconds between two batches, as a flag. At a tenth of a second all that waits would be
/// lost.
pub(super) fn coalesce() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=100_000)
}

/// Runs the subcommand.
///
/// # Errors
/// When the server cannot start, cannot go on, or leaves something behind.
pub fn run(args: Args) -> Result<ExitCode> {
    let (kind, bind) = (args.engine.kind, args.addresses.bind);
    let ServeOperations { metrics, stop_on_eof, json, .. } = args.operations;
    let config = args.config()?;
    let stop = stop_on_signal()?;
    if stop_on_eof {
        stop_at_end_of_input(stop.clone(), config.sandbox);
    }
    let listener = metrics.map(Listener::open).transpose()?;
    let mut manager = Manager::default();
    if config.sandbox.is_on() {
        // The usual words come with a backtrace where one is asked for, and that reads files.
        panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    }
    let (mut server, guard) = binding(&config, &stop)?;
    if let Some(listener) = &listener {
        server.with_metrics(listener.place()?);
    }
    let about = kind.about();
    let has_frames = about.is_some_and(|about| about.shares_frames);
    let board = Board::new(server.ready().clone(), has_frames);
    if let Some(listener) = listener {
        listener.answer(board.clone(), config.sandbox);
    }
    server.ready().modes.fallbacks.iter().for_each(note);
    let output = Output { json, bind };
    if json {
        print_json(&Event::Ready(server.ready().clone()))?;
    } else {
        println!("{}", describe(server.ready()));
    }
    let Ready { addresses, interface, sandbox, .. } = server.ready();
    manager.ready(&format!("{kind} answers on {addresses} addresses of {interface}"), *sandbox);
    let mut previous = Stats::default();
    let totals = running((server, guard), &stop, |occasion| match occasion {
        Occasion::Stats(stats) => {
            board.show(stats);
            output.stats(stats, &previous);
            previous = stats.clone();
        }
        Occasion::Rotation(rotated) => output.rotation(rotated),
        Occasion::Renamed(name) => board.rename(name),
        Occasion::Notice { text, symptom } => {
            output.notice(text + symptom.and_then(advice::of_symptom).unwrap_or_default());
        }
        Occasion::Alive => manager.alive(),
        Occasion::Stopping => manager.stopping(),
    })?;
    tracing::info!(answered = totals.stats.counters.answered, "stopped");
    if json {
        print_json(&Event::Stopped(totals.stats))?;
    } else {
        println!("stopped: {}", summary(&totals.stats));
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what happens while the server runs. It ignores write errors: the reader is gone.
struct Output {
    json: bool,
    bind: Method,
}

impl Output {
    fn stats(&self, stats: &Stats, previous: &Stats) {
        if self.json {
            let _ = print_json(&Event::Stats(stats.clone()));
        } else {
            println!("{}", line(stats, previous));
        }
    }

    fn rotation(&self, rotated: &Rotated) {
        if self.json {
            let _ = print_json(&Event::Rotation(*rotated));
        } else {
            println!("{}", rotation(rotated));
        }
        if let Some(words) = late(rotated, self.bind) {
            note(words);
        }
    }

    fn notice(&self, text: String) {
        note(&text);
        if self.json {
            let _ = print_json(&Event::Notice(Notice { text }));
        }
    }
}

/// The service manager that has started this, if one has (sd_notify(3)).
pub(super) struct Manager {
    /// How often it wants to hear that the workers are alive.
    watchdog: Option<Duration>,
    heard: Instant,
}

impl Default for Manager {
    fn default() -> Self {
        Self { watchdog: sd_notify::watchdog_enabled(), heard: Instant::now() }
    }
}

impl Manager {
    fn tell(states: &[NotifyState]) {
        // Who asked to be told and cannot be is no reason to stop.
        if let Err(error) = sd_notify::notify(states) {
            note(format_args!("the service manager cannot be told: {error}"));
        }
    }

    pub fn ready(&self, status: &str, sandbox: bool) {
        tracing::info!(sandbox, "ready: {status}");
        Self::tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// Twice as often as it wants to hear, as it advises.
    pub fn alive(&mut self) {
        if self.watchdog.is_some_and(|watchdog| self.heard.elapsed() >= watchdog / 2) {
            self.heard = Instant::now();
            Self::tell(&[NotifyState::Watchdog]);
        }
    }

    pub fn stopping(&self) {
        tracing::info!("stopping");
        Self::tell(&[NotifyState::Stopping, NotifyState::Status("takes its addresses back")]);
    }
}

fn describe(ready: &Ready) -> String {
    let mut text = format!(
        "ready: {} answers on {} addresses of {} ({}), UDP port {}, {} replies each; bound by {} \
         in {:.2} s",
        ready.engine.map_or("nobody".to_owned(), |engine| engine.to_string()),
        ready.addresses,
        ready.interface,
        if ready.driver.is_empty() { "no driver name" } else { &ready.driver },
        ready.port,
        ready.replies,
        ready.bind,
        ready.bind_seconds,
    );
    if let Some(moving) = &ready.moving {
        text += &format!(
            "; they move by {} every {} s, for {} clients, and it is step {}",
            moving.schedule, moving.rotate, moving.clients, moving.step
        );
    }
    let allowed = match ready.allowed.join(", ") {
        none if none.is_empty() => "nobody".to_owned(),
        some => some,
    };
    text += &format!("; answers {allowed}");
    if let Some(limit) = ready.limit {
        text += &format!(", {limit} requests/s of each");
    }
    if let Some(attach) = ready.modes.attach {
        text += &format!("; XDP {attach}");
        if let Some(copy) = ready.modes.copy {
            let hugepages =
                if ready.modes.hugepages == Some(true) { "huge pages" } else { "no huge pages" };
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
    text += &format!(", cores {:?}", ready.modes.cores);
    if let Some(place) = ready.metrics {
        text += &format!("; metrics at http://{place}/metrics");
    }
    if ready.sandbox { text } else { text + "; no sandbox" }
}

pub(super) fn rotation(rotated: &Rotated) -> String {
    format!(
        "          step {}: the addresses of {} clients exchanged in {:.3} s of work, {:.3} s of a \
         processor; {} are live",
        rotated.step, rotated.rotated, rotated.seconds, rotated.cpu_seconds, rotated.live
    )
}

/// What to say of a rotation that took longer than its step.
pub(super) fn late(rotated: &Rotated, bind: Method) -> Option<String> {
    let carried = rotated.clients_carried?;
    // Of what there is, nothing is quicker than live-map.
    let remedy = match bind {
        Method::LiveMap => "use fewer, or a longer --rotate",
        _ => "use fewer, a longer --rotate, or --bind live-map",
    };
    Some(format!(
        "step {} is {:.0} ms late: a step is long enough for {carried} clients; {remedy}",
        rotated.step, rotated.late_ms
    ))
}

fn line(stats: &Stats, previous: &Stats) -> String {
    let seconds = stats.seconds - previous.seconds;
    let rate = |now: u64, before: u64| {
        let passed = (seconds > 0.0).then_some(seconds);
        or_dash(passed, |seconds| rate(now.saturating_sub(before) as f64 / seconds))
    };
    let (now, before) = (&stats.counters, &previous.counters);
    format!(
        "{:7.0} s  {:>10} requests/s  {:>10} replies/s  {}",
        stats.seconds,
        rate(now.answered, before.answered),
        rate(now.replies, before.replies),
        summary(stats),
    )
}

/// What has occurred, and only that.
fn summary(stats: &Stats) -> String {
    let counters = &stats.counters;
    let mut parts = vec![format!("received {}, answered {}", counters.received, counters.answered)];
    if let Some(moves) = stats.moves {
        parts.push(format!("step {}, {} live", moves.step, moves.live));
        if moves.late > 0 {
            parts.push(format!("late in {} of {} steps", moves.late, moves.late + moves.in_time));
        }
    }
    let named = counters.dropped.iter().map(|(name, count)| (format!("dropped {name}"), *count));
    let steering = counters.steering.iter().map(|(name, count)| (name.clone(), *count));
    let others = [
        ("of them by the socket behind".to_owned(), counters.answered_behind),
        ("advertised".to_owned(), counters.advertised),
        ("unasked".to_owned(), counters.unasked),
        ("unsent".to_owned(), counters.unsent),
        ("frames lost".to_owned(), counters.frames_lost),
        ("descriptors that make no sense".to_owned(), counters.invalid),
        ("waiting".to_owned(), counters.waiting),
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
