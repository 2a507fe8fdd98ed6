//! Rules over rows as they come: evaluated in groups on each commit.

use std::sync::Arc;

use kymo_kernel::Result;
use kymo_kernel::ids::TableId;
use kymo_kernel::message::Committed;
use kymo_kernel::observe::metrics;
use tracing::warn;

use super::{CaughtUp, Worker};
use crate::alert::board::Planning;
use crate::alert::groups::{Group, Groups, Member};
use crate::alert::sets::Terms;
use crate::alert::stored;
use crate::alert::transitions::failed;
use crate::feed::{FeedEvent, Subscription, TableFilter};
use crate::query::Kind;

/// Commits that are evaluated before the worker looks at anything else.
const COMMITS: usize = 64;

impl Worker {
    /// Puts rules of class rows together anew, and has the newest rows read for those that are
    /// not ready.
    pub(super) fn regroup(&mut self) -> Result<()> {
        (self.regroup, self.ungrouped) = (false, 0);
        let (mut members, mut fresh) = (Vec::new(), Vec::new());
        for (number, rule) in self.parts.board.lock().iter().filter(|(_, rule)| rule.runs()) {
            let Planning::Ready(plan) = &rule.plan else { continue };
            let Kind::Rows(shape, own) = &plan.kind else { continue };
            let (shape, layout, own) = (shape.clone(), plan.layout.clone(), own.clone());
            if !rule.ready && !rule.reading {
                fresh.push((shape.table(), number));
            }
            members.push(Member { rule: number, shape, layout, own });
        }
        self.groups = Groups::of(members)?;
        self.parts.board.lock().shapes = self.groups.len();
        metrics().alerts.shapes.set(i64::try_from(self.groups.len()).unwrap_or(i64::MAX));
        if self.groups.is_empty() {
            self.feed = None;
        } else if self.feed.is_none() {
            let bytes = usize::try_from(self.settings().buffer_bytes).unwrap_or(usize::MAX);
            self.feed = Some(self.parts.hub.subscribe(TableFilter::All, bytes));
        }
        fresh.sort_unstable();
        for of_table in fresh.chunk_by(|one, other| one.0 == other.0) {
            let Some((table, _)) = of_table.first() else { continue };
            let rules = of_table.iter().map(|(_, number)| *number).collect();
            self.start_reading(*table, Some(rules));
        }
        Ok(())
    }

    /// Reads the newest rows of a table for some of its rules, or for all. Whoever calls this
    /// follows the feed already, so that no commit falls between.
    fn start_reading(&mut self, table: TableId, rules: Option<Vec<u32>>) {
        let Some(version) = self.parts.store.table(table).map(|cell| cell.load()) else { return };
        let newest = version.time().map_or(i64::MAX, |time| time.last);
        let wanted = |group: &Group| -> Vec<u32> {
            let all = group.rules().iter().copied();
            all.filter(|rule| rules.as_ref().is_none_or(|rules| rules.binary_search(rule).is_ok()))
                .collect()
        };
        for group in self.groups.table(table) {
            let mut numbers = wanted(group);
            numbers.sort_unstable();
            if numbers.is_empty() {
                continue;
            }
            let horizon = self.horizon(&numbers);
            let since = newest.min(self.now()).saturating_sub(horizon);
            let mut board = self.parts.board.lock();
            for number in &numbers {
                if let Some(rule) = board.get_mut(*number) {
                    rule.reading = true;
                }
            }
            drop(board);
            let (group, version, pools) =
                (group.clone(), version.clone(), self.parts.pools.clone());
            self.reading.push(Box::pin(async move {
                let chosen = numbers.clone();
                let job = pools.foreground("newest rows for alerts", move || {
                    stored::newest(
                        &version,
                        &group,
                        |rule| chosen.binary_search(&rule).is_ok(),
                        since,
                    )
                });
                let found = match job.await {
                    Ok(found) => found,
                    Err(error) => Err(error),
                };
                (numbers, found)
            }));
        }
    }

