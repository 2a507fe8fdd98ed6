//! Live data: queries whose rows are pushed as they are committed.
//!
//! ```text
//! writer ── Committed ──► feed ──► ring of a subscription ──► its task, on the query runtime
//!                                  (bounded in bytes)           │ filter, projection
//!                                                               ▼
//!                                                 a few events ──► connection
//! ```
//!
//! A query whose rows do not follow from single commits is kept by its owner, the updater: it
//! tells the query of each commit, gathers what changed for some milliseconds, takes the windows
//! that were touched, and sends what became of the rows that the subscriber has.
//!
//! A subscription enters itself into the feed first and looks at the table's version after
//! that, so a commit is in the version, in the ring, or in both; positions tell which rows it
//! has had. Nobody waits for a subscriber: one that does not take its rows lags behind, is
//! told so, and reads what it missed from the log, or gets a new snapshot where the log does
//! not have it any more.
//!
//! The earlier thought was one actor a subscription. A task with a channel of a few events is
//! the same thing with less: nothing calls a subscription, and dropping it is all that ever
//! happens to it.

mod follower;
mod registry;
mod rows;
mod sent;
#[cfg(test)]
mod tests;
mod token;
mod updater;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::Stream;
use kymo_config::Settings;
use kymo_kernel::env::{Clock, Env};
use kymo_kernel::ids::{Position, TableId};
use kymo_kernel::message::{Follow, Following, Keep, Keeping, SessionContext, Statement};
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::port::Port;
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::conform::only_adds;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Semaphore, mpsc};

use crate::feed::{Hub, TableFilter};
use crate::query::{Command, Parsed};
use follower::Follower;
use registry::Entry;
pub use registry::Registry;
pub(crate) use rows::Wait;
pub use rows::{Rows, shape};
use sent::Sent;
pub use token::Token;
use updater::Updater;

/// Events between a subscription and its connection. Few, so that what a slow client has not
/// taken waits in the ring, where it is counted; more than one, so that the next commit is
/// evaluated while the last one is sent.
const EVENTS: usize = 2;

/// What to follow, for whom.
#[derive(Debug)]
pub struct Ask {
    /// A `SUBSCRIBE TO …`, or a query.
    pub statement: Arc<Statement>,
    /// The values of `$1`, `$2` …, each an array of one element.
    pub parameters: Vec<ArrayRef>,
    /// Who asks.
    pub session: Arc<SessionContext>,
    /// Whether rows that are there already come first; what the statement says where absent,
    /// and yes where that says nothing.
    pub snapshot: Option<bool>,
    /// Where an earlier subscription to the same query broke off; what the statement says where
    /// absent.
    pub resume: Option<Token>,
}

/// What rows mean to those that are there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Rows of a snapshot.
    Snapshot,
    /// Rows that no row with the same tags and time was there before.
    Insert,
    /// Rows, some of which may replace one with the same tags and time: as they were written.
    Upsert,
    /// Rows of a result in the place of those with the same key.
    Update,
    /// Rows of a result that are gone.
    Delete,
    /// Starts of windows all of whose rows are void; those that are there now follow.
    Clear,
}

impl Op {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Snapshot => "snapshot",
            Op::Insert => "insert",
            Op::Upsert => "upsert",
            Op::Update => "update",
            Op::Delete => "delete",
            Op::Clear => "clear",
        }
    }
}

/// What a subscriber is told, in order.
#[derive(Debug)]
pub enum Event {
    /// The first event: what follows continues from here.
    Started {
        /// The shape of all rows.
        schema: SchemaRef,
        /// How the query is followed.
        class: &'static str,
        /// Whether it goes on from the token that was given; no rows are missing or repeated.
        resumed: bool,
    },
    /// Rows.
    Rows {
        /// What they mean.
        op: Op,
        /// At least one.
        batch: RecordBatch,
        /// Where to go on after these rows; `None` within a snapshot.
        token: Option<Token>,
        /// When they were committed, on the monotonic clock, where they were pushed at once.
        at: Option<Duration>,
    },
    /// The snapshot is complete; changes follow.
    SnapshotEnd {
        /// Where to go on after it.
        token: Token,
    },
    /// The subscriber was too slow, and is served from the log or from a snapshot until it has
    /// caught up. No rows are missing.
    Lagged {
        /// How many commits to all tables lie between what it had and what it catches up to.
        commits: u64,
    },
    /// The rows between cannot be had any more: what was sent so far is void, and a snapshot
    /// follows.
    Resync {
        /// Why.
        reason: String,
    },
    /// The last event.
    Ended(Error),
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    pools: Pools,
    store: Arc<Store>,
    hub: Arc<Hub>,
    follow: Port<Follow>,
    keep: Port<Keep>,
    registry: Arc<Registry>,
    /// Snapshots that are read at a time: each takes a query's place.
    snapshots: Semaphore,
    max_subscriptions: usize,
    buffer_bytes: usize,
    catch_up_bytes: u64,
    check_every: Duration,
    /// How long changes of windows are gathered.
    gather_windows: Duration,
    /// How long changes are gathered for a query that runs again.
    gather_reruns: Duration,
    /// Bytes of rows that are remembered as sent, for one subscription.
    state_bytes: usize,
    /// How long who takes rows now and then waits for those that are committed already.
    cursor_wait: Duration,
    /// How long a subscriber may leave its snapshot untouched.
    snapshot_patience: Duration,
}

