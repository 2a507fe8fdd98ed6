//! Whether the rows of a batch fit their table: a pure comparison of a [`TableBatch`] with a
//! [`TableDef`], row by row where types conflict.
//!
//! A conflict costs only the rows that have a value in the conflicting column. Words and
//! rules follow InfluxDB: an integer does not fit a float column, a tag is no field; unless the
//! table widens integers.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute;
use arrow::datatypes::{
    DataType, FieldRef, Int64Type, Schema, TimestampNanosecondType, UInt64Type,
};
use kymo_kernel::ids::ColumnId;
use kymo_kernel::message::RejectedRow;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TIME, TableBatch, TableDef, TableName, TableSchema,
    exact_signed, exact_unsigned,
};
use kymo_kernel::{Code, Error, Result};

/// A table's definition with what checking many batches against it needs.
#[derive(Debug)]
pub struct Known {
    /// The definition.
    pub def: Arc<TableDef>,
    fields: Vec<FieldRef>,
    index: HashMap<String, usize>,
    time: usize,
}

impl Known {
    /// Prepares a definition.
    ///
    /// # Errors
    /// `internal` for a definition without a time column, which the catalog never makes.
    pub fn new(def: Arc<TableDef>) -> Result<Self> {
        let columns = &def.schema.columns;
        let time = columns
            .iter()
            .position(|column| column.kind == ColumnKind::Time)
            .ok_or_else(|| Error::internal(format!("table {} has no time column", def.name)))?;
        let index =
            columns.iter().enumerate().map(|(at, column)| (column.name.clone(), at)).collect();
        let fields = columns.iter().map(|column| Arc::new(column.arrow())).collect();
        Ok(Known { fields, index, time, def })
    }

    /// The place of a column, guessing that it follows the one found before.
    fn find(&self, name: &str, guess: usize) -> Option<usize> {
        match self.def.schema.columns.get(guess) {
            Some(column) if column.name == name => Some(guess),
            _ => self.index.get(name).copied(),
        }
    }
}

/// The rows of a batch that fit what is known, and what the table lacks for them.
#[derive(Debug)]
pub struct Checked {
    /// The rows that are left, with the columns that do not conflict.
    pub batch: RecordBatch,
    /// The line of each row that is left; empty where rows have no lines.
    pub lines: Vec<u32>,
    /// Rows that were left out, in order.
    pub rejected: Vec<RejectedRow>,
    /// Columns that the table does not have yet and that the rows have values for; without
    /// ids. Includes the time column where the table does not exist.
    pub missing: Vec<Column>,
}

/// What a column of a batch turned out to be.
enum Place {
    /// A column of the table, by its place.
    At(usize),
    /// Integers for a column of floating point, by its place; rows whose integer that does not
    /// hold exactly are refused with this error.
    Exact(usize, BooleanArray, Error),
    /// New, or an integer column that becomes floating point.
    New(Column),
    /// Of another kind or type than it should be.
    Conflict(Error),
}

/// Compares the rows with the table as it is known, or with nothing if it does not exist.
///
/// # Errors
/// `invalid_input` for a batch that no table can take: no time column, NULL in it, a type
/// that Kymo does not keep, line numbers of another length.
pub fn check(rows: &TableBatch, known: Option<&Known>) -> Result<Checked> {
    check_shape(rows)?;
    let places = place(rows, known)?;
    let conflicts = conflicts(&rows.batch, &places);
    let refused = refused_rows(&conflicts);
    let rejected = match &refused {
        Some(refused) => describe(rows, &conflicts, refused),
        None => Vec::new(),
    };
    let (kept, lines) = match &refused {
        Some(refused) => keep(&rows.batch, &rows.lines, refused)?,
        None => (rows.batch.clone(), rows.lines.clone()),
    };
    let (batch, missing) = assemble(kept, places, known)?;
    Ok(Checked { batch, lines, rejected, missing })
}

