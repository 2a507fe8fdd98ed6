//! What of a result has to change in its target: rows that are new or different are written,
//! rows that the result does not have any more are removed, everything else is left alone.
//!
//! What the target holds of a window is remembered from the last time that it was written, and
//! read from the target where it is not remembered. So the windows of this minute cost no
//! reading, and a window of last week is still compared with what is really there.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef, TimestampNanosecondType};
use arrow::row::{RowConverter, SortField};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::WindowSpec;
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::overlap;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result, check};

use super::target::Target;

/// Bytes that a remembered row costs beside its own.
const ROW_OVERHEAD: usize = 64;

/// The rows of a target in one window: tags → all values, both as comparable bytes.
type Rows = HashMap<Box<[u8]>, Box<[u8]>>;

struct Window {
    rows: Rows,
    bytes: usize,
}

/// What is to be done to a target.
#[derive(Debug)]
pub(super) struct Change {
    /// Rows to be removed first: their tags and time.
    pub(super) gone: Option<RecordBatch>,
    /// Rows to be written.
    pub(super) rows: Option<RecordBatch>,
    /// How many windows these lie in.
    pub(super) windows: u64,
}

/// What a target holds, as far as that is remembered.
pub(super) struct Written {
    target: Arc<Target>,
    spec: WindowSpec,
    keys: RowConverter,
    values: RowConverter,
    windows: BTreeMap<i64, Window>,
    bytes: usize,
    /// Above this, the oldest windows are forgotten.
    most: usize,
}

impl Written {
    /// Nothing remembered of a target.
    ///
    /// # Errors
    /// `internal`.
    pub(super) fn new(target: Arc<Target>, spec: WindowSpec, most: usize) -> Result<Written> {
        let fields = |places: &[usize]| {
            let field = |at: &usize| SortField::new(target.schema.field(*at).data_type().clone());
            RowConverter::new(places.iter().map(field).collect()).map_err(defect)
        };
        let all: Vec<usize> = (0..target.schema.fields().len()).collect();
        let (keys, values) = (fields(&target.tags)?, fields(&all)?);
        let windows = BTreeMap::new();
        Ok(Written { target, spec, keys, values, windows, bytes: 0, most })
    }

    /// Forgets the windows that start within a range: somebody else has changed the target.
    pub(super) fn forget(&mut self, times: TimeRange) {
        let gone: Vec<i64> =
            self.windows.range(times.first..=times.last).map(|(start, _)| *start).collect();
        for start in gone {
            self.take(start);
        }
    }

    fn take(&mut self, start: i64) -> Option<Rows> {
        let window = self.windows.remove(&start)?;
        self.bytes -= window.bytes;
        Some(window.rows)
    }

    /// Whether the target has to be read before a change to these windows can be told: rows
    /// that are not remembered may lie there.
    pub(super) fn must_read(&self, starts: TimeRange, version: &Version) -> bool {
        let known = self.windows.range(starts.first..=starts.last).count();
        let wanted = self.spec.count(starts);
        i128::try_from(known).is_ok_and(|known| known < wanted) && holds(version, starts)
    }

    /// What the target, of which `present` are the rows in these windows where they had to be
    /// read, needs to equal `rows`, the result in these windows.
    ///
    /// # Errors
    /// `invalid_input` where the result has two rows with the same tags and time.
    pub(super) fn change(
        &mut self,
        starts: TimeRange,
        present: &[RecordBatch],
        rows: &[RecordBatch],
    ) -> Result<Change> {
        let before = self.before(starts, present)?;
        let schema = &self.target.schema;
        let rows = concat_batches(schema, rows).map_err(defect)?;
        let (keys, values) = self.encode(&rows)?;
        let times = times(&rows, self.target.time);
        let mut after: BTreeMap<i64, Rows> = BTreeMap::new();
        let (mut changed, mut cleared, mut touched) = (Vec::new(), Vec::new(), Vec::new());
        for (row, start) in times.iter().copied().enumerate() {
            let (key, value) = (keys.row(row), values.row(row));
            let old = before.get(&start).and_then(|window| window.get(key.as_ref()));
            if old.is_none_or(|old| old.as_ref() != value.as_ref()) {
                changed.push(u32::try_from(row).map_err(|_| too_many())?);
                touched.push(start);
                if let Some(old) = old {
                    cleared.push((old.clone(), row));
                }
            }
            let window = after.entry(start).or_default();
            if window.insert(key.as_ref().into(), value.as_ref().into()).is_some() {
                return Err(self.twice(&rows, row));
            }
        }
        let mut gone = self.lost_values(&rows, &cleared)?;
        for (start, window) in &before {
            let now = after.get(start);
            let lost =
                window.iter().filter(|(key, _)| now.is_none_or(|now| !now.contains_key(*key)));
            for (_, value) in lost {
                gone.push(value.clone());
                touched.push(*start);
            }
        }
        touched.sort_unstable();
        touched.dedup();
        // Windows without rows are remembered, too, where there were some.
        for start in before.keys() {
            after.entry(*start).or_default();
        }
        self.remember(after);
        let rows = (!changed.is_empty())
            .then(|| take_record_batch(&rows, &UInt32Array::from(changed)).map_err(defect));
        let gone = (!gone.is_empty()).then(|| self.decode_keys(&gone));
        Ok(Change {
            gone: gone.transpose()?,
            rows: rows.transpose()?,
            windows: touched.len() as u64,
        })
    }