impl Live {
    /// The service over a store and its feed.
    #[must_use]
    pub fn new(
        settings: &Settings,
        env: &Env,
        pools: &Pools,
        store: Arc<Store>,
        hub: Arc<Hub>,
        follow: Port<Follow>,
        keep: Port<Keep>,
        registry: Arc<Registry>,
    ) -> Self {
        let live = &settings.live;
        Live(Arc::new(Inner {
            clock: env.clock.clone(),
            pools: pools.clone(),
            store,
            hub,
            follow,
            keep,
            registry,
            snapshots: Semaphore::new(live.max_snapshots.clamp(1, Semaphore::MAX_PERMITS)),
            max_subscriptions: live.max_subscriptions,
            buffer_bytes: usize::try_from(live.buffer_bytes).unwrap_or(usize::MAX),
            catch_up_bytes: live.catch_up_bytes,
            check_every: Duration::from_millis(live.heartbeat_ms.max(1)),
            gather_windows: Duration::from_millis(live.window_push_ms),
            gather_reruns: Duration::from_millis(live.rerun_ms),
            state_bytes: usize::try_from(live.state_bytes).unwrap_or(usize::MAX),
            cursor_wait: Duration::from_millis(live.cursor_wait_ms),
            snapshot_patience: Duration::from_millis(live.idle_timeout_ms.max(1)),
        }))
    }

    /// Begins to follow a query.
    ///
    /// # Errors
    /// Those of planning; `unsupported` naming what keeps the query from being followed;
    /// `limit_reached`.
    pub async fn subscribe(&self, ask: Ask) -> Result<Subscription> {
        let begun = self.begin(ask).await;
        if let Err(error) = &begun {
            metrics().live.refused.with_label_values(&[error.code().as_str()]).inc();
        }
        begun
    }

    /// Begins to follow a query whose rows are read as those of a result; with `progress`, rows
    /// among them say every `live.heartbeat_ms` how far it is.
    ///
    /// # Errors
    /// As [`Live::subscribe`]; `ambiguous_column` as [`shape`].
    pub async fn rows(&self, ask: Ask, progress: bool) -> Result<Rows> {
        let subscription = self.subscribe(ask).await?;
        Rows::begin(subscription, progress.then_some(self.0.check_every)).await
    }

    async fn begin(&self, ask: Ask) -> Result<Subscription> {
        let inner = &self.0;
        let place = inner.registry.place(inner.max_subscriptions)?;
        let Ask { statement, parameters, session, snapshot, resume } = ask;
        let resume = match resume {
            None => stated(&statement)?,
            given => given,
        };
        let (keep, values) = (statement.clone(), parameters.clone());
        let follow = Follow { statement, parameters, session: session.clone() };
        match inner.follow.call(follow).await {
            Ok(following) => Ok(self.follow(place, following, &session, snapshot, resume)),
            // Not commit by commit; perhaps as a result that changes.
            Err(error) if error.code() == Code::Unsupported => {
                let (statement, parameters) = (keep, values);
                let keep = Keep { statement, parameters, session: session.clone() };
                let kept = inner.keep.call(keep).await?;
                self.update(place, kept, &session, snapshot, resume)
            }
            Err(error) => Err(error),
        }
    }

    /// A subscription whose rows follow from each commit alone.
    fn follow(
        &self,
        place: registry::Place,
        following: Following,
        session: &SessionContext,
        snapshot: Option<bool>,
        resume: Option<Token>,
    ) -> Subscription {
        let inner = &self.0;
        let query = following.query;
        let tables = vec![query.table().id];
        let feed = inner.hub.subscribe(TableFilter::Table(query.table().id), inner.buffer_bytes);
        let (text, class) = (query.text(), query.class());
        let entry = Entry::new(session, text, class, feed.gauge(), inner.clock.now_ns());
        let entry = Arc::new(entry);
        let snapshot = snapshot.or(following.snapshot).unwrap_or(true);
        self.subscription(place, entry.clone(), tables, |events| {
            let follower = Follower::new(self.clone(), query, feed, entry, events);
            follower.run(snapshot, resume)
        })
    }

