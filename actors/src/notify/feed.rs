//! Alerts as they begin and end, for those who watch: pushed, and read from the history where a
//! watcher goes on from before or was too slow.
//!
//! Nobody waits for a watcher. What it does not take in time is only in the history, which it
//! then reads from where it was; numbers tell what it has had.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::Stream;
use kymo_kernel::Result;
use kymo_kernel::alert::Matcher;
use kymo_kernel::message::{Notification, Outlet};
use kymo_kernel::pools::Pools;
use kymo_kernel::storage::Store;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::cursor::Cursor;
use super::missed::{self, DISORDER_NS, Wanted};

/// Transitions that are read from the history at a time.
const PAGE: usize = 1000;

/// What a watcher is told.
#[derive(Debug)]
pub enum FeedEvent {
    /// An alert began or ended.
    Told(Arc<Notification>),
    /// The watcher was too slow for so many and gets them from the history now.
    Lagged(u64),
}

/// What a watcher follows.
pub struct Feed {
    store: Arc<Store>,
    pools: Pools,
    pushed: Receiver<Arc<Notification>>,
    wanted: Matcher,
    /// How far it is.
    cursor: Cursor,
    /// Whether the history has what was not pushed.
    behind: bool,
    backlog: VecDeque<Notification>,
}

impl Feed {
    /// Follows the alerts that are wanted: from now on, or from after the transition of a number.
    #[must_use]
    pub fn new(
        store: Arc<Store>,
        pools: Pools,
        outlet: &Outlet,
        wanted: Matcher,
        resume: Option<u64>,
        now_ns: i64,
    ) -> Feed {
        // First follow, then read: what becomes durable between is in both.
        let pushed = outlet.follow();
        let cursor = match resume {
            Some(sequence) => Cursor { sequence, from_ns: i64::MIN },
            None => Cursor { sequence: 0, from_ns: now_ns },
        };
        let (behind, backlog) = (resume.is_some(), VecDeque::new());
        Feed { store, pools, pushed, wanted, cursor, behind, backlog }
    }

    /// The next event; `None` when the system stops. Loses nothing when it is dropped.
    ///
    /// # Errors
    /// Those of reading the history.
    pub async fn next(&mut self) -> Result<Option<FeedEvent>> {
        loop {
            if let Some(told) = self.backlog.pop_front() {
                self.cursor.sequence = told.sequence;
                self.cursor.from_ns = instant(&told).saturating_sub(DISORDER_NS);
                if self.wants(&told) {
                    return Ok(Some(FeedEvent::Told(Arc::new(told))));
                }
                continue;
            }
            if self.behind {
                self.catch_up().await?;
                continue;
            }
            match self.pushed.recv().await {
                // What was read already comes here once more, and so does what is told again.
                Ok(told) if told.sequence <= self.cursor.sequence => {}
                Ok(told) => {
                    self.cursor.sequence = told.sequence;
                    self.cursor.from_ns = instant(&told).saturating_sub(DISORDER_NS);
                    if self.wants(&told) {
                        return Ok(Some(FeedEvent::Told(told)));
                    }
                }
                Err(RecvError::Lagged(count)) => {
                    self.behind = true;
                    return Ok(Some(FeedEvent::Lagged(count)));
                }
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    /// All events; one that says what failed is the last.
    pub fn events(self) -> impl Stream<Item = Result<FeedEvent>> + Send + 'static {
        futures::stream::unfold(Some(self), |feed| async move {
            let mut feed = feed?;
            match feed.next().await {
                Ok(event) => event.map(|event| (Ok(event), Some(feed))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn catch_up(&mut self) -> Result<()> {
        let (store, cursor) = (self.store.clone(), self.cursor);
        let job = move || missed::read(&store, Wanted::All, cursor, PAGE);
        let (found, more) = self.pools.foreground("missed alerts", job).await??;
        (self.backlog, self.behind) = (found.into(), more);
        Ok(())
    }

    fn wants(&self, told: &Notification) -> bool {
        self.wanted.matches(&told.rule, &told.labels)
    }
}

fn instant(told: &Notification) -> i64 {
    told.ends_at_ns.unwrap_or(told.starts_at_ns)
}
