//! The frozen form of edits: who changed the metadata, and what.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::alerts::{AlertRecord, ChannelRecord, SilenceRecord};
use super::altering::OptionsRecord;
use super::cluster::{AssignmentRecord, NodeRecord};
use super::continuous::{self, AdvanceRecord, ContinuousRecord, MarkRecord};
use super::keeping::RetentionOfRecord;
use super::plugins::{self, FunctionRecord, PluginRecord, TransformRecord};
use super::segments::{PositionRecord, SegmentRecord, segment_id};
use super::tables::TableRecord;
use super::users::UserRecord;
use crate::continuous::Advance;
use crate::ids::{Epoch, PartitionId, TableId};
use crate::schema::TableDef;
use crate::storage::meta::{Author, Edit, Op, SegmentMeta};

#[derive(Serialize, Deserialize)]
pub(super) struct EditRecord {
    commit_id: u128,
    node: String,
    partition: u16,
    epoch: u64,
    ops: Vec<OpRecord>,
}

#[derive(Serialize, Deserialize)]
enum OpRecord {
    CreateDatabase(String),
    DropDatabase(String),
    PutTable(TableRecord),
    DropTable(u64),
    AddSegments { table: u64, segments: Vec<SegmentRecord>, upto: PositionRecord },
    Replace { table: u64, inputs: Vec<u128>, outputs: Vec<SegmentRecord> },
    DropSegments { table: u64, segments: Vec<u128> },
    PutUser(UserRecord),
    DropUser(String),
    Assign(AssignmentRecord),
    Node(NodeRecord),
    PutPlugin(PluginRecord),
    DropPlugin(String),
    PutFunction(FunctionRecord),
    DropFunction(String),
    PutTransforms { table: u64, chain: Vec<TransformRecord> },
    Delete { table: u64, inputs: Vec<u128>, outputs: Vec<SegmentRecord> },
    SetRetention { of: RetentionOfRecord, retention_ns: Option<i64> },
    Expire { table: u64, inputs: Vec<u128>, outputs: Vec<SegmentRecord>, retention_ns: i64 },
    PutContinuous { query: ContinuousRecord, marks: Vec<MarkRecord> },
    DropContinuous([String; 2]),
    AdvanceContinuous(Vec<AdvanceRecord>),
    PutAlert(AlertRecord),
    DropAlert(String),
    PutSilence(SilenceRecord),
    DropSilence(u64),
    PutChannel(ChannelRecord),
    DropChannel(String),
    PutTableWith { def: TableRecord, options: OptionsRecord },
}

impl From<&Edit> for EditRecord {
    fn from(from: &Edit) -> Self {
        EditRecord {
            commit_id: from.commit_id.as_u128(),
            node: from.by.node.clone(),
            partition: from.by.partition.0,
            epoch: from.by.epoch.0,
            ops: from.ops.iter().map(OpRecord::from).collect(),
        }
    }
}

impl From<EditRecord> for Edit {
    fn from(from: EditRecord) -> Self {
        Edit {
            commit_id: Uuid::from_u128(from.commit_id),
            by: Author {
                node: from.node,
                partition: PartitionId(from.partition),
                epoch: Epoch(from.epoch),
            },
            ops: from.ops.into_iter().map(Op::from).collect(),
        }
    }
}

impl From<&Op> for OpRecord {
    fn from(from: &Op) -> Self {
        match from {
            Op::CreateDatabase { name } => OpRecord::CreateDatabase(name.clone()),
            Op::DropDatabase { name } => OpRecord::DropDatabase(name.clone()),
            Op::PutTable { def } => match OptionsRecord::of(&def.options) {
                None => OpRecord::PutTable(def.into()),
                Some(options) => OpRecord::PutTableWith { def: def.into(), options },
            },
            Op::DropTable { table } => OpRecord::DropTable(table.0),
            Op::AddSegments { table, segments, flushed_upto } => OpRecord::AddSegments {
                table: table.0,
                segments: segments.iter().map(SegmentRecord::from).collect(),
                upto: (*flushed_upto).into(),
            },
            Op::Replace { table, inputs, outputs } => OpRecord::Replace {
                table: table.0,
                inputs: inputs.iter().map(|id| id.0.0).collect(),
                outputs: outputs.iter().map(SegmentRecord::from).collect(),
            },
            Op::DropSegments { table, segments } => OpRecord::DropSegments {
                table: table.0,
                segments: segments.iter().map(|id| id.0.0).collect(),
            },
            Op::PutUser { user } => OpRecord::PutUser(user.into()),
            Op::DropUser { name } => OpRecord::DropUser(name.clone()),
            Op::Assign { partition, assignment } => {
                OpRecord::Assign(AssignmentRecord::new(*partition, assignment))
            }
            Op::Node { node } => OpRecord::Node(node.into()),
            Op::PutPlugin { plugin } => OpRecord::PutPlugin(plugin.into()),
            Op::DropPlugin { name } => OpRecord::DropPlugin(name.clone()),
            Op::PutFunction { function } => OpRecord::PutFunction(function.into()),
            Op::DropFunction { name } => OpRecord::DropFunction(name.clone()),
            Op::PutTransforms { table, chain } => {
                OpRecord::PutTransforms { table: table.0, chain: plugins::chain_records(chain) }
            }
            Op::Delete { table, inputs, outputs } => OpRecord::Delete {
                table: table.0,
                inputs: inputs.iter().map(|id| id.0.0).collect(),
                outputs: outputs.iter().map(SegmentRecord::from).collect(),
            },
            Op::SetRetention { of, retention_ns } => {
                OpRecord::SetRetention { of: of.into(), retention_ns: *retention_ns }
            }
            Op::Expire { table, inputs, outputs, retention_ns } => OpRecord::Expire {
                table: table.0,
                inputs: inputs.iter().map(|id| id.0.0).collect(),
                outputs: outputs.iter().map(SegmentRecord::from).collect(),
                retention_ns: *retention_ns,
            },
            Op::PutContinuous { query, marks } => OpRecord::PutContinuous {
                query: query.into(),
                marks: continuous::mark_records(marks),
            },
            Op::DropContinuous { name } => OpRecord::DropContinuous(continuous::name_parts(name)),
            Op::AdvanceContinuous { advances } => {
                OpRecord::AdvanceContinuous(advances.iter().map(AdvanceRecord::from).collect())
            }
            Op::PutAlert { alert } => OpRecord::PutAlert(alert.into()),
            Op::DropAlert { name } => OpRecord::DropAlert(name.clone()),
            Op::PutSilence { silence } => OpRecord::PutSilence(silence.into()),
            Op::DropSilence { id } => OpRecord::DropSilence(*id),
            Op::PutChannel { channel } => OpRecord::PutChannel(channel.into()),
            Op::DropChannel { name } => OpRecord::DropChannel(name.clone()),
        }
    }
}

