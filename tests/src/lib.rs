//! What whole-system tests share: the real binary as a child process, clients for it, a
//! ledger of what it acknowledged, and workloads that a seed repeats.
//!
//! ```no_run
//! # async fn example() {
//! use kymo_tests::{Options, Server};
//!
//! let server = Server::start(Options::new());
//! server.write("cpu,host=a usage=1 1000000000").await;
//! let rows = server.sql("SELECT host, usage FROM cpu").await;
//! assert_eq!(rows[0]["host"], "a");
//! let client = server.pg().await;
//! let count: i64 = client.query_one("SELECT count(*) FROM cpu", &[]).await.unwrap().get(0);
//! assert_eq!(count, 1);
//! # }
//! ```

pub mod clients;
pub mod collector;
pub mod command;
pub mod component;
pub mod files;
pub mod ledger;
pub mod load;
pub mod python;
pub mod receiver;
pub mod s3;
pub mod server;
pub mod tls;
pub mod wait;
pub mod workload;

pub use clients::Answer;
pub use ledger::Ledger;
pub use receiver::{Behaviour, Receiver};
pub use server::{Options, Server, StartFailed};
pub use tls::Certificate;
pub use wait::{until, until_async};
pub use workload::{Batch, Workload, seed};

/// The administrator of test servers.
pub const ADMIN: &str = "admin";
/// Their password.
pub const PASSWORD: &str = "correct horse battery staple";
