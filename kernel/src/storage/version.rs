//! What readers see of a table: an immutable [`Version`], replaced as a whole.
//!
//! A [`TableState`] belongs to the table's writer and is the only thing that changes a
//! table. Each change publishes a new version through the [`VersionCell`]; readers load it
//! and never wait for the writer. Because a version holds its segments, a file that was
//! merged away or dropped is handed to the [`Graveyard`] only when the metadata no longer
//! names it *and* the last version with it is gone (M2).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use arrow::array::RecordBatch;
use parking_lot::Mutex;

use crate::error::{Code, Error, Result};
use crate::ids::{Position, SegmentId, TimeRange};
use crate::schema::TableDef;
use crate::storage::conform::{Conform, only_adds};
use crate::storage::late::{DEFAULT_SERIES, LastTimes};
use crate::storage::memtable::{MemTable, MemView, Span};
use crate::storage::meta::SegmentMeta;
use crate::storage::segment::{Readers, SegmentReader, SegmentStore};

/// Collects segments whose files may go, for the garbage collector.
#[derive(Debug, Default)]
pub struct Graveyard(Mutex<Vec<Arc<SegmentMeta>>>);

impl Graveyard {
    /// Takes what has come in since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Arc<SegmentMeta>> {
        std::mem::take(&mut self.0.lock())
    }

    fn put(&self, segment: Arc<SegmentMeta>) {
        self.0.lock().push(segment);
    }
}

/// Where the segments of a store lie and where they end.
#[derive(Clone)]
pub struct SegmentFiles {
    /// Reads, writes and removes them.
    pub store: Arc<dyn SegmentStore>,
    /// Receives those that nothing names any more.
    pub graveyard: Arc<Graveyard>,
    /// Those that are open.
    pub readers: Arc<Readers>,
}

impl SegmentFiles {
    /// Segments of a store, of which those in use are kept open within `cache_bytes`.
    #[must_use]
    pub fn new(store: Arc<dyn SegmentStore>, cache_bytes: usize) -> Self {
        let readers = Arc::new(Readers::new(cache_bytes));
        SegmentFiles { store, graveyard: Arc::default(), readers }
    }
}

impl fmt::Debug for SegmentFiles {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SegmentFiles")
    }
}

/// Keeps the file of a segment from going. Held by versions, through their [`SegmentRef`]s,
/// and by everything that reads the segment.
#[derive(Debug)]
pub struct Lease {
    meta: Arc<SegmentMeta>,
    graveyard: Arc<Graveyard>,
    retired: AtomicBool,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.retired.load(Ordering::Acquire) {
            self.graveyard.put(self.meta.clone());
        }
    }
}

/// A segment in use. While one exists, its file does.
pub struct SegmentRef {
    lease: Arc<Lease>,
    files: SegmentFiles,
}

impl SegmentRef {
    /// A segment that the metadata names.
    #[must_use]
    pub fn new(meta: Arc<SegmentMeta>, files: SegmentFiles) -> Self {
        let graveyard = files.graveyard.clone();
        let lease = Lease { meta, graveyard, retired: AtomicBool::new(false) };
        SegmentRef { lease: Arc::new(lease), files }
    }

    /// What the metadata says of it.
    #[must_use]
    pub fn meta(&self) -> &Arc<SegmentMeta> {
        &self.lease.meta
    }

    /// Its reader, opened where it is not kept open. Blocks on the file then. The file stays
    /// for as long as the reader does.
    ///
    /// # Errors
    /// `corrupt` naming the file where it does not verify, `io_error` where it cannot be read.
    pub fn reader(&self) -> Result<SegmentReader> {
        let open = match self.files.readers.get(self.meta().id) {
            Some(open) => open,
            None => {
                let open = SegmentReader::open(self.files.store.as_ref(), self.meta())?;
                self.files.readers.put(open.clone());
                open
            }
        };
        Ok(open.held_by(self.lease.clone()))
    }

    /// Notes that the metadata does not name it any more.
    pub fn retire(&self) {
        self.lease.retired.store(true, Ordering::Release);
        self.files.readers.forget(self.meta().id);
    }
}

impl Drop for SegmentRef {
    fn drop(&mut self) {
        if self.lease.retired.load(Ordering::Acquire) {
            self.files.readers.forget(self.meta().id);
        }
    }
}

impl fmt::Debug for SegmentRef {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "SegmentRef({})", self.meta().path)
    }
}

