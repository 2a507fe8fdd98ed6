//! Serialises changes of definitions: one actor plans them, commits them through the store,
//! and tells the writers of tables that changed or went.
//!
//! Changes that queue up while a commit runs are planned one after the other, each on the
//! result of the one before, and committed as one edit: ten thousand new tables cost a few
//! fsyncs. Readers never ask this actor; they take the snapshot that the store publishes.

use std::collections::VecDeque;
use std::sync::Arc;

use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::ids::{MetaVersion, PartitionId, TableId};
use kymo_kernel::message::{Ddl, DdlDone};
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::{Author, Edit, Op, Snapshot};
use kymo_kernel::{Error, Result};
use serde_json::json;
use tracing::info;
use uuid::Uuid;

pub mod plan;

use plan::{Limits, Plan, plan};

/// How many changes one edit holds at most.
const MAX_GROUP: usize = 256;

/// Told about changes of tables after they are durable and visible.
pub trait TableObserver: Send + 'static {
    /// The table has a new definition.
    fn altered(&self, def: &Arc<TableDef>);
    /// The table is gone.
    fn dropped(&self, table: TableId);
}

/// The actor.
pub struct Catalog {
    store: Arc<Store>,
    limits: Limits,
    observer: Box<dyn TableObserver>,
    queue: VecDeque<(Ddl, Reply<Ddl>)>,
    committing: bool,
    committed: u64,
}

/// A change that is part of the edit being committed.
struct Waiting {
    plan: Plan,
    changed: bool,
    reply: Reply<Ddl>,
}

impl Catalog {
    /// A catalog over a store.
    #[must_use]
    pub fn new(store: Arc<Store>, limits: Limits, observer: Box<dyn TableObserver>) -> Self {
        Catalog { store, limits, observer, queue: VecDeque::new(), committing: false, committed: 0 }
    }

    fn commit_next(&mut self, cx: &mut Cx<Self>) {
        if self.committing || self.queue.is_empty() {
            return;
        }
        let group = self.queue.drain(..self.queue.len().min(MAX_GROUP)).collect();
        let snapshot = self.store.catalog();
        let (ops, waiting) = plan_group(&snapshot, group, self.limits);
        if ops.is_empty() {
            self.finish(waiting, snapshot.version);
            return self.commit_next(cx);
        }
        self.committing = true;
        cx.then(commit(self.store.clone(), ops), |catalog, outcome, cx| {
            catalog.committing = false;
            match outcome {
                Ok(version) => {
                    catalog.committed += 1;
                    catalog.finish(waiting, version);
                }
                Err(error) => {
                    for each in waiting {
                        each.reply.fail(error.clone());
                    }
                }
            }
            catalog.commit_next(cx);
        });
    }

    /// Tells the observer, then answers.
    fn finish(&self, waiting: Vec<Waiting>, version: MetaVersion) {
        let snapshot = self.store.catalog();
        for Waiting { plan, changed, reply } in waiting {
            let table =
                plan.table.and_then(|id| snapshot.table_by_id(id)).map(|table| table.def.clone());
            if changed && let Some(def) = &table {
                self.observer.altered(def);
            }
            for id in &plan.dropped {
                info!(table = %id, "table dropped");
                self.observer.dropped(*id);
            }
            reply.ok(DdlDone { version, changed, table });
        }
    }
}

async fn commit(store: Arc<Store>, ops: Vec<Op>) -> Result<MetaVersion> {
    store.commit_async(ops).await
}

/// Plans each change on the result of the ones before; those that cannot be are answered.
fn plan_group(
    snapshot: &Snapshot,
    group: Vec<(Ddl, Reply<Ddl>)>,
    limits: Limits,
) -> (Vec<Op>, Vec<Waiting>) {
    let mut working = snapshot.clone();
    let mut ops = Vec::new();
    let mut waiting = Vec::with_capacity(group.len());
    for (ddl, reply) in group {
        match plan_on(&mut working, &ddl, limits) {
            Ok(plan) => {
                ops.extend(plan.ops.iter().cloned());
                waiting.push(Waiting { changed: !plan.ops.is_empty(), plan, reply });
            }
            Err(error) => reply.fail(error),
        }
    }
    (ops, waiting)
}

fn plan_on(working: &mut Snapshot, ddl: &Ddl, limits: Limits) -> Result<Plan, Error> {
    let plan = plan(working, ddl, limits)?;
    if !plan.ops.is_empty() {
        let by = Author {
            node: String::new(),
            partition: PartitionId::ONLY,
            epoch: working.epoch(PartitionId::ONLY),
        };
        let edit = Edit { commit_id: Uuid::nil(), by, ops: plan.ops.clone() };
        *working = working.apply(&edit)?;
    }
    Ok(plan)
}

impl Actor for Catalog {
    fn observe(&self) -> serde_json::Value {
        json!({
            "queued": self.queue.len(),
            "committing": self.committing,
            "committed_edits": self.committed,
            "version": self.store.catalog().version.0,
        })
    }
}

impl Handle<Ddl> for Catalog {
    fn handle(&mut self, message: Ddl, reply: Reply<Ddl>, cx: &mut Cx<Self>) {
        self.queue.push_back((message, reply));
        self.commit_next(cx);
    }
}
