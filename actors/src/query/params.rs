//! Parameters of prepared statements: which types they have, and how values take their place.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, IntervalUnit, TimeUnit};
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DFSchema, ParamValues, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, Operator, binary_expr};
use datafusion::sql::sqlparser::ast::{self, ArrayElemTypeDef, ExactNumberInfo, TimezoneInfo};
use kymo_kernel::schema::time_type;
use kymo_kernel::{Code, Error, Result};

use super::error::from_engine;

/// The type that a client is told of: plain text instead of dictionaries and views.
pub(super) fn plain(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => plain(values),
        DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => DataType::Utf8,
        DataType::List(field) | DataType::LargeList(field) => {
            DataType::List(Arc::new(Field::new_list_field(plain(field.data_type()), true)))
        }
        other => other.clone(),
    }
}

/// The types of a plan's parameters as far as they can be told, by number from 1.
pub(super) fn inferred(plan: &LogicalPlan) -> Result<HashMap<usize, DataType>> {
    let mut found = HashMap::new();
    for (name, data_type) in plan.get_parameter_types().map_err(from_engine)? {
        if let (Some(number), Some(data_type)) = (number(&name), data_type)
            && data_type != DataType::Null
        {
            found.insert(number, plain(&data_type));
        }
    }
    // What the engine does not tell, or tells wrongly for our purposes.
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            for expr in [&limit.skip, &limit.fetch].into_iter().flatten() {
                if let Some(number) = placeholder(expr) {
                    found.insert(number, DataType::Int64);
                }
            }
        }
        let schema = input_schema(node);
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                guess(expr, &schema, &mut found);
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })
    .map_err(from_engine)?;
    Ok(found)
}

/// Types of parameters that the engine would take for what stands beside them: what is added
/// to an instant, or taken from it, is a length of time.
#[derive(Debug)]
pub(super) struct Lengths;

impl ExprPlanner for Lengths {
    fn plan_binary_op(
        &self,
        expr: RawBinaryExpr,
        schema: &DFSchema,
    ) -> datafusion::common::Result<PlannerResult<RawBinaryExpr>> {
        let operator = match expr.op {
            ast::BinaryOperator::Plus => Operator::Plus,
            ast::BinaryOperator::Minus => Operator::Minus,
            _ => return Ok(PlannerResult::Original(expr)),
        };
        let RawBinaryExpr { left, right, .. } = &expr;
        let (left, right) = match (untyped(left), untyped(right)) {
            (None, Some(id)) if is_instant(left, schema) => (left.clone(), length(id)),
            (Some(id), None) if is_instant(right, schema) && operator == Operator::Plus => {
                (length(id), right.clone())
            }
            _ => return Ok(PlannerResult::Original(expr)),
        };
        Ok(PlannerResult::Planned(binary_expr(left, operator, right)))
    }
}

/// The name of a parameter whose type nobody has told.
fn untyped(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Placeholder(Placeholder { id, field: None }) => Some(id),
        _ => None,
    }
}

fn is_instant(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema)
        .is_ok_and(|data_type| matches!(data_type, DataType::Timestamp(..) | DataType::Date32))
}

fn length(id: &str) -> Expr {
    let interval = DataType::Interval(IntervalUnit::MonthDayNano);
    let field = Arc::new(Field::new(id, interval, true));
    Expr::Placeholder(Placeholder::new_with_field(id.to_owned(), Some(field)))
}

fn input_schema(node: &LogicalPlan) -> DFSchema {
    let mut schema = DFSchema::empty();
    for input in node.inputs() {
        schema.merge(input.schema());
    }
    if node.inputs().is_empty() {
        schema.merge(node.schema());
    }
    schema
}

fn guess(expr: &Expr, schema: &DFSchema, found: &mut HashMap<usize, DataType>) {
    match expr {
        // $1::type says it itself.
        Expr::Cast(cast) => {
            if let Expr::Placeholder(Placeholder { id, .. }) = cast.expr.as_ref()
                && let Some(number) = number(id)
            {
                found.insert(number, plain(cast.field.data_type()));
            }
        }
        // x = ANY($1): an array of what x is.
        Expr::ScalarFunction(function) if function.name().starts_with("array_has") => {
            let [array, element] = function.args.as_slice() else { return };
            if let Some(number) = placeholder(array)
                && let Ok(data_type) = element.get_type(schema)
            {
                let item = Field::new_list_field(plain(&data_type), true);
                found.insert(number, DataType::List(Arc::new(item)));
            }
        }
        Expr::ScalarFunction(function) if function.name() == "time_bucket" => {
            if let Some(number) = function.args.first().and_then(placeholder) {
                found.insert(number, DataType::Interval(IntervalUnit::MonthDayNano));
            }
            if let Some(number) = function.args.get(2).and_then(placeholder) {
                found.insert(number, time_type());
            }
        }
        _ => {}
    }
}

fn placeholder(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Placeholder(Placeholder { id, .. }) => number(id),
        Expr::Cast(cast) => placeholder(&cast.expr),
        Expr::Alias(alias) => placeholder(&alias.expr),
        _ => None,
    }
}

