//! The rows that transforms refused, as rows of `system.rejected_writes`: a table of every
//! database, stored like any other, that only ingest fills.
//!
//! A refused row is kept as a JSON object with the names and values that the transform was
//! given. `POST /write/database/table` takes it again as it is.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, RecordBatch, StringArray, TimestampNanosecondArray, UInt32Array,
};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Int32Type, Schema};
use arrow::json::LineDelimitedWriter;
use kymo_kernel::ids::ColumnId;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, SYSTEM_SCHEMA, TIME, TableBatch, TableName, TableOptions,
    TableSchema, marked_field,
};
use kymo_kernel::{Error, Result};

/// The name of the table in its schema.
pub const TABLE: &str = "rejected_writes";

/// Its columns; the ids are the catalog's to give.
const COLUMNS: [(&str, ColumnKind, FieldType); 7] = [
    ("database", ColumnKind::Tag, FieldType::Text),
    ("schema", ColumnKind::Tag, FieldType::Text),
    ("table", ColumnKind::Tag, FieldType::Text),
    ("transform", ColumnKind::Tag, FieldType::Text),
    ("reason", ColumnKind::Field, FieldType::Text),
    ("row", ColumnKind::Field, FieldType::Text),
    (TIME, ColumnKind::Time, FieldType::Timestamp),
];

/// The table of a database.
#[must_use]
pub fn name(database: &str) -> TableName {
    TableName {
        database: database.to_owned(),
        schema: SYSTEM_SCHEMA.to_owned(),
        table: TABLE.to_owned(),
    }
}

/// Whether this is the table of some database.
#[must_use]
pub fn is(name: &TableName) -> bool {
    name.schema == SYSTEM_SCHEMA && name.table == TABLE
}

/// Its columns.
#[must_use]
pub fn schema() -> TableSchema {
    let column = |(name, kind, field_type): (&str, ColumnKind, FieldType)| Column {
        id: ColumnId::default(),
        name: name.to_owned(),
        kind,
        field_type,
    };
    TableSchema { version: 0, columns: COLUMNS.map(column).to_vec() }
}

/// Every refusal stays, also that of the same row at the same time.
#[must_use]
pub fn options() -> TableOptions {
    TableOptions { append_only: true, ..TableOptions::default() }
}

/// Rows of one write to one table that were refused, as they are collected.
#[derive(Debug)]
pub struct Refused {
    table: TableName,
    time_ns: i64,
    transforms: Vec<(String, usize)>,
    reasons: Vec<String>,
    rows: Vec<String>,
}

impl Refused {
    /// None yet, at this time.
    #[must_use]
    pub fn new(table: TableName, time_ns: i64) -> Refused {
        let (transforms, reasons, rows) = (Vec::new(), Vec::new(), Vec::new());
        Refused { table, time_ns, transforms, reasons, rows }
    }

    /// Adds rows of a batch that a transform refused, each with its reason.
    ///
    /// # Errors
    /// `internal` where Arrow cannot write them as JSON.
    pub fn add(
        &mut self,
        transform: &str,
        batch: &RecordBatch,
        rejected: Vec<(u32, String)>,
    ) -> Result<()> {
        if rejected.is_empty() {
            return Ok(());
        }
        let places = UInt32Array::from_iter_values(rejected.iter().map(|(row, _)| *row));
        let rows = take_record_batch(batch, &places).map_err(defect)?;
        self.rows.extend(lines(&rows)?);
        self.transforms.push((transform.to_owned(), rejected.len()));
        self.reasons.extend(rejected.into_iter().map(|(_, reason)| reason));
        Ok(())
    }

    /// Adds all rows of a batch with one reason.
    ///
    /// # Errors
    /// As [`Refused::add`].
    pub fn add_all(&mut self, transform: &str, batch: &RecordBatch, reason: &str) -> Result<()> {
        self.rows.extend(lines(batch)?);
        self.transforms.push((transform.to_owned(), batch.num_rows()));
        self.reasons.extend(std::iter::repeat_n(reason.to_owned(), batch.num_rows()));
        Ok(())
    }

