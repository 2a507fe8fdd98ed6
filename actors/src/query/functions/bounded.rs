//! Functions that refuse to make values larger than queries may hold.
//!
//! The engine charges what operators keep to the memory of queries, but not what a function
//! returns: `repeat('x', 1900000000)` would take what the machine has, and cannot be stopped
//! while it works. Here the library's own functions are asked first how large their results
//! would get.

use std::sync::Arc;

use datafusion::arrow::array::Array;
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use kymo_config::settings::Query;
use kymo_kernel::{Code, Error};

use super::growth::{self, Growth};

/// How large values may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    /// Bytes of one value.
    pub(crate) value: u64,
    /// Bytes of the values that one call returns.
    pub(crate) batch: u64,
}

impl Bounds {
    /// What the settings say.
    pub(crate) fn of(settings: &Query) -> Self {
        Bounds { value: settings.max_value_bytes, batch: settings.max_batch_bytes }
    }

    /// Refuses results of these sizes.
    fn check(self, name: &str, sizes: impl Iterator<Item = u64>) -> Result<()> {
        let mut total = 0_u64;
        for size in sizes {
            if size > self.value {
                return too_large(format!(
                    "{name} would make a value of {size} bytes, more than \
                     query.max_value_bytes = {}",
                    self.value
                ));
            }
            total = total.saturating_add(size);
        }
        if total > self.batch {
            return too_large(format!(
                "{name} would make {total} bytes at once, more than query.max_batch_bytes = {}",
                self.batch
            ));
        }
        Ok(())
    }
}

fn too_large<T>(text: String) -> Result<T> {
    let error = Error::new(Code::TooLarge, text)
        .with_hint("make the values shorter, or ask the administrator to raise the limit");
    Err(DataFusionError::External(Box::new(error)))
}

/// A function of the library with a check of its results' sizes before it runs.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    bounds: Bounds,
}

/// The function with its check; `None` for one that needs none, or has one.
pub(crate) fn bounded(function: &Arc<ScalarUDF>, bounds: Bounds) -> Option<Arc<ScalarUDF>> {
    if function.inner().is::<Bounded>() {
        return None;
    }
    let growth = growth::of(function.name())?;
    Some(Arc::new(ScalarUDF::from(Bounded { inner: Arc::clone(function), growth, bounds })))
}

/// Checks the sizes of a call's results.
///
/// # Errors
/// `too_large`.
pub(super) fn check(
    name: &str,
    growth: Growth,
    bounds: Bounds,
    arguments: &[ColumnarValue],
    rows: usize,
) -> Result<()> {
    let constant = arguments.iter().all(|each| matches!(each, ColumnarValue::Scalar(_)));
    let rows = if constant { 1 } else { rows };
    // Small arguments that are only put together need no closer look.
    if let Growth::Joined(times) = growth {
        let bytes = |value: &ColumnarValue| match value {
            ColumnarValue::Array(array) => array.get_array_memory_size() as u64,
            ColumnarValue::Scalar(scalar) => scalar.size() as u64 * rows as u64,
        };
        let all: u64 = arguments.iter().map(bytes).fold(0, u64::saturating_add);
        if all.saturating_mul(times) <= bounds.value.min(bounds.batch) {
            return Ok(());
        }
    }
    bounds.check(name, growth.bytes(arguments, rows)?.into_iter())
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(types)
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn is_strict(&self) -> bool {
        self.inner.inner().is_strict()
    }

    // The library's own simplifications would put the unchecked function in again.

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.inner.output_ordering(inputs)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        check(self.name(), self.growth, self.bounds, &args.args, args.number_rows)?;
        self.inner.invoke_with_args(args)
    }
}
