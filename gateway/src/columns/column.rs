//! One column of the rows of a request, as typed values that become an Arrow array.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, NullBufferBuilder, TimestampNanosecondArray,
    UInt64Array,
};
use kymo_kernel::schema::{ColumnKind, FieldType, exact_signed, exact_unsigned};
use kymo_kernel::{Error, Result};

use super::text::{Dictionary, Text};
use super::{Refusal, Value};

/// The values of one column so far, NULL where a row lacks it.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) field_type: FieldType,
    /// For a tag, the number (from 1) of the last series that has it.
    pub(super) last_series: u32,
    pub(super) fixed: bool,
    pub(super) values: Values,
    pub(super) nulls: NullBufferBuilder,
    /// What it was before it took floating point.
    narrow: Option<FieldType>,
}

pub(super) enum Values {
    Tag(Dictionary),
    Float(Vec<f64>),
    Int(Vec<i64>),
    UInt(Vec<u64>),
    Bool(Vec<bool>),
    Text(Text),
    Timestamp(Vec<i64>),
}

impl Column {
    pub(super) fn new(name: String, kind: ColumnKind, field_type: FieldType, fixed: bool) -> Self {
        let values = match (kind, field_type) {
            (ColumnKind::Tag, _) => Values::Tag(Dictionary::default()),
            (_, FieldType::Float64) => Values::Float(Vec::new()),
            (_, FieldType::Int64) => Values::Int(Vec::new()),
            (_, FieldType::UInt64) => Values::UInt(Vec::new()),
            (_, FieldType::Bool) => Values::Bool(Vec::new()),
            (_, FieldType::Text) => Values::Text(Text::default()),
            (_, FieldType::Timestamp) => Values::Timestamp(Vec::new()),
        };
        let nulls = NullBufferBuilder::new(0);
        Column { name, field_type, last_series: 0, fixed, values, nulls, narrow: None }
    }

    pub(super) fn refuse(&self, given: FieldType) -> Refusal {
        Refusal::Type { column: self.name.clone(), given, existing: self.field_type }
    }

    /// Lets an integer and floating point meet in this column, as long as nothing is lost.
    pub(super) fn meet(&mut self, value: &Value<'_>) -> Result<(), Refusal> {
        let lossy = match value {
            Value::Int(value) if !exact_signed(*value) => Some(value.to_string()),
            Value::UInt(value) if !exact_unsigned(*value) => Some(value.to_string()),
            _ => match &self.values {
                Values::Int(had) => first(had, |value| !exact_signed(value)),
                Values::UInt(had) => first(had, |value| !exact_unsigned(value)),
                _ => None,
            },
        };
        if let Some(value) = lossy {
            return Err(Refusal::Inexact { column: self.name.clone(), value });
        }
        #[expect(clippy::cast_precision_loss, reason = "each was checked to be exact")]
        let widened = match &self.values {
            Values::Int(had) => had.iter().map(|value| *value as f64).collect(),
            Values::UInt(had) => had.iter().map(|value| *value as f64).collect(),
            _ => return Ok(()),
        };
        self.narrow = Some(std::mem::replace(&mut self.field_type, FieldType::Float64));
        self.values = Values::Float(widened);
        Ok(())
    }

    /// Takes back that it became floating point: the line that asked for it was bad.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "integers before")]
    pub(super) fn narrowed(&mut self) {
        let (Some(field_type), Values::Float(values)) = (self.narrow, &self.values) else { return };
        self.values = match field_type {
            FieldType::Int64 => Values::Int(values.iter().map(|value| *value as i64).collect()),
            _ => Values::UInt(values.iter().map(|value| *value as u64).collect()),
        };
        self.field_type = field_type;
    }

    pub(super) fn kind(&self) -> ColumnKind {
        match self.values {
            Values::Tag(_) => ColumnKind::Tag,
            _ => ColumnKind::Field,
        }
    }

    /// Fills up with NULL to `row` rows.
    fn pad(&mut self, row: usize) {
        let missing = row.saturating_sub(self.nulls.len());
        if missing == 0 {
            return;
        }
        self.nulls.append_n_nulls(missing);
        match &mut self.values {
            Values::Tag(_) => {}
            Values::Float(values) => values.resize(row, 0.0),
            Values::Int(values) | Values::Timestamp(values) => values.resize(row, 0),
            Values::UInt(values) => values.resize(row, 0),
            Values::Bool(values) => values.resize(row, false),
            Values::Text(text) => text.pad(row),
        }
    }

    pub(super) fn put(&mut self, row: usize, value: Value<'_>) {
        if self.nulls.len() > row {
            self.pop();
        } else {
            self.pad(row);
            self.nulls.append_non_null();
        }
        match (&mut self.values, value) {
            (Values::Float(values), Value::Float(value)) => {
                values.push(value);
                // It stays what it has become.
                self.narrow = None;
            }
            #[expect(clippy::cast_precision_loss, reason = "it was checked to be exact")]
            (Values::Float(values), Value::Int(value)) => values.push(value as f64),
            #[expect(clippy::cast_precision_loss, reason = "it was checked to be exact")]
            (Values::Float(values), Value::UInt(value)) => values.push(value as f64),
            (Values::Int(values), Value::Int(value))
            | (Values::Timestamp(values), Value::Timestamp(value)) => values.push(value),
            (Values::UInt(values), Value::UInt(value)) => values.push(value),
            (Values::Bool(values), Value::Bool(value)) => values.push(value),
            (Values::Text(text), Value::Text { raw, escaped: false }) => text.push(raw),
            (Values::Text(text), Value::Text { raw, escaped: true }) => text.push_unescaped(raw),
            // Types were checked before the row; a value of another one would be a defect,
            // and NULL keeps the columns aligned.
            (_, _) => {
                self.nulls.truncate(row);
                self.pad(row + 1);
            }
        }
    }

    /// Takes back the value of the current row, for a field that occurs twice in it.
    fn pop(&mut self) {
        match &mut self.values {
            Values::Tag(_) => {}
            Values::Float(values) => drop(values.pop()),
            Values::Int(values) | Values::Timestamp(values) => drop(values.pop()),
            Values::UInt(values) => drop(values.pop()),
            Values::Bool(values) => drop(values.pop()),
            Values::Text(text) => text.pop(),
        }
    }

    pub(super) fn finish(mut self, rows: usize) -> Result<ArrayRef> {
        self.pad(rows);
        let nulls = self.nulls.finish();
        Ok(match self.values {
            Values::Float(values) => Arc::new(Float64Array::new(values.into(), nulls)),
            Values::Int(values) => Arc::new(Int64Array::new(values.into(), nulls)),
            Values::UInt(values) => Arc::new(UInt64Array::new(values.into(), nulls)),
            Values::Bool(values) => Arc::new(BooleanArray::new(values.into(), nulls)),
            Values::Timestamp(values) => Arc::new(
                TimestampNanosecondArray::new(values.into(), nulls).with_timezone("+00:00"),
            ),
            Values::Text(text) => Arc::new(text.finish(nulls)?),
            Values::Tag(_) => return Err(Error::internal("a tag column kept as a field")),
        })
    }
}

/// The first value that is something.
fn first<T: Copy + ToString>(values: &[T], is: impl Fn(T) -> bool) -> Option<String> {
    values.iter().find(|value| is(**value)).map(ToString::to_string)
}
