//! Cursors: queries whose rows are taken a few at a time.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::{StreamExt, stream};
use kymo_kernel::Result;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::message::BatchStream;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// An open cursor.
pub(super) struct Cursor {
    /// The shape of its rows.
    pub(super) schema: SchemaRef,
    /// Whether it outlives its transaction.
    pub(super) hold: bool,
    /// Stops its query.
    pub(super) cancel: CancelToken,
    rows: Arc<Mutex<Rows>>,
}

struct Rows {
    stream: Option<BatchStream>,
    rest: Option<RecordBatch>,
}

impl Cursor {
    pub(super) fn new(
        schema: SchemaRef,
        stream: BatchStream,
        hold: bool,
        cancel: CancelToken,
    ) -> Self {
        let rows = Rows { stream: Some(stream), rest: None };
        Cursor { schema, hold, cancel, rows: Arc::new(Mutex::new(rows)) }
    }

    /// The next `count` rows, or all of the rest; they leave the cursor as they are read.
    pub(super) fn fetch(&self, count: Option<u64>) -> BatchStream {
        let rows = self.rows.clone();
        let left = count.unwrap_or(u64::MAX);
        let start: (Option<OwnedMutexGuard<Rows>>, u64) = (None, left);
        let batches = stream::unfold(start, move |(guard, left)| {
            let rows = rows.clone();
            async move {
                if left == 0 {
                    return None;
                }
                let mut guard = match guard {
                    Some(guard) => guard,
                    None => rows.lock_owned().await,
                };
                let batch = guard.take(left).await?;
                let taken = batch.as_ref().map_or(left, |batch| batch.num_rows() as u64);
                Some((batch, (Some(guard), left - taken)))
            }
        });
        Box::pin(batches)
    }

    /// Passes over the next `count` rows, or all of the rest; answers how many.
    pub(super) async fn skip(mut batches: BatchStream) -> Result<u64> {
        let mut skipped = 0;
        while let Some(batch) = batches.next().await {
            skipped += batch?.num_rows() as u64;
        }
        Ok(skipped)
    }
}

impl Rows {
    async fn take(&mut self, most: u64) -> Option<Result<RecordBatch>> {
        let batch = match self.rest.take() {
            Some(batch) => batch,
            None => loop {
                match self.stream.as_mut()?.next().await {
                    Some(Ok(batch)) if batch.num_rows() == 0 => {}
                    Some(Ok(batch)) => break batch,
                    ended => {
                        self.stream = None;
                        return ended;
                    }
                }
            },
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if batch.num_rows() > most {
            self.rest = Some(batch.slice(most, batch.num_rows() - most));
            return Some(Ok(batch.slice(0, most)));
        }
        Some(Ok(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};

    fn batch(values: &[i64]) -> RecordBatch {
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)]));
        RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(values.to_vec()))]).unwrap()
    }

    async fn count(stream: BatchStream) -> u64 {
        Cursor::skip(stream).await.unwrap()
    }

    #[tokio::test]
    async fn rows_leave_in_portions_across_batches() {
        let batches = vec![Ok(batch(&[1, 2, 3])), Ok(batch(&[])), Ok(batch(&[4, 5]))];
        let cursor = Cursor::new(
            batch(&[]).schema(),
            Box::pin(stream::iter(batches)),
            false,
            CancelToken::new(),
        );
        assert_eq!(count(cursor.fetch(Some(2))).await, 2);
        assert_eq!(count(cursor.fetch(Some(0))).await, 0);
        drop(cursor.fetch(Some(1)));
        assert_eq!(count(cursor.fetch(Some(2))).await, 2);
        assert_eq!(count(cursor.fetch(None)).await, 1);
        assert_eq!(count(cursor.fetch(None)).await, 0);
    }
}
