//! Taking rows out of a table: a merge that leaves some of its rows behind.
//!
//! What a reader sees as one row may be stored in several segments, where later writes
//! replaced some of its columns. Segments that can share rows are therefore taken together as
//! a [`Part`], and read as a scan reads them: each row once, merged, in an order that is always
//! the same. A row has a number in that order. Choosing rows gives a [`RowSet`] of numbers;
//! [`rewrite`] reads the part again, leaves them out, and writes the rest as one new segment. No
//! older state of a row comes back, because all of them lie in the same part.
//!
//! Parts hold no rows in memory: those are flushed first ([`settled`]). Parts without a chosen
//! row are not touched. Nothing counts until one edit of the metadata
//! ([`crate::storage::meta::Op::Delete`]) puts all new segments in the place of the old ones.

use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use hashbrown::{HashMap, HashSet};

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::ids::{SegmentId, TimeRange};
use crate::schema::TableSchema;
use crate::storage::compact::{self, Job};
use crate::storage::late::times;
use crate::storage::memtable::MemView;
use crate::storage::merge::{self, GroupScan, SortedSource};
use crate::storage::meta::SegmentMeta;
use crate::storage::overlap::{Group, Source, groups};
use crate::storage::segment::runs::SeriesRuns;
use crate::storage::segment::write::{Target, check};
use crate::storage::segment::{Scan, TagFilter};
use crate::storage::sort::window_start;
use crate::storage::version::{SegmentRef, Version};

/// Rows of a batch while choosing.
const CHOOSE_ROWS: usize = 8192;

/// Chooses rows by what is in them: true for each that goes; NULL counts as false. It is given
/// all columns of the table.
pub type Predicate = Arc<dyn Fn(&RecordBatch) -> Result<BooleanArray> + Send + Sync>;

/// Segments of one time window that can hold rows of the same tags and time, and share none
/// with any other segment.
#[derive(Debug, Clone)]
pub struct Part {
    job: Job,
    /// Whether its rows must be compared.
    dedup: bool,
}

/// The version without the rows that are in memory only.
#[must_use]
pub fn settled(version: &Version) -> Version {
    Version { frozen: Arc::default(), hot: MemView::default(), ..version.clone() }
}

/// The parts of a version in which rows of these times and series can lie. Rows in memory are
/// passed over.
#[must_use]
pub fn parts(version: &Version, times: &TimeRange, tags: &TagFilter) -> Vec<Part> {
    let window_ns = version.table.options.window_ns;
    // Whole windows, so that nothing that shares rows with a part is left out of it.
    let last = window_start(times.last, window_ns).saturating_add(window_ns - 1);
    let reach = TimeRange { first: window_start(times.first, window_ns), last };
    let found = groups(&settled(version), &reach, &TagFilter::all());
    let parts = found.into_iter().filter_map(|group| Part::of(version, group));
    parts.filter(|part| part.may_hold(times, tags)).collect()
}

impl Part {
    fn of(version: &Version, group: Group) -> Option<Part> {
        let segment = |source| match source {
            Source::Segment(segment) => Some(segment),
            Source::Frozen(_) | Source::Hot(_) => None,
        };
        let inputs: Vec<Arc<SegmentRef>> = group.sources.into_iter().filter_map(segment).collect();
        let first = inputs.first()?.meta().time.first;
        let window = window_start(first, version.table.options.window_ns);
        let table = version.table.clone();
        // What shares rows with a part is in it, so its rows repeat nothing older.
        Some(Part { job: Job { table, window, inputs, oldest: true }, dedup: group.dedup })
    }

    fn may_hold(&self, times: &TimeRange, tags: &TagFilter) -> bool {
        self.job.inputs.iter().any(|input| {
            let meta = input.meta();
            meta.time.overlaps(times) && tags.may_match(&meta.key_min, &meta.key_max)
        })
    }

    /// The earliest and the latest time in it.
    #[must_use]
    pub fn time(&self) -> TimeRange {
        let times = self.job.inputs.iter().map(|input| input.meta().time);
        times.reduce(|all, each| all.union(&each)).unwrap_or(TimeRange::ALL)
    }

    /// Its segments.
    #[must_use]
    pub fn ids(&self) -> Vec<SegmentId> {
        self.job.input_ids()
    }

    /// How many rows are stored, counting each time that a row was written.
    #[must_use]
    pub fn stored_rows(&self) -> u64 {
        self.job.inputs.iter().map(|input| input.meta().rows).sum()
    }

