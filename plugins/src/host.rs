//! The plugin host of a process: engine, compiler, cache, registry and log, and the way from
//! uploaded bytes to a version that can be published.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kymo_config::settings::Plugins;
use kymo_kernel::env::Env;
use kymo_kernel::{Code, Error, Result};
use wasmtime::component::Component;

use crate::cache::Cache;
use crate::compile::Compiler;
use crate::description::{Description, Kind};
use crate::engine::Engine;
use crate::identity::PluginRef;
use crate::instance::{Birth, CallSite, Failure, Instance, QueryContext};
use crate::limits::{DescriptionLimits, Limits, OwnLimits};
use crate::line;
use crate::log::PluginLog;
use crate::memory::Unlimited;
use crate::query::QueryPlugins;
use crate::registry::Registry;
use crate::validate::check_size;
use crate::version::{Parts, PluginVersion};

/// What a plugin is installed with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Limits of its own.
    pub limits: OwnLimits,
    /// Settings that its instances are started with.
    pub settings: Vec<(String, String)>,
}

/// Everything that plugins need in a process.
pub struct PluginHost {
    settings: Plugins,
    engine: Arc<Engine>,
    compiler: Compiler,
    cache: Cache,
    registry: Registry,
    log: Arc<PluginLog>,
}

impl PluginHost {
    /// Starts the host. `folder` is for compiled code and belongs to it alone.
    ///
    /// # Errors
    /// [`Code::Io`] if the folder cannot be used, [`Code::Internal`] if this machine cannot run
    /// compiled components.
    pub fn start(
        settings: &Plugins,
        folder: &Path,
        env: Env,
        compiler: Compiler,
    ) -> Result<Arc<PluginHost>> {
        let engine = Engine::start(settings, env.clone())?;
        Ok(Arc::new(PluginHost {
            cache: Cache::open(folder, &env, engine.compatibility())?,
            log: Arc::new(PluginLog::new(env.clock, settings.log_entries)),
            registry: Registry::new(settings),
            settings: settings.clone(),
            engine,
            compiler,
        }))
    }

    /// Compiles (or finds compiled), links and describes a component. The version is not
    /// published: see [`Registry::publish`].
    ///
    /// Blocks, for as long as compiling takes: it belongs on the background pool.
    ///
    /// # Errors
    /// [`Code::InvalidInput`] and [`Code::TooLarge`] for what is refused,
    /// [`Code::PluginFailed`], [`Code::Deadline`] or [`Code::OutOfMemory`] if it cannot describe
    /// itself, [`Code::Unsupported`] if plugins, or the interfaces it needs, are switched off.
    pub fn load(
        &self,
        name: &str,
        wasm: &[u8],
        options: &LoadOptions,
    ) -> Result<Arc<PluginVersion>> {
        if !self.settings.enabled {
            return Err(Error::new(Code::Unsupported, "plugins are switched off")
                .with_hint("set plugins.enabled = true"));
        }
        check_size(wasm.len() as u64, self.compiler.limits())?;
        let plugin = PluginRef::new(name, wasm)?;
        self.load_checked(plugin, wasm, options)
            .map_err(|error| error.context(format!("load plugin {name}")))
    }

    fn load_checked(
        &self,
        plugin: PluginRef,
        wasm: &[u8],
        options: &LoadOptions,
    ) -> Result<Arc<PluginVersion>> {
        let (component, compile_time) = self.component(&plugin, wasm)?;
        let line = line::bind(self.engine.wasm(), &component)?;
        let parts = Parts {
            plugin,
            description: Description {
                name: String::new(),
                version: String::new(),
                description: String::new(),
                functions: Vec::new(),
            },
            limits: Limits::of(&self.settings, &options.limits),
            settings: options.settings.clone(),
            compile_time,
        };
        let version = Arc::new(PluginVersion::new(parts, line));
        let description = self.describe(&version).map_err(|failure| failure.error)?;
        self.check(&version, &description)?;
        let mut version = version;
        match Arc::get_mut(&mut version) {
            Some(version_mut) => version_mut.set_description(description),
            None => return Err(Error::internal("a version in use before it was described")),
        }
        Ok(version)
    }

