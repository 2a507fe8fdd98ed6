//! A plugin's table function as a table of the engine: a cursor whose batches are asked for one
//! at a time, each when the one before has been used.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::catalog::{Session, TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Result, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
};
use futures::stream;
use kymo_kernel::{Code, Error};
use kymo_plugins::{Cursor, PluginFunction};

use super::calls::Called;
use super::lending::Lending;
use super::{foreign, overloads};

/// The function, of one version, for one statement: makes tables of calls.
pub(super) struct PluginTableFunction {
    called: Called,
    function: PluginFunction,
    lending: Arc<Lending>,
}

impl PluginTableFunction {
    pub(super) fn new(called: Called, function: PluginFunction, lending: Arc<Lending>) -> Self {
        PluginTableFunction { called, function, lending }
    }
}

impl fmt::Debug for PluginTableFunction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PluginTableFunction({})", self.called.key)
    }
}

impl TableFunctionImpl for PluginTableFunction {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>> {
        let name = &self.called.key;
        let values = args.exprs().iter().map(|expr| constant(name, expr));
        let values = values.collect::<Result<Vec<_>>>()?;
        let types: Vec<DataType> = values.iter().map(ScalarValue::data_type).collect();
        let function = self.function.function();
        let (overload, casts) = overloads::choose(name, function, &types).map_err(foreign)?;
        let cast = |(value, to): (&ScalarValue, &DataType)| value.cast_to(overloads::plain(to));
        let values = values.iter().zip(&casts).map(cast).collect::<Result<_>>()?;
        let schema = Schema::new(function.overloads[overload].returns.clone());
        Ok(Arc::new(PluginTable {
            called: self.called.clone(),
            call: Arc::new(Call { function: self.function.clone(), overload, values }),
            schema: Arc::new(schema),
            lending: Some(self.lending.clone()),
        }))
    }
}

/// The value of an argument. The engine has evaluated what it can before.
fn constant(name: &str, expr: &Expr) -> Result<ScalarValue> {
    match expr {
        Expr::Literal(value, _) => Ok(value.clone()),
        Expr::Alias(alias) => constant(name, &alias.expr),
        _ => {
            let text = format!("arguments of table function {name} must be constants");
            Err(foreign(Error::new(Code::Unsupported, text)))
        }
    }
}

/// What is called.
struct Call {
    function: PluginFunction,
    overload: usize,
    values: Vec<ScalarValue>,
}

/// The rows of one call.
pub(super) struct PluginTable {
    called: Called,
    call: Arc<Call>,
    schema: SchemaRef,
    /// `None` within a prepared statement that does not run.
    lending: Option<Arc<Lending>>,
}

impl PluginTable {
    /// The same table for another statement, or for none.
    pub(super) fn lent(&self, lending: Option<&Arc<Lending>>) -> Arc<PluginTable> {
        Arc::new(PluginTable {
            called: self.called.clone(),
            call: self.call.clone(),
            schema: self.schema.clone(),
            lending: lending.cloned(),
        })
    }

    pub(super) fn called(&self) -> &Called {
        &self.called
    }

    pub(super) fn function(&self) -> &PluginFunction {
        &self.call.function
    }
}

impl fmt::Debug for PluginTable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PluginTable({})", self.called.key)
    }
}

#[async_trait]
impl TableProvider for PluginTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(lending) = self.lending.clone() else {
            let text = format!("{} is called outside of a statement", self.called.key);
            return Err(foreign(Error::internal(text)));
        };
        let output = match projection {
            Some(columns) => Arc::new(self.schema.project(columns)?),
            None => self.schema.clone(),
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(output.clone()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(PluginTableExec {
            name: self.called.key.clone(),
            call: self.call.clone(),
            lending,
            projection: projection.cloned(),
            limit,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }
}

/// Runs a table function.
struct PluginTableExec {
    name: String,
    call: Arc<Call>,
    lending: Arc<Lending>,
    projection: Option<Vec<usize>>,
    limit: Option<usize>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl fmt::Debug for PluginTableExec {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PluginTableExec({})", self.name)
    }
}

impl DisplayAs for PluginTableExec {
    fn fmt_as(&self, _kind: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = self.call.values.iter().map(ScalarValue::to_string).collect();
        let version = self.call.function.version();
        write!(out, "PluginTableExec: {}({})", self.name, values.join(", "))?;
        write!(out, ", plugin={} {}", version.name(), version.description().version)?;
        match self.limit {
            Some(limit) => write!(out, ", limit={limit}"),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for PluginTableExec {
    fn name(&self) -> &'static str {
        "PluginTableExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if children.is_empty() {
            return Ok(self);
        }
        Err(DataFusionError::Internal("a table function has no inputs".to_owned()))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = Rows {
            call: self.call.clone(),
            lending: self.lending.clone(),
            projection: self.projection.clone(),
            batch_rows: context.session_config().batch_size(),
            left: self.limit.unwrap_or(usize::MAX),
            cursor: None,
        };
        let rows = rows.inspect(move |batch| {
            if let Ok(batch) = batch {
                metrics.record_output(batch.num_rows());
            }
        });
        let schema = self.properties.eq_properties.schema().clone();
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(rows))))
    }
}

/// The batches of one run. The cursor is opened when the first is asked for.
struct Rows {
    call: Arc<Call>,
    lending: Arc<Lending>,
    projection: Option<Vec<usize>>,
    batch_rows: usize,
    /// Rows that are still wanted; none after the end or an error.
    left: usize,
    cursor: Option<Cursor>,
}

impl Rows {
    fn open(&self) -> kymo_kernel::Result<Cursor> {
        let array =
            |value: &ScalarValue| value.to_array().map_err(super::super::error::from_engine);
        let values: Vec<ArrayRef> =
            self.call.values.iter().map(array).collect::<kymo_kernel::Result<_>>()?;
        Cursor::open(self.lending.charged(), &self.call.function, self.call.overload, &values)
    }

    fn batch(&mut self) -> Result<Option<RecordBatch>> {
        let lending = self.lending.clone();
        let most = self.left.min(self.batch_rows);
        let found = lending.attempt(|| {
            let mut cursor = match self.cursor.take() {
                Some(cursor) => cursor,
                None => self.open()?,
            };
            let found = cursor.next(most)?;
            self.cursor = Some(cursor);
            Ok(found)
        });
        let Some(batch) = found.map_err(foreign)? else { return Ok(None) };
        self.left = self.left.saturating_sub(batch.num_rows());
        Ok(Some(match &self.projection {
            Some(columns) => batch.project(columns)?,
            None => batch,
        }))
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let found = self.batch().transpose();
        if !matches!(found, Some(Ok(_))) {
            (self.left, self.cursor) = (0, None);
        }
        found
    }
}
