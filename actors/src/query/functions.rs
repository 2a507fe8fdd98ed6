//! The functions that Kymo adds to the engine's.

mod arithmetic;
mod bounded;
mod bucket;
mod growth;
mod hops;
mod json;
mod pick;
mod session;
mod sleep;
mod sum;

use std::sync::Arc;

use datafusion::logical_expr::{AggregateUDF, ScalarUDF};
use kymo_kernel::env::Clock;

pub(crate) use arithmetic::Operation;
pub(crate) use bounded::{Bounds, bounded};
pub(crate) use bucket::{MONDAY as MILLENNIUM_MONDAY, NAME as TIME_BUCKET};
pub(crate) use hops::NAME as TIME_HOPS;

/// Scalar functions of our own.
pub(crate) fn scalars(clock: &Arc<dyn Clock>) -> Vec<Arc<ScalarUDF>> {
    let mut all = session::all();
    all.push(Arc::new(sleep::pg_sleep(clock.clone())));
    all.push(Arc::new(ScalarUDF::from(bucket::TimeBucket::new())));
    all.push(Arc::new(ScalarUDF::from(hops::TimeHops::new())));
    all.push(Arc::new(ScalarUDF::from(json::JsonBuildObject::new())));
    all
}

/// Aggregates of our own.
pub(crate) fn aggregates() -> Vec<Arc<AggregateUDF>> {
    vec![
        Arc::new(AggregateUDF::from(pick::Pick::new(pick::End::First))),
        Arc::new(AggregateUDF::from(pick::Pick::new(pick::End::Last))),
        Arc::new(AggregateUDF::from(sum::Sum::new())),
    ]
}
