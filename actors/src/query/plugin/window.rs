//! A plugin's window function as one of the engine's: it sees one whole partition in its order,
//! and where the peers of each row end.
//!
//! The engine hands an evaluator the arguments or the ranks, never both. So the expressions of
//! `ORDER BY` become arguments after the function's own when a call is planned, and the
//! evaluator finds the peers in them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::compute::SortColumn;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::utils::evaluate_partition_ranges;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::expr::NullTreatment;
use datafusion::logical_expr::function::{PartitionEvaluatorArgs, WindowUDFFieldArgs};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawWindowExpr};
use datafusion::logical_expr::{
    PartitionEvaluator, Signature, WindowFunctionDefinition, WindowUDF, WindowUDFImpl,
};
use datafusion::physical_expr::expressions::Literal;
use kymo_kernel::{Code, Error};
use kymo_plugins::{Argument, PluginFunction};

use super::calls::Called;
use super::lending::Lending;
use super::scalar::{same, volatility};
use super::{foreign, overloads};

/// The function, of one version, for one statement.
pub(super) struct PluginWindow {
    called: Called,
    function: PluginFunction,
    signature: Signature,
    /// How many arguments are the function's own, once a call is planned; those after them are
    /// the expressions of `ORDER BY`.
    own: Option<usize>,
    /// `None` within a prepared statement that does not run.
    lending: Option<Arc<Lending>>,
}

impl PluginWindow {
    pub(super) fn new(called: Called, function: PluginFunction, lending: Arc<Lending>) -> Self {
        let signature = Signature::user_defined(volatility(&function));
        PluginWindow { called, function, signature, own: None, lending: Some(lending) }
    }

    /// The same function for another statement, or for none.
    pub(super) fn lent(&self, lending: Option<&Arc<Lending>>) -> Arc<WindowUDF> {
        self.with(self.own, lending.cloned())
    }

    pub(super) fn called(&self) -> &Called {
        &self.called
    }

    pub(super) fn function(&self) -> &PluginFunction {
        &self.function
    }

    fn with(&self, own: Option<usize>, lending: Option<Arc<Lending>>) -> Arc<WindowUDF> {
        Arc::new(WindowUDF::from(PluginWindow {
            called: self.called.clone(),
            function: self.function.clone(),
            signature: self.signature.clone(),
            own,
            lending,
        }))
    }

    /// How many of so many arguments are the function's own.
    fn own(&self, arguments: usize) -> usize {
        self.own.unwrap_or(arguments).min(arguments)
    }
}

/// Makes the expressions of `ORDER BY` arguments of window functions of plugins, and refuses
/// what means nothing to them.
#[derive(Debug)]
pub(in super::super) struct Ordered;

impl ExprPlanner for Ordered {
    fn plan_window(&self, mut expr: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        let WindowFunctionDefinition::WindowUDF(function) = &expr.func_def else {
            return Ok(PlannerResult::Original(expr));
        };
        let Some(ours) = function.inner().downcast_ref::<PluginWindow>() else {
            return Ok(PlannerResult::Original(expr));
        };
        let refused = match expr {
            RawWindowExpr { filter: Some(_), .. } => Some("FILTER"),
            RawWindowExpr { distinct: true, .. } => Some("DISTINCT"),
            RawWindowExpr { null_treatment: Some(NullTreatment::IgnoreNulls), .. } => {
                Some("IGNORE NULLS")
            }
            _ => None,
        };
        if let Some(words) = refused {
            let text = format!("{words} does not go with window function {}", ours.called.key);
            return Err(foreign(Error::new(Code::Unsupported, text)));
        }
        let planned = ours.with(Some(expr.args.len()), ours.lending.clone());
        expr.func_def = WindowFunctionDefinition::WindowUDF(planned);
        expr.args.extend(expr.order_by.iter().map(|each| each.expr.clone()));
        Ok(PlannerResult::Original(expr))
    }
}

impl fmt::Debug for PluginWindow {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PluginWindow({} of {:?})", self.called.key, self.function.version())
    }
}

impl PartialEq for PluginWindow {
    fn eq(&self, other: &Self) -> bool {
        self.called == other.called
            && self.own == other.own
            && same(&self.function, &other.function)
    }
}

impl Eq for PluginWindow {}

impl Hash for PluginWindow {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.called, self.own).hash(state);
    }
}

