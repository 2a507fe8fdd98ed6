//! The one place that changes metadata: takes everything that was proposed, refuses what no
//! longer fits, makes the rest durable as one version and publishes it.
//!
//! Proposals of many actors thereby share one pair of fsyncs. A proposal that is refused does
//! not touch the others. As in the journal, the core is a synchronous step with a thread
//! around it, and a failure of the disk stops the store.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use crate::env::Env;
use crate::error::{Code, Error, Result};
use crate::ids::MetaVersion;
use crate::observe::metrics;
use crate::storage::journal::Drive;
use crate::storage::meta::{Author, Edit, Op, Snapshot};
use crate::storage::metalog::{AppendError, MetaLog};
use crate::storage::poison::Poison;

/// Told what became of a proposal: the snapshot that contains it, or why it was refused.
/// Called on the committer's thread.
pub type Committed = Box<dyn FnOnce(Result<Arc<Snapshot>>) + Send>;

/// Called with the metadata before and after each version, before proposals are answered.
pub type Observer = Box<dyn Fn(&Snapshot, &Arc<Snapshot>) + Send + Sync>;

/// How a committer works.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Who calls its step.
    pub drive: Drive,
    /// Versions between two checkpoints.
    pub checkpoint_every: u64,
    /// How long an edit is tried while the log cannot be reached.
    pub patience: Duration,
    /// How often to look for another owner; never, where nobody else can reach the log.
    pub watch: Option<Duration>,
}

impl Habits {
    /// Those of a log that nobody else can reach.
    #[must_use]
    pub fn alone(drive: Drive, checkpoint_every: u64) -> Habits {
        Habits { drive, checkpoint_every, patience: Duration::ZERO, watch: None }
    }
}

/// The first pause before an edit is tried again; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often an edit is tried where there are no threads and so no pauses.
const TRIES: u32 = 8;

/// Changes metadata; see the module.
pub struct Committer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    env: Env,
    log: Box<dyn MetaLog>,
    head: ArcSwap<Snapshot>,
    author: Author,
    poison: Poison,
    observer: Observer,
    habits: Habits,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Held while a version is made.
    making: Mutex<()>,
}

#[derive(Default)]
struct Queue {
    proposals: Vec<(Vec<Op>, Committed)>,
    closed: bool,
    /// A log that cannot be reached is not waited for any more.
    hurried: bool,
}

impl Committer {
    /// A committer that goes on from `head`, in the name of `author`.
    ///
    /// # Errors
    /// I/O errors where the thread cannot be started.
    pub fn start(
        env: Env,
        log: Box<dyn MetaLog>,
        head: Arc<Snapshot>,
        author: Author,
        poison: Poison,
        observer: Observer,
        habits: Habits,
    ) -> Result<Committer> {
        checkpoint_if_due(&*log, &habits, &head);
        let shared = Arc::new(Shared {
            env,
            log,
            head: ArcSwap::new(head),
            author,
            poison,
            observer,
            habits,
            queue: Mutex::default(),
            wake: Condvar::new(),
            making: Mutex::default(),
        });
        let thread = match habits.drive {
            Drive::Manual => None,
            Drive::Thread => Some(spawn(shared.clone())?),
        };
        Ok(Committer { shared, thread: Mutex::new(thread) })
    }

    /// The current metadata. Never blocks.
    #[must_use]
    pub fn head(&self) -> Arc<Snapshot> {
        self.shared.head.load_full()
    }

    /// Makes sure that this is still the owner. Blocks on the log.
    ///
    /// # Errors
    /// `fenced` where another one has appended, which stops the store; I/O errors.
    pub fn confirm(&self) -> Result<()> {
        self.shared.confirm()
    }

    /// Proposes an atomic change; `done` is called when it is durable and published, or
    /// refused. Returns at once, except under [`Drive::Manual`], where the caller does the work.
    pub fn propose(&self, ops: Vec<Op>, done: Committed) {
        let mut queue = self.shared.queue.lock();
        if queue.closed {
            drop(queue);
            return done(Err(Error::new(Code::ShuttingDown, "the store is closed")));
        }
        queue.proposals.push((ops, done));
        drop(queue);
        match self.shared.habits.drive {
            Drive::Manual => self.shared.step(),
            Drive::Thread => {
                self.shared.wake.notify_one();
            }
        }
    }

    /// From now on a log that cannot be reached is not waited for: the process is to end.
    pub fn hurry(&self) {
        self.shared.queue.lock().hurried = true;
        self.shared.wake.notify_all();
    }

    /// Commits what was proposed and refuses more.
    pub fn close(&self) {
        self.hurry();
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            self.shared.poison.poison(Error::internal("the metadata thread panicked"));
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.close();
    }
}

fn spawn(shared: Arc<Shared>) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name("metadata".to_owned())
        .spawn(move || shared.run())
        .map_err(|error| Error::io("start the metadata thread", error))
}

