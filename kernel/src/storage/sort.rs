//! Sorts rows by tags and time without touching a text per row.
//!
//! Rows are first given the number of their series: tag texts become numbers once per
//! distinct dictionary value, a row's numbers are hashed column by column, and one look-up
//! finds its series. Only the series are then compared, by the ranks of their texts; rows
//! are dealt out to their series, and within a series they mostly are in order of time
//! already. What results is an order, not a copy: [`SortedRows`] gathers the values of a
//! bounded number of rows at a time.
//!
//! Where rows of the same tags and time are merged, each column takes its last value that is
//! not NULL, in the order of arrival.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Schema, SchemaRef};
use hashbrown::HashMap;

use crate::error::{Code, Error, Result};
use crate::ids::TimeRange;
use crate::schema::TableSchema;
use crate::storage::late::times;
use crate::storage::width::{fitting, row_bytes};

mod gather;
mod series;

pub use gather::SortedBatches;

use series::SeriesTable;

/// Rows of a gathered batch unless asked otherwise.
pub const BATCH_ROWS: usize = 8192;

/// What all windows of one sort share.
#[derive(Debug)]
struct Shared {
    schema: Arc<TableSchema>,
    batches: Vec<RecordBatch>,
    /// The number of the first row of each batch, and the number of rows.
    starts: Vec<u32>,
    /// For each column that any batch has, by name, which batches have it and where.
    columns: HashMap<String, Vec<(usize, usize)>>,
    /// The mean size of a row.
    row_bytes: usize,
    /// For each tag its distinct texts, ascending.
    tag_values: Vec<ArrayRef>,
    /// For each series, in order, the rank of each tag: 0 for NULL, else the place in
    /// `tag_values` plus one.
    ranks: Vec<u32>,
}

/// Consecutive output rows of one series.
#[derive(Debug, Clone, Copy)]
struct SeriesRows {
    /// The place of the series among all, in order.
    series: u32,
    /// The output row after its last.
    end: u32,
}

/// Rows in the order of tags and time, merged where asked.
#[derive(Debug)]
pub struct SortedRows {
    shared: Arc<Shared>,
    /// Row numbers in order.
    order: Vec<u32>,
    /// Where the rows that merge into output row `i` begin in `order`; `None` where each row
    /// stays.
    groups: Option<Vec<u32>>,
    series: Vec<SeriesRows>,
    time: TimeRange,
}

/// Sorts batches given in the order of arrival. They may hold any subset of the columns.
/// With `dedup`, rows of the same tags and time become one.
///
/// # Errors
/// `internal` where a batch does not fit the schema, `too_large` beyond 2³² rows or 2 GiB of
/// distinct texts in one tag.
pub fn sort_rows(
    schema: Arc<TableSchema>,
    batches: Vec<RecordBatch>,
    dedup: bool,
) -> Result<SortedRows> {
    let sorter = Sorter::new(schema, batches)?;
    let all = (0..sorter.rows()).collect();
    Ok(sorter.sort(all, dedup))
}

/// Sorts batches into one result per time window of `window_ns`, in order of time. Each
/// comes with the start of its window.
///
/// # Errors
/// As [`sort_rows`].
pub fn sort_windows(
    schema: Arc<TableSchema>,
    batches: Vec<RecordBatch>,
    dedup: bool,
    window_ns: i64,
) -> Result<Vec<(i64, SortedRows)>> {
    let sorter = Sorter::new(schema, batches)?;
    let windows = sorter.windows(window_ns);
    Ok(windows.into_iter().map(|(start, rows)| (start, sorter.sort(rows, dedup))).collect())
}

/// The start of the window that holds `time`.
#[must_use]
pub fn window_start(time: i64, window_ns: i64) -> i64 {
    let window = window_ns.max(1);
    // Only within one window of the smallest timestamp does the start not fit.
    time.checked_sub(time.rem_euclid(window)).unwrap_or(i64::MIN)
}

struct Sorter {
    shared: Arc<Shared>,
    /// For each row the place of its series among all, in order.
    series: Vec<u32>,
    count: usize,
    times: Vec<i64>,
}

impl Sorter {
    fn new(schema: Arc<TableSchema>, batches: Vec<RecordBatch>) -> Result<Self> {
        let mut starts = vec![0];
        let mut all_times = Vec::new();
        let mut table = SeriesTable::new(&schema);
        for batch in batches.iter().filter(|batch| batch.num_rows() > 0) {
            all_times.extend_from_slice(times(&schema, batch)?);
            starts.push(u32::try_from(all_times.len()).map_err(|_| too_many())?);
            table.add(&schema, batch)?;
        }
        let batches: Vec<RecordBatch> =
            batches.into_iter().filter(|batch| batch.num_rows() > 0).collect();
        let ranked = table.rank()?;
        let shared = Shared {
            row_bytes: row_bytes(&batches),
            columns: columns(&batches),
            schema,
            batches,
            starts,
            tag_values: ranked.tag_values,
            ranks: ranked.ranks,
        };
        Ok(Sorter {
            shared: Arc::new(shared),
            series: ranked.rows,
            count: ranked.count,
            times: all_times,
        })
    }

