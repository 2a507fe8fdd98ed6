//! From Arrow columns to PostgreSQL rows: one writer a column, chosen once a chunk.
//!
//! A writer is a closure over the typed array, so that a cell costs one indirect call and no
//! downcast; a dictionary is read through its keys, never unpacked. Rows go straight into the
//! socket's buffer.
//!
//! Instants have nanoseconds in Kymo and microseconds in PostgreSQL: they are cut off towards
//! the past, which keeps their order and never makes one lie in the future.

mod list;
mod number;
mod time;

pub(super) use time::{EPOCH_DAYS, EPOCH_MICROS};

use std::sync::LazyLock;

use arrow::array::timezone::Tz;
use arrow::array::types::{
    Date32Type, Date64Type, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type,
    DurationMicrosecondType, DurationMillisecondType, DurationNanosecondType, DurationSecondType,
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    IntervalDayTimeType, IntervalMonthDayNanoType, IntervalYearMonthType, Time32MillisecondType,
    Time32SecondType, Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, FieldRef, IntervalUnit, TimeUnit};
use arrow::json::writer::{EncoderOptions, make_encoder};
use bytes::{BufMut, BytesMut};
use kymo_kernel::{Code, Error, Result};

use super::types;

/// How the values of a column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// As people read them.
    Text,
    /// As PostgreSQL's send functions write them.
    Binary,
}

impl Format {
    /// The format of a protocol code; `None` for one that does not exist.
    #[must_use]
    pub fn of_code(code: i16) -> Option<Format> {
        match code {
            0 => Some(Format::Text),
            1 => Some(Format::Binary),
            _ => None,
        }
    }

    /// The protocol's code.
    #[must_use]
    pub fn code(self) -> i16 {
        match self {
            Format::Text => 0,
            Format::Binary => 1,
        }
    }
}

/// What a session has chosen about text output.
#[derive(Debug, Clone, Default)]
pub struct Style {
    /// The zone that `timestamptz` is shown in; UTC where absent.
    pub zone: Option<Tz>,
}

/// Writes the value of a row, which is not NULL, without its length.
pub(super) type Writer<'a> = Box<dyn FnMut(usize, &mut BytesMut) + 'a>;

/// The cells of one column of one batch.
pub(super) struct Cells<'a> {
    nulls: Option<NullBuffer>,
    write: Writer<'a>,
}

impl<'a> Cells<'a> {
    /// Chooses the writer of a column.
    ///
    /// # Errors
    /// `unsupported` for an Arrow type that has no PostgreSQL form.
    pub(super) fn new(
        field: &'a FieldRef,
        array: &'a ArrayRef,
        format: Format,
        style: &'a Style,
    ) -> Result<Self> {
        let write = writer(field, array, format, style)?;
        Ok(Cells { nulls: array.logical_nulls(), write })
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    pub(super) fn write(&mut self, row: usize, out: &mut BytesMut) {
        (self.write)(row, out);
    }
}

/// Writes rows `from..to` of a batch as DataRow messages, stopping early once `out` holds
/// `full` bytes; returns the first row that was not written.
///
/// # Errors
/// `unsupported` for a column without a PostgreSQL form, `invalid_input` where the batch has
/// other columns than were described.
pub fn data_rows(
    batch: &RecordBatch,
    formats: &[Format],
    style: &Style,
    rows: std::ops::Range<usize>,
    full: usize,
    out: &mut BytesMut,
) -> Result<usize> {
    if batch.num_columns() != formats.len() {
        return Err(Error::internal(format!(
            "result has {} columns where {} were described",
            batch.num_columns(),
            formats.len()
        )));
    }
    let mut columns = columns(batch, formats, style)?;
    let count = i16::try_from(columns.len()).unwrap_or(i16::MAX);
    let mut row = rows.start;
    while row < rows.end && out.len() < full {
        out.put_u8(b'D');
        sized(out, |out| {
            out.put_i16(count);
            for cells in &mut columns {
                if cells.is_null(row) {
                    out.put_i32(-1);
                } else {
                    value(out, |out| cells.write(row, out));
                }
            }
        });
        row += 1;
    }
    Ok(row)
}

/// The cells of every column.
pub(super) fn columns<'a>(
    batch: &'a RecordBatch,
    formats: &[Format],
    style: &'a Style,
) -> Result<Vec<Cells<'a>>> {
    let fields = batch.schema_ref().fields();
    let wanted = formats.iter().zip(fields).zip(batch.columns());
    wanted.map(|((format, field), array)| Cells::new(field, array, *format, style)).collect()
}

/// A length that counts itself, then what `body` writes.
pub(super) fn sized(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    prefixed(out, 0, body);
}

