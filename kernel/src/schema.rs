//! The data model: tables with tags, fields and a time column, and their Arrow shape.
//!
//! Tags are dictionary-encoded text and identify a series; fields are values; `time` is a
//! timestamp in nanoseconds, UTC. Every column has a [`ColumnId`] that outlives its name and
//! is written to Parquet as `field_id`. Columns keep the order in which they appeared, with
//! `time` wherever its table's definition put it.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Error, Result};
use crate::ids::{ColumnId, TableId};

/// The database that exists from the start.
pub const DEFAULT_DATABASE: &str = "kymo";
/// The schema that every database has.
pub const DEFAULT_SCHEMA: &str = "public";
/// The schema of Kymo's own tables in every database; nobody else makes or fills tables in it.
pub const SYSTEM_SCHEMA: &str = "system";
/// The name of the time column of tables that Kymo makes by itself.
pub const TIME: &str = "time";
/// Key of the Arrow field metadata that holds a column's [`ColumnKind`].
pub const KIND_KEY: &str = "kymo.kind";
/// Key of the Arrow field metadata that holds a column's id; Parquet's own name for it.
pub const FIELD_ID_KEY: &str = "PARQUET:field_id";

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    /// Part of a series' identity.
    Tag,
    /// A value.
    Field,
    /// The instant; each table has exactly one.
    Time,
}

impl ColumnKind {
    /// The word used in metadata and in `SHOW COLUMNS`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ColumnKind::Tag => "tag",
            ColumnKind::Field => "field",
            ColumnKind::Time => "time",
        }
    }

    /// Reads the kind of an Arrow field; a field without one is a value.
    #[must_use]
    pub fn of(field: &Field) -> ColumnKind {
        match field.metadata().get(KIND_KEY).map(String::as_str) {
            Some("tag") => ColumnKind::Tag,
            Some("time") => ColumnKind::Time,
            _ => ColumnKind::Field,
        }
    }
}

/// The id that an Arrow field carries; a field that no table has yet carries none.
#[must_use]
pub fn column_id(field: &Field) -> Option<ColumnId> {
    field.metadata().get(FIELD_ID_KEY)?.parse().ok().map(ColumnId)
}

/// The type of a column's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldType {
    /// 64-bit floating point.
    Float64,
    /// 64-bit signed integer.
    Int64,
    /// 64-bit unsigned integer.
    UInt64,
    /// True or false.
    Bool,
    /// UTF-8 text.
    Text,
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    Timestamp,
}

impl FieldType {
    /// The Arrow type of a field of this type. Tags use [`tag_type`] instead.
    #[must_use]
    pub fn arrow(self) -> DataType {
        match self {
            FieldType::Float64 => DataType::Float64,
            FieldType::Int64 => DataType::Int64,
            FieldType::UInt64 => DataType::UInt64,
            FieldType::Bool => DataType::Boolean,
            FieldType::Text => DataType::Utf8,
            FieldType::Timestamp => time_type(),
        }
    }

    /// The word used in messages: what line protocol calls the type.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FieldType::Float64 => "float",
            FieldType::Int64 => "integer",
            FieldType::UInt64 => "unsigned",
            FieldType::Bool => "boolean",
            FieldType::Text => "string",
            FieldType::Timestamp => "timestamp",
        }
    }

    /// Whether values of this type can be read as one of another: as themselves, or integers as
    /// floating point.
    #[must_use]
    pub fn widens_to(self, other: FieldType) -> bool {
        let integer = matches!(self, FieldType::Int64 | FieldType::UInt64);
        self == other || (integer && other == FieldType::Float64)
    }

    /// Whether values of both types may be kept together as floating point: one of them is, and
    /// the other an integer.
    #[must_use]
    pub fn widens_with(self, other: FieldType) -> bool {
        self != other && (self.widens_to(other) || other.widens_to(self))
    }

    /// The field type that an Arrow type is kept as, where it is one of ours.
    #[must_use]
    pub fn of(data_type: &DataType) -> Option<FieldType> {
        Some(match data_type {
            DataType::Float64 => FieldType::Float64,
            DataType::Int64 => FieldType::Int64,
            DataType::UInt64 => FieldType::UInt64,
            DataType::Boolean => FieldType::Bool,
            DataType::Utf8 | DataType::Dictionary(_, _) => FieldType::Text,
            DataType::Timestamp(TimeUnit::Nanosecond, _) => FieldType::Timestamp,
            _ => return None,
        })
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// Beyond this many, not every integer has a number in floating point: 2^53.
const EXACT: u64 = 1 << 53;

/// Whether floating point holds an integer exactly, together with all that are nearer to zero.
#[must_use]
pub fn exact_signed(value: i64) -> bool {
    exact_unsigned(value.unsigned_abs())
}

/// As [`exact_signed`].
#[must_use]
pub fn exact_unsigned(value: u64) -> bool {
    value <= EXACT
}

/// The Arrow type of every tag: text through a dictionary of 32-bit keys.
#[must_use]
pub fn tag_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// The Arrow type of every instant: nanoseconds, UTC.
#[must_use]
pub fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Nanosecond, Some("+00:00".into()))
}

