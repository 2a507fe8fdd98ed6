//! Recovery at size: what opening takes does not grow with what a store has been through.
//!
//! The small tests hold the reasons: opening reads no segment, no history, and no edit twice. The
//! large ones measure; they are run by hand, in a release build:
//! `cargo test --release -p kymo-kernel --test recovery -- --ignored --nocapture --test-threads 1`.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]
#![expect(clippy::disallowed_methods, reason = "what is measured is this machine")]

mod kit;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{Int32Type, Schema};
use kit::{Table, definition, open, reclaim, settings, stored_rows};
use kymo_config::Settings;
use kymo_kernel::env::real;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::message::Durability;
use kymo_kernel::schema::Column;
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::{Progress, Store};

#[test]
fn servers_that_live_shortly_come_to_a_checkpoint_all_the_same() {
    let sim = Sim::new(1);
    for at in 0..40 {
        let store = open(&sim, &settings()).unwrap();
        store.commit(vec![Op::CreateDatabase { name: format!("d{at}") }]).unwrap();
    }
    let edits = sim.disk.files().into_iter().filter(|path| path.starts_with("/store/meta/log"));
    let edits = edits.count();
    // A simulated store makes one after 8 edits, and keeps the edits since the one before.
    assert!(edits <= 16, "{edits} edits are read at the next start");
    assert!(open(&sim, &settings()).unwrap().catalog().databases.contains("d39"));
}

#[test]
fn progress_is_told_in_bytes_of_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(real::env(), folder.path().into(), &settings(), &mut |_| {}).unwrap();
    let def = definition(store.catalog().next_table, "t");
    store.commit(vec![Op::PutTable { def: def.clone() }]).unwrap();
    write(&store, &def, 50, 100, Durability::EveryWrite);
    store.close();
    drop(store);
    let mut told: Vec<Progress> = Vec::new();
    let store =
        Store::open(real::env(), folder.path().into(), &settings(), &mut |at| told.push(at));
    drop(store.unwrap());
    let last = told.last().unwrap();
    assert_eq!((last.records, last.rows, last.bytes), (50, 5000, last.total_bytes));
    assert!(last.total_bytes > 50_000, "{last:?}");
}

#[test]
fn a_store_that_was_flushed_before_it_stopped_replays_nothing() {
    let sim = Sim::new(2);
    let store = open(&sim, &settings()).unwrap();
    let mut table = Table::create(&store, "t");
    for at in 0..100 {
        table.append_scattered(at * 20, 20).unwrap();
    }
    table.flush().unwrap();
    store.close();
    drop((table, store));
    let store = open(&sim, &settings()).unwrap();
    assert_eq!(store.recovered().len(), 0);
    assert_eq!(stored_rows(&store, "t"), 2000);
    drop(reclaim(&store, "t"));
}

/// Rows whose values do not compress.
fn batch(columns: &[Column], times: impl Iterator<Item = i64> + Clone) -> RecordBatch {
    let scatter = |time: i64| {
        let mixed = (time ^ (time << 17)).wrapping_mul(0x1e37_79b9_7f4a_7c15);
        (mixed ^ (mixed >> 29)).wrapping_mul(0x3f58_476d_1ce4_e5b9)
    };
    let hosts: DictionaryArray<Int32Type> = times.clone().map(|_| "a").collect();
    let values: Int64Array = times.clone().map(scatter).map(Some).collect();
    let times = TimestampNanosecondArray::from_iter_values(times).with_timezone("+00:00");
    let columns_of: Vec<ArrayRef> = vec![Arc::new(hosts), Arc::new(times), Arc::new(values)];
    let fields: Vec<_> = columns.iter().map(Column::arrow).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns_of).unwrap()
}

/// Journals so many records, as fast as the journal takes them; the last one durably.
fn write(
    store: &Store,
    def: &kymo_kernel::schema::TableDef,
    records: i64,
    rows: i64,
    durability: Durability,
) {
    for at in 0..records {
        let rows = batch(&def.schema.columns, at * rows..(at + 1) * rows);
        let record = Record::encode(def.id, 1, &rows).unwrap();
        let durability = if at + 1 == records { Durability::EveryWrite } else { durability };
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |outcome: kymo_kernel::Result<_>| sender.send(outcome).unwrap();
        store.log().append(RecordGroup::of(record), durability, Box::new(done));
        receiver.recv().unwrap().unwrap();
    }
}

