//! Cursors: queries and subscriptions whose rows are taken a few at a time.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::{StreamExt, stream};
use kymo_kernel::Result;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::message::BatchStream;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::live::{self, Wait};

/// An open cursor.
pub(super) struct Cursor {
    /// The shape of its rows.
    pub(super) schema: SchemaRef,
    /// Whether it outlives its transaction.
    pub(super) hold: bool,
    /// Stops its query, which runs on between two statements; a subscription goes on when a
    /// statement that waits for its rows is cancelled.
    pub(super) query: Option<CancelToken>,
    rows: Arc<Mutex<Rows>>,
}

/// How a statement takes rows from a cursor.
pub(super) struct Taking {
    /// The next so many; `None` for all of the rest.
    pub(super) count: Option<u64>,
    /// How long it waits for rows of a subscription.
    pub(super) patience: Option<Duration>,
    /// Stops it.
    pub(super) cancel: CancelToken,
}

struct Rows {
    source: Source,
    rest: Option<RecordBatch>,
}

enum Source {
    Query(BatchStream),
    Subscription(Box<live::Rows>),
    Done,
}

impl Cursor {
    pub(super) fn new(
        schema: SchemaRef,
        stream: BatchStream,
        hold: bool,
        cancel: CancelToken,
    ) -> Self {
        Cursor::over(schema, Source::Query(stream), hold, Some(cancel))
    }

    /// A cursor over what a subscription pushes. What is not taken waits, as for any subscriber.
    pub(super) fn live(rows: live::Rows, hold: bool) -> Self {
        let schema = rows.schema().clone();
        Cursor::over(schema, Source::Subscription(Box::new(rows)), hold, None)
    }

    fn over(schema: SchemaRef, source: Source, hold: bool, query: Option<CancelToken>) -> Self {
        let rows = Arc::new(Mutex::new(Rows { source, rest: None }));
        Cursor { schema, hold, query, rows }
    }

    /// Rows, which leave the cursor as they are read. Of a query, as many as are wanted or are
    /// left; of a subscription, as many as are wanted or as come while the statement waits.
    pub(super) fn fetch(&self, taking: Taking) -> BatchStream {
        let rows = self.rows.clone();
        let Taking { count, patience, cancel } = taking;
        let start: (Option<(OwnedMutexGuard<Rows>, Wait)>, u64) = (None, count.unwrap_or(u64::MAX));
        let batches = stream::unfold(start, move |(held, left)| {
            let (rows, cancel) = (rows.clone(), cancel.clone());
            async move {
                if left == 0 {
                    return None;
                }
                let (mut guard, wait) = match held {
                    Some(held) => held,
                    None => {
                        let guard = rows.lock_owned().await;
                        let wait = guard.wait(patience);
                        (guard, wait)
                    }
                };
                let batch = guard.take(left, wait, &cancel).await?;
                let taken = batch.as_ref().map_or(left, |batch| batch.num_rows() as u64);
                Some((batch, (Some((guard, wait)), left - taken)))
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
    /// How long a statement that begins now waits.
    fn wait(&self, patience: Option<Duration>) -> Wait {
        match &self.source {
            Source::Subscription(rows) => rows.wait(patience),
            Source::Query(_) | Source::Done => Wait::Forever,
        }
    }

    async fn take(
        &mut self,
        most: u64,
        wait: Wait,
        cancel: &CancelToken,
    ) -> Option<Result<RecordBatch>> {
        let batch = match self.rest.take() {
            Some(batch) => batch,
            None => match self.next(wait, cancel).await? {
                Ok(batch) => batch,
                Err(error) => return Some(Err(error)),
            },
        };
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        if batch.num_rows() > most {
            self.rest = Some(batch.slice(most, batch.num_rows() - most));
            return Some(Ok(batch.slice(0, most)));
        }
        Some(Ok(batch))
    }

    /// The next rows, at least one.
    async fn next(&mut self, wait: Wait, cancel: &CancelToken) -> Option<Result<RecordBatch>> {
        loop {
            let next = match &mut self.source {
                Source::Query(stream) => stream.next().await,
                Source::Subscription(rows) => return rows.next(wait, cancel).await.transpose(),
                Source::Done => return None,
            };
            match next {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => return Some(Ok(batch)),
                ended => {
                    self.source = Source::Done;
                    return ended;
                }
            }
        }
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

    fn taking(count: Option<u64>) -> Taking {
        Taking { count, patience: None, cancel: CancelToken::new() }
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
        assert_eq!(count(cursor.fetch(taking(Some(2)))).await, 2);
        assert_eq!(count(cursor.fetch(taking(Some(0)))).await, 0);
        drop(cursor.fetch(taking(Some(1))));
        assert_eq!(count(cursor.fetch(taking(Some(2)))).await, 2);
        assert_eq!(count(cursor.fetch(taking(None))).await, 1);
        assert_eq!(count(cursor.fetch(taking(None))).await, 0);
    }
}
