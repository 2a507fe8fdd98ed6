//! A small table as plain rows, and what it must hold, for tests of everything columnar.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, TimestampNanosecondType};
use proptest::prelude::*;

use crate::cancel::CancelToken;
use crate::env::sim::Sim;
use crate::ids::{ColumnId, Epoch, PartitionId, Position, Seq, TableId, TimeRange};
use crate::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use crate::storage::compact;
use crate::storage::conform::shape;
use crate::storage::interner::TagArray;
use crate::storage::merge::{self, GroupScan};
use crate::storage::overlap::groups;
use crate::storage::segment::{LocalSegments, TagFilter, Target, flush};
use crate::storage::version::{SegmentFiles, TableState, Version};

/// Rows span several windows of this width.
pub const WINDOW: i64 = 1_000_000_000;

#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub a: Option<String>,
    pub b: Option<String>,
    pub time: i64,
    pub float: Option<f64>,
    pub int: Option<i64>,
    pub text: Option<String>,
}

pub type Key = (Option<String>, Option<String>, i64);

impl Row {
    pub fn key(&self) -> Key {
        (self.a.clone(), self.b.clone(), self.time)
    }
}

/// Rows of one write; columns whose bit is unset are absent from its batch.
#[derive(Debug, Clone)]
pub struct Rows {
    pub rows: Vec<Row>,
    pub columns: u8,
}

impl Rows {
    /// The rows as the batch shows them: absent columns are NULL.
    pub fn seen(&self) -> impl Iterator<Item = Row> {
        let has = |bit: u8| self.columns & (1 << bit) != 0;
        self.rows.iter().map(move |row| Row {
            a: row.a.clone().filter(|_| has(0)),
            b: row.b.clone().filter(|_| has(1)),
            time: row.time,
            float: row.float.filter(|_| has(2)),
            int: row.int.filter(|_| has(3)),
            text: row.text.clone().filter(|_| has(4)),
        })
    }

    pub fn batch(&self) -> RecordBatch {
        let rows = &self.rows;
        let tag = |of: fn(&Row) -> Option<&str>| -> ArrayRef {
            Arc::new(rows.iter().map(of).collect::<TagArray>())
        };
        let time = TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.time));
        let all: Vec<(u8, &str, ArrayRef)> = vec![
            (0, "a", tag(|row| row.a.as_deref())),
            (1, "b", tag(|row| row.b.as_deref())),
            (2, "float", Arc::new(rows.iter().map(|row| row.float).collect::<Float64Array>())),
            (7, "time", Arc::new(time.with_timezone("+00:00"))),
            (3, "int", Arc::new(rows.iter().map(|row| row.int).collect::<Int64Array>())),
            (
                4,
                "text",
                Arc::new(rows.iter().map(|row| row.text.as_deref()).collect::<StringArray>()),
            ),
        ];
        let schema = table(false).schema.arrow();
        let kept =
            all.into_iter().filter(|(bit, _, _)| *bit == 7 || self.columns & (1 << bit) != 0);
        let (fields, columns): (Vec<_>, Vec<_>) = kept
            .map(|(_, name, array)| (schema.field_with_name(name).unwrap().clone(), array))
            .unzip();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }
}

pub fn table(append_only: bool) -> TableDef {
    TableDef {
        id: TableId(1),
        name: TableName::new("kymo", "rows"),
        schema: TableSchema {
            version: 1,
            columns: vec![
                Column::new(ColumnId(1), "a", ColumnKind::Tag, FieldType::Text),
                Column::new(ColumnId(2), "b", ColumnKind::Tag, FieldType::Text),
                Column::new(ColumnId(3), "float", ColumnKind::Field, FieldType::Float64),
                Column::new(ColumnId(4), "time", ColumnKind::Time, FieldType::Timestamp),
                Column::new(ColumnId(5), "int", ColumnKind::Field, FieldType::Int64),
                Column::new(ColumnId(6), "text", ColumnKind::Field, FieldType::Text),
            ],
        },
        options: TableOptions { append_only, window_ns: WINDOW, ..TableOptions::default() },
    }
}

pub fn position(seq: u64) -> Position {
    Position { partition: PartitionId::ONLY, epoch: Epoch(1), seq: Seq(seq) }
}

/// Few series and few times, so that rows often repeat.
pub fn row() -> impl Strategy<Value = Row> {
    let tag = || proptest::option::weighted(0.8, "[a-c]");
    let text = proptest::option::of("[xyz]{0,3}");
    let time = prop_oneof![0..12i64, WINDOW - 3..WINDOW + 3, -2..2i64];
    (tag(), tag(), time, proptest::option::of(-3..3i32), proptest::option::of(-9..9i64), text)
        .prop_map(|(a, b, time, float, int, text)| Row {
            a,
            b,
            time,
            float: float.map(f64::from),
            int,
            text,
        })
}

pub fn rows() -> impl Strategy<Value = Rows> {
    (proptest::collection::vec(row(), 0..12), prop_oneof![3 => Just(0xffu8), 1 => any::<u8>()])
        .prop_map(|(rows, columns)| Rows { rows, columns })
}

/// What a table must hold after some writes.
pub fn expected(writes: &[Rows], append_only: bool) -> Vec<Row> {
    let seen = writes.iter().flat_map(Rows::seen);
    if append_only {
        let mut rows: Vec<Row> = seen.collect();
        rows.sort_by_key(Row::key);
        return rows;
    }
    let mut table: BTreeMap<Key, Row> = BTreeMap::new();
    for new in seen {
        let old = table.entry(new.key()).or_insert_with(|| new.clone());
        old.float = new.float.or(old.float);
        old.int = new.int.or(old.int);
        old.text = new.text.clone().or(old.text.take());
    }
    table.into_values().collect()
}

