//! Plugins, started: the host of compiled code, its manager and the way to it.

use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::env::Env;
use kymo_kernel::message::PluginCommand;
use kymo_kernel::pools::Pools;
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::supervise::{Restart, Running, Spec, Supervisor};
use kymo_plugins::PluginHost;
use parking_lot::Mutex;

use crate::engine::Engine;
use crate::plugin_manager::{Context, Download, PluginManager};

/// Changes of plugins that may wait or be carried out.
const COMMANDS: usize = 16;
/// Time that a change of plugins waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// The plugin manager and what it manages.
#[derive(Clone)]
pub(super) struct Plugins {
    pub(super) host: Option<Arc<PluginHost>>,
    pub(super) commands: Port<PluginCommand>,
    running: Arc<Mutex<Option<Running<PluginManager>>>>,
}

impl Plugins {
    pub(super) fn start(
        settings: &Arc<Settings>,
        env: &Env,
        pools: &Pools,
        supervisor: &Supervisor,
        engine: &Engine,
        host: Option<Arc<PluginHost>>,
        download: Option<Arc<dyn Download>>,
    ) -> Plugins {
        let context = Context::new(
            settings.clone(),
            env.clone(),
            pools.clone(),
            engine.store().clone(),
            engine.ddl().clone(),
            host.clone(),
            download,
        );
        let spec = Spec::new("plugin-manager", "plugin_manager").restart(Restart::BACKGROUND);
        let running = supervisor.start(spec, move || PluginManager::new(context.clone()));
        let commands = running.port(Budget { wait: WAIT, ..Budget::count(COMMANDS) });
        Plugins { host, commands, running: Arc::new(Mutex::new(Some(running))) }
    }

    /// Takes no more changes, and completes once every accepted one is answered.
    pub(super) async fn drain(&self) {
        self.commands.drain().await;
    }

    pub(super) fn stop(&self) {
        drop(self.running.lock().take());
    }
}
