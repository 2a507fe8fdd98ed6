//! The one worker that evaluates all rules: what it waits for, and what it does then.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::stream::{FuturesUnordered, StreamExt};
use kymo_config::settings::Alerts;
use kymo_kernel::alert::{AlertDef, Matcher};
use kymo_kernel::ids::{MetaVersion, TableId};
use kymo_kernel::message::{AlertStatus, Committed, Notification};
use kymo_kernel::observe::metrics;
use kymo_kernel::plugin::FunctionDef;
use kymo_kernel::pools::Pool;
use kymo_kernel::port::Port;
use kymo_kernel::schema::TableName;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Error, Result};
use kymo_plugins::PluginMap;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use super::Parts;
use super::board::{Planning, Rule, Rules, Silences, silenced};
use super::facts::Facts;
use super::groups::{Group, Groups, Member};
use super::history::{self, Entry, Kept};
use super::labels;
use super::machine::State;
use super::outbox::{Item, Outbox};
use super::sets::{Set, Sets, Terms, TooMany, Transition};
use super::stored::{self, Newest};
use super::template;
use crate::feed::{FeedEvent, Subscription, TableFilter};
use crate::query::{Kind, PlanRule, PlannedRule, RuleQuery};

/// Rules that are planned at a time.
const PLANNING: usize = 4;
/// Planned rules that wait for others before the groups are made anew.
const UNGROUPED: usize = 1000;
/// Commits that are evaluated before the worker looks at anything else.
const COMMITS: usize = 64;
/// The longest time without a look at definitions and silences.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the worker is told.
pub(super) enum Order {
    /// Definitions have changed; answered once they are followed.
    Follow(oneshot::Sender<()>),
    /// Somebody looks after alerts; answered with how many, once that is durable.
    Ack(Matcher, String, oneshot::Sender<u64>),
}

type Work<T> = FuturesUnordered<Pin<Box<dyn Future<Output = T> + Send>>>;
type Planned = (u32, u64, Result<PlannedRule>);
type Found = Result<(Newest, hashbrown::HashMap<u32, Error>)>;
type CaughtUp = (Vec<u32>, Found);
type Answered = (u32, i64, Result<RecordBatch>);

/// The worker.
pub(super) struct Worker {
    parts: Arc<Parts>,
    planner: Port<PlanRule>,
    orders: mpsc::Receiver<Order>,
    /// The definitions that are followed.
    followed: MetaVersion,
    /// The tables of these; another map as soon as one comes, goes or gets a column.
    tables: Arc<BTreeMap<TableName, TableId>>,
    /// The plugins as they were when rules that call them were planned; another map as soon as
    /// anything about them changes.
    plugins: Option<Arc<PluginMap>>,
    /// What names of functions stand for functions of plugins.
    functions: Arc<BTreeMap<String, Arc<FunctionDef>>>,
    /// Whether every rule from before the start was planned, or could not be.
    settled: bool,
    groups: Groups,
    /// Whether rules have changed since `groups` was made.
    regroup: bool,
    /// Whether the newest rows of some could not be read.
    unread: bool,
    /// Rules that were planned since.
    ungrouped: usize,
    feed: Option<Subscription>,
    to_plan: VecDeque<u32>,
    planning: Work<Planned>,
    reading: Work<CaughtUp>,
    due: VecDeque<(u32, i64)>,
    evaluating: Work<Answered>,
    /// The next instant of each interval.
    grid: BTreeMap<i64, i64>,
    outbox: Outbox,
    sequence: u64,
}

impl Worker {
    pub(super) fn new(
        parts: Arc<Parts>,
        planner: Port<PlanRule>,
        orders: mpsc::Receiver<Order>,
    ) -> Worker {
        let (outlet, clock) = (parts.outlet.clone(), parts.env.clock.clone());
        let outbox = Outbox::new(parts.write.clone(), outlet, clock, 0);
        Worker {
            parts,
            planner,
            orders,
            followed: MetaVersion(0),
            tables: Arc::default(),
            plugins: None,
            functions: Arc::default(),
            settled: false,
            groups: Groups::default(),
            regroup: false,
            unread: false,
            ungrouped: 0,
            feed: None,
            to_plan: VecDeque::new(),
            planning: Work::new(),
            reading: Work::new(),
            due: VecDeque::new(),
            evaluating: Work::new(),
            grid: BTreeMap::new(),
            outbox,
            sequence: 0,
        }
    }

