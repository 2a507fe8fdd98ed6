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
use kymo_config::settings::Compaction;

use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::ids::{SegmentId, TimeRange};
use crate::schema::TableSchema;
use crate::storage::compact::{self, Job, Reason};
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
        let memory_bytes = Compaction::default().memory_bytes;
        let reason = Reason::Deleted;
        let job = Job { table, reason, window, inputs, oldest: true, memory_bytes };
        Some(Part { job, dedup: group.dedup })
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

    /// The start of its time window.
    #[must_use]
    pub fn window(&self) -> i64 {
        self.job.window
    }

    /// What the metadata says of its segments.
    pub fn segments(&self) -> impl Iterator<Item = &Arc<SegmentMeta>> {
        self.job.inputs.iter().map(|input| input.meta())
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
    Ok(compact::rewrite(&part.job, target, cancel, &mut keep, &mut |_| {})?.segment)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::Code;
    use crate::storage::model::{Bench, Key, Row, Rows, WINDOW, expected, read, row, rows, scan};

    fn delete(bench: &mut Bench, times: &TimeRange, predicate: Option<&Predicate>) -> u64 {
        bench.flush();
        let (mut inputs, mut outputs, mut gone) = (Vec::new(), Vec::new(), 0);
        let cancel = CancelToken::new();
        for part in parts(&bench.version(), times, &TagFilter::all()) {
            let rows = part.choose(times, predicate, &cancel).unwrap();
            if rows.is_empty() {
                continue;
            }
            gone += rows.len();
            inputs.extend(part.ids());
            let output = rewrite(&part, Some(&rows), &bench.target, &cancel).unwrap();
            outputs.extend(output.map(Arc::new));
        }
        bench.state.deleted(&inputs, outputs).unwrap();
        gone
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(Rows),
        Flush,
        Settle,
        Reopen,
        Times(i64, i64),
        Keys(Vec<Row>),
        Odd,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => rows().prop_map(Step::Write),
            2 => Just(Step::Flush),
            1 => Just(Step::Settle),
            1 => Just(Step::Reopen),
            1 => (-2..12i64, 0..WINDOW + 3).prop_map(|(first, width)| {
                Step::Times(first, first + if width % 2 == 0 { width } else { width % 5 })
            }),
            1 => proptest::collection::vec(row(), 0..9).prop_map(Step::Keys),
            1 => Just(Step::Odd),
        ]
    }

    /// What `expected` says, of writes and of deletions between them.
    fn keep(wanted: &mut Vec<Row>, goes: impl Fn(&Row) -> bool) -> u64 {
        let before = wanted.len();
        wanted.retain(|row| !goes(row));
        (before - wanted.len()) as u64
    }

    fn odd(batch: &RecordBatch) -> Result<BooleanArray> {
        Ok(read(batch).iter().map(|row| row.int.map(|int| int % 2 != 0)).collect())
    }

    /// The rows after a deletion, written again as one write, stand for the history so far.
    fn run(bench: &mut Bench, step: &Step, writes: &mut Vec<Rows>, append_only: bool) {
        let mut wanted = expected(writes, append_only);
        let gone = match step {
            Step::Write(rows) => {
                bench.write(rows.batch());
                return writes.push(rows.clone());
            }
            Step::Flush => return bench.flush(),
            Step::Settle => {
                while bench.compact(100, i64::MAX) {}
                return;
            }
            Step::Reopen => return bench.reopen(),
            Step::Times(first, last) => {
                let times = TimeRange { first: *first, last: *last };
                let gone = keep(&mut wanted, |row| (*first..=*last).contains(&row.time));
                (gone, delete(bench, &times, None))
            }
            Step::Keys(rows) => {
                let wanted_keys: Vec<Key> = rows.iter().map(Row::key).collect();
                let rows = Rows { rows: rows.clone(), columns: 0xff }.batch();
                let keys = keys(&bench.version().table.schema, &rows).unwrap();
                let gone = keep(&mut wanted, |row| wanted_keys.contains(&row.key()));
                (gone, delete(bench, &TimeRange::ALL, Some(&keys)))
            }
            Step::Odd => {
                let odd: Predicate = Arc::new(odd);
                let gone = keep(&mut wanted, |row| row.int.is_some_and(|int| int % 2 != 0));
                (gone, delete(bench, &TimeRange::ALL, Some(&odd)))
            }
        };
        assert_eq!(gone.0, gone.1);
        *writes = vec![Rows { rows: wanted, columns: 0xff }];
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_table_agrees_with_a_list_of_rows(
            steps in proptest::collection::vec(step(), 1..24),
            append_only: bool,
        ) {
            let mut bench = Bench::new(append_only);
            let mut writes = Vec::new();
            for step in &steps {
                run(&mut bench, step, &mut writes, append_only);
                let wanted = expected(&writes, append_only);
                prop_assert_eq!(&scan(&bench.version(), 7), &wanted, "after {:?}", step);
            }
        }
    }

    fn one(time: i64, int: i64) -> Rows {
        let row =
            Row { a: Some("x".into()), b: None, time, float: None, int: Some(int), text: None };
        Rows { rows: vec![row], columns: 0xff }
    }

    #[test]
    fn segments_that_share_rows_are_one_part_and_others_are_left() {
        let mut bench = Bench::new(false);
        for (time, int) in [(1, 1), (5, 1), (1, 2), (WINDOW + 1, 1)] {
            bench.write(one(time, int).batch());
            bench.flush();
        }
        let found = parts(&bench.version(), &TimeRange { first: 1, last: 1 }, &TagFilter::all());
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].stored_rows(), found[0].rows()), (2, None));
        let found = parts(&bench.version(), &TimeRange::ALL, &TagFilter::all());
        assert_eq!(found.len(), 3);
        let other = TagFilter::all().and(0, [Some("y".to_owned())]);
        assert!(parts(&bench.version(), &TimeRange::ALL, &other).is_empty());
    }

    #[test]
    fn a_cancelled_rewrite_leaves_no_file() {
        let mut bench = Bench::new(false);
        bench.write(one(1, 1).batch());
        bench.flush();
        let part = parts(&bench.version(), &TimeRange::ALL, &TagFilter::all()).remove(0);
        let files = bench.sim.disk.files().len();
        let cancel = CancelToken::new();
        cancel.cancel();
        let error = rewrite(&part, Some(&RowSet::default()), &bench.target, &cancel).unwrap_err();
        assert_eq!(error.code(), Code::Cancelled);
        assert_eq!(
            part.choose(&TimeRange::ALL, None, &cancel).unwrap_err().code(),
            Code::Cancelled
        );
        assert_eq!(bench.sim.disk.files().len(), files);
    }

    #[test]
    fn sets_count_each_row_once() {
        let mut rows = RowSet::default();
        assert!(rows.insert(3) && rows.insert(64) && !rows.insert(3));
        assert_eq!((rows.len(), rows.contains(64), rows.contains(65)), (2, true, false));
        let others: Vec<bool> = rows.others(62, 4).values().iter().collect();
        assert_eq!(others, [true, true, false, true]);
    }
}
