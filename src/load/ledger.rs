//! Matches replies to requests and measures their response times. No I/O and no clock: the caller
//! passes the time in.
//!
//! The ledger stores one byte for each request, its count of replies. The run and the sequence
//! number give the destination; the schedule gives the due time.

use std::net::Ipv6Addr;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2DeflateSerializer};

use super::schedule::SendSchedule;
use crate::address::Pool;
use crate::address::mt6d::Timetable;
use crate::events::Percentiles;
use crate::wire::Stamp;

pub use crate::events::Outcome;

/// Where requests go.
#[derive(Debug, Clone)]
pub enum Aim {
    /// Draws each destination from the pool, uniformly.
    Pool(Pool),
    /// Clients ask in turn, each on its address at the time when the request is due. The `u64` is
    /// the start of the run, in nanoseconds since 1970 by this machine's clock.
    Moving(Arc<Timetable>, u64),
    /// The first client asks on its address in this step, then in each later one.
    Steps(Arc<Timetable>, u64),
}

impl From<Pool> for Aim {
    fn from(pool: Pool) -> Self {
        Self::Pool(pool)
    }
}

/// The books of one run.
pub struct Ledger {
    run: u64,
    aim: Aim,
    schedule: SendSchedule,
    replies: u8,
    payload: usize,
    /// Replies to each request, up to `replies`.
    counts: Vec<u8>,
    first: Times,
    last: Times,
    outcome: Outcome,
}

impl Ledger {
    /// Expects `replies` (at least 1) replies to each request of `schedule`, which carries
    /// `payload` bytes to an address chosen by `aim`. `run` tells this run from others.
    pub fn new(
        run: u64,
        aim: impl Into<Aim>,
        schedule: SendSchedule,
        requests: u64,
        replies: u8,
        payload: usize,
    ) -> Self {
        Self {
            run,
            aim: aim.into(),
            schedule,
            replies: replies.max(1),
            payload,
            counts: vec![0; usize::try_from(requests).unwrap_or(usize::MAX)],
            first: Times::new(),
            last: Times::new(),
            outcome: Outcome::default(),
        }
    }

    /// The stamp in the payload of request `sequence`.
    #[inline]
    pub fn stamp(&self, sequence: u64) -> Stamp {
        Stamp { run: self.run, sequence }
    }

    /// The destination of request `sequence`. Recomputed for each reply rather than stored.
    #[inline]
    pub fn destination(&self, sequence: u64) -> Ipv6Addr {
        match &self.aim {
            Aim::Pool(pool) => pool.address(self.draw(sequence, pool.count())),
            Aim::Moving(timetable, start) => {
                let step = timetable.clock().step(start + self.schedule.due(sequence));
                timetable.address(sequence % timetable.clients(), step)
            }
            Aim::Steps(timetable, first) => timetable.address(0, first + sequence),
        }
    }

    /// A pseudorandom number below `count`, fixed by the run and `sequence`.
    #[inline]
    fn draw(&self, sequence: u64, count: u64) -> u64 {
        // MurmurHash3's finalizer scatters the sequence number; the multiplication maps it to
        // 0..count.
        let mut x = sequence ^ self.run;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        x ^= x >> 33;
        ((u128::from(x) * u128::from(count)) >> 64) as u64
    }

    /// Records an intact datagram from the service port of `source`, received `now` nanoseconds
    /// after the start, when `sent` requests had left.
    #[inline]
    pub fn reply(&mut self, source: Ipv6Addr, payload: &[u8], now: u64, sent: u64) {
        let Some(stamp) = Stamp::read(payload) else {
            self.outcome.corrupt += 1;
            return;
        };
        if stamp.run != self.run {
            self.outcome.stragglers += 1;
            return;
        }
        if stamp.sequence >= sent || payload.len() != self.payload || !stamp.is_intact(payload) {
            self.outcome.corrupt += 1;
            return;
        }
        if source != self.destination(stamp.sequence) {
            self.outcome.wrong_source += 1;
            return;
        }
        let Some(count) = self.counts.get_mut(stamp.sequence as usize) else {
            self.outcome.corrupt += 1;
            return;
        };
        if *count == self.replies {
            self.outcome.duplicates += 1;
            return;
        }
        *count += 1;
        let count = *count;
        self.outcome.replies += 1;
        let time = now.saturating_sub(self.schedule.due(stamp.sequence));
        if count == 1 {
            self.outcome.answered += 1;
            self.first.record(time);
        }
        if count == self.replies {
            self.outcome.complete += 1;
            self.last.record(time);
        }
    }

