//! What a writer decides, without doing any of it: counts of what waits and events in,
//! effects out.
//!
//! The writer's shell keeps one queue of appends. The first [`Core::submitted`] of them are
//! with the journal, the rest wait for room; both leave in order. This machine says when to
//! submit, apply, refuse, freeze and stop, and is tested without a journal, a disk or a clock.

use std::collections::VecDeque;
use std::time::Duration;

use kymo_kernel::ids::Position;
use kymo_kernel::{Code, Error};

/// How much longer rows may wait in memory while the table has too many small segments.
const CROWDED_AGES: u32 = 4;

/// When a writer freezes and stalls.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of hot rows at which they are frozen.
    pub table_bytes: u64,
    /// Age of the oldest hot row at which they are frozen.
    pub max_age: Duration,
    /// Frozen memtables that may wait for their flush before full hot rows stall the table.
    pub max_frozen: usize,
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// An append was put at the end of the queue.
    Arrived {
        /// Rows in memory are at the hard limit of the process.
        memory_full: bool,
    },
    /// The append at the front is durable at this position.
    Durable(Position),
    /// The journal refused one append, anywhere among those that are with it, and goes on. It
    /// has been taken out and answered.
    Refused,
    /// Rows were applied; the hot rows are now this large.
    Applied {
        /// Bytes of all hot rows.
        hot_bytes: u64,
        /// Time now.
        now: Duration,
    },
    /// Time passed.
    Tick {
        /// Time now.
        now: Duration,
    },
    /// Somebody wants the hot rows flushed, whatever their size.
    FreezeAsked,
    /// The hot rows were frozen.
    Froze,
    /// The oldest frozen memtable became segments.
    Flushed,
    /// The table was dropped.
    Dropped,
    /// The store refused to go on.
    Poisoned(Error),
}

/// What to do about it, in order.
#[derive(Debug)]
pub enum Effect {
    /// Hand the first append that waits to the journal.
    Submit,
    /// Apply the append at the front, publish, answer it and tell the feed.
    Apply(Position),
    /// Take the append at the front out and answer it with this error.
    FailFront(Error),
    /// Take the append at the end out and answer it with this error.
    FailBack(Error),
    /// Freeze the hot rows.
    Freeze,
    /// Nothing will come any more: stop.
    Stop,
}

#[derive(Debug)]
enum Phase {
    Open,
    Dropped,
    Poisoned(Error),
}

/// The state of the machine.
#[derive(Debug)]
pub struct Core {
    table: String,
    limits: Limits,
    phase: Phase,
    submitted: usize,
    waiting: usize,
    frozen: usize,
    hot_bytes: u64,
    hot_since: Option<Duration>,
    freeze_wanted: bool,
    /// The table has too many small segments.
    crowded: bool,
}

impl Core {
    /// A writer of a table that is called `table`, with rows that recovery left: `hot_bytes`
    /// of hot ones since `now`, and `frozen` memtables.
    #[must_use]
    pub fn new(
        table: String,
        limits: Limits,
        hot_bytes: u64,
        frozen: usize,
        now: Duration,
    ) -> Self {
        Core {
            table,
            limits,
            phase: Phase::Open,
            submitted: 0,
            waiting: 0,
            frozen,
            hot_bytes,
            hot_since: (hot_bytes > 0).then_some(now),
            freeze_wanted: false,
            crowded: false,
        }
    }

    /// How many appends at the front of the queue are with the journal.
    #[must_use]
    pub fn submitted(&self) -> usize {
        self.submitted
    }

    /// How many appends wait behind them because the table is stalled.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many frozen memtables are not yet segments.
    #[must_use]
    pub fn frozen(&self) -> usize {
        self.frozen
    }

    /// Whether the table exists and the store goes on.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether new rows have to wait for a flush.
    #[must_use]
    pub fn stalled(&self) -> bool {
        self.frozen >= self.limits.max_frozen && self.hot_bytes >= self.limits.table_bytes
    }

    /// When the age of the hot rows asks for a [`Event::Tick`].
    #[must_use]
    pub fn tick_at(&self) -> Option<Duration> {
        let ages = if self.crowded { CROWDED_AGES } else { 1 };
        self.hot_since.map(|since| since + self.limits.max_age.saturating_mul(ages))
    }

