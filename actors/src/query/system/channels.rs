//! `system.alert_channels`: where alerts go, and how that goes. Addresses are shown without
//! account, path and parameters, which may be secrets, and like errors to administrators alone.

use kymo_kernel::message::SessionContext;

use super::super::allow::HIDDEN;
use super::{Cell, Inspector, Kind, SystemTable, number};

/// A row of `system.alert_channels`.
#[derive(Debug, Clone, Default)]
pub struct ChannelRow {
    /// Its name.
    pub channel: String,
    /// `webhook`, `alertmanager` or `log`.
    pub kind: String,
    /// Where requests go, without what may be a secret.
    pub url: Option<String>,
    /// Whether requests are signed.
    pub signed: bool,
    /// `built in`, `settings` or `sql`.
    pub defined_in: String,
    /// `starting`, `idle`, `sending` or `retrying`.
    pub state: String,
    /// Notifications that wait.
    pub queued: u64,
    /// Notifications that were taken since the start.
    pub sent: u64,
    /// Notifications that were not and will not be.
    pub failed: u64,
    /// Attempts that failed and were or will be followed by another one.
    pub retried: u64,
    /// When one was taken last, in nanoseconds since 1970.
    pub last_sent: Option<i64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<i64>,
}

pub(super) static TABLE: SystemTable = SystemTable {
    name: "alert_channels",
    columns: &[
        ("channel", Kind::Text),
        ("type", Kind::Text),
        ("url", Kind::Text),
        ("signed", Kind::Truth),
        ("defined_in", Kind::Text),
        ("state", Kind::Text),
        ("queued", Kind::Number),
        ("sent", Kind::Number),
        ("failed", Kind::Number),
        ("retried", Kind::Number),
        ("last_sent", Kind::Time),
        ("last_error", Kind::Text),
        ("last_error_at", Kind::Time),
    ],
    rows,
};

fn rows(inspector: &Inspector, session: &SessionContext) -> Vec<Vec<Cell>> {
    let time = |at: Option<i64>| at.map_or(Cell::Null, Cell::Time);
    // Receivers and what they answer are their operators' business.
    let text = |text: Option<String>| match text {
        Some(_) if !session.admin => Cell::Text(HIDDEN.to_owned()),
        Some(text) => Cell::Text(text),
        None => Cell::Null,
    };
    let row = |row: ChannelRow| {
        vec![
            Cell::Text(row.channel),
            Cell::Text(row.kind),
            text(row.url),
            Cell::Truth(row.signed),
            Cell::Text(row.defined_in),
            Cell::Text(row.state),
            number(row.queued),
            number(row.sent),
            number(row.failed),
            number(row.retried),
            time(row.last_sent),
            text(row.last_error),
            time(row.last_error_at),
        ]
    };
    inspector.inspect.alert_channels().into_iter().map(row).collect()
}
