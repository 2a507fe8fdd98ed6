//! What is kept of alerts: each transition as a row of `system.alert_history`, and what every
//! alert is now as a row of `system.alert_states`, from which a start goes on.
//!
//! Both are tables of the default database, stored like any other, that only Kymo fills. The
//! second has one row for each label set that ever had an alert: its rows have one time, so that
//! each replaces the one before. History goes when it grows too large; states do not depend on it.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, DictionaryArray, Float64Array, Int64Array, RecordBatch,
    StringArray, TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Float64Type, Int32Type, Int64Type, Schema, TimestampNanosecondType,
};
use kymo_kernel::ids::{ColumnId, TimeRange};
use kymo_kernel::message::OwnRows;
use kymo_kernel::schema::{
    Column, ColumnKind, DEFAULT_DATABASE, FieldType, SYSTEM_SCHEMA, TIME, TableBatch, TableName,
    TableOptions, TableSchema, marked_field,
};
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::overlap;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Error, Result};

use super::labels::Values;
use super::machine::{Active, State};
use super::sets::Set;

/// The name of the table of transitions.
pub const HISTORY: &str = "alert_history";
/// The name of the table of states.
const STATES: &str = "alert_states";
/// The time of every row of the table of states.
const NO_TIME: i64 = 0;
/// Rows that are read at a time.
const BATCH_ROWS: usize = 8192;

type Columns = &'static [(&'static str, ColumnKind, FieldType)];

const HISTORY_COLUMNS: Columns = &[
    ("rule", ColumnKind::Tag, FieldType::Text),
    ("fingerprint", ColumnKind::Tag, FieldType::Text),
    ("labels", ColumnKind::Field, FieldType::Text),
    ("from", ColumnKind::Field, FieldType::Text),
    ("to", ColumnKind::Field, FieldType::Text),
    ("value", ColumnKind::Field, FieldType::Float64),
    ("since", ColumnKind::Field, FieldType::Timestamp),
    ("sequence", ColumnKind::Field, FieldType::Int64),
    ("silenced", ColumnKind::Field, FieldType::Bool),
    ("at", ColumnKind::Time, FieldType::Timestamp),
];

const STATE_COLUMNS: Columns = &[
    ("rule", ColumnKind::Tag, FieldType::Text),
    ("key", ColumnKind::Tag, FieldType::Text),
    ("values", ColumnKind::Field, FieldType::Text),
    ("state", ColumnKind::Field, FieldType::Text),
    ("since", ColumnKind::Field, FieldType::Timestamp),
    ("fired", ColumnKind::Field, FieldType::Timestamp),
    ("ended", ColumnKind::Field, FieldType::Timestamp),
    ("row_time", ColumnKind::Field, FieldType::Timestamp),
    ("value", ColumnKind::Field, FieldType::Float64),
    ("sequence", ColumnKind::Field, FieldType::Int64),
    ("acked", ColumnKind::Field, FieldType::Text),
    ("told", ColumnKind::Field, FieldType::Bool),
    (TIME, ColumnKind::Time, FieldType::Timestamp),
];

fn name_of(table: &str) -> TableName {
    TableName {
        database: DEFAULT_DATABASE.to_owned(),
        schema: SYSTEM_SCHEMA.to_owned(),
        table: table.to_owned(),
    }
}

/// The table of transitions.
#[must_use]
pub fn history() -> TableName {
    name_of(HISTORY)
}

/// The table of states.
#[must_use]
pub fn states() -> TableName {
    name_of(STATES)
}

/// The columns of the table of transitions.
#[must_use]
pub fn schema() -> TableSchema {
    schema_of(HISTORY_COLUMNS)
}

fn schema_of(columns: Columns) -> TableSchema {
    let column = |(name, kind, field_type): &(&str, ColumnKind, FieldType)| Column {
        id: ColumnId::default(),
        name: (*name).to_owned(),
        kind: *kind,
        field_type: *field_type,
    };
    TableSchema { version: 0, columns: columns.iter().map(column).collect() }
}

/// A transition as it is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The number of the alert among all.
    pub fingerprint: u64,
    /// Its labels as JSON.
    pub labels: String,
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
    /// The value that decided.
    pub value: Option<f64>,
    /// Since when its condition holds or held.
    pub since_ns: i64,
    /// Whether a silence covers it.
    pub silenced: bool,
    /// The instant of the evaluation.
    pub at_ns: i64,
}

