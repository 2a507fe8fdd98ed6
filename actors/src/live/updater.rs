//! The task of one subscription to a result that changes: what became of the rows that the
//! subscriber has.
//!
//! It owns the query. Commits from the feed tell it what to look at again; once something is
//! dirty, further commits are gathered for a moment, and then the windows concerned are taken
//! and compared with what was sent. A token stands for a position at which the subscriber had
//! everything; between two of them its rows may be those of several moments.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use kymo_kernel::ids::{PartitionId, Position, Seq, TableId, TimeRange};
use kymo_kernel::message::{Committed, Windowed};
use kymo_kernel::observe::metrics;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::conform::Conform;
use kymo_kernel::storage::missed::read_elsewhere;
use kymo_kernel::storage::version::Version;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::mpsc;

use super::follower::{PART_ROWS, Step, Stop, idle};
use super::registry::Entry;
use super::sent::{Changes, Sent};
use super::{Event, Live, Op, Token, unaltered};
use crate::feed::{self, FeedEvent};

pub(super) struct Updater {
    live: Live,
    query: Box<dyn Windowed>,
    sent: Sent,
    feed: feed::Subscription,
    entry: Arc<Entry>,
    events: mpsc::Sender<Event>,
    /// Up to where the commits of each table are known to the query.
    known: BTreeMap<TableId, Position>,
    /// How many times rows of the tables had been deleted before everything was taken. Later
    /// deletions are not counted: who goes on after one begins anew.
    deletions: u64,
    /// When the oldest commit that was not pushed yet became visible.
    since: Option<Duration>,
    /// Rows to send next; the last of a round carry its token.
    waiting: Option<(Op, RecordBatch)>,
}

/// What is done with the rows of windows that were taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Means {
    /// They are sent as they are.
    Snapshot,
    /// They are noted as known to the subscriber.
    Known,
    /// What changed is sent.
    Changes,
}

/// The subscriber's rows have to be sent anew.
struct Lost;

impl Updater {
    pub(super) fn new(
        live: Live,
        query: Box<dyn Windowed>,
        sent: Sent,
        feed: feed::Subscription,
        entry: Arc<Entry>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        let (known, since, waiting) = (BTreeMap::new(), None, None);
        let deletions = 0;
        Updater { live, query, sent, feed, entry, events, known, deletions, since, waiting }
    }

