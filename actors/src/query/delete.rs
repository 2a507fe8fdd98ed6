//! `DELETE` and `TRUNCATE`.
//!
//! Which rows a `DELETE` means is found out by the query that its condition makes: it is planned
//! and run as any `SELECT` is, with subqueries, functions and plugins, over the table as the
//! deleter has pinned it. Only the table of the `DELETE` itself has one column more there, the
//! number of each row, and that is all that the query answers. A condition on the time alone
//! needs no query: the deleter then drops whole segments unread.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt64Array};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Column, DataFusionError, ScalarValue, TableReference};
use datafusion::datasource::{TableType, provider_as_source, source_as_provider};
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::session_state::SessionState;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{
    Expr, LogicalPlan, LogicalPlanBuilder, TableProviderFilterPushDown, lit,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use datafusion::sql::sqlparser::ast;
use datafusion::sql::sqlparser::parser::Parser;
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use kymo_kernel::cancel::{CancelOnDrop, CancelToken};
use kymo_kernel::ids::{TableId, TimeRange};
use kymo_kernel::message::{Choose, Delete, Deleted, Doomed, SessionContext};
use kymo_kernel::pools::Pool;
use kymo_kernel::schema::{TableDef, TableSchema};
use kymo_kernel::storage::delete::{Part, RowSet, parts};
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;

use super::command::PartialName;
use super::engine::{Engine, Job};
use super::error::from_engine;
use super::filter::{Wanted, understood};
use super::interrupt::Gone;
use super::parse::{DIALECT, Failure, unsupported};
use super::plugin::Lending;
use super::provider::KymoTable;
use super::running::Limits;
use super::{Tables, live, retention, show};

/// The column of numbers. No column of a table may have a control character in its name.
const ROW: &str = "\u{1}row";
/// Bits of a number that count rows of a part; those above tell the part.
const ROW_BITS: u32 = 40;

/// The query that finds what a `DELETE` means: `SELECT 1 FROM table WHERE condition`.
pub(super) fn as_query(delete: ast::Delete) -> std::result::Result<ast::Statement, Failure> {
    let ast::Delete { tables, from, using, selection, returning, output, order_by, limit, .. } =
        delete;
    if returning.is_some() || output.is_some() {
        return Err(unsupported("DELETE … RETURNING")
            .with_hint("SELECT the rows first, with the same condition")
            .into());
    }
    if using.is_some() || !tables.is_empty() {
        return Err(unsupported("DELETE … USING")
            .with_hint("name the rows with a subquery: WHERE host IN (SELECT …)")
            .into());
    }
    if limit.is_some() || !order_by.is_empty() {
        return Err(unsupported("DELETE … ORDER BY and LIMIT")
            .with_hint("name the rows with a condition, such as one on the time")
            .into());
    }
    let (ast::FromTable::WithFromKeyword(from) | ast::FromTable::WithoutKeyword(from)) = from;
    let simple = |table: &ast::TableWithJoins| {
        let plain = matches!(&table.relation, ast::TableFactor::Table { args: None, .. });
        plain && table.joins.is_empty()
    };
    if from.len() != 1 || !from.iter().all(simple) {
        return Err(Error::new(Code::Syntax, "DELETE FROM names exactly one table").into());
    }
    let mut tree = Parser::parse_sql(&DIALECT, "SELECT 1")?.pop();
    let Some(ast::Statement::Query(query)) = &mut tree else { return Err(no_query().into()) };
    let ast::SetExpr::Select(select) = query.body.as_mut() else { return Err(no_query().into()) };
    select.from = from;
    select.selection = selection;
    tree.ok_or_else(|| no_query().into())
}

fn no_query() -> Error {
    Error::internal("DELETE did not become a query")
}

/// The tables of a `TRUNCATE`.
pub(super) fn truncated(truncate: &ast::Truncate) -> Result<Vec<PartialName>> {
    if truncate.partitions.is_some() || truncate.on_cluster.is_some() {
        return Err(unsupported("TRUNCATE of partitions"));
    }
    if truncate.if_exists {
        return Err(unsupported("TRUNCATE IF EXISTS"));
    }
    truncate.table_names.iter().map(|target| partial(&target.name)).collect()
}

fn partial(name: &ast::ObjectName) -> Result<PartialName> {
    let part = |part: &ast::ObjectNamePart| {
        part.as_ident().map(|ident| match ident.quote_style {
            Some(_) => ident.value.clone(),
            None => ident.value.to_lowercase(),
        })
    };
    let parts: Option<Vec<String>> = name.0.iter().map(part).collect();
    let mut parts = parts.unwrap_or_default().into_iter().rev();
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(table), schema, database, None) => Ok(PartialName { database, schema, table }),
        _ => Err(Error::new(Code::Syntax, format!("{name} is no name of a table"))),
    }
}

