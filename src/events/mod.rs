//! THE SCHEMA of every line of JSON that a command prints, with the modes, counters and reasons
//! that it names: data, and nothing that asks or does anything.
//!
//! Field names are the command-line contract; units are in the names (`_us`
//! microseconds, `_rps` requests per second, `_pps` packets per second).

mod addresses;
mod counters;
mod machine;
mod modes;
mod probe;
mod profile;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::Schedule;

pub use addresses::{Phase, Phases, Rotated};
pub use counters::{KernelCounters, RingLevels};
pub use machine::{Environment, Napi, Nic};
pub use modes::{
    AttachMode, AttachRequest, AttachedProgram, BusyPoll, Client, CopyMode, CopyRequest,
    EngineKind, Fallback, HugepageRequest, Method, Modes, RingSizes, TPacket,
};
pub use probe::{
    Advice, Finding, Host, Hugepages, Interface, Master, Peer, Probe, Tried, Verdict, Virtio,
    XdpFeatures,
};
pub use profile::{
    Approach, BindProfile, BindSeries, Rates, ResponseProfile, ResponseSeries, RotationProfile,
    RotationSeries,
};
pub use words::{or_dash, rate};

/// Version of the schema, on every line as `schema`. It grows when a field goes or changes its
/// meaning; new fields alone do not change it. Lines without one are from before it was counted.
pub const SCHEMA: u32 = 1;

/// One line of JSON output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// `serve`: every address is live and every ring armed.
    Ready(Ready),
    /// `serve`: once a second.
    Stats(Stats),
    /// `serve --schedule`: once in each time step.
    Rotation(Rotated),
    /// `serve`: something has changed, or goes wrong, and the server goes on.
    Notice(Notice),
    /// `serve`: the totals, at the end.
    Stopped(Stats),
    /// `load`: what a run measured.
    Result(LoadResult),
    /// `bind`: every address is live.
    Live(Ready),
    /// `bind`: what it took to make them live and to take them back, at the end.
    Bound(Box<BindResult>),
    /// `experiment bind`: what one run gave.
    Cell(BindCell),
    /// `experiment bind`: all runs of a method at a number of addresses, summed up.
    Summary(BindSummary),
    /// `compare`: what one engine sustained.
    Engine(Box<EngineResult>),
    /// `experiment`: what was to be measured, and where. The first line of its file.
    Experiment(Box<Experiment>),
    /// `experiment response`: what one run gave. The server's own `ready` comes before those of it.
    Trial(Trial),
    /// `experiment response`: a server that could not be had.
    Failed(Failed),
    /// `experiment response`: which rate all runs sustained below a threshold.
    Threshold(ThresholdSummary),
    /// `experiment rotation`: what one server did with its addresses, and with requests meanwhile.
    Rotated(Box<RotationTrial>),
    /// `experiment rotation`: how many clients an engine and a way of binding carry.
    Carried(Carried),
    /// `probe`: what was found out about one interface.
    Probe(Box<Probe>),
}

#[derive(Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    event: Event,
    #[serde(default)]
    schema: u32,
}

impl Event {
    /// As a line, with its end.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn to_line(&self) -> Result<String> {
        let mut line = serde_json::to_string(&Line { event: self.clone(), schema: SCHEMA })?;
        line.push('\n');
        Ok(line)
    }

    /// From a line.
    ///
    /// # Errors
    /// When it is none of these, or of a newer schema.
    pub fn parse(line: &str) -> Result<Self> {
        let version = serde_json::from_str::<Version>(line).context("not a line of JSON")?.schema;
        ensure!(
            version <= SCHEMA,
            "schema {version} is newer than {SCHEMA}, which this sixhop knows: use a newer one"
        );
        Ok(serde_json::from_str::<Line>(line)?.event)
    }
}

/// The one field that any schema has.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    schema: u32,
}

/// A sentence for people: what has changed or goes wrong, and what the server did about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The sentence.
    pub text: String,
}

