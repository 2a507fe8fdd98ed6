//! Plans and runs statements: the query actor's work, free of actors.
//!
//! Here is what outlives a statement, how one is prepared and who does what it says; [`execute`]
//! runs queries and [`define`] changes definitions.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::DateTime;
use datafusion::arrow::array::ArrayRef;
use datafusion::execution::session_state::SessionState;
use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Env;
use kymo_kernel::message::{
    AlertCommand, Outcome, Prepare, Prepared, Query, Runnable, SessionContext, Statement,
};
use kymo_kernel::pools::{Pool, Pools};
use kymo_kernel::schema::SYSTEM_SCHEMA;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{PluginHost, untried};

use super::allow::{administrator, writable};
use super::catalog::{Databases, Sources};
use super::command::{Command, Define, Planned};
use super::functions::Bounds;
use super::owners::Owners;
use super::plan::{self, Plan, parsed};
use super::plugin::{Called, Lending, Terms};
use super::rewrite::Rewriter;
use super::running::{Limits, Running};
use super::shortage::Shortage;
use super::stream::once;
use super::system::{ALERT_FILES, Inspect, Inspector};
use super::{Changes, Tables, build, call, continuous, guc, live, parse, show, system};
use crate::alert::backtest;
use crate::memory::pressure::Pressure;

mod define;
mod execute;

pub(super) use execute::{Change, Job};

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
}

/// An error of planning, which may be about a call of a plugin's function.
fn explain(error: Error, planned: &Planned, lending: Option<&Arc<Lending>>) -> Error {
    match lending {
        Some(lending) => lending.explain(error, &planned.calls),
        None => error,
    }
}

fn done(verb: &str) -> Outcome {
    Outcome::Done { verb: verb.to_owned(), rows: None, settings: Vec::new() }
}
