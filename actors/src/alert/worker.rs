//! The one worker that evaluates all rules: what it waits for, and what it does then.
//!
//! [`plans`] keeps its rules those of the metadata, [`rows`] evaluates rules over rows as they come
//! and [`instants`] those over queries; what changes by that, [`Transitions`] keeps and tells.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::stream::{FuturesUnordered, StreamExt};
use kymo_config::settings::Alerts;
use kymo_kernel::alert::Matcher;
use kymo_kernel::ids::{MetaVersion, TableId};
use kymo_kernel::message::AlertStatus;
use kymo_kernel::observe::metrics;
use kymo_kernel::plugin::FunctionDef;
use kymo_kernel::port::Port;
use kymo_kernel::schema::TableName;
use kymo_kernel::{Error, Result};
use kymo_plugins::PluginMap;
use tokio::sync::{mpsc, oneshot};
use tracing::info;

use super::Parts;
use super::board::{Rules, silenced};
use super::groups::Groups;
use super::history::{self, Entry, Kept};
use super::labels;
use super::machine::State;
use super::outbox::Item;
use super::sets::Set;
use super::stored::Newest;
use super::transitions::Transitions;
use crate::feed::{FeedEvent, Subscription};
use crate::query::{PlanRule, PlannedRule};

mod instants;
mod plans;
mod rows;

/// Rules that are planned at a time.
const PLANNING: usize = 4;
/// Planned rules that wait for others before the groups are made anew.
const UNGROUPED: usize = 1000;
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
    told: Transitions,
}

impl Worker {
    pub(super) fn new(
        parts: Arc<Parts>,
        planner: Port<PlanRule>,
        orders: mpsc::Receiver<Order>,
    ) -> Worker {
        let told = Transitions::new(&parts, 0);
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
            told,
        }
    }

    /// Evaluates rules until nobody can order anything any more.
    pub(super) async fn run(mut self) -> Result<()> {
        self.restore().await?;
        loop {
            self.start_work()?;
            let full = self.told.outbox.len() >= self.parts.settings.max_pending;
            let wait = self.wait();
            let clock = self.parts.env.clock.clone();
            tokio::select! {
                biased;
                (count, outcome) = self.told.outbox.written() => self.told.outbox.finish(count, outcome),
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
        let newest = restored.iter().map(|each| each.set.sequence).max().unwrap_or_default();
        self.told = Transitions::new(&self.parts, newest);
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
        self.told.sequence += 1;
        set.sequence = self.told.sequence;
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
        self.told.outbox.push(Item { entry, notification: None });
    }

    /// Starts everything that waits and for which there is room.
    fn start_work(&mut self) -> Result<()> {
        self.told.outbox.start()?;
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
                self.told.tell(rule, &silences, key, AlertStatus::Firing, now, false);
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
                self.told.outbox.answer(count, reply);
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
                self.told.outbox.push(Item { entry, notification: None });
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
