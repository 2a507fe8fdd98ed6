//! Damage, one kind a test: what a start, a check and a repair make of it. The rows of the table
//! in `docs/integrity.md`.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod filled;
    pub mod plugin;
    pub mod scattered;
    pub mod store;
    pub mod stored;
    pub mod table;
}

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kit::filled::filled;
use kit::plugin::plugin;
use kit::store::{ROOT, files, open, settings};
use kit::stored::stored_rows;
use kit::table::Table;
use kymo_kernel::Code;
use kymo_kernel::digest::Digest;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::plugin::PluginDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::integrity::{self, Finding, Repaired, Report, Severity, Trouble};
use kymo_kernel::storage::meta::Op;

fn check(sim: &Sim) -> Report {
    integrity::check(&sim.env(), Path::new(ROOT), &mut |_| {}).unwrap()
}

fn repair(sim: &Sim) -> Repaired {
    integrity::repair(&sim.env(), Path::new(ROOT), &settings(), &mut |_| {}).unwrap()
}

fn length(sim: &Sim, path: &Path) -> u64 {
    sim.env().disk.open(path).unwrap().len().unwrap()
}

/// A closed store: table `flushed` is in segments as a whole, of `cpu` only the first 200 of 500
/// rows are.
fn closed(sim: &Sim) {
    let store = open(sim, &settings()).unwrap();
    let (mut flushed, mut cpu) = (Table::create(&store, "flushed"), Table::create(&store, "cpu"));
    flushed.write(0..50);
    cpu.write(0..200);
    cpu.flush().unwrap();
    cpu.write(200..500);
    flushed.write(50..100);
    flushed.flush().unwrap();
}

/// The one finding that there must be.
fn only(report: &Report) -> &Finding {
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    &report.findings[0]
}

fn refused(sim: &Sim) -> String {
    let error = open(sim, &settings()).map(|_| ()).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt, "{error:?}");
    assert!(error.hint().is_some(), "{error:?}");
    error.to_string()
}

/// Repairs, and opens what is whole again then.
fn mended(sim: &Sim) -> (Repaired, Arc<Store>) {
    let repaired = repair(sim);
    assert!(repaired.after.is_whole(), "{:#?}", repaired.after.findings);
    assert!(!repaired.actions.is_empty());
    (repaired, open(sim, &settings()).unwrap())
}

#[test]
fn a_whole_store_is_whole_and_nothing_is_changed() {
    let sim = Sim::new(1);
    let store = open(&sim, &settings()).unwrap();
    let locked = integrity::check(&sim.env(), Path::new(ROOT), &mut |_| {}).unwrap_err();
    assert_eq!(locked.code(), Code::Locked);
    let locked = integrity::repair(&sim.env(), Path::new(ROOT), &settings(), &mut |_| {});
    assert_eq!(locked.unwrap_err().code(), Code::Locked);
    drop(store);
    closed(&sim);
    let before = (sim.disk.files(), sim.disk.used());
    let mut seen = Vec::new();
    let report = integrity::check(&sim.env(), Path::new(ROOT), &mut |at| seen.push(at)).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.tables, report.segments, report.segment_rows), (2, 2, 300));
    assert!(report.records >= 30, "{report:?}");
    assert!(seen.last().is_some_and(|at| at.done == at.total && at.total > 0), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].done <= pair[1].done), "{seen:?}");
    let repaired = repair(&sim);
    assert!(repaired.actions.is_empty() && repaired.salvage.is_none());
    assert_eq!((sim.disk.files(), sim.disk.used()), before);
}

#[test]
fn a_folder_without_a_store_is_refused_and_stays_as_it_is() {
    let sim = Sim::new(1);
    let error = integrity::check(&sim.env(), Path::new(ROOT), &mut |_| {}).unwrap_err();
    assert_eq!(error.code(), Code::InvalidInput);
    assert!(sim.disk.files().is_empty());
}

