//! Rows in memory: Arrow batches that are only ever added, and views of them that never change.
//!
//! A [`MemTable`] belongs to one writer. A [`MemView`] is what readers get: taking one is a
//! clone of an `Arc`, and what the writer adds later never shows in it. So that 100,000
//! one-row writes do not make 100,000 batches, neighbouring small batches are joined, in the
//! order of arrival, into runs of geometrically growing size: each row is copied a few
//! times at most, and a view holds few runs whatever the size of the writes.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::concat;
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::ids::{Position, TimeRange};
use crate::schema::{ColumnKind, TableDef, TableSchema};
use crate::storage::conform::Conform;
use crate::storage::interner::{as_tag, concat_tags};
use crate::storage::late::times;
use crate::storage::sort::{SortedRows, sort_rows};

/// Joining stops at runs of this many rows, which keeps an append short.
const RUN_ROWS: usize = 2048;
/// Joining stops at runs of this many bytes, for the same reason.
const RUN_BYTES: usize = 256 << 10;
/// How many runs of about one size are joined into one of the next.
const FAN_IN: usize = 8;

/// Rows that were appended one after the other.
#[derive(Debug)]
pub struct Run {
    /// The rows, in the order of arrival.
    pub batch: RecordBatch,
    /// The memory they take.
    pub bytes: usize,
    /// The earliest and the latest time.
    pub time: TimeRange,
}

impl Run {
    fn joinable(&self) -> bool {
        self.batch.num_rows() < RUN_ROWS && self.bytes < RUN_BYTES
    }

    /// Runs of one class are of about the same number of rows.
    fn class(&self) -> u32 {
        self.batch.num_rows().max(1).ilog(FAN_IN)
    }
}

/// What rows in memory have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The earliest and the latest time.
    pub time: TimeRange,
    /// The position of the oldest rows.
    pub first: Position,
    /// The position of the newest rows.
    pub last: Position,
    /// The times of rows that may repeat the tags and time of an earlier row, here or in
    /// anything older.
    pub late: Option<TimeRange>,
}

impl Span {
    fn with(self, other: Span) -> Span {
        Span {
            time: self.time.union(&other.time),
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            late: union(self.late, other.late),
        }
    }
}

/// The smallest range that holds both, where either may be empty.
#[must_use]
pub fn union(a: Option<TimeRange>, b: Option<TimeRange>) -> Option<TimeRange> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.union(&b)),
        (one, other) => one.or(other),
    }
}

#[derive(Debug, Default)]
struct View {
    runs: Vec<Arc<Run>>,
    rows: usize,
    bytes: usize,
    span: Option<Span>,
    sorted: Mutex<Option<Arc<SortedRows>>>,
}

/// Rows in memory as they were at one moment. Cheap to clone; never changes.
#[derive(Debug, Clone, Default)]
pub struct MemView(Arc<View>);

impl MemView {
    /// The rows, in the order of arrival. Batches may hold any subset of the table's columns.
    pub fn batches(&self) -> impl ExactSizeIterator<Item = &RecordBatch> {
        self.0.runs.iter().map(|run| &run.batch)
    }

    /// The runs, in the order of arrival.
    #[must_use]
    pub fn runs(&self) -> &[Arc<Run>] {
        &self.0.runs
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.rows == 0
    }

    /// The memory the rows take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Times and positions; `None` where there are no rows.
    #[must_use]
    pub fn span(&self) -> Option<Span> {
        self.0.span
    }

    /// The same rows under another definition of their table.
    ///
    /// # Errors
    /// As [`Conform::batch`].
    pub fn conformed(&self, definition: &Conform) -> Result<MemView> {
        let runs = conformed(&self.0.runs, definition)?;
        let bytes = runs.iter().map(|run| run.bytes).sum();
        let View { rows, span, .. } = *self.0;
        Ok(MemView(Arc::new(View { runs, rows, bytes, span, sorted: Mutex::new(None) })))
    }

    /// The rows sorted by tags and time, and merged where tags and time repeat (unless the
    /// table is append-only). Made at the first call and kept for as long as the view is.
    ///
    /// # Errors
    /// `internal` where a batch does not fit the table, `too_large` where its tags exceed
    /// what one dictionary can hold.
    pub fn sorted(&self, table: &TableDef) -> Result<Arc<SortedRows>> {
        let mut kept = self.0.sorted.lock();
        if let Some(sorted) = kept.as_ref()
            && sorted.schema().version == table.schema.version
        {
            return Ok(sorted.clone());
        }
        let batches: Vec<RecordBatch> = self.batches().cloned().collect();
        let dedup = !table.options.append_only && self.0.span.is_some_and(|s| s.late.is_some());
        let sorted = Arc::new(sort_rows(Arc::new(table.schema.clone()), batches, dedup)?);
        *kept = Some(sorted.clone());
        Ok(sorted)
    }
}

