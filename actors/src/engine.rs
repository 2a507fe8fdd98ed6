//! Wires the write side: catalog, ingest, writers, feed, flusher and compactor over one store.
//!
//! This is the part of the system that needs neither SQL nor sockets, so it runs the same
//! on arbiters and, for simulation, in one `LocalSet` under a clock that a test turns.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::Result;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::Env;
use kymo_kernel::message::{Compact, Ddl, Delete, Durability, Write, WriteOwn};
use kymo_kernel::pools::{Group, Pools};
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::storage::Store;
use kymo_kernel::supervise::{Restart, Running, Spec, Supervisor};
use kymo_plugins::PluginHost;
use parking_lot::Mutex;

use crate::catalog::{self, Catalog};
use crate::cluster::{Membership, Router, SingleNode};
use crate::compactor::Compactor;
use crate::compactor::history::History;
use crate::deleter::Deleter;
use crate::feed::{FeedActor, Hub, Publisher};
use crate::flusher::Flusher;
use crate::ingest::Ingest;
use crate::ingest::transform::Transforms;
use crate::keeper::Keeper;
use crate::memory::Memory;
use crate::memory::pressure::Pressure;
use crate::mover::Mover;
use crate::retention::Retention;
use crate::writer::{self, Writers};

/// Changes of definitions that may wait.
const DDL_COUNT: usize = 64;
/// Deletions that may run or wait for their tables.
const DELETES: usize = 256;
/// Compactions that may be asked for at a time.
const COMPACTIONS: usize = 64;
/// Time that a change of definitions waits for its turn.
const DDL_WAIT: Duration = Duration::from_secs(10);
/// Messages that may wait for one actor beside the bytes that bound it.
const MESSAGES: usize = 65_536;

/// The write side, running. Cheap to clone; ends when [`Engine::stop`] is called.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    writers: Writers,
    memory: Arc<Memory>,
    hub: Arc<Hub>,
    node: Arc<SingleNode>,
    write: Port<Write>,
    write_own: Port<WriteOwn>,
    ddl: Port<Ddl>,
    delete: Port<Delete>,
    compact: Port<Compact>,
    history: Arc<History>,
    stop_deletions: CancelToken,
    transforms: Transforms,
    running: Mutex<Option<Actors>>,
    background: Mutex<Option<Background>>,
}

/// Those that work on their own account.
type Background = (Running<Compactor>, Running<Keeper>, Running<Retention>, Running<Mover>);

/// What those who exchange segments share.
type Exchange = (Arc<Store>, Writers, Arc<History>);

/// Actors live as long as these handles.
type Actors = (Running<FeedActor>, Running<Catalog>, Running<Ingest>, Running<Deleter>);

impl Engine {
    /// Starts everything over an opened store, in order: catalog, feed, writers of tables
    /// that have rows in memory, ingest, compactor. Transforms run in `plugins`; without it
    /// they follow their policies.
    ///
    /// # Errors
    /// `invalid_settings` for settings that one process cannot serve.
    pub fn start(
        settings: &Settings,
        env: &Env,
        pools: &Pools,
        supervisor: &Supervisor,
        store: Arc<Store>,
        plugins: Option<Arc<PluginHost>>,
    ) -> Result<Engine> {
        let node = Arc::new(SingleNode::new(settings, store.epoch())?);
        let hub = Arc::new(Hub::default());
        let feed = start_feed(supervisor, &hub);
        let publisher = Publisher::new(hub.clone(), feed.port(feed_budget(settings)));
        let limit = Some(settings.memory.limit_bytes).filter(|bytes| *bytes > 0);
        let (soft, hard) = (settings.memtable.soft_bytes, settings.memtable.hard_bytes);
        let memory = Memory::new(soft, hard, Pressure::new(limit));
        let durability = Durability::from_str(&settings.journal.durability)?;
        if durability != Durability::EveryWrite {
            let mode = &settings.journal.durability;
            tracing::warn!(durability = %mode, "a power cut can cost acknowledged writes");
        }
        let context = writer::Context {
            store: store.clone(),
            flusher: Flusher::new(store.clone(), pools.clone(), env.clock.clone()),
            feed: publisher,
            clock: env.clock.clone(),
            limits: writer_limits(settings),
            durability,
            compaction: settings.compaction.clone(),
        };
        let wait = Duration::from_millis(settings.ingest.queue_timeout_ms);
        let append = Budget::bytes(MESSAGES, settings.memtable.queue_bytes, wait);
        let writers = Writers::new(context, memory.clone(), supervisor.clone(), append);
        for table in store.recovered() {
            writers.ports(&table)?;
        }
        let catalog = start_catalog(supervisor, settings, &store, &writers);
        let ddl = catalog.port(Budget { count: DDL_COUNT, wait: DDL_WAIT, ..Budget::count(1) });
        let clock = env.clock.clone();
        let transforms = Transforms::new(&settings.plugins, plugins, pools.clone(), clock);
        let context = (store.clone(), ddl.clone(), writers.clone(), node.clone());
        let ingest = start_ingest(supervisor, context, transforms.clone());
        let write = ingest.port(Budget::bytes(MESSAGES, settings.ingest.queue_bytes, wait));
        let stop_deletions = CancelToken::new();
        let history = History::new(env.clock.clone(), settings.compaction.history);
        let context = (store.clone(), writers.clone(), history.clone());
        let deleter = start_deleter(supervisor, env, &context, &stop_deletions);
        let delete = deleter.port(Budget { wait: DDL_WAIT, ..Budget::count(DELETES) });
        let write_own = ingest.port(Budget::bytes(MESSAGES, settings.ingest.queue_bytes, wait));
        let compactor = start_compactor(supervisor, settings, env, &context);
        let compact = compactor.port(Budget { wait: DDL_WAIT, ..Budget::count(COMPACTIONS) });
        let keeper = start_keeper(supervisor, settings, &store, &writers);
        let retention = start_retention(supervisor, settings, &context);
        let mover = start_mover(supervisor, settings, env, &context);
        Ok(Engine(Arc::new(Inner {
            store,
            writers,
            memory,
            hub,
            node,
            write,
            write_own,
            ddl,
            delete,
            compact,
            history,
            stop_deletions,
            transforms,
            running: Mutex::new(Some((feed, catalog, ingest, deleter))),
            background: Mutex::new(Some((compactor, keeper, retention, mover))),
        })))
    }

