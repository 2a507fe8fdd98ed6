//! Continuous queries as the metadata keeps them: what was asked for, and how far each of them
//! has brought its target.
//!
//! A definition changes rarely and by hand; a cursor moves all the time. They are kept apart so
//! that whoever follows definitions is not woken by cursors. A cursor never runs ahead of its
//! target: it is moved after the target's rows were acknowledged. Where it lags behind, windows
//! are computed again, which changes nothing, since a target is keyed by tags and time.

use std::collections::BTreeMap;
use std::fmt;

use uuid::Uuid;

use crate::ids::{Position, TableId, TimeRange};
use crate::schema::TableName;

/// How many times of deleted rows a cursor keeps apart; more are joined.
pub const MAX_GONE: usize = 64;

/// The name of a continuous query: unique in its database.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueryName {
    /// The database, where the names in its text are looked up, too.
    pub database: String,
    /// The name within it.
    pub name: String,
}

impl fmt::Display for QueryName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.database, self.name)
    }
}

/// A continuous query as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContinuousDef {
    /// Its identity: a query that is dropped and made again is another one.
    pub id: Uuid,
    /// Its name.
    pub name: QueryName,
    /// Counts its changes; the first definition has 1.
    pub revision: u64,
    /// The text of its `SELECT`.
    pub text: String,
    /// The schema where names without one are looked up.
    pub schema: String,
    /// Who made it, and for whom it runs.
    pub user: String,
    /// The settings of that session that a result depends on, by name.
    pub settings: BTreeMap<String, String>,
    /// Where its results go.
    pub target: TableName,
    /// The tables that it reads.
    pub sources: Vec<TableName>,
    /// Nanoseconds between two evaluations; `None` for shortly after each change.
    pub every_ns: Option<i64>,
    /// How much older than the newest row, in nanoseconds, a row may be to still change its
    /// window; `None` for any age.
    pub lateness_ns: Option<i64>,
    /// The downsampling policy that it was made from.
    pub policy: Option<Downsampling>,
    /// When it was made, in nanoseconds since 1970-01-01T00:00:00Z.
    pub created_ns: i64,
    /// Why it does not run, if so.
    pub paused: Option<Pause>,
}

/// What a downsampling policy says beyond its continuous query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downsampling {
    /// The table of raw rows.
    pub table: TableName,
    /// The age in nanoseconds at which raw rows may go.
    pub after_ns: i64,
    /// The width of its windows in nanoseconds.
    pub width_ns: i64,
    /// Whether the table was given its retention: not before everything in it was part of the
    /// target, and once only, so that what somebody sets afterwards stays.
    pub retained: bool,
}

/// Why a continuous query does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// For people.
    pub reason: String,
    /// Whether it failed, rather than being stopped by somebody.
    pub failed: bool,
    /// Since when, in nanoseconds since 1970-01-01T00:00:00Z.
    pub since_ns: i64,
}

impl ContinuousDef {
    /// The state in one word: `running`, `paused` or `failed`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match &self.paused {
            None => "running",
            Some(pause) if pause.failed => "failed",
            Some(_) => "paused",
        }
    }
}

/// How far a target stands for one of the tables that its query reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark {
    /// Every commit to the table up to here is part of the target.
    pub position: Position,
    /// The largest time of these commits, in nanoseconds since 1970, where there were any: what
    /// lateness is measured from, so that a restart judges rows as it would have been done
    /// without.
    pub newest: Option<i64>,
}

/// How far a continuous query has brought its target.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cursor {
    /// By table. A table that is missing here was not looked at yet.
    pub marks: BTreeMap<TableId, Mark>,
    /// Times whose rows were deleted since, numbered in the order of the deletions: what no
    /// position tells, since a deletion leaves no record in the log.
    pub gone: BTreeMap<u64, TimeRange>,
    /// The number of the last deletion.
    pub last_gone: u64,
}

impl Cursor {
    /// Notes that rows within these times were deleted.
    pub fn delete(&mut self, times: TimeRange) {
        self.last_gone += 1;
        self.gone.insert(self.last_gone, times);
        while self.gone.len() > MAX_GONE {
            let (Some((_, first)), Some((number, second))) =
                (self.gone.pop_first(), self.gone.pop_first())
            else {
                return;
            };
            self.gone.insert(number, first.union(&second));
        }
    }
}

/// A cursor on its way into the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advance {
    /// The query.
    pub id: Uuid,
    /// Where it stands now; other tables go.
    pub marks: BTreeMap<TableId, Mark>,
    /// The last deletion that its target reflects.
    pub gone: u64,
}
