//! Rows of a table as they are stored, evaluated for a group of rules: after a start, for a new
//! rule, where the feed lost commits, and for backtests. Blocks on the disk.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use hashbrown::HashMap;
use kymo_kernel::ids::TimeRange;
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::overlap;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Error, Result};

use super::facts::Facts;
use super::groups::{Evaluated, Group};
use super::labels::Values;
use super::sets::Row;

/// Rows that are read and evaluated at a time.
const BATCH_ROWS: usize = 8192;

/// Evaluates the rows of a version within `range`, and maybe others, for the rules of a group
/// that `wanted` chooses; `take` is given what came of it, and ends it by an error.
///
/// # Errors
/// Those of reading and of evaluating a rule, and those of `take`.
pub fn each(
    version: &Version,
    group: &Group,
    wanted: impl Fn(u32) -> bool,
    range: TimeRange,
    mut take: impl FnMut(Vec<Evaluated>, Vec<(u32, Error)>) -> Result<()>,
) -> Result<()> {
    let Some(names) = group.shape().columns() else { return Ok(()) };
    let names: Vec<&str> = names.collect();
    let table = &version.table;
    let columns = table.schema.columns.iter();
    let columns = columns.filter(|column| names.contains(&column.name.as_str()));
    let fields: Vec<Field> = columns.map(|column| column.arrow()).collect();
    let output = Arc::new(Schema::new(fields));
    let tags = tags(version, group, wanted);
    let scan = GroupScan { output, tags: tags.clone(), time: range, batch_rows: BATCH_ROWS };
    for overlapping in overlap::groups(version, &range, &tags) {
        for batch in merge::open(&overlapping, table, &scan)? {
            let (evaluated, failed) = group.run(&batch?)?;
            take(evaluated, failed)?;
        }
    }
    Ok(())
}

/// The series that concern the rules of a group.
fn tags(version: &Version, group: &Group, wanted: impl Fn(u32) -> bool) -> TagFilter {
    let all = TagFilter::all();
    let Some(values) = group.routed(wanted) else { return all };
    let place = version
        .table
        .schema
        .tags()
        .position(|tag| Some(tag.name.as_str()) == group.shape().route());
    match place {
        Some(place) => all.and(place, values.into_iter().map(Some)),
        None => all,
    }
}

/// The newest row of each label set of each rule.
pub type Newest = HashMap<(u32, u64), (Row, Values)>;

fn keep(newest: &mut Newest, rule: u32, at: usize, facts: &Facts) {
    let row = facts.row(at, i64::MIN);
    match newest.get_mut(&(rule, row.key)) {
        Some((known, _)) if known.time_ns > row.time_ns => {}
        Some((known, _)) => *known = row,
        None => {
            newest.insert((rule, row.key), (row, facts.values(at)));
        }
    }
}

/// The newest rows of a version since a time, and the first failure of each rule that failed.
///
/// # Errors
/// Those of reading.
pub fn newest(
    version: &Version,
    group: &Group,
    wanted: impl Fn(u32) -> bool + Copy,
    since_ns: i64,
) -> Result<(Newest, HashMap<u32, Error>)> {
    let mut newest = Newest::new();
    let mut failures = HashMap::new();
    let range = TimeRange { first: since_ns, last: i64::MAX };
    each(version, group, wanted, range, |evaluated, failed| {
        for (rule, error) in failed {
            failures.entry(rule).or_insert(error);
        }
        for Evaluated { facts, rules } in evaluated {
            for (at, rule) in rules.into_iter().enumerate().filter(|(_, rule)| wanted(*rule)) {
                keep(&mut newest, rule, at, &facts);
            }
        }
        Ok(())
    })?;
    Ok((newest, failures))
}
