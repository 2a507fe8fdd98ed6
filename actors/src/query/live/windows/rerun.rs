//! A query that runs again: class `rerun`. Right for every query that reads tables.
//!
//! Where the plan is local in windows of time, commits dirty the windows of their rows, and
//! only these run again; else everything is dirty after any commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use futures::future::{BoxFuture, FutureExt};
use futures::{Stream, StreamExt};
use kymo_kernel::ids::{Position, TableId, TimeRange};
use kymo_kernel::message::{
    BatchStream, Committed, Outcome, SessionContext, Statement, Taken, WindowSpec, Windowed,
    row_bytes,
};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::late;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};

use super::super::{Pinned, pinned, planned};
use super::dirty::Dirty;
use super::local::{self, Local};
use super::shaped::Shaped;
use crate::query::Tables;
use crate::query::command::Planned;
use crate::query::engine::Engine;
use crate::query::error::from_engine;

/// A statement with everything that running it again needs.
pub(super) struct Source {
    pub(super) engine: Arc<Engine>,
    pub(super) statement: Arc<Statement>,
    pub(super) parameters: Vec<ArrayRef>,
    pub(super) session: Arc<SessionContext>,
    /// The tables that it reads.
    pub(super) tables: Vec<Arc<TableDef>>,
    /// How much one result may take, in bytes.
    pub(super) most: usize,
}

impl Source {
    /// The tables as they are now.
    ///
    /// # Errors
    /// `table_not_found` for one that was dropped.
    pub(super) fn versions(&self) -> Result<Vec<Arc<Version>>> {
        let tables = self.engine.tables();
        let version = |table: &Arc<TableDef>| {
            let known = tables.catalog().table_by_id(table.id).is_some();
            tables.version(table.id).filter(|_| known).ok_or_else(|| {
                Error::new(Code::TableNotFound, format!("table {} was dropped", table.name))
            })
        };
        self.tables.iter().map(version).collect()
    }

    /// The statement as it was parsed.
    ///
    /// # Errors
    /// `internal`.
    pub(super) fn planned(&self) -> Result<&Planned> {
        planned(&self.statement)
    }

    /// Plans the statement again, as its names are meant now.
    ///
    /// # Errors
    /// Those of planning.
    pub(super) async fn shaped(&self) -> Result<Result<Shaped, String>> {
        let planned = self.planned()?;
        let (state, lending) =
            self.engine.lend_kept(&self.session, planned, Arc::default(), None)?;
        let plan = self.engine.query_plan(&state, &self.statement, &self.parameters).await?;
        Shaped::new(&state, &plan, (planned, lending))
    }

    /// Runs the statement over tables at some versions, with its plan changed before.
    ///
    /// # Errors
    /// Those of queries.
    pub(super) async fn run(
        &self,
        versions: Vec<Arc<Version>>,
        change: impl Fn(&SessionState, LogicalPlan) -> Result<LogicalPlan> + Send + Sync + 'static,
    ) -> Result<(SchemaRef, BatchStream)> {
        let tables: Arc<dyn Tables> =
            Arc::new(Pinned { tables: self.engine.tables().clone(), versions });
        let change = move |state: &SessionState, plan| pinned(change(state, plan)?, &tables);
        let (statement, parameters) = (self.statement.clone(), self.parameters.clone());
        let read = self.engine.read(statement, parameters, self.session.clone(), Arc::new(change));
        match read.await? {
            Outcome::Rows { schema, stream, .. } => Ok((schema, stream)),
            Outcome::Done { .. } => Err(Error::internal("a query without rows")),
        }
    }

    /// All rows of a stream.
    ///
    /// # Errors
    /// Those of the stream; `limit_reached` beyond the bytes that one result may take.
    async fn collect(
        &self,
        mut stream: impl Stream<Item = Result<RecordBatch>> + Unpin,
    ) -> Result<Vec<RecordBatch>> {
        let (mut rows, mut bytes) = (Vec::new(), 0_usize);
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            bytes = bytes.saturating_add(row_bytes(&batch));
            if bytes > self.most {
                return Err(too_large(self.most));
            }
            if batch.num_rows() > 0 {
                rows.push(batch);
            }
        }
        Ok(rows)
    }
}

fn too_large(most: usize) -> Error {
    Error::new(
        Code::LimitReached,
        format!("the query needs more than live.state_bytes = {most} to be kept"),
    )
    .with_hint("group by fewer values, use wider windows, or raise live.state_bytes")
}

pub(super) fn changed() -> Error {
    Error::new(Code::Conflict, "a table has changed so that the query has other columns now")
        .with_hint("begin again")
}

