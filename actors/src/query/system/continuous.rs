//! `system.continuous_queries`: definitions and cursors from the metadata, figures from the
//! tasks that run.

use std::collections::HashMap;
use std::sync::Arc;

use kymo_kernel::continuous::ContinuousDef;
use kymo_kernel::message::SessionContext;
use kymo_kernel::storage::meta::Snapshot;
use uuid::Uuid;

use super::{Cell, HIDDEN, Inspector, Kind, SystemTable, number, sees};

/// What a continuous query has done since the process started.
#[derive(Debug, Clone, Default)]
pub struct ContinuousRow {
    /// The query.
    pub id: Uuid,
    /// How it is evaluated.
    pub class: String,
    /// Age of the oldest commit that its target does not show yet, in milliseconds.
    pub lag_ms: u64,
    /// Evaluations.
    pub evaluations: u64,
    /// Windows of which anything was written.
    pub windows: u64,
    /// Rows written.
    pub rows: u64,
    /// Rows removed.
    pub removed: u64,
    /// Rows that came too late to change their window.
    pub late: u64,
    /// Failures.
    pub failures: u64,
    /// The last of them.
    pub last_error: Option<String>,
    /// Windows done and wanted of the backfill under way, or of the last one.
    pub backfill: Option<(u64, u64)>,
}

pub(super) static TABLES: &[SystemTable] = &[SystemTable {
    name: "continuous_queries",
    columns: &[
        ("name", Kind::Text),
        ("database", Kind::Text),
        ("query", Kind::Text),
        ("target", Kind::Text),
        ("class", Kind::Text),
        ("every", Kind::Text),
        ("allowed_lateness", Kind::Text),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("cursor", Kind::Text),
        ("lag_ms", Kind::Number),
        ("evaluations", Kind::Number),
        ("windows_written", Kind::Number),
        ("rows_written", Kind::Number),
        ("rows_removed", Kind::Number),
        ("late_rows_dropped", Kind::Number),
        ("failures", Kind::Number),
        ("last_error", Kind::Text),
        ("backfill_done", Kind::Number),
        ("backfill_total", Kind::Number),
        ("created", Kind::Time),
    ],
    rows: continuous_queries,
}];

fn continuous_queries(inspector: &Inspector, session: &SessionContext) -> Vec<Vec<Cell>> {
    let snapshot = inspector.tables.catalog();
    let figures: HashMap<Uuid, ContinuousRow> =
        inspector.inspect.continuous().into_iter().map(|row| (row.id, row)).collect();
    let row = |query: &Arc<ContinuousDef>| {
        let known = figures.get(&query.id).cloned().unwrap_or_default();
        let running = query.paused.is_none();
        let text = if sees(session, &query.user) { query.text.clone() } else { HIDDEN.to_owned() };
        let optional = |text: Option<String>| text.map_or(Cell::Null, Cell::Text);
        let (done, total) = known.backfill.unzip();
        let count = |value: Option<u64>| value.map_or(Cell::Null, number);
        vec![
            Cell::Text(query.name.name.clone()),
            Cell::Text(query.name.database.clone()),
            Cell::Text(text),
            Cell::Text(query.target.to_string()),
            optional((!known.class.is_empty()).then_some(known.class)),
            optional(query.every_ns.map(length)),
            optional(query.lateness_ns.map(length)),
            Cell::Text(query.state().to_owned()),
            optional(query.paused.as_ref().map(|pause| pause.reason.clone())),
            Cell::Text(cursor(&snapshot, query)),
            if running { number(known.lag_ms) } else { Cell::Null },
            number(known.evaluations),
            number(known.windows),
            number(known.rows),
            number(known.removed),
            number(known.late),
            number(known.failures),
            optional(known.last_error),
            count(done),
            count(total),
            Cell::Time(query.created_ns),
        ]
    };
    snapshot.continuous.values().map(row).collect()
}

/// `cpu 0-1-42, mem 0-1-40`: how far the target stands for each table, as kept.
fn cursor(snapshot: &Snapshot, query: &ContinuousDef) -> String {
    let Some(cursor) = snapshot.cursors.get(&query.id) else { return String::new() };
    let place = |(id, mark): (&kymo_kernel::ids::TableId, &kymo_kernel::continuous::Mark)| {
        let table = snapshot.table_by_id(*id)?;
        Some(format!("{} {}", table.def.name.table, mark.position))
    };
    cursor.marks.iter().filter_map(place).collect::<Vec<_>>().join(", ")
}

/// A length of time as people write it.
pub(in super::super) fn length(nanos: i64) -> String {
    const UNITS: [(i64, &str); 7] = [
        (86_400_000_000_000, "d"),
        (3_600_000_000_000, "h"),
        (60_000_000_000, "m"),
        (1_000_000_000, "s"),
        (1_000_000, "ms"),
        (1_000, "us"),
        (1, "ns"),
    ];
    let (mut left, mut text) = (nanos, String::new());
    for (worth, unit) in UNITS {
        if left >= worth {
            text.push_str(&format!("{}{unit}", left / worth));
            left %= worth;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_read_as_they_are_written() {
        for (text, nanos) in
            [("10s", 10_000_000_000), ("1h30m", 5_400_000_000_000), ("7d", 604_800_000_000_000)]
        {
            assert_eq!(length(nanos), text);
            assert_eq!(
                crate::query::duration::Span::parse(text).unwrap().fixed_nanos(),
                Some(nanos)
            );
        }
        assert_eq!(length(1_000_500_003), "1s500us3ns");
        assert_eq!(length(0), "0s");
    }
}
