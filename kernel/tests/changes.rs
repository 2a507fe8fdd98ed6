//! The log as a feed: each record once, in order, only what is durable, across files, flushes,
//! history and crashes; and a clear word where records are gone.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod scattered;
    pub mod store;
    pub mod table;
}

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kit::store::{ROOT, files, open, settings};
use kit::table::{Table, rows};
use kymo_config::Settings;
use kymo_kernel::Code;
use kymo_kernel::env::sim::{Fault, Operation, Sim};
use kymo_kernel::ids::Position;
use kymo_kernel::message::Durability;
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::changes::{Changes, From};
use kymo_kernel::storage::log::{Record, RecordGroup};

fn keeping(retention: &str, bytes: u64) -> Settings {
    let mut settings = settings();
    settings.journal.retention = retention.to_owned();
    settings.journal.retention_bytes = bytes;
    settings
}

fn changes(store: &Arc<Store>, from: From) -> Changes {
    Changes::open(store.clone(), None, from).unwrap()
}

/// The first times of all batches that there are, which number them.
fn drain(changes: &mut Changes) -> Vec<i64> {
    let mut found = Vec::new();
    while let Some(change) = changes.read().unwrap() {
        found.push(first_time(&change.record));
    }
    found
}

fn first_time(record: &Record) -> i64 {
    let batch = record.decode().unwrap();
    let times = batch.column_by_name("time").unwrap();
    let times = times.as_any().downcast_ref::<arrow::array::TimestampNanosecondArray>().unwrap();
    times.value(0)
}

fn kept(sim: &Sim) -> Vec<PathBuf> {
    files(sim, "wal/0/kept")
}

/// A table that was written to and flushed, so that most log files are covered.
fn written(store: &Arc<Store>, batches: i64) -> (Table, Vec<Position>) {
    let mut table = Table::create(store, "t").scattered();
    let positions = (0..batches).map(|at| table.append(at * 20, 20).unwrap()).collect();
    table.flush().unwrap();
    (table, positions)
}

#[test]
fn a_follower_gets_each_batch_once_across_files_and_flushes() {
    let sim = Sim::new(1);
    let store = open(&sim, &settings()).unwrap();
    let mut table = Table::create(&store, "t").scattered();
    let mut feed = changes(&store, From::Oldest);
    let mut found = Vec::new();
    for at in 0..200 {
        table.append(at * 20, 20).unwrap();
        if at % 7 == 0 {
            found.extend(drain(&mut feed));
        }
        if at % 40 == 39 {
            found.extend(drain(&mut feed));
            table.flush().unwrap();
        }
    }
    found.extend(drain(&mut feed));
    assert_eq!(found, (0..200).map(|at| at * 20).collect::<Vec<_>>());
    assert!(store.stats().log_files < 10, "the log was trimmed meanwhile");
    assert_eq!(kept(&sim), Vec::<PathBuf>::new());
}

#[test]
fn history_stays_for_its_time_and_resuming_is_exact() {
    let sim = Sim::new(2);
    let settings = keeping("1h", 1 << 30);
    let store = open(&sim, &settings).unwrap();
    let (mut table, positions) = written(&store, 60);
    assert!(kept(&sim).len() > 5 && store.stats().log_files == 0);
    assert_eq!(drain(&mut changes(&store, From::Oldest)).len(), 60);
    for (at, position) in positions.iter().enumerate() {
        let found = drain(&mut changes(&store, From::At(*position)));
        assert_eq!(found, (at as i64..60).map(|at| at * 20).collect::<Vec<_>>());
    }
    assert_eq!(drain(&mut changes(&store, From::Now)), Vec::<i64>::new());
    // Another start changes nothing, and reads none of it.
    drop(table);
    drop(store);
    sim.disk.crash(2);
    let store = open(&sim, &settings).unwrap();
    assert_eq!(drain(&mut changes(&store, From::At(positions[30]))).len(), 30);
    table = Table::reclaim(&store, "t").scattered();
    table.append(5000, 20).unwrap();
    let again = drain(&mut changes(&store, From::At(positions[58])));
    assert_eq!(again, [58 * 20, 59 * 20, 5000]);
    // The hour is over.
    sim.clock.advance(Duration::from_secs(3601));
    store.trim_log();
    assert_eq!(kept(&sim), Vec::<PathBuf>::new());
}

