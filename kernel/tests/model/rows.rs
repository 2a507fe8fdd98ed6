//! Rows of the model: made up, turned into batches, read back and compared.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
};
use arrow::datatypes::{Int32Type, Schema, TimestampNanosecondType};
use arrow::util::display::array_value_to_string;
use kymo_kernel::env::sim::Dice;
use kymo_kernel::ids::{ColumnId, TimeRange};
use kymo_kernel::schema::{ColumnKind, FieldType, TableDef};
use kymo_kernel::storage::delete::Predicate;
use kymo_kernel::storage::merge::{GroupScan, open};
use kymo_kernel::storage::overlap::groups;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Error, Result};

/// Texts by the id of their column, which outlives its name; a column without a value is absent.
type Values = BTreeMap<ColumnId, String>;

/// The tag and the field that every table has from the start and keeps.
pub const HOST: ColumnId = ColumnId(1);
pub const F1: ColumnId = ColumnId(3);

/// One row.
#[derive(Debug, Clone)]
pub struct Row {
    tags: Values,
    time: i64,
    fields: Values,
}

impl Row {
    /// A row with some of the table's columns, of values that no other row has.
    pub fn random(def: &TableDef, time: i64, counter: i64, dice: &mut Dice) -> Row {
        let (mut tags, mut fields) = (Values::new(), Values::new());
        for column in &def.schema.columns {
            let name = column.id;
            match column.kind {
                ColumnKind::Tag if dice.chance(85) => {
                    tags.insert(name, ["a", "b", "c"][dice.below(3)].to_owned());
                }
                ColumnKind::Field if dice.chance(70) => {
                    let value = match column.field_type {
                        FieldType::Float64 => format!("{counter}.5"),
                        FieldType::Text => format!("x{counter}"),
                        _ => counter.to_string(),
                    };
                    fields.insert(name, value);
                }
                _ => {}
            }
        }
        Row { tags, time, fields }
    }
}

/// The rows as a batch with the columns that any of them has.
pub fn batch(def: &TableDef, rows: &[Row]) -> Result<RecordBatch> {
    let (mut fields, mut arrays): (Vec<_>, Vec<ArrayRef>) = (Vec::new(), Vec::new());
    for column in &def.schema.columns {
        let of = |row: &Row| row.tags.get(&column.id).or(row.fields.get(&column.id)).cloned();
        let values: Vec<Option<String>> = rows.iter().map(of).collect();
        if column.kind != ColumnKind::Time && values.iter().all(Option::is_none) {
            continue;
        }
        fields.push(column.arrow());
        let texts = || values.iter().map(Option::as_deref);
        arrays.push(match (column.kind, column.field_type) {
            (ColumnKind::Time, _) => Arc::new(
                TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.time))
                    .with_timezone("+00:00"),
            ),
            (ColumnKind::Tag, _) => Arc::new(texts().collect::<DictionaryArray<Int32Type>>()),
            (_, FieldType::Float64) => {
                Arc::new(texts().map(|text| text?.parse().ok()).collect::<Float64Array>())
            }
            (_, FieldType::Text) => Arc::new(texts().collect::<StringArray>()),
            _ => Arc::new(texts().map(|text| text?.parse().ok()).collect::<Int64Array>()),
        });
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)
        .map_err(|error| Error::internal(error.to_string()))
}

/// What a table holds: rows by tags and time. Where the later write wins there is one set of
/// values a key, in an append-only table all of them, sorted.
pub type Content = BTreeMap<(Values, i64), Vec<Values>>;

