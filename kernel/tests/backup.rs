//! Backups: one moment of a store, copied while it goes on, and restored as it was.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod filled;
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
use kymo_kernel::storage::backup::{self, Copied, Kind, Object, Pinned};
use kymo_kernel::storage::integrity;
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::segment::LocalSegments;
use kymo_kernel::{Code, Result};

const PLACE: &str = "/backups";
const COPY: &str = "/copy";

fn vault(sim: &Sim) -> LocalSegments {
    LocalSegments::new(sim.env().disk, PathBuf::from(PLACE))
}

fn keep(sim: &Sim, pinned: &Pinned) -> Result<Copied> {
    backup::keep(pinned.plan(), pinned, &vault(sim), &mut |_| {})
}

fn restore(sim: &Sim, name: Option<&str>) -> Result<backup::Restored> {
    backup::restore(&vault(sim), name, &sim.env(), Path::new(COPY), &mut |_| {})
}

fn open_copy(sim: &Sim) -> Arc<Store> {
    Store::open_stepped(sim.env(), PathBuf::from(COPY), &settings()).unwrap()
}

#[test]
fn a_backup_is_the_moment_it_began_whatever_happens_meanwhile() {
    let sim = Sim::new(1);
    let store = open(&sim, &settings()).unwrap();
    let (mut a, mut b) = (filled(&store, "a", 200, 100), Table::create(&store, "b"));
    b.write(0..50);
    let pinned = store.pin().unwrap();
    // Rows come, segments and journal files are no longer needed, tables go.
    a.write(300..600);
    a.flush().unwrap();
    b.flush().unwrap();
    b.write(50..90);
    b.flush().unwrap();
    store.commit(vec![Op::DropTable { table: b.def.id }]).unwrap();
    b.state.retire();
    drop(b);
    sim.clock.advance(Duration::from_secs(10));
    store.collect_garbage().unwrap();
    sim.clock.advance(Duration::from_secs(10));
    assert_eq!(store.collect_garbage().unwrap(), 0, "held");
    let copied = keep(&sim, &pinned).unwrap();
    assert_eq!(copied.objects, copied.copied_objects);
    assert_eq!(copied.bytes, pinned.plan().bytes());
    drop(pinned);
    assert_eq!(store.collect_garbage().unwrap(), 0, "the grace period begins");
    sim.clock.advance(Duration::from_secs(10));
    assert!(store.collect_garbage().unwrap() > 0, "let go");
    store.commit(vec![Op::CreateDatabase { name: "d".to_owned() }]).unwrap();
    assert_eq!(store.stats().log_files, 0, "the journal is trimmed again");

    let restored = restore(&sim, None).unwrap();
    assert_eq!((restored.name, restored.bytes), (copied.name, copied.bytes));
    let report = integrity::check(&sim.env(), Path::new(COPY), &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    let copy = open_copy(&sim);
    assert_eq!((stored_rows(&copy, "a"), stored_rows(&copy, "b")), (300, 50));
    assert!(!copy.catalog().databases.contains("d"));
    // It is a store of its own.
    let mut a = Table::reclaim(&copy, "a");
    a.write(1000..1010);
    a.flush().unwrap();
    assert_eq!(stored_rows(&copy, "a"), 310);
    assert_eq!(stored_rows(&store, "a"), 600);
}

#[test]
fn a_second_backup_copies_what_is_new_and_each_can_be_restored() {
    let sim = Sim::new(2);
    let store = open(&sim, &settings()).unwrap();
    let mut a = filled(&store, "a", 200, 0);
    let first = keep(&sim, &store.pin().unwrap()).unwrap();
    sim.clock.advance(Duration::from_secs(1));
    a.write(200..250);
    a.flush().unwrap();
    let pinned = store.pin().unwrap();
    let second = keep(&sim, &pinned).unwrap();
    let segments = pinned.plan().objects.iter().filter(|it| it.kind == Kind::Segment).count();
    assert_eq!(segments, 2);
    assert_eq!(second.objects - second.copied_objects, 1, "the first segment was there");
    let names: Vec<_> =
        backup::list(&vault(&sim)).unwrap().into_iter().map(|each| each.name).collect();
    assert_eq!(names, [first.name.clone(), second.name]);
    restore(&sim, Some(&first.name)).unwrap();
    assert_eq!(stored_rows(&open_copy(&sim), "a"), 200);
    let other = Path::new("/other");
    backup::restore(&vault(&sim), None, &sim.env(), other, &mut |_| {}).unwrap();
    let copy = Store::open_stepped(sim.env(), other.to_owned(), &settings()).unwrap();
    assert_eq!(stored_rows(&copy, "a"), 250);
}

#[test]
fn a_backup_that_is_interrupted_does_not_count_and_the_next_goes_on() {
    for operation in [Operation::Create, Operation::Append, Operation::Sync, Operation::Link] {
        for after in 0..12 {
            let sim = Sim::new(3);
            let store = open(&sim, &settings()).unwrap();
            let mut a = Table::create(&store, "a");
            for round in 0..3 {
                a.write(round * 100..round * 100 + 100);
                a.flush().unwrap();
            }
            a.write(300..330);
            let pinned = store.pin().unwrap();
            sim.disk.fail_after(operation, after, Fault::Eio);
            let outcome = keep(&sim, &pinned);
            sim.disk.heal();
            match outcome {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.code(), Code::Io, "{error:?}");
                    assert_eq!(backup::list(&vault(&sim)).unwrap(), []);
                    assert_eq!(restore(&sim, None).unwrap_err().code(), Code::InvalidInput);
                    sim.clock.advance(Duration::from_secs(1));
                    keep(&sim, &store.pin().unwrap()).unwrap();
                }
            }
            restore(&sim, None).unwrap();
            assert_eq!(stored_rows(&open_copy(&sim), "a"), 330, "{operation:?} after {after}");
        }
    }
}

