//! `system.alert_files`: what became of the alert rules that files have.

use kymo_kernel::message::SessionContext;

use super::{Cell, Inspector, Kind, SystemTable, number};

/// The name of the table.
pub(in super::super) const ALERT_FILES: &str = "alert_files";

/// A rule of a file, or a file that is refused as a whole.
#[derive(Debug, Clone, Default)]
pub struct AlertFileRow {
    /// The name of the file within the folder.
    pub file: String,
    /// The line where it begins, or where the file cannot be read, from 1.
    pub line: Option<u64>,
    /// The group.
    pub group: Option<String>,
    /// The rule.
    pub rule: Option<String>,
    /// `loaded`; `refused`; `previous` where it is refused and what was there before goes on.
    pub status: String,
    /// Why it is refused.
    pub error: Option<String>,
    /// The way out.
    pub hint: Option<String>,
}

pub(super) static TABLE: SystemTable = SystemTable {
    name: ALERT_FILES,
    columns: &[
        ("file", Kind::Text),
        ("line", Kind::Number),
        ("group", Kind::Text),
        ("rule", Kind::Text),
        ("status", Kind::Text),
        ("error", Kind::Text),
        ("hint", Kind::Text),
    ],
    rows,
};

fn rows(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let text = |text: Option<String>| text.map_or(Cell::Null, Cell::Text);
    let row = |each: AlertFileRow| {
        vec![
            Cell::Text(each.file),
            each.line.map_or(Cell::Null, number),
            text(each.group),
            text(each.rule),
            Cell::Text(each.status),
            text(each.error),
            text(each.hint),
        ]
    };
    inspector.inspect.alert_files().into_iter().map(row).collect()
}
