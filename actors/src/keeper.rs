//! Keeps house at intervals: deletes files that nothing names any more, flushes tables whose
//! few rows in memory keep the log from shrinking, and keeps Kymo's own tables that only grow,
//! `system.rejected_writes` of every database and `system.alert_history`, within their bounds.

use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::actor::{Actor, Cx};
use kymo_kernel::ids::SegmentId;
use kymo_kernel::observe;
use kymo_kernel::schema::{TableDef, TableName};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Result};
use serde_json::json;
use tracing::{debug, warn};

use crate::alert::history;
use crate::ingest::rejected;
use crate::writer::{Replaced, Writers};

/// How often the log's size is looked at.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Complete log files that may stay before tables are flushed for their sake.
const LOG_FILES: u64 = 8;
/// How often the size of Kymo's own tables is looked at.
const OWN_EVERY: Duration = Duration::from_secs(10);

/// The actor.
pub struct Keeper {
    store: Arc<Store>,
    writers: Writers,
    grace: Duration,
    log_bytes: u64,
    bounds: Bounds,
    collecting: bool,
    trimming: bool,
    forgetting: bool,
    deleted: u64,
}

impl Keeper {
    /// A keeper with the grace and the file size of the settings.
    #[must_use]
    pub fn new(store: Arc<Store>, writers: Writers, settings: &Settings) -> Self {
        Keeper {
            store,
            writers,
            grace: Duration::from_millis(settings.compaction.grace_ms),
            log_bytes: settings.journal.file_bytes.saturating_mul(LOG_FILES),
            bounds: Bounds {
                rejected: settings.ingest.rejected_bytes,
                alert_history: settings.alerts.history_bytes,
            },
            collecting: false,
            trimming: false,
            forgetting: false,
            deleted: 0,
        }
    }

    fn collect(&mut self, cx: &mut Cx<Self>) {
        if std::mem::replace(&mut self.collecting, true) {
            return;
        }
        let store = self.store.clone();
        let job = cx.pools().background("collect-garbage", move || store.collect_garbage());
        cx.then(job, |keeper, outcome, _| {
            keeper.collecting = false;
            keeper.collected(outcome.and_then(|deleted| deleted));
        });
    }

    fn collected(&mut self, outcome: Result<usize>) {
        match outcome {
            Ok(0) => {}
            Ok(deleted) => {
                debug!(files = deleted, "deleted files that nothing names");
                self.deleted += deleted as u64;
                observe::metrics().store.deleted_files.inc_by(deleted as u64);
            }
            Err(error) => warn!(%error, "files could not be deleted"),
        }
    }

    /// Lets the oldest rows of Kymo's own tables go where there are too many.
    fn forget_oldest(&mut self, cx: &mut Cx<Self>) {
        if std::mem::replace(&mut self.forgetting, true) {
            return;
        }
        let job = forget_oldest(self.store.clone(), self.writers.clone(), self.bounds);
        cx.then(job, |keeper, outcome, _| {
            keeper.forgetting = false;
            match outcome {
                Ok(0) => {}
                Ok(rows) => {
                    warn!(rows, "oldest rows removed: ingest.rejected_bytes, alerts.history_bytes");
                }
                // A merge took one of the segments: the next look finds what came of it.
                Err(error) if error.code() == Code::Conflict => {}
                Err(error) => warn!(%error, "old rows could not be removed"),
            }
        });
    }

    fn trim_log(&mut self, cx: &mut Cx<Self>) {
        if std::mem::replace(&mut self.trimming, true) {
            return;
        }
        let store = self.store.clone();
        let job = cx.pools().background("trim-log", move || store.trim_log());
        cx.then(job, |keeper, outcome, _| {
            keeper.trimming = false;
            if let Err(error) = outcome {
                warn!(%error, "the log could not be trimmed");
            }
        });
    }

    fn shrink_log(&self) {
        for table in self.store.log_pins(self.log_bytes) {
            self.writers.ask_to_freeze(table);
        }
    }
}

impl Actor for Keeper {
    fn started(&mut self, cx: &mut Cx<Self>) {
        let period = (self.grace / 2).max(Duration::from_secs(1));
        cx.every(period, |keeper, cx| keeper.collect(cx));
        cx.every(LOG_EVERY, |keeper, cx| {
            keeper.shrink_log();
            keeper.trim_log(cx);
        });
        cx.every(OWN_EVERY, |keeper, cx| keeper.forget_oldest(cx));
    }

    fn observe(&self) -> serde_json::Value {
        json!({ "collecting": self.collecting, "deleted_files": self.deleted })
    }
}

/// How large the segments of Kymo's own tables may get; 0 is without a bound.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    rejected: u64,
    alert_history: u64,
}

impl Bounds {
    /// The bound of a table, if it has one.
    fn of(self, name: &TableName) -> Option<u64> {
        let bytes = match name {
            name if rejected::is(name) => self.rejected,
            name if *name == history::history() => self.alert_history,
            _ => 0,
        };
        (bytes > 0).then_some(bytes)
    }
}

/// Removes the oldest segments of Kymo's own tables beyond their bounds; returns how many rows
/// went.
async fn forget_oldest(store: Arc<Store>, writers: Writers, bounds: Bounds) -> Result<u64> {
    let catalog = store.catalog();
    let tables = catalog.names.iter().filter_map(|(name, id)| Some((bounds.of(name)?, id)));
    let mut rows = 0;
    for (most, id) in tables {
        let Some(_turn) = writers.turns().try_take(*id) else { continue };
        let (Some(cell), Some(table)) = (store.table(*id), catalog.table_by_id(*id)) else {
            continue;
        };
        let surplus = surplus(&cell.load(), most);
        if !surplus.is_empty() {
            rows += surplus.iter().map(|segment| segment.rows).sum::<u64>();
            forget(&store, &writers, &table.def, &surplus).await?;
        }
    }
    observe::metrics().ingest.forgotten_rows.inc_by(rows);
    Ok(rows)
}

/// The oldest segments without which a table is within a bound.
fn surplus(version: &Version, most: u64) -> Vec<Arc<SegmentMeta>> {
    let mut bytes: u64 = version.segments.iter().map(|segment| segment.meta().bytes).sum();
    let mut surplus = Vec::new();
    for segment in version.segments.iter() {
        if bytes <= most {
            break;
        }
        bytes -= segment.meta().bytes;
        surplus.push(segment.meta().clone());
    }
    surplus
}

/// Removes segments with their rows, all or, where a merge took one of them, none.
async fn forget(
    store: &Store,
    writers: &Writers,
    def: &TableDef,
    segments: &[Arc<SegmentMeta>],
) -> Result<()> {
    let inputs: Vec<SegmentId> = segments.iter().map(|segment| segment.id).collect();
    let op = Op::Replace { table: def.id, inputs: inputs.clone(), outputs: Vec::new() };
    store.commit_async(vec![op]).await?;
    let replaced = Replaced { inputs, outputs: Vec::new(), deleted: None };
    writers.ports(def)?.replaced.call(replaced).await.map(|_| ())
}
