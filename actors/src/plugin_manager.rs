//! Keeps plugins: installs them, follows what the metadata says of them, and makes what the
//! plugin host does by itself durable.
//!
//! ```text
//! component (upload, file) ─► store (durable, named by digest)
//!        │ host.load: compile in a process of its own, describe       (background pool)
//!        ▼
//! catalog: compatible with what uses it? ─► metadata edit ─► registry ─► answer
//! ```
//!
//! The metadata decides; the registry of the plugin host follows. After every change the
//! manager compares both under one lock and with the newest metadata ([`publish`]), so that
//! changes that overtake one another end in the same state. Calls never wait for this actor:
//! they read the registry. At the start every plugin is loaded in the background, from the
//! cache of compiled code where it is there; one that cannot be loaded leaves the server up and
//! its functions failing with the reason.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use kymo_config::Settings;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::env::Env;
use kymo_kernel::message::{Ddl, PluginCommand, PluginDdl, PluginDone};
use kymo_kernel::pools::Pools;
use kymo_kernel::port::Port;
use kymo_kernel::storage::Store;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{Compiler, Event, PluginHost, PluginVersion};
use parking_lot::Mutex;
use serde_json::json;
use tracing::{info, warn};

pub use kymo_plugins::compile::{SUBCOMMAND as COMPILE_COMMAND, child as compile_child};

mod install;
pub(crate) mod publish;
mod source;

pub use source::Download;
pub(crate) use source::allowed;

/// The folder below the data folder where compiled code is cached: no part of the data.
const CACHE: &str = "cache/plugins";

/// What the manager works with. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Parts>);

struct Parts {
    settings: Arc<Settings>,
    env: Env,
    pools: Pools,
    store: Arc<Store>,
    ddl: Port<Ddl>,
    host: Option<Arc<PluginHost>>,
    download: Option<Arc<dyn Download>>,
    /// Versions that were loaded and that nobody has published yet.
    fresh: Mutex<Vec<Weak<PluginVersion>>>,
    /// Held while the registry is made to follow the metadata.
    publishing: tokio::sync::Mutex<()>,
}

/// Starts the plugin host of a process; `None` where plugins are switched off or where
/// everything runs on one simulated thread, which no process for compiling can join.
///
/// # Errors
/// Those of [`PluginHost::start`]; `io_error` where this program's own file is not known.
pub fn start_host(
    settings: &Settings,
    env: &Env,
    pools: &Pools,
) -> Result<Option<Arc<PluginHost>>> {
    if !settings.plugins.enabled || pools.is_here() {
        return Ok(None);
    }
    let folder: PathBuf = settings.server.data_dir.join(CACHE);
    // The program of a unit test is no compiler.
    let compiler = match cfg!(test) {
        true => Compiler::in_process(&settings.plugins),
        false => Compiler::this_program(&settings.plugins)?,
    };
    PluginHost::start(&settings.plugins, &folder, env.clone(), compiler).map(Some)
}

impl Context {
    /// A context over the parts of a running system.
    #[must_use]
    pub fn new(
        settings: Arc<Settings>,
        env: Env,
        pools: Pools,
        store: Arc<Store>,
        ddl: Port<Ddl>,
        host: Option<Arc<PluginHost>>,
        download: Option<Arc<dyn Download>>,
    ) -> Self {
        let publishing = tokio::sync::Mutex::default();
        let fresh = Mutex::default();
        Context(Arc::new(Parts {
            settings,
            env,
            pools,
            store,
            ddl,
            host,
            download,
            fresh,
            publishing,
        }))
    }

    fn host(&self) -> Result<&Arc<PluginHost>> {
        self.0.host.as_ref().ok_or_else(|| {
            Error::new(Code::Unsupported, "plugins are switched off")
                .with_hint("set plugins.enabled = true")
        })
    }

    /// Remembers a version for as long as somebody holds it.
    fn remember(&self, version: &Arc<PluginVersion>) {
        let mut fresh = self.0.fresh.lock();
        fresh.retain(|each| each.strong_count() > 0);
        fresh.push(Arc::downgrade(version));
    }

