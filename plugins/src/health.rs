//! When a version is put aside: too many faults in a window of time, or too many in a row of
//! one ingest transform.

use std::collections::VecDeque;
use std::time::Duration;

use kymo_config::settings::Plugins;

use crate::stats::Fault;

/// The numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HealthLimits {
    faults: usize,
    window: Duration,
    transform_faults: usize,
}

impl HealthLimits {
    pub(crate) fn of(settings: &Plugins) -> HealthLimits {
        HealthLimits {
            faults: settings.max_faults,
            window: Duration::from_millis(settings.fault_window_ms),
            transform_faults: settings.max_transform_faults,
        }
    }
}

/// The faults of one version.
#[derive(Debug, Default)]
pub(crate) struct Health {
    recent: VecDeque<Duration>,
    transform: usize,
}

impl Health {
    /// Notes a fault at this time; says why the version has to be put aside, if it has to.
    pub(crate) fn fault(
        &mut self,
        limits: &HealthLimits,
        now: Duration,
        kind: Fault,
    ) -> Option<String> {
        let begin = now.saturating_sub(limits.window);
        while self.recent.front().is_some_and(|first| *first < begin) {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        (self.recent.len() >= limits.faults).then(|| {
            format!(
                "{} faults within {} s, the last one: {}",
                self.recent.len(),
                limits.window.as_secs_f64(),
                kind.as_str()
            )
        })
    }

    /// Notes how a call of an ingest transform ended.
    pub(crate) fn transformed(&mut self, limits: &HealthLimits, failed: bool) -> Option<String> {
        self.transform = if failed { self.transform + 1 } else { 0 };
        (self.transform >= limits.transform_faults)
            .then(|| format!("{} faults of a transform in a row", self.transform))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HealthLimits =
        HealthLimits { faults: 3, window: Duration::from_secs(10), transform_faults: 2 };

    #[test]
    fn faults_count_within_their_window_only() {
        let mut health = Health::default();
        let mut fault =
            |second| health.fault(&LIMITS, Duration::from_secs(second), Fault::Trap).is_some();
        assert!(!fault(1));
        assert!(!fault(2));
        assert!(!fault(12), "the first one is forgotten");
        assert!(fault(12));
    }

    #[test]
    fn a_good_call_of_a_transform_starts_its_row_anew() {
        let mut health = Health::default();
        assert!(health.transformed(&LIMITS, true).is_none());
        assert!(health.transformed(&LIMITS, false).is_none());
        assert!(health.transformed(&LIMITS, true).is_none());
        assert!(health.transformed(&LIMITS, true).is_some());
    }
}