/// Bytes that the process has, and the most that it had since the last reset.
fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    (field("VmRSS:"), field("VmHWM:"))
}

fn timed_open(folder: &Path, settings: &Settings) -> (Arc<Store>, Duration) {
    let start = Instant::now();
    let mut shown = |at: Progress| println!("  {at:?}");
    let store = Store::open(real::env(), folder.into(), settings, &mut shown).unwrap();
    (store, start.elapsed())
}

const TABLES: u64 = 10;
const WINDOWS: i64 = 1000;

#[test]
#[ignore = "large: see above"]
fn ten_thousand_segments_open_within_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = timed_open(folder.path(), &Settings::default());
    for table in 0..TABLES {
        let def = definition(store.catalog().next_table, &format!("t{table}"));
        let window = def.options.window_ns;
        store.commit(vec![Op::PutTable { def: def.clone() }]).unwrap();
        let mut state = store.claim(def.id).unwrap();
        // A row in each window of time becomes a segment of its own.
        let rows = batch(&def.schema.columns, (0..WINDOWS).map(|at| at * window));
        let record = Record::encode(def.id, 1, &rows).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |outcome| sender.send(outcome).unwrap();
        store.log().append(RecordGroup::of(record), Durability::EveryWrite, Box::new(done));
        state.apply(receiver.recv().unwrap().unwrap(), rows).unwrap();
        let frozen = state.freeze().unwrap();
        let segments = store.write_frozen(&Arc::new(def.clone()), &frozen).unwrap();
        assert_eq!(segments.len() as i64, WINDOWS);
        let flushed_upto = frozen.span.last;
        // In many edits, as history has it: some are in the checkpoint, and some behind it.
        for piece in segments.chunks(50) {
            let segments = piece.to_vec();
            let op = Op::AddSegments { table: def.id, segments, flushed_upto };
            store.commit(vec![op]).unwrap();
        }
    }
    for at in 0..200 {
        store.commit(vec![Op::CreateDatabase { name: format!("d{at}") }]).unwrap();
    }
    assert_eq!(store.stats().segments as i64, TABLES as i64 * WINDOWS);
    store.close();
    drop(store);
    let edits = std::fs::read_dir(folder.path().join("meta/log")).unwrap().count();
    for round in 0..3 {
        let (store, took) = timed_open(folder.path(), &Settings::default());
        println!("round {round}: {} segments, {edits} edits: {took:?}", store.stats().segments);
        assert!(took < Duration::from_secs(1), "{took:?}");
        store.close();
    }
}

#[test]
#[ignore = "large: see above"]
fn a_journal_beyond_memory_replays_within_its_bound() {
    const JOURNAL: u64 = 2 << 30;
    let folder: PathBuf = tempfile::tempdir().unwrap().keep();
    let settings = Settings::default();
    let (store, _) = timed_open(&folder, &settings);
    let mut rows = 0;
    for table in 0.. {
        let def = definition(store.catalog().next_table, &format!("t{table}"));
        store.commit(vec![Op::PutTable { def: def.clone() }]).unwrap();
        write(&store, &def, 300, 5000, Durability::None);
        rows += 300 * 5000;
        if store.stats().log_written_bytes >= JOURNAL {
            break;
        }
    }
    let bytes = store.stats().log_written_bytes;
    store.close();
    drop(store);
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, _) = memory();
    let (store, took) = timed_open(&folder, &settings);
    let (_, peak) = memory();
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "{} MiB of journal, {rows} rows: {took:?}, {} MiB before, peak {} MiB, bound {} MiB",
        mib(bytes),
        mib(before),
        mib(peak),
        mib(settings.journal.replay_bytes)
    );
    store.close();
    drop(store);
    std::fs::remove_dir_all(&folder).unwrap();
    // What is read, decoded and encoded at one time comes on top.
    let extra = 128 << 20;
    assert!(peak - before <= settings.journal.replay_bytes + extra);
}
