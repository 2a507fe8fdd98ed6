//! The store as a whole, one promise a test: the lock, the full disk, the memory bound of the
//! replay, trimming, what is collected and when, damage that is named.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod filled;
    pub mod store;
    pub mod stored;
    pub mod table;
}

use std::time::Duration;

use kit::filled::filled;
use kit::store::{ROOT, files, open, settings};
use kit::stored::stored_rows;
use kit::table::{Table, definition};
use kymo_kernel::Code;
use kymo_kernel::env::sim::{Fault, Operation, Sim};
use kymo_kernel::ids::{Position, TableId};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::Op;

#[test]
fn a_second_process_is_refused_with_the_way_out() {
    let sim = Sim::new(1);
    let first = open(&sim, &settings()).unwrap();
    let refused = open(&sim, &settings()).map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), Code::Locked);
    assert!(refused.message().contains(ROOT) && refused.hint().is_some(), "{refused:?}");
    drop(first);
    open(&sim, &settings()).unwrap();
}

#[test]
fn a_real_folder_opens_writes_and_opens_again() {
    let dir = tempfile::tempdir().unwrap();
    let env = kymo_kernel::env::real::env();
    let root = dir.path().join("data");
    {
        let store = Store::open(env.clone(), root.clone(), &settings(), &mut |_| {}).unwrap();
        let mut table = Table::create(&store, "cpu");
        table.append(0, 100).unwrap();
        table.append(100, 10).unwrap();
        table.flush().unwrap();
        table.append(200, 5).unwrap();
        let refused = Store::open(env.clone(), root.clone(), &settings(), &mut |_| {});
        assert_eq!(refused.map(|_| ()).unwrap_err().code(), Code::Locked);
        store.close();
    }
    let store = Store::open(env, root, &settings(), &mut |_| {}).unwrap();
    assert_eq!(stored_rows(&store, "cpu"), 115);
    assert_eq!(store.epoch().0, 2);
}

