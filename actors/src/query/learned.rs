//! Conditions that a query learns while it runs: once ten rows are known, `ORDER BY time DESC LIMIT
//! 10` wants none that is older than the oldest of them.
//!
//! The engine hands such conditions down to scans before they say anything, and they say more as
//! rows come. A scan asks them about the times of what it has not opened yet, as the engine asks
//! statistics of files: a part whose times cannot satisfy a condition is never read.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, TimestampNanosecondArray, UInt64Array};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::{Column, ScalarValue};
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr_common::physical_expr::snapshot_generation;
use datafusion::physical_optimizer::pruning::PruningPredicateBuilder;
use datafusion::physical_plan::PhysicalExpr;
use kymo_kernel::ids::TimeRange;
use kymo_kernel::schema::ColumnKind;

/// What is learned about the times of wanted rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Learned {
    conditions: Vec<Arc<dyn PhysicalExpr>>,
    /// How far the conditions had come when they were asked last.
    generation: u64,
}

impl Learned {
    /// Those of some conditions over rows of a schema that look at the time.
    pub(super) fn of(conditions: Vec<Arc<dyn PhysicalExpr>>, output: &Schema) -> Self {
        let looks = |condition: &Arc<dyn PhysicalExpr>| {
            let columns = collect_columns(condition);
            columns.iter().any(|column| is_time(output, column.index()))
        };
        let conditions = conditions.into_iter().filter(looks).collect();
        Learned { conditions, generation: 0 }
    }

    /// Whether there is nothing to ask.
    pub(super) fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    /// For each part whether it can hold a wanted row; `None` where nothing was learned since this
    /// was asked last.
    pub(super) fn wanted(
        &mut self,
        output: &SchemaRef,
        parts: impl FnOnce() -> Vec<TimeRange>,
    ) -> Option<Vec<bool>> {
        let generations = self.conditions.iter().map(snapshot_generation);
        let generation = generations.fold(0, u64::wrapping_add);
        if std::mem::replace(&mut self.generation, generation) == generation {
            return None;
        }
        let times = Times { name: time_name(output)?, parts: parts() };
        let mut wanted = vec![true; times.parts.len()];
        for condition in &self.conditions {
            // A condition that times cannot answer leaves everything wanted.
            let asked = PruningPredicateBuilder::new().with_file_schema(output.clone());
            let Ok(asked) = asked.try_build(condition.clone()) else { continue };
            let Ok(kept) = asked.prune(&times) else { continue };
            wanted.iter_mut().zip(kept).for_each(|(wanted, kept)| *wanted &= kept);
        }
        Some(wanted)
    }
}

/// Whether a column of a schema is the time.
pub(super) fn is_time(output: &Schema, at: usize) -> bool {
    output.fields().get(at).is_some_and(|field| ColumnKind::of(field) == ColumnKind::Time)
}

fn time_name(output: &Schema) -> Option<&str> {
    let mut fields = output.fields().iter();
    let time = fields.find(|field| ColumnKind::of(field) == ColumnKind::Time)?;
    Some(time.name())
}

/// The times of parts, as statistics.
struct Times<'a> {
    name: &'a str,
    parts: Vec<TimeRange>,
}

impl Times<'_> {
    fn bounds(&self, column: &Column, bound: impl Fn(&TimeRange) -> i64) -> Option<ArrayRef> {
        let bounds = TimestampNanosecondArray::from_iter_values(self.parts.iter().map(bound));
        let bounds: ArrayRef = Arc::new(bounds.with_timezone("+00:00"));
        (column.name == self.name).then_some(bounds)
    }
}

impl PruningStatistics for Times<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |part| part.first)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.bounds(column, |part| part.last)
    }

    fn num_containers(&self) -> usize {
        self.parts.len()
    }

    /// A row without a time does not exist.
    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        let none: ArrayRef = Arc::new(UInt64Array::from(vec![0; self.parts.len()]));
        (column.name == self.name).then_some(none)
    }

    /// Parts have rows; how many does not matter.
    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from(vec![1; self.parts.len()])))
    }

    fn contained(&self, _: &Column, _: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{
        BinaryExpr, DynamicFilterPhysicalExpr, col, is_null, lit,
    };
    use kymo_kernel::schema::{FieldType, marked_field};

    use super::*;

    fn output() -> SchemaRef {
        Arc::new(Schema::new(vec![
            marked_field("usage", ColumnKind::Field, FieldType::Float64),
            marked_field("time", ColumnKind::Time, FieldType::Timestamp),
        ]))
    }

    fn binary(
        left: Arc<dyn PhysicalExpr>,
        op: Operator,
        right: Arc<dyn PhysicalExpr>,
    ) -> Arc<dyn PhysicalExpr> {
        Arc::new(BinaryExpr::new(left, op, right))
    }

    fn time(op: Operator, at: i64) -> Arc<dyn PhysicalExpr> {
        let at = lit(ScalarValue::TimestampNanosecond(Some(at), Some("+00:00".into())));
        binary(col("time", &output()).unwrap(), op, at)
    }

    fn parts() -> Vec<TimeRange> {
        [(0, 9), (10, 19), (20, 29)].map(|(first, last)| TimeRange { first, last }).to_vec()
    }

    #[test]
    fn parts_are_wanted_until_a_condition_knows_better() {
        let output = output();
        let column = col("time", &output).unwrap();
        let condition = Arc::new(DynamicFilterPhysicalExpr::new(vec![column.clone()], lit(true)));
        let mut learned = Learned::of(vec![condition.clone()], &output);
        assert_eq!(learned.wanted(&output, parts), Some(vec![true; 3]));
        assert_eq!(learned.wanted(&output, parts), None, "nothing is new");
        // As the ten newest rows have it, where no time would come first.
        let newer = binary(is_null(column).unwrap(), Operator::Or, time(Operator::Gt, 15));
        condition.update(newer).unwrap();
        assert_eq!(learned.wanted(&output, parts), Some(vec![false, true, true]));
        condition.update(time(Operator::Gt, 19)).unwrap();
        assert_eq!(learned.wanted(&output, parts), Some(vec![false, false, true]));
        condition.update(time(Operator::Lt, 3)).unwrap();
        assert_eq!(learned.wanted(&output, parts), Some(vec![true, false, false]));
        condition.update(time(Operator::Lt, 2)).unwrap();
        assert_eq!(learned.wanted(&output, Vec::new), Some(Vec::new()));
    }

    #[test]
    fn what_times_cannot_answer_leaves_everything_wanted() {
        let output = output();
        let usage = || binary(col("usage", &output).unwrap(), Operator::Gt, lit(0.5));
        assert!(Learned::of(vec![usage()], &output).is_empty());
        // The second sort key decides among rows of one time.
        let tie = binary(time(Operator::Eq, 15), Operator::And, usage());
        let either = binary(time(Operator::Gt, 15), Operator::Or, tie);
        let mut learned = Learned::of(vec![either], &output);
        assert!(!learned.is_empty());
        assert_eq!(learned.generation, 0);
        let condition = DynamicFilterPhysicalExpr::new(
            vec![col("time", &output).unwrap(), col("usage", &output).unwrap()],
            learned.conditions.remove(0),
        );
        let mut learned = Learned::of(vec![Arc::new(condition)], &output);
        assert_eq!(learned.wanted(&output, parts), Some(vec![false, true, true]));
    }
}
