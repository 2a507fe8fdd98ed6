//! `system.compactions`: merges and other exchanges of segments, those under way and the last
//! ones that ended.

use kymo_kernel::message::{Compaction, SessionContext};

use super::{Cell, Inspector, Kind, SystemTable, number};

pub(super) static TABLE: SystemTable = SystemTable {
    name: "compactions",
    columns: &[
        ("id", Kind::Number),
        ("state", Kind::Text),
        ("reason", Kind::Text),
        ("database", Kind::Text),
        ("schema", Kind::Text),
        ("table", Kind::Text),
        ("window", Kind::Time),
        ("level", Kind::Number),
        ("inputs", Kind::Number),
        ("outputs", Kind::Number),
        ("bytes_in", Kind::Number),
        ("bytes_out", Kind::Number),
        ("rows_in", Kind::Number),
        ("rows_out", Kind::Number),
        ("rows_overwritten", Kind::Number),
        ("rows_removed", Kind::Number),
        ("rows_copied", Kind::Number),
        ("started", Kind::Time),
        ("ms", Kind::Number),
        ("error", Kind::Text),
    ],
    rows,
};

fn rows(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let row = |each: Compaction| {
        vec![
            number(each.id),
            Cell::Text(each.stage.as_str().to_owned()),
            Cell::Text(each.reason.as_str().to_owned()),
            Cell::Text(each.table.database),
            Cell::Text(each.table.schema),
            Cell::Text(each.table.table),
            each.window.map_or(Cell::Null, Cell::Time),
            number(u64::from(each.level)),
            number(each.inputs),
            number(each.outputs),
            number(each.bytes_in),
            number(each.bytes_out),
            number(each.rows_in),
            number(each.rows_out),
            number(each.overwritten),
            number(each.removed),
            number(each.copied),
            Cell::Time(each.started_ns),
            number(u64::try_from(each.took.as_millis()).unwrap_or(u64::MAX)),
            each.error.map_or(Cell::Null, Cell::Text),
        ]
    };
    inspector.inspect.compactions().into_iter().map(row).collect()
}
