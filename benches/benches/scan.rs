//! From memory to a segment and back: sorting 100,000 rows that came time by time, and
//! scanning the segment they were written to, whole and one column only.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kymo_benches::rows;
use kymo_kernel::env::real;
use kymo_kernel::ids::Position;
use kymo_kernel::storage::segment::{
    Encoding, LocalSegments, Origin, Scan, SegmentReader, SegmentWriter, Target,
};
use kymo_kernel::storage::sort::{project, sort_rows, window_start};

const ROWS: usize = 100_000;

fn sort_and_scan(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let (table, batch) = rows::batch(ROWS);
    let schema = Arc::new(table.schema.clone());

    let mut group = criterion.benchmark_group("segment");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);
    group.bench_function("sort", |bencher| {
        bencher.iter(|| sort_rows(schema.clone(), vec![batch.clone()], true).unwrap());
    });

    let env = real::env();
    let store = Arc::new(LocalSegments::new(env.disk.clone(), folder.path().to_owned()));
    let settings = kymo_config::settings::Segment::default();
    let target = Target { store: store.clone(), env, settings };
    let sorted = Arc::new(sort_rows(schema, vec![batch], true).unwrap());
    let columns = table.schema.arrow();
    let window = window_start(sorted.time().first, table.options.window_ns);
    let mut writer =
        SegmentWriter::create(&target, &table, window, columns.clone(), Encoding::Thorough)
            .unwrap();
    for rows in sorted.all_columns(8192) {
        writer.write(rows.unwrap()).unwrap();
    }
    let positions = (Position::default(), Position::default());
    let meta = Arc::new(writer.finish(Origin { positions, level: 0, late: None }).unwrap());
    let reader = SegmentReader::open(store.as_ref(), &meta).unwrap();

    let one = project(&columns, ["usage_user"]);
    for (name, output) in [("scan all columns", columns), ("scan one column", one)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let scan = Scan::all(output.clone(), 8192);
                let rows: usize =
                    reader.scan(&scan).unwrap().map(|batch| batch.unwrap().num_rows()).sum();
                assert_eq!(rows, ROWS);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sort_and_scan);
criterion_main!(benches);
