//! A rule's query at many instants of the past by one query: instead of running it again for
//! each, `now()` becomes a column.
//!
//! ```text
//! scan ──► a row for each instant that sees it ──► filter ──► aggregate by … and instant ──► …
//!          (instant - '5m' < time <= instant)
//! ```
//!
//! This is for queries over one table that look back a fixed time, which is what most rules are:
//! groups of the rows of the last minutes. What else there is runs instant by instant.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, ListArray, RecordBatch, TimestampNanosecondArray,
};
use datafusion::arrow::buffer::OffsetBuffer;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, TimestampNanosecondType};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DataFusionError, ScalarValue};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    Aggregate, ColumnarValue, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder, Operator,
    ScalarUDF, Volatility, create_udf, lit,
};
use kymo_kernel::schema::time_type;
use kymo_kernel::{Error, Result};

use super::super::error::from_engine;
use super::{now_call, stored};

/// The column that says which instant a row is of.
pub(super) const INSTANT: &str = "__instant";

type Planned = std::result::Result<LogicalPlan, DataFusionError>;

/// Instants at equal distances, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instants {
    /// The first.
    pub(crate) first: i64,
    /// The last.
    pub(crate) last: i64,
    /// The distance.
    pub(crate) every: i64,
}

/// How far back a query looks, where all that it reads is one table's rows of a fixed time before
/// `now()`, and where it has nothing to say of an instant without such rows.
pub(super) fn looks_back(plan: &LogicalPlan) -> Option<i64> {
    let mut node = plan;
    let mut grouped = false;
    // The conditions right above the table; further up its columns are others.
    let mut filters = Vec::new();
    loop {
        if other_times(node) {
            return None;
        }
        node = match node {
            LogicalPlan::Projection(projection) => {
                filters.clear();
                &projection.input
            }
            LogicalPlan::SubqueryAlias(alias) => &alias.input,
            LogicalPlan::Filter(filter) => {
                filters.push(&filter.predicate);
                &filter.input
            }
            LogicalPlan::Aggregate(Aggregate { group_expr, input, .. })
                if !grouped && !group_expr.is_empty() && !sets(group_expr) =>
            {
                grouped = true;
                filters.clear();
                input
            }
            LogicalPlan::TableScan(_) => break,
            _ => return None,
        };
    }
    let (_, _, time) = stored(node)?;
    let terms = filters.into_iter().flat_map(split_conjunction);
    terms.filter_map(|term| lower_bound(term, &time)).min()
}

/// GROUPING SETS and relatives.
fn sets(group: &[Expr]) -> bool {
    group.iter().any(|expr| matches!(expr, Expr::GroupingSet(_)))
}

/// Whether a node has subqueries, or functions other than `now()` that depend on when they run.
fn other_times(node: &LogicalPlan) -> bool {
    node.expressions().iter().any(|expr| {
        expr.exists(|expr| {
            Ok(match expr {
                Expr::ScalarFunction(call) => {
                    call.func.signature().volatility != Volatility::Immutable && !now_call(expr)
                }
                Expr::ScalarSubquery(_) | Expr::InSubquery(_) | Expr::Exists(_) => true,
                _ => false,
            })
        })
        .unwrap_or(true)
    })
}

/// `x` of `time > now() - x` and `time >= now() - x`.
fn lower_bound(term: &Expr, time: &str) -> Option<i64> {
    let Expr::BinaryExpr(compared) = term else { return None };
    let (column, bound) = match compared.op {
        Operator::Gt | Operator::GtEq => (&compared.left, &compared.right),
        Operator::Lt | Operator::LtEq => (&compared.right, &compared.left),
        _ => return None,
    };
    let Expr::Column(column) = column.as_ref() else { return None };
    let Expr::BinaryExpr(bound) = bound.as_ref() else { return None };
    if column.name != time || bound.op != Operator::Minus || !now_call(&bound.left) {
        return None;
    }
    let Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(span)), _) = bound.right.as_ref()
    else {
        return None;
    };
    let days = i64::from(span.days).checked_mul(86_400_000_000_000)?;
    let nanos = days.checked_add(span.nanoseconds)?;
    (span.months == 0 && nanos > 0).then_some(nanos)
}

/// The plan over all instants at once; its last column says which instant a row is of, and rows
/// come in the order of instants.
///
/// # Errors
/// Those of the engine.
pub(super) fn over(plan: &LogicalPlan, instants: Instants, back_ns: i64) -> Result<LogicalPlan> {
    let spread = spread(plan, instants, back_ns).and_then(|plan| {
        let at = instant(&plan)?;
        LogicalPlanBuilder::from(plan).sort([at.sort(true, false)])?.build()
    });
    spread.map_err(from_engine)
}

/// The column of the instant in a plan.
fn instant(plan: &LogicalPlan) -> std::result::Result<Expr, DataFusionError> {
    let (qualifier, field) = plan.schema().qualified_field_with_unqualified_name(INSTANT)?;
    Ok(Expr::Column(Column::new(qualifier.cloned(), field.name())))
}

/// An expression with the instant in the place of `now()`.
fn at_instant(expr: &Expr, below: &LogicalPlan) -> std::result::Result<Expr, DataFusionError> {
    let (at, schema) = (instant(below)?, below.schema());
    let name = expr.schema_name().to_string();
    let changed = expr.clone().transform_up(|expr| {
        if !now_call(&expr) {
            return Ok(Transformed::no(expr));
        }
        let wanted = expr.get_type(schema)?;
        Ok(Transformed::yes(at.clone().cast_to(&wanted, schema)?))
    })?;
    // What refers to it does so by its name.
    Ok(match changed.transformed && !matches!(changed.data, Expr::Alias(_)) {
        true => changed.data.alias(name),
        false => changed.data,
    })
}

