//! The whole system as one value: what the gateway and an embedding program hold.
//!
//! [`System::boot`] starts the parts in order (store, recovery, write side, query) and fails
//! with one error if any of them cannot. [`System::fatal`] completes when the process must not
//! go on, because a durable path failed or a state owner panicked; recovery at the next
//! start decides then. [`System::shutdown`] takes the phases of stopping in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::env::Env;
use kymo_kernel::message::{
    Ddl, Delete, Outlet, Parse, PluginCommand, Prepare, Query, SessionContext, Write,
};
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::port::Port;
use kymo_kernel::shutdown::{Budgets, Phase, Report, Shutdown};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::supervise::{Escalation, Supervisor, Watchdog};
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::PluginHost;
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::{info, warn};

use alerts::Alerts;
use answers::Answers;
use continuous::Continuing;
use plugins::Plugins;

use crate::backup::Backups;
use crate::engine::Engine;
use crate::feed::Hub;
use crate::live::Live;
use crate::memory::limit::Limit;
use crate::memory::{pressure, share};
use crate::notify::{Notifier, Post};
use crate::plugin_manager::{self, Download};
use crate::query::AlertRow;
use crate::session::Session;

mod alerts;
mod answers;
mod continuous;
mod plugins;
mod status;

/// What reaches elsewhere for the system, where whoever starts it has something.
#[derive(Default)]
pub struct Clients {
    /// For the addresses that plugins may be installed from.
    pub download: Option<Arc<dyn Download>>,
    /// For the receivers of alerts.
    pub post: Option<Arc<dyn Post>>,
}

/// The running system; cheap to clone.
#[derive(Clone)]
pub struct System(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    env: Env,
    pools: Pools,
    supervisor: Supervisor,
    engine: Engine,
    plugins: Plugins,
    alerts: Alerts,
    channels: Notifier,
    answers: Answers,
    live: Live,
    continuing: Continuing,
    backups: Backups,
    shutdown: Shutdown,
    fatal: watch::Sender<Option<Error>>,
    ready: AtomicBool,
    started: Duration,
    watchdog: Mutex<Option<Watchdog>>,
    /// Does the journal's work where there are no threads.
    _journal: Option<Task<()>>,
    /// Looks at the memory of the process.
    _memory: Option<Task<()>>,
}

/// Whatever way the system ends: the query actor can show all actors, so it is made from what
/// holds the supervisor.
impl Drop for Inner {
    fn drop(&mut self) {
        self.supervisor.close();
    }
}

impl System {
    /// Opens the store of the settings' data folder, recovers it, and starts everything.
    /// Blocks for as long as recovery takes.
    ///
    /// # Errors
    /// What keeps the store from opening: `locked` by another process, `corrupt` naming the
    /// place, I/O errors; `invalid_settings`.
    pub fn boot(settings: Arc<Settings>, env: Env, pools: Pools) -> Result<System> {
        System::boot_with(settings, env, pools, Clients::default())
    }

