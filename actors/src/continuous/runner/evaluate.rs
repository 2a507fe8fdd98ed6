//! What a query does to its target: windows are taken piece by piece, compared with what is there,
//! and the difference is removed and written.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Clock;
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::{Delete, Doomed, Write};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::TableBatch;
use kymo_kernel::storage::delete::keys;
use kymo_kernel::storage::late::times;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::{Code, Error, Result};

use super::super::Context;
use super::super::written::{Change, read};
use super::Runner;

/// Rows of one write.
const WRITE_ROWS: usize = 16_384;
/// How many of its own writes a query tells apart from those of others.
const OWN_WRITES: usize = 4096;
/// The first and the longest pause before something that was turned away is tried again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Nanoseconds before its end at which a row is not written to a target any more.
const EXPIRES_SOON: i64 = 60_000_000_000;

impl Runner {
    /// Takes a range of windows piece by piece. Where the range goes beyond all rows, the rest
    /// is one piece on either side.
    pub(super) async fn pass(&mut self, starts: TimeRange) -> Result<()> {
        let (first, last) = (starts.first, starts.last);
        let Some(rows) = self.extent() else { return self.piece(starts).await.map(|_| ()) };
        let inside = TimeRange { first: first.max(rows.first), last: last.min(rows.last) };
        if inside.first > inside.last {
            return self.piece(starts).await.map(|_| ());
        }
        if first < inside.first {
            self.piece(TimeRange { first, last: inside.first - 1 }).await?;
        }
        let mut next = inside.first;
        while next <= inside.last {
            let end = self.end_of(next, inside.last);
            if self.smaller(TimeRange { first: next, last: end }).await?.is_none() {
                continue;
            }
            self.feed_is_idle().await?;
            let Some(after) = end.checked_add(1) else { return Ok(()) };
            next = after;
        }
        if inside.last < last {
            self.piece(TimeRange { first: inside.last + 1, last }).await?;
        }
        Ok(())
    }

    /// Where the rows of sources and target lie, as starts of windows.
    pub(super) fn extent(&self) -> Option<TimeRange> {
        let target = self.version(&self.target.def).ok().and_then(|version| version.time());
        let target = target.map(|times| self.spec.starts(times));
        match (self.query.extent(), target) {
            (Some(one), Some(other)) => Some(one.union(&other)),
            (one, other) => one.or(other),
        }
    }

    /// The last instant of the piece that begins with a window.
    pub(super) fn end_of(&self, first: i64, last: i64) -> i64 {
        let whole = self.step.saturating_mul(self.spec.hop);
        self.spec.start(first).saturating_add(whole).saturating_sub(1).min(last)
    }