#[test]
fn a_torn_tail_is_a_note_and_the_next_start_leaves_it_behind() {
    let sim = Sim::new(2);
    closed(&sim);
    let last = files(&sim, "wal").pop().unwrap();
    let mut file = sim.env().disk.open(&last).unwrap();
    file.truncate(length(&sim, &last) - 7).unwrap();
    drop(file);
    let report = check(&sim);
    // The record that is cut was in a segment already, so nothing else is missing.
    let note = report.findings.iter().find(|it| it.trouble == Trouble::JournalTorn).unwrap();
    assert_eq!(note.severity, Severity::Note);
    assert!(note.offset.is_some());
}

#[test]
fn a_flipped_bit_in_the_journal_costs_the_one_record_that_it_is_in() {
    // In the payload of a record, and in its header.
    for into in [60, 30] {
        let sim = Sim::new(3);
        closed(&sim);
        let journal = files(&sim, "wal");
        let newest = &journal[journal.len() - 2];
        sim.disk.flip_bit(newest, 64 + into, 3).unwrap();
        let said = refused(&sim);
        assert!(said.contains(&newest.display().to_string()), "{said}");
        let report = check(&sim);
        let finding = only(&report);
        assert_eq!(finding.trouble, Trouble::JournalDamaged);
        assert_eq!(finding.offset, Some(64));
        assert_eq!(finding.tables, ["kymo.public.cpu"]);
        assert!(finding.repairable && finding.lost.contains("record "), "{finding:?}");
        let (repaired, store) = mended(&sim);
        assert_eq!(stored_rows(&store, "cpu"), 490, "{:#?}", repaired.actions);
        assert_eq!(stored_rows(&store, "flushed"), 100);
        let salvage = repaired.salvage.unwrap();
        let kept = sim.disk.files().into_iter().filter(|path| path.starts_with(&salvage));
        assert_eq!(kept.count(), journal.len() + 1, "the journal and the report");
        // And the store goes on.
        let mut cpu = Table::reclaim(&store, "cpu");
        cpu.write(500..510);
        drop((store, cpu));
        let store = open(&sim, &settings()).unwrap();
        assert_eq!(stored_rows(&store, "cpu"), 500);
    }
}

#[test]
fn damage_to_records_that_are_in_segments_costs_no_row() {
    let sim = Sim::new(4);
    closed(&sim);
    let oldest = &files(&sim, "wal")[0];
    sim.disk.flip_bit(oldest, 64 + 100, 0).unwrap();
    refused(&sim);
    let report = check(&sim);
    assert!(only(&report).lost.ends_with("no rows, all of them are in segments"), "{report:#?}");
    assert_eq!(only(&report).tables, [""; 0]);
    let (_, store) = mended(&sim);
    assert_eq!((stored_rows(&store, "cpu"), stored_rows(&store, "flushed")), (500, 100));
}

#[test]
fn a_damaged_header_of_a_journal_file_costs_no_record() {
    let sim = Sim::new(5);
    closed(&sim);
    let count = files(&sim, "wal").len();
    assert!(count > 3);
    for at in 0..count {
        let sim = Sim::new(5);
        closed(&sim);
        sim.disk.flip_bit(&files(&sim, "wal")[at], 20, 1).unwrap();
        refused(&sim);
        let report = check(&sim);
        assert_eq!(only(&report).lost, "nothing", "{at}: {report:#?}");
        let (_, store) = mended(&sim);
        assert_eq!(
            (stored_rows(&store, "cpu"), stored_rows(&store, "flushed")),
            (500, 100),
            "{at}"
        );
    }
}

#[test]
fn a_journal_file_that_is_gone_costs_its_records_only() {
    let sim = Sim::new(6);
    closed(&sim);
    let journal = files(&sim, "wal");
    let gone = &journal[journal.len() - 2];
    sim.env().disk.remove(gone).unwrap();
    let said = refused(&sim);
    assert!(said.contains("is missing"), "{said}");
    let report = check(&sim);
    let finding = only(&report);
    assert_eq!(finding.trouble, Trouble::JournalMissing);
    assert!(gone.ends_with(finding.object.rsplit('/').next().unwrap()), "{finding:?}");
    assert_eq!(finding.tables, ["kymo.public.cpu"]);
    let (_, store) = mended(&sim);
    let left = stored_rows(&store, "cpu");
    assert!((200..500).contains(&left) && left.is_multiple_of(10), "{left}");
    assert_eq!(stored_rows(&store, "flushed"), 100);
}

