//! A thread that looks at all actors every second, so that nothing that is stuck can hide.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::error::Result;
use crate::pools::{NamedThread, thread};
use crate::supervise::progress::{Change, Stuck};
use crate::supervise::{Inner, What};

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the watchdog thread; dropping it ends the thread.
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<NamedThread<()>>,
}

impl Watchdog {
    pub(crate) fn start(inner: Weak<Inner>) -> Result<Watchdog> {
        let (stop, stopped) = channel();
        let thread = thread("watchdog", move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let Some(inner) = inner.upgrade() else { return };
                inner.look();
            }
        })?;
        Ok(Watchdog { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Inner {
    /// Looks at every actor once.
    pub(crate) fn look(self: &Arc<Self>) {
        let now = self.clock.monotonic();
        for entry in self.children.lock().values_mut() {
            let oldest = entry.child.gates().iter().map(|gate| gate.oldest_age()).max();
            let oldest = oldest.filter(|_| !entry.spec.patient);
            let look = entry.child.meta().progress.look();
            let change = entry.watch.compare(look, oldest, now, entry.spec.stuck_after);
            let Some(change) = change else { continue };
            entry.stuck = matches!(change, Change::Stuck(_));
            let (actor, kind) = (&entry.spec.name, entry.spec.kind);
            match change {
                Change::Recovered => {
                    tracing::info!(%actor, kind, "actor gets on again");
                    self.record(&entry.spec, What::Recovered, "");
                }
                Change::Stuck(stuck) => {
                    let (problem, since) = match stuck {
                        Stuck::Turn(since) => ("one turn does not end", since),
                        Stuck::Queue(since) => ("a message is not answered", since),
                    };
                    tracing::error!(%actor, kind, problem, seconds = since.as_secs(), "actor is stuck");
                    let detail = format!("{problem} for {} s", since.as_secs());
                    self.record(&entry.spec, What::Stuck, &detail);
                }
            }
        }
    }
}
