//! Notifications that a channel or a watcher has not had, read from `system.alert_history`: after
//! a crash, and where more waited than a queue holds.
//!
//! History has what happened; which channels a rule has and what its annotations say is taken
//! from the rule as it is now. A rule that is gone has neither: no channel is sent what is left
//! of it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType};
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::{AlertStatus, Labels, Notification};
use kymo_kernel::schema::time_type;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::overlap;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::{Error, Result};

use super::cursor::Cursor;
use crate::alert::{history, template};

/// Rows that are read at a time.
const BATCH_ROWS: usize = 8192;
/// How far the instant of a transition may lie before that of one with a smaller number: longer
/// than any evaluation takes.
pub const DISORDER_NS: i64 = 600 * 1_000_000_000;

/// Which notifications.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// Those that a channel is sent.
    Channel(&'a str),
    /// All, silenced ones included.
    All,
}

/// What comes after a cursor: the first `most` in their order, and whether there are more.
/// Blocks on the disk.
///
/// # Errors
/// Those of reading.
pub fn read(
    store: &Store,
    wanted: Wanted<'_>,
    after: Cursor,
    most: usize,
) -> Result<(Vec<Notification>, bool)> {
    let catalog = store.catalog();
    let table = catalog.table(&history::history()).map(|table| table.def.id);
    let Some(version) = table.and_then(|table| store.table(table)).map(|cell| cell.load()) else {
        return Ok((Vec::new(), false));
    };
    let time = TimeRange { first: after.from_ns, last: i64::MAX };
    let (tags, output) = (TagFilter::all(), version.table.schema.arrow());
    let scan = GroupScan { output, tags: tags.clone(), time, batch_rows: BATCH_ROWS };
    let mut found = Vec::new();
    for group in overlap::groups(&version, &time, &tags) {
        for batch in merge::open(&group, &version.table, &scan)? {
            Rows::of(&batch?)?.take(after.sequence, wanted, &catalog, &mut found);
            // Rows lie by rule and time: the smallest numbers are known at the end only.
            if found.len() > 2 * most.max(1) {
                cut(&mut found, most + 1);
            }
        }
    }
    cut(&mut found, most + 1);
    let more = found.len() > most;
    found.truncate(most);
    Ok((found, more))
}

fn cut(found: &mut Vec<Notification>, most: usize) {
    found.sort_unstable_by_key(|told| told.sequence);
    found.truncate(most);
}

/// The columns of some rows of the history.
struct Rows {
    rules: ArrayRef,
    fingerprints: ArrayRef,
    labels: ArrayRef,
    to: ArrayRef,
    values: ArrayRef,
    since: ArrayRef,
    sequences: ArrayRef,
    silenced: ArrayRef,
    at: ArrayRef,
}

impl Rows {
    fn of(batch: &RecordBatch) -> Result<Rows> {
        let column = |name: &str, of: &DataType| {
            let column = batch.column_by_name(name);
            let missing = || Error::internal(format!("the history of alerts has no {name}"));
            cast(column.ok_or_else(missing)?, of)
                .map_err(|error| Error::internal(format!("the history of alerts: {error}")))
        };
        let text = |name| column(name, &DataType::Utf8);
        Ok(Rows {
            rules: text("rule")?,
            fingerprints: text("fingerprint")?,
            labels: text("labels")?,
            to: text("to")?,
            values: column("value", &DataType::Float64)?,
            since: column("since", &time_type())?,
            sequences: column("sequence", &DataType::Int64)?,
            silenced: column("silenced", &DataType::Boolean)?,
            at: column("at", &time_type())?,
        })
    }

    fn take(
        &self,
        after: u64,
        wanted: Wanted<'_>,
        catalog: &Snapshot,
        found: &mut Vec<Notification>,
    ) {
        let sequences = self.sequences.as_primitive::<Int64Type>();
        for row in 0..sequences.len() {
            let sequence = u64::try_from(sequences.value(row)).unwrap_or_default();
            if sequence <= after {
                continue;
            }
            let told = self.told(row, sequence, catalog);
            found.extend(told.filter(|told| match wanted {
                Wanted::All => true,
                Wanted::Channel(name) => {
                    !told.silenced && told.channels.iter().any(|each| each == name)
                }
            }));
        }
    }

    /// What a row says; nothing where no alert began or ended.
    fn told(&self, row: usize, sequence: u64, catalog: &Snapshot) -> Option<Notification> {
        let text = |column: &ArrayRef| column.as_string::<i32>().value(row).to_owned();
        let time = |column: &ArrayRef| column.as_primitive::<TimestampNanosecondType>().value(row);
        let at = time(&self.at);
        let (status, starts_at_ns, ends_at_ns) = match self.to.as_string::<i32>().value(row) {
            "firing" => (AlertStatus::Firing, at, None),
            "resolved" => (AlertStatus::Resolved, time(&self.since), Some(at)),
            _ => return None,
        };
        let labels: Labels = serde_json::from_str(&text(&self.labels)).ok()?;
        let values = self.values.as_primitive::<Float64Type>();
        let value = values.is_valid(row).then(|| values.value(row));
        let name = text(&self.rules);
        let rule = catalog.alerts.get(&name);
        let filled = |(name, text): (&String, &String)| {
            (name.clone(), template::render(text, &labels, value))
        };
        let annotations = rule.into_iter().flat_map(|rule| &rule.annotations).map(filled).collect();
        Some(Notification {
            sequence,
            rule: name,
            fingerprint: u64::from_str_radix(&text(&self.fingerprints), 16).ok()?,
            annotations,
            labels,
            status,
            value,
            starts_at_ns,
            ends_at_ns,
            channels: rule.map_or_else(Arc::default, |rule| Arc::from(rule.channels.as_slice())),
            silenced: self.silenced.as_boolean().value(row),
            acked: false,
            repeated: true,
        })
    }
}
