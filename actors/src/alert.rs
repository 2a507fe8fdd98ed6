//! Alert rules: evaluated as rows are committed and at instants of time, their alerts kept
//! through restarts, and told to people once that is durable.
//!
//! ```text
//! feed ── commits ──► groups: rows × rules that want them ─┐ rows with labels,
//! grid of time ─────► queries of rules, a few at a time ───┤ value, condition
//!                                                          ▼
//!                                   label sets ── machine ──► transitions
//!                                                          │
//!      system.alert_history, system.alert_states ◄── outbox ┘ first durable (A1) …
//!                                                      └────► outlet ──► channels, feed   … then told
//! ```
//!
//! One worker evaluates all rules. A thread, a timer or a subscription for each rule would cost
//! with ten thousand of them more than the evaluation; here a commit costs by its rows, and by
//! how many kinds of rules look at its table. What the worker knows can be lost at any moment:
//! it begins with the states that are durable and reads the newest rows of the tables again.

pub(crate) mod backtest;
mod board;
mod facts;
mod files;
mod groups;
pub(crate) mod history;
mod labels;
pub(crate) mod machine;
mod outbox;
pub(crate) mod sets;
mod stored;
pub mod template;
#[cfg(test)]
mod tests;
mod transitions;
mod worker;

use std::sync::{Arc, OnceLock};

use kymo_config::Settings;
use kymo_kernel::actor::{Actor, Cx, Handle, Reply};
use kymo_kernel::alert::AlertDef;
use kymo_kernel::env::Env;
use kymo_kernel::message::{AlertCommand, AlertDdl, AlertDone, Ddl, Outlet, WriteOwn};
use kymo_kernel::pools::{Pool, Pools};
use kymo_kernel::port::Port;
use kymo_kernel::storage::Store;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::PluginHost;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::feed::Hub;
use crate::notify::Notifier;
use crate::query::PlanRule;
pub(crate) use board::Board;
use files::Files;
use worker::{Order, Worker};

/// Orders that wait for the worker.
const ORDERS: usize = 1024;
/// What the evaluation of rules works with. Cheap to clone.
#[derive(Clone)]
pub struct Context(Arc<Parts>);

struct Parts {
    settings: kymo_config::settings::Alerts,
    env: Env,
    pools: Pools,
    store: Arc<Store>,
    hub: Arc<Hub>,
    ddl: Port<Ddl>,
    write: Port<WriteOwn>,
    outlet: Arc<Outlet>,
    board: Arc<Board>,
    files: Files,
    /// Whose functions rules may call.
    plugins: Option<Arc<PluginHost>>,
    /// Comes later: who plans rules is started after who is asked to change them.
    planner: OnceLock<Port<PlanRule>>,
    /// Comes later, too: it carries what goes out here.
    carriers: OnceLock<Notifier>,
}

impl Context {
    /// A context over the parts of a running system.
    #[must_use]
    pub fn new(
        settings: &Settings,
        env: &Env,
        pools: &Pools,
        store: Arc<Store>,
        hub: Arc<Hub>,
        ddl: Port<Ddl>,
        write: Port<WriteOwn>,
        plugins: Option<Arc<PluginHost>>,
    ) -> Self {
        Context(Arc::new(Parts {
            settings: settings.alerts.clone(),
            env: env.clone(),
            pools: pools.clone(),
            store,
            hub,
            ddl,
            write,
            outlet: Arc::new(Outlet::new(settings.alerts.max_notifications)),
            board: Arc::default(),
            files: Files::default(),
            plugins,
            planner: OnceLock::new(),
            carriers: OnceLock::new(),
        }))
    }

    /// Where notifications go out.
    #[must_use]
    pub fn outlet(&self) -> &Arc<Outlet> {
        &self.0.outlet
    }

