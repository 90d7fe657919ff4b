//! THE SCHEMA of every JSON line that a command prints, with the modes, counters and reasons that
//! it names. Data only: nothing here asks or does anything.
//!
//! Field names are part of the command-line contract. Units are in the names (`_us` microseconds,
//! `_rps` requests per second, `_pps` packets per second).

mod addresses;
mod counters;
mod gate;
mod machine;
mod modes;
mod probe;
mod profile;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Deserializer, Serialize};

use crate::address::Schedule;

pub use addresses::{Phase, Phases, Rotated};
pub use counters::{KernelCounters, RingLevels};
pub use gate::{GateEvent, GateReady, GateStats, ServiceCount, ServiceFound};
pub use machine::{Environment, Napi, Nic};
pub use modes::{
    AttachMode, AttachRequest, AttachedProgram, BusyPoll, CopyMode, CopyRequest, EngineKind,
    Fallback, HugepageRequest, LoadClient, Method, Modes, RingSizes, TPacket,
};
pub use probe::{
    Advice, Expectation, Finding, Host, Hugepages, Interface, Master, Probe, Tried, VethPeer,
    Virtio, XdpFeatures,
};
pub use profile::{
    Approach, BindProfile, BindSeries, Rates, ResponseProfile, ResponseSeries, RotationProfile,
    RotationSeries,
};
pub use words::{or_dash, rate};

/// Version of the schema, on every line as `schema`. It grows when a field is removed or changes
/// its meaning; a new field alone does not change it. Lines without `schema` predate it.
pub const SCHEMA: u32 = 1;

/// One line of JSON output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// `serve`: every address is live and every ring armed.
    Ready(Ready),
    /// `serve`: once per second.
    Stats(Stats),
    /// `serve --schedule`: once per time step.
    Rotation(Rotated),
    /// `serve`: something changed or goes wrong, and the server goes on.
    Notice(Notice),
    /// `serve`: the totals at exit.
    Stopped(Stats),
    /// `load`: the results of a run.
    Result(LoadResult),
    /// `bind`: every address is live.
    Live(Ready),
    /// `bind`: the cost of binding and unbinding, at exit.
    Bound(Box<BindResult>),
    /// `experiment bind`: the result of one run.
    Cell(BindCell),
    /// `experiment bind`: the summary of all runs of a method at one number of addresses.
    Summary(BindSummary),
    /// `compare`: the rate that one engine sustained.
    Engine(Box<EngineResult>),
    /// `experiment`: the plan and the machine. The first line of its file.
    Experiment(Box<Experiment>),
    /// `experiment response`: the result of one run. The server's own `ready` precedes its runs.
    Trial(Trial),
    /// `experiment response`: a server that could not be started.
    Failed(Failed),
    /// `experiment response`: the rate that each pass sustained below a threshold.
    Threshold(ThresholdSummary),
    /// `experiment rotation`: one server's rotations, and the load meanwhile.
    Rotated(Box<RotationTrial>),
    /// `experiment rotation`: how many clients an engine and method carry.
    Carried(Carried),
    /// `probe`: the findings on one interface.
    Probe(Box<Probe>),
    /// `enrol`: every identity is written.
    Enrolled(Enrolled),
    /// `where`: a client's address of now.
    Where(Where),
    /// `resolver`: it answers.
    Resolving(Resolving),
}

#[derive(Serialize, Deserialize)]
struct JsonLine<E> {
    #[serde(flatten)]
    event: E,
    #[serde(default)]
    schema: u32,
}

impl Event {
    /// The event as a JSON line, with its newline.
    ///
    /// # Errors
    /// If the event cannot be serialised.
    pub fn to_line(&self) -> Result<String> {
        let mut line = serde_json::to_string(&JsonLine { event: self.clone(), schema: SCHEMA })?;
        line.push('\n');
        Ok(line)
    }

    /// Parses a JSON line.
    ///
    /// # Errors
    /// If it is not one of these events, or has a newer schema.
    pub fn parse(line: &str) -> Result<Self> {
        let version = serde_json::from_str::<Version>(line).context("not a line of JSON")?.schema;
        ensure!(
            version <= SCHEMA,
            "schema {version} is newer than {SCHEMA}, the newest that this sixhop reads: upgrade it"
        );
        Ok(serde_json::from_str::<JsonLine<Self>>(line)?.event)
    }
}