    /// The rows that are there, from memory, which they leave, or as they were read.
    fn before(
        &mut self,
        starts: TimeRange,
        present: &[RecordBatch],
    ) -> Result<BTreeMap<i64, Rows>> {
        let mut before: BTreeMap<i64, Rows> = BTreeMap::new();
        for batch in present {
            let (keys, values) = self.encode(batch)?;
            for (row, start) in times(batch, self.target.time).iter().enumerate() {
                let foreign = self.spec.start(*start) != *start;
                if foreign || *start < starts.first || *start > starts.last {
                    continue;
                }
                let (key, value) = (keys.row(row).as_ref().into(), values.row(row).as_ref().into());
                let other: Option<Box<[u8]>> = before.entry(*start).or_default().insert(key, value);
                check!(
                    C1,
                    other.is_none(),
                    "target {} has a row of window {start} twice",
                    self.target.def.name
                );
            }
        }
        let known: Vec<i64> =
            self.windows.range(starts.first..=starts.last).map(|(start, _)| *start).collect();
        for start in known {
            before.extend(self.take(start).map(|rows| (start, rows)));
        }
        Ok(before)
    }

    fn encode(&self, batch: &RecordBatch) -> Result<(arrow::row::Rows, arrow::row::Rows)> {
        let tags: Vec<ArrayRef> =
            self.target.tags.iter().map(|at| batch.column(*at).clone()).collect();
        let keys = match tags.is_empty() {
            // A converter without columns does not know how many rows there are.
            true => self.keys_of_none(batch.num_rows())?,
            false => self.keys.convert_columns(&tags).map_err(defect)?,
        };
        Ok((keys, self.values.convert_columns(batch.columns()).map_err(defect)?))
    }

    fn keys_of_none(&self, rows: usize) -> Result<arrow::row::Rows> {
        let nothing = RowConverter::new(vec![SortField::new(arrow::datatypes::DataType::Null)]);
        let nulls: ArrayRef = Arc::new(arrow::array::NullArray::new(rows));
        nothing.and_then(|nothing| nothing.convert_columns(&[nulls])).map_err(defect)
    }

    /// Of rows that are written again, those where a value has become NULL: writing would leave
    /// the value in its place, because an absent value changes nothing.
    fn lost_values(
        &self,
        rows: &RecordBatch,
        cleared: &[(Box<[u8]>, usize)],
    ) -> Result<Vec<Box<[u8]>>> {
        if cleared.is_empty() {
            return Ok(Vec::new());
        }
        let old = self.decode(cleared.iter().map(|(old, _)| old))?;
        let lost = |at: usize, row: usize| {
            let mut columns = old.iter().zip(rows.columns());
            columns.any(|(old, new)| old.is_valid(at) && new.is_null(row))
        };
        let lost = cleared.iter().enumerate().filter(|(at, (_, row))| lost(*at, *row));
        Ok(lost.map(|(_, (old, _))| old.clone()).collect())
    }

