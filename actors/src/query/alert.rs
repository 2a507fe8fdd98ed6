//! Alert rules as queries: what a rule's text means, how it is evaluated, and the statements
//! about alerts.
//!
//! ```text
//! ON (SELECT …) WHEN condition ──► SELECT *, (condition) AS holds FROM (SELECT …) ──► plan
//!        ┌────────────────────────────────────────────────────────────────────────────┘
//!        ├─ class rows:  filter and projection over one table ─► Shape, run on each commit
//!        └─ class query: anything else ─► kept plan, run at instants of the grid
//! ```
//!
//! In a rule of class query `now()` is the instant of the evaluation, and rows of a later time
//! are not seen. So an evaluation of the past, in a backtest, is the same as one of the present.

mod channel;
mod past;
mod shape;
mod statement;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Volatility};
use futures::StreamExt;
use kymo_kernel::alert::{AlertDef, SilenceDef, no_alert};
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{
    AlertCommand, AlertDdl, AlertDone, Message, Outcome, SessionContext, Statement,
};
use kymo_kernel::pools::Pool;
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::build::has_function;
use super::command::{Command, Planned};
use super::engine::Engine;
use super::error::from_engine;
use super::interrupt::Listening;
use super::live::{Class, classify};
use super::names::rename;
use super::plan::{self, parsed};
use super::plugin::{self, Called, Terms};
use super::provider::KymoTable;
use super::running::Limits;
use super::stream::once;
use crate::alert::{backtest, template};

pub(super) use channel::spelled_out as channels;
pub(crate) use past::{Instants, by_instant};
pub(crate) use shape::{Input, Own, Pairs, Shape};
pub(super) use statement::read;
pub(crate) use statement::{AlertStatement, Backtest, Rule, Wanted};

/// The column of a rule's plan that says whether its condition holds.
const HOLDS: &str = "__holds";

/// Plans a rule, for who evaluates it. Alerts → query.
#[derive(Debug)]
pub(crate) struct PlanRule(pub(crate) Arc<AlertDef>);

impl Message for PlanRule {
    type Reply = PlannedRule;
}

/// A rule that can be evaluated.
#[derive(Clone)]
pub(crate) struct PlannedRule {
    /// What the columns of its rows are.
    pub(crate) layout: Arc<Layout>,
    /// How it is evaluated.
    pub(crate) kind: Kind,
    /// The tables that it reads.
    pub(crate) tables: Arc<[(TableName, TableId)]>,
    /// Whether it calls functions of plugins, so that it has to be planned again when they
    /// change.
    pub(crate) lent: bool,
}

/// How a rule is evaluated.
#[derive(Clone)]
pub(crate) enum Kind {
    /// On the rows of each commit.
    Rows(Arc<Shape>, Own),
    /// As a query at instants.
    Query(Arc<RuleQuery>),
}

impl Kind {
    /// The word for it.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Kind::Rows(..) => Class::ROWS,
            Kind::Query(_) => "query",
        }
    }
}

/// What the columns of a rule's rows are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Places and names of the labels.
    pub(crate) labels: Vec<usize>,
    /// The names of the labels.
    pub(crate) names: Vec<String>,
    /// The place of the value.
    pub(crate) value: Option<usize>,
    /// The place of whether the condition holds.
    pub(crate) holds: usize,
}

impl Layout {
    /// Reads it from the shape of a rule's rows, whose last column is the condition.
    fn of(schema: &SchemaRef) -> Result<Layout> {
        let holds = schema.fields().len().saturating_sub(1);
        let condition = schema.field(holds).data_type();
        if !matches!(condition, DataType::Boolean | DataType::Null) {
            let text = format!("WHEN is no condition: its values are of type {condition}");
            return Err(Error::new(Code::InvalidInput, text).with_hint("write a comparison"));
        }
        let fields = || schema.fields().iter().take(holds).enumerate();
        let labels: Vec<usize> =
            fields().filter(|(_, field)| is_text(field.data_type())).map(|(at, _)| at).collect();
        let names = labels.iter().map(|at| schema.field(*at).name().clone()).collect();
        let numeric = || fields().filter(|(_, field)| field.data_type().is_numeric());
        let named = numeric().find(|(_, field)| field.name() == "value");
        let value = named.or_else(|| numeric().next()).map(|(at, _)| at);
        Ok(Layout { labels, names, value, holds })
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, value) => is_text(value),
        _ => false,
    }
}

