//! Hands committed rows to everything that follows the data, and never makes a writer wait.
//!
//! Writers `tell` one feed actor; it copies a reference into the ring of every subscriber
//! whose filter matches. Every ring has a byte budget. What does not fit, at the feed's port
//! or in a ring, is not queued anywhere: the subscriber gets one [`FeedEvent::Lagged`] that
//! says which positions it missed, and reads those from the table. Rings outlive the actor,
//! so that its restart costs subscribers nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::time::Duration;

use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::ids::{Position, TableId};
use kymo_kernel::message::{Committed, Message};
use kymo_kernel::port::Port;
use parking_lot::{Mutex, RwLock};
use serde_json::json;
use tokio::sync::Notify;

/// Which tables a subscriber follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TableFilter {
    /// Every table.
    All,
    /// Every table of a database.
    Database(String),
    /// One table.
    Table(TableId),
    /// Some tables.
    Tables(Vec<TableId>),
}

impl TableFilter {
    fn matches(&self, table: TableId, database: &str) -> bool {
        match self {
            TableFilter::All => true,
            TableFilter::Database(wanted) => wanted == database,
            TableFilter::Table(wanted) => *wanted == table,
            TableFilter::Tables(wanted) => wanted.contains(&table),
        }
    }
}

/// What a subscriber receives.
#[derive(Debug, Clone)]
pub enum FeedEvent {
    /// Rows that became durable and visible.
    Committed(Arc<Committed>),
    /// Rows of a table at these positions were not delivered; the table has them.
    Lagged {
        /// The table.
        table: TableId,
        /// The first position that is missing.
        from: Position,
        /// The last position that is missing.
        upto: Position,
    },
}

/// The subscribers; shared by the feed actor, the writers and the subscriptions.
#[derive(Debug, Default)]
pub struct Hub {
    subscribers: RwLock<Vec<Arc<Subscriber>>>,
    any: AtomicBool,
    lagged: AtomicUsize,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Subscriber {
    filter: TableFilter,
    budget: usize,
    ring: Mutex<Ring>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<FeedEvent>,
    bytes: usize,
    /// The first and last position lost per table since its last notice.
    lost: BTreeMap<TableId, (Position, Position)>,
}

impl Ring {
    /// Puts the notice of a table where it belongs: before the rows that follow the gap.
    fn notice(&mut self, table: TableId) {
        if let Some((from, upto)) = self.lost.remove(&table) {
            self.events.push_back(FeedEvent::Lagged { table, from, upto });
        }
    }

    fn lose(&mut self, table: TableId, position: Position) {
        let entry = self.lost.entry(table).or_insert((position, position));
        entry.0 = entry.0.min(position);
        entry.1 = entry.1.max(position);
    }

    /// Puts a deletion behind the rows, whatever the budget: it is small, and of several in a row
    /// one with all of their times is left.
    fn push_deletion(&mut self, committed: &Arc<Committed>) {
        self.notice(committed.table.id);
        let mut committed = committed.clone();
        if let Some(FeedEvent::Committed(before)) = self.events.back()
            && before.table.id == committed.table.id
            && let (Some(times), Some(more)) = (before.deleted, committed.deleted)
        {
            let both =
                Committed { deleted: Some(times.union(&more)), ..Committed::clone(&committed) };
            committed = Arc::new(both);
            self.events.pop_back();
        }
        self.events.push_back(FeedEvent::Committed(committed));
    }

    fn take(&mut self) -> Option<FeedEvent> {
        if let Some(event) = self.events.pop_front() {
            if let FeedEvent::Committed(committed) = &event {
                self.bytes = self.bytes.saturating_sub(committed.weight());
            }
            return Some(event);
        }
        let (table, (from, upto)) = self.lost.pop_first()?;
        Some(FeedEvent::Lagged { table, from, upto })
    }
}

impl Hub {
    /// Follows the tables of a filter from the next commit on, with room for `budget` bytes
    /// of rows that were not taken yet.
    pub fn subscribe(self: &Arc<Self>, filter: TableFilter, budget: usize) -> Subscription {
        let subscriber = Arc::new(Subscriber {
            filter,
            budget,
            ring: Mutex::new(Ring::default()),
            wake: Notify::new(),
        });
        let mut all = self.subscribers.write();
        all.push(subscriber.clone());
        self.any.store(true, Ordering::Release);
        drop(all);
        // The other half is in `wanted`.
        fence(Ordering::SeqCst);
        Subscription { hub: self.clone(), subscriber }
    }