    /// How many rows a reader sees, where that is known without reading.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        (!self.dedup).then(|| self.stored_rows())
    }

    /// The rows in the order of their numbers, in some of the table's columns; all of them,
    /// whatever the columns are. Opens files, which blocks.
    ///
    /// # Errors
    /// `corrupt` naming a file, `io_error`.
    pub fn scan(&self, output: SchemaRef, batch_rows: usize) -> Result<SortedSource> {
        if let ([only], false) = (self.job.inputs.as_slice(), self.dedup) {
            return Ok(Box::new(only.reader()?.scan(&Scan::all(output, batch_rows))?));
        }
        let sources = self.job.inputs.iter().cloned().map(Source::Segment).collect();
        let group = Group { sources, dedup: self.dedup };
        let tags = TagFilter::all();
        let scan = GroupScan { output, tags, time: TimeRange::ALL, batch_rows };
        Ok(Box::new(merge::open(&group, &self.job.table, &scan)?))
    }

    /// The numbers of the rows within some times, of those that a predicate chooses. Blocks.
    ///
    /// # Errors
    /// Those of reading and of the predicate; `cancelled`.
    pub fn choose(
        &self,
        times: &TimeRange,
        predicate: Option<&Predicate>,
        cancel: &CancelToken,
    ) -> Result<RowSet> {
        let schema = &self.job.table.schema;
        let columns = match predicate {
            Some(_) => schema.arrow(),
            None => Arc::new(Schema::new(vec![schema.time()?.arrow()])),
        };
        let (mut chosen, mut first) = (RowSet::default(), 0);
        for batch in self.scan(columns, CHOOSE_ROWS)? {
            check(cancel)?;
            let batch = batch?;
            let wanted = predicate.map(|wanted| wanted(&batch)).transpose()?;
            for (row, time) in (first..).zip(self::times(schema, &batch)?) {
                let at = usize::try_from(row - first).unwrap_or(usize::MAX);
                let goes = wanted.as_ref().is_none_or(|goes| goes.is_valid(at) && goes.value(at));
                if goes && times.first <= *time && *time <= times.last {
                    chosen.insert(row);
                }
            }
            first += batch.num_rows() as u64;
        }
        Ok(chosen)
    }
}

/// The rows of a part that stay, as a new segment, which nothing names yet; `None` where none
/// stays. Without `doomed` all go, and nothing is read. Holds a batch of each segment in memory.
///
/// # Errors
/// `corrupt` naming an input, `disk_full` or `io_error` naming a file, `cancelled`.
pub fn rewrite(
    part: &Part,
    doomed: Option<&RowSet>,
    target: &Target,
    cancel: &CancelToken,
) -> Result<Option<SegmentMeta>> {
    let Some(doomed) = doomed else { return Ok(None) };
    let mut first = 0;
    let mut keep = |batch: RecordBatch| {
        let stays = doomed.others(first, batch.num_rows());
        first += batch.num_rows() as u64;
        kept(batch, &stays)
    };
    compact::rewrite(&part.job, target, cancel, &mut keep, &mut |_| {})
}

/// The rows of a batch that are marked.
pub(crate) fn kept(batch: RecordBatch, stays: &BooleanArray) -> Result<RecordBatch> {
    if stays.true_count() == batch.num_rows() {
        return Ok(batch);
    }
    filter_record_batch(&batch, stays).map_err(|error| Error::internal(format!("rows: {error}")))
}

/// Chooses the rows whose tags and time are those of a row of `rows`; tags that `rows` lacks are
/// NULL.
///
/// # Errors
/// `internal` where `rows` has no time or a tag of another type.
pub fn keys(schema: &TableSchema, rows: &RecordBatch) -> Result<Predicate> {
    let mut wanted: HashMap<Vec<u8>, HashSet<i64>> = HashMap::new();
    let all = times(schema, rows)?;
    for (series, at) in SeriesRuns::of(schema, rows)?.iter() {
        wanted.entry(series.to_vec()).or_default().extend(&all[at]);
    }
    let schema = schema.clone();
    Ok(Arc::new(move |batch| {
        let all = times(&schema, batch)?;
        let mut goes = vec![false; batch.num_rows()];
        for (series, rows) in SeriesRuns::of(&schema, batch)?.iter() {
            let Some(times) = wanted.get(series) else { continue };
            for row in rows {
                goes[row] = times.contains(&all[row]);
            }
        }
        Ok(goes.into())
    }))
}

/// Numbers of rows, one bit for each up to the largest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowSet {
    words: Vec<u64>,
    count: u64,
}

impl RowSet {
    /// Adds a row; whether it is new.
    pub fn insert(&mut self, row: u64) -> bool {
        let (word, bit) = place(row);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u64::from(new);
        new
    }

    /// Whether a row is in it.
    #[must_use]
    pub fn contains(&self, row: u64) -> bool {
        let (word, bit) = place(row);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// How many rows are in it.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>()
    }

    /// For each of `rows` rows from `first` on whether it is not in the set.
    fn others(&self, first: u64, rows: usize) -> BooleanArray {
        let stays = |at: usize| !self.contains(first + at as u64);
        BooleanArray::new(BooleanBuffer::collect_bool(rows, stays), None)
    }
}

fn place(row: u64) -> (usize, u64) {
    (usize::try_from(row / 64).unwrap_or(usize::MAX), 1 << (row % 64))
}
