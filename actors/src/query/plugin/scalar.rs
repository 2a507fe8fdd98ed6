//! A plugin's scalar function as one of the engine's.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use kymo_kernel::Error;
use kymo_plugins::{Argument, Nulls, PluginFunction};

use super::calls::Called;
use super::lending::Lending;
use super::{foreign, overloads};

/// The function, of one version, for one statement.
pub(super) struct PluginScalar {
    called: Called,
    function: PluginFunction,
    signature: Signature,
    /// `None` within a prepared statement that does not run.
    lending: Option<Arc<Lending>>,
}

impl PluginScalar {
    pub(super) fn new(called: Called, function: PluginFunction, lending: Arc<Lending>) -> Self {
        let signature = Signature::user_defined(volatility(&function));
        PluginScalar { called, function, signature, lending: Some(lending) }
    }

    /// The same function for another statement, or for none.
    pub(super) fn lent(&self, lending: Option<&Arc<Lending>>) -> Arc<ScalarUDF> {
        Arc::new(ScalarUDF::from(PluginScalar {
            called: self.called.clone(),
            function: self.function.clone(),
            signature: self.signature.clone(),
            lending: lending.cloned(),
        }))
    }

    pub(super) fn called(&self) -> &Called {
        &self.called
    }

    pub(super) fn function(&self) -> &PluginFunction {
        &self.function
    }

    fn call(&self, args: &ScalarFunctionArgs) -> kymo_kernel::Result<ColumnarValue> {
        let name = &self.called.key;
        let types: Vec<&DataType> = args.arg_fields.iter().map(|field| field.data_type()).collect();
        let overload = overloads::exact(name, self.function.function(), &types)?;
        let Some(lending) = &self.lending else {
            return Err(Error::internal(format!("{name} is called outside of a statement")));
        };
        let constant = args.args.iter().all(|each| matches!(each, ColumnarValue::Scalar(_)))
            && self.signature.volatility != Volatility::Volatile;
        let rows = if constant { 1 } else { args.number_rows };
        let arguments = args.args.iter().map(argument).collect::<kymo_kernel::Result<Vec<_>>>()?;
        let found = lending
            .attempt(|| lending.charged().scalar(&self.function, overload, &arguments, rows))?;
        match constant {
            true => scalar(&found).map(ColumnarValue::Scalar),
            false => Ok(ColumnarValue::Array(found)),
        }
    }
}

/// How far the engine may reuse results.
pub(super) fn volatility(function: &PluginFunction) -> Volatility {
    match function.function().volatility {
        kymo_plugins::Volatility::Immutable => Volatility::Immutable,
        kymo_plugins::Volatility::Stable => Volatility::Stable,
        kymo_plugins::Volatility::Volatile => Volatility::Volatile,
    }
}

/// Whether two calls mean the same function of the same version.
pub(super) fn same(one: &PluginFunction, other: &PluginFunction) -> bool {
    std::ptr::eq(one.function(), other.function())
}

fn argument(value: &ColumnarValue) -> kymo_kernel::Result<Argument> {
    Ok(match value {
        ColumnarValue::Array(array) => Argument::Column(array.clone()),
        ColumnarValue::Scalar(value) => {
            Argument::Constant(value.to_array().map_err(super::super::error::from_engine)?)
        }
    })
}

pub(super) fn scalar(array: &ArrayRef) -> kymo_kernel::Result<ScalarValue> {
    ScalarValue::try_from_array(array, 0).map_err(super::super::error::from_engine)
}

impl fmt::Debug for PluginScalar {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "PluginScalar({} of {:?})", self.called.key, self.function.version())
    }
}

impl PartialEq for PluginScalar {
    fn eq(&self, other: &Self) -> bool {
        self.called == other.called && same(&self.function, &other.function)
    }
}

impl Eq for PluginScalar {}

impl Hash for PluginScalar {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.called.hash(state);
    }
}

impl ScalarUDFImpl for PluginScalar {
    fn name(&self) -> &str {
        &self.called.key
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let chosen = overloads::choose(&self.called.key, self.function.function(), types);
        chosen.map(|(_, casts)| casts).map_err(foreign)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let function = self.function.function();
        let (overload, _) =
            overloads::choose(&self.called.key, function, types).map_err(foreign)?;
        let field = function.overloads[overload].result().map_err(foreign)?;
        Ok(field.data_type().clone())
    }

    fn is_strict(&self) -> bool {
        self.function.function().nulls == Nulls::Skip
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.call(&args).map_err(foreign)
    }
}
