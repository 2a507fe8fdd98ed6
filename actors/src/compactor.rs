//! Merges segments in the background: looks at every table at an interval, and has the
//! background pool merge where it pays.
//!
//! What to merge is a pure choice over a version ([`compact::pick`]); the merge reads
//! immutable files and writes new ones, so a job can be dropped at any point and its files
//! are garbage until the metadata names them. The commit may be refused because an input
//! went meanwhile; then the choice is made again. After the commit the table's writer swaps
//! the segments in its version. A table whose merge fails is left alone for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kymo_config::settings;
use kymo_kernel::actor::{Actor, Cx};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Clock;
use kymo_kernel::ids::TableId;
use kymo_kernel::observe;
use kymo_kernel::pools::Pools;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact;
use kymo_kernel::storage::expire;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::{Code, Result};
use serde_json::json;
use tracing::{info, warn};

use crate::writer::{Replaced, Turn, Writers};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The actor.
pub struct Compactor {
    store: Arc<Store>,
    writers: Writers,
    settings: settings::Compaction,
    /// Merges that may run at a time.
    places: usize,
    cancel: CancelOnDrop,
    running: BTreeSet<TableId>,
    paused: BTreeMap<TableId, Pause>,
    /// Where the next look begins, so that every table has its turn.
    next: TableId,
    stats: Stats,
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
    /// A compactor that runs `places` merges at a time.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        writers: Writers,
        settings: settings::Compaction,
        places: usize,
    ) -> Self {
        Compactor {
            store,
            writers,
            settings,
            places: places.max(1),
            cancel: CancelOnDrop::default(),
            running: BTreeSet::new(),
            paused: BTreeMap::new(),
            next: TableId(0),
            stats: Stats::default(),
        }
    }

    /// Looks at tables in turn until all places are taken.
    fn look(&mut self, cx: &mut Cx<Self>) {
        let snapshot = self.store.catalog();
        let now = cx.clock().monotonic();
        self.paused.retain(|table, _| snapshot.table_by_id(*table).is_some());
        let after = snapshot.tables.range(self.next..);
        let tables: Vec<_> = after
            .chain(snapshot.tables.range(..self.next))
            .filter(|(_, table)| !table.segments.is_empty())
            .map(|(id, table)| (*id, table.def.clone()))
            .collect();
        for (id, def) in tables {
            if self.running.len() >= self.places {
                self.next = id;
                return;
            }
            if self.running.contains(&id) || self.is_paused(id, now) {
                continue;
            }
            // Whoever else exchanges segments of the table comes first.
            let Some(turn) = self.writers.turns().try_take(id) else { continue };
            let Some(cell) = self.store.table(id) else { continue };
            if let Some(job) = compact::pick(&cell.load(), &self.settings, cx.clock().now_ns()) {
                self.start(def, job, turn, cx);
            }
        }
        self.next = TableId(0);
    }

    fn is_paused(&self, table: TableId, now: Duration) -> bool {
        self.paused.get(&table).is_some_and(|pause| now < pause.until)
    }

    fn start(&mut self, def: Arc<TableDef>, job: compact::Job, turn: Turn, cx: &mut Cx<Self>) {
        let table = def.id;
        self.running.insert(table);
        let (store, writers) = (self.store.clone(), self.writers.clone());
        let (pools, clock) = (cx.pools().clone(), cx.clock().clone());
        let cancel = self.cancel.0.clone();
        let merge = async move {
            let _turn = turn;
            merge(store, writers, pools, clock, cancel, def, job).await
        };
        cx.then(merge, move |compactor, outcome, cx| {
            compactor.running.remove(&table);
            compactor.note(table, outcome, cx);
            compactor.look(cx);
        });
    }

    fn note(&mut self, table: TableId, outcome: Result<usize>, cx: &mut Cx<Self>) {
        match outcome {
            Ok(inputs) => {
                self.paused.remove(&table);
                self.stats.merges += 1;
                self.stats.segments_in += inputs as u64;
            }
            // The table or an input went meanwhile.
            Err(error) if matches!(error.code(), Code::Conflict | Code::TableNotFound) => {
                self.stats.conflicts += 1;
                self.pause(table, cx.clock().monotonic());
            }
            Err(error) => {
                self.stats.failures += 1;
                let pause = self.pause(table, cx.clock().monotonic());
                warn!(%table, %error, pause_ms = pause.as_millis(), "merge failed");
            }
        }
    }

    fn pause(&mut self, table: TableId, now: Duration) -> Duration {
        let length = match self.paused.get(&table) {
            Some(before) => (before.length * 2).min(LONGEST_PAUSE),
            None => FIRST_PAUSE,
        };
        self.paused.insert(table, Pause { until: now + length, length });
        length
    }
}

/// Stops running merges with the actor: their output is garbage until it is committed.
#[derive(Default)]
struct CancelOnDrop(CancelToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Merges on the background pool, commits, and has the writer swap the segments.
async fn merge(
    store: Arc<Store>,
    writers: Writers,
    pools: Pools,
    clock: Arc<dyn Clock>,
    cancel: CancelToken,
    def: Arc<TableDef>,
    job: compact::Job,
) -> Result<usize> {
    let began = clock.monotonic();
    let (read, inputs) = (job.bytes(), job.input_ids());
    let target = store.segments().clone();
    let retention = store.catalog().retention_ns(&def.name);
    let edge = retention.map(|retention| expired_upto(retention, clock.now_ns()));
    let edge = edge.filter(|edge| expire::concerns(&job, *edge));
    let run = move || match edge {
        Some(edge) => expire::merge(&job, edge, &target, &cancel),
        None => Ok((Some(compact::run(&job, &target, &cancel, &mut |_| {})?), 0)),
    };
    let (output, expired) = pools.background("compact", run).await??;
    let outputs: Vec<SegmentMeta> = output.into_iter().collect();
    let (table, gone, came) = (def.id, inputs.clone(), outputs.clone());
    let op = match retention.filter(|_| edge.is_some()) {
        Some(retention_ns) => Op::Expire { table, inputs: gone, outputs: came, retention_ns },
        None => Op::Replace { table, inputs: gone, outputs: came },
    };
    store.commit_async(vec![op]).await?;
    let count = inputs.len();
    let rows = outputs.iter().map(|output| output.rows).sum::<u64>();
    let written = outputs.iter().map(|output| output.bytes).sum::<u64>();
    let outputs = outputs.into_iter().map(Arc::new).collect();
    writers.ports(&def)?.replaced.call(Replaced { inputs, outputs, deleted: None }).await?;
    let metrics = &observe::metrics().store;
    metrics.compactions.inc();
    metrics.expired_rows.inc_by(expired);
    metrics.compaction_read_bytes.inc_by(read);
    metrics.compaction_written_bytes.inc_by(written);
    metrics.compaction_seconds.observe(clock.monotonic().saturating_sub(began).as_secs_f64());
    info!(table = %def.name, segments = count, rows, expired, bytes = written, "merged segments");
    Ok(count)
}

impl Actor for Compactor {
    fn started(&mut self, cx: &mut Cx<Self>) {
        if self.settings.enabled {
            let interval = Duration::from_millis(self.settings.interval_ms.max(1));
            cx.every(interval, |compactor, cx| compactor.look(cx));
        }
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "enabled": self.settings.enabled,
            "running": self.running.len(),
            "paused_tables": self.paused.len(),
            "merges": self.stats.merges,
            "conflicts": self.stats.conflicts,
            "failures": self.stats.failures,
            "segments_in": self.stats.segments_in,
        })
    }
}