/// The one field that every schema has.
#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    schema: u32,
}

/// Identities that were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Number of the first client.
    pub first: u32,
    /// Number of the last one.
    pub last: u32,
    /// The directory with a file for each of them.
    pub directory: String,
}

/// A client's address of now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Where {
    /// The address.
    pub address: Ipv6Addr,
    /// The step that it is of.
    pub step: u64,
    /// When the step ends (RFC 3339, UTC), by this machine's clock.
    pub until: String,
}

/// What a resolver answers for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolving {
    /// Where it answers, over UDP and TCP.
    pub listen: SocketAddr,
    /// The names that it knows, each with its domain.
    pub names: Vec<String>,
}

/// A sentence for people: what changed or goes wrong, and what the server did about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The sentence.
    pub text: String,
}

/// What a server got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// The engine; `None` if only addresses are bound.
    pub engine: Option<EngineKind>,
    /// The interface.
    pub interface: String,
    /// Its driver; empty if it names none.
    pub driver: String,
    /// UDP port of the service.
    pub port: u16,
    /// Replies to each request.
    pub replies: u16,
    /// Number of live addresses.
    pub addresses: u64,
    /// How they move, with a schedule.
    #[serde(flatten)]
    pub moving: Option<Moving>,
    /// How they were bound.
    pub bind: Method,
    /// Seconds to compute them, on one processor.
    pub generate_seconds: f64,
    /// Seconds to open the engine: load and attach its program, create the hash of live addresses,
    /// arm its rings. Done once, whatever is bound afterwards, and not part of `bind_seconds`.
    pub open_seconds: f64,
    /// Seconds to bind them.
    pub bind_seconds: f64,
    /// The phases of `bind_seconds`.
    pub bind_phases: Phases,
    /// Bytes of kernel memory that they take, if known.
    pub kernel_memory: Option<u64>,
    /// Bytes of the address list, which is all that this process stores per address.
    pub list_memory: u64,
    /// The attach mode asked for; `attach` is the one granted.
    #[serde(default)]
    pub attach_asked: AttachRequest,
    /// The copy mode asked for; `copy` is the one granted.
    #[serde(default)]
    pub copy_asked: CopyRequest,
    /// The allowed source prefixes; empty in results of versions that answered every source.
    #[serde(default)]
    pub allowed: Vec<String>,
    /// Most requests per second that one source gets answered, if limited.
    #[serde(default)]
    pub limit: Option<u32>,
    /// The server's machine.
    #[serde(default)]
    pub environment: Environment,
    /// Lines for people: settings that a killed server had left changed, and where requests arrive
    /// if not all queues are served.
    #[serde(default)]
    pub notes: Vec<String>,
    /// The socket address that serves its metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<SocketAddr>,
    /// Whether its threads have dropped the capabilities and system calls that they do not need.
    #[serde(default)]
    pub sandbox: bool,
    /// What the kernel granted.
    #[serde(flatten)]
    pub modes: Modes,
}

/// How addresses move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moving {
    /// The rule.
    pub schedule: Schedule,
    /// Number of clients with addresses; each has three live ones.
    pub clients: u64,
    /// Length of a time step in seconds.
    pub rotate: f64,
    /// The step at that time.
    pub step: u64,
}

/// Rotations since the server started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Moves {
    /// The last step reported.
    pub step: u64,
    /// Steps whose work was done by their end.
    pub in_time: u64,
    /// Steps whose work was not done by their end.
    pub late: u64,
    /// Addresses that were live after the last rotation reported.
    pub live: u64,
    /// The last step counted as late.
    #[serde(skip)]
    last_late: Option<u64>,
}

impl Moves {
    /// No rotation yet: the addresses of `step` are live.
    #[must_use]
    pub fn none(step: u64, live: u64) -> Self {
        Self { step, live, ..Self::default() }
    }

    /// Counts one report. A late step counts once, however often it is reported.
    pub fn add(&mut self, rotated: &Rotated) {
        self.in_time += u64::from(rotated.late_ms == 0.0);
        if rotated.late_ms > 0.0 && self.last_late.replace(rotated.step) != Some(rotated.step) {
            self.late += 1;
        }
        self.step = rotated.step;
        self.live = rotated.live;
    }
}