    fn decode<'a>(&self, values: impl Iterator<Item = &'a Box<[u8]>>) -> Result<Vec<ArrayRef>> {
        let parser = self.values.parser();
        let rows = values.map(|value| parser.parse(value));
        self.values.convert_rows(rows).map_err(defect)
    }

    /// The tags and the time of rows.
    fn decode_keys(&self, values: &[Box<[u8]>]) -> Result<RecordBatch> {
        let columns = self.decode(values.iter())?;
        let schema = &self.target.schema;
        let places: Vec<usize> =
            self.target.tags.iter().copied().chain([self.target.time]).collect();
        let fields: Vec<Field> = places.iter().map(|at| schema.field(*at).clone()).collect();
        let columns = places.iter().map(|at| columns[*at].clone()).zip(&fields);
        // What the converter gives back is not dictionary-encoded.
        let columns = columns
            .map(|(column, field)| arrow::compute::cast(&column, field.data_type()).map_err(defect))
            .collect::<Result<Vec<_>>>()?;
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(defect)
    }

    fn remember(&mut self, after: BTreeMap<i64, Rows>) {
        for (start, rows) in after {
            let sizes = rows.iter().map(|(key, value)| key.len() + value.len() + ROW_OVERHEAD);
            let bytes = ROW_OVERHEAD + sizes.sum::<usize>();
            self.bytes += bytes;
            self.windows.insert(start, Window { rows, bytes });
        }
        while self.bytes > self.most {
            let Some(oldest) = self.windows.first_key_value().map(|(start, _)| *start) else {
                return;
            };
            self.take(oldest);
        }
    }

    fn twice(&self, rows: &RecordBatch, row: usize) -> Error {
        let name = |at: &usize| self.target.schema.field(*at).name().clone();
        let tags: Vec<String> = self.target.tags.iter().map(name).collect();
        let shown = arrow::util::display::array_value_to_string(rows.column(self.target.time), row);
        Error::new(
            Code::InvalidInput,
            format!(
                "the result has more than one row of the window {} with the same tags ({})",
                shown.unwrap_or_default(),
                tags.join(", ")
            ),
        )
        .with_hint("group by the window and by what tells the rows apart")
    }
}

/// Whether any part of a version may hold rows of these times.
fn holds(version: &Version, times: TimeRange) -> bool {
    !overlap::groups(version, &times, &TagFilter::all()).is_empty()
}

/// The rows of a target within some times, in the shape of a result, possibly with others.
/// Blocks on files.
///
/// # Errors
/// Those of reading.
pub(super) fn read(
    version: &Version,
    output: &SchemaRef,
    time: TimeRange,
) -> Result<Vec<RecordBatch>> {
    const BATCH_ROWS: usize = 8192;
    let tags = TagFilter::all();
    let mut found = Vec::new();
    for group in overlap::groups(version, &time, &tags) {
        let tags = tags.clone();
        let scan = GroupScan { output: output.clone(), tags, time, batch_rows: BATCH_ROWS };
        for batch in merge::open(&group, &version.table, &scan)? {
            found.push(batch?);
        }
    }
    Ok(found)
}

fn times(batch: &RecordBatch, at: usize) -> &[i64] {
    batch.column(at).as_primitive::<TimestampNanosecondType>().values()
}

fn defect(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("compare rows: {error}"))
}

