//! Functions of plugins in SQL: which ones a statement means, and how the engine calls them.
//!
//! ```text
//! names of a statement ── calls ──► lending: one snapshot of the registry, the query's instances
//!                                      │ scalar │ aggregate (groups, single, gather)
//!                                      │ window │ table
//!                                      ▼
//!                  functions of one statement's state ── bind ──► a prepared plan, run again
//! ```
//!
//! A statement is planned with one snapshot of the plugins, and keeps it until its last row:
//! no result ever comes from two versions.

mod account;
mod aggregate;
mod batches;
mod bind;
mod calls;
mod gather;
mod groups;
mod lending;
mod meant;
mod overloads;
mod scalar;
mod single;
mod table;
mod usage;
mod window;

use datafusion::common::DataFusionError;
use kymo_kernel::Error;

pub(super) use aggregate::is_of_plugin;
pub(super) use batches::coalesced;
pub(super) use bind::{bound, unbound};
pub(super) use calls::{Called, Place};
pub(super) use lending::{Lending, Terms};
pub(super) use usage::with_usage;
pub(super) use window::Ordered;

/// Our error on its way through the engine, which hands it on as it is.
fn foreign(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
