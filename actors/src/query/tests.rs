//! The query actor over a whole write side, on a disk in memory.

mod alter;
mod clients;
mod compact;
mod deletes;
mod dialect;
mod functions;
mod limits;
mod meaning;
mod plugins;
mod privileges;
mod retention;
mod scans;
mod transforms;

use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::ArrayRef;
use futures::StreamExt;
use kymo_config::Settings;
use kymo_kernel::env::{Env, real, sim};
use kymo_kernel::ids::TableId;
use kymo_kernel::message::{Compaction, Outcome, PluginCommand, Runnable};
use kymo_kernel::pools::{PoolSizes, Pools};
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::storage::version::Version;
use kymo_kernel::supervise::{Running, Spec, Supervisor};
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{Compiler, PluginHost};

use super::{Inspect, Ports, QueryActor, QueryService, Tables};
use crate::compactor::history::History;
use crate::engine::Engine;
use crate::kit::{context, texts};
use crate::plugin_manager::{self, PluginManager};
use crate::session::{QueryPorts, Session};

/// A system without a gateway.
struct House {
    engine: Engine,
    supervisor: Supervisor,
    ports: QueryPorts,
    pools: Pools,
    plugins: Option<Arc<PluginHost>>,
    manager: Option<(Running<PluginManager>, Port<PluginCommand>)>,
    _running: Running<QueryActor>,
}

/// What the write side tells about itself.
struct Told(Arc<History>);

impl Inspect for Told {
    fn compactions(&self) -> Vec<Compaction> {
        self.0.all()
    }
}

struct Stored(Arc<Store>);

impl Tables for Stored {
    fn catalog(&self) -> Arc<Snapshot> {
        self.0.catalog()
    }

    fn version(&self, table: TableId) -> Option<Arc<Version>> {
        Some(self.0.table(table)?.load())
    }
}

impl House {
    fn new() -> House {
        House::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> House {
        House::over(change, None)
    }

    /// With plugins, whose compiled code lies in this folder.
    fn over(change: impl FnOnce(&mut Settings), plugins: Option<&Path>) -> House {
        House::start(change, plugins, false)
    }

    /// With plugins and their manager, which keeps them in the metadata.
    fn managed(change: impl FnOnce(&mut Settings), plugins: &Path) -> House {
        House::start(change, Some(plugins), true)
    }

    fn start(change: impl FnOnce(&mut Settings), plugins: Option<&Path>, managed: bool) -> House {
        let mut settings = Settings::default();
        settings.server.data_dir = "/data".into();
        change(&mut settings);
        let settings = Arc::new(settings);
        let machine = sim::Sim::new(1).env();
        let env = Env { clock: real::env().clock, ..machine };
        let pools = Pools::start(PoolSizes::of(&settings, 2)).unwrap();
        let supervisor = Supervisor::new(&pools, env.clock.clone(), |_| {});
        let root = settings.server.data_dir.clone();
        let store = Store::open(env.clone(), root, &settings, &mut |_| {}).unwrap();
        let plugins = plugins.map(|folder| {
            let env = Env { disk: real::env().disk, ..env.clone() };
            let compiler = Compiler::in_process(&settings.plugins);
            PluginHost::start(&settings.plugins, folder, env, compiler).unwrap()
        });
        let host = plugins.clone();
        let engine =
            Engine::start(&settings, &env, &pools, &supervisor, store.clone(), host).unwrap();
        let manager = managed.then(|| {
            let context = plugin_manager::Context::new(
                settings.clone(),
                env.clone(),
                pools.clone(),
                store.clone(),
                engine.ddl().clone(),
                plugins.clone(),
                None,
            );
            let spec = Spec::new("plugin-manager", "plugin_manager");
            let running = supervisor.start(spec, move || PluginManager::new(context.clone()));
            let commands = running.port(Budget::count(16));
            (running, commands)
        });
        let changes = Ports {
            ddl: engine.ddl().clone(),
            write: engine.write().clone(),
            delete: engine.delete().clone(),
            compact: engine.compact().clone(),
            continuous: None,
            plugins: manager.as_ref().map(|(_, commands)| commands.clone()),
            alerts: None,
        };
        let service = QueryService::new(
            settings,
            env,
            pools.clone(),
            Arc::new(Stored(store)),
            Arc::new(changes),
            Arc::new(Told(engine.history().clone())),
            plugins.clone(),
            engine.memory().pressure().clone(),
        )
        .unwrap();
        let running = supervisor.start(Spec::new("query", "query"), move || service.actor());
        let ports = QueryPorts {
            parse: running.port(Budget::count(64)),
            prepare: running.port(Budget::count(64)),
            query: running.port(Budget::count(1024)),
        };
        House { engine, supervisor, ports, pools, plugins, manager, _running: running }
    }

    fn session(&self) -> Session {
        Session::start(&self.supervisor, self.ports.clone(), None, context())
    }

    /// Runs a test's body on the house's own threads.
    fn run<T: Send + 'static>(&self, body: impl Future<Output = T> + Send + 'static) -> T {
        self.pools.block_on(body).unwrap()
    }

    /// The last statement's rows, a text a row.
    fn rows(&self, sql: &str) -> Vec<String> {
        self.try_rows(sql).unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    fn try_rows(&self, sql: &str) -> Result<Vec<String>> {
        let session = self.session();
        let sql = sql.to_owned();
        self.run(async move { rows(&session, &sql).await })
    }

    fn fails(&self, sql: &str) -> Error {
        match self.try_rows(sql) {
            Err(error) => error,
            Ok(rows) => panic!("{sql}: {rows:?}"),
        }
    }

    fn code(&self, sql: &str) -> Code {
        self.fails(sql).code()
    }

    fn flush(&self) {
        let engine = self.engine.clone();
        self.run(async move { engine.writers().flush().await }).unwrap();
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.engine.stop();
        self.pools.stop();
    }
}

async fn rows(session: &Session, sql: &str) -> Result<Vec<String>> {
    let mut last = Vec::new();
    for statement in session.parse(sql).await? {
        let outcome = session.execute(Runnable::Statement(statement), Vec::new(), None).await?;
        last = collect(outcome).await?;
    }
    Ok(last)
}

/// Runs one statement with parameters, prepared.
async fn prepared(session: &Session, sql: &str, parameters: Vec<ArrayRef>) -> Result<Vec<String>> {
    let statement = session.parse(sql).await?.remove(0);
    let prepared = session.prepare(statement, Vec::new()).await?;
    let outcome = session.execute(Runnable::Prepared(prepared), parameters, None).await?;
    collect(outcome).await
}

async fn collect(outcome: Outcome) -> Result<Vec<String>> {
    match outcome {
        Outcome::Done { verb, rows, .. } => {
            Ok(vec![rows.map_or(verb.clone(), |rows| format!("{verb} {rows}"))])
        }
        Outcome::Rows { schema, mut stream, .. } => {
            let mut lines = Vec::new();
            while let Some(batch) = stream.next().await {
                let batch = batch?;
                assert_eq!(batch.schema(), schema);
                lines.extend(texts(&batch));
            }
            Ok(lines)
        }
    }
}
