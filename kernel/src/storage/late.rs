//! Knows the newest time of each series, to tell at write time which rows may repeat others.
//!
//! A row that is newer than everything its series has can neither overwrite nor be
//! overwritten by what is stored, so a scan need not compare it with anything. Only the
//! range of times that came late is remembered with the rows. Series are told apart by a
//! 64-bit hash: two that share one only make rows late that are not.

use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::TimestampNanosecondType;
use foldhash::fast::FixedState;
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use xxhash_rust::xxh64::xxh64;

use crate::error::{Error, Result};
use crate::ids::TimeRange;
use crate::schema::TableSchema;
use crate::storage::interner::{TagArray, as_tag, tag_values};
use crate::storage::memtable::union;

/// How many series are followed by default; beyond it, all are forgotten at once and every
/// row within the times seen so far counts as late.
pub const DEFAULT_SERIES: usize = 2 << 20;

/// The newest time per series of one table.
#[derive(Debug)]
pub struct LastTimes {
    newest: HashMap<u64, i64, FixedState>,
    /// The times of rows whose series are not known; ascending, apart from each other.
    taken: Vec<TimeRange>,
    /// The times seen so far.
    seen: Option<TimeRange>,
    limit: usize,
    hashes: Vec<u64>,
}

impl LastTimes {
    /// For a table whose stored rows lie within the times `taken`, following at most `limit`
    /// series.
    #[must_use]
    pub fn new(taken: impl IntoIterator<Item = TimeRange>, limit: usize) -> Self {
        LastTimes {
            newest: HashMap::default(),
            taken: join(taken.into_iter().collect()),
            seen: None,
            limit: limit.max(1),
            hashes: Vec::new(),
        }
    }

    /// Notes rows in the order of their arrival; returns the range of those that may share
    /// tags and time with an earlier row.
    ///
    /// # Errors
    /// `internal` where the batch does not fit the schema.
    pub fn observe(
        &mut self,
        schema: &TableSchema,
        batch: &RecordBatch,
    ) -> Result<Option<TimeRange>> {
        hash_series(schema, batch, &mut self.hashes)?;
        let times = times(schema, batch)?;
        let mut late: Option<TimeRange> = None;
        let hashes = std::mem::take(&mut self.hashes);
        for (hash, time) in hashes.iter().zip(times) {
            if !self.advance(*hash, *time) {
                let here = TimeRange { first: *time, last: *time };
                late = Some(late.map_or(here, |range| range.union(&here)));
            }
        }
        self.hashes = hashes;
        let span = times.iter().min().zip(times.iter().max());
        let span = span.map(|(first, last)| TimeRange { first: *first, last: *last });
        self.seen = union(self.seen, span);
        if self.newest.len() > self.limit {
            self.newest = HashMap::default();
            self.taken.extend(self.seen);
            self.taken = join(std::mem::take(&mut self.taken));
        }
        Ok(late)
    }

    /// Whether `time` is newer than all of its series, and no row of an unknown one has it.
    fn advance(&mut self, series: u64, time: i64) -> bool {
        let newer = match self.newest.entry(series) {
            Entry::Occupied(mut newest) => {
                let newer = time > *newest.get();
                if newer {
                    newest.insert(time);
                }
                newer
            }
            Entry::Vacant(place) => {
                place.insert(time);
                true
            }
        };
        newer && !self.is_taken(time)
    }

    fn is_taken(&self, time: i64) -> bool {
        let Some(last) = self.taken.last() else { return false };
        // Nearly all rows are newer than everything.
        if time > last.last {
            return false;
        }
        let after = self.taken.partition_point(|range| range.last < time);
        self.taken.get(after).is_some_and(|range| range.first <= time)
    }
}

/// The same times as few ranges, ascending.
fn join(mut ranges: Vec<TimeRange>) -> Vec<TimeRange> {
    ranges.sort_unstable_by_key(|range| range.first);
    let mut joined: Vec<TimeRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.overlaps(&range) => *last = last.union(&range),
            _ => joined.push(range),
        }
    }
    joined
}

/// The times of a batch.
///
/// # Errors
/// `internal` where the column is missing or has another type.
pub fn times<'a>(schema: &TableSchema, batch: &'a RecordBatch) -> Result<&'a [i64]> {
    let name = &schema.time()?.name;
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| Error::internal(format!("batch without its time column {name:?}")))?;
    times_of(column.as_ref(), name)
}

/// The values of a time column.
///
/// # Errors
/// `internal` where it has another type or a NULL.
pub fn times_of<'a>(column: &'a dyn Array, name: &str) -> Result<&'a [i64]> {
    match column.as_primitive_opt::<TimestampNanosecondType>() {
        Some(times) if times.null_count() == 0 => Ok(times.values().as_ref()),
        Some(_) => Err(Error::internal(format!("time column {name:?} holds NULL"))),
        None => {
            Err(Error::internal(format!("time column {name:?} has type {}", column.data_type())))
        }
    }
}

