//! One writer per table: the only mutator of the table's state.
//!
//! A writer hands appends to the journal in order, remembers them, and applies them to the
//! table as the journal reports them durable, in the same order. Only then are they visible,
//! acknowledged and told to the feed: an acknowledged row is on disk and in every version
//! that a reader takes from then on. What to do when is decided by [`core::Core`]; this file
//! does it.
//!
//! An append may bring rows of a second table along ([`Beside`]): both go to the journal as one
//! group. The journal then hands them to the other table's writer itself, before it answers
//! here and in the order of the log, so that writer, too, applies its rows in that order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use kymo_config::settings;
use kymo_kernel::actor::{Actor, Cx, Handle, Pending, Reply};
use kymo_kernel::env::Clock;
use kymo_kernel::ids::{Position, SegmentId, Seq, TimeRange};
use kymo_kernel::message::{Append, Beside, Committed, Durability, Message};
use kymo_kernel::observe::{self, Trace};
use kymo_kernel::schema::TableDef;
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact;
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::SegmentMeta;
use kymo_kernel::storage::version::{Frozen, TableState};
use kymo_kernel::{Code, Error, Result, check};
use serde_json::json;
use tracing::{debug, error};

use crate::feed::Publisher;
use crate::flusher::Flusher;
use crate::memory::Meter;

pub mod core;
mod turns;
mod writers;

use core::{Core, Effect, Event, Limits};
pub use turns::{Turn, Turns};
pub use writers::Writers;

/// Flushes what is in memory now; answered once it is in segments.
#[derive(Debug)]
pub struct Freeze;

impl Message for Freeze {
    type Reply = ();
}

/// The table has a new definition.
#[derive(Debug)]
pub struct Altered(pub Arc<TableDef>);

impl Message for Altered {
    type Reply = ();
}

/// The table is gone: answer what waits and stop.
#[derive(Debug)]
pub struct Dropped;

impl Message for Dropped {
    type Reply = ();
}

/// The metadata names the outputs of a merge or deletion in place of its inputs. Answered with
/// the newest position that was visible then. Compactor, deleter → writer.
#[derive(Debug)]
pub struct Replaced {
    /// Segments that went.
    pub inputs: Vec<SegmentId>,
    /// Segments that came.
    pub outputs: Vec<Arc<SegmentMeta>>,
    /// The times of rows that are gone, where whoever follows the table must hear of it.
    pub deleted: Option<TimeRange>,
}

impl Message for Replaced {
    type Reply = Position;
}

/// What every writer of a process shares.
#[derive(Clone)]
pub struct Context {
    /// Where rows become durable.
    pub store: Arc<Store>,
    /// Turns frozen rows into segments.
    pub flusher: Flusher,
    /// Hears of what was committed.
    pub feed: Publisher,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// When to freeze and to stall.
    pub limits: Limits,
    /// When to acknowledge where the request does not say.
    pub durability: Durability,
    /// When segments are too many.
    pub compaction: settings::Compaction,
}

/// An append that is not answered yet.
struct Waiting {
    ticket: u64,
    batch: RecordBatch,
    /// Taken when it is handed to the journal.
    record: Option<Record>,
    beside: Option<Beside>,
    durability: Durability,
    reply: Reply<Append>,
    trace: Trace,
}

/// The actor.
pub struct Writer {
    context: Context,
    state: TableState,
    core: Core,
    meter: Meter,
    /// All appends that are not answered: first those that are with the journal.
    queue: VecDeque<Waiting>,
    with_journal: usize,
    next_ticket: u64,
    /// Frozen rows in order; the first is being flushed.
    frozen: VecDeque<Arc<Frozen>>,
    flushing: bool,
    wants_empty: Vec<Reply<Freeze>>,
    tick: Option<Pending>,
    rows: u64,
    on_stop: Option<OnStop>,
}

/// Called when the writer of a dropped table has answered everybody.
pub type OnStop = Box<dyn FnOnce() + Send>;

impl Writer {
    /// A writer over the state of its table, with what recovery left in memory.
    #[must_use]
    pub fn new(context: Context, state: TableState, meter: Meter, on_stop: OnStop) -> Self {
        let frozen: VecDeque<_> = state.cell().load().frozen.iter().cloned().collect();
        let name = state.table().name.to_string();
        let hot = state.hot_bytes() as u64;
        let now = context.clock.monotonic();
        let core = Core::new(name, context.limits, hot, frozen.len(), now);
        Writer {
            context,
            state,
            core,
            meter,
            queue: VecDeque::new(),
            with_journal: 0,
            next_ticket: 0,
            frozen,
            flushing: false,
            wants_empty: Vec::new(),
            tick: None,
            rows: 0,
            on_stop: Some(on_stop),
        }
    }