#[test]
fn a_full_disk_stops_the_store_and_loses_nothing_acknowledged() {
    let sim = Sim::new(2);
    let store = open(&sim, &settings()).unwrap();
    let mut table = Table::create(&store, "cpu");
    table.append(0, 10).unwrap();
    sim.disk.set_capacity(Some(sim.disk.used() + 2000));
    let mut acknowledged = 10;
    let error = loop {
        match table.append(acknowledged, 10) {
            Ok(_) => acknowledged += 10,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::DiskFull);
    assert!(error.hint().unwrap().contains("make room"), "{error:?}");
    let later = table.append(acknowledged, 10).unwrap_err();
    assert_eq!(later.code(), Code::Poisoned);
    assert_eq!(store.commit(Vec::new()).unwrap_err().code(), Code::Poisoned);
    assert_eq!(store.poisoned().unwrap().code(), Code::DiskFull);
    drop((store, table));
    sim.disk.set_capacity(None);
    sim.disk.crash(2);
    let store = open(&sim, &settings()).unwrap();
    let stored = stored_rows(&store, "cpu");
    assert!(stored == acknowledged as u64 || stored == acknowledged as u64 + 10, "{stored}");
}

#[test]
fn replay_stays_within_its_memory_bound() {
    let sim = Sim::new(3);
    let store = open(&sim, &settings()).unwrap();
    let mut tables = [Table::create(&store, "a"), Table::create(&store, "b")];
    for at in 0..100 {
        tables[at as usize % 2].append(at * 100, 100).unwrap();
    }
    let held: usize = tables.iter().map(|table| table.state.memory_bytes()).sum();
    drop((store, tables));
    let mut bounded = settings();
    bounded.journal.replay_bytes = 20_000;
    assert!(held > 5 * 20_000, "{held}");
    let store = open(&sim, &bounded).unwrap();
    let kept: usize =
        store.recovered().iter().map(|def| store.claim(def.id).unwrap().memory_bytes()).sum();
    assert!(kept <= 20_000, "{kept}");
    assert!(store.stats().segments > 5);
    assert_eq!(stored_rows(&store, "a") + stored_rows(&store, "b"), 10_000);
}

#[test]
fn log_files_go_when_every_table_in_them_is_flushed() {
    let sim = Sim::new(4);
    let store = open(&sim, &settings()).unwrap();
    let (mut a, mut b) = (Table::create(&store, "a"), Table::create(&store, "b"));
    for at in 0..40 {
        a.append(at * 10, 10).unwrap();
        b.append(at * 10, 10).unwrap();
    }
    let before = store.stats().log_files;
    assert!(before > 3);
    a.flush().unwrap();
    assert_eq!(store.stats().log_files, before, "b still needs them");
    assert_eq!(store.log_pins(0), [b.def.id]);
    b.flush().unwrap();
    assert_eq!(store.stats().log_files, 0);
    assert!(store.log_pins(0).is_empty());
    drop((store, a, b));
    sim.disk.crash(4);
    let store = open(&sim, &settings()).unwrap();
    assert_eq!(stored_rows(&store, "a") + stored_rows(&store, "b"), 800);
}

#[test]
fn missed_records_come_from_the_log_whole_or_not_at_all() {
    let sim = Sim::new(5);
    let store = open(&sim, &settings()).unwrap();
    let (mut a, mut b) = (Table::create(&store, "a"), Table::create(&store, "b"));
    let mut written = Vec::new();
    for at in 0..30 {
        written.push(a.append(at * 10, 10).unwrap());
        b.append(at * 10, 10).unwrap();
    }
    assert!(store.stats().log_files > 3);
    let missed = |store: &Store, after: Position, upto: Position, most: u64| {
        let found = store.missed(a.def.id, after, upto, most).unwrap();
        found.map(|found| found.iter().map(|(position, _)| *position).collect::<Vec<_>>())
    };
    let before = Position { seq: kymo_kernel::ids::Seq(0), ..written[0] };
    for (from, after) in [before].iter().chain(&written).enumerate() {
        for (last, upto) in written.iter().enumerate().skip(from) {
            let found = missed(&store, *after, *upto, u64::MAX);
            assert_eq!(found.as_deref(), Some(&written[from..=last]), "{after} to {upto}");
        }
    }
    assert_eq!(missed(&store, written[0], written[29], 2000), None, "more than may be held");
    let ahead = Position { seq: kymo_kernel::ids::Seq(1000), ..written[0] };
    assert_eq!(missed(&store, written[0], ahead, u64::MAX), None, "not written yet");
    assert_eq!(missed(&store, Position::default(), written[3], u64::MAX), None, "another epoch");
    // Another process goes on where this one stopped.
    let last = written[29];
    sim.disk.crash(5);
    drop((store, b));
    let store = open(&sim, &settings()).unwrap();
    assert_eq!(missed(&store, written[7], last, u64::MAX).as_deref(), Some(&written[8..]));
    let id = a.def.id;
    drop(a);
    let mut a = Table::reclaim(&store, "a");
    let next = a.append(1000, 10).unwrap();
    let found = store.missed(id, written[27], next, u64::MAX).unwrap().unwrap();
    let found: Vec<Position> = found.into_iter().map(|(position, _)| position).collect();
    assert_eq!(found, [written[28], written[29], next]);
    // What is in segments, the log lets go.
    a.flush().unwrap();
    Table::reclaim(&store, "b").flush().unwrap();
    assert!(store.missed(id, written[0], next, u64::MAX).unwrap().is_none());
}

#[test]
fn files_go_after_their_readers_and_the_grace_period() {
    let sim = Sim::new(5);
    let store = open(&sim, &settings()).unwrap();
    let mut table = filled(&store, "cpu", 10, 0);
    let reader = store.table(table.def.id).unwrap().load();
    store.commit(vec![Op::DropTable { table: table.def.id }]).unwrap();
    table.state.retire();
    drop(table);
    sim.clock.advance(Duration::from_secs(10));
    assert_eq!(store.collect_garbage().unwrap(), 0, "a reader has it");
    drop(reader);
    assert_eq!(store.collect_garbage().unwrap(), 0, "the grace period begins");
    assert_eq!(files(&sim, "data").len(), 1);
    sim.clock.advance(Duration::from_secs(2));
    assert_eq!(store.collect_garbage().unwrap(), 1);
    assert!(files(&sim, "data").is_empty());
}

#[test]
fn what_a_flush_left_behind_is_removed_at_the_next_start() {
    let sim = Sim::new(6);
    let store = open(&sim, &settings()).unwrap();
    let mut table = Table::create(&store, "cpu");
    table.append(0, 10).unwrap();
    let frozen = table.state.freeze().unwrap();
    store.write_frozen(&table.def, &frozen).unwrap();
    sim.disk.fail_after(Operation::Sync, 0, Fault::Eio);
    assert!(store.write_frozen(&table.def, &frozen).is_err());
    assert!(!files(&sim, "data").is_empty());
    drop((store, table, frozen));
    let store = open(&sim, &settings()).unwrap();
    assert!(files(&sim, "data").is_empty(), "{:?}", files(&sim, "data"));
    assert_eq!(stored_rows(&store, "cpu"), 10);
}

#[test]
fn a_flush_that_failed_gives_its_room_back() {
    for operation in [Operation::Append, Operation::Sync, Operation::Link] {
        let sim = Sim::new(6);
        let store = open(&sim, &settings()).unwrap();
        let mut table = Table::create(&store, "cpu");
        table.append(0, 10).unwrap();
        let frozen = table.state.freeze().unwrap();
        sim.disk.fail_after(operation, 0, Fault::Enospc);
        let error = store.write_frozen(&table.def, &frozen).unwrap_err();
        assert_eq!(error.code(), Code::DiskFull);
        assert!(files(&sim, "data").is_empty(), "{operation:?}: {:?}", files(&sim, "data"));
        store.write_frozen(&table.def, &frozen).unwrap();
        assert_eq!(files(&sim, "data").len(), 1);
    }
}

#[test]
fn damaged_metadata_is_named() {
    let sim = Sim::new(7);
    let store = open(&sim, &settings()).unwrap();
    for name in ["a", "b", "c"] {
        Table::create(&store, name);
    }
    drop(store);
    let edit = files(&sim, "meta/log").swap_remove(1);
    sim.disk.flip_bit(&edit, 40, 3).unwrap();
    let error = open(&sim, &settings()).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains(&edit.display().to_string()), "{error}");
}

