//! The session, carried inside the engine's configuration to the functions that tell about it.

use std::any::Any;
use std::sync::Arc;

use datafusion::common::config::{ConfigEntry, ConfigExtension, ConfigOptions, ExtensionOptions};
use datafusion::common::{DataFusionError, Result};
use kymo_kernel::message::{SessionContext, SettingChange};
use parking_lot::Mutex;

/// Who asks, as an extension of the engine's configuration. It cannot be set by SQL.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The session.
    pub(crate) session: Arc<SessionContext>,
    /// What the statement changed of it so far.
    pub(crate) changes: Arc<Mutex<Vec<SettingChange>>>,
}

impl Caller {
    /// A session that runs a statement.
    pub(crate) fn new(session: Arc<SessionContext>) -> Self {
        Caller { session, changes: Arc::default() }
    }

    /// The session of a function's call.
    pub(crate) fn of(config: &ConfigOptions) -> Option<&Arc<SessionContext>> {
        config.extensions.get::<Caller>().map(|caller| &caller.session)
    }

    /// Where a function's call notes what it changes.
    pub(crate) fn changes(config: &ConfigOptions) -> Option<&Arc<Mutex<Vec<SettingChange>>>> {
        config.extensions.get::<Caller>().map(|caller| &caller.changes)
    }
}

impl ConfigExtension for Caller {
    const PREFIX: &'static str = "kymo_caller";
}

impl ExtensionOptions for Caller {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(self.clone())
    }

    fn set(&mut self, key: &str, _value: &str) -> Result<()> {
        Err(DataFusionError::Configuration(format!("{key} cannot be set")))
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}