/// Rows in memory that wait for their flush; no row joins them any more.
#[derive(Debug)]
pub struct Frozen {
    /// The rows.
    pub rows: MemView,
    /// Their times and positions.
    pub span: Span,
}

impl Frozen {
    /// Whether both are the same rows, be it under different definitions of their table:
    /// positions do not come twice.
    #[must_use]
    pub fn same_rows(&self, other: &Frozen) -> bool {
        (self.span.first, self.span.last) == (other.span.first, other.span.last)
    }

    fn conformed(&self, definition: &Conform) -> Result<Arc<Frozen>> {
        Ok(Arc::new(Frozen { rows: self.rows.conformed(definition)?, span: self.span }))
    }
}

/// A table at one moment: everything a scan needs. Immutable.
#[derive(Debug, Clone)]
pub struct Version {
    /// The definition. Rows in memory are under it, whatever they were written under.
    pub table: Arc<TableDef>,
    /// Segments, oldest rows first (by position in the log).
    pub segments: Arc<[Arc<SegmentRef>]>,
    /// Rows on their way into segments, oldest first.
    pub frozen: Arc<[Arc<Frozen>]>,
    /// The newest rows.
    pub hot: MemView,
    /// Nothing above this position shows (V1), everything acknowledged up to it does.
    pub watermark: Position,
    /// How many times rows of the table were deleted before.
    pub deletions: u64,
}

impl Version {
    /// The earliest and the latest time in it; `None` where there are no rows.
    #[must_use]
    pub fn time(&self) -> Option<TimeRange> {
        let segments = self.segments.iter().map(|segment| segment.meta().time);
        let frozen = self.frozen.iter().map(|frozen| frozen.span.time);
        let hot = self.hot.span().map(|span| span.time);
        segments.chain(frozen).chain(hot).reduce(|all, each| all.union(&each))
    }

    /// How many rows are stored, counting each time that a row was written.
    #[must_use]
    pub fn stored_rows(&self) -> u64 {
        let segments: u64 = self.segments.iter().map(|segment| segment.meta().rows).sum();
        let frozen: usize = self.frozen.iter().map(|frozen| frozen.rows.rows()).sum();
        segments + (frozen + self.hot.rows()) as u64
    }
}

/// Where the current [`Version`] of a table is found.
#[derive(Debug)]
pub struct VersionCell(ArcSwap<Version>);

impl VersionCell {
    /// A cell that holds a version.
    #[must_use]
    pub fn new(version: Version) -> Self {
        VersionCell(ArcSwap::from_pointee(version))
    }

    /// The current version. Never blocks.
    #[must_use]
    pub fn load(&self) -> Arc<Version> {
        self.0.load_full()
    }

    fn store(&self, version: Version) {
        self.0.store(Arc::new(version));
    }
}

/// A table as its writer holds it: the only mutator of its versions.
#[derive(Debug)]
pub struct TableState {
    cell: Arc<VersionCell>,
    files: SegmentFiles,
    table: Arc<TableDef>,
    conform: Conform,
    segments: Arc<[Arc<SegmentRef>]>,
    frozen: Arc<[Arc<Frozen>]>,
    hot: MemTable,
    last_times: LastTimes,
    watermark: Position,
    deletions: u64,
}

impl TableState {
    /// A table with the segments that the metadata names and nothing in memory. `watermark`
    /// is the position up to which its rows are in segments.
    #[must_use]
    pub fn open(
        table: Arc<TableDef>,
        segments: impl IntoIterator<Item = Arc<SegmentMeta>>,
        watermark: Position,
        files: SegmentFiles,
    ) -> Self {
        let segments = in_order(
            segments.into_iter().map(|meta| Arc::new(SegmentRef::new(meta, files.clone()))),
        );
        let taken: Vec<TimeRange> = segments.iter().map(|each| each.meta().time).collect();
        let frozen: Arc<[Arc<Frozen>]> = Arc::default();
        let version = Version {
            table: table.clone(),
            segments: segments.clone(),
            frozen: frozen.clone(),
            hot: MemView::default(),
            watermark,
            deletions: 0,
        };
        TableState {
            cell: Arc::new(VersionCell::new(version)),
            files,
            conform: Conform::new(&table.schema),
            table,
            segments,
            frozen,
            hot: MemTable::default(),
            last_times: LastTimes::new(taken, DEFAULT_SERIES),
            watermark,
            deletions: 0,
        }
    }

    /// The same table, of which rows were deleted so many times.
    #[must_use]
    pub fn with_deletions(mut self, deletions: u64) -> Self {
        self.deletions = deletions;
        self.publish();
        self
    }

