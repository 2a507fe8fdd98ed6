//! What is known of rules and their alerts at this moment: the worker writes it, `system.alerts`
//! shows it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use kymo_config::settings::Alerts;
use kymo_kernel::alert::{AlertDef, SilenceDef};
use kymo_kernel::message::Labels;
use parking_lot::{Mutex, MutexGuard};

use super::facts::Names;
use super::history::hex;
use super::labels;
use super::machine::Timing;
use super::sets::{Set, Sets, Terms};
use crate::query::{AlertRow, PlannedRule};

/// All rules; shared by the worker and whoever looks.
#[derive(Default)]
pub struct Board(Mutex<Rules>);

/// The rules by their numbers, which are given anew at each start.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) all: Vec<Option<Rule>>,
    pub(super) names: HashMap<Arc<str>, u32>,
    pub(super) silences: Silences,
    /// How many kinds of rules of class rows there are.
    pub(super) shapes: usize,
}

/// A rule as it is evaluated.
pub(super) struct Rule {
    pub(super) name: Arc<str>,
    pub(super) def: Arc<AlertDef>,
    pub(super) terms: Terms,
    pub(super) every_ns: i64,
    pub(super) plan: Planning,
    /// The names of its labels; those of the last plan.
    pub(super) names: Names,
    pub(super) sets: Sets,
    /// Whether the newest rows of its table were looked at, so that their absence means something.
    pub(super) ready: bool,
    /// Whether these rows are being read.
    pub(super) reading: bool,
    /// Whether its query runs or waits to.
    pub(super) evaluating: bool,
    pub(super) evaluated_ns: Option<i64>,
    pub(super) lag: Duration,
    pub(super) error: Option<String>,
}

/// How far a rule is with its plan.
#[derive(Clone)]
pub(super) enum Planning {
    /// It waits for one.
    Wanted,
    /// It has one.
    Ready(PlannedRule),
    /// It cannot be planned; the reason is the rule's error. Tried again when definitions change.
    Failed,
}

impl Rule {
    pub(super) fn new(def: Arc<AlertDef>, settings: &Alerts) -> Rule {
        Rule {
            name: def.name.as_str().into(),
            terms: terms(&def, settings),
            every_ns: every_ns(&def, settings),
            plan: Planning::Wanted,
            names: Arc::new([]),
            sets: Sets::default(),
            ready: false,
            reading: false,
            evaluating: false,
            evaluated_ns: None,
            lag: Duration::ZERO,
            error: None,
            def,
        }
    }

    /// Takes another definition of the same rule. It has to be planned anew.
    pub(super) fn redefine(&mut self, def: &Arc<AlertDef>, settings: &Alerts) {
        self.terms = terms(def, settings);
        self.every_ns = every_ns(def, settings);
        self.def = def.clone();
        self.want_plan();
    }

    /// Has it planned anew, and what was written meanwhile read.
    pub(super) fn want_plan(&mut self) {
        self.plan = Planning::Wanted;
        (self.ready, self.reading) = (false, false);
    }

    /// Whether its alerts would have other labels with the columns of another plan.
    pub(super) fn renamed_by(&self, names: &[String]) -> bool {
        // Of alerts from before a restart only the number of labels is known.
        let other = !self.names.is_empty() && *self.names != *names;
        other || self.sets.iter().any(|(_, set)| set.values.len() != names.len())
    }

    /// Whether it is evaluated.
    pub(super) fn runs(&self) -> bool {
        !self.def.paused && matches!(self.plan, Planning::Ready(_))
    }

    /// The labels of the row and those of the alert.
    pub(super) fn labels(&self, set: &Set) -> Labels {
        let row = labels::of_row(&self.names, &set.values);
        labels::of_alert(&self.def, &row, set.value)
    }
}

