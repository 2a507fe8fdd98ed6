//! Starts actors, notices how they end, and does what their policy says about it.
//!
//! An actor is described by a [`Spec`] and made by a factory. When it panics, the supervisor
//! makes a fresh one from the factory after a pause and swaps the target of its ports, or
//! gives up, or asks the process to stop: see [`Restart`]. State is never reused after a
//! panic. A watchdog reports actors that are alive but do not get on.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use kymo_kernel::{actor::*, env::Clock, message::Message, pools::*, port::Budget, supervise::*};
//! # struct Ping; impl Message for Ping { type Reply = u32; }
//! # struct Pinger(u32); impl Actor for Pinger {}
//! # impl Handle<Ping> for Pinger { fn handle(&mut self, _: Ping, reply: Reply<Ping>, _: &mut Cx<Self>) { reply.ok(self.0) } }
//! # async fn example(settings: &kymo_config::Settings, clock: Arc<dyn Clock>) -> kymo_kernel::Result<()> {
//! let pools = Pools::start(PoolSizes::of(settings, PoolSizes::cores()))?;
//! let supervisor = Supervisor::new(&pools, clock, |escalation| tracing::error!(?escalation));
//! let spec = Spec::new("pinger", "pinger").on(Group::Control).restart(Restart::STATELESS);
//! let pinger = supervisor.start(spec, || Pinger(7)); // lives as long as this handle
//! let ping = pinger.port::<Ping>(Budget::count(100)); // Port<Ping>: Clone + Send + Sync
//! assert_eq!(ping.call(Ping).await?, 7);
//! ping.drain().await; // everything accepted is answered, nothing new is taken
//! # Ok(()) }
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::actor::Actor;
use crate::env::Clock;
use crate::host::{Cause, Death};
use crate::observe;
use crate::pools::{Group, Pool, Pools, Task};
use crate::port::{Gate, PortStats};

mod child;
mod events;
mod policy;
mod progress;
mod watchdog;

pub use child::Running;
use child::{Child, Core};
use events::Ring;
pub use events::{SupervisionEvent, What};
use policy::History;
pub use policy::{Decision, Exhausted, Restart};
use progress::{Progress, Watch};
pub use watchdog::Watchdog;

/// What an actor is called, where it runs, and what follows its panic.
#[derive(Debug, Clone)]
pub struct Spec {
    name: Arc<str>,
    kind: &'static str,
    group: Option<Group>,
    restart: Restart,
    stuck_after: Duration,
    patient: bool,
}

impl Spec {
    /// An actor with a name of its own and the kind that it shares with others. Metrics are
    /// kept by kind. Unless changed, it runs in the control group and is never restarted.
    pub fn new(name: impl Into<Arc<str>>, kind: &'static str) -> Spec {
        Spec {
            name: name.into(),
            kind,
            group: Some(Group::Control),
            restart: Restart::Never,
            stuck_after: Duration::from_secs(10),
            patient: false,
        }
    }

    /// On the arbiters of a group.
    #[must_use]
    pub fn on(self, group: Group) -> Spec {
        Spec { group: Some(group), ..self }
    }

    /// In the `LocalSet` that it is started in.
    #[must_use]
    pub fn here(self) -> Spec {
        Spec { group: None, ..self }
    }

    /// What follows its panic.
    #[must_use]
    pub fn restart(self, restart: Restart) -> Spec {
        Spec { restart, ..self }
    }

    /// After how long without a sign of life it is reported as stuck.
    #[must_use]
    pub fn stuck_after(self, limit: Duration) -> Spec {
        Spec { stuck_after: limit, ..self }
    }

    /// Messages may stay unanswered for long on purpose, such as queries that run: only an
    /// endless turn is reported.
    #[must_use]
    pub fn patient(self) -> Spec {
        Spec { patient: true, ..self }
    }
}

/// What everybody may know about a running actor.
pub(crate) struct Meta {
    pub name: Arc<str>,
    pub kind: &'static str,
    pub progress: Progress,
}

/// An actor that asks for the process to stop.
#[derive(Debug, Clone)]
pub struct Escalation {
    /// Its name.
    pub actor: String,
    /// Its kind.
    pub kind: &'static str,
    /// The text of its panic.
    pub reason: String,
}

/// How an actor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It takes messages.
    Running,
    /// It panicked and a fresh one will follow.
    Restarting,
    /// It panicked and stays away.
    Failed,
}

/// An actor as `system.actors` shows it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ActorInfo {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: &'static str,
    /// Group of arbiters; `None` on the current thread.
    pub group: Option<Group>,
    /// How it is.
    pub state: State,
    /// How often it was made anew.
    pub restarts: u64,
    /// Whether the watchdog found that it does not get on.
    pub stuck: bool,
    /// What it tells about itself; null if it did not answer within a second.
    pub observed: serde_json::Value,
}