/// One column of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its identity, stable under renaming.
    pub id: ColumnId,
    /// Its name in SQL and in line protocol, case-sensitive.
    pub name: String,
    /// What it is for.
    pub kind: ColumnKind,
    /// The type of its values; [`FieldType::Text`] for a tag, [`FieldType::Timestamp`] for time.
    pub field_type: FieldType,
}

impl Column {
    /// A column of this identity.
    #[must_use]
    pub fn new(
        id: ColumnId,
        name: impl Into<String>,
        kind: ColumnKind,
        field_type: FieldType,
    ) -> Self {
        Column { id, name: name.into(), kind, field_type }
    }

    /// The Arrow field, with kind and id as metadata. Everything but time may be NULL.
    #[must_use]
    pub fn arrow(&self) -> Field {
        marked_field(&self.name, self.kind, self.field_type).with_metadata(
            [
                (KIND_KEY.to_owned(), self.kind.as_str().to_owned()),
                (FIELD_ID_KEY.to_owned(), self.id.to_string()),
            ]
            .into(),
        )
    }
}

/// An Arrow field for a column that has no id yet, as parsers build it.
#[must_use]
pub fn marked_field(name: &str, kind: ColumnKind, field_type: FieldType) -> Field {
    let data_type = match kind {
        ColumnKind::Tag => tag_type(),
        ColumnKind::Time => time_type(),
        ColumnKind::Field => field_type.arrow(),
    };
    Field::new(name, data_type, kind != ColumnKind::Time)
        .with_metadata([(KIND_KEY.to_owned(), kind.as_str().to_owned())].into())
}

/// The columns of a table at one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// Grows with every change.
    pub version: u32,
    /// In the order of appearance.
    pub columns: Vec<Column>,
}

impl TableSchema {
    /// The column of a name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The tag columns, in the order that sorts segments.
    pub fn tags(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.kind == ColumnKind::Tag)
    }

    /// The time column.
    ///
    /// # Errors
    /// `internal` if the definition has none, which no constructor allows.
    pub fn time(&self) -> Result<&Column> {
        self.columns
            .iter()
            .find(|column| column.kind == ColumnKind::Time)
            .ok_or_else(|| Error::internal("table without a time column"))
    }

    /// The Arrow schema of a scan: all columns in order.
    #[must_use]
    pub fn arrow(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(Column::arrow).collect::<Vec<_>>()))
    }
}

/// The full name of a table: `database.schema.table`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableName {
    /// The database.
    pub database: String,
    /// The schema within it.
    pub schema: String,
    /// The table within that.
    pub table: String,
}

impl TableName {
    /// A table of the default schema of a database.
    pub fn new(database: impl Into<String>, table: impl Into<String>) -> Self {
        TableName {
            database: database.into(),
            schema: DEFAULT_SCHEMA.to_owned(),
            table: table.into(),
        }
    }

    /// Refuses names that no table may have, by the rules of each part: [`check_space`] for
    /// database and schema, [`check_table`] for the table.
    ///
    /// # Errors
    /// `invalid_input`, naming the part.
    pub fn check(&self) -> Result<()> {
        check_space("database", &self.database)?;
        check_space("schema", &self.schema)?;
        check_table("table", &self.table)
    }
}

/// The longest name of anything, in bytes.
pub const MAX_NAME_BYTES: usize = 255;

/// Refuses names that nothing may have: empty, longer than [`MAX_NAME_BYTES`], or with control
/// characters. All that columns, tags and users are asked.
///
/// # Errors
/// `invalid_input`, naming what kind of object the name was for.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(bad_name(what, name, "is empty"));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(bad_name(what, name, &format!("is longer than {MAX_NAME_BYTES} bytes")));
    }
    if name.chars().any(char::is_control) {
        return Err(bad_name(what, name, "holds a control character"));
    }
    Ok(())
}

