//! Letting expired rows go: whole segments first, the rest when it is merged anyway.
//!
//! A row is expired where its time is not after an edge, which moves with the clock. Readers cut
//! at the edge themselves, so it does not matter to them how much of what lies behind it is
//! still stored; and because rows that repeat each other have one time, they expire together.

use arrow::array::{BooleanArray, RecordBatch};
use arrow::buffer::BooleanBuffer;

use crate::cancel::CancelToken;
use crate::check;
use crate::error::Result;
use crate::ids::SegmentId;
use crate::schema::TableSchema;
use crate::storage::compact::{self, Job, Merged};
use crate::storage::delete::kept;
use crate::storage::late::times;
use crate::storage::segment::Target;
use crate::storage::version::Version;

/// What of a table is expired as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expired {
    /// The segments.
    pub segments: Vec<SegmentId>,
    /// Their rows, counting each time that a row was written.
    pub rows: u64,
    /// Their size.
    pub bytes: u64,
}

/// The segments of a version without a row after `edge`.
#[must_use]
pub fn whole(version: &Version, edge: i64) -> Expired {
    let mut expired = Expired::default();
    for segment in version.segments.iter() {
        let meta = segment.meta();
        if meta.time.last <= edge {
            expired.segments.push(meta.id);
            expired.rows += meta.rows;
            expired.bytes += meta.bytes;
        }
    }
    expired
}

/// Whether a merge meets expired rows.
#[must_use]
pub fn concerns(job: &Job, edge: i64) -> bool {
    job.inputs.iter().any(|input| input.meta().time.first <= edge)
}

/// Merges as [`compact::rewrite`] does, without the expired rows.
///
/// # Errors
/// As [`compact::run`].
pub fn merge(
    job: &Job,
    edge: i64,
    target: &Target,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(u64),
) -> Result<Merged> {
    let schema = &job.table.schema;
    compact::rewrite(job, target, cancel, &mut |batch| after(schema, batch, edge), progress)
}

fn after(schema: &TableSchema, batch: RecordBatch, edge: i64) -> Result<RecordBatch> {
    let all = times(schema, &batch)?;
    let stays = BooleanBuffer::collect_bool(all.len(), |row| all[row] > edge);
    let unexpired = all.iter().filter(|time| **time > edge).count();
    let kept = kept(batch, &BooleanArray::new(stays, None))?;
    check!(R1, kept.num_rows() == unexpired, "{} of {unexpired} rows stay", kept.num_rows());
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::model::{Bench, Row, Rows, scan};

    fn write(bench: &mut Bench, times: std::ops::Range<i64>) {
        let row = |time| Row {
            a: Some("x".into()),
            b: None,
            time,
            float: None,
            int: Some(time),
            text: None,
        };
        bench.write(Rows { rows: times.map(row).collect(), columns: 0xff }.batch());
        bench.flush();
    }

    #[test]
    fn whole_segments_go_and_a_merge_cuts_at_the_edge() {
        let mut bench = Bench::new(false);
        write(&mut bench, 0..3);
        write(&mut bench, 3..7);
        assert_eq!(whole(&bench.version(), 1), Expired::default());
        assert_eq!(whole(&bench.version(), 2).rows, 3);
        let settings = kymo_config::settings::Compaction { min_segments: 2, ..Default::default() };
        let job = compact::pick(&bench.version(), &settings, i64::MAX).unwrap();
        assert!(concerns(&job, 0) && !concerns(&job, -1));
        let cancel = CancelToken::new();
        let merged = merge(&job, 4, &bench.target, &cancel, &mut |_| {}).unwrap();
        let (merged, gone) = (merged.segment.unwrap(), merged.removed);
        assert_eq!((merged.rows, merged.time.first, gone), (2, 5, 5));
        bench.state.replaced(&job.input_ids(), [Arc::new(merged)]).unwrap();
        let left: Vec<i64> = scan(&bench.version(), 8).iter().map(|row| row.time).collect();
        assert_eq!(left, [5, 6]);
        let files = bench.sim.disk.files().len();
        write(&mut bench, 7..8);
        let job = compact::pick(&bench.version(), &settings, i64::MAX).unwrap();
        let nothing = merge(&job, 7, &bench.target, &cancel, &mut |_| {}).unwrap();
        assert_eq!((nothing.segment, nothing.removed), (None, 3));
        assert_eq!(bench.sim.disk.files().len(), files + 1);
    }
}
