//! Rows that were made for one definition of a table, under another one: columns are the same
//! where their ids are, whatever they are called.
//!
//! Rows reach a table under definitions of before: from the log, from a write that was checked a
//! moment ago, and in memory while a definition changes. [`Conform`] gives each column its name
//! and type of now and leaves out those that were dropped, so that everything behind it can go
//! by names. Values are shared, not copied, unless their type became wider.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};

use crate::error::{Code, Error, Result};
use crate::ids::ColumnId;
use crate::schema::{TableSchema, column_id};

/// A definition, prepared for giving batches its shape.
#[derive(Debug)]
pub struct Conform {
    fields: Vec<FieldRef>,
    places: HashMap<ColumnId, usize>,
}

impl Conform {
    /// Prepares a definition.
    #[must_use]
    pub fn new(schema: &TableSchema) -> Self {
        let fields = schema.columns.iter().map(|column| Arc::new(column.arrow())).collect();
        let places = schema.columns.iter().enumerate().map(|(at, column)| (column.id, at));
        Conform { fields, places: places.collect() }
    }

    /// The rows under this definition, with those of their columns that it still has. A column
    /// without an id stays as it is.
    ///
    /// # Errors
    /// `internal` where a column's type is not the one of the definition and does not widen to
    /// it.
    pub fn batch(&self, batch: RecordBatch) -> Result<RecordBatch> {
        let fields = batch.schema_ref().fields();
        if fields.iter().all(|field| self.fits(field)) {
            return Ok(batch);
        }
        let mut kept: Vec<FieldRef> = Vec::with_capacity(fields.len());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(fields.len());
        for (field, column) in fields.iter().zip(batch.columns()) {
            let now = match column_id(field) {
                None => field,
                Some(id) => match self.places.get(&id) {
                    None => continue,
                    Some(at) => &self.fields[*at],
                },
            };
            columns.push(widened(column, now)?);
            kept.push(now.clone());
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(kept)), columns, &options)
            .map_err(|error| Error::internal(format!("rows under a new definition: {error}")))
    }

    fn fits(&self, field: &Field) -> bool {
        let Some(id) = column_id(field) else { return true };
        let now = self.places.get(&id).map(|at| &self.fields[*at]);
        now.is_some_and(|now| now.name() == field.name() && now.data_type() == field.data_type())
    }
}

/// Whether rows of before may be read under a definition as they are: it has all of their
/// columns, under the same names and of the same types.
#[must_use]
pub fn only_adds(before: &TableSchema, after: &TableSchema) -> bool {
    let mut later = after.columns.iter();
    // Columns keep their order, and new ones come last.
    before.columns.iter().all(|column| {
        later
            .by_ref()
            .find(|each| each.id == column.id)
            .is_some_and(|each| each.name == column.name && each.field_type == column.field_type)
    })
}

/// Where the columns of a schema are found: by their ids, and by their names where one has none.
#[derive(Debug)]
pub struct Places {
    ids: HashMap<ColumnId, usize>,
}

impl Places {
    /// The places of the columns of a schema.
    #[must_use]
    pub fn of(schema: &Schema) -> Self {
        let ids = schema.fields().iter().enumerate();
        Places { ids: ids.filter_map(|(at, field)| Some((column_id(field)?, at))).collect() }
    }

    /// The place of a field's column in `schema`, which is the one that they are of.
    #[must_use]
    pub fn find(&self, schema: &Schema, field: &Field) -> Option<usize> {
        match column_id(field) {
            Some(id) if !self.ids.is_empty() => self.ids.get(&id).copied(),
            _ => schema.fields().iter().position(|each| each.name() == field.name()),
        }
    }
}

/// A batch with the columns of `output`; those that it lacks are NULL.
///
/// # Errors
/// As [`widened`].
pub fn shape(batch: &RecordBatch, output: &SchemaRef) -> Result<RecordBatch> {
    let own = batch.schema_ref();
    let places = Places::of(own);
    let columns = output.fields().iter().map(|field| match places.find(own, field) {
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
        Some(at) => widened(batch.column(at), field),
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(output.clone(), columns, &options)
        .map_err(|error| Error::internal(format!("rows in another shape: {error}")))
}

/// The values of a column as a field wants them: those of a column that has become floating
/// point since are read as the nearest such number.
///
/// # Errors
/// `conflict` where the types differ otherwise: the column was altered meanwhile.
pub fn widened(column: &ArrayRef, field: &Field) -> Result<ArrayRef> {
    match (column.data_type(), field.data_type()) {
        (is, wanted) if is == wanted => Ok(column.clone()),
        (DataType::Int64 | DataType::UInt64, DataType::Float64) => cast(column, &DataType::Float64)
            .map_err(|error| Error::internal(format!("widen column {:?}: {error}", field.name()))),
        (is, wanted) => {
            let text = format!("column {:?} holds {is}, not {wanted}", field.name());
            Err(Error::new(Code::Conflict, text)
                .with_hint("the table was altered meanwhile: send the same request again"))
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::Float64Type;

    use super::*;
    use crate::schema::FieldType;
    use crate::storage::model::{Row, Rows, table};

    fn one() -> RecordBatch {
        let row = Row {
            a: Some("x".to_owned()),
            b: None,
            time: 7,
            float: Some(1.5),
            int: Some(3),
            text: Some("t".to_owned()),
        };
        Rows { rows: vec![row], columns: 0xff }.batch()
    }

    fn names(batch: &RecordBatch) -> Vec<&str> {
        batch.schema_ref().fields().iter().map(|field| field.name().as_str()).collect()
    }

    #[test]
    fn columns_go_by_their_ids() {
        let before = table(false).schema;
        let mut after = before.clone();
        after.columns.retain(|column| column.name != "text");
        for column in &mut after.columns {
            match column.name.as_str() {
                "a" => column.name = "host".to_owned(),
                "int" => {
                    // Another column has its name by now.
                    column.name = "text".to_owned();
                    column.field_type = FieldType::Float64;
                }
                "time" => column.name = "ts".to_owned(),
                _ => {}
            }
        }
        let batch = Conform::new(&after).batch(one()).unwrap();
        assert_eq!(names(&batch), ["host", "b", "float", "ts", "text"]);
        assert_eq!(batch.column(4).as_primitive::<Float64Type>().value(0), 3.0);
        let again = Conform::new(&after).batch(batch.clone()).unwrap();
        assert!(Arc::ptr_eq(again.schema_ref(), batch.schema_ref()), "what fits stays");
        let shaped = shape(&one(), &after.arrow()).unwrap();
        assert_eq!(shaped.columns(), batch.columns());
        assert!(!only_adds(&before, &after) && only_adds(&before, &before));
    }

    #[test]
    fn a_type_that_does_not_widen_is_refused() {
        let mut after = table(false).schema;
        after.columns[5].field_type = FieldType::Bool;
        let refused = Conform::new(&after).batch(one()).unwrap_err();
        assert_eq!(refused.code(), Code::Conflict);
        assert!(refused.message().contains("\"text\""), "{refused}");
    }
}
