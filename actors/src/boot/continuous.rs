//! Continuous queries, started: their actor and what it works with.

use std::sync::Arc;

use kymo_config::Settings;
use kymo_kernel::env::Env;
use kymo_kernel::pools::Pools;
use kymo_kernel::supervise::{Restart, Running, Spec, Supervisor};
use parking_lot::Mutex;

use super::answers::Answers;
use crate::continuous::{Context, Continuous, Ways};
use crate::engine::Engine;

/// The continuous queries of a running system.
#[derive(Clone)]
pub(super) struct Continuing {
    context: Context,
    running: Arc<Mutex<Option<Running<Continuous>>>>,
}

impl Continuing {
    pub(super) fn start(
        settings: &Settings,
        env: &Env,
        pools: &Pools,
        supervisor: &Supervisor,
        engine: &Engine,
        answers: &Answers,
    ) -> Continuing {
        let context = Context::new(
            settings,
            env.clock.clone(),
            pools.clone(),
            engine.store().clone(),
            engine.feed().clone(),
            answers.continuous.clone(),
            Ways {
                parse: answers.ports.parse.clone(),
                keep: answers.keep().clone(),
                write: engine.write().clone(),
                delete: engine.delete().clone(),
                ddl: engine.ddl().clone(),
            },
        );
        let spec = Spec::new("continuous", "continuous").restart(Restart::BACKGROUND);
        let parts = context.clone();
        let running = supervisor.start(spec, move || Continuous::new(parts.clone()));
        Continuing { context, running: Arc::new(Mutex::new(Some(running))) }
    }

    /// Stops the queries where they are, and keeps their cursors: what they had not written
    /// yet, the next start does.
    pub(super) async fn stop(&self) {
        drop(self.running.lock().take());
        self.context.keep_cursors().await;
    }
}
