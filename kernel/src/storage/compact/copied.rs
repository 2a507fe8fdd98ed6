//! Tests of merges that copy row groups: whatever is copied, the segment must be the one that
//! decoding everything would make.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use kymo_config::settings::Compaction as Settings;
use proptest::prelude::*;

use super::choice::{job, windows};
use super::*;
use crate::cancel::CancelToken;
use crate::error::Code;
use crate::ids::{SegmentId, TimeRange};
use crate::storage::meta::SegmentMeta;
use crate::storage::model::{Bench, Row, Rows, WINDOW, position, read, row, scan};
use crate::storage::segment::{Scan, SegmentReader, TagFilter};
use crate::storage::sort::window_start;
use crate::storage::version::Version;

/// Row groups of the bench have seven rows.
const GROUP: i64 = 7;

/// Rows of one series, one each nanosecond.
fn series(a: &str, times: Range<i64>) -> Rows {
    let row = |time| Row {
        a: Some(a.to_owned()),
        b: None,
        time,
        float: Some(time as f64 / 2.0),
        int: (time % 3 > 0).then_some(time),
        text: Some(format!("text {time}")),
    };
    Rows { rows: times.map(row).collect(), columns: 0xff }
}

/// A table that holds each write as a segment of its own, merged once.
fn settled(writes: &[Rows], append_only: bool) -> Bench {
    let mut bench = Bench::new(append_only);
    for rows in writes {
        bench.write(rows.batch());
        bench.flush();
    }
    let version = bench.version();
    for segment in version.segments.iter() {
        let first = segment.meta().time.first;
        let window = window_start(first, WINDOW);
        bench.merge(&all_of(&version, window, std::slice::from_ref(segment)));
    }
    bench
}

fn all_of(version: &Version, window: i64, inputs: &[Arc<SegmentRef>]) -> Job {
    let oldest = windows(version)[&window][0].meta().id == inputs[0].meta().id;
    job(version, &Settings::default(), Reason::Size, window, inputs, oldest)
}

fn jobs(version: &Version) -> Vec<Job> {
    let windows = windows(version);
    windows.iter().map(|(window, inputs)| all_of(version, *window, inputs)).collect()
}

/// The same segment without its name, which each has for itself, and what depends on encoding.
fn same(meta: &SegmentMeta) -> SegmentMeta {
    let id = SegmentId::default();
    let (path, bytes, footer, checksum) = (String::new(), 0, 0, 0);
    SegmentMeta { id, path, bytes, footer, checksum, ..meta.clone() }
}

/// Each series with its rows.
type Index = Vec<(Vec<u8>, Range<u64>)>;

/// Everything that a reader can find out about a segment.
fn contents(bench: &Bench, meta: SegmentMeta) -> (Vec<Row>, Index) {
    let reader = SegmentReader::open(bench.target.store.as_ref(), &Arc::new(meta)).unwrap();
    reader.verify().unwrap();
    let columns = bench.version().table.schema.arrow();
    let rows = |scan: &Scan| -> Vec<Row> {
        reader.scan(scan).unwrap().flat_map(|batch| read(&batch.unwrap())).collect()
    };
    let mut index = Vec::new();
    let visit = &mut |key: &[u8], rows: Range<u64>| {
        index.push((key.to_vec(), rows));
        Ok(std::ops::ControlFlow::Continue(()))
    };
    reader.walk(&[], visit).unwrap();
    let all = rows(&Scan::all(columns.clone(), 5));
    // One page after the other by its bounds, and one series by the index.
    for wanted in [-1, 0, 5, WINDOW] {
        let time = TimeRange { first: wanted, last: wanted };
        let scan = Scan { time, ..Scan::all(columns.clone(), 5) };
        let at = |row: &&Row| row.time == wanted;
        let found = rows(&scan);
        assert_eq!(found.iter().filter(at).count(), all.iter().filter(at).count());
    }
    let tags = TagFilter::all().and(0, [Some("a".to_owned())]);
    let found = rows(&Scan { tags, ..Scan::all(columns, 5) });
    let of = |row: &&Row| row.a.as_deref() == Some("a");
    assert_eq!(found, all.iter().filter(of).cloned().collect::<Vec<_>>());
    (all, index)
}

/// Merges twice, with and without copying, and compares; how many rows were copied.
fn compare(bench: &Bench, job: &Job) -> u64 {
    let cancel = CancelToken::new();
    let mut last = 0;
    let copied = run(job, &bench.target, &cancel, &mut |rows| last = rows).unwrap();
    let decoded = rewrite(job, &bench.target, &cancel, &mut Ok, &mut |_| {}).unwrap();
    let (mine, other) = (copied.segment.unwrap(), decoded.segment.unwrap());
    assert_eq!((last, decoded.copied), (mine.rows, 0));
    assert_eq!(same(&mine), same(&other));
    assert_eq!(contents(bench, mine), contents(bench, other));
    copied.copied
}