/// One hash per row that is equal for equal tags; NULL and an absent tag count as the same.
fn hash_series(schema: &TableSchema, batch: &RecordBatch, out: &mut Vec<u64>) -> Result<()> {
    out.clear();
    out.resize(batch.num_rows(), 0);
    for tag in schema.tags() {
        let Some(column) = batch.column_by_name(&tag.name) else { continue };
        let tags = as_tag(column, &tag.name)?;
        let seed = u64::from(tag.id.0) + 1;
        if tag_values(tags)?.len() <= 2 * batch.num_rows() {
            add_by_dictionary(tags, seed, out)?;
        } else {
            add_by_row(tags, seed, out)?;
        }
    }
    Ok(())
}

fn add_by_dictionary(tags: &TagArray, seed: u64, out: &mut [u64]) -> Result<()> {
    let values = tag_values(tags)?;
    let hashes: Vec<u64> = (0..values.len()).map(|code| hash_value(values, code, seed)).collect();
    let codes = tags.keys();
    if codes.null_count() == 0 {
        for (hash, code) in out.iter_mut().zip(codes.values()) {
            *hash = hash.wrapping_add(hashes[*code as usize]);
        }
    } else {
        for (hash, code) in out.iter_mut().zip(codes) {
            *hash = hash.wrapping_add(code.map_or(0, |code| hashes[code as usize]));
        }
    }
    Ok(())
}

fn add_by_row(tags: &TagArray, seed: u64, out: &mut [u64]) -> Result<()> {
    let values = tag_values(tags)?;
    for (hash, code) in out.iter_mut().zip(tags.keys()) {
        *hash = hash.wrapping_add(code.map_or(0, |code| hash_value(values, code as usize, seed)));
    }
    Ok(())
}

fn hash_value(values: &StringArray, code: usize, seed: u64) -> u64 {
    if values.is_null(code) { 0 } else { xxh64(values.value(code).as_bytes(), seed) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::model::{Row, Rows, rows, table};

    fn rows_at(series: &str, at: &[i64]) -> RecordBatch {
        let row = |time: &i64| Row {
            a: Some(series.to_owned()),
            b: None,
            time: *time,
            float: None,
            int: None,
            text: None,
        };
        Rows { rows: at.iter().map(row).collect(), columns: 0xff }.batch()
    }

    fn range(first: i64, last: i64) -> Option<TimeRange> {
        Some(TimeRange { first, last })
    }

    #[test]
    fn series_are_followed_apart() {
        let schema = table(false).schema;
        let mut last = LastTimes::new([], 100);
        assert_eq!(last.observe(&schema, &rows_at("x", &[1, 2, 9])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("y", &[1, 2])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("x", &[9, 4, 10])).unwrap(), range(4, 9));
        assert_eq!(last.observe(&schema, &rows_at("y", &[3])).unwrap(), None);
    }

    #[test]
    fn a_row_is_late_where_unknown_rows_lie() {
        let schema = table(false).schema;
        let stored = [(0, 5), (4, 8), (1000, 1000)].map(|(a, b)| range(a, b).unwrap());
        let mut last = LastTimes::new(stored, 100);
        assert_eq!(last.observe(&schema, &rows_at("x", &[5, 8])).unwrap(), range(5, 8));
        assert_eq!(last.observe(&schema, &rows_at("x", &[9])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("y", &[-1])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("y", &[999])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("y", &[1000, 1001])).unwrap(), range(1000, 1000));
    }

    #[test]
    fn too_many_series_only_make_more_rows_late() {
        let schema = table(false).schema;
        let mut last = LastTimes::new([], 2);
        for series in ["x", "y", "z"] {
            assert_eq!(last.observe(&schema, &rows_at(series, &[7])).unwrap(), None);
        }
        assert!(last.newest.len() <= 2);
        assert_eq!(last.observe(&schema, &rows_at("new", &[7])).unwrap(), range(7, 7));
        assert_eq!(last.observe(&schema, &rows_at("new", &[8])).unwrap(), None);
    }

    proptest! {
        #[test]
        fn no_row_that_repeats_is_missed(
            writes in proptest::collection::vec(rows(), 0..8),
            limit in 1..6usize,
        ) {
            let schema = table(false).schema;
            let mut last = LastTimes::new([], limit);
            let mut known: BTreeSet<(Option<String>, Option<String>, i64)> = BTreeSet::new();
            for write in &writes {
                let late = last.observe(&schema, &write.batch()).unwrap();
                for row in write.seen() {
                    let here = TimeRange { first: row.time, last: row.time };
                    let new = known.insert(row.key());
                    prop_assert!(new || late.is_some_and(|late| late.overlaps(&here)));
                }
            }
        }
    }
}
