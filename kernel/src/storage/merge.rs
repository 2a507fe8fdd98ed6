//! Merges sorted streams of rows into one, holding one batch of each at a time.
//!
//! Streams are compared series by series, not row by row: where only one stream has a
//! series, or where the times of two do not reach into each other, whole ranges of rows pass
//! as they are. Rows of the same tags and time become one where asked: each column takes its
//! last value that is not NULL, from the newest stream to the oldest. The same code serves
//! compaction and scans.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{FieldRef, Schema, SchemaRef, TimestampNanosecondType};

use crate::error::{Error, Result};
use crate::ids::TimeRange;
use crate::schema::{ColumnKind, TableDef, TableSchema};
use crate::storage::late::times;
use crate::storage::overlap::{Group, Source};
use crate::storage::segment::runs::SeriesRuns;
use crate::storage::segment::{Scan, TagFilter};
use crate::storage::width::{BATCH_BYTES, row_bytes};

mod pending;

use pending::Pending;

/// A stream of batches, sorted by tags and time as a whole.
pub type SortedSource = Box<dyn Iterator<Item = Result<RecordBatch>> + Send>;

/// The columns that a source must bring for `output` to come out of a merge: all tags, the
/// time, and what `output` names. A source that lacks one has NULL there.
///
/// # Errors
/// `internal` for a table without a time column, which cannot exist.
pub fn input_schema(schema: &TableSchema, output: &Schema) -> Result<SchemaRef> {
    let time = schema.time()?;
    let keys = || schema.tags().chain([time]);
    let names: HashSet<&str> = keys().map(|column| column.name.as_str()).collect();
    let others = output.fields().iter().filter(|field| !names.contains(field.name().as_str()));
    let fields = keys().map(|column| Arc::new(column.arrow())).chain(others.cloned());
    Ok(Arc::new(Schema::new(fields.collect::<Vec<FieldRef>>())))
}

/// Merges streams, given oldest first. With `dedup`, no single stream may hold rows of the
/// same tags and time twice, and none leaves the merge twice; without, all rows stay, those
/// of older streams first.
///
/// `output` names the columns that come out, in batches of at most `batch_rows` and about
/// [`BATCH_BYTES`].
#[must_use]
pub fn stream(
    sources: Vec<SortedSource>,
    schema: Arc<TableSchema>,
    output: SchemaRef,
    dedup: bool,
    batch_rows: usize,
) -> MergeStream {
    MergeStream {
        cursors: sources.into_iter().map(Cursor::new).collect(),
        pending: Pending::new(output),
        active: Vec::new(),
        schema,
        dedup,
        batch_rows: batch_rows.max(1),
        started: false,
        failed: false,
    }
}

/// What is wanted of a group of sources.
#[derive(Debug, Clone)]
pub struct GroupScan {
    /// The columns, as fields of the table's Arrow schema.
    pub output: SchemaRef,
    /// The series. Sources in memory may bring others too.
    pub tags: TagFilter,
    /// The times. Rows outside may come too.
    pub time: TimeRange,
    /// The largest batch.
    pub batch_rows: usize,
}

/// The rows of a group, sorted by tags and time, each once. Opens segments and sorts rows in
/// memory, which blocks.
///
/// # Errors
/// `corrupt` naming a file, `io_error`, and those of sorting.
pub fn open(group: &Group, table: &Arc<TableDef>, scan: &GroupScan) -> Result<MergeStream> {
    let input = input_schema(&table.schema, &scan.output)?;
    let sources = group
        .sources
        .iter()
        .map(|source| open_source(source, table, scan, &input))
        .collect::<Result<Vec<_>>>()?;
    let schema = Arc::new(table.schema.clone());
    Ok(stream(sources, schema, scan.output.clone(), group.dedup, scan.batch_rows))
}

fn open_source(
    source: &Source,
    table: &Arc<TableDef>,
    scan: &GroupScan,
    input: &SchemaRef,
) -> Result<SortedSource> {
    let rows = match source {
        Source::Segment(segment) => {
            return Ok(Box::new(segment.reader()?.scan(&Scan {
                output: input.clone(),
                tags: scan.tags.clone(),
                time: scan.time,
                batch_rows: scan.batch_rows,
            })?));
        }
        Source::Frozen(frozen) => &frozen.rows,
        Source::Hot(rows) => rows,
    };
    Ok(Box::new(rows.sorted(table)?.batches(input.clone(), scan.batch_rows)))
}