    /// As [`System::boot`], with clients for what lies elsewhere.
    ///
    /// # Errors
    /// As [`System::boot`].
    pub fn boot_with(
        settings: Arc<Settings>,
        env: Env,
        pools: Pools,
        Clients { download, post }: Clients,
    ) -> Result<System> {
        let started = env.clock.monotonic();
        let settings = if pools.is_here() { settings } else { size(&settings)? };
        let (fatal, _) = watch::channel(None);
        let store = open_store(&settings, &env, &pools, &fatal)?;
        let supervisor = start_supervisor(&pools, &env, &fatal);
        let host = plugin_manager::start_host(&settings, &env, &pools)?;
        let engine = Engine::start(&settings, &env, &pools, &supervisor, store, host.clone())?;
        let plugins = Plugins::start(&settings, &env, &pools, &supervisor, &engine, host, download);
        let alerts = Alerts::start(&settings, &env, &pools, &supervisor, &engine, &plugins);
        let channels = Notifier::start(
            &settings,
            &env,
            &pools,
            engine.store().clone(),
            alerts.context.outlet().clone(),
            engine.write_own().clone(),
            post,
        );
        alerts.context.carried_by(channels.clone());
        let below = (&engine, &plugins, &alerts, &channels);
        let answers = Answers::start(&settings, &env, &pools, &supervisor, below)?;
        alerts.begin(answers.planner().clone(), &pools);
        let live = Live::new(
            &settings,
            &env,
            &pools,
            engine.store().clone(),
            engine.feed().clone(),
            answers.follow().clone(),
            answers.keep().clone(),
            answers.subscriptions.clone(),
        );
        let continuing = Continuing::start(&settings, &env, &pools, &supervisor, &engine, &answers);
        let backups = Backups::new(&settings, &env, &pools, engine.store().clone());
        let watchdog = if pools.is_here() { None } else { Some(supervisor.watchdog()?) };
        let journal = pools.is_here().then(|| step_journal(engine.store(), &pools));
        let memory = watch_memory(&settings, &env, &pools, &engine);
        let shutdown = Shutdown::new(env.clock.clone(), Budgets::of(&settings));
        let system = System(Arc::new(Inner {
            settings,
            env,
            pools,
            supervisor,
            engine,
            plugins,
            alerts,
            channels,
            answers,
            live,
            continuing,
            backups,
            shutdown,
            fatal,
            ready: AtomicBool::new(true),
            started,
            watchdog: Mutex::new(watchdog),
            _journal: journal,
            _memory: memory,
        }));
        system.plan_shutdown();
        info!(
            tables = system.catalog().tables.len(),
            ms = (system.0.env.clock.monotonic() - started).as_millis(),
            "system started"
        );
        Ok(system)
    }

    /// The metadata as it is now.
    #[must_use]
    pub fn catalog(&self) -> Arc<Snapshot> {
        self.0.engine.store().catalog()
    }

    /// Where rows go.
    #[must_use]
    pub fn write(&self) -> &Port<Write> {
        self.0.engine.write()
    }

    /// Where changes of definitions go.
    #[must_use]
    pub fn ddl(&self) -> &Port<Ddl> {
        self.0.engine.ddl()
    }

    /// Where deletions go.
    #[must_use]
    pub fn delete(&self) -> &Port<Delete> {
        self.0.engine.delete()
    }

    /// Where changes of plugins go.
    #[must_use]
    pub fn plugins(&self) -> &Port<PluginCommand> {
        &self.0.plugins.commands
    }

    /// What runs plugins; `None` where they are switched off.
    #[must_use]
    pub fn plugin_host(&self) -> Option<&Arc<PluginHost>> {
        self.0.plugins.host.as_ref()
    }

    /// Where SQL text is split and parsed.
    #[must_use]
    pub fn parse(&self) -> &Port<Parse> {
        &self.0.answers.ports.parse
    }

    /// Where statements are planned.
    #[must_use]
    pub fn prepare(&self) -> &Port<Prepare> {
        &self.0.answers.ports.prepare
    }

    /// Where statements run.
    #[must_use]
    pub fn query(&self) -> &Port<Query> {
        &self.0.answers.ports.query
    }

    /// Opens the session of a connection.
    ///
    /// # Errors
    /// `shutting_down` while the system stops, `poisoned` after a failure in a durable path.
    pub fn open_session(&self, context: SessionContext) -> Result<Session> {
        if let Some(reason) = self.poisoned() {
            return Err(Error::new(Code::Poisoned, format!("open a session: {reason}")));
        }
        if !self.is_ready() {
            return Err(Error::new(Code::ShuttingDown, "the server is stopping"));
        }
        let (supervisor, ports) = (&self.0.supervisor, self.0.answers.ports.clone());
        Ok(Session::start(supervisor, ports, Some(self.0.live.clone()), context))
    }

    /// Where to follow queries.
    #[must_use]
    pub fn live(&self) -> &Live {
        &self.0.live
    }

    /// Where notifications of alerts go out.
    #[must_use]
    pub fn alerts(&self) -> &Arc<Outlet> {
        self.0.alerts.context.outlet()
    }

    /// What carries notifications of alerts to channels and to who follows them.
    #[must_use]
    pub fn channels(&self) -> &Notifier {
        &self.0.channels
    }

