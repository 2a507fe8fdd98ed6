//! Which Rust types stand for which columns.

use crate::bindings::kymo::udf::types::{
    DataType, Error, TimeUnit, TimestampType, Values, VarBytes,
};
use crate::column::{Bits, Strings};

/// A point in time: nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Seconds from `earlier` to this point, negative where it is later.
    #[must_use]
    #[inline]
    pub fn seconds_since(self, earlier: Timestamp) -> f64 {
        // The difference first: a double holds no nanoseconds of our century.
        self.0.wrapping_sub(earlier.0) as f64 / 1e9
    }
}

/// A day: days since 1970-01-01.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Date(pub i32);

/// Types whose column is an array of themselves.
pub trait Fixed: Copy + Default + 'static {
    /// The logical type.
    fn data_type() -> DataType;
    /// The array in a column of this type.
    fn slice(values: &Values) -> Option<&[Self]>;
    /// A column of this type.
    fn values(array: Vec<Self>) -> Values;
}

macro_rules! fixed {
    ($($type:ty, $logical:expr, $case:ident;)*) => {$(
        impl Fixed for $type {
            fn data_type() -> DataType {
                $logical
            }
            fn slice(values: &Values) -> Option<&[Self]> {
                match values {
                    Values::$case(array) => Some(array),
                    _ => None,
                }
            }
            fn values(array: Vec<Self>) -> Values {
                Values::$case(array)
            }
        }
    )*};
}

fixed! {
    f64, DataType::Float64, Float64;
    f32, DataType::Float32, Float32;
    i64, DataType::Int64, Int64;
    i32, DataType::Int32, Int32;
    u64, DataType::Uint64, Uint64;
}

macro_rules! wrapped {
    ($($type:ident($inner:ty), $logical:expr, $case:ident;)*) => {$(
        impl Fixed for $type {
            fn data_type() -> DataType {
                $logical
            }
            fn slice(values: &Values) -> Option<&[Self]> {
                match values {
                    // SAFETY: a transparent wrapper has the layout of what it wraps.
                    Values::$case(array) => Some(unsafe {
                        std::slice::from_raw_parts(array.as_ptr().cast(), array.len())
                    }),
                    _ => None,
                }
            }
            fn values(array: Vec<Self>) -> Values {
                // Collects in place: no copy.
                Values::$case(array.into_iter().map(|each| each.0).collect())
            }
        }
    )*};
}

wrapped! {
    Timestamp(i64), DataType::Timestamp(TimestampType {
        unit: TimeUnit::Nanosecond,
        timezone: Some("UTC".to_owned()),
    }), Int64;
    Date(i32), DataType::Date32, Int32;
}