/// A batch that a source has given, with what merging needs to know of it.
pub(crate) struct Loaded {
    batch: RecordBatch,
    times: TimestampNanosecondArray,
    runs: SeriesRuns,
    row_bytes: usize,
}

impl Loaded {
    fn new(schema: &TableSchema, batch: RecordBatch) -> Result<Loaded> {
        times(schema, &batch)?;
        let runs = SeriesRuns::of(schema, &batch)?;
        let time = batch.column_by_name(&schema.time()?.name);
        let times = time.and_then(|time| time.as_primitive_opt::<TimestampNanosecondType>());
        let times = times.ok_or_else(|| Error::internal("batch without times"))?.clone();
        Ok(Loaded { row_bytes: row_bytes([&batch]), batch, times, runs })
    }
}

/// A place in a source: always on a row, unless the source has ended.
struct Cursor {
    source: SortedSource,
    loaded: Option<Arc<Loaded>>,
    run: usize,
    row: usize,
}

impl Cursor {
    fn new(source: SortedSource) -> Self {
        Cursor { source, loaded: None, run: 0, row: 0 }
    }

    /// Loads the next batch that has rows.
    fn load(&mut self, schema: &TableSchema) -> Result<()> {
        (self.loaded, self.run, self.row) = (None, 0, 0);
        for batch in self.source.by_ref() {
            let batch = batch?;
            if batch.num_rows() > 0 {
                self.loaded = Some(Arc::new(Loaded::new(schema, batch)?));
                break;
            }
        }
        Ok(())
    }

    fn key(&self) -> Option<&[u8]> {
        self.loaded.as_ref().map(|loaded| loaded.runs.key(self.run))
    }

    fn time(&self) -> Option<i64> {
        self.loaded.as_ref().map(|loaded| loaded.times.value(self.row))
    }

    /// The row after the last of the current series in this batch.
    fn run_end(&self) -> usize {
        self.loaded.as_ref().map_or(0, |loaded| loaded.runs.rows(self.run).end)
    }

    /// How many rows from here, in this series and batch, are older than `limit`.
    fn older_than(&self, limit: i64) -> usize {
        let Some(loaded) = &self.loaded else { return 0 };
        let times = &loaded.times.values()[self.row..self.run_end()];
        // Streams that take turns have short stretches: look near before searching far.
        let mut step = 1;
        while step < times.len() && times[step] < limit {
            step *= 2;
        }
        let near = times.len().min(step);
        times[..near].partition_point(|time| *time < limit)
    }

    /// The row after the last of the series below `bound` in this batch.
    fn end_below(&self, bound: Option<&[u8]>) -> usize {
        let Some(loaded) = &self.loaded else { return 0 };
        let Some(bound) = bound else { return loaded.batch.num_rows() };
        let mut run = self.run;
        while run + 1 < loaded.runs.len() && loaded.runs.key(run + 1) < bound {
            run += 1;
        }
        loaded.runs.rows(run).end
    }

    /// Passes over rows; tells whether this ended the series or the batch.
    fn advance(&mut self, rows: usize, schema: &TableSchema) -> Result<bool> {
        self.row += rows;
        let Some(loaded) = &self.loaded else { return Ok(true) };
        if self.row < loaded.runs.rows(self.run).end {
            return Ok(false);
        }
        if self.row >= loaded.batch.num_rows() {
            self.load(schema)?;
            return Ok(true);
        }
        while loaded.runs.rows(self.run).end <= self.row {
            self.run += 1;
        }
        Ok(true)
    }
}

/// The merged rows. Ends after the first error.
pub struct MergeStream {
    cursors: Vec<Cursor>,
    pending: Pending,
    /// Cursors that stand on the smallest series, where there are several; oldest first.
    active: Vec<usize>,
    schema: Arc<TableSchema>,
    dedup: bool,
    batch_rows: usize,
    started: bool,
    failed: bool,
}