    /// Whether anybody follows anything: for writers to ask, once rows are visible, before
    /// they build a message.
    ///
    /// A writer shows rows and then looks for subscribers; a subscriber enters itself and then
    /// looks at the rows. The two fences see to it that at least one of them meets the other.
    #[must_use]
    pub fn wanted(&self) -> bool {
        fence(Ordering::SeqCst);
        self.any.load(Ordering::Acquire)
    }

    /// How many subscribers there are.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.read().len()
    }

    /// How many times rows were not delivered to a subscriber.
    #[must_use]
    pub fn lagged(&self) -> usize {
        self.lagged.load(Ordering::Relaxed)
    }

    /// Ends every subscription once what it holds has been taken.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for subscriber in self.subscribers.read().iter() {
            subscriber.wake.notify_one();
        }
    }

    fn deliver(&self, committed: &Arc<Committed>) {
        let weight = committed.weight();
        self.each(committed.table.id, &committed.table.name.database, |ring, budget| {
            let table = committed.table.id;
            if committed.deleted.is_some() {
                ring.push_deletion(committed);
                return true;
            }
            // One batch always fits into an empty ring, however large it is.
            if ring.bytes > 0 && ring.bytes + weight > budget {
                ring.lose(table, committed.position);
                return false;
            }
            ring.notice(table);
            ring.bytes += weight;
            ring.events.push_back(FeedEvent::Committed(committed.clone()));
            true
        });
    }

    /// Records that the feed itself could not take rows. A deletion goes into the rings all the
    /// same: no rows could be read elsewhere in its place.
    fn miss(&self, committed: Committed) {
        if committed.deleted.is_some() {
            return self.deliver(&Arc::new(committed));
        }
        self.each(committed.table.id, &committed.table.name.database, |ring, _| {
            ring.lose(committed.table.id, committed.position);
            false
        });
    }

    fn each(&self, table: TableId, database: &str, act: impl Fn(&mut Ring, usize) -> bool) {
        for subscriber in self.subscribers.read().iter() {
            if !subscriber.filter.matches(table, database) {
                continue;
            }
            if !act(&mut subscriber.ring.lock(), subscriber.budget) {
                self.lagged.fetch_add(1, Ordering::Relaxed);
            }
            subscriber.wake.notify_one();
        }
    }

    fn leave(&self, subscriber: &Arc<Subscriber>) {
        let mut all = self.subscribers.write();
        all.retain(|each| !Arc::ptr_eq(each, subscriber));
        self.any.store(!all.is_empty(), Ordering::Release);
    }
}

/// The receiving end of one subscriber; dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// The next event; `None` once the feed has closed and everything was taken.
    pub async fn recv(&mut self) -> Option<FeedEvent> {
        loop {
            if let Some(event) = self.try_recv() {
                return Some(event);
            }
            if self.hub.closed.load(Ordering::Acquire) {
                return self.try_recv();
            }
            self.subscriber.wake.notified().await;
        }
    }

    /// A look at what waits to be taken.
    #[must_use]
    pub fn gauge(&self) -> Gauge {
        Gauge(self.subscriber.clone())
    }

    /// The next event, if there is one already.
    pub fn try_recv(&mut self) -> Option<FeedEvent> {
        self.subscriber.ring.lock().take()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.leave(&self.subscriber);
    }
}

/// Tells how far behind a subscription is, without taking part in it.
#[derive(Debug, Clone)]
pub struct Gauge(Arc<Subscriber>);

