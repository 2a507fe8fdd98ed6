//! A store whose files lie in a bucket: lost answers, outages, two owners, and what belongs
//! together.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]
#![expect(clippy::disallowed_methods, reason = "a thread of another server")]

mod kit {
    pub mod faulty;
    pub mod filled;
    pub mod plugin;
    pub mod scattered;
    pub mod store;
    pub mod stored;
    pub mod table;
}

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kit::faulty::{Fault, Faulty};
use kit::filled::filled;
use kit::plugin::plugin;
use kit::store::{self, ROOT, files, settings};
use kit::stored::stored_rows;
use kit::table::{Table, definition, rows};
use kymo_config::Settings;
use kymo_kernel::bucket::{self, register};
use kymo_kernel::digest::Digest;
use kymo_kernel::env::Env;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::Durability;
use kymo_kernel::observe::metrics;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::backup;
use kymo_kernel::storage::integrity;
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::segment::{LocalSegments, Scan};
use kymo_kernel::{Code, Error, Result, Retry};
use object_store::ObjectStore;

/// A bucket under a name of its own, and the settings that lead there.
fn in_bucket(name: &str) -> (Faulty, Settings) {
    let faulty = Faulty::default();
    register(name, Arc::new(faulty.clone()));
    let mut settings = settings();
    settings.storage.url = format!("memory://{name}/a/b");
    (faulty, settings)
}

fn open_at(sim: &Sim, root: &str, settings: &Settings) -> Result<Arc<Store>> {
    Store::open_stepped(sim.env(), PathBuf::from(root), settings)
}

fn open(sim: &Sim, settings: &Settings) -> Arc<Store> {
    store::open(sim, settings).unwrap()
}

fn refused(outcome: Result<Arc<Store>>) -> Error {
    match outcome {
        Ok(_) => panic!("the store opened"),
        Err(error) => error,
    }
}

/// The keys in a bucket.
fn keys(faulty: &Faulty) -> Vec<String> {
    let listed = faulty.inner.list(None).map_ok(|it| it.location.to_string());
    let mut keys: Vec<String> = futures::executor::block_on(listed.try_collect()).unwrap();
    keys.sort();
    keys
}

/// How often an operation was asked for.
fn requests(faulty: &Faulty, operation: &'static str) -> usize {
    faulty.plan.lock().requests.get(operation).copied().unwrap_or(0)
}

fn count(faulty: &Faulty, part: &str) -> usize {
    keys(faulty).iter().filter(|key| key.contains(part)).count()
}

fn put_table(store: &Arc<Store>, name: &str) -> Result<TableId> {
    let id = store.catalog().next_table;
    store.commit(vec![Op::PutTable { def: definition(id, name) }]).map(|_| id)
}

#[test]
fn everything_but_the_journal_lies_in_the_bucket_and_survives_a_crash() {
    let (faulty, settings) = in_bucket("whole");
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    filled(&store, "t", 10, 5);
    drop(store);
    sim.disk.crash(3);
    assert!(files(&sim, "data").is_empty() && files(&sim, "meta").is_empty());
    let expected = keys(&faulty);
    assert!(expected.iter().all(|key| key.starts_with("a/b/")), "{expected:?}");
    assert!(expected.iter().any(|key| key.ends_with(".parquet")), "{expected:?}");
    assert!(!expected.iter().any(|key| key.contains("probe")), "{expected:?}");
    let store = open(&sim, &settings);
    assert_eq!(stored_rows(&store, "t"), 15);
    assert_eq!(store.epoch().0, 2);
}

#[test]
fn a_put_whose_answer_is_lost_counts_once() {
    for fault in [Fault::Lost, Fault::Refused, Fault::Conflict] {
        let (faulty, settings) = in_bucket(&format!("once-{fault:?}"));
        let sim = Sim::new(1);
        let store = open(&sim, &settings);
        let before = store.catalog().version.0;
        faulty.plan.lock().puts.push_back(fault);
        put_table(&store, "t").unwrap();
        assert_eq!(store.catalog().version.0, before + 1, "{fault:?}");
        let mut table = Table::create(&store, "u");
        table.append(0, 10).unwrap();
        faulty.plan.lock().puts.push_back(fault);
        table.flush().unwrap();
        drop((table, store));
        let store = open(&sim, &settings);
        assert_eq!(store.catalog().tables.len(), 2, "{fault:?}");
        assert_eq!(stored_rows(&store, "u"), 10, "{fault:?}");
    }
}

