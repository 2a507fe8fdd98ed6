//! One CSV cell: which types it can have, and how it looks in line protocol.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

use super::Precision;

/// The type of a column, from the narrowest to the widest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No cell has a value: the column is left out.
    Empty,
    /// `true` and `false`.
    Boolean,
    /// Whole numbers of 64 bits.
    Integer,
    /// Numbers.
    Float,
    /// Anything.
    Text,
}

impl Kind {
    /// The narrowest type for a cell. Digits behind a leading zero are text, as in a postal
    /// code: the zero would be lost.
    pub fn of(cell: &str) -> Kind {
        if matches!(cell, "true" | "false" | "TRUE" | "FALSE" | "True" | "False") {
            return Kind::Boolean;
        }
        let digits = cell.strip_prefix('-').unwrap_or(cell);
        if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Kind::Text;
        }
        let padded = digits.len() > 1
            && digits.starts_with('0')
            && digits[1..].starts_with(|c: char| c.is_ascii_digit());
        if padded {
            return Kind::Text;
        }
        if cell.parse::<i64>().is_ok() {
            return Kind::Integer;
        }
        match cell.parse::<f64>() {
            Ok(number) if number.is_finite() => Kind::Float,
            _ => Kind::Text,
        }
    }

    /// The type that holds the cells of both.
    pub fn with(self, other: Kind) -> Kind {
        use Kind::{Empty, Float, Integer, Text};
        match (self, other) {
            (a, b) if a == b => a,
            (Empty, kind) | (kind, Empty) => kind,
            (Integer, Float) | (Float, Integer) => Float,
            _ => Text,
        }
    }
}

/// Appends a field's value.
pub fn push_value(body: &mut Vec<u8>, kind: Kind, cell: &str) {
    match kind {
        Kind::Integer => {
            body.extend_from_slice(cell.as_bytes());
            body.push(b'i');
        }
        Kind::Boolean => {
            body.push(if cell.starts_with(['t', 'T']) { b't' } else { b'f' });
        }
        Kind::Float => body.extend_from_slice(cell.as_bytes()),
        Kind::Text | Kind::Empty => {
            body.push(b'"');
            for byte in cell.bytes() {
                if matches!(byte, b'"' | b'\\') {
                    body.push(b'\\');
                }
                body.push(byte);
            }
            body.push(b'"');
        }
    }
}

/// Appends a table's name.
pub fn push_table(body: &mut Vec<u8>, name: &str) {
    push_escaped(body, name, b", ");
}

/// Appends a tag's name or value, or a field's name.
pub fn push_key(body: &mut Vec<u8>, key: &str) {
    push_escaped(body, key, b",= ");
}

fn push_escaped(body: &mut Vec<u8>, text: &str, special: &[u8]) {
    for byte in text.bytes() {
        if special.contains(&byte) {
            body.push(b'\\');
        }
        body.push(byte);
    }
}

/// Whether line protocol can carry a name or a tag's value.
pub fn can_be_key(text: &str) -> bool {
    !text.is_empty() && !text.ends_with('\\') && !text.bytes().any(|byte| byte < 0x20)
}

/// A cell with a time as nanoseconds: RFC 3339, a date with or without a time (UTC), or a
/// number.
pub fn time(cell: &str, precision: Precision) -> Option<i64> {
    if let Ok(number) = cell.parse::<i64>() {
        return precision.to_ns(number);
    }
    if let Ok(time) = DateTime::parse_from_rfc3339(cell) {
        return time.timestamp_nanos_opt();
    }
    const FORMS: [&str; 3] = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M"];
    for form in FORMS {
        if let Ok(time) = NaiveDateTime::parse_from_str(cell, form) {
            return time.and_utc().timestamp_nanos_opt();
        }
    }
    if let Ok(time) = DateTime::parse_from_str(cell, "%Y-%m-%d %H:%M:%S%.f%#z") {
        return time.timestamp_nanos_opt();
    }
    let date = NaiveDate::parse_from_str(cell, "%Y-%m-%d").ok()?;
    date.and_hms_opt(0, 0, 0)?.and_utc().timestamp_nanos_opt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_have_the_narrowest_type() {
        let cells = [
            ("1", Kind::Integer),
            ("-5", Kind::Integer),
            ("0", Kind::Integer),
            ("0.5", Kind::Float),
            ("1e3", Kind::Float),
            ("9223372036854775808", Kind::Float),
            ("007", Kind::Text),
            ("true", Kind::Boolean),
            ("nan", Kind::Text),
            ("inf", Kind::Text),
            ("1e999", Kind::Text),
            ("EWR", Kind::Text),
            ("-", Kind::Text),
        ];
        for (cell, kind) in cells {
            assert_eq!(Kind::of(cell), kind, "{cell}");
        }
        assert_eq!(Kind::Integer.with(Kind::Float), Kind::Float);
        assert_eq!(Kind::Empty.with(Kind::Boolean), Kind::Boolean);
        assert_eq!(Kind::Boolean.with(Kind::Integer), Kind::Text);
    }

    #[test]
    fn times_are_read_in_the_usual_forms() {
        let ns = Some(1_357_020_000_000_000_000);
        let cells = [
            "2013-01-01T06:00:00Z",
            "2013-01-01T07:00:00+01:00",
            "2013-01-01 06:00:00",
            "2013-01-01 06:00",
            "2013-01-01 06:00:00+00",
            "1357020000",
            "1357020000000",
        ];
        for cell in cells {
            assert_eq!(time(cell, Precision::Auto), ns, "{cell}");
        }
        assert_eq!(time("2013-01-01", Precision::Auto), Some(1_356_998_400_000_000_000));
        assert_eq!(time("yesterday", Precision::Auto), None);
    }

    #[test]
    fn values_are_escaped() {
        let mut body = Vec::new();
        push_table(&mut body, "a b");
        push_key(&mut body, "c=d");
        push_value(&mut body, Kind::Text, "e\"f\\");
        assert_eq!(String::from_utf8(body).unwrap(), r#"a\ bc\=d"e\"f\\""#);
    }
}