/// A rule of class query, planned once.
pub(crate) struct RuleQuery {
    engine: Arc<Engine>,
    session: Arc<SessionContext>,
    /// Without instances of plugins.
    plan: LogicalPlan,
    /// The functions of plugins that it calls.
    calls: Vec<Called>,
    /// Which trials of their versions it takes part in.
    seed: u64,
    names: super::command::Names,
    timeout: Duration,
    most: usize,
    /// How far back it looks, where one query can answer for many instants.
    back_ns: Option<i64>,
}

impl RuleQuery {
    /// The rows of the rule at an instant. Belongs on the query runtime.
    ///
    /// # Errors
    /// Those of running a query; `limit_reached` for more rows than a rule may have label sets.
    pub(crate) async fn evaluate(&self, instant_ns: i64) -> Result<RecordBatch> {
        let rows = self.in_time(self.run(&self.plan, instant_ns)).await?;
        let schema = rename(rows.schema_ref(), &self.names);
        rows.with_schema(schema).map_err(|error| from_engine(error.into()))
    }

    /// The rows of the rule at several instants, as [`by_instant`] takes them apart; `None` for a
    /// rule that has to be evaluated at each by itself.
    ///
    /// # Errors
    /// As for [`RuleQuery::evaluate`].
    pub(crate) async fn evaluate_all(&self, instants: Instants) -> Result<Option<RecordBatch>> {
        let Some(back_ns) = self.back_ns else { return Ok(None) };
        let plan = past::over(&self.plan, instants, back_ns)?;
        self.in_time(self.run(&plan, instants.last)).await.map(Some)
    }

    async fn in_time(&self, run: impl Future<Output = Result<RecordBatch>>) -> Result<RecordBatch> {
        let clock = self.engine.env().clock.clone();
        tokio::select! {
            rows = Box::pin(run) => rows,
            () = clock.sleep(self.timeout) => {
                let text = format!("the rule's query took longer than {:?}", self.timeout);
                Err(Error::new(Code::Deadline, text)
                    .with_hint("narrow the query, or raise alerts.timeout_ms"))
            }
        }
    }

    /// The error of a rule that is about to be planned again.
    fn changed(&self) -> Error {
        let names: Vec<&str> = self.calls.iter().map(|call| call.key.as_str()).collect();
        let text = format!("what the rule calls has changed: {}", names.join(", "));
        Error::new(Code::PluginUnavailable, text).with_hint("it is being planned again")
    }

    async fn run(&self, plan: &LogicalPlan, instant_ns: i64) -> Result<RecordBatch> {
        let engine = &self.engine;
        let listening = Listening::default();
        let gone = listening.gone();
        let terms = || Terms {
            cancel: gone.flag(),
            deadline: Some(engine.env().clock.monotonic().saturating_add(self.timeout)),
            seed: self.seed,
            time_ns: instant_ns,
        };
        let (mut state, lending) = engine.lend_on(&self.session, &self.calls, terms)?;
        let plan = match &lending {
            Some(lending) => plugin::bound(plan, lending)?.ok_or_else(|| self.changed())?,
            None => plan.clone(),
        };
        let instant = DateTime::from_timestamp_nanos(instant_ns);
        state.execution_props_mut().query_execution_start_time = Some(instant);
        let ran = engine.run_plan(state, lending.as_ref(), plan, &gone).await?;
        let mut stream = ran.1;
        let (mut batches, mut rows) = (Vec::new(), 0);
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(from_engine)?;
            rows += batch.num_rows();
            if rows > self.most {
                let text = format!("the rule's query has more than {} rows", self.most);
                return Err(Error::new(Code::LimitReached, text).with_hint(
                    "let the query have a row for each label set, or raise alerts.max_label_sets",
                ));
            }
            batches.push(batch);
        }
        concat_batches(&stream.schema(), &batches).map_err(|error| from_engine(error.into()))
    }
}

/// Who a rule's query runs as.
fn session_of(def: &AlertDef) -> Arc<SessionContext> {
    Arc::new(SessionContext {
        user: def.owner.clone(),
        // Only administrators create rules.
        admin: true,
        database: def.database.clone(),
        schema: def.schema.clone(),
        settings: Default::default(),
        read_only: true,
    })
}

