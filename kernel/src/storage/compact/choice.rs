//! Which segments to merge next: a pure choice over a version.
//!
//! Neighbours of about one size are merged when enough of them have gathered, so that a row is
//! rewritten a bounded number of times; a window that has more small segments than it should is
//! merged at once, whatever that costs; a quiet one is merged as far as the target size allows.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use kymo_config::settings::Compaction as Settings;

use super::{Job, Reason};
use crate::ids::{Position, TimeRange};
use crate::storage::sort::window_start;
use crate::storage::version::{SegmentRef, Version};

/// Segments are of one size class if they are within this factor of each other.
const CLASS_FACTOR: u64 = 4;
/// Segments below this size are all of the smallest class.
const SMALLEST: u64 = 1 << 20;
/// The most segments that are merged at once, however little memory each takes.
const MAX_INPUTS: usize = 64;

/// The most useful merge of a table at the time `now_ns`; `None` where there is none.
#[must_use]
pub fn pick(version: &Version, settings: &Settings, now_ns: i64) -> Option<Job> {
    pick_within(version, settings, now_ns, &|_| true)
}

/// As [`pick`], in the windows alone that begin at an instant which `open` lets through.
#[must_use]
pub fn pick_within(
    version: &Version,
    settings: &Settings,
    now_ns: i64,
    open: &dyn Fn(i64) -> bool,
) -> Option<Job> {
    if !settings.enabled {
        return None;
    }
    let windows = windows(version).into_iter().filter(|(window, _)| open(*window));
    let found = windows.filter_map(|(window, segments)| {
        let sizes: Vec<u64> = segments.iter().map(|segment| segment.meta().bytes).collect();
        let quiet = || is_quiet(&segments, settings, now_ns);
        let (reason, range) = match by_size(&sizes, settings) {
            _ if is_crowded_by(&sizes, settings) => (Reason::Pressure, longest(&sizes, settings)?),
            Some(range) => (Reason::Size, range),
            None if quiet() => (Reason::Quiet, settle(&segments, settings)?),
            None => return None,
        };
        Some(job(version, settings, reason, window, &segments[range.clone()], range.start == 0))
    });
    found.max_by(Job::compare_use)
}

/// Whether a window of a version has more small segments than `compaction.max_segments`: merging
/// does not keep up with flushing, and fewer flushes are better than more.
#[must_use]
pub fn is_crowded(version: &Version, settings: &Settings) -> bool {
    // Whoever switched merging off has to live with what comes.
    if !settings.enabled || version.segments.len() <= settings.max_segments {
        return false;
    }
    let mut small: BTreeMap<i64, usize> = BTreeMap::new();
    for segment in version.segments.iter().filter(|each| each.meta().bytes < settings.target_bytes)
    {
        let window = window_start(segment.meta().time.first, version.table.options.window_ns);
        *small.entry(window).or_default() += 1;
    }
    small.into_values().any(|count| count > settings.max_segments)
}

fn is_crowded_by(sizes: &[u64], settings: &Settings) -> bool {
    let small = sizes.iter().filter(|size| **size < settings.target_bytes);
    small.count() > settings.max_segments
}

/// The most small neighbours that fit into one segment, however often their rows were rewritten
/// before.
fn longest(sizes: &[u64], settings: &Settings) -> Option<Range<usize>> {
    let small = |at: usize| sizes[at] < settings.target_bytes;
    let found = stretches(sizes, settings.target_bytes, small).into_iter();
    found.rev().max_by_key(Range::len).filter(|range| range.len() > 1)
}

/// What somebody wants merged, whatever the clock says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// The times of the windows.
    pub times: TimeRange,
    /// Rows after this position stay where they are: else there might be no end.
    pub upto: Position,
}

/// The next merge that a wish asks for, oldest window first; `None` where it is fulfilled.
#[must_use]
pub fn requested(version: &Version, settings: &Settings, wish: &Wish) -> Option<Job> {
    windows(version).into_iter().find_map(|(window, mut segments)| {
        let later = segments.iter().position(|segment| segment.meta().seq_range.1 > wish.upto);
        segments.truncate(later.unwrap_or(segments.len()));
        let mut times = segments.iter().map(|segment| segment.meta().time);
        if !times.any(|time| time.overlaps(&wish.times)) {
            return None;
        }
        let range = settle(&segments, settings)?;
        let (inputs, oldest) = (&segments[range.clone()], range.start == 0);
        Some(job(version, settings, Reason::Requested, window, inputs, oldest))
    })
}

