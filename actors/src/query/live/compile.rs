//! From a plan to what runs on each commit: physical expressions, one step after the other.

use std::sync::Arc;

use datafusion::arrow::array::{Array, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use datafusion::arrow::compute::{concat_batches, filter_record_batch, take};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::error::ArrowError;
use datafusion::common::cast::{as_boolean_array, as_list_array};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;
use kymo_kernel::storage::conform::shape;
use kymo_kernel::{Error, Result};

use super::super::build::BATCH_ROWS;
use super::super::error::from_engine;
use super::windows::of_one_list;

/// A query over one table, ready to take its commits.
pub(super) struct Compiled {
    /// The columns of the table that it reads; `None` where no row can ever match.
    input: Option<SchemaRef>,
    steps: Steps,
}

/// Conditions, columns and lists, one step after the other.
pub(super) struct Steps {
    /// From below upwards.
    steps: Vec<Step>,
    output: SchemaRef,
}

enum Step {
    Filter(Arc<dyn PhysicalExpr>),
    Project(Vec<Arc<dyn PhysicalExpr>>, SchemaRef),
    /// Each row once for each item of the list in a column; the columns come from these.
    Unnest {
        list: usize,
        from: Vec<usize>,
        output: SchemaRef,
    },
    /// The same rows under other names.
    Rename(SchemaRef),
}

/// Compiles a plan of class `rows`.
///
/// # Errors
/// Those of the engine; `internal` for a plan of another class.
pub(super) fn compile(state: &SessionState, plan: &LogicalPlan) -> Result<Compiled> {
    let optimized = state.optimize(plan).map_err(from_engine)?;
    let (steps, bottom) = steps(state, &optimized)?;
    let input = match bottom {
        // Conditions that a scan was told of are only hints: the filter stays above it.
        LogicalPlan::TableScan(scan) if scan.fetch.is_none() => {
            Some(Arc::new(scan.projected_schema.as_arrow().clone()))
        }
        LogicalPlan::EmptyRelation(empty) if !empty.produce_one_row => None,
        other => {
            return Err(Error::internal(format!(
                "a query that was to be followed has become {}",
                other.display()
            )));
        }
    };
    Ok(Compiled { input, steps })
}

/// Compiles the conditions, columns and lists at the top of an optimised plan, and gives the node
/// below them. An order without a limit is passed over.
///
/// # Errors
/// Those of the engine.
pub(super) fn steps<'a>(
    state: &SessionState,
    plan: &'a LogicalPlan,
) -> Result<(Steps, &'a LogicalPlan)> {
    let physical = |expr: &Expr, below: &LogicalPlan| {
        state.create_physical_expr(expr.clone(), below.schema()).map_err(from_engine)
    };
    let (mut steps, mut node) = (Vec::new(), plan);
    loop {
        node = match node {
            LogicalPlan::Projection(projection) => {
                let exprs = projection.expr.iter().map(|expr| physical(expr, &projection.input));
                let schema = Arc::new(projection.schema.as_arrow().clone());
                steps.push(Step::Project(exprs.collect::<Result<_>>()?, schema));
                &projection.input
            }
            LogicalPlan::Filter(filter) => {
                steps.push(Step::Filter(physical(&filter.predicate, &filter.input)?));
                &filter.input
            }
            LogicalPlan::Unnest(unnest) if of_one_list(unnest) => {
                let list = unnest.list_type_columns.first().map_or(0, |(list, _)| *list);
                let from = unnest.dependency_indices.clone();
                let output = Arc::new(unnest.schema.as_arrow().clone());
                steps.push(Step::Unnest { list, from, output });
                &unnest.input
            }
            LogicalPlan::SubqueryAlias(alias) => {
                steps.push(Step::Rename(Arc::new(alias.schema.as_arrow().clone())));
                &alias.input
            }
            LogicalPlan::Sort(sort) if sort.fetch.is_none() => &sort.input,
            _ => break,
        };
    }
    steps.reverse();
    let output = Arc::new(plan.schema().as_arrow().clone());
    Ok((Steps { steps, output }, node))
}

