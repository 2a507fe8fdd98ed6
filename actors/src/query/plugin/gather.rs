//! Aggregates whose rows have to be seen together first: `DISTINCT`, `ORDER BY`, and windows
//! that move over an aggregate which cannot take rows out again.
//!
//! Rows are kept here, in Arrow, and go to the plugin when the result is asked for. The
//! intermediate state is the rows themselves, a list a column.

use std::collections::{HashSet, VecDeque};
use std::fmt;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt32Array, new_empty_array};
use datafusion::arrow::compute::{SortColumn, SortOptions, concat, lexsort_to_indices, take};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::utils::SingleRowListArrayBuilder;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::Accumulator;
use kymo_plugins::Emit;

use super::aggregate::Work;
use super::scalar::scalar;

/// Rows that are kept before duplicates are looked for.
const FEW: usize = 8192;

/// What is asked of the rows.
pub(super) struct Wanted {
    /// The columns that the plugin sees; those after them are for the order.
    pub(super) arguments: usize,
    /// The types of all columns.
    pub(super) types: Vec<DataType>,
    /// How to sort by each column after the arguments.
    pub(super) order: Vec<SortOptions>,
    /// Each combination of arguments once.
    pub(super) distinct: bool,
    /// Rows leave in the order in which they came.
    pub(super) sliding: bool,
}

/// The rows of one group.
pub(super) struct Gather {
    work: Work,
    wanted: Wanted,
    /// Batches of columns, none of them empty.
    batches: VecDeque<Vec<ArrayRef>>,
    rows: usize,
    /// Rows that were left when duplicates were last looked for.
    looked: usize,
}

impl Gather {
    pub(super) fn new(work: Work, wanted: Wanted) -> Self {
        Gather { work, wanted, batches: VecDeque::new(), rows: 0, looked: 0 }
    }

    fn add(&mut self, columns: Vec<ArrayRef>) -> Result<()> {
        let rows = columns.first().map_or(0, |column| column.len());
        if rows == 0 {
            return Ok(());
        }
        self.rows += rows;
        self.batches.push_back(columns);
        // Looking at twice as many rows each time costs no more than looking at each row twice.
        if self.rows > 2 * self.looked.max(FEW) && !self.wanted.sliding {
            self.compact()?;
        }
        Ok(())
    }

    /// All rows in one batch, without duplicates where they do not count.
    fn compact(&mut self) -> Result<()> {
        let mut columns = self.columns()?;
        if self.wanted.distinct && !self.wanted.sliding {
            columns = distinct(&columns, self.wanted.arguments)?;
        }
        self.rows = columns.first().map_or(0, |column| column.len());
        self.looked = self.rows;
        self.batches.clear();
        if self.rows > 0 {
            self.batches.push_back(columns);
        }
        Ok(())
    }

    /// The columns of all rows.
    fn columns(&self) -> Result<Vec<ArrayRef>> {
        if self.batches.is_empty() {
            return Ok(self.wanted.types.iter().map(new_empty_array).collect());
        }
        let column = |at: usize| -> Result<ArrayRef> {
            let parts: Vec<&dyn Array> =
                self.batches.iter().map(|batch| batch[at].as_ref()).collect();
            Ok(concat(&parts)?)
        };
        (0..self.wanted.types.len()).map(column).collect()
    }

    /// The arguments as the plugin sees them.
    fn arguments(&self) -> Result<Vec<ArrayRef>> {
        let mut columns = self.columns()?;
        if self.wanted.distinct {
            columns = distinct(&columns, self.wanted.arguments)?;
        }
        let keys = columns.split_off(self.wanted.arguments.min(columns.len()));
        if keys.is_empty() {
            return Ok(columns);
        }
        let keys: Vec<SortColumn> = keys
            .into_iter()
            .zip(&self.wanted.order)
            .map(|(values, options)| SortColumn { values, options: Some(*options) })
            .collect();
        let order = lexsort_to_indices(&keys, None)?;
        columns.iter().map(|column| Ok(take(column, &order, None)?)).collect()
    }
}

/// The rows that differ in their first so many columns, the first of each.
fn distinct(columns: &[ArrayRef], keys: usize) -> Result<Vec<ArrayRef>> {
    let keys = &columns[..keys.min(columns.len())];
    let fields = keys.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let rows = RowConverter::new(fields)?.convert_columns(keys)?;
    let mut seen = HashSet::with_capacity(rows.num_rows().min(FEW));
    let mut kept = Vec::new();
    for (at, row) in (0_u32..).zip(rows.iter()) {
        if seen.insert(row) {
            kept.push(at);
        }
    }
    let kept = UInt32Array::from(kept);
    columns.iter().map(|column| Ok(take(column, &kept, None)?)).collect()
}

impl fmt::Debug for Gather {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Gather({} rows)", self.rows)
    }
}

impl Accumulator for Gather {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.add(values.to_vec())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |column| column.len());
        for row in 0..rows {
            self.add(states.iter().map(|column| column.as_list::<i32>().value(row)).collect())?;
        }
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let mut left = values.first().map_or(0, |column| column.len());
        while left > 0 {
            let Some(mut batch) = self.batches.pop_front() else { break };
            let rows = batch.first().map_or(0, |column| column.len());
            let gone = rows.min(left);
            (self.rows, left) = (self.rows - gone, left - gone);
            if gone < rows {
                for column in &mut batch {
                    *column = column.slice(gone, rows - gone);
                }
                self.batches.push_front(batch);
            }
        }
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        self.wanted.sliding
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let arguments = self.arguments()?;
        self.work.attempt(|| {
            let mut guest = self.work.lease()?;
            guest.update(&arguments, None, 1, None)?;
            let value = scalar(&guest.evaluate(Emit::All)?)?;
            self.work.give_back(guest);
            Ok(value)
        })
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.compact()?;
        let list = |column: ArrayRef| SingleRowListArrayBuilder::new(column).build_list_scalar();
        Ok(self.columns()?.into_iter().map(list).collect())
    }

    fn size(&self) -> usize {
        let columns = self.batches.iter().flatten();
        let bytes: usize = columns.map(|column| column.get_array_memory_size()).sum();
        size_of_val(self) + bytes
    }
}