    /// How old a row may be and still count for one of these rules.
    fn horizon(&self, numbers: &[u32]) -> i64 {
        let rules = self.parts.board.lock();
        let ages = numbers.iter().filter_map(|number| rules.get(*number)).map(|rule| {
            let Terms { stale_ns, no_data, .. } = rule.terms;
            no_data.map_or(stale_ns, |no_data| no_data.after_ns.max(stale_ns))
        });
        ages.max().unwrap_or_default()
    }

    pub(super) fn caught_up(&mut self, (numbers, found): CaughtUp) {
        let now = self.now();
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        let silences = rules.silences.clone();
        for number in &numbers {
            if let Some(rule) = rules.get_mut(*number) {
                rule.reading = false;
            }
        }
        let (newest, failures) = match found {
            Ok(found) => found,
            // Their alerts stay as they are until the next look, which tries again.
            Err(error) => {
                warn!(%error, "the newest rows could not be read for alert rules");
                for number in &numbers {
                    if let Some(rule) = rules.get_mut(*number) {
                        rule.ready = false;
                    }
                }
                self.unread = true;
                return;
            }
        };
        for ((number, _), (row, values)) in newest {
            let Some(rule) = rules.get_mut(number).filter(|rule| rule.runs()) else { continue };
            let taken = rule.sets.row(now, row, || values, &rule.terms);
            self.told.row(rule, &silences, taken);
        }
        for (number, error) in failures {
            if let Some(rule) = rules.get_mut(number) {
                failed(rule, &error);
            }
        }
        for number in numbers {
            if let Some(rule) = rules.get_mut(number) {
                rule.ready = true;
                rule.evaluated_ns = Some(now);
            }
        }
    }

    pub(super) fn follow_feed(&mut self, event: Option<FeedEvent>) -> Result<()> {
        let Some(first) = event else {
            // The system stops; orders end, too.
            self.feed = None;
            return Ok(());
        };
        let mut commits: Vec<Arc<Committed>> = Vec::new();
        let mut lost = Vec::new();
        let mut next = Some(first);
        while let Some(event) = next.take() {
            match event {
                FeedEvent::Committed(rows) => {
                    if !self.groups.table(rows.table.id).is_empty() {
                        commits.push(rows);
                    }
                }
                FeedEvent::Lagged { table, .. } => lost.push(table),
            }
            if commits.len() < COMMITS {
                next = self.feed.as_mut().and_then(Subscription::try_recv);
            }
        }
        for commit in &commits {
            self.commit(commit)?;
        }
        lost.sort_unstable();
        lost.dedup();
        for table in lost {
            self.start_reading(table, None);
        }
        Ok(())
    }

    /// Evaluates the rows of a commit.
    fn commit(&mut self, commit: &Committed) -> Result<()> {
        let board = self.parts.board.clone();
        for group in self.groups.table(commit.table.id) {
            let (evaluated, failures) = group.run(&commit.batch)?;
            let now = self.now();
            let lag = self.parts.env.clock.monotonic().saturating_sub(commit.at);
            let mut rules = board.lock();
            let silences = rules.silences.clone();
            let mut count = 0;
            for each in &evaluated {
                for (at, number) in each.rules.iter().enumerate() {
                    let Some(rule) = rules.get_mut(*number).filter(|rule| rule.runs()) else {
                        continue;
                    };
                    count += 1;
                    (rule.evaluated_ns, rule.lag, rule.error) = (Some(now), lag, None);
                    let row = each.facts.row(at, now);
                    let taken = rule.sets.row(now, row, || each.facts.values(at), &rule.terms);
                    self.told.row(rule, &silences, taken);
                }
            }
            for (number, error) in failures {
                if let Some(rule) = rules.get_mut(number) {
                    failed(rule, &error);
                }
            }
            drop(rules);
            metrics().alerts.evaluations.with_label_values(&["commit"]).inc_by(count);
            let seconds = lag.as_secs_f64();
            metrics().alerts.lag_seconds.with_label_values(&["commit"]).observe(seconds);
        }
        Ok(())
    }
}