impl WindowUDFImpl for PluginWindow {
    fn name(&self) -> &str {
        &self.called.key
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let (own, order) = types.split_at(self.own(types.len()));
        let chosen = overloads::choose(&self.called.key, self.function.function(), own);
        let (_, mut casts) = chosen.map_err(foreign)?;
        casts.extend_from_slice(order);
        Ok(casts)
    }

    fn field(&self, args: WindowUDFFieldArgs) -> Result<FieldRef> {
        let types = args.input_fields().iter().map(|field| field.data_type().clone());
        let mut types: Vec<DataType> = types.collect();
        types.truncate(self.own(types.len()));
        let function = self.function.function();
        let (overload, _) =
            overloads::choose(&self.called.key, function, &types).map_err(foreign)?;
        let result = function.overloads[overload].result().map_err(foreign)?;
        Ok(Arc::new(Field::new(args.name(), result.data_type().clone(), true)))
    }

    fn partition_evaluator(
        &self,
        args: PartitionEvaluatorArgs,
    ) -> Result<Box<dyn PartitionEvaluator>> {
        let own = self.own(args.input_fields().len());
        let types: Vec<&DataType> =
            args.input_fields().iter().take(own).map(|field| field.data_type()).collect();
        let function = self.function.function();
        let overload = overloads::exact(&self.called.key, function, &types).map_err(foreign)?;
        let Some(lending) = self.lending.clone() else {
            let text = format!("{} is called outside of a statement", self.called.key);
            return Err(foreign(Error::internal(text)));
        };
        let constant = |at: usize| {
            let literal = args.input_exprs().get(at)?.downcast_ref::<Literal>()?;
            Some(literal.value().clone())
        };
        let constants = (0..own).map(constant).collect();
        Ok(Box::new(Whole { lending, function: self.function.clone(), overload, constants }))
    }
}

/// Evaluates partitions, each as a whole.
struct Whole {
    lending: Arc<Lending>,
    function: PluginFunction,
    overload: usize,
    /// The arguments that are the same in every row.
    constants: Vec<Option<ScalarValue>>,
}

impl fmt::Debug for Whole {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Whole({})", self.function.function().name)
    }
}

impl PartitionEvaluator for Whole {
    fn evaluate_all(&mut self, values: &[ArrayRef], rows: usize) -> Result<ArrayRef> {
        let (own, order) = values.split_at(self.constants.len().min(values.len()));
        let peers = peers(order, rows)?;
        let argument = |(values, constant): (&ArrayRef, &Option<ScalarValue>)| {
            Ok(match constant {
                Some(value) => Argument::Constant(value.to_array()?),
                None => Argument::Column(values.clone()),
            })
        };
        let arguments =
            own.iter().zip(&self.constants).map(argument).collect::<Result<Vec<_>>>()?;
        let Whole { lending, function, overload, .. } = self;
        let call = || lending.charged().window(function, *overload, &arguments, &peers, rows);
        lending.attempt(call).map_err(foreign)
    }
}

/// Where the peers of each row end; without an order all rows are peers.
fn peers(order: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
    let column = |values: &ArrayRef| SortColumn { values: values.clone(), options: None };
    let columns: Vec<SortColumn> = order.iter().map(column).collect();
    let mut peers = Vec::with_capacity(rows);
    for range in evaluate_partition_ranges(rows, &columns)? {
        let end = u32::try_from(range.end).map_err(|_| {
            let text = format!("{rows} rows in one partition of a window function of a plugin");
            foreign(Error::new(Code::LimitReached, text))
        })?;
        peers.resize(range.end, end);
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::Int64Array;

    use super::*;

    #[test]
    fn peers_are_equal_in_every_column_of_the_order() {
        let column =
            |values: &[Option<i64>]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
        let first = column(&[Some(1), Some(1), Some(1), Some(2), None, None]);
        let second = column(&[Some(1), Some(1), Some(2), Some(2), None, None]);
        assert_eq!(peers(std::slice::from_ref(&first), 6).unwrap(), [3, 3, 3, 4, 6, 6]);
        assert_eq!(peers(&[first, second], 6).unwrap(), [2, 2, 3, 4, 6, 6]);
        assert_eq!(peers(&[], 3).unwrap(), [3, 3, 3]);
        assert_eq!(peers(&[], 0).unwrap(), [] as [u32; 0]);
    }
}
