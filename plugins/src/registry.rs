//! Which version of each plugin is in use: one immutable map that is replaced as a whole, so
//! that who plans a query sees one state of the world and never waits.
//!
//! Running queries pin the versions that they were planned with. A version that fails too
//! often is put aside here; whoever keeps plugins durable hears of it as an [`Event`].

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use kymo_config::settings::Plugins;
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;

use crate::health::{Health, HealthLimits};
use crate::identity::{Digest, PluginRef};
use crate::stats::Fault;
use crate::version::{PluginFunction, PluginVersion};

/// Whether a plugin can be called, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It can.
    Active,
    /// It failed too often.
    Suspended(String),
    /// Somebody switched it off.
    Disabled(String),
    /// It could not be loaded.
    Failed(String),
}

impl State {
    /// Its name in `system.plugins`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            State::Active => "active",
            State::Suspended(_) => "suspended",
            State::Disabled(_) => "disabled",
            State::Failed(_) => "failed",
        }
    }

    /// Why it cannot be called.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match self {
            State::Active => None,
            State::Suspended(why) | State::Disabled(why) | State::Failed(why) => Some(why),
        }
    }
}

/// A new version on trial.
#[derive(Debug, Clone)]
pub struct Canary {
    /// The version.
    pub version: Arc<PluginVersion>,
    /// How many of a hundred queries get it.
    pub percent: u8,
}

/// A seed near this one of a query that gets no version on trial.
#[must_use]
pub fn untried(seed: u64) -> u64 {
    // A trial is of fewer than a hundred of a hundred.
    (seed / 100).max(1) * 100 - 1
}

/// A plugin and its versions.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it can be called.
    pub state: State,
    /// The version in use; `None` if it failed to load.
    pub active: Option<Arc<PluginVersion>>,
    /// A version on trial.
    pub canary: Option<Canary>,
    /// Versions before the active one, the latest first.
    pub previous: Vec<Arc<PluginVersion>>,
}

impl Entry {
    /// The version that a query with this seed gets.
    ///
    /// # Errors
    /// [`Code::PluginUnavailable`] with the reason if it cannot be called.
    pub fn version(&self, seed: u64) -> Result<&Arc<PluginVersion>> {
        if let Some(reason) = self.state.reason() {
            let text = format!("plugin {} is {}: {reason}", self.name, self.state.as_str());
            return Err(Error::new(Code::PluginUnavailable, text)
                .with_hint("an administrator can resume it or install another version"));
        }
        let canary = self.canary.as_ref().filter(|trial| seed % 100 < u64::from(trial.percent));
        let version = canary.map(|trial| &trial.version).or(self.active.as_ref());
        version.ok_or_else(|| {
            Error::new(Code::PluginUnavailable, format!("plugin {} is not loaded", self.name))
        })
    }
}

/// All plugins at one moment.
#[derive(Debug, Clone, Default)]
pub struct PluginMap(BTreeMap<Arc<str>, Arc<Entry>>);

impl PluginMap {
    /// The plugin of this name.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`].
    pub fn get(&self, name: &str) -> Result<&Arc<Entry>> {
        self.0.get(name).ok_or_else(|| not_found(name))
    }

    /// All plugins by name.
    pub fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.values()
    }

    /// The functions that a query with this seed may call; those of plugins that cannot be
    /// called are left out.
    pub fn functions(&self, seed: u64) -> impl Iterator<Item = PluginFunction> + '_ {
        self.0
            .values()
            .filter_map(move |entry| entry.version(seed).ok())
            .flat_map(PluginFunction::all)
    }

    /// One function.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`], [`Code::PluginUnavailable`] or [`Code::FunctionNotFound`].
    pub fn function(&self, plugin: &str, name: &str, seed: u64) -> Result<PluginFunction> {
        PluginFunction::named(self.get(plugin)?.version(seed)?, name)
    }
}

/// Something that the registry did by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A version in use was put aside, and nothing took its place.
    Suspended {
        /// The version.
        plugin: PluginRef,
        /// Why.
        reason: String,
    },
    /// A version in use was put aside, and the one before took its place.
    RolledBack {
        /// The version.
        plugin: PluginRef,
        /// The version in use now.
        to: PluginRef,
        /// Why.
        reason: String,
    },
    /// A version on trial was withdrawn.
    CanaryWithdrawn {
        /// The version.
        plugin: PluginRef,
        /// Why.
        reason: String,
    },
}

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// The plugins of a process.
pub struct Registry {
    map: ArcSwap<PluginMap>,
    /// Held while the map is replaced; never while a listener runs.
    changes: Mutex<Changes>,
    limits: HealthLimits,
    roll_back: bool,
    max_plugins: usize,
    max_versions: usize,
}

#[derive(Default)]
struct Changes {
    health: HashMap<PluginRef, Health>,
    listeners: Vec<Listener>,
    /// Every version that was ever published and may still live in some query.
    loaded: Vec<Weak<PluginVersion>>,
}

