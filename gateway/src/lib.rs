//! The edge: HTTP, the PostgreSQL wire protocol, authentication and the command line.
//!
//! Programs that want the database without its servers use [`Database`], and depend on this
//! crate with `default-features = false`: the feature `server` holds everything that listens,
//! and the command line.
//!
//! ```no_run
//! # fn main() -> kymo::Result<()> {
//! let database = kymo::Database::open("./data")?;
//! database.query("CREATE TABLE cpu (host TEXT TAG, usage DOUBLE, time TIMESTAMP TIME INDEX)")?;
//! database.query("INSERT INTO cpu (host, usage, time) VALUES ('a', 0.5, now())")?;
//! let rows = database.query("SELECT host, usage FROM cpu")?;
//! assert_eq!(rows[0].num_rows(), 1);
//! database.close()
//! # }
//! ```

#[cfg(feature = "server")]
pub mod auth;
#[cfg(feature = "server")]
pub mod changes;
#[cfg(feature = "server")]
pub mod cli;
pub mod columns;
#[cfg(feature = "server")]
pub mod download;
#[cfg(feature = "server")]
pub mod error;
#[cfg(feature = "server")]
pub mod http;
pub mod json_records;
#[cfg(feature = "server")]
pub mod limits;
pub mod line_protocol;
#[cfg(feature = "server")]
pub mod notify;
#[cfg(feature = "server")]
pub mod pgwire;
#[cfg(feature = "server")]
pub mod process;
#[cfg(feature = "server")]
pub mod serve;
#[cfg(feature = "server")]
pub mod sql_text;
#[cfg(feature = "server")]
pub mod system;
#[cfg(feature = "server")]
pub mod tls;

pub use kymo_actors::Database;
pub use kymo_kernel::{Code, Error, Result};
#[cfg(feature = "server")]
pub use serve::{Serving, serve};

#[cfg(test)]
#[path = "../../tests/fuzz/mutate.rs"]
mod fuzz;
