//! The states of an alert, as Prometheus has them: a pure function from what is known of one
//! label set, an instant and what its rule found then, to what is known next.
//!
//! ```text
//! inactive ──holds──► pending ──held for FOR──► firing ──ceased for KEEP FIRING FOR──► resolved
//!     ▲                  │ ceased                  ▲ │ holds again                        │
//!     └──────────────────┘                         └─┘                            inactive ◄┘
//! ```
//!
//! With FOR of zero an alert fires at once. `resolved` is what an alert is called for a while
//! after it fired; for what follows it is inactive.

/// What an alert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its condition does not hold.
    Inactive,
    /// It holds, not long enough yet.
    Pending,
    /// It holds.
    Firing,
    /// It fired, and holds no more.
    Resolved,
}

impl State {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Inactive => "inactive",
            State::Pending => "pending",
            State::Firing => "firing",
            State::Resolved => "resolved",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<State> {
        [State::Inactive, State::Pending, State::Firing, State::Resolved]
            .into_iter()
            .find(|state| state.as_str() == word)
    }
}

/// An alert that is pending or firing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Active {
    /// Whether it fires; else it is pending.
    pub firing: bool,
    /// Since when its condition holds, in nanoseconds since 1970-01-01T00:00:00Z.
    pub since_ns: i64,
    /// Since when it fires; as `since_ns` while it is pending.
    pub fired_ns: i64,
    /// The first instant at which the condition of a firing alert did not hold.
    pub ceased_ns: Option<i64>,
}

/// What a rule found of a label set at an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its condition holds.
    Holds,
    /// It holds, and has for as long as it must: missing data, which has a time of its own.
    HoldsLong,
    /// It does not hold.
    Ceased,
}

/// The times of a rule, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a condition holds before its alert fires.
    pub hold_ns: i64,
    /// How long an alert goes on firing after the condition ceased to hold.
    pub keep_firing_ns: i64,
}

/// A change of an alert's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
}

/// What an alert is after an instant; `None` is inactive. An instant before the last one counts
/// as if no time had passed.
#[must_use]
pub fn step(
    before: Option<Active>,
    instant_ns: i64,
    found: Found,
    timing: Timing,
) -> (Option<Active>, Option<Change>) {
    match (before, found) {
        (None, Found::Ceased) => (None, None),
        (None, found) => begin(instant_ns, found, timing),
        (Some(active), Found::Ceased) => cease(active, instant_ns, timing),
        (Some(active), found) if !active.firing => {
            let held = instant_ns.saturating_sub(active.since_ns) >= timing.hold_ns;
            if held || found == Found::HoldsLong {
                let fired = Active { firing: true, fired_ns: instant_ns, ..active };
                return (Some(fired), changed(State::Pending, State::Firing));
            }
            (Some(active), None)
        }
        (Some(active), _) => (Some(Active { ceased_ns: None, ..active }), None),
    }
}

fn begin(instant_ns: i64, found: Found, timing: Timing) -> (Option<Active>, Option<Change>) {
    let firing = timing.hold_ns <= 0 || found == Found::HoldsLong;
    let to = if firing { State::Firing } else { State::Pending };
    let active = Active { firing, since_ns: instant_ns, fired_ns: instant_ns, ceased_ns: None };
    (Some(active), changed(State::Inactive, to))
}

fn cease(active: Active, instant_ns: i64, timing: Timing) -> (Option<Active>, Option<Change>) {
    if !active.firing {
        return (None, changed(State::Pending, State::Inactive));
    }
    let ceased = active.ceased_ns.unwrap_or(instant_ns);
    if instant_ns.saturating_sub(ceased) < timing.keep_firing_ns {
        return (Some(Active { ceased_ns: Some(ceased), ..active }), None);
    }
    (None, changed(State::Firing, State::Resolved))
}

