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

/// How many series are followed by default; beyond it, all are forgotten at once and only
/// rows newer than the newest of all count as being in order.
pub const DEFAULT_SERIES: usize = 2 << 20;

/// The newest time per series of one table.
#[derive(Debug)]
pub struct LastTimes {
    newest: HashMap<u64, i64, FixedState>,
    /// The newest time that an unknown series may have; `i64::MIN` where there is nothing.
    floor: i64,
    /// The newest time of all.
    high: i64,
    limit: usize,
    hashes: Vec<u64>,
}

impl LastTimes {
    /// For a table whose stored rows are not newer than `floor` (`i64::MIN` where it is
    /// empty), following at most `limit` series.
    #[must_use]
    pub fn new(floor: i64, limit: usize) -> Self {
        LastTimes {
            newest: HashMap::default(),
            floor,
            high: floor,
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
        if self.newest.len() > self.limit {
            self.newest = HashMap::default();
            self.floor = self.high;
        }
        Ok(late)
    }

    /// Whether `time` is newer than all of its series.
    fn advance(&mut self, series: u64, time: i64) -> bool {
        self.high = self.high.max(time);
        match self.newest.entry(series) {
            Entry::Occupied(mut newest) => {
                let newer = time > *newest.get();
                if newer {
                    newest.insert(time);
                }
                newer
            }
            Entry::Vacant(place) => {
                place.insert(time.max(self.floor));
                self.floor == i64::MIN || time > self.floor
            }
        }
    }
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
    use std::collections::BTreeMap;

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
        let mut last = LastTimes::new(i64::MIN, 100);
        assert_eq!(last.observe(&schema, &rows_at("x", &[1, 2, 9])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("y", &[1, 2])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("x", &[9, 4, 10])).unwrap(), range(4, 9));
        assert_eq!(last.observe(&schema, &rows_at("y", &[3])).unwrap(), None);
    }

    #[test]
    fn an_unknown_series_is_late_up_to_the_floor() {
        let schema = table(false).schema;
        let mut last = LastTimes::new(5, 100);
        assert_eq!(last.observe(&schema, &rows_at("x", &[5])).unwrap(), range(5, 5));
        assert_eq!(last.observe(&schema, &rows_at("y", &[6])).unwrap(), None);
        assert_eq!(last.observe(&schema, &rows_at("z", &[1, 3])).unwrap(), range(1, 3));
    }

    #[test]
    fn too_many_series_only_make_more_rows_late() {
        let schema = table(false).schema;
        let mut last = LastTimes::new(i64::MIN, 2);
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
            let mut last = LastTimes::new(i64::MIN, limit);
            let mut newest: BTreeMap<(Option<String>, Option<String>), i64> = BTreeMap::new();
            for write in &writes {
                let late = last.observe(&schema, &write.batch()).unwrap();
                for row in write.seen() {
                    let known = newest.entry((row.a, row.b)).or_insert(i64::MIN);
                    if row.time <= *known {
                        let here = TimeRange { first: row.time, last: row.time };
                        prop_assert!(late.is_some_and(|late| late.overlaps(&here)));
                    }
                    *known = row.time.max(*known);
                }
            }
        }
    }
}