#[test]
fn what_is_gone_is_said_with_what_is_there() {
    let sim = Sim::new(3);
    let store = open(&sim, &keeping("1h", 12 << 10)).unwrap();
    let mut slow = changes(&store, From::Oldest);
    let (mut table, positions) = written(&store, 3);
    assert!(slow.read().unwrap().is_some());
    for at in 3..60 {
        table.append(at * 20, 20).unwrap();
    }
    table.flush().unwrap();
    let gone = changes(&store, From::At(positions[1])).read().unwrap_err();
    assert_eq!(gone.code(), Code::Gone);
    let oldest = changes(&store, From::Oldest).read().unwrap().unwrap().position;
    assert!(gone.message().contains(&format!("the oldest is {oldest}")), "{gone}");
    // What it had read ahead it may still give; then it is told.
    let mut given = 0;
    let told = loop {
        match slow.read() {
            Ok(Some(_)) => given += 1,
            Ok(None) => panic!("not told"),
            Err(error) => break error,
        }
    };
    assert!(told.code() == Code::Gone && given < 57, "{told} after {given}");
    assert_eq!(drain(&mut changes(&store, From::At(oldest))).last(), Some(&(59 * 20)));
    let later = Position { seq: kymo_kernel::ids::Seq(9999), ..oldest };
    let error = Changes::open(store, None, From::At(later)).err().unwrap();
    assert_eq!(error.code(), Code::InvalidInput);
}

#[test]
fn who_has_read_everything_goes_on_after_restarts_that_left_nothing() {
    let sim = Sim::new(4);
    let store = open(&sim, &settings()).unwrap();
    let (table, positions) = written(&store, 20);
    let next = drain_next(&mut changes(&store, From::At(positions[19])));
    drop(table);
    drop(store);
    for _ in 0..3 {
        drop(open(&sim, &settings()).unwrap());
    }
    let store = open(&sim, &settings()).unwrap();
    let mut table = Table::reclaim(&store, "t").scattered();
    table.append(5000, 20).unwrap();
    assert_eq!(drain(&mut changes(&store, From::At(next))), [5000]);
    let gone = changes(&store, From::At(positions[19])).read().unwrap_err();
    assert_eq!(gone.code(), Code::Gone);
}

fn drain_next(changes: &mut Changes) -> Position {
    let mut next = None;
    while let Some(change) = changes.read().unwrap() {
        next = Some(change.next());
    }
    next.unwrap()
}

#[test]
fn only_what_is_durable_is_given_and_a_crash_takes_none_of_it_back() {
    for seed in 0..60 {
        let sim = Sim::new(seed);
        let mut settings = keeping("1h", 1 << 30);
        // A file that is full is synced.
        settings.journal.file_bytes = 1 << 20;
        let store = open(&sim, &settings).unwrap();
        let mut table = Table::create(&store, "t").scattered();
        table.append(0, 20).unwrap();
        let mut feed = changes(&store, From::Oldest);
        assert_eq!(drain(&mut feed), [0]);
        for at in 1..10 {
            let record =
                Record::encode(table.def.id, 1, &rows(&table.def, at * 20..at * 20 + 20, |_| 1));
            let group = RecordGroup::of(record.unwrap());
            store.log().append(group, Durability::OsDefault, Box::new(|_| ()));
            store.step();
        }
        assert!(feed.is_behind());
        assert_eq!(drain(&mut feed), Vec::<i64>::new(), "nothing of it is durable");
        if seed % 2 == 0 {
            feed.catch_up();
            assert!(!feed.is_behind());
            assert_eq!(drain(&mut feed).len(), 9);
        } else {
            sim.disk.fail_after(Operation::Sync, 0, Fault::Eio);
            feed.catch_up();
            assert_eq!(drain(&mut feed), Vec::<i64>::new(), "it never will be");
        }
        let next = feed.position().unwrap();
        drop((feed, table, store));
        sim.disk.crash(seed);
        let offline = Changes::closed(sim.env(), Path::new(ROOT), None, From::Oldest);
        let before = drain(&mut offline.unwrap());
        let store = open(&sim, &settings).unwrap();
        let after = drain(&mut changes(&store, From::Oldest));
        assert_eq!(before, after, "a closed log reads as the next start finds it");
        assert!(seed % 2 == 1 || after.len() == 10);
        let rest = drain(&mut changes(&store, From::At(next)));
        assert_eq!(rest, after[after.len() - rest.len()..]);
        assert_eq!(rest.len(), if seed % 2 == 0 { 0 } else { after.len() - 1 });
    }
}

#[test]
fn one_table_is_told_from_the_others() {
    let sim = Sim::new(5);
    let store = open(&sim, &settings()).unwrap();
    let (mut a, mut b) = (Table::create(&store, "a"), Table::create(&store, "b"));
    for at in 0..10 {
        a.append(at * 10, 1).unwrap();
        b.append(at * 10 + 5, 1).unwrap();
    }
    let name = TableName::new("kymo", "b");
    let mut feed = Changes::open(store.clone(), Some(&name), From::Oldest).unwrap();
    let first = feed.read().unwrap().unwrap();
    assert_eq!((first_time(&first.record), first.table), (5, Some(name)));
    assert!(first.record.written_ms > 0);
    assert_eq!(drain(&mut feed).len(), 9);
    let missing = TableName::new("kymo", "c");
    let error = Changes::open(store, Some(&missing), From::Oldest).err().unwrap();
    assert_eq!(error.code(), Code::TableNotFound);
}
