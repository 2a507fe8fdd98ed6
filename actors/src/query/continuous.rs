//! Continuous queries in SQL: what a statement about them comes to.
//!
//! A query is planned when it is made, and what cannot run is refused then: without windows of
//! time, with columns that no table can have, or with a target that does not fit.

mod policy;
mod statement;

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::StreamExt;
use kymo_kernel::continuous::{ContinuousDef, Downsampling, Mark, Pause, QueryName};
use kymo_kernel::ids::{TableId, TimeRange};
use kymo_kernel::message::{
    BatchStream, ContinuousDdl, Ddl, Keep, Outcome, SessionContext, Statement, Windowed,
};
use kymo_kernel::pools::Pool;
use kymo_kernel::schema::{TableName, time_type};
use kymo_kernel::{Code, Error, Result};
use uuid::Uuid;

use super::allow::{administrator, writable};
use super::command::{Command, PartialName};
use super::engine::Engine;
use super::error::from_engine;
use super::plan::parsed;
use super::running::Limits;
use super::stream::once;
use super::{guc, live};
use crate::continuous::{Progress, columns};

pub(crate) use statement::Continuous;
use statement::{Create, CreatePolicy};
pub(super) use statement::{Moment, moment, read};

/// The settings of a session that results depend on.
const SETTINGS: [&str; 1] = ["timezone"];

/// The shape of what `BACKFILL` answers.
fn progress_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("windows_done", DataType::Int64, false),
        Field::new("windows_total", DataType::Int64, false),
        Field::new("rows_written", DataType::Int64, false),
        Field::new("upto", time_type(), false),
    ]))
}

/// The shape of a statement's rows; `None` for one that returns none.
pub(super) fn answer_schema(statement: &Continuous) -> Option<SchemaRef> {
    match statement {
        Continuous::Create(create) if create.explain => Some(live::explanation()),
        Continuous::Backfill { .. } => Some(progress_schema()),
        _ => None,
    }
}

impl Engine {
    /// Carries out a statement about continuous queries.
    ///
    /// # Errors
    /// Those of planning and of the catalog.
    pub(super) async fn continuous(
        self: &Arc<Self>,
        statement: &Statement,
        session: &Arc<SessionContext>,
        limits: &Limits,
    ) -> Result<Outcome> {
        let Command::Continuous(what) = &parsed(statement)?.command else {
            return Err(Error::internal("a statement about something else"));
        };
        if let Continuous::Create(create) = what.as_ref()
            && create.explain
        {
            let rows = limits.race(self.explain_continuous(create, session)).await?;
            let (schema, stream) = (rows.schema(), once(rows));
            return Ok(Outcome::Rows { schema, stream, settings: Vec::new() });
        }
        writable(session, &statement.verb)?;
        administrator(session, &statement.verb)?;
        let query_name =
            |name: &str| QueryName { database: session.database.clone(), name: name.to_owned() };
        let change = match what.as_ref() {
            Continuous::Create(create) => limits.race(self.continuous_of(create, session)).await?,
            Continuous::CreatePolicy(policy) => {
                limits.race(self.continuous_of_policy(policy, session)).await?
            }
            Continuous::Drop { name, if_exists, policy } => ContinuousDdl::Drop {
                name: query_name(name),
                if_exists: *if_exists,
                policy: *policy,
            },
            Continuous::Pause(name) => ContinuousDdl::Pause {
                name: query_name(name),
                only: None,
                pause: Pause {
                    reason: format!("{} paused it", session.user),
                    failed: false,
                    since_ns: self.now_ns(),
                },
            },
            Continuous::Resume(name) => {
                limits.race(self.resumed(query_name(name), session)).await?
            }
            Continuous::Backfill { name, from, to } => {
                let now = self.now_ns();
                let (first, to) = (from.resolve(now), to.resolve(now));
                return self.backfill(query_name(name), (first, to), session, limits);
            }
        };
        limits.race(self.changes().ddl(Ddl::Continuous(change))).await?;
        self.changes().continuous_changed();
        let verb = statement.verb.clone();
        Ok(Outcome::Done { verb, rows: None, settings: Vec::new() })
    }

    fn now_ns(&self) -> i64 {
        self.env().clock.now_ns()
    }

