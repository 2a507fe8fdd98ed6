//! Joins that notice that nobody waits for their answer any more.
//!
//! The engine stops a query where an operator gives its thread back. A nested-loop join gives
//! it back after each batch of results, and a predicate that nothing fulfils makes no results:
//! such a join would keep its thread for minutes after its client has gone, and a few of them
//! would keep all threads. So the predicates of these joins look at a flag, once a batch that
//! they judge, and end the query with an error that nobody reads.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{NestedLoopJoinExec, NestedLoopJoinExecBuilder};

/// Held by whoever waits for an answer; dropping it raises the flag of [`Listening::gone`].
#[derive(Default)]
pub(super) struct Listening(Arc<AtomicBool>);

impl Listening {
    /// The flag that is raised once nobody listens.
    pub(super) fn gone(&self) -> Gone {
        Gone(Arc::clone(&self.0))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells whether somebody still waits.
#[derive(Clone, Debug)]
pub(super) struct Gone(Arc<AtomicBool>);

impl Gone {
    /// The flag itself, raised once nobody waits.
    pub(super) fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}

/// The same plan with joins that end once nobody listens.
///
/// # Errors
/// What building a join anew can fail with.
pub(super) fn interruptible(
    plan: Arc<dyn ExecutionPlan>,
    gone: &Gone,
) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let Some(join) = node.downcast_ref::<NestedLoopJoinExec>() else {
            return Ok(Transformed::no(node));
        };
        let Some(filter) = join.filter() else { return Ok(Transformed::no(node)) };
        let watched = Watched { predicate: Arc::clone(filter.expression()), gone: gone.clone() };
        let filter = JoinFilter::new(
            Arc::new(watched),
            filter.column_indices().to_vec(),
            Arc::clone(filter.schema()),
        );
        let join = NestedLoopJoinExecBuilder::from(join).with_filter(Some(filter)).build()?;
        Ok(Transformed::yes(Arc::new(join) as Arc<dyn ExecutionPlan>))
    })
    .data()
}

/// A predicate that fails once nobody listens.
#[derive(Debug)]
struct Watched {
    predicate: Arc<dyn PhysicalExpr>,
    gone: Gone,
}

impl PartialEq for Watched {
    fn eq(&self, other: &Self) -> bool {
        self.predicate.eq(&other.predicate)
    }
}

impl Eq for Watched {}

impl Hash for Watched {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.predicate.hash(state);
    }
}

impl fmt::Display for Watched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.predicate, out)
    }
}

impl PhysicalExpr for Watched {
    fn data_type(&self, input: &Schema) -> Result<DataType> {
        self.predicate.data_type(input)
    }

    fn nullable(&self, input: &Schema) -> Result<bool> {
        self.predicate.nullable(input)
    }

    fn return_field(&self, input: &Schema) -> Result<FieldRef> {
        self.predicate.return_field(input)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        if self.gone.0.load(Ordering::Relaxed) {
            return exec_err!("nobody waits for the answer any more");
        }
        self.predicate.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.predicate]
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let [predicate] = children.as_slice() else {
            return internal_err!("a watched predicate has one child");
        };
        Ok(Arc::new(Watched { predicate: Arc::clone(predicate), gone: self.gone.clone() }))
    }

    fn fmt_sql(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.predicate.fmt_sql(out)
    }
}
