//! What a subscriber has of a result that changes, and what it has to be sent so that it has
//! the rows as they are now.
//!
//! A copy of the rows is kept window by window, as Arrow, within a budget: beyond it the
//! oldest windows are forgotten. When one of those changes its rows are sent anew as a whole.

use std::collections::BTreeMap;
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, TimestampNanosecondArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Schema, SchemaRef, TimestampNanosecondType};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::{WindowSpec, row_bytes};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};

/// Forgotten windows that are named one by one when they change; with more, everything is
/// sent anew.
const MOST_CLEARED: i64 = 1000;

/// What makes the rows that a subscriber has those that are there now, in this order.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Starts of windows of which all rows are void.
    pub(super) cleared: Vec<RecordBatch>,
    /// Rows that are gone.
    pub(super) deleted: Vec<RecordBatch>,
    /// Rows in the place of those with the same key.
    pub(super) updated: Vec<RecordBatch>,
    /// New rows.
    pub(super) inserted: Vec<RecordBatch>,
}

/// The rows that a subscriber has.
pub(super) struct Sent {
    schema: SchemaRef,
    window: Option<WindowSpec>,
    keys: Option<Vec<usize>>,
    rows: RowConverter,
    key: Option<RowConverter>,
    windows: BTreeMap<i64, RecordBatch>,
    bytes: usize,
    most: usize,
    /// Windows that start before are forgotten unless they are among `windows`.
    known_from: i64,
}

impl Sent {
    /// Nothing, of a result.
    ///
    /// # Errors
    /// `unsupported` for columns whose values cannot be compared.
    pub(super) fn new(
        schema: SchemaRef,
        window: Option<WindowSpec>,
        keys: Option<Vec<usize>>,
        most: usize,
    ) -> Result<Self> {
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        let rows = converter(&schema, &all)?;
        let key = keys.as_ref().map(|keys| converter(&schema, keys)).transpose()?;
        let (windows, known_from) = (BTreeMap::new(), i64::MIN);
        Ok(Sent { schema, window, keys, rows, key, windows, bytes: 0, most, known_from })
    }

    /// Forgets everything, for a subscriber that begins anew.
    pub(super) fn clear(&mut self) {
        self.windows.clear();
        self.count(0);
        self.known_from = i64::MIN;
    }

    /// The starts of the windows whose rows are kept.
    pub(super) fn extent(&self) -> Option<TimeRange> {
        let (first, _) = self.windows.first_key_value()?;
        let (last, _) = self.windows.last_key_value()?;
        Some(TimeRange { first: *first, last: *last })
    }

    /// Puts rows, all there are of some windows, in the place of those that were sent.
    ///
    /// `None` where too much of these windows was forgotten to say what changed.
    ///
    /// # Errors
    /// `internal` for rows of another shape.
    pub(super) fn replace(
        &mut self,
        starts: TimeRange,
        rows: &[RecordBatch],
    ) -> Result<Option<Changes>> {
        let mut changes = Changes::default();
        let Some(forgotten) = self.forgotten(starts) else { return Ok(None) };
        if !forgotten.is_empty() {
            changes.cleared.push(self.cleared(&forgotten)?);
        }
        let mut new = self.split(rows)?;
        let had: Vec<i64> =
            self.windows.range(starts.first..=starts.last).map(|(start, _)| *start).collect();
        for start in had {
            new.entry(start).or_insert_with(|| RecordBatch::new_empty(self.schema.clone()));
        }
        for (start, batch) in new {
            let old = self.windows.remove(&start);
            self.compare(old.as_ref(), &batch, &mut changes)?;
            let bytes = self.bytes + row_bytes(&batch);
            self.count(bytes.saturating_sub(old.map_or(0, |old| row_bytes(&old))));
            if batch.num_rows() > 0 {
                self.windows.insert(start, batch);
            }
        }
        self.evict();
        Ok(Some(changes))
    }

