//! Keeps house at intervals: deletes files that nothing names any more, and flushes tables
//! whose few rows in memory keep the log from shrinking.

use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::Result;
use kymo_kernel::actor::{Actor, Cx};
use kymo_kernel::observe;
use kymo_kernel::storage::Store;
use serde_json::json;
use tracing::{debug, warn};

use crate::writer::Writers;

/// How often the log's size is looked at.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Complete log files that may stay before tables are flushed for their sake.
const LOG_FILES: u64 = 8;

/// The actor.
pub struct Keeper {
    store: Arc<Store>,
    writers: Writers,
    grace: Duration,
    log_bytes: u64,
    collecting: bool,
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
            collecting: false,
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
        cx.every(LOG_EVERY, |keeper, _| keeper.shrink_log());
    }

    fn observe(&self) -> serde_json::Value {
        json!({ "collecting": self.collecting, "deleted_files": self.deleted })
    }
}
