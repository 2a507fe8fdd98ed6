//! The frozen form of metadata on disk.
//!
//! An envelope and a body, all numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic: `KYME` for an edit file, `KYMS` for a checkpoint |
//! | 4 | 4 | format version, 1 to 4; written is 4 |
//! | 8 | 8 | metadata version |
//! | 16 | 8 | length of the body |
//! | 24 | 4 | CRC32C of the body |
//! | 28 | 4 | CRC32C of bytes 0 to 28 |
//! | 32 | … | body: postcard of the records below |
//!
//! The records are types of their own and never change once released: a new layout gets a
//! new format version and new records beside these. New kinds of [`OpRecord`] go to its end.
//! Format 2 added the operations on plugins, and the record of [`plugins`] behind the first
//! format's record in a checkpoint. Format 3 added deletions, retention, continuous queries and
//! alerts, and the records of [`keeping`], [`continuous`] and [`alerts`] behind that. Format 4
//! added columns that are dropped and renamed, the option of widening, and the record of
//! [`altering`] behind that.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::continuous::Advance;
use crate::error::{Code, Error, Result};
use crate::ids::{ColumnId, Epoch, MetaVersion, PartitionId, Position, SegmentId, Seq, Slot};
use crate::ids::{TableId, TimeRange};
use crate::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use crate::storage::meta::{Assignment, Author, ColumnStats, Edit, NodeMeta, Op, Scalar};
use crate::storage::meta::{SegmentMeta, Snapshot, TableMeta};
use crate::user::{ScramVerifier, User};

mod alerts;
mod altering;
mod continuous;
mod keeping;
mod plugins;

use alerts::{AlertRecord, AlertsRecord, ChannelRecord, SilenceRecord};
use altering::{AlteringRecord, OptionsRecord};
use continuous::{AdvanceRecord, ContinuousRecord, ContinuousRecords, MarkRecord};
use keeping::{KeepingRecord, RetentionOfRecord};
use plugins::{FunctionRecord, PluginRecord, PluginsRecord, TransformRecord};

const EDIT_MAGIC: [u8; 4] = *b"KYME";
const SNAPSHOT_MAGIC: [u8; 4] = *b"KYMS";
const FORMAT: u32 = 4;
const ENVELOPE: usize = 32;

/// The bytes of an edit file: the edits that were committed together as one version.
///
/// # Errors
/// `internal` if a record cannot be encoded, which no record of ours should cause.
pub fn encode_edits(version: MetaVersion, edits: &[Edit]) -> Result<Vec<u8>> {
    let records: Vec<EditRecord> = edits.iter().map(EditRecord::from).collect();
    seal(EDIT_MAGIC, version, &records)
}

/// Reads an edit file back.
///
/// # Errors
/// `corrupt`, naming the file, where the bytes do not verify.
pub fn decode_edits(file: &Path, version: MetaVersion, bytes: &[u8]) -> Result<Vec<Edit>> {
    let (_, body) = open(EDIT_MAGIC, file, version, bytes)?;
    let records: Vec<EditRecord> = decode(file, body)?;
    Ok(records.into_iter().map(Edit::from).collect())
}

/// The bytes of a checkpoint.
///
/// # Errors
/// `internal` if a record cannot be encoded, which no record of ours should cause.
pub fn encode_snapshot(snapshot: &Snapshot) -> Result<Vec<u8>> {
    let body = (
        SnapshotRecord::from(snapshot),
        PluginsRecord::from(snapshot),
        KeepingRecord::from(snapshot),
        ContinuousRecords::from(snapshot),
        AlertsRecord::from(snapshot),
        AlteringRecord::from(snapshot),
    );
    seal(SNAPSHOT_MAGIC, snapshot.version, &body)
}

