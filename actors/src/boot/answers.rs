//! The read side, started: the query actor with what it may read, change and tell.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::Result;
use kymo_kernel::env::{Clock, Env};
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{Compaction, Follow, Keep};
use kymo_kernel::pools::Pools;
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::version::Version;
use kymo_kernel::supervise::{Restart, Running, Spec, Supervisor};
use kymo_plugins::{Entry, PluginHost, PluginVersion};
use parking_lot::Mutex;

use super::alerts::Alerts;
use super::plugins::Plugins;
use crate::alert::Context;
use crate::compactor::history::History;
use crate::continuous;
use crate::engine::Engine;
use crate::ingest::transform::{Attached, Counts, Transforms};
use crate::live::Registry;
use crate::notify::Notifier;
use crate::query::ChannelRow;
use crate::query::{
    ActorRow, AlertFileRow, AlertRow, ContinuousRow, Inspect, PlanRule, PluginLogRow, PluginRow,
    PluginVersionRow, PortRow, Ports, QueryActor, QueryService, SubscriptionRow, SupervisionRow,
    Tables, TransformRow,
};
use crate::session::QueryPorts;

/// Bytes of SQL text that may be parsed at a time, for each of the largest allowed text.
const PARSE_TEXTS: u64 = 4;
/// Messages that may wait for one actor beside the bytes that bound it.
const MESSAGES: usize = 4096;
/// Time that a statement waits for a place in a queue.
const WAIT: Duration = Duration::from_secs(5);

/// The query actor and the ways to it.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) ports: QueryPorts,
    follow: Port<Follow>,
    keep: Port<Keep>,
    planner: Port<PlanRule>,
    /// The subscriptions that live.
    pub(super) subscriptions: Arc<Registry>,
    /// The continuous queries that run.
    pub(super) continuous: Arc<continuous::Registry>,
    running: Arc<Mutex<Option<Running<QueryActor>>>>,
}

impl Answers {
    pub(super) fn start(
        settings: &Arc<Settings>,
        env: &Env,
        pools: &Pools,
        supervisor: &Supervisor,
        (engine, plugins, alerts, channels): (&Engine, &Plugins, &Alerts, &Notifier),
    ) -> Result<Answers> {
        let continuous = Arc::new(continuous::Registry::default());
        let changes = Ports {
            ddl: engine.ddl().clone(),
            write: engine.write().clone(),
            delete: engine.delete().clone(),
            compact: engine.compact().clone(),
            continuous: Some(continuous.clone()),
            plugins: Some(plugins.commands.clone()),
            alerts: Some(alerts.commands.clone()),
        };
        let subscriptions = Arc::new(Registry::default());
        let insight = Insight {
            supervisor: supervisor.clone(),
            plugins: plugins.host.clone(),
            transforms: engine.transforms().clone(),
            history: engine.history().clone(),
            subscriptions: subscriptions.clone(),
            continuous: continuous.clone(),
            alerts: alerts.context.clone(),
            channels: channels.clone(),
            clock: env.clock.clone(),
        };
        let service = QueryService::new(
            settings.clone(),
            env.clone(),
            pools.clone(),
            Arc::new(Stored(engine.store().clone())),
            Arc::new(changes),
            Arc::new(insight),
            plugins.host.clone(),
            engine.memory().pressure().clone(),
        )?;
        let spec = Spec::new("query", "query").restart(Restart::STATELESS).patient();
        let running = supervisor.start(spec, move || service.actor());
        let text = settings.query.max_sql_bytes.saturating_mul(PARSE_TEXTS);
        // A statement holds its permit until it is answered, so those that run count, too.
        let queries = settings.query.max_running + settings.query.max_waiting + 1;
        let ports = QueryPorts {
            parse: running.port(Budget::bytes(MESSAGES, text, WAIT)),
            prepare: running.port(Budget { wait: WAIT, ..Budget::count(MESSAGES) }),
            query: running.port(Budget { wait: WAIT, ..Budget::count(queries) }),
        };
        let follow = running.port(Budget { wait: WAIT, ..Budget::count(MESSAGES) });
        let keep = running.port(Budget { wait: WAIT, ..Budget::count(MESSAGES) });
        let planner = running.port(Budget { wait: WAIT, ..Budget::count(MESSAGES) });
        let running = Arc::new(Mutex::new(Some(running)));
        Ok(Answers { ports, follow, keep, planner, subscriptions, continuous, running })
    }

    /// Where queries are planned to be followed.
    pub(super) fn follow(&self) -> &Port<Follow> {
        &self.follow
    }

    /// Where queries are planned whose result is kept up to date.
    pub(super) fn keep(&self) -> &Port<Keep> {
        &self.keep
    }

    /// Where alert rules are planned.
    pub(super) fn planner(&self) -> &Port<PlanRule> {
        &self.planner
    }

    /// Takes no more statements, and completes once every accepted one is answered.
    pub(super) async fn drain(&self) {
        let QueryPorts { parse, prepare, query } = &self.ports;
        let planning =
            futures::future::join3(self.follow.drain(), self.keep.drain(), self.planner.drain());
        futures::join!(parse.drain(), prepare.drain(), query.drain(), planning);
    }

