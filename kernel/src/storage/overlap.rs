//! Where rows of a version may repeat, and so must be compared: nowhere else does a scan pay
//! for it.
//!
//! Two sources can hold rows of the same tags and time only if the newer one has late rows
//! (see [`crate::storage::late`]) whose times reach into the older one, and their series
//! reach into each other. Sources so connected form a [`Group`]; all others stand alone.

use std::sync::Arc;

use crate::ids::{Position, TimeRange};
use crate::storage::memtable::MemView;
use crate::storage::segment::TagFilter;
use crate::storage::version::{Frozen, SegmentRef, Version};

/// One part of a version's rows.
#[derive(Debug, Clone)]
pub enum Source {
    /// Rows in a file: sorted, tags and time unique unless the table is append-only.
    Segment(Arc<SegmentRef>),
    /// Rows in memory that wait for their flush, in the order of arrival.
    Frozen(Arc<Frozen>),
    /// The newest rows, in the order of arrival.
    Hot(MemView),
}

impl Source {
    /// The earliest and the latest time; `None` where there are no rows.
    #[must_use]
    pub fn time(&self) -> Option<TimeRange> {
        match self {
            Source::Segment(segment) => Some(segment.meta().time),
            Source::Frozen(frozen) => Some(frozen.span.time),
            Source::Hot(rows) => rows.span().map(|span| span.time),
        }
    }

    /// The position of the oldest and the newest rows; `None` where there are no rows.
    #[must_use]
    pub fn positions(&self) -> Option<(Position, Position)> {
        match self {
            Source::Segment(segment) => Some(segment.meta().seq_range),
            Source::Frozen(frozen) => Some((frozen.span.first, frozen.span.last)),
            Source::Hot(rows) => rows.span().map(|span| (span.first, span.last)),
        }
    }

    /// How many rows it holds.
    #[must_use]
    pub fn rows(&self) -> u64 {
        match self {
            Source::Segment(segment) => segment.meta().rows,
            Source::Frozen(frozen) => frozen.rows.rows() as u64,
            Source::Hot(rows) => rows.rows() as u64,
        }
    }

    /// The rows, where they are in memory.
    #[must_use]
    pub fn memory(&self) -> Option<&MemView> {
        match self {
            Source::Segment(_) => None,
            Source::Frozen(frozen) => Some(&frozen.rows),
            Source::Hot(rows) => Some(rows),
        }
    }

    /// The times of rows that may repeat an earlier row.
    fn late(&self) -> Option<TimeRange> {
        match self {
            Source::Segment(segment) => segment.meta().late,
            Source::Frozen(frozen) => frozen.span.late,
            Source::Hot(rows) => rows.span().and_then(|span| span.late),
        }
    }

    fn keys(&self) -> Option<(&[u8], &[u8])> {
        match self {
            Source::Segment(segment) => {
                let meta = segment.meta();
                Some((&meta.key_min, &meta.key_max))
            }
            Source::Frozen(_) | Source::Hot(_) => None,
        }
    }

    /// Whether `self`, the newer one, may hold rows with the tags and time of rows of `older`.
    fn may_repeat(&self, older: &Source) -> bool {
        let (Some(late), Some(time)) = (self.late(), older.time()) else { return false };
        let series = match (self.keys(), older.keys()) {
            (Some((min, max)), Some((other_min, other_max))) => {
                min <= other_max && other_min <= max
            }
            _ => true,
        };
        late.overlaps(&time) && series
    }
}

/// Sources between which rows may repeat, oldest first.
#[derive(Debug, Clone)]
pub struct Group {
    /// The sources, oldest first: of two rows with the same tags and time, the one of the
    /// later source is newer.
    pub sources: Vec<Source>,
    /// Whether rows must be compared: sorted and merged. Otherwise the sources may be read
    /// as they are, in any order.
    pub dedup: bool,
}

/// The sources of a version that can hold rows of a time range and of the wanted series,
/// grouped by where rows may repeat.
///
/// A source without wanted rows is left out even where it overlaps others: of rows that are
/// wanted, all copies have the same tags and time, so all of them lie in sources that stay.
#[must_use]
pub fn groups(version: &Version, time: &TimeRange, tags: &TagFilter) -> Vec<Group> {
    let sources = sources(version, time, tags);
    if version.table.options.append_only {
        let alone = |source| Group { sources: vec![source], dedup: false };
        return sources.into_iter().map(alone).collect();
    }
    let roots = connect(&sources);
    let mut groups: Vec<(usize, Group)> = Vec::new();
    for (source, root) in sources.into_iter().zip(roots) {
        match groups.iter_mut().find(|(known, _)| *known == root) {
            Some((_, group)) => {
                group.sources.push(source);
                group.dedup = true;
            }
            None => {
                // Within a segment nothing repeats; rows in memory are as they came.
                let dedup = source.memory().is_some() && source.late().is_some();
                groups.push((root, Group { sources: vec![source], dedup }));
            }
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn sources(version: &Version, time: &TimeRange, tags: &TagFilter) -> Vec<Source> {
    let segments = version.segments.iter().cloned().map(Source::Segment);
    let frozen = version.frozen.iter().cloned().map(Source::Frozen);
    let hot = [Source::Hot(version.hot.clone())];
    let mut sources: Vec<Source> = segments
        .chain(frozen)
        .chain(hot)
        .filter(|source| source.time().is_some_and(|own| own.overlaps(time)))
        .filter(|source| source.keys().is_none_or(|(min, max)| tags.may_match(min, max)))
        .collect();
    sources.sort_by_key(Source::positions);
    sources
}

/// For each source the first one it is connected with, itself included.
fn connect(sources: &[Source]) -> Vec<usize> {
    let mut roots: Vec<usize> = (0..sources.len()).collect();
    for newer in 0..sources.len() {
        if sources[newer].late().is_none() {
            continue;
        }
        for older in 0..newer {
            if roots[older] != roots[newer] && sources[newer].may_repeat(&sources[older]) {
                let (from, to) = (roots[newer].max(roots[older]), roots[newer].min(roots[older]));
                roots.iter_mut().filter(|root| **root == from).for_each(|root| *root = to);
            }
        }
    }
    roots
}
