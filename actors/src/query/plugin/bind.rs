//! Prepared plans and the plugins in them: they are put to rest without instances, and run
//! with those of each statement, as long as every name still means the version that they were
//! planned with.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, Result as EngineResult};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, WindowFunctionDefinition, WindowUDF};
use kymo_kernel::Result;
use kymo_plugins::PluginFunction;

use super::super::error::from_engine;
use super::aggregate::PluginAggregate;
use super::calls::Called;
use super::foreign;
use super::lending::Lending;
use super::scalar::{PluginScalar, same};
use super::table::PluginTable;
use super::window::PluginWindow;

/// The plan with no statement's instances in it.
///
/// # Errors
/// `internal`.
pub(in super::super) fn unbound(plan: LogicalPlan) -> Result<LogicalPlan> {
    Rebinding { lending: None, stale: false }.plan(plan).map_err(from_engine)
}

/// The plan with the instances of a statement; `None` if a name in it means another function,
/// or another version, than when it was planned.
///
/// # Errors
/// `plugin_unavailable` with the reason; `function_not_found`.
pub(in super::super) fn bound(
    plan: &LogicalPlan,
    lending: &Arc<Lending>,
) -> Result<Option<LogicalPlan>> {
    let mut rebinding = Rebinding { lending: Some(lending), stale: false };
    let plan = rebinding.plan(plan.clone()).map_err(from_engine)?;
    Ok((!rebinding.stale).then_some(plan))
}

struct Rebinding<'a> {
    lending: Option<&'a Arc<Lending>>,
    stale: bool,
}

impl Rebinding<'_> {
    fn plan(&mut self, plan: LogicalPlan) -> EngineResult<LogicalPlan> {
        let node = |plan: LogicalPlan| {
            let plan = self.table(plan)?;
            let names = NamePreserver::new(&plan.data);
            plan.transform_data(|plan| {
                plan.map_expressions(|expr| {
                    let name = names.save(&expr);
                    let expr = expr.transform_up(|expr| self.expression(expr))?;
                    Ok(expr.update_data(|expr| name.restore(expr)))
                })
            })
        };
        Ok(plan.transform_up_with_subqueries(node)?.data)
    }

    fn expression(&mut self, mut expr: Expr) -> EngineResult<Transformed<Expr>> {
        let changed = match &mut expr {
            Expr::ScalarFunction(call) => match call.func.inner().downcast_ref::<PluginScalar>() {
                Some(ours) => {
                    self.look(ours.called(), ours.function())?;
                    call.func = ours.lent(self.lending);
                    true
                }
                None => false,
            },
            Expr::AggregateFunction(call) => self.aggregate(&mut call.func)?,
            Expr::WindowFunction(call) => match &mut call.fun {
                WindowFunctionDefinition::AggregateUDF(aggregate) => self.aggregate(aggregate)?,
                WindowFunctionDefinition::WindowUDF(window) => self.window(window)?,
            },
            _ => false,
        };
        Ok(Transformed::new_transformed(expr, changed))
    }

    fn aggregate(
        &mut self,
        aggregate: &mut Arc<datafusion::logical_expr::AggregateUDF>,
    ) -> EngineResult<bool> {
        let Some(ours) = aggregate.inner().downcast_ref::<PluginAggregate>() else {
            return Ok(false);
        };
        self.look(ours.called(), ours.function())?;
        *aggregate = ours.lent(self.lending);
        Ok(true)
    }

    fn window(&mut self, window: &mut Arc<WindowUDF>) -> EngineResult<bool> {
        let Some(ours) = window.inner().downcast_ref::<PluginWindow>() else { return Ok(false) };
        self.look(ours.called(), ours.function())?;
        *window = ours.lent(self.lending);
        Ok(true)
    }

    /// A table that a plugin makes.
    fn table(&mut self, plan: LogicalPlan) -> EngineResult<Transformed<LogicalPlan>> {
        let LogicalPlan::TableScan(mut scan) = plan else { return Ok(Transformed::no(plan)) };
        let provider = source_as_provider(&scan.source).ok();
        let ours = provider.as_ref().and_then(|provider| provider.downcast_ref::<PluginTable>());
        let Some(ours) = ours else {
            return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
        };
        self.look(ours.called(), ours.function())?;
        scan.source = provider_as_source(ours.lent(self.lending));
        Ok(Transformed::yes(LogicalPlan::TableScan(scan)))
    }

    /// Notes whether a name still means the function.
    fn look(&mut self, called: &Called, function: &PluginFunction) -> EngineResult<()> {
        let Some(lending) = self.lending else { return Ok(()) };
        let now: Option<PluginFunction> =
            lending.resolve(called).map_err(|error| -> DataFusionError { foreign(error) })?;
        self.stale |= !now.is_some_and(|now| same(&now, function));
        Ok(())
    }
}