pub(super) fn job(
    version: &Version,
    settings: &Settings,
    reason: Reason,
    window: i64,
    inputs: &[Arc<SegmentRef>],
    oldest: bool,
) -> Job {
    let (table, inputs) = (version.table.clone(), inputs.to_vec());
    Job { table, reason, window, inputs, oldest, memory_bytes: settings.memory_bytes }
}

/// The segments of each window, oldest rows first. Left out is what is newer than rows that
/// still wait for their flush: merging around them would change the order of writes.
pub(super) fn windows(version: &Version) -> BTreeMap<i64, Vec<Arc<SegmentRef>>> {
    let waiting: Option<Position> = version.frozen.iter().map(|frozen| frozen.span.first).min();
    let mut windows: BTreeMap<i64, Vec<Arc<SegmentRef>>> = BTreeMap::new();
    for segment in version.segments.iter() {
        let meta = segment.meta();
        if waiting.is_some_and(|first| meta.seq_range.1 >= first) {
            continue;
        }
        let window = window_start(meta.time.first, version.table.options.window_ns);
        windows.entry(window).or_default().push(segment.clone());
    }
    windows
}

fn class(bytes: u64) -> u32 {
    (bytes / SMALLEST).max(1).ilog(CLASS_FACTOR)
}

/// The first stretch of at least `min_segments` neighbours up to some class, smallest class
/// first. The largest must be no more than half of it: a row's segment doubles at least with
/// each rewrite, which bounds how often that happens.
fn by_size(sizes: &[u64], settings: &Settings) -> Option<Range<usize>> {
    let mut classes: Vec<u32> = sizes.iter().map(|size| class(*size)).collect();
    classes.sort_unstable();
    classes.dedup();
    classes.into_iter().find_map(|limit| {
        let fits = |at: usize| sizes[at] < settings.target_bytes && class(sizes[at]) <= limit;
        stretches(sizes, settings.target_bytes, fits).into_iter().find(|range| {
            let part = &sizes[range.clone()];
            let largest = part.iter().max().copied().unwrap_or_default();
            range.len() >= settings.min_segments.clamp(2, MAX_INPUTS)
                && 2 * largest <= part.iter().sum()
        })
    })
}

/// Neighbours that fit, cut where they would exceed the target size together.
fn stretches(sizes: &[u64], target: u64, fits: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut total = 0;
    for at in (0..sizes.len()).filter(|at| fits(*at)) {
        match found.last_mut() {
            Some(last)
                if last.end == at && total + sizes[at] <= target && last.len() < MAX_INPUTS =>
            {
                last.end += 1;
                total += sizes[at];
            }
            _ => {
                found.push(at..at + 1);
                total = sizes[at];
            }
        }
    }
    found
}

/// Whether the newest segment of a window is old enough that no more are expected soon.
fn is_quiet(segments: &[Arc<SegmentRef>], settings: &Settings, now_ns: i64) -> bool {
    let newest = segments.iter().map(|segment| segment.meta().id.0.timestamp_ms()).max();
    let now = u64::try_from(now_ns / 1_000_000).unwrap_or_default();
    newest.is_some_and(|newest| newest.saturating_add(settings.quiet_ms) <= now)
}

/// What is left to do in a quiet window: merge neighbours up to the target size, and encode
/// thoroughly what a flush wrote.
fn settle(segments: &[Arc<SegmentRef>], settings: &Settings) -> Option<Range<usize>> {
    let sizes: Vec<u64> = segments.iter().map(|segment| segment.meta().bytes).collect();
    let found = stretches(&sizes, settings.target_bytes, |at| {
        sizes[at] < settings.target_bytes || segments[at].meta().level == 0
    });
    found.into_iter().find(|range| range.len() > 1 || segments[range.start].meta().level == 0)
}

