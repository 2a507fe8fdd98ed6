//! What a query hears of its tables: commits, what it missed of them, deletions, and changes that
//! somebody else makes to its target.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use kymo_kernel::ids::{Position, TableId, TimeRange};
use kymo_kernel::message::{Committed, WindowSpec};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::conform::Conform;
use kymo_kernel::storage::late::times;
use kymo_kernel::storage::missed::{Missed, read_elsewhere};
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Error, Result};

use super::Runner;

impl Runner {
    /// Somebody else may have changed the target: what is remembered of it is void.
    pub(super) fn foreign(&mut self, rows: &Committed) -> Result<()> {
        if let Some(times) = rows.deleted {
            self.written.forget(times);
            return Ok(());
        }
        let own = self.own.iter().position(|position| *position == rows.position);
        if let Some(own) = own {
            self.own.drain(..=own);
            return Ok(());
        }
        let changed = times(&rows.table.schema, &rows.batch)?;
        for time in changed.iter().copied().collect::<HashSet<i64>>() {
            self.written.forget(TimeRange { first: time, last: time });
        }
        Ok(())
    }

    /// Applies a commit of a source, without rows that come too late.
    pub(super) fn commit(&mut self, rows: &Committed) -> Result<()> {
        let mark = self.marks.entry(rows.table.id).or_default();
        if rows.position <= mark.position || rows.batch.num_rows() == 0 {
            return Ok(());
        }
        let instants = times(&rows.table.schema, &rows.batch)?;
        let edge = edge(self.spec, mark.newest, self.def.lateness_ns);
        let late = instants.iter().filter(|time| **time < edge).count();
        let newest = instants.iter().copied().max();
        mark.position = rows.position;
        mark.newest = mark.newest.max(newest);
        if late == 0 {
            self.apply(rows);
            return Ok(());
        }
        self.entry.note(|figures| figures.late += late as u64);
        metrics().continuous.late_rows.with_label_values(&[&self.label]).inc_by(late as u64);
        if late == instants.len() {
            return Ok(());
        }
        let keep: BooleanArray = instants.iter().map(|time| Some(*time >= edge)).collect();
        let batch = filter_record_batch(&rows.batch, &keep)
            .map_err(|error| Error::internal(format!("leave out late rows: {error}")))?;
        self.apply(&Committed { batch, ..rows.clone() });
        Ok(())
    }

    pub(super) fn apply(&mut self, rows: &Committed) {
        if let Err(error) = self.query.apply(rows) {
            // What it concerns is dirty, so that taking it says what is wrong.
            tracing::debug!(%error, query = %self.def.name, "a commit could not be evaluated");
        }
    }

    /// Brings the query to where a table is: from the log, or by marking the times of
    /// everything that is newer than the mark.
    pub(super) async fn catch_up(&mut self, table: &Arc<TableDef>) -> Result<()> {
        let version = self.version(table)?;
        let known = self.marks.get(&table.id).copied();
        let from = known.unwrap_or_default().position;
        if known.is_some() && version.watermark <= from {
            return Ok(());
        }
        let missed = match known {
            // Nothing of the table was ever looked at.
            None => None,
            Some(_) => self.missed(table.id, from, version.watermark).await?,
        };
        match missed {
            Some(missed) => {
                let definition = Conform::new(&table.schema);
                for (position, record) in missed {
                    let (batch, at) = (definition.batch(record.decode()?)?, self.now());
                    // What a row replaced is not in the log.
                    let late = !table.options.append_only;
                    let table = table.clone();
                    self.commit(&Committed { table, position, batch, deleted: None, late, at })?;
                }
            }
            None => self.newer_parts(&version, from),
        }
        let mark = self.marks.entry(table.id).or_default();
        mark.position = mark.position.max(version.watermark);
        mark.newest = mark.newest.max(version.time().map(|time| time.last));
        Ok(())
    }

    /// Marks the times of all parts of a version that hold anything newer than a position.
    /// Which of their rows came too late cannot be told: all of them count.
    pub(super) fn newer_parts(&mut self, version: &Version, from: Position) {
        let segments = version.segments.iter().map(|segment| segment.meta());
        let segments = segments.filter(|meta| meta.seq_range.1 > from).map(|meta| meta.time);
        let frozen = version.frozen.iter().map(|frozen| frozen.span);
        let spans = frozen.chain(version.hot.span()).filter(|span| span.last > from);
        let times: Vec<TimeRange> = segments.chain(spans.map(|span| span.time)).collect();
        times.into_iter().for_each(|times| self.query.invalidate(times));
    }

    pub(super) async fn missed(
        &mut self,
        table: TableId,
        after: Position,
        upto: Position,
    ) -> Result<Option<Missed>> {
        let (store, most) = (self.context.store.clone(), self.context.catch_up_bytes);
        let read = move || store.missed(table, after, upto, most);
        match self.context.pools.foreground("read missed rows", read).await? {
            Err(error) if read_elsewhere(&error) => {
                tracing::warn!(%error, query = %self.def.name, "missed rows cannot be read from the log");
                Ok(None)
            }
            other => other,
        }
    }

    /// Marks the windows of rows that were deleted since the last look. Deletions are in the
    /// metadata before they are in the versions that are read, so they wait for these.
    pub(super) fn deletions(&mut self) -> Result<()> {
        let catalog = self.context.store.catalog();
        let Some(cursor) = catalog.cursors.get(&self.def.id) else { return Ok(()) };
        if cursor.last_gone <= self.gone {
            return Ok(());
        }
        for table in self.query.tables() {
            let known = catalog.table_by_id(table.id).map_or(0, |meta| meta.deletions);
            if self.version(table)?.deletions < known {
                return Ok(());
            }
        }
        let new = cursor.gone.iter().filter(|(number, _)| **number > self.gone);
        let new: Vec<TimeRange> = new.map(|(_, times)| *times).collect();
        self.gone = cursor.last_gone;
        new.into_iter().for_each(|times| self.query.invalidate(times));
        Ok(())
    }
}

/// Rows before it come too late: all windows that they fall into have ended longer ago than the
/// allowed lateness.
fn edge(spec: WindowSpec, newest: Option<i64>, lateness: Option<i64>) -> i64 {
    match (newest, lateness) {
        (Some(newest), Some(lateness)) => {
            let ended = newest.saturating_sub(lateness).checked_sub(spec.width);
            ended.map_or(i64::MIN, |ended| spec.next(spec.start(ended)))
        }
        _ => i64::MIN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_late_once_its_window_ended_longer_ago_than_allowed() {
        let spec = WindowSpec { column: 0, width: 60, hop: 60, origin: 0 };
        assert_eq!(edge(spec, None, Some(60)), i64::MIN);
        assert_eq!(edge(spec, Some(1000), None), i64::MIN);
        // At 239 with a lateness of 60 the window [120, 180) has ended 59 ago.
        assert_eq!(edge(spec, Some(239), Some(60)), 120);
        assert_eq!(edge(spec, Some(240), Some(60)), 180);
        assert_eq!(edge(spec, Some(i64::MIN), Some(i64::MAX)), i64::MIN);
        // The last window of a row is the one that counts: those of 149 begin at 100 and 140.
        let hops = WindowSpec { hop: 20, ..spec };
        assert_eq!(edge(hops, Some(259), Some(60)), 140);
        assert_eq!(edge(hops, Some(260), Some(60)), 160);
    }
}