impl Shared {
    fn run(&self) {
        loop {
            let mut queue = self.queue.lock();
            while queue.proposals.is_empty() {
                if queue.closed {
                    return;
                }
                match self.habits.watch {
                    None => self.wake.wait(&mut queue),
                    Some(period) => {
                        if self.wake.wait_for(&mut queue, period).timed_out() {
                            break;
                        }
                    }
                }
            }
            let idle = queue.proposals.is_empty();
            drop(queue);
            if idle {
                self.watch();
                continue;
            }
            let round = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.step()));
            if round.is_err() {
                self.poison.poison(Error::internal("the metadata thread panicked"));
            }
        }
    }

    /// Looks for another owner, who may have come while there was nothing to commit.
    fn watch(&self) {
        if self.poison.cause().is_none()
            && let Err(error) = self.confirm()
        {
            tracing::debug!(%error, "could not look for another owner");
        }
    }

    fn confirm(&self) -> Result<()> {
        // Held while a version is made: our own next edit is no sign of somebody else.
        let _making = self.making.lock();
        self.poison.check()?;
        let head = self.head.load().version;
        let Some(others) = self.log.after(head)? else { return Ok(()) };
        let error = fenced(&others);
        self.poison.poison(error.clone());
        Err(error)
    }

    fn step(&self) {
        let _making = self.making.lock();
        let proposals = std::mem::take(&mut self.queue.lock().proposals);
        if let Err(error) = self.poison.check() {
            return proposals.into_iter().for_each(|(_, done)| done(Err(error.clone())));
        }
        let before = self.head.load_full();
        let mut next = Snapshot::clone(&before);
        let (mut edits, mut accepted, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        for (ops, done) in proposals {
            let edit = Edit { commit_id: self.env.random.uuid(), by: self.author.clone(), ops };
            match next.apply(&edit) {
                Ok(applied) => {
                    next = applied;
                    edits.push(edit);
                    accepted.push(done);
                }
                Err(error) => refused.push((done, error)),
            }
        }
        if !edits.is_empty() {
            let outcome = self.append(&before, next, &edits);
            accepted.into_iter().for_each(|done| done(outcome.clone()));
        }
        refused.into_iter().for_each(|(done, error)| done(Err(error)));
    }

    fn append(
        &self,
        before: &Snapshot,
        mut next: Snapshot,
        edits: &[Edit],
    ) -> Result<Arc<Snapshot>> {
        match self.append_patiently(before.version, edits) {
            Ok(version) => next.version = version,
            Err(error) => {
                let error = as_error(error);
                self.poison.poison(error.clone());
                return Err(error);
            }
        }
        let next = Arc::new(next);
        self.head.store(next.clone());
        (self.observer)(before, &next);
        checkpoint_if_due(&*self.log, &self.habits, &next);
        Ok(next)
    }

    /// Appends, again and again while the log cannot be reached.
    fn append_patiently(
        &self,
        expect: MetaVersion,
        edits: &[Edit],
    ) -> Result<MetaVersion, AppendError> {
        let began = self.env.clock.monotonic();
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            let error = match self.log.append(expect, edits) {
                Err(AppendError::Unreachable(error)) => error,
                outcome => return outcome,
            };
            let waited = self.env.clock.monotonic().saturating_sub(began);
            if waited >= self.habits.patience || !self.pause(attempt, pause) {
                let error = error.context("whether a change of the metadata counts is unknown");
                return Err(AppendError::Io(error));
            }
            metrics().objects.retried_commits.inc();
            tracing::warn!(%error, attempt, "a change of the metadata is tried again");
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        unreachable!("attempts have no end")
    }

    /// Waits before the next attempt; false where there is to be none.
    fn pause(&self, attempt: u32, pause: Duration) -> bool {
        if self.habits.drive == Drive::Manual {
            return attempt < TRIES;
        }
        let end = self.env.clock.monotonic() + pause;
        let mut queue = self.queue.lock();
        loop {
            let rest = end.saturating_sub(self.env.clock.monotonic());
            if queue.hurried || rest.is_zero() {
                return !queue.hurried;
            }
            self.wake.wait_for(&mut queue, rest);
        }
    }
}

/// Makes a checkpoint of every so many versions, by their numbers and not by a count of this
/// process: short lives need checkpoints, too. The log is complete without one, so where it fails
/// the next one will do.
fn checkpoint_if_due(log: &dyn MetaLog, habits: &Habits, head: &Snapshot) {
    if head.version.0 > 0
        && head.version.0.is_multiple_of(habits.checkpoint_every)
        && let Err(error) = log.checkpoint(head)
    {
        tracing::warn!(%error, "metadata checkpoint failed");
    }
}

pub(super) fn as_error(error: AppendError) -> Error {
    match error {
        AppendError::Conflict(others) => fenced(&others),
        AppendError::Fenced(error) | AppendError::Io(error) | AppendError::Unreachable(error) => {
            error
        }
    }
}

/// Another owner has appended what comes after our last version.
fn fenced(others: &[Edit]) -> Error {
    let whom = others.first().map(|edit| &edit.by).map_or_else(
        || "another process".to_owned(),
        |by| format!("node {:?} with epoch {}", by.node, by.epoch),
    );
    Error::new(Code::Fenced, format!("{whom} has taken over the store, this server stops"))
        .with_hint("only one server may use a store; keep this data folder, its journal may hold rows that the other server does not have")
}