/// What becomes durable at once: a label set as it is now, with the transition that led there
/// where there was one.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The rule.
    pub rule: Arc<str>,
    /// The number of the label set within it.
    pub key: u64,
    /// The label set.
    pub set: Set,
    /// The transition.
    pub kept: Option<Kept>,
}

/// The rows of entries, for both tables; those of transitions are absent where there are none.
///
/// # Errors
/// `internal` only.
pub fn rows(entries: &[Entry]) -> Result<(OwnRows, Option<OwnRows>)> {
    // The newest entry of a label set is the one that counts.
    let mut seen = hashbrown::HashSet::new();
    let mut newest: Vec<&Entry> =
        entries.iter().rev().filter(|entry| seen.insert((&entry.rule, entry.key))).collect();
    newest.reverse();
    let states = own(states(), STATE_COLUMNS, false, state_columns(&newest)?)?;
    let told: Vec<(&Entry, &Kept)> =
        entries.iter().filter_map(|entry| Some((entry, entry.kept.as_ref()?))).collect();
    if told.is_empty() {
        return Ok((states, None));
    }
    let transitions = own(history(), HISTORY_COLUMNS, true, history_columns(&told))?;
    Ok((states, Some(transitions)))
}

fn own(
    table: TableName,
    columns: Columns,
    append_only: bool,
    arrays: Vec<ArrayRef>,
) -> Result<OwnRows> {
    let fields: Vec<_> =
        columns.iter().map(|(name, kind, of)| marked_field(name, *kind, *of)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(defect)?;
    Ok(OwnRows {
        rows: TableBatch { table, batch, lines: Vec::new() },
        schema: schema_of(columns),
        options: TableOptions { append_only, ..TableOptions::default() },
    })
}

fn tags<'a>(texts: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(texts.map(Some).collect::<DictionaryArray<Int32Type>>())
}

fn texts<'a>(texts: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(texts))
}

fn times(times: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from_iter(times).with_timezone("+00:00"))
}

fn numbers(numbers: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(
        numbers.map(|each| i64::try_from(each).unwrap_or(i64::MAX)),
    ))
}

fn truths(truths: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(BooleanArray::from_iter(truths.map(Some)))
}

/// A number of a label set as text.
#[must_use]
pub fn hex(number: u64) -> String {
    format!("{number:016x}")
}

fn history_columns(told: &[(&Entry, &Kept)]) -> Vec<ArrayRef> {
    let kept = || told.iter().map(|(_, kept)| *kept);
    let fingerprints: Vec<String> = kept().map(|kept| hex(kept.fingerprint)).collect();
    vec![
        tags(told.iter().map(|(entry, _)| &*entry.rule)),
        tags(fingerprints.iter().map(String::as_str)),
        texts(kept().map(|kept| kept.labels.as_str())),
        texts(kept().map(|kept| kept.from.as_str())),
        texts(kept().map(|kept| kept.to.as_str())),
        Arc::new(Float64Array::from_iter(kept().map(|kept| kept.value))),
        times(kept().map(|kept| Some(kept.since_ns))),
        numbers(told.iter().map(|(entry, _)| entry.set.sequence)),
        truths(kept().map(|kept| kept.silenced)),
        times(kept().map(|kept| Some(kept.at_ns))),
    ]
}

fn state_columns(entries: &[&Entry]) -> Result<Vec<ArrayRef>> {
    let sets = || entries.iter().map(|entry| &entry.set);
    let keys: Vec<String> = entries.iter().map(|entry| hex(entry.key)).collect();
    let values = sets().map(|set| serde_json::to_string(&set.values));
    let values: Vec<String> = values
        .collect::<Result<_, _>>()
        .map_err(|error| Error::internal(format!("labels as JSON: {error}")))?;
    let active =
        |pick: fn(&Active) -> i64| times(sets().map(move |set| set.active.as_ref().map(pick)));
    let fired = |set: &Set| {
        set.active.map(|active| active.fired_ns).or(set.resolved.map(|(_, fired)| fired))
    };
    let ended = |set: &Set| {
        set.active.and_then(|active| active.ceased_ns).or(set.resolved.map(|(at, _)| at))
    };
    Ok(vec![
        tags(entries.iter().map(|entry| &*entry.rule)),
        tags(keys.iter().map(String::as_str)),
        texts(values.iter().map(String::as_str)),
        texts(sets().map(|set| set.state().as_str())),
        active(|active| active.since_ns),
        times(sets().map(fired)),
        times(sets().map(ended)),
        times(sets().map(|set| Some(set.time_ns))),
        Arc::new(Float64Array::from_iter(sets().map(|set| set.value))),
        numbers(sets().map(|set| set.sequence)),
        Arc::new(StringArray::from_iter(sets().map(|set| set.acked.as_deref()))),
        truths(sets().map(|set| set.told)),
        times(sets().map(|_| Some(NO_TIME))),
    ])
}