/// Reads a checkpoint back.
///
/// # Errors
/// `corrupt`, naming the file, where the bytes do not verify.
pub fn decode_snapshot(file: &Path, version: MetaVersion, bytes: &[u8]) -> Result<Snapshot> {
    let (format, body) = open(SNAPSHOT_MAGIC, file, version, bytes)?;
    type Later = (KeepingRecord, ContinuousRecords, AlertsRecord, AlteringRecord);
    let (record, plugins, later): (SnapshotRecord, PluginsRecord, Later) = match format {
        1 => (decode(file, body)?, PluginsRecord::default(), Default::default()),
        2 => {
            let (record, plugins) = decode::<(SnapshotRecord, PluginsRecord)>(file, body)?;
            (record, plugins, Default::default())
        }
        3 => {
            let (record, plugins, keeping, continuous, alerts) = decode(file, body)?;
            (record, plugins, (keeping, continuous, alerts, AlteringRecord::default()))
        }
        _ => {
            let (record, plugins, keeping, continuous, alerts, altering) = decode(file, body)?;
            (record, plugins, (keeping, continuous, alerts, altering))
        }
    };
    let (keeping, continuous, alerts, altering) = later;
    let mut snapshot = record.into_snapshot(version);
    plugins.add_to(&mut snapshot);
    keeping.add_to(&mut snapshot);
    continuous.add_to(&mut snapshot);
    alerts.add_to(&mut snapshot);
    altering.add_to(&mut snapshot);
    Ok(snapshot)
}

fn seal<T: Serialize>(magic: [u8; 4], version: MetaVersion, body: &T) -> Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(body, vec![0; ENVELOPE])
        .map_err(|error| Error::internal(format!("encode metadata: {error}")))?;
    let length = (bytes.len() - ENVELOPE) as u64;
    let body_crc = crc32c::crc32c(&bytes[ENVELOPE..]);
    bytes[0..4].copy_from_slice(&magic);
    bytes[4..8].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[8..16].copy_from_slice(&version.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes[24..28].copy_from_slice(&body_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&head_crc.to_le_bytes());
    Ok(bytes)
}

fn corrupt(file: &Path, what: &str) -> Error {
    Error::new(Code::Corrupt, format!("metadata file {}: {what}", file.display()))
        .with_hint("restore the file from a backup, or run `kymo repair`; the store cannot be opened without it")
}

