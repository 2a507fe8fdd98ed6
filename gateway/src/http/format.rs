//! The formats of an answer, each an encoder that takes batches and gives bytes.
//!
//! Columns have names of their own in every format, because the keys of a JSON object and
//! most readers of the others need them: where a query gives a name twice, as `count(*)` and
//! `count(x)` both do, the later one becomes `count_1`, then `count_2` ([`unique_names`]).

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;

use arrow::csv;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{JsonArray, LineDelimited, WriterBuilder};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use arrow::util::pretty::pretty_format_batches_with_schema;
use axum::body::Bytes;
use axum::http::HeaderValue;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use serde_json::json;

/// A table for people is laid out as a whole, so it is kept small.
const PRETTY_BYTES: usize = 16 << 20;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An array of objects.
    Json,
    /// One object a line.
    JsonLines,
    /// Comma-separated values with a header.
    Csv,
    /// A table for people.
    Pretty,
    /// A Parquet file.
    Parquet,
    /// A stream of Arrow IPC.
    Arrow,
}

impl Format {
    /// The format of a name, or that of an `Accept` header, or JSON.
    ///
    /// # Errors
    /// `invalid_input` for an unknown name.
    pub fn choose(name: Option<&str>, accept: Option<&str>) -> Result<Format> {
        let Some(name) = name else {
            return Ok(accept.map_or(Format::Json, Format::accepted));
        };
        Ok(match name.to_ascii_lowercase().as_str() {
            "json" => Format::Json,
            "jsonl" | "ndjson" | "json_lines" => Format::JsonLines,
            "csv" => Format::Csv,
            "pretty" | "table" => Format::Pretty,
            "parquet" => Format::Parquet,
            "arrow" | "ipc" => Format::Arrow,
            other => {
                return Err(Error::new(Code::InvalidInput, format!("unknown format {other:?}"))
                    .with_hint("use json, jsonl, csv, pretty, parquet or arrow"));
            }
        })
    }

    fn accepted(accept: &str) -> Format {
        let first = accept.split([',', ';']).next().unwrap_or_default().trim();
        match first {
            "application/jsonl" | "application/x-ndjson" => Format::JsonLines,
            "text/csv" | "application/csv" => Format::Csv,
            "text/plain" => Format::Pretty,
            "application/vnd.apache.parquet" => Format::Parquet,
            "application/vnd.apache.arrow.stream" => Format::Arrow,
            _ => Format::Json,
        }
    }

    /// What the `Content-Type` header says.
    #[must_use]
    pub fn media_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Format::Json => "application/json",
            Format::JsonLines => "application/jsonl",
            Format::Csv => "text/csv; charset=utf-8",
            Format::Pretty => "text/plain; charset=utf-8",
            Format::Parquet => "application/vnd.apache.parquet",
            Format::Arrow => "application/vnd.apache.arrow.stream",
        })
    }
}

/// Where writers put their bytes until they are sent.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<Vec<u8>>>);

impl Pipe {
    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.0.lock()).into()
    }
}

impl Write for Pipe {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

enum Kind {
    Json(arrow::json::Writer<Pipe, JsonArray>),
    JsonLines(arrow::json::Writer<Pipe, LineDelimited>),
    Csv(Box<csv::Writer<Pipe>>),
    Pretty { schema: SchemaRef, batches: Vec<RecordBatch>, bytes: usize },
    Parquet(Option<Box<ArrowWriter<Pipe>>>),
    Arrow(StreamWriter<Pipe>),
}

/// Turns batches of one schema into the bytes of an answer.
pub struct Encoder {
    pipe: Pipe,
    kind: Kind,
    /// The shape that goes out, where it differs from that of the batches.
    sent: Option<SchemaRef>,
}

impl Encoder {
    /// An encoder for rows of this shape.
    ///
    /// # Errors
    /// `unsupported` for a type that the format cannot hold.
    pub fn new(format: Format, schema: &SchemaRef) -> Result<Encoder> {
        let pipe = Pipe::default();
        let mut sent = unique_names(schema);
        if format == Format::Parquet {
            // What the engine notes beside the columns is no business of the file's readers.
            let fields = sent.as_ref().unwrap_or(schema).fields().clone();
            sent = Some(Arc::new(Schema::new(fields)));
        }
        let schema = sent.as_ref().unwrap_or(schema);
        let json = || WriterBuilder::new().with_explicit_nulls(true);
        let kind = match format {
            Format::Json => Kind::Json(json().build(pipe.clone())),
            Format::JsonLines => Kind::JsonLines(json().build(pipe.clone())),
            Format::Csv => {
                let mut writer = csv::WriterBuilder::new().with_header(true).build(pipe.clone());
                // The header is there even if no row is.
                writer.write(&RecordBatch::new_empty(Arc::clone(schema))).map_err(cannot)?;
                Kind::Csv(Box::new(writer))
            }
            Format::Pretty => {
                Kind::Pretty { schema: Arc::clone(schema), batches: Vec::new(), bytes: 0 }
            }
            Format::Parquet => {
                let properties = WriterProperties::builder()
                    .set_compression(Compression::ZSTD(ZstdLevel::default()))
                    .set_max_row_group_row_count(Some(128 * 1024))
                    .build();
                let writer =
                    ArrowWriter::try_new(pipe.clone(), Arc::clone(schema), Some(properties))
                        .map_err(|error| cannot(error.into()))?;
                Kind::Parquet(Some(Box::new(writer)))
            }
            Format::Arrow => {
                Kind::Arrow(StreamWriter::try_new(pipe.clone(), schema).map_err(cannot)?)
            }
        };
        Ok(Encoder { pipe, kind, sent })
    }

