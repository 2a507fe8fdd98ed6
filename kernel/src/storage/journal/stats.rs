//! Counters of the journal: those of this store, and the process's metrics beside them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::observe::metrics;

/// What the journal has done since it was opened.
#[derive(Debug, Default)]
pub struct Stats {
    groups: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    sync_ns: AtomicU64,
}

impl Stats {
    pub(super) fn written(&self, groups: usize, records: usize, bytes: usize) {
        self.groups.fetch_add(groups as u64, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics().journal.groups.inc_by(groups as u64);
        metrics().journal.groups_per_write.observe(groups as f64);
        metrics().journal.written_bytes.inc_by(bytes as u64);
    }

    pub(super) fn synced(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_ns.fetch_add(nanos, Ordering::Relaxed);
        metrics().journal.sync_seconds.observe(took.as_secs_f64());
    }

    /// Groups written.
    #[must_use]
    pub fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }

    /// Records written.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Bytes written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Fsyncs.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Time spent in fsyncs.
    #[must_use]
    pub fn sync_time(&self) -> Duration {
        Duration::from_nanos(self.sync_ns.load(Ordering::Relaxed))
    }
}
