//! The only way to reach an actor: a typed port with a budget.
//!
//! A caller takes a permit (one message and its bytes) *before* it sends; the permit rides in
//! the message and is free again when the reply is given. The mailbox behind a port can
//! therefore be unbounded, and what is queued never exceeds the budget (invariant B1). The
//! reply channel is ours: a caller that goes away does not cancel what was accepted. A port
//! can be closed and drained (S1) and outlives the actor behind it: a restart swaps the target.
//!
//! Permits in the message are the idea of crucible's upstairs; the accepted price is one lock
//! per message around the ledger, which is what makes closing and draining exact.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};

use crate::actor::{Reply, down};
use crate::check;
use crate::env::Clock;
use crate::error::{Code, Error, Result};
use crate::message::Message;

/// How much may be queued or worked on behind a port, and how long a caller waits for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Messages.
    pub count: usize,
    /// Sum of [`Message::weight`], in bytes. A single heavier message is refused.
    pub bytes: usize,
    /// Time that [`Port::call`] waits for room before it answers [`Code::Busy`].
    pub wait: Duration,
}

impl Budget {
    /// A budget for control messages: counted, not weighed, and waiting one second for room.
    #[must_use]
    pub fn count(count: usize) -> Budget {
        Budget { count, bytes: MAX_BYTES, wait: Duration::from_secs(1) }
    }

    /// A budget in bytes with room for `count` messages.
    #[must_use]
    pub fn bytes(count: usize, bytes: u64, wait: Duration) -> Budget {
        let bytes = usize::try_from(bytes).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        Budget { count, bytes, wait }
    }
}

/// The largest budget in bytes: what one permit of the semaphore can count.
const MAX_BYTES: usize = u32::MAX as usize;

/// Upper bounds of the buckets in which waiting for room is counted, in microseconds.
pub const WAIT_BOUNDS_US: [u64; 8] =
    [10, 100, 1_000, 10_000, 50_000, 250_000, 1_000_000, 5_000_000];

/// A message on its way, with everything that must reach the actor with it.
pub struct Parcel<M: Message> {
    /// The message.
    pub message: M,
    /// The duty to answer, with the permits inside.
    pub reply: Reply<M>,
    /// The span in which the caller sent it, so that one trace goes on behind the port.
    pub span: tracing::Span,
}

/// Where a port delivers to. Implemented by the host for actors, and by closures, which is
/// handy for tests and for receivers that are no actors.
pub trait Deliver<M: Message>: Send + Sync {
    /// Takes the parcel; must not block. False if the receiver is gone, in which case dropping
    /// the parcel has answered it.
    fn deliver(&self, parcel: Parcel<M>) -> bool;
}

impl<M: Message, F: Fn(M, Reply<M>) + Send + Sync> Deliver<M> for F {
    fn deliver(&self, parcel: Parcel<M>) -> bool {
        let Parcel { message, reply, span } = parcel;
        span.in_scope(|| self(message, reply));
        true
    }
}

/// A typed, bounded way to one receiver; cheap to clone.
pub struct Port<M: Message> {
    gate: Arc<Gate>,
    target: Arc<ArcSwapOption<Box<dyn Deliver<M>>>>,
}

impl<M: Message> Clone for Port<M> {
    fn clone(&self) -> Self {
        Port { gate: Arc::clone(&self.gate), target: Arc::clone(&self.target) }
    }
}

impl<M: Message> Port<M> {
    /// A port without a receiver yet: calls answer [`Code::Down`] until one is set.
    ///
    /// Actors get theirs from [`Running::port`](crate::supervise::Running::port).
    pub fn new(
        name: impl Into<Arc<str>>,
        kind: &'static str,
        budget: Budget,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let gate = Gate::new(name.into(), kind, short_name::<M>(), budget, clock);
        Port { gate: Arc::new(gate), target: Arc::new(ArcSwapOption::empty()) }
    }

    /// Sets or swaps the receiver; messages accepted before stay with the old one.
    pub fn connect(&self, target: impl Deliver<M> + 'static) {
        self.target.store(Some(Arc::new(Box::new(target))));
    }

    /// Takes the receiver away: calls answer [`Code::Down`] until the next one is set.
    pub fn disconnect(&self) {
        self.target.store(None);
    }

    /// Sends a message and waits for its answer, for as long as that takes.
    ///
    /// Waits up to the budget's `wait` for room. Dropping the future before the message is
    /// accepted takes it back; afterwards the message is handled all the same.
    ///
    /// # Errors
    /// [`Code::Busy`] without room in time, [`Code::TooLarge`] for a message beyond the whole
    /// budget, [`Code::ShuttingDown`] once closed, [`Code::Down`] if the receiver is gone or
    /// dropped the reply; otherwise what the receiver answers.
    pub async fn call(&self, message: M) -> Result<M::Reply> {
        let permit = self.gate.admit(message.weight(), None).await?;
        self.send(message, permit, None)?.await
    }