    /// The alerts of all rules as they are now, and rules that have none.
    #[must_use]
    pub fn alert_rows(&self) -> Vec<AlertRow> {
        self.0.alerts.context.board().rows(self.0.env.clock.now_ns())
    }

    /// Has the files of alert rules read. What could not be loaded is in the log and in
    /// `system.alert_files`.
    pub fn reload_alert_rules(&self) {
        self.0.alerts.context.files().reload();
    }

    /// Where to follow committed rows.
    #[must_use]
    pub fn feed(&self) -> &Arc<Hub> {
        self.0.engine.feed()
    }

    /// Backups that are being taken.
    #[must_use]
    pub fn backups(&self) -> &Backups {
        &self.0.backups
    }

    /// The write side, for those who manage it.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// The settings that the system was started with.
    #[must_use]
    pub fn settings(&self) -> &Arc<Settings> {
        &self.0.settings
    }

    /// The outside world.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.0.env
    }

    /// Where work runs.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.0.pools
    }

    /// Who watches actors.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// The plan of stopping, for others to register their parts with.
    #[must_use]
    pub fn shutdown_plan(&self) -> &Shutdown {
        &self.0.shutdown
    }

    /// Whether requests are welcome: started, not stopping, not poisoned.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire) && self.poisoned().is_none()
    }

    /// Why the system refuses to go on, if it does.
    #[must_use]
    pub fn poisoned(&self) -> Option<Error> {
        self.0.fatal.borrow().clone().or_else(|| self.0.engine.store().poisoned())
    }

    /// Completes, with the reason, when the process must stop at once and with a non-zero
    /// exit code: nothing more will be acknowledged, and a restart recovers what was.
    pub async fn fatal(&self) -> Error {
        let mut fatal = self.0.fatal.subscribe();
        let reason = fatal.wait_for(Option::is_some).await;
        // The sender lives in `self`, so waiting cannot fail while this future exists.
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_else(|| Error::internal("stopped"))
    }

    /// Asks every table to flush what it has in memory, and waits for it.
    ///
    /// # Errors
    /// The first reason why rows could not be flushed.
    pub async fn flush(&self) -> Result<()> {
        self.0.engine.writers().flush().await
    }

    /// Stops in phases, each with its budget, and tells how it went. Every accepted write is
    /// answered. Call [`Pools::stop`] afterwards, from a thread that belongs to no pool.
    pub async fn shutdown(&self) -> Report {
        self.0.ready.store(false, Ordering::Release);
        let report = self.0.shutdown.run().await;
        info!(clean = report.is_clean(), "system stopped");
        report
    }

    /// What happens in which phase. The gateway adds its own parts to the same plan.
    fn plan_shutdown(&self) {
        let plan = &self.0.shutdown;
        let engine = self.0.engine.clone();
        plan.on(Phase::Schedulers, "compactor", move || async move {
            engine.stop_background();
            Ok(())
        });
        let continuing = self.0.continuing.clone();
        plan.on(Phase::Schedulers, "continuous queries", move || async move {
            continuing.stop().await;
            Ok(())
        });
        let backups = self.0.backups.clone();
        plan.on(Phase::Statements, "backups", move || async move {
            backups.stop();
            Ok(())
        });
        let answers = self.0.answers.clone();
        plan.on(Phase::Statements, "queries", move || async move {
            answers.drain().await;
            Ok(())
        });
        let (engine, plugins) = (self.0.engine.clone(), self.0.plugins.clone());
        let (alerts, channels) = (self.0.alerts.clone(), self.0.channels.clone());
        plan.on(Phase::Writes, "writes", move || async move {
            alerts.drain().await;
            alerts.stop();
            channels.stop();
            plugins.drain().await;
            engine.drain().await;
            Ok(())
        });
        if self.0.settings.shutdown.flush {
            let engine = self.0.engine.clone();
            let clock = self.0.env.clock.clone();
            let most = Budgets::of(&self.0.settings).get(Phase::Flush).mul_f64(0.9);
            plan.on(Phase::Flush, "memtables", move || async move {
                // What does not come into segments is in the journal: the next start takes longer
                // and nothing is lost.
                tokio::select! {
                    flushed = engine.writers().flush() => if let Err(error) = flushed {
                        warn!(%error, "rows in memory stay in the journal, for the next start");
                    },
                    () = clock.sleep(most) => {
                        warn!("no time to flush all rows in memory: the rest stays in the journal");
                    }
                }
                Ok(())
            });
        }
        let (engine, answers) = (self.0.engine.clone(), self.0.answers.clone());
        let plugins = self.0.plugins.clone();
        let pools = self.0.pools.clone();
        let watchdog = self.0.watchdog.lock().take();
        plan.on(Phase::Journal, "store", move || async move {
            answers.stop();
            plugins.stop();
            engine.stop();
            let store = engine.store().clone();
            let closing = store.clone();
            pools.foreground("close-store", move || closing.close()).await?;
            drop(watchdog);
            // The last sync may have failed: then the stop was not clean.
            store.poisoned().map_or(Ok(()), Err)
        });
    }
}

