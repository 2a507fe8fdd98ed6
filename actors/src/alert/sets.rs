//! The label sets of one rule: what the last row of each said, when that stops to count, and
//! what becomes of its alert. No clock and no I/O: the evaluator and the backtest run it alike.
//!
//! The newest row of a label set decides, by the time in the row; a row that comes late changes
//! nothing. At an instant of the grid the last row counts until it is stale, or for as long as
//! `NO DATA AFTER` says.

use hashbrown::HashMap;
use kymo_kernel::alert::{Missing, NoData};

use super::labels::Values;
use super::machine::{Active, Change, Found, State, Timing, step};

/// What of a rule decides about its label sets.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// FOR and KEEP FIRING FOR.
    pub timing: Timing,
    /// Nanoseconds after which a row no longer counts, where `no_data` says nothing.
    pub stale_ns: i64,
    /// What missing rows mean.
    pub no_data: Option<NoData>,
    /// Nanoseconds for which a resolved alert is remembered.
    pub resolved_ns: i64,
    /// Label sets at a time.
    pub most: usize,
}

/// A row of a rule's query.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The number of its label set within the rule.
    pub key: u64,
    /// Its time.
    pub time_ns: i64,
    /// Whether the rule's condition holds for it.
    pub holds: bool,
    /// Its value.
    pub value: Option<f64>,
}

/// One label set.
#[derive(Debug, Clone)]
pub struct Set {
    /// Its labels.
    pub values: Values,
    /// The time of its newest row.
    pub time_ns: i64,
    /// Whether the condition holds for that.
    pub holds: bool,
    /// The value of that; `None` where it has none or no longer counts.
    pub value: Option<f64>,
    /// Its alert.
    pub active: Option<Active>,
    /// When its alert was resolved, and since when it had fired, until that is forgotten.
    pub resolved: Option<(i64, i64)>,
    /// Who looks after its alert, and what they said.
    pub acked: Option<Box<str>>,
    /// Whether channels were told of its alert.
    pub told: bool,
    /// The number of its last transition.
    pub sequence: u64,
    /// Whether it is as it was before a restart, and nobody was told again.
    pub restored: bool,
}

impl Set {
    /// A set of which nothing is known.
    #[must_use]
    pub fn new(values: Values) -> Set {
        Set {
            values,
            time_ns: i64::MIN,
            holds: false,
            value: None,
            active: None,
            resolved: None,
            acked: None,
            told: false,
            sequence: 0,
            restored: false,
        }
    }

    /// What its alert is.
    #[must_use]
    pub fn state(&self) -> State {
        match self.active {
            Some(Active { firing: true, .. }) => State::Firing,
            Some(_) => State::Pending,
            None if self.resolved.is_some() => State::Resolved,
            None => State::Inactive,
        }
    }
}

/// A change of an alert's state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transition {
    /// The number of the label set within its rule.
    pub key: u64,
    /// What it was.
    pub from: State,
    /// What it is.
    pub to: State,
    /// The instant of the evaluation.
    pub at_ns: i64,
    /// The value that decided.
    pub value: Option<f64>,
}

/// There are as many label sets as a rule may have, and a row has another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany;

/// The label sets of a rule, by their numbers.
#[derive(Debug, Clone, Default)]
pub struct Sets {
    sets: HashMap<u64, Set>,
    /// The last instant; time does not go back.
    instant_ns: i64,
}

impl Sets {
    /// Takes a row at an instant; its label set is `values`, which is asked for where it is new.
    ///
    /// # Errors
    /// [`TooMany`]; the row is left out.
    pub fn row(
        &mut self,
        instant_ns: i64,
        row: Row,
        values: impl FnOnce() -> Values,
        terms: &Terms,
    ) -> Result<Option<Transition>, TooMany> {
        let instant_ns = self.advance(instant_ns);
        if !self.sets.contains_key(&row.key) {
            if self.sets.len() >= terms.most {
                return Err(TooMany);
            }
            self.sets.insert(row.key, Set::new(values()));
        }
        let Some(set) = self.sets.get_mut(&row.key) else { return Ok(None) };
        // The same time again is the same row, written anew.
        if row.time_ns < set.time_ns {
            return Ok(None);
        }
        (set.time_ns, set.holds, set.value) = (row.time_ns, row.holds, row.value);
        Ok(look(row.key, set, instant_ns, terms))
    }