    fn on(&mut self, event: Event, cx: &mut Cx<Self>) {
        let mut work = self.core.apply(event);
        while let Some(effect) = work.pop_front() {
            let Some(event) = self.perform(effect, cx) else { continue };
            let mut more = self.core.apply(event);
            more.append(&mut work);
            work = more;
        }
    }

    /// Carries out one effect; what comes of it at once is the next event.
    fn perform(&mut self, effect: Effect, cx: &mut Cx<Self>) -> Option<Event> {
        match effect {
            Effect::Submit => self.submit(cx),
            Effect::Apply(position) => self.commit(position),
            Effect::FailFront(error) => {
                self.with_journal = self.with_journal.saturating_sub(1);
                if let Some(append) = self.queue.pop_front() {
                    append.reply.fail(error);
                }
                None
            }
            Effect::FailBack(error) => {
                if let Some(append) = self.queue.pop_back() {
                    append.reply.fail(error);
                }
                None
            }
            Effect::Freeze => self.freeze(cx),
            Effect::Stop => {
                self.retire();
                cx.stop();
                None
            }
        }
    }

    fn submit(&mut self, cx: &mut Cx<Self>) -> Option<Event> {
        let append = self.queue.get_mut(self.with_journal)?;
        let ticket = append.ticket;
        let record = append.record.take()?;
        let (group, other, durability) = match append.beside.take() {
            None => (RecordGroup::of(record), None, append.durability),
            // Always synced before anybody sees it: else a flush of one table could make its
            // half durable while a power cut takes the other one.
            Some(Beside { batch, record: first, deliver }) => {
                (RecordGroup::of_two(first, record), Some((batch, deliver)), Durability::EveryWrite)
            }
        };
        let poster = cx.poster();
        let done = move |outcome: Result<Position>| {
            if let (Ok(position), Some((batch, deliver))) = (&outcome, other) {
                deliver(before(*position), batch);
            }
            poster.post(move |writer: &mut Writer, cx| writer.answered(ticket, outcome, cx));
        };
        self.with_journal += 1;
        let log = self.context.store.log();
        append.trace.span().in_scope(|| log.append(group, durability, Box::new(done)));
        None
    }

    /// The journal's answer. Positions come in the order of the appends; a refusal may
    /// overtake them, so it names its append.
    fn answered(&mut self, ticket: u64, outcome: Result<Position>, cx: &mut Cx<Self>) {
        match outcome {
            Ok(position) => {
                let front = self.queue.front().map(|append| append.ticket);
                check!(W3, front == Some(ticket), "append {ticket} durable before {front:?}");
                self.on(Event::Durable(position), cx);
            }
            Err(error) if self.context.store.poisoned().is_some() => {
                self.on(Event::Poisoned(error), cx);
            }
            Err(error) => {
                let at = self.queue.iter().position(|append| append.ticket == ticket);
                if let Some(refused) = at.and_then(|at| self.queue.remove(at)) {
                    self.with_journal = self.with_journal.saturating_sub(1);
                    refused.reply.fail(error);
                    self.on(Event::Refused, cx);
                }
            }
        }
        self.schedule(cx);
    }

    /// Shows the rows at the front, answers, and tells the feed.
    fn commit(&mut self, position: Position) -> Option<Event> {
        self.with_journal = self.with_journal.saturating_sub(1);
        let Waiting { batch, reply, trace, .. } = self.queue.pop_front()?;
        let (batch, late) = match trace.run("writer.apply", || self.show(position, batch)) {
            Ok(shown) => shown,
            Err(error) => {
                reply.fail(error);
                return None;
            }
        };
        reply.ok(position);
        Some(self.tell(position, batch, late))
    }

    /// Shows rows that came with an append to another table and are durable with it.
    fn attend(&mut self, position: Position, batch: RecordBatch, cx: &mut Cx<Self>) {
        // A dropped table has no rows any more; after a failure of the store nothing is shown.
        if !self.core.is_open() {
            return;
        }
        self.catch_up();
        if let Ok((batch, late)) = self.show(position, batch) {
            let event = self.tell(position, batch, late);
            self.on(event, cx);
        }
        self.schedule(cx);
    }

