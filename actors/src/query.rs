//! The query actor: parses, plans and runs SQL on the query runtime.
//!
//! A turn of the actor only starts work; planning and execution happen on the query runtime,
//! behind an admission gate, under a time limit and a cancel token. The engine is DataFusion,
//! which no other part of Kymo sees: messages carry text, Arrow and our own errors.

mod alert;
mod allow;
mod alter;
mod analyze;
mod build;
mod call;
mod catalog;
mod command;
mod context;
mod continuous;
mod ddl;
mod delete;
mod duration;
mod engine;
mod error;
mod filter;
mod functions;
mod guc;
mod information;
mod instants;
mod interrupt;
mod learned;
mod live;
mod manage;
mod names;
mod owners;
mod params;
mod parse;
mod pgtypes;
mod plan;
mod plugin;
mod provider;
mod retention;
mod rewrite;
mod running;
mod scan;
mod short;
mod shortage;
mod show;
mod stream;
mod system;
mod text;
mod utility;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use futures::future::BoxFuture;
use kymo_config::Settings;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::continuous::ContinuousDef;
use kymo_kernel::env::Env;
use kymo_kernel::ids::{TableId, TimeRange};
use kymo_kernel::message::{
    Acked, AlertCommand, AlertDone, Compact, Ddl, DdlDone, Delete, Deleted, Follow, Keep, Parse,
    PluginCommand, PluginDone, Prepare, Query, Write,
};
use kymo_kernel::pools::{Pool, Pools};
use kymo_kernel::port::Port;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::PluginHost;
use tokio::sync::mpsc;

use crate::continuous::{Progress, Registry};
use crate::memory::pressure::Pressure;

pub use system::ChannelRow;
pub use system::{
    ActorRow, AlertFileRow, AlertRow, ContinuousRow, Inspect, PluginLogRow, PluginRow,
    PluginVersionRow, PortRow, SubscriptionRow, SupervisionRow, TransformRow,
};

pub(crate) use alert::{
    Input, Instants, Kind, Layout, Own, Pairs, PlanRule, PlannedRule, RuleQuery, Shape, by_instant,
};
pub(crate) use command::{Command, Cursor, Parsed, Scope, Subscribe, Transaction};
pub(crate) use duration::Span;
pub(crate) use running::cancelled;

/// What queries read: definitions and the current version of each table. Never blocks.
pub trait Tables: Send + Sync + 'static {
    /// The metadata as it is now.
    fn catalog(&self) -> Arc<Snapshot>;
    /// The rows of a table as they are now; `None` for a table that was dropped.
    fn version(&self, table: TableId) -> Option<Arc<Version>>;
}

/// What queries change, through the actors that own it.
pub trait Changes: Send + Sync + 'static {
    /// Changes definitions.
    fn ddl(&self, ddl: Ddl) -> BoxFuture<'static, Result<DdlDone>>;
    /// Changes plugins.
    fn plugins(&self, command: PluginCommand) -> BoxFuture<'static, Result<PluginDone>>;
    /// Changes alert rules and silences, and acknowledges alerts.
    fn alerts(&self, command: AlertCommand) -> BoxFuture<'static, Result<AlertDone>>;
    /// Writes rows.
    fn write(&self, write: Write) -> BoxFuture<'static, Result<Acked>>;
    /// Says that continuous queries were changed.
    fn continuous_changed(&self);
    /// Has a continuous query compute windows again.
    ///
    /// # Errors
    /// `unsupported` where it does not run, `busy` while it does an earlier backfill.
    fn backfill(
        &self,
        query: &ContinuousDef,
        times: TimeRange,
    ) -> Result<mpsc::Receiver<Result<Progress>>>;
    /// Removes rows.
    fn delete(&self, delete: Delete) -> BoxFuture<'static, Result<Deleted>>;
    /// Merges segments.
    fn compact(&self, compact: Compact) -> BoxFuture<'static, Result<()>>;
}

/// [`Changes`] through the ports of the catalog and of ingest.
pub struct Ports {
    /// To the catalog.
    pub ddl: Port<Ddl>,
    /// To ingest.
    pub write: Port<Write>,
    /// To the deleter.
    pub delete: Port<Delete>,
    /// To the compactor.
    pub compact: Port<Compact>,
    /// The continuous queries that run, where they do.
    pub continuous: Option<Arc<Registry>>,
    /// To the plugin manager, where there is one.
    pub plugins: Option<Port<PluginCommand>>,
    /// To who evaluates alert rules, where there is one.
    pub alerts: Option<Port<AlertCommand>>,
}

