//! Makes the registry of the plugin host follow the metadata: which versions are loaded, which
//! one calls go to, and whether there are calls at all.

use std::sync::{Arc, Weak};

use kymo_kernel::Result;
use kymo_kernel::message::PluginDdl;
use kymo_kernel::plugin::{PluginDef, PluginVersionDef};
use kymo_kernel::storage::meta::Snapshot;
use kymo_plugins::{PluginHost, PluginMap, PluginVersion, Registry};
use tracing::{debug, warn};

use super::install::options;
use super::{CACHE, Context};

/// Why a plugin cannot be called yet after a start; it is about to change.
const LOADING: &str = "it is still being loaded";

/// Whether a plugin cannot be called yet, after a start, and is about to be: who needs it
/// comes again.
pub(crate) fn loading(plugins: &PluginMap, known: &Snapshot, name: &str) -> bool {
    match plugins.get(name) {
        Ok(entry) => entry.state.reason() == Some(LOADING),
        Err(_) => known.plugins.contains_key(name),
    }
}

/// Until a plugin is loaded, its functions say so.
pub(super) fn announce(context: &Context) {
    let Some(host) = &context.0.host else { return };
    for name in context.0.store.catalog().plugins.keys() {
        log_failure(name, host.registry().fail(name, LOADING));
    }
}

/// Loads what a change is about to let calls go to, so that it is refused if that cannot be.
/// The versions stay loaded for as long as they are held.
pub(super) async fn prepare(
    context: &Context,
    change: &PluginDdl,
) -> Result<Vec<Arc<PluginVersion>>> {
    let catalog = context.0.store.catalog();
    let wanted = match change {
        PluginDdl::Activate { name, version, .. } | PluginDdl::SetCanary { name, version, .. } => {
            catalog.plugins.get(name).map(|plugin| plugin.find(version)).transpose()?.cloned()
        }
        PluginDdl::Rollback { name, .. } => {
            catalog.plugins.get(name).and_then(|plugin| plugin.version(plugin.previous?)).cloned()
        }
        PluginDdl::Resume { name } => {
            catalog.plugins.get(name).and_then(|plugin| plugin.active_version()).cloned()
        }
        PluginDdl::Set { name, settings } => {
            let active = catalog.plugins.get(name).and_then(|plugin| plugin.active_version());
            if let Some(active) = active {
                let mut all = active.settings.clone();
                let given = settings.iter().filter_map(|(key, value)| {
                    value.as_ref().map(|value| (key.clone(), value.clone()))
                });
                all.extend(given);
                options(&all)?;
            }
            None
        }
        _ => None,
    };
    match (wanted, change.plugin()) {
        (Some(version), Some(name)) => Ok(vec![load(context, name, version).await?]),
        _ => Ok(Vec::new()),
    }
}

/// Makes the registry say of one plugin what the metadata says. What cannot be loaded fails
/// with its reason; that is logged and no error of the change.
pub(super) async fn follow(context: &Context, name: &str) {
    let Some(host) = &context.0.host else { return };
    let _publishing = context.0.publishing.lock().await;
    let catalog = context.0.store.catalog();
    let Some(plugin) = catalog.plugins.get(name) else {
        // It was never published where its only version was staged.
        let _ = host.registry().remove(name);
        return;
    };
    let Some(active) = plugin.active_version() else {
        log_failure(name, host.registry().fail(name, "none of its versions is activated"));
        return;
    };
    match load(context, name, active.clone()).await {
        Ok(version) => log_failure(name, publish(context, host, plugin, version).await),
        Err(error) => {
            warn!(plugin = name, %error, "plugin could not be loaded");
            log_failure(name, host.registry().fail(name, error.message()));
        }
    }
}