/// Starts and watches actors; cheap to clone.
#[derive(Clone)]
pub struct Supervisor(Arc<Inner>);

pub(crate) struct Inner {
    pools: Pools,
    clock: Arc<dyn Clock>,
    escalate: Box<dyn Fn(Escalation) + Send + Sync>,
    children: Mutex<BTreeMap<u64, Entry>>,
    next: AtomicU64,
    deaths: UnboundedSender<Death>,
    events: Ring,
    /// Dropped with the last clone, which ends the loop.
    _loop: Mutex<Option<Task<()>>>,
}

/// What the supervisor keeps of one actor.
struct Entry {
    child: Arc<dyn Child>,
    spec: Spec,
    history: History,
    watch: Watch,
    stuck: bool,
    state: State,
    incarnation: u64,
}

impl Supervisor {
    /// A supervisor without actors. `escalate` is called, once per event, when an actor must
    /// take the process with it; it has to return.
    pub fn new(
        pools: &Pools,
        clock: Arc<dyn Clock>,
        escalate: impl Fn(Escalation) + Send + Sync + 'static,
    ) -> Supervisor {
        let (deaths, reports) = unbounded_channel();
        let inner = Arc::new(Inner {
            pools: pools.clone(),
            clock,
            escalate: Box::new(escalate),
            children: Mutex::default(),
            next: AtomicU64::new(1),
            deaths,
            events: Ring::default(),
            _loop: Mutex::default(),
        });
        let body = supervise(Arc::downgrade(&inner), Arc::clone(&inner.clock), reports);
        *inner._loop.lock() = Some(pools.spawn(Pool::Io, "supervisor", body));
        Supervisor(inner)
    }

    /// Starts an actor that can be made again. The factory runs on the actor's thread.
    ///
    /// The actor lives until the handle is dropped or [`Running::stop`] is called; what is
    /// queued by then is still handled.
    pub fn start<A: Actor>(
        &self,
        spec: Spec,
        factory: impl FnMut() -> A + Send + 'static,
    ) -> Running<A> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let turn_seconds = observe::metrics().actors.turn_seconds.with_label_values(&[spec.kind]);
        let meta = Arc::new(Meta {
            name: Arc::clone(&spec.name),
            kind: spec.kind,
            progress: Progress::new(Arc::clone(&self.0.clock), turn_seconds),
        });
        let place = self.0.pools.place(spec.group);
        let core = Arc::new(Core::new(id, meta, place, Box::new(factory), &self.0));
        let entry = Entry {
            child: Arc::clone(&core) as Arc<dyn Child>,
            spec,
            history: History::default(),
            watch: Watch::default(),
            stuck: false,
            state: State::Running,
            incarnation: 1,
        };
        self.0.children.lock().insert(id, entry);
        core.launch(1);
        Running::new(core)
    }

    /// Starts an actor that cannot be made again, from what it owns. Its policy is
    /// [`Restart::FailStop`] if the spec says so, and [`Restart::Never`] otherwise.
    pub fn start_once<A: Actor>(
        &self,
        spec: Spec,
        factory: impl FnOnce() -> A + Send + 'static,
    ) -> Running<A> {
        let restart = match spec.restart {
            Restart::FailStop => Restart::FailStop,
            _ => Restart::Never,
        };
        let mut factory = Some(factory);
        self.start(spec.restart(restart), move || match factory.take() {
            Some(factory) => factory(),
            None => unreachable!("an actor without restarts is made once"),
        })
    }

    /// Time.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// Where actors and their jobs run.
    #[must_use]
    pub fn pools(&self) -> &Pools {
        &self.0.pools
    }

    /// What happened lately, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<SupervisionEvent> {
        self.0.events.all()
    }

    /// All ports of all actors, in the order in which the actors were started.
    #[must_use]
    pub fn ports(&self) -> Vec<PortStats> {
        self.0.gates().iter().map(|gate| gate.stats()).collect()
    }

    /// All actors without what they tell about themselves: never waits.
    #[must_use]
    pub fn list(&self) -> Vec<ActorInfo> {
        self.0.children.lock().values().map(Entry::info).collect()
    }

    /// All actors with what they tell about themselves. Asks them at the same time and waits
    /// for at most a second.
    pub async fn actors(&self) -> Vec<ActorInfo> {
        let asked: Vec<_> = {
            let children = self.0.children.lock();
            children.values().map(|entry| (entry.info(), entry.child.observe())).collect()
        };
        let limit = self.0.clock.sleep(Duration::from_secs(1)).shared();
        let answers = asked.into_iter().map(|(mut info, answer)| {
            let limit = limit.clone();
            async move {
                info.observed = tokio::select! {
                    biased;
                    observed = answer => observed,
                    () = limit => serde_json::Value::Null,
                };
                info
            }
        });
        futures::future::join_all(answers).await
    }

    /// Lets go of all actors: none is made anew, and what their factories hold goes with the
    /// last handles. Actors may be made from things that hold this supervisor; without this,
    /// such a circle would outlive everybody who knows of it.
    pub fn close(&self) {
        // What is dropped here may stop other actors, which looks at the list.
        let children = std::mem::take(&mut *self.0.children.lock());
        drop(children);
    }

    /// Looks at every actor once and reports those that do not get on. The watchdog calls it
    /// every second; simulations call it themselves.
    pub fn look(&self) {
        self.0.look();
    }

    /// Starts the thread that looks after actors; it ends when the handle is dropped.
    ///
    /// # Errors
    /// [`Code::Io`](crate::Code::Io) if the operating system refuses a thread.
    pub fn watchdog(&self) -> crate::Result<Watchdog> {
        Watchdog::start(Arc::downgrade(&self.0))
    }
}

