//! Plans and runs statements: the query actor's work, free of actors.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::DateTime;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Env;
use kymo_kernel::message::{
    AlertCommand, Ddl, Kept, Outcome, PluginCommand, PluginDdl, Prepare, Prepared, Query, Runnable,
    SessionContext, SettingChange, Statement,
};
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::{Pool, Pools};
use kymo_kernel::schema::SYSTEM_SCHEMA;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{PluginHost, untried};
use tokio::sync::{mpsc, oneshot};

use super::allow::{administrator, writable};
use super::catalog::{Databases, Sources};
use super::command::{Command, Define, PartialName, Planned, Retained};
use super::context::Caller;
use super::error::{as_written, from_engine};
use super::functions::Bounds;
use super::interrupt::{Gone, Listening, interruptible};
use super::manage::Manage;
use super::names::rename;
use super::owners::Owners;
use super::plan::{self, Plan, parsed};
use super::plugin::{self, Called, Lending, Terms};
use super::rewrite::Rewriter;
use super::running::{Limits, Running, Ticket};
use super::shortage::Shortage;
use super::stream::{Answer, Rows, once};
use super::system::{ALERT_FILES, Inspect, Inspector};
use super::{Changes, Tables, build, call, continuous, guc, live, params, parse, show, system};
use crate::alert::backtest;
use crate::memory::pressure::Pressure;

/// Rows of a query that changes its session: it is held whole.
const MAX_SETTING_ROWS: usize = 1_000;

/// Everything that planning and running needs. One a process.
pub(super) struct Engine {
    settings: Arc<Settings>,
    env: Env,
    pools: Pools,
    rewriter: Rewriter,
    base: SessionState,
    tables: Arc<dyn Tables>,
    changes: Arc<dyn Changes>,
    running: Arc<Running>,
    plugins: Option<Arc<PluginHost>>,
}

/// A statement on its way to the query runtime.
pub(super) struct Job {
    statement: Arc<Statement>,
    prepared: Option<Arc<Prepared>>,
    parameters: Vec<ArrayRef>,
    pub(super) session: Arc<SessionContext>,
    pub(super) limits: Limits,
    ticket: Ticket,
    /// What is done to the plan before it runs.
    change: Option<Change>,
}

/// Makes another plan of one.
pub(super) type Change =
    Arc<dyn Fn(&SessionState, LogicalPlan) -> Result<LogicalPlan> + Send + Sync>;

impl Job {
    /// What is to be planned. The tree stays in the statement: a deep one is copied on threads
    /// of the query pool only, whose stacks are made for it.
    pub(super) fn planned(&self) -> Result<&Planned> {
        match &parsed(&self.statement)?.command {
            Command::Plan(planned) | Command::Delete(planned) => Ok(planned),
            _ => Err(Error::internal("a statement without a plan was given to the engine")),
        }
    }

    /// Whether it deletes rows.
    fn deletes(&self) -> bool {
        parsed(&self.statement).is_ok_and(|parsed| matches!(parsed.command, Command::Delete(_)))
    }
}

impl Engine {
    /// Prepares everything that outlives a statement.
    ///
    /// # Errors
    /// `io_error` where the spill folder cannot be made; `internal`.
    pub(super) fn new(
        settings: Arc<Settings>,
        env: Env,
        pools: Pools,
        tables: Arc<dyn Tables>,
        changes: Arc<dyn Changes>,
        inspect: Arc<dyn Inspect>,
        plugins: Option<Arc<PluginHost>>,
        pressure: Arc<Pressure>,
    ) -> Result<Self> {
        let patience = Duration::from_millis(settings.memory.wait_ms);
        let memory = Shortage::new(pressure, patience);
        let limits = &settings.query;
        let clock = env.clock.clone();
        let running = Arc::new(Running::new(clock, limits.max_running, limits.max_waiting, memory));
        let statics = build::statics()?;
        let inspector = Arc::new(Inspector {
            settings: settings.clone(),
            tables: tables.clone(),
            running: running.clone(),
            inspect,
        });
        let owners = Owners { tables: tables.clone(), settings: settings.clone() };
        let sources = Arc::new(Sources {
            owners: owners.clone(),
            tables: tables.clone(),
            changes: changes.clone(),
            inspector,
            statics: statics.clone(),
        });
        let runtime = build::runtime(&settings, &env)?;
        let bounds = Bounds::of(&settings.query);
        let parts = build::Parts { bounds, clock: env.clock.clone(), owners };
        let databases = Arc::new(Databases::new(sources));
        let base = build::base(pools.sizes().query, parts, runtime, databases, &statics)?;
        let rewriter = Rewriter::new();
        Ok(Engine { settings, env, pools, rewriter, base, tables, changes, running, plugins })
    }