/// The query of a `DELETE`, taken apart.
struct Meant<'a> {
    def: Arc<TableDef>,
    /// The table's name in the plan.
    name: &'a TableReference,
    alias: Option<&'a TableReference>,
    condition: Option<&'a Expr>,
}

impl<'a> Meant<'a> {
    fn of(plan: &'a LogicalPlan) -> Result<Self> {
        let LogicalPlan::Projection(projection) = plan else { return Err(no_query()) };
        let (condition, input) = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) => (Some(&filter.predicate), filter.input.as_ref()),
            input => (None, input),
        };
        let (alias, input) = match input {
            LogicalPlan::SubqueryAlias(named) => (Some(&named.alias), named.input.as_ref()),
            input => (None, input),
        };
        let LogicalPlan::TableScan(scan) = input else { return Err(not_deletable("this")) };
        let provider = source_as_provider(&scan.source).map_err(from_engine)?;
        match (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>() {
            Some(table) => {
                Ok(Meant { def: table.def().clone(), name: &scan.table_name, alias, condition })
            }
            None => Err(not_deletable(&scan.table_name.to_string())),
        }
    }

    /// The plan that answers the numbers of the rows, of those after an edge.
    fn numbered(
        &self,
        table: Arc<Numbered>,
        edge: Option<i64>,
    ) -> Result<LogicalPlan, DataFusionError> {
        let source = provider_as_source(table);
        let mut plan = LogicalPlanBuilder::scan(self.name.clone(), source, None)?;
        if let Some(alias) = self.alias {
            plan = plan.alias(alias.clone())?;
        }
        if let Some(condition) = self.condition {
            plan = plan.filter(condition.clone())?;
        }
        let table = self.alias.unwrap_or(self.name).clone();
        if let (Some(edge), Ok(time)) = (edge, self.def.schema.time()) {
            let edge = ScalarValue::TimestampNanosecond(Some(edge), Some("+00:00".into()));
            let time = Expr::Column(Column::new(Some(table.clone()), &time.name));
            plan = plan.filter(time.gt(lit(edge)))?;
        }
        plan.project([Expr::Column(Column::new(Some(table), ROW))])?.build()
    }
}

fn not_deletable(what: &str) -> Error {
    unsupported(&format!("deleting rows of {what}"))
        .with_hint("rows can be deleted of the tables that SHOW TABLES lists")
}

/// The times that a plan is about, where the time is all that its conditions look at.
fn only_times(plan: &LogicalPlan, schema: &TableSchema) -> Option<TimeRange> {
    let (mut filters, mut node) = (Vec::new(), plan);
    loop {
        node = match node {
            LogicalPlan::Projection(projection) => &projection.input,
            LogicalPlan::SubqueryAlias(named) => &named.input,
            LogicalPlan::Filter(filter) => {
                filters.push(filter.predicate.clone());
                &filter.input
            }
            LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
                filters.extend(scan.filters.iter().cloned());
                return Wanted::only_times(schema, &filters);
            }
            _ => return None,
        };
    }
}

impl Engine {
    /// Runs a `DELETE`; how many rows went.
    ///
    /// # Errors
    /// Those of planning and running its condition and of the deleter.
    pub(super) async fn erase(self: &Arc<Self>, job: &Job, gone: &Gone) -> Result<u64> {
        let deadline = job.limits.deadline;
        let (state, lending) = self.lend(&job.session, job.planned()?, gone.flag(), deadline)?;
        let bound = Box::pin(self.bound_or_explained(&state, lending.as_ref(), job));
        let plan = job.limits.race(bound).await?;
        let def = Meant::of(&plan)?.def;
        let optimized = state.optimize(&plan).map_err(from_engine)?;
        // What is expired is not there any more for whoever looks.
        let edge = retention::edge(&self.tables().catalog(), &def.name, &state);
        let (mut times, rows) = match only_times(&optimized, &def.schema) {
            Some(times) => (times, Doomed::All),
            None => {
                let (engine, limits, gone) = (self.clone(), job.limits.clone(), gone.clone());
                let query = Query { engine, state, lending, plan, edge, limits, gone };
                (TimeRange::ALL, Doomed::Chosen(Arc::new(Condition(Arc::new(query)))))
            }
        };
        if let Some(edge) = edge {
            times.first = times.first.max(edge.saturating_add(1));
        }
        let cancel = CancelToken::new();
        let delete = Delete { table: def.id, times, rows, count: true, cancel };
        let deleted = self.remove(delete, &job.limits).await?;
        Ok(deleted.rows)
    }

