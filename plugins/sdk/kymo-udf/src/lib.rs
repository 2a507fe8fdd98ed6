//! Write functions, aggregates, window and table functions and ingest transforms for Kymo in Rust.
//!
//! A plugin is a WebAssembly component. This crate turns plain Rust functions into one: it
//! describes them to the server, hands them whole columns without a call per row, deals with
//! nulls, and gives errors and panics back as SQL errors.
//!
//! ```
//! use kymo_udf::{Error, plugin, scalar};
//!
//! /// Celsius to Fahrenheit.
//! #[scalar]
//! fn c2f(x: f64) -> f64 {
//!     x * 1.8 + 32.0
//! }
//!
//! /// The part of a host name before its first dot; NULL where there is none.
//! #[scalar]
//! fn short_name(host: &str) -> Option<String> {
//!     host.split_once('.').map(|(name, _)| name.to_owned())
//! }
//!
//! /// A reading as a number; an SQL error that names the row where it is none.
//! #[scalar]
//! fn reading(text: &str) -> Result<f64, Error> {
//!     text.parse().map_err(|_| Error::invalid(format!("{text:?} is not a number")))
//! }
//!
//! plugin! {
//!     name: "first_steps",
//!     description: "Three functions",
//!     scalars: [c2f, short_name, reading],
//! }
//!
//! assert_eq!(c2f(100.0), 212.0);
//! assert_eq!(short_name("db7.example.org").as_deref(), Some("db7"));
//! ```
//!
//! The functions stay ordinary functions, so their tests are ordinary tests on the machine
//! that builds them. Aggregates are in [`aggregate`], window functions in [`window`], table
//! functions in [`table`], transforms in [`transform`], speed in [`map`].
//!
//! # Types
//! | SQL | argument | result |
//! |---|---|---|
//! | double, real | `f64`, `f32` | the same |
//! | bigint, integer, bigint unsigned | `i64`, `i32`, `u64` | the same |
//! | boolean | `bool` | `bool` |
//! | text | `&str` | `String` |
//! | bytea | `&[u8]` | `Vec<u8>` |
//! | timestamp (ns) | [`Timestamp`] | [`Timestamp`] |
//! | date | [`Date`] | [`Date`] |
//!
//! # Nulls
//! The result is NULL wherever an argument is NULL, and the function is not asked. An argument
//! of type `Option<T>` shows its nulls; a result of type `Option<T>` may be one.

#[rustfmt::skip]
#[allow(missing_docs, unsafe_op_in_unsafe_fn, clippy::all)]
#[doc(hidden)]
pub mod bindings;

pub mod aggregate;
pub mod column;
pub mod context;
#[doc(hidden)]
pub mod error;
pub mod map;
#[doc(hidden)]
pub mod plugin;
pub mod scalar;
pub mod state;
pub mod table;
pub mod transform;
pub mod value;
pub mod window;

pub use bindings::kymo::udf::types::{
    Argument, Column, DataType, Error, ErrorCode, Field, TimeUnit, TimestampType, Values, VarBytes,
};
pub use column::{Arg, Strings};
pub use context::{Context, Level, context, log};
pub use kymo_udf_macros::{State, aggregate, scalar, table, transform, window};
pub use state::{BytesState, Samples, State};
pub use transform::{Batch, Output, RejectedRow, Settings, Transform};
pub use value::{Date, Timestamp};
pub use window::Partition;

/// Who deals with nulls: the server before and after the call, or the function.
pub use bindings::exports::kymo::udf::catalog::NullHandling;
/// What a function's results depend on besides its arguments.
pub use bindings::exports::kymo::udf::catalog::Volatility;