/// A length that does not count itself, then what `body` writes.
pub(super) fn value(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    prefixed(out, 4, body);
}

fn prefixed(out: &mut BytesMut, without: usize, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = i32::try_from(out.len() - start - without).unwrap_or(i32::MAX);
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

fn typed<T: ArrowPrimitiveType>(array: &dyn Array) -> Result<&arrow::array::PrimitiveArray<T>> {
    array.as_primitive_opt::<T>().ok_or_else(|| {
        Error::internal(format!("array of {} is not what its type says", array.data_type()))
    })
}

/// A writer for each value of a primitive type: one closure for text, one for binary.
macro_rules! primitive {
    ($array:expr, $format:expr, $type:ty, $text:expr, $binary:expr) => {{
        let array = typed::<$type>($array)?;
        match $format {
            Format::Text => Box::new(move |row, out: &mut BytesMut| $text(array.value(row), out)),
            Format::Binary => {
                Box::new(move |row, out: &mut BytesMut| $binary(array.value(row), out))
            }
        }
    }};
}

/// Writes plain bytes: text and `bytea` look the same in binary.
macro_rules! bytes {
    ($array:expr, $get:expr) => {{
        let array = $array;
        Box::new(move |row, out: &mut BytesMut| out.put_slice($get(array.value(row))))
    }};
}

/// Writes `bytea`.
macro_rules! bytea {
    ($array:expr, $format:expr) => {{
        let array = $array;
        match $format {
            Format::Binary => bytes!(array, |value| value),
            Format::Text => {
                Box::new(move |row, out: &mut BytesMut| number::hex(array.value(row), out))
            }
        }
    }};
}

pub(super) fn writer<'a>(
    field: &'a FieldRef,
    array: &'a ArrayRef,
    format: Format,
    style: &'a Style,
) -> Result<Writer<'a>> {
    use number as n;
    let array_ref = array;
    let array: &'a dyn Array = array.as_ref();
    Ok(match array.data_type() {
        DataType::Null => Box::new(|_, _| {}),
        DataType::Boolean => {
            let array = array.as_boolean();
            Box::new(move |row, out| n::boolean(array.value(row), format, out))
        }
        DataType::Int8 => {
            primitive!(array, format, Int8Type, n::integer, |v, out: &mut BytesMut| {
                out.put_i16(i16::from(v))
            })
        }
        DataType::UInt8 => {
            primitive!(array, format, UInt8Type, n::integer, |v, out: &mut BytesMut| out
                .put_i16(i16::from(v)))
        }
        DataType::Int16 => primitive!(array, format, Int16Type, n::integer, n::int2),
        DataType::UInt16 => {
            primitive!(array, format, UInt16Type, n::integer, |v, out: &mut BytesMut| out
                .put_i32(i32::from(v)))
        }
        DataType::Int32 => primitive!(array, format, Int32Type, n::integer, n::int4),
        DataType::UInt32 => {
            primitive!(array, format, UInt32Type, n::integer, |v, out: &mut BytesMut| out
                .put_i64(i64::from(v)))
        }
        DataType::Int64 => primitive!(array, format, Int64Type, n::integer, n::int8),
        DataType::UInt64 => {
            primitive!(array, format, UInt64Type, n::integer, |v, out: &mut BytesMut| {
                n::numeric_binary(v, 0, out)
            })
        }
        DataType::Float16 => primitive!(
            array,
            format,
            Float16Type,
            |v: <Float16Type as ArrowPrimitiveType>::Native, out: &mut BytesMut| n::float4_text(
                v.to_f32(),
                out
            ),
            |v: <Float16Type as ArrowPrimitiveType>::Native, out: &mut BytesMut| out
                .put_f32(v.to_f32())
        ),
        DataType::Float32 => {
            primitive!(array, format, Float32Type, n::float4_text, |v, out: &mut BytesMut| out
                .put_f32(v))
        }
        DataType::Float64 => {
            primitive!(array, format, Float64Type, n::float8_text, |v, out: &mut BytesMut| out
                .put_f64(v))
        }
        DataType::Decimal32(_, scale) => decimal::<Decimal32Type>(array, *scale, format)?,
        DataType::Decimal64(_, scale) => decimal::<Decimal64Type>(array, *scale, format)?,
        DataType::Decimal128(_, scale) => decimal::<Decimal128Type>(array, *scale, format)?,
        DataType::Decimal256(_, scale) => decimal::<Decimal256Type>(array, *scale, format)?,
        DataType::Utf8 => bytes!(array.as_string::<i32>(), str::as_bytes),
        DataType::LargeUtf8 => bytes!(array.as_string::<i64>(), str::as_bytes),
        DataType::Utf8View => bytes!(array.as_string_view(), str::as_bytes),
        DataType::Binary => bytea!(array.as_binary::<i32>(), format),
        DataType::LargeBinary => bytea!(array.as_binary::<i64>(), format),
        DataType::BinaryView => bytea!(array.as_binary_view(), format),
        DataType::FixedSizeBinary(_) => bytea!(array.as_fixed_size_binary(), format),
        DataType::Date32 => primitive!(array, format, Date32Type, time::date_text, time::date),
        DataType::Date64 => primitive!(
            array,
            format,
            Date64Type,
            |v: i64, out: &mut BytesMut| time::date_text(time::days_of_ms(v), out),
            |v: i64, out: &mut BytesMut| time::date(time::days_of_ms(v), out)
        ),
        DataType::Time32(_) | DataType::Time64(_) => clock(array, format)?,
        DataType::Timestamp(unit, zone) => instant(array, *unit, zone.is_some(), format, style)?,
        DataType::Duration(unit) => duration(array, *unit, format)?,
        DataType::Interval(unit) => interval(array, *unit, format)?,
        DataType::Dictionary(..) => dictionary(field, array, format, style)?,
        DataType::RunEndEncoded(_, values) => {
            let plain = arrow::compute::cast(array, values.data_type()).map_err(plain_error)?;
            return owned(values.clone(), plain, format, style);
        }
        DataType::List(_)
        | DataType::LargeList(_)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::FixedSizeList(..)
            if types::of_arrow(array.data_type()) != types::oid::JSON =>
        {
            list::writer(array_ref, format, style)?
        }
        DataType::List(_)
        | DataType::LargeList(_)
        | DataType::ListView(_)
        | DataType::LargeListView(_)
        | DataType::FixedSizeList(..)
        | DataType::Struct(_)
        | DataType::Map(..)
        | DataType::Union(..) => json(field, array)?,
    })
}