    /// The windows of a range whose rows are not known any more; `None` for too many.
    fn forgotten(&self, starts: TimeRange) -> Option<BTreeSet<i64>> {
        let Some(window) = self.window else { return Some(BTreeSet::new()) };
        let last = starts.last.min(self.known_from.saturating_sub(1));
        if self.known_from == i64::MIN || last < starts.first {
            return Some(BTreeSet::new());
        }
        if last.saturating_sub(starts.first) / window.hop > MOST_CLEARED {
            return None;
        }
        let all =
            std::iter::successors(Some(window.start(last)), |start| start.checked_sub(window.hop));
        let inside = all.take_while(|start| *start >= starts.first);
        Some(inside.filter(|start| !self.windows.contains_key(start)).collect())
    }

    fn cleared(&self, starts: &BTreeSet<i64>) -> Result<RecordBatch> {
        let place = self.window.map_or(0, |window| window.column);
        let field = self.schema.field(place).clone();
        let values = TimestampNanosecondArray::from_iter_values(starts.iter().copied());
        let values = values.with_data_type(field.data_type().clone());
        RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![Arc::new(values)])
            .map_err(defect)
    }

    /// Rows by the windows that they are in.
    fn split(&self, rows: &[RecordBatch]) -> Result<BTreeMap<i64, RecordBatch>> {
        let mut split = BTreeMap::new();
        let all = concat_batches(&self.schema, rows).map_err(defect)?;
        if all.num_rows() == 0 {
            return Ok(split);
        }
        let Some(window) = self.window else {
            split.insert(0, all);
            return Ok(split);
        };
        let column = all.column(window.column).as_primitive_opt::<TimestampNanosecondType>();
        let column = column.ok_or_else(|| Error::internal("a window without a timestamp"))?;
        let mut places: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (place, start) in (0_u32..).zip(column.values()) {
            places.entry(*start).or_default().push(place);
        }
        if places.len() == 1 {
            split.extend(places.into_keys().map(|start| (start, all.clone())));
            return Ok(split);
        }
        for (start, places) in places {
            let batch = take_record_batch(&all, &UInt32Array::from(places)).map_err(defect)?;
            split.insert(start, batch);
        }
        Ok(split)
    }

    /// Notes what changed between the rows of one window.
    fn compare(
        &self,
        old: Option<&RecordBatch>,
        new: &RecordBatch,
        changes: &mut Changes,
    ) -> Result<()> {
        let Some(old) = old else {
            changes.inserted.extend((new.num_rows() > 0).then(|| new.clone()));
            return Ok(());
        };
        let (old_rows, new_rows) = (whole(&self.rows, old)?, whole(&self.rows, new)?);
        let (old_keys, new_keys) = match (&self.keys, &self.key) {
            // Equal keys of an empty list: one row at most.
            (Some(keys), _) if keys.is_empty() => (None, None),
            (Some(keys), Some(key)) => (Some(keyed(key, old, keys)?), Some(keyed(key, new, keys)?)),
            _ => return multiset(old, new, &old_rows, &new_rows, changes),
        };
        let mut left: HashMap<&[u8], usize> =
            (0..old.num_rows()).map(|row| (name(old_keys.as_ref(), row), row)).collect();
        let (mut inserted, mut updated) = (Vec::new(), Vec::new());
        for (row, place) in (0..new.num_rows()).zip(0_u32..) {
            match left.remove(name(new_keys.as_ref(), row)) {
                None => inserted.push(place),
                Some(before) if old_rows.row(before) == new_rows.row(row) => {}
                Some(_) => updated.push(place),
            }
        }
        let mut gone: Vec<u32> = left.into_values().filter_map(|row| row.try_into().ok()).collect();
        gone.sort_unstable();
        picked(old, gone, &mut changes.deleted)?;
        picked(new, updated, &mut changes.updated)?;
        picked(new, inserted, &mut changes.inserted)
    }

    /// Forgets the oldest windows, but never the newest.
    fn evict(&mut self) {
        let Some(window) = self.window else { return };
        while self.bytes > self.most && self.windows.len() > 1 {
            let Some((start, rows)) = self.windows.pop_first() else { return };
            self.count(self.bytes.saturating_sub(row_bytes(&rows)));
            self.known_from = self.known_from.max(window.next(start));
            metrics().live.evicted_windows.inc();
        }
    }

    fn count(&mut self, bytes: usize) {
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        metrics().live.state_bytes.add(signed(bytes) - signed(self.bytes));
        self.bytes = bytes;
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.count(0);
    }
}

