//! Columns as the server lends them, read by row; and columns in the making.

use crate::bindings::kymo::udf::types::{Argument, Column, Error, Field, Values};
use crate::value::{Answer, Fixed, Read, Write};

/// One bit per row, least significant first.
#[derive(Debug, Clone, Copy)]
pub struct Bits<'a>(pub &'a [u8]);

impl Bits<'_> {
    /// Whether the bit of this row is set.
    #[must_use]
    #[inline(always)]
    pub fn get(self, row: usize) -> bool {
        self.0[row / 8] >> (row % 8) & 1 == 1
    }
}

/// One bit per row in the making.
#[derive(Debug, Default)]
pub struct BitBuilder {
    bytes: Vec<u8>,
    rows: usize,
}

impl BitBuilder {
    /// Room for this many rows.
    #[must_use]
    pub fn with_capacity(rows: usize) -> Self {
        BitBuilder { bytes: Vec::with_capacity(rows.div_ceil(8)), rows: 0 }
    }

    /// The next row.
    #[inline]
    pub fn push(&mut self, set: bool) {
        if self.rows.is_multiple_of(8) {
            self.bytes.push(0);
        }
        let last = self.bytes.len() - 1;
        self.bytes[last] |= u8::from(set) << (self.rows % 8);
        self.rows += 1;
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A column of texts: offsets and one stretch of bytes.
#[derive(Debug, Clone, Copy)]
pub struct Strings<'a> {
    offsets: &'a [u32],
    data: &'a [u8],
    /// 0 where every row is the first: a constant.
    mask: usize,
}

impl<'a> Strings<'a> {
    pub(crate) fn open(values: &'a Values) -> Option<Self> {
        match values {
            Values::Bytes(bytes) => {
                Some(Strings { offsets: &bytes.offsets, data: &bytes.data, mask: usize::MAX })
            }
            _ => None,
        }
    }

    /// The same text in every row, where it is a constant.
    #[must_use]
    pub fn constant(mut self) -> Self {
        self.mask = 0;
        self
    }

    /// Some of the texts.
    #[must_use]
    pub(crate) fn part(self, from: usize, count: usize) -> Self {
        Strings { offsets: &self.offsets[from..=from + count], ..self }
    }

    /// How many texts are stored.
    #[must_use]
    pub fn len(self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The text of a row.
    #[must_use]
    #[inline(always)]
    pub fn get(self, row: usize) -> &'a str {
        // SAFETY: the server checked the column when it was written; and columns of bytes are
        // read by `bytes`, as their type says.
        unsafe { std::str::from_utf8_unchecked(self.bytes(row)) }
    }

    /// The bytes of a row.
    #[must_use]
    #[inline(always)]
    pub fn bytes(self, row: usize) -> &'a [u8] {
        let row = row & self.mask;
        &self.data[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }
}

/// One argument of a function: a column, or the same value in every row.
#[derive(Clone, Copy)]
pub struct Arg<'a, T: Read<'a>> {
    rows: T::Rows,
    validity: Option<Bits<'a>>,
    mask: usize,
}

impl<'a, T: Read<'a>> Arg<'a, T> {
    /// The argument of a scalar function.
    ///
    /// # Errors
    /// It is not of this type or length: a fault of the server.
    pub fn new(argument: &'a Argument, rows: usize) -> Result<Self, Error> {
        match argument {
            Argument::Column(column) => Self::column(column, rows),
            Argument::Constant(column) => Ok(Arg { mask: 0, ..Self::column(column, 1)? }),
        }
    }

    /// The argument of an aggregate.
    ///
    /// # Errors
    /// It is not of this type or length: a fault of the server.
    pub fn column(column: &'a Column, rows: usize) -> Result<Self, Error> {
        let opened = T::open(&column.values).ok_or_else(wrong_type)?;
        let validity = column.validity.as_deref().map(Bits);
        let bits = validity.map_or(usize::MAX, |bits| bits.0.len() * 8);
        if T::len(opened) < rows || bits < rows {
            return Err(Error::internal("the server sent a column that is too short"));
        }
        Ok(Arg { rows: opened, validity, mask: usize::MAX })
    }

