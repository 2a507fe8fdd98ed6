//! Kymo inside of another program: a thin wrapper over [`System`] that owns its threads.
//!
//! Calls block, so they do not belong inside asynchronous code; there, use the ports of
//! [`Database::system`].
//!
//! ```no_run
//! # fn main() -> kymo_kernel::Result<()> {
//! let database = kymo_actors::Database::open("./data")?;
//! database.query("CREATE TABLE cpu (host TEXT TAG, usage DOUBLE, time TIMESTAMP TIME INDEX)")?;
//! database.query("INSERT INTO cpu (host, usage, time) VALUES ('a', 0.5, now())")?;
//! let rows = database.query("SELECT host, usage FROM cpu")?;
//! assert_eq!(rows[0].num_rows(), 1);
//! database.close()
//! # }
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use futures::TryStreamExt;
use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::real;
use kymo_kernel::message::{
    Acked, Outcome, Parse, Query, Runnable, SessionContext, Statement, Write,
};
use kymo_kernel::pools::{PoolSizes, Pools};
use kymo_kernel::schema::{DEFAULT_DATABASE, DEFAULT_SCHEMA, TableBatch};
use kymo_kernel::{Code, Error, Result};

use crate::System;

/// Who the embedding program is to queries.
const EMBEDDED_USER: &str = "embedded";

/// An open database. Closing it is good manners; a program that just ends loses nothing that
/// was acknowledged.
pub struct Database {
    system: System,
    pools: Pools,
    session: Arc<SessionContext>,
}

impl Database {
    /// Opens or creates the database in a folder, with default settings.
    ///
    /// # Errors
    /// As [`System::boot`].
    pub fn open(folder: impl Into<PathBuf>) -> Result<Database> {
        let mut settings = Settings::default();
        settings.server.data_dir = folder.into();
        Database::open_with(settings)
    }

    /// Opens or creates the database that the settings describe.
    ///
    /// # Errors
    /// As [`System::boot`].
    pub fn open_with(settings: Settings) -> Result<Database> {
        let pools = Pools::start(PoolSizes::of(&settings, PoolSizes::cores()))?;
        let system = System::boot(Arc::new(settings), real::env(), pools.clone())?;
        let session = Arc::new(SessionContext {
            user: EMBEDDED_USER.to_owned(),
            admin: true,
            database: DEFAULT_DATABASE.to_owned(),
            schema: DEFAULT_SCHEMA.to_owned(),
            settings: BTreeMap::new(),
            read_only: false,
        });
        Ok(Database { system, pools, session })
    }

    /// The system inside.
    #[must_use]
    pub fn system(&self) -> &System {
        &self.system
    }

    /// Keeps rows, and creates tables and columns that are missing; rows of a conflicting
    /// type are left out and reported. Returns when they are durable and visible.
    ///
    /// # Errors
    /// `busy` under pressure, `poisoned` after an I/O error, and those of the definitions.
    pub fn write(&self, batches: Vec<TableBatch>) -> Result<Acked> {
        let write = Write { batches, durability: None, create: true, partial: true };
        self.pools.block_on(self.system.write().call(write))?
    }

    /// Runs SQL, one statement after the other, and returns the rows of the last one.
    ///
    /// # Errors
    /// What the first statement that fails says; earlier ones stay done.
    pub fn query(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.pools.block_on(self.run(sql.to_owned()))?
    }

    async fn run(&self, sql: String) -> Result<Vec<RecordBatch>> {
        let mut rows = Vec::new();
        for statement in self.system.parse().call(Parse { sql }).await? {
            rows = self.run_one(statement).await?;
        }
        Ok(rows)
    }

    async fn run_one(&self, statement: Arc<Statement>) -> Result<Vec<RecordBatch>> {
        let query = Query {
            run: Runnable::Statement(statement),
            parameters: Vec::new(),
            session: self.session.clone(),
            timeout: None,
            cancel: CancelToken::new(),
        };
        match self.system.query().call(query).await? {
            Outcome::Rows { stream, .. } => stream.try_collect().await,
            _ => Ok(Vec::new()),
        }
    }

    /// Stops in order and waits for it.
    ///
    /// # Errors
    /// `deadline_exceeded` naming what did not end in time; nothing acknowledged is lost then
    /// either.
    pub fn close(self) -> Result<()> {
        let report = self.pools.block_on(self.system.shutdown())?;
        self.pools.stop();
        if report.is_clean() {
            return Ok(());
        }
        let late: Vec<_> = report.phases.iter().flat_map(|phase| phase.late.clone()).collect();
        Err(Error::new(Code::Deadline, format!("close the database: {late:?} did not end in time")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kit::{cpu, rows};

    #[test]
    fn a_closed_database_opens_again_with_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let acked = database.write(vec![rows(&cpu(), &[("a", 1, 0.5), ("b", 2, 1.5)])]).unwrap();
        assert_eq!(acked.rows, 2);
        let second = Database::open(folder.path()).err().map(|error| error.code());
        assert_eq!(second, Some(Code::Locked));
        database.close().unwrap();
        let database = Database::open(folder.path()).unwrap();
        let batches = database.query("SELECT host, value FROM cpu ORDER BY host").unwrap();
        let count: usize = batches.iter().map(RecordBatch::num_rows).sum();
        assert_eq!(count, 2);
        database.query("DROP TABLE cpu").unwrap();
        let error = database.query("SELECT * FROM cpu").unwrap_err();
        assert_eq!(error.code(), Code::TableNotFound);
        database.close().unwrap();
    }
}