/// Types of arguments.
pub trait Read<'a>: Copy + 'a {
    /// Their column, borrowed.
    type Rows: Copy;
    /// The logical type.
    fn data_type() -> DataType;
    /// The column of this type in what the server sent.
    fn open(values: &'a Values) -> Option<Self::Rows>;
    /// How many rows it has.
    fn len(rows: Self::Rows) -> usize;
    /// One row.
    fn get(rows: Self::Rows, row: usize) -> Self;
    /// Some of the rows, from a multiple of eight on.
    fn part(rows: Self::Rows, from: usize, count: usize) -> Self::Rows;
}

impl<'a, T: Fixed> Read<'a> for T {
    type Rows = &'a [T];
    fn data_type() -> DataType {
        <T as Fixed>::data_type()
    }
    fn open(values: &'a Values) -> Option<&'a [T]> {
        T::slice(values)
    }
    fn len(rows: &'a [T]) -> usize {
        rows.len()
    }
    #[inline(always)]
    fn get(rows: &'a [T], row: usize) -> T {
        rows[row]
    }
    #[inline(always)]
    fn part(rows: &'a [T], from: usize, count: usize) -> &'a [T] {
        &rows[from..from + count]
    }
}

impl<'a> Read<'a> for bool {
    type Rows = Bits<'a>;
    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn open(values: &'a Values) -> Option<Bits<'a>> {
        match values {
            Values::Bits(bytes) => Some(Bits(bytes)),
            _ => None,
        }
    }
    fn len(rows: Bits<'a>) -> usize {
        rows.0.len() * 8
    }
    #[inline(always)]
    fn get(rows: Bits<'a>, row: usize) -> bool {
        rows.get(row)
    }
    #[inline(always)]
    fn part(rows: Bits<'a>, from: usize, count: usize) -> Bits<'a> {
        Bits(&rows.0[from / 8..(from + count).div_ceil(8)])
    }
}

impl<'a> Read<'a> for &'a str {
    type Rows = Strings<'a>;
    fn data_type() -> DataType {
        DataType::Utf8
    }
    fn open(values: &'a Values) -> Option<Strings<'a>> {
        Strings::open(values)
    }
    fn len(rows: Strings<'a>) -> usize {
        rows.len()
    }
    #[inline(always)]
    fn get(rows: Strings<'a>, row: usize) -> &'a str {
        rows.get(row)
    }
    #[inline(always)]
    fn part(rows: Strings<'a>, from: usize, count: usize) -> Strings<'a> {
        rows.part(from, count)
    }
}

impl<'a> Read<'a> for &'a [u8] {
    type Rows = Strings<'a>;
    fn data_type() -> DataType {
        DataType::Binary
    }
    fn open(values: &'a Values) -> Option<Strings<'a>> {
        Strings::open(values)
    }
    fn len(rows: Strings<'a>) -> usize {
        rows.len()
    }
    #[inline(always)]
    fn get(rows: Strings<'a>, row: usize) -> &'a [u8] {
        rows.bytes(row)
    }
    #[inline(always)]
    fn part(rows: Strings<'a>, from: usize, count: usize) -> Strings<'a> {
        rows.part(from, count)
    }
}

/// Types of results.
pub trait Write: Sized {
    /// A column in the making.
    type Builder;
    /// The logical type.
    fn data_type() -> DataType;
    /// Room for this many rows.
    fn builder(rows: usize) -> Self::Builder;
    /// The next row; none for an unspecified value under a null.
    fn push(builder: &mut Self::Builder, value: Option<Self>);
    /// The column.
    fn finish(builder: Self::Builder) -> Values;
}

impl<T: Fixed> Write for T {
    type Builder = Vec<T>;
    fn data_type() -> DataType {
        <T as Fixed>::data_type()
    }
    fn builder(rows: usize) -> Vec<T> {
        Vec::with_capacity(rows)
    }
    #[inline(always)]
    fn push(builder: &mut Vec<T>, value: Option<T>) {
        builder.push(value.unwrap_or_default());
    }
    fn finish(builder: Vec<T>) -> Values {
        T::values(builder)
    }
}

impl Write for bool {
    type Builder = crate::column::BitBuilder;
    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn builder(rows: usize) -> Self::Builder {
        Self::Builder::with_capacity(rows)
    }
    #[inline(always)]
    fn push(builder: &mut Self::Builder, value: Option<bool>) {
        builder.push(value == Some(true));
    }
    fn finish(builder: Self::Builder) -> Values {
        Values::Bits(builder.finish())
    }
}

/// Variable-length values in the making.
#[derive(Debug)]
pub struct BytesBuilder(VarBytes);

impl BytesBuilder {
    /// Room for this many rows.
    #[must_use]
    pub fn with_capacity(rows: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        BytesBuilder(VarBytes { offsets, data: Vec::with_capacity(rows * 8) })
    }

    /// The next row.
    #[inline]
    pub fn push(&mut self, value: &[u8]) {
        self.0.data.extend_from_slice(value);
        self.end_row();
    }

    /// Room to write the next row into; [`end_row`](Self::end_row) ends it.
    #[must_use]
    pub fn data(&mut self) -> &mut Vec<u8> {
        &mut self.0.data
    }

    /// Ends the row that was written through [`data`](Self::data).
    #[inline]
    pub fn end_row(&mut self) {
        self.0.offsets.push(self.0.data.len() as u32);
    }

    /// The column.
    #[must_use]
    pub fn finish(self) -> Values {
        Values::Bytes(self.0)
    }
}

macro_rules! bytes {
    ($($type:ty, $logical:expr;)*) => {$(
        impl Write for $type {
            type Builder = BytesBuilder;
            fn data_type() -> DataType {
                $logical
            }
            fn builder(rows: usize) -> BytesBuilder {
                BytesBuilder::with_capacity(rows)
            }
            fn push(builder: &mut BytesBuilder, value: Option<Self>) {
                builder.push(value.as_ref().map_or(&[], |value| value.as_ref()));
            }
            fn finish(builder: BytesBuilder) -> Values {
                builder.finish()
            }
        }
    )*};
}

bytes! {
    String, DataType::Utf8;
    Vec<u8>, DataType::Binary;
}

/// What a function of single rows may answer: a value, perhaps none, perhaps an error.
pub trait Answer {
    /// The value.
    type Value: Write;
    /// Whether it can be null.
    const NULLABLE: bool;
    /// In the most general form.
    ///
    /// # Errors
    /// The function's own.
    fn answer(self) -> Result<Option<Self::Value>, Error>;
}

impl<T: Write> Answer for T {
    type Value = T;
    const NULLABLE: bool = false;
    #[inline(always)]
    fn answer(self) -> Result<Option<T>, Error> {
        Ok(Some(self))
    }
}

impl<T: Write> Answer for Option<T> {
    type Value = T;
    const NULLABLE: bool = true;
    #[inline(always)]
    fn answer(self) -> Result<Option<T>, Error> {
        Ok(self)
    }
}

impl<T: Answer> Answer for Result<T, Error> {
    type Value = T::Value;
    const NULLABLE: bool = T::NULLABLE;
    #[inline(always)]
    fn answer(self) -> Result<Option<T::Value>, Error> {
        self?.answer()
    }
}
