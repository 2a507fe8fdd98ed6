//! Recovery at size: what opening takes does not grow with what a store has been through.
//!
//! These tests hold the reasons: a store comes to checkpoints, and what was flushed is not replayed.
//! `cargo run --release -p kymo-benches --bin recovery -- segments journal` measures.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit;

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{Int32Type, Schema};
use kit::{Table, definition, open, reclaim, settings, stored_rows};
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
