//! How committed batches are written out, for those who read the journal as a feed.
//!
//! As JSON, a batch is one line: whoever has the line has the whole batch, and `next` in it is
//! where to go on. As Arrow, a batch is one IPC stream, one after the other, since each may have
//! columns of its own; what a line says beside the rows is in the metadata of its schema.

use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

use arrow::ipc::writer::StreamWriter;
use arrow::json::WriterBuilder;
use arrow::json::writer::JsonArray;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, SecondsFormat};
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::changes::Change;
use kymo_kernel::{Code, Error, Result};
use serde_json::json;

/// How batches are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line
    Json,
    /// One Arrow IPC stream a batch
    Arrow,
}

impl Format {
    /// Its name in requests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Arrow => "arrow",
        }
    }

    /// What the `Content-Type` header says.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Format::Json => "application/jsonl",
            Format::Arrow => "application/vnd.apache.arrow.stream",
        }
    }

    /// Appends a batch.
    ///
    /// # Errors
    /// `corrupt` where its bytes do not decode although their checksum held.
    pub fn write(self, change: &Change, out: &mut Vec<u8>) -> Result<()> {
        let batch = change.record.decode()?;
        let written = match self {
            Format::Json => line(change, &batch, out),
            Format::Arrow => stream(change, batch, out),
        };
        written.map_err(|problem| {
            let what = format!("write out the batch at {}: {problem}", change.position);
            Error::new(Code::Unsupported, what)
        })
    }

    /// What a feed that breaks off can still say, in formats where a reader sees it.
    #[must_use]
    pub fn last_words(self, error: &Error) -> Option<Vec<u8>> {
        if self == Format::Arrow {
            return None;
        }
        let words = json!({
            "kind": "error",
            "code": error.code().as_str(),
            "message": error.message(),
            "hint": error.hint(),
        });
        Some(format!("{words}\n").into_bytes())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Format> {
        match text {
            "json" | "jsonl" => Ok(Format::Json),
            "arrow" | "ipc" => Ok(Format::Arrow),
            other => Err(Error::new(Code::InvalidInput, format!("unknown format {other:?}"))
                .with_hint("use json or arrow")),
        }
    }
}

type Problem = Box<dyn std::error::Error>;

fn line(change: &Change, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), Problem> {
    let head = json!({
        "position": change.position.to_string(),
        "next": change.next().to_string(),
        "kind": "rows",
        "table": name(change),
        "written": written(change),
    })
    .to_string();
    // The rows come last, so that a reader may stop where it has seen enough.
    out.extend_from_slice(head.trim_end_matches('}').as_bytes());
    out.extend_from_slice(b",\"rows\":");
    let options = WriterBuilder::new().with_explicit_nulls(true);
    let mut rows = options.build::<_, JsonArray>(&mut *out);
    rows.write(batch)?;
    rows.finish()?;
    drop(rows);
    out.extend_from_slice(b"}\n");
    Ok(())
}

fn stream(change: &Change, batch: RecordBatch, out: &mut Vec<u8>) -> Result<(), Problem> {
    let mut schema = batch.schema().as_ref().clone();
    let mut tell = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            schema.metadata.insert(format!("kymo.{key}"), value);
        }
    };
    tell("position", Some(change.position.to_string()));
    tell("next", Some(change.next().to_string()));
    tell("kind", Some("rows".to_owned()));
    tell("table", name(change));
    tell("written", written(change));
    let batch = batch.with_schema(Arc::new(schema))?;
    let mut writer = StreamWriter::try_new(out, &batch.schema())?;
    writer.write(&batch)?;
    writer.finish()?;
    writer.into_inner()?.flush()?;
    Ok(())
}

fn name(change: &Change) -> Option<String> {
    change.table.as_ref().map(TableName::to_string)
}