fn number(name: &str) -> Option<usize> {
    name.strip_prefix('$')?.parse().ok()
}

/// The values of a statement's parameters in the types that it was planned with.
///
/// # Errors
/// `invalid_parameter` where the number differs, `invalid_cast` where a value does not fit.
pub(super) fn values(parameters: &[ArrayRef], types: &[DataType]) -> Result<Vec<ScalarValue>> {
    if parameters.len() != types.len() {
        return Err(Error::new(
            Code::InvalidParameter,
            format!(
                "the statement needs {} parameters, {} were given",
                types.len(),
                parameters.len()
            ),
        ));
    }
    let value = |(at, (array, data_type)): (usize, (&ArrayRef, &DataType))| -> Result<ScalarValue> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(Code::InvalidCast, format!("parameter ${}: {error}", at + 1))
        };
        if array.is_empty() {
            return Err(failed(&"has no value"));
        }
        let array = if array.data_type() == data_type {
            array.clone()
        } else {
            cast(array, data_type).map_err(|error| failed(&error))?
        };
        // The cast answers NULL for text that it cannot read.
        if array.is_null(0) && parameters[at].is_valid(0) {
            return Err(failed(&format!("the value is no {data_type}")));
        }
        ScalarValue::try_from_array(&array, 0).map_err(|error| failed(&error))
    };
    parameters.iter().zip(types).enumerate().map(value).collect()
}

/// Puts values into a plan.
pub(super) fn bind(plan: LogicalPlan, values: Vec<ScalarValue>) -> Result<LogicalPlan> {
    if values.is_empty() {
        return Ok(plan);
    }
    let values: ParamValues = values.into();
    plan.replace_params_with_values(&values).map_err(from_engine)
}

/// A value as SQL text, for statements that can only be planned with their values in place.
pub(super) fn literal(value: &ScalarValue) -> Result<ast::Expr> {
    let data_type = value.data_type();
    let null = || ast::Expr::value(ast::Value::Null);
    let text = |text: String| ast::Expr::value(ast::Value::SingleQuotedString(text));
    let array = value.to_array().map_err(from_engine)?;
    let inner = if value.is_null() {
        null()
    } else if data_type.is_integer() {
        return Ok(ast::Expr::value(ast::Value::Number(value.to_string(), false)));
    } else {
        let options = FormatOptions::default();
        let shown = ArrayFormatter::try_new(&array, &options)
            .and_then(|formatter| formatter.value(0).try_to_string());
        text(shown.map_err(|error| Error::new(Code::InvalidParameter, error.to_string()))?)
    };
    Ok(ast::Expr::Cast {
        kind: ast::CastKind::Cast,
        expr: Box::new(inner),
        data_type: sql_type(&data_type)?,
        array: false,
        format: None,
    })
}

/// The SQL type that the planner reads as an Arrow type.
pub(super) fn sql_type(data_type: &DataType) -> Result<ast::DataType> {
    let unsupported = || {
        Error::new(Code::Unsupported, format!("a parameter cannot be of type {data_type}"))
            .with_hint("cast it to a type that Kymo has")
    };
    Ok(match data_type {
        DataType::Boolean => ast::DataType::Boolean,
        DataType::Int8 => ast::DataType::TinyInt(None),
        DataType::Int16 => ast::DataType::SmallInt(None),
        DataType::Int32 => ast::DataType::Int(None),
        DataType::Int64 => ast::DataType::BigInt(None),
        DataType::UInt8 => ast::DataType::TinyIntUnsigned(None),
        DataType::UInt16 => ast::DataType::SmallIntUnsigned(None),
        DataType::UInt32 => ast::DataType::IntUnsigned(None),
        DataType::UInt64 => ast::DataType::BigIntUnsigned(None),
        DataType::Float32 => ast::DataType::Real,
        DataType::Float64 => ast::DataType::DoublePrecision,
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Null => {
            ast::DataType::Text
        }
        DataType::Binary => ast::DataType::Bytea,
        DataType::Date32 => ast::DataType::Date,
        DataType::Time64(_) | DataType::Time32(_) => ast::DataType::Time(None, TimezoneInfo::None),
        DataType::Timestamp(unit, zone) => {
            let precision = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            match zone {
                None => ast::DataType::Timestamp(Some(precision), TimezoneInfo::None),
                Some(_) => ast::DataType::Timestamp(None, TimezoneInfo::Tz),
            }
        }
        DataType::Interval(_) => ast::DataType::Interval { fields: None, precision: None },
        DataType::Decimal128(precision, scale) => ast::DataType::Decimal(
            ExactNumberInfo::PrecisionAndScale(u64::from(*precision), i64::from(*scale)),
        ),
        DataType::List(field) => ast::DataType::Array(ArrayElemTypeDef::SquareBracket(
            Box::new(sql_type(field.data_type())?),
            None,
        )),
        DataType::Dictionary(_, values) => sql_type(values)?,
        _ => return Err(unsupported()),
    })
}
