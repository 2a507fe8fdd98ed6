//! Stopping in order: named parts, phases with budgets, and a log that says who is late.
//!
//! Every component registers with a phase under a name, as a closure to run or as a [`Part`]
//! to hold on to. [`Shutdown::run`] takes the phases in turn: the front door closes first,
//! the replies leave last. A phase ends when all of its parts are done or its budget is used
//! up; who is late is named, and the next phase begins all the same. Dropping a part counts
//! as done. Nothing depends on any of it: `kill -9` at any moment is as safe.
//!
//! ```no_run
//! # use kymo_kernel::{shutdown::{Phase, Shutdown}, port::Port, message::Write};
//! # async fn example(shutdown: Shutdown, write: Port<Write>) {
//! shutdown.on(Phase::Writes, "ingest", move || async move { write.drain().await; Ok(()) });
//! shutdown.requested().await; // somebody has called shutdown.request("SIGTERM")
//! let report = shutdown.run().await;
//! let exit_code = i32::from(!report.is_clean());
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use kymo_config::Settings;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::env::Clock;
use crate::error::{Error, Result};
use crate::host::panic_text;

/// A step of stopping, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not ready any more; no new connections, existing ones stay.
    Doors,
    /// Evaluators and schedulers start nothing new.
    Schedulers,
    /// Running statements end, further ones are refused.
    Statements,
    /// Accepted writes are answered: ingest first, then the writers.
    Writes,
    /// Running background jobs end or are dropped.
    Background,
    /// Rows in memory are flushed, where that is wanted.
    Flush,
    /// The journal is synced and closed, the lock released.
    Journal,
    /// Connections are closed, telemetry is sent.
    Last,
}

impl Phase {
    /// All of them, in order.
    pub const ALL: [Phase; 8] = [
        Phase::Doors,
        Phase::Schedulers,
        Phase::Statements,
        Phase::Writes,
        Phase::Background,
        Phase::Flush,
        Phase::Journal,
        Phase::Last,
    ];

    /// Its name in logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Doors => "doors",
            Phase::Schedulers => "schedulers",
            Phase::Statements => "statements",
            Phase::Writes => "writes",
            Phase::Background => "background",
            Phase::Flush => "flush",
            Phase::Journal => "journal",
            Phase::Last => "last",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// How long each phase may take. With the default settings all of them sum up to 30 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets([Duration; Phase::ALL.len()]);

impl Budgets {
    /// The budgets that the settings ask for.
    #[must_use]
    pub fn of(settings: &Settings) -> Budgets {
        let ms = Duration::from_millis;
        let shutdown = &settings.shutdown;
        let mut budgets = [ms(500); Phase::ALL.len()];
        budgets[Phase::Schedulers as usize] = ms(1000);
        budgets[Phase::Statements as usize] = ms(shutdown.statements_ms);
        budgets[Phase::Writes as usize] = ms(shutdown.writes_ms);
        budgets[Phase::Background as usize] = ms(shutdown.background_ms);
        budgets[Phase::Flush as usize] = ms(5000);
        budgets[Phase::Journal as usize] = ms(2000);
        budgets[Phase::Last as usize] = ms(1500);
        Budgets(budgets)
    }

    /// The budget of one phase.
    #[must_use]
    pub fn get(&self, phase: Phase) -> Duration {
        self.0[phase as usize]
    }

    /// All of them together.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

/// How often those that are pending are named in the log.
const NAG_EVERY: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() -> BoxFuture<'static, Result<()>> + Send>;

/// The plan of stopping; cheap to clone.
#[derive(Clone)]
pub struct Shutdown(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    budgets: Budgets,
    state: Mutex<State>,
    done: Notify,
    begun: watch::Sender<Option<Phase>>,
    requested: watch::Sender<Option<String>>,
}

#[derive(Default)]
struct State {
    next: u64,
    parts: BTreeMap<u64, (Phase, String)>,
    jobs: Vec<(Phase, String, Job)>,
}

impl Shutdown {
    /// A plan without parts.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, budgets: Budgets) -> Shutdown {
        Shutdown(Arc::new(Inner {
            clock,
            budgets,
            state: Mutex::default(),
            done: Notify::new(),
            begun: watch::channel(None).0,
            requested: watch::channel(None).0,
        }))
    }

    /// Registers a component that hears of its phase and says when it is done.
    #[must_use = "dropping a part counts as done"]
    pub fn register(&self, phase: Phase, name: impl Into<String>) -> Part {
        let mut state = self.0.state.lock();
        state.next += 1;
        let number = state.next;
        state.parts.insert(number, (phase, name.into()));
        Part { inner: Arc::clone(&self.0), phase, number }
    }

    /// Registers something to do in a phase. The jobs of one phase run at the same time; those
    /// that outlast the budget are dropped.
    pub fn on<F>(
        &self,
        phase: Phase,
        name: impl Into<String>,
        job: impl FnOnce() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let job: Job = Box::new(move || job().boxed());
        self.0.state.lock().jobs.push((phase, name.into(), job));
    }

