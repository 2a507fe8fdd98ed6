//! Removes rows: the one way to take what was acknowledged out of a table.
//!
//! A deletion takes its turn at the table, has the rows in memory flushed, and finds out which
//! rows of the segments go; the segments that hold some are written again without them, window
//! by window. One edit of the metadata then exchanges all of them, and the table's writer does
//! the same for readers: they see all of a deletion or nothing of it. Until that edit nothing
//! has happened; a deletion that fails, is cancelled or dies with the process leaves files that
//! nothing names. Afterwards it is as durable as a flush, and the log holds nothing that could
//! bring rows back, because the flush before covers it.

use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Clock;
use kymo_kernel::ids::{SegmentId, TableId, TimeRange};
use kymo_kernel::message::{Delete, Deleted, Doomed};
use kymo_kernel::observe;
use kymo_kernel::pools::Pools;
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact::Reason;
use kymo_kernel::storage::delete::{self, Part, RowSet, parts, settled};
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};
use serde_json::json;
use tracing::{debug, info, warn};

use crate::compactor::history::{self, Entry, History};
use crate::writer::{Freeze, Replaced, Writers};

/// The actor.
pub struct Deleter(Arc<Shared>);

struct Shared {
    store: Arc<Store>,
    writers: Writers,
    pools: Pools,
    clock: Arc<dyn Clock>,
    /// Ends what runs, with the process.
    stop: CancelToken,
    history: Arc<History>,
}

/// The rows of a part that go; `None` for all of them.
type Chosen = (Part, Option<RowSet>);

impl Deleter {
    /// A deleter over the tables of these writers, until `stop` is cancelled.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        writers: Writers,
        pools: Pools,
        clock: Arc<dyn Clock>,
        stop: CancelToken,
        history: Arc<History>,
    ) -> Self {
        Deleter(Arc::new(Shared { store, writers, pools, clock, stop, history }))
    }
}

impl Actor for Deleter {
    fn observe(&self) -> serde_json::Value {
        // Those under way, beside the actor itself.
        json!({ "running": Arc::strong_count(&self.0) - 1 })
    }
}

impl Handle<Delete> for Deleter {
    fn handle(&mut self, message: Delete, reply: Reply<Delete>, cx: &mut Cx<Self>) {
        let shared = self.0.clone();
        cx.answer(reply, async move { shared.run(message).await });
    }
}

impl Shared {
    /// Deletes, unless the process ends first.
    async fn run(&self, delete: Delete) -> Result<Deleted> {
        let cancel = delete.cancel.clone();
        let mut deletion = std::pin::pin!(self.delete(delete));
        tokio::select! {
            biased;
            deleted = &mut deletion => deleted,
            () = self.stop.cancelled() => {
                cancel.cancel();
                deletion.await
            }
        }
    }

    async fn delete(&self, delete: Delete) -> Result<Deleted> {
        let began = self.clock.monotonic();
        let Delete { table, times, rows, count, cancel } = delete;
        let catalog = self.store.catalog();
        let def = catalog.table_by_id(table).map(|table| table.def.clone());
        let (Some(def), Some(cell)) = (def, self.store.table(table)) else {
            let text = format!("table with id {table} does not exist");
            return Err(Error::new(Code::TableNotFound, text));
        };
        let ports = self.writers.ports(&def)?;
        let turn = async { Ok(self.writers.turns().take(table).await) };
        let _turn = unless(&cancel, turn).await?;
        unless(&cancel, ports.freeze.call(Freeze)).await?;
        let version = Arc::new(settled(&cell.load()));
        let (chosen, gone) = self.choose(version, times, rows, count, &cancel).await?;
        if chosen.is_empty() {
            return Ok(Deleted::default());
        }
        let reach = chosen.iter().map(|(part, _)| part.time());
        let reach = reach.reduce(|all, each| all.union(&each)).unwrap_or(TimeRange::ALL);
        let inputs: Vec<SegmentId> = chosen.iter().flat_map(|(part, _)| part.ids()).collect();
        let entry = self.begin(&def.name, &chosen);
        let written = async {
            let outputs = self.rewrite(chosen, cancel.clone()).await?;
            self.commit(table, &inputs, &outputs).await.map(|()| outputs)
        };
        let outputs = match written.await {
            Ok(outputs) => outputs,
            Err(error) => {
                entry.failed(&error);
                return Err(error);
            }
        };
        let _ = entry.done(history::Result::of(&outputs, gone));
        let (before, after) = (inputs.len(), outputs.len());
        let outputs = outputs.into_iter().map(Arc::new).collect();
        let deleted = Some(clip(reach, times));
        let position = ports.replaced.call(Replaced { inputs, outputs, deleted }).await?;
        let took = self.clock.monotonic().saturating_sub(began);
        note(gone, took);
        info!(
            table = %def.name, rows = gone, segments = before, rewritten = after,
            ms = took.as_millis(), "deleted rows"
        );
        Ok(Deleted { rows: gone, position: Some(position) })
    }

