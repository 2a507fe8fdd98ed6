//! The task of one subscription: what to send next, and where it stands.
//!
//! It has sent every row up to its cursor and none beyond. Whatever the feed brings at or
//! below the cursor is skipped, so it does not matter in which order a ring, the log and a
//! snapshot meet: no row is missing and none comes twice.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::StreamExt;
use kymo_kernel::ids::{PartitionId, Position, Seq};
use kymo_kernel::message::{Committed, Followed};
use kymo_kernel::observe::metrics;
use kymo_kernel::storage::conform::Conform;
use kymo_kernel::storage::missed::{Missed, read_elsewhere};
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::mpsc;

use super::registry::Entry;
use super::{Event, Live, Op, Token, unaltered};
use crate::feed::{self, FeedEvent};

/// Rows of a commit that are evaluated and sent at once: the batch of a query.
pub(super) const PART_ROWS: usize = 8192;
/// Why what a client has is void after a deletion: which rows went is not known any more.
const DELETED: &str = "rows were deleted";

pub(super) struct Follower {
    live: Live,
    query: Arc<dyn Followed>,
    feed: feed::Subscription,
    entry: Arc<Entry>,
    events: mpsc::Sender<Event>,
    /// Everything up to here was sent.
    cursor: Position,
    /// How many times rows had been deleted before the snapshot that the client has.
    deletions: u64,
    /// How many rows were sent of the commit that follows, which one subscription broke off in.
    part: Option<(Position, u64)>,
}

/// The connection is gone, or there is nothing more to follow.
pub(super) enum Stop {
    Gone,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

pub(super) type Step<T = ()> = Result<T, Stop>;

impl Follower {
    pub(super) fn new(
        live: Live,
        query: Arc<dyn Followed>,
        feed: feed::Subscription,
        entry: Arc<Entry>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (cursor, part) = (Position::default(), None);
        Follower { live, query, feed, entry, events, cursor, deletions: 0, part }
    }

    /// Follows the table until the connection is gone or the subscription fails.
    pub(super) async fn run(mut self, snapshot: bool, resume: Option<Token>) {
        let ended = async {
            self.begin(snapshot, resume).await?;
            self.follow().await
        };
        let stopped: Step<Infallible> = ended.await;
        if let Err(Stop::Failed(error)) = stopped {
            let _ = self.events.send(Event::Ended(error)).await;
        }
    }

    async fn begin(&mut self, snapshot: bool, resume: Option<Token>) -> Step {
        let version = self.version()?;
        self.deletions = version.deletions;
        let Some(token) = resume else {
            self.started(false).await?;
            if snapshot {
                return self.snapshot().await;
            }
            return self.snapshot_end(self.seen(&version)).await;
        };
        let Some(after) = self.resumable(&token, &version) else {
            self.started(false).await?;
            return self.resync("the token belongs to other data").await;
        };
        if token.deletions != version.deletions {
            self.started(false).await?;
            return self.resync(DELETED).await;
        }
        if after >= version.watermark {
            self.reached(self.seen(&version));
            return self.started(true).await;
        }
        self.cursor = after;
        self.part = token.rows.map(|rows| (token.position, rows));
        match self.missed(version.watermark).await? {
            Some(missed) => {
                self.started(true).await?;
                self.replay(missed).await
            }
            None => {
                self.started(false).await?;
                self.resync("the log does not reach back to the token").await
            }
        }
    }

    async fn follow(&mut self) -> Step<Infallible> {
        loop {
            let idle = self.live.0.clock.sleep(self.live.0.check_every);
            let event = tokio::select! {
                event = self.feed.recv() => event,
                () = self.events.closed() => return Err(Stop::Gone),
                () = idle => {
                    // Nobody tells of a table that was dropped or altered.
                    self.version()?;
                    continue;
                }
            };
            match event {
                None => return Err(Error::new(Code::ShuttingDown, "the server is stopping").into()),
                Some(FeedEvent::Committed(rows)) => self.committed(&rows).await?,
                Some(FeedEvent::Lagged { upto, .. }) if upto <= self.cursor => {}
                Some(FeedEvent::Lagged { .. }) => self.catch_up().await?,
            }
        }
    }

    async fn committed(&mut self, rows: &Committed) -> Step {
        if rows.deleted.is_some() {
            return self.resync(DELETED).await;
        }
        if rows.position <= self.cursor {
            return Ok(());
        }
        unaltered(self.query.table(), &rows.table)?;
        let op = if rows.late { Op::Upsert } else { Op::Insert };
        self.push(op, rows.position, &rows.batch, Some(rows.at)).await
    }

    /// Sends what the query makes of a commit, in parts where it is large.
    async fn push(
        &mut self,
        op: Op,
        position: Position,
        rows: &RecordBatch,
        at: Option<Duration>,
    ) -> Step {
        let all = rows.num_rows();
        let had = self.part.take().filter(|(part, _)| *part == position);
        let mut from = had.map_or(0, |(_, rows)| usize::try_from(rows).unwrap_or(all)).min(all);
        while from < all {
            let count = PART_ROWS.min(all - from);
            let batch = self.query.changes(&rows.slice(from, count))?;
            from += count;
            let rows = (from < all).then_some(from as u64);
            let token = Token { position, rows, ..self.token() };
            if batch.num_rows() > 0 {
                self.send(Event::Rows { op, batch, token: Some(token), at }).await?;
            }
        }
        self.reached(position);
        Ok(())
    }