impl MergeStream {
    /// The columns that come out.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        self.pending.output()
    }

    fn fill(&mut self) -> Result<Option<RecordBatch>> {
        if !self.started {
            self.started = true;
            self.cursors.iter_mut().try_for_each(|cursor| cursor.load(&self.schema))?;
        }
        while self.pending.rows() < self.batch_rows && self.pending.bytes() < BATCH_BYTES {
            if self.active.len() > 1 {
                self.step()?;
            } else if !self.next_series()? {
                break;
            }
        }
        self.pending.take()
    }

    /// Turns to the smallest series. Rows of a single cursor are taken here, together with
    /// those of further series that no other cursor reaches; false at the end.
    fn next_series(&mut self) -> Result<bool> {
        self.active.clear();
        let Some(least) = self.cursors.iter().filter_map(Cursor::key).min() else {
            return Ok(false);
        };
        let on_least = |(_, cursor): &(usize, &Cursor)| cursor.key() == Some(least);
        self.active.extend(self.cursors.iter().enumerate().filter(on_least).map(|(at, _)| at));
        if let [only] = self.active[..] {
            let others = self.cursors.iter().enumerate().filter(|(at, _)| *at != only);
            let bound = others.filter_map(|(_, cursor)| cursor.key()).min();
            let end = self.cursors[only].end_below(bound);
            self.take(only, end - self.cursors[only].row)?;
        }
        Ok(true)
    }

    /// Takes the oldest rows of the series on which several cursors stand.
    fn step(&mut self) -> Result<()> {
        let heads = self.active.iter().filter_map(|at| self.cursors[*at].time());
        let Some(oldest) = heads.min() else {
            self.active.clear();
            return Ok(());
        };
        let on_oldest = |at: &usize| self.cursors[*at].time() == Some(oldest);
        let tied = self.active.iter().filter(|at| on_oldest(at)).count();
        if tied > 1 && self.dedup {
            return self.take_tied(oldest);
        }
        let Some(first) = self.active.iter().copied().find(on_oldest) else { return Ok(()) };
        let rows = if tied > 1 {
            self.cursors[first].older_than(oldest.saturating_add(1)).max(1)
        } else {
            let others = self.active.iter().filter(|at| **at != first);
            let limit = others.filter_map(|at| self.cursors[*at].time()).min();
            self.cursors[first].older_than(limit.unwrap_or(i64::MAX)).max(1)
        };
        self.take(first, rows)
    }

    /// Takes up to `rows` rows of a cursor, as many as the batch has room for.
    fn take(&mut self, at: usize, rows: usize) -> Result<()> {
        let cursor = &mut self.cursors[at];
        let Some(loaded) = &cursor.loaded else { return Ok(()) };
        let rows = rows.min(self.batch_rows - self.pending.rows());
        self.pending.push(loaded, cursor.row, rows);
        self.pass(at, rows)
    }

    /// Takes the rows of one time as one row.
    fn take_tied(&mut self, time: i64) -> Result<()> {
        let tied: Vec<usize> = self
            .active
            .iter()
            .copied()
            .filter(|at| self.cursors[*at].time() == Some(time))
            .collect();
        let rows = tied.iter().filter_map(|at| {
            let cursor = &self.cursors[*at];
            cursor.loaded.as_ref().map(|loaded| (loaded, cursor.row))
        });
        self.pending.push_merged(rows);
        tied.into_iter().try_for_each(|at| self.pass(at, 1))
    }

    /// Moves a cursor on, and out of the active ones where it leaves their series.
    fn pass(&mut self, at: usize, rows: usize) -> Result<()> {
        if self.active.len() < 2 {
            self.active.clear();
            return self.cursors[at].advance(rows, &self.schema).map(|_| ());
        }
        if !self.cursors[at].advance(rows, &self.schema)? {
            return Ok(());
        }
        // Another active cursor still stands on the series, unless all of them leave at once;
        // then the next series is searched for anew.
        let other = self.active.iter().find(|other| **other != at);
        let same = other.is_some_and(|other| self.cursors[*other].key() == self.cursors[at].key());
        if !same {
            self.active.retain(|each| *each != at);
        }
        Ok(())
    }
}

