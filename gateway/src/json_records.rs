//! Records in JSON, read one at a time into typed columns.
//!
//! A body is an array of objects, an object `{"records": […]}`, or one object a line. Of a
//! record, `table` (or `measurement`, `metric`) names the table unless the request does,
//! `time` (or `timestamp`, `_time`) is the instant, `tags` holds tags, `fields` holds
//! fields; where there is no `fields`, all other keys are fields, except those that the
//! request calls tags. An instant is a number in the request's precision (`_time`: always
//! milliseconds) or a text by RFC 3339. Numbers without a fraction are integers, unless the
//! column holds floating point. A bad record costs only itself; broken JSON costs what
//! follows it.

mod record;

use std::fmt;

use foldhash::HashMap;
use foldhash::HashMapExt;
use kymo_kernel::schema::{TableBatch, TableName};
use kymo_kernel::{Code, Error, Result};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::columns::{Columns, Types};
use crate::line_protocol::Options;

/// Where records go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The database.
    pub database: String,
    /// The schema.
    pub schema: String,
    /// The table, where the request names one.
    pub table: Option<String>,
    /// The keys that are tags.
    pub tags: Vec<String>,
}

/// What a body held.
#[derive(Debug, Default)]
pub struct Parsed {
    /// The rows, each table once; the lines are record numbers, from 1.
    pub batches: Vec<TableBatch>,
    /// The first bad records, by number, from 1.
    pub errors: Vec<(u32, Error)>,
    /// How many records were bad.
    pub bad_records: u64,
}

/// Reads a body.
///
/// # Errors
/// `too_large` for a body of 2 GiB and more; `invalid_input` for a body that is no JSON from
/// the start.
pub fn parse(body: &[u8], types: &dyn Types, target: &Target, options: &Options) -> Result<Parsed> {
    if i32::try_from(body.len()).is_err() {
        return Err(Error::new(Code::TooLarge, "a body of 2 GiB or more")
            .with_hint("split it into several requests"));
    }
    let mut records = Records {
        types,
        target,
        options,
        tables: Vec::new(),
        by_name: HashMap::new(),
        number: 0,
        errors: Vec::new(),
        bad: 0,
        cells: 0,
        max_cells: body.len().saturating_mul(2).max(1 << 20),
    };
    let mut values = serde_json::Deserializer::from_slice(body);
    loop {
        // Looks only for whether there is more than white space left.
        if values.end().is_ok() {
            break;
        }
        if let Err(error) = (Top { records: &mut records }).deserialize(&mut values) {
            let broken = broken(&error);
            if records.number == 0 {
                return Err(broken);
            }
            records.number += 1;
            records.refuse(broken);
            break;
        }
    }
    records.finish()
}

fn broken(error: &serde_json::Error) -> Error {
    Error::new(Code::InvalidInput, format!("the body is not JSON: {error}"))
        .with_hint("send an array of objects, {\"records\": […]}, or one object a line")
}

/// The state of reading one body.
struct Records<'a> {
    types: &'a dyn Types,
    target: &'a Target,
    options: &'a Options,
    tables: Vec<Table>,
    by_name: HashMap<String, usize>,
    number: u32,
    errors: Vec<(u32, Error)>,
    bad: u64,
    cells: usize,
    max_cells: usize,
}

/// A table of the body with the series it has had.
struct Table {
    columns: Columns,
    series: HashMap<Vec<u8>, u32>,
}

impl Records<'_> {
    fn refuse(&mut self, error: Error) {
        self.bad += 1;
        if self.errors.len() < self.options.max_errors {
            self.errors.push((self.number, error));
        }
    }

    fn take(&mut self, value: Value) {
        self.number = self.number.saturating_add(1);
        let taken = match value {
            Value::Object(object) => self.record(&object),
            other => Err(Error::new(
                Code::InvalidInput,
                format!("a record must be an object, this is {}", record::kind(&other)),
            )),
        };
        if let Err(error) = taken {
            self.refuse(error);
        }
    }

    fn record(&mut self, object: &Map<String, Value>) -> Result<()> {
        let record = record::Record::read(object, self.target, self.options)?;
        let at = self.table(record.table)?;
        let Table { columns, series } = &mut self.tables[at];
        let mark = columns.mark();
        let width = columns.width();
        let number = self.number;
        let added = record.add(columns, series, number);
        let new_columns = columns.width().saturating_sub(width);
        self.cells += columns.width() + new_columns.saturating_mul(columns.rows());
        if let Err(error) = added {
            columns.rollback(mark);
            let kept = u32::try_from(columns.series_count()).unwrap_or(u32::MAX);
            series.retain(|_, series| *series < kept);
            return Err(error);
        }
        Ok(())
    }

    fn table(&mut self, name: &str) -> Result<usize> {
        if self.cells > self.max_cells {
            return Err(Error::new(
                Code::LimitReached,
                "the records of this request have too few keys in common",
            )
            .with_hint("send records of different shape in requests of their own"));
        }
        if let Some(at) = self.by_name.get(name) {
            return Ok(*at);
        }
        if self.tables.len() >= self.options.max_tables {
            return Err(Error::new(
                Code::LimitReached,
                format!("more than {} tables in one request", self.options.max_tables),
            ));
        }
        let full = TableName {
            database: self.target.database.clone(),
            schema: self.target.schema.clone(),
            table: name.to_owned(),
        };
        full.check()?;
        let known = self.types.table(&full);
        let columns = Columns::new(full, known.as_deref(), self.options.max_columns);
        self.tables.push(Table { columns, series: HashMap::new() });
        self.by_name.insert(name.to_owned(), self.tables.len() - 1);
        Ok(self.tables.len() - 1)
    }

    fn finish(self) -> Result<Parsed> {
        let mut batches = Vec::with_capacity(self.tables.len());
        for table in self.tables {
            batches.extend(table.columns.finish()?);
        }
        Ok(Parsed { batches, errors: self.errors, bad_records: self.bad })
    }
}

/// Reads one value of the top level: an array, an object with `records`, or a record.
struct Top<'r, 'a> {
    records: &'r mut Records<'a>,
}

impl<'de> DeserializeSeed<'de> for Top<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, values: D) -> Result<(), D::Error> {
        values.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Top<'_, '_> {
    type Value = ();

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an array of records, or a record")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(value) = seq.next_element::<Value>()? {
            self.records.take(value);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut record = Map::new();
        let mut wrapped = false;
        while let Some(key) = map.next_key::<String>()? {
            if key == "records" && record.is_empty() {
                wrapped = true;
                map.next_value_seed(List { records: self.records })?;
            } else if wrapped {
                map.next_value::<IgnoredAny>()?;
            } else {
                record.insert(key, map.next_value()?);
            }
        }
        if !wrapped {
            self.records.take(Value::Object(record));
        }
        Ok(())
    }
}

/// The array behind `records`.
struct List<'r, 'a> {
    records: &'r mut Records<'a>,
}

impl<'de> DeserializeSeed<'de> for List<'_, '_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, values: D) -> Result<(), D::Error> {
        values.deserialize_seq(Top { records: self.records })
    }
}

#[cfg(test)]
mod tests;