    /// Asks for the shutdown; the first reason counts.
    pub fn request(&self, reason: impl Into<String>) {
        self.0.requested.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(reason.into());
            }
            first
        });
    }

    /// Completes with the reason once the shutdown has been asked for.
    pub async fn requested(&self) -> String {
        let mut requested = self.0.requested.subscribe();
        let reason = requested.wait_for(Option::is_some).await;
        reason.ok().and_then(|reason| reason.clone()).unwrap_or_default()
    }

    /// Whether the shutdown has been asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.requested.borrow().is_some()
    }

    /// The phase that has begun last, if any.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        *self.0.begun.borrow()
    }

    /// Takes all phases in turn and tells how it went.
    pub async fn run(&self) -> Report {
        let mut phases = Vec::with_capacity(Phase::ALL.len());
        for phase in Phase::ALL {
            phases.push(self.run_phase(phase).await);
        }
        Report { phases }
    }

    async fn run_phase(&self, phase: Phase) -> PhaseReport {
        let clock = &self.0.clock;
        let budget = self.0.budgets.get(phase);
        let began = clock.monotonic();
        tracing::info!(%phase, pending = ?self.pending(phase), "shutdown phase begins");
        let mut jobs = self.start_jobs(phase);
        self.0.begun.send_replace(Some(phase));
        let mut failed = Vec::new();
        let mut limit = clock.sleep(budget);
        let mut nag = clock.sleep(NAG_EVERY);
        loop {
            let done = self.0.done.notified();
            if self.pending(phase).is_empty() {
                break;
            }
            tokio::select! {
                biased;
                Some((part, outcome)) = jobs.next(), if !jobs.is_empty() => {
                    if let Err(error) = outcome {
                        tracing::error!(%phase, part = part.name(), %error, "shutdown part failed");
                        failed.push((part.name(), error));
                    }
                }
                () = done => {}
                () = &mut limit => break,
                () = &mut nag => {
                    tracing::info!(%phase, pending = ?self.pending(phase), "shutdown waits");
                    nag = clock.sleep(NAG_EVERY);
                }
            }
        }
        let late = self.pending(phase);
        let took = clock.monotonic().saturating_sub(began);
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if late.is_empty() {
            tracing::info!(%phase, took_ms, "shutdown phase done");
        } else {
            tracing::warn!(%phase, took_ms, ?late, "shutdown phase missed its budget");
        }
        PhaseReport { phase, budget, took, late, failed }
    }

    /// Starts the jobs of a phase, each with a part that is done when it ends.
    fn start_jobs(&self, phase: Phase) -> FuturesUnordered<BoxFuture<'static, (Part, Result<()>)>> {
        let jobs: Vec<_> = {
            let mut state = self.0.state.lock();
            state.jobs.extract_if(.., |(of, _, _)| *of == phase).collect()
        };
        jobs.into_iter()
            .map(|(_, name, job)| {
                let part = self.register(phase, name);
                async move {
                    let outcome = AssertUnwindSafe(async move { job().await }).catch_unwind().await;
                    let outcome = outcome.unwrap_or_else(|panic| {
                        Err(Error::internal(format!("panicked: {}", panic_text(panic.as_ref()))))
                    });
                    (part, outcome)
                }
                .boxed()
            })
            .collect()
    }

    /// Names of those that are not done with a phase: parts, and jobs that have not started.
    #[must_use]
    pub fn pending(&self, phase: Phase) -> Vec<String> {
        let state = self.0.state.lock();
        let parts = state.parts.values().filter(|(of, _)| *of == phase).map(|(_, name)| name);
        let jobs = state.jobs.iter().filter(|(of, _, _)| *of == phase).map(|(_, name, _)| name);
        parts.chain(jobs).cloned().collect()
    }
}

/// A component's duty in one phase; dropping it counts as done.
pub struct Part {
    inner: Arc<Inner>,
    phase: Phase,
    number: u64,
}

impl Part {
    /// Completes once its phase has begun.
    pub async fn begun(&self) {
        let mut begun = self.inner.begun.subscribe();
        let phase = self.phase;
        let _ = begun.wait_for(|now| now.is_some_and(|now| now >= phase)).await;
    }

    /// Says that it is done, like dropping it.
    pub fn done(self) {}

    fn name(&self) -> String {
        let state = self.inner.state.lock();
        state.parts.get(&self.number).map(|(_, name)| name.clone()).unwrap_or_default()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.inner.state.lock().parts.remove(&self.number);
        self.inner.done.notify_waiters();
    }
}

/// How one phase went.
#[derive(Debug, Clone)]
pub struct PhaseReport {
    /// Which.
    pub phase: Phase,
    /// How long it might take.
    pub budget: Duration,
    /// How long it took.
    pub took: Duration,
    /// Names of those that were not done in time.
    pub late: Vec<String>,
    /// Names of those that failed, and why.
    pub failed: Vec<(String, Error)>,
}