/// The rows of a batch with all columns of the table, by name.
pub fn read(batch: &RecordBatch) -> Vec<Row> {
    let column = |name: &str| batch.column_by_name(name).unwrap();
    let tag = |name: &str, row: usize| {
        let tags = column(name).as_any().downcast_ref::<TagArray>().unwrap();
        let texts = tags.values().as_string::<i32>();
        tags.key(row).filter(|code| texts.is_valid(*code)).map(|code| texts.value(code).to_owned())
    };
    let floats = column("float").as_primitive::<Float64Type>();
    // It may have become floating point.
    let ints = cast(column("int"), &DataType::Int64).unwrap();
    let ints = ints.as_primitive::<Int64Type>();
    let texts = column("text").as_string::<i32>();
    let times = column("time").as_primitive::<TimestampNanosecondType>();
    (0..batch.num_rows())
        .map(|row| Row {
            a: tag("a", row),
            b: tag("b", row),
            time: times.value(row),
            float: floats.is_valid(row).then(|| floats.value(row)),
            int: ints.is_valid(row).then(|| ints.value(row)),
            text: texts.is_valid(row).then(|| texts.value(row).to_owned()),
        })
        .collect()
}

/// The columns that the table began with, under the names and with the types of then; an integer
/// column that became floating point stays so.
fn original(now: &TableSchema) -> Arc<Schema> {
    let mut schema = table(false).schema;
    for column in &mut schema.columns {
        if let Some(now) = now.columns.iter().find(|now| now.id == column.id) {
            column.field_type = now.field_type;
        }
    }
    schema.arrow()
}

/// All rows of a version, as a scan finds them: compared only within groups. Columns are found by
/// their ids.
pub fn scan(version: &Version, batch_rows: usize) -> Vec<Row> {
    let mut rows = Vec::new();
    for group in groups(version, &TimeRange::ALL, &TagFilter::all()) {
        let scan = GroupScan {
            output: version.table.schema.arrow(),
            tags: TagFilter::all(),
            time: TimeRange::ALL,
            batch_rows,
        };
        let mut found: Vec<Row> = Vec::new();
        for batch in merge::open(&group, &version.table, &scan).unwrap() {
            let batch = batch.unwrap();
            assert!(batch.num_rows() <= batch_rows && batch.num_rows() > 0);
            found.extend(read(&shape(&batch, &original(&version.table.schema)).unwrap()));
        }
        assert!(found.is_sorted_by_key(Row::key), "a group comes sorted");
        rows.extend(found);
    }
    rows.sort_by_key(Row::key);
    rows
}

/// A table on a simulated disk, with its writer, flusher and compactor in one.
pub struct Bench {
    pub sim: Sim,
    pub target: Target,
    pub files: SegmentFiles,
    pub state: TableState,
    seq: u64,
    next_column: u32,
}

impl Bench {
    pub fn new(append_only: bool) -> Self {
        let sim = Sim::new(7);
        let store = Arc::new(LocalSegments::new(sim.disk.clone(), "/store".into()));
        let files = SegmentFiles::new(store.clone(), 1 << 20);
        let settings = kymo_config::settings::Segment { row_group_rows: 7, ..Default::default() };
        let target = Target { store, env: sim.env(), settings };
        let table = Arc::new(table(append_only));
        let state = TableState::open(table, [], position(0), files.clone());
        Bench { sim, target, files, state, seq: 0, next_column: 7 }
    }

    /// An id that no column had.
    pub fn next_column(&mut self) -> ColumnId {
        self.next_column += 1;
        ColumnId(self.next_column - 1)
    }

    pub fn write(&mut self, batch: RecordBatch) {
        self.seq += 1;
        self.state.apply(position(self.seq), batch).unwrap();
    }

    /// Changes the columns.
    pub fn alter(&mut self, change: impl FnOnce(&mut Vec<Column>)) {
        let mut table = TableDef::clone(self.state.table());
        change(&mut table.schema.columns);
        table.schema.version += 1;
        self.state.alter(Arc::new(table)).unwrap();
    }

    pub fn flush(&mut self) {
        if let Some(frozen) = self.state.freeze() {
            let table = self.state.table().clone();
            let segments = flush(&self.target, &table, &frozen, &CancelToken::new()).unwrap();
            self.state.flushed(&frozen, segments.into_iter().map(Arc::new)).unwrap();
        }
    }

    /// Runs one merge; tells whether there was one to run.
    pub fn compact(&mut self, min_segments: usize, now_ns: i64) -> bool {
        let settings = kymo_config::settings::Compaction {
            min_segments,
            ..kymo_config::settings::Compaction::default()
        };
        let version = self.state.cell().load();
        let Some(job) = compact::pick(&version, &settings, now_ns) else { return false };
        self.merge(&job);
        true
    }

    pub fn merge(&mut self, job: &compact::Job) {
        let output = compact::run(job, &self.target, &CancelToken::new(), &mut |_| {}).unwrap();
        let outputs = output.segment.map(Arc::new);
        self.state.replaced(&job.input_ids(), outputs).unwrap();
    }

    /// Forgets everything but the segments, as a start does.
    pub fn reopen(&mut self) {
        self.flush();
        let version = self.state.cell().load();
        let metas: Vec<_> = version.segments.iter().map(|each| each.meta().clone()).collect();
        let table = self.state.table().clone();
        self.state = TableState::open(table, metas, position(self.seq), self.files.clone());
    }

    pub fn version(&self) -> Arc<Version> {
        self.state.cell().load()
    }
}