impl Engine {
    /// Plans a rule.
    ///
    /// # Errors
    /// Those of planning; `unsupported` for what rules cannot use.
    pub(super) async fn plan_rule(self: &Arc<Self>, def: &AlertDef) -> Result<PlannedRule> {
        // Texts of files have not been part of a statement that was read.
        if def.origin.is_some() {
            self.one_select(&def.query)?;
        }
        let condition = def.condition.as_deref().unwrap_or("TRUE");
        let query = &def.query;
        let text = format!("SELECT *, ({condition}) AS \"{HOLDS}\" FROM ({query}\n) AS \"rule\"");
        let statements = self.parse(&text).map_err(without_place)?;
        let [statement] = statements.as_slice() else {
            return Err(Error::new(Code::Syntax, "a rule has one query and one condition"));
        };
        let Command::Plan(planned) = &parsed(statement)?.command else {
            return Err(Error::new(Code::Syntax, "a rule has a SELECT"));
        };
        if planned.writes || planned.sets || parsed(statement)?.parameters > 0 {
            let text = "a rule's query changes nothing and has no parameters";
            return Err(Error::new(Code::Unsupported, text));
        }
        let session = session_of(def);
        let seed = self.env().random.next_u64();
        let planning = self.rule_plan(statement, planned, &session, seed).await;
        let (plan, calls) = planning.map_err(without_place)?;
        let schema = rename(&Arc::new(plan.schema().as_arrow().clone()), &planned.names);
        let layout = Arc::new(Layout::of(&schema)?);
        let (tables, lent) = (tables(&plan)?.into(), !calls.is_empty());
        let kind = match classify(&plan) {
            Class::Rows(table) if calls.is_empty() && !depends_on_now(&plan)? => {
                let (shape, own) = shape::compile(&self.state(&session), &plan, &table)?;
                Kind::Rows(Arc::new(shape), own)
            }
            _ => Kind::Query(Arc::new(RuleQuery {
                back_ns: past::looks_back(&plan),
                engine: self.clone(),
                session,
                plan: until_now(plan)?,
                calls,
                seed,
                names: planned.names.clone(),
                timeout: Duration::from_millis(self.settings().alerts.timeout_ms),
                most: self.settings().alerts.max_label_sets,
            })),
        };
        Ok(PlannedRule { layout, kind, tables, lent })
    }

    /// Refuses a text that is not one query.
    fn one_select(&self, query: &str) -> Result<()> {
        let statements = self.parse(query).map_err(without_place)?;
        let reads = match statements.as_slice() {
            [only] => only.verb == "SELECT",
            _ => false,
        };
        if reads {
            return Ok(());
        }
        Err(Error::new(Code::Syntax, "the query of a rule is one SELECT"))
    }

    /// The plan of a rule without instances of plugins, and the functions of plugins in it.
    async fn rule_plan(
        &self,
        statement: &Statement,
        planned: &Planned,
        session: &Arc<SessionContext>,
        seed: u64,
    ) -> Result<(LogicalPlan, Vec<Called>)> {
        let clock = &self.env().clock;
        let deadline = clock.monotonic() + Duration::from_millis(self.settings().alerts.timeout_ms);
        let terms = || Terms {
            cancel: Arc::default(),
            deadline: Some(deadline),
            seed,
            time_ns: clock.now_ns(),
        };
        let (state, lending) = self.lend_on(session, &planned.calls, terms)?;
        let plan = plan::plan(&state, &self.tables().catalog(), statement, planned).await;
        let Some(lending) = lending else { return Ok((plan?, Vec::new())) };
        let plan = plan.map_err(|error| lending.explain(error, &planned.calls))?;
        lending.verdict()?;
        let own = self.state(session);
        let calls = planned.calls.iter().filter(|call| !has_function(&own, call)).cloned();
        Ok((plugin::unbound(plan)?, calls.collect()))
    }

    /// Carries out a statement about alerts.
    ///
    /// # Errors
    /// Those of planning a rule; those of changing definitions.
    pub(super) async fn alert(
        self: &Arc<Self>,
        statement: &AlertStatement,
        session: &Arc<SessionContext>,
    ) -> Result<AlertDone> {
        let now = self.env().clock.now_ns();
        let command = match statement.clone() {
            AlertStatement::Create { rule, if_not_exists } => {
                let alert = Box::new(self.checked(*rule, session).await?);
                AlertCommand::Change(AlertDdl::Create { alert, if_not_exists })
            }
            AlertStatement::Drop { name, if_exists } => {
                AlertCommand::Change(AlertDdl::Drop { name, if_exists })
            }
            AlertStatement::Pause { name, paused } => {
                AlertCommand::Change(AlertDdl::Pause { name, paused })
            }
            AlertStatement::Silence { matcher, for_ns, comment } => {
                let (author, ends_ns) = (session.user.clone(), now.saturating_add(for_ns));
                let silence =
                    SilenceDef { id: 0, matcher, starts_ns: now, ends_ns, author, comment };
                AlertCommand::Change(AlertDdl::Silence(silence))
            }
            AlertStatement::DropSilence(id) => AlertCommand::Change(AlertDdl::DropSilence { id }),
            AlertStatement::CreateChannel { channel, if_not_exists } => {
                AlertCommand::Change(AlertDdl::CreateChannel { channel, if_not_exists })
            }
            AlertStatement::DropChannel { name, if_exists } => {
                AlertCommand::Change(AlertDdl::DropChannel { name, if_exists })
            }
            AlertStatement::Ack { matcher, comment } => {
                AlertCommand::Ack { matcher, author: session.user.clone(), comment }
            }
        };
        self.changes().alerts(command).await
    }

