//! Installing: from bytes in the store to a version that the metadata names.

use std::collections::BTreeMap;
use std::sync::Arc;

use kymo_kernel::message::{Existing, PluginDdl, PluginDone, PluginSource};
use kymo_kernel::plugin::PluginVersionDef;
use kymo_kernel::storage::components::Held;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{LoadOptions, OwnLimits, PluginVersion};
use tracing::info;

use super::{Context, publish, source};

/// What an installation should do.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) existing: Existing,
    pub(super) activate: bool,
    pub(super) force: bool,
    pub(super) settings: Vec<(String, String)>,
}

/// Settings that are limits rather than the plugin's own.
const LIMITS: [&str; 3] = ["memory_bytes", "call_timeout_ms", "batch_rows"];

/// What a version is loaded with, from what it was installed with.
///
/// # Errors
/// `invalid_input` for a limit that is no positive number.
pub(super) fn options(settings: &BTreeMap<String, String>) -> Result<LoadOptions> {
    let limit = |key: &str| -> Result<Option<u64>> {
        let Some(text) = settings.get(key) else { return Ok(None) };
        match text.parse::<u64>() {
            Ok(value) if value > 0 => Ok(Some(value)),
            _ => Err(Error::new(
                Code::InvalidInput,
                format!("setting {key} = {text:?} is no positive whole number"),
            )),
        }
    };
    let own = settings.iter().filter(|(key, _)| !LIMITS.contains(&key.as_str()));
    Ok(LoadOptions {
        limits: OwnLimits {
            memory_bytes: limit("memory_bytes")?,
            call_timeout_ms: limit("call_timeout_ms")?,
            batch_rows: limit("batch_rows")?,
        },
        settings: own.map(|(key, value)| (key.clone(), value.clone())).collect(),
    })
}

pub(super) async fn run(
    context: &Context,
    wanted: Wanted,
    source: PluginSource,
) -> Result<PluginDone> {
    context.host()?;
    let exists = context.0.store.catalog().plugins.contains_key(&wanted.name);
    if exists && wanted.existing == Existing::Keep {
        return Ok(context.done(Some(&wanted.name), false));
    }
    let worker = context.clone();
    let (name, given) = (wanted.name.clone(), wanted.settings.clone());
    let work = move || prepare(&worker, &name, given, source);
    let (held, version, def) = context.0.pools.background("install-plugin", work).await??;
    context.remember(&version);
    let change = PluginDdl::AddVersion {
        name: wanted.name.clone(),
        version: Box::new(def),
        existing: wanted.existing,
        activate: wanted.activate,
        force: wanted.force,
    };
    // Held until here, so that the component cannot be collected before it is named.
    let changed = context.commit(change).await?;
    let digest = held.digest();
    drop(held);
    publish::follow(context, &wanted.name).await;
    info!(
        plugin = wanted.name,
        %digest,
        version = version.description().version,
        functions = version.description().functions.len(),
        compiled_ms = version.compile_time().map(|time| time.as_millis()),
        "plugin installed"
    );
    Ok(PluginDone { digest: Some(digest), ..context.done(Some(&wanted.name), changed) })
}

/// Fetches where needed, compiles and describes. Blocks.
fn prepare(
    context: &Context,
    name: &str,
    given: Vec<(String, String)>,
    source: PluginSource,
) -> Result<(Arc<Held>, Arc<PluginVersion>, PluginVersionDef)> {
    let host = context.host()?;
    let held = match source {
        PluginSource::Stored(held) => held,
        PluginSource::Location(location) => Arc::new(source::fetch(context, &location)?),
    };
    let settings = inherited(context, name, given);
    let bytes = context.0.store.components().read(held.digest())?;
    let version = host.load(name, &bytes, &options(&settings)?)?;
    let description = serde_json::to_string(version.description())
        .map_err(|error| Error::internal(format!("write a plugin's description: {error}")))?;
    let def = PluginVersionDef {
        digest: held.digest(),
        bytes: held.bytes(),
        version: version.description().version.clone(),
        description,
        installed_ns: context.0.env.clock.now_ns(),
        settings,
    };
    Ok((held, version, def))
}

/// The settings of the active version, with those given in their place.
fn inherited(
    context: &Context,
    name: &str,
    given: Vec<(String, String)>,
) -> BTreeMap<String, String> {
    let catalog = context.0.store.catalog();
    let active = catalog.plugins.get(name).and_then(|plugin| plugin.active_version());
    let mut settings = active.map(|version| version.settings.clone()).unwrap_or_default();
    settings.extend(given);
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_from_settings_and_checked() {
        let settings = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let read = options(&settings(&[("memory_bytes", "1024"), ("unit", "kelvin")])).unwrap();
        assert_eq!(read.limits.memory_bytes, Some(1024));
        assert_eq!(read.settings, [("unit".to_owned(), "kelvin".to_owned())]);
        for bad in ["0", "-1", "much"] {
            let error = options(&settings(&[("call_timeout_ms", bad)])).unwrap_err();
            assert_eq!(error.code(), Code::InvalidInput, "{bad}");
        }
    }
}
