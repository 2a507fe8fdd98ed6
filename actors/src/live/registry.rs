//! Which subscriptions live: their number is bounded, and `system.subscriptions` shows them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kymo_kernel::message::SessionContext;
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Token;
use crate::feed::Gauge;
use crate::query::SubscriptionRow;

/// All subscriptions of a process.
#[derive(Default)]
pub struct Registry(Mutex<State>);

#[derive(Default)]
struct State {
    next: u64,
    taken: usize,
    entries: BTreeMap<u64, Arc<Entry>>,
}

/// What is known of one subscription.
pub(super) struct Entry {
    id: AtomicU64,
    user: String,
    database: String,
    query: String,
    class: &'static str,
    since: i64,
    delivered: AtomicU64,
    lagged: AtomicU64,
    /// Everything up to here was sent.
    reached: watch::Sender<Token>,
    gauge: Gauge,
}

impl Entry {
    pub(super) fn new(
        session: &SessionContext,
        query: &str,
        class: &'static str,
        gauge: Gauge,
        since: i64,
    ) -> Self {
        Entry {
            id: AtomicU64::new(0),
            user: session.user.clone(),
            database: session.database.clone(),
            query: query.to_owned(),
            class,
            since,
            delivered: AtomicU64::new(0),
            lagged: AtomicU64::new(0),
            reached: watch::Sender::new(Token::default()),
            gauge,
        }
    }

    pub(super) fn id(&self) -> u64 {
        self.id.load(Ordering::Relaxed)
    }

    pub(super) fn delivered(&self, rows: u64) {
        self.delivered.fetch_add(rows, Ordering::Relaxed);
    }

    /// Notes that everything up to a token was sent, also where that was nothing.
    pub(super) fn reached(&self, token: Token) {
        self.reached.send_replace(token);
    }

    /// Up to where everything was sent, as it goes on.
    pub(super) fn follow(&self) -> watch::Receiver<Token> {
        self.reached.subscribe()
    }

    pub(super) fn lagged(&self) {
        self.lagged.fetch_add(1, Ordering::Relaxed);
        metrics().live.lagged.inc();
    }

    fn row(&self, now: Duration) -> SubscriptionRow {
        let age = self.gauge.oldest().map_or(Duration::ZERO, |at| now.saturating_sub(at));
        SubscriptionRow {
            id: self.id(),
            user: self.user.clone(),
            database: self.database.clone(),
            query: self.query.clone(),
            class: self.class.to_owned(),
            delivered_rows: self.delivered.load(Ordering::Relaxed),
            lagged: self.lagged.load(Ordering::Relaxed),
            lag_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            buffered_bytes: self.gauge.bytes() as u64,
            since: self.since,
        }
    }
}

impl Registry {
    /// All of them at a time of the monotonic clock, oldest first.
    #[must_use]
    pub fn rows(&self, now: Duration) -> Vec<SubscriptionRow> {
        let entries: Vec<Arc<Entry>> = self.0.lock().entries.values().cloned().collect();
        entries.iter().map(|entry| entry.row(now)).collect()
    }

    /// Room for one more.
    ///
    /// # Errors
    /// `limit_reached`.
    pub(super) fn place(self: &Arc<Self>, most: usize) -> Result<Place> {
        let mut state = self.0.lock();
        if state.taken >= most {
            return Err(Error::new(
                Code::LimitReached,
                format!("{most} subscriptions live already"),
            )
            .with_hint("end some, or raise live.max_subscriptions"));
        }
        state.taken += 1;
        metrics().live.subscriptions.inc();
        Ok(Place(self.clone()))
    }
}

/// Room for a subscription, given back when dropped.
pub(super) struct Place(Arc<Registry>);

impl Place {
    /// Shows the subscription from now on.
    pub(super) fn enter(self, entry: Arc<Entry>) -> Registered {
        let mut state = self.0.0.lock();
        state.next += 1;
        let id = state.next;
        entry.id.store(id, Ordering::Relaxed);
        state.entries.insert(id, entry);
        drop(state);
        Registered { place: self, id }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.lock().taken -= 1;
        metrics().live.subscriptions.dec();
    }
}

/// A subscription that is shown until this is dropped.
pub(super) struct Registered {
    place: Place,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.place.0.0.lock().entries.remove(&self.id);
    }
}