    /// Like [`Port::call`], but gives up after `limit`, waiting for room included.
    ///
    /// # Errors
    /// [`Code::Deadline`] when time is up (an accepted message is handled all the same), and
    /// those of [`Port::call`].
    pub async fn call_within(&self, message: M, limit: Duration) -> Result<M::Reply> {
        let deadline = self.gate.clock.monotonic() + limit;
        let permit = self.gate.admit(message.weight(), Some(deadline)).await?;
        let answer = self.send(message, permit, Some(deadline))?;
        let left = deadline.saturating_sub(self.gate.clock.monotonic());
        tokio::select! {
            biased;
            answer = answer => answer,
            () = self.gate.clock.sleep(left) => Err(self.gate.late()),
        }
    }

    /// Sends a message only if there is room right now; the answer is awaited separately, and
    /// not awaiting it does not take the message back.
    ///
    /// # Errors
    /// Those of [`Port::call`]; [`Code::Busy`] at once.
    pub fn try_call(&self, message: M) -> Result<Answer<M>> {
        let permit = self.gate.try_admit(message.weight())?;
        self.send(message, permit, None)
    }

    /// Sends a message without wanting an answer, only if there is room right now.
    ///
    /// # Errors
    /// Those of [`Port::try_call`].
    pub fn tell(&self, message: M) -> Result<()> {
        let permit = self.gate.try_admit(message.weight())?;
        self.deliver(message, Reply::new(None, permit, None))
    }

    /// Refuses new messages from now on with [`Code::ShuttingDown`].
    pub fn close(&self) {
        self.gate.ledger.lock().open = false;
    }

    /// Closes, and completes once every accepted message has been answered (S1).
    pub async fn drain(&self) {
        self.close();
        self.gate.emptied().await;
    }

    /// Whether new messages are refused.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        !self.gate.ledger.lock().open
    }

    /// What is queued now and what has happened so far.
    #[must_use]
    pub fn stats(&self) -> PortStats {
        self.gate.stats()
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    fn send(&self, message: M, permit: Permit, deadline: Option<Duration>) -> Result<Answer<M>> {
        let (to, answer) = oneshot::channel();
        self.deliver(message, Reply::new(Some(to), permit, deadline))?;
        Ok(Answer { answer, gate: Arc::clone(&self.gate) })
    }

    fn deliver(&self, message: M, reply: Reply<M>) -> Result<()> {
        let parcel = Parcel { message, reply, span: tracing::Span::current() };
        let delivered = match &*self.target.load() {
            Some(target) => target.deliver(parcel),
            None => false,
        };
        if delivered {
            return Ok(());
        }
        self.gate.refused_down.fetch_add(1, Ordering::Relaxed);
        Err(down(&self.gate.name))
    }
}

/// An answer that is on its way.
pub struct Answer<M: Message> {
    answer: oneshot::Receiver<Result<M::Reply>>,
    gate: Arc<Gate>,
}

impl<M: Message> Future for Answer<M> {
    type Output = Result<M::Reply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        Poll::Ready(answer.unwrap_or_else(|_| Err(down(&self.gate.name))))
    }
}

/// What a port looks like from outside, for metrics and for `system.ports`.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PortStats {
    /// Name of the actor behind it and of its message, as `writer.cpu/Append`.
    pub name: String,
    /// Kind of the actor, the same for all of its instances.
    pub kind: &'static str,
    /// Name of the message.
    pub message: &'static str,
    /// Messages queued or being worked on.
    pub queued: usize,
    /// Their bytes.
    pub queued_bytes: usize,
    /// The most bytes there have been.
    pub peak_bytes: usize,
    /// Budget in messages.
    pub budget_count: usize,
    /// Budget in bytes.
    pub budget_bytes: usize,
    /// Callers that wait for room.
    pub waiting: usize,
    /// Messages accepted so far.
    pub accepted: u64,
    /// Messages refused for want of room.
    pub rejected_busy: u64,
    /// Messages refused because the port was closed.
    pub rejected_closed: u64,
    /// Messages refused because no receiver was there.
    pub rejected_down: u64,
    /// Age of the oldest unanswered message, in nanoseconds; 0 where there is none.
    pub oldest_age_ns: u64,
    /// Accepted messages by the time they waited for room: one count per bound of
    /// [`WAIT_BOUNDS_US`], and one for everything longer.
    pub waits: [u64; WAIT_BOUNDS_US.len() + 1],
    /// Sum of those times, in nanoseconds.
    pub wait_sum_ns: u64,
    /// Whether new messages are refused.
    pub closed: bool,
}