impl Gauge {
    /// Bytes of rows that were not taken yet.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.ring.lock().bytes
    }

    /// When the oldest rows that were not taken yet became visible, on the monotonic clock.
    #[must_use]
    pub fn oldest(&self) -> Option<Duration> {
        self.0.ring.lock().events.iter().find_map(|event| match event {
            FeedEvent::Committed(committed) => Some(committed.at),
            FeedEvent::Lagged { .. } => None,
        })
    }
}

/// What writers hold of the feed.
#[derive(Clone)]
pub struct Publisher {
    hub: Arc<Hub>,
    port: Port<Committed>,
}

impl Publisher {
    /// Publishes to the subscribers of `hub` through the feed actor behind `port`.
    #[must_use]
    pub fn new(hub: Arc<Hub>, port: Port<Committed>) -> Self {
        Publisher { hub, port }
    }

    /// Tells the feed, where anybody listens. Never waits: what the feed cannot take is
    /// recorded as missed.
    pub fn publish(&self, build: impl FnOnce() -> Committed) {
        if !self.hub.wanted() {
            return;
        }
        let committed = build();
        if self.port.tell(committed.clone()).is_err() {
            self.hub.miss(committed);
        }
    }
}

/// The actor: the fan-out, away from the writers' turns.
#[derive(Debug)]
pub struct FeedActor {
    hub: Arc<Hub>,
}

impl FeedActor {
    /// A feed for the subscribers of a hub.
    #[must_use]
    pub fn new(hub: Arc<Hub>) -> Self {
        FeedActor { hub }
    }
}

impl Actor for FeedActor {
    fn observe(&self) -> serde_json::Value {
        json!({ "subscribers": self.hub.subscribers(), "lagged": self.hub.lagged() })
    }
}

impl Handle<Committed> for FeedActor {
    fn handle(&mut self, message: Committed, reply: Reply<Committed>, _cx: &mut Cx<Self>) {
        self.hub.deliver(&Arc::new(message));
        reply.ok(());
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Schema};
    use kymo_kernel::ids::{Epoch, PartitionId, Seq, TimeRange};
    use kymo_kernel::schema::{TableDef, TableName, TableOptions, TableSchema};

    use super::*;

    fn committed(table: u64, seq: u64) -> Committed {
        let def = TableDef {
            id: TableId(table),
            name: TableName::new(if table == 1 { "kymo" } else { "other" }, "cpu"),
            schema: TableSchema { version: 1, columns: Vec::new() },
            options: TableOptions::default(),
        };
        let schema = Schema::new(vec![Field::new("v", DataType::Int64, true)]);
        let rows = Arc::new(Int64Array::from(vec![1; 100]));
        Committed {
            table: Arc::new(def),
            position: at(seq),
            batch: RecordBatch::try_new(Arc::new(schema), vec![rows]).unwrap(),
            deleted: None,
            late: false,
            at: Duration::ZERO,
        }
    }

    fn deleted(table: u64, seq: u64, first: i64, last: i64) -> Committed {
        let rows = committed(table, seq);
        let batch = RecordBatch::new_empty(rows.batch.schema());
        Committed { batch, deleted: Some(TimeRange { first, last }), ..rows }
    }

    fn at(seq: u64) -> Position {
        Position { partition: PartitionId::ONLY, epoch: Epoch(1), seq: Seq(seq) }
    }

    fn words(subscription: &mut Subscription) -> Vec<String> {
        std::iter::from_fn(|| subscription.try_recv())
            .map(|event| match event {
                FeedEvent::Committed(rows) => match rows.deleted {
                    None => format!("rows {}", rows.position.seq),
                    Some(TimeRange { first, last }) => format!("gone {first}-{last}"),
                },
                FeedEvent::Lagged { from, upto, .. } => format!("lagged {}-{}", from.seq, upto.seq),
            })
            .collect()
    }

    fn deliver(hub: &Hub, table: u64, seq: u64) {
        hub.deliver(&Arc::new(committed(table, seq)));
    }

