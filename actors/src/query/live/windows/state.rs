//! What is known of one window: its groups, and the state of each aggregate function for them.

use datafusion::arrow::array::{
    Array, ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions, TimestampNanosecondArray,
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

use super::parts::Parts;
use super::shape::{Call, Inputs, Shape};
use crate::query::error::from_engine;

/// The state of a window.
pub(super) struct Window {
    groups: Groups,
    /// For each aggregate function.
    states: Vec<State>,
    /// It has every row of its window up to this commit.
    pub(super) upto: Position,
    /// Bytes that it takes.
    pub(super) bytes: usize,
}

/// The state of one aggregate function for all groups.
enum State {
    /// Within an accumulator.
    Held(Box<dyn GroupsAccumulator>),
    /// Of a plugin, as it was handed out.
    Lent(Parts),
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
        let states = shape.aggregates.iter().map(State::new).collect::<Result<_>>()?;
        Ok(Window { groups: Groups::new(shape), states, upto, bytes: 0 })
    }

    /// Adds rows.
    ///
    /// # Errors
    /// Those of the aggregate functions; the state is of no use then.
    pub(super) fn add(&mut self, shape: &Shape, inputs: &Inputs) -> Result<()> {
        self.groups.number(shape, &inputs.groups, inputs.starts.len())?;
        let (numbers, count) = (&self.groups.of_rows, self.groups.count);
        let calls = shape.aggregates.iter().zip(&inputs.arguments);
        for (state, (call, (arguments, filter))) in self.states.iter_mut().zip(calls) {
            state.add(call, (arguments, filter.as_ref()), numbers, count)?;
        }
        self.measure();
        Ok(())
    }

    fn measure(&mut self) {
        let states: usize = self.states.iter().map(State::bytes).sum();
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
        if shape.grouped.fields().len() == self.states.len() + 1 {
            return Ok(Vec::new());
        }
        shape.keys.convert_rows(&self.groups.keys).map_err(defect)
    }

    /// The values of the aggregate functions.
    fn values(&mut self, shape: &Shape) -> Result<Vec<ArrayRef>> {
        let states = self.states.iter_mut().zip(&shape.aggregates);
        let values = states.map(|(state, call)| state.values(call, self.groups.count));
        let values = values.collect();
        self.measure();
        values
    }
}

impl State {
    fn new(call: &Call) -> Result<Self> {
        Ok(match call.lent {
            true => State::Lent(Parts::default()),
            false => State::Held(call.accumulator()?),
        })
    }

    fn add(
        &mut self,
        call: &Call,
        (arguments, filter): (&[ArrayRef], Option<&BooleanArray>),
        groups: &[usize],
        total: usize,
    ) -> Result<()> {
        match self {
            State::Held(state) => {
                state.update_batch(arguments, groups, filter, total).map_err(from_engine)
            }
            State::Lent(parts) => parts.add(call, (arguments, filter), groups, total),
        }
    }

    /// Asking an accumulator empties it, so its state goes into two new ones: one to ask, one
    /// to keep.
    fn values(&mut self, call: &Call, total: usize) -> Result<ArrayRef> {
        let held = match self {
            State::Held(held) => held,
            State::Lent(parts) => return parts.values(call, total),
        };
        let groups: Vec<usize> = (0..total).collect();
        let (mut asked, mut kept) = (call.accumulator()?, call.accumulator()?);
        let state = held.state(EmitTo::All).map_err(from_engine)?;
        for copy in [&mut asked, &mut kept] {
            copy.merge_batch(&state, &groups, total).map_err(from_engine)?;
        }
        *held = kept;
        asked.evaluate(EmitTo::All).map_err(from_engine)
    }

    fn bytes(&self) -> usize {
        match self {
            State::Held(held) => held.size(),
            State::Lent(parts) => parts.bytes(),
        }
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