/// What a row is called among those with the same keys.
fn name(keys: Option<&Rows>, row: usize) -> &[u8] {
    keys.map_or(&[], |keys| keys.row(row).data())
}

/// What changed between rows without a key: equal ones are told apart by their number only.
fn multiset(
    old: &RecordBatch,
    new: &RecordBatch,
    old_rows: &Rows,
    new_rows: &Rows,
    changes: &mut Changes,
) -> Result<()> {
    let mut left: HashMap<&[u8], Vec<u32>> = HashMap::new();
    for (row, place) in (0..old.num_rows()).zip(0_u32..) {
        left.entry(old_rows.row(row).data()).or_default().push(place);
    }
    let mut inserted = Vec::new();
    for (row, place) in (0..new.num_rows()).zip(0_u32..) {
        match left.entry(new_rows.row(row).data()) {
            Entry::Occupied(mut same) => {
                same.get_mut().pop();
                if same.get().is_empty() {
                    same.remove();
                }
            }
            Entry::Vacant(_) => inserted.push(place),
        }
    }
    let mut gone: Vec<u32> = left.into_values().flatten().collect();
    gone.sort_unstable();
    picked(old, gone, &mut changes.deleted)?;
    picked(new, inserted, &mut changes.inserted)
}

fn picked(batch: &RecordBatch, rows: Vec<u32>, into: &mut Vec<RecordBatch>) -> Result<()> {
    if !rows.is_empty() {
        into.push(take_record_batch(batch, &UInt32Array::from(rows)).map_err(defect)?);
    }
    Ok(())
}

fn converter(schema: &SchemaRef, columns: &[usize]) -> Result<RowConverter> {
    let field = |at: &usize| SortField::new(schema.field(*at).data_type().clone());
    RowConverter::new(columns.iter().map(field).collect()).map_err(|error| {
        Error::new(Code::Unsupported, format!("rows of the query cannot be compared: {error}"))
            .with_hint("leave out columns of nested types")
    })
}

fn whole(converter: &RowConverter, batch: &RecordBatch) -> Result<Rows> {
    converter.convert_columns(batch.columns()).map_err(defect)
}

fn keyed(converter: &RowConverter, batch: &RecordBatch, keys: &[usize]) -> Result<Rows> {
    let columns: Vec<ArrayRef> = keys.iter().map(|at| batch.column(*at).clone()).collect();
    converter.convert_columns(&columns).map_err(defect)
}

