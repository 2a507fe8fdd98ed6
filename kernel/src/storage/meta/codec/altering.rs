//! The frozen form of what altering leaves behind of a table: which ids of columns were given, and
//! options beyond those of the first format; format 4 brought it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ColumnId, TableId};
use crate::schema::TableOptions;
use crate::storage::meta::{Snapshot, behind};

/// What follows the alerts in a checkpoint of the fourth format.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct AlteringRecord {
    /// The next id of a column, of tables whose newest columns were dropped.
    columns: Vec<(u64, u32)>,
    /// Of tables that have any.
    options: Vec<(u64, OptionsRecord)>,
}

/// What a table was given beyond the options of the first format.
#[derive(Serialize, Deserialize)]
pub(super) struct OptionsRecord {
    widen_integers: bool,
}

impl OptionsRecord {
    /// `None` where all are as they would be without having been said.
    pub(super) fn of(from: &TableOptions) -> Option<Self> {
        let TableOptions { append_only: _, window_ns: _, widen_integers } = *from;
        widen_integers.then_some(OptionsRecord { widen_integers })
    }

    pub(super) fn add_to(self, options: &mut TableOptions) {
        options.widen_integers = self.widen_integers;
    }
}

impl From<&Snapshot> for AlteringRecord {
    fn from(from: &Snapshot) -> Self {
        let beyond =
            from.tables.iter().filter(|(_, table)| table.next_column > behind(&table.def.schema));
        let options = from
            .tables
            .iter()
            .filter_map(|(id, table)| Some((id.0, OptionsRecord::of(&table.def.options)?)));
        AlteringRecord {
            columns: beyond.map(|(id, table)| (id.0, table.next_column.0)).collect(),
            options: options.collect(),
        }
    }
}

impl AlteringRecord {
    pub(super) fn add_to(self, snapshot: &mut Snapshot) {
        let tables = Arc::make_mut(&mut snapshot.tables);
        for (id, next) in self.columns {
            if let Some(table) = tables.get_mut(&TableId(id)) {
                Arc::make_mut(table).next_column = ColumnId(next);
            }
        }
        for (id, options) in self.options {
            if let Some(table) = tables.get_mut(&TableId(id)) {
                options.add_to(&mut Arc::make_mut(&mut Arc::make_mut(table).def).options);
            }
        }
    }
}
