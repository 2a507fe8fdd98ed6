//! Continuous queries: tables of results that follow the tables they are made from.
//!
//! ```text
//! CREATE CONTINUOUS QUERY ──► catalog ──► definition (metadata) ──► this actor ──► a task each
//!                                              ▲ cursors, every few seconds          │
//!                                              └─────────────────────────────────────┤
//! feed ── commits of the sources ───────────────────────────────────────────────────►│
//!                                              target ◄── rows, like anybody's ──────┘
//! ```
//!
//! The metadata decides which queries run; this actor starts and stops their tasks to match. A
//! task that fails is tried again after a pause, as long as trying may help; otherwise the
//! query is paused, durably and with the reason, and waits for somebody to `RESUME` it.
//!
//! Cursors are kept as edits of the metadata, those of all queries as one edit every
//! `continuous.cursor_ms`: they must go with their definitions (a query that is made again
//! begins anew), they are read once at the start, and nothing is lost where they are old,
//! since windows that are computed again give the same rows. Rows of a system table would be
//! no more durable and would have to be found again before the log may be trimmed.

mod registry;
mod runner;
mod target;
#[cfg(test)]
mod tests;
mod written;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::actor::{Actor, Cx};
use kymo_kernel::continuous::{ContinuousDef, Pause, QueryName};
use kymo_kernel::env::Clock;
use kymo_kernel::message::{ContinuousDdl, Ddl, Delete, Keep, Parse, Write};
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::port::Port;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::ContinuousQueries;
use kymo_kernel::{Code, Error};
use serde_json::json;
use tracing::{info, warn};
use uuid::Uuid;

use crate::feed::Hub;
use registry::Entry;
pub use registry::{Progress, Registry};
use runner::Runner;
pub use target::{columns, no_windows};

/// The longest pause after a failure.
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// The ways to everything that a query's task works with.
#[derive(Clone)]
pub struct Ways {
    /// To who splits and parses SQL text.
    pub parse: Port<Parse>,
    /// To who plans queries that are kept up to date.
    pub keep: Port<Keep>,
    /// To ingest.
    pub write: Port<Write>,
    /// To the deleter.
    pub delete: Port<Delete>,
    /// To the catalog.
    pub ddl: Port<Ddl>,
}

/// What the actor and its tasks work with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    clock: Arc<dyn Clock>,
    pools: Pools,
    store: Arc<Store>,
    hub: Arc<Hub>,
    registry: Arc<Registry>,
    parse: Port<Parse>,
    keep: Port<Keep>,
    write: Port<Write>,
    delete: Port<Delete>,
    ddl: Port<Ddl>,
    buffer_bytes: usize,
    catch_up_bytes: u64,
    memory_bytes: usize,
    piece_rows: usize,
    delay: Duration,
    cursor_every: Duration,
    check_every: Duration,
    max_failures: u32,
    retry: Duration,
}

impl Context {
    /// A context over the parts of a running system.
    #[must_use]
    pub fn new(
        settings: &Settings,
        clock: Arc<dyn Clock>,
        pools: Pools,
        store: Arc<Store>,
        hub: Arc<Hub>,
        registry: Arc<Registry>,
        ways: Ways,
    ) -> Context {
        let (own, live) = (&settings.continuous, &settings.live);
        let bytes = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        let millis = |millis: u64| Duration::from_millis(millis.max(1));
        let Ways { parse, keep, write, delete, ddl } = ways;
        Context {
            clock,
            pools,
            store,
            hub,
            registry,
            parse,
            keep,
            write,
            delete,
            ddl,
            buffer_bytes: bytes(live.buffer_bytes),
            catch_up_bytes: live.catch_up_bytes,
            memory_bytes: bytes(own.memory_bytes),
            piece_rows: own.piece_rows.max(1),
            delay: Duration::from_millis(own.delay_ms),
            cursor_every: millis(own.cursor_ms),
            check_every: millis(own.check_ms),
            max_failures: own.max_failures.max(1),
            retry: millis(own.retry_ms),
        }
    }

