//! Whether a query is one aggregate by windows over one table, and what it consists of then:
//! expressions from a commit's rows to the aggregate, its groups and aggregate functions, and
//! expressions from its rows to those of the query.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::datatypes::{DataType, SchemaRef};
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::session_state::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Aggregate, Expr, GroupsAccumulator, LogicalPlan};
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use kymo_kernel::Result;

use super::super::compile::{Compiled, Steps, compile, steps};
use super::local::{Local, place, unnamed};
use crate::query::error::from_engine;
use crate::query::plugin::is_of_plugin;

/// Aggregate functions whose states can be merged. Some remember every value; a window of which
/// that is too much is read again.
const MERGEABLE: &[&str] = &[
    "count",
    "sum",
    "avg",
    "min",
    "max",
    "first",
    "last",
    "stddev",
    "stddev_pop",
    "var",
    "var_pop",
    "covar_samp",
    "covar_pop",
    "corr",
    "bool_and",
    "bool_or",
    "bit_and",
    "bit_or",
    "bit_xor",
    "approx_distinct",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "approx_median",
    "median",
    "percentile_cont",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
];
/// Those whose states of `DISTINCT` values can be merged, too.
const MERGEABLE_DISTINCT: &[&str] = &["count", "sum", "min", "max"];

/// A query of class `windows`, compiled.
pub(super) struct Shape {
    /// From the table's rows to those that are aggregated.
    pub(super) below: Compiled,
    /// The same as a plan, for rows of the table.
    pub(super) input: LogicalPlan,
    /// What rows are grouped by, without the window.
    groups: Vec<Arc<dyn PhysicalExpr>>,
    /// The place of the window among the groups.
    pub(super) window: usize,
    /// The same, as an expression over rows of `input`.
    pub(super) starts: Expr,
    /// The start of a row's window.
    start: Arc<dyn PhysicalExpr>,
    /// Makes comparable keys of the groups.
    pub(super) keys: RowConverter,
    pub(super) aggregates: Vec<Call>,
    /// The shape of the aggregate's rows.
    pub(super) grouped: SchemaRef,
    /// From there to the rows of the query.
    pub(super) above: Steps,
}

/// One aggregate function with its arguments.
pub(super) struct Call {
    function: Arc<AggregateFunctionExpr>,
    arguments: Vec<Arc<dyn PhysicalExpr>>,
    filter: Option<Arc<dyn PhysicalExpr>>,
    /// Whether it is a plugin's, which holds nothing between calls.
    pub(super) lent: bool,
}

/// Rows on their way into states: everything that is computed from them, once.
pub(super) struct Inputs {
    /// The start of each row's window.
    pub(super) starts: ArrayRef,
    /// The columns of the groups.
    pub(super) groups: Vec<ArrayRef>,
    /// For each aggregate function its arguments and its filter.
    pub(super) arguments: Vec<(Vec<ArrayRef>, Option<BooleanArray>)>,
}

/// The query's parts, or what keeps it from having them, for people.
///
/// # Errors
/// Those of the engine.
pub(super) fn shape(
    state: &SessionState,
    plan: &LogicalPlan,
    local: &Local,
) -> Result<Result<Shape, String>> {
    if subqueries(plan)? {
        return Ok(Err("a subquery reads more than the rows that were written".to_owned()));
    }
    let (above, bottom) = steps(state, plan)?;
    let LogicalPlan::Aggregate(aggregate) = bottom else {
        return Ok(Err(missing(bottom)));
    };
    if let Some(reason) = unfit(aggregate) {
        return Ok(Err(reason));
    }
    let Some(window) = place(bottom, local.window) else {
        return Ok(Err("the window is computed from other groups".to_owned()));
    };
    let below = match steps(state, &aggregate.input)? {
        (_, LogicalPlan::TableScan(scan)) if scan.fetch.is_none() => {
            compile(state, &aggregate.input)?
        }
        (_, other) => return Ok(Err(missing(other))),
    };
    let physical = |expr: &Expr| {
        state.create_physical_expr(expr.clone(), aggregate.input.schema()).map_err(from_engine)
    };
    let all = aggregate.group_expr.iter().map(|expr| physical(unnamed(expr)));
    let mut groups = all.collect::<Result<Vec<_>>>()?;
    let start = groups.remove(window);
    let starts = unnamed(&aggregate.group_expr[window]).clone();
    let grouped = Arc::new(aggregate.schema.as_arrow().clone());
    let types = grouped.fields().iter().take(aggregate.group_expr.len()).enumerate();
    let keys = types
        .filter(|(at, _)| *at != window)
        .map(|(_, field)| SortField::new(field.data_type().clone()))
        .collect::<Vec<_>>();
    let Ok(keys) = RowConverter::new(keys) else {
        return Ok(Err("it groups by values of a nested type".to_owned()));
    };
    let aggregates = aggregate.aggr_expr.iter().map(|expr| call(state, aggregate, expr));
    let aggregates = aggregates.collect::<Result<Vec<_>>>()?;
    let input = aggregate.input.as_ref().clone();
    Ok(Ok(Shape { below, input, groups, window, starts, start, keys, aggregates, grouped, above }))
}

