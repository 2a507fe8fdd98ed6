//! Marks that show whether an actor gets on, and the rule that calls it stuck.
//!
//! "Stuck is also dead": a panic is loud, an endless turn is not. The host marks the start
//! and the end of every turn; a watchdog thread, which no stuck actor can hold up, compares
//! marks. The idea is quickwit's; turns are measured from outside like Influx's watchdog does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::Histogram;

use crate::env::Clock;

/// An actor's marks; written by its host, read by the watchdog.
pub(crate) struct Progress {
    clock: Arc<dyn Clock>,
    turn_seconds: Histogram,
    /// Grows with every sign of life.
    mark: AtomicU64,
    /// Start of the running turn, in nanoseconds of the monotonic clock plus one; 0 between
    /// turns.
    busy_since: AtomicU64,
}

impl Progress {
    pub(crate) fn new(clock: Arc<dyn Clock>, turn_seconds: Histogram) -> Self {
        Progress { clock, turn_seconds, mark: AtomicU64::new(0), busy_since: AtomicU64::new(0) }
    }

    /// A turn begins.
    pub(crate) fn enter(&self) -> Duration {
        let now = self.clock.monotonic();
        let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX - 1);
        self.busy_since.store(nanos + 1, Ordering::Relaxed);
        self.mark();
        now
    }

    /// The turn that began at `began` is over.
    pub(crate) fn leave(&self, began: Duration) {
        self.busy_since.store(0, Ordering::Relaxed);
        self.mark();
        let took = self.clock.monotonic().saturating_sub(began);
        self.turn_seconds.observe(took.as_secs_f64());
    }

    /// A sign of life within a turn.
    pub(crate) fn mark(&self) {
        self.mark.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    pub(crate) fn look(&self) -> Look {
        let busy_since = self.busy_since.load(Ordering::Relaxed);
        Look { mark: self.mark.load(Ordering::Relaxed), in_turn: busy_since != 0 }
    }
}

/// What the watchdog sees of an actor at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub mark: u64,
    pub in_turn: bool,
}

/// Why an actor counts as stuck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stuck {
    /// One turn has lasted too long without a sign of life.
    Turn(Duration),
    /// A message has waited too long while the actor did nothing at all.
    Queue(Duration),
}

/// What the watchdog remembers of one actor between two looks.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen: Option<(Look, Duration)>,
    stuck: bool,
}

/// A change that the watchdog reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Stuck(Stuck),
    Recovered,
}

impl Watch {
    /// Compares with the look before. `oldest` is the age of the oldest unanswered message,
    /// or `None` for an actor that may leave messages waiting on purpose. Reports each episode
    /// once.
    pub(crate) fn compare(
        &mut self,
        look: Look,
        oldest: Option<Duration>,
        now: Duration,
        limit: Duration,
    ) -> Option<Change> {
        let since = match self.seen {
            Some((seen, since)) if seen == look => since,
            _ => {
                self.seen = Some((look, now));
                return std::mem::take(&mut self.stuck).then_some(Change::Recovered);
            }
        };
        let still = now.saturating_sub(since);
        let idle_but_owing = oldest.filter(|age| *age > limit);
        let stuck = match (look.in_turn, idle_but_owing) {
            (true, _) => Stuck::Turn(still),
            (false, Some(age)) => Stuck::Queue(age),
            (false, None) => return None,
        };
        if still <= limit || std::mem::replace(&mut self.stuck, true) {
            return None;
        }
        Some(Change::Stuck(stuck))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn at(watch: &mut Watch, second: u64, mark: u64, in_turn: bool, age: u64) -> Option<Change> {
        let (now, age) = (Duration::from_secs(second), Duration::from_secs(age));
        watch.compare(Look { mark, in_turn }, Some(age), now, LIMIT)
    }

    #[test]
    fn an_endless_turn_is_reported_once_and_its_end_too() {
        let mut watch = Watch::default();
        assert_eq!(at(&mut watch, 0, 1, true, 0), None);
        assert_eq!(at(&mut watch, 5, 1, true, 0), None);
        let long = Duration::from_secs(6);
        assert_eq!(at(&mut watch, 6, 1, true, 0), Some(Change::Stuck(Stuck::Turn(long))));
        assert_eq!(at(&mut watch, 60, 1, true, 0), None);
        assert_eq!(at(&mut watch, 61, 2, false, 0), Some(Change::Recovered));
        assert_eq!(at(&mut watch, 62, 2, false, 0), None);
    }

    #[test]
    fn a_forgotten_message_is_reported_but_idleness_is_not() {
        let mut watch = Watch::default();
        for second in 0..100 {
            assert_eq!(at(&mut watch, second, 1, false, 0), None);
        }
        let age = Duration::from_secs(6);
        assert_eq!(at(&mut watch, 100, 1, false, 6), Some(Change::Stuck(Stuck::Queue(age))));
    }

    #[test]
    fn a_long_turn_that_marks_progress_is_fine() {
        let mut watch = Watch::default();
        for second in 0..100 {
            assert_eq!(at(&mut watch, second, second, true, second), None);
        }
    }
}
