//! Merging the segments of a table: how it is asked for, and what is told of each exchange of
//! segments, whoever began it.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::cancel::CancelToken;
use crate::ids::{TableId, TimeRange};
use crate::message::Message;
use crate::schema::TableName;
use crate::storage::compact::Reason;

/// Merges what can be merged of a table now, thoroughly: rows in memory are flushed before, and
/// windows need not be quiet. Answered once nothing is left to do. Query → compactor.
#[derive(Debug)]
pub struct Compact {
    /// The table.
    pub table: TableId,
    /// Windows without a row of these times are left alone.
    pub times: TimeRange,
    /// Hears of each merge once it is done. The next one waits for room here.
    pub reports: mpsc::Sender<Compaction>,
    /// Stops it; merges that are done stay done.
    pub cancel: CancelToken,
}

impl Message for Compact {
    type Reply = ();
}

/// How far an exchange of segments is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is under way.
    Running,
    /// Readers see what came out.
    Done,
    /// It changed nothing.
    Failed,
}

impl Stage {
    /// The stage as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Running => "running",
            Stage::Done => "done",
            Stage::Failed => "failed",
        }
    }
}

/// Segments that others take the place of. Rows count each time that they were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compaction {
    /// Its number since the start of the process.
    pub id: u64,
    /// How far it is.
    pub stage: Stage,
    /// Why it is done.
    pub reason: Reason,
    /// The table.
    pub table: TableName,
    /// The start of the time window, the first one of several.
    pub window: Option<i64>,
    /// How many times the rows of what comes out were merged.
    pub level: u8,
    /// Segments that go.
    pub inputs: u64,
    /// Segments that come.
    pub outputs: u64,
    /// Bytes of the segments that go.
    pub bytes_in: u64,
    /// Bytes of the segments that come.
    pub bytes_out: u64,
    /// Rows of the segments that go.
    pub rows_in: u64,
    /// Rows written, so far where it is under way.
    pub rows_out: u64,
    /// Rows that went because a later write had their tags and time.
    pub overwritten: u64,
    /// Rows that went because they were deleted or expired.
    pub removed: u64,
    /// Rows that were copied without being decoded.
    pub copied: u64,
    /// When it began, in nanoseconds since 1970.
    pub started_ns: i64,
    /// How long it took, so far where it is under way.
    pub took: Duration,
    /// Why it failed.
    pub error: Option<String>,
}