fn call(state: &SessionState, aggregate: &Aggregate, expr: &Expr) -> Result<Call> {
    let (logical, context) = (aggregate.input.schema(), PhysicalPlanningContext::default());
    let props = state.execution_props();
    let built =
        LoweredAggregateBuilder::new(expr, logical, logical.as_arrow(), props, &context).build();
    let lowered = built.map_err(from_engine)?;
    let (function, filter) = (lowered.aggregate, lowered.filter);
    let (arguments, lent) = (function.expressions(), is_of_plugin(function.fun()));
    Ok(Call { function, arguments, filter, lent })
}

fn subqueries(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                found |=
                    matches!(expr, Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(from_engine)?;
    Ok(found)
}

/// Why an aggregate cannot be kept as states.
fn unfit(aggregate: &Aggregate) -> Option<String> {
    for (expr, field) in aggregate.group_expr.iter().zip(aggregate.schema.fields()) {
        if matches!(expr, Expr::GroupingSet(_)) {
            return Some("it groups in more than one way".to_owned());
        }
        if field.data_type().is_floating() || matches!(field.data_type(), DataType::Null) {
            return Some(format!("it groups by {}, which is no whole value", field.name()));
        }
    }
    aggregate.aggr_expr.iter().find_map(|expr| {
        let Expr::AggregateFunction(call) = unnamed(expr) else {
            return Some(format!("{expr} is not kept by windows"));
        };
        let name = call.func.name();
        if !MERGEABLE.contains(&name) && !is_of_plugin(&call.func) {
            return Some(format!("the state of {name}() is not kept by windows"));
        }
        if call.params.distinct && !MERGEABLE_DISTINCT.contains(&name) {
            return Some(format!("the state of {name}(DISTINCT …) is not kept by windows"));
        }
        // WITHIN GROUP says which values a quantile is of, not in which order they come.
        let ordered = !call.params.order_by.is_empty() && !name.contains("percentile");
        ordered.then(|| format!("{name}(… ORDER BY …) depends on the order of all rows"))
    })
}

fn missing(node: &LogicalPlan) -> String {
    match node {
        LogicalPlan::Join(_) => "a join needs the rows of more than one table".to_owned(),
        LogicalPlan::Union(_) => "UNION has more than one query".to_owned(),
        LogicalPlan::Window(_) => "window functions (OVER) look at many rows".to_owned(),
        LogicalPlan::Aggregate(_) => {
            "it groups rows that are grouped already, as for DISTINCT values".to_owned()
        }
        LogicalPlan::TableScan(_) => "its windows are not groups".to_owned(),
        other => format!("{} is not kept by windows", other.display()),
    }
}

impl Shape {
    /// What is computed from rows that are to be aggregated.
    ///
    /// # Errors
    /// Those of evaluating expressions.
    pub(super) fn inputs(&self, rows: &RecordBatch) -> Result<Inputs> {
        let value = |expr: &Arc<dyn PhysicalExpr>| {
            let value = expr.evaluate(rows).map_err(from_engine)?;
            value.into_array(rows.num_rows()).map_err(from_engine)
        };
        let filter = |expr: &Arc<dyn PhysicalExpr>| {
            as_boolean_array(&value(expr)?).cloned().map_err(from_engine)
        };
        let arguments = self.aggregates.iter().map(|call| {
            let arguments = call.arguments.iter().map(value).collect::<Result<Vec<_>>>()?;
            Ok((arguments, call.filter.as_ref().map(filter).transpose()?))
        });
        Ok(Inputs {
            starts: value(&self.start)?,
            groups: self.groups.iter().map(value).collect::<Result<_>>()?,
            arguments: arguments.collect::<Result<_>>()?,
        })
    }
}

impl Call {
    /// An empty state.
    ///
    /// # Errors
    /// Those of the engine.
    pub(super) fn accumulator(&self) -> Result<Box<dyn GroupsAccumulator>> {
        if self.function.groups_accumulator_supported() {
            return self.function.create_groups_accumulator().map_err(from_engine);
        }
        let function = self.function.clone();
        Ok(Box::new(GroupsAccumulatorAdapter::new(move || function.create_accumulator())))
    }
}
