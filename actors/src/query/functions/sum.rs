//! `sum` of whole numbers that is exact, and fails where the result does not fit.
//!
//! The engine adds modulo 2⁶⁴. Here the same accumulators run over numbers of 128 bits, which
//! no number of rows can exceed, and only the result is brought back into 64: whether a query
//! fails does not depend on the order in which its parts were added.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray,
};
use datafusion::arrow::compute::try_unary;
use datafusion::arrow::datatypes::{
    DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type,
};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{Result, ScalarValue, internal_err};
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, ReversedUDAF,
    SetMonotonicity, Signature,
};

use super::arithmetic::out_of_range;

/// The type that is added in.
const WIDE: DataType = DataType::Decimal128(38, 0);

/// The aggregate.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Sum {
    inner: Arc<AggregateUDF>,
}

impl Sum {
    pub(super) fn new() -> Self {
        Sum { inner: sum_udaf() }
    }
}

/// Whether sums of a type are added in a wider one.
fn widened(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Int64 | DataType::UInt64)
}

fn wide_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), WIDE, true))
}

impl AggregateUDFImpl for Sum {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        if !widened(args.return_field.data_type()) {
            return self.inner.state_fields(args);
        }
        let return_field = wide_field(&args.return_field);
        self.inner.state_fields(StateFieldsArgs { return_field, ..args })
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let narrow = args.return_field.data_type().clone();
        if !widened(&narrow) {
            return self.inner.accumulator(args);
        }
        let return_field = wide_field(&args.return_field);
        let inner = self.inner.accumulator(AccumulatorArgs { return_field, ..args })?;
        Ok(Box::new(Wide { inner, narrow }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.inner.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let narrow = args.return_field.data_type().clone();
        if !widened(&narrow) {
            return self.inner.create_groups_accumulator(args);
        }
        let return_field = wide_field(&args.return_field);
        let args = AccumulatorArgs { return_field, ..args };
        Ok(Box::new(WideGroups { inner: self.inner.create_groups_accumulator(args)?, narrow }))
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let narrow = args.return_field.data_type().clone();
        // Of distinct values the engine slides over 64 bits only.
        if !widened(&narrow) || args.is_distinct {
            return self.inner.create_sliding_accumulator(args);
        }
        let return_field = wide_field(&args.return_field);
        let args = AccumulatorArgs { return_field, ..args };
        Ok(Box::new(Wide { inner: self.inner.create_sliding_accumulator(args)?, narrow }))
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.inner.reverse_udf()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.inner.order_sensitivity()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.inner.inner().set_monotonicity(data_type)
    }
}

fn widen(values: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
    let widen = |array: &ArrayRef| -> Result<ArrayRef> {
        let wide = match array.data_type() {
            DataType::Int64 => wide(array.as_primitive::<Int64Type>()),
            DataType::UInt64 => wide(array.as_primitive::<UInt64Type>()),
            other => return internal_err!("sum of {other} in 128 bits"),
        };
        Ok(Arc::new(wide.with_precision_and_scale(38, 0)?))
    };
    values.iter().map(widen).collect()
}

fn wide<T: ArrowPrimitiveType<Native: Into<i128>>>(
    array: &PrimitiveArray<T>,
) -> PrimitiveArray<Decimal128Type> {
    PrimitiveArray::from_unary(array, Into::into)
}

/// Sums of 128 bits as the type that they have in SQL.
fn narrowed(array: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    fn narrow<T: ArrowPrimitiveType<Native: TryFrom<i128>>>(
        array: &ArrayRef,
    ) -> Result<ArrayRef, ArrowError> {
        let overflow = |_| ArrowError::ArithmeticOverflow(String::new());
        let fit = |value: i128| T::Native::try_from(value).map_err(overflow);
        let array = array.as_primitive::<Decimal128Type>();
        Ok(Arc::new(try_unary::<_, _, T>(array, fit)?))
    }
    let array = match data_type {
        DataType::Int64 => narrow::<Int64Type>(array),
        DataType::UInt64 => narrow::<UInt64Type>(array),
        other => return internal_err!("sum of {other} in 128 bits"),
    };
    array.map_err(|_| out_of_range(data_type))
}

/// One sum.
#[derive(Debug)]
struct Wide {
    inner: Box<dyn Accumulator>,
    narrow: DataType,
}

impl Accumulator for Wide {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.update_batch(&widen(values)?)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.inner.retract_batch(&widen(values)?)
    }

    fn supports_retract_batch(&self) -> bool {
        self.inner.supports_retract_batch()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.inner.merge_batch(states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = narrowed(&self.inner.evaluate()?.to_array()?, &self.narrow)?;
        ScalarValue::try_from_array(&sum, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.inner.state()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.inner.size()
    }
}

/// A sum for each group.
struct WideGroups {
    inner: Box<dyn GroupsAccumulator>,
    narrow: DataType,
}

impl GroupsAccumulator for WideGroups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.inner.update_batch(&widen(values)?, groups, filter, total)
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        narrowed(&self.inner.evaluate(emit)?, &self.narrow)
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.inner.merge_batch(states, groups, total)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(&widen(values)?, filter)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}
