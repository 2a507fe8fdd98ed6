//! One thread and a clock that jumps: the same actors, without waiting and without chance.
//!
//! [`run`] drives a future and everything that it spawns on [`Pools::here`](crate::pools::Pools::here) in a `LocalSet`.
//! Whenever nothing can run, the simulated clock jumps to the next moment that somebody waits
//! for. A day of timers takes milliseconds, and a run depends on nothing but its inputs.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use crate::env::sim::SimClock;
use crate::error::{Error, Result};

/// Runs a simulated program to its end.
///
/// ```
/// # use std::time::Duration;
/// # use kymo_kernel::{env::{Clock, sim::Sim}, simulate};
/// let sim = Sim::new(1);
/// let clock = sim.clock.clone();
/// simulate::run(&sim.clock, async move { clock.sleep(Duration::from_secs(86_400)).await }).unwrap();
/// assert_eq!(sim.clock.monotonic(), Duration::from_secs(86_400));
/// ```
///
/// # Errors
/// [`Code::Io`](crate::Code::Io) if the operating system refuses the runtime.
pub fn run<T>(clock: &Arc<SimClock>, program: impl Future<Output = T>) -> Result<T> {
    let idle = Arc::clone(clock);
    let runtime = Builder::new_current_thread()
        .on_thread_park(move || idle.jump())
        .build()
        .map_err(|error| Error::io("start the simulation", error))?;
    Ok(LocalSet::new().block_on(&runtime, program))
}