impl Checked {
    /// Gives up the columns that could not be added: rows with a value in one of them are
    /// rejected with `error`, the others stay. Without a table (`whole`) no row can stay.
    ///
    /// # Errors
    /// `internal` only.
    pub fn without_missing(mut self, error: &Error, whole: bool) -> Result<Checked> {
        let rows = self.batch.num_rows();
        let mut refused = vec![whole; rows];
        let mut stay = Vec::with_capacity(self.batch.num_columns());
        for (at, field) in self.batch.schema().fields().iter().enumerate() {
            if self.missing.iter().all(|column| column.name != *field.name()) {
                stay.push(at);
                continue;
            }
            let nulls = self.batch.column(at).logical_nulls();
            for (row, refused) in refused.iter_mut().enumerate() {
                *refused |= nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
            }
        }
        for (row, _) in refused.iter().enumerate().filter(|(_, refused)| **refused) {
            let line = self.lines.get(row).copied().unwrap_or(0);
            self.rejected.push(RejectedRow { line, error: error.clone() });
        }
        self.rejected.sort_by_key(|row| row.line);
        let known = self.batch.project(&stay).map_err(defect)?;
        let (batch, lines) = keep(&known, &self.lines, &BooleanArray::from(refused))?;
        Ok(Checked { batch, lines, rejected: self.rejected, missing: Vec::new() })
    }
}

impl Checked {
    /// Leaves out rows that the table would not show, because they are older than it keeps rows.
    ///
    /// # Errors
    /// `internal` only.
    pub fn without_expired(mut self, table: &TableName, edge: i64) -> Result<Checked> {
        let schema = self.batch.schema();
        let time =
            schema.fields().iter().position(|field| ColumnKind::of(field) == ColumnKind::Time);
        let times =
            time.and_then(|at| self.batch.column(at).as_primitive_opt::<TimestampNanosecondType>());
        let Some(times) = times else { return Ok(self) };
        if times.values().iter().all(|time| *time > edge) {
            return Ok(self);
        }
        let expired: Vec<bool> = times.values().iter().map(|time| *time <= edge).collect();
        let error = expired_row(table);
        for (row, _) in expired.iter().enumerate().filter(|(_, expired)| **expired) {
            let line = self.lines.get(row).copied().unwrap_or(0);
            self.rejected.push(RejectedRow { line, error: error.clone() });
        }
        self.rejected.sort_by_key(|row| row.line);
        (self.batch, self.lines) = keep(&self.batch, &self.lines, &BooleanArray::from(expired))?;
        Ok(self)
    }
}

fn expired_row(table: &TableName) -> Error {
    let text = format!("the time is older than table {table} keeps rows");
    Error::new(Code::OutOfRange, text)
        .with_hint("write newer rows, or keep them longer: ALTER TABLE … SET (retention = '…')")
}

/// The rows, and their lines, that are not refused.
fn keep(
    batch: &RecordBatch,
    lines: &[u32],
    refused: &BooleanArray,
) -> Result<(RecordBatch, Vec<u32>)> {
    let keep = compute::not(refused).map_err(defect)?;
    let kept = compute::filter_record_batch(batch, &keep).map_err(defect)?;
    let lines =
        lines.iter().zip(keep.values()).filter(|(_, keep)| *keep).map(|(line, _)| *line).collect();
    Ok((kept, lines))
}

fn check_shape(rows: &TableBatch) -> Result<()> {
    let batch = &rows.batch;
    if !rows.lines.is_empty() && rows.lines.len() != batch.num_rows() {
        return Err(Error::internal(format!(
            "batch for table {} has {} rows and {} line numbers",
            rows.table,
            batch.num_rows(),
            rows.lines.len()
        )));
    }
    let schema = batch.schema();
    let mut times = schema
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| ColumnKind::of(field) == ColumnKind::Time);
    match (times.next(), times.next()) {
        (Some((at, _)), None) if batch.column(at).null_count() == 0 => Ok(()),
        (Some(_), None) => {
            Err(invalid(rows, "has rows without a time").with_hint("give every row a time"))
        }
        (Some(_), Some(_)) => Err(invalid(rows, "has more than one time column")),
        (None, _) => Err(invalid(rows, "has no time column")),
    }
}

