//! Transitions on their way: first durable, then told (A1).
//!
//! One write is under way at a time and takes all that waits, so that a thousand alerts cost one
//! fsync. A write that fails is tried again, as a whole and in order, for as long as it takes:
//! nothing is told before.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use kymo_kernel::check;
use kymo_kernel::env::Clock;
use kymo_kernel::message::{Notification, Outlet, WriteOwn};
use kymo_kernel::observe::metrics;
use kymo_kernel::port::Port;
use kymo_kernel::{Code, Result};
use tokio::sync::oneshot;
use tracing::warn;

use super::history::{self, Entry};

/// Entries of one write.
const ENTRIES: usize = 10_000;
/// The pause before a write is tried again, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Something to make durable and to do afterwards.
pub struct Item {
    /// What becomes durable.
    pub entry: Entry,
    /// What is told.
    pub notification: Option<Notification>,
}

/// The outbox.
pub struct Outbox {
    write: Port<WriteOwn>,
    outlet: Arc<Outlet>,
    clock: Arc<dyn Clock>,
    waiting: VecDeque<Item>,
    /// Who waits until everything up to a number of items is durable.
    replies: VecDeque<(u64, u64, oneshot::Sender<u64>)>,
    under_way: Option<(usize, BoxFuture<'static, Result<()>>)>,
    /// Items that came, and that are durable.
    came: u64,
    durable: u64,
    /// The number of the last transition that is durable.
    sequence: u64,
    pause: Duration,
}

impl Outbox {
    /// An empty outbox; transitions up to `sequence` are durable.
    #[must_use]
    pub fn new(
        write: Port<WriteOwn>,
        outlet: Arc<Outlet>,
        clock: Arc<dyn Clock>,
        sequence: u64,
    ) -> Self {
        let (waiting, replies) = (VecDeque::new(), VecDeque::new());
        let pause = PAUSES.0;
        Outbox {
            write,
            outlet,
            clock,
            waiting,
            replies,
            under_way: None,
            came: 0,
            durable: 0,
            sequence,
            pause,
        }
    }

    /// Adds an item.
    pub fn push(&mut self, item: Item) {
        self.came += 1;
        self.waiting.push_back(item);
    }

    /// Answers with `count` once everything that was added so far is durable.
    pub fn answer(&mut self, count: u64, reply: oneshot::Sender<u64>) {
        self.replies.push_back((self.came, count, reply));
        self.answer_all();
    }

    /// How many items are not durable.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Starts a write where there is something to write and none is under way.
    ///
    /// # Errors
    /// `internal` for rows that cannot be made.
    pub fn start(&mut self) -> Result<()> {
        metrics().alerts.pending_transitions.set(i64::try_from(self.len()).unwrap_or(i64::MAX));
        if self.under_way.is_some() || self.waiting.is_empty() {
            return Ok(());
        }
        let count = self.waiting.len().min(ENTRIES);
        let entries: Vec<Entry> =
            self.waiting.iter().take(count).map(|item| item.entry.clone()).collect();
        let (states, transitions) = history::rows(&entries)?;
        let message = match transitions {
            Some(rows) => WriteOwn { rows, beside: Some(states) },
            None => WriteOwn { rows: states, beside: None },
        };
        let write = self.write.clone();
        let future = Box::pin(async move { write.call(message).await });
        self.under_way = Some((count, future));
        Ok(())
    }

    /// Completes when a write has ended, well or not; never where none is under way. Nothing is
    /// lost if it is dropped before.
    pub async fn written(&mut self) -> (usize, Result<()>) {
        match &mut self.under_way {
            Some((count, future)) => (*count, future.await),
            None => std::future::pending().await,
        }
    }

    /// Tells what became durable, or prepares another attempt.
    pub fn finish(&mut self, count: usize, outcome: Result<()>) {
        self.under_way = None;
        match outcome {
            Ok(()) => self.tell(count),
            Err(error) => {
                metrics().alerts.retried_writes.inc();
                if error.code() != Code::Busy {
                    warn!(%error, "transitions of alerts could not be written; trying again");
                }
                let pause = self.clock.sleep(self.pause);
                self.pause = (self.pause * 2).min(PAUSES.1);
                let again = async move {
                    pause.await;
                    Ok(())
                };
                // A pause is a write of nothing.
                self.under_way = Some((0, Box::pin(again)));
            }
        }
    }

    fn tell(&mut self, count: usize) {
        if count > 0 {
            self.pause = PAUSES.0;
        }
        self.durable += count as u64;
        let done: Vec<Item> = self.waiting.drain(..count).collect();
        let last = done.iter().map(|item| item.entry.set.sequence).max();
        self.sequence = self.sequence.max(last.unwrap_or_default());
        for item in done {
            let Some(notification) = item.notification else { continue };
            let number = notification.sequence;
            check!(A1, number <= self.sequence, "{number} is told before it is durable");
            self.outlet.send(notification);
        }
        self.answer_all();
    }

    fn answer_all(&mut self) {
        while self.replies.front().is_some_and(|(upto, ..)| *upto <= self.durable) {
            if let Some((_, count, reply)) = self.replies.pop_front() {
                let _ = reply.send(count);
            }
        }
    }
}
