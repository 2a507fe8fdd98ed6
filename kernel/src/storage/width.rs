//! How wide rows are, and so how many of them a batch may hold: rows with long texts go
//! through memory a few at a time.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::DataType;

/// Size of a batch beyond which it holds fewer rows than asked for.
pub const BATCH_BYTES: usize = 16 << 20;

/// The mean size of a row, without the dictionaries that rows share.
#[must_use]
pub fn row_bytes<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> usize {
    let (mut bytes, mut rows) = (0, 0);
    for batch in batches {
        bytes += batch.columns().iter().map(column_bytes).sum::<usize>();
        rows += batch.num_rows();
    }
    bytes / rows.max(1)
}

fn column_bytes(column: &ArrayRef) -> usize {
    match column.data_type() {
        DataType::Dictionary(_, _) => column.len() * size_of::<i32>(),
        _ => column.to_data().get_slice_memory_size().unwrap_or_default(),
    }
}

/// How many rows of this size a batch of at most `rows` may hold; at least one.
#[must_use]
pub fn fitting(rows: usize, row_bytes: usize) -> usize {
    rows.min(BATCH_BYTES / row_bytes.max(1)).max(1)
}
