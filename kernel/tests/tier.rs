//! A store with a second place for segments: moving, reading, crashes at each step, and what
//! belongs together.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod faulty;
    pub mod store;
    pub mod stored;
    pub mod table;
}

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use kit::faulty::{Fault, Faulty};
use kit::store::{ROOT, files, open, settings};
use kit::stored::stored_rows;
use kit::table::Table;
use kymo_config::Settings;
use kymo_config::settings::Compaction;
use kymo_kernel::bucket::{self, register};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Env;
use kymo_kernel::env::sim::{Fault as DiskFault, Operation, Sim};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::backup::{self, Snapshots};
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::storage::segment::{LocalSegments, Scan, TagFilter};
use kymo_kernel::storage::tier::{self, Tier, place};
use kymo_kernel::storage::version::SegmentRef;
use kymo_kernel::storage::{compact, delete, expire, integrity};
use kymo_kernel::{Code, Error, Result, Retry};
use object_store::ObjectStore;

const PLACE: &str = "/mnt/hdd";

fn with_folder() -> Settings {
    let mut settings = settings();
    settings.storage.cold_url = PLACE.to_owned();
    settings
}

fn with_bucket(name: &str) -> (Faulty, Settings) {
    let faulty = Faulty::default();
    register(name, Arc::new(faulty.clone()));
    let mut settings = settings();
    settings.storage.cold_url = format!("memory://{name}/far");
    (faulty, settings)
}

fn refused(outcome: Result<Arc<Store>>) -> Error {
    match outcome {
        Ok(_) => panic!("the store opened"),
        Err(error) => error,
    }
}

/// The paths of segments on the simulated disk below a folder.
fn parquet(sim: &Sim, folder: &str) -> Vec<String> {
    let names = files(sim, folder).into_iter().map(|path| path.display().to_string());
    names.filter(|name| name.contains(".parquet")).collect()
}

fn objects(faulty: &Faulty) -> Vec<String> {
    let listed = faulty.inner.list(None).map_ok(|it| it.location.to_string());
    let mut keys: Vec<String> = futures::executor::block_on(listed.try_collect()).unwrap();
    keys.sort();
    keys
}

/// A table with a segment of ten rows.
fn flushed(store: &Arc<Store>) -> Table {
    let mut table = Table::create(store, "t");
    table.append(0, 10).unwrap();
    table.flush().unwrap();
    table
}

/// Nothing waits for a merge.
fn unmerged() -> Compaction {
    Compaction { enabled: false, ..Compaction::default() }
}

fn copy(table: &Table) -> Result<(SegmentMeta, SegmentMeta)> {
    let version = table.state.cell().load();
    let segment = tier::pick(&version, &unmerged(), i64::MAX, &|_| true).unwrap();
    let moved = table.store.copy_to_cold(&segment, &CancelToken::new(), &mut |_| {})?;
    Ok((SegmentMeta::clone(segment.meta()), moved))
}

/// Moves the next segment of a table, as the actor does.
fn relocate(table: &mut Table) -> Result<SegmentMeta> {
    let (from, moved) = copy(table)?;
    let outputs = vec![moved.clone()];
    let op = Op::Replace { table: table.def.id, inputs: vec![from.id], outputs };
    table.store.commit(vec![op])?;
    table.state.replaced(&[from.id], [Arc::new(moved.clone())])?;
    Ok(moved)
}

/// The rows that are read of each segment.
fn rows_read(table: &Table) -> Vec<usize> {
    let version = table.state.cell().load();
    let rows = |segment: &Arc<SegmentRef>| -> usize {
        let scan = Scan::all(table.def.schema.arrow(), 100);
        segment.reader().unwrap().scan(&scan).unwrap().map(|it| it.unwrap().num_rows()).sum()
    };
    version.segments.iter().map(rows).collect()
}

fn tiers(table: &Table) -> Vec<Tier> {
    table.state.cell().load().segments.iter().map(|segment| Tier::of(segment.meta())).collect()
}