    /// Splits and parses SQL text.
    ///
    /// # Errors
    /// `too_large`, `syntax_error`, `unsupported`.
    pub(super) fn parse(&self, sql: &str) -> Result<Vec<Arc<Statement>>> {
        let most = self.settings.query.max_sql_bytes;
        if sql.len() as u64 > most {
            return Err(Error::new(
                Code::TooLarge,
                format!(
                    "the SQL text has {} bytes, more than query.max_sql_bytes = {most}",
                    sql.len()
                ),
            ));
        }
        parse::parse(sql, &self.rewriter)
    }

    /// The state for a statement that calls no plugins.
    pub(super) fn state(&self, session: &Arc<SessionContext>) -> SessionState {
        let mut state = build::for_session(&self.base, session);
        state.mark_start_execution();
        let now = DateTime::from_timestamp_nanos(self.env.clock.now_ns());
        state.execution_props_mut().query_execution_start_time = Some(now);
        state
    }

    /// The state for a statement, with the functions of plugins that it calls; `None` for one
    /// that calls only the engine's own.
    pub(super) fn lend(
        &self,
        session: &Arc<SessionContext>,
        planned: &Planned,
        cancel: Arc<AtomicBool>,
        deadline: Option<Duration>,
    ) -> Result<(SessionState, Option<Arc<Lending>>)> {
        let seed = || self.env.random.next_u64();
        self.lend_on(session, &planned.calls, || self.terms(cancel, deadline, seed()))
    }

    /// As [`Engine::lend`], for one of the runs of a query whose result is kept: it gets no
    /// version on trial, so that no result is of one version here and of another one there.
    pub(super) fn lend_kept(
        &self,
        session: &Arc<SessionContext>,
        planned: &Planned,
        cancel: Arc<AtomicBool>,
        deadline: Option<Duration>,
    ) -> Result<(SessionState, Option<Arc<Lending>>)> {
        let seed = || untried(self.env.random.next_u64());
        self.lend_on(session, &planned.calls, || self.terms(cancel, deadline, seed()))
    }

    fn terms(&self, cancel: Arc<AtomicBool>, deadline: Option<Duration>, seed: u64) -> Terms {
        Terms { cancel, deadline, seed, time_ns: self.env.clock.now_ns() }
    }

    /// As [`Engine::lend`], with what ends the calls and what they may know.
    pub(super) fn lend_on(
        &self,
        session: &Arc<SessionContext>,
        calls: &[Called],
        terms: impl FnOnce() -> Terms,
    ) -> Result<(SessionState, Option<Arc<Lending>>)> {
        let mut state = self.state(session);
        let Some(host) = &self.plugins else { return Ok((state, None)) };
        if calls.iter().all(|called| build::has_function(&state, called)) {
            return Ok((state, None));
        }
        let lending = Lending::new(host, &state, session, self.tables.catalog(), terms());
        lending.register(&mut state, calls)?;
        Ok((state, Some(lending)))
    }

    /// Whether the names that a statement calls still mean what they meant for this lending.
    pub(super) fn still_lent(&self, lending: &Lending, planned: &Planned) -> bool {
        let plugins = self.plugins.as_ref().map(|host| host.registry().snapshot());
        let catalog = self.tables.catalog();
        plugins.is_some_and(|plugins| lending.holds(&planned.calls, &plugins, &catalog))
    }