    /// Looks at every label set at an instant of the grid; tells each change.
    pub fn tick(&mut self, instant_ns: i64, terms: &Terms, mut tell: impl FnMut(Transition)) {
        let instant_ns = self.advance(instant_ns);
        self.sets.retain(|key, set| {
            if let Some(transition) = look(*key, set, instant_ns, terms) {
                tell(transition);
            }
            if set.resolved.is_some_and(|(at, _)| instant_ns - at >= terms.resolved_ns) {
                set.resolved = None;
            }
            set.active.is_some() || set.resolved.is_some() || counts(set, instant_ns, terms)
        });
    }

    /// Ends every alert, as the rule is dropped.
    pub fn end(&mut self, instant_ns: i64, mut tell: impl FnMut(Transition)) {
        let at_ns = self.advance(instant_ns);
        let timing = Timing { hold_ns: 0, keep_firing_ns: 0 };
        for (key, set) in &mut self.sets {
            let change = step(set.active, at_ns, Found::Ceased, timing).1;
            if let Some(Change { from, to }) = change {
                set.resolved = set.active.map(|active| (at_ns, active.fired_ns));
                set.active = None;
                tell(Transition { key: *key, from, to, at_ns, value: set.value });
            }
        }
    }

    /// Puts a set back as it was before a restart.
    pub fn restore(&mut self, key: u64, set: Set) {
        self.sets.insert(key, Set { restored: true, ..set });
    }

    /// The set of a number.
    #[must_use]
    pub fn get(&self, key: u64) -> Option<&Set> {
        self.sets.get(&key)
    }

    /// The set of a number.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut Set> {
        self.sets.get_mut(&key)
    }

    /// All sets.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Set)> {
        self.sets.iter().map(|(key, set)| (*key, set))
    }

    fn advance(&mut self, instant_ns: i64) -> i64 {
        self.instant_ns = self.instant_ns.max(instant_ns);
        self.instant_ns
    }
}

/// How long ago the newest row of a set was. One from the future is as new as can be.
fn age(set: &Set, instant_ns: i64) -> i64 {
    instant_ns.saturating_sub(set.time_ns).max(0)
}

/// Whether a set that has no alert is still needed: for its newest row, or for its absence.
fn counts(set: &Set, instant_ns: i64, terms: &Terms) -> bool {
    match terms.no_data {
        None => age(set, instant_ns) <= terms.stale_ns,
        Some(NoData { means: Missing::Resolved, after_ns }) => age(set, instant_ns) <= after_ns,
        Some(NoData { means: Missing::Firing | Missing::Ignore, .. }) => true,
    }
}

