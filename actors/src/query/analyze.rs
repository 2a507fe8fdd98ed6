//! What expressions mean where the engine's meaning would surprise PostgreSQL's users: one pass
//! over a plan once its types are settled.
//!
//! Whole numbers that overflow are errors, casts to them round, results of functions are
//! bounded, and instants written as text are read in more forms and compared in any century.
//! The replacements keep the names that columns have.

use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, LogicalPlan, Operator};
use datafusion::optimizer::AnalyzerRule;

use super::functions::{Bounds, Operation, bounded};
use super::instants;

/// The pass.
#[derive(Debug)]
pub(super) struct Meaning {
    bounds: Bounds,
}

impl Meaning {
    pub(super) fn new(bounds: Bounds) -> Self {
        Meaning { bounds }
    }
}

impl AnalyzerRule for Meaning {
    fn name(&self) -> &str {
        "kymo_meaning"
    }

    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        Ok(plan.transform_up_with_subqueries(|plan| self.node(plan))?.data)
    }
}

impl Meaning {
    fn node(&self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        // The planner looks at the numbers of LIMIT itself.
        if matches!(plan, LogicalPlan::Limit(_)) {
            return Ok(Transformed::no(plan));
        }
        let schema = merge_schema(&plan.inputs());
        let names = NamePreserver::new(&plan);
        let rewritten = plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let expr = expr.transform_up(|expr| Ok(self.expression(expr, &schema)))?;
            Ok(expr.update_data(|expr| name.restore(expr)))
        })?;
        if !rewritten.transformed {
            return Ok(rewritten);
        }
        rewritten.map_data(LogicalPlan::recompute_schema)
    }

    fn expression(&self, expr: Expr, schema: &DFSchema) -> Transformed<Expr> {
        match expr {
            Expr::BinaryExpr(binary) => self.binary(binary, schema),
            Expr::Negative(value) if signed(&value, schema) => {
                Transformed::yes(Operation::Negate.of(vec![*value]))
            }
            Expr::ScalarFunction(ScalarFunction { func, args }) => {
                match bounded(&func, self.bounds) {
                    Some(func) => {
                        Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args }))
                    }
                    None => Transformed::no(Expr::ScalarFunction(ScalarFunction { func, args })),
                }
            }
            Expr::Cast(mut cast) => {
                let changed = instants::readable(&mut cast.expr, cast.field.data_type())
                    || round(&mut cast.expr, cast.field.data_type(), schema);
                Transformed::new_transformed(Expr::Cast(cast), changed)
            }
            Expr::TryCast(mut cast) => {
                let changed = instants::readable(&mut cast.expr, cast.field.data_type())
                    || round(&mut cast.expr, cast.field.data_type(), schema);
                Transformed::new_transformed(Expr::TryCast(cast), changed)
            }
            Expr::Between(mut between) => {
                let low = instants::within_range(&mut between.low);
                let high = instants::within_range(&mut between.high);
                Transformed::new_transformed(Expr::Between(between), low || high)
            }
            Expr::InList(mut list) => {
                let changed = list
                    .list
                    .iter_mut()
                    .filter_map(|value| instants::within_range(value).then_some(()));
                let changed = changed.count() > 0;
                Transformed::new_transformed(Expr::InList(list), changed)
            }
            other => Transformed::no(other),
        }
    }

    fn binary(&self, mut binary: BinaryExpr, schema: &DFSchema) -> Transformed<Expr> {
        if compares(binary.op) {
            let left = instants::within_range(&mut binary.left);
            let right = instants::within_range(&mut binary.right);
            return Transformed::new_transformed(Expr::BinaryExpr(binary), left || right);
        }
        let operation = match binary.op {
            Operator::Plus => Operation::Add,
            Operator::Minus => Operation::Subtract,
            Operator::Multiply => Operation::Multiply,
            Operator::StringConcat => Operation::Concatenate(self.bounds),
            _ => return Transformed::no(Expr::BinaryExpr(binary)),
        };
        // Where types are not known yet, as with parameters, the plan runs later with values.
        let types = (binary.left.get_type(schema), binary.right.get_type(schema));
        let applies = match types {
            (Ok(left), Ok(right)) if left == right => match binary.op {
                Operator::StringConcat => {
                    matches!(left, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
                }
                _ => left.is_integer(),
            },
            _ => false,
        };
        if !applies {
            return Transformed::no(Expr::BinaryExpr(binary));
        }
        Transformed::yes(operation.of(vec![*binary.left, *binary.right]))
    }
}

fn compares(op: Operator) -> bool {
    use Operator::{Eq, Gt, GtEq, IsDistinctFrom, IsNotDistinctFrom, Lt, LtEq, NotEq};
    matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom)
}

fn signed(value: &Expr, schema: &DFSchema) -> bool {
    value.get_type(schema).is_ok_and(|data_type| data_type.is_signed_integer())
}

/// Rounds the fraction that is cast to a whole number.
fn round(value: &mut Expr, to: &DataType, schema: &DFSchema) -> bool {
    if !to.is_integer() {
        return false;
    }
    let Ok(from) = value.get_type(schema) else { return false };
    let operation = match from {
        // A number written with a point is exact in PostgreSQL.
        DataType::Float64 if matches!(value, Expr::Literal(..)) => Operation::RoundAway,
        _ if from.is_floating() => Operation::RoundEven,
        _ if from.is_decimal() => Operation::RoundAway,
        _ => return false,
    };
    *value = operation.of(vec![std::mem::take(value)]);
    true
}
