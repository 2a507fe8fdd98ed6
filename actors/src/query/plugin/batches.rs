//! Full batches for the functions of plugins: a call into an instance costs as much as some
//! hundred rows of simple arithmetic, so short batches are joined before they get there.
//!
//! The engine joins batches after filters and joins and where it deals rows out, which makes
//! them shorter. What a scan reads is handed on as it comes, in batches as long as what was
//! written together. Joining changes neither the rows of a partition nor their order.

use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
#[expect(deprecated, reason = "the engine keeps the operator and only no longer places it")]
use datafusion::physical_plan::coalesce_batches::CoalesceBatchesExec;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ChildrenPropertiesMode, ExecutionPlan, ReplaceChildrenOptions};

use super::super::scan::TsScanExec;
use super::aggregate::PluginAggregate;
use super::scalar::PluginScalar;

/// The same plan, with short batches joined below the operators that call plugins.
///
/// # Errors
/// What building an operator anew can fail with.
pub(in super::super) fn coalesced(
    plan: Arc<dyn ExecutionPlan>,
    rows: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let calls =
            node.is::<ProjectionExec>() || node.is::<FilterExec>() || node.is::<AggregateExec>();
        if !calls || !calls_plugins(&node)? {
            return Ok(Transformed::no(node));
        }
        let [input] = node.children()[..] else { return Ok(Transformed::no(node)) };
        if !can_be_short(input) {
            return Ok(Transformed::no(node));
        }
        #[expect(deprecated, reason = "as above")]
        let joined = CoalesceBatchesExec::new(Arc::clone(input), rows);
        let anew = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
        Ok(Transformed::yes(node.replace_children(vec![Arc::new(joined)], anew)?))
    })
    .data()
}

/// Whether an operator calls a plugin for each batch that it gets.
fn calls_plugins(node: &Arc<dyn ExecutionPlan>) -> Result<bool> {
    let aggregates = node.downcast_ref::<AggregateExec>().map_or(&[][..], AggregateExec::aggr_expr);
    let mut found = aggregates.iter().any(|each| each.fun().inner().is::<PluginAggregate>());
    node.apply_expressions(&mut |expr| {
        expr.apply(|expr: &Arc<dyn PhysicalExpr>| {
            let function = expr.downcast_ref::<ScalarFunctionExpr>();
            found |= function.is_some_and(|function| function.fun().inner().is::<PluginScalar>());
            Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        })
    })?;
    Ok(found)
}

/// Whether batches come as they are read.
fn can_be_short(node: &Arc<dyn ExecutionPlan>) -> bool {
    if node.is::<TsScanExec>() {
        return true;
    }
    let passes = node.is::<ProjectionExec>()
        || node.is::<UnionExec>()
        || node.is::<CoalescePartitionsExec>()
        || node.is::<CooperativeExec>();
    passes && node.children().into_iter().any(can_be_short)
}
