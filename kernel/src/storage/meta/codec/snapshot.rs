//! The frozen form of a checkpoint as the first format had it; later ones put more behind it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::cluster::{AssignmentRecord, NodeRecord};
use super::tables::TableStateRecord;
use super::users::UserRecord;
use crate::ids::{MetaVersion, PartitionId, TableId};
use crate::storage::meta::{Assignment, NodeMeta, Snapshot, TableMeta};
use crate::user::User;

#[derive(Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    min_reader: u32,
    feature_level: u32,
    next_table: u64,
    databases: Vec<String>,
    tables: Vec<TableStateRecord>,
    users: Vec<UserRecord>,
    assignments: Vec<AssignmentRecord>,
    nodes: Vec<NodeRecord>,
}

impl From<&Snapshot> for SnapshotRecord {
    fn from(from: &Snapshot) -> Self {
        let assignment = |(id, each): (&PartitionId, &Assignment)| AssignmentRecord::new(*id, each);
        SnapshotRecord {
            min_reader: from.min_reader,
            feature_level: from.feature_level,
            next_table: from.next_table.0,
            databases: from.databases.iter().cloned().collect(),
            tables: from.tables.values().map(|table| table.as_ref().into()).collect(),
            users: from.users.values().map(|user| user.as_ref().into()).collect(),
            assignments: from.assignments.iter().map(assignment).collect(),
            nodes: from.nodes.values().map(NodeRecord::from).collect(),
        }
    }
}

impl SnapshotRecord {
    /// The metadata at a version, without what later formats added.
    pub(super) fn into_snapshot(self, version: MetaVersion) -> Snapshot {
        let tables: BTreeMap<TableId, Arc<TableMeta>> = self
            .tables
            .into_iter()
            .map(|record| (TableId(record.def.id), Arc::new(TableMeta::from(record))))
            .collect();
        let names = tables.iter().map(|(id, table)| (table.def.name.clone(), *id)).collect();
        let users = self.users.into_iter().map(User::from);
        let nodes = self.nodes.into_iter().map(NodeMeta::from);
        Snapshot {
            version,
            min_reader: self.min_reader,
            feature_level: self.feature_level,
            next_table: TableId(self.next_table),
            databases: Arc::new(self.databases.into_iter().collect()),
            names: Arc::new(names),
            tables: Arc::new(tables),
            users: Arc::new(users.map(|user| (user.name.clone(), Arc::new(user))).collect()),
            assignments: Arc::new(
                self.assignments.into_iter().map(AssignmentRecord::split).collect(),
            ),
            nodes: Arc::new(nodes.map(|node| (node.id.clone(), node)).collect()),
            plugins: Arc::default(),
            functions: Arc::default(),
            transforms: Arc::default(),
            retentions: Arc::default(),
            continuous: Arc::default(),
            cursors: Arc::default(),
            alerts: Arc::default(),
            silences: Arc::default(),
            channels: Arc::default(),
        }
    }
}
