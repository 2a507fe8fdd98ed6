//! What is known of the continuous queries that run: figures for people, and the way to them.
//!
//! Shared by the queries' tasks, which report here, by `system.continuous_queries`, and by
//! statements that ask a query for something.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::continuous::{Advance, ContinuousDef, Mark};
use kymo_kernel::ids::{TableId, TimeRange};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::query::ContinuousRow;

/// Reports of a backfill on their way to who asked for it. Who does not take them lets the
/// backfill wait.
const REPORTS: usize = 1;

/// All continuous queries of a process.
#[derive(Default)]
pub struct Registry {
    entries: Mutex<BTreeMap<Uuid, Arc<Entry>>>,
    changed: Notify,
}

/// What is known of one query since the process started.
pub(super) struct Entry {
    pub(super) id: Uuid,
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    figures: Figures,
    reached: Option<Reached>,
    backfill: Option<Backfill>,
    running: bool,
    /// Whether the target has stood for everything once since the task began.
    caught_up: bool,
}

/// What a query has done.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub(super) class: &'static str,
    pub(super) evaluations: u64,
    pub(super) windows: u64,
    pub(super) rows: u64,
    pub(super) removed: u64,
    pub(super) late: u64,
    pub(super) failures: u64,
    pub(super) last_error: Option<String>,
    /// Since when, on the monotonic clock, there is something that its target does not show.
    pub(super) behind_since: Option<Duration>,
    /// Windows done and wanted of the backfill under way, or of the last one.
    pub(super) backfill: Option<(u64, u64)>,
}

/// Up to where a target stands for its sources.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reached {
    pub(super) marks: BTreeMap<TableId, Mark>,
    pub(super) gone: u64,
}

/// A wish to compute windows again.
pub(super) struct Backfill {
    /// The instants whose windows are meant.
    pub(super) times: TimeRange,
    /// Who is told; gone where nobody wants it any more.
    pub(super) reports: mpsc::Sender<Result<Progress>>,
}

/// How far a backfill has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Windows that are done, those without rows included.
    pub windows: u64,
    /// Windows that are wanted.
    pub of: u64,
    /// Rows that were written.
    pub rows: u64,
    /// The end of the last window that is done, in nanoseconds since 1970.
    pub upto: i64,
}

impl Registry {
    /// Says that definitions have changed.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.changed.notified().await;
    }

    /// Asks a query to compute the windows with these instants again.
    ///
    /// # Errors
    /// `unsupported` where it does not run, `busy` while it does an earlier backfill.
    pub fn backfill(
        &self,
        query: &ContinuousDef,
        times: TimeRange,
    ) -> Result<mpsc::Receiver<Result<Progress>>> {
        let entry = self.entries.lock().get(&query.id).cloned();
        let name = &query.name.name;
        let Some(entry) = entry.filter(|entry| entry.state.lock().running) else {
            return Err(Error::new(
                Code::Unsupported,
                format!("continuous query {name:?} does not run ({})", query.state()),
            )
            .with_hint(format!("ALTER CONTINUOUS QUERY {name} RESUME")));
        };
        let mut state = entry.state.lock();
        if state.backfill.as_ref().is_some_and(|earlier| !earlier.reports.is_closed()) {
            return Err(Error::new(
                Code::Busy,
                format!("continuous query {name:?} has a backfill under way"),
            )
            .with_hint("wait for it; system.continuous_queries shows how far it is"));
        }
        let (reports, received) = mpsc::channel(REPORTS);
        state.backfill = Some(Backfill { times, reports });
        drop(state);
        entry.wanted.notify_one();
        Ok(received)
    }

    /// The figures of all queries at a time of the monotonic clock.
    #[must_use]
    pub fn rows(&self, now: Duration) -> Vec<ContinuousRow> {
        let entries: Vec<Arc<Entry>> = self.entries.lock().values().cloned().collect();
        entries.iter().map(|entry| entry.row(now)).collect()
    }

    /// The entry of a query; a new one where there is none.
    pub(super) fn entry(&self, id: Uuid) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        let made = || Arc::new(Entry { id, state: Mutex::default(), wanted: Notify::new() });
        entries.entry(id).or_insert_with(made).clone()
    }

    /// Forgets the queries that are not among these.
    pub(super) fn keep(&self, known: impl Fn(Uuid) -> bool) {
        self.entries.lock().retain(|id, _| known(*id));
    }

    /// The cursors that have moved since the last call.
    pub(super) fn moved(&self) -> Vec<Advance> {
        let entries: Vec<Arc<Entry>> = self.entries.lock().values().cloned().collect();
        let moved = entries.iter().filter_map(|entry| {
            let Reached { marks, gone } = entry.state.lock().reached.take()?;
            Some(Advance { id: entry.id, marks, gone })
        });
        moved.collect()
    }

    /// Puts back cursors that could not be kept, where there is nothing newer.
    pub(super) fn put_back(&self, advances: Vec<Advance>) {
        for Advance { id, marks, gone } in advances {
            if let Some(entry) = self.entries.lock().get(&id) {
                entry.state.lock().reached.get_or_insert(Reached { marks, gone });
            }
        }
    }
}

impl Entry {
    /// Changes what is shown of the query.
    pub(super) fn note(&self, change: impl FnOnce(&mut Figures)) {
        change(&mut self.state.lock().figures);
    }

    /// The target stands for everything up to here, durably.
    pub(super) fn reached(&self, reached: Reached) {
        let mut state = self.state.lock();
        state.reached = Some(reached);
        state.caught_up = true;
    }

    /// Whether it takes wishes; those of before are dropped where it begins or ends.
    pub(super) fn running(&self, running: bool) {
        let mut state = self.state.lock();
        state.running = running;
        state.caught_up = false;
        state.backfill = None;
    }

    /// The wish, once there is one.
    pub(super) async fn wish(&self) -> Backfill {
        loop {
            let wish = self
                .state
                .lock()
                .backfill
                .as_ref()
                .map(|wish| Backfill { times: wish.times, reports: wish.reports.clone() });
            if let Some(wish) = wish.filter(|wish| !wish.reports.is_closed()) {
                return wish;
            }
            self.wanted.notified().await;
        }
    }

    /// The wish is fulfilled, or nobody wants it any more.
    pub(super) fn fulfilled(&self) {
        self.state.lock().backfill = None;
    }

    /// Whether the target has stood for everything once since the task began.
    pub(super) fn caught_up(&self) -> bool {
        self.state.lock().caught_up
    }

    /// How many evaluations there were.
    pub(super) fn evaluations(&self) -> u64 {
        self.state.lock().figures.evaluations
    }

    /// Notes a failure.
    pub(super) fn failed(&self, error: &Error) {
        self.note(|figures| {
            figures.failures += 1;
            figures.last_error = Some(format!("{}: {error}", error.code()));
        });
    }

    /// How far the target is behind, at a time of the monotonic clock.
    pub(super) fn lag(&self, now: Duration) -> Duration {
        let since = self.state.lock().figures.behind_since;
        since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    fn row(&self, now: Duration) -> ContinuousRow {
        let lag = self.lag(now);
        let Figures {
            class,
            evaluations,
            windows,
            rows,
            removed,
            late,
            failures,
            last_error,
            backfill,
            ..
        } = self.state.lock().figures.clone();
        ContinuousRow {
            id: self.id,
            class: class.to_owned(),
            lag_ms: u64::try_from(lag.as_millis()).unwrap_or(u64::MAX),
            evaluations,
            windows,
            rows,
            removed,
            late,
            failures,
            last_error,
            backfill,
        }
    }
}
