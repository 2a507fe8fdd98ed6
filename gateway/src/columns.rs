//! Typed column builders that the bodies of writes are parsed into, without rows in between.
//!
//! A [`Columns`] collects the rows of one table of one request. Each row names a series (a
//! set of tag values that was seen before or is registered now) and a few field values; the
//! columns that a row lacks are filled with NULL only when a later row needs them. Tags are
//! kept as one number a row and spread into dictionary columns at the end. Names that the
//! catalog knows keep its kinds and types, new names take those of their first value, so a
//! conflict is found at the row that causes it.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Int32Array, NullBufferBuilder, RecordBatch, TimestampNanosecondArray,
};
use arrow::datatypes::{Field, Schema};
use foldhash::fast::RandomState;
use hashbrown::HashMap;
use kymo_kernel::schema::{
    ColumnKind, FieldType, TIME, TableBatch, TableDef, TableName, marked_field,
};
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Error, Result};

mod column;
mod refusal;
mod text;

use column::{Column, Values};
pub use refusal::Refusal;
use text::Text;

/// What is known of tables before a request: in a server the catalog's snapshot.
pub trait Types {
    /// The definition of a table that exists.
    fn table(&self, name: &TableName) -> Option<Arc<TableDef>>;
}

impl Types for Snapshot {
    fn table(&self, name: &TableName) -> Option<Arc<TableDef>> {
        Snapshot::table(self, name).map(|table| Arc::clone(&table.def))
    }
}

/// A field's value as it stands in the request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    /// Floating point.
    Float(f64),
    /// Signed integer.
    Int(i64),
    /// Unsigned integer.
    UInt(u64),
    /// True or false.
    Bool(bool),
    /// Text, or a timestamp's nanoseconds where the column holds those.
    Text {
        /// The bytes, UTF-8 unless the request is refused later.
        raw: &'a [u8],
        /// Whether `\"` and `\\` still stand for `"` and `\`.
        escaped: bool,
    },
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64),
}

impl Value<'_> {
    /// The type that a new column for it gets.
    #[must_use]
    pub fn field_type(&self) -> FieldType {
        match self {
            Value::Float(_) => FieldType::Float64,
            Value::Int(_) => FieldType::Int64,
            Value::UInt(_) => FieldType::UInt64,
            Value::Bool(_) => FieldType::Bool,
            Value::Text { .. } => FieldType::Text,
            Value::Timestamp(_) => FieldType::Timestamp,
        }
    }
}

/// The state of a [`Columns`] to go back to when a row turns out to be bad.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    columns: usize,
    series: usize,
    tags: usize,
}

/// The rows of one table on their way into Arrow.
pub struct Columns {
    name: TableName,
    time_name: String,
    known: HashMap<Box<[u8]>, (ColumnKind, FieldType), RandomState>,
    names: HashMap<Box<[u8]>, u32, RandomState>,
    columns: Vec<Column>,
    series: Vec<(u32, u32)>,
    tags: Vec<(u32, i32)>,
    times: Vec<i64>,
    lines: Vec<u32>,
    series_of_row: Vec<u32>,
    max_columns: usize,
    /// Whether integers and floating point may meet in a column.
    widens: bool,
}

impl Columns {
    /// Builders for a table; `known` is its definition where it exists.
    #[must_use]
    pub fn new(name: TableName, known: Option<&TableDef>, max_columns: usize) -> Self {
        let mut kinds = HashMap::default();
        let mut time_name = TIME.to_owned();
        for column in known.iter().flat_map(|def| &def.schema.columns) {
            if column.kind == ColumnKind::Time {
                time_name.clone_from(&column.name);
            }
            kinds.insert(column.name.as_bytes().into(), (column.kind, column.field_type));
        }
        kinds.entry_ref(time_name.as_bytes()).or_insert((ColumnKind::Time, FieldType::Timestamp));
        Columns {
            name,
            time_name,
            known: kinds,
            names: HashMap::default(),
            columns: Vec::new(),
            series: Vec::new(),
            tags: Vec::new(),
            times: Vec::new(),
            lines: Vec::new(),
            series_of_row: Vec::new(),
            max_columns,
            widens: known.is_some_and(|def| def.options.widen_integers),
        }
    }

    /// The table's name.
    #[must_use]
    pub fn table(&self) -> &TableName {
        &self.name
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.times.len()
    }

    /// How many columns there are besides time.
    #[must_use]
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// How many series were registered.
    #[must_use]
    pub fn series_count(&self) -> usize {
        self.series.len()
    }

    /// The name of the table's time column.
    #[must_use]
    pub fn time_name(&self) -> &str {
        &self.time_name
    }