impl Entry {
    fn info(&self) -> ActorInfo {
        ActorInfo {
            name: self.spec.name.to_string(),
            kind: self.spec.kind,
            group: self.spec.group,
            state: self.state,
            restarts: self.incarnation - 1,
            stuck: self.stuck,
            observed: serde_json::Value::Null,
        }
    }
}

impl Inner {
    fn gates(&self) -> Vec<Arc<Gate>> {
        self.children.lock().values().flat_map(|entry| entry.child.gates()).collect()
    }

    fn record(&self, spec: &Spec, what: What, detail: &str) {
        let kind = spec.kind;
        observe::metrics().actors.events.with_label_values(&[kind, what.as_str()]).inc();
        let (actor, detail) = (spec.name.to_string(), detail.to_owned());
        self.events.push(SupervisionEvent {
            at_ns: self.clock.now_ns(),
            actor,
            kind,
            what,
            detail,
        });
    }

    /// Does what follows an end; returns the pause before the restart, where there is one.
    fn died(&self, death: Death) -> Option<(u64, Duration)> {
        let mut children = self.children.lock();
        let entry = children.get_mut(&death.actor)?;
        if entry.incarnation != death.incarnation {
            return None;
        }
        entry.child.unbind();
        let Cause::Panicked(text) = death.cause else {
            children.remove(&death.actor);
            return None;
        };
        let spec = entry.spec.clone();
        self.record(&spec, What::Panicked, &text);
        let decision = entry.history.decide(spec.restart, self.clock.monotonic());
        tracing::error!(actor = %spec.name, kind = spec.kind, panic = text, ?decision, "actor panicked");
        match decision {
            Decision::RestartAfter(pause) => {
                entry.state = State::Restarting;
                Some((death.actor, pause))
            }
            Decision::GiveUp if spec.restart == Restart::Never => {
                children.remove(&death.actor);
                None
            }
            Decision::GiveUp => {
                entry.state = State::Failed;
                self.record(&spec, What::Failed, "too many panics");
                None
            }
            Decision::Escalate => {
                entry.state = State::Failed;
                drop(children);
                self.record(&spec, What::Escalated, &text);
                let actor = spec.name.to_string();
                (self.escalate)(Escalation { actor, kind: spec.kind, reason: text });
                None
            }
        }
    }

    fn restart(&self, actor: u64) {
        let launched = {
            let mut children = self.children.lock();
            let Some(entry) = children.get_mut(&actor) else { return };
            entry.incarnation += 1;
            entry.state = State::Running;
            self.record(
                &entry.spec,
                What::Restarted,
                &format!("incarnation {}", entry.incarnation),
            );
            (Arc::clone(&entry.child), entry.incarnation)
        };
        let (child, incarnation) = launched;
        tracing::info!(actor = %child.meta().name, incarnation, "actor restarted");
        child.launch(incarnation);
    }

    /// Takes an actor off the list that was told to stop while it was away.
    fn forget(&self, actor: u64) {
        let mut children = self.children.lock();
        if children.get(&actor).is_some_and(|entry| entry.state != State::Running) {
            children.remove(&actor);
        }
    }
}

/// The loop that hears of deaths and makes actors anew.
async fn supervise(
    inner: Weak<Inner>,
    clock: Arc<dyn Clock>,
    mut reports: UnboundedReceiver<Death>,
) {
    let mut restarts: FuturesUnordered<BoxFuture<'static, u64>> = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            death = reports.recv() => {
                let (Some(death), Some(inner)) = (death, inner.upgrade()) else { return };
                if let Some((actor, pause)) = inner.died(death) {
                    let sleep = clock.sleep(pause);
                    restarts.push(async move { sleep.await; actor }.boxed());
                }
            }
            Some(actor) = restarts.next(), if !restarts.is_empty() => {
                let Some(inner) = inner.upgrade() else { return };
                inner.restart(actor);
            }
        }
    }
}

#[cfg(test)]
mod tests;