    /// Compiled code from the cache, or from the compiler and then the cache.
    fn component(&self, plugin: &PluginRef, wasm: &[u8]) -> Result<(Component, Option<Duration>)> {
        if let Some(compiled) = self.cache.get(&plugin.digest) {
            // SAFETY: the cache gives out only what verifies as put there by this server,
            // which puts nothing there but its compiler's output.
            match unsafe { self.engine.load(&compiled) } {
                Ok(component) => return Ok((component, None)),
                Err(error) => {
                    tracing::warn!(%error, plugin = %plugin, "cached code is compiled again");
                    self.cache.remove(&plugin.digest);
                }
            }
        }
        let clock = &self.engine.env().clock;
        let (compiled, took) = self.compiler.compile(wasm, clock.as_ref())?;
        if let Err(error) = self.cache.put(&plugin.digest, &compiled) {
            tracing::warn!(%error, plugin = %plugin, "compiled code is not cached");
        }
        // SAFETY: it is the output of our compiler, straight from its pipe.
        let component = unsafe { self.engine.load(&compiled) }?;
        Ok((component, Some(took)))
    }

    /// Asks a component, in an instance of its own, what it offers.
    fn describe(&self, version: &Arc<PluginVersion>) -> std::result::Result<Description, Failure> {
        let context = Arc::new(QueryContext {
            cancel: Arc::default(),
            deadline: None,
            time_ns: self.engine.env().clock.now_ns(),
            timezone: "UTC".to_owned(),
            seed: 0,
            memory: Arc::new(Unlimited),
            usage: Arc::default(),
        });
        let birth = Birth { engine: &self.engine, log: &self.log, context: &context };
        let permit = self.engine.permits().take(|| Ok(()))?;
        let mut instance = Instance::new(&birth, version, permit)?;
        let time = version.limits().start_timeout;
        instance.call_within(time, CallSite::of("describe"), |bound, store| bound.describe(store))
    }

    fn check(&self, version: &PluginVersion, description: &Description) -> Result<()> {
        description.check(&DescriptionLimits::of(&self.settings))?;
        for function in &description.functions {
            let preview = matches!(function.kind, Kind::Window | Kind::Table | Kind::Transform);
            if preview && !self.settings.preview {
                let text =
                    format!("function {} is of kind {}", function.name, function.kind.as_str());
                return Err(Error::new(Code::Unsupported, text)
                    .with_hint("set plugins.preview = true to try interfaces that can change"));
            }
            if !version.line().kinds().contains(&function.kind) {
                let text = format!(
                    "it describes {} as {} and does not export that interface",
                    function.name,
                    function.kind.as_str()
                );
                return Err(Error::new(Code::InvalidInput, text));
            }
        }
        Ok(())
    }

    /// The plugins for one query.
    #[must_use]
    pub fn query(self: &Arc<Self>, context: QueryContext) -> Arc<QueryPlugins> {
        QueryPlugins::new(self.clone(), context)
    }

    /// Which versions are in use.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What plugins have logged.
    #[must_use]
    pub fn log(&self) -> &Arc<PluginLog> {
        &self.log
    }

    /// The cache of compiled code.
    #[must_use]
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Counts a failure against its plugin, if it is the plugin's, and gives the error on.
    pub(crate) fn failed(&self, version: &PluginVersion, failure: Failure) -> Error {
        if let Some(fault) = failure.fault {
            let now = self.engine.env().clock.monotonic();
            self.registry.fault(version, fault, now);
        }
        failure.error
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::env::real;

    use super::*;
    use crate::identity::Digest;

    #[test]
    fn code_that_verifies_and_does_not_fit_is_compiled_again() {
        let wasm = include_bytes!("../guests/c2f/c2f.wasm");
        let folder = tempfile::tempdir().unwrap();
        let settings = Plugins { start_timeout_ms: 5000, ..Plugins::default() };
        let compiler = Compiler::in_process(&settings);
        let host = PluginHost::start(&settings, folder.path(), real::env(), compiler).unwrap();
        let load = || host.load("c2f", wasm, &LoadOptions::default()).unwrap();
        load();
        let digest = Digest::of(wasm);
        let good = host.cache.get(&digest).unwrap();
        // Of the same compiler, without the checks that let calls be interrupted.
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(false);
        let other = wasmtime::Engine::new(&config).unwrap();
        let foreign = other.precompile_component(wasm).unwrap();
        for bad in [foreign, good[..good.len() / 2].to_vec(), vec![7; 4096], Vec::new()] {
            host.cache.put(&digest, &bad).unwrap();
            assert!(load().compile_time().is_some(), "compiled again");
            assert_eq!(load().compile_time(), None, "and cached again");
        }
    }
}