fn spread(plan: &LogicalPlan, instants: Instants, back_ns: i64) -> Planned {
    match plan {
        LogicalPlan::TableScan(_) => rows_at(plan.clone(), instants, back_ns),
        LogicalPlan::Filter(filter) => {
            let below = spread(&filter.input, instants, back_ns)?;
            let predicate = at_instant(&filter.predicate, &below)?;
            LogicalPlanBuilder::from(below).filter(predicate.unalias())?.build()
        }
        LogicalPlan::Projection(projection) => {
            let below = spread(&projection.input, instants, back_ns)?;
            let exprs = projection.expr.iter().map(|expr| at_instant(expr, &below));
            let mut exprs = exprs.collect::<std::result::Result<Vec<_>, _>>()?;
            exprs.push(instant(&below)?);
            LogicalPlanBuilder::from(below).project(exprs)?.build()
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let below = spread(&alias.input, instants, back_ns)?;
            LogicalPlanBuilder::from(below).alias(alias.alias.clone())?.build()
        }
        LogicalPlan::Aggregate(aggregate) => {
            let below = spread(&aggregate.input, instants, back_ns)?;
            let all = |exprs: &[Expr]| {
                let exprs = exprs.iter().map(|expr| at_instant(expr, &below));
                exprs.collect::<std::result::Result<Vec<_>, _>>()
            };
            let (mut group, values) = (all(&aggregate.group_expr)?, all(&aggregate.aggr_expr)?);
            group.push(instant(&below)?);
            LogicalPlanBuilder::from(below).aggregate(group, values)?.build()
        }
        other => {
            let text = format!("a rule's query has become {}", other.display());
            Err(DataFusionError::Internal(text))
        }
    }
}

/// The rows of a table, once for each instant that may see them.
fn rows_at(scan: LogicalPlan, instants: Instants, back_ns: i64) -> Planned {
    let Some((_, _, time)) = stored(&scan) else {
        return Err(DataFusionError::Internal("a rule's query lost its table".to_owned()));
    };
    let (qualifier, field) = scan.schema().qualified_field_with_unqualified_name(&time)?;
    let time = Expr::Column(Column::new(qualifier.cloned(), field.name()));
    let edge = |ns: i64| lit(ScalarValue::TimestampNanosecond(Some(ns), Some("+00:00".into())));
    let first = edge(instants.first.saturating_sub(back_ns));
    let within = time.clone().gt_eq(first).and(time.clone().lt_eq(edge(instants.last)));
    let seen = seen_by(instants, back_ns).call(vec![time]).alias(INSTANT);
    let mut columns: Vec<Expr> = scan.schema().columns().into_iter().map(Expr::Column).collect();
    columns.push(seen);
    LogicalPlanBuilder::from(scan)
        .filter(within)?
        .project(columns)?
        .unnest_column(Column::from_name(INSTANT))?
        .build()
}

/// The function from a row's time to the instants that look back as far.
fn seen_by(instants: Instants, back_ns: i64) -> ScalarUDF {
    let item = Arc::new(Field::new_list_field(time_type(), true));
    let returned = item.clone();
    let run = move |arguments: &[ColumnarValue]| {
        let times = ColumnarValue::values_to_arrays(arguments)?;
        let times = times.first().ok_or_else(|| {
            DataFusionError::Internal("the instants of a row without a time".to_owned())
        })?;
        let times = cast(times, &time_type())?;
        let times = times.as_primitive::<TimestampNanosecondType>();
        let Instants { first, last, every } = instants;
        let (mut values, mut lengths) = (Vec::new(), Vec::with_capacity(times.len()));
        for time in times.iter() {
            let before = values.len();
            if let Some(time) = time {
                // The first instant of the grid that is not before the row.
                let steps = time.saturating_sub(first).max(0).saturating_add(every - 1) / every;
                let end = time.saturating_add(back_ns).min(last);
                let begin = first.saturating_add(steps.saturating_mul(every));
                let step = usize::try_from(every).unwrap_or(usize::MAX);
                values.extend((begin..=end).step_by(step));
            }
            lengths.push(values.len() - before);
        }
        let values: ArrayRef =
            Arc::new(TimestampNanosecondArray::from(values).with_timezone("+00:00"));
        let offsets = OffsetBuffer::from_lengths(lengths);
        let lists = ListArray::try_new(item.clone(), offsets, values, None)?;
        Ok(ColumnarValue::Array(Arc::new(lists)))
    };
    let types = vec![time_type()];
    create_udf("__seen_by", types, DataType::List(returned), Volatility::Immutable, Arc::new(run))
}

/// The parts of a result that belong to one instant each, in order; the column of the instant
/// stays in them as the last.
///
/// # Errors
/// `internal` for rows without an instant.
pub(crate) fn by_instant(rows: &RecordBatch) -> Result<Vec<(i64, RecordBatch)>> {
    let column = rows.columns().last().filter(|column| *column.data_type() == time_type());
    let column = column.ok_or_else(|| Error::internal("rows without an instant"))?;
    let instants = column.as_primitive::<TimestampNanosecondType>();
    let (mut parts, mut from) = (Vec::new(), 0);
    while from < rows.num_rows() {
        let instant = instants.value(from);
        let same = instants.values()[from..].iter().take_while(|each| **each == instant).count();
        parts.push((instant, rows.slice(from, same)));
        from += same.max(1);
    }
    Ok(parts)
}