#[test]
fn checkpoints_replace_the_edits_before_them() {
    let sim = Sim::new(8);
    let store = open(&sim, &settings()).unwrap();
    for at in 0..50 {
        store.commit(vec![Op::CreateDatabase { name: format!("d{at}") }]).unwrap();
    }
    let catalog = store.catalog();
    let kept = files(&sim, "meta/log").len();
    assert!(kept < 20, "{kept}");
    drop(store);
    sim.disk.crash(8);
    let store = open(&sim, &settings()).unwrap();
    assert_eq!(store.catalog().databases, catalog.databases);
    assert!(store.catalog().version > catalog.version);
}

#[test]
fn an_edit_that_does_not_fit_leaves_the_others_alone() {
    let sim = Sim::new(9);
    let store = open(&sim, &settings()).unwrap();
    let table = Table::create(&store, "cpu");
    let again = definition(store.catalog().next_table, "cpu");
    let refused = store.commit(vec![Op::PutTable { def: again }]).unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let halves =
        vec![Op::CreateDatabase { name: "new".to_owned() }, Op::DropTable { table: TableId(99) }];
    assert_eq!(store.commit(halves).unwrap_err().code(), Code::TableNotFound);
    assert!(!store.catalog().databases.contains("new"));
    let skipped = definition(table.def.id, "cpu");
    let stale = store.commit(vec![Op::PutTable { def: skipped }]).unwrap_err();
    assert_eq!(stale.code(), Code::Conflict);
    assert!(store.poisoned().is_none());
    assert_eq!(store.claim(table.def.id).unwrap_err().code(), Code::Conflict);
}

/// Writers on real threads against the real thread of the journal: every acknowledged row is
/// there after a reopen, once, and the metadata committer groups edits of many callers.
#[test]
fn threads_share_the_journal_and_the_committer() {
    let dir = tempfile::tempdir().unwrap();
    let env = kymo_kernel::env::real::env();
    let root = dir.path().to_owned();
    let store = Store::open(env.clone(), root.clone(), &settings(), &mut |_| {}).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let name = format!("t{writer}");
                // Two may propose the same id; one is refused and takes the next.
                let propose = || {
                    let def = definition(store.catalog().next_table, &name);
                    store.commit(vec![Op::PutTable { def }])
                };
                while propose().is_err() {}
                let mut table = Table::reclaim(store, &name);
                for at in 0..50 {
                    table.append(at * 10, 10).unwrap();
                    if at % 20 == 19 {
                        table.flush().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(store.stats().log_groups, 200);
    store.close();
    drop(store);
    let store = Store::open(env, root, &settings(), &mut |_| {}).unwrap();
    for writer in 0..4 {
        assert_eq!(stored_rows(&store, &format!("t{writer}")), 500);
    }
}