impl Iterator for MergeStream {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.fill();
        self.failed = next.is_err();
        next.transpose()
    }
}

/// The kind of a column that comes out.
pub(crate) fn is_tag(field: &FieldRef) -> bool {
    ColumnKind::of(field) == ColumnKind::Tag
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::model::{Row, Rows, expected, read, row, rows, table};
    use crate::storage::sort::sort_rows;

    fn sorted(writes: &[Rows], dedup: bool, batch_rows: usize) -> SortedSource {
        let schema = Arc::new(table(false).schema);
        let batches = writes.iter().map(Rows::batch).collect();
        Box::new(Arc::new(sort_rows(schema, batches, dedup).unwrap()).all_columns(batch_rows))
    }

    fn merged(sources: Vec<SortedSource>, dedup: bool, batch_rows: usize) -> Vec<Row> {
        let schema = Arc::new(table(false).schema);
        let output = schema.arrow();
        let batches = stream(sources, schema, output, dedup, batch_rows).map(|batch| {
            let batch = batch.unwrap();
            assert!(batch.num_rows() <= batch_rows);
            batch
        });
        batches.flat_map(|batch| read(&batch)).collect()
    }

    proptest! {
        #[test]
        fn merging_agrees_with_a_map(
            sources in proptest::collection::vec(
                proptest::collection::vec(rows(), 0..3), 0..5),
            dedup: bool,
            in_rows in 1..9usize,
            out_rows in 1..20usize,
        ) {
            let streams = sources.iter().map(|each| sorted(each, dedup, in_rows)).collect();
            let writes: Vec<Rows> = sources.concat();
            prop_assert_eq!(merged(streams, dedup, out_rows), expected(&writes, !dedup));
        }

        #[test]
        fn long_series_merge_in_ranges_and_in_turns(
            times in proptest::collection::vec((0..3usize, 0..400i64), 0..300),
            sample in row(),
            out_rows in 1..100usize,
        ) {
            let mut writes = vec![Rows { rows: Vec::new(), columns: 0xff }; 3];
            for (int, (source, time)) in (0..).zip(&times) {
                let row = Row { time: *time, int: Some(int), ..sample.clone() };
                writes[*source].rows.push(row);
            }
            let streams = writes.iter().map(|each| sorted(std::slice::from_ref(each), true, 64));
            let streams = streams.collect();
            prop_assert_eq!(merged(streams, true, out_rows), expected(&writes, false));
        }
    }

    #[test]
    fn the_columns_asked_for_come_out_although_others_decide() {
        let old = Rows {
            rows: vec![Row {
                a: Some("x".into()),
                b: None,
                time: 1,
                float: Some(1.0),
                int: Some(1),
                text: None,
            }],
            columns: 0xff,
        };
        let mut new = old.clone();
        new.rows[0].float = None;
        new.rows[0].int = Some(2);
        let schema = Arc::new(table(false).schema);
        let output: SchemaRef = Arc::new(schema.arrow().project(&[2, 4]).unwrap());
        let streams = vec![sorted(&[old], true, 10), sorted(&[new], true, 10)];
        let batches: Vec<RecordBatch> =
            stream(streams, schema, output.clone(), true, 10).map(Result::unwrap).collect();
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].schema(), output);
        assert_eq!(batches[0].num_rows(), 1);
        let column = |at: usize| batches[0].column(at);
        assert_eq!(column(0).as_primitive::<arrow::datatypes::Float64Type>().value(0), 1.0);
        assert_eq!(column(1).as_primitive::<arrow::datatypes::Int64Type>().value(0), 2);
    }

    #[test]
    fn an_error_of_a_source_ends_the_merge() {
        let failing: SortedSource = Box::new(std::iter::once(Err(Error::internal("broken"))));
        let schema = Arc::new(table(false).schema);
        let output = schema.arrow();
        let mut merged = stream(vec![failing], schema, output, true, 10);
        assert!(merged.next().unwrap().is_err());
        assert!(merged.next().is_none());
    }
}
