//! Snapshots: moments of a store that stay in its own folder, as data folders of their own.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod filled;
    pub mod scattered;
    pub mod store;
    pub mod stored;
    pub mod table;
}

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kit::filled::filled;
use kit::store::{ROOT, files, open, settings};
use kit::stored::stored_rows;
use kit::table::Table;
use kymo_kernel::env::sim::{Fault, Operation, Sim};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::backup::{Snapshot, Snapshots};
use kymo_kernel::storage::integrity;
use kymo_kernel::storage::meta::Op;
use kymo_kernel::{Code, Result};

fn snapshots(sim: &Sim) -> Snapshots {
    Snapshots::new(sim.env(), PathBuf::from(ROOT), 3)
}

fn take(sim: &Sim, store: &Arc<Store>) -> Result<Snapshot> {
    sim.clock.advance(Duration::from_secs(1));
    snapshots(sim).take(store)
}

/// Rows of table `a` in the store of a folder, which verifies.
fn rows(sim: &Sim, folder: &Path) -> u64 {
    let report = integrity::check(&sim.env(), folder, &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    let store = Store::open_stepped(sim.env(), folder.to_owned(), &settings()).unwrap();
    stored_rows(&store, "a")
}

/// A store with rows in segments and in the journal: 230 in all.
fn store(sim: &Sim) -> (Arc<Store>, Table) {
    let store = open(sim, &settings()).unwrap();
    let table = filled(&store, "a", 200, 30);
    (store, table)
}

#[test]
fn a_snapshot_is_a_moment_whatever_happens_after() {
    let sim = Sim::new(1);
    let (store, mut table) = store(&sim);
    let first = take(&sim, &store).unwrap();
    table.write(230..300);
    table.flush().unwrap();
    let second = take(&sim, &store).unwrap();
    assert_eq!(snapshots(&sim).list().unwrap(), [first.clone(), second.clone()]);
    store.commit(vec![Op::DropTable { table: table.def.id }]).unwrap();
    table.state.retire();
    drop(table);
    store.collect_garbage().unwrap();
    sim.clock.advance(Duration::from_secs(10));
    assert!(store.collect_garbage().unwrap() > 0, "what was dropped is deleted");
    assert_eq!(rows(&sim, &first.folder), 230);
    assert_eq!(rows(&sim, &second.folder), 300);
}

#[test]
fn it_takes_room_for_the_journal_and_the_metadata_only() {
    let sim = Sim::new(2);
    let store = open(&sim, &settings()).unwrap();
    let mut table = Table::create(&store, "a").scattered();
    table.write(0..5000);
    table.flush().unwrap();
    let snapshot = store.catalog();
    let segments = snapshot.tables[&table.def.id].segments.values().map(|it| it.bytes);
    let segments: u64 = segments.sum();
    let before = sim.disk.used();
    take(&sim, &store).unwrap();
    let more = sim.disk.used() - before;
    assert!(more < segments, "{more} bytes beside {segments} of segments");
}

#[test]
fn it_is_a_store_of_its_own() {
    let sim = Sim::new(3);
    let (store, _table) = store(&sim);
    let taken = take(&sim, &store).unwrap();
    let copy = Store::open_stepped(sim.env(), taken.folder.clone(), &settings()).unwrap();
    let mut table = Table::reclaim(&copy, "a");
    table.write(1000..1010);
    table.flush().unwrap();
    assert_eq!((stored_rows(&copy, "a"), stored_rows(&store, "a")), (240, 230));
}

#[test]
fn one_that_failed_or_was_cut_off_is_none_and_is_removed_by_the_next() {
    use Operation::{Append, Create, Link, Remove, Sync};
    for operation in [Create, Append, Sync, Link, Remove] {
        for (after, cut) in (0..14).flat_map(|after| [(after, false), (after, true)]) {
            let sim = Sim::new(4);
            let (store, table) = store(&sim);
            let whole = take(&sim, &store).unwrap();
            sim.disk.fail_after(operation, after, Fault::Eio);
            let outcome = take(&sim, &store);
            let case = format!("{operation:?} after {after}, cut {cut}");
            let store = match cut {
                true => {
                    drop((store, table));
                    sim.disk.crash(after.into());
                    sim.disk.heal();
                    open(&sim, &settings()).unwrap()
                }
                false => store,
            };
            sim.disk.heal();
            let known = snapshots(&sim).list().unwrap();
            let expected: Vec<Snapshot> = [Ok(whole), outcome].into_iter().flatten().collect();
            assert_eq!(known, expected, "{case}");
            for each in &known {
                assert_eq!(rows(&sim, &each.folder), 230, "{case}");
            }
            take(&sim, &store).unwrap();
            let folders = sim.env().disk.list(&Path::new(ROOT).join("snapshots")).unwrap();
            assert_eq!(folders.len(), known.len() + 1, "{case}: {folders:?}");
        }
    }
}

#[test]
fn they_are_bounded_and_can_be_removed() {
    let sim = Sim::new(5);
    let (store, _table) = store(&sim);
    let taken: Vec<Snapshot> = (0..3).map(|_| take(&sim, &store).unwrap()).collect();
    let error = take(&sim, &store).unwrap_err();
    assert_eq!(error.code(), Code::LimitReached);
    assert!(error.hint().unwrap().contains("--drop"), "{error:?}");
    snapshots(&sim).remove(&taken[1].name).unwrap();
    let again = snapshots(&sim).remove(&taken[1].name).unwrap_err();
    assert_eq!(again.code(), Code::InvalidInput);
    let left = snapshots(&sim).list().unwrap();
    assert_eq!(left, [taken[0].clone(), taken[2].clone()]);
    assert!(files(&sim, taken[1].folder.to_str().unwrap()).is_empty());
    assert_eq!(rows(&sim, &taken[2].folder), 230);
    take(&sim, &store).unwrap();
}