    fn rows(&self) -> u32 {
        self.times.len() as u32
    }

    fn windows(&self, window_ns: i64) -> Vec<(i64, Vec<u32>)> {
        let mut places: HashMap<i64, usize> = HashMap::new();
        let mut windows: Vec<(i64, Vec<u32>)> = Vec::new();
        let mut last = (None, 0);
        for (row, time) in (0..).zip(&self.times) {
            let start = window_start(*time, window_ns);
            if last.0 != Some(start) {
                let place = *places.entry(start).or_insert_with(|| {
                    windows.push((start, Vec::new()));
                    windows.len() - 1
                });
                last = (Some(start), place);
            }
            windows[last.1].1.push(row);
        }
        windows.sort_unstable_by_key(|(start, _)| *start);
        windows
    }

    /// `rows` are in the order of arrival.
    fn sort(&self, rows: Vec<u32>, dedup: bool) -> SortedRows {
        let mut order = self.by_series(rows);
        let mut series = self.series_runs(&order);
        let mut repeats = false;
        let mut start = 0;
        for run in &series {
            repeats |= self.by_time(&mut order[start..run.end as usize]);
            start = run.end as usize;
        }
        let groups = (dedup && repeats).then(|| self.group(&order, &mut series));
        let time = order.iter().map(|row| self.times[*row as usize]);
        let time = time.fold(None::<TimeRange>, |range, at| {
            let here = TimeRange { first: at, last: at };
            Some(range.map_or(here, |range| range.union(&here)))
        });
        SortedRows {
            shared: self.shared.clone(),
            order,
            groups,
            series,
            time: time.unwrap_or(TimeRange { first: 0, last: 0 }),
        }
    }

    /// Deals rows out to their series, keeping the order of arrival within each.
    fn by_series(&self, mut rows: Vec<u32>) -> Vec<u32> {
        let series = |row: &u32| self.series[*row as usize];
        if rows.is_sorted_by_key(series) {
            return rows;
        }
        if rows.len() < self.count / 4 {
            rows.sort_by_key(series);
            return rows;
        }
        let mut next = vec![0u32; self.count + 1];
        for row in &rows {
            next[series(row) as usize + 1] += 1;
        }
        for at in 1..next.len() {
            next[at] += next[at - 1];
        }
        let mut order = vec![0; rows.len()];
        for row in rows {
            let place = &mut next[self.series[row as usize] as usize];
            order[*place as usize] = row;
            *place += 1;
        }
        order
    }

    fn series_runs(&self, order: &[u32]) -> Vec<SeriesRows> {
        let runs = order.chunk_by(|a, b| self.series[*a as usize] == self.series[*b as usize]);
        let mut end = 0;
        runs.map(|run| {
            end += run.len() as u32;
            SeriesRows { series: self.series[run[0] as usize], end }
        })
        .collect()
    }

    /// Sorts the rows of one series; tells whether a time occurs twice.
    fn by_time(&self, rows: &mut [u32]) -> bool {
        let time = |row: &u32| self.times[*row as usize];
        if !rows.is_sorted_by_key(time) {
            rows.sort_by_key(time);
        }
        rows.windows(2).any(|pair| time(&pair[0]) == time(&pair[1]))
    }

    /// Where each group of rows of the same series and time begins, and at last the end.
    /// `series` changes from counting rows to counting groups.
    fn group(&self, order: &[u32], series: &mut [SeriesRows]) -> Vec<u32> {
        let mut groups = Vec::with_capacity(order.len() + 1);
        let mut start = 0;
        for run in series {
            let end = run.end as usize;
            let mut last = None;
            for (at, row) in order.iter().enumerate().take(end).skip(start) {
                let time = self.times[*row as usize];
                if last != Some(time) {
                    groups.push(at as u32);
                    last = Some(time);
                }
            }
            run.end = groups.len() as u32;
            start = end;
        }
        groups.push(order.len() as u32);
        groups
    }
}

impl SortedRows {
    /// The schema of the table at the time of sorting.
    #[must_use]
    pub fn schema(&self) -> &Arc<TableSchema> {
        &self.shared.schema
    }

