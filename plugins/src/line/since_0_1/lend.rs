//! Arrow's buffers as the interface's columns: lent where they lie, without a copy first.
//!
//! Only a bitmap that begins within a byte, and text that does not begin at the start of its
//! buffer, are moved. Types outside of the interface's list are framed as Arrow IPC.

use arrow::array::{Array, ArrayRef, AsArray, GenericByteArray, RecordBatch};
use arrow::buffer::{BooleanBuffer, Buffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, BinaryType, ByteArrayType, DataType, Date32Type, Field, Float32Type,
    Float64Type, Int32Type, Int64Type, Schema, UInt64Type, Utf8Type,
};
use arrow::ipc::writer::StreamWriter;
use kymo_kernel::{Error, Result};

use super::super::Argument;
use super::wire;

/// A column whose buffers are at hand.
pub(super) struct Lent {
    values: Values,
    validity: Option<Buffer>,
}

enum Values {
    Bits(Buffer),
    Int32(ScalarBuffer<i32>),
    Int64(ScalarBuffer<i64>),
    Uint64(ScalarBuffer<u64>),
    Float32(ScalarBuffer<f32>),
    Float64(ScalarBuffer<f64>),
    Bytes { offsets: ScalarBuffer<u32>, data: Buffer },
    ArrowIpc(Vec<u8>),
}

/// The columns of these arrays, with their validity.
///
/// # Errors
/// [`kymo_kernel::Code::Internal`] if an array cannot be framed.
pub(super) fn columns(arrays: &[ArrayRef]) -> Result<Vec<Lent>> {
    arrays.iter().map(Lent::of).collect()
}

/// The same for the arguments of a call, each told whether it is constant.
///
/// # Errors
/// [`kymo_kernel::Code::Internal`] if an array cannot be framed.
pub(super) fn arguments(arguments: &[Argument]) -> Result<Vec<(bool, Lent)>> {
    let lend = |argument: &Argument| {
        Ok((matches!(argument, Argument::Constant(_)), Lent::of(argument.array())?))
    };
    arguments.iter().map(lend).collect()
}

/// Columns as the bindings take them.
pub(super) fn as_columns(lent: &[Lent]) -> Vec<wire::ColumnParam<'_>> {
    lent.iter().map(Lent::column).collect()
}

/// Arguments as the bindings take them.
pub(super) fn as_arguments(lent: &[(bool, Lent)]) -> Vec<wire::Argument<'_>> {
    lent.iter()
        .map(|(constant, lent)| match constant {
            true => wire::Argument::Constant(lent.column()),
            false => wire::Argument::Column(lent.column()),
        })
        .collect()
}

impl Lent {
    fn of(array: &ArrayRef) -> Result<Lent> {
        let values = match array.data_type() {
            DataType::Boolean => Values::Bits(bits(array.as_boolean().values())),
            DataType::Int32 => Values::Int32(plain::<Int32Type>(array)),
            DataType::Date32 => Values::Int32(plain::<Date32Type>(array)),
            DataType::Int64 => Values::Int64(plain::<Int64Type>(array)),
            DataType::UInt64 => Values::Uint64(plain::<UInt64Type>(array)),
            DataType::Float32 => Values::Float32(plain::<Float32Type>(array)),
            DataType::Float64 => Values::Float64(plain::<Float64Type>(array)),
            DataType::Timestamp(_, _) | DataType::Duration(_) => Values::Int64(longs(array)),
            DataType::Utf8 => bytes(array.as_bytes::<Utf8Type>()),
            DataType::Binary => bytes(array.as_bytes::<BinaryType>()),
            _ => Values::ArrowIpc(framed(array)?),
        };
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        let framed = matches!(values, Values::ArrowIpc(_));
        let validity = nulls.filter(|_| !framed).map(|nulls| bits(nulls.inner()));
        Ok(Lent { values, validity })
    }

    fn column(&self) -> wire::ColumnParam<'_> {
        let values = match &self.values {
            Values::Bits(bits) => wire::ValuesParam::Bits(bits),
            Values::Int32(values) => wire::ValuesParam::Int32(values),
            Values::Int64(values) => wire::ValuesParam::Int64(values),
            Values::Uint64(values) => wire::ValuesParam::Uint64(values),
            Values::Float32(values) => wire::ValuesParam::Float32(values),
            Values::Float64(values) => wire::ValuesParam::Float64(values),
            Values::Bytes { offsets, data } => {
                wire::ValuesParam::Bytes(wire::VarBytesParam { offsets, data })
            }
            Values::ArrowIpc(message) => wire::ValuesParam::ArrowIpc(message),
        };
        wire::ColumnParam { values, validity: self.validity.as_deref() }
    }
}

fn plain<T: ArrowPrimitiveType>(array: &ArrayRef) -> ScalarBuffer<T::Native> {
    array.as_primitive::<T>().values().clone()
}

/// The values of any type that is a 64-bit integer underneath.
fn longs(array: &ArrayRef) -> ScalarBuffer<i64> {
    let data = array.to_data();
    ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len())
}

/// Bits from the first one on.
fn bits(bits: &BooleanBuffer) -> Buffer {
    match bits.offset() % 8 {
        0 => bits.inner().slice_with_length(bits.offset() / 8, bits.len().div_ceil(8)),
        _ => bits.sliced(),
    }
}

/// Offsets from 0 on, and the bytes that they speak of.
fn bytes<T: ByteArrayType<Offset = i32>>(array: &GenericByteArray<T>) -> Values {
    let offsets = array.value_offsets();
    let (first, last) = match (offsets.first(), offsets.last()) {
        (Some(first), Some(last)) => (*first, *last),
        _ => (0, 0),
    };
    // Offsets are never negative, so they are the same numbers without a sign.
    let data = array.values().slice_with_length(first as usize, (last - first) as usize);
    let offsets = match first {
        0 => array.offsets().inner().inner().clone().into(),
        _ => offsets.iter().map(|each| (each - first) as u32).collect(),
    };
    Values::Bytes { offsets, data }
}

/// A record batch message with one column.
fn framed(array: &ArrayRef) -> Result<Vec<u8>> {
    let fail = |error| Error::internal(format!("frame a column for a plugin: {error}"));
    let field = Field::new("", array.data_type().clone(), true);
    let schema = std::sync::Arc::new(Schema::new(vec![field]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array.clone()]).map_err(fail)?;
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).map_err(fail)?;
    let header = writer.get_ref().len();
    writer.write(&batch).map_err(fail)?;
    Ok(writer.get_ref()[header..].to_vec())
}