/// Refuses names that no table may have: those of [`check_name`], and `.` and `..`. Measurements
/// of line protocol are tables, so everything else they may be called is allowed, also spaces,
/// slashes and any script; folders are named by percent-encoding.
///
/// # Errors
/// `invalid_input`, naming what kind of object the name was for.
pub fn check_table(what: &str, name: &str) -> Result<()> {
    check_name(what, name)?;
    if matches!(name, "." | "..") {
        return Err(bad_name(what, name, "means a folder"));
    }
    Ok(())
}

/// Refuses names that no database or schema may have: those of [`check_table`], and any with a
/// slash or a backslash, which part an address such as `/write/database/table` and a bucket
/// such as `database/autogen`.
///
/// # Errors
/// `invalid_input`, naming what kind of object the name was for.
pub fn check_space(what: &str, name: &str) -> Result<()> {
    check_table(what, name)?;
    if name.contains(['/', '\\']) {
        return Err(bad_name(what, name, "holds a slash or backslash"));
    }
    Ok(())
}

/// A name that is too long is shown by its beginning.
fn bad_name(what: &str, name: &str, problem: &str) -> Error {
    let mut shown: String = name.chars().take(40).collect();
    if shown.len() < name.len() {
        shown.push('…');
    }
    Error::new(Code::InvalidInput, format!("{what} name {shown:?} {problem}")).with_hint(format!(
        "names have 1 to {MAX_NAME_BYTES} bytes and no control characters; those of databases, \
         schemas and tables are not . or .., and those of databases and schemas hold no / or \\"
    ))
}

impl fmt::Display for TableName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.database, self.schema, self.table)
    }
}

/// What a table was created `WITH`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableOptions {
    /// Keep every row, also those of the same tags and time.
    pub append_only: bool,
    /// Width of the time windows that segments are cut at, in nanoseconds; at least one second.
    pub window_ns: i64,
    /// Let integers and floating point meet in a field: integers that floating point holds
    /// exactly become such, and an integer field becomes floating point once it is given some.
    pub widen_integers: bool,
}

/// The default width of a segment's time window: one day.
pub const DEFAULT_WINDOW_NS: i64 = 86_400_000_000_000;

impl Default for TableOptions {
    fn default() -> Self {
        TableOptions { append_only: false, window_ns: DEFAULT_WINDOW_NS, widen_integers: false }
    }
}

/// A table as the catalog knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDef {
    /// Its identity.
    pub id: TableId,
    /// Its name.
    pub name: TableName,
    /// Its columns.
    pub schema: TableSchema,
    /// Its options.
    pub options: TableOptions,
}

/// Rows for one table on their way in: a batch whose fields carry their [`ColumnKind`].
///
/// The batch may hold any subset of the table's columns, and columns that the table does not
/// have yet; absent columns stay as they are stored (NULL for a new row). It always has the
/// time column, without NULLs.
#[derive(Debug, Clone)]
pub struct TableBatch {
    /// Where the rows go.
    pub table: TableName,
    /// The rows.
    pub batch: RecordBatch,
    /// For each row the line (from 1) of the request that it came from; empty where rows
    /// have no lines.
    pub lines: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(part: &str) -> [bool; 3] {
        let table = |database: &str, schema: &str, table: &str| TableName {
            database: database.to_owned(),
            schema: schema.to_owned(),
            table: table.to_owned(),
        };
        [table(part, "s", "t"), table("d", part, "t"), table("d", "s", part)].map(|name| {
            let Err(error) = name.check() else { return false };
            assert_eq!(error.code(), Code::InvalidInput);
            assert!(error.hint().is_some() && error.message().len() < 400, "{error}");
            true
        })
    }

    #[test]
    fn names_that_mean_a_folder_part_an_address_or_cannot_be_seen_are_refused() {
        let (long, longest) = ("ü".repeat(128), "x".repeat(MAX_NAME_BYTES));
        for nothing in ["", ".", "..", "a\0", "a\nb", "\u{7f}", "\u{85}", &long] {
            assert_eq!(refused(nothing), [true; 3], "{nothing:?}");
        }
        for address in ["../evil", "a/b", "/", "..\\evil"] {
            assert_eq!(refused(address), [true, true, false], "{address:?}");
        }
        for fine in ["a b", "...", ".a", "Größe", "温度", "a.b", "%2e%2e", "a%2Fb", &longest] {
            assert_eq!(refused(fine), [false; 3], "{fine:?}");
        }
        assert!(check_name("field", "..").is_ok(), "no folder is named after a field");
    }
}