fn collect(sim: &Sim, store: &Store) -> usize {
    store.collect_garbage().unwrap();
    sim.clock.advance(Duration::from_secs(2));
    store.collect_garbage().unwrap()
}

#[test]
fn a_segment_moves_and_is_read_and_the_original_is_collected_when_nobody_reads_it() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    let pinned = table.state.cell().load();
    let moved = relocate(&mut table).unwrap();
    assert_eq!((tiers(&table), rows_read(&table)), (vec![Tier::Cold], vec![10]));
    assert_eq!(parquet(&sim, PLACE), [format!("{PLACE}/{}", moved.path)]);
    assert_eq!(collect(&sim, &store), 0, "a query has the original");
    assert_eq!(parquet(&sim, "/store/data").len(), 1);
    drop(pinned);
    assert_eq!(collect(&sim, &store), 1);
    assert!(parquet(&sim, "/store/data").is_empty());
    drop((table, store));
    sim.disk.crash(3);
    let store = open(&sim, &settings).unwrap();
    let table = Table::reclaim(&store, "t");
    assert_eq!((tiers(&table), rows_read(&table)), (vec![Tier::Cold], vec![10]));
}

#[test]
fn a_crash_at_any_step_leaves_the_segment_in_one_place_and_no_garbage() {
    for step in 0..3 {
        for (seed, url) in [(1, PLACE), (2, PLACE), (3, "memory://crash-step/far")] {
            let sim = Sim::new(seed);
            let mut settings = settings();
            register("crash-step", Arc::new(Faulty::default()));
            settings.storage.cold_url = url.to_owned();
            let store = open(&sim, &settings).unwrap();
            let mut table = flushed(&store);
            match step {
                0 => {
                    // Half of the copy is written.
                    let mut upload = store.segments().store.create("cold/a/half.parquet").unwrap();
                    upload.write_all(&[1; 3000]).unwrap();
                    std::mem::forget(upload);
                }
                1 => drop(copy(&table).unwrap()),
                _ => drop(relocate(&mut table).unwrap()),
            }
            drop((table, store));
            sim.disk.crash(seed + 10);
            let store = open(&sim, &settings).unwrap();
            let table = Table::reclaim(&store, "t");
            let tier = if step == 2 { Tier::Cold } else { Tier::Hot };
            assert_eq!((tiers(&table), rows_read(&table)), (vec![tier], vec![10]), "step {step}");
            let hot = parquet(&sim, "/store/data").len();
            assert_eq!(hot, usize::from(tier == Tier::Hot), "step {step}");
            if url == PLACE {
                assert_eq!(parquet(&sim, PLACE).len(), 1 - hot, "step {step}");
            }
        }
    }
}

#[test]
fn garbage_in_a_bucket_goes_with_the_next_start_and_the_mark_stays() {
    let (faulty, settings) = with_bucket("cold-garbage");
    let sim = Sim::new(1);
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    copy(&table).unwrap();
    let moved = relocate(&mut table).unwrap();
    assert_eq!(objects(&faulty).len(), 3);
    drop((table, store));
    let store = open(&sim, &settings).unwrap();
    assert_eq!(objects(&faulty), ["far/cold/OWNER".to_owned(), format!("far/{}", moved.path)]);
    assert_eq!(stored_rows(&store, "t"), 10);
}