fn look(key: u64, set: &mut Set, at_ns: i64, terms: &Terms) -> Option<Transition> {
    let after_ns = terms.no_data.map_or(terms.stale_ns, |no_data| no_data.after_ns);
    let missing = age(set, at_ns) > after_ns;
    let found = match terms.no_data.map_or(Missing::Resolved, |no_data| no_data.means) {
        Missing::Firing if missing => Found::HoldsLong,
        Missing::Resolved if missing => Found::Ceased,
        _ if set.holds => Found::Holds,
        _ => Found::Ceased,
    };
    if set.active.is_none() && found == Found::Ceased {
        return None;
    }
    if missing && found == Found::HoldsLong {
        set.value = None;
    }
    let before = set.active;
    let (after, change) = step(before, at_ns, found, terms.timing);
    set.active = after;
    let Change { from, to } = change?;
    if to == State::Resolved {
        set.resolved = before.map(|before| (at_ns, before.fired_ns));
    } else if after.is_some() {
        set.resolved = None;
    }
    Some(Transition { key, from, to, at_ns, value: set.value })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        timing: Timing { hold_ns: 0, keep_firing_ns: 0 },
        stale_ns: 10,
        no_data: None,
        resolved_ns: 20,
        most: 2,
    };

    fn row(key: u64, time_ns: i64, value: f64) -> Row {
        Row { key, time_ns, holds: value > 5.0, value: Some(value) }
    }

    fn values() -> Values {
        Box::new(["a".into()])
    }

    /// The transitions of a line of events, as `to@instant`.
    struct Run {
        sets: Sets,
        terms: Terms,
        told: Vec<String>,
    }

    impl Run {
        fn new(terms: Terms) -> Run {
            Run { sets: Sets::default(), terms, told: Vec::new() }
        }

        fn row(&mut self, instant: i64, row: Row) -> &mut Run {
            let found = self.sets.row(instant, row, values, &self.terms).unwrap();
            self.told.extend(found.map(|each| format!("{}@{}", each.to.as_str(), each.at_ns)));
            self
        }

        fn tick(&mut self, instant: i64) -> &mut Run {
            let told = &mut self.told;
            self.sets.tick(instant, &self.terms, |each| {
                told.push(format!("{}@{}", each.to.as_str(), each.at_ns));
            });
            self
        }

        fn told(&mut self) -> Vec<String> {
            std::mem::take(&mut self.told)
        }
    }

    #[test]
    fn the_newest_row_decides_until_it_is_stale() {
        let mut run = Run::new(TERMS);
        run.row(100, row(1, 100, 9.0)).row(101, row(1, 90, 1.0)).tick(105);
        assert_eq!(run.told(), ["firing@100"]);
        // The same row again, with another value.
        run.row(106, row(1, 100, 2.0)).row(107, row(1, 107, 9.0));
        assert_eq!(run.told(), ["resolved@106", "firing@107"]);
        run.tick(117);
        assert_eq!(run.told(), [""; 0]);
        run.tick(118);
        assert_eq!(run.told(), ["resolved@118"]);
        assert_eq!(run.sets.get(1).unwrap().state(), State::Resolved);
        run.tick(138);
        assert!(run.sets.get(1).is_none(), "forgotten");
    }

    #[test]
    fn missing_rows_mean_what_the_rule_says() {
        let means = |means| Terms { no_data: Some(NoData { after_ns: 30, means }), ..TERMS };
        let mut fires = Run::new(means(Missing::Firing));
        fires.row(100, row(1, 100, 1.0)).tick(130).tick(131).tick(500);
        assert_eq!(fires.told(), ["firing@131"]);
        assert_eq!(fires.sets.get(1).unwrap().value, None);
        fires.row(501, row(1, 501, 1.0));
        assert_eq!(fires.told(), ["resolved@501"]);
        let mut resolves = Run::new(means(Missing::Resolved));
        resolves.row(100, row(1, 100, 9.0)).tick(130).tick(131);
        assert_eq!(resolves.told(), ["firing@100", "resolved@131"]);
        let mut ignores = Run::new(means(Missing::Ignore));
        ignores.row(100, row(1, 100, 9.0)).tick(9999);
        assert_eq!(ignores.told(), ["firing@100"]);
        assert_eq!(ignores.sets.get(1).unwrap().state(), State::Firing);
    }

    #[test]
    fn time_does_not_go_back_and_the_future_is_not_stale() {
        let timing = Timing { hold_ns: 10, keep_firing_ns: 0 };
        let mut run = Run::new(Terms { timing, ..TERMS });
        run.row(100, row(1, 1000, 9.0)).row(50, row(1, 1001, 9.0)).tick(109).tick(110);
        assert_eq!(run.told(), ["pending@100", "firing@110"]);
    }

    #[test]
    fn label_sets_are_bounded_and_make_room_when_they_are_stale() {
        let mut run = Run::new(TERMS);
        run.row(100, row(1, 100, 1.0)).row(100, row(2, 100, 1.0));
        assert_eq!(run.sets.row(100, row(3, 100, 1.0), values, &TERMS), Err(TooMany));
        run.tick(111).row(112, row(3, 112, 9.0));
        assert_eq!(run.told(), ["firing@112"]);
    }

    #[test]
    fn a_dropped_rule_ends_its_alerts() {
        let timing = Timing { hold_ns: 0, keep_firing_ns: 1000 };
        let mut run = Run::new(Terms { timing, ..TERMS });
        run.row(100, row(1, 100, 9.0));
        let mut ended = Vec::new();
        run.sets.end(105, |each| ended.push((each.from, each.to, each.at_ns)));
        assert_eq!(ended, [(State::Firing, State::Resolved, 105)]);
    }
}