fn invalid(rows: &TableBatch, what: &str) -> Error {
    Error::new(Code::InvalidInput, format!("write to table {} {what}", rows.table))
}

/// Arrow's kernels fail only on lengths and types that were checked before.
fn defect(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("check rows: {error}"))
}

/// Finds out for each column of the batch what it is to the table.
fn place(rows: &TableBatch, known: Option<&Known>) -> Result<Vec<Place>> {
    let schema = rows.batch.schema();
    let mut seen: HashMap<&str, usize> = HashMap::with_capacity(schema.fields().len());
    let mut places: Vec<Place> = Vec::with_capacity(schema.fields().len());
    let mut guess = 0;
    for (at, field) in schema.fields().iter().enumerate() {
        let kind = ColumnKind::of(field);
        let Some(field_type) = FieldType::of(field.data_type()) else {
            return Err(invalid(
                rows,
                &format!("has column {:?} of type {}", field.name(), field.data_type()),
            )
            .with_hint("values are float, integer, unsigned, boolean, string or timestamp"));
        };
        let column =
            Column { id: ColumnId::default(), name: field.name().clone(), kind, field_type };
        let measurement = &rows.table.table;
        let first = seen.insert(field.name().as_str(), at).filter(|_| kind != ColumnKind::Time);
        let found = match (known, kind) {
            (Some(known), ColumnKind::Time) => Some(known.time),
            (Some(known), _) => known.find(field.name(), guess),
            (None, _) => None,
        };
        places.push(match (found, known) {
            (Some(at), Some(known)) => {
                guess = at + 1;
                if first
                    .is_some_and(|first| matches!(places[first], Place::At(other) if other == at))
                    && column.kind == known.def.schema.columns[at].kind
                {
                    return Err(invalid(rows, &format!("names column {:?} twice", column.name)));
                }
                let array = rows.batch.column(places.len());
                fit(&known.def, measurement, column, at, array)?
            }
            _ => match first.map(|first| &places[first]) {
                // One name twice in a request: what came first decides.
                Some(Place::New(earlier)) => {
                    Place::Conflict(conflict(measurement, &column, earlier))
                }
                _ if kind != ColumnKind::Time && known.is_none() && column.name == TIME => {
                    let time = Column {
                        kind: ColumnKind::Time,
                        field_type: FieldType::Timestamp,
                        ..column.clone()
                    };
                    Place::Conflict(conflict(measurement, &column, &time))
                }
                _ => Place::New(column),
            },
        });
    }
    Ok(places)
}

fn fit(
    def: &TableDef,
    measurement: &str,
    incoming: Column,
    at: usize,
    array: &ArrayRef,
) -> Result<Place> {
    let existing = &def.schema.columns[at];
    if incoming.kind == existing.kind && incoming.field_type == existing.field_type {
        return Ok(Place::At(at));
    }
    let fields = incoming.kind == ColumnKind::Field && existing.kind == ColumnKind::Field;
    if !def.options.widen_integers || !fields {
        return Ok(Place::Conflict(conflict(measurement, &incoming, existing)));
    }
    Ok(if incoming.field_type.widens_to(existing.field_type) {
        let error = conflict(measurement, &incoming, existing)
            .with_hint("floating point holds integers up to 2^53: write larger ones as text");
        Place::Exact(at, inexact(array)?, error)
    } else if existing.field_type.widens_to(incoming.field_type) {
        Place::New(incoming)
    } else {
        Place::Conflict(conflict(measurement, &incoming, existing))
    })
}

/// Which integers floating point does not hold exactly.
fn inexact(array: &ArrayRef) -> Result<BooleanArray> {
    let lossy = match array.data_type() {
        DataType::Int64 => BooleanArray::from_unary(array.as_primitive::<Int64Type>(), |value| {
            !exact_signed(value)
        }),
        DataType::UInt64 => BooleanArray::from_unary(array.as_primitive::<UInt64Type>(), |value| {
            !exact_unsigned(value)
        }),
        other => return Err(Error::internal(format!("check {other} as integers"))),
    };
    let (values, nulls) = lossy.into_parts();
    let values = nulls.map_or(values.clone(), |nulls| &values & nulls.inner());
    Ok(BooleanArray::new(values, None))
}

