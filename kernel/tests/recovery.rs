//! Recovery at size: what opening takes does not grow with what a store has been through.
//!
//! These tests hold the reasons: a store comes to checkpoints, and what was flushed is not replayed.
//! `cargo run --release -p kymo-benches --bin recovery -- segments journal` measures.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod scattered;
    pub mod store;
    pub mod stored;
    pub mod table;
}

use kit::scattered::scatter;
use kit::store::{files, open, settings};
use kit::stored::stored_rows;
use kit::table::{Table, definition, rows};
use kymo_kernel::env::real;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::message::Durability;
use kymo_kernel::schema::TableDef;
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
    let edits = files(&sim, "meta/log").len();
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
    write(&store, &def, 50, 100);
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
    let mut table = Table::create(&store, "t").scattered();
    for at in 0..100 {
        table.append(at * 20, 20).unwrap();
    }
    table.flush().unwrap();
    store.close();
    drop((table, store));
    let store = open(&sim, &settings()).unwrap();
    assert_eq!(store.recovered().len(), 0);
    assert_eq!(stored_rows(&store, "t"), 2000);
    drop(Table::reclaim(&store, "t"));
}

/// Journals so many records.
fn write(store: &Store, def: &TableDef, records: i64, count: i64) {
    for at in 0..records {
        let batch = rows(def, at * count..(at + 1) * count, scatter);
        let record = Record::encode(def.id, 1, &batch).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |outcome: kymo_kernel::Result<_>| sender.send(outcome).unwrap();
        store.log().append(RecordGroup::of(record), Durability::EveryWrite, Box::new(done));
        receiver.recv().unwrap().unwrap();
    }
}