fn plain_error(error: arrow::error::ArrowError) -> Error {
    Error::new(Code::Unsupported, format!("encode result: {error}"))
}

/// A writer over an array of its own: values are written once into text that the closure keeps.
fn owned<'a>(
    field: FieldRef,
    array: ArrayRef,
    format: Format,
    style: &Style,
) -> Result<Writer<'a>> {
    let mut cells = Cells::new(&field, &array, format, style)?;
    let mut bytes = BytesMut::new();
    let mut ends = Vec::with_capacity(array.len());
    for row in 0..array.len() {
        if !cells.is_null(row) {
            cells.write(row, &mut bytes);
        }
        ends.push(bytes.len());
    }
    Ok(Box::new(move |row, out| {
        let start = row.checked_sub(1).and_then(|before| ends.get(before)).copied();
        let end = ends.get(row).copied().unwrap_or_default();
        out.put_slice(bytes.get(start.unwrap_or_default()..end).unwrap_or_default());
    }))
}

fn decimal<'a, T>(array: &'a dyn Array, scale: i8, format: Format) -> Result<Writer<'a>>
where
    T: ArrowPrimitiveType,
    T::Native: std::fmt::Display,
{
    let array = typed::<T>(array)?;
    Ok(match format {
        Format::Text => {
            Box::new(move |row, out| number::numeric_text(array.value(row), scale, out))
        }
        Format::Binary => {
            Box::new(move |row, out| number::numeric_binary(array.value(row), scale, out))
        }
    })
}

/// Values of a type with any unit as microseconds.
fn micros<'a, S, Ms, Us, Ns>(
    array: &'a dyn Array,
    unit: TimeUnit,
) -> Result<Box<dyn Fn(usize) -> i64 + 'a>>
where
    S: ArrowPrimitiveType,
    Ms: ArrowPrimitiveType,
    Us: ArrowPrimitiveType<Native = i64>,
    Ns: ArrowPrimitiveType<Native = i64>,
    S::Native: Into<i64>,
    Ms::Native: Into<i64>,
{
    Ok(match unit {
        TimeUnit::Second => {
            let array = typed::<S>(array)?;
            Box::new(move |row| array.value(row).into().saturating_mul(1_000_000))
        }
        TimeUnit::Millisecond => {
            let array = typed::<Ms>(array)?;
            Box::new(move |row| array.value(row).into().saturating_mul(1000))
        }
        TimeUnit::Microsecond => {
            let array = typed::<Us>(array)?;
            Box::new(move |row| array.value(row))
        }
        TimeUnit::Nanosecond => {
            let array = typed::<Ns>(array)?;
            Box::new(move |row| array.value(row).div_euclid(1000))
        }
    })
}