/// What happens to a table.
pub enum Event<'a> {
    Written(&'a Row),
    Deleted(&'a Condition),
}

/// Which rows a deletion is about.
#[derive(Debug, Clone)]
pub enum Condition {
    /// Those of these times.
    Times(TimeRange),
    /// Those of one host, within times.
    Host(&'static str, TimeRange),
    /// Those whose number in `f1` ends so.
    Digit(char),
}

impl Condition {
    pub fn random(dice: &mut Dice) -> Condition {
        let mut times = || {
            let first = dice.below(30) as i64 * 1_000_000_000;
            TimeRange { first, last: first + dice.below(15) as i64 * 1_000_000_000 }
        };
        let times = times();
        match dice.below(3) {
            0 => Condition::Times(times),
            1 => Condition::Host(["a", "b"][dice.below(2)], times),
            _ => Condition::Digit(char::from(b'0' + dice.below(10) as u8)),
        }
    }

    /// The times that it is about.
    pub fn times(&self) -> TimeRange {
        match self {
            Condition::Times(times) | Condition::Host(_, times) => *times,
            Condition::Digit(_) => TimeRange::ALL,
        }
    }

    fn meets(&self, tags: &Values, time: i64, fields: &Values) -> bool {
        let times = self.times();
        (times.first..=times.last).contains(&time)
            && match self {
                Condition::Times(_) => true,
                Condition::Host(host, _) => tags.get(&HOST).is_some_and(|tag| tag == host),
                Condition::Digit(digit) => {
                    fields.get(&F1).is_some_and(|value| value.ends_with(*digit))
                }
            }
    }

    /// The same as a function of columns, where the time does not say it all.
    pub fn predicate(&self, def: &Arc<TableDef>) -> Option<Predicate> {
        if let Condition::Times(_) = self {
            return None;
        }
        let (condition, def) = (self.clone(), def.clone());
        Some(Arc::new(move |batch| {
            let rows = read(&def, batch)?;
            let meets =
                rows.iter().map(|(tags, time, fields)| condition.meets(tags, *time, fields));
            Ok(meets.collect::<Vec<bool>>().into())
        }))
    }
}

/// What a table should hold after these events, in order.
pub fn expected<'a>(def: &TableDef, events: impl Iterator<Item = Event<'a>>) -> Content {
    let mut content = Content::new();
    for event in events {
        match event {
            Event::Written(row) => {
                let kept = content.entry((row.tags.clone(), row.time)).or_default();
                match kept.first_mut() {
                    Some(values) if !def.options.append_only => values.extend(row.fields.clone()),
                    _ => kept.push(row.fields.clone()),
                }
            }
            Event::Deleted(condition) => content.retain(|(tags, time), kept| {
                kept.retain(|fields| !condition.meets(tags, *time, fields));
                !kept.is_empty()
            }),
        }
    }
    // Values of columns that were dropped are gone, also from rows of before.
    let has = |id: &ColumnId| def.schema.columns.iter().any(|column| column.id == *id);
    for rows in content.values_mut() {
        rows.iter_mut().for_each(|fields| fields.retain(|id, _| has(id)));
        rows.sort();
    }
    content
}

/// Leaves out what is expired at an edge: nobody promises that it is there, or that it is not.
pub fn unexpired(mut content: Content, edge: Option<i64>) -> Content {
    content.retain(|(_, time), _| edge.is_none_or(|edge| *time > edge));
    content
}

/// What a version holds, as a scan sees it.
pub fn content(version: &Version) -> Result<Content> {
    let mut content = Content::new();
    let scan = GroupScan {
        output: version.table.schema.arrow(),
        tags: TagFilter::all(),
        time: TimeRange::ALL,
        batch_rows: 7,
    };
    for group in groups(version, &TimeRange::ALL, &TagFilter::all()) {
        for batch in open(&group, &version.table, &scan)? {
            add(&version.table, &batch?, &mut content)?;
        }
    }
    content.values_mut().for_each(|rows| rows.sort());
    Ok(content)
}

fn add(def: &TableDef, batch: &RecordBatch, content: &mut Content) -> Result<()> {
    for (tags, time, fields) in read(def, batch)? {
        content.entry((tags, time)).or_default().push(fields);
    }
    Ok(())
}

/// Tags, time and fields of each row.
fn read(def: &TableDef, batch: &RecordBatch) -> Result<Vec<(Values, i64, Values)>> {
    let row = |row: usize| {
        let (mut tags, mut fields, mut time) = (Values::new(), Values::new(), 0);
        for column in &def.schema.columns {
            let Some(array) = batch.column_by_name(&column.name) else { continue };
            if array.is_null(row) {
                continue;
            }
            if column.kind == ColumnKind::Time {
                time = array.as_primitive::<TimestampNanosecondType>().value(row);
                continue;
            }
            let text = array_value_to_string(array, row)
                .map_err(|error| Error::internal(error.to_string()))?;
            let part = if column.kind == ColumnKind::Tag { &mut tags } else { &mut fields };
            part.insert(column.id, text);
        }
        Ok((tags, time, fields))
    };
    (0..batch.num_rows()).map(row).collect()
}
