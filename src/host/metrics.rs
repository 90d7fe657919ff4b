//! METRICS: what a server last reported about itself, in Prometheus' text format, over HTTP.
//!
//! ```text
//!   stats, once a second ─► the latest ─► text, on request:
//!                                         one at a time, bounded in bytes and time
//! ```
//!
//! A scrape reads what the main thread stored, and touches neither workers nor kernel counters.
//! However often it happens, it costs the server only the thread that answers. All values are those
//! of the latest `stats` event.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::events::{Counters, Method, QueueCounters, Ready, Stats};
use crate::host::sandbox::{Role, Sandbox};

/// Time limit of a whole exchange.
const EXCHANGE: Duration = Duration::from_secs(2);

/// Size limit of a request in bytes: enough for the request line and headers of any scraper.
const REQUEST: usize = 4096;

/// Parses the flag that says where to serve metrics: an address and port, or only a port on
/// loopback.
///
/// # Errors
/// When it is neither.
#[doc(hidden)]
pub fn place(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse::<u16>().map(|port| SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    port.or_else(|_| text.parse())
        .map_err(|_| "a port, or an address and a port as in [::1]:9354".to_owned())
}

/// Values of one metric: labels and a number.
type Values = Vec<(Vec<(&'static str, String)>, f64)>;

/// A metric: its name without a counter's `_total`, whether it is a counter, whether it exists only
/// for engines that share frames with the kernel, its help text, and the source of its values.
struct Metric {
    name: &'static str,
    counter: bool,
    of_frames: bool,
    help: &'static str,
    values: fn(&Ready, &Stats) -> Values,
}

/// All metrics, in the order in which they are shown.
const METRICS: &[Metric] =
    &[
        gauge("sixhop_server_info", "Always 1; the labels describe the server", info),
        gauge("sixhop_uptime_seconds", "Time since the server was ready", |_, stats| {
            one(stats.seconds)
        }),
        gauge("sixhop_addresses", "Addresses that are live", |ready, stats| {
            one(stats.moves.map_or(ready.addresses, |moves| moves.live) as f64)
        }),
        counter("sixhop_received_packets", "Packets received for the service", |_, s| {
            count(s.counters.received)
        }),
        counter("sixhop_answered_requests", "Requests answered", |_, s| count(s.counters.answered)),
        counter("sixhop_sent_replies", "Replies handed to the kernel", |_, s| {
            count(s.counters.replies)
        }),
        counter("sixhop_unsent_replies", "Replies that the kernel rejected", |_, s| {
            count(s.counters.unsent)
        }),
        counter("sixhop_unasked_datagrams", "Datagrams that a service sent unasked", |_, s| {
            if s.counters.unasked > 0 { count(s.counters.unasked) } else { Vec::new() }
        }),
        counter("sixhop_advertisements", "Neighbour Solicitations answered", |ready, s| {
            if ready.bind == Method::LiveMap { count(s.counters.advertised) } else { Vec::new() }
        }),
        counter("sixhop_dropped_packets", "Received packets that were dropped", |_, s| {
            named("reason", &s.counters.dropped)
        }),
        gauge("sixhop_waiting_packets", "Received packets that no worker has read yet", |_, s| {
            count(s.counters.waiting)
        }),
        counter(
            "sixhop_steering_packets",
            "Packets that the XDP program saw, by its verdict",
            |_, s| named("verdict", &s.counters.steering),
        ),
        counter(
            "sixhop_queue_answered_requests",
            "Requests answered by the worker of a queue",
            |_, s| queues(&s.counters, |queue| queue.answered),
        ),
        counter(
            "sixhop_queue_sent_replies",
            "Replies handed to the kernel by the worker of a queue",
            |_, s| queues(&s.counters, |queue| queue.replies),
        ),
        gauge("sixhop_ring_entries", "Descriptors in the rings of a queue", levels),
        gauge(
            "sixhop_ring_capacity_entries",
            "Capacity of the rings of each queue, in descriptors",
            capacities,
        ),
        counter(
            "sixhop_xdp_rx_dropped_packets",
            "Packets dropped by an AF_XDP socket for reasons other than a full rx ring",
            |_, s| queues(&s.counters, |queue| queue.xdp.rx_dropped),
        ),
        counter(
            "sixhop_xdp_rx_ring_full_packets",
            "Packets dropped by an AF_XDP socket because its rx ring was full",
            |_, s| queues(&s.counters, |queue| queue.xdp.rx_ring_full),
        ),
        counter(
            "sixhop_xdp_fill_ring_empty",
            "Times that the kernel found the fill ring of a queue empty",
            |_, s| queues(&s.counters, |queue| queue.xdp.fill_ring_empty),
        ),
        counter(
            "sixhop_xdp_rx_invalid_descriptors",
            "Bad descriptors in the fill ring of a queue",
            |_, s| queues(&s.counters, |queue| queue.xdp.rx_invalid),
        ),
        counter(
            "sixhop_xdp_tx_invalid_descriptors",
            "Bad descriptors in the tx ring of a queue",
            |_, s| queues(&s.counters, |queue| queue.xdp.tx_invalid),
        ),
        counter_of_frames(
            "sixhop_lost_frames",
            "Frames missing from the census: a bug if not 0",
            |_, s| count(s.counters.frames_lost),
        ),
        counter_of_frames(
            "sixhop_invalid_descriptors",
            "Invalid descriptors from the kernel: a bug if not 0",
            |_, s| count(s.counters.invalid),
        ),
        gauge(
            "sixhop_rotation_lag_seconds",
            "Delay between the due time and the end of the last address change",
            |_, s| s.counters.rotation_lag_seconds.map_or(vec![], one),
        ),
    ];

const fn counter(
    name: &'static str,
    help: &'static str,
    values: fn(&Ready, &Stats) -> Values,
) -> Metric {
    Metric { name, counter: true, of_frames: false, help, values }
}

/// A counter only for engines that share frames with the kernel.
const fn counter_of_frames(
    name: &'static str,
    help: &'static str,
    values: fn(&Ready, &Stats) -> Values,
) -> Metric {
    Metric { name, counter: true, of_frames: true, help, values }
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    values: fn(&Ready, &Stats) -> Values,
) -> Metric {
    Metric { name, counter: false, of_frames: false, help, values }
}

/// The name, type and help text of each metric, as shown.
#[doc(hidden)]
pub fn descriptions() -> impl Iterator<Item = (String, &'static str, &'static str)> {
    METRICS.iter().map(|metric| match metric.counter {
        true => (format!("{}_total", metric.name), "counter", metric.help),
        false => (metric.name.to_owned(), "gauge", metric.help),
    })
}

fn one(value: f64) -> Values {
    vec![(vec![], value)]
}

fn count(value: u64) -> Values {
    one(value as f64)
}

fn named<'a>(
    label: &'static str,
    counts: impl IntoIterator<Item = (&'a String, &'a u64)>,
) -> Values {
    counts.into_iter().map(|(name, count)| (vec![(label, name.clone())], *count as f64)).collect()
}

fn queues(counters: &Counters, value: fn(&QueueCounters) -> u64) -> Values {
    let queue =
        |queue: &QueueCounters| (vec![("queue", queue.queue.to_string())], value(queue) as f64);
    counters.queues.iter().map(queue).collect()
}

fn levels(_: &Ready, stats: &Stats) -> Values {
    let ring = |queue: &QueueCounters| {
        let (number, levels) = (queue.queue.to_string(), queue.levels);
        let rings = [
            ("fill", levels.fill),
            ("rx", levels.rx),
            ("tx", levels.tx),
            ("completion", levels.completion),
        ];
        rings.map(|(ring, level)| {
            (vec![("queue", number.clone()), ("ring", ring.to_owned())], f64::from(level))
        })
    };
    stats.counters.queues.iter().flat_map(ring).collect()
}

fn capacities(ready: &Ready, _: &Stats) -> Values {
    let Some(sizes) = ready.modes.rings else { return vec![] };
    let rings = [
        ("fill", sizes.fill),
        ("rx", sizes.rx),
        ("tx", sizes.tx),
        ("completion", sizes.completion),
    ];
    rings.map(|(ring, size)| (vec![("ring", ring.to_owned())], f64::from(size))).into()
}

fn info(ready: &Ready, _: &Stats) -> Values {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("interface", ready.interface.clone()),
        ("engine", or_none(ready.engine.map(|engine| engine.to_string()))),
        ("bind", ready.bind.to_string()),
        ("attach", or_none(ready.modes.attach.map(|attach| attach.to_string()))),
        ("copy", or_none(ready.modes.copy.map(|copy| copy.to_string()))),
        ("sandbox", ready.sandbox.to_string()),
    ];
    vec![(labels, 1.0)]
}

/// The latest report.
#[derive(Debug, Clone)]
pub struct Board {
    last: Arc<Mutex<(Ready, Stats)>>,
    has_frames: bool,
}

impl Board {
    /// A board without statistics so far. `has_frames`: whether the engine shares frames with the
    /// kernel.
    #[must_use]
    pub fn new(ready: Ready, has_frames: bool) -> Self {
        Self { last: Arc::new(Mutex::new((ready, Stats::default()))), has_frames }
    }

    /// Replaces the statistics.
    pub fn show(&self, stats: &Stats) {
        self.last().1 = stats.clone();
    }

    /// Sets the interface's name, after it was renamed.
    pub fn rename(&self, interface: String) {
        self.last().0.interface = interface;
    }

    fn last(&self) -> MutexGuard<'_, (Ready, Stats)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The metrics, as text.
    ///
    /// # Errors
    /// When formatting fails.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self.clone()));
        let mut text = String::new();
        prometheus_text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Board {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let last = self.last().clone();
        for metric in METRICS.iter().filter(|metric| self.has_frames || !metric.of_frames) {
            let values = (metric.values)(&last.0, &last.1);
            if values.is_empty() {
                continue;
            }
            let kind = if metric.counter { MetricType::Counter } else { MetricType::Gauge };
            let mut described = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
            for (labels, value) in values {
                let encode = |encoder: &mut prometheus_client::encoding::MetricEncoder| {
                    if metric.counter {
                        encoder.encode_counter::<NoLabelSet, _, u64>(&(value as u64), None)
                    } else {
                        encoder.encode_gauge(&value)
                    }
                };
                if labels.is_empty() {
                    encode(&mut described)?;
                } else {
                    encode(&mut described.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// An address and port cannot be bound for metrics.
#[derive(Debug, thiserror::Error)]
#[error("no metrics at {place}")]
pub struct NoMetrics {
    /// The address and port.
    pub place: SocketAddr,
    /// The kernel's error.
    pub source: io::Error,
}

/// A socket that scrapers connect to.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Opens the socket. Nobody gets an answer before [`answer`](Self::answer).
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn open(place: SocketAddr) -> Result<Self, NoMetrics> {
        TcpListener::bind(place).map(Self).map_err(|source| NoMetrics { place, source })
    }

    /// The socket's address.
    ///
    /// # Errors
    /// When the kernel does not report it.
    pub fn place(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers scrapers on a separate thread, which ends with the process.
    pub fn answer(self, board: Board, sandbox: Sandbox) {
        thread::spawn(move || {
            if let Err(error) = sandbox.enter(Role::Metrics) {
                tracing::error!("no metrics: {error:#}");
                return;
            }
            loop {
                match self.0.accept() {
                    Ok((stream, peer)) => match exchange(&stream, &board) {
                        Ok(status) => tracing::debug!(%peer, status, "scraped"),
                        Err(error) => tracing::debug!(%peer, %error, "not scraped"),
                    },
                    // Out of descriptors, or the peer disconnected: retry, but not at once.
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a metrics connection");
                        thread::sleep(EXCHANGE);
                    }
                }
            }
        });
    }
}

/// Reads one request and answers it. Returns the HTTP status.
fn exchange(stream: &TcpStream, board: &Board) -> io::Result<u16> {
    let end = Instant::now() + EXCHANGE;
    let request = receive(stream, end)?;
    let mut words = request.split(|byte| byte.is_ascii_whitespace());
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split(|byte| *byte == b'?').next().unwrap_or_default();
    let (status, reason, kind, body) = match (method, path) {
        (b"GET" | b"HEAD", b"/metrics") => {
            (200, "OK", prometheus_text::CONTENT_TYPE, board.text().map_err(io::Error::other)?)
        }
        (b"GET" | b"HEAD", b"/") => (200, "OK", "text/plain", "sixhop: see /metrics\n".to_owned()),
        (b"GET" | b"HEAD", _) => {
            (404, "Not Found", "text/plain", "there is only /metrics\n".to_owned())
        }
        _ => (405, "Method Not Allowed", "text/plain", "GET and HEAD only\n".to_owned()),
    };
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let mut answer = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: \
         {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if method != b"HEAD" {
        answer += &body;
    }
    send(stream, answer.as_bytes(), end)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    Ok(status)
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Reads everything up to the empty line.
fn receive(mut stream: &TcpStream, end: Instant) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut part = [0; REQUEST];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        if request.len() >= REQUEST {
            return Err(io::Error::other("a request that is too long"));
        }
        stream.set_read_timeout(Some(left(end)?))?;
        let room = REQUEST - request.len();
        match stream.read(&mut part[..room])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => request.extend_from_slice(&part[..length]),
        }
    }
    Ok(request)
}

fn send(mut stream: &TcpStream, mut bytes: &[u8], end: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(end)?))?;
        let sent = stream.write(bytes)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_place_is_on_loopback_unless_it_says_otherwise() {
        assert_eq!(place("9354").unwrap(), "[::1]:9354".parse().unwrap());
        assert_eq!(place("192.0.2.1:80").unwrap(), "192.0.2.1:80".parse().unwrap());
        assert_eq!(place("[2001:db8::1]:80").unwrap(), "[2001:db8::1]:80".parse().unwrap());
        for text in ["", "x", "70000", "::1", "localhost:1"] {
            assert!(place(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_those_of_the_conventions_and_of_the_documentation() {
        let documentation = include_str!("../../docs/operations.md");
        let names: BTreeSet<_> = descriptions().map(|(name, ..)| name).collect();
        assert_eq!(names.len(), METRICS.len());
        for (name, kind, help) in descriptions() {
            assert!(
                name.starts_with("sixhop_") && (kind == "counter") == name.ends_with("_total"),
                "{name}"
            );
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            let row = documentation.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            assert!(
                row.is_some_and(|row| row.contains(kind) && row.contains(help)),
                "{name} is not documented: {row:?}"
            );
        }
        for line in documentation.lines().filter(|line| line.starts_with("| `sixhop_")) {
            let name = line.split('`').nth(1).unwrap();
            assert!(names.contains(name), "{name} is documented but does not exist");
        }
    }
}
