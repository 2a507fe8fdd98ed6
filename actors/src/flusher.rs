//! Turns frozen rows into segments: sort and encode on the background pool, then one edit of
//! the metadata that names the segments and says up to where the log is covered.
//!
//! The rows are in the journal for as long as that edit is not durable, so a flush may fail
//! and be tried again as often as it takes: a full disk stalls writes and loses nothing. It
//! gives up only where trying again is senseless: the table was dropped, or the store
//! refuses to go on.

use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Clock;
use kymo_kernel::observe;
use kymo_kernel::pools::Pools;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::storage::segment;
use kymo_kernel::storage::version::Frozen;
use kymo_kernel::{Code, Result};
use tracing::{debug, warn};

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Flushes for all writers, as many at a time as the background pool has places.
#[derive(Clone)]
pub struct Flusher {
    store: Arc<Store>,
    pools: Pools,
    clock: Arc<dyn Clock>,
    cancel: CancelToken,
}

impl Flusher {
    /// A flusher into a store.
    #[must_use]
    pub fn new(store: Arc<Store>, pools: Pools, clock: Arc<dyn Clock>) -> Self {
        Flusher { store, pools, clock, cancel: CancelToken::new() }
    }

    /// Stops what runs and starts no more: for the end of the process. The rows stay in the
    /// journal.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Writes the rows into segments and commits them; returns once the metadata names them.
    ///
    /// # Errors
    /// `table_not_found` where the table was dropped meanwhile; the reason why the store
    /// refuses to go on, where it does; `cancelled`. Everything else is tried again.
    pub async fn flush(
        &self,
        table: Arc<TableDef>,
        frozen: Arc<Frozen>,
    ) -> Result<Vec<Arc<SegmentMeta>>> {
        let mut wait = FIRST_WAIT;
        loop {
            let error = match self.attempt(&table, &frozen).await {
                Ok(segments) => return Ok(segments),
                Err(error) => error,
            };
            if error.code() == Code::TableNotFound {
                return Err(error);
            }
            if self.cancel.is_cancelled() {
                return Err(error);
            }
            if let Some(dead) = self.store.poisoned() {
                return Err(dead);
            }
            warn!(table = %table.name, %error, wait_ms = wait.as_millis(), "flush failed, will try again");
            self.clock.sleep(wait).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    async fn attempt(
        &self,
        table: &Arc<TableDef>,
        frozen: &Arc<Frozen>,
    ) -> Result<Vec<Arc<SegmentMeta>>> {
        let began = self.clock.monotonic();
        let segments = self.encode(table.clone(), frozen.clone()).await?;
        let op = Op::AddSegments {
            table: table.id,
            segments: segments.clone(),
            flushed_upto: frozen.span.last,
        };
        self.store.commit_async(vec![op]).await?;
        let took = self.clock.monotonic().saturating_sub(began);
        let metrics = &observe::metrics().store;
        metrics.flushes.inc();
        metrics.flush_seconds.observe(took.as_secs_f64());
        debug!(
            table = %table.name,
            rows = frozen.rows.rows(),
            segments = segments.len(),
            bytes = segments.iter().map(|segment| segment.bytes).sum::<u64>(),
            ms = took.as_millis(),
            "flushed rows"
        );
        Ok(segments.into_iter().map(Arc::new).collect())
    }

    async fn encode(&self, table: Arc<TableDef>, frozen: Arc<Frozen>) -> Result<Vec<SegmentMeta>> {
        let (target, cancel) = (self.store.segments().clone(), self.cancel.clone());
        self.pools
            .background("flush", move || segment::flush(&target, &table, &frozen, &cancel))
            .await?
    }
}