/// The format and the body of a file.
fn open<'a>(
    magic: [u8; 4],
    file: &Path,
    version: MetaVersion,
    bytes: &'a [u8],
) -> Result<(u32, &'a [u8])> {
    let corrupt = |what: &str| corrupt(file, what);
    let Some((head, body)) = bytes.split_at_checked(ENVELOPE) else {
        return Err(corrupt("shorter than its header"));
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | (u64::from(word(at + 4)) << 32);
    if head[..4] != magic || crc32c::crc32c(&head[..28]) != word(28) {
        return Err(corrupt("its header does not verify"));
    }
    if !(1..=FORMAT).contains(&word(4)) {
        return Err(Error::new(
            Code::Unsupported,
            format!("metadata file {}: format {} is not known", file.display(), word(4)),
        )
        .with_hint("open the store with the version of kymo that wrote it, or a newer one"));
    }
    if long(8) != version.0 {
        return Err(corrupt("it holds another version than its name says"));
    }
    if long(16) != body.len() as u64 || crc32c::crc32c(body) != word(24) {
        return Err(corrupt("its content does not verify"));
    }
    Ok((word(4), body))
}

fn decode<T: DeserializeOwned>(file: &Path, body: &[u8]) -> Result<T> {
    postcard::from_bytes(body).map_err(|_| corrupt(file, "its content does not decode"))
}

#[derive(Serialize, Deserialize)]
struct PositionRecord(u16, u64, u64);

#[derive(Serialize, Deserialize)]
struct ColumnRecord {
    id: u32,
    name: String,
    kind: u8,
    field_type: u8,
}

#[derive(Serialize, Deserialize)]
struct TableRecord {
    id: u64,
    name: [String; 3],
    schema_version: u32,
    columns: Vec<ColumnRecord>,
    append_only: bool,
    window_ns: i64,
}

#[derive(Serialize, Deserialize)]
enum ScalarRecord {
    Float64(f64),
    Int64(i64),
    UInt64(u64),
    Bool(bool),
    Text(String),
    Timestamp(i64),
}

#[derive(Serialize, Deserialize)]
struct StatsRecord {
    column: u32,
    nulls: u64,
    min: Option<ScalarRecord>,
    max: Option<ScalarRecord>,
}

#[derive(Serialize, Deserialize)]
struct SegmentRecord {
    id: u128,
    table: u64,
    schema_version: u32,
    path: String,
    bytes: u64,
    rows: u64,
    time: (i64, i64),
    slots: (u16, u16),
    key_min: Vec<u8>,
    key_max: Vec<u8>,
    partition: u16,
    first: PositionRecord,
    last: PositionRecord,
    level: u8,
    footer: u64,
    checksum: u32,
    late: Option<(i64, i64)>,
    columns: Vec<StatsRecord>,
}

#[derive(Serialize, Deserialize)]
struct UserRecord {
    name: String,
    admin: bool,
    argon2: String,
    scram_salt: Vec<u8>,
    scram_iterations: u32,
    scram_stored_key: [u8; 32],
    scram_server_key: [u8; 32],
    tokens: Vec<[u8; 32]>,
}

#[derive(Serialize, Deserialize)]
struct AssignmentRecord {
    partition: u16,
    node: String,
    epoch: u64,
    slots: (u16, u16),
}

#[derive(Serialize, Deserialize)]
struct NodeRecord {
    id: String,
    instance: u128,
    roles: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct EditRecord {
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

#[derive(Serialize, Deserialize)]
struct TableStateRecord {
    def: TableRecord,
    segments: Vec<SegmentRecord>,
    flushed: Vec<PositionRecord>,
}

#[derive(Serialize, Deserialize)]
struct SnapshotRecord {
    min_reader: u32,
    feature_level: u32,
    next_table: u64,
    databases: Vec<String>,
    tables: Vec<TableStateRecord>,
    users: Vec<UserRecord>,
    assignments: Vec<AssignmentRecord>,
    nodes: Vec<NodeRecord>,
}

impl From<Position> for PositionRecord {
    fn from(from: Position) -> Self {
        PositionRecord(from.partition.0, from.epoch.0, from.seq.0)
    }
}

impl From<PositionRecord> for Position {
    fn from(PositionRecord(partition, epoch, seq): PositionRecord) -> Self {
        Position { partition: PartitionId(partition), epoch: Epoch(epoch), seq: Seq(seq) }
    }
}

fn kind_number(kind: ColumnKind) -> u8 {
    match kind {
        ColumnKind::Tag => 0,
        ColumnKind::Field => 1,
        ColumnKind::Time => 2,
    }
}

fn kind_of(number: u8) -> ColumnKind {
    match number {
        0 => ColumnKind::Tag,
        2 => ColumnKind::Time,
        _ => ColumnKind::Field,
    }
}

fn type_number(field_type: FieldType) -> u8 {
    match field_type {
        FieldType::Float64 => 0,
        FieldType::Int64 => 1,
        FieldType::UInt64 => 2,
        FieldType::Bool => 3,
        FieldType::Text => 4,
        FieldType::Timestamp => 5,
    }
}

fn type_of(number: u8) -> FieldType {
    match number {
        0 => FieldType::Float64,
        1 => FieldType::Int64,
        2 => FieldType::UInt64,
        3 => FieldType::Bool,
        5 => FieldType::Timestamp,
        _ => FieldType::Text,
    }
}

impl From<&TableDef> for TableRecord {
    fn from(from: &TableDef) -> Self {
        let column = |column: &Column| ColumnRecord {
            id: column.id.0,
            name: column.name.clone(),
            kind: kind_number(column.kind),
            field_type: type_number(column.field_type),
        };
        TableRecord {
            id: from.id.0,
            name: [from.name.database.clone(), from.name.schema.clone(), from.name.table.clone()],
            schema_version: from.schema.version,
            columns: from.schema.columns.iter().map(column).collect(),
            append_only: from.options.append_only,
            window_ns: from.options.window_ns,
        }
    }
}

impl From<TableRecord> for TableDef {
    fn from(from: TableRecord) -> Self {
        let column = |column: ColumnRecord| Column {
            id: ColumnId(column.id),
            name: column.name,
            kind: kind_of(column.kind),
            field_type: type_of(column.field_type),
        };
        let [database, schema, table] = from.name;
        TableDef {
            id: TableId(from.id),
            name: TableName { database, schema, table },
            schema: TableSchema {
                version: from.schema_version,
                columns: from.columns.into_iter().map(column).collect(),
            },
            options: TableOptions {
                append_only: from.append_only,
                window_ns: from.window_ns,
                ..TableOptions::default()
            },
        }
    }
}

impl From<&Scalar> for ScalarRecord {
    fn from(from: &Scalar) -> Self {
        match from {
            Scalar::Float64(value) => ScalarRecord::Float64(*value),
            Scalar::Int64(value) => ScalarRecord::Int64(*value),
            Scalar::UInt64(value) => ScalarRecord::UInt64(*value),
            Scalar::Bool(value) => ScalarRecord::Bool(*value),
            Scalar::Text(value) => ScalarRecord::Text(value.clone()),
            Scalar::Timestamp(value) => ScalarRecord::Timestamp(*value),
        }
    }
}

impl From<ScalarRecord> for Scalar {
    fn from(from: ScalarRecord) -> Self {
        match from {
            ScalarRecord::Float64(value) => Scalar::Float64(value),
            ScalarRecord::Int64(value) => Scalar::Int64(value),
            ScalarRecord::UInt64(value) => Scalar::UInt64(value),
            ScalarRecord::Bool(value) => Scalar::Bool(value),
            ScalarRecord::Text(value) => Scalar::Text(value),
            ScalarRecord::Timestamp(value) => Scalar::Timestamp(value),
        }
    }
}

impl From<&SegmentMeta> for SegmentRecord {
    fn from(from: &SegmentMeta) -> Self {
        let stats = |stats: &ColumnStats| StatsRecord {
            column: stats.column.0,
            nulls: stats.nulls,
            min: stats.min.as_ref().map(ScalarRecord::from),
            max: stats.max.as_ref().map(ScalarRecord::from),
        };
        SegmentRecord {
            id: from.id.0.0,
            table: from.table.0,
            schema_version: from.schema_version,
            path: from.path.clone(),
            bytes: from.bytes,
            rows: from.rows,
            time: (from.time.first, from.time.last),
            slots: (from.slots.0.0, from.slots.1.0),
            key_min: from.key_min.clone(),
            key_max: from.key_max.clone(),
            partition: from.partition.0,
            first: from.seq_range.0.into(),
            last: from.seq_range.1.into(),
            level: from.level,
            footer: from.footer,
            checksum: from.checksum,
            late: from.late.map(|late| (late.first, late.last)),
            columns: from.columns.iter().map(stats).collect(),
        }
    }
}

impl From<SegmentRecord> for SegmentMeta {
    fn from(from: SegmentRecord) -> Self {
        let stats = |stats: StatsRecord| ColumnStats {
            column: ColumnId(stats.column),
            nulls: stats.nulls,
            min: stats.min.map(Scalar::from),
            max: stats.max.map(Scalar::from),
        };
        SegmentMeta {
            id: segment_id(from.id),
            table: TableId(from.table),
            schema_version: from.schema_version,
            path: from.path,
            bytes: from.bytes,
            rows: from.rows,
            time: TimeRange { first: from.time.0, last: from.time.1 },
            slots: (Slot(from.slots.0), Slot(from.slots.1)),
            key_min: from.key_min,
            key_max: from.key_max,
            partition: PartitionId(from.partition),
            seq_range: (from.first.into(), from.last.into()),
            level: from.level,
            footer: from.footer,
            checksum: from.checksum,
            late: from.late.map(|(first, last)| TimeRange { first, last }),
            columns: from.columns.into_iter().map(stats).collect(),
        }
    }
}

fn segment_id(number: u128) -> SegmentId {
    SegmentId(ulid::Ulid(number))
}

impl From<&User> for UserRecord {
    fn from(from: &User) -> Self {
        UserRecord {
            name: from.name.clone(),
            admin: from.admin,
            argon2: from.argon2.clone(),
            scram_salt: from.scram.salt.clone(),
            scram_iterations: from.scram.iterations,
            scram_stored_key: from.scram.stored_key,
            scram_server_key: from.scram.server_key,
            tokens: from.tokens.clone(),
        }
    }
}

impl From<UserRecord> for User {
    fn from(from: UserRecord) -> Self {
        User {
            name: from.name,
            admin: from.admin,
            argon2: from.argon2,
            scram: ScramVerifier {
                salt: from.scram_salt,
                iterations: from.scram_iterations,
                stored_key: from.scram_stored_key,
                server_key: from.scram_server_key,
            },
            tokens: from.tokens,
        }
    }
}

impl AssignmentRecord {
    fn new(partition: PartitionId, from: &Assignment) -> Self {
        AssignmentRecord {
            partition: partition.0,
            node: from.node.clone(),
            epoch: from.epoch.0,
            slots: (from.slots.0.0, from.slots.1.0),
        }
    }

    fn split(self) -> (PartitionId, Assignment) {
        let assignment = Assignment {
            node: self.node,
            epoch: Epoch(self.epoch),
            slots: (Slot(self.slots.0), Slot(self.slots.1)),
        };
        (PartitionId(self.partition), assignment)
    }
}

impl From<&NodeMeta> for NodeRecord {
    fn from(from: &NodeMeta) -> Self {
        NodeRecord {
            id: from.id.clone(),
            instance: from.instance.as_u128(),
            roles: from.roles.clone(),
        }
    }
}

impl From<NodeRecord> for NodeMeta {
    fn from(from: NodeRecord) -> Self {
        NodeMeta { id: from.id, instance: Uuid::from_u128(from.instance), roles: from.roles }
    }
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

impl From<&Snapshot> for SnapshotRecord {
    fn from(from: &Snapshot) -> Self {
        let table = |table: &Arc<TableMeta>| TableStateRecord {
            def: table.def.as_ref().into(),
            segments: table.segments.values().map(|each| each.as_ref().into()).collect(),
            flushed: table.flushed.values().map(|each| (*each).into()).collect(),
        };
        let assignment = |(id, each): (&PartitionId, &Assignment)| AssignmentRecord::new(*id, each);
        SnapshotRecord {
            min_reader: from.min_reader,
            feature_level: from.feature_level,
            next_table: from.next_table.0,
            databases: from.databases.iter().cloned().collect(),
            tables: from.tables.values().map(table).collect(),
            users: from.users.values().map(|user| user.as_ref().into()).collect(),
            assignments: from.assignments.iter().map(assignment).collect(),
            nodes: from.nodes.values().map(NodeRecord::from).collect(),
        }
    }
}

impl SnapshotRecord {
    fn into_snapshot(self, version: MetaVersion) -> Snapshot {
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

impl From<TableStateRecord> for TableMeta {
    fn from(from: TableStateRecord) -> Self {
        let segments = from.segments.into_iter().map(SegmentMeta::from);
        let flushed = from.flushed.into_iter().map(Position::from);
        let def = TableDef::from(from.def);
        TableMeta {
            next_column: super::behind(&def.schema),
            def: Arc::new(def),
            segments: segments.map(|each| (each.id, Arc::new(each))).collect(),
            flushed: flushed.map(|each| (each.partition, each)).collect(),
            deletions: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(magic: [u8; 4], version: MetaVersion, body: &[u8]) -> Vec<u8> {
        let mut bytes = seal(magic, version, &()).unwrap();
        bytes.extend_from_slice(body);
        bytes[16..24].copy_from_slice(&(body.len() as u64).to_le_bytes());
        bytes[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        let head = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&head.to_le_bytes());
        bytes
    }

    /// What a build before deletions and retention wrote, and one before columns were dropped.
    #[test]
    fn files_of_earlier_formats_are_read() {
        let version = MetaVersion(7);
        let table = crate::storage::model::table(true);
        let by = Author { node: "node".into(), partition: PartitionId::ONLY, epoch: Epoch(0) };
        let ops = vec![Op::PutTable { def: table }];
        let edit = Edit { commit_id: Uuid::from_u128(5), by, ops };
        let snapshot = Snapshot { version, ..Snapshot::default().apply(&edit).unwrap() };
        let of = |format: u32, mut bytes: Vec<u8>| {
            bytes[4..8].copy_from_slice(&format.to_le_bytes());
            let head = crc32c::crc32c(&bytes[..28]);
            bytes[28..32].copy_from_slice(&head.to_le_bytes());
            bytes
        };
        let body = (SnapshotRecord::from(&snapshot), PluginsRecord::from(&snapshot));
        let file = Path::new("/store/meta/snap/7");
        let bytes = of(2, seal(SNAPSHOT_MAGIC, version, &body).unwrap());
        assert_eq!(decode_snapshot(file, version, &bytes).unwrap(), snapshot);
        let (first, second) = body;
        let third = (KeepingRecord::from(&snapshot), ContinuousRecords::from(&snapshot));
        let body = (first, second, third.0, third.1, AlertsRecord::from(&snapshot));
        let bytes = of(3, seal(SNAPSHOT_MAGIC, version, &body).unwrap());
        assert_eq!(decode_snapshot(file, version, &bytes).unwrap(), snapshot);
        for format in [2, 3] {
            let bytes = of(format, encode_edits(version, std::slice::from_ref(&edit)).unwrap());
            assert_eq!(decode_edits(file, version, &bytes).unwrap(), std::slice::from_ref(&edit));
        }
    }

    /// Bytes that do not verify are refused; what verifies and is no record is, too.
    #[test]
    fn mutated_metadata_is_never_read_as_something_else() {
        let version = MetaVersion(7);
        let by = Author { node: "node".into(), partition: PartitionId::ONLY, epoch: Epoch(3) };
        let ops = vec![
            Op::CreateDatabase { name: "metrics".to_owned() },
            Op::PutTable { def: crate::storage::model::table(true) },
            Op::DropTable { table: TableId(9) },
        ];
        let edits = [Edit { commit_id: Uuid::from_u128(5), by, ops }];
        let file = Path::new("/store/meta/log/7.edit");
        let corpus = [
            encode_edits(version, &edits).unwrap(),
            encode_snapshot(&Snapshot { version, ..Snapshot::default() }).unwrap(),
        ];
        crate::fuzz::fuzz("metadata", &corpus, |bytes| {
            let refused = |code| matches!(code, Code::Corrupt | Code::Unsupported);
            if !corpus.iter().any(|whole| whole == bytes) {
                assert!(refused(decode_edits(file, version, bytes).err().unwrap().code()));
                assert!(refused(decode_snapshot(file, version, bytes).err().unwrap().code()));
            }
            let body = bytes.get(ENVELOPE..).unwrap_or_default();
            if let Err(error) = decode_edits(file, version, &sealed(EDIT_MAGIC, version, body)) {
                assert!(refused(error.code()), "{error:?}");
            }
            let bytes = sealed(SNAPSHOT_MAGIC, version, body);
            if let Err(error) = decode_snapshot(file, version, &bytes) {
                assert!(refused(error.code()), "{error:?}");
            }
        });
    }
}
