//! The memory of a query's plugins as a part of the memory of all queries.

use std::sync::Arc;

use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use kymo_kernel::Result;
use kymo_plugins::MemoryAccount;

use super::super::error::from_engine;

/// What the plugins of one query have taken of the pool.
pub(super) struct Account(MemoryReservation);

impl Account {
    pub(super) fn new(pool: &Arc<dyn MemoryPool>) -> Self {
        Account(MemoryConsumer::new("plugins").register(pool))
    }
}

impl MemoryAccount for Account {
    fn try_grow(&self, bytes: usize) -> Result<()> {
        self.0.try_grow(bytes).map_err(from_engine)
    }

    fn shrink(&self, bytes: usize) {
        self.0.shrink(bytes);
    }
}
