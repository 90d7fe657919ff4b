//! The cost of computing an address: `cargo bench --bench address`. Times are per address. The
//! paper's worst figure, for a counter, is 48 ns.

use std::hint::black_box;
use std::net::Ipv6Addr;

use criterion::{Criterion, Throughput};
use sixhop::address::mt6d::{Clock, Subnet, Timetable};
use sixhop::address::{Pool, Prefix, Secret, fill};

/// Enough to hide the start of a thread, and few enough for a core's cache: 1 MiB.
const COUNT: u64 = 1 << 16;

fn address(criterion: &mut Criterion) {
    let prefix: Prefix = "2001:db8:1::/64".parse().expect("a prefix");
    let pool = Pool::new(prefix, COUNT, 1).expect("the prefix has room");
    let subnet = Subnet::new(prefix).expect("a /64");
    let key = [7; 32];
    let mut addresses = vec![Ipv6Addr::UNSPECIFIED; COUNT as usize];

    let mut group = criterion.benchmark_group("address");
    group.throughput(Throughput::Elements(1));
    let mut list = |name: &str, threads: usize, address: &(dyn Fn(u64) -> Ipv6Addr + Sync)| {
        group.bench_function(format!("{name}, {threads} thread(s)"), |bencher| {
            bencher.iter_custom(|iterations| {
                let start = std::time::Instant::now();
                let fills = iterations.div_ceil(COUNT);
                for _ in 0..fills {
                    fill(black_box(&mut addresses), threads, address);
                }
                start.elapsed().mul_f64(iterations as f64 / (fills * COUNT) as f64)
            });
        });
    };
    for threads in [1, 2] {
        list("of a pool", threads, &|index| pool.address(index));
        // One client per address: its number is its seed identifier.
        list("MT6D, 32-byte key", threads, &|client| subnet.address(client, &key, 140_000_000));
    }
    // Touches all 40 bytes of a client, and never the same client twice in a row.
    let secret = Secret::new(vec![7; 32]).expect("long enough");
    let clock = Clock::new(std::time::Duration::from_secs(10)).expect("long enough");
    group.bench_function("seed identifier and key of a client", |bencher| {
        bencher.iter_custom(|iterations| {
            let start = std::time::Instant::now();
            black_box(Timetable::new(subnet, clock, &secret, iterations as u32, 1));
            start.elapsed()
        });
    });
    group.bench_function("number of a pool's address", |bencher| {
        let address = pool.address(77);
        bencher.iter(|| pool.index_of(black_box(address)));
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    address(&mut criterion);
    criterion.final_summary();
}