#[test]
fn the_newest_journal_file_is_missed_although_the_store_opens() {
    let sim = Sim::new(7);
    closed(&sim);
    sim.env().disk.remove(&files(&sim, "wal").pop().unwrap()).unwrap();
    let report = check(&sim);
    let finding = only(&report);
    assert_eq!((finding.trouble, finding.severity), (Trouble::JournalMissing, Severity::Damage));
    assert!(finding.tables.contains(&"kymo.public.cpu".to_owned()), "{finding:?}");
    let (_, store) = mended(&sim);
    assert!(stored_rows(&store, "cpu") < 500);
    assert_eq!(stored_rows(&store, "flushed"), 100);
}

#[test]
fn a_damaged_last_record_is_given_up_by_a_repair_only() {
    let sim = Sim::new(8);
    let store = open(&sim, &settings()).unwrap();
    Table::create(&store, "cpu").write(0..30);
    drop(store);
    let last = files(&sim, "wal").pop().unwrap();
    sim.disk.flip_bit(&last, length(&sim, &last) - 20, 2).unwrap();
    refused(&sim);
    let report = check(&sim);
    assert_eq!(only(&report).trouble, Trouble::JournalDamaged);
    let (_, store) = mended(&sim);
    assert_eq!(stored_rows(&store, "cpu"), 20);
}

/// A closed store whose metadata has two checkpoints and edits on top.
fn with_databases(sim: &Sim) -> Vec<String> {
    let store = open(sim, &settings()).unwrap();
    Table::create(&store, "cpu").write(0..30);
    for at in 0..20 {
        store.commit(vec![Op::CreateDatabase { name: format!("d{at}") }]).unwrap();
    }
    store.catalog().databases.iter().cloned().collect()
}

#[test]
fn a_damaged_checkpoint_is_made_again_from_the_one_before() {
    let sim = Sim::new(9);
    let databases = with_databases(&sim);
    let newest = files(&sim, "meta/snap").pop().unwrap();
    sim.disk.flip_bit(&newest, 50, 1).unwrap();
    let said = refused(&sim);
    assert!(said.contains(&newest.display().to_string()), "{said}");
    let report = check(&sim);
    let finding = only(&report);
    assert_eq!(finding.trouble, Trouble::MetadataDamaged);
    assert!(finding.lost.starts_with("nothing"), "{finding:?}");
    let (_, store) = mended(&sim);
    assert!(store.catalog().databases.iter().eq(&databases));
    assert_eq!(stored_rows(&store, "cpu"), 30);
}

#[test]
fn a_damaged_or_missing_edit_costs_what_it_changed() {
    for missing in [false, true] {
        let sim = Sim::new(10);
        let databases = with_databases(&sim);
        let edits = files(&sim, "meta/log");
        let edit = &edits[edits.len() - 3];
        match missing {
            true => sim.env().disk.remove(edit).unwrap(),
            false => sim.disk.flip_bit(edit, 45, 1).unwrap(),
        }
        refused(&sim);
        let report = check(&sim);
        let finding = only(&report);
        assert!(edit.ends_with(&finding.object), "{finding:?}");
        assert!(finding.repairable, "{finding:?}");
        let (_, store) = mended(&sim);
        let left = &store.catalog().databases;
        assert_eq!(left.len() + 1, databases.len());
        assert!(left.contains("d19"), "edits after it stay");
        assert_eq!(stored_rows(&store, "cpu"), 30);
    }
}