/// The segments of windows in which nothing is left to merge, however quiet they become; of all
/// windows where nothing is merged at all.
pub(in super::super) fn settled(version: &Version, settings: &Settings) -> Vec<Arc<SegmentRef>> {
    let all = windows(version).into_values();
    let done = |each: &Vec<_>| !settings.enabled || settle(each, settings).is_none();
    all.filter(done).flatten().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::cmp::Ordering;

    use super::*;
    use crate::storage::model::{Bench, Row, Rows, WINDOW, position, scan};

    const MIB: u64 = 1 << 20;

    pub(in super::super) fn settings(min_segments: usize) -> Settings {
        Settings { min_segments, target_bytes: 128 * MIB, ..Settings::default() }
    }

    #[test]
    fn neighbours_of_one_class_merge_and_larger_ones_are_left() {
        let four = settings(4);
        assert_eq!(by_size(&[MIB; 3], &four), None);
        assert_eq!(by_size(&[MIB; 5], &four), Some(0..5));
        assert_eq!(by_size(&[64 * MIB, MIB, MIB, MIB, MIB], &four), Some(1..5));
        assert_eq!(by_size(&[MIB, MIB, 4 * MIB, MIB, MIB], &four), Some(0..5));
        assert_eq!(by_size(&[MIB, MIB, 64 * MIB, MIB, MIB], &four), None, "little to gain");
        assert_eq!(by_size(&[MIB, MIB, 200 * MIB, MIB, MIB], &four), None);
        assert_eq!(by_size(&[40 * MIB; 8], &four), None, "three fill the target");
        assert_eq!(by_size(&[], &four), None);
    }

    #[test]
    fn a_row_is_rewritten_a_bounded_number_of_times() {
        let four = settings(4);
        let (mut sizes, mut written) = (Vec::new(), 0);
        for _ in 0..256 {
            sizes.push(MIB / 4);
            while let Some(range) = by_size(&sizes, &four) {
                let merged: u64 = sizes[range.clone()].iter().sum();
                written += merged;
                sizes.splice(range, [merged]);
            }
        }
        let total = 256 * MIB / 4;
        assert_eq!(sizes.iter().sum::<u64>(), total);
        assert!(sizes.len() < 12, "{sizes:?}");
        assert!(written < 9 * total, "wrote {written} of {total}");
    }

    pub(in super::super) fn rows(a: &str, times: Range<i64>) -> Rows {
        let row = |time| Row {
            a: Some(a.to_owned()),
            b: None,
            time,
            float: Some(0.5),
            int: Some(time),
            text: None,
        };
        Rows { rows: times.map(row).collect(), columns: 0xff }
    }

    #[test]
    fn a_quiet_window_is_merged_once_and_then_left() {
        let mut bench = Bench::new(false);
        for at in 0..3 {
            bench.write(rows("x", at * 10..at * 10 + 10).batch());
            bench.write(rows("x", WINDOW + at..WINDOW + at + 1).batch());
            bench.flush();
        }
        let before = scan(&bench.version(), 64);
        assert!(!bench.compact(4, 0), "not quiet, and too few");
        assert_eq!(bench.version().segments.len(), 6);
        assert!(bench.compact(4, i64::MAX));
        assert!(bench.compact(4, i64::MAX));
        assert!(!bench.compact(4, i64::MAX), "nothing is left to do");
        let version = bench.version();
        assert_eq!(version.segments.len(), 2);
        assert!(version.segments.iter().all(|segment| segment.meta().level == 1));
        assert_eq!(scan(&version, 64), before);
    }

    #[test]
    fn a_wish_merges_all_windows_at_once_but_nothing_that_came_later() {
        let mut bench = Bench::new(false);
        for at in 0..3 {
            bench.write(rows("x", at * 10..at * 10 + 10).batch());
            bench.write(rows("x", WINDOW + at..WINDOW + at + 1).batch());
            bench.flush();
        }
        let (upto, before) = (bench.version().watermark, scan(&bench.version(), 64));
        bench.write(rows("y", 0..1).batch());
        bench.flush();
        let settings = Settings { enabled: false, ..settings(100) };
        let all = Wish { times: TimeRange::ALL, upto };
        let later = Wish { times: TimeRange { first: WINDOW, last: WINDOW }, upto };
        let first = requested(&bench.version(), &settings, &all).unwrap();
        assert_eq!((first.window, first.rows(), first.level()), (0, 30, 1));
        let only = requested(&bench.version(), &settings, &later).unwrap();
        assert_eq!((only.window, only.reason.as_str()), (WINDOW, "requested"));
        for inputs in [3, 3] {
            let job = requested(&bench.version(), &settings, &all).unwrap();
            assert_eq!(job.inputs.len(), inputs);
            bench.merge(&job);
        }
        assert!(requested(&bench.version(), &settings, &all).is_none());
        assert_eq!(bench.version().segments.len(), 3);
        let mut after = scan(&bench.version(), 64);
        after.retain(|row| row.a.as_deref() == Some("x"));
        assert_eq!(after, before);
    }

    #[test]
    fn a_crowded_window_goes_first_whatever_it_costs() {
        let crowded = Settings { max_segments: 4, ..settings(100) };
        let sizes = [MIB, 64 * MIB, MIB, MIB, 200 * MIB, MIB, MIB];
        assert_eq!(by_size(&sizes, &crowded), None);
        assert!(is_crowded_by(&sizes, &crowded) && !is_crowded_by(&sizes[2..], &crowded));
        assert_eq!(longest(&sizes, &crowded), Some(0..4));
        assert_eq!(longest(&[MIB, 200 * MIB, MIB], &crowded), None);
        assert_eq!(longest(&[120 * MIB, 120 * MIB], &crowded), None);
        let mut bench = Bench::new(false);
        for at in 0..6 {
            bench.write(rows("x", at..at + 1).batch());
            if at > 0 {
                bench.write(rows("x", WINDOW + at..WINDOW + at + 1).batch());
            }
            bench.flush();
        }
        let version = bench.version();
        let crowded = Settings { max_segments: 5, ..settings(5) };
        assert!(is_crowded(&version, &crowded));
        let job = pick(&version, &crowded, 0).unwrap();
        assert_eq!((job.reason, job.window, job.inputs.len()), (Reason::Pressure, 0, 6));
        let other = pick_within(&version, &crowded, 0, &|window| window != 0).unwrap();
        assert_eq!(other.reason, Reason::Size);
        assert_eq!(job.compare_use(&other), Ordering::Greater);
        bench.merge(&job);
        assert!(!is_crowded(&bench.version(), &crowded));
        assert!(!is_crowded(&version, &Settings { enabled: false, ..crowded }));
    }

    #[test]
    fn a_window_that_is_closed_does_not_keep_others_from_merging() {
        let mut bench = Bench::new(false);
        for at in 0..4 {
            bench.write(rows("x", at..at + 1).batch());
            bench.write(rows("x", WINDOW + at..WINDOW + at + 1).batch());
            bench.flush();
        }
        let (version, four) = (bench.version(), settings(4));
        for closed in [0, WINDOW] {
            let job = pick_within(&version, &four, 0, &|window| window != closed).unwrap();
            assert_eq!(job.window, WINDOW - closed);
        }
        assert!(pick_within(&version, &four, 0, &|_| false).is_none());
    }

    #[test]
    fn segments_newer_than_waiting_rows_are_left_alone() {
        let mut bench = Bench::new(false);
        bench.write(rows("x", 0..1).batch());
        bench.flush();
        bench.write(rows("x", 1..2).batch());
        let waiting = bench.state.freeze().unwrap();
        bench.write(rows("x", 2..3).batch());
        bench.flush();
        assert_eq!(bench.version().segments.len(), 2);
        assert!(!bench.compact(2, 0), "would merge around the waiting rows");
        bench.state.flushed(&waiting, []).unwrap();
        assert!(bench.compact(2, 0));
    }

    #[test]
    fn merging_everything_of_a_window_ends_its_lateness() {
        let mut bench = Bench::new(false);
        for _ in 0..2 {
            bench.write(rows("x", 0..5).batch());
            bench.flush();
        }
        assert!(bench.version().segments[1].meta().late.is_some());
        assert!(bench.compact(2, 0));
        let version = bench.version();
        let meta = version.segments[0].meta();
        assert_eq!((meta.rows, meta.late, meta.seq_range), (5, None, (position(1), position(2))));
    }
}
