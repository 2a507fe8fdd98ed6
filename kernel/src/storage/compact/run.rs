//! A merge: reads the inputs of a job side by side, and writes one segment within its memory.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};

use super::splice::{self, Step};
use super::{Job, room};
use crate::cancel::CancelToken;
use crate::error::Result;
use crate::ids::{ColumnId, TimeRange};
use crate::schema::ColumnKind;
use crate::storage::memtable::union;
use crate::storage::merge::{SortedSource, stream};
use crate::storage::meta::SegmentMeta;
use crate::storage::segment::write::{Target, check, clip};
use crate::storage::segment::{Encoding, Origin, SegmentReader, SegmentWriter};

/// What came of a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// The segment; `None` where no row stays.
    pub segment: Option<SegmentMeta>,
    /// Rows that were left out because they are to go, counted as a reader does.
    pub removed: u64,
    /// Rows that were copied without being decoded.
    pub copied: u64,
}

/// The job with as many of its first inputs as fit into its memory, at least two. Opens them,
/// which blocks.
///
/// # Errors
/// `corrupt` naming an input that does not verify, `io_error`.
pub fn narrow(mut job: Job) -> Result<Job> {
    let fitting = room::fan_in(&open(&job)?, memory(&job));
    job.inputs.truncate(fitting);
    Ok(job)
}

fn open(job: &Job) -> Result<Vec<SegmentReader>> {
    job.inputs.iter().map(|input| input.reader()).collect()
}

fn memory(job: &Job) -> usize {
    usize::try_from(job.memory_bytes).unwrap_or(usize::MAX)
}

/// Merges the inputs of a job into one segment within its memory. Row groups that no other input
/// reaches into are copied as they are. `progress` is called with the number of rows written so
/// far.
///
/// # Errors
/// `corrupt` naming an input that does not verify, `disk_full` or `io_error` naming a file,
/// `cancelled`.
pub fn run(
    job: &Job,
    target: &Target,
    cancel: &CancelToken,
    progress: &mut dyn FnMut(u64),
) -> Result<Merged> {
    let mut merge = Merge::begin(job, target, cancel)?;
    let steps = splice::steps(&merge.inputs, &|input, group| merge.writer.can_copy(input, group))?;
    if let [Step::Copy { input, .. }, _, ..] = steps.as_slice()
        && steps.iter().any(|step| matches!(step, Step::Merge(_)))
    {
        merge.writer.learn(&merge.inputs[*input])?;
    }
    for step in &steps {
        match step {
            Step::Merge(rows) => merge.merge(rows, &mut Ok, progress)?,
            Step::Copy { input, group } => merge.copy(*input, *group, progress)?,
        }
    }
    merge.finish()
}

/// Merges as [`run`] does, but writes of each batch only what `keep` leaves of it, and copies
/// nothing.
///
/// # Errors
/// As [`run`], and those of `keep`.
pub fn rewrite(
    job: &Job,
    target: &Target,
    cancel: &CancelToken,
    keep: &mut dyn FnMut(RecordBatch) -> Result<RecordBatch>,
    progress: &mut dyn FnMut(u64),
) -> Result<Merged> {
    let mut merge = Merge::begin(job, target, cancel)?;
    let all: Vec<Range<u64>> = merge.inputs.iter().map(|input| 0..input.meta().rows).collect();
    merge.merge(&all, keep, progress)?;
    merge.finish()
}

/// A merge under way.
struct Merge<'a> {
    job: &'a Job,
    cancel: &'a CancelToken,
    inputs: Vec<SegmentReader>,
    columns: SchemaRef,
    writer: SegmentWriter,
    batch_rows: usize,
    rows: u64,
    removed: u64,
    copied: u64,
}

