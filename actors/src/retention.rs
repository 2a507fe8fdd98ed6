//! Lets expired segments go: looks at an interval at every table that keeps its rows for some
//! time only, and drops the segments without a row that is still to be kept.
//!
//! No reader waits for it: queries cut at the edge by themselves, and merges leave expired rows
//! behind. Nor is anybody told, as for a deletion: what was made of rows that have expired since
//! stays. A retention that is made longer while a look is under way is respected, since the edit
//! says what it went by and the metadata refuses it then (R1).

use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::actor::{Actor, Cx};
use kymo_kernel::env::Clock;
use kymo_kernel::ids::TableId;
use kymo_kernel::observe;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact::Reason;
use kymo_kernel::storage::expire::{self, Expired};
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::meta::retention::expired_upto;
use kymo_kernel::{Code, Result};
use serde_json::json;
use tracing::{info, warn};

use crate::compactor::history::{self, History};
use crate::writer::{Replaced, Writers};

/// The actor.
pub struct Retention {
    store: Arc<Store>,
    writers: Writers,
    interval: Duration,
    looking: bool,
    rows: u64,
    segments: u64,
    history: Arc<History>,
}

impl Retention {
    /// An actor that looks at an interval.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        writers: Writers,
        interval: Duration,
        history: Arc<History>,
    ) -> Self {
        Retention { store, writers, interval, looking: false, rows: 0, segments: 0, history }
    }

    fn look(&mut self, cx: &mut Cx<Self>) {
        if std::mem::replace(&mut self.looking, true) {
            return;
        }
        let context = (self.store.clone(), self.writers.clone(), self.history.clone());
        let look = look(context, cx.clock().clone());
        cx.then(look, |retention, gone, _| {
            retention.looking = false;
            retention.rows += gone.rows;
            retention.segments += gone.segments.len() as u64;
        });
    }
}

impl Actor for Retention {
    fn started(&mut self, cx: &mut Cx<Self>) {
        cx.every(self.interval, |retention, cx| retention.look(cx));
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "looking": self.looking,
            "removed_rows": self.rows,
            "removed_segments": self.segments,
        })
    }
}

/// What a look works on.
type Context = (Arc<Store>, Writers, Arc<History>);

/// One look at all tables; what went.
async fn look(context: Context, clock: Arc<dyn Clock>) -> Expired {
    let (store, _, _) = &context;
    let catalog = store.catalog();
    let mut gone = Expired::default();
    for (id, table) in catalog.tables.iter() {
        let Some(retention_ns) = catalog.retention_ns(&table.def.name) else { continue };
        let edge = expired_upto(retention_ns, clock.now_ns());
        match drop_expired(&context, *id, &table.def, retention_ns, edge).await {
            Ok(expired) => {
                gone.rows += expired.rows;
                gone.bytes += expired.bytes;
                gone.segments.extend(expired.segments);
            }
            // The table went, or keeps its rows longer by now.
            Err(error) if matches!(error.code(), Code::Conflict | Code::TableNotFound) => {}
            Err(error) => warn!(table = %table.def.name, %error, "expired rows were not removed"),
        }
    }
    gone
}

async fn drop_expired(
    (store, writers, history): &Context,
    table: TableId,
    def: &TableDef,
    retention_ns: i64,
    edge: i64,
) -> Result<Expired> {
    let Some(cell) = store.table(table) else { return Ok(Expired::default()) };
    if expire::whole(&cell.load(), edge).segments.is_empty() {
        return Ok(Expired::default());
    }
    // Who has the turn may be about to exchange these very segments: the next look comes.
    let Some(_turn) = writers.turns().try_take(table) else { return Ok(Expired::default()) };
    let expired = expire::whole(&cell.load(), edge);
    let inputs = (expired.segments.len() as u64, expired.bytes, expired.rows);
    let entry = history.begin(Reason::Retention, &def.name, None, 0, inputs);
    let (inputs, outputs) = (expired.segments.clone(), Vec::new());
    let op = Op::Expire { table, inputs, outputs, retention_ns };
    if let Err(error) = store.commit_async(vec![op]).await {
        entry.failed(&error);
        return Err(error);
    }
    let _ = entry.done(history::Result::of(&[], expired.rows));
    let (inputs, outputs) = (expired.segments.clone(), Vec::new());
    writers.ports(def)?.replaced.call(Replaced { inputs, outputs, deleted: None }).await?;
    note(&expired);
    info!(
        table = %def.name, rows = expired.rows, segments = expired.segments.len(),
        bytes = expired.bytes, "removed expired rows"
    );
    Ok(expired)
}

fn note(expired: &Expired) {
    let metrics = &observe::metrics().store;
    metrics.expired_rows.inc_by(expired.rows);
    metrics.expired_segments.inc_by(expired.segments.len() as u64);
    metrics.expired_bytes.inc_by(expired.bytes);
}
