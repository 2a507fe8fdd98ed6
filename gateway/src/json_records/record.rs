//! One record: which of its keys is what.

use foldhash::HashMap;
use kymo_kernel::schema::{ColumnKind, FieldType};
use kymo_kernel::{Code, Error, Result};
use serde_json::{Map, Value as Json};

use super::Target;
use crate::columns::{Columns, Refusal, Value};
use crate::line_protocol::{Options, Precision};

const TABLE_KEYS: [&str; 3] = ["table", "measurement", "metric"];
const TIME_KEYS: [&str; 3] = ["time", "timestamp", "_time"];

/// A record with its parts told apart.
pub(super) struct Record<'a> {
    pub table: &'a str,
    time: i64,
    tags: Vec<(&'a str, &'a Json)>,
    fields: Vec<(&'a str, &'a Json)>,
}

impl<'a> Record<'a> {
    pub(super) fn read(
        object: &'a Map<String, Json>,
        target: &'a Target,
        options: &Options,
    ) -> Result<Self> {
        let (table_key, table) = table_of(object, target)?;
        let time_key = TIME_KEYS.into_iter().find(|key| object.contains_key(*key));
        let time = match time_key {
            Some(key) => instant(key, &object[key], options.precision)?,
            None => options.precision.truncate(options.now_ns),
        };
        let tag_map = part(object, "tags")?;
        let field_map = part(object, "fields")?;
        let mut record = Record { table, time, tags: Vec::new(), fields: Vec::new() };
        for (key, value) in object {
            let key = key.as_str();
            let structural = Some(key) == table_key
                || Some(key) == time_key
                || (key == "tags" && tag_map.is_some())
                || (key == "fields" && field_map.is_some());
            if structural {
                continue;
            }
            if target.tags.iter().any(|tag| tag == key) {
                record.tags.push((key, value));
            } else if field_map.is_none() {
                record.fields.push((key, value));
            } else {
                return Err(bad(format!("key {key:?} stands beside `fields`"))
                    .with_hint("put it into `fields` or `tags`"));
            }
        }
        record.tags.extend(tag_map.into_iter().flatten().map(|(key, value)| (key.as_str(), value)));
        let fields = field_map.into_iter().flatten();
        record.fields.extend(fields.map(|(key, value)| (key.as_str(), value)));
        Ok(record)
    }

    /// Adds the record as a row.
    pub(super) fn add(
        mut self,
        columns: &mut Columns,
        known: &mut HashMap<Vec<u8>, u32>,
        number: u32,
    ) -> Result<()> {
        let table = columns.table().table.clone();
        let refused = |refusal: Refusal| refusal.error(&table);
        // What the table knows as a tag is one, also where the record does not say so.
        let is_tag = |name: &str, columns: &Columns| {
            matches!(columns.kind(name.as_bytes()), Some((ColumnKind::Tag, _)))
        };
        let (tags, fields) = std::mem::take(&mut self.fields)
            .into_iter()
            .partition(|(name, _): &(&str, &Json)| is_tag(name, columns));
        self.tags.extend::<Vec<_>>(tags);
        self.fields = fields;
        let series = self.series(columns, known)?;
        let mut values = Vec::with_capacity(self.fields.len());
        for (name, json) in &self.fields {
            let existing = columns.kind(name.as_bytes()).map(|(_, field_type)| field_type);
            let Some(value) = value(name, json, existing)? else { continue };
            let at = match columns.take(name.as_bytes(), &value) {
                Ok(at) => at,
                Err(refusal) => widened(columns, name, value).ok_or_else(|| refused(refusal))?,
            };
            values.push((at, value));
        }
        if values.is_empty() {
            return Err(bad("no field with a value").with_hint("a record needs at least one"));
        }
        columns.row(series, self.time, number, &values);
        Ok(())
    }

    fn series(&self, columns: &mut Columns, known: &mut HashMap<Vec<u8>, u32>) -> Result<u32> {
        let mut tags = Vec::with_capacity(self.tags.len());
        for (name, json) in &self.tags {
            let text = match json {
                Json::Null => continue,
                Json::String(text) if text.is_empty() => continue,
                Json::String(text) => text.clone(),
                Json::Bool(_) | Json::Number(_) => json.to_string(),
                _ => return Err(bad(format!("tag {name:?} is {}, not text", kind(json)))),
            };
            tags.push((*name, text));
        }
        let mut key = Vec::new();
        for (name, text) in &tags {
            for part in [name.as_bytes(), text.as_bytes()] {
                key.extend_from_slice(&(part.len() as u64).to_le_bytes());
                key.extend_from_slice(part);
            }
        }
        if let Some(series) = known.get(&key) {
            return Ok(*series);
        }
        let series = columns.start_series();
        for (name, text) in &tags {
            columns
                .tag(name.as_bytes(), text.as_bytes())
                .map_err(|refusal| refusal.error(&columns.table().table))?;
        }
        known.insert(key, series);
        Ok(series)
    }
}

