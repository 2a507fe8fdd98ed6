//! What a statement asks for: our own commands as plain values, queries as syntax trees.

use std::fmt;

use super::alert::{AlertStatement, Backtest};
use super::manage::Manage;
use datafusion::sql::sqlparser::ast;
use kymo_kernel::Error;
use kymo_kernel::message::TableChange;
use kymo_kernel::schema::{TableName, TableOptions, TableSchema};

use super::call::Call;
use super::continuous::Continuous;
use super::plugin::Called;

/// A parsed statement, as it travels inside [`kymo_kernel::message::Statement`].
#[derive(Debug, Clone)]
pub(crate) struct Parsed {
    /// What it asks for.
    pub(crate) command: Command,
    /// How many characters of the client's text lie before this statement.
    pub(crate) offset: u32,
    /// Line and column of the client's text where the statement begins.
    pub(crate) start: (u64, u64),
    /// The largest `n` of its `$n`.
    pub(crate) parameters: usize,
}

/// What to do.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    /// A query, an insert, or an `EXPLAIN` of one: the engine plans it.
    Plan(Box<Planned>),
    /// `DELETE`: the query that finds the rows.
    Delete(Box<Planned>),
    /// `TRUNCATE`: the tables, as written.
    Truncate(Vec<PartialName>),
    /// A change of definitions.
    Define(Define),
    /// `SHOW …` and `DESCRIBE`.
    Show(Show),
    /// A change of the session's settings: name and value, `None` for the default.
    Set(Vec<(String, Option<String>)>, Scope),
    /// `RESET ALL` and `DISCARD ALL`.
    ResetAll(&'static str),
    /// `BEGIN` and relatives.
    Transaction(Transaction),
    /// Cursors of a session.
    Cursor(Cursor),
    /// `SUBSCRIBE TO …`, or `EXPLAIN` of it.
    Subscribe(Subscribe),
    /// Continuous queries and downsampling policies.
    Continuous(Box<Continuous>),
    /// `EXPLAIN ALERT … OVER …`.
    Backtest(Box<Backtest>),
    /// `CALL compact(…)`.
    Call(Call),
    /// `RELOAD ALERT RULES`.
    ReloadAlerts,
    /// Accepted and without effect here: `LISTEN`, `UNLISTEN`, `DEALLOCATE` …
    Nothing,
}

/// `SUBSCRIBE TO query`.
#[derive(Debug, Clone)]
pub(crate) struct Subscribe {
    /// The query.
    pub(crate) query: std::sync::Arc<kymo_kernel::message::Statement>,
    /// `WITH (snapshot = …)`.
    pub(crate) snapshot: Option<bool>,
    /// `WITH (progress = …)`: whether rows between the others say how far the subscription is.
    pub(crate) progress: bool,
    /// `WITH (resume = '…')`.
    pub(crate) resume: Option<String>,
    /// Whether only to tell how it would be followed.
    pub(crate) explain: bool,
}

/// How long a `SET` lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// As long as the session.
    Session,
    /// `SET LOCAL`: until the transaction ends.
    Transaction,
}

/// A statement that becomes a plan.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// The tree, with our rewrites applied.
    pub(crate) tree: ast::Statement,
    /// Whether it writes.
    pub(crate) writes: bool,
    /// The names of the result's columns where they differ from the engine's.
    pub(crate) names: Names,
    /// Whether it calls `set_config`, which changes the session.
    pub(crate) sets: bool,
    /// Whether parameters stand where only constants can be planned (`generate_series($1)`).
    pub(crate) late: bool,
    /// The functions that it calls, each once.
    pub(crate) calls: Vec<Called>,
}

/// How to name the columns of a result as PostgreSQL does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    /// Names of the columns from the left, up to the first `*`.
    pub(crate) head: Vec<Option<String>>,
    /// Names of the columns after the last `*`, empty without one.
    pub(crate) tail: Vec<Option<String>>,
}

