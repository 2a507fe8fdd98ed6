//! Merges small segments of a time window into one that is larger and better encoded.
//!
//! [`pick`] is pure: it looks at a version and names a job. Segments that follow one another
//! in the log's order are merged when enough of about one size have gathered, so each row is
//! rewritten a bounded number of times. A window that nothing was written to for a while is
//! merged into as few segments as the target size allows, and thoroughly encoded even where
//! there is but one; [`requested`] does the same for whoever does not want to wait. [`run`] does
//! a job. Only neighbours are ever merged: a row's newer versions are in later segments, and
//! that must stay so.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::ids::SegmentId;
use crate::schema::TableDef;
use crate::storage::version::SegmentRef;

mod choice;
#[cfg(test)]
mod copied;
mod room;
mod run;
mod splice;

pub(super) use choice::settled;
pub use choice::{Wish, is_crowded, pick, pick_within, requested};
pub use run::{Merged, narrow, rewrite, run};

/// Why segments are written again, or go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Enough of about one size had gathered.
    Size,
    /// Their window had been quiet for a while.
    Quiet,
    /// Their window has more small segments than it should.
    Pressure,
    /// Somebody asked for it.
    Requested,
    /// Rows of them were deleted.
    Deleted,
    /// All of their rows had expired.
    Retention,
    /// They are old, and went to the second place as they are.
    Cold,
}

impl Reason {
    /// The reason as one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Size => "size",
            Reason::Quiet => "quiet",
            Reason::Pressure => "pressure",
            Reason::Requested => "requested",
            Reason::Deleted => "deleted",
            Reason::Retention => "retention",
            Reason::Cold => "cold",
        }
    }
}

/// Segments to merge.
#[derive(Debug, Clone)]
pub struct Job {
    /// The table.
    pub table: Arc<TableDef>,
    /// Why.
    pub reason: Reason,
    /// The start of the time window.
    pub window: i64,
    /// What to merge, oldest first; they hold the rows until the merge is done.
    pub inputs: Vec<Arc<SegmentRef>>,
    /// Whether the window holds nothing older than the inputs.
    pub oldest: bool,
    /// What the merge may hold in memory.
    pub memory_bytes: u64,
}

impl Job {
    /// The names of the inputs, as the metadata edit wants them.
    #[must_use]
    pub fn input_ids(&self) -> Vec<SegmentId> {
        self.inputs.iter().map(|input| input.meta().id).collect()
    }

    /// The size of the inputs.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inputs.iter().map(|input| input.meta().bytes).sum()
    }

    /// The rows of the inputs, counting each time that a row was written.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.inputs.iter().map(|input| input.meta().rows).sum()
    }

    /// How many times the rows of what comes out were merged.
    #[must_use]
    pub fn level(&self) -> u8 {
        let levels = self.inputs.iter().map(|input| input.meta().level);
        levels.max().unwrap_or_default().saturating_add(1)
    }

    /// What job should go first: one under pressure, and then that with the most files per byte
    /// rewritten, because that is what scans gain most from.
    #[must_use]
    pub fn compare_use(&self, other: &Job) -> Ordering {
        let gain = |job: &Job| job.inputs.len() as f64 / job.bytes().max(1) as f64;
        let pressing = |job: &Job| job.reason == Reason::Pressure;
        pressing(self).cmp(&pressing(other)).then(gain(self).total_cmp(&gain(other)))
    }
}