    /// Shows durable rows; as they are in the table, and whether some of them may replace others.
    fn show(&mut self, position: Position, batch: RecordBatch) -> Result<(RecordBatch, bool)> {
        let shown = self.state.conformed(batch).and_then(|batch| {
            let late = self.state.apply(position, batch.clone())?;
            Ok((batch, late))
        });
        let (batch, late) = shown.inspect_err(|error| {
            // The journal has rows that the table cannot take: a defect, as they were checked.
            error!(table = %self.state.table().name, %position, %error, "durable rows do not apply");
        })?;
        self.rows += batch.num_rows() as u64;
        observe::metrics().store.rows.inc_by(batch.num_rows() as u64);
        self.measure();
        Ok((batch, late))
    }

    /// Tells the feed of rows that are shown.
    fn tell(&self, position: Position, batch: RecordBatch, late: bool) -> Event {
        let (table, now) = (self.state.table(), self.context.clock.monotonic());
        let feed = &self.context.feed;
        let (table, deleted) = (table.clone(), None);
        feed.publish(|| Committed { table, position, batch, deleted, late, at: now });
        Event::Applied { hot_bytes: self.state.hot_bytes() as u64, now }
    }

    /// Tells the feed that rows are gone.
    fn tell_deleted(&self, position: Position, times: TimeRange) {
        let (table, at) = (self.state.table().clone(), self.context.clock.monotonic());
        let batch = RecordBatch::new_empty(table.schema.arrow());
        let deleted = Some(times);
        let gone = Committed { table, position, batch, deleted, late: false, at };
        self.context.feed.publish(|| gone);
    }

    fn freeze(&mut self, cx: &mut Cx<Self>) -> Option<Event> {
        let frozen = self.state.freeze()?;
        debug!(table = %self.state.table().name, rows = frozen.rows.rows(), "froze rows in memory");
        self.frozen.push_back(frozen);
        self.measure();
        self.flush_next(cx);
        Some(Event::Froze)
    }

    /// Flushes one frozen memtable at a time, oldest first: the metadata says of a table up
    /// to which position it is in segments, so a younger flush must not overtake.
    fn flush_next(&mut self, cx: &mut Cx<Self>) {
        if self.flushing {
            return;
        }
        let Some(frozen) = self.frozen.front().cloned() else {
            self.wants_empty.drain(..).for_each(|reply| reply.ok(()));
            return;
        };
        self.flushing = true;
        let flusher = self.context.flusher.clone();
        let table = self.state.table().clone();
        let job = frozen.clone();
        cx.then(async move { flusher.flush(table, job).await }, move |writer, outcome, cx| {
            writer.flushed(&frozen, outcome, cx)
        });
    }

    fn flushed(
        &mut self,
        frozen: &Arc<Frozen>,
        outcome: Result<Vec<Arc<SegmentMeta>>>,
        cx: &mut Cx<Self>,
    ) {
        self.flushing = false;
        let done = outcome.and_then(|segments| self.state.flushed(frozen, segments));
        if let Err(error) = done {
            return self.flush_failed(error, cx);
        }
        self.frozen.pop_front();
        self.measure();
        self.count_segments();
        self.on(Event::Flushed, cx);
        self.flush_next(cx);
        self.schedule(cx);
    }

    /// The flusher tries again by itself; what it gives up on ends the table or the store.
    fn flush_failed(&mut self, error: Error, cx: &mut Cx<Self>) {
        self.wants_empty.drain(..).for_each(|reply| reply.fail(error.clone()));
        match error.code() {
            Code::TableNotFound => self.on(Event::Dropped, cx),
            _ => self.on(Event::Poisoned(error), cx),
        }
    }

    fn measure(&self) {
        let hot = self.state.hot_bytes() as u64;
        let all = self.state.memory_bytes() as u64;
        self.meter.set(hot, all.saturating_sub(hot));
    }

    /// Looks whether there are too many small segments; true where that changed.
    fn count_segments(&mut self) -> bool {
        let version = self.state.cell().load();
        let crowded = compact::is_crowded(&version, &self.context.compaction);
        self.crowd(crowded)
    }

    fn crowd(&mut self, crowded: bool) -> bool {
        let news = self.core.crowd(crowded);
        if news {
            observe::metrics().store.crowded_tables.add(if crowded { 1 } else { -1 });
        }
        news
    }