    /// Removes all rows of tables.
    ///
    /// # Errors
    /// `table_not_found`, before any row of any of them went; those of the deleter.
    pub(super) async fn truncate(
        &self,
        names: &[PartialName],
        session: &SessionContext,
        limits: &Limits,
    ) -> Result<()> {
        let catalog = self.tables().catalog();
        let tables = names.iter().map(|name| {
            let def = show::find(name, session, &catalog)?;
            let own = def.name.schema == super::system::SCHEMA;
            if own { Err(not_deletable(&name.to_string())) } else { Ok(def.id) }
        });
        for table in tables.collect::<Result<Vec<_>>>()? {
            let (times, rows, cancel) = (TimeRange::ALL, Doomed::All, CancelToken::new());
            self.remove(Delete { table, times, rows, count: false, cancel }, limits).await?;
        }
        Ok(())
    }

    /// Has rows removed. Whoever cancels it is told what came of it, as its edit may be under
    /// way.
    async fn remove(&self, delete: Delete, limits: &Limits) -> Result<Deleted> {
        let cancel = CancelOnDrop(delete.cancel.clone());
        let mut removal = self.changes().delete(delete);
        tokio::select! {
            biased;
            outcome = &mut removal => outcome,
            reason = limits.reached() => {
                cancel.0.cancel();
                removal.await.map_err(|error| match error.code() {
                    Code::Cancelled => reason,
                    _ => error,
                })
            }
        }
    }
}

/// What finds the rows of a `DELETE`.
struct Query {
    engine: Arc<Engine>,
    state: SessionState,
    lending: Option<Arc<Lending>>,
    plan: LogicalPlan,
    edge: Option<i64>,
    limits: Limits,
    gone: Gone,
}

struct Condition(Arc<Query>);

impl Choose for Condition {
    fn choose(&self, version: Arc<Version>) -> BoxFuture<'static, Result<Vec<(Part, RowSet)>>> {
        let query = self.0.clone();
        Box::pin(async move {
            let pools = query.engine.pools().clone();
            pools.spawn(Pool::Query, "choose rows", query.run(version)).await?
        })
    }
}

impl Query {
    async fn run(self: Arc<Self>, version: Arc<Version>) -> Result<Vec<(Part, RowSet)>> {
        let numbered = Arc::new(Numbered::new(version.clone()));
        // Subqueries see the table as it is deleted from.
        let now = self.engine.tables().clone();
        let pinned: Arc<dyn Tables> = Arc::new(Pinned { now, version });
        let plan = live::pinned(self.plan.clone(), &pinned)?;
        let plan = Meant::of(&plan)?.numbered(numbered.clone(), self.edge);
        let plan = plan.map_err(from_engine)?;
        let run = self.engine.run_plan(self.state.clone(), self.lending.as_ref(), plan, &self.gone);
        let (state, mut rows) = self.limits.race(run).await?;
        let memory = MemoryConsumer::new("rows to delete");
        let memory = memory.register(&state.runtime_env().memory_pool);
        let mut chosen: Vec<RowSet> = Vec::new();
        let gather = async {
            while let Some(batch) = rows.next().await {
                gather(&batch.map_err(from_engine)?, &mut chosen);
                let bytes = chosen.iter().map(RowSet::bytes).sum();
                memory.try_resize(bytes).map_err(from_engine)?;
            }
            Ok(())
        };
        self.limits.race(gather).await?;
        Ok(numbered.take().into_iter().zip(chosen).collect())
    }
}

/// Sorts numbers by the parts that they tell.
fn gather(batch: &RecordBatch, chosen: &mut Vec<RowSet>) {
    let Some(numbers) =
        batch.columns().first().and_then(|all| all.as_primitive_opt::<UInt64Type>())
    else {
        return;
    };
    for number in numbers.values() {
        let part = usize::try_from(number >> ROW_BITS).unwrap_or(usize::MAX);
        if part >= chosen.len() {
            chosen.resize(part + 1, RowSet::default());
        }
        chosen[part].insert(number & ((1 << ROW_BITS) - 1));
    }
}

/// The tables as they are, but one of them as it was pinned.
struct Pinned {
    now: Arc<dyn Tables>,
    version: Arc<Version>,
}

impl Tables for Pinned {
    fn catalog(&self) -> Arc<Snapshot> {
        self.now.catalog()
    }

    fn version(&self, table: TableId) -> Option<Arc<Version>> {
        if table == self.version.table.id {
            return Some(self.version.clone());
        }
        self.now.version(table)
    }
}

/// A pinned table with the numbers of its rows as one more column.
struct Numbered {
    version: Arc<Version>,
    schema: SchemaRef,
    /// The parts that were looked at, by the number that tells them.
    parts: Mutex<Vec<Part>>,
}

