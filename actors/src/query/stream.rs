//! Batches on their way from the query runtime to whoever asked.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use datafusion::arrow::array::RecordBatch;
use futures::Stream;
use kymo_kernel::message::BatchStream;
use kymo_kernel::pools::Task;
use kymo_kernel::{Error, Result};
use tokio::sync::mpsc;

use super::interrupt::Listening;
use super::running::Limits;

/// What the channel carries.
pub(super) type Rows = Result<RecordBatch>;

/// A stream of one batch.
pub(super) fn once(batch: RecordBatch) -> BatchStream {
    Box::pin(futures::stream::once(async move { Ok(batch) }))
}

/// The receiving end of a query. Dropping it aborts the query; cancelling and the deadline
/// end it at once, even while an operator is busy and has not noticed yet.
pub(super) struct Answer {
    rows: mpsc::Receiver<Rows>,
    task: Option<Task<()>>,
    listening: Option<Listening>,
    stop: Pin<Box<dyn Future<Output = Error> + Send>>,
}

impl Answer {
    pub(super) fn new(
        rows: mpsc::Receiver<Rows>,
        task: Task<()>,
        limits: Limits,
        listening: Listening,
    ) -> Self {
        let stop = Box::pin(async move { limits.reached().await });
        Answer { rows, task: Some(task), listening: Some(listening), stop }
    }

    fn end(&mut self) {
        self.rows.close();
        self.task = None;
        self.listening = None;
    }
}

impl Stream for Answer {
    type Item = Rows;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Rows>> {
        let Some(_) = &self.task else { return Poll::Ready(None) };
        match self.rows.poll_recv(cx) {
            Poll::Ready(Some(Err(error))) => {
                self.end();
                return Poll::Ready(Some(Err(error)));
            }
            Poll::Ready(Some(Ok(batch))) => return Poll::Ready(Some(Ok(batch))),
            Poll::Ready(None) => {
                // All rows are out. Whether the query ended well is for its task to say.
                let Some(task) = &mut self.task else { return Poll::Ready(None) };
                let ended = std::task::ready!(Pin::new(task).poll(cx));
                self.end();
                return Poll::Ready(ended.err().map(Err));
            }
            Poll::Pending => {}
        }
        let error = std::task::ready!(self.stop.as_mut().poll(cx));
        self.end();
        Poll::Ready(Some(Err(error)))
    }
}
