//! A simulated world for tests of the write side: real actors, one thread, a clock that
//! jumps and a disk that forgets.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Float64Array, Int64Array, RecordBatch,
    TimestampNanosecondArray,
};
use arrow::datatypes::{Float64Type, Int32Type, Schema, TimestampNanosecondType};
use kymo_config::Settings;
use kymo_kernel::Result;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::ids::TimeRange;
use kymo_kernel::message::{Acked, Write};
use kymo_kernel::pools::{Pools, Task};
use kymo_kernel::schema::{ColumnKind, FieldType, TableBatch, TableName, marked_field};
use kymo_kernel::simulate;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::merge::{self, GroupScan};
use kymo_kernel::storage::overlap;
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::Version;
use kymo_kernel::supervise::Supervisor;

use crate::boot::step_journal;
use crate::engine::Engine;

/// One value of one series at one time.
pub type Point = (&'static str, i64, f64);

/// A world whose store can be opened, killed and opened again.
pub struct World {
    pub sim: Sim,
    pub settings: Settings,
}

/// An engine in a world, with the task that stands in for the journal's thread.
pub struct Life {
    pub engine: Engine,
    _journal: Task<()>,
}

impl World {
    pub fn new(seed: u64) -> World {
        let mut settings = Settings::default();
        settings.server.data_dir = PathBuf::from("/data");
        settings.compaction.interval_ms = 1000;
        World { sim: Sim::new(seed), settings }
    }

    /// Runs a program in virtual time.
    pub fn run<T>(&self, program: impl Future<Output = T>) -> T {
        simulate::run(&self.sim.clock, program).unwrap()
    }

    /// Opens the store and starts the engine; must be called within [`World::run`].
    pub fn open(&self) -> Life {
        self.try_open().unwrap()
    }

    pub fn try_open(&self) -> Result<Life> {
        let env = self.sim.env();
        let root = self.settings.server.data_dir.clone();
        let store = Store::open_stepped(env.clone(), root, &self.settings)?;
        let pools = Pools::here();
        let supervisor = Supervisor::new(&pools, env.clock.clone(), |escalation| {
            panic!("{escalation:?}");
        });
        let engine = Engine::start(&self.settings, &env, &pools, &supervisor, store.clone(), None)?;
        let journal = step_journal(&store, &pools);
        Ok(Life { engine, _journal: journal })
    }
}

pub fn cpu() -> TableName {
    TableName::new("kymo", "cpu")
}

/// Rows of `host` and the float `value`; their lines are 1, 2, 3 …
pub fn rows(table: &TableName, points: &[Point]) -> TableBatch {
    rows_of(table, points, "value")
}

/// Rows of `host` and a float field of any name.
pub fn rows_of(table: &TableName, points: &[Point], field: &str) -> TableBatch {
    let hosts: DictionaryArray<Int32Type> = points.iter().map(|(host, _, _)| Some(*host)).collect();
    let values: Float64Array = points.iter().map(|(_, _, value)| Some(*value)).collect();
    batch(table, Arc::new(hosts), points, field, FieldType::Float64, Arc::new(values))
}

/// Rows whose field `value` is an integer, or missing where `None`.
pub fn integers(table: &TableName, points: &[(&'static str, i64, Option<i64>)]) -> TableBatch {
    let hosts: DictionaryArray<Int32Type> = points.iter().map(|(host, _, _)| Some(*host)).collect();
    let values: Int64Array = points.iter().map(|(_, _, value)| *value).collect();
    let times: Vec<Point> = points.iter().map(|(host, time, _)| (*host, *time, 0.0)).collect();
    batch(table, Arc::new(hosts), &times, "value", FieldType::Int64, Arc::new(values))
}

fn batch(
    table: &TableName,
    hosts: ArrayRef,
    points: &[Point],
    field: &str,
    of: FieldType,
    values: ArrayRef,
) -> TableBatch {
    let times = TimestampNanosecondArray::from_iter_values(points.iter().map(|(_, time, _)| *time))
        .with_timezone("+00:00");
    let schema = Schema::new(vec![
        marked_field("host", ColumnKind::Tag, FieldType::Text),
        marked_field(field, ColumnKind::Field, of),
        marked_field("time", ColumnKind::Time, FieldType::Timestamp),
    ]);
    TableBatch {
        table: table.clone(),
        batch: RecordBatch::try_new(Arc::new(schema), vec![hosts, values, Arc::new(times)])
            .unwrap(),
        lines: (1..=u32::try_from(points.len()).unwrap()).collect(),
    }
}

pub fn write(batches: Vec<TableBatch>) -> Write {
    Write { batches, durability: None, create: true, partial: true }
}

impl Life {
    pub async fn write(&self, batch: TableBatch) -> Result<Acked> {
        self.engine.write().call(write(vec![batch])).await
    }

    /// The current version of a table.
    pub fn version(&self, table: &TableName) -> Arc<Version> {
        let store = self.engine.store();
        let id = store.catalog().table(table).unwrap().def.id;
        store.table(id).unwrap().load()
    }

    /// Every stored point of a float field as a reader sees it now.
    pub fn points(&self, table: &TableName, field: &str) -> BTreeMap<(String, i64), f64> {
        read(&self.version(table), field)
    }
}

/// Reads a version as a scan does: what may overlap is merged, newest value last.
pub fn read(version: &Version, field: &str) -> BTreeMap<(String, i64), f64> {
    let mut points = BTreeMap::new();
    let output = version.table.schema.arrow();
    let (all, tags) = (TimeRange::ALL, TagFilter::default());
    for group in overlap::groups(version, &all, &tags) {
        let scan =
            GroupScan { output: output.clone(), tags: tags.clone(), time: all, batch_rows: 1000 };
        for batch in merge::open(&group, &version.table, &scan).unwrap() {
            collect(&batch.unwrap(), field, &mut points);
        }
    }
    points
}

fn collect(batch: &RecordBatch, field: &str, points: &mut BTreeMap<(String, i64), f64>) {
    let hosts = arrow::compute::cast(
        batch.column_by_name("host").unwrap(),
        &arrow::datatypes::DataType::Utf8,
    )
    .unwrap();
    let hosts = hosts.as_string::<i32>();
    let times = batch.column_by_name("time").unwrap().as_primitive::<TimestampNanosecondType>();
    let Some(values) = batch.column_by_name(field) else { return };
    let values = values.as_primitive::<Float64Type>();
    for row in (0..batch.num_rows()).filter(|row| values.is_valid(*row)) {
        let known =
            points.insert((hosts.value(row).to_owned(), times.value(row)), values.value(row));
        assert!(known.is_none(), "a row was read twice");
    }
}
