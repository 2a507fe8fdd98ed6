//! The frozen form of what altering leaves behind of a table beyond its definition: which ids of
//! columns were given; format 4 brought it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ColumnId, TableId};
use crate::storage::meta::{Snapshot, behind};

/// What follows the alerts in a checkpoint of the fourth format.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct AlteringRecord {
    /// The next id of a column, of tables whose newest columns were dropped.
    columns: Vec<(u64, u32)>,
}

impl From<&Snapshot> for AlteringRecord {
    fn from(from: &Snapshot) -> Self {
        let beyond =
            from.tables.iter().filter(|(_, table)| table.next_column > behind(&table.def.schema));
        AlteringRecord { columns: beyond.map(|(id, table)| (id.0, table.next_column.0)).collect() }
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
    }
}