/// The rows of one table that are not in a segment yet, as its writer holds them.
#[derive(Debug, Default)]
pub struct MemTable {
    runs: Vec<Arc<Run>>,
    rows: usize,
    bytes: usize,
    span: Option<Span>,
}

impl MemTable {
    /// Adds rows. `late` is what [`crate::storage::late::LastTimes`] said of them.
    ///
    /// # Errors
    /// `internal` where the batch does not fit the schema.
    pub fn append(
        &mut self,
        schema: &TableSchema,
        position: Position,
        batch: RecordBatch,
        late: Option<TimeRange>,
    ) -> Result<()> {
        let Some(time) = time_range(times(schema, &batch)?) else { return Ok(()) };
        let span = Span { time, first: position, last: position, late };
        self.span = Some(self.span.map_or(span, |known| known.with(span)));
        self.rows += batch.num_rows();
        self.push(batch, time);
        self.join()
    }

    fn push(&mut self, batch: RecordBatch, time: TimeRange) {
        let bytes = batch_bytes(&batch);
        self.bytes += bytes;
        self.runs.push(Arc::new(Run { batch, bytes, time }));
    }

    /// Joins the newest runs for as long as [`FAN_IN`] of them are of one class or below.
    fn join(&mut self) -> Result<()> {
        while let Some(start) = self.joinable_tail() {
            let tail = self.runs.split_off(start);
            let time = tail.iter().skip(1).fold(tail[0].time, |time, run| time.union(&run.time));
            self.bytes -= tail.iter().map(|run| run.bytes).sum::<usize>();
            let batches: Vec<&RecordBatch> = tail.iter().map(|run| &run.batch).collect();
            self.push(concat_rows(&batches)?, time);
        }
        Ok(())
    }

    fn joinable_tail(&self) -> Option<usize> {
        let class = self.runs.last()?.class();
        let tail = self.runs.iter().rev().take_while(|run| run.joinable() && run.class() <= class);
        let count = tail.count();
        (count >= FAN_IN).then(|| self.runs.len() - count)
    }

    /// Puts all rows under another definition of their table.
    ///
    /// # Errors
    /// As [`Conform::batch`]; then nothing changes.
    pub fn conform(&mut self, definition: &Conform) -> Result<()> {
        self.runs = conformed(&self.runs, definition)?;
        self.bytes = self.runs.iter().map(|run| run.bytes).sum();
        Ok(())
    }

    /// The rows so far. Later appends do not show in it.
    #[must_use]
    pub fn view(&self) -> MemView {
        MemView(Arc::new(View {
            runs: self.runs.clone(),
            rows: self.rows,
            bytes: self.bytes,
            span: self.span,
            sorted: Mutex::new(None),
        }))
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The memory the rows take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Times and positions; `None` where there are no rows.
    #[must_use]
    pub fn span(&self) -> Option<Span> {
        self.span
    }
}

fn conformed(runs: &[Arc<Run>], definition: &Conform) -> Result<Vec<Arc<Run>>> {
    let run = |run: &Arc<Run>| {
        let batch = definition.batch(run.batch.clone())?;
        let bytes = batch_bytes(&batch);
        Ok(Arc::new(Run { batch, bytes, time: run.time }))
    };
    runs.iter().map(run).collect()
}

/// The memory that the values of a batch take. Slices count their own rows only, so that a
/// batch that was cut into parts is not counted once per part.
#[must_use]
pub fn batch_bytes(batch: &RecordBatch) -> usize {
    let column = |column: &ArrayRef| {
        let data = column.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    };
    batch.columns().iter().map(column).sum()
}

fn time_range(times: &[i64]) -> Option<TimeRange> {
    let first = *times.iter().min()?;
    let last = *times.iter().max()?;
    Some(TimeRange { first, last })
}

/// Joins batches in order. The result has every column that any of them has, NULL where a
/// batch lacks it, and one dictionary per tag.
///
/// # Errors
/// `internal` where a column has different types, `too_large` where a dictionary would
/// exceed 2 GiB.
pub fn concat_rows(batches: &[&RecordBatch]) -> Result<RecordBatch> {
    let (schema, places) = common_schema(batches);
    let lens: Vec<usize> = batches.iter().map(|batch| batch.num_rows()).collect();
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .enumerate()
        .map(|(column, field)| {
            let part = |(batch, places): (&&RecordBatch, &Vec<Option<usize>>)| {
                places[column].map(|place| batch.column(place).clone())
            };
            concat_column(field, batches.iter().zip(&places).map(part).collect(), &lens)
        })
        .collect::<Result<_>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(lens.iter().sum()));
    RecordBatch::try_new_with_options(schema, columns, &options)
        .map_err(|error| Error::internal(format!("join rows in memory: {error}")))
}

