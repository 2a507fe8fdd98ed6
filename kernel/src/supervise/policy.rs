//! What follows an actor's panic, decided by a pure function.

use std::collections::VecDeque;
use std::time::Duration;

/// What to do when an actor panics. A normal end never leads to a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Nothing: it is gone, its ports answer `down`. For sessions: the connection closes.
    Never,
    /// The process must not go on: for owners of durable state, because after a panic inside
    /// a change nobody can vouch for what is in memory. Recovery decides.
    FailStop,
    /// A fresh one is made, after a pause that doubles from `first` to `max` with each panic
    /// within `within`. After `limit` panics within that time, `then` follows.
    Backoff {
        /// The first pause.
        first: Duration,
        /// The longest pause.
        max: Duration,
        /// How many panics are answered with a restart.
        limit: usize,
        /// The time over which panics are counted.
        within: Duration,
        /// What follows when there were more.
        then: Exhausted,
    },
}

impl Restart {
    /// For stateless actors of the request path: quickly back, and the process ends if that
    /// does not help: 10 panics within a minute.
    pub const STATELESS: Restart = Restart::Backoff {
        first: Duration::from_millis(10),
        max: Duration::from_secs(1),
        limit: 10,
        within: Duration::from_secs(60),
        then: Exhausted::Escalate,
    };

    /// For background work that can wait: 1 second to 5 minutes, and given up, visibly, after
    /// 20 panics within an hour.
    pub const BACKGROUND: Restart = Restart::Backoff {
        first: Duration::from_secs(1),
        max: Duration::from_secs(300),
        limit: 20,
        within: Duration::from_secs(3600),
        then: Exhausted::GiveUp,
    };
}

/// What follows when restarting did not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    /// The actor stays away; its ports answer `down`; the state is visible as `failed`.
    GiveUp,
    /// As for [`Restart::FailStop`].
    Escalate,
}

/// What the supervisor does about a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Make a fresh one after this pause.
    RestartAfter(Duration),
    /// Leave it.
    GiveUp,
    /// Stop the process.
    Escalate,
}

/// When an actor panicked lately.
#[derive(Debug, Default)]
pub(crate) struct History {
    panics: VecDeque<Duration>,
}

impl History {
    /// Enters a panic at `now` (monotonic) and decides what follows.
    pub(crate) fn decide(&mut self, restart: Restart, now: Duration) -> Decision {
        let Restart::Backoff { first, max, limit, within, then } = restart else {
            return match restart {
                Restart::FailStop => Decision::Escalate,
                _ => Decision::GiveUp,
            };
        };
        while self.panics.front().is_some_and(|at| now.saturating_sub(*at) > within) {
            self.panics.pop_front();
        }
        self.panics.push_back(now);
        if self.panics.len() > limit {
            return match then {
                Exhausted::GiveUp => Decision::GiveUp,
                Exhausted::Escalate => Decision::Escalate,
            };
        }
        let doublings = u32::try_from(self.panics.len() - 1).unwrap_or(u32::MAX).min(31);
        Decision::RestartAfter(first.saturating_mul(1 << doublings).min(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn backoff(then: Exhausted) -> Restart {
        Restart::Backoff { first: ms(10), max: ms(50), limit: 4, within: ms(1000), then }
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_end_at_the_limit() {
        let mut history = History::default();
        let policy = backoff(Exhausted::GiveUp);
        let decisions: Vec<_> = (0..5).map(|n| history.decide(policy, ms(n))).collect();
        let expected = [10, 20, 40, 50].map(|pause| Decision::RestartAfter(ms(pause)));
        assert_eq!(decisions[..4], expected);
        assert_eq!(decisions[4], Decision::GiveUp);
    }

    #[test]
    fn panics_are_forgotten_after_the_window() {
        let mut history = History::default();
        let policy = backoff(Exhausted::Escalate);
        for n in 0..4 {
            history.decide(policy, ms(n));
        }
        assert_eq!(history.decide(policy, ms(5000)), Decision::RestartAfter(ms(10)));
    }

    #[test]
    fn owners_of_state_escalate_at_once_and_sessions_never_return() {
        assert_eq!(History::default().decide(Restart::FailStop, ms(1)), Decision::Escalate);
        assert_eq!(History::default().decide(Restart::Never, ms(1)), Decision::GiveUp);
    }
}