/// What a server really got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Which engine; `None` where only the addresses are held.
    pub engine: Option<EngineKind>,
    /// On which interface.
    pub interface: String,
    /// Its driver; empty where it says none.
    pub driver: String,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request.
    pub replies: u16,
    /// How many addresses are live.
    pub addresses: u64,
    /// How they move, if they do.
    #[serde(flatten)]
    pub moving: Option<Moving>,
    /// How they were made live.
    pub bind: Method,
    /// How long it took to compute them, on one processor, in seconds.
    pub generate_seconds: f64,
    /// How long it took to open the engine, in seconds: its program loaded and attached, the hash
    /// of live addresses made, its rings armed. Once, whatever is bound then, and not in
    /// `bind_seconds`.
    pub open_seconds: f64,
    /// How long it took to make them live, in seconds.
    pub bind_seconds: f64,
    /// What took how long of that.
    pub bind_phases: Phases,
    /// Bytes of kernel memory that they take, where it is known.
    pub kernel_memory: Option<u64>,
    /// Bytes of the list of them, which is all that this process keeps of each.
    pub list_memory: u64,
    /// Where its XDP program was to run; `attach` is where it does.
    #[serde(default)]
    pub attach_asked: AttachRequest,
    /// Which copy mode was asked for; `copy` is what was granted.
    #[serde(default)]
    pub copy_asked: CopyRequest,
    /// The prefixes whose sources are answered; empty in results of versions that answered
    /// everybody.
    #[serde(default)]
    pub allowed: Vec<String>,
    /// Requests of one source that are answered in a second, where there is a limit.
    #[serde(default)]
    pub limit: Option<u32>,
    /// The server's machine.
    #[serde(default)]
    pub environment: Environment,
    /// Lines for people: settings that a killed server had left changed, and where requests arrive
    /// if not all queues are served.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Where its metrics are to be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Whether its threads have given up what they do not need: capabilities and system calls.
    #[serde(default)]
    pub sandbox: bool,
    /// What the kernel granted.
    #[serde(flatten)]
    pub modes: Modes,
}

/// How addresses move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moving {
    /// By which rule.
    pub schedule: Schedule,
    /// How many clients have addresses; each has three that are live.
    pub clients: u64,
    /// Seconds of a time step.
    pub rotate: f64,
    /// The step that it was.
    pub step: u64,
}

/// How they have moved since the server was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moves {
    /// The last step that was told of.
    pub step: u64,
    /// Steps whose work was done by their end.
    pub in_time: u64,
    /// Steps whose work was not.
    pub late: u64,
    /// Addresses that were live at that time.
    pub live: u64,
    /// The last step that was counted as late.
    #[serde(skip)]
    last_late: Option<u64>,
}

impl Moves {
    /// None yet: the addresses are live that are to be in `step`.
    #[must_use]
    pub fn none(step: u64, live: u64) -> Self {
        Self { step, live, ..Self::default() }
    }

    /// Counts one more; of a step that is late, however often that is told, once.
    pub fn add(&mut self, rotated: &Rotated) {
        self.in_time += u64::from(rotated.late_ms == 0.0);
        if rotated.late_ms > 0.0 && self.last_late.replace(rotated.step) != Some(rotated.step) {
            self.late += 1;
        }
        self.step = rotated.step;
        self.live = rotated.live;
    }
}

/// What a server has done since it was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds since `ready`.
    pub seconds: f64,
    /// How its addresses have moved, if they do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Moves>,
    /// The counts.
    #[serde(flatten)]
    pub counters: Counters,
}

/// What a server counts. All since it was started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets for the service that came in: all of them are answered, advertised to, dropped or
    /// waiting.
    #[serde(default)]
    pub received: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Of those, the ones answered by the socket behind an engine that looks at frames: they came
    /// in fragments, or behind extension headers.
    #[serde(default)]
    pub answered_behind: u64,
    /// Of all in `refused`, the ones refused there.
    #[serde(default)]
    pub refused_behind: u64,
    /// Replies handed to the kernel.
    pub replies: u64,
    /// Replies that the kernel did not take.
    pub unsent: u64,
    /// Neighbour Solicitations that were answered, where that is not the kernel's business.
    pub advertised: u64,
    /// Packets that were not answered, by reason; reasons that did not occur are left out.
    pub refused: BTreeMap<String, u64>,
    /// All packets that were received and came to nothing, by reason: those refused, those that
    /// found no room, and those that the XDP program dropped. Reasons that did not occur are left
    /// out.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
    /// Packets that were received and that nobody has looked at yet. In the totals: that nobody
    /// ever will.
    #[serde(default)]
    pub waiting: u64,
    /// Frames that are in no ring and in nobody's hands: always 0.
    pub frames_lost: u64,
    /// Descriptors from the kernel that made no sense: always 0.
    pub invalid: u64,
    /// Packets by verdict of the XDP program.
    pub steering: BTreeMap<String, u64>,
    /// The kernel's counters of the AF_XDP sockets, added up over the queues.
    pub xdp: Option<KernelCounters>,
    /// What each queue did, where the engine has a worker for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueCounters>,
    /// How long after it was due the last change of addresses was done, where they change while the
    /// server runs. `None` before the first change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_lag_seconds: Option<f64>,
    /// Datagrams that the kernel dropped because the socket's buffer was full.
    pub socket_dropped: Option<u64>,
}

