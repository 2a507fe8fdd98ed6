//! Instants written as text where the engine reads them too narrowly.
//!
//! Times are nanoseconds since 1970 in 64 bits, which end in 1677 and 2262. A comparison with
//! an instant beyond is still true or false, not an error: no row can lie there. And a time of
//! day may be written without seconds.

use chrono::{DateTime, Utc};
use datafusion::arrow::compute::kernels::cast_utils::string_to_datetime;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Expr;

/// Brings a text that is cast to an instant into a form that the engine reads; answers whether
/// it changed.
pub(super) fn readable(value: &mut Expr, to: &DataType) -> bool {
    if !matches!(to, DataType::Timestamp(..)) {
        return false;
    }
    let Expr::Literal(ScalarValue::Utf8(Some(text)), _) = value else { return false };
    match with_seconds(text) {
        Some(full) => {
            *text = full;
            true
        }
        None => false,
    }
}

/// The instant that a text stands for, in nanoseconds since 1970; `None` where it is none, or
/// none that columns can hold.
pub(super) fn read(text: &str) -> Option<i64> {
    let full = with_seconds(text);
    let instant = string_to_datetime(&Utc, full.as_deref().unwrap_or(text.trim())).ok()?;
    instant.timestamp_nanos_opt()
}

/// Puts the nearest instant that exists in the place of a constant one that lies beyond those
/// that columns can hold; answers whether it did.
pub(super) fn within_range(value: &mut Expr) -> bool {
    let Expr::Cast(cast) = &*value else { return false };
    let DataType::Timestamp(TimeUnit::Nanosecond, zone) = cast.field.data_type() else {
        return false;
    };
    let Some(instant) = constant(&cast.expr) else { return false };
    if instant.timestamp_nanos_opt().is_some() {
        return false;
    }
    let nearest = if instant.timestamp() < 0 { i64::MIN } else { i64::MAX };
    let nearest = ScalarValue::TimestampNanosecond(Some(nearest), zone.clone());
    *value = Expr::Literal(nearest, None);
    true
}

/// The instant that a text stands for, below casts to a date or to an instant.
fn constant(value: &Expr) -> Option<DateTime<Utc>> {
    match value {
        Expr::Literal(ScalarValue::Utf8(Some(text)), _) => {
            string_to_datetime(&Utc, text.trim()).ok()
        }
        Expr::Cast(cast) => match cast.field.data_type() {
            DataType::Timestamp(..) | DataType::Date32 | DataType::Utf8 => constant(&cast.expr),
            _ => None,
        },
        _ => None,
    }
}

/// `2024-01-03 12:00` and `2024-01-03T12:00Z` with seconds; `None` for other forms.
fn with_seconds(text: &str) -> Option<String> {
    let text = text.trim();
    let shape = b"dddd-dd-dd?dd:dd";
    let head = text.as_bytes().get(..shape.len())?;
    let fits = head.iter().zip(shape).all(|(byte, wanted)| match wanted {
        b'd' => byte.is_ascii_digit(),
        b'?' => matches!(byte, b' ' | b'T' | b't'),
        wanted => byte == wanted,
    });
    let rest = text.get(shape.len()..)?;
    let ends = rest.is_empty() || rest.starts_with([' ', '+', '-', 'Z', 'z']);
    (fits && ends).then(|| format!("{}:00{rest}", &text[..shape.len()]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_added_where_they_are_missing() {
        for (text, full) in [
            ("2024-01-03 12:00", Some("2024-01-03 12:00:00")),
            ("2024-01-03T12:00Z", Some("2024-01-03T12:00:00Z")),
            (" 2024-01-03 12:00+02:00 ", Some("2024-01-03 12:00:00+02:00")),
            ("2024-01-03 12:00:01", None),
            ("2024-01-03", None),
            ("2024-01-03 12:00x", None),
            ("2024-01-03 12:0", None),
            ("äääääääääää", None),
        ] {
            assert_eq!(with_seconds(text).as_deref(), full, "{text}");
        }
    }
}