/// A label set as it was before a restart.
pub struct Restored {
    /// The name of the rule.
    pub rule: String,
    /// The number of the label set within it.
    pub key: u64,
    /// The label set.
    pub set: Set,
}

/// Every state that is kept. Blocks on the disk.
///
/// # Errors
/// Those of reading; `internal` for rows that nobody of us wrote.
pub fn read(version: &Version) -> Result<Vec<Restored>> {
    let (all, everything) = (TimeRange::ALL, TagFilter::all());
    let output = version.table.schema.arrow();
    let scan = GroupScan { output, tags: everything.clone(), time: all, batch_rows: BATCH_ROWS };
    let mut found = Vec::new();
    for group in overlap::groups(version, &all, &everything) {
        for batch in merge::open(&group, &version.table, &scan)? {
            let read = Reader(&batch?).all()?;
            found.extend(read);
        }
    }
    Ok(found)
}

/// Rows of the table of states.
struct Reader<'a>(&'a RecordBatch);

impl Reader<'_> {
    fn column(&self, name: &str, data_type: &DataType) -> Result<ArrayRef> {
        let column = self.0.column_by_name(name);
        let column = column.ok_or_else(|| Error::internal(format!("{STATES} has no {name}")))?;
        cast(column, data_type).map_err(defect)
    }

    fn all(&self) -> Result<Vec<Restored>> {
        let texts =
            |name| Ok::<_, Error>(self.column(name, &DataType::Utf8)?.as_string::<i32>().clone());
        let time = |name| {
            let column = self.column(name, &kymo_kernel::schema::time_type())?;
            Ok::<_, Error>(column.as_primitive::<TimestampNanosecondType>().clone())
        };
        let truth =
            |name| Ok::<_, Error>(self.column(name, &DataType::Boolean)?.as_boolean().clone());
        let (rules, keys, values) = (texts("rule")?, texts("key")?, texts("values")?);
        let (states, since, fired) = (texts("state")?, time("since")?, time("fired")?);
        let (ended, row_times) = (time("ended")?, time("row_time")?);
        let (acked, told) = (texts("acked")?, truth("told")?);
        let value = self.column("value", &DataType::Float64)?;
        let value = value.as_primitive::<Float64Type>();
        let sequences = self.column("sequence", &DataType::Int64)?;
        let sequences = sequences.as_primitive::<Int64Type>();
        let at =
            |times: &TimestampNanosecondArray, row| times.is_valid(row).then(|| times.value(row));
        let mut found = Vec::with_capacity(self.0.num_rows());
        for row in 0..self.0.num_rows() {
            let bad = |what: &str| Error::internal(format!("{STATES}: {what} of row {row}"));
            let values: Values =
                serde_json::from_str(values.value(row)).map_err(|_| bad("values"))?;
            let state = State::from_word(states.value(row)).ok_or_else(|| bad("state"))?;
            let key = u64::from_str_radix(keys.value(row), 16).map_err(|_| bad("key"))?;
            let fired_ns = at(&fired, row);
            let mut set = Set::new(values);
            set.time_ns = at(&row_times, row).unwrap_or(i64::MIN);
            set.value = value.is_valid(row).then(|| value.value(row));
            set.sequence = u64::try_from(sequences.value(row)).unwrap_or_default();
            set.acked = acked.is_valid(row).then(|| acked.value(row).into());
            set.told = told.value(row);
            match state {
                State::Pending | State::Firing => {
                    set.holds = true;
                    let since_ns = at(&since, row).ok_or_else(|| bad("since"))?;
                    set.active = Some(Active {
                        firing: state == State::Firing,
                        since_ns,
                        fired_ns: fired_ns.unwrap_or(since_ns),
                        ceased_ns: at(&ended, row),
                    });
                }
                State::Resolved => set.resolved = at(&ended, row).zip(fired_ns),
                State::Inactive => {}
            }
            found.push(Restored { rule: rules.value(row).to_owned(), key, set });
        }
        Ok(found)
    }
}

fn defect(error: arrow::error::ArrowError) -> Error {
    Error::internal(format!("rows of alerts: {error}"))
}