    #[test]
    fn filters_choose_and_order_is_kept() {
        let hub = Arc::new(Hub::default());
        assert!(!hub.wanted());
        let mut all = hub.subscribe(TableFilter::All, 1 << 20);
        let mut one = hub.subscribe(TableFilter::Table(TableId(1)), 1 << 20);
        let mut database = hub.subscribe(TableFilter::Database("other".to_owned()), 1 << 20);
        let some = TableFilter::Tables(vec![TableId(2), TableId(3)]);
        let mut some = hub.subscribe(some, 1 << 20);
        for (table, seq) in [(1, 1), (2, 2), (1, 3)] {
            deliver(&hub, table, seq);
        }
        assert_eq!(words(&mut all), ["rows 1", "rows 2", "rows 3"]);
        assert_eq!(words(&mut one), ["rows 1", "rows 3"]);
        assert_eq!(words(&mut database), ["rows 2"]);
        assert_eq!(words(&mut some), ["rows 2"]);
        drop((all, one, database, some));
        assert!(!hub.wanted());
        assert_eq!(hub.subscribers(), 0);
    }

    #[test]
    fn a_full_ring_gives_one_notice_at_the_place_of_the_gap() {
        let hub = Arc::new(Hub::default());
        let weight = committed(1, 1).weight();
        let mut slow = hub.subscribe(TableFilter::All, 2 * weight);
        let mut fast = hub.subscribe(TableFilter::All, 100 * weight);
        for seq in 1..=5 {
            deliver(&hub, 1, seq);
        }
        let first = slow.try_recv();
        assert!(matches!(first, Some(FeedEvent::Committed(rows)) if rows.position == at(1)));
        deliver(&hub, 1, 6);
        assert_eq!(words(&mut slow), ["rows 2", "lagged 3-5", "rows 6"]);
        assert_eq!(words(&mut fast).len(), 6);
        assert_eq!(hub.lagged(), 3);
    }

    #[test]
    fn a_deletion_comes_to_those_that_lag_and_many_become_one() {
        let hub = Arc::new(Hub::default());
        let weight = committed(1, 1).weight();
        let mut slow = hub.subscribe(TableFilter::All, weight);
        deliver(&hub, 1, 1);
        deliver(&hub, 1, 2);
        for at in 3..9 {
            hub.deliver(&Arc::new(deleted(1, 2, at, at)));
        }
        hub.deliver(&Arc::new(deleted(2, 2, 0, 1)));
        assert_eq!(slow.subscriber.ring.lock().events.len(), 4);
        assert_eq!(words(&mut slow), ["rows 1", "lagged 2-2", "gone 3-8", "gone 0-1"]);
    }

    #[test]
    fn a_gap_at_the_end_is_told_without_a_further_commit() {
        let hub = Arc::new(Hub::default());
        let weight = committed(1, 1).weight();
        let mut slow = hub.subscribe(TableFilter::All, weight);
        deliver(&hub, 1, 1);
        deliver(&hub, 1, 2);
        assert_eq!(words(&mut slow), ["rows 1", "lagged 2-2"]);
    }

    #[tokio::test]
    async fn a_feed_that_cannot_take_rows_makes_its_subscribers_lag() {
        let hub = Arc::new(Hub::default());
        let clock = Arc::new(kymo_kernel::env::sim::SimClock::new(0));
        let port = Port::new("feed", "feed", kymo_kernel::port::Budget::count(1), clock);
        let publisher = Publisher::new(hub.clone(), port);
        publisher.publish(|| unreachable!("nobody listens"));
        let mut subscription = hub.subscribe(TableFilter::All, 1 << 20);
        publisher.publish(|| committed(1, 9));
        assert_eq!(words(&mut subscription), ["lagged 9-9"]);
        publisher.publish(|| deleted(1, 9, 5, 6));
        assert_eq!(words(&mut subscription), ["gone 5-6"]);
        hub.close();
        assert!(subscription.recv().await.is_none());
    }
}