/// What the worker of one queue counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// The queue's number.
    pub queue: u32,
    /// Requests that were answered.
    pub answered: u64,
    /// Replies handed to the kernel.
    pub replies: u64,
    /// How full its rings are.
    #[serde(default)]
    pub levels: RingLevels,
    /// The kernel's counters of its socket.
    #[serde(default)]
    pub xdp: KernelCounters,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde wants it
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Counters {
    /// Counts `count` packets more as dropped for `reason`.
    pub fn drop(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// The same where the kernel says how many packets found no room in a socket: they were
    /// received as well.
    #[must_use]
    pub fn with_socket_dropped(mut self, dropped: Option<u64>) -> Self {
        self.socket_dropped = dropped;
        self.received += dropped.unwrap_or(0);
        self.drop("socket_full", dropped.unwrap_or(0));
        self
    }

    /// Packets that were received and are counted nowhere else. While packets come in it may be off
    /// by those that are on their way between two counters; when none do, it is 0.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let known =
            self.answered + self.advertised + self.waiting + self.dropped.values().sum::<u64>();
        self.received as i64 - known as i64
    }
}

/// What it took to make addresses live and to take them back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindResult {
    /// How.
    pub method: Method,
    /// How many.
    pub addresses: u64,
    /// Mean time to compute an address, on one processor.
    pub generate_ns: f64,
    /// Mean time to make one live: that for all, and what is needed once for all of them, by their
    /// number. `None` where nothing was to be done.
    #[serde(deserialize_with = "unless_zero")]
    pub bind_ns: Option<f64>,
    /// Mean time to take one back; `None` where nothing was to be done.
    #[serde(deserialize_with = "unless_zero")]
    pub unbind_ns: Option<f64>,
    /// All three, for all addresses.
    pub seconds: f64,
    /// What `live-map` needs once before: its engine opened. 0 for the others, and in none of the
    /// figures above.
    #[serde(default)]
    pub open_seconds: f64,
    /// Memory of the kernel, as it reports it, and of this process's list; `None` where the
    /// kernel's is not known.
    pub bytes_per_address: Option<f64>,
    /// What took how long when they were made live.
    pub bind_phases: Phases,
    /// What took how long when they were taken back.
    pub unbind_phases: Phases,
    /// The machine, and the interface.
    #[serde(default)]
    pub environment: Environment,
}

/// One run of `experiment bind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindCell {
    /// The method.
    pub method: Method,
    /// How many addresses it was to bind.
    pub addresses: u64,
    /// Which run, from 1 on.
    pub run: u32,
    /// What became of it.
    pub outcome: BindOutcome,
}

/// What became of a run of `experiment bind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindOutcome {
    /// All addresses were live, and were taken back.
    Bound(Box<BindResult>),
    /// It took longer than it may: there is no figure.
    Stopped {
        /// How many addresses were bound by then.
        bound: u64,
        /// Seconds that it might bind.
        budget: f64,
    },
    /// It was not tried, since a smaller number was stopped or failed.
    Skipped {
        /// What happened there.
        why: String,
    },
    /// The method does not work here.
    Failed {
        /// Why.
        why: String,
    },
}