/// What a server has done since it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Seconds since `ready`.
    pub seconds: f64,
    /// How its addresses have moved, with a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Moves>,
    /// The counts.
    #[serde(flatten)]
    pub counters: Counters,
}

/// A server's counters since it started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets received for the service. Each of them is answered, advertised to, dropped or
    /// waiting.
    #[serde(default)]
    pub received: u64,
    /// Requests answered.
    pub answered: u64,
    /// Of those, the ones answered by the socket behind the engine: they came in fragments or
    /// behind extension headers.
    #[serde(default)]
    pub answered_behind: u64,
    /// Of the packets in `refused`, the ones refused by the socket behind the engine.
    #[serde(default)]
    pub refused_behind: u64,
    /// Replies handed to the kernel.
    pub replies: u64,
    /// Unasked datagrams of a service, handed to the kernel.
    #[serde(default)]
    pub unasked: u64,
    /// Replies and unasked datagrams that the kernel did not accept.
    pub unsent: u64,
    /// Neighbour Solicitations that the server answered in place of the kernel.
    pub advertised: u64,
    /// Packets not answered, by reason. Reasons with a count of 0 are left out.
    pub refused: BTreeMap<String, u64>,
    /// Packets received but not served, by reason: refused, dropped for lack of room, or dropped by
    /// the XDP program. Reasons with a count of 0 are left out.
    #[serde(default)]
    pub dropped: BTreeMap<String, u64>,
    /// Packets received but not yet read. In the totals: never read.
    #[serde(default)]
    pub waiting: u64,
    /// Frames that are in no ring and that nobody holds: always 0.
    pub frames_lost: u64,
    /// Invalid descriptors from the kernel: always 0.
    pub invalid: u64,
    /// Packets by the XDP program's verdict.
    pub steering: BTreeMap<String, u64>,
    /// The kernel's counters of the AF_XDP sockets, summed over the queues.
    pub xdp: Option<KernelCounters>,
    /// Counters of each queue, if the engine has a worker per queue.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueCounters>,
    /// Seconds from when the last rotation was due until it was done. `None` without a schedule and
    /// before the first rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation_lag_seconds: Option<f64>,
    /// Datagrams that the kernel dropped because the socket buffer was full.
    pub socket_dropped: Option<u64>,
}

/// Counters of one queue's worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueCounters {
    /// The queue number.
    pub queue: u32,
    /// Requests answered.
    pub answered: u64,
    /// Replies handed to the kernel.
    pub replies: u64,
    /// Fill levels of its rings.
    #[serde(default)]
    pub levels: RingLevels,
    /// The kernel's counters of its socket.
    #[serde(default)]
    pub xdp: KernelCounters,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Counters {
    /// Counts `count` dropped packets for `reason`.
    pub fn drop(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.dropped.entry(reason.to_owned()).or_default() += count;
        }
    }

    /// Adds the packets that the kernel dropped at a full socket buffer; they count as received
    /// too.
    #[must_use]
    pub fn with_socket_dropped(mut self, dropped: Option<u64>) -> Self {
        self.socket_dropped = dropped;
        self.received += dropped.unwrap_or(0);
        self.drop("socket_full", dropped.unwrap_or(0));
        self
    }

    /// Received packets that no other counter has. While packets arrive, it may be off by those
    /// between two counters; otherwise it is 0.
    #[must_use]
    pub fn unaccounted(&self) -> i64 {
        let known =
            self.answered + self.advertised + self.waiting + self.dropped.values().sum::<u64>();
        self.received as i64 - known as i64
    }
}

/// The cost of binding and unbinding addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindResult {
    /// The method.
    pub method: Method,
    /// The number of addresses.
    pub addresses: u64,
    /// Mean time to compute an address, on one processor.
    pub generate_ns: f64,
    /// Mean time to bind an address: the total, with one-time work included, divided by their
    /// number. `None` if there was nothing to do.
    #[serde(deserialize_with = "unless_zero")]
    pub bind_ns: Option<f64>,
    /// Mean time to unbind an address; `None` if there was nothing to do.
    #[serde(deserialize_with = "unless_zero")]
    pub unbind_ns: Option<f64>,
    /// Total seconds to compute, bind and unbind all addresses.
    pub seconds: f64,
    /// Seconds to open the engine, which `live-map` needs first. 0 for other methods. Not part of
    /// the figures above.
    #[serde(default)]
    pub open_seconds: f64,
    /// Kernel memory as the kernel reports it, plus this process's list; `None` if the former is
    /// unknown.
    pub bytes_per_address: Option<f64>,
    /// The phases of binding.
    pub bind_phases: Phases,
    /// The phases of unbinding.
    pub unbind_phases: Phases,
    /// The machine and the interface.
    #[serde(default)]
    pub environment: Environment,
}

