//! `first(value, time)` and `last(value, time)`: the value at the earliest or latest instant.
//!
//! Rows whose value or time is NULL do not take part: in sparse data the last *known* value is
//! what is asked for. Of several rows of one instant, `first` takes the first that it meets and
//! `last` the last.

use std::fmt::{self, Debug};
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, Int64Array, PrimitiveArray,
};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::{cast, nullif};
use datafusion::arrow::datatypes::{
    DataType, Field, FieldRef, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use datafusion::common::{Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use kymo_kernel::schema::time_type;

/// Which end of time a value is taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum End {
    /// The earliest instant.
    First,
    /// The latest instant.
    Last,
}

impl End {
    /// Whether a row at `time` takes the place of one at `held`.
    fn replaces(self, time: i64, held: i64) -> bool {
        match self {
            End::First => time < held,
            End::Last => time >= held,
        }
    }
}

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Pick {
    end: End,
    signature: Signature,
}

impl Pick {
    pub(super) fn new(end: End) -> Self {
        Pick { end, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for Pick {
    fn name(&self) -> &str {
        match self.end {
            End::First => "first",
            End::Last => "last",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let [value, time] = types else {
            return plan_err!("{} takes a value and a time", self.name());
        };
        let time = match time {
            DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Nanosecond, zone.clone()),
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => DataType::Int64,
            DataType::Date32
            | DataType::Date64
            | DataType::Utf8
            | DataType::Utf8View
            | DataType::Null => time_type(),
            other => {
                return plan_err!("{}: the second argument is a time, not {other}", self.name());
            }
        };
        Ok(vec![value.clone(), time])
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types.first() {
            Some(value) => Ok(value.clone()),
            None => plan_err!("{} takes a value and a time", self.name()),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let value = args.return_field.data_type().clone();
        Ok(vec![
            Arc::new(Field::new(format!("{}[value]", args.name), value, true)),
            Arc::new(Field::new(format!("{}[time]", args.name), DataType::Int64, true)),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let groups = Groups::new(self.end, args.return_field.data_type())?;
        Ok(Box::new(Single { groups, zeros: Vec::new() }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups::new(self.end, args.return_field.data_type())?))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        ScalarValue::try_from(data_type)
    }
}

/// Values of groups, in the densest form that their type allows.
trait Store: Send + Sync {
    fn resize(&mut self, groups: usize) -> Result<()>;
    fn set(&mut self, group: usize, values: &ArrayRef, row: usize) -> Result<()>;
    /// Takes the values of the groups that are emitted; those without a value are NULL.
    fn take(&mut self, emit: EmitTo, nulls: Option<NullBuffer>) -> Result<ArrayRef>;
    fn size(&self) -> usize;
}

struct Native<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    data_type: DataType,
}

impl<T: ArrowPrimitiveType> Store for Native<T> {
    fn resize(&mut self, groups: usize) -> Result<()> {
        self.values.resize(groups, T::Native::default());
        Ok(())
    }

    fn set(&mut self, group: usize, values: &ArrayRef, row: usize) -> Result<()> {
        self.values[group] = values.as_primitive::<T>().value(row);
        Ok(())
    }

    fn take(&mut self, emit: EmitTo, nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        let values = emit.take_needed(&mut self.values);
        let array = PrimitiveArray::<T>::new(values.into(), nulls);
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>()
    }
}

struct Any {
    values: Vec<ScalarValue>,
    data_type: DataType,
    bytes: usize,
}

impl Store for Any {
    fn resize(&mut self, groups: usize) -> Result<()> {
        self.values.resize(groups, ScalarValue::try_from(&self.data_type)?);
        Ok(())
    }

    fn set(&mut self, group: usize, values: &ArrayRef, row: usize) -> Result<()> {
        let mut value = ScalarValue::try_from_array(values, row)?;
        value.compact();
        self.bytes = (self.bytes + value.size()).saturating_sub(self.values[group].size());
        self.values[group] = value;
        Ok(())
    }

    fn take(&mut self, emit: EmitTo, _nulls: Option<NullBuffer>) -> Result<ArrayRef> {
        let values = emit.take_needed(&mut self.values);
        let bytes: usize = values.iter().map(ScalarValue::size).sum();
        self.bytes = self.bytes.saturating_sub(bytes);
        if values.is_empty() {
            return Ok(datafusion::arrow::array::new_empty_array(&self.data_type));
        }
        let array = ScalarValue::iter_to_array(values)?;
        // Dictionaries come back with their own key type; the plan fixed one.
        Ok(if array.data_type() == &self.data_type {
            array
        } else {
            cast(&array, &self.data_type)?
        })
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<ScalarValue>() + self.bytes
    }
}

fn store(data_type: &DataType) -> Box<dyn Store> {
    macro_rules! native {
        ($type:ty) => {
            Box::new(Native::<$type> { values: Vec::new(), data_type: data_type.clone() })
        };
    }
    match data_type {
        DataType::Float64 => native!(Float64Type),
        DataType::Float32 => native!(Float32Type),
        DataType::Int64 => native!(Int64Type),
        DataType::Int32 => native!(Int32Type),
        DataType::Int16 => native!(Int16Type),
        DataType::Int8 => native!(Int8Type),
        DataType::UInt64 => native!(UInt64Type),
        DataType::UInt32 => native!(UInt32Type),
        DataType::UInt16 => native!(UInt16Type),
        DataType::UInt8 => native!(UInt8Type),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => native!(TimestampNanosecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => native!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => native!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Second, _) => native!(TimestampSecondType),
        _ => Box::new(Any { values: Vec::new(), data_type: data_type.clone(), bytes: 0 }),
    }
}

/// No row of this batch has won the group yet.
const NONE: u32 = u32::MAX;

/// The state of all groups. A batch is first searched for each group's winner, so that values
/// are copied once a group and not once a row.
struct Groups {
    end: End,
    values: Box<dyn Store>,
    times: Vec<i64>,
    known: Vec<bool>,
    winners: Vec<u32>,
    touched: Vec<usize>,
}

impl Debug for Groups {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Groups({:?}, {})", self.end, self.times.len())
    }
}

impl Groups {
    fn new(end: End, data_type: &DataType) -> Result<Self> {
        Ok(Groups {
            end,
            values: store(data_type),
            times: Vec::new(),
            known: Vec::new(),
            winners: Vec::new(),
            touched: Vec::new(),
        })
    }

    fn resize(&mut self, groups: usize) -> Result<()> {
        self.values.resize(groups)?;
        self.times.resize(groups, 0);
        self.known.resize(groups, false);
        self.winners.resize(groups, NONE);
        Ok(())
    }

    fn update(
        &mut self,
        values: &ArrayRef,
        times: &[i64],
        valid: Option<&NullBuffer>,
        groups: &[usize],
        total: usize,
    ) -> Result<()> {
        self.resize(total)?;
        for (row, (group, time)) in groups.iter().zip(times).enumerate() {
            if valid.is_some_and(|valid| valid.is_null(row)) {
                continue;
            }
            let group = *group;
            if !self.known[group] || self.end.replaces(*time, self.times[group]) {
                self.known[group] = true;
                self.times[group] = *time;
                if self.winners[group] == NONE {
                    self.touched.push(group);
                }
                self.winners[group] = u32::try_from(row).unwrap_or(NONE - 1);
            }
        }
        for group in self.touched.drain(..) {
            let row = std::mem::replace(&mut self.winners[group], NONE);
            self.values.set(group, values, row as usize)?;
        }
        Ok(())
    }

    fn take(&mut self, emit: EmitTo) -> Result<(ArrayRef, ArrayRef)> {
        let known = emit.take_needed(&mut self.known);
        let times = emit.take_needed(&mut self.times);
        let _ = emit.take_needed(&mut self.winners);
        let nulls = NullBuffer::from(known);
        let nulls = (nulls.null_count() > 0).then_some(nulls);
        let values = self.values.take(emit, nulls.clone())?;
        Ok((values, Arc::new(Int64Array::new(times.into(), nulls))))
    }

    fn merge(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        let [values, times] = states else { return exec_err!("first and last have two states") };
        let times = times.as_primitive::<Int64Type>();
        self.update(values, times.values(), times.nulls(), groups, total)
    }
}

/// The times of an argument as plain numbers.
fn numbers(times: &ArrayRef) -> Result<&[i64]> {
    Ok(match times.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            times.as_primitive::<TimestampNanosecondType>().values()
        }
        DataType::Int64 => times.as_primitive::<Int64Type>().values(),
        other => return exec_err!("first and last: {other} is not a time"),
    })
}

fn arguments(values: &[ArrayRef]) -> Result<(&ArrayRef, &ArrayRef)> {
    match values {
        [value, time] => Ok((value, time)),
        _ => exec_err!("first and last take a value and a time"),
    }
}

/// Which rows take part: value and time known, filter true.
fn taking_part(
    value: &ArrayRef,
    time: &ArrayRef,
    filter: Option<&BooleanArray>,
) -> Option<NullBuffer> {
    let known = NullBuffer::union(value.logical_nulls().as_ref(), time.nulls());
    let Some(filter) = filter else { return known };
    let truth = match filter.nulls() {
        Some(nulls) => filter.values() & nulls.inner(),
        None => filter.values().clone(),
    };
    NullBuffer::union(known.as_ref(), Some(&NullBuffer::new(truth)))
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        let (value, time) = arguments(values)?;
        let valid = taking_part(value, time, filter);
        self.update(value, numbers(time)?, valid.as_ref(), groups, total)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        Ok(self.take(emit)?.0)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let (values, times) = self.take(emit)?;
        Ok(vec![values, times])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.merge(states, groups, total)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let (value, time) = arguments(values)?;
        let valid = taking_part(value, time, filter);
        let times = Int64Array::new(numbers(time)?.to_vec().into(), valid.clone());
        let value = match valid {
            Some(valid) if filter.is_some() => {
                let out = BooleanArray::new(!valid.inner(), None);
                nullif(value, &out)?
            }
            _ => value.clone(),
        };
        Ok(vec![value, Arc::new(times)])
    }

    fn size(&self) -> usize {
        self.values.size()
            + self.times.capacity() * size_of::<i64>()
            + self.known.capacity()
            + self.winners.capacity() * size_of::<u32>()
    }
}

/// The aggregate without groups: one group.
#[derive(Debug)]
struct Single {
    groups: Groups,
    zeros: Vec<usize>,
}

impl Single {
    fn zeros(&mut self, rows: usize) -> Vec<usize> {
        let mut zeros = std::mem::take(&mut self.zeros);
        zeros.resize(rows, 0);
        zeros
    }
}

impl Accumulator for Single {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (value, time) = arguments(values)?;
        let zeros = self.zeros(value.len());
        let valid = taking_part(value, time, None);
        self.groups.update(value, numbers(time)?, valid.as_ref(), &zeros, 1)?;
        self.zeros = zeros;
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let rows = states.first().map_or(0, |array| array.len());
        let zeros = self.zeros(rows);
        self.groups.merge(states, &zeros, 1)?;
        self.zeros = zeros;
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.groups.resize(1)?;
        let (values, _) = self.groups.take(EmitTo::All)?;
        ScalarValue::try_from_array(&values, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.groups.resize(1)?;
        let (values, times) = self.groups.take(EmitTo::All)?;
        Ok(vec![ScalarValue::try_from_array(&values, 0)?, ScalarValue::try_from_array(&times, 0)?])
    }

    fn size(&self) -> usize {
        self.groups.size() + self.zeros.capacity() * size_of::<usize>()
    }
}
