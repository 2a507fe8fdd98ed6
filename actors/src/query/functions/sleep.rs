//! `pg_sleep(seconds)`: waits, on the server's clock, without a thread of its own.
//!
//! It is asynchronous, so that a cancelled or late statement wakes up at once.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, AsArray, StringArray};
use datafusion::arrow::datatypes::{DataType, Float64Type};
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::logical_expr::async_udf::{AsyncScalarUDF, AsyncScalarUDFImpl};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use kymo_kernel::env::Clock;

/// The longest time that one row may wait, in seconds: about thirty years.
const LONGEST: f64 = 1e9;

/// The function over a clock.
pub(super) fn pg_sleep(clock: Arc<dyn Clock>) -> ScalarUDF {
    let signature = Signature::exact(vec![DataType::Float64], Volatility::Volatile);
    AsyncScalarUDF::new(Arc::new(Sleep { signature, clock })).into_scalar_udf()
}

struct Sleep {
    signature: Signature,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Sleep {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Sleep")
    }
}

// There is one clock, and one function over it.
impl PartialEq for Sleep {
    fn eq(&self, other: &Self) -> bool {
        self.signature == other.signature
    }
}

impl Eq for Sleep {}

impl Hash for Sleep {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.signature.hash(state);
    }
}

impl ScalarUDFImpl for Sleep {
    fn name(&self) -> &str {
        "pg_sleep"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("pg_sleep is asynchronous")
    }
}

#[async_trait]
impl AsyncScalarUDFImpl for Sleep {
    async fn invoke_async_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let Some(seconds) = args.args.first() else {
            return exec_err!("pg_sleep takes a number of seconds");
        };
        let seconds = seconds.to_array(rows)?;
        let seconds = seconds.as_primitive::<Float64Type>();
        let total: Duration = seconds
            .iter()
            .flatten()
            .map(|seconds| Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST)))
            // What is no number waits for nothing.
            .map(Result::unwrap_or_default)
            .sum();
        self.clock.sleep(total).await;
        // PostgreSQL's void: an empty text, and NULL for NULL.
        let done = seconds.iter().map(|seconds| seconds.map(|_| ""));
        let done: ArrayRef = Arc::new(done.collect::<StringArray>());
        Ok(ColumnarValue::Array(done))
    }
}
