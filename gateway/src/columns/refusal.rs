//! Why a name or a value cannot be part of a row, in words for people.

use kymo_kernel::schema::{ColumnKind, FieldType};
use kymo_kernel::{Code, Error};

/// Why a name cannot be used in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The value's type differs from the column's.
    Type {
        /// The column.
        column: String,
        /// The value's type.
        given: FieldType,
        /// The column's type.
        existing: FieldType,
    },
    /// An integer that floating point does not hold, for a column that holds floating point.
    Inexact {
        /// The column.
        column: String,
        /// The integer.
        value: String,
    },
    /// The name is a tag here and a field there, or the time column.
    Kind {
        /// The column.
        column: String,
        /// What the row uses it as.
        given: ColumnKind,
        /// What it is.
        existing: ColumnKind,
    },
    /// A tag occurs twice.
    DuplicateTag(String),
    /// The table would get more columns than are allowed.
    TooManyColumns(usize),
    /// The name itself is not allowed.
    Name(String),
}

impl Refusal {
    /// The error for people, in the words that InfluxDB's clients know.
    #[must_use]
    pub fn error(&self, table: &str) -> Error {
        match self {
            Refusal::Type { column, given, existing } => Error::new(
                Code::TypeConflict,
                format!(
                    "field type conflict: input field \"{column}\" on measurement \"{table}\" \
                     is type {given}, already exists as type {existing}"
                ),
            ),
            Refusal::Inexact { column, value } => Error::new(
                Code::TypeConflict,
                format!(
                    "field type conflict: input field \"{column}\" on measurement \"{table}\" \
                     is type float, which does not hold the integer {value} exactly"
                ),
            ),
            Refusal::Kind { column, given: ColumnKind::Tag, existing: ColumnKind::Time } => {
                Error::new(
                    Code::TypeConflict,
                    format!(
                        "invalid tag key: input tag \"{column}\" on measurement \"{table}\" is invalid"
                    ),
                )
            }
            Refusal::Kind { column, existing: ColumnKind::Time, .. } => Error::new(
                Code::TypeConflict,
                format!(
                    "invalid field name: input field \"{column}\" on measurement \"{table}\" is invalid"
                ),
            ),
            Refusal::Kind { column, given, existing } => Error::new(
                Code::TypeConflict,
                format!(
                    "\"{column}\" on measurement \"{table}\" is a {}, already exists as a {}",
                    given.as_str(),
                    existing.as_str()
                ),
            ),
            Refusal::DuplicateTag(tag) => {
                Error::new(Code::InvalidInput, format!("duplicate tag \"{tag}\""))
            }
            Refusal::TooManyColumns(max) => Error::new(
                Code::LimitReached,
                format!("measurement \"{table}\" would have more than {max} columns"),
            )
            .with_hint("keep values out of names, or raise ingest.max_columns"),
            Refusal::Name(problem) => Error::new(Code::InvalidInput, problem.clone()),
        }
    }
}