    /// Carries a command out, up to the moment when calls see it.
    async fn run(self, command: PluginCommand) -> Result<PluginDone> {
        match command {
            PluginCommand::Install { name, source, existing, activate, force, settings } => {
                let wanted = install::Wanted { name, existing, activate, force, settings };
                install::run(&self, wanted, source).await
            }
            PluginCommand::Change(change) => self.change(change).await,
        }
    }

    async fn change(&self, change: PluginDdl) -> Result<PluginDone> {
        // What calls are about to go to must be there before the metadata says so.
        let ready = publish::prepare(self, &change).await?;
        let name = change.plugin().map(str::to_owned);
        let done = self.commit(change).await?;
        if let Some(name) = &name {
            publish::follow(self, name).await;
        }
        drop(ready);
        Ok(self.done(name.as_deref(), done))
    }

    async fn commit(&self, change: PluginDdl) -> Result<bool> {
        self.0.ddl.call(Ddl::Plugin(change)).await.map(|done| done.changed)
    }

    fn done(&self, name: Option<&str>, changed: bool) -> PluginDone {
        let plugin = name.and_then(|name| self.0.store.catalog().plugins.get(name).cloned());
        PluginDone { changed, plugin, digest: None }
    }

    /// Makes durable what the registry did by itself.
    async fn keep(self, event: Event) -> Result<()> {
        let change = match event {
            Event::Suspended { plugin, reason } => PluginDdl::Suspend {
                name: plugin.name,
                reason,
                only: Some(plugin.digest),
                at_ns: self.0.env.clock.now_ns(),
            },
            Event::RolledBack { plugin, to, .. } => {
                PluginDdl::FallBack { name: plugin.name, from: plugin.digest, to: to.digest }
            }
            Event::CanaryWithdrawn { plugin, .. } => {
                PluginDdl::DropCanary { name: plugin.name, only: Some(plugin.digest) }
            }
        };
        self.commit(change).await.map(|_| ())
    }

    /// Loads every plugin, one after the other.
    async fn load_all(self) -> (usize, usize) {
        let names: Vec<String> = self.0.store.catalog().plugins.keys().cloned().collect();
        for name in &names {
            publish::follow(&self, name).await;
        }
        publish::forget_unused(&self).await;
        let failed = self.0.host.as_ref().map_or(names.len(), |host| {
            let map = host.registry().snapshot();
            map.entries().filter(|entry| entry.state.as_str() == "failed").count()
        });
        (names.len(), failed)
    }
}

/// The actor.
pub struct PluginManager {
    context: Context,
    loading: bool,
    commands: u64,
}

impl PluginManager {
    /// A manager over a context. Until their turn comes, plugins are said to be loading.
    #[must_use]
    pub fn new(context: Context) -> Self {
        publish::announce(&context);
        PluginManager { context, loading: true, commands: 0 }
    }
}

impl Actor for PluginManager {
    fn started(&mut self, cx: &mut Cx<Self>) {
        if let Some(host) = &self.context.0.host {
            let poster = cx.poster();
            host.registry().on_event(move |event| {
                let event = event.clone();
                poster.post(move |manager, cx| manager.heard(event, cx));
            });
        }
        cx.then(self.context.clone().load_all(), |manager, (plugins, failed), _| {
            manager.loading = false;
            if plugins > 0 {
                info!(plugins, failed, "plugins loaded");
            }
        });
    }

    fn observe(&self) -> serde_json::Value {
        json!({ "loading": self.loading, "commands": self.commands })
    }
}

impl PluginManager {
    fn heard(&mut self, event: Event, cx: &mut Cx<Self>) {
        cx.then(self.context.clone().keep(event), |_, outcome, _| {
            if let Err(error) = outcome {
                warn!(%error, "what became of a plugin was not kept; a restart forgets it");
            }
        });
    }
}

impl Handle<PluginCommand> for PluginManager {
    fn handle(&mut self, message: PluginCommand, reply: Reply<PluginCommand>, cx: &mut Cx<Self>) {
        self.commands += 1;
        cx.answer(reply, self.context.clone().run(message));
    }
}
