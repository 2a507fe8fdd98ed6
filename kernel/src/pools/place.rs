//! Arbiters: the threads that actors live on, in groups that do not disturb each other.
//!
//! They run over the shared I/O runtime, so that a task spawned or a timer started inside an
//! actor belongs to that runtime and not to the actor's one thread.

use std::sync::Arc;

use actix_rt::{Arbiter, ArbiterHandle, System};
use tokio::runtime::Runtime;

use crate::error::{Error, Result};
use crate::pools::thread;

/// Actors that share arbiters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Few messages, never delayed by data: catalog, query, feed, compactor, flusher.
    Control,
    /// Checking and splitting writes.
    Ingest,
    /// One actor per table.
    Writers,
    /// One actor per connection.
    Sessions,
}

impl Group {
    /// All of them, in the order of their numbers.
    pub const ALL: [Group; 4] = [Group::Control, Group::Ingest, Group::Writers, Group::Sessions];

    /// Its name; arbiter threads are called after it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Group::Control => "control",
            Group::Ingest => "ingest",
            Group::Writers => "writers",
            Group::Sessions => "sessions",
        }
    }
}

/// Where an actor runs.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// On an arbiter's thread.
    Arbiter(ArbiterHandle),
    /// In the `LocalSet` that the call is made in.
    Here,
}

/// The arbiters of all groups, and the actix system that they are registered with.
pub(crate) struct Arbiters {
    arbiters: Vec<Vec<Arbiter>>,
}

impl Arbiters {
    /// Starts `sizes[group]` arbiters for each group.
    pub(crate) fn start(io: &Arc<Runtime>, sizes: [usize; Group::ALL.len()]) -> Result<Arbiters> {
        let io = Arc::clone(io);
        // An arbiter must be started where a system is registered, and registering marks the
        // thread for good: hence a thread that ends with this call. The system itself has
        // nothing to run; arbiters are stopped and joined one by one.
        let started = thread("kymo-arbiters", move || {
            let for_system = Arc::clone(&io);
            let _system = System::with_tokio_rt(move || for_system);
            let start = |group: Group| -> std::io::Result<Vec<Arbiter>> {
                (0..sizes[group as usize]).map(|number| start_one(&io, group, number)).collect()
            };
            Group::ALL.into_iter().map(start).collect::<std::io::Result<Vec<_>>>()
        })?
        .join()?;
        let arbiters = started.map_err(|error| Error::io("start the actors' threads", error))?;
        Ok(Arbiters { arbiters })
    }

    pub(crate) fn handles(&self) -> Vec<Vec<ArbiterHandle>> {
        self.arbiters.iter().map(|group| group.iter().map(Arbiter::handle).collect()).collect()
    }

    /// Stops all threads and waits for them.
    pub(crate) fn stop(self) {
        self.abandon_all();
        for arbiter in self.arbiters.into_iter().flatten() {
            if arbiter.join().is_err() {
                tracing::error!("an actors' thread ended by a panic");
            }
        }
    }

    /// Tells all threads to stop without waiting for them.
    pub(crate) fn abandon(self) {
        self.abandon_all();
    }

    fn abandon_all(&self) {
        for arbiter in self.arbiters.iter().flatten() {
            arbiter.stop();
        }
    }
}

fn start_one(io: &Arc<Runtime>, group: Group, number: usize) -> std::io::Result<Arbiter> {
    let io = Arc::clone(io);
    let arbiter = Arbiter::try_with_tokio_rt(move || Ok(io))?;
    arbiter.spawn_fn(move || name_thread(&format!("{}-{number}", group.name())));
    Ok(arbiter)
}

/// Names the current thread for the operating system, as `top -H` shows it; actix has given
/// it a name that does not say what it is for. Linux keeps 15 bytes.
fn name_thread(name: &str) {
    #[cfg(target_os = "linux")]
    {
        let mut bytes = [0u8; 16];
        let len = name.len().min(15);
        bytes[..len].copy_from_slice(&name.as_bytes()[..len]);
        // SAFETY: the buffer outlives the call and ends with a zero.
        unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = name;
}
