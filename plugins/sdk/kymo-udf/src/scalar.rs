//! Scalar functions: one row in, one value out.
//!
//! `#[scalar]` does the work; what it makes of a function is a [`ScalarFunction`].
//!
//! * `#[scalar]` over a function of single rows. Numbers in and a number out run in chunks of
//!   sixteen rows (see [`map`](crate::map)).
//! * `#[scalar(batch)]` over a function of whole columns: `&[f64]`, [`Strings`](crate::Strings)
//!   and constants in; the last parameter, `&mut [T]`, takes the result.
//! * `#[scalar(name = "…")]` gives the SQL name. Two functions of the same name are overloads.
//! * `#[scalar(stable)]` and `#[scalar(volatile)]` for results that depend on more than the
//!   arguments. Without either the server may fold constants, cache results, and call the
//!   function once for each distinct value of a tag.

use crate::bindings::exports::kymo::udf::catalog::{NullHandling, Volatility};
use crate::bindings::kymo::udf::types::{Argument, Column, Error, Field};

/// A scalar function with what the server has to know about it.
pub trait ScalarFunction {
    /// SQL name.
    const NAME: &'static str;
    /// Markdown for `system.functions`.
    const DESCRIPTION: &'static str;
    /// What its results depend on.
    const VOLATILITY: Volatility;
    /// Who deals with nulls.
    const NULLS: NullHandling;
    /// Its parameters, in order.
    fn parameters() -> Vec<Field>;
    /// Its result.
    fn returns() -> Field;
    /// One batch.
    ///
    /// # Errors
    /// The function's own, or arguments that are not of the declared types.
    fn call(args: &[Argument], rows: usize) -> Result<Column, Error>;
}