    /// Notes whether the table has too many small segments: then flushes by age wait for merges.
    /// Those by size, for memory and on demand do not, so that no write ever waits for a merge.
    /// Answers whether that is news.
    pub fn crowd(&mut self, crowded: bool) -> bool {
        std::mem::replace(&mut self.crowded, crowded) != crowded
    }

    /// Whether the table has too many small segments.
    #[must_use]
    pub fn crowded(&self) -> bool {
        self.crowded
    }

    /// Takes one event; the effects are to be carried out in order, before the next event.
    pub fn apply(&mut self, event: Event) -> VecDeque<Effect> {
        let mut effects = VecDeque::new();
        match event {
            Event::Arrived { memory_full } => self.arrived(memory_full, &mut effects),
            Event::Durable(position) => self.durable(position, &mut effects),
            Event::Refused => {
                self.submitted = self.submitted.saturating_sub(1);
                self.stop_if_idle(&mut effects);
            }
            Event::Applied { hot_bytes, now } => {
                if self.hot_since.is_none() && hot_bytes > 0 {
                    self.hot_since = Some(now);
                }
                self.hot_bytes = hot_bytes;
                self.freeze_if_full(&mut effects);
            }
            Event::Tick { now } => {
                if self.tick_at().is_some_and(|at| at <= now) {
                    self.want_freeze(&mut effects);
                }
            }
            Event::FreezeAsked => self.want_freeze(&mut effects),
            Event::Froze => {
                self.frozen += 1;
                self.hot_bytes = 0;
                self.hot_since = None;
                self.freeze_wanted = false;
            }
            Event::Flushed => {
                self.frozen = self.frozen.saturating_sub(1);
                self.freeze_if_full(&mut effects);
                self.resume(&mut effects);
            }
            Event::Dropped => {
                self.phase = Phase::Dropped;
                self.fail_waiting(&mut effects);
                self.stop_if_idle(&mut effects);
            }
            Event::Poisoned(error) => self.poisoned(error, &mut effects),
        }
        effects
    }

    fn arrived(&mut self, memory_full: bool, effects: &mut VecDeque<Effect>) {
        if let Some(error) = self.closed() {
            effects.push_back(Effect::FailBack(error));
        } else if memory_full {
            effects.push_back(Effect::FailBack(
                Error::new(Code::Busy, format!("append to table {}: memory is full", self.table))
                    .with_hint("rows are being flushed; send the same request again"),
            ));
        } else {
            self.waiting += 1;
            self.resume(effects);
        }
    }

    fn durable(&mut self, position: Position, effects: &mut VecDeque<Effect>) {
        if self.submitted == 0 {
            return;
        }
        self.submitted -= 1;
        effects.push_back(match self.phase {
            Phase::Dropped => Effect::FailFront(self.gone()),
            _ => Effect::Apply(position),
        });
        self.stop_if_idle(effects);
    }

    fn poisoned(&mut self, error: Error, effects: &mut VecDeque<Effect>) {
        if matches!(self.phase, Phase::Poisoned(_)) {
            return;
        }
        for _ in 0..self.submitted + self.waiting {
            effects.push_back(Effect::FailFront(error.clone()));
        }
        self.submitted = 0;
        self.waiting = 0;
        self.phase = Phase::Poisoned(error);
    }

    /// Submits what waits, as far as the table is not stalled.
    fn resume(&mut self, effects: &mut VecDeque<Effect>) {
        if !matches!(self.phase, Phase::Open) || self.stalled() {
            return;
        }
        for _ in 0..std::mem::take(&mut self.waiting) {
            self.submitted += 1;
            effects.push_back(Effect::Submit);
        }
    }

    fn freeze_if_full(&self, effects: &mut VecDeque<Effect>) {
        if self.freeze_wanted || self.hot_bytes >= self.limits.table_bytes {
            self.freeze_if_room(effects);
        }
    }

    /// Freezes now, or as soon as there is room for one more frozen memtable.
    fn want_freeze(&mut self, effects: &mut VecDeque<Effect>) {
        self.freeze_wanted = self.hot_bytes > 0;
        self.freeze_if_room(effects);
    }