    /// Keeps one timer for the age of the hot rows.
    fn schedule(&mut self, cx: &mut Cx<Self>) {
        if self.tick.as_ref().is_some_and(|tick| !tick.is_finished()) {
            return;
        }
        let Some(at) = self.core.tick_at() else { return };
        let wait = at.saturating_sub(self.context.clock.monotonic()).max(Duration::from_millis(1));
        self.tick = Some(cx.after(wait, |writer, cx| {
            writer.tick = None;
            let now = writer.context.clock.monotonic();
            writer.on(Event::Tick { now }, cx);
            writer.schedule(cx);
        }));
    }

    /// Takes the newest definition of the table: rows may have columns that the catalog added a
    /// moment ago.
    fn catch_up(&mut self) {
        let snapshot = self.context.store.catalog();
        if let Some(table) = snapshot.table_by_id(self.state.table().id) {
            self.follow_definition(&table.def);
        }
    }

    fn follow_definition(&mut self, def: &Arc<TableDef>) {
        if def.schema.version <= self.state.table().schema.version {
            return;
        }
        match self.state.alter(def.clone()) {
            Ok(()) => self.frozen = self.state.frozen().cloned().collect(),
            Err(error) => error!(table = %def.name, %error, "a definition does not fit its rows"),
        }
    }

    fn retire(&mut self) {
        self.frozen.clear();
        self.wants_empty.drain(..).for_each(|reply| reply.ok(()));
        self.state.retire();
        self.measure();
        self.crowd(false);
        if let Some(on_stop) = self.on_stop.take() {
            on_stop();
        }
    }
}

/// The position of the record before, in a group of two.
fn before(position: Position) -> Position {
    Position { seq: Seq(position.seq.0.saturating_sub(1)), ..position }
}

impl Actor for Writer {
    fn started(&mut self, cx: &mut Cx<Self>) {
        self.measure();
        self.count_segments();
        self.flush_next(cx);
        self.schedule(cx);
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "table": self.state.table().name.to_string(),
            "rows_written": self.rows,
            "with_journal": self.with_journal,
            "waiting": self.core.waiting(),
            "hot_bytes": self.state.hot_bytes(),
            "frozen": self.frozen.len(),
            "stalled": self.core.stalled(),
            "crowded": self.core.crowded(),
            "watermark": self.state.watermark().to_string(),
        })
    }
}

impl Handle<Append> for Writer {
    fn handle(&mut self, message: Append, reply: Reply<Append>, cx: &mut Cx<Self>) {
        self.catch_up();
        let durability = message.durability.unwrap_or(self.context.durability);
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let Append { batch, record, beside, .. } = message;
        let (record, trace) = (Some(record), Trace::here());
        self.queue.push_back(Waiting { ticket, batch, record, beside, durability, reply, trace });
        self.on(Event::Arrived { memory_full: self.meter.full() }, cx);
    }
}

impl Handle<Freeze> for Writer {
    fn handle(&mut self, _message: Freeze, reply: Reply<Freeze>, cx: &mut Cx<Self>) {
        self.wants_empty.push(reply);
        self.on(Event::FreezeAsked, cx);
        self.flush_next(cx);
    }
}

impl Handle<Altered> for Writer {
    fn handle(&mut self, message: Altered, reply: Reply<Altered>, _cx: &mut Cx<Self>) {
        self.follow_definition(&message.0);
        reply.ok(());
    }
}

impl Handle<Dropped> for Writer {
    fn handle(&mut self, _message: Dropped, reply: Reply<Dropped>, cx: &mut Cx<Self>) {
        self.on(Event::Dropped, cx);
        reply.ok(());
    }
}

impl Handle<Replaced> for Writer {
    fn handle(&mut self, message: Replaced, reply: Reply<Replaced>, cx: &mut Cx<Self>) {
        let Replaced { inputs, outputs, deleted } = message;
        let position = self.state.watermark();
        let replaced = match deleted {
            None => self.state.replaced(&inputs, outputs),
            Some(_) => self.state.deleted(&inputs, outputs),
        };
        if let (Ok(()), Some(times)) = (&replaced, deleted) {
            self.tell_deleted(position, times);
        }
        if self.count_segments() {
            // The age that counts is another one now.
            self.tick.take().inspect(Pending::cancel);
            self.schedule(cx);
        }
        reply.send(replaced.map(|()| position));
    }
}