    /// Records a damaged packet to the client's port.
    pub fn damaged(&mut self) {
        self.outcome.corrupt += 1;
    }

    /// Records a damaged packet whose checksum was left unfinished.
    pub fn unfinished(&mut self) {
        self.outcome.corrupt += 1;
        self.outcome.unfinished += 1;
    }

    /// Requests that have had all their replies so far.
    #[inline]
    pub fn complete(&self) -> u64 {
        self.outcome.complete
    }

    /// Whether request `sequence` has had a reply.
    pub fn is_answered(&self, sequence: u64) -> bool {
        self.counts.get(sequence as usize).is_some_and(|count| *count > 0)
    }

    /// The totals of the run.
    pub fn close(self) -> Outcome {
        Outcome { first: self.first.summary(), last: self.last.summary(), ..self.outcome }
    }
}

/// Times in nanoseconds: a histogram for the percentiles, and an exact sum for the mean, since a
/// histogram rounds to its buckets.
struct Times {
    histogram: Histogram<u64>,
    sum: u128,
}

impl Times {
    fn new() -> Self {
        // Three significant figures, like wrk2, from 1 ns to one hour: 270 KiB.
        let histogram = Histogram::new_with_bounds(1, 3_600_000_000_000, 3);
        let histogram = histogram.unwrap_or_else(|_| unreachable!("these bounds are allowed"));
        Self { histogram, sum: 0 }
    }

    #[inline]
    fn record(&mut self, nanoseconds: u64) {
        self.histogram.saturating_record(nanoseconds);
        self.sum += u128::from(nanoseconds);
    }

    /// `None` if nothing was recorded.
    fn summary(&self) -> Option<Percentiles> {
        if self.histogram.is_empty() {
            return None;
        }
        let us = |nanoseconds: u64| nanoseconds as f64 / 1000.0;
        let quantile = |q| us(self.histogram.value_at_quantile(q));
        Some(Percentiles {
            mean_us: self.sum as f64 / self.histogram.len() as f64 / 1000.0,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: us(self.histogram.max()),
            histogram: encode(&self.histogram),
        })
    }
}