impl From<OpRecord> for Op {
    fn from(from: OpRecord) -> Self {
        match from {
            OpRecord::CreateDatabase(name) => Op::CreateDatabase { name },
            OpRecord::DropDatabase(name) => Op::DropDatabase { name },
            OpRecord::PutTable(def) => Op::PutTable { def: def.into() },
            OpRecord::DropTable(table) => Op::DropTable { table: TableId(table) },
            OpRecord::AddSegments { table, segments, upto } => Op::AddSegments {
                table: TableId(table),
                segments: segments.into_iter().map(SegmentMeta::from).collect(),
                flushed_upto: upto.into(),
            },
            OpRecord::Replace { table, inputs, outputs } => Op::Replace {
                table: TableId(table),
                inputs: inputs.into_iter().map(segment_id).collect(),
                outputs: outputs.into_iter().map(SegmentMeta::from).collect(),
            },
            OpRecord::DropSegments { table, segments } => Op::DropSegments {
                table: TableId(table),
                segments: segments.into_iter().map(segment_id).collect(),
            },
            OpRecord::PutUser(user) => Op::PutUser { user: user.into() },
            OpRecord::DropUser(name) => Op::DropUser { name },
            OpRecord::Assign(record) => {
                let (partition, assignment) = record.split();
                Op::Assign { partition, assignment }
            }
            OpRecord::Node(node) => Op::Node { node: node.into() },
            OpRecord::PutPlugin(plugin) => Op::PutPlugin { plugin: plugin.into() },
            OpRecord::DropPlugin(name) => Op::DropPlugin { name },
            OpRecord::PutFunction(function) => Op::PutFunction { function: function.into() },
            OpRecord::DropFunction(name) => Op::DropFunction { name },
            OpRecord::PutTransforms { table, chain } => {
                Op::PutTransforms { table: TableId(table), chain: plugins::chain(chain) }
            }
            OpRecord::Delete { table, inputs, outputs } => Op::Delete {
                table: TableId(table),
                inputs: inputs.into_iter().map(segment_id).collect(),
                outputs: outputs.into_iter().map(SegmentMeta::from).collect(),
            },
            OpRecord::SetRetention { of, retention_ns } => {
                Op::SetRetention { of: of.into(), retention_ns }
            }
            OpRecord::Expire { table, inputs, outputs, retention_ns } => Op::Expire {
                table: TableId(table),
                inputs: inputs.into_iter().map(segment_id).collect(),
                outputs: outputs.into_iter().map(SegmentMeta::from).collect(),
                retention_ns,
            },
            OpRecord::PutContinuous { query, marks } => {
                Op::PutContinuous { query: query.into(), marks: continuous::marks(marks) }
            }
            OpRecord::DropContinuous(name) => {
                Op::DropContinuous { name: continuous::query_name(name) }
            }
            OpRecord::AdvanceContinuous(advances) => {
                let advances = advances.into_iter().map(Advance::from).collect();
                Op::AdvanceContinuous { advances }
            }
            OpRecord::PutAlert(alert) => Op::PutAlert { alert: alert.into() },
            OpRecord::DropAlert(name) => Op::DropAlert { name },
            OpRecord::PutSilence(silence) => Op::PutSilence { silence: silence.into() },
            OpRecord::DropSilence(id) => Op::DropSilence { id },
            OpRecord::PutChannel(channel) => Op::PutChannel { channel: channel.into() },
            OpRecord::DropChannel(name) => Op::DropChannel { name },
            OpRecord::PutTableWith { def, options } => {
                let mut def = TableDef::from(def);
                options.add_to(&mut def.options);
                Op::PutTable { def }
            }
        }
    }
}