impl<'a> Merge<'a> {
    fn begin(job: &'a Job, target: &Target, cancel: &'a CancelToken) -> Result<Merge<'a>> {
        check(cancel)?;
        let (inputs, columns) = (open(job)?, columns(job));
        let room = room::of(&inputs, memory(job));
        let (window, fields) = (job.window, columns.clone());
        let writer = SegmentWriter::create(target, &job.table, window, fields, Encoding::Thorough)?
            .with_group_bytes(room.group_bytes);
        let batch_rows = room.batch_rows;
        Ok(Merge {
            job,
            cancel,
            inputs,
            columns,
            writer,
            batch_rows,
            rows: 0,
            removed: 0,
            copied: 0,
        })
    }

    /// Merges some rows of each input.
    fn merge(
        &mut self,
        rows: &[Range<u64>],
        keep: &mut dyn FnMut(RecordBatch) -> Result<RecordBatch>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let wanted = self.inputs.iter().zip(rows).filter(|(_, rows)| !rows.is_empty());
        let mut sources: Vec<SortedSource> = Vec::with_capacity(rows.len());
        for (input, rows) in wanted {
            let rows = std::slice::from_ref(rows);
            sources.push(Box::new(input.read(&self.columns, rows, self.batch_rows)?));
        }
        let (table, columns) = (&self.job.table, self.columns.clone());
        let schema = Arc::new(table.schema.clone());
        let dedup = !table.options.append_only;
        for batch in stream(sources, schema, columns, dedup, self.batch_rows) {
            check(self.cancel)?;
            let batch = batch?;
            let before = batch.num_rows();
            let batch = keep(batch)?;
            self.removed += (before - batch.num_rows()) as u64;
            self.rows += batch.num_rows() as u64;
            self.writer.write(batch)?;
            progress(self.rows);
        }
        Ok(())
    }

    /// Copies a row group of an input.
    fn copy(&mut self, input: usize, group: usize, progress: &mut dyn FnMut(u64)) -> Result<()> {
        check(self.cancel)?;
        let input = &self.inputs[input];
        self.writer.copy(input, group)?;
        let rows = input.group_rows(group);
        self.rows += rows.end - rows.start;
        self.copied += rows.end - rows.start;
        progress(self.rows);
        Ok(())
    }

    fn finish(self) -> Result<Merged> {
        let segment = match self.rows {
            0 => None,
            _ => Some(self.writer.finish(origin(self.job))?),
        };
        Ok(Merged { segment, removed: self.removed, copied: self.copied })
    }
}

/// The columns that any input has, in the table's order; all tags, since rows are sorted by
/// them.
fn columns(job: &Job) -> SchemaRef {
    let held = job.inputs.iter().flat_map(|input| &input.meta().columns);
    let held: HashSet<ColumnId> = held.map(|stats| stats.column).collect();
    let has = |column: &crate::schema::Column| {
        column.kind != ColumnKind::Field || held.contains(&column.id)
    };
    let columns = job.table.schema.columns.iter().filter(|column| has(column));
    Arc::new(Schema::new(columns.map(|column| column.arrow()).collect::<Vec<_>>()))
}

fn origin(job: &Job) -> Origin {
    let metas = || job.inputs.iter().map(|input| input.meta());
    let time: Option<TimeRange> =
        metas().map(|meta| meta.time).reduce(|all, each| all.union(&each));
    let late = metas().fold(None, |late, meta| union(late, meta.late));
    // With nothing older in the window, there is nothing left to repeat.
    let late = if job.oldest { None } else { late };
    Origin {
        positions: (
            metas().map(|meta| meta.seq_range.0).min().unwrap_or_default(),
            metas().map(|meta| meta.seq_range.1).max().unwrap_or_default(),
        ),
        level: job.level(),
        late: late.zip(time).and_then(|(late, time)| clip(late, time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use crate::storage::compact::choice::tests::{rows, settings};
    use crate::storage::compact::pick;
    use crate::storage::model::Bench;

    #[test]
    fn a_cancelled_merge_publishes_nothing() {
        let mut bench = Bench::new(false);
        for at in 0..2 {
            bench.write(rows("x", at..at + 1).batch());
            bench.flush();
        }
        let job = pick(&bench.version(), &settings(2), 0).unwrap();
        let cancel = CancelToken::new();
        cancel.cancel();
        let files = bench.sim.disk.files().len();
        let error = run(&job, &bench.target, &cancel, &mut |_| {}).unwrap_err();
        assert_eq!(error.code(), Code::Cancelled);
        assert_eq!(bench.sim.disk.files().len(), files);
    }
}