    /// The settings of the process.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Where queries run.
    pub(super) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// The outside world.
    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// The ways to those who change anything.
    pub(super) fn changes(&self) -> &Arc<dyn Changes> {
        &self.changes
    }

    /// The tables as they are now.
    pub(super) fn tables(&self) -> &Arc<dyn Tables> {
        &self.tables
    }

    /// Plans a statement without running it.
    ///
    /// # Errors
    /// Those of planning.
    pub(super) async fn prepare(&self, message: Prepare) -> Result<Arc<Prepared>> {
        let Prepare { statement, types, session } = message;
        let (plan, parameters, columns) = match &parsed(&statement)?.command {
            Command::Plan(planned) | Command::Delete(planned) => {
                // Nobody can cancel a preparation; it has the time of a statement.
                let limit = self.time_limit(&session, None);
                let deadline = limit.map(|limit| self.env.clock.monotonic() + limit);
                let (state, lending) = self.lend(&session, planned, Arc::default(), deadline)?;
                let snapshot = self.tables.catalog();
                let typed = plan::prepare(&state, &snapshot, &statement, planned, &types).await;
                let typed = typed.map_err(|error| explain(error, planned, lending.as_ref()))?;
                let plan = match lending {
                    Some(lending) => {
                        lending.verdict()?;
                        typed.plan.at_rest()?
                    }
                    None => typed.plan,
                };
                // Of a DELETE the rows of its query are no answer.
                let rows = matches!(parsed(&statement)?.command, Command::Plan(_));
                (plan, typed.parameters, typed.columns.filter(|_| rows))
            }
            Command::Show(wanted) => {
                let rows = show::rows(wanted, &session, &self.tables.catalog())?;
                (Plan::None, Vec::new(), Some(rows.schema()))
            }
            Command::Backtest(_) => (Plan::None, Vec::new(), Some(backtest::schema())),
            Command::Call(_) => (Plan::None, Vec::new(), Some(call::answer_schema())),
            Command::ReloadAlerts => (Plan::None, Vec::new(), system::schema(ALERT_FILES)),
            Command::Subscribe(subscribe) if subscribe.explain => {
                (Plan::None, Vec::new(), Some(live::explanation()))
            }
            Command::Continuous(what) => (Plan::None, Vec::new(), continuous::answer_schema(what)),
            _ => (Plan::None, Vec::new(), None),
        };
        Ok(Arc::new(Prepared { statement, parameters, columns, plan: Arc::new(plan) }))
    }