#[test]
fn series_of_their_own_are_copied() {
    let writes = ["b", "a", "c"].map(|a| series(a, 0..3 * GROUP));
    let bench = settled(&writes, false);
    let jobs = jobs(&bench.version());
    assert_eq!(compare(&bench, &jobs[0]), 9 * GROUP as u64);
}

#[test]
fn what_overlaps_is_decoded_between_what_is_copied() {
    let later = series("a", 3 * GROUP - 2..6 * GROUP);
    let writes = [series("a", 0..3 * GROUP), later, series("b", 0..GROUP)];
    for append_only in [false, true] {
        let bench = settled(&writes, append_only);
        let copied = compare(&bench, &jobs(&bench.version())[0]);
        assert!(copied > 0 && copied < 7 * GROUP as u64, "{copied}");
    }
}

#[test]
fn fresh_segments_and_small_row_groups_are_decoded() {
    let mut bench = Bench::new(false);
    for a in ["a", "b"] {
        bench.write(series(a, 0..2 * GROUP).batch());
        bench.flush();
    }
    assert_eq!(compare(&bench, &jobs(&bench.version())[0]), 0, "cheaply encoded");
    let bench = settled(&["a", "b"].map(|a| series(a, 0..GROUP / 2 - 1)), false);
    assert_eq!(compare(&bench, &jobs(&bench.version())[0]), 0, "row groups would stay small");
}

#[test]
fn a_column_that_one_segment_lacks_makes_it_decoded() {
    let mut without = series("a", 0..GROUP);
    without.columns = !(1 << 3);
    let bench = settled(&[without, series("b", 0..GROUP)], false);
    assert_eq!(compare(&bench, &jobs(&bench.version())[0]), GROUP as u64);
}

#[test]
fn a_nan_that_is_copied_takes_the_bounds_of_its_column() {
    let mut odd = series("a", 0..GROUP);
    odd.rows[3].float = Some(f64::NAN);
    let bench = settled(&[odd, series("b", 0..GROUP)], false);
    let job = &jobs(&bench.version())[0];
    let merged = run(job, &bench.target, &CancelToken::new(), &mut |_| {}).unwrap();
    assert_eq!(merged.copied, 2 * GROUP as u64);
    let meta = merged.segment.unwrap();
    let stats = |id| meta.columns.iter().find(|stats| stats.column.0 == id).unwrap();
    assert_eq!((&stats(3).min, &stats(3).max), (&None, &None));
    assert!(stats(5).min.is_some());
}

#[test]
fn damage_is_found_while_copying_and_named() {
    let bench = settled(&["a", "b"].map(|a| series(a, 0..GROUP)), false);
    let version = bench.version();
    let damaged = version.segments[1].meta();
    let path = format!("/store/{}", damaged.path);
    bench.sim.disk.flip_bit(Path::new(&path), 20, 3).unwrap();
    let files = bench.sim.disk.files().len();
    let job = &jobs(&version)[0];
    let error = run(job, &bench.target, &CancelToken::new(), &mut |_| {}).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.to_string().contains(&damaged.path), "{error}");
    assert_eq!(bench.sim.disk.files().len(), files, "nothing is left");
}

/// Rows of a write: its own series and times, or such that others have, too.
fn writes() -> impl Strategy<Value = Vec<Rows>> {
    let own = (0..4i64, 0..3i64, proptest::collection::vec(row(), 0..24), 0..8u8);
    let shifted = own.prop_map(|(shift, away, mut rows, columns)| {
        for row in &mut rows {
            row.time = row.time.clamp(0, 11) + 20 * shift * (away % 2);
            row.a = row.a.take().map(|a| if away == 2 { format!("{a}{shift}") } else { a });
        }
        // Sometimes without one of the fields.
        Rows { rows, columns: if columns < 3 { !(4 << columns) } else { 0xff } }
    });
    proptest::collection::vec(shifted, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn copying_makes_the_segment_that_decoding_makes(writes in writes(), append_only: bool) {
        let mut bench = settled(&writes, append_only);
        let before = scan(&bench.version(), 7);
        for job in jobs(&bench.version()) {
            compare(&bench, &job);
            bench.merge(&job);
        }
        prop_assert_eq!(scan(&bench.version(), 7), before);
        prop_assert!(bench.version().watermark <= position(writes.len() as u64));
    }
}
