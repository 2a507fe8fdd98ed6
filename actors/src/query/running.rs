//! Which queries run, and who may start the next: admission, cancellation and time limits.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Clock;
use kymo_kernel::message::SessionContext;
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::shortage::Shortage;

/// What stops a query: its caller or its deadline.
#[derive(Clone)]
pub(super) struct Limits {
    /// Set by the caller.
    pub(super) cancel: CancelToken,
    /// On the clock's monotonic time; `None` for no limit.
    pub(super) deadline: Option<Duration>,
    pub(super) clock: Arc<dyn Clock>,
}

impl Limits {
    /// Completes when the query must stop, with the reason.
    pub(super) async fn reached(&self) -> Error {
        let deadline = async {
            match self.deadline {
                Some(at) => self.clock.sleep(at.saturating_sub(self.clock.monotonic())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => cancelled(),
            () = deadline => too_late(),
        }
    }

    /// Runs a future unless the query must stop first.
    pub(super) async fn race<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            error = self.reached() => Err(error),
            outcome = future => outcome,
        }
    }
}

/// The error of a query that its caller stopped.
pub(crate) fn cancelled() -> Error {
    Error::new(Code::Cancelled, "canceling statement due to user request")
}

fn too_late() -> Error {
    Error::new(Code::Deadline, "canceling statement due to statement timeout")
        .with_hint("narrow the query, or raise statement_timeout or query.timeout_ms")
}

/// How far a query has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Running,
}

struct Entry {
    session: Arc<SessionContext>,
    sql: Arc<str>,
    started_ns: i64,
    started: Duration,
    state: State,
    rows: Arc<AtomicU64>,
}

/// A query as `system.queries` shows it.
pub(super) struct Shown {
    pub(super) id: u64,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) state: &'static str,
    pub(super) started_ns: i64,
    pub(super) elapsed: Duration,
    pub(super) rows: u64,
    pub(super) sql: Arc<str>,
}

/// All queries under way.
pub(super) struct Running {
    clock: Arc<dyn Clock>,
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Entry>>,
    slots: Arc<Semaphore>,
    memory: Shortage,
    waiting: AtomicUsize,
    max_running: usize,
    max_waiting: usize,
}

impl Running {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        max_running: usize,
        max_waiting: usize,
        memory: Shortage,
    ) -> Self {
        let max_running = max_running.max(1);
        Running {
            clock,
            next: AtomicU64::new(1),
            entries: Mutex::default(),
            slots: Arc::new(Semaphore::new(max_running)),
            memory,
            waiting: AtomicUsize::new(0),
            max_running,
            max_waiting,
        }
    }

    /// Everything under way, oldest first.
    pub(super) fn all(&self) -> Vec<Shown> {
        let now = self.clock.monotonic();
        let entries = self.entries.lock();
        let shown = entries.iter().map(|(id, entry)| Shown {
            id: *id,
            user: entry.session.user.clone(),
            database: entry.session.database.clone(),
            state: match entry.state {
                State::Waiting => "waiting",
                State::Running => "running",
            },
            started_ns: entry.started_ns,
            elapsed: now.saturating_sub(entry.started),
            rows: entry.rows.load(Ordering::Relaxed),
            sql: entry.sql.clone(),
        });
        shown.collect()
    }

    /// Waits for a place to run in.
    ///
    /// # Errors
    /// `busy` when too many wait already; `cancelled` and `deadline_exceeded` while waiting;
    /// `out_of_memory` where memory is short for too long.
    pub(super) async fn admit(
        self: &Arc<Self>,
        session: &Arc<SessionContext>,
        sql: &Arc<str>,
        limits: &Limits,
    ) -> Result<Ticket> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let rows = Arc::new(AtomicU64::new(0));
        let entry = Entry {
            session: session.clone(),
            sql: sql.clone(),
            started_ns: self.clock.now_ns(),
            started: self.clock.monotonic(),
            state: State::Waiting,
            rows: rows.clone(),
        };
        self.entries.lock().insert(id, entry);
        let started = self.clock.monotonic();
        let ended = Mutex::new(Code::Cancelled.as_str());
        let mut ticket =
            Ticket { running: self.clone(), id, rows, started, ended, slot: None, _alone: None };
        let slot = match self.slots.clone().try_acquire_owned() {
            _ if limits.cancel.is_cancelled() => Err(cancelled()),
            Ok(slot) => Ok(slot),
            Err(_) => self.wait(limits).await,
        };
        let slot = slot.inspect_err(|error| ticket.end(Some(error)))?;
        let alone = self.memory.pass(limits).await;
        ticket._alone = alone.inspect_err(|error| ticket.end(Some(error)))?;
        ticket.slot = Some(slot);
        let waited = self.clock.monotonic().saturating_sub(started);
        metrics().queries.wait_seconds.observe(waited.as_secs_f64());
        metrics().queries.running.inc();
        if let Some(entry) = self.entries.lock().get_mut(&id) {
            entry.state = State::Running;
        }
        Ok(ticket)
    }

    async fn wait(&self, limits: &Limits) -> Result<OwnedSemaphorePermit> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
                metrics().queries.waiting.dec();
            }
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        metrics().queries.waiting.inc();
        if before >= self.max_waiting {
            return Err(Error::new(
                Code::Busy,
                format!("{} queries run and {} wait already", self.max_running, self.max_waiting),
            )
            .with_hint("retry shortly, or raise query.max_running"));
        }
        let slot = self.slots.clone();
        limits
            .race(async move {
                slot.acquire_owned()
                    .await
                    .map_err(|_| Error::new(Code::ShuttingDown, "queries have ended"))
            })
            .await
    }
}

/// The right to run; gives its place to the next when dropped.
pub(super) struct Ticket {
    running: Arc<Running>,
    id: u64,
    rows: Arc<AtomicU64>,
    started: Duration,
    /// How it ended, for metrics: `ok` or a code. Whoever is dropped before was cancelled.
    ended: Mutex<&'static str>,
    slot: Option<OwnedSemaphorePermit>,
    /// The right to be the one that runs while memory is short.
    _alone: Option<OwnedSemaphorePermit>,
}

impl Ticket {
    /// Notes rows that went to the client.
    pub(super) fn count(&self, rows: usize) {
        self.rows.fetch_add(rows as u64, Ordering::Relaxed);
    }

    /// Notes how the query ended.
    pub(super) fn end(&self, error: Option<&Error>) {
        *self.ended.lock() = error.map_or("ok", |error| error.code().as_str());
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.running.entries.lock().remove(&self.id);
        let queries = &metrics().queries;
        queries.total.with_label_values(&[*self.ended.get_mut()]).inc();
        queries.rows.inc_by(self.rows.load(Ordering::Relaxed));
        if self.slot.is_some() {
            let took = self.running.clock.monotonic().saturating_sub(self.started);
            queries.seconds.observe(took.as_secs_f64());
            queries.running.dec();
        }
    }
}
