//! Every message that crosses an actor boundary, with its reply and its weight.
//!
//! A message is plain data plus, at most, channels. Its [`Message::weight`] is what it costs
//! of the receiving port's byte budget for as long as it is queued or being worked on.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use futures::Stream;
use serde::{Deserialize, Serialize};

use crate::cancel::CancelToken;
use crate::error::{Code, Error, Result};
use crate::ids::{MetaVersion, Position, TableId, TimeRange};
use crate::schema::{Column, TableBatch, TableDef, TableName, TableOptions, TableSchema};
use crate::storage::log::Record;
use crate::user::User;

mod alerts;
mod compact;
mod continuous;
mod deletes;
mod live;
mod plugins;

pub use alerts::{
    AlertCommand, AlertDdl, AlertDone, AlertStatus, Inbox, Labels, Notification, Outlet,
};
pub use compact::{Compact, Compaction, Stage};
pub use continuous::ContinuousDdl;
pub use deletes::{Choose, Delete, Deleted, Doomed};
pub use live::{
    Follow, Followed, Following, Keep, Keeping, Taken, WindowSpec, Windowed, row_bytes,
};
pub use plugins::{Existing, PluginCommand, PluginDdl, PluginDone, PluginSource};

/// Something an actor can be asked.
pub trait Message: Send + 'static {
    /// What a successful answer holds.
    type Reply: Send + 'static;

    /// What it costs of the port's byte budget. Zero for control messages.
    fn weight(&self) -> usize {
        0
    }
}

/// When a write is acknowledged, and so what a crash can cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// After an fsync of the journal, shared by all that waited. A crash costs nothing.
    EveryWrite,
    /// After the write to the journal; an fsync follows at an interval. A killed process
    /// costs nothing, a power cut up to one interval.
    Periodic,
    /// After the write to the journal; the operating system flushes when it likes. A killed
    /// process costs nothing, a power cut what the system had not flushed.
    OsDefault,
    /// Before anything is written. A killed process costs what was queued.
    None,
}

impl FromStr for Durability {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "every_write" => Durability::EveryWrite,
            "periodic" => Durability::Periodic,
            "os_default" => Durability::OsDefault,
            "none" => Durability::None,
            other => {
                return Err(Error::new(
                    Code::InvalidInput,
                    format!("unknown durability {other:?}"),
                )
                .with_hint("use every_write, periodic, os_default or none"));
            }
        })
    }
}

/// Rows for any number of tables of one request. Gateway → ingest.
#[derive(Debug)]
pub struct Write {
    /// The rows; each table at most once.
    pub batches: Vec<TableBatch>,
    /// Overrides the server's durability for this request.
    pub durability: Option<Durability>,
    /// Whether missing databases, tables and columns are created.
    pub create: bool,
    /// Whether rows of a column whose type conflicts are left out and reported (true), or
    /// make the whole request fail (false).
    pub partial: bool,
}

impl Message for Write {
    type Reply = Acked;

    fn weight(&self) -> usize {
        self.batches.iter().map(|each| each.batch.get_array_memory_size()).sum()
    }
}

/// The answer to an accepted write.
#[derive(Debug, Clone, Default)]
pub struct Acked {
    /// How many rows are kept.
    pub rows: u64,
    /// The position up to which a reader must see to see all of them, where any were kept.
    pub position: Option<Position>,
    /// Rows that were left out.
    pub rejected: Vec<RejectedRow>,
    /// How many rows the table's transforms refused; `system.rejected_writes` has them.
    pub refused: u64,
}

/// A row that could not be taken.
#[derive(Debug, Clone)]
pub struct RejectedRow {
    /// Its line in the request, from 1; 0 where rows have no lines.
    pub line: u32,
    /// Why.
    pub error: Error,
}

/// Rows of one table that fit its schema at `schema_version`. Ingest → writer.
#[derive(Debug)]
pub struct Append {
    /// The rows, with the table's column names and Arrow types; any subset of the columns.
    pub batch: RecordBatch,
    /// The same rows as the log keeps them, encoded by the sender so that writers only queue.
    pub record: Record,
    /// When to acknowledge; the server's setting where absent.
    pub durability: Option<Durability>,
    /// Rows of another table that share the fate of these.
    pub beside: Option<Beside>,
}

impl Message for Append {
    type Reply = Position;

    fn weight(&self) -> usize {
        let beside = self.beside.as_ref().map_or(0, |other| weight(&other.batch, &other.record));
        weight(&self.batch, &self.record) + beside
    }
}

fn weight(batch: &RecordBatch, record: &Record) -> usize {
    batch.get_array_memory_size() + record.payload.len()
}

/// Rows of a second table that become durable in one group with an [`Append`], or not at all.
/// Such a group is synced before it is acknowledged, whatever the append asks for.
pub struct Beside {
    /// The rows, as in an [`Append`].
    pub batch: RecordBatch,
    /// The same rows as the log keeps them.
    pub record: Record,
    /// Hands the durable rows to the writer of their table. It is called in the order of the
    /// log, on the log's thread, so it must be quick.
    pub deliver: Deliver,
}