    /// The kind and type that a name has, in the catalog or by an earlier row.
    #[must_use]
    pub fn kind(&self, name: &[u8]) -> Option<(ColumnKind, FieldType)> {
        let here = self.names.get(name).and_then(|at| self.columns.get(*at as usize));
        match here {
            Some(column) => Some((column.kind(), column.field_type)),
            None => self.known.get(name).copied(),
        }
    }

    /// The state to return to with [`Columns::rollback`].
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { columns: self.columns.len(), series: self.series.len(), tags: self.tags.len() }
    }

    /// Forgets the columns and series that were registered since the mark. Rows stay: they
    /// are added last.
    pub fn rollback(&mut self, mark: Mark) {
        for column in self.columns.drain(mark.columns..) {
            self.names.remove(column.name.as_bytes());
        }
        self.series.truncate(mark.series);
        self.tags.truncate(mark.tags);
        let series = u32::try_from(mark.series).unwrap_or(u32::MAX);
        for column in &mut self.columns {
            column.last_series = column.last_series.min(series);
        }
    }

    /// Begins a new series: the [`Columns::tag`] calls that follow are its tags.
    pub fn start_series(&mut self) -> u32 {
        let at = u32::try_from(self.tags.len()).unwrap_or(u32::MAX);
        self.series.push((at, at));
        u32::try_from(self.series.len() - 1).unwrap_or(u32::MAX)
    }

    /// Adds a tag to the series begun last.
    ///
    /// # Errors
    /// A refusal when the tag occurs twice, when the name is no tag, or when there are too
    /// many columns.
    pub fn tag(&mut self, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let at = self.column(name, ColumnKind::Tag, FieldType::Text)?;
        let number = u32::try_from(self.series.len()).unwrap_or(u32::MAX);
        let column = &mut self.columns[at as usize];
        if column.last_series == number {
            return Err(Refusal::DuplicateTag(column.name.clone()));
        }
        column.last_series = number;
        if let Values::Tag(dictionary) = &mut column.values {
            self.tags.push((at, dictionary.code(value)));
        }
        if let Some(series) = self.series.last_mut() {
            series.1 = u32::try_from(self.tags.len()).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    /// The column of a field, made where it is new.
    ///
    /// # Errors
    /// A refusal when the type or the kind is another one, or when there are too many columns.
    pub fn field(&mut self, name: &[u8], field_type: FieldType) -> Result<u32, Refusal> {
        let at = self.column(name, ColumnKind::Field, field_type)?;
        self.check_type(at, field_type)?;
        Ok(at)
    }

    /// The column of a field that takes a value, made where it is new.
    ///
    /// # Errors
    /// As [`Columns::field`] and [`Columns::admit`].
    pub fn take(&mut self, name: &[u8], value: &Value<'_>) -> Result<u32, Refusal> {
        let at = self.column(name, ColumnKind::Field, value.field_type())?;
        self.admit(at, value)?;
        Ok(at)
    }

    /// Prepares a column that [`Columns::take`] has given out for a value. Where the table says
    /// so, integers and floating point meet as floating point.
    ///
    /// # Errors
    /// A refusal when the value is of another type, or does not fit exactly.
    pub fn admit(&mut self, at: u32, value: &Value<'_>) -> Result<(), Refusal> {
        let given = value.field_type();
        match self.columns.get_mut(at as usize) {
            Some(column) if column.field_type != given => {
                if self.widens && column.field_type.widens_with(given) {
                    return column.meet(value);
                }
                Err(column.refuse(given))
            }
            _ => Ok(()),
        }
    }

    fn check_type(&self, at: u32, given: FieldType) -> Result<(), Refusal> {
        match self.columns.get(at as usize) {
            Some(column) if column.field_type != given => Err(column.refuse(given)),
            _ => Ok(()),
        }
    }

    /// Turns an integer column that only this request has made into floating point, as JSON
    /// needs where `1` comes before `1.5`. Says whether it could.
    pub fn widen(&mut self, at: u32) -> bool {
        let Some(column) = self.columns.get_mut(at as usize) else { return false };
        match &column.values {
            Values::Int(values) if !column.fixed => {
                // As exact as JavaScript, which is what writes such numbers.
                #[expect(clippy::cast_precision_loss, reason = "the meaning of a JSON number")]
                let widened = values.iter().map(|value| *value as f64).collect();
                column.values = Values::Float(widened);
                column.field_type = FieldType::Float64;
                true
            }
            _ => false,
        }
    }

    /// Adds a row. Its series, columns and types were checked; of a repeated column the last
    /// value stays.
    pub fn row(&mut self, series: u32, time: i64, line: u32, values: &[(u32, Value<'_>)]) {
        let row = self.times.len();
        self.series_of_row.push(series);
        self.times.push(time);
        self.lines.push(line);
        for (at, value) in values {
            if let Some(column) = self.columns.get_mut(*at as usize) {
                column.put(row, *value);
            }
        }
    }

    fn column(
        &mut self,
        name: &[u8],
        kind: ColumnKind,
        field_type: FieldType,
    ) -> Result<u32, Refusal> {
        if let Some(at) = self.names.get(name) {
            let existing = self.columns[*at as usize].kind();
            return if existing == kind { Ok(*at) } else { Err(mixed(name, kind, existing)) };
        }
        let known = self.known.get(name).copied();
        if let Some((existing, _)) = known.filter(|(existing, _)| *existing != kind) {
            return Err(mixed(name, kind, existing));
        }
        if self.columns.len() >= self.max_columns {
            return Err(Refusal::TooManyColumns(self.max_columns));
        }
        let text = String::from_utf8_lossy(name).into_owned();
        if let Err(error) = kymo_kernel::schema::check_name(kind.as_str(), &text) {
            return Err(Refusal::Name(error.message().to_owned()));
        }
        let field_type = known.map_or(field_type, |(_, field_type)| field_type);
        let at = u32::try_from(self.columns.len()).unwrap_or(u32::MAX);
        self.columns.push(Column::new(text, kind, field_type, known.is_some()));
        self.names.insert(name.into(), at);
        Ok(at)
    }

    /// The rows as Arrow columns: time, then tags, then fields, each in the order in which
    /// it appeared. `None` if there is no row.
    ///
    /// # Errors
    /// `invalid_input` for text that is not UTF-8, which callers have checked before.
    pub fn finish(mut self) -> Result<Option<TableBatch>> {
        let rows = self.times.len();
        if rows == 0 {
            return Ok(None);
        }
        let times = TimestampNanosecondArray::from(std::mem::take(&mut self.times));
        let mut fields =
            vec![marked_field(&self.time_name, ColumnKind::Time, FieldType::Timestamp)];
        let mut arrays: Vec<ArrayRef> = vec![Arc::new(times.with_timezone("+00:00"))];
        self.finish_tags(&mut fields, &mut arrays)?;
        for mut column in std::mem::take(&mut self.columns) {
            column.narrowed();
            if column.kind() == ColumnKind::Field && !column.nulls.is_empty() {
                fields.push(marked_field(&column.name, ColumnKind::Field, column.field_type));
                arrays.push(column.finish(rows)?);
            }
        }
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
            .map_err(|error| Error::internal(format!("rows of {}: {error}", self.name)))?;
        Ok(Some(TableBatch { table: self.name, batch, lines: self.lines }))
    }

    /// Spreads the series numbers of the rows into one dictionary column a tag. Series that
    /// no row uses, because their line was bad, count for nothing.
    fn finish_tags(&mut self, fields: &mut Vec<Field>, arrays: &mut Vec<ArrayRef>) -> Result<()> {
        let mut used = vec![false; self.series.len()];
        for series in &self.series_of_row {
            used[*series as usize] = true;
        }
        let mut by_column: Vec<Vec<(u32, i32)>> = vec![Vec::new(); self.columns.len()];
        for (number, (first, last)) in self.series.iter().enumerate().filter(|(at, _)| used[*at]) {
            for (column, code) in &self.tags[*first as usize..*last as usize] {
                by_column[*column as usize].push((u32::try_from(number).unwrap_or(0), *code));
            }
        }
        let mut code_of = vec![-1_i32; self.series.len()];
        for (column, codes) in self.columns.iter_mut().zip(by_column) {
            let Values::Tag(dictionary) = &mut column.values else { continue };
            if codes.is_empty() {
                continue;
            }
            for (series, code) in &codes {
                code_of[*series as usize] = *code;
            }
            let keys: Vec<i32> =
                self.series_of_row.iter().map(|series| code_of[*series as usize]).collect();
            fields.push(marked_field(&column.name, ColumnKind::Tag, FieldType::Text));
            arrays.push(tag_array(keys, std::mem::take(&mut dictionary.values))?);
            for (series, _) in &codes {
                code_of[*series as usize] = -1;
            }
        }
        Ok(())
    }
}

fn tag_array(mut keys: Vec<i32>, values: Text) -> Result<ArrayRef> {
    let mut nulls = NullBufferBuilder::new(keys.len());
    for key in &mut keys {
        nulls.append(*key >= 0);
        *key = (*key).max(0);
    }
    let keys = Int32Array::new(keys.into(), nulls.finish());
    let values = Arc::new(values.finish(None)?);
    DictionaryArray::try_new(keys, values)
        .map(|array| Arc::new(array) as ArrayRef)
        .map_err(|error| Error::internal(format!("tag column: {error}")))
}

fn mixed(name: &[u8], given: ColumnKind, existing: ColumnKind) -> Refusal {
    Refusal::Kind { column: String::from_utf8_lossy(name).into_owned(), given, existing }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float64Type, Int32Type, Int64Type};

    use super::*;

    fn columns() -> Columns {
        Columns::new(TableName::new("kymo", "t"), None, 10)
    }

    #[test]
    fn rows_that_lack_columns_hold_null() {
        let mut columns = columns();
        let none = columns.start_series();
        let tagged = columns.start_series();
        columns.tag(b"host", b"a").unwrap();
        let x = columns.field(b"x", FieldType::Int64).unwrap();
        let s = columns.field(b"s", FieldType::Text).unwrap();
        let text = |raw| Value::Text { raw, escaped: true };
        columns.row(none, 1, 1, &[(x, Value::Int(1))]);
        columns.row(tagged, 2, 2, &[(s, text(br#"a\"b\\c\n"#))]);
        columns.row(tagged, 3, 3, &[(x, Value::Int(7)), (x, Value::Int(8))]);
        let batch = columns.finish().unwrap().unwrap().batch;
        assert_eq!(batch.num_rows(), 3);
        let names: Vec<_> = batch.schema().fields().iter().map(|f| f.name().clone()).collect();
        assert_eq!(names, ["time", "host", "x", "s"]);
        let x = batch.column(2).as_primitive::<Int64Type>();
        assert_eq!(x.iter().collect::<Vec<_>>(), [Some(1), None, Some(8)]);
        let s = batch.column(3).as_string::<i32>();
        assert_eq!(s.iter().collect::<Vec<_>>(), [None, Some(r#"a"b\c\n"#), None]);
        let host = batch.column(1).as_dictionary::<Int32Type>();
        assert!(host.is_null(0) && host.is_valid(1));
    }

    #[test]
    fn a_rollback_forgets_names_and_types() {
        let mut columns = columns();
        let series = columns.start_series();
        let mark = columns.mark();
        columns.field(b"x", FieldType::Int64).unwrap();
        columns.start_series();
        columns.tag(b"host", b"a").unwrap();
        columns.rollback(mark);
        let x = columns.field(b"x", FieldType::Text).unwrap();
        let y = columns.field(b"host", FieldType::Bool).unwrap();
        columns.row(series, 1, 1, &[(x, Value::Text { raw: b"v", escaped: false })]);
        columns.row(series, 2, 2, &[(y, Value::Bool(true))]);
        let batch = columns.finish().unwrap().unwrap().batch;
        assert_eq!(batch.num_columns(), 3);
    }

    #[test]
    fn names_are_refused_for_each_reason() {
        let mut columns = columns();
        columns.start_series();
        columns.tag(b"host", b"a").unwrap();
        assert!(matches!(columns.tag(b"host", b"b"), Err(Refusal::DuplicateTag(_))));
        assert!(matches!(columns.tag(b"time", b"b"), Err(Refusal::Kind { .. })));
        assert!(matches!(columns.field(b"host", FieldType::Bool), Err(Refusal::Kind { .. })));
        columns.field(b"x", FieldType::Int64).unwrap();
        assert!(matches!(columns.field(b"x", FieldType::Bool), Err(Refusal::Type { .. })));
        assert!(matches!(columns.field(b"a\x01", FieldType::Bool), Err(Refusal::Name(_))));
        for n in 0..8 {
            columns.field(format!("f{n}").as_bytes(), FieldType::Bool).unwrap();
        }
        assert!(matches!(
            columns.field(b"more", FieldType::Bool),
            Err(Refusal::TooManyColumns(10))
        ));
    }

    #[test]
    fn a_new_integer_column_can_widen() {
        let mut columns = columns();
        let series = columns.start_series();
        let x = columns.field(b"x", FieldType::Int64).unwrap();
        columns.row(series, 1, 1, &[(x, Value::Int(1))]);
        assert!(columns.widen(x));
        columns.row(series, 2, 2, &[(x, Value::Float(1.5))]);
        let batch = columns.finish().unwrap().unwrap().batch;
        let x = batch.column(1).as_primitive::<Float64Type>();
        assert_eq!(x.values().as_ref(), [1.0, 1.5]);
    }
}
