//! PostgreSQL's names for Arrow types.

use datafusion::arrow::datatypes::{DataType, TimeUnit};

/// The name of a type as PostgreSQL spells it in `information_schema` and `pg_typeof`.
pub(crate) fn name(data_type: &DataType) -> &'static str {
    match data_type {
        DataType::Boolean => "boolean",
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint",
        DataType::Int32 | DataType::UInt16 => "integer",
        DataType::Int64 | DataType::UInt32 => "bigint",
        DataType::UInt64
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => "numeric",
        DataType::Float16 | DataType::Float32 => "real",
        DataType::Float64 => "double precision",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text",
        DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_) => "bytea",
        DataType::Date32 | DataType::Date64 => "date",
        DataType::Time32(_) | DataType::Time64(_) => "time without time zone",
        DataType::Timestamp(
            TimeUnit::Second | TimeUnit::Millisecond | TimeUnit::Microsecond | TimeUnit::Nanosecond,
            zone,
        ) => {
            if zone.is_some() {
                "timestamp with time zone"
            } else {
                "timestamp without time zone"
            }
        }
        DataType::Interval(_) | DataType::Duration(_) => "interval",
        DataType::Dictionary(_, values) => name(values),
        DataType::List(_)
        | DataType::LargeList(_)
        | DataType::FixedSizeList(..)
        | DataType::ListView(_)
        | DataType::LargeListView(_) => "ARRAY",
        DataType::Null => "unknown",
        _ => "record",
    }
}

/// PostgreSQL's internal name of a type, for `udt_name`.
pub(crate) fn udt(data_type: &DataType) -> &'static str {
    match name(data_type) {
        "boolean" => "bool",
        "smallint" => "int2",
        "integer" => "int4",
        "bigint" => "int8",
        "real" => "float4",
        "double precision" => "float8",
        "timestamp with time zone" => "timestamptz",
        "timestamp without time zone" => "timestamp",
        "time without time zone" => "time",
        "ARRAY" => "anyarray",
        other => other,
    }
}