/// All runs of a method at a number of addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindSummary {
    /// The method.
    pub method: Method,
    /// How many addresses.
    pub addresses: u64,
    /// Runs in which all were bound.
    pub runs: usize,
    /// Mean time to compute an address, on one processor.
    pub generate_ns: Spread,
    /// Mean time to make one live.
    pub bind_ns: Spread,
    /// Mean time to take one back.
    pub unbind_ns: Spread,
    /// All three, for all addresses.
    pub seconds: Spread,
    /// Memory of the kernel and of the list, the median; `None` where the kernel's is not known.
    pub bytes_per_address: Option<f64>,
    /// Median bind time of `netlink` at this number of addresses by that of this method: how many
    /// times as fast it is.
    pub faster_than_netlink: Option<f64>,
}

/// A figure over some runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one, of an even number the mean of the middle two.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Over `values`; `None` where there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values.get(middle.checked_sub(1)?)? + values[middle]) / 2.0,
        };
        Some(Self { min: *values.first()?, median, max: *values.last()? })
    }
}

/// Times of a run that had any, from when a request was due.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Percentiles {
    /// Arithmetic mean of the exact times.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90 % were no slower.
    pub p90_us: f64,
    /// 99 % were no slower.
    pub p99_us: f64,
    /// 99.9 % were no slower.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// All of them, in nanoseconds: hdrhistogram's V2 encoding, compressed, in base64, as its logs
    /// have it. Empty where they were not kept.
    pub histogram: String,
}

/// The same in JSON: all fields are there, and null where there are no times.
#[derive(Serialize, Deserialize)]
struct Times {
    mean_us: Option<f64>,
    p50_us: Option<f64>,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    p999_us: Option<f64>,
    max_us: Option<f64>,
    #[serde(default)]
    histogram: String,
}

/// For `#[serde(with)]`.
pub(crate) mod times {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Percentiles, Times};

    pub fn serialize<S: Serializer>(times: &Option<Percentiles>, to: S) -> Result<S::Ok, S::Error> {
        let figure = |of: fn(&Percentiles) -> f64| times.as_ref().map(of);
        let histogram = times.as_ref().map_or(String::new(), |times| times.histogram.clone());
        Times {
            mean_us: figure(|times| times.mean_us),
            p50_us: figure(|times| times.p50_us),
            p90_us: figure(|times| times.p90_us),
            p99_us: figure(|times| times.p99_us),
            p999_us: figure(|times| times.p999_us),
            max_us: figure(|times| times.max_us),
            histogram,
        }
        .serialize(to)
    }

    /// `None` also where a slowest time of 0 says it without a histogram: earlier versions wrote
    /// that where nothing was answered.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Percentiles>, D::Error> {
        let times = Times::deserialize(from)?;
        let read = || {
            Some(Percentiles {
                mean_us: times.mean_us?,
                p50_us: times.p50_us?,
                p90_us: times.p90_us?,
                p99_us: times.p99_us?,
                p999_us: times.p999_us?,
                max_us: times.max_us?,
                histogram: times.histogram.clone(),
            })
        };
        Ok(read().filter(|times| times.max_us > 0.0 || !times.histogram.is_empty()))
    }
}

/// A time: earlier versions wrote 0 where there was none.
fn unless_zero<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::deserialize(from)?.filter(|time: &f64| *time != 0.0))
}

/// What a run has come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests with at least one reply.
    pub answered: u64,
    /// Requests with all replies.
    pub complete: u64,
    /// Replies that belong to a request, without duplicates.
    pub replies: u64,
    /// Replies beyond the number expected for a request.
    pub duplicates: u64,
    /// Replies from another address than the one asked.
    pub wrong_source: u64,
    /// Replies with damaged contents, or to a request that was never sent.
    pub corrupt: u64,
    /// Of those in `corrupt`, the ones whose checksum covers the pseudo-header alone: the server's
    /// interface leaves checksums to nobody.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unfinished: u64,
    /// Replies to an earlier run, which are not counted otherwise.
    pub stragglers: u64,
    /// Times to the first reply, of the requests that had one; `None` where none had.
    #[serde(with = "times")]
    pub first: Option<Percentiles>,
    /// Times to the last reply, of the requests that had all; `None` where none had.
    #[serde(with = "times")]
    pub last: Option<Percentiles>,
}

