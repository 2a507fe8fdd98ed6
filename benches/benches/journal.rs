//! The journal on a real disk: a group of 1,000 rows encoded, written and synced before the
//! answer, by one caller at a time and by sixteen at once.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run should stop")]

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kymo_benches::rows;
use kymo_kernel::env::real;
use kymo_kernel::ids::{Epoch, PartitionId, TableId};
use kymo_kernel::message::Durability;
use kymo_kernel::storage::journal::local::LocalLog;
use kymo_kernel::storage::journal::{Drive, Limits};
use kymo_kernel::storage::log::{DurableLog, LogWriter, Record, RecordGroup};
use kymo_kernel::storage::poison::Poison;

const ROWS: usize = 1000;

/// Appends so many groups at once and waits for all answers.
fn append(log: &dyn LogWriter, batch: &arrow::array::RecordBatch, groups: usize) {
    let (done, answers) = sync_channel(groups);
    for _ in 0..groups {
        let record = Record::encode(TableId(1), 1, batch).unwrap();
        let done = done.clone();
        log.append(
            RecordGroup::of(record),
            Durability::EveryWrite,
            Box::new(move |result| done.send(result).unwrap()),
        );
    }
    for _ in 0..groups {
        answers.recv().unwrap().unwrap();
    }
}

fn synced(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits {
        file_bytes: 64 << 20,
        queue_bytes: 64 << 20,
        max_record_bytes: 64 << 20,
        period: Duration::from_millis(100),
    };
    let log = LocalLog::new(
        real::env(),
        folder.path().join("wal"),
        limits,
        Drive::Thread,
        Poison::default(),
    );
    let writer = log.open(PartitionId::ONLY, Epoch(1)).unwrap();
    let (_, batch) = rows::batch(ROWS);

    let mut group = criterion.benchmark_group("journal, synced");
    group.measurement_time(Duration::from_secs(3)).sample_size(20);
    for groups in [1, 16] {
        group.throughput(Throughput::Elements((groups * ROWS) as u64));
        group.bench_function(format!("{groups} groups of {ROWS} rows"), |bencher| {
            bencher.iter(|| append(writer.as_ref(), &batch, groups));
        });
    }
    group.finish();
}

criterion_group!(benches, synced);
criterion_main!(benches);
