//! The worker's whole loop over rings in plain memory, without the kernel: `cargo bench --bench
//! worker`.
//!
//! Timed: reaping completions, receiving, validating, deciding, rewriting, and a tx descriptor for
//! each reply. Not timed: the kernel's part, which a model does between two turns of the worker.

use std::io;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use sixhop::address::Pool;
use sixhop::engine::Worker;
use sixhop::policy::Handler;
use sixhop::service::Echo;
use sixhop::wire::{Endpoints, Stamp, Template};
use sixhop::xdp::model::{self, Model};
use sixhop::xdp::{Doorbell, Rings};

/// Requests per turn: a full batch.
const BATCH: u64 = 64;

/// The doorbell while timing: it does nothing, and the kernel's part follows later.
struct Silent;

impl Doorbell for Silent {
    fn wake_sender(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn wake_receiver(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn sleep(&mut self, _: Duration) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    worker: Worker,
    rings: Rings,
    model: Model,
    requests: Vec<Vec<u8>>,
}

impl Bench {
    fn new(replies: u16) -> Self {
        let pool = Pool::new("2001:db8:1::/64".parse().expect("a prefix"), 2000, 1)
            .expect("the prefix has room");
        let ends = Endpoints {
            source_mac: [2; 6],
            destination_mac: [4; 6],
            source: "2001:db8:1::1".parse().expect("an address"),
            source_port: 50_000,
            service_port: 3540,
        };
        let template = Template::new(&ends, 32).expect("32 bytes hold a stamp");
        let requests = (0..BATCH).map(|sequence| {
            let mut frame = vec![0; 94];
            template
                .write(&mut frame, pool.address(sequence * 31), Stamp { run: 1, sequence })
                .expect("the buffer has room");
            frame
        });
        let requests = requests.collect();
        let (mut rings, frames, mut model) =
            model::rings(4096, 2048, 4096, 0).expect("memory for the rings");
        for frame in frames {
            rings.fill(frame).expect("the fill ring has room");
        }
        rings.publish();
        assert_eq!(rings.census().in_hand(), 0);
        model.keep = false;
        Self {
            worker: Worker::new(Handler::new(3540, pool, vec![]), Echo::new(replies)),
            rings,
            model,
            requests,
        }
    }

    /// Serves at least `count` requests. Returns the worker's time, and how many they were.
    fn answer(&mut self, count: u64) -> (Duration, u64) {
        let mut time = Duration::ZERO;
        let mut done = 0;
        while done < count {
            for request in &self.requests {
                assert!(self.model.deliver(request));
            }
            let start = Instant::now();
            self.worker.turn(&mut self.rings, &mut Silent).expect("silent");
            time += start.elapsed();
            self.model.wake_sender().expect("a model");
            done += BATCH;
        }
        (time, done)
    }
}

fn worker(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("worker loop");
    group.throughput(Throughput::Elements(1));
    for replies in [1, 10] {
        let mut bench = Bench::new(replies);
        group.bench_function(format!("a request with {replies} replies"), |bencher| {
            bencher.iter_custom(|count| {
                let (time, done) = bench.answer(count);
                time.mul_f64(count as f64 / done as f64)
            });
        });
        group.bench_function(format!("a reply of {replies}"), |bencher| {
            bencher.iter_custom(|count| {
                let (time, done) = bench.answer(count.div_ceil(replies.into()));
                time.mul_f64(count as f64 / (done * u64::from(replies)) as f64)
            });
        });
        let tally = bench.worker.tally();
        assert_eq!(tally.replies, tally.answered * u64::from(replies));
        assert_eq!(bench.worker.missing(&bench.rings), 0);
    }
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    worker(&mut criterion);
    criterion.final_summary();
}
