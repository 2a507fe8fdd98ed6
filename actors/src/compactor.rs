//! Merges segments: in the background, looking at every table at an interval and having the
//! background pool merge where it pays; and at once where somebody asks for it ([`Compact`]).
//!
//! What to merge is a pure choice over a version ([`compact::pick`]); the merge reads
//! immutable files and writes new ones, so a job can be dropped at any point and its files
//! are garbage until the metadata names them. The commit may be refused because an input
//! went meanwhile; then the choice is made again. After the commit the table's writer swaps
//! the segments in its version.
//!
//! The most useful jobs of all tables go first. A window whose merge fails is left alone for a
//! while, longer each time; other windows of its table, and other tables, are not held up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kymo_config::settings;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::cancel::{CancelOnDrop, CancelToken};
use kymo_kernel::env::Clock;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{Compact, Compaction};
use kymo_kernel::observe;
use kymo_kernel::pools::Pools;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact::{self, Job, Wish};
use kymo_kernel::storage::expire;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::{Code, Error, Result};
use serde_json::json;
use tracing::{info, warn};

use crate::writer::{Freeze, Replaced, Turn, Writers};

pub mod history;

use history::{Entry, History};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The actor.
pub struct Compactor {
    shared: Arc<Shared>,
    /// Merges that may run at a time.
    places: usize,
    /// Stops running merges with the actor: their output is garbage until it is committed.
    cancel: CancelOnDrop,
    running: BTreeSet<TableId>,
    /// Windows whose merge failed.
    paused: BTreeMap<(TableId, i64), Pause>,
    stats: Stats,
}

/// What a merge needs of its surroundings.
struct Shared {
    store: Arc<Store>,
    writers: Writers,
    settings: settings::Compaction,
    pools: Pools,
    clock: Arc<dyn Clock>,
    history: Arc<History>,
}

#[derive(Debug, Clone, Copy)]
struct Pause {
    until: Duration,
    length: Duration,
}

#[derive(Debug, Default, Clone, Copy)]
struct Stats {
    merges: u64,
    conflicts: u64,
    failures: u64,
    segments_in: u64,
}