    /// Keeps the cursors that have moved. Those that cannot be kept are tried again.
    pub async fn keep_cursors(&self) {
        let moved = self.registry.moved();
        if moved.is_empty() {
            return;
        }
        let change = Ddl::Continuous(ContinuousDdl::Advance(moved.clone()));
        if let Err(error) = self.ddl.call(change).await {
            warn!(%error, "cursors of continuous queries were not kept; a crash repeats windows");
            self.registry.put_back(moved);
        }
    }
}

impl Context {
    /// Lets the raw rows of policies go that have caught up with their tables.
    async fn retain(&self, caught_up: Vec<(QueryName, Uuid)>) {
        for (name, id) in caught_up {
            let change = Ddl::Continuous(ContinuousDdl::Retain { name: name.clone(), id });
            match self.ddl.call(change).await {
                Ok(_) => info!(policy = %name, "raw rows of a downsampling policy may go"),
                Err(error) => warn!(%error, policy = %name, "a retention was not set yet"),
            }
        }
    }
}

/// A query's task.
struct Started {
    revision: u64,
    name: String,
    entry: Arc<Entry>,
    _task: Task<()>,
}

/// The actor.
pub struct Continuous {
    context: Context,
    started: BTreeMap<Uuid, Started>,
    /// The definitions that `started` follows.
    follows: Option<Arc<ContinuousQueries>>,
}

impl Continuous {
    /// An actor that runs what the metadata says.
    #[must_use]
    pub fn new(context: Context) -> Self {
        Continuous { context, started: BTreeMap::new(), follows: None }
    }

    /// Hears of changes of definitions.
    fn listen(&mut self, cx: &mut Cx<Self>) {
        let registry = self.context.registry.clone();
        let woken = async move { registry.woken().await };
        cx.then(woken, |actor, (), cx| {
            actor.follow();
            actor.listen(cx);
        });
    }

    /// Starts and stops tasks so that they match the definitions.
    fn follow(&mut self) {
        let wanted = self.context.store.catalog().continuous.clone();
        if self.follows.as_ref().is_some_and(|known| Arc::ptr_eq(known, &wanted)) {
            return;
        }
        let running: BTreeMap<Uuid, &Arc<ContinuousDef>> = wanted
            .values()
            .filter(|query| query.paused.is_none())
            .map(|query| (query.id, query))
            .collect();
        self.started.retain(|id, started| {
            let stays = running.get(id).is_some_and(|query| query.revision == started.revision);
            if !stays {
                started.entry.running(false);
            }
            stays
        });
        for (id, query) in running {
            if !self.started.contains_key(&id) {
                let started = self.start(query);
                self.started.insert(id, started);
            }
        }
        for gone in self.gone(&wanted) {
            metrics().continuous.forget(&gone);
        }
        self.context.registry.keep(|id| wanted.values().any(|query| query.id == id));
        self.follows = Some(wanted);
    }

    /// Names that were there and are no more.
    fn gone(&self, wanted: &ContinuousQueries) -> Vec<String> {
        let Some(before) = &self.follows else { return Vec::new() };
        let gone = before.keys().filter(|name| !wanted.contains_key(name));
        gone.map(ToString::to_string).collect()
    }

    fn start(&self, query: &Arc<ContinuousDef>) -> Started {
        let entry = self.context.registry.entry(query.id);
        let work = keep_running(self.context.clone(), query.clone(), entry.clone());
        let task = self.context.pools.spawn(Pool::Io, "continuous query", work);
        info!(query = %query.name, target = %query.target, "continuous query started");
        Started { revision: query.revision, name: query.name.to_string(), entry, _task: task }
    }