    /// Runs a statement up to its first rows.
    ///
    /// # Errors
    /// Those of planning and running; `busy`, `cancelled`, `deadline_exceeded`.
    pub(super) async fn run(self: &Arc<Self>, message: Query) -> Result<Outcome> {
        let Query { run, parameters, session, timeout, cancel } = message;
        let (statement, prepared) = match run {
            Runnable::Statement(statement) => (statement, None),
            Runnable::Prepared(prepared) => (prepared.statement.clone(), Some(prepared)),
        };
        let limits = self.limits(&session, timeout, cancel);
        match &parsed(&statement)?.command {
            Command::Plan(planned) | Command::Delete(planned) => {
                if planned.writes {
                    writable(&session, &statement.verb)?;
                }
                let ticket = self.running.admit(&session, &statement.text, &limits).await?;
                let change = None;
                let job = Job { statement, prepared, parameters, session, limits, ticket, change };
                self.start(job).await
            }
            Command::Subscribe(subscribe) if subscribe.explain => {
                let (engine, query) = (self.clone(), subscribe.query.clone());
                let work =
                    async move { engine.explain_subscribe(query, parameters, session).await };
                let task = self.pools.spawn(Pool::Query, "explain", work);
                let rows = limits.race(async move { task.await? }).await?;
                let (schema, stream) = (rows.schema(), once(rows));
                Ok(Outcome::Rows { schema, stream, settings: Vec::new() })
            }
            Command::Subscribe(_) => Err(Error::new(
                Code::Unsupported,
                "SUBSCRIBE needs a connection that rows can be pushed over",
            )
            .with_hint(
                "use the PostgreSQL protocol, the WebSocket at /ws, GET /api/v1/subscribe or \
                 `kymo subscribe`",
            )),
            Command::Show(wanted) => {
                let rows = show::rows(wanted, &session, &self.tables.catalog())?;
                Ok(Outcome::Rows {
                    schema: rows.schema(),
                    stream: once(rows),
                    settings: Vec::new(),
                })
            }
            Command::Backtest(wanted) => self.backtest(wanted, &session, limits).await,
            Command::ReloadAlerts => {
                writable(&session, &statement.verb)?;
                administrator(&session, &statement.verb)?;
                limits.race(self.changes.alerts(AlertCommand::Reload)).await?;
                Box::pin(self.alert_files(session, limits)).await
            }
            Command::Define(Define::Alert(alert)) => {
                writable(&session, &statement.verb)?;
                administrator(&session, &statement.verb)?;
                let done = limits.race(self.alert(alert, &session)).await?;
                let rows = (statement.verb == "ACK").then_some(done.count);
                Ok(Outcome::Done { verb: statement.verb.clone(), rows, settings: Vec::new() })
            }
            Command::Define(define) => {
                writable(&session, &statement.verb)?;
                administrator(&session, &statement.verb)?;
                limits.race(self.define(define, &session)).await?;
                Ok(done(&statement.verb))
            }
            Command::Truncate(names) => {
                writable(&session, &statement.verb)?;
                self.truncate(names, &session, &limits).await?;
                Ok(done(&statement.verb))
            }
            Command::Continuous(_) => self.continuous(&statement, &session, &limits).await,
            Command::Call(wanted) => self.call(wanted, &statement.verb, &session, &limits),
            Command::Set(changes, _) => self.set(&statement.verb, changes),
            Command::ResetAll(verb) => {
                let names = session.settings.keys().cloned().chain(["schema".to_owned()]);
                let settings = names.map(|name| (name, None)).collect();
                Ok(Outcome::Done { verb: (*verb).to_owned(), rows: None, settings })
            }
            Command::Cursor(_) => Err(Error::new(
                Code::Unsupported,
                format!("{} needs a connection of its own", statement.verb),
            )
            .with_hint("use cursors over the PostgreSQL protocol")),
            Command::Transaction(_) | Command::Nothing => Ok(done(&statement.verb)),
        }
    }

    /// The rows of `system.alert_files`.
    async fn alert_files(
        self: &Arc<Self>,
        session: Arc<SessionContext>,
        limits: Limits,
    ) -> Result<Outcome> {
        let text = format!("SELECT * FROM {SYSTEM_SCHEMA}.{ALERT_FILES}");
        let shown = self.parse(&text)?.into_iter().next();
        let statement = shown.ok_or_else(|| Error::internal("a query that is none"))?;
        let ticket = self.running.admit(&session, &statement.text, &limits).await?;
        let (prepared, parameters, change) = (None, Vec::new(), None);
        self.start(Job { statement, prepared, parameters, session, limits, ticket, change }).await
    }

    /// Reads the rows of a query whose plan is changed before it runs.
    ///
    /// # Errors
    /// As for [`Engine::run`].
    pub(super) async fn read(
        self: &Arc<Self>,
        statement: Arc<Statement>,
        parameters: Vec<ArrayRef>,
        session: Arc<SessionContext>,
        change: Change,
    ) -> Result<Outcome> {
        let limits = self.limits(&session, None, CancelToken::new());
        let ticket = self.running.admit(&session, &statement.text, &limits).await?;
        let (prepared, change) = (None, Some(change));
        let job = Job { statement, prepared, parameters, session, limits, ticket, change };
        self.start(job).await
    }

    /// What ends a statement that begins now.
    fn limits(
        &self,
        session: &SessionContext,
        asked: Option<Duration>,
        cancel: CancelToken,
    ) -> Limits {
        let clock = self.env.clock.clone();
        let deadline = self.time_limit(session, asked).map(|limit| clock.monotonic() + limit);
        Limits { cancel, deadline, clock }
    }

