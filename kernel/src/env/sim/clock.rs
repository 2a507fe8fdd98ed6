//! A clock that is turned by hand and wakes those whose time has come.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use crate::env::Clock;

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct SimClock {
    start_ns: i64,
    state: Arc<Mutex<ClockState>>,
}

#[derive(Debug, Default)]
struct ClockState {
    elapsed: Duration,
    next: u64,
    /// Who waits, by time and then by order of asking.
    sleepers: BTreeMap<(Duration, u64), Waker>,
}

impl SimClock {
    /// A clock that shows this time.
    #[must_use]
    pub fn new(start_ns: i64) -> Self {
        SimClock { start_ns, state: Arc::default() }
    }

    /// Moves time forward and wakes those whose time has come.
    pub fn advance(&self, by: Duration) {
        let mut state = self.state.lock();
        state.elapsed += by;
        let now = (state.elapsed, u64::MAX);
        let later = state.sleepers.split_off(&now);
        let due = std::mem::replace(&mut state.sleepers, later);
        drop(state);
        due.into_values().for_each(Waker::wake);
    }

    /// Moves time to the next moment that somebody waits for, if anybody does.
    pub fn jump(&self) {
        let wait = {
            let state = self.state.lock();
            let next = state.sleepers.first_key_value();
            next.map(|((until, _), _)| until.saturating_sub(state.elapsed))
        };
        if let Some(wait) = wait {
            self.advance(wait);
        }
    }
}

impl Clock for SimClock {
    fn now_ns(&self) -> i64 {
        let elapsed = i64::try_from(self.state.lock().elapsed.as_nanos()).unwrap_or(i64::MAX);
        self.start_ns.saturating_add(elapsed)
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().elapsed
    }

    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let mut state = self.state.lock();
        state.next += 1;
        let key = (state.elapsed.saturating_add(duration), state.next);
        Box::pin(Sleep { state: self.state.clone(), key })
    }
}

struct Sleep {
    state: Arc<Mutex<ClockState>>,
    key: (Duration, u64),
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.elapsed >= self.key.0 {
            return Poll::Ready(());
        }
        state.sleepers.insert(self.key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.state.lock().sleepers.remove(&self.key);
    }
}