impl Changes for Ports {
    fn ddl(&self, ddl: Ddl) -> BoxFuture<'static, Result<DdlDone>> {
        let port = self.ddl.clone();
        Box::pin(async move { port.call(ddl).await })
    }

    fn plugins(&self, command: PluginCommand) -> BoxFuture<'static, Result<PluginDone>> {
        let port = self.plugins.clone();
        Box::pin(async move {
            match port {
                Some(port) => port.call(command).await,
                None => Err(Error::new(Code::Unsupported, "plugins are not offered here")),
            }
        })
    }

    fn alerts(&self, command: AlertCommand) -> BoxFuture<'static, Result<AlertDone>> {
        let port = self.alerts.clone();
        Box::pin(async move {
            match port {
                Some(port) => port.call(command).await,
                None => Err(Error::new(Code::Unsupported, "alerts are not offered here")),
            }
        })
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Acked>> {
        let port = self.write.clone();
        Box::pin(async move { port.call(write).await })
    }

    fn continuous_changed(&self) {
        if let Some(registry) = &self.continuous {
            registry.wake();
        }
    }

    fn backfill(
        &self,
        query: &ContinuousDef,
        times: TimeRange,
    ) -> Result<mpsc::Receiver<Result<Progress>>> {
        match &self.continuous {
            Some(registry) => registry.backfill(query, times),
            None => Err(Error::new(Code::Unsupported, "continuous queries do not run here")),
        }
    }

    fn delete(&self, delete: Delete) -> BoxFuture<'static, Result<Deleted>> {
        let port = self.delete.clone();
        Box::pin(async move { port.call(delete).await })
    }

    fn compact(&self, compact: Compact) -> BoxFuture<'static, Result<()>> {
        let port = self.compact.clone();
        Box::pin(async move { port.call(compact).await })
    }
}

/// Everything that answers queries. Made once; the actor is made from it, again after a panic.
#[derive(Clone)]
pub struct QueryService {
    engine: Arc<engine::Engine>,
    pools: Pools,
}

impl QueryService {
    /// Prepares the engine: functions, memory, and an emptied spill folder `<data_dir>/tmp`.
    /// Without `plugins` statements have the functions of the engine alone.
    ///
    /// # Errors
    /// `io_error` where the spill folder cannot be made or emptied.
    pub fn new(
        settings: Arc<Settings>,
        env: Env,
        pools: Pools,
        tables: Arc<dyn Tables>,
        changes: Arc<dyn Changes>,
        inspect: Arc<dyn Inspect>,
        plugins: Option<Arc<PluginHost>>,
        pressure: Arc<Pressure>,
    ) -> Result<Self> {
        let engine = engine::Engine::new(
            settings,
            env,
            pools.clone(),
            tables,
            changes,
            inspect,
            plugins,
            pressure,
        )?;
        Ok(QueryService { engine: Arc::new(engine), pools })
    }

    /// An actor over the engine.
    #[must_use]
    pub fn actor(&self) -> QueryActor {
        QueryActor { service: self.clone() }
    }
}

/// Answers [`Parse`], [`Prepare`], [`Query`], [`Follow`], [`Keep`] and [`PlanRule`].
pub struct QueryActor {
    service: QueryService,
}

impl Actor for QueryActor {}

impl Handle<Parse> for QueryActor {
    fn handle(&mut self, message: Parse, reply: Reply<Parse>, cx: &mut Cx<Self>) {
        let engine = self.service.engine.clone();
        // Parsing is computing: short for most texts, long for megabytes of INSERT.
        let work = async move { engine.parse(&message.sql) };
        let task = self.service.pools.spawn(Pool::Query, "parse", work);
        cx.answer(reply, async move { task.await? });
    }
}

impl Handle<Prepare> for QueryActor {
    fn handle(&mut self, message: Prepare, reply: Reply<Prepare>, cx: &mut Cx<Self>) {
        let engine = self.service.engine.clone();
        let work = async move { engine.prepare(message).await };
        let task = self.service.pools.spawn(Pool::Query, "prepare", work);
        cx.answer(reply, async move { task.await? });
    }
}

impl Handle<Query> for QueryActor {
    fn handle(&mut self, message: Query, reply: Reply<Query>, cx: &mut Cx<Self>) {
        let engine = self.service.engine.clone();
        cx.answer(reply, async move { engine.run(message).await });
    }
}

impl Handle<Follow> for QueryActor {
    fn handle(&mut self, message: Follow, reply: Reply<Follow>, cx: &mut Cx<Self>) {
        let engine = self.service.engine.clone();
        let work = async move { engine.follow(message).await };
        let task = self.service.pools.spawn(Pool::Query, "follow", work);
        cx.answer(reply, async move { task.await? });
    }
}

impl Handle<Keep> for QueryActor {
    fn handle(&mut self, message: Keep, reply: Reply<Keep>, cx: &mut Cx<Self>) {
        let engine = self.service.engine.clone();
        let work = async move { engine.keep(message).await };
        let task = self.service.pools.spawn(Pool::Query, "keep", work);
        cx.answer(reply, async move { task.await? });
    }
}

impl Handle<PlanRule> for QueryActor {
    fn handle(&mut self, PlanRule(def): PlanRule, reply: Reply<PlanRule>, cx: &mut Cx<Self>) {
        let engine = self.service.engine.clone();
        let work = async move { engine.plan_rule(&def).await };
        let task = self.service.pools.spawn(Pool::Query, "plan rule", work);
        cx.answer(reply, async move { task.await? });
    }
}