/// What of a rule decides about its label sets.
pub(super) fn terms(def: &AlertDef, settings: &Alerts) -> Terms {
    let nanos = |millis: u64| i64::try_from(millis.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    Terms {
        timing: Timing { hold_ns: def.hold_ns, keep_firing_ns: def.keep_firing_ns },
        stale_ns: nanos(settings.staleness_ms),
        no_data: def.no_data,
        resolved_ns: nanos(settings.resolved_ms),
        most: settings.max_label_sets,
    }
}

/// Nanoseconds between two evaluations of a rule.
fn every_ns(def: &AlertDef, settings: &Alerts) -> i64 {
    let millis = settings.evaluation_ms;
    let usual = || i64::try_from(millis.saturating_mul(1_000_000)).unwrap_or(i64::MAX);
    def.every_ns.unwrap_or_else(usual).max(1)
}

/// Silences by their numbers.
pub(super) type Silences = Arc<BTreeMap<u64, Arc<SilenceDef>>>;

/// Whether a silence covers an alert at an instant.
pub(super) fn silenced(silences: &Silences, rule: &str, labels: &Labels, instant_ns: i64) -> bool {
    let covers = |silence: &Arc<SilenceDef>| {
        silence.covers(instant_ns) && silence.matcher.matches(rule, labels)
    };
    silences.values().any(covers)
}

impl Rules {
    /// The rule of a number.
    pub(super) fn get(&self, rule: u32) -> Option<&Rule> {
        self.all.get(rule as usize)?.as_ref()
    }

    /// The rule of a number.
    pub(super) fn get_mut(&mut self, rule: u32) -> Option<&mut Rule> {
        self.all.get_mut(rule as usize)?.as_mut()
    }

    /// All rules with their numbers.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Rule)> {
        (0..).zip(&self.all).filter_map(|(number, rule)| Some((number, rule.as_ref()?)))
    }

    /// Gives a rule a number.
    pub(super) fn add(&mut self, rule: Rule) -> u32 {
        // Numbers of dropped rules stay unused: work under way may still speak of them.
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.names.insert(rule.name.clone(), number);
        self.all.push(Some(rule));
        number
    }

    /// Takes a rule away.
    pub(super) fn remove(&mut self, name: &str) -> Option<Rule> {
        let number = self.names.remove(name)?;
        self.all.get_mut(number as usize)?.take()
    }
}

impl Board {
    pub(super) fn lock(&self) -> MutexGuard<'_, Rules> {
        self.0.lock()
    }

    /// How many kinds of rules of class rows there are: what a commit costs.
    #[must_use]
    pub fn shapes(&self) -> usize {
        self.lock().shapes
    }

    /// The rows of `system.alerts` at an instant.
    #[must_use]
    pub fn rows(&self, instant_ns: i64) -> Vec<AlertRow> {
        let rules = self.lock();
        let mut rows = Vec::new();
        for (_, rule) in rules.iter() {
            let shown = rows.len();
            for (_, set) in rule.sets.iter() {
                let active = set.active.is_some() || set.resolved.is_some();
                rows.extend(active.then(|| row(&rules, rule, Some(set), instant_ns)));
            }
            // A rule without alerts is there all the same.
            if rows.len() == shown {
                rows.push(row(&rules, rule, None, instant_ns));
            }
        }
        rows
    }
}

fn row(rules: &Rules, rule: &Rule, set: Option<&Set>, instant_ns: i64) -> AlertRow {
    let labels = set.map(|set| rule.labels(set));
    let status = match &rule.plan {
        _ if rule.def.paused => "paused",
        Planning::Ready(_) if !rule.ready => "starting",
        Planning::Ready(_) => "active",
        Planning::Wanted => "starting",
        Planning::Failed => "paused",
    };
    let class = match &rule.plan {
        Planning::Ready(plan) => Some(plan.kind.class().to_owned()),
        _ => None,
    };
    AlertRow {
        rule: rule.def.name.clone(),
        status: status.to_owned(),
        class,
        state: set.map_or("inactive", |set| set.state().as_str()).to_owned(),
        fingerprint: labels.as_ref().map(|labels| hex(labels::fingerprint(labels))),
        labels: labels.as_ref().map(labels::json),
        value: set.and_then(|set| set.value),
        since: set.and_then(|set| {
            let active = set.active.map(|active| active.since_ns);
            active.or(set.resolved.map(|(at, _)| at))
        }),
        acked: set.and_then(|set| set.acked.as_deref()).map(str::to_owned),
        silenced: labels
            .is_some_and(|labels| silenced(&rules.silences, &rule.name, &labels, instant_ns)),
        evaluated: rule.evaluated_ns,
        lag_ms: rule.lag.as_secs_f64() * 1000.0,
        error: rule.error.clone(),
        origin: rule.def.origin.as_ref().map(ToString::to_string),
    }
}
