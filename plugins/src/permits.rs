//! How many instances may live: a counter in front of the pool, so that the hundredth query
//! waits a moment where the pool would fail it.

use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::env::Clock;
use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use parking_lot::{Condvar, Mutex};

use crate::engine::TICK;

/// The counter. Waiting blocks the thread, as calls of plugins do.
pub(crate) struct Permits {
    most: usize,
    wait: Duration,
    clock: Arc<dyn Clock>,
    taken: Mutex<usize>,
    returned: Condvar,
}

/// The right to have one instance, until it is dropped.
pub(crate) struct Permit(Arc<Permits>);

impl Permits {
    pub(crate) fn new(most: usize, wait: Duration, clock: Arc<dyn Clock>) -> Arc<Permits> {
        Arc::new(Permits { most, wait, clock, taken: Mutex::new(0), returned: Condvar::new() })
    }

    /// Permits that are out.
    pub(crate) fn taken(&self) -> usize {
        *self.taken.lock()
    }

    /// A permit, if one is left.
    pub(crate) fn try_take(self: &Arc<Self>) -> Option<Permit> {
        let mut taken = self.taken.lock();
        if *taken >= self.most {
            return None;
        }
        *taken += 1;
        metrics().plugins.instances.inc();
        metrics().plugins.created_instances.inc();
        Some(Permit(self.clone()))
    }

    /// A permit, waited for as long as the settings say and `check` lets it.
    ///
    /// # Errors
    /// [`Code::Busy`] when the wait is over; what `check` says.
    pub(crate) fn take(self: &Arc<Self>, check: impl Fn() -> Result<()>) -> Result<Permit> {
        if let Some(permit) = self.try_take() {
            return Ok(permit);
        }
        metrics().plugins.instance_waits.inc();
        let end = self.clock.monotonic() + self.wait;
        loop {
            check()?;
            if let Some(permit) = self.try_take() {
                return Ok(permit);
            }
            if self.clock.monotonic() >= end {
                let text = format!("all {} plugin instances are in use", self.most);
                return Err(Error::new(Code::Busy, text)
                    .with_hint("try again, or raise plugins.max_instances"));
            }
            let mut taken = self.taken.lock();
            if *taken >= self.most {
                self.returned.wait_for(&mut taken, TICK);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *self.0.taken.lock() -= 1;
        metrics().plugins.instances.dec();
        self.0.returned.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::env::real;

    use super::*;

    #[test]
    fn a_permit_is_waited_for_until_it_returns_the_wait_ends_or_the_query_does() {
        let permits = Permits::new(1, Duration::from_millis(30), real::env().clock);
        let held = permits.take(|| Ok(())).unwrap();
        let busy = permits.take(|| Ok(())).map(drop).unwrap_err();
        assert_eq!(busy.code(), Code::Busy);
        let cancelled = || Err(Error::new(Code::Cancelled, "cancelled"));
        assert_eq!(permits.take(cancelled).map(drop).unwrap_err().code(), Code::Cancelled);
        let patient = Permits::new(1, Duration::from_secs(60), real::env().clock);
        let first = patient.take(|| Ok(())).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| patient.take(|| Ok(())).map(drop));
            drop(first);
            second.join().unwrap().unwrap();
        });
        drop(held);
        assert_eq!((permits.taken(), patient.taken()), (0, 0));
    }
}