async fn publish(
    context: &Context,
    host: &Arc<PluginHost>,
    plugin: &PluginDef,
    active: Arc<PluginVersion>,
) -> Result<()> {
    let registry = host.registry();
    if !is_active(registry, &active) {
        // The way back must be loaded before the registry can go it by itself.
        let previous = plugin.previous.and_then(|digest| plugin.version(digest));
        if let Some(previous) = previous.filter(|_| !knows_way_back(registry, plugin)) {
            match load(context, &plugin.name, previous.clone()).await {
                Ok(version) => registry.publish(version)?,
                Err(error) => warn!(plugin = plugin.name, %error, "no way back is loaded"),
            }
        }
        registry.publish(active)?;
    }
    try_out(context, registry, plugin).await?;
    let state = registry.snapshot().get(&plugin.name)?.state.clone();
    match &plugin.suspended {
        Some(suspension) => registry.suspend(&plugin.name, &suspension.reason),
        None if state.reason().is_some() => registry.resume(&plugin.name),
        None => Ok(()),
    }
}

async fn try_out(context: &Context, registry: &Registry, plugin: &PluginDef) -> Result<()> {
    let wanted = plugin.canary.and_then(|canary| Some((canary, plugin.version(canary.digest)?)));
    let Some((canary, version)) = wanted else { return registry.withdraw(&plugin.name) };
    let version = load(context, &plugin.name, version.clone()).await?;
    let entry = registry.snapshot().get(&plugin.name)?.clone();
    let same = entry.canary.as_ref().is_some_and(|trial| {
        Arc::ptr_eq(&trial.version, &version) && trial.percent == canary.percent
    });
    if same { Ok(()) } else { registry.try_out(version, canary.percent) }
}

fn is_active(registry: &Registry, version: &Arc<PluginVersion>) -> bool {
    let map = registry.snapshot();
    let active = map.get(version.name()).ok().and_then(|entry| entry.active.clone());
    active.is_some_and(|active| Arc::ptr_eq(&active, version))
}

fn knows_way_back(registry: &Registry, plugin: &PluginDef) -> bool {
    let map = registry.snapshot();
    let Ok(entry) = map.get(&plugin.name) else { return false };
    let versions = entry.active.iter().chain(&entry.previous);
    let mut digests = versions.map(|version| version.plugin().digest);
    digests.any(|digest| Some(digest) == plugin.previous)
}

/// The version as it was installed: the one that lives already, or loaded on the background
/// pool.
async fn load(context: &Context, name: &str, def: PluginVersionDef) -> Result<Arc<PluginVersion>> {
    let host = context.host()?.clone();
    let options = options(&def.settings)?;
    let limits = kymo_plugins::Limits::of(&context.0.settings.plugins, &options.limits);
    let same = |version: &Arc<PluginVersion>| {
        version.plugin().name == name
            && version.plugin().digest == def.digest
            && version.settings() == options.settings
            && *version.limits() == limits
    };
    let fresh: Vec<_> = context.0.fresh.lock().iter().filter_map(Weak::upgrade).collect();
    if let Some(loaded) = host.registry().loaded().into_iter().chain(fresh).find(same) {
        return Ok(loaded);
    }
    let (components, name) = (context.0.store.components().clone(), name.to_owned());
    let work = move || host.load(&name, &components.read(def.digest)?, &options);
    let version = context.0.pools.background("load-plugin", work).await??;
    context.remember(&version);
    Ok(version)
}

/// Removes compiled code of components that no plugin names any more.
pub(super) async fn forget_unused(context: &Context) {
    let Some(host) = context.0.host.clone() else { return };
    let catalog = context.0.store.catalog();
    let versions = catalog.plugins.values().flat_map(|plugin| &plugin.versions);
    let kept: Vec<_> = versions.map(|version| version.digest).collect();
    let work = move || host.cache().sweep(&kept);
    match context.0.pools.background("sweep-plugin-cache", work).await.and_then(|swept| swept) {
        Ok(files) => debug!(files, folder = CACHE, "compiled code without a plugin removed"),
        Err(error) => warn!(%error, "compiled code of old plugins could not be removed"),
    }
}

fn log_failure(name: &str, outcome: Result<()>) {
    if let Err(error) = outcome {
        warn!(plugin = name, %error, "the state of a plugin could not be published");
    }
}