/// One run of `experiment bind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindCell {
    /// The method.
    pub method: Method,
    /// The number of addresses to bind.
    pub addresses: u64,
    /// The run's number, from 1.
    pub run: u32,
    /// The outcome.
    pub outcome: BindOutcome,
}

/// The outcome of one run of `experiment bind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BindOutcome {
    /// All addresses were bound and unbound.
    Bound(Box<BindResult>),
    /// It exceeded its time limit: no figure.
    Stopped {
        /// Number of addresses bound by then.
        bound: u64,
        /// The time limit in seconds.
        budget: f64,
    },
    /// Not tried, since a smaller number of addresses was stopped or failed.
    Skipped {
        /// What happened at the smaller number.
        why: String,
    },
    /// The method does not work here.
    Failed {
        /// Why it failed.
        why: String,
    },
}

/// All runs of a method at one number of addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BindSummary {
    /// The method.
    pub method: Method,
    /// The number of addresses.
    pub addresses: u64,
    /// Runs in which all were bound.
    pub runs: usize,
    /// Mean time to compute an address, on one processor.
    pub generate_ns: Spread,
    /// Mean time to bind one.
    pub bind_ns: Spread,
    /// Mean time to unbind one.
    pub unbind_ns: Spread,
    /// Total seconds to compute, bind and unbind all addresses.
    pub seconds: Spread,
    /// Median memory of kernel and list; `None` if the kernel's is unknown.
    pub bytes_per_address: Option<f64>,
    /// Median bind time of `netlink` divided by that of this method, at this number of addresses.
    pub faster_than_netlink: Option<f64>,
}

/// The spread of a figure over several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The middle one; for an even number, the mean of the middle two.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`; `None` if there are none.
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

/// Response times of a run, counted from when each request was due.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Percentiles {
    /// Arithmetic mean of the exact times.
    pub mean_us: f64,
    /// Median.
    pub p50_us: f64,
    /// 90 % took at most this.
    pub p90_us: f64,
    /// 99 % took at most this.
    pub p99_us: f64,
    /// 99.9 % took at most this.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// All times in nanoseconds, as hdrhistogram's compressed V2 encoding in base64, the form of
    /// its logs. Empty if not recorded.
    pub histogram: String,
}

/// The same in JSON: every field is present, and null if there are no times.
#[derive(Serialize, Deserialize)]
struct JsonTimes {
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

    use super::{JsonTimes, Percentiles};

