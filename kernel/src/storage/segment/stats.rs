//! What is known of a segment's columns without opening it, from the footer just written.

use arrow::datatypes::{DataType, Field, Schema};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

use crate::ids::ColumnId;
use crate::schema::column_id;
use crate::storage::meta::{ColumnStats, Scalar};

/// The statistics of all columns. Columns that hold a NaN, marked in `nan`, get no bounds:
/// Parquet's pass over it, though it compares as larger than every number.
pub(super) fn of(footer: &ParquetMetaData, schema: &Schema, nan: &[bool]) -> Vec<ColumnStats> {
    let columns = schema.fields().iter().zip(nan).enumerate();
    columns
        .filter_map(|(place, (field, nan))| {
            Some(column(footer, place, field, column_id(field)?, *nan))
        })
        .collect()
}

fn column(
    footer: &ParquetMetaData,
    place: usize,
    field: &Field,
    id: ColumnId,
    nan: bool,
) -> ColumnStats {
    let mut out = ColumnStats { column: id, nulls: 0, min: None, max: None };
    let mut bounded = !nan;
    for group in footer.row_groups() {
        let statistics = group.column(place).statistics();
        let nulls = statistics.and_then(Statistics::null_count_opt);
        out.nulls += nulls.unwrap_or_default();
        if nulls.is_some_and(|nulls| i64::try_from(nulls) == Ok(group.num_rows())) {
            continue;
        }
        match statistics.and_then(|statistics| bounds(statistics, field.data_type())) {
            Some((min, max)) => {
                out.min = Some(out.min.map_or(min.clone(), |known| pick(known, min, false)));
                out.max = Some(out.max.map_or(max.clone(), |known| pick(known, max, true)));
            }
            None => bounded = false,
        }
    }
    if !bounded {
        (out.min, out.max) = (None, None);
    }
    out
}

fn bounds(statistics: &Statistics, data_type: &DataType) -> Option<(Scalar, Scalar)> {
    Some(match statistics {
        Statistics::Boolean(bounds) => {
            (Scalar::Bool(*bounds.min_opt()?), Scalar::Bool(*bounds.max_opt()?))
        }
        Statistics::Double(bounds) => {
            (Scalar::Float64(*bounds.min_opt()?), Scalar::Float64(*bounds.max_opt()?))
        }
        Statistics::Int64(bounds) => {
            let (min, max) = (*bounds.min_opt()?, *bounds.max_opt()?);
            match data_type {
                // Parquet compares unsigned numbers as such and keeps their bits.
                DataType::UInt64 => {
                    (Scalar::UInt64(min.cast_unsigned()), Scalar::UInt64(max.cast_unsigned()))
                }
                DataType::Timestamp(_, _) => (Scalar::Timestamp(min), Scalar::Timestamp(max)),
                _ => (Scalar::Int64(min), Scalar::Int64(max)),
            }
        }
        Statistics::ByteArray(bounds) => {
            let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
            (
                Scalar::Text(text(bounds.min_opt()?.data())?),
                Scalar::Text(text(bounds.max_opt()?.data())?),
            )
        }
        _ => return None,
    })
}

/// The larger or the smaller of two values of one type.
fn pick(a: Scalar, b: Scalar, larger: bool) -> Scalar {
    let a_is_less = match (&a, &b) {
        (Scalar::Float64(a), Scalar::Float64(b)) => a < b,
        (Scalar::Int64(a), Scalar::Int64(b)) | (Scalar::Timestamp(a), Scalar::Timestamp(b)) => {
            a < b
        }
        (Scalar::UInt64(a), Scalar::UInt64(b)) => a < b,
        (Scalar::Bool(a), Scalar::Bool(b)) => a < b,
        (Scalar::Text(a), Scalar::Text(b)) => a < b,
        _ => return a,
    };
    if a_is_less == larger { b } else { a }
}