    /// Where rows go.
    #[must_use]
    pub fn write(&self) -> &Port<Write> {
        &self.0.write
    }

    /// Where rows of Kymo's own tables go.
    #[must_use]
    pub fn write_own(&self) -> &Port<WriteOwn> {
        &self.0.write_own
    }

    /// Where changes of definitions go.
    #[must_use]
    pub fn ddl(&self) -> &Port<Ddl> {
        &self.0.ddl
    }

    /// Where deletions go.
    #[must_use]
    pub fn delete(&self) -> &Port<Delete> {
        &self.0.delete
    }

    /// Where merges are asked for.
    #[must_use]
    pub fn compact(&self) -> &Port<Compact> {
        &self.0.compact
    }

    /// The exchanges of segments that run and that ended lately.
    #[must_use]
    pub fn history(&self) -> &Arc<History> {
        &self.0.history
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.0.store
    }

    /// Where to follow committed rows.
    #[must_use]
    pub fn feed(&self) -> &Arc<Hub> {
        &self.0.hub
    }

    /// The writers.
    #[must_use]
    pub fn writers(&self) -> &Writers {
        &self.0.writers
    }

    /// The account of rows in memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.0.memory
    }

    /// The transforms that rows pass.
    #[must_use]
    pub fn transforms(&self) -> &Transforms {
        &self.0.transforms
    }

    /// Who is in the cluster.
    #[must_use]
    pub fn membership(&self) -> Arc<dyn Membership> {
        self.0.node.clone()
    }

    /// Who owns which slots.
    #[must_use]
    pub fn router(&self) -> Arc<dyn Router> {
        self.0.node.clone()
    }

    /// Starts no more merges and stops those that run: their output is garbage.
    pub fn stop_background(&self) {
        drop(self.0.background.lock().take());
    }

    /// Takes no more writes and changes, and completes once every accepted one is answered:
    /// from the top down, as each waits for the one below. Deletions are cancelled: they may
    /// take longer than anybody waits.
    pub async fn drain(&self) {
        self.0.stop_deletions.cancel();
        self.0.write.drain().await;
        self.0.delete.drain().await;
        self.0.write_own.drain().await;
        self.0.ddl.drain().await;
        self.0.writers.drain().await;
    }

    /// Ends the actors and every subscription.
    pub fn stop(&self) {
        self.stop_background();
        self.0.hub.close();
        drop(self.0.running.lock().take());
        self.0.transforms.stop();
        self.0.writers.stop();
    }
}

fn feed_budget(settings: &Settings) -> Budget {
    Budget::bytes(MESSAGES, settings.live.feed_bytes, Duration::ZERO)
}

fn writer_limits(settings: &Settings) -> writer::core::Limits {
    writer::core::Limits {
        table_bytes: settings.memtable.table_bytes,
        max_age: Duration::from_millis(settings.memtable.max_age_ms),
        max_frozen: settings.memtable.max_frozen.max(1),
    }
}