/// The budget of one port and the account of what it holds.
pub(crate) struct Gate {
    name: Arc<str>,
    kind: &'static str,
    message: &'static str,
    budget: Budget,
    clock: Arc<dyn Clock>,
    slots: Semaphore,
    bytes: Semaphore,
    ledger: Mutex<Ledger>,
    emptied: Notify,
    waiting: AtomicU64,
    refused_busy: AtomicU64,
    refused_closed: AtomicU64,
    refused_down: AtomicU64,
    waits: [AtomicU64; WAIT_BOUNDS_US.len() + 1],
    wait_sum_ns: AtomicU64,
}

struct Ledger {
    open: bool,
    next: u64,
    /// When each unanswered message was accepted, by ticket; tickets grow, so the first is the
    /// oldest.
    tickets: BTreeMap<u64, Duration>,
    bytes: usize,
    peak: usize,
}

impl Gate {
    fn new(
        name: Arc<str>,
        kind: &'static str,
        message: &'static str,
        mut budget: Budget,
        clock: Arc<dyn Clock>,
    ) -> Self {
        budget.bytes = budget.bytes.min(MAX_BYTES);
        let ledger = Ledger { open: true, next: 0, tickets: BTreeMap::new(), bytes: 0, peak: 0 };
        Gate {
            name: format!("{name}/{message}").into(),
            kind,
            message,
            budget,
            clock,
            slots: Semaphore::new(budget.count),
            bytes: Semaphore::new(budget.bytes),
            ledger: Mutex::new(ledger),
            emptied: Notify::new(),
            waiting: AtomicU64::new(0),
            refused_busy: AtomicU64::new(0),
            refused_closed: AtomicU64::new(0),
            refused_down: AtomicU64::new(0),
            waits: Default::default(),
            wait_sum_ns: AtomicU64::new(0),
        }
    }

