//! What is counted of one version of a plugin: for `system.plugins`, and, added up from time
//! to time, for the metrics of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use kymo_kernel::observe::metrics;

/// How a plugin failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// It trapped.
    Trap,
    /// A call took longer than it may.
    Deadline,
    /// It wanted more memory than it may have, and failed for it.
    Memory,
    /// What it handed back breaks the interface.
    Interface,
}

impl Fault {
    /// All kinds.
    pub const ALL: [Fault; 4] = [Fault::Trap, Fault::Deadline, Fault::Memory, Fault::Interface];

    /// Its name in metrics and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Trap => "trap",
            Fault::Deadline => "deadline",
            Fault::Memory => "memory",
            Fault::Interface => "interface",
        }
    }
}

/// Counters of one version since it was loaded.
pub struct Stats {
    name: Arc<str>,
    version: Arc<str>,
    calls: AtomicU64,
    rows: AtomicU64,
    nanoseconds: AtomicU64,
    instances: AtomicUsize,
    created: AtomicU64,
    memory: AtomicUsize,
    faults: [AtomicU64; Fault::ALL.len()],
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Calls that ended.
    pub calls: u64,
    /// Rows handed over.
    pub rows: u64,
    /// Time within calls.
    pub nanoseconds: u64,
    /// Instances that live.
    pub instances: usize,
    /// Instances made.
    pub created: u64,
    /// The most memory that one instance has had, in bytes.
    pub memory_high_water: usize,
    /// Faults, in the order of [`Fault::ALL`].
    pub faults: [u64; Fault::ALL.len()],
}

/// What one instance has counted and not yet handed to the metrics.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    calls: u64,
    rows: u64,
    nanoseconds: u64,
}

/// Calls after which an instance hands its counts to the metrics.
const FLUSH: u64 = 64;

impl Stats {
    pub(crate) fn new(name: Arc<str>, version: Arc<str>) -> Stats {
        Stats {
            name,
            version,
            calls: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            instances: AtomicUsize::new(0),
            created: AtomicU64::new(0),
            memory: AtomicUsize::new(0),
            faults: Default::default(),
        }
    }

    /// The counters now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            calls: self.calls.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
            instances: self.instances.load(Ordering::Relaxed),
            created: self.created.load(Ordering::Relaxed),
            memory_high_water: self.memory.load(Ordering::Relaxed),
            faults: [0, 1, 2, 3].map(|kind: usize| self.faults[kind].load(Ordering::Relaxed)),
        }
    }

    fn labels(&self) -> [&str; 2] {
        [&self.name, &self.version]
    }

    pub(crate) fn created(&self) {
        self.instances.fetch_add(1, Ordering::Relaxed);
        self.created.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) {
        self.instances.fetch_sub(1, Ordering::Relaxed);
    }

    /// Counts a call; the metrics hear of it some calls later.
    pub(crate) fn called(&self, pending: &mut Pending, rows: u64, nanoseconds: u64) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        pending.calls += 1;
        pending.rows += rows;
        pending.nanoseconds += nanoseconds;
        if pending.calls >= FLUSH {
            self.flush(pending);
        }
    }

    pub(crate) fn flush(&self, pending: &mut Pending) {
        let Pending { calls, rows, nanoseconds } = std::mem::take(pending);
        let metrics = &metrics().plugins;
        metrics.calls.with_label_values(&self.labels()).inc_by(calls);
        metrics.rows.with_label_values(&self.labels()).inc_by(rows);
        metrics.nanoseconds.with_label_values(&self.labels()).inc_by(nanoseconds);
    }

    pub(crate) fn memory(&self, bytes: usize) {
        if bytes > self.memory.load(Ordering::Relaxed) {
            self.memory.fetch_max(bytes, Ordering::Relaxed);
            let gauge = metrics().plugins.memory_bytes.with_label_values(&self.labels());
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn fault(&self, kind: Fault) {
        self.faults[kind as usize].fetch_add(1, Ordering::Relaxed);
        let [name, version] = self.labels();
        metrics().plugins.faults.with_label_values(&[name, version, kind.as_str()]).inc();
    }
}

/// A version that is gone leaves no metrics behind: their number stays bounded by the
/// versions that are loaded.
impl Drop for Stats {
    fn drop(&mut self) {
        let metrics = &metrics().plugins;
        let labels = self.labels();
        // What was never counted is not there to be removed.
        let _ = metrics.calls.remove_label_values(&labels);
        let _ = metrics.rows.remove_label_values(&labels);
        let _ = metrics.nanoseconds.remove_label_values(&labels);
        let _ = metrics.memory_bytes.remove_label_values(&labels);
        for kind in Fault::ALL {
            let [name, version] = labels;
            let _ = metrics.faults.remove_label_values(&[name, version, kind.as_str()]);
        }
    }
}