    /// A piece, or `None` where it has to be taken in smaller ones.
    pub(super) async fn smaller(&mut self, starts: TimeRange) -> Result<Option<Wrote>> {
        match self.piece(starts).await {
            Ok(wrote) => {
                if wrote.taken < self.context.piece_rows / 2 {
                    self.step = self.step.saturating_mul(2).min(i64::MAX / self.spec.hop);
                } else if wrote.taken > self.context.piece_rows {
                    self.step = (self.step / 2).max(1);
                }
                Ok(Some(wrote))
            }
            Err(error) if too_much(&error) && self.step > 1 => {
                self.step /= 2;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Brings the target's rows of some windows to what the result has now.
    pub(super) async fn piece(&mut self, starts: TimeRange) -> Result<Wrote> {
        let edge = self.first_unexpired();
        if starts.first < edge {
            // They are dirty no more; what is left of them is not what they were made from.
            let last = starts.last.min(edge - 1);
            self.take(TimeRange { first: starts.first, last }).await?;
        }
        let starts = TimeRange { first: starts.first.max(edge), last: starts.last };
        if starts.first > starts.last {
            return Ok(Wrote::default());
        }
        let taken = self.take(starts).await?;
        let rows = taken.iter().map(|batch| self.target.rows(batch)).collect::<Result<Vec<_>>>()?;
        let version = self.version(&self.target.def)?;
        let present = if self.written.must_read(starts, &version) {
            let (output, time) = (self.target.schema.clone(), starts);
            let read = move || read(&version, &output, time);
            self.context.pools.foreground("read target", read).await??
        } else {
            Vec::new()
        };
        let count = |all: &[RecordBatch]| all.iter().map(RecordBatch::num_rows).sum::<usize>();
        let taken = count(&rows).max(count(&present));
        let Change { gone, rows, windows } = self.written.change(starts, &present, &rows)?;
        if let Some(gone) = gone {
            self.remove(gone).await?;
        }
        let written = rows.as_ref().map_or(0, RecordBatch::num_rows) as u64;
        if let Some(rows) = rows {
            self.write(rows).await?;
        }
        self.entry.note(|figures| {
            figures.evaluations += 1;
            figures.windows += windows;
            figures.rows += written;
        });
        let of = &metrics().continuous;
        of.evaluations.with_label_values(&[&self.label]).inc();
        of.windows.with_label_values(&[&self.label]).inc_by(windows);
        of.rows.with_label_values(&[&self.label]).inc_by(written);
        Ok(Wrote { taken, rows: written })
    }

    /// The first window that the retention of no source has touched, and that its target still
    /// takes. Those before it stay as they are: the rows that they were made from are gone.
    pub(super) fn first_unexpired(&self) -> i64 {
        let (catalog, now) = (self.context.store.catalog(), self.context.clock.now_ns());
        let retentions =
            self.query.tables().iter().filter_map(|def| catalog.retention_ns(&def.name));
        let sources = retentions.map(|retention| expired_upto(retention, now)).max();
        // What is about to expire in the target may be refused by the time it is written.
        let soon = now.saturating_add(EXPIRES_SOON);
        let target = catalog.retention_ns(&self.target.def.name);
        let edge = sources.max(target.map(|retention| expired_upto(retention, soon)));
        edge.map_or(i64::MIN, |edge| self.spec.next(self.spec.start(edge)))
    }

    /// The rows of some windows. Others come first: where there is no room it waits.
    pub(super) async fn take(&mut self, starts: TimeRange) -> Result<Vec<RecordBatch>> {
        let mut pause = Pause::new(&self.context);
        loop {
            match self.query.take(starts).await {
                Err(error) if error.code() == Code::Busy => pause.wait(&error).await,
                taken => return taken.map(|taken| taken.rows),
            }
        }
    }

    /// Takes rows out of the target, by their tags and time.
    pub(super) async fn remove(&mut self, rows: RecordBatch) -> Result<()> {
        let def = self.target.def.clone();
        let count = rows.num_rows() as u64;
        let all = times(&def.schema, &rows)?.iter().copied();
        let (Some(first), Some(last)) = (all.clone().min(), all.max()) else { return Ok(()) };
        let doomed = keys(&def.schema, &rows)?;
        let mut pause = Pause::new(&self.context);
        loop {
            let delete = Delete {
                table: def.id,
                times: TimeRange { first, last },
                rows: Doomed::Where(doomed.clone()),
                count: false,
                cancel: CancelToken::new(),
            };
            match self.context.delete.call(delete).await {
                Ok(_) => break,
                Err(error) if error.code() == Code::Busy => pause.wait(&error).await,
                Err(error) => return Err(error.context(format_args!("remove from {}", def.name))),
            }
        }
        self.entry.note(|figures| figures.removed += count);
        metrics().continuous.removed.with_label_values(&[&self.label]).inc_by(count);
        Ok(())
    }

    /// Writes rows like anybody's, a part at a time.
    pub(super) async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        let mut from = 0;
        while from < rows.num_rows() {
            let count = WRITE_ROWS.min(rows.num_rows() - from);
            self.write_part(rows.slice(from, count)).await?;
            from += count;
        }
        Ok(())
    }

    pub(super) async fn write_part(&mut self, batch: RecordBatch) -> Result<()> {
        let mut pause = Pause::new(&self.context);
        loop {
            let rows = TableBatch {
                table: self.target.def.name.clone(),
                batch: batch.clone(),
                lines: Vec::new(),
            };
            let write =
                Write { batches: vec![rows], durability: None, create: false, partial: false };
            match self.context.write.call(write).await {
                Ok(acked) => {
                    if self.own.len() >= OWN_WRITES {
                        self.own.pop_front();
                    }
                    self.own.extend(acked.position);
                    return Ok(());
                }
                Err(error) if error.code() == Code::Busy => pause.wait(&error).await,
                Err(error) => {
                    let target = &self.target.def.name;
                    return Err(error.context(format_args!("write to {target}")));
                }
            }
        }
    }
}

/// What became of a piece.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wrote {
    /// Rows of the result or of the target, whichever are more.
    pub(super) taken: usize,
    /// Rows that were written.
    pub(super) rows: u64,
}

/// Pauses between attempts, longer each time.
struct Pause {
    clock: Arc<dyn Clock>,
    next: Duration,
}

impl Pause {
    fn new(context: &Context) -> Pause {
        Pause { clock: context.clock.clone(), next: PAUSE.0 }
    }

    async fn wait(&mut self, error: &Error) {
        tracing::debug!(%error, pause = ?self.next, "a continuous query waits for its turn");
        self.clock.sleep(self.next).await;
        self.next = (self.next * 2).min(PAUSE.1);
    }
}

fn too_much(error: &Error) -> bool {
    matches!(error.code(), Code::LimitReached | Code::OutOfMemory)
}