    /// Takes a permit, waiting for room until the budget's `wait` or the deadline is over.
    async fn admit(self: &Arc<Self>, weight: usize, deadline: Option<Duration>) -> Result<Permit> {
        let weight = self.weigh(weight)?;
        if let Some(permit) = self.grab(weight, Duration::ZERO)? {
            return Ok(permit);
        }
        let began = self.clock.monotonic();
        let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_sub(began));
        let _waiting = Waiting::new(&self.waiting);
        let acquired = tokio::select! {
            biased;
            acquired = self.wait_for_room(weight) => acquired,
            () = self.clock.sleep(left.min(self.budget.wait)) => None,
        };
        match acquired {
            Some(room) => {
                let permit = self.accept(weight, self.clock.monotonic().saturating_sub(began))?;
                std::mem::forget(room);
                Ok(permit)
            }
            None if left <= self.budget.wait => Err(self.late()),
            None => Err(self.busy()),
        }
    }

    fn try_admit(self: &Arc<Self>, weight: usize) -> Result<Permit> {
        let weight = self.weigh(weight)?;
        self.grab(weight, Duration::ZERO)?.ok_or_else(|| self.busy())
    }

    /// Takes a permit if there is room right now.
    fn grab(self: &Arc<Self>, weight: u32, waited: Duration) -> Result<Option<Permit>> {
        if !self.ledger.lock().open {
            return Err(self.closed());
        }
        let Ok(slot) = self.slots.try_acquire() else { return Ok(None) };
        let Ok(bytes) = self.bytes.try_acquire_many(weight) else { return Ok(None) };
        let permit = self.accept(weight, waited)?;
        slot.forget();
        bytes.forget();
        Ok(Some(permit))
    }

    /// Waits in line, first for a slot, then for bytes. Both lines are first come, first
    /// served, so a heavy message is not overtaken for ever by light ones.
    async fn wait_for_room(&self, weight: u32) -> Option<Room<'_>> {
        let slot = self.slots.acquire().await.ok()?;
        let bytes = self.bytes.acquire_many(weight).await.ok()?;
        slot.forget();
        bytes.forget();
        Some(Room { gate: self, weight })
    }

    /// Enters a message into the ledger: from here on it is accepted. Fails once closed.
    fn accept(self: &Arc<Self>, weight: u32, waited: Duration) -> Result<Permit> {
        let now = self.clock.monotonic();
        let ticket = {
            let mut ledger = self.ledger.lock();
            if !ledger.open {
                drop(ledger);
                return Err(self.closed());
            }
            let ticket = ledger.next;
            ledger.next += 1;
            ledger.tickets.insert(ticket, now);
            ledger.bytes += weight as usize;
            ledger.peak = ledger.peak.max(ledger.bytes);
            check!(
                B1,
                ledger.bytes <= self.budget.bytes,
                "port {} holds {}",
                self.name,
                ledger.bytes
            );
            ticket
        };
        let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        let bucket = WAIT_BOUNDS_US.partition_point(|bound| *bound < micros);
        self.waits[bucket].fetch_add(1, Ordering::Relaxed);
        self.wait_sum_ns.fetch_add(nanos(waited), Ordering::Relaxed);
        Ok(Permit { gate: Arc::clone(self), ticket, weight, holds_room: true })
    }

    fn weigh(&self, weight: usize) -> Result<u32> {
        if weight > self.budget.bytes {
            self.refused_busy.fetch_add(1, Ordering::Relaxed);
            let text = format!(
                "a message of {weight} bytes is larger than the {} bytes that {} may queue",
                self.budget.bytes, self.name
            );
            return Err(Error::new(Code::TooLarge, text).with_hint("send it in smaller parts"));
        }
        Ok(u32::try_from(weight).unwrap_or(u32::MAX))
    }

    fn free_room(&self, weight: u32) {
        self.ledger.lock().bytes -= weight as usize;
        self.give_back(weight);
    }

    fn forget(&self, ticket: u64) {
        let empty = {
            let mut ledger = self.ledger.lock();
            ledger.tickets.remove(&ticket);
            ledger.tickets.is_empty()
        };
        if empty {
            self.emptied.notify_waiters();
        }
    }

    fn give_back(&self, weight: u32) {
        self.bytes.add_permits(weight as usize);
        self.slots.add_permits(1);
    }

    async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.ledger.lock().tickets.is_empty() {
                return;
            }
            emptied.await;
        }
    }

    fn busy(&self) -> Error {
        self.refused_busy.fetch_add(1, Ordering::Relaxed);
        Error::new(Code::Busy, format!("{} has no room for another message", self.name))
            .with_hint("retry shortly")
    }

    fn closed(&self) -> Error {
        self.refused_closed.fetch_add(1, Ordering::Relaxed);
        Error::new(Code::ShuttingDown, format!("{} takes no more messages", self.name))
            .with_hint("the server is stopping; retry once it is back")
    }

    fn late(&self) -> Error {
        Error::new(Code::Deadline, format!("{} did not answer in time", self.name))
    }

    /// Age of the oldest unanswered message; zero where there is none.
    pub(crate) fn oldest_age(&self) -> Duration {
        let now = self.clock.monotonic();
        let ledger = self.ledger.lock();
        let oldest = ledger.tickets.first_key_value();
        oldest.map_or(Duration::ZERO, |(_, since)| now.saturating_sub(*since))
    }

    pub(crate) fn stats(&self) -> PortStats {
        let now = self.clock.monotonic();
        let ledger = self.ledger.lock();
        let oldest = ledger.tickets.first_key_value().map(|(_, since)| now.saturating_sub(*since));
        PortStats {
            name: self.name.to_string(),
            kind: self.kind,
            message: self.message,
            queued: ledger.tickets.len(),
            queued_bytes: ledger.bytes,
            peak_bytes: ledger.peak,
            budget_count: self.budget.count,
            budget_bytes: self.budget.bytes,
            waiting: usize::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(usize::MAX),
            accepted: ledger.next,
            rejected_busy: self.refused_busy.load(Ordering::Relaxed),
            rejected_closed: self.refused_closed.load(Ordering::Relaxed),
            rejected_down: self.refused_down.load(Ordering::Relaxed),
            oldest_age_ns: nanos(oldest.unwrap_or_default()),
            waits: std::array::from_fn(|bucket| self.waits[bucket].load(Ordering::Relaxed)),
            wait_sum_ns: self.wait_sum_ns.load(Ordering::Relaxed),
            closed: !ledger.open,
        }
    }
}

/// The right to have one message of one weight behind a port; free again when dropped.
///
/// It ends in two steps around the answer: the room is free before the caller can read the
/// answer, so that it can send the next message at once; the port counts as drained only
/// afterwards, so that drained means answered (S1).
pub(crate) struct Permit {
    gate: Arc<Gate>,
    ticket: u64,
    weight: u32,
    holds_room: bool,
}

impl Permit {
    /// The first step: gives the room back.
    pub(crate) fn free_room(&mut self) {
        if std::mem::take(&mut self.holds_room) {
            self.gate.free_room(self.weight);
        }
    }

    pub(crate) fn port_name(&self) -> &str {
        &self.gate.name
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.free_room();
        self.gate.forget(self.ticket);
    }
}

/// Room taken from both semaphores that no message has been entered for yet.
struct Room<'a> {
    gate: &'a Gate,
    weight: u32,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.gate.give_back(self.weight);
    }
}

/// Counts a caller as waiting for as long as it does.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The last part of a type's name: `Append` of `kymo_kernel::message::Append`.
pub(crate) fn short_name<M>() -> &'static str {
    let name = std::any::type_name::<M>();
    let end = name.find('<').unwrap_or(name.len());
    name[..end].rsplit("::").next().unwrap_or(name)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
