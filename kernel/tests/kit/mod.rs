//! A store on a simulated disk, and a table of it with its writer, for tests of the whole.
#![allow(dead_code, reason = "each test uses some of it")]

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{Int32Type, Schema};
use kymo_config::Settings;
use kymo_kernel::Result;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::ids::{ColumnId, Position, TableId};
use kymo_kernel::message::Durability;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::version::TableState;

pub mod faulty;

pub const ROOT: &str = "/store";

pub struct Table {
    pub store: Arc<Store>,
    pub def: Arc<TableDef>,
    pub state: TableState,
}

pub fn settings() -> Settings {
    let mut settings = Settings::default();
    settings.journal.file_bytes = 4096;
    settings.compaction.grace_ms = 1000;
    settings
}

pub fn open(sim: &Sim, settings: &Settings) -> Result<Arc<Store>> {
    Store::open_stepped(sim.env(), PathBuf::from(ROOT), settings)
}

pub fn definition(id: TableId, name: &str) -> TableDef {
    let column = |id, name: &str, kind, field_type| Column {
        id: ColumnId(id),
        name: name.to_owned(),
        kind,
        field_type,
    };
    let columns = vec![
        column(1, "host", ColumnKind::Tag, FieldType::Text),
        column(2, "time", ColumnKind::Time, FieldType::Timestamp),
        column(3, "value", ColumnKind::Field, FieldType::Int64),
    ];
    TableDef {
        id,
        name: TableName::new("kymo", name),
        schema: TableSchema { version: 1, columns },
        options: TableOptions::default(),
    }
}

pub fn rows(def: &TableDef, first: i64, count: i64, value: fn(i64) -> i64) -> RecordBatch {
    let hosts: DictionaryArray<Int32Type> = (0..count).map(|_| "a").collect();
    let times = TimestampNanosecondArray::from_iter_values(first..first + count);
    let values: Int64Array = (first..first + count).map(value).map(Some).collect();
    let columns: Vec<ArrayRef> =
        vec![Arc::new(hosts), Arc::new(times.with_timezone("+00:00")), Arc::new(values)];
    let fields: Vec<_> = def.schema.columns.iter().map(Column::arrow).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

impl Table {
    pub fn create(store: &Arc<Store>, name: &str) -> Table {
        let def = definition(store.catalog().next_table, name);
        store.commit(vec![Op::PutTable { def: def.clone() }]).unwrap();
        let state = store.claim(def.id).unwrap();
        Table { store: store.clone(), def: Arc::new(def), state }
    }

    pub fn append(&mut self, first: i64, count: i64) -> Result<Position> {
        self.append_batch(rows(&self.def, first, count, |time| time))
    }

    /// Rows whose values do not compress.
    pub fn append_scattered(&mut self, first: i64, count: i64) -> Result<Position> {
        let scatter = |time: i64| {
            let mixed = (time ^ (time << 17)).wrapping_mul(0x1e37_79b9_7f4a_7c15);
            (mixed ^ (mixed >> 29)).wrapping_mul(0x3f58_476d_1ce4_e5b9)
        };
        self.append_batch(rows(&self.def, first, count, scatter))
    }

    fn append_batch(&mut self, batch: RecordBatch) -> Result<Position> {
        let record = Record::encode(self.def.id, 1, &batch)?;
        let (sender, receiver) = std::sync::mpsc::channel();
        let done = move |outcome| sender.send(outcome).unwrap();
        self.store.log().append(RecordGroup::of(record), Durability::EveryWrite, Box::new(done));
        self.store.step();
        let position = receiver.recv().unwrap()?;
        self.state.apply(position, batch)?;
        Ok(position)
    }

    pub fn flush(&mut self) -> Result<()> {
        let frozen = self.state.freeze().unwrap();
        let segments = self.store.write_frozen(&self.def, &frozen)?;
        self.store.commit(vec![Op::AddSegments {
            table: self.def.id,
            segments: segments.clone(),
            flushed_upto: frozen.span.last,
        }])?;
        self.state.flushed(&frozen, segments.into_iter().map(Arc::new))
    }
}

pub fn stored_rows(store: &Store, name: &str) -> u64 {
    let catalog = store.catalog();
    let id = catalog.table(&TableName::new("kymo", name)).unwrap().def.id;
    store.table(id).unwrap().load().stored_rows()
}

/// A table that is there already, with its writer.
pub fn reclaim(store: &Arc<Store>, name: &str) -> Table {
    let id = store.catalog().table(&TableName::new("kymo", name)).unwrap().def.id;
    let state = store.claim(id).unwrap();
    Table { store: store.clone(), def: state.table().clone(), state }
}
