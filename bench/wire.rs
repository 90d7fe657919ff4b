//! The cost of one request in `wire` and `policy::Handler`: `cargo bench --bench wire`.
//!
//! The frame is that of `compare`: 94 bytes, 32 of them payload. Each reply becomes the next
//! request by swapping its ports, so that little but the work itself is measured.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use sixhop::address::Pool;
use sixhop::policy::Handler;
use sixhop::wire::{Endpoints, Stamp, Template, validate};

fn wire(criterion: &mut Criterion) {
    let pool = Pool::new("2001:db8:1::/64".parse().expect("a prefix"), 2000, 1)
        .expect("the prefix has room");
    let ends = Endpoints {
        source_mac: [2; 6],
        destination_mac: [4; 6],
        source: "2001:db8:1::1".parse().expect("an address"),
        source_port: 50_000,
        service_port: 3540,
    };
    let mut buffer = [0; 2048];
    let stamp = Stamp { run: 1, sequence: 1 };
    let template = Template::new(&ends, 32).expect("32 bytes hold a stamp");
    let length = template.write(&mut buffer, pool.address(7), stamp).expect("the buffer has room");
    let frame = &mut buffer[..length];
    assert_eq!(frame.len(), 94);

    let mut group = criterion.benchmark_group("wire");
    group.throughput(Throughput::Elements(1));
    group.bench_function("validate + rewrite, 94 bytes", |bencher| {
        let (mut port, mut other) = (3540, 50_000);
        bencher.iter(|| {
            let length = validate(black_box(frame), port).map(|request| request.into_reply());
            std::mem::swap(&mut port, &mut other);
            length.expect("a right request")
        });
        if port != 3540 {
            let _ = validate(frame, port).map(|request| request.into_reply());
        }
    });
    let handler = Handler::new(3540, pool, vec![]);
    group.bench_function("validate + decide, 94 bytes", |bencher| {
        bencher.iter(|| {
            let request = validate(black_box(frame), 3540).expect("a right request");
            handler.decide(request.source(), request.source_port(), request.destination())
        });
    });
    group.finish();
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    wire(&mut criterion);
    criterion.final_summary();
}
