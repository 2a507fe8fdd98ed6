//! How far each channel is, durable: the number of the last transition that it is done with, as
//! rows of `system.alert_deliveries`.
//!
//! One row a channel, each replacing the one before, as all have one time. A channel is sent
//! transitions in the order of their numbers, so one number says all: what comes after it in
//! `system.alert_history` was durable and may not have been sent.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema, TimestampNanosecondType};
use kymo_kernel::ids::{ColumnId, TimeRange};
use kymo_kernel::message::{OwnRows, WriteOwn};
use kymo_kernel::port::Port;
use kymo_kernel::schema::{
    Column, ColumnKind, DEFAULT_DATABASE, FieldType, SYSTEM_SCHEMA, TIME, TableBatch, TableName,
    TableOptions, TableSchema, marked_field, time_type,
};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::overlap;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::{Error, Result};

/// The name of the table.
pub const TABLE: &str = "alert_deliveries";
/// The time of every row.
const NO_TIME: i64 = 0;

const COLUMNS: &[(&str, ColumnKind, FieldType)] = &[
    ("channel", ColumnKind::Tag, FieldType::Text),
    ("sequence", ColumnKind::Field, FieldType::Int64),
    ("from", ColumnKind::Field, FieldType::Timestamp),
    (TIME, ColumnKind::Time, FieldType::Timestamp),
];

/// How far a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cursor {
    /// The number of the last transition that it is done with.
    pub sequence: u64,
    /// The instant, in nanoseconds since 1970-01-01T00:00:00Z, before which no transition lies
    /// that comes after: where to look for it in the history.
    pub from_ns: i64,
}

fn table() -> TableName {
    TableName {
        database: DEFAULT_DATABASE.to_owned(),
        schema: SYSTEM_SCHEMA.to_owned(),
        table: TABLE.to_owned(),
    }
}

/// Keeps how far a channel is; durable once it is answered.
///
/// # Errors
/// Those of writing.
pub async fn keep(write: &Port<WriteOwn>, channel: &str, cursor: Cursor) -> Result<()> {
    write.call(WriteOwn { rows: row(channel, cursor)?, beside: None }).await
}

fn row(channel: &str, cursor: Cursor) -> Result<OwnRows> {
    let field = |(name, kind, of): &(&str, ColumnKind, FieldType)| marked_field(name, *kind, *of);
    let fields: Vec<_> = COLUMNS.iter().map(field).collect();
    let time = |ns| TimestampNanosecondArray::from(vec![ns]).with_timezone("+00:00");
    let sequence = i64::try_from(cursor.sequence).unwrap_or(i64::MAX);
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(DictionaryArray::<Int32Type>::from_iter([channel])),
        Arc::new(Int64Array::from(vec![sequence])),
        Arc::new(time(cursor.from_ns)),
        Arc::new(time(NO_TIME)),
    ];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(defect)?;
    let column = |(name, kind, field_type): &(&str, ColumnKind, FieldType)| Column {
        id: ColumnId::default(),
        name: (*name).to_owned(),
        kind: *kind,
        field_type: *field_type,
    };
    Ok(OwnRows {
        rows: TableBatch { table: table(), batch, lines: Vec::new() },
        schema: TableSchema { version: 0, columns: COLUMNS.iter().map(column).collect() },
        options: TableOptions::default(),
    })
}

/// How far each channel is. Blocks on the disk.
///
/// # Errors
/// Those of reading.
pub fn read(store: &Store) -> Result<BTreeMap<String, Cursor>> {
    let mut found = BTreeMap::new();
    let known = store.catalog().table(&table()).map(|known| known.def.id);
    let Some(version) = known.and_then(|id| store.table(id)).map(|cell| cell.load()) else {
        return Ok(found);
    };
    let (time, tags) = (TimeRange::ALL, TagFilter::all());
    let output = version.table.schema.arrow();
    let scan = GroupScan { output, tags: tags.clone(), time, batch_rows: 1024 };
    for group in overlap::groups(&version, &time, &tags) {
        for batch in merge::open(&group, &version.table, &scan)? {
            take(&batch?, &mut found)?;
        }
    }
    Ok(found)
}

fn take(batch: &RecordBatch, found: &mut BTreeMap<String, Cursor>) -> Result<()> {
    let column = |name: &str, of: &DataType| {
        let column = batch.column_by_name(name);
        let column = column.ok_or_else(|| Error::internal(format!("{TABLE} has no {name}")))?;
        cast(column, of).map_err(defect)
    };
    let (channels, sequences) =
        (column("channel", &DataType::Utf8)?, column("sequence", &DataType::Int64)?);
    let times = column("from", &time_type())?;
    let channels = channels.as_string::<i32>();
    let sequences = sequences.as_primitive::<Int64Type>();
    let times = times.as_primitive::<TimestampNanosecondType>();
    for row in 0..batch.num_rows() {
        let cursor = Cursor {
            sequence: u64::try_from(sequences.value(row)).unwrap_or_default(),
            from_ns: times.value(row),
        };
        found.insert(channels.value(row).to_owned(), cursor);
    }
    Ok(())
}

fn defect(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows of {TABLE}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were_written() {
        let cursor = Cursor { sequence: 41, from_ns: 1_700_000_000_000_000_000 };
        let own = row("ops", cursor).unwrap();
        let mut found = BTreeMap::new();
        take(&own.rows.batch, &mut found).unwrap();
        assert_eq!(found, BTreeMap::from([("ops".to_owned(), cursor)]));
    }
}