    /// The definition of a rule that can be planned and whose texts can be filled.
    async fn checked(
        self: &Arc<Self>,
        rule: Rule,
        session: &Arc<SessionContext>,
    ) -> Result<AlertDef> {
        let Rule { def, query } = rule;
        let def = AlertDef {
            database: session.database.clone(),
            schema: session.schema.clone(),
            owner: session.user.clone(),
            ..def
        };
        // By itself first: its errors point into the client's text.
        if let Command::Plan(planned) = &parsed(&query)?.command {
            let seed = self.env().random.next_u64();
            self.rule_plan(&query, planned, &session_of(&def), seed).await?;
        }
        let planned = self.plan_rule(&def).await?;
        template::check_all(&def, &planned.layout.names)?;
        Ok(def)
    }

    /// Runs a rule over the past.
    ///
    /// # Errors
    /// Those of planning and evaluating it; `limit_reached`; `cancelled`.
    pub(super) async fn backtest(
        self: &Arc<Self>,
        wanted: &Backtest,
        session: &Arc<SessionContext>,
        limits: Limits,
    ) -> Result<Outcome> {
        let def = match &wanted.rule {
            Wanted::Named(name) => {
                let catalog = self.tables().catalog();
                catalog.alerts.get(name).ok_or_else(|| no_alert(name))?.as_ref().clone()
            }
            Wanted::New(rule) => self.checked(rule.as_ref().clone(), session).await?,
        };
        let planned = self.plan_rule(&def).await?;
        let engine = self.clone();
        let version = move |table| engine.tables().version(table);
        let until_ns = self.env().clock.now_ns();
        let range = (until_ns.saturating_sub(wanted.over_ns), until_ns);
        let work = backtest::run(
            def,
            planned,
            self.settings().alerts.clone(),
            range,
            Arc::new(version) as Arc<dyn Fn(TableId) -> Option<Arc<Version>> + Send + Sync>,
            self.pools().clone(),
        );
        let task = self.pools().spawn(Pool::Query, "backtest", work);
        let rows = limits.race(async move { task.await? }).await?;
        Ok(Outcome::Rows { schema: rows.schema(), stream: once(rows), settings: Vec::new() })
    }
}

/// The error without its place: it would be one in the text that we made of the rule.
fn without_place(error: Error) -> Error {
    let plain = Error::new(error.code(), error.message());
    match error.hint() {
        Some(hint) => plain.with_hint(hint),
        None => plain,
    }
}

/// Whether a plan has functions whose value depends on when it runs.
fn depends_on_now(plan: &LogicalPlan) -> Result<bool> {
    let mut depends = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(call) = expr {
                    depends |= call.func.signature().volatility != Volatility::Immutable;
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(from_engine)?;
    Ok(depends)
}

/// A call of `now()`.
fn now_call(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(call) if call.func.name() == "now")
}

/// A stored table of a plan.
fn stored(plan: &LogicalPlan) -> Option<(TableName, TableId, String)> {
    let LogicalPlan::TableScan(scan) = plan else { return None };
    let provider = source_as_provider(&scan.source).ok()?;
    let table = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>()?;
    let def = table.def();
    Some((def.name.clone(), def.id, def.schema.time().ok()?.name.clone()))
}

fn tables(plan: &LogicalPlan) -> Result<Vec<(TableName, TableId)>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        found.extend(stored(node).map(|(name, id, _)| (name, id)));
        Ok(TreeNodeRecursion::Continue)
    })
    .map_err(from_engine)?;
    Ok(found)
}

/// The plan over the rows that are there up to the instant at which it runs.
fn until_now(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| {
        let Some((_, _, time)) = stored(&node) else { return Ok(Transformed::no(node)) };
        let (qualifier, field) = node.schema().qualified_field_with_unqualified_name(&time)?;
        let time = Expr::Column(Column::new(qualifier.cloned(), field.name()));
        let now = datafusion::functions::datetime::expr_fn::now();
        let bounded = LogicalPlanBuilder::from(node).filter(time.lt_eq(now))?.build()?;
        Ok(Transformed::yes(bounded))
    })
    .data()
    .map_err(from_engine)
}