fn same(one: &SchemaRef, other: &SchemaRef) -> bool {
    let kinds = |schema: &SchemaRef| -> Vec<_> {
        let fields = schema.fields().iter();
        fields.map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    Arc::ptr_eq(one, other) || kinds(one) == kinds(other)
}

/// The query.
pub(super) struct Rerun {
    pub(super) source: Arc<Source>,
    local: Option<Local>,
    pub(super) schema: SchemaRef,
    pub(super) keys: Option<Vec<usize>>,
    pub(super) why: String,
    pub(super) dirty: Dirty,
}

impl Rerun {
    pub(super) fn new(
        source: Source,
        local: Option<Local>,
        schema: SchemaRef,
        keys: Option<Vec<usize>>,
        why: String,
    ) -> Self {
        let dirty = Dirty::new(local.as_ref().map_or(1, |local| local.window.hop));
        Rerun { source: Arc::new(source), local, schema, keys, why, dirty }
    }

    /// The rows of windows as the tables are at some versions.
    ///
    /// # Errors
    /// Those of queries; `limit_reached`.
    pub(super) async fn read(
        &self,
        versions: Vec<Arc<Version>>,
        starts: TimeRange,
    ) -> Result<Vec<RecordBatch>> {
        metrics().live.reruns.inc();
        let window = self.window();
        let change = move |state: &SessionState, plan: LogicalPlan| match window {
            Some(window) if starts != TimeRange::ALL => {
                let plan = state.optimize(&plan).map_err(from_engine)?;
                let local = local::local(&plan).filter(|local| local.window == window);
                let local = local.ok_or_else(changed)?;
                let column = Expr::from(plan.schema().qualified_field(window.column));
                let plan = local::within(plan, &local, window.times(starts))?;
                if window.overlaps() { local::starting(plan, &column, starts) } else { Ok(plan) }
            }
            _ => Ok(plan),
        };
        let (schema, stream) = self.source.run(versions, change).await?;
        if !same(&schema, &self.schema) {
            return Err(changed());
        }
        self.source.collect(stream).await
    }

    fn table(&self, table: TableId) -> bool {
        self.source.tables.iter().any(|each| each.id == table)
    }

    /// The windows in which a commit may change the result.
    fn mark(&mut self, committed: &Committed) -> Result<()> {
        let aligned = |local: &&Local| local.aligned.contains(&committed.table.id);
        let Some(local) = self.local.as_ref().filter(aligned) else {
            self.dirty.add(TimeRange::ALL);
            return Ok(());
        };
        if let Some(times) = committed.deleted {
            self.dirty.add(local.window.starts(times));
            return Ok(());
        }
        let times = late::times(&committed.table.schema, &committed.batch)?;
        for start in starts(local.window, times) {
            self.dirty.add(TimeRange { first: start, last: start });
        }
        Ok(())
    }
}

/// The windows that times fall into, each once, ascending.
pub(super) fn starts(window: WindowSpec, times: &[i64]) -> BTreeSet<i64> {
    let mut starts = BTreeSet::new();
    let mut last: Option<TimeRange> = None;
    for time in times {
        // Rows of a commit are mostly of the same windows.
        let these = TimeRange { first: window.first_start(*time), last: window.start(*time) };
        if last.replace(these) != Some(these) {
            let next = |start: &i64| start.checked_add(window.hop);
            let all = std::iter::successors(Some(these.first), next);
            starts.extend(all.take_while(|start| *start <= these.last));
        }
    }
    starts
}

/// The position that all of these versions have.
pub(super) fn upto(versions: &[Arc<Version>]) -> Position {
    versions.iter().map(|version| version.watermark).min().unwrap_or_default()
}

impl Windowed for Rerun {
    fn class(&self) -> &'static str {
        "rerun"
    }

    fn why(&self) -> &str {
        &self.why
    }

    fn text(&self) -> &str {
        &self.source.statement.text
    }

    fn tables(&self) -> &[Arc<TableDef>] {
        &self.source.tables
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn window(&self) -> Option<WindowSpec> {
        self.local.as_ref().map(|local| local.window)
    }

    fn keys(&self) -> Option<&[usize]> {
        self.keys.as_deref()
    }

    fn extent(&self) -> Option<TimeRange> {
        let versions = self.source.versions().ok()?;
        let times = versions.iter().filter_map(|version| version.time());
        let times = times.reduce(|all, each| all.union(&each))?;
        Some(self.window().map_or(TimeRange::ALL, |window| window.starts(times)))
    }

    fn apply(&mut self, committed: &Committed) -> Result<()> {
        if !self.table(committed.table.id) {
            return Ok(());
        }
        let marked = self.mark(committed);
        if marked.is_err() {
            self.dirty.add(TimeRange::ALL);
        }
        marked
    }

    fn reopen(&mut self, starts: TimeRange) {
        self.dirty.add(starts);
    }

    fn dirty(&self) -> Vec<TimeRange> {
        self.dirty.ranges()
    }

    fn take(&mut self, starts: TimeRange) -> BoxFuture<'_, Result<Taken>> {
        async move {
            let versions = self.source.versions()?;
            let upto = upto(&versions);
            let rows = self.read(versions, starts).await?;
            self.dirty.remove(starts);
            Ok(Taken { rows, upto })
        }
        .boxed()
    }

    fn memory(&self) -> usize {
        0
    }
}