    pub fn serialize<S: Serializer>(times: &Option<Percentiles>, to: S) -> Result<S::Ok, S::Error> {
        let figure = |of: fn(&Percentiles) -> f64| times.as_ref().map(of);
        let histogram = times.as_ref().map_or(String::new(), |times| times.histogram.clone());
        JsonTimes {
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

    /// Also reads as `None` a slowest time of 0 without a histogram: earlier versions wrote that
    /// when nothing was answered.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Percentiles>, D::Error> {
        let times = JsonTimes::deserialize(from)?;
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

/// Reads 0 as `None`: earlier versions wrote 0 for "no time".
fn unless_zero<'de, D: Deserializer<'de>>(from: D) -> Result<Option<f64>, D::Error> {
    Ok(Option::deserialize(from)?.filter(|time: &f64| *time != 0.0))
}

/// What came back in a run.
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
    /// Of those in `corrupt`, the ones with an unfinished checksum: the server's interface does not
    /// compute it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unfinished: u64,
    /// Replies to an earlier run, which no other counter includes.
    pub stragglers: u64,
    /// Times to the first reply of the requests that got one; `None` if none did.
    #[serde(with = "times")]
    pub first: Option<Percentiles>,
    /// Times to the last reply of the requests that got all; `None` if none did.
    #[serde(with = "times")]
    pub last: Option<Percentiles>,
}

/// The results of a load run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LoadResult {
    /// The transport.
    pub client: LoadClient,
    /// Requests sent.
    pub sent: u64,
    /// Of those, the ones that the kernel still held at the end and never sent.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unsent: u64,
    /// What came back.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Requests sent more than 1 ms after they were due.
    pub late: u64,
    /// Only with moving addresses and lost requests: the time steps by which the client's clock is
    /// ahead of the server's, negative if behind. `None` if they agree within a step, or if nothing
    /// answered within 32 steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_steps: Option<i64>,
    /// Requests per second asked for.
    pub offered_rate: f64,
    /// Requests per second actually sent.
    pub achieved_rate: f64,
    /// Attach mode of the client's XDP program; `None` if it has none.
    pub attach: Option<AttachMode>,
    /// Copy mode of the client's rings; `None` if it has none.
    pub copy: Option<CopyMode>,
    /// Sizes of the client's rings per queue; `None` if it has none.
    #[serde(default)]
    pub rings: Option<RingSizes>,
    /// The client's busy polling, if it does any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_poll: Option<BusyPoll>,
    /// The client's machine; left out if the file's first line has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<Box<Environment>>,
}

/// An experiment's plan and machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    /// The plan.
    pub plan: Plan,
    /// When it began (RFC 3339, UTC).
    pub started: String,
    /// The machine that measured; with a client, the client's.
    pub environment: Environment,
}

/// What an experiment measures.
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

/// A server with moving addresses, as an experiment varies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationCell {
    /// The engine.
    pub engine: EngineKind,
    /// How its addresses are bound.
    pub bind: Method,
    /// Number of clients; each has three live addresses.
    pub clients: u64,
}

/// What one server of `experiment rotation` did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RotationTrial {
    /// The server.
    #[serde(flatten)]
    pub cell: RotationCell,
    /// The outcome.
    #[serde(flatten)]
    pub outcome: RotationOutcome,
}

/// The outcome for a server with moving addresses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "outcome")]
pub enum RotationOutcome {
    /// It was measured for several time steps.
    Measured {
        /// The work of each step; several values for a step that was late.
        steps: Vec<Rotated>,
        /// What the client measured during each exchange, step by step.
        inside: Vec<LoadResult>,
        /// The same between exchanges.
        outside: Vec<LoadResult>,
        /// Memory of the server process at the end (VmRSS), in bytes.
        memory: Option<u64>,
        /// The server's own `ready`.
        ready: Box<Ready>,
    },
    /// It could not be started.
    Failed {
        /// What happened.
        why: String,
    },
}

impl RotationTrial {
    /// A server that could not be started.
    #[must_use]
    pub fn failed(cell: RotationCell, why: String) -> Self {
        Self { cell, outcome: RotationOutcome::Failed { why } }
    }
}

/// The number of clients whose addresses can all be exchanged in each time step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// The engine.
    pub engine: EngineKind,
    /// How addresses are bound.
    pub bind: Method,
    /// Length of a time step in seconds.
    pub rotate: f64,
    /// The largest number carried; `None` if not even the smallest was.
    pub clients: Option<u64>,
    /// Why no larger number was carried.
    pub limit: RotationLimit,
    /// The same for people, with figures.
    pub cause: String,
}

/// What limits the number of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotationLimit {
    /// With more, the server was not ready in the time that the profile allows.
    Unready,
    /// With more, a step's work was not done by its end.
    Late,
    /// With more, requests were lost.
    Lost,
    /// With more, the generator itself was late.
    Generator,
    /// More were not tried.
    Highest,
}

/// A server, as an experiment varies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// The engine.
    pub engine: EngineKind,
    /// How its addresses are bound.
    pub bind: Method,
    /// Number of addresses.
    pub addresses: u64,
}

/// One run of `experiment response`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// The server.
    #[serde(flatten)]
    pub cell: Cell,
    /// The pass through the rates, from 1.
    pub run: u32,
    /// Requests per second.
    pub rate: u64,
    /// Busy share of the server's processors, 0 to 1. `None` if unknown: it runs on another
    /// machine, or no worker has a processor of its own.
    pub server_cpu: Option<f64>,
    /// What the client measured.
    pub load: LoadResult,
}