    /// Where readers find the versions.
    #[must_use]
    pub fn cell(&self) -> Arc<VersionCell> {
        self.cell.clone()
    }

    /// The definition.
    #[must_use]
    pub fn table(&self) -> &Arc<TableDef> {
        &self.table
    }

    /// The frozen rows that wait for their flush, oldest first.
    pub fn frozen(&self) -> impl Iterator<Item = &Arc<Frozen>> {
        self.frozen.iter()
    }

    /// Rows that were made for an earlier definition, under the present one.
    ///
    /// # Errors
    /// As [`Conform::batch`].
    pub fn conformed(&self, batch: RecordBatch) -> Result<RecordBatch> {
        self.conform.batch(batch)
    }

    /// Adds rows and shows them to readers. They may have been made for an earlier definition. Answers whether some of them may have the tags and
    /// time of a row that was there.
    ///
    /// # Errors
    /// `internal` where the batch does not fit the table; then nothing is added.
    pub fn apply(&mut self, position: Position, batch: RecordBatch) -> Result<bool> {
        let late = self.append(position, batch)?;
        self.publish();
        Ok(late)
    }

    /// Adds rows without showing them yet: for several batches in a row, ended by
    /// [`TableState::publish`]. Answers as [`TableState::apply`] does.
    ///
    /// # Errors
    /// `internal` where the batch does not fit the table; then nothing is added.
    pub fn append(&mut self, position: Position, batch: RecordBatch) -> Result<bool> {
        let batch = self.conform.batch(batch)?;
        let late = if self.table.options.append_only {
            None
        } else {
            self.last_times.observe(&self.table.schema, &batch)?
        };
        self.hot.append(&self.table.schema, position, batch, late)?;
        self.watermark = self.watermark.max(position);
        Ok(late.is_some())
    }

    /// Moves the watermark over positions that belong to other tables.
    pub fn advance(&mut self, position: Position) {
        self.watermark = self.watermark.max(position);
    }

    /// Shows readers everything that was appended.
    pub fn publish(&self) {
        self.cell.store(Version {
            table: self.table.clone(),
            segments: self.segments.clone(),
            frozen: self.frozen.clone(),
            hot: self.hot.view(),
            watermark: self.watermark,
            deletions: self.deletions,
        });
    }

    /// Closes the rows in memory for their flush; `None` where there are none.
    pub fn freeze(&mut self) -> Option<Arc<Frozen>> {
        let span = self.hot.span()?;
        let rows = std::mem::take(&mut self.hot).view();
        let frozen = Arc::new(Frozen { rows, span });
        self.frozen = self.frozen.iter().cloned().chain([frozen.clone()]).collect();
        self.publish();
        Some(frozen)
    }

    /// Puts the segments of a flush, which the metadata names by now, in place of the rows
    /// in memory.
    ///
    /// # Errors
    /// `conflict` where these rows are not waiting for their flush.
    pub fn flushed(
        &mut self,
        frozen: &Arc<Frozen>,
        segments: impl IntoIterator<Item = Arc<SegmentMeta>>,
    ) -> Result<()> {
        let before = self.frozen.len();
        let left: Arc<[Arc<Frozen>]> =
            self.frozen.iter().filter(|each| !each.same_rows(frozen)).cloned().collect();
        if left.len() == before {
            return Err(Error::new(
                Code::Conflict,
                format!("rows of table {} were flushed before", self.table.name),
            ));
        }
        self.frozen = left;
        self.add_segments(segments);
        self.publish();
        Ok(())
    }

    /// Puts the outputs of a merge, which the metadata names by now, in place of its inputs;
    /// without outputs it drops them.
    ///
    /// # Errors
    /// `conflict` where an input is not part of the table; then nothing changes.
    pub fn replaced(
        &mut self,
        inputs: &[SegmentId],
        outputs: impl IntoIterator<Item = Arc<SegmentMeta>>,
    ) -> Result<()> {
        if let Some(id) =
            inputs.iter().find(|id| !self.segments.iter().any(|each| each.meta().id == **id))
        {
            return Err(Error::new(
                Code::Conflict,
                format!("segment {id} is no part of table {}", self.table.name),
            ));
        }
        let (gone, left): (Vec<_>, Vec<_>) =
            self.segments.iter().cloned().partition(|each| inputs.contains(&each.meta().id));
        self.segments = left.into();
        self.add_segments(outputs);
        self.publish();
        gone.iter().for_each(|segment| segment.retire());
        Ok(())
    }

