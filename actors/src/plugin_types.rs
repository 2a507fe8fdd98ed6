//! The types of plugins' parameters and results by their SQL names, one name for each type
//! that plugins know, so that a declared signature can be compared with an offered one.

use arrow::datatypes::DataType;

/// How SQL writes a type. Timestamps of all units are one type to SQL, and so are durations.
#[must_use]
pub fn sql_name(data_type: &DataType) -> String {
    let name = match data_type {
        DataType::Boolean => "BOOLEAN",
        DataType::Int32 => "INTEGER",
        DataType::Int64 => "BIGINT",
        DataType::UInt64 => "BIGINT UNSIGNED",
        DataType::Float32 => "REAL",
        DataType::Float64 => "DOUBLE PRECISION",
        DataType::Utf8 => "TEXT",
        DataType::Binary => "BYTEA",
        DataType::Date32 => "DATE",
        DataType::Timestamp(_, None) => "TIMESTAMP",
        DataType::Timestamp(_, Some(_)) => "TIMESTAMPTZ",
        DataType::Duration(_) => "INTERVAL",
        other => return other.to_string(),
    };
    name.to_owned()
}