    /// The query of a definition, planned on the query runtime.
    async fn planned_windows(
        self: &Arc<Self>,
        statement: &Arc<Statement>,
        session: &Arc<SessionContext>,
    ) -> Result<Box<dyn Windowed>> {
        let (engine, statement) = (self.clone(), statement.clone());
        let message = Keep { statement, parameters: Vec::new(), session: session.clone() };
        let work = async move { engine.keep(message).await };
        let kept = self.pools().spawn(Pool::Query, "plan continuous query", work).await??;
        Ok(kept.query)
    }

    async fn explain_continuous(
        self: &Arc<Self>,
        create: &Create,
        session: &Arc<SessionContext>,
    ) -> Result<RecordBatch> {
        let (class, why) = match self.planned_windows(&create.query, session).await {
            Ok(query) => match columns(&*query) {
                Ok(_) => (query.class(), query.why().to_owned()),
                Err(error) => ("refused", explained(&error)),
            },
            Err(error) if error.code() == Code::Unsupported => ("refused", explained(&error)),
            Err(error) => return Err(error),
        };
        let columns: [ArrayRef; 2] =
            [Arc::new(StringArray::from(vec![class])), Arc::new(StringArray::from(vec![why]))];
        RecordBatch::try_new(live::explanation(), columns.to_vec())
            .map_err(|error| from_engine(error.into()))
    }

    async fn continuous_of(
        self: &Arc<Self>,
        create: &Create,
        session: &Arc<SessionContext>,
    ) -> Result<ContinuousDdl> {
        let query = self.planned_windows(&create.query, session).await?;
        let marks = self.marks(&*query);
        let target = create.target.resolve(&session.database, &session.schema);
        let mut def = self.definition(&create.name, &create.query, &*query, target, session);
        (def.every_ns, def.lateness_ns) = (create.every_ns, create.lateness_ns);
        let (query, columns) = (Box::new(def), columns(&*query)?);
        Ok(ContinuousDdl::Create { query, columns, marks, if_not_exists: create.if_not_exists })
    }

    async fn continuous_of_policy(
        self: &Arc<Self>,
        policy: &CreatePolicy,
        session: &Arc<SessionContext>,
    ) -> Result<ContinuousDdl> {
        let raw = policy.table.resolve(&session.database, &session.schema);
        let Some(table) = self.tables().catalog().table(&raw).map(|table| table.def.clone()) else {
            let text = format!("table \"{}\" does not exist", policy.table);
            return Err(
                Error::new(Code::TableNotFound, text).with_hint("SHOW TABLES lists what there is")
            );
        };
        if policy.after_ns < policy.width_ns {
            return Err(Error::new(
                Code::InvalidInput,
                "raw rows would go before their window is complete",
            )
            .with_hint("let AFTER be at least as long as TO"));
        }
        let text = policy::query(&table, policy.width_ns, &policy.aggregates)?;
        let statement = self.parse(&text)?.pop();
        let statement = statement.ok_or_else(|| Error::internal("a policy without a query"))?;
        let query = self.planned_windows(&statement, session).await?;
        let default = format!("{}_{}", raw.table, policy.width);
        let target = policy.target.as_ref().map_or_else(
            || TableName { table: default.clone(), ..raw.clone() },
            |target: &PartialName| target.resolve(&session.database, &session.schema),
        );
        let name = policy.name.as_ref().unwrap_or(&default);
        let mut def = self.definition(name, &statement, &*query, target, session);
        def.policy = Some(Downsampling {
            table: raw,
            after_ns: policy.after_ns,
            width_ns: policy.width_ns,
            retained: false,
        });
        // Without marks it begins with everything that is there: before it may go.
        let (columns, marks) = (columns(&*query)?, BTreeMap::new());
        let (query, if_not_exists) = (Box::new(def), policy.if_not_exists);
        Ok(ContinuousDdl::Create { query, columns, marks, if_not_exists })
    }