/// A column that was made for integers by an earlier record takes this fraction after all.
fn widened(columns: &mut Columns, name: &str, value: Value<'_>) -> Option<u32> {
    if value.field_type() != FieldType::Float64 {
        return None;
    }
    let at = columns.field(name.as_bytes(), FieldType::Int64).ok()?;
    columns.widen(at).then_some(at)
}

fn table_of<'a>(
    object: &'a Map<String, Json>,
    target: &'a Target,
) -> Result<(Option<&'static str>, &'a str)> {
    if let Some(table) = &target.table {
        return Ok((None, table));
    }
    match TABLE_KEYS.into_iter().find_map(|key| object.get(key).map(|name| (key, name))) {
        Some((key, Json::String(name))) => Ok((Some(key), name)),
        Some((key, other)) => Err(bad(format!("{key:?} is {}, not a table's name", kind(other)))),
        None => Err(bad("the record names no table")
            .with_hint("add the key `table`, or ?table= to the request")),
    }
}

fn part<'a>(object: &'a Map<String, Json>, key: &str) -> Result<Option<&'a Map<String, Json>>> {
    match object.get(key) {
        Some(Json::Object(part)) => Ok(Some(part)),
        Some(Json::Null) | None => Ok(None),
        Some(other) => Err(bad(format!("`{key}` is {}, not an object", kind(other)))),
    }
}

fn instant(key: &str, json: &Json, precision: Precision) -> Result<i64> {
    let precision = if key == "_time" { Precision::Milliseconds } else { precision };
    let out_of_range =
        || Error::new(Code::OutOfRange, format!("{key:?} lies outside of the years 1677 to 2262"));
    match json {
        Json::Number(number) => match number.as_i64() {
            Some(number) => precision.to_ns(number).ok_or_else(out_of_range),
            None if number.is_u64() => Err(out_of_range()),
            None => Err(bad(format!("{key:?} is {number}, not a whole number"))),
        },
        Json::String(text) => match chrono::DateTime::parse_from_rfc3339(text) {
            Ok(instant) => instant.timestamp_nanos_opt().ok_or_else(out_of_range),
            Err(_) => Err(bad(format!("{key:?} is no instant by RFC 3339: {:?}", cut(text)))
                .with_hint("write it as 2025-01-31T12:00:00Z")),
        },
        other => Err(bad(format!("{key:?} is {}, not an instant", kind(other)))),
    }
}

/// The value of a field, in the column's type where JSON leaves it open; `None` for null.
fn value<'a>(name: &str, json: &'a Json, existing: Option<FieldType>) -> Result<Option<Value<'a>>> {
    Ok(Some(match json {
        Json::Null => return Ok(None),
        Json::Bool(value) => Value::Bool(*value),
        Json::String(text) if existing == Some(FieldType::Timestamp) => {
            Value::Timestamp(instant(name, &Json::String(text.clone()), Precision::Auto)?)
        }
        Json::String(text) => Value::Text { raw: text.as_bytes(), escaped: false },
        Json::Number(number) => number_value(name, number, existing)?,
        other => {
            return Err(bad(format!("field {name:?} is {}, not a single value", kind(other)))
                .with_hint("send it as text, or its parts as fields of their own"));
        }
    }))
}

fn number_value(
    name: &str,
    number: &serde_json::Number,
    existing: Option<FieldType>,
) -> Result<Value<'static>> {
    let out_of_range =
        || Error::new(Code::OutOfRange, format!("field {name:?} is out of range: {number}"));
    match (existing, number.as_i64(), number.as_u64()) {
        (Some(FieldType::Float64), ..) => {
            number.as_f64().map(Value::Float).ok_or_else(out_of_range)
        }
        (Some(FieldType::UInt64), _, Some(value)) => Ok(Value::UInt(value)),
        (Some(FieldType::UInt64), Some(_), None) => Err(out_of_range()),
        (_, Some(value), _) => Ok(Value::Int(value)),
        (_, None, Some(_)) => Err(out_of_range()),
        (Some(FieldType::Int64), None, None) => {
            let value = number.as_f64().ok_or_else(out_of_range)?;
            // 2^53: below it, a whole number in floating point is exactly that integer.
            let whole = value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0;
            #[expect(clippy::cast_possible_truncation, reason = "checked to be whole and small")]
            Ok(if whole { Value::Int(value as i64) } else { Value::Float(value) })
        }
        _ => number.as_f64().map(Value::Float).ok_or_else(out_of_range),
    }
}

/// What a JSON value is, for messages.
pub(super) fn kind(json: &Json) -> &'static str {
    match json {
        Json::Null => "null",
        Json::Bool(_) => "a truth value",
        Json::Number(_) => "a number",
        Json::String(_) => "text",
        Json::Array(_) => "an array",
        Json::Object(_) => "an object",
    }
}

fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

fn bad(message: impl Into<String>) -> Error {
    Error::new(Code::InvalidInput, message)
}