/// The error of a column that is something else already, in InfluxDB's words.
#[must_use]
pub fn conflict(measurement: &str, incoming: &Column, existing: &Column) -> Error {
    let role = if incoming.kind == ColumnKind::Tag { "tag" } else { "field" };
    Error::new(
        Code::TypeConflict,
        format!(
            "field type conflict: input {role} \"{}\" on measurement \"{measurement}\" is type {}, \
             already exists as type {}",
            incoming.name,
            type_word(incoming),
            type_word(existing)
        ),
    )
    .with_hint(format!(
        "write {:?} as {}, or use another name{}",
        incoming.name,
        type_word(existing),
        match (incoming.kind, existing.kind) {
            (ColumnKind::Field, ColumnKind::Field)
                if incoming.field_type.widens_with(existing.field_type) =>
            {
                "; integers and floating point meet after \
                 ALTER TABLE … SET (widen_integers = true)"
            }
            _ => "",
        }
    ))
}

fn type_word(column: &Column) -> &'static str {
    match column.kind {
        ColumnKind::Field => column.field_type.as_str(),
        other => other.as_str(),
    }
}

/// For each column that costs rows: which rows, and why.
fn conflicts<'a>(batch: &RecordBatch, places: &'a [Place]) -> Vec<(BooleanArray, &'a Error)> {
    let costs = |(at, place): (usize, &'a Place)| match place {
        // A tag may also be NULL through its dictionary, which only the logical mask shows.
        Place::Conflict(error) => {
            let valid = match batch.column(at).logical_nulls() {
                Some(nulls) => BooleanArray::new(nulls.into_inner(), None),
                None => BooleanArray::from(vec![true; batch.num_rows()]),
            };
            Some((valid, error))
        }
        Place::Exact(_, inexact, error) => Some((inexact.clone(), error)),
        Place::At(_) | Place::New(_) => None,
    };
    places.iter().enumerate().filter_map(costs).collect()
}

/// The rows that any conflict costs; `None` where there is none.
fn refused_rows(conflicts: &[(BooleanArray, &Error)]) -> Option<BooleanArray> {
    let all = conflicts.iter().map(|(rows, _)| rows.clone());
    let refused = all.reduce(|all, rows| compute::or(&all, &rows).unwrap_or(all));
    refused.filter(|rows| rows.true_count() > 0)
}

/// One entry for each refused row, with the first of its conflicts.
fn describe(
    rows: &TableBatch,
    conflicts: &[(BooleanArray, &Error)],
    refused: &BooleanArray,
) -> Vec<RejectedRow> {
    refused
        .values()
        .set_indices()
        .filter_map(|row| {
            let (_, error) = conflicts.iter().find(|(rows, _)| rows.value(row))?;
            let line = rows.lines.get(row).copied().unwrap_or(0);
            Some(RejectedRow { line, error: (*error).clone() })
        })
        .collect()
}

/// Gives the columns that stay the table's names, types and fields, and says which are new.
fn assemble(
    kept: RecordBatch,
    places: Vec<Place>,
    known: Option<&Known>,
) -> Result<(RecordBatch, Vec<Column>)> {
    let rows = kept.num_rows();
    let (old, arrays, _) = kept.into_parts();
    let mut fields: Vec<FieldRef> = Vec::with_capacity(arrays.len());
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(arrays.len());
    let mut missing = Vec::new();
    for ((place, array), field) in places.into_iter().zip(arrays).zip(old.fields()) {
        match (place, known) {
            (Place::At(at) | Place::Exact(at, ..), Some(known)) => {
                let field = known.fields[at].clone();
                columns.push(as_type(array, field.data_type())?);
                fields.push(field);
            }
            (Place::New(column), _) => {
                let empty = column.kind != ColumnKind::Time && array.logical_null_count() == rows;
                if empty {
                    continue;
                }
                columns.push(array);
                fields.push(field.clone());
                missing.push(column);
            }
            _ => {}
        }
    }
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
        .map_err(defect)?;
    Ok((batch, missing))
}