    /// What is known of rules and alerts.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.0.board
    }

    /// Says who plans rules; evaluation begins with the actor's next start or
    /// [`AlertActor::begin`].
    pub(crate) fn planned_by(&self, planner: Port<PlanRule>) {
        let _ = self.0.planner.set(planner);
    }

    /// Says who carries notifications to channels.
    pub(crate) fn carried_by(&self, carriers: Notifier) {
        let _ = self.0.carriers.set(carriers);
    }

    /// Refuses a rule that would tell a channel that is not there.
    fn check_channels(&self, alert: &AlertDef) -> Result<()> {
        let known = self.0.outlet.channels();
        match alert.channels.iter().find(|each| !known.contains(each)) {
            None => Ok(()),
            Some(unknown) => {
                let text = format!("channel {unknown:?} does not exist");
                Err(Error::new(Code::InvalidInput, text)
                    .with_hint(format!("the channels are: {}", known.join(", "))))
            }
        }
    }

    async fn change(
        self,
        orders: Option<mpsc::Sender<Order>>,
        change: AlertDdl,
    ) -> Result<AlertDone> {
        if let AlertDdl::Create { alert, .. } = &change {
            self.check_channels(alert)?;
        }
        let carriers = self.0.carriers.get();
        if let (AlertDdl::CreateChannel { channel, .. }, Some(carriers)) = (&change, carriers) {
            carriers.check(channel)?;
        }
        let of_channels =
            matches!(change, AlertDdl::CreateChannel { .. } | AlertDdl::DropChannel { .. });
        let done = self.0.ddl.call(Ddl::Alert(change)).await?;
        if let Some(carriers) = carriers.filter(|_| of_channels) {
            carriers.follow_metadata(true);
        }
        // The change is durable; a worker that is not there reads it when it comes back.
        if let Some(orders) = orders {
            let (reply, followed) = oneshot::channel();
            if orders.send(Order::Follow(reply)).await.is_ok() {
                let _ = followed.await;
            }
        }
        Ok(AlertDone { count: u64::from(done.changed) })
    }
}

/// The actor: takes commands, and has the worker started again where it fails.
pub struct AlertActor {
    context: Context,
    orders: Option<mpsc::Sender<Order>>,
    commands: u64,
}

impl AlertActor {
    /// An actor over a context.
    #[must_use]
    pub fn new(context: Context) -> Self {
        AlertActor { context, orders: None, commands: 0 }
    }

    /// Starts the worker, if it can be and is not there yet.
    pub fn begin(&mut self, cx: &mut Cx<Self>) {
        let Some(planner) = self.context.0.planner.get().filter(|_| self.orders.is_none()) else {
            return;
        };
        let (orders, taken) = mpsc::channel(ORDERS);
        self.orders = Some(orders);
        let worker = Worker::new(self.context.0.clone(), planner.clone(), taken);
        let pools = self.context.0.pools.clone();
        let task = pools.spawn(Pool::Query, "alerts", worker.run());
        cx.then(task, |_, ended, _| {
            // Supervision makes another one, which begins with what is durable.
            if let Err(error) = ended.and_then(|ended| ended) {
                std::panic::panic_any(format!("evaluating alert rules: {error}"));
            }
        });
    }
}

impl Actor for AlertActor {
    fn started(&mut self, cx: &mut Cx<Self>) {
        self.begin(cx);
    }

    fn observe(&self) -> serde_json::Value {
        json!({
            "commands": self.commands,
            "running": self.orders.is_some(),
            "shapes": self.context.0.board.shapes(),
        })
    }
}

impl Handle<AlertCommand> for AlertActor {
    fn handle(&mut self, message: AlertCommand, reply: Reply<AlertCommand>, cx: &mut Cx<Self>) {
        self.commands += 1;
        let (context, orders) = (self.context.clone(), self.orders.clone());
        cx.answer(reply, async move {
            match message {
                AlertCommand::Change(change) => context.change(orders, change).await,
                AlertCommand::Reload => context.load_files(orders, true).await,
                AlertCommand::Retry => context.load_files(orders, false).await,
                AlertCommand::Ack { matcher, author, comment } => {
                    let said = match comment.is_empty() {
                        true => author,
                        false => format!("{author}: {comment}"),
                    };
                    let gone = || Error::new(Code::Down, "alert rules are not evaluated now");
                    let (reply, acked) = oneshot::channel();
                    let orders = orders.ok_or_else(gone)?;
                    orders.send(Order::Ack(matcher, said, reply)).await.map_err(|_| gone())?;
                    let count = acked.await.map_err(|_| gone())?;
                    Ok(AlertDone { count })
                }
            }
        });
    }
}