fn changed(from: State, to: State) -> Option<Change> {
    Some(Change { from, to })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a rule over a line of instants, one a second: `+` holds, `-` does not, `!` is
    /// missing data that fires, a space is an instant without an evaluation. Gives the state
    /// after each.
    fn run(hold_ns: i64, keep_firing_ns: i64, line: &str) -> String {
        let (mut active, mut shown) = (None, State::Inactive);
        let mut states = String::new();
        for (instant, found) in line.chars().enumerate() {
            let found = match found {
                '+' => Found::Holds,
                '!' => Found::HoldsLong,
                '-' => Found::Ceased,
                _ => {
                    states.push(' ');
                    continue;
                }
            };
            let timing = Timing { hold_ns, keep_firing_ns };
            let (next, change) = step(active, i64::try_from(instant).unwrap(), found, timing);
            if let Some(Change { from, to }) = change {
                let before = if shown == State::Resolved { State::Inactive } else { shown };
                assert_eq!(from, before, "{line} at {instant}");
                assert_ne!(from, to);
                shown = to;
            }
            match shown {
                State::Inactive | State::Resolved => assert_eq!(next, None),
                State::Pending => assert!(!next.unwrap().firing),
                State::Firing => assert!(next.unwrap().firing),
            }
            active = next;
            states.push(shown.as_str().chars().next().unwrap());
        }
        states
    }

    #[test]
    fn states_follow_one_another_as_in_prometheus() {
        for (hold, keep, line, states) in [
            // Without FOR an alert fires at once and is resolved at once.
            (0, 0, "-++--+", "iffrrf"),
            // FOR counts from the first instant at which the condition held, and begins anew.
            (2, 0, "+++-", "ppfr"),
            (2, 0, "++-+++-", "ppippfr"),
            (2, 0, "+-+-", "pipi"),
            // An evaluation that did not happen takes nothing away.
            (2, 0, "+  +", "p  f"),
            (3, 0, "+ + +-", "p p fr"),
            // KEEP FIRING FOR counts from the first instant at which it ceased, and begins anew.
            (0, 2, "+---", "fffr"),
            (0, 2, "+--+---", "ffffffr"),
            (0, 3, "+- - ", "ff f "),
            (0, 3, "+- - -", "ff f r"),
            // A pending alert is not kept.
            (2, 9, "++-", "ppi"),
            (1, 2, "++---+", "pfffrp"),
            // Missing data has waited long enough by itself.
            (5, 0, "-!!-", "iffr"),
            (5, 0, "+!-", "pfr"),
        ] {
            assert_eq!(run(hold, keep, line), states, "FOR {hold} KEEP {keep}: {line}");
        }
    }

    #[test]
    fn times_are_those_of_the_instants() {
        let timing = Timing { hold_ns: 10, keep_firing_ns: 10 };
        let (active, _) = step(None, 100, Found::Holds, timing);
        let (active, _) = step(active, 112, Found::Holds, timing);
        let fires = Active { firing: true, since_ns: 100, fired_ns: 112, ceased_ns: None };
        assert_eq!(active, Some(fires));
        let (active, _) = step(active, 120, Found::Ceased, timing);
        assert_eq!(active, Some(Active { ceased_ns: Some(120), ..fires }));
        let (again, change) = step(active, 125, Found::Holds, timing);
        assert_eq!((again, change), (Some(fires), None));
    }

    #[test]
    fn a_clock_that_steps_back_changes_nothing_early() {
        let timing = Timing { hold_ns: 10, keep_firing_ns: 10 };
        let (active, _) = step(None, 100, Found::Holds, timing);
        assert_eq!(step(active, 50, Found::Holds, timing), (active, None));
        assert_eq!(step(active, i64::MIN, Found::Holds, timing), (active, None));
    }

    #[test]
    fn words_come_back() {
        for state in [State::Inactive, State::Pending, State::Firing, State::Resolved] {
            assert_eq!(State::from_word(state.as_str()), Some(state));
        }
        assert_eq!(State::from_word("asleep"), None);
    }
}
