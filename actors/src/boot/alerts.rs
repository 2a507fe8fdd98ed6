//! Alert rules, started: who evaluates them, the way to them, and where notifications go out.

use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::env::Env;
use kymo_kernel::message::AlertCommand;
use kymo_kernel::pools::{Pool, Pools, Task};
use kymo_kernel::port::{Budget, Port};
use kymo_kernel::supervise::{Restart, Running, Spec, Supervisor};
use parking_lot::Mutex;
use tracing::error;

use super::plugins::Plugins;
use crate::alert::{AlertActor, Context};
use crate::engine::Engine;
use crate::query::PlanRule;

/// Changes of alert rules that may wait or be carried out.
const COMMANDS: usize = 256;
/// Time that a change of alert rules waits for its turn.
const WAIT: Duration = Duration::from_secs(10);

/// The evaluation of alert rules.
#[derive(Clone)]
pub(super) struct Alerts {
    pub(super) context: Context,
    pub(super) commands: Port<AlertCommand>,
    running: Arc<Mutex<Option<Parts>>>,
}

/// What lives as long as these handles.
struct Parts {
    running: Running<AlertActor>,
    /// Who has files of rules read.
    _files: Option<Task<()>>,
}

impl Alerts {
    /// Takes commands from now on; nothing is evaluated before [`Alerts::begin`].
    pub(super) fn start(
        settings: &Settings,
        env: &Env,
        pools: &Pools,
        supervisor: &Supervisor,
        engine: &Engine,
        plugins: &Plugins,
    ) -> Alerts {
        let context = Context::new(
            settings,
            env,
            pools,
            engine.store().clone(),
            engine.feed().clone(),
            engine.ddl().clone(),
            engine.write_own().clone(),
            plugins.host.clone(),
        );
        let made = context.clone();
        let spec = Spec::new("alerts", "alerts").restart(Restart::BACKGROUND);
        let running = supervisor.start(spec, move || AlertActor::new(made.clone()));
        let commands = running.port(Budget { wait: WAIT, ..Budget::count(COMMANDS) });
        let parts = Parts { running, _files: None };
        Alerts { context, commands, running: Arc::new(Mutex::new(Some(parts))) }
    }

    /// Begins to evaluate rules, and to follow what files say of them.
    pub(super) fn begin(&self, planner: Port<PlanRule>, pools: &Pools) {
        self.context.planned_by(planner);
        if let Some(parts) = self.running.lock().as_mut() {
            parts.running.poster().post(|actor, cx| actor.begin(cx));
            let (context, commands) = (self.context.clone(), self.commands.clone());
            let follow = follow_files(context, commands);
            parts._files = Some(pools.spawn(Pool::Io, "files of alert rules", follow));
        }
    }

    /// Takes no more commands, and completes once every accepted one is answered.
    pub(super) async fn drain(&self) {
        self.commands.drain().await;
    }

    /// Evaluates nothing any more. What is not durable is found again at the next start.
    pub(super) fn stop(&self) {
        drop(self.running.lock().take());
    }
}

/// Has files read, and rules of them tried again, whenever that is wanted.
async fn follow_files(context: Context, commands: Port<AlertCommand>) {
    loop {
        let command = context.files().wanted().await;
        if let Err(error) = commands.call(command).await {
            let hint = error.hint();
            error!(%error, hint, "files of alert rules are not loaded; rules stay as they are");
        }
    }
}