impl Compactor {
    /// A compactor that runs `places` merges at a time on its own account.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        writers: Writers,
        settings: settings::Compaction,
        places: usize,
        (pools, clock): (Pools, Arc<dyn Clock>),
        history: Arc<History>,
    ) -> Self {
        Compactor {
            shared: Arc::new(Shared { store, writers, settings, pools, clock, history }),
            places: places.max(1),
            cancel: CancelOnDrop::default(),
            running: BTreeSet::new(),
            paused: BTreeMap::new(),
            stats: Stats::default(),
        }
    }

    /// Starts the most useful jobs of all tables until all places are taken.
    fn look(&mut self, cx: &mut Cx<Self>) {
        if self.running.len() >= self.places {
            return;
        }
        let snapshot = self.shared.store.catalog();
        self.paused.retain(|(table, _), _| snapshot.table_by_id(*table).is_some());
        let tables = snapshot.tables.iter().filter(|(_, table)| !table.segments.is_empty());
        let free = tables.map(|(id, _)| *id).filter(|id| !self.running.contains(id));
        let mut jobs: Vec<Job> = free.filter_map(|id| self.choice(id)).collect();
        jobs.sort_by(|a, b| b.compare_use(a));
        for found in jobs {
            if self.running.len() >= self.places {
                return;
            }
            let table = found.table.id;
            // Whoever else exchanges segments of the table comes first.
            let Some(turn) = self.shared.writers.turns().try_take(table) else { continue };
            // What was seen before the turn may be gone.
            if let Some(job) = self.choice(table) {
                self.start(job, turn, cx);
            }
        }
    }

    /// The most useful job of a table in windows that are not paused.
    fn choice(&self, table: TableId) -> Option<Job> {
        let Shared { store, settings, clock, .. } = self.shared.as_ref();
        let version = store.table(table)?.load();
        let now = clock.monotonic();
        let open = |window| {
            self.paused.get(&(table, window)).is_none_or(|pause: &Pause| pause.until <= now)
        };
        compact::pick_within(&version, settings, clock.now_ns(), &open)
    }

    fn start(&mut self, job: Job, turn: Turn, cx: &mut Cx<Self>) {
        let place = (job.table.id, job.window);
        self.running.insert(place.0);
        let (shared, cancel) = (self.shared.clone(), self.cancel.0.clone());
        let merge = async move {
            let _turn = turn;
            shared.merge(job, cancel).await
        };
        cx.then(merge, move |compactor, outcome, cx| {
            compactor.running.remove(&place.0);
            compactor.note(place, outcome);
            compactor.look(cx);
        });
    }

    fn note(&mut self, place: (TableId, i64), outcome: Result<Compaction>) {
        match outcome {
            Ok(done) => {
                self.paused.remove(&place);
                self.stats.merges += 1;
                self.stats.segments_in += done.inputs;
            }
            // The table or an input went meanwhile.
            Err(error) if matches!(error.code(), Code::Conflict | Code::TableNotFound) => {
                self.stats.conflicts += 1;
                self.pause(place);
            }
            Err(error) => {
                self.stats.failures += 1;
                let (pause, (table, window)) = (self.pause(place), place);
                warn!(%table, window, %error, pause_ms = pause.as_millis(), "merge failed");
            }
        }
    }

    fn pause(&mut self, place: (TableId, i64)) -> Duration {
        let length = match self.paused.get(&place) {
            Some(before) => (before.length * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        let until = self.shared.clock.monotonic() + length;
        self.paused.insert(place, Pause { until, length });
        length
    }
}

impl Shared {
    /// Merges until nothing is left of what somebody wants merged. Others have their turns at
    /// the table between two merges.
    async fn fulfil(&self, compact: Compact) -> Result<()> {
        let Compact { table, times, reports, cancel } = compact;
        let def = self.store.catalog().table_by_id(table).map(|table| table.def.clone());
        let (Some(def), Some(cell)) = (def, self.store.table(table)) else {
            let text = format!("table with id {table} does not exist");
            return Err(Error::new(Code::TableNotFound, text));
        };
        let freeze = self.writers.ports(&def)?.freeze;
        unless(&cancel, freeze.call(Freeze)).await?;
        let wish = Wish { times, upto: cell.load().watermark };
        loop {
            let turn = async { Ok(self.writers.turns().take(table).await) };
            let turn = unless(&cancel, turn).await?;
            let Some(job) = compact::requested(&cell.load(), &self.settings, &wish) else {
                return Ok(());
            };
            let done = self.merge(job, cancel.clone()).await?;
            drop(turn);
            unless(&cancel, async { reports.send(done).await.map_err(|_| cancelled()) }).await?;
        }
    }

    /// Merges, and remembers it.
    async fn merge(&self, job: Job, cancel: CancelToken) -> Result<Compaction> {
        let entry = self.history.merge(&job);
        match self.exchange(job, cancel, &entry).await {
            Ok(result) => {
                entry.done(result).ok_or_else(|| Error::internal("a merge that never began"))
            }
            Err(error) => {
                if error.code() != Code::Cancelled {
                    observe::metrics().store.compaction_failures.inc();
                }
                entry.failed(&error);
                Err(error)
            }
        }
    }

    /// Merges on the background pool, commits, and has the writer swap the segments.
    async fn exchange(
        &self,
        job: Job,
        cancel: CancelToken,
        entry: &Entry,
    ) -> Result<history::Result> {
        let began = self.clock.monotonic();
        let narrow = move || compact::narrow(job);
        let job = self.pools.background("plan merge", narrow).await??;
        entry.narrow(&job);
        let (def, read, rows) = (job.table.clone(), job.bytes(), job.rows());
        let (inputs, reason) = (job.input_ids(), job.reason.as_str());
        let target = self.store.segments().clone();
        let retention = self.store.catalog().retention_ns(&def.name);
        let edge = retention.map(|retention| expired_upto(retention, self.clock.now_ns()));
        let edge = edge.filter(|edge| expire::concerns(&job, *edge));
        let written = entry.rows();
        let run = move || {
            let mut progress = |rows| written.store(rows, Ordering::Relaxed);
            match edge {
                Some(edge) => expire::merge(&job, edge, &target, &cancel, &mut progress),
                None => compact::run(&job, &target, &cancel, &mut progress),
            }
        };
        let merged = self.pools.background("compact", run).await??;
        let (expired, copied) = (merged.removed, merged.copied);
        let outputs: Vec<SegmentMeta> = merged.segment.into_iter().collect();
        let (table, gone, came) = (def.id, inputs.clone(), outputs.clone());
        let op = match retention.filter(|_| edge.is_some()) {
            Some(retention_ns) => Op::Expire { table, inputs: gone, outputs: came, retention_ns },
            None => Op::Replace { table, inputs: gone, outputs: came },
        };
        self.store.commit_async(vec![op]).await?;
        let result = history::Result { copied, ..history::Result::of(&outputs, expired) };
        let segments = inputs.len();
        let outputs = outputs.into_iter().map(Arc::new).collect();
        let replaced = Replaced { inputs, outputs, deleted: None };
        self.writers.ports(&def)?.replaced.call(replaced).await?;
        let took = self.clock.monotonic().saturating_sub(began);
        let overwritten = rows.saturating_sub(result.rows + expired);
        let metrics = &observe::metrics().store;
        metrics.compactions.inc();
        metrics.expired_rows.inc_by(expired);
        metrics.compaction_overwritten_rows.inc_by(overwritten);
        metrics.compaction_copied_rows.inc_by(copied);
        metrics.compaction_read_bytes.inc_by(read);
        metrics.compaction_written_bytes.inc_by(result.bytes);
        metrics.compaction_seconds.observe(took.as_secs_f64());
        info!(
            table = %def.name, reason, segments, rows = result.rows, copied, overwritten, expired,
            bytes = result.bytes, ms = took.as_millis(), "merged segments"
        );
        Ok(result)
    }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "the compaction was cancelled")
}

/// Waits for something unless whoever asked cancels first.
async fn unless<T>(cancel: &CancelToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(cancelled()),
        outcome = work => outcome,
    }
}

impl Actor for Compactor {
    fn started(&mut self, cx: &mut Cx<Self>) {
        let settings = &self.shared.settings;
        if settings.enabled {
            let interval = Duration::from_millis(settings.interval_ms.max(1));
            cx.every(interval, |compactor, cx| compactor.look(cx));
        }
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "enabled": self.shared.settings.enabled,
            "running": self.running.len(),
            "paused_windows": self.paused.len(),
            "merges": self.stats.merges,
            "conflicts": self.stats.conflicts,
            "failures": self.stats.failures,
            "segments_in": self.stats.segments_in,
        })
    }
}

impl Handle<Compact> for Compactor {
    fn handle(&mut self, message: Compact, reply: Reply<Compact>, cx: &mut Cx<Self>) {
        let shared = self.shared.clone();
        cx.answer(reply, async move { shared.fulfil(message).await });
    }
}
