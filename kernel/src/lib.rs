//! The kernel: mechanisms without policy.
//!
//! Two halves live here. The first carries actors: [`actor`], [`port`], `host`
//! (the only file that knows actix, with [`pools`]), [`supervise`] and [`shutdown`];
//! [`simulate`] runs them on one thread. The second keeps data: [`storage`] is the
//! durable store as a plain library, without actors and without SQL, over the outside
//! world of [`mod@env`], or in a [`bucket`]. Both share [`error`], [`ids`], [`schema`], [`observe`] and
//! [`invariant`]; [`message`] names everything that crosses an actor boundary.
//!
//! The kernel never imports DataFusion, axum, pgwire or wasmtime.

pub mod actor;
pub mod alert;
pub mod bucket;
pub mod cancel;
pub mod continuous;
pub mod digest;
pub mod env;
pub mod error;
mod host;
pub mod ids;
pub mod invariant;
pub mod message;
pub mod observe;
pub mod plugin;
pub mod pools;
pub mod port;
pub mod schema;
pub mod shutdown;
pub mod simulate;
pub mod storage;
pub mod supervise;
pub mod user;

pub use error::{Code, Error, Result, Retry};

/// For the [`span!`] macro.
#[doc(hidden)]
pub use tracing as __tracing;

#[cfg(test)]
extern crate self as kymo_kernel;

#[cfg(test)]
#[path = "../../tests/fuzz/mutate.rs"]
mod fuzz;

/// What unit tests share with the tests beside the crate, which know it by its name.
#[cfg(test)]
#[path = "../tests/kit"]
mod kit {
    pub mod named;
    pub mod plugin;
}
