//! The memory that the process has, watched: who would take more is turned away before the
//! system kills the process.
//!
//! What the parts count ([`super::share`]) is not all that the process takes: buffers of
//! connections, fragments of the allocator and plugins come on top. So the resident memory that
//! is the process's own is looked at every `memory.check_ms`. From [`HIGH`] percent of the limit
//! on there is pressure, until it is below [`LOW`]: rows in memory are flushed, writes are told to
//! come back while there are any, and queries wait, except for one at a time, so that the system
//! goes on however the memory is spent. A query that has waited too long gets `out_of_memory`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kymo_kernel::observe::metrics;
use tokio::sync::watch;
use tracing::{info, warn};

/// Percent of the limit at which there is pressure.
pub const HIGH: u64 = 85;
/// Percent of the limit below which it is over.
pub const LOW: u64 = 78;

/// How things stand; shared by all who take memory.
#[derive(Debug)]
pub struct Pressure {
    /// Zero where there is none.
    limit: u64,
    resident: AtomicU64,
    high: AtomicBool,
    changed: watch::Sender<bool>,
}

impl Pressure {
    /// Against a limit; without one there never is any.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Arc<Pressure> {
        let limit = limit.unwrap_or(0);
        metrics().memory.limit_bytes.set(shown(limit));
        Arc::new(Pressure {
            limit,
            resident: AtomicU64::new(0),
            high: AtomicBool::new(false),
            changed: watch::channel(false).0,
        })
    }

    /// Whether there is a limit to watch.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.limit > 0
    }

    /// Whether there is pressure.
    #[must_use]
    pub fn is_high(&self) -> bool {
        self.high.load(Ordering::Relaxed)
    }

    /// Bytes that the process had at the last look, and may have.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        (self.resident.load(Ordering::Relaxed), self.limit)
    }

    /// Notes what the process has now.
    pub fn note(&self, resident: u64) {
        self.resident.store(resident, Ordering::Relaxed);
        metrics().memory.resident_bytes.set(shown(resident));
        let before = self.is_high();
        let percent = if before { LOW } else { HIGH };
        let now = self.is_bound() && resident >= self.limit / 100 * percent;
        if now == before {
            return;
        }
        self.high.store(now, Ordering::Relaxed);
        self.changed.send_replace(now);
        metrics().memory.pressure.set(i64::from(now));
        if now {
            warn!(resident, limit = self.limit, "memory is short: rows are flushed, queries wait");
        } else {
            info!(resident, limit = self.limit, "memory is enough again");
        }
    }

    /// Completes when there is none.
    pub async fn over(&self) {
        let mut changed = self.changed.subscribe();
        // The sender lives in `self`.
        let _ = changed.wait_for(|high| !high).await;
    }
}

/// Bytes of memory that are the process's own and not the page cache's; `None` where the system
/// does not tell.
#[must_use]
pub fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn shown(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_begins_high_and_ends_low() {
        let pressure = Pressure::new(Some(1000));
        let steps = [(840, false), (850, true), (800, true), (779, false), (840, false)];
        for (resident, high) in steps {
            pressure.note(resident);
            assert_eq!(pressure.is_high(), high, "{resident}");
        }
        assert_eq!(pressure.bytes(), (840, 1000));
    }

    #[test]
    fn without_a_limit_there_never_is_any() {
        let pressure = Pressure::new(None);
        pressure.note(u64::MAX);
        assert!(!pressure.is_high());
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let pressure = Pressure::new(Some(1000));
        pressure.note(1000);
        let over = pressure.over();
        tokio::pin!(over);
        assert!(futures::poll!(&mut over).is_pending());
        pressure.note(10);
        over.await;
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_system_tells_what_the_process_has() {
        assert!(resident().unwrap() > 100_000);
    }
}
