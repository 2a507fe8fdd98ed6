//! Running a query: on the query runtime, up to its first rows for whoever waits, and then batch by
//! batch for as long as somebody listens.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{DataType, SchemaRef, UInt64Type};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use kymo_kernel::message::{Outcome, Prepare, Prepared, SessionContext, SettingChange, Statement};
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::Pool;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::{mpsc, oneshot};

use super::{Engine, explain};
use crate::query::command::{Command, Planned};
use crate::query::context::Caller;
use crate::query::error::from_engine;
use crate::query::functions::Bounds;
use crate::query::interrupt::{Gone, Listening, interruptible};
use crate::query::names::rename;
use crate::query::plan::{self, Plan, parsed};
use crate::query::plugin::{self, Lending};
use crate::query::running::{Limits, Ticket};
use crate::query::stream::{Answer, Rows};
use crate::query::{build, params, show};

/// Rows of a query that changes its session: it is held whole.
const MAX_SETTING_ROWS: usize = 1_000;

/// A statement on its way to the query runtime.
pub(in crate::query) struct Job {
    pub(super) statement: Arc<Statement>,
    pub(super) prepared: Option<Arc<Prepared>>,
    pub(super) parameters: Vec<ArrayRef>,
    pub(in crate::query) session: Arc<SessionContext>,
    pub(in crate::query) limits: Limits,
    pub(super) ticket: Ticket,
    /// What is done to the plan before it runs.
    pub(super) change: Option<Change>,
}

/// Makes another plan of one.
pub(in crate::query) type Change =
    Arc<dyn Fn(&SessionState, LogicalPlan) -> Result<LogicalPlan> + Send + Sync>;

impl Job {
    /// What is to be planned. The tree stays in the statement: a deep one is copied on threads
    /// of the query pool only, whose stacks are made for it.
    pub(in crate::query) fn planned(&self) -> Result<&Planned> {
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
    /// Hands a job to the query runtime and waits for the head of its answer.
    pub(super) async fn start(self: &Arc<Self>, job: Job) -> Result<Outcome> {
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
    pub(in crate::query) async fn bound_or_explained(
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
    pub(in crate::query) async fn run_plan(
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

fn gone() -> Error {
    Error::internal("the query ended without an answer")
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