    pub(super) fn stop(&self) {
        drop(self.running.lock().take());
    }
}

/// Definitions and versions as the store publishes them.
struct Stored(Arc<Store>);

impl Tables for Stored {
    fn catalog(&self) -> Arc<Snapshot> {
        self.0.catalog()
    }

    fn version(&self, table: TableId) -> Option<Arc<Version>> {
        Some(self.0.table(table)?.load())
    }
}

/// What the supervisor, the plugin host and live data know, as rows.
struct Insight {
    supervisor: Supervisor,
    plugins: Option<Arc<PluginHost>>,
    transforms: Transforms,
    history: Arc<History>,
    subscriptions: Arc<Registry>,
    continuous: Arc<continuous::Registry>,
    alerts: Context,
    channels: Notifier,
    clock: Arc<dyn Clock>,
}

impl Inspect for Insight {
    fn actors(&self) -> Vec<ActorRow> {
        let row = |actor: kymo_kernel::supervise::ActorInfo| ActorRow {
            name: actor.name,
            kind: actor.kind.to_owned(),
            state: match actor.state {
                kymo_kernel::supervise::State::Running if actor.stuck => "stuck",
                kymo_kernel::supervise::State::Running => "running",
                kymo_kernel::supervise::State::Restarting => "restarting",
                kymo_kernel::supervise::State::Failed => "failed",
            }
            .to_owned(),
            restarts: actor.restarts,
            observed: actor.observed.to_string(),
        };
        self.supervisor.list().into_iter().map(row).collect()
    }

    fn ports(&self) -> Vec<PortRow> {
        let row = |port: kymo_kernel::port::PortStats| PortRow {
            name: port.name,
            message: port.message.to_owned(),
            accepted: port.accepted,
            rejected: port.rejected_busy + port.rejected_closed + port.rejected_down,
            queued: port.queued as u64,
            bytes: port.queued_bytes as u64,
        };
        self.supervisor.ports().into_iter().map(row).collect()
    }

    fn supervision_events(&self) -> Vec<SupervisionRow> {
        let row = |event: kymo_kernel::supervise::SupervisionEvent| SupervisionRow {
            time: event.at_ns,
            actor: event.actor,
            event: event.what.as_str().to_owned(),
            detail: event.detail,
        };
        self.supervisor.events().into_iter().map(row).collect()
    }

    fn subscriptions(&self) -> Vec<SubscriptionRow> {
        self.subscriptions.rows(self.clock.monotonic())
    }

    fn continuous(&self) -> Vec<ContinuousRow> {
        self.continuous.rows(self.clock.monotonic())
    }

    fn alerts(&self) -> Vec<AlertRow> {
        self.alerts.board().rows(self.clock.now_ns())
    }

    fn alert_files(&self) -> Vec<AlertFileRow> {
        self.alerts.files().rows()
    }

    fn alert_channels(&self) -> Vec<ChannelRow> {
        self.channels.rows()
    }

    fn compactions(&self) -> Vec<Compaction> {
        self.history.all()
    }

    fn plugins(&self) -> Vec<PluginRow> {
        let Some(host) = &self.plugins else { return Vec::new() };
        let map = host.registry().snapshot();
        let row = |entry: &Arc<Entry>| PluginRow {
            name: entry.name.to_string(),
            state: entry.state.as_str().to_owned(),
            reason: entry.state.reason().map(str::to_owned),
        };
        map.entries().map(row).collect()
    }

    fn plugin_versions(&self) -> Vec<PluginVersionRow> {
        let Some(host) = &self.plugins else { return Vec::new() };
        let row = |version: Arc<PluginVersion>| {
            let counts = version.stats().counts();
            PluginVersionRow {
                name: version.name().to_string(),
                digest: version.plugin().digest,
                instances: counts.instances as u64,
                calls: counts.calls,
                rows: counts.rows,
                nanoseconds: counts.nanoseconds,
                faults: counts.faults.iter().sum(),
            }
        };
        host.registry().loaded().into_iter().map(row).collect()
    }

    fn transforms(&self) -> Vec<TransformRow> {
        let row = |((table, plugin, function), counts): (Attached, Arc<Counts>)| {
            let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
            TransformRow {
                table,
                plugin,
                function,
                rows_in: read(&counts.rows_in),
                rows_out: read(&counts.rows_out),
                refused: read(&counts.refused),
                passed: read(&counts.passed),
                dead_letter: read(&counts.dead_letter),
                failures: read(&counts.failures),
                nanoseconds: read(&counts.nanoseconds),
            }
        };
        self.transforms.counts().into_iter().map(row).collect()
    }

    fn plugin_log(&self) -> Vec<PluginLogRow> {
        let Some(host) = &self.plugins else { return Vec::new() };
        let row = |line: kymo_plugins::log::Line| PluginLogRow {
            time: line.time_ns,
            plugin: line.plugin.to_string(),
            version: line.version.to_string(),
            level: line.level.as_str().to_owned(),
            message: line.message,
        };
        host.log().lines().into_iter().map(row).collect()
    }
}