#[test]
fn a_place_that_does_not_answer_or_is_full_costs_nothing_but_the_move() {
    let (faulty, settings) = with_bucket("cold-down");
    let sim = Sim::new(1);
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    faulty.plan.lock().down = true;
    let error = relocate(&mut table).unwrap_err();
    assert!(error.code() == Code::Unreachable && matches!(error.retry(), Retry::After(_)));
    assert_eq!((tiers(&table), rows_read(&table)), (vec![Tier::Hot], vec![10]));
    table.append(10, 5).unwrap();
    table.flush().unwrap();
    faulty.plan.lock().down = false;
    for fault in [Fault::Lost, Fault::Refused, Fault::Conflict] {
        faulty.plan.lock().puts.push_back(fault);
    }
    relocate(&mut table).unwrap();
    assert!(store.poisoned().is_none());
    faulty.plan.lock().down = true;
    table.append(20, 5).unwrap();
    table.flush().unwrap();
    drop((table, store));
    assert_eq!(refused(open(&sim, &settings)).code(), Code::Unreachable);

    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    sim.disk.fail_after(Operation::Append, 0, DiskFault::Enospc);
    assert_eq!(relocate(&mut table).unwrap_err().code(), Code::DiskFull);
    assert!(store.poisoned().is_none() && parquet(&sim, PLACE).is_empty());
    relocate(&mut table).unwrap();
}

#[test]
fn a_file_system_that_is_gone_is_noticed() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    let mark = PathBuf::from(PLACE).join(place::MARKER);
    let env = sim.env();
    env.disk.remove(&mark).unwrap();
    let error = relocate(&mut table).unwrap_err();
    assert_eq!(error.code(), Code::Unreachable, "{error:?}");
    drop((table, store));
    let error = refused(open(&sim, &settings));
    assert_eq!(error.code(), Code::Settings, "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("/store/COLD")), "{error:?}");
    env.disk.remove(&Path::new(ROOT).join(place::FILE)).unwrap();
    let store = open(&sim, &settings).unwrap();
    relocate(&mut Table::reclaim(&store, "t")).unwrap();
}

#[test]
fn a_store_without_its_cold_segments_is_refused() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    relocate(&mut table).unwrap();
    drop((table, store));
    let unset = kit::store::settings();
    let error = refused(open(&sim, &unset));
    assert_eq!(error.code(), Code::Settings);
    assert!(error.message().contains(PLACE) && error.message().contains("storage.cold_url"));
    let check = integrity::check(&sim.env(), Path::new(ROOT), &mut |_| {});
    assert_eq!(check.unwrap_err().code(), Code::Settings, "missing is not damaged");
    let mut other = settings.clone();
    other.storage.cold_url = "/mnt/other".to_owned();
    let error = refused(open(&sim, &other));
    assert!(error.message().contains("lacks 1 of 1"), "{error:?}");
    open(&sim, &settings).unwrap();
}

#[test]
fn two_stores_do_not_share_a_place() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    relocate(&mut flushed(&store)).unwrap();
    let other = Store::open_stepped(sim.env(), "/other".into(), &settings);
    let error = refused(other);
    assert_eq!(error.code(), Code::Settings);
    assert!(error.message().contains("another store"), "{error:?}");
    let env = sim.env();
    env.disk.create_dir_all(Path::new("/mnt/cold/photos")).unwrap();
    env.disk.create(Path::new("/mnt/cold/photos/1.jpg")).unwrap();
    let mut taken = settings.clone();
    taken.storage.cold_url = "/mnt".to_owned();
    let error = refused(Store::open_stepped(sim.env(), "/third".into(), &taken));
    assert!(error.message().contains("somebody else"), "{error:?}");
    assert!(env.disk.exists(Path::new("/mnt/cold/photos/1.jpg")).unwrap());
}

#[test]
fn a_place_is_moved_by_moving_its_files() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    let moved = relocate(&mut table).unwrap();
    drop((table, store));
    // Into the data folder, where nothing has to be set.
    let env = sim.env();
    let carry = |from: &str, to: &str| {
        let (from, to) = (PathBuf::from(from), PathBuf::from(to));
        env.disk.create_dir_all(to.parent().unwrap()).unwrap();
        env.disk.rename(&from, &to).unwrap();
    };
    carry(&format!("{PLACE}/{}", moved.path), &format!("{ROOT}/{}", moved.path));
    let unset = kit::store::settings();
    assert_eq!(rows_read(&Table::reclaim(&open(&sim, &unset).unwrap(), "t")), [10]);
    let hidden = refused(open(&sim, &settings));
    assert!(hidden.message().contains("/store/cold holds segments"), "{hidden:?}");
    // And into another place.
    carry(&format!("{ROOT}/{}", moved.path), &format!("/mnt/other/{}", moved.path));
    let place = PathBuf::from(ROOT).join(&moved.path);
    for folder in place.ancestors().skip(1).take_while(|folder| *folder != Path::new(ROOT)) {
        env.disk.remove_dir(folder).unwrap();
    }
    let mut other = settings.clone();
    other.storage.cold_url = "file:///mnt/other".to_owned();
    assert_eq!(rows_read(&Table::reclaim(&open(&sim, &other).unwrap(), "t")), [10]);
}

