//! Rules at the instants of their grid: queries are run, and label sets are told the time.

use std::time::Duration;

use kymo_kernel::observe::metrics;
use kymo_kernel::pools::Pool;

use super::{Answered, Worker};
use crate::alert::board::Planning;
use crate::alert::facts::Facts;
use crate::alert::transitions::failed;
use crate::query::{Kind, PlannedRule, RuleQuery};

impl Worker {
    pub(super) fn evaluate_all(&mut self, every: i64, instant: i64) {
        let now = self.now();
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        let silences = rules.silences.clone();
        let mut count = 0;
        for (number, rule) in (0_u32..).zip(&mut rules.all) {
            let Some(rule) = rule.as_mut().filter(|rule| rule.every_ns == every) else { continue };
            if !rule.runs() || !rule.ready {
                continue;
            }
            if matches!(&rule.plan, Planning::Ready(PlannedRule { kind: Kind::Query(_), .. })) {
                if std::mem::replace(&mut rule.evaluating, true) {
                    metrics().alerts.missed.inc();
                } else {
                    self.due.push_back((number, instant));
                }
                continue;
            }
            count += 1;
            rule.evaluated_ns = Some(instant);
            self.told.tick(rule, &silences, instant);
        }
        drop(rules);
        if count > 0 {
            metrics().alerts.evaluations.with_label_values(&["grid"]).inc_by(count);
            let lag = now.saturating_sub(instant) as f64 / 1e9;
            metrics().alerts.lag_seconds.with_label_values(&["grid"]).observe(lag);
        }
    }

    pub(super) fn start_evaluation(&mut self, number: u32, instant: i64) {
        let query = {
            let mut rules = self.parts.board.lock();
            let Some(rule) = rules.get_mut(number) else { return };
            match &rule.plan {
                Planning::Ready(PlannedRule { kind: Kind::Query(query), .. }) if rule.runs() => {
                    query.clone()
                }
                _ => {
                    rule.evaluating = false;
                    return;
                }
            }
        };
        let pools = self.parts.pools.clone();
        let work = async move { RuleQuery::evaluate(&query, instant).await };
        let task = pools.spawn(Pool::Query, "alert rule", work);
        self.evaluating.push(Box::pin(async move {
            let answer = match task.await {
                Ok(answer) => answer,
                Err(error) => Err(error),
            };
            (number, instant, answer)
        }));
    }

    pub(super) fn answered(&mut self, (number, instant, answer): Answered) {
        let now = self.now();
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        let silences = rules.silences.clone();
        let Some(rule) = rules.get_mut(number) else { return };
        rule.evaluating = false;
        let Planning::Ready(plan) = &rule.plan else { return };
        if rule.def.paused {
            return;
        }
        metrics().alerts.evaluations.with_label_values(&["grid"]).inc();
        let lag = u64::try_from(now.saturating_sub(instant)).unwrap_or_default();
        rule.lag = Duration::from_nanos(lag);
        let seconds = rule.lag.as_secs_f64();
        metrics().alerts.lag_seconds.with_label_values(&["grid"]).observe(seconds);
        rule.evaluated_ns = Some(instant);
        let layout = plan.layout.clone();
        let facts = answer.and_then(|rows| Facts::of(&layout, &rows, None));
        let facts = match facts {
            Ok(facts) => facts,
            // What a rule cannot tell leaves its alerts as they are.
            Err(error) => return failed(rule, &error),
        };
        rule.error = None;
        for (row, at) in facts.distinct(instant) {
            let taken = rule.sets.row(instant, row, || facts.values(at), &rule.terms);
            self.told.row(rule, &silences, taken);
        }
        self.told.tick(rule, &silences, instant);
    }
}