/// A server that could not be started.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The server.
    #[serde(flatten)]
    pub cell: Cell,
    /// What happened.
    pub why: String,
}

/// The rate that a server sustained with its mean response time under a threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ThresholdSummary {
    /// The server.
    #[serde(flatten)]
    pub cell: Cell,
    /// The threshold of the mean time to the first reply.
    pub threshold_ms: f64,
    /// The highest rate that held, for each pass.
    pub runs: Vec<Sustained>,
    /// Over the passes in which a rate held; `None` if there were none.
    pub rate: Option<Spread>,
    /// The limit of most passes.
    pub limit: Limit,
    /// Runs made of this server, for all thresholds together.
    pub trials: usize,
    /// Runs that the full grid would take.
    pub grid_trials: usize,
}

/// The result of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sustained {
    /// The highest rate that held, in requests per second; `None` if none did.
    pub rate: Option<u64>,
    /// Why no higher rate held.
    pub limit: Limit,
}

/// What limits the rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// At the next rate the server was too slow.
    Slow,
    /// At the next rate fewer than 90 % of the requests were answered.
    Lost,
    /// At the next rate the generator was late: the server may be able to do more.
    Generator,
    /// This was the highest rate tried: the server may be able to do more.
    Highest,
}

/// The rate that one engine sustained in a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineResult {
    /// The engine, or another program.
    pub engine: Contestant,
    /// Attach mode of its XDP program, as the kernel reports it.
    pub attach: Option<AttachMode>,
    /// Copy mode of its rings, as the kernel reports it.
    pub copy: Option<CopyMode>,
    /// Number of live addresses.
    pub addresses: u64,
    /// How they were bound.
    pub bind: Method,
    /// Replies to each request.
    pub replies: u16,
    /// Bytes of payload in a request.
    pub payload: usize,
    /// The threshold: the mean time to the first reply up to which a rate counts.
    #[serde(default = "one_millisecond")]
    pub mean_limit_us: f64,
    /// Median of `runs`.
    pub sustained_rps: f64,
    /// Replies received per second at the sustained rate.
    pub replies_pps: f64,
    /// Mean time to the first reply at the sustained rate.
    #[serde(deserialize_with = "unless_zero")]
    pub mean_us: Option<f64>,
    /// 99th percentile at that rate.
    #[serde(deserialize_with = "unless_zero")]
    pub p99_us: Option<f64>,
    /// Busy share of the server's processors at the sustained rate, 0 to 1; `None` if unknown.
    pub server_cpu: Option<f64>,
    /// Half the sustained rate, where the server is not at its limit.
    pub half_rps: f64,
    /// Mean time to the first reply at half the rate; `None` if there was no reply.
    #[serde(deserialize_with = "unless_zero")]
    pub half_mean_us: Option<f64>,
    /// 99th percentile at half the rate.
    #[serde(deserialize_with = "unless_zero")]
    pub half_p99_us: Option<f64>,
    /// Busy share of the server's processors at half the rate, 0 to 1.
    pub half_server_cpu: Option<f64>,
    /// `sustained_rps` divided by that of engine `socket` in the same comparison; `None` if that
    /// was not measured.
    pub ratio_to_socket: Option<f64>,
    /// Sustained requests per second in each run.
    pub runs: Vec<f64>,
    /// The client's transport.
    pub client: LoadClient,
    /// Attach mode of the client's XDP program, as the kernel reports it.
    pub client_attach: Option<AttachMode>,
    /// Copy mode of the client's rings, as the kernel reports it.
    pub client_copy: Option<CopyMode>,
    /// The client's busy polling, if it did any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_busy_poll: Option<BusyPoll>,
    /// What the client measured at the sustained rate of each run.
    pub sustained: Vec<LoadResult>,
    /// What the client measured at half the rate of each run.
    pub half: Vec<LoadResult>,
    /// The server's own `ready`.
    pub server: Ready,
    /// The client's machine.
    pub environment: Environment,
}

/// The threshold of results from before it was recorded.
fn one_millisecond() -> f64 {
    1000.0
}

/// What a comparison measures. Results hold only the name, and contestants are compared by it: a
/// peer named like an engine is read as that engine.
#[derive(Debug, Clone, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Contestant {
    /// One of Sixhop's engines.
    Engine(EngineKind),
    /// Another program, by the name given to it.
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