/// Text that did not come through a dictionary yet, or another dictionary's keys.
fn as_type(array: ArrayRef, wanted: &DataType) -> Result<ArrayRef> {
    if array.data_type() == wanted {
        return Ok(array);
    }
    compute::cast(&array, wanted).map_err(|error| {
        Error::new(Code::InvalidCast, format!("convert rows to {wanted}: {error}"))
    })
}

/// The schema of a table that is created for rows that arrived: tags, then fields in order
/// of appearance, then time.
#[must_use]
pub fn schema_of(missing: &[Column]) -> TableSchema {
    let of = |kind| missing.iter().filter(move |column| column.kind == kind).cloned();
    let mut columns: Vec<Column> = of(ColumnKind::Tag).collect();
    columns.extend(of(ColumnKind::Field));
    columns.extend(of(ColumnKind::Time));
    TableSchema { version: 0, columns }
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        DictionaryArray, Float64Array, Int64Array, StringArray, TimestampNanosecondArray,
    };
    use arrow::datatypes::{Float64Type, Int32Type};
    use kymo_kernel::ids::TableId;
    use kymo_kernel::schema::{TableName, TableOptions, marked_field};

    use super::*;

    fn times(count: i64) -> ArrayRef {
        Arc::new(TimestampNanosecondArray::from_iter_values(0..count).with_timezone("+00:00"))
    }

    fn tags(values: Vec<Option<&str>>) -> ArrayRef {
        Arc::new(values.into_iter().collect::<DictionaryArray<Int32Type>>())
    }

    fn rows(columns: Vec<(&str, ColumnKind, FieldType, ArrayRef)>) -> TableBatch {
        let fields: Vec<_> =
            columns.iter().map(|(name, kind, of, _)| marked_field(name, *kind, *of)).collect();
        let arrays: Vec<_> = columns.into_iter().map(|(_, _, _, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap();
        let lines = (1..=u32::try_from(batch.num_rows()).unwrap()).map(|row| row * 10).collect();
        TableBatch { table: TableName::new("kymo", "cpu"), batch, lines }
    }

    fn known(columns: &[(&str, ColumnKind, FieldType)]) -> Known {
        let columns = columns
            .iter()
            .zip(1..)
            .map(|((name, kind, field_type), id)| Column {
                id: ColumnId(id),
                name: (*name).to_owned(),
                kind: *kind,
                field_type: *field_type,
            })
            .collect();
        Known::new(Arc::new(TableDef {
            id: TableId(7),
            name: TableName::new("kymo", "cpu"),
            schema: TableSchema { version: 1, columns },
            options: TableOptions::default(),
        }))
        .unwrap()
    }

    use ColumnKind::{Field, Tag, Time};
    use FieldType::{Float64, Int64, Text, Timestamp};

    #[test]
    fn a_new_table_lacks_everything_that_has_a_value() {
        let rows = rows(vec![
            ("usage", Field, Float64, Arc::new(Float64Array::from(vec![1.0, 2.0]))),
            ("host", Tag, Text, tags(vec![Some("a"), None])),
            ("empty", Field, Int64, Arc::new(Int64Array::from(vec![None, None]))),
            ("time", Time, Timestamp, times(2)),
        ]);
        let checked = check(&rows, None).unwrap();
        assert_eq!(checked.batch.num_columns(), 3);
        assert!(checked.rejected.is_empty());
        let schema = schema_of(&checked.missing);
        let names: Vec<_> = schema.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["host", "usage", "time"]);
    }

    #[test]
    fn a_conflict_costs_only_the_rows_that_have_a_value() {
        let known = known(&[("host", Tag, Text), ("v", Field, Float64), ("time", Time, Timestamp)]);
        let rows = rows(vec![
            ("host", Tag, Text, tags(vec![Some("a"), Some("b"), Some("c")])),
            ("v", Field, Int64, Arc::new(Int64Array::from(vec![None, Some(4), None]))),
            ("w", Field, Float64, Arc::new(Float64Array::from(vec![1.0, 2.0, 3.0]))),
            ("time", Time, Timestamp, times(3)),
        ]);
        let checked = check(&rows, Some(&known)).unwrap();
        assert_eq!(checked.batch.num_rows(), 2);
        assert!(checked.batch.column_by_name("v").is_none());
        assert_eq!(checked.missing.len(), 1);
        assert_eq!(checked.rejected.len(), 1);
        assert_eq!(checked.rejected[0].line, 20);
        assert_eq!(
            checked.rejected[0].error.message(),
            "field type conflict: input field \"v\" on measurement \"cpu\" is type integer, \
             already exists as type float"
        );
    }

    #[test]
    fn integers_and_floating_point_meet_where_the_table_says_so() {
        let narrow =
            known(&[("v", Field, Float64), ("n", Field, Int64), ("time", Time, Timestamp)]);
        let mut def = TableDef::clone(&narrow.def);
        def.options.widen_integers = true;
        let wide = Known::new(Arc::new(def)).unwrap();
        let most = 1_i64 << 53;
        let rows = rows(vec![
            ("v", Field, Int64, Arc::new(Int64Array::from(vec![Some(most), None, Some(most + 1)]))),
            ("n", Field, Float64, Arc::new(Float64Array::from(vec![None, Some(0.5), None]))),
            ("time", Time, Timestamp, times(3)),
        ]);
        let refused = check(&rows, Some(&narrow)).unwrap().rejected;
        assert_eq!(refused.iter().map(|row| row.line).collect::<Vec<_>>(), [10, 20, 30]);
        assert!(refused[1].error.hint().unwrap().contains("widen_integers"));
        let checked = check(&rows, Some(&wide)).unwrap();
        assert_eq!((checked.lines.as_slice(), checked.rejected.len()), (&[10, 20][..], 1));
        assert!(checked.rejected[0].error.hint().unwrap().contains("2^53"));
        let v = checked.batch.column_by_name("v").unwrap().as_primitive::<Float64Type>();
        assert_eq!((v.value(0), v.is_null(1)), (9_007_199_254_740_992.0, true));
        let missing: Vec<_> =
            checked.missing.iter().map(|each| (each.name.as_str(), each.field_type)).collect();
        assert_eq!(missing, [("n", Float64)], "the catalog is asked to widen it");
    }

    #[test]
    fn columns_that_cannot_be_added_cost_the_rows_that_use_them() {
        let known = known(&[("v", Field, Float64), ("time", Time, Timestamp)]);
        let rows = rows(vec![
            ("v", Field, Float64, Arc::new(Float64Array::from(vec![1.0, 2.0]))),
            ("new", Field, Int64, Arc::new(Int64Array::from(vec![None, Some(1)]))),
            ("time", Time, Timestamp, times(2)),
        ]);
        let full = Error::new(Code::LimitReached, "full");
        let checked = check(&rows, Some(&known)).unwrap().without_missing(&full, false).unwrap();
        assert_eq!((checked.batch.num_rows(), checked.batch.num_columns()), (1, 2));
        assert_eq!(checked.lines, [10]);
        assert_eq!(checked.rejected[0].line, 20);
        let none = check(&rows, None).unwrap().without_missing(&full, true).unwrap();
        assert_eq!((none.batch.num_rows(), none.rejected.len()), (0, 2));
    }

    #[test]
    fn a_tag_is_no_field_and_a_field_no_tag() {
        let known = known(&[("host", Tag, Text), ("v", Field, Float64), ("time", Time, Timestamp)]);
        let rows = rows(vec![
            ("v", Tag, Text, tags(vec![Some("x"), None])),
            ("host", Field, Text, Arc::new(StringArray::from(vec![None, Some("y")]))),
            ("time", Time, Timestamp, times(2)),
        ]);
        let checked = check(&rows, Some(&known)).unwrap();
        assert_eq!(checked.batch.num_rows(), 0);
        let texts: Vec<_> = checked.rejected.iter().map(|row| row.error.message()).collect();
        assert!(texts[0].contains("input tag \"v\"") && texts[0].ends_with("type float"));
        assert!(texts[1].contains("is type string") && texts[1].ends_with("type tag"));
    }

    #[test]
    fn a_conflicting_column_without_values_costs_nothing() {
        let known = known(&[("v", Field, Float64), ("time", Time, Timestamp)]);
        let rows = rows(vec![
            ("v", Field, Int64, Arc::new(Int64Array::from(vec![None::<i64>]))),
            ("time", Time, Timestamp, times(1)),
        ]);
        let checked = check(&rows, Some(&known)).unwrap();
        assert!(checked.rejected.is_empty());
        assert_eq!((checked.batch.num_rows(), checked.batch.num_columns()), (1, 1));
    }

    #[test]
    fn one_name_twice_in_a_request_keeps_what_came_first() {
        let rows = rows(vec![
            ("x", Tag, Text, tags(vec![Some("a"), Some("b")])),
            ("x", Field, Int64, Arc::new(Int64Array::from(vec![None, Some(1)]))),
            ("time", Time, Timestamp, times(2)),
        ]);
        let checked = check(&rows, None).unwrap();
        assert_eq!(checked.batch.num_rows(), 1);
        assert_eq!(checked.rejected[0].line, 20);
    }

    #[test]
    fn the_time_column_takes_the_tables_name_for_it() {
        let known = known(&[("ts", Time, Timestamp), ("v", Field, Float64)]);
        let rows = rows(vec![
            ("v", Field, Float64, Arc::new(Float64Array::from(vec![1.0]))),
            ("time", Time, Timestamp, times(1)),
        ]);
        let checked = check(&rows, Some(&known)).unwrap();
        assert!(checked.missing.is_empty());
        assert!(checked.batch.column_by_name("ts").is_some());
        let ids: Vec<_> = checked
            .batch
            .schema()
            .fields()
            .iter()
            .map(|field| field.metadata()[kymo_kernel::schema::FIELD_ID_KEY].clone())
            .collect();
        assert_eq!(ids, ["2", "1"]);
    }

    #[test]
    fn rows_without_a_time_are_refused() {
        let rows = rows(vec![("v", Field, Int64, Arc::new(Int64Array::from(vec![1])))]);
        assert_eq!(check(&rows, None).unwrap_err().code(), Code::InvalidInput);
    }

    #[test]
    fn plain_text_becomes_a_tag_and_other_types_are_refused() {
        let known = known(&[("host", Tag, Text), ("time", Time, Timestamp)]);
        let field = |name: &str, of: DataType, kind: ColumnKind| {
            arrow::datatypes::Field::new(name, of, true).with_metadata(
                [(kymo_kernel::schema::KIND_KEY.to_owned(), kind.as_str().to_owned())].into(),
            )
        };
        let time = marked_field("time", Time, Timestamp);
        let make = |host, array: ArrayRef| TableBatch {
            table: TableName::new("kymo", "cpu"),
            batch: RecordBatch::try_new(
                Arc::new(Schema::new(vec![host, time.clone()])),
                vec![array, times(1)],
            )
            .unwrap(),
            lines: Vec::new(),
        };
        let text = make(field("host", DataType::Utf8, Tag), Arc::new(StringArray::from(vec!["a"])));
        let checked = check(&text, Some(&known)).unwrap();
        assert_eq!(checked.batch.column(0).data_type(), &kymo_kernel::schema::tag_type());
        let binary = make(
            field("host", DataType::Int32, Tag),
            Arc::new(arrow::array::Int32Array::from(vec![1])),
        );
        assert_eq!(check(&binary, Some(&known)).unwrap_err().code(), Code::InvalidInput);
    }
}
