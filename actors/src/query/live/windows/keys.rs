//! Which columns of a result tell its rows apart, read from a plan.

use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::{Distinct, Expr, LogicalPlan};
use kymo_kernel::schema::ColumnKind;

use super::local::unnamed;
use crate::query::provider::KymoTable;

/// The places of the columns no two rows agree in; none of them where there is one row at
/// most, and `None` where rows can be equal.
pub(super) fn keys(plan: &LogicalPlan) -> Option<Vec<usize>> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let below = keys(&projection.input)?;
            let input = projection.input.schema();
            let place = |key: usize| {
                projection.expr.iter().position(|expr| match unnamed(expr) {
                    Expr::Column(column) => input.maybe_index_of_column(column) == Some(key),
                    _ => false,
                })
            };
            below.into_iter().map(place).collect()
        }
        LogicalPlan::Filter(filter) => keys(&filter.input),
        LogicalPlan::Sort(sort) => keys(&sort.input),
        LogicalPlan::Limit(limit) => keys(&limit.input),
        LogicalPlan::SubqueryAlias(alias) => keys(&alias.input),
        LogicalPlan::Window(window) => keys(&window.input),
        LogicalPlan::Distinct(Distinct::All(input)) => {
            keys(input).or_else(|| Some((0..input.schema().fields().len()).collect()))
        }
        LogicalPlan::Aggregate(aggregate) => {
            let sets = aggregate.group_expr.iter().any(|expr| matches!(expr, Expr::GroupingSet(_)));
            (!sets).then(|| (0..aggregate.group_expr.len()).collect())
        }
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source).ok()?;
            let table = (provider.as_ref() as &dyn std::any::Any).downcast_ref::<KymoTable>()?;
            let def = table.def();
            if def.options.append_only {
                return None;
            }
            let columns = def.schema.columns.iter().enumerate();
            let identity = columns
                .filter(|(_, column)| matches!(column.kind, ColumnKind::Tag | ColumnKind::Time));
            let place = |(place, _): (usize, _)| match &scan.projection {
                Some(places) => places.iter().position(|each| *each == place),
                None => Some(place),
            };
            identity.map(place).collect()
        }
        _ => None,
    }
}