    /// Notes that the segments of some parts are about to go.
    fn begin(&self, table: &TableName, chosen: &[Chosen]) -> Entry {
        let segments = || chosen.iter().flat_map(|(part, _)| part.segments());
        let bytes = segments().map(|meta| meta.bytes).sum();
        let rows = segments().map(|meta| meta.rows).sum();
        let level = segments().map(|meta| meta.level).max().unwrap_or_default();
        let inputs = (segments().count() as u64, bytes, rows);
        let window = chosen.iter().map(|(part, _)| part.window()).min();
        self.history.begin(Reason::Deleted, table, window, level.saturating_add(1), inputs)
    }

    /// The parts with rows that go, and how many there are.
    async fn choose(
        &self,
        version: Arc<Version>,
        times: TimeRange,
        rows: Doomed,
        count: bool,
        cancel: &CancelToken,
    ) -> Result<(Vec<Chosen>, u64)> {
        let predicate = match rows {
            Doomed::All => None,
            Doomed::Where(predicate) => Some(predicate),
            Doomed::Chosen(choose) => {
                let chosen = unless(cancel, choose.choose(version)).await?.into_iter();
                let chosen: Vec<_> = chosen.filter(|(_, rows)| !rows.is_empty()).collect();
                let gone = chosen.iter().map(|(_, rows)| rows.len()).sum();
                return Ok((chosen.into_iter().map(narrowed).collect(), gone));
            }
        };
        let (mut chosen, mut gone) = (Vec::new(), 0);
        for part in parts(&version, &times, &TagFilter::all()) {
            let whole = predicate.is_none() && clip(part.time(), times) == part.time();
            let known = part.rows().or((!count).then(|| part.stored_rows()));
            if let (true, Some(rows)) = (whole, known) {
                gone += rows;
                chosen.push((part, None));
                continue;
            }
            let (predicate, cancel) = (predicate.clone(), cancel.clone());
            let look = move || {
                let rows = part.choose(&times, predicate.as_ref(), &cancel)?;
                Ok::<_, Error>((part, rows))
            };
            let (part, rows) = self.pools.background("choose rows", look).await??;
            gone += rows.len();
            if whole {
                chosen.push((part, None));
            } else if !rows.is_empty() {
                chosen.push(narrowed((part, rows)));
            }
        }
        Ok((chosen, gone))
    }

    /// Writes what stays of each part, a job for each, so that flushes have their turns between
    /// them. Where one fails, what was written goes again.
    async fn rewrite(&self, chosen: Vec<Chosen>, cancel: CancelToken) -> Result<Vec<SegmentMeta>> {
        let (mut outputs, all) = (Vec::new(), chosen.len());
        for (done, (part, rows)) in chosen.into_iter().enumerate() {
            let (target, cancel) = (self.store.segments().clone(), cancel.clone());
            let write = move || delete::rewrite(&part, rows.as_ref(), &target, &cancel);
            match self.pools.background("delete rows", write).await.flatten() {
                Ok(output) => outputs.extend(output),
                Err(error) => {
                    self.discard(outputs).await?;
                    return Err(error);
                }
            }
            debug!(done = done + 1, all, "rewrote segments without deleted rows");
        }
        Ok(outputs)
    }

    async fn commit(
        &self,
        table: TableId,
        inputs: &[SegmentId],
        outputs: &[SegmentMeta],
    ) -> Result<()> {
        let (inputs, kept) = (inputs.to_vec(), outputs.to_vec());
        let committed = self.store.commit_async(vec![Op::Delete { table, inputs, outputs: kept }]);
        let Err(error) = committed.await else { return Ok(()) };
        // Refused for sure; after any other failure nobody knows whether the edit counts.
        if matches!(error.code(), Code::Conflict | Code::TableNotFound) {
            self.discard(outputs.to_vec()).await?;
        }
        Err(error)
    }

    /// Removes segments that nothing names; one that cannot be removed goes at the next start.
    async fn discard(&self, segments: Vec<SegmentMeta>) -> Result<()> {
        let store = self.store.segments().store.clone();
        let remove = move || {
            for segment in &segments {
                if let Err(error) = store.delete(&segment.path) {
                    warn!(path = %segment.path, %error, "a deletion that failed left a segment");
                }
            }
        };
        self.pools.background("discard", remove).await
    }
}

/// Where all rows of a part go, nothing of it has to be read again.
fn narrowed((part, rows): (Part, RowSet)) -> Chosen {
    let all = part.rows() == Some(rows.len());
    (part, (!all).then_some(rows))
}

fn clip(range: TimeRange, to: TimeRange) -> TimeRange {
    TimeRange { first: range.first.max(to.first), last: range.last.min(to.last) }
}

/// Waits for something unless the deletion is cancelled first.
async fn unless<T>(cancel: &CancelToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Error::new(Code::Cancelled, "the deletion was cancelled")),
        outcome = work => outcome,
    }
}

fn note(rows: u64, took: Duration) {
    let metrics = &observe::metrics().store;
    metrics.deletes.inc();
    metrics.deleted_rows.inc_by(rows);
    metrics.delete_seconds.observe(took.as_secs_f64());
}