#[test]
fn damage_is_not_backed_up_but_told() {
    let sim = Sim::new(4);
    let store = open(&sim, &settings()).unwrap();
    let mut a = filled(&store, "a", 200, 0);
    let segment = files(&sim, "data").into_iter().next().unwrap();
    sim.disk.flip_bit(&segment, 100, 1).unwrap();
    let error = keep(&sim, &store.pin().unwrap()).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains(segment.file_name().unwrap().to_str().unwrap()), "{error:?}");
    assert!(error.hint().unwrap().contains("kymo check"), "{error:?}");
    assert!(files(&sim, "/backups/data").is_empty(), "{:?}", files(&sim, PLACE));
    sim.disk.flip_bit(&segment, 100, 1).unwrap();
    a.write(200..400);
    let journal = files(&sim, "wal").into_iter().next().unwrap();
    sim.disk.flip_bit(&journal, 64 + 70, 1).unwrap();
    let error = store.pin().map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    // What was refused holds nothing.
    sim.disk.flip_bit(&journal, 64 + 70, 1).unwrap();
    a.flush().unwrap();
    assert_eq!(store.stats().log_files, 0);
}

#[test]
fn a_backup_that_is_damaged_restores_nothing() {
    let sim = Sim::new(5);
    let store = open(&sim, &settings()).unwrap();
    filled(&store, "a", 200, 100);
    keep(&sim, &store.pin().unwrap()).unwrap();
    let verified = backup::verify(&vault(&sim), None, &mut |_| {}).unwrap();
    assert!(verified.objects >= 3 && !sim.env().disk.exists(Path::new(COPY)).unwrap());
    let mut tried = 0;
    for path in files(&sim, PLACE) {
        let sim = &sim;
        sim.disk.flip_bit(&path, 40, 6).unwrap();
        let error = backup::verify(&vault(sim), None, &mut |_| {}).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{}: {error:?}", path.display());
        let error = restore(sim, None).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "{}: {error:?}", path.display());
        assert!(error.hint().is_some(), "{error:?}");
        sim.disk.flip_bit(&path, 40, 6).unwrap();
        // A server does not take the half for a whole.
        if sim.env().disk.exists(Path::new(COPY)).unwrap() {
            let half = Store::open_stepped(sim.env(), PathBuf::from(COPY), &settings());
            let error = half.map(|_| ()).unwrap_err();
            assert!(error.message().contains("restore"), "{error:?}");
            let again = restore(sim, None).unwrap_err();
            assert_eq!(again.code(), Code::InvalidInput, "not empty");
            files(sim, COPY).iter().for_each(|path| sim.env().disk.remove(path).unwrap());
            remove_folders(sim, Path::new(COPY));
        }
        tried += 1;
    }
    assert!(tried >= 4, "{tried}");
    restore(&sim, None).unwrap();
    assert_eq!(stored_rows(&open_copy(&sim), "a"), 300);
}

fn remove_folders(sim: &Sim, folder: &Path) {
    for entry in sim.env().disk.list(folder).unwrap() {
        remove_folders(sim, &folder.join(entry.name));
    }
    sim.env().disk.remove_dir(folder).unwrap();
}

#[test]
fn a_manifest_leads_nowhere_else() {
    for path in ["data/../../etc/passwd", "/etc/passwd", "data//x", "meta/x", "data/a\\b", "data/."]
    {
        let object = Object { path: path.to_owned(), kind: Kind::Segment, bytes: 1 };
        assert_eq!(object.check().unwrap_err().code(), Code::Corrupt, "{path}");
    }
    let object = Object { path: "data/a/b.parquet".to_owned(), kind: Kind::Segment, bytes: 1 };
    object.check().unwrap();
}

#[test]
fn a_folder_in_use_is_not_restored_into() {
    let sim = Sim::new(6);
    let store = open(&sim, &settings()).unwrap();
    keep(&sim, &store.pin().unwrap()).unwrap();
    let into = backup::restore(&vault(&sim), None, &sim.env(), Path::new(ROOT), &mut |_| {});
    assert_eq!(into.unwrap_err().code(), Code::InvalidInput);
    assert_eq!(restore(&sim, Some("yesterday")).unwrap_err().code(), Code::InvalidInput);
}