#[test]
fn a_large_segment_goes_in_parts_and_a_lost_answer_does_not_matter() {
    let (faulty, mut settings) = in_bucket("parts");
    settings.storage.part_bytes = 1000;
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    let mut table = Table::create(&store, "t").scattered();
    for fault in [None, Some(Fault::Lost), Some(Fault::Refused)] {
        table.append(0, 500).unwrap();
        faulty.plan.lock().puts.extend(fault);
        table.flush().unwrap();
    }
    assert!(requests(&faulty, "part") > 6);
    assert_eq!(requests(&faulty, "complete"), 4, "the one that was refused came again");
    assert_eq!(requests(&faulty, "abort"), 2, "nothing is left of those that failed");
    assert_eq!(count(&faulty, ".parquet"), 3);
    assert_eq!(stored_rows(&store, "t"), 1500);
}

#[test]
fn a_bucket_that_is_down_loses_nothing_and_stops_nothing_that_can_wait() {
    let (faulty, settings) = in_bucket("down");
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    let mut table = filled(&store, "t", 10, 0);
    faulty.plan.lock().down = true;
    table.append(10, 10).unwrap();
    let frozen = table.state.freeze().unwrap();
    let error = store.write_frozen(&table.def, &frozen).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error:?}");
    assert!(matches!(error.retry(), Retry::After(_)) && error.hint().is_some());
    let version = store.table(table.def.id).unwrap().load();
    let read = version.segments.first().unwrap().reader().map(drop);
    assert_eq!(read.unwrap_err().code(), Code::Unreachable);
    assert!(store.poisoned().is_none());
    table.append(20, 10).unwrap();
    faulty.plan.lock().down = false;
    let segments = store.write_frozen(&table.def, &frozen).unwrap();
    let upto = frozen.span.last;
    let op = Op::AddSegments { table: table.def.id, segments, flushed_upto: upto };
    store.commit(vec![op]).unwrap();
    drop((table, version, store));
    sim.disk.crash(1);
    assert_eq!(stored_rows(&open(&sim, &settings), "t"), 30);
}

/// Waits for something that other threads do.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    for _ in 0..4000 {
        if holds() {
            return;
        }
        let _ = receiver.recv_timeout(Duration::from_millis(5));
    }
    drop(sender);
    panic!("waited in vain for {what}");
}

#[test]
fn a_change_of_definitions_waits_for_the_bucket() {
    let (faulty, settings) = in_bucket("patience");
    let folder = tempfile::tempdir().unwrap();
    let env = kymo_kernel::env::real::env();
    let store = Store::open(env, folder.path().to_owned(), &settings, &mut |_| {}).unwrap();
    faulty.plan.lock().down = true;
    let (sender, receiver) = std::sync::mpsc::channel();
    let op = Op::PutTable { def: definition(TableId(1), "t") };
    let before = metrics().objects.retried_commits.get();
    store.commit_then(vec![op], move |outcome| sender.send(outcome.map(drop)).unwrap());
    until("another attempt", || metrics().objects.retried_commits.get() > before);
    assert!(receiver.try_recv().is_err());
    faulty.plan.lock().down = false;
    receiver.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
    assert_eq!(store.catalog().tables.len(), 1);
    store.close();
}

#[test]
fn a_change_whose_outcome_stays_unknown_stops_the_store() {
    let (faulty, mut settings) = in_bucket("impatient");
    settings.storage.commit_timeout_ms = 1;
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    faulty.plan.lock().down = true;
    let error = put_table(&store, "t").unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error:?}");
    assert!(error.message().contains("unknown"), "{error}");
    assert_eq!(store.poisoned().map(|cause| cause.code()), Some(Code::Unreachable));
    drop(store);
    assert_eq!(refused(store::open(&sim, &settings)).code(), Code::Unreachable);
    faulty.plan.lock().down = false;
    assert!(open(&sim, &settings).catalog().tables.is_empty());
}

