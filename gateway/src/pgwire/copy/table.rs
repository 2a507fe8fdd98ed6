//! The columns of a table being filled by a COPY, a portion at a time.

use std::sync::Arc;

use arrow::array::types::Int32Type;
use arrow::array::{
    ArrayBuilder, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch,
    RecordBatchOptions, StringBuilder, StringDictionaryBuilder, TimestampNanosecondBuilder,
    UInt64Builder,
};
use arrow::datatypes::{Schema, SchemaRef};
use kymo_kernel::schema::{Column, ColumnKind, FieldType, TableDef};
use kymo_kernel::{Code, Error, Result};

use super::super::decode::Value;
use super::super::types;
use super::input::Record;

/// Rows after which a portion is written.
const ROWS: usize = 32_768;

/// Rows that are not written yet.
pub(super) struct Portion {
    schema: SchemaRef,
    columns: Vec<(Column, Filling)>,
    oids: Vec<u32>,
    lines: Vec<u32>,
}

enum Filling {
    Tag(Box<StringDictionaryBuilder<Int32Type>>),
    Text(StringBuilder),
    Float(Float64Builder),
    Int(Int64Builder),
    Unsigned(UInt64Builder),
    Bool(BooleanBuilder),
    Time(TimestampNanosecondBuilder),
}

impl Portion {
    /// An empty portion of these columns of a table; of all where none are named.
    ///
    /// # Errors
    /// `column_not_found`, and `invalid_input` where the time column is left out or a column
    /// is named twice.
    pub(super) fn new(table: Arc<TableDef>, names: &[String]) -> Result<Self> {
        let mut columns: Vec<&Column> = Vec::new();
        for name in names {
            let column = table.schema.column(name).ok_or_else(|| {
                Error::new(
                    Code::ColumnNotFound,
                    format!("column \"{name}\" of table {} does not exist", table.name),
                )
            })?;
            if columns.iter().any(|other| other.id == column.id) {
                return Err(Error::new(
                    Code::InvalidInput,
                    format!("column \"{name}\" is named twice"),
                ));
            }
            columns.push(column);
        }
        if names.is_empty() {
            columns = table.schema.columns.iter().collect();
        }
        if !columns.iter().any(|column| column.kind == ColumnKind::Time) {
            return Err(Error::new(
                Code::InvalidInput,
                format!("the time column of table {} must be copied", table.name),
            ));
        }
        let fields: Vec<_> = columns.iter().map(|column| column.arrow()).collect();
        let oids = fields.iter().map(|field| types::of_arrow(field.data_type())).collect();
        let columns = columns.into_iter().map(|column| (column.clone(), Filling::of(column)));
        Ok(Portion {
            schema: Arc::new(Schema::new(fields)),
            columns: columns.collect(),
            oids,
            lines: Vec::new(),
        })
    }

    /// The PostgreSQL types of the columns.
    pub(super) fn oids(&self) -> &[u32] {
        &self.oids
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= ROWS
    }

    /// Adds a row.
    ///
    /// # Errors
    /// `invalid_input` for a row without a time, `out_of_range` for a number that does not
    /// fit; both name line and column.
    pub(super) fn push(&mut self, record: Record) -> Result<()> {
        for ((column, filling), value) in self.columns.iter_mut().zip(record.values) {
            let place = || format!("COPY line {}, column {}", record.line, column.name);
            if value.is_none() && column.kind == ColumnKind::Time {
                return Err(Error::new(Code::InvalidInput, "time is NULL").context(place()));
            }
            filling.push(value).map_err(|error| error.context(place()))?;
        }
        self.lines.push(record.line);
        Ok(())
    }

    /// Takes the rows out; `None` where there are none.
    pub(super) fn take(&mut self) -> Result<Option<(RecordBatch, Vec<u32>)>> {
        if self.lines.is_empty() {
            return Ok(None);
        }
        let lines = std::mem::take(&mut self.lines);
        let arrays = self.columns.iter_mut().map(|(_, filling)| filling.finish()).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(lines.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map(|batch| Some((batch, lines)))
            .map_err(|error| Error::internal(format!("assemble copied rows: {error}")))
    }
}

impl Filling {
    fn of(column: &Column) -> Self {
        match (column.kind, column.field_type) {
            (ColumnKind::Tag, _) => Filling::Tag(Box::default()),
            (_, FieldType::Text) => Filling::Text(StringBuilder::new()),
            (_, FieldType::Float64) => Filling::Float(Float64Builder::new()),
            (_, FieldType::Int64) => Filling::Int(Int64Builder::new()),
            (_, FieldType::UInt64) => Filling::Unsigned(UInt64Builder::new()),
            (_, FieldType::Bool) => Filling::Bool(BooleanBuilder::new()),
            (_, FieldType::Timestamp) => {
                Filling::Time(TimestampNanosecondBuilder::new().with_timezone("+00:00"))
            }
        }
    }

    fn push(&mut self, value: Option<Value>) -> Result<()> {
        match (self, value) {
            (Filling::Tag(to), Some(Value::Text(text))) => {
                to.append(&text)
                    .map_err(|error| Error::new(Code::LimitReached, error.to_string()))?;
            }
            (Filling::Tag(to), None) => to.append_null(),
            (Filling::Text(to), Some(Value::Text(text))) => to.append_value(text),
            (Filling::Text(to), None) => to.append_null(),
            (Filling::Float(to), Some(Value::Float8(value))) => to.append_value(value),
            (Filling::Float(to), None) => to.append_null(),
            (Filling::Int(to), Some(Value::Int8(value))) => to.append_value(value),
            (Filling::Int(to), None) => to.append_null(),
            (Filling::Unsigned(to), Some(Value::Numeric(value, scale))) => {
                to.append_value(unsigned(value, scale)?);
            }
            (Filling::Unsigned(to), None) => to.append_null(),
            (Filling::Bool(to), Some(Value::Bool(value))) => to.append_value(value),
            (Filling::Bool(to), None) => to.append_null(),
            (Filling::Time(to), Some(Value::Instant(ns, _))) => to.append_value(ns),
            (Filling::Time(to), None) => to.append_null(),
            (_, Some(other)) => {
                return Err(Error::internal(format!("copied value {other:?} has another type")));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            // A portion's dictionary is its own: keys start again.
            Filling::Tag(to) => ArrayBuilder::finish(to.as_mut()),
            Filling::Text(to) => Arc::new(to.finish()),
            Filling::Float(to) => Arc::new(to.finish()),
            Filling::Int(to) => Arc::new(to.finish()),
            Filling::Unsigned(to) => Arc::new(to.finish()),
            Filling::Bool(to) => Arc::new(to.finish()),
            Filling::Time(to) => Arc::new(to.finish()),
        }
    }
}

/// A numeric as an unsigned integer, which it must be.
fn unsigned(value: i128, scale: i8) -> Result<u64> {
    let factor = 10_i128.checked_pow(u32::try_from(scale).unwrap_or_default()).unwrap_or(i128::MAX);
    let whole = (value % factor == 0).then_some(value / factor);
    whole.and_then(|whole| u64::try_from(whole).ok()).ok_or_else(|| {
        Error::new(Code::OutOfRange, "value is not a whole number from 0 to 2^64 - 1")
    })
}