    /// The shortest of the limits that apply.
    fn time_limit(&self, session: &SessionContext, asked: Option<Duration>) -> Option<Duration> {
        let server = match self.settings.query.timeout_ms {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        };
        [server, guc::statement_timeout(session), asked].into_iter().flatten().min()
    }

    fn set(&self, verb: &str, changes: &[(String, Option<String>)]) -> Result<Outcome> {
        let settings = changes
            .iter()
            .map(|(name, value)| guc::check(name, value.as_deref()))
            .collect::<Result<Vec<_>>>()?;
        for (name, value) in &settings {
            if name == "database"
                && let Some(database) = value
            {
                show::check_database(database, &self.tables.catalog())?;
            }
        }
        Ok(Outcome::Done { verb: verb.to_owned(), rows: None, settings })
    }

    async fn define(&self, define: &Define, session: &SessionContext) -> Result<()> {
        let full =
            |name: &super::command::PartialName| name.resolve(&session.database, &session.schema);
        match define {
            Define::CreateTable(new) => {
                let name = full(&new.name);
                name.check()?;
                if name.schema == SYSTEM_SCHEMA {
                    let text = format!("schema {SYSTEM_SCHEMA} holds Kymo's own tables only");
                    return Err(Error::new(Code::InvalidInput, text)
                        .with_hint("create the table in another schema"));
                }
                if let Some(flaw) = &new.flaw {
                    let exists = self.tables.catalog().table(&name).is_some();
                    return if exists { Ok(()) } else { Err(flaw.clone()) };
                }
                let ddl = Ddl::CreateTable {
                    name: name.clone(),
                    schema: new.schema.clone(),
                    options: new.options.clone(),
                    if_not_exists: new.if_not_exists,
                    create_database: false,
                    retention_ns: new.retention_ns,
                };
                let made = self.changes.ddl(ddl).await;
                made.map_err(|error| as_written(error, &name, &new.name))?;
            }
            Define::DropTable { names, if_exists } => {
                for written in names {
                    let name = full(written);
                    let ddl = Ddl::DropTable { name: name.clone(), if_exists: *if_exists };
                    let dropped = self.changes.ddl(ddl).await;
                    dropped.map_err(|error| as_written(error, &name, written))?;
                }
            }
            Define::AlterTable(alter) => {
                let name = full(&alter.name);
                let ddl = Ddl::AlterTable {
                    name: name.clone(),
                    if_exists: alter.if_exists,
                    changes: alter.changes.clone(),
                };
                let altered = self.changes.ddl(ddl).await;
                altered.map_err(|error| as_written(error, &name, &alter.name))?;
            }
            Define::CreateDatabase { name, if_not_exists } => {
                let (name, if_not_exists) = (name.clone(), *if_not_exists);
                self.changes.ddl(Ddl::CreateDatabase { name, if_not_exists }).await?;
            }
            Define::DropDatabase { name, if_exists } => {
                if *name == session.database {
                    return Err(Error::new(
                        Code::InvalidInput,
                        format!("cannot drop the current database \"{name}\""),
                    )
                    .with_hint("USE another database first"));
                }
                let (name, if_exists) = (name.clone(), *if_exists);
                self.changes.ddl(Ddl::DropDatabase { name, if_exists }).await?;
            }
            Define::Retention(Retained::Table(written, retention_ns)) => {
                let (name, retention_ns) = (full(written), *retention_ns);
                let ddl = Ddl::SetRetention { of: Kept::Table(name.clone()), retention_ns };
                let set = self.changes.ddl(ddl).await;
                set.map_err(|error| as_written(error, &name, written))?;
            }
            Define::Retention(Retained::Database(name, retention_ns)) => {
                let (of, retention_ns) = (Kept::Database(name.clone()), *retention_ns);
                self.changes.ddl(Ddl::SetRetention { of, retention_ns }).await?;
            }
            Define::Manage(manage) => self.manage(manage, session).await?,
            Define::Alert(_) => return Err(Error::internal("a rule where none is expected")),
        }
        Ok(())
    }

