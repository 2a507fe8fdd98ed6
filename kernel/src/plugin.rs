//! Plugins, the functions they lend to SQL and the transforms attached to tables, as the
//! metadata keeps them.
//!
//! These are definitions only. The component's bytes lie in the store as an object named by
//! their digest ([`crate::storage::components`]); compiled code is a cache and no part of the
//! data. What a component says about itself is kept as the text that the plugin host made of
//! it and checked: the kernel does not look inside.

use std::collections::{BTreeMap, BTreeSet};

use crate::digest::Digest;
use crate::error::{Code, Error, Result};
use crate::ids::TableId;

/// A plugin with its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginDef {
    /// Its name, the part before the dot in `plugin.function(…)`.
    pub name: String,
    /// Counts its changes; the first definition has 1.
    pub revision: u64,
    /// Its versions in the order of their installation; at least one.
    pub versions: Vec<PluginVersionDef>,
    /// The version that calls go to; `None` where none was activated yet.
    pub active: Option<Digest>,
    /// The version that was active before: where a rollback goes.
    pub previous: Option<Digest>,
    /// A version under trial.
    pub canary: Option<Canary>,
    /// Why it must not be called, if so.
    pub suspended: Option<Suspension>,
}

/// One version of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginVersionDef {
    /// Its component.
    pub digest: Digest,
    /// Bytes of the component.
    pub bytes: u64,
    /// The version that the component gives itself.
    pub version: String,
    /// What it offers, as the plugin host wrote it down when it was installed.
    pub description: String,
    /// When it was installed, in nanoseconds since 1970-01-01T00:00:00Z.
    pub installed_ns: i64,
    /// Settings for the component and limits for its instances, by name.
    pub settings: BTreeMap<String, String>,
}

/// A version that some of the queries use, before all do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canary {
    /// The version.
    pub digest: Digest,
    /// Of a hundred queries, how many use it: 1 to 99.
    pub percent: u8,
}

/// Why a plugin must not be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspension {
    /// For people.
    pub reason: String,
    /// Since when, in nanoseconds since 1970-01-01T00:00:00Z.
    pub since_ns: i64,
}

/// A function of a plugin under a name of its own (`CREATE FUNCTION`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionDef {
    /// The name.
    pub name: String,
    /// The plugin.
    pub plugin: String,
    /// Its function.
    pub function: String,
    /// The types of its parameters, as SQL writes them.
    pub parameters: Vec<String>,
    /// The type of its result, as SQL writes it.
    pub returns: String,
}

/// A transform that rows of a table pass before they are kept (`ATTACH TRANSFORM`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransformDef {
    /// The plugin.
    pub plugin: String,
    /// Its transform.
    pub function: String,
    /// Settings given to it for this table.
    pub settings: BTreeMap<String, String>,
    /// What happens to rows of a batch on which it fails.
    pub on_error: OnError,
}

/// What happens to rows on which a transform fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// The write is refused.
    Reject,
    /// The rows are kept as they came.
    Pass,
    /// The rows go to `system.rejected_writes`.
    DeadLetter,
}

impl OnError {
    /// The word of SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OnError::Reject => "reject",
            OnError::Pass => "pass",
            OnError::DeadLetter => "dead_letter",
        }
    }

    /// The meaning of a word of SQL.
    #[must_use]
    pub fn from_word(word: &str) -> Option<OnError> {
        [OnError::Reject, OnError::Pass, OnError::DeadLetter]
            .into_iter()
            .find(|each| each.as_str().eq_ignore_ascii_case(word))
    }
}

impl PluginDef {
    /// A version by its component.
    #[must_use]
    pub fn version(&self, digest: Digest) -> Option<&PluginVersionDef> {
        self.versions.iter().find(|version| version.digest == digest)
    }

    /// The version that calls go to.
    #[must_use]
    pub fn active_version(&self) -> Option<&PluginVersionDef> {
        self.version(self.active?)
    }

    /// The version that people mean: by digest, or by the version that components give
    /// themselves, the newest installation first.
    ///
    /// # Errors
    /// `plugin_not_found` where there is none.
    pub fn find(&self, label: &str) -> Result<&PluginVersionDef> {
        let named = |version: &&PluginVersionDef| {
            version.version == label || version.digest.to_string() == label
        };
        self.versions.iter().rev().find(named).ok_or_else(|| {
            let known: Vec<&str> = self.versions.iter().map(|each| each.version.as_str()).collect();
            Error::new(
                Code::PluginNotFound,
                format!("plugin {:?} has no version {label:?}", self.name),
            )
            .with_hint(format!("its versions: {}", known.join(", ")))
        })
    }

    /// The state in one word: `active`, `suspended`, or `staged` where nothing was activated.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (&self.suspended, self.active) {
            (Some(_), _) => "suspended",
            (None, Some(_)) => "active",
            (None, None) => "staged",
        }
    }

    /// Whether it can be kept: what it names exists, and nothing twice.
    ///
    /// # Errors
    /// `conflict`, saying what is wrong.
    pub fn check(&self) -> Result<()> {
        let wrong =
            |what: &str| Err(Error::new(Code::Conflict, format!("plugin {:?}: {what}", self.name)));
        let known: BTreeSet<Digest> = self.versions.iter().map(|each| each.digest).collect();
        if known.is_empty() || known.len() != self.versions.len() {
            return wrong("it has no version, or one twice");
        }
        let canary = self.canary.map(|canary| canary.digest);
        let named = [self.active, self.previous, canary];
        if !named.iter().flatten().all(|digest| known.contains(digest)) {
            return wrong("it names a version that it does not have");
        }
        match self.canary {
            Some(Canary { digest, percent }) if self.active == Some(digest) || percent > 99 => {
                wrong("its canary is no trial")
            }
            Some(Canary { percent: 0, .. }) => wrong("its canary is no trial"),
            _ => Ok(()),
        }
    }
}

/// The transforms of one table, in the order in which rows pass them.
pub type TransformChain = Vec<TransformDef>;

/// Which table, by identity, has which transforms.
pub type Transforms = BTreeMap<TableId, std::sync::Arc<TransformChain>>;
