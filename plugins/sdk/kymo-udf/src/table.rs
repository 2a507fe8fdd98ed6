//! Table functions: arguments in, rows out, a batch at a time.
//!
//! The interface may still change: the server loads a plugin that exports a table function only
//! where `plugins.preview = true`.
//!
//! `#[table(columns = "a, b")]` over a function that answers an iterator of tuples, one entry a
//! column; the names of the columns are those in the attribute. The server asks for as many rows
//! as it wants, so an iterator may be endless. A row may be a `Result`, as may the iterator. Where
//! an argument is NULL that is no `Option`, there are no rows.
//!
//! ```
//! use kymo_udf::{plugin, table};
//!
//! /// The powers of a number.
//! #[table(columns = "exponent, power")]
//! fn powers(base: f64) -> impl Iterator<Item = (i32, f64)> {
//!     (0..).map(move |exponent| (exponent, base.powi(exponent)))
//! }
//!
//! plugin! { name: "numbers", tables: [powers] }
//!
//! assert_eq!(powers(2.0).nth(10), Some((10, 1024.0)));
//! ```

use crate::bindings::exports::kymo::udf::catalog::Volatility;
use crate::bindings::kymo::udf::types::{Column, Error, Field};
use crate::bindings::kymo::udf_preview::batches::Batch;
use crate::column::{Results, returned};
use crate::value::Answer;

/// A table function with what the server has to know about it; `#[table]` implements it.
pub trait TableFunction {
    /// SQL name.
    const NAME: &'static str;
    /// Markdown for `system.functions`.
    const DESCRIPTION: &'static str;
    /// What its rows depend on.
    const VOLATILITY: Volatility;
    /// Its parameters, in order.
    fn parameters() -> Vec<Field>;
    /// Its columns.
    fn returns() -> Vec<Field>;
    /// Begins with these arguments, columns of one row.
    ///
    /// # Errors
    /// The function's own, or arguments that are not of the declared types.
    fn open(args: Vec<Column>) -> Result<Box<dyn Rows>, Error>;
}

/// What is left of the rows of a table function.
pub trait Rows {
    /// The next ones, at most so many; none at the end.
    ///
    /// # Errors
    /// That of a row.
    fn next(&mut self, max_rows: usize) -> Result<Option<Batch>, Error>;
}

/// One row: a tuple of values, each of a type that a scalar function may answer.
pub trait Row {
    /// The columns in the making.
    type Columns;
    /// How many they are.
    const WIDTH: usize;
    /// Their types, under these names.
    fn fields(names: &[&str]) -> Vec<Field>;
    /// Room for so many rows.
    fn columns(rows: usize) -> Self::Columns;
    /// Appends the row.
    ///
    /// # Errors
    /// The row's own.
    fn push(self, columns: &mut Self::Columns) -> Result<(), Error>;
    /// The columns.
    fn finish(columns: Self::Columns) -> Vec<Column>;
}

macro_rules! row {
    ($($answer:ident $index:tt),+) => {
        impl<$($answer: Answer),+> Row for ($($answer,)+) {
            type Columns = ($(Results<$answer>,)+);
            const WIDTH: usize = [$($index),+].len();
            fn fields(names: &[&str]) -> Vec<Field> {
                vec![$(Field {
                    name: names[$index].to_owned(),
                    ..returned::<$answer>(false)
                }),+]
            }
            fn columns(rows: usize) -> Self::Columns {
                ($(Results::<$answer>::with_capacity(rows),)+)
            }
            fn push(self, columns: &mut Self::Columns) -> Result<(), Error> {
                $(columns.$index.push(self.$index)?;)+
                Ok(())
            }
            fn finish(columns: Self::Columns) -> Vec<Column> {
                vec![$(columns.$index.finish()),+]
            }
        }
    };
}

row!(A 0);
row!(A 0, B 1);
row!(A 0, B 1, C 2);
row!(A 0, B 1, C 2, D 3);
row!(A 0, B 1, C 2, D 3, E 4);
row!(A 0, B 1, C 2, D 3, E 4, F 5);
row!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
row!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

impl<R: Row> Row for Result<R, Error> {
    type Columns = R::Columns;
    const WIDTH: usize = R::WIDTH;
    fn fields(names: &[&str]) -> Vec<Field> {
        R::fields(names)
    }
    fn columns(rows: usize) -> Self::Columns {
        R::columns(rows)
    }
    fn push(self, columns: &mut Self::Columns) -> Result<(), Error> {
        self?.push(columns)
    }
    fn finish(columns: Self::Columns) -> Vec<Column> {
        R::finish(columns)
    }
}

/// Rows are made in memory for at most so many at first; more room comes as they do.
const ROOM: usize = 1024;

struct Iterated<I>(std::iter::Fuse<I>);

impl<I: Iterator<Item: Row>> Rows for Iterated<I> {
    fn next(&mut self, max_rows: usize) -> Result<Option<Batch>, Error> {
        let mut columns = I::Item::columns(max_rows.min(ROOM));
        let mut rows = 0;
        for row in self.0.by_ref().take(max_rows) {
            row.push(&mut columns)?;
            rows += 1;
        }
        Ok((rows > 0).then(|| Batch { rows, columns: I::Item::finish(columns) }))
    }
}

/// The rows of an iterator.
#[doc(hidden)]
pub fn rows<I: Iterator<Item: Row> + 'static>(rows: I) -> Box<dyn Rows> {
    Box::new(Iterated(rows.fuse()))
}

/// No rows.
#[doc(hidden)]
#[must_use]
pub fn none() -> Box<dyn Rows> {
    rows(std::iter::empty::<(bool,)>())
}

/// The columns of a function, which is never called for it.
#[doc(hidden)]
pub fn columns<I: Iterator<Item: Row>, const N: usize>(
    _: impl FnOnce() -> I,
    names: [&str; N],
) -> Vec<Field> {
    const { assert!(<I::Item as Row>::WIDTH == N, "one name in `columns` for each of a row") };
    I::Item::fields(&names)
}

/// The columns of a function that may fail.
#[doc(hidden)]
pub fn columns_if<I: Iterator<Item: Row>, const N: usize>(
    _: impl FnOnce() -> Result<I, Error>,
    names: [&str; N],
) -> Vec<Field> {
    columns(|| -> I { unreachable!("only its type is asked for") }, names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bindings::kymo::udf::types::Values;

    #[test]
    fn rows_come_in_batches_of_what_was_asked_for_and_end() {
        let mut numbers =
            rows((0..5).map(|number| (i64::from(number), (number > 0).then_some(0.5))));
        let first = numbers.next(3).unwrap().unwrap();
        assert_eq!((first.rows, &first.columns[0].values), (3, &Values::Int64(vec![0, 1, 2])));
        assert_eq!(first.columns[1].validity, Some(vec![0b110]));
        let second = numbers.next(3).unwrap().unwrap();
        assert_eq!((second.rows, &second.columns[0].values), (2, &Values::Int64(vec![3, 4])));
        assert!(numbers.next(3).unwrap().is_none());
        assert!(none().next(3).unwrap().is_none());
    }

    #[test]
    fn a_row_may_fail() {
        let mut failing = rows((0..3).map(|number| match number {
            2 => Err(Error::invalid("two")),
            number => Ok((number,)),
        }));
        assert_eq!(failing.next(2).unwrap().unwrap().rows, 2);
        assert_eq!(failing.next(2).unwrap_err().message, "two");
    }
}
