//! Operators and casts that fail or round where the engine's own wrap around or cut off.
//!
//! The engine adds whole numbers modulo 2⁶⁴ and casts 1.7 to 1. PostgreSQL's users expect an
//! error and 2. Texts put together by `||` are bounded like those of functions. These
//! functions have no names that SQL could use: the analyser puts them where operators stand.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::kernels::concat_elements::concat_elements_dyn;
use datafusion::arrow::compute::kernels::numeric::{add, mul, neg, sub};
use datafusion::arrow::compute::{cast, unary};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float32Type, Float64Type};
use datafusion::arrow::error::ArrowError;
use datafusion::common::{DataFusionError, Result, ScalarValue, internal_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::physical_expr_common::datum::apply;
use kymo_kernel::{Code, Error};

use super::bounded::{Bounds, check};
use super::growth::Growth;
use crate::query::pgtypes;

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// `a + b` of whole numbers.
    Add,
    /// `a - b` of whole numbers.
    Subtract,
    /// `a * b` of whole numbers.
    Multiply,
    /// `- a` of a whole number.
    Negate,
    /// `a || b` of texts.
    Concatenate(Bounds),
    /// The whole number that a cast of a fraction gives; halves go to the even one.
    RoundEven,
    /// The same for exact fractions; halves go away from zero.
    RoundAway,
}

impl Operation {
    fn symbol(self) -> &'static str {
        match self {
            Operation::Add => "+",
            Operation::Subtract | Operation::Negate => "-",
            Operation::Multiply => "*",
            Operation::Concatenate(_) => "||",
            Operation::RoundEven | Operation::RoundAway => "round",
        }
    }

    /// The expression that computes it.
    pub(crate) fn of(self, arguments: Vec<Expr>) -> Expr {
        let signature = Signature::any(arguments.len(), Volatility::Immutable);
        ScalarUDF::from(Operator { operation: self, signature }).call(arguments)
    }
}

/// An operation as a function.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Operator {
    operation: Operation,
    signature: Signature,
}

impl ScalarUDFImpl for Operator {
    fn name(&self) -> &str {
        self.operation.symbol()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        // As the engine calls the expression that stood here.
        Ok(match (self.operation, args) {
            (Operation::RoundEven | Operation::RoundAway, [value]) => {
                value.schema_name().to_string()
            }
            (operation, [left, right]) => {
                format!("{} {} {}", left.schema_name(), operation.symbol(), right.schema_name())
            }
            (operation, [value]) => format!("({} {})", operation.symbol(), value.schema_name()),
            _ => return internal_err!("an operator of {} arguments", args.len()),
        })
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match types.first() {
            Some(data_type) => Ok(data_type.clone()),
            None => internal_err!("an operator without arguments"),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let Some(first) = args.arg_fields.first() else {
            return internal_err!("an operator without arguments");
        };
        let nullable = args.arg_fields.iter().any(|field| field.is_nullable());
        Ok(Arc::new(Field::new(self.name(), first.data_type().clone(), nullable)))
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match (self.operation, args.args.as_slice()) {
            (Operation::Add, [left, right]) => checked(apply(left, right, add), left),
            (Operation::Subtract, [left, right]) => checked(apply(left, right, sub), left),
            (Operation::Multiply, [left, right]) => checked(apply(left, right, mul), left),
            (Operation::Negate, [value]) => {
                let negated = each(value, |array| neg(array.as_ref()).map_err(Into::into));
                checked(negated, value)
            }
            (Operation::Concatenate(bounds), [left, right]) => {
                check("||", Growth::Joined(1), bounds, &args.args, args.number_rows)?;
                concatenate(left, right, args.number_rows)
            }
            (Operation::RoundEven, [value]) => each(value, round_even),
            (Operation::RoundAway, [value]) => each(value, round_away),
            _ => internal_err!("{} of {} arguments", self.name(), args.args.len()),
        }
    }
}

/// Says in PostgreSQL's words that a number does not fit its type.
fn checked(result: Result<ColumnarValue>, argument: &ColumnarValue) -> Result<ColumnarValue> {
    result.map_err(|error| match &error {
        DataFusionError::ArrowError(inner, _)
            if matches!(inner.as_ref(), ArrowError::ArithmeticOverflow(_)) =>
        {
            out_of_range(&argument.data_type())
        }
        _ => error,
    })
}

/// The error of a result that its type cannot hold.
pub(super) fn out_of_range(data_type: &DataType) -> DataFusionError {
    let name = match data_type {
        DataType::UInt64 => "bigint unsigned",
        other => pgtypes::name(other),
    };
    let error = Error::new(Code::OutOfRange, format!("{name} out of range"))
        .with_hint("cast to double precision or numeric before computing");
    DataFusionError::External(Box::new(error))
}

/// Computes over an array, or over the one value of a constant.
fn each(
    value: &ColumnarValue,
    compute: impl Fn(&ArrayRef) -> Result<ArrayRef>,
) -> Result<ColumnarValue> {
    Ok(match value {
        ColumnarValue::Array(array) => ColumnarValue::Array(compute(array)?),
        ColumnarValue::Scalar(scalar) => {
            let result = compute(&scalar.to_array()?)?;
            ColumnarValue::Scalar(ScalarValue::try_from_array(&result, 0)?)
        }
    })
}

fn concatenate(left: &ColumnarValue, right: &ColumnarValue, rows: usize) -> Result<ColumnarValue> {
    if let (ColumnarValue::Scalar(left), ColumnarValue::Scalar(right)) = (left, right) {
        let joined = concat_elements_dyn(&left.to_array()?, &right.to_array()?)?;
        return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&joined, 0)?));
    }
    let joined = concat_elements_dyn(&left.to_array(rows)?, &right.to_array(rows)?)?;
    Ok(ColumnarValue::Array(joined))
}

fn round_even(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Float64 => {
            Arc::new(unary::<_, _, Float64Type>(array.as_primitive::<Float64Type>(), |value| {
                value.round_ties_even()
            }))
        }
        DataType::Float32 => {
            Arc::new(unary::<_, _, Float32Type>(array.as_primitive::<Float32Type>(), |value| {
                value.round_ties_even()
            }))
        }
        DataType::Float16 => {
            let wide = cast(array, &DataType::Float32)?;
            cast(&round_even(&wide)?, &DataType::Float16)?
        }
        _ => return round_away(array),
    })
}

fn round_away(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Float64 => {
            Arc::new(unary::<_, _, Float64Type>(array.as_primitive::<Float64Type>(), f64::round))
        }
        // Narrowing the scale rounds; widening it again gives the type that was promised.
        DataType::Decimal32(precision, _) => {
            cast(&cast(array, &DataType::Decimal32(*precision, 0))?, array.data_type())?
        }
        DataType::Decimal64(precision, _) => {
            cast(&cast(array, &DataType::Decimal64(*precision, 0))?, array.data_type())?
        }
        DataType::Decimal128(precision, _) => {
            cast(&cast(array, &DataType::Decimal128(*precision, 0))?, array.data_type())?
        }
        DataType::Decimal256(precision, _) => {
            cast(&cast(array, &DataType::Decimal256(*precision, 0))?, array.data_type())?
        }
        DataType::Float32 => {
            Arc::new(unary::<_, _, Float32Type>(array.as_primitive::<Float32Type>(), f32::round))
        }
        other => return internal_err!("rounding of {other}"),
    })
}