#[test]
fn a_second_server_takes_over_only_when_told_and_the_first_stops() {
    let (_faulty, settings) = in_bucket("fencing");
    let (one, two) = (Sim::new(1), Sim::new(2));
    let first = open(&one, &settings);
    let mut table = filled(&first, "t", 10, 7);

    let error = refused(store::open(&two, &settings));
    assert_eq!(error.code(), Code::Fenced);
    assert!(error.hint().unwrap().contains("take_over"), "{error:?}");
    put_table(&first, "still_mine").unwrap();

    let mut bold = settings.clone();
    bold.storage.take_over = true;
    let second = open(&two, &bold);
    assert_eq!(second.epoch().0, first.epoch().0 + 1);
    assert_eq!(stored_rows(&second, "t"), 10, "the journal of the first is elsewhere");

    let error = put_table(&first, "too_late").unwrap_err();
    assert_eq!(error.code(), Code::Fenced);
    assert!(error.message().contains("epoch 2"), "{error}");
    assert!(table.append(20, 1).is_err(), "it acknowledges nothing any more");
    drop((table, first));

    // Its journal has rows that were acknowledged: it must not come back without a word.
    for settings in [&settings, &bold] {
        let error = refused(store::open(&one, settings));
        assert_eq!(error.code(), Code::Fenced);
        assert!(error.message().contains("/store"), "{error}");
        assert!(error.hint().unwrap().contains("acknowledged"), "{error:?}");
    }
    put_table(&second, "mine").unwrap();
}

#[test]
fn a_take_over_comes_about_however_much_the_first_commits() {
    let (_faulty, mut settings) = in_bucket("busy");
    settings.storage.take_over = true;
    let first = open(&Sim::new(1), &settings);
    let busy = first.clone();
    let writer = std::thread::spawn(move || {
        for number in 0.. {
            let done = put_table(&busy, &format!("t{number}"));
            if let Err(error) = done {
                return (number, error);
            }
        }
        unreachable!()
    });
    until("some tables", || first.catalog().tables.len() > 5);
    let second = open(&Sim::new(2), &settings);
    let (number, error) = writer.join().unwrap();
    assert_eq!(error.code(), Code::Fenced);
    assert_eq!(second.catalog().tables.len(), number, "each counts once, or not at all");
}

#[test]
fn a_server_that_has_nothing_to_commit_finds_out_too() {
    let (_faulty, mut settings) = in_bucket("watch");
    settings.storage.watch_ms = 20;
    settings.storage.take_over = true;
    let folder = tempfile::tempdir().unwrap();
    let env = kymo_kernel::env::real::env();
    let first = Store::open(env, folder.path().to_owned(), &settings, &mut |_| {}).unwrap();
    let second = open(&Sim::new(1), &settings);
    until("the first to stop", || first.poisoned().is_some());
    assert_eq!(first.poisoned().unwrap().code(), Code::Fenced);
    assert!(second.poisoned().is_none());
}

#[test]
fn an_owner_that_slept_through_many_checkpoints_is_fenced_all_the_same() {
    let (faulty, mut settings) = in_bucket("sleeper");
    settings.storage.take_over = true;
    let first = open(&Sim::new(1), &settings);
    let second = open(&Sim::new(2), &settings);
    for number in 0..40 {
        put_table(&second, &format!("t{number}")).unwrap();
    }
    let next = format!("{:020}.edit", first.catalog().version.0 + 2);
    assert_eq!(count(&faulty, &next), 0, "what came after is gone by now");
    assert_eq!(put_table(&first, "late").unwrap_err().code(), Code::Fenced);
    drop(second);
    let third = open(&Sim::new(3), &settings);
    assert_eq!(third.catalog().tables.len(), 40);
    for number in 40..80 {
        put_table(&third, &format!("t{number}")).unwrap();
    }
    let forgotten = open(&Sim::new(4), &settings);
    assert_eq!(forgotten.catalog().tables.len(), 80);
}