/// In the format of hdrhistogram's logs.
fn encode(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Fails only when memory runs out.
    match V2DeflateSerializer::new().serialize(histogram, &mut bytes) {
        Ok(_) => BASE64_STANDARD.encode(bytes),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Secret;
    use crate::address::mt6d::{Clock, Subnet};
    use hdrhistogram::serialization::Deserializer;
    use std::time::Duration;

    fn ledger() -> Ledger {
        let pool = Pool::new("2001:db8:1::/64".parse().unwrap(), 50, 1).unwrap();
        Ledger::new(9, pool, SendSchedule::new(1000.0, 100), 100, 2, 32)
    }

    fn payload(stamp: Stamp) -> [u8; 32] {
        let mut payload = [0; 32];
        stamp.write(&mut payload);
        payload
    }

    #[test]
    fn each_kind_of_reply_is_told_from_the_others() {
        let mut ledger = ledger();
        let right = payload(ledger.stamp(3));
        let source = ledger.destination(3);
        ledger.reply(source, &right, 3_500_000, 10); // due at 3 ms: 500 µs
        ledger.reply(source, &right, 4_000_000, 10); // 1 ms
        ledger.reply(source, &right, 5_000_000, 10); // one too many
        ledger.reply("2001:db8:1::77".parse().unwrap(), &payload(ledger.stamp(4)), 6_000_000, 10);
        let mut damaged = right;
        damaged[20] ^= 1;
        ledger.reply(source, &damaged, 6_000_000, 10);
        ledger.reply(source, &right[..31], 6_000_000, 10);
        ledger.reply(source, &right[..8], 6_000_000, 10);
        // Not sent yet.
        ledger.reply(ledger.destination(10), &payload(ledger.stamp(10)), 6_000_000, 10);
        ledger.reply(source, &payload(Stamp { run: 8, sequence: 3 }), 6_000_000, 10);
        ledger.damaged();
        ledger.unfinished();
        let outcome = ledger.close();
        let expected = Outcome {
            answered: 1,
            complete: 1,
            replies: 2,
            duplicates: 1,
            wrong_source: 1,
            corrupt: 6,
            unfinished: 1,
            stragglers: 1,
            first: outcome.first.clone(),
            last: outcome.last.clone(),
        };
        assert_eq!(outcome, expected);
        assert_eq!(outcome.first.unwrap().mean_us, 500.0);
        assert_eq!(outcome.last.unwrap().mean_us, 1000.0);
    }

    #[test]
    fn what_was_not_answered_has_no_times() {
        let mut ledger = ledger();
        // Only the first of two replies: there is no last time.
        let (source, right) = (ledger.destination(3), payload(ledger.stamp(3)));
        ledger.reply(source, &right, 3_000_000, 10);
        let outcome = ledger.close();
        assert!(outcome.first.is_some() && outcome.last.is_none(), "{outcome:?}");
        let json = serde_json::to_value(&outcome).unwrap();
        for field in ["mean_us", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"] {
            assert!(json["last"][field].is_null() && json["first"][field].is_number(), "{json}");
        }
        let read: Outcome = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(read, outcome);
        // As earlier versions wrote it: 0.0 for a missing figure. A measured 0 ns has a histogram.
        let mut old = json;
        for field in ["mean_us", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"] {
            old["last"][field] = 0.0.into();
            old["first"][field] = 0.0.into();
        }
        let read: Outcome = serde_json::from_value(old).unwrap();
        assert!(read.last.is_none() && read.first.is_some(), "{read:?}");
    }

    #[test]
    fn percentiles_and_mean_are_those_of_the_times() {
        let mut times = Times::new();
        for microseconds in 1..=1000 {
            times.record(microseconds * 1000);
        }
        let summary = times.summary().unwrap();
        assert_eq!(summary.mean_us, 500.5);
        for (found, expected) in [
            (summary.p50_us, 500.0),
            (summary.p90_us, 900.0),
            (summary.p99_us, 990.0),
            (summary.p999_us, 999.0),
            (summary.max_us, 1000.0),
        ] {
            assert!(
                (found / expected - 1.0).abs() < 0.002,
                "{found} is not {expected} to three figures"
            );
        }
        // Other programs must be able to decode it.
        let bytes = BASE64_STANDARD.decode(&summary.histogram).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        assert_eq!(read, times.histogram);
        // Every V2 log starts with these bytes.
        assert!(summary.histogram.starts_with("HISTFAAA"), "{}", summary.histogram);
    }

    #[test]
    fn destinations_are_drawn_evenly() {
        let ledger = ledger();
        let Aim::Pool(pool) = &ledger.aim else { panic!("{:?}", ledger.aim) };
        let mut drawn = [0u32; 50];
        for sequence in 0..50_000 {
            drawn[pool.index_of(ledger.destination(sequence)).unwrap() as usize] += 1;
        }
        // 1,000 expected; 7 standard deviations are 221.
        assert!(drawn.iter().all(|count| count.abs_diff(1000) < 221), "{drawn:?}");
    }

    #[test]
    fn clients_ask_in_turn_on_the_address_of_the_moment() {
        let subnet = Subnet::new("2001:db8:1::/64".parse().unwrap()).unwrap();
        let clock = Clock::new(Duration::from_secs(10)).unwrap();
        let secret = Secret::new(vec![7; 32]).unwrap();
        let timetable = Arc::new(Timetable::new(subnet, clock, &secret, 3, 1));
        // One request a second, from 8 s into step 5.
        let aim = Aim::Moving(timetable.clone(), 58_000_000_000);
        let ledger = Ledger::new(9, aim, SendSchedule::new(1.0, 100), 100, 1, 32);
        for (sequence, client, step) in
            [(0, 0, 5), (1, 1, 5), (2, 2, 6), (3, 0, 6), (11, 2, 6), (12, 0, 7)]
        {
            assert_eq!(ledger.destination(sequence), timetable.address(client, step), "{sequence}");
        }
        let ledger =
            Ledger::new(9, Aim::Steps(timetable.clone(), 5), SendSchedule::new(1.0, 9), 9, 1, 32);
        assert_eq!(ledger.destination(3), timetable.address(0, 8));
    }
}
