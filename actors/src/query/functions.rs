//! The functions that Kymo adds to the engine's.

mod bucket;
mod json;
mod pick;
mod session;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};

/// Scalar functions of our own.
pub(crate) fn scalars() -> Vec<Arc<ScalarUDF>> {
    let mut all = session::all();
    all.push(Arc::new(ScalarUDF::from(bucket::TimeBucket::new())));
    all.push(Arc::new(ScalarUDF::from(json::JsonBuildObject::new())));
    all
}

/// Aggregates of our own.
pub(crate) fn aggregates() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::from(pick::Pick::new(pick::End::First))),
        Arc::new(AggregateUDF::from(pick::Pick::new(pick::End::Last))),
    ]
}
