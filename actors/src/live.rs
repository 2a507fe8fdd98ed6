//! Live data: queries whose rows are pushed as they are committed.
//!
//! ```text
//! writer ── Committed ──► feed ──► ring of a subscription ──► its task, on the query runtime
//!                                  (bounded in bytes)           │ filter, projection
//!                                                               ▼
//!                                                 a few events ──► connection
//! ```
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
#[cfg(test)]
mod tests;
mod token;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::SchemaRef;
use futures::Stream;
use kymo_config::Settings;
use kymo_kernel::env::{Clock, Env};
use kymo_kernel::message::{Follow, SessionContext, Statement};
use kymo_kernel::observe::metrics;
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::port::Port;
use kymo_kernel::storage::Store;
use kymo_kernel::{Error, Result};
use tokio::sync::{Semaphore, mpsc};

use crate::feed::{Hub, TableFilter};
use follower::Follower;
use registry::Entry;
pub use registry::Registry;
pub use token::Token;

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
    /// Where an earlier subscription to the same query broke off.
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
}

impl Op {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Op::Snapshot => "snapshot",
            Op::Insert => "insert",
            Op::Upsert => "upsert",
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
    registry: Arc<Registry>,
    /// Snapshots that are read at a time: each takes a query's place.
    snapshots: Semaphore,
    max_subscriptions: usize,
    buffer_bytes: usize,
    catch_up_bytes: u64,
    check_every: Duration,
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
        registry: Arc<Registry>,
    ) -> Self {
        let live = &settings.live;
        Live(Arc::new(Inner {
            clock: env.clock.clone(),
            pools: pools.clone(),
            store,
            hub,
            follow,
            registry,
            snapshots: Semaphore::new(live.max_snapshots.clamp(1, Semaphore::MAX_PERMITS)),
            max_subscriptions: live.max_subscriptions,
            buffer_bytes: usize::try_from(live.buffer_bytes).unwrap_or(usize::MAX),
            catch_up_bytes: live.catch_up_bytes,
            check_every: Duration::from_millis(live.heartbeat_ms.max(1)),
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

    async fn begin(&self, ask: Ask) -> Result<Subscription> {
        let inner = &self.0;
        let place = inner.registry.place(inner.max_subscriptions)?;
        let Ask { statement, parameters, session, snapshot, resume } = ask;
        let follow = Follow { statement, parameters, session: session.clone() };
        let following = inner.follow.call(follow).await?;
        let query = following.query;
        let feed = inner.hub.subscribe(TableFilter::Table(query.table().id), inner.buffer_bytes);
        let entry = Arc::new(Entry::new(&session, &*query, feed.gauge(), inner.clock.now_ns()));
        let registered = place.enter(entry.clone());
        let (events, received) = mpsc::channel(EVENTS);
        let snapshot = snapshot.or(following.snapshot).unwrap_or(true);
        let follower = Follower::new(self.clone(), query, feed, entry.clone(), events);
        let work = follower.run(snapshot, resume);
        let task = inner.pools.spawn(Pool::Query, "subscription", work);
        let clock = inner.clock.clone();
        Ok(Subscription { received, entry, clock, _task: task, _registered: registered })
    }
}

/// The events of one subscription; ends after [`Event::Ended`]. Dropping it unsubscribes.
pub struct Subscription {
    received: mpsc::Receiver<Event>,
    entry: Arc<Entry>,
    clock: Arc<dyn Clock>,
    _task: Task<()>,
    _registered: registry::Registered,
}

impl Subscription {
    /// Its number in `system.subscriptions`.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.entry.id()
    }

    fn note(&self, event: &Event) {
        let Event::Rows { batch, at, .. } = event else { return };
        let rows = batch.num_rows() as u64;
        self.entry.delivered(rows);
        metrics().live.rows.inc_by(rows);
        if let Some(at) = at {
            let took = self.clock.monotonic().saturating_sub(*at);
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