    /// How many rows come out.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.groups.as_ref().map_or(self.order.len(), |groups| groups.len() - 1)
    }

    /// The earliest and the latest time; meaningless where there are no rows.
    #[must_use]
    pub fn time(&self) -> TimeRange {
        self.time
    }

    /// The memory that the order itself takes; the rows are shared with their memtable.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let numbers = self.order.len() + self.groups.as_ref().map_or(0, Vec::len);
        numbers * size_of::<u32>() + self.series.len() * size_of::<SeriesRows>()
    }

    /// Whether any batch has a column.
    #[must_use]
    pub fn has_column(&self, name: &str) -> bool {
        self.shared.columns.contains_key(name)
    }

    /// The rows in batches of at most `batch_rows` and about [`crate::storage::width::BATCH_BYTES`], with the columns of `output`, which are
    /// columns of the table by name. Columns that no row has are NULL.
    #[must_use]
    pub fn batches(self: &Arc<Self>, output: SchemaRef, batch_rows: usize) -> SortedBatches {
        SortedBatches::new(self.clone(), output, fitting(batch_rows, self.shared.row_bytes))
    }

    /// The rows of all columns of the table.
    #[must_use]
    pub fn all_columns(self: &Arc<Self>, batch_rows: usize) -> SortedBatches {
        self.batches(self.shared.schema.arrow(), batch_rows)
    }
}

/// The fields of `schema` named by `names`, in that order; unknown names are passed over.
#[must_use]
pub fn project<'a>(schema: &Schema, names: impl IntoIterator<Item = &'a str>) -> SchemaRef {
    let fields = names.into_iter().filter_map(|name| schema.field_with_name(name).ok().cloned());
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Where the columns of batches are. A table may have thousands, of which a batch has a few.
fn columns(batches: &[RecordBatch]) -> HashMap<String, Vec<(usize, usize)>> {
    let mut columns: HashMap<String, Vec<(usize, usize)>> = HashMap::new();
    for (number, batch) in batches.iter().enumerate() {
        for (place, field) in batch.schema_ref().fields().iter().enumerate() {
            columns.entry_ref(field.name().as_str()).or_default().push((number, place));
        }
    }
    columns
}

fn too_many() -> Error {
    Error::new(Code::TooLarge, "more than 4,294,967,295 rows to sort at once")
}

/// The texts of a dictionary in ascending order, and for each number its rank from 1.
fn rank_texts(values: &ArrayRef) -> Result<(ArrayRef, Vec<u32>)> {
    let texts: &StringArray = values.as_string::<i32>();
    let mut sorted: Vec<u32> = (0..texts.len() as u32).collect();
    sorted.sort_unstable_by_key(|number| texts.value(*number as usize));
    let mut ranks = vec![0; sorted.len()];
    for (rank, number) in (1..).zip(&sorted) {
        ranks[*number as usize] = rank;
    }
    let ascending = take(texts, &UInt32Array::from(sorted), None)
        .map_err(|error| Error::internal(format!("sort a dictionary: {error}")))?;
    Ok((ascending, ranks))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::model::{Row, WINDOW, expected, read, rows, table};

    fn collect(sorted: SortedRows, batch_rows: usize) -> Vec<Row> {
        let batches = Arc::new(sorted).all_columns(batch_rows);
        batches.flat_map(|batch| read(&batch.unwrap())).collect()
    }

    proptest! {
        #[test]
        fn sorting_agrees_with_a_map(
            writes in proptest::collection::vec(rows(), 0..6),
            dedup: bool,
            batch_rows in 1..20usize,
        ) {
            let schema = Arc::new(table(false).schema);
            let batches = writes.iter().map(|each| each.batch()).collect();
            let sorted = sort_rows(schema, batches, dedup).unwrap();
            prop_assert_eq!(collect(sorted, batch_rows), expected(&writes, !dedup));
        }

        #[test]
        fn windows_hold_their_own_times_and_together_everything(
            writes in proptest::collection::vec(rows(), 0..6),
            dedup: bool,
        ) {
            let schema = Arc::new(table(false).schema);
            let batches = writes.iter().map(|each| each.batch()).collect();
            let mut all = Vec::new();
            for (start, sorted) in sort_windows(schema, batches, dedup, WINDOW).unwrap() {
                let (range, rows) = (sorted.time(), collect(sorted, 5));
                let times = || rows.iter().map(|row| row.time);
                prop_assert!(times().all(|time| (start..start + WINDOW).contains(&time)));
                prop_assert_eq!(times().min(), Some(range.first));
                prop_assert_eq!(times().max(), Some(range.last));
                all.extend(rows);
            }
            all.sort_by_key(Row::key);
            prop_assert_eq!(all, expected(&writes, !dedup));
        }
    }

    #[test]
    fn windows_begin_below_negative_times() {
        assert_eq!(window_start(-1, 10), -10);
        assert_eq!(window_start(-10, 10), -10);
        assert_eq!(window_start(9, 10), 0);
        assert_eq!(window_start(i64::MIN, 1_000_000_007), i64::MIN);
    }
}
