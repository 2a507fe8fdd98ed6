//! What a plugin hands back, as Arrow arrays: nothing is believed, everything is checked, and
//! what holds is taken over without a copy.

use std::io::{Cursor, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, PrimitiveArray, StringArray, make_array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Field, Float32Type, Float64Type, Int32Type,
    Int64Type, Schema, UInt64Type,
};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::wire;
use super::wire::ValuesResult as Values;

/// A column of so many rows and of this field's type.
///
/// # Errors
/// What is wrong with it, as a phrase.
pub(super) fn column(
    column: wire::ColumnResult,
    field: &Field,
    rows: usize,
) -> Result<ArrayRef, String> {
    let nulls = column.validity.map(|bits| nulls(bits, rows)).transpose()?.flatten();
    let data_type = field.data_type();
    let array: ArrayRef = match (data_type, column.values) {
        (DataType::Boolean, Values::Bits(bits)) => {
            let bits = bitmap(bits, rows, "bits")?;
            Arc::new(BooleanArray::new(bits, nulls))
        }
        (DataType::Int32, Values::Int32(values)) => plain::<Int32Type>(values, nulls, rows)?,
        (DataType::Date32, Values::Int32(values)) => plain::<Date32Type>(values, nulls, rows)?,
        (DataType::Int64, Values::Int64(values)) => plain::<Int64Type>(values, nulls, rows)?,
        (DataType::UInt64, Values::Uint64(values)) => plain::<UInt64Type>(values, nulls, rows)?,
        (DataType::Float32, Values::Float32(values)) => plain::<Float32Type>(values, nulls, rows)?,
        (DataType::Float64, Values::Float64(values)) => plain::<Float64Type>(values, nulls, rows)?,
        (DataType::Timestamp(_, _) | DataType::Duration(_), Values::Int64(values)) => {
            let longs = plain::<Int64Type>(values, nulls, rows)?;
            let typed = longs.to_data().into_builder().data_type(data_type.clone());
            make_array(typed.build().map_err(|error| error.to_string())?)
        }
        (DataType::Utf8, Values::Bytes(bytes)) => {
            let (offsets, data) = texts(bytes, rows)?;
            let array = StringArray::try_new(offsets, data, nulls);
            Arc::new(array.map_err(|error| format!("text that is not UTF-8: {error}"))?)
        }
        (DataType::Binary, Values::Bytes(bytes)) => {
            let (offsets, data) = texts(bytes, rows)?;
            let array = BinaryArray::try_new(offsets, data, nulls);
            Arc::new(array.map_err(|error| error.to_string())?)
        }
        (other, Values::ArrowIpc(message)) if travels_framed(other) => {
            framed(&message, field, rows)?
        }
        (wanted, found) => {
            return Err(format!("values of kind {} for a column of {wanted}", kind(&found)));
        }
    };
    if !field.is_nullable() && array.null_count() > 0 {
        return Err("a null in a column that was declared without".to_owned());
    }
    Ok(array)
}

/// Whether values of this type travel as Arrow IPC: all but those that the interface lists.
pub(super) fn travels_framed(data_type: &DataType) -> bool {
    !matches!(
        data_type,
        DataType::Boolean
            | DataType::Int32
            | DataType::Int64
            | DataType::UInt64
            | DataType::Float32
            | DataType::Float64
            | DataType::Utf8
            | DataType::Binary
            | DataType::Date32
            | DataType::Timestamp(_, _)
            | DataType::Duration(_)
    )
}

fn kind(values: &Values) -> &'static str {
    match values {
        Values::Bits(_) => "bits",
        Values::Int32(_) => "int32",
        Values::Int64(_) => "int64",
        Values::Uint64(_) => "uint64",
        Values::Float32(_) => "float32",
        Values::Float64(_) => "float64",
        Values::Bytes(_) => "bytes",
        Values::ArrowIpc(_) => "arrow-ipc",
    }
}

fn counted(what: &str, found: usize, wanted: usize) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("{found} {what} instead of {wanted}")),
    }
}

fn bitmap(bits: Vec<u8>, rows: usize, what: &str) -> Result<BooleanBuffer, String> {
    counted(&format!("bytes of {what}"), bits.len(), rows.div_ceil(8))?;
    Ok(BooleanBuffer::new(Buffer::from_vec(bits), 0, rows))
}