/// The columns that any batch has, in the order of appearance; and for each batch where it has
/// each of them.
fn common_schema(batches: &[&RecordBatch]) -> (SchemaRef, Vec<Vec<Option<usize>>>) {
    let Some(first) = batches.first().map(|batch| batch.schema_ref()) else {
        return (Arc::new(Schema::empty()), Vec::new());
    };
    let mut fields: Vec<FieldRef> = first.fields().iter().cloned().collect();
    let names = first.fields().iter().enumerate();
    let mut known: HashMap<&str, usize> =
        names.map(|(place, field)| (field.name().as_str(), place)).collect();
    let mut places = Vec::with_capacity(batches.len());
    for batch in batches {
        let mut own = vec![None; fields.len()];
        for (place, field) in batch.schema_ref().fields().iter().enumerate() {
            let column = *known.entry(field.name()).or_insert_with(|| {
                fields.push(field.clone());
                own.push(None);
                fields.len() - 1
            });
            own[column] = Some(place);
        }
        places.push(own);
    }
    places.iter_mut().for_each(|own| own.resize(fields.len(), None));
    if fields.len() == first.fields().len() {
        return (first.clone(), places);
    }
    (Arc::new(Schema::new(fields)), places)
}

/// Joins the parts of a column, one for each batch, NULL where a batch lacks it.
fn concat_column(
    field: &FieldRef,
    parts: Vec<Option<ArrayRef>>,
    lens: &[usize],
) -> Result<ArrayRef> {
    if ColumnKind::of(field) == ColumnKind::Tag {
        let tags = parts
            .iter()
            .map(|part| part.as_ref().map(|array| as_tag(array, field.name())).transpose())
            .collect::<Result<Vec<_>>>()?;
        return Ok(Arc::new(concat_tags(&tags, lens)?));
    }
    let filled: Vec<ArrayRef> = parts
        .into_iter()
        .zip(lens)
        .map(|(part, len)| part.unwrap_or_else(|| new_null_array(field.data_type(), *len)))
        .collect();
    let filled: Vec<&dyn Array> = filled.iter().map(AsRef::as_ref).collect();
    concat(&filled)
        .map_err(|error| Error::internal(format!("join column {:?}: {error}", field.name())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::model::{Row, Rows, expected, position, read, rows, table};

    fn append(memtable: &mut MemTable, seq: u64, rows: &Rows) {
        let schema = table(false).schema;
        memtable.append(&schema, position(seq), rows.batch(), None).unwrap();
    }

    fn one(time: i64, columns: u8) -> Rows {
        let row = Row {
            a: Some(format!("host{}", time % 10)),
            b: None,
            time,
            float: Some(1.5),
            int: Some(time),
            text: None,
        };
        Rows { rows: vec![row], columns }
    }

    #[test]
    fn many_small_writes_make_few_runs() {
        let mut memtable = MemTable::default();
        for time in 0..20_000 {
            // Every other write lacks a column; runs join all the same.
            append(&mut memtable, 1, &one(time, if time % 2 == 0 { 0xff } else { 0xf7 }));
            assert!(memtable.runs.len() < 64, "{} runs after {time}", memtable.runs.len());
        }
        let view = memtable.view();
        assert_eq!(view.rows(), 20_000);
        assert_eq!(view.bytes(), view.runs().iter().map(|run| run.bytes).sum::<usize>());
        let times =
            view.batches().flat_map(|batch| times(&table(false).schema, batch).unwrap().to_vec());
        assert!(times.eq(0..20_000), "runs keep the order of arrival");
    }

    #[test]
    fn a_slice_counts_its_own_rows() {
        let batch = Rows { rows: vec![one(1, 0xff).rows[0].clone(); 1000], columns: 0xff }.batch();
        assert!(batch_bytes(&batch.slice(0, 10)) * 20 < batch_bytes(&batch));
    }

    proptest! {
        #[test]
        fn views_never_change_and_joined_rows_stay(writes in proptest::collection::vec(rows(), 0..40)) {
            let mut memtable = MemTable::default();
            let mut views = vec![memtable.view()];
            for write in &writes {
                append(&mut memtable, 1, write);
                views.push(memtable.view());
            }
            for (count, view) in views.iter().enumerate() {
                let def = table(true);
                let sorted = view.sorted(&def).unwrap();
                let found: Vec<Row> =
                    sorted.all_columns(9).flat_map(|batch| read(&batch.unwrap())).collect();
                prop_assert_eq!(found, expected(&writes[..count], true));
            }
        }
    }

    #[test]
    fn a_span_covers_times_and_positions() {
        let mut memtable = MemTable::default();
        assert_eq!(memtable.span(), None);
        for (seq, time) in [(3, 50), (4, 10), (5, 70)] {
            append(&mut memtable, seq, &one(time, 0xff));
        }
        let span = memtable.span().unwrap();
        assert_eq!(span.time, TimeRange { first: 10, last: 70 });
        assert_eq!((span.first, span.last), (position(3), position(5)));
    }
}