impl Registry {
    /// An empty registry.
    #[must_use]
    pub fn new(settings: &Plugins) -> Registry {
        Registry {
            map: ArcSwap::default(),
            changes: Mutex::default(),
            limits: HealthLimits::of(settings),
            roll_back: settings.on_fault == "rollback",
            max_plugins: settings.max_plugins,
            max_versions: settings.max_versions,
        }
    }

    /// All plugins now.
    #[must_use]
    pub fn snapshot(&self) -> Arc<PluginMap> {
        self.map.load_full()
    }

    /// Every version that lives: those of the map and those that a query still holds.
    #[must_use]
    pub fn loaded(&self) -> Vec<Arc<PluginVersion>> {
        let mut changes = self.changes.lock();
        changes.loaded.retain(|version| version.strong_count() > 0);
        changes.loaded.iter().filter_map(Weak::upgrade).collect()
    }

    /// Calls this whenever the registry has done something by itself. It is called on the
    /// thread of the failing query and must not block.
    pub fn on_event(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.changes.lock().listeners.push(Arc::new(listener));
    }

    /// Puts a version to use: queries that are planned from now on get it, and the one before
    /// it can be rolled back to. Ends a trial, a suspension and a disablement.
    ///
    /// # Errors
    /// [`Code::TooLarge`] if there are too many plugins.
    pub fn publish(&self, version: Arc<PluginVersion>) -> Result<()> {
        let name = version.name().clone();
        self.change(|map, changes| {
            changes.learn(&version);
            changes.health.remove(version.plugin());
            let previous = match map.0.get(&name) {
                Some(entry) => self.history(entry, version.plugin().digest),
                None => Vec::new(),
            };
            let entry = Entry {
                name: name.clone(),
                state: State::Active,
                active: Some(version),
                canary: None,
                previous,
            };
            self.put(map, entry)
        })
    }

    /// Puts a version on trial beside the active one, for so many of a hundred queries.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`] without an active version, [`Code::InvalidInput`] for a share
    /// above 100.
    pub fn try_out(&self, version: Arc<PluginVersion>, percent: u8) -> Result<()> {
        if percent > 100 {
            return Err(Error::new(Code::InvalidInput, format!("{percent} of a hundred queries")));
        }
        let name = version.name().clone();
        self.change(|map, changes| {
            changes.learn(&version);
            changes.health.remove(version.plugin());
            let mut entry = map.get(&name)?.as_ref().clone();
            if entry.active.is_none() {
                return Err(not_found(&name));
            }
            entry.canary = Some(Canary { version, percent });
            self.put(map, entry)
        })
    }

    /// Ends a trial: its version is forgotten.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`].
    pub fn withdraw(&self, name: &str) -> Result<()> {
        self.edit(name, |entry| {
            entry.canary = None;
            Ok(())
        })
    }

    /// Puts the version before the active one to use.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`] if there is none.
    pub fn roll_back(&self, name: &str) -> Result<Arc<PluginVersion>> {
        self.change(|map, changes| {
            let mut entry = map.get(name)?.as_ref().clone();
            let version = step_back(&mut entry)?;
            changes.health.remove(version.plugin());
            self.put(map, entry)?;
            Ok(version)
        })
    }

    /// Stops calls of a plugin until [`Registry::resume`] or another version.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`].
    pub fn disable(&self, name: &str, reason: &str) -> Result<()> {
        self.edit(name, |entry| {
            entry.state = State::Disabled(reason.to_owned());
            Ok(())
        })
    }

    /// Puts a plugin aside, as too many faults do.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`].
    pub fn suspend(&self, name: &str, reason: &str) -> Result<()> {
        self.edit(name, |entry| {
            entry.state = State::Suspended(reason.to_owned());
            Ok(())
        })
    }

    /// Lets a suspended or disabled plugin be called again.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`]; [`Code::PluginUnavailable`] if it could not be loaded.
    pub fn resume(&self, name: &str) -> Result<()> {
        self.change(|map, changes| {
            let mut entry = map.get(name)?.as_ref().clone();
            let Some(active) = &entry.active else {
                let text = format!("plugin {name} has no version that could be loaded");
                return Err(Error::new(Code::PluginUnavailable, text).with_hint("install it again"));
            };
            changes.health.remove(active.plugin());
            entry.state = State::Active;
            self.put(map, entry)
        })
    }

    /// Says that a plugin could not be loaded: its functions fail with the reason.
    ///
    /// # Errors
    /// [`Code::TooLarge`] if there are too many plugins.
    pub fn fail(&self, name: &str, reason: &str) -> Result<()> {
        self.change(|map, _| {
            let entry = Entry {
                name: name.into(),
                state: State::Failed(reason.to_owned()),
                active: None,
                canary: None,
                previous: Vec::new(),
            };
            self.put(map, entry)
        })
    }

    /// Forgets a plugin. Queries that have pinned it end undisturbed.
    ///
    /// # Errors
    /// [`Code::PluginNotFound`].
    pub fn remove(&self, name: &str) -> Result<()> {
        self.change(|map, changes| {
            map.0.remove(name).ok_or_else(|| not_found(name))?;
            changes.health.retain(|plugin, _| plugin.name != name);
            Ok(())
        })
    }

