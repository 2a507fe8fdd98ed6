//! The edge: HTTP, the PostgreSQL wire protocol, authentication and the command line.
//!
//! Programs that want the database without its servers use [`Database`].

pub mod auth;
pub mod cli;
pub mod columns;
pub mod error;
pub mod http;
pub mod json_records;
pub mod limits;
pub mod line_protocol;
pub mod pgwire;
pub mod serve;
pub mod system;
pub mod tls;

pub use kymo_actors::Database;
pub use serve::{Serving, serve};
