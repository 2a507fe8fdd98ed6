//! How long rows are kept: by table, else by database, else for ever.
//!
//! A table may also be said to keep everything, whatever its database says. The schema of
//! Kymo's own tables has bounds of its own and is not meant.
//!
//! Rows expire by the clock, which no edit knows. What an edit that removes them says is the
//! retention that it went by, and it is refused where rows are to be kept longer by now (R1).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Snapshot, conflict, no_table};
use crate::error::{Code, Error, Result};
use crate::ids::{SegmentId, TableId};
use crate::schema::{SYSTEM_SCHEMA, TableName};
use crate::storage::meta::SegmentMeta;

/// What was set. What is not in here is kept for ever.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retentions {
    /// Nanoseconds by database, more than zero.
    pub databases: BTreeMap<String, i64>,
    /// Nanoseconds by table; zero means for ever, also where the database says otherwise.
    pub tables: BTreeMap<TableId, i64>,
}

/// What a retention is set for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetentionOf {
    /// All tables of a database that say nothing themselves.
    Database(String),
    /// One table.
    Table(TableId),
}

/// The latest time that is expired at `now_ns`: rows after it are kept.
#[must_use]
pub fn expired_upto(retention_ns: i64, now_ns: i64) -> i64 {
    now_ns.saturating_sub(retention_ns)
}

impl Snapshot {
    /// For how many nanoseconds a table keeps its rows, also one that does not exist yet; `None`
    /// means for ever.
    #[must_use]
    pub fn retention_ns(&self, table: &TableName) -> Option<i64> {
        if self.retentions.tables.is_empty() && self.retentions.databases.is_empty()
            || table.schema == SYSTEM_SCHEMA
        {
            return None;
        }
        let own = self.names.get(table).and_then(|id| self.retentions.tables.get(id));
        let set = own.or_else(|| self.retentions.databases.get(&table.database));
        set.copied().filter(|retention| *retention > 0)
    }

    pub(super) fn set_retention(&mut self, of: &RetentionOf, retention: Option<i64>) -> Result<()> {
        match of {
            RetentionOf::Database(name) if !self.databases.contains(name) => {
                let text = format!("database {name:?} does not exist");
                return Err(Error::new(Code::DatabaseNotFound, text));
            }
            RetentionOf::Table(id) if !self.tables.contains_key(id) => return Err(no_table(*id)),
            _ => {}
        }
        let set = Arc::make_mut(&mut self.retentions);
        match (of, retention) {
            (RetentionOf::Database(name), Some(retention)) if retention > 0 => {
                set.databases.insert(name.clone(), retention);
            }
            (RetentionOf::Database(name), _) => {
                set.databases.remove(name);
            }
            (RetentionOf::Table(id), Some(retention)) => {
                set.tables.insert(*id, retention.max(0));
            }
            (RetentionOf::Table(id), None) => {
                set.tables.remove(id);
            }
        }
        Ok(())
    }

    /// A dropped table takes its retention along.
    pub(super) fn forget_retention(&mut self, table: TableId) {
        if self.retentions.tables.contains_key(&table) {
            Arc::make_mut(&mut self.retentions).tables.remove(&table);
        }
    }

    /// A dropped database takes its retention along.
    pub(super) fn forget_database_retention(&mut self, database: &str) {
        if self.retentions.databases.contains_key(database) {
            Arc::make_mut(&mut self.retentions).databases.remove(database);
        }
    }

    pub(super) fn expire(
        &mut self,
        table: TableId,
        inputs: &[SegmentId],
        outputs: &[SegmentMeta],
        went_by: i64,
    ) -> Result<()> {
        let def = self.tables.get(&table).ok_or_else(|| no_table(table))?.def.clone();
        if self.retention_ns(&def.name).is_none_or(|now| now > went_by) {
            return Err(conflict(format!("table {} keeps its rows longer by now", def.name)));
        }
        self.replace(table, inputs, outputs)
    }
}