/// When the batch was written; nothing where an earlier build wrote it.
fn written(change: &Change) -> Option<String> {
    let ms = i64::try_from(change.record.written_ms).ok().filter(|ms| *ms > 0)?;
    let time = DateTime::from_timestamp_millis(ms)?;
    Some(time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// The table that somebody names as `table`, `database.table` or `database.schema.table`.
///
/// # Errors
/// `invalid_input` for more parts than these.
pub fn table(text: &str, database: &str) -> Result<TableName> {
    let parts: Vec<&str> = text.split('.').collect();
    Ok(match parts[..] {
        [table] => TableName::new(database, table),
        [database, table] => TableName::new(database, table),
        [database, schema, table] => {
            TableName { schema: schema.to_owned(), ..TableName::new(database, table) }
        }
        _ => {
            return Err(Error::new(Code::InvalidInput, format!("{text:?} names no table"))
                .with_hint("use table, database.table or database.schema.table"));
        }
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, DictionaryArray, Float64Array, Int64Array, UInt64Array};
    use arrow::datatypes::{Field, Int32Type, Schema};
    use arrow::ipc::reader::StreamReader;
    use kymo_kernel::ids::TableId;
    use kymo_kernel::storage::log::Record;
    use serde_json::Value;

    use super::*;

    fn change(table: Option<TableName>) -> Change {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("host", Arc::new(DictionaryArray::<Int32Type>::from_iter(["a", "}"]))),
            ("n", Arc::new(Int64Array::from(vec![Some(i64::MIN), None]))),
            ("u", Arc::new(UInt64Array::from(vec![Some(u64::MAX), Some(9_007_199_254_740_993)]))),
            ("f", Arc::new(Float64Array::from(vec![Some(0.1), None]))),
            (
                "time",
                Arc::new(
                    arrow::array::TimestampNanosecondArray::from(vec![
                        1,
                        1_700_000_000_123_456_789,
                    ])
                    .with_timezone("+00:00"),
                ),
            ),
        ];
        let field =
            |(name, column): &(&str, ArrayRef)| Field::new(*name, column.data_type().clone(), true);
        let schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
        let columns = columns.into_iter().map(|(_, column)| column).collect();
        let batch = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
        let mut record = Record::encode(TableId(1), 1, &batch).unwrap();
        record.written_ms = 1_700_000_000_001;
        Change { position: "0-3-17".parse().unwrap(), record, table }
    }

    #[test]
    fn a_line_keeps_nanoseconds_nulls_and_every_bit_of_whole_numbers() {
        let mut out = Vec::new();
        Format::Json.write(&change(Some(TableName::new("d", "t"))), &mut out).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"kind\":\"rows\",\"next\":\"0-3-18\",\"position\":\"0-3-17\",\
             \"table\":\"d.public.t\",\"written\":\"2023-11-14T22:13:20.001Z\",\"rows\":[\
             {\"host\":\"a\",\"n\":-9223372036854775808,\"u\":18446744073709551615,\"f\":0.1,\
             \"time\":\"1970-01-01T00:00:00.000000001Z\"},\
             {\"host\":\"}\",\"n\":null,\"u\":9007199254740993,\"f\":null,\
             \"time\":\"2023-11-14T22:13:20.123456789Z\"}]}\n"
        );
    }

    #[test]
    fn a_line_of_a_table_that_is_gone_is_json_all_the_same() {
        let mut out = Vec::new();
        Format::Json.write(&change(None), &mut out).unwrap();
        let line: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&line["table"], line["rows"].as_array().unwrap().len()), (&Value::Null, 2));
    }

    #[test]
    fn streams_follow_one_another() {
        let (mut out, change) = (Vec::new(), change(Some(TableName::new("d", "t"))));
        Format::Arrow.write(&change, &mut out).unwrap();
        Format::Arrow.write(&change, &mut out).unwrap();
        let mut rest = out.as_slice();
        for _ in 0..2 {
            let mut reader = StreamReader::try_new(&mut rest, None).unwrap();
            let batch = reader.next().unwrap().unwrap();
            assert!(reader.next().is_none());
            assert_eq!(batch.columns(), change.record.decode().unwrap().columns());
            assert_eq!(batch.schema().metadata()["kymo.next"], "0-3-18");
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn a_table_is_named_by_one_to_three_parts() {
        let named = |text| table(text, "own").unwrap().to_string();
        assert_eq!(named("t"), "own.public.t");
        assert_eq!(named("d.t"), "d.public.t");
        assert_eq!(named("d.s.t"), "d.s.t");
        assert!(table("a.b.c.d", "own").is_err());
    }
}