#[test]
fn a_segment_of_a_lost_edit_is_put_aside_not_deleted() {
    let sim = Sim::new(11);
    let store = open(&sim, &settings()).unwrap();
    filled(&store, "cpu", 30, 0);
    drop(store);
    sim.disk.flip_bit(&files(&sim, "meta/log").pop().unwrap(), 45, 1).unwrap();
    let segment = files(&sim, "data").pop().unwrap();
    let (repaired, store) = mended(&sim);
    // The journal still held the rows.
    assert_eq!(stored_rows(&store, "cpu"), 30);
    let kept = repaired.salvage.unwrap().join(segment.strip_prefix(ROOT).unwrap());
    assert!(sim.disk.files().contains(&kept), "{:#?}", repaired.actions);
}

#[test]
fn a_damaged_spare_of_the_metadata_is_moved_away() {
    let sim = Sim::new(12);
    let databases = with_databases(&sim);
    sim.disk.flip_bit(&files(&sim, "meta/log")[0], 45, 1).unwrap();
    let report = check(&sim);
    assert_eq!(only(&report).trouble, Trouble::SpareDamaged);
    let (_, store) = mended(&sim);
    assert!(store.catalog().databases.iter().eq(&databases));
}

#[test]
fn metadata_without_a_beginning_is_beyond_repair() {
    let sim = Sim::new(13);
    with_databases(&sim);
    for path in files(&sim, "meta/snap") {
        sim.disk.flip_bit(&path, 50, 1).unwrap();
    }
    let report = check(&sim);
    assert!(!report.is_whole() && report.damage().all(|it| !it.repairable), "{report:#?}");
    let before = sim.disk.files();
    let repaired = repair(&sim);
    assert!(repaired.actions.is_empty() && !repaired.after.is_whole());
    assert_eq!(sim.disk.files(), before);
}

/// A closed store with one segment of several thousand rows.
fn with_segment(sim: &Sim) -> PathBuf {
    let store = open(sim, &settings()).unwrap();
    let mut cpu = Table::create(&store, "cpu").scattered();
    for at in 0..40 {
        cpu.append(at * 1000, 1000).unwrap();
    }
    cpu.flush().unwrap();
    drop((store, cpu));
    files(sim, "data").pop().unwrap()
}

#[test]
fn a_segment_with_a_flipped_bit_keeps_the_rows_that_verify() {
    let sim = Sim::new(14);
    let segment = with_segment(&sim);
    let place = length(&sim, &segment) / 2;
    sim.disk.flip_bit(&segment, place, 5).unwrap();
    let report = check(&sim);
    let finding = only(&report);
    assert_eq!(finding.trouble, Trouble::SegmentDamaged);
    assert_eq!(finding.tables, ["kymo.public.cpu"]);
    assert_eq!(finding.time.map(|time| (time.first, time.last)), Some((0, 39_999)));
    let (lost, left) = (finding.rows_lost.unwrap(), finding.rows_left.unwrap());
    assert_eq!(lost + left, 40_000);
    assert!(lost > 0 && left > 0, "{finding:?}");
    let (repaired, store) = mended(&sim);
    assert_eq!(stored_rows(&store, "cpu"), left);
    let kept = repaired.salvage.unwrap().join(segment.strip_prefix(ROOT).unwrap());
    assert!(sim.disk.files().contains(&kept) && !sim.disk.files().contains(&segment));
}

#[test]
fn a_segment_with_a_damaged_index_keeps_all_rows() {
    let sim = Sim::new(15);
    let segment = with_segment(&sim);
    // The index lies between the rows and the footer.
    let store = open(&sim, &settings()).unwrap();
    let meta = store.catalog().tables.values().next().unwrap().segments.values().next().cloned();
    let footer = meta.unwrap().footer;
    drop(store);
    let found = (1..footer).rev().step_by(4).find(|back| {
        sim.disk.flip_bit(&segment, *back, 0).unwrap();
        let report = check(&sim);
        let all = report.damage().next().and_then(|it| it.rows_left) == Some(40_000);
        if !all {
            sim.disk.flip_bit(&segment, *back, 0).unwrap();
        }
        all
    });
    assert!(found.is_some());
    let (_, store) = mended(&sim);
    assert_eq!(stored_rows(&store, "cpu"), 40_000);
}

