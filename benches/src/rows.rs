//! TSBS-like rows as the store holds them: parsed, with the table they belong to.

use std::sync::Arc;

use arrow::array::RecordBatch;
use kymo::columns::Types;
use kymo::line_protocol::{Options, Precision, parse};
use kymo_kernel::ids::{ColumnId, TableId};
use kymo_kernel::schema::{
    Column, ColumnKind, DEFAULT_DATABASE, FieldType, TableDef, TableName, TableOptions, TableSchema,
};

use crate::tsbs::{Generator, Shape};

/// A catalog without tables.
pub struct NoTables;

impl Types for NoTables {
    fn table(&self, _name: &TableName) -> Option<Arc<TableDef>> {
        None
    }
}

/// How lines are read.
#[must_use]
pub fn options(precision: Precision) -> Options {
    Options {
        database: DEFAULT_DATABASE.to_owned(),
        precision,
        now_ns: crate::tsbs::START_NS,
        max_line_bytes: 1 << 20,
        max_columns: 100,
        max_tables: 10,
        max_errors: 10,
    }
}

/// The first rows of the usual shape, and their table.
///
/// # Panics
/// The parser refuses what the generator made: a defect.
#[must_use]
#[expect(clippy::expect_used, reason = "only a defect can fail here")]
pub fn batch(rows: usize) -> (Arc<TableDef>, RecordBatch) {
    let mut body = Vec::new();
    Generator::new(Shape::usual()).lines(&mut body, rows);
    let parsed =
        parse(&body, &NoTables, &options(Precision::Nanoseconds)).expect("lines that parse");
    let batch = parsed.batches.into_iter().next().expect("one table").batch;
    assert_eq!(batch.num_rows(), rows);
    (Arc::new(table(&batch)), batch)
}

fn table(batch: &RecordBatch) -> TableDef {
    let schema = batch.schema();
    let columns = schema.fields().iter().enumerate().map(|(index, field)| {
        let kind = ColumnKind::of(field);
        let field_type = match kind {
            ColumnKind::Tag => FieldType::Text,
            _ => FieldType::of(field.data_type()).unwrap_or(FieldType::Float64),
        };
        let id = ColumnId(u32::try_from(index + 1).unwrap_or(u32::MAX));
        Column { id, name: field.name().clone(), kind, field_type }
    });
    TableDef {
        id: TableId(1),
        name: TableName::new(DEFAULT_DATABASE, "cpu"),
        schema: TableSchema { version: 1, columns: columns.collect() },
        options: TableOptions::default(),
    }
}
