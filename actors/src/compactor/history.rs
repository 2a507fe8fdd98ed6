//! What exchanges of segments are under way and which have ended: a bounded memory that merges,
//! deletions and retention write to and `system.compactions` reads. It survives a restart of
//! those that write to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kymo_kernel::Error;
use kymo_kernel::env::Clock;
use kymo_kernel::message::{Compaction, Stage};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::compact::{Job, Reason};
use kymo_kernel::storage::meta::SegmentMeta;
use parking_lot::Mutex;

/// The memory. Shared by those who write to it.
pub struct History {
    clock: Arc<dyn Clock>,
    /// How many that have ended are kept.
    keep: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u64,
    running: BTreeMap<u64, Running>,
    ended: VecDeque<Compaction>,
}

struct Running {
    what: Compaction,
    since: Duration,
    rows: Arc<AtomicU64>,
}

/// One exchange under way. Dropped without an end it counts as failed.
pub struct Entry {
    history: Arc<History>,
    id: u64,
    rows: Arc<AtomicU64>,
    open: bool,
}

/// What came of an exchange.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Result {
    /// Segments that came.
    pub outputs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Their rows.
    pub rows: u64,
    /// Rows that were deleted or had expired; all others that went were overwritten.
    pub removed: u64,
    /// Rows that were copied without being decoded.
    pub copied: u64,
}

impl Result {
    /// The sum of some segments, without `removed` rows that were in those before.
    pub fn of(outputs: &[SegmentMeta], removed: u64) -> Result {
        Result {
            outputs: outputs.len() as u64,
            bytes: outputs.iter().map(|output| output.bytes).sum(),
            rows: outputs.iter().map(|output| output.rows).sum(),
            removed,
            copied: 0,
        }
    }
}

impl History {
    /// An empty memory of the last `keep` that ended.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, keep: usize) -> Arc<History> {
        Arc::new(History { clock, keep, inner: Mutex::default() })
    }

    /// Notes the beginning of a merge.
    pub fn merge(self: &Arc<Self>, job: &Job) -> Entry {
        let inputs = (job.inputs.len() as u64, job.bytes(), job.rows());
        self.begin(job.reason, &job.table.name, Some(job.window), job.level(), inputs)
    }

    /// Notes the beginning of an exchange of so many segments, bytes and rows.
    pub fn begin(
        self: &Arc<Self>,
        reason: Reason,
        table: &TableName,
        window: Option<i64>,
        level: u8,
        (inputs, bytes_in, rows_in): (u64, u64, u64),
    ) -> Entry {
        let (since, rows) = (self.clock.monotonic(), Arc::new(AtomicU64::new(0)));
        let mut inner = self.inner.lock();
        inner.last += 1;
        let what = Compaction {
            id: inner.last,
            stage: Stage::Running,
            reason,
            table: table.clone(),
            window,
            level,
            inputs,
            outputs: 0,
            bytes_in,
            bytes_out: 0,
            rows_in,
            rows_out: 0,
            overwritten: 0,
            removed: 0,
            copied: 0,
            started_ns: self.clock.now_ns(),
            took: Duration::ZERO,
            error: None,
        };
        let id = what.id;
        inner.running.insert(id, Running { what, since, rows: rows.clone() });
        metrics().store.compactions_running.inc();
        Entry { history: self.clone(), id, rows, open: true }
    }

    /// Those under way, then those that have ended, each in the order of their beginnings or
    /// ends.
    #[must_use]
    pub fn all(&self) -> Vec<Compaction> {
        let now = self.clock.monotonic();
        let inner = self.inner.lock();
        let running = inner.running.values().map(|running| Compaction {
            rows_out: running.rows.load(Ordering::Relaxed),
            took: now.saturating_sub(running.since),
            ..running.what.clone()
        });
        running.chain(inner.ended.iter().cloned()).collect()
    }

    fn end(&self, id: u64, outcome: std::result::Result<Result, String>) -> Option<Compaction> {
        let mut inner = self.inner.lock();
        let Running { mut what, since, .. } = inner.running.remove(&id)?;
        metrics().store.compactions_running.dec();
        what.took = self.clock.monotonic().saturating_sub(since);
        match outcome {
            Ok(Result { outputs, bytes, rows, removed, copied }) => {
                what.stage = Stage::Done;
                (what.outputs, what.bytes_out, what.rows_out) = (outputs, bytes, rows);
                (what.removed, what.copied) = (removed, copied);
                what.overwritten = what.rows_in.saturating_sub(rows + removed);
            }
            Err(error) => (what.stage, what.error) = (Stage::Failed, Some(error)),
        }
        while inner.ended.len() >= self.keep.max(1) {
            inner.ended.pop_front();
        }
        if self.keep > 0 {
            inner.ended.push_back(what.clone());
        }
        Some(what)
    }
}

impl Entry {
    /// Notes that fewer segments are merged than it seemed.
    pub fn narrow(&self, job: &Job) {
        if let Some(running) = self.history.inner.lock().running.get_mut(&self.id) {
            running.what.inputs = job.inputs.len() as u64;
            (running.what.bytes_in, running.what.rows_in) = (job.bytes(), job.rows());
        }
    }

    /// Where the rows written so far are counted.
    #[must_use]
    pub fn rows(&self) -> Arc<AtomicU64> {
        self.rows.clone()
    }

    /// Notes what came of it, and answers how it is remembered.
    pub fn done(mut self, result: Result) -> Option<Compaction> {
        self.open = false;
        self.history.end(self.id, Ok(result))
    }

    /// Notes why nothing came of it.
    pub fn failed(mut self, error: &Error) {
        self.open = false;
        self.history.end(self.id, Err(error.to_string()));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            self.history.end(self.id, Err("it was stopped".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::env::sim::Sim;

    use super::*;

    fn history(keep: usize) -> Arc<History> {
        History::new(Sim::new(1).env().clock, keep)
    }

    fn begin(history: &Arc<History>) -> Entry {
        let table = TableName::new("kymo", "t");
        history.begin(Reason::Size, &table, Some(0), 1, (2, 100, 10))
    }

    #[test]
    fn what_runs_is_shown_and_what_ended_is_kept_for_a_while() {
        let history = history(2);
        let first = begin(&history);
        first.rows().store(3, Ordering::Relaxed);
        let shown = history.all();
        assert_eq!((shown.len(), shown[0].stage, shown[0].rows_out), (1, Stage::Running, 3));
        let result = Result { outputs: 1, bytes: 40, rows: 6, removed: 1, copied: 2 };
        let done = first.done(result).unwrap();
        assert_eq!((done.stage, done.overwritten, done.bytes_out), (Stage::Done, 3, 40));
        begin(&history).failed(&Error::internal("broken"));
        drop(begin(&history));
        let shown = history.all();
        assert_eq!(shown.iter().map(|each| each.id).collect::<Vec<_>>(), [2, 3]);
        assert!(shown.iter().all(|each| each.stage == Stage::Failed));
        assert_eq!(shown[1].error.as_deref(), Some("it was stopped"));
    }

    #[test]
    fn without_room_nothing_that_ended_is_kept() {
        let history = history(0);
        drop(begin(&history));
        assert!(history.all().is_empty());
    }
}
