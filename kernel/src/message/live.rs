//! Following a query: what is asked of the query actor once, and what it gives to evaluate
//! every commit with.

use std::fmt;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::future::BoxFuture;

use crate::error::Result;
use crate::message::{BatchStream, Message, SessionContext, Statement};
use crate::schema::TableDef;
use crate::storage::version::Version;

/// Plans a query to be followed: a `SUBSCRIBE TO …`, or the query alone. Subscription → query.
#[derive(Debug)]
pub struct Follow {
    /// The statement.
    pub statement: Arc<Statement>,
    /// The values of `$1`, `$2` …, each an array of one element.
    pub parameters: Vec<ArrayRef>,
    /// For whom.
    pub session: Arc<SessionContext>,
}

impl Message for Follow {
    type Reply = Following;
}

/// A query that can be followed, and how its statement wants it.
pub struct Following {
    /// The query.
    pub query: Arc<dyn Followed>,
    /// What the statement says about rows that are there already: whether to send them first;
    /// `None` where it says nothing.
    pub snapshot: Option<bool>,
}

impl fmt::Debug for Following {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Following({})", self.query.table().name)
    }
}

/// A query over one table whose rows follow from the rows of each commit alone. Planned once;
/// Arrow from the commit to the subscriber.
pub trait Followed: Send + Sync {
    /// The table, as it was when the query was planned.
    fn table(&self) -> &Arc<TableDef>;

    /// The text of the query.
    fn text(&self) -> &str;

    /// How it is evaluated, in a word.
    fn class(&self) -> &'static str;

    /// The shape of its rows.
    fn schema(&self) -> &SchemaRef;

    /// What the query makes of committed rows of its table; they may hold any of its columns.
    /// Takes computing, so it belongs on the query runtime.
    ///
    /// # Errors
    /// Those of evaluating the query's expressions.
    fn changes(&self, rows: &RecordBatch) -> Result<RecordBatch>;

    /// The rows of the query over the table as it was at a version. A query like any other:
    /// admitted, limited in time and memory, and shown in `system.queries`.
    fn snapshot(&self, version: Arc<Version>) -> BoxFuture<'static, Result<BatchStream>>;
}
