//! Merging four segments of 25,000 rows each, thoroughly encoded: whose rows take turns, so that
//! all are decoded, and whose series are their own, so that row groups are copied as bytes.
//! Before each the bytes that go in and come out are printed.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::sync::Arc;

use arrow::array::{ArrayRef, TimestampNanosecondArray};
use arrow::array::{DictionaryArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::Int32Type;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kymo_config::settings::{Compaction, Segment};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::real;
use kymo_kernel::ids::{ColumnId, Epoch, PartitionId, Position, Seq, TableId};
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use kymo_kernel::storage::compact::{self, Job};
use kymo_kernel::storage::segment::{LocalSegments, Target, flush};
use kymo_kernel::storage::version::{SegmentFiles, TableState};

const SEGMENTS: i64 = 4;
const HOSTS: i64 = 50;
const ROWS: i64 = 25_000;

fn table() -> TableDef {
    let columns = vec![
        Column::new(ColumnId(1), "host", ColumnKind::Tag, FieldType::Text),
        Column::new(ColumnId(2), "time", ColumnKind::Time, FieldType::Timestamp),
        Column::new(ColumnId(3), "usage", ColumnKind::Field, FieldType::Float64),
        Column::new(ColumnId(4), "count", ColumnKind::Field, FieldType::Int64),
    ];
    TableDef {
        id: TableId(1),
        name: TableName::new("kymo", "cpu"),
        schema: TableSchema { version: 1, columns },
        options: TableOptions { append_only: false, window_ns: 1 << 60, ..TableOptions::default() },
    }
}

/// The rows of one segment: of hosts that all have, or of its own.
fn batch(segment: i64, own: bool) -> RecordBatch {
    let hosts = (0..ROWS).map(|row| row % HOSTS + if own { segment * HOSTS } else { 0 });
    let times = (0..ROWS).map(|row| (row / HOSTS * SEGMENTS + segment) * 1_000_000_000);
    let hosts: DictionaryArray<Int32Type> = hosts
        .map(|host| format!("host{host:05}"))
        .collect::<Vec<_>>()
        .iter()
        .map(|host| Some(host.as_str()))
        .collect();
    let usage: Float64Array =
        (0..ROWS).map(|row| Some((row * 7919 % 1000) as f64 / 10.0)).collect();
    let count: Int64Array = (0..ROWS).map(Some).collect();
    let times = TimestampNanosecondArray::from_iter_values(times).with_timezone("+00:00");
    let columns: Vec<ArrayRef> =
        vec![Arc::new(hosts), Arc::new(times), Arc::new(usage), Arc::new(count)];
    RecordBatch::try_new(table().schema.arrow(), columns).unwrap()
}

/// Four segments that were merged once, and the job of merging them.
fn prepare(target: &Target, own: bool) -> Job {
    let files = SegmentFiles::new(target.store.clone(), 64 << 20);
    let at = |seq: i64| Position {
        partition: PartitionId::ONLY,
        epoch: Epoch(1),
        seq: Seq(seq.unsigned_abs()),
    };
    let (def, cancel) = (Arc::new(table()), CancelToken::new());
    let mut state = TableState::open(def.clone(), [], at(0), files);
    let settings = Compaction { min_segments: 100, ..Compaction::default() };
    let mut ready: Vec<Arc<_>> = Vec::new();
    for segment in 0..SEGMENTS {
        state.apply(at(segment + 1), batch(segment, own)).unwrap();
        let frozen = state.freeze().unwrap();
        let flushed = flush(target, &def, &frozen, &cancel).unwrap();
        state.flushed(&frozen, flushed.into_iter().map(Arc::new)).unwrap();
        let mut job = compact::pick(&state.cell().load(), &settings, i64::MAX).unwrap();
        job.inputs = job.inputs.split_off(job.inputs.len() - 1);
        let merged = compact::run(&job, target, &cancel, &mut |_| {}).unwrap();
        ready.push(Arc::new(merged.segment.unwrap()));
        state.replaced(&job.input_ids(), [ready[ready.len() - 1].clone()]).unwrap();
    }
    compact::pick(&state.cell().load(), &settings, i64::MAX).unwrap()
}

fn merge(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let env = real::env();
    let store = Arc::new(LocalSegments::new(env.disk.clone(), folder.path().to_owned()));
    // Row groups as small as the segments, so that what is measured is more than one of them.
    let settings = Segment { row_group_rows: 10_000, ..Segment::default() };
    let target = Target { store, env, settings };
    let cancel = CancelToken::new();
    let mut group = criterion.benchmark_group("merge");
    group.throughput(Throughput::Elements((SEGMENTS * ROWS).unsigned_abs())).sample_size(10);
    for (name, own) in [("rows in turns", false), ("series of their own", true)] {
        let job = prepare(&target, own);
        let merged = compact::run(&job, &target, &cancel, &mut |_| {}).unwrap();
        let bytes = merged.segment.map(|segment| segment.bytes).unwrap_or_default();
        println!("{name}: {} bytes in, {bytes} out, {} rows copied", job.bytes(), merged.copied);
        group.bench_function(name, |bencher| {
            bencher.iter(|| compact::run(&job, &target, &cancel, &mut |_| {}).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, merge);
criterion_main!(benches);
