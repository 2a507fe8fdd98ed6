//! The frozen form of continuous queries and their cursors; format 3 brought them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::segments::PositionRecord;
use crate::continuous::{Advance, ContinuousDef, Cursor, Downsampling, Mark, Pause, QueryName};
use crate::ids::{TableId, TimeRange};
use crate::schema::TableName;
use crate::storage::meta::Snapshot;

#[derive(Serialize, Deserialize)]
pub(super) struct ContinuousRecord {
    id: u128,
    name: [String; 2],
    revision: u64,
    text: String,
    schema: String,
    user: String,
    settings: Vec<(String, String)>,
    target: [String; 3],
    sources: Vec<[String; 3]>,
    every_ns: Option<i64>,
    lateness_ns: Option<i64>,
    policy: Option<([String; 3], i64, i64, bool)>,
    created_ns: i64,
    paused: Option<(String, bool, i64)>,
}

/// A table's identity, its position and the largest time.
#[derive(Serialize, Deserialize)]
pub(super) struct MarkRecord(u64, PositionRecord, Option<i64>);

#[derive(Serialize, Deserialize)]
pub(super) struct AdvanceRecord {
    id: u128,
    marks: Vec<MarkRecord>,
    gone: u64,
}

#[derive(Serialize, Deserialize)]
struct CursorRecord {
    id: u128,
    marks: Vec<MarkRecord>,
    gone: Vec<(u64, i64, i64)>,
    last_gone: u64,
}

/// What follows the second format's records in a checkpoint of the third.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct ContinuousRecords {
    queries: Vec<ContinuousRecord>,
    cursors: Vec<CursorRecord>,
}

fn parts(from: &TableName) -> [String; 3] {
    [from.database.clone(), from.schema.clone(), from.table.clone()]
}

fn table([database, schema, table]: [String; 3]) -> TableName {
    TableName { database, schema, table }
}

pub(super) fn query_name([database, name]: [String; 2]) -> QueryName {
    QueryName { database, name }
}

pub(super) fn name_parts(from: &QueryName) -> [String; 2] {
    [from.database.clone(), from.name.clone()]
}

pub(super) fn mark_records(marks: &BTreeMap<TableId, Mark>) -> Vec<MarkRecord> {
    let record =
        |(table, mark): (&TableId, &Mark)| MarkRecord(table.0, mark.position.into(), mark.newest);
    marks.iter().map(record).collect()
}

pub(super) fn marks(records: Vec<MarkRecord>) -> BTreeMap<TableId, Mark> {
    let mark = |MarkRecord(table, position, newest)| {
        (TableId(table), Mark { position: position.into(), newest })
    };
    records.into_iter().map(mark).collect()
}

impl From<&ContinuousDef> for ContinuousRecord {
    fn from(from: &ContinuousDef) -> Self {
        ContinuousRecord {
            id: from.id.as_u128(),
            name: name_parts(&from.name),
            revision: from.revision,
            text: from.text.clone(),
            schema: from.schema.clone(),
            user: from.user.clone(),
            settings: from.settings.clone().into_iter().collect(),
            target: parts(&from.target),
            sources: from.sources.iter().map(parts).collect(),
            every_ns: from.every_ns,
            lateness_ns: from.lateness_ns,
            policy: from.policy.as_ref().map(|policy| {
                (parts(&policy.table), policy.after_ns, policy.width_ns, policy.retained)
            }),
            created_ns: from.created_ns,
            paused: from.paused.clone().map(|each| (each.reason, each.failed, each.since_ns)),
        }
    }
}

impl From<ContinuousRecord> for ContinuousDef {
    fn from(from: ContinuousRecord) -> Self {
        ContinuousDef {
            id: Uuid::from_u128(from.id),
            name: query_name(from.name),
            revision: from.revision,
            text: from.text,
            schema: from.schema,
            user: from.user,
            settings: from.settings.into_iter().collect(),
            target: table(from.target),
            sources: from.sources.into_iter().map(table).collect(),
            every_ns: from.every_ns,
            lateness_ns: from.lateness_ns,
            policy: from.policy.map(|(raw, after_ns, width_ns, retained)| Downsampling {
                table: table(raw),
                after_ns,
                width_ns,
                retained,
            }),
            created_ns: from.created_ns,
            paused: from.paused.map(|(reason, failed, since_ns)| Pause {
                reason,
                failed,
                since_ns,
            }),
        }
    }
}

impl From<&Advance> for AdvanceRecord {
    fn from(from: &Advance) -> Self {
        AdvanceRecord { id: from.id.as_u128(), marks: mark_records(&from.marks), gone: from.gone }
    }
}

impl From<AdvanceRecord> for Advance {
    fn from(from: AdvanceRecord) -> Self {
        Advance { id: Uuid::from_u128(from.id), marks: marks(from.marks), gone: from.gone }
    }
}

impl From<&Snapshot> for ContinuousRecords {
    fn from(from: &Snapshot) -> Self {
        let cursor = |(id, cursor): (&Uuid, &Arc<Cursor>)| CursorRecord {
            id: id.as_u128(),
            marks: mark_records(&cursor.marks),
            gone: cursor.gone.iter().map(|(number, t)| (*number, t.first, t.last)).collect(),
            last_gone: cursor.last_gone,
        };
        ContinuousRecords {
            queries: from.continuous.values().map(|each| each.as_ref().into()).collect(),
            cursors: from.cursors.iter().map(cursor).collect(),
        }
    }
}

impl ContinuousRecords {
    pub(super) fn add_to(self, snapshot: &mut Snapshot) {
        let queries = self.queries.into_iter().map(ContinuousDef::from);
        let cursor = |from: CursorRecord| {
            let gone = from.gone.into_iter();
            let cursor = Cursor {
                marks: marks(from.marks),
                gone: gone.map(|(at, first, last)| (at, TimeRange { first, last })).collect(),
                last_gone: from.last_gone,
            };
            (Uuid::from_u128(from.id), Arc::new(cursor))
        };
        snapshot.continuous = Arc::new(
            queries.map(|each| (each.name.clone(), Arc::new(each))).collect::<BTreeMap<_, _>>(),
        );
        snapshot.cursors =
            Arc::new(self.cursors.into_iter().map(cursor).collect::<BTreeMap<_, _>>());
    }
}