    /// Whether the row holds a value.
    #[inline(always)]
    pub fn is_valid(&self, row: usize) -> bool {
        self.validity.is_none_or(|bits| bits.get(row & self.mask))
    }

    /// The row's value; something unspecified where it holds none.
    #[inline(always)]
    pub fn get(&self, row: usize) -> T {
        T::get(self.rows, row & self.mask)
    }

    /// The row's value, if it holds one.
    #[inline(always)]
    pub fn option(&self, row: usize) -> Option<T> {
        self.is_valid(row).then(|| self.get(row))
    }

    /// The rows as they are, where all of them hold a value of their own: a loop over them
    /// asks nothing but the value.
    #[must_use]
    #[inline(always)]
    pub fn dense(&self) -> Option<T::Rows> {
        (self.validity.is_none() && self.mask == usize::MAX).then_some(self.rows)
    }

    /// The value of an argument that has to be the same in every row.
    ///
    /// # Errors
    /// It differs from row to row, or is null.
    pub fn constant(argument: &'a Argument, name: &str) -> Result<T, Error> {
        let Argument::Constant(column) = argument else {
            return Err(Error::invalid(format!("{name} must be a constant")));
        };
        let one = Self::column(column, 1)?;
        one.option(0).ok_or_else(|| Error::invalid(format!("{name} must not be NULL")))
    }
}

impl<'a, T: Fixed> Arg<'a, T> {
    /// The values of the whole batch as one slice; a constant is written out into `room`.
    pub fn slice(&self, rows: usize, room: &'a mut Vec<T>) -> &'a [T] {
        if self.mask == 0 {
            room.resize(rows, self.rows[0]);
            return room;
        }
        &self.rows[..rows]
    }

    /// The values as chunks of `N`.
    pub fn lanes<const N: usize>(&self) -> Lanes<'a, T, N> {
        if self.mask == 0 { Lanes::Constant([self.rows[0]; N]) } else { Lanes::Column(self.rows) }
    }
}

impl<'a> Arg<'a, &'a str> {
    /// The texts of the whole batch.
    pub fn strings(&self) -> Strings<'a> {
        if self.mask == 0 { self.rows.constant() } else { self.rows }
    }
}

/// An argument read in chunks, so that the loop over a chunk is one straight run of vector
/// instructions whether the argument is a column or a constant.
#[derive(Debug)]
pub enum Lanes<'a, T, const N: usize> {
    /// One value per row.
    Column(&'a [T]),
    /// One value.
    Constant([T; N]),
}

impl<T: Copy, const N: usize> Lanes<'_, T, N> {
    /// The `N` rows from this one on.
    #[inline(always)]
    pub fn chunk(&self, row: usize) -> &[T; N] {
        match self {
            Lanes::Column(array) => match array[row..].first_chunk() {
                Some(chunk) => chunk,
                None => unreachable!("the last whole chunk ends before the last row"),
            },
            Lanes::Constant(array) => array,
        }
    }
}

/// Exactly so many arguments.
///
/// # Errors
/// There are more or fewer: a fault of the server.
pub fn exactly<T, const N: usize>(all: &[T]) -> Result<&[T; N], Error> {
    all.try_into().map_err(|_| {
        Error::internal(format!("{} arguments where the function takes {N}", all.len()))
    })
}

/// Which rows have all arguments: none where all have. The server sees to this by itself for
/// functions that never look at nulls, unless an overload of the same name does.
#[must_use]
pub fn strict_validity(args: &[Argument], rows: usize) -> Option<Vec<u8>> {
    let mut all: Option<Vec<u8>> = None;
    for arg in args {
        let (column, constant) = match arg {
            Argument::Column(column) => (column, false),
            Argument::Constant(column) => (column, true),
        };
        let Some(bits) = &column.validity else { continue };
        let into = all.get_or_insert_with(|| vec![0xff; rows.div_ceil(8)]);
        for (index, byte) in into.iter_mut().enumerate() {
            *byte &= if constant { 0u8.wrapping_sub(bits[0] & 1) } else { bits[index] };
        }
    }
    all
}

