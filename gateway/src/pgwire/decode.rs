//! From a client's parameters, text or binary, to Arrow arrays of one element.
//!
//! A parameter's PostgreSQL type is the one that the client named, or else the one that
//! planning found out; a type that is not known here is taken as text, which the planner then
//! casts. Values are read by the rules of PostgreSQL's input and receive functions.

mod binary;
mod text;

pub(super) use text::utf8;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int16Array, Int32Array, Int64Array, IntervalMonthDayNanoArray, StringArray,
    Time64MicrosecondArray, TimestampNanosecondArray, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options, concat};
use arrow::datatypes::{DataType, Field, IntervalMonthDayNano};
use kymo_kernel::{Code, Error, Result};

use super::encode::Format;
use super::types::{self, oid};

/// A value as it was sent.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Int2(i16),
    Int4(i32),
    Int8(i64),
    Float4(f32),
    Float8(f64),
    Text(String),
    Bytes(Vec<u8>),
    /// Days since 1970-01-01.
    Date(i32),
    /// Microseconds since midnight.
    Time(i64),
    /// Nanoseconds since 1970, and whether the type has a zone.
    Instant(i64, bool),
    Interval(IntervalMonthDayNano),
    /// Unscaled value and scale.
    Numeric(i128, i8),
}

/// Reads a scalar of a type from text.
///
/// # Errors
/// As [`parameter`].
pub(super) fn text_value(oid: u32, text: &str) -> Result<Value> {
    text::value(oid, text)
}

/// Reads a scalar of a type from its binary form.
///
/// # Errors
/// As [`parameter`].
pub(super) fn binary_value(oid: u32, bytes: &[u8]) -> Result<Value> {
    binary::value(oid, bytes)
}

/// Reads the parameter `$number`.
///
/// # Errors
/// `invalid_cast` for text that is no such value, `invalid_parameter` for binary of the wrong
/// length, `out_of_range` for a value that its target cannot hold.
pub fn parameter(
    number: usize,
    oid: u32,
    format: Format,
    bytes: Option<&[u8]>,
    target: &DataType,
) -> Result<ArrayRef> {
    let Some(bytes) = bytes else {
        return Ok(new_null_array(target, 1));
    };
    let array = array(oid, format, bytes).map_err(|error| error.context(place(number)))?;
    if array.data_type() == target || *target == DataType::Null {
        return Ok(array);
    }
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&array, target, &options).map_err(|error| {
        Error::new(Code::OutOfRange, format!("value as {target}: {error}")).context(place(number))
    })
}

fn place(number: usize) -> String {
    format!("parameter ${number}")
}

/// Reads a value of a type into an array of one element.
///
/// # Errors
/// As [`parameter`].
pub fn array(oid: u32, format: Format, bytes: &[u8]) -> Result<ArrayRef> {
    let Some(element) = types::element_of(oid) else {
        return scalar(oid, format, bytes);
    };
    let elements = match format {
        Format::Binary => binary::elements(bytes)?,
        Format::Text => text::elements(text::utf8(bytes)?)?
            .into_iter()
            .map(|each| each.map(String::into_bytes))
            .collect(),
    };
    let empty = types::to_arrow(element).unwrap_or(DataType::Utf8);
    let mut arrays = Vec::with_capacity(elements.len());
    for each in &elements {
        arrays.push(match each {
            Some(bytes) => scalar(element, format, bytes)?,
            None => new_null_array(&empty, 1),
        });
    }
    let values = list_values(&arrays, &empty)?;
    let length = values.len();
    let field = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    let list =
        arrow::array::ListArray::try_new(field, OffsetBuffer::from_lengths([length]), values, None);
    list.map(|list| Arc::new(list) as ArrayRef).map_err(|error| invalid(error.to_string()))
}

/// Joins elements; numerics of different scales meet in text.
fn list_values(arrays: &[ArrayRef], empty: &DataType) -> Result<ArrayRef> {
    let Some(first) = arrays.first() else {
        return Ok(new_null_array(empty, 0));
    };
    let same = arrays.iter().all(|each| each.data_type() == first.data_type());
    let joined = if same {
        concat(&arrays.iter().map(AsRef::as_ref).collect::<Vec<_>>())
    } else {
        let texts: Result<Vec<_>, _> =
            arrays.iter().map(|each| arrow::compute::cast(each, &DataType::Utf8)).collect();
        texts.and_then(|texts| concat(&texts.iter().map(AsRef::as_ref).collect::<Vec<_>>()))
    };
    joined.map_err(|error| invalid(error.to_string()))
}

fn scalar(oid: u32, format: Format, bytes: &[u8]) -> Result<ArrayRef> {
    let value = match format {
        Format::Text => text::value(oid, text::utf8(bytes)?)?,
        Format::Binary => binary::value(oid, bytes)?,
    };
    Ok(match value {
        Value::Bool(value) => Arc::new(BooleanArray::from(vec![value])),
        Value::Int2(value) => Arc::new(Int16Array::from(vec![value])),
        Value::Int4(value) => Arc::new(Int32Array::from(vec![value])),
        Value::Int8(value) => Arc::new(Int64Array::from(vec![value])),
        Value::Float4(value) => Arc::new(Float32Array::from(vec![value])),
        Value::Float8(value) => Arc::new(Float64Array::from(vec![value])),
        Value::Text(value) => Arc::new(StringArray::from(vec![value])),
        Value::Bytes(value) => Arc::new(BinaryArray::from_vec(vec![&value])),
        Value::Date(days) => Arc::new(Date32Array::from(vec![days])),
        Value::Time(micros) => Arc::new(Time64MicrosecondArray::from(vec![micros])),
        Value::Instant(ns, false) => Arc::new(TimestampNanosecondArray::from(vec![ns])),
        Value::Instant(ns, true) => {
            Arc::new(TimestampNanosecondArray::from(vec![ns]).with_timezone("+00:00"))
        }
        Value::Interval(value) => Arc::new(IntervalMonthDayNanoArray::from(vec![value])),
        Value::Numeric(value, scale) => {
            let array = Decimal128Array::from(vec![value]);
            Arc::new(
                array.with_precision_and_scale(38, scale).map_err(|error| {
                    Error::new(Code::OutOfRange, format!("numeric value: {error}"))
                })?,
            )
        }
    })
}

fn invalid(context: impl Into<String>) -> Error {
    Error::new(Code::InvalidParameter, context)
}

fn type_name(oid: u32) -> &'static str {
    match oid {
        oid::BOOL => "boolean",
        oid::INT2 => "smallint",
        oid::INT4 => "integer",
        oid::INT8 => "bigint",
        oid::FLOAT4 => "real",
        oid::FLOAT8 => "double precision",
        oid::NUMERIC => "numeric",
        oid::BYTEA => "bytea",
        oid::DATE => "date",
        oid::TIME => "time",
        oid::TIMESTAMP => "timestamp",
        oid::TIMESTAMPTZ => "timestamp with time zone",
        oid::INTERVAL => "interval",
        oid::UUID => "uuid",
        _ => "text",
    }
}

#[cfg(test)]
mod tests;