    /// As [`TableState::replaced`], where rows of the inputs were deleted.
    ///
    /// # Errors
    /// As [`TableState::replaced`].
    pub fn deleted(
        &mut self,
        inputs: &[SegmentId],
        outputs: impl IntoIterator<Item = Arc<SegmentMeta>>,
    ) -> Result<()> {
        self.deletions += 1;
        self.replaced(inputs, outputs)
    }

    fn add_segments(&mut self, segments: impl IntoIterator<Item = Arc<SegmentMeta>>) {
        let new = segments
            .into_iter()
            .map(|meta| Arc::new(SegmentRef::new(meta, self.files.clone())))
            .collect::<Vec<_>>();
        self.segments = in_order(self.segments.iter().cloned().chain(new));
    }

    /// Takes a new definition. Rows in memory are put under it; versions of before keep theirs.
    ///
    /// # Errors
    /// `conflict` where a column got a type that its values do not widen to, which no edit of the
    /// metadata allows; then nothing changes.
    pub fn alter(&mut self, table: Arc<TableDef>) -> Result<()> {
        let conform = Conform::new(&table.schema);
        if !only_adds(&self.table.schema, &table.schema) {
            let frozen = self.frozen.iter().map(|each| each.conformed(&conform));
            let frozen = frozen.collect::<Result<Arc<[_]>>>()?;
            self.hot.conform(&conform)?;
            self.frozen = frozen;
        }
        (self.table, self.conform) = (table, conform);
        self.publish();
        Ok(())
    }

    /// Gives all segments to the graveyard once their readers are done: for a dropped table,
    /// after the metadata dropped it.
    pub fn retire(&mut self) {
        let gone = std::mem::take(&mut self.segments);
        self.frozen = Arc::default();
        self.hot = MemTable::default();
        self.publish();
        gone.iter().for_each(|segment| segment.retire());
    }

    /// The memory of rows that are not in segments yet.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.hot_bytes() + self.frozen.iter().map(|frozen| frozen.rows.bytes()).sum::<usize>()
    }

    /// The memory of rows that no flush has begun for.
    #[must_use]
    pub fn hot_bytes(&self) -> usize {
        self.hot.bytes()
    }

    /// Rows that no flush has begun for.
    #[must_use]
    pub fn hot_rows(&self) -> usize {
        self.hot.rows()
    }

    /// How many frozen memtables wait for their flush.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.frozen.len()
    }

    /// The position of the oldest rows that are in memory only; the log must keep it.
    #[must_use]
    pub fn oldest(&self) -> Option<Position> {
        let frozen = self.frozen.first().map(|frozen| frozen.span.first);
        frozen.or(self.hot.span().map(|span| span.first))
    }

    /// The newest position that was applied.
    #[must_use]
    pub fn watermark(&self) -> Position {
        self.watermark
    }
}