/// How stopping went.
#[derive(Debug, Clone)]
pub struct Report {
    /// Each phase, in order.
    pub phases: Vec<PhaseReport>,
}

impl Report {
    /// Whether every phase met its budget and nothing failed: exit code 0.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.phases.iter().all(|phase| phase.late.is_empty() && phase.failed.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::Sim;
    use crate::error::Code;
    use crate::simulate;

    fn plan(sim: &Sim) -> Shutdown {
        Shutdown::new(sim.clock.clone(), Budgets::of(&Settings::default()))
    }

    fn log() -> (Arc<Mutex<Vec<String>>>, impl Fn(&str) + Clone + Send + 'static) {
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let to = Arc::clone(&log);
        (log, move |line: &str| to.lock().push(line.to_owned()))
    }

    #[test]
    fn the_default_budgets_fit_into_thirty_seconds() {
        assert!(
            Budgets::of(&Settings::default()).total()
                <= Duration::from_secs(30) + Duration::from_millis(500)
        );
    }

    #[test]
    fn phases_run_in_order_and_a_dropped_part_is_done() {
        let sim = Sim::new(1);
        let shutdown = plan(&sim);
        let (lines, say) = log();
        for phase in Phase::ALL.into_iter().rev() {
            let (say, clock) = (say.clone(), sim.clock.clone());
            shutdown.on(phase, format!("part of {phase}"), move || async move {
                clock.sleep(Duration::from_millis(100)).await;
                say(phase.name());
                Ok(())
            });
        }
        let part = shutdown.register(Phase::Writes, "never begun");
        drop(part);
        let report = simulate::run(&sim.clock, shutdown.run()).unwrap();
        let order: Vec<_> = Phase::ALL.iter().map(|phase| phase.name()).collect();
        assert_eq!(*lines.lock(), order);
        assert!(report.is_clean());
        assert!(report.phases.iter().all(|phase| phase.took == Duration::from_millis(100)));
    }

    #[test]
    fn the_late_are_named_and_the_next_phase_begins() {
        let sim = Sim::new(1);
        let shutdown = plan(&sim);
        let (lines, say) = log();
        let stuck = shutdown.register(Phase::Statements, "session 7");
        shutdown.on(Phase::Writes, "ingest", move || async move {
            say("ingest drained");
            Ok(())
        });
        let report = simulate::run(&sim.clock, shutdown.run()).unwrap();
        let statements = &report.phases[Phase::Statements as usize];
        assert_eq!(statements.late, ["session 7"]);
        assert_eq!(statements.took, statements.budget);
        assert_eq!(*lines.lock(), ["ingest drained"]);
        assert!(!report.is_clean());
        drop(stuck);
    }

    #[test]
    fn a_part_hears_of_its_phase_and_not_before() {
        let sim = Sim::new(1);
        let shutdown = plan(&sim);
        let (lines, say) = log();
        let clock = sim.clock.clone();
        let report = simulate::run(&sim.clock, async {
            let part = shutdown.register(Phase::Journal, "journal");
            let say_door = say.clone();
            shutdown.on(Phase::Background, "flusher", move || async move {
                say_door("flusher done");
                Ok(())
            });
            tokio::task::spawn_local(async move {
                part.begun().await;
                clock.sleep(Duration::from_secs(1)).await;
                say("journal closed");
                part.done();
            });
            shutdown.run().await
        })
        .unwrap();
        assert_eq!(*lines.lock(), ["flusher done", "journal closed"]);
        assert!(report.is_clean());
    }

    #[test]
    fn failures_and_panics_are_reported_with_their_part() {
        let sim = Sim::new(1);
        let shutdown = plan(&sim);
        shutdown.on(Phase::Journal, "journal", || async { Err(Error::new(Code::Io, "sync: EIO")) });
        shutdown.on(Phase::Last, "telemetry", || async { panic!("broken") });
        let report = simulate::run(&sim.clock, shutdown.run()).unwrap();
        let failed = |phase: Phase| report.phases[phase as usize].failed.clone();
        assert_eq!(failed(Phase::Journal)[0].1.code(), Code::Io);
        assert_eq!(failed(Phase::Last)[0].0, "telemetry");
        assert!(failed(Phase::Last)[0].1.message().contains("broken"));
        assert!(!report.is_clean());
    }

    #[test]
    fn the_first_reason_counts() {
        let sim = Sim::new(1);
        let shutdown = plan(&sim);
        assert!(!shutdown.is_requested());
        shutdown.request("SIGTERM");
        shutdown.request("SIGINT");
        let reason = simulate::run(&sim.clock, shutdown.requested()).unwrap();
        assert_eq!(reason, "SIGTERM");
    }
}