    /// Changes plugins.
    async fn manage(&self, manage: &Manage, session: &SessionContext) -> Result<()> {
        let full = |table: &PartialName| table.resolve(&session.database, &session.schema);
        let change = match manage.clone() {
            Manage::Plugin(PluginCommand::Change(PluginDdl::Suspend { name, reason, .. })) => {
                let at_ns = self.env.clock.now_ns();
                PluginDdl::Suspend { name, reason, only: None, at_ns }
            }
            Manage::Plugin(PluginCommand::Change(change)) => change,
            Manage::Plugin(install) => return self.changes.plugins(install).await.map(|_| ()),
            Manage::CreateFunction(function, or_replace) => {
                self.free_for_function(&function.name)?;
                PluginDdl::CreateFunction { function, or_replace }
            }
            Manage::Attach(table, transform) => {
                PluginDdl::Attach { table: full(&table), transform }
            }
            Manage::Detach(table, plugin, function) => {
                PluginDdl::Detach { table: full(&table), plugin, function }
            }
        };
        self.changes.plugins(PluginCommand::Change(change)).await.map(|_| ())
    }

    /// Refuses a name that a built-in function has.
    fn free_for_function(&self, name: &str) -> Result<()> {
        let taken = self.base.scalar_functions().contains_key(name)
            || self.base.aggregate_functions().contains_key(name)
            || self.base.window_functions().contains_key(name)
            || self.base.table_functions().contains_key(name);
        if !taken {
            return Ok(());
        }
        Err(Error::new(Code::AlreadyExists, format!("{name:?} is a built-in function"))
            .with_hint("choose another name; built-in functions are not replaced"))
    }

    /// Hands a job to the query runtime and waits for the head of its answer.
    async fn start(self: &Arc<Self>, job: Job) -> Result<Outcome> {
        let limits = job.limits.clone();
        let listening = Listening::default();
        let abandoned = listening.gone();
        let (verb, deletes) = (job.statement.verb.clone(), job.deletes());
        let (head, answered) = oneshot::channel();
        let (rows, received) = mpsc::channel(self.settings.query.stream_batches.max(1));
        let engine = self.clone();
        let span = tracing::info_span!("run query", sql = %job.statement.text);
        let work = Box::pin(async move { engine.work(job, abandoned, head, rows).await });
        let task =
            self.pools.spawn(Pool::Query, "query", tracing::Instrument::instrument(work, span));
        let answered = async { answered.await.map_err(|_| gone()) };
        // A deletion ends by itself when it must stop, unless it has come too far for that.
        let head = if deletes { answered.await } else { limits.race(answered).await };
        let head = match head {
            Ok(head) => head?,
            // The task ended without an answer: its own panic says more.
            Err(error) if error.code() == Code::Internal => {
                return Err(task.await.err().unwrap_or(error));
            }
            Err(error) => return Err(error),
        };
        Ok(match head {
            Head::Written(count) => Outcome::Done { verb, rows: Some(count), settings: Vec::new() },
            Head::Rows(schema, settings) => Outcome::Rows {
                schema,
                settings,
                stream: Box::pin(Answer::new(received, task, limits, listening)),
            },
        })
    }