    fn freeze_if_room(&self, effects: &mut VecDeque<Effect>) {
        if matches!(self.phase, Phase::Open)
            && self.hot_bytes > 0
            && self.frozen < self.limits.max_frozen
        {
            effects.push_back(Effect::Freeze);
        }
    }

    /// The appends that are not with the journal are the last ones of the queue.
    fn fail_waiting(&mut self, effects: &mut VecDeque<Effect>) {
        for _ in 0..std::mem::take(&mut self.waiting) {
            effects.push_back(Effect::FailBack(self.gone()));
        }
    }

    fn stop_if_idle(&self, effects: &mut VecDeque<Effect>) {
        if matches!(self.phase, Phase::Dropped) && self.submitted == 0 {
            effects.push_back(Effect::Stop);
        }
    }

    fn closed(&self) -> Option<Error> {
        match &self.phase {
            Phase::Open => None,
            Phase::Dropped => Some(self.gone()),
            Phase::Poisoned(error) => Some(error.clone()),
        }
    }

    fn gone(&self) -> Error {
        Error::new(Code::TableNotFound, format!("table {} was dropped", self.table))
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::ids::{Epoch, PartitionId, Seq};

    use super::*;

    const LIMITS: Limits =
        Limits { table_bytes: 100, max_age: Duration::from_secs(300), max_frozen: 2 };

    fn core() -> Core {
        Core::new("kymo.public.cpu".to_owned(), LIMITS, 0, 0, Duration::ZERO)
    }

    fn at(seq: u64) -> Position {
        Position { partition: PartitionId::ONLY, epoch: Epoch(1), seq: Seq(seq) }
    }

    /// The effects as words, so that a scenario reads like a table.
    fn words(effects: VecDeque<Effect>) -> Vec<String> {
        effects
            .into_iter()
            .map(|effect| match effect {
                Effect::Submit => "submit".to_owned(),
                Effect::Apply(position) => format!("apply {}", position.seq),
                Effect::FailFront(error) => format!("fail front {}", error.code()),
                Effect::FailBack(error) => format!("fail back {}", error.code()),
                Effect::Freeze => "freeze".to_owned(),
                Effect::Stop => "stop".to_owned(),
            })
            .collect()
    }

    fn arrived(core: &mut Core) -> Vec<String> {
        words(core.apply(Event::Arrived { memory_full: false }))
    }

    fn durable(core: &mut Core, seq: u64) -> Vec<String> {
        words(core.apply(Event::Durable(at(seq))))
    }

    fn applied(core: &mut Core, hot_bytes: u64) -> Vec<String> {
        words(core.apply(Event::Applied { hot_bytes, now: Duration::from_secs(1) }))
    }

    #[test]
    fn appends_are_applied_in_the_order_of_the_journal() {
        let mut core = core();
        assert_eq!(arrived(&mut core), ["submit"]);
        assert_eq!(arrived(&mut core), ["submit"]);
        assert_eq!(core.submitted(), 2);
        assert_eq!(durable(&mut core, 1), ["apply 1"]);
        assert_eq!(durable(&mut core, 2), ["apply 2"]);
        assert_eq!(core.submitted(), 0);
    }

    #[test]
    fn a_record_that_the_journal_refuses_costs_only_itself() {
        let mut core = core();
        arrived(&mut core);
        arrived(&mut core);
        assert!(core.apply(Event::Refused).is_empty());
        assert_eq!(core.submitted(), 1);
        assert_eq!(durable(&mut core, 1), ["apply 1"]);
    }

    #[test]
    fn a_poisoned_store_fails_everything_and_stays_closed() {
        let mut core = core();
        for _ in 0..3 {
            arrived(&mut core);
        }
        let dead = Error::new(Code::Io, "fsync");
        let effects = core.apply(Event::Poisoned(dead));
        assert_eq!(words(effects), ["fail front io_error"; 3]);
        assert!(durable(&mut core, 2).is_empty());
        assert_eq!(arrived(&mut core), ["fail back io_error"]);
    }

    #[test]
    fn full_hot_rows_freeze_then_stall_then_resume() {
        let mut core = core();
        for round in 0..2 {
            assert_eq!(applied(&mut core, 100), ["freeze"], "round {round}");
            assert!(core.apply(Event::Froze).is_empty());
        }
        // Both places are taken: hot rows may fill up once more, then the table stalls.
        assert_eq!(arrived(&mut core), ["submit"]);
        assert_eq!(durable(&mut core, 1), ["apply 1"]);
        assert!(applied(&mut core, 120).is_empty());
        assert!(core.stalled());
        assert!(arrived(&mut core).is_empty());
        assert!(arrived(&mut core).is_empty());
        assert_eq!(core.waiting(), 2);
        assert_eq!(words(core.apply(Event::Flushed)), ["freeze", "submit", "submit"]);
        core.apply(Event::Froze);
        assert_eq!((core.waiting(), core.submitted(), core.frozen()), (0, 2, 2));
    }

    #[test]
    fn old_rows_freeze_by_age_and_only_then() {
        let mut core = core();
        assert!(applied(&mut core, 10).is_empty());
        assert_eq!(core.tick_at(), Some(Duration::from_secs(301)));
        assert!(core.apply(Event::Tick { now: Duration::from_secs(300) }).is_empty());
        let effects = core.apply(Event::Tick { now: Duration::from_secs(301) });
        assert_eq!(words(effects), ["freeze"]);
        core.apply(Event::Froze);
        assert_eq!(core.tick_at(), None);
    }

    #[test]
    fn in_a_crowded_table_only_flushes_by_age_wait() {
        let mut core = core();
        applied(&mut core, 10);
        assert!(core.crowd(true) && !core.crowd(true));
        assert_eq!(core.tick_at(), Some(Duration::from_secs(1201)));
        assert!(core.apply(Event::Tick { now: Duration::from_secs(1200) }).is_empty());
        assert_eq!(arrived(&mut core), ["submit"]);
        assert_eq!(applied(&mut core, 100), ["freeze"], "by size");
        core.apply(Event::Froze);
        applied(&mut core, 10);
        assert_eq!(words(core.apply(Event::FreezeAsked)), ["freeze"], "on demand");
        core.apply(Event::Froze);
        core.apply(Event::Flushed);
        applied(&mut core, 10);
        assert!(core.crowd(false));
        assert_eq!(words(core.apply(Event::Tick { now: Duration::from_secs(301) })), ["freeze"]);
    }

    #[test]
    fn pressure_freezes_whatever_there_is_but_never_nothing() {
        let mut core = core();
        assert!(core.apply(Event::FreezeAsked).is_empty());
        applied(&mut core, 1);
        assert_eq!(words(core.apply(Event::FreezeAsked)), ["freeze"]);
        core.apply(Event::Froze);
        applied(&mut core, 1);
        core.apply(Event::FreezeAsked);
        core.apply(Event::Froze);
        // No room: the wish is kept until a flush makes some.
        applied(&mut core, 1);
        assert!(core.apply(Event::FreezeAsked).is_empty());
        assert_eq!(words(core.apply(Event::Flushed)), ["freeze"]);
    }

    #[test]
    fn full_memory_turns_away_at_once_and_recovers() {
        let mut core = core();
        let effects = core.apply(Event::Arrived { memory_full: true });
        assert_eq!(words(effects), ["fail back busy"]);
        assert_eq!(arrived(&mut core), ["submit"]);
    }

    #[test]
    fn a_dropped_table_answers_everybody_and_stops() {
        let mut core = core();
        applied(&mut core, 100);
        core.apply(Event::Froze);
        applied(&mut core, 100);
        core.apply(Event::Froze);
        arrived(&mut core);
        applied(&mut core, 100);
        arrived(&mut core);
        let effects = words(core.apply(Event::Dropped));
        assert_eq!(effects, ["fail back table_not_found"]);
        assert_eq!(arrived(&mut core), ["fail back table_not_found"]);
        assert_eq!(durable(&mut core, 1), ["fail front table_not_found", "stop"]);
    }

    #[test]
    fn recovered_rows_age_from_the_start() {
        let core = Core::new("t".to_owned(), LIMITS, 5, 1, Duration::from_secs(9));
        assert_eq!(core.tick_at(), Some(Duration::from_secs(309)));
        assert_eq!(core.frozen(), 1);
    }
}