impl Steps {
    /// The shape of what comes out.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.output
    }

    /// What becomes of rows of the node below.
    ///
    /// # Errors
    /// Those of evaluating expressions.
    pub(super) fn run(&self, rows: RecordBatch) -> Result<RecordBatch> {
        let mut batch = rows;
        for step in &self.steps {
            if batch.num_rows() == 0 {
                return Ok(RecordBatch::new_empty(self.output.clone()));
            }
            batch = step.run(batch)?;
        }
        Ok(batch)
    }
}

impl Compiled {
    /// The shape of the result, with the engine's own names.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.steps.output
    }

    /// What the query makes of committed rows, in the shape `output`.
    ///
    /// # Errors
    /// Those of evaluating its expressions.
    pub(super) fn run(&self, rows: &RecordBatch, output: &SchemaRef) -> Result<RecordBatch> {
        let Some(input) = &self.input else { return Ok(RecordBatch::new_empty(output.clone())) };
        let shaped = shape(rows, input)?;
        if shaped.num_rows() <= BATCH_ROWS {
            return self.piece(shaped, output);
        }
        // Results of functions are bounded for a batch of this many rows.
        let pieces = (0..shaped.num_rows()).step_by(BATCH_ROWS).map(|from| {
            let count = BATCH_ROWS.min(shaped.num_rows() - from);
            self.piece(shaped.slice(from, count), output)
        });
        let pieces = pieces.collect::<Result<Vec<_>>>()?;
        concat_batches(output, &pieces).map_err(arrow)
    }

    fn piece(&self, rows: RecordBatch, output: &SchemaRef) -> Result<RecordBatch> {
        dress(&self.steps.run(rows)?, output)
    }
}

impl Step {
    fn run(&self, batch: RecordBatch) -> Result<RecordBatch> {
        match self {
            Step::Filter(predicate) => {
                let kept = predicate.evaluate(&batch).map_err(from_engine)?;
                let kept = kept.into_array(batch.num_rows()).map_err(from_engine)?;
                let kept: &BooleanArray = as_boolean_array(&kept).map_err(from_engine)?;
                filter_record_batch(&batch, kept).map_err(arrow)
            }
            Step::Project(exprs, schema) => {
                let columns = exprs.iter().map(|expr| {
                    let value = expr.evaluate(&batch).map_err(from_engine)?;
                    value.into_array(batch.num_rows()).map_err(from_engine)
                });
                let columns = columns.collect::<Result<Vec<_>>>()?;
                let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
                RecordBatch::try_new_with_options(schema.clone(), columns, &options).map_err(arrow)
            }
            Step::Unnest { list, from, output } => unnest(&batch, *list, from, output),
            Step::Rename(schema) => dress(&batch, schema),
        }
    }
}

/// Each row once for each item of its list, which stands in the list's place.
fn unnest(
    batch: &RecordBatch,
    list: usize,
    from: &[usize],
    output: &SchemaRef,
) -> Result<RecordBatch> {
    let lists = as_list_array(batch.column(list)).map_err(from_engine)?;
    let (mut rows, mut items) = (Vec::new(), Vec::new());
    let valid = (0_u32..).zip(lists.value_offsets().windows(2)).zip(0..lists.len());
    for ((row, ends), _) in valid.filter(|(_, at)| lists.is_valid(*at)) {
        let range = u32::try_from(ends[0]).unwrap_or(0)..u32::try_from(ends[1]).unwrap_or(0);
        rows.resize(rows.len() + range.len(), row);
        items.extend(range);
    }
    let (rows, items) = (UInt32Array::from(rows), UInt32Array::from(items));
    let columns = from.iter().map(|at| match *at == list {
        true => take(lists.values(), &items, None).map_err(arrow),
        false => take(batch.column(*at), &rows, None).map_err(arrow),
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    RecordBatch::try_new_with_options(output.clone(), columns, &options).map_err(arrow)
}

/// The same columns under another schema.
pub(super) fn dress(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), batch.columns().to_vec(), &options)
        .map_err(arrow)
}

fn arrow(error: ArrowError) -> Error {
    from_engine(error.into())
}
