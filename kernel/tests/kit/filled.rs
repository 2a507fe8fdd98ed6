//! Tables with rows in segments, and with rows that the journal alone has.

use std::ops::Range;
use std::sync::Arc;

use kymo_kernel::storage::Store;

use super::table::Table;

/// Rows that a write has at most.
const WRITE: i64 = 10;

/// A table whose first rows are in a segment, and the next ones in the journal alone.
pub fn filled(store: &Arc<Store>, name: &str, flushed: i64, unflushed: i64) -> Table {
    let mut table = Table::create(store, name);
    table.write(0..flushed);
    table.flush().unwrap();
    table.write(flushed..flushed + unflushed);
    table
}

impl Table {
    /// A row at each of these times, ten a write.
    pub fn write(&mut self, times: Range<i64>) {
        for first in times.clone().step_by(WRITE as usize) {
            self.append(first, WRITE.min(times.end - first)).unwrap();
        }
    }
}