/// What a load run measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// How it asked.
    pub client: Client,
    /// Requests sent.
    pub sent: u64,
    /// Of those, the ones that the kernel still held at the end: they have not left.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unsent: u64,
    /// What came back.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Requests sent more than a millisecond after they were due.
    pub late: u64,
    /// Where addresses move and requests were lost: how many time steps the client's clock is ahead
    /// of the server's, behind it where negative. `None` where they agree within a step, and where
    /// nothing answered within 32 steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_steps: Option<i64>,
    /// Requests per second asked for.
    pub offered_rate: f64,
    /// Requests per second really sent.
    pub achieved_rate: f64,
    /// How the client's XDP program is attached; `None` where it has none.
    pub attach: Option<AttachMode>,
    /// How packets get into and out of the client's rings; `None` where it has none.
    pub copy: Option<CopyMode>,
    /// How large the client's rings are on each queue; `None` where it has none.
    #[serde(default)]
    pub rings: Option<RingSizes>,
    /// How the client polls its interface, where it does so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_poll: Option<BusyPoll>,
    /// The client's machine; left out where the file's first line has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Box<Environment>>,
}

/// What an experiment was to measure, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// What.
    pub plan: Plan,
    /// When it was begun (RFC 3339, UTC).
    pub started: String,
    /// The machine that measured; where a client asked, the client's.
    pub environment: Environment,
}

/// What is to be measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Plan {
    /// `experiment bind`.
    Bind(BindProfile),
    /// `experiment response`.
    Response(ResponseProfile),
    /// `experiment rotation`.
    Rotation(RotationProfile),
}

/// A server whose addresses move, as an experiment varies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationCell {
    /// Which engine.
    pub engine: EngineKind,
    /// How its addresses are made live.
    pub bind: Method,
    /// How many clients have addresses on it, each three at a time.
    pub clients: u64,
}

/// What one server of `experiment rotation` did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotationTrial {
    /// The server.
    #[serde(flatten)]
    pub cell: RotationCell,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: RotationOutcome,
}

/// What became of a server whose addresses move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
pub enum RotationOutcome {
    /// It was asked for some time steps.
    Measured {
        /// Its work in these steps: more than one value where it was late.
        steps: Vec<Rotated>,
        /// What the client measured while addresses were exchanged, step by step.
        inside: Vec<LoadResult>,
        /// The same while none was.
        outside: Vec<LoadResult>,
        /// Bytes of memory of the server's process at the end (VmRSS).
        memory: Option<u64>,
        /// What the server said of itself.
        ready: Box<Ready>,
    },
    /// It could not be had.
    Failed {
        /// What happened.
        why: String,
    },
}

impl RotationTrial {
    /// A server that could not be had.
    #[must_use]
    pub fn failed(cell: RotationCell, why: String) -> Self {
        Self { cell, outcome: RotationOutcome::Failed { why } }
    }
}

/// How many clients can have all their addresses exchanged in each time step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// By which engine.
    pub engine: EngineKind,
    /// How addresses are made live.
    pub bind: Method,
    /// Seconds of a time step.
    pub rotate: f64,
    /// The largest number that was carried; `None` where not even the smallest was.
    pub clients: Option<u64>,
    /// Why no larger one was.
    pub limit: RotationLimit,
    /// The same in words, with figures.
    pub cause: String,
}

/// Why a number of clients is the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotationLimit {
    /// With more the server could not be had in the time that the profile gives it.
    Unready,
    /// With more a step's work was not done by its end.
    Late,
    /// With more requests were lost.
    Lost,
    /// With more the generator was late itself.
    Generator,
    /// More were not tried.
    Highest,
}

/// A server, as an experiment varies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// Which engine.
    pub engine: EngineKind,
    /// How its addresses are made live.
    pub bind: Method,
    /// How many.
    pub addresses: u64,
}

/// One run of `experiment response`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The server.
    #[serde(flatten)]
    pub cell: Cell,
    /// Which pass through the rates, from 1 on.
    pub run: u32,
    /// Requests per second.
    pub rate: u64,
    /// Share of the server's processors that was busy, 0 to 1; `None` where it is not
    /// known: on another machine, or no worker of its own has one.
    pub server_cpu: Option<f64>,
    /// What the client measured.
    pub load: LoadResult,
}

/// A server that could not be had.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The server.
    #[serde(flatten)]
    pub cell: Cell,
    /// What happened.
    pub why: String,
}

