//! One version of an installed plugin: compiled, linked, described, with its limits, its
//! settings and what has been counted of it. Queries pin the one that they were planned with;
//! its code goes when the last of them has ended.

use std::sync::Arc;
use std::time::Duration;

use crate::description::{Description, Function, Overload};
use crate::identity::PluginRef;
use crate::limits::Limits;
use crate::line::{Line, Target};
use crate::stats::Stats;
use kymo_kernel::{Code, Error, Result};

/// A loaded version of a plugin.
pub struct PluginVersion {
    plugin: PluginRef,
    name: Arc<str>,
    short: Arc<str>,
    description: Description,
    limits: Limits,
    settings: Vec<(String, String)>,
    compile_time: Option<Duration>,
    stats: Stats,
    line: Box<dyn Line>,
}

/// What a version is made of, beside its code.
pub(crate) struct Parts {
    pub(crate) plugin: PluginRef,
    pub(crate) description: Description,
    pub(crate) limits: Limits,
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) compile_time: Option<Duration>,
}

impl PluginVersion {
    pub(crate) fn new(parts: Parts, line: Box<dyn Line>) -> PluginVersion {
        let name: Arc<str> = parts.plugin.name.as_str().into();
        let short: Arc<str> = short(&parts.plugin).into();
        PluginVersion {
            stats: Stats::new(name.clone(), short.clone()),
            plugin: parts.plugin,
            name,
            short,
            description: parts.description,
            limits: parts.limits,
            settings: parts.settings,
            compile_time: parts.compile_time,
            line,
        }
    }

    /// Its name and digest.
    #[must_use]
    pub fn plugin(&self) -> &PluginRef {
        &self.plugin
    }

    /// The name that it is installed under.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The first twelve digits of its digest: its version in logs and metrics.
    #[must_use]
    pub fn short(&self) -> &Arc<str> {
        &self.short
    }

    /// What it says of itself.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// What it has to keep to.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The settings that it is started with.
    #[must_use]
    pub fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// How long compiling took; `None` where the compiled code was in the cache.
    #[must_use]
    pub fn compile_time(&self) -> Option<Duration> {
        self.compile_time
    }

    /// What has been counted of it.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(crate) fn set_description(&mut self, description: Description) {
        self.description = description;
    }

    pub(crate) fn line(&self) -> &dyn Line {
        self.line.as_ref()
    }
}

impl std::fmt::Debug for PluginVersion {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "PluginVersion({})", self.plugin)
    }
}

/// The first twelve digits of a digest.
pub(crate) fn short(plugin: &PluginRef) -> String {
    let digest = plugin.digest.to_string();
    let digits = digest.rsplit(':').next().unwrap_or_default();
    digits.chars().take(12).collect()
}

/// A function of a pinned version. Cheap to clone.
#[derive(Debug, Clone)]
pub struct PluginFunction {
    version: Arc<PluginVersion>,
    index: u32,
}

impl PluginFunction {
    /// All functions of a version.
    pub fn all(version: &Arc<PluginVersion>) -> impl Iterator<Item = PluginFunction> + '_ {
        (0..version.description.functions.len())
            .filter_map(|index| u32::try_from(index).ok())
            .map(|index| PluginFunction { version: version.clone(), index })
    }

    /// The function of this name.
    ///
    /// # Errors
    /// [`Code::FunctionNotFound`] if the plugin has none.
    pub fn named(version: &Arc<PluginVersion>, name: &str) -> Result<PluginFunction> {
        match version.description.function(name) {
            Some((index, _)) => Ok(PluginFunction { version: version.clone(), index }),
            None => Err(Error::new(
                Code::FunctionNotFound,
                format!("plugin {} has no function {name}", version.name),
            )),
        }
    }

    /// The version that it belongs to.
    #[must_use]
    pub fn version(&self) -> &Arc<PluginVersion> {
        &self.version
    }

    /// What it is.
    #[must_use]
    pub fn function(&self) -> &Function {
        // The index came from this very list.
        &self.version.description.functions[self.index as usize]
    }

    /// One of its overloads, and how to name it in a call.
    pub(crate) fn overload(&self, overload: usize) -> Result<(Target, &Overload)> {
        let found = self.function().overloads.get(overload);
        let number = u32::try_from(overload).ok();
        match found.zip(number) {
            Some((found, overload)) => Ok((Target { function: self.index, overload }, found)),
            None => Err(Error::internal(format!(
                "function {} has no overload {overload}",
                self.function().name
            ))),
        }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }
}