/// The nulls, where there are any.
fn nulls(bits: Vec<u8>, rows: usize) -> Result<Option<NullBuffer>, String> {
    let nulls = NullBuffer::new(bitmap(bits, rows, "validity")?);
    Ok((nulls.null_count() > 0).then_some(nulls))
}

fn plain<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    nulls: Option<NullBuffer>,
    rows: usize,
) -> Result<ArrayRef, String> {
    counted("rows", values.len(), rows)?;
    Ok(Arc::new(PrimitiveArray::<T>::new(ScalarBuffer::from(values), nulls)))
}

/// Offsets that begin at 0, never fall and stay within the data.
fn texts(bytes: wire::VarBytesResult, rows: usize) -> Result<(OffsetBuffer<i32>, Buffer), String> {
    let offsets = bytes.offsets;
    counted("offsets", offsets.len(), rows + 1)?;
    let last = offsets.last().copied().unwrap_or(0);
    if offsets.first() != Some(&0) {
        return Err("offsets that do not begin at 0".to_owned());
    }
    // Folded without a branch, so that it is done for many rows at once.
    let falls = offsets.windows(2).fold(false, |falls, pair| falls | (pair[1] < pair[0]));
    if falls {
        return Err("offsets that fall".to_owned());
    }
    if last as usize > bytes.data.len() {
        return Err(format!("an offset of {last} into {} bytes", bytes.data.len()));
    }
    if i32::try_from(last).is_err() {
        return Err(format!("{last} bytes of text in one column"));
    }
    let offsets: ScalarBuffer<i32> = Buffer::from_vec(offsets).into();
    let data = Buffer::from_vec(bytes.data).slice_with_length(0, last as usize);
    Ok((OffsetBuffer::new(offsets), data))
}

/// The column of a record batch message. The reader checks what it reads; where it gives up
/// in a panic, the message is as bad.
fn framed(message: &[u8], field: &Field, rows: usize) -> Result<ArrayRef, String> {
    let read = || read_frame(message, field);
    let array = catch_unwind(AssertUnwindSafe(read))
        .map_err(|_| "an Arrow message that cannot be read".to_owned())??;
    counted("rows", array.len(), rows)?;
    array.to_data().validate_full().map_err(|error| format!("a bad Arrow message: {error}"))?;
    Ok(array)
}

fn read_frame(message: &[u8], field: &Field) -> Result<ArrayRef, String> {
    let fail = |error: arrow::error::ArrowError| format!("a bad Arrow message: {error}");
    refuse_compressed(message)?;
    let field = Field::new("", field.data_type().clone(), true);
    let schema = Schema::new(vec![field]);
    let writer = StreamWriter::try_new(Vec::new(), &schema).map_err(fail)?;
    let stream = writer.get_ref().as_slice().chain(message);
    let mut reader = StreamReader::try_new(stream, None).map_err(fail)?;
    let batch = reader.next().ok_or("no Arrow message")?.map_err(fail)?;
    if reader.next().is_some() {
        return Err("more than one Arrow message".to_owned());
    }
    Ok(batch.column(0).clone())
}

/// A compressed message could unfold to any size.
fn refuse_compressed(message: &[u8]) -> Result<(), String> {
    let fail = || "an Arrow message without its frame".to_owned();
    let mut head = Cursor::new(message);
    let mut word = [0; 4];
    head.read_exact(&mut word).map_err(|_| fail())?;
    if word == [0xff; 4] {
        head.read_exact(&mut word).map_err(|_| fail())?;
    }
    let length = u32::from_le_bytes(word) as usize;
    let start = usize::try_from(head.position()).map_err(|_| fail())?;
    let metadata = start.checked_add(length).and_then(|end| message.get(start..end));
    let message = arrow::ipc::root_as_message(metadata.ok_or_else(fail)?)
        .map_err(|error| format!("a bad Arrow message: {error}"))?;
    let batch = message.header_as_record_batch().ok_or("no record batch in an Arrow message")?;
    match batch.compression() {
        Some(_) => Err("a compressed Arrow message".to_owned()),
        None => Ok(()),
    }
}