#[test]
fn a_clean_stop_lets_the_bucket_go() {
    let (_faulty, settings) = in_bucket("handover");
    let (one, two) = (Sim::new(1), Sim::new(2));
    let first = open(&one, &settings);
    let mut table = Table::create(&first, "t");
    table.append(0, 10).unwrap();
    first.close();
    drop((table, first));
    assert_eq!(refused(store::open(&two, &settings)).code(), Code::Fenced, "rows in its journal");

    let first = open(&one, &settings);
    let mut table = Table::reclaim(&first, "t");
    table.flush().unwrap();
    first.close();
    drop((table, first));
    let second = open(&two, &settings);
    assert_eq!(stored_rows(&second, "t"), 10);
    let mut table = Table::reclaim(&second, "t");
    table.append(100, 3).unwrap();
    table.flush().unwrap();
    second.close();
    drop((table, second));
    let first = open(&one, &settings);
    assert_eq!(stored_rows(&first, "t"), 13);
    let mut table = Table::reclaim(&first, "t");
    table.append(200, 4).unwrap();
    drop((table, first));
    one.disk.crash(5);
    assert_eq!(stored_rows(&open(&one, &settings), "t"), 17);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let (faulty, settings) = in_bucket("belonging");
    let local = store::settings();
    let sim = Sim::new(1);
    let store = open_at(&sim, "/local", &local).unwrap();
    Table::create(&store, "t").append(0, 1).unwrap();
    drop(store);
    let error = refused(open_at(&sim, "/local", &settings));
    assert_eq!(error.code(), Code::Settings, "{error:?}");
    assert!(error.message().contains("/local") && error.hint().is_some(), "{error:?}");

    let store = open(&sim, &settings);
    Table::create(&store, "t").append(0, 1).unwrap();
    drop(store);
    let error = refused(store::open(&sim, &local));
    assert_eq!(error.code(), Code::Settings, "{error:?}");
    assert!(error.message().contains("memory://belonging/a/b"), "{error}");

    let (_other, elsewhere) = in_bucket("belonging-2");
    assert_eq!(refused(store::open(&sim, &elsewhere)).code(), Code::Settings);

    register("belonging", Arc::new(Faulty::default()));
    let error = refused(store::open(&sim, &settings));
    assert_eq!(error.code(), Code::Corrupt, "{error:?}");
    register("belonging", Arc::new(faulty));
    assert_eq!(stored_rows(&open(&sim, &settings), "t"), 1);
}

#[test]
fn a_bucket_that_gives_a_name_twice_is_refused() {
    let (faulty, settings) = in_bucket("forgetful");
    faulty.plan.lock().forgetful = true;
    let error = refused(store::open(&Sim::new(1), &settings));
    assert_eq!(error.code(), Code::Unsupported, "{error:?}");
    assert!(error.hint().unwrap().contains("If-None-Match"), "{error:?}");
    assert!(keys(&faulty).is_empty());
}

#[test]
fn what_nothing_names_goes_and_nothing_else() {
    let (faulty, settings) = in_bucket("garbage");
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    let mut table = filled(&store, "t", 10, 10);
    let frozen = table.state.freeze().unwrap();
    store.write_frozen(&table.def, &frozen).unwrap();
    assert_eq!(count(&faulty, ".parquet"), 2);
    drop((table, frozen, store));
    let store = open(&sim, &settings);
    assert_eq!(count(&faulty, ".parquet"), 1, "the flush did not come to its edit");
    assert_eq!(stored_rows(&store, "t"), 20);
    store.commit(vec![Op::DropTable { table: TableId(1) }]).unwrap();
    assert_eq!(store.collect_garbage().unwrap(), 0, "within the grace");
    sim.clock.advance(Duration::from_secs(2));
    assert_eq!(store.collect_garbage().unwrap(), 1);
    assert_eq!(count(&faulty, ".parquet"), 0);
}

#[test]
fn an_owner_of_before_deletes_no_component_that_the_next_one_uses() {
    let (faulty, mut settings) = in_bucket("components");
    settings.storage.take_over = true;
    let one = Sim::new(1);
    let first = open(&one, &settings);
    let install = |store: &Arc<Store>| {
        let mut staged = store.components().begin().unwrap();
        staged.append(b"component").unwrap();
        staged.publish(None).unwrap()
    };
    drop(install(&first));
    assert_eq!(first.collect_garbage().unwrap(), 0);
    let second = open(&Sim::new(2), &settings);
    let held = install(&second);
    let plugin = plugin("p", &[(held.digest(), held.bytes())]);
    second.commit(vec![Op::PutPlugin { plugin }]).unwrap();
    one.clock.advance(Duration::from_secs(100));
    assert_eq!(first.collect_garbage().unwrap_err().code(), Code::Fenced);
    assert_eq!(count(&faulty, "plugins/"), 1);
    assert_eq!(second.components().read(Digest::of(b"component")).unwrap(), b"component");
}