fn in_order(segments: impl Iterator<Item = Arc<SegmentRef>>) -> Arc<[Arc<SegmentRef>]> {
    let mut sorted: Vec<Arc<SegmentRef>> = segments.collect();
    sorted.sort_by_key(|segment| (segment.meta().seq_range, segment.meta().id));
    sorted.into()
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, ArrayRef, AsArray, Float64Array, TimestampNanosecondArray};
    use arrow::datatypes::{Float64Type, Schema};
    use proptest::prelude::*;

    use super::*;
    use crate::ids::ColumnId;
    use crate::schema::{Column, ColumnKind, FieldType};
    use crate::storage::interner::TagArray;
    use crate::storage::merge::{GroupScan, open};
    use crate::storage::model::{Bench, Row, Rows, expected, rows, scan};
    use crate::storage::overlap::groups;
    use crate::storage::segment::TagFilter;

    #[derive(Debug, Clone)]
    enum Step {
        Write(Rows),
        Flush,
        Compact {
            min_segments: usize,
        },
        Settle,
        Reopen,
        Rename {
            id: u32,
            name: String,
        },
        Drop {
            id: u32,
        },
        /// A new column under a name that there was.
        Add {
            name: String,
        },
        Widen,
    }

    /// Names that columns of the table have or had.
    fn name() -> impl Strategy<Value = String> {
        prop_oneof![Just("float"), Just("int"), Just("text"), Just("a"), Just("time"), Just("x")]
            .prop_map(str::to_owned)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => rows().prop_map(Step::Write),
            2 => Just(Step::Flush),
            1 => (2..4usize).prop_map(|min_segments| Step::Compact { min_segments }),
            1 => Just(Step::Settle),
            1 => Just(Step::Reopen),
            1 => (1..7u32, name()).prop_map(|(id, name)| Step::Rename { id, name }),
            1 => prop_oneof![Just(3), Just(5), Just(6)].prop_map(|id| Step::Drop { id }),
            1 => name().prop_map(|name| Step::Add { name }),
            1 => Just(Step::Widen),
        ]
    }

    /// Writes come as they were checked before anything was altered.
    fn run(bench: &mut Bench, step: &Step, writes: &mut Vec<Rows>) {
        match step {
            Step::Write(rows) => {
                bench.write(rows.batch());
                writes.push(rows.clone());
            }
            Step::Flush => bench.flush(),
            Step::Compact { min_segments } => {
                bench.compact(*min_segments, 0);
            }
            Step::Settle => while bench.compact(100, i64::MAX) {},
            Step::Reopen => bench.reopen(),
            Step::Rename { id, name } => bench.alter(|columns| {
                let taken = columns.iter().any(|column| column.name == *name);
                let column = columns.iter_mut().find(|column| column.id == ColumnId(*id));
                if let Some(column) = column.filter(|_| !taken) {
                    column.name.clone_from(name);
                }
            }),
            Step::Drop { id } => {
                bench.alter(|columns| columns.retain(|column| column.id != ColumnId(*id)));
            }
            Step::Add { name } => {
                let next = bench.next_column();
                bench.alter(|columns| {
                    if columns.iter().all(|column| column.name != *name) {
                        let (kind, field_type) = (ColumnKind::Field, FieldType::Text);
                        columns.push(Column { id: next, name: name.clone(), kind, field_type });
                    }
                });
            }
            Step::Widen => bench.alter(|columns| {
                for column in columns.iter_mut().filter(|column| column.id == ColumnId(5)) {
                    column.field_type = FieldType::Float64;
                }
            }),
        }
        // What is dropped is gone from rows of before and from those that still come with it.
        let table = bench.state.table();
        for (bit, id) in [(2, 3), (3, 5), (4, 6)] {
            if table.schema.columns.iter().all(|column| column.id != ColumnId(id)) {
                writes.iter_mut().for_each(|rows| rows.columns &= !(1 << bit));
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        /// V2: flushes and compactions keep the set of rows, whatever its columns are called
        /// meanwhile; and a version never changes, whatever happens to its table.
        #[test]
        fn a_table_agrees_with_a_map_and_its_versions_stay(
            steps in proptest::collection::vec(step(), 1..24),
            append_only: bool,
            batch_rows in 1..20usize,
        ) {
            let mut bench = Bench::new(append_only);
            let mut writes = Vec::new();
            let mut kept: Vec<(Arc<Version>, Vec<Row>)> = Vec::new();
            for step in &steps {
                run(&mut bench, step, &mut writes);
                let version = bench.version();
                let now = expected(&writes, append_only);
                prop_assert_eq!(&scan(&version, batch_rows), &now, "after {:?}", step);
                kept.push((version, now));
            }
            for (version, rows) in kept {
                prop_assert_eq!(scan(&version, batch_rows), rows);
            }
        }
    }

    fn row(time: i64) -> Rows {
        let row =
            Row { a: Some("x".into()), b: None, time, float: None, int: Some(time), text: None };
        Rows { rows: vec![row], columns: 0xff }
    }

    #[test]
    fn a_merged_segment_goes_to_the_graveyard_after_its_last_reader() {
        let mut bench = Bench::new(false);
        for time in 0..2 {
            bench.write(row(time).batch());
            bench.flush();
        }
        let reader = bench.version();
        assert!(bench.compact(2, 0));
        assert!(bench.files.graveyard.take().is_empty(), "a version still names them");
        assert_eq!(scan(&reader, 8).len(), 2);
        drop(reader);
        assert_eq!(bench.files.graveyard.take().len(), 2);
        assert_eq!(bench.version().segments.len(), 1);
    }

    #[test]
    fn a_segment_that_is_only_closed_stays() {
        let mut bench = Bench::new(false);
        bench.write(row(1).batch());
        bench.reopen();
        assert!(bench.files.graveyard.take().is_empty());
    }

    #[test]
    fn replacing_what_is_not_there_changes_nothing() {
        let mut bench = Bench::new(false);
        bench.write(row(1).batch());
        bench.flush();
        let before = bench.version();
        let error = bench.state.replaced(&[SegmentId::default()], []).unwrap_err();
        assert_eq!(error.code(), Code::Conflict);
        assert_eq!(bench.version().segments.len(), before.segments.len());
    }

    #[test]
    fn the_oldest_position_in_memory_moves_with_flushes() {
        let mut bench = Bench::new(false);
        assert_eq!(bench.state.oldest(), None);
        bench.write(row(1).batch());
        let first = bench.state.freeze().unwrap();
        bench.write(row(2).batch());
        assert_eq!(bench.state.oldest(), Some(crate::storage::model::position(1)));
        bench.state.flushed(&first, []).unwrap();
        assert_eq!(bench.state.oldest(), Some(crate::storage::model::position(2)));
        assert_eq!(bench.state.flushed(&first, []).unwrap_err().code(), Code::Conflict);
    }

    /// Columns of a table with thousands, of which each row has a few.
    const WIDE: u32 = 2000;

    fn sparse(columns: &[Column], row: u32) -> RecordBatch {
        let time = i64::from(row / 2);
        let mut fields = vec![columns[0].arrow(), columns[3].arrow()];
        let host: TagArray = [Some(format!("h{}", row % 2))].iter().map(Option::as_deref).collect();
        let times = TimestampNanosecondArray::from(vec![time]).with_timezone("+00:00");
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(host), Arc::new(times)];
        for nth in 0..10 {
            let column = &columns[6 + ((row * 7 + nth * 131) % WIDE) as usize];
            fields.push(column.arrow());
            arrays.push(Arc::new(Float64Array::from(vec![f64::from(row)])));
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
    }

    /// For each column how many values it has, and their sum.
    fn sums(version: &Version, columns: &[Column]) -> Vec<(usize, f64)> {
        let output = Arc::new(Schema::new(columns.iter().map(Column::arrow).collect::<Vec<_>>()));
        let mut sums = vec![(0, 0.0); columns.len()];
        for group in groups(version, &TimeRange::ALL, &TagFilter::all()) {
            let scan = GroupScan {
                output: output.clone(),
                tags: TagFilter::all(),
                time: TimeRange::ALL,
                batch_rows: 8192,
            };
            for batch in open(&group, &version.table, &scan).unwrap() {
                for (sum, array) in sums.iter_mut().zip(batch.unwrap().columns()) {
                    let values = array.as_primitive::<Float64Type>();
                    *sum = (
                        sum.0 + values.len() - values.null_count(),
                        sum.1 + values.iter().flatten().sum::<f64>(),
                    );
                }
            }
        }
        sums
    }

    #[test]
    fn a_table_may_have_thousands_of_columns_that_most_rows_lack() {
        let mut bench = Bench::new(false);
        bench.alter(|columns| {
            columns.extend((0..WIDE).map(|nth| Column {
                id: ColumnId(7 + nth),
                name: format!("c{nth}"),
                kind: ColumnKind::Field,
                field_type: FieldType::Float64,
            }));
        });
        let columns = bench.state.table().schema.columns.clone();
        let mut wanted = vec![(0, 0.0); WIDE as usize];
        for row in 0..1200 {
            let batch = sparse(&columns, row);
            for field in &batch.schema_ref().fields()[2..] {
                let nth: usize = field.name()[1..].parse().unwrap();
                wanted[nth] = (wanted[nth].0 + 1, wanted[nth].1 + f64::from(row));
            }
            bench.write(batch);
            if row % 400 == 399 {
                assert_eq!(sums(&bench.version(), &columns[6..][..1])[0].0, wanted[0].0);
                bench.flush();
            }
        }
        assert_eq!(sums(&bench.version(), &columns[6..]), wanted);
        assert!(bench.compact(2, 0));
        assert_eq!(bench.version().segments.len(), 1);
        assert_eq!(sums(&bench.version(), &columns[6..]), wanted);
        // The values of dropped columns go with the next merge.
        let before = bench.version().segments[0].meta().bytes;
        bench.alter(|columns| columns.truncate(10));
        bench.write(sparse(&columns, 5000));
        bench.flush();
        while bench.compact(2, i64::MAX) {}
        let after = bench.version();
        let meta = after.segments[0].meta();
        assert!(
            after.segments.len() == 1 && meta.bytes < before / 10,
            "{} of {before}",
            meta.bytes
        );
        assert!(meta.columns.len() <= 8, "{:?}", meta.columns);
    }
}
