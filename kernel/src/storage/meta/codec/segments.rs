//! The frozen form of segments: where they lie, what they hold, and up to where of the log.

use serde::{Deserialize, Serialize};

use crate::ids::{
    ColumnId, Epoch, PartitionId, Position, SegmentId, Seq, Slot, TableId, TimeRange,
};
use crate::storage::meta::{ColumnStats, Scalar, SegmentMeta};

#[derive(Serialize, Deserialize)]
pub(super) struct PositionRecord(u16, u64, u64);

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
pub(super) struct SegmentRecord {
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

pub(super) fn segment_id(number: u128) -> SegmentId {
    SegmentId(ulid::Ulid(number))
}