/// Takes rows that are durable at a position to the writer of their table.
pub type Deliver = Box<dyn FnOnce(Position, RecordBatch) + Send>;

impl fmt::Debug for Beside {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Beside(table {}, {} rows)", self.record.table, self.batch.num_rows())
    }
}

/// Rows of one of Kymo's own tables.
#[derive(Debug)]
pub struct OwnRows {
    /// The rows.
    pub rows: TableBatch,
    /// The columns of the table, to make it where it is missing.
    pub schema: TableSchema,
    /// Its options.
    pub options: TableOptions,
}

/// Rows of Kymo's own tables, which others may not fill: all of them or none, and synced before
/// they are acknowledged. Alerts → ingest.
#[derive(Debug)]
pub struct WriteOwn {
    /// The rows.
    pub rows: OwnRows,
    /// Rows of a second table that share their fate.
    pub beside: Option<OwnRows>,
}

impl Message for WriteOwn {
    type Reply = ();

    fn weight(&self) -> usize {
        let both = [Some(&self.rows), self.beside.as_ref()];
        both.into_iter().flatten().map(|own| own.rows.batch.get_array_memory_size()).sum()
    }
}

/// A change of definitions. Query, ingest → catalog.
#[derive(Debug, Clone)]
pub enum Ddl {
    /// `CREATE DATABASE`.
    CreateDatabase {
        /// Its name.
        name: String,
        /// Succeed silently where it exists.
        if_not_exists: bool,
    },
    /// `DROP DATABASE`, with all of its tables.
    DropDatabase {
        /// Its name.
        name: String,
        /// Succeed silently where it does not exist.
        if_exists: bool,
    },
    /// `CREATE TABLE`.
    CreateTable {
        /// Its name; the database must exist unless `create_database`.
        name: TableName,
        /// Its columns; ids and version are assigned by the catalog.
        schema: TableSchema,
        /// Its options.
        options: TableOptions,
        /// Succeed silently where it exists.
        if_not_exists: bool,
        /// Create the database too where it is missing.
        create_database: bool,
        /// For how many nanoseconds its rows are kept; zero means for ever, `None` as long as the
        /// database says.
        retention_ns: Option<i64>,
    },
    /// Adds the columns of `schema` that the table lacks. Those that exist must agree; where the
    /// table widens integers, an integer field becomes floating point if it is to be that.
    AddColumns {
        /// The table.
        table: TableId,
        /// The columns; ids are assigned by the catalog.
        schema: TableSchema,
    },
    /// `ALTER TABLE`: all of the changes or none.
    AlterTable {
        /// Its name.
        name: TableName,
        /// Succeed silently where it does not exist.
        if_exists: bool,
        /// In order, each on what the ones before left.
        changes: Vec<TableChange>,
    },
    /// `DROP TABLE`.
    DropTable {
        /// Its name.
        name: TableName,
        /// Succeed silently where it does not exist.
        if_exists: bool,
    },
    /// Sets for how long rows are kept. Rows older than that are gone at once for whoever asks.
    SetRetention {
        /// What it is set for; it must exist.
        of: Kept,
        /// Nanoseconds, one second or more; zero means for ever, `None` takes back what was set.
        retention_ns: Option<i64>,
    },
    /// Creates or replaces an account.
    PutUser(User),
    /// Changes plugins; asked by their manager only.
    Plugin(PluginDdl),
    /// Changes continuous queries.
    Continuous(ContinuousDdl),
    /// Changes alert rules and silences; asked by who evaluates them only.
    Alert(AlertDdl),
}

/// One change of a table's definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableChange {
    /// `ADD COLUMN`.
    AddColumn {
        /// The column; its id is assigned by the catalog.
        column: Column,
        /// Succeed silently where the name is taken.
        if_not_exists: bool,
    },
    /// `DROP COLUMN`: a field with its values.
    DropColumn {
        /// Its name.
        name: String,
        /// Succeed silently where it does not exist.
        if_exists: bool,
    },
    /// `RENAME COLUMN`.
    RenameColumn {
        /// Its name.
        from: String,
        /// The new one.
        to: String,
    },
    /// `SET (widen_integers = …)`.
    WidenIntegers(bool),
}

/// What a retention is set for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// All tables of a database that say nothing themselves.
    Database(String),
    /// One table.
    Table(TableName),
}

impl Message for Ddl {
    type Reply = DdlDone;
}

/// The answer to a change of definitions.
#[derive(Debug, Clone)]
pub struct DdlDone {
    /// The metadata version that holds the change.
    pub version: MetaVersion,
    /// Whether anything changed.
    pub changed: bool,
    /// The table concerned, as it is now.
    pub table: Option<Arc<TableDef>>,
}

