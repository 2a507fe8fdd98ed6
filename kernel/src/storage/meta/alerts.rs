//! What edits do to alert rules and silences.

use std::sync::Arc;

use super::{Snapshot, conflict};
use crate::alert::{AlertDef, SilenceDef, no_alert};
use crate::error::{Code, Error, Result};

impl Snapshot {
    pub(super) fn put_alert(&mut self, alert: &AlertDef) -> Result<()> {
        let current = self.alerts.get(&alert.name).map_or(0, |known| known.revision);
        if alert.revision != current + 1 {
            return Err(conflict(format!(
                "alert {:?} is at revision {current}, the edit brings {}",
                alert.name, alert.revision
            )));
        }
        Arc::make_mut(&mut self.alerts).insert(alert.name.clone(), Arc::new(alert.clone()));
        Ok(())
    }

    pub(super) fn drop_alert(&mut self, name: &str) -> Result<()> {
        match Arc::make_mut(&mut self.alerts).remove(name) {
            Some(_) => Ok(()),
            None => Err(no_alert(name)),
        }
    }

    pub(super) fn put_silence(&mut self, silence: &SilenceDef) -> Result<()> {
        Arc::make_mut(&mut self.silences).insert(silence.id, Arc::new(silence.clone()));
        Ok(())
    }

    pub(super) fn drop_silence(&mut self, id: u64) -> Result<()> {
        match Arc::make_mut(&mut self.silences).remove(&id) {
            Some(_) => Ok(()),
            None => Err(Error::new(Code::AlertNotFound, format!("silence {id} does not exist"))
                .with_hint("SHOW SILENCES lists those that do")),
        }
    }
}
