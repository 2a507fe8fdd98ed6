//! What follows when alerts change their state: a number for each change, a row of the history, and
//! a notification unless the alert is silenced.

use kymo_kernel::message::{AlertStatus, Notification};
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error};

use super::Parts;
use super::board::{Rule, Silences, silenced};
use super::history::{Entry, Kept};
use super::labels;
use super::machine::State;
use super::outbox::{Item, Outbox};
use super::sets::{Set, Sets, TooMany, Transition};
use super::template;

/// The number of the newest transition, and what waits to be written and told.
pub(super) struct Transitions {
    pub(super) sequence: u64,
    pub(super) outbox: Outbox,
}

impl Transitions {
    /// Nothing to tell yet; the next transition is the one after `newest`.
    pub(super) fn new(parts: &Parts, newest: u64) -> Transitions {
        let (outlet, clock) = (parts.outlet.clone(), parts.env.clock.clone());
        let outbox = Outbox::new(parts.write.clone(), outlet, clock, newest);
        Transitions { sequence: newest, outbox }
    }

    /// Follows what came of a row of a rule.
    pub(super) fn row(
        &mut self,
        rule: &mut Rule,
        silences: &Silences,
        taken: Result<Option<Transition>, TooMany>,
    ) {
        match taken {
            Ok(None) => {}
            Ok(Some(transition)) => self.record(rule, silences, transition),
            Err(TooMany) => {
                let most = rule.terms.most;
                let text =
                    format!("the rule has more than {most} label sets: alerts.max_label_sets");
                failed(rule, &Error::new(Code::LimitReached, text));
            }
        }
    }

    /// Ends every alert of a rule and forgets its label sets.
    pub(super) fn end_all(&mut self, rule: &mut Rule, silences: &Silences, now: i64) {
        let mut ended = Vec::new();
        rule.sets.end(now, |transition| ended.push(transition));
        for transition in ended {
            self.record(rule, silences, transition);
        }
        rule.sets = Sets::default();
    }

    /// Tells the label sets of a rule what time it is.
    pub(super) fn tick(&mut self, rule: &mut Rule, silences: &Silences, instant: i64) {
        let mut transitions = Vec::new();
        rule.sets.tick(instant, &rule.terms, |transition| transitions.push(transition));
        for transition in transitions {
            self.record(rule, silences, transition);
        }
    }

    /// Numbers a transition and puts it into the outbox.
    fn record(&mut self, rule: &mut Rule, silences: &Silences, transition: Transition) {
        let Transition { key, from, to, at_ns, value } = transition;
        metrics().alerts.transitions.with_label_values(&[to.as_str()]).inc();
        self.sequence += 1;
        let Some(set) = rule.sets.get_mut(key) else { return };
        set.sequence = self.sequence;
        let was_told = set.told;
        if to != State::Firing {
            (set.told, set.acked) = (false, None);
        }
        let set = set.clone();
        let labels = rule.labels(&set);
        let silenced = silenced(silences, &rule.name, &labels, at_ns) && !was_told;
        let told = to == State::Firing && !silenced;
        if let Some(set) = rule.sets.get_mut(key) {
            set.told |= told;
        }
        let mut entry_set = set;
        entry_set.told |= told;
        let began = entry_set.active.map(|active| active.since_ns);
        let kept = Kept {
            fingerprint: labels::fingerprint(&labels),
            labels: labels::json(&labels),
            from,
            to,
            value,
            since_ns: began.or(entry_set.resolved.map(|(_, fired)| fired)).unwrap_or(at_ns),
            silenced,
            at_ns,
        };
        let status = match to {
            State::Firing => Some(AlertStatus::Firing),
            State::Resolved => Some(AlertStatus::Resolved),
            State::Inactive | State::Pending => None,
        };
        let notification =
            status.map(|status| notification(rule, &entry_set, status, silenced, false));
        let entry = Entry { rule: rule.name.clone(), key, set: entry_set, kept: Some(kept) };
        self.outbox.push(Item { entry, notification });
    }

    /// Tells of an alert without a transition: again after a restart, or late after a silence.
    pub(super) fn tell(
        &mut self,
        rule: &mut Rule,
        silences: &Silences,
        key: u64,
        status: AlertStatus,
        now: i64,
        repeated: bool,
    ) {
        let Some(set) = rule.sets.get(key) else { return };
        let silenced = silenced(silences, &rule.name, &rule.labels(set), now) && !set.told;
        let Some(set) = rule.sets.get_mut(key) else { return };
        set.told |= status == AlertStatus::Firing && !silenced;
        let set = set.clone();
        let notification = Some(notification(rule, &set, status, silenced, repeated));
        let entry = Entry { rule: rule.name.clone(), key, set, kept: None };
        self.outbox.push(Item { entry, notification });
    }
}

/// Counts that a rule could not be evaluated, and keeps why.
pub(super) fn failed(rule: &mut Rule, error: &Error) {
    metrics().alerts.failures.with_label_values(&[error.code().as_str()]).inc();
    rule.error = Some(error.message().to_owned());
}

fn notification(
    rule: &Rule,
    set: &Set,
    status: AlertStatus,
    silenced: bool,
    repeated: bool,
) -> Notification {
    let row = labels::of_row(&rule.names, &set.values);
    let labels = labels::of_alert(&rule.def, &row, set.value);
    let annotations = rule.def.annotations.iter();
    let annotations = annotations
        .map(|(name, text)| (name.clone(), template::render(text, &row, set.value)))
        .collect();
    let fired = set.active.map(|active| active.fired_ns);
    Notification {
        sequence: set.sequence,
        rule: rule.name.to_string(),
        fingerprint: labels::fingerprint(&labels),
        labels,
        annotations,
        status,
        value: set.value,
        starts_at_ns: fired.or(set.resolved.map(|(_, fired)| fired)).unwrap_or_default(),
        ends_at_ns: set.resolved.map(|(at, _)| at),
        channels: rule.def.channels.as_slice().into(),
        silenced,
        acked: set.acked.is_some(),
        repeated,
    }
}
