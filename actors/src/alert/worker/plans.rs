//! The rules that the metadata has, and their plans.

use std::collections::BTreeMap;
use std::sync::Arc;

use kymo_kernel::alert::AlertDef;
use kymo_kernel::message::AlertStatus;
use kymo_kernel::observe::metrics;
use kymo_kernel::storage::meta::Snapshot;
use tracing::warn;

use super::{Planned, Worker, millis};
use crate::alert::board::{Planning, Rule, Rules};
use crate::alert::machine::State;
use crate::query::{Kind, PlanRule};

impl Worker {
    /// Makes the rules those of the metadata.
    pub(super) fn follow(&mut self, catalog: &Arc<Snapshot>) {
        self.followed = catalog.version;
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        rules.silences = catalog.silences.clone();
        let gone: Vec<Arc<str>> = rules
            .names
            .keys()
            .filter(|name| !catalog.alerts.contains_key(&***name))
            .cloned()
            .collect();
        for name in gone {
            self.drop_rule(&mut rules, &name);
        }
        for def in catalog.alerts.values() {
            self.follow_rule(&mut rules, def);
        }
        let calls_changed = self.calls_changed(catalog);
        if calls_changed || !Arc::ptr_eq(&self.tables, &catalog.names) {
            self.tables = catalog.names.clone();
            self.replan(&mut rules, catalog, calls_changed);
            self.parts.files.changed();
        }
        let mut grid = BTreeMap::new();
        let now = self.now();
        for (_, rule) in rules.iter() {
            let next =
                now.div_euclid(rule.every_ns).saturating_add(1).saturating_mul(rule.every_ns);
            let known = self.grid.get(&rule.every_ns).copied();
            grid.entry(rule.every_ns).or_insert(known.unwrap_or(next));
        }
        self.grid = grid;
        count_rules(&rules);
    }

    fn follow_rule(&mut self, rules: &mut Rules, def: &Arc<AlertDef>) {
        let (now, silences, settings) =
            (self.now(), rules.silences.clone(), self.parts.settings.clone());
        let Some(number) = rules.names.get(def.name.as_str()).copied() else {
            let number = rules.add(Rule::new(def.clone(), self.settings()));
            self.to_plan.push_back(number);
            return;
        };
        let Some(rule) = rules.get_mut(number) else { return };
        if Arc::ptr_eq(&rule.def, def) || rule.def.revision == def.revision {
            rule.def = def.clone();
            return;
        }
        // Alerts that a change makes others end under the labels and for the channels that they
        // began with.
        if rule.def.renames(def) {
            self.told.end_all(rule, &silences, now);
        }
        rule.redefine(def, &settings);
        self.to_plan.push_back(number);
        self.regroup = true;
    }

    fn drop_rule(&mut self, rules: &mut Rules, name: &str) {
        let Some(mut rule) = rules.remove(name) else { return };
        self.regroup = true;
        let now = self.now();
        self.told.end_all(&mut rule, &rules.silences, now);
    }

    /// Whether anything about plugins is not as it was.
    pub(super) fn plugins_changed(&self) -> bool {
        match (&self.plugins, &self.parts.plugins) {
            (Some(known), Some(host)) => !Arc::ptr_eq(known, &host.registry().snapshot()),
            _ => false,
        }
    }

    /// Whether calls of plugins' functions may mean something else than they did.
    fn calls_changed(&mut self, catalog: &Snapshot) -> bool {
        let plugins = self.parts.plugins.as_ref().map(|host| host.registry().snapshot());
        let same = match (&self.plugins, &plugins) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            _ => false,
        };
        let same = same && Arc::ptr_eq(&self.functions, &catalog.functions);
        (self.plugins, self.functions) = (plugins, catalog.functions.clone());
        !same
    }

    /// Plans rules again whose tables are not what they were, or whose calls may not be, and
    /// those that had no plan.
    fn replan(&mut self, rules: &mut Rules, catalog: &Snapshot, calls_changed: bool) {
        for number in 0..u32::try_from(rules.all.len()).unwrap_or(u32::MAX) {
            let Some(rule) = rules.get_mut(number) else { continue };
            let again = match &rule.plan {
                Planning::Wanted => false,
                Planning::Failed => true,
                Planning::Ready(plan) if plan.lent && calls_changed => true,
                Planning::Ready(plan) => plan
                    .tables
                    .iter()
                    .any(|(name, id)| catalog.table(name).is_none_or(|table| table.def.id != *id)),
            };
            if again {
                rule.want_plan();
                self.regroup = true;
                self.to_plan.push_back(number);
            }
        }
    }

    pub(super) fn start_planning(&mut self, number: u32) {
        let def = self.parts.board.lock().get(number).map(|rule| rule.def.clone());
        let Some(def) = def else { return };
        let (planner, revision) = (self.planner.clone(), def.revision);
        self.planning
            .push(Box::pin(async move { (number, revision, planner.call(PlanRule(def)).await) }));
    }

    pub(super) fn planned(&mut self, (number, revision, outcome): Planned) {
        let now = self.now();
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        let silences = rules.silences.clone();
        let Some(rule) = rules.get_mut(number).filter(|rule| rule.def.revision == revision) else {
            return;
        };
        match outcome {
            Ok(plan) => {
                // The rows' labels have other names now: these alerts are others.
                if rule.renamed_by(&plan.layout.names) {
                    self.told.end_all(rule, &silences, now);
                }
                rule.names = plan.layout.names.as_slice().into();
                rule.terms.stale_ns = match &plan.kind {
                    Kind::Rows(..) => millis(self.settings().staleness_ms),
                    // What a query does not return is not there.
                    Kind::Query(_) => 0,
                };
                let rows = matches!(plan.kind, Kind::Rows(..));
                self.ungrouped += 1;
                (rule.ready, self.regroup) = (!rows, self.regroup || rows);
                rule.plan = Planning::Ready(plan);
                rule.error = None;
                self.tell_again(&mut rules, number);
            }
            Err(error) => {
                let name = &rule.name;
                warn!(alert = %name, %error, "alert rule is paused: it cannot be planned");
                metrics().alerts.failures.with_label_values(&[error.code().as_str()]).inc();
                (rule.plan, rule.error) = (Planning::Failed, Some(error.message().to_owned()));
            }
        }
        count_rules(&rules);
    }

    /// After a restart: says again what fires and what was resolved lately.
    fn tell_again(&mut self, rules: &mut Rules, number: u32) {
        let silences = rules.silences.clone();
        let now = self.now();
        let Some(rule) = rules.get_mut(number).filter(|rule| !rule.def.paused) else { return };
        let restored: Vec<u64> = rule
            .sets
            .iter()
            .filter(|(_, set)| {
                set.restored && matches!(set.state(), State::Firing | State::Resolved)
            })
            .map(|(key, _)| key)
            .collect();
        for key in restored {
            let Some(set) = rule.sets.get_mut(key) else { continue };
            set.restored = false;
            let status = match set.active {
                Some(_) => AlertStatus::Firing,
                None => AlertStatus::Resolved,
            };
            self.told.tell(rule, &silences, key, status, now, true);
        }
    }
}

fn count_rules(rules: &Rules) {
    let [mut active, mut paused, mut failed] = [0, 0, 0];
    for (_, rule) in rules.iter() {
        match rule.plan {
            _ if rule.def.paused => paused += 1,
            Planning::Failed => failed += 1,
            Planning::Ready(_) | Planning::Wanted => active += 1,
        }
    }
    for (state, count) in [("active", active), ("paused", paused), ("failed", failed)] {
        metrics().alerts.rules.with_label_values(&[state]).set(count);
    }
}