fn clock(array: &dyn Array, format: Format) -> Result<Writer<'_>> {
    let unit = match array.data_type() {
        DataType::Time32(unit) | DataType::Time64(unit) => *unit,
        _ => TimeUnit::Microsecond,
    };
    let micros = micros::<
        Time32SecondType,
        Time32MillisecondType,
        Time64MicrosecondType,
        Time64NanosecondType,
    >(array, unit)?;
    Ok(match format {
        Format::Text => Box::new(move |row, out| time::clock_text(micros(row), out)),
        Format::Binary => Box::new(move |row, out| out.put_i64(micros(row))),
    })
}

fn instant<'a>(
    array: &'a dyn Array,
    unit: TimeUnit,
    zoned: bool,
    format: Format,
    style: &'a Style,
) -> Result<Writer<'a>> {
    let micros = micros::<
        TimestampSecondType,
        TimestampMillisecondType,
        TimestampMicrosecondType,
        TimestampNanosecondType,
    >(array, unit)?;
    Ok(match (format, zoned) {
        (Format::Binary, _) => Box::new(move |row, out| time::instant(micros(row), out)),
        (Format::Text, false) => Box::new(move |row, out| time::instant_text(micros(row), out)),
        (Format::Text, true) => {
            Box::new(move |row, out| time::zoned_text(micros(row), style.zone.as_ref(), out))
        }
    })
}

fn duration(array: &dyn Array, unit: TimeUnit, format: Format) -> Result<Writer<'_>> {
    let micros = micros::<
        DurationSecondType,
        DurationMillisecondType,
        DurationMicrosecondType,
        DurationNanosecondType,
    >(array, unit)?;
    // The difference of two instants is in days and the rest of one, as in PostgreSQL.
    Ok(Box::new(move |row, out| {
        let micros = micros(row);
        // Less than 2^63 microseconds are less than 2^31 days.
        let days = (micros / time::DAY_MICROS) as i32;
        time::interval(0, days, micros % time::DAY_MICROS, format, out);
    }))
}

fn interval(array: &dyn Array, unit: IntervalUnit, format: Format) -> Result<Writer<'_>> {
    Ok(match unit {
        IntervalUnit::YearMonth => {
            let array = typed::<IntervalYearMonthType>(array)?;
            Box::new(move |row, out| time::interval(array.value(row), 0, 0, format, out))
        }
        IntervalUnit::DayTime => {
            let array = typed::<IntervalDayTimeType>(array)?;
            Box::new(move |row, out| {
                let value = array.value(row);
                let micros = i64::from(value.milliseconds).saturating_mul(1000);
                time::interval(0, value.days, micros, format, out);
            })
        }
        IntervalUnit::MonthDayNano => {
            let array = typed::<IntervalMonthDayNanoType>(array)?;
            Box::new(move |row, out| {
                let value = array.value(row);
                let micros = value.nanoseconds / 1000;
                time::interval(value.months, value.days, micros, format, out);
            })
        }
    })
}

/// Looks the value up by its key; the values themselves are never unpacked.
fn dictionary<'a>(
    field: &'a FieldRef,
    array: &'a dyn Array,
    format: Format,
    style: &'a Style,
) -> Result<Writer<'a>> {
    let Some(any) = array.as_any_dictionary_opt() else {
        return Err(Error::internal("dictionary array is not one"));
    };
    let mut values = writer(field, any.values(), format, style)?;
    macro_rules! keyed {
        ($type:ty) => {{
            let keys = typed::<$type>(any.keys())?;
            Box::new(move |row, out: &mut BytesMut| {
                values(usize::try_from(keys.value(row)).unwrap_or_default(), out)
            })
        }};
    }
    Ok(match any.keys().data_type() {
        DataType::Int8 => keyed!(Int8Type),
        DataType::Int16 => keyed!(Int16Type),
        DataType::Int32 => keyed!(Int32Type),
        DataType::Int64 => keyed!(Int64Type),
        DataType::UInt8 => keyed!(UInt8Type),
        DataType::UInt16 => keyed!(UInt16Type),
        DataType::UInt32 => keyed!(UInt32Type),
        _ => keyed!(UInt64Type),
    })
}

/// Structs, maps and deep lists as JSON, which looks the same as text and as binary.
fn json<'a>(field: &'a FieldRef, array: &'a dyn Array) -> Result<Writer<'a>> {
    static OPTIONS: LazyLock<EncoderOptions> =
        LazyLock::new(|| EncoderOptions::default().with_explicit_nulls(true));
    let mut encoder = make_encoder(field, array, &OPTIONS).map_err(plain_error)?;
    let mut text = Vec::new();
    Ok(Box::new(move |row, out| {
        text.clear();
        encoder.encode(row, &mut text);
        out.put_slice(&text);
    }))
}

#[cfg(test)]
mod tests;
