//! What the wire protocol needs from the system behind it: a session that runs SQL, and what
//! `COPY … FROM STDIN` needs to write rows.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use async_trait::async_trait;
use kymo_kernel::Result;
use kymo_kernel::message::{Acked, Outcome, Prepared, Runnable, SessionContext, Statement, Write};
use kymo_kernel::schema::{TableDef, TableName};

/// The system that connections talk to.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Whether a database exists.
    fn has_database(&self, name: &str) -> bool;

    /// The definition of a table.
    fn table(&self, name: &TableName) -> Option<Arc<TableDef>>;

    /// Opens the session of a connection.
    async fn open(&self, context: SessionContext) -> Result<Box<dyn Conversation>>;

    /// Writes rows.
    async fn write(&self, write: Write) -> Result<Acked>;
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transaction {
    /// Outside of a transaction.
    Idle,
    /// Inside of one.
    InBlock,
    /// Inside of one that failed.
    Failed,
}

/// The SQL session of one connection. Dropping it closes it.
#[async_trait]
pub trait Conversation: Send {
    /// Splits and parses.
    async fn parse(&mut self, sql: String) -> Result<Vec<Arc<Statement>>>;

    /// Plans without running.
    async fn prepare(
        &mut self,
        statement: Arc<Statement>,
        types: Vec<Option<DataType>>,
    ) -> Result<Arc<Prepared>>;

    /// Runs one statement; `timeout` counts until its last row.
    async fn execute(
        &mut self,
        run: Runnable,
        parameters: Vec<ArrayRef>,
        timeout: Option<Duration>,
    ) -> Result<Outcome>;

    /// Whether a transaction is open.
    fn transaction(&self) -> Transaction;

    /// What the session has chosen, as of its last statement.
    fn context(&self) -> Arc<SessionContext>;

    /// Stops the running statement, from any other task.
    fn canceller(&self) -> Arc<dyn Fn() + Send + Sync>;
}