    fn reached(&mut self, position: Position) {
        self.cursor = position;
        self.entry.reached(self.token());
    }

    /// Reads again what the feed could not hand over.
    async fn catch_up(&mut self) -> Step {
        let upto = self.version()?.watermark;
        if upto <= self.cursor {
            return Ok(());
        }
        self.entry.lagged();
        let commits = upto.seq.0.saturating_sub(self.cursor.seq.0);
        self.send(Event::Lagged { commits }).await?;
        match self.missed(upto).await? {
            Some(missed) => self.replay(missed).await,
            None => self.resync("the rows that were missed are not in the log any more").await,
        }
    }

    /// The records after the cursor up to a position that is visible, where the log has all.
    async fn missed(&self, upto: Position) -> Step<Option<Missed>> {
        let (store, table) = (self.live.0.store.clone(), self.query.table().id);
        let (after, most) = (self.cursor, self.live.0.catch_up_bytes);
        let read = move || store.missed(table, after, upto, most);
        match self.live.0.pools.foreground("read missed rows", read).await? {
            Ok(missed) => Ok(missed),
            Err(error) if read_elsewhere(&error) => {
                tracing::warn!(%error, "missed rows cannot be read from the log");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn replay(&mut self, missed: Missed) -> Step {
        metrics().live.caught_up.with_label_values(&["log"]).inc();
        // What a row replaced is not in the log.
        let append_only = self.query.table().options.append_only;
        let op = if append_only { Op::Insert } else { Op::Upsert };
        let definition = Conform::new(&self.query.table().schema);
        for (position, record) in missed {
            let rows = definition.batch(record.decode()?)?;
            self.push(op, position, &rows, None).await?;
        }
        Ok(())
    }

    async fn resync(&mut self, reason: &str) -> Step {
        self.send(Event::Resync { reason: reason.to_owned() }).await?;
        self.snapshot().await
    }

    /// Sends all rows of the query as they are now; from then on its changes.
    async fn snapshot(&mut self) -> Step {
        metrics().live.caught_up.with_label_values(&["snapshot"]).inc();
        self.part = None;
        let live = self.live.clone();
        let turn = live.0.snapshots.acquire();
        let _turn = turn.await.map_err(|_| Error::internal("no turns for snapshots"))?;
        let version = self.version()?;
        let (cursor, deletions) = (self.seen(&version), version.deletions);
        let mut rows = self.query.snapshot(version).await?;
        while let Some(batch) = rows.next().await {
            let batch = batch?;
            if batch.num_rows() > 0 {
                let event = Event::Rows { op: Op::Snapshot, batch, token: None, at: None };
                // Others wait for the turn and for the query's place.
                tokio::select! {
                    sent = self.send(event) => sent?,
                    () = live.0.clock.sleep(live.0.snapshot_patience) => return Err(idle().into()),
                }
            }
        }
        self.deletions = deletions;
        self.snapshot_end(cursor).await
    }

    async fn snapshot_end(&mut self, cursor: Position) -> Step {
        let token = Token { position: cursor, ..self.token() };
        self.send(Event::SnapshotEnd { token }).await?;
        self.reached(cursor);
        Ok(())
    }

    /// The table as it is now; fails where the query can no longer be followed over it.
    fn version(&self) -> Result<Arc<Version>> {
        let table = self.query.table();
        let cell = self
            .live
            .0
            .store
            .table(table.id)
            .filter(|_| self.live.0.store.catalog().table_by_id(table.id).is_some());
        let version = cell.map(|cell| cell.load()).ok_or_else(|| {
            Error::new(Code::TableNotFound, format!("table {} was dropped", table.name))
        })?;
        unaltered(table, &version.table)?;
        Ok(version)
    }

    /// The cursor of somebody who has seen a version: every later commit of this process lies
    /// beyond it, also where the table has none yet.
    fn seen(&self, version: &Version) -> Position {
        let epoch = self.live.0.store.epoch();
        version.watermark.max(Position { partition: PartitionId::ONLY, epoch, seq: Seq(0) })
    }

    /// Up to where everything was sent to who has this token; `None` where that is not known.
    fn resumable(&self, token: &Token, version: &Version) -> Option<Position> {
        if token.table != self.query.table().id || token.position > self.seen(version) {
            return None;
        }
        match token.rows {
            None => Some(token.position),
            Some(_) => {
                let before = Seq(token.position.seq.0.checked_sub(1)?);
                Some(Position { seq: before, ..token.position })
            }
        }
    }

    fn token(&self) -> Token {
        let (table, deletions) = (self.query.table().id, self.deletions);
        Token { table, position: self.cursor, deletions, rows: None }
    }

    async fn started(&self, resumed: bool) -> Step {
        let (schema, class) = (self.query.schema().clone(), self.query.class());
        self.send(Event::Started { schema, class, resumed }).await
    }

    async fn send(&self, event: Event) -> Step {
        self.events.send(event).await.map_err(|_| Stop::Gone)
    }
}

pub(super) fn idle() -> Error {
    Error::new(Code::Deadline, "the subscriber took nothing of its snapshot for too long")
        .with_hint("read faster, narrow the query, or raise live.idle_timeout_ms")
}
