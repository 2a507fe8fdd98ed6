//! Counters of the journal, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::observe::metrics;

/// Upper bounds of the buckets of [`Stats::sync_buckets`], in microseconds; the last bucket
/// has none.
pub const SYNC_BOUNDS_US: [u64; 13] =
    [50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000];

/// What the journal has done since it was opened.
#[derive(Debug, Default)]
pub struct Stats {
    groups: AtomicU64,
    records: AtomicU64,
    bytes: AtomicU64,
    syncs: AtomicU64,
    sync_ns: AtomicU64,
    buckets: [AtomicU64; SYNC_BOUNDS_US.len() + 1],
}

impl Stats {
    pub(super) fn written(&self, groups: usize, records: usize, bytes: usize) {
        self.groups.fetch_add(groups as u64, Ordering::Relaxed);
        self.records.fetch_add(records as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let metrics = &metrics().journal;
        metrics.groups.inc_by(groups as u64);
        metrics.written_bytes.inc_by(bytes as u64);
        metrics.groups_per_write.observe(groups as f64);
    }

    pub(super) fn synced(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = SYNC_BOUNDS_US.partition_point(|bound| *bound < micros);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_ns.fetch_add(micros.saturating_mul(1000), Ordering::Relaxed);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
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

    /// Fsyncs by how long they took, by the bounds of [`SYNC_BOUNDS_US`].
    #[must_use]
    pub fn sync_buckets(&self) -> Vec<u64> {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect()
    }
}
