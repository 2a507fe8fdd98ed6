//! The frozen form of what decides how long rows stay: retentions, and how often rows of a table
//! were deleted; format 3 brought them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::TableId;
use crate::storage::meta::Snapshot;
use crate::storage::meta::retention::{RetentionOf, Retentions};

#[derive(Serialize, Deserialize)]
pub(super) enum RetentionOfRecord {
    Database(String),
    Table(u64),
}

/// What follows the plugins in a checkpoint of the third format.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct KeepingRecord {
    databases: Vec<(String, i64)>,
    tables: Vec<(u64, i64)>,
    deletions: Vec<(u64, u64)>,
}

impl From<&RetentionOf> for RetentionOfRecord {
    fn from(from: &RetentionOf) -> Self {
        match from {
            RetentionOf::Database(name) => RetentionOfRecord::Database(name.clone()),
            RetentionOf::Table(id) => RetentionOfRecord::Table(id.0),
        }
    }
}

impl From<RetentionOfRecord> for RetentionOf {
    fn from(from: RetentionOfRecord) -> Self {
        match from {
            RetentionOfRecord::Database(name) => RetentionOf::Database(name),
            RetentionOfRecord::Table(id) => RetentionOf::Table(TableId(id)),
        }
    }
}

impl From<&Snapshot> for KeepingRecord {
    fn from(from: &Snapshot) -> Self {
        let Retentions { databases, tables } = from.retentions.as_ref();
        let deleted = from.tables.iter().filter(|(_, table)| table.deletions > 0);
        KeepingRecord {
            databases: databases.iter().map(|(name, ns)| (name.clone(), *ns)).collect(),
            tables: tables.iter().map(|(id, ns)| (id.0, *ns)).collect(),
            deletions: deleted.map(|(id, table)| (id.0, table.deletions)).collect(),
        }
    }
}

impl KeepingRecord {
    pub(super) fn add_to(self, snapshot: &mut Snapshot) {
        snapshot.retentions = Arc::new(Retentions {
            databases: self.databases.into_iter().collect(),
            tables: self.tables.into_iter().map(|(id, ns)| (TableId(id), ns)).collect(),
        });
        let tables = Arc::make_mut(&mut snapshot.tables);
        for (id, deletions) in self.deletions {
            if let Some(table) = tables.get_mut(&TableId(id)) {
                Arc::make_mut(table).deletions = deletions;
            }
        }
    }
}