/// A change of definitions.
#[derive(Debug, Clone)]
pub(crate) enum Define {
    /// `CREATE TABLE`.
    CreateTable(Box<NewTable>),
    /// `DROP TABLE`.
    DropTable {
        /// Their names, as written.
        names: Vec<PartialName>,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `CREATE DATABASE`.
    CreateDatabase {
        /// Its name.
        name: String,
        /// `IF NOT EXISTS`.
        if_not_exists: bool,
    },
    /// `DROP DATABASE`.
    DropDatabase {
        /// Its name.
        name: String,
        /// `IF EXISTS`.
        if_exists: bool,
    },
    /// `ALTER TABLE`, but for its settings.
    AlterTable(Box<AlterTable>),
    /// How long rows are kept.
    Retention(Retained),
    /// Plugins, their functions and transforms.
    Manage(Box<Manage>),
    /// Alert rules, silences and acknowledgements.
    Alert(Box<AlertStatement>),
}

/// What keeps its rows for how many nanoseconds; zero means for ever, `None` takes back what was
/// set.
#[derive(Debug, Clone)]
pub(crate) enum Retained {
    /// A table, as written.
    Table(PartialName, Option<i64>),
    /// A database.
    Database(String, Option<i64>),
}

/// Changes of a table's columns.
#[derive(Debug, Clone)]
pub(crate) struct AlterTable {
    /// Its name, as written.
    pub(crate) name: PartialName,
    /// `IF EXISTS`.
    pub(crate) if_exists: bool,
    /// At least one.
    pub(crate) changes: Vec<TableChange>,
}

/// The table of a `CREATE TABLE`.
#[derive(Debug, Clone)]
pub(crate) struct NewTable {
    /// Its name, as written.
    pub(crate) name: PartialName,
    /// Its columns.
    pub(crate) schema: TableSchema,
    /// Its options.
    pub(crate) options: TableOptions,
    /// For how many nanoseconds its rows are kept, if said; zero means for ever.
    pub(crate) retention_ns: Option<i64>,
    /// `IF NOT EXISTS`.
    pub(crate) if_not_exists: bool,
    /// Why no table can have these columns, told once it is known that none exists yet.
    pub(crate) flaw: Option<Error>,
}

/// A table's name with as many parts as were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartialName {
    /// The database, if written.
    pub(crate) database: Option<String>,
    /// The schema, if written.
    pub(crate) schema: Option<String>,
    /// The table.
    pub(crate) table: String,
}

impl PartialName {
    /// The full name, with a session's database and schema for the parts that are absent.
    pub(crate) fn resolve(&self, database: &str, schema: &str) -> TableName {
        TableName {
            database: self.database.clone().unwrap_or_else(|| database.to_owned()),
            schema: self.schema.clone().unwrap_or_else(|| schema.to_owned()),
            table: self.table.clone(),
        }
    }
}

impl fmt::Display for PartialName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.database, &self.schema].into_iter().flatten() {
            write!(out, "{part}.")?;
        }
        out.write_str(&self.table)
    }
}

/// `SHOW …`.
#[derive(Debug, Clone)]
pub(crate) enum Show {
    /// `SHOW TABLES [FROM database] [LIKE pattern]`.
    Tables {
        /// The database, if not the session's.
        database: Option<String>,
        /// A pattern with `%` and `_`.
        like: Option<String>,
    },
    /// `SHOW DATABASES`.
    Databases,
    /// `SHOW SCHEMAS`.
    Schemas,
    /// `SHOW COLUMNS FROM table`, `DESCRIBE table`.
    Columns(PartialName),
    /// `SHOW CREATE TABLE table`.
    CreateTable(PartialName),
    /// `SHOW PLUGINS`.
    Plugins,
    /// `SHOW CONTINUOUS QUERIES`.
    ContinuousQueries,
    /// `SHOW DOWNSAMPLING POLICIES`.
    DownsamplingPolicies,
    /// `SHOW ALERTS`.
    Alerts,
    /// `SHOW SILENCES`.
    Silences,
    /// `SHOW ALL`.
    All,
    /// `SHOW name`.
    Setting(String),
}

/// `BEGIN` and relatives. Kymo writes each statement at once; what is kept is the status
/// that drivers rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Transaction {
    /// `BEGIN`, `START TRANSACTION`, with their own tags.
    Begin(&'static str),
    /// `COMMIT`, `END`.
    Commit,
    /// `ROLLBACK`, `ABORT`.
    Rollback,
    /// `SAVEPOINT name`.
    Savepoint(String),
    /// `RELEASE name`.
    Release(String),
    /// `ROLLBACK TO name`.
    RollbackTo(String),
    /// `SET TRANSACTION …`.
    Modes,
}

/// Cursors.
#[derive(Debug, Clone)]
pub(crate) enum Cursor {
    /// `DECLARE name CURSOR FOR query`.
    Declare {
        /// Its name.
        name: String,
        /// Whether it outlives its transaction.
        hold: bool,
        /// The text of the query.
        query: std::sync::Arc<kymo_kernel::message::Statement>,
    },
    /// `FETCH` and `MOVE`.
    Fetch {
        /// Its name.
        name: String,
        /// How many rows; `None` for all of the rest.
        count: Option<u64>,
        /// Whether the rows are only skipped.
        skip: bool,
        /// How long to wait for rows of a subscription.
        timeout: Option<std::time::Duration>,
    },
    /// `CLOSE name`; `None` for `CLOSE ALL`.
    Close(Option<String>),
}