    /// The policies whose targets have everything that their tables had.
    fn caught_up(&self) -> Vec<(QueryName, Uuid)> {
        let waiting = self.follows.iter().flat_map(|queries| queries.values()).filter(|query| {
            let policy = query.policy.as_ref();
            let started = self.started.get(&query.id);
            policy.is_some_and(|policy| !policy.retained)
                && started.is_some_and(|started| started.entry.caught_up())
        });
        waiting.map(|query| (query.name.clone(), query.id)).collect()
    }

    fn measure(&self) {
        let now = self.context.clock.monotonic();
        for Started { name, entry, .. } in self.started.values() {
            let lag = i64::try_from(entry.lag(now).as_secs()).unwrap_or(i64::MAX);
            metrics().continuous.lag_seconds.with_label_values(&[name]).set(lag);
        }
    }
}

impl Actor for Continuous {
    fn started(&mut self, cx: &mut Cx<Self>) {
        self.follow();
        self.listen(cx);
        cx.every(self.context.check_every, |actor, _| {
            actor.follow();
            actor.measure();
        });
        cx.every(self.context.cursor_every, |actor, cx| {
            let context = actor.context.clone();
            let caught_up = actor.caught_up();
            let work = async move {
                context.keep_cursors().await;
                context.retain(caught_up).await;
            };
            cx.then(work, |_, (), _| {});
        });
    }

    fn observe(&self) -> serde_json::Value {
        json!({ "running": self.started.len() })
    }
}

/// Runs a query, again after failures that may pass, until it has to be paused.
async fn keep_running(context: Context, query: Arc<ContinuousDef>, entry: Arc<Entry>) {
    let (mut failures, mut pause) = (0, context.retry);
    loop {
        entry.running(true);
        let before = entry.evaluations();
        let work = attempt(context.clone(), query.clone(), entry.clone());
        let ended = context.pools.spawn(Pool::Query, "continuous query", work).await;
        let error = ended.unwrap_or_else(|panicked| panicked);
        entry.running(false);
        if matches!(error.code(), Code::ShuttingDown | Code::Poisoned) {
            return;
        }
        if entry.evaluations() > before {
            (failures, pause) = (0, context.retry);
        }
        // Who is told to come back comes back, as while plugins are being loaded.
        failures += u32::from(error.code() != Code::Busy);
        entry.failed(&error);
        let name = query.name.to_string();
        metrics().continuous.failures.with_label_values(&[&name]).inc();
        warn!(query = %query.name, %error, failures, "continuous query failed");
        if !may_pass(&error) || failures >= context.max_failures {
            return give_up(&context, &query, &error).await;
        }
        context.clock.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

/// Runs a query until it fails.
async fn attempt(context: Context, query: Arc<ContinuousDef>, entry: Arc<Entry>) -> Error {
    match Runner::open(context, query, entry).await {
        Ok(runner) => match runner.run().await {
            Ok(never) => match never {},
            Err(error) => error,
        },
        Err(error) => error,
    }
}

/// Whether the same query may succeed later, without anybody's doing.
fn may_pass(error: &Error) -> bool {
    matches!(
        error.code(),
        Code::Busy
            | Code::Deadline
            | Code::Cancelled
            | Code::Down
            | Code::Starting
            | Code::Conflict
            | Code::Io
            | Code::DiskFull
            | Code::Internal
    )
}

/// Pauses a query with the reason. Only this definition: somebody may have changed it.
async fn give_up(context: &Context, query: &ContinuousDef, error: &Error) {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    let change = Ddl::Continuous(ContinuousDdl::Pause {
        name: query.name.clone(),
        only: Some((query.id, query.revision)),
        pause: Pause {
            reason: format!("{}: {error}{hint}", error.code()),
            failed: true,
            since_ns: context.clock.now_ns(),
        },
    });
    loop {
        match context.ddl.call(change.clone()).await {
            Err(error) if error.code() == Code::Busy => {
                context.clock.sleep(context.retry).await;
            }
            // One that was dropped meanwhile needs no pause.
            _ => return context.registry.wake(),
        }
    }
}