/// The settings, sized to the memory that there is.
fn size(settings: &Arc<Settings>) -> Result<Arc<Settings>> {
    let Some(limit) = Limit::find(settings.memory.limit_bytes) else {
        warn!("the system does not tell how much memory there is: memory.limit_bytes says it");
        return Ok(settings.clone());
    };
    let sized = share::fit(settings, limit)?;
    info!(
        limit = limit.bytes,
        of = %limit.of,
        queries = sized.query.memory_bytes,
        rows = sized.memtable.hard_bytes,
        "memory is shared out"
    );
    Ok(sized)
}

/// Watches the memory of the process where there is a limit.
fn watch_memory(
    settings: &Settings,
    env: &Env,
    pools: &Pools,
    engine: &Engine,
) -> Option<Task<()>> {
    let (memory, clock) = (engine.memory().clone(), env.clock.clone());
    let period = Duration::from_millis(settings.memory.check_ms);
    memory.pressure().is_bound().then(|| {
        pools.spawn(Pool::Io, "memory", async move {
            while let Some(resident) = pressure::resident() {
                memory.pressure().note(resident);
                if memory.pressure().is_high() {
                    memory.relieve_all();
                }
                clock.sleep(period).await;
            }
        })
    })
}

/// Stands in for the journal's thread in simulation: a round every millisecond.
pub(crate) fn step_journal(store: &Arc<Store>, pools: &Pools) -> Task<()> {
    let store = store.clone();
    pools.spawn(Pool::Io, "journal", async move {
        loop {
            store.step();
            store.env().clock.sleep(Duration::from_millis(1)).await;
        }
    })
}

/// Reports the first reason only: what follows from it would hide it.
fn report(fatal: &watch::Sender<Option<Error>>, reason: Error) {
    fatal.send_if_modified(|current| {
        let first = current.is_none();
        if first {
            *current = Some(reason);
        }
        first
    });
}

fn open_store(
    settings: &Settings,
    env: &Env,
    pools: &Pools,
    fatal: &watch::Sender<Option<Error>>,
) -> Result<Arc<Store>> {
    let root = settings.server.data_dir.clone();
    let store = if pools.is_here() {
        Store::open_stepped(env.clone(), root, settings)?
    } else {
        Store::open(env.clone(), root, settings, &mut |progress| {
            info!(
                records = progress.records,
                rows = progress.rows,
                flushes = progress.flushes,
                bytes = progress.bytes,
                total_bytes = progress.total_bytes,
                percent = progress.bytes * 100 / progress.total_bytes.max(1),
                "replaying the log"
            );
        })?
    };
    let sender = fatal.clone();
    store.on_poison(move |cause| {
        report(&sender, cause.context("the store stopped"));
    });
    Ok(store)
}

fn start_supervisor(pools: &Pools, env: &Env, fatal: &watch::Sender<Option<Error>>) -> Supervisor {
    let sender = fatal.clone();
    Supervisor::new(pools, env.clock.clone(), move |escalation: Escalation| {
        let reason = format!("{} panicked: {}", escalation.actor, escalation.reason);
        let hint = "this is a defect; a restart recovers every acknowledged row";
        report(&sender, Error::internal(reason).with_hint(hint));
    })
}

#[cfg(test)]
mod tests;