    /// Evaluates rules until nobody can order anything any more.
    pub(super) async fn run(mut self) -> Result<()> {
        self.restore().await?;
        loop {
            self.start_work()?;
            let full = self.outbox.len() >= self.parts.settings.max_pending;
            let wait = self.wait();
            let clock = self.parts.env.clock.clone();
            tokio::select! {
                biased;
                (count, outcome) = self.outbox.written() => self.outbox.finish(count, outcome),
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order)?,
                    None => return Ok(()),
                },
                Some(planned) = self.planning.next() => self.planned(planned),
                Some(read) = self.reading.next() => self.caught_up(read),
                Some(answered) = self.evaluating.next() => self.answered(answered),
                () = clock.sleep(wait), if !full => self.tick()?,
                event = recv(&mut self.feed), if !full => self.follow_feed(event)?,
            }
        }
    }

    fn settings(&self) -> &Alerts {
        &self.parts.settings
    }

    fn now(&self) -> i64 {
        self.parts.env.clock.now_ns()
    }

    /// Takes up what an earlier worker left: the states of alerts.
    async fn restore(&mut self) -> Result<()> {
        *self.parts.board.lock() = Rules::default();
        let catalog = self.parts.store.catalog();
        self.follow(&catalog);
        let table = catalog.table(&history::states()).map(|table| table.def.id);
        let Some(version) = table.and_then(|table| self.parts.store.table(table)) else {
            return Ok(());
        };
        let version = version.load();
        let read = self.parts.pools.foreground("states of alerts", move || history::read(&version));
        let restored = read.await??;
        self.sequence = restored.iter().map(|each| each.set.sequence).max().unwrap_or_default();
        let (outlet, clock) = (self.parts.outlet.clone(), self.parts.env.clock.clone());
        self.outbox = Outbox::new(self.parts.write.clone(), outlet, clock, self.sequence);
        let now = self.now();
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        for history::Restored { rule, key, set } in restored {
            if set.state() == State::Inactive {
                continue;
            }
            let forgotten = |at: i64| now.saturating_sub(at) >= millis(self.settings().resolved_ms);
            let Some(number) = rules.names.get(rule.as_str()).copied() else {
                self.orphan(&rule, key, set, now);
                continue;
            };
            if set.resolved.is_some_and(|(at, _)| forgotten(at)) {
                continue;
            }
            if let Some(rule) = rules.get_mut(number) {
                rule.sets.restore(key, set);
            }
        }
        Ok(())
    }

    /// Ends an alert whose rule was dropped before that was kept.
    fn orphan(&mut self, rule: &str, key: u64, mut set: Set, now: i64) {
        let Some(active) = set.active.take() else { return };
        let from = if active.firing { State::Firing } else { State::Pending };
        self.sequence += 1;
        set.sequence = self.sequence;
        let labels = labels::json(&Default::default());
        let (to, value) = (State::Inactive, set.value);
        let since_ns = active.since_ns;
        let kept = Kept {
            fingerprint: key,
            labels,
            from,
            to,
            value,
            since_ns,
            silenced: true,
            at_ns: now,
        };
        let entry = Entry { rule: rule.into(), key, set, kept: Some(kept) };
        self.outbox.push(Item { entry, notification: None });
    }

    /// Makes the rules those of the metadata.
    fn follow(&mut self, catalog: &Arc<Snapshot>) {
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
            end_all(rule, &silences, now, &mut self.sequence, &mut self.outbox);
        }
        rule.redefine(def, &settings);
        self.to_plan.push_back(number);
        self.regroup = true;
    }

    fn drop_rule(&mut self, rules: &mut Rules, name: &str) {
        let Some(mut rule) = rules.remove(name) else { return };
        self.regroup = true;
        let now = self.now();
        end_all(&mut rule, &rules.silences, now, &mut self.sequence, &mut self.outbox);
    }

    /// Whether anything about plugins is not as it was.
    fn plugins_changed(&self) -> bool {
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

    /// Starts everything that waits and for which there is room.
    fn start_work(&mut self) -> Result<()> {
        self.outbox.start()?;
        while self.planning.len() < PLANNING
            && let Some(number) = self.to_plan.pop_front()
        {
            self.start_planning(number);
        }
        // Files may change rules only once it is known what their alerts are called.
        if !self.settled && self.planning.is_empty() {
            self.settled = true;
            self.parts.files.begin();
        }
        // Rules that come together are put into their groups together.
        if self.regroup && (self.planning.is_empty() || self.ungrouped >= UNGROUPED) {
            self.regroup()?;
        }
        while self.evaluating.len() < self.settings().max_evaluations
            && let Some((number, instant)) = self.due.pop_front()
        {
            self.start_evaluation(number, instant);
        }
        Ok(())
    }

    fn start_planning(&mut self, number: u32) {
        let def = self.parts.board.lock().get(number).map(|rule| rule.def.clone());
        let Some(def) = def else { return };
        let (planner, revision) = (self.planner.clone(), def.revision);
        self.planning
            .push(Box::pin(async move { (number, revision, planner.call(PlanRule(def)).await) }));
    }

    fn planned(&mut self, (number, revision, outcome): Planned) {
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
                    end_all(rule, &silences, now, &mut self.sequence, &mut self.outbox);
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
            tell(rule, &silences, key, status, now, true, &mut self.outbox);
        }
    }

    /// Puts rules of class rows together anew, and has the newest rows read for those that are
    /// not ready.
    fn regroup(&mut self) -> Result<()> {
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

    fn caught_up(&mut self, (numbers, found): CaughtUp) {
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
            taken_row(rule, &silences, taken, &mut self.sequence, &mut self.outbox);
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

    fn follow_feed(&mut self, event: Option<FeedEvent>) -> Result<()> {
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
                    taken_row(rule, &silences, taken, &mut self.sequence, &mut self.outbox);
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

    /// How long there is nothing to do at any instant.
    fn wait(&self) -> Duration {
        let now = self.now();
        let next = self.grid.values().min().copied().unwrap_or(i64::MAX);
        let wait = u64::try_from(next.saturating_sub(now)).unwrap_or_default();
        Duration::from_nanos(wait).min(LOOK_EVERY)
    }

    /// Does what is due.
    fn tick(&mut self) -> Result<()> {
        let catalog = self.parts.store.catalog();
        // Plugins are loaded after the metadata says so.
        if catalog.version != self.followed || self.plugins_changed() {
            self.follow(&catalog);
        }
        let now = self.now();
        let due: Vec<(i64, i64)> =
            self.grid.iter().filter(|(_, next)| **next <= now).map(|(e, n)| (*e, *n)).collect();
        for (every, next) in due {
            let instant = now.div_euclid(every).saturating_mul(every).max(next);
            let missed = u64::try_from((instant - next).div_euclid(every)).unwrap_or_default();
            metrics().alerts.missed.inc_by(missed);
            self.grid.insert(every, instant.saturating_add(every));
            self.evaluate_all(every, instant);
        }
        self.regroup |= std::mem::take(&mut self.unread);
        self.end_of_silences(now);
        Ok(())
    }

    fn evaluate_all(&mut self, every: i64, instant: i64) {
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
            tick_sets(rule, &silences, instant, &mut self.sequence, &mut self.outbox);
        }
        drop(rules);
        if count > 0 {
            metrics().alerts.evaluations.with_label_values(&["grid"]).inc_by(count);
            let lag = now.saturating_sub(instant) as f64 / 1e9;
            metrics().alerts.lag_seconds.with_label_values(&["grid"]).observe(lag);
        }
    }

    fn start_evaluation(&mut self, number: u32, instant: i64) {
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

    fn answered(&mut self, (number, instant, answer): Answered) {
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
            taken_row(rule, &silences, taken, &mut self.sequence, &mut self.outbox);
        }
        tick_sets(rule, &silences, instant, &mut self.sequence, &mut self.outbox);
    }

    /// Tells of alerts that went on firing when the silence over them ended.
    fn end_of_silences(&mut self, now: i64) {
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        let silences = rules.silences.clone();
        for rule in rules.all.iter_mut().flatten() {
            if rule.def.channels.is_empty() || !rule.runs() {
                continue;
            }
            let untold: Vec<u64> = rule
                .sets
                .iter()
                .filter(|(_, set)| set.state() == State::Firing && !set.told && !set.restored)
                .filter(|(_, set)| !silenced(&silences, &rule.name, &rule.labels(set), now))
                .map(|(key, _)| key)
                .collect();
            for key in untold {
                tell(rule, &silences, key, AlertStatus::Firing, now, false, &mut self.outbox);
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<()> {
        match order {
            Order::Follow(reply) => {
                let catalog = self.parts.store.catalog();
                if catalog.version != self.followed {
                    self.follow(&catalog);
                }
                let _ = reply.send(());
            }
            Order::Ack(matcher, said, reply) => {
                let count = self.acknowledge(&matcher, &said);
                self.outbox.answer(count, reply);
            }
        }
        Ok(())
    }

    fn acknowledge(&mut self, matcher: &Matcher, said: &str) -> u64 {
        let board = self.parts.board.clone();
        let mut rules = board.lock();
        let mut count = 0;
        for rule in rules.all.iter_mut().flatten() {
            let meant: Vec<u64> = rule
                .sets
                .iter()
                .filter(|(_, set)| set.state() == State::Firing)
                .filter(|(_, set)| matcher.matches(&rule.name, &rule.labels(set)))
                .map(|(key, _)| key)
                .collect();
            for key in meant {
                let Some(set) = rule.sets.get_mut(key) else { continue };
                set.acked = Some(said.into());
                count += 1;
                let set = set.clone();
                let entry = Entry { rule: rule.name.clone(), key, set, kept: None };
                self.outbox.push(Item { entry, notification: None });
            }
        }
        info!(alerts = %matcher, by = said, count, "alerts acknowledged");
        count
    }
}

fn millis(millis: u64) -> i64 {
    i64::try_from(millis.saturating_mul(1_000_000)).unwrap_or(i64::MAX)
}

/// The next event of a feed; never one without a feed.
async fn recv(feed: &mut Option<Subscription>) -> Option<FeedEvent> {
    match feed {
        Some(feed) => feed.recv().await,
        None => std::future::pending().await,
    }
}

fn failed(rule: &mut Rule, error: &Error) {
    metrics().alerts.failures.with_label_values(&[error.code().as_str()]).inc();
    rule.error = Some(error.message().to_owned());
}

fn taken_row(
    rule: &mut Rule,
    silences: &Silences,
    taken: Result<Option<Transition>, TooMany>,
    sequence: &mut u64,
    outbox: &mut Outbox,
) {
    match taken {
        Ok(None) => {}
        Ok(Some(transition)) => record(rule, silences, transition, sequence, outbox),
        Err(TooMany) => {
            let most = rule.terms.most;
            let text = format!("the rule has more than {most} label sets: alerts.max_label_sets");
            failed(rule, &Error::new(kymo_kernel::Code::LimitReached, text));
        }
    }
}

/// Ends every alert of a rule and forgets its label sets.
fn end_all(
    rule: &mut Rule,
    silences: &Silences,
    now: i64,
    sequence: &mut u64,
    outbox: &mut Outbox,
) {
    let mut ended = Vec::new();
    rule.sets.end(now, |transition| ended.push(transition));
    for transition in ended {
        record(rule, silences, transition, sequence, outbox);
    }
    rule.sets = Sets::default();
}

fn tick_sets(
    rule: &mut Rule,
    silences: &Silences,
    instant: i64,
    sequence: &mut u64,
    outbox: &mut Outbox,
) {
    let mut transitions = Vec::new();
    rule.sets.tick(instant, &rule.terms, |transition| transitions.push(transition));
    for transition in transitions {
        record(rule, silences, transition, sequence, outbox);
    }
}

/// Numbers a transition and puts it into the outbox.
fn record(
    rule: &mut Rule,
    silences: &Silences,
    transition: Transition,
    sequence: &mut u64,
    outbox: &mut Outbox,
) {
    let Transition { key, from, to, at_ns, value } = transition;
    metrics().alerts.transitions.with_label_values(&[to.as_str()]).inc();
    *sequence += 1;
    let Some(set) = rule.sets.get_mut(key) else { return };
    set.sequence = *sequence;
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
    let notification = status.map(|status| notification(rule, &entry_set, status, silenced, false));
    let entry = Entry { rule: rule.name.clone(), key, set: entry_set, kept: Some(kept) };
    outbox.push(Item { entry, notification });
}

/// Tells of an alert without a transition: again after a restart, or late after a silence.
fn tell(
    rule: &mut Rule,
    silences: &Silences,
    key: u64,
    status: AlertStatus,
    now: i64,
    repeated: bool,
    outbox: &mut Outbox,
) {
    let Some(set) = rule.sets.get(key) else { return };
    let silenced = silenced(silences, &rule.name, &rule.labels(set), now) && !set.told;
    let Some(set) = rule.sets.get_mut(key) else { return };
    set.told |= status == AlertStatus::Firing && !silenced;
    let set = set.clone();
    let notification = Some(notification(rule, &set, status, silenced, repeated));
    let entry = Entry { rule: rule.name.clone(), key, set, kept: None };
    outbox.push(Item { entry, notification });
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