fn start_feed(supervisor: &Supervisor, hub: &Arc<Hub>) -> Running<FeedActor> {
    let hub = hub.clone();
    let spec = Spec::new("feed", "feed").restart(Restart::STATELESS);
    supervisor.start(spec, move || FeedActor::new(hub.clone()))
}

fn start_catalog(
    supervisor: &Supervisor,
    settings: &Settings,
    store: &Arc<Store>,
    writers: &Writers,
) -> Running<Catalog> {
    let limits = catalog::plan::Limits {
        max_tables: settings.ingest.max_tables,
        max_columns: settings.ingest.max_columns,
        max_plugins: settings.plugins.max_plugins,
        max_versions: settings.plugins.max_versions,
        max_transforms: settings.plugins.max_transforms,
        max_continuous: settings.continuous.max_queries,
        max_alerts: settings.alerts.max_rules,
        max_silences: settings.alerts.max_silences,
        max_channels: settings.alerts.max_channels,
    };
    let (store, writers) = (store.clone(), writers.clone());
    let spec = Spec::new("catalog", "catalog").restart(Restart::FailStop);
    supervisor.start_once(spec, move || Catalog::new(store, limits, Box::new(writers)))
}

fn start_ingest(
    supervisor: &Supervisor,
    context: (Arc<Store>, Port<Ddl>, Writers, Arc<SingleNode>),
    transforms: Transforms,
) -> Running<Ingest> {
    let pools = supervisor.pools().clone();
    let spec = Spec::new("ingest", "ingest").on(Group::Ingest).restart(Restart::STATELESS);
    supervisor.start(spec, move || {
        let (store, ddl, writers, router) = context.clone();
        Ingest::new(store, ddl, writers, router, pools.clone(), transforms.clone())
    })
}

fn start_deleter(
    supervisor: &Supervisor,
    env: &Env,
    context: &Exchange,
    stop: &CancelToken,
) -> Running<Deleter> {
    let (context, stop) = (context.clone(), stop.clone());
    let (pools, clock) = (supervisor.pools().clone(), env.clock.clone());
    let spec = Spec::new("deleter", "deleter").restart(Restart::STATELESS);
    supervisor.start(spec, move || {
        let ((store, writers, history), pools) = (context.clone(), pools.clone());
        Deleter::new(store, writers, pools, clock.clone(), stop.clone(), history)
    })
}

fn start_compactor(
    supervisor: &Supervisor,
    settings: &Settings,
    env: &Env,
    context: &Exchange,
) -> Running<Compactor> {
    let (context, compaction) = (context.clone(), settings.compaction.clone());
    let (pools, clock) = (supervisor.pools().clone(), env.clock.clone());
    let places = pools.sizes().background;
    let spec = Spec::new("compactor", "compactor").restart(Restart::BACKGROUND);
    supervisor.start(spec, move || {
        let ((store, writers, history), settings) = (context.clone(), compaction.clone());
        let surroundings = (pools.clone(), clock.clone());
        Compactor::new(store, writers, settings, places, surroundings, history)
    })
}

fn start_retention(
    supervisor: &Supervisor,
    settings: &Settings,
    context: &Exchange,
) -> Running<Retention> {
    let context = context.clone();
    let interval = Duration::from_millis(settings.retention.interval_ms.max(1));
    let spec = Spec::new("retention", "retention").restart(Restart::BACKGROUND);
    supervisor.start(spec, move || {
        let (store, writers, history) = context.clone();
        Retention::new(store, writers, interval, history)
    })
}

fn start_mover(
    supervisor: &Supervisor,
    settings: &Settings,
    env: &Env,
    context: &Exchange,
) -> Running<Mover> {
    let (context, settings) = (context.clone(), settings.clone());
    let (pools, clock) = (supervisor.pools().clone(), env.clock.clone());
    let spec = Spec::new("mover", "mover").restart(Restart::BACKGROUND);
    supervisor
        .start(spec, move || Mover::new(context.clone(), &settings, (pools.clone(), clock.clone())))
}

fn start_keeper(
    supervisor: &Supervisor,
    settings: &Settings,
    store: &Arc<Store>,
    writers: &Writers,
) -> Running<Keeper> {
    let (store, writers, settings) = (store.clone(), writers.clone(), settings.clone());
    let spec = Spec::new("keeper", "keeper").restart(Restart::BACKGROUND);
    supervisor.start(spec, move || Keeper::new(store.clone(), writers.clone(), &settings))
}

#[cfg(test)]
pub(crate) mod kit;
#[cfg(test)]
mod tests;
