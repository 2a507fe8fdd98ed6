//! Queries that are followed: which ones can be, and how a commit becomes their rows.
//!
//! ```text
//! SUBSCRIBE TO SELECT … ── plan ──► classify ──► compile ──► steps: filter, projection …
//!                              │                               │ changes(committed batch)
//!                              │                               │ snapshot(version): a query
//!                              └──► windows: everything else
//! ```
//!
//! What is compiled here are physical expressions over the columns of one table; a commit
//! runs through them as it is, without planning and without leaving Arrow. Queries whose
//! result changes with later rows are kept by [`windows`].

mod classify;
mod compile;
mod statement;
mod windows;

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, StringArray};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use futures::future::{BoxFuture, FutureExt};
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{
    BatchStream, Follow, Followed, Following, Keep, Outcome, SessionContext, Statement,
};
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::Tables;
use super::build::has_function;
use super::command::{Command, Planned};
use super::engine::Engine;
use super::error::from_engine;
use super::names::rename;
use super::plan::{self, parsed};
use super::provider::KymoTable;

pub(super) use classify::{Class, classify};
use compile::{Compiled, compile};

pub(super) use statement::read;

/// A query that is followed.
struct FollowedQuery {
    engine: Arc<Engine>,
    statement: Arc<Statement>,
    parameters: Vec<ArrayRef>,
    session: Arc<SessionContext>,
    table: Arc<TableDef>,
    class: &'static str,
    compiled: Compiled,
    schema: SchemaRef,
}

impl Followed for FollowedQuery {
    fn table(&self) -> &Arc<TableDef> {
        &self.table
    }

    fn text(&self) -> &str {
        &self.statement.text
    }

    fn class(&self) -> &'static str {
        self.class
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn changes(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        self.compiled.run(rows, &self.schema)
    }

    fn snapshot(&self, version: Arc<Version>) -> BoxFuture<'static, Result<BatchStream>> {
        let (engine, statement) = (self.engine.clone(), self.statement.clone());
        let (parameters, session) = (self.parameters.clone(), self.session.clone());
        async move { engine.at_version(statement, parameters, session, version).await }.boxed()
    }
}

/// The tables as they are, but some of them as they were at a version.
struct Pinned {
    tables: Arc<dyn Tables>,
    versions: Vec<Arc<Version>>,
}

impl Tables for Pinned {
    fn catalog(&self) -> Arc<Snapshot> {
        self.tables.catalog()
    }

    fn version(&self, table: TableId) -> Option<Arc<Version>> {
        let pinned = self.versions.iter().find(|version| version.table.id == table);
        pinned.cloned().or_else(|| self.tables.version(table))
    }
}

/// The plan over pinned tables.
///
/// # Errors
/// Those of the engine.
pub(super) fn pinned(plan: LogicalPlan, tables: &Arc<dyn Tables>) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::TableScan(mut scan) = node else { return Ok(Transformed::no(node)) };
        let provider = source_as_provider(&scan.source)?;
        if let Some(table) = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>() {
            scan.source = provider_as_source(Arc::new(table.over(tables.clone())));
        }
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    })
    .data()
    .map_err(from_engine)
}

/// The query of a statement that is to be followed, with what the statement wants beside it.
fn wanted(statement: &Arc<Statement>) -> Result<(Arc<Statement>, Option<bool>)> {
    match &parsed(statement)?.command {
        Command::Subscribe(subscribe) => Ok((subscribe.query.clone(), subscribe.snapshot)),
        Command::Plan(planned) if !planned.writes && statement.verb == "SELECT" => {
            Ok((statement.clone(), None))
        }
        _ => Err(Error::new(
            Code::Unsupported,
            format!("{} cannot be subscribed to", statement.verb),
        )
        .with_hint("subscribe to a SELECT")),
    }
}

fn planned(statement: &Statement) -> Result<&Planned> {
    match &parsed(statement)?.command {
        Command::Plan(planned) => Ok(planned),
        _ => Err(Error::internal("a subscription without a query")),
    }
}

/// The shape of what `EXPLAIN SUBSCRIBE` answers.
pub(super) fn explanation() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, false);
    Arc::new(Schema::new(vec![text("class"), text("why")]))
}