fn too_many() -> Error {
    Error::new(Code::LimitReached, "more rows in a few windows than can be written at once")
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Float64Array, TimestampNanosecondArray};
    use arrow::datatypes::Int32Type;
    use kymo_kernel::ids::TableId;
    use kymo_kernel::schema::{
        ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema, marked_field,
    };

    use super::*;

    const MINUTE: i64 = 60;

    fn target() -> Arc<Target> {
        let def = TableDef {
            id: TableId(1),
            name: TableName::new("kymo", "out"),
            schema: TableSchema { version: 1, columns: Vec::new() },
            options: TableOptions::default(),
        };
        let fields = vec![
            marked_field("host", ColumnKind::Tag, FieldType::Text),
            marked_field("time", ColumnKind::Time, FieldType::Timestamp),
            marked_field("value", ColumnKind::Field, FieldType::Float64),
        ];
        let schema = Arc::new(Schema::new(fields));
        Arc::new(Target { def: Arc::new(def), schema, time: 1, tags: vec![0] })
    }

    fn written(most: usize) -> Written {
        let spec = WindowSpec { column: 1, width: MINUTE, hop: MINUTE, origin: 0 };
        Written::new(target(), spec, most).unwrap()
    }

    type Row = (Option<&'static str>, i64, Option<f64>);

    fn rows(rows: &[Row]) -> RecordBatch {
        let hosts: DictionaryArray<Int32Type> = rows.iter().map(|row| row.0).collect();
        let times = TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.1));
        let values: Float64Array = rows.iter().map(|row| row.2).collect();
        let columns: Vec<ArrayRef> =
            vec![Arc::new(hosts), Arc::new(times.with_timezone("+00:00")), Arc::new(values)];
        RecordBatch::try_new(target().schema.clone(), columns).unwrap()
    }

    fn texts(batch: &RecordBatch) -> Vec<String> {
        let hosts =
            arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8).unwrap();
        let hosts = hosts.as_string::<i32>();
        let host = |row| if hosts.is_null(row) { "-" } else { hosts.value(row) };
        let mut found: Vec<String> = times(batch, 1)
            .iter()
            .enumerate()
            .map(|(row, time)| format!("{}@{time}", host(row)))
            .collect();
        found.sort();
        found
    }

    fn change(
        written: &mut Written,
        (first, last): (i64, i64),
        present: &[Row],
        now: &[Row],
    ) -> (Vec<String>, Vec<String>, u64) {
        let starts = TimeRange { first, last };
        let change = written.change(starts, &[rows(present)], &[rows(now)]).unwrap();
        let texts = |batch: Option<RecordBatch>| batch.as_ref().map(texts).unwrap_or_default();
        (texts(change.gone), texts(change.rows), change.windows)
    }

    fn empty() -> (Vec<String>, Vec<String>, u64) {
        (vec![], vec![], 0)
    }

    fn list(all: &[&str]) -> Vec<String> {
        all.iter().map(|&each| each.to_owned()).collect()
    }

    #[test]
    fn only_what_differs_is_written_and_what_vanished_goes() {
        let mut written = written(1 << 20);
        let (a, b) = ((Some("a"), 0, Some(1.0)), (Some("b"), 0, Some(2.0)));
        let both = change(&mut written, (0, 0), &[], &[a, b]);
        assert_eq!(both, (vec![], list(&["a@0", "b@0"]), 1));
        assert_eq!(change(&mut written, (0, 0), &[], &[b, a]), empty());
        let more = (Some("b"), 0, Some(3.0));
        assert_eq!(change(&mut written, (0, 0), &[], &[a, more]), (vec![], list(&["b@0"]), 1));
        assert_eq!(change(&mut written, (0, 0), &[], &[more]), (list(&["a@0"]), vec![], 1));
        assert_eq!(change(&mut written, (0, 0), &[], &[]), (list(&["b@0"]), vec![], 1));
        assert_eq!(change(&mut written, (0, 0), &[], &[]), empty());
    }

    #[test]
    fn a_value_that_becomes_null_takes_its_row_out_first() {
        let mut written = written(1 << 20);
        change(&mut written, (0, 0), &[], &[(Some("a"), 0, Some(1.0))]);
        let cleared = change(&mut written, (0, 0), &[], &[(Some("a"), 0, None)]);
        assert_eq!(cleared, (list(&["a@0"]), list(&["a@0"]), 1));
        let back = change(&mut written, (0, 0), &[], &[(Some("a"), 0, Some(1.0))]);
        assert_eq!(back, (vec![], list(&["a@0"]), 1));
    }

    #[test]
    fn what_is_not_remembered_is_compared_with_what_was_read() {
        let mut written = written(1 << 20);
        // A row between windows and one of another window are not the query's business.
        let present = [
            (Some("a"), 60, Some(1.0)),
            (Some("old"), 60, Some(1.0)),
            (Some("other"), 61, Some(1.0)),
            (Some("far"), 240, Some(1.0)),
            (None, 120, Some(5.0)),
        ];
        let now = [(Some("a"), 60, Some(1.0)), (None, 120, Some(6.0)), (Some("a"), 180, Some(7.0))];
        let found = change(&mut written, (60, 180), &present, &now);
        assert_eq!(found, (list(&["old@60"]), list(&["-@120", "a@180"]), 3));
        // Memory knows better than what was read before it was written.
        assert_eq!(change(&mut written, (60, 180), &present, &now).1, Vec::<String>::new());
        written.forget(TimeRange { first: 60, last: 60 });
        let again = change(&mut written, (60, 60), &present, &now[..1]);
        assert_eq!(again, (list(&["old@60"]), vec![], 1));
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest_windows() {
        let mut written = written(500);
        for window in 0..100 {
            let time = window * MINUTE;
            change(&mut written, (time, time), &[], &[(Some("a"), time, Some(1.0))]);
            assert!(written.bytes <= 500);
        }
        let starts: Vec<i64> = written.windows.keys().copied().collect();
        assert!(!starts.is_empty() && starts.len() < 10 && starts.contains(&(99 * MINUTE)));
    }

    #[test]
    fn two_rows_of_one_key_are_refused() {
        let mut written = written(500);
        let twice = rows(&[(Some("a"), 0, Some(1.0)), (Some("a"), 0, Some(2.0))]);
        let starts = TimeRange { first: 0, last: 0 };
        let error = written.change(starts, &[], &[twice]).unwrap_err();
        assert_eq!(error.code(), Code::InvalidInput);
        assert!(error.message().contains("host") && error.message().contains("1970"), "{error}");
    }
}