#[test]
fn deletions_merges_and_retention_take_cold_segments() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    relocate(&mut table).unwrap();
    // A deletion.
    let version = table.state.cell().load();
    let times = TimeRange { first: 0, last: 3 };
    let token = CancelToken::new();
    let parts = delete::parts(&version, &times, &TagFilter::all());
    let rows = parts[0].choose(&times, None, &token).unwrap();
    let left = delete::rewrite(&parts[0], Some(&rows), store.segments(), &token).unwrap().unwrap();
    let (inputs, outputs) = (parts[0].ids(), vec![left.clone()]);
    let op = Op::Delete { table: table.def.id, inputs: inputs.clone(), outputs };
    store.commit(vec![op]).unwrap();
    table.state.deleted(&inputs, [Arc::new(left)]).unwrap();
    drop((version, parts));
    assert_eq!((tiers(&table), rows_read(&table)), (vec![Tier::Hot], vec![6]));
    assert_eq!(collect(&sim, &store), 2, "the original, and the copy in the second place");
    assert!(parquet(&sim, PLACE).is_empty());
    // A merge.
    relocate(&mut table).unwrap();
    table.append(2, 3).unwrap();
    table.flush().unwrap();
    let merging = Compaction { min_segments: 2, ..Compaction::default() };
    let job = compact::pick(&table.state.cell().load(), &merging, i64::MAX).unwrap();
    let merged = compact::run(&job, store.segments(), &token, &mut |_| {}).unwrap().segment;
    let (inputs, outputs) = (job.input_ids(), Vec::from_iter(merged.clone()));
    let op = Op::Replace { table: table.def.id, inputs: inputs.clone(), outputs };
    store.commit(vec![op]).unwrap();
    table.state.replaced(&inputs, merged.map(Arc::new)).unwrap();
    drop(job);
    assert_eq!((tiers(&table), rows_read(&table)), (vec![Tier::Hot], vec![8]));
    // Retention.
    relocate(&mut table).unwrap();
    let expired = expire::whole(&table.state.cell().load(), 100);
    assert_eq!(expired.rows, 8);
    let op = Op::DropSegments { table: table.def.id, segments: expired.segments.clone() };
    store.commit(vec![op]).unwrap();
    table.state.replaced(&expired.segments, []).unwrap();
    collect(&sim, &store);
    assert!(parquet(&sim, PLACE).is_empty() && parquet(&sim, ROOT).is_empty());
}

#[test]
fn backups_hold_cold_segments_and_are_restored_with_and_without_a_second_place() {
    let (_faulty, settings) = with_bucket("cold-backup");
    let sim = Sim::new(1);
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    relocate(&mut table).unwrap();
    table.append(10, 5).unwrap();
    let vault = LocalSegments::new(sim.disk.clone(), "/backups".into());
    let pinned = store.pin().unwrap();
    backup::keep(pinned.plan(), &pinned, &vault, &mut |_| {}).unwrap();
    backup::verify(&vault, None, &mut |_| {}).unwrap();
    let restore = |settings: &Settings, root: &str| {
        let env = bucket::attached(sim.env(), Path::new(root), &settings.storage).unwrap();
        backup::restore(&vault, None, &env, Path::new(root), &mut |_| {})?;
        Store::open_stepped(sim.env(), root.into(), settings)
    };
    let copy = restore(&kit::store::settings(), "/plain").unwrap();
    assert_eq!(stored_rows(&copy, "t"), 15);
    assert_eq!(tiers(&Table::reclaim(&copy, "t")), [Tier::Cold]);
    assert_eq!(parquet(&sim, "/plain/cold").len(), 1);
    let copy = restore(&with_folder(), "/copy").unwrap();
    assert_eq!((stored_rows(&copy, "t"), parquet(&sim, PLACE).len()), (15, 1));
    let error = refused(restore(&with_folder(), "/again"));
    assert_eq!(error.code(), Code::InvalidInput, "{error:?}");
}