fn defect(error: ArrowError) -> Error {
    Error::internal(format!("rows of a subscription: {error}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};
    use arrow::util::pretty::pretty_format_batches;
    use kymo_kernel::schema::time_type;

    use super::*;

    fn schema() -> SchemaRef {
        let number = |name| Field::new(name, DataType::Int64, true);
        Arc::new(Schema::new(vec![Field::new("w", time_type(), false), number("k"), number("v")]))
    }

    /// Rows of window, key and value.
    fn rows(rows: &[(i64, i64, i64)]) -> Vec<RecordBatch> {
        let times = TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.0));
        let column = |pick: fn(&(i64, i64, i64)) -> i64| -> ArrayRef {
            Arc::new(rows.iter().map(|row| Some(pick(row))).collect::<Int64Array>())
        };
        let times: ArrayRef = Arc::new(times.with_data_type(time_type()));
        let columns = vec![times, column(|row| row.1), column(|row| row.2)];
        vec![RecordBatch::try_new(schema(), columns).unwrap()]
    }

    fn sent(keys: Option<Vec<usize>>, most: usize) -> Sent {
        let window = WindowSpec { column: 0, width: 10, hop: 10, origin: 0 };
        Sent::new(schema(), Some(window), keys, most).unwrap()
    }

    fn values(batches: &[RecordBatch]) -> Vec<(i64, i64, i64)> {
        let number = |batch: &RecordBatch, column: usize, row: usize| {
            batch.column(column).as_primitive::<arrow::datatypes::Int64Type>().value(row)
        };
        let of = |batch: &RecordBatch| {
            let times = batch.column(0).as_primitive::<TimestampNanosecondType>().clone();
            (0..batch.num_rows())
                .map(|row| (times.value(row), number(batch, 1, row), number(batch, 2, row)))
                .collect::<Vec<_>>()
        };
        batches.iter().flat_map(of).collect()
    }

    fn range(first: i64, last: i64) -> TimeRange {
        TimeRange { first, last }
    }

    #[test]
    fn rows_with_keys_are_inserted_updated_and_deleted() {
        let mut sent = sent(Some(vec![0, 1]), 1 << 20);
        let first = sent.replace(TimeRange::ALL, &rows(&[(0, 1, 1), (0, 2, 1), (10, 1, 1)]));
        assert_eq!(values(&first.unwrap().unwrap().inserted).len(), 3);
        let then = sent.replace(range(0, 0), &rows(&[(0, 1, 1), (0, 2, 5), (0, 3, 1)]));
        let then = then.unwrap().unwrap();
        assert_eq!(values(&then.updated), [(0, 2, 5)]);
        assert_eq!(values(&then.inserted), [(0, 3, 1)]);
        assert!(then.deleted.is_empty() && then.cleared.is_empty());
        let gone = sent.replace(range(0, 10), &rows(&[(0, 1, 1)])).unwrap().unwrap();
        assert_eq!(values(&gone.deleted), [(0, 2, 5), (0, 3, 1), (10, 1, 1)]);
        assert!(gone.inserted.is_empty() && gone.updated.is_empty());
    }

    #[test]
    fn rows_without_keys_are_counted() {
        let mut sent = sent(None, 1 << 20);
        sent.replace(TimeRange::ALL, &rows(&[(0, 1, 1), (0, 1, 1), (0, 2, 2)])).unwrap();
        let then = sent.replace(range(0, 0), &rows(&[(0, 1, 1), (0, 3, 3)])).unwrap().unwrap();
        let mut gone = values(&then.deleted);
        gone.sort_unstable();
        assert_eq!(gone, [(0, 1, 1), (0, 2, 2)]);
        assert_eq!(values(&then.inserted), [(0, 3, 3)]);
    }

    #[test]
    fn a_result_of_one_row_changes_in_its_place() {
        let mut sent = Sent::new(schema(), None, Some(Vec::new()), 1 << 20).unwrap();
        sent.replace(TimeRange::ALL, &rows(&[(0, 1, 1)])).unwrap();
        let then = sent.replace(TimeRange::ALL, &rows(&[(0, 9, 9)])).unwrap().unwrap();
        assert_eq!(values(&then.updated), [(0, 9, 9)]);
        assert!(then.inserted.is_empty() && then.deleted.is_empty());
    }

    #[test]
    fn forgotten_windows_are_sent_anew() {
        let mut sent = sent(Some(vec![0, 1]), 1);
        sent.replace(TimeRange::ALL, &rows(&[(0, 1, 1), (10, 1, 1), (20, 1, 1)])).unwrap();
        assert_eq!(sent.extent(), Some(range(20, 20)));
        let then = sent.replace(range(0, 10), &rows(&[(10, 1, 2)])).unwrap().unwrap();
        let cleared = pretty_format_batches(&then.cleared).unwrap().to_string();
        assert!(cleared.contains("000000000Z") || cleared.contains("00:00"), "{cleared}");
        assert_eq!(then.cleared[0].num_rows(), 2);
        assert_eq!(values(&then.inserted), [(10, 1, 2)]);
        assert!(sent.replace(TimeRange::ALL, &rows(&[(20, 1, 1)])).unwrap().is_none());
        sent.clear();
        let anew = sent.replace(TimeRange::ALL, &rows(&[(20, 1, 1)])).unwrap().unwrap();
        assert_eq!(values(&anew.inserted), [(20, 1, 1)]);
    }
}