#[test]
fn what_was_read_is_not_fetched_again() {
    let (faulty, settings) = in_bucket("cached");
    let store = open(&Sim::new(1), &settings);
    let mut table = Table::create(&store, "t").scattered();
    table.append(0, 5000).unwrap();
    table.flush().unwrap();
    let version = store.table(table.def.id).unwrap().load();
    let scan = || {
        let reader = version.segments.first().unwrap().reader().unwrap();
        let scan = Scan::all(table.def.schema.arrow(), 1000);
        reader.scan(&scan).unwrap().map(|batch| batch.unwrap().num_rows()).sum::<usize>()
    };
    assert_eq!(scan(), 5000);
    let before = (requests(&faulty, "get"), requests(&faulty, "head"));
    assert_eq!(scan(), 5000);
    assert_eq!((requests(&faulty, "get"), requests(&faulty, "head")), before);
}

#[test]
fn a_store_in_a_bucket_is_checked_and_repaired() {
    let (faulty, settings) = in_bucket("checked");
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    filled(&store, "t", 10, 5);
    drop(store);
    let env = bucket::attached(sim.env(), Path::new(ROOT), &settings.storage).unwrap();
    let check = |env: &Env| integrity::check(env, Path::new(ROOT), &mut |_| {});
    assert!(check(&env).unwrap().is_whole());
    assert_eq!(check(&sim.env()).unwrap_err().code(), Code::Settings, "the bucket has to be named");
    let segment = keys(&faulty).into_iter().find(|key| key.ends_with(".parquet")).unwrap();
    futures::executor::block_on(async {
        use object_store::ObjectStoreExt;
        faulty.inner.delete(&segment.as_str().into()).await.unwrap();
    });
    let env = bucket::attached(sim.env(), Path::new(ROOT), &settings.storage).unwrap();
    let report = check(&env).unwrap();
    assert!(!report.is_whole());
    let done = integrity::repair(&env, Path::new(ROOT), &settings, &mut |_| {}).unwrap();
    assert!(done.after.is_whole(), "{:?}", done.after);
    assert_eq!(stored_rows(&open(&sim, &settings), "t"), 5);
}

#[test]
fn backups_go_from_and_to_buckets() {
    let (_faulty, settings) = in_bucket("from");
    let (kept, _) = in_bucket("to");
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    filled(&store, "t", 10, 5);
    let root = Path::new("/backups");
    let place = || {
        let scratch = Path::new("/scratch");
        let env = bucket::place(sim.env(), root, scratch, "memory://to/here", &settings.storage);
        LocalSegments::new(env.unwrap().disk, root.to_owned())
    };
    let keep = || {
        let pinned = store.pin().unwrap();
        backup::keep(pinned.plan(), &pinned, &place(), &mut |_| {}).unwrap()
    };
    let first = keep();
    sim.clock.advance(Duration::from_secs(1));
    kept.plan.lock().puts.push_back(Fault::Lost);
    let second = keep();
    assert!(second.copied_objects < first.copied_objects, "{second:?} after {first:?}");
    assert_eq!(backup::list(&place()).unwrap().len(), 2);
    backup::verify(&place(), None, &mut |_| {}).unwrap();
    backup::restore(&place(), None, &sim.env(), Path::new("/copy"), &mut |_| {}).unwrap();
    let copy = open_at(&sim, "/copy", &store::settings()).unwrap();
    assert_eq!(stored_rows(&copy, "t"), 15);
    assert!(files(&sim, "/backups").is_empty());
}

#[test]
fn rows_are_acknowledged_while_the_bucket_is_down() {
    let (faulty, settings) = in_bucket("journal");
    let sim = Sim::new(1);
    let store = open(&sim, &settings);
    let table = Table::create(&store, "t");
    faulty.plan.lock().down = true;
    let record = Record::encode(table.def.id, 1, &rows(&table.def, 0..3, |at| at)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = move |outcome: Result<_>| sender.send(outcome.map(drop)).unwrap();
    store.log().append(RecordGroup::of(record), Durability::EveryWrite, Box::new(done));
    store.step();
    receiver.recv().unwrap().unwrap();
    drop((table, store));
    sim.disk.crash(9);
    faulty.plan.lock().down = false;
    assert_eq!(stored_rows(&open(&sim, &settings), "t"), 3);
}
