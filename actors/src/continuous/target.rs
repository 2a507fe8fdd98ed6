//! How the rows of a result become rows of a target: the window is their time, text that they
//! are grouped by are their tags, everything else is a field.
//!
//! A target keeps one row for each tags and time, so what a result is grouped by must be
//! exactly that: a group column of another type than text is refused, not guessed at.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use kymo_kernel::ids::ColumnId;
use kymo_kernel::message::{WindowSpec, Windowed};
use kymo_kernel::schema::{Column, ColumnKind, FieldType, TIME, TableDef, marked_field};
use kymo_kernel::{Code, Error, Result};

/// The columns that a target needs for a result, in the result's order.
///
/// # Errors
/// `invalid_input` naming the column that no target can have, and the way out.
pub fn columns(query: &dyn Windowed) -> Result<Vec<Column>> {
    let Some(window) = query.window() else { return Err(no_windows(query.why())) };
    let schema = query.schema();
    let mut names = HashSet::new();
    let mut found = Vec::with_capacity(schema.fields().len());
    for (at, field) in schema.fields().iter().enumerate() {
        let column = column(at, field, window, query.keys())?;
        if !names.insert(column.name.clone()) {
            return Err(invalid(field, "appears twice, or has the name of the window's column")
                .with_hint("give it another name with AS"));
        }
        found.push(column);
    }
    if found.iter().all(|column| column.kind != ColumnKind::Field) {
        return Err(Error::new(
            Code::InvalidInput,
            "the result has nothing but windows and groups",
        )
        .with_hint("add what is to be kept of each window, such as count(*) or avg(value)"));
    }
    Ok(found)
}

/// The error for a query whose result has no windows.
#[must_use]
pub fn no_windows(why: &str) -> Error {
    Error::new(
        Code::InvalidInput,
        format!("a continuous query needs windows of time, and its result has none: {why}"),
    )
    .with_hint(
        "let one column of the result be time_bucket('1m', time) or date_bin(…) of the table's \
         time, and group by it",
    )
}

fn column(at: usize, field: &Field, window: WindowSpec, keys: Option<&[usize]>) -> Result<Column> {
    let made = |name: &str, kind, field_type| Column {
        id: ColumnId(0),
        name: name.to_owned(),
        kind,
        field_type,
    };
    if at == window.column {
        return Ok(made(TIME, ColumnKind::Time, FieldType::Timestamp));
    }
    let Some(field_type) = field_type(field.data_type()) else {
        return Err(invalid(
            field,
            &format!("is of type {}, which tables do not keep", field.data_type()),
        )
        .with_hint("cast it to a number, a text, a boolean or a timestamp"));
    };
    let text = field_type == FieldType::Text;
    let grouped = keys.is_some_and(|keys| keys.contains(&at));
    if grouped && !text {
        return Err(invalid(field, "is grouped by and is no text, so it cannot become a tag")
            .with_hint(format!("group by CAST({} AS TEXT)", field.name())));
    }
    // Without groups any text may tell rows apart; two rows of one key are refused when they come.
    let kind =
        if grouped || (text && keys.is_none()) { ColumnKind::Tag } else { ColumnKind::Field };
    Ok(made(field.name(), kind, field_type))
}

fn invalid(field: &Field, what: &str) -> Error {
    Error::new(Code::InvalidInput, format!("column {:?} of the result {what}", field.name()))
}

/// What a value of a result is kept as. Narrower numbers widen.
fn field_type(of: &DataType) -> Option<FieldType> {
    Some(match of {
        DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => FieldType::Float64,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => FieldType::Int64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            FieldType::UInt64
        }
        DataType::Boolean => FieldType::Bool,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => FieldType::Text,
        DataType::Dictionary(_, values) => return field_type(values),
        DataType::Timestamp(..) | DataType::Date32 | DataType::Date64 => FieldType::Timestamp,
        _ => return None,
    })
}

/// Rows on their way into one target.
pub(super) struct Target {
    /// The table.
    pub(super) def: Arc<TableDef>,
    /// The shape of rows for it, and of rows read back from it: what the query gives, in its
    /// order, under the target's names.
    pub(super) schema: SchemaRef,
    /// The place of the time.
    pub(super) time: usize,
    /// The places of the tags.
    pub(super) tags: Vec<usize>,
}

impl Target {
    /// The way from a query's result into a table.
    ///
    /// # Errors
    /// `column_not_found` and `type_conflict` where the table does not fit (any more).
    pub(super) fn new(query: &dyn Windowed, def: Arc<TableDef>) -> Result<Target> {
        let mut fields = Vec::new();
        let (mut time, mut tags) = (0, Vec::new());
        for (at, column) in columns(query)?.into_iter().enumerate() {
            let name = match column.kind {
                ColumnKind::Time => &def.schema.time()?.name,
                _ => &column.name,
            };
            let known = def.schema.column(name).ok_or_else(|| {
                Error::new(
                    Code::ColumnNotFound,
                    format!("target {} has no column {name:?}", def.name),
                )
            })?;
            if (known.kind, known.field_type) != (column.kind, column.field_type) {
                return Err(Error::new(
                    Code::TypeConflict,
                    format!(
                        "column {name:?} of target {} has another type than the result",
                        def.name
                    ),
                )
                .with_hint("drop the continuous query and make it again with another target"));
            }
            match column.kind {
                ColumnKind::Time => time = at,
                ColumnKind::Tag => tags.push(at),
                ColumnKind::Field => {}
            }
            fields.push(marked_field(name, column.kind, column.field_type));
        }
        Ok(Target { def, schema: Arc::new(Schema::new(fields)), time, tags })
    }

    /// A batch of the result as rows of the target.
    ///
    /// # Errors
    /// `invalid_cast` where a value does not fit its column.
    pub(super) fn rows(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns = batch.columns().iter().zip(self.schema.fields()).map(|(column, field)| {
            if column.data_type() == field.data_type() {
                return Ok(column.clone());
            }
            cast(column, field.data_type()).map_err(|error| {
                Error::new(Code::InvalidCast, format!("column {:?}: {error}", field.name()))
            })
        });
        let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
        RecordBatch::try_new(self.schema.clone(), columns).map_err(|error| {
            Error::internal(format!("rows of another shape than the target's: {error}"))
        })
    }
}