    /// A subscription to a result that changes.
    fn update(
        &self,
        place: registry::Place,
        kept: Keeping,
        session: &SessionContext,
        snapshot: Option<bool>,
        resume: Option<Token>,
    ) -> Result<Subscription> {
        let inner = &self.0;
        let query = kept.query;
        let tables: Vec<TableId> = query.tables().iter().map(|table| table.id).collect();
        let filter = TableFilter::Tables(tables.clone());
        let feed = inner.hub.subscribe(filter, inner.buffer_bytes);
        let (text, class) = (query.text(), query.class());
        let entry = Entry::new(session, text, class, feed.gauge(), inner.clock.now_ns());
        let entry = Arc::new(entry);
        let (schema, keys) = (query.schema().clone(), query.keys().map(<[usize]>::to_vec));
        let sent = Sent::new(schema, query.window(), keys, inner.state_bytes)?;
        let snapshot = snapshot.or(kept.snapshot).unwrap_or(true);
        Ok(self.subscription(place, entry.clone(), tables, |events| {
            let updater = Updater::new(self.clone(), query, sent, feed, entry, events);
            updater.run(snapshot, resume)
        }))
    }

    fn subscription<F: Future<Output = ()> + Send + 'static>(
        &self,
        place: registry::Place,
        entry: Arc<Entry>,
        tables: Vec<TableId>,
        work: impl FnOnce(mpsc::Sender<Event>) -> F,
    ) -> Subscription {
        let registered = place.enter(entry.clone());
        let (events, received) = mpsc::channel(EVENTS);
        let task = self.0.pools.spawn(Pool::Query, "subscription", work(events));
        let live = self.clone();
        Subscription { received, entry, live, tables, _task: task, _registered: registered }
    }
}

/// Fails once a table does not have all columns any more as they were when a query over it was
/// planned. Columns that were added do no harm.
fn unaltered(planned: &TableDef, now: &TableDef) -> Result<()> {
    if planned.schema.version == now.schema.version || only_adds(&planned.schema, &now.schema) {
        return Ok(());
    }
    let (table, columns) = (&planned.name, &now.schema.columns);
    for column in &planned.schema.columns {
        let name = &column.name;
        let (code, what) = match columns.iter().find(|each| each.id == column.id) {
            Some(same) if same == column => continue,
            None => (Code::ColumnNotFound, "was dropped".to_owned()),
            Some(now) if now.name != *name => {
                (Code::ColumnNotFound, format!("is called {:?} now", now.name))
            }
            Some(now) => (Code::TypeConflict, format!("is of type {} now", now.field_type)),
        };
        return Err(Error::new(code, format!("column {name:?} of table {table} {what}"))
            .with_hint("subscribe again: the query is planned anew"));
    }
    Ok(())
}

/// The token in the text of a statement.
fn stated(statement: &Statement) -> Result<Option<Token>> {
    let parsed = statement.tree.downcast_ref::<Parsed>();
    let resume = parsed.and_then(|parsed| match &parsed.command {
        Command::Subscribe(subscribe) => subscribe.resume.as_deref(),
        _ => None,
    });
    resume.filter(|text| !text.is_empty()).map(str::parse).transpose()
}

/// The events of one subscription; ends after [`Event::Ended`]. Dropping it unsubscribes.
pub struct Subscription {
    received: mpsc::Receiver<Event>,
    entry: Arc<Entry>,
    live: Live,
    /// The tables whose commits are followed.
    tables: Vec<TableId>,
    _task: Task<()>,
    _registered: registry::Registered,
}

impl Subscription {
    /// Its number in `system.subscriptions`.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.entry.id()
    }

    /// The next event, if one is there.
    fn try_next(&mut self) -> Poll<Option<Event>> {
        match self.received.try_recv() {
            Ok(event) => {
                self.note(&event);
                Poll::Ready(Some(event))
            }
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
            Err(TryRecvError::Empty) => Poll::Pending,
        }
    }

    /// Up to where the tables' rows are visible now; `None` where one of them is gone.
    fn newest(&self) -> Option<Position> {
        let store = &self.live.0.store;
        let catalog = store.catalog();
        let watermark = |table: &TableId| {
            let cell = store.table(*table).filter(|_| catalog.table_by_id(*table).is_some());
            cell.map(|cell| cell.load().watermark)
        };
        let watermarks = self.tables.iter().map(watermark).collect::<Option<Vec<_>>>();
        watermarks.map(|all| all.into_iter().max().unwrap_or_default())
    }

    fn note(&self, event: &Event) {
        let Event::Rows { batch, at, .. } = event else { return };
        let rows = batch.num_rows() as u64;
        self.entry.delivered(rows);
        metrics().live.rows.inc_by(rows);
        if let Some(at) = at {
            let took = self.live.0.clock.monotonic().saturating_sub(*at);
            metrics().live.push_seconds.observe(took.as_secs_f64());
        }
    }
}

impl Stream for Subscription {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let event = std::task::ready!(self.received.poll_recv(cx));
        event.iter().for_each(|event| self.note(event));
        Poll::Ready(event)
    }
}