    /// Counts a fault of a version, and puts it aside if it has been one too many.
    pub(crate) fn fault(&self, version: &PluginVersion, kind: Fault, now: Duration) {
        version.stats().fault(kind);
        let verdict = {
            let mut changes = self.changes.lock();
            let health = changes.health.entry(version.plugin().clone()).or_default();
            health.fault(&self.limits, now, kind)
        };
        if let Some(reason) = verdict {
            self.put_aside(version, reason);
        }
    }

    /// Counts how a call of an ingest transform ended.
    pub(crate) fn transformed(&self, version: &PluginVersion, failed: bool) {
        let verdict = {
            let mut changes = self.changes.lock();
            let health = changes.health.entry(version.plugin().clone()).or_default();
            health.transformed(&self.limits, failed)
        };
        if let Some(reason) = verdict {
            self.put_aside(version, reason);
        }
    }

    /// Takes a failing version out of use. Does nothing if it is out of use already.
    fn put_aside(&self, version: &PluginVersion, reason: String) {
        let plugin = version.plugin();
        let decided = self.change(|map, changes| {
            let mut entry = map.get(&plugin.name)?.as_ref().clone();
            let event = self.sentence(&mut entry, plugin, reason);
            changes.health.remove(plugin);
            self.put(map, entry)?;
            Ok(event)
        });
        // A plugin that was removed in the meantime needs no sentence.
        let Ok(Some(event)) = decided else { return };
        tracing::warn!(plugin = %plugin, ?event, "a plugin was put aside");
        let listeners = self.changes.lock().listeners.clone();
        for listener in listeners {
            listener(&event);
        }
    }

    fn sentence(&self, entry: &mut Entry, plugin: &PluginRef, reason: String) -> Option<Event> {
        let is = |version: &Arc<PluginVersion>| version.plugin() == plugin;
        if entry.canary.as_ref().is_some_and(|trial| is(&trial.version)) {
            entry.canary = None;
            return Some(Event::CanaryWithdrawn { plugin: plugin.clone(), reason });
        }
        if !entry.active.as_ref().is_some_and(is) || entry.state != State::Active {
            return None;
        }
        if self.roll_back && !entry.previous.is_empty() {
            let to = step_back(entry).ok()?.plugin().clone();
            return Some(Event::RolledBack { plugin: plugin.clone(), to, reason });
        }
        entry.state = State::Suspended(reason.clone());
        Some(Event::Suspended { plugin: plugin.clone(), reason })
    }

    /// The versions before a new one, without the new one itself.
    fn history(&self, entry: &Entry, new: Digest) -> Vec<Arc<PluginVersion>> {
        let versions = entry.active.iter().chain(&entry.previous);
        let others = versions.filter(|version| version.plugin().digest != new);
        others.take(self.max_versions.saturating_sub(1)).cloned().collect()
    }

    fn put(&self, map: &mut PluginMap, entry: Entry) -> Result<()> {
        if !map.0.contains_key(&entry.name) && map.0.len() >= self.max_plugins {
            let text = format!("{} plugins are installed", map.0.len());
            return Err(Error::new(Code::TooLarge, text)
                .with_hint("remove one, or raise plugins.max_plugins"));
        }
        map.0.insert(entry.name.clone(), Arc::new(entry));
        Ok(())
    }

    fn edit(&self, name: &str, edit: impl FnOnce(&mut Entry) -> Result<()>) -> Result<()> {
        self.change(|map, _| {
            let mut entry = map.get(name)?.as_ref().clone();
            edit(&mut entry)?;
            self.put(map, entry)
        })
    }

    /// Replaces the map by a changed copy, if the change succeeds.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut PluginMap, &mut Changes) -> Result<T>,
    ) -> Result<T> {
        let mut changes = self.changes.lock();
        let mut map = self.map.load().as_ref().clone();
        let result = change(&mut map, &mut changes)?;
        self.map.store(Arc::new(map));
        Ok(result)
    }
}

impl Changes {
    fn learn(&mut self, version: &Arc<PluginVersion>) {
        self.loaded.retain(|each| each.strong_count() > 0);
        if !self.loaded.iter().any(|each| each.as_ptr() == Arc::as_ptr(version)) {
            self.loaded.push(Arc::downgrade(version));
        }
    }
}

fn step_back(entry: &mut Entry) -> Result<Arc<PluginVersion>> {
    if entry.previous.is_empty() {
        let text = format!("plugin {} has no version before the one in use", entry.name);
        return Err(Error::new(Code::PluginNotFound, text));
    }
    let version = entry.previous.remove(0);
    entry.active = Some(version.clone());
    entry.canary = None;
    entry.state = State::Active;
    Ok(version)
}

fn not_found(name: &str) -> Error {
    Error::new(Code::PluginNotFound, format!("there is no plugin {name}"))
        .with_hint("system.plugins lists those that are installed")
}