#[test]
fn snapshots_have_copies_of_cold_segments() {
    for settings in [with_folder(), with_bucket("cold-snapshot").1] {
        let sim = Sim::new(1);
        let store = open(&sim, &settings).unwrap();
        let mut table = flushed(&store);
        relocate(&mut table).unwrap();
        table.append(10, 5).unwrap();
        let env = bucket::attached(sim.env(), Path::new(ROOT), &settings.storage).unwrap();
        let taken = Snapshots::new(env, ROOT.into(), 1).take(&store).unwrap();
        let copy = Store::open_stepped(sim.env(), taken.folder, &kit::store::settings()).unwrap();
        let table = Table::reclaim(&copy, "t");
        assert_eq!((stored_rows(&copy, "t"), tiers(&table)), (15, vec![Tier::Cold]));
        assert_eq!(rows_read(&table), [10]);
    }
}

#[test]
fn cold_segments_are_checked_and_repaired() {
    let (sim, settings) = (Sim::new(1), with_folder());
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    let moved = relocate(&mut table).unwrap();
    drop((table, store));
    let root = Path::new(ROOT);
    let env = || -> Env { bucket::attached(sim.env(), root, &settings.storage).unwrap() };
    let report = integrity::check(&env(), root, &mut |_| {}).unwrap();
    assert!(report.is_whole(), "{report:?}");
    let stray = |finding: &integrity::Finding| finding.object.starts_with("cold/");
    assert!(!report.findings.iter().any(stray), "{report:?}");
    let path = PathBuf::from(PLACE).join(&moved.path);
    sim.disk.flip_bit(&path, moved.footer + 5, 1).unwrap();
    let report = integrity::check(&env(), root, &mut |_| {}).unwrap();
    assert!(report.damage().any(|finding| finding.object == moved.path), "{report:?}");
    let done = integrity::repair(&env(), root, &settings, &mut |_| {}).unwrap();
    assert!(done.after.is_whole(), "{:?}", done.after);
    let salvage = done.salvage.unwrap().join(&moved.path);
    assert!(sim.disk.files().contains(&salvage), "{:?}", sim.disk.files());
    assert!(parquet(&sim, PLACE).is_empty());
    open(&sim, &settings).unwrap();
}

#[test]
fn a_store_in_a_bucket_has_its_second_place_too() {
    let (faulty, mut settings) = with_bucket("cold-far");
    register("cold-near", Arc::new(Faulty::default()));
    settings.storage.url = "memory://cold-near/store".to_owned();
    let sim = Sim::new(1);
    let store = open(&sim, &settings).unwrap();
    let mut table = flushed(&store);
    assert!(!objects(&faulty).iter().any(|key| key.ends_with(".parquet")));
    let moved = relocate(&mut table).unwrap();
    assert!(objects(&faulty).contains(&format!("far/{}", moved.path)));
    assert_eq!(collect(&sim, &store), 1);
    store.close();
    drop((table, store));
    // Another data folder takes the bucket, and the second place with it.
    let store = Store::open_stepped(sim.env(), "/next".into(), &settings).unwrap();
    let table = Table::reclaim(&store, "t");
    assert_eq!((tiers(&table), rows_read(&table)), (vec![Tier::Cold], vec![10]));
}