    async fn work(
        self: &Arc<Self>,
        job: Job,
        gone: Gone,
        head: oneshot::Sender<Result<Head>>,
        rows: mpsc::Sender<Rows>,
    ) {
        let limits = job.limits.clone();
        let outcome = match job.deletes() {
            true => Box::pin(self.erase(&job, &gone)).await.map(Opening::Written),
            false => limits.race(Box::pin(self.open(&job, &gone))).await,
        };
        let Opened { schema, mut stream, settings } = match outcome {
            Ok(Opening::Rows(opened)) => opened,
            Ok(Opening::Written(count)) => {
                job.ticket.end(None);
                let _ = head.send(Ok(Head::Written(count)));
                return;
            }
            Err(error) => {
                job.ticket.end(Some(&error));
                let _ = head.send(Err(error));
                return;
            }
        };
        if head.send(Ok(Head::Rows(schema.clone(), settings))).is_err() {
            return;
        }
        let pump = async {
            while let Some(batch) = stream.next().await {
                let batch = dress(batch.map_err(from_engine)?, &schema)?;
                job.ticket.count(batch.num_rows());
                if rows.send(Ok(batch)).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        // Whoever no longer listens has no use for more rows.
        let outcome = tokio::select! {
            biased;
            () = rows.closed() => return,
            outcome = limits.race(pump) => outcome,
        };
        job.ticket.end(outcome.as_ref().err());
        if let Err(error) = outcome {
            let _ = rows.send(Err(error)).await;
        }
    }

    async fn open(&self, job: &Job, gone: &Gone) -> Result<Opening> {
        let began = self.env.clock.monotonic();
        let deadline = job.limits.deadline;
        let (session, planned) = (&job.session, job.planned()?);
        let (state, lending) = match job.change {
            Some(_) => self.lend_kept(session, planned, gone.flag(), deadline)?,
            None => self.lend(session, planned, gone.flag(), deadline)?,
        };
        let mut plan = self.bound_or_explained(&state, lending.as_ref(), job).await?;
        if let Some(change) = &job.change {
            plan = change(&state, plan)?;
        }
        let writes = matches!(plan, LogicalPlan::Dml(_));
        let analyzed = matches!(plan, LogicalPlan::Analyze(_));
        let (state, mut stream) = self.run_plan(state, lending.as_ref(), plan, gone).await?;
        let planning = self.env.clock.monotonic().saturating_sub(began);
        metrics().queries.planning_seconds.observe(planning.as_secs_f64());
        if let (Some(lending), true) = (&lending, analyzed) {
            stream = plugin::with_usage(stream, lending);
        }
        if !writes {
            let schema = rename(&stream.schema(), &job.planned()?.names);
            let mut settings = Vec::new();
            if job.planned()?.sets {
                stream = whole(stream).await?;
                settings = self.changed(&state)?;
            }
            return Ok(Opening::Rows(Opened { schema, stream, settings }));
        }
        let mut count = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch.map_err(from_engine)?;
            if let Some(column) = batch.columns().first()
                && column.data_type() == &DataType::UInt64
            {
                count += column.as_primitive::<UInt64Type>().values().iter().sum::<u64>();
            }
        }
        Ok(Opening::Written(count))
    }

    /// The plan of a statement, or why there is none.
    pub(super) async fn bound_or_explained(
        &self,
        state: &SessionState,
        lending: Option<&Arc<Lending>>,
        job: &Job,
    ) -> Result<LogicalPlan> {
        let plan = self.bound(state, lending, job).await;
        plan.map_err(|error| match job.planned() {
            Ok(planned) => explain(error, planned, lending),
            Err(_) => error,
        })
    }

    /// Starts a plan; with it comes the state that it runs under.
    pub(super) async fn run_plan(
        &self,
        state: SessionState,
        lending: Option<&Arc<Lending>>,
        plan: LogicalPlan,
        gone: &Gone,
    ) -> Result<(SessionState, SendableRecordBatchStream)> {
        let plan = state.optimize(&plan).map_err(from_engine)?;
        // The optimizer leaves constants that it cannot evaluate for later. A plugin that has
        // failed once is not asked again.
        lending.map_or(Ok(()), |lending| lending.verdict())?;
        let bounds = Bounds::of(&self.settings.query);
        let state = build::for_constants(state, &plan, bounds).map_err(from_engine)?;
        let planner = state.query_planner();
        let physical = planner.create_physical_plan(&plan, &state).await.map_err(from_engine)?;
        let physical = interruptible(physical, gone).map_err(from_engine)?;
        let physical = match lending {
            Some(_) => {
                plugin::coalesced(physical, state.config().batch_size()).map_err(from_engine)?
            }
            None => physical,
        };
        let stream = execute_stream(physical, state.task_ctx()).map_err(from_engine)?;
        Ok((state, stream))
    }

    /// What a statement that has run changed of its session.
    fn changed(&self, state: &SessionState) -> Result<Vec<SettingChange>> {
        let changes = Caller::changes(state.config_options());
        let changes = changes.map(|changes| std::mem::take(&mut *changes.lock()));
        let changes = changes.unwrap_or_default();
        for change in changes.iter().filter(|change| change.name == "database") {
            if let Some(database) = &change.value {
                show::check_database(database, &self.tables.catalog())?;
            }
        }
        Ok(changes)
    }

    /// The plan with its values in place: the prepared one where it still holds.
    async fn bound(
        &self,
        state: &SessionState,
        lending: Option<&Arc<Lending>>,
        job: &Job,
    ) -> Result<LogicalPlan> {
        let Job { statement, prepared, parameters, session, .. } = job;
        let planned = job.planned()?;
        let snapshot = self.tables.catalog();
        let needed = parsed(statement)?.parameters;
        if prepared.is_none() && needed == 0 && parameters.is_empty() {
            return plan::plan(state, &snapshot, statement, planned).await;
        }
        let prepared = match prepared {
            Some(prepared) => prepared.clone(),
            None => {
                let types = parameters.iter().map(|each| Some(each.data_type().clone())).collect();
                let prepare =
                    Prepare { statement: statement.clone(), types, session: session.clone() };
                self.prepare(prepare).await?
            }
        };
        let values = params::values(parameters, &prepared.parameters)?;
        match prepared.plan.downcast_ref::<Plan>() {
            Some(Plan::Logical { plan, tables, scope }) => {
                let valid = *scope == (session.database.clone(), session.schema.clone())
                    && plan::still_valid(&snapshot, tables);
                let plan = match lending {
                    _ if !valid => None,
                    Some(lending) => plugin::bound(plan, lending)?,
                    None => Some(plan.as_ref().clone()),
                };
                if let Some(plan) = plan {
                    return params::bind(plan, values);
                }
                let types: Vec<_> = prepared.parameters.iter().cloned().map(Some).collect();
                let again = plan::prepare(state, &snapshot, statement, planned, &types).await?;
                if again.columns != prepared.columns {
                    return Err(Error::new(
                        Code::Unsupported,
                        "cached plan must not change result type",
                    )
                    .with_hint("the table changed: prepare the statement again"));
                }
                match again.plan {
                    Plan::Logical { plan, .. } => params::bind(*plan, values),
                    _ => plan::plan_with(state, &snapshot, statement, planned, &values).await,
                }
            }
            _ => plan::plan_with(state, &snapshot, statement, planned, &values).await,
        }
    }
}

enum Head {
    Rows(SchemaRef, Vec<SettingChange>),
    Written(u64),
}

enum Opening {
    Rows(Opened),
    Written(u64),
}

struct Opened {
    schema: SchemaRef,
    stream: SendableRecordBatchStream,
    settings: Vec<SettingChange>,
}

/// Runs a query to its end before its first row is seen: what it changes must be known then.
async fn whole(mut stream: SendableRecordBatchStream) -> Result<SendableRecordBatchStream> {
    let schema = stream.schema();
    let (mut batches, mut rows) = (Vec::new(), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(from_engine)?;
        rows += batch.num_rows();
        if rows > MAX_SETTING_ROWS {
            return Err(Error::new(
                Code::LimitReached,
                format!("a query with set_config() has more than {MAX_SETTING_ROWS} rows"),
            )
            .with_hint("call set_config() in a query of its own"));
        }
        batches.push(Ok(batch));
    }
    let batches = futures::stream::iter(batches);
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
}

/// An error of planning, which may be about a call of a plugin's function.
fn explain(error: Error, planned: &Planned, lending: Option<&Arc<Lending>>) -> Error {
    match lending {
        Some(lending) => lending.explain(error, &planned.calls),
        None => error,
    }
}

fn gone() -> Error {
    Error::internal("the query ended without an answer")
}

fn done(verb: &str) -> Outcome {
    Outcome::Done { verb: verb.to_owned(), rows: None, settings: Vec::new() }
}

/// The batch under the names that the client expects.
fn dress(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if Arc::ptr_eq(batch.schema_ref(), schema) {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), batch.columns().to_vec(), &options)
        .map_err(|error| Error::internal(format!("rows of another shape than planned: {error}")))
}
