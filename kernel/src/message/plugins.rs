//! Plugins: what can be asked of their manager, and the changes of definitions that it asks
//! of the catalog.

use std::sync::Arc;

use super::Message;
use crate::digest::Digest;
use crate::plugin::{FunctionDef, PluginDef, PluginVersionDef, TransformDef};
use crate::schema::TableName;
use crate::storage::components::Held;

/// Where a component comes from.
#[derive(Debug, Clone)]
pub enum PluginSource {
    /// It was uploaded and is in the store.
    Stored(Arc<Held>),
    /// `file:…`, `https:…`, or `sha256:…` for one that was uploaded earlier.
    Location(String),
}

/// What an installation does where the plugin exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Fails.
    Refuse,
    /// Succeeds silently and changes nothing.
    Keep,
    /// Adds a version to it.
    AddVersion,
}

/// A change of plugins. Query, gateway → plugin manager.
#[derive(Debug, Clone)]
pub enum PluginCommand {
    /// Compiles a component, asks it what it offers, and keeps it as a version of a plugin.
    Install {
        /// The plugin.
        name: String,
        /// Its component.
        source: PluginSource,
        /// What to do where the plugin exists.
        existing: Existing,
        /// Whether calls go to the new version at once.
        activate: bool,
        /// Whether to go on where functions and transforms would lose what they use.
        force: bool,
        /// Settings and limits of the version; those of the active one where absent.
        settings: Vec<(String, String)>,
    },
    /// Any other change.
    Change(PluginDdl),
}

impl Message for PluginCommand {
    type Reply = PluginDone;
}

/// The answer to a change of plugins.
#[derive(Debug, Clone)]
pub struct PluginDone {
    /// Whether anything changed.
    pub changed: bool,
    /// The plugin concerned, as it is now.
    pub plugin: Option<Arc<PluginDef>>,
    /// The version that was installed.
    pub digest: Option<Digest>,
}

/// A change of the definitions of plugins. Plugin manager → catalog.
#[derive(Debug, Clone)]
pub enum PluginDdl {
    /// Adds a version, or names an existing one again; creates the plugin where it is new.
    AddVersion {
        /// The plugin.
        name: String,
        /// The version; its component is in the store.
        version: Box<PluginVersionDef>,
        /// What to do where the plugin exists.
        existing: Existing,
        /// Whether calls go to it at once, and a suspension ends.
        activate: bool,
        /// Whether to go on where functions and transforms would lose what they use.
        force: bool,
    },
    /// Lets calls go to a version; ends a suspension, and a trial of the same version.
    Activate {
        /// The plugin.
        name: String,
        /// The version that the component gives itself, or its digest.
        version: String,
        /// Whether to go on where functions and transforms would lose what they use.
        force: bool,
    },
    /// Lets calls go to the version before again; ends a suspension.
    Rollback {
        /// The plugin.
        name: String,
        /// Whether to go on where functions and transforms would lose what they use.
        force: bool,
    },
    /// Leaves a version that failed for the one before it. No rollback leads back.
    FallBack {
        /// The plugin.
        name: String,
        /// The version that failed: only if it is still the active one.
        from: Digest,
        /// Where calls go again.
        to: Digest,
    },
    /// Lets calls fail with a reason.
    Suspend {
        /// The plugin.
        name: String,
        /// For people.
        reason: String,
        /// Only if this is the active version: a fault of an older one no longer matters.
        only: Option<Digest>,
        /// When, in nanoseconds since 1970-01-01T00:00:00Z.
        at_ns: i64,
    },
    /// Ends a suspension.
    Resume {
        /// The plugin.
        name: String,
    },
    /// Changes settings and limits of the active version; `None` removes one.
    Set {
        /// The plugin.
        name: String,
        /// By name.
        settings: Vec<(String, Option<String>)>,
    },
    /// Tries a version on some of the queries.
    SetCanary {
        /// The plugin.
        name: String,
        /// The version that the component gives itself, or its digest.
        version: String,
        /// Of a hundred queries, how many use it: 1 to 99.
        percent: u8,
        /// Whether to go on where functions and transforms would lose what they use.
        force: bool,
    },
    /// Ends a trial.
    DropCanary {
        /// The plugin.
        name: String,
        /// Only if this is the version under trial.
        only: Option<Digest>,
    },
    /// `DROP PLUGIN`.
    Drop {
        /// The plugin.
        name: String,
        /// Succeed silently where it does not exist.
        if_exists: bool,
        /// Drop its functions and detach its transforms too; else they keep it.
        cascade: bool,
    },
    /// `CREATE FUNCTION`.
    CreateFunction {
        /// The function.
        function: FunctionDef,
        /// Replace one of that name.
        or_replace: bool,
    },
    /// `DROP FUNCTION`.
    DropFunction {
        /// Its name.
        name: String,
        /// Succeed silently where it does not exist.
        if_exists: bool,
    },
    /// `ATTACH TRANSFORM`: rows of the table pass it after those attached before. Attaching it
    /// again changes its settings and keeps its place.
    Attach {
        /// The table.
        table: TableName,
        /// The transform.
        transform: TransformDef,
    },
    /// `DETACH TRANSFORM`.
    Detach {
        /// The table.
        table: TableName,
        /// The plugin.
        plugin: String,
        /// Its transform.
        function: String,
    },
}

impl PluginDdl {
    /// The plugin that changes, if one does.
    #[must_use]
    pub fn plugin(&self) -> Option<&str> {
        match self {
            PluginDdl::AddVersion { name, .. }
            | PluginDdl::Activate { name, .. }
            | PluginDdl::Rollback { name, .. }
            | PluginDdl::FallBack { name, .. }
            | PluginDdl::Suspend { name, .. }
            | PluginDdl::Resume { name }
            | PluginDdl::Set { name, .. }
            | PluginDdl::SetCanary { name, .. }
            | PluginDdl::DropCanary { name, .. }
            | PluginDdl::Drop { name, .. } => Some(name),
            PluginDdl::CreateFunction { .. }
            | PluginDdl::DropFunction { .. }
            | PluginDdl::Attach { .. }
            | PluginDdl::Detach { .. } => None,
        }
    }
}
