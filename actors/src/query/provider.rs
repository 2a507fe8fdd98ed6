//! A table as the engine sees it: what it holds, what it can look up, and where inserts go.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, Result, plan_err};
use datafusion::datasource::TableType;
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::StreamExt;
use kymo_kernel::ids::MetaVersion;
use kymo_kernel::message::Write;
use kymo_kernel::schema::{ColumnKind, TableBatch, TableDef};
use kymo_kernel::{Code, Error};

use super::filter::{Wanted, understood};
use super::retention;
use super::scan::TsScanExec;
use super::{Changes, Tables};

/// A table of the catalog. Rows are those of the version at the time of planning a run, so a
/// plan that is kept and run again sees what was acknowledged meanwhile.
pub(crate) struct KymoTable {
    def: Arc<TableDef>,
    schema: SchemaRef,
    snapshot: MetaVersion,
    tables: Arc<dyn Tables>,
    changes: Arc<dyn Changes>,
    /// What a column is given when an insert leaves it out.
    defaults: HashMap<String, Expr>,
}

impl fmt::Debug for KymoTable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "KymoTable({})", self.def.name)
    }
}

impl KymoTable {
    pub(super) fn new(
        def: Arc<TableDef>,
        snapshot: MetaVersion,
        tables: Arc<dyn Tables>,
        changes: Arc<dyn Changes>,
    ) -> Self {
        let time = def.schema.columns.iter().find(|column| column.kind == ColumnKind::Time);
        let now = datafusion::functions::datetime::expr_fn::now();
        let defaults = time.map(|time| (time.name.clone(), now)).into_iter().collect();
        KymoTable { schema: def.schema.arrow(), def, snapshot, tables, changes, defaults }
    }

    /// The same table, whose rows are found elsewhere.
    pub(super) fn over(&self, tables: Arc<dyn Tables>) -> KymoTable {
        KymoTable {
            def: self.def.clone(),
            schema: self.schema.clone(),
            snapshot: self.snapshot,
            tables,
            changes: self.changes.clone(),
            defaults: self.defaults.clone(),
        }
    }

    /// The definition that plans were made with.
    pub(super) fn def(&self) -> &Arc<TableDef> {
        &self.def
    }
}

#[async_trait]
impl TableProvider for KymoTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.defaults.get(column)
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        let schema = &self.def.schema;
        // Files and pages are passed over whole, so rows that do not match may come through.
        Ok(filters
            .iter()
            .map(|filter| match understood(schema, filter) {
                true => TableProviderFilterPushDown::Inexact,
                false => TableProviderFilterPushDown::Unsupported,
            })
            .collect())
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(version) = self.tables.version(self.def.id) else {
            let error = Error::new(
                Code::TableNotFound,
                format!("table \"{}\" was dropped", self.def.name.table),
            );
            return Err(DataFusionError::External(Box::new(error)));
        };
        // The version may know more columns than the plan; places in the plan's schema are
        // found again by id.
        let projection = self.places(projection, &version.table)?;
        let mut wanted = Wanted::of(&version.table.schema, filters);
        let edge = retention::edge(&self.tables.catalog(), &self.def.name, state);
        if let Some(edge) = edge {
            wanted.time.first = wanted.time.first.max(edge.saturating_add(1));
        }
        let partitions = state.config().target_partitions();
        let scan = |projection, limit| {
            let version = version.clone();
            TsScanExec::new(version, self.snapshot, projection, &wanted, limit, partitions)
        };
        match edge.filter(|edge| retention::straddles(&version, *edge)) {
            None => Ok(Arc::new(scan(projection, limit)?)),
            Some(edge) => {
                let output = Arc::new(version.table.schema.arrow().project(&projection)?);
                let columns = version.table.schema.columns.iter();
                let time = columns.clone().position(|column| column.kind == ColumnKind::Time);
                let with_time = projection.into_iter().chain(time).collect();
                retention::cut(Arc::new(scan(with_time, None)?), edge, &output, limit)
            }
        }
    }

    async fn insert_into(
        &self,
        _state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        op: InsertOp,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if op != InsertOp::Append {
            return plan_err!("only INSERT INTO is supported");
        }
        let sink = WriteSink {
            def: self.def.clone(),
            schema: self.schema.clone(),
            changes: self.changes.clone(),
        };
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), None)))
    }
}

impl KymoTable {
    fn places(&self, projection: Option<&Vec<usize>>, current: &TableDef) -> Result<Vec<usize>> {
        let all: Vec<usize> = (0..self.def.schema.columns.len()).collect();
        let wanted = projection.unwrap_or(&all);
        wanted
            .iter()
            .map(|at| {
                let column = &self.def.schema.columns[*at];
                let now = current.schema.columns.iter().position(|each| each.id == column.id);
                now.filter(|now| current.schema.columns[*now] == *column).ok_or_else(|| {
                    let text = format!("column \"{}\" was altered meanwhile", column.name);
                    let error = Error::new(Code::Conflict, text)
                        .with_hint("send the same statement again: it is planned anew");
                    DataFusionError::External(Box::new(error))
                })
            })
            .collect()
    }
}

/// Rows under a table's schema: the fields of a plan may have lost what marks tags and time,
/// and values of parameters come in the types that the client chose.
fn fit(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let exact = CastOptions { safe: false, ..CastOptions::default() };
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(Arc::clone(column))
        } else {
            cast_with_options(column, field.data_type(), &exact)
        }
    });
    let columns = columns.collect::<Result<Vec<_>, _>>()?;
    Ok(RecordBatch::try_new(Arc::clone(schema), columns)?)
}

/// Hands the rows of an `INSERT` to the write path, a batch at a time; each batch is durable
/// before the next is taken.
struct WriteSink {
    def: Arc<TableDef>,
    schema: SchemaRef,
    changes: Arc<dyn Changes>,
}

impl fmt::Debug for WriteSink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "WriteSink({})", self.def.name)
    }
}

impl DisplayAs for WriteSink {
    fn fmt_as(&self, _kind: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "WriteSink: table={}", self.def.name)
    }
}

#[async_trait]
impl DataSink for WriteSink {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        mut data: SendableRecordBatchStream,
        _context: &Arc<TaskContext>,
    ) -> Result<u64> {
        let mut rows = 0;
        while let Some(batch) = data.next().await {
            let batch = batch?;
            if batch.num_rows() == 0 {
                continue;
            }
            let batch = fit(&batch, &self.schema)?;
            let batch = TableBatch { table: self.def.name.clone(), batch, lines: Vec::new() };
            let write =
                Write { batches: vec![batch], durability: None, create: false, partial: false };
            let acked = self.changes.write(write).await;
            let acked = acked.map_err(|error| DataFusionError::External(Box::new(error)))?;
            if let Some(rejected) = acked.rejected.into_iter().next() {
                return Err(DataFusionError::External(Box::new(rejected.error)));
            }
            rows += acked.rows;
        }
        Ok(rows)
    }
}