    /// The rows for the table; `None` where there are none.
    ///
    /// # Errors
    /// `internal` only.
    pub fn finish(self) -> Result<Option<TableBatch>> {
        let count = self.rows.len();
        if count == 0 {
            return Ok(None);
        }
        let same = |text: &str| -> ArrayRef {
            Arc::new(std::iter::repeat_n(Some(text), count).collect::<DictionaryArray<Int32Type>>())
        };
        let transforms = self.transforms.iter();
        let transforms = transforms.flat_map(|(name, times)| std::iter::repeat_n(name, *times));
        let transforms: DictionaryArray<Int32Type> =
            transforms.map(|name| Some(name.as_str())).collect();
        let times = TimestampNanosecondArray::from_value(self.time_ns, count);
        let columns: Vec<ArrayRef> = vec![
            same(&self.table.database),
            same(&self.table.schema),
            same(&self.table.table),
            Arc::new(transforms),
            Arc::new(StringArray::from(self.reasons)),
            Arc::new(StringArray::from(self.rows)),
            Arc::new(times.with_timezone("+00:00")),
        ];
        let fields = COLUMNS.map(|(name, kind, of)| marked_field(name, kind, of)).to_vec();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).map_err(defect)?;
        Ok(Some(TableBatch { table: name(&self.table.database), batch, lines: Vec::new() }))
    }
}

/// The rows as JSON objects; a column without a value is left out.
fn lines(batch: &RecordBatch) -> Result<Vec<String>> {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    writer.write(batch).map_err(defect)?;
    writer.finish().map_err(defect)?;
    let text = String::from_utf8(writer.into_inner())
        .map_err(|error| Error::internal(format!("rows as JSON: {error}")))?;
    // A line break within a value is escaped, so each line is one row.
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.len() != batch.num_rows() {
        let text = format!("{} rows as JSON are {} lines", batch.num_rows(), lines.len());
        return Err(Error::internal(text));
    }
    Ok(lines)
}

fn defect(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("keep refused rows: {error}"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Float64Array};

    use super::*;

    fn batch() -> RecordBatch {
        let hosts: DictionaryArray<Int32Type> = [Some("a\n\"b\""), None].into_iter().collect();
        let values = Float64Array::from(vec![Some(1.5), None]);
        let times = TimestampNanosecondArray::from(vec![1_700_000_000_000_000_001, 2]);
        let fields = vec![
            marked_field("host", ColumnKind::Tag, FieldType::Text),
            marked_field("value", ColumnKind::Field, FieldType::Float64),
            marked_field(TIME, ColumnKind::Time, FieldType::Timestamp),
        ];
        let columns: Vec<ArrayRef> =
            vec![Arc::new(hosts), Arc::new(values), Arc::new(times.with_timezone("+00:00"))];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    #[test]
    fn refused_rows_are_objects_of_what_they_had() {
        let mut refused = Refused::new(TableName::new("kymo", "cpu"), 7);
        refused.add("p.f", &batch(), vec![(0, "odd".to_owned())]).unwrap();
        refused.add("p.f", &batch(), Vec::new()).unwrap();
        refused.add_all("p.g", &batch(), "p is gone").unwrap();
        let found = refused.finish().unwrap().unwrap();
        assert_eq!(found.table.to_string(), "kymo.system.rejected_writes");
        let texts = |name: &str| -> Vec<String> {
            let column = found.batch.column_by_name(name).unwrap();
            let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Utf8).unwrap();
            column.as_string::<i32>().iter().map(|text| text.unwrap().to_owned()).collect()
        };
        assert_eq!(texts("transform"), ["p.f", "p.g", "p.g"]);
        assert_eq!(texts("reason"), ["odd", "p is gone", "p is gone"]);
        assert_eq!(texts("table"), ["cpu"; 3]);
        let rows: Vec<serde_json::Value> =
            texts("row").iter().map(|row| serde_json::from_str(row).unwrap()).collect();
        assert_eq!(rows[0]["host"], "a\n\"b\"");
        assert_eq!(rows[0]["time"], "2023-11-14T22:13:20.000000001Z");
        assert_eq!(rows[2], serde_json::json!({ "time": "1970-01-01T00:00:00.000000002Z" }));
    }

    #[test]
    fn nothing_refused_is_no_batch() {
        let refused = Refused::new(TableName::new("kymo", "cpu"), 7);
        assert!(refused.finish().unwrap().is_none());
    }
}
