//! What edits do to channels of alerts.

use std::sync::Arc;

use super::Snapshot;
use crate::alert::{ChannelDef, no_channel};
use crate::error::Result;

impl Snapshot {
    pub(super) fn put_channel(&mut self, channel: &ChannelDef) -> Result<()> {
        Arc::make_mut(&mut self.channels).insert(channel.name.clone(), Arc::new(channel.clone()));
        Ok(())
    }

    pub(super) fn drop_channel(&mut self, name: &str) -> Result<()> {
        match Arc::make_mut(&mut self.channels).remove(name) {
            Some(_) => Ok(()),
            None => Err(no_channel(name)),
        }
    }
}
