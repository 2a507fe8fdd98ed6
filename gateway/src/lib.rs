//! The edge: HTTP, the PostgreSQL wire protocol, authentication and the command line.

pub mod auth;
pub mod error;
pub mod limits;
pub mod tls;