impl fmt::Debug for Numbered {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Numbered({})", self.version.table.name)
    }
}

impl Numbered {
    fn new(version: Arc<Version>) -> Self {
        let mut fields = version.table.schema.arrow().fields().to_vec();
        fields.push(Arc::new(Field::new(ROW, DataType::UInt64, false)));
        let parts = Mutex::default();
        Numbered { version, schema: Arc::new(Schema::new(fields)), parts }
    }

    fn take(&self) -> Vec<Part> {
        std::mem::take(&mut *self.parts.lock())
    }

    /// Deals what is wanted to as many threads as there are, the largest parts first.
    fn deal(&self, wanted: &Wanted, threads: usize) -> Vec<Vec<(u64, Part)>> {
        let mut known = self.parts.lock();
        let first = known.len() as u64;
        let found = match wanted.is_nothing() {
            true => Vec::new(),
            false => parts(&self.version, &wanted.time, &wanted.tag_filter()),
        };
        known.extend(found.iter().cloned());
        let mut found: Vec<(u64, Part)> = (first..).zip(found).collect();
        found.sort_by_key(|(_, part)| std::cmp::Reverse(part.stored_rows()));
        let mut dealt = vec![Vec::new(); threads.clamp(1, found.len().max(1))];
        let count = dealt.len();
        for (at, part) in found.into_iter().enumerate() {
            dealt[at % count].push(part);
        }
        dealt.retain(|parts| !parts.is_empty());
        dealt
    }
}

#[async_trait]
impl TableProvider for Numbered {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        // Parts are passed over whole, so rows that do not match come through.
        let schema = &self.version.table.schema;
        let pushed = filters.iter().map(|filter| match understood(schema, filter) {
            true => TableProviderFilterPushDown::Inexact,
            false => TableProviderFilterPushDown::Unsupported,
        });
        Ok(pushed.collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let wanted = Wanted::of(&self.version.table.schema, filters);
        let output = match projection {
            Some(places) => Arc::new(self.schema.project(places)?),
            None => self.schema.clone(),
        };
        let config = state.config();
        let dealt = self.deal(&wanted, config.target_partitions());
        if dealt.is_empty() {
            return Ok(Arc::new(EmptyExec::new(output)));
        }
        let share = |parts| -> Arc<dyn PartitionStream> {
            Arc::new(Share { parts, output: output.clone(), batch_rows: config.batch_size() })
        };
        let shares = dealt.into_iter().map(share).collect();
        Ok(Arc::new(StreamingTableExec::try_new(output.clone(), shares, None, [], false, None)?))
    }
}

/// The parts that one thread reads, one after the other.
#[derive(Debug)]
struct Share {
    parts: Vec<(u64, Part)>,
    output: SchemaRef,
    batch_rows: usize,
}

impl PartitionStream for Share {
    fn schema(&self) -> &SchemaRef {
        &self.output
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (output, batch_rows) = (self.output.clone(), self.batch_rows);
        let parts = self.parts.clone().into_iter();
        let batches =
            parts.flat_map(move |(number, part)| rows(number, &part, &output, batch_rows));
        let schema = self.output.clone();
        Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches)))
    }
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, DataFusionError>> + Send>;

/// The rows of a part with their numbers.
fn rows(part_number: u64, part: &Part, output: &SchemaRef, batch_rows: usize) -> Batches {
    let columns = output.fields().iter().filter(|field| field.name() != ROW).cloned();
    let columns = Arc::new(Schema::new(columns.collect::<Vec<_>>()));
    let external = |error: Error| DataFusionError::External(Box::new(error));
    let batches = match part.scan(columns, batch_rows) {
        Ok(batches) => batches,
        Err(error) => return Box::new(std::iter::once(Err(external(error)))),
    };
    let (output, mut next) = (output.clone(), part_number << ROW_BITS);
    Box::new(batches.map(move |batch| {
        let batch = batch.map_err(external)?;
        let first = next;
        next += batch.num_rows() as u64;
        with_numbers(&batch, first..next, &output)
    }))
}

fn with_numbers(
    batch: &RecordBatch,
    numbers: std::ops::Range<u64>,
    output: &SchemaRef,
) -> Result<RecordBatch, DataFusionError> {
    let column = |field: &Arc<Field>| -> Result<ArrayRef, DataFusionError> {
        if field.name() == ROW {
            return Ok(Arc::new(UInt64Array::from_iter_values(numbers.clone())));
        }
        let column = batch.column_by_name(field.name()).cloned();
        column.ok_or_else(|| DataFusionError::Internal(format!("no column {}", field.name())))
    };
    let columns = output.fields().iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(output.clone(), columns, &options)?)
}