/// Which rate a server sustained with a mean response time under a threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThresholdSummary {
    /// The server.
    #[serde(flatten)]
    pub cell: Cell,
    /// The mean time to the first reply is at most this.
    pub threshold_ms: f64,
    /// The highest rate of each pass that held.
    pub runs: Vec<Sustained>,
    /// Over those passes in which a rate held at all; `None` where in none did.
    pub rate: Option<Spread>,
    /// The limit that most of the passes met.
    pub limit: Limit,
    /// Runs that were made of this server, for all thresholds together; `grid_trials` would be all
    /// rates.
    pub trials: usize,
    /// Runs that the full grid has.
    pub grid_trials: usize,
}

/// What a pass found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sustained {
    /// The highest rate that held, in requests per second; `None` where none did.
    pub rate: Option<u64>,
    /// Why no higher one did.
    pub limit: Limit,
}

/// Why a rate is the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// At the next one the server was too slow.
    Slow,
    /// At the next one fewer than 90 % of the requests were answered.
    Lost,
    /// At the next one the generator was late: the server may be able to do more.
    Generator,
    /// There was no higher one to try: the server can do as much at least.
    Highest,
}

/// What one engine sustained in a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineResult {
    /// Which engine, or which other program.
    pub engine: Contestant,
    /// How its XDP program was attached, as the kernel says.
    pub attach: Option<AttachMode>,
    /// How packets got into its rings, as the kernel says.
    pub copy: Option<CopyMode>,
    /// Live addresses.
    pub addresses: u64,
    /// How they were made live.
    pub bind: Method,
    /// Replies to each request.
    pub replies: u16,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// The mean time to the first reply up to which a rate counts as sustained.
    #[serde(default = "one_millisecond")]
    pub mean_limit_us: f64,
    /// Median of `runs`.
    pub sustained_rps: f64,
    /// Replies received per second at the sustained rate.
    pub replies_pps: f64,
    /// Mean time to the first reply at the sustained rate.
    #[serde(deserialize_with = "unless_zero")]
    pub mean_us: Option<f64>,
    /// 99th percentile of it.
    #[serde(deserialize_with = "unless_zero")]
    pub p99_us: Option<f64>,
    /// Share of the server's processors that was busy at the sustained rate, 0 to 1; `None` where
    /// it is not known.
    pub server_cpu: Option<f64>,
    /// Half the sustained rate: where a server that is not at its limit is measured.
    pub half_rps: f64,
    /// Mean time to the first reply there; `None` where there was no reply.
    #[serde(deserialize_with = "unless_zero")]
    pub half_mean_us: Option<f64>,
    /// 99th percentile in that run.
    #[serde(deserialize_with = "unless_zero")]
    pub half_p99_us: Option<f64>,
    /// Share of the server's processors that was busy in that run, 0 to 1.
    pub half_server_cpu: Option<f64>,
    /// `sustained_rps` by that of the engine `socket` in the same comparison; `None` when that was
    /// not in it.
    pub ratio_to_socket: Option<f64>,
    /// Sustained requests per second of each run.
    pub runs: Vec<f64>,
    /// How it was asked.
    pub client: Client,
    /// How the client's XDP program was attached, as the kernel says.
    pub client_attach: Option<AttachMode>,
    /// How packets got into the client's rings, as the kernel says.
    pub client_copy: Option<CopyMode>,
    /// How the client polled its interface, where it did so itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_busy_poll: Option<BusyPoll>,
    /// What the client measured at the sustained rate of each of `runs`.
    pub sustained: Vec<LoadResult>,
    /// What it measured at half of the rate of each of `runs`.
    pub half: Vec<LoadResult>,
    /// What the server said of itself.
    pub server: Ready,
    /// The client's machine.
    pub environment: Environment,
}

/// The limit of results from before it was kept.
fn one_millisecond() -> f64 {
    1000.0
}

/// Whom a comparison measures. Results hold only the name, and by that they are compared: a peer's
/// that could be an engine's is read as one.
#[derive(Debug, Clone, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Contestant {
    /// An engine of Sixhop's.
    Engine(EngineKind),
    /// Another program, by the name that it was given.
    Peer(String),
}

impl Contestant {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Engine(engine) => engine.name(),
            Self::Peer(name) => name,
        }
    }
}

impl PartialEq for Contestant {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