fn wrong_type() -> Error {
    Error::internal("the server sent a column of another type than the function declared")
}

/// A result column in the making, nulls included. The bitmap comes into being with the first
/// null.
pub struct Results<A: Answer> {
    values: <A::Value as Write>::Builder,
    validity: Option<BitBuilder>,
    done: usize,
}

impl<A: Answer> Results<A> {
    /// Room for this many rows.
    #[must_use]
    pub fn with_capacity(rows: usize) -> Self {
        Results { values: A::Value::builder(rows), validity: None, done: 0 }
    }

    /// The next row's answer.
    ///
    /// # Errors
    /// The function's own, with the row to blame.
    #[inline]
    pub fn push(&mut self, answer: A) -> Result<(), Error> {
        let value = answer.answer().map_err(|error| error.at(self.done))?;
        self.put(value);
        Ok(())
    }

    /// The next row is null.
    #[inline]
    pub fn push_null(&mut self) {
        self.put(None);
    }

    #[inline(always)]
    fn put(&mut self, value: Option<A::Value>) {
        let present = value.is_some();
        if !present && self.validity.is_none() {
            let mut bits = BitBuilder::with_capacity(self.done + 1);
            (0..self.done).for_each(|_| bits.push(true));
            self.validity = Some(bits);
        }
        if let Some(bits) = &mut self.validity {
            bits.push(present);
        }
        A::Value::push(&mut self.values, value);
        self.done += 1;
    }

    /// The column.
    #[must_use]
    pub fn finish(self) -> Column {
        Column {
            values: A::Value::finish(self.values),
            validity: self.validity.map(BitBuilder::finish),
        }
    }
}

/// A column without nulls.
#[must_use]
pub fn column(values: Values) -> Column {
    Column { values, validity: None }
}

/// A parameter, by name and type.
#[must_use]
pub fn parameter<'a, T: Read<'a>>(name: &str, nullable: bool) -> Field {
    Field { name: name.to_owned(), data_type: T::data_type(), nullable }
}

/// The result of a function that answers this.
#[must_use]
pub fn returned<A: Answer>(nullable: bool) -> Field {
    Field {
        name: "result".to_owned(),
        data_type: A::Value::data_type(),
        nullable: nullable || A::NULLABLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::kymo::udf::types::VarBytes;

    #[test]
    fn nulls_are_kept_from_the_first_one_on() {
        let mut results = Results::<Option<f64>>::with_capacity(10);
        for row in 0..10 {
            results.push((row != 8).then_some(f64::from(row))).unwrap();
        }
        let column = results.finish();
        assert_eq!(column.validity, Some(vec![0b1111_1111, 0b10]));
        let arg = Arg::<f64>::column(&column, 10).unwrap();
        assert_eq!((arg.option(7), arg.option(8), arg.option(9)), (Some(7.0), None, Some(9.0)));
    }

    #[test]
    fn an_error_names_its_row() {
        let mut results = Results::<Result<f64, Error>>::with_capacity(2);
        results.push(Ok(1.0)).unwrap();
        let error = results.push(Err(Error::invalid("no"))).unwrap_err();
        assert_eq!(error.row, Some(1));
    }

    #[test]
    fn a_constant_is_every_row() {
        let text = |text: &str| {
            Values::Bytes(VarBytes {
                offsets: vec![0, text.len() as u32],
                data: text.as_bytes().to_vec(),
            })
        };
        let argument = Argument::Constant(column(text("abc")));
        let arg = Arg::<&str>::new(&argument, 5).unwrap();
        assert_eq!((arg.get(0), arg.get(4), arg.strings().get(3)), ("abc", "abc", "abc"));
        assert_eq!(Arg::<&str>::constant(&argument, "x").unwrap(), "abc");
        assert!(Arg::<f64>::new(&argument, 5).is_err());
        assert!(Arg::<&str>::column(&column(text("abc")), 2).is_err());
    }
}