    /// Encodes rows; gives what can be sent so far.
    ///
    /// # Errors
    /// `unsupported` for a value that the format cannot hold, `too_large` for a table for
    /// people that is too long for them.
    pub fn batch(&mut self, batch: &RecordBatch) -> Result<Bytes> {
        let reshaped = self.sent.as_ref().map(|schema| reshape(batch, schema)).transpose()?;
        let batch = reshaped.as_ref().unwrap_or(batch);
        match &mut self.kind {
            Kind::Json(writer) => writer.write(batch).map_err(cannot)?,
            Kind::JsonLines(writer) => writer.write(batch).map_err(cannot)?,
            Kind::Csv(writer) => writer.write(batch).map_err(cannot)?,
            Kind::Arrow(writer) => writer.write(batch).map_err(cannot)?,
            Kind::Parquet(Some(writer)) => {
                writer.write(batch).map_err(|error| cannot(error.into()))?;
            }
            Kind::Parquet(None) => {}
            Kind::Pretty { batches, bytes, .. } => {
                *bytes += batch.get_array_memory_size();
                if *bytes > PRETTY_BYTES {
                    return Err(Error::new(Code::TooLarge, "too many rows for format=pretty")
                        .with_hint("add a LIMIT, or use format=csv"));
                }
                batches.push(batch.clone());
            }
        }
        Ok(self.pipe.take())
    }

    /// The end of the answer.
    ///
    /// # Errors
    /// As [`Encoder::batch`].
    pub fn finish(&mut self) -> Result<Bytes> {
        match &mut self.kind {
            Kind::Json(writer) => writer.finish().map_err(cannot)?,
            Kind::JsonLines(writer) => writer.finish().map_err(cannot)?,
            Kind::Arrow(writer) => writer.finish().map_err(cannot)?,
            Kind::Csv(_) => {}
            Kind::Parquet(writer) => {
                if let Some(writer) = writer.take() {
                    writer.close().map_err(|error| cannot(error.into()))?;
                }
            }
            Kind::Pretty { schema, batches, .. } => {
                let table = pretty_format_batches_with_schema(Arc::clone(schema), batches)
                    .map_err(cannot)?;
                return Ok(format!("{table}\n").into());
            }
        }
        Ok(self.pipe.take())
    }

    /// What a stream that breaks off can still say, in formats where a reader sees it.
    #[must_use]
    pub fn last_words(&mut self, error: &Error) -> Option<Bytes> {
        let Kind::JsonLines(_) = &self.kind else { return None };
        let mut line = json!({
            "error": error.message(),
            "code": error.code().as_str(),
        })
        .to_string();
        line.push('\n');
        Some(line.into())
    }
}

/// The shape with a name of its own for every column; `None` where it has that already.
///
/// The first column of a name keeps it. Later ones get the next `_1`, `_2` … that no column of
/// the query is called, so that no name that is unique by itself changes.
fn unique_names(schema: &Schema) -> Option<SchemaRef> {
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let repeated: Vec<bool> =
        schema.fields().iter().map(|field| !taken.insert(field.name().clone())).collect();
    if !repeated.contains(&true) {
        return None;
    }
    let fields = schema.fields().iter().zip(repeated).map(|(field, repeated)| {
        if !repeated {
            return Arc::clone(field);
        }
        let mut number = 1_usize;
        let name = loop {
            let name = format!("{}_{number}", field.name());
            if taken.insert(name.clone()) {
                break name;
            }
            number += 1;
        };
        Arc::new(field.as_ref().clone().with_name(name))
    });
    Some(Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone())))
}

/// The same columns under other names.
fn reshape(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let rows = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &rows)
        .map_err(cannot)
}

fn cannot(error: ArrowError) -> Error {
    Error::new(Code::Unsupported, format!("the format cannot hold the answer: {error}"))
        .with_hint("CAST the column to text, or use another format")
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn renamed(names: &[&str]) -> Option<Vec<String>> {
        let fields: Vec<Field> =
            names.iter().map(|name| Field::new(*name, DataType::Int64, true)).collect();
        let schema = unique_names(&Schema::new(fields))?;
        Some(schema.fields().iter().map(|field| field.name().clone()).collect())
    }

    #[test]
    fn a_repeated_name_gets_the_next_number_that_is_free() {
        assert_eq!(renamed(&["a", "b"]), None);
        assert_eq!(renamed(&["n", "n", "n"]).unwrap(), ["n", "n_1", "n_2"]);
        assert_eq!(renamed(&["n", "n", "n_1", "n_1"]).unwrap(), ["n", "n_2", "n_1", "n_1_1"]);
    }
}
