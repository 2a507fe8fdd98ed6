//! Line protocol into typed columns: 10,000 TSBS-like lines, on one thread.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kymo::line_protocol::{Precision, parse};
use kymo_benches::rows::{self, NoTables};
use kymo_benches::tsbs::{Generator, Shape};

fn lines(criterion: &mut Criterion) {
    let mut body = Vec::new();
    let rows = Generator::new(Shape::usual()).lines(&mut body, 10_000);
    let mut group = criterion.benchmark_group("line protocol");
    group.throughput(Throughput::Elements(rows as u64));
    group.bench_function("parse", |bencher| {
        let options = rows::options(Precision::Nanoseconds);
        bencher.iter(|| parse(&body, &NoTables, &options).unwrap());
    });
    group.finish();
}

criterion_group!(benches, lines);
criterion_main!(benches);