#[test]
fn a_segment_without_a_footer_or_without_a_file_is_taken_out() {
    for missing in [false, true] {
        let sim = Sim::new(16);
        let segment = with_segment(&sim);
        match missing {
            true => sim.env().disk.remove(&segment).unwrap(),
            false => sim.disk.flip_bit(&segment, length(&sim, &segment) - 30, 1).unwrap(),
        }
        let report = check(&sim);
        let finding = only(&report);
        let trouble = if missing { Trouble::SegmentMissing } else { Trouble::SegmentDamaged };
        assert_eq!(finding.trouble, trouble);
        assert_eq!((finding.rows_lost, finding.rows_left), (Some(40_000), Some(0)));
        let (_, store) = mended(&sim);
        assert_eq!(stored_rows(&store, "cpu"), 0);
    }
}

#[test]
fn a_damaged_component_is_named_and_asks_for_its_plugin() {
    let sim = Sim::new(17);
    let store = open(&sim, &settings()).unwrap();
    let mut staged = store.components().begin().unwrap();
    staged.append(b"the bytes of a component").unwrap();
    let held = staged.publish(None).unwrap();
    let digest = Digest::of(b"the bytes of a component");
    let plugin = PluginDef { active: Some(digest), ..plugin("p", &[(digest, 24)]) };
    store.commit(vec![Op::PutPlugin { plugin }]).unwrap();
    drop((held, store));
    sim.disk.flip_bit(&files(&sim, "plugins")[0], 3, 0).unwrap();
    let report = check(&sim);
    let finding = only(&report);
    assert_eq!(finding.trouble, Trouble::ComponentDamaged);
    assert!(!finding.repairable && finding.lost.contains("\"p\""), "{finding:?}");
    assert!(repair(&sim).actions.is_empty());
}

/// Whatever bit of whatever file is flipped, a check finds it, and a repair makes of it a store
/// that is whole and opens.
#[test]
fn every_flipped_bit_is_found_and_repaired() {
    for seed in 0..200_u64 {
        let sim = Sim::new(seed);
        closed(&sim);
        let all: Vec<PathBuf> =
            sim.disk.files().into_iter().filter(|it| !it.ends_with("LOCK")).collect();
        let env = sim.env();
        let path = &all[env.random.next_u64() as usize % all.len()];
        let at = env.random.next_u64() % length(&sim, path);
        sim.disk.flip_bit(path, at, (env.random.next_u64() % 8) as u8).unwrap();
        let report = check(&sim);
        assert!(!report.findings.is_empty(), "seed {seed}: {} at {at}", path.display());
        let repaired = repair(&sim);
        assert!(repaired.after.is_whole(), "seed {seed}: {:#?}", repaired.after.findings);
        let store = open(&sim, &settings()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(store.catalog().tables.len() + report.damage().count() >= 2, "seed {seed}");
    }
}

/// A store that a build of the second format of metadata left, with rows in segments and in the
/// journal, is whole, opens, and keeps everything when it is written in the format of today.
#[test]
fn a_store_of_an_older_format_is_whole_and_opens() {
    let folder = tempfile::tempdir().unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-2");
    copy(&fixture, folder.path());
    let (env, root) = (kymo_kernel::env::real::env(), folder.path());
    let report = integrity::check(&env, root, &mut |_| {}).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.tables, report.segments, report.segment_rows), (2, 1, 100));
    let repaired = integrity::repair(&env, root, &settings(), &mut |_| {}).unwrap();
    assert!(repaired.actions.is_empty());
    for _ in 0..2 {
        let store = Store::open_stepped(env.clone(), root.to_owned(), &settings()).unwrap();
        assert_eq!((stored_rows(&store, "cpu"), stored_rows(&store, "mem")), (110, 100));
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
            let name = format!("{name}-{}", store.epoch());
            store.commit(vec![Op::CreateDatabase { name }]).unwrap();
        }
    }
    assert!(integrity::check(&env, root, &mut |_| {}).unwrap().is_whole());
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
