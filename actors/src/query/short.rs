//! Short dictionaries between operators.
//!
//! An aggregation hands out its groups at once and in pieces, and all pieces share one
//! dictionary: of a million groups by a tag each piece of eight thousand rows has a dictionary of
//! a million texts, which every operator above would hash or convert again for each piece. So a
//! [`ShortExec`] above an aggregation leaves each piece with the texts that it has.

use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Schema};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::StreamExt;
use kymo_kernel::storage::narrow::narrow;

/// Puts a [`ShortExec`] above each aggregation that hands out dictionaries.
#[derive(Debug)]
pub(super) struct ShortDictionaries;

impl PhysicalOptimizerRule for ShortDictionaries {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        _config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|node| {
            if node.is::<AggregateExec>() && has_dictionary(&node.schema()) {
                return Ok(Transformed::yes(Arc::new(ShortExec(node)) as Arc<dyn ExecutionPlan>));
            }
            Ok(Transformed::no(node))
        })
        .data()
    }

    fn name(&self) -> &str {
        "short_dictionaries"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

fn has_dictionary(schema: &Schema) -> bool {
    schema.fields().iter().any(|field| matches!(field.data_type(), DataType::Dictionary(..)))
}

/// The batches of its input, none of whose dictionaries is much longer than it.
#[derive(Debug)]
struct ShortExec(Arc<dyn ExecutionPlan>);

impl DisplayAs for ShortExec {
    fn fmt_as(&self, _kind: DisplayFormatType, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ShortExec")
    }
}

impl ExecutionPlan for ShortExec {
    fn name(&self) -> &str {
        "ShortExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        self.0.properties()
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.0]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (children.pop(), children.pop()) {
            (Some(child), None) => Ok(Arc::new(ShortExec(child))),
            _ => internal_err!("one input is shortened"),
        }
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        let input = self.0.execute(partition, context)?;
        let schema = input.schema();
        let short = input.map(|batch| {
            narrow(batch?).map_err(|error| DataFusionError::External(Box::new(error)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, short)))
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::{Array, AsArray, DictionaryArray, Int32Array, StringArray};
    use datafusion::arrow::array::{ArrayRef, RecordBatch};
    use datafusion::arrow::datatypes::{Int32Type, Int64Type};
    use datafusion::execution::session_state::SessionStateBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    const TEXTS: i32 = 100_000;

    /// Each text twice, in batches that have all of them in their dictionary.
    fn rows() -> Vec<RecordBatch> {
        let texts: StringArray = (0..TEXTS).map(|n| Some(format!("host_{n}"))).collect();
        let texts: ArrayRef = Arc::new(texts);
        let batch = |_| {
            let keys = Int32Array::from_iter_values(0..TEXTS);
            let tags = DictionaryArray::<Int32Type>::try_new(keys, texts.clone()).unwrap();
            RecordBatch::try_from_iter([("host", Arc::new(tags) as ArrayRef)]).unwrap()
        };
        (0..2).map(batch).collect()
    }

    #[tokio::test]
    async fn groups_leave_an_aggregation_with_the_texts_that_they_have() {
        let state = SessionStateBuilder::new()
            .with_default_features()
            .with_config(SessionConfig::new().with_target_partitions(2).with_batch_size(8192))
            .with_physical_optimizer_rule(Arc::new(ShortDictionaries))
            .build();
        let context = SessionContext::new_with_state(state);
        for (at, batch) in rows().into_iter().enumerate() {
            context.register_batch(format!("part{at}"), batch).unwrap();
        }
        let sql = "SELECT host, count(*) AS n FROM \
                   (SELECT host FROM part0 UNION ALL SELECT host FROM part1) GROUP BY host";
        let answer = context.sql(sql).await.unwrap().collect().await.unwrap();
        let mut groups = 0;
        for batch in &answer {
            let texts = batch.column(0).as_dictionary::<Int32Type>().values().len();
            assert!(texts <= 2 * batch.num_rows(), "{texts} texts for {}", batch.num_rows());
            assert!(batch.column(1).as_primitive::<Int64Type>().values().iter().all(|n| *n == 2));
            groups += batch.num_rows();
        }
        assert_eq!(groups, TEXTS as usize);
    }
}
