//! The frozen form of tables: their definitions, and with them their segments.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::segments::{PositionRecord, SegmentRecord};
use crate::ids::{ColumnId, Position, TableId};
use crate::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use crate::storage::meta::{SegmentMeta, TableMeta, behind};

#[derive(Serialize, Deserialize)]
struct ColumnRecord {
    id: u32,
    name: String,
    kind: u8,
    field_type: u8,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TableRecord {
    pub(super) id: u64,
    name: [String; 3],
    schema_version: u32,
    columns: Vec<ColumnRecord>,
    append_only: bool,
    window_ns: i64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct TableStateRecord {
    pub(super) def: TableRecord,
    segments: Vec<SegmentRecord>,
    flushed: Vec<PositionRecord>,
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
        let column = |ColumnRecord { id, name, kind, field_type }| {
            Column::new(ColumnId(id), name, kind_of(kind), type_of(field_type))
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

impl From<&TableMeta> for TableStateRecord {
    fn from(from: &TableMeta) -> Self {
        TableStateRecord {
            def: from.def.as_ref().into(),
            segments: from.segments.values().map(|each| each.as_ref().into()).collect(),
            flushed: from.flushed.values().map(|each| (*each).into()).collect(),
        }
    }
}

impl From<TableStateRecord> for TableMeta {
    fn from(from: TableStateRecord) -> Self {
        let segments = from.segments.into_iter().map(SegmentMeta::from);
        let flushed = from.flushed.into_iter().map(Position::from);
        let def = TableDef::from(from.def);
        TableMeta {
            next_column: behind(&def.schema),
            def: Arc::new(def),
            segments: segments.map(|each| (each.id, Arc::new(each))).collect(),
            flushed: flushed.map(|each| (each.partition, each)).collect(),
            deletions: 0,
        }
    }
}