/// A change of a table that is durable and visible, for everything that follows the data: new
/// rows, or word that rows are gone. Writer → feed.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The table.
    pub table: Arc<TableDef>,
    /// Where the rows lie in the log. Of a deletion: the newest position that was visible
    /// when its rows went, which other rows have, too.
    pub position: Position,
    /// The rows; empty of a deletion.
    pub batch: RecordBatch,
    /// Rows within these times may be gone, of which nothing else tells. It comes to every
    /// subscriber, also to one that lags, and in order: whoever reads the table after it does
    /// not see the rows any more. Look at it before passing over a position that is known.
    pub deleted: Option<TimeRange>,
    /// Whether some of them may have the tags and time of a row that was there.
    pub late: bool,
    /// When they became visible, on the monotonic clock.
    pub at: Duration,
}

impl Message for Committed {
    type Reply = ();

    fn weight(&self) -> usize {
        self.batch.get_array_memory_size()
    }
}

/// What a connection has chosen: where unqualified names are looked up, and its settings.
#[derive(Debug, Clone)]
pub struct SessionContext {
    /// Who asks.
    pub user: String,
    /// Whether they may change definitions and see what other users ask.
    pub admin: bool,
    /// The current database.
    pub database: String,
    /// The current schema.
    pub schema: String,
    /// Run-time parameters set by the client (`SET name = value`), by lower-case name.
    pub settings: BTreeMap<String, String>,
    /// Whether only statements that change nothing are allowed.
    pub read_only: bool,
}

/// A parsed SQL statement; what it parsed to is the query actor's own business.
pub struct Statement {
    /// Its text.
    pub text: Arc<str>,
    /// The first words of its command tag: `SELECT`, `INSERT`, `BEGIN`, `CREATE TABLE` …
    pub verb: String,
    /// The syntax tree.
    pub tree: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Statement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Statement({:?})", self.text)
    }
}

/// Splits and parses SQL text. Session, gateway → query.
#[derive(Debug)]
pub struct Parse {
    /// Any number of statements.
    pub sql: String,
}

impl Message for Parse {
    type Reply = Vec<Arc<Statement>>;

    fn weight(&self) -> usize {
        self.sql.len()
    }
}

/// Plans a statement without running it. Session → query.
#[derive(Debug)]
pub struct Prepare {
    /// The statement.
    pub statement: Arc<Statement>,
    /// The types of `$1`, `$2` … that the client has fixed.
    pub types: Vec<Option<DataType>>,
    /// For whom.
    pub session: Arc<SessionContext>,
}

impl Message for Prepare {
    type Reply = Arc<Prepared>;
}

/// A planned statement that can run many times.
pub struct Prepared {
    /// The statement.
    pub statement: Arc<Statement>,
    /// The types of its parameters, in order.
    pub parameters: Vec<DataType>,
    /// The shape of its rows; `None` for a statement that returns none.
    pub columns: Option<SchemaRef>,
    /// The plan.
    pub plan: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Prepared({:?})", self.statement.text)
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub enum Runnable {
    /// A statement as parsed.
    Statement(Arc<Statement>),
    /// A statement planned earlier; planned again by itself where definitions have changed.
    Prepared(Arc<Prepared>),
}

/// Runs one statement. Session, gateway → query.
#[derive(Debug)]
pub struct Query {
    /// What.
    pub run: Runnable,
    /// The values of `$1`, `$2` …, each an array of one element.
    pub parameters: Vec<ArrayRef>,
    /// For whom.
    pub session: Arc<SessionContext>,
    /// How long it may take from now, admission included; the server's limit where absent.
    pub timeout: Option<Duration>,
    /// Stops it while it waits, plans or runs; dropping the answer's stream stops it as well.
    pub cancel: CancelToken,
}

impl Message for Query {
    type Reply = Outcome;
}

/// Batches on their way to a client. Dropping it stops the query.
pub type BatchStream = Pin<Box<dyn Stream<Item = Result<RecordBatch>> + Send>>;

/// A session setting that a query changed while it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// Its key; `database` and `schema` are keys like any other.
    pub name: String,
    /// Its value; `None` means back to the default.
    pub value: Option<String>,
    /// Whether it lasts until the transaction ends only.
    pub local: bool,
}

/// What a statement came to.
pub enum Outcome {
    /// Rows.
    Rows {
        /// Their shape.
        schema: SchemaRef,
        /// The rows; ends with an error item where execution fails.
        stream: BatchStream,
        /// Session settings that the query changed (`set_config`), to be kept by the session.
        settings: Vec<SettingChange>,
    },
    /// No rows: a command that is done.
    Done {
        /// The command tag, such as `INSERT` or `CREATE TABLE`.
        verb: String,
        /// How many rows it wrote, where that means something.
        rows: Option<u64>,
        /// Session settings that it changed, to be kept by the session; `None` as the value
        /// means back to the default. `database` and `schema` are keys like any other.
        settings: Vec<(String, Option<String>)>,
    },
}

impl fmt::Debug for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Rows { schema, .. } => write!(out, "Rows({schema})"),
            Outcome::Done { verb, rows, .. } => write!(out, "Done({verb}, {rows:?})"),
        }
    }
}