    /// Keeps the result up to date until the connection is gone or the subscription fails.
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
        self.there()?;
        let Some(token) = resume else {
            self.started(false).await?;
            let means = if snapshot { Means::Snapshot } else { Means::Known };
            return self.everything(means).await;
        };
        self.fill(Means::Known).await?;
        // Tables that have nothing new are as they were when the token was given.
        if self.is_mine(&token) && self.newest()? <= token.position {
            self.started(true).await?;
            return Ok(());
        }
        self.started(false).await?;
        self.resync("the rows have changed since the token was given").await
    }

    /// All rows, and the end of them.
    async fn everything(&mut self, means: Means) -> Step {
        self.fill(means).await?;
        let token = self.token();
        self.send(Event::SnapshotEnd { token }).await
    }

    async fn resync(&mut self, reason: &str) -> Step {
        self.waiting = None;
        self.send(Event::Resync { reason: reason.to_owned() }).await?;
        self.everything(Means::Snapshot).await
    }

    /// Takes the whole result, as what the subscriber has from now on.
    async fn fill(&mut self, means: Means) -> Step {
        self.sent.clear();
        self.since = None;
        if means == Means::Snapshot {
            metrics().live.caught_up.with_label_values(&["snapshot"]).inc();
        }
        let live = self.live.clone();
        let turn = live.0.snapshots.acquire();
        let _turn = turn.await.map_err(|_| Error::internal("no turns for snapshots"))?;
        self.deletions = 0;
        for table in self.query.tables() {
            let version = self.version(table)?;
            self.known.insert(table.id, version.watermark.max(self.beginning()));
            self.deletions += version.deletions;
        }
        // Nothing was sent yet, so nothing can be lost.
        let _ = self.pass(TimeRange::ALL, means).await?;
        self.flush(None).await
    }

    async fn follow(&mut self) -> Step<Infallible> {
        loop {
            if !self.query.dirty().is_empty() {
                self.gather(self.pause()).await?;
                self.push().await?;
                continue;
            }
            self.entry.reached(self.token());
            let idle = self.live.0.clock.sleep(self.live.0.check_every);
            let event = tokio::select! {
                event = self.feed.recv() => event,
                () = self.events.closed() => return Err(Stop::Gone),
                () = idle => {
                    self.there()?;
                    continue;
                }
            };
            self.take(event).await?;
        }
    }

    /// How long changes are gathered.
    fn pause(&self) -> Duration {
        match self.query.class() {
            "windows" => self.live.0.gather_windows,
            _ => self.live.0.gather_reruns,
        }
    }

    /// Tells the query of what comes for a while.
    async fn gather(&mut self, pause: Duration) -> Step {
        let clock = self.live.0.clock.clone();
        let mut over = clock.sleep(pause);
        loop {
            let event = tokio::select! {
                biased;
                () = &mut over => return Ok(()),
                () = self.events.closed() => return Err(Stop::Gone),
                event = self.feed.recv() => event,
            };
            self.take(event).await?;
        }
    }

    async fn take(&mut self, event: Option<FeedEvent>) -> Step {
        match event {
            None => Err(Error::new(Code::ShuttingDown, "the server is stopping").into()),
            Some(FeedEvent::Committed(committed)) => {
                let planned = self.query.tables().iter();
                let mut planned = planned.filter(|table| table.id == committed.table.id);
                planned.try_for_each(|table| unaltered(table, &committed.table))?;
                self.since = self.since.or(Some(committed.at));
                self.apply(&committed);
                Ok(())
            }
            Some(FeedEvent::Lagged { table, upto, .. }) => self.catch_up(table, upto).await,
        }
    }

    fn apply(&mut self, committed: &Committed) {
        if committed.deleted.is_none() {
            let known = self.known.entry(committed.table.id).or_default();
            *known = (*known).max(committed.position);
        }
        if let Err(error) = self.query.apply(committed) {
            // What it concerns is dirty, so that taking it says what is wrong.
            tracing::debug!(%error, "a commit could not be evaluated for a subscription");
        }
    }

    /// Reads again what the feed could not hand over: only which windows it touched matters.
    async fn catch_up(&mut self, table: TableId, upto: Position) -> Step {
        let known = self.known.get(&table).copied().unwrap_or_default();
        if upto <= known {
            return Ok(());
        }
        let Some(def) = self.query.tables().iter().find(|each| each.id == table).cloned() else {
            return Ok(());
        };
        self.entry.lagged();
        let commits = upto.seq.0.saturating_sub(known.seq.0);
        self.send(Event::Lagged { commits }).await?;
        let (store, most) = (self.live.0.store.clone(), self.live.0.catch_up_bytes);
        let read = move || store.missed(table, known, upto, most);
        let missed = match self.live.0.pools.foreground("read missed rows", read).await? {
            Ok(missed) => missed,
            Err(error) if read_elsewhere(&error) => None,
            Err(error) => return Err(error.into()),
        };
        let Some(missed) = missed else {
            self.query.invalidate(TimeRange::ALL);
            self.known.insert(table, upto);
            return Ok(());
        };
        metrics().live.caught_up.with_label_values(&["log"]).inc();
        let definition = Conform::new(&def.schema);
        for (position, record) in missed {
            let batch = definition.batch(record.decode()?)?;
            let at = self.live.0.clock.monotonic();
            // What a row replaced is not in the log.
            let late = !def.options.append_only;
            let (table, deleted) = (def.clone(), None);
            self.apply(&Committed { table, position, batch, deleted, late, at });
        }
        // The log ends with a commit that may belong to another table.
        let known = self.known.entry(table).or_default();
        *known = (*known).max(upto);
        Ok(())
    }

    /// Sends what became of the windows that are dirty.
    async fn push(&mut self) -> Step {
        let began = self.live.0.clock.monotonic();
        let token = self.token();
        for starts in self.query.dirty() {
            match self.pass(starts, Means::Changes).await {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(Lost)) => {
                    return self.resync("windows that are not remembered any more changed").await;
                }
                // Others run; what is dirty stays so.
                Err(Stop::Failed(error)) if error.code() == Code::Busy => {
                    self.flush(None).await?;
                    return self.gather(self.live.0.gather_reruns).await;
                }
                Err(stop) => return Err(stop),
            }
        }
        self.flush(Some(token)).await?;
        self.since = None;
        // A query that takes long leaves as much time to others.
        let took = self.live.0.clock.monotonic().saturating_sub(began);
        let rest = took.saturating_sub(self.pause());
        if rest.is_zero() { Ok(()) } else { self.gather(rest).await }
    }

    /// Goes through windows, in pieces that fit into memory.
    async fn pass(&mut self, starts: TimeRange, means: Means) -> Step<ControlFlow<Lost>> {
        let mut pieces = vec![starts];
        while let Some(piece) = pieces.pop() {
            let taken = match self.query.take(piece).await {
                Ok(taken) => taken,
                Err(error) if error.code() == Code::LimitReached => {
                    let Some([first, second]) = self.halves(piece) else {
                        return Err(error.into());
                    };
                    pieces.extend([second, first]);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let Some(changes) = self.sent.replace(piece, &taken.rows)? else {
                return Ok(ControlFlow::Break(Lost));
            };
            match means {
                Means::Known => {}
                Means::Snapshot => self.queue(Op::Snapshot, changes.inserted).await?,
                Means::Changes => self.queue_changes(changes).await?,
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// A range of windows in two; `None` for one window.
    fn halves(&self, starts: TimeRange) -> Option<[TimeRange; 2]> {
        let window = self.query.window()?;
        let there = [self.query.extent(), self.sent.extent()].into_iter().flatten();
        let there = there.reduce(|all, each| all.union(&each))?;
        let first = window.start(starts.first.max(there.first));
        let last = window.start(starts.last.min(there.last));
        if first >= last {
            return None;
        }
        let middle = window.start(first.saturating_add(last.saturating_sub(first) / 2));
        Some([
            TimeRange { first: starts.first, last: middle },
            TimeRange { first: window.next(middle), last: starts.last },
        ])
    }

    async fn queue_changes(&mut self, changes: Changes) -> Step {
        let Changes { cleared, deleted, updated, inserted } = changes;
        self.queue(Op::Clear, cleared).await?;
        self.queue(Op::Delete, deleted).await?;
        self.queue(Op::Update, updated).await?;
        self.queue(Op::Insert, inserted).await
    }

    async fn queue(&mut self, op: Op, batches: Vec<RecordBatch>) -> Step {
        for batch in batches {
            for from in (0..batch.num_rows()).step_by(PART_ROWS) {
                let part = batch.slice(from, PART_ROWS.min(batch.num_rows() - from));
                if let Some((op, batch)) = self.waiting.replace((op, part)) {
                    self.rows(op, batch, None).await?;
                }
            }
        }
        Ok(())
    }

    /// Sends what still waits, with the token of what is complete then.
    async fn flush(&mut self, token: Option<Token>) -> Step {
        match self.waiting.take() {
            Some((op, batch)) => self.rows(op, batch, token).await,
            None => Ok(()),
        }
    }

    async fn rows(&mut self, op: Op, batch: RecordBatch, token: Option<Token>) -> Step {
        let at = if op == Op::Snapshot { None } else { self.since };
        let live = self.live.clone();
        let event = Event::Rows { op, batch, token, at };
        if op != Op::Snapshot {
            return self.send(event).await;
        }
        tokio::select! {
            sent = self.send(event) => sent,
            // Others wait for the turn.
            () = live.0.clock.sleep(live.0.snapshot_patience) => Err(idle().into()),
        }
    }

    /// Fails once a table of the query was dropped or altered: nobody tells of that.
    fn there(&self) -> Result<()> {
        self.query.tables().iter().try_for_each(|table| self.version(table).map(|_| ()))
    }

    fn newest(&self) -> Result<Position> {
        let tables = self.query.tables().iter();
        let all = tables.map(|table| self.version(table)).collect::<Result<Vec<_>>>()?;
        Ok(all.iter().map(|version| version.watermark).max().unwrap_or_default())
    }

    /// A table as it is now; fails where the query can no longer be followed over it.
    fn version(&self, table: &TableDef) -> Result<Arc<Version>> {
        let store = &self.live.0.store;
        let known = store.catalog().table_by_id(table.id).is_some();
        let cell = store.table(table.id).filter(|_| known).ok_or_else(|| {
            Error::new(Code::TableNotFound, format!("table {} was dropped", table.name))
        })?;
        let version = cell.load();
        unaltered(table, &version.table)?;
        Ok(version)
    }

    /// Every commit of this process lies beyond it.
    fn beginning(&self) -> Position {
        let epoch = self.live.0.store.epoch();
        Position { partition: PartitionId::ONLY, epoch, seq: Seq(0) }
    }

    /// Whether a token can be one of these data: not of another table, not of the future.
    fn is_mine(&self, token: &Token) -> bool {
        let first = self.query.tables().first().map(|table| table.id);
        let newest = self.known.values().max().copied().unwrap_or_default();
        token.rows.is_none()
            && first == Some(token.table)
            && token.deletions == self.deletions
            && token.position <= newest
    }

    /// Where the subscriber stands once everything that is dirty now was sent.
    fn token(&self) -> Token {
        let table = self.query.tables().first().map(|table| table.id).unwrap_or_default();
        let position = self.known.values().min().copied().unwrap_or_default();
        Token { table, position, deletions: self.deletions, rows: None }
    }

    async fn started(&mut self, resumed: bool) -> Step {
        let (schema, class) = (self.query.schema().clone(), self.query.class());
        self.send(Event::Started { schema, class, resumed }).await
    }

    async fn send(&mut self, event: Event) -> Step {
        self.events.send(event).await.map_err(|_| Stop::Gone)
    }
}
