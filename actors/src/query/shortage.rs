//! Who may begin to run while the process is short of memory: one at a time, so that queries go
//! on whatever the memory is spent on. The others wait, but not for ever.

use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::observe::metrics;
use kymo_kernel::{Code, Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::running::Limits;
use crate::memory::pressure::Pressure;

/// The door that closes.
pub(super) struct Shortage {
    pressure: Arc<Pressure>,
    patience: Duration,
    one: Arc<Semaphore>,
}

impl Shortage {
    /// Of a process, for queries that wait at most so long.
    pub(super) fn new(pressure: Arc<Pressure>, patience: Duration) -> Shortage {
        Shortage { pressure, patience, one: Arc::new(Semaphore::new(1)) }
    }

    /// Waits until a query may begin; what it gives has to be kept while the query runs.
    ///
    /// # Errors
    /// `out_of_memory` where that took too long; `cancelled` and `deadline_exceeded` meanwhile.
    pub(super) async fn pass(&self, limits: &Limits) -> Result<Option<OwnedSemaphorePermit>> {
        if !self.pressure.is_high() {
            return Ok(None);
        }
        let waiting = async {
            tokio::select! {
                biased;
                () = self.pressure.over() => Ok(None),
                one = self.one.clone().acquire_owned() => {
                    one.map(Some).map_err(|_| Error::internal("the last place is closed"))
                }
                () = limits.clock.sleep(self.patience) => Err(self.refuse()),
            }
        };
        limits.race(waiting).await
    }

    fn refuse(&self) -> Error {
        metrics().memory.refused_queries.inc();
        let (resident, limit) = self.pressure.bytes();
        let (waited, mib) = (self.patience.as_millis(), |bytes: u64| bytes >> 20);
        let what = format!(
            "the query waited {waited} ms for memory: the server has {} MiB of {} MiB",
            mib(resident),
            mib(limit)
        );
        Error::new(Code::OutOfMemory, what).with_hint(
            "try again when fewer queries run; lower query.memory_bytes, or give the server more \
             memory",
        )
    }
}

#[cfg(test)]
mod tests {
    use kymo_kernel::cancel::CancelToken;
    use kymo_kernel::env::sim::Sim;

    use super::*;

    fn short() -> (Sim, Arc<Pressure>, Shortage, Limits) {
        let sim = Sim::new(1);
        let pressure = Pressure::new(Some(1000));
        pressure.note(900);
        let shortage = Shortage::new(pressure.clone(), Duration::from_secs(10));
        let limits =
            Limits { cancel: CancelToken::new(), deadline: None, clock: sim.env().clock.clone() };
        (sim, pressure, shortage, limits)
    }

    #[tokio::test]
    async fn one_at_a_time_passes_and_who_waits_too_long_is_refused() {
        let (sim, _pressure, shortage, limits) = short();
        let first = shortage.pass(&limits).await.unwrap();
        assert!(first.is_some());
        let second = shortage.pass(&limits);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        sim.clock.advance(Duration::from_secs(9));
        assert!(futures::poll!(&mut second).is_pending());
        sim.clock.advance(Duration::from_secs(2));
        let error = second.await.unwrap_err();
        assert_eq!(error.code(), Code::OutOfMemory);
        drop(first);
        assert!(shortage.pass(&limits).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn those_that_wait_go_on_when_it_is_over_and_end_when_they_are_cancelled() {
        let (_sim, pressure, shortage, limits) = short();
        let _first = shortage.pass(&limits).await.unwrap();
        let second = shortage.pass(&limits);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        pressure.note(10);
        assert!(second.await.unwrap().is_none());
        assert!(shortage.pass(&limits).await.unwrap().is_none());
        pressure.note(900);
        limits.cancel.cancel();
        assert_eq!(shortage.pass(&limits).await.unwrap_err().code(), Code::Cancelled);
    }
}