    fn definition(
        &self,
        name: &str,
        statement: &Statement,
        query: &dyn Windowed,
        target: TableName,
        session: &SessionContext,
    ) -> ContinuousDef {
        let mut id = [0; 16];
        self.env().random.fill(&mut id);
        let setting = |name: &str| Some((name.to_owned(), session.settings.get(name)?.clone()));
        ContinuousDef {
            id: Uuid::from_bytes(id),
            name: QueryName { database: session.database.clone(), name: name.to_owned() },
            revision: 1,
            text: statement.text.to_string(),
            schema: session.schema.clone(),
            user: session.user.clone(),
            settings: SETTINGS.into_iter().filter_map(setting).collect(),
            target,
            sources: query.tables().iter().map(|table| table.name.clone()).collect(),
            every_ns: None,
            lateness_ns: None,
            policy: None,
            created_ns: self.now_ns(),
            paused: None,
        }
    }

    /// The tables of a query as they are now: what comes later is its business.
    fn marks(&self, query: &dyn Windowed) -> BTreeMap<TableId, Mark> {
        let mark = |id: TableId| {
            let version = self.tables().version(id)?;
            let newest = version.time().map(|time| time.last);
            Some((id, Mark { position: version.watermark, newest }))
        };
        query.tables().iter().filter_map(|table| mark(table.id)).collect()
    }

    /// Checks that a query can run again, and says what its target needs.
    async fn resumed(
        self: &Arc<Self>,
        name: QueryName,
        session: &Arc<SessionContext>,
    ) -> Result<ContinuousDdl> {
        let catalog = self.tables().catalog();
        let Some(def) = catalog.continuous.get(&name) else { return Err(no_query(&name)) };
        let statement = self.parse(&def.text)?.pop();
        let statement = statement.ok_or_else(|| Error::internal("a query without text"))?;
        let own = SessionContext {
            user: def.user.clone(),
            database: def.name.database.clone(),
            schema: def.schema.clone(),
            settings: def.settings.clone(),
            ..session.as_ref().clone()
        };
        let query = self.planned_windows(&statement, &Arc::new(own)).await?;
        Ok(ContinuousDdl::Resume { name, columns: columns(&*query)? })
    }

    /// Asks for windows to be computed again, and tells how far that is. Dropping the answer
    /// cancels it. The time limit of the server does not hold: history takes its time.
    fn backfill(
        &self,
        name: QueryName,
        (first, to): (i64, i64),
        session: &SessionContext,
        limits: &Limits,
    ) -> Result<Outcome> {
        if first >= to {
            return Err(Error::new(Code::InvalidInput, "the range of BACKFILL is empty")
                .with_hint("FROM is the first instant, TO the one after the last"));
        }
        let catalog = self.tables().catalog();
        let Some(def) = catalog.continuous.get(&name) else { return Err(no_query(&name)) };
        let times = TimeRange { first, last: to - 1 };
        let reports = self.changes().backfill(def, times)?;
        let clock = limits.clock.clone();
        let deadline = guc::statement_timeout(session).map(|limit| clock.monotonic() + limit);
        let limits = Limits { cancel: limits.cancel.clone(), deadline, clock };
        let schema = progress_schema();
        let stream = futures::stream::unfold(Some((reports, limits)), |state| async move {
            let (mut reports, limits) = state?;
            let next = limits.race(async { Ok(reports.recv().await) }).await;
            match next.transpose()? {
                Ok(Ok(progress)) => Some((report(progress), Some((reports, limits)))),
                Ok(Err(error)) | Err(error) => Some((Err(error), None)),
            }
        });
        let stream: BatchStream = stream.boxed();
        Ok(Outcome::Rows { schema, stream, settings: Vec::new() })
    }
}

fn report(progress: Progress) -> Result<RecordBatch> {
    let number = |value: u64| -> ArrayRef {
        Arc::new(Int64Array::from(vec![i64::try_from(value).unwrap_or(i64::MAX)]))
    };
    let upto = TimestampNanosecondArray::from(vec![progress.upto]).with_data_type(time_type());
    let columns: Vec<ArrayRef> =
        vec![number(progress.windows), number(progress.of), number(progress.rows), Arc::new(upto)];
    RecordBatch::try_new(progress_schema(), columns).map_err(|error| from_engine(error.into()))
}

fn explained(error: &Error) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

fn no_query(name: &QueryName) -> Error {
    crate::catalog::plan::continuous::no_query(name)
}
