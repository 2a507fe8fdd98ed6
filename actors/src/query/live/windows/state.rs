//! What is known of one window: its groups, and the state of each aggregate function for them.

use datafusion::arrow::array::{
    Array, ArrayRef, RecordBatch, RecordBatchOptions, TimestampNanosecondArray,
};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::error::ArrowError;
use datafusion::arrow::row::Rows;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use foldhash::fast::FixedState;
use hashbrown::HashTable;
use kymo_kernel::ids::Position;
use kymo_kernel::{Error, Result};
use std::hash::BuildHasher;

use super::shape::{Inputs, Shape};
use crate::query::error::from_engine;

/// The state of a window.
pub(super) struct Window {
    groups: Groups,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// It has every row of its window up to this commit.
    pub(super) upto: Position,
    /// Bytes that it takes.
    pub(super) bytes: usize,
}

/// Numbers the groups of a window in the order in which they appear.
struct Groups {
    /// The key of each group.
    keys: Rows,
    numbers: HashTable<usize>,
    hasher: FixedState,
    count: usize,
    /// The numbers of the rows at hand.
    of_rows: Vec<usize>,
    /// The keys of the rows at hand.
    scratch: Rows,
}

impl Groups {
    fn new(shape: &Shape) -> Self {
        Groups {
            keys: shape.keys.empty_rows(0, 0),
            numbers: HashTable::new(),
            hasher: FixedState::default(),
            count: 0,
            of_rows: Vec::new(),
            scratch: shape.keys.empty_rows(0, 0),
        }
    }

    /// Finds the group of each row.
    fn number(&mut self, shape: &Shape, columns: &[ArrayRef], rows: usize) -> Result<()> {
        self.of_rows.clear();
        if columns.is_empty() {
            // The window is the only group.
            self.of_rows.resize(rows, 0);
            self.count = 1;
            return Ok(());
        }
        self.scratch.clear();
        shape.keys.append(&mut self.scratch, columns).map_err(defect)?;
        for key in &self.scratch {
            let hash = self.hasher.hash_one(key.data());
            let same = |number: &usize| self.keys.row(*number) == key;
            let number = match self.numbers.find(hash, same) {
                Some(number) => *number,
                None => {
                    let number = self.count;
                    self.keys.push(key);
                    let (keys, hasher) = (&self.keys, &self.hasher);
                    self.numbers.insert_unique(hash, number, |number| {
                        hasher.hash_one(keys.row(*number).data())
                    });
                    self.count += 1;
                    number
                }
            };
            self.of_rows.push(number);
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.keys.size()
            + self.scratch.size()
            + (self.numbers.capacity() + self.of_rows.capacity()) * size_of::<usize>()
    }
}

impl Window {
    /// A window without rows, as it is up to a commit.
    ///
    /// # Errors
    /// Those of the engine.
    pub(super) fn new(shape: &Shape, upto: Position) -> Result<Self> {
        let accumulators = shape.accumulators()?;
        Ok(Window { groups: Groups::new(shape), accumulators, upto, bytes: 0 })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// Those of the aggregate functions; the state is of no use then.
    pub(super) fn add(&mut self, shape: &Shape, inputs: &Inputs) -> Result<()> {
        self.groups.number(shape, &inputs.groups, inputs.starts.len())?;
        let (numbers, count) = (&self.groups.of_rows, self.groups.count);
        for (accumulator, (arguments, filter)) in
            self.accumulators.iter_mut().zip(&inputs.arguments)
        {
            accumulator
                .update_batch(arguments, numbers, filter.as_ref(), count)
                .map_err(from_engine)?;
        }
        self.measure();
        Ok(())
    }

    fn measure(&mut self) {
        let states: usize = self.accumulators.iter().map(|each| each.size()).sum();
        self.bytes = self.groups.bytes() + states + size_of::<Self>();
    }

    /// The rows of the query for this window.
    ///
    /// # Errors
    /// Those of the aggregate functions and of expressions; the state is of no use then.
    pub(super) fn rows(&mut self, shape: &Shape, start: i64) -> Result<RecordBatch> {
        let groups = self.groups.count;
        if groups == 0 {
            return Ok(RecordBatch::new_empty(shape.above.schema().clone()));
        }
        let mut columns = self.keys(shape)?;
        let times = TimestampNanosecondArray::from_value(start, groups);
        let of = shape.grouped.field(shape.window).data_type().clone();
        columns.insert(shape.window, std::sync::Arc::new(times.with_data_type(of)));
        columns.extend(self.values(shape)?);
        let columns = columns.into_iter().zip(shape.grouped.fields());
        let columns = columns.map(|(column, field)| fit(column, field.data_type()));
        let options = RecordBatchOptions::new().with_row_count(Some(groups));
        let grouped = RecordBatch::try_new_with_options(
            shape.grouped.clone(),
            columns.collect::<Result<_>>()?,
            &options,
        );
        shape.above.run(grouped.map_err(defect)?)
    }

    fn keys(&self, shape: &Shape) -> Result<Vec<ArrayRef>> {
        if shape.grouped.fields().len() == self.accumulators.len() + 1 {
            return Ok(Vec::new());
        }
        shape.keys.convert_rows(&self.groups.keys).map_err(defect)
    }

    /// The values of the aggregate functions. Asking an accumulator empties it, so its state
    /// goes into two new ones: one to ask, one to keep.
    fn values(&mut self, shape: &Shape) -> Result<Vec<ArrayRef>> {
        let numbers: Vec<usize> = (0..self.groups.count).collect();
        let (mut asked, mut kept) = (shape.accumulators()?, shape.accumulators()?);
        let mut values = Vec::with_capacity(asked.len());
        for (at, accumulator) in self.accumulators.iter_mut().enumerate() {
            let state = accumulator.state(EmitTo::All).map_err(from_engine)?;
            for copy in [&mut asked[at], &mut kept[at]] {
                copy.merge_batch(&state, &numbers, numbers.len()).map_err(from_engine)?;
            }
            values.push(asked[at].evaluate(EmitTo::All).map_err(from_engine)?);
        }
        self.accumulators = kept;
        self.measure();
        Ok(values)
    }
}

/// Keys come back without their dictionaries.
fn fit(column: ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if column.data_type() == wanted {
        return Ok(column);
    }
    cast(&column, wanted).map_err(defect)
}

fn defect(error: ArrowError) -> Error {
    from_engine(error.into())
}