impl Engine {
    /// Plans a query to be followed.
    ///
    /// # Errors
    /// Those of planning; `unsupported` naming the part that keeps it from being followed.
    pub(super) async fn follow(self: &Arc<Self>, message: Follow) -> Result<Following> {
        let Follow { statement, parameters, session } = message;
        let (statement, snapshot) = wanted(&statement)?;
        let planned = planned(&statement)?;
        let (plan, class) = self.followed_plan(&statement, &parameters, &session).await?;
        let (table, class) = match class {
            Class::Rows(table) => (table, Class::ROWS),
            Class::Unsupported(why) => {
                return Err(Error::new(
                    Code::Unsupported,
                    format!("the query cannot be followed: {why}"),
                )
                .with_hint("subscribe to columns and conditions of one table"));
            }
        };
        let state = self.state(&session);
        let compiled = compile(&state, &plan)?;
        let schema = rename(compiled.schema(), &planned.names);
        let engine = self.clone();
        let query = FollowedQuery {
            engine,
            statement,
            parameters,
            session,
            table,
            class,
            compiled,
            schema,
        };
        Ok(Following { query: Arc::new(query), snapshot })
    }

    /// How a query would be followed, and why.
    ///
    /// # Errors
    /// Those of planning.
    pub(super) async fn explain_subscribe(
        self: &Arc<Self>,
        statement: Arc<Statement>,
        parameters: Vec<ArrayRef>,
        session: Arc<SessionContext>,
    ) -> Result<RecordBatch> {
        let (query, _) = wanted(&statement)?;
        let (_, class) = self.followed_plan(&query, &parameters, &session).await?;
        let (class, why) = match class {
            Class::Rows(table) => (
                Class::ROWS,
                format!(
                    "columns and conditions of {} alone: each commit is evaluated by itself",
                    table.name
                ),
            ),
            Class::Unsupported(_) => match self.keep(Keep { statement, parameters, session }).await
            {
                Ok(kept) => (kept.query.class(), kept.query.why().to_owned()),
                Err(error) if error.code() == Code::Unsupported => {
                    (Class::UNSUPPORTED, error.message().to_owned())
                }
                Err(error) => return Err(error),
            },
        };
        let columns: [ArrayRef; 2] =
            [Arc::new(StringArray::from(vec![class])), Arc::new(StringArray::from(vec![why]))];
        RecordBatch::try_new(explanation(), columns.to_vec())
            .map_err(|error| from_engine(error.into()))
    }

    /// The plan of a query that is to be followed, and how each commit can be.
    async fn followed_plan(
        &self,
        statement: &Statement,
        parameters: &[ArrayRef],
        session: &Arc<SessionContext>,
    ) -> Result<(LogicalPlan, Class)> {
        let planned = planned(statement)?;
        // Functions of plugins are there for planning, so that the reason can name them.
        let (state, lending) = self.lend_kept(session, planned, Arc::default(), None)?;
        let plan = self.query_plan(&state, statement, parameters).await?;
        let own = self.state(session);
        let lent = planned.calls.iter().find(|call| !has_function(&own, call));
        let class = match lent {
            _ if planned.sets => Class::Unsupported("set_config() changes the session".to_owned()),
            Some(call) if lending.is_some() => Class::Unsupported(format!(
                "{} is a function of a plugin, which may change at any time",
                call.key
            )),
            _ => classify(&plan),
        };
        Ok((plan, class))
    }

    pub(super) async fn query_plan(
        &self,
        state: &SessionState,
        statement: &Statement,
        parameters: &[ArrayRef],
    ) -> Result<LogicalPlan> {
        let (planned, snapshot) = (planned(statement)?, self.tables().catalog());
        if parsed(statement)?.parameters == 0 && parameters.is_empty() {
            return plan::plan(state, &snapshot, statement, planned).await;
        }
        let values = parameters
            .iter()
            .map(|value| ScalarValue::try_from_array(value, 0).map_err(from_engine))
            .collect::<Result<Vec<_>>>()?;
        plan::plan_with(state, &snapshot, statement, planned, &values).await
    }

    async fn at_version(
        self: &Arc<Self>,
        statement: Arc<Statement>,
        parameters: Vec<ArrayRef>,
        session: Arc<SessionContext>,
        version: Arc<Version>,
    ) -> Result<BatchStream> {
        let versions = vec![version];
        let tables: Arc<dyn Tables> = Arc::new(Pinned { tables: self.tables().clone(), versions });
        let change = move |_: &SessionState, plan| pinned(plan, &tables);
        match self.read(statement, parameters, session, Arc::new(change)).await? {
            Outcome::Rows { stream, .. } => Ok(stream),
            Outcome::Done { .. } => Err(Error::internal("a query without rows")),
        }
    }
}
