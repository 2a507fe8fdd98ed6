//! The rows of a rule's query, column by column: label set, value, and whether the condition
//! holds.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, TimestampNanosecondType};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use kymo_kernel::schema::time_type;
use kymo_kernel::{Error, Result};

use super::labels::{self, Values};
use super::sets::Row;
use crate::query::Layout;

/// Rows of one rule, or of several that share their shape.
pub struct Facts {
    labels: Vec<StringArray>,
    values: Option<Float64Array>,
    holds: BooleanArray,
    times: Option<TimestampNanosecondArray>,
    count: usize,
}

impl Facts {
    /// Reads the rows of a query, whose times are given beside them where they have any.
    ///
    /// # Errors
    /// `internal` where the columns are not what they were planned to be.
    pub fn of(layout: &Layout, rows: &RecordBatch, times: Option<&ArrayRef>) -> Result<Facts> {
        let as_type = |column: &ArrayRef, data_type: &DataType| {
            cast(column, data_type)
                .map_err(|error| Error::internal(format!("a rule's row: {error}")))
        };
        let label =
            |at: &usize| Ok(as_type(rows.column(*at), &DataType::Utf8)?.as_string().clone());
        let labels = layout.labels.iter().map(label).collect::<Result<_>>()?;
        let values = match layout.value {
            Some(at) => {
                let values = as_type(rows.column(at), &DataType::Float64)?;
                Some(values.as_primitive::<Float64Type>().clone())
            }
            None => None,
        };
        let holds = as_type(rows.column(layout.holds), &DataType::Boolean)?.as_boolean().clone();
        let times = match times {
            Some(times) => {
                let times = as_type(times, &time_type())?;
                Some(times.as_primitive::<TimestampNanosecondType>().clone())
            }
            None => None,
        };
        Ok(Facts { labels, values, holds, times, count: rows.num_rows() })
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    fn texts(&self, at: usize) -> impl Iterator<Item = &str> {
        self.labels.iter().map(move |label| if label.is_valid(at) { label.value(at) } else { "" })
    }

    /// A row; without times of their own rows have `instant_ns`.
    #[must_use]
    pub fn row(&self, at: usize, instant_ns: i64) -> Row {
        let value = self.values.as_ref().filter(|values| values.is_valid(at));
        Row {
            key: labels::key(self.texts(at)),
            time_ns: self.times.as_ref().map_or(instant_ns, |times| times.value(at)),
            holds: self.holds.is_valid(at) && self.holds.value(at),
            value: value.map(|values| values.value(at)),
        }
    }

    /// The label set of a row.
    #[must_use]
    pub fn values(&self, at: usize) -> Values {
        self.texts(at).map(Box::from).collect()
    }

    /// One row for each label set of a query's result: one that holds, where any does.
    #[must_use]
    pub fn distinct(&self, instant_ns: i64) -> Vec<(Row, usize)> {
        let mut found: HashMap<u64, (Row, usize)> = HashMap::with_capacity(self.count);
        let mut order = Vec::with_capacity(self.count);
        for at in 0..self.count {
            let row = self.row(at, instant_ns);
            match found.entry(row.key) {
                Entry::Vacant(entry) => {
                    entry.insert((row, at));
                    order.push(row.key);
                }
                Entry::Occupied(mut entry) => {
                    if row.holds || !entry.get().0.holds {
                        entry.insert((row, at));
                    }
                }
            }
        }
        order.iter().filter_map(|key| found.remove(key)).collect()
    }
}

/// Names of labels, shared by all alerts of a rule.
pub type Names = Arc<[String]>;
