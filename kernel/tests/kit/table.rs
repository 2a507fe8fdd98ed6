//! A table of a store with its writer.

use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::Int32Type;
use kymo_kernel::Result;
use kymo_kernel::ids::{ColumnId, Position, TableId};
use kymo_kernel::message::Durability;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::Op;
use kymo_kernel::storage::version::TableState;

pub struct Table {
    pub store: Arc<Store>,
    pub def: Arc<TableDef>,
    pub state: TableState,
    /// The value of a row, by its time.
    pub value: fn(i64) -> i64,
}

pub fn definition(id: TableId, name: &str) -> TableDef {
    let columns = vec![
        Column::new(ColumnId(1), "host", ColumnKind::Tag, FieldType::Text),
        Column::new(ColumnId(2), "time", ColumnKind::Time, FieldType::Timestamp),
        Column::new(ColumnId(3), "value", ColumnKind::Field, FieldType::Int64),
    ];
    TableDef {
        id,
        name: TableName::new("kymo", name),
        schema: TableSchema { version: 1, columns },
        options: TableOptions::default(),
    }
}

/// Rows of one host at these times.
pub fn rows(
    def: &TableDef,
    times: impl Iterator<Item = i64> + Clone,
    value: fn(i64) -> i64,
) -> RecordBatch {
    let hosts: DictionaryArray<Int32Type> = times.clone().map(|_| "a").collect();
    let values: Int64Array = times.clone().map(value).map(Some).collect();
    let times = TimestampNanosecondArray::from_iter_values(times).with_timezone("+00:00");
    let columns: Vec<ArrayRef> = vec![Arc::new(hosts), Arc::new(times), Arc::new(values)];
    RecordBatch::try_new(def.schema.arrow(), columns).unwrap()
}

impl Table {
    pub fn create(store: &Arc<Store>, name: &str) -> Table {
        let def = definition(store.catalog().next_table, name);
        store.commit(vec![Op::PutTable { def }]).unwrap();
        Table::reclaim(store, name)
    }

    /// A table that is there already.
    pub fn reclaim(store: &Arc<Store>, name: &str) -> Table {
        let id = store.catalog().table(&TableName::new("kymo", name)).unwrap().def.id;
        let state = store.claim(id).unwrap();
        Table { store: store.clone(), def: state.table().clone(), state, value: |time| time }
    }

    /// Appends so many rows from a time on.
    pub fn append(&mut self, first: i64, count: i64) -> Result<Position> {
        self.append_at(first..first + count)
    }

    pub fn append_at(&mut self, times: impl Iterator<Item = i64> + Clone) -> Result<Position> {
        let batch = rows(&self.def, times, self.value);
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
